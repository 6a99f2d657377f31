// The one-dimensional transforms of Winograd's algorithm F(2, 5): two results of a correlation with five taps by six
// products, one for each of the points 0, a, -a, b, -b and infinity. With the taps g and the data d,
//
//   y = A^T ((G g) . (B^T d))        y0 = sum of g_k d_k,  y1 = sum of g_k d_(k+1)
//
// in two dimensions on the rows and on the columns. Each function transforms along one axis; V is a vector or a number.
//
// The points are those of the smallest error among the multiples of 1/8. In float32, for normal data and 64 channels,
// the largest error is 1.1e-6 of the largest value, and 3.2e-6 with the points 0, 1, -1, 2, -2.
#pragma once

#include "cpu/vector.h"

namespace motionrnn_ext::cpu {
namespace {

constexpr int kTaps = 5;     // taps of the convolution, along an axis
constexpr int kPoints = 6;   // products of a tile, along an axis
constexpr int kResults = 2;  // results of a tile, along an axis
constexpr double kA = 0.75, kB = 1.5;
constexpr double kA2 = kA * kA, kB2 = kB * kB;

// v = B^T d.
template <class T, class V>
MOTIONRNN_EXT_INLINE void transform_data(const V (&d)[kPoints], V (&v)[kPoints]) {
  constexpr T a = kA, b = kB, a2 = kA2, b2 = kB2, sum = kA2 + kB2, product = kA2 * kB2;
  const V even_a = d[4] - b2 * d[2], odd_a = d[3] - b2 * d[1], even_b = d[4] - a2 * d[2], odd_b = d[3] - a2 * d[1];
  v[0] = product * d[0] + (d[4] - sum * d[2]);
  v[1] = even_a + a * odd_a, v[2] = even_a - a * odd_a;
  v[3] = even_b + b * odd_b, v[4] = even_b - b * odd_b;
  v[5] = product * d[1] + (d[5] - sum * d[3]);
}

// y = A^T m.
template <class T, class V>
MOTIONRNN_EXT_INLINE void transform_products(const V (&m)[kPoints], V (&y)[kResults]) {
  constexpr T a = kA, b = kB;
  y[0] = m[0] + ((m[1] + m[2]) + (m[3] + m[4]));
  y[1] = a * (m[1] - m[2]) + (b * (m[3] - m[4]) + m[5]);
}

// m = A y, which turns gradients of results into gradients of products.
template <class T, class V>
MOTIONRNN_EXT_INLINE void transform_gradients(const V (&y)[kResults], V (&m)[kPoints]) {
  constexpr T a = kA, b = kB;
  m[0] = y[0], m[5] = y[1];
  m[1] = y[0] + a * y[1], m[2] = y[0] - a * y[1];
  m[3] = y[0] + b * y[1], m[4] = y[0] - b * y[1];
}

// The factors of G: 1 / the product of the differences to the other finite points.
constexpr double kScale0 = 1 / (kA2 * kB2), kScaleA = 1 / (2 * kA2 * (kA2 - kB2)),
                 kScaleB = 1 / (2 * kB2 * (kB2 - kA2));

// u = G g.
template <class T, class V>
MOTIONRNN_EXT_INLINE void transform_taps(const V (&g)[kTaps], V (&u)[kPoints]) {
  constexpr T a = kA, b = kB, a2 = kA2, b2 = kB2, of_0 = kScale0, of_a = kScaleA, of_b = kScaleB;
  const V even_a = g[0] + a2 * (g[2] + a2 * g[4]), odd_a = g[1] + a2 * g[3];
  const V even_b = g[0] + b2 * (g[2] + b2 * g[4]), odd_b = g[1] + b2 * g[3];
  u[0] = of_0 * g[0];
  u[1] = of_a * (even_a + a * odd_a), u[2] = of_a * (even_a - a * odd_a);
  u[3] = of_b * (even_b + b * odd_b), u[4] = of_b * (even_b - b * odd_b);
  u[5] = g[4];
}

// g = G^T u, which turns gradients of the transformed taps into those of the taps.
template <class T, class V>
MOTIONRNN_EXT_INLINE void transform_tap_gradients(const V (&u)[kPoints], V (&g)[kTaps]) {
  constexpr T a = kA, b = kB, a2 = kA2, b2 = kB2, of_0 = kScale0, of_a = kScaleA, of_b = kScaleB;
  const V even_a = of_a * (u[1] + u[2]), odd_a = (of_a * a) * (u[1] - u[2]);
  const V even_b = of_b * (u[3] + u[4]), odd_b = (of_b * b) * (u[3] - u[4]);
  g[0] = of_0 * u[0] + (even_a + even_b);
  g[1] = odd_a + odd_b;
  g[2] = a2 * even_a + b2 * even_b;
  g[3] = a2 * odd_a + b2 * odd_b;
  g[4] = (a2 * a2) * even_a + ((b2 * b2) * even_b + u[5]);
}

}  // namespace
}  // namespace motionrnn_ext::cpu
