// Writes the blocks of a TileWeight, K-block after K-block of a chunk of rows.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "couples.h"
#include "kernel.h"
#include "tile.h"

namespace onnxprune {

// Rows of a common support and their entries in the current block, which start at the packer's next entry of each row
struct TileGroup {
  std::vector<uint32_t> rows;
  uint32_t count = 0;
};

// The groups of a chunk by size: 4, 2, 1
struct TileGroups {
  std::vector<TileGroup> quads, pairs, singles;

  void add(const std::vector<uint32_t>& rows) {
    (rows.size() == 4 ? quads : rows.size() == 2 ? pairs : singles).push_back({rows, 0});
  }
};

class TilePacker {
 public:
  TilePacker(const Csr& weight, int lanes, std::vector<uint16_t>& meta, std::vector<uint16_t>& index,
             std::vector<float>& value);

  // Appends columns [first_column, end_column) of a chunk. Blocks of a chunk come in order; groups without entries
  // are left out unless `all_rows`. Rows are written as counted from first_row.
  TileBlockSize pack(TileGroups& groups, int64_t first_row, int64_t first_column, int64_t end_column, bool all_rows);

 private:
  struct Entry {
    uint32_t columns[2];
    float values[2];
  };

  void count(std::vector<TileGroup>& groups) const;
  void advance(const std::vector<TileGroup>& groups);
  uint32_t end(uint32_t row) const;
  std::vector<Couple> couple(const TileGroups& groups) const;
  void pack_quad(const TileGroup& quad);
  void pack_couple(const Couple& couple);
  void list_entries(const Couple& couple);
  void add_entry(uint32_t first, uint32_t second);
  void head(std::initializer_list<uint32_t> counts, const uint32_t* rows, int size);

  const Csr& weight_;
  const uint32_t scale_;
  std::vector<uint16_t>& meta_;
  std::vector<uint16_t>& index_;
  std::vector<float>& value_;
  std::vector<uint32_t> next_;   // per row its first entry not packed yet
  std::vector<Entry> entries_;   // of the couple at hand
  std::vector<uint32_t> own_[2];
  uint32_t first_row_ = 0, first_column_ = 0, end_column_ = 0;
  bool all_rows_ = false;
};

}  // namespace onnxprune
