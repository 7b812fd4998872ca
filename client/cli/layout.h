// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Layouts from files.
#ifndef STATEPOOL_CLIENT_CLI_LAYOUT_H_
#define STATEPOOL_CLIENT_CLI_LAYOUT_H_

#include <string>

#include "absl/status/statusor.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::cli {

// From the JSON of a Layout, a LayoutPreset, a RegisterLayoutRequest, or what 'layout show -o json' printed: told apart
// by the keys at the top. Fields that the message does not have are errors. Errors: USAGE, field FILE.
absl::StatusOr<v1::RegisterLayoutRequest> LayoutFromJson(const std::string& text);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_LAYOUT_H_
