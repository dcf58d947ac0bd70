#include "conv_table.h"

#include <algorithm>

#include "conv_direct.h"
#include "conv_tile.h"
#include "depthwise.h"

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
         std::max(s.kernel_h, s.dilation_h) * s.kernel_h <= kReach && std::max(s.kernel_w, s.dilation_w) * s.kernel_w <= kReach;
}

std::unique_ptr<ConvKernel> best_conv(const Csr& weight, const ConvShape& shape, const Level& level) {
  if (weight.rows == 0 || weight.cols == 0 || !is_usual(shape)) return nullptr;
  if (shape.group == shape.channels && shape.group > 1) return make_depthwise(weight, shape, level);
  // Measured: a tile of 1 x 1 is packed once for many rows; larger kernels would pack each input value k * k times
  if (shape.kernel_h == 1 && shape.kernel_w == 1) return make_conv_tile(weight, shape, level);
  return make_conv_direct(weight, shape, level);
}

}  // namespace onnxprune
