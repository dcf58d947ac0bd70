#include "lanes.h"

#include <algorithm>

#include "groups.h"
#include "kernel.h"

namespace onnxprune {
namespace {

// Runs of at most `lanes` rows of each set. Neighbours first: sets come in order of their rows.
std::vector<std::vector<uint32_t>> runs(const Csr& weight, int lanes) {
  std::vector<std::vector<uint32_t>> groups;
  for (const auto& set : equal_rows(weight, 0, weight.rows))
    for (size_t i = 0; i < set.size(); i += static_cast<size_t>(lanes))
      groups.emplace_back(set.begin() + static_cast<ptrdiff_t>(i),
                          set.begin() + static_cast<ptrdiff_t>(std::min(set.size(), i + static_cast<size_t>(lanes))));
  return groups;
}

}  // namespace

int64_t lane_groups(const Csr& weight, int lanes) { return static_cast<int64_t>(runs(weight, lanes).size()); }

LaneWeight::LaneWeight(const Csr& weight, int lanes, int64_t block_columns, int64_t slice_groups)
    : lanes_(lanes), rows_(weight.rows), cols_(weight.cols), block_columns_(block_columns), slice_groups_(slice_groups),
      blocks_(std::max<int64_t>(1, (weight.cols + block_columns - 1) / block_columns)) {
  for (const auto& rows : runs(weight, lanes)) {
    const bool neighbours = rows.back() - rows.front() + 1 == rows.size();
    groups_.push_back({static_cast<uint32_t>(row_.size()), static_cast<uint16_t>(rows.size()), neighbours});
    row_.insert(row_.end(), rows.begin(), rows.end());
  }
  std::vector<uint32_t> next(weight.start.begin(), weight.start.end() - 1);
  for (int64_t slice = 0; slice < slices(); ++slice)
    for (int64_t block = 0; block < blocks_; ++block) {
      where_.push_back({count_.size(), index_.size(), value_.size()});
      for (int64_t g = slice_begin(slice); g < slice_end(slice); ++g) {
        const uint32_t* rows = row_.data() + groups_[g].first;
        uint32_t count = 0;
        for (; next[rows[0]] < weight.start[rows[0] + 1]; ++count) {
          const int64_t column = weight.index[next[rows[0]]] - block * block_columns;
          if (column >= block_columns) break;
          index_.push_back(static_cast<uint16_t>(column));
          for (int lane = 0; lane < lanes; ++lane)
            value_.push_back(lane < groups_[g].size ? weight.value[next[rows[lane]]++] : 0.f);
        }
        count_.push_back(static_cast<uint16_t>(count));
      }
    }
  index_.shrink_to_fit();
  value_.shrink_to_fit();
}

LaneBlock LaneWeight::block(int64_t slice, int64_t block) const {
  const Where& where = where_[slice * blocks_ + block];
  return {count_.data() + where.count, index_.data() + where.index, value_.data() + where.value};
}

Csr LaneWeight::csr() const {
  Csr out{rows_, cols_, std::vector<uint32_t>(static_cast<size_t>(rows_) + 1), {}, {}};
  std::vector<std::vector<std::pair<uint32_t, float>>> rows(static_cast<size_t>(rows_));
  for (int64_t slice = 0; slice < slices(); ++slice)
    for (int64_t b = 0; b < blocks_; ++b) {
      LaneBlock part = block(slice, b);
      for (int64_t g = slice_begin(slice); g < slice_end(slice); ++g)
        for (int i = 0; i < part.count[g - slice_begin(slice)]; ++i, ++part.index, part.value += lanes_)
          for (int lane = 0; lane < groups_[g].size; ++lane)
            rows[row_[groups_[g].first + lane]].emplace_back(b * block_columns_ + *part.index, part.value[lane]);
    }
  for (int64_t r = 0; r < rows_; ++r) {
    for (const auto& [column, value] : rows[r]) {
      out.index.push_back(column);
      out.value.push_back(value);
    }
    out.start[r + 1] = static_cast<uint32_t>(out.index.size());
  }
  return out;
}

size_t LaneWeight::bytes() const {
  return sizeof *this + groups_.size() * sizeof(LaneGroup) + row_.size() * sizeof(uint32_t) +
         where_.size() * sizeof(Where) + (count_.size() + index_.size()) * sizeof(uint16_t) + value_.size() * sizeof(float);
}

}  // namespace onnxprune
