// Memory that a kernel needs during run(): one buffer a thread and use, which only grows.
#pragma once

#include <cstddef>

namespace onnxprune {

enum class Scratch { padded_input, accumulators, tile, all_rows, count };

// At least `floats` floats, 64-byte aligned, contents undefined; valid until the thread asks for the same use
// again. Throws std::bad_alloc.
float* scratch(Scratch use, size_t floats);

}  // namespace onnxprune
