// What the convolution kernels need from an instruction set: one function a step, called once a task.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace onnxprune {

// One plane of the input into its padded, phase-split copy (see PlaneLayout)
struct CopyJob {
  int64_t height, width, pad_top, pad_left, stride_h, stride_w;
  int64_t rows, pitch, phase, channel;
  const int *slot_h, *slot_w;
  int used_w;
  int64_t used_phases;
};

// A run of output values that lie side by side in Y
struct Segment {
  int64_t from;   // in the row of accumulators
  int64_t to;     // in the plane of Y
  int64_t count;
};

// What happens to a finished row of accumulators
struct Finish {
  const float* bias;      // by output row, null = 0
  const float* residual;  // by output row and position, as Y; null = none
  float* Y;
  int64_t plane;          // floats from one row of Y (and residual) to the next
  Activation activation;
  float low, high;
  const Segment* segments;
  int64_t segment_count;
};

// Sparse rows in groups of equal support; the entries of a group are values[e * size + r]
struct RowGroup {
  uint32_t size;        // rows: 1, 2, 4, 8
  uint32_t slot;        // of the first row in `rows` and in the accumulators
  uint32_t entry;       // of the group's first offset
  uint32_t value;       // of the group's first value
};

// Positions [0, vectors * W) from X, the rows of groups [begin, end)
struct DirectJob {
  const float* X;
  const int32_t* offset;       // by entry: from a position to its input value
  const float* value;
  const RowGroup* group;
  const uint32_t* row;         // output row of each slot
  int64_t begin, end;          // groups
  const uint32_t* block;       // [blocks + 1][groups]: first entry of a group in a block of input channels
  int64_t blocks, groups;
  int64_t block_step;          // floats from the first channel of a block to that of the next
  int64_t vectors;             // at most kDirectVectors
  float* C;                    // scratch, [slots of begin..end][vectors * W]
};

constexpr int kDirectVectors = 8;

// Some output rows of one depthwise plane
struct DepthwiseJob {
  const float* X;              // the input plane; tapwise: its padded copy, at the first of the rows
  const float* zeros;          // as wide as a row of X
  int64_t in_height, in_width, pad_top, pad_left;
  const float* weight;         // [kernel_h][kernel_w]
  int64_t kernel_h, kernel_w, stride;
  bool tapwise;                // any kernel, stride and dilation, from a padded copy (see PlaneLayout)
  const int64_t* offset;       // then: [kernel_h][kernel_w]
  int64_t pitch;
  int64_t first_row, rows, width;  // of the output
  float* Y;                    // at the first of the rows
  float bias, low, high;       // y = min(max(sum + bias, low), high)
  bool finish;                 // then out = activation(y + residual)
  float* out;                  // may be Y, or the residual
  const float* residual;       // as out, or null
  Activation activation;
  float last_low, last_high;
};

struct ConvFunctions {
  int group_rows;              // largest RowGroup::size worth having
  void (*copy_plane)(const CopyJob& job, const float* x, float* out);
  // T[k][p] = X[offset[k] + p] for p < count, 0 for the rest of [0, P); P a multiple of the lanes
  void (*pack_tile)(const float* X, const int64_t* offset, int64_t columns, int64_t count, int64_t P, float* T);
  // Rows rows[0] .. rows[count - 1] of C, each at C + row * ldc, to their places in Y (which may be C)
  void (*finish_rows)(const float* C, int64_t ldc, const uint32_t* rows, int64_t count, const Finish& finish);
  void (*direct)(const DirectJob& job, const Finish& finish);
  void (*depthwise)(const DepthwiseJob& job);
};

}  // namespace onnxprune
