// MatMul vectorised over 4, 8 or 16 output features that share their columns. Those of 4 are for a few tokens.
#pragma once

#include <memory>

#include "matmul.h"

namespace onnxprune {

struct Level;

std::unique_ptr<MatMul> matmul_token4(const Csr& weight, const Level& level);
std::unique_ptr<MatMul> matmul_token8(const Csr& weight, const Level& level);
std::unique_ptr<MatMul> matmul_token16(const Csr& weight, const Level& level);
double matmul_token4_cost(const Facts& facts, const Level& level, int64_t M);
double matmul_token8_cost(const Facts& facts, const Level& level, int64_t M);
double matmul_token16_cost(const Facts& facts, const Level& level, int64_t M);

}  // namespace onnxprune
