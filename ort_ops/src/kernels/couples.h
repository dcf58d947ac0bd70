// Which rows of a K-block to multiply together: two rows share the loads of the inputs in the columns both use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace onnxprune {

struct Couple {
  uint32_t rows[2];  // the second has at most as many entries; the same row twice where there is no second
  uint32_t common;   // entries of both rows in one column, or of the longer row only (the other's weight zero)
  uint32_t own;      // entries of two columns, one of each row

  // Common counts come in steps of four, the rest is stored as own entries of two equal columns: with few different
  // counts the sorted couples hardly ever surprise the branch predictor (worth 5 %).
  void round() {
    if (own == 0) return;
    own += common % 4;
    common -= common % 4;
  }
};

// A row as its entries in the block: their number and, in `words` 64-bit words, their columns
struct BlockRow {
  uint32_t row, count;
  const uint64_t* columns;
};

// Couples rows that have many columns in common and about the same count. Rows come longest first.
std::vector<Couple> couple_rows(const std::vector<BlockRow>& rows, size_t words);

}  // namespace onnxprune
