// The kernels that vectorise over output features. Included by level_*.cpp only.
//
// T tokens x G vectors of outputs are accumulated in registers; per entry G weight vectors are loaded and T inputs
// broadcast. Nothing is transposed.
#pragma once

#include "lanes_functions.h"
#include "tokens_core.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

// A group of L rows as G vectors, narrower than the level's where the group is
template <int L> struct Narrow;
template <> struct Narrow<4> { using type = V4; };
template <> struct Narrow<8> { using type = V8; };
template <> struct Narrow<16> { using type = V16; };
template <int L> struct Lanes {
  static constexpr int width = L < W ? L : W;
  static constexpr int G = L / width;
  using Vec = typename Narrow<width>::type;
};

template <typename Vec>
static inline Vec load_as(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Tokens of a register tile: T * G accumulators + G weights + 1 input
constexpr int most_tokens(int G) {
  return kRegisters == 32 ? (G == 1 ? 16 : G == 2 ? 8 : 4) : G == 1 ? 12 : G == 2 ? 6 : 2;
}

// U chains of accumulators where T * G alone cannot hide the latency of an fma
template <int T, int L, int U, typename Vec = typename Lanes<L>::Vec, int G = Lanes<L>::G>
static inline void lane_entries(Vec (&acc)[T][G], const float* x, ptrdiff_t pitch, const uint16_t* index,
                                const float* value, int count) {
  constexpr int width = L / G;
  Vec part[U][T][G] = {};
  ONNXPRUNE_UNROLL for (int t = 0; t < T; ++t)
    ONNXPRUNE_UNROLL for (int g = 0; g < G; ++g) part[0][t][g] = acc[t][g];
  const auto entry = [&](Vec (&sum)[T][G], ptrdiff_t i) __attribute__((always_inline)) {
    const float* in = x + index[i];
    Vec w[G];
    ONNXPRUNE_UNROLL for (int g = 0; g < G; ++g) w[g] = load_as<Vec>(value + i * L + g * width);
    ONNXPRUNE_UNROLL for (int t = 0; t < T; ++t) {
      const Vec b = in[t * pitch] - Vec{};
      ONNXPRUNE_UNROLL for (int g = 0; g < G; ++g) sum[t][g] += w[g] * b;
    }
  };
  int i = 0;
  for (; i + U <= count; i += U)
    ONNXPRUNE_UNROLL for (int u = 0; u < U; ++u) entry(part[u], i + u);
  if (U > 1)
    for (; i < count; ++i) entry(part[0], i);
  ONNXPRUNE_UNROLL for (int t = 0; t < T; ++t)
    ONNXPRUNE_UNROLL for (int g = 0; g < G; ++g) {
      Vec v = part[0][t][g];
      ONNXPRUNE_UNROLL for (int u = 1; u < U; ++u) v += part[u][t][g];
      acc[t][g] = v;
    }
}

// A finished token to rows that are no neighbours, or fill no vector
static void write_apart(const float* sums, const LaneJob& job, const LaneGroup& group, int64_t token) {
  const uint32_t* row = job.row + group.first;
  const Epilogue& e = *job.epilogue;
  float* y = job.Y + token * job.ldy;
  const float* residual = job.residual ? job.residual + token * job.ldy : nullptr;
  for (int64_t i = 0; i < group.size; i += W) {
    const int64_t n = group.size - i < W ? group.size - i : W;
    float part[W] = {};
    for (int64_t k = 0; k < n; ++k)
      part[k] = sums[i + k] + (e.bias ? e.bias[row[i + k]] : 0.f) + (residual ? residual[row[i + k]] : 0.f);
    store(part, activate(load(part), e.activation, e.low, e.high));
    for (int64_t k = 0; k < n; ++k) y[row[i + k]] = part[k];
  }
}

// Finished tokens of a group, [token][lanes], to Y
static void write_lanes(const float* sums, int tokens, int lanes, const LaneJob& job, const LaneGroup& group, int64_t token) {
  if (!group.neighbours || group.size % W) {
    for (int t = 0; t < tokens; ++t) write_apart(sums + t * lanes, job, group, token + t);
    return;
  }
  const int64_t row = job.row[group.first];
  with_activation(job.epilogue->activation, [&](auto a) {
    for (int t = 0; t < tokens; ++t) {
      const ptrdiff_t y = (token + t) * job.ldy + row;
      for (int i = 0; i < group.size; i += W)
        write_vector<decltype(a)::value>(load(sums + t * lanes + i), i, W, job.Y + y,
                                         job.epilogue->bias ? job.epilogue->bias + row : nullptr,
                                         job.residual ? job.residual + y : nullptr, *job.epilogue);
    }
  });
}

// T tokens of a group in one K-block. C: the sums of the earlier blocks, [token][lanes]
template <int T, int L, int PITCH>
static void lane_tile(const LaneJob& job, const LaneGroup& group, const float* x, const uint16_t* index,
                      const float* value, int count, float* C, int64_t token) {
  using Vec = typename Lanes<L>::Vec;
  constexpr int G = Lanes<L>::G, width = L / G;
  Vec acc[T][G] = {};
  if (!job.first)
    ONNXPRUNE_UNROLL for (int t = 0; t < T; ++t)
      ONNXPRUNE_UNROLL for (int g = 0; g < G; ++g) acc[t][g] = load_as<Vec>(C + (token + t) * L + g * width);
  constexpr int U = T * G >= 8 ? 1 : T * G >= 4 ? 2 : T * G >= 2 ? 4 : 8;
  const ptrdiff_t pitch = PITCH ? PITCH : job.pitch;
  lane_entries<T, L, U>(acc, x + token * pitch, pitch, index, value, count);
  float sums[T][L];
  float* out = job.last ? sums[0] : C + token * L;
  std::memcpy(out, acc, sizeof acc);
  if (job.last) write_lanes(sums[0], T, L, job, group, token);
}

template <int L, int PITCH>
static void lanes_as(const LaneJob& job, const float* x, float* C) {
  constexpr int MOST = most_tokens(Lanes<L>::G);
  const uint16_t* index = job.block.index;
  const float* value = job.block.value;
  for (int64_t g = 0; g < job.groups; ++g) {
    const int count = job.block.count[g];
    float* c = C + g * job.tokens * L;
    int64_t t = 0;
    // A rest of two tokens would be slow: four and four instead of six and two
    for (; t + MOST <= job.tokens && (MOST != 6 || t + 8 != job.tokens); t += MOST)
      lane_tile<MOST, L, PITCH>(job, job.group[g], x, index, value, count, c, t);
    if constexpr (MOST > 8)
      for (; t + 8 <= job.tokens; t += 8) lane_tile<8, L, PITCH>(job, job.group[g], x, index, value, count, c, t);
    if constexpr (MOST > 4)
      for (; t + 4 <= job.tokens; t += 4) lane_tile<4, L, PITCH>(job, job.group[g], x, index, value, count, c, t);
    if constexpr (MOST > 2)
      for (; t + 2 <= job.tokens; t += 2) lane_tile<2, L, PITCH>(job, job.group[g], x, index, value, count, c, t);
    for (; t < job.tokens; ++t) lane_tile<1, L, PITCH>(job, job.group[g], x, index, value, count, c, t);
    index += count;
    value += static_cast<ptrdiff_t>(count) * L;
  }
}

template <int L>
static void lanes_width(const LaneJob& job, const float* x, float* C) {
  // A constant pitch makes every input of an entry an immediate offset
  if (job.pitch == kLaneColumns) lanes_as<L, kLaneColumns>(job, x, C);
  else lanes_as<L, 0>(job, x, C);
}

static void multiply_lanes(int rows, const LaneJob& job, const float* x, float* C) {
  if (rows == 4) return lanes_width<4>(job, x, C);
  if (rows == 8) return lanes_width<8>(job, x, C);
  return lanes_width<16>(job, x, C);
}

// The columns of a K-block, token after token at a constant pitch
static void pack_columns(const float* X, ptrdiff_t ldx, int64_t tokens, int64_t columns, float* out) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float* x = X + t * ldx;
    float* o = out + t * kLaneColumns;
    int64_t k = 0;
    for (; k + W <= columns; k += W) store(o + k, load(x + k));
    if (k < columns) store_part(o + k, load_part(x + k, columns - k), columns - k);
  }
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
