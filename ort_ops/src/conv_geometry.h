// Attributes and sizes of a convolution, checked so that nothing computed from them overflows.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernel.h"

namespace onnxprune {

struct ConvAttributes {  // as the node has them; empty = default
  int64_t group = 1;
  std::vector<int64_t> kernel, strides, dilations, pads;
};

// From the shape of the dense weight (out_channels, channels / group, [kernel_h,] kernel_w).
// batch, height, width and what follows from them stay 0. Throws Refusal.
ConvShape conv_shape(const std::vector<int64_t>& weight, const ConvAttributes& attributes);

// Sets out_height and out_width from height and width; false when the padded input is smaller than the kernel.
bool set_output_size(ConvShape& shape);

}  // namespace onnxprune
