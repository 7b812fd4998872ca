// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Handlers: each RPC as a plain function from request to answer: check and convert, call the Store, convert back.
//
// There is no gRPC server in here; service.h decides on which thread a handler runs and moves the bytes of states.
#ifndef STATEPOOL_SERVER_RPC_HANDLERS_H_
#define STATEPOOL_SERVER_RPC_HANDLERS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/core/store.h"
#include "server/memory/arenas.h"
#include "server/memory/leases.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool {

// What the daemon says of itself, besides the Store's own options.
struct Identity {
  std::string version, commit, incarnation;
  uint64_t max_message_bytes = 0;  // of the transport
  uint64_t max_bytes_in_flight = 0;
  uint64_t max_state_bytes = 0;         // that fit a message and the hot budget
  uint64_t max_stream_state_bytes = 0;  // that fit the hot budget
  uint32_t max_uploads = 0;
  uint64_t max_upload_bytes = 0;
  absl::Duration upload_timeout = absl::ZeroDuration(), stream_timeout = absl::ZeroDuration();
  std::string arena_socket = {};
};
// The devices of this moment. Thread-safe; never blocks.
using DeviceReport = std::function<std::vector<v1::DeviceInfo>()>;

// Thread-safe. `store`, `arenas` and `leases` must outlive it; without arenas (null) their RPCs say ARENAS_OFF, without
// leases what needs one DIRECT_OFF. Errors are those of the .proto. All may block but for GetCapabilities, GetLayout,
// ListLayouts, Describe, List and MatchPrefix.
class Handlers {
 public:
  Handlers(statepool::Store* store, Arenas* arenas, Leases* leases, Identity identity, DeviceReport devices)
      : store_(store), arenas_(arenas), leases_(leases), identity_(std::move(identity)), devices_(std::move(devices)) {}

  absl::Status GetCapabilities(const Op& op, const v1::GetCapabilitiesRequest& in, v1::Capabilities* out);
  absl::Status RegisterLayout(const Op& op, const v1::RegisterLayoutRequest& in, v1::LayoutInfo* out);
  absl::Status GetLayout(const Op& op, const v1::GetLayoutRequest& in, v1::LayoutInfo* out);
  absl::Status ListLayouts(const Op& op, const v1::ListLayoutsRequest& in, v1::ListLayoutsResponse* out);
  absl::Status DeleteLayout(const Op& op, const v1::DeleteLayoutRequest& in, v1::DeleteLayoutResponse* out);
  absl::Status Create(const Op& op, const v1::CreateRequest& in, v1::NameInfo* out);
  absl::Status Fork(const Op& op, const v1::ForkRequest& in, v1::ForkResponse* out);
  absl::Status Describe(const Op& op, const v1::DescribeRequest& in, v1::NameInfo* out);
  absl::Status Touch(const Op& op, const v1::TouchRequest& in, v1::TouchResponse* out);
  absl::Status SetTtl(const Op& op, const v1::SetTtlRequest& in, v1::NameInfo* out);
  absl::Status List(const Op& op, const v1::ListRequest& in, v1::ListResponse* out);
  absl::Status Delete(const Op& op, const v1::DeleteRequest& in, v1::DeleteResponse* out);
  absl::Status DeleteMany(const Op& op, const v1::DeleteManyRequest& in, v1::DeleteManyResponse* out);
  absl::Status Rollback(const Op& op, const v1::RollbackRequest& in, v1::NameInfo* out);
  absl::Status RemoveRange(const Op& op, const v1::RemoveRangeRequest& in, v1::RemoveRangeResponse* out);
  absl::Status Renumber(const Op& op, const v1::RenumberRequest& in, v1::NameInfo* out);
  absl::Status Snapshot(const Op& op, const v1::SnapshotRequest& in, v1::NameInfo* out);
  absl::Status Restore(const Op& op, const v1::RestoreRequest& in, v1::NameInfo* out);
  absl::Status PublishPrefix(const Op& op, const v1::PublishPrefixRequest& in, v1::PublishPrefixResponse* out);
  absl::Status MatchPrefix(const Op& op, const v1::MatchPrefixRequest& in, v1::MatchPrefixResponse* out);
  absl::Status Flush(const Op& op, const v1::FlushRequest& in, v1::FlushResponse* out);

  // arena_handlers.cc
  absl::Status OpenArena(const Op& op, const v1::OpenArenaRequest& in, v1::Arena* out);
  absl::Status Load(const Op& op, const v1::LoadRequest& in, v1::LoadResponse* out);
  absl::Status Store(const Op& op, const v1::StoreRequest& in, v1::StoreResponse* out);
  absl::Status Advance(const Op& op, const v1::AdvanceRequest& in, v1::AdvanceResponse* out);
  // The same for requests with flag words. `finish` is called once, before they return or later on another thread;
  // `in`, `out` and what `op` looks at must be there until then.
  using Finish = absl::AnyInvocable<void(const absl::Status& status)>;
  void LoadWithFlags(const Op& op, const v1::LoadRequest& in, v1::LoadResponse* out, Finish finish);
  void StoreWithFlags(const Op& op, const v1::StoreRequest& in, v1::StoreResponse* out, Finish finish);
  void AdvanceWithFlags(const Op& op, const v1::AdvanceRequest& in, v1::AdvanceResponse* out, Finish finish);
  absl::Status CloseArena(const Op& op, const v1::CloseArenaRequest& in, v1::CloseArenaResponse* out);

  // direct_handlers.cc
  absl::Status OpenDirect(const Op& op, const v1::OpenDirectRequest& in, v1::DirectLease* out);
  absl::Status Grant(const Op& op, const v1::GrantRequest& in, v1::GrantResponse* out);
  // Whether this lease may be used.
  absl::Status CheckLease(const Op& op, absl::string_view lease) const;
  // What FillGetResponse does, for a request with a lease: `out` has a slot, which is pinned for it.
  absl::Status FillSlotResponse(const Op& op, GetAnswer answer, const v1::GetRequest& in, v1::GetResponse* out) const;

  // `in` lacks `data`, which comes as pieces.
  absl::Status Set(const Op& op, const v1::SetRequest& in, absl::Span<const absl::string_view> data, v1::NameInfo* out);
  absl::Status BatchWrite(const Op& op, const v1::BatchWriteRequest& in, absl::Span<const absl::string_view> data,
                          v1::BatchWriteResponse* out);
  // What a Set asks for, but for its bytes.
  struct SetArguments {
    SetRequest request;
    std::string attachment;
    std::optional<Checksum> checksum;
  };
  static absl::StatusOr<SetArguments> ToSet(const v1::SetRequest& in);

  // Get in two halves, with Store::TryGet or Store::Get between them. `out` lacks `data`, which stays in the pinned
  // slot: the ranges say what of it was asked for.
  absl::StatusOr<Source> GetSource(const v1::GetRequest& in) const;
  absl::StatusOr<std::vector<ByteRange>> FillGetResponse(const GetAnswer& answer, const v1::GetRequest& in,
                                                         v1::GetResponse* out) const;
  // Bytes of the state and of its attachment that the answer to `in` has. `answer` need not be pinned.
  static absl::StatusOr<uint64_t> AnswerBytes(const GetAnswer& answer, const v1::GetRequest& in);
  // `out` lacks `data`: the parts, one after the other.
  struct PinnedPart {
    Pin pin;
    std::vector<ByteRange> ranges;
  };
  // `admit` is asked, once, whether an answer with so many bytes may be sent, before any are read.
  absl::StatusOr<std::vector<PinnedPart>> BatchGet(const Op& op, const v1::BatchGetRequest& in,
                                                   absl::FunctionRef<absl::Status(uint64_t bytes)> admit,
                                                   v1::BatchGetResponse* out);

 private:
  // The image that a worker wrote into a granted slot, with the checksum that it told. direct_handlers.cc
  absl::StatusOr<ImageRef> Filled(const Op& op, absl::string_view lease, uint64_t grant, absl::string_view checksum,
                                  bool has_attachment) const;
  // arena_handlers.cc
  std::vector<StoreItem> ItemsOf(const Op& op, const v1::StoreRequest& in) const;

  statepool::Store* const store_;
  Arenas* const arenas_;
  Leases* const leases_;
  const Identity identity_;
  const DeviceReport devices_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_HANDLERS_H_
