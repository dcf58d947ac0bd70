#include "matmul_bitmap.h"

#include <algorithm>
#include <cstring>

#include "../levels.h"
#include "bitmap_functions.h"
#include "scratch.h"
#include "tasks.h"

namespace onnxprune {
namespace {

// Rows of a task are multiples of this, so that threads do not share a cache line of Y
constexpr int64_t kRowStep = 16;

class MatMulBitmap final : public MatMul {
 public:
  MatMulBitmap(const Csr& weight, const Level& level);

  void run(const float* X, float* Y, int64_t M, const Epilogue& epilogue, const Pool& pool) const override;
  size_t bytes() const override {
    return sizeof *this + mask_.size() * sizeof(uint16_t) + start_.size() * sizeof(uint32_t) + value_.size() * sizeof(float);
  }
  Csr csr() const override;

 private:
  const Level& level_;
  const int64_t rows_, cols_, masks_;
  std::vector<uint16_t> mask_;
  std::vector<uint32_t> start_;
  std::vector<float> value_;
};

MatMulBitmap::MatMulBitmap(const Csr& weight, const Level& level)
    : level_(level), rows_(weight.rows), cols_(weight.cols), masks_((weight.cols + kBitmapColumns - 1) / kBitmapColumns),
      mask_(static_cast<size_t>(rows_ * masks_)), start_(weight.start), value_(weight.value) {
  for (int64_t row = 0; row < rows_; ++row)
    for (uint32_t i = weight.start[row]; i < weight.start[row + 1]; ++i)
      mask_[row * masks_ + weight.index[i] / kBitmapColumns] |= static_cast<uint16_t>(1u << weight.index[i] % kBitmapColumns);
  value_.resize(value_.size() + kBitmapColumns);  // a whole vector is loaded for the last mask too
}

Csr MatMulBitmap::csr() const {
  Csr out{rows_, cols_, start_, {}, {value_.begin(), value_.end() - kBitmapColumns}};
  for (int64_t row = 0; row < rows_; ++row)
    for (int64_t column = 0; column < cols_; ++column)
      if (mask_[row * masks_ + column / kBitmapColumns] >> column % kBitmapColumns & 1)
        out.index.push_back(static_cast<uint32_t>(column));
  return out;
}

void MatMulBitmap::run(const float* X, float* Y, int64_t M, const Epilogue& epilogue, const Pool& pool) const {
  if (M <= 0) return;
  const int64_t pitch = masks_ * kBitmapColumns;
  const float* x = X;
  if (pitch != cols_) {
    float* padded = scratch(Scratch::tile, static_cast<size_t>(pitch * M));
    for (int64_t t = 0; t < M; ++t) {
      std::memcpy(padded + t * pitch, X + t * cols_, static_cast<size_t>(cols_) * sizeof(float));
      std::fill(padded + t * pitch + cols_, padded + (t + 1) * pitch, 0.f);
    }
    x = padded;
  }
  const int64_t steps = (rows_ + kRowStep - 1) / kRowStep;
  const int64_t parts = task_parts(rows_ * masks_ * (1 + M / 4), steps);
  run_tasks(pool, parts, [&](size_t part) {
    const int64_t begin = steps * static_cast<int64_t>(part) / parts * kRowStep;
    const int64_t end = std::min(rows_, steps * (static_cast<int64_t>(part) + 1) / parts * kRowStep);
    for (int64_t t = 0; t < M; t += kBitmapTokens)
      level_.multiply_bitmap({mask_.data(), masks_, value_.data(), start_.data(), begin, end, x + t * pitch,
                              std::min<int64_t>(kBitmapTokens, M - t), Y + t * rows_, static_cast<ptrdiff_t>(rows_),
                              epilogue.residual ? epilogue.residual + t * rows_ : nullptr, &epilogue});
  });
  if (epilogue.gamma) level_.layer_norm(Y, M, rows_, epilogue);
}

}  // namespace

std::unique_ptr<MatMul> matmul_bitmap(const Csr& weight, const Level& level) {
  return std::make_unique<MatMulBitmap>(weight, level);
}

double matmul_bitmap_cost(const Facts& facts, const Level& level, int64_t M) {
  const double tokens = static_cast<double>(M), passes = static_cast<double>((M + kBitmapTokens - 1) / kBitmapTokens);
  // Measured: reading a non-zero, expanding a vector of columns, multiplying it with a further token
  constexpr double kEntry = 0.8, kToken = 0.72;
  const double expand = level.lanes >= 8 ? 1 : 8;  // the baseline branches for each column
  return passes * (kEntry * facts.entries + expand * facts.rows * facts.cols / level.lanes) +
         kToken * (tokens - passes) * facts.rows * facts.cols / level.lanes + 1000;
}

}  // namespace onnxprune
