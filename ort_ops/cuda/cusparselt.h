// The part of cuSPARSELt's C interface that is used here, declared by ourselves: building needs no header of NVIDIA's,
// running needs no library. tests/kernels/test_cusparselt.py compares it with the real header and the real library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace onnxprune::cusparselt {

// From 0.7 on types, numbers and arguments are those below
constexpr int kOldestMinor = 7;
constexpr char kSoName[] = "libcusparseLt.so.0";  // of all 0.x; another number would be another interface

// Objects of the library that live in our memory: of 1024 bytes in 0.7, of 512 from 0.8 on, of 13072 in 0.6
template <int Kind>
struct alignas(16) Object {
  unsigned char data[2048];
};
using Handle = Object<0>;
using Matrix = Object<1>;
using Product = Object<2>;
using Algorithm = Object<3>;
using Plan = Object<4>;

using Stream = void*;  // cudaStream_t

enum Property { kMajor, kMinor, kPatch };
enum DataType { kReal16F = 2, kReal16BF = 14 };
enum Order { kColumns = 1, kRows = 2 };
enum Operation { kAsIs = 0, kTransposed = 1 };
enum Sparsity { kHalf = 0 };
enum Compute { kCompute32F = 2 };
enum MatmulAttribute { kRelu = 0, kBiasPointer = 8 };
enum Default { kDefault = 0 };
enum AlgorithmAttribute { kConfigId = 0, kSplitK = 3, kSplitKMode = 4 };

// cusparseLt<Name>; every one returns a cusparseStatus_t, 0 for success, but for the text of that
struct Api {
  int (*GetProperty)(int property, int* value);
  int (*Init)(Handle*);
  int (*Destroy)(const Handle*);
  int (*DenseDescriptorInit)(const Handle*, Matrix*, int64_t rows, int64_t cols, int64_t ld, uint32_t alignment,
                             int type, int order);
  int (*StructuredDescriptorInit)(const Handle*, Matrix*, int64_t rows, int64_t cols, int64_t ld, uint32_t alignment,
                                  int type, int order, int sparsity);
  int (*MatDescriptorDestroy)(const Matrix*);
  int (*MatmulDescriptorInit)(const Handle*, Product*, int op_a, int op_b, const Matrix* a, const Matrix* b,
                              const Matrix* c, const Matrix* d, int compute);
  int (*MatmulDescSetAttribute)(const Handle*, Product*, int attribute, const void* data, size_t bytes);
  int (*MatmulAlgSelectionInit)(const Handle*, Algorithm*, const Product*, int algorithm);
  int (*MatmulAlgSetAttribute)(const Handle*, Algorithm*, int attribute, const void* data, size_t bytes);
  int (*MatmulAlgGetAttribute)(const Handle*, const Algorithm*, int attribute, void* data, size_t bytes);
  int (*MatmulPlanInit)(const Handle*, Plan*, const Product*, const Algorithm*);
  int (*MatmulPlanDestroy)(const Plan*);
  int (*MatmulGetWorkspace)(const Handle*, const Plan*, size_t* bytes);
  int (*Matmul)(const Handle*, const Plan*, const void* alpha, const void* a, const void* b, const void* beta,
                 const void* c, void* d, void* workspace, Stream* streams, int32_t stream_count);
  int (*MatmulSearch)(const Handle*, Plan*, const void* alpha, const void* a, const void* b, const void* beta,
                      const void* c, void* d, void* workspace, Stream* streams, int32_t stream_count);
  int (*SpMMACompressedSize2)(const Handle*, const Matrix*, size_t* bytes, size_t* buffer_bytes);
  int (*SpMMACompress2)(const Handle*, const Matrix*, int is_a, int op, const void* dense, void* compressed,
                        void* buffer, Stream stream);
  // Not in every version: null where it is missing
  const char* (*GetErrorString)(int status);
  int (*MatmulAlgSelectionDestroy)(const Algorithm*);
};

// Calls f(name, member) for each function that must be there
template <class F>
void each_function(Api& api, const F& f) {
  f("cusparseLtGetProperty", api.GetProperty);
  f("cusparseLtInit", api.Init);
  f("cusparseLtDestroy", api.Destroy);
  f("cusparseLtDenseDescriptorInit", api.DenseDescriptorInit);
  f("cusparseLtStructuredDescriptorInit", api.StructuredDescriptorInit);
  f("cusparseLtMatDescriptorDestroy", api.MatDescriptorDestroy);
  f("cusparseLtMatmulDescriptorInit", api.MatmulDescriptorInit);
  f("cusparseLtMatmulDescSetAttribute", api.MatmulDescSetAttribute);
  f("cusparseLtMatmulAlgSelectionInit", api.MatmulAlgSelectionInit);
  f("cusparseLtMatmulAlgSetAttribute", api.MatmulAlgSetAttribute);
  f("cusparseLtMatmulAlgGetAttribute", api.MatmulAlgGetAttribute);
  f("cusparseLtMatmulPlanInit", api.MatmulPlanInit);
  f("cusparseLtMatmulPlanDestroy", api.MatmulPlanDestroy);
  f("cusparseLtMatmulGetWorkspace", api.MatmulGetWorkspace);
  f("cusparseLtMatmul", api.Matmul);
  f("cusparseLtMatmulSearch", api.MatmulSearch);
  f("cusparseLtSpMMACompressedSize2", api.SpMMACompressedSize2);
  f("cusparseLtSpMMACompress2", api.SpMMACompress2);
}

}  // namespace onnxprune::cusparselt

namespace onnxprune {

// The library: looked for at the first call, never closed
struct CusparseLt {
  cusparselt::Api api{};
  std::string path;     // its file, where one was opened
  std::string version;  // such as 0.8.1
  std::string problem;  // why it cannot be used; empty when it can
};
const CusparseLt& cusparse_lt();

}  // namespace onnxprune
