// Compiled with -mavx2 -mfma -mf16c; only called where cpuid says so.
#define ONNXPRUNE_LEVEL avx2
#include "level_functions.h"

// Groups of four rows run a tile of 6 vectors as two strips of 3: 12 accumulators, 3 inputs, 1 weight
ONNXPRUNE_LEVEL_TABLE(avx2, 4, 6)
