/* Turns an RGB image in device memory into the networks' inputs, without a full-size map in between.
 *
 *     image u8 [H,W,3] --> dgiqa_depth_input --> f32|f16 [3,h,w] --> (depth network) --> depth f32 [h,w]
 *                                                   depth --> dgiqa_depth_range --> range u32 [3]
 *     image, depth, range, windows --> dgiqa_tiles --> rgb, depth f32|f16 [n,3,tile,tile]
 *
 * Preprocess version 2 averages over areas if neither side grows: dgiqa_reduce takes dgiqa_depth_input's place and also
 * makes the working image u8 [h,w,3], which dgiqa_tiles then cuts; its depth has the working size, not the image's.
 *
 * dgiqa/preprocess.py is the definition; tests/test_preprocess_kernels.py checks the kernels against it. Every pointer
 * except `windows` and the params themselves is to device memory (emulated: host memory). Calls enqueue on `stream`
 * (a cudaStream_t; ignored when emulated) and return: no allocation, no synchronisation, capturable. They return a
 * status of attention.h: DGIQA_BAD_ARGUMENT for a size below 1, a null pointer, an unknown type or a window outside the
 * image; DGIQA_TOO_LARGE for more rows than a grid holds. Not yet run on a GPU.
 */
#pragma once
#include <stdint.h>

#include "attention.h"

#define DGIQA_PREPROCESS_ABI 3  /* raised when a struct below or its meaning changes */

#ifdef __cplusplus
extern "C" {
#endif

enum dgiqa_type { DGIQA_F32 = 0, DGIQA_F16 = 1, DGIQA_U8 = 2 };

/* uint8 [height,width,3] RGB, any strides in bytes: pitched rows, RGBA (pixel 4), planes, or BGR (channel -1). */
typedef struct {
  const uint8_t* data; /* [height, width, 3] uint8, strided */
  int64_t row_stride, pixel_stride, channel_stride;
  int32_t height, width;
} dgiqa_image;

/* A decoder's picture: luma, and chroma with half the height and width (U and V interleaved), sited on the left as in
 * video codecs; both sides are even. Converted to RGB in FFmpeg's fixed point: 15 bits of luma and chroma, 13 of
 * coefficients. */
typedef struct {
  const uint8_t* luma;   /* [height, width] uint8 */
  const uint8_t* chroma; /* [height / 2, width / 2, 2] uint8 */
  int64_t luma_stride, chroma_stride; /* bytes per row */
  int32_t height, width;
  int32_t y_offset, y_scale, v_to_r, v_to_g, u_to_g, u_to_b;
  uint8_t* out; /* [height, width, 3] uint8 */
} dgiqa_nv12_params;

/* Cubic (a = -0.75, no antialiasing, not clipped) to height x width, then value * scale[c] - shift[c]. */
typedef struct {
  dgiqa_image image;
  int32_t height, width;
  float scale[3], shift[3];
  void* out; /* [3, height, width] out_type */
  int32_t out_type;
} dgiqa_depth_input_params;

/* Averages over areas, as OpenCV's INTER_AREA does, to height x width; neither is larger than the image's. */
typedef struct {
  dgiqa_image image;
  int32_t height, width;
  const float* levels; /* [3, 256] float32, network input for each uint8 level, per channel; unused for DGIQA_U8 */
  void* out;           /* [3, height, width] float32 or float16, or [height, width, 3] uint8 */
  int32_t out_type;
} dgiqa_reduce_params;

/* The depth network's map [map_height,map_width], read as if interpolated to height x width: the image's size or the
 * working image's.
 *
 * range[0], range[1]: ordered bits (see ordered_bits in preprocess_body.h) of the largest value and of the largest
 * negated value; range[2]: 1 if any value of the map or any interpolated one is NaN or infinite. */
typedef struct {
  const float* map; /* [map_height, map_width] float32 */
  int32_t map_height, map_width;
  int32_t height, width;
  uint32_t* range; /* [3] uint32 */
} dgiqa_depth;

/* Image and depth image, both resized to short_height x short_width with OpenCV's fixed-point bilinear, normalised by
 * table look-up, and cut at `count` windows. `depth.range` must have been written by dgiqa_depth_range. */
typedef struct {
  dgiqa_image image;
  dgiqa_depth depth;
  int32_t short_height, short_width, tile, count;
  const int32_t* windows; /* [count, 2] int32 top-left (y, x), in HOST memory; read before the call returns */
  const float* levels;    /* [3, 256] float32, network input for each uint8 level, per channel */
  void* rgb_out;          /* [count, 3, tile, tile] out_type */
  void* depth_out;        /* [count, 3, tile, tile] out_type */
  int32_t out_type;
} dgiqa_tiles_params;

int dgiqa_nv12(const dgiqa_nv12_params* params, void* stream);
int dgiqa_depth_input(const dgiqa_depth_input_params* params, void* stream);
int dgiqa_reduce(const dgiqa_reduce_params* params, void* stream);
int dgiqa_depth_range(const dgiqa_depth* depth, void* stream);
int dgiqa_tiles(const dgiqa_tiles_params* params, void* stream);

int dgiqa_preprocess_abi(void);      /* DGIQA_PREPROCESS_ABI of the library */
int dgiqa_preprocess_emulated(void); /* 1: pointers are host memory and the calls run on the CPU */

#ifdef __cplusplus
}
#endif
