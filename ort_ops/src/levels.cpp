#include "levels.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace onnxprune {

extern const Level level_scalar;
#if defined(__x86_64__)
extern const Level level_avx2, level_avx512;
#elif defined(__aarch64__)
extern const Level level_neon;
#endif

namespace {

// The compiler's cpuid reading includes xgetbv: whether the system saves the registers
bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
#else
  return false;
#endif
}

struct Levels {
  const Level* best_first[4] = {};
  size_t count = 0;
#if defined(__x86_64__)
  Level amd = level_avx512;
#endif

  Levels() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    // Measured on Zen 4: vexpandps takes 7 cycles for 16 columns, two looked up permutations take 4.5
    amd.multiply_bitmap = level_avx2.multiply_bitmap;
    if (has_avx512()) best_first[count++] = __builtin_cpu_is("amd") ? &amd : &level_avx512;
    if (has_avx2()) best_first[count++] = &level_avx2;
#elif defined(__aarch64__)
    best_first[count++] = &level_neon;
#endif
    best_first[count++] = &level_scalar;
  }
};

const Levels& levels() {
  static const Levels all;
  return all;
}

}  // namespace

const Level* level_at(size_t index) { return index < levels().count ? levels().best_first[index] : nullptr; }

const Level* level_named(const char* name) {
  for (size_t i = 0; const Level* candidate = level_at(i); ++i)
    if (std::strcmp(candidate->name, name) == 0) return candidate;
  return nullptr;
}

const Level& level() {
  static const Level& chosen = [] () -> const Level& {
    const char* wanted = std::getenv("ONNXPRUNE_LEVEL");
    const Level* named = wanted ? level_named(wanted) : nullptr;
    return named ? *named : *level_at(0);
  }();
  return chosen;
}

int64_t l1_bytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#else
  constexpr int64_t bytes = 0;
#endif
  return bytes > 0 ? std::clamp<int64_t>(bytes, 16 << 10, 128 << 10) : 32 << 10;
}

}  // namespace onnxprune
