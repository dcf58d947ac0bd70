// LayerNormalization over the last axis, in place. Included by level_*.cpp only.
#pragma once

#include "../epilogue.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

// sum of f(x) over a row; two accumulators halve the wait for the additions
template <typename F>
static inline float row_sum(const float* y, int64_t n, const F& f) {
  V a{}, b{};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    a += f(load(y + i));
    b += f(load(y + i + W));
  }
  float rest = 0.f;
  for (; i < n; ++i) rest += f(splat(y[i]))[0];
  return sum(a + b) + rest;
}

static void layer_norm(float* Y, int64_t tokens, int64_t n, const Epilogue& epilogue) {
  const float* gamma = epilogue.gamma;
  const float* beta = epilogue.beta;
  for (int64_t t = 0; t < tokens; ++t) {
    float* y = Y + t * n;
    const V mean = splat(row_sum(y, n, [](V v) { return v; }) / static_cast<float>(n));
    const float variance = row_sum(y, n, [mean](V v) { return (v - mean) * (v - mean); }) / static_cast<float>(n);
    const V scale = splat(1.f / __builtin_sqrtf(variance + epilogue.epsilon));
    int64_t i = 0;
    for (; i + W <= n; i += W)
      store(y + i, fma((load(y + i) - mean) * scale, load(gamma + i), beta ? load(beta + i) : V{}));
    if (const int64_t rest = n - i; rest > 0)
      store_part(y + i, fma((load_part(y + i, rest) - mean) * scale, load_part(gamma + i, rest),
                            beta ? load_part(beta + i, rest) : V{}), rest);
  }
}

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
