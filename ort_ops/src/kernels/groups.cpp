#include "groups.h"

#include <algorithm>
#include <unordered_map>

#include "kernel.h"

namespace onnxprune {
namespace {

uint64_t support_hash(const Csr& weight, int64_t row) {
  uint64_t hash = 0x9e3779b97f4a7c15u;
  for (uint32_t i = weight.start[row]; i < weight.start[row + 1]; ++i) {
    hash = (hash ^ weight.index[i]) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

bool same_support(const Csr& weight, int64_t a, int64_t b) {
  const auto begin = weight.index.begin();
  return std::equal(begin + weight.start[a], begin + weight.start[a + 1], begin + weight.start[b],
                    begin + weight.start[b + 1]);
}

}  // namespace

std::vector<std::vector<uint32_t>> equal_rows(const Csr& weight, int64_t first, int64_t last) {
  std::vector<std::vector<uint32_t>> sets;
  std::unordered_map<uint64_t, std::vector<size_t>> seen;  // hash -> sets; a list, for hashes may collide
  for (int64_t row = first; row < last; ++row) {
    std::vector<size_t>& candidates = seen[support_hash(weight, row)];
    const auto found = std::find_if(candidates.begin(), candidates.end(),
                                    [&](size_t set) { return same_support(weight, sets[set][0], row); });
    if (found != candidates.end()) {
      sets[*found].push_back(static_cast<uint32_t>(row));
    } else {
      candidates.push_back(sets.size());
      sets.push_back({static_cast<uint32_t>(row)});
    }
  }
  return sets;
}

std::vector<std::vector<uint32_t>> groups_of(const std::vector<std::vector<uint32_t>>& sets, uint32_t size) {
  std::vector<std::vector<uint32_t>> groups;
  for (const auto& set : sets) {
    size_t done = 0;
    for (uint32_t take = size; take > 0; take /= 2)
      for (; set.size() - done >= take; done += take)
        groups.emplace_back(set.begin() + done, set.begin() + done + take);
  }
  return groups;
}

Shares shares(const Csr& weight, const std::vector<std::vector<uint32_t>>& sets) {
  Shares sum;
  for (const auto& set : sets) {
    const double entries = weight.start[set[0] + 1] - weight.start[set[0]];
    sum.quads += entries * static_cast<double>(set.size() & ~size_t{3});
    sum.pairs += entries * static_cast<double>(set.size() & 2);
    sum.singles += entries * static_cast<double>(set.size() & 1);
  }
  return sum;
}

}  // namespace onnxprune
