// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The C++ client. Requests and answers are the messages of proto/statepool/v1/statepool.proto, where each call's
// promises and errors stand; this header adds what the client does: deadlines, retries, and states without extra
// copies.
//
//   absl::StatusOr<Pool> pool = Pool::Connect("unix:/run/statepool/grpc.sock");
//   pool->Set("chat/42", "my-model", /*position=*/128, bytes);
//   pool->Fork(SequenceRef("chat/42"), {"chat/43", "chat/44"});
//   absl::StatusOr<State> state = pool->Get(SequenceRef("chat/43"));
//
// Deadlines: every call has one (Options::timeout or CallOptions::timeout) over all its attempts and the waiting
// between them. Where a state travels as a stream, it is the longest time without progress instead: each chunk begins
// it anew.
//
// Retries: an error with RetryInfo, and UNAVAILABLE without the daemon's word (a broken connection), is tried again, at
// most Options::max_attempts times in all and never beyond the deadline. That holds for calls that can't act twice:
// reads; writes with a request_id, which this client generates for each write that has the field and left it empty,
// also inside a BatchWrite; and RegisterLayout, PublishPrefix, Touch, SetTtl, Flush, Delete and DeleteLayout with
// allow_missing, DeleteMany without if_count, which give the same end whenever they are repeated. Other calls are tried
// once. A stream goes on where it broke off, and each chunk that got through begins the attempts anew.
//
// Size: a state that does not fit one message (Options::max_message_bytes, or the daemon's limit) travels as a stream
// without the caller's doing.
//
// Errors: see client/cpp/errors.h.
#ifndef STATEPOOL_CLIENT_CPP_STATEPOOL_H_
#define STATEPOOL_CLIENT_CPP_STATEPOOL_H_

#include <grpcpp/channel.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cpp/errors.h"
#include "proto/wire.h"
#include "statepool/v1/statepool.grpc.pb.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::client {

struct Options {
  absl::Duration timeout = absl::Seconds(30);  // may be infinite
  int max_attempts = 4;                        // 1: never retry
  // Cap on one message, either way. Larger states go by stream (whose messages are chunk_bytes, whatever this says).
  int max_message_bytes = (512 << 20) + (1 << 20);
  // What is read is compared with its checksum. Costs one pass over it.
  bool verify = true;
  // Of one message of a stream: a multiple of 65,536, at most 4 MiB. A stream needs memory for a few of them.
  uint32_t chunk_bytes = 1 << 20;
  // Get, GetInto and Set of whole large states go through memory that the daemon shares with this process, where it is
  // on the same machine (arena.h): faster, otherwise the same. Not Set with a request_id of the caller's, nor with a
  // layout by its alias for a sequence that this pool has not seen.
  bool arenas = true;
  // Where the daemon lets its workers (Capabilities.copy_mode "direct"), states are read and written in the daemon's
  // own memory, which this process maps: GetView without a copy, everything else with one of this process's making. A
  // thread of the pool's own gives back what the daemon needs and this process does not.
  bool direct = true;
};

struct CallOptions {
  std::optional<absl::Duration> timeout;  // instead of Options::timeout
  // Called on the calling thread after each chunk of a stream: how far it is, and where it ends (0: not known). May go
  // back when a broken stream is sent again. Not called for what fits one message.
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> progress;
};

// Takes bytes [offset, offset + data.size()) of what a stream carries, in order and without a gap. An error ends the
// call, which then returns it.
using Sink = absl::FunctionRef<absl::Status(uint64_t offset, absl::string_view data)>;

// Writes up to `max` bytes from `offset` on to `to`, and gives their number; 0: the end is at `offset`. Offsets follow
// each other, but go back to an earlier one when a broken stream is sent again. An error ends the call, which then
// returns it (or, for bytes that were given before, the error of the stream that broke).
using Source = absl::FunctionRef<absl::StatusOr<size_t>(uint64_t offset, char* to, size_t max)>;

v1::NameRef SequenceRef(absl::string_view name);
v1::NameRef SnapshotRef(absl::string_view name);
v1::NameRef PrefixRef(absl::string_view prefix);

// The checksum of an image that lies in pieces, as the contract writes it: 16 hex digits.
std::string ChecksumOfPieces(absl::Span<const absl::string_view> pieces);

// The same of an image that comes piece by piece. Not thread-safe.
class Checksummer {
 public:
  void Append(absl::string_view piece);
  // Of everything appended.
  std::string Finish() const;

 private:
  std::string leaf_;  // one that is not whole yet
  std::vector<uint64_t> leaves_;
};

// A state, or the part of one that was selected, as it arrived. Owns the bytes, in the pieces in which the transport
// received them (one, where it came through shared memory); states of one BatchGet own them together. Const methods are
// thread-safe.
class State {
 public:
  State(State&&) = default;
  State& operator=(State&&) = default;

  const v1::NameInfo& info() const { return small_.info(); }
  const std::string& attachment() const { return small_.attachment(); }
  // Of the bytes: info().checksum() unless a part was selected.
  absl::string_view data_checksum() const {
    return small_.data_checksum().empty() ? small_.info().checksum() : small_.data_checksum();
  }

  // The bytes in order: sum of the pieces' sizes is size(), none is empty. Valid while this State lives, also when it
  // is moved.
  const std::vector<absl::string_view>& pieces() const { return pieces_; }
  uint64_t size() const { return size_; }

  // Errors: INVALID_ARGUMENT unless n == size().
  absl::Status CopyTo(char* destination, size_t n) const;

 private:
  friend class Pool;
  State() = default;

  v1::GetResponse small_;  // without data
  std::vector<absl::string_view> pieces_;
  uint64_t size_ = 0;
  std::shared_ptr<const void> owner_;  // of what the pieces point into
};

// A state to look at. Where the daemon lets its workers (Options::direct) these are the bytes in its own memory, which
// it keeps there unchanged for as long as this lives, whatever becomes of the name; elsewhere a copy. Read-only: a
// write to memory of the daemon's ends the process. Const methods are thread-safe.
//
// It may outlive the Pool, and a restart of the daemon. So many bytes as all leases may pin together
// (Capabilities.max_pinned_bytes) are all that views can have; further ones are copies. In a forked child it must not
// be used.
class StateView {
 public:
  StateView(StateView&&) = default;
  StateView& operator=(StateView&&) = default;

  const v1::NameInfo& info() const { return small_.info(); }
  const std::string& attachment() const { return small_.attachment(); }
  // Valid while this StateView lives, also when it is moved.
  absl::string_view bytes() const { return bytes_; }
  uint64_t size() const { return bytes_.size(); }

  // Whether the bytes have their checksum: one pass over them. What is in the daemon's memory was verified when it came
  // there, and is not again. Errors: DATA_LOSS (CORRUPT).
  absl::Status Verify() const;

 private:
  friend class Direct;
  friend class Pool;
  StateView() = default;

  v1::GetResponse small_;  // without data
  absl::string_view bytes_;
  std::shared_ptr<const void> owner_;  // of what the bytes are in
};

class Arena;
struct ArenaOptions;
class Direct;
class DirectLease;
class Lane;

// What became of a BatchWrite.
struct BatchWriteAnswer {
  // One for each item of the request: its answer, or its error as the same call alone would have given it.
  std::vector<absl::StatusOr<v1::BatchWriteResult>> results;
  bool done = false;  // false: nothing was done (all_or_none, and an item failed)
};

// One daemon. Cheap to copy: copies share its connections, one each for small calls, Get, Set and streams, so that
// neither a fork waits behind a state on its way nor one direction behind the other, and the memory of Options::arenas.
// All methods are thread-safe and block.
class Pool {
 public:
  // `address` is HOST:PORT or unix:PATH. Connects in the background, and again after a break: an absent daemon shows as
  // UNAVAILABLE from the calls. HTTP proxies are not used. The first Connect initializes gRPC for the life of the
  // process, and turns off Abseil's search for lock cycles (absl::SetMutexDeadlockDetectionMode), which Debian's build
  // does at every lock. Errors: INVALID_ARGUMENT (INVALID_ADDRESS, INVALID_OPTION).
  static absl::StatusOr<Pool> Connect(absl::string_view address, const Options& options = {});

  absl::StatusOr<v1::Capabilities> GetCapabilities(const CallOptions& call = {}) const;

  absl::StatusOr<v1::LayoutInfo> RegisterLayout(const v1::RegisterLayoutRequest& request,
                                                const CallOptions& call = {}) const;
  absl::StatusOr<v1::LayoutInfo> RegisterLayout(const v1::Layout& layout, absl::string_view alias = "") const;
  absl::StatusOr<v1::LayoutInfo> RegisterLayout(const v1::LayoutPreset& preset, absl::string_view alias = "") const;
  absl::StatusOr<v1::LayoutInfo> GetLayout(const v1::GetLayoutRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::LayoutInfo> GetLayout(absl::string_view layout) const;
  absl::StatusOr<v1::ListLayoutsResponse> ListLayouts(const CallOptions& call = {}) const;
  absl::StatusOr<v1::DeleteLayoutResponse> DeleteLayout(const v1::DeleteLayoutRequest& request,
                                                        const CallOptions& call = {}) const;
  absl::StatusOr<v1::DeleteLayoutResponse> DeleteLayout(absl::string_view layout) const;

  absl::StatusOr<v1::NameInfo> Create(const v1::CreateRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Create(absl::string_view sequence, absl::string_view layout) const;

  // Reads a state, or the part that request.select names. Bytes that came in a message are not copied again. Beyond the
  // contract's errors: DATA_LOSS / CORRUPT when they don't have the checksum that came with them (unless
  // Options::verify is off).
  absl::StatusOr<State> Get(const v1::GetRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<State> Get(const v1::NameRef& name) const;

  // The same without a copy, where direct ways are to be had (StateView): costs the same whatever the size. Elsewhere,
  // and for a part, as Get.
  absl::StatusOr<StateView> GetView(const v1::GetRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<StateView> GetView(const v1::NameRef& name) const;

  // The same into the caller's memory, verified while it is copied: one pass instead of two. The answer's `data` is
  // empty. On an error `destination` may hold part of a state. Errors: also BYTES_LENGTH_MISMATCH unless the state has
  // exactly that size.
  absl::StatusOr<v1::GetResponse> GetInto(const v1::GetRequest& request, absl::Span<char> destination,
                                          const CallOptions& call = {}) const;

  // The same as a stream, whatever the size: `sink` gets each chunk when it is verified. The whole is verified at the
  // end, so what the sink got counts only when this succeeds. Memory: a few chunks. A stream that broke goes on in the
  // same version, without the sink's noticing; VERSION_MISMATCH if that is gone meanwhile.
  absl::StatusOr<v1::GetResponse> GetStream(const v1::GetRequest& request, Sink sink,
                                            const CallOptions& call = {}) const;
  // From request.offset on. The checksum of the whole can only be verified from offset 0 on.
  absl::StatusOr<v1::GetResponse> GetStream(const v1::GetStreamRequest& request, Sink sink,
                                            const CallOptions& call = {}) const;

  // Several states in one message. The outer error is that of the call; an item's is as Get gives it.
  absl::StatusOr<std::vector<absl::StatusOr<State>>> BatchGet(const v1::BatchGetRequest& request,
                                                              const CallOptions& call = {}) const;
  absl::StatusOr<std::vector<absl::StatusOr<State>>> BatchGet(absl::Span<const v1::NameRef> names) const;

  // Writes a state, or the part of one that request.select names: the pieces, one after the other. They are sent from
  // where they lie, without a copy (as a stream, or through shared memory: with one). `request.data` must be empty; an
  // empty `request.checksum` is computed here, where the bytes travel.
  //
  // Who keeps the memory alive: with `owner`, the client holds it for as long as the transport needs the pieces, and
  // nothing else is asked. Without, the pieces must stay valid and unchanged until the call returns, and the call
  // returns only when the transport has let go of them: that is at once, except after a deadline passed while a stalled
  // peer had not taken everything; then it can take until the connection ends. So give an owner where that matters.
  // At most 16 such writes are left behind in a process; while they are stuck, further ones with an owner are
  // UNAVAILABLE. (Streams copy their chunks, and return soon after their deadline with and without an owner.)
  absl::StatusOr<v1::NameInfo> Set(v1::SetRequest request, absl::Span<const absl::string_view> pieces,
                                   std::shared_ptr<const void> owner = nullptr, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Set(absl::string_view sequence, absl::string_view layout, int64_t position,
                                   absl::string_view data) const;

  // The same as a stream, whatever the size, read from `source` as it goes. `total_bytes` is for CallOptions::progress;
  // 0: not known. Memory: a few chunks. A stream that broke goes on where the daemon has it (GetUpload). With a
  // request_id and a checksum given by the caller, so does an upload that an earlier call or process left behind.
  absl::StatusOr<v1::NameInfo> SetStream(v1::SetRequest request, uint64_t total_bytes, Source source,
                                         const CallOptions& call = {}) const;
  // How much the daemon has of an upload that broke off.
  absl::StatusOr<v1::Upload> GetUpload(const v1::GetUploadRequest& request, const CallOptions& call = {}) const;

  // Several writes in one message. `states` has the bytes of each Set of the request, in the order of the items; their
  // data_bytes, and where empty checksum and request_id, are filled in here. `owner` as for Set. The outer error is
  // that of the call. Errors: also INVALID_OPTION when the number of `states` is not that of the Sets, and
  // MESSAGE_TOO_LARGE. Tried once when it deletes, or a RemoveRange may, without allow_missing.
  absl::StatusOr<BatchWriteAnswer> BatchWrite(v1::BatchWriteRequest request,
                                              absl::Span<const std::vector<absl::string_view>> states = {},
                                              std::shared_ptr<const void> owner = nullptr,
                                              const CallOptions& call = {}) const;

  absl::StatusOr<v1::ForkResponse> Fork(const v1::ForkRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::ForkResponse> Fork(const v1::NameRef& source, absl::Span<const std::string> children) const;

  absl::StatusOr<v1::NameInfo> Describe(const v1::DescribeRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Describe(const v1::NameRef& name) const;

  // Counts as a use of the names. Errors of single names are in the answer: ToStatus (errors.h).
  absl::StatusOr<v1::TouchResponse> Touch(const v1::TouchRequest& request, const CallOptions& call = {}) const;
  // Gives when the name expires now, InfiniteFuture for never.
  absl::StatusOr<absl::Time> Touch(const v1::NameRef& name) const;

  absl::StatusOr<v1::NameInfo> SetTtl(const v1::SetTtlRequest& request, const CallOptions& call = {}) const;
  // Infinite: the name never expires.
  absl::StatusOr<v1::NameInfo> SetTtl(const v1::NameRef& name, absl::Duration ttl) const;

  absl::StatusOr<v1::ListResponse> List(const v1::ListRequest& request, const CallOptions& call = {}) const;
  // Every name from request.page_token on, page by page, until `visit` returns false. The deadline is each page's.
  absl::Status ListAll(v1::ListRequest request, absl::FunctionRef<bool(const v1::NameInfo&)> visit,
                       const CallOptions& call = {}) const;

  absl::StatusOr<v1::DeleteResponse> Delete(const v1::DeleteRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::DeleteResponse> Delete(const v1::NameRef& name) const;

  // After a retry the answer's counts are those of the last attempt.
  absl::StatusOr<v1::DeleteManyResponse> DeleteMany(const v1::DeleteManyRequest& request,
                                                    const CallOptions& call = {}) const;

  absl::StatusOr<v1::NameInfo> Rollback(const v1::RollbackRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Rollback(absl::string_view sequence, int64_t position) const;
  // Back by so many tokens, one version for each: at most NameInfo::rollback_tokens of Describe.
  absl::StatusOr<v1::NameInfo> RollbackTokens(absl::string_view sequence, int64_t tokens) const;

  // Tokens with the indices [begin, end): see TOKENS in the contract. What is refused is an answer, with `done` false.
  // Tried once when it may delete the sequence (begin is not above 0) without allow_missing.
  absl::StatusOr<v1::RemoveRangeResponse> RemoveRange(const v1::RemoveRangeRequest& request,
                                                      const CallOptions& call = {}) const;
  absl::StatusOr<v1::RemoveRangeResponse> RemoveRange(absl::string_view sequence, int64_t begin, int64_t end) const;

  // Another position for a sequence, if the range has its last token: see TOKENS in the contract. Begin and end of an
  // empty request are 0, a range that has none. What it is now, with its history.
  absl::StatusOr<v1::NameInfo> Renumber(const v1::RenumberRequest& request, const CallOptions& call = {}) const;

  absl::StatusOr<v1::NameInfo> Snapshot(const v1::SnapshotRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Snapshot(const v1::NameRef& source, absl::string_view snapshot) const;
  absl::StatusOr<v1::NameInfo> Restore(const v1::RestoreRequest& request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::NameInfo> Restore(absl::string_view snapshot, absl::string_view sequence) const;

  absl::StatusOr<v1::PublishPrefixResponse> PublishPrefix(const v1::PublishPrefixRequest& request,
                                                          const CallOptions& call = {}) const;
  absl::StatusOr<v1::PublishPrefixResponse> PublishPrefix(absl::string_view layout, absl::Span<const uint32_t> tokens,
                                                          const v1::NameRef& source) const;
  absl::StatusOr<v1::MatchPrefixResponse> MatchPrefix(const v1::MatchPrefixRequest& request,
                                                      const CallOptions& call = {}) const;
  absl::StatusOr<v1::MatchPrefixResponse> MatchPrefix(absl::string_view layout,
                                                      absl::Span<const uint32_t> tokens) const;

  absl::StatusOr<v1::FlushResponse> Flush(const v1::FlushRequest& request, const CallOptions& call = {}) const;

  // Memory of the daemon's on this machine, with rows for states of a layout, in the shapes that options.view says:
  // arena.h, which has its errors too.
  absl::StatusOr<std::unique_ptr<Arena>> OpenArena(absl::string_view layout, const ArenaOptions& options,
                                                   const CallOptions& call = {}) const;

  // grpc.health.v1.Health/Check: "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN" or "UNKNOWN". An empty service is the
  // daemon as a whole.
  absl::StatusOr<std::string> CheckHealth(absl::string_view service = "", const CallOptions& call = {}) const;

  // For calls with the generated stub or of other services.
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  friend class Arena;
  friend class Direct;
  friend class DirectLease;
  friend class Lane;
  // `connect` makes a channel; for streams if its argument says so.
  Pool(absl::FunctionRef<std::shared_ptr<grpc::Channel>(bool)> connect, const Options& options);

  absl::Time DeadlineOf(const CallOptions& call) const;
  // Calls `attempt` until it succeeds or must not be repeated.
  absl::Status Attempt(const CallOptions& call, bool may_repeat,
                       absl::FunctionRef<grpc::Status(absl::Time deadline)> attempt) const;
  template <typename Request, typename Response>
  absl::StatusOr<Response> Unary(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                             Response*),
                                 const Request& request, const CallOptions& call, bool may_repeat) const;
  template <typename Request, typename Response>
  absl::StatusOr<Response> Write(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                             Response*),
                                 const Request& request, const CallOptions& call) const;
  // The same connections and options (but for max_attempts, unless that is 0) without what a pool keeps for itself.
  Pool Bare(int max_attempts = 0) const;
  // The answer of Get or GetInto by a direct way or the lane, its bytes in the room that `room` gave for so many;
  // nothing: ask inline.
  std::optional<absl::StatusOr<v1::GetResponse>> GetHere(const v1::GetRequest& request, std::optional<uint64_t> bytes,
                                                         absl::FunctionRef<char*(uint64_t bytes)> room,
                                                         absl::Time deadline) const;
  void Learn(const v1::NameInfo& info, absl::string_view layout) const;
  // Get and Set inline: in one message, or as a stream.
  absl::StatusOr<State> GetInline(const v1::GetRequest& request, const CallOptions& call, absl::Time deadline) const;
  absl::StatusOr<v1::GetResponse> GetIntoInline(const v1::GetRequest& request, absl::Span<char> destination,
                                                const CallOptions& call, absl::Time deadline) const;
  absl::StatusOr<v1::NameInfo> SetInline(v1::SetRequest request, absl::Span<const absl::string_view> pieces,
                                         std::shared_ptr<const void> owner, const CallOptions& call,
                                         absl::Time deadline) const;
  // The answer to Get in one message, its bytes not verified yet.
  absl::StatusOr<State> Receive(const v1::GetRequest& request, const CallOptions& call) const;
  // Reads a stream to its end: `begin` gets its head once, `take` each verified chunk.
  absl::StatusOr<v1::GetResponse> ReadStream(v1::GetStreamRequest request,
                                             absl::FunctionRef<absl::Status(const v1::GetResponse&)> begin,
                                             absl::FunctionRef<absl::Status(uint64_t, wire::SplitMessage)> take,
                                             const CallOptions& call) const;
  absl::StatusOr<State> GetByStream(const v1::GetRequest& request, const CallOptions& call) const;
  absl::StatusOr<v1::GetResponse> GetIntoByStream(const v1::GetRequest& request, absl::Span<char> destination,
                                                  const CallOptions& call) const;
  absl::StatusOr<v1::NameInfo> SetPiecesByStream(v1::SetRequest request, absl::Span<const absl::string_view> pieces,
                                                 const CallOptions& call) const;
  // Sends a message of serialized fields and pieces of its large field, and gives the answer, which has no large field.
  absl::StatusOr<std::string> Send(const char* method, const std::string& fields,
                                   absl::Span<const absl::string_view> pieces, std::shared_ptr<const void> owner,
                                   bool may_repeat, const CallOptions& call) const;

  // For Direct: one attempt.
  absl::StatusOr<v1::DirectLease> OpenDirect(const CallOptions& call) const;
  absl::StatusOr<v1::GrantResponse> Grant(const v1::GrantRequest& request, const CallOptions& call) const;
  absl::StatusOr<v1::GetResponse> GetOnce(const v1::GetRequest& request, const CallOptions& call) const;
  absl::StatusOr<v1::NameInfo> SetOnce(const v1::SetRequest& request, const CallOptions& call) const;

  // For Arena.
  absl::StatusOr<v1::Arena> OpenArena(const v1::OpenArenaRequest& request, const CallOptions& call) const;
  absl::StatusOr<v1::LoadResponse> Load(const v1::LoadRequest& request, const CallOptions& call) const;
  absl::StatusOr<v1::StoreResponse> Store(const v1::StoreRequest& request, const CallOptions& call) const;
  absl::StatusOr<v1::AdvanceResponse> Advance(const v1::AdvanceRequest& request, const CallOptions& call) const;
  absl::StatusOr<v1::LoadResponse> LoadOnce(const v1::LoadRequest& request, const CallOptions& call) const;
  absl::StatusOr<v1::StoreResponse> StoreOnce(const v1::StoreRequest& request, const CallOptions& call) const;
  absl::StatusOr<v1::CloseArenaResponse> CloseArena(const v1::CloseArenaRequest& request,
                                                    const CallOptions& call) const;

  std::shared_ptr<grpc::Channel> channel_, reads_, writes_, streams_;
  std::shared_ptr<v1::StatePool::Stub> stub_;
  Options options_;
  std::shared_ptr<Lane> lane_;      // null: there is none
  std::shared_ptr<Direct> direct_;  // likewise
};

}  // namespace statepool::client

#endif  // STATEPOOL_CLIENT_CPP_STATEPOOL_H_
