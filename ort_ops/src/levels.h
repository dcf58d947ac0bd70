// The instruction sets: for each one table of functions, compiled in level_<name>.cpp with its own flags.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tile.h"

namespace onnxprune {

struct Epilogue;
struct BitmapJob;      // kernels/bitmap_functions.h
struct LaneJob;        // kernels/lanes_functions.h
struct ConvFunctions;  // kernels/conv_functions.h: of the convolution kernels

struct Level {
  const char* name;  // scalar, avx2, avx512, neon
  int lanes;         // floats in a vector
  int single_vectors;  // width of a tile, positions permitting, where most rows have a support of their own
  int group_vectors;   // and where most share it

  // kernels/tile.h; vectors is 1, 2, 3, 4, 6 or 8; T is 64-byte aligned, C need not be
  void (*tile_accumulate)(int vectors, const TileBlock& block, const float* T, float* C, ptrdiff_t ldc,
                          const TileStep& step);
  // T[k][p] = X[p][k] for k < columns, p < tokens; zero up to `vectors` full vectors. ldx in floats.
  void (*pack_tokens)(int vectors, const float* X, ptrdiff_t ldx, int64_t tokens, int64_t columns, float* T);
  // Y[t][r] = act(C[r][t] + bias[r] + residual[t][r]) for t < tokens, r < rows: Y, bias and residual point at the
  // first row (output feature) of the chunk; residual has Y's ldy. Norm is not applied.
  void (*write_tokens)(const float* C, ptrdiff_t ldc, int64_t rows, int64_t tokens, float* Y, ptrdiff_t ldy,
                       const float* bias, const float* residual, const Epilogue& epilogue);
  // Y[r][p] = act(C[r][p] + bias[r] + residual[r][p]), p < positions; C may be Y itself.
  void (*write_rows)(const float* C, ptrdiff_t ldc, int64_t rows, int64_t positions, float* Y, ptrdiff_t ldy,
                     const float* bias, const float* residual, const Epilogue& epilogue);
  // LayerNormalization in place of each of `tokens` rows of n floats, two passes in fp32 as ONNX Runtime.
  void (*layer_norm)(float* Y, int64_t tokens, int64_t n, const Epilogue& epilogue);

  // kernels/lanes_functions.h: C += (or = , where job.first) W x for groups of `rows` = 4, 8 or 16 rows, and their way to
  // Y where job.last. C: [group][token][rows], unused when job.first and job.last.
  void (*multiply_lanes)(int rows, const LaneJob& job, const float* x, float* C);
  // out[t * kLaneColumns + k] = X[t][k]
  void (*pack_columns)(const float* X, ptrdiff_t ldx, int64_t tokens, int64_t columns, float* out);

  // kernels/bitmap_functions.h: rows of a bitmap times a few tokens, to Y
  void (*multiply_bitmap)(const BitmapJob& job);

  const ConvFunctions* conv;
};

// Best level of this machine, or the one that the environment variable ONNXPRUNE_LEVEL names (if it can run).
const Level& level();
// All levels that this machine can run, best first; null beyond the end.
const Level* level_at(size_t index);
// By name, null when it is unknown or cannot run here.
const Level* level_named(const char* name);

// Bytes of the L1 data cache (32 KiB where the system does not say)
int64_t l1_bytes();

}  // namespace onnxprune
