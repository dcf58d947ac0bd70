// The custom ops for ONNX Runtime's CUDA provider: one OrtCustomOp for each kernel, activation and element type.
//
//   (BitmapTile|BitmapTileInt8|BlockSparse|NMTile|Delta) MatMul [Relu|Clip|Gelu|GeluTanh|Silu|HardSwish]
//   (BitmapTile|BitmapTileInt8|BlockSparse|NMTile) Conv [the same]
//
// Y = act(X W + B), or of 1x1 convolutions act(conv(X, W) + B). Inputs in order: X; the tensors of the layout,
// initializers in device memory; B. Specified in onnxprune/storage/device/functions.py.
#pragma once

#include <deque>
#include <string>

#include "device.h"
#include "kernels/kernel.h"
#include "ort_abi.h"

namespace onnxprune {

struct DeviceOp : OrtCustomOp {
  DeviceOp(const OnnxpruneCudaOp* kernel, bool conv, Activation activation, int type);
  const OnnxpruneCudaOp* kernel;
  bool conv;
  Activation activation;
  int type;  // of X: the runtime takes several ops of one name for the types that each can do
  std::string name;
  size_t bias() const { return 1 + static_cast<size_t>(kernel->tensor_count); }
};

// Empty when the CUDA kernels cannot be used here; made once, never freed.
const std::deque<DeviceOp>& all_device_ops();

}  // namespace onnxprune
