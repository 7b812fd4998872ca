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
#include <type_traits>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/xxh3.h"
#include "server/core/store.h"
#include "server/memory/leases.h"
#include "server/rpc/errors.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool {

// Hash of method and request: equal for equal requests, whatever their request_id, and wherever their bytes lay. Maps,
// which would be in random order, don't occur. A Set's data is not in it (RequestId).
template <typename Request>
uint64_t BodyHash(absl::string_view method, const Request& request) {
  Request body = request;
  body.clear_request_id();
  // Where the bytes were is no part of what was asked for.
  if constexpr (requires { body.clear_grant(); }) body.clear_grant();
  if constexpr (requires { body.clear_lease(); }) body.clear_lease();
  if constexpr (std::is_same_v<Request, v1::StoreItem>) body.clear_checksum();
  if constexpr (std::is_same_v<Request, v1::StoreItem>) body.clear_advance();  // of the row, not of what is stored
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
  // Here too, before core: what it is kept for elsewhere (uploads, ranks' parts) is bounded as well.
  if (absl::Status status = ValidateRequestId(request.request_id()); !status.ok()) return status;
  return RequestId{request.request_id(), BodyHash(method, request)};
}

template <typename Request>
std::optional<uint64_t> IfRevision(const Request& in) {
  if (in.has_if_revision()) return in.if_revision();
  return std::nullopt;
}

inline void FillSlot(const LeasedSlot& slot, v1::Slot* out) {
  out->set_id(slot.id);
  out->set_extent(slot.extent);
  out->set_offset(slot.offset);
}

// Where a lease makes no sense: a batch, a stream.
template <typename Request>
absl::Status WithoutLease(const Request& in) {
  if (in.lease().empty()) return absl::OkStatus();
  return InvalidArgument("INVALID_OPTION", "lease", "only Get, Set, Load and Store take a direct lease");
}

// The error of item i of a batch, as the whole request sees it.
inline absl::Status InItem(const absl::Status& status, int i) {
  return BelowField(status, absl::StrCat("items[", i, "]"));
}

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_REQUESTS_H_
