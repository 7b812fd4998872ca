// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Worker: one thread's share of the load, with names of its own, and the oracle of them.
#ifndef STATEPOOL_TESTS_CRASH_WORKER_H_
#define STATEPOOL_TESTS_CRASH_WORKER_H_

#include <grpcpp/grpcpp.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "statepool/v1/statepool.grpc.pb.h"
#include "tests/crash/oracle.h"

namespace statepool::crash {

// Sizes below and above a leaf of the checksum, and none but the first a multiple of anything.
inline constexpr std::array<uint64_t, 4> kLayoutBytes = {16 << 10, 60'001, 200'003, 512'000};

// What all workers share. Thread-safe.
struct Run {
  explicit Run(uint64_t run_seed) : seed(run_seed) {}

  void Report(Violation violation, const std::string& name, const std::string& expected, const std::string& got);
  int64_t violations() const;
  void SawRevision(uint64_t revision);

  const uint64_t seed;
  std::atomic<int> cycle{0};
  std::array<std::string, kLayoutBytes.size()> layouts;  // fingerprints; written before there are workers
  std::atomic<int64_t> killed_at{0};                     // steady clock; 0: the daemon lives
  std::atomic<uint64_t> greatest_revision{0};            // ever seen
  std::atomic<uint64_t> revision_floor{0};  // ever seen before the daemon's last start: new ones are greater

  std::array<std::atomic<int64_t>, kViolations> counts{};
  std::atomic<int64_t> operations{0}, refused{0}, acked_sync{0}, forks{0}, batches{0}, spills{0}, promotions{0};
};

// Not thread-safe: each of its calls runs in one thread, and no two at the same time.
class Worker {
 public:
  Worker(Run* run, int id);

  // Mixed operations until the daemon is killed (or something is wrong).
  void Load(const std::string& address);
  // After a restart: looks at every name, byte for byte.
  void Verify(const std::string& address);

  // Whether a durable write was under way at the kill that ended the last Load.
  bool durable_in_flight() const { return durable_in_flight_; }
  // See NameOracle; for all names. REQUIRES: the daemon is dead.
  void RecordedUpTo(int64_t time);
  // Names that exist, as of the last Verify.
  void Collect(std::set<std::string>* names) const;

 private:
  enum class Answer { kAcked, kRefused, kNone };
  // What the answer to a write promises: nothing, that a SYNC write is on disk, or (Delete, Flush) that something else
  // is.
  enum class Promise { kNothing, kSync, kOther };
  struct Observed {
    State state;
    uint64_t durable_revision = 0;
    bool damaged = false;  // reported already
  };

  void Connect(const std::string& address);
  template <typename Request, typename Response>
  grpc::Status Send(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response);
  // A write. With kNone the daemon died before it answered (or answered nonsense): the load of this cycle is over.
  template <typename Request, typename Response>
  Answer Write(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
               const Request& request, Response* response, Promise promise, const NameOracle& name);

  static Promise PromiseOf(const State& next) {
    return next.durability == v1::SYNC ? Promise::kSync : Promise::kNothing;
  }

  // Each is one operation; false ends the load.
  bool Set();
  bool Fork();
  bool Batch();
  bool Snapshot();
  bool Delete();
  bool Rollback();
  bool Flush();
  bool Look();

  // Describe and Get of one name, its bytes verified. Nothing: the daemon did not answer.
  std::optional<Observed> Observe(const NameOracle& name);
  // A write was acknowledged with this revision.
  void Acknowledge(NameOracle* name, State next, uint64_t revision);
  bool Conclude(Answer answer, NameOracle* name, State next, const v1::NameInfo& info);
  void Unexpected(const std::string& name, const grpc::Status& status);

  using Wanted = std::function<bool(const NameOracle&)>;
  NameOracle* Pick(const Wanted& wanted);  // null: there is none
  int64_t Count(const Wanted& wanted) const;
  bool Chance(int percent) { return random_() % 100 < static_cast<uint64_t>(percent); }
  uint64_t Below(uint64_t n) { return random_() % n; }
  Content NewContent() { return static_cast<Content>(id_ + 1) << 32 | ++contents_; }

  Run* const run_;
  const int id_;
  std::mt19937_64 random_;
  std::unique_ptr<v1::StatePool::Stub> stub_;
  std::vector<std::unique_ptr<NameOracle>> names_;
  std::set<Content> hot_;  // known to have been in memory since the daemon's start
  int64_t contents_ = 0;
  uint64_t groups_ = 0;
  bool durable_in_flight_ = false;
};

}  // namespace statepool::crash

#endif  // STATEPOOL_TESTS_CRASH_WORKER_H_
