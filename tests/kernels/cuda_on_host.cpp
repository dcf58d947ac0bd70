// libonnxprune_cuda without CUDA: the same C interface on the host's memory, and the same index arithmetic.
//
// Every op walks strips, groups, steps and lanes as its kernel does, with the functions of ort_ops/cuda/layout.h, and
// multiplies fragments as the PTX ISA says that mma.m16n8k16 and mma.sp.m16n8k32 do. So what the kernels compute of
// indices is tested where there is no GPU, and so is the way from ONNX Runtime to the interface.
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "cuda/api.h"
#include "cuda/layout.h"
#include "half_bits.h"

using namespace onnxprune::layout;

namespace {

const char* say(const char* format, ...) {
  static thread_local char text[256];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  return text;
}

struct Plan {
  const OnnxpruneCudaOp* op;
  OnnxpruneCudaWeight weight;
};

struct Job {
  const OnnxpruneCudaWeight& w;
  const OnnxpruneCudaRun& run;
  // Where column k of row m is in a matrix of so many columns, or channel k of a pixel
  int64_t at(int64_t m, int64_t k, int64_t cols) const {
    return (m / run.pixels * cols + k) * run.pixels + m % run.pixels;
  }
  float x(int64_t m, int64_t k) const {
    return m < run.m && k < w.cols ? widen(static_cast<const uint16_t*>(run.x)[at(m, k, w.cols)], w.type) : 0.f;
  }
};

float activate(float x, const OnnxpruneCudaRun& run) {
  switch (run.activation) {
    case 1: return std::fmax(x, 0.f);
    case 2: return std::fmin(std::fmax(x, run.low), run.high);
    case 3: return 0.5f * x * (1.f + std::erf(x * 0.70710678f));
    case 4: return 0.5f * x * (1.f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
    case 5: return x / (1.f + std::exp(-x));
    case 6: return x * std::fmin(std::fmax(x / 6.f + 0.5f, 0.f), 1.f);
    default: return x;
  }
}

void write(const Job& job, int64_t m, int64_t n, float sum) {
  if (m >= job.run.m || n >= job.w.rows) return;
  if (job.run.bias) sum += widen(static_cast<const uint16_t*>(job.run.bias)[n], job.w.type);
  static_cast<uint16_t*>(job.run.y)[job.at(m, n, job.w.rows)] = narrow(activate(sum, job.run), job.w.type);
}

// D (16 of W x 8 of X) of one warp, in fragments
struct Warp {
  float d[32][4] = {};

  // a[lane][i]: as element i of operand A of mma.m16n8k16; b(k, n)
  template <class B>
  void mma(const float (&a)[32][8], const B& b) {
    float A[16][16] = {}, Bm[16][8] = {};
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) A[a_row(lane, i)][a_col(lane, i)] = a[lane][i];
      for (int r = 0; r < 2; ++r)
        for (int half = 0; half < 2; ++half) Bm[b_k(lane, r) + half][b_n(lane)] = b(b_k(lane, r) + half, b_n(lane));
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k) d[lane][i] += A[d_row(lane, i)][k] * Bm[k][d_col(lane, i)];
  }

  // The same for mma.sp.m16n8k32; meta[lane]
  template <class B>
  void mma_sp(const float (&a)[32][8], const uint32_t (&meta)[32], int selector, const B& b) {
    float A[16][32] = {}, Bm[32][8] = {};
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const uint32_t position = meta[nm_meta_lane(lane, i, selector)] >> nm_meta_shift(lane, i) & 3;
        A[nm_row(lane, i)][nm_quad(lane, i) * 4 + static_cast<int>(position)] = a[lane][i];
      }
      for (int r = 0; r < 4; ++r)
        for (int half = 0; half < 2; ++half) Bm[b_k(lane, r) + half][b_n(lane)] = b(b_k(lane, r) + half, b_n(lane));
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 32; ++k) d[lane][i] += A[d_row(lane, i)][k] * Bm[k][d_col(lane, i)];
  }

  void finish(const Job& job, int64_t row0, int64_t m0, const float* scales = nullptr) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int64_t n = row0 + d_row(lane, i);
        if (n < job.w.rows) write(job, m0 + d_col(lane, i), n, d[lane][i] * (scales ? scales[n] : 1.f));
      }
  }
};

template <class Strip>
void for_strips(const Job& job, const Strip& strip) {
  for (int64_t row0 = 0; row0 < job.w.rows; row0 += kStrip)
    for (int64_t m0 = 0; m0 < job.run.m; m0 += 8) strip(row0, m0);
}

void bitmap_tile(const Job& job) {
  const OnnxpruneCudaWeight& w = job.w;
  const auto* mask = static_cast<const uint64_t*>(w.tensors[0].data);
  const auto* offsets = static_cast<const int32_t*>(w.tensors[1].data);
  const bool bytes = w.tensors[2].type == 2;
  const int64_t groups = ceil_div(w.cols, kGroup);
  for_strips(job, [&](int64_t row0, int64_t m0) {
    Warp warp;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t at = row0 / kStrip * groups + group;
      HalfTile halves[32][2];
      uint32_t before = 0;
      for (int tile = 0; tile < 32; ++tile)
        for (int half = 0; half < 2; ++half) {
          const uint32_t bits = static_cast<uint32_t>(mask[at * 32 + tile] >> (32 * half));
          halves[tile][half] = {bits, before};
          before += static_cast<uint32_t>(popcount(bits));
        }
      const auto value = [&](uint32_t position) {
        if (bytes) return static_cast<const uint8_t*>(w.tensors[2].data)[offsets[at] * 16 + position] - 128.f;
        return widen(static_cast<const uint16_t*>(w.tensors[2].data)[offsets[at] * 8 + position], w.type);
      };
      for (int step = 0; step < kSteps; ++step) {
        float a[32][8] = {};
        for (int lane = 0; lane < 32; ++lane)
          for (int r = 0; r < 4; ++r) {
            const HalfTile half = halves[step * 4 + r][half_of(lane)];
            const uint32_t mine = half.bits >> pair_shift(lane), position = value_position(half, lane);
            if (mine & 1) a[lane][2 * r] = value(position);
            if (mine & 2) a[lane][2 * r + 1] = value(position + (mine & 1));
          }
        const int64_t first = group * kGroup + step * 16;
        warp.mma(a, [&](int k, int n) { return job.x(m0 + n, first + k); });
      }
    }
    warp.finish(job, row0, m0, bytes ? static_cast<const float*>(w.tensors[3].data) : nullptr);
  });
}

void nm_tile(const Job& job) {
  const OnnxpruneCudaWeight& w = job.w;
  const auto* meta = static_cast<const uint32_t*>(w.tensors[0].data);
  const auto* values = static_cast<const uint16_t*>(w.tensors[1].data) + 8;
  const int64_t groups = ceil_div(w.cols, kGroup);
  for_strips(job, [&](int64_t row0, int64_t m0) {
    Warp warp;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t at = row0 / kStrip * groups + group;
      for (int tile = 0; tile < 4; ++tile) {
        float a[32][8];
        uint32_t words[32];
        for (int lane = 0; lane < 32; ++lane) {
          words[lane] = meta[(at * 2 + tile / 2) * 32 + lane];
          for (int i = 0; i < 8; ++i) a[lane][i] = widen(values[((at * 4 + tile) * 32 + lane) * 8 + i], w.type);
        }
        const int64_t first = group * kGroup + tile * 32;
        warp.mma_sp(a, words, tile % 2, [&](int k, int n) { return job.x(m0 + n, first + k); });
      }
    }
    warp.finish(job, row0, m0);
  });
}

void block_sparse(const Job& job) {
  const OnnxpruneCudaWeight& w = job.w;
  const auto* slots = static_cast<const int32_t*>(w.tensors[0].data);
  const auto* values = static_cast<const uint16_t*>(w.tensors[1].data);
  const int64_t columns = ceil_div(w.cols, kBlockCols);
  for_strips(job, [&](int64_t row0, int64_t m0) {
    Warp warp;
    for (int64_t column = 0; column < columns; ++column) {
      const int32_t slot = slots[row0 / w.block_rows * columns + column];
      if (!slot) continue;
      const int strip = static_cast<int>(row0 % w.block_rows / kStrip);
      for (int step = 0; step < 4; ++step) {
        float a[32][8];
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < 8; ++i)
            a[lane][i] = widen(values[slot * w.block_rows * kBlockCols + block_offset(strip, step, lane) + i], w.type);
        const int64_t first = column * kBlockCols + step * 16;
        warp.mma(a, [&](int k, int n) { return job.x(m0 + n, first + k); });
      }
    }
    warp.finish(job, row0, m0);
  });
}

void delta(const Job& job) {
  const OnnxpruneCudaWeight& w = job.w;
  const auto* starts = static_cast<const int32_t*>(w.tensors[0].data);
  const auto* steps = static_cast<const uint32_t*>(w.tensors[1].data);
  const auto* values = static_cast<const uint16_t*>(w.tensors[2].data);
  for (int64_t m = 0; m < job.run.m; ++m)
    for (int64_t row = 0; row < w.rows; ++row) {
      float sum = 0;
      int reach = -1;
      for (int32_t unit = starts[row]; unit < starts[row + 1]; ++unit) {
        int at = reach;
        for (int j = 0; j < 8; ++j) {
          at += delta_step(steps[unit], j);
          if (at >= w.cols + kDeltaPad) std::abort();
          sum += widen(values[unit * 8 + j], w.type) * job.x(m, at);
        }
        reach += delta_sum(steps[unit]);
        if (reach != at) std::abort();
      }
      write(job, m, row, sum);
    }
}

// The sizes of the real library are checked by the real library: here only what keeps the walk inside the tensors
template <int Which>
const char* sizes(const OnnxpruneCudaWeight* w) {
  if (w->rows < 1 || w->cols < 1) return say("the weight has %lld rows", static_cast<long long>(w->rows));
  const int64_t strips = ceil_div(w->rows, kStrip), groups = ceil_div(w->cols, kGroup);
  const int64_t first = Which == 3 ? w->rows + 1
                        : Which == 2 ? (w->block_rows == 32 || w->block_rows == 64
                                           ? ceil_div(w->rows, w->block_rows) * ceil_div(w->cols, kBlockCols)
                                           : -1)
                                     : strips * groups * 256;
  return w->tensors[0].count == first ? nullptr : say("the first tensor has %lld elements, wanted %lld",
                                                      static_cast<long long>(w->tensors[0].count),
                                                      static_cast<long long>(first));
}

template <int Which>
const char* create(const OnnxpruneCudaWeight* w, void** plan);

const char* run(const void* plan, const OnnxpruneCudaRun* run);
void destroy(void* plan) { delete static_cast<Plan*>(plan); }

const OnnxpruneCudaOp ops[] = {
    {"BitmapTile", 3, {2, 6, 0, 0}, 1, sizes<0>, create<0>, run, destroy},
    {"BitmapTileInt8", 4, {2, 6, 2, 1}, 1, sizes<0>, create<1>, run, destroy},
    {"BlockSparse", 2, {6, 0, 0, 0}, 1, sizes<2>, create<2>, run, destroy},
    {"NMTile", 2, {2, 0, 0, 0}, 1, sizes<0>, create<3>, run, destroy, nullptr, [] { return "the host has none"; }},
    {"Delta", 3, {6, 2, 0, 0}, 0, sizes<3>, create<4>, run, destroy},
};

template <int Which>
const char* create(const OnnxpruneCudaWeight* w, void** plan) {
  *plan = new Plan{&ops[Which], *w};
  return nullptr;
}

const char* run(const void* opaque, const OnnxpruneCudaRun* run) {
  const auto& plan = *static_cast<const Plan*>(opaque);
  const Job job{plan.weight, *run};
  if (plan.op == &ops[4]) return delta(job), nullptr;
  if (plan.op == &ops[3]) return nm_tile(job), nullptr;
  if (plan.op == &ops[2]) return block_sparse(job), nullptr;
  return bitmap_tile(job), nullptr;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int32_t onnxprune_cuda_abi() { return ONNXPRUNE_CUDA_ABI; }
EXPORT const OnnxpruneCudaOp* onnxprune_cuda_op(int32_t i) { return i >= 0 && i < 5 ? &ops[i] : nullptr; }
EXPORT const char* onnxprune_cuda_info() {
  return "{\"compiler\": \"the host's\", \"devices\": [], "
         "\"cusparselt\": {\"library\": \"\", \"version\": \"\", \"problem\": \"the host has none\"}}";
}
EXPORT const char* onnxprune_cuda_problem() { return nullptr; }

// As in cuda/measure.cu, without a device
EXPORT const char* onnxprune_cuda_try(const OnnxpruneCudaOp* op, const OnnxpruneCudaWeight* weight,
                                      const OnnxpruneCudaRun* given, int64_t guard, int32_t) {
  std::memset(given->y, 0xff, static_cast<size_t>(given->m * weight->rows + guard) * 2);
  void* plan = nullptr;
  if (const char* error = op->sizes(weight)) return error;
  if (const char* error = op->create(weight, &plan)) return error;
  const char* error = op->run(plan, given);
  op->destroy(plan);
  return error;
}
