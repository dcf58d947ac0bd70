#include "depthwise.h"

#include <algorithm>
#include <limits>

#include "../levels.h"
#include "conv_functions.h"
#include "conv_input.h"
#include "conv_layout.h"
#include "conv_tasks.h"
#include "scratch.h"

namespace onnxprune {
namespace {

constexpr int64_t kCopyFloats = 5 * 1024;  // of the padded rows that stay in L1: 20 KB

class Depthwise final : public ConvKernel {
 public:
  Depthwise(const Csr& weight, const ConvShape& shape, const Level& level)
      : functions_(*level.conv), lanes_(level.lanes), taps_(weight.cols), multiplier_(shape.out_channels / shape.channels) {
    weight_.resize(static_cast<size_t>(weight.rows * weight.cols));
    for (int64_t row = 0; row < weight.rows; ++row) {
      for (uint32_t e = weight.start[static_cast<size_t>(row)]; e < weight.start[static_cast<size_t>(row) + 1]; ++e) {
        weight_[static_cast<size_t>(row * taps_) + weight.index[e]] = weight.value[e];
      }
    }
  }

  void run(const float* X, float* Y, const ConvShape& shape, const Epilogue& epilogue,
           const Pool& pool) const override;
  size_t bytes() const override { return weight_.size() * sizeof(float); }

 private:
  struct Rows {
    int64_t plane, channel;  // of all images, of this one
    int64_t begin, end;      // of the output
  };
  // The rows of an input plane in its output planes
  void run_rows(const Rows& rows, const float* X, float* Y, const ConvShape& shape, CopyJob copy, DepthwiseJob job,
                const Epilogue& epilogue) const;

  const ConvFunctions& functions_;
  int lanes_;
  int64_t taps_, multiplier_;
  std::vector<float> weight_;  // [out_channels][kernel_h * kernel_w]
};

// Those that depthwise strips are compiled for
bool has_strips(const ConvShape& s) {
  const bool rows = s.kernel_h == 3 || s.kernel_h == 5 || (s.kernel_h == 7 && s.stride_h == 1);
  return rows && s.dilation_h == 1 && s.dilation_w == 1 && s.stride_h == s.stride_w && s.stride_h <= 2;
}

void Depthwise::run_rows(const Rows& rows, const float* X, float* Y, const ConvShape& s, CopyJob copy, DepthwiseJob job,
                         const Epilogue& epilogue) const {
  job.X = X + rows.plane * s.height * s.width;
  if (job.tapwise) {
    copy.pad_top -= rows.begin * s.stride_h;
    float* padded = scratch(Scratch::tile, static_cast<size_t>(copy.channel + 2 * lanes_));
    functions_.copy_plane(copy, job.X, padded);
    job.X = padded;
  }
  job.first_row = rows.begin;
  job.rows = rows.end - rows.begin;
  for (int64_t m = 0; m < multiplier_; ++m) {
    const int64_t row = rows.channel * multiplier_ + m;
    const int64_t place = ((rows.plane * multiplier_ + m) * s.out_height + rows.begin) * s.out_width;
    job.weight = weight_.data() + row * taps_;
    job.bias = epilogue.bias ? epilogue.bias[row] : 0.f;
    job.residual = epilogue.residual ? epilogue.residual + place : nullptr;
    job.out = Y + place;
    // Sums in scratch: the residual may lie where Y does
    job.Y = job.residual ? scratch(Scratch::accumulators, static_cast<size_t>(job.rows * s.out_width)) : job.out;
    functions_.depthwise(job);
  }
}

// Bounds and activation are applied to the sum where that is all, else in a second step
void set_epilogue(const Epilogue& epilogue, DepthwiseJob* job) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const bool relu = epilogue.activation == Activation::relu, clip = epilogue.activation == Activation::clip;
  job->finish = epilogue.residual || !(relu || clip || epilogue.activation == Activation::none);
  job->low = -infinity, job->high = infinity;
  if (!job->finish && relu) job->low = 0.f;
  if (!job->finish && clip) job->low = epilogue.low, job->high = epilogue.high;
  job->activation = epilogue.activation;
  job->last_low = epilogue.low, job->last_high = epilogue.high;
}

void Depthwise::run(const float* X, float* Y, const ConvShape& s, const Epilogue& epilogue, const Pool& pool) const {
  // Chunks of rows whose copy stays in L1; strips are 8 rows high
  const int64_t chunks = std::min((PlaneLayout(s).channel + kCopyFloats - 1) / kCopyFloats, (s.out_height + 7) / 8);
  ConvShape chunk_shape = s;
  chunk_shape.out_height = (s.out_height + chunks - 1) / chunks;
  const PlaneLayout layout(chunk_shape);
  std::vector<int64_t> offset;
  for (int64_t t = 0; t < taps_; ++t) offset.push_back(layout.offset(s, t / s.kernel_w, t % s.kernel_w));
  const std::vector<float> zeros(static_cast<size_t>(s.width));
  const CopyJob copy = copy_job(s, layout);
  DepthwiseJob job{};
  job.tapwise = !has_strips(s);
  job.zeros = zeros.data();
  job.in_height = s.height, job.in_width = s.width, job.pad_top = s.pad_top, job.pad_left = s.pad_left;
  job.offset = offset.data(), job.pitch = layout.pitch;
  job.kernel_h = s.kernel_h, job.kernel_w = s.kernel_w, job.stride = s.stride_h;
  job.width = s.out_width;
  set_epilogue(epilogue, &job);

  const int64_t units = s.batch * s.channels * chunks;
  const int64_t vectors = s.batch * s.out_channels * s.out_height * ((s.out_width + lanes_ - 1) / lanes_);
  // Planes are small: no division within the loop over them
  std::vector<int64_t> row(static_cast<size_t>(chunks + 1));
  for (int64_t i = 0; i <= chunks; ++i) row[static_cast<size_t>(i)] = part_begin(s.out_height, chunks, i);
  run_parts(pool, task_count(vectors * (taps_ + 3), units), units, [&](int64_t begin, int64_t end) {
    int64_t plane = begin / chunks, channel = plane % s.channels, chunk = begin % chunks;
    for (int64_t u = begin; u < end; ++u) {
      run_rows({plane, channel, row[static_cast<size_t>(chunk)], row[static_cast<size_t>(chunk) + 1]}, X, Y, s, copy, job,
               epilogue);
      if (++chunk < chunks) continue;
      chunk = 0;
      ++plane;
      if (++channel == s.channels) channel = 0;
    }
  });
}

}  // namespace

std::unique_ptr<ConvKernel> make_depthwise(const Csr& weight, const ConvShape& shape, const Level& level) {
  if (shape.group != shape.channels) return nullptr;
  return std::make_unique<Depthwise>(weight, shape, level);
}

}  // namespace onnxprune
