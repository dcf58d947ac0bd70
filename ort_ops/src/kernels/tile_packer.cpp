#include "tile_packer.h"

#include <algorithm>

namespace onnxprune {

TilePacker::TilePacker(const Csr& weight, int lanes, std::vector<uint16_t>& meta, std::vector<uint16_t>& index,
                       std::vector<float>& value)
    : weight_(weight), scale_(static_cast<uint32_t>(lanes) * 4), meta_(meta), index_(index), value_(value),
      next_(weight.start.begin(), weight.start.end() - 1) {
  index_.reserve(weight.value.size());
  value_.reserve(weight.value.size());
}

TileBlockSize TilePacker::pack(TileGroups& groups, int64_t first_row, int64_t first_column, int64_t end_column,
                               bool all_rows) {
  first_row_ = static_cast<uint32_t>(first_row);
  first_column_ = static_cast<uint32_t>(first_column);
  end_column_ = static_cast<uint32_t>(end_column);
  all_rows_ = all_rows;
  for (auto* sized : {&groups.quads, &groups.pairs, &groups.singles}) count(*sized);
  TileBlockSize size{0, 0};
  for (const TileGroup& quad : groups.quads) {
    if (quad.count == 0 && !all_rows_) break;
    pack_quad(quad);
    ++size.quads;
  }
  for (const Couple& found : couple(groups)) {
    pack_couple(found);
    ++size.couples;
  }
  for (auto* sized : {&groups.quads, &groups.pairs, &groups.singles}) advance(*sized);
  return size;
}

// Longest groups first
void TilePacker::count(std::vector<TileGroup>& groups) const {
  for (TileGroup& group : groups) group.count = end(group.rows[0]) - next_[group.rows[0]];
  std::stable_sort(groups.begin(), groups.end(), [](const TileGroup& a, const TileGroup& b) { return a.count > b.count; });
}

void TilePacker::advance(const std::vector<TileGroup>& groups) {
  for (const TileGroup& group : groups)
    for (uint32_t row : group.rows) next_[row] += group.count;
}

uint32_t TilePacker::end(uint32_t row) const {
  const auto begin = weight_.index.begin();
  return static_cast<uint32_t>(
      std::lower_bound(begin + next_[row], begin + weight_.start[row + 1], end_column_) - begin);
}

std::vector<Couple> TilePacker::couple(const TileGroups& groups) const {
  const size_t words = (end_column_ - first_column_ + 63) / 64;
  std::vector<uint64_t> columns(groups.singles.size() * words);
  std::vector<BlockRow> rows;
  for (const TileGroup& single : groups.singles) {
    if (single.count == 0 && !all_rows_) break;
    uint64_t* bits = columns.data() + rows.size() * words;
    rows.push_back({single.rows[0], single.count, bits});
    for (uint32_t i = 0; i < single.count; ++i) {
      const uint32_t k = weight_.index[next_[single.rows[0]] + i] - first_column_;
      bits[k / 64] |= uint64_t{1} << k % 64;
    }
  }
  std::vector<Couple> couples = couple_rows(rows, words);
  for (const TileGroup& pair : groups.pairs)
    if (pair.count || all_rows_) couples.push_back({{pair.rows[0], pair.rows[1]}, pair.count, 0});
  for (Couple& found : couples) found.round();
  std::stable_sort(couples.begin(), couples.end(), [](const Couple& a, const Couple& b) {
    return a.common != b.common ? a.common > b.common : a.own > b.own;
  });
  return couples;
}

void TilePacker::head(std::initializer_list<uint32_t> counts, const uint32_t* rows, int size) {
  for (uint32_t count : counts) meta_.push_back(static_cast<uint16_t>(count));
  for (int r = 0; r < size; ++r) meta_.push_back(static_cast<uint16_t>(rows[r] - first_row_));
}

void TilePacker::pack_quad(const TileGroup& quad) {
  head({quad.count}, quad.rows.data(), 4);
  for (uint32_t i = 0; i < quad.count; ++i) {
    index_.push_back(static_cast<uint16_t>((weight_.index[next_[quad.rows[0]] + i] - first_column_) * scale_));
    for (uint32_t row : quad.rows) value_.push_back(weight_.value[next_[row] + i]);
  }
}

void TilePacker::pack_couple(const Couple& couple) {
  head({couple.common, couple.own}, couple.rows, 2);
  list_entries(couple);
  for (size_t e = 0; e < entries_.size(); ++e)
    for (int r = 0; r < (e < couple.common ? 1 : 2); ++r)
      index_.push_back(static_cast<uint16_t>(entries_[e].columns[r] * scale_));
  for (const Entry& entry : entries_) value_.insert(value_.end(), entry.values, entry.values + 2);
}

// entries_: those of common columns first
void TilePacker::list_entries(const Couple& couple) {
  const uint32_t* rows = couple.rows;
  const uint32_t ends[2] = {end(rows[0]), rows[0] == rows[1] ? next_[rows[1]] : end(rows[1])};
  entries_.clear();
  for (auto& own : own_) own.clear();
  uint32_t i = next_[rows[0]], j = next_[rows[1]];
  while (i < ends[0] || j < ends[1]) {
    const uint32_t a = i < ends[0] ? weight_.index[i] : end_column_, b = j < ends[1] ? weight_.index[j] : end_column_;
    if (a == b) add_entry(i++, j++);
    else if (a < b) own_[0].push_back(i++);
    else own_[1].push_back(j++);
  }
  // What the longer row has left joins the common columns, the other's weight zero
  for (; own_[0].size() > own_[1].size(); own_[0].pop_back()) {
    add_entry(own_[0].back(), own_[0].back());
    entries_.back().values[1] = 0.f;
  }
  for (size_t e = 0; e < own_[0].size(); ++e) add_entry(own_[0][e], own_[1][e]);
}

void TilePacker::add_entry(uint32_t first, uint32_t second) {
  entries_.push_back({{weight_.index[first] - first_column_, weight_.index[second] - first_column_},
                      {weight_.value[first], weight_.value[second]}});
}

}  // namespace onnxprune
