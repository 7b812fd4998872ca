// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Layouts of config.json files. That they are those of transformers' caches: tests/hf; that the Python client makes the
// same: tests/integration/test_hf_configs.py.
#include "client/cli/layout_hf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/cpp/errors.h"

namespace statepool::cli {
namespace {

using ::testing::ElementsAre;

v1::Layout Read(const std::string& config, const std::string& dtype = "") {
  const absl::StatusOr<v1::Layout> layout = LayoutFromHf(config, "m", dtype);
  EXPECT_TRUE(layout.ok()) << layout.status();
  return layout.value_or(v1::Layout());
}

std::string FieldOf(const std::string& config) {
  const absl::Status status = LayoutFromHf(config, "m", "").status();
  EXPECT_EQ(client::GetErrorDetail(status).reason, "USAGE") << status;
  return client::GetErrorDetail(status).field;
}

TEST(LayoutHfTest, AConfigThatSaysNothingHasTheDefaults) {
  const v1::Layout layout = Read(R"({"model_type":"mamba"})");
  EXPECT_EQ(layout.model_id(), "m");
  ASSERT_EQ(layout.tensors_size(), 2);
  EXPECT_EQ(layout.tensors(0).layers_size(), 32);
  EXPECT_EQ(layout.tensors(0).dtype(), v1::FLOAT32);
  EXPECT_EQ(layout.tensors(0).axes(0).size(), 3u);
  EXPECT_EQ(layout.tensors(0).axes(1).size(), 1536u);
  EXPECT_EQ(layout.tensors(1).axes(1).size(), 16u);
}

TEST(LayoutHfTest, TheDtypeOfTheWeightsIsTheCallersThenTheConfigsThenThatOfTheConfigAroundIt) {
  const std::string outer = R"({"model_type":"qwen3_5","dtype":"float16","text_config":{"num_hidden_layers":4)";
  EXPECT_EQ(Read(outer + "}}").tensors(0).dtype(), v1::FLOAT16);
  EXPECT_EQ(Read(outer + R"(,"torch_dtype":"torch.bfloat16"}})").tensors(0).dtype(), v1::BFLOAT16);
  EXPECT_EQ(Read(outer + R"(,"torch_dtype":"torch.bfloat16"}})", "float32").tensors(0).dtype(), v1::FLOAT32);
  EXPECT_EQ(Read(outer + "}}").tensors(1).dtype(), v1::FLOAT32);
}

TEST(LayoutHfTest, NumbersThatJsonDoesNotHaveAreReadOverButNotInStrings) {
  const v1::Layout layout =
      Read(R"({"model_type":"mamba2","limit":[-Infinity,Infinity],"eps":NaN,"say":"\"NaN","layer_types":"Infinity",)"
           R"("num_hidden_layers":2})");
  EXPECT_THAT(layout.tensors(0).layers(), ElementsAre(0, 1));
  EXPECT_EQ(FieldOf(R"({"model_type":"NaN"})"), "model_type");
  EXPECT_EQ(FieldOf(R"({"model_type":"mamba","state_size":NaN})"), "state_size");
}

TEST(LayoutHfTest, LayersAreThoseOfTheRuleThatAppliesFirst) {
  EXPECT_THAT(Read(R"({"model_type":"nemotron_h","hybrid_override_pattern":"M*-M"})").tensors(0).layers(),
              ElementsAre(0, 3));
  EXPECT_THAT(Read(R"({"model_type":"jamba","num_hidden_layers":5,"attn_layer_period":2,"attn_layer_offset":1})")
                  .tensors(0)
                  .layers(),
              ElementsAre(0, 2, 4));
  EXPECT_THAT(Read(R"({"model_type":"kimi_linear","num_hidden_layers":9})").tensors(0).layers(),
              ElementsAre(0, 1, 2, 3, 5, 6, 7));
  EXPECT_THAT(Read(R"({"model_type":"bamba","num_hidden_layers":3,"attn_layer_indices":[1]})").tensors(0).layers(),
              ElementsAre(0, 2));
  EXPECT_THAT(Read(R"({"model_type":"recurrent_gemma","num_hidden_layers":5,"block_types":["attention","recurrent"]})")
                  .tensors(0)
                  .layers(),
              ElementsAre(1, 3));
}

TEST(LayoutHfTest, WhatIsNoConfigIsRefused) {
  EXPECT_EQ(FieldOf(""), "CONFIG");
  EXPECT_EQ(FieldOf("[]"), "CONFIG");
  EXPECT_EQ(FieldOf("{\"model_type\":\"mamba\""), "CONFIG");
  EXPECT_EQ(FieldOf("{}"), "model_type");
  EXPECT_EQ(FieldOf(R"({"model_type":"mamba","conv_kernel":1})"), "mamba1.conv_kernel");
}

}  // namespace
}  // namespace statepool::cli
