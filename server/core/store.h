// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Store: names that point at immutable versions. All of Statepool's meaning is here; there is no gRPC, CUDA or RocksDB
// in it.
//
// A write makes a new image first (ImageStore::Write, no lock held), and then moves a name under the lock: readers see
// the old version or the new one. A SYNC write has its record committed (NameLog::Commit, no lock held) *before* it is
// published, so what a reader saw of a SYNC name is never lost, and a refused write has changed nothing. While its
// record is under way the name is `reserved`: other writers of this name wait, readers go on.
//
// A name holds references to the versions of its newest record on disk besides those of its ring, so the bytes that a
// record needs outlive every change that is not recorded yet.
//
// Thread-safe. Every call may block on memory, disk or another write of the same name, but for those that say
// otherwise; none holds the lock while it does. Errors: the table in proto/statepool/v1/statepool.proto; each RPC there
// lists its own.
#ifndef STATEPOOL_SERVER_CORE_STORE_H_
#define STATEPOOL_SERVER_CORE_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/core/clock.h"
#include "server/core/folded_name.h"
#include "server/core/history.h"
#include "server/core/image_store.h"
#include "server/core/layout_registry.h"
#include "server/core/mutex.h"
#include "server/core/name.h"
#include "server/core/name_log.h"
#include "server/core/name_table.h"
#include "server/core/op.h"
#include "server/core/prefix_index.h"
#include "server/core/select.h"
#include "server/core/write_behind.h"

namespace statepool {

struct StoreOptions {
  uint64_t max_names = 10'000'000;
  uint32_t max_layouts = 4096;
  uint64_t max_layout_bytes = 256 << 20;  // of all layouts, initial data included
  uint32_t max_history = 256;
  uint32_t default_max_history = 8;
  uint32_t max_children = 10'000;
  uint32_t max_tokens = 1 << 20;
  uint32_t max_extra_key_bytes = 4096;
  uint32_t max_attachment_bytes = 1 << 20;
  uint32_t max_page_size = 1000;
  uint32_t max_results = 64;
  uint32_t max_batch = 1000;
  Durability default_durability = Durability::kWriteBehind;
  absl::Duration default_ttl = absl::InfiniteDuration();
  absl::Duration max_ttl = absl::Hours(24 * 365);
  WriteBehindOptions write_behind;
  // Images persisted before their names are committed together. A fork's children go together whatever this says.
  uint64_t flush_batch_bytes = 64 << 20;
  int prefix_key_bits = 128;  // fewer: for tests that force collisions
  std::string incarnation;    // told with misses that a restart may explain
};

// ---- requests and answers
// They mirror the messages of the .proto; what stands there is not said again.

struct NameOptions {
  std::optional<Durability> durability;
  std::optional<uint32_t> max_history;
  std::optional<absl::Duration> ttl;  // at most one of these three
  std::optional<absl::Time> expire_time;
  bool never_expire = false;
};

struct RequestId {
  std::string id;          // empty: none
  uint64_t body_hash = 0;  // of the whole request but for the bytes of a state, its method included
};

// A replayed answer may be about a version that its ring has no more. Only id, position and checksum are still known
// then: exactness and tier are kUnknown, parent and attachment_bytes 0.
struct VersionInfo {
  VersionId id = 0, parent = 0;
  int64_t position = 0;
  Exactness exactness = Exactness::kExact;
  Checksum checksum = 0;
  uint32_t attachment_bytes = 0;
  Tier tier = Tier::kCold;
};

struct NameInfo {
  NameKey key;
  LayoutRef layout;
  VersionInfo version;
  Revision revision = 0, durable_revision = 0;
  absl::Duration flush_lag;  // how long the oldest unrecorded change waits
  Durability durability = Durability::kWriteBehind;
  uint32_t max_history = 1;
  std::vector<VersionInfo> history;         // newest first; Describe and Renumber (with_history) only
  std::optional<uint32_t> rollback_tokens;  // with `history` only
  absl::Duration ttl = absl::InfiniteDuration();
  absl::Time expire_time = absl::InfiniteFuture();
  absl::Time create_time;
  bool replayed = false;
};

// A name, and which of its versions: the head, or the newest at exactly `position`, or the one with this id; with both,
// it must have both.
struct Source {
  NameKey key;
  std::optional<int64_t> position;
  std::string layout;        // if not empty: only if the name has this layout (alias or fingerprint)
  VersionId version_id = 0;  // 0: any
};

struct CreateRequest {
  std::string sequence, layout;
  NameOptions options;
  RequestId request;
};
struct SetRequest {
  std::string sequence, layout;
  int64_t position = 0;
  std::optional<Exactness> exactness;  // none: EXACT, or EDITED if `select` leaves something as it was
  std::optional<uint64_t> if_revision;
  NameOptions options;
  RequestId request;
  // Write only these; needs if_revision. All else is the head's, its attachment too if none comes.
  std::optional<Select> select = {};
};
struct GetAnswer {
  NameInfo info;
  Pin pin;        // info.version's bytes
  ImageId image;  // that they are in; equal where bytes are shared
};
struct ForkRequest {
  Source source;
  std::vector<std::string> children;
  NameOptions options;
  RequestId request;
};
struct ForkAnswer {
  std::vector<Revision> revisions;  // as children
  VersionInfo version;
  uint64_t state_bytes = 0;
  Durability durability = Durability::kWriteBehind;
  bool replayed = false;
};
struct ListRequest {
  NameKind kind = NameKind::kSequence;
  std::string name_prefix;
  uint32_t page_size = 0;
  std::string page_token;  // the last name of the page before
};
struct ListAnswer {
  std::vector<NameInfo> names;
  std::string next_page_token;
};
struct DeleteRequest {
  NameKey key;
  std::optional<uint64_t> if_revision;
  bool allow_missing = false;
  Revision created = 0;  // if set: only the name that this revision made, not one made since under the same name
};
struct SetTtlRequest {
  NameKey key;
  NameOptions options;  // only its ttl, expire_time or never_expire
  std::optional<uint64_t> if_revision;
};
struct DeleteManyRequest {
  NameKind kind = NameKind::kSequence;
  std::string name_prefix;
  bool all = false;
  bool preview = false;
  std::optional<uint64_t> if_count;
  std::vector<std::string> keep = {};
};
struct DeleteManyAnswer {
  uint64_t matched = 0, deleted = 0, state_bytes = 0;
  std::vector<std::string> names;  // the first kNamesTold
  static constexpr size_t kNamesTold = 100;
};
struct RollbackRequest {
  std::string sequence;
  int64_t position = 0;
  std::optional<uint64_t> if_revision;
  RequestId request;
  std::optional<int64_t> tokens = {};  // in place of `position`
};
struct RemoveRangeRequest {
  std::string sequence;
  TokenRange range;
  std::optional<uint64_t> if_revision;
  RequestId request;
  bool allow_missing = false;
};
struct RemoveRangeAnswer {
  bool done = false, deleted = false;
  bool missing = false;  // it was absent before (allow_missing)
  NameInfo info;         // unless deleted or missing
};
struct RenumberRequest {
  std::string sequence;
  TokenRange range;
  Renumbering change;
  std::optional<uint64_t> if_revision;
  RequestId request;
  bool with_history = false;  // the answer has the ring, whatever its length
};
struct SnapshotRequest {
  Source source;
  std::string snapshot;
  NameOptions options;
  RequestId request;
};
struct RestoreRequest {
  std::string snapshot, sequence;
  std::optional<uint64_t> if_revision;
  NameOptions options;
  RequestId request;
};
struct PublishRequest {
  std::string layout;
  std::vector<uint32_t> tokens;
  std::string extra_key;
  Source source;
  NameOptions options;
  std::string salt = {};
};
struct PublishAnswer {
  NameInfo info;
  bool already_published = false;
};
struct MatchRequest {
  std::string layout;
  std::vector<uint32_t> tokens;
  std::string extra_key;
  std::optional<int64_t> max_position;
  uint32_t max_results = 1;
  std::string salt = {};
};
struct MatchAnswer {
  std::vector<NameInfo> matches;  // longest first
  std::string miss_reason;
  int64_t nearest_published_position = 0;
};
struct FlushAnswer {
  uint64_t names = 0, written = 0;
};

// A Set whose bytes come chunk by chunk: what was asked, and the room for them. Made by Store::BeginSet, to be filled
// through `writer` and given to Store::FinishSet. Not thread-safe.
struct PendingSet {
  SetRequest request;
  LayoutRef layout;
  std::string attachment;
  std::optional<Checksum> expected_checksum;
  std::unique_ptr<ImageWriter> writer;
};

struct SetItem {
  SetRequest request;
  StateBytes bytes;
};
using BatchItem = std::variant<CreateRequest, SetItem, ForkRequest, RollbackRequest, SnapshotRequest, RestoreRequest,
                               DeleteRequest, RemoveRangeRequest, RenumberRequest>;
struct BatchResult {
  absl::Status status;
  std::variant<NameInfo, ForkAnswer, bool, RemoveRangeAnswer> answer;  // as the item's own call; only with an OK status
};

// A moment of the store, for metrics and the status page.
struct StoreStats {
  uint64_t sequences = 0, snapshots = 0, prefixes = 0;
  uint64_t dirty_names = 0;
  uint64_t dirty_bytes = 0;  // of distinct images that names wait to have written to the cold store
  uint64_t max_dirty_bytes = 0;
  absl::Duration flush_lag;   // age of the oldest unrecorded change of a WRITE_BEHIND name
  absl::Status flush_status;  // of the last write-behind
  uint64_t prefix_hits = 0, prefix_misses = 0;
  std::map<std::string, uint64_t> misses;     // by reason
  std::map<std::string, uint64_t> evictions;  // names that left by themselves: "expired", "prefix_value"
};

class Store {
 public:
  // `images`, `log` and `clock` must outlive the store.
  Store(StoreOptions options, ImageStore* images, NameLog* log, const Clock* clock);
  ~Store();

  // Reads what earlier runs recorded. REQUIRES: called once, before anything else; single-threaded.
  absl::Status Recover();

  LayoutRegistry& layouts() { return layouts_; }
  absl::StatusOr<LayoutRegistry::Entry> RegisterLayout(const Op& op, LayoutRef layout, absl::string_view alias);
  absl::Status DeleteLayout(const Op& op, absl::string_view layout);

  absl::StatusOr<NameInfo> Create(const Op& op, const CreateRequest& request);
  absl::StatusOr<GetAnswer> Get(const Op& op, const Source& source);
  // The same when it needs no waiting (a hot image, or an error); else nothing. Never blocks.
  std::optional<absl::StatusOr<GetAnswer>> TryGet(const Op& op, const Source& source);
  // The same for several, looked up at one moment; parallel to `sources`. Before any bytes are read `may_read` sees
  // what was found, without pins: it may refuse items, by an error in their place, or all, by an error of its own.
  // `place`: where the bytes are to be.
  using MayRead = absl::FunctionRef<absl::Status(absl::Span<absl::StatusOr<GetAnswer>> found)>;
  absl::StatusOr<std::vector<absl::StatusOr<GetAnswer>>> GetMany(const Op& op, absl::Span<const Source> sources,
                                                                 MayRead may_read, PinPlace place = nullptr);
  absl::StatusOr<NameInfo> Set(const Op& op, const SetRequest& request, const StateBytes& bytes);
  // What an earlier Set with this request_id, and with bytes of this checksum, was answered; nothing if the name does
  // not remember it. Never blocks. Errors: REQUEST_ID_REUSED.
  absl::StatusOr<std::optional<NameInfo>> ReplayOfSet(const Op& op, const SetRequest& request, Checksum checksum);
  // Set in two halves, for bytes that come in their own time. Whatever can be refused before them is refused by
  // LayoutOfSet, which says of which layout the state is (and never blocks), or by BeginSet, to which that is given.
  // FinishSet leaves `set` alone on errors of its bytes. REQUIRES: no `select`.
  absl::StatusOr<LayoutRef> LayoutOfSet(const Op& op, const SetRequest& request);
  absl::StatusOr<PendingSet> BeginSet(const Op& op, SetRequest request, LayoutRef layout, std::string attachment,
                                      std::optional<Checksum> expected_checksum);
  absl::StatusOr<NameInfo> FinishSet(const Op& op, PendingSet* set);
  absl::StatusOr<ForkAnswer> Fork(const Op& op, const ForkRequest& request);
  absl::StatusOr<NameInfo> Describe(const Op& op, const NameKey& key);        // never blocks
  absl::StatusOr<ListAnswer> List(const Op& op, const ListRequest& request);  // never blocks
  absl::StatusOr<bool> Delete(const Op& op, const DeleteRequest& request);    // false: absent, and that was fine
  absl::StatusOr<DeleteManyAnswer> DeleteMany(const Op& op, const DeleteManyRequest& request);
  // Several writes, published at one moment and recorded together. No two may write one name: DUPLICATE_NAME, with the
  // item as field. Gives each item's result. With all_or_none, when one fails the others say BATCH_ABORTED and nothing
  // was done.
  absl::StatusOr<std::vector<BatchResult>> Batch(const Op& op, absl::Span<const BatchItem> items, bool all_or_none);
  // A use of a name. Gives when it would expire; infinite: never. Never blocks.
  absl::StatusOr<absl::Time> Touch(const Op& op, const NameKey& key, absl::string_view field = "name");
  absl::StatusOr<NameInfo> SetTtl(const Op& op, const SetTtlRequest& request);
  absl::StatusOr<NameInfo> Rollback(const Op& op, const RollbackRequest& request);
  absl::StatusOr<RemoveRangeAnswer> RemoveRange(const Op& op, const RemoveRangeRequest& request);
  absl::StatusOr<NameInfo> Renumber(const Op& op, const RenumberRequest& request);
  absl::StatusOr<NameInfo> Snapshot(const Op& op, const SnapshotRequest& request);
  absl::StatusOr<NameInfo> Restore(const Op& op, const RestoreRequest& request);
  absl::StatusOr<PublishAnswer> PublishPrefix(const Op& op, const PublishRequest& request);
  absl::StatusOr<MatchAnswer> MatchPrefix(const Op& op, const MatchRequest& request);  // never blocks
  absl::StatusOr<FlushAnswer> Flush(const Op& op, absl::Span<const NameKey> keys);     // none: every name

  // Housekeeping, called by a background thread about every 100 ms, and by tests: forgets expired names, records what
  // is due, folds what is at rest.
  void ReapExpired();
  void FlushDue();
  bool FlushIsUrgent() const;  // so much waits that FlushDue should not
  // Packs names that are at rest (recorded, their states in the cold store alone, no other name shares them) into
  // little memory; whoever looks at one gets it unpacked. Goes through some thousand names a call.
  void FoldIdle();
  // When the cold store is short: forgets the prefix of least value (tokens saved by its forks, recently, per byte)
  // among those whose going frees bytes there. False: there is none, or its going could not be recorded.
  bool EvictPrefix();

  // The orderly stop: records every WRITE_BEHIND name, notes what is lost, marks the data directory clean. Goes on past
  // names that can't be recorded, and gives the first error. Nobody may begin a write any more; reads may be under way.
  absl::Status Drain(const Op& op);

  struct Counts {
    uint64_t sequences = 0, snapshots = 0, prefixes = 0;
  };
  Counts counts() const;
  uint64_t max_dirty_bytes() const;  // now
  StoreStats stats() const;
  const StoreOptions& options() const { return options_; }
  uint64_t epoch() const { return ids_.epoch(); }

  // Aborts the process when the store contradicts itself. For tests, after every step; slow.
  void CheckInvariants() const;

 private:
  // The next state of a name; nothing: the name goes.
  using Next = std::optional<NameState>;
  static std::vector<Next> One(Next next) {  // a list of initializers would copy it
    std::vector<Next> out;
    out.push_back(std::move(next));
    return out;
  }
  // What becomes of some names. `decide` runs under the lock, perhaps several times, and gives their next states,
  // parallel to `keys`, or none when there is nothing to do.
  struct Change {
    std::vector<NameKey> keys;
    std::function<absl::StatusOr<std::vector<Next>>()> decide;  // none: nothing to do
    NameInfo* info = nullptr;                   // if set: what the first name says afterwards, if it is there
    absl::Status status;                        // how it went
    std::function<void()> published = nullptr;  // runs once under the lock, if something was done
  };
  // A version, as a Source names it.
  struct Found {
    Name* name;
    size_t index;  // into name->state.ring
    const VersionRef& version() const { return name->state.ring[index]; }
  };
  struct WriteItem;  // store_write.cc: a name of one Write

  // store_write.cc: every write is this. Waits until nobody writes the names of `changes`, decides all, persists and
  // commits together what must be durable before the answer (SYNC states, and that recorded names are gone), and
  // publishes all at once. Names that are written together go to disk together, so that a crash leaves all or none.
  // A change that is refused has its status; with all_or_none none is made then. REQUIRES: no key twice. Errors of the
  // whole: TOO_MANY_NAMES, DEADLINE, CANCELLED, COLD_FULL, DISK_FAILED; nothing was changed then.
  absl::Status Write(const Op& op, absl::Span<Change> changes, bool all_or_none) ABSL_LOCKS_EXCLUDED(mu_);
  // Of one change; gives its status too.
  absl::Status Write(const Op& op, Change change) ABSL_LOCKS_EXCLUDED(mu_);

  // The steps of a Write. DecideLocked asks every change, and gives false if one was refused. CompanionsLocked: names
  // to be recorded first, because they were written together with one of these and are not written with it now.
  // GroupSizeLocked: how many unrecorded names would be recorded together after this. New names are unborn from
  // TakeNamesLocked to PublishItemsLocked. CommitLocked gives the lock back meanwhile.
  bool DecideLocked(absl::Span<Change> changes, std::vector<WriteItem>* items) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasRecordLocked(const WriteItem& item) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsDurableLocked(absl::Span<const WriteItem> items) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static bool Forgets(absl::Span<const WriteItem> items);
  std::vector<Name*> CompanionsLocked(absl::Span<const WriteItem> items) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  size_t GroupSizeLocked(absl::Span<const WriteItem> items) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status TakeNamesLocked(absl::Span<WriteItem> items) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CommitLocked(const Op& op, absl::Span<WriteItem> items) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetItemLocked(WriteItem* item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PublishItemsLocked(absl::Span<WriteItem> items) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // store_operations.cc, store_history.cc: what each operation changes. Validates, writes the image if there is one,
  // and may find that the request was answered before (then there is nothing to do). `request` and `answer` must
  // outlive the change.
  absl::StatusOr<Change> Prepare(const Op& op, const CreateRequest& request, NameInfo* answer);
  absl::StatusOr<Change> Prepare(const Op& op, const SetItem& request, NameInfo* answer);
  absl::StatusOr<Change> Prepare(const Op& op, const ForkRequest& request, ForkAnswer* answer);
  absl::StatusOr<Change> Prepare(const Op& op, const RollbackRequest& request, NameInfo* answer);
  absl::StatusOr<Change> Prepare(const Op& op, const SnapshotRequest& request, NameInfo* answer);
  absl::StatusOr<Change> Prepare(const Op& op, const RestoreRequest& request, NameInfo* answer);
  absl::StatusOr<Change> Prepare(const Op& op, const DeleteRequest& request, bool* answer);
  absl::StatusOr<Change> Prepare(const Op& op, const RemoveRangeRequest& request, RemoveRangeAnswer* answer);
  absl::StatusOr<Change> Prepare(const Op& op, const RenumberRequest& request, NameInfo* answer);
  template <typename Answer, typename Request>
  absl::StatusOr<Answer> Run(const Op& op, const Request& request);

  // store_history.cc: what its decisions begin with. The version of a sequence that is there and at the revision that
  // the request asks for; nothing: the sequence has answered this request before, and `answer` is that again.
  template <typename Request>
  absl::StatusOr<std::optional<Found>> FindOrReplayLocked(const Source& source, const Request& request,
                                                          NameInfo* answer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // A RemoveRange that finds no sequence. `miss`: why.
  absl::StatusOr<std::vector<Next>> RemoveAbsentLocked(const NameKey& key, const RemoveRangeRequest& request,
                                                       absl::Status miss, RemoveRangeAnswer* answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The versions that a renumbered sequence has, the head's among them.
  Ring RenumberedRing(const Ring& ring, const TokenRange& range, const Renumbering& change);

  // The parts of a Set. `request` with the body hash of all it writes, once the bytes are known.
  absl::Status ValidateSet(const SetRequest& request, absl::string_view attachment) const;
  // What a Set finds: all that can be refused without its image is refused then.
  struct SetLook {
    bool replayed = false;  // it was answered before, and there is nothing to do
    Name* name = nullptr;   // null: it makes one
    LayoutRef layout = nullptr;
    Durability durability = Durability::kWriteBehind;  // that the name will have
  };
  absl::StatusOr<SetLook> LookAtSetLocked(const NameKey& key, const SetRequest& request, const RequestId& request_id,
                                          const LayoutRef& layout, NameInfo* answer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::vector<Next>> DecideSetLocked(const NameKey& key, const SetRequest& request,
                                                    const RequestId& request_id, const LayoutRef& layout,
                                                    const ImageRef& image, Exactness exactness, NameInfo* answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // store.cc: pieces of decisions. All under the lock.
  static absl::Status ValidateKey(const NameKey& key, absl::string_view field);  // but this one
  Name* FindLocked(const NameKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);       // null: absent, unborn or expired
  absl::Status MissLocked(const NameKey& key, absl::string_view field) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<Found> ResolveLocked(const Source& source, absl::string_view field) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status ApplyOptions(const NameOptions& options, NameState* state) const;
  static absl::Status CheckIfRevision(const Name* name, const std::optional<uint64_t>& if_revision);
  // What an earlier request with this id was answered, or nothing. Errors: REQUEST_ID_REUSED.
  static absl::StatusOr<const AnsweredRequest*> FindAnswered(const NameState& state, const RequestId& request);
  // That answer again: its revision and version (see VersionInfo); everything else as the name says it now.
  NameInfo InfoOfAnswered(const Name& name, const AnsweredRequest& answered) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // True: `name` has answered this request before, and `info` is that answer again. Errors: REQUEST_ID_REUSED.
  absl::StatusOr<bool> ReplayLocked(const Name& name, const RequestId& request, NameInfo* info) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The last step of a decision: trims the ring, gives the state its new revision, remembers the request.
  void GiveRevision(const RequestId& request, NameState* state);
  VersionRef NewVersion(VersionId parent, int64_t position, Exactness exactness, ImageRef image);
  NameState NewState(LayoutRef layout) const;
  bool IsExpired(const Name& name) const {
    const MonoTime deadline = name.Deadline();
    return deadline != kNever && clock_->Now() >= deadline;
  }
  void UseLocked(Name* name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { name->last_used = clock_->Now(); }
  // For Change::published: this name, if it is still there, was used to make `forks` others.
  std::function<void()> UseOf(const NameKey& key, size_t forks = 0);
  // Tells the ImageStore if `layout` was deleted while room was taken for an image of it, whose name will be refused.
  void NoticeDeleted(const Op& op, const Layout& layout) {
    if (!layouts_.IsRegistered(op.tenant, layout)) images_->LayoutDeleted(op.tenant, layout);
  }
  // Reads an image of this version.
  absl::StatusOr<Pin> ReadImage(const Op& op, const ImageRef& image, VersionId version, Revision durable_revision,
                                const Device* on);
  // What ImageStore says of a version's image that can't be read, for the caller: its damage is told by the version,
  // its loss by what is durable.
  absl::Status WhyUnread(const absl::Status& status, const Image& image, VersionId version,
                         Revision durable_revision) const;
  absl::Time ExpireTimeOf(const NameState& state, MonoTime deadline) const;  // for people; infinite: never
  VersionInfo InfoOf(const Version& version) const;
  void AddHistory(const Ring& ring, NameInfo* info) const;
  static void CountRollbackTokens(NameInfo* info);  // from its history
  NameInfo InfoLocked(const Name& name, const Version& version) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  NameInfo InfoOf(const NameKey& key, const NameState& state, MonoTime deadline) const;  // but for its version

  // store.cc: bookkeeping of publishing and forgetting.
  void PublishLocked(Name* name, NameState state, uint64_t dirty_group, MonoTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetHeadCounts(const NameState* old_state, const NameState* new_state) const;
  void DropLayoutUseLocked(const Layout& layout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ScheduleExpiryLocked(Name* name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetDirtyLocked(Name* name, DirtyTicket ticket, MonoTime since) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Duration FlushLagLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // FLUSH_BEHIND if a name of this durability and layout must not change now, because too much waits to be recorded.
  // `image`: the new head's, null if it is not made yet. `adding`: as WriteBehind::Admit.
  absl::Status AdmitLocked(Durability durability, const Layout& layout, const Image* image,
                           WriteBehind::Adding* adding) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes a name out of all tables. REQUIRES: not busy.
  void ForgetLocked(Name* name, std::optional<TombstoneTable::Reason> reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckLostLocked(absl::Span<const NameKey> keys) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Names that are in the queue of unrecorded changes with `name`, itself included; empty if it is not there.
  std::vector<Name*> GroupLocked(const Name& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EraseGhostsLocked(const std::vector<TombstoneTable::PrefixPlace>& gone) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // store_folding.cc
  bool FoldLocked(Name* name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // false: it is not at rest
  std::unique_ptr<Name> UnfoldLocked(const FoldedName& folded) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void InsertRecoveredLocked(RestingName name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UnfoldSharedLocked(std::vector<ImageId> images) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  NameInfo InfoOfResting(const RestingName& name, bool with_history) const;

  // store_durability.cc
  bool MustWaitLocked(const NameKey& key, bool to_record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status WaitLocked(const Op& op) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static NameRecord RecordOf(const NameKey& key, const NameState& state, absl::Span<const VersionRef> versions);
  Ring DurableRun(const NameState& state) const;
  // Records the newest state of these names in one commit. Those that can't be persisted stay dirty, and with them all
  // that were written together with them; gives the first error. Leaves alone names that are busy, and those written
  // together with them. REQUIRES: of each group all.
  absl::Status RecordLocked(const Op& op, const std::vector<Name*>& names, uint64_t* written)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Which of the unrecorded changes are recorded now: those that wait since `due`, and of them, with `idle_since`, only
  // names that did not change after it, or wait since `overdue`. It ends when `bytes` were written.
  struct FlushRound {
    MonoTime due = kNever;
    MonoTime idle_since = kNever;
    MonoTime overdue = 0;
    uint64_t bytes = UINT64_MAX;
  };
  // Goes once through the queue, batch by batch. Errors don't stop it; gives the first.
  absl::Status RecordQueueLocked(const Op& op, FlushRound* round, uint64_t* written) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The next batch after `group` of what the round wants, in whole groups up to `last`, and the last of them, looked at
  // or taken. Empty, and more to look at: `group` is not `last` yet.
  std::vector<Name*> NextBatchLocked(const FlushRound& round, Revision last, Revision* group, uint64_t* bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status BuryLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // every grave that may be

  // Records on disk of names that are gone: to be deleted, or replaced by a new name's. Until then their bytes are
  // kept.
  struct Grave {
    Ring versions;
    bool burying = false;  // the deletion is under way
    bool kept = false;     // the record is unreadable: it stays until a Delete or a new record
  };

  const StoreOptions options_;
  ImageStore* const images_;
  NameLog* const log_;
  const Clock* const clock_;
  IdSource ids_;
  LayoutRegistry layouts_;
  PrefixHasher hasher_;

  mutable Mutex mu_;
  CondVar changed_;  // a name is no longer busy, or a grave is gone
  NameTable names_ ABSL_GUARDED_BY(mu_);
  TombstoneTable tombstones_ ABSL_GUARDED_BY(mu_);
  PrefixIndex prefixes_ ABSL_GUARDED_BY(mu_);
  std::map<NameKey, Grave> graves_ ABSL_GUARDED_BY(mu_);
  std::set<std::pair<MonoTime, Name*>> expiry_ ABSL_GUARDED_BY(mu_);
  absl::btree_set<std::pair<MonoTime, const FoldedName*>> folded_expiry_ ABSL_GUARDED_BY(mu_);  // by real deadlines
  std::map<DirtyTicket, Name*> dirty_ ABSL_GUARDED_BY(mu_);
  std::set<NameKey> lost_ ABSL_GUARDED_BY(mu_);  // in no queue, for their heads can't be recorded; some have others now
  WriteBehind write_behind_ ABSL_GUARDED_BY(mu_);
  std::map<const Layout*, uint64_t> layout_names_
      ABSL_GUARDED_BY(mu_);  // how many names have a layout, unborn ones too
  uint64_t prefix_hits_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t prefix_misses_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, uint64_t> misses_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, uint64_t> evictions_ ABSL_GUARDED_BY(mu_);
  absl::Status flush_status_ ABSL_GUARDED_BY(mu_);
  MonoTime flush_again_ ABSL_GUARDED_BY(mu_) = 0;  // not before, for the last round failed
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_STORE_H_
