// What each level_<name>.cpp compiles: all vector code, and the table of it. Included by level_*.cpp only.
#pragma once

#include "kernels/bitmap_core.h"
#include "kernels/lanes_core.h"
#include "kernels/norm_core.h"
#include "kernels/tile_core.h"
#include "kernels/tokens_core.h"
#include "levels.h"
#if __has_include("kernels/conv_level_impl.h")
#include "kernels/conv_level_impl.h"
#define ONNXPRUNE_CONV(NAME) &NAME::conv_functions
#else
#define ONNXPRUNE_CONV(NAME) nullptr
#endif

#define ONNXPRUNE_LEVEL_TABLE(NAME, SINGLE_VECTORS, GROUP_VECTORS)                                              \
  namespace onnxprune {                                                                                       \
  extern const Level level_##NAME;                                                                            \
  const Level level_##NAME = {#NAME,                                                                          \
                              NAME::W,                                                                        \
                              SINGLE_VECTORS,                                                                 \
                              GROUP_VECTORS,                                                                  \
                              NAME::tile_accumulate,                                                          \
                              NAME::pack_tokens,                                                              \
                              NAME::write_tokens,                                                             \
                              NAME::write_rows,                                                               \
                              NAME::layer_norm,                                                               \
                              NAME::multiply_lanes,                                                               \
                              NAME::pack_columns,                                                             \
                              NAME::multiply_bitmap,                                                          \
                              ONNXPRUNE_CONV(NAME)};                                                                \
  }
