// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// NameLog: the durable record of names and layouts, as core sees it. Implemented by server/tiers over the cold store.
#ifndef STATEPOOL_SERVER_CORE_NAME_LOG_H_
#define STATEPOOL_SERVER_CORE_NAME_LOG_H_

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/core/name.h"

namespace statepool {

// A name's new record, or that it is gone.
struct NameChange {
  NameKey key;
  std::optional<NameRecord> record;
};

struct LayoutRecord {
  TenantId tenant = kDefaultTenant;
  std::string canonical;             // Layout::canonical()
  std::vector<std::string> aliases;  // in byte order
};

// What the last run left for this one.
struct LastRun {
  bool existed = false;  // false: a new data directory, no name was ever in it
  bool clean = false;    // it ended in an orderly stop, so what is not here is known not to be
  // Reasons for names that are gone (TombstoneTable), saved at an orderly stop.
  std::string tombstones;
};

// Thread-safe. Every call blocks on the disk: never under a lock. Errors of all writes: COLD_FULL (nothing was
// changed), DISK_FAILED (after it every write fails, until the daemon is started anew).
class NameLog {
 public:
  virtual ~NameLog() = default;

  // All of the changes or none. With `sync`, OK means: they, the images that the records name, and every earlier commit
  // survive power loss. Concurrent synced commits share the waiting. REQUIRES: the images of each record were
  // persisted.
  virtual absl::Status Commit(absl::Span<const NameChange> changes, bool sync) = 0;

  // Layouts are always synced. A layout's record replaces the one with the same fingerprint.
  virtual absl::Status CommitLayout(const LayoutRecord& layout) = 0;
  // Forgets one, synced. REQUIRES: no record of a name has it.
  virtual absl::Status DeleteLayout(TenantId tenant, absl::string_view fingerprint) = 0;

  // Marks an orderly stop, synced; the last write before the end. The mark is taken away by the next start before it
  // serves.
  virtual absl::Status CommitCleanStop(absl::string_view tombstones) = 0;

  // --- recovery, each once, in this order, before anything else
  virtual LastRun last_run() const = 0;
  virtual uint64_t epoch() const = 0;  // this run's, already durable
  // 32 random bytes, made with the data directory: the secret of the prefix hash.
  virtual const std::string& hash_key() const = 0;
  virtual absl::Status LoadLayouts(absl::FunctionRef<absl::Status(LayoutRecord)> visit) = 0;
  // A record that can't be read is reported with its key and no record, and stays on disk.
  virtual absl::Status LoadNames(absl::FunctionRef<absl::Status(NameChange)> visit) = 0;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_NAME_LOG_H_
