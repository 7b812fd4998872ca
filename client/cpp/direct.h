// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Direct ways: the daemon's slots in this process, and the lease through which they come. What they promise stands in
// proto/statepool/v1/statepool.proto (DIRECT). For the files of client/cpp alone. Linux only.
//
// Whatever is not to be had directly goes the other ways, so most functions here say "nothing" instead of why.
#ifndef STATEPOOL_CLIENT_CPP_DIRECT_H_
#define STATEPOOL_CLIENT_CPP_DIRECT_H_

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cpp/mapping.h"
#include "client/cpp/statepool.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::client {

// An extent in this process; unmapped with its last owner. Immutable, so thread-safe.
class Extent {
 public:
  // Maps `chunks` side by side, each of which is an equal part of the extent. Errors: INTERNAL (BAD_MEMORY) for what
  // would not be safe to use, RESOURCE_EXHAUSTED (MAPPING_FAILED).
  static absl::StatusOr<std::shared_ptr<const Extent>> Map(absl::Span<const Descriptor> chunks, uint64_t id,
                                                           uint64_t bytes, bool writable);
  ~Extent();
  Extent(const Extent&) = delete;
  Extent& operator=(const Extent&) = delete;

  uint64_t id() const { return id_; }
  char* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // All pages are there then, and a forked child does not get them. Else reading is all that is allowed.
  bool writable() const { return writable_; }

 private:
  Extent(uint64_t id, char* data, uint64_t bytes, bool writable)
      : pid_(getpid()), id_(id), data_(data), bytes_(bytes), writable_(writable) {}

  const pid_t pid_;
  const uint64_t id_;
  char* const data_;
  const uint64_t bytes_;
  const bool writable_;
};

// A connection that is a direct lease, and what came over it. It ends with its last owner, who thereby gives everything
// back. Thread-safe: a lock is held while the daemon is asked for a descriptor, at most kAnswerTimeout.
//
// A thread of its own reads what the daemon sends, so that a client without calls gives back too what the daemon wants:
// extents, as soon as nothing there is in use. It also gives back grants that nobody took for kStockIdle, or all that
// wait when the daemon had to refuse somebody room. It does not own the lease, and ends with it.
//
// In a forked child it is the parent's: nothing is sent, and nothing can be had. What it consists of there, but for the
// connection, is never freed: the thread may have been at work on it when the process forked.
class DirectLease : public std::enable_shared_from_this<DirectLease> {
 public:
  // Of extents without a slot in use, so many bytes stay mapped; and at most the kIdleShare-th part of
  // Capabilities.max_pinned_bytes.
  static constexpr uint64_t kIdleBytesMax = uint64_t{1} << 30;
  static constexpr uint64_t kIdleShare = 4;
  // Grants kept for each layout: at most so many, and so many bytes, and the kStockShare-th part of
  // Capabilities.max_granted_bytes; but always one.
  static constexpr size_t kStockMax = 8;
  static constexpr uint64_t kStockBytesMax = 64 << 20;
  static constexpr uint64_t kStockShare = 16;
  static constexpr std::chrono::milliseconds kStockIdle{1000};
  static constexpr absl::Duration kAnswerTimeout = absl::Seconds(5);
  // How long no grants are asked for after the daemon had none.
  static constexpr absl::Duration kGrantPause = absl::Seconds(1);

  // Of `daemon` only the two limits above matter. Null: there is no thread or descriptor to be had.
  static std::shared_ptr<DirectLease> Make(std::string id, Descriptor socket, const v1::Capabilities& daemon);
  DirectLease(const DirectLease&) = delete;
  DirectLease& operator=(const DirectLease&) = delete;

  const std::string& id() const { return id_; }
  // Reads what the daemon sent meanwhile. False: it hung up or did not answer, so nothing more can be had. Memory that
  // is held stays.
  bool Poll();

  // A pinned state, which is given back at the end. Keeps the lease.
  class Held {
   public:
    Held(std::shared_ptr<DirectLease> lease, std::shared_ptr<const Extent> extent, const v1::Slot& slot)
        : lease_(std::move(lease)), extent_(std::move(extent)), slot_(slot) {}
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() { lease_->Unpin(slot_.id(), std::move(extent_)); }

    const char* data() const { return extent_->data() + slot_.offset(); }

   private:
    const std::shared_ptr<DirectLease> lease_;
    std::shared_ptr<const Extent> extent_;
    const v1::Slot slot_;
  };
  // The state of so many bytes in a slot that a Get or Load pinned. Errors: those of Extent::Map; UNAVAILABLE; INTERNAL
  // (BAD_ANSWER). The pin is given back then.
  absl::StatusOr<std::unique_ptr<const Held>> Hold(const v1::Slot& slot, uint64_t bytes);

  // A slot to write a state into, until a call names it.
  struct Granted {
    v1::Slot slot;
    std::shared_ptr<const Extent> extent;

    char* data() const { return extent->data() + slot.offset(); }
  };
  // So many grants for states of a layout (a fingerprint), from the stock or newly granted. Errors: those of Grant and
  // Hold; RESOURCE_EXHAUSTED when there are fewer now. None are taken then: those that there are stay in the stock, or
  // are given back where they are more than that.
  absl::StatusOr<std::vector<Granted>> Take(const Pool& pool, const std::string& layout, uint64_t state_bytes,
                                            size_t count, absl::Time deadline);
  // Grants that no call named: into the stock, and to the daemon what is too much there.
  void PutBack(const std::string& layout, std::vector<Granted> grants);

 private:
  DirectLease(std::string id, Descriptor socket, Descriptor wake, const v1::Capabilities& daemon);
  ~DirectLease();
  // Of the last owner.
  static void End(DirectLease* lease);

  bool IsForked() const;
  size_t StockOf(uint64_t state_bytes) const;
  void Unpin(uint64_t pin, std::shared_ptr<const Extent> extent);

  void Work();  // the thread
  void Wake();

  // REQUIRES: mu_ is held.
  absl::StatusOr<std::shared_ptr<const Extent>> ExtentLocked(uint64_t id);
  // The extent of a slot that lies within it.
  absl::StatusOr<std::shared_ptr<const Extent>> ExtentOfLocked(const v1::Slot& slot, uint64_t bytes, bool writable);
  // One event, waiting for it until then (InfinitePast: not at all). Nothing: there is none, or none that can be read.
  std::optional<v1::LeaseEvent> ReceiveLocked(absl::Time deadline, std::vector<Descriptor>* descriptors);
  void HandleLocked();  // all events that are there
  void SendLocked();    // what is to be told; what can't be sent now, goes with the next or when the thread can
  // Unmaps what the daemon wants back and what is too much, if no slot there is in use, and takes note to tell.
  void TidyLocked();
  // Grants of the stock in extents that the daemon wants back, and all that were not used for kStockIdle.
  void TidyStockLocked();
  bool HasToTellLocked() const;
  // When the thread has something to do of itself; nothing: not before it is woken.
  std::optional<std::chrono::steady_clock::time_point> NextWorkLocked() const;

  struct Mapped {
    std::shared_ptr<const Extent> extent;
    bool wanted_back = false;
    uint64_t last_use = 0;
  };
  struct Stock {
    std::vector<Granted> grants;
    size_t max = 1;
    std::chrono::steady_clock::time_point last_use;
  };

  const std::string id_;
  const pid_t pid_;
  const uint64_t idle_bytes_max_, stock_bytes_max_;
  Descriptor socket_;
  Descriptor wake_;  // an eventfd
  std::thread thread_;

  // Of what follows. std, for ThreadSanitizer does not see into Debian's Abseil.
  std::mutex mu_;
  bool ending_ = false;
  bool sleeps_ = false;   // the thread waits for events alone
  bool broken_ = false;   // nothing more can be asked for; what is given back is still told
  bool hung_up_ = false;  // nor that
  absl::flat_hash_map<uint64_t, Mapped> extents_;
  uint64_t uses_ = 0;
  uint64_t mapped_bytes_ = 0;
  bool any_wanted_back_ = false;
  bool any_written_ = false;                       // of these: grants, whose ends are not told here
  v1::LeaseRequest to_tell_;                       // pins, grants and extents that are given back
  absl::flat_hash_map<std::string, Stock> stock_;  // by fingerprint
  absl::Time no_grants_until_ = absl::InfinitePast();
};

// The direct lease of a pool, opened on first need, and again when it was lost. Thread-safe; in a forked child there is
// none.
class Direct {
 public:
  // Smaller states travel in messages.
  static constexpr uint64_t kStateBytesMin = 64 << 10;
  // How long a call may be held up by opening a lease that then is not to be had, and how long none is opened after;
  // the latter where nobody answered.
  static constexpr absl::Duration kOpenTimeout = absl::Seconds(2);
  static constexpr absl::Duration kPause = absl::Seconds(30);
  static constexpr absl::Duration kBriefPause = absl::Seconds(1);

  // `pool` must not have direct ways itself, and is tried once for each call.
  explicit Direct(const Pool& pool);
  ~Direct();

  // Null: there is none now.
  std::shared_ptr<DirectLease> Lease(absl::Time deadline);
  // What an error of a call that named the lease, or of the lease itself, says of it. Where it is lost, or may have
  // pins or grants that nobody knows of (there was no answer), another one is opened at the next need. What it holds
  // stays valid.
  void Judge(const std::shared_ptr<DirectLease>& lease, const absl::Status& error);
  // The same, whatever the error.
  void Retire(const std::shared_ptr<DirectLease>& lease);

  // Takes note of an answer, of any way.
  void Learn(const v1::NameInfo& info);
  // Whether a Get that does not say how large the state is may be worth it: by the newest answer.
  bool expects_large() const { return expects_large_; }

  // The state, where it lies; nothing: ask another way. Errors: those of Get.
  std::optional<absl::StatusOr<StateView>> Get(const v1::GetRequest& request, absl::Time deadline);

  struct SetOutcome {
    std::optional<absl::StatusOr<v1::NameInfo>> answer;  // of Set; nothing: try inline, with the same request
    int attempts = 0;                                    // that were used up
  };
  // Sets request.checksum, and request.request_id if that is empty, before it is sent; what was not sent is as it was.
  SetOutcome Set(v1::SetRequest* request, absl::Span<const absl::string_view> pieces, int max_attempts,
                 absl::Time deadline);

 private:
  struct Layout {
    std::string fingerprint;
    uint64_t state_bytes = 0;
  };

  bool IsForked() const;
  absl::StatusOr<std::shared_ptr<DirectLease>> Open(absl::Time deadline) const;
  void PauseLocked(const absl::Status& error);
  // Of the state that a Set is of; nothing: unknown.
  std::optional<Layout> LayoutOf(const v1::SetRequest& request, absl::Time deadline);

  const pid_t pid_;
  std::unique_ptr<const Pool> pool_;
  std::atomic<bool> expects_large_ = false;

  std::mutex mu_;  // of what follows
  std::shared_ptr<DirectLease> lease_;
  bool opening_ = false;
  std::chrono::steady_clock::time_point paused_until_;
  absl::flat_hash_map<std::string, Layout> layouts_;         // by alias or fingerprint
  absl::flat_hash_map<std::string, std::string> layout_of_;  // fingerprints by sequence. Hints, which the daemon checks
};

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_DIRECT_H_
