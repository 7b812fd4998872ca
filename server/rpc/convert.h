// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Between the messages of the contract and the structs of core.
//
// What a message can get wrong by itself is found here: a missing oneof, an enum value that nobody knows, a duration
// out of range. What needs the store (names, positions, limits, expiry against max_ttl) is left to it, so that each
// rule has one home.
#ifndef STATEPOOL_SERVER_RPC_CONVERT_H_
#define STATEPOOL_SERVER_RPC_CONVERT_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/layout_registry.h"
#include "server/core/store.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool {

// ---- from requests

// `field` is the path of the argument in its request, for errors.

// Errors: MISSING_FIELD.
absl::StatusOr<NameKey> ToNameKey(const v1::NameRef& name, absl::string_view field);
// Errors: INVALID_OPTION.
absl::StatusOr<NameOptions> ToNameOptions(const v1::NameOptions& options, absl::string_view field = "options");
absl::StatusOr<Exactness> ToExactness(v1::Exactness exactness,
                                      absl::string_view field = "exactness");  // unspecified: EXACT
// Nothing unless it was given. Whether the layout has what is selected, RangesOf says.
std::optional<Select> ToSelect(const v1::Select& select, bool given);
absl::StatusOr<NameKind> ToNameKind(v1::NameKind kind, absl::string_view field = "kind");  // unspecified: SEQUENCE
// Errors: MISSING_FIELD, INVALID_LAYOUT.
absl::StatusOr<LayoutRef> ToLayout(const v1::RegisterLayoutRequest& request);

// ---- to answers

void FillNameRef(const NameKey& key, v1::NameRef* out);
void FillNameInfo(const NameInfo& info, v1::NameInfo* out);
// with_data: with the bytes of initial values, which may be many.
void FillLayoutInfo(const LayoutRegistry::Entry& entry, v1::LayoutInfo* out, bool with_data = true);
v1::Durability ToProto(Durability durability);
// REQUIRES: finite.
google::protobuf::Duration ToProto(absl::Duration duration);
google::protobuf::Timestamp ToProto(absl::Time time);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_CONVERT_H_
