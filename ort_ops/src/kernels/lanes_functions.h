// What the kernels that vectorise over output features need from an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel.h"
#include "lanes.h"

namespace onnxprune {

// The inputs of a tile, 24 KiB, stay in L1; long K-blocks make the sums' way to memory and back rare. kLaneColumns is
// the pitch of packed inputs too.
constexpr int64_t kLaneColumns = 512;
constexpr int64_t kLaneTokens = 12;

// One K-block of some groups times `tokens` tokens
struct LaneJob {
  LaneBlock block;
  const LaneGroup* group;
  const uint32_t* row;  // LaneWeight::row()
  int64_t groups;
  int64_t tokens;
  int64_t pitch;        // floats from a token of x to the next
  bool first, last;     // K-block
  float* Y;             // of the first token
  ptrdiff_t ldy;
  const float* residual;  // as Y, or null
  const Epilogue* epilogue;
};

}  // namespace onnxprune
