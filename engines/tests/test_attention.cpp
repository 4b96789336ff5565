// The kernel's source on emulated warps against float64: fresh random inputs, poisoned outputs, guard bands.
// The budget is twice the error of the same computation in a chain of float16 steps, and never more than one float16
// rounding of everything (kMost).
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "attention.h"
#include "attention_plan.h"
#include "emulator.h"
#include "half.h"

namespace {

constexpr double kMost = 0x1p-11;      // relative L2 error
constexpr uint16_t kPoison = 0x7fff;  // NaN
constexpr int kGuard = 64;            // elements before and behind every buffer

int failures = 0, checks = 0;

void expect(bool ok, const char* what) {
  ++checks;
  if (!ok) ++failures, std::printf("FAILED  %s\n", what);
}

uint64_t seed() {
  const char* given = std::getenv("DGIQA_SEED");
  return given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
}

const uint64_t kSeed = seed();
std::mt19937_64 generator(kSeed);

float normal() { return std::normal_distribution<float>()(generator); }

// float16 memory aligned to 16 bytes between two poisoned guard bands.
class Halves {
 public:
  explicit Halves(size_t size) : size_(size), memory_(size + 2 * kGuard + 8, kPoison) {}
  uint16_t* data() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data() + kGuard);
    return reinterpret_cast<uint16_t*>((address + 15) & ~uintptr_t(15));
  }
  size_t size() const { return size_; }
  void fill(const std::function<float()>& value) {
    for (size_t i = 0; i < size_; ++i) data()[i] = float_to_half(value());
  }
  bool guards_intact() {
    const uint16_t* begin = memory_.data();
    for (const uint16_t* p = begin; p < begin + memory_.size(); ++p)
      if ((p < data() || p >= data() + size_) && *p != kPoison) return false;
    return true;
  }

 private:
  size_t size_;
  std::vector<uint16_t> memory_;
};

struct Shape {
  int head_dim, batch, height, width, heads, shift;
  bool bias;
  int split;
  float amplitude;  // of q and k
  int gap;          // unused elements between tokens; 0: packed
};

// Inputs and outputs of one call. Tokens hold q | k | v | gap; out holds channels | gap; gaps are poison.
struct Call {
  Shape shape;
  int channels, in_step, out_step;
  Halves in, out, padding, bias;
  dgiqa_attention arguments{};

  explicit Call(const Shape& s)
      : shape(s),
        channels(s.heads * s.head_dim),
        in_step(3 * channels + s.gap),
        out_step(channels + s.gap),
        in(size_t(s.batch) * s.height * s.width * in_step),
        out(size_t(s.batch) * s.height * s.width * out_step),
        padding(2 * size_t(channels)),
        bias(size_t(s.heads) * DGIQA_BIAS_PER_HEAD) {
    fill();
    const int64_t tokens = int64_t(s.height) * s.width;
    dgiqa_attention& a = arguments;
    a.q = in.data(), a.k = in.data() + channels, a.v = in.data() + 2 * channels, a.out = out.data();
    a.q_stride = a.k_stride = a.v_stride = {tokens * in_step, in_step};
    a.out_stride = {tokens * out_step, out_step};
    a.bias = s.bias ? bias.data() : nullptr;
    a.pad_k = padding.data(), a.pad_v = padding.data() + channels;
    a.batch = s.batch, a.height = s.height, a.width = s.width, a.heads = s.heads, a.head_dim = s.head_dim;
    a.shift = s.shift, a.split = s.split, a.scale = scale();
  }

  float scale() const { return 1.f / std::sqrt(shape.head_dim == 64 ? 60.f : 32.f); }

  void fill() {
    for (size_t i = 0; i < in.size(); ++i) {
      const int channel = int(i % in_step);
      if (channel >= 3 * channels) continue;
      const bool zero = shape.head_dim == 64 && channel % 64 >= 60;  // as projections padded from 60 to 64 leave it
      in.data()[i] = float_to_half(zero ? 0 : normal() * (channel < 2 * channels ? shape.amplitude : 1.f));
    }
    padding.fill([] { return normal(); });
    std::vector<float> table(size_t(shape.heads) * 49 * 49);
    for (float& value : table) value = 2 * normal();
    dgiqa_pack_bias(table.data(), shape.heads, scale(), bias.data());
    for (size_t i = 0; i < bias.size(); ++i) {  // values for keys that do not exist must not matter
      const size_t element = i % 4, lane = i / 4 % 32, group = i / 128 % 7;
      if (group * 8 + lane % 4 * 2 + element % 2 >= 49) bias.data()[i] = kPoison;
    }
  }

  double at(int64_t token, int channel) { return half_to_float(out.data()[token * out_step + channel]); }

  bool gaps_intact() {
    for (size_t i = 0; i < out.size(); ++i)
      if (int(i % out_step) >= channels && out.data()[i] != kPoison) return false;
    return out.guards_intact();
  }
};

double relative(const std::vector<double>& got, const std::vector<double>& wanted) {
  double error = 0, size = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    size += wanted[i] * wanted[i];
  }
  return std::sqrt(error / size);  // NaN if any value is
}

void agrees_with_float64(const Shape& s) {
  Call call(s);
  const int64_t tokens = int64_t(s.batch) * s.height * s.width;
  const int status = dgiqa_window_attention(&call.arguments, nullptr);
  std::vector<double> exact(tokens * call.channels), rounded(exact), got(exact);
  dgiqa_window_attention_reference(&call.arguments, exact.data(), 0);
  dgiqa_window_attention_reference(&call.arguments, rounded.data(), 1);
  for (int64_t token = 0; token < tokens; ++token)
    for (int channel = 0; channel < call.channels; ++channel)
      got[token * call.channels + channel] = call.at(token, channel);
  const double error = relative(got, exact), budget = std::fmin(2 * relative(rounded, exact), kMost);
  char what[200];
  std::snprintf(what, sizeof what,
                "head %d  %d x %dx%d  heads %d shift %d bias %d split %d amplitude %g gap %d: %.2e, %.0f %% of budget",
                s.head_dim, s.batch, s.height, s.width, s.heads, s.shift, s.bias, s.split, s.amplitude, s.gap, error,
                100 * error / budget);
  std::printf("        %s\n", what);
  expect(status == DGIQA_OK && error <= budget, what);
  expect(call.gaps_intact(), "wrote outside the result");
}

// All queries and keys alike: every row of a window is the mean of its values.
void equal_rows_give_the_mean() {
  Call call({32, 1, 7, 14, 2, 0, false, 1, 1.f, 0});
  for (size_t i = 0; i < call.in.size(); ++i)
    if (int(i % call.in_step) < 2 * call.channels) call.in.data()[i] = float_to_half(3);
  dgiqa_window_attention(&call.arguments, nullptr);
  double worst = 0;
  for (int window = 0; window < 2; ++window)
    for (int channel = 0; channel < call.channels; ++channel) {
      double mean = 0;
      const auto token = [&](int i) { return i / 7 * 14 + window * 7 + i % 7; };
      for (int i = 0; i < 49; ++i)
        mean += half_to_float(call.in.data()[token(i) * call.in_step + 2 * call.channels + channel]) / 49;
      for (int i = 0; i < 49; ++i) worst = std::fmax(worst, std::fabs(call.at(token(i), channel) - mean));
      if (std::isnan(call.at(token(0), channel))) worst = INFINITY;
    }
  expect(worst <= 0x1p-11, "equal rows give the mean of the values, to half a step of float16");
}

// Each query is far nearer to one key than to the others: its row is that key's value, bit by bit.
void one_hot_rows_copy_values(int head_dim, int split) {
  Call call({head_dim, 1, 7, 7, 1, 0, false, split, 1.f, 0});
  const auto at = [&](int token, int part) { return call.in.data() + token * call.in_step + part * head_dim; };
  for (int key = 0; key < 49; ++key)
    for (int d = 0; d < head_dim; ++d) at(key, 1)[d] = float_to_half(generator() & 1 ? 1.f : -1.f);
  const auto target = [](int query) { return (query * 11 + 5) % 49; };
  for (int query = 0; query < 49; ++query)
    for (int d = 0; d < head_dim; ++d) at(query, 0)[d] = float_to_half(64 * half_to_float(at(target(query), 1)[d]));
  dgiqa_window_attention(&call.arguments, nullptr);
  bool same = true;
  for (int query = 0; query < 49; ++query)
    same &= !std::memcmp(call.out.data() + query * head_dim, at(target(query), 2), 2 * size_t(head_dim));
  expect(same, "one-hot rows copy values exactly");
}

// Batches are further apart than 32-bit offsets reach; only the touched pages exist.
void strides_beyond_32_bits() {
  const int64_t far = (int64_t(1) << 31) + 64;  // elements, so 4 GiB and some
  const size_t bytes = size_t(far) * 2 + (1 << 20);
  const auto map = [&] {
    return static_cast<uint16_t*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  };
  uint16_t *in = map(), *out = map();
  if (in == MAP_FAILED || out == MAP_FAILED) {
    std::printf("skipped strides beyond 32 bits: the system gives no 4 GiB of address space\n");
    return;
  }
  Call near({32, 2, 7, 7, 1, 0, true, 1, 1.f, 0});
  dgiqa_attention a = near.arguments;
  for (int image = 0; image < 2; ++image)
    std::memcpy(in + image * far, near.in.data() + image * near.in.size() / 2, near.in.size());
  a.q = in, a.k = in + 32, a.v = in + 64, a.out = out;
  a.q_stride.batch = a.k_stride.batch = a.v_stride.batch = a.out_stride.batch = far;
  const int status = dgiqa_window_attention(&a, nullptr);
  dgiqa_window_attention(&near.arguments, nullptr);
  bool same = status == DGIQA_OK;
  for (int image = 0; image < 2; ++image)
    same &= !std::memcmp(out + image * far, near.out.data() + image * near.out.size() / 2, near.out.size());
  expect(same, "batches more than 2^31 elements apart");
  munmap(in, bytes), munmap(out, bytes);
}

// q, k and v in three buffers, tokens before batches: the layout of torch's MultiheadAttention.
void cross_attention_with_tokens_first() {
  const int batch = 3, heads = 2, channels = 64 * heads;
  Call call({64, batch, 7, 7, heads, 0, false, 0, 2.f, 0});
  std::vector<double> wanted(size_t(batch) * 49 * channels), got(wanted);
  dgiqa_window_attention_reference(&call.arguments, wanted.data(), 0);
  Halves q(49 * size_t(batch) * channels), kv(2 * q.size()), out(q.size());
  for (int token = 0; token < 49; ++token)
    for (int image = 0; image < batch; ++image) {
      const uint16_t* from = call.in.data() + (image * 49 + token) * call.in_step;
      std::memcpy(q.data() + (token * batch + image) * channels, from, 2 * size_t(channels));
      std::memcpy(kv.data() + (token * batch + image) * 2 * channels, from + channels, 4 * size_t(channels));
    }
  dgiqa_attention a = call.arguments;
  a.q = q.data(), a.k = kv.data(), a.v = kv.data() + channels, a.out = out.data();
  a.q_stride = a.out_stride = {channels, int64_t(batch) * channels};
  a.k_stride = a.v_stride = {2 * channels, int64_t(batch) * 2 * channels};
  const int status = dgiqa_window_attention(&a, nullptr);
  for (int image = 0; image < batch; ++image)
    for (int token = 0; token < 49; ++token)
      for (int channel = 0; channel < channels; ++channel)
        got[(image * 49 + token) * channels + channel] =
            half_to_float(out.data()[(token * batch + image) * channels + channel]);
  expect(status == DGIQA_OK && relative(got, wanted) <= kMost, "cross-attention with tokens before batches");
  expect(out.guards_intact(), "cross-attention wrote outside the result");
}

void wrong_arguments_are_refused() {
  Call call({32, 1, 8, 14, 3, 3, true, 0, 1.f, 0});
  const dgiqa_attention good = call.arguments;
  const auto status = [&](const std::function<void(dgiqa_attention&)>& spoil) {
    dgiqa_attention bad = good;
    spoil(bad);
    return dgiqa_window_attention(&bad, nullptr);
  };
  const auto refused = [&](const char* what, int wanted, const std::function<void(dgiqa_attention&)>& spoil) {
    expect(status(spoil) == wanted, what);
  };
  using A = dgiqa_attention&;
  const auto shifted = [](const void* p) { return static_cast<const void*>(static_cast<const char*>(p) + 2); };
  refused("head dimension 60", DGIQA_BAD_ARGUMENT, [](A a) { a.head_dim = 60; });
  refused("no heads", DGIQA_BAD_ARGUMENT, [](A a) { a.heads = 0; });
  refused("negative batch", DGIQA_BAD_ARGUMENT, [](A a) { a.batch = -1; });
  refused("no height", DGIQA_BAD_ARGUMENT, [](A a) { a.height = 0; });
  refused("shift 2", DGIQA_BAD_ARGUMENT, [](A a) { a.shift = 2; });
  refused("a map narrower than its shift", DGIQA_BAD_ARGUMENT, [](A a) { a.width = 2; });
  refused("a map lower than its shift", DGIQA_BAD_ARGUMENT, [](A a) { a.height = 2; });
  refused("split 2", DGIQA_BAD_ARGUMENT, [](A a) { a.split = 2; });
  refused("one warp for head dimension 64", DGIQA_BAD_ARGUMENT, [](A a) { a.head_dim = 64, a.split = 1; });
  refused("scale 0", DGIQA_BAD_ARGUMENT, [](A a) { a.scale = 0; });
  refused("scale NaN", DGIQA_BAD_ARGUMENT, [](A a) { a.scale = NAN; });
  refused("no q", DGIQA_BAD_ARGUMENT, [](A a) { a.q = nullptr; });
  refused("no out", DGIQA_BAD_ARGUMENT, [](A a) { a.out = nullptr; });
  refused("padding without its key", DGIQA_BAD_ARGUMENT, [](A a) { a.pad_k = nullptr; });
  refused("shift without bias", DGIQA_BAD_ARGUMENT, [](A a) { a.bias = nullptr; });
  refused("q off by two bytes", DGIQA_MISALIGNED, [&](A a) { a.q = shifted(a.q); });
  refused("v off by two bytes", DGIQA_MISALIGNED, [&](A a) { a.v = shifted(a.v); });
  refused("bias off by two bytes", DGIQA_MISALIGNED, [&](A a) { a.bias = shifted(a.bias); });
  refused("pad_v off by two bytes", DGIQA_MISALIGNED, [&](A a) { a.pad_v = shifted(a.pad_v); });
  refused("a token stride of 289", DGIQA_MISALIGNED, [](A a) { a.k_stride.token = 289; });
  refused("a batch stride of 4", DGIQA_MISALIGNED, [](A a) { a.out_stride.batch = 4; });
  refused("2^32 windows", DGIQA_TOO_LARGE, [](A a) { a.height = 7, a.width = 7, a.batch = 1 << 30, a.heads = 4; });
  refused("a map of 2^31 tokens", DGIQA_TOO_LARGE, [](A a) { a.height = 1 << 16, a.width = 1 << 15; });
  refused("an image of 2^31 elements", DGIQA_TOO_LARGE, [](A a) { a.v_stride.token = INT32_MAX / (8 * 14) / 8 * 8 + 8; });
  refused("a negative token stride", DGIQA_BAD_ARGUMENT, [](A a) { a.q_stride.token = -288; });
  refused("the largest numbers there are", DGIQA_TOO_LARGE,
          [](A a) { a.height = a.width = a.batch = a.heads = INT32_MAX; });
  expect(dgiqa_window_attention(nullptr, nullptr) == DGIQA_BAD_ARGUMENT, "no arguments");
  dgiqa_attention empty = good;
  empty.batch = 0, empty.q = empty.k = empty.v = empty.out = nullptr;
  expect(dgiqa_window_attention(&empty, nullptr) == DGIQA_OK, "an empty batch is done at once");
  bool untouched = true;
  for (size_t i = 0; i < call.out.size(); ++i) untouched &= call.out.data()[i] == kPoison;
  expect(untouched, "a refused call writes nothing");
}

// The grid at its limits, without launching it.
void plans_near_the_limits() {
  Call call({32, 1, 7, 7, 3, 0, true, 0, 1.f, 0});
  const auto plan = [&](int batch, int heads, int split) {
    dgiqa_attention a = call.arguments;
    a.batch = batch, a.heads = heads, a.split = split;
    return plan_attention(a);
  };
  const AttentionPlan largest = plan(INT32_MAX - 1, 2, 1);  // 2^32 - 4 warps
  expect(largest.status == DGIQA_OK && largest.tiles == 4294967292u && largest.blocks == 1073741823u,
         "the largest grid");
  expect(plan(INT32_MAX, 2, 1).status == DGIQA_TOO_LARGE, "one window more");
  expect(plan(INT32_MAX - 1, 2, 4).status == DGIQA_TOO_LARGE, "four times as many warps");
  const AttentionPlan small = plan(1, 3, 0), few = plan(1365, 3, 0), many = plan(1366, 3, 0);
  expect(small.split == 4 && small.tiles == 3 && small.blocks == 3, "few windows are split");
  expect(few.split == 4 && many.split == 1 && many.blocks == (1366 * 3 + 3) / 4, "many windows are not");
  expect(small.packed && !small.padded, "three heads of a packed whole map");
}

// The emulator itself: it must stop where a GPU would silently go wrong.
bool aborts(const std::function<void(EmulatedWarp)>& lane_body) {
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    WarpEmulator emulator;
    emulator.run([&](int lane) { lane_body(emulator.warp(lane)); });
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void the_emulator_stops_at_faults() {
  expect(!aborts([](EmulatedWarp w) { w.shuffle_xor(1, 1), w.transpose(0); }), "lanes that agree run through");
  expect(aborts([](EmulatedWarp w) { w.lane == 5 ? void(w.shuffle_xor(1, 1)) : void(w.transpose(0)); }),
         "lanes in different operations");
  expect(aborts([](EmulatedWarp w) { if (w.lane != 31) w.shuffle_xor(1, 1); }), "a lane that stays away");
  expect(aborts([](EmulatedWarp) {
           alignas(16) char bytes[32] = {};
           EmulatedWarp::load16<false>(bytes + 8);
         }),
         "a load that is not aligned");
}

}  // namespace

int main() {
  std::printf("DGIQA_SEED=%llu\n", static_cast<unsigned long long>(kSeed));
  for (const int split : {1, 4}) {
    agrees_with_float64({32, 2, 7, 14, 3, 0, false, split, 1.f, 0});
    for (const int shift : {0, 3}) {
      agrees_with_float64({32, 1, 14, 14, 3, shift, true, split, 1.f, 0});   // constant strides
      agrees_with_float64({32, 1, 14, 21, 2, shift, true, split, 3.f, 8});   // strides from the arguments
      agrees_with_float64({32, 1, 10, 17, 3, shift, true, split, 1.f, 0});   // padded on both sides
      agrees_with_float64({32, 2, 8, 7, 1, shift, true, split, 2.f, 16});    // padded below
    }
    one_hot_rows_copy_values(32, split);
  }
  agrees_with_float64({32, 1, 7, 7, 6, 0, true, 1, 1.f, 0});
  agrees_with_float64({32, 1, 14, 7, 12, 3, true, 4, 1.f, 0});
  agrees_with_float64({32, 1, 7, 7, 24, 0, true, 4, 1.f, 0});
  agrees_with_float64({32, 1, 7, 7, 5, 0, true, 0, 1.f, 0});    // a width that no Swin has
  agrees_with_float64({32, 1, 3, 3, 1, 3, true, 1, 1.f, 0});    // one window, mostly padding
  agrees_with_float64({32, 1, 14, 14, 1, 3, true, 1, 16.f, 0});  // logits up to 1e3
  agrees_with_float64({64, 2, 7, 7, 16, 0, false, 0, 1.f, 0});   // Depth-CAR
  agrees_with_float64({64, 1, 7, 7, 3, 0, false, 4, 12.f, 8});
  agrees_with_float64({64, 1, 14, 14, 2, 3, true, 4, 1.f, 0});
  agrees_with_float64({64, 1, 9, 16, 1, 3, true, 4, 1.f, 0});
  one_hot_rows_copy_values(64, 4);
  equal_rows_give_the_mean();
  cross_attention_with_tokens_first();
  strides_beyond_32_bits();
  wrong_arguments_are_refused();
  plans_near_the_limits();
  the_emulator_stops_at_faults();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}
