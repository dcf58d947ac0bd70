// Vectors of floats for the instruction set that the including file is compiled for.
//
// Include only from level_*.cpp. Everything a level file defines is static, inside its own namespace, and it
// must not instantiate templates of the standard library: the linker keeps one copy of such a function, and
// may keep the one compiled with AVX-512 for everybody.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if !defined(ONNXPRUNE_LEVEL)
#error "define ONNXPRUNE_LEVEL (scalar, avx2, avx512, neon) first"
#endif

#define ONNXPRUNE_UNROLL _Pragma("GCC unroll 16")

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

#if defined(__AVX512F__)
constexpr int W = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int W = 4;
constexpr int kRegisters = 32;
#else
constexpr int W = 4;
constexpr int kRegisters = 16;
#endif

typedef float V __attribute__((vector_size(W * sizeof(float))));
typedef int32_t I __attribute__((vector_size(W * sizeof(int32_t))));
typedef float V4 __attribute__((vector_size(4 * sizeof(float))));
typedef float V8 __attribute__((vector_size(8 * sizeof(float))));
typedef float V16 __attribute__((vector_size(16 * sizeof(float))));

static inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }
static inline V splat(float x) { return x - V{}; }
// Contracted to one instruction by -ffp-contract=fast where the set has it
static inline V fma(V a, V b, V c) { return a * b + c; }
// A NaN in the second argument is kept, as ONNX Runtime's Relu and Clip keep it
static inline V min(V bound, V x) { return bound < x ? bound : x; }
static inline V max(V bound, V x) { return bound > x ? bound : x; }

// The first n floats (0 <= n <= W), zero behind them; reads and writes no further
static inline V load_part(const float* p, int64_t n) {
  V v{};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}
static inline void store_part(float* p, V v, int64_t n) { std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float)); }


// Lanes of two vectors of one type, by number
#if defined(__clang__) || __GNUC__ >= 12
#define ONNXPRUNE_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ONNXPRUNE_PICK(a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
#endif

static inline float sum(V v) {
#if defined(__AVX512F__)
  // The unmasked forms make GCC 12 warn of its own header
  const __m256 eight = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 0),
                                     _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 1));
#elif defined(__AVX2__)
  const __m256 eight = (__m256)v;
#endif
#if defined(__AVX2__)
  const V4 four = (V4)_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
  const V4 four = v;
#endif
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// out[c] lane r = p[r * ld + c], c < 4, r < W: the transpose of W rows of four floats. The rows are gathered as
// quarters of vectors by loads (row r + 4 q in quarter q), so that only the 4 x 4 transposes inside the quarters
// take shuffles.
#if defined(__AVX2__)
static inline __m256 two_quarters(const float* p, const float* q) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(q), 1);
}
#endif
#if defined(__AVX512F__)
static inline V quarters(const float* p, ptrdiff_t ld) {
  const __m256 low = two_quarters(p, p + 4 * ld), high = two_quarters(p + 8 * ld, p + 12 * ld);
  return (V)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
#define ONNXPRUNE_SHUFFLE(a, b, i, j, k, l)                                                                      \
  ONNXPRUNE_PICK(a, b, i, j, k, l, i + 4, j + 4, k + 4, l + 4, i + 8, j + 8, k + 8, l + 8, i + 12, j + 12, k + 12, \
                 l + 12)
#elif defined(__AVX2__)
static inline V quarters(const float* p, ptrdiff_t ld) { return (V)two_quarters(p, p + 4 * ld); }
#define ONNXPRUNE_SHUFFLE(a, b, i, j, k, l) ONNXPRUNE_PICK(a, b, i, j, k, l, i + 4, j + 4, k + 4, l + 4)
#else
static inline V quarters(const float* p, ptrdiff_t) { return load(p); }
#define ONNXPRUNE_SHUFFLE(a, b, i, j, k, l) ONNXPRUNE_PICK(a, b, i, j, k, l)
#endif

static inline void load_transposed(const float* p, ptrdiff_t ld, V (&out)[4]) {
  const V a = quarters(p, ld), b = quarters(p + ld, ld), c = quarters(p + 2 * ld, ld), d = quarters(p + 3 * ld, ld);
  // a0 b0 a1 b1, ... then a0 b0 c0 d0; W is the distance from a lane of the first to the same of the second
  const V ab = ONNXPRUNE_SHUFFLE(a, b, 0, W, 1, W + 1), ab_high = ONNXPRUNE_SHUFFLE(a, b, 2, W + 2, 3, W + 3);
  const V cd = ONNXPRUNE_SHUFFLE(c, d, 0, W, 1, W + 1), cd_high = ONNXPRUNE_SHUFFLE(c, d, 2, W + 2, 3, W + 3);
  out[0] = ONNXPRUNE_SHUFFLE(ab, cd, 0, 1, W, W + 1);
  out[1] = ONNXPRUNE_SHUFFLE(ab, cd, 2, 3, W + 2, W + 3);
  out[2] = ONNXPRUNE_SHUFFLE(ab_high, cd_high, 0, 1, W, W + 1);
  out[3] = ONNXPRUNE_SHUFFLE(ab_high, cd_high, 2, 3, W + 2, W + 3);
}

// The same for fewer rows and columns: nothing is read beyond them, zeros stand for them
static inline void load_transposed_part(const float* p, ptrdiff_t ld, int64_t rows, int64_t columns, V (&out)[4]) {
  float copy[W * 4] = {};
  for (int64_t r = 0; r < rows && r < W; ++r)
    std::memcpy(copy + 4 * r, p + r * ld, static_cast<size_t>(columns < 4 ? columns : 4) * sizeof(float));
  load_transposed(copy, 4, out);
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
