// libcusparseLt.so.0 on the host's memory: the functions that ort_ops/cuda uses, as NVIDIA documents them.
//
// Strict where the real one may be lenient: sizes, leading dimensions, alignment, types, pointers into objects that have
// moved or are gone, weights that are not 2:4, a workspace that is too small. What a test can ask for: that a function
// fails, what version it says it has, how large a workspace is.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "half_bits.h"

namespace {

enum Status { kSuccess = 0, kInvalid = 3, kNotSupported = 10 };
enum Kind : uint32_t { kHandle = 0x1a2b3c01, kMatrix, kMatmul, kAlgorithm, kPlan };

// What NVIDIA's objects have room for
template <class T>
constexpr bool fits() { return sizeof(T) <= 512 && alignof(T) <= 16; }

struct Handle {
  Kind kind;
};
struct Matrix {
  Kind kind;
  int type, order;
  bool structured;
  int64_t rows, cols, ld;
};
struct Matmul {
  Kind kind;
  int op_a, op_b, relu;
  const Matrix *a, *b, *d;
  const void* bias;
};
struct Algorithm {
  Kind kind;
  int config, split_k, split_k_mode;
  const Matmul* matmul;
};
struct Plan {
  Kind kind;
  int config, split_k;
  const Matmul* matmul;
  Algorithm* algorithm;
  const Plan* self;
};
static_assert(fits<Handle>() && fits<Matrix>() && fits<Matmul>() && fits<Algorithm>() && fits<Plan>());

std::map<std::string, int> calls, failing;
int alive = 0;
size_t workspace_bytes = 1000;
int skew = 0;  // fours of columns of W that are left out

int refuse(const char* what) {
  std::fprintf(stderr, "cusparselt_on_host: %s\n", what);
  return kInvalid;
}

// Counts the call; the status that a test wants of it
int enter(const char* name) {
  ++calls[name];
  if (std::getenv("CUSPARSELT_ON_HOST_TRACE")) std::fprintf(stderr, "cuSPARSELt: %s\n", name);
  const auto found = failing.find(name);
  return found == failing.end() ? kSuccess : found->second;
}
#define ENTER(name) \
  if (const int status = enter(name)) return status
#define WANT(condition) \
  if (!(condition)) return refuse(#condition)

bool aligned(const void* pointer) { return pointer && reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }
int onnx_type(int type) { return type == 2 ? 10 : 16; }

template <class T>
int destroy(const T* object, Kind kind) {
  WANT(object && object->kind == kind);
  const_cast<T*>(object)->kind = static_cast<Kind>(0);
  --alive;
  return kSuccess;
}

int describe(const Handle* handle, Matrix* made, int64_t rows, int64_t cols, int64_t ld, uint32_t alignment, int type,
             int order, bool structured) {
  const int64_t unit = structured ? 16 : 8;
  WANT(handle && handle->kind == kHandle && made);
  WANT(rows > 0 && cols > 0 && rows % unit == 0 && cols % unit == 0 && rows * cols <= INT32_MAX);
  WANT((order == 1 && ld == rows) || (order == 2 && ld == cols));
  WANT(alignment == 16 && (type == 2 || type == 14));
  *made = {kMatrix, type, order, structured, rows, cols, ld};
  ++alive;
  return kSuccess;
}

uint16_t at(const void* data, const Matrix& m, int64_t row, int64_t col) {
  return static_cast<const uint16_t*>(data)[m.order == 2 ? row * m.ld + col : col * m.ld + row];
}

// Compressed: two values of each four, row by row, then a byte for their positions
int64_t quads(const Matrix& m) { return m.rows * m.cols / 4; }

int multiply(const Handle* handle, const Plan* plan, const void* alpha, const void* a, const void* b, const void* beta,
             const void* c, void* d, void* workspace, void** streams, int32_t stream_count) {
  WANT(handle && handle->kind == kHandle && plan && plan->kind == kPlan && plan->self == plan);
  WANT(plan->algorithm->kind == kAlgorithm && plan->matmul->kind == kMatmul);
  const Matmul& m = *plan->matmul;
  WANT(m.a->kind == kMatrix && m.b->kind == kMatrix && m.d->kind == kMatrix);
  WANT(aligned(a) && aligned(b) && aligned(c) && aligned(d) && streams && stream_count == 1);
  WANT(*static_cast<const float*>(alpha) == 1.f && *static_cast<const float*>(beta) == 0.f && c == d);
  const size_t bytes = workspace_bytes + (plan->split_k > 1 ? 4096 : 0);
  WANT(!bytes || aligned(workspace));
  if (bytes) std::memset(workspace, 0xaa, bytes);
  const auto* values = static_cast<const uint16_t*>(a);
  const auto* positions = reinterpret_cast<const uint8_t*>(values + 2 * quads(*m.a));
  const int type = onnx_type(m.a->type);
  for (int64_t n = 0; n < m.a->rows; ++n)
    for (int64_t row = 0; row < m.d->cols; ++row) {
      float sum = m.bias ? widen(static_cast<const uint16_t*>(m.bias)[n], type) : 0.f;
      for (int64_t q = skew; q < m.a->cols / 4; ++q) {
        const int64_t quad = n * m.a->cols / 4 + q;
        for (int i = 0; i < 2; ++i)  // op(B) is B transposed
          sum += widen(values[2 * quad + i], type) *
                 widen(at(b, *m.b, row, 4 * q + (positions[quad] >> (2 * i) & 3)), type);
      }
      static_cast<uint16_t*>(d)[row * m.d->ld + n] = narrow(m.relu ? std::fmax(sum, 0.f) : sum, type);
    }
  return kSuccess;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int cusparseLtGetProperty(int property, int* value) {
  ENTER("GetProperty");
  const char* wanted = std::getenv("CUSPARSELT_ON_HOST");
  int numbers[3] = {0, 8, 1};
  if (wanted) std::sscanf(wanted, "%d.%d.%d", numbers, numbers + 1, numbers + 2);
  WANT(property >= 0 && property < 3);
  *value = numbers[property];
  return kSuccess;
}

EXPORT const char* cusparseLtGetErrorString(int status) { return status == kInvalid ? "invalid value" : "a failure"; }

EXPORT int cusparseLtInit(Handle* handle) {
  ENTER("Init");
  *handle = {kHandle};
  return kSuccess;
}
EXPORT int cusparseLtDestroy(const Handle* handle) { return destroy(handle, kHandle); }

EXPORT int cusparseLtDenseDescriptorInit(const Handle* handle, Matrix* made, int64_t rows, int64_t cols, int64_t ld,
                                         uint32_t alignment, int type, int order) {
  ENTER("DenseDescriptorInit");
  return describe(handle, made, rows, cols, ld, alignment, type, order, false);
}
EXPORT int cusparseLtStructuredDescriptorInit(const Handle* handle, Matrix* made, int64_t rows, int64_t cols, int64_t ld,
                                              uint32_t alignment, int type, int order, int sparsity) {
  ENTER("StructuredDescriptorInit");
  WANT(sparsity == 0);
  return describe(handle, made, rows, cols, ld, alignment, type, order, true);
}
EXPORT int cusparseLtMatDescriptorDestroy(const Matrix* matrix) { return destroy(matrix, kMatrix); }

EXPORT int cusparseLtMatmulDescriptorInit(const Handle* handle, Matmul* made, int op_a, int op_b, const Matrix* a,
                                          const Matrix* b, const Matrix* c, const Matrix* d, int compute) {
  ENTER("MatmulDescriptorInit");
  WANT(handle && handle->kind == kHandle && a->kind == kMatrix && b->kind == kMatrix && d->kind == kMatrix);
  WANT(a->structured && !b->structured && c == d && a->type == b->type && a->type == d->type);
  WANT(op_a == 0 && op_b == 1 && a->order == 2 && b->order == 2 && d->order == 1);  // what multiply can do
  WANT(a->cols == b->cols && a->rows == d->rows && b->rows == d->cols && compute == 2);
  *made = {kMatmul, op_a, op_b, 0, a, b, d, nullptr};
  return kSuccess;
}

EXPORT int cusparseLtMatmulDescSetAttribute(const Handle* handle, Matmul* matmul, int attribute, const void* data,
                                            size_t bytes) {
  ENTER("MatmulDescSetAttribute");
  WANT(handle && handle->kind == kHandle && matmul->kind == kMatmul);
  WANT((attribute == 0 && bytes == sizeof(int)) || (attribute == 8 && bytes == sizeof(void*)));
  if (attribute == 0) std::memcpy(&matmul->relu, data, bytes);
  if (attribute == 8) std::memcpy(&matmul->bias, data, bytes);
  return kSuccess;
}

EXPORT int cusparseLtMatmulAlgSelectionInit(const Handle* handle, Algorithm* made, const Matmul* matmul, int which) {
  ENTER("MatmulAlgSelectionInit");
  WANT(handle && handle->kind == kHandle && matmul->kind == kMatmul && which == 0);
  *made = {kAlgorithm, 0, 1, 0, matmul};
  ++alive;
  return kSuccess;
}
EXPORT int cusparseLtMatmulAlgSelectionDestroy(const Algorithm* algorithm) { return destroy(algorithm, kAlgorithm); }

EXPORT int cusparseLtMatmulAlgSetAttribute(const Handle*, Algorithm* algorithm, int attribute, const void* data,
                                           size_t bytes) {
  ENTER("MatmulAlgSetAttribute");
  WANT(algorithm->kind == kAlgorithm && bytes == sizeof(int));
  int value;
  std::memcpy(&value, data, bytes);
  WANT((attribute == 0 && value >= 0 && value < 4) || (attribute == 3 && value > 1) || (attribute == 4 && value == 1));
  (attribute == 0 ? algorithm->config : attribute == 3 ? algorithm->split_k : algorithm->split_k_mode) = value;
  return kSuccess;
}
EXPORT int cusparseLtMatmulAlgGetAttribute(const Handle*, const Algorithm* algorithm, int attribute, void* data,
                                           size_t bytes) {
  ENTER("MatmulAlgGetAttribute");
  WANT(algorithm->kind == kAlgorithm && bytes == sizeof(int) && (attribute == 0 || attribute == 3 || attribute == 4));
  const int value = attribute == 0 ? algorithm->config : attribute == 3 ? algorithm->split_k : algorithm->split_k_mode;
  std::memcpy(data, &value, bytes);
  return kSuccess;
}

EXPORT int cusparseLtMatmulPlanInit(const Handle* handle, Plan* made, const Matmul* matmul, Algorithm* algorithm) {
  ENTER("MatmulPlanInit");
  WANT(handle && handle->kind == kHandle && matmul->kind == kMatmul && algorithm->kind == kAlgorithm);
  WANT(algorithm->matmul == matmul);
  *made = {kPlan, algorithm->config, algorithm->split_k, matmul, algorithm, made};
  ++alive;
  return kSuccess;
}
EXPORT int cusparseLtMatmulPlanDestroy(const Plan* plan) {
  WANT(plan->algorithm->kind == kAlgorithm && plan->matmul->a->kind == kMatrix);  // plans go first
  return destroy(plan, kPlan);
}

EXPORT int cusparseLtMatmulGetWorkspace(const Handle*, const Plan* plan, size_t* bytes) {
  ENTER("MatmulGetWorkspace");
  WANT(plan->kind == kPlan && bytes);
  *bytes = workspace_bytes + (plan->split_k > 1 ? 4096 : 0);
  return kSuccess;
}

EXPORT int cusparseLtMatmul(const Handle* handle, const Plan* plan, const void* alpha, const void* a, const void* b,
                            const void* beta, const void* c, void* d, void* workspace, void** streams, int32_t count) {
  ENTER("Matmul");
  return multiply(handle, plan, alpha, a, b, beta, c, d, workspace, streams, count);
}
#if !defined(WITHOUT_SEARCH)
EXPORT int cusparseLtMatmulSearch(const Handle* handle, Plan* plan, const void* alpha, const void* a, const void* b,
                                  const void* beta, const void* c, void* d, void* workspace, void** streams,
                                  int32_t count) {
  ENTER("MatmulSearch");
  plan->algorithm->config = 2, plan->algorithm->split_k = 2, plan->algorithm->split_k_mode = 1;
  return multiply(handle, plan, alpha, a, b, beta, c, d, workspace, streams, count);
}
#endif

EXPORT int cusparseLtSpMMACompressedSize2(const Handle* handle, const Matrix* matrix, size_t* bytes, size_t* buffer) {
  ENTER("SpMMACompressedSize2");
  WANT(handle && handle->kind == kHandle && matrix->kind == kMatrix && matrix->structured);
  *bytes = static_cast<size_t>(quads(*matrix)) * 5, *buffer = 256;
  return kSuccess;
}
EXPORT int cusparseLtSpMMACompress2(const Handle*, const Matrix* matrix, int is_a, int op, const void* dense,
                                    void* compressed, void* buffer, void*) {
  ENTER("SpMMACompress2");
  WANT(matrix->kind == kMatrix && is_a == 1 && op == 0 && aligned(dense) && aligned(compressed) && aligned(buffer));
  std::memset(buffer, 0xbb, 256);
  auto* values = static_cast<uint16_t*>(compressed);
  auto* positions = reinterpret_cast<uint8_t*>(values + 2 * quads(*matrix));
  for (int64_t quad = 0; quad < quads(*matrix); ++quad) {
    const uint16_t* four = static_cast<const uint16_t*>(dense) + 4 * quad;
    int kept[2] = {2, 3}, count = 0;
    for (int i = 0; i < 4; ++i) {
      if (!(four[i] & 0x7fff)) continue;
      WANT(count < 2);
      kept[count++] = i;
    }
    if (count == 1 && kept[0] == 3) kept[0] = 2, kept[1] = 3;
    positions[quad] = static_cast<uint8_t>(kept[0] | kept[1] << 2);
    for (int i = 0; i < 2; ++i) values[2 * quad + i] = four[kept[i]];
  }
  return kSuccess;
}

// ---------------------------------------------------------------- for tests

EXPORT void on_host_reset() { calls.clear(), failing.clear(), workspace_bytes = 1000; }
EXPORT void on_host_fail(const char* name, int status) { failing[name] = status; }
EXPORT void on_host_workspace(size_t bytes) { workspace_bytes = bytes; }
EXPORT void on_host_skew(int fours) { skew = fours; }
EXPORT int on_host_calls(const char* name) { return calls[name]; }
EXPORT int on_host_alive() { return alive; }
