/* Attention over 7x7 windows of a token map: one C function, which the kernels implement and every host calls.
 *
 *     q, k, v [batch, height, width, heads * head_dim]  ->  out, same shape      (all float16)
 *
 * One kernel does the cyclic shift, the padding to whole windows, the partition, softmax(scale * q k^T + bias + mask) v
 * and the way back; it reads and writes the map once. `dgiqa/nn/attention.py` defines the same in a few lines of torch.
 * A function enqueues work and returns a status: it allocates nothing, throws nothing, and never waits for the device.
 */
#ifndef DGIQA_ATTENTION_H
#define DGIQA_ATTENTION_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { DGIQA_WINDOW = 7, DGIQA_WINDOW_TOKENS = 49 };

/* Elements of one head's bias in accumulator order, [4][7][32][4]: see dgiqa_pack_bias. */
enum { DGIQA_BIAS_PER_HEAD = 4 * 7 * 32 * 4 };

enum {
  DGIQA_OK = 0,
  DGIQA_BAD_ARGUMENT = 1, /* an impossible size, scale or shift, or a missing pointer */
  DGIQA_MISALIGNED = 2,   /* a pointer that is no multiple of 16 bytes, or a stride that is no multiple of 8 elements */
  DGIQA_TOO_LARGE = 3,    /* more windows than one grid holds, or an image of 2^31 elements or more */
  DGIQA_LAUNCH_FAILED = 4 /* the CUDA runtime refused: no kernel for this GPU, or not a stream of the current context */
};

/* Token (b, y, x) starts at element b * batch + (y * width + x) * token. Multiples of 8; token is not negative. */
typedef struct {
  int64_t batch, token;
} dgiqa_stride;

typedef struct {
  const void* q; /* [batch, height, width, heads * head_dim] float16, strided; a head's elements are contiguous */
  const void* k; /* [batch, height, width, heads * head_dim] float16, strided */
  const void* v; /* [batch, height, width, heads * head_dim] float16, strided */
  void* out;     /* [batch, height, width, heads * head_dim] float16, strided */
  dgiqa_stride q_stride, k_stride, v_stride, out_stride;
  const void* bias;  /* [heads, 4, 7, 32, 4] float16, packed by dgiqa_pack_bias; or null */
  const void* pad_k; /* [heads * head_dim] float16, key of a padded token: the linear layer's bias, its output for 0 */
  const void* pad_v; /* [heads * head_dim] float16, its value; both are needed if height or width is no multiple of 7 */
  int32_t batch, height, width, heads;
  int32_t head_dim; /* 32 or 64 */
  int32_t shift;    /* 0, or 3: windows are cut from the map rolled by -shift, then padded below and on the right */
  int32_t split;    /* warps per window and head, 1 or 4; 0 leaves the choice to the launcher */
  float scale;      /* 1 / sqrt(true head dimension) */
} dgiqa_attention;

/* stream: a cudaStream_t (ignored by the emulated build). Pointers are to device memory (emulated: host memory). */
int dgiqa_window_attention(const dgiqa_attention* arguments, void* stream);

/* The meaning of a status, in English. */
const char* dgiqa_status_text(int status);

/* The same on the host in float64; it shares no index arithmetic with the kernel. rounded != 0 rounds logits,
 * probabilities and results to float16, as a chain of float16 operations does. Twice the chain's error is the kernel's
 * budget. */
int dgiqa_window_attention_reference(
    const dgiqa_attention* arguments,
    double* out, /* [batch, height * width, heads * head_dim] float64, dense */
    int rounded);

/* Divides the bias by scale and orders it as the lanes of a warp hold the logits of a 64 x 56 accumulator: a lane then
 * reads its four elements of a tile as 8 bytes, where a row-major table would take four loads of 2. Rows 49..63 and
 * columns 49..55 do not exist and are zero. Host pointers. */
void dgiqa_pack_bias(
    const float* bias, /* [heads, 49, 49] float32 */
    int32_t heads,
    float scale,
    uint16_t* packed); /* [heads, 4, 7, 32, 4] float16 bits: 16 rows, 8 columns, lane, its 4 elements */

#ifdef __cplusplus
}
#endif
#endif
