// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Errors that the Store and those who write for it give.
#ifndef STATEPOOL_SERVER_CORE_STORE_ERRORS_H_
#define STATEPOOL_SERVER_CORE_STORE_ERRORS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/core/layout.h"
#include "server/core/name_table.h"

#define RETURN_IF_ERROR(expression) \
  if (absl::Status s = (expression); !s.ok()) return s

namespace statepool {

absl::Status Invalid(absl::string_view reason, absl::string_view field, absl::string_view message);
absl::Status RequestIdReused();
// `name` is there, and the write would make it. `advice`: what to do about it.
absl::Status NameExists(const Name& name, absl::string_view field, absl::string_view advice);
absl::Status ChecksumMismatch(Checksum expected, Checksum actual);
absl::Status LayoutMismatch(absl::StatusCode code, const Layout& expected, const Layout& actual);

// Positions of a ring's versions, newest first, separated by commas: the metadata "positions".
std::string PositionsOf(const Ring& ring);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_STORE_ERRORS_H_
