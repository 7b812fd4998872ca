// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Random arenas with steps or speculative columns, and a model of Advance, element by element, from what the .proto
// says (SPECULATION): for the tests of advance plans on the host and on a device.
#ifndef STATEPOOL_TESTS_UNIT_KERNELS_ADVANCE_CASES_H_
#define STATEPOOL_TESTS_UNIT_KERNELS_ADVANCE_CASES_H_

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/advance_plan.h"
#include "kernels/plan_cases.h"

namespace statepool {

struct MoveTensor {
  std::vector<std::string> axes;
  std::vector<uint64_t> shape, strides;
  uint64_t offset = 0;
  uint32_t element_bytes = 1;
  bool has_columns = false;

  AdvanceTensor seen() const { return {{axes.begin(), axes.end()}, shape, strides, offset, element_bytes}; }
};

struct MoveCase {
  uint32_t rows = 1, steps = 1, num_spec = 0;  // steps 0: one, without an axis
  uint64_t arena_bytes = 0;
  std::vector<MoveTensor> tensors;

  uint32_t steps_max() const { return std::max(steps, 1u); }
  std::vector<AdvanceSegment> Segments() const {
    std::vector<AdvanceSegment> segments;
    for (const MoveTensor& tensor : tensors) {
      EXPECT_TRUE(AddAdvanceSegments(tensor.seen(), steps, num_spec, &segments)) << "no tensor of such an arena";
    }
    return segments;
  }
  AdvancePlan Plan() const { return AdvancePlan(Segments(), steps_max()); }
};

// `inner` are the axes of one step, outermost first, as they lie there; "tap" without speculative columns.
inline void AddMoveTensor(MoveCase* c, Random& random, uint32_t element_bytes,
                          std::vector<std::pair<std::string, uint64_t>> inner, uint64_t alignment) {
  MoveTensor tensor;
  tensor.element_bytes = element_bytes;
  for (auto& [name, size] : inner) {
    if (name != "tap" || c->num_spec == 0) continue;
    tensor.has_columns = true;
    size += c->num_spec;
  }
  const uint64_t layers = 1 + Below(random, 3), order = Below(random, 3);
  std::vector<std::pair<std::string, uint64_t>> axes;
  if (order == 1) axes.push_back({"layer", layers});
  axes.push_back({"row", c->rows});
  if (order == 2) axes.push_back({"layer", layers});
  if (c->steps > 0) axes.push_back({"step", tensor.has_columns ? 1 : c->steps});
  axes.insert(axes.end(), inner.begin(), inner.end());
  tensor.strides.resize(axes.size());
  uint64_t stride = element_bytes;
  for (size_t i = axes.size(); i-- > 0;) {
    tensor.strides[i] = stride;
    stride *= axes[i].second;
    if (axes[i].first == "row") stride += Below(random, 2) * 3 * element_bytes;
  }
  for (const auto& [name, size] : axes) {
    tensor.axes.push_back(name);
    tensor.shape.push_back(size);
  }
  tensor.offset = (c->arena_bytes + alignment - 1) / alignment * alignment;
  c->arena_bytes = tensor.offset + stride;
  c->tensors.push_back(std::move(tensor));
}

inline MoveCase RandomMoveCase(Random& random) {
  MoveCase c;
  c.rows = 1 + Below(random, 5);
  c.steps = Below(random, 8);
  c.num_spec = Below(random, 2) * (c.steps_max() - 1 + Below(random, 3));
  const uint64_t count = 1 + Below(random, 4);
  for (uint64_t i = 0; i < count; ++i) {
    std::vector<std::pair<std::string, uint64_t>> inner;
    const bool is_conv = Below(random, 2) == 0;
    if (is_conv) inner.push_back({"tap", 1 + Below(random, 5)});  // conv_padding among them
    for (const char* name : {"head", "channel"}) {
      if (Below(random, 3) > 0) inner.push_back({name, 1 + Below(random, Below(random, 4) == 0 ? 200 : 12)});
    }
    std::shuffle(inner.begin(), inner.end(), random);
    AddMoveTensor(&c, random, 1u << Below(random, 4), inner, 1u << Below(random, 6));
  }
  return c;
}

// A path of the case's steps; a chain half the time.
inline AcceptedSteps RandomPath(Random& random, const MoveCase& c) {
  const uint32_t length = 1 + static_cast<uint32_t>(Below(random, c.steps_max()));
  if (Below(random, 2) == 0) return AcceptedSteps::Chain(length);
  uint64_t bits = uint64_t{1} << (length - 1);
  for (uint32_t step = 0; step + 1 < length; ++step) bits |= Below(random, 2) << step;
  return AcceptedSteps(bits);
}

// What the arena holds after the move.
inline void ModelMove(const MoveCase& c, const AdvanceMove& move, std::string* arena) {
  const std::string before = *arena;
  const uint32_t last = move.steps.last();
  for (const MoveTensor& tensor : c.tensors) {
    std::vector<uint64_t> index(tensor.axes.size(), 0);
    const auto place = [&](uint64_t row, uint64_t step, uint64_t tap) {
      uint64_t at = tensor.offset;
      for (size_t i = 0; i < index.size(); ++i) {
        const std::string& axis = tensor.axes[i];
        const uint64_t given = axis == "row"                         ? row
                               : axis == "step"                      ? step
                               : axis == "tap" && tensor.has_columns ? tap
                                                                     : index[i];
        at += given * tensor.strides[i];
      }
      return at;
    };
    const auto copy = [&](uint64_t to, uint64_t from) {
      arena->replace(to, tensor.element_bytes, before, from, tensor.element_bytes);
    };
    const auto tap_axis = std::find(tensor.axes.begin(), tensor.axes.end(), "tap") - tensor.axes.begin();
    // Every element but for those axes.
    for (bool goes_on = true; goes_on;) {
      if (!tensor.has_columns) {
        copy(place(move.to_row, 0, 0), place(move.from_row, last, 0));
      } else {
        const uint64_t columns = tensor.shape[static_cast<size_t>(tap_axis)], first = columns - c.num_spec - 1;
        std::vector<uint64_t> in;  // the columns that stay, oldest first; column `first` has the input of step 0
        for (uint64_t column = 0; column < columns; ++column) {
          const bool is_beside =
              column >= first && column - first <= last && (move.steps.bits() >> (column - first) & 1) == 0;
          if (!is_beside) in.push_back(column);
        }
        for (size_t i = move.steps.length() - 1, to = 0; i < in.size(); ++i, ++to)
          copy(place(move.to_row, 0, to), place(move.from_row, 0, in[i]));
      }
      goes_on = false;
      for (size_t i = index.size(); i-- > 0 && !goes_on;) {
        const std::string& axis = tensor.axes[i];
        if (axis == "row" || axis == "step" || (axis == "tap" && tensor.has_columns)) continue;
        goes_on = ++index[i] < tensor.shape[i];
        if (!goes_on) index[i] = 0;
      }
    }
  }
}

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_KERNELS_ADVANCE_CASES_H_
