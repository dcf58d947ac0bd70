// Where each element of a weight and of a tensor-core fragment is: all index arithmetic of the kernels.
//
// Compiled for the device by the kernels and for the host by tests/kernels, which compare it with the numpy
// layouts of onnxprune/storage/device. Fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point
// type" and "... for sparse mma.m16n8k32 with .f16 / .bf16 type". A is the weight, so D = W X^T.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ONNXPRUNE_BOTH __host__ __device__ __forceinline__
#else
#define ONNXPRUNE_BOTH inline
#endif

namespace onnxprune::layout {

constexpr int kStrip = 16;           // rows of W that one warp multiplies
constexpr int kGroup = 128;          // columns that it takes at a time
constexpr int kSteps = kGroup / 16;  // mma.m16n8k16 in a group

ONNXPRUNE_BOTH int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ONNXPRUNE_BOTH int popcount(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __popc(x);
#else
  return __builtin_popcount(x);
#endif
}

// Element i (0..7) of a lane's A fragment of mma.m16n8k16: row and column in the 16x16 tile
ONNXPRUNE_BOTH int a_row(int lane, int i) { return lane / 4 + 8 * ((i >> 1) & 1); }
ONNXPRUNE_BOTH int a_col(int lane, int i) { return lane % 4 * 2 + (i & 1) + 8 * (i >> 2); }
// First of the two k of register r of a lane's B fragment (mma.m16n8k16: r < 2; mma.sp.m16n8k32: r < 4), and its n
ONNXPRUNE_BOTH int b_k(int lane, int r) { return lane % 4 * 2 + 8 * r; }
ONNXPRUNE_BOTH int b_n(int lane) { return lane / 4; }
// Of pixels, which lie as k x n, `ldmatrix.trans` makes the same registers of four 8x8 matrices: 16 k of two tiles of n,
// or 32 k of one. Which row of 8 the lane names: its k, and its tile.
ONNXPRUNE_BOTH int pixel_k16(int lane) { return lane % 16; }
ONNXPRUNE_BOTH int pixel_tile16(int lane) { return lane / 16; }
ONNXPRUNE_BOTH int pixel_k32(int lane) { return lane; }
// Element i (0..3) of a lane's D fragment: row (of W) and column (row of X)
ONNXPRUNE_BOTH int d_row(int lane, int i) { return lane / 4 + 8 * (i >> 1); }
ONNXPRUNE_BOTH int d_col(int lane, int i) { return lane % 4 * 2 + (i & 1); }

// --- BitmapTile: a 16x128 group is 32 tiles of 8x8, each 64 bits; tile 4 * step + r is what register r of the A
// fragment of that step holds. Bit 8 * row + column of a tile, so a lane's pair is bits 2 * lane, 2 * lane + 1.
ONNXPRUNE_BOTH int tile_row(int tile) { return 8 * (tile & 1); }
ONNXPRUNE_BOTH int tile_col(int tile) { return 16 * (tile >> 2) + 8 * ((tile >> 1) & 1); }

// Half a tile (lanes 0-15: low 32 bits) as the warp shares it: its bits, and how many values of the group precede it
struct HalfTile {
  uint32_t bits, base;
};
ONNXPRUNE_BOTH int half_of(int lane) { return lane >> 4; }
ONNXPRUNE_BOTH int pair_shift(int lane) { return 2 * (lane & 15); }
// Position in the group's values of the lane's first weight, if it has one
ONNXPRUNE_BOTH uint32_t value_position(HalfTile half, int lane) {
  return half.base + popcount(half.bits & ((1u << pair_shift(lane)) - 1));
}

// --- NMTile: a 16x128 group is 4 tiles of 16x32. Values: per tile and lane 8, the A fragment of mma.sp.m16n8k32.
// Metadata: per two tiles and lane 32 bits; selector 0 reads lanes 0, 1 of each four, selector 1 lanes 2, 3.
ONNXPRUNE_BOTH int nm_row(int lane, int i) { return lane / 4 + 8 * ((i >> 1) & 1); }
// The four columns that values i and i ^ 1 come from, counted in the 16x32 tile
ONNXPRUNE_BOTH int nm_quad(int lane, int i) { return lane % 4 + 4 * (i >> 2); }
// Which lane of the warp holds the two positions of that quad, and where in its 32 bits
ONNXPRUNE_BOTH int nm_meta_lane(int lane, int i, int selector) { return lane / 4 * 4 + 2 * selector + (i >> 2); }
ONNXPRUNE_BOTH int nm_meta_shift(int lane, int i) { return 16 * ((i >> 1) & 1) + lane % 4 * 4 + 2 * (i & 1); }
// The other way round: which lane holds the two values of four columns (0..7) in a row of the tile, and the first's i
ONNXPRUNE_BOTH int nm_lane(int row, int quad) { return row % 8 * 4 + quad % 4; }
ONNXPRUNE_BOTH int nm_first(int row, int quad) { return quad / 4 * 4 + row / 8 * 2; }
// Two ordered positions below 4 in 4 bits
ONNXPRUNE_BOTH bool nm_ordered(uint32_t nibble) { return (nibble & 3) < (nibble >> 2); }

// --- BlockSparse: a block of block_rows x 64 as strips of 16 rows x 4 steps of 16 columns x lanes x 8 (A fragments)
constexpr int kBlockCols = 64;
ONNXPRUNE_BOTH int block_offset(int strip, int step, int lane) { return ((strip * 4 + step) * 32 + lane) * 8; }

// --- Delta: entry j (0..7) of 32 bits; a step is 1 to 16 columns ahead of the entry before
ONNXPRUNE_BOTH int delta_step(uint32_t word, int j) { return static_cast<int>(word >> (4 * j) & 15) + 1; }
// Sum of the eight
ONNXPRUNE_BOTH int delta_sum(uint32_t word) {
  const uint32_t pairs = (word & 0x0f0f0f0fu) + (word >> 4 & 0x0f0f0f0fu);
  return static_cast<int>(pairs * 0x01010101u >> 24) + 8;
}
constexpr int kDeltaPad = 8;  // columns behind the last that padding entries may reach

}  // namespace onnxprune::layout
