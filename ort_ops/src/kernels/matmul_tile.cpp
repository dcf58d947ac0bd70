#include "matmul_tile.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "../levels.h"
#include "scratch.h"
#include "tasks.h"
#include "tile.h"

namespace onnxprune {
namespace {

// With so many tiles for each processor a task does all of a tile, which then stays in its cache (5 to 14 % faster).
// With fewer, tiles are shared by tasks that do some rows each, and have to be transposed before.
constexpr int64_t kTilesPerThread = 4;
// Tiles transposed before any is multiplied. More tiles are more tasks, but have to come back from a farther cache.
constexpr int64_t kBandFloats = 1 << 18;  // 1 MiB: half of the L2 cache of a server core
constexpr int64_t kBandTiles = 8;
constexpr int64_t kChunkRows = 256;
// How M tokens are cut into tiles
struct Tiling {
  int vectors;     // of a tile
  int64_t tokens;  // of a tile
  int64_t tiles;

  Tiling(int64_t M, int lanes, int widest) {
    const int64_t all = (M + lanes - 1) / lanes;
    const int64_t least = (all + widest - 1) / widest;  // so many tiles at least, of about equal width
    const int64_t even = (all + least - 1) / least;
    vectors = built_width(even);
    tokens = static_cast<int64_t>(vectors) * lanes;
    tiles = (M + tokens - 1) / tokens;
  }

  // The narrowest tile that is built and holds so many vectors
  static int built_width(int64_t wanted) {
    for (int width : {1, 2, 3, 4, 6})
      if (width >= wanted) return width;
    return kMaxTileVectors;
  }
};

class MatMulTile final : public MatMul {
 public:
  MatMulTile(const Csr& weight, const Level& level, int vectors, int64_t block_columns)
      : level_(level), vectors_(vectors), weight_(weight, level.lanes, kChunkRows, block_columns),
        entries_(weight.value.size()) {}

  void run(const float* X, float* Y, int64_t M, const Epilogue& epilogue, const Pool& pool) const override;
  size_t bytes() const override { return sizeof *this + weight_.bytes(); }
  Csr csr() const override { return weight_.csr(); }

 private:
  // One call of run(), or a band of it
  struct Band {
    const float* X;
    float* Y;
    const float* residual;
    const Epilogue& epilogue;
    int64_t tokens;  // in the band
    Tiling tiling;
    float* T;  // [tile][K][P], P of the tile
    float* C;  // [tile][N][P] where the weight is scattered

    int64_t tile_tokens(int64_t tile) const { return std::min(tiling.tokens, tokens - tile * tiling.tokens); }
  };

  int tile_vectors(const Band& band, int64_t tile) const {
    return Tiling::built_width((band.tile_tokens(tile) + level_.lanes - 1) / level_.lanes);
  }
  void run_band(const Band& band, const Pool& pool) const;
  void pack(const Band& band, int64_t tile) const;
  void multiply(const Band& band, int64_t tile, int64_t first_chunk, int64_t last_chunk) const;
  void write(const Band& band, int64_t tile, const float* C, int64_t first_row, int64_t last_row) const;
  void finish(const Band& band, int64_t tile) const;

  const Level& level_;
  const int vectors_;  // of a tile where there are enough tokens
  const TileWeight weight_;
  const size_t entries_;
};

void MatMulTile::run(const float* X, float* Y, int64_t M, const Epilogue& epilogue, const Pool& pool) const {
  if (M <= 0) return;
  const Tiling whole(M, level_.lanes, vectors_);
  const int64_t K = weight_.cols(), N = weight_.rows();
  // Some tiles from token `first` on, with scratch memory of this thread
  const auto band = [&](int64_t first, int64_t tiles) {
    const size_t tokens = static_cast<size_t>(tiles * whole.tokens);
    Tiling tiling = whole;
    tiling.tiles = tiles;
    return Band{X + first * K, Y + first * N, epilogue.residual ? epilogue.residual + first * N : nullptr, epilogue,
                std::min(tiles * whole.tokens, M - first), tiling, scratch(Scratch::tile, static_cast<size_t>(K) * tokens),
                weight_.scattered() ? scratch(Scratch::all_rows, static_cast<size_t>(N) * tokens) : nullptr};
  };
  static const int64_t threads = std::max(1u, std::thread::hardware_concurrency());  // asks the system: 10 us
  if (whole.tiles >= kTilesPerThread * threads) {
    run_tasks(pool, whole.tiles, [&](size_t tile) {
      const Band own = band(static_cast<int64_t>(tile) * whole.tokens, 1);
      pack(own, 0);
      multiply(own, 0, 0, weight_.chunks());
      finish(own, 0);
    });
    return;
  }
  const int64_t most = std::clamp<int64_t>(kBandFloats / std::max<int64_t>(1, K * whole.tokens), 1, kBandTiles);
  for (int64_t tile = 0; tile < whole.tiles; tile += most)
    run_band(band(tile * whole.tokens, std::min(most, whole.tiles - tile)), pool);
}

void MatMulTile::run_band(const Band& band, const Pool& pool) const {
  const int64_t tiles = band.tiling.tiles;
  const int64_t fmas = static_cast<int64_t>(entries_) * band.tiling.vectors;  // of a tile
  const int64_t parts = task_parts(fmas, weight_.chunks());
  run_tasks(pool, tiles, [&](size_t tile) { pack(band, static_cast<int64_t>(tile)); });
  // The part that is last finds the tile's rows complete, and finishes them while they are in its cache
  std::atomic<int64_t> left[kBandTiles];
  for (auto& count : left) count.store(parts, std::memory_order_relaxed);
  run_tasks(pool, tiles * parts, [&](size_t task) {
    const int64_t tile = static_cast<int64_t>(task) / parts, part = static_cast<int64_t>(task) % parts;
    multiply(band, tile, weight_.chunks() * part / parts, weight_.chunks() * (part + 1) / parts);
    if (left[tile].fetch_sub(1, std::memory_order_acq_rel) == 1) finish(band, tile);
  });
}

void MatMulTile::pack(const Band& band, int64_t tile) const {
  const int64_t K = weight_.cols();
  level_.pack_tokens(tile_vectors(band, tile), band.X + tile * band.tiling.tokens * K, K, band.tile_tokens(tile), K,
                     band.T + tile * K * band.tiling.tokens);
}

void MatMulTile::multiply(const Band& band, int64_t tile, int64_t first_chunk, int64_t last_chunk) const {
  const int vectors = tile_vectors(band, tile);
  const int64_t P = static_cast<int64_t>(vectors) * level_.lanes;
  const float* T = band.T + tile * weight_.cols() * band.tiling.tokens;
  float* C = weight_.scattered() ? band.C + tile * weight_.rows() * band.tiling.tokens
                                 : scratch(Scratch::accumulators, static_cast<size_t>(kChunkRows * P));
  for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    for (int64_t b = 0; b < weight_.blocks(); ++b) {
      TileStep step;
      step.first = b == 0;
      level_.tile_accumulate(vectors, weight_.block(chunk, b), T + weight_.block_begin(b) * P, C, P, step);
    }
    if (!weight_.scattered()) write(band, tile, C, weight_.chunk_begin(chunk), weight_.chunk_end(chunk));
  }
}

void MatMulTile::write(const Band& band, int64_t tile, const float* C, int64_t first_row, int64_t last_row) const {
  const int64_t P = static_cast<int64_t>(tile_vectors(band, tile)) * level_.lanes;
  const ptrdiff_t out = tile * band.tiling.tokens * weight_.rows() + first_row;
  level_.write_tokens(C, P, last_row - first_row, band.tile_tokens(tile), band.Y + out, weight_.rows(),
                      band.epilogue.bias ? band.epilogue.bias + first_row : nullptr,
                      band.residual ? band.residual + out : nullptr, band.epilogue);
}

void MatMulTile::finish(const Band& band, int64_t tile) const {
  const int64_t N = weight_.rows();
  if (weight_.scattered()) write(band, tile, band.C + tile * N * band.tiling.tokens, 0, N);
  if (band.epilogue.gamma)
    level_.layer_norm(band.Y + tile * band.tiling.tokens * N, band.tile_tokens(tile), N, band.epilogue);
}

}  // namespace

std::unique_ptr<MatMul> matmul_tile(const Csr& weight, const Level& level) {
  const Shares by_size = shares(weight, equal_rows(weight, 0, weight.rows));
  const double rows = (4 * by_size.quads + 2 * by_size.pairs + by_size.singles) / std::max(1., by_size.total());
  const double density = by_size.total() / static_cast<double>(std::max<int64_t>(1, weight.rows * weight.cols));
  const int vectors = rows < 1.5 ? level.single_vectors : level.group_vectors;
  return std::make_unique<MatMulTile>(weight, level, vectors, tile_columns(vectors, level.lanes, rows, density));
}

double matmul_tile_cost(const Facts& facts, const Level& level, int64_t M) {
  const double vectors = static_cast<double>((M + level.lanes - 1) / level.lanes);
  // Cycles per fma of a vector: 2 a cycle at peak; narrow tiles wait for their entries instead
  const double narrow = vectors == 1 ? 2. : vectors == 2 ? 1.3 : 1.;
  const double fma = narrow * (0.5 * facts.shares.quads + 0.55 * facts.shares.pairs + 0.7 * facts.shares.singles);
  constexpr double kPack = 5., kWrite = 6.;  // per vector, transposed
  return vectors * (fma + kPack * facts.cols + kWrite * facts.rows) + 2000;
}

}  // namespace onnxprune
