// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/store_errors.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/error.h"

namespace statepool {

absl::Status Invalid(absl::string_view reason, absl::string_view field, absl::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, reason, message).Field(field);
}

absl::Status RequestIdReused() {
  return Invalid("REQUEST_ID_REUSED", "request_id",
                 "this request_id belongs to an earlier, different request; choose a new one");
}

absl::Status NameExists(const Name& name, absl::string_view field, absl::string_view advice) {
  return Error(absl::StatusCode::kAlreadyExists, "NAME_EXISTS",
               absl::StrCat("a ", name.key.kind == NameKind::kSnapshot ? "snapshot" : "sequence", " '", name.key.name,
                            "' exists; ", advice))
      .Field(field)
      .Meta("revision", name.state.revision);
}

absl::Status ChecksumMismatch(Checksum expected, Checksum actual) {
  return Error(absl::StatusCode::kInvalidArgument, "CHECKSUM_MISMATCH",
               "the bytes are not those that the checksum was made from")
      .Field("checksum")
      .Meta("expected", ChecksumToHex(expected))
      .Meta("actual", ChecksumToHex(actual));
}

absl::Status LayoutMismatch(absl::StatusCode code, const Layout& expected, const Layout& actual) {
  return Error(code, "LAYOUT_MISMATCH", "the name holds a state of another layout; states of two layouts never mix")
      .Field("layout")
      .Meta("expected", expected.fingerprint())
      .Meta("actual", actual.fingerprint());
}

std::string PositionsOf(const Ring& ring) {
  return absl::StrJoin(ring.rbegin(), ring.rend(), ",",
                       [](std::string* out, const VersionRef& v) { absl::StrAppend(out, v->position); });
}

}  // namespace statepool
