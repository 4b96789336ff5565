// The TensorRT plugin behind the ONNX node DgiqaWindowAttention: qkv [B,H,W,3C], bias [heads,4,7,32,4], qkv_bias [3C]
// -> out [B,H,W,C], all float16. Loaded by IPluginRegistry::loadLibrary and by trtexec --dynamicPlugins.
#include <NvInfer.h>
#include <NvInferRuntimePlugin.h>

#include <array>
#include <cstring>
#include <new>

#include "attention.h"

namespace {

using namespace nvinfer1;

constexpr const char* kName = "DgiqaWindowAttention";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "";

struct Attributes {
  int32_t heads = 0, shift = 0;
  float scale = 0.f;
};

// A list of fields that points at attributes, or at nothing if only the names are needed.
class Fields {
 public:
  explicit Fields(const Attributes* a)
      : fields_{PluginField{"heads", a ? &a->heads : nullptr, PluginFieldType::kINT32, 1},
                PluginField{"shift", a ? &a->shift : nullptr, PluginFieldType::kINT32, 1},
                PluginField{"scale", a ? &a->scale : nullptr, PluginFieldType::kFLOAT32, 1}} {
    collection_.nbFields = int32_t(fields_.size());
    collection_.fields = fields_.data();
  }
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;
  const PluginFieldCollection* collection() const { return &collection_; }

 private:
  std::array<PluginField, 3> fields_;
  PluginFieldCollection collection_{};
};

dgiqa_attention arguments_of(const Attributes& attributes, const Dims& shape) {
  const int64_t channels = shape.d[3] / 3, tokens = shape.d[1] * shape.d[2];
  dgiqa_attention a{};
  a.q_stride = a.k_stride = a.v_stride = {tokens * 3 * channels, 3 * channels};
  a.out_stride = {tokens * channels, channels};
  a.batch = int32_t(shape.d[0]), a.height = int32_t(shape.d[1]), a.width = int32_t(shape.d[2]);
  a.heads = attributes.heads, a.head_dim = int32_t(channels / attributes.heads);
  a.shift = attributes.shift, a.scale = attributes.scale;
  return a;
}

bool shapes_fit(const Attributes& attributes, const Dims& qkv, const Dims& bias, const Dims& qkv_bias) {
  if (qkv.nbDims != 4 || bias.nbDims != 5 || qkv_bias.nbDims != 1) return false;
  int64_t packed = 1;
  for (int32_t i = 0; i < bias.nbDims; ++i) packed *= bias.d[i];
  return bias.d[0] == attributes.heads && packed == int64_t(attributes.heads) * DGIQA_BIAS_PER_HEAD &&
         qkv_bias.d[0] == qkv.d[3] && qkv.d[3] % (3 * attributes.heads) == 0;
}

class WindowAttention final : public IPluginV3,
                              public IPluginV3OneCore,
                              public IPluginV3OneBuild,
                              public IPluginV3OneRuntime {
 public:
  explicit WindowAttention(const Attributes& attributes) : attributes_(attributes), fields_(&attributes_) {}

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new (std::nothrow) WindowAttention(attributes_); }
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }
  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t,
                                 int32_t) noexcept override {
    const PluginTensorDesc& tensor = tensors[position].desc;
    return tensor.format == TensorFormat::kLINEAR && tensor.type == DataType::kHALF;
  }
  int32_t getOutputDataTypes(DataType* out, int32_t, const DataType* in, int32_t) const noexcept override {
    out[0] = in[0];
    return 0;
  }
  int32_t getOutputShapes(const DimsExprs* in, int32_t, const DimsExprs*, int32_t, DimsExprs* out, int32_t,
                          IExprBuilder& builder) noexcept override {
    out[0] = in[0];
    out[0].d[3] = builder.operation(DimensionOperation::kFLOOR_DIV, *in[0].d[3], *builder.constant(3));
    return 0;
  }
  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    return 0;
  }

  int32_t onShapeChange(const PluginTensorDesc* in, int32_t count, const PluginTensorDesc*, int32_t) noexcept override {
    return count == 3 && shapes_fit(attributes_, in[0].dims, in[1].dims, in[2].dims) ? 0 : -1;
  }
  int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                  void*, cudaStream_t stream) noexcept override {
    dgiqa_attention a = arguments_of(attributes_, in[0].dims);
    const int64_t channels = in[0].dims.d[3] / 3;
    const auto* qkv = static_cast<const uint16_t*>(inputs[0]);
    const auto* qkv_bias = static_cast<const uint16_t*>(inputs[2]);
    a.q = qkv, a.k = qkv + channels, a.v = qkv + 2 * channels;
    a.bias = inputs[1];
    a.pad_k = qkv_bias + channels, a.pad_v = qkv_bias + 2 * channels;
    a.out = outputs[0];
    return dgiqa_window_attention(&a, stream);
  }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return fields_.collection(); }

 private:
  Attributes attributes_;
  Fields fields_;
};

// Reads an attribute as an ONNX parser gives it: integers have 32 or 64 bits.
bool read(const PluginField& field, int32_t& value) {
  if (!field.data || field.length < 1) return false;
  if (field.type == PluginFieldType::kINT64) value = int32_t(*static_cast<const int64_t*>(field.data));
  else if (field.type == PluginFieldType::kINT32) value = *static_cast<const int32_t*>(field.data);
  else return false;
  return true;
}

bool read(const PluginField& field, float& value) {
  if (!field.data || field.length < 1 || field.type != PluginFieldType::kFLOAT32) return false;
  value = *static_cast<const float*>(field.data);
  return true;
}

class Creator final : public IPluginCreatorV3One {
 public:
  // Returns null, which TensorRT reports with the node's name, unless all three attributes are given.
  IPluginV3* createPlugin(const char*, const PluginFieldCollection* given, TensorRTPhase) noexcept override {
    Attributes attributes;
    int found = 0;
    for (int32_t i = 0; given && i < given->nbFields; ++i) {
      const PluginField& field = given->fields[i];
      if (!std::strcmp(field.name, "heads")) found += read(field, attributes.heads);
      if (!std::strcmp(field.name, "shift")) found += read(field, attributes.shift);
      if (!std::strcmp(field.name, "scale")) found += read(field, attributes.scale);
    }
    if (found != 3 || attributes.heads < 1) return nullptr;
    return new (std::nothrow) WindowAttention(attributes);
  }
  const PluginFieldCollection* getFieldNames() noexcept override { return names_.collection(); }
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  Fields names_{nullptr};
};

}  // namespace

extern "C" void setLoggerFinder(ILoggerFinder*) noexcept {}

extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
  static Creator creator;
  static IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
