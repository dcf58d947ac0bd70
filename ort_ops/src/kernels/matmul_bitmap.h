// MatMul of a few tokens with a weight of any pattern, stored as masks and non-zeros.
#pragma once

#include <memory>

#include "matmul.h"

namespace onnxprune {

std::unique_ptr<MatMul> matmul_bitmap(const Csr& weight, const Level& level);
double matmul_bitmap_cost(const Facts& facts, const Level& level, int64_t M);

}  // namespace onnxprune
