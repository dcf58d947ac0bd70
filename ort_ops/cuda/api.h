// The plain C interface between libonnxprune_ops (which knows ONNX Runtime) and libonnxprune_cuda (which knows CUDA).
//
// The first opens the second at run time, so neither needs the other to be built, and anything else that runs
// kernels on a GPU can use the second alone. Functions return null, or a sentence that says what is wrong; the
// sentence is valid until the next call in the same thread.
#pragma once

#include <stdint.h>

#define ONNXPRUNE_CUDA_ABI 3  // raise it with any change here

#ifdef __cplusplus
extern "C" {
#endif

// Element types are numbered as in ONNX: 1 float32, 2 uint8, 6 int32, 10 float16, 16 bfloat16.
typedef struct {
  const void* data;
  int64_t count;
  int32_t type;
} OnnxpruneCudaTensor;

enum { ONNXPRUNE_CUDA_MAX_TENSORS = 4 };

// A weight W (rows = out_features, cols = in_features) in the layout of one op.
typedef struct {
  int64_t rows, cols;
  int64_t block_rows;  // of BlockSparse: 32 or 64; else 0
  int64_t many_rows;   // of NMTile: from so many rows of X on cuSPARSELt multiplies, or cuBLAS without it; 0: never
  int32_t type;        // of X, Y, the bias and the weights: 10 or 16
  OnnxpruneCudaTensor tensors[ONNXPRUNE_CUDA_MAX_TENSORS];
} OnnxpruneCudaWeight;

// Y (m, rows) = activation(X (m, cols) W^T + bias), all on the device, row-major and contiguous. With more pixels than
// one a 1x1 convolution: X (m / pixels, cols, pixels) and Y (m / pixels, rows, pixels), as NCHW has them.
typedef struct {
  const void* x;
  void* y;
  const void* bias;    // (rows,) of the weight's type, or null
  int64_t m;
  int64_t pixels;      // of an image; m is a multiple of it
  int32_t activation;  // 0 none, 1 relu, 2 clip, 3 gelu, 4 gelu_tanh, 5 silu, 6 hardswish
  float low, high;     // of clip
  void* stream;        // cudaStream_t
} OnnxpruneCudaRun;

typedef struct {
  const char* name;
  int32_t tensor_count;
  int32_t tensor_types[ONNXPRUNE_CUDA_MAX_TENSORS];  // 0: the type of X
  int32_t images;                                    // whether it takes more pixels than one
  // Whether the tensors have the sizes and types that rows, cols and block_rows ask for; touches no device.
  const char* (*sizes)(const OnnxpruneCudaWeight* weight);
  // Also looks at every index on the device, so that run cannot read outside the tensors; they must outlive the plan.
  const char* (*create)(const OnnxpruneCudaWeight* weight, void** plan);
  // Only launches on the stream: no allocation, no synchronisation; the variant depends on shapes alone. Except: the
  // first runs of many_rows or more that are not captured prepare cuSPARSELt, or cuBLAS in its place.
  const char* (*run)(const void* plan, const OnnxpruneCudaRun* run);
  void (*destroy)(void* plan);
  // Why the last run of many_rows or more was not cuSPARSELt's; null when it was. The function is null for other ops.
  const char* (*many_problem)(const void* plan);
  // Why cuSPARSELt cannot be used in this process; null where it can. The function is null for other ops.
  const char* (*many_missing)(void);
} OnnxpruneCudaOp;

// What libonnxprune_cuda exports.
typedef int32_t (*OnnxpruneCudaAbi)(void);                       // onnxprune_cuda_abi
typedef const OnnxpruneCudaOp* (*OnnxpruneCudaOpAt)(int32_t i);  // onnxprune_cuda_op: null beyond the last
typedef const char* (*OnnxpruneCudaInfo)(void);                  // onnxprune_cuda_info: JSON, one object
typedef const char* (*OnnxpruneCudaProblem)(void);               // onnxprune_cuda_problem: null when there is a device

#ifdef __cplusplus
}
#endif
