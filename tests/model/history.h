// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// History: what clients asked of one name and were answered, each with its times; and whether some order of these
// operations, one after the other, explains all of it.
//
// An order explains a history when each operation stands between its call and its answer, and each answer follows from
// what stands before it. Revisions are witnesses: they grow along the order, and say which write a read has seen.
#ifndef STATEPOOL_TESTS_MODEL_HISTORY_H_
#define STATEPOOL_TESTS_MODEL_HISTORY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace statepool::model {

struct Event {
  enum class Kind { kSet, kGet, kDescribe, kDelete } kind = Kind::kGet;
  // kUnknown: the daemon died before it answered; the operation took place or not.
  enum class Result { kOk, kConflict, kMiss, kUnknown } result = Result::kUnknown;
  int client = 0;
  int64_t called = 0, answered = INT64_MAX;
  std::optional<uint64_t> if_revision;
  uint64_t revision = 0;  // of the answer; with kConflict that of the name, 0: absent
  uint64_t value = 0;     // which Set's bytes: written, or read

  std::string ToString() const;
};

// A name at one moment; revision 0: it is absent.
struct NameAt {
  uint64_t revision = 0, value = 0;
};

// Nothing if some order explains the events of one name that began as `initial`, and that is `last` at the end if that
// is known; else what could not be explained.
std::optional<std::string> Unexplained(std::vector<Event> events, const NameAt& initial,
                                       const std::optional<NameAt>& last);

}  // namespace statepool::model

#endif  // STATEPOOL_TESTS_MODEL_HISTORY_H_
