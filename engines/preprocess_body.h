// One output pixel of each preprocessing step, as plain functions that CUDA kernels and the CPU emulation run.
//
// OpenCV's numbers are reproduced where they decide a uint8 level, so mul, add and divide round every operation
// and fmaf rounds once: the compiler may not choose. It may for the cubic sums: their result is a float that stays
// within 4.5e-6 of the float64 definition (absolute weights sum to 1.375 per axis, levels to 255, eight roundings of
// 2^-24, scale up to 0.0176).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "preprocess.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define PREPROCESS_FN __host__ __device__ inline
#else
#define PREPROCESS_FN inline
#endif

namespace dgiqa_preprocess {

#ifdef __CUDA_ARCH__
PREPROCESS_FN float mul(float a, float b) { return __fmul_rn(a, b); }
PREPROCESS_FN float add(float a, float b) { return __fadd_rn(a, b); }
PREPROCESS_FN float divide(float a, float b) { return __fdiv_rn(a, b); }
PREPROCESS_FN double mul(double a, double b) { return __dmul_rn(a, b); }
PREPROCESS_FN double add(double a, double b) { return __dadd_rn(a, b); }
PREPROCESS_FN int nearest_int(float a) { return __float2int_rn(a); }
PREPROCESS_FN uint16_t half_bits(float a) { return __half_as_ushort(__float2half_rn(a)); }
#else  // built with -ffp-contract=off
PREPROCESS_FN float mul(float a, float b) { return a * b; }
PREPROCESS_FN float add(float a, float b) { return a + b; }
PREPROCESS_FN float divide(float a, float b) { return a / b; }
PREPROCESS_FN double mul(double a, double b) { return a * b; }
PREPROCESS_FN double add(double a, double b) { return a + b; }
PREPROCESS_FN int nearest_int(float a) { return int(std::nearbyint(a)); }
PREPROCESS_FN uint16_t half_bits(float a) { return float_to_half(a); }
#endif

// A thread's position. A thread owns a column and a block several rows: source coordinates need float64, which is slow
// on small GPUs, so they are computed once per column and, in the block's shared memory, once per row.
struct Place {
  int block_x, block_y, plane, thread;
};

constexpr int kThreads = 128;

template <class Work>
PREPROCESS_FN void share_rows(const Work& work, const Place& at, typename Work::Row* rows) {
  const int y = at.block_y * Work::kRows + at.thread;
  if (at.thread < Work::kRows && y < work.rows()) rows[at.thread] = work.row(at.plane, y);
}

template <class Work>
PREPROCESS_FN void run_column(const Work& work, const Place& at, const typename Work::Row* rows,
                              typename Work::Found& found) {
  const int x = at.block_x * kThreads + at.thread, y0 = at.block_y * Work::kRows;
  if (x >= work.columns()) return;
  const typename Work::Column column = work.column(at.plane, x);
  for (int r = 0; r < Work::kRows && y0 + r < work.rows(); ++r)
    work.pixel(at.plane, y0 + r, x, rows[r], column, found);
}

struct Nothing {};

PREPROCESS_FN int clamp(int i, int size) { return i < 0 ? 0 : i >= size ? size - 1 : i; }

PREPROCESS_FN double centre(int i, double step) { return add(mul(i + 0.5, step), -0.5); }

// Source pixels per output pixel, as the reciprocal of a quotient: OpenCV computes it so.
PREPROCESS_FN double step(int from, int to) { return 1.0 / (double(to) / from); }

// OpenCV's own resize rounds the position to float before it computes the fraction.
struct Position {
  int index;
  float fraction;  // in [0, 1)
};

PREPROCESS_FN Position source_position(int i, double step) {
  const float at = float(centre(i, step)), below = floorf(at);
  return {int(below), at - below};
}

// Monotone in a, so integer maxima of these are float maxima, in whatever order threads finish.
PREPROCESS_FN uint32_t ordered_bits(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

PREPROCESS_FN float from_ordered_bits(uint32_t key) {
  const uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
  float a;
  std::memcpy(&a, &bits, 4);
  return a;
}

PREPROCESS_FN void store(void* out, int32_t type, int64_t i, float a) {
  if (type == DGIQA_F16)
    static_cast<uint16_t *>(out)[i] = half_bits(a);
  else
    static_cast<float *>(out)[i] = a;
}

// ---- a decoder's picture -> image

// Chroma has half the samples each way. Across they are on every other pixel; down, a quarter of a row from the next.
struct ChromaRow {
  int index[2], weight[2];  // of 4
};

struct ChromaColumn {
  int index[2];
};

struct ToRgb {
  dgiqa_nv12_params p;
  using Row = ChromaRow;
  using Column = ChromaColumn;
  using Found = Nothing;
  static constexpr int kRows = 8;

  int planes() const { return 1; }
  PREPROCESS_FN int rows() const { return p.height; }
  PREPROCESS_FN int columns() const { return p.width; }
  PREPROCESS_FN Row row(int, int y) const {
    const int near = y / 2, other = clamp(y % 2 ? near + 1 : near - 1, p.height / 2);
    return {{near, other}, {3, 1}};
  }
  PREPROCESS_FN Column column(int, int x) const { return {{x / 2, clamp((x + 1) / 2, p.width / 2)}}; }

  PREPROCESS_FN int chroma(int which, const Row& row, const Column& column) const {
    int sum = 0;  // of 15 bits, times 4096
    for (int j = 0; j < 2; ++j) {
      const uint8_t* line = p.chroma + row.index[j] * p.chroma_stride + which;
      sum += (line[2 * column.index[0]] + line[2 * column.index[1]]) * 64 * 1024 * row.weight[j];
    }
    return (sum - (128 << 19)) >> 10;
  }

  PREPROCESS_FN void pixel(int, int y, int x, const Row& row, const Column& column, Found&) const {
    const int64_t u = chroma(0, row, column), v = chroma(1, row, column);
    const int64_t luma = ((int64_t(p.luma[y * p.luma_stride + x]) << 9) - p.y_offset) * p.y_scale + (1 << 21);
    const int64_t rgb[3] = {luma + v * p.v_to_r, luma + v * p.v_to_g + u * p.u_to_g, luma + u * p.u_to_b};
    for (int c = 0; c < 3; ++c) {
      const int64_t level = rgb[c] >> 22;
      p.out[3 * (int64_t(y) * p.width + x) + c] = uint8_t(level < 0 ? 0 : level > 255 ? 255 : level);
    }
  }
};

// ---- image -> depth network input

struct Cubic {
  int index[4];
  float weight[4];
};

// The terms of the weights cancel: fused or in another order, weights move by 2e-6 and a pixel by 2.5e-5. So they are
// rounded as OpenCV rounds them, and only the sums are left to the compiler.
PREPROCESS_FN Cubic cubic(int i, double step, int size) {
  const float a = -0.75f;
  const Position p = source_position(i, step);
  const float x = p.fraction, y = add(x, 1), far = add(1, -x);
  const auto inner = [](float t) { return add(mul(mul(add(mul(1.25f, t), -2.25f), t), t), 1); };  // a + 2, a + 3
  Cubic c;
  for (int k = 0; k < 4; ++k) c.index[k] = clamp(p.index - 1 + k, size);
  c.weight[0] = add(mul(add(mul(add(mul(a, y), -5 * a), y), 8 * a), y), -4 * a);
  c.weight[1] = inner(x);
  c.weight[2] = inner(far);
  c.weight[3] = add(add(add(1, -c.weight[0]), -c.weight[1]), -c.weight[2]);
  return c;
}

struct DepthInput {
  dgiqa_depth_input_params p;
  double step_y, step_x;
  using Row = Cubic;
  using Column = Cubic;
  using Found = Nothing;
  static constexpr int kRows = 8;

  int planes() const { return 1; }
  PREPROCESS_FN int rows() const { return p.height; }
  PREPROCESS_FN int columns() const { return p.width; }
  PREPROCESS_FN Row row(int, int y) const { return cubic(y, step_y, p.image.height); }
  PREPROCESS_FN Column column(int, int x) const { return cubic(x, step_x, p.image.width); }

  PREPROCESS_FN void pixel(int, int y, int x, const Row& row, const Column& column, Found&) const {
    const dgiqa_image& m = p.image;
    for (int c = 0; c < 3; ++c) {
      float sum = 0;
      for (int j = 0; j < 4; ++j) {
        const uint8_t* line = m.data + row.index[j] * m.row_stride + c * m.channel_stride;
        float across = 0;
        for (int k = 0; k < 4; ++k) across += float(line[column.index[k] * m.pixel_stride]) * column.weight[k];
        sum += across * row.weight[j];
      }
      const int64_t i = (int64_t(c) * p.height + y) * p.width + x;
      store(p.out, p.out_type, i, sum * p.scale[c] - p.shift[c]);
    }
  }
};

// ---- image -> averages over its areas

// The source pixels of one output pixel along one axis: `count` of them from `first` on. The outermost may be partial.
struct Cells {
  int first, count;
  float head, body, tail;
};

constexpr double kLeast = 1e-3;  // OpenCV ignores shares of a pixel up to this

PREPROCESS_FN Cells cells(int i, double step, int size) {
  const double low = mul(double(i), step), high = add(low, step), width = step < size - low ? step : size - low;
  int from = int(ceil(low)), to = int(floor(high));
  to = to < size - 1 ? to : size - 1;
  from = from < to ? from : to;
  const float whole = float(1 / width);
  Cells c{from, to - from, whole, whole, whole};
  if (from - low > kLeast) --c.first, ++c.count, c.head = float((from - low) / width);
  if (high - to > kLeast) {
    const double part = high - to < 1 ? high - to : 1.0;
    c.tail = float((part < width ? part : width) / width);
    if (++c.count == 1) c.head = c.tail;
  }
  return c;
}

PREPROCESS_FN float share(const Cells& c, int k) { return k == 0 ? c.head : k == c.count - 1 ? c.tail : c.body; }

struct Reduce {
  dgiqa_reduce_params p;
  double step_y, step_x;
  bool whole;  // both steps are whole numbers: OpenCV adds integers
  using Row = Cells;
  using Column = Cells;
  using Found = Nothing;
  static constexpr int kRows = 8;

  int planes() const { return 1; }
  PREPROCESS_FN int rows() const { return p.height; }
  PREPROCESS_FN int columns() const { return p.width; }
  PREPROCESS_FN Row row(int, int y) const { return cells(y, step_y, p.image.height); }
  PREPROCESS_FN Column column(int, int x) const { return cells(x, step_x, p.image.width); }

  PREPROCESS_FN void pixel(int, int y, int x, const Row& row, const Column& column, Found&) const {
    for (int c = 0; c < 3; ++c) {
      const int level = whole ? whole_mean(row, column, c) : weighted_mean(row, column, c);
      const int64_t pixel = int64_t(y) * p.width + x;
      if (p.out_type == DGIQA_U8)
        static_cast<uint8_t *>(p.out)[3 * pixel + c] = uint8_t(level);
      else
        store(p.out, p.out_type, int64_t(c) * p.height * p.width + pixel, p.levels[256 * c + level]);
    }
  }

  PREPROCESS_FN const uint8_t* line(const Row& row, const Column& column, int k, int c) const {
    return p.image.data + (row.first + k) * p.image.row_stride + column.first * p.image.pixel_stride +
           c * p.image.channel_stride;
  }

  PREPROCESS_FN int whole_mean(const Row& row, const Column& column, int c) const {
    int sum = 0;
    for (int j = 0; j < row.count; ++j) {
      const uint8_t* values = line(row, column, j, c);
      for (int k = 0; k < column.count; ++k) sum += values[k * p.image.pixel_stride];
    }
    if (row.count == 2 && column.count == 2) return (sum + 2) >> 2;  // ties go up, elsewhere to even
    return nearest_int(mul(float(sum), divide(1, float(row.count * column.count))));
  }

  PREPROCESS_FN int weighted_mean(const Row& row, const Column& column, int c) const {
    float sum = 0;
    for (int j = 0; j < row.count; ++j) {
      const uint8_t* values = line(row, column, j, c);
      float across = 0;
      for (int k = 0; k < column.count; ++k)
        across = add(across, mul(float(values[k * p.image.pixel_stride]), share(column, k)));
      sum = add(sum, mul(across, share(row, j)));
    }
    const int level = nearest_int(sum);
    return level > 255 ? 255 : level;
  }
};

// ---- depth map, as if it were of the image's or the working size

// As OpenCV does on x86, where Intel's library interpolates floats: positions in float64, then two fused steps across
// and one down. OpenCV's own code, which other builds run, rounds positions and products instead; it moves a level in
// about 0.1 % of pixels, and turns a constant map into noise.
struct Linear {
  int index[2];
  float weight;
};

PREPROCESS_FN Linear linear(int i, double step, int size) {
  const double at = centre(i, step), below = floor(at);
  return {{clamp(int(below), size), clamp(int(below) + 1, size)}, float(at - below)};
}

PREPROCESS_FN float between(float a, float b, float weight) { return fmaf(b - a, weight, a); }

PREPROCESS_FN float depth_at(const dgiqa_depth& d, const Linear& row, const Linear& column) {
  float line[2];
  for (int j = 0; j < 2; ++j) {
    const float* values = d.map + int64_t(row.index[j]) * d.map_width;
    line[j] = between(values[column.index[0]], values[column.index[1]], column.weight);
  }
  return between(line[0], line[1], row.weight);
}

PREPROCESS_FN bool finite(float a) { return a - a == 0; }

// Largest value, largest negated value, and whether any is not finite: first of a thread's pixels, then of the map.
struct Range {
  uint32_t high = 0, low = 0, broken = 0;

  PREPROCESS_FN void see(float a) {
    if (!finite(a)) broken = 1;
    const uint32_t up = ordered_bits(a), down = ordered_bits(-a);
    high = up > high ? up : high;
    low = down > low ? down : low;
  }
};

struct DepthRange {
  dgiqa_depth d;
  double step_y, step_x;
  using Row = Linear;
  using Column = Linear;
  using Found = Range;
  static constexpr int kRows = 32;

  int planes() const { return 1; }
  PREPROCESS_FN int rows() const { return d.height; }
  PREPROCESS_FN int columns() const { return d.width; }
  PREPROCESS_FN Row row(int, int y) const { return linear(y, step_y, d.map_height); }
  PREPROCESS_FN Column column(int, int x) const { return linear(x, step_x, d.map_width); }

  PREPROCESS_FN void pixel(int, int, int, const Row& row, const Column& column, Found& found) const {
    found.see(depth_at(d, row, column));
  }

  // A map larger than the image has values that no output pixel reads; they must be finite, too.
  PREPROCESS_FN void check_map(int64_t thread, int64_t threads, Found& found) const {
    const int64_t values = int64_t(d.map_height) * d.map_width;
    for (int64_t i = thread; i < values; i += threads)
      if (!finite(d.map[i])) found.broken = 1;
  }
};

struct Stretch {
  float low, span;  // depth level = truncated((value - low) / span * 255)
};

PREPROCESS_FN Stretch stretch(const uint32_t* range) {
  const float high = from_ordered_bits(range[0]), low = -from_ordered_bits(range[1]);
  return {low, add(add(high, -low), 1e-8f)};
}

PREPROCESS_FN int depth_level(float value, const Stretch& s) {
  const float level = mul(divide(add(value, -s.low), s.span), 255.0f);
  return level >= 0 && level <= 255 ? int(level) : 0;  // a broken map must not index past the table
}

// ---- tiles

struct Fixed {
  int index[2], weight[2];  // 11 bits: 2048 is one
};

PREPROCESS_FN Fixed fixed_row(int i, double step, int size) {
  const Position p = source_position(i, step);
  const int far = nearest_int(mul(p.fraction, 2048.0f)), near = nearest_int(mul(1 - p.fraction, 2048.0f));
  return {{clamp(p.index, size), clamp(p.index + 1, size)}, {near, far}};
}

// Past the first and the last column OpenCV drops the fraction; past rows it does not.
PREPROCESS_FN Fixed fixed_column(int i, double step, int size) {
  Fixed f = fixed_row(i, step, size);
  if (f.index[0] == f.index[1]) f.weight[0] = 2048, f.weight[1] = 0;
  return f;
}

// levels[row][column] -> the uint8 level between them
PREPROCESS_FN int blend(const int (&levels)[2][2], const Fixed& row, const Fixed& column) {
  int sum = 2;
  for (int j = 0; j < 2; ++j) {
    const int across = levels[j][0] * column.weight[0] + levels[j][1] * column.weight[1];
    sum += (row.weight[j] * (across >> 4)) >> 16;
  }
  return sum >> 2;
}

constexpr int kWindows = 64;  // per launch, passed by value, so that no copy to the device must be waited for

struct Tiles {
  dgiqa_tiles_params p;
  double short_y, short_x;  // working image -> image
  double full_y, full_x;    // depth image -> depth map
  int32_t window[kWindows][2];

  struct Tap {
    Fixed fixed;      // working image -> image
    Linear depth[2];  // each of the two positions in the depth image -> depth map
  };
  using Row = Tap;
  using Column = Tap;
  using Found = Nothing;
  static constexpr int kRows = 8;

  int planes() const { return p.count; }
  PREPROCESS_FN int rows() const { return p.tile; }
  PREPROCESS_FN int columns() const { return p.tile; }

  PREPROCESS_FN Row row(int n, int y) const {
    const int at = window[n][0] + y;
    return tap(at, fixed_row(at, short_y, p.image.height), full_y, p.depth.map_height);
  }

  PREPROCESS_FN Column column(int n, int x) const {
    const int at = window[n][1] + x;
    return tap(at, fixed_column(at, short_x, p.image.width), full_x, p.depth.map_width);
  }

  // Four equal levels blend to themselves, so a depth image of the working size needs no separate case below.
  PREPROCESS_FN Tap tap(int at, const Fixed& f, double step, int size) const {
    const bool working = p.depth.height == p.short_height && p.depth.width == p.short_width;
    return {f, {linear(working ? at : f.index[0], step, size), linear(working ? at : f.index[1], step, size)}};
  }

  PREPROCESS_FN void pixel(int n, int y, int x, const Row& row, const Column& column, Found&) const {
    const int64_t plane = int64_t(p.tile) * p.tile, first = 3 * n * plane + int64_t(y) * p.tile + x;
    const dgiqa_image& m = p.image;
    const Stretch s = stretch(p.depth.range);
    int levels[2][2];
    for (int j = 0; j < 2; ++j)
      for (int k = 0; k < 2; ++k) levels[j][k] = depth_level(depth_at(p.depth, row.depth[j], column.depth[k]), s);
    const int near = blend(levels, row.fixed, column.fixed);
    for (int c = 0; c < 3; ++c) {
      for (int j = 0; j < 2; ++j)
        for (int k = 0; k < 2; ++k)
          levels[j][k] = m.data[row.fixed.index[j] * m.row_stride + column.fixed.index[k] * m.pixel_stride +
                                c * m.channel_stride];
      store(p.rgb_out, p.out_type, first + c * plane, p.levels[c * 256 + blend(levels, row.fixed, column.fixed)]);
      store(p.depth_out, p.out_type, first + c * plane, p.levels[c * 256 + near]);
    }
  }
};

}  // namespace dgiqa_preprocess
