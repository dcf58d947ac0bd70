// BlockSparseMatMul: whole blocks of 32x64 or 64x64 weights are zero, any number of rows of X, on tensor cores.
//
// Kept blocks are dense and in fragment order. For few rows of X (up to 32) a block of threads takes one strip of 16
// rows of W, its warps take the kept blocks in turns and read them straight into registers: as many bytes in flight as
// there are warps. For more, a block of threads takes a row of blocks and 64 or 128 rows of X through shared memory.
// So it does for a 1x1 convolution with 64 or 128 pixels of one image (blockIdx.z), staged as they lie and turned on
// the way to the registers.
#include <new>

#include "common.cuh"

namespace onnxprune {
namespace {

constexpr int kCols = layout::kBlockCols;

template <class T>
struct Args {
  const T* x;
  T* y;
  Ending ending;
  const int* slots;     // [row of blocks][column of blocks]: position in values, 0 for a block of zeros
  const T* values;      // [slot][strip][step][lane][8]; slot 0 is zero
  int m, n, k;
  int block_cols;       // blocks in a row of blocks
  int block_rows;       // 32 or 64
  bool wide;            // rows of X begin at multiples of 16 bytes
  bool even;            // and at least at multiples of 4
  Pixels image;
};

// The columns of blocks that one row of blocks keeps and their slots, in ascending order; by one warp
__device__ __forceinline__ void list_kept(const int* slots, int count, int2* kept, int* total, int lane) {
  int done = 0;
  for (int first = 0; first < count; first += 32) {
    const int slot = first + lane < count ? slots[first + lane] : 0;
    const uint32_t set = __ballot_sync(0xffffffffu, slot != 0);
    if (slot) kept[done + __popc(set & ((1u << lane) - 1))] = make_int2(first + lane, slot);
    done += __popc(set);
  }
  if (lane == 0) *total = done;
}

// ---------------------------------------------------------------- few rows of X

constexpr int kFewWarps = 8;

// Two neighbouring elements of a row of X as bits, zero where it ends
template <class T>
__device__ __forceinline__ uint32_t read_pair(const T* row, int k, const Args<T>& a, bool present) {
  if (!present) return 0;
  if (a.even && k + 2 <= a.k) return __ldg(reinterpret_cast<const uint32_t*>(row + k));
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(row);
  return (k < a.k ? bits[k] : 0u) | (k + 1 < a.k ? bits[k + 1] : 0u) << 16;
}

template <int Tiles, class T>
__global__ void __launch_bounds__(32 * kFewWarps, 2) block_sparse_few(const Args<T> a) {
  ONNXPRUNE_SHARED(shared);
  int2* kept = reinterpret_cast<int2*>(shared);
  float* sums = reinterpret_cast<float*>(kept + a.block_cols);  // [warp][column][row]
  __shared__ int total;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row0 = blockIdx.y * 8 * Tiles;
  const int strips = a.block_rows / layout::kStrip, strip = blockIdx.x % strips;
  if (warp == 0)
    list_kept(a.slots + static_cast<int64_t>(blockIdx.x / strips) * a.block_cols, a.block_cols, kept, &total, lane);
  __syncthreads();
  const T* rows[Tiles];
  bool present[Tiles];
#pragma unroll
  for (int t = 0; t < Tiles; ++t) {
    const int m = row0 + t * 8 + layout::b_n(lane);
    present[t] = m < a.m;
    rows[t] = a.x + static_cast<int64_t>(present[t] ? m : 0) * a.k;
  }
  const auto load = [&](uint4 (&w)[4], int i) {
#pragma unroll
    for (int step = 0; step < 4; ++step)
      w[step] = i < total ? load_once(reinterpret_cast<const uint4*>(
                                a.values + static_cast<int64_t>(kept[i].y) * a.block_rows * kCols +
                                layout::block_offset(strip, step, lane)))
                          : make_uint4(0, 0, 0, 0);
  };
  float sum[Tiles][4] = {};
  uint4 next[4];
  load(next, warp);
  for (int i = warp; i < total; i += kFewWarps) {
    uint4 w[4];
#pragma unroll
    for (int step = 0; step < 4; ++step) w[step] = next[step];
    load(next, i + kFewWarps);
    const int first = kept[i].x * kCols;
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
        uint32_t b[2];
#pragma unroll
        for (int r = 0; r < 2; ++r)
          b[r] = read_pair(rows[t], first + step * 16 + layout::b_k(lane, r), a, present[t]);
        const uint32_t fragment[4] = {w[step].x, w[step].y, w[step].z, w[step].w};
        mma(sum[t], fragment, b, T{});
      }
  }
  constexpr int size = layout::kStrip * 8 * Tiles;
#pragma unroll
  for (int t = 0; t < Tiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[warp * size + (t * 8 + layout::d_col(lane, i)) * layout::kStrip + layout::d_row(lane, i)] = sum[t][i];
  __syncthreads();
  for (int e = threadIdx.x; e < size; e += 32 * kFewWarps) {
    const int n = blockIdx.x * layout::kStrip + e % layout::kStrip, m = row0 + e / layout::kStrip;
    if (n >= a.n || m >= a.m) continue;
    float value = a.ending.bias ? to_float(static_cast<const T*>(a.ending.bias)[n]) : 0.f;
#pragma unroll
    for (int w = 0; w < kFewWarps; ++w) value += sums[w * size + e];
    a.y[static_cast<int64_t>(m) * a.n + n] = from_float<T>(activate(value, a.ending));
  }
}

// ---------------------------------------------------------------- many rows of X

constexpr int kManyWarps = 4;
constexpr int kManyStages = 3;
constexpr int kStride = kCols + 8;  // of X in shared memory: rows begin 4 banks apart

template <int Rows, int XRows, bool Image>
struct Many {
  static constexpr int stride = Image ? XRows + 8 : kStride;  // pixels of a channel: 4 banks apart as well
  static constexpr int stage_bytes = Rows * kCols * 2 + (Image ? kCols : XRows) * stride * 2;
  // The output tile comes through the same memory, so that rows of Y (or of pixels) are written whole
  static constexpr int out_row = Image ? XRows + 8 : 1, out_column = Image ? 1 : Rows + 2;
  static constexpr int out_bytes = (Image ? Rows * out_row : XRows * out_column) * 4;
  static constexpr int bytes = kManyStages * stage_bytes > out_bytes ? kManyStages * stage_bytes : out_bytes;
};

template <int Rows, int XRows, bool Image, class T>
__global__ void __launch_bounds__(32 * kManyWarps, 2) block_sparse_many(const Args<T> a) {
  using M = Many<Rows, XRows, Image>;
  constexpr int strips = Rows / layout::kStrip;
  constexpr int tiles = XRows / kManyWarps / 8;  // of 8 rows of X, of one warp
  constexpr int threads = 32 * kManyWarps, stage_size = M::stage_bytes;
  ONNXPRUNE_SHARED(shared);
  int2* kept = reinterpret_cast<int2*>(shared + M::bytes);
  __shared__ int total;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * XRows;
  if (warp == 0)
    list_kept(a.slots + static_cast<int64_t>(blockIdx.y) * a.block_cols, a.block_cols, kept, &total, lane);
  __syncthreads();

  const auto stage = [&](int i) {
    if (i >= total) return;
    char* to = shared + i % kManyStages * stage_size;
    const char* block = reinterpret_cast<const char*>(a.values + static_cast<int64_t>(kept[i].y) * Rows * kCols);
    for (int piece = threadIdx.x; piece < Rows * kCols / 8; piece += threads)
      copy_async(to + piece * 16, block + piece * 16);
    T* x = reinterpret_cast<T*>(to + Rows * kCols * 2);
    const int64_t first = static_cast<int64_t>(kept[i].x) * kCols;
    if constexpr (Image) {
      const T* channels = a.x + static_cast<int64_t>(blockIdx.z) * a.k * a.image.pixels;
      for (int piece = threadIdx.x; piece < kCols * (XRows / 8); piece += threads) {
        const int k = piece / (XRows / 8), p = piece % (XRows / 8) * 8;
        const bool present = first + k < a.k;
        stage_pixels(x + k * M::stride + p, channels + (present ? first + k : 0) * a.image.pixels,
                     static_cast<int>(row0) + p, a.image.pixels, present, a.image.grain);
      }
    } else {
      for (int piece = threadIdx.x; piece < XRows * (kCols / 8); piece += threads) {
        const int row = piece / (kCols / 8), k = piece % (kCols / 8) * 8;
        const bool present = row0 + row < a.m;
        stage8(x + row * kStride + k, a.x + (present ? row0 + row : 0) * a.k, first + k, a.k, present, a.wide);
      }
    }
  };

#pragma unroll
  for (int i = 0; i + 1 < kManyStages; ++i) {
    stage(i);
    commit_copies();
  }
  float sum[strips][tiles][4] = {};
  for (int i = 0; i < total; ++i) {
    wait_copies<kManyStages - 2>();
    __syncthreads();  // the stage is whole, and the one that is filled next is free
    stage(i + kManyStages - 1);
    commit_copies();
    const char* from = shared + i % kManyStages * stage_size;
    const T* w = reinterpret_cast<const T*>(from);
    const T* x = reinterpret_cast<const T*>(from + Rows * kCols * 2) + warp * tiles * 8 * (Image ? 1 : kStride);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t b[tiles / 2][2][2];  // by pairs of tiles
#pragma unroll
      for (int t = 0; t < tiles; ++t)
        if constexpr (Image) {
          if (t % 2 == 0) load_pixels16<M::stride>(b[t / 2], x, step * 16, t, lane);
        } else {
#pragma unroll
          for (int r = 0; r < 2; ++r)
            b[t / 2][t % 2][r] = *reinterpret_cast<const uint32_t*>(x + (t * 8 + layout::b_n(lane)) * kStride +
                                                                    step * 16 + layout::b_k(lane, r));
        }
#pragma unroll
      for (int s = 0; s < strips; ++s) {
        const uint4 four = *reinterpret_cast<const uint4*>(w + layout::block_offset(s, step, lane));
        const uint32_t fragment[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int t = 0; t < tiles; ++t) mma(sum[s][t], fragment, b[t / 2][t % 2], T{});
      }
    }
  }
  wait_copies<0>();
  __syncthreads();
  float* tile = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int s = 0; s < strips; ++s)
#pragma unroll
    for (int t = 0; t < tiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        tile[((warp * tiles + t) * 8 + layout::d_col(lane, i)) * M::out_column +
             (s * layout::kStrip + layout::d_row(lane, i)) * M::out_row] = sum[s][t][i];
  __syncthreads();
  for (int e = threadIdx.x; e < XRows * Rows; e += threads) {
    const int column = Image ? e % XRows : e / Rows, row = Image ? e / XRows : e % Rows;
    const int64_t m = row0 + column;
    const int n = blockIdx.y * Rows + row;
    if (n >= a.n || m >= (Image ? a.image.pixels : a.m)) continue;
    float value = tile[column * M::out_column + row * M::out_row];
    if (a.ending.bias) value += to_float(static_cast<const T*>(a.ending.bias)[n]);
    const int64_t at = Image ? (static_cast<int64_t>(blockIdx.z) * a.n + n) * a.image.pixels + m : m * a.n + n;
    a.y[at] = from_float<T>(activate(value, a.ending));
  }
}

// ---------------------------------------------------------------- the op

// found[0]: a slot is out of range
__global__ void check_block_sparse(const int* slots, int64_t count, int64_t blocks, int* found) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count && (slots[i] < 0 || slots[i] > blocks)) atomicExch(found, 1);
}

struct Plan {
  OnnxpruneCudaWeight weight;
  Device device;
  int block_cols;
};

const char* sizes(const OnnxpruneCudaWeight* w) {
  if (const char* error = check_common(kBlockSparse, *w)) return error;
  if (w->block_rows != 32 && w->block_rows != 64)
    return say("blocks have %lld rows, wanted 32 or 64", static_cast<long long>(w->block_rows));
  const int64_t slots = layout::ceil_div(w->rows, w->block_rows) * layout::ceil_div(w->cols, kCols);
  if (const char* error = check_count(kBlockSparse, *w, 0, "slots", slots)) return error;
  const int64_t values = w->tensors[1].count, size = w->block_rows * kCols;
  if (values < size || values % size || values / size > INT32_MAX)
    return say("there are %lld values, wanted a multiple of %lld", static_cast<long long>(values),
               static_cast<long long>(size));
  return nullptr;
}

template <int Tiles>
int few_bytes(const Plan& plan) {
  return plan.block_cols * 8 + kFewWarps * layout::kStrip * 8 * Tiles * 4;
}

template <int Rows, int XRows, bool Image>
int many_bytes(const Plan& plan) {
  return Many<Rows, XRows, Image>::bytes + plan.block_cols * 8;
}

template <int Rows, bool Image, class T>
const char* allow_many(const Plan& plan) {
  if (const char* error =
          allow(block_sparse_many<Rows, 64, Image, T>, many_bytes<Rows, 64, Image>(plan), plan.device))
    return error;
  return allow(block_sparse_many<Rows, 128, Image, T>, many_bytes<Rows, 128, Image>(plan), plan.device);
}

template <class T>
const char* allow_all(const Plan& plan) {
  if (const char* error = allow(block_sparse_few<1, T>, few_bytes<1>(plan), plan.device)) return error;
  if (const char* error = allow(block_sparse_few<2, T>, few_bytes<2>(plan), plan.device)) return error;
  if (const char* error = allow(block_sparse_few<4, T>, few_bytes<4>(plan), plan.device)) return error;
  if (plan.weight.block_rows == 32) {
    if (const char* error = allow_many<32, false, T>(plan)) return error;
    return allow_many<32, true, T>(plan);
  }
  if (const char* error = allow_many<64, false, T>(plan)) return error;
  return allow_many<64, true, T>(plan);
}

const char* create(const OnnxpruneCudaWeight* w, void** plan) {
  if (const char* error = sizes(w)) return error;
  int id = 0;
  if (const char* error = check_on_device(kBlockSparse, *w, &id)) return error;
  const OnDevice current(id);
  Plan made{*w, {}, static_cast<int>(layout::ceil_div(w->cols, kCols))};
  if (const char* error = read_device(&made.device)) return error;
  int found[4];
  const int64_t slots = w->tensors[0].count;
  const char* error = examine(found, [&](int* to) {
    start(check_block_sparse, static_cast<unsigned>(layout::ceil_div(slots, 256)), 256, 0, nullptr,
          static_cast<const int*>(w->tensors[0].data), slots, w->tensors[1].count / (w->block_rows * kCols) - 1, to);
  });
  if (error) return error;
  if (found[0]) return say("a slot names a block that is not there");
  error = w->type == kFloat16 ? allow_all<__half>(made) : allow_all<__nv_bfloat16>(made);
  if (error) return error;
  *plan = new (std::nothrow) Plan(made);
  return *plan ? nullptr : say("not enough memory");
}

template <int Tiles, class T>
const char* launch_few(const Plan& plan, const Args<T>& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(layout::ceil_div(a.n, layout::kStrip)),
                  static_cast<unsigned>(layout::ceil_div(a.m, 8 * Tiles)));
  start(block_sparse_few<Tiles, T>, grid, 32 * kFewWarps, few_bytes<Tiles>(plan), stream, a);
  return cuda_error("launch", cudaPeekAtLastError());
}

template <int Rows, int XRows, bool Image, class T>
const char* launch_many(const Plan& plan, const Args<T>& a, const OnnxpruneCudaRun& run) {
  // Neighbouring blocks of threads share a row of blocks, which stays in the L2 cache
  const dim3 grid(static_cast<unsigned>(layout::ceil_div(Image ? run.pixels : run.m, XRows)),
                  static_cast<unsigned>(layout::ceil_div(a.n, Rows)),
                  static_cast<unsigned>(Image ? run.m / run.pixels : 1));
  start(block_sparse_many<Rows, XRows, Image, T>, grid, 32 * kManyWarps, many_bytes<Rows, XRows, Image>(plan),
        static_cast<cudaStream_t>(run.stream), a);
  return cuda_error("launch", cudaPeekAtLastError());
}

// 64 pixels a block where more would be half empty, or blocks of 128 leave processors without work
bool narrow(const Plan& plan, const OnnxpruneCudaRun& run) {
  const int64_t blocks = layout::ceil_div(run.pixels, 128) * (run.m / run.pixels) *
                         layout::ceil_div(plan.weight.rows, plan.weight.block_rows);
  return run.pixels <= 64 || blocks < plan.device.processors;
}

template <class T>
const char* launch(const Plan& plan, const OnnxpruneCudaRun& run) {
  const OnnxpruneCudaWeight& w = plan.weight;
  Args<T> a;
  set_operands<T>(a, w, run);
  a.slots = static_cast<const int*>(w.tensors[0].data);
  a.values = static_cast<const T*>(w.tensors[1].data);
  a.block_cols = plan.block_cols;
  a.block_rows = static_cast<int>(w.block_rows);
  a.wide = aligned(run.x, 16) && w.cols % 8 == 0;
  a.even = aligned(run.x, 4) && w.cols % 2 == 0;
  a.image = pixels_of(run);
  const auto stream = static_cast<cudaStream_t>(run.stream);
  if (run.pixels > 1) {
    if (a.block_rows == 32)
      return narrow(plan, run) ? launch_many<32, 64, true>(plan, a, run) : launch_many<32, 128, true>(plan, a, run);
    return narrow(plan, run) ? launch_many<64, 64, true>(plan, a, run) : launch_many<64, 128, true>(plan, a, run);
  }
  if (a.m <= 8) return launch_few<1>(plan, a, stream);
  if (a.m <= 16) return launch_few<2>(plan, a, stream);
  if (a.m <= 32) return launch_few<4>(plan, a, stream);
  if (a.block_rows == 32)
    return a.m <= 64 ? launch_many<32, 64, false>(plan, a, run) : launch_many<32, 128, false>(plan, a, run);
  return a.m <= 64 ? launch_many<64, 64, false>(plan, a, run) : launch_many<64, 128, false>(plan, a, run);
}

const char* run(const void* opaque, const OnnxpruneCudaRun* run) {
  return run_plan<Plan>(kBlockSparse, opaque, *run,
                        [&](const Plan& plan, auto type) { return launch<decltype(type)>(plan, *run); });
}

void destroy(void* plan) { delete static_cast<Plan*>(plan); }

}  // namespace

const OnnxpruneCudaOp kBlockSparse = {"BlockSparse", 2, {kInt32, 0, 0, 0}, 1, sizes, create, run, destroy};

}  // namespace onnxprune
