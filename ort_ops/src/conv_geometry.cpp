#include "conv_geometry.h"

#include <algorithm>

#include "decode.h"

namespace onnxprune {
namespace {

// Far above any real convolution, far below where products of a few of them overflow
constexpr int64_t largest = int64_t{1} << 24;

std::vector<int64_t> resolve(const std::vector<int64_t>& given, size_t count, int64_t otherwise, int64_t least,
                             const char* name) {
  if (given.empty()) return std::vector<int64_t>(count, otherwise);
  if (given.size() != count)
    throw Refusal(std::string("attribute ") + name + " is " + to_string(given) + ", wanted " +
                  std::to_string(count) + " numbers");
  for (const int64_t value : given)
    if (value < least || value > largest)
      throw Refusal(std::string("attribute ") + name + " is " + to_string(given) + ", wanted " +
                    std::to_string(least) + " to " + std::to_string(largest));
  return given;
}

// Size of one output dimension, 0 when the kernel does not fit
int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t begin, int64_t end) {
  const int64_t room = size + begin + end - ((kernel - 1) * dilation + 1);
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace

ConvShape conv_shape(const std::vector<int64_t>& weight, const ConvAttributes& attributes) {
  if (weight.size() != 3 && weight.size() != 4)
    throw Refusal("the weight has shape " + to_string(weight) + ", wanted 3 or 4 dimensions");
  for (const int64_t dim : weight)
    if (dim < 1 || dim > largest)
      throw Refusal("the weight has shape " + to_string(weight) + ", wanted dimensions of 1 to " +
                    std::to_string(largest));
  const size_t spatial = weight.size() - 2;
  const std::vector<int64_t> kernel(weight.begin() + 2, weight.end());
  if (!attributes.kernel.empty() && attributes.kernel != kernel)
    throw Refusal("attribute kernel_shape is " + to_string(attributes.kernel) + ", the weight has shape " +
                  to_string(weight));
  const auto strides = resolve(attributes.strides, spatial, 1, 1, "strides");
  const auto dilations = resolve(attributes.dilations, spatial, 1, 1, "dilations");
  const auto pads = resolve(attributes.pads, 2 * spatial, 0, 0, "pads");
  const int64_t group = attributes.group;
  if (group < 1 || group > largest || weight[0] % group)
    throw Refusal("attribute group is " + std::to_string(group) + ", the weight has shape " + to_string(weight));

  ConvShape shape{};
  shape.out_channels = weight[0];
  shape.channels = weight[1] * group;
  shape.group = group;
  const bool flat = spatial == 1;  // a row: height 1
  shape.kernel_h = flat ? 1 : kernel[0];
  shape.kernel_w = kernel.back();
  shape.stride_h = flat ? 1 : strides[0];
  shape.stride_w = strides.back();
  shape.dilation_h = flat ? 1 : dilations[0];
  shape.dilation_w = dilations.back();
  shape.pad_top = flat ? 0 : pads[0];
  shape.pad_left = pads[flat ? 0 : 1];
  shape.pad_bottom = flat ? 0 : pads[2];
  shape.pad_right = pads.back();
  return shape;
}

bool set_output_size(ConvShape& shape) {
  shape.out_height = output_size(shape.height, shape.kernel_h, shape.stride_h, shape.dilation_h, shape.pad_top,
                                 shape.pad_bottom);
  shape.out_width = output_size(shape.width, shape.kernel_w, shape.stride_w, shape.dilation_w, shape.pad_left,
                                shape.pad_right);
  return shape.out_height > 0 && shape.out_width > 0;
}

}  // namespace onnxprune
