// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/layout_size.h"

#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/args.h"

namespace statepool::cli {
namespace {

constexpr uint64_t kSizeMax = uint64_t{1} << 32;  // of a parameter, so that sums of products fit
constexpr uint32_t kLayersMax = 65536;            // more than any model has
constexpr uint64_t kStateBytesMax = uint64_t{1} << 63;

// The first fault of a preset's parameters.
class Parameters {
 public:
  uint64_t Size(absl::string_view name, uint64_t value, uint64_t fallback = 0, uint64_t least = 1) {
    if (value == 0) value = fallback;
    if (value < least || value > kSizeMax) Fault(name, absl::StrCat("is ", least, "..2^32"));
    return value;
  }
  uint32_t Layers(uint32_t layers) {
    if (layers < 1 || layers > kLayersMax) Fault("layers", absl::StrCat("is 1..", kLayersMax));
    return layers;
  }
  void Fault(absl::string_view name, absl::string_view what) {
    if (status_.ok()) status_ = UsageError(name, absl::StrCat(name, " ", what));
  }
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

void AddTensor(absl::string_view name, v1::TensorKind kind, uint32_t layers, v1::DType dtype, v1::DType fallback,
               std::initializer_list<std::pair<const char*, uint64_t>> axes, v1::Layout* layout) {
  v1::TensorSpec& tensor = *layout->add_tensors();
  tensor.set_name(std::string(name));
  tensor.set_kind(kind);
  for (uint32_t layer = 0; layer < layers; ++layer) tensor.add_layers(layer);
  tensor.set_dtype(dtype == v1::DTYPE_UNSPECIFIED ? fallback : dtype);
  for (const auto& [axis_name, size] : axes) {
    v1::Axis& axis = *tensor.add_axes();
    axis.set_name(axis_name);
    axis.set_size(size);
  }
}

uint64_t BytesOf(v1::DType dtype) {
  switch (dtype) {
    case v1::FLOAT64:
    case v1::INT64: return 8;
    case v1::FLOAT32:
    case v1::INT32: return 4;
    case v1::FLOAT16:
    case v1::BFLOAT16:
    case v1::INT16: return 2;
    case v1::FLOAT8_E4M3:
    case v1::FLOAT8_E5M2:
    case v1::INT8:
    case v1::UINT8: return 1;
    default: return 0;
  }
}

// False: beyond kStateBytesMax.
bool Multiply(uint64_t factor, uint64_t* product) {
  if (factor != 0 && *product > kStateBytesMax / factor) return false;
  *product *= factor;
  return true;
}

}  // namespace

absl::StatusOr<v1::Layout> LayoutOfPreset(const v1::LayoutPreset& preset) {
  v1::Layout layout;
  layout.set_model_id(preset.model_id());
  Parameters check;
  switch (preset.family_case()) {
    case v1::LayoutPreset::kMamba1: {
      const v1::Mamba1Preset& p = preset.mamba1();
      const uint32_t layers = check.Layers(p.layers());
      const uint64_t channels = check.Size("intermediate_size", p.intermediate_size());
      const uint64_t states = check.Size("state_size", p.state_size());
      const uint64_t kernel = check.Size("conv_kernel", p.conv_kernel(), 4, 2);
      if (!check.status().ok()) break;
      AddTensor("conv", v1::CONV, layers, p.conv_dtype(), v1::BFLOAT16, {{"tap", kernel - 1}, {"channel", channels}},
                &layout);
      AddTensor("ssm", v1::RECURRENT, layers, p.recurrent_dtype(), v1::FLOAT32,
                {{"channel", channels}, {"state", states}}, &layout);
      break;
    }
    case v1::LayoutPreset::kMamba2: {
      const v1::Mamba2Preset& p = preset.mamba2();
      const uint32_t layers = check.Layers(p.layers());
      const uint64_t heads = check.Size("heads", p.heads());
      const uint64_t head_dim = check.Size("head_dim", p.head_dim());
      const uint64_t states = check.Size("state_size", p.state_size());
      const uint64_t groups = check.Size("groups", p.groups(), 1);
      const uint64_t kernel = check.Size("conv_kernel", p.conv_kernel(), 4, 2);
      uint64_t x = heads, bc = groups;
      if (!Multiply(head_dim, &x) || x > kStateBytesMax / 4) check.Fault("head_dim", "* heads is too large");
      if (!Multiply(states, &bc) || bc > kStateBytesMax / 8) check.Fault("groups", "* state_size is too large");
      if (!check.status().ok()) break;
      AddTensor("conv", v1::CONV, layers, p.conv_dtype(), v1::BFLOAT16, {{"tap", kernel - 1}, {"channel", x + 2 * bc}},
                &layout);
      AddTensor("ssm", v1::RECURRENT, layers, p.recurrent_dtype(), v1::FLOAT32,
                {{"head", heads}, {"head_dim", head_dim}, {"state", states}}, &layout);
      break;
    }
    case v1::LayoutPreset::kRwkv7: {
      const v1::Rwkv7Preset& p = preset.rwkv7();
      const uint32_t layers = check.Layers(p.layers());
      const uint64_t channels = check.Size("hidden_size", p.hidden_size());
      const uint64_t size = check.Size("head_size", p.head_size(), 64);
      if (size != 0 && channels % size != 0) check.Fault("hidden_size", "is a multiple of head_size");
      if (!check.status().ok()) break;
      AddTensor("att_shift", v1::SHIFT, layers, p.shift_dtype(), v1::BFLOAT16, {{"channel", channels}}, &layout);
      AddTensor("wkv", v1::RECURRENT, layers, p.wkv_dtype(), v1::FLOAT32,
                {{"head", channels / size}, {"value", size}, {"key", size}}, &layout);
      AddTensor("ffn_shift", v1::SHIFT, layers, p.shift_dtype(), v1::BFLOAT16, {{"channel", channels}}, &layout);
      break;
    }
    default: check.Fault("preset", "has no family");
  }
  if (!check.status().ok()) return check.status();
  return layout;
}

absl::StatusOr<Json> SizesOf(const v1::Layout& layout) {
  uint64_t state_bytes = 0;
  Json tensors = Json::Array();
  for (const v1::TensorSpec& tensor : layout.tensors()) {
    uint64_t layer_bytes = BytesOf(tensor.dtype());
    if (layer_bytes == 0) {
      return UsageError("dtype", absl::StrCat("tensor ", tensor.name(), " has dtype ", v1::DType_Name(tensor.dtype()),
                                              ", whose size this tool does not know"));
    }
    bool fits = true;
    for (const v1::Axis& axis : tensor.axes()) fits = fits && Multiply(axis.size(), &layer_bytes);
    uint64_t tensor_bytes = layer_bytes;
    fits = fits && Multiply(static_cast<uint64_t>(tensor.layers_size()), &tensor_bytes);
    if (!fits || tensor_bytes > kStateBytesMax - state_bytes)
      return UsageError("axes", absl::StrCat("tensor ", tensor.name(), " makes the state larger than 2^63 bytes"));
    state_bytes += tensor_bytes;
    const Json spec = ToJson(tensor);
    Json row = Json::Object();
    for (const char* key : {"name", "kind", "dtype", "layers", "axes"}) row.Set(key, *spec.Find(key));
    row.Set("layer_bytes", layer_bytes).Set("tensor_bytes", tensor_bytes);
    tensors.Add(std::move(row));
  }
  Json sizes = Json::Object();
  sizes.Set("state_bytes", state_bytes).Set("tensors", std::move(tensors));
  return sizes;
}

}  // namespace statepool::cli
