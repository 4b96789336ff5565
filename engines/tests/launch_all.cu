// Runs every kernel once on small inputs and compares with constants here or the float64 reference: seconds under
// compute-sanitizer, without Python. Exits with 0, with 1 if a result is wrong, with 5 if there is no GPU.
//
//     build/launch_all && compute-sanitizer --tool racecheck build/launch_all
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../attention.h"
#include "../preprocess.h"

namespace {

int failures = 0;

void check(bool ok, const char* what, double error = 0) {
  std::printf("%s %s %.3g\n", ok ? "ok    " : "FAILED", what, error);
  failures += !ok;
}

// Device memory with the contents of `host`; host() reads it back.
template <class T>
struct Memory {
  T* at = nullptr;
  size_t count;
  explicit Memory(const std::vector<T>& host) : count(host.size()) {
    cudaMalloc(&at, count * sizeof(T));
    cudaMemcpy(at, host.data(), count * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Memory() { cudaFree(at); }
  std::vector<T> host() const {
    std::vector<T> copy(count);
    cudaMemcpy(copy.data(), at, count * sizeof(T), cudaMemcpyDeviceToHost);
    return copy;
  }
};

std::mt19937 generator(1);

std::vector<__half> random_halves(size_t count) {
  std::normal_distribution<float> normal;
  std::vector<__half> values(count);
  for (auto& value : values) value = __float2half(normal(generator));
  return values;
}

// One launch and the same in float64 on the host.
void window_attention(int batch, int height, int width, int heads, int shift) {
  const int channels = 32 * heads, tokens = height * width;
  const auto qkv = random_halves(size_t(batch) * tokens * 3 * channels), padding = random_halves(3 * channels);
  std::vector<float> plain(heads * 49 * 49);
  std::normal_distribution<float> normal;
  for (auto& value : plain) value = normal(generator);
  std::vector<uint16_t> packed(heads * DGIQA_BIAS_PER_HEAD);
  dgiqa_attention a{};
  a.batch = batch, a.height = height, a.width = width, a.heads = heads, a.head_dim = 32, a.shift = shift;
  a.scale = 1 / std::sqrt(32.f);
  dgiqa_pack_bias(plain.data(), heads, a.scale, packed.data());
  a.q_stride = a.k_stride = a.v_stride = {int64_t(tokens) * 3 * channels, 3 * channels};
  a.out_stride = {int64_t(tokens) * channels, channels};
  const auto place = [&](const __half* q, const __half* pad, const void* bias) {
    a.q = q, a.k = q + channels, a.v = q + 2 * channels, a.bias = bias;
    a.pad_k = pad + channels, a.pad_v = pad + 2 * channels;
  };
  place(qkv.data(), padding.data(), packed.data());
  std::vector<double> wanted(size_t(batch) * tokens * channels), rough(wanted.size());
  dgiqa_window_attention_reference(&a, wanted.data(), 0);
  dgiqa_window_attention_reference(&a, rough.data(), 1);
  const Memory<__half> q(qkv), pad(padding), out(std::vector<__half>(wanted.size(), __float2half(NAN)));
  const Memory<uint16_t> bias(packed);
  place(q.at, pad.at, bias.at);
  a.out = out.at;
  const int status = dgiqa_window_attention(&a, nullptr);
  double error = 0, budget = 0;
  const auto got = out.host();
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += std::pow(__half2float(got[i]) - wanted[i], 2);
    budget += 4 * std::pow(rough[i] - wanted[i], 2);
  }
  check(status == DGIQA_OK && error <= budget, "window attention, share of the budget", std::sqrt(error / budget));
}

// Grey stays grey, and a constant image stays constant, through every preprocessing step.
void preparing() {
  const int height = 300, width = 400, tile = 224;
  const Memory<uint8_t> image(std::vector<uint8_t>(3 * height * width, 128));
  const dgiqa_image seen{image.at, 3 * width, 3, 1, height, width};
  std::vector<float> steps(3 * 256);
  for (int i = 0; i < 3 * 256; ++i) steps[i] = float(i % 256);
  const Memory<float> levels(steps);
  const auto constant = [](const std::vector<float>& values, float wanted) {
    float worst = 0;
    for (const float value : values) worst = std::fmax(worst, std::isnan(value) ? INFINITY : std::fabs(value - wanted));
    return worst;
  };
  const std::vector<float> nothing(3 * 140 * 182, NAN);
  const Memory<float> input(nothing), reduced(nothing);
  dgiqa_depth_input_params cubic{seen, 140, 182, {1, 1, 1}, {0, 0, 0}, input.at, DGIQA_F32};
  const int first = dgiqa_depth_input(&cubic, nullptr);
  check(!first && constant(input.host(), 128) < 1e-3, "depth input", constant(input.host(), 128));
  dgiqa_reduce_params areas{seen, 140, 182, levels.at, reduced.at, DGIQA_F32};
  const int second = dgiqa_reduce(&areas, nullptr);
  check(!second && constant(reduced.host(), 128) == 0, "reduce", constant(reduced.host(), 128));
  std::vector<float> ramp(140 * 182);
  for (size_t i = 0; i < ramp.size(); ++i) ramp[i] = float(i % 182);
  const Memory<float> map(ramp);
  const Memory<uint32_t> range(std::vector<uint32_t>(3, 7));
  const dgiqa_depth depth{map.at, 140, 182, height, width, range.at};
  const int third = dgiqa_depth_range(&depth, nullptr);
  check(!third && range.host()[2] == 0 && range.host()[0] == (0x80000000u | 0x43350000u), "depth range");  // 181.0f
  const std::vector<int32_t> windows{0, 0, height - tile, width - tile};
  const std::vector<float> empty(2 * 3 * tile * tile, NAN);
  const Memory<float> rgb(empty), near(empty);
  dgiqa_tiles_params cut{seen, depth, height, width, tile, 2, windows.data(), levels.at, rgb.at, near.at, DGIQA_F32};
  const int fourth = dgiqa_tiles(&cut, nullptr);
  const auto levels_found = near.host();
  check(!fourth && constant(rgb.host(), 128) == 0 && levels_found[0] == 0, "tiles", constant(rgb.host(), 128));
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || !devices) {
    std::fprintf(stderr, "launch_all: no GPU\n");
    dgiqa_attention nothing{};
    return dgiqa_window_attention(&nothing, nullptr) == DGIQA_BAD_ARGUMENT ? 5 : 1;
  }
  for (const int shift : {0, 3}) {
    window_attention(2, 14, 14, 3, shift);
    window_attention(1, 10, 17, 6, shift);
  }
  window_attention(1, 7, 7, 5, 0);
  preparing();
  check(cudaDeviceSynchronize() == cudaSuccess && cudaGetLastError() == cudaSuccess, "no error left behind");
  return failures != 0;
}
