// MatMul by tiles of tokens: transposed into the tile, multiplied row by row, transposed back.
#pragma once

#include <memory>

#include "matmul.h"

namespace onnxprune {

struct Level;

std::unique_ptr<MatMul> matmul_tile(const Csr& weight, const Level& level);
double matmul_tile_cost(const Facts& facts, const Level& level, int64_t M);

}  // namespace onnxprune
