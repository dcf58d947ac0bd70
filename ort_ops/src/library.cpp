// What the library exports.
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "device_op.h"
#include "infer.h"
#include "op.h"

#define ONNXPRUNE_EXPORT extern "C" __attribute__((visibility("default")))

namespace onnxprune {
namespace {

constexpr char domain_name[] = "onnxprune";
// In the session's configuration, so that registering twice is harmless. ONNX Runtime ignores keys it does not know.
constexpr char registered_key[] = "onnxprune.registered";

// Says that the session has the CUDA provider. ONNX Runtime runs no function of the file whose op it knows, so a session
// with CUDA is given the ops of CUDA alone, and one without CUDA those of the CPU.
constexpr char cuda_key[] = "onnxprune.cuda";

// Sessions keep pointers to the domain, so it is never freed. One of each kind for each runtime in the process.
OrtStatus* domain_of(const OrtApi* api, const ort::Functions& ort, bool inplace, bool cuda,
                     OrtCustomOpDomain** out) {
  static std::mutex mutex;
  static auto* domains = new std::map<std::pair<const OrtApi*, bool>, OrtCustomOpDomain*>;
  const std::lock_guard<std::mutex> lock(mutex);
  OrtCustomOpDomain*& domain = (*domains)[{api, cuda}];
  if (!domain) {
    OrtCustomOpDomain* made = nullptr;
    if (OrtStatus* status = ort.CreateCustomOpDomain(domain_name, &made)) return status;
    if (cuda) {
      for (const DeviceOp& op : all_device_ops())
        if (OrtStatus* status = ort.CustomOpDomain_Add(made, &op)) return status;
    } else {
      for (const Op& op : all_ops(inplace))
        if (OrtStatus* status = ort.CustomOpDomain_Add(made, &op)) return status;
    }
    set_inference_functions(api);
    domain = made;
  }
  *out = domain;
  return nullptr;
}

// "1.17.3": the second number is the version of the interface. Asking GetApi for more than there is would be logged.
bool knows_inplace(const char* version) {
  char* end = nullptr;
  const unsigned long major = std::strtoul(version, &end, 10);
  return major > 1 || (*end == '.' && std::strtoul(end + 1, nullptr, 10) >= ort::inplace_version);
}

}  // namespace
}  // namespace onnxprune

ONNXPRUNE_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace onnxprune;
  const OrtApi* api = base->GetApi(ort::api_version);
  if (!api) {
    const OrtApi* oldest = base->GetApi(1);
    const std::string found = base->GetVersionString();
    return oldest ? ort::create_status(oldest, "onnxprune's kernels need ONNX Runtime 1.17 or newer, this is " + found)
                  : nullptr;
  }
  const ort::Functions ort(api);
  try {
    const DeviceLibrary& device = device_library();
    if (device.required && !device.problem.empty())
      return ort.CreateStatus(ort::fail, ("ONNXPRUNE_CUDA=on, but " + device.problem).c_str());
    int registered = 0, cuda = 0;
    if (OrtStatus* status = ort.HasSessionConfigEntry(options, registered_key, &registered)) return status;
    if (registered) return nullptr;
    if (OrtStatus* status = ort.HasSessionConfigEntry(options, cuda_key, &cuda)) return status;
    cuda |= device.required;
    if (cuda && all_device_ops().empty()) return nullptr;  // the functions in the file run, on the device
    OrtCustomOpDomain* domain = nullptr;
    const bool inplace = knows_inplace(base->GetVersionString());
    if (OrtStatus* status = domain_of(api, ort, inplace, cuda != 0, &domain)) return status;
    if (OrtStatus* status = ort.AddCustomOpDomain(options, domain)) return status;
    return ort.AddSessionConfigEntry(options, registered_key, "1");
  } catch (const std::exception& error) {
    return ort.CreateStatus(ort::fail, error.what());
  }
}
