// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Arenas: memory that the daemon owns and workers map, and the copies between it and slots. What an arena is to its
// worker stands in the .proto (ARENAS).
//
// An arena's life: *waiting* from Open until its token is used; *leased* while its worker's connection lasts; *ended*
// by Close, a hang-up, the death of the worker's process, or when its device fails. An ended arena's contents and its
// reserved slots go at once, as soon as no copy uses them; the memory itself is in *quarantine*, and counts against the
// budget, until nobody can write to it any more or the process is gone. It is then destroyed: never used again, for
// nobody.
//
// Of a row only its base is known here: which version of which name it was last loaded from or stored as.
//
// Arenas of the ranks of tensor parallelism store parts of states. A version of them is published by the Store that
// brings its last part (part_assembly.h). The ranks may be on different devices: the slot that they fill lies on one of
// them, and each rank's device copies its part there, and at a Load from there, by itself where it reaches that one's
// memory. Where it does not, a Store goes through a slot of the rank's own device and the host, and a Load finds the
// whole state brought to its device.
//
// One Load, Store or Advance runs on an arena at a time; others wait, within their deadlines. The bytes move on the
// CopyScheduler's threads, or, where the CPU can't reach them, by the device itself (RowCopier). A thread of its own
// ends what nobody connected to and frees what is in quarantine; another reserves slots anew, and may wait for the
// disk.
//
// Calls with flag words (the .proto tells what they are for) wait for them in the FlagWaiter, without a thread. Those
// of an arena whose words are reached are run by one thread at a time, lent by whoever serves calls, in the order in
// which they were made, each in the arena's turn like any other. A Load that is to be answered before its copy pins
// what it found, within a limit of all arenas, and takes the turn when its word is reached: so a Store that its stream
// waits for is never behind it.
#ifndef STATEPOOL_SERVER_MEMORY_ARENAS_H_
#define STATEPOOL_SERVER_MEMORY_ARENAS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/core/store.h"
#include "server/core/view.h"
#include "server/memory/copy_scheduler.h"
#include "server/memory/device.h"
#include "server/memory/flag_waiter.h"
#include "server/memory/flag_words.h"
#include "server/memory/leases.h"
#include "server/memory/part_assembly.h"
#include "server/memory/state_io.h"

namespace statepool {

struct ArenaOptions {
  uint32_t max_arenas = 1024;                   // waiting, leased and in quarantine
  uint64_t max_bytes = 0;                       // of all on one device, and of the slots reserved for them
  uint64_t granule_bytes = kDefaultChunkBytes;  // their memory counts in multiples of this: the device's chunks
  uint32_t max_rows = kMaxArenaRows;
  uint32_t max_steps = kMaxArenaSteps;
  absl::Duration token_timeout = absl::Seconds(1);
  // What the images of one pass of a Load may have together: they are pinned at the same time. One alone may have more.
  // And what all Loads may have that were answered before their copies.
  uint64_t max_pinned_bytes = 256 << 20;
  uint64_t max_attachment_bytes = 16 << 20;  // that the answer of one Load has
  PartAssemblyOptions parts{};
  uint32_t max_waiting = 16;       // calls that wait for their turn, on all arenas; each holds a thread
  uint32_t max_flag_waits = 1024;  // calls that wait for flag words, on all arenas
  uint32_t max_arena_flag_waits = 64;
  absl::Duration max_late_wait = absl::Seconds(60);  // for a word
};

// Where arenas' memory comes from: the devices of hot slots, at least one. An arena copies to and from slots of its own
// device; of ranks' parts also of those that it Reaches. `staging`: what parts go through between devices that don't
// reach each other; null where the CPU reaches them all. `allocate` makes room as a write does; `freed` is called when
// some was destroyed.
struct ArenaMemory {
  std::vector<Device*> devices;
  std::function<absl::StatusOr<std::unique_ptr<SharedExtent>>(const Op& op, TenantId tenant, uint64_t bytes,
                                                              const Device* on)>
      allocate;
  std::function<void()> freed;
  StagingPool* staging = nullptr;
};

// Takes a pinned image over, for a worker that copies itself.
using HoldPin = std::function<absl::StatusOr<LeasedSlot>(Pin pin)>;

// ---- requests and answers mirror the .proto's
// An item may be refused already by whoever made it: then that is its status, and nothing else of it counts but its row
// and its sequence.

struct OpenArenaRequest {
  std::string layout;
  uint32_t rows = 0, steps = 0;
  View view;
  std::string device{};  // its name; empty: the first that has not failed
  bool with_flags = false;
};
struct OpenedArena {
  std::string id, token;
  std::string device;
  LayoutRef layout;
  std::shared_ptr<const ArenaShape> shape;
  uint32_t flag_words = 0;
};
struct LoadItem {
  absl::Status refused;
  uint32_t row = 0;
  Source source;  // its layout is the arena's, whatever stands there
  bool row_unmodified = false, with_attachment = false;
};
struct LoadedRow {
  absl::Status status;
  NameInfo info;
  std::string attachment;
  bool copied = false;
  std::optional<LeasedSlot> slot;  // to be copied by the caller
};
struct LoadAnswer {
  std::vector<LoadedRow> rows;
  absl::Duration copy_time;
};
struct StoreItem {
  absl::Status refused;
  uint32_t row = 0;
  SetRequest set;  // without `select`; its layout is the arena's
  std::string attachment;
  ImageRef image;  // what the worker made of the row; null: it is to be copied
  std::optional<uint32_t> accepted_length;
  std::vector<uint32_t> path{};
  bool any_revision = false, whole_row = false;
  bool advance = false, skip_none = false;
  uint64_t align = 0;
};
struct StoredRow {
  absl::Status status;
  NameInfo info;
  uint32_t parts_missing = 0;  // of ranks that have not stored theirs: then there is no info
  bool skipped = false;        // nothing was asked for: no info
};
struct StoreAnswer {
  std::vector<StoredRow> rows;
  bool done = true;
  absl::Duration copy_time;
};

struct AdvanceItem {
  uint32_t row = 0;
  std::optional<uint32_t> accepted_length{};
  std::vector<uint32_t> path{};
  std::optional<uint32_t> to_row{};
};
struct AdvanceRequest {
  std::vector<AdvanceItem> items;
  AdvanceRules rules{};
  std::string request_id{};
};
struct AdvancedRow {
  absl::Status status;
  AdvanceOutcome outcome = AdvanceOutcome::kMoved;  // if it is OK
};
struct AdvanceAnswer {
  std::vector<AdvancedRow> rows;
  absl::Duration copy_time;
};

// A moment, for metrics.
struct ArenaStats {
  uint64_t waiting = 0, leased = 0, quarantined = 0;
  uint64_t leased_bytes = 0, quarantined_bytes = 0;  // of the budget, without slots; waiting ones count as leased
  uint64_t reserved_slots = 0;
  uint64_t slots_to_arenas_bytes = 0, arenas_to_slots_bytes = 0;  // since the start
  uint64_t flag_waits = 0, flag_pinned_bytes = 0;
  uint64_t late_failures = 0;  // Loads and Advances that failed after their answer, since the start
};

// Thread-safe. Errors: the .proto's; what is said of items, in their status.
class Arenas {
 public:
  // Takes what is to be run on a thread that may block; never blocks, nor runs it itself. Errors: not now.
  using Run = std::function<absl::Status(absl::AnyInvocable<void()> task)>;
  template <typename Answer>
  using Answered = absl::AnyInvocable<void(absl::StatusOr<Answer>)>;

  // Everything must outlive this.
  Arenas(ArenaOptions options, Store* store, ImageStore* images, ArenaMemory memory, CopyScheduler* copies,
         const Clock* clock);
  ~Arenas();  // ends all. REQUIRES: no call is under way, and what was given to `run` is or will be run
  Arenas(const Arenas&) = delete;
  Arenas& operator=(const Arenas&) = delete;

  const ArenaOptions& options() const { return options_; }

  // These block.
  absl::StatusOr<OpenedArena> Open(const Op& op, const OpenArenaRequest& request);
  // With `hold` nothing is copied: it gets each image that would be, once. After an error it may have got some.
  absl::StatusOr<LoadAnswer> Load(const Op& op, absl::string_view arena, absl::Span<const LoadItem> items,
                                  const HoldPin& hold = nullptr);
  absl::StatusOr<StoreAnswer> Store(const Op& op, absl::string_view arena, absl::Span<const StoreItem> items,
                                    bool all_or_none);
  absl::StatusOr<AdvanceAnswer> Advance(const Op& op, absl::string_view arena, const AdvanceRequest& request);
  // The same for calls with flag words. `answered` is called once, by this thread before it returns, or later by
  // another that may not block for long; `op.cancelled` is looked at until then. This thread may then copy for the
  // arena.
  void Load(const Op& op, absl::string_view arena, std::vector<LoadItem> items, const CallFlags& flags,
            Answered<LoadAnswer> answered);
  void Store(const Op& op, absl::string_view arena, std::vector<StoreItem> items, bool all_or_none,
             const CallFlags& flags, Answered<StoreAnswer> answered);
  void Advance(const Op& op, absl::string_view arena, AdvanceRequest request, const CallFlags& flags,
               Answered<AdvanceAnswer> answered);
  // Where such calls go on when their words are reached. REQUIRES: none was made yet.
  void GoOnWith(Run run);
  // No call waits for a word any more: those that do are answered, or fail, with DRAINING. After it `run` is not
  // called.
  void DrainFlags();
  // Frees the memory before it returns, if nobody has it mapped and no call is under way.
  absl::Status Close(const Op& op, absl::string_view arena);

  // ---- for whoever hands the memory out (rpc/arena_socket.h). None blocks.

  struct Lease {
    std::string arena;
    int fd = -1;  // of its memory: the caller's to close
    uint64_t bytes = 0;
    uint64_t mapped_bytes = 0;  // of all the memory that `fd` is: what importing it on a GPU must name
    int flags_fd = -1;          // of its flag words, if it has some: the caller's to close
  };
  // Uses a token up. Errors: TOKEN_INVALID; NO_DESCRIPTORS, and the token is good again.
  absl::StatusOr<Lease> Connect(absl::string_view token);
  void LeaseEnded(absl::string_view arena);   // its connection is gone
  void ProcessGone(absl::string_view arena);  // and so is the process
  // Its worker says that it has unmapped the memory. Believed where the device can't tell itself
  // (SharedExtent::Revoke): then the memory is destroyed as soon as the lease has ended. Elsewhere nothing happens.
  void Unmapped(absl::string_view arena);
  bool IsGone(absl::string_view arena) const;  // its memory is destroyed: there is nothing to watch any more
  // Every lease ends, as if all processes were gone, and the memory is destroyed. REQUIRES: no call is under way.
  void EndAll();

  ArenaStats stats() const;

  // Aborts when the arenas contradict themselves. For tests.
  void CheckInvariants() const;

 private:
  struct Arena;
  class Turn;  // the one call that runs on an arena
  class Done;  // the word that a call sets
  struct LateLoad;
  struct LateAdvance;
  struct Found;
  using ArenaRef = std::shared_ptr<Arena>;
  using FlaggedCall = absl::AnyInvocable<void(absl::Status why)>;  // OK: it may go on, on this thread
  enum class Queue { kLimited, kUnlimited };                       // of those that wait for their turn

  absl::StatusOr<Device*> DeviceFor(const OpenArenaRequest& request) const;
  absl::StatusOr<ArenaRef> Find(const Op& op, absl::string_view id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Gone(absl::string_view id) const;
  absl::Status Take(const Op& op, absl::string_view id, Queue queue, ArenaRef* arena) ABSL_LOCKS_EXCLUDED(mu_);
  void GiveBack(Arena* arena) ABSL_LOCKS_EXCLUDED(mu_);
  void EndLocked(Arena* arena) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Free(const ArenaRef& arena) ABSL_LOCKS_EXCLUDED(mu_);
  bool FreeInTurn(const ArenaRef& arena) ABSL_LOCKS_EXCLUDED(mu_);

  absl::StatusOr<LoadAnswer> LoadInTurn(const Op& op, absl::string_view id, absl::Span<const LoadItem> items,
                                        const HoldPin& hold, Queue queue);
  absl::StatusOr<StoreAnswer> StoreInTurn(const Op& op, absl::string_view id, absl::Span<const StoreItem> items,
                                          bool all_or_none, Queue queue, Done* done);
  absl::StatusOr<Found> FindStates(const Op& op, Arena* arena, absl::Span<const LoadItem> items,
                                   std::vector<size_t>* waiting, LateLoad* late, LoadAnswer* answer);
  absl::Status CopyIntoRows(const Op& op, Arena* arena, absl::Span<const LoadItem> items,
                            absl::Span<const size_t> copied, absl::Span<absl::StatusOr<GetAnswer>> found,
                            const HoldPin& hold, LoadAnswer* answer);
  absl::StatusOr<std::vector<ImageRef>> CopyFromRows(const Op& op, Arena* arena, absl::Span<const StoreItem> items,
                                                     absl::Span<const size_t> stored,
                                                     absl::Span<const ToStore> to_store, StoreAnswer* answer);

  // ---- arena_flags.cc
  absl::StatusOr<ArenaRef> FindFlagged(const Op& op, absl::string_view id, const CallFlags& flags) const
      ABSL_LOCKS_EXCLUDED(mu_);
  void LoadLate(const Op& op, const ArenaRef& arena, std::vector<LoadItem> items, const CallFlags& flags,
                Answered<LoadAnswer> answered) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<bool> Enqueue(const ArenaRef& arena, const Op& op, const std::optional<FlagValue>& after,
                               FlaggedCall call) ABSL_LOCKS_EXCLUDED(mu_);
  void Reached(const ArenaRef& arena, absl::Status why, FlaggedCall call) ABSL_LOCKS_EXCLUDED(mu_);
  void Schedule(const ArenaRef& arena) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ScheduleAgain() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RunReady(const ArenaRef& arena) ABSL_LOCKS_EXCLUDED(mu_);
  Op WaitOf(const Op& op) const;
  absl::StatusOr<LoadAnswer> Prepare(const Op& op, LateLoad* late) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status ReservePins(LateLoad* late, uint64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  void Copy(LateLoad* late, absl::Status status) ABSL_LOCKS_EXCLUDED(mu_);
  void Spoil(Arena* arena, absl::Span<const uint32_t> rows, const absl::Status& why) ABSL_LOCKS_EXCLUDED(mu_);

  // ---- arena_advance.cc
  absl::StatusOr<AdvanceAnswer> AdvanceInTurn(const Op& op, absl::string_view id, const AdvanceRequest& request,
                                              Queue queue);
  absl::Status MoveRows(const Op& op, Arena* arena, absl::Span<const AdvanceMove> moves, absl::Duration* copy_time);
  absl::Status MoveRowsBy(const Op& op, Arena* arena, absl::Span<const AdvanceMove> moves, absl::string_view request_id,
                          absl::Duration* copy_time);
  bool IsReplay(const Op& op, const SetRequest& request, const Image& image) const;
  absl::StatusOr<bool> AnswerAdvanced(const Op& op, const Arena& arena, const StoreItem& item, StoredRow* answer);
  absl::Status AdvanceStored(const Op& op, Arena* arena, absl::Span<const StoreItem> items,
                             absl::Span<const ToStore> to_store, const std::vector<bool>& answered,
                             StoreAnswer* answer);
  void Move(LateAdvance* late, absl::Status status) ABSL_LOCKS_EXCLUDED(mu_);

  // The same for an arena of a rank's parts (arena_parts.cc): null, too, where parts of other ranks are missing.
  // *assemblies, parallel to `stored`, has those that the images complete, which are to be published or dropped.
  absl::StatusOr<std::vector<ImageRef>> CopyParts(const Op& op, const ArenaRef& arena,
                                                  absl::Span<const StoreItem> items, absl::Span<const size_t> stored,
                                                  absl::Span<const ToStore> to_store,
                                                  std::vector<PartAssemblies::Ref>* assemblies, StoreAnswer* answer);

  absl::StatusOr<PartAssemblies::Joined> JoinParts(const Op& op, const ArenaRef& arena, const StoreItem& item,
                                                   int64_t position);
  struct Reserved {
    PartAssemblies::Slot slot;  // no writer: there was none
    ArenaRef of;                // null: of none
  };
  Reserved TakeReserved(const ArenaRef& arena, bool elsewhere_too);
  void PutBack(Reserved reserved);
  absl::Status ScatterOver(const Op& op, const ArenaRef& arena, const RowCopier::ScatterItem& item, Device* home);
  static absl::Status CheckPart(const StoreItem& item);
  void SettleRow(Arena* arena, uint32_t row) const;  // takes note of what became of the version it is a part of

  void Loop(bool (Arenas::*once)(), CondVar* wake);
  bool FreeOnce() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool ReserveOnce() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const ArenaOptions options_;
  statepool::Store* const store_;
  ImageStore* const images_;
  const ArenaMemory memory_;
  CopyScheduler* const copies_;
  const Clock* const clock_;

  mutable Mutex mu_;
  CondVar turns_;                 // a turn was given back, an arena ended, or nobody runs flagged calls any more
  CondVar to_free_, to_reserve_;  // the keeper, and the reserver, may have something to do
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::flat_hash_map<std::string, ArenaRef> arenas_ ABSL_GUARDED_BY(mu_);  // until their memory is destroyed
  // Of arenas_ and of those being opened, as max_bytes counts.
  absl::flat_hash_map<const Device*, uint64_t> bytes_ ABSL_GUARDED_BY(mu_);
  uint32_t opening_ ABSL_GUARDED_BY(mu_) = 0;
  ArenaStats stats_ ABSL_GUARDED_BY(mu_);  // its counters since the start

  PartAssemblies parts_;

  uint32_t waiting_ ABSL_GUARDED_BY(mu_) = 0;               // calls that wait for their turn
  uint32_t runners_ ABSL_GUARDED_BY(mu_) = 0;               // arenas whose calls with flag words are being run
  Run run_ ABSL_GUARDED_BY(mu_);                            // null: after DrainFlags
  std::vector<ArenaRef> unscheduled_ ABSL_GUARDED_BY(mu_);  // of these, those that `run` did not take

  FlagWaiter waiter_;
  std::thread keeper_, reserver_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_ARENAS_H_
