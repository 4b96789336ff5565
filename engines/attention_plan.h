// The grid for an attention call's arguments, or the status that refuses them. Nothing is launched.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "attention.h"

struct AttentionPlan {
  int status;
  int split;        // warps per window and head
  uint32_t tiles;   // windows x heads
  uint32_t blocks;  // of 4 warps
  bool padded;
  bool packed;  // q, k, v interleaved in one dense [batch, height, width, 3C], out dense [.., C]
};

constexpr int kWarpsPerBlock = 4;
// With fewer warps (8 per SM of a large GPU), four of them share a window and head. Predicted, not measured.
constexpr int64_t kFewTiles = 4096;

inline bool misaligned(const void* pointer) { return (reinterpret_cast<uintptr_t>(pointer) & 15) != 0; }

inline bool misaligned(const dgiqa_stride& stride) { return ((stride.batch | stride.token) & 7) != 0; }

inline bool same_stride(const dgiqa_stride& stride, int64_t batch, int64_t token) {
  return stride.batch == batch && stride.token == token;
}

inline bool is_packed(const dgiqa_attention& a) {
  const int64_t channels = int64_t(a.heads) * a.head_dim, tokens = int64_t(a.height) * a.width;
  const auto q = reinterpret_cast<uintptr_t>(a.q);
  return reinterpret_cast<uintptr_t>(a.k) == q + 2 * channels && reinterpret_cast<uintptr_t>(a.v) == q + 4 * channels &&
         same_stride(a.q_stride, tokens * 3 * channels, 3 * channels) &&
         same_stride(a.k_stride, tokens * 3 * channels, 3 * channels) &&
         same_stride(a.v_stride, tokens * 3 * channels, 3 * channels) &&
         same_stride(a.out_stride, tokens * channels, channels);
}

inline int check_attention(const dgiqa_attention& a) {
  if (a.batch < 0 || a.height < 1 || a.width < 1 || a.heads < 1) return DGIQA_BAD_ARGUMENT;
  if (a.head_dim != 32 && a.head_dim != 64) return DGIQA_BAD_ARGUMENT;
  if (a.shift != 0 && (a.shift != 3 || a.height < 3 || a.width < 3)) return DGIQA_BAD_ARGUMENT;
  if (a.split != 0 && a.split != 4 && (a.split != 1 || a.head_dim != 32)) return DGIQA_BAD_ARGUMENT;
  if (!(a.scale > 0.f) || !std::isfinite(a.scale) || !std::isfinite(100.f / a.scale)) return DGIQA_BAD_ARGUMENT;
  if (a.batch == 0) return DGIQA_OK;  // no pointer is read
  const bool padded = a.height % DGIQA_WINDOW || a.width % DGIQA_WINDOW;
  if (!a.q || !a.k || !a.v || !a.out || (padded && !(a.pad_k && a.pad_v))) return DGIQA_BAD_ARGUMENT;
  if (!a.bias && (a.shift || padded)) return DGIQA_BAD_ARGUMENT;  // Swin always has a bias here; pass zeros if not
  for (const void* pointer : {a.q, a.k, a.v, static_cast<const void*>(a.out), a.bias, a.pad_k, a.pad_v})
    if (misaligned(pointer)) return DGIQA_MISALIGNED;
  for (const dgiqa_stride& stride : {a.q_stride, a.k_stride, a.v_stride, a.out_stride}) {
    if (stride.token < 0) return DGIQA_BAD_ARGUMENT;
    if (misaligned(stride)) return DGIQA_MISALIGNED;
  }
  return DGIQA_OK;
}

// Whether 32 bits can hold the offset of every element of an image from its first.
inline bool reaches_image(const dgiqa_attention& a) {
  const int64_t tokens = int64_t(a.height) * a.width;
  for (const dgiqa_stride& stride : {a.q_stride, a.k_stride, a.v_stride, a.out_stride})
    if (stride.token > INT32_MAX / tokens) return false;
  return true;
}

inline AttentionPlan plan_attention(const dgiqa_attention& a) {
  AttentionPlan plan{check_attention(a), 0, 0, 0, false, false};
  if (plan.status != DGIQA_OK || a.batch == 0) return plan;
  // heights and widths are below 2^31, so windows are below 2^57; dividing keeps the products below 2^63
  const int64_t windows = ((int64_t(a.height) + 6) / 7) * ((int64_t(a.width) + 6) / 7);
  const int64_t limit = (int64_t(1) << 32) - kWarpsPerBlock;  // warps are numbered in 32 bits
  if (int64_t(a.height) * a.width > INT32_MAX || int64_t(a.heads) * a.head_dim > INT32_MAX / 4 ||
      windows > limit / a.batch || windows * a.batch > limit / a.heads || !reaches_image(a))
    return plan.status = DGIQA_TOO_LARGE, plan;
  const int64_t tiles = windows * a.batch * a.heads;
  plan.split = a.split ? a.split : a.head_dim == 64 || tiles < kFewTiles ? 4 : 1;
  const int64_t warps = tiles * plan.split;
  if (warps > limit) return plan.status = DGIQA_TOO_LARGE, plan;
  plan.tiles = uint32_t(tiles);
  plan.blocks = uint32_t((warps + kWarpsPerBlock - 1) / kWarpsPerBlock);
  plan.padded = a.height % DGIQA_WINDOW || a.width % DGIQA_WINDOW;
  plan.packed = is_packed(a);
  return plan;
}
