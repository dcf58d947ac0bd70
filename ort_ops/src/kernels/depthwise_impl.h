// Dense depthwise convolution of one plane. Include only from level_*.cpp.
//
// A strip of one vector of columns by some rows of outputs stays in registers; for each kernel column the rows of the
// input are loaded once and serve every kernel row, so that k x k taps cost about k (1 + k / 8) loads a row instead of
// k k. The input is read where it is: a row above or below it is a row of zeros, and in vectors at its left and right
// end the lanes outside are not loaded. At stride 2 every second value of two vectors is picked when it is needed,
// which leaves the outputs in an order of their own until they are written.
#pragma once

#include "conv_simd.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

struct WholeVector {
  typedef V Vector;
  typedef LaneMask Mask;
  static constexpr int lanes = W;
  static V load_some(const float* p, Mask mask) { return load_lanes(p, mask); }
  static Mask between(int64_t from, int64_t to) { return lanes_between(from, to); }
  static void put(float* p, V v, int64_t n) {
    if (n >= W) store(p, v);
    else store_masked(p, v, n);
  }
#if defined(__AVX512F__)
  static V evens(V a, V b) { return ONNXPRUNE_PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30); }
  static V odds(V a, V b) { return ONNXPRUNE_PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31); }
  static V in_order(V v) { return v; }
#elif defined(__AVX2__)
  static V evens(V a, V b) { return ONNXPRUNE_PICK(a, b, 0, 2, 8, 10, 4, 6, 12, 14); }
  static V odds(V a, V b) { return ONNXPRUNE_PICK(a, b, 1, 3, 9, 11, 5, 7, 13, 15); }
  static V in_order(V v) { return ONNXPRUNE_PICK(v, v, 0, 1, 4, 5, 2, 3, 6, 7); }
#else
  static V evens(V a, V b) { return ONNXPRUNE_PICK(a, b, 0, 2, 4, 6); }
  static V odds(V a, V b) { return ONNXPRUNE_PICK(a, b, 1, 3, 5, 7); }
  static V in_order(V v) { return v; }
#endif
};

#if defined(__AVX512F__)
// Rows of 7 or 8 pixels would leave half of a vector idle
struct HalfVector {
  typedef float Vector __attribute__((vector_size(32)));
  typedef __mmask8 Mask;
  static constexpr int lanes = 8;
  static Vector load_some(const float* p, Mask mask) { return (Vector)_mm256_maskz_loadu_ps(mask, p); }
  static Mask between(int64_t from, int64_t to) {
    const int64_t a = from < 0 ? 0 : from > 8 ? 8 : from, b = to < a ? a : to > 8 ? 8 : to;
    return static_cast<Mask>((1u << b) - (1u << a));
  }
  static void put(float* p, Vector v, int64_t n) {
    if (n >= 8) std::memcpy(p, &v, sizeof v);
    else _mm256_mask_storeu_ps(p, static_cast<__mmask8>((1u << n) - 1), (__m256)v);
  }
  static Vector evens(Vector a, Vector b) { return ONNXPRUNE_PICK(a, b, 0, 2, 8, 10, 4, 6, 12, 14); }
  static Vector odds(Vector a, Vector b) { return ONNXPRUNE_PICK(a, b, 1, 3, 9, 11, 5, 7, 13, 15); }
  static Vector in_order(Vector v) { return ONNXPRUNE_PICK(v, v, 0, 1, 4, 5, 2, 3, 6, 7); }
};
#endif

// Values of an input row from column `at` on
template <class Kind, bool EDGE>
static inline typename Kind::Vector depthwise_load(const float* row, int64_t at, typename Kind::Mask mask) {
  if constexpr (EDGE) return Kind::load_some(row + at, mask);
  typename Kind::Vector v;
  std::memcpy(&v, row + at, sizeof v);
  return v;
}

// acc[r] += w[n] * v where input row i is row n of the window of output row r, for stride S
template <int S, int KH, int ROWS, class T>
static inline void depthwise_add(T (&acc)[ROWS], const T (&w)[KH], T v, int i) {
  ONNXPRUNE_UNROLL for (int n = 0; n < KH; ++n)
    if (i >= n && (i - n) % S == 0 && (i - n) / S < ROWS) acc[(i - n) / S] = w[n] * v + acc[(i - n) / S];
}

template <class Kind, int KH, int ROWS, bool EDGE>
static inline void depthwise_columns_1(typename Kind::Vector (&acc)[ROWS], const float* const* row, const DepthwiseJob& job,
                                       int64_t column) {
  typedef typename Kind::Vector T;
  for (int64_t j = 0; j < job.kernel_w; ++j) {
    const int64_t at = column + j - job.pad_left;
    const auto mask = Kind::between(-at, job.in_width - at);
    T w[KH];
    ONNXPRUNE_UNROLL for (int n = 0; n < KH; ++n) w[n] = job.weight[n * job.kernel_w + j] - T{};
    ONNXPRUNE_UNROLL for (int i = 0; i < ROWS + KH - 1; ++i)
      depthwise_add<1, KH, ROWS>(acc, w, depthwise_load<Kind, EDGE>(row[i], at, mask), i);
  }
}

template <class Kind, int KH, int ROWS, bool EDGE>
static inline void depthwise_columns_2(typename Kind::Vector (&acc)[ROWS], const float* const* row, const DepthwiseJob& job,
                                       int64_t column) {
  typedef typename Kind::Vector T;
  for (int64_t j = 0; j < job.kernel_w; j += 2) {  // two kernel columns share their loads
    const int64_t at = 2 * column + j - job.pad_left, behind = at + Kind::lanes;
    const auto first = Kind::between(-at, job.in_width - at), second = Kind::between(-behind, job.in_width - behind);
    const bool two = j + 1 < job.kernel_w;
    T even[KH], odd[KH];
    ONNXPRUNE_UNROLL for (int n = 0; n < KH; ++n) {
      even[n] = job.weight[n * job.kernel_w + j] - T{};
      odd[n] = (two ? job.weight[n * job.kernel_w + j + 1] : 0.f) - T{};
    }
    _Pragma("GCC unroll 19")  // all of up to 8 rows: else the sums would not stay in registers
    for (int i = 0; i < 2 * ROWS + KH - 2; ++i) {
      const T a = depthwise_load<Kind, EDGE>(row[i], at, first), b = depthwise_load<Kind, EDGE>(row[i], behind, second);
      depthwise_add<2, KH, ROWS>(acc, even, Kind::evens(a, b), i);
      if (two) depthwise_add<2, KH, ROWS>(acc, odd, Kind::odds(a, b), i);
    }
  }
}

template <class Kind, int S, int KH, int ROWS, bool EDGE>
static inline void depthwise_strip(const float* const* row, const DepthwiseJob& job, float* Y, int64_t column) {
  typedef typename Kind::Vector T;
  T acc[ROWS];
  ONNXPRUNE_UNROLL for (int r = 0; r < ROWS; ++r) acc[r] = job.bias - T{};
  if constexpr (S == 1) depthwise_columns_1<Kind, KH, ROWS, EDGE>(acc, row, job, column);
  else depthwise_columns_2<Kind, KH, ROWS, EDGE>(acc, row, job, column);
  const T low = job.low - T{}, high = job.high - T{};
  ONNXPRUNE_UNROLL for (int r = 0; r < ROWS; ++r) {
    T v = S == 1 ? acc[r] : Kind::in_order(acc[r]);
    v = low > v ? low : v;
    v = high < v ? high : v;
    Kind::put(Y + r * job.width + column, v, job.width - column);
  }
}

template <class Kind, int S, int KH, int ROWS>
static inline void depthwise_vector(const float* const* row, const DepthwiseJob& job, float* Y, int64_t column) {
  const int64_t begin = S * column - job.pad_left, end = begin + job.kernel_w - 1 + S * Kind::lanes;
  if (begin < 0 || end > job.in_width) depthwise_strip<Kind, S, KH, ROWS, true>(row, job, Y, column);
  else depthwise_strip<Kind, S, KH, ROWS, false>(row, job, Y, column);
}

// ROWS rows of outputs in all their columns: the input is read along its rows, as processors expect
template <int S, int KH, int ROWS>
static void depthwise_rows(const DepthwiseJob& job, int64_t first_row) {
  constexpr int inputs = S * (ROWS - 1) + KH;
  const float* row[inputs];
  ONNXPRUNE_UNROLL for (int i = 0; i < inputs; ++i) {
    const int64_t in = S * (job.first_row + first_row) + i - job.pad_top;
    row[i] = in < 0 || in >= job.in_height ? job.zeros : job.X + in * job.in_width;
  }
  float* Y = job.Y + first_row * job.width;
  for (int64_t column = 0; column < job.width; column += W) {
#if defined(__AVX512F__)
    if (job.width - column <= 8) {
      depthwise_vector<HalfVector, S, KH, ROWS>(row, job, Y, column);
      continue;
    }
#endif
    depthwise_vector<WholeVector, S, KH, ROWS>(row, job, Y, column);
  }
}

template <int S, int KH, int ROWS>
static inline void depthwise_rows_of(int64_t rows, const DepthwiseJob& job, int64_t first_row) {
  if (rows == ROWS) depthwise_rows<S, KH, ROWS>(job, first_row);
  else if constexpr (ROWS > 1) depthwise_rows_of<S, KH, ROWS - 1>(rows, job, first_row);
}

template <int S, int KH>
static void depthwise_plane(const DepthwiseJob& job) {
  constexpr int most = S == 1 || kRegisters >= 32 ? 8 : 4;  // rows, beside the weights
  int64_t shares = (job.rows + most - 1) / most;
  for (int64_t r = 0; r < job.rows; --shares) {
    const int64_t rows = (job.rows - r + shares - 1) / shares;
    depthwise_rows_of<S, KH, most>(rows, job, r);
    r += rows;
  }
}

// Any kernel, stride and dilation: tap by tap
static void depthwise_tapwise(const DepthwiseJob& job) {
  const int64_t taps = job.kernel_h * job.kernel_w;
  for (int64_t r = 0; r < job.rows; ++r) {
    for (int64_t column = 0; column < job.width; column += W) {
      V acc = splat(job.bias);
      const float* x = job.X + r * job.pitch + column;
      for (int64_t t = 0; t < taps; ++t) acc = fma(splat(job.weight[t]), load(x + job.offset[t]), acc);
      acc = min(splat(job.high), max(splat(job.low), acc));
      WholeVector::put(job.Y + r * job.width + column, acc, job.width - column);
    }
  }
}

// What the strips leave: residual and curved activations
static void depthwise_finish(const DepthwiseJob& job) {
  const int64_t n = job.rows * job.width;
  for (int64_t i = 0; i < n; i += W) {
    const int64_t count = n - i < W ? n - i : W;
    V v = load_masked(job.Y + i, count);
    if (job.residual) v += load_masked(job.residual + i, count);
    store_masked(job.out + i, activate(v, job.activation, job.last_low, job.last_high), count);
  }
}

static void depthwise(const DepthwiseJob& job) {
  if (job.tapwise) depthwise_tapwise(job);
  else if (job.stride == 2) job.kernel_h == 3 ? depthwise_plane<2, 3>(job) : depthwise_plane<2, 5>(job);
  else if (job.kernel_h == 3) depthwise_plane<1, 3>(job);
  else if (job.kernel_h == 5) depthwise_plane<1, 5>(job);
  else depthwise_plane<1, 7>(job);
  if (job.finish) depthwise_finish(job);
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
