#include "conv_tasks.h"

#include <algorithm>

#include "tasks.h"

namespace onnxprune {

std::vector<Segment> segments_of(int64_t first, int64_t count, int64_t pitch, int64_t width, int64_t rows) {
  if (pitch == width) return {{0, first, std::min(count, rows * width - first)}};
  std::vector<Segment> out;
  for (int64_t r = first / pitch; r < rows && r * pitch < first + count; ++r) {
    const int64_t begin = std::max(first, r * pitch), end = std::min(first + count, r * pitch + width);
    if (begin < end) out.push_back({begin - first, r * width + begin - r * pitch, end - begin});
  }
  return out;
}

int64_t task_count(int64_t operations, int64_t most) {
  constexpr int64_t kEnough = 64;  // 4 a thread on 16 threads
  return task_parts(operations, std::min(most, kEnough));
}

void run_parts(const Pool& pool, int64_t parts, int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  run_tasks(pool, parts, [&](size_t part) {
    const int64_t i = static_cast<int64_t>(part);
    body(part_begin(n, parts, i), part_begin(n, parts, i + 1));
  });
}

}  // namespace onnxprune
