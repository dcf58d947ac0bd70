#include "tile.h"

#include <algorithm>

#include "../levels.h"
#include "groups.h"
#include "kernel.h"
#include "tile_packer.h"

namespace onnxprune {
namespace {

std::vector<TileGroups> chunks_of_neighbours(const Csr& weight, int64_t chunk_rows) {
  std::vector<TileGroups> chunks;
  for (int64_t first = 0; first < weight.rows; first += chunk_rows) {
    chunks.emplace_back();
    for (const auto& group : groups_of(equal_rows(weight, first, std::min(weight.rows, first + chunk_rows)), 4))
      chunks.back().add(group);
  }
  return chunks;
}

std::vector<TileGroups> chunks_from_anywhere(const Csr& weight, int64_t chunk_rows) {
  std::vector<TileGroups> chunks(static_cast<size_t>((weight.rows + chunk_rows - 1) / chunk_rows));
  int64_t rows = 0;
  for (const auto& group : groups_of(equal_rows(weight, 0, weight.rows), 4)) {
    chunks[static_cast<size_t>(rows / chunk_rows)].add(group);
    rows += static_cast<int64_t>(group.size());
  }
  return chunks;
}

// Time of the multiplications, in fmas at peak: a row of four runs at it, a row of its own at about two thirds
double cost(const Csr& weight, const std::vector<TileGroups>& chunks) {
  const auto entries = [&](const std::vector<TileGroup>& groups) {
    double sum = 0;
    for (const TileGroup& group : groups)
      sum += static_cast<double>(group.rows.size() * (weight.start[group.rows[0] + 1] - weight.start[group.rows[0]]));
    return sum;
  };
  double sum = 0;
  for (const TileGroups& chunk : chunks) sum += entries(chunk.quads) + 1.1 * entries(chunk.pairs) + 1.5 * entries(chunk.singles);
  return sum;
}

// Rows from anywhere need a C of all rows, so they have to earn it
constexpr double kScatterGain = 0.97;
constexpr int64_t kScatterRows = 32768;  // rows are stored in 16 bits

}  // namespace

TileWeight::TileWeight(const Csr& weight, int lanes, int64_t chunk_rows, int64_t block_columns, bool scatter)
    : lanes_(lanes), rows_(weight.rows), cols_(weight.cols), chunk_rows_(chunk_rows), block_columns_(block_columns),
      blocks_(std::max<int64_t>(1, (weight.cols + block_columns - 1) / block_columns)) {
  std::vector<TileGroups> groups = chunks_of_neighbours(weight, chunk_rows);
  if (scatter && groups.size() > 1 && weight.rows <= kScatterRows) {
    std::vector<TileGroups> anywhere = chunks_from_anywhere(weight, chunk_rows);
    scattered_ = cost(weight, anywhere) < kScatterGain * cost(weight, groups);
    if (scattered_) groups = std::move(anywhere);
  }
  TilePacker packer(weight, lanes, meta_, index_, value_);
  for (int64_t chunk = 0; chunk < chunks(); ++chunk)
    for (int64_t block = 0; block < blocks_; ++block) {
      Where where{meta_.size(), index_.size(), value_.size(), {0, 0}};
      where.groups = packer.pack(groups[static_cast<size_t>(chunk)], row_base(chunk), block_begin(block),
                                 block_end(block), block == 0 || block + 1 == blocks_);
      where_.push_back(where);
    }
  meta_.shrink_to_fit();
  index_.shrink_to_fit();
  value_.shrink_to_fit();
}

int64_t tile_columns(int vectors, int lanes, double mean_rows, double density) {
  // Measured at densities 0.1, 0.3, 0.5 with L1 of 48 KiB; each step is worth 3 to 7 %
  const double share = mean_rows < 1.5 ? (density < 0.2 ? 1. : 2. / 3) : (density < 0.2 ? 4. / 3 : 1.);
  const auto columns = static_cast<int64_t>(share * static_cast<double>(l1_bytes()) / (vectors * lanes * 4.));
  constexpr int64_t kMost = 256;  // no gain beyond, and C is read and written rarely enough
  return std::clamp<int64_t>(columns / 32 * 32, 64, kMost);
}

TileBlock TileWeight::block(int64_t chunk, int64_t block) const {
  const Where& where = where_[chunk * blocks_ + block];
  return {meta_.data() + where.meta, index_.data() + where.index, value_.data() + where.value,
          where.groups.quads, where.groups.couples};
}

namespace {

struct Placed {
  uint32_t column;
  float value;
};

// Appends `count` entries of R rows of a common column, or each of its own column, to the rows
template <int R>
void unpack(int count, const uint16_t* row, const uint16_t*& index, const float*& value, bool own, uint32_t column,
            uint32_t scale, std::vector<Placed>* rows) {
  for (int i = 0; i < count; ++i, index += own ? R : 1, value += R)
    for (int r = 0; r < R; ++r)
      if (R == 4 || value[r] != 0.f)  // a couple's zeros fill up the shorter row
        rows[row[r]].push_back({column + index[own ? r : 0] / scale, value[r]});
}

}  // namespace

Csr TileWeight::csr() const {
  std::vector<std::vector<Placed>> all(static_cast<size_t>(rows_));
  const uint32_t scale = static_cast<uint32_t>(lanes_) * 4;
  for (int64_t chunk = 0; chunk < chunks(); ++chunk)
    for (int64_t b = 0; b < blocks_; ++b) {
      TileBlock part = block(chunk, b);
      const auto column = static_cast<uint32_t>(block_begin(b));
      std::vector<Placed>* rows = all.data() + row_base(chunk);
      for (uint32_t g = 0; g < part.quads; ++g, part.meta += 5)
        unpack<4>(part.meta[0], part.meta + 1, part.index, part.value, false, column, scale, rows);
      for (uint32_t g = 0; g < part.couples; ++g, part.meta += 4) {
        unpack<2>(part.meta[0], part.meta + 2, part.index, part.value, false, column, scale, rows);
        unpack<2>(part.meta[1], part.meta + 2, part.index, part.value, true, column, scale, rows);
      }
    }
  Csr out{rows_, cols_, {0}, {}, {}};
  for (auto& row : all) {
    std::sort(row.begin(), row.end(), [](const Placed& a, const Placed& b) { return a.column < b.column; });
    for (const Placed& entry : row) {
      out.index.push_back(entry.column);
      out.value.push_back(entry.value);
    }
    out.start.push_back(static_cast<uint32_t>(out.index.size()));
  }
  return out;
}

std::vector<uint32_t> TileWeight::chunk_rows(int64_t chunk) const {
  const TileBlock first = block(chunk, 0);
  const auto base = static_cast<uint32_t>(row_base(chunk));
  std::vector<uint32_t> rows;
  const uint16_t* meta = first.meta;
  for (uint32_t g = 0; g < first.quads; ++g, meta += 5)
    for (int r = 1; r <= 4; ++r) rows.push_back(base + meta[r]);
  for (uint32_t g = 0; g < first.couples; ++g, meta += 4) {
    rows.push_back(base + meta[2]);
    if (meta[3] != meta[2]) rows.push_back(base + meta[3]);
  }
  return rows;
}

size_t TileWeight::bytes() const {
  return where_.size() * sizeof(Where) + (meta_.size() + index_.size()) * sizeof(uint16_t) + value_.size() * sizeof(float);
}

}  // namespace onnxprune
