// How the work of a convolution is cut into tasks, and where a run of positions lies in Y.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "conv_functions.h"

namespace onnxprune {

// Runs in Y of positions [first, first + count) of rows `pitch` apart of which `width` are real
std::vector<Segment> segments_of(int64_t first, int64_t count, int64_t pitch, int64_t width, int64_t rows);

// Into how many tasks, `most` at the most, to cut so many vector operations: enough for many threads to
// share evenly, none so short (about 10 us) that handing it out would cost.
int64_t task_count(int64_t operations, int64_t most);

inline int64_t part_begin(int64_t n, int64_t parts, int64_t i) { return n * i / parts; }

// body(begin, end) for equal parts of [0, n)
void run_parts(const Pool& pool, int64_t parts, int64_t n, const std::function<void(int64_t, int64_t)>& body);

}  // namespace onnxprune
