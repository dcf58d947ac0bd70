// float16 (10) and bfloat16 (16) as bits, on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

inline float widen(uint16_t bits, int type) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  if (type == 10) {
    const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 0) return std::ldexp(static_cast<float>(mantissa), -24) * (sign ? -1.f : 1.f);
    wide = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
  }
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t narrow(float value, int type) {
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  if (type == 16) return static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  const uint16_t sign = static_cast<uint16_t>(wide >> 16 & 0x8000);
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7e00;
  if (size == 0.f) return sign;
  if (size >= 65520.f) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(size, &exponent);
  const int unit = std::max(exponent - 11, -24);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, -unit)));
  if (unit == -24) return static_cast<uint16_t>(sign | steps);
  return static_cast<uint16_t>(sign | (((unit + 25) << 10) + (steps - 1024)));
}
