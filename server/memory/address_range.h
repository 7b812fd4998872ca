// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// AddressRange: which of a range of addresses each extent of a device gets, where addresses are taken once and memory
// is mapped into them later.
//
// Addresses are plenty, so the range is cut into classes: one for each power of two, of places of that many chunks, as
// many as there can be living extents of its sizes. So no order of Take and GiveBack can leave an extent without
// addresses while the budget has room for it: nothing is ever merged, and there is no fragmentation. That takes less
// than twice the budget for each class: 21 times a budget of 4,096 chunks.
#ifndef STATEPOOL_SERVER_MEMORY_ADDRESS_RANGE_H_
#define STATEPOOL_SERVER_MEMORY_ADDRESS_RANGE_H_

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace statepool {

// All sizes and offsets are in chunks. Not thread-safe.
class AddressRange {
 public:
  explicit AddressRange(uint64_t budget) : budget_(budget) {
    for (uint64_t least = 1, size = 1; least <= budget; least = size + 1, size *= 2) {
      classes_.push_back({.first = total_, .size = std::min(size, budget), .places = budget / least, .free = {}});
      total_ += classes_.back().size * classes_.back().places;
    }
  }

  uint64_t total() const { return total_; }  // of the whole range

  // Where `size` chunks go. REQUIRES: size >= 1; with what was taken and not given back, it is within the budget.
  uint64_t Take(uint64_t size) {
    assert(size >= 1 && size <= budget_);
    Class& of = classes_[ClassOf(size)];
    if (!of.free.empty()) {
      const uint64_t place = of.free.back();
      of.free.pop_back();
      return place;
    }
    assert(of.used_once < of.places && "more was taken than the budget has");
    return of.first + of.used_once++ * of.size;
  }

  // REQUIRES: Take(size) gave `place`, and nothing is mapped there any more.
  void GiveBack(uint64_t place, uint64_t size) { classes_[ClassOf(size)].free.push_back(place); }

 private:
  // Sizes above half of `size`, up to it.
  struct Class {
    uint64_t first = 0, size = 0, places = 0;
    uint64_t used_once = 0;      // places that were taken at some time: the first ones
    std::vector<uint64_t> free;  // of these
  };

  static size_t ClassOf(uint64_t size) { return static_cast<size_t>(std::bit_width(size - 1)); }

  const uint64_t budget_;
  uint64_t total_ = 0;
  std::vector<Class> classes_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_ADDRESS_RANGE_H_
