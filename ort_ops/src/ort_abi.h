// The part of ONNX Runtime's C interface that the library uses, declared here so that building needs no
// headers of it. The interface is append-only: a function keeps its slot and its type for good, so what
// is true of API version 17 (ONNX Runtime 1.17) is true of every later one.
//
// tests/kernels/test_ort_versions.py checks slots and fields against ONNX Runtime's own header where it has one,
// and one binary against several releases.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

extern "C" {

struct OrtStatus;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtLogger;
struct OrtApi;  // a table of function pointers

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null when the runtime is older
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  // From version 18 on
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // extern "C"

namespace onnxprune::ort {

constexpr uint32_t api_version = 17;
constexpr uint32_t inplace_version = 18;  // of an op, where the runtime knows it

enum ElementType { undefined = 0, float32 = 1, uint8 = 2, float16 = 10, bfloat16 = 16 };
enum ErrorCode { fail = 1, invalid_argument = 2 };
enum Characteristic { required = 0 };
enum AttributeType { ints = 2 };
enum Severity { warning = 2 };

// slot, result, name, parameters
#define ONNXPRUNE_ORT_SLOTS(X)                                                                              \
  X(0, OrtStatus*, CreateStatus, (int code, const char* message))                                           \
  X(26, OrtStatus*, CreateCustomOpDomain, (const char* domain, OrtCustomOpDomain** out))                    \
  X(27, OrtStatus*, CustomOpDomain_Add, (OrtCustomOpDomain*, const OrtCustomOp*))                           \
  X(28, OrtStatus*, AddCustomOpDomain, (OrtSessionOptions*, OrtCustomOpDomain*))                            \
  X(51, OrtStatus*, GetTensorMutableData, (const OrtValue*, void** out))                                    \
  X(55, OrtStatus*, CastTypeInfoToTensorInfo, (const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo** out))  \
  X(57, OrtStatus*, CreateTensorTypeAndShapeInfo, (OrtTensorTypeAndShapeInfo** out))                        \
  X(58, OrtStatus*, SetTensorElementType, (OrtTensorTypeAndShapeInfo*, int type))                           \
  X(59, OrtStatus*, SetDimensions, (OrtTensorTypeAndShapeInfo*, const int64_t* dims, size_t count))         \
  X(60, OrtStatus*, GetTensorElementType, (const OrtTensorTypeAndShapeInfo*, int* out))                     \
  X(61, OrtStatus*, GetDimensionsCount, (const OrtTensorTypeAndShapeInfo*, size_t* out))                    \
  X(62, OrtStatus*, GetDimensions, (const OrtTensorTypeAndShapeInfo*, int64_t* dims, size_t count))         \
  X(63, OrtStatus*, GetSymbolicDimensions,                                                                  \
    (const OrtTensorTypeAndShapeInfo*, const char** names, size_t count))                                   \
  X(65, OrtStatus*, GetTensorTypeAndShape, (const OrtValue*, OrtTensorTypeAndShapeInfo** out))              \
  X(85, OrtStatus*, KernelInfoGetAttribute_float, (const OrtKernelInfo*, const char* name, float* out))     \
  X(86, OrtStatus*, KernelInfoGetAttribute_int64, (const OrtKernelInfo*, const char* name, int64_t* out))   \
  X(87, OrtStatus*, KernelInfoGetAttribute_string,                                                          \
    (const OrtKernelInfo*, const char* name, char* out, size_t* size))                                      \
  X(90, OrtStatus*, KernelContext_GetInput, (const OrtKernelContext*, size_t index, const OrtValue** out))  \
  X(91, OrtStatus*, KernelContext_GetOutput,                                                                \
    (OrtKernelContext*, size_t index, const int64_t* dims, size_t count, OrtValue** out))                   \
  X(93, void, ReleaseStatus, (OrtStatus*))                                                                  \
  X(98, void, ReleaseTypeInfo, (OrtTypeInfo*))                                                              \
  X(99, void, ReleaseTensorTypeAndShapeInfo, (OrtTensorTypeAndShapeInfo*))                                  \
  X(130, OrtStatus*, AddSessionConfigEntry, (OrtSessionOptions*, const char* key, const char* value))       \
  X(163, OrtStatus*, KernelInfoGetAttributeArray_int64,                                                     \
    (const OrtKernelInfo*, const char* name, int64_t* out, size_t* size))                                   \
  X(193, OrtStatus*, KernelContext_GetGPUComputeStream, (const OrtKernelContext*, void** out))              \
  X(230, OrtStatus*, KernelInfo_GetInputCount, (const OrtKernelInfo*, size_t* out))                         \
  X(234, OrtStatus*, KernelInfo_GetInputTypeInfo, (const OrtKernelInfo*, size_t index, OrtTypeInfo** out))  \
  X(237, OrtStatus*, HasSessionConfigEntry, (const OrtSessionOptions*, const char* key, int* out))          \
  X(244, OrtStatus*, KernelInfo_GetNodeName, (const OrtKernelInfo*, char* out, size_t* size))               \
  X(246, OrtStatus*, KernelContext_GetLogger, (const OrtKernelContext*, const OrtLogger** out))             \
  X(247, OrtStatus*, Logger_LogMessage,                                                                     \
    (const OrtLogger*, int severity, const char* message, const char* file, int line, const char* function)) \
  X(249, OrtStatus*, KernelInfoGetConstantInput_tensor,                                                     \
    (const OrtKernelInfo*, size_t index, int* is_constant, const OrtValue** out))                           \
  X(267, OrtStatus*, ShapeInferContext_GetInputCount, (const OrtShapeInferContext*, size_t* out))           \
  X(268, OrtStatus*, ShapeInferContext_GetInputTypeShape,                                                   \
    (const OrtShapeInferContext*, size_t index, OrtTensorTypeAndShapeInfo** out))                           \
  X(269, OrtStatus*, ShapeInferContext_GetAttribute,                                                        \
    (const OrtShapeInferContext*, const char* name, const OrtOpAttr** out))                                 \
  X(270, OrtStatus*, ShapeInferContext_SetOutputTypeShape,                                                  \
    (const OrtShapeInferContext*, size_t index, const OrtTensorTypeAndShapeInfo*))                          \
  X(271, OrtStatus*, SetSymbolicDimensions, (OrtTensorTypeAndShapeInfo*, const char** names, size_t count)) \
  X(272, OrtStatus*, ReadOpAttr, (const OrtOpAttr*, int type, void* data, size_t bytes, size_t* out))       \
  X(274, OrtStatus*, KernelContext_ParallelFor,                                                             \
    (const OrtKernelContext*, void (*task)(void*, size_t), size_t tasks, size_t batches, void* user))

struct Functions {
#define ONNXPRUNE_DECLARE(slot, result, name, parameters) result(*name) parameters;
  ONNXPRUNE_ORT_SLOTS(ONNXPRUNE_DECLARE)
#undef ONNXPRUNE_DECLARE

  explicit Functions(const OrtApi* api) {  // of api_version
    const auto* table = reinterpret_cast<void (*const*)()>(api);
#define ONNXPRUNE_LOAD(slot, result, name, parameters) name = reinterpret_cast<result(*) parameters>(table[slot]);
    ONNXPRUNE_ORT_SLOTS(ONNXPRUNE_LOAD)
#undef ONNXPRUNE_LOAD
  }
};

// With the table of any version: slot 0 has always been CreateStatus
inline OrtStatus* create_status(const OrtApi* api, const std::string& message) {
  using Create = OrtStatus* (*)(int, const char*);
  return (*reinterpret_cast<const Create*>(api))(fail, message.c_str());
}

}  // namespace onnxprune::ort
