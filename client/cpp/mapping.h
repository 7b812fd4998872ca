// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// An arena's memory in this process: the addresses it lies at, and the socket that it comes through. For the files of
// client/cpp alone.
#ifndef STATEPOOL_CLIENT_CPP_MAPPING_H_
#define STATEPOOL_CLIENT_CPP_MAPPING_H_

#include <sys/socket.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "statepool/v1/statepool.pb.h"

struct CUstream_st;

namespace statepool::client {

// Closes what it has.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor();

  int get() const { return fd_; }

 private:
  int fd_;
};

// All descriptors that came with a message, which are the caller's from here on.
std::vector<Descriptor> DescriptorsOf(msghdr* message);

// Addresses that are this object's for as long as it lives; what is mapped there may change. Not thread-safe. Nothing
// may be read or written before the first Put.
class Range {
 public:
  // Of the host: after the first Put there is always memory, whatever fails. Errors: RESOURCE_EXHAUSTED
  // (MAPPING_FAILED) when the process has no room.
  static absl::StatusOr<std::unique_ptr<Range>> Reserve(uint64_t bytes);
  virtual ~Range() = default;
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  char* data() const { return data_; }

  // Maps the memory that `fd` is, all of it, shared, in place of what was there. After MAPPING_FAILED it is as after
  // Vacate().
  virtual absl::Status Put(int fd) = 0;
  // Nothing of the daemon's stays mapped: on the host zeros of this process's own come in its place, on a GPU nothing.
  virtual absl::Status Vacate() = 0;
  // Whether memory of the daemon's is there.
  virtual bool is_mapped() const = 0;
  // Waits for what this stream of a GPU's is to do with the memory; null: CUDA's legacy stream. Errors: INTERNAL
  // (GPU_FAILED). On the host it returns at once. Thread-safe.
  virtual absl::Status WaitFor(CUstream_st* stream) const = 0;

 protected:
  Range(char* data, uint64_t bytes) : data_(data), bytes_(bytes) {}

  char* const data_;
  const uint64_t bytes_;
};

// Memory of the daemon's that comes in chunks of one size, side by side in the order in which they come; unmapped at
// its end. Nothing may be read or written before Finish. Immutable from then on, so thread-safe.
class MappedChunks {
 public:
  // Of the host. What is writable has all its pages there, and is not in this process's children. Errors, of Add as
  // well: RESOURCE_EXHAUSTED (MAPPING_FAILED); INTERNAL (BAD_MEMORY) for what would not be safe to use.
  static absl::StatusOr<std::unique_ptr<MappedChunks>> Reserve(uint64_t bytes, uint64_t chunk_bytes, bool writable);
  virtual ~MappedChunks() = default;
  MappedChunks(const MappedChunks&) = delete;
  MappedChunks& operator=(const MappedChunks&) = delete;

  char* data() const { return data_; }

  // REQUIRES: there is room for it.
  virtual absl::Status Add(const Descriptor& chunk) = 0;
  // REQUIRES: all chunks are there.
  virtual absl::Status Finish() = 0;

 protected:
  explicit MappedChunks(char* data) : data_(data) {}

  char* const data_;
};

struct Lease {
  Descriptor socket;          // the lease lasts while this is open
  Descriptor memory;          // good for Range::Put, and not needed afterwards
  uint64_t mapped_bytes = 0;  // of the memory, on a GPU
};

// The lease of an arena. Errors: UNAVAILABLE (SOCKET_UNREACHABLE) when the daemon is on another machine, or gone; what
// the daemon refuses (TOKEN_INVALID, PEER_REFUSED, PEER_UNKNOWN, TOO_MANY_CONNECTIONS); INTERNAL (BAD_MEMORY,
// BAD_ANSWER) for what would not be safe to use.
absl::StatusOr<Lease> TakeLease(const v1::Arena& arena, absl::Time deadline);

// The connection of a direct lease. Errors: those of TakeLease.
absl::StatusOr<Descriptor> TakeDirectLease(const v1::DirectLease& lease, absl::Time deadline);

// Whether there is such a socket on this machine (Capabilities.arena_socket). Who can't tell says yes.
bool IsHere(const std::string& socket);

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_MAPPING_H_
