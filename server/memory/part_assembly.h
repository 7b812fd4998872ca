// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Versions that the ranks of tensor parallelism store together (the .proto's PARTS). Each rank's Store writes its part
// into one slot; the Store that brings the last part gets the slot, and publishes it. Before, nobody finds it.
//
// One rank may give the version an attachment, or several the same. It waits in the assembly.
//
// An assembly is *open* until its last part is there, then *whole* until it is published or refused. Open ones are
// dropped when their time is over or an arena that brought a part ends: their ranks then begin anew. What was published
// is remembered as long, for ranks that ask once more.
#ifndef STATEPOOL_SERVER_MEMORY_PART_ASSEMBLY_H_
#define STATEPOOL_SERVER_MEMORY_PART_ASSEMBLY_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/core/image_store.h"
#include "server/core/mutex.h"
#include "server/core/store.h"

namespace statepool {

class Device;

struct PartAssemblyOptions {
  uint32_t max_open = 4096;
  // Of open ones' attachments and states, but for those in slots that arenas had reserved.
  uint64_t max_bytes = 256 << 20;
  uint32_t max_remembered = 4096;  // published ones; the oldest are forgotten first
  absl::Duration timeout = absl::Seconds(60);
};

// Thread-safe. Nothing blocks.
class PartAssemblies {
 public:
  // What parts of one version have in common. All ranks give the same request_id, and never again for another version.
  struct Key {
    TenantId tenant = kDefaultTenant;
    std::string sequence, request_id, layout;
    int64_t position = 0;
    uint32_t tp_size = 1;

    auto Tuple() const { return std::tie(tenant, sequence, request_id, layout, position, tp_size); }
    friend bool operator==(const Key& a, const Key& b) { return a.Tuple() == b.Tuple(); }
    template <typename H>
    friend H AbslHashValue(H h, const Key& key) {
      return H::combine(std::move(h), key.Tuple());
    }
  };
  struct Part {
    uint32_t rank = 0;
    absl::string_view arena;         // that brings it
    absl::string_view attachment{};  // of the version; empty: this rank gives none
  };
  class Assembly;
  using Ref = std::shared_ptr<Assembly>;
  // A slot for a version, and what says that it was one reserved for an arena, for as long as it is in here.
  struct Slot {
    std::unique_ptr<ImageWriter> writer;
    std::shared_ptr<const void> of_reserve{};
  };

  struct Joined {
    Ref assembly;         // null: there is none yet
    bool copies = false;  // this rank's part is to be copied now, into room(); then Arrived or Failed is called
  };
  struct Whole {
    Slot slot;
    std::string attachment;
  };
  struct State {
    enum What { kOpen, kWhole, kPublished, kDropped };
    What what = kOpen;
    uint32_t missing = 0;  // parts that are not there yet
    NameInfo info;         // of a published one
  };

  PartAssemblies(PartAssemblyOptions options, const Clock* clock) : options_(options), clock_(clock) {}
  PartAssemblies(const PartAssemblies&) = delete;
  PartAssemblies& operator=(const PartAssemblies&) = delete;

  // A rank's part of the version `key`. Errors: UPLOAD_BUSY: another call brings this very part now, or publishes the
  // version; INVALID_OPTION (attachment): another rank gave another one, or this part came without it;
  // TOO_MANY_UPLOADS.
  absl::StatusOr<Joined> Join(const Key& key, const Part& part);
  // The same with room for a new one, on `device`: unless it has begun meanwhile, then *slot is left. `bytes` count
  // against max_bytes. Errors: those of Join.
  absl::StatusOr<Joined> Begin(const Key& key, const Part& part, uint64_t bytes, Device* device, Slot* slot);

  // The slot, state_bytes() long, and its device.
  static char* room(const Assembly& assembly);
  static Device* device(const Assembly& assembly);

  // The part is there: how many are missing. 0 is told to one caller: it calls Take, and then Published or Drop.
  // Errors: UPLOAD_UNKNOWN: it was dropped meanwhile.
  absl::StatusOr<uint32_t> Arrived(const Ref& assembly, uint32_t rank);
  void Failed(const Ref& assembly, uint32_t rank);

  Whole Take(const Ref& assembly);  // REQUIRES: all parts are there
  void Published(const Ref& assembly, const NameInfo& info);
  void Drop(const Ref& assembly);

  State StateOf(const Assembly& assembly) const;

  static absl::Status BeingPublished();  // UPLOAD_BUSY
  static absl::Status Unknown();         // UPLOAD_UNKNOWN: dropped

  void ArenaEnded(absl::string_view arena);  // drops open ones that it brought a part of
  void Expire();                             // drops what is too old

  // Aborts when they contradict themselves. For tests.
  void CheckInvariants() const;

 private:
  absl::StatusOr<Joined> JoinLocked(const Key& key, const Part& part) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Attach(Assembly* assembly, const Part& part) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasRoom(uint64_t bytes, uint64_t own_bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropLocked(Assembly* assembly, Slot* slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const PartAssemblyOptions options_;
  const Clock* const clock_;

  mutable Mutex mu_;
  absl::flat_hash_map<Key, Ref> assemblies_ ABSL_GUARDED_BY(mu_);  // open, whole and published
  // Those that may be open, and those that were published, oldest first. Some are not any more: of begun_ at most as
  // many as are open, and some more.
  std::deque<Ref> begun_ ABSL_GUARDED_BY(mu_), published_ ABSL_GUARDED_BY(mu_);
  uint64_t open_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t open_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_PART_ASSEMBLY_H_
