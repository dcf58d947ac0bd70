#include "conv_input.h"

#include <algorithm>

#include "conv_tasks.h"
#include "scratch.h"

namespace onnxprune {

CopyJob copy_job(const ConvShape& s, const PlaneLayout& layout) {
  CopyJob job{};
  job.height = s.height, job.width = s.width;
  job.pad_top = s.pad_top, job.pad_left = s.pad_left;
  job.stride_h = s.stride_h, job.stride_w = s.stride_w;
  job.rows = layout.rows, job.pitch = layout.pitch, job.phase = layout.phase, job.channel = layout.channel;
  job.slot_h = layout.slot_h.data(), job.slot_w = layout.slot_w.data();
  job.used_w = layout.used_w, job.used_phases = layout.used_h * layout.used_w;
  return job;
}

bool is_pointwise(const ConvShape& s) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_top == 0 &&
         s.pad_left == 0 && s.pad_bottom == 0 && s.pad_right == 0;
}

const float* padded_image(const ConvFunctions& functions, const float* X, const ConvShape& s,
                          const PlaneLayout& layout, int64_t slack, const Pool& pool) {
  const int64_t floats = s.channels * layout.channel;
  float* padded = scratch(Scratch::padded_input, static_cast<size_t>(floats + slack));
  std::fill(padded + floats, padded + floats + slack, 0.f);
  const CopyJob job = copy_job(s, layout);
  run_parts(pool, task_count(floats / 8, s.channels), s.channels, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      functions.copy_plane(job, X + c * s.height * s.width, padded + c * layout.channel);
    }
  });
  return padded;
}

}  // namespace onnxprune
