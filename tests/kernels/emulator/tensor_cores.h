// mma.m16n8k16, mma.sp.m16n8k32 and ldmatrix.x4.trans as the PTX ISA describes them, from the fragments of 32 lanes.
#pragma once

#include "cuda/layout.h"
#include "emulator.h"

namespace onnxprune {

// Hands the lane's operands to its warp, calls compute(warp), and waits for the others
template <class Compute>
void with_operands(const uint32_t* a, const uint32_t* b, int registers, uint32_t meta, const Compute& compute) {
  emulator::Warp& warp = *emulator::current->warp;
  const int lane = emulator::current->lane;
  for (int r = 0; r < 4; ++r) warp.a[lane][r] = a[r];
  for (int r = 0; r < registers; ++r) warp.b[lane][r] = b[r];
  warp.meta[lane] = meta;
  emulator::warp_barrier();
  compute(warp);
  emulator::warp_barrier();
}

template <class T>
float b_at(const emulator::Warp& warp, int k, int n, T type) {
  const int lane = n * 4 + k % 8 / 2;
  return widen(warp.b[lane][k / 8] >> (16 * (k & 1)), type);
}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
  with_operands(a, b, 2, 0, [&](const emulator::Warp& warp) {
    const int lane = emulator::current->lane;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i >> 1), column = lane % 4 * 2 + (i & 1);
      for (int k = 0; k < 16; ++k) {
        const int from = row % 8 * 4 + k % 8 / 2, r = row / 8 + 2 * (k / 8);
        d[i] += widen(warp.a[from][r] >> (16 * (k & 1)), type) * b_at(warp, k, column, type);
      }
    }
  });
}

inline void load_transposed(uint32_t (&to)[4], const void* row) {
  emulator::Warp& warp = *emulator::current->warp;
  const int lane = emulator::current->lane;
  if (reinterpret_cast<uintptr_t>(row) % 16)
    std::fprintf(stderr, "emulator: a row of a matrix that is not aligned\n"), std::abort();
  warp.row[lane] = static_cast<const uint16_t*>(row);
  emulator::warp_barrier();
  for (int r = 0; r < 4; ++r) {
    const int first = 8 * r + lane % 4 * 2, column = lane / 4;  // the lane that names the row holds the first of two
    to[r] = warp.row[first][column] | static_cast<uint32_t>(warp.row[first + 1][column]) << 16;
  }
  emulator::warp_barrier();
}

template <int Selector, class T>
void mma_sp(float (&d)[4], uint4 a, const uint32_t (&b)[4], uint32_t meta, T type) {
  const uint32_t registers[4] = {a.x, a.y, a.z, a.w};
  with_operands(registers, b, 4, meta, [&](const emulator::Warp& warp) {
    const int lane = emulator::current->lane;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i >> 1), column = lane % 4 * 2 + (i & 1);
      for (int stored = 0; stored < 16; ++stored) {  // columns of the compressed operand
        const int from = row % 8 * 4 + stored % 8 / 2, r = row / 8 + 2 * (stored / 8);
        const int holder = row % 8 * 4 + 2 * Selector + stored / 8;  // of the metadata of 16 dense columns
        const uint32_t half = warp.meta[holder] >> (16 * (row / 8));
        const int position = half >> (2 * (stored % 8)) & 3;
        const int k = stored / 2 * 4 + position;
        d[i] += widen(warp.a[from][r] >> (16 * (stored & 1)), type) * b_at(warp, k, column, type);
      }
    }
  });
}

}  // namespace onnxprune
