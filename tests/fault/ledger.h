// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Ledger: one client that writes names, remembers what was acknowledged, and compares. The oracle is that of
// tests/crash; what is added is that the daemon may refuse, fail and stop, and that what it says then counts.
#ifndef STATEPOOL_TESTS_FAULT_LEDGER_H_
#define STATEPOOL_TESTS_FAULT_LEDGER_H_

#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "statepool/v1/statepool.grpc.pb.h"
#include "tests/crash/oracle.h"
#include "tests/crash/worker.h"

namespace statepool::fault {

enum class Answer {
  kAcked,
  kFull,     // RESOURCE_EXHAUSTED: nothing changed, and it says when to retry
  kFailed,   // UNAVAILABLE: the disk failed or the daemon is gone; whole or absent
  kDamaged,  // DATA_LOSS
  kWrong,    // anything else; reported
};

// How a name looked after a restart.
enum class Sight { kRight, kTold, kWrongBytes, kStale, kGone };

// Not thread-safe.
class Ledger {
 public:
  Ledger(crash::Run* run, int names);
  Ledger(const Ledger& other);  // what is known, without the connection

  void Connect(const std::string& address);
  Answer RegisterLayouts();

  size_t size() const { return names_.size(); }
  bool exists(size_t i) const { return names_[i]->live().exists; }
  // Whether the outcome of a write is unknown; such a name is left alone until the next restart.
  bool uncertain(size_t i) const { return uncertain_.contains(names_[i].get()); }
  const std::string& name(size_t i) const { return names_[i]->name(); }

  Answer Set(size_t i, v1::Durability durability);
  Answer Fork(size_t source, int children);
  Answer Delete(size_t i);
  Answer Flush();
  // Describe and Get of a name must show what was acknowledged. kDamaged, kFull and kFailed are for the caller to
  // judge.
  Answer Look(size_t i);

  // After a restart, for all names: what is seen is the truth from now on. Violations are reported.
  // False: the daemon failed meanwhile.
  bool Verify();
  // After a restart on a damaged directory: how each name looks. Reports nothing and learns nothing.
  Sight See(size_t i);

  // Of the last error.
  const std::string& reason() const { return reason_; }
  bool has_retry() const { return has_retry_; }
  int64_t acked() const { return acked_; }
  int64_t refused() const { return refused_; }

 private:
  struct Seen {
    Answer answer;
    crash::State state;
    uint64_t durable_revision = 0;
    bool bytes_right = false;
  };
  template <typename Request, typename Response>
  Answer Send(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
              const Request& request, Response* response, const std::string& name);
  Answer Conclude(Answer answer, crash::NameOracle* name, crash::State next, uint64_t revision);
  Seen Observe(const crash::NameOracle& name);
  uint64_t Below(uint64_t n) { return random_() % n; }

  crash::Run* const run_;
  std::mt19937_64 random_;
  std::unique_ptr<v1::StatePool::Stub> stub_;
  std::vector<std::unique_ptr<crash::NameOracle>> names_;
  std::set<const crash::NameOracle*> uncertain_;
  std::set<crash::Content> refused_contents_;
  int64_t contents_ = 0, forks_ = 0, acked_ = 0, refused_ = 0;
  std::string reason_, message_;
  bool has_retry_ = false, quiet_ = false;
};

}  // namespace statepool::fault

#endif  // STATEPOOL_TESTS_FAULT_LEDGER_H_
