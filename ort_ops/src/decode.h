// From the packed tensors of a file to a sparse matrix. The forms are specified in onnxprune/storage/.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernel.h"

namespace onnxprune {

// What a file, a node or an input has wrong: reaches the user as an error of ONNX Runtime.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Form { bitmap, gap4, gap8 };

struct Tensor {
  const void* data = nullptr;
  int type = 0;  // ort::ElementType
  std::vector<int64_t> shape;
  int64_t count = 0;  // elements: the product of shape, which the runtime has allocated
};

// How the stored tensor lies to the matrix W (out x in): row by row, or as its transpose (in x out).
enum class Layout { as_is, transposed };

struct Packed {
  Form form;
  Tensor code;                  // mask or steps
  Tensor values;
  std::vector<int64_t> shape;   // of the stored dense tensor, as the file claims
  int64_t rows = 0, cols = 0;   // of W
  Layout layout = Layout::as_is;
};

// Product of dimensions, refused when one is negative or the product passes `limit`.
int64_t checked_product(const std::vector<int64_t>& shape, int64_t limit, const char* what);

std::string to_string(const std::vector<int64_t>& shape);

// Checks every count, position and size against the tensors, then builds W. Entries that are zero are
// dropped. Needs no memory besides the result.
Csr decode(const Packed& packed);

float widen(uint16_t half);

}  // namespace onnxprune
