// Parts of vectors, and what is done to finished accumulators. Include only from level_*.cpp.
#pragma once

#include "../epilogue.h"
#include "../simd.h"
#include "conv_functions.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

#if defined(__AVX512F__)
static inline V load_masked(const float* p, int64_t n) {
  return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
static inline void store_masked(float* p, V v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
}
#elif defined(__AVX2__)
static inline __m256i part_mask(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline V load_masked(const float* p, int64_t n) { return (V)_mm256_maskload_ps(p, part_mask(n)); }
static inline void store_masked(float* p, V v, int64_t n) { _mm256_maskstore_ps(p, part_mask(n), (__m256)v); }
#else
static inline V load_masked(const float* p, int64_t n) {
  V v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
static inline void store_masked(float* p, V v, int64_t n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif

// Lanes from .. to - 1, bounds beyond the vector allowed. What is loaded is zero elsewhere, and memory elsewhere is
// not touched, wherever it is.
#if defined(__AVX512F__)
typedef __mmask16 LaneMask;
static inline LaneMask lanes_between(int64_t from, int64_t to) {
  const int64_t a = from < 0 ? 0 : from > W ? W : from, b = to < a ? a : to > W ? W : to;
  return static_cast<LaneMask>((1u << b) - (1u << a));
}
static inline V load_lanes(const float* p, LaneMask lanes) { return (V)_mm512_maskz_loadu_ps(lanes, p); }
static inline void store_lanes(float* p, V v, LaneMask lanes) { _mm512_mask_storeu_ps(p, lanes, (__m512)v); }
#elif defined(__AVX2__)
typedef __m256i LaneMask;
static inline LaneMask lanes_between(int64_t from, int64_t to) {
  const int64_t a = from < 0 ? 0 : from > W ? W : from, b = to < a ? a : to > W ? W : to;
  return _mm256_andnot_si256(part_mask(a), part_mask(b));
}
static inline V load_lanes(const float* p, LaneMask lanes) { return (V)_mm256_maskload_ps(p, lanes); }
static inline void store_lanes(float* p, V v, LaneMask lanes) { _mm256_maskstore_ps(p, lanes, (__m256)v); }
#else
struct LaneMask {
  int from, to;
};
static inline LaneMask lanes_between(int64_t from, int64_t to) {
  const int64_t a = from < 0 ? 0 : from > W ? W : from, b = to < a ? a : to > W ? W : to;
  return {static_cast<int>(a), static_cast<int>(b)};
}
static inline V load_lanes(const float* p, LaneMask lanes) {
  V v = {};
  for (int i = lanes.from; i < lanes.to; ++i) v[i] = p[i];
  return v;
}
static inline void store_lanes(float* p, V v, LaneMask lanes) {
  for (int i = lanes.from; i < lanes.to; ++i) p[i] = v[i];
}
#endif

// min(max(v, low), high); relu and none are clips too, and a NaN stays one
struct Clamp {
  V low, high;
  V operator()(V v) const { return min(high, max(low, v)); }
};

struct Curve {
  Activation activation;
  V operator()(V v) const { return activate(v, activation); }
};

static inline bool is_clamp(Activation a) {
  return a == Activation::none || a == Activation::relu || a == Activation::clip;
}

static inline Clamp clamp_of(const Finish& f) {
  if (f.activation == Activation::relu) return {splat(0.f), splat(__builtin_inff())};
  if (f.activation == Activation::clip) return {splat(f.low), splat(f.high)};
  return {splat(-__builtin_inff()), splat(__builtin_inff())};
}

// One row of accumulators to its places in Y
template <class Act>
static inline void finish_row(const float* C, int64_t row, const Finish& f, const Act& act) {
  const V bias = splat(f.bias ? f.bias[row] : 0.f);
  for (int64_t s = 0; s < f.segment_count; ++s) {
    const Segment& segment = f.segments[s];
    const float* from = C + segment.from;
    float* to = f.Y + row * f.plane + segment.to;
    const float* residual = f.residual ? f.residual + row * f.plane + segment.to : nullptr;
    int64_t i = 0;
    for (; i + W <= segment.count; i += W) {
      V v = load(from + i) + bias;
      if (residual) v += load(residual + i);
      store(to + i, act(v));
    }
    if (const int64_t rest = segment.count - i; rest > 0) {
      V v = load_masked(from + i, rest) + bias;
      if (residual) v += load_masked(residual + i, rest);
      store_masked(to + i, act(v), rest);
    }
  }
}

static void finish_rows(const float* C, int64_t ldc, const uint32_t* rows, int64_t count, const Finish& f) {
  if (is_clamp(f.activation)) {
    const Clamp act = clamp_of(f);
    for (int64_t i = 0; i < count; ++i) finish_row(C + rows[i] * ldc, rows[i], f, act);
  } else {
    for (int64_t i = 0; i < count; ++i) finish_row(C + rows[i] * ldc, rows[i], f, Curve{f.activation});
  }
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
