// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/layout_size.h"

#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/cli/args.h"
#include "proto/presets.h"

namespace statepool::cli {
namespace {

constexpr uint64_t kStateBytesMax = uint64_t{1} << 63;

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

absl::StatusOr<v1::Layout> FromPreset(const v1::LayoutPreset& preset) {
  v1::Layout layout;
  const std::optional<PresetFault> fault = LayoutOfPreset(preset, &layout);
  if (!fault.has_value()) return layout;
  return UsageError(fault->field.empty() ? "preset" : fault->field, fault->what);
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

const std::vector<Model>& Models() {
  static const auto* const models = [] {
    auto* const all = new std::vector<Model>;
    const auto add = [&](const char* name) {
      all->push_back({name, {}});
      return &all->back().preset;
    };
    const auto mamba1 = [&](const char* name, uint32_t layers, uint64_t intermediate_size) {
      v1::Mamba1Preset& p = *add(name)->mutable_mamba1();
      p.set_layers(layers);
      p.set_intermediate_size(intermediate_size);
      p.set_state_size(16);
    };
    const auto mamba2 = [&](const char* name, uint32_t layers, uint64_t heads, uint64_t groups, uint64_t state_size) {
      v1::Mamba2Preset& p = *add(name)->mutable_mamba2();
      p.set_layers(layers);
      p.set_heads(heads);
      p.set_head_dim(64);
      p.set_groups(groups);
      p.set_state_size(state_size);
    };
    const auto gated_delta_net = [&](const char* name, uint32_t layers) {
      v1::GatedDeltaNetPreset& p = *add(name)->mutable_gated_delta_net();
      p.set_layers(layers);
      p.set_key_heads(16);
      p.set_key_dim(128);
      p.set_value_heads(32);
      p.set_value_dim(128);
    };
    v1::ShortConvPreset& lfm2 = *add("LFM2 1.2B")->mutable_short_conv();
    lfm2.set_layers(10);
    lfm2.set_channels(2048);
    lfm2.set_conv_kernel(3);
    mamba1("Mamba-130m", 24, 1536);
    mamba1("Mamba-1.4b", 48, 4096);
    v1::RwkvPreset& rwkv7 = *add("RWKV-7 2.9B")->mutable_rwkv7();
    rwkv7.set_layers(32);
    rwkv7.set_hidden_size(2560);
    mamba1("Mamba-2.8b", 64, 5120);
    mamba1("Falcon-Mamba-7B", 64, 8192);
    v1::KdaPreset& kimi = *add("Kimi-Linear-48B")->mutable_kda();
    kimi.set_layers(20);
    kimi.set_heads(32);
    kimi.set_head_dim(128);
    mamba2("Nemotron-3-Nano", 23, 64, 8, 128);
    gated_delta_net("Qwen3.5-35B-A3B", 30);
    gated_delta_net("Qwen3-Next-80B", 36);
    mamba2("Nemotron-H-8B", 24, 128, 8, 128);
    mamba2("Granite-4 H-Small", 36, 128, 1, 128);
    mamba2("Mamba2-2.7b", 64, 80, 1, 128);
    mamba2("Codestral Mamba", 64, 128, 8, 128);
    v1::LinearAttentionPreset& minimax = *add("MiniMax-Text-01")->mutable_linear_attention();
    minimax.set_layers(70);
    minimax.set_heads(64);
    minimax.set_head_dim(128);
    mamba2("Nemotron-H-56B", 54, 256, 8, 256);
    return all;
  }();
  return *models;
}

Json SizeOfModel(const Model& model) {
  v1::Layout layout;
  LayoutOfPreset(model.preset, &layout);
  const Json sizes = *SizesOf(layout);
  uint64_t bytes = 0;
  (void)absl::SimpleAtoi(sizes.Find("state_bytes")->text(), &bytes);
  const auto* const family = v1::LayoutPreset::descriptor()->FindFieldByNumber(model.preset.family_case());
  Json row = Json::Object();
  row.Set("name", model.name).Set("family", family->name()).Set("layers", layout.tensors(0).layers_size());
  row.Set("state_bytes", bytes).Set("megabytes", Json(std::round(static_cast<double>(bytes) / 1e4) / 100));
  return row;
}

}  // namespace statepool::cli
