// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/model/history.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>

#include "absl/strings/str_cat.h"

namespace statepool::model {
namespace {

constexpr uint64_t kUntold = UINT64_MAX;  // the revision of a write that nobody was told of

// Depth first over all orders, each state of the search once.
class Search {
 public:
  Search(std::vector<Event> events, const NameAt& initial) : events_(std::move(events)), done_(events_.size(), false) {
    std::sort(events_.begin(), events_.end(), [](const Event& a, const Event& b) { return a.called < b.called; });
    std::map<uint64_t, uint64_t> seen;  // the revision of each value that was read
    for (const Event& event : events_) {
      if (event.kind == Event::Kind::kGet && event.result == Event::Result::kOk) seen[event.value] = event.revision;
    }
    for (Event& event : events_) {
      const bool set = event.kind == Event::Kind::kSet;
      if (set && event.result == Event::Result::kUnknown)
        event.revision = seen.count(event.value) > 0 ? seen[event.value] : kUntold;
      if (set && event.result != Event::Result::kConflict) told_.insert(event.revision);
      left_ += event.result != Event::Result::kUnknown;
    }
    told_.insert(initial.revision);
  }

  bool Run(NameAt at, uint64_t greatest) {
    if (left_ == 0) return true;
    if (left_ < fewest_left_) fewest_left_ = left_, stuck_ = at;
    if (!visited_.insert({hash_ ^ at.value * 0x9e3779b97f4a7c15, at.revision, greatest}).second) return false;
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
      NameAt after = at;
      uint64_t top = greatest;
      if (!Apply(event, &after, &top)) continue;
      const bool counts = event.result != Event::Result::kUnknown;
      done_[i] = true, left_ -= counts, hash_ ^= HashOf(i);
      if (Run(after, top)) return true;
      done_[i] = false, left_ += counts, hash_ ^= HashOf(i);
      first_ = std::min(first_, i);
    }
    first_ = std::min(first_, from);
    return false;
  }

  std::string Stuck() const {
    std::string text = absl::StrCat("no order explains it; the furthest one leaves ", fewest_left_, " of ",
                                    events_.size(), " operations, at revision ", stuck_.revision);
    return text;
  }
  const std::vector<Event>& events() const { return events_; }

 private:
  static std::tuple<int, uint64_t> Order(const Event& event) {
    if (event.result == Event::Result::kUnknown) return {3, event.revision};
    if (event.result != Event::Result::kOk) return {0, 0};
    if (event.kind == Event::Kind::kSet) return {1, event.revision};
    return {event.kind == Event::Kind::kDelete ? 2 : 0, 0};
  }
  static uint64_t HashOf(size_t i) {
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

  // A revision of the name that was told: that of the state, or of a write whose answer never came.
  bool Is(NameAt* at, uint64_t revision, uint64_t* greatest) const {
    if (at->revision == kUntold && revision != 0 && told_.count(revision) == 0 && revision > *greatest)
      at->revision = *greatest = revision;
    return at->revision == revision;
  }

  bool Apply(const Event& event, NameAt* at, uint64_t* greatest) const {
    using Result = Event::Result;
    switch (event.kind) {
      case Event::Kind::kGet:
        return event.result == Result::kMiss ? at->revision == 0
               : event.result == Result::kOk ? Is(at, event.revision, greatest) && at->value == event.value
                                             : true;
      case Event::Kind::kDescribe:
        return event.result == Result::kMiss ? at->revision == 0
               : event.result == Result::kOk ? Is(at, event.revision, greatest)
                                             : true;
      case Event::Kind::kDelete:
        if (event.result == Result::kMiss) return at->revision == 0;
        if (event.result == Result::kOk && at->revision == 0) return false;
        *at = NameAt{};
        return true;
      case Event::Kind::kSet:
        if (event.result == Result::kConflict)
          return Is(at, event.revision, greatest) && event.revision != *event.if_revision;
        if (event.if_revision.has_value() && !Is(at, *event.if_revision, greatest)) return false;
        if (event.revision != kUntold && event.revision <= *greatest) return false;
        if (event.revision != kUntold) *greatest = event.revision;
        *at = {event.revision, event.value};
        return true;
    }
    return false;
  }

  std::vector<Event> events_;
  std::vector<bool> done_;
  std::set<uint64_t> told_;
  size_t left_ = 0, first_ = 0, fewest_left_ = SIZE_MAX;
  uint64_t hash_ = 0;
  std::set<std::tuple<uint64_t, uint64_t, uint64_t>> visited_;
  NameAt stuck_;
};

}  // namespace

std::string Event::ToString() const {
  static constexpr const char* kKinds[] = {"Set", "Get", "Describe", "Delete"};
  static constexpr const char* kResults[] = {"OK", "ABORTED", "NOT_FOUND", "no answer"};
  std::string text = absl::StrCat(called, "..", answered == INT64_MAX ? "" : absl::StrCat(answered), " client ", client,
                                  " ", kKinds[static_cast<int>(kind)]);
  if (if_revision.has_value()) absl::StrAppend(&text, " if_revision=", *if_revision);
  absl::StrAppend(&text, " value=", value, " -> ", kResults[static_cast<int>(result)], " revision=", revision);
  return text;
}

std::optional<std::string> Unexplained(std::vector<Event> events, const NameAt& initial,
                                       const std::optional<NameAt>& last) {
  if (last.has_value()) {
    Event read;
    read.result = last->revision == 0 ? Event::Result::kMiss : Event::Result::kOk;
    read.called = INT64_MAX - 1;
    read.revision = last->revision;
    read.value = last->value;
    read.client = -1;
    // What has no answer took place before, or never.
    events.push_back(read);
  }
  Search search(std::move(events), initial);
  if (search.Run(initial, initial.revision)) return std::nullopt;
  return search.Stuck();
}

}  // namespace statepool::model
