// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/view.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool {
namespace {

constexpr uint64_t kTensorAlignment = 256;  // what vector loads of every kind like
constexpr uint64_t kPageBytes = 4096;
constexpr char kTapAxis[] = "tap";

uint64_t RoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

absl::Status Refused(absl::string_view field, absl::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_VIEW", message).Field(absl::StrCat("view.", field));
}

// What a rank has of a tensor: ranges of one of the layout's axes, ascending. All of it where nothing is sharded.
struct Part {
  struct Range {
    uint64_t begin = 0, size = 0;
    bool is_first = true;  // of the ranks that have it
  };
  size_t axis = 0;
  std::vector<Range> ranges;
  uint64_t size = 0;  // of the ranges together

  uint64_t SizeOf(const TensorSpec& tensor, size_t of) const { return of == axis ? size : tensor.axes[of].size; }
};

// Sections go to ranks by whole groups: as many to each, or, where a shared section has fewer groups than there are
// ranks, one to as many neighbours each.
absl::StatusOr<Part> PartOf(const TensorSpec& tensor, const View& view) {
  Part part;
  if (view.tp_size == 1 || !tensor.sharding.has_value()) {
    part.ranges = {{0, tensor.axes[0].size, view.tp_rank == 0}};
    part.size = tensor.axes[0].size;
    return part;
  }
  part.axis = tensor.sharding->axis;
  uint64_t begin = 0;
  for (const Sharding::Section& section : tensor.sharding->sections) {
    const uint64_t group_size = section.size / section.groups;
    Part::Range range;
    if (section.groups % view.tp_size == 0) {
      range.size = section.groups / view.tp_size * group_size;
      range.begin = begin + view.tp_rank * range.size;
    } else if (section.shared && view.tp_size % section.groups == 0) {
      const uint32_t neighbours = view.tp_size / static_cast<uint32_t>(section.groups);
      range.size = group_size;
      range.begin = begin + view.tp_rank / neighbours * group_size;
      range.is_first = view.tp_rank % neighbours == 0;
    } else {
      return Refused("tp_size", absl::StrCat("the axis '", tensor.axes[part.axis].name, "' of tensor '", tensor.name,
                                             "' has a section of ", section.groups, " groups, which ", view.tp_size,
                                             " ranks can't divide", section.shared ? " nor share" : ""));
    }
    Part::Range* const last = part.ranges.empty() ? nullptr : &part.ranges.back();
    if (last != nullptr && last->begin + last->size == range.begin && last->is_first == range.is_first) {
      last->size += range.size;
    } else {
      part.ranges.push_back(range);
    }
    part.size += range.size;
    begin += section.size;
  }
  return part;
}

// One layer of a tensor, in one row and step: its axes as the view orders them.
struct Block {
  Part part;
  std::vector<size_t> order;      // index into the layout's axes, outermost first
  std::vector<uint64_t> shape;    // parallel to `order`: with the view's columns
  std::vector<uint64_t> strides;  // parallel to `order`, in bytes
  uint64_t bytes = 0;
  uint64_t steps = 1;                       // how many of it a row has
  uint64_t first_offset = 0;                // of the first element that the layout has: behind the padding
  uint64_t accept_stride = 0;               // as CopySegment's
  bool has_extra_columns = false;           // that only the view has
  std::vector<uint64_t> strides_of_layout;  // parallel to the layout's axes
};

bool IsWithoutNumSpec(const View& view, absl::string_view tensor) {
  return std::find(view.without_num_spec.begin(), view.without_num_spec.end(), tensor) != view.without_num_spec.end();
}

absl::StatusOr<Block> MakeBlock(const TensorSpec& tensor, const std::vector<size_t>& order, const View& view,
                                uint32_t steps) {
  absl::StatusOr<Part> part = PartOf(tensor, view);
  if (!part.ok()) return part.status();
  Block block;
  block.part = *std::move(part);
  block.order = order;
  block.shape.resize(order.size());
  block.strides.resize(order.size());
  block.strides_of_layout.resize(order.size());
  const uint32_t num_spec = IsWithoutNumSpec(view, tensor.name) ? 0 : view.num_spec;
  const bool widened = tensor.kind == TensorKind::kConv && view.conv_padding + num_spec > 0;
  uint64_t tap_stride = 0;
  uint64_t stride = DTypeBytes(tensor.dtype);
  for (size_t i = order.size(); i-- > 0;) {
    const Axis& axis = tensor.axes[order[i]];
    const bool is_tap = widened && axis.name == kTapAxis;
    if (is_tap) tap_stride = stride;
    block.shape[i] = block.part.SizeOf(tensor, order[i]) + (is_tap ? view.conv_padding + num_spec : 0);
    block.strides[i] = stride;
    block.strides_of_layout[order[i]] = stride;
    stride *= block.shape[i];
  }
  block.bytes = stride;
  block.has_extra_columns = widened;
  if (widened && tap_stride == 0) {
    return Refused(view.conv_padding > 0 ? "conv_padding" : "num_spec",
                   absl::StrCat("the CONV tensor '", tensor.name, "' has no axis \"", kTapAxis, "\" to widen"));
  }
  block.first_offset = view.conv_padding * (widened ? tap_stride : 0);
  if (widened && num_spec > 0) {
    block.accept_stride = tap_stride;
  } else {
    block.steps = std::max<uint64_t>(steps, 1);
    block.accept_stride = block.bytes;
  }
  return block;
}

// The tensor's axes as `view` orders them.
absl::StatusOr<std::vector<std::vector<size_t>>> Orders(const Layout& layout, const View& view) {
  const std::vector<TensorSpec>& tensors = layout.spec().tensors;
  std::vector<std::vector<size_t>> orders(tensors.size());
  for (size_t i = 0; i < view.axis_orders.size(); ++i) {
    const View::AxisOrder& wanted = view.axis_orders[i];
    const std::string field = absl::StrCat("axis_orders[", i, "]");
    const auto found = std::find_if(tensors.begin(), tensors.end(),
                                    [&](const TensorSpec& tensor) { return tensor.name == wanted.tensor; });
    if (found == tensors.end()) return Refused(absl::StrCat(field, ".tensor"), "the layout has no tensor of this name");
    std::vector<size_t>& order = orders[static_cast<size_t>(found - tensors.begin())];
    if (!order.empty()) return Refused(absl::StrCat(field, ".tensor"), "this tensor is ordered twice");
    for (const std::string& name : wanted.axes) {
      const auto axis =
          std::find_if(found->axes.begin(), found->axes.end(), [&](const Axis& a) { return a.name == name; });
      const auto index = static_cast<size_t>(axis - found->axes.begin());
      if (axis == found->axes.end() || std::find(order.begin(), order.end(), index) != order.end()) {
        return Refused(absl::StrCat(field, ".axes"),
                       absl::StrCat("'", name, "' is no axis of '", wanted.tensor, "', or is named twice"));
      }
      order.push_back(index);
    }
    if (order.size() != found->axes.size() || order.empty()) {
      return Refused(absl::StrCat(field, ".axes"),
                     absl::StrCat("all ", found->axes.size(), " axes of '", wanted.tensor, "' must be named"));
    }
  }
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (!orders[t].empty()) continue;
    for (size_t i = 0; i < tensors[t].axes.size(); ++i) orders[t].push_back(i);
  }
  return orders;
}

// How many segments a layer of it is cut into: what the state has of a range is contiguous only behind the axis.
uint64_t SegmentsOf(const TensorSpec& tensor, const Part& part) {
  uint64_t segments = part.ranges.size();
  if (part.size == tensor.axes[part.axis].size) return 1;
  for (size_t i = 0; i < part.axis; ++i) segments *= tensor.axes[i].size;
  return segments;
}

// The segments of one layer, which begins at these offsets of the state and of the arena; to `stored` those that the
// rank is the first to have.
void AddSegments(const TensorSpec& tensor, const Block& block, uint64_t row_stride, uint64_t state_offset,
                 uint64_t arena_offset, std::vector<CopySegment>* segments, std::vector<CopySegment>* stored) {
  CopySegment whole;
  whole.state_offset = state_offset;
  whole.arena_offset = arena_offset + block.first_offset;
  whole.row_stride = row_stride;
  whole.accept_stride = block.accept_stride;
  whole.element_bytes = static_cast<uint32_t>(DTypeBytes(tensor.dtype));
  for (size_t i = 0; i < tensor.axes.size(); ++i)
    whole.axes.push_back({tensor.axes[i].size, block.strides_of_layout[i]});
  if (block.has_extra_columns) {
    whole.clear_offset = arena_offset;
    whole.clear_bytes = block.bytes;
  }
  const Part& part = block.part;
  if (part.size == tensor.axes[part.axis].size) {
    if (part.ranges[0].is_first) stored->push_back(whole);
    segments->push_back(std::move(whole));
    return;
  }
  uint64_t stride_in_state = whole.element_bytes;  // along the part's axis
  for (size_t i = part.axis + 1; i < tensor.axes.size(); ++i) stride_in_state *= tensor.axes[i].size;
  CopySegment segment = whole;
  segment.axes.erase(segment.axes.begin(), segment.axes.begin() + static_cast<ptrdiff_t>(part.axis));
  const uint64_t blocks = SegmentsOf(tensor, part) / part.ranges.size();
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t block_in_state = state_offset + i * tensor.axes[part.axis].size * stride_in_state;
    uint64_t in_arena = whole.arena_offset;
    for (uint64_t axis = part.axis, rest = i; axis-- > 0; rest /= tensor.axes[axis].size)
      in_arena += rest % tensor.axes[axis].size * block.strides_of_layout[axis];
    for (const Part::Range& range : part.ranges) {
      segment.state_offset = block_in_state + range.begin * stride_in_state;
      segment.arena_offset = in_arena;
      segment.axes[0].size = range.size;
      segments->push_back(segment);
      if (range.is_first) stored->push_back(segment);
      segment.clear_bytes = 0;  // once for all of the layer
      in_arena += range.size * block.strides_of_layout[part.axis];
    }
  }
}

absl::Status CheckRank(const View& view) {
  if (view.tp_size < 1 || view.tp_size > kMaxTpSize) return Refused("tp_size", absl::StrCat("must be 1..", kMaxTpSize));
  if (view.tp_rank >= view.tp_size) return Refused("tp_rank", absl::StrCat("must be 0..", view.tp_size - 1));
  return absl::OkStatus();
}

absl::Status CheckColumns(const Layout& layout, const View& view, uint32_t steps) {
  if (view.conv_padding > kMaxConvPadding)
    return Refused("conv_padding", absl::StrCat("at most ", kMaxConvPadding, " columns"));
  if (view.num_spec > kMaxNumSpec) return Refused("num_spec", absl::StrCat("at most ", kMaxNumSpec, " columns"));
  if (view.num_spec > 0 && view.num_spec + 1 < steps) {
    return Refused("num_spec",
                   absl::StrCat(steps, " steps need at least ", steps - 1, " speculative columns, or none"));
  }
  const auto& tensors = layout.spec().tensors;
  for (size_t i = 0; i < view.without_num_spec.size(); ++i) {
    const std::string& name = view.without_num_spec[i];
    const std::string field = absl::StrCat("without_num_spec[", i, "]");
    const auto is_it = [&](const TensorSpec& t) { return t.kind == TensorKind::kConv && t.name == name; };
    if (std::none_of(tensors.begin(), tensors.end(), is_it))
      return Refused(field, "the layout has no CONV tensor of this name");
    const auto here = view.without_num_spec.begin() + static_cast<ptrdiff_t>(i);
    if (std::find(view.without_num_spec.begin(), here, name) != here)
      return Refused(field, "this tensor is named twice");
  }
  const bool has_conv = std::any_of(tensors.begin(), tensors.end(),
                                    [](const TensorSpec& tensor) { return tensor.kind == TensorKind::kConv; });
  if (has_conv) return absl::OkStatus();
  if (view.conv_padding > 0) return Refused("conv_padding", "the layout has no CONV tensor");
  if (view.num_spec > 0) return Refused("num_spec", "the layout has no CONV tensor");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ArenaShape> MakeArenaShape(const Layout& layout, const View& view, uint32_t rows, uint32_t steps) {
  if (absl::Status status = CheckColumns(layout, view, steps); !status.ok()) return status;
  if (absl::Status status = CheckRank(view); !status.ok()) return status;
  size_t layers = 0;
  for (const TensorSpec& tensor : layout.spec().tensors) layers += tensor.layers.size();
  if (view.layers == View::Layers::kPerLayer && layers > kMaxArenaTensors) {
    return Refused("layers", absl::StrCat("a tensor for each layer makes ", layers, ", more than ", kMaxArenaTensors,
                                          "; take LAYER_MAJOR or ROW_MAJOR"));
  }
  absl::StatusOr<std::vector<std::vector<size_t>>> orders = Orders(layout, view);
  if (!orders.ok()) return orders.status();

  const std::vector<TensorSpec>& specs = layout.spec().tensors;
  std::vector<Block> blocks;
  uint64_t row_bytes = 0, segments_wanted = 0;
  for (size_t t = 0; t < specs.size(); ++t) {
    absl::StatusOr<Block> block = MakeBlock(specs[t], (*orders)[t], view, steps);
    if (!block.ok()) return block.status();
    row_bytes += specs[t].layers.size() * block->steps * block->bytes;
    segments_wanted += specs[t].layers.size() * SegmentsOf(specs[t], block->part);
    blocks.push_back(*std::move(block));
  }
  if (segments_wanted > kMaxArenaSegments) {
    return Refused(
        view.tp_size > 1 ? "tp_size" : "layers",
        absl::StrCat("the arena would be ", segments_wanted, " pieces of a state, more than ", kMaxArenaSegments));
  }

  const bool row_major = view.layers == View::Layers::kRowMajor;
  const uint64_t whole_row_stride = RoundUp(row_bytes, row_bytes < (64 << 10) ? kTensorAlignment : kPageBytes);
  std::vector<ArenaTensor> tensors;
  std::vector<CopySegment> segments, stored;
  uint64_t state_offset = 0, offset = 0;
  for (size_t t = 0; t < specs.size(); ++t) {
    const TensorSpec& spec = specs[t];
    const Block& block = blocks[t];
    const uint64_t row_stride = row_major ? whole_row_stride : block.steps * block.bytes;
    const uint64_t layer_stride = row_major ? block.steps * block.bytes : rows * row_stride;
    const bool together = view.layers != View::Layers::kPerLayer;
    for (size_t l = 0; l < spec.layers.size(); ++l) {
      if (!row_major && (!together || l == 0)) offset = RoundUp(offset, kTensorAlignment);
      if (!together || l == 0) {
        ArenaTensor tensor;
        tensor.tensor = t;
        tensor.offset = offset;
        const auto add_axis = [&](absl::string_view name, uint64_t size, uint64_t stride) {
          tensor.axes.emplace_back(name);
          tensor.shape.push_back(size);
          tensor.strides.push_back(stride);
        };
        if (together) tensor.layers = spec.layers;
        if (!together) tensor.layers = {spec.layers[l]};
        if (view.layers == View::Layers::kLayerMajor) add_axis("layer", spec.layers.size(), layer_stride);
        add_axis("row", rows, row_stride);
        if (row_major) add_axis("layer", spec.layers.size(), layer_stride);
        if (steps > 0) add_axis("step", block.steps, block.bytes);
        for (size_t i = 0; i < block.order.size(); ++i)
          add_axis(spec.axes[block.order[i]].name, block.shape[i], block.strides[i]);
        tensors.push_back(std::move(tensor));
      }
      AddSegments(spec, block, row_stride, state_offset, offset, &segments, &stored);
      state_offset += spec.LayerBytes();
      offset += layer_stride;
    }
  }
  const uint64_t bytes = row_major ? rows * whole_row_stride : offset;
  std::vector<AdvanceSegment> moves;
  for (const ArenaTensor& tensor : tensors) {
    const auto element_bytes = static_cast<uint32_t>(DTypeBytes(specs[tensor.tensor].dtype));
    const AdvanceTensor seen{
        {tensor.axes.begin(), tensor.axes.end()}, tensor.shape, tensor.strides, tensor.offset, element_bytes};
    if (!AddAdvanceSegments(seen, steps, view.num_spec, &moves))
      return absl::InternalError("a tensor without its rows");
  }
  AdvancePlan advance_plan(moves, std::max(steps, 1u));
  ArenaShape shape{rows,
                   steps,
                   view.tp_size,
                   view.tp_rank,
                   bytes,
                   row_bytes,
                   std::move(tensors),
                   CopyPlan(std::move(segments), layout.state_bytes()),
                   std::nullopt,
                   std::move(advance_plan)};
  if (view.tp_size > 1) shape.store_plan.emplace(std::move(stored), layout.state_bytes());
  return shape;
}

}  // namespace statepool
