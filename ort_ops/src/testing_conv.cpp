// C functions by which the tests and benchmarks reach the convolution kernels without ONNX Runtime (ctypes).
// Never called by ONNX Runtime. Pointers are not checked; what create() is given is a valid Csr and shape.
#include <cstring>

#include "kernels/conv_table.h"
#include "levels.h"
#include "testing_pool.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace onnxprune;

// The fields of ConvShape in order
static ConvShape shape_of(const int64_t* fields) {
  ConvShape shape;
  static_assert(sizeof shape == 18 * sizeof(int64_t));
  std::memcpy(&shape, fields, sizeof shape);
  return shape;
}

// Name of the i-th kernel of the table; null beyond the last
EXPORT const char* onnxprune_test_conv_kernel(int64_t i) {
  return static_cast<size_t>(i) < kConvKernelCount ? kConvKernels[i].name : nullptr;
}

// A kernel, or null where it does not apply. level null: the best one; kernel null: the one that would be chosen.
EXPORT ConvKernel* onnxprune_test_conv_create(const char* kernel, const char* level_name, const int64_t* fields,
                                              const uint32_t* start, const uint32_t* index, const float* value) {
  const Level* chosen = level_name ? level_named(level_name) : &level();
  if (!chosen) return nullptr;
  const ConvShape shape = shape_of(fields);
  const int64_t rows = shape.out_channels;
  const int64_t cols = shape.channels / shape.group * shape.kernel_h * shape.kernel_w;
  const size_t entries = start[rows];
  const Csr weight{rows, cols, {start, start + rows + 1}, {index, index + entries}, {value, value + entries}};
  if (!kernel) return best_conv(weight, shape, *chosen).release();
  for (size_t i = 0; i < kConvKernelCount; ++i)
    if (std::strcmp(kConvKernels[i].name, kernel) == 0) return kConvKernels[i].create(weight, shape, *chosen).release();
  return nullptr;
}

EXPORT void onnxprune_test_conv_run(const ConvKernel* kernel, const float* X, float* Y, const int64_t* fields,
                                    const float* bias, const float* residual, int64_t activation, float low, float high,
                                    int64_t threads) {
  Epilogue epilogue;
  epilogue.bias = bias;
  epilogue.residual = residual;
  epilogue.activation = static_cast<Activation>(activation);
  epilogue.low = low;
  epilogue.high = high;
  kernel->run(X, Y, shape_of(fields), epilogue, TestPool(threads));
}

EXPORT int64_t onnxprune_test_conv_bytes(const ConvKernel* kernel) { return static_cast<int64_t>(kernel->bytes()); }

EXPORT void onnxprune_test_conv_destroy(ConvKernel* kernel) { delete kernel; }
