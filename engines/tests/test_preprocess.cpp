// Compares preprocess.h, emulated, with a reference that writes every full-size map and shares no index code with it.
//
// Levels must be equal bit for bit. The depth input may be 3e-5 from float64: weights in float 2.5e-5, sums 4.5e-6
// (preprocess_body.h); tests/test_preprocess_kernels.py, whose reference has OpenCV's weights, allows the latter only.
// Outputs are poisoned and fenced, inputs strided, sizes odd, up and down, to one pixel and beyond 2^31 bytes.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "half.h"
#include "preprocess.h"

namespace {

constexpr double kCubicBudget = 3e-5;
constexpr float kPoison = -12345.0f;
constexpr int kFence = 64;
const double kMean[3] = {0.485, 0.456, 0.406}, kStd[3] = {0.229, 0.224, 0.225};

unsigned seed() {
  const char* given = std::getenv("DGIQA_SEED");
  return given ? std::strtoul(given, nullptr, 10) : std::random_device{}();
}

const unsigned kSeed = seed();
std::mt19937 rng{kSeed};
int failures = 0;

void check(bool ok, const char* what, int h, int w) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s at %d x %d\n", what, h, w);
}

struct Levels {
  float value[3][256];
  Levels() {
    for (int c = 0; c < 3; ++c)
      for (int i = 0; i < 256; ++i) value[c][i] = float((i / 255.0 - kMean[c]) / kStd[c]);
  }
} const levels;

// A picture with a pitch, and its layout: RGB, RGBA, planes or BGR.
struct Picture {
  std::vector<uint8_t> bytes;
  dgiqa_image image{};

  Picture(int h, int w, int layout) : bytes(size_t(h + 1) * (w * 4 + 13) * 3) {
    for (auto& b : bytes) b = uint8_t(rng());
    const int64_t pitch = w * (layout == 1 ? 4 : 3) + 5;
    image = {bytes.data(), pitch, 3, 1, h, w};
    if (layout == 1) image.pixel_stride = 4;
    if (layout == 2) image = {bytes.data(), w + 3, 1, int64_t(w + 3) * h, h, w};
    if (layout == 3) image = {bytes.data() + 2, pitch, 3, -1, h, w};
  }

  int at(int y, int x, int c) const {
    return image.data[y * image.row_stride + x * image.pixel_stride + c * image.channel_stride];
  }
};

struct Fenced {  // outputs between fences, all poison
  std::vector<float> memory;
  explicit Fenced(size_t n) : memory(n + 2 * kFence, kPoison) {}
  float* data() { return memory.data() + kFence; }
  bool intact() const {
    const auto poison = [](float a) { return a == kPoison; };
    return std::all_of(memory.begin(), memory.begin() + kFence, poison) &&
           std::all_of(memory.end() - kFence, memory.end(), poison);
  }
};

int clamped(int i, int n) { return std::min(std::max(i, 0), n - 1); }

// The position of output pixel i of `to` among `from`; OpenCV rounds it to float.
float centre(int i, int from, int to) { return float((i + 0.5) * (1.0 / (double(to) / from)) - 0.5); }

double cubic_weight(double distance) {  // Keys' kernel, a = -0.75, of the distance to a tap
  const double x = std::fabs(distance), a = -0.75;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}

void depth_input_is_the_cubic_resize(int h, int w, int to_h, int to_w, int layout) {
  const Picture picture(h, w, layout);
  Fenced out(size_t(3) * to_h * to_w), again(size_t(3) * to_h * to_w);
  dgiqa_depth_input_params p{picture.image, to_h, to_w, {}, {}, out.data(), DGIQA_F32};
  for (int c = 0; c < 3; ++c) {
    p.scale[c] = float(1 / (255 * kStd[c]));
    p.shift[c] = float(kMean[c] / kStd[c]);
  }
  check(dgiqa_depth_input(&p, nullptr) == DGIQA_OK, "depth input status", h, w);
  double worst = 0;
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < to_h; ++y)
      for (int x = 0; x < to_w; ++x) {
        const float fy = centre(y, h, to_h), fx = centre(x, w, to_w);
        double sum = 0;
        for (int j = int(std::floor(fy)) - 1; j < int(std::floor(fy)) + 3; ++j)
          for (int k = int(std::floor(fx)) - 1; k < int(std::floor(fx)) + 3; ++k)
            sum += picture.at(clamped(j, h), clamped(k, w), c) * cubic_weight(fy - j) * cubic_weight(fx - k);
        const double wanted = (sum / 255 - kMean[c]) / kStd[c];
        worst = std::max(worst, std::fabs(out.data()[(size_t(c) * to_h + y) * to_w + x] - wanted));
      }
  check(worst <= kCubicBudget, "depth input", h, w);
  check(out.intact(), "depth input's fence", h, w);
  p.out = again.data();
  p.out_type = DGIQA_F16;
  dgiqa_depth_input(&p, nullptr);
  const auto* half = reinterpret_cast<const uint16_t*>(again.data());
  bool same = true;
  for (int i = 0; i < 3 * to_h * to_w; ++i) same = same && half[i] == float_to_half(out.data()[i]);
  check(same && again.intact(), "float16 depth input", h, w);
}

// The share of every source pixel in output pixel i along one axis, in float64.
std::vector<double> overlap(int i, int from, int to) {
  std::vector<double> shares;
  const double step = double(from) / to;
  for (int k = 0; k < from; ++k)
    shares.push_back(std::max(0.0, std::min(k + 1.0, (i + 1) * step) - std::max(double(k), i * step)) / step);
  return shares;
}

void areas_are_averaged(int h, int w, int to_h, int to_w, int layout) {
  const Picture picture(h, w, layout);
  const size_t values = size_t(3) * to_h * to_w;
  Fenced levels_out(values), bytes(values);
  dgiqa_reduce_params p{picture.image, to_h, to_w, &levels.value[0][0], levels_out.data(), DGIQA_F32};
  check(dgiqa_reduce(&p, nullptr) == DGIQA_OK, "reduce status", h, w);
  p.out = bytes.data(), p.out_type = DGIQA_U8, p.levels = nullptr;
  check(dgiqa_reduce(&p, nullptr) == DGIQA_OK, "reduce to bytes", h, w);
  const auto* level = reinterpret_cast<const uint8_t*>(bytes.data());
  bool near = true, same = true;
  for (int y = 0; y < to_h; ++y)
    for (int x = 0; x < to_w; ++x) {
      const auto down = overlap(y, h, to_h), across = overlap(x, w, to_w);
      for (int c = 0; c < 3; ++c) {
        double mean = 0;
        for (int j = 0; j < h; ++j)
          for (int k = 0; k < w && down[j] > 0; ++k)
            if (across[k] > 0) mean += down[j] * across[k] * picture.at(j, k, c);
        const int got = level[(size_t(y) * to_w + x) * 3 + c];
        near = near && std::fabs(got - mean) < 0.5 + 255 * 4e-3;  // OpenCV leaves out shares up to 1e-3 at four edges
        same = same && levels_out.data()[(size_t(c) * to_h + y) * to_w + x] == levels.value[c][got];
      }
    }
  check(near, "areas", h, w);
  check(same, "levels of areas", h, w);
  check(levels_out.intact() && bytes.intact(), "fences of areas", h, w);
}

// One pass per axis over whole maps, as one would write it without saving memory.
std::vector<float> full_size(const std::vector<float>& map, int mh, int mw, int h, int w) {
  const auto position = [](int i, int from, int to) { return (i + 0.5) * (1.0 / (double(to) / from)) - 0.5; };
  std::vector<float> wide(size_t(mh) * w), full(size_t(h) * w);
  for (int x = 0; x < w; ++x) {
    const double at = position(x, mw, w), below = std::floor(at);
    for (int y = 0; y < mh; ++y) {
      const float a = map[size_t(y) * mw + clamped(int(below), mw)], b = map[size_t(y) * mw + clamped(int(below) + 1, mw)];
      wide[size_t(y) * w + x] = std::fma(float(b - a), float(at - below), a);
    }
  }
  for (int y = 0; y < h; ++y) {
    const double at = position(y, mh, h), below = std::floor(at);
    for (int x = 0; x < w; ++x) {
      const float a = wide[size_t(clamped(int(below), mh)) * w + x], b = wide[size_t(clamped(int(below) + 1, mh)) * w + x];
      full[size_t(y) * w + x] = std::fma(float(b - a), float(at - below), a);
    }
  }
  return full;
}

float float_of(uint32_t key) {  // undoes the order: positive floats have the top bit set, negative ones are inverted
  const uint32_t bits = key & 0x80000000u ? key - 0x80000000u : ~key;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

std::vector<uint8_t> depth_levels(const std::vector<float>& full) {
  const auto [low, high] = std::minmax_element(full.begin(), full.end());
  const float span = float(*high - *low) + 1e-8f;
  std::vector<uint8_t> result;
  for (const float v : full) result.push_back(uint8_t(float(float(float(v - *low) / span) * 255.0f)));
  return result;
}

// OpenCV's uint8 bilinear: 11-bit weights, sixteenths dropped between the axes.
template <class Pixel>
std::vector<int> short_side(Pixel pixel, int h, int w, int to_h, int to_w) {
  std::vector<int> wide(size_t(h) * to_w), result(size_t(to_h) * to_w);
  for (int x = 0; x < to_w; ++x) {
    const float f = centre(x, w, to_w), part = f - std::floor(f);
    const int i = int(std::floor(f)), b = int(std::lrint(part * 2048)), a = int(std::lrint((1 - part) * 2048));
    const bool edge = i < 0 || i + 1 >= w;
    for (int y = 0; y < h; ++y)
      wide[size_t(y) * to_w + x] = edge ? pixel(y, clamped(i, w)) * 2048 : pixel(y, i) * a + pixel(y, i + 1) * b;
  }
  for (int y = 0; y < to_h; ++y) {
    const float f = centre(y, h, to_h), part = f - std::floor(f);
    const int i = int(std::floor(f)), b = int(std::lrint(part * 2048)), a = int(std::lrint((1 - part) * 2048));
    for (int x = 0; x < to_w; ++x) {
      const int up = wide[size_t(clamped(i, h)) * to_w + x], down = wide[size_t(clamped(i + 1, h)) * to_w + x];
      result[size_t(y) * to_w + x] = ((a * (up / 16) / 65536) + (b * (down / 16) / 65536) + 2) / 4;
    }
  }
  return result;
}

void tiles_are_cut_from_the_resized_images(int h, int w, int mh, int mw, int sh, int sw, int tile, int count, int layout,
                                           bool constant = false) {
  const Picture picture(h, w, layout);
  std::vector<float> map(size_t(mh) * mw);
  for (auto& v : map) v = constant ? 3.7f : float(rng()) / 4e8f - 2;
  std::vector<int32_t> windows;
  for (int i = 0; i < count; ++i) {
    windows.push_back(int(rng() % unsigned(sh - tile + 1)));
    windows.push_back(int(rng() % unsigned(sw - tile + 1)));
  }
  uint32_t range[3] = {~0u, ~0u, ~0u};
  const size_t values = size_t(count) * 3 * tile * tile;
  Fenced rgb(values), depth(values);
  const dgiqa_tiles_params p{picture.image, {map.data(), mh, mw, h, w, range}, sh, sw, tile, count, windows.data(),
                             &levels.value[0][0], rgb.data(), depth.data(), DGIQA_F32};
  check(dgiqa_depth_range(&p.depth, nullptr) == DGIQA_OK && dgiqa_tiles(&p, nullptr) == DGIQA_OK, "status", h, w);
  check(range[2] == 0, "a finite map called broken", h, w);

  const auto full = full_size(map, mh, mw, h, w);
  const auto [low, high] = std::minmax_element(full.begin(), full.end());
  check(float_of(range[0]) == *high && float_of(range[1]) == -*low, "the depth's range", h, w);
  const auto near = depth_levels(full);
  std::vector<int> wanted[4];
  for (int c = 0; c < 3; ++c)
    wanted[c] = short_side([&](int y, int x) { return picture.at(y, x, c); }, h, w, sh, sw);
  wanted[3] = short_side([&](int y, int x) { return int(near[size_t(y) * w + x]); }, h, w, sh, sw);
  bool rgb_equal = true, depth_equal = true;
  for (size_t i = 0; i < values; ++i) {
    const int n = int(i / (size_t(3) * tile * tile)), c = int(i / (size_t(tile) * tile) % 3);
    const int y = windows[2 * n] + int(i / tile % tile), x = windows[2 * n + 1] + int(i % tile);
    rgb_equal = rgb_equal && rgb.data()[i] == levels.value[c][wanted[c][size_t(y) * sw + x]];
    depth_equal = depth_equal && depth.data()[i] == levels.value[c][wanted[3][size_t(y) * sw + x]];
  }
  check(rgb_equal, "rgb tiles", h, w);
  check(depth_equal, "depth tiles", h, w);
  check(rgb.intact() && depth.intact(), "the tiles' fences", h, w);
  const bool black = std::all_of(near.begin(), near.end(), [](uint8_t level) { return level == 0; });
  check(!constant || black, "a constant depth that is not black", h, w);
}

void a_broken_map_is_reported(float value) {
  const int h = 5, w = 9, mh = 40, mw = 70;  // the image skips most of the map
  std::vector<float> map(size_t(mh) * mw, 1.0f);
  uint32_t range[3];
  const dgiqa_depth depth{map.data(), mh, mw, h, w, range};
  for (size_t i = 0; i < map.size(); i += 13) {
    map[i] = value;
    dgiqa_depth_range(&depth, nullptr);
    check(range[2] == 1, "a broken value not seen", int(i), 0);
    map[i] = 1.0f;
  }
}

// Rows 2^31 bytes apart: 32-bit offsets would wrap. The pages in between are never touched.
void offsets_are_64_bit() {
  const int64_t pitch = (int64_t(1) << 31) + 7;
  const size_t bytes = size_t(4 * pitch);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::puts("skipped: rows 2^31 bytes apart, no address space");
    return;
  }
  auto* data = static_cast<uint8_t*>(memory);
  Picture small(4, 4, 0);
  for (int y = 0; y < 4; ++y)
    std::memcpy(data + y * pitch, small.image.data + y * small.image.row_stride, 4 * 3);
  std::vector<float> a(3 * 64), b(3 * 64);
  dgiqa_depth_input_params p{small.image, 8, 8, {1, 1, 1}, {0, 0, 0}, a.data(), DGIQA_F32};
  dgiqa_depth_input(&p, nullptr);
  p.image = {data, pitch, 3, 1, 4, 4};
  p.out = b.data();
  dgiqa_depth_input(&p, nullptr);
  check(a == b, "rows 2^31 bytes apart", 4, 4);
  munmap(memory, bytes);
}

void wrong_arguments_are_refused() {
  const Picture picture(10, 10, 0);
  std::vector<float> map(9, 1.0f), out(2 * 3 * 16);
  uint32_t range[3];
  const int32_t windows[4] = {0, 0, 4, 4};
  const dgiqa_tiles_params good{picture.image, {map.data(), 3, 3, 10, 10, range}, 8, 8, 4, 1, windows,
                                &levels.value[0][0], out.data(), out.data() + 48, DGIQA_F32};
  check(dgiqa_depth_range(&good.depth, nullptr) == DGIQA_OK && dgiqa_tiles(&good, nullptr) == DGIQA_OK, "good", 0, 0);
  const auto refuses = [&](auto change, const char* what) {
    dgiqa_tiles_params bad = good;
    change(bad);
    check(dgiqa_tiles(&bad, nullptr) == DGIQA_BAD_ARGUMENT, what, 0, 0);
  };
  const int32_t outside[2] = {0, 5}, negative[2] = {-1, 0};
  refuses([&](auto& p) { p.windows = outside; }, "window past the edge");
  refuses([&](auto& p) { p.windows = negative; }, "negative window");
  refuses([](auto& p) { p.out_type = 2; }, "unknown type");
  refuses([](auto& p) { p.levels = nullptr; }, "no levels");
  refuses([](auto& p) { p.image.data = nullptr; }, "no image");
  refuses([](auto& p) { p.depth.height = 9; }, "depth of another image");
  refuses([](auto& p) { p.tile = 0; }, "tile 0");
  refuses([](auto& p) { p.count = -1; }, "count -1");
  check(dgiqa_tiles(nullptr, nullptr) == DGIQA_BAD_ARGUMENT, "null", 0, 0);
  dgiqa_depth_input_params input{picture.image, 0, 8, {}, {}, out.data(), DGIQA_F32};
  check(dgiqa_depth_input(&input, nullptr) == DGIQA_BAD_ARGUMENT, "height 0", 0, 0);
  const dgiqa_reduce_params larger{picture.image, 8, 11, nullptr, out.data(), DGIQA_U8};
  check(dgiqa_reduce(&larger, nullptr) == DGIQA_BAD_ARGUMENT, "a side that grows", 0, 0);
  const dgiqa_reduce_params bare{picture.image, 2, 2, nullptr, out.data(), DGIQA_F32};
  check(dgiqa_reduce(&bare, nullptr) == DGIQA_BAD_ARGUMENT, "floats without levels", 0, 0);
}

}  // namespace

int main() {
  const int sizes[][2] = {{97, 131}, {1, 1}, {1, 40}, {33, 2}, {64, 64}, {200, 300}, {13, 400}, {150, 7}};
  int cases = 0;
  for (const auto& [h, w] : sizes)
    for (const auto& [to_h, to_w] : {std::pair{64, 96}, {h, w}, {37, 71}, {129, 8}})
      depth_input_is_the_cubic_resize(h, w, to_h, to_w, cases++ % 4);
  for (const auto& [h, w] : sizes)
    for (const auto& [down, across] : {std::pair{1, 1}, {2, 2}, {3, 5}, {h, w}, {2, 7}})
      areas_are_averaged(h, w, std::max(1, h / down), std::max(1, w / across), cases++ % 4);
  for (const auto& [h, w] : sizes)
    for (const auto& [mh, mw] : {std::pair{64, 96}, {1, 1}, {h, w}, {2 * h, 2 * w}}) {
      const auto [sh, sw] = cases % 2 ? std::pair{48, 75} : std::pair{h + 31, w + 32};
      tiles_are_cut_from_the_resized_images(h, w, mh, mw, sh, sw, 32, cases % 3 ? 2 : 131, cases % 4);
      tiles_are_cut_from_the_resized_images(h, w, mh, mw, sh, sw, 31, 1, cases++ % 4, true);
    }
  tiles_are_cut_from_the_resized_images(96, 128, 64, 96, 48, 64, 48, 3, 0);
  for (const float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
    a_broken_map_is_reported(value);
  offsets_are_64_bit();
  wrong_arguments_are_refused();
  check(dgiqa_preprocess_abi() == DGIQA_PREPROCESS_ABI && dgiqa_preprocess_emulated() == 1, "library", 0, 0);
  std::printf("DGIQA_SEED=%u, %d shapes, %d failures\n", kSeed, cases, failures);
  return failures != 0;
}
