// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// OpenDirect, Grant, and what other requests do with a direct lease: from messages to server/memory/leases.h and back.
#include <utility>
#include <vector>

#include "kernels/checksum.h"
#include "server/core/error.h"
#include "server/rpc/convert.h"
#include "server/rpc/errors.h"
#include "server/rpc/handlers.h"
#include "server/rpc/requests.h"

namespace statepool {
namespace {

absl::Status DirectOff() {
  return Error(absl::StatusCode::kFailedPrecondition, "DIRECT_OFF",
               "this daemon has no direct ways: it was started without --direct, or without an --arena-socket");
}

}  // namespace

absl::Status Handlers::OpenDirect(const Op& op, const v1::OpenDirectRequest&, v1::DirectLease* out) {
  if (leases_ == nullptr) return DirectOff();
  absl::StatusOr<Leases::Opened> opened = leases_->Open(op);
  if (!opened.ok()) return opened.status();
  out->set_lease(opened->lease);
  out->set_incarnation(identity_.incarnation);
  out->set_socket(identity_.arena_socket);
  out->set_token(opened->token);
  *out->mutable_token_timeout() = ToProto(leases_->options().token_timeout);
  return absl::OkStatus();
}

absl::Status Handlers::Grant(const Op& op, const v1::GrantRequest& in, v1::GrantResponse* out) {
  if (leases_ == nullptr) return DirectOff();
  const absl::StatusOr<std::vector<LeasedSlot>> slots = leases_->Grant(op, in.lease(), in.layout(), in.count());
  if (!slots.ok()) return slots.status();
  for (const LeasedSlot& slot : *slots) FillSlot(slot, out->add_slots());
  return absl::OkStatus();
}

absl::Status Handlers::CheckLease(const Op& op, absl::string_view lease) const {
  return leases_ == nullptr ? DirectOff() : leases_->Check(op, lease);
}

absl::Status Handlers::FillSlotResponse(const Op& op, GetAnswer answer, const v1::GetRequest& in,
                                        v1::GetResponse* out) const {
  const absl::StatusOr<std::vector<ByteRange>> whole = FillGetResponse(answer, in, out);
  if (!whole.ok()) return whole.status();
  const absl::StatusOr<LeasedSlot> slot = leases_->Hold(op, in.lease(), std::move(answer.pin));
  if (slot.ok()) FillSlot(*slot, out->mutable_slot());
  return slot.status();
}

absl::StatusOr<ImageRef> Handlers::Filled(const Op& op, absl::string_view lease, uint64_t grant,
                                          absl::string_view checksum, bool has_attachment) const {
  if (leases_ == nullptr) return DirectOff();
  Checksum root;
  if (checksum.empty())
    return InvalidArgument("MISSING_FIELD", "checksum", "the daemon does not look at the bytes of a granted slot");
  if (!ChecksumFromHex(checksum, &root))
    return InvalidArgument("INVALID_OPTION", "checksum", "a checksum is 16 lower-case hex digits");
  if (has_attachment)
    return InvalidArgument("INVALID_OPTION", "attachment", "a granted slot has no room for an attachment");
  return leases_->Use(op, lease, grant, root);
}

}  // namespace statepool
