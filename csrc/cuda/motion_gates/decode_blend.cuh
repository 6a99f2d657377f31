// The end of a MotionGRU step with an output gate of 1x1, in one launch each way:
//
//   decode_blend    Q = Dec(warped),   g = W_Q Q + W_H H + b,   X = s(g) A + (1 - s(g)) B
//   blend_backward  the gradients of g, and of Q and H through both g and the blend
//
// (A, B) is (H, Q) or (Q, H). The decoder is a transposed convolution with 4x4 taps and stride 2. An output pixel reads
// 2x2 of its taps: those of the parity of its row and column. A block of decode_blend takes 16 pixels of the half map
// and one parity, which is a convolution by 2x2 taps of the half map.
#pragma once

#include "cuda/motion_gates/forward.cuh"

namespace motionrnn_ext::cuda {
namespace {

constexpr int kParities = 4;

// The weights of the end of a step as fragments. All channels of a pixel are in shared memory at once: one chunk.
template <class T>
struct PackedDecodeBlend {
  const DecodeBlendArguments& a;

  static Steps steps(int32_t size, int32_t channels) { return {size, channels, (channels + 3) / 4}; }

  // By parity, warped -> Q;  Q -> g;  H -> g
  PackList<kParities + 2> forward(void* to) const {
    const T *decoder = static_cast<const T*>(a.decoder_weight), *gate = static_cast<const T*>(a.gate_weight);
    const auto of_parity = [&](int32_t row, int32_t col) {
      // Taps go down by two from 3 - row and 3 - col.
      const Weight::Source source{decoder, 16, 16 * a.channels};
      return Fragments({source, a.channels, Taps{2, 4 * (3 - row) + 3 - col, -8, -2}}, steps(2, a.encoded), nullptr);
    };
    const auto of_gate = [&](const T* first) {
      return Fragments({{first, 2 * a.channels, 1}, a.channels, Taps::of(1)}, steps(1, a.channels), nullptr);
    };
    return PackList<kParities + 2>{
        {of_parity(0, 0), of_parity(0, 1), of_parity(1, 0), of_parity(1, 1), of_gate(gate), of_gate(gate + a.channels)}}
        .template placed<T>(to);
  }
  // g_g -> Q;  g_g -> H
  PackList<2> backward(void* to) const {
    const T* gate = static_cast<const T*>(a.gate_weight);
    const auto of_gate = [&](const T* first) {
      return Fragments({{first, 1, 2 * a.channels}, a.channels, Taps::of(1)}, steps(1, a.channels), nullptr);
    };
    return PackList<2>{{of_gate(gate), of_gate(gate + a.channels)}}.template placed<T>(to);
  }
};

struct DecodeBlend {
  Operand warped;         // its chunks of fragments are those of the parities
  Operand decoded, maps;  // Q and H
  TileShape shape, row;   // tiles of the half map; tiles of 16 pixels in shared memory
  int32_t height, width;  // size of the half map
  int32_t channels;
  bool gates_maps;
  const void *decoder_bias, *gate_bias;
  Output to_decoded, to_logits, out;

  template <class T>
  size_t shared_bytes() const {
    return warped.shared_bytes<T>(shape) + decoded.shared_bytes<T>(row) + maps.shared_bytes<T>(row);
  }
};

// Return a channel of a staged pixel, of all whose quads are staged.
template <class T>
__device__ __forceinline__ T& staged_channel(const Operand& operand, Quad<T>* staged, int in_tile, int channel) {
  return reinterpret_cast<T*>(staged + in_tile * operand.pixel)[channel];
}

// Stage all channels of the block's pixels, as they are.
template <class T, class PixelOf>
__device__ __forceinline__ void stage_pixels(const Operand& operand, Quad<T>* staged, PixelOf&& pixel_of_tile) {
  const int quads = operand.steps.quads;
  const bool by_pixel = operand.image.channel == 1;
#pragma unroll 1
  for (int i = threadIdx.x; i < kTilePixels * quads; i += kGatesThreads) {
    const int slow = by_pixel ? i / quads : i / kTilePixels, fast = i - slow * (by_pixel ? quads : kTilePixels);
    const int in_tile = by_pixel ? slow : fast, quad = by_pixel ? fast : slow;
    const Pixel pixel = pixel_of_tile(in_tile);
    Quad<T> value{};
    if (pixel.inside) {
      const T* from = &element<const T>(operand.image, pixel.b, 4 * quad, pixel.index);
      const int left = operand.steps.channels - 4 * quad;
      value = operand.vector == 4 ? load_quad<T, T, 4>(from, 1, left)
                                  : load_quad<T, T, 1>(from, operand.image.channel, left);
    }
    staged[in_tile * operand.pixel + quad] = value;
  }
}

template <class T>
__global__ void __launch_bounds__(kGatesThreads, kGatesBlocks) decode_blend(const DecodeBlend a) {
  MOTIONRNN_EXT_SHARED(shared);
  const Tile tile(a.shape);
  const int parity = blockIdx.y, row = parity / 2, col = parity % 2;
  const auto output_pixel = [&](int in_tile) {
    Pixel pixel(tile, a.shape, a.height, a.width, in_tile);
    pixel.index = (2 * pixel.row + row) * 2 * a.width + 2 * pixel.col + col;
    return pixel;
  };
  const Factor<T, T> warped(a.warped, a.shape, tile, a.height, a.width, shared);
  const Factor<T, T> decoded(a.decoded, a.row, tile, a.height, a.width, warped.end());
  const Factor<T, T> maps(a.maps, a.row, tile, a.height, a.width, decoded.end());
  find_places(a.warped, 2, a.shape, warped.places, row * a.shape.staged_width() + col);
  find_places(a.decoded, 1, a.row, decoded.places);
  find_places(a.maps, 1, a.row, maps.places);
  stage<T, T>(a.warped, 0, tile, a.shape, a.height, a.width, warped.staged);
  stage_pixels<T>(a.maps, maps.staged, output_pixel);
  __syncthreads();
  const int warp = threadIdx.x / kWarp, padded = 4 * a.decoded.steps.quads;
#pragma unroll 1
  for (int first = warp; first < a.warped.tiles; first += 2 * kGatesWarps) {
    float sum[2][4] = {};
    multiply_chunk<T>(a.warped, parity, a.shape, warped.staged, warped.places, first, sum);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int column = column_of(first + n * kGatesWarps, 0), in_tile = pixel_of(2 * h);
        const int count = min(a.channels - column, 2);
        float value[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          value[i] = i < count ? sum[n][2 * h + i] + to_float(__ldg(static_cast<const T*>(a.decoder_bias) + column + i))
                               : 0.0f;
          // Zeros in what fills up the last quad.
          if (column + i < padded)
            staged_channel<T>(a.decoded, decoded.staged, in_tile, column + i) = from_float<T>(value[i]);
        }
        const Pixel pixel = output_pixel(in_tile);
        if (count > 0 && pixel.inside) store_columns<T>(a.to_decoded, pixel, column, count, value);
      }
  }
  __syncthreads();
#pragma unroll 1
  for (int first = warp; first < a.decoded.tiles; first += 2 * kGatesWarps) {
    float sum[2][4] = {};
    multiply_chunk<T>(a.decoded, 0, a.row, decoded.staged, decoded.places, first, sum);
    multiply_chunk<T>(a.maps, 0, a.row, maps.staged, maps.places, first, sum);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int column = column_of(first + n * kGatesWarps, 0), in_tile = pixel_of(2 * h);
        const int count = min(a.channels - column, 2);
        const Pixel pixel = output_pixel(in_tile);
        if (count <= 0 || !pixel.inside) continue;
        float logit[2] = {}, blended[2] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (i >= count) continue;
          const float bias = to_float(__ldg(static_cast<const T*>(a.gate_bias) + column + i));
          logit[i] = to_float(from_float<T>(sum[n][2 * h + i] + bias));
          const float of_q = to_float(staged_channel<T>(a.decoded, decoded.staged, in_tile, column + i));
          const float of_h = to_float(staged_channel<T>(a.maps, maps.staged, in_tile, column + i));
          float result[1];
          math::GatedBlend::apply<float>({logit[i], a.gates_maps ? of_h : of_q, a.gates_maps ? of_q : of_h}, result,
                                         {});
          blended[i] = result[0];
        }
        store_columns<T>(a.to_logits, pixel, column, count, logit);
        store_columns<T>(a.out, pixel, column, count, blended);
      }
  }
}

struct BlendBackward {
  Operand to_decoded, to_maps;  // products of the logits' gradient
  TileShape shape;              // tiles of the map as one row of pixels
  int32_t pixels, channels;
  bool gates_maps;
  bool by_four;  // whether every map may be read and written by four channels
  Image grad, logits, decoded, maps;
  Image grad_logits;
  Output grad_decoded, grad_maps;

  // The gradient of the logits, with the places of its products, and those of both sides by the blend.
  template <class T>
  size_t shared_bytes() const {
    return to_decoded.shared_bytes<T>(shape) + 2 * to_decoded.staged_quads(shape) * sizeof(Quad<T>);
  }
};

// Load four channels of a pixel as floats, 0 for those from `left` on.
template <class T>
__device__ __forceinline__ void load_four(const Image& image, bool by_four, int b, int channel, int pixel, int left,
                                          float (&value)[4]) {
  const T* from = &element<const T>(image, b, channel, pixel);
  if (by_four) {
    load_floats<4>(from, value);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) value[j] = j < left ? to_float(__ldg(from + int64_t(j) * image.channel)) : 0.0f;
  }
}

template <class T>
__device__ __forceinline__ Quad<T> quad_of(const float (&value)[4]) {
  Quad<T> quad;
#pragma unroll
  for (int i = 0; i < Quad<T>::kWords; ++i) quad.word[i] = pack<T>(value + i * kPerWord<T>);
  return quad;
}

template <class T>
__global__ void __launch_bounds__(kGatesThreads, kGatesBlocks) blend_backward(const BlendBackward a) {
  MOTIONRNN_EXT_SHARED(shared);
  const Tile tile(a.shape);
  const Factor<T, T> grads(a.to_decoded, a.shape, tile, 1, a.pixels, shared);
  // By the blend: the gradients of the sides that s(g) and 1 - s(g) multiply.
  Quad<T>* of_first = reinterpret_cast<Quad<T>*>(grads.end());
  Quad<T>* of_second = of_first + a.to_decoded.staged_quads(a.shape);
  find_places(a.to_decoded, 1, a.shape, grads.places);
  const int quads = a.to_decoded.steps.quads;
  const bool by_pixel = a.logits.channel == 1;
#pragma unroll 1
  for (int i = threadIdx.x; i < kTilePixels * quads; i += kGatesThreads) {
    const int slow = by_pixel ? i / quads : i / kTilePixels, fast = i - slow * (by_pixel ? quads : kTilePixels);
    const int in_tile = by_pixel ? slow : fast, quad = by_pixel ? fast : slow;
    const int b = tile.b, pixel = tile.col + in_tile, channel = 4 * quad, left = a.channels - channel;
    float made[3][4] = {};
    if (pixel < a.pixels) {
      float grad[4], logit[4], first[4], second[4];
      load_four<T>(a.grad, a.by_four, b, channel, pixel, left, grad);
      load_four<T>(a.logits, a.by_four, b, channel, pixel, left, logit);
      load_four<T>(a.gates_maps ? a.maps : a.decoded, a.by_four, b, channel, pixel, left, first);
      load_four<T>(a.gates_maps ? a.decoded : a.maps, a.by_four, b, channel, pixel, left, second);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float out[3];
        math::GatedBlendBackward::apply<float>({grad[j], logit[j], first[j], second[j]}, out, {});
        made[0][j] = out[0], made[1][j] = out[1], made[2][j] = out[2];
      }
    }
    const int at = in_tile * a.to_decoded.pixel + quad;
    const Quad<T> of_logits = quad_of<T>(made[0]);
    grads.staged[at] = of_logits, of_first[at] = quad_of<T>(made[1]), of_second[at] = quad_of<T>(made[2]);
    if (pixel >= a.pixels) continue;
    T* to = &element<T>(a.grad_logits, b, channel, pixel);
    if (a.by_four) {
      store_words<Quad<T>::kWords>(to, of_logits.word);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (j < left) to[int64_t(j) * a.grad_logits.channel] = from_float<T>(made[0][j]);
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int side = 0; side < 2; ++side) {
    const bool of_maps = side == 1;
    const Operand& operand = of_maps ? a.to_maps : a.to_decoded;
    const Output& out = of_maps ? a.grad_maps : a.grad_decoded;
    Quad<T>* by_blend = of_maps == a.gates_maps ? of_first : of_second;
#pragma unroll 1
    for (int first = threadIdx.x / kWarp; first < operand.tiles; first += 2 * kGatesWarps) {
      float sum[2][4] = {};
      multiply_chunk<T>(operand, 0, a.shape, grads.staged, grads.places, first, sum);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int column = column_of(first + n * kGatesWarps, 0), count = min(a.channels - column, 2);
          const int in_tile = pixel_of(2 * h);
          const Pixel pixel(tile, a.shape, 1, a.pixels, in_tile);
          if (count <= 0 || !pixel.inside) continue;
          // Both lie in one quad, which is whole.
          const T* added = &staged_channel<T>(a.to_decoded, by_blend, in_tile, column);
          const float value[2] = {sum[n][2 * h] + to_float(added[0]), sum[n][2 * h + 1] + to_float(added[1])};
          store_columns<T>(out, pixel, column, count, value);
        }
    }
  }
}

// ---- Launches

template <class T>
void launch_decode_blend(const DecodeBlendArguments& a, Stream stream) {
  const auto packed = PackedDecodeBlend<T>{a}.forward(a.packed);
  const DecodeBlend blend{operand_of<T>(a.warped, packed.fragments[0]),
                          operand_of<T>(Image{}, packed.fragments[kParities]),
                          operand_of<T>(a.maps, packed.fragments[kParities + 1]),
                          TileShape(a.height, a.width, 1),
                          TileShape(1, kTilePixels, 0),
                          a.height,
                          a.width,
                          a.channels,
                          a.gates_maps,
                          a.decoder_bias,
                          a.gate_bias,
                          output_of<T>(a.decoded, a.channels),
                          output_of<T>(a.logits, a.channels),
                          output_of<T>(a.out, a.channels)};
  launch(decode_blend<T>, dim3(static_cast<unsigned>(blend.shape.per_image * a.batch), kParities), kGatesThreads,
         blend.template shared_bytes<T>(), stream, blend);
}

template <class T>
void launch_blend_backward(const DecodeBlendArguments& a, Stream stream) {
  const auto packed = PackedDecodeBlend<T>{a}.backward(a.packed);
  const int pixels = 4 * a.height * a.width;
  bool by_four = true;
  for (const Image* image : {&a.grad, &a.logits, &a.decoded, &a.maps, &a.grad_logits})
    by_four = by_four && takes_vectors<T>(*image, a.channels, 4);
  const BlendBackward blend{operand_of<T>(Image{}, packed.fragments[0]),
                            operand_of<T>(Image{}, packed.fragments[1]),
                            TileShape(1, pixels, 0),
                            pixels,
                            a.channels,
                            a.gates_maps,
                            by_four,
                            a.grad,
                            a.logits,
                            a.decoded,
                            a.maps,
                            a.grad_logits,
                            output_of<T>(a.grad_decoded, a.channels),
                            output_of<T>(a.grad_maps, a.channels)};
  launch(blend_backward<T>, dim3(static_cast<unsigned>(blend.shape.per_image * a.batch)), kGatesThreads,
         blend.template shared_bytes<T>(), stream, blend);
}

template <class T>
DecodeBlendKernels decode_blend_kernels() {
  return {
      [](const DecodeBlendArguments& a, bool backward) {
        const PackedDecodeBlend<T> packed{a};
        return backward ? packed.backward(nullptr).template bytes<T>() : packed.forward(nullptr).template bytes<T>();
      },
      [](const DecodeBlendArguments& a, bool backward, void* stream) {
        const PackedDecodeBlend<T> packed{a};
        if (backward)
          launch_pack<T>(packed.backward(a.packed), static_cast<Stream>(stream));
        else
          launch_pack<T>(packed.forward(a.packed), static_cast<Stream>(stream));
      },
      [](const DecodeBlendArguments& a, void* stream) { launch_decode_blend<T>(a, static_cast<Stream>(stream)); },
      [](const DecodeBlendArguments& a, void* stream) { launch_blend_backward<T>(a, static_cast<Stream>(stream)); }};
}

}  // namespace
}  // namespace motionrnn_ext::cuda
