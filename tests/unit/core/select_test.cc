// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/select.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "server/core/error.h"

namespace statepool {
namespace {

TensorSpec Tensor(std::string name, std::vector<uint32_t> layers, uint64_t layer_bytes) {
  return {std::move(name), TensorKind::kOther, std::move(layers), DType::kUInt8, {{"x", layer_bytes}}, {}, {}};
}

// conv: layers 0, 2 of 10 bytes at 0; ssm: layers 0, 1, 2 of 100 bytes at 20; shift: layer 1 of 7 bytes at 320.
LayoutRef ThreeTensors() {
  return *Layout::Create({"m", {Tensor("conv", {0, 2}, 10), Tensor("ssm", {0, 1, 2}, 100), Tensor("shift", {1}, 7)}});
}

std::vector<ByteRange> Ranges(const Select& select) {
  const auto ranges = RangesOf(*ThreeTensors(), select);
  EXPECT_TRUE(ranges.ok()) << ranges.status();
  return ranges.ok() ? *ranges : std::vector<ByteRange>();
}
std::string FieldAtFault(const Select& select) {
  const auto ranges = RangesOf(*ThreeTensors(), select, "get.select");
  EXPECT_EQ(ReasonOf(ranges.status()), "INVALID_OPTION");
  return GetErrorDetail(ranges.status()).field;
}
using R = std::vector<ByteRange>;

TEST(Select, NothingNamedIsTheWholeImageInOneRange) { EXPECT_EQ(Ranges({}), (R{{0, 327}})); }

TEST(Select, ATensorIsAllItsLayers) {
  EXPECT_EQ(Ranges({{"conv"}, {}}), (R{{0, 20}}));
  EXPECT_EQ(Ranges({{"shift"}, {}}), (R{{320, 7}}));
}

TEST(Select, ALayerIsThatOfEveryTensorThatHasIt) {
  EXPECT_EQ(Ranges({{}, {0}}), (R{{0, 10}, {20, 100}}));
  EXPECT_EQ(Ranges({{}, {1}}), (R{{120, 100}, {320, 7}}));
  EXPECT_EQ(Ranges({{}, {0, 1, 2}}), (R{{0, 327}}));
}

TEST(Select, TensorsAndLayersTogetherAreTheirCommonPart) {
  EXPECT_EQ(Ranges({{"ssm"}, {1}}), (R{{120, 100}}));
  EXPECT_EQ(Ranges({{"ssm", "conv"}, {2}}), (R{{10, 10}, {220, 100}}));
}

TEST(Select, RangesComeInTheImagesOrderAndNeighboursAreOne) {
  EXPECT_EQ(Ranges({{"shift", "ssm"}, {}}), (R{{20, 307}}));
  EXPECT_EQ(Ranges({{"ssm", "conv"}, {}}), (R{{0, 320}}));
}

TEST(Select, WhatTheLayoutLacksIsRefusedWithItsPlace) {
  EXPECT_EQ(FieldAtFault({{"ssm", "absent"}, {}}), "get.select.tensors[1]");
  EXPECT_EQ(FieldAtFault({{"ssm", "conv", "ssm"}, {}}), "get.select.tensors[2]");
  EXPECT_EQ(FieldAtFault({{}, {0, 7}}), "get.select.layers[1]");
  EXPECT_EQ(FieldAtFault({{"shift"}, {0}}), "get.select.layers[0]");  // another tensor has it
  EXPECT_EQ(FieldAtFault({{"conv"}, {0, 1, 2}}), "get.select.layers[1]");
  EXPECT_EQ(FieldAtFault({{}, {1, 0}}), "get.select.layers[1]");  // they ascend
  EXPECT_EQ(FieldAtFault({{}, {1, 1}}), "get.select.layers[1]");
}

TEST(Select, ARandomSelectionCutsExactlyItsBytes) {
  constexpr unsigned kSeed = 11;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (int round = 0; round < 200; ++round) {
    LayoutSpec spec{"m", {}};
    std::set<uint32_t> all_layers;
    for (size_t t = 0, n = 1 + random() % 5; t < n; ++t) {
      std::vector<uint32_t> layers;
      for (uint32_t layer = 0; layer < 6; ++layer) {
        if (random() % 2 || (layer == 5 && layers.empty())) layers.push_back(layer);
      }
      all_layers.insert(layers.begin(), layers.end());
      spec.tensors.push_back(Tensor("t" + std::to_string(t), layers, 1 + random() % 9));
    }
    Select select;
    for (const TensorSpec& tensor : spec.tensors) {
      if (random() % 2) select.tensors.push_back(tensor.name);
    }
    for (uint32_t layer : all_layers) {
      if (random() % 2) select.layers.push_back(layer);
    }
    const LayoutRef layout = *Layout::Create(spec);
    // Each byte of this image says whether it is selected.
    std::string image;
    std::set<uint32_t> had;
    for (const TensorSpec& tensor : spec.tensors) {
      const bool named = select.tensors.empty() ||
                         std::find(select.tensors.begin(), select.tensors.end(), tensor.name) != select.tensors.end();
      for (uint32_t layer : tensor.layers) {
        const bool in = named && (select.layers.empty() ||
                                  std::find(select.layers.begin(), select.layers.end(), layer) != select.layers.end());
        if (in) had.insert(layer);
        image.append(tensor.axes[0].size, in ? 'y' : 'n');
      }
    }
    const auto ranges = RangesOf(*layout, select);
    ASSERT_EQ(ranges.ok(), select.layers.empty() || had.size() == select.layers.size());
    if (!ranges.ok()) continue;
    std::string cut;
    for (absl::string_view piece : Cut(image, *ranges)) {
      EXPECT_FALSE(piece.empty());
      cut.append(piece.data(), piece.size());
    }
    EXPECT_EQ(cut, std::string(static_cast<size_t>(std::count(image.begin(), image.end(), 'y')), 'y'));
    EXPECT_EQ(BytesOf(*ranges), cut.size());
    for (size_t i = 1; i < ranges->size(); ++i)
      EXPECT_GT((*ranges)[i].offset, (*ranges)[i - 1].offset + (*ranges)[i - 1].bytes);
  }
}

}  // namespace
}  // namespace statepool
