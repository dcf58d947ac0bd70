// Padded, phase-split copy of one input plane (see PlaneLayout). Include only from level_*.cpp.
#pragma once

#include "conv_simd.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

static inline void fill_zero(float* out, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, V{});
  if (i < n) store_masked(out + i, V{}, n - i);
}

static inline void copy_floats(const float* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, load(x + i));
  if (i < n) store_masked(out + i, load_masked(x + i, n - i), n - i);
}

// a0 a2 a4 ... b1 b3 b5 ...: every second of 2 W - 1 values, b starting one value early so as not to read beyond them
static inline V every_second(V a, V b) {
#if defined(__AVX512F__)
  return ONNXPRUNE_PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX2__)
  return ONNXPRUNE_PICK(a, b, 0, 2, 4, 6, 9, 11, 13, 15);
#else
  return ONNXPRUNE_PICK(a, b, 0, 2, 5, 7);
#endif
}

// Columns of a phase: out[c] = x[first + c * stride] for left <= c < end, else 0
struct CopyColumns {
  int64_t first, stride, left, end, pitch;
};

static inline CopyColumns copy_columns(int64_t width, int64_t first, int64_t stride, int64_t pitch) {
  int64_t left = first < 0 ? (-first + stride - 1) / stride : 0;
  if (left > pitch) left = pitch;
  int64_t end = width > first ? (width - first + stride - 1) / stride : 0;
  if (end > pitch) end = pitch;
  if (end < left) end = left;
  return {first, stride, left, end, pitch};
}

static inline void copy_row(const float* x, const CopyColumns& columns, float* out) {
  const int64_t stride = columns.stride, left = columns.left, end = columns.end;
  fill_zero(out, left);
  x += columns.first;
  if (stride == 1) {
    copy_floats(x + left, out + left, end - left);
  } else {
    int64_t c = left;
    if (stride == 2) {
      for (; c + W <= end; c += W) store(out + c, every_second(load(x + 2 * c), load(x + 2 * c + W - 1)));
      if (const int64_t n = end - c; n > 0) {
        const V a = load_masked(x + 2 * c, 2 * n - 1 < W ? 2 * n - 1 : W);
        const V b = 2 * n > W ? load_masked(x + 2 * c + W - 1, 2 * n - W) : V{};
        store_masked(out + c, every_second(a, b), n);
        c = end;
      }
    }
    for (; c < end; ++c) out[c] = x[c * stride];
  }
  fill_zero(out + end, columns.pitch - end);
}

// A vector of a short row: what of the input row it takes, padding included, is the same for all rows
struct CopyPiece {
  int64_t from;  // place in the input row of its first value, maybe before the row
  LaneMask first, second, out;
};

constexpr int kCopyPieces = 4;

template <int STRIDE>
static inline void copy_short_row(const float* x, const CopyPiece* pieces, int count, float* out) {
  for (int i = 0; i < count; ++i) {
    const CopyPiece& piece = pieces[i];
    V v = load_lanes(x + piece.from, piece.first);
    if (STRIDE == 2) v = every_second(v, load_lanes(x + piece.from + W - 1, piece.second));
    store_lanes(out + i * W, v, piece.out);
  }
}

template <int STRIDE>
static void copy_short_rows(const CopyJob& job, int64_t h, int64_t first, const float* x, float* phase) {
  CopyPiece pieces[kCopyPieces];
  const int count = static_cast<int>((job.pitch + W - 1) / W);
  for (int i = 0; i < count; ++i) {
    const int64_t from = first + STRIDE * W * i;
    pieces[i] = {from, lanes_between(-from, job.width - from),
                 lanes_between(1 - W - from, job.width - from - W + 1), lanes_between(0, job.pitch - i * W)};
  }
  for (int64_t r = 0; r < job.rows; ++r) {
    const int64_t in = r * job.stride_h + h - job.pad_top;
    float* row = phase + r * job.pitch;
    if (in < 0 || in >= job.height) {
      fill_zero(row, job.pitch);
    } else {
      copy_short_row<STRIDE>(x + in * job.width, pieces, count, row);
    }
  }
}

static void copy_long_rows(const CopyJob& job, int64_t h, int64_t first, const float* x, float* phase) {
  const CopyColumns columns = copy_columns(job.width, first, job.stride_w, job.pitch);
  for (int64_t r = 0; r < job.rows; ++r) {
    const int64_t in = r * job.stride_h + h - job.pad_top;
    float* row = phase + r * job.pitch;
    if (in < 0 || in >= job.height) {
      fill_zero(row, job.pitch);
    } else {
      copy_row(x + in * job.width, columns, row);
    }
  }
}

static void copy_plane(const CopyJob& job, const float* x, float* out) {
  const bool is_short = job.pitch <= kCopyPieces * W;
  for (int64_t h = 0; h < job.stride_h; ++h) {
    if (job.slot_h[h] < 0) continue;
    for (int64_t w = 0; w < job.stride_w; ++w) {
      if (job.slot_w[w] < 0) continue;
      float* phase = out + (job.slot_h[h] * job.used_w + job.slot_w[w]) * job.phase;
      const int64_t first = w - job.pad_left;
      if (is_short && job.stride_w == 1) copy_short_rows<1>(job, h, first, x, phase);
      else if (is_short && job.stride_w == 2) copy_short_rows<2>(job, h, first, x, phase);
      else copy_long_rows(job, h, first, x, phase);
    }
  }
  const int64_t phases_end = job.used_phases * job.phase;
  fill_zero(out + phases_end, job.channel - phases_end);
}

static void pack_tile(const float* X, const int64_t* offset, int64_t columns, int64_t count, int64_t P, float* T) {
  const int64_t whole = count / W * W;
  for (int64_t k = 0; k < columns; ++k) {
    const float* x = X + offset[k];
    float* t = T + k * P;
    int64_t p = 0;
    for (; p < whole; p += W) store(t + p, load(x + p));
    if (p < count) {
      store(t + p, load_masked(x + p, count - p));
      p += W;
    }
    for (; p < P; p += W) store(t + p, V{});
  }
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
