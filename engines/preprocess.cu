// The C functions of preprocess.h: they check arguments, then run a grid of threads, or loops without a CUDA compiler.
// Emulated: g++ -x c++ -std=c++17 -O2 -ffp-contract=off -fPIC -shared engines/preprocess.cu -o libdgiqa_emulated.so
#include <type_traits>

#include "preprocess_body.h"

namespace dgiqa_preprocess {
namespace {

bool valid(const dgiqa_image& m) { return m.data && m.height > 0 && m.width > 0; }
bool valid_type(int32_t type) { return type == DGIQA_F32 || type == DGIQA_F16; }
bool valid(const dgiqa_depth& d) {
  return d.map && d.range && d.map_height > 0 && d.map_width > 0 && d.height > 0 && d.width > 0;
}

template <class Work>
int blocks_across(const Work& work) {
  return (work.columns() - 1) / kThreads + 1;
}

template <class Work>
int blocks_down(const Work& work) {
  return (work.rows() - 1) / Work::kRows + 1;
}

#ifdef __CUDACC__

constexpr int kMaxGridY = 65535;

template <class Work>
__device__ void run_thread(const Work& work, typename Work::Found& found) {
  __shared__ typename Work::Row rows[Work::kRows];
  const Place at{int(blockIdx.x), int(blockIdx.y), int(blockIdx.z), int(threadIdx.x)};
  share_rows(work, at, rows);
  __syncthreads();
  run_column(work, at, rows, found);
}

template <class Work>
__global__ void __launch_bounds__(kThreads) run_kernel(const __grid_constant__ Work work) {
  Nothing nothing;
  run_thread(work, nothing);
}

// The greatest value of the warp; GPUs before sm_80 have no instruction for it.
__device__ uint32_t warp_max(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0u, value);
#else
  for (int other = 16; other; other /= 2) value = max(value, __shfl_xor_sync(~0u, value, other));
  return value;
#endif
}

// Integer maxima give the same result in whatever order blocks finish.
template <>
__global__ void __launch_bounds__(kThreads) run_kernel<DepthRange>(const __grid_constant__ DepthRange work) {
  Range found;
  run_thread(work, found);
  const int64_t block = int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
  work.check_map(block * kThreads + threadIdx.x, int64_t(gridDim.x) * gridDim.y * kThreads, found);
  const uint32_t high = warp_max(found.high), low = warp_max(found.low), broken = warp_max(found.broken);
  if (threadIdx.x % 32) return;
  atomicMax(work.d.range, high);
  atomicMax(work.d.range + 1, low);
  atomicMax(work.d.range + 2, broken);
}

template <class Work>
int run(const Work& work, void* stream) {
  if (blocks_down(work) > kMaxGridY) return DGIQA_TOO_LARGE;
  const dim3 blocks(blocks_across(work), blocks_down(work), work.planes());
  run_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  return cudaGetLastError() == cudaSuccess ? DGIQA_OK : DGIQA_LAUNCH_FAILED;
}

int clear(uint32_t* range, void* stream) {
  const cudaError_t error = cudaMemsetAsync(range, 0, 3 * sizeof(uint32_t), static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? DGIQA_OK : DGIQA_LAUNCH_FAILED;
}

#else

void keep(const DepthRange& work, const Range& found) {
  uint32_t* range = work.d.range;
  const uint32_t mine[3] = {found.high, found.low, found.broken};
  for (int i = 0; i < 3; ++i) range[i] = mine[i] > range[i] ? mine[i] : range[i];
}

template <class Work>
void keep(const Work&, const Nothing&) {}

// Runs the threads of a block one after the other: in the body they only share the rows.
template <class Work>
void run_block(const Work& work, Place at) {
  typename Work::Row rows[Work::kRows];
  for (at.thread = 0; at.thread < kThreads; ++at.thread) share_rows(work, at, rows);
  for (at.thread = 0; at.thread < kThreads; ++at.thread) {
    typename Work::Found found;
    run_column(work, at, rows, found);
    keep(work, found);
  }
}

template <class Work>
int run(const Work& work, void*) {
  for (int plane = 0; plane < work.planes(); ++plane)
    for (int y = 0; y < blocks_down(work); ++y)
      for (int x = 0; x < blocks_across(work); ++x) run_block(work, {x, y, plane, 0});
  if constexpr (std::is_same_v<Work, DepthRange>) {
    Range found;
    work.check_map(0, 1, found);
    keep(work, found);
  }
  return DGIQA_OK;
}

int clear(uint32_t* range, void*) {
  std::memset(range, 0, 3 * sizeof(uint32_t));
  return DGIQA_OK;
}

#endif

bool inside(const dgiqa_tiles_params& p) {
  for (int i = 0; i < 2 * p.count; ++i) {
    const int side = i % 2 ? p.short_width : p.short_height;
    if (p.windows[i] < 0 || p.windows[i] > side - p.tile) return false;
  }
  return true;
}

bool valid(const dgiqa_reduce_params& p) {
  const bool sizes = p.height > 0 && p.width > 0 && p.height <= p.image.height && p.width <= p.image.width;
  return valid(p.image) && sizes && p.out && (p.out_type == DGIQA_U8 || (p.levels && valid_type(p.out_type)));
}

// OpenCV's condition for a whole step, with its tolerance: 1 / (1 / 49.0) is not 49.
bool whole(double step) { return std::abs(step - int(step + 0.5)) < 2.220446049250313e-16; }

bool valid(const dgiqa_tiles_params& p) {
  const bool sizes = p.short_height > 0 && p.short_width > 0 && p.tile > 0 && p.count >= 0;
  const bool full = p.depth.height == p.image.height && p.depth.width == p.image.width;
  const bool working = p.depth.height == p.short_height && p.depth.width == p.short_width;
  const bool pointers = p.levels && (p.count == 0 || (p.windows && p.rgb_out && p.depth_out));
  return valid(p.image) && valid(p.depth) && sizes && (full || working) && pointers && valid_type(p.out_type) && inside(p);
}

}  // namespace
}  // namespace dgiqa_preprocess

using namespace dgiqa_preprocess;

extern "C" int dgiqa_nv12(const dgiqa_nv12_params* p, void* stream) {
  if (!p || !p->luma || !p->chroma || !p->out || p->height < 2 || p->width < 2 || p->height % 2 || p->width % 2)
    return DGIQA_BAD_ARGUMENT;
  return run(ToRgb{*p}, stream);
}

extern "C" int dgiqa_depth_input(const dgiqa_depth_input_params* p, void* stream) {
  if (!p || !valid(p->image) || p->height < 1 || p->width < 1 || !p->out || !valid_type(p->out_type))
    return DGIQA_BAD_ARGUMENT;
  const DepthInput work{*p, step(p->image.height, p->height), step(p->image.width, p->width)};
  return run(work, stream);
}

extern "C" int dgiqa_reduce(const dgiqa_reduce_params* p, void* stream) {
  if (!p || !valid(*p)) return DGIQA_BAD_ARGUMENT;
  const double y = step(p->image.height, p->height), x = step(p->image.width, p->width);
  return run(Reduce{*p, y, x, whole(y) && whole(x)}, stream);
}

extern "C" int dgiqa_depth_range(const dgiqa_depth* d, void* stream) {
  if (!d || !valid(*d)) return DGIQA_BAD_ARGUMENT;
  if (const int status = clear(d->range, stream)) return status;
  return run(DepthRange{*d, step(d->map_height, d->height), step(d->map_width, d->width)}, stream);
}

extern "C" int dgiqa_tiles(const dgiqa_tiles_params* p, void* stream) {
  if (!p || !valid(*p)) return DGIQA_BAD_ARGUMENT;
  const int64_t tile_bytes = int64_t(3) * p->tile * p->tile * (p->out_type == DGIQA_F16 ? 2 : 4);
  Tiles work{*p,
             step(p->image.height, p->short_height),
             step(p->image.width, p->short_width),
             step(p->depth.map_height, p->depth.height),
             step(p->depth.map_width, p->depth.width),
             {}};
  for (int first = 0; first < p->count; first += kWindows) {
    work.p.count = p->count - first < kWindows ? p->count - first : kWindows;
    work.p.rgb_out = static_cast<char *>(p->rgb_out) + first * tile_bytes;
    work.p.depth_out = static_cast<char *>(p->depth_out) + first * tile_bytes;
    std::memcpy(work.window, p->windows + 2 * first, sizeof(int32_t) * 2 * work.p.count);
    if (const int status = run(work, stream)) return status;
  }
  return DGIQA_OK;
}

extern "C" int dgiqa_preprocess_abi(void) { return DGIQA_PREPROCESS_ABI; }

extern "C" int dgiqa_preprocess_emulated(void) {
#ifdef __CUDACC__
  return 0;
#else
  return 1;
#endif
}
