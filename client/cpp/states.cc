// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// States in messages: Get, GetInto, Set and the batches.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/calls.h"
#include "client/cpp/direct.h"
#include "client/cpp/lane.h"
#include "client/cpp/statepool.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

constexpr char kGetMethod[] = "/statepool.v1.StatePool/Get";
constexpr char kSetMethod[] = "/statepool.v1.StatePool/Set";
constexpr char kBatchGetMethod[] = "/statepool.v1.StatePool/BatchGet";
constexpr char kBatchWriteMethod[] = "/statepool.v1.StatePool/BatchWrite";

v1::GetRequest GetRequestFor(const v1::NameRef& name) {
  v1::GetRequest request;
  *request.mutable_name() = name;
  return request;
}

uint64_t TotalBytes(absl::Span<const absl::string_view> pieces) {
  uint64_t bytes = 0;
  for (absl::string_view piece : pieces) bytes += piece.size();
  return bytes;
}

bool DoesNotFit(const absl::Status& status) {
  return status.code() == absl::StatusCode::kResourceExhausted && GetErrorDetail(status).reason == "MESSAGE_TOO_LARGE";
}

absl::Status MessageTooLarge(const Options& options, uint64_t bytes) {
  return MakeError(absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE", "data",
                   absl::StrCat("one message carries at most ", options.max_message_bytes, " bytes, not ", bytes));
}

// Bytes [offset, offset + n) of what lies in `pieces`. REQUIRES: they are there.
std::vector<absl::string_view> Cut(absl::Span<const absl::string_view> pieces, uint64_t offset, uint64_t n) {
  std::vector<absl::string_view> cut;
  for (absl::string_view piece : pieces) {
    if (n == 0) break;
    if (offset >= piece.size()) {
      offset -= piece.size();
      continue;
    }
    cut.push_back(piece.substr(offset, n));
    offset = 0;
    n -= cut.back().size();
  }
  return cut;
}

// The field of an item in which a write's request_id is; null: this write has none.
std::string* RequestIdOf(v1::BatchWriteItem* item) {
  switch (item->write_case()) {
    case v1::BatchWriteItem::kCreate: return item->mutable_create()->mutable_request_id();
    case v1::BatchWriteItem::kSet: return item->mutable_set()->mutable_request_id();
    case v1::BatchWriteItem::kFork: return item->mutable_fork()->mutable_request_id();
    case v1::BatchWriteItem::kRollback: return item->mutable_rollback()->mutable_request_id();
    case v1::BatchWriteItem::kRemoveRange: return item->mutable_remove_range()->mutable_request_id();
    case v1::BatchWriteItem::kRenumber: return item->mutable_renumber()->mutable_request_id();
    case v1::BatchWriteItem::kSnapshot: return item->mutable_snapshot()->mutable_request_id();
    case v1::BatchWriteItem::kRestore: return item->mutable_restore()->mutable_request_id();
    default: return nullptr;
  }
}

}  // namespace

std::string ChecksumOfPieces(absl::Span<const absl::string_view> pieces) {
  Checksummer checksummer;
  for (absl::string_view piece : pieces) checksummer.Append(piece);
  return checksummer.Finish();
}

void Checksummer::Append(absl::string_view piece) {
  while (!piece.empty()) {
    const size_t n = std::min(piece.size(), kLeafBytes - leaf_.size());
    if (n == kLeafBytes) {
      leaves_.push_back(HashLeaf(piece.substr(0, n)));
    } else {
      leaf_.append(piece.data(), n);
      if (leaf_.size() == kLeafBytes) {
        leaves_.push_back(HashLeaf(leaf_));
        leaf_.clear();
      }
    }
    piece.remove_prefix(n);
  }
}

std::string Checksummer::Finish() const {
  std::vector<LeafHash> leaves = leaves_;
  if (!leaf_.empty()) leaves.push_back(HashLeaf(leaf_));
  return ChecksumToHex(HashRoot(leaves));
}

absl::Status State::CopyTo(char* destination, size_t n) const {
  if (n != size()) {
    return InvalidArgument("BYTES_LENGTH_MISMATCH", "n", absl::StrCat("the state has ", size(), " bytes, not ", n));
  }
  for (absl::string_view piece : pieces()) {
    std::memcpy(destination, piece.data(), piece.size());
    destination += piece.size();
  }
  return absl::OkStatus();
}

// ---- reads

absl::StatusOr<State> Pool::Receive(const v1::GetRequest& request, const CallOptions& call) const {
  const std::string bytes = request.SerializeAsString();
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer message(&slice, 1);
  grpc::ByteBuffer answer;
  const absl::Status status = Attempt(
      call, true, [&](absl::Time deadline) { return RawCall(reads_.get(), kGetMethod, deadline, message, &answer); });
  if (!status.ok()) return status;
  absl::StatusOr<wire::SplitMessage> split = wire::Split(answer, wire::kDataField, options_.max_message_bytes);
  if (!split.ok()) return MalformedResponse(split.status().message());
  State state;
  if (!state.small_.ParseFromString(split->rest)) return MalformedResponse("not a GetResponse");
  split->rest.clear();
  state.pieces_ = split->data;
  state.size_ = split->data_bytes;
  auto messages = std::make_shared<std::vector<wire::SplitMessage>>();
  messages->push_back(*std::move(split));
  state.owner_ = std::move(messages);
  return state;
}

Pool Pool::Bare(int max_attempts) const {
  Pool bare = *this;
  bare.lane_ = nullptr;
  bare.direct_ = nullptr;
  if (max_attempts != 0) bare.options_.max_attempts = max_attempts;
  return bare;
}

void Pool::Learn(const v1::NameInfo& info, absl::string_view layout) const {
  if (direct_ != nullptr) direct_->Learn(info);
  if (lane_ != nullptr) lane_->Learn(info, layout);
}

std::optional<absl::StatusOr<v1::GetResponse>> Pool::GetHere(const v1::GetRequest& request,
                                                             std::optional<uint64_t> bytes,
                                                             absl::FunctionRef<char*(uint64_t bytes)> room,
                                                             absl::Time deadline) const {
  if (request.has_select() || !request.lease().empty()) return std::nullopt;
  if (direct_ != nullptr && (bytes ? *bytes >= Direct::kStateBytesMin : direct_->expects_large())) {
    std::optional<absl::StatusOr<StateView>> view = direct_->Get(request, deadline);
    if (view && !view->ok()) return view->status();
    if (view && bytes.value_or((*view)->size()) == (*view)->size()) {
      char* const to = room((*view)->size());
      if (!options_.verify) {
        std::memcpy(to, (*view)->bytes().data(), (*view)->size());
        return std::move((*view)->small_);
      }
      CopyHasher hasher(to, (*view)->size());
      hasher.Append((*view)->bytes());
      const absl::Status same = CompareChecksums((*view)->info().checksum(), ChecksumToHex(HashRoot(hasher.Finish())));
      if (!same.ok()) return same;
      return std::move((*view)->small_);
    }
  }
  if (lane_ == nullptr) return std::nullopt;
  return lane_->Get(request, bytes, room, options_.verify, deadline);
}

absl::Status StateView::Verify() const {
  const std::string& checksum = small_.data_checksum().empty() ? info().checksum() : small_.data_checksum();
  return CompareChecksums(checksum, ChecksumToHex(ChecksumOf(bytes_)));
}

absl::StatusOr<StateView> Pool::GetView(const v1::GetRequest& request, const CallOptions& call) const {
  const absl::Time deadline = DeadlineOf(call);
  CallOptions rest = call;
  if (direct_ != nullptr && !request.has_select()) {
    std::optional<absl::StatusOr<StateView>> view = direct_->Get(request, deadline);
    if (view && view->ok()) Learn((*view)->info(), request.layout());
    if (view) return *std::move(view);
    rest.timeout = Until(deadline).timeout;
  }
  Pool other = *this;
  other.direct_ = nullptr;
  absl::StatusOr<State> state = other.Get(request, rest);
  if (!state.ok()) return state.status();
  if (direct_ != nullptr) direct_->Learn(state->info());
  StateView view;
  view.small_ = std::move(state->small_);
  if (state->pieces_.size() == 1) {
    view.bytes_ = state->pieces_.front();
    view.owner_ = std::move(state->owner_);
  } else {
    std::shared_ptr<char[]> memory(new char[state->size_]);
    (void)state->CopyTo(memory.get(), state->size_);
    view.bytes_ = absl::string_view(memory.get(), state->size_);
    view.owner_ = std::move(memory);
  }
  return view;
}

absl::StatusOr<StateView> Pool::GetView(const v1::NameRef& name) const { return GetView(GetRequestFor(name)); }

absl::StatusOr<State> Pool::Get(const v1::GetRequest& request, const CallOptions& call) const {
  const absl::Time deadline = DeadlineOf(call);
  State state;
  const auto room = [&state](uint64_t bytes) {
    std::shared_ptr<char[]> memory(new char[bytes]);  // not zeroed
    char* const begin = memory.get();
    state.pieces_ = {absl::string_view(begin, bytes)};
    state.size_ = bytes;
    state.owner_ = std::move(memory);
    return begin;
  };
  std::optional<absl::StatusOr<v1::GetResponse>> answer = GetHere(request, std::nullopt, room, deadline);
  if (answer && !answer->ok()) return answer->status();
  if (answer) {
    state.small_ = **std::move(answer);
  } else {
    absl::StatusOr<State> received = GetInline(request, call, deadline);
    if (!received.ok()) return received;
    state = *std::move(received);
  }
  Learn(state.info(), request.layout());
  return state;
}

absl::StatusOr<State> Pool::GetInline(const v1::GetRequest& request, const CallOptions& call,
                                      absl::Time deadline) const {
  absl::StatusOr<State> state = Receive(request, Until(deadline));
  if (DoesNotFit(state.status())) return GetByStream(request, call);
  if (!state.ok() || !options_.verify) return state;
  const absl::Status same = CompareChecksums(state->data_checksum(), ChecksumOfPieces(state->pieces()));
  if (!same.ok()) return same;
  return state;
}

absl::StatusOr<State> Pool::Get(const v1::NameRef& name) const { return Get(GetRequestFor(name)); }

absl::StatusOr<v1::GetResponse> Pool::GetInto(const v1::GetRequest& request, absl::Span<char> destination,
                                              const CallOptions& call) const {
  const absl::Time deadline = DeadlineOf(call);
  const auto room = [&destination](uint64_t) { return destination.data(); };
  std::optional<absl::StatusOr<v1::GetResponse>> here = GetHere(request, destination.size(), room, deadline);
  absl::StatusOr<v1::GetResponse> answer =
      here ? *std::move(here) : GetIntoInline(request, destination, call, deadline);
  if (answer.ok()) Learn(answer->info(), request.layout());
  return answer;
}

absl::StatusOr<v1::GetResponse> Pool::GetIntoInline(const v1::GetRequest& request, absl::Span<char> destination,
                                                    const CallOptions& call, absl::Time deadline) const {
  if (destination.size() > static_cast<size_t>(options_.max_message_bytes))
    return GetIntoByStream(request, destination, call);
  absl::StatusOr<State> state = Receive(request, Until(deadline));
  if (DoesNotFit(state.status())) return GetIntoByStream(request, destination, call);
  if (!state.ok()) return state.status();
  if (!options_.verify || state->size() != destination.size()) {
    if (absl::Status s = state->CopyTo(destination.data(), destination.size()); !s.ok()) return s;
    return std::move(state->small_);
  }
  CopyHasher hasher(destination.data(), destination.size());
  for (absl::string_view piece : state->pieces()) hasher.Append(piece);
  const absl::Status same = CompareChecksums(state->data_checksum(), ChecksumToHex(HashRoot(hasher.Finish())));
  if (!same.ok()) return same;
  return std::move(state->small_);
}

absl::StatusOr<std::vector<absl::StatusOr<State>>> Pool::BatchGet(const v1::BatchGetRequest& request,
                                                                  const CallOptions& call) const {
  const std::string bytes = request.SerializeAsString();
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer message(&slice, 1);
  grpc::ByteBuffer buffer;
  const absl::Status status = Attempt(call, true, [&](absl::Time deadline) {
    return RawCall(reads_.get(), kBatchGetMethod, deadline, message, &buffer);
  });
  if (!status.ok()) return status;
  absl::StatusOr<wire::SplitMessage> split = wire::Split(buffer, wire::kDataField, options_.max_message_bytes);
  if (!split.ok()) return MalformedResponse(split.status().message());
  v1::BatchGetResponse answer;
  if (!answer.ParseFromString(split->rest)) return MalformedResponse("not a BatchGetResponse");
  if (answer.items_size() != request.items_size())
    return MalformedResponse("a BatchGetResponse has one entry for each item");
  split->rest.clear();
  auto messages = std::make_shared<std::vector<wire::SplitMessage>>();
  messages->push_back(*std::move(split));
  const wire::SplitMessage& data = messages->front();

  std::vector<absl::StatusOr<State>> states;
  for (v1::BatchGetItem& item : *answer.mutable_items()) {
    if (item.has_error()) {
      states.emplace_back(FromItemError(item.error()));
      continue;
    }
    State state;
    state.small_ = std::move(*item.mutable_response());
    state.size_ = state.small_.data_bytes();
    if (item.data_offset() > data.data_bytes || state.size_ > data.data_bytes - item.data_offset()) {
      return MalformedResponse("an item's bytes lie outside the answer's");
    }
    state.pieces_ = Cut(data.data, item.data_offset(), state.size_);
    state.owner_ = messages;
    absl::Status same;
    if (options_.verify) same = CompareChecksums(state.data_checksum(), ChecksumOfPieces(state.pieces()));
    if (same.ok()) states.emplace_back(std::move(state));
    else states.emplace_back(std::move(same));
  }
  return states;
}

absl::StatusOr<std::vector<absl::StatusOr<State>>> Pool::BatchGet(absl::Span<const v1::NameRef> names) const {
  v1::BatchGetRequest request;
  for (const v1::NameRef& name : names) *request.add_items()->mutable_name() = name;
  return BatchGet(request);
}

// ---- writes

absl::StatusOr<std::string> Pool::Send(const char* method, const std::string& fields,
                                       absl::Span<const absl::string_view> pieces, std::shared_ptr<const void> owner,
                                       bool may_repeat, const CallOptions& call) const {
  const bool owned = owner != nullptr;
  Loan* const loan = new Loan(std::move(owner));
  grpc::ByteBuffer message;
  {
    std::vector<grpc::Slice> slices;
    for (absl::string_view piece : pieces) {
      if (!piece.empty()) slices.push_back(loan->Lend(piece));
    }
    message = wire::Join(fields, wire::kDataField, slices);
  }
  grpc::ByteBuffer answer;
  const absl::Status status = Attempt(call, may_repeat, [&](absl::Time deadline) {
    if (owned) return AbandonableCall(writes_, method, deadline, message, &answer);
    return RawCall(writes_.get(), method, deadline, message, &answer);
  });
  message.Clear();
  Loan::Close(loan);
  if (!status.ok()) return status;
  absl::StatusOr<wire::SplitMessage> split = wire::Split(answer, /*field=*/0, options_.max_message_bytes);
  if (!split.ok()) return MalformedResponse(split.status().message());
  return std::move(split->rest);
}

absl::StatusOr<v1::NameInfo> Pool::Set(v1::SetRequest request, absl::Span<const absl::string_view> pieces,
                                       std::shared_ptr<const void> owner, const CallOptions& call) const {
  if (!request.data().empty()) return InvalidArgument("INVALID_OPTION", "data", "give the bytes as pieces");
  const absl::Time deadline = DeadlineOf(call);
  const std::string layout = request.layout();
  const bool is_whole = !request.has_select() && request.lease().empty();
  std::optional<absl::StatusOr<v1::NameInfo>> info;
  absl::Status doubt;
  int attempts = 0;  // that were used up
  if (direct_ != nullptr && is_whole && request.attachment().empty() && TotalBytes(pieces) >= Direct::kStateBytesMin) {
    Direct::SetOutcome outcome = direct_->Set(&request, pieces, options_.max_attempts, deadline);
    info = std::move(outcome.answer);
    attempts = outcome.attempts;
  }
  if (!info && lane_ != nullptr && is_whole && request.request_id().empty()) {
    request.set_request_id(NewRequestId());
    Lane::SetOutcome outcome = lane_->Set(request, pieces, options_.max_attempts, deadline);
    info = std::move(outcome.answer);
    doubt = outcome.doubt;
    attempts = outcome.attempts;
    if (attempts == 0) request.clear_request_id();  // nobody heard of it
  }
  if (!info) {
    Pool rest = *this;
    rest.options_.max_attempts = std::max(options_.max_attempts - attempts, 1);
    info = rest.SetInline(std::move(request), pieces, std::move(owner), call, deadline);
    // It was stored, but the answer is lost.
    if (!doubt.ok() && GetErrorDetail(info->status()).reason == "REQUEST_ID_REUSED") info = doubt;
  }
  if (info->ok()) Learn(**info, layout);
  return *std::move(info);
}

absl::StatusOr<v1::NameInfo> Pool::SetInline(v1::SetRequest request, absl::Span<const absl::string_view> pieces,
                                             std::shared_ptr<const void> owner, const CallOptions& call,
                                             absl::Time deadline) const {
  if (request.checksum().empty()) request.set_checksum(ChecksumOfPieces(pieces));
  const uint64_t bytes = TotalBytes(pieces) + request.attachment().size();
  if (bytes > static_cast<uint64_t>(options_.max_message_bytes)) {
    if (request.has_select()) return MessageTooLarge(options_, bytes);
    return SetPiecesByStream(std::move(request), pieces, call);
  }
  v1::SetRequest sent = request;  // a stream makes an id of its own, and knows then that nothing is kept under it
  if (sent.request_id().empty()) sent.set_request_id(NewRequestId());
  const absl::StatusOr<std::string> answer =
      Send(kSetMethod, sent.SerializeAsString(), pieces, std::move(owner), true, Until(deadline));
  if (!request.has_select() && DoesNotFit(answer.status())) return SetPiecesByStream(std::move(request), pieces, call);
  if (!answer.ok()) return answer.status();
  v1::NameInfo info;
  if (!info.ParseFromString(*answer)) return MalformedResponse("not a NameInfo");
  return info;
}

absl::StatusOr<v1::NameInfo> Pool::Set(absl::string_view sequence, absl::string_view layout, int64_t position,
                                       absl::string_view data) const {
  v1::SetRequest request;
  request.set_sequence(std::string(sequence));
  request.set_layout(std::string(layout));
  request.set_position(position);
  return Set(std::move(request), {data});
}

absl::StatusOr<BatchWriteAnswer> Pool::BatchWrite(v1::BatchWriteRequest request,
                                                  absl::Span<const std::vector<absl::string_view>> states,
                                                  std::shared_ptr<const void> owner, const CallOptions& call) const {
  if (!request.data().empty()) return InvalidArgument("INVALID_OPTION", "data", "give the bytes as pieces");
  std::vector<absl::string_view> pieces;  // of all Sets
  size_t sets = 0;
  bool may_repeat = true;
  for (v1::BatchWriteItem& item : *request.mutable_items()) {
    std::string* const request_id = RequestIdOf(&item);
    if (request_id != nullptr && request_id->empty()) *request_id = NewRequestId();
    if (item.has_delete_() && !item.delete_().allow_missing()) may_repeat = false;
    if (item.has_remove_range() && !MayRepeat(item.remove_range())) may_repeat = false;
    if (!item.has_set()) continue;
    if (!item.set().data().empty()) return InvalidArgument("INVALID_OPTION", "data", "give the bytes as pieces");
    if (++sets > states.size()) continue;
    const std::vector<absl::string_view>& state = states[sets - 1];
    item.set_data_bytes(TotalBytes(state));
    if (item.set().checksum().empty()) item.mutable_set()->set_checksum(ChecksumOfPieces(state));
    pieces.insert(pieces.end(), state.begin(), state.end());
  }
  if (sets != states.size()) {
    return InvalidArgument("INVALID_OPTION", "states",
                           absl::StrCat("there are ", sets, " Sets and bytes for ", states.size()));
  }
  const std::string fields = request.SerializeAsString();
  if (const uint64_t bytes = TotalBytes(pieces) + fields.size();
      bytes > static_cast<uint64_t>(options_.max_message_bytes)) {
    return MessageTooLarge(options_, bytes);
  }
  const absl::StatusOr<std::string> bytes = Send(kBatchWriteMethod, fields, pieces, std::move(owner), may_repeat, call);
  if (!bytes.ok()) return bytes.status();
  v1::BatchWriteResponse response;
  if (!response.ParseFromString(*bytes)) return MalformedResponse("not a BatchWriteResponse");
  if (response.results_size() != request.items_size())
    return MalformedResponse("a BatchWriteResponse has one entry for each item");
  BatchWriteAnswer answer;
  answer.done = response.done();
  for (v1::BatchWriteResult& result : *response.mutable_results()) {
    if (result.has_error()) answer.results.emplace_back(FromItemError(result.error()));
    else answer.results.emplace_back(std::move(result));
  }
  return answer;
}

}  // namespace statepool::client
