// One warp computes softmax(scale q k^T + bias + mask) v for one window and head (or a quarter of its rows), 49 tokens.
//
// There is no shared memory and no barrier: lane 4g + t keeps 16 contiguous bytes (elements 8t .. 8t + 7) of rows g,
// g + 8, .. of q, k, v and out, so that every memory access is a whole 16-byte vector and the rows of eight lanes fill
// their sectors. The contraction over the head dimension may run in any order, so q and k need no rearranging; 8x8
// blocks of v are transposed in registers. The accumulators start with the bias, row sums come from a product with
// ones, and shift, partition, reverse, padding and mask are index arithmetic.
//
// Fragments of mma.m16n8k16, lane = 4g + t, as the hardware distributes them:
//
//     a [16 rows][16]  a0: row g, k 2t..2t+1    a1: row g + 8    a2: row g, k 2t+8..2t+9    a3: row g + 8
//     b [16][8 cols]   b0: k 2t..2t+1, column g                  b1: k 2t+8..2t+9
//     c [16][8]        c0, c1: row g, columns 2t, 2t + 1         c2, c3: row g + 8
//
// A lane's 16 bytes of q are its elements 8t .. 8t + 7. They are a0 | a2 of two products, and the same bytes of k are
// b0 | b1: the hardware's k = 2t is element 8t for both, so each sum is complete, in another order. c has a's layout
// with 8 columns instead of 16, so the probabilities can feed the next product from the registers that they are in.
//
// Included by the CUDA build (Warp = CudaWarp) and by the emulated one (EmulatedWarp).
#pragma once

#include "attention.h"

namespace attention {

constexpr int kRowTiles = 4;  // of 16 queries: 64 rows for 49
constexpr int kGroups = 7;    // of 8 tokens: 56 for 49
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNever = -1e30f;        // the logit of a key that does not exist
constexpr float kMasked = -100.f;       // added across a seam; finite, as in the model
constexpr uint32_t kOnes = 0x3c003c00u;  // two halves of 1

// Bit j: key j is past the seam of a border window, where rolled rows (columns) 4..6 came from the other side.
constexpr uint64_t kAllKeys = (uint64_t(1) << DGIQA_WINDOW_TOKENS) - 1;
constexpr uint64_t kPastRows = kAllKeys & ~((uint64_t(1) << 28) - 1);
constexpr uint64_t kPastColumns = (0x70ull * 0x0000040810204081ull) & kAllKeys;

DGIQA_DEVICE int window_row(int token) { return (token * 37) >> 8; }  // token / 7, for tokens below 64

DGIQA_DEVICE int window_column(int token) { return token - 7 * window_row(token); }

// The window, head and image that a warp works on.
struct Place {
  uint32_t image, window_y, window_x, head;
  bool seam_y, seam_x;  // a shifted map's last windows join its two ends
};

template <bool SHIFT>
DGIQA_DEVICE Place place_of(const dgiqa_attention& a, uint32_t tile, uint32_t heads) {
  const uint32_t across = (uint32_t(a.width) + 6) / 7, down = (uint32_t(a.height) + 6) / 7;
  const uint32_t window = tile / heads, line = window / across;
  Place at;
  at.head = tile % heads;
  at.window_x = window % across;
  at.window_y = line % down;
  at.image = line / down;
  at.seam_y = SHIFT && at.window_y == down - 1;
  at.seam_x = SHIFT && at.window_x == across - 1;
  return at;
}

// The position of a window's token in the unshifted map; -1: in the padding.
template <bool SHIFT, bool PAD>
DGIQA_DEVICE int token_of(const dgiqa_attention& a, const Place& at, int token) {
  int y = int(at.window_y) * 7 + window_row(token), x = int(at.window_x) * 7 + window_column(token);
  const bool inside = !PAD || (y < a.height && x < a.width);
  if (SHIFT) {
    y += a.shift;
    y -= y >= a.height ? a.height : 0;
    x += a.shift;
    x -= x >= a.width ? a.width : 0;
  }
  return inside ? y * a.width + x : -1;
}

// The keys that are masked for a query: those on the other side of a seam.
DGIQA_DEVICE uint64_t across_seam(const Place& at, int query) {
  const uint64_t rows = at.seam_y ? (query >= 28 ? ~kPastRows : kPastRows) : 0;
  const uint64_t columns = at.seam_x ? (window_column(query) >= 4 ? ~kPastColumns : kPastColumns) : 0;
  return rows | columns;
}

// The logits before any product, from bias and mask, divided by scale: rows 16 tile + g (0, 1) and + 8 (2, 3).
template <bool SHIFT, bool BIAS, class Warp>
DGIQA_DEVICE void start_logits(const dgiqa_attention& a, const Place& at, int tile, const Warp& warp,
                               float (&s)[kGroups][4]) {
  const int g = warp.lane >> 2, t = warp.lane & 3;
  if (BIAS) {
    const uint16_t* packed = static_cast<const uint16_t*>(a.bias) +
                             (size_t(at.head * kRowTiles + tile) * (kGroups * 32) + warp.lane) * 4;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      uint32_t upper, lower;
      Warp::load8(packed + n * 128, upper, lower);
      s[n][0] = Warp::low(upper), s[n][1] = Warp::high(upper);
      s[n][2] = Warp::low(lower), s[n][3] = Warp::high(lower);
    }
  } else {
#pragma unroll
    for (int n = 0; n < kGroups; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
  }
  s[6][0] = t == 0 ? s[6][0] : kNever;  // of keys 48..55 only 48 exists
  s[6][2] = t == 0 ? s[6][2] : kNever;
  s[6][1] = s[6][3] = kNever;
  if (SHIFT && (at.seam_y || at.seam_x)) {  // the same for the whole warp
    const uint64_t upper = across_seam(at, tile * 16 + g) >> (2 * t);
    const uint64_t lower = across_seam(at, tile * 16 + g + 8) >> (2 * t);
    const float masked = kMasked / a.scale;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      s[n][0] += upper >> (8 * n) & 1 ? masked : 0.f;
      s[n][1] += upper >> (8 * n + 1) & 1 ? masked : 0.f;
      s[n][2] += lower >> (8 * n) & 1 ? masked : 0.f;
      s[n][3] += lower >> (8 * n + 1) & 1 ? masked : 0.f;
    }
  }
}

// Turns logits (divided by scale) into exp(logit - row maximum) in halves, as the a operand of the next product.
template <class Warp>
DGIQA_DEVICE void exponentials(float (&s)[kGroups][4], float to_log2, bool last, Warp& warp, uint32_t (&upper)[kGroups],
                               uint32_t (&lower)[kGroups]) {
  float high = s[0][0], low = s[0][2];
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    high = fmaxf(high, fmaxf(s[n][0], s[n][1]));
    if (!last) low = fmaxf(low, fmaxf(s[n][2], s[n][3]));
  }
  high = fmaxf(high, warp.shuffle_xor(high, 1));
  high = fmaxf(high, warp.shuffle_xor(high, 2));
  low = fmaxf(low, warp.shuffle_xor(low, 1));
  low = fmaxf(low, warp.shuffle_xor(low, 2));
  const float above = -high * to_log2, below = -low * to_log2;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    upper[n] = Warp::pack(Warp::exp2(s[n][0] * to_log2 + above), Warp::exp2(s[n][1] * to_log2 + above));
    lower[n] = last ? 0u : Warp::pack(Warp::exp2(s[n][2] * to_log2 + below), Warp::exp2(s[n][3] * to_log2 + below));
  }
}

// c[16x8] += probabilities [16x56] b [56x8]
template <class Warp>
DGIQA_DEVICE void accumulate(Warp& warp, float (&c)[4], const uint32_t (&upper)[kGroups],
                             const uint32_t (&lower)[kGroups], const uint32_t (&b)[kGroups]) {
#pragma unroll
  for (int k = 0; k < 3; ++k)
    warp.mma16(c, upper[2 * k], lower[2 * k], upper[2 * k + 1], lower[2 * k + 1], b[2 * k], b[2 * k + 1]);
  warp.mma8(c, upper[6], lower[6], b[6]);
}

template <class Warp>
DGIQA_DEVICE Quad row_of(const float (&o)[4][4], int half, float by) {
  return Quad{Warp::pack(o[0][half] * by, o[0][half + 1] * by), Warp::pack(o[1][half] * by, o[1][half + 1] * by),
              Warp::pack(o[2][half] * by, o[2][half + 1] * by), Warp::pack(o[3][half] * by, o[3][half + 1] * by)};
}

// UNITS: head dimension / 32. SPLIT: warps per window and head; part: the number of this one. CHANNELS > 0: q, k, v and
// out are packed and this wide, so that every offset is a constant; 0: any layout that dgiqa_attention can describe.
template <int UNITS, bool SHIFT, bool BIAS, bool PAD, int SPLIT, int CHANNELS, class Warp>
DGIQA_DEVICE void attend(const dgiqa_attention& a, uint32_t tile, int part, Warp warp) {
  constexpr int kHeadDim = 32 * UNITS;
  constexpr bool kStream = SPLIT == 1;
  const int g = warp.lane >> 2, t = warp.lane & 3;
  const bool real = g == 0;  // row 48 + g is a token
  const Place at = place_of<SHIFT>(a, tile, CHANNELS ? uint32_t(CHANNELS / kHeadDim) : uint32_t(a.heads));
  const int head_offset = int(at.head) * kHeadDim + 8 * t;
  const int64_t image = at.image;
  const uint16_t* const q = static_cast<const uint16_t*>(a.q) + image * a.q_stride.batch + head_offset;
  const uint16_t* const k =
      CHANNELS ? q + CHANNELS : static_cast<const uint16_t*>(a.k) + image * a.k_stride.batch + head_offset;
  const uint16_t* const v =
      CHANNELS ? k + CHANNELS : static_cast<const uint16_t*>(a.v) + image * a.v_stride.batch + head_offset;
  uint16_t* const out = static_cast<uint16_t*>(a.out) + image * a.out_stride.batch + head_offset;

  // Within an image 32 bits reach every element (the plan checks it); 64-bit offsets made the compiler spill.
  const int q_step = CHANNELS ? 3 * CHANNELS : int(a.q_stride.token);
  const int k_step = CHANNELS ? 3 * CHANNELS : int(a.k_stride.token);
  const int v_step = CHANNELS ? 3 * CHANNELS : int(a.v_stride.token);
  const int out_step = CHANNELS ? CHANNELS : int(a.out_stride.token);

  int token[kGroups];  // this lane's: rows g + 8 m of the window
#pragma unroll
  for (int m = 0; m < kGroups; ++m) token[m] = token_of<SHIFT, PAD>(a, at, m < kGroups - 1 ? g + 8 * m : 48);

  const Quad zero{0u, 0u, 0u, 0u};
  Quad keys[kGroups][UNITS];  // b operand of q k^T
#pragma unroll
  for (int m = 0; m < kGroups; ++m) {
    const uint16_t* from = k + token[m] * k_step;
    if (PAD) from = token[m] < 0 ? static_cast<const uint16_t*>(a.pad_k) + head_offset : from;
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      keys[m][u] = zero;
      if (m < kGroups - 1 || real) keys[m][u] = Warp::template load16<kStream>(from + 32 * u);
    }
  }
  uint32_t values[4 * UNITS][kGroups];  // b operand of the second product: [8 channels][8 keys]
#pragma unroll
  for (int m = 0; m < kGroups; ++m) {
    const uint16_t* from = v + token[m] * v_step;
    if (PAD) from = token[m] < 0 ? static_cast<const uint16_t*>(a.pad_v) + head_offset : from;
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      Quad loaded = zero;
      if (m < kGroups - 1 || real) loaded = Warp::template load16<kStream>(from + 32 * u);
      values[4 * u][m] = warp.transpose(loaded.x);
      values[4 * u + 1][m] = warp.transpose(loaded.y);
      values[4 * u + 2][m] = warp.transpose(loaded.z);
      values[4 * u + 3][m] = warp.transpose(loaded.w);
    }
  }

#pragma unroll
  for (int i = 0; i < kRowTiles / SPLIT; ++i) {
    const int tile16 = SPLIT == 1 ? i : part * (kRowTiles / SPLIT) + i;
    const bool last = tile16 == kRowTiles - 1;  // rows 48..63, of which 48 exists
    int upper_token = token[0], lower_token = token[1];
#pragma unroll
    for (int m = 1; m < kRowTiles; ++m)
      if (tile16 == m) {
        upper_token = token[2 * m];
        lower_token = token[m < 3 ? 2 * m + 1 : 0];
      }
    const bool upper_real = (!last || real) && (!PAD || upper_token >= 0);
    const bool lower_real = !last && (!PAD || lower_token >= 0);
    Quad upper_q[UNITS], lower_q[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      upper_q[u] = lower_q[u] = zero;
      if (upper_real) upper_q[u] = Warp::template load16<kStream>(q + upper_token * q_step + 32 * u);
      if (lower_real) lower_q[u] = Warp::template load16<kStream>(q + lower_token * q_step + 32 * u);
    }

    float s[kGroups][4];
    start_logits<SHIFT, BIAS>(a, at, tile16, warp, s);
#pragma unroll
    for (int n = 0; n < kGroups; ++n)
#pragma unroll
      for (int u = 0; u < UNITS; ++u) {
        warp.mma16(s[n], upper_q[u].x, lower_q[u].x, upper_q[u].y, lower_q[u].y, keys[n][u].x, keys[n][u].y);
        warp.mma16(s[n], upper_q[u].z, lower_q[u].z, upper_q[u].w, lower_q[u].w, keys[n][u].z, keys[n][u].w);
      }
    uint32_t upper[kGroups], lower[kGroups];
    exponentials(s, a.scale * kLog2E, last, warp, upper, lower);

    const uint32_t ones[kGroups] = {kOnes, kOnes, kOnes, kOnes, kOnes, kOnes, kOnes};
    float sums[4] = {0.f, 0.f, 0.f, 0.f};  // of the rounded probabilities, so that rounding cancels
    accumulate(warp, sums, upper, lower, ones);
    const float upper_by = Warp::reciprocal(sums[0]), lower_by = Warp::reciprocal(sums[2]);
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      float o[4][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0.f;
        accumulate(warp, o[j], upper, lower, values[4 * u + j]);
      }
      if (upper_real) Warp::store16(out + upper_token * out_step + 32 * u, row_of<Warp>(o, 0, upper_by));
      if (lower_real) Warp::store16(out + lower_token * out_step + 32 * u, row_of<Warp>(o, 2, lower_by));
    }
  }
}

}  // namespace attention
