// tile_accumulate of tile.h. Included by level_*.cpp only.
//
// A group of rows keeps its accumulators in registers over a whole K-block: R rows x S vectors. Wider tiles
// are walked in strips of S vectors, so that accumulators, inputs and a broadcast weight fit in the registers.
#pragma once

#include "../simd.h"
#include "tile.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

// Strip of a tile of `vectors` for R rows: R * S accumulators + S inputs + 1 weight
constexpr int strip(int vectors, int R) {
  return vectors * (R + 1) + 1 <= kRegisters ? vectors
         : vectors % 4 == 0 && 4 * (R + 1) + 1 <= kRegisters ? 4
         : vectors % 3 == 0 && 3 * (R + 1) + 1 <= kRegisters ? 3
         : vectors % 2 == 0 ? 2 : 1;
}
// Entries taken at once into accumulators of their own: 8 chains hide the latency of an fma (4 cycles, 2 ports)
constexpr int chains(int accumulators) { return accumulators >= 8 ? 1 : accumulators >= 4 ? 2 : 4; }

// C: of the strip, which begins `at` floats behind the tile
template <int R, int S>
static inline void open_rows(V (&acc)[R][S], const uint16_t* row, const float* C, ptrdiff_t ldc, const TileStep& step,
                             int at) {
  if (!step.first) {
    ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r)
      ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) acc[r][s] = load(C + row[r] * ldc + s * W);
  } else {
    ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r)
      ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) acc[r][s] = step.bias ? splat(step.bias[row[r]]) : V{};
    if (!step.residual) return;
    ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r)
      ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) acc[r][s] += load(step.residual + row[r] * ldc + at + s * W);
  }
}

template <int R, int S>
static inline void close_rows(V (&acc)[R][S], const uint16_t* row, float* C, ptrdiff_t ldc, const TileStep& step) {
  if (step.clamp) {
    ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r)
      ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) acc[r][s] = min(splat(step.high), max(splat(step.low), acc[r][s]));
  }
  // Last row first: an odd single row is coupled with itself, and its first sum is the one that counts
  ONNXPRUNE_UNROLL for (int r = R - 1; r >= 0; --r)
    ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) store(C + row[r] * ldc + s * W, acc[r][s]);
}

template <int R, int S, int U>
static inline void sum_chains(V (&acc)[U][R][S]) {
  ONNXPRUNE_UNROLL for (int u = 1; u < U; ++u)
    ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r)
      ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) acc[0][r][s] += acc[u][r][s];
}

// An entry of R rows with a common column
template <int R, int S, int VECTORS>
static inline void common_entry(V (&acc)[R][S], const char* T, size_t index, const float* value) {
  const float* x = reinterpret_cast<const float*>(T + index * VECTORS);
  V in[S];
  ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) in[s] = load(x + s * W);
  ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r) {
    const V w = splat(value[r]);
    ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) acc[r][s] = fma(w, in[s], acc[r][s]);
  }
}

template <int R, int S, int VECTORS, int U>
static inline void common_entries(V (&acc)[U][R][S], const char* T, const uint16_t* index, const float* value, int count) {
  int i = 0;
  for (; i + U <= count; i += U)
    ONNXPRUNE_UNROLL for (int u = 0; u < U; ++u)
      common_entry<R, S, VECTORS>(acc[u], T, index[i + u], value + (i + u) * R);
  if (U > 1)
    for (; i < count; ++i) common_entry<R, S, VECTORS>(acc[0], T, index[i], value + i * R);
}

// An entry of two rows, each with its own column
template <int S, int VECTORS>
static inline void own_entry(V (&acc)[2][S], const char* T, size_t index0, size_t index1, V w0, V w1) {
  const float* x0 = reinterpret_cast<const float*>(T + index0 * VECTORS);
  const float* x1 = reinterpret_cast<const float*>(T + index1 * VECTORS);
  ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) acc[0][s] = fma(w0, load(x0 + s * W), acc[0][s]);
  ONNXPRUNE_UNROLL for (int s = 0; s < S; ++s) acc[1][s] = fma(w1, load(x1 + s * W), acc[1][s]);
}

// Own entries are bound by loads (S + 1 for S fmas). With 256 bits one load brings the four weights of two entries, and
// shuffles, which run beside the fmas, spread them: 58 -> 70 % of peak with two loads a cycle. With 512 bits the
// shuffles would take the port of the second fma.
template <int S, int VECTORS>
static inline void two_own_entries(V (&a)[2][S], V (&b)[2][S], const char* T, uint64_t index, const float* value) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const V four = (V)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(value));
  const V w0 = ONNXPRUNE_SHUFFLE(four, four, 0, 0, 0, 0), w1 = ONNXPRUNE_SHUFFLE(four, four, 1, 1, 1, 1);
  const V w2 = ONNXPRUNE_SHUFFLE(four, four, 2, 2, 2, 2), w3 = ONNXPRUNE_SHUFFLE(four, four, 3, 3, 3, 3);
#else
  const V w0 = splat(value[0]), w1 = splat(value[1]), w2 = splat(value[2]), w3 = splat(value[3]);
#endif
  own_entry<S, VECTORS>(a, T, index & 0xffff, index >> 16 & 0xffff, w0, w1);
  own_entry<S, VECTORS>(b, T, index >> 32 & 0xffff, index >> 48, w2, w3);
}

template <int S, int VECTORS, int U>
static inline void own_entries(V (&acc)[U][2][S], const char* T, const uint16_t* index, const float* value, int count) {
  constexpr int STEP = U > 2 ? U : 2;
  int i = 0;
  for (; i + STEP <= count; i += STEP)
    ONNXPRUNE_UNROLL for (int u = 0; u < STEP; u += 2) {
      uint64_t two;
      std::memcpy(&two, index + 2 * (i + u), sizeof two);
      two_own_entries<S, VECTORS>(acc[u % U], acc[(u + 1) % U], T, two, value + 2 * (i + u));
    }
  for (; i < count; ++i)
    own_entry<S, VECTORS>(acc[0], T, index[2 * i], index[2 * i + 1], splat(value[2 * i]), splat(value[2 * i + 1]));
}

template <int S, int VECTORS>
static void quad(const char* T, const uint16_t* meta, const uint16_t* index, const float* value, float* C, ptrdiff_t ldc,
                 const TileStep& step, int at) {
  constexpr int U = chains(4 * S);
  V acc[U][4][S] = {};
  open_rows<4, S>(acc[0], meta + 1, C, ldc, step, at);
  common_entries<4, S, VECTORS, U>(acc, T, index, value, meta[0]);
  sum_chains<4, S, U>(acc);
  close_rows<4, S>(acc[0], meta + 1, C, ldc, step);
}

template <int S, int VECTORS>
static void couple(const char* T, const uint16_t* meta, const uint16_t* index, const float* value, float* C, ptrdiff_t ldc,
                   const TileStep& step, int at) {
  constexpr int U = chains(2 * S);
  V acc[U][2][S] = {};
  const int common = meta[0], own = meta[1];
  open_rows<2, S>(acc[0], meta + 2, C, ldc, step, at);
  common_entries<2, S, VECTORS, U>(acc, T, index, value, common);
  own_entries<S, VECTORS, U>(acc, T, index + common, value + 2 * common, own);
  sum_chains<2, S, U>(acc);
  close_rows<2, S>(acc[0], meta + 2, C, ldc, step);
}

// Rows of an output lie far apart, and what comes of them is not guessed by the processor
constexpr int kAhead = 4;        // groups: about the latency of a far cache
constexpr ptrdiff_t kFar = 512;  // floats between rows of C; scratch is nearer

template <int VECTORS>
static inline void fetch_rows(const uint16_t* row, int rows, float* C, ptrdiff_t ldc, const TileStep& step) {
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < VECTORS; v += 64 / static_cast<int>(sizeof(V)))
      if (step.residual) __builtin_prefetch(step.residual + row[r] * ldc + v * W);
      else __builtin_prefetch(C + row[r] * ldc + v * W, 1);
}

template <int VECTORS>
static void tile_accumulate_width(const TileBlock& block, const float* tile, float* C, ptrdiff_t ldc,
                                  const TileStep& step) {
  const char* T = reinterpret_cast<const char*>(tile);
  const uint16_t* meta = block.meta;
  const uint16_t* index = block.index;
  const float* value = block.value;
  constexpr size_t kVector = W * sizeof(float);
  const bool far = ldc >= kFar;
  for (uint32_t g = 0; g < block.quads; ++g) {
    constexpr int S = strip(VECTORS, 4);
    if (far && g + kAhead < block.quads) fetch_rows<VECTORS>(meta + 5 * kAhead + 1, 4, C, ldc, step);
    for (int s = 0; s < VECTORS; s += S) quad<S, VECTORS>(T + s * kVector, meta, index, value, C + s * W, ldc, step, s * W);
    index += meta[0];
    value += 4 * meta[0];
    meta += 5;
  }
  for (uint32_t g = 0; g < block.couples; ++g) {
    constexpr int S = strip(VECTORS, 2);
    if (far && g + kAhead < block.couples) fetch_rows<VECTORS>(meta + 4 * kAhead + 2, 2, C, ldc, step);
    for (int s = 0; s < VECTORS; s += S) couple<S, VECTORS>(T + s * kVector, meta, index, value, C + s * W, ldc, step, s * W);
    index += meta[0] + 2 * meta[1];
    value += 2 * (meta[0] + meta[1]);
    meta += 4;
  }
}

static void tile_accumulate(int vectors, const TileBlock& block, const float* T, float* C, ptrdiff_t ldc,
                            const TileStep& step) {
  switch (vectors) {
    case 1: return tile_accumulate_width<1>(block, T, C, ldc, step);
    case 2: return tile_accumulate_width<2>(block, T, C, ldc, step);
    case 3: return tile_accumulate_width<3>(block, T, C, ldc, step);
    case 4: return tile_accumulate_width<4>(block, T, C, ldc, step);
    case 6: return tile_accumulate_width<6>(block, T, C, ldc, step);
    case 12: return tile_accumulate_width<12>(block, T, C, ldc, step);
    case 16: return tile_accumulate_width<16>(block, T, C, ldc, step);
    case 24: return tile_accumulate_width<24>(block, T, C, ldc, step);
    case 32: return tile_accumulate_width<32>(block, T, C, ldc, step);
    default: return tile_accumulate_width<8>(block, T, C, ldc, step);
  }
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
