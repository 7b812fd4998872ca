// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/host_device.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/core/error.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace statepool {
namespace {

constexpr uint64_t kMinAutomaticChunkBytes = 64 << 10;
constexpr uint64_t kMinAutomaticChunks = 64;

absl::Status Full(absl::string_view message, uint64_t limit) {
  return Error(absl::StatusCode::kResourceExhausted, "HOT_FULL", message)
      .Meta("limit", limit)
      .RetryAfter(absl::Milliseconds(100));
}

// What the system says when it has no more of something. Anything else is a defect of ours or of the machine.
bool IsShortage(int error) { return error == ENOMEM || error == ENOSPC || error == EMFILE || error == ENFILE; }

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;
constexpr int kWriteSeals = F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;

// A new memfd, all of its pages there, mapped and then sealed. What was done before an error stays in *fd and *data.
absl::Status MapMemory(const char* name, uint64_t bytes, int seals, int* fd, char** data, uint64_t limit) {
  const auto failed = [&](const char* call) -> absl::Status {
    const int error = errno;
    const std::string message = absl::StrCat(call, " for ", bytes, " bytes: ", std::strerror(error));
    return IsShortage(error) ? Full(message, limit) : absl::InternalError(message);
  };
  *fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (*fd < 0) return failed("memfd_create");
  while (fallocate(*fd, 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno != EINTR) return failed("fallocate");
  }
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
  if (mapped == MAP_FAILED) return failed("mmap");
  *data = static_cast<char*>(mapped);
  return fcntl(*fd, F_ADD_SEALS, seals) == 0 ? absl::OkStatus() : failed("sealing");
}

absl::StatusOr<std::vector<int>> Duplicate(int fd) {
  const int duplicate = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (duplicate < 0) {
    return Error(absl::StatusCode::kUnavailable, "NO_DESCRIPTORS",
                 absl::StrCat("the daemon has no descriptor to spare: ", std::strerror(errno), "; try again"));
  }
  return std::vector<int>{duplicate};
}

class DoneTransfer final : public Transfer {
 public:
  absl::Status Wait() override { return absl::OkStatus(); }
};

class HostStaging final : public Staging {
 public:
  explicit HostStaging(uint64_t bytes)
      : data_(static_cast<char*>(std::aligned_alloc(kStagingAlignment, RoundUp(bytes)))), bytes_(bytes) {}
  ~HostStaging() override { std::free(data_); }
  char* data() const override { return data_; }
  uint64_t bytes() const override { return bytes_; }

 private:
  static constexpr uint64_t kStagingAlignment = 4096;
  static uint64_t RoundUp(uint64_t bytes) {
    return (bytes + kStagingAlignment - 1) / kStagingAlignment * kStagingAlignment;
  }

  char* const data_;
  const uint64_t bytes_;
};

}  // namespace

absl::StatusOr<std::vector<int>> HostExtent::ExportChunks() { return Duplicate(fd_); }

absl::StatusOr<std::vector<int>> HostSharedExtent::ExportChunks() { return Duplicate(fd_); }

const std::string& HostExtent::device() const { return device_->name(); }

const std::string& HostSharedExtent::device() const { return device_->name(); }

bool HostExtent::Seal() {
  if (sealed_.load()) return true;
  const bool sealed = fcntl(fd_, F_ADD_SEALS, kWriteSeals) == 0 || (fcntl(fd_, F_GET_SEALS) & F_SEAL_FUTURE_WRITE) != 0;
  sealed_.store(sealed);
  return sealed;
}

HostExtent::~HostExtent() {
  const bool stuck = pinned_ && !device_->pinning_.unpin(data_).ok();
  if (data_ != nullptr && !stuck) munmap(data_, bytes_);
  if (fd_ >= 0) close(fd_);
  if (stuck) device_->stuck_.fetch_add(bytes_);
  else device_->used_.fetch_sub(bytes_);
}

HostSharedExtent::~HostSharedExtent() {
  if (data_ != nullptr) munmap(data_, bytes_);
  if (fd_ >= 0) close(fd_);
  device_->used_.fetch_sub(bytes_);
}

bool HostSharedExtent::Revoke() {
  if (revoked_) return true;
  if (data_ != nullptr) munmap(std::exchange(data_, nullptr), bytes_);
  // Each time: a process that still maps it may have touched pages since. The other process may have sealed it against
  // this; then its memory stays there for as long as it does.
  while (fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes_)) != 0) {
    if (errno != EINTR) return false;
  }
  revoked_ = fcntl(fd_, F_ADD_SEALS, F_SEAL_WRITE) == 0;
  return revoked_;
}

uint64_t HostDevice::ChunkBytesFor(uint64_t budget_bytes) {
  uint64_t chunk_bytes = kDefaultChunkBytes;
  while (chunk_bytes > kMinAutomaticChunkBytes && budget_bytes / chunk_bytes < kMinAutomaticChunks) chunk_bytes /= 2;
  return chunk_bytes;
}

absl::StatusOr<std::unique_ptr<HostDevice>> HostDevice::Create(HostDeviceOptions options) {
  const uint64_t chunk_bytes = options.chunk_bytes ? options.chunk_bytes : ChunkBytesFor(options.budget_bytes);
  if (!std::has_single_bit(chunk_bytes) || chunk_bytes % static_cast<uint64_t>(getpagesize()) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a chunk of ", chunk_bytes, " bytes is not a power of two of whole pages"));
  }
  const uint64_t budget_bytes = options.budget_bytes / chunk_bytes * chunk_bytes;
  if (budget_bytes == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a hot budget of ", options.budget_bytes, " bytes is less than one chunk of ", chunk_bytes));
  }
  return std::unique_ptr<HostDevice>(
      new HostDevice(std::move(options.name), budget_bytes, chunk_bytes, std::move(options.pinning)));
}

HostDevice::~HostDevice() { assert(used_.load() == stuck_.load() && "extents outlive their device"); }

absl::StatusOr<uint64_t> HostDevice::Reserve(uint64_t chunks) {
  assert(chunks >= 1);
  uint64_t used = used_.load();
  uint64_t bytes;
  do {
    if (chunks > (budget_bytes_ - used) / chunk_bytes_) return Full("the hot budget is used up", budget_bytes_);
    bytes = chunks * chunk_bytes_;
  } while (!used_.compare_exchange_weak(used, used + bytes));
  return bytes;
}

absl::StatusOr<std::unique_ptr<Extent>> HostDevice::AllocateExtent(TenantId tenant, uint64_t chunks, bool sealed) {
  const absl::StatusOr<uint64_t> bytes = Reserve(chunks);
  if (!bytes.ok()) return bytes.status();
  std::unique_ptr<HostExtent> extent(
      new HostExtent(this, tenant, *bytes));  // from here on its destructor undoes everything
  const int seals = sealed ? kSizeSeals | kWriteSeals : kSizeSeals;
  absl::Status status = MapMemory("statepool-slots", *bytes, seals, &extent->fd_, &extent->data_, budget_bytes_);
  if (!status.ok()) return status;
  extent->sealed_ = sealed;
  if (pinning_.pin) {
    if (status = pinning_.pin(extent->data_, *bytes); !status.ok()) return Full(status.message(), budget_bytes_);
    extent->pinned_ = true;
  }
  return extent;
}

absl::StatusOr<std::unique_ptr<SharedExtent>> HostDevice::AllocateShared(TenantId tenant, uint64_t chunks) {
  const absl::StatusOr<uint64_t> bytes = Reserve(chunks);
  if (!bytes.ok()) return bytes.status();
  std::unique_ptr<HostSharedExtent> extent(new HostSharedExtent(this, tenant, *bytes));
  absl::Status status = MapMemory("statepool-arena", *bytes, kSizeSeals, &extent->fd_, &extent->data_, budget_bytes_);
  if (!status.ok()) return status;
  return extent;
}

absl::StatusOr<std::unique_ptr<Transfer>> HostDevice::CopyIn(char* to, absl::string_view from) {
  std::memcpy(to, from.data(), from.size());
  return std::make_unique<DoneTransfer>();
}

absl::StatusOr<std::unique_ptr<Transfer>> HostDevice::CopyOut(char* to, const char* from, uint64_t bytes) {
  std::memcpy(to, from, bytes);
  return std::make_unique<DoneTransfer>();
}

absl::StatusOr<std::unique_ptr<Transfer>> HostDevice::CopyWithin(char* to, const char* from, uint64_t bytes) {
  return CopyIn(to, {from, bytes});
}

absl::StatusOr<std::unique_ptr<Transfer>> HostDevice::CopyFrom(const Device& other, char* to, const char* from,
                                                               uint64_t bytes) {
  if (!other.host_accessible()) return absl::UnimplementedError("the CPU does not reach that device's memory");
  return CopyIn(to, {from, bytes});
}

absl::Status HostDevice::HashStates(absl::Span<const char* const> states, uint64_t bytes, absl::Span<LeafHash> leaves) {
  assert(leaves.size() == states.size() * LeafCount(bytes));
  for (const char* state : states) {
    const std::vector<LeafHash> hashes = statepool::HashLeaves({state, bytes});
    std::copy(hashes.begin(), hashes.end(), leaves.begin());
    leaves.remove_prefix(hashes.size());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Staging>> HostDevice::AllocateStaging(uint64_t bytes) {
  auto staging = std::make_unique<HostStaging>(bytes);
  if (staging->data() == nullptr)
    return Full(absl::StrCat("no ", bytes, " bytes of memory for staging"), budget_bytes_);
  return staging;
}

absl::StatusOr<std::unique_ptr<RowCopier>> HostDevice::NewRowCopier(const CopyPlan&, const AdvancePlan&, uint32_t) {
  return absl::InternalError("the CPU copies this device's rows itself");
}

uint64_t RaiseOpenFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  if (limit.rlim_cur < limit.rlim_max) {
    const rlim_t before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return before;
  }
  return limit.rlim_cur;
}

}  // namespace statepool
