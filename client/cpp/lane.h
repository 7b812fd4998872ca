// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The fast lane: Pool::Get, GetInto and Set of whole large states through small arenas that the pool keeps for itself,
// when the daemon is on this machine. For the files of client/cpp alone.
//
// To the caller it is the inline way (the one message of Get or Set), only faster: same arguments, answers and errors.
// What the lane can't do, or can't do now, goes inline. Not for the lane, ever:
//   - parts, streams and batches;
//   - a request_id of the caller's: to the daemon a Store and a Set with the same id are two requests, and nobody knows
//     which of them a later retry, or one of another process, will be. For the same reason a Set stays on the lane when
//     an attempt there may have stored it;
//   - a layout given by its alias, unless it was seen to be that of the sequence's newest version, and that is still
//     the newest: otherwise the lane can't tell what it stands for.
#ifndef STATEPOOL_CLIENT_CPP_LANE_H_
#define STATEPOOL_CLIENT_CPP_LANE_H_

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cpp/statepool.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::client {

// The arenas of a pool's fast lane. Thread-safe; in a forked child everything goes inline.
class Lane {
 public:
  // Smaller states go inline: from about half of this on the lane is faster, from here on clearly.
  static constexpr uint64_t kStateBytesMin = 256 << 10;
  // So many calls with states of a layout find no row before one more is made: that costs about what so many calls
  // save.
  static constexpr int kCallsMin = 8;
  // Arenas of one row (calls on one arena take turns) for each layout, at most: as many as threads were in such calls
  // at once.
  static constexpr size_t kRowsMax = 4;
  // All arenas of a lane, with the slots that the daemon reserves for them, have at most this part of
  // Capabilities.max_arena_bytes.
  static constexpr uint64_t kShare = 16;
  // How long a call may be held up by opening an arena that then is not to be had, and how long none is opened after.
  static constexpr absl::Duration kOpenTimeout = absl::Seconds(2);
  static constexpr absl::Duration kPause = absl::Seconds(30);

  // `pool` must not have a lane itself, and is tried once for each call.
  explicit Lane(const Pool& pool);
  ~Lane();  // without a word to the daemon, which sees the sockets hang up
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // Take note of an answer, of either way. `layout` is what the request said.
  void Learn(const v1::NameInfo& info, absl::string_view layout);
  void LearnLayout(const v1::LayoutInfo& info);

  // The answer of Get without data, whose bytes are then in the room that `room` gave for so many; nothing: ask inline.
  // Verified if so asked, else CORRUPT. `bytes`: how many the caller has room for, if that is decided. Errors: those of
  // Get.
  std::optional<absl::StatusOr<v1::GetResponse>> Get(const v1::GetRequest& request, std::optional<uint64_t> bytes,
                                                     absl::FunctionRef<char*(uint64_t bytes)> room, bool verify,
                                                     absl::Time deadline);

  struct SetOutcome {
    std::optional<absl::StatusOr<v1::NameInfo>> answer;  // of Set; nothing: try inline, with the same request_id
    absl::Status doubt;  // not OK: the error of an attempt that may have stored it. Inline, REQUEST_ID_REUSED tells
                         // that it has
    int attempts = 0;    // that were used up
  };
  // REQUIRES: request.request_id is of this client's making. A checksum that the pieces don't have is inline's to tell.
  SetOutcome Set(const v1::SetRequest& request, absl::Span<const absl::string_view> pieces, int max_attempts,
                 absl::Time deadline);

  bool HasRows() const { return bytes_ > 0; }
  // Gives the daemon back what no call uses now, for an arena of the caller's own; whether there was anything.
  bool GiveWay();

 private:
  struct Slot;
  // A row for one call, given back at its end.
  class Taken;
  struct Seen {
    std::string layout;  // fingerprint
    uint64_t revision = 0;
    std::string alias;  // of the layout, then
  };

  bool IsForked() const;
  // A row for a state of this layout, which is to have so many bytes if that is known; null: there is none for it now.
  std::shared_ptr<Slot> Take(const std::string& layout, std::optional<uint64_t> bytes);
  // Errors: those of Pool::OpenArena and others.
  absl::StatusOr<std::shared_ptr<Slot>> Open(const std::string& layout, uint64_t state_bytes);
  // Drops the slot unless it is good for other calls: after an error that passes, to which there was an answer.
  void Failed(const std::shared_ptr<Slot>& slot, const absl::Status& error, bool answered);
  void PauseLocked();

  const pid_t pid_;
  std::unique_ptr<const Pool> pool_;
  std::atomic<uint64_t> bytes_ = 0;  // of all slots and what is reserved for them

  // Of what follows. std, for ThreadSanitizer does not see into Debian's Abseil.
  std::mutex mu_;
  absl::flat_hash_map<std::string, std::vector<std::shared_ptr<Slot>>> slots_;  // by fingerprint, as all here
  absl::flat_hash_map<std::string, int> calls_;                                 // those that no slot was there for
  std::optional<uint64_t> bytes_max_;                                           // unknown before somebody asked
  bool opening_ = false;
  std::chrono::steady_clock::time_point paused_until_;
  // What was seen of large states: sizes of layouts, and layouts and revisions of names. Hints, which the daemon
  // checks.
  absl::flat_hash_map<std::string, uint64_t> sizes_;
  absl::flat_hash_map<std::pair<int, std::string>, Seen> names_;  // by kind and name
  std::string newest_;                                            // layout of the newest answer; empty: a small state
};

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_LANE_H_
