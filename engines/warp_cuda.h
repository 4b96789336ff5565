// The operations of a lane of a warp on an NVIDIA GPU (sm_80 or newer), in PTX. emulator.h has the same names on a CPU.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#define DGIQA_DEVICE __device__ __forceinline__

struct Quad {
  uint32_t x, y, z, w;
};

// Warp-wide instructions are volatile: none may be moved into a branch that only some lanes take.
struct CudaWarp {
  int lane;

  // c[16x8] += a[16x16] b[16x8], float16 in, float32 out; fragments as in the PTX manual's tables for mma.m16n8k16.
  DGIQA_DEVICE static void mma16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                 uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }

  DGIQA_DEVICE static void mma8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b0));
  }

  // Lane 4r + c holds elements (r, 2c) and (r, 2c + 1) of an 8x8 matrix of halves, and then of its transpose.
  DGIQA_DEVICE static uint32_t transpose(uint32_t a) {
    uint32_t result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(a));
    return result;
  }

  DGIQA_DEVICE static float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

  // STREAM: read once, so it need not stay in L1
  template <bool STREAM>
  DGIQA_DEVICE static Quad load16(const void* p) {
    Quad r;
    if (STREAM)
      asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
          : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
          : "l"(p));
    else
      asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
    return r;
  }

  DGIQA_DEVICE static void load8(const void* p, uint32_t& x, uint32_t& y) {
    asm("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(x), "=r"(y) : "l"(p));
  }

  DGIQA_DEVICE static void store16(void* p, Quad v) { *static_cast<uint4*>(p) = make_uint4(v.x, v.y, v.z, v.w); }

  DGIQA_DEVICE static uint32_t pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }

  DGIQA_DEVICE static float low(uint32_t v) { return __low2float(*reinterpret_cast<const __half2*>(&v)); }
  DGIQA_DEVICE static float high(uint32_t v) { return __high2float(*reinterpret_cast<const __half2*>(&v)); }

  DGIQA_DEVICE static float exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
  }

  DGIQA_DEVICE static float reciprocal(float x) { return __fdividef(1.f, x); }
};
