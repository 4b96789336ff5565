// A warp on a CPU: 32 fibers run a kernel body, one per lane, and meet wherever lanes exchange registers. So a CUDA
// kernel's source can be tested, and run by the torch op, without a GPU. Aborts where a GPU would misbehave: if lanes
// meet in different operations, or a load or store is not aligned.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "half.h"

#define DGIQA_DEVICE inline

struct Quad {
  uint32_t x, y, z, w;
};

enum class Meeting : int { kMma16, kMma8, kTranspose, kShuffle, kEnd };

[[noreturn]] inline void emulated_fault(const char* what) {
  std::fprintf(stderr, "emulated warp: %s\n", what);
  std::abort();
}

// Lanes run in turn: a lane writes its values into its slot and lets the next one run; when its turn comes again, all
// 32 slots of that meeting are written. Slots come in two sets, as the first lane is one meeting ahead of the last.
struct EmulatedLanes {
  static constexpr int kLanes = 32, kStackBytes = 1 << 16, kSlot = 12;
  float floats[2][kLanes][kSlot];
  uint32_t bits[2][kLanes];
  Meeting kind[2][kLanes];
  long meetings[kLanes];
  ucontext_t lane[kLanes], caller;
  std::unique_ptr<char[]> stacks{new char[size_t(kLanes) * kStackBytes]};
  void (*body)(void*, int);
  void* argument;

  void pass_on(int from) {
    if (swapcontext(&lane[from], &lane[(from + 1) % kLanes])) emulated_fault("cannot switch fibers");
  }
};

class EmulatedWarp {
 public:
  int lane;

  EmulatedWarp(EmulatedLanes* lanes, int lane) : lane(lane), lanes_(lanes) {}

  void mma16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    const uint32_t a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
    mma<16>(c, a, b, Meeting::kMma16);
  }

  void mma8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    const uint32_t a[2] = {a0, a1}, b[1] = {b0};
    mma<8>(c, a, b, Meeting::kMma8);
  }

  uint32_t transpose(uint32_t a) {
    lanes_->bits[set()][lane] = a;
    const int at = meet(Meeting::kTranspose), row = lane >> 2, column = 2 * (lane & 3);
    const auto element = [&](int r, int c) { return lanes_->bits[at][4 * r + c / 2] >> (16 * (c & 1)) & 0xffffu; };
    return element(column, row) | element(column + 1, row) << 16;
  }

  float shuffle_xor(float value, int mask) {
    lanes_->floats[set()][lane][0] = value;
    return lanes_->floats[meet(Meeting::kShuffle)][lane ^ mask][0];
  }

  void end() { meet(Meeting::kEnd); }

  template <bool STREAM>
  static Quad load16(const void* p) {
    Quad r;
    std::memcpy(&r, aligned(p, 16), 16);
    return r;
  }

  static void load8(const void* p, uint32_t& x, uint32_t& y) {
    std::memcpy(&x, aligned(p, 8), 4);
    std::memcpy(&y, static_cast<const char*>(p) + 4, 4);
  }

  static void store16(void* p, Quad v) {
    aligned(p, 16);
    std::memcpy(p, &v, 16);
  }

  static uint32_t pack(float low, float high) { return float_to_half(low) | uint32_t(float_to_half(high)) << 16; }
  static float low(uint32_t v) { return half_to_float(uint16_t(v)); }
  static float high(uint32_t v) { return half_to_float(uint16_t(v >> 16)); }
  static float exp2(float x) { return std::exp2(x); }
  static float reciprocal(float x) { return 1.f / x; }

 private:
  EmulatedLanes* lanes_;

  static const void* aligned(const void* p, uintptr_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) emulated_fault("misaligned address");
    return p;
  }

  int set() const { return int(lanes_->meetings[lane] & 1); }

  int meet(Meeting kind) {
    const int at = set();
    lanes_->kind[at][lane] = kind;
    const long count = ++lanes_->meetings[lane];
    lanes_->pass_on(lane);
    for (int other = 0; other < EmulatedLanes::kLanes; ++other)
      if (lanes_->meetings[other] < count || lanes_->kind[at][other] != kind) emulated_fault("divergent lanes");
    return at;
  }

  // By the fragment tables of PTX's mma.m16n8k{8,16}, lane 4g + t holds rows g and g + 8 of a, column g of b, columns
  // 2t and 2t + 1 of c. Products are exact in double; the sum is rounded once.
  template <int K>
  void mma(float (&c)[4], const uint32_t* a, const uint32_t* b, Meeting kind) {
    float* slot = lanes_->floats[set()][lane];
    for (int i = 0; i < K / 4; ++i) slot[2 * i] = low(a[i]), slot[2 * i + 1] = high(a[i]);
    for (int i = 0; i < K / 8; ++i) slot[8 + 2 * i] = low(b[i]), slot[8 + 2 * i + 1] = high(b[i]);
    const auto& all = lanes_->floats[meet(kind)];
    const int g = lane >> 2, t = lane & 3;
    for (int e = 0; e < 4; ++e) {
      const int lower = e >> 1, column = 2 * t + (e & 1);
      double sum = c[e];
      for (int half = 0; half < K / 8; ++half)
        for (int quarter = 0; quarter < 4; ++quarter) {
          const float* x = all[4 * g + quarter] + 2 * (lower + 2 * half);
          const float* y = all[4 * column + quarter] + 8 + 2 * half;
          sum += double(x[0]) * y[0] + double(x[1]) * y[1];
        }
      c[e] = float(sum);
    }
  }
};

// Runs body(lane) on the 32 lanes of one warp. The lanes meet once more at the end; then each returns to the next one,
// and the last to the caller.
class WarpEmulator {
 public:
  template <class Body>
  void run(Body body) {
    lanes_->argument = &body;
    lanes_->body = [](void* argument, int lane) { (*static_cast<Body*>(argument))(lane); };
    for (int lane = 0; lane < EmulatedLanes::kLanes; ++lane) prepare(lane);
    if (swapcontext(&lanes_->caller, &lanes_->lane[0])) emulated_fault("cannot switch fibers");
  }

  EmulatedWarp warp(int lane) { return EmulatedWarp(lanes_.get(), lane); }

 private:
  std::unique_ptr<EmulatedLanes> lanes_{new EmulatedLanes};

  void prepare(int lane) {
    lanes_->meetings[lane] = 0;
    ucontext_t& context = lanes_->lane[lane];
    if (getcontext(&context)) emulated_fault("cannot make a fiber");
    context.uc_stack.ss_sp = lanes_->stacks.get() + size_t(lane) * EmulatedLanes::kStackBytes;
    context.uc_stack.ss_size = EmulatedLanes::kStackBytes;
    context.uc_link = lane + 1 < EmulatedLanes::kLanes ? &lanes_->lane[lane + 1] : &lanes_->caller;
    const auto address = uint64_t(reinterpret_cast<uintptr_t>(lanes_.get()));
    makecontext(&context, reinterpret_cast<void (*)()>(&enter), 3, unsigned(address >> 32), unsigned(address), lane);
  }

  static void enter(unsigned high, unsigned low, int lane) {
    auto* lanes = reinterpret_cast<EmulatedLanes*>(uintptr_t(uint64_t(high) << 32 | low));
    lanes->body(lanes->argument, lane);
    EmulatedWarp(lanes, lane).end();
  }
};
