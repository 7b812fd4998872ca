// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// World: the daemon without its gRPC server and without RocksDB: a real Store over a real Residency with a few KiB of
// memory, over a cold store and a log of names that are maps and outlive a restart.
#ifndef STATEPOOL_TESTS_FUZZ_WORLD_H_
#define STATEPOOL_TESTS_FUZZ_WORLD_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/core/clock.h"
#include "server/core/mutex.h"
#include "server/core/name_log.h"
#include "server/core/store.h"
#include "server/memory/arenas.h"
#include "server/memory/copy_scheduler.h"
#include "server/memory/host_device.h"
#include "server/rpc/handlers.h"
#include "server/rpc/uploads.h"
#include "server/rpc/watchdog.h"
#include "server/tiers/residency.h"
#include "tiers/memory_cold_store.h"

namespace statepool::fuzz {

// A NameLog in maps. Ends the process when a record comes before its images. Thread-safe.
class MemoryNameLog final : public NameLog {
 public:
  struct Disk {
    std::map<std::string, LayoutRecord> layouts;  // by fingerprint
    std::map<NameKey, NameRecord> names;
    LastRun last_run;
    bool full = false;  // commits are refused: COLD_FULL
  };
  MemoryNameLog(Disk* disk, MemoryDisk* images, uint64_t epoch);

  absl::Status Commit(absl::Span<const NameChange> changes, bool sync) override;
  absl::Status CommitLayout(const LayoutRecord& layout) override;
  absl::Status DeleteLayout(TenantId tenant, absl::string_view fingerprint) override;
  absl::Status CommitCleanStop(absl::string_view tombstones) override;
  LastRun last_run() const override { return last_run_; }
  uint64_t epoch() const override { return epoch_; }
  const std::string& hash_key() const override { return hash_key_; }
  absl::Status LoadLayouts(absl::FunctionRef<absl::Status(LayoutRecord)> visit) override;
  absl::Status LoadNames(absl::FunctionRef<absl::Status(NameChange)> visit) override;

 private:
  absl::Status Full() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable Mutex mu_;
  Disk* const disk_ ABSL_PT_GUARDED_BY(mu_);
  MemoryDisk* const images_;
  const uint64_t epoch_;
  const std::string hash_key_ = std::string(32, 'k');
  LastRun last_run_;
};

struct WorldOptions {
  uint64_t hot_bytes = 256 << 10;
  uint64_t cold_bytes = UINT64_MAX;
  int prefix_key_bits = 128;
  UploadLimits uploads{4, 1 << 20, absl::Seconds(60)};
};

// Not thread-safe.
class World {
 public:
  explicit World(const WorldOptions& options);
  ~World();

  // The end of a daemon and the start of the next, over the same disk; clean: it stopped in order.
  void Restart(bool clean);
  // The disk's last bytes are gone, or there are some again.
  void SetDiskFull(bool full) { disk_.full = full; }
  void CheckInvariants() const;
  // Ends all uploads and forgets every name; then nothing may be left. REQUIRES: no pin, no upload under way.
  void CheckNothingLeaks();

  ManualClock& clock() { return clock_; }
  Store& store() { return *store_; }
  Handlers& handlers() { return *handlers_; }
  Uploads& uploads() { return *uploads_; }
  Residency& residency() { return *residency_; }
  // The same for a direct lease.
  void Connect(const v1::DirectLease& lease);
  std::string LeaseOf(const std::string& name) const;
  // Connects to an arena that was just opened, and keeps its id: the n-th of those kept is called "n" in requests.
  void Connect(const v1::Arena& arena);
  std::string ArenaOf(const std::string& name) const;
  const Device& device() const { return *device_; }

 private:
  void Start();
  void Stop();

  const WorldOptions options_;
  ManualClock clock_;
  MemoryNameLog::Disk disk_;
  MemoryDisk images_;
  std::unique_ptr<HostDevice> device_;
  std::unique_ptr<MemoryColdStore> cold_;
  std::unique_ptr<MemoryNameLog> log_;
  std::unique_ptr<Residency> residency_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<CopyScheduler> copies_;
  std::unique_ptr<Arenas> arenas_;
  std::unique_ptr<Leases> leases_;
  std::vector<std::string> arena_ids_, lease_ids_;  // the newest kArenasKept, newest first
  std::unique_ptr<Watchdog> watchdog_;
  std::unique_ptr<Uploads> uploads_;
  std::unique_ptr<Handlers> handlers_;
};

}  // namespace statepool::fuzz

#endif  // STATEPOOL_TESTS_FUZZ_WORLD_H_
