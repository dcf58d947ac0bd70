// Sparse convolution on a padded copy: each entry of the weight is a shifted run of input values times R
// weights. Include only from level_*.cpp.
#pragma once

#include "conv_simd.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

// C[R][N * W] (+)= weights of one row group times N vectors of positions
template <int R, int N>
static inline void direct_tile(const float* X, const int32_t* offset, const float* value, int64_t entries, float* C,
                               int64_t ldc, bool first) {
  V acc[R][N];
  if (first) {
    ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r)
      ONNXPRUNE_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = V{};
  } else {
    ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r)
      ONNXPRUNE_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = load(C + r * ldc + n * W);
  }
  for (int64_t e = 0; e < entries; ++e) {
    const float* x = X + offset[e];
    V v[N];
    ONNXPRUNE_UNROLL for (int n = 0; n < N; ++n) v[n] = load(x + n * W);
    ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r) {
      const V w = splat(value[e * R + r]);
      ONNXPRUNE_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = fma(w, v[n], acc[r][n]);
    }
  }
  ONNXPRUNE_UNROLL for (int r = 0; r < R; ++r)
    ONNXPRUNE_UNROLL for (int n = 0; n < N; ++n) store(C + r * ldc + n * W, acc[r][n]);
}

// Vectors that R rows can hold in registers beside the inputs and a weight
template <int R>
constexpr int direct_width() {
  constexpr int accumulators = W == 16 ? 24 : 12;
  return accumulators / R < kDirectVectors ? accumulators / R : kDirectVectors;
}

template <int R, int N>
static inline void direct_tile_of(int n, const float* X, const int32_t* offset, const float* value, int64_t entries,
                                  float* C, int64_t ldc, bool first) {
  if (n == N) {
    direct_tile<R, N>(X, offset, value, entries, C, ldc, first);
  } else if constexpr (N > 1) {
    direct_tile_of<R, N - 1>(n, X, offset, value, entries, C, ldc, first);
  }
}

// Vectors [0, vectors), in equal shares no wider than the registers allow
template <int R>
static void direct_group(const float* X, const int32_t* offset, const float* value, int64_t entries, float* C,
                         int64_t vectors, bool first) {
  constexpr int width = direct_width<R>();
  int64_t shares = (vectors + width - 1) / width;
  const int64_t ldc = vectors * W;
  for (int64_t at = 0; at < vectors; --shares) {
    const int64_t n = (vectors - at + shares - 1) / shares;
    direct_tile_of<R, width>(static_cast<int>(n), X + at * W, offset, value, entries, C + at * W, ldc, first);
    at += n;
  }
}

static void direct_accumulate(const DirectJob& job, const RowGroup& group, int64_t q, int64_t b, float* C) {
  const float* X = job.X + b * job.block_step;
  const uint32_t from = job.block[b * job.groups + q], to = job.block[(b + 1) * job.groups + q];
  const int32_t* offset = job.offset + from;
  const float* value = job.value + group.value + int64_t{from - group.entry} * group.size;
  const int64_t entries = to - from;
  const bool first = b == 0;
  if (!first && entries == 0) return;
  switch (group.size) {
    case 1: return direct_group<1>(X, offset, value, entries, C, job.vectors, first);
    case 2: return direct_group<2>(X, offset, value, entries, C, job.vectors, first);
    case 4: return direct_group<4>(X, offset, value, entries, C, job.vectors, first);
    default: return direct_group<8>(X, offset, value, entries, C, job.vectors, first);
  }
}

template <class Act>
static void direct_run(const DirectJob& job, const Finish& finish, const Act& act) {
  const int64_t ldc = job.vectors * W;
  const uint32_t slot0 = job.group[job.begin].slot;
  for (int64_t b = 0; b < job.blocks; ++b) {
    for (int64_t q = job.begin; q < job.end; ++q) {
      const RowGroup& group = job.group[q];
      float* C = job.C + (group.slot - slot0) * ldc;
      direct_accumulate(job, group, q, b, C);
      if (b + 1 < job.blocks) continue;
      for (uint32_t r = 0; r < group.size; ++r) finish_row(C + r * ldc, job.row[group.slot + r], finish, act);
    }
  }
}

static void direct(const DirectJob& job, const Finish& finish) {
  if (is_clamp(finish.activation)) {
    direct_run(job, finish, clamp_of(finish));
  } else {
    direct_run(job, finish, Curve{finish.activation});
  }
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
