// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// History: what clients asked of a few names and were answered, each with its times; and whether some order of these
// operations, one after the other, explains all of it.
//
// An order explains a history when each operation stands between its call and its answer, and each answer follows from
// what stands before it. Revisions are witnesses: they grow along the order of a name, and say which write a read has
// seen. Names that are written or read at one moment stand in one history; an operation on names of several histories
// is cut into one for each, and then nothing is said of its being one.
#ifndef STATEPOOL_TESTS_MODEL_HISTORY_H_
#define STATEPOOL_TESTS_MODEL_HISTORY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace statepool::model {

// Of a write whose answer nobody has got.
constexpr uint64_t kUntold = UINT64_MAX;

// A name at one moment; revision 0: it is absent.
struct NameAt {
  uint64_t revision = 0, value = 0;
  std::vector<uint64_t> ring;  // values, the head's last
  size_t max_history = 0;
};

// What is asked of one name.
struct Part {
  // kCreate: Fork, of its child, and Snapshot. kPeek: a read that tells no revision, of the source of Fork, Snapshot
  // and Restore.
  enum class Kind { kSet, kGet, kDescribe, kDelete, kCreate, kRollback, kRestore, kPeek } kind = Kind::kGet;
  // kUnknown: the daemon died before it answered; the operation took place or not. kNoPosition: Rollback, of a name
  // that is there.
  enum class Result { kOk, kConflict, kMiss, kExists, kNoPosition, kUnknown } result = Result::kUnknown;
  size_t name = 0;  // index into the history's names
  std::optional<uint64_t> if_revision;
  uint64_t revision = 0;       // of the answer; with kConflict and kExists that of the name, 0: absent
  uint64_t value = 0;          // which Set's bytes: written, or read; kUntold: not known
  size_t max_history = 0;      // that a write gives the name; 0: leaves it
  std::vector<uint64_t> ring;  // that was told, the head's last; empty: none was
  // kCreate: another name of the history, written at the same moment, whose value before that it takes.
  std::optional<size_t> source;

  bool is_write() const { return kind != Kind::kGet && kind != Kind::kDescribe && kind != Kind::kPeek; }
  bool moves_head() const { return is_write() && kind != Kind::kDelete; }
};

// What happens at one moment.
struct Event {
  std::vector<Part> parts;   // of different names; all kUnknown, or none
  bool all_or_none = false;  // kUnknown: else any of the parts may have taken place
  int client = 0;
  int64_t called = 0, answered = INT64_MAX;

  bool unknown() const { return parts.front().result == Part::Result::kUnknown; }
  std::string ToString() const;
};

// Nothing if some order explains the events of names that began as `initial`, and that are `last` at the end if that is
// known (with their rings, where these are not empty); else what could not be explained.
std::optional<std::string> Unexplained(std::vector<Event> events, const std::vector<NameAt>& initial,
                                       const std::vector<NameAt>& last);

}  // namespace statepool::model

#endif  // STATEPOOL_TESTS_MODEL_HISTORY_H_
