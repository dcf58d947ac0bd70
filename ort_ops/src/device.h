// libonnxprune_cuda, if it is there: opened at run time, so that this library needs neither CUDA nor a driver.
#pragma once

#include <string>
#include <vector>

#include "../cuda/api.h"

namespace onnxprune {

struct DeviceLibrary {
  std::string path;     // empty when it was not looked for
  std::string problem;  // why its kernels cannot be used here; empty when they can
  std::string info;     // JSON of the library, empty when it cannot be opened
  bool required = false;
  std::vector<const OnnxpruneCudaOp*> ops;  // empty when there is a problem
};

// The environment variable ONNXPRUNE_CUDA is auto (the default: the file beside this library, for sessions that say they
// have CUDA), off, on (every session has CUDA; registration fails when there is a problem) or a path. Opened once, never
// closed.
const DeviceLibrary& device_library();

}  // namespace onnxprune
