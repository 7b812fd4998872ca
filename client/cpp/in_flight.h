// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What a GPU was told to do for one arena, and what follows when it has done it: stores are committed, in the order in
// which they began, and the pins of loads are let go of. For the files of client/cpp alone.
#ifndef STATEPOOL_CLIENT_CPP_IN_FLIGHT_H_
#define STATEPOOL_CLIENT_CPP_IN_FLIGHT_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cpp/gpu.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::client {

// A store under way: the copies into granted slots that a stream has before it, and the call that publishes them.
// Thread-safe.
class Storing {
 public:
  using Answer = absl::StatusOr<v1::StoreResponse>;
  // Called once, when nothing writes to the slots any more: with the hashes of all states, or why there are none.
  using Commit = std::function<Answer(const absl::StatusOr<absl::Span<const LeafHash>>& hashes)>;

  // generation: of the arena.
  Storing(absl::flat_hash_set<uint32_t> rows, uint64_t generation, std::unique_ptr<const Enqueued> copies,
          Commit commit)
      : rows_(std::move(rows)), generation_(generation), copies_(std::move(copies)), commit_(std::move(commit)) {}

  const absl::flat_hash_set<uint32_t>& rows() const { return rows_; }
  uint64_t generation() const { return generation_; }
  bool is_over() const { return is_over_; }
  // False: it is not over by then.
  bool WaitUntilOver(absl::Time deadline) const;
  // REQUIRES: is_over().
  const Answer& answer() const { return answer_; }

 private:
  friend class InFlight;
  // Waits for the copies, and commits. REQUIRES: it was not called.
  void Finish();

  const absl::flat_hash_set<uint32_t> rows_;
  const uint64_t generation_;
  std::shared_ptr<const Enqueued> copies_;  // these two until it is over
  Commit commit_;
  mutable std::mutex mu_;  // of the change of is_over_
  mutable std::condition_variable changed_;
  std::atomic<bool> is_over_ = false;
  Answer answer_;
};

// Thread-safe. A thread of its own commits stores that nobody waits for, and lets go of pins. In a forked child it must
// be leaked: its locks may be the parent's threads'.
class InFlight {
 public:
  // How often the thread looks whether a store's copies are done: less and less often, while it is the same store.
  static constexpr std::chrono::microseconds kLookMin{100}, kLookMax{1000};
  // The same for the pins of loads.
  static constexpr std::chrono::microseconds kLookAtLoads{5000};

  // Null: there is no thread to be had.
  static std::unique_ptr<InFlight> Make();
  // Finishes all stores, and waits for the loads.
  ~InFlight();
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;

  // Keeps `pins` until the copies are done.
  void Hold(std::unique_ptr<const Enqueued> copies, std::shared_ptr<const void> pins);
  // attended: the thread commits it soon; else whoever finishes it, or one that began later.
  void Add(std::shared_ptr<Storing> storing, bool attended);

  // Waits for this store and those that began before it, and commits them. REQUIRES: it was added.
  void FinishThrough(const Storing& storing);
  // The same for all that began.
  void Finish();
  // The same for those of any of these rows.
  void Finish(const absl::flat_hash_set<uint32_t>& rows);

  // Lets go of the pins of loads that are done. Never waits.
  void Release();

 private:
  struct Load {
    std::unique_ptr<const Enqueued> copies;
    std::shared_ptr<const void> pins;
  };

  InFlight() = default;
  void Work();  // the thread
  template <typename IsWanted>
  void FinishLast(IsWanted is_wanted);

  std::thread thread_;
  std::mutex committing_;  // held while a store is finished; before mu_
  std::mutex mu_;          // of what follows
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Storing>> stores_;
  std::shared_ptr<Storing> current_;  // that is being finished
  std::vector<Load> loads_;
  bool ending_ = false;
};

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_IN_FLIGHT_H_
