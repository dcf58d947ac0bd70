#include "conv_table.h"

#include <algorithm>

#include "../levels.h"
#include "conv_direct.h"
#include "conv_tile.h"
#include "depthwise.h"
#include "groups.h"

namespace onnxprune {

const ConvEntry kConvKernels[] = {
    {"depthwise", make_depthwise},
    {"direct", make_conv_direct},
    {"tile", make_conv_tile},
};
const size_t kConvKernelCount = sizeof kConvKernels / sizeof kConvKernels[0];

// Beyond these the padded copy could be much larger than input and output together
static bool is_usual(const ConvShape& s) {
  constexpr int64_t kStride = 16, kPad = 256, kReach = 1024;
  return std::max(s.stride_h, s.stride_w) <= kStride &&
         std::max({s.pad_top, s.pad_left, s.pad_bottom, s.pad_right}) <= kPad &&
         s.kernel_h * s.dilation_h <= kReach && s.kernel_w * s.dilation_w <= kReach;
}

// Rows that share their support, on average
static double shared_rows(const Csr& weight, const ConvShape& shape) {
  const int64_t rows = shape.out_channels / shape.group;
  size_t sets = 0;
  for (int64_t g = 0; g < shape.group; ++g) sets += equal_rows(weight, g * rows, (g + 1) * rows).size();
  return static_cast<double>(weight.rows) / static_cast<double>(sets);
}

// Measured on AVX2 and AVX-512 at 50 to 90 %. The tile kernel packs what it reads, so its loads are aligned, and its
// core knows single rows best: it wins where a packed value is read often. The direct kernel packs nothing, where a
// tile would hold each value once for every tap.
static bool direct_is_best(const Csr& weight, const ConvShape& s, const Level& level) {
  if (s.kernel_h * s.kernel_w == 1) return false;
  const double density = static_cast<double>(weight.value.size()) / static_cast<double>(weight.rows * weight.cols);
  // A load of 64 bytes that is not aligned costs two
  return shared_rows(weight, s) >= 1.5 || density < (level.lanes < 16 ? 0.35 : 0.25);
}

std::unique_ptr<ConvKernel> best_conv(const Csr& weight, const ConvShape& shape, const Level& level) {
  if (weight.rows == 0 || weight.cols == 0 || !is_usual(shape)) return nullptr;
  if (shape.group == shape.channels && shape.group > 1) return make_depthwise(weight, shape, level);
  return direct_is_best(weight, shape, level) ? make_conv_direct(weight, shape, level)
                                              : make_conv_tile(weight, shape, level);
}

}  // namespace onnxprune
