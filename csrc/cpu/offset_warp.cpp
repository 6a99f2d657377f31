// The offset warp, forward and backward, as tiles of kTile pixels:
//
//   image    x as channels last with a frame of zeros, so that a corner outside needs no test: it is clamped onto the
//            frame, where it reads 0 and where its gradient is dropped
//   taps     corner positions and mask * weights of every (tap, pixel), vectorised over pixels
//   columns  (pixel, tap, channel): the masked samples, vectorised over channels
//
// and three matrix products: out = columns W; grad_columns = grad_out W^T; grad_W = columns^T grad_out.
// Nothing is kept from forward: backward samples again. Compiled once per instruction set.
#include "cpu/allocate.h"
#include "cpu/channels.h"
#include "cpu/vector.h"
#include "math/bilinear.h"

namespace motionrnn_ext::cpu {
namespace {

// Pixels of a tile, a multiple of kRows. With 16 channels its columns (27 KB) stay in the first-level cache.
constexpr int kTile = 48;

template <class T>
struct Geometry {
  int64_t height, width, pixels, taps, channels, out_channels;
  int64_t C, C_out;   // padded to whole vectors
  int64_t depth;      // taps * C, a row of columns
  int64_t image_row;  // elements of a row of the framed image
  int64_t image_size;
  int32_t radius, reach;

  explicit Geometry(const WarpArguments& a)
      : height(a.height),
        width(a.width),
        pixels(a.height * a.width),
        taps(int64_t(a.k) * a.k),
        channels(a.channels),
        out_channels(a.out_channels),
        C(padded<T>(a.channels)),
        C_out(padded<T>(a.out_channels)),
        depth(taps * C),
        image_row((width + 2) * C),
        image_size((height + 2) * image_row),
        radius((a.k - 1) / 2),
        reach(static_cast<int32_t>((height > width ? height : width) + a.k)) {}
};

// ---- Packing: images to framed channels-last arithmetic and back, tiles to (pixel, channel) and back.

template <class T, class F>
void pack_image(const Geometry<T>& g, const Image& x, int64_t b, T* image) {
  const F* source = static_cast<const F*>(x.data) + b * x.batch;
  for (int64_t row = 0; row < g.height; ++row) {
    T* to = image + (row + 1) * g.image_row + g.C;
    for (int64_t c = 0; c < g.channels; ++c) {
      const F* from = source + c * x.channel + row * g.width * x.pixel;
      for (int64_t col = 0; col < g.width; ++col) to[col * g.C + c] = load(from[col * x.pixel]);
    }
  }
}

template <class T, class F>
void unpack_image(const Geometry<T>& g, const T* image, int64_t b, const Image& x) {
  F* target = const_cast<F*>(static_cast<const F*>(x.data)) + b * x.batch;
  for (int64_t row = 0; row < g.height; ++row) {
    const T* from = image + (row + 1) * g.image_row + g.C;
    for (int64_t c = 0; c < g.channels; ++c) {
      F* to = target + c * x.channel + row * g.width * x.pixel;
      for (int64_t col = 0; col < g.width; ++col) store(to + col * x.pixel, from[col * g.C + c]);
    }
  }
}

template <class T, class F>
void load_tile(const Geometry<T>& g, const Image& image, int64_t b, int64_t first, int64_t n, T* tile) {
  const F* source = static_cast<const F*>(image.data) + b * image.batch + first * image.pixel;
  for (int64_t c = 0; c < g.out_channels; ++c)
    for (int64_t p = 0; p < n; ++p) tile[p * g.C_out + c] = load(source[c * image.channel + p * image.pixel]);
}

template <class T, class F>
void store_tile(const Geometry<T>& g, const T* tile, const Image& image, int64_t b, int64_t first, int64_t n) {
  F* target = const_cast<F*>(static_cast<const F*>(image.data)) + b * image.batch + first * image.pixel;
  for (int64_t c = 0; c < g.out_channels; ++c)
    for (int64_t p = 0; p < n; ++p) store(target + c * image.channel + p * image.pixel, tile[p * g.C_out + c]);
}

// ---- Taps

// One tap of the neighbourhood at kTile pixels.
template <class T>
struct Tap {
  // Element positions of the two rows and two columns of a cell in the framed image.
  int64_t row0[kTile], row1[kTile], col0[kTile], col1[kTile];
  T row_fraction[kTile], col_fraction[kTile], mask[kTile];
  // By corner, in the order of math::Corners.
  T weights[4][kTile];                       // times the mask
  alignas(kAlignment) T products[kTile][4];  // backward: <grad_column, corner sample>
};

// Return n values of one channel of a motion map, from pixel `first` on: in place where pixels are neighbours, else
// copied.
template <class T>
MOTIONRNN_EXT_INLINE const T* read_channel(const Image& map, int64_t b, int64_t channel, int64_t first, int64_t n,
                                           T* buffer) {
  const T* source = static_cast<const T*>(map.data) + b * map.batch + channel * map.channel + first * map.pixel;
  if (map.pixel == 1) return source;
  for (int64_t p = 0; p < n; ++p) buffer[p] = source[p * map.pixel];
  return buffer;
}

MOTIONRNN_EXT_INLINE int64_t framed(int32_t at, int64_t size) {
  const int32_t clamped = at < -1 ? -1 : (at > size ? static_cast<int32_t>(size) : at);
  return clamped + 1;
}

template <class T, class F>
void find_taps(const Geometry<T>& g, const WarpArguments& a, int64_t b, int64_t first, int64_t n, Tap<T>* taps) {
  int32_t place_row[kTile], place_col[kTile];
  for (int64_t p = 0; p < n; ++p) {
    place_row[p] = static_cast<int32_t>((first + p) / g.width);
    place_col[p] = static_cast<int32_t>((first + p) % g.width);
  }
  T row_buffer[kTile], col_buffer[kTile];
  F mask_buffer[kTile];
  for (int64_t i = 0; i < g.taps; ++i) {
    const int32_t tap_row = static_cast<int32_t>(i / a.k) - g.radius;
    const int32_t tap_col = static_cast<int32_t>(i % a.k) - g.radius;
    const T* row_offset = read_channel(a.offset, b, i, first, n, row_buffer);
    const T* col_offset = read_channel(a.offset, b, g.taps + i, first, n, col_buffer);
    const F* mask_logits = read_channel(a.mask_logits, b, i, first, n, mask_buffer);
    Tap<T>& tap = taps[i];
    MOTIONRNN_EXT_INDEPENDENT
    for (int64_t p = 0; p < n; ++p) {
      const auto row = math::bilinear_cell<T>(place_row[p] + tap_row, row_offset[p], g.reach);
      const auto col = math::bilinear_cell<T>(place_col[p] + tap_col, col_offset[p], g.reach);
      tap.row0[p] = framed(row.lower, g.height) * g.image_row;
      tap.row1[p] = framed(row.lower + 1, g.height) * g.image_row;
      tap.col0[p] = framed(col.lower, g.width) * g.C;
      tap.col1[p] = framed(col.lower + 1, g.width) * g.C;
      const T m = math::sigmoid(static_cast<T>(load(mask_logits[p])));
      const auto w = math::bilinear_weights<T>(row.fraction, col.fraction);
      tap.weights[0][p] = m * w.v00;
      tap.weights[1][p] = m * w.v01;
      tap.weights[2][p] = m * w.v10;
      tap.weights[3][p] = m * w.v11;
      tap.row_fraction[p] = row.fraction;
      tap.col_fraction[p] = col.fraction;
      tap.mask[p] = m;
    }
  }
}

// ---- Sampling

template <class T, int lanes>
void sample(const Geometry<T>& g, const Tap<T>* taps, int64_t n, const T* image, T* columns) {
  for (int64_t p = 0; p < n; ++p) {
    for (int64_t i = 0; i < g.taps; ++i) {
      const Tap<T>& tap = taps[i];
      T* column = columns + p * g.depth + i * g.C;
      const T* top = image + tap.row0[p];
      const T* bottom = image + tap.row1[p];
      const int64_t left = tap.col0[p], right = tap.col1[p];
      const math::Corners<T> w{tap.weights[0][p], tap.weights[1][p], tap.weights[2][p], tap.weights[3][p]};
      for (int64_t c = 0; c < g.C; c += lanes)
        at<T, lanes>(column + c) = w.v00 * at<T, lanes>(top + left + c) + w.v01 * at<T, lanes>(top + right + c) +
                                   w.v10 * at<T, lanes>(bottom + left + c) + w.v11 * at<T, lanes>(bottom + right + c);
    }
  }
}

// Sample again, and differentiate the samples: to the image, the offset and the mask.
template <class T, int lanes>
void sample_backward(const Geometry<T>& g, Tap<T>* taps, int64_t n, const T* image, const T* grad_columns, T* columns,
                     T* grad_image) {
  for (int64_t p = 0; p < n; ++p) {
    for (int64_t i = 0; i < g.taps; ++i) {
      Tap<T>& tap = taps[i];
      const int64_t corner[4] = {tap.row0[p] + tap.col0[p], tap.row0[p] + tap.col1[p], tap.row1[p] + tap.col0[p],
                                 tap.row1[p] + tap.col1[p]};
      const T w[4] = {tap.weights[0][p], tap.weights[1][p], tap.weights[2][p], tap.weights[3][p]};
      Vector<T, lanes> product0{}, product1{}, product2{}, product3{};
      for (int64_t c = 0; c < g.C; c += lanes) {
        const int64_t column = p * g.depth + i * g.C + c;
        const Vector<T, lanes> grad = at<T, lanes>(grad_columns + column);
        const Vector<T, lanes> x0 = at<T, lanes>(image + corner[0] + c), x1 = at<T, lanes>(image + corner[1] + c);
        const Vector<T, lanes> x2 = at<T, lanes>(image + corner[2] + c), x3 = at<T, lanes>(image + corner[3] + c);
        product0 += grad * x0;
        product1 += grad * x1;
        product2 += grad * x2;
        product3 += grad * x3;
        if (columns != nullptr) at<T, lanes>(columns + column) = w[0] * x0 + w[1] * x1 + w[2] * x2 + w[3] * x3;
        if (grad_image != nullptr)
          for (int q = 0; q < 4; ++q) at<T, lanes>(grad_image + corner[q] + c) += w[q] * grad;
      }
      at<T, 4>(tap.products[p]) = sum_lanes<T, lanes>(product0, product1, product2, product3);
    }
  }
}

template <class T, class F>
void store_motion_gradients(const Geometry<T>& g, const WarpArguments& a, const Tap<T>* taps, int64_t b, int64_t first,
                            int64_t n) {
  T row_grad[kTile], col_grad[kTile], mask_grad[kTile];
  for (int64_t i = 0; i < g.taps; ++i) {
    const Tap<T>& tap = taps[i];
    if (a.grad_offset.data != nullptr) {
      MOTIONRNN_EXT_INDEPENDENT
      for (int64_t p = 0; p < n; ++p) {
        const math::Corners<T> products{tap.products[p][0], tap.products[p][1], tap.products[p][2], tap.products[p][3]};
        row_grad[p] = tap.mask[p] * math::bilinear_row_derivative<T>(tap.col_fraction[p], products);
        col_grad[p] = tap.mask[p] * math::bilinear_col_derivative<T>(tap.row_fraction[p], products);
      }
      store_channel<T, T>(row_grad, a.grad_offset, b, i, first, n);
      store_channel<T, T>(col_grad, a.grad_offset, b, g.taps + i, first, n);
    }
    if (a.grad_mask_logits.data != nullptr) {
      MOTIONRNN_EXT_INDEPENDENT
      for (int64_t p = 0; p < n; ++p)  // the weights are times the mask already
        mask_grad[p] =
            (T(1) - tap.mask[p]) * (tap.weights[0][p] * tap.products[p][0] + tap.weights[1][p] * tap.products[p][1] +
                                    tap.weights[2][p] * tap.products[p][2] + tap.weights[3][p] * tap.products[p][3]);
      store_channel<T, F>(mask_grad, a.grad_mask_logits, b, i, first, n);
    }
  }
}

// ---- Work items: item = image * bands + band. Backward takes them in groups that share a partial grad_weight.

struct Band {
  int64_t image, first, last;
};

Band band_of(const WarpArguments& a, int64_t item) {
  const int64_t pixels = a.height * a.width, tiles = (pixels + kTile - 1) / kTile;
  const int64_t band = item % a.bands;
  const int64_t last = tiles * (band + 1) / a.bands * kTile;
  return {item / a.bands, tiles * band / a.bands * kTile, last < pixels ? last : pixels};
}

template <class T, class F>
void forward(const WarpArguments& a, int64_t begin, int64_t end) {
  const Geometry<T> g(a);
  const auto image = allocate<T>(g.image_size, true);
  const auto columns = allocate<T>(kTile * g.depth, true);
  const auto tile = allocate<T>(kTile * g.C_out, true);
  const auto taps = allocate<Tap<T>>(g.taps, false);
  const T* weight = static_cast<const T*>(a.packed_weight);  // (depth, C_out)
  for (int64_t item = begin, packed = -1; item < end; ++item) {
    const Band band = band_of(a, item);
    if (packed != band.image) pack_image<T, F>(g, a.x, packed = band.image, image.get());
    for (int64_t first = band.first; first < band.last; first += kTile) {
      const int64_t n = band.last - first < kTile ? band.last - first : kTile;
      find_taps<T, F>(g, a, band.image, first, n, taps.get());
      with_lanes<T>(g.channels, [&]<int lanes>() { sample<T, lanes>(g, taps.get(), n, image.get(), columns.get()); });
      with_lanes<T>(g.out_channels, [&]<int lanes>() {
        multiply<T, lanes>({columns.get(), g.depth, 1}, weight, g.C_out, tile.get(), g.C_out, n, g.C_out, g.depth,
                           false);
      });
      store_tile<T, F>(g, tile.get(), a.out, band.image, first, n);
    }
  }
}

// Run groups [begin, end).
template <class T, class F>
void backward(const WarpArguments& a, int64_t begin, int64_t end) {
  const Geometry<T> g(a);
  const bool want_x = a.grad_x.data != nullptr, want_weight = a.grad_weight != nullptr;
  const auto image = allocate<T>(g.image_size, true);
  const auto columns = allocate<T>(kTile * g.depth, true);
  const auto grad_columns = allocate<T>(kTile * g.depth, true);
  const auto grad_tile = allocate<T>(kTile * g.C_out, true);
  const auto taps = allocate<Tap<T>>(g.taps, false);
  const auto own_grad_image = allocate<T>(want_x && a.bands == 1 ? g.image_size : 1, false);
  const T* weight = static_cast<const T*>(a.packed_weight) + g.depth * g.C_out;  // (C_out, depth)
  const int64_t items = a.batch * a.bands, matrix_size = g.depth * g.C_out;
  T* matrices = static_cast<T*>(a.grad_matrix);
  if (want_weight) std::memset(matrices + begin * matrix_size, 0, (end - begin) * matrix_size * sizeof(T));
  const int64_t first_item = items * begin / a.groups, last_item = items * end / a.groups;
  int64_t packed = -1, group = begin;
  for (int64_t item = first_item; item < last_item; ++item) {
    while (item >= items * (group + 1) / a.groups) ++group;
    const Band band = band_of(a, item);
    if (packed != band.image) pack_image<T, F>(g, a.x, packed = band.image, image.get());
    T* grad_image = nullptr;
    if (want_x) {
      grad_image = a.bands == 1 ? own_grad_image.get() : static_cast<T*>(a.grad_image) + item * g.image_size;
      std::memset(grad_image, 0, g.image_size * sizeof(T));
    }
    for (int64_t first = band.first; first < band.last; first += kTile) {
      const int64_t n = band.last - first < kTile ? band.last - first : kTile;
      find_taps<T, F>(g, a, band.image, first, n, taps.get());
      load_tile<T, F>(g, a.out, band.image, first, n, grad_tile.get());
      with_lanes<T>(g.channels, [&]<int lanes>() {
        multiply<T, lanes>({grad_tile.get(), g.C_out, 1}, weight, g.depth, grad_columns.get(), g.depth, n, g.depth,
                           g.out_channels, false);
        sample_backward<T, lanes>(g, taps.get(), n, image.get(), grad_columns.get(),
                                  want_weight ? columns.get() : nullptr, grad_image);
      });
      if (want_weight)
        with_lanes<T>(g.out_channels, [&]<int lanes>() {
          multiply<T, lanes>({columns.get(), 1, g.depth}, grad_tile.get(), g.C_out, matrices + group * matrix_size,
                             g.C_out, g.depth, g.C_out, n, true);
        });
      store_motion_gradients<T, F>(g, a, taps.get(), band.image, first, n);
    }
    if (want_x && a.bands == 1) unpack_image<T, F>(g, grad_image, band.image, a.grad_x);
  }
}

// ---- Weights, and the sums over partials. Their order is fixed: for a given number of threads, results do not depend
// on timing.

template <class T, class F>
void pack(const WarpArguments& a) {
  const Geometry<T> g(a);
  const F* weight = static_cast<const F*>(a.weight);
  T* columns_first = static_cast<T*>(a.packed_weight);
  T* out_first = columns_first + g.depth * g.C_out;
  std::memset(columns_first, 0, 2 * g.depth * g.C_out * sizeof(T));
  for (int64_t o = 0; o < g.out_channels; ++o)
    for (int64_t c = 0; c < g.channels; ++c)
      for (int64_t tap = 0; tap < g.taps; ++tap) {
        const T value = load(weight[(o * g.channels + c) * g.taps + tap]);
        columns_first[(tap * g.C + c) * g.C_out + o] = value;
        out_first[o * g.depth + tap * g.C + c] = value;
      }
}

template <class T, class F>
void sum_images(const WarpArguments& a, int64_t begin, int64_t end) {
  const Geometry<T> g(a);
  for (int64_t b = begin; b < end; ++b) {
    T* sum = static_cast<T*>(a.grad_image) + b * a.bands * g.image_size;
    for (int64_t band = 1; band < a.bands; ++band)
      for (int64_t i = 0; i < g.image_size; ++i) sum[i] += sum[band * g.image_size + i];
    unpack_image<T, F>(g, sum, b, a.grad_x);
  }
}

template <class T, class F>
void sum_matrices(const WarpArguments& a) {
  const Geometry<T> g(a);
  T* sum = static_cast<T*>(a.grad_matrix);
  const int64_t size = g.depth * g.C_out;
  for (int64_t group = 1; group < a.groups; ++group)
    for (int64_t i = 0; i < size; ++i) sum[i] += sum[group * size + i];
  F* grad_weight = static_cast<F*>(a.grad_weight);
  for (int64_t o = 0; o < g.out_channels; ++o)
    for (int64_t c = 0; c < g.channels; ++c)
      for (int64_t tap = 0; tap < g.taps; ++tap)
        store(grad_weight + (o * g.channels + c) * g.taps + tap, sum[(tap * g.C + c) * g.C_out + o]);
}

template <class T>
WarpSizes sizes(const WarpArguments& a) {
  const Geometry<T> g(a);
  const int64_t matrix = g.depth * g.C_out * static_cast<int64_t>(sizeof(T));
  return {2 * matrix, g.image_size * static_cast<int64_t>(sizeof(T)), matrix};
}

template <class F>
WarpKernels kernels_for() {
  using T = typename arithmetic<F>::type;
  return {sizes<T>, pack<T, F>, forward<T, F>, backward<T, F>, sum_images<T, F>, sum_matrices<T, F>};
}

}  // namespace

WarpKernels MOTIONRNN_EXT_ISA::warp_kernels(Types types) {
  return for_features(types, []<class F>() { return kernels_for<F>(); });
}

}  // namespace motionrnn_ext::cpu
