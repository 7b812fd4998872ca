// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Layouts of Hugging Face models from their config.json, without a daemon. The table of models that are known is
// client/python/src/statepool/hf_models.json, compiled in; the Python client reads the same (statepool/_hf.py), so that
// both give one layout.
#ifndef STATEPOOL_CLIENT_CLI_LAYOUT_HF_H_
#define STATEPOOL_CLIENT_CLI_LAYOUT_HF_H_

#include <string>

#include "absl/status/statusor.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::cli {

// What transformers' cache of this model holds of recurrent states, in the canonical form. `config` is the text of a
// config.json; `dtype` that of the weights: float32, float16 or bfloat16, empty: the config's (float32 if it has none).
// Keys that are not there are what transformers takes then. Thread-safe.
// Errors: USAGE, the config's key as field where it is one, else CONFIG; a model_type that is not known, or has no
// recurrent layers; sizes that make no sense.
absl::StatusOr<v1::Layout> LayoutFromHf(const std::string& config, const std::string& model_id,
                                        const std::string& dtype);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_LAYOUT_HF_H_
