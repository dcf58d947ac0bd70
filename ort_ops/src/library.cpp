// What the library exports.
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "infer.h"
#include "op.h"

#define ONNXPRUNE_EXPORT extern "C" __attribute__((visibility("default")))

namespace onnxprune {
namespace {

constexpr char domain_name[] = "onnxprune";
// In the session's configuration, so that registering twice is harmless. ONNX Runtime ignores keys it does not know.
constexpr char registered_key[] = "onnxprune.registered";

// Sessions keep pointers to the domain, so it is never freed. One for each runtime in the process.
OrtStatus* domain_of(const OrtApi* api, const ort::Functions& ort, bool inplace, OrtCustomOpDomain** out) {
  static std::mutex mutex;
  static auto* domains = new std::map<const OrtApi*, OrtCustomOpDomain*>;
  const std::lock_guard<std::mutex> lock(mutex);
  OrtCustomOpDomain*& domain = (*domains)[api];
  if (!domain) {
    OrtCustomOpDomain* made = nullptr;
    if (OrtStatus* status = ort.CreateCustomOpDomain(domain_name, &made)) return status;
    for (const Op& op : all_ops(inplace))
      if (OrtStatus* status = ort.CustomOpDomain_Add(made, &op)) return status;
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
    int registered = 0;
    if (OrtStatus* status = ort.HasSessionConfigEntry(options, registered_key, &registered)) return status;
    if (registered) return nullptr;
    OrtCustomOpDomain* domain = nullptr;
    if (OrtStatus* status = domain_of(api, ort, knows_inplace(base->GetVersionString()), &domain)) return status;
    if (OrtStatus* status = ort.AddCustomOpDomain(options, domain)) return status;
    return ort.AddSessionConfigEntry(options, registered_key, "1");
  } catch (const std::exception& error) {
    return ort.CreateStatus(ort::fail, error.what());
  }
}
