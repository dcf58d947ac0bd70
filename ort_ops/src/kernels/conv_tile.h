// Sparse convolution by the shared tile core (tile.h): 1 x 1 kernels straight from the input, larger ones by
// im2col, which packs a tile of every column that some weight uses.
//
// Best for 1 x 1, and for rows that share no support: they read each packed column often.
#pragma once

#include <memory>

#include "kernel.h"

namespace onnxprune {

struct Level;

std::unique_ptr<ConvKernel> make_conv_tile(const Csr& weight, const ConvShape& shape, const Level& level);

}  // namespace onnxprune
