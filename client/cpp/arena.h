// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Arenas: memory that the daemon of this machine and this process share, so that states travel without messages. What
// they promise stands in proto/statepool/v1/statepool.proto (ARENAS, Load, Store). Linux only.
//
//   absl::StatusOr<std::unique_ptr<Arena>> arena = pool.OpenArena("my-model", {.rows = 64});
//   (*arena)->Load({LoadRow(0, SequenceRef("chat/42"))});
//   float* state = static_cast<float*>((*arena)->tensors()[0].data);  // [row, ...]; strides in bytes
//   ...                                                               // a model computes on it
//   (*arena)->Store({StoreRow(0, "chat/42", /*position=*/129)});
//
// Errors, beside those of errors.h:
//   CONTENTS_GONE       ABORTED: the daemon had lost the arena, with its restart as a rule, and it is open again at the
//                       same addresses. All rows are zeros and must be loaded again. Nothing was loaded; a Store that
//                       this ended is whole or absent (metadata: incarnation, arena)
//   ARENA_CHANGED       FAILED_PRECONDITION: the daemon lays it out in another way than before: open a new one
//   ARENA_CLOSED        FAILED_PRECONDITION: it was closed
//   FORKED              FAILED_PRECONDITION: it is that of the process that this one was forked from
//   SOCKET_UNREACHABLE  UNAVAILABLE: the daemon is on another machine, or gone
//   TOKEN_INVALID, PEER_REFUSED, PEER_UNKNOWN, TOO_MANY_CONNECTIONS, NO_DESCRIPTORS
//                       the daemon refused the connection (ARENAS)
//   MAPPING_FAILED      RESOURCE_EXHAUSTED: this process has no room for it; FAILED_PRECONDITION: it is in a GPU's
//                       memory, and this client was built without CUDA, there is no driver, or this process does not
//                       see the GPU
//   STREAM_CAPTURING    FAILED_PRECONDITION: the stream is being captured into a graph, which can't have loads or
//                       stores: call them before or after the capture, or give them another stream
//   GPU_FAILED          INTERNAL: this process's context on the GPU refused a copy; as a rule it is of no use any more,
//                       and the process has to be started anew. A row that was to be loaded counts as never loaded, and
//                       nothing was stored
//   NOT_DONE_YET        DEADLINE_EXCEEDED, of PendingStore::Wait: the store goes on
//   BAD_MEMORY, BAD_ANSWER   INTERNAL: what the daemon gave would not be safe to use
#ifndef STATEPOOL_CLIENT_CPP_ARENA_H_
#define STATEPOOL_CLIENT_CPP_ARENA_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cpp/statepool.h"
#include "statepool/v1/statepool.pb.h"

struct CUstream_st;

namespace statepool {
class AdvancePlan;
class CopyPlan;
struct AdvanceMove;
struct ToStore;
}  // namespace statepool

namespace statepool::client {

class Gpu;
class GpuCopies;
class InFlight;
class Lane;
class Range;
class Storing;
struct DirectGrants;
struct Lease;

struct ArenaOptions {
  uint32_t rows = 64;
  uint32_t steps = 0;  // states that a row holds, for speculative decoding: 0 (one, without an axis of its own) ..
                       // Capabilities.max_arena_steps
  v1::View view = {};  // unset: the layout's own axes, a tensor for each layer
  // This process copies, not the daemon, where it may (Options::direct). On the host the daemon's threads are left to
  // others then; else they share the work of a large copy. On a GPU the copies are in the order of the caller's stream,
  // and nobody waits for them.
  bool direct = false;
  std::string device = {};  // whose memory it is: one of Capabilities.devices; empty: the first that is healthy
  // Called after each reopening, in the thread that did it, before CONTENTS_GONE is returned. Must not close the arena.
  std::function<void(Arena& arena)> on_reopen = {};
};

// One tensor of an arena. Its bytes lie at the same address until the arena is closed.
struct ArenaTensor {
  std::string tensor;            // as the layout calls it
  std::vector<uint32_t> layers;  // which layers of the model: one, or all of the tensor's
  v1::DType dtype = v1::DTYPE_UNSPECIFIED;
  std::vector<std::string> axes;  // "layer", "row", "step" and the layout's names, outermost first
  std::vector<uint64_t> shape;
  std::vector<uint64_t> strides;  // in bytes
  void* data = nullptr;
};

struct LoadAnswer {
  // What each row holds now, or the error of the item, in the order of the items.
  std::vector<absl::StatusOr<v1::LoadedRow>> rows;
  // As in LoadResponse; by a direct way, of this process's copy, and on a GPU zero: it was enqueued alone.
  absl::Duration copy_time;
};
struct StoreAnswer {
  // What was stored, or the error of the item, in the order of the items.
  std::vector<absl::StatusOr<v1::NameInfo>> rows;
  // Parallel: nothing was to be stored (StoreItem.skip_none, StoreItem.align), and the NameInfo is empty.
  std::vector<bool> skipped;
  // Parallel to it, of an arena of a rank's part (v1::View::tp_size): how many ranks have not stored theirs. If any,
  // the version is not there yet, and the row's info is empty. Elsewhere 0.
  std::vector<uint32_t> parts_missing;
  bool done = false;         // false: nothing was stored (all_or_none, and an item failed)
  absl::Duration copy_time;  // as in LoadAnswer
};
// Which rows Advance leaves as they are, in the place of an error or a move. The .proto has more (AdvanceRequest).
struct AdvanceOptions {
  bool skip_none = false;          // accepted length 0
  bool skip_out_of_range = false;  // accepted lengths above the steps
  // Accepted lengths, or paths, of at least so many tokens: where all hold the engine has left their state in its
  // place. 0: none are skipped for it; at most max(steps, 1).
  uint32_t verified_length = 0;
};
struct AdvanceAnswer {
  // What was done with each row, or the error of the item, in the order of the items.
  std::vector<absl::StatusOr<v1::AdvancedRow::Outcome>> rows;
  absl::Duration copy_time;  // as in LoadAnswer
};

// Of one element. 1 for what this client does not know.
uint64_t BytesOf(v1::DType dtype);

// Items of Load, Store and Advance that say nothing else; what else there is to be said stands in the .proto. For an
// engine that keeps states by blocks alone: StoreItem.align and, of the position after all accepted tokens, `position`.
v1::LoadItem LoadRow(uint32_t row, const v1::NameRef& name);
v1::StoreItem StoreRow(uint32_t row, absl::string_view sequence, int64_t position);
v1::AdvanceItem AdvanceRow(uint32_t row, uint32_t accepted_length);

// A store that Arena::StoreAsync began. May be dropped; its arena must live while it is used. Thread-safe.
class PendingStore {
 public:
  // Whether Wait would return at once. Does nothing to bring that about.
  bool done() const;

  // What Arena::Store returns; can be called again. Without a timeout it waits until the stream has passed the copies,
  // and then as long as a call may take. With one it returns NOT_DONE_YET when that is not so by then.
  absl::StatusOr<StoreAnswer> Wait(absl::Duration timeout = absl::InfiniteDuration()) const;

 private:
  friend class Arena;
  PendingStore(Arena* arena, std::shared_ptr<Storing> storing) : arena_(arena), storing_(std::move(storing)) {}
  PendingStore(Arena* arena, absl::StatusOr<StoreAnswer> answer) : arena_(arena), answer_(std::move(answer)) {}

  Arena* arena_;
  std::shared_ptr<Storing> storing_;  // null: it is over, with this answer
  absl::StatusOr<StoreAnswer> answer_;
};

// Rows for states of a layout. Made by Pool::OpenArena; keeps the pool's connections.
//
// On a GPU (device() is "cuda:GPU-<uuid>") tensors are at addresses of that GPU, in its primary context, which is the
// one of CUDA's runtime. They stay the same over a reopening, so that captured graphs stay valid. Close, Reopen and
// whatever else unmaps it wait for all that this process does on the GPU; after Close, and after a Reopen that failed,
// using a tensor is an error of CUDA's. Load and Store are for a *stream* there: a cudaStream_t, or the driver's
// CUstream; null is CUDA's legacy default stream, cudaStreamPerThread the calling thread's. What other streams do with
// the rows must be done before, and a stream that is being captured is refused (STREAM_CAPTURING).
//
// Where the daemon lets its workers (ArenaOptions::direct, Options::direct), this process copies between rows and the
// daemon's slots itself: on the host in the thread that calls and, from 8 MiB on, one more; on a GPU in the stream.
// Otherwise, and for items with an attachment to store or when the daemon has no slots to give, the daemon copies, on a
// GPU when the stream is done. The answers are the same. Arenas of a GPU that copy so have a thread of their own, which
// gives back what copies that are done had pinned, and commits stores (StoreAsync).
//
// Threads: Load, Store and Advance may be called from any thread, also at once for different rows. Nobody else may
// touch a row meanwhile. Close, Reopen and the destructor want all others to have let go of the rows.
//
// Restarts: when the daemon has lost the arena, Load, Store and Advance open it again at the same addresses and return
// CONTENTS_GONE; rows are zeros then (where the daemon lives on and only the connection broke, they are as soon as it
// notices, maybe before a call says so: what was computed meanwhile can't be stored). So does the next Load, Store or
// Advance of every other thread that used it before. When it can't be had again, the call's own error is returned, and
// the next call tries anew. Nothing but Load, Store, Advance, StoreAsync, PendingStore::Wait and Reopen opens it again,
// in the thread that called. On a GPU the rows are not mapped for a moment then, and what another thread launches on
// them just there is an illegal address, which ends its context: no other thread may launch work on rows of this arena
// while one of these calls may open it again.
//
// After fork() it is the parent's: in the child Load, Store, Advance and Reopen return FORKED, and Close and the
// destructor let go of what the child has of it, no more.
class Arena {
 public:
  ~Arena();  // Close()
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // In the layout's order, layers ascending.
  const std::vector<ArenaTensor>& tensors() const { return tensors_; }
  const std::string& layout() const { return table_.layout(); }  // fingerprint
  uint32_t rows() const { return table_.rows(); }
  uint32_t steps() const { return table_.steps(); }
  uint64_t row_bytes() const { return table_.row_bytes(); }  // of one row of all tensors
  uint64_t bytes() const { return table_.bytes(); }
  const std::string& device() const { return table_.device(); }
  // Of the daemon that has it.
  std::string incarnation() const;

  // Copies versions into rows; with steps, into their first. Columns that only the view has become zero. The row of an
  // item that fails is as it was, unless it is DEADLINE, CANCELLED or CORRUPT: then it counts as never loaded.
  // On a GPU, direct, it returns when the copies are in `stream`: what the stream does afterwards finds them. It waits
  // for stores of these rows that are under way. Else it waits for the stream, which used the rows, and what was loaded
  // is there for every stream.
  absl::StatusOr<LoadAnswer> Load(absl::Span<const v1::LoadItem> items, const CallOptions& call = {},
                                  CUstream_st* stream = nullptr);

  // Makes rows new versions of sequences, existing or new ones, as Pool::Set would; published at one moment, recorded
  // together. An empty request_id of an item is filled in here, so retries are safe. Ranks that store a version
  // together (PARTS) give the same one, and never again for another version: then an empty one is MISSING_FIELD, and
  // the daemon copies, and none has `advance`. An item with `advance` leaves its row advanced, to what was stored, or,
  // with `align`, to its accepted length or path; by a direct way, in `stream`. Where the caller gave such an item its
  // request_id, to repeat the call himself, the daemon copies and moves: it knows what it did before. On a GPU it waits
  // for `stream`, which wrote the rows. call.timeout is without what it waits for that.
  absl::StatusOr<StoreAnswer> Store(absl::Span<const v1::StoreItem> items, bool all_or_none = false,
                                    const CallOptions& call = {}, CUstream_st* stream = nullptr);

  // Moves rows to the states after their accepted tokens, without a version (SPECULATION in the .proto): each row's
  // first step becomes the state after the item's accepted length, or path; of tensors with num_spec columns the window
  // moves up. Rows need not have been loaded. The row of an item that fails is as it was. Bases of rows stay what they
  // are, and row_unmodified says nothing of these rows until the next Load or Store.
  // On a GPU, direct, it returns when the moves are in `stream`, in one launch: what the stream does afterwards finds
  // them. Else the daemon moves, and this waits for `stream` first. Each call moves once, however often it was sent.
  // Errors, of items: INVALID_ARGUMENT (INVALID_ACCEPTED_LENGTH, INVALID_PATH); of the call: INVALID_ARGUMENT
  // (ROW_OUT_OF_RANGE, DUPLICATE_ROW, INVALID_OPTION), and those of Load that are not of states.
  absl::StatusOr<AdvanceAnswer> Advance(absl::Span<const v1::AdvanceItem> items, const AdvanceOptions& options = {},
                                        const CallOptions& call = {}, CUstream_st* stream = nullptr);

  // Store, which is done when the handle says so; the arena's thread does it whether anybody asks or not.
  // On a GPU, direct, this returns when the copies are in `stream`: what the stream does afterwards may write to the
  // rows, and is not stored. The versions are published when the stream has passed the copies, those of one arena in
  // the order of the calls; until then everybody finds what was there before. Elsewhere all of it has happened when
  // this returns. FORKED, STREAM_CAPTURING and GPU_FAILED of the stream are returned here, every other error by Wait:
  // then nothing of the item was stored, and the row has to be stored again, if it still holds the state. Wait for what
  // has to be there: a process that ends takes along what was not published. With an item that has `advance` it is
  // Store, whose outcome it must know; Advance after StoreAsync does the same in the stream's order.
  absl::StatusOr<PendingStore> StoreAsync(absl::Span<const v1::StoreItem> items, bool all_or_none = false,
                                          const CallOptions& call = {}, CUstream_st* stream = nullptr);

  // Gives the arena up, and opens it anew at the same addresses: all rows are zeros. Stores that began are done before.
  // Errors: those of Pool::OpenArena;
  // after one the tensors are memory of this process alone (on a GPU: nothing), and the next Load, Store or Reopen
  // tries again.
  absl::Status Reopen(const CallOptions& call = {});

  // Ends the lease: what was not stored is lost, and tensors() must not be used any more. Stores that began are done
  // before. May be called again.
  void Close();

 private:
  friend class Lane;
  friend class PendingStore;
  friend class Pool;
  Arena(const Pool& pool, absl::string_view layout, ArenaOptions options);

  absl::Time DeadlineOf(const CallOptions& call) const;
  bool IsForked() const;
  // The GPU that it is on; empty: the host.
  absl::string_view gpu_name() const { return gpu_ == nullptr ? absl::string_view() : table_.device(); }
  // One call on the arena. Errors: also CONTENTS_GONE. With `unanswered` the caller does not mind what the rows held,
  // nor that another thread saw them go; the error that kept the answer of the call itself away is put there, if there
  // was one: the call may have been done.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(absl::StatusOr<Response> (Pool::*method)(const Request&, const CallOptions&) const,
                                Request* request, const CallOptions& call, absl::Status* unanswered = nullptr);
  // Load and Store for a caller that does not mind what the rows held (Call). The number of items is that of the
  // answer.
  absl::StatusOr<v1::LoadResponse> LoadAnyhow(v1::LoadRequest request, const CallOptions& call,
                                              absl::Status* unanswered);
  absl::StatusOr<v1::StoreResponse> StoreAnyhow(v1::StoreRequest request, const CallOptions& call,
                                                absl::Status* unanswered);
  // The same with the arena as it was in this generation, for any thread. It is not opened again: errors are those of
  // the method, ARENA_CLOSED, and CONTENTS_GONE when it is another one now.
  template <typename Request, typename Response>
  absl::StatusOr<Response> CallOf(uint64_t generation,
                                  absl::StatusOr<Response> (Pool::*method)(const Request&, const CallOptions&) const,
                                  Request* request, const CallOptions& call);
  // FORKED; on a GPU STREAM_CAPTURING and GPU_FAILED. Before anything is asked for, or the stream is waited for.
  absl::Status Enter(CUstream_st* stream) const;
  // MISSING_FIELD for a part without the request_id of its version: one that is made here would be this rank's alone.
  absl::Status CheckParts(absl::Span<const v1::StoreItem> items) const;
  // Load and Store by a direct way; nothing: let the daemon copy. The request is then as it was, but for row_unmodified
  // of rows that the daemon may take for what they are not.
  std::optional<absl::StatusOr<v1::LoadResponse>> LoadDirectly(v1::LoadRequest* request, const CallOptions& call,
                                                               CUstream_st* stream);
  std::optional<absl::StatusOr<v1::StoreResponse>> StoreDirectly(v1::StoreRequest* request, const CallOptions& call,
                                                                 CUstream_st* stream);
  // Copies pinned states, each into its rows: here, or in the stream, and then keeps `pins` until that is done. False:
  // the daemon must.
  absl::StatusOr<bool> Gather(absl::Span<const char* const> states, absl::Span<const std::vector<uint32_t>> rows,
                              std::shared_ptr<const void> pins, CUstream_st* stream);
  // Slots for all items; nothing: let the daemon copy.
  std::optional<DirectGrants> TakeGrants(const v1::StoreRequest& request, absl::Time deadline);
  // A store on a GPU whose copies are in the stream, and that is committed when they are done: by the arena's thread if
  // it is attended. Null: let the daemon copy.
  absl::StatusOr<std::shared_ptr<Storing>> BeginStore(const v1::StoreRequest& request, const CallOptions& call,
                                                      CUstream_st* stream, bool attended);
  // What of the row the item is to store. Nothing (length 0): let the daemon say what is wrong with it, or skip it.
  // REQUIRES: plan_.
  ToStore ToStoreOf(const v1::StoreItem& item) const;
  // Advance by this process; nothing: let the daemon move, or say what is wrong.
  std::optional<absl::StatusOr<v1::AdvanceResponse>> AdvanceDirectly(const v1::AdvanceRequest& request,
                                                                     CUstream_st* stream);
  absl::Status Move(absl::Span<const AdvanceMove> moves, CUstream_st* stream);
  // The rows of a direct Store that were stored, and ask for it.
  absl::Status AdvanceStored(const v1::StoreRequest& request, const v1::StoreResponse& response, CUstream_st* stream);
  // What a direct Store answered, as the caller is to see it; nothing: let the daemon copy.
  std::optional<absl::StatusOr<v1::StoreResponse>> Settle(absl::StatusOr<v1::StoreResponse> response,
                                                          absl::Time deadline) const;
  // By the daemon: a Load of all items, or of those that `directly` only lacks a way for; a Store in the order of the
  // calls.
  absl::StatusOr<v1::LoadResponse> LoadByDaemon(v1::LoadRequest* request, std::optional<v1::LoadResponse> directly,
                                                const CallOptions& call, CUstream_st* stream);
  absl::StatusOr<v1::StoreResponse> StoreByDaemon(v1::StoreRequest* request, const CallOptions& call,
                                                  CUstream_st* stream);
  // Rows that the daemon may take for what they are not, because this process did not copy what it was to copy: until
  // the next Load they count as modified.
  void Doubt(v1::LoadRequest* request);
  // Close() without a word to the daemon, to which the socket's end is enough.
  void Drop();
  // On a GPU, for this stream. Not under mu_, which others want meanwhile: memory_ is there from the first opening
  // until Close.
  absl::Status WaitFor(CUstream_st* stream) const;
  // OK when the arena, lost after this generation, is open again; `error` if the daemon has it, or is not there.
  absl::Status Revive(const absl::Status& error, uint64_t generation, absl::Time deadline);
  absl::Status Gone();
  // The error of a store of this generation that ended in another thread; CONTENTS_GONE, with the arena open again, if
  // that was lost.
  absl::Status Lost(const absl::Status& error, uint64_t generation);
  // CloseArena as far as the daemon can be reached: if it can't, it sees the socket hang up, or the token expire.
  void End(const std::string& arena) const;

  // REQUIRES: mu_ is held.
  // An arena of the daemon's, mapped. After an error all is as it was, but for memory that mmap refused: it is zeros.
  absl::Status OpenLocked(absl::Time deadline);
  absl::Status ConnectLocked(const v1::Arena& table, absl::Time deadline);
  absl::Status MakeTensorsLocked();
  // This process maps nothing of it any more. Of a GPU's memory the daemon can't see that: it is told.
  absl::Status VacateLocked();
  void SayUnmappedLocked() const;
  absl::Status GoneLocked();
  // Whether the calling thread takes the rows for what they are.
  bool IsKnownLocked();
  // What this process copies with, if it may.
  void MakeCopiesLocked();
  absl::Status ReviveLocked(const absl::Status& error, absl::Time deadline);

  const pid_t pid_;
  std::unique_ptr<const Pool> pool_;
  std::shared_ptr<Direct> direct_;  // null: there are no direct ways
  const std::function<void(Arena&)> on_reopen_;
  v1::Arena table_;  // as the daemon told it first
  std::vector<ArenaTensor> tensors_;
  // These, from the first opening on, until Close. On a GPU:
  std::shared_ptr<Gpu> gpu_;
  std::unique_ptr<GpuCopies> copies_;    // null: the daemon copies
  std::unique_ptr<InFlight> in_flight_;  // likewise
  // Null: the daemon copies; on a GPU without copies_, too.
  std::unique_ptr<const CopyPlan> plan_;
  std::unique_ptr<const AdvancePlan> advance_plan_;  // there where plan_ is

  // Of what follows; held while it is opened again. std, for ThreadSanitizer does not see into Debian's Abseil.
  mutable std::mutex mu_;
  v1::OpenArenaRequest request_;
  bool closed_ = false;
  uint64_t generation_ = 0;  // grows with each opening
  // The newest generation that each thread knows of that used the arena.
  absl::flat_hash_map<std::thread::id, uint64_t> known_;
  absl::flat_hash_set<uint32_t> doubtful_rows_;
  // So many grants could not be had, and are not asked for until then.
  size_t refused_grants_ = 0;
  absl::Time refused_until_ = absl::InfinitePast();
  std::string id_;
  std::string incarnation_;
  std::unique_ptr<Range> memory_;
  uint64_t mapped_bytes_ = 0;  // of it, on a GPU
  std::unique_ptr<Lease> lease_;
};

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_ARENA_H_
