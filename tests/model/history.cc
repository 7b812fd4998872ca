// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/model/history.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace statepool::model {
namespace {

using Kind = Part::Kind;
using Result = Part::Result;

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}
uint64_t HashOf(size_t i) { return Mix((i + 1) * 0x9e3779b97f4a7c15); }

// All names of the history, and the greatest revision that each has had.
struct Moment {
  std::vector<NameAt> names;
  std::vector<uint64_t> greatest;

  uint64_t Hash() const {
    uint64_t hash = 0;
    const auto add = [&hash](uint64_t x) { hash = Mix(hash ^ (x + 0x9e3779b97f4a7c15)); };
    for (size_t i = 0; i < names.size(); ++i) {
      add(names[i].revision), add(names[i].value), add(greatest[i]), add(names[i].max_history);
      for (const uint64_t value : names[i].ring) add(value);
      add(names[i].ring.size());
    }
    return hash;
  }
};

// Depth first over all orders, each state of the search once.
class Search {
 public:
  Search(std::vector<Event> events, const std::vector<NameAt>& initial)
      : events_(std::move(events)), done_(events_.size(), false) {
    std::sort(events_.begin(), events_.end(), [](const Event& a, const Event& b) { return a.called < b.called; });
    for (Event& event : events_) {
      for (Part& part : event.parts) {
        if (part.moves_head() && part.result == Result::kUnknown) part.revision = kUntold;
        if (part.moves_head() && part.result == Result::kOk) told_.insert(part.revision);
      }
      left_ += !event.unknown();
    }
    for (const NameAt& name : initial) told_.insert(name.revision);
  }

  bool Run(const Moment& at) {
    if (left_ == 0) return true;
    if (left_ < fewest_left_) fewest_left_ = left_, stuck_ = at;
    if (!visited_.insert({hash_, at.Hash()}).second) return false;
    // Whatever was called before the first answer that is still to be explained may be next: reads first, then writes
    // by revision, then those without an answer.
    int64_t first_answer = INT64_MAX;
    while (first_ < events_.size() && done_[first_]) ++first_;
    const size_t from = first_;
    std::vector<size_t> next;
    for (size_t i = from; i < events_.size() && events_[i].called <= first_answer; ++i) {
      if (done_[i]) continue;
      first_answer = std::min(first_answer, events_[i].answered);
      next.push_back(i);
    }
    std::erase_if(next, [&](size_t i) { return events_[i].called > first_answer; });
    std::sort(next.begin(), next.end(), [&](size_t a, size_t b) { return Order(events_[a]) < Order(events_[b]); });
    for (const size_t i : next) {
      const Event& event = events_[i];
      const bool counts = !event.unknown();
      const unsigned all = (1U << event.parts.size()) - 1;
      for (unsigned which = all; which > 0; --which) {
        if (which != all && (counts || event.all_or_none)) break;
        Moment after = at;
        if (!Apply(event, which, at, &after)) continue;
        done_[i] = true, left_ -= counts, hash_ ^= HashOf(i);
        if (Run(after)) return true;
        done_[i] = false, left_ += counts, hash_ ^= HashOf(i);
        first_ = std::min(first_, i);
      }
    }
    first_ = std::min(first_, from);
    return false;
  }

  std::string Stuck() const {
    return absl::StrCat(
        "no order explains it; the furthest one leaves ", fewest_left_, " of ", events_.size(), " operations, at ",
        absl::StrJoin(stuck_.names, " and ", [](std::string* out, const NameAt& name) {
          absl::StrAppend(out, "revision ", name.revision, " ring [", absl::StrJoin(name.ring, " "), "]");
        }));
  }

 private:
  static std::tuple<int, uint64_t> Order(const Event& event) {
    if (event.unknown()) return {3, 0};
    uint64_t first = UINT64_MAX;
    bool writes = false;
    for (const Part& part : event.parts) {
      if (part.result != Result::kOk || !part.is_write()) continue;
      writes = true;
      if (part.moves_head()) first = std::min(first, part.revision);
    }
    return !writes ? std::tuple(0, uint64_t{0}) : std::tuple(first == UINT64_MAX ? 2 : 1, first);
  }

  // The parts of `which` at one moment.
  bool Apply(const Event& event, unsigned which, const Moment& before, Moment* after) const {
    for (size_t i = 0; i < event.parts.size(); ++i) {
      const Part& part = event.parts[i];
      if ((which >> i & 1) == 0) continue;
      if (!ApplyPart(part, &after->names[part.name], &after->greatest[part.name])) return false;
      if (!part.source.has_value()) continue;
      const NameAt& source = before.names[*part.source];
      if (source.revision == 0) return false;
      if (part.value != kUntold && source.value != kUntold && source.value != part.value) return false;
    }
    return true;
  }

  // A revision of the name that was told: that of the state, or of a write whose answer never came.
  bool Is(NameAt* at, uint64_t revision, uint64_t* greatest) const {
    if (at->revision == kUntold && revision != 0 && told_.count(revision) == 0 && revision > *greatest)
      at->revision = *greatest = revision;
    return at->revision == revision;
  }
  static bool HasValue(NameAt* at, uint64_t value) {
    if (at->value == kUntold) at->value = at->ring.back() = value;
    return at->value == value;
  }
  static bool HasRing(const NameAt& at, const std::vector<uint64_t>& told) {
    return told.empty() || std::equal(told.begin(), told.end(), at.ring.begin(), at.ring.end(),
                                      [](uint64_t a, uint64_t b) { return a == b || b == kUntold; });
  }
  // A new head, whose place in the ring is made already. What it is was told, or not.
  static bool MoveHead(const Part& part, uint64_t value, NameAt* at, uint64_t* greatest) {
    if (part.revision != kUntold && part.revision <= *greatest) return false;
    if (part.revision != kUntold) *greatest = part.revision;
    at->revision = part.revision;
    at->value = value;
    if (part.max_history != 0) at->max_history = part.max_history;
    if (at->ring.size() > at->max_history) at->ring.erase(at->ring.begin(), at->ring.end() - at->max_history);
    return true;
  }

  bool ApplyPart(const Part& part, NameAt* at, uint64_t* greatest) const {
    switch (part.result) {
      case Result::kMiss: return at->revision == 0;
      case Result::kExists: return part.revision != 0 && Is(at, part.revision, greatest);
      case Result::kConflict: return Is(at, part.revision, greatest) && part.revision != *part.if_revision;
      case Result::kNoPosition:
        return at->revision != 0 && std::count(at->ring.begin(), at->ring.end(), part.value) == 0;
      case Result::kOk:
      case Result::kUnknown: break;
    }
    if (part.if_revision.has_value() && !Is(at, *part.if_revision, greatest)) return false;
    switch (part.kind) {
      case Kind::kGet:
      case Kind::kDescribe:
        return Is(at, part.revision, greatest) && HasValue(at, part.value) && HasRing(*at, part.ring);
      case Kind::kPeek: return at->revision != 0 && HasValue(at, part.value);
      case Kind::kDelete:
        if (at->revision == 0) return false;
        *at = NameAt{};
        return true;
      case Kind::kCreate:
        if (at->revision != 0) return false;
        [[fallthrough]];
      case Kind::kSet:
      case Kind::kRestore: at->ring.push_back(part.value); return MoveHead(part, part.value, at, greatest);
      case Kind::kRollback: {
        if (at->revision == 0) return false;
        const auto newest = std::find_if(at->ring.rbegin(), at->ring.rend(),
                                         [&](uint64_t value) { return value == part.value || value == kUntold; });
        if (newest == at->ring.rend()) return false;
        at->ring.erase(newest.base(), at->ring.end());
        at->ring.back() = part.value;
        return MoveHead(part, part.value, at, greatest);
      }
    }
    return false;
  }

  std::vector<Event> events_;
  std::vector<bool> done_;
  std::set<uint64_t> told_;
  size_t left_ = 0, first_ = 0, fewest_left_ = SIZE_MAX;
  uint64_t hash_ = 0;
  std::set<std::pair<uint64_t, uint64_t>> visited_;
  Moment stuck_;
};

}  // namespace

std::string Event::ToString() const {
  static constexpr const char* kKinds[] = {"Set", "Get", "Describe", "Delete", "Create", "Rollback", "Restore", "Peek"};
  static constexpr const char* kResults[] = {"OK",       "ABORTED", "NOT_FOUND", "ALREADY_EXISTS", "POSITION_MISMATCH",
                                             "no answer"};
  std::string text = absl::StrCat(called, "..", answered == INT64_MAX ? "" : absl::StrCat(answered), " client ", client,
                                  all_or_none ? " all or none" : "");
  for (const Part& part : parts) {
    absl::StrAppend(&text, parts.size() > 1 ? "; " : " ", kKinds[static_cast<int>(part.kind)], " ", part.name);
    if (part.source.has_value()) absl::StrAppend(&text, " of ", *part.source);
    if (part.if_revision.has_value()) absl::StrAppend(&text, " if_revision=", *part.if_revision);
    absl::StrAppend(&text, " value=", part.value, " -> ", kResults[static_cast<int>(part.result)],
                    " revision=", part.revision);
    if (!part.ring.empty()) absl::StrAppend(&text, " ring=[", absl::StrJoin(part.ring, " "), "]");
  }
  return text;
}

std::optional<std::string> Unexplained(std::vector<Event> events, const std::vector<NameAt>& initial,
                                       const std::vector<NameAt>& last) {
  if (!last.empty()) {
    Event read;
    for (size_t i = 0; i < last.size(); ++i) {
      Part part;
      part.name = i;
      part.result = last[i].revision == 0 ? Result::kMiss : Result::kOk;
      part.revision = last[i].revision;
      part.value = last[i].value;
      part.ring = last[i].ring;
      read.parts.push_back(part);
    }
    read.called = INT64_MAX - 1;
    read.client = -1;
    // What has no answer took place before, or never.
    events.push_back(read);
  }
  Moment begin{initial, {}};
  for (const NameAt& name : initial) begin.greatest.push_back(name.revision);
  Search search(std::move(events), initial);
  if (search.Run(begin)) return std::nullopt;
  return search.Stuck();
}

}  // namespace statepool::model
