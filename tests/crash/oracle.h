// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// NameOracle: what a daemon may show of one name after a kill -9, derived from nothing but the answers it gave before.
//
// It keeps the states that a restart may show, oldest first. The first is the newest that is known to be durable: an
// acknowledged SYNC write or delete, or one that an answer called durable. After it come the acknowledged WRITE_BEHIND
// writes, which may have reached the disk or not, and at the end the write that was under way at the kill. VOLATILE
// writes are never among them. A name belongs to one thread of the load, so there is exactly one such write at most,
// and the list is exact.
#ifndef STATEPOOL_TESTS_CRASH_ORACLE_H_
#define STATEPOOL_TESTS_CRASH_ORACLE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "statepool/v1/statepool.pb.h"

namespace statepool::crash {

// One state that was written: who wrote it and the how-manieth it was. Also its position, so every answer tells which
// write it shows.
using Content = int64_t;

// The bytes of a state: pseudo-random, decided by these three; they begin with `content`.
std::string StateBytes(uint64_t seed, Content content, size_t size);

struct State {
  bool exists = false;
  uint64_t revision = 0;      // 0: its answer never came
  std::vector<Content> ring;  // oldest first
  v1::Durability durability = v1::SYNC;
  int64_t acked_at = INT64_MAX;  // when its answer came, steady clock in ns; INT64_MAX: nothing follows from its age

  Content head() const { return ring.empty() ? 0 : ring.back(); }
  std::string ToString() const;
};

enum class Violation { kLost, kCorrupt, kHalfFork, kResurrected, kReissued, kUnexpected };
inline constexpr int kViolations = 6;
inline constexpr const char* kViolationNames[kViolations] = {"lost",        "corrupt",  "half_forks",
                                                             "resurrected", "reissued", "unexpected"};

// Not thread-safe.
class NameOracle {
 public:
  NameOracle(v1::NameKind kind, std::string name, size_t layout)
      : kind_(kind), name_(std::move(name)), layout_(layout) {}

  const std::string& name() const { return name_; }
  v1::NameRef ref() const;
  v1::NameKind kind() const { return kind_; }
  size_t layout() const { return layout_; }
  // What the running daemon must answer.
  const State& live() const { return live_; }
  uint64_t last_revision() const { return last_revision_; }

  // The Fork that made this name, as long as nothing else has written it; 0: none.
  uint64_t group = 0;

  void Acknowledged(State next);
  // The daemon died before it answered: `next` is whole or absent.
  void Unanswered(State next);
  // An answer said that this revision is durable.
  void Durable(uint64_t revision);
  // The daemon said that no change of before `time` (steady clock, ns) waits to be recorded.
  void RecordedUpTo(int64_t time);

  // Takes what the restarted daemon shows for the truth from now on, and says whether it was allowed to.
  std::optional<Violation> Restarted(const State& seen);
  std::string Expected() const;

 private:
  // Whatever waited to be recorded waits no more: the name is VOLATILE now, or may be.
  void NothingWaits();
  bool MayShow(const State& possible, const State& seen) const;

  const v1::NameKind kind_;
  const std::string name_;
  const size_t layout_;
  State live_;
  std::vector<State> possible_ = {State()};
  uint64_t last_revision_ = 0;  // the greatest that was acknowledged
};

}  // namespace statepool::crash

#endif  // STATEPOOL_TESTS_CRASH_ORACLE_H_
