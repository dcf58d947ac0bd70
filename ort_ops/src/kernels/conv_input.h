// The padded copy of one image (see PlaneLayout), made by all threads.
#pragma once

#include "conv_functions.h"
#include "conv_layout.h"

namespace onnxprune {

// How planes of the shape are copied; the layout must outlive the job
CopyJob copy_job(const ConvShape& shape, const PlaneLayout& layout);

// Whether the input needs no copy: position p of a channel is its p-th value
bool is_pointwise(const ConvShape& shape);

// [channels][layout.channel], then `slack` zeros; in the scratch memory of the calling thread.
const float* padded_image(const ConvFunctions& functions, const float* X, const ConvShape& shape,
                          const PlaneLayout& layout, int64_t slack, const Pool& pool);

}  // namespace onnxprune
