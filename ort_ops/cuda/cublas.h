// The part of cuBLAS that is used, declared here and found at run time: by measurements, and by 2:4 with many rows of X.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <type_traits>

#include "common.cuh"

namespace onnxprune {

struct Cublas {
  using Handle = void*;
  enum { kAsIs = 0, kTransposed = 1, kReal16F = 2, kReal16BF = 14, kCompute32F = 68, kDefaultAlgorithm = -1 };

  int (*create)(Handle*) = nullptr;
  int (*destroy)(Handle) = nullptr;
  int (*set_stream)(Handle, cudaStream_t) = nullptr;
  int (*set_workspace)(Handle, void*, size_t) = nullptr;
  int (*gemm)(Handle, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*,
              void*, int, int, int, int) = nullptr;
  int (*batched)(Handle, int, int, int, int, int, const void*, const void*, int, int, long long, const void*, int, int,
                 long long, const void*, void*, int, int, long long, int, int, int) = nullptr;

  // One that the process has already (ONNX Runtime's CUDA provider needs it), else what the loader finds
  const char* load(const char* path = "") {
    void* library = nullptr;
    for (const int how : {RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL})
      for (const char* name : {path, "libcublas.so.13", "libcublas.so.12", "libcublas.so"})
        if (*name && !library) library = dlopen(name, how);
    if (!library) return say("cuBLAS is not there: %s", dlerror());
    const auto find = [&](auto& to, const char* name) {
      to = reinterpret_cast<std::decay_t<decltype(to)>>(dlsym(library, name));
      return to != nullptr;
    };
    return find(create, "cublasCreate_v2") && find(destroy, "cublasDestroy_v2") &&
                   find(set_stream, "cublasSetStream_v2") && find(set_workspace, "cublasSetWorkspace_v2") &&
                   find(gemm, "cublasGemmEx") && find(batched, "cublasGemmStridedBatchedEx")
               ? nullptr
               : say("cuBLAS lacks a function");
  }

  // Y (m, rows) = X (m, cols) W^T, row-major; W is (rows, cols), or (cols, rows) where it is transposed
  int multiply(Handle handle, int type, bool transposed, int rows, int cols, int m, const void* w, const void* x,
               void* y) const {
    const float one = 1.f, zero = 0.f;
    return gemm(handle, transposed ? kAsIs : kTransposed, kAsIs, rows, m, cols, &one, w, type, transposed ? rows : cols,
                x, type, cols, &zero, y, type, rows, kCompute32F, kDefaultAlgorithm);
  }

  // Y (images, rows, pixels) = W (rows, cols) X (images, cols, pixels)
  int multiply_images(Handle handle, int type, int rows, int cols, int images, int pixels, const void* w, const void* x,
                      void* y) const {
    const float one = 1.f, zero = 0.f;
    const long long x_size = static_cast<long long>(pixels) * cols, y_size = static_cast<long long>(pixels) * rows;
    return batched(handle, kAsIs, kAsIs, pixels, rows, cols, &one, x, type, pixels, x_size, w, type, cols, 0, &zero, y,
                   type, pixels, y_size, images, kCompute32F, kDefaultAlgorithm);
  }
};

constexpr size_t kCublasWorkspace = 32 << 20;  // what NVIDIA recommends for Hopper
inline int cublas_type(int type) { return type == kFloat16 ? Cublas::kReal16F : Cublas::kReal16BF; }

}  // namespace onnxprune
