// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Copy plans for tests, drawn at random or put together, and a model that moves one byte at a time, where the plan says
// that it lies.
#ifndef STATEPOOL_TESTS_UNIT_KERNELS_PLAN_CASES_H_
#define STATEPOOL_TESTS_UNIT_KERNELS_PLAN_CASES_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/copy_plan.h"

namespace statepool {

using Random = std::mt19937_64;

inline uint64_t Below(Random& random, uint64_t limit) { return random() % limit; }

inline std::string RandomBytes(Random& random, uint64_t size) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

// A plan, and the arena that it is for.
struct Case {
  std::vector<CopySegment> segments;
  uint64_t state_bytes = 0, arena_bytes = 0;
  uint32_t rows = 1, steps = 1;

  CopyPlan Plan() const { return CopyPlan(segments, state_bytes); }
};

// Where each byte of the state lies in the arena.
inline std::vector<uint64_t> PlacesOf(const Case& c, uint32_t row, uint32_t accepted) {
  std::vector<uint64_t> places;
  places.reserve(c.state_bytes);
  for (const CopySegment& segment : c.segments) {
    const uint64_t first = segment.arena_offset + row * segment.row_stride + (accepted - 1) * segment.accept_stride;
    for (uint64_t element = 0; element < segment.Bytes() / segment.element_bytes; ++element) {
      uint64_t place = first, rest = element;
      for (size_t axis = segment.axes.size(); axis-- > 0;) {
        place += rest % segment.axes[axis].size * segment.axes[axis].row_stride;
        rest /= segment.axes[axis].size;
      }
      for (uint32_t byte = 0; byte < segment.element_bytes; ++byte) places.push_back(place + byte);
    }
  }
  return places;
}

inline void ModelGather(const Case& c, const std::string& state, uint64_t begin, uint64_t end, uint32_t row,
                        std::string* arena) {
  const std::vector<uint64_t> places = PlacesOf(c, row, 1);
  for (uint64_t i = begin; i < end; ++i) (*arena)[places[i]] = state[i];
}

inline std::string ModelScatter(const Case& c, const std::string& arena, uint32_t row, uint32_t accepted) {
  const std::vector<uint64_t> places = PlacesOf(c, row, accepted);
  std::string state(c.state_bytes, '\0');
  for (uint64_t i = 0; i < c.state_bytes; ++i) state[i] = arena[places[i]];
  return state;
}

// Adds a tensor of one layer, [row, step, axes in `order`], with gaps round it. With `taps` the innermost of its axes
// in the state is a convolution's: the view has `before` columns more and, in place of steps, `after`.
struct Taps {
  bool are = false;
  uint64_t before = 0, after = 0;
};
inline void AddTensor(Case* c, uint32_t element_bytes, const std::vector<uint64_t>& shape,
                      const std::vector<size_t>& order, Taps taps, uint64_t gap) {
  CopySegment segment;
  segment.state_offset = c->state_bytes;
  segment.element_bytes = element_bytes;
  segment.axes.resize(shape.size());
  uint64_t stride = element_bytes;
  for (size_t i = order.size(); i-- > 0;) {
    const bool tap = taps.are && order[i] + 1 == shape.size();
    segment.axes[order[i]] = {shape[order[i]], stride};
    stride *= shape[order[i]] + (tap ? taps.before + taps.after : 0);
  }
  const uint64_t offset = c->arena_bytes + gap;
  segment.arena_offset = offset;
  if (taps.are) {
    const uint64_t column = segment.axes.back().row_stride;
    segment.arena_offset += taps.before * column;
    segment.accept_stride = column;
    if (taps.before + taps.after > 0) segment.clear_offset = offset, segment.clear_bytes = stride;
    segment.row_stride = stride + gap;
  } else {
    segment.accept_stride = stride + gap;
    segment.row_stride = c->steps * segment.accept_stride + gap;
  }
  c->arena_bytes = offset + c->rows * segment.row_stride + gap;
  c->state_bytes += segment.Bytes();
  c->segments.push_back(std::move(segment));
}

inline Case RandomCase(Random& random) {
  Case c;
  c.rows = 1 + Below(random, 4);
  c.steps = 1 + Below(random, 3);
  const uint64_t tensors = 1 + Below(random, 5);
  for (uint64_t t = 0; t < tensors; ++t) {
    const uint32_t element_bytes = 1u << Below(random, 4);
    std::vector<uint64_t> shape(Below(random, 5));
    uint64_t room = uint64_t{1} << Below(random, 16);  // elements, of all axes
    for (uint64_t& size : shape) {
      size = 1 + Below(random, std::min<uint64_t>(room, 200));
      room = std::max<uint64_t>(1, room / size);
    }
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), 0);
    if (Below(random, 3) != 0) std::shuffle(order.begin(), order.end(), random);
    Taps taps;
    taps.are = !shape.empty() && Below(random, 3) == 0;
    if (taps.are) taps = {true, Below(random, 3), c.steps - 1 + Below(random, 2)};
    AddTensor(&c, element_bytes, shape, order, taps, Below(random, 2) * element_bytes * Below(random, 40));
  }
  return c;
}

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_KERNELS_PLAN_CASES_H_
