// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// World: the daemon without its gRPC server, in this process: Handlers over a Store over a Residency with little memory
// over RocksDB in a directory, with a clock that is ours.
#ifndef STATEPOOL_TESTS_MODEL_WORLD_H_
#define STATEPOOL_TESTS_MODEL_WORLD_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "server/core/clock.h"
#include "server/core/store.h"
#include "server/memory/host_device.h"
#include "server/rpc/handlers.h"
#include "server/tiers/residency.h"
#include "server/tiers/rocksdb_cold_store.h"

namespace statepool::model {

inline constexpr uint64_t kHotBytes = 352 << 10;  // five of the largest states

// What the daemon's flags would say.
StoreOptions OptionsOfWorld();

struct WorldCounts {
  uint64_t spills = 0, evictions = 0, promotions = 0;
};

// Not thread-safe.
class World {
 public:
  World(std::string directory, ManualClock* clock);
  ~World();

  // The end of a daemon and the start of the next over the same directory. Orderly: it is drained first; else it is
  // gone without a word, and what was not recorded may be lost.
  void Restart(bool orderly);
  void CheckInvariants() const;

  // Any of these RPCs, as server/rpc/service.cc serves it. Get's bytes are in the answer.
  absl::Status Get(const v1::GetRequest& request, v1::GetResponse* response);
  absl::Status BatchGet(const v1::BatchGetRequest& request, v1::BatchGetResponse* response);
  absl::Status Set(const v1::SetRequest& request, v1::NameInfo* info);
  absl::Status BatchWrite(const v1::BatchWriteRequest& request, v1::BatchWriteResponse* response);

  Store& store() { return *store_; }
  Handlers& handlers() { return *handlers_; }
  Residency& residency() { return *residency_; }
  const std::string& incarnation() const { return incarnation_; }
  WorldCounts counts() const;  // since the first start

 private:
  void Start();
  void Stop();

  const std::string directory_;
  ManualClock* const clock_;
  int starts_ = 0;
  std::string incarnation_;
  WorldCounts before_;  // of earlier starts
  std::unique_ptr<HostDevice> device_;
  std::unique_ptr<RocksDbColdStore> cold_;
  std::unique_ptr<NameLog> log_;  // cold_, but for what is random in it
  std::unique_ptr<Residency> residency_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Handlers> handlers_;
};

}  // namespace statepool::model

#endif  // STATEPOOL_TESTS_MODEL_WORLD_H_
