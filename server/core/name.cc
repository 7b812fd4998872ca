// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/name.h"

#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool {
namespace {

// Length of the valid UTF-8 sequence at the front that is not a control character; 0 for anything else.
size_t PrintableUtf8(absl::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || s.size() < length) return 0;
  uint32_t point = first & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    point = point << 6 | (byte(i) & 0x3f);
  }
  const bool overlong = (length == 3 && point < 0x800) || (length == 4 && point < 0x10000);
  const bool surrogate = point >= 0xd800 && point <= 0xdfff;
  const bool control = point < 0xa0;  // C1
  return overlong || surrogate || control || point > 0x10ffff ? 0 : length;
}

absl::Status Invalid(absl::string_view why, absl::string_view field) {
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_NAME",
               absl::StrCat(
                   "invalid name: ", why, ". Names are 1..", kMaxNameBytes,
                   " bytes of UTF-8 without control characters; '/' separates segments, none empty, '.' or '..'"))
      .Field(field);
}

}  // namespace

absl::Status ValidateName(absl::string_view name, absl::string_view field) {
  if (name.empty()) return Invalid("it is empty", field);
  if (name.size() > kMaxNameBytes) return Invalid(absl::StrCat("it has ", name.size(), " bytes"), field);
  for (absl::string_view rest = name; !rest.empty();) {
    const size_t n = PrintableUtf8(rest);
    if (n == 0) return Invalid("it has a control character or is not UTF-8", field);
    rest.remove_prefix(n);
  }
  for (absl::string_view rest = name;;) {
    const size_t slash = rest.find('/');
    const absl::string_view segment = rest.substr(0, slash);
    if (segment.empty() || segment == "." || segment == "..") {
      return Invalid(absl::StrCat("it has the segment '", segment, "'"), field);
    }
    if (slash == absl::string_view::npos) return absl::OkStatus();
    rest.remove_prefix(slash + 1);
  }
}

absl::Status ValidatePosition(int64_t position, absl::string_view field) {
  if (position >= 0 && position <= kMaxPosition) return absl::OkStatus();
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_POSITION",
               absl::StrCat("position ", position, " is outside 0..2^53: it is the number of tokens consumed"))
      .Field(field);
}

absl::Status ValidateRequestId(absl::string_view id) {
  if (id.size() <= kMaxRequestIdBytes) return absl::OkStatus();
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_OPTION",
               absl::StrCat("a request_id has at most ", kMaxRequestIdBytes, " bytes"))
      .Field("request_id");
}

}  // namespace statepool
