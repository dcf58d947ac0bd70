// Bitmap rows times a few tokens. Included by level_*.cpp only.
//
// A few tokens are bound by reading the weights, so they are stored with the least bytes (4 a non-zero and 2 bits a
// column of index) and spread to their columns in registers, 16 or 8 columns at a time.
#pragma once

#include "bitmap_functions.h"
#include "tokens_core.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

#if defined(__AVX512F__)

static inline V expand(unsigned mask, const float* value) {
  return (V)_mm512_maskz_expand_ps(static_cast<__mmask16>(mask), _mm512_loadu_ps(value));
}

#elif defined(__AVX2__)

// For each mask of 8 columns and each column: which of the next values it gets; the sign bit where it gets none
struct ExpandTable {
  int8_t lane[256][8];
};
static constexpr ExpandTable make_expand_table() {
  ExpandTable table{};
  for (int mask = 0; mask < 256; ++mask)
    for (int column = 0, next = 0; column < 8; ++column)
      table.lane[mask][column] = mask >> column & 1 ? static_cast<int8_t>(next++) : int8_t{-128};
  return table;
}
alignas(64) static constexpr ExpandTable expand_table = make_expand_table();

static inline V expand(unsigned mask, const float* value) {
  const __m256i lane =
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(expand_table.lane[mask])));
  const __m256 spread = _mm256_permutevar8x32_ps(_mm256_loadu_ps(value), lane);
  return (V)_mm256_blendv_ps(spread, _mm256_setzero_ps(), _mm256_castsi256_ps(lane));
}

#else

static inline V expand(unsigned mask, const float* value) {
  V v{};
  for (int i = 0; i < W; ++i)
    if (mask >> i & 1) v[i] = *value++;
  return v;
}

#endif

// One row times T tokens
template <int T>
static inline void bitmap_row(const BitmapJob& job, int64_t row, float (&out)[T]) {
  const uint16_t* mask = job.mask + row * job.masks;
  const float* value = job.value + job.start[row];
  const ptrdiff_t pitch = job.masks * kBitmapColumns;
  constexpr int STEPS = kBitmapColumns / W;
  constexpr int U = T == 1 ? 2 : 1;  // chains
  V acc[U][T] = {};
  const auto add = [&](int64_t m, V(&sum)[T]) __attribute__((always_inline)) {
    unsigned bits = mask[m];
    ONNXPRUNE_UNROLL for (int s = 0; s < STEPS; ++s) {
      const unsigned part = bits >> (s * W) & ((1u << W) - 1);
      const V w = expand(part, value);
      value += __builtin_popcount(part);
      ONNXPRUNE_UNROLL for (int t = 0; t < T; ++t)
        sum[t] = fma(w, load(job.x + t * pitch + m * kBitmapColumns + s * W), sum[t]);
    }
  };
  int64_t m = 0;
  for (; m + U <= job.masks; m += U)
    ONNXPRUNE_UNROLL for (int u = 0; u < U; ++u) add(m + u, acc[u]);
  for (; m < job.masks; ++m) add(m, acc[0]);
  ONNXPRUNE_UNROLL for (int t = 0; t < T; ++t) out[t] = sum(U == 2 ? acc[0][t] + acc[U - 1][t] : acc[0][t]);
}

template <int T>
static void bitmap_rows(const BitmapJob& job) {
  const Epilogue& e = *job.epilogue;
  for (int64_t row = job.begin; row < job.end; row += W) {
    const int64_t n = job.end - row < W ? job.end - row : W;
    float sums[T][W] = {};
    for (int64_t i = 0; i < n; ++i) {
      float out[T];
      bitmap_row<T>(job, row + i, out);
      ONNXPRUNE_UNROLL for (int t = 0; t < T; ++t) sums[t][i] = out[t];
    }
    for (int t = 0; t < T; ++t) {
      V v = load(sums[t]);
      if (e.bias) v += load_part(e.bias + row, n);
      if (job.residual) v += load_part(job.residual + t * job.ldy + row, n);
      store_part(job.Y + t * job.ldy + row, activate(v, e.activation, e.low, e.high), n);
    }
  }
}

static void multiply_bitmap(const BitmapJob& job) {
  switch (job.tokens) {
    case 1: return bitmap_rows<1>(job);
    case 2: return bitmap_rows<2>(job);
    case 3: return bitmap_rows<3>(job);
    default: return bitmap_rows<4>(job);
  }
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
