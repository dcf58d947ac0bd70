// The one table of convolution kernels: for the ops, the tests and the benchmarks.
#pragma once

#include <memory>

#include "kernel.h"

namespace onnxprune {

struct Level;

struct ConvEntry {
  const char* name;
  // Null where the kernel cannot run the weight
  std::unique_ptr<ConvKernel> (*create)(const Csr& weight, const ConvShape& shape, const Level& level);
};

extern const ConvEntry kConvKernels[];
extern const size_t kConvKernelCount;

// The kernel that is predicted to be the fastest. batch, height and width of the shape may be 0 (unknown).
std::unique_ptr<ConvKernel> best_conv(const Csr& weight, const ConvShape& shape, const Level& level);

}  // namespace onnxprune
