// What BitmapTile and NMTile share: a few rows of X against strips of 16 rows of W.
//
// A block of 8 warps takes `strips` neighbouring strips; the warps of a strip (`ways`) take its groups of 128 columns
// in turns, so a chunk is ways * 128 columns. X comes through shared memory, one chunk a stage; at the end the ways
// add up there. With more rows of X, a block takes more strips, since every block reads all of X.
#pragma once

#include "common.cuh"

namespace onnxprune {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kMaxStages = 3;

// Tiles of 8 rows of X: 0 stands for a single row, which needs no fragment of its own (all columns of B are the same)
template <int Tiles>
struct Few {
  static constexpr int rows = Tiles == 0 ? 1 : 8 * Tiles;
  static constexpr int tiles = Tiles == 0 ? 1 : Tiles;
  static constexpr int strips = Tiles <= 1 ? 1 : Tiles == 2 ? 2 : 4;
  static constexpr int ways = kWarps / strips;
  static constexpr int chunk = ways * layout::kGroup;
  // 8 elements more: rows begin 4 banks apart, so the 32 lanes of a fragment read 32 banks
  static constexpr int stride = chunk + 8;
  static constexpr int x_bytes = rows * stride * 2;
  static constexpr int sum_bytes = kWarps * layout::kStrip * 8 * tiles * 4;
};

template <class T>
struct FewArgs {
  const T* x;
  T* y;
  Ending ending;
  int m, n, k;
  int groups;  // of a strip
  int stages;  // of shared memory, 2 or 3
  bool wide;   // rows of X begin at multiples of 16 bytes
};

template <int Tiles, class T>
__device__ __forceinline__ void stage_x(T* shared, const FewArgs<T>& a, int chunk) {
  using F = Few<Tiles>;
  const int64_t first = static_cast<int64_t>(chunk) * F::chunk;
  const int row0 = blockIdx.y * F::rows;
  for (int piece = threadIdx.x; piece < F::rows * (F::chunk / 8); piece += kThreads) {
    const int row = piece / (F::chunk / 8), k = piece % (F::chunk / 8) * 8;
    const bool present = row0 + row < a.m;
    stage8(shared + row * F::stride + k, a.x + static_cast<int64_t>(present ? row0 + row : 0) * a.k, first + k, a.k,
           present, a.wide);
  }
}

// Registers of B for 16 columns from k and the 8 rows of X of `tile`
template <int Tiles, int Registers, class T>
__device__ __forceinline__ void load_b(uint32_t (&b)[Registers], const T* shared, int k, int tile, int lane) {
  using F = Few<Tiles>;
  const int row = Tiles == 0 ? 0 : tile * 8 + layout::b_n(lane);
#pragma unroll
  for (int r = 0; r < Registers; ++r)
    b[r] = *reinterpret_cast<const uint32_t*>(shared + row * F::stride + k + layout::b_k(lane, r));
}

__device__ __forceinline__ void wait_stage(int stages) {
  if (stages == kMaxStages)
    wait_copies<1>();
  else
    wait_copies<0>();
  __syncthreads();
}

// Adds up the ways and writes Y; scale(row) multiplies the sum. Shared memory is free by now.
template <int Tiles, class T, class Scale>
__device__ __forceinline__ void finish(const float (&sum)[Few<Tiles>::tiles][4], float* shared, const FewArgs<T>& a,
                                       const Scale& scale) {
  using F = Few<Tiles>;
  constexpr int columns = 8 * F::tiles, size = layout::kStrip * columns;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();  // other warps may still read their stage
  // [way][strip][column][row]: rows are neighbours, as they are in Y
  float* own = shared + ((warp / F::strips) * F::strips + warp % F::strips) * size;
#pragma unroll
  for (int tile = 0; tile < F::tiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      own[(tile * 8 + layout::d_col(lane, i)) * layout::kStrip + layout::d_row(lane, i)] = sum[tile][i];
  __syncthreads();
  constexpr int width = F::strips * layout::kStrip;
  for (int e = threadIdx.x; e < width * F::rows; e += kThreads) {
    const int column = e / width, strip = e % width / layout::kStrip, row = e % layout::kStrip;
    const int n = (blockIdx.x * F::strips + strip) * layout::kStrip + row;
    const int m = blockIdx.y * F::rows + column;
    if (n >= a.n || m >= a.m) continue;
    float total = 0.f;
#pragma unroll
    for (int way = 0; way < F::ways; ++way)
      total += shared[(way * F::strips + strip) * size + column * layout::kStrip + row];
    total *= scale(n);
    if (a.ending.bias) total += to_float(static_cast<const T*>(a.ending.bias)[n]);
    a.y[static_cast<int64_t>(m) * a.n + n] = from_float<T>(activate(total, a.ending));
  }
}

// Calls launch(constant) with the smallest number of tiles that holds m rows, at most `Most`
template <int Tiles>
struct TilesConstant {
  static constexpr int value = Tiles;
};
template <int Most, class Launch>
const char* with_tiles(int64_t m, const Launch& launch) {
  if (m == 1) return launch(TilesConstant<0>{});
  if (m <= 8) return launch(TilesConstant<1>{});
  if (m <= 16) return launch(TilesConstant<2>{});
  if (Most == 4 || m <= 32) return launch(TilesConstant<4>{});
  return launch(TilesConstant<Most>{});
}

}  // namespace onnxprune
