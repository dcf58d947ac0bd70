// Dense depthwise convolution of one plane from its padded copy. Include only from level_*.cpp.
//
// A strip of one vector of columns by up to 8 rows of outputs stays in registers; for each kernel column the
// rows of the input are loaded once and serve every kernel row, so that k x k taps cost about k (1 + k / 8)
// loads a row instead of k k.
#pragma once

#include "conv_simd.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

struct WholeVector {
  typedef V Vector;
  static constexpr int lanes = W;
  static void put(float* p, V v, int64_t n) {
    if (n >= W) store(p, v);
    else store_masked(p, v, n);
  }
};

#if defined(__AVX512F__)
// Rows of 7 or 8 pixels would leave half of a vector idle
struct HalfVector {
  typedef float Vector __attribute__((vector_size(32)));
  static constexpr int lanes = 8;
  static void put(float* p, Vector v, int64_t n) {
    if (n >= 8) std::memcpy(p, &v, sizeof v);
    else _mm256_mask_storeu_ps(p, static_cast<__mmask8>((1u << n) - 1), (__m256)v);
  }
};
#endif

// acc[r] += sum over n < N of w[n] * x[r + n]: N kernel rows of one column and phase
template <class Kind, int N, int ROWS>
static inline void depthwise_column(typename Kind::Vector (&acc)[ROWS], const float* x, int64_t pitch, const float* weight,
                                    int64_t weight_step) {
  typedef typename Kind::Vector T;
  T w[N];
  ONNXPRUNE_UNROLL for (int n = 0; n < N; ++n) w[n] = weight[n * weight_step] - T{};
  ONNXPRUNE_UNROLL for (int i = 0; i < ROWS + N - 1; ++i) {
    T v;
    std::memcpy(&v, x + i * pitch, sizeof v);
    ONNXPRUNE_UNROLL for (int n = 0; n < N; ++n)
      if (i - n >= 0 && i - n < ROWS) acc[i - n] = w[n] * v + acc[i - n];
  }
}

// ROWS rows of one strip. A: kernel rows of the even phase, B: of the odd one (0 at stride 1).
template <class Kind, int A, int B, int ROWS>
static void depthwise_strip(const DepthwiseJob& job, const float* X, float* Y, int64_t columns) {
  typedef typename Kind::Vector T;
  constexpr int phases = B > 0 ? 2 : 1;
  T acc[ROWS];
  ONNXPRUNE_UNROLL for (int r = 0; r < ROWS; ++r) acc[r] = job.bias - T{};
  for (int64_t j = 0; j < job.kernel_w; ++j) {
    depthwise_column<Kind, A, ROWS>(acc, X + job.offset[j], job.pitch, job.weight + j, phases * job.kernel_w);
    if constexpr (B > 0) {
      depthwise_column<Kind, B, ROWS>(acc, X + job.offset[job.kernel_w + j], job.pitch, job.weight + job.kernel_w + j,
                                      phases * job.kernel_w);
    }
  }
  const T low = job.low - T{}, high = job.high - T{};
  ONNXPRUNE_UNROLL for (int r = 0; r < ROWS; ++r) {
    T v = acc[r];
    v = low > v ? low : v;
    v = high < v ? high : v;
    Kind::put(Y + r * job.width, v, columns);
  }
}

template <class Kind, int A, int B, int ROWS>
static inline void depthwise_strip_of(int rows, const DepthwiseJob& job, const float* X, float* Y, int64_t columns) {
  if (rows == ROWS) {
    depthwise_strip<Kind, A, B, ROWS>(job, X, Y, columns);
  } else if constexpr (ROWS > 1) {
    depthwise_strip_of<Kind, A, B, ROWS - 1>(rows, job, X, Y, columns);
  }
}

template <class Kind, int A, int B>
static void depthwise_strips(const DepthwiseJob& job, int64_t column) {
  constexpr int most = 8;
  int64_t shares = (job.rows + most - 1) / most;
  for (int64_t r = 0; r < job.rows; --shares) {
    const int64_t rows = (job.rows - r + shares - 1) / shares;
    depthwise_strip_of<Kind, A, B, most>(static_cast<int>(rows), job, job.X + r * job.pitch + column,
                                         job.Y + r * job.width + column, job.width - column);
    r += rows;
  }
}

template <int A, int B>
static void depthwise_plane(const DepthwiseJob& job) {
  for (int64_t column = 0; column < job.width; column += W) {
#if defined(__AVX512F__)
    if (job.width - column <= 8) {
      depthwise_strips<HalfVector, A, B>(job, column);
      continue;
    }
#endif
    depthwise_strips<WholeVector, A, B>(job, column);
  }
}

// Any kernel, stride and dilation: tap by tap
static void depthwise_any(const DepthwiseJob& job) {
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
  const bool rows_reused = job.dilation_h == 1;
  if (rows_reused && job.stride_h == 1 && job.kernel_h == 3) {
    depthwise_plane<3, 0>(job);
  } else if (rows_reused && job.stride_h == 1 && job.kernel_h == 5) {
    depthwise_plane<5, 0>(job);
  } else if (rows_reused && job.stride_h == 2 && job.kernel_h == 3) {
    depthwise_plane<2, 1>(job);
  } else if (rows_reused && job.stride_h == 2 && job.kernel_h == 5) {
    depthwise_plane<3, 2>(job);
  } else {
    depthwise_any(job);
  }
  if (job.finish) depthwise_finish(job);
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
