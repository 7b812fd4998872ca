// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Advance plans: where the rows of an arena have the states of their steps, and the moves to where a model's next step
// begins. What is moved where stands in the .proto (SPECULATION). With a tensor's window of M columns (conv_padding +
// K-1 of them) before num_spec others, W in all, and the path's steps p[0] < ... < p[a-1] = v:
//
//   in      = column 0 .. M-2, M-1 + p[0], ..., M-1 + p[a-1], then M+v .. W-1
//   column  i becomes in[a-1 + i], for 0 <= i < W - v; those from W - v on stay
//
// and of a tensor with steps, step v becomes step 0. Each column comes from one that is not before it, so the move
// works in place, in ascending order.
//
// This is the host's form; device_advance_plan.h runs the same plan on a device. A plan is immutable and thread-safe.
// No move fails: the plan was checked before, by whoever made its segments (server/core/view.h) or by Checked.
#ifndef STATEPOOL_KERNELS_ADVANCE_PLAN_H_
#define STATEPOOL_KERNELS_ADVANCE_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/accepted_steps.h"
#include "kernels/copy_plan.h"

namespace statepool {

// One layer of one tensor. Offsets and strides in bytes.
struct AdvanceSegment {
  uint64_t arena_offset = 0;              // of its first byte in row 0, in step or column 0
  uint64_t row_stride = 0;                // from a row to the next
  uint64_t step_stride = 0;               // from a step, or a column, to the next
  uint32_t steps = 1;                     // how many there are: steps, or columns (W)
  uint32_t window = 0;                    // M; 0: steps
  uint32_t element_bytes = 0;             // 1, 2, 4 or 8
  absl::InlinedVector<CopyAxis, 4> axes;  // of one step, or one column
};

// A tensor of an arena, as the .proto's ArenaTensor has it.
struct AdvanceTensor {
  std::vector<absl::string_view> axes;        // "layer", "row", "step" and the layout's names
  absl::Span<const uint64_t> shape, strides;  // parallel to axes; in bytes
  uint64_t offset = 0;
  uint32_t element_bytes = 0;
};

// Appends the segments of a tensor, one for each layer, of an arena with so many steps (0: its tensors have no axis
// "step") and columns after its windows. False: it is no tensor of such an arena.
bool AddAdvanceSegments(const AdvanceTensor& tensor, uint32_t steps, uint32_t num_spec,
                        std::vector<AdvanceSegment>* segments);

// Which column becomes column i of a window, for all that change or could: source[i]. See above.
std::vector<uint32_t> SourceColumns(AcceptedSteps steps, uint32_t window, uint32_t columns);

// What is moved of a row.
struct AdvanceMove {
  uint32_t from_row = 0, to_row = 0;
  AcceptedSteps steps{};
};

// An item that writes to a row which another one writes to as well, or reads.
struct RowClash {
  size_t item = 0;        // index of the later of those that write, or of the one that reads
  bool is_to_row = true;  // it writes there
};
// The first there is. Moves of a row to itself only write.
std::optional<RowClash> FindRowClash(absl::Span<const AdvanceMove> moves);

class AdvancePlan {
 public:
  // A segment for the move: axes of 1 gone, and those that are one piece merged into runs of bytes.
  struct Part {
    uint64_t arena_offset = 0, row_stride = 0, step_stride = 0;
    uint32_t steps = 1, window = 0;
    uint64_t run_bytes = 0;
    absl::InlinedVector<CopyAxis, 4> axes;  // of its runs, innermost first
  };

  // The plan of segments that came from elsewhere; nothing, unless all that is touched of any row lies within the
  // arena, of which `accepted_max` is what REQUIRES calls steps_max.
  static std::optional<AdvancePlan> Checked(absl::Span<const AdvanceSegment> segments, const CopyArena& arena);

  // REQUIRES: 1 <= steps_max <= kAcceptedStepsMax; segments with a window have steps_max - 1 columns or more after it,
  // the others steps_max steps or more; no two places of a row are the same.
  AdvancePlan(absl::Span<const AdvanceSegment> segments, uint32_t steps_max);

  uint32_t steps_max() const { return steps_max_; }
  absl::Span<const Part> parts() const { return parts_; }  // one for each segment
  // Whether any tensor's steps are columns, so that paths which are no chains can't be stored.
  bool has_windows() const;
  // What a row's move reads, at most.
  uint64_t bytes() const { return bytes_; }

  // Moves one part of a row: all parts together, in any order and also at the same time, move the row. REQUIRES: rows
  // that the arena has; nobody else touches them; the last step is below steps_max().
  void Move(char* arena, const AdvanceMove& move, size_t part) const;

 private:
  uint32_t steps_max_ = 1;
  uint64_t bytes_ = 0;
  std::vector<Part> parts_;
};

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_ADVANCE_PLAN_H_
