// Dense depthwise convolution (one input channel a group), NCHW.
#pragma once

#include <memory>

#include "kernel.h"

namespace onnxprune {

struct Level;

// Null when a group has more than one input channel. Zeros of the weight are multiplied like the rest.
std::unique_ptr<ConvKernel> make_depthwise(const Csr& weight, const ConvShape& shape, const Level& level);

}  // namespace onnxprune
