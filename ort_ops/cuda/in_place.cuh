// Bias and activation of a product that another library has made: a pass over Y.
#pragma once

#include <algorithm>

#include "common.cuh"

namespace onnxprune {

// Each: elements of a row of Y that a thread takes, 8 where rows begin at multiples of 16 bytes
template <class T, int Each>
__global__ void end_in_place(T* y, int64_t count, int n, const Ending ending) {
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * Each; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x * Each) {
    const T* bias = ending.bias ? static_cast<const T*>(ending.bias) + i % n : nullptr;
    if constexpr (Each == 8) {
      uint4 eight = *reinterpret_cast<const uint4*>(y + i);
      uint32_t* pairs = reinterpret_cast<uint32_t*>(&eight);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 pair = pair_to_float(pairs[j], T{});
        if (bias) pair.x += to_float(bias[2 * j]), pair.y += to_float(bias[2 * j + 1]);
        pairs[j] = pack_floats<T>(activate(pair.x, ending), activate(pair.y, ending));
      }
      *reinterpret_cast<uint4*>(y + i) = eight;
    } else {
      y[i] = from_float<T>(activate(to_float(y[i]) + (bias ? to_float(*bias) : 0.f), ending));
    }
  }
}

// Of the first `rows` rows of Y (m, n)
template <class T>
const char* end_all(const OnnxpruneCudaRun& run, int64_t rows, int64_t n, bool with_bias) {
  const Ending ending = {with_bias ? run.bias : nullptr, run.activation, run.low, run.high};
  const bool wide = n % 8 == 0 && aligned(run.y, 16);
  const int64_t count = rows * n, blocks = std::min<int64_t>(layout::ceil_div(count, wide ? 8 * 256 : 256), 4096);
  start(wide ? end_in_place<T, 8> : end_in_place<T, 1>, static_cast<unsigned>(blocks), 256, 0,
        static_cast<cudaStream_t>(run.stream), static_cast<T*>(run.y), count, static_cast<int>(n), ending);
  return cuda_error("launch", cudaPeekAtLastError());
}
inline const char* end_all(const OnnxpruneCudaWeight& w, const OnnxpruneCudaRun& run, int64_t rows, bool with_bias) {
  return w.type == kFloat16 ? end_all<__half>(run, rows, w.rows, with_bias)
                            : end_all<__nv_bfloat16>(run, rows, w.rows, with_bias);
}

}  // namespace onnxprune
