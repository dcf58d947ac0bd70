#include "conv_layout.h"

#include <algorithm>

namespace onnxprune {
namespace {

// Which residues modulo the stride the taps 0, dilation, 2 * dilation ... touch, numbered in order
int number_phases(int64_t taps, int64_t stride, int64_t dilation, std::vector<int>* slot) {
  slot->assign(static_cast<size_t>(stride), -1);
  for (int64_t i = 0; i < taps; ++i) (*slot)[static_cast<size_t>(i * dilation % stride)] = 0;
  int used = 0;
  for (int& s : *slot) {
    if (s == 0) s = used++;
  }
  return used;
}

}  // namespace

PlaneLayout::PlaneLayout(const ConvShape& s) {
  used_h = number_phases(s.kernel_h, s.stride_h, s.dilation_h, &slot_h);
  used_w = number_phases(s.kernel_w, s.stride_w, s.dilation_w, &slot_w);
  const int64_t reach_w = (s.kernel_w - 1) * s.dilation_w / s.stride_w;
  rows = s.out_height + (s.kernel_h - 1) * s.dilation_h / s.stride_h;
  pitch = s.out_width + reach_w;
  // The zeros right of a row serve as the zeros left of the next one
  if (s.stride_w == 1) pitch -= std::min({s.pad_left, s.pad_right, reach_w});
  phase = rows * pitch;
  // Room for the right padding of the last row; an odd number of cache lines, so that the same place of
  // many channels does not fall into one set of the cache
  const int64_t lines = (used_h * used_w * phase + s.pad_right + 15) / 16;
  channel = 16 * (lines | 1);
  positions = (s.out_height - 1) * pitch + s.out_width;
}

int64_t PlaneLayout::offset(const ConvShape& s, int64_t i, int64_t j) const {
  const int64_t h = i * s.dilation_h, w = j * s.dilation_w;
  const int64_t slot =
      slot_h[static_cast<size_t>(h % s.stride_h)] * used_w + slot_w[static_cast<size_t>(w % s.stride_w)];
  return slot * phase + h / s.stride_h * pitch + w / s.stride_w;
}

bool same_plane(const ConvShape& a, const ConvShape& b) {
  return a.height == b.height && a.width == b.width && a.out_height == b.out_height && a.out_width == b.out_width &&
         a.pad_top == b.pad_top && a.pad_left == b.pad_left && a.pad_bottom == b.pad_bottom &&
         a.pad_right == b.pad_right;
}

}  // namespace onnxprune
