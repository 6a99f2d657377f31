// One bilinear tap: the cell it falls in, its weights, and their derivatives.
#pragma once

#include "scalar.h"

namespace motionrnn_ext::math {

// A coordinate `place + offset` on an axis of `size` pixels, as an integer (place plus the offset's whole part) and a
// fraction in [0, 1). The floor is taken of the offset alone, which is exact in floating point. At integers the cell is
// the one to the right, so the derivative is the one from the right. Offsets beyond `reach` are clamped to it, which
// keeps inf and 1e7 in int's range. With reach >= size + k this changes no sample, because the whole cell lies outside
// of the image before and after. nan stays in the fraction.
template <class T>
struct BilinearCell {
  int32_t lower;
  T fraction;
};

template <class T>
MOTIONRNN_EXT_MATH BilinearCell<T> bilinear_cell(int32_t place, T offset, int32_t reach) {
  const T limit = static_cast<T>(reach);
  offset = offset > limit ? limit : offset;
  offset = offset < -limit ? -limit : offset;
  // Truncation and a correction replace floor(), because they vectorise on every instruction set. nan has no integer.
  const int32_t truncated = static_cast<int32_t>(offset == offset ? offset : T(0));
  const int32_t whole = truncated - (static_cast<T>(truncated) > offset ? 1 : 0);
  return {place + whole, offset - static_cast<T>(whole)};
}

// The four corners of a cell, by (row, column): weights, samples, or products with samples.
template <class T>
struct Corners {
  T v00, v01, v10, v11;
};

template <class T>
MOTIONRNN_EXT_MATH Corners<T> bilinear_weights(T row_fraction, T col_fraction) {
  const T row_rest = T(1) - row_fraction, col_rest = T(1) - col_fraction;
  return {row_rest * col_rest, row_rest * col_fraction, row_fraction * col_rest, row_fraction * col_fraction};
}

template <class T>
MOTIONRNN_EXT_MATH T bilinear_value(const Corners<T>& weights, const Corners<T>& q) {
  return weights.v00 * q.v00 + weights.v01 * q.v01 + weights.v10 * q.v10 + weights.v11 * q.v11;
}

// Return the derivatives of bilinear_value by the row and the column coordinate; q holds samples or their products.
template <class T>
MOTIONRNN_EXT_MATH T bilinear_row_derivative(T col_fraction, const Corners<T>& q) {
  return (T(1) - col_fraction) * (q.v10 - q.v00) + col_fraction * (q.v11 - q.v01);
}

template <class T>
MOTIONRNN_EXT_MATH T bilinear_col_derivative(T row_fraction, const Corners<T>& q) {
  return (T(1) - row_fraction) * (q.v01 - q.v00) + row_fraction * (q.v11 - q.v10);
}

}  // namespace motionrnn_ext::math
