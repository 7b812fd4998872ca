// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Views: how one engine sees a layout, and so how an arena of it is built. The words are those of the .proto (View,
// ArenaTensor).
#ifndef STATEPOOL_SERVER_CORE_VIEW_H_
#define STATEPOOL_SERVER_CORE_VIEW_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/advance_plan.h"
#include "kernels/copy_plan.h"
#include "server/core/layout.h"

namespace statepool {

inline constexpr uint32_t kMaxArenaRows = 4096;
inline constexpr uint32_t kMaxArenaSteps = kAcceptedStepsMax;
inline constexpr uint32_t kMaxConvPadding = 8;
inline constexpr uint32_t kMaxNumSpec = 64;
inline constexpr uint32_t kMaxTpSize = 1024;
inline constexpr size_t kMaxArenaTensors = 8192;       // with a tensor for each layer
inline constexpr size_t kMaxArenaSegments = 64 << 10;  // layers of all tensors

struct View {
  enum class Layers : uint8_t { kPerLayer = 0, kLayerMajor = 1, kRowMajor = 2 };  // numbers as in the .proto
  struct AxisOrder {
    std::string tensor;
    std::vector<std::string> axes;
  };

  Layers layers = Layers::kPerLayer;
  std::vector<AxisOrder> axis_orders = {};
  uint32_t conv_padding = 0;
  uint32_t num_spec = 0;
  std::vector<std::string> without_num_spec = {};  // CONV tensors that it does not widen
  uint32_t tp_size = 1, tp_rank = 0;               // this rank's part of each tensor, as the layout shards it
};

struct ArenaTensor {
  size_t tensor = 0;             // index into the layout's
  std::vector<uint32_t> layers;  // of the model: one, or all of the tensor's
  std::vector<std::string> axes;
  std::vector<uint64_t> shape, strides;  // parallel to axes; strides in bytes
  uint64_t offset = 0;                   // bytes from the arena's beginning
};

// What an arena of `rows` rows is made of. With tp_size > 1 its plan is not whole: it copies the rank's part, and those
// of all ranks together are the state.
struct ArenaShape {
  uint32_t rows = 0, steps = 0;  // as asked for
  uint32_t tp_size = 1, tp_rank = 0;
  uint64_t bytes = 0;      // of all
  uint64_t row_bytes = 0;  // of one row of all tensors
  std::vector<ArenaTensor> tensors;
  CopyPlan plan;
  // What a rank's Store copies, with tp_size > 1: of bytes that several ranks have the first of them brings them.
  std::optional<CopyPlan> store_plan;
  AdvancePlan advance_plan;

  uint32_t max_accepted() const { return steps == 0 ? 1 : steps; }
};

// Errors: INVALID_VIEW with the field (below "view"). REQUIRES: 1 <= rows <= kMaxArenaRows, steps <= kMaxArenaSteps.
absl::StatusOr<ArenaShape> MakeArenaShape(const Layout& layout, const View& view, uint32_t rows, uint32_t steps);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_VIEW_H_
