// Converts float16 bits and float on the host, without compiler extensions: rounds to nearest even, keeps inf, NaN,
// subnormals.
#pragma once

#include <cstdint>
#include <cstring>

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  else if (magnitude >= 0x400u) bits = sign | ((magnitude << 13) + (112u << 23));
  else {
    const float value = float(magnitude) * 0x1p-24f;  // subnormal: an integer count of 2^-24
    std::memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (bits >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
  if (bits < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24, rounded by the addition of 0.5
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return sign | uint16_t(bits - 0x3f000000u);
  }
  const uint32_t odd = bits >> 13 & 1u;
  return sign | uint16_t((bits - (112u << 23) + 0xfffu + odd) >> 13);
}
