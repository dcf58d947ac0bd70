// Rows of a sparse weight that have the same support (the same columns), whatever pattern made them so.
#pragma once

#include <cstdint>
#include <vector>

namespace onnxprune {

struct Csr;

// Rows first .. last - 1 of the weight sorted into sets of equal support: each set in order of its rows, the sets
// in order of their first rows, so that neighbours in the output stay neighbours. Every row is in one set.
std::vector<std::vector<uint32_t>> equal_rows(const Csr& weight, int64_t first, int64_t last);

// Each set cut into runs of at most `size` rows, size a power of two: full groups first, then the rest of the set in
// groups of decreasing powers of two (7 rows at size 4: 4, 2, 1). Sets smaller than `size` are cut the same way.
std::vector<std::vector<uint32_t>> groups_of(const std::vector<std::vector<uint32_t>>& sets, uint32_t size);

// How many entries of a weight lie in groups of 4, 2 and 1 rows, sets cut as groups_of(sets, 4)
struct Shares {
  double quads = 0, pairs = 0, singles = 0;

  double total() const { return quads + pairs + singles; }
};
Shares shares(const Csr& weight, const std::vector<std::vector<uint32_t>>& sets);

}  // namespace onnxprune
