// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/flag_words.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cassert>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/core/error.h"

namespace statepool {

absl::StatusOr<std::unique_ptr<FlagWords>> FlagWords::Create() {
  const int fd = memfd_create("statepool-flags", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  void* words = MAP_FAILED;
  const bool made = fd >= 0 && fallocate(fd, 0, 0, kBytes) == 0 &&
                    (words = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) != MAP_FAILED &&
                    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0;
  if (made) return std::unique_ptr<FlagWords>(new FlagWords(fd, static_cast<uint32_t*>(words)));
  const int error = errno;
  if (words != MAP_FAILED) munmap(words, kBytes);
  if (fd >= 0) close(fd);
  return absl::Status(Error(absl::StatusCode::kResourceExhausted, "HOT_FULL",
                            absl::StrCat("the system has no memory for flag words: ", std::strerror(error)))
                          .Meta("limit", kBytes)
                          .RetryAfter(absl::Milliseconds(100)));
}

FlagWords::~FlagWords() {
  munmap(words_, kBytes);
  close(fd_);
}

absl::StatusOr<int> FlagWords::Export() const {
  const int fd = fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  if (fd >= 0) return fd;
  return absl::Status(
      Error(absl::StatusCode::kUnavailable, "NO_DESCRIPTORS",
            absl::StrCat("the daemon has no descriptor to spare: ", std::strerror(errno), "; try again")));
}

bool FlagWords::Reached(FlagValue at) const {
  assert(at.word < kCount);
  const uint32_t word = std::atomic_ref<uint32_t>(words_[at.word]).load(std::memory_order_acquire);
  return static_cast<int32_t>(word - at.value) >= 0;
}

void FlagWords::Set(FlagValue to) {
  assert(to.word < kCount);
  std::atomic_ref<uint32_t>(words_[to.word]).store(to.value, std::memory_order_release);
}

}  // namespace statepool
