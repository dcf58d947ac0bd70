// Aarch64 only, where NEON is the baseline.
#define ONNXPRUNE_LEVEL neon
#include "level_functions.h"

ONNXPRUNE_LEVEL_TABLE(neon, 4, 6)
