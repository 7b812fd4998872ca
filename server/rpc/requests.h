// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What several requests have. For *handlers.cc alone.
#ifndef STATEPOOL_SERVER_RPC_REQUESTS_H_
#define STATEPOOL_SERVER_RPC_REQUESTS_H_

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/xxh3.h"
#include "server/core/store.h"
#include "server/rpc/errors.h"

namespace statepool {

// Hash of method and request: equal for equal requests, whatever their request_id. Maps, which would be in random
// order, don't occur. A Set's data is not in it (RequestId).
template <typename Request>
uint64_t BodyHash(absl::string_view method, const Request& request) {
  Request body = request;
  body.clear_request_id();
  std::string bytes = absl::StrCat(method, "\n");
  google::protobuf::io::StringOutputStream stream(&bytes);  // appends
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  body.SerializeToCodedStream(&coded);
  coded.Trim();
  return Xxh3(bytes.data(), bytes.size());
}

// Of a Set without its bytes: core adds those.
template <typename Request>
absl::StatusOr<RequestId> ToRequestId(absl::string_view method, const Request& request) {
  if (request.request_id().empty()) return RequestId{};
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return InvalidArgument("INVALID_OPTION", "request_id",
                           absl::StrCat("request_id has more than ", kMaxRequestIdBytes, " bytes"));
  }
  return RequestId{request.request_id(), BodyHash(method, request)};
}

template <typename Request>
std::optional<uint64_t> IfRevision(const Request& in) {
  if (in.has_if_revision()) return in.if_revision();
  return std::nullopt;
}

// The error of item i of a batch, as the whole request sees it.
inline absl::Status InItem(const absl::Status& status, int i) {
  return BelowField(status, absl::StrCat("items[", i, "]"));
}

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_REQUESTS_H_
