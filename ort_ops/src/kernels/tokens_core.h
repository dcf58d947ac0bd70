// Token-major activations to tiles and back: pack_tokens, write_tokens, write_rows of levels.h.
// Included by level_*.cpp only.
#pragma once

#include "../epilogue.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

// W tokens into one vector column of the tile: T[k * pitch] = {X[0][k], .. X[W - 1][k]}
static inline void pack_vector(const float* X, ptrdiff_t ldx, int64_t tokens, int64_t columns, float* T, ptrdiff_t pitch) {
  int64_t k = 0;
  V out[4];
  if (tokens >= W)
    for (; k + 4 <= columns; k += 4) {
      load_transposed(X + k, ldx, out);
      ONNXPRUNE_UNROLL for (int c = 0; c < 4; ++c) store(T + (k + c) * pitch, out[c]);
    }
  for (; k < columns; k += 4) {
    load_transposed_part(X + k, ldx, tokens, columns - k, out);
    for (int c = 0; c < 4 && k + c < columns; ++c) store(T + (k + c) * pitch, out[c]);
  }
}

// A strip of 64 columns of the tile stays in L1 while its vectors are filled (a third faster than whole columns)
constexpr int64_t kPackColumns = 64;

static void pack_tokens(int vectors, const float* X, ptrdiff_t ldx, int64_t tokens, int64_t columns, float* T) {
  const ptrdiff_t pitch = vectors * W;
  for (int64_t k = 0; k < columns; k += kPackColumns) {
    const int64_t strip = columns - k < kPackColumns ? columns - k : kPackColumns;
    for (int v = 0; v < vectors; ++v)
      pack_vector(X + v * W * ldx + k, ldx, tokens - v * W, strip, T + k * pitch + v * W, pitch);
  }
}

template <Activation A>
static inline void write_vector(V v, int64_t r, int64_t n, float* y, const float* bias, const float* residual,
                                const Epilogue& epilogue) {
  if (n >= W) {
    if (bias) v += load(bias + r);
    if (residual) v += load(residual + r);
    store(y + r, activate<A>(v, epilogue));
  } else {
    if (bias) v += load_part(bias + r, n);
    if (residual) v += load_part(residual + r, n);
    store_part(y + r, activate<A>(v, epilogue), n);
  }
}

// 64 rows of C stay in L1 while all their tokens are written, and Y is written in whole cache lines
constexpr int64_t kWriteRows = 64;

template <Activation A>
static void write_tokens_as(const float* C, ptrdiff_t ldc, int64_t rows, int64_t tokens, float* Y, ptrdiff_t ldy,
                            const float* bias, const float* residual, const Epilogue& epilogue) {
  for (int64_t strip = 0; strip < rows; strip += kWriteRows) {
    const int64_t end = rows - strip < kWriteRows ? rows : strip + kWriteRows;
    for (int64_t t = 0; t < tokens; t += 4)
      for (int64_t r = strip; r < end; r += W) {
        V out[4];
        if (end - r >= W) load_transposed(C + r * ldc + t, ldc, out);
        else load_transposed_part(C + r * ldc + t, ldc, end - r, 4, out);
        for (int c = 0; c < 4 && t + c < tokens; ++c)
          write_vector<A>(out[c], r, end - r, Y + (t + c) * ldy, bias, residual ? residual + (t + c) * ldy : nullptr,
                          epilogue);
      }
  }
}

static void write_tokens(const float* C, ptrdiff_t ldc, int64_t rows, int64_t tokens, float* Y, ptrdiff_t ldy,
                         const float* bias, const float* residual, const Epilogue& epilogue) {
  with_activation(epilogue.activation, [&](auto a) {
    write_tokens_as<decltype(a)::value>(C, ldc, rows, tokens, Y, ldy, bias, residual, epilogue);
  });
}

template <Activation A>
static void write_rows_as(const float* C, ptrdiff_t ldc, int64_t rows, int64_t positions, float* Y, ptrdiff_t ldy,
                          const float* bias, const float* residual, const Epilogue& epilogue) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* c = C + r * ldc;
    const float* x = residual ? residual + r * ldy : nullptr;
    float* y = Y + r * ldy;
    const V b = splat(bias ? bias[r] : 0.f);
    int64_t p = 0;
    for (; p + W <= positions; p += W) store(y + p, activate<A>(load(c + p) + b + (x ? load(x + p) : V{}), epilogue));
    if (const int64_t n = positions - p; n > 0)
      store_part(y + p, activate<A>(load_part(c + p, n) + b + (x ? load_part(x + p, n) : V{}), epilogue), n);
  }
}

static void write_rows(const float* C, ptrdiff_t ldc, int64_t rows, int64_t positions, float* Y, ptrdiff_t ldy,
                       const float* bias, const float* residual, const Epilogue& epilogue) {
  with_activation(epilogue.activation, [&](auto a) {
    write_rows_as<decltype(a)::value>(C, ldc, rows, positions, Y, ldy, bias, residual, epilogue);
  });
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
