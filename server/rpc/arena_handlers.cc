// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// OpenArena, Load, Store, Advance, CloseArena: from messages to server/memory/arenas.h and back.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/rpc/convert.h"
#include "server/rpc/errors.h"
#include "server/rpc/handlers.h"
#include "server/rpc/requests.h"

namespace statepool {
namespace {

absl::Status ArenasOff() {
  return Error(absl::StatusCode::kFailedPrecondition, "ARENAS_OFF",
               "this daemon has no arenas: its --arena-socket is empty, or could not be used");
}

absl::StatusOr<View> ToView(const v1::View& in) {
  View view;
  switch (in.layers()) {
    case v1::View::PER_LAYER: view.layers = View::Layers::kPerLayer; break;
    case v1::View::LAYER_MAJOR: view.layers = View::Layers::kLayerMajor; break;
    case v1::View::ROW_MAJOR: view.layers = View::Layers::kRowMajor; break;
    default: return InvalidArgument("INVALID_VIEW", "view.layers", "not a value that this daemon knows");
  }
  for (const v1::AxisOrder& order : in.axis_orders())
    view.axis_orders.push_back({order.tensor(), {order.axes().begin(), order.axes().end()}});
  view.conv_padding = in.conv_padding();
  if (in.tp_size() != 0) view.tp_size = in.tp_size();
  view.tp_rank = in.tp_rank();
  view.num_spec = in.num_spec();
  view.without_num_spec.assign(in.without_num_spec().begin(), in.without_num_spec().end());
  return view;
}

LoadItem ToCore(const v1::LoadItem& in) {
  LoadItem item;
  item.row = in.row();
  item.row_unmodified = in.row_unmodified();
  item.with_attachment = in.with_attachment();
  absl::StatusOr<NameKey> key = ToNameKey(in.name(), "name");
  item.refused = key.status();
  if (key.ok()) item.source.key = *std::move(key);
  if (in.has_position()) item.source.position = in.position();
  item.source.version_id = in.version_id();
  return item;
}

StoreItem ToCore(const v1::StoreItem& in) {
  StoreItem item;
  item.row = in.row();
  item.set.sequence = in.sequence();
  item.set.position = in.position();
  item.set.if_revision = IfRevision(in);
  if (in.has_accepted_length()) item.accepted_length = in.accepted_length();
  item.path.assign(in.path().begin(), in.path().end());
  item.advance = in.advance();
  item.skip_none = in.skip_none();
  item.align = in.align();
  item.any_revision = in.any_revision();
  item.whole_row = in.whole_row();
  item.attachment = in.attachment();
  if (in.exactness() != v1::EXACTNESS_UNSPECIFIED) {
    const absl::StatusOr<Exactness> exactness = ToExactness(in.exactness());
    item.refused.Update(exactness.status());
    if (exactness.ok()) item.set.exactness = *exactness;
  }
  absl::StatusOr<NameOptions> options = ToNameOptions(in.options());
  item.refused.Update(options.status());
  if (options.ok()) item.set.options = *std::move(options);
  absl::StatusOr<RequestId> request = ToRequestId("Store", in);
  item.refused.Update(request.status());
  if (request.ok()) item.set.request = *std::move(request);
  return item;
}

AdvanceRequest ToCore(const v1::AdvanceRequest& in) {
  AdvanceRequest request;
  request.rules = {in.skip_none(), in.skip_out_of_range(), in.verified_length()};
  request.request_id = in.request_id();
  for (const v1::AdvanceItem& from : in.items()) {
    AdvanceItem& item = request.items.emplace_back();
    item.row = from.row();
    if (from.has_accepted_length()) item.accepted_length = from.accepted_length();
    item.path.assign(from.path().begin(), from.path().end());
    if (from.has_to_row()) item.to_row = from.to_row();
  }
  return request;
}

template <typename Request>
CallFlags FlagsOf(const Request& in) {
  CallFlags flags;
  if (in.has_after()) flags.after = FlagValue{in.after().word(), in.after().value()};
  if (in.has_done()) flags.done = FlagValue{in.done().word(), in.done().value()};
  return flags;
}

absl::Status WithALeaseOnly() {
  return InvalidArgument("INVALID_OPTION", "grants", "with a lease, at most one slot for each item");
}
absl::Status NotWithALease() {
  return InvalidArgument("INVALID_OPTION", "lease", "flag words are for copies of the daemon's: leave the lease out");
}

// Where the whole call is at fault, no field of an item is.
void FillError(const absl::Status& status, int i, google::rpc::Status* out) {
  *out = ToRpcStatus(ReasonOf(status) == "BATCH_ABORTED" ? status : InItem(status, i));
}

std::vector<LoadItem> ToCore(const v1::LoadRequest& in) {
  std::vector<LoadItem> items;
  for (const v1::LoadItem& item : in.items()) items.push_back(ToCore(item));
  return items;
}

void Fill(LoadAnswer answer, v1::LoadResponse* out) {
  for (size_t i = 0; i < answer.rows.size(); ++i) {
    LoadedRow& row = answer.rows[i];
    v1::LoadedRow* to = out->add_rows();
    if (!row.status.ok()) {
      FillError(row.status, static_cast<int>(i), to->mutable_error());
      continue;
    }
    FillNameInfo(row.info, to->mutable_info());
    to->set_attachment(std::move(row.attachment));
    to->set_copied(row.copied);
    if (row.slot.has_value()) FillSlot(*row.slot, to->mutable_slot());
  }
  *out->mutable_copy_time() = ToProto(answer.copy_time);
}

void Fill(const StoreAnswer& answer, v1::StoreResponse* out) {
  for (size_t i = 0; i < answer.rows.size(); ++i) {
    const StoredRow& row = answer.rows[i];
    v1::StoredRow* to = out->add_rows();
    if (!row.status.ok()) {
      FillError(row.status, static_cast<int>(i), to->mutable_error());
    } else if (row.parts_missing > 0) {
      to->set_parts_missing(row.parts_missing);
    } else if (row.skipped) {
      to->set_skipped(true);
    } else {
      FillNameInfo(row.info, to->mutable_info());
    }
  }
  out->set_done(answer.done);
  *out->mutable_copy_time() = ToProto(answer.copy_time);
}

void Fill(const AdvanceAnswer& answer, v1::AdvanceResponse* out) {
  for (size_t i = 0; i < answer.rows.size(); ++i) {
    const AdvancedRow& row = answer.rows[i];
    v1::AdvancedRow* to = out->add_rows();
    if (!row.status.ok()) {
      FillError(row.status, static_cast<int>(i), to->mutable_error());
    } else {
      to->set_outcome(static_cast<v1::AdvancedRow::Outcome>(row.outcome));
    }
  }
  *out->mutable_copy_time() = ToProto(answer.copy_time);
}

}  // namespace

absl::Status Handlers::OpenArena(const Op& op, const v1::OpenArenaRequest& in, v1::Arena* out) {
  if (arenas_ == nullptr) return ArenasOff();
  absl::StatusOr<View> view = ToView(in.view());
  if (!view.ok()) return view.status();
  absl::StatusOr<OpenedArena> opened =
      arenas_->Open(op, {in.layout(), in.rows(), in.steps(), *std::move(view), in.device(), in.with_flags()});
  if (!opened.ok()) return opened.status();
  const ArenaShape& shape = *opened->shape;
  out->set_arena(opened->id);
  out->set_incarnation(identity_.incarnation);
  out->set_socket(identity_.arena_socket);
  out->set_token(opened->token);
  *out->mutable_token_timeout() = ToProto(arenas_->options().token_timeout);
  out->set_bytes(shape.bytes);
  out->set_row_bytes(shape.row_bytes);
  out->set_layout(opened->layout->fingerprint());
  out->set_rows(shape.rows);
  out->set_steps(shape.steps);
  out->set_device(opened->device);
  out->set_flag_words(opened->flag_words);
  if (in.with_plan() && shape.tp_size == 1) {
    for (const CopySegment& segment : shape.plan.segments()) {
      v1::CopySegment* to = out->add_plan();
      to->set_state_offset(segment.state_offset);
      to->set_arena_offset(segment.arena_offset);
      to->set_row_stride(segment.row_stride);
      to->set_accept_stride(segment.accept_stride);
      to->set_element_bytes(segment.element_bytes);
      for (const CopyAxis& axis : segment.axes) {
        to->add_sizes(axis.size);
        to->add_strides(axis.row_stride);
      }
      to->set_clear_offset(segment.clear_offset);
      to->set_clear_bytes(segment.clear_bytes);
    }
  }
  for (const ArenaTensor& tensor : shape.tensors) {
    const TensorSpec& spec = opened->layout->spec().tensors[tensor.tensor];
    v1::ArenaTensor* to = out->add_tensors();
    to->set_tensor(spec.name);
    to->mutable_layers()->Add(tensor.layers.begin(), tensor.layers.end());
    to->set_dtype(static_cast<v1::DType>(spec.dtype));
    for (const std::string& axis : tensor.axes) to->add_axes(axis);
    to->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
    to->mutable_strides()->Add(tensor.strides.begin(), tensor.strides.end());
    to->set_offset(tensor.offset);
  }
  return absl::OkStatus();
}

absl::Status Handlers::Load(const Op& op, const v1::LoadRequest& in, v1::LoadResponse* out) {
  if (arenas_ == nullptr) return ArenasOff();
  const std::vector<LoadItem> items = ToCore(in);
  std::vector<uint64_t> held;
  HoldPin hold;
  if (!in.lease().empty()) {
    if (absl::Status status = CheckLease(op, in.lease()); !status.ok()) return status;
    hold = [&](Pin pin) {
      absl::StatusOr<LeasedSlot> slot = leases_->Hold(op, in.lease(), std::move(pin));
      if (slot.ok()) held.push_back(slot->id);
      return slot;
    };
  }
  absl::StatusOr<LoadAnswer> answer = arenas_->Load(op, in.arena(), items, hold);
  if (!answer.ok()) {
    if (hold) leases_->Unpin(in.lease(), held);
    return answer.status();
  }
  Fill(*std::move(answer), out);
  return absl::OkStatus();
}

std::vector<StoreItem> Handlers::ItemsOf(const Op& op, const v1::StoreRequest& in) const {
  std::vector<StoreItem> items;
  for (const v1::StoreItem& item : in.items()) {
    items.push_back(ToCore(item));
    if (item.grant() == 0) continue;
    absl::StatusOr<ImageRef> image = Filled(op, in.lease(), item.grant(), item.checksum(), !item.attachment().empty());
    items.back().refused.Update(image.status());
    if (image.ok()) items.back().image = *std::move(image);
  }
  return items;
}

absl::Status Handlers::Store(const Op& op, const v1::StoreRequest& in, v1::StoreResponse* out) {
  if (arenas_ == nullptr) return ArenasOff();
  if (!in.lease().empty()) {
    if (absl::Status status = CheckLease(op, in.lease()); !status.ok()) return status;
  }
  if (in.grants() > (in.lease().empty() ? 0 : static_cast<uint32_t>(in.items_size()))) return WithALeaseOnly();
  const absl::StatusOr<StoreAnswer> answer = arenas_->Store(op, in.arena(), ItemsOf(op, in), in.all_or_none());
  if (!answer.ok()) return answer.status();
  Fill(*answer, out);
  const auto stored = std::find_if(answer->rows.begin(), answer->rows.end(),
                                   [](const StoredRow& row) { return row.info.layout != nullptr; });
  if (in.grants() > 0 && stored != answer->rows.end()) {
    for (const LeasedSlot& slot : leases_->GrantStock(op, in.lease(), stored->info.layout, in.grants()))
      FillSlot(slot, out->add_grants());
  }
  return absl::OkStatus();
}

void Handlers::LoadWithFlags(const Op& op, const v1::LoadRequest& in, v1::LoadResponse* out, Finish finish) {
  if (arenas_ == nullptr) return finish(ArenasOff());
  if (!in.lease().empty()) return finish(NotWithALease());
  arenas_->Load(op, in.arena(), ToCore(in), FlagsOf(in),
                [out, finish = std::move(finish)](absl::StatusOr<LoadAnswer> answer) mutable {
                  if (!answer.ok()) return finish(answer.status());
                  Fill(*std::move(answer), out);
                  finish(absl::OkStatus());
                });
}

void Handlers::StoreWithFlags(const Op& op, const v1::StoreRequest& in, v1::StoreResponse* out, Finish finish) {
  if (arenas_ == nullptr) return finish(ArenasOff());
  if (!in.lease().empty()) return finish(NotWithALease());
  if (in.grants() > 0) return finish(WithALeaseOnly());
  arenas_->Store(op, in.arena(), ItemsOf(op, in), in.all_or_none(), FlagsOf(in),
                 [out, finish = std::move(finish)](const absl::StatusOr<StoreAnswer>& answer) mutable {
                   if (!answer.ok()) return finish(answer.status());
                   Fill(*answer, out);
                   finish(absl::OkStatus());
                 });
}

absl::Status Handlers::Advance(const Op& op, const v1::AdvanceRequest& in, v1::AdvanceResponse* out) {
  if (arenas_ == nullptr) return ArenasOff();
  const absl::StatusOr<AdvanceAnswer> answer = arenas_->Advance(op, in.arena(), ToCore(in));
  if (!answer.ok()) return answer.status();
  Fill(*answer, out);
  return absl::OkStatus();
}

void Handlers::AdvanceWithFlags(const Op& op, const v1::AdvanceRequest& in, v1::AdvanceResponse* out, Finish finish) {
  if (arenas_ == nullptr) return finish(ArenasOff());
  arenas_->Advance(op, in.arena(), ToCore(in), FlagsOf(in),
                   [out, finish = std::move(finish)](const absl::StatusOr<AdvanceAnswer>& answer) mutable {
                     if (!answer.ok()) return finish(answer.status());
                     Fill(*answer, out);
                     finish(absl::OkStatus());
                   });
}

absl::Status Handlers::CloseArena(const Op& op, const v1::CloseArenaRequest& in, v1::CloseArenaResponse* out) {
  if (arenas_ == nullptr) return ArenasOff();
  const absl::Status status = arenas_->Close(op, in.arena());
  if (absl::IsNotFound(status) && in.allow_missing()) return absl::OkStatus();
  out->set_closed(status.ok());
  return status;
}

}  // namespace statepool
