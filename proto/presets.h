// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Presets: the families of recurrent models, and the layout that a family's hyper-parameters make. Daemon and tool
// share it, so that a preset is one layout everywhere. What each family's parameters mean stands in the .proto.
#ifndef STATEPOOL_PROTO_PRESETS_H_
#define STATEPOOL_PROTO_PRESETS_H_

#include <optional>
#include <string>
#include <vector>

#include "statepool/v1/statepool.pb.h"

namespace statepool {

// What is wrong with a preset.
struct PresetFault {
  std::string field;  // its path in the preset: "mamba2.heads", "hybrid.parts[1].layer_ids"; "" if no family is named
  std::string what;   // "must be 1..2^32"
};

// Writes to `*layout` what the preset stands for; nothing to be said if that succeeded. What only a layout is checked
// for (its model_id, its bytes together) is not checked here. Thread-safe.
std::optional<PresetFault> LayoutOfPreset(const v1::LayoutPreset& preset, v1::Layout* layout);

// Where a preset says what its tensor number `tensor` is like, as a path in it. REQUIRES: LayoutOfPreset made that
// tensor.
struct PresetFields {
  std::string family;   // "mamba2", "hybrid.parts[1].mamba2"
  std::string prefix;   // "prefix", "hybrid.parts[1].prefix"
  std::string initial;  // "initial[\"pp\"]": also where nothing is there
};
PresetFields FieldsOfTensor(const v1::LayoutPreset& preset, int tensor);

// A family as a person reads it.
struct PresetFamily {
  struct Parameter {
    std::string name;
    std::string fallback;  // what an absent one is; empty: it must be given
    std::string help;
  };
  std::string name;     // of its field in LayoutPreset
  std::string tensors;  // "conv [tap K-1, channel I], ssm [channel I, state N]"
  std::vector<Parameter> parameters;
  std::string example;  // a LayoutPreset in JSON
};
const std::vector<PresetFamily>& PresetFamilies();

}  // namespace statepool

#endif  // STATEPOOL_PROTO_PRESETS_H_
