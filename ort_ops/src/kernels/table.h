// The one table of MatMul kernels: for the ops, the tests and the benchmarks.
#pragma once

#include <memory>

#include "matmul.h"

namespace onnxprune {

struct MatMulEntry {
  const char* name;
  std::unique_ptr<MatMul> (*create)(const Csr& weight, const Level& level);
  // Predicted cycles of run() on M rows, one thread
  double (*cost)(const Facts& facts, const Level& level, int64_t M);
};

extern const MatMulEntry kMatMulKernels[];
extern const size_t kMatMulKernelCount;

// The cheapest kernel of the table for M rows of X
const MatMulEntry& cheapest_matmul(const Facts& facts, const Level& level, int64_t M);

// A kernel that runs any M with the entry that is cheapest there. tokens: the M that is expected, 0 = unknown; its
// kernel is built at once, another (for a few rows, or for many) when it is first needed.
std::unique_ptr<MatMulKernel> best_matmul(const Csr& weight, const Level& level, int64_t tokens);

}  // namespace onnxprune
