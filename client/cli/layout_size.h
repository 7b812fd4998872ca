// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// How many bytes the states of a layout have, without a daemon: the formulas of the contract
// (proto/statepool/v1/statepool.proto).
#ifndef STATEPOOL_CLIENT_CLI_LAYOUT_SIZE_H_
#define STATEPOOL_CLIENT_CLI_LAYOUT_SIZE_H_

#include "absl/status/statusor.h"
#include "client/cli/json.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::cli {

// The layout that a preset stands for, as the daemon makes it but for how its tensors are sharded. Checks only what the
// size needs. Errors: USAGE, the parameter as field.
absl::StatusOr<v1::Layout> LayoutOfPreset(const v1::LayoutPreset& preset);

// {"state_bytes", "tensors": [{"name", "kind", "dtype", "layers", "axes", "layer_bytes", "tensor_bytes"}]}.
// Errors: USAGE, for a dtype that this tool does not know or a size beyond 2^63.
absl::StatusOr<Json> SizesOf(const v1::Layout& layout);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_LAYOUT_SIZE_H_
