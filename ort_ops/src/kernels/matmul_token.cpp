#include "matmul_token.h"

#include <algorithm>
#include <atomic>

#include "../levels.h"
#include "lanes_functions.h"
#include "scratch.h"
#include "tasks.h"

namespace onnxprune {
namespace {

// Groups of a task: 256 output features
constexpr int64_t kSliceRows = 256;
// Up to here tokens are read where they are: packing would cost as much as multiplying
constexpr int64_t kUnpackedTokens = 7;
// Packed input of a band of tokens, as in matmul_tile
constexpr int64_t kBandFloats = 1 << 18;
constexpr int64_t kBandTiles = 32;

class MatMulToken final : public MatMul {
 public:
  MatMulToken(const Csr& weight, const Level& level, int rows)
      : level_(level), weight_(weight, rows, kLaneColumns, kSliceRows / rows), entries_(weight.value.size()) {}

  void run(const float* X, float* Y, int64_t M, const Epilogue& epilogue, const Pool& pool) const override;
  size_t bytes() const override { return sizeof *this + weight_.bytes(); }
  Csr csr() const override { return weight_.csr(); }

 private:
  // Tokens that are worked on together; the inputs of K-block b of tile i are at x + i * tile_step + b * block_step
  struct Band {
    const float* x;
    int64_t pitch, tile_step, block_step;
    float* Y;
    const float* residual;
    const Epilogue& epilogue;
    int64_t tokens;

    int64_t tiles() const { return (tokens + kLaneTokens - 1) / kLaneTokens; }
    int64_t tile_tokens(int64_t tile) const { return std::min(kLaneTokens, tokens - tile * kLaneTokens); }
  };

  void pack(const float* X, float* packed, int64_t tokens) const;
  void multiply(const Band& band, const Pool& pool) const;
  void slice(const Band& band, int64_t tile, int64_t slice) const;

  const Level& level_;
  const LaneWeight weight_;
  const size_t entries_;
};

void MatMulToken::run(const float* X, float* Y, int64_t M, const Epilogue& epilogue, const Pool& pool) const {
  const int64_t K = weight_.cols(), N = weight_.rows();
  if (M <= 0) return;
  if (M <= kUnpackedTokens) {
    multiply({X, K, 0, kLaneColumns, Y, epilogue.residual, epilogue, M}, pool);
    return;
  }
  const int64_t block = kLaneTokens * kLaneColumns, tile = block * weight_.blocks();
  const int64_t band = std::clamp<int64_t>(kBandFloats / tile, 1, kBandTiles) * kLaneTokens;
  const int64_t tiles = (std::min(band, M) + kLaneTokens - 1) / kLaneTokens;
  float* packed = scratch(Scratch::tile, static_cast<size_t>(tile * tiles));
  for (int64_t first = 0; first < M; first += band) {
    const int64_t tokens = std::min(band, M - first);
    run_tasks(pool, (tokens + kLaneTokens - 1) / kLaneTokens, [&](size_t i) {
      const int64_t t = static_cast<int64_t>(i) * kLaneTokens;
      pack(X + (first + t) * K, packed + static_cast<int64_t>(i) * tile, std::min(kLaneTokens, tokens - t));
    });
    multiply({packed, kLaneColumns, tile, block, Y + first * N,
              epilogue.residual ? epilogue.residual + first * N : nullptr, epilogue, tokens},
             pool);
  }
}

void MatMulToken::pack(const float* X, float* packed, int64_t tokens) const {
  for (int64_t b = 0; b < weight_.blocks(); ++b) {
    const int64_t column = b * kLaneColumns;
    level_.pack_columns(X + column, weight_.cols(), tokens, std::min(kLaneColumns, weight_.cols() - column),
                        packed + b * kLaneTokens * kLaneColumns);
  }
}

void MatMulToken::multiply(const Band& band, const Pool& pool) const {
  const int64_t tiles = band.tiles();
  const int64_t fmas = static_cast<int64_t>(entries_) * std::min(band.tokens, kLaneTokens) / level_.lanes;
  const int64_t parts = task_parts(fmas, weight_.slices());
  // The tile's last part finds its rows complete and normalises them while they are in the cache
  std::atomic<int64_t> left[kBandTiles];
  for (auto& count : left) count = parts;
  run_tasks(pool, tiles * parts, [&](size_t task) {
    const int64_t tile = static_cast<int64_t>(task) / parts, part = static_cast<int64_t>(task) % parts;
    for (int64_t s = weight_.slices() * part / parts; s < weight_.slices() * (part + 1) / parts; ++s) slice(band, tile, s);
    if (band.epilogue.gamma && left[tile].fetch_sub(1, std::memory_order_acq_rel) == 1)
      level_.layer_norm(band.Y + tile * kLaneTokens * weight_.rows(), band.tile_tokens(tile), weight_.rows(), band.epilogue);
  });
}

void MatMulToken::slice(const Band& band, int64_t tile, int64_t slice) const {
  const int64_t begin = weight_.slice_begin(slice), end = weight_.slice_end(slice);
  const int64_t tokens = band.tile_tokens(tile);
  const ptrdiff_t out = tile * kLaneTokens * weight_.rows();
  float* C = scratch(Scratch::accumulators, static_cast<size_t>((end - begin) * tokens * weight_.lanes()));
  for (int64_t b = 0; b < weight_.blocks(); ++b) {
    const LaneJob job{weight_.block(slice, b), weight_.group(begin), weight_.row(), end - begin, tokens, band.pitch,
                      b == 0, b + 1 == weight_.blocks(), band.Y + out, static_cast<ptrdiff_t>(weight_.rows()),
                      band.residual ? band.residual + out : nullptr, &band.epilogue};
    level_.multiply_lanes(weight_.lanes(), job, band.x + tile * band.tile_step + b * band.block_step, C);
  }
}

std::unique_ptr<MatMul> create(const Csr& weight, const Level& level, int rows) {
  return std::make_unique<MatMulToken>(weight, level, rows);
}

}  // namespace

std::unique_ptr<MatMul> matmul_token4(const Csr& weight, const Level& level) { return create(weight, level, 4); }
std::unique_ptr<MatMul> matmul_token8(const Csr& weight, const Level& level) { return create(weight, level, 8); }
std::unique_ptr<MatMul> matmul_token16(const Csr& weight, const Level& level) { return create(weight, level, 16); }

namespace {

double cost(const Facts& facts, const Level& level, int64_t M, int rows, const Facts::Lanes& filled) {
  const double tokens = static_cast<double>(M), lanes = std::min(level.lanes, rows), stored = filled.stored;
  // Cycles per fma of a vector, measured. With one vector of outputs (512 bits, or 8 rows) each fma has its input
  // broadcast by its own load, and the loads are the bound.
  const double fma = level.lanes > 8 ? 0.85 : rows > level.lanes ? 0.62 : 0.7;
  // The weights of a few tokens come from memory (about 8 bytes a cycle from L2 or L3)
  const double weights = stored * (4 + 2. / rows) / 8;
  const double passes = static_cast<double>((M + kLaneTokens - 1) / kLaneTokens);
  const double compute = stored / rows * (tokens * fma * rows / lanes + 2 * passes);
  const double pack = M <= kUnpackedTokens ? 0 : 1.5 * tokens * facts.cols / lanes;
  return std::max(compute, weights) + pack + tokens * (2 * facts.rows / lanes + 2 * filled.apart) + 1000;
}

}  // namespace

double matmul_token4_cost(const Facts& facts, const Level& level, int64_t M) {
  return cost(facts, level, M, 4, facts.lanes4);
}
double matmul_token8_cost(const Facts& facts, const Level& level, int64_t M) {
  return cost(facts, level, M, 8, facts.lanes8);
}
double matmul_token16_cost(const Facts& facts, const Level& level, int64_t M) {
  return cost(facts, level, M, 16, facts.lanes16);
}

}  // namespace onnxprune
