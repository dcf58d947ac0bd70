#include "conv_direct.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <new>

#include "../levels.h"
#include "conv_functions.h"
#include "conv_input.h"
#include "conv_layout.h"
#include "conv_tasks.h"
#include "groups.h"
#include "scratch.h"
#include "tasks.h"

namespace onnxprune {
namespace {

// Input window of a block of channels: a little more than L1 (32 to 48 KB) measured best, for it is read in order and
// shorter blocks pay more for the accumulators
constexpr int64_t kL1Floats = 10 * 1024;

// What depends on the height and width of the input
struct Plan {
  ConvShape shape;
  PlaneLayout layout;
  int64_t block_channels = 0, blocks = 0;
  std::vector<int32_t> offset;  // by entry, from the first channel of its block
  std::vector<uint32_t> block;  // by conv group: [blocks + 1][row groups]

  explicit Plan(const ConvShape& s) : shape(s), layout(s) {}
};

// Rows of one conv group
struct Panel {
  std::vector<RowGroup> groups;
  std::vector<uint32_t> rows;
  size_t block = 0;  // of its table in Plan::block, in row groups before it
};

class ConvDirect final : public ConvKernel {
 public:
  ConvDirect(const Csr& weight, const ConvShape& shape, const Level& level);

  void run(const float* X, float* Y, const ConvShape& shape, const Epilogue& epilogue,
           const Pool& pool) const override;
  size_t bytes() const override;

 private:
  std::shared_ptr<const Plan> plan_for(const ConvShape& shape) const;
  std::shared_ptr<const Plan> make_plan(const ConvShape& shape) const;
  void run_image(const float* padded, const ConvShape& shape, const Plan& plan, const Finish& finish,
                 const Pool& pool) const;

  const ConvFunctions& functions_;
  int lanes_;
  int64_t group_channels_, kernel_h_, kernel_w_;
  int64_t nonzeros_;
  std::vector<Panel> panels_;
  std::vector<uint32_t> column_;  // by entry
  std::vector<float> value_;      // by entry and row of its group
  size_t row_groups_ = 0;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Plan> plan_;  // of the last shape
};

// By size and count, so that the branches of the kernel are predicted
std::vector<std::vector<uint32_t>> sorted_groups(const Csr& weight, int64_t first, int64_t last, uint32_t size) {
  std::vector<std::vector<uint32_t>> groups = groups_of(equal_rows(weight, first, last), size);
  const auto count = [&](const auto& g) { return weight.start[g[0] + 1] - weight.start[g[0]]; };
  std::stable_sort(groups.begin(), groups.end(), [&](const auto& a, const auto& b) {
    return a.size() != b.size() ? a.size() > b.size() : count(a) > count(b);
  });
  return groups;
}

ConvDirect::ConvDirect(const Csr& weight, const ConvShape& shape, const Level& level)
    : functions_(*level.conv),
      lanes_(level.lanes),
      group_channels_(shape.channels / shape.group),
      kernel_h_(shape.kernel_h),
      kernel_w_(shape.kernel_w),
      nonzeros_(static_cast<int64_t>(weight.index.size())) {
  const int64_t panel_rows = shape.out_channels / shape.group;
  for (int64_t g = 0; g < shape.group; ++g) {
    Panel panel;
    panel.block = row_groups_;
    for (const std::vector<uint32_t>& rows : sorted_groups(weight, g * panel_rows, (g + 1) * panel_rows,
                                                           static_cast<uint32_t>(functions_.group_rows))) {
      const uint32_t first = weight.start[rows[0]], last = weight.start[rows[0] + 1];
      panel.groups.push_back({static_cast<uint32_t>(rows.size()), static_cast<uint32_t>(panel.rows.size()),
                              static_cast<uint32_t>(column_.size()), static_cast<uint32_t>(value_.size())});
      panel.rows.insert(panel.rows.end(), rows.begin(), rows.end());
      for (uint32_t e = first; e < last; ++e) {
        column_.push_back(weight.index[e]);
        for (uint32_t row : rows) value_.push_back(weight.value[weight.start[row] + (e - first)]);
      }
    }
    row_groups_ += panel.groups.size();
    panels_.push_back(std::move(panel));
  }
}

size_t ConvDirect::bytes() const {
  size_t n = column_.size() * 4 + value_.size() * 4 + row_groups_ * sizeof(RowGroup);
  std::lock_guard<std::mutex> lock(mutex_);
  return n + (plan_ ? plan_->offset.size() * 4 + plan_->block.size() * 4 : 0);
}

std::shared_ptr<const Plan> ConvDirect::plan_for(const ConvShape& shape) const {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (plan_ && same_plane(plan_->shape, shape)) return plan_;
  }
  std::shared_ptr<const Plan> plan = make_plan(shape);
  std::lock_guard<std::mutex> lock(mutex_);
  return plan_ = std::move(plan);
}

// Channels whose part of the input that one run of positions reads stays in L1 together
int64_t block_channels(const ConvShape& s, const PlaneLayout& layout, int lanes) {
  const int64_t run = kDirectVectors * lanes + (s.kernel_w - 1) * s.dilation_w / s.stride_w + 16;
  const int64_t apart = s.kernel_h * layout.used_w * run;
  const int64_t together =
      layout.used_h * layout.used_w * (run + (s.kernel_h - 1) * s.dilation_h / s.stride_h * layout.pitch);
  return std::max<int64_t>(1, kL1Floats / std::min(apart, together));
}

std::shared_ptr<const Plan> ConvDirect::make_plan(const ConvShape& shape) const {
  auto plan = std::make_shared<Plan>(shape);
  const PlaneLayout& layout = plan->layout;
  const int64_t taps = kernel_h_ * kernel_w_;
  std::vector<int64_t> tap;
  for (int64_t t = 0; t < taps; ++t) tap.push_back(layout.offset(shape, t / kernel_w_, t % kernel_w_));

  const int64_t fits = std::numeric_limits<int32_t>::max() / layout.channel;
  if (fits == 0) throw std::bad_alloc();  // a plane of more than 2^31 values
  plan->block_channels = std::min({block_channels(shape, layout, lanes_), fits, group_channels_});
  plan->blocks = (group_channels_ + plan->block_channels - 1) / plan->block_channels;
  plan->block_channels = (group_channels_ + plan->blocks - 1) / plan->blocks;

  plan->offset.resize(column_.size());
  for (size_t e = 0; e < column_.size(); ++e) {
    const int64_t channel = column_[e] / taps % plan->block_channels;
    plan->offset[e] = static_cast<int32_t>(channel * layout.channel + tap[static_cast<size_t>(column_[e] % taps)]);
  }
  plan->block.resize(row_groups_ * static_cast<size_t>(plan->blocks + 1));
  for (const Panel& panel : panels_) {
    uint32_t* table = plan->block.data() + panel.block * static_cast<size_t>(plan->blocks + 1);
    for (size_t q = 0; q < panel.groups.size(); ++q) {
      const size_t begin = panel.groups[q].entry;
      size_t end = column_.size();
      if (q + 1 < panel.groups.size()) {
        end = panel.groups[q + 1].entry;
      } else if (&panel != &panels_.back()) {
        end = (&panel + 1)->groups[0].entry;
      }
      size_t e = begin;
      for (int64_t b = 0; b <= plan->blocks; ++b) {
        while (e < end && column_[e] < b * plan->block_channels * taps) ++e;
        table[static_cast<size_t>(b) * panel.groups.size() + q] = static_cast<uint32_t>(e);
      }
    }
  }
  return plan;
}

void ConvDirect::run_image(const float* padded, const ConvShape& s, const Plan& plan, const Finish& finish,
                           const Pool& pool) const {
  const int64_t vectors = (plan.layout.positions + lanes_ - 1) / lanes_;
  const int64_t runs = (vectors + kDirectVectors - 1) / kDirectVectors;
  const int64_t tasks = task_count(nonzeros_ * vectors, std::numeric_limits<int64_t>::max());
  const int64_t position_parts = std::min(runs, tasks);
  int64_t row_parts = (tasks + s.group * position_parts - 1) / (s.group * position_parts);

  std::vector<std::vector<Segment>> segments;
  for (int64_t i = 0; i < runs; ++i) {
    const int64_t begin = part_begin(vectors, runs, i) * lanes_, end = part_begin(vectors, runs, i + 1) * lanes_;
    segments.push_back(segments_of(begin, end - begin, plan.layout.pitch, s.out_width, s.out_height));
  }
  // Neighbouring tasks share their rows: the weights stay in the cache of the core
  run_tasks(pool, s.group * row_parts * position_parts, [&](size_t task) {
    const int64_t position_part = static_cast<int64_t>(task) % position_parts;
    const int64_t row_part = static_cast<int64_t>(task) / position_parts % row_parts;
    const Panel& panel = panels_[task / static_cast<size_t>(position_parts * row_parts)];
    const int64_t panel_index = &panel - panels_.data();
    DirectJob job{};
    job.offset = plan.offset.data(), job.value = value_.data();
    job.group = panel.groups.data(), job.row = panel.rows.data();
    job.groups = static_cast<int64_t>(panel.groups.size());
    job.begin = part_begin(job.groups, row_parts, row_part);
    job.end = part_begin(job.groups, row_parts, row_part + 1);
    if (job.begin == job.end) return;
    job.block = plan.block.data() + panel.block * static_cast<size_t>(plan.blocks + 1);
    job.blocks = plan.blocks, job.block_step = plan.block_channels * plan.layout.channel;
    const RowGroup& last = job.group[job.end - 1];
    const uint32_t slots = last.slot + last.size - job.group[job.begin].slot;
    job.C = scratch(Scratch::accumulators, static_cast<size_t>(slots) * kDirectVectors * static_cast<size_t>(lanes_));
    Finish out = finish;
    for (int64_t i = part_begin(runs, position_parts, position_part);
         i < part_begin(runs, position_parts, position_part + 1); ++i) {
      const int64_t begin = part_begin(vectors, runs, i);
      job.vectors = part_begin(vectors, runs, i + 1) - begin;
      job.X = padded + panel_index * group_channels_ * plan.layout.channel + begin * lanes_;
      out.segments = segments[static_cast<size_t>(i)].data();
      out.segment_count = static_cast<int64_t>(segments[static_cast<size_t>(i)].size());
      functions_.direct(job, out);
    }
  });
}

void ConvDirect::run(const float* X, float* Y, const ConvShape& shape, const Epilogue& epilogue,
                     const Pool& pool) const {
  const std::shared_ptr<const Plan> plan = plan_for(shape);
  const int64_t plane = shape.out_height * shape.out_width;
  for (int64_t n = 0; n < shape.batch; ++n) {
    const int64_t image = n * shape.out_channels * plane;
    const Finish finish{epilogue.bias, epilogue.residual ? epilogue.residual + image : nullptr, Y + image, plane,
                        epilogue.activation, epilogue.low, epilogue.high, nullptr, 0};
    // Vectors that hold the last positions read beyond them
    const float* padded = padded_image(functions_, X + n * shape.channels * shape.height * shape.width, shape,
                                       plan->layout, kDirectVectors * lanes_, pool);
    run_image(padded, shape, *plan, finish, pool);
  }
}

}  // namespace

std::unique_ptr<ConvKernel> make_conv_direct(const Csr& weight, const ConvShape& shape, const Level& level) {
  return std::make_unique<ConvDirect>(weight, shape, level);
}

}  // namespace onnxprune
