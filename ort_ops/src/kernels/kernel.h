// What a kernel is, independent of ONNX Runtime and of the instruction set.
//
// A kernel is built once from a sparse weight (its own layout, never the dense matrix) and run many
// times, by several threads at once: run() is const and takes its scratch memory from the thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace onnxprune {

// A weight W (rows = out_features, cols = in_features), rows in order, columns ascending in a row.
// For a convolution cols = (channels / group) * kernel_h * kernel_w, as the matrix view of the weight.
struct Csr {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<uint32_t> start;  // rows + 1
  std::vector<uint32_t> index;  // column of each entry
  std::vector<float> value;
};

enum class Activation { none, relu, clip, gelu, gelu_tanh, silu, hardswish };

// y = act(W x + bias + residual), then optionally LayerNormalization over the output features.
struct Epilogue {
  const float* bias = nullptr;      // (rows,)
  const float* residual = nullptr;  // laid out as the output
  Activation activation = Activation::none;
  float low = 0.f, high = 0.f;    // of clip
  const float* gamma = nullptr;     // (rows,): normalise when set; never together with an activation
  const float* beta = nullptr;      // (rows,) or null
  float epsilon = 0.f;
};

// Runs task(0) .. task(tasks - 1), in any order, on the threads of the session.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual void run(size_t tasks, const std::function<void(size_t)>& task) const = 0;
};

// Y (M, rows) = epilogue(X (M, cols) W^T), both row-major and contiguous.
class MatMulKernel {
 public:
  virtual ~MatMulKernel() = default;
  virtual void run(const float* X, float* Y, int64_t M, const Epilogue& epilogue, const Pool& pool) const = 0;
  virtual size_t bytes() const = 0;  // held by the kernel
};

struct ConvShape {  // 2-D; a 1-D convolution has height 1
  int64_t batch, channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t group;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t pad_top, pad_left, pad_bottom, pad_right;
};

// Y (batch, out_channels, out_height, out_width) from X (batch, channels, height, width), NCHW.
class ConvKernel {
 public:
  virtual ~ConvKernel() = default;
  // batch, height, width (and what follows from them) may differ from call to call, the rest may not
  virtual void run(const float* X, float* Y, const ConvShape& shape, const Epilogue& epilogue,
                   const Pool& pool) const = 0;
  virtual size_t bytes() const = 0;
};

}  // namespace onnxprune
