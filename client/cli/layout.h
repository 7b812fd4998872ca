// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Layouts from files, and what there is to say about presets.
#ifndef STATEPOOL_CLIENT_CLI_LAYOUT_H_
#define STATEPOOL_CLIENT_CLI_LAYOUT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::cli {

// From the JSON of a Layout, a LayoutPreset, a RegisterLayoutRequest, or what 'layout show -o json' printed: told apart
// by the keys at the top. Fields that the message does not have are errors. Errors: USAGE, field FILE.
absl::StatusOr<v1::RegisterLayoutRequest> LayoutFromJson(const std::string& text);

// For people; the fields of the presets' messages are the truth, and a test compares.
struct PresetHelp {
  struct Parameter {
    absl::string_view name;
    absl::string_view fallback;  // empty: required
    absl::string_view help;
  };
  absl::string_view family;
  absl::string_view tensors;
  std::vector<Parameter> parameters;
  absl::string_view example;  // JSON of a LayoutPreset
};
const std::vector<PresetHelp>& PresetHelps();

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_LAYOUT_H_
