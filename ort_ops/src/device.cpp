#include "device.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

namespace onnxprune {
namespace {

#if defined(__APPLE__)
constexpr char file_name[] = "libonnxprune_cuda.dylib";
#else
constexpr char file_name[] = "libonnxprune_cuda.so";
#endif

std::string beside_this_library() {
  static const char here = 0;
  Dl_info info;
  if (!dladdr(&here, &info) || !info.dli_fname) return file_name;
  const std::string self = info.dli_fname;
  const size_t slash = self.rfind('/');
  return (slash == std::string::npos ? "" : self.substr(0, slash + 1)) + file_name;
}

// Returns what is wrong, or nothing
std::string open(DeviceLibrary& found) {
  if (access(found.path.c_str(), R_OK) != 0) return found.path + " is not there";
  void* handle = dlopen(found.path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* error = dlerror();
    return "it cannot be opened: " + std::string(error ? error : "unknown error");
  }
  const auto abi = reinterpret_cast<OnnxpruneCudaAbi>(dlsym(handle, "onnxprune_cuda_abi"));
  const auto op = reinterpret_cast<OnnxpruneCudaOpAt>(dlsym(handle, "onnxprune_cuda_op"));
  const auto info = reinterpret_cast<OnnxpruneCudaInfo>(dlsym(handle, "onnxprune_cuda_info"));
  const auto problem = reinterpret_cast<OnnxpruneCudaProblem>(dlsym(handle, "onnxprune_cuda_problem"));
  if (!abi || !op || !info || !problem) return "it is no library of onnxprune's CUDA kernels";
  if (abi() != ONNXPRUNE_CUDA_ABI)
    return "it has interface " + std::to_string(abi()) + ", wanted " + std::to_string(ONNXPRUNE_CUDA_ABI) +
           ": build both libraries of the same sources";
  found.info = info();
  if (const char* text = problem()) return text;
  for (int32_t i = 0; const OnnxpruneCudaOp* each = op(i); ++i) found.ops.push_back(each);
  return "";
}

DeviceLibrary find() {
  DeviceLibrary found;
  const char* variable = std::getenv("ONNXPRUNE_CUDA");
  const std::string wanted = variable ? variable : "";
  for (const char* off : {"off", "0", "no", "false"})
    if (wanted == off) {
      found.problem = "switched off by ONNXPRUNE_CUDA=" + wanted;
      return found;
    }
  found.required = wanted == "on";
  const bool path = wanted.find('/') != std::string::npos;
  if (!path && !found.required && !wanted.empty() && wanted != "auto") {
    found.problem = "ONNXPRUNE_CUDA is " + wanted + ", wanted auto, on, off or a path";
    return found;
  }
  found.path = path ? wanted : beside_this_library();
  found.problem = open(found);
  return found;
}

}  // namespace

const DeviceLibrary& device_library() {
  static const auto* found = new DeviceLibrary(find());
  return *found;
}

}  // namespace onnxprune
