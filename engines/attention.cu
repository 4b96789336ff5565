// dgiqa_window_attention: checks the arguments, picks an instance of the kernel, and launches it.
//
// nvcc compiles this file for the GPU. A C++ compiler builds the same entry point for host pointers: it runs the same
// instances of the same body on emulated warps, one after another.
#include "attention.h"

#include "attention_plan.h"
#ifdef __CUDACC__
#include <cuda_runtime.h>

#include "warp_cuda.h"
#else
#include "emulator.h"
#endif
#include "attention_body.h"

namespace {

#ifdef __CUDACC__
using Stream = cudaStream_t;

// Blocks per SM bound the registers: 64 Ki / (128 threads x blocks). On sm_90 no instance spills.
template <int UNITS, bool SHIFT, bool BIAS, bool PAD, int SPLIT, int CHANNELS>
__global__ void __launch_bounds__(32 * kWarpsPerBlock, UNITS == 2 ? 2 : SPLIT == 1 ? 3 : 4)
    attention_kernel(const __grid_constant__ dgiqa_attention a, uint32_t tiles) {
  const uint32_t warp = blockIdx.x * kWarpsPerBlock + (threadIdx.x >> 5), tile = warp / SPLIT;
  if (tile >= tiles) return;
  attention::attend<UNITS, SHIFT, BIAS, PAD, SPLIT, CHANNELS>(a, tile, int(warp % SPLIT),
                                                              CudaWarp{int(threadIdx.x & 31)});
}

template <int UNITS, bool SHIFT, bool BIAS, bool PAD, int SPLIT, int CHANNELS>
int launch(const dgiqa_attention& a, const AttentionPlan& plan, Stream stream) {
  attention_kernel<UNITS, SHIFT, BIAS, PAD, SPLIT, CHANNELS>
      <<<plan.blocks, 32 * kWarpsPerBlock, 0, stream>>>(a, plan.tiles);
  // Not cudaPeekAtLastError, which does not clear the error: every later launch of the thread would seem to fail.
  return cudaGetLastError() == cudaSuccess ? DGIQA_OK : DGIQA_LAUNCH_FAILED;
}
#else
using Stream = void*;

template <int UNITS, bool SHIFT, bool BIAS, bool PAD, int SPLIT, int CHANNELS>
int launch(const dgiqa_attention& a, const AttentionPlan& plan, Stream) {
  WarpEmulator emulator;
  for (uint32_t tile = 0; tile < plan.tiles; ++tile)
    for (int part = 0; part < SPLIT; ++part)
      emulator.run([&](int lane) {
        attention::attend<UNITS, SHIFT, BIAS, PAD, SPLIT, CHANNELS>(a, tile, part, emulator.warp(lane));
      });
  return DGIQA_OK;
}
#endif

// For the four widths of Swin-T, packed and without padding, strides are constants; all else reads them from arguments.
template <int UNITS, bool SHIFT, int SPLIT>
int launch_whole(const dgiqa_attention& a, const AttentionPlan& plan, Stream stream) {
  if constexpr (UNITS == 1) {
    switch (plan.packed ? a.heads * 32 : 0) {
      case 96: return launch<UNITS, SHIFT, true, false, SPLIT, 96>(a, plan, stream);
      case 192: return launch<UNITS, SHIFT, true, false, SPLIT, 192>(a, plan, stream);
      case 384: return launch<UNITS, SHIFT, true, false, SPLIT, 384>(a, plan, stream);
      case 768: return launch<UNITS, SHIFT, true, false, SPLIT, 768>(a, plan, stream);
      default: break;
    }
  }
  return launch<UNITS, SHIFT, true, false, SPLIT, 0>(a, plan, stream);
}

// Without a bias (Depth-CAR's blocks of 49 tokens) there is neither shift nor padding: the plan has checked that.
template <int UNITS, int SPLIT>
int launch_shape(const dgiqa_attention& a, const AttentionPlan& plan, Stream stream) {
  if (!a.bias) return launch<UNITS, false, false, false, SPLIT, 0>(a, plan, stream);
  if (plan.padded)
    return a.shift ? launch<UNITS, true, true, true, SPLIT, 0>(a, plan, stream)
                   : launch<UNITS, false, true, true, SPLIT, 0>(a, plan, stream);
  return a.shift ? launch_whole<UNITS, true, SPLIT>(a, plan, stream)
                 : launch_whole<UNITS, false, SPLIT>(a, plan, stream);
}

}  // namespace

extern "C" int dgiqa_window_attention(const dgiqa_attention* arguments, void* stream) {
  if (!arguments) return DGIQA_BAD_ARGUMENT;
  const dgiqa_attention& a = *arguments;
  const AttentionPlan plan = plan_attention(a);
  if (plan.status != DGIQA_OK || plan.tiles == 0) return plan.status;
  const auto on = static_cast<Stream>(stream);
  if (a.head_dim == 64) return launch_shape<2, 4>(a, plan, on);
  return plan.split == 1 ? launch_shape<1, 1>(a, plan, on) : launch_shape<1, 4>(a, plan, on);
}
