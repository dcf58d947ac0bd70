// Compiled with -mavx512f -mavx512vl -mavx512dq -mavx512bw -mfma; only called where cpuid says so.
#define ONNXPRUNE_LEVEL avx512
#include "level_functions.h"

ONNXPRUNE_LEVEL_TABLE(avx512, 4, 4)
