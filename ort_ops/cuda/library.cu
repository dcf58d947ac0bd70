// What the library exports: its ops, one line each, and what it says of itself and of the device.
#include <string>

#include "common.cuh"
#include "cusparselt.h"

#define ONNXPRUNE_EXPORT extern "C" __attribute__((visibility("default")))

namespace onnxprune {
namespace {

const OnnxpruneCudaOp* const kOps[] = {
    &kBitmapTile,
    &kBitmapTileInt8,
    &kBlockSparse,
    &kNMTile,
    &kDelta,
};

const char* type_name(int type) {
  switch (type) {
    case kFloat32: return "float32";
    case kUint8: return "uint8";
    case kInt32: return "int32";
    case kFloat16: return "float16";
    case kBfloat16: return "bfloat16";
    default: return "another type";
  }
}

// As a string of JSON
std::string quoted(std::string text) {
  for (char& c : text)
    if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < 32) c = ' ';
  return '"' + text + '"';
}

}  // namespace

const char* read_device(Device* device) {
  if (const char* error = cuda_error("no CUDA device", cudaGetDevice(&device->id))) return error;
  int major = 0;
  struct {
    int* to;
    cudaDeviceAttr what;
  } const wanted[] = {{&device->processors, cudaDevAttrMultiProcessorCount},
                      {&device->block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                      {&device->processor_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor},
                      {&major, cudaDevAttrComputeCapabilityMajor}};
  for (const auto& item : wanted)
    if (const char* error = cuda_error("CUDA device", cudaDeviceGetAttribute(item.to, item.what, device->id))) return error;
  device->block_bytes -= 1024;  // some kernels have a little static shared memory as well
  return major >= 8 ? nullptr : say("the kernels need compute capability 8.0, the device has %d.x", major);
}

const char* check_common(const OnnxpruneCudaOp& op, const OnnxpruneCudaWeight& w) {
  if (w.rows < 1 || w.cols < 1 || w.rows > kMaxSide || w.cols > kMaxSide)
    return say("the weight has %lld rows and %lld columns, wanted 1 to %lld", static_cast<long long>(w.rows),
               static_cast<long long>(w.cols), static_cast<long long>(kMaxSide));
  if (w.type != kFloat16 && w.type != kBfloat16) return say("X has type %s, wanted float16 or bfloat16", type_name(w.type));
  for (int i = 0; i < op.tensor_count; ++i) {
    const int wanted = op.tensor_types[i] ? op.tensor_types[i] : w.type;
    if (w.tensors[i].type != wanted)
      return say("input %d has type %s, wanted %s", i + 1, type_name(w.tensors[i].type), type_name(wanted));
    if (!w.tensors[i].data) return say("input %d has no data", i + 1);
  }
  return nullptr;
}

const char* check_count(const OnnxpruneCudaOp&, const OnnxpruneCudaWeight& w, int tensor, const char* what,
                        int64_t wanted) {
  const int64_t found = w.tensors[tensor].count;
  return found == wanted ? nullptr
                         : say("%s has %lld elements, a weight of %lld x %lld needs %lld", what,
                               static_cast<long long>(found), static_cast<long long>(w.rows),
                               static_cast<long long>(w.cols), static_cast<long long>(wanted));
}

const char* check_on_device(const OnnxpruneCudaOp& op, const OnnxpruneCudaWeight& w, int* id) {
  for (int i = 0; i < op.tensor_count; ++i) {
    cudaPointerAttributes attributes;
    if (const char* error = cuda_error("an input", cudaPointerGetAttributes(&attributes, w.tensors[i].data)))
      return error;
    if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
      return say("input %d is not in device memory", i + 1);
    if (i && attributes.device != *id) return say("the inputs are in the memory of several devices");
    *id = attributes.device;
    if (!aligned(w.tensors[i].data, 16)) return say("input %d does not begin at a multiple of 16 bytes", i + 1);
  }
  return nullptr;
}

const char* check_run(const OnnxpruneCudaOp& op, const OnnxpruneCudaRun& run) {
  constexpr int64_t most = int64_t{1} << 18;  // grid.y holds 65535 blocks, of at least 8 rows
  constexpr int64_t most_images = 65535;      // of grid.z
  if (run.m < 0 || run.pixels < 1 || run.m % run.pixels)
    return say("X has %lld rows in images of %lld", static_cast<long long>(run.m), static_cast<long long>(run.pixels));
  if (run.pixels > 1 && !op.images) return say("%s multiplies no images", op.name);
  const int64_t rows = run.pixels > 1 ? run.pixels : run.m, images = run.m / run.pixels;
  if (rows > most)
    return say("X has %lld rows, wanted at most %lld", static_cast<long long>(rows), static_cast<long long>(most));
  if (run.pixels > 1 && images > most_images)
    return say("X has %lld images, wanted at most %lld", static_cast<long long>(images),
               static_cast<long long>(most_images));
  if (run.m && (!run.x || !run.y)) return say("X or Y has no data");
  if (!aligned(run.x, 2) || !aligned(run.y, 2)) return say("X or Y is not aligned");
  return nullptr;
}

}  // namespace onnxprune

ONNXPRUNE_EXPORT int32_t onnxprune_cuda_abi() { return ONNXPRUNE_CUDA_ABI; }

ONNXPRUNE_EXPORT const OnnxpruneCudaOp* onnxprune_cuda_op(int32_t i) {
  using namespace onnxprune;
  return i >= 0 && i < static_cast<int32_t>(sizeof kOps / sizeof kOps[0]) ? kOps[i] : nullptr;
}

ONNXPRUNE_EXPORT const char* onnxprune_cuda_problem() {
  using namespace onnxprune;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();  // it would be the next caller's
    return say("no CUDA device: %s", cudaGetErrorString(status));
  }
  Device device;
  return count ? read_device(&device) : say("no CUDA device");
}

// {"compiler", "runtime", "driver", "devices": [{"name", "capability", "processors", "memory"}], "problem",
//  "cusparselt": {"library", "version", "problem"}}
ONNXPRUNE_EXPORT const char* onnxprune_cuda_info() {
  using namespace onnxprune;
  static thread_local std::string text;
  const auto number = [](long long value) { return std::to_string(value); };
  int runtime = 0, driver = 0, count = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  const cudaError_t status = cudaGetDeviceCount(&count);
  const CusparseLt& lt = cusparse_lt();
  std::string problem = status == cudaSuccess ? count ? "" : "no CUDA device" : cudaGetErrorString(status);
  if (status != cudaSuccess) {
    cudaGetLastError();  // it would be the next caller's
    count = 0;
  }
  std::string devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
    devices += std::string(devices.empty() ? "" : ", ") + "{\"name\": " + quoted(p.name) + ", \"capability\": \"" +
               number(p.major) + "." + number(p.minor) + "\", \"processors\": " + number(p.multiProcessorCount) +
               ", \"l2_bytes\": " + number(p.l2CacheSize) +
               ", \"memory_bytes\": " + number(static_cast<long long>(p.totalGlobalMem)) + "}";
  }
  text = "{\"compiler\": \"nvcc " + number(__CUDACC_VER_MAJOR__) + "." + number(__CUDACC_VER_MINOR__) + "." +
         number(__CUDACC_VER_BUILD__) + "\", \"runtime\": " + number(runtime) + ", \"driver\": " + number(driver) +
         ", \"devices\": [" + devices + "], \"problem\": " + quoted(problem) +
         ", \"cusparselt\": {\"library\": " + quoted(lt.path) + ", \"version\": " + quoted(lt.version) +
         ", \"problem\": " + quoted(lt.problem) + "}}";
  return text.c_str();
}
