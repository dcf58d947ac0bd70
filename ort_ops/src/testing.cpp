// C functions by which the tests and benchmarks reach the MatMul kernels without ONNX Runtime (ctypes).
// Never called by ONNX Runtime. Pointers are not checked; what create() is given is a valid Csr.
#include <cstring>
#include <exception>

#include "kernels/table.h"
#include "levels.h"
#include "testing_pool.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace onnxprune;

// Name of the i-th level that runs here, best first; null beyond the last
EXPORT const char* onnxprune_test_level(int64_t i) {
  const Level* level = level_at(static_cast<size_t>(i));
  return level ? level->name : nullptr;
}

// Name of the i-th kernel of the table; null beyond the last
EXPORT const char* onnxprune_test_matmul_kernel(int64_t i) {
  return static_cast<size_t>(i) < kMatMulKernelCount ? kMatMulKernels[i].name : nullptr;
}

// A kernel, or null where it does not apply. level null: the best one; kernel null: the one that is chosen for
// `tokens` rows (0 = unknown).
EXPORT MatMulKernel* onnxprune_test_matmul_create(const char* kernel, const char* level_name, int64_t rows, int64_t cols,
                                                  const uint32_t* start, const uint32_t* index, const float* value,
                                                  int64_t tokens) {
  const Level* chosen = level_name ? level_named(level_name) : &level();
  if (!chosen) return nullptr;
  const size_t entries = start[rows];
  const Csr weight{rows, cols, {start, start + rows + 1}, {index, index + entries}, {value, value + entries}};
  if (!kernel) return best_matmul(weight, *chosen, tokens).release();
  for (size_t i = 0; i < kMatMulKernelCount; ++i)
    if (std::strcmp(kMatMulKernels[i].name, kernel) == 0) return kMatMulKernels[i].create(weight, *chosen).release();
  return nullptr;
}

// Name of the kernel that would be chosen for M rows
EXPORT const char* onnxprune_test_matmul_choice(const char* level_name, int64_t rows, int64_t cols, const uint32_t* start,
                                                const uint32_t* index, const float* value, int64_t M) {
  const size_t entries = start[rows];
  const Csr weight{rows, cols, {start, start + rows + 1}, {index, index + entries}, {value, value + entries}};
  return cheapest_matmul(Facts(weight), level_name ? *level_named(level_name) : level(), M).name;
}

EXPORT void onnxprune_test_matmul_run(const MatMulKernel* kernel, const float* X, float* Y, int64_t M,
                                      const float* bias, const float* residual, int64_t activation, float low,
                                      float high, const float* gamma, const float* beta, float epsilon, int64_t threads) {
  const Epilogue epilogue{bias, residual, static_cast<Activation>(activation), low, high, gamma, beta, epsilon};
  kernel->run(X, Y, M, epilogue, TestPool(threads));
}

EXPORT int64_t onnxprune_test_matmul_bytes(const MatMulKernel* kernel) { return static_cast<int64_t>(kernel->bytes()); }

EXPORT void onnxprune_test_matmul_destroy(MatMulKernel* kernel) { delete kernel; }
