#include "couples.h"

#include <algorithm>
#include <limits>

namespace onnxprune {
namespace {

// Partners looked at for a row, those nearest in count. More of them gain little and take time when a model loads.
constexpr size_t kCandidates = 128;
// An entry that only the longer row has costs four times what an entry in a common column saves
constexpr int kExtraCost = 4;

// Without the processor's instruction: this file is compiled for all of them
int bit_count(uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  return static_cast<int>(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
}

int common_columns(const BlockRow& a, const BlockRow& b, size_t words) {
  int common = 0;
  for (size_t w = 0; w < words; ++w) common += bit_count(a.columns[w] & b.columns[w]);
  return common;
}

}  // namespace

std::vector<Couple> couple_rows(const std::vector<BlockRow>& rows, size_t words) {
  std::vector<Couple> couples;
  std::vector<BlockRow> left(rows.rbegin(), rows.rend());  // without a partner; the longest come off the back
  while (left.size() > 1) {
    const BlockRow row = left.back();
    left.pop_back();
    size_t best = 0;
    int best_score = std::numeric_limits<int>::min(), best_common = 0;
    for (size_t i = left.size(); i-- > left.size() - std::min(kCandidates, left.size());) {
      const int common = common_columns(row, left[i], words);
      const int score = common - kExtraCost * static_cast<int>(row.count - left[i].count);
      if (score > best_score) best = i, best_score = score, best_common = common;
    }
    const BlockRow partner = left[best];
    const auto common = static_cast<uint32_t>(best_common);
    couples.push_back({{row.row, partner.row}, common + row.count - partner.count, partner.count - common});
    left.erase(left.begin() + static_cast<ptrdiff_t>(best));
  }
  if (!left.empty()) couples.push_back({{left[0].row, left[0].row}, left[0].count, 0});
  return couples;
}

}  // namespace onnxprune
