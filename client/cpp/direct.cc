// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/direct.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <system_error>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/calls.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

constexpr size_t kEventBytesMax = 65536;
constexpr size_t kDescriptorsMax = 64;  // in one event
constexpr uint64_t kChunksMax = 65536;  // of an extent
constexpr int kToldAtOnceMax = 4096;    // pins or extents in one message; the contract allows 8,192
constexpr int kUntoldMax = 1 << 20;     // pins that could not be given back: so many, and the lease counts as broken
constexpr size_t kNamesMax = 4096;
constexpr uint32_t kGrantsMax = 64;  // in one call
// When the thread looks again whether extents that the daemon wants back are still written to.
constexpr std::chrono::milliseconds kLookAgain{200};

absl::Status Bad(absl::string_view reason, absl::string_view message) {
  return MakeError(absl::StatusCode::kInternal, reason, "", message);
}

absl::Status HungUp() {
  return MakeError(absl::StatusCode::kUnavailable, "SOCKET_UNREACHABLE", "socket", "the direct lease has ended");
}

}  // namespace

// ---- extents

absl::StatusOr<std::shared_ptr<const Extent>> Extent::Map(absl::Span<const Descriptor> chunks, uint64_t id,
                                                          uint64_t bytes, bool writable) {
  const uint64_t chunk_bytes = bytes / chunks.size();
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  for (const Descriptor& chunk : chunks) {
    struct stat status {};
    if (chunk_bytes == 0 || fstat(chunk.get(), &status) != 0 || static_cast<uint64_t>(status.st_size) < chunk_bytes ||
        (std::max(fcntl(chunk.get(), F_GET_SEALS), 0) & kSeals) != kSeals) {
      return Bad("BAD_MEMORY", absl::StrCat("extent ", id, " is no memory of ", bytes, " bytes that stays as large"));
    }
  }
  const auto failed = [bytes] {
    return MakeError(absl::StatusCode::kResourceExhausted, "MAPPING_FAILED", "",
                     absl::StrCat("mmap of ", bytes, " bytes: ", std::strerror(errno)));
  };
  void* const range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return failed();
  // From here on its destructor undoes everything.
  std::shared_ptr<const Extent> extent(new Extent(id, static_cast<char*>(range), bytes, writable));
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  const int flags = MAP_SHARED | MAP_FIXED | (writable ? MAP_POPULATE : 0);
  char* at = extent->data();
  for (const Descriptor& chunk : chunks) {
    if (mmap(at, chunk_bytes, protection, flags, chunk.get(), 0) == MAP_FAILED) return failed();
    at += chunk_bytes;
  }
  if (writable) (void)madvise(range, bytes, MADV_DONTFORK);
  return extent;
}

Extent::~Extent() {
  if (writable_ && getpid() != pid_) return;  // a forked child has other things there
  munmap(data_, bytes_);
}

// ---- one lease

std::shared_ptr<DirectLease> DirectLease::Make(std::string id, Descriptor socket, const v1::Capabilities& daemon) {
  Descriptor wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (wake.get() < 0) return nullptr;
  std::shared_ptr<DirectLease> lease(new DirectLease(std::move(id), std::move(socket), std::move(wake), daemon), &End);
  // Signals are for the threads of the program.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    lease->thread_ = std::thread([worked_on = lease.get()] { worked_on->Work(); });
  } catch (const std::system_error&) {
    lease = nullptr;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return lease;
}

DirectLease::DirectLease(std::string id, Descriptor socket, Descriptor wake, const v1::Capabilities& daemon)
    : id_(std::move(id)),
      pid_(getpid()),
      idle_bytes_max_(std::min(kIdleBytesMax, daemon.max_pinned_bytes() / kIdleShare)),
      stock_bytes_max_(std::min(kStockBytesMax, daemon.max_granted_bytes() / kStockShare)),
      socket_(std::move(socket)),
      wake_(std::move(wake)) {
  const timeval timeout = absl::ToTimeval(kAnswerTimeout);
  setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

void DirectLease::End(DirectLease* lease) {
  if (!lease->IsForked()) {
    delete lease;
    return;
  }
  for (Descriptor* descriptor : {&lease->socket_, &lease->wake_}) Descriptor closed = std::move(*descriptor);
}

DirectLease::~DirectLease() {
  {
    const std::lock_guard lock(mu_);
    ending_ = true;
  }
  if (thread_.joinable()) {
    Wake();
    thread_.join();
  }
  // Unmapped before the daemon hears of it: what it does not hear of, it counts until this process ends.
  const std::lock_guard lock(mu_);
  stock_.clear();
  for (const auto& [id, mapped] : extents_) to_tell_.add_dropped(id);
  extents_.clear();
  SendLocked();
}

bool DirectLease::IsForked() const { return getpid() != pid_; }

size_t DirectLease::StockOf(uint64_t state_bytes) const {
  return std::clamp<size_t>(stock_bytes_max_ / std::max<uint64_t>(state_bytes, 1), 1, kStockMax);
}

bool DirectLease::Poll() {
  if (IsForked()) return false;
  const std::lock_guard lock(mu_);
  HandleLocked();
  if (any_written_ && sleeps_) Wake();
  return !broken_;
}

// ---- the thread

void DirectLease::Wake() {
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof one);
}

void DirectLease::Work() {
  std::unique_lock lock(mu_);
  while (!ending_) {
    HandleLocked();
    uint64_t woken;  // for what was seen just now
    (void)!read(wake_.get(), &woken, sizeof woken);
    const auto next = NextWorkLocked();
    sleeps_ = !next;
    const short events = HasToTellLocked() ? POLLIN | POLLOUT : POLLIN;
    pollfd waits[] = {{wake_.get(), POLLIN, 0}, {hung_up_ ? -1 : socket_.get(), events, 0}};
    lock.unlock();
    int timeout = -1;
    if (next) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - std::chrono::steady_clock::now());
      timeout = static_cast<int>(std::max<int64_t>(left.count(), 0));
    }
    (void)poll(waits, std::size(waits), timeout);
    lock.lock();
  }
}

std::optional<std::chrono::steady_clock::time_point> DirectLease::NextWorkLocked() const {
  std::optional<std::chrono::steady_clock::time_point> next;
  if (any_written_) next = std::chrono::steady_clock::now() + kLookAgain;
  for (const auto& [layout, stock] : stock_) {
    if (!stock.grants.empty()) next = std::min(next.value_or(stock.last_use + kStockIdle), stock.last_use + kStockIdle);
  }
  return next;
}

void DirectLease::HandleLocked() {
  std::vector<Descriptor> descriptors;
  while (const std::optional<v1::LeaseEvent> event = ReceiveLocked(absl::InfinitePast(), &descriptors)) {
    // An answer that nobody waits for any more: the daemon counts the extent as mapped.
    if (event->extent() != 0 && event->reason().empty() && !extents_.contains(event->extent()))
      to_tell_.add_dropped(event->extent());
  }
  TidyStockLocked();
  if (any_wanted_back_) TidyLocked();
  SendLocked();
}

// ---- pins and extents

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
  const std::lock_guard lock(mu_);
  extent = nullptr;
  to_tell_.add_unpin(pin);
  if (any_wanted_back_ || mapped_bytes_ > idle_bytes_max_) TidyLocked();
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
  if (broken_) return HungUp();
  to_tell_.set_extent(id);
  SendLocked();
  const absl::Time deadline = absl::Now() + kAnswerTimeout;
  // What is not mapped is told, for the daemon may have handed it over.
  const auto not_mapped = [&](absl::Status error) {
    to_tell_.add_dropped(id);
    SendLocked();
    return error;
  };
  std::vector<Descriptor> chunks;
  for (uint64_t received = 0; !broken_;) {
    std::vector<Descriptor> descriptors;
    const std::optional<v1::LeaseEvent> event = ReceiveLocked(deadline, &descriptors);
    if (!event) break;
    if (event->extent() != id) continue;
    if (!event->reason().empty())
      return MakeError(absl::StatusCode::kUnavailable, event->reason(), "", absl::StrCat("no extent ", id));
    const uint64_t chunk_bytes = event->chunk_bytes() == 0 ? event->bytes() : event->chunk_bytes();
    const uint64_t count = chunk_bytes == 0 ? 1 : event->bytes() / chunk_bytes;
    if (count == 0 || count > kChunksMax || count * chunk_bytes != event->bytes())
      return not_mapped(Bad("BAD_ANSWER", absl::StrCat("extent ", id, " is not of equal chunks")));
    received += std::min<uint64_t>(count - received, kDescriptorsMax);  // all that was sent, whatever got here
    chunks.insert(chunks.end(), std::make_move_iterator(descriptors.begin()),
                  std::make_move_iterator(descriptors.end()));
    if (received < count) continue;
    if (chunks.size() != count) {
      return not_mapped(MakeError(absl::StatusCode::kResourceExhausted, "MAPPING_FAILED", "",
                                  absl::StrCat("extent ", id,
                                               " came without its descriptors: has this process as many "
                                               "as it may have?")));
    }
    absl::StatusOr<std::shared_ptr<const Extent>> extent = Extent::Map(chunks, id, event->bytes(), event->writable());
    if (!extent.ok()) return not_mapped(extent.status());
    extents_[id] = {*extent, false, ++uses_};
    mapped_bytes_ += event->bytes();
    if (any_wanted_back_) Wake();  // by what was read here
    return extent;
  }
  broken_ = true;  // what comes later would not be told apart
  return not_mapped(HungUp());
}

std::optional<v1::LeaseEvent> DirectLease::ReceiveLocked(absl::Time deadline, std::vector<Descriptor>* descriptors) {
  char bytes[kEventBytesMax];
  iovec piece = {bytes, sizeof bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsMax * sizeof(int))];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  ssize_t size;
  while (true) {
    if (hung_up_) return std::nullopt;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    size = recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size > 0) break;
    if (size < 0 && errno == EINTR) continue;
    if (size == 0 || errno != EAGAIN) {
      broken_ = hung_up_ = true;
      return std::nullopt;
    }
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return std::nullopt;
    pollfd wait = {socket_.get(), POLLIN, 0};
    (void)poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
  }
  *descriptors = DescriptorsOf(&message);
  if ((message.msg_flags & MSG_CTRUNC) != 0) descriptors->clear();
  v1::LeaseEvent event;
  if ((message.msg_flags & MSG_TRUNC) != 0 || !event.ParseFromArray(bytes, static_cast<int>(size))) {
    broken_ = true;
    return std::nullopt;
  }
  for (const uint64_t id : event.drop()) {
    const auto it = extents_.find(id);
    if (it == extents_.end()) continue;
    it->second.wanted_back = true;
    any_wanted_back_ = true;
  }
  if (event.short_of_room()) {
    for (auto& [layout, stock] : stock_) stock.last_use = {};  // it counts as idle
  }
  return event;
}

bool DirectLease::HasToTellLocked() const {
  return to_tell_.extent() != 0 || to_tell_.unpin_size() > 0 || to_tell_.dropped_size() > 0;
}

void DirectLease::SendLocked() {
  if (hung_up_) to_tell_.Clear();
  while (HasToTellLocked()) {
    v1::LeaseRequest part;
    part.set_extent(to_tell_.extent());
    const int unpinned = std::min(to_tell_.unpin_size(), kToldAtOnceMax);
    const int dropped = std::min(to_tell_.dropped_size(), kToldAtOnceMax);
    part.mutable_unpin()->Add(to_tell_.unpin().begin(), to_tell_.unpin().begin() + unpinned);
    part.mutable_dropped()->Add(to_tell_.dropped().begin(), to_tell_.dropped().begin() + dropped);
    const std::string bytes = part.SerializeAsString();
    // A question is waited for anyway, and after the end nothing else is told.
    const int flags = MSG_NOSIGNAL | (part.extent() == 0 && !ending_ ? MSG_DONTWAIT : 0);
    ssize_t sent;
    do {
      sent = send(socket_.get(), bytes.data(), bytes.size(), flags);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) {
      if (errno != EAGAIN) broken_ = hung_up_ = true;
      if (part.extent() != 0 || to_tell_.unpin_size() > kUntoldMax) broken_ = true;
      to_tell_.clear_extent();
      if (!ending_) Wake();
      return;
    }
    to_tell_.clear_extent();
    to_tell_.mutable_unpin()->ExtractSubrange(0, unpinned, nullptr);
    to_tell_.mutable_dropped()->ExtractSubrange(0, dropped, nullptr);
  }
}

void DirectLease::TidyLocked() {
  // An extent to write to is the daemon's to ask back: once dropped it can't be written to any more.
  const auto is_idle = [](const Mapped& mapped) { return mapped.extent.use_count() == 1; };
  const auto drop = [&](auto it) {
    mapped_bytes_ -= it->second.extent->bytes();
    to_tell_.add_dropped(it->first);
    extents_.erase(it);  // unmapped, before the daemon hears of it
  };
  any_wanted_back_ = any_written_ = false;
  std::vector<std::pair<uint64_t, uint64_t>> idle;  // last use, id
  for (auto it = extents_.begin(); it != extents_.end();) {
    const auto at = it++;
    const Mapped& mapped = at->second;
    if (mapped.wanted_back && is_idle(mapped)) {
      drop(at);
      continue;
    }
    any_wanted_back_ = any_wanted_back_ || mapped.wanted_back;
    any_written_ = any_written_ || (mapped.wanted_back && mapped.extent->writable());
    if (is_idle(mapped) && !mapped.extent->writable()) idle.emplace_back(mapped.last_use, at->first);
  }
  uint64_t idle_bytes = 0;
  for (const auto& [last_use, id] : idle) idle_bytes += extents_.at(id).extent->bytes();
  std::sort(idle.begin(), idle.end());
  for (size_t i = 0; i < idle.size() && idle_bytes > idle_bytes_max_; ++i) {
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
    Stock& stock = stock_[layout];
    stock.max = StockOf(state_bytes);
    if (stock.grants.size() < count && absl::Now() < no_grants_until_)
      return absl::ResourceExhaustedError("the daemon has no grants now");
    stock.last_use = std::chrono::steady_clock::now();
    while (grants.size() < count && !stock.grants.empty()) {
      grants.push_back(std::move(stock.grants.back()));
      stock.grants.pop_back();
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
    for (int i = 0; response.ok() && i < response->slots_size(); ++i) {
      const v1::Slot& slot = response->slots(i);
      if (status.ok()) {
        absl::StatusOr<std::shared_ptr<const Extent>> extent = ExtentOfLocked(slot, state_bytes, /*writable=*/true);
        status = extent.status();
        if (status.ok()) grants.push_back({slot, *std::move(extent)});
      }
      if (!status.ok()) to_tell_.add_unpin(slot.id());
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
  if (IsForked()) return;
  const std::lock_guard lock(mu_);
  Stock& stock = stock_[layout];
  stock.last_use = std::chrono::steady_clock::now();
  for (Granted& grant : grants) {
    if (stock.grants.size() < stock.max) {
      stock.grants.push_back(std::move(grant));
    } else {
      to_tell_.add_unpin(grant.slot.id());
    }
  }
  grants.clear();
  SendLocked();
  if (!stock.grants.empty() && sleeps_) Wake();
}

void DirectLease::TidyStockLocked() {
  const auto idle_since = std::chrono::steady_clock::now() - kStockIdle;
  const auto give_back = [&](const Granted& grant) {
    to_tell_.add_unpin(grant.slot.id());
    return true;
  };
  const auto is_wanted_back = [&](const Granted& grant) {
    const auto it = extents_.find(grant.slot.extent());
    return it != extents_.end() && it->second.wanted_back;
  };
  for (auto it = stock_.begin(); it != stock_.end();) {
    const auto at = it++;
    Stock& stock = at->second;
    const bool is_idle = stock.last_use <= idle_since;
    if (is_idle || any_wanted_back_) {
      std::erase_if(stock.grants,
                    [&](const Granted& grant) { return (is_idle || is_wanted_back(grant)) && give_back(grant); });
    }
    if (is_idle && stock_.size() > kNamesMax) stock_.erase(at);
  }
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
  for (const v1::DeviceInfo& device : daemon->devices()) {
    if (IsGpu(device.name())) return absl::FailedPreconditionError("this client copies between a host's slots alone");
  }
  const absl::StatusOr<v1::DirectLease> table = pool_->OpenDirect(Until(deadline));
  if (!table.ok()) return table.status();
  absl::StatusOr<Descriptor> socket = TakeDirectLease(*table, deadline);
  if (!socket.ok()) return socket.status();
  std::shared_ptr<DirectLease> lease = DirectLease::Make(table->lease(), *std::move(socket), *daemon);
  if (lease == nullptr) return absl::ResourceExhaustedError("no thread or descriptor is to be had");
  return lease;
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
