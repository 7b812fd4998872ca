// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/host_device.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <bit>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

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

}  // namespace

HostExtent::~HostExtent() {
  if (data_ != nullptr) munmap(data_, bytes_);
  if (fd_ >= 0) close(fd_);
  used_->fetch_sub(bytes_);
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
  return std::unique_ptr<HostDevice>(new HostDevice(std::move(options.name), budget_bytes, chunk_bytes));
}

HostDevice::~HostDevice() { assert(used_.load() == 0 && "extents outlive their device"); }

absl::StatusOr<std::unique_ptr<Extent>> HostDevice::AllocateExtent(TenantId tenant, uint64_t chunks) {
  assert(chunks >= 1);
  uint64_t used = used_.load();
  uint64_t bytes;
  do {
    if (chunks > (budget_bytes_ - used) / chunk_bytes_) return Full("the hot budget is used up", budget_bytes_);
    bytes = chunks * chunk_bytes_;
  } while (!used_.compare_exchange_weak(used, used + bytes));

  std::unique_ptr<HostExtent> extent(
      new HostExtent(&used_, tenant, bytes));  // from here on its destructor undoes everything
  const auto failed = [&](const char* call) -> absl::Status {
    const int error = errno;
    const std::string message = absl::StrCat(call, " for ", bytes, " bytes: ", std::strerror(error));
    return IsShortage(error) ? Full(message, budget_bytes_) : absl::InternalError(message);
  };
  extent->fd_ = memfd_create("statepool-slots", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (extent->fd_ < 0) return failed("memfd_create");
  while (fallocate(extent->fd_, 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno != EINTR) return failed("fallocate");
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, extent->fd_, 0);
  if (data == MAP_FAILED) return failed("mmap");
  extent->data_ = static_cast<char*>(data);
  if (fcntl(extent->fd_, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return failed("sealing");
  return extent;
}

absl::Status HostDevice::CopyIn(char* to, absl::string_view from) {
  std::memcpy(to, from.data(), from.size());
  return absl::OkStatus();
}

absl::Status HostDevice::CopyOut(char* to, const char* from, uint64_t bytes) const {
  std::memcpy(to, from, bytes);
  return absl::OkStatus();
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
