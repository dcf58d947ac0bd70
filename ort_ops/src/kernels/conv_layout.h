// How a plane of the input lies in the padded copy that the direct kernels read.
//
// The copy turns every tap of a convolution, whatever its stride, dilation and padding, into one constant
// offset: output position p reads channel[p + offset(tap)]. Strides are resolved by splitting the padded
// plane into phases (rows and columns modulo the stride), each dense; padding is written as zeros.
// Positions run through the rows of a phase, so that vectors do not end where a short row ends: position
// p = oh * pitch + ow, and the (few) positions with ow >= out_width are computed and dropped.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel.h"

namespace onnxprune {

struct PlaneLayout {
  int64_t rows = 0;         // of one phase
  int64_t pitch = 0;        // floats from one row of a phase to the next
  int64_t phase = 0;        // floats of one phase
  int64_t channel = 0;      // floats from one channel to the next
  int64_t positions = 0;    // (out_height - 1) * pitch + out_width
  std::vector<int> slot_h;  // row residue (input row modulo stride_h) -> which phase holds it, -1 when no tap reads it
  std::vector<int> slot_w;  // the same of columns
  int used_h = 0, used_w = 0;

  explicit PlaneLayout(const ConvShape& shape);

  // Offset of kernel element (i, j) from the position
  int64_t offset(const ConvShape& shape, int64_t i, int64_t j) const;
};

// Same extents per channel, hence the same PlaneLayout and offsets
bool same_plane(const ConvShape& a, const ConvShape& b);

}  // namespace onnxprune
