// Kernels that are only correct: what every other one is measured against.
#pragma once

#include <memory>

#include "kernels/kernel.h"

namespace onnxprune {

std::unique_ptr<MatMulKernel> plain_matmul(Csr&& weight);
std::unique_ptr<ConvKernel> plain_conv(Csr&& weight);

}  // namespace onnxprune
