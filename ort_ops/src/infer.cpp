#include "infer.h"

#include <atomic>

#include "conv_geometry.h"
#include "device_op.h"
#include "op.h"

namespace onnxprune {
namespace {

std::atomic<const ort::Functions*> functions{nullptr};

struct Dim {
  int64_t value = -1;   // -1: has a name, or nothing is known
  std::string name;
  bool known() const { return value >= 0 || !name.empty(); }
};

class Inference {
 public:
  Inference(const ort::Functions& ort, OrtShapeInferContext* context) : ort_(ort), context_(context) {}

  // Empty when nothing is known (the runtime does not tell that from a scalar)
  std::vector<Dim> input(size_t index) const {
    size_t count = 0;
    OrtTensorTypeAndShapeInfo* info = nullptr;  // belongs to the context
    if (!ok(ort_.ShapeInferContext_GetInputCount(context_, &count)) || index >= count ||
        !ok(ort_.ShapeInferContext_GetInputTypeShape(context_, index, &info)) || !info ||
        !ok(ort_.GetDimensionsCount(info, &count)) || !count)
      return {};
    std::vector<int64_t> values(count);
    std::vector<const char*> names(count, nullptr);
    if (!ok(ort_.GetDimensions(info, values.data(), count)) ||
        !ok(ort_.GetSymbolicDimensions(info, names.data(), count)))
      return {};
    std::vector<Dim> dims(count);
    for (size_t i = 0; i < count; ++i) dims[i] = {values[i], values[i] < 0 && names[i] ? names[i] : ""};
    return dims;
  }

  std::vector<int64_t> integers(const char* name) const {
    const OrtOpAttr* attribute = nullptr;
    if (!ok(ort_.ShapeInferContext_GetAttribute(context_, name, &attribute)) || !attribute) return {};
    int64_t values[8];
    size_t bytes = 0;
    if (!ok(ort_.ReadOpAttr(attribute, ort::ints, values, sizeof values, &bytes))) return {};
    return std::vector<int64_t>(values, values + bytes / sizeof values[0]);
  }

  int type(size_t index) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    int found = ort::undefined;
    if (!ok(ort_.ShapeInferContext_GetInputTypeShape(context_, index, &info)) || !info ||
        !ok(ort_.GetTensorElementType(info, &found)))
      return ort::undefined;
    return found;
  }

  void set_output(const std::vector<Dim>& dims, int type = ort::float32) const {
    std::vector<int64_t> values;
    std::vector<const char*> names;
    for (const Dim& dim : dims) {
      if (!dim.known()) return;  // there is no way to say so
      values.push_back(dim.value);
      names.push_back(dim.name.c_str());
    }
    OrtTensorTypeAndShapeInfo* info = nullptr;
    if (!ok(ort_.CreateTensorTypeAndShapeInfo(&info))) return;
    if (ok(ort_.SetTensorElementType(info, type)) &&
        ok(ort_.SetDimensions(info, values.data(), values.size())) &&
        ok(ort_.SetSymbolicDimensions(info, names.data(), names.size())))
      ok(ort_.ShapeInferContext_SetOutputTypeShape(context_, 0, info));
    ort_.ReleaseTensorTypeAndShapeInfo(info);
  }

 private:
  bool ok(OrtStatus* status) const {
    if (status) ort_.ReleaseStatus(status);
    return !status;
  }

  const ort::Functions& ort_;
  OrtShapeInferContext* context_;
};

void infer(const OpName& what, const Inference& inference) {
  std::vector<Dim> dims = inference.input(0);
  const std::vector<Dim> bias = inference.input(what.bias());
  if (dims.empty() || bias.size() != 1) return;
  if (!what.conv()) {
    dims.back() = bias[0];
    return inference.set_output(dims);
  }
  std::vector<int64_t> weight;
  if (what.consumer == Consumer::direct_conv) {
    for (const Dim& dim : inference.input(1)) weight.push_back(dim.value);
  } else {
    weight = inference.integers("shape");
  }
  ConvAttributes attributes;
  attributes.strides = inference.integers("strides");
  attributes.dilations = inference.integers("dilations");
  attributes.pads = inference.integers("pads");
  ConvShape shape = conv_shape(weight, attributes);
  if (dims.size() != weight.size()) return;
  const bool flat = dims.size() == 3;
  // A kernel that leaves a dimension alone leaves its name alone too
  const auto kept = [](int64_t kernel, int64_t stride, int64_t dilation, int64_t pads) {
    return stride == 1 && (kernel - 1) * dilation == pads;
  };
  Dim& width = dims.back();
  shape.width = width.value;
  shape.height = flat ? 1 : dims[2].value;
  set_output_size(shape);
  if (width.value >= 0)
    width.value = shape.out_width;
  else if (!kept(shape.kernel_w, shape.stride_w, shape.dilation_w, shape.pad_left + shape.pad_right))
    return;
  if (!flat && dims[2].value >= 0)
    dims[2].value = shape.out_height;
  else if (!flat && !kept(shape.kernel_h, shape.stride_h, shape.dilation_h, shape.pad_top + shape.pad_bottom))
    return;
  if ((width.value == 0) || (!flat && dims[2].value == 0)) return;  // the kernel does not fit
  dims[1] = bias[0];
  inference.set_output(dims);
}

}  // namespace

OrtStatus* infer_output_shape(const OrtCustomOp* op, OrtShapeInferContext* context) noexcept {
  const ort::Functions* ort = functions.load(std::memory_order_acquire);
  if (!ort) return nullptr;
  try {
    infer(static_cast<const Op*>(op)->what, Inference(*ort, context));
  } catch (...) {  // what is wrong with the node is said when its kernel is made
  }
  return nullptr;
}

OrtStatus* infer_device_output_shape(const OrtCustomOp* op, OrtShapeInferContext* context) noexcept {
  const ort::Functions* ort = functions.load(std::memory_order_acquire);
  if (!ort) return nullptr;
  try {
    const Inference inference(*ort, context);
    std::vector<Dim> dims = inference.input(0);
    // One inference serves all ops of a name, so the type is that of X, not of `op`
    const DeviceOp& which = *static_cast<const DeviceOp*>(op);
    const std::vector<Dim> bias = inference.input(which.bias());
    const int type = inference.type(0);
    if (dims.size() < (which.conv ? 3 : 1) || bias.size() != 1 || type == ort::undefined) return nullptr;
    (which.conv ? dims[1] : dims.back()) = bias[0];
    inference.set_output(dims, type);
  } catch (...) {  // what is wrong with the node is said when its kernel is made
  }
  return nullptr;
}

void set_inference_functions(const OrtApi* api) {
  static const ort::Functions table(api);
  functions.store(&table, std::memory_order_release);
}

}  // namespace onnxprune
