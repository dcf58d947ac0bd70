// How the work of a MatMul is cut into tasks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel.h"

namespace onnxprune {

// A task has at least this many fused multiply-adds of vectors: about 10 us at one a cycle, against about 1 us to
// hand it out
constexpr int64_t kTaskFmas = 20000;

// Into how many of at most `most` parts to cut `fmas` vector operations
inline int64_t task_parts(int64_t fmas, int64_t most) {
  return std::max<int64_t>(1, std::min<int64_t>(fmas / kTaskFmas, most));
}

// One task runs in place
inline void run_tasks(const Pool& pool, int64_t tasks, const std::function<void(size_t)>& task) {
  if (tasks == 1) task(0);
  else pool.run(static_cast<size_t>(tasks), task);
}

}  // namespace onnxprune
