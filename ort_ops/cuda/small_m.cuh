// What BitmapTile and NMTile share: a few rows of X against strips of 16 rows of W.
//
// A block of 8 warps takes `strips` neighbouring strips; the warps of a strip (`ways`) take its groups of 128 columns
// in turns, so a chunk is ways * 128 columns. X comes through shared memory, one chunk a stage; at the end the ways
// add up there. With more rows of X, a block takes more strips, since every block reads all of X.
//
// Of a 1x1 convolution the rows of X are the pixels of one image (blockIdx.z), which lie side by side in each channel:
// X is staged as it lies, a row of pixels for each column of W, and turned on the way to the registers.
#pragma once

#include "common.cuh"

namespace onnxprune {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kMaxStages = 3;

// Tiles of 8 rows of X: 0 stands for a single row, which needs no fragment of its own (all columns of B are the same)
template <int Tiles, bool Image>
struct Few {
  static constexpr int rows = Tiles == 0 ? 1 : 8 * Tiles;
  static constexpr int tiles = Tiles == 0 ? 1 : Tiles;
  static constexpr int strips = Tiles <= 1 ? 1 : Tiles == 2 ? 2 : 4;
  static constexpr int ways = kWarps / strips;
  static constexpr int chunk = ways * layout::kGroup;
  // 8 elements more: rows begin 4 banks apart, so the 32 lanes of a fragment read 32 banks
  static constexpr int stride = (Image ? rows : chunk) + 8;
  static constexpr int x_bytes = (Image ? chunk : rows) * stride * 2;
  // The sums of a strip, as they are neighbours in Y: [row of X][row of W], or [row of W][pixel]
  static constexpr int sum_row = Image ? 8 * tiles + 8 : 1, sum_column = Image ? 1 : layout::kStrip;
  static constexpr int sum_size = Image ? layout::kStrip * sum_row : sum_column * 8 * tiles;
  static constexpr int sum_bytes = kWarps * sum_size * 4;
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
  Pixels image;
};

template <int Tiles, bool Image, class T>
__device__ __forceinline__ void stage_x(T* shared, const FewArgs<T>& a, int chunk) {
  using F = Few<Tiles, Image>;
  const int64_t first = static_cast<int64_t>(chunk) * F::chunk;
  const int row0 = blockIdx.y * F::rows;
  if constexpr (Image) {
    const T* x = a.x + static_cast<int64_t>(blockIdx.z) * a.k * a.image.pixels;
    for (int piece = threadIdx.x; piece < F::chunk * F::tiles; piece += kThreads) {
      const int k = piece / F::tiles, p = piece % F::tiles * 8;
      const bool present = first + k < a.k;
      stage_pixels(shared + k * F::stride + p, x + (present ? first + k : 0) * a.image.pixels, row0 + p,
                   a.image.pixels, present, a.image.grain);
    }
  } else {
    for (int piece = threadIdx.x; piece < F::rows * (F::chunk / 8); piece += kThreads) {
      const int row = piece / (F::chunk / 8), k = piece % (F::chunk / 8) * 8;
      const bool present = row0 + row < a.m;
      stage8(shared + row * F::stride + k, a.x + static_cast<int64_t>(present ? row0 + row : 0) * a.k, first + k, a.k,
             present, a.wide);
    }
  }
}

// Where the columns of W begin that a way multiplies, in a stage
template <int Tiles, bool Image>
__host__ __device__ constexpr int way_offset(int way) {
  return way * layout::kGroup * (Image ? Few<Tiles, Image>::stride : 1);
}

// Registers of B for 16 columns (4 registers: 32) from k and the 8 rows of X of `tile`
template <int Tiles, int Registers, class T>
__device__ __forceinline__ void load_b(uint32_t (&b)[Registers], const T* shared, int k, int tile, int lane) {
  using F = Few<Tiles, false>;
  const int row = Tiles == 0 ? 0 : tile * 8 + layout::b_n(lane);
#pragma unroll
  for (int r = 0; r < Registers; ++r)
    b[r] = *reinterpret_cast<const uint32_t*>(shared + row * F::stride + k + layout::b_k(lane, r));
}

// The same of pixels
template <int Tiles, class T>
__device__ __forceinline__ void load_pixels32(uint32_t (&b)[4], const T* shared, int k, int tile, int lane) {
  load_transposed(b, shared + (k + layout::pixel_k32(lane)) * Few<Tiles, true>::stride + tile * 8);
}

__device__ __forceinline__ void wait_stage(int stages) {
  if (stages == kMaxStages)
    wait_copies<1>();
  else
    wait_copies<0>();
  __syncthreads();
}

// Adds up the ways and writes Y; scale(row) multiplies the sum. Shared memory is free by now.
template <int Tiles, bool Image, class T, class Scale>
__device__ __forceinline__ void finish(const float (&sum)[Few<Tiles, Image>::tiles][4], float* shared,
                                       const FewArgs<T>& a, const Scale& scale) {
  using F = Few<Tiles, Image>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();  // other warps may still read their stage
  float* own = shared + ((warp / F::strips) * F::strips + warp % F::strips) * F::sum_size;  // [way][strip]
#pragma unroll
  for (int tile = 0; tile < F::tiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      own[(tile * 8 + layout::d_col(lane, i)) * F::sum_column + layout::d_row(lane, i) * F::sum_row] = sum[tile][i];
  __syncthreads();
  constexpr int width = F::strips * layout::kStrip;
  for (int e = threadIdx.x; e < width * F::rows; e += kThreads) {
    // Neighbouring threads write neighbours in Y
    const int column = Image ? e % F::rows : e / width, line = Image ? e / F::rows : e % width;
    const int strip = line / layout::kStrip, row = line % layout::kStrip;
    const int n = blockIdx.x * width + line, m = blockIdx.y * F::rows + column;
    if (n >= a.n || m >= (Image ? a.image.pixels : a.m)) continue;
    float total = 0.f;
#pragma unroll
    for (int way = 0; way < F::ways; ++way)
      total += shared[(way * F::strips + strip) * F::sum_size + column * F::sum_column + row * F::sum_row];
    total *= scale(n);
    if (a.ending.bias) total += to_float(static_cast<const T*>(a.ending.bias)[n]);
    const int64_t at = Image ? (static_cast<int64_t>(blockIdx.z) * a.n + n) * a.image.pixels + m
                             : static_cast<int64_t>(m) * a.n + n;
    a.y[at] = from_float<T>(activate(total, a.ending));
  }
}

template <int Tiles, bool Image>
struct FewConstant {
  static constexpr int tiles = Tiles;
  static constexpr bool image = Image;
};

// Calls launch(constant) with the smallest number of tiles that holds m rows, at most `Most`; images of fewer pixels than
// 32 are rare, so they have no variant of their own
template <int Most, class Launch>
const char* with_tiles(const OnnxpruneCudaRun& run, const Launch& launch) {
  if (run.pixels > 1 && (Most == 4 || run.pixels <= 32)) return launch(FewConstant<4, true>{});
  if (run.pixels > 1) return launch(FewConstant<Most, true>{});
  if (run.m == 1) return launch(FewConstant<0, false>{});
  if (run.m <= 8) return launch(FewConstant<1, false>{});
  if (run.m <= 16) return launch(FewConstant<2, false>{});
  if (Most == 4 || run.m <= 32) return launch(FewConstant<4, false>{});
  return launch(FewConstant<Most, false>{});
}

// The grid of a launch, of which a block takes all the strips and rows that it can
template <int Tiles, bool Image>
dim3 grid_of(int strips, const OnnxpruneCudaRun& run) {
  using F = Few<Tiles, Image>;
  return dim3(static_cast<unsigned>(layout::ceil_div(strips, F::strips)),
              static_cast<unsigned>(layout::ceil_div(Image ? run.pixels : run.m, F::rows)),
              static_cast<unsigned>(Image ? run.m / run.pixels : 1));
}

// What allow() must see, so that no kernel is forgotten: call(constant) for each, until one returns an error
template <int Most, class Call>
const char* for_each_few(const Call& call) {
  const char* error = call(FewConstant<0, false>{});
  if (!error) error = call(FewConstant<1, false>{});
  if (!error) error = call(FewConstant<2, false>{});
  if (!error) error = call(FewConstant<4, false>{});
  if (!error) error = call(FewConstant<4, true>{});
  if (Most == 4 || error) return error;
  error = call(FewConstant<Most, false>{});
  return error ? error : call(FewConstant<Most, true>{});
}

}  // namespace onnxprune
