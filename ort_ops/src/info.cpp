// What the library says of itself, for `onnxprune ops info`: JSON, one object.
#include <string>

#include "device.h"
#include "levels.h"
#include "op.h"

namespace {

std::string quoted(const std::string& text) {
  std::string found = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') found += '\\';
    found += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return found + "\"";
}

std::string of_device() {
  const onnxprune::DeviceLibrary& device = onnxprune::device_library();
  return "{\"library\": " + quoted(device.path) + ", \"problem\": " + quoted(device.problem) +
         ", \"ops\": " + std::to_string(device.ops.size()) +
         ", \"about\": " + (device.info.empty() ? "{}" : device.info) + "}";
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* onnxprune_ops_info() {
  using namespace onnxprune;
  static const std::string text = [] {
    std::string levels;
    for (size_t i = 0; const Level* candidate = level_at(i); ++i)
      levels += std::string(i ? ", " : "") + "\"" + candidate->name + "\"";
    return std::string("{\"level\": \"") + level().name + "\", \"lanes\": " + std::to_string(level().lanes) +
           ", \"levels\": [" + levels + "], \"ops\": " + std::to_string(all_ops(false).size()) +
           ", \"ort_api\": " + std::to_string(ort::api_version) + ", \"compiler\": \"" __VERSION__ "\", \"cuda\": " + of_device() + "}";
  }();
  return text.c_str();
}
