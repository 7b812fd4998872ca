// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// How many bytes the states of a layout have, and of models that are well known, without a daemon.
#ifndef STATEPOOL_CLIENT_CLI_LAYOUT_SIZE_H_
#define STATEPOOL_CLIENT_CLI_LAYOUT_SIZE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/json.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::cli {

// The layout that a preset stands for (proto/presets.h). Errors: USAGE, the parameter as field.
absl::StatusOr<v1::Layout> FromPreset(const v1::LayoutPreset& preset);

// {"state_bytes", "tensors": [{"name", "kind", "dtype", "layers", "axes", "layer_bytes", "tensor_bytes"}]}.
// Errors: USAGE, for a dtype that this tool does not know or a size beyond 2^63.
absl::StatusOr<Json> SizesOf(const v1::Layout& layout);

// Models whose sizes are what one plans with, smallest first: convolutions in 2 bytes, recurrences in 4.
struct Model {
  std::string name;
  v1::LayoutPreset preset;  // without a model_id
};
const std::vector<Model>& Models();
// {"name", "family", "layers", "state_bytes", "megabytes"}, these decimal.
Json SizeOfModel(const Model& model);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_LAYOUT_SIZE_H_
