// Output shapes while a model is loaded, without which ONNX Runtime loses its own fusions behind our ops.
#pragma once

#include "ort_abi.h"

namespace onnxprune {

// Says nothing where it does not know; never fails a model. ONNX Runtime ignores or mishandles errors here.
OrtStatus* infer_output_shape(const OrtCustomOp* op, OrtShapeInferContext* context) noexcept;

// The same for the ops of the CUDA provider: X with the bias for its last dimension, and X's type.
OrtStatus* infer_device_output_shape(const OrtCustomOp* op, OrtShapeInferContext* context) noexcept;

// The calls above are given no table of functions, so registration leaves it here.
void set_inference_functions(const OrtApi* api);

}  // namespace onnxprune
