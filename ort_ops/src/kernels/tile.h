// The shared core of the tile kernels: sparse weight times a small dense tile that stays in the L1 cache.
//
// A tile is float T[K][P], K-major: row k holds input column k at P = vectors * lanes positions (tokens of
// a MatMul, pixels of a convolution), contiguous, 64-byte aligned, zero where there is no position. A kernel
// brings its own packer, which fills the tile for one K-block after another, and calls, for each chunk of
// output rows,
//
//   for each K-block b:  level.tile_accumulate(vectors, weight.block(chunk, b), T_b, C, ldc, step)
//
// which adds W[chunk rows, block columns] T_b into C[row][P] (row counted from the chunk's first). C may be
// scratch, or the output itself where P positions are contiguous there (NCHW: ldc = height * width).
// Every row of the chunk is written in the first and in the last block, so no one has to clear C.
//
// A chunk is a range of rows, unless rows of equal support lie far apart: then it is any set of rows, and rows are
// counted from the weight's first (TileWeight::scattered).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace onnxprune {

struct Csr;

struct TileBlockSize {
  uint32_t quads, couples;
};

// One K-block of one chunk of rows: quads of rows with a common support, then couples of the other rows, chosen to have
// many columns in common. Both are sorted by their counts, so that the exits of loops are predicted.
// meta: of a quad its entry count and 4 rows; of a couple the counts of its common entries and of its own ones, and
// 2 rows. Rows count from TileWeight::row_base(). An odd row is coupled with itself, the second weights zero.
// index: per entry `column in the block * lanes * sizeof(float)`, so that an address is one shift away at any width;
// an own entry of a couple has two, of each row's own column.
// value: per entry the weights of the group's rows (4 or 2 floats).
struct TileBlock {
  const uint16_t* meta;
  const uint16_t* index;
  const float* value;
  uint32_t quads, couples;
};

// What happens to C at this block. Default: C += W T.
struct TileStep {
  bool first = false;               // C = bias + residual + W T instead
  const float* bias = nullptr;      // of the chunk's rows, or null for zero; read when first
  const float* residual = nullptr;  // laid out as C, or null; read when first, before C is written: it may be C
  bool clamp = false;           // last block: C = min(max(C, low), high), so Relu and Clip cost no pass
  float low = 0.f, high = 0.f;
};

// Tiles of 1, 2, 3, 4, 6 and 8 vectors are built; tile_vectors() of the level says which is best. The wide ones, of 12,
// 16, 24 and 32, are for weights of few columns whose output rows lie in pages of their own: long runs in each.
constexpr int kMaxTileVectors = 8;

// Height of a tile of `vectors` vectors: what L1 holds of it beside the sums and weights that pass through. Single
// rows read the tile once per entry and want it well inside L1, groups of four read it a quarter as often; the fewer
// entries a row has, the more it gains from longer runs. density: of the weight.
int64_t tile_columns(int vectors, int lanes, double mean_rows, double density = 0.3);

// A sparse weight in the order in which tile_accumulate reads it; serves tiles of any width.
class TileWeight {
 public:
  TileWeight() = default;
  // Rows of equal support are found here (groups.h), wherever they are if `scatter` allows it. lanes: of the level that
  // will run it. chunk_rows <= 32768: the unit of work of a task; block_columns <= 1024: the height of a tile, which
  // times P floats should fit in L1.
  TileWeight(const Csr& weight, int lanes, int64_t chunk_rows, int64_t block_columns, bool scatter = true);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t chunks() const { return (rows_ + chunk_rows_ - 1) / chunk_rows_; }
  // Whether chunks are sets of rows from anywhere; else chunk_begin() and chunk_end() bound their ranges
  bool scattered() const { return scattered_; }
  int64_t chunk_begin(int64_t chunk) const { return chunk * chunk_rows_; }
  int64_t chunk_end(int64_t chunk) const { return chunk_begin(chunk + 1) < rows_ ? chunk_begin(chunk + 1) : rows_; }
  int64_t row_base(int64_t chunk) const { return scattered_ ? 0 : chunk_begin(chunk); }
  int64_t blocks() const { return blocks_; }
  int64_t block_begin(int64_t block) const { return block * block_columns_; }
  int64_t block_end(int64_t block) const { return block_begin(block + 1) < cols_ ? block_begin(block + 1) : cols_; }
  int64_t block_columns() const { return block_columns_; }
  TileBlock block(int64_t chunk, int64_t block) const;
  std::vector<uint32_t> chunk_rows(int64_t chunk) const;  // all rows that the chunk holds
  size_t bytes() const;
  Csr csr() const;  // the weight again

 private:
  struct Where {  // of one TileBlock in the arrays below
    size_t meta, index, value;
    TileBlockSize groups;
  };
  int lanes_ = 1;
  int64_t rows_ = 0, cols_ = 0, chunk_rows_ = 1, block_columns_ = 1, blocks_ = 0;
  bool scattered_ = false;
  std::vector<Where> where_;  // [chunk][block]
  std::vector<uint16_t> meta_, index_;
  std::vector<float> value_;
};

}  // namespace onnxprune
