// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/crash/oracle.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace statepool::crash {

std::string StateBytes(uint64_t seed, Content content, size_t size) {
  std::string bytes(size + sizeof(uint64_t), '\0');
  uint64_t word = static_cast<uint64_t>(content), state = seed ^ (word * 0x9e3779b97f4a7c15);
  for (size_t i = 0; i < size; i += sizeof(word)) {
    std::memcpy(bytes.data() + i, &word, sizeof(word));
    state += 0x9e3779b97f4a7c15;  // splitmix64
    word = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9;
    word = (word ^ (word >> 27)) * 0x94d049bb133111eb;
    word ^= word >> 31;
  }
  bytes.resize(size);
  return bytes;
}

std::string State::ToString() const {
  if (!exists) return "absent";
  return absl::StrCat("revision ", revision == 0 ? "unknown" : absl::StrCat(revision), " ",
                      v1::Durability_Name(durability), " [", absl::StrJoin(ring, ","), "]");
}

v1::NameRef NameOracle::ref() const {
  v1::NameRef ref;
  if (kind_ == v1::SNAPSHOT) {
    ref.set_snapshot(name_);
  } else {
    ref.set_sequence(name_);
  }
  return ref;
}

void NameOracle::Acknowledged(State next) {
  group = 0;
  live_ = std::move(next);
  last_revision_ = std::max(last_revision_, live_.revision);
  if (live_.durability == v1::SYNC) possible_.clear();
  if (live_.durability == v1::VOLATILE) {
    NothingWaits();
  } else {
    possible_.push_back(live_);
  }
}

void NameOracle::Unanswered(State next) {
  group = 0;
  next.revision = 0;
  next.acked_at = INT64_MAX;
  if (next.durability == v1::VOLATILE) {
    NothingWaits();
  } else {
    possible_.push_back(std::move(next));
  }
}

void NameOracle::NothingWaits() {
  for (State& state : possible_) state.acked_at = INT64_MAX;
}

void NameOracle::RecordedUpTo(int64_t time) {
  const auto newest =
      std::find_if(possible_.rbegin(), possible_.rend(), [&](const State& s) { return s.acked_at < time; });
  if (newest != possible_.rend()) possible_.erase(possible_.begin(), newest.base() - 1);
}

void NameOracle::Durable(uint64_t revision) {
  const auto durable = std::find_if(possible_.begin(), possible_.end(),
                                    [&](const State& s) { return s.exists && s.revision == revision; });
  if (revision != 0 && durable != possible_.end()) possible_.erase(possible_.begin(), durable);
}

bool NameOracle::MayShow(const State& possible, const State& seen) const {
  if (!possible.exists || !seen.exists) return possible.exists == seen.exists;
  const bool revision = possible.revision != 0 ? seen.revision == possible.revision : seen.revision > last_revision_;
  // A record holds the ring's unbroken run of what is on disk, to the head.
  return revision && !seen.ring.empty() && seen.ring.size() <= possible.ring.size() &&
         std::equal(seen.ring.rbegin(), seen.ring.rend(), possible.ring.rbegin());
}

std::optional<Violation> NameOracle::Restarted(const State& seen) {
  std::optional<Violation> violation;
  if (!std::any_of(possible_.begin(), possible_.end(), [&](const State& s) { return MayShow(s, seen); })) {
    const State& oldest = possible_.front();
    if (!seen.exists || (oldest.exists && seen.revision < oldest.revision)) {
      violation = Violation::kLost;
    } else if (!oldest.exists && possible_.size() == 1) {
      violation = Violation::kResurrected;
    } else {
      violation = Violation::kCorrupt;  // a state that nobody wrote so
    }
  }
  live_ = seen;
  live_.acked_at = INT64_MAX;
  possible_ = {live_};
  last_revision_ = std::max(last_revision_, seen.revision);
  return violation;
}

std::string NameOracle::Expected() const {
  return absl::StrJoin(possible_, " or ",
                       [](std::string* out, const State& state) { absl::StrAppend(out, state.ToString()); });
}

}  // namespace statepool::crash
