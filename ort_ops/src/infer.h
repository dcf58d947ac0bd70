// Output shapes while a model is loaded, without which ONNX Runtime loses its own fusions behind our ops.
#pragma once

#include "ort_abi.h"

namespace onnxprune {

// Says nothing where it does not know; never fails a model. ONNX Runtime ignores or mishandles errors here.
OrtStatus* infer_output_shape(const OrtCustomOp* op, OrtShapeInferContext* context) noexcept;

// The call above is given no table of functions, so registration leaves it here.
void set_inference_functions(const OrtApi* api);

}  // namespace onnxprune
