// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Handlers: each RPC as a plain function from request to answer: check and convert, call the Store, convert back.
//
// There is no gRPC server in here; service.h decides on which thread a handler runs and moves the bytes of states.
#ifndef STATEPOOL_SERVER_RPC_HANDLERS_H_
#define STATEPOOL_SERVER_RPC_HANDLERS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/core/store.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool {

// What the daemon says of itself, besides the Store's own options.
struct Identity {
  std::string version, commit, incarnation;
  uint64_t max_message_bytes = 0;  // of the transport
  uint64_t max_bytes_in_flight = 0;
  uint64_t max_state_bytes = 0;
};
// The devices of this moment. Thread-safe; never blocks.
using DeviceReport = std::function<std::vector<v1::DeviceInfo>()>;

// Thread-safe. `store` must outlive it. Errors are those of the .proto. All may block but for GetCapabilities,
// GetLayout, ListLayouts, Describe, List and MatchPrefix.
class Handlers {
 public:
  Handlers(Store* store, Identity identity, DeviceReport devices)
      : store_(store), identity_(std::move(identity)), devices_(std::move(devices)) {}

  absl::Status GetCapabilities(const Op& op, const v1::GetCapabilitiesRequest& in, v1::Capabilities* out);
  absl::Status RegisterLayout(const Op& op, const v1::RegisterLayoutRequest& in, v1::LayoutInfo* out);
  absl::Status GetLayout(const Op& op, const v1::GetLayoutRequest& in, v1::LayoutInfo* out);
  absl::Status ListLayouts(const Op& op, const v1::ListLayoutsRequest& in, v1::ListLayoutsResponse* out);
  absl::Status Create(const Op& op, const v1::CreateRequest& in, v1::NameInfo* out);
  absl::Status Fork(const Op& op, const v1::ForkRequest& in, v1::ForkResponse* out);
  absl::Status Describe(const Op& op, const v1::DescribeRequest& in, v1::NameInfo* out);
  absl::Status List(const Op& op, const v1::ListRequest& in, v1::ListResponse* out);
  absl::Status Delete(const Op& op, const v1::DeleteRequest& in, v1::DeleteResponse* out);
  absl::Status Rollback(const Op& op, const v1::RollbackRequest& in, v1::NameInfo* out);
  absl::Status Snapshot(const Op& op, const v1::SnapshotRequest& in, v1::NameInfo* out);
  absl::Status Restore(const Op& op, const v1::RestoreRequest& in, v1::NameInfo* out);
  absl::Status PublishPrefix(const Op& op, const v1::PublishPrefixRequest& in, v1::PublishPrefixResponse* out);
  absl::Status MatchPrefix(const Op& op, const v1::MatchPrefixRequest& in, v1::MatchPrefixResponse* out);
  absl::Status Flush(const Op& op, const v1::FlushRequest& in, v1::FlushResponse* out);

  // `in` lacks `data`, which comes as pieces.
  absl::Status Set(const Op& op, const v1::SetRequest& in, absl::Span<const absl::string_view> data, v1::NameInfo* out);
  // Get in two halves, with Store::TryGet or Store::Get between them. `out` lacks `data`, which stays in the pinned
  // slot.
  absl::StatusOr<Source> GetSource(const v1::GetRequest& in) const;
  void FillGetResponse(const GetAnswer& answer, bool omit_attachment, v1::GetResponse* out) const;

 private:
  Store* const store_;
  const Identity identity_;
  const DeviceReport devices_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_HANDLERS_H_
