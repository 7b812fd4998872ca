// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Sizes of states that the tool computes itself, against sizes computed by hand. That they are the daemon's too:
// tests/integration/test_cli.py.
#include <gtest/gtest.h>

#include "client/cli/commands.h"
#include "client/cli/layout_size.h"
#include "client/cpp/errors.h"

namespace statepool::cli {
namespace {

std::string BytesOf(const v1::LayoutPreset& preset) {
  const absl::StatusOr<v1::Layout> layout = FromPreset(preset);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return SizesOf(*layout)->Find("state_bytes")->text();
}

std::string FieldOf(const absl::Status& status) {
  EXPECT_EQ(client::GetErrorDetail(status).reason, "USAGE");
  return client::GetErrorDetail(status).field;
}

TEST(LayoutSizeTest, PresetsHaveTheContractsFormulas) {
  v1::LayoutPreset preset;
  preset.mutable_mamba1()->set_layers(24);
  preset.mutable_mamba1()->set_intermediate_size(1536);
  preset.mutable_mamba1()->set_state_size(16);
  EXPECT_EQ(BytesOf(preset), std::to_string(24 * (3 * 1536 * 2 + 1536 * 16 * 4)));
  preset.mutable_mamba1()->set_conv_kernel(2);
  preset.mutable_mamba1()->set_recurrent_dtype(v1::FLOAT16);
  EXPECT_EQ(BytesOf(preset), std::to_string(24 * (1 * 1536 * 2 + 1536 * 16 * 2)));

  preset.mutable_mamba2()->set_layers(48);
  preset.mutable_mamba2()->set_heads(80);
  preset.mutable_mamba2()->set_head_dim(64);
  preset.mutable_mamba2()->set_state_size(128);
  EXPECT_EQ(BytesOf(preset), std::to_string(48 * (3 * (80 * 64 + 2 * 128) * 2 + 80 * 64 * 128 * 4)));
  preset.mutable_mamba2()->set_groups(8);
  preset.mutable_mamba2()->set_conv_dtype(v1::FLOAT32);
  EXPECT_EQ(BytesOf(preset), std::to_string(48 * (3 * (80 * 64 + 2 * 8 * 128) * 4 + 80 * 64 * 128 * 4)));

  preset.mutable_rwkv7()->set_layers(12);
  preset.mutable_rwkv7()->set_hidden_size(768);
  EXPECT_EQ(BytesOf(preset), std::to_string(12 * (768 * 2 + 12 * 64 * 64 * 4 + 768 * 2)));
}

// Decimal megabytes a sequence: one shard, convolutions in 2 bytes, recurrences in 4.
TEST(LayoutSizeTest, KnownModelsHaveTheirSizes) {
  const std::vector<std::pair<std::string, double>> expected = {
      {"LFM2 1.2B", 0.08},        {"Mamba-130m", 2.58},        {"Mamba-1.4b", 13.76},
      {"RWKV-7 2.9B", 21.3},      {"Mamba-2.8b", 22.94},       {"Falcon-Mamba-7B", 36.7},
      {"Kimi-Linear-48B", 43.42}, {"Nemotron-3-Nano", 49.08},  {"Qwen3.5-35B-A3B", 64.39},
      {"Qwen3-Next-80B", 77.27},  {"Nemotron-H-8B", 102.14},   {"Granite-4 H-Small", 152.82},
      {"Mamba2-2.7b", 169.84},    {"Codestral Mamba", 272.37}, {"MiniMax-Text-01", 293.6},
      {"Nemotron-H-56B", 912.61}};
  ASSERT_EQ(Models().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const Json row = SizeOfModel(Models()[i]);
    EXPECT_EQ(row.Find("name")->text(), expected[i].first);
    EXPECT_DOUBLE_EQ(std::stod(row.Find("megabytes")->text()), expected[i].second) << expected[i].first;
  }
}

TEST(LayoutSizeTest, EachTensorHasItsBytes) {
  v1::Layout layout;
  v1::TensorSpec& tensor = *layout.add_tensors();
  tensor.set_name("wkv");
  tensor.set_dtype(v1::FLOAT8_E4M3);
  for (uint32_t layer : {0, 3, 7}) tensor.add_layers(layer);
  tensor.add_axes()->set_size(5);
  tensor.add_axes()->set_size(11);
  *layout.add_tensors() = tensor;
  layout.mutable_tensors(1)->set_dtype(v1::INT64);
  const Json sizes = *SizesOf(layout);
  EXPECT_EQ(sizes.Find("state_bytes")->text(), std::to_string(9 * 3 * 55));
  const auto& tensors = sizes.Find("tensors")->members();
  EXPECT_EQ(tensors[0].second.Find("layer_bytes")->text(), "55");
  EXPECT_EQ(tensors[0].second.Find("tensor_bytes")->text(), "165");
  EXPECT_EQ(tensors[1].second.Find("tensor_bytes")->text(), "1320");
}

TEST(LayoutSizeTest, WhatMakesNoSenseNamesItsParameter) {
  v1::LayoutPreset preset;
  EXPECT_EQ(FieldOf(FromPreset(preset).status()), "preset");
  preset.mutable_rwkv7()->set_hidden_size(768);
  EXPECT_EQ(FieldOf(FromPreset(preset).status()), "rwkv7.layers");
  preset.mutable_rwkv7()->set_layers(12);
  preset.mutable_rwkv7()->set_hidden_size(100);
  EXPECT_EQ(FieldOf(FromPreset(preset).status()), "rwkv7.hidden_size");
  preset.mutable_mamba1()->set_layers(1);
  preset.mutable_mamba1()->set_intermediate_size(1);
  preset.mutable_mamba1()->set_state_size(1);
  preset.mutable_mamba1()->set_conv_kernel(1);
  EXPECT_EQ(FieldOf(FromPreset(preset).status()), "mamba1.conv_kernel");
  preset.mutable_mamba2()->set_layers(1);
  preset.mutable_mamba2()->set_heads(uint64_t{1} << 32);
  preset.mutable_mamba2()->set_head_dim(uint64_t{1} << 32);
  preset.mutable_mamba2()->set_state_size(1);
  EXPECT_EQ(FieldOf(FromPreset(preset).status()), "mamba2.head_dim");
}

TEST(LayoutSizeTest, NoSizeOverflows) {
  v1::Layout layout;
  layout.add_tensors()->set_name("x");
  EXPECT_EQ(FieldOf(SizesOf(layout).status()), "dtype");
  layout.mutable_tensors(0)->set_dtype(v1::FLOAT64);
  layout.mutable_tensors(0)->add_layers(0);
  layout.mutable_tensors(0)->add_axes()->set_size(uint64_t{1} << 60);
  EXPECT_EQ(SizesOf(layout)->Find("state_bytes")->text(), "9223372036854775808");
  layout.mutable_tensors(0)->add_layers(1);
  EXPECT_EQ(FieldOf(SizesOf(layout).status()), "axes");
  layout.mutable_tensors(0)->add_axes()->set_size(uint64_t{1} << 60);
  EXPECT_EQ(FieldOf(SizesOf(layout).status()), "axes");
}

TEST(ParseRangesTest, TakesAscendingNumbersAndRanges) {
  EXPECT_EQ(*ParseRanges("--layers", "0-3,7"), (std::vector<uint32_t>{0, 1, 2, 3, 7}));
  EXPECT_EQ(*ParseRanges("--layers", "5"), (std::vector<uint32_t>{5}));
  for (const char* bad : {"", "a", "3-1", "1,1", "2,1", "0-3,2", "-1", "1-", "1-2-3", "0-99999999", "1,,2"}) {
    EXPECT_EQ(FieldOf(ParseRanges("--layers", bad).status()), "--layers") << bad;
  }
}

}  // namespace
}  // namespace statepool::cli
