// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Copy plans: how a state in canonical order (the proto's BYTES) lies in the rows of an arena, and the copies between.
//
// A plan is a list of segments, one for each layer of each tensor, or several where an arena has a part of it. *Gather*
// (Load) copies a state into the first step of a row, *scatter* (Store) a row into a state, from the step that an
// accepted length names. Both can be run for any range of the state's bytes, so that threads share one copy, and give
// exactly those bytes, whatever ranges are chosen. Long ranges are faster where a row's axes are in another order than
// the state's. A plan that is not *whole* leaves the rest of the state alone.
//
// This is the host's form; device_copy_plan.h runs the same plan on a device. A plan is immutable and thread-safe. No
// copy fails: the plan was checked before, by whoever made its segments (server/core/view.h) or by CopyPlan::Checked.
#ifndef STATEPOOL_KERNELS_COPY_PLAN_H_
#define STATEPOOL_KERNELS_COPY_PLAN_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "kernels/checksum.h"

namespace statepool {

// One axis of a segment: how many, and how far apart in a row. Sizes and strides in bytes unless they say otherwise.
struct CopyAxis {
  uint64_t size = 0;        // in elements, at least 1
  uint64_t row_stride = 0;  // in the arena; in the state the axes are row-major
};

// One layer of one tensor.
struct CopySegment {
  uint64_t state_offset = 0;              // of its first byte in the state; its bytes there are contiguous
  uint64_t arena_offset = 0;              // of the same element in row 0, step 0 of the arena
  uint64_t row_stride = 0;                // from a row to the next
  uint64_t accept_stride = 0;             // from the place that accepted length a names to that of a + 1
  uint32_t element_bytes = 0;             // 1, 2, 4 or 8
  absl::InlinedVector<CopyAxis, 4> axes;  // outermost first, as the state has them
  // What Load makes zero before it copies: columns that only the view has. Of row 0; 0 bytes: nothing.
  uint64_t clear_offset = 0, clear_bytes = 0;

  uint64_t Bytes() const;
};

// What becomes of the cache: a copy that is far larger than the caches should go past them.
enum class CopyHint { kCached, kStreaming };

// What a plan is for: the memory of an arena, and what will be asked for there.
struct CopyArena {
  uint64_t bytes = 0;
  uint32_t rows = 0, accepted_max = 0;  // each at least 1
};

class CopyPlan {
 public:
  // A segment for the walk: axes of 1 gone, those that are one piece on both sides merged, and the bytes that are so
  // together as the innermost axis. Strides in bytes.
  struct Axis {
    uint64_t size = 0, state_stride = 0, row_stride = 0;
  };
  struct Part {
    uint64_t state_offset = 0, bytes = 0;
    uint64_t arena_offset = 0, row_stride = 0, accept_stride = 0;
    absl::InlinedVector<Axis, 4> axes;  // outermost first
  };

  // The plan of segments that came from elsewhere; nothing, unless they are a state of so many bytes without gaps, of
  // elements that are not more than the arena has bytes, and all that is touched of any row with any accepted length
  // lies within the arena.
  static std::optional<CopyPlan> Checked(std::vector<CopySegment> segments, uint64_t state_bytes,
                                         const CopyArena& arena);

  // REQUIRES: segments ascend in the state and do not overlap; none ends beyond state_bytes.
  CopyPlan(std::vector<CopySegment> segments, uint64_t state_bytes);

  uint64_t state_bytes() const { return state_bytes_; }
  uint64_t segment_bytes() const { return segment_bytes_; }  // of all segments together
  bool is_whole() const { return segment_bytes_ == state_bytes_; }
  absl::Span<const CopySegment> segments() const { return segments_; }
  absl::Span<const Part> parts() const { return parts_; }  // one for each segment

  // Copies bytes [begin, end) of `state` (which points at byte 0) into these rows of `arena`, each read once.
  // REQUIRES: rows that the arena has; nobody else writes to these bytes of these rows.
  void Gather(const char* state, uint64_t begin, uint64_t end, char* arena, absl::Span<const uint32_t> rows,
              CopyHint hint) const;

  // Makes zero what a row has beside the state. Before its Gather.
  void Clear(char* arena, uint32_t row) const;

  // Writes bytes [begin, end) of the state that `row` holds after `accepted` steps to `out` (which gets byte `begin`
  // first). REQUIRES: accepted >= 1.
  void Scatter(const char* arena, uint32_t row, uint32_t accepted, uint64_t begin, uint64_t end, char* out,
               CopyHint hint) const;

  // The same for whole leaves, into `state` (which points at byte 0), with the hash of each: leaves [first, last). The
  // hash is of the bytes that were written, also when the row changes meanwhile. hashes[0] is of leaf `first`.
  // REQUIRES: is_whole(), last <= LeafCount.
  void ScatterLeaves(const char* arena, uint32_t row, uint32_t accepted, uint64_t first, uint64_t last, char* state,
                     LeafHash* hashes, CopyHint hint) const;

 private:
  class Walk;

  static Part PartOf(const CopySegment& segment);
  // Calls visit(part, begin, end), offsets within the part, for what of [begin, end) lies in each.
  template <typename Visit>
  void ForRange(uint64_t begin, uint64_t end, Visit visit) const;

  const std::vector<CopySegment> segments_;
  const uint64_t state_bytes_;
  uint64_t segment_bytes_ = 0;
  std::vector<Part> parts_;
};

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_COPY_PLAN_H_
