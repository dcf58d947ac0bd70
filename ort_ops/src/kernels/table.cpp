#include "table.h"

#include <mutex>

#include "../levels.h"
#include "matmul_bitmap.h"
#include "matmul_tile.h"
#include "matmul_token.h"

namespace onnxprune {

const MatMulEntry kMatMulKernels[] = {
    {"tile", matmul_tile, matmul_tile_cost},
    {"token4", matmul_token4, matmul_token4_cost},
    {"token8", matmul_token8, matmul_token8_cost},
    {"token16", matmul_token16, matmul_token16_cost},
    {"bitmap", matmul_bitmap, matmul_bitmap_cost},
};
const size_t kMatMulKernelCount = sizeof kMatMulKernels / sizeof kMatMulKernels[0];

const MatMulEntry& cheapest_matmul(const Facts& facts, const Level& level, int64_t M) {
  const MatMulEntry* best = nullptr;
  for (const MatMulEntry& entry : kMatMulKernels)
    if (!best || entry.cost(facts, level, M) < best->cost(facts, level, M)) best = &entry;
  return *best;
}

namespace {

// The M for which a kernel is chosen: few rows are bound by memory, many by arithmetic
constexpr int64_t kFew = 1, kMany = 128;
constexpr int64_t kFewTokens = 7;

// Two kernels of one weight; the second is built of the first when such an M comes
class BestMatMul final : public MatMulKernel {
 public:
  BestMatMul(const Csr& weight, const Level& level, const MatMulEntry& few, const MatMulEntry& many, bool start_few)
      : level_(level), other_(start_few ? many : few), start_few_(start_few),
        first_((start_few ? few : many).create(weight, level)) {}

  void run(const float* X, float* Y, int64_t M, const Epilogue& epilogue, const Pool& pool) const override {
    if ((M <= kFewTokens) == start_few_) return first_->run(X, Y, M, epilogue, pool);
    std::call_once(built_, [&] { second_ = other_.create(first_->csr(), level_); });
    second_->run(X, Y, M, epilogue, pool);
  }
  size_t bytes() const override { return sizeof *this + first_->bytes() + (second_ ? second_->bytes() : 0); }

 private:
  const Level& level_;
  const MatMulEntry& other_;
  const bool start_few_;
  const std::unique_ptr<MatMul> first_;
  mutable std::unique_ptr<MatMul> second_;
  mutable std::once_flag built_;
};

}  // namespace

std::unique_ptr<MatMulKernel> best_matmul(const Csr& weight, const Level& level, int64_t tokens) {
  const Facts facts(weight);
  const MatMulEntry& few = cheapest_matmul(facts, level, tokens > 0 && tokens <= kFewTokens ? tokens : kFew);
  const MatMulEntry& many = cheapest_matmul(facts, level, tokens > kFewTokens ? tokens : kMany);
  if (&few == &many) return many.create(weight, level);
  return std::make_unique<BestMatMul>(weight, level, few, many, tokens > 0 && tokens <= kFewTokens);
}

}  // namespace onnxprune
