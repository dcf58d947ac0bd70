// DeltaMatMul: 80 % zeros and more, up to 8 rows of X at a time. Each weight comes with its distance (4 bits) from the
// one before, 8 to a 32-bit word.
//
// A warp takes a row of W: each lane reads 8 entries (one word, 16 bytes of values), the warp adds up the distances in
// front of it, and the lane walks its entries through X in shared memory (after MACKO, Macko & Boza 2025). Costs grow
// with the weights that are there and with the rows of X, nothing else.
#include <new>

#include "common.cuh"

namespace onnxprune {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostRows = 8;

template <class T>
struct Args {
  const T* x;
  T* y;
  Ending ending;
  const int* starts;      // of each row of W in units of 8 entries; one more at the end
  const uint32_t* steps;
  const uint4* values;
  int m, n, k;
};

template <int Rows>
__host__ __device__ constexpr int64_t shared_bytes(int64_t cols) { return (cols + layout::kDeltaPad) * Rows * 2; }

// Rows of X at one column, neighbours in shared memory
template <int Rows, class T>
__device__ __forceinline__ void add(float (&sum)[Rows], float w, const T* x) {
  if constexpr (Rows == 1) {
    sum[0] = fmaf(w, to_float(x[0]), sum[0]);
  } else {
    uint32_t pairs[Rows / 2];
    if constexpr (Rows == 2) {
      pairs[0] = *reinterpret_cast<const uint32_t*>(x);
    } else if constexpr (Rows == 4) {
      const uint2 two = *reinterpret_cast<const uint2*>(x);
      pairs[0] = two.x, pairs[1] = two.y;
    } else {
      const uint4 four = *reinterpret_cast<const uint4*>(x);
      pairs[0] = four.x, pairs[1] = four.y, pairs[2] = four.z, pairs[3] = four.w;
    }
#pragma unroll
    for (int i = 0; i < Rows / 2; ++i) {
      const float2 xs = pair_to_float(pairs[i], T{});
      sum[2 * i] = fmaf(w, xs.x, sum[2 * i]);
      sum[2 * i + 1] = fmaf(w, xs.y, sum[2 * i + 1]);
    }
  }
}

template <int Rows, class T>
__global__ void __launch_bounds__(kThreads, 2) delta(const Args<T> a) {
  ONNXPRUNE_SHARED(shared);
  T* x = reinterpret_cast<T*>(shared);  // [column][row of X]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row0 = blockIdx.y * Rows;
  for (int i = threadIdx.x; i < (a.k + layout::kDeltaPad) * Rows; i += kThreads) {
    // Neighbouring threads read neighbouring columns
    const int row = i / (a.k + layout::kDeltaPad), k = i % (a.k + layout::kDeltaPad);
    x[k * Rows + row] =
        row0 + row < a.m && k < a.k ? a.x[static_cast<int64_t>(row0 + row) * a.k + k] : from_float<T>(0.f);
  }
  __syncthreads();
  for (int row = blockIdx.x * kWarps + warp; row < a.n; row += gridDim.x * kWarps) {
    const int begin = a.starts[row], end = a.starts[row + 1];
    float sum[Rows] = {};
    int column = -1;  // of the entry before those of this turn
    bool mine = begin + lane < end;
    uint32_t steps = mine ? load_once(a.steps + begin + lane) : 0;
    uint4 values = mine ? load_once(a.values + begin + lane) : make_uint4(0, 0, 0, 0);
    for (int unit = begin; unit < end; unit += 32) {
      const uint32_t now_steps = steps;
      const uint4 now_values = values;
      const bool now_mine = mine;
      mine = unit + 32 + lane < end;
      if (mine) {
        steps = load_once(a.steps + unit + 32 + lane);
        values = load_once(a.values + unit + 32 + lane);
      }
      const int own = now_mine ? layout::delta_sum(now_steps) : 0;
      int reach = own;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, reach, distance);
        if (lane >= distance) reach += other;
      }
      int at = column + reach - own;
      column += __shfl_sync(0xffffffffu, reach, 31);
      if (now_mine) {
        const uint32_t pairs[4] = {now_values.x, now_values.y, now_values.z, now_values.w};
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
          const float2 w = pair_to_float(pairs[j / 2], T{});
          at += layout::delta_step(now_steps, j);
          add<Rows>(sum, w.x, x + at * Rows);
          at += layout::delta_step(now_steps, j + 1);
          add<Rows>(sum, w.y, x + at * Rows);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
#pragma unroll
      for (int distance = 16; distance; distance /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], distance);
      if (lane != 0 || row0 + i >= a.m) continue;
      const float bias = a.ending.bias ? to_float(static_cast<const T*>(a.ending.bias)[row]) : 0.f;
      a.y[static_cast<int64_t>(row0 + i) * a.n + row] = from_float<T>(activate(sum[i] + bias, a.ending));
    }
  }
}

// found[0]: 1 the starts do not begin at 0, ascend and end with the entries; 2 a row reaches beyond the padding
__global__ void check_delta(const int* starts, const uint32_t* steps, int64_t rows, int64_t units, int64_t cols,
                            int* found) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (row >= rows) return;
  const int64_t begin = starts[row], end = starts[row + 1];
  const bool right = begin >= 0 && begin <= end && end <= units && (row || !begin) && (row < rows - 1 || end == units);
  if (!right) {
    if (!lane) atomicExch(found, 1);
    return;
  }
  unsigned long long reach = 0;
  for (int64_t unit = begin + lane; unit < end; unit += 32) reach += layout::delta_sum(steps[unit]);
  for (int distance = 16; distance; distance /= 2) reach += __shfl_xor_sync(0xffffffffu, reach, distance);
  if (!lane && reach > static_cast<unsigned long long>(cols + layout::kDeltaPad)) atomicExch(found, 2);
}

struct Plan {
  OnnxpruneCudaWeight weight;
  Device device;
};

const char* sizes(const OnnxpruneCudaWeight* w) {
  if (const char* error = check_common(kDelta, *w)) return error;
  if (const char* error = check_count(kDelta, *w, 0, "starts", w->rows + 1)) return error;
  const int64_t units = w->tensors[1].count / 4;
  if (w->tensors[1].count % 4 || units > INT32_MAX)
    return say("there are %lld bytes of steps, wanted a multiple of 4", static_cast<long long>(w->tensors[1].count));
  return check_count(kDelta, *w, 2, "values", units * 8);
}

template <int Rows, class T>
const char* allow_rows(const Plan& plan) {
  if (Rows > 1 && shared_bytes<Rows>(plan.weight.cols) > plan.device.block_bytes) return nullptr;  // fewer at a time
  return allow(delta<Rows, T>, shared_bytes<Rows>(plan.weight.cols), plan.device, ": a row of X is too wide");
}

template <class T>
const char* allow_all(const Plan& plan) {
  if (const char* error = allow_rows<1, T>(plan)) return error;
  if (const char* error = allow_rows<2, T>(plan)) return error;
  if (const char* error = allow_rows<4, T>(plan)) return error;
  return allow_rows<8, T>(plan);
}

const char* create(const OnnxpruneCudaWeight* w, void** plan) {
  if (const char* error = sizes(w)) return error;
  int id = 0;
  if (const char* error = check_on_device(kDelta, *w, &id)) return error;
  const OnDevice current(id);
  Plan made{*w, {}};
  if (const char* error = read_device(&made.device)) return error;
  int found[4];
  const char* error = examine(found, [&](int* to) {
    start(check_delta, static_cast<unsigned>(layout::ceil_div(w->rows, 8)), 256, 0, nullptr,
          static_cast<const int*>(w->tensors[0].data), static_cast<const uint32_t*>(w->tensors[1].data), w->rows,
          w->tensors[1].count / 4, w->cols, to);
  });
  if (error) return error;
  if (found[0] == 1) return say("the starts do not ascend from 0 to the number of steps");
  if (found[0]) return say("the steps of a row reach beyond its %lld columns", static_cast<long long>(w->cols));
  error = w->type == kFloat16 ? allow_all<__half>(made) : allow_all<__nv_bfloat16>(made);
  if (error) return error;
  *plan = new (std::nothrow) Plan(made);
  return *plan ? nullptr : say("not enough memory");
}

template <int Rows, class T>
const char* launch(const Plan& plan, const OnnxpruneCudaRun& run) {
  const OnnxpruneCudaWeight& w = plan.weight;
  Args<T> a;
  set_operands<T>(a, w, run);
  a.starts = static_cast<const int*>(w.tensors[0].data);
  a.steps = static_cast<const uint32_t*>(w.tensors[1].data);
  a.values = static_cast<const uint4*>(w.tensors[2].data);
  const int64_t bytes = shared_bytes<Rows>(w.cols);
  // As many blocks as run at once: each brings X in once. 1 KiB of every block is the system's.
  const int64_t at_once = plan.device.processors * (2 * (bytes + 1024) <= plan.device.processor_bytes ? 2 : 1);
  const int64_t blocks = layout::ceil_div(w.rows, kWarps), turns = layout::ceil_div(run.m, Rows);
  if (turns > 65535)  // of grid.y
    return say("X has %lld rows, with %lld columns this op takes at most %d", static_cast<long long>(run.m),
               static_cast<long long>(w.cols), 65535 * Rows);
  const dim3 grid(static_cast<unsigned>(blocks < at_once ? blocks : at_once),
                  static_cast<unsigned>(turns));
  start(delta<Rows, T>, grid, kThreads, bytes, static_cast<cudaStream_t>(run.stream), a);
  return cuda_error("launch", cudaPeekAtLastError());
}

template <class T>
const char* launch_any(const Plan& plan, const OnnxpruneCudaRun& run) {
  int64_t rows = 1;
  while (rows < run.m && rows < kMostRows) rows *= 2;
  while (rows > 1 && (plan.weight.cols + layout::kDeltaPad) * rows * 2 > plan.device.block_bytes) rows /= 2;
  switch (rows) {
    case 1: return launch<1, T>(plan, run);
    case 2: return launch<2, T>(plan, run);
    case 4: return launch<4, T>(plan, run);
    default: return launch<8, T>(plan, run);
  }
}

const char* run(const void* opaque, const OnnxpruneCudaRun* run) {
  return run_plan<Plan>(kDelta, opaque, *run,
                        [&](const Plan& plan, auto type) { return launch_any<decltype(type)>(plan, *run); });
}

void destroy(void* plan) { delete static_cast<Plan*>(plan); }

}  // namespace

const OnnxpruneCudaOp kDelta = {"Delta", 3, {kInt32, kUint8, 0, 0}, 0, sizes, create, run, destroy};

}  // namespace onnxprune
