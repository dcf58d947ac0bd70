#include "factory.h"

#include "decode.h"
#include "kernels/conv_table.h"
#include "kernels/table.h"
#include "levels.h"
#include "plain.h"

namespace onnxprune {

std::unique_ptr<MatMulKernel> make_matmul(Csr&& weight, int64_t tokens) {
  if (weight.rows && weight.cols)
    if (auto kernel = best_matmul(weight, level(), tokens)) return kernel;
  return plain_matmul(std::move(weight));
}

std::unique_ptr<ConvKernel> make_conv(Csr&& weight, const ConvShape& shape) {
  if (auto kernel = best_conv(weight, shape, level())) return kernel;
  return plain_conv(std::move(weight));
}

std::unique_ptr<ConvKernel> make_direct_conv(const float* weight, const ConvShape& shape) {
  Csr csr;
  csr.rows = shape.out_channels;
  csr.cols = shape.channels / shape.group * shape.kernel_h * shape.kernel_w;
  const int64_t count = checked_product({csr.rows, csr.cols}, int64_t{1} << 28, "W");
  csr.value.assign(weight, weight + count);
  csr.index.resize(static_cast<size_t>(count));
  csr.start.resize(static_cast<size_t>(csr.rows) + 1);
  for (int64_t i = 0; i < count; ++i) csr.index[static_cast<size_t>(i)] = static_cast<uint32_t>(i % csr.cols);
  for (int64_t row = 0; row <= csr.rows; ++row)
    csr.start[static_cast<size_t>(row)] = static_cast<uint32_t>(row * csr.cols);
  return make_conv(std::move(csr), shape);
}

}  // namespace onnxprune
