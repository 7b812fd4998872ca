// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/view.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "server/core/error.h"

namespace statepool {
namespace {

// What Mamba has: a window of a convolution and a matrix.
LayoutRef MambaLike() {
  return *Layout::Create(
      {"m",
       {{"conv", TensorKind::kConv, {0, 2}, DType::kBFloat16, {{"tap", 3}, {"channel", 5}}, {}, {}},
        {"ssm", TensorKind::kRecurrent, {0, 1, 2}, DType::kFloat32, {{"head", 2}, {"value", 3}, {"key", 4}}, {}, {}}}});
}

const ArenaTensor& Tensor(const ArenaShape& shape, size_t tensor, uint32_t layer) {
  return *std::find_if(shape.tensors.begin(), shape.tensors.end(), [&](const ArenaTensor& t) {
    return t.tensor == tensor && std::count(t.layers.begin(), t.layers.end(), layer) == 1;
  });
}

// Where an element lies, told by the table alone. `index`: by the axes' names, of the layout's axes.
uint64_t AddressOf(const Layout& layout, const ArenaTensor& tensor, uint32_t layer, uint32_t row, uint64_t step,
                   const std::vector<uint64_t>& index, uint64_t tap_shift) {
  const TensorSpec& spec = layout.spec().tensors[tensor.tensor];
  uint64_t at = tensor.offset;
  for (size_t i = 0; i < tensor.axes.size(); ++i) {
    uint64_t coordinate = 0;
    if (tensor.axes[i] == "row") {
      coordinate = row;
    } else if (tensor.axes[i] == "step") {
      coordinate = step;
    } else if (tensor.axes[i] == "layer") {
      coordinate =
          static_cast<uint64_t>(std::find(tensor.layers.begin(), tensor.layers.end(), layer) - tensor.layers.begin());
    } else {
      for (size_t a = 0; a < spec.axes.size(); ++a) {
        if (spec.axes[a].name == tensor.axes[i]) coordinate = index[a] + (spec.axes[a].name == "tap" ? tap_shift : 0);
      }
    }
    EXPECT_LT(coordinate, tensor.shape[i]) << tensor.axes[i];
    at += coordinate * tensor.strides[i];
  }
  return at;
}

// Which indexes of its sharded axis a rank has, ascending: group by group.
std::vector<uint64_t> IndexesOfRank(const TensorSpec& spec, uint32_t tp_size, uint32_t tp_rank) {
  std::vector<uint64_t> indexes;
  uint64_t index = 0;
  for (const Sharding::Section& section : spec.sharding->sections) {
    for (uint64_t i = 0; i < section.size; ++i, ++index) {
      const uint64_t group = i / (section.size / section.groups);
      const bool is_mine = section.groups >= tp_size ? group / (section.groups / tp_size) == tp_rank
                                                     : tp_rank / (tp_size / section.groups) == group;
      if (is_mine) indexes.push_back(index);
    }
  }
  return indexes;
}

// Calls visit(state offset, arena offset, bytes) for each element of a state that the rank has, as the table says.
template <typename Visit>
void ForEachElement(const Layout& layout, const ArenaShape& shape, const View& view, uint32_t row, uint32_t accepted,
                    Visit visit) {
  uint64_t state_offset = 0;
  for (size_t t = 0; t < layout.spec().tensors.size(); ++t) {
    const TensorSpec& spec = layout.spec().tensors[t];
    const bool is_conv = spec.kind == TensorKind::kConv;
    const auto& without = view.without_num_spec;
    const bool shifts = is_conv && view.num_spec > 0 && std::count(without.begin(), without.end(), spec.name) == 0;
    const bool is_cut = view.tp_size > 1 && spec.sharding.has_value();
    const std::vector<uint64_t> mine =
        is_cut ? IndexesOfRank(spec, view.tp_size, view.tp_rank) : std::vector<uint64_t>();
    for (const uint32_t layer : spec.layers) {
      const ArenaTensor& tensor = Tensor(shape, t, layer);
      std::vector<uint64_t> index(spec.axes.size(), 0);
      const size_t bytes = DTypeBytes(spec.dtype);
      for (uint64_t n = spec.LayerBytes() / bytes; n > 0; --n) {
        const uint64_t tap_shift = is_conv ? view.conv_padding + (shifts ? accepted - 1 : 0) : 0;
        std::vector<uint64_t> in_part = index;
        bool is_mine = true;
        if (is_cut) {
          const auto at = std::find(mine.begin(), mine.end(), index[spec.sharding->axis]);
          is_mine = at != mine.end();
          in_part[spec.sharding->axis] = static_cast<uint64_t>(at - mine.begin());
        }
        if (is_mine) {
          visit(state_offset, AddressOf(layout, tensor, layer, row, shifts ? 0 : accepted - 1, in_part, tap_shift),
                bytes);
        }
        state_offset += bytes;
        for (size_t a = index.size(); a-- > 0;) {
          if (++index[a] < spec.axes[a].size) break;
          index[a] = 0;
        }
      }
    }
  }
  EXPECT_EQ(state_offset, layout.state_bytes());
}

TEST(ViewTest, PerLayerTensorsAreAlignedArraysOfRows) {
  const LayoutRef layout = MambaLike();
  const absl::StatusOr<ArenaShape> shape = MakeArenaShape(*layout, {}, 3, 0);
  ASSERT_TRUE(shape.ok()) << shape.status();
  ASSERT_EQ(shape->tensors.size(), 5u);
  EXPECT_EQ(shape->tensors[1].layers, std::vector<uint32_t>{2});
  EXPECT_EQ(shape->tensors[1].axes, (std::vector<std::string>{"row", "tap", "channel"}));
  EXPECT_EQ(shape->tensors[1].shape, (std::vector<uint64_t>{3, 3, 5}));
  EXPECT_EQ(shape->tensors[1].strides, (std::vector<uint64_t>{30, 10, 2}));
  for (const ArenaTensor& tensor : shape->tensors) EXPECT_EQ(tensor.offset % 256, 0u);
  EXPECT_EQ(shape->row_bytes, layout->state_bytes());
}

// A hybrid of convolutions that have columns for speculative tokens and of ones that have steps.
TEST(ViewTest, ConvolutionsCanBeLeftOutOfNumSpec) {
  const auto conv = [](const char* name, std::vector<uint32_t> layers) {
    return TensorSpec{name, TensorKind::kConv, std::move(layers), DType::kInt16, {{"tap", 3}, {"channel", 5}}, {}, {}};
  };
  const LayoutRef layout = *Layout::Create({"m", {conv("mamba1.conv", {0}), conv("mamba2.conv", {1})}});
  const View view{.conv_padding = 1, .num_spec = 3, .without_num_spec = {"mamba1.conv"}};
  const absl::StatusOr<ArenaShape> shape = MakeArenaShape(*layout, view, 2, 4);
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(shape->tensors[0].shape, (std::vector<uint64_t>{2, 4, 4, 5}));
  EXPECT_EQ(shape->tensors[1].shape, (std::vector<uint64_t>{2, 1, 7, 5}));
  EXPECT_EQ(shape->advance_plan.parts()[0].window, 0u);
  EXPECT_EQ(shape->advance_plan.parts()[1].window, 4u);
  EXPECT_TRUE(shape->advance_plan.has_windows());

  const View none{.num_spec = 3, .without_num_spec = {"mamba2.conv", "mamba1.conv"}};
  const absl::StatusOr<ArenaShape> steps = MakeArenaShape(*layout, none, 2, 4);
  ASSERT_TRUE(steps.ok()) << steps.status();
  for (const ArenaTensor& tensor : steps->tensors) EXPECT_EQ(tensor.shape, (std::vector<uint64_t>{2, 4, 3, 5}));
  EXPECT_FALSE(steps->advance_plan.has_windows());
  EXPECT_TRUE(MakeArenaShape(*layout, {.without_num_spec = {"mamba2.conv"}}, 2, 4).ok()) << "it says nothing then";
}

TEST(ViewTest, StepsWidthsAndOrdersShowInTheTable) {
  const LayoutRef layout = MambaLike();
  const View view{.layers = View::Layers::kLayerMajor,
                  .axis_orders = {{"ssm", {"head", "key", "value"}}, {"conv", {"channel", "tap"}}},
                  .conv_padding = 1,
                  .num_spec = 2};
  const absl::StatusOr<ArenaShape> shape = MakeArenaShape(*layout, view, 2, 3);
  ASSERT_TRUE(shape.ok()) << shape.status();
  ASSERT_EQ(shape->tensors.size(), 2u);
  EXPECT_EQ(shape->tensors[0].axes, (std::vector<std::string>{"layer", "row", "step", "channel", "tap"}));
  EXPECT_EQ(shape->tensors[0].shape, (std::vector<uint64_t>{2, 2, 1, 5, 6}));
  EXPECT_EQ(shape->tensors[1].axes, (std::vector<std::string>{"layer", "row", "step", "head", "key", "value"}));
  EXPECT_EQ(shape->tensors[1].shape, (std::vector<uint64_t>{3, 2, 3, 2, 4, 3}));
  EXPECT_EQ(shape->max_accepted(), 3u);
}

TEST(ViewTest, ARowMajorRowIsTheImageItself) {
  const LayoutRef layout = MambaLike();
  const absl::StatusOr<ArenaShape> shape = MakeArenaShape(*layout, {.layers = View::Layers::kRowMajor}, 4, 0);
  ASSERT_TRUE(shape.ok());
  std::string state(layout->state_bytes(), 0), arena(shape->bytes, 0);
  for (size_t i = 0; i < state.size(); ++i) state[i] = static_cast<char>(i * 7 + 1);
  const uint32_t row = 2;
  shape->plan.Gather(state.data(), 0, state.size(), arena.data(), {&row, 1}, CopyHint::kCached);
  EXPECT_EQ(arena.substr(row * shape->tensors[0].strides[0], state.size()), state);
}

TEST(ViewTest, LoadAndStorePutEveryElementWhereTheTableSays) {
  std::random_device device;
  const unsigned seed = device();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto any = [&](uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n - 1)(random); };
  for (int round = 0; round < 200; ++round) {
    LayoutSpec spec{"m", {}};
    View view;
    view.layers = static_cast<View::Layers>(any(3));
    view.tp_size = static_cast<uint32_t>(1 + any(4));
    view.tp_rank = static_cast<uint32_t>(any(view.tp_size));
    bool has_conv = false;
    for (uint64_t t = 0, tensors = 1 + any(3); t < tensors; ++t) {
      TensorSpec tensor;
      tensor.name = "t" + std::to_string(t);
      tensor.kind = any(2) == 0 ? TensorKind::kConv : TensorKind::kRecurrent;
      has_conv = has_conv || tensor.kind == TensorKind::kConv;
      for (uint32_t layer = 0; layer < 4; ++layer) {
        if (any(2) == 0) tensor.layers.push_back(layer);
      }
      if (tensor.layers.empty()) tensor.layers = {3};
      tensor.dtype = static_cast<DType>(1 + any(11));
      std::vector<std::string> names = {"tap", "a", "b"};
      for (uint64_t a = 0, axes = 1 + any(3); a < axes; ++a) tensor.axes.push_back({names[a], 1 + any(6)});
      std::shuffle(tensor.axes.begin(), tensor.axes.end(), random);
      if (any(3) > 0) {
        tensor.sharding.emplace();
        tensor.sharding->axis = static_cast<uint32_t>(any(tensor.axes.size()));
        Axis& axis = tensor.axes[tensor.sharding->axis];
        axis.size = 0;
        for (uint64_t k = 0, sections = 1 + any(3); k < sections; ++k) {
          Sharding::Section section;
          section.shared = any(2) == 0;
          section.groups = section.shared && view.tp_size % 2 == 0 ? view.tp_size / 2 : view.tp_size * (1 + any(2));
          section.size = section.groups * (1 + any(3));
          axis.size += section.size;
          tensor.sharding->sections.push_back(section);
        }
      }
      if (any(2) == 0) {
        View::AxisOrder order{tensor.name, {}};
        for (const Axis& axis : tensor.axes) order.axes.push_back(axis.name);
        std::shuffle(order.axes.begin(), order.axes.end(), random);
        view.axis_orders.push_back(order);
      }
      spec.tensors.push_back(tensor);
    }
    const LayoutRef layout = *Layout::Create(spec);
    const uint32_t rows = static_cast<uint32_t>(1 + any(4));
    const uint32_t steps = static_cast<uint32_t>(any(4));
    if (has_conv && any(2) == 0) view.conv_padding = static_cast<uint32_t>(any(3));
    if (has_conv && any(2) == 0) view.num_spec = static_cast<uint32_t>(std::max<uint64_t>(steps, 1) - 1 + any(3));
    for (const TensorSpec& tensor : spec.tensors) {
      if (tensor.kind == TensorKind::kConv && any(3) == 0) view.without_num_spec.push_back(tensor.name);
    }
    const absl::StatusOr<ArenaShape> shape = MakeArenaShape(*layout, view, rows, steps);
    ASSERT_TRUE(shape.ok()) << shape.status();

    std::string arena(shape->bytes, 0), state(layout->state_bytes(), 0);
    for (char& c : arena) c = static_cast<char>(random());
    for (char& c : state) c = static_cast<char>(random());
    const uint32_t row = static_cast<uint32_t>(any(rows));
    EXPECT_EQ(shape->plan.is_whole(), shape->plan.segment_bytes() == layout->state_bytes());
    std::string loaded = arena;
    shape->plan.Clear(loaded.data(), row);
    shape->plan.Gather(state.data(), 0, state.size(), loaded.data(), {&row, 1}, CopyHint::kCached);
    ForEachElement(*layout, *shape, view, row, 1, [&](uint64_t from, uint64_t to, size_t bytes) {
      ASSERT_LE(to + bytes, loaded.size());
      ASSERT_EQ(loaded.substr(to, bytes), state.substr(from, bytes));
      // So that what is left can be compared with what it was.
      loaded.replace(to, bytes, arena, to, bytes);
    });
    // Of the rest nothing changed but columns that only the view has, which are zero.
    for (size_t i = 0; i < arena.size(); ++i) ASSERT_TRUE(loaded[i] == arena[i] || loaded[i] == 0);
    if (view.conv_padding + view.num_spec == 0) {
      ASSERT_EQ(loaded, arena);
    }

    const uint32_t accepted = static_cast<uint32_t>(1 + any(shape->max_accepted()));
    std::string stored = state;
    shape->plan.Scatter(arena.data(), row, accepted, 0, stored.size(), stored.data(), CopyHint::kCached);
    ForEachElement(*layout, *shape, view, row, accepted, [&](uint64_t at, uint64_t from, size_t bytes) {
      ASSERT_EQ(stored.substr(at, bytes), arena.substr(from, bytes));
      stored.replace(at, bytes, state, at, bytes);
    });
    ASSERT_EQ(stored, state) << "what other ranks have is left alone";
  }
}

// Like Mamba-2's convolution: x by heads, B and C by groups that ranks may share.
TensorSpec Mamba2Conv(uint64_t heads, uint64_t groups) {
  return {"conv",
          TensorKind::kConv,
          {0},
          DType::kInt8,
          {{"tap", 2}, {"channel", heads * 4 + 2 * groups * 3}},
          {},
          Sharding{1, {{heads * 4, heads}, {groups * 3, groups, true}, {groups * 3, groups, true}}}};
}

// The shapes of the engines' formula: (H*P + 2*g'*N) / t with g' = g + (g mod t ? t - g : 0).
TEST(ViewTest, RanksShareGroupsWhereTheyAreMoreThanGroups) {
  for (const uint64_t groups : {1, 2, 4, 8}) {
    const LayoutRef layout = *Layout::Create({"m", {Mamba2Conv(8, groups)}});
    for (const uint32_t tp_size : {1u, 2u, 4u, 8u}) {
      std::string whole(layout->state_bytes(), 0), rebuilt(whole.size(), 0);
      uint64_t stored_bytes = 0;
      for (size_t i = 0; i < whole.size(); ++i) whole[i] = static_cast<char>(i + 1);
      for (uint32_t rank = 0; rank < tp_size; ++rank) {
        const ArenaShape shape = *MakeArenaShape(*layout, {.tp_size = tp_size, .tp_rank = rank}, 1, 0);
        const uint64_t with_extra = groups + (groups % tp_size == 0 ? 0 : tp_size - groups);
        EXPECT_EQ(shape.tensors[0].shape, (std::vector<uint64_t>{1, 2, (8 * 4 + 2 * with_extra * 3) / tp_size}));
        std::string arena(shape.bytes, 0);
        const uint32_t row = 0;
        shape.plan.Gather(whole.data(), 0, whole.size(), arena.data(), {&row, 1}, CopyHint::kCached);
        const CopyPlan& stored = tp_size > 1 ? *shape.store_plan : shape.plan;
        stored.Scatter(arena.data(), row, 1, 0, rebuilt.size(), rebuilt.data(), CopyHint::kCached);
        stored_bytes += stored.segment_bytes();
      }
      EXPECT_EQ(stored_bytes, whole.size()) << "every byte once";
      EXPECT_EQ(rebuilt, whole) << groups << " groups, " << tp_size << " ranks";
    }
  }
}

TEST(ViewTest, WhatRanksCantDivideIsRefused) {
  const auto field_of = [](const TensorSpec& tensor, uint32_t tp_size, uint32_t tp_rank = 0) {
    const absl::Status status =
        MakeArenaShape(**Layout::Create({"m", {tensor}}), {.tp_size = tp_size, .tp_rank = tp_rank}, 1, 0).status();
    return status.ok() ? "" : GetErrorDetail(status).field;
  };
  EXPECT_EQ(field_of(Mamba2Conv(6, 1), 3), "");
  EXPECT_EQ(field_of(Mamba2Conv(6, 1), 4), "view.tp_size");   // heads
  EXPECT_EQ(field_of(Mamba2Conv(12, 3), 2), "view.tp_size");  // more groups than ranks
  EXPECT_EQ(field_of(Mamba2Conv(12, 3), 4), "view.tp_size");  // fewer, and not each by as many
  EXPECT_EQ(field_of(Mamba2Conv(12, 3), 6), "");
  EXPECT_EQ(field_of(Mamba2Conv(6, 1), 0), "view.tp_size");
  EXPECT_EQ(field_of(Mamba2Conv(6, 1), kMaxTpSize + 1), "view.tp_size");
  EXPECT_EQ(field_of(Mamba2Conv(6, 1), 2, 2), "view.tp_rank");
  const TensorSpec whole = {"x", TensorKind::kOther, {0}, DType::kInt8, {{"a", 3}}, {}, {}};
  EXPECT_EQ(field_of(whole, 2), "") << "every rank has it";
  TensorSpec many = {"x", TensorKind::kOther, {0}, DType::kInt8, {{"a", kMaxArenaSegments + 1}, {"b", 2}},
                     {},  Sharding{1, {}}};
  EXPECT_EQ(field_of(many, 2), "view.tp_size") << "too many pieces";
}

TEST(ViewTest, WhatDoesNotFitTheLayoutIsRefusedByItsField) {
  const LayoutRef layout = MambaLike();
  const auto refused = [&](const View& view, const std::string& field, uint32_t steps = 0) {
    const absl::StatusOr<ArenaShape> shape = MakeArenaShape(*layout, view, 1, steps);
    EXPECT_EQ(ReasonOf(shape.status()), "INVALID_VIEW") << field;
    EXPECT_EQ(GetErrorDetail(shape.status()).field, "view." + field);
  };
  refused({.axis_orders = {{"none", {"tap"}}}}, "axis_orders[0].tensor");
  refused({.axis_orders = {{"conv", {"tap", "channel"}}, {"conv", {"tap", "channel"}}}}, "axis_orders[1].tensor");
  refused({.axis_orders = {{"conv", {"tap"}}}}, "axis_orders[0].axes");
  refused({.axis_orders = {{"conv", {}}}}, "axis_orders[0].axes");
  refused({.axis_orders = {{"conv", {"tap", "tap"}}}}, "axis_orders[0].axes");
  refused({.axis_orders = {{"conv", {"tap", "head"}}}}, "axis_orders[0].axes");
  refused({.conv_padding = kMaxConvPadding + 1}, "conv_padding");
  refused({.num_spec = kMaxNumSpec + 1}, "num_spec");
  refused({.num_spec = 1}, "num_spec", /*steps=*/3);
  refused({.num_spec = 1, .without_num_spec = {"none"}}, "without_num_spec[0]");
  refused({.num_spec = 1, .without_num_spec = {"conv", "ssm"}}, "without_num_spec[1]");
  refused({.num_spec = 1, .without_num_spec = {"conv", "conv"}}, "without_num_spec[1]");
  refused({.without_num_spec = {"none"}}, "without_num_spec[0]");

  const LayoutRef no_conv =
      *Layout::Create({"m", {{"ssm", TensorKind::kRecurrent, {0}, DType::kFloat32, {{"state", 4}}, {}, {}}}});
  EXPECT_EQ(ReasonOf(MakeArenaShape(*no_conv, {.conv_padding = 1}, 1, 0).status()), "INVALID_VIEW");
  EXPECT_EQ(ReasonOf(MakeArenaShape(*no_conv, {.num_spec = 1}, 1, 0).status()), "INVALID_VIEW");
  const LayoutRef no_tap =
      *Layout::Create({"m", {{"conv", TensorKind::kConv, {0}, DType::kFloat32, {{"window", 4}}, {}, {}}}});
  EXPECT_EQ(GetErrorDetail(MakeArenaShape(*no_tap, {.conv_padding = 1}, 1, 0).status()).field, "view.conv_padding");
}

}  // namespace
}  // namespace statepool
