// The kernel's reference: roll, pad, cut, attend, in the plain order of the model's definition and in float64.
#include <cmath>
#include <vector>

#include "attention.h"
#include "attention_plan.h"
#include "half.h"

namespace {

constexpr int kTokens = DGIQA_WINDOW_TOKENS;

struct Map {
  int height, width;         // padded to whole windows
  std::vector<int> source;   // token of the unshifted map at each position; -1: padding
  std::vector<int> region;   // tokens of different regions are masked from each other
};

int region_of(int place, int size, int shift) {
  if (place < size - DGIQA_WINDOW) return 0;
  return place < size - shift ? 1 : 2;
}

Map rolled_and_padded(const dgiqa_attention& a) {
  Map map{(a.height + 6) / 7 * 7, (a.width + 6) / 7 * 7, {}, {}};
  map.source.assign(size_t(map.height) * map.width, -1);
  map.region.assign(size_t(map.height) * map.width, 0);
  for (int y = 0; y < a.height; ++y)
    for (int x = 0; x < a.width; ++x) {
      const int to_y = (y + a.height - a.shift) % a.height, to_x = (x + a.width - a.shift) % a.width;
      map.source[size_t(to_y) * map.width + to_x] = y * a.width + x;
    }
  for (int y = 0; a.shift && y < map.height; ++y)
    for (int x = 0; x < map.width; ++x)
      map.region[size_t(y) * map.width + x] = 3 * region_of(y, map.height, a.shift) + region_of(x, map.width, a.shift);
  return map;
}

double round_to_half(double value) { return half_to_float(float_to_half(float(value))); }

const uint16_t* row_at(const void* data, const dgiqa_stride& stride, int image, int token, const void* padding) {
  if (token < 0) return static_cast<const uint16_t*>(padding);
  return static_cast<const uint16_t*>(data) + image * stride.batch + token * stride.token;
}

// Attention of one query over the 49 positions of its window: [head_dim]
struct Attention {
  const dgiqa_attention& a;
  const Map& map;
  bool rounded;

  double rounding(double value) const { return rounded ? round_to_half(value) : value; }

  double bias(int head, int query, int key) const {
    if (!a.bias) return 0;
    const int lane = query % 8 * 4 + key % 8 / 2, element = query / 8 % 2 * 2 + key % 2;
    const auto* packed = static_cast<const uint16_t*>(a.bias);
    return double(a.scale) * half_to_float(packed[((size_t(head * 4 + query / 16) * 7 + key / 8) * 32 + lane) * 4 + element]);
  }

  void attend(int image, int head, const std::vector<int>& places, int query, double* out) const {
    const int offset = head * a.head_dim;
    double logits[kTokens], largest = -INFINITY, sum = 0;
    const uint16_t* q = row_at(a.q, a.q_stride, image, map.source[places[query]], nullptr) + offset;
    for (int key = 0; key < kTokens; ++key) {
      const uint16_t* k = row_at(a.k, a.k_stride, image, map.source[places[key]], a.pad_k) + offset;
      double product = 0;
      for (int d = 0; d < a.head_dim; ++d) product += rounding(a.scale * half_to_float(q[d])) * half_to_float(k[d]);
      logits[key] = rounding(rounding(product) + bias(head, query, key));
      if (map.region[places[query]] != map.region[places[key]]) logits[key] = rounding(logits[key] - 100);
      largest = std::fmax(largest, logits[key]);
    }
    for (double& logit : logits) sum += logit = std::exp(logit - largest);
    for (int d = 0; d < a.head_dim; ++d) {
      double attended = 0;
      for (int key = 0; key < kTokens; ++key) {
        const uint16_t* v = row_at(a.v, a.v_stride, image, map.source[places[key]], a.pad_v) + offset;
        attended += rounding(logits[key] / sum) * half_to_float(v[d]);
      }
      out[offset + d] = rounding(attended);
    }
  }

  void window(int image, int top, int left, double* out) const {
    const size_t channels = size_t(a.heads) * a.head_dim;
    std::vector<int> places(kTokens);
    for (int i = 0; i < kTokens; ++i) places[i] = (top + i / 7) * map.width + left + i % 7;
    for (int query = 0; query < kTokens; ++query) {
      const int token = map.source[places[query]];
      if (token < 0) continue;
      double* row = out + (size_t(image) * a.height * a.width + token) * channels;
      for (int head = 0; head < a.heads; ++head) attend(image, head, places, query, row);
    }
  }
};

}  // namespace

extern "C" int dgiqa_window_attention_reference(const dgiqa_attention* arguments, double* out, int rounded) {
  if (!arguments || !out) return DGIQA_BAD_ARGUMENT;
  const int status = check_attention(*arguments);
  if (status != DGIQA_OK) return status;
  const Map map = rolled_and_padded(*arguments);
  const Attention attention{*arguments, map, rounded != 0};
  for (int image = 0; image < arguments->batch; ++image)
    for (int top = 0; top < map.height; top += DGIQA_WINDOW)
      for (int left = 0; left < map.width; left += DGIQA_WINDOW) attention.window(image, top, left, out);
  return DGIQA_OK;
}

extern "C" void dgiqa_pack_bias(const float* bias, int32_t heads, float scale, uint16_t* packed) {
  for (int head = 0; head < heads; ++head)
    for (int tile = 0; tile < 4; ++tile)
      for (int group = 0; group < 7; ++group)
        for (int lane = 0; lane < 32; ++lane)
          for (int element = 0; element < 4; ++element) {
            const int query = tile * 16 + element / 2 * 8 + lane / 4, key = group * 8 + lane % 4 * 2 + element % 2;
            const bool real = query < kTokens && key < kTokens;
            *packed++ = real ? float_to_half(bias[(head * kTokens + query) * kTokens + key] / scale) : 0;
          }
}

extern "C" const char* dgiqa_status_text(int status) {
  switch (status) {
    case DGIQA_OK: return "ok";
    case DGIQA_BAD_ARGUMENT: return "a size, scale, shift or pointer is missing or impossible";
    case DGIQA_MISALIGNED: return "a pointer is no multiple of 16 bytes, or a stride no multiple of 8 elements";
    case DGIQA_TOO_LARGE: return "too many windows for one launch; split the batch";
    case DGIQA_LAUNCH_FAILED: return "the CUDA runtime refused the launch; is this GPU's architecture compiled in?";
    default: return "unknown status";
  }
}
