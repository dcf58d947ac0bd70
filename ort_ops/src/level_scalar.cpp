// The compiler's baseline of the machine (SSE2 on x86-64): runs everywhere.
#define ONNXPRUNE_LEVEL scalar
#include "level_functions.h"

ONNXPRUNE_LEVEL_TABLE(scalar, 4, 4)
