#include "ort_info.h"

namespace onnxprune {

bool Info::ok(OrtStatus* status) const {
  if (status) ort_.ReleaseStatus(status);
  return !status;
}

void Info::must(OrtStatus* status, const std::string& what) const {
  if (!ok(status)) throw Refusal("cannot read " + what);
}

std::string Info::name() const {
  size_t size = 0;
  if (!ok(ort_.KernelInfo_GetNodeName(info_, nullptr, &size)) || size < 2) return "";
  std::string text(size, '\0');
  if (!ok(ort_.KernelInfo_GetNodeName(info_, text.data(), &size))) return "";
  text.resize(size - 1);
  return text;
}

size_t Info::inputs() const {
  size_t count = 0;
  must(ort_.KernelInfo_GetInputCount(info_, &count), "the number of inputs");
  return count;
}

int64_t Info::integer(const char* name, int64_t otherwise) const {
  int64_t value = 0;
  return ok(ort_.KernelInfoGetAttribute_int64(info_, name, &value)) ? value : otherwise;
}

float Info::real(const char* name, float otherwise) const {
  float value = 0;
  return ok(ort_.KernelInfoGetAttribute_float(info_, name, &value)) ? value : otherwise;
}

std::string Info::text(const char* name, const std::string& otherwise) const {
  size_t size = 0;
  if (!ok(ort_.KernelInfoGetAttribute_string(info_, name, nullptr, &size)) || !size) return otherwise;
  std::string value(size, '\0');
  must(ort_.KernelInfoGetAttribute_string(info_, name, value.data(), &size), std::string("attribute ") + name);
  value.resize(size - 1);
  return value;
}

std::vector<int64_t> Info::integers(const char* name, const std::vector<int64_t>& otherwise) const {
  size_t size = 0;
  if (!ok(ort_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size))) return otherwise;
  if (!size) return {};
  std::vector<int64_t> values(size);
  must(ort_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size),
       std::string("attribute ") + name);
  return values;
}

Tensor Info::initializer(size_t index, const char* what) const {
  int constant = 0;
  const OrtValue* value = nullptr;
  must(ort_.KernelInfoGetConstantInput_tensor(info_, index, &constant, &value), what);
  if (!constant || !value)
    throw Refusal(std::string(what) + " (input " + std::to_string(index) + ") is no initializer");
  Tensor tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  must(ort_.GetTensorTypeAndShape(value, &info), what);
  tensor.shape = take_shape(ort_, info, &tensor.type);
  tensor.count = checked_product(tensor.shape, int64_t{1} << 40, what);
  void* data = nullptr;
  must(ort_.GetTensorMutableData(value, &data), what);
  if (!data && tensor.count) throw Refusal(std::string(what) + " has no data");
  tensor.data = data;
  return tensor;
}

std::vector<float> Info::vector(size_t index, int64_t count, const char* what) const {
  const Tensor tensor = initializer(index, what);
  if (tensor.type != ort::float32 || tensor.count != count)
    throw Refusal(std::string(what) + " has type " + std::to_string(tensor.type) + " " +
                  to_string(tensor.shape) + ", wanted " + std::to_string(count) + " of float32");
  const auto* data = static_cast<const float*>(tensor.data);
  return std::vector<float>(data, data + count);
}

std::vector<int64_t> Info::known_shape(size_t index) const {
  OrtTypeInfo* type = nullptr;
  if (!ok(ort_.KernelInfo_GetInputTypeInfo(info_, index, &type)) || !type) return {};
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;  // part of type
  size_t count = 0;
  std::vector<int64_t> dims;
  if (ok(ort_.CastTypeInfoToTensorInfo(type, &tensor)) && tensor &&
      ok(ort_.GetDimensionsCount(tensor, &count)) && count) {
    dims.resize(count);
    if (!ok(ort_.GetDimensions(tensor, dims.data(), count))) dims.clear();
  }
  ort_.ReleaseTypeInfo(type);
  return dims;
}

std::vector<int64_t> take_shape(const ort::Functions& ort, OrtTensorTypeAndShapeInfo* info, int* type) {
  size_t count = 0;
  std::vector<int64_t> dims;
  OrtStatus* status = ort.GetTensorElementType(info, type);
  if (!status) status = ort.GetDimensionsCount(info, &count);
  if (!status && count) {
    try {
      dims.resize(count);
    } catch (...) {
      ort.ReleaseTensorTypeAndShapeInfo(info);
      throw;
    }
    status = ort.GetDimensions(info, dims.data(), count);
  }
  ort.ReleaseTensorTypeAndShapeInfo(info);
  if (status) {
    ort.ReleaseStatus(status);
    throw Refusal("cannot read the shape of a tensor");
  }
  return dims;
}

}  // namespace onnxprune
