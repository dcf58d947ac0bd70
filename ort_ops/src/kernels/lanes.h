// Weights of the kernels that vectorise over output features: groups of `lanes` rows with a common support, the
// weights of one column side by side. A group of fewer rows is filled up with zeros, so any weight can be stored,
// but only blocks of 8 or 16 rows are worth it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace onnxprune {

struct Csr;

// One K-block of a range of groups, group after group.
// count: entries of each group. index: column in the block. value: `lanes` floats per entry.
struct LaneBlock {
  const uint16_t* count;
  const uint16_t* index;
  const float* value;
};

// Where a group's outputs go
struct LaneGroup {
  uint32_t first;       // into LaneWeight::rows()
  uint16_t size;        // rows, at most lanes
  uint16_t neighbours;  // 1: rows first, first + 1, ...: written as a vector
};

// Groups of `lanes` rows that LaneWeight would make of the weight
int64_t lane_groups(const Csr& weight, int lanes);

class LaneWeight {
 public:
  // block_columns <= 65535. slice_groups: groups of a task, the unit in which blocks are stored.
  LaneWeight(const Csr& weight, int lanes, int64_t block_columns, int64_t slice_groups);

  int lanes() const { return lanes_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t groups() const { return static_cast<int64_t>(groups_.size()); }
  int64_t slices() const { return (groups() + slice_groups_ - 1) / slice_groups_; }
  int64_t slice_begin(int64_t slice) const { return slice * slice_groups_; }
  int64_t slice_end(int64_t slice) const { return slice_begin(slice + 1) < groups() ? slice_begin(slice + 1) : groups(); }
  int64_t blocks() const { return blocks_; }
  int64_t block_columns() const { return block_columns_; }
  LaneBlock block(int64_t slice, int64_t block) const;
  const LaneGroup* group(int64_t g) const { return groups_.data() + g; }
  const uint32_t* row() const { return row_.data(); }
  size_t bytes() const;
  Csr csr() const;  // the weight again

 private:
  struct Where {
    size_t count, index, value;
  };
  int lanes_;
  int64_t rows_, cols_, block_columns_, slice_groups_, blocks_;
  std::vector<LaneGroup> groups_;
  std::vector<uint32_t> row_;  // of each group's lanes
  std::vector<Where> where_;   // [slice][block]
  std::vector<uint16_t> count_, index_;
  std::vector<float> value_;
};

}  // namespace onnxprune
