// What the bitmap kernel needs from an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel.h"

namespace onnxprune {

constexpr int kBitmapColumns = 16;  // of one mask
constexpr int kBitmapTokens = 4;    // most of a job

// Rows [begin, end) of a weight whose non-zeros are marked by a mask for every 16 columns
struct BitmapJob {
  const uint16_t* mask;   // [row][masks]
  int64_t masks;          // of a row
  const float* value;     // of all rows; 16 floats behind the last one can be read
  const uint32_t* start;  // per row, into value
  int64_t begin, end;
  const float* x;         // [token][16 * masks], zero where the weight has no column
  int64_t tokens;         // 1 .. kBitmapTokens
  float* Y;               // of the first token and row 0
  ptrdiff_t ldy;
  const float* residual;  // as Y, or null
  const Epilogue* epilogue;
};

}  // namespace onnxprune
