// cuSPARSELt is found and opened when it is first asked for: by ONNXPRUNE_CUSPARSELT, else by the system's loader.
#include "cusparselt.h"

#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

namespace onnxprune {
namespace {

std::string last_error() {
  const char* error = dlerror();
  return error ? error : "unknown error";
}

// Fills in all but the path; returns what is wrong, or nothing
std::string load(CusparseLt& found, void* library) {
  std::string missing;
  cusparselt::each_function(found.api, [&](const char* name, auto& function) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (!function && missing.empty()) missing = name;
  });
  const auto optional = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
  };
  optional("cusparseLtGetErrorString", found.api.GetErrorString);
  optional("cusparseLtMatmulAlgSelectionDestroy", found.api.MatmulAlgSelectionDestroy);
  if (found.api.GetProperty) {
    int numbers[3] = {};
    for (int i = 0; i < 3; ++i)
      if (const int status = found.api.GetProperty(i, numbers + i))
        return "it does not tell its version: status " + std::to_string(status);
    found.version =
        std::to_string(numbers[0]) + "." + std::to_string(numbers[1]) + "." + std::to_string(numbers[2]);
    if (numbers[0] || numbers[1] < cusparselt::kOldestMinor)
      return "it is " + found.version + ", wanted 0." + std::to_string(cusparselt::kOldestMinor) + " or newer, below 1";
  }
  return missing.empty() ? "" : "it lacks " + missing;
}

CusparseLt open() {
  CusparseLt found;
  const char* variable = std::getenv("ONNXPRUNE_CUSPARSELT");
  const std::string wanted = variable ? variable : "";
  const bool path = wanted.find('/') != std::string::npos;
  for (const char* off : {"off", "0", "no", "false"})
    if (wanted == off) {
      found.problem = "cuSPARSELt is switched off by ONNXPRUNE_CUSPARSELT=" + wanted;
      return found;
    }
  if (!path && !wanted.empty() && wanted != "auto") {
    found.problem = "ONNXPRUNE_CUSPARSELT is " + wanted + ", wanted a path, auto or off";
    return found;
  }
  const std::string name = path ? wanted : cusparselt::kSoName;
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    found.problem = "cuSPARSELt cannot be opened: " + last_error();
    return found;
  }
  found.path = name;
  const std::string problem = load(found, library);
  Dl_info place;
  if (found.api.GetProperty && dladdr(reinterpret_cast<void*>(found.api.GetProperty), &place) && place.dli_fname)
    found.path = place.dli_fname;
  if (!problem.empty()) found.problem = "cuSPARSELt in " + found.path + " cannot be used: " + problem;
  return found;
}

}  // namespace

const CusparseLt& cusparse_lt() {
  static const auto* found = new CusparseLt(open());
  return *found;
}

}  // namespace onnxprune
