// What a node tells at creation: attributes, initializers, shapes known in advance.
#pragma once

#include <string>
#include <vector>

#include "decode.h"
#include "ort_abi.h"

namespace onnxprune {

class Info {
 public:
  Info(const ort::Functions& ort, const OrtKernelInfo* info) : ort_(ort), info_(info) {}

  std::string name() const;
  size_t inputs() const;
  int64_t integer(const char* name, int64_t otherwise) const;
  float real(const char* name, float otherwise) const;
  std::string text(const char* name, const std::string& otherwise) const;
  std::vector<int64_t> integers(const char* name, const std::vector<int64_t>& otherwise) const;
  // Throws Refusal when the input is no initializer
  Tensor initializer(size_t index, const char* what) const;
  // The same as float values, `count` of them
  std::vector<float> vector(size_t index, int64_t count, const char* what) const;
  // Dimensions of an input as far as the graph says them, -1 for the others; empty when it says nothing
  std::vector<int64_t> known_shape(size_t index) const;

 private:
  bool ok(OrtStatus* status) const;
  void must(OrtStatus* status, const std::string& what) const;

  const ort::Functions& ort_;
  const OrtKernelInfo* info_;
};

// Reads and releases
std::vector<int64_t> take_shape(const ort::Functions& ort, OrtTensorTypeAndShapeInfo* info, int* type);

}  // namespace onnxprune
