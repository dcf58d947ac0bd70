// Compiled with NVIDIA's header beside ours: what ort_ops/cuda/cusparselt.h declares is what the library has.
#include <cusparseLt.h>

#include <type_traits>

#include "cusparselt.h"

namespace ours = onnxprune::cusparselt;

// As it is passed: pointers, and enumerations as numbers
template <class T>
using Passed = std::conditional_t<std::is_pointer_v<T>, void*, std::conditional_t<std::is_enum_v<T>, int, T>>;
template <class T>
struct Plain;
template <class R, class... A>
struct Plain<R (*)(A...)> {
  using type = Passed<R>(Passed<A>...);
};

#define SAME_FUNCTION(name)                                             \
  static_assert(std::is_same_v<Plain<decltype(&cusparseLt ## name)>::type, \
                               Plain<decltype(ours::Api::name)>::type>, #name);
#define SAME_NUMBER(theirs, mine) static_assert(static_cast<int>(theirs) == static_cast<int>(ours::mine), #theirs);
#define FITS(theirs, mine) \
  static_assert(sizeof(theirs) <= sizeof(ours::mine) && alignof(theirs) <= alignof(ours::mine), #theirs);

FITS(cusparseLtHandle_t, Handle)
FITS(cusparseLtMatDescriptor_t, Matrix)
FITS(cusparseLtMatmulDescriptor_t, Product)
FITS(cusparseLtMatmulAlgSelection_t, Algorithm)
FITS(cusparseLtMatmulPlan_t, Plan)
SAME_NUMBER(MAJOR_VERSION, kMajor)
SAME_NUMBER(MINOR_VERSION, kMinor)
SAME_NUMBER(PATCH_LEVEL, kPatch)
SAME_NUMBER(CUDA_R_16F, kReal16F)
SAME_NUMBER(CUDA_R_16BF, kReal16BF)
SAME_NUMBER(CUSPARSE_ORDER_COL, kColumns)
SAME_NUMBER(CUSPARSE_ORDER_ROW, kRows)
SAME_NUMBER(CUSPARSE_OPERATION_NON_TRANSPOSE, kAsIs)
SAME_NUMBER(CUSPARSE_OPERATION_TRANSPOSE, kTransposed)
SAME_NUMBER(CUSPARSELT_SPARSITY_50_PERCENT, kHalf)
SAME_NUMBER(CUSPARSE_COMPUTE_32F, kCompute32F)
SAME_NUMBER(CUSPARSELT_MATMUL_ACTIVATION_RELU, kRelu)
SAME_NUMBER(CUSPARSELT_MATMUL_BIAS_POINTER, kBiasPointer)
SAME_NUMBER(CUSPARSELT_MATMUL_ALG_DEFAULT, kDefault)
SAME_NUMBER(CUSPARSELT_MATMUL_ALG_CONFIG_ID, kConfigId)
SAME_NUMBER(CUSPARSELT_MATMUL_SPLIT_K, kSplitK)
SAME_NUMBER(CUSPARSELT_MATMUL_SPLIT_K_MODE, kSplitKMode)
SAME_FUNCTION(GetProperty)
SAME_FUNCTION(Init)
SAME_FUNCTION(Destroy)
SAME_FUNCTION(DenseDescriptorInit)
SAME_FUNCTION(StructuredDescriptorInit)
SAME_FUNCTION(MatDescriptorDestroy)
SAME_FUNCTION(MatmulDescriptorInit)
SAME_FUNCTION(MatmulDescSetAttribute)
SAME_FUNCTION(MatmulAlgSelectionInit)
SAME_FUNCTION(MatmulAlgSetAttribute)
SAME_FUNCTION(MatmulAlgGetAttribute)
SAME_FUNCTION(MatmulPlanInit)
SAME_FUNCTION(MatmulPlanDestroy)
SAME_FUNCTION(MatmulGetWorkspace)
SAME_FUNCTION(Matmul)
SAME_FUNCTION(MatmulSearch)
SAME_FUNCTION(SpMMACompressedSize2)
SAME_FUNCTION(SpMMACompress2)
SAME_FUNCTION(GetErrorString)
SAME_FUNCTION(MatmulAlgSelectionDestroy)
