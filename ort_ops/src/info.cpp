// What the library says of itself, for `onnxprune ops info`: JSON, one object.
#include <string>

#include "levels.h"
#include "op.h"

extern "C" __attribute__((visibility("default"))) const char* onnxprune_ops_info() {
  using namespace onnxprune;
  static const std::string text = [] {
    std::string levels;
    for (size_t i = 0; const Level* candidate = level_at(i); ++i)
      levels += std::string(i ? ", " : "") + "\"" + candidate->name + "\"";
    return std::string("{\"level\": \"") + level().name + "\", \"lanes\": " + std::to_string(level().lanes) +
           ", \"levels\": [" + levels + "], \"ops\": " + std::to_string(all_ops(false).size()) +
           ", \"ort_api\": " + std::to_string(ort::api_version) + ", \"compiler\": \"" __VERSION__ "\"}";
  }();
  return text.c_str();
}
