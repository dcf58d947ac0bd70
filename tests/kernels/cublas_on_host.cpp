// libcublas.so.13 on the host's memory: the functions that ort_ops/cuda uses, as NVIDIA documents them, for 16 bits.
//
// Strict: a handle that is gone, a stream or a workspace that was not set, or set in the wrong order, sizes and leading
// dimensions ends the process. A test can ask that a function fails, and how often each was called.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>

#include "half_bits.h"

namespace {

enum { kSuccess = 0, kAsIs = 0, kTransposed = 1, kReal16F = 2, kReal16BF = 14, kCompute32F = 68 };

struct Handle {
  bool stream = false;
  void* workspace = nullptr;
};

std::map<std::string, int> calls, failing;
std::set<Handle*> alive;

void insist(bool fine, const char* what) {
  if (!fine) std::fprintf(stderr, "cublas_on_host: %s\n", what), std::abort();
}

int begin(const char* name) {
  ++calls[name];
  const auto found = failing.find(name);
  return found == failing.end() ? kSuccess : found->second;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void on_host_blas_reset() { calls.clear(), failing.clear(); }
EXPORT void on_host_blas_fail(const char* name, int status) { failing[name] = status; }
EXPORT int on_host_blas_calls(const char* name) { return calls[name]; }
EXPORT int on_host_blas_alive() { return static_cast<int>(alive.size()); }

EXPORT int cublasCreate_v2(Handle** handle) {
  if (const int status = begin("Create")) return status;
  *handle = new Handle;
  alive.insert(*handle);
  return kSuccess;
}
EXPORT int cublasDestroy_v2(Handle* handle) {
  insist(alive.erase(handle) == 1, "a handle is destroyed that is not there");
  delete handle;
  return kSuccess;
}
EXPORT int cublasSetStream_v2(Handle* handle, void*) {
  insist(alive.count(handle), "a handle that is gone");
  handle->stream = true, handle->workspace = nullptr;  // as the real one does
  return begin("SetStream");
}
EXPORT int cublasSetWorkspace_v2(Handle* handle, void* workspace, size_t bytes) {
  insist(alive.count(handle) && workspace && bytes, "a workspace that is none");
  handle->workspace = workspace;
  return begin("SetWorkspace");
}

// D (m, n) = A (m, k) B (k, n), column-major; only what row-major products need
EXPORT int cublasGemmEx(Handle* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                        int type_a, int lda, const void* b, int type_b, int ldb, const void* beta, void* c, int type_c,
                        int ldc, int compute, int algorithm) {
  if (const int status = begin("GemmEx")) return status;
  insist(alive.count(handle) && handle->stream && handle->workspace, "no stream or no workspace");
  insist(op_b == kAsIs && (type_a == kReal16F || type_a == kReal16BF) && type_b == type_a && type_c == type_a, "types");
  insist(compute == kCompute32F && algorithm == -1 && m > 0 && n > 0 && k > 0, "sizes");
  insist(lda >= (op_a == kTransposed ? k : m) && ldb >= k && ldc >= m, "leading dimensions");
  insist(*static_cast<const float*>(alpha) == 1.f && *static_cast<const float*>(beta) == 0.f, "factors");
  const int type = type_a == kReal16F ? 10 : 16;
  const auto* A = static_cast<const uint16_t*>(a);
  const auto* B = static_cast<const uint16_t*>(b);
  for (int64_t column = 0; column < n; ++column)
    for (int64_t row = 0; row < m; ++row) {
      float sum = 0;
      for (int64_t i = 0; i < k; ++i)
        sum += widen(A[op_a == kTransposed ? row * lda + i : i * lda + row], type) * widen(B[column * ldb + i], type);
      static_cast<uint16_t*>(c)[column * ldc + row] = narrow(sum, type);
    }
  return kSuccess;
}

// Measurements ask for it, and they need a GPU
EXPORT int cublasGemmStridedBatchedEx() { return 15; }
