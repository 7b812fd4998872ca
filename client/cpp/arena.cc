// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/arena.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/calls.h"
#include "client/cpp/direct.h"
#include "client/cpp/gpu.h"
#include "client/cpp/in_flight.h"
#include "client/cpp/lane.h"
#include "client/cpp/mapping.h"
#include "kernels/advance_plan.h"
#include "kernels/checksum.h"
#include "kernels/copy_plan.h"

namespace statepool::client {
namespace {

// Copies of so many bytes in one call go past the caches.
constexpr uint64_t kStreamingLoadBytes = 4 << 20;
constexpr uint64_t kStreamingStoreBytes = 1 << 20;
// And of so many are shared with a second thread: much more than a thread costs.
constexpr uint64_t kSharedBytesMin = 8 << 20;
// How long no slots are asked for that could not be had: where the daemon's copies cost about the same, and on a GPU.
constexpr absl::Duration kRefusedPause = absl::Seconds(30);
constexpr absl::Duration kRefusedPauseOnGpu = DirectLease::kGrantPause;
constexpr absl::Duration kCloseTimeout = absl::Seconds(5);  // the socket tells the daemon as well

absl::Status Refusal(absl::string_view reason, absl::string_view message) {
  return MakeError(absl::StatusCode::kFailedPrecondition, reason, "", message);
}

absl::Status Forked() {
  return Refusal("FORKED", "this arena is that of the process that this one was forked from: open another one");
}
absl::Status Closed() { return Refusal("ARENA_CLOSED", "this arena was closed"); }

absl::Status ContentsGone(const std::string& incarnation, const std::string& arena) {
  return MakeError(absl::StatusCode::kAborted, "CONTENTS_GONE", "",
                   "the daemon had lost this arena. It is open again at the same addresses: all rows are zeros and "
                   "must be loaded again",
                   {{"incarnation", incarnation}, {"arena", arena}});
}

// What makes addresses mean the same in two arenas.
std::string ShapeOf(const v1::Arena& arena) {
  v1::Arena shape;
  shape.set_layout(arena.layout());
  shape.set_rows(arena.rows());
  shape.set_steps(arena.steps());
  shape.set_bytes(arena.bytes());
  shape.set_row_bytes(arena.row_bytes());
  *shape.mutable_tensors() = arena.tensors();
  *shape.mutable_plan() = arena.plan();
  return shape.SerializeAsString();
}

template <typename Request>
absl::flat_hash_set<uint32_t> RowsOf(const Request& request) {
  absl::flat_hash_set<uint32_t> rows;
  for (const auto& item : request.items()) rows.insert(item.row());
  return rows;
}

// Runs work(begin, end) over [0, n): by two threads, half each, where there is much to copy.
void Share(uint64_t bytes, uint64_t n, absl::FunctionRef<void(uint64_t begin, uint64_t end)> work) {
  uint64_t middle = bytes < kSharedBytesMin ? n : n / 2;
  std::thread other;
  if (middle < n) {
    try {
      other = std::thread([&work, middle, n] { work(middle, n); });
    } catch (const std::system_error&) {  // there is no thread to be had
      middle = n;
    }
  }
  work(0, middle);
  if (other.joinable()) other.join();
}

// The plan of an arena; null if there is none, or not one within its memory.
std::unique_ptr<const CopyPlan> PlanOf(const v1::Arena& arena) {
  uint64_t state_bytes = 0;
  std::vector<CopySegment> segments;
  for (const v1::CopySegment& from : arena.plan()) {
    if (from.sizes_size() != from.strides_size()) return nullptr;
    CopySegment& to = segments.emplace_back();
    to.state_offset = from.state_offset();
    to.arena_offset = from.arena_offset();
    to.row_stride = from.row_stride();
    to.accept_stride = from.accept_stride();
    to.element_bytes = from.element_bytes();
    to.clear_offset = from.clear_offset();
    to.clear_bytes = from.clear_bytes();
    for (int i = 0; i < from.sizes_size(); ++i) to.axes.push_back({from.sizes(i), from.strides(i)});
    state_bytes += to.Bytes();  // may be wrong where it exceeds 64 bits: then no plan has so many
  }
  if (segments.empty()) return nullptr;
  std::optional<CopyPlan> plan = CopyPlan::Checked(
      std::move(segments), state_bytes, {arena.bytes(), std::max(arena.rows(), 1u), std::max(arena.steps(), 1u)});
  return plan ? std::make_unique<const CopyPlan>(*std::move(plan)) : nullptr;
}

// Where the arena's rows have their steps; null: its tensors are not what the contract says.
std::unique_ptr<const AdvancePlan> AdvancePlanOf(const v1::Arena& arena, uint32_t num_spec) {
  std::vector<AdvanceSegment> segments;
  for (const v1::ArenaTensor& from : arena.tensors()) {
    AdvanceTensor tensor;
    tensor.axes.assign(from.axes().begin(), from.axes().end());
    tensor.shape = from.shape();
    tensor.strides = from.strides();
    tensor.offset = from.offset();
    tensor.element_bytes = static_cast<uint32_t>(BytesOf(from.dtype()));
    if (!AddAdvanceSegments(tensor, arena.steps(), num_spec, &segments)) return nullptr;
  }
  std::optional<AdvancePlan> plan =
      AdvancePlan::Checked(segments, {arena.bytes(), std::max(arena.rows(), 1u), std::max(arena.steps(), 1u)});
  return plan ? std::make_unique<const AdvancePlan>(*std::move(plan)) : nullptr;
}

void ToProto(absl::Duration from, google::protobuf::Duration* to) {
  const timespec time = absl::ToTimespec(from);
  to->set_seconds(time.tv_sec);
  to->set_nanos(static_cast<int32_t>(time.tv_nsec));
}

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

absl::StatusOr<LoadAnswer> AnswerOf(absl::StatusOr<v1::LoadResponse> response, int items) {
  if (!response.ok()) return response.status();
  if (response->rows_size() != items) return MalformedResponse("a LoadResponse has one entry for each item");
  LoadAnswer answer;
  answer.copy_time = ToDuration(response->copy_time());
  for (v1::LoadedRow& row : *response->mutable_rows()) {
    if (absl::Status status = ToStatus(row); !status.ok()) {
      answer.rows.push_back(std::move(status));
    } else {
      answer.rows.push_back(std::move(row));
    }
  }
  return answer;
}

absl::StatusOr<StoreAnswer> AnswerOf(absl::StatusOr<v1::StoreResponse> response, int items) {
  if (!response.ok()) return response.status();
  if (response->rows_size() != items) return MalformedResponse("a StoreResponse has one entry for each item");
  StoreAnswer answer;
  answer.done = response->done();
  answer.copy_time = ToDuration(response->copy_time());
  for (v1::StoredRow& row : *response->mutable_rows()) {
    if (absl::Status status = ToStatus(row); !status.ok()) {
      answer.rows.push_back(std::move(status));
    } else {
      answer.rows.push_back(std::move(*row.mutable_info()));
    }
    answer.skipped.push_back(row.skipped());
    answer.parts_missing.push_back(row.parts_missing());
  }
  return answer;
}

absl::StatusOr<AdvanceAnswer> AnswerOf(const absl::StatusOr<v1::AdvanceResponse>& response, int items) {
  if (!response.ok()) return response.status();
  if (response->rows_size() != items) return MalformedResponse("an AdvanceResponse has one entry for each item");
  AdvanceAnswer answer;
  answer.copy_time = ToDuration(response->copy_time());
  for (const v1::AdvancedRow& row : response->rows()) {
    if (absl::Status status = ToStatus(row); !status.ok()) {
      answer.rows.push_back(std::move(status));
    } else {
      answer.rows.push_back(row.outcome());
    }
  }
  return answer;
}

// Whether it is to answer a retry by the caller: who the row was advanced for only the daemon remembers.
bool MayBeARetry(const v1::StoreItem& item) { return item.advance() && !item.request_id().empty(); }

v1::StoreRequest RequestOf(absl::Span<const v1::StoreItem> items, bool all_or_none) {
  v1::StoreRequest request;
  request.mutable_items()->Add(items.begin(), items.end());
  request.set_all_or_none(all_or_none);
  for (v1::StoreItem& item : *request.mutable_items()) {
    if (item.request_id().empty()) item.set_request_id(NewRequestId());
  }
  return request;
}

}  // namespace

struct DirectGrants {
  std::shared_ptr<DirectLease> lease;
  std::vector<DirectLease::Granted> grants;  // one for each item
};

namespace {

// Names the slots in the request, with the checksums of what was written there.
void NameGrants(const DirectGrants& granted, absl::Span<const LeafHash> hashes, v1::StoreRequest* request) {
  const size_t leaves = hashes.size() / granted.grants.size();
  for (size_t i = 0; i < granted.grants.size(); ++i) {
    v1::StoreItem& item = *request->mutable_items(static_cast<int>(i));
    item.set_grant(granted.grants[i].slot.id());
    item.set_checksum(ChecksumToHex(HashRoot(hashes.subspan(i * leaves, leaves))));
    item.clear_advance();  // this process does it
  }
  request->set_lease(granted.lease->id());
}

}  // namespace

uint64_t BytesOf(v1::DType dtype) {
  switch (dtype) {
    case v1::FLOAT64:
    case v1::INT64: return 8;
    case v1::FLOAT32:
    case v1::INT32: return 4;
    case v1::FLOAT16:
    case v1::BFLOAT16:
    case v1::INT16: return 2;
    default: return 1;
  }
}

v1::LoadItem LoadRow(uint32_t row, const v1::NameRef& name) {
  v1::LoadItem item;
  item.set_row(row);
  *item.mutable_name() = name;
  return item;
}

v1::StoreItem StoreRow(uint32_t row, absl::string_view sequence, int64_t position) {
  v1::StoreItem item;
  item.set_row(row);
  item.set_sequence(std::string(sequence));
  item.set_position(position);
  return item;
}

v1::AdvanceItem AdvanceRow(uint32_t row, uint32_t accepted_length) {
  v1::AdvanceItem item;
  item.set_row(row);
  item.set_accepted_length(accepted_length);
  return item;
}

absl::StatusOr<std::unique_ptr<Arena>> Pool::OpenArena(absl::string_view layout, const ArenaOptions& options,
                                                       const CallOptions& call) const {
  auto arena = absl::WrapUnique(new Arena(Bare(), layout, options));
  if (options.direct) arena->direct_ = direct_;
  arena->request_.set_with_plan(arena->direct_ != nullptr);
  const std::lock_guard lock(arena->mu_);
  const absl::Time deadline = arena->DeadlineOf(call);
  absl::Status status;
  bool opened = false;
  if (lane_ != nullptr && lane_->HasRows()) {  // what the pool keeps for itself gives way before anybody waits
    arena->pool_ = std::make_unique<Pool>(Bare(/*max_attempts=*/1));
    status = arena->OpenLocked(deadline);
    arena->pool_ = std::make_unique<Pool>(Bare());
    opened = status.ok();
    if (absl::IsResourceExhausted(status)) (void)lane_->GiveWay();
  }
  if (!opened) status = arena->OpenLocked(deadline);
  if (!status.ok()) {
    arena->closed_ = true;
    return status;
  }
  return arena;
}

Arena::Arena(const Pool& pool, absl::string_view layout, ArenaOptions options)
    : pid_(getpid()), pool_(std::make_unique<Pool>(pool)), on_reopen_(std::move(options.on_reopen)) {
  request_.set_layout(std::string(layout));
  request_.set_rows(options.rows);
  request_.set_steps(options.steps);
  request_.set_device(options.device);
  *request_.mutable_view() = std::move(options.view);
}

Arena::~Arena() {
  Close();
  if (IsForked()) (void)pool_.release();  // gRPC's threads are not in this process, and it may wait for them
}

bool Arena::IsForked() const { return getpid() != pid_; }

absl::Time Arena::DeadlineOf(const CallOptions& call) const {
  return absl::Now() + call.timeout.value_or(pool_->options_.timeout);
}

std::string Arena::incarnation() const {
  const std::lock_guard lock(mu_);
  return incarnation_;
}

// ---- Load and Store

absl::Status Arena::Enter(CUstream_st* stream) const {
  if (IsForked()) return Forked();
  if (gpu_ == nullptr) return absl::OkStatus();
  const absl::StatusOr<bool> is_capturing = gpu_->IsCapturing(stream);
  if (!is_capturing.ok()) return is_capturing.status();
  if (!*is_capturing) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, "STREAM_CAPTURING", "stream",
                   "this stream is being captured into a graph, which can't have loads or stores: call them before or "
                   "after the capture, or give them another stream");
}

absl::StatusOr<LoadAnswer> Arena::Load(absl::Span<const v1::LoadItem> items, const CallOptions& call,
                                       CUstream_st* stream) {
  if (absl::Status status = Enter(stream); !status.ok()) return status;
  v1::LoadRequest request;
  request.mutable_items()->Add(items.begin(), items.end());
  // To the daemon a row is what the last call that it hears of made of it.
  if (in_flight_ != nullptr) in_flight_->Finish(RowsOf(request));
  const absl::Time deadline = DeadlineOf(call);
  std::optional<absl::StatusOr<v1::LoadResponse>> response = LoadDirectly(&request, Until(deadline), stream);
  const CallOptions left = gpu_ == nullptr ? Until(deadline) : call;  // the stream may take its time
  if (!response) {
    response = LoadByDaemon(&request, std::nullopt, left, stream);
  } else if (response->ok() && (*response)->rows_size() == request.items_size()) {
    response = LoadByDaemon(&request, **std::move(response), left, stream);
  }
  const int count = request.items_size();
  if (plan_ != nullptr && response->ok() && (*response)->rows_size() == count) {
    const std::lock_guard lock(mu_);
    for (int i = 0; i < count; ++i) {
      if (!(*response)->rows(i).has_error()) doubtful_rows_.erase(request.items(i).row());
    }
  }
  return AnswerOf(*std::move(response), count);
}

absl::StatusOr<v1::LoadResponse> Arena::LoadByDaemon(v1::LoadRequest* request, std::optional<v1::LoadResponse> directly,
                                                     const CallOptions& call, CUstream_st* stream) {
  if (!directly) {
    if (absl::Status status = WaitFor(stream); !status.ok()) return status;
    return Call(&Pool::Load, request, call);
  }
  v1::LoadRequest rest;
  std::vector<int> places;
  for (int i = 0; i < directly->rows_size(); ++i) {
    const v1::LoadedRow& row = directly->rows(i);
    if (!row.has_error() || !IsShortage(GetErrorDetail(FromItemError(row.error())).reason)) continue;
    *rest.add_items() = request->items(i);
    places.push_back(i);
  }
  if (places.empty()) return *std::move(directly);
  absl::StatusOr<v1::LoadResponse> loaded = LoadByDaemon(&rest, std::nullopt, call, stream);
  if (!loaded.ok() || loaded->rows_size() != rest.items_size()) return loaded;
  for (size_t i = 0; i < places.size(); ++i)
    directly->mutable_rows(places[i])->Swap(loaded->mutable_rows(static_cast<int>(i)));
  return *std::move(directly);
}

absl::Status Arena::CheckParts(absl::Span<const v1::StoreItem> items) const {
  if (request_.view().tp_size() <= 1) return absl::OkStatus();
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].request_id().empty()) continue;
    return InvalidArgument("MISSING_FIELD", absl::StrCat("items[", i, "].request_id"),
                           "a part of a version needs the request_id that all ranks give for it");
  }
  return absl::OkStatus();
}

absl::StatusOr<StoreAnswer> Arena::Store(absl::Span<const v1::StoreItem> items, bool all_or_none,
                                         const CallOptions& call, CUstream_st* stream) {
  if (absl::Status status = Enter(stream); !status.ok()) return status;
  if (absl::Status status = CheckParts(items); !status.ok()) return status;
  v1::StoreRequest request = RequestOf(items, all_or_none);
  const absl::Time deadline = DeadlineOf(call);
  std::optional<absl::StatusOr<v1::StoreResponse>> response;
  if (std::none_of(items.begin(), items.end(), MayBeARetry))
    response = StoreDirectly(&request, Until(deadline), stream);
  if (response && response->ok()) {
    if (absl::Status status = AdvanceStored(request, **response, stream); !status.ok()) return status;
  }
  if (!response) response = StoreByDaemon(&request, gpu_ == nullptr ? Until(deadline) : call, stream);
  return AnswerOf(*std::move(response), request.items_size());
}

absl::StatusOr<PendingStore> Arena::StoreAsync(absl::Span<const v1::StoreItem> items, bool all_or_none,
                                               const CallOptions& call, CUstream_st* stream) {
  if (absl::Status status = Enter(stream); !status.ok()) return status;
  const bool advances =
      std::any_of(items.begin(), items.end(), [](const v1::StoreItem& item) { return item.advance(); });
  if (gpu_ == nullptr || advances) return PendingStore(this, Store(items, all_or_none, call, stream));
  if (absl::Status status = CheckParts(items); !status.ok()) return PendingStore(this, std::move(status));
  v1::StoreRequest request = RequestOf(items, all_or_none);
  absl::StatusOr<std::shared_ptr<Storing>> storing =
      BeginStore(request, Until(DeadlineOf(call)), stream, /*attended=*/true);
  if (!storing.ok()) return PendingStore(this, storing.status());
  if (*storing != nullptr) return PendingStore(this, *std::move(storing));
  return PendingStore(this, AnswerOf(StoreByDaemon(&request, call, stream), request.items_size()));
}

absl::StatusOr<v1::StoreResponse> Arena::StoreByDaemon(v1::StoreRequest* request, const CallOptions& call,
                                                       CUstream_st* stream) {
  if (in_flight_ != nullptr) in_flight_->Finish();
  if (absl::Status status = WaitFor(stream); !status.ok()) return status;
  return Call(&Pool::Store, request, call);
}

absl::StatusOr<AdvanceAnswer> Arena::Advance(absl::Span<const v1::AdvanceItem> items, const AdvanceOptions& options,
                                             const CallOptions& call, CUstream_st* stream) {
  if (absl::Status status = Enter(stream); !status.ok()) return status;
  v1::AdvanceRequest request;
  request.mutable_items()->Add(items.begin(), items.end());
  request.set_skip_none(options.skip_none);
  request.set_skip_out_of_range(options.skip_out_of_range);
  request.set_verified_length(options.verified_length);
  request.set_request_id(NewRequestId());
  std::optional<absl::StatusOr<v1::AdvanceResponse>> response = AdvanceDirectly(request, stream);
  if (!response) {
    if (in_flight_ != nullptr) in_flight_->Finish();  // to the daemon calls are in the order in which it hears of them
    if (absl::Status status = WaitFor(stream); !status.ok()) return status;
    response = Call(&Pool::Advance, &request, call);
  }
  return AnswerOf(*response, request.items_size());
}

bool PendingStore::done() const { return storing_ == nullptr || storing_->is_over(); }

absl::StatusOr<StoreAnswer> PendingStore::Wait(absl::Duration timeout) const {
  if (arena_->IsForked()) return Forked();
  if (storing_ == nullptr) return answer_;
  if (!storing_->is_over() && timeout == absl::InfiniteDuration()) {
    arena_->in_flight_->FinishThrough(*storing_);
  } else if (!storing_->WaitUntilOver(absl::Now() + timeout)) {
    return MakeError(absl::StatusCode::kDeadlineExceeded, "NOT_DONE_YET", "",
                     absl::StrCat("the store is not done after ", absl::FormatDuration(timeout), "; it goes on"));
  }
  const Storing::Answer& answer = storing_->answer();
  if (!answer.ok()) return arena_->Lost(answer.status(), storing_->generation());
  return AnswerOf(answer, static_cast<int>(storing_->rows().size()));
}

// ---- by a direct way

void Arena::Doubt(v1::LoadRequest* request) {
  const std::lock_guard lock(mu_);
  for (v1::LoadItem& item : *request->mutable_items()) {
    doubtful_rows_.insert(item.row());
    item.clear_row_unmodified();
  }
}

std::optional<absl::StatusOr<v1::LoadResponse>> Arena::LoadDirectly(v1::LoadRequest* request, const CallOptions& call,
                                                                    CUstream_st* stream) {
  if (plan_ == nullptr || (gpu_ != nullptr && copies_ == nullptr)) return std::nullopt;
  {
    const std::lock_guard lock(mu_);
    for (v1::LoadItem& item : *request->mutable_items()) {
      if (doubtful_rows_.contains(item.row())) item.clear_row_unmodified();
    }
  }
  const std::shared_ptr<DirectLease> lease = direct_->Lease(absl::Now() + *call.timeout, gpu_name());
  if (lease == nullptr) return std::nullopt;
  request->set_lease(lease->id());
  absl::StatusOr<v1::LoadResponse> response = Call(&Pool::LoadOnce, request, call);
  request->clear_lease();
  if (!response.ok()) {
    const std::string reason = GetErrorDetail(response.status()).reason;
    direct_->Judge(lease, response.status());
    if (reason == "CONTENTS_GONE" || reason == "ARENA_CLOSED" || reason == "ARENA_CHANGED") return response;
    Doubt(request);
    if (absl::IsDeadlineExceeded(response.status())) return response;
    return std::nullopt;
  }
  if (response->rows_size() != request->items_size()) return response;
  std::vector<v1::Slot> slots;
  std::vector<std::vector<uint32_t>> rows;       // of each
  absl::flat_hash_map<uint64_t, size_t> places;  // by pin
  absl::Status status;
  for (int i = 0; i < response->rows_size(); ++i) {
    v1::LoadedRow& row = *response->mutable_rows(i);
    if (!row.has_slot()) continue;
    if (request->items(i).row() >= this->rows() || row.info().state_bytes() != plan_->state_bytes())
      status = MalformedResponse("a row with a slot of another layout");
    const auto [place, is_new] = places.try_emplace(row.slot().id(), slots.size());
    if (is_new) {
      slots.push_back(row.slot());
      rows.emplace_back();
    }
    rows[place->second].push_back(request->items(i).row());
    row.clear_slot();
  }
  if (slots.empty()) return response;
  const absl::Time start = absl::Now();
  absl::StatusOr<std::unique_ptr<const DirectLease::Held>> held =
      status.ok() ? lease->Hold(slots, plan_->state_bytes()) : status;
  if (!held.ok()) {
    direct_->Judge(lease, held.status());
    direct_->Retire(lease);
    Doubt(request);
    return std::nullopt;
  }
  std::vector<const char*> states;
  for (size_t i = 0; i < slots.size(); ++i) states.push_back((*held)->data(i));
  const absl::StatusOr<bool> is_copied = Gather(states, rows, *std::move(held), stream);
  if (!is_copied.ok() || !*is_copied) Doubt(request);
  if (!is_copied.ok()) return is_copied.status();
  if (!*is_copied) return std::nullopt;
  if (gpu_ == nullptr) ToProto(absl::Now() - start, response->mutable_copy_time());
  return response;
}

absl::StatusOr<bool> Arena::Gather(absl::Span<const char* const> states, absl::Span<const std::vector<uint32_t>> rows,
                                   std::shared_ptr<const void> pins, CUstream_st* stream) {
  if (copies_ == nullptr) {
    size_t count = 0;
    for (const std::vector<uint32_t>& of_state : rows) {
      for (const uint32_t row : of_state) plan_->Clear(memory_->data(), row);
      count += of_state.size();
    }
    const uint64_t bytes = plan_->state_bytes() * count;
    const CopyHint hint = bytes > kStreamingLoadBytes ? CopyHint::kStreaming : CopyHint::kCached;
    Share(bytes, plan_->state_bytes(), [&](uint64_t begin, uint64_t end) {
      for (size_t i = 0; i < states.size(); ++i) plan_->Gather(states[i], begin, end, memory_->data(), rows[i], hint);
    });
    return true;
  }
  std::vector<GpuCopies::FromSlot> items;
  for (size_t i = 0; i < states.size(); ++i) {
    for (const uint32_t row : rows[i]) items.push_back({states[i], row});
  }
  in_flight_->Release();
  const std::lock_guard lock(mu_);  // while it is held nobody unmaps the arena
  if (closed_) return Closed();
  if (!IsKnownLocked()) return GoneLocked();
  if (!memory_->is_mapped()) return false;
  absl::StatusOr<std::unique_ptr<const Enqueued>> enqueued = copies_->Gather(items, memory_->data(), stream);
  if (!enqueued.ok()) return enqueued.status();
  in_flight_->Hold(*std::move(enqueued), std::move(pins));
  return true;
}

ToStore Arena::ToStoreOf(const v1::StoreItem& item) const {
  const std::optional<uint32_t> length =
      item.has_accepted_length() ? std::optional<uint32_t>(item.accepted_length()) : std::nullopt;
  return statepool::ToStoreOf(length, item.path(), item.position(),
                              {std::max(steps(), 1u), advance_plan_->has_windows(), item.skip_none(), item.align()});
}

std::optional<absl::StatusOr<v1::AdvanceResponse>> Arena::AdvanceDirectly(const v1::AdvanceRequest& request,
                                                                          CUstream_st* stream) {
  if (advance_plan_ == nullptr || (gpu_ != nullptr && copies_ == nullptr)) return std::nullopt;
  const uint32_t limit = std::max(steps(), 1u);
  if (request.items().empty() || request.verified_length() > limit) return std::nullopt;
  const AdvanceRules rules{request.skip_none(), request.skip_out_of_range(), request.verified_length()};
  std::vector<AdvanceMove> rows, moves;
  v1::AdvanceResponse response;
  for (const v1::AdvanceItem& item : request.items()) {
    const uint32_t to_row = item.has_to_row() ? item.to_row() : item.row();
    if (item.row() >= this->rows() || to_row >= this->rows()) return std::nullopt;
    const std::optional<uint32_t> length =
        item.has_accepted_length() ? std::optional<uint32_t>(item.accepted_length()) : std::nullopt;
    const Accepted accepted = AcceptedOf(length, item.path(), to_row != item.row(), limit, rules);
    if (accepted.outcome >= AdvanceOutcome::kNoLength) return std::nullopt;
    rows.push_back({item.row(), to_row, accepted.steps});
    if (accepted.outcome == AdvanceOutcome::kMoved) moves.push_back(rows.back());
    response.add_rows()->set_outcome(static_cast<v1::AdvancedRow::Outcome>(accepted.outcome));
  }
  if (FindRowClash(rows)) return std::nullopt;
  const absl::Time start = absl::Now();
  if (absl::Status status = Move(moves, stream); !status.ok()) return status;
  if (gpu_ == nullptr) ToProto(absl::Now() - start, response.mutable_copy_time());
  return response;
}

absl::Status Arena::Move(absl::Span<const AdvanceMove> moves, CUstream_st* stream) {
  {
    const std::lock_guard lock(mu_);  // while it is held nobody unmaps the arena
    if (closed_) return Closed();
    if (!IsKnownLocked()) return GoneLocked();
    for (const AdvanceMove& move : moves) doubtful_rows_.insert(move.to_row);
    if (gpu_ != nullptr && memory_->is_mapped()) return copies_->Advance(moves, memory_->data(), stream);
    if (gpu_ != nullptr) return ContentsGone(incarnation_, id_);  // since a Reopen that failed
  }
  const size_t parts = advance_plan_->parts().size();
  Share(moves.size() * advance_plan_->bytes(), moves.size() * parts, [&](uint64_t begin, uint64_t end) {
    for (uint64_t i = begin; i < end; ++i) advance_plan_->Move(memory_->data(), moves[i / parts], i % parts);
  });
  return absl::OkStatus();
}

absl::Status Arena::AdvanceStored(const v1::StoreRequest& request, const v1::StoreResponse& response,
                                  CUstream_st* stream) {
  std::vector<AdvanceMove> moves;
  for (int i = 0; i < std::min(request.items_size(), response.rows_size()); ++i) {
    const v1::StoreItem& item = request.items(i);
    if (!item.advance() || response.rows(i).has_error() || !response.done()) continue;
    const std::optional<AcceptedSteps> steps = ToStoreOf(item).steps;
    if (steps && steps->bits() != 1) moves.push_back({item.row(), item.row(), *steps});
  }
  if (moves.empty()) return absl::OkStatus();
  return Move(moves, stream);
}

std::optional<DirectGrants> Arena::TakeGrants(const v1::StoreRequest& request, absl::Time deadline) {
  const auto count = static_cast<size_t>(request.items_size());
  if (plan_ == nullptr || count == 0) return std::nullopt;
  for (const v1::StoreItem& item : request.items()) {
    if (!item.attachment().empty() || item.row() >= rows() || ToStoreOf(item).length == 0) return std::nullopt;
  }
  {
    const std::lock_guard lock(mu_);
    if (closed_ || (count >= refused_grants_ && absl::Now() < refused_until_)) return std::nullopt;
  }
  std::shared_ptr<DirectLease> lease = direct_->Lease(deadline, gpu_name());
  if (lease == nullptr) return std::nullopt;
  absl::StatusOr<std::vector<DirectLease::Granted>> grants =
      lease->Take(*pool_, layout(), plan_->state_bytes(), count, deadline);
  if (!grants.ok()) {
    direct_->Judge(lease, grants.status());
    const std::lock_guard lock(mu_);
    refused_grants_ = count;
    refused_until_ = absl::Now() + (gpu_ == nullptr ? kRefusedPause : kRefusedPauseOnGpu);
    return std::nullopt;
  }
  return DirectGrants{std::move(lease), *std::move(grants)};
}

std::optional<absl::StatusOr<v1::StoreResponse>> Arena::StoreDirectly(v1::StoreRequest* request,
                                                                      const CallOptions& call, CUstream_st* stream) {
  if (gpu_ != nullptr) {
    absl::StatusOr<std::shared_ptr<Storing>> storing = BeginStore(*request, call, stream, /*attended=*/false);
    if (!storing.ok()) return storing.status();
    if (*storing == nullptr) return std::nullopt;
    in_flight_->FinishThrough(**storing);
    absl::StatusOr<v1::StoreResponse> response = (*storing)->answer();
    if (!response.ok() && !IsShortage(GetErrorDetail(response.status()).reason))
      response = Lost(response.status(), (*storing)->generation());
    return Settle(std::move(response), absl::Now() + *call.timeout);
  }
  const absl::Time deadline = absl::Now() + *call.timeout;
  std::optional<DirectGrants> granted = TakeGrants(*request, deadline);
  if (!granted) return std::nullopt;
  std::vector<DirectLease::Granted>& grants = granted->grants;
  const size_t count = grants.size();
  const uint64_t bytes = plan_->state_bytes() * count;
  const CopyHint hint = bytes > kStreamingStoreBytes ? CopyHint::kStreaming : CopyHint::kCached;
  const uint64_t leaves = LeafCount(plan_->state_bytes());
  std::vector<LeafHash> hashes(leaves * count);
  const absl::Time start = absl::Now();
  Share(bytes, leaves, [&](uint64_t first, uint64_t last) {
    for (size_t i = 0; i < count; ++i) {
      const v1::StoreItem& item = request->items(static_cast<int>(i));
      plan_->ScatterLeaves(memory_->data(), item.row(), ToStoreOf(item).length, first, last, grants[i].data(),
                           hashes.data() + i * leaves + first, hint);
    }
  });
  const v1::StoreRequest asked = *request;
  NameGrants(*granted, hashes, request);
  const absl::Duration copy_time = absl::Now() - start;
  absl::StatusOr<v1::StoreResponse> response = Call(&Pool::StoreOnce, request, Until(deadline));
  *request = asked;
  if (response.ok()) {
    ToProto(copy_time, response->mutable_copy_time());
  } else {
    granted->lease->GiveBack(std::move(grants));
    direct_->Judge(granted->lease, response.status());
  }
  return Settle(std::move(response), deadline);
}

std::optional<absl::StatusOr<v1::StoreResponse>> Arena::Settle(absl::StatusOr<v1::StoreResponse> response,
                                                               absl::Time deadline) const {
  if (response.ok()) {
    for (const v1::StoredRow& row : response->rows()) {
      // Those that were stored are answered by their request_id.
      if (row.has_error() && GetErrorDetail(FromItemError(row.error())).reason == "GRANT_UNKNOWN") return std::nullopt;
    }
    return response;
  }
  if (IsShortage(GetErrorDetail(response.status()).reason)) return std::nullopt;
  const std::optional<absl::Duration> delay = RetryDelay(response.status(), 1);
  if (!delay || pool_->options_.max_attempts < 2 || absl::Now() + *delay >= deadline) return response;
  absl::SleepFor(*delay);
  return std::nullopt;
}

absl::StatusOr<std::shared_ptr<Storing>> Arena::BeginStore(const v1::StoreRequest& request, const CallOptions& call,
                                                           CUstream_st* stream, bool attended) {
  if (copies_ == nullptr) return nullptr;
  in_flight_->Release();
  std::optional<DirectGrants> granted = TakeGrants(request, absl::Now() + *call.timeout);
  if (!granted) return nullptr;
  std::vector<GpuCopies::ToSlot> items;
  for (int i = 0; i < request.items_size(); ++i) {
    const v1::StoreItem& item = request.items(i);
    items.push_back({item.row(), ToStoreOf(item).length, granted->grants[static_cast<size_t>(i)].data()});
  }
  const std::lock_guard lock(mu_);  // while it is held nobody unmaps the arena, and stores are in their order
  absl::Status status = closed_ ? Closed() : IsKnownLocked() ? absl::OkStatus() : GoneLocked();
  std::unique_ptr<const Enqueued> enqueued;
  if (status.ok() && memory_->is_mapped()) {
    absl::StatusOr<std::unique_ptr<const Enqueued>> scattered = copies_->Scatter(items, memory_->data(), stream);
    status = scattered.status();
    if (status.ok()) enqueued = *std::move(scattered);
  }
  if (enqueued == nullptr) {  // unmapped: the daemon says that it is lost, and it is opened again
    granted->lease->GiveBack(std::move(granted->grants));
    if (!status.ok()) return status;
    return nullptr;
  }
  auto storing = std::make_shared<Storing>(
      RowsOf(request), generation_, std::move(enqueued),
      [this, granted = *std::move(granted), request = v1::StoreRequest(request), generation = generation_,
       call](const absl::StatusOr<absl::Span<const LeafHash>>& hashes) mutable -> absl::StatusOr<v1::StoreResponse> {
        if (hashes.ok()) NameGrants(granted, *hashes, &request);
        absl::StatusOr<v1::StoreResponse> response =
            hashes.ok() ? CallOf(generation, &Pool::StoreOnce, &request, call) : hashes.status();
        if (!response.ok()) {
          granted.lease->GiveBack(std::move(granted.grants));
          direct_->Judge(granted.lease, response.status());
        }
        granted.grants.clear();  // before the lease
        return response;
      });
  in_flight_->Add(storing, attended);
  return storing;
}

template <typename Request, typename Response>
absl::StatusOr<Response> Arena::Call(absl::StatusOr<Response> (Pool::*method)(const Request&, const CallOptions&) const,
                                     Request* request, const CallOptions& call, absl::Status* unanswered) {
  if (IsForked()) return Forked();
  const absl::Time deadline = DeadlineOf(call);
  uint64_t generation;
  bool gone;
  {
    const std::lock_guard lock(mu_);
    if (closed_) return Closed();
    generation = generation_;
    gone = unanswered == nullptr && !IsKnownLocked();
    request->set_arena(id_);
  }
  if (gone) return Gone();
  absl::StatusOr<Response> response = ((*pool_).*method)(*request, Until(deadline));
  if (response.ok()) return response;
  if (unanswered != nullptr && IsUnanswered(response.status())) *unanswered = response.status();
  if (!absl::IsUnavailable(response.status()) && GetErrorDetail(response.status()).reason != "ARENA_UNKNOWN")
    return response;
  if (absl::Status status = Revive(response.status(), generation, deadline); !status.ok()) return status;
  return Gone();
}

absl::StatusOr<v1::LoadResponse> Arena::LoadAnyhow(v1::LoadRequest request, const CallOptions& call,
                                                   absl::Status* unanswered) {
  absl::StatusOr<v1::LoadResponse> response = Call(&Pool::Load, &request, call, unanswered);
  if (response.ok() && response->rows_size() != request.items_size())
    return MalformedResponse("a LoadResponse has one entry for each item");
  return response;
}

absl::StatusOr<v1::StoreResponse> Arena::StoreAnyhow(v1::StoreRequest request, const CallOptions& call,
                                                     absl::Status* unanswered) {
  absl::StatusOr<v1::StoreResponse> response = Call(&Pool::Store, &request, call, unanswered);
  if (response.ok() && response->rows_size() != request.items_size())
    return MalformedResponse("a StoreResponse has one entry for each item");
  return response;
}

template <typename Request, typename Response>
absl::StatusOr<Response> Arena::CallOf(uint64_t generation,
                                       absl::StatusOr<Response> (Pool::*method)(const Request&, const CallOptions&)
                                           const,
                                       Request* request, const CallOptions& call) {
  {
    const std::lock_guard lock(mu_);
    if (closed_) return Closed();
    if (generation_ != generation) return ContentsGone(incarnation_, id_);
    request->set_arena(id_);
  }
  return ((*pool_).*method)(*request, call);
}

absl::Status Arena::Lost(const absl::Status& error, uint64_t generation) {
  const ErrorDetail detail = GetErrorDetail(error);
  const bool is_gone = detail.reason == "CONTENTS_GONE", is_lease = detail.reason == "LEASE_UNKNOWN";
  if (!is_gone && !is_lease && detail.reason != "ARENA_UNKNOWN" && !absl::IsUnavailable(error)) return error;
  {
    const std::lock_guard lock(mu_);
    if (is_gone) return GoneLocked();
    const auto incarnation = detail.metadata.find("incarnation");
    const bool is_same = incarnation != detail.metadata.end() && incarnation->second == incarnation_;
    if (is_lease && is_same && generation_ == generation) return error;  // the lease alone
  }
  if (absl::Status status = Revive(error, generation, absl::Now() + pool_->options_.timeout); !status.ok())
    return status;
  return Gone();
}

bool Arena::IsKnownLocked() {
  return known_.try_emplace(std::this_thread::get_id(), generation_).first->second == generation_;
}

absl::Status Arena::Gone() {
  const std::lock_guard lock(mu_);
  return GoneLocked();
}

absl::Status Arena::GoneLocked() {
  known_[std::this_thread::get_id()] = generation_;
  return ContentsGone(incarnation_, id_);
}

// ---- opening and closing

absl::Status Arena::OpenLocked(absl::Time deadline) {
  for (int attempt = 1;; ++attempt) {
    // Repeated safely: an arena that nobody connects to ends by itself.
    const absl::StatusOr<v1::Arena> table = pool_->OpenArena(request_, Until(deadline));
    if (!table.ok()) return table.status();
    const absl::Status status = ConnectLocked(*table, deadline);
    if (status.ok()) return status;
    End(table->arena());
    const std::string reason = GetErrorDetail(status).reason;
    // This process was too slow, or others are in the way.
    const bool again = reason == "TOKEN_INVALID" || reason == "TOO_MANY_CONNECTIONS" || reason == "NO_DESCRIPTORS";
    const absl::Duration delay = Backoff(attempt);
    if (!again || attempt >= pool_->options_.max_attempts || absl::Now() + delay >= deadline) return status;
    absl::SleepFor(delay);
  }
}

absl::Status Arena::ConnectLocked(const v1::Arena& table, absl::Time deadline) {
  if (memory_ != nullptr && ShapeOf(table) != ShapeOf(table_)) {
    return Refusal("ARENA_CHANGED", "the daemon lays this arena out in another way than before: open a new one");
  }
  absl::StatusOr<Lease> lease = TakeLease(table, deadline);
  if (!lease.ok()) return lease.status();
  if (memory_ == nullptr) {
    if (IsGpu(table.device())) {
      absl::StatusOr<std::shared_ptr<Gpu>> gpu = FindGpu(table.device());
      if (!gpu.ok()) return gpu.status();
      gpu_ = *std::move(gpu);
      request_.set_device(table.device());  // whose addresses these are
    }
    absl::StatusOr<std::unique_ptr<Range>> range =
        gpu_ != nullptr ? gpu_->Reserve(lease->mapped_bytes) : Range::Reserve(table.bytes());
    if (!range.ok()) return range.status();
    memory_ = *std::move(range);
    table_ = table;
    table_.clear_token();
    request_.set_layout(table.layout());  // whatever becomes of an alias
    if (absl::Status status = MakeTensorsLocked(); !status.ok()) return status;
    plan_ = PlanOf(table_);
    if (plan_ != nullptr) {
      advance_plan_ = AdvancePlanOf(table_, request_.view().num_spec());
      if (advance_plan_ == nullptr) plan_ = nullptr;  // then the daemon does all of it
    }
    if (plan_ != nullptr && gpu_ != nullptr) MakeCopiesLocked();
    mapped_bytes_ = lease->mapped_bytes;
  } else if (lease->mapped_bytes != mapped_bytes_) {
    return Refusal("ARENA_CHANGED", "the daemon lays this arena out in another way than before: open a new one");
  }
  if (absl::Status status = memory_->Put(lease->memory.get()); !status.ok()) return status;
  lease->memory = Descriptor();
  lease_ = std::make_unique<Lease>(*std::move(lease));
  id_ = table.arena();
  incarnation_ = table.incarnation();
  known_[std::this_thread::get_id()] = ++generation_;
  doubtful_rows_.clear();
  return absl::OkStatus();
}

absl::Status Arena::MakeTensorsLocked() {
  for (const v1::ArenaTensor& from : table_.tensors()) {
    uint64_t end = from.offset() + BytesOf(from.dtype());
    bool fits = from.shape_size() == from.axes_size() && from.strides_size() == from.axes_size();
    for (int i = 0; fits && i < from.shape_size(); ++i) {
      fits = from.shape(i) > 0 && from.shape(i) <= table_.bytes() && from.strides(i) <= table_.bytes();
      const uint64_t steps = from.shape(i) - 1;
      fits = fits && (steps == 0 || from.strides(i) <= table_.bytes() / steps);
      end += steps * from.strides(i);
    }
    if (!fits || from.offset() >= table_.bytes() || end > table_.bytes()) {
      return MakeError(absl::StatusCode::kInternal, "BAD_ANSWER", "tensors",
                       absl::StrCat("tensor '", from.tensor(), "' does not lie within the arena"));
    }
    ArenaTensor& to = tensors_.emplace_back();
    to.tensor = from.tensor();
    to.layers.assign(from.layers().begin(), from.layers().end());
    to.dtype = from.dtype();
    to.axes.assign(from.axes().begin(), from.axes().end());
    to.shape.assign(from.shape().begin(), from.shape().end());
    to.strides.assign(from.strides().begin(), from.strides().end());
    to.data = memory_->data() + from.offset();
  }
  return absl::OkStatus();
}

void Arena::MakeCopiesLocked() {
  absl::StatusOr<std::unique_ptr<GpuCopies>> copies = gpu_->NewCopies(*plan_, *advance_plan_);
  if (!copies.ok()) return;
  in_flight_ = InFlight::Make();
  if (in_flight_ != nullptr) copies_ = *std::move(copies);
}

absl::Status Arena::VacateLocked() {
  const absl::Status status = memory_->Vacate();
  if (status.ok()) SayUnmappedLocked();
  return status;
}

void Arena::SayUnmappedLocked() const {
  constexpr absl::string_view kUnmapped = "unmapped";
  if (lease_ == nullptr || gpu_ == nullptr) return;
  (void)send(lease_->socket.get(), kUnmapped.data(), kUnmapped.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

absl::Status Arena::WaitFor(CUstream_st* stream) const {
  if (gpu_ == nullptr || memory_ == nullptr) return absl::OkStatus();
  return memory_->WaitFor(stream);
}

absl::Status Arena::Revive(const absl::Status& error, uint64_t generation, absl::Time deadline) {
  {
    const std::lock_guard lock(mu_);
    if (closed_) return error;
    if (generation_ != generation) return absl::OkStatus();  // another thread was first
    if (absl::Status status = ReviveLocked(error, deadline); !status.ok()) {
      const bool says_less =
          absl::IsNotFound(status) || absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
      return says_less ? error : status;
    }
  }
  if (on_reopen_) on_reopen_(*this);
  return absl::OkStatus();
}

absl::Status Arena::ReviveLocked(const absl::Status& error, absl::Time deadline) {
  const absl::StatusOr<v1::Capabilities> daemon = pool_->GetCapabilities(Until(deadline));
  if (!daemon.ok()) return daemon.status();
  if (daemon->incarnation() == incarnation_) {
    if (absl::IsUnavailable(error)) return error;
    // Its contents are gone, and this daemon counts it until nobody has it.
    if (absl::Status status = VacateLocked(); !status.ok()) return status;
  }
  return OpenLocked(deadline);
}

absl::Status Arena::Reopen(const CallOptions& call) {
  if (IsForked()) return Forked();
  if (in_flight_ != nullptr) in_flight_->Finish();
  {
    const std::lock_guard lock(mu_);
    if (closed_) return Closed();
    if (absl::Status status = VacateLocked(); !status.ok()) return status;
    End(id_);
    lease_ = nullptr;
    if (absl::Status status = OpenLocked(DeadlineOf(call)); !status.ok()) return status;
  }
  if (on_reopen_) on_reopen_(*this);
  return absl::OkStatus();
}

// In a forked child nobody can hold mu_ but a thread that is not there.
void Arena::Close() {
  if (IsForked()) {
    if (std::exchange(closed_, true)) return;
    if (gpu_ != nullptr) (void)memory_.release();  // CUDA is not there in a forked child
    (void)in_flight_.release();                    // nor its thread
    memory_ = nullptr;
    lease_ = nullptr;  // no shutdown(): a parent's lease goes on
    return;
  }
  if (in_flight_ != nullptr) in_flight_->Finish();
  {
    const std::lock_guard lock(mu_);
    if (std::exchange(closed_, true)) return;
    memory_ = nullptr;  // before the daemon hears of it: then it gets its memory back at once
    SayUnmappedLocked();
  }
  // Nothing is under way any more: what was begun meanwhile was waited for, and can't be committed.
  in_flight_ = nullptr;
  copies_ = nullptr;
  const std::lock_guard lock(mu_);
  End(id_);
  lease_ = nullptr;
}

void Arena::Drop() {
  const std::lock_guard lock(mu_);
  if (std::exchange(closed_, true)) return;
  memory_ = nullptr;
  lease_ = nullptr;
}

void Arena::End(const std::string& arena) const {
  if (arena.empty()) return;
  v1::CloseArenaRequest request;
  request.set_arena(arena);
  request.set_allow_missing(true);
  CallOptions call;
  call.timeout = std::min(pool_->options_.timeout, kCloseTimeout);
  (void)pool_->CloseArena(request, call);
}

}  // namespace statepool::client
