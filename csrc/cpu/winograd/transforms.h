// The one-dimensional transforms of Winograd's algorithm F(m, r): m results of a correlation with r taps, 3 or 5, by
// m + r - 1 products, one for each of the points 0, p, -p for some p, and infinity. With the taps g and the data d,
//
//   y = A^T ((G g) . (B^T d))        y_i = sum of g_k d_(i + k)
//
// in two dimensions on the rows and on the columns. Each function transforms along one axis; V is a vector or a number.
//
// Larger tiles take fewer products and round more; with the same number of points, all round alike. With five taps,
// maps in float32 and float64 have m = 2: 36 products for 4 results. Maps in 16 bits have m = 4, 64 products for 16
// results, whose arithmetic is in float32, too, and whose error is far below the rounding of the results. With three
// taps m is 4, 36 products for 16 results; in float64 it is 2, because a vector of the baseline has two pixels.
#pragma once

#include "cpu/storage.h"
#include "cpu/vector.h"

namespace motionrnn_ext::cpu {
namespace {

// The points p: those of the smallest error among the multiples of 1/8. In float32, for normal data and 64 channels,
// the largest error is 1.1e-6 of the largest value for 6 points (1.3e-6 with three taps), and 3.2e-6 with the points 1
// and 2; 5.6e-6 for 8 points.
template <int points>
constexpr double kAt[points / 2 - 1] = {0.75, 1.5};
template <>
constexpr double kAt<4>[1] = {1};
template <>
constexpr double kAt<8>[3] = {0.5, 1, 2};

template <int points>
struct Coefficients {
  static constexpr int pairs = points / 2 - 1;
  double square[pairs], scale[pairs];  // p^2, and the factor of G: 1 / the product of the differences to other points
  double others[pairs][pairs];         // the product of z - q^2 over the other points q, by powers of z
  double all[pairs + 1];               // the product of z - q^2 over all points

  constexpr Coefficients() : square{}, scale{}, others{}, all{} {
    for (int i = 0; i < pairs; ++i) square[i] = kAt<points>[i] * kAt<points>[i];
    for (int i = 0; i < pairs; ++i) {
      scale[i] = 1 / (2 * square[i]);
      for (int j = 0; j < pairs; ++j)
        if (j != i) scale[i] /= square[i] - square[j];
      multiply(others[i], i);
    }
    multiply(all, pairs);
  }

  constexpr void multiply(double* product, int but) const {
    int degree = 0;
    product[0] = 1;
    for (int j = 0; j < pairs; ++j) {
      if (j == but) continue;
      product[++degree] = 1;
      for (int k = degree - 1; k > 0; --k) product[k] = product[k - 1] - square[j] * product[k];
      product[0] *= -square[j];
    }
  }
};

template <int results, int n_taps>
struct Transforms {
  static constexpr int points = results + n_taps - 1, pairs = points / 2 - 1;
  static constexpr Coefficients<points> of{};

  // v = B^T d.
  template <class T, class V>
  static MOTIONRNN_EXT_INLINE void data(const V* d, V (&v)[points]) {
    for (int i = 0; i < pairs; ++i) {
      V even = d[points - 2], odd = d[points - 3];
      for (int k = pairs - 2; k >= 0; --k)
        even += T(of.others[i][k]) * d[2 * k + 2], odd += T(of.others[i][k]) * d[2 * k + 1];
      v[2 * i + 1] = even + T(kAt<points>[i]) * odd, v[2 * i + 2] = even - T(kAt<points>[i]) * odd;
    }
    v[0] = d[points - 2], v[points - 1] = d[points - 1];
    for (int k = pairs - 1; k >= 0; --k) v[0] += T(of.all[k]) * d[2 * k], v[points - 1] += T(of.all[k]) * d[2 * k + 1];
  }

  // y = A^T m.
  template <class T, class V>
  static MOTIONRNN_EXT_INLINE void products(const V (&m)[points], V (&y)[results]) {
    V even[pairs], odd[pairs];
    for (int i = 0; i < pairs; ++i) {
      even[i] = m[2 * i + 1] + m[2 * i + 2];
      odd[i] = T(kAt<points>[i]) * (m[2 * i + 1] - m[2 * i + 2]);
    }
    for (int k = 0; k < results; k += 2) {
      y[k] = even[0], y[k + 1] = odd[0];
      for (int i = 1; i < pairs; ++i) y[k] += even[i], y[k + 1] += odd[i];
      for (int i = 0; i < pairs; ++i) even[i] *= T(of.square[i]), odd[i] *= T(of.square[i]);
    }
    y[0] += m[0], y[results - 1] += m[points - 1];
  }

  // m = A y, which turns gradients of results into gradients of products.
  template <class T, class V>
  static MOTIONRNN_EXT_INLINE void gradients(const V* y, V (&m)[points]) {
    for (int i = 0; i < pairs; ++i) {
      V even = y[results - 2], odd = y[results - 1];
      for (int k = results - 4; k >= 0; k -= 2)
        even = y[k] + T(of.square[i]) * even, odd = y[k + 1] + T(of.square[i]) * odd;
      m[2 * i + 1] = even + T(kAt<points>[i]) * odd, m[2 * i + 2] = even - T(kAt<points>[i]) * odd;
    }
    m[0] = y[0], m[points - 1] = y[results - 1];
  }

  // u = G g.
  template <class T, class V>
  static MOTIONRNN_EXT_INLINE void transform_taps(const V (&g)[n_taps], V (&u)[points]) {
    for (int i = 0; i < pairs; ++i) {
      const T square = of.square[i], scale = of.scale[i];
      V even = g[n_taps - 1], odd = g[n_taps - 2];
      for (int k = n_taps - 3; k >= 0; k -= 2) even = g[k] + square * even;
      for (int k = n_taps - 4; k >= 0; k -= 2) odd = g[k] + square * odd;
      odd *= T(kAt<points>[i]);
      u[2 * i + 1] = scale * (even + odd), u[2 * i + 2] = scale * (even - odd);
    }
    u[0] = T(1 / of.all[0]) * g[0], u[points - 1] = g[n_taps - 1];
  }

  // g = G^T u, which turns gradients of the transformed taps into those of the taps.
  template <class T, class V>
  static MOTIONRNN_EXT_INLINE void tap_gradients(const V (&u)[points], V (&g)[n_taps]) {
    for (int i = 0; i < pairs; ++i) {
      const T square = of.square[i], scale = of.scale[i];
      // The even taps' sum and the odd ones', times the powers of p^2.
      V of_parity[2] = {scale * (u[2 * i + 1] + u[2 * i + 2]),
                        T(of.scale[i] * kAt<points>[i]) * (u[2 * i + 1] - u[2 * i + 2])};
      for (int k = 0; k < n_taps; ++k) {
        g[k] = i == 0 ? of_parity[k % 2] : g[k] + of_parity[k % 2];
        of_parity[k % 2] *= square;
      }
    }
    g[0] += T(1 / of.all[0]) * u[0], g[n_taps - 1] += u[points - 1];
  }
};

// The sizes of a tile along an axis, for maps stored as F_ and a convolution of k_ x k_ taps.
template <class F_, int k_>
struct TileSize {
  using F = F_;
  using T = typename arithmetic<F>::type;
  static constexpr int k = k_;
  static constexpr int results = (k == 3 && sizeof(F) <= 4) || sizeof(F) == 2 ? 4 : 2;
  static constexpr int points = results + k - 1, square = points * points;
  using Axis = Transforms<results, k>;
};

}  // namespace
}  // namespace motionrnn_ext::cpu
