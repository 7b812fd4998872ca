// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Leases: the workers that map slots themselves, and what each of them has. What a direct lease is to its worker stands
// in the .proto (DIRECT).
//
// A lease's life: *waiting* from Open until its token is used; *leased* while its connection lasts; then its pins and
// grants go at once, and nothing is granted any more in extents that it can write to. What
// it has mapped is kept until it says that it dropped it, or its process is gone: an extent's memory comes back with
// the last reference to it.
#ifndef STATEPOOL_SERVER_MEMORY_LEASES_H_
#define STATEPOOL_SERVER_MEMORY_LEASES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/core/store.h"
#include "server/memory/device.h"
#include "server/memory/slot_pool.h"

namespace statepool {

struct LeaseOptions {
  uint32_t max_leases = 1024;      // waiting, leased, and of processes that still have something mapped
  uint32_t max_pins = 65536;       // of one lease
  uint64_t max_pinned_bytes = 0;   // of all leases; a slot that several have pinned counts once
  uint64_t max_granted_bytes = 0;  // of extents that leases write to; whoever makes room for a grant sees to it
  uint32_t max_grants = 64;        // in one call
  absl::Duration token_timeout = absl::Seconds(1);
};

// Where slots to write to come from (Residency).
struct LeaseMemory {
  // at_once: without waiting for the disk, or for others.
  std::function<absl::StatusOr<std::unique_ptr<ImageWriter>>(const Op& op, LayoutRef layout, OwnerId owner,
                                                             bool at_once)>
      grant;
  std::function<void(OwnerId owner, bool gone)> end_owner;  // gone: it has nothing mapped any more
  std::function<void()> freed;                              // a reference to an extent went
  std::function<uint64_t()> refusals;                       // how often somebody was refused room
};

// A slot that is pinned for a lease, or granted to it.
struct LeasedSlot {
  uint64_t id = 0;  // of the pin or the grant
  uint64_t extent = 0, offset = 0;
};

// A moment, for metrics.
struct LeaseStats {
  uint64_t leases = 0;  // leased
  uint64_t pins = 0, pinned_bytes = 0, grants = 0;
  uint64_t mapped_bytes = 0;   // of extents that were handed out and not dropped; one that several have counts for each
  uint64_t retired_bytes = 0;  // of them, of those that nobody needs any more
  uint64_t pins_total = 0, granted_total = 0, filled_total = 0;  // since the start
};

// Thread-safe. Errors: the .proto's.
class Leases {
 public:
  // Everything must outlive this.
  Leases(LeaseOptions options, Store* store, LeaseMemory memory, const Clock* clock);
  ~Leases();  // ends all
  Leases(const Leases&) = delete;
  Leases& operator=(const Leases&) = delete;

  const LeaseOptions& options() const { return options_; }

  struct Opened {
    std::string lease, token;
  };
  absl::StatusOr<Opened> Open(const Op& op);

  // OK if this lease may be used. Errors: MISSING_FIELD, LEASE_UNKNOWN, LEASE_NOT_CONNECTED.
  absl::Status Check(const Op& op, absl::string_view lease) const;
  // Keeps an image pinned for a lease. Errors: also TOO_MANY_PINS, TOO_MUCH_PINNED.
  absl::StatusOr<LeasedSlot> Hold(const Op& op, absl::string_view lease, Pin pin);
  // Pins, and grants that are not used. Unknown ones are skipped.
  void Unpin(absl::string_view lease, absl::Span<const uint64_t> ids);

  // At least one slot, at most `count`. Blocks.
  absl::StatusOr<std::vector<LeasedSlot>> Grant(const Op& op, absl::string_view lease, absl::string_view layout,
                                                uint32_t count);
  // At most `count` slots, of those that are there at once: for who may need them soon.
  std::vector<LeasedSlot> GrantStock(const Op& op, absl::string_view lease, const LayoutRef& layout, uint32_t count);
  // The image that the worker wrote into a granted slot. The grant is used up. Errors: also GRANT_UNKNOWN.
  absl::StatusOr<ImageRef> Use(const Op& op, absl::string_view lease, uint64_t grant, Checksum checksum);

  // ---- for whoever hands the memory out (rpc/arena_socket.h), from one thread. None blocks; HandOut takes what a
  // device's driver needs for its descriptors.

  // Uses a token up; gives the lease's id. Errors: TOKEN_INVALID.
  absl::StatusOr<std::string> Connect(absl::string_view token);
  struct Handout {
    std::vector<int> fds;  // of equal parts, in the order of their places; the caller's to close
    uint64_t bytes = 0;
    std::string device;     // its name
    bool writable = false;  // the lease has a grant there, and it is not sealed
  };
  // An extent that a slot of this lease named. Errors: EXTENT_UNKNOWN, NO_DESCRIPTORS, DEVICE_FAILED.
  absl::StatusOr<Handout> HandOut(absl::string_view lease, uint64_t extent);
  void Dropped(absl::string_view lease, absl::Span<const uint64_t> extents);
  void LeaseEnded(absl::string_view lease);    // its connection is gone
  void ProcessGone(absl::string_view lease);   // and so is the process
  bool IsGone(absl::string_view lease) const;  // there is nothing to watch any more
  // What a lease should be told.
  struct Wish {
    std::string lease;
    std::vector<uint64_t> drop;  // extents that it was not told of yet, at most kToldMax
    bool short_of_room = false;  // somebody was refused room since the last Tend, and it has grants
  };
  static constexpr size_t kToldMax = 1024;
  // Ends leases that nobody connected to.
  std::vector<Wish> Tend();
  // They could not be told.
  void NotTold(absl::string_view lease, absl::Span<const uint64_t> extents);

  LeaseStats stats() const;

 private:
  struct Lease;
  using LeaseRef = std::unique_ptr<Lease>;
  using Place = std::pair<uint64_t, uint64_t>;  // extent, offset
  // What goes when the lock is given back: its destructors take other locks.
  struct Trash;

  absl::StatusOr<Lease*> Find(const Op& op, absl::string_view id) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  absl::StatusOr<LeasedSlot> GrantOne(const Op& op, absl::string_view id, OwnerId owner, const LayoutRef& layout,
                                      bool at_once) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<OwnerId> OwnerOf(const Op& op, absl::string_view id) const ABSL_LOCKS_EXCLUDED(mu_);
  void UnpinLocked(Lease* lease, uint64_t id, Trash* trash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndLocked(Lease* lease, Trash* trash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropLocked(Lease* lease, uint64_t extent, Trash* trash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EraseIfGone(absl::string_view id, Trash* trash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Empty(Trash* trash) const ABSL_LOCKS_EXCLUDED(mu_);

  const LeaseOptions options_;
  statepool::Store* const store_;
  const LeaseMemory memory_;
  const Clock* const clock_;

  mutable Mutex mu_;
  absl::flat_hash_map<std::string, LeaseRef> leases_ ABSL_GUARDED_BY(mu_);
  struct PinnedSlot {
    uint64_t pins = 0, bytes = 0;
  };
  absl::flat_hash_map<Place, PinnedSlot> pinned_ ABSL_GUARDED_BY(mu_);
  uint64_t pinned_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  OwnerId last_owner_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t refusals_told_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t pins_total_ ABSL_GUARDED_BY(mu_) = 0, granted_total_ ABSL_GUARDED_BY(mu_) = 0,
                       filled_total_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_LEASES_H_
