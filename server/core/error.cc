// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/error.h"

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace statepool {
namespace {

constexpr absl::string_view kPayload = "statepool.error";

// Length-prefixed strings: values may hold anything.
void Put(std::string* out, absl::string_view s) { absl::StrAppend(out, s.size(), ":", s); }

bool Take(absl::string_view* in, std::string* out) {
  const size_t colon = in->find(':');
  size_t size;
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(in->substr(0, colon), &size)) return false;
  in->remove_prefix(colon + 1);
  if (in->size() < size) return false;
  *out = std::string(in->substr(0, size));
  in->remove_prefix(size);
  return true;
}

}  // namespace

Error::Error(absl::StatusCode code, absl::string_view reason, absl::string_view message)
    : code_(code), message_(message) {
  detail_.reason = std::string(reason);
}

Error& Error::Field(absl::string_view field) {
  detail_.field = std::string(field);
  return *this;
}
Error& Error::Meta(absl::string_view key, absl::string_view value) {
  detail_.metadata.emplace_back(std::string(key), std::string(value));
  return *this;
}
Error& Error::Meta(absl::string_view key, uint64_t value) { return Meta(key, absl::StrCat(value)); }
Error& Error::RetryAfter(absl::Duration after) {
  detail_.retry_after = after;
  return *this;
}

Error::operator absl::Status() const {
  std::string payload;
  Put(&payload, detail_.reason);
  Put(&payload, detail_.field);
  Put(&payload, absl::StrCat(absl::ToInt64Nanoseconds(detail_.retry_after)));
  for (const auto& [key, value] : detail_.metadata) {
    Put(&payload, key);
    Put(&payload, value);
  }
  absl::Status status(code_, message_);
  status.SetPayload(kPayload, absl::Cord(payload));
  return status;
}

ErrorDetail GetErrorDetail(const absl::Status& status) {
  ErrorDetail detail;
  if (status.ok()) return detail;
  const absl::optional<absl::Cord> payload = status.GetPayload(kPayload);
  if (!payload.has_value()) {
    detail.reason = "INTERNAL";
    return detail;
  }
  const std::string text(*payload);
  absl::string_view in = text;
  std::string retry, key, value;
  int64_t nanoseconds = 0;
  if (Take(&in, &detail.reason) && Take(&in, &detail.field) && Take(&in, &retry) &&
      absl::SimpleAtoi(retry, &nanoseconds)) {
    detail.retry_after = absl::Nanoseconds(nanoseconds);
  }
  while (!in.empty() && Take(&in, &key) && Take(&in, &value)) detail.metadata.emplace_back(key, value);
  return detail;
}

std::string ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason; }

}  // namespace statepool
