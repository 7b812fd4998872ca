// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Layouts from hyper-parameters. Each formula stands in the .proto beside its preset.
#include <numeric>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/layout.h"

namespace statepool {
namespace {

constexpr uint64_t kMaxSize =
    uint64_t{1}
    << 32;  // of one hyper-parameter: products of three stay far from 2^128, and Layout::Create bounds the bytes

absl::Status Require(bool condition, absl::string_view field, absl::string_view why) {
  if (condition) return absl::OkStatus();
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_LAYOUT", absl::StrCat("invalid preset: ", field, ": ", why))
      .Field(field);
}
absl::Status RequireSize(uint64_t value, absl::string_view field) {
  return Require(value >= 1 && value <= kMaxSize, field, "must be 1..2^32");
}

std::vector<uint32_t> AllLayers(uint32_t layers) {
  std::vector<uint32_t> all(layers);
  std::iota(all.begin(), all.end(), 0u);
  return all;
}

#define STATEPOOL_RETURN_IF_ERROR(expression) \
  if (absl::Status s = (expression); !s.ok()) return s

absl::Status RequireLayers(uint32_t layers) {
  return Require(layers >= 1 && layers <= kMaxLayersPerTensor, "layers",
                 absl::StrCat("must be 1..", kMaxLayersPerTensor));
}
absl::Status RequireKernel(uint64_t conv_kernel) {
  return Require(conv_kernel >= 2 && conv_kernel <= kMaxSize, "conv_kernel",
                 "must be 2..2^32: the state keeps conv_kernel - 1 taps");
}

}  // namespace

absl::StatusOr<LayoutSpec> Mamba1Layout(const Mamba1Params& p) {
  STATEPOOL_RETURN_IF_ERROR(RequireLayers(p.layers));
  STATEPOOL_RETURN_IF_ERROR(RequireSize(p.intermediate_size, "intermediate_size"));
  STATEPOOL_RETURN_IF_ERROR(RequireSize(p.state_size, "state_size"));
  STATEPOOL_RETURN_IF_ERROR(RequireKernel(p.conv_kernel));
  LayoutSpec spec{p.model_id, {}};
  spec.tensors.push_back({"conv",
                          TensorKind::kConv,
                          AllLayers(p.layers),
                          p.conv_dtype,
                          {{"tap", p.conv_kernel - 1}, {"channel", p.intermediate_size}},
                          {},
                          Sharding{1, {}}});
  spec.tensors.push_back({"ssm",
                          TensorKind::kRecurrent,
                          AllLayers(p.layers),
                          p.recurrent_dtype,
                          {{"channel", p.intermediate_size}, {"state", p.state_size}},
                          {},
                          Sharding{0, {}}});
  return spec;
}

absl::StatusOr<LayoutSpec> Mamba2Layout(const Mamba2Params& p) {
  STATEPOOL_RETURN_IF_ERROR(RequireLayers(p.layers));
  STATEPOOL_RETURN_IF_ERROR(RequireSize(p.heads, "heads"));
  STATEPOOL_RETURN_IF_ERROR(RequireSize(p.head_dim, "head_dim"));
  STATEPOOL_RETURN_IF_ERROR(RequireSize(p.state_size, "state_size"));
  STATEPOOL_RETURN_IF_ERROR(RequireSize(p.groups, "groups"));
  STATEPOOL_RETURN_IF_ERROR(RequireKernel(p.conv_kernel));
  STATEPOOL_RETURN_IF_ERROR(
      Require(p.heads <= kMaxStateBytes / p.head_dim, "head_dim", "heads * head_dim is too large"));
  STATEPOOL_RETURN_IF_ERROR(
      Require(p.groups <= kMaxStateBytes / p.state_size, "groups", "groups * state_size is too large"));
  const uint64_t x = p.heads * p.head_dim, bc = p.groups * p.state_size;
  LayoutSpec spec{p.model_id, {}};
  spec.tensors.push_back({"conv",
                          TensorKind::kConv,
                          AllLayers(p.layers),
                          p.conv_dtype,
                          {{"tap", p.conv_kernel - 1}, {"channel", x + 2 * bc}},
                          {},
                          Sharding{1, {x, bc, bc}}});
  spec.tensors.push_back({"ssm",
                          TensorKind::kRecurrent,
                          AllLayers(p.layers),
                          p.recurrent_dtype,
                          {{"head", p.heads}, {"head_dim", p.head_dim}, {"state", p.state_size}},
                          {},
                          Sharding{0, {}}});
  return spec;
}

absl::StatusOr<LayoutSpec> Rwkv7Layout(const Rwkv7Params& p) {
  STATEPOOL_RETURN_IF_ERROR(RequireLayers(p.layers));
  STATEPOOL_RETURN_IF_ERROR(RequireSize(p.hidden_size, "hidden_size"));
  STATEPOOL_RETURN_IF_ERROR(RequireSize(p.head_size, "head_size"));
  STATEPOOL_RETURN_IF_ERROR(
      Require(p.hidden_size % p.head_size == 0, "hidden_size", "must be a multiple of head_size"));
  LayoutSpec spec{p.model_id, {}};
  spec.tensors.push_back({"att_shift",
                          TensorKind::kShift,
                          AllLayers(p.layers),
                          p.shift_dtype,
                          {{"channel", p.hidden_size}},
                          {},
                          std::nullopt});
  spec.tensors.push_back({"wkv",
                          TensorKind::kRecurrent,
                          AllLayers(p.layers),
                          p.wkv_dtype,
                          {{"head", p.hidden_size / p.head_size}, {"value", p.head_size}, {"key", p.head_size}},
                          {},
                          Sharding{0, {}}});
  spec.tensors.push_back({"ffn_shift",
                          TensorKind::kShift,
                          AllLayers(p.layers),
                          p.shift_dtype,
                          {{"channel", p.hidden_size}},
                          {},
                          std::nullopt});
  return spec;
}

}  // namespace statepool
