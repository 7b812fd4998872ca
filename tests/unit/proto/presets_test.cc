// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Presets against the shapes that the engines' own formulas give, written down here once more.
#include "proto/presets.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace statepool {
namespace {

v1::LayoutPreset Parse(const std::string& text) {
  v1::LayoutPreset preset;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &preset)) << text;
  return preset;
}

v1::Layout Made(const std::string& preset) {
  v1::Layout layout;
  const std::optional<PresetFault> fault = LayoutOfPreset(Parse(preset), &layout);
  EXPECT_FALSE(fault.has_value()) << preset << ": " << fault->field << " " << fault->what;
  return layout;
}

// "name KIND DTYPE [axis size, ...] /axis sizes:groups", "+" behind a shared section's.
std::string Describe(const v1::TensorSpec& tensor) {
  std::string text =
      absl::StrCat(tensor.name(), " ", v1::TensorKind_Name(tensor.kind()), " ", v1::DType_Name(tensor.dtype()), " [");
  absl::StrAppend(&text,
                  absl::StrJoin(tensor.axes(), ", ",
                                [](std::string* out, const v1::Axis& axis) {
                                  absl::StrAppend(out, axis.name(), " ", axis.size());
                                }),
                  "]");
  if (!tensor.has_sharding()) return text;
  const v1::Sharding& s = tensor.sharding();
  absl::StrAppend(&text, " /", tensor.axes(static_cast<int>(s.axis())).name());
  for (int i = 0; i < s.sections_size(); ++i)
    absl::StrAppend(&text, " ", s.sections(i), ":", s.section_groups(i), s.section_shared(i) ? "+" : "");
  return text;
}

std::vector<std::string> TensorsOf(const std::string& preset) {
  std::vector<std::string> tensors;
  const v1::Layout layout = Made(preset);
  for (const v1::TensorSpec& tensor : layout.tensors()) tensors.push_back(Describe(tensor));
  return tensors;
}

using Tensors = std::vector<std::string>;

TEST(PresetsTest, EachFamilyHasItsTensors) {
  EXPECT_EQ(TensorsOf("mamba1 { layers: 2 intermediate_size: 48 state_size: 16 }"),
            (Tensors{"conv CONV BFLOAT16 [tap 3, channel 48] /channel",
                     "ssm RECURRENT FLOAT32 [channel 48, state 16] /channel"}));
  // The convolution runs over x, B and C.
  EXPECT_EQ(TensorsOf("mamba2 { layers: 2 heads: 6 head_dim: 8 state_size: 16 groups: 2 conv_dtype: FLOAT16 }"),
            (Tensors{"conv CONV FLOAT16 [tap 3, channel 112] /channel 48:6 32:2+ 32:2+",
                     "ssm RECURRENT FLOAT32 [head 6, head_dim 8, state 16] /head"}));
  EXPECT_EQ(TensorsOf("mamba2 { layers: 1 heads: 6 head_dim: 8 state_size: 16 }")[0],
            "conv CONV BFLOAT16 [tap 3, channel 80] /channel 48:6 16:1+ 16:1+");
  // The convolution runs over q, k and v.
  EXPECT_EQ(TensorsOf("gated_delta_net { layers: 2 key_heads: 2 key_dim: 8 value_heads: 4 value_dim: 16 }"),
            (Tensors{"conv CONV BFLOAT16 [tap 3, channel 96] /channel 16:2 16:2 64:4",
                     "delta RECURRENT FLOAT32 [head 4, key 8, value 16] /head"}));
  EXPECT_EQ(TensorsOf("kda { layers: 2 heads: 4 head_dim: 16 }"),
            (Tensors{"conv CONV BFLOAT16 [tap 3, channel 192] /channel 64:4 64:4 64:4",
                     "delta RECURRENT FLOAT32 [head 4, key 16, value 16] /head"}));
  EXPECT_EQ(TensorsOf("kda { layers: 2 heads: 4 head_dim: 16 key_heads: 2 key_dim: 8 separate_convs: true }"),
            (Tensors{"conv_q CONV BFLOAT16 [tap 3, channel 64] /channel 64:4",
                     "conv_k CONV BFLOAT16 [tap 3, channel 16] /channel 16:2",
                     "conv_v CONV BFLOAT16 [tap 3, channel 16] /channel 16:2",
                     "delta RECURRENT FLOAT32 [head 4, key 16, value 16] /head"}));
  EXPECT_EQ(TensorsOf("linear_attention { layers: 2 heads: 4 head_dim: 16 recurrent_dtype: BFLOAT16 }"),
            (Tensors{"kv RECURRENT BFLOAT16 [head 4, key 16, value 16] /head"}));
  EXPECT_EQ(TensorsOf("short_conv { layers: 2 channels: 32 conv_kernel: 3 }"),
            (Tensors{"conv CONV BFLOAT16 [tap 2, channel 32] /channel"}));
  EXPECT_EQ(TensorsOf("rwkv4 { layers: 2 hidden_size: 32 attention_size: 48 }"),
            (Tensors{"att_shift SHIFT BFLOAT16 [channel 32]", "aa RECURRENT FLOAT32 [channel 48] /channel",
                     "bb RECURRENT FLOAT32 [channel 48] /channel", "pp RECURRENT FLOAT32 [channel 48] /channel",
                     "ffn_shift SHIFT BFLOAT16 [channel 32]"}));
  EXPECT_EQ(TensorsOf("rwkv4_seed { layers: 2 hidden_size: 32 shift_dtype: FLOAT32 }"),
            (Tensors{"aa RECURRENT FLOAT32 [channel 32] /channel", "ab RECURRENT FLOAT32 [channel 32] /channel",
                     "att_x_prev SHIFT FLOAT32 [channel 32]", "ffn_x_prev SHIFT FLOAT32 [channel 32]"}));
  const auto rwkv = [](const std::string& matrix) {
    return Tensors{"att_shift SHIFT BFLOAT16 [channel 128]", absl::StrCat("wkv RECURRENT FLOAT32 [", matrix, "] /head"),
                   "ffn_shift SHIFT BFLOAT16 [channel 128]"};
  };
  EXPECT_EQ(TensorsOf("rwkv5 { layers: 2 hidden_size: 128 }"), rwkv("head 2, key 64, value 64"));
  EXPECT_EQ(TensorsOf("rwkv6 { layers: 2 hidden_size: 128 }"), rwkv("head 2, key 64, value 64"));
  EXPECT_EQ(TensorsOf("rwkv7 { layers: 2 hidden_size: 128 head_size: 32 }"), rwkv("head 4, value 32, key 32"));
}

TEST(PresetsTest, TheMaximumOfRwkv4BeginsBelowEverything) {
  const v1::Layout layout = Made("rwkv4 { layers: 1 hidden_size: 8 }");
  for (const v1::TensorSpec& tensor : layout.tensors()) {
    EXPECT_EQ(tensor.initial().constant(), tensor.name() == "pp" ? -1e30 : 0) << tensor.name();
  }
}

TEST(PresetsTest, LayersAreTheModelsOwn) {
  const auto layers = [](const std::string& preset) {
    std::vector<std::string> all;
    const v1::Layout layout = Made(preset);
    for (const v1::TensorSpec& tensor : layout.tensors()) all.push_back(absl::StrJoin(tensor.layers(), ","));
    return all;
  };
  EXPECT_EQ(layers("mamba1 { layers: 3 intermediate_size: 4 state_size: 1 }"), (Tensors{"0,1,2", "0,1,2"}));
  EXPECT_EQ(layers("short_conv { channels: 4 } layer_ids: [1, 5, 9]"), (Tensors{"1,5,9"}));
  EXPECT_EQ(layers("short_conv { layers: 2 channels: 4 } layer_ids: [0, 7]"), (Tensors{"0,7"}));
}

TEST(PresetsTest, AHybridHasTheTensorsOfItsParts) {
  const v1::Layout layout = Made(
      "model_id: 'm' hybrid {"
      "  parts { prefix: 'ssm.' layer_ids: [0, 2] mamba1 { intermediate_size: 4 state_size: 2 } }"
      "  parts { prefix: 'short.' layer_ids: [1] short_conv { channels: 4 } } }"
      "initial { key: 'short.conv' value { constant: 2 } }");
  Tensors names;
  for (const v1::TensorSpec& tensor : layout.tensors())
    names.push_back(absl::StrCat(tensor.name(), " ", absl::StrJoin(tensor.layers(), ",")));
  EXPECT_EQ(names, (Tensors{"ssm.conv 0,2", "ssm.ssm 0,2", "short.conv 1"}));
  EXPECT_EQ(layout.model_id(), "m");
  EXPECT_EQ(layout.tensors(2).initial().constant(), 2);
  EXPECT_FALSE(layout.tensors(0).has_initial());
}

TEST(PresetsTest, WhatMakesNoSenseNamesItsField) {
  const std::vector<std::pair<std::string, std::string>> faults = {
      {"", ""},
      {"mamba1 { intermediate_size: 4 state_size: 2 }", "mamba1.layers"},
      {"mamba1 { layers: 4097 intermediate_size: 4 state_size: 2 }", "mamba1.layers"},
      {"mamba1 { layers: 1 state_size: 2 }", "mamba1.intermediate_size"},
      {"mamba1 { layers: 1 intermediate_size: 4 }", "mamba1.state_size"},
      {"mamba1 { layers: 1 intermediate_size: 4294967297 state_size: 2 }", "mamba1.intermediate_size"},
      {"mamba1 { layers: 1 intermediate_size: 4 state_size: 2 conv_kernel: 1 }", "mamba1.conv_kernel"},
      {"mamba2 { layers: 1 heads: 4294967296 head_dim: 4294967296 state_size: 2 }", "mamba2.head_dim"},
      {"mamba2 { layers: 1 heads: 4 head_dim: 4 state_size: 4294967296 groups: 4294967296 }", "mamba2.groups"},
      {"mamba2 { layers: 1 heads: 3 head_dim: 4 state_size: 4 groups: 2 }", "mamba2.heads"},
      {"gated_delta_net { layers: 1 key_heads: 4 key_dim: 4 value_heads: 6 value_dim: 4 }",
       "gated_delta_net.value_heads"},
      {"gated_delta_net { layers: 1 key_heads: 4 key_dim: 4 value_heads: 8 }", "gated_delta_net.value_dim"},
      {"kda { layers: 1 heads: 4 }", "kda.head_dim"},
      {"linear_attention { layers: 1 head_dim: 4 }", "linear_attention.heads"},
      {"short_conv { layers: 1 }", "short_conv.channels"},
      {"rwkv4 { layers: 1 }", "rwkv4.hidden_size"},
      {"rwkv6 { layers: 1 hidden_size: 100 }", "rwkv6.hidden_size"},
      {"rwkv7 { layers: 2 hidden_size: 64 } layer_ids: 1", "rwkv7.layers"},
      {"rwkv7 { hidden_size: 64 } layer_ids: [1, 1]", "layer_ids"},
      {"rwkv7 { layers: 1 hidden_size: 64 } initial { key: 'kv' value { constant: 1 } }", "initial[\"kv\"]"},
      {"hybrid { }", "hybrid.parts"},
      {"hybrid { parts { } }", "hybrid.parts[0]"},
      {"hybrid { parts { hybrid { } } }", "hybrid.parts[0].hybrid"},
      {"hybrid { parts { model_id: 'm' rwkv7 { layers: 1 hidden_size: 64 } } }", "hybrid.parts[0].model_id"},
      {"hybrid { parts { rwkv7 { layers: 1 hidden_size: 64 } } parts { rwkv7 { layers: 1 } } }",
       "hybrid.parts[1].rwkv7.hidden_size"},
      {"hybrid { parts { rwkv7 { layers: 1 hidden_size: 64 } } } layer_ids: 1", "layer_ids"},
      {"hybrid { parts { rwkv7 { layers: 1 hidden_size: 64 } } } prefix: 'x'", "prefix"},
  };
  for (const auto& [preset, field] : faults) {
    v1::Layout layout;
    const std::optional<PresetFault> fault = LayoutOfPreset(Parse(preset), &layout);
    ASSERT_TRUE(fault.has_value()) << preset;
    EXPECT_EQ(fault->field, field) << preset;
    EXPECT_NE(fault->what, "") << preset;
  }
  v1::LayoutPreset preset = Parse("mamba1 { layers: 1 intermediate_size: 4 state_size: 2 }");
  preset.mutable_mamba1()->set_recurrent_dtype(static_cast<v1::DType>(99));
  v1::Layout layout;
  EXPECT_EQ(LayoutOfPreset(preset, &layout)->field, "mamba1.recurrent_dtype");
}

TEST(PresetsTest, ATensorIsThatOfTheFieldsWhichMadeIt) {
  const auto fields = [](const std::string& preset, int tensor) {
    const PresetFields found = FieldsOfTensor(Parse(preset), tensor);
    return Tensors{found.family, found.prefix, found.initial};
  };
  EXPECT_EQ(fields("prefix: 'x.' rwkv4 { layers: 1 hidden_size: 4 }", 3),
            (Tensors{"rwkv4", "prefix", "initial[\"x.pp\"]"}));
  const std::string hybrid =
      "hybrid { parts { rwkv7 { layers: 1 hidden_size: 64 } } parts { prefix: 'c' short_conv { layers: 1 channels: 4 } "
      "} "
      "parts { mamba1 { layers: 1 intermediate_size: 4 state_size: 2 } } }";
  EXPECT_EQ(fields(hybrid, 0), (Tensors{"hybrid.parts[0].rwkv7", "hybrid.parts[0].prefix", "initial[\"att_shift\"]"}));
  EXPECT_EQ(fields(hybrid, 2), (Tensors{"hybrid.parts[0].rwkv7", "hybrid.parts[0].prefix", "initial[\"ffn_shift\"]"}));
  EXPECT_EQ(fields(hybrid, 3), (Tensors{"hybrid.parts[1].short_conv", "hybrid.parts[1].prefix", "initial[\"cconv\"]"}));
  EXPECT_EQ(fields(hybrid, 5), (Tensors{"hybrid.parts[2].mamba1", "hybrid.parts[2].prefix", "initial[\"ssm\"]"}));
}

}  // namespace
}  // namespace statepool
