// The convolution functions of one level, for its table. Include only from level_*.cpp.
#pragma once

#include "conv_copy_impl.h"
#include "conv_direct_impl.h"
#include "depthwise_impl.h"

namespace onnxprune {
namespace ONNXPRUNE_LEVEL {

static const ConvFunctions conv_functions = {
    kRegisters >= 32 ? 8 : 4, copy_plane, pack_tile, finish_rows, direct, depthwise,
};

}  // namespace ONNXPRUNE_LEVEL
}  // namespace onnxprune
