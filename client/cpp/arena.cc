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
#include "client/cpp/cuda_mapping.h"
#include "client/cpp/direct.h"
#include "client/cpp/lane.h"
#include "client/cpp/mapping.h"
#include "kernels/checksum.h"
#include "kernels/copy_plan.h"

namespace statepool::client {
namespace {

// Copies of so many bytes in one call go past the caches.
constexpr uint64_t kStreamingLoadBytes = 4 << 20;
constexpr uint64_t kStreamingStoreBytes = 1 << 20;
// And of so many are shared with a second thread: much more than a thread costs.
constexpr uint64_t kSharedBytesMin = 8 << 20;
constexpr absl::Duration kRefusedPause = absl::Seconds(30);
constexpr absl::Duration kCloseTimeout = absl::Seconds(5);  // the socket tells the daemon as well

absl::Status Refusal(absl::string_view reason, absl::string_view message) {
  return MakeError(absl::StatusCode::kFailedPrecondition, reason, "", message);
}

absl::Status Forked() {
  return Refusal("FORKED", "this arena is that of the process that this one was forked from: open another one");
}
absl::Status Closed() { return Refusal("ARENA_CLOSED", "this arena was closed"); }

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

uint32_t AcceptedOf(const v1::StoreItem& item) { return item.has_accepted_length() ? item.accepted_length() : 1; }

void ToProto(absl::Duration from, google::protobuf::Duration* to) {
  const timespec time = absl::ToTimespec(from);
  to->set_seconds(time.tv_sec);
  to->set_nanos(static_cast<int32_t>(time.tv_nsec));
}

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
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

absl::StatusOr<LoadAnswer> Arena::Load(absl::Span<const v1::LoadItem> items, const CallOptions& call,
                                       CUstream_st* stream) {
  if (absl::Status status = WaitFor(stream); !status.ok()) return status;
  v1::LoadRequest request;
  request.mutable_items()->Add(items.begin(), items.end());
  const absl::Time deadline = DeadlineOf(call);
  std::optional<absl::StatusOr<v1::LoadResponse>> directly = LoadDirectly(&request, Until(deadline));
  absl::StatusOr<v1::LoadResponse> response =
      directly ? *std::move(directly) : Call(&Pool::Load, &request, Until(deadline));
  if (!response.ok()) return response.status();
  if (response->rows_size() != request.items_size())
    return MalformedResponse("a LoadResponse has one entry for each item");
  if (plan_ != nullptr) {
    const std::lock_guard lock(mu_);
    for (int i = 0; i < request.items_size(); ++i) {
      if (!response->rows(i).has_error()) doubtful_rows_.erase(request.items(i).row());
    }
  }
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

absl::StatusOr<StoreAnswer> Arena::Store(absl::Span<const v1::StoreItem> items, bool all_or_none,
                                         const CallOptions& call, CUstream_st* stream) {
  if (absl::Status status = WaitFor(stream); !status.ok()) return status;
  v1::StoreRequest request;
  request.mutable_items()->Add(items.begin(), items.end());
  request.set_all_or_none(all_or_none);
  for (v1::StoreItem& item : *request.mutable_items()) {
    if (item.request_id().empty()) item.set_request_id(NewRequestId());
  }
  const absl::Time deadline = DeadlineOf(call);
  std::optional<absl::StatusOr<v1::StoreResponse>> directly = StoreDirectly(&request, Until(deadline));
  absl::StatusOr<v1::StoreResponse> response =
      directly ? *std::move(directly) : Call(&Pool::Store, &request, Until(deadline));
  if (!response.ok()) return response.status();
  if (response->rows_size() != request.items_size())
    return MalformedResponse("a StoreResponse has one entry for each item");
  StoreAnswer answer;
  answer.done = response->done();
  answer.copy_time = ToDuration(response->copy_time());
  for (v1::StoredRow& row : *response->mutable_rows()) {
    if (absl::Status status = ToStatus(row); !status.ok()) {
      answer.rows.push_back(std::move(status));
    } else {
      answer.rows.push_back(std::move(*row.mutable_info()));
    }
  }
  return answer;
}

// ---- by a direct way

void Arena::Doubt(v1::LoadRequest* request) {
  const std::lock_guard lock(mu_);
  for (v1::LoadItem& item : *request->mutable_items()) {
    doubtful_rows_.insert(item.row());
    item.clear_row_unmodified();
  }
}

std::optional<absl::StatusOr<v1::LoadResponse>> Arena::LoadDirectly(v1::LoadRequest* request, const CallOptions& call) {
  if (plan_ == nullptr || IsForked()) return std::nullopt;
  {
    const std::lock_guard lock(mu_);
    for (v1::LoadItem& item : *request->mutable_items()) {
      if (doubtful_rows_.contains(item.row())) item.clear_row_unmodified();
    }
  }
  const std::shared_ptr<DirectLease> lease = direct_->Lease(absl::Now() + *call.timeout);
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
  struct Source {
    std::unique_ptr<const DirectLease::Held> held;
    std::vector<uint32_t> rows;
  };
  absl::flat_hash_map<uint64_t, Source> sources;  // by pin
  absl::Status status;
  for (int i = 0; i < response->rows_size(); ++i) {
    v1::LoadedRow& row = *response->mutable_rows(i);
    if (!row.has_slot()) continue;
    if (request->items(i).row() >= rows() || row.info().state_bytes() != plan_->state_bytes()) {
      status = MalformedResponse("a row with a slot of another layout");
      break;
    }
    Source& source = sources[row.slot().id()];
    source.rows.push_back(request->items(i).row());
    if (source.held == nullptr) {
      absl::StatusOr<std::unique_ptr<const DirectLease::Held>> held = lease->Hold(row.slot(), plan_->state_bytes());
      status = held.status();
      if (!held.ok()) break;
      source.held = *std::move(held);
    }
    row.clear_slot();
  }
  if (!status.ok()) {
    direct_->Judge(lease, status);
    direct_->Retire(lease);
    Doubt(request);
    return std::nullopt;
  }
  const uint64_t bytes = plan_->state_bytes() * static_cast<uint64_t>(response->rows_size());
  const CopyHint hint = bytes > kStreamingLoadBytes ? CopyHint::kStreaming : CopyHint::kCached;
  const absl::Time start = absl::Now();
  for (const auto& [pin, source] : sources) {
    for (const uint32_t row : source.rows) plan_->Clear(memory_->data(), row);
  }
  Share(bytes, plan_->state_bytes(), [&](uint64_t begin, uint64_t end) {
    for (const auto& [pin, source] : sources)
      plan_->Gather(source.held->data(), begin, end, memory_->data(), source.rows, hint);
  });
  ToProto(absl::Now() - start, response->mutable_copy_time());
  return response;
}

std::optional<absl::StatusOr<v1::StoreResponse>> Arena::StoreDirectly(v1::StoreRequest* request,
                                                                      const CallOptions& call) {
  const auto count = static_cast<size_t>(request->items_size());
  if (plan_ == nullptr || IsForked() || count == 0) return std::nullopt;
  for (const v1::StoreItem& item : request->items()) {
    const uint32_t accepted = AcceptedOf(item);
    if (!item.attachment().empty() || item.row() >= rows() || accepted < 1 || accepted > std::max(steps(), 1u))
      return std::nullopt;
  }
  {
    const std::lock_guard lock(mu_);
    if (closed_ || (count >= refused_grants_ && absl::Now() < refused_until_)) return std::nullopt;
  }
  const absl::Time deadline = absl::Now() + *call.timeout;
  const std::shared_ptr<DirectLease> lease = direct_->Lease(deadline);
  if (lease == nullptr) return std::nullopt;
  absl::StatusOr<std::vector<DirectLease::Granted>> grants =
      lease->Take(*pool_, layout(), plan_->state_bytes(), count, deadline);
  if (!grants.ok()) {
    direct_->Judge(lease, grants.status());
    const std::lock_guard lock(mu_);
    refused_grants_ = count;
    refused_until_ = absl::Now() + kRefusedPause;
    return std::nullopt;
  }
  const uint64_t bytes = plan_->state_bytes() * count;
  const CopyHint hint = bytes > kStreamingStoreBytes ? CopyHint::kStreaming : CopyHint::kCached;
  const uint64_t leaves = LeafCount(plan_->state_bytes());
  std::vector<LeafHash> hashes(leaves * count);
  const absl::Time start = absl::Now();
  Share(bytes, leaves, [&](uint64_t first, uint64_t last) {
    for (size_t i = 0; i < count; ++i) {
      const v1::StoreItem& item = request->items(static_cast<int>(i));
      plan_->ScatterLeaves(memory_->data(), item.row(), AcceptedOf(item), first, last, (*grants)[i].data(),
                           hashes.data() + i * leaves + first, hint);
    }
  });
  for (size_t i = 0; i < count; ++i) {
    v1::StoreItem& item = *request->mutable_items(static_cast<int>(i));
    item.set_grant((*grants)[i].slot.id());
    item.set_checksum(ChecksumToHex(HashRoot(absl::MakeSpan(hashes).subspan(i * leaves, leaves))));
  }
  const absl::Duration copy_time = absl::Now() - start;
  request->set_lease(lease->id());
  absl::StatusOr<v1::StoreResponse> response = Call(&Pool::StoreOnce, request, Until(deadline));
  request->clear_lease();
  for (v1::StoreItem& item : *request->mutable_items()) {
    item.clear_grant();
    item.clear_checksum();
  }
  if (response.ok()) {
    ToProto(copy_time, response->mutable_copy_time());
    for (const v1::StoredRow& row : response->rows()) {
      // Those that were stored are answered by their request_id.
      if (row.has_error() && GetErrorDetail(FromItemError(row.error())).reason == "GRANT_UNKNOWN") return std::nullopt;
    }
    return response;
  }
  const absl::Status& error = response.status();
  const std::string reason = GetErrorDetail(error).reason;
  direct_->Judge(lease, error);
  if (reason == "LEASE_UNKNOWN" || reason == "LEASE_NOT_CONNECTED" || reason == "DIRECT_OFF") return std::nullopt;
  const std::optional<absl::Duration> delay = RetryDelay(error, 1);
  if (!delay || pool_->options_.max_attempts < 2 || absl::Now() + *delay >= deadline) return response;
  absl::SleepFor(*delay);
  return std::nullopt;
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
    gone =
        unanswered == nullptr && known_.try_emplace(std::this_thread::get_id(), generation).first->second != generation;
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

absl::Status Arena::Gone() {
  const std::lock_guard lock(mu_);
  known_[std::this_thread::get_id()] = generation_;
  return MakeError(absl::StatusCode::kAborted, "CONTENTS_GONE", "",
                   "the daemon had lost this arena. It is open again at the same addresses: all rows are zeros and "
                   "must be loaded again",
                   {{"incarnation", incarnation_}, {"arena", id_}});
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
    absl::StatusOr<std::unique_ptr<Range>> range =
        IsGpu(table.device()) ? ReserveOnGpu(table.device(), lease->mapped_bytes) : Range::Reserve(table.bytes());
    if (!range.ok()) return range.status();
    memory_ = *std::move(range);
    table_ = table;
    table_.clear_token();
    request_.set_layout(table.layout());  // whatever becomes of an alias
    if (absl::Status status = MakeTensorsLocked(); !status.ok()) return status;
    if (!IsGpu(table_.device())) plan_ = PlanOf(table_);
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

absl::Status Arena::VacateLocked() {
  const absl::Status status = memory_->Vacate();
  if (status.ok()) SayUnmappedLocked();
  return status;
}

void Arena::SayUnmappedLocked() const {
  constexpr absl::string_view kUnmapped = "unmapped";
  if (lease_ == nullptr || !IsGpu(table_.device())) return;
  (void)send(lease_->socket.get(), kUnmapped.data(), kUnmapped.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

absl::Status Arena::WaitFor(CUstream_st* stream) const {
  if (IsForked() || !IsGpu(table_.device()) || memory_ == nullptr) return absl::OkStatus();
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
  const bool forked = IsForked();
  std::unique_lock lock(mu_, std::defer_lock);
  if (!forked) lock.lock();
  if (!std::exchange(closed_, true)) {
    if (forked && memory_ != nullptr && IsGpu(table_.device())) {
      (void)memory_.release();  // CUDA is not there in a forked child
    }
    memory_ = nullptr;  // before the daemon hears of it: then it gets its memory back at once
    if (!forked) SayUnmappedLocked();
    if (!forked) End(id_);
    lease_ = nullptr;  // no shutdown(): a parent's lease goes on
  }
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
