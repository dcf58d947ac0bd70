// Which kernel runs a weight: the only thing that the ops know of kernels.
#pragma once

#include <memory>

#include "kernels/kernel.h"

namespace onnxprune {

// tokens: rows of X where the graph says how many, else 0.
std::unique_ptr<MatMulKernel> make_matmul(Csr&& weight, int64_t tokens);
// shape: batch, height, width and what follows from them are 0 where the graph does not say them.
std::unique_ptr<ConvKernel> make_conv(Csr&& weight, const ConvShape& shape);
// weight: dense (out_channels, channels / group, kernel_h, kernel_w), gone after the call.
std::unique_ptr<ConvKernel> make_direct_conv(const float* weight, const ConvShape& shape);

}  // namespace onnxprune
