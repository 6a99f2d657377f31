// The one-dimensional transforms of Winograd's algorithm F(m, 5): m results of a correlation with five taps by m + 4
// products, one for each of the points 0, p, -p for some p, and infinity. With the taps g and the data d,
//
//   y = A^T ((G g) . (B^T d))        y_i = sum of g_k d_(i + k)
//
// in two dimensions on the rows and on the columns. Each function transforms along one axis; V is a vector or a number.
//
// Larger tiles take fewer products and round more. Maps in float32 and float64 have m = 2: 36 products for 4 results.
// Maps in 16 bits have m = 4, 64 products for 16 results, whose arithmetic is in float32, too, and whose error is far
// below the rounding of the results.
#pragma once

#include "cpu/storage.h"
#include "cpu/vector.h"

namespace motionrnn_ext::cpu {
namespace {

// Taps of the convolution, and results and products of a tile of maps stored as F, along an axis.
constexpr int kTaps = 5;
template <class F>
constexpr int kResults = sizeof(F) == 2 ? 4 : 2;
template <class F>
constexpr int kPoints = kResults<F> + kTaps - 1;
template <class F>
constexpr int kSquare = kPoints<F> * kPoints<F>;

// The points p: those of the smallest error among the multiples of 1/8. In float32, for normal data and 64 channels,
// the largest error is 1.1e-6 of the largest value for m = 2, and 3.2e-6 with the points 1 and 2; 5.6e-6 for m = 4.
template <int results>
constexpr double kAt[results / 2 + 1] = {0.75, 1.5};
template <>
constexpr double kAt<4>[3] = {0.5, 1, 2};

template <int results>
struct Coefficients {
  static constexpr int pairs = results / 2 + 1;
  double square[pairs], scale[pairs];  // p^2, and the factor of G: 1 / the product of the differences to other points
  double others[pairs][pairs];         // the product of z - q^2 over the other points q, by powers of z
  double all[pairs + 1];               // the product of z - q^2 over all points

  constexpr Coefficients() : square{}, scale{}, others{}, all{} {
    for (int i = 0; i < pairs; ++i) square[i] = kAt<results>[i] * kAt<results>[i];
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

template <int results>
struct Transforms {
  static constexpr int points = results + kTaps - 1, pairs = points / 2 - 1;
  static constexpr Coefficients<results> of{};

  // v = B^T d.
  template <class T, class V>
  static MOTIONRNN_EXT_INLINE void data(const V (&d)[points], V (&v)[points]) {
    for (int i = 0; i < pairs; ++i) {
      V even = d[points - 2], odd = d[points - 3];
      for (int k = pairs - 2; k >= 0; --k)
        even += T(of.others[i][k]) * d[2 * k + 2], odd += T(of.others[i][k]) * d[2 * k + 1];
      v[2 * i + 1] = even + T(kAt<results>[i]) * odd, v[2 * i + 2] = even - T(kAt<results>[i]) * odd;
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
      odd[i] = T(kAt<results>[i]) * (m[2 * i + 1] - m[2 * i + 2]);
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
  static MOTIONRNN_EXT_INLINE void gradients(const V (&y)[results], V (&m)[points]) {
    for (int i = 0; i < pairs; ++i) {
      V even = y[results - 2], odd = y[results - 1];
      for (int k = results - 4; k >= 0; k -= 2)
        even = y[k] + T(of.square[i]) * even, odd = y[k + 1] + T(of.square[i]) * odd;
      m[2 * i + 1] = even + T(kAt<results>[i]) * odd, m[2 * i + 2] = even - T(kAt<results>[i]) * odd;
    }
    m[0] = y[0], m[points - 1] = y[results - 1];
  }

  // u = G g.
  template <class T, class V>
  static MOTIONRNN_EXT_INLINE void taps(const V (&g)[kTaps], V (&u)[points]) {
    for (int i = 0; i < pairs; ++i) {
      const T square = of.square[i], scale = of.scale[i];
      const V even = g[0] + square * (g[2] + square * g[4]), odd = T(kAt<results>[i]) * (g[1] + square * g[3]);
      u[2 * i + 1] = scale * (even + odd), u[2 * i + 2] = scale * (even - odd);
    }
    u[0] = T(1 / of.all[0]) * g[0], u[points - 1] = g[kTaps - 1];
  }

  // g = G^T u, which turns gradients of the transformed taps into those of the taps.
  template <class T, class V>
  static MOTIONRNN_EXT_INLINE void tap_gradients(const V (&u)[points], V (&g)[kTaps]) {
    for (int i = 0; i < pairs; ++i) {
      const T square = of.square[i], scale = of.scale[i];
      const V even = scale * (u[2 * i + 1] + u[2 * i + 2]);
      const V odd = T(of.scale[i] * kAt<results>[i]) * (u[2 * i + 1] - u[2 * i + 2]);
      if (i == 0) {
        g[0] = even, g[1] = odd, g[2] = square * even, g[3] = square * odd, g[4] = (square * square) * even;
      } else {
        g[0] += even, g[1] += odd, g[2] += square * even, g[3] += square * odd, g[4] += (square * square) * even;
      }
    }
    g[0] += T(1 / of.all[0]) * u[0], g[kTaps - 1] += u[points - 1];
  }
};

}  // namespace
}  // namespace motionrnn_ext::cpu
