// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/direct.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/calls.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

constexpr size_t kEventBytesMax = 65536;
constexpr int kToldAtOnceMax = 4096;  // pins or extents in one message; the contract allows 8,192
constexpr int kUntoldMax = 1 << 20;   // pins that could not be given back: so many, and the lease counts as broken
constexpr size_t kNamesMax = 4096;
constexpr uint32_t kGrantsMax = 64;  // in one call

absl::Status Bad(absl::string_view reason, absl::string_view message) {
  return MakeError(absl::StatusCode::kInternal, reason, "", message);
}

// How many grants of a layout are taken at a time.
size_t StockOf(uint64_t state_bytes) {
  return std::clamp<size_t>(Direct::kStockBytesMax / std::max<uint64_t>(state_bytes, 1), 1, Direct::kStockMax);
}

absl::Status HungUp() {
  return MakeError(absl::StatusCode::kUnavailable, "SOCKET_UNREACHABLE", "socket", "the daemon ended the direct lease");
}

}  // namespace

// ---- extents

absl::StatusOr<std::shared_ptr<const Extent>> Extent::Map(int fd, uint64_t id, uint64_t bytes, bool writable) {
  struct stat status {};
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  if (bytes == 0 || fstat(fd, &status) != 0 || static_cast<uint64_t>(status.st_size) < bytes ||
      (std::max(fcntl(fd, F_GET_SEALS), 0) & kSeals) != kSeals) {
    return Bad("BAD_MEMORY", absl::StrCat("extent ", id, " is no memory of ", bytes, " bytes that stays as large"));
  }
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* const data = mmap(nullptr, bytes, protection, MAP_SHARED | (writable ? MAP_POPULATE : 0), fd, 0);
  if (data == MAP_FAILED) {
    return MakeError(absl::StatusCode::kResourceExhausted, "MAPPING_FAILED", "",
                     absl::StrCat("mmap of ", bytes, " bytes: ", std::strerror(errno)));
  }
  if (writable) (void)madvise(data, bytes, MADV_DONTFORK);
  return absl::WrapUnique(new Extent(id, static_cast<char*>(data), bytes, writable));
}

Extent::~Extent() { munmap(data_, bytes_); }

// ---- one lease

DirectLease::DirectLease(std::string id, Descriptor socket)
    : id_(std::move(id)), pid_(getpid()), socket_(std::move(socket)) {
  const timeval timeout = absl::ToTimeval(kAnswerTimeout);
  setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

DirectLease::~DirectLease() {
  if (IsForked()) return;
  // Unmapped before the daemon hears of it: what it does not hear of, it counts until this process ends.
  const std::lock_guard lock(mu_);
  stock_.clear();
  for (const auto& [id, mapped] : extents_) to_tell_.add_dropped(id);
  extents_.clear();
  SendLocked();
}

bool DirectLease::IsForked() const { return getpid() != pid_; }

bool DirectLease::Poll() {
  if (IsForked()) return false;
  std::vector<std::shared_ptr<const Extent>> trash;
  const std::lock_guard lock(mu_);
  Descriptor descriptor;
  while (!broken_ && ReceiveLocked(absl::InfinitePast(), &descriptor)) {
  }
  if (any_wanted_back_) TidyLocked(&trash);
  trash.clear();
  SendLocked();
  return !broken_;
}

absl::StatusOr<std::unique_ptr<const DirectLease::Held>> DirectLease::Hold(const v1::Slot& slot, uint64_t bytes) {
  if (IsForked()) return HungUp();
  const std::lock_guard lock(mu_);
  absl::StatusOr<std::shared_ptr<const Extent>> extent = ExtentOfLocked(slot, bytes, /*writable=*/false);
  if (extent.ok()) return std::make_unique<const Held>(shared_from_this(), *std::move(extent), slot);
  to_tell_.add_unpin(slot.id());
  SendLocked();
  return extent.status();
}

void DirectLease::Unpin(uint64_t pin, std::shared_ptr<const Extent> extent) {
  if (IsForked()) return;
  std::vector<std::shared_ptr<const Extent>> trash;
  const std::lock_guard lock(mu_);
  extent = nullptr;
  to_tell_.add_unpin(pin);
  if (any_wanted_back_ || mapped_bytes_ > kIdleBytesMax) TidyLocked(&trash);
  trash.clear();  // before the daemon hears of it
  SendLocked();
}

absl::StatusOr<std::shared_ptr<const Extent>> DirectLease::ExtentOfLocked(const v1::Slot& slot, uint64_t bytes,
                                                                          bool writable) {
  absl::StatusOr<std::shared_ptr<const Extent>> extent = ExtentLocked(slot.extent());
  if (!extent.ok()) return extent;
  const uint64_t room = (*extent)->bytes();
  if (slot.offset() > room || bytes > room - slot.offset() || (writable && !(*extent)->writable()))
    return Bad("BAD_ANSWER", absl::StrCat("slot ", slot.id(), " is not what it should be in its extent"));
  return extent;
}

absl::StatusOr<std::shared_ptr<const Extent>> DirectLease::ExtentLocked(uint64_t id) {
  if (const auto it = extents_.find(id); it != extents_.end()) {
    it->second.last_use = ++uses_;
    return it->second.extent;
  }
  to_tell_.set_extent(id);
  SendLocked();
  const absl::Time deadline = absl::Now() + kAnswerTimeout;
  while (true) {
    Descriptor descriptor;
    const std::optional<v1::LeaseEvent> event = ReceiveLocked(deadline, &descriptor);
    if (!event) {
      broken_ = true;  // what comes later would not be told apart
      return HungUp();
    }
    if (event->extent() != id) continue;
    if (!event->reason().empty() || descriptor.get() < 0)
      return MakeError(absl::StatusCode::kUnavailable, event->reason(), "", absl::StrCat("no extent ", id));
    absl::StatusOr<std::shared_ptr<const Extent>> extent =
        Extent::Map(descriptor.get(), id, event->bytes(), event->writable());
    if (!extent.ok()) {
      to_tell_.add_dropped(id);
      return extent.status();
    }
    extents_[id] = {*extent, false, ++uses_};
    mapped_bytes_ += event->bytes();
    return extent;
  }
}

std::optional<v1::LeaseEvent> DirectLease::ReceiveLocked(absl::Time deadline, Descriptor* descriptor) {
  char bytes[kEventBytesMax];
  iovec piece = {bytes, sizeof bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  ssize_t size;
  while (true) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    size = recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size > 0) break;
    if (size < 0 && errno == EINTR) continue;
    if (size == 0 || errno != EAGAIN) {
      broken_ = true;
      return std::nullopt;
    }
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return std::nullopt;
    pollfd wait = {socket_.get(), POLLIN, 0};
    (void)poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
  }
  *descriptor = Descriptor();
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
    int fd;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    *descriptor = Descriptor(fd);
  }
  v1::LeaseEvent event;
  if (!event.ParseFromArray(bytes, static_cast<int>(size))) {
    broken_ = true;
    return std::nullopt;
  }
  for (const uint64_t id : event.drop()) {
    const auto it = extents_.find(id);
    if (it == extents_.end()) continue;
    it->second.wanted_back = true;
    any_wanted_back_ = true;
  }
  return event;
}

void DirectLease::SendLocked() {
  if (broken_) to_tell_.Clear();
  while (!broken_ && (to_tell_.extent() != 0 || to_tell_.unpin_size() > 0 || to_tell_.dropped_size() > 0)) {
    v1::LeaseRequest part;
    part.set_extent(to_tell_.extent());
    const int unpinned = std::min(to_tell_.unpin_size(), kToldAtOnceMax);
    const int dropped = std::min(to_tell_.dropped_size(), kToldAtOnceMax);
    part.mutable_unpin()->Add(to_tell_.unpin().begin(), to_tell_.unpin().begin() + unpinned);
    part.mutable_dropped()->Add(to_tell_.dropped().begin(), to_tell_.dropped().begin() + dropped);
    const std::string bytes = part.SerializeAsString();
    // A question is waited for anyway.
    const int flags = MSG_NOSIGNAL | (part.extent() == 0 ? MSG_DONTWAIT : 0);
    ssize_t sent;
    do {
      sent = send(socket_.get(), bytes.data(), bytes.size(), flags);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) {
      broken_ = part.extent() != 0 || errno != EAGAIN || to_tell_.unpin_size() > kUntoldMax;
      return;
    }
    to_tell_.clear_extent();
    to_tell_.mutable_unpin()->ExtractSubrange(0, unpinned, nullptr);
    to_tell_.mutable_dropped()->ExtractSubrange(0, dropped, nullptr);
  }
}

void DirectLease::TidyLocked(std::vector<std::shared_ptr<const Extent>>* trash) {
  // An extent to write to is the daemon's to ask back: once dropped it can't be written to any more.
  const auto is_idle = [](const Mapped& mapped) { return mapped.extent.use_count() == 1; };
  const auto drop = [&](auto it) {
    mapped_bytes_ -= it->second.extent->bytes();
    to_tell_.add_dropped(it->first);
    trash->push_back(std::move(it->second.extent));
    extents_.erase(it);
  };
  any_wanted_back_ = false;
  std::vector<std::pair<uint64_t, uint64_t>> idle;  // last use, id
  for (auto it = extents_.begin(); it != extents_.end();) {
    const auto at = it++;
    if (at->second.wanted_back && is_idle(at->second)) {
      drop(at);
      continue;
    }
    any_wanted_back_ = any_wanted_back_ || at->second.wanted_back;
    if (is_idle(at->second) && !at->second.extent->writable()) idle.emplace_back(at->second.last_use, at->first);
  }
  uint64_t idle_bytes = 0;
  for (const auto& [last_use, id] : idle) idle_bytes += extents_.at(id).extent->bytes();
  std::sort(idle.begin(), idle.end());
  for (size_t i = 0; i < idle.size() && idle_bytes > kIdleBytesMax; ++i) {
    const auto it = extents_.find(idle[i].second);
    idle_bytes -= it->second.extent->bytes();
    drop(it);
  }
}

// ---- grants

absl::StatusOr<std::vector<DirectLease::Granted>> DirectLease::Take(const Pool& pool, const std::string& layout,
                                                                    uint64_t state_bytes, size_t count,
                                                                    absl::Time deadline) {
  if (IsForked()) return HungUp();
  std::vector<Granted> grants;
  {
    const std::lock_guard lock(mu_);
    std::vector<Granted>& stock = stock_[layout];
    if (stock.size() < count && absl::Now() < no_grants_until_)
      return absl::ResourceExhaustedError("the daemon has no grants now");
    while (grants.size() < count && !stock.empty()) {
      grants.push_back(std::move(stock.back()));
      stock.pop_back();
    }
  }
  absl::Status status;
  while (status.ok() && grants.size() < count) {
    v1::GrantRequest request;
    request.set_lease(id_);
    request.set_layout(layout);
    request.set_count(
        static_cast<uint32_t>(std::min<size_t>(std::max(count - grants.size(), StockOf(state_bytes)), kGrantsMax)));
    const absl::StatusOr<v1::GrantResponse> response = pool.Grant(request, Until(deadline));
    status = response.status();
    const std::lock_guard lock(mu_);
    for (int i = 0; status.ok() && i < response->slots_size(); ++i) {
      const v1::Slot& slot = response->slots(i);
      absl::StatusOr<std::shared_ptr<const Extent>> extent = ExtentOfLocked(slot, state_bytes, /*writable=*/true);
      status = extent.status();
      if (status.ok()) grants.push_back({slot, *std::move(extent)});
    }
    if (status.ok() && response->slots().empty()) status = Bad("BAD_ANSWER", "a GrantResponse has a slot");
    if (absl::IsResourceExhausted(status)) no_grants_until_ = absl::Now() + kGrantPause;
  }
  std::vector<Granted> rest;
  if (status.ok()) {
    rest.assign(std::make_move_iterator(grants.begin() + static_cast<std::ptrdiff_t>(count)),
                std::make_move_iterator(grants.end()));
    grants.resize(count);
  } else {
    rest = std::move(grants);
  }
  PutBack(layout, std::move(rest));
  if (!status.ok()) return status;
  return grants;
}

void DirectLease::PutBack(const std::string& layout, std::vector<Granted> grants) {
  const std::lock_guard lock(mu_);
  std::vector<Granted>& stock = stock_[layout];
  std::move(grants.begin(), grants.end(), std::back_inserter(stock));
}

// ---- the pool's lease

Direct::Direct(const Pool& pool) : pid_(getpid()), pool_(std::make_unique<Pool>(pool)) {}

Direct::~Direct() {
  if (IsForked()) (void)pool_.release();  // gRPC's threads are not in this process, and it may wait for them
}

bool Direct::IsForked() const { return getpid() != pid_; }

std::shared_ptr<DirectLease> Direct::Lease(absl::Time deadline) {
  if (IsForked()) return nullptr;
  std::shared_ptr<DirectLease> lease;
  {
    const std::lock_guard lock(mu_);
    lease = lease_;
    if (lease == nullptr) {
      if (opening_ || std::chrono::steady_clock::now() < paused_until_) return nullptr;
      opening_ = true;
    }
  }
  if (lease != nullptr) {
    if (lease->Poll()) return lease;
    Judge(lease, HungUp());
    return nullptr;
  }
  absl::StatusOr<std::shared_ptr<DirectLease>> opened = Open(std::min(deadline, absl::Now() + kOpenTimeout));
  const std::lock_guard lock(mu_);
  opening_ = false;
  if (!opened.ok()) {
    PauseLocked(opened.status());
    return nullptr;
  }
  lease_ = *opened;
  return *std::move(opened);
}

absl::StatusOr<std::shared_ptr<DirectLease>> Direct::Open(absl::Time deadline) const {
  const absl::StatusOr<v1::Capabilities> daemon = pool_->GetCapabilities(Until(deadline));
  if (!daemon.ok()) return daemon.status();
  if (daemon->copy_mode() != "direct" || !IsHere(daemon->arena_socket()))
    return absl::FailedPreconditionError("this daemon has no direct ways, or is on another machine");
  const absl::StatusOr<v1::DirectLease> table = pool_->OpenDirect(Until(deadline));
  if (!table.ok()) return table.status();
  absl::StatusOr<Descriptor> socket = TakeDirectLease(*table, deadline);
  if (!socket.ok()) return socket.status();
  return std::make_shared<DirectLease>(table->lease(), *std::move(socket));
}

void Direct::PauseLocked(const absl::Status& error) {
  const absl::Duration pause = absl::IsUnavailable(error) ? kBriefPause : kPause;
  paused_until_ = std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(pause);
}

void Direct::Judge(const std::shared_ptr<DirectLease>& lease, const absl::Status& error) {
  const std::string reason = GetErrorDetail(error).reason;
  const bool is_lost = reason == "LEASE_UNKNOWN" || reason == "LEASE_NOT_CONNECTED" || IsUnanswered(error);
  const bool is_useless = reason == "DIRECT_OFF" || reason == "BAD_MEMORY" || reason == "BAD_ANSWER" ||
                          reason == "MALFORMED_RESPONSE" || reason == "MAPPING_FAILED" || reason == "EXTENT_UNKNOWN" ||
                          reason == "UNIMPLEMENTED";
  if (!is_lost && !is_useless) return;
  Retire(lease);
  if (!is_useless) return;
  const std::lock_guard lock(mu_);
  PauseLocked(error);
}

void Direct::Retire(const std::shared_ptr<DirectLease>& lease) {
  std::shared_ptr<DirectLease> old;  // ends without the lock
  const std::lock_guard lock(mu_);
  if (lease_ == lease) old = std::move(lease_);
}

void Direct::Learn(const v1::NameInfo& info) {
  if (IsForked()) return;
  const bool is_large = info.state_bytes() >= kStateBytesMin;
  expects_large_ = is_large;
  if (!is_large || info.name().sequence().empty()) return;
  const std::lock_guard lock(mu_);
  if (layout_of_.size() >= kNamesMax) layout_of_.clear();
  layout_of_[info.name().sequence()] = info.layout();
}

std::optional<Direct::Layout> Direct::LayoutOf(const v1::SetRequest& request, absl::Time deadline) {
  std::string layout = request.layout();
  {
    const std::lock_guard lock(mu_);
    if (layout.empty()) {
      const auto known = layout_of_.find(request.sequence());
      if (known == layout_of_.end()) return std::nullopt;
      layout = known->second;
    }
    if (const auto known = layouts_.find(layout); known != layouts_.end()) return known->second;
  }
  const absl::StatusOr<v1::LayoutInfo> info = pool_->GetLayout(
      [&] {
        v1::GetLayoutRequest get;
        get.set_layout(layout);
        return get;
      }(),
      Until(deadline));
  if (!info.ok()) return std::nullopt;
  const std::lock_guard lock(mu_);
  if (layouts_.size() >= kNamesMax) layouts_.clear();
  return layouts_[layout] = Layout{info->fingerprint(), info->state_bytes()};
}

std::optional<absl::StatusOr<StateView>> Direct::Get(const v1::GetRequest& request, absl::Time deadline) {
  constexpr int kLeases = 2;  // the one that is there may be of before a restart
  for (int i = 0; i < kLeases; ++i) {
    const std::shared_ptr<DirectLease> lease = Lease(deadline);
    if (lease == nullptr) continue;
    v1::GetRequest asked = request;
    asked.set_lease(lease->id());
    absl::StatusOr<v1::GetResponse> response = pool_->GetOnce(asked, Until(deadline));
    if (!response.ok()) {
      const absl::Status& error = response.status();
      Judge(lease, error);
      if (absl::IsDeadlineExceeded(error)) return error;
      const std::string reason = GetErrorDetail(error).reason;
      if (reason == "LEASE_UNKNOWN" || reason == "LEASE_NOT_CONNECTED") continue;
      if (absl::IsNotFound(error)) return error;
      return std::nullopt;
    }
    if (!response->has_slot()) return std::nullopt;
    absl::StatusOr<std::unique_ptr<const DirectLease::Held>> held =
        lease->Hold(response->slot(), response->data_bytes());
    if (!held.ok()) {
      Judge(lease, held.status());
      return std::nullopt;
    }
    StateView view;
    response->clear_slot();
    view.small_ = *std::move(response);
    view.bytes_ = absl::string_view((*held)->data(), view.small_.data_bytes());
    view.owner_ = *std::move(held);
    return view;
  }
  return std::nullopt;
}

Direct::SetOutcome Direct::Set(v1::SetRequest* request, absl::Span<const absl::string_view> pieces, int max_attempts,
                               absl::Time deadline) {
  SetOutcome outcome;
  const std::shared_ptr<DirectLease> lease = Lease(deadline);
  if (lease == nullptr) return outcome;
  uint64_t bytes = 0;
  for (absl::string_view piece : pieces) bytes += piece.size();
  const std::optional<Layout> layout = LayoutOf(*request, deadline);
  if (!layout || layout->state_bytes != bytes) return outcome;
  absl::StatusOr<std::vector<DirectLease::Granted>> grants =
      lease->Take(*pool_, layout->fingerprint, bytes, 1, deadline);
  if (!grants.ok()) {
    Judge(lease, grants.status());
    return outcome;
  }
  const DirectLease::Granted& grant = grants->front();
  CopyHasher hasher(grant.data(), bytes);
  for (absl::string_view piece : pieces) hasher.Append(piece);
  const std::string checksum = ChecksumToHex(HashRoot(hasher.Finish()));
  if (!request->checksum().empty() && request->checksum() != checksum) {  // inline says so
    lease->PutBack(layout->fingerprint, *std::move(grants));
    return outcome;
  }
  request->set_checksum(checksum);
  if (request->request_id().empty()) request->set_request_id(NewRequestId());
  v1::SetRequest sent = *request;
  sent.set_lease(lease->id());
  sent.set_grant(grant.slot.id());
  absl::StatusOr<v1::NameInfo> info = pool_->SetOnce(sent, Until(deadline));
  outcome.attempts = 1;
  if (info.ok()) {
    outcome.answer = std::move(info);
    return outcome;
  }
  const absl::Status error = info.status();
  Judge(lease, error);
  const std::string reason = GetErrorDetail(error).reason;
  if (reason == "GRANT_UNKNOWN") {  // its layout's alias may be another's now
    const std::lock_guard lock(mu_);
    layouts_.erase(request->layout());
    layout_of_.erase(request->sequence());
    outcome.attempts = 0;
  } else if (reason == "LEASE_UNKNOWN" || reason == "LEASE_NOT_CONNECTED" || reason == "DIRECT_OFF") {
    outcome.attempts = 0;
  } else if (const std::optional<absl::Duration> delay = RetryDelay(error, 1);
             delay && max_attempts > 1 && absl::Now() + *delay < deadline) {
    absl::SleepFor(*delay);  // the next attempt sends the bytes: there, the same request
  } else {
    outcome.answer = error;
  }
  return outcome;
}

}  // namespace statepool::client
