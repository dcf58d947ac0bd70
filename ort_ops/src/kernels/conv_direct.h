// Sparse convolution of any kernel, stride, dilation, padding and group on a padded copy of the input.
//
// Each entry of the weight reads a run of consecutive input positions at one constant offset, so nothing
// like im2col is written: the copy is about as large as the input. Best where rows share their support (a
// loaded input vector serves R rows) and where the kernel is larger than 1 x 1.
#pragma once

#include <memory>

#include "kernel.h"

namespace onnxprune {

struct Level;

// weight: rows = out_channels, cols = channels / group * kernel_h * kernel_w.
std::unique_ptr<ConvKernel> make_conv_direct(const Csr& weight, const ConvShape& shape, const Level& level);

}  // namespace onnxprune
