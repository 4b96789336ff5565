// Implements torch's dgiqa::window_attention and dgiqa::cross_attention (declared in dgiqa/nn/attention.py): on CUDA
// with the kernels, if they were compiled for it, and on a CPU with the emulated build. Through the stable ABI every
// torch from 2.10 on can load one binary, with any Python; one with CUDA kernels needs a torch with libtorch_cuda.so.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "attention.h"

#ifdef DGIQA_WITH_CUDA
extern "C" int dgiqa_window_attention_emulated(const dgiqa_attention* arguments, void* stream);
#else
constexpr auto* dgiqa_window_attention_emulated = &dgiqa_window_attention;
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_status(int status) {
  STD_TORCH_CHECK(status == DGIQA_OK, "dgiqa attention kernel: ", dgiqa_status_text(status));
}

void check_half(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Half, name, " is not float16, the kernels' only type");
}

int32_t size_of(int64_t size, const char* what) {
  STD_TORCH_CHECK(size <= INT32_MAX, what, " is ", size, ", more than the kernels count to");
  return int32_t(size);
}

// The arguments of a call from its tensors; the kernel checks the other sizes itself.
dgiqa_attention window_arguments(const Tensor& qkv, const Tensor& bias, const Tensor& qkv_bias, int64_t shift,
                                 double scale, Tensor& out) {
  const int64_t heads = bias.size(0), channels = qkv.size(3) / 3, tokens = qkv.size(1) * qkv.size(2);
  dgiqa_attention a{};
  const auto* q = static_cast<const uint16_t*>(qkv.data_ptr());
  const auto* padding = static_cast<const uint16_t*>(qkv_bias.data_ptr());
  a.q = q, a.k = q + channels, a.v = q + 2 * channels, a.out = out.data_ptr();
  a.q_stride = a.k_stride = a.v_stride = {tokens * 3 * channels, 3 * channels};
  a.out_stride = {tokens * channels, channels};
  a.bias = bias.data_ptr();
  a.pad_k = padding + channels, a.pad_v = padding + 2 * channels;
  a.batch = size_of(qkv.size(0), "batch"), a.height = size_of(qkv.size(1), "height");
  a.width = size_of(qkv.size(2), "width"), a.heads = size_of(heads, "heads");
  a.head_dim = size_of(channels / heads, "head dimension"), a.shift = size_of(shift, "shift"), a.scale = float(scale);
  return a;
}

template <class Launch>
Tensor window(const Tensor& qkv, const Tensor& bias, const Tensor& qkv_bias, int64_t shift, double scale,
              Launch launch) {
  for (const auto& [tensor, name] : {std::pair{&qkv, "qkv"}, {&bias, "bias"}, {&qkv_bias, "qkv_bias"}}) {
    check_half(*tensor, name);
    STD_TORCH_CHECK(tensor->is_contiguous(), name, " is not contiguous");
    STD_TORCH_CHECK(tensor->device() == qkv.device(), name, " is on another device than qkv");
  }
  STD_TORCH_CHECK(qkv.dim() == 4, "qkv has ", qkv.dim(), " dimensions; wanted [B,H,W,3C]");
  STD_TORCH_CHECK(bias.dim() == 5 && bias.size(0) > 0 && bias.numel() == bias.size(0) * DGIQA_BIAS_PER_HEAD,
                  "bias is not [heads,4,7,32,4]; make it with dgiqa.nn.attention.pack_bias");
  STD_TORCH_CHECK(qkv.size(3) % (3 * bias.size(0)) == 0, "qkv has ", qkv.size(3), " channels for ", bias.size(0), " heads");
  STD_TORCH_CHECK(qkv_bias.numel() == qkv.size(3), "qkv_bias has ", qkv_bias.numel(), " elements; wanted ", qkv.size(3));
  Tensor out = torch::stable::new_empty(qkv, {qkv.size(0), qkv.size(1), qkv.size(2), qkv.size(3) / 3});
  const dgiqa_attention a = window_arguments(qkv, bias, qkv_bias, shift, scale, out);
  check_status(launch(a, qkv));
  return out;
}

template <class Launch>
Tensor cross(const Tensor& q, const Tensor& kv, int64_t heads, double scale, Launch launch) {
  check_half(q, "q"), check_half(kv, "kv");
  STD_TORCH_CHECK(q.device() == kv.device(), "kv is on another device than q");
  STD_TORCH_CHECK(q.dim() == 3 && q.size(0) == DGIQA_WINDOW_TOKENS, "q is not [49,N,C]");
  STD_TORCH_CHECK(heads > 0 && q.size(2) % heads == 0, "q has ", q.size(2), " channels for ", heads, " heads");
  STD_TORCH_CHECK(kv.dim() == 3 && kv.size(0) == q.size(0) && kv.size(1) == q.size(1) && kv.size(2) == 2 * q.size(2),
                  "kv is not [49,N,2C]");
  STD_TORCH_CHECK(q.stride(2) == 1 && kv.stride(2) == 1, "channels are not contiguous");
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)});
  dgiqa_attention a{};
  a.q = q.data_ptr(), a.k = kv.data_ptr(), a.out = out.data_ptr();
  a.v = static_cast<const uint16_t*>(kv.data_ptr()) + q.size(2);
  a.q_stride = {q.stride(1), q.stride(0)};
  a.k_stride = a.v_stride = {kv.stride(1), kv.stride(0)};
  a.out_stride = {out.stride(1), out.stride(0)};
  a.batch = size_of(q.size(1), "batch"), a.height = a.width = DGIQA_WINDOW, a.heads = size_of(heads, "heads");
  a.head_dim = size_of(q.size(2) / heads, "head dimension"), a.scale = float(scale);
  check_status(launch(a, q));
  return out;
}

int on_cpu(const dgiqa_attention& a, const Tensor&) { return dgiqa_window_attention_emulated(&a, nullptr); }

Tensor window_cpu(const Tensor& qkv, const Tensor& bias, const Tensor& qkv_bias, int64_t shift, double scale) {
  return window(qkv, bias, qkv_bias, shift, scale, on_cpu);
}

Tensor cross_cpu(const Tensor& q, const Tensor& kv, int64_t heads, double scale) {
  return cross(q, kv, heads, scale, on_cpu);
}

#ifdef DGIQA_WITH_CUDA
// The launch goes to the tensor's device, whichever is current. Torch's stream getter is in libtorch_cuda.so, which
// CMake links explicitly: torch loads its libraries with local symbols, so an undefined name would not be found.
int on_cuda(const dgiqa_attention& a, const Tensor& tensor) {
  const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return dgiqa_window_attention(&a, stream);
}

Tensor window_cuda(const Tensor& qkv, const Tensor& bias, const Tensor& qkv_bias, int64_t shift, double scale) {
  return window(qkv, bias, qkv_bias, shift, scale, on_cuda);
}

Tensor cross_cuda(const Tensor& q, const Tensor& kv, int64_t heads, double scale) {
  return cross(q, kv, heads, scale, on_cuda);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dgiqa, CPU, m) {
  m.impl("window_attention", TORCH_BOX(&window_cpu));
  m.impl("cross_attention", TORCH_BOX(&cross_cpu));
}

#ifdef DGIQA_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(dgiqa, CUDA, m) {
  m.impl("window_attention", TORCH_BOX(&window_cuda));
  m.impl("cross_attention", TORCH_BOX(&cross_cuda));
}
#endif
