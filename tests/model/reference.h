// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Reference: what the contract (proto/statepool/v1/statepool.proto) says, in maps and vectors. No byte is shared,
// nothing is cached, everything that may be said of a name stands in its State.
//
// A call gives the request and what the daemon answered; the Reference tells what is wrong with the answer (empty:
// nothing) and takes over what it was free to choose: revisions and version ids, and what an end without an orderly
// stop left of names that were not durable. A refused request may have several faults: the daemon may name any of them.
//
// Not thread-safe. The clock is moved by its owner, who calls TimePassed after that.
#ifndef STATEPOOL_TESTS_MODEL_REFERENCE_H_
#define STATEPOOL_TESTS_MODEL_REFERENCE_H_

#include <google/rpc/status.pb.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/core/store.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::model {

// An answer's error, as a client sees it.
struct Outcome {
  Outcome(const absl::Status& status);       // NOLINT: meant to be implicit
  Outcome(const google::rpc::Status& item);  // NOLINT
  bool ok() const { return code == absl::StatusCode::kOk; }
  std::string ToString() const;

  absl::StatusCode code = absl::StatusCode::kOk;
  std::string reason, field;
  std::map<std::string, std::string> metadata;
};

// Why a request may be refused. `field` and `metadata`: what must stand in the error, among others.
struct Fault {
  absl::StatusCode code;
  std::string reason, field = "";
  std::map<std::string, std::string> metadata = {};
};

using Key = std::pair<int, std::string>;  // NameKind, name

struct VersionM {
  uint64_t id = 0, parent = 0;
  int64_t position = 0;
  v1::Exactness exactness = v1::EXACT;
  std::string data, attachment, checksum;
  bool initial = false;     // of Create: such images of one layout may be shared
  uint64_t image_from = 0;  // the version that its image was written for; 0: this one (Renumber)

  uint64_t image() const { return image_from != 0 ? image_from : id; }
};
using VersionPtr = std::shared_ptr<VersionM>;

struct AnsweredM {
  std::string id, body;
  uint64_t revision = 0, version_id = 0;
  int64_t position = 0;
  std::string checksum;
};

// All that a name says.
struct State {
  std::string layout;            // fingerprint
  std::vector<VersionPtr> ring;  // oldest first
  uint64_t revision = 0, created = 0;
  absl::Time create_time;
  absl::Duration ttl = absl::InfiniteDuration();
  absl::Time expire_time = absl::InfiniteFuture();
  MonoTime expire_at = kNever;
  v1::Durability durability = v1::WRITE_BEHIND;
  uint32_t max_history = 1;
  std::vector<AnsweredM> requests;  // oldest first
  MonoTime last_used = 0, last_change = 0;

  const VersionPtr& head() const { return ring.back(); }
  MonoTime Deadline() const {
    return ttl == absl::InfiniteDuration() ? expire_at : std::min(expire_at, After(last_used, ttl));
  }
};

struct LayoutM {
  v1::Layout layout;
  std::set<std::string> aliases;
  uint64_t bytes = 0;
  std::string initial;  // the bytes of the initial state
};

// A prefix as its publisher names it.
struct PrefixM {
  std::string layout, extra_key, salt;
  std::vector<uint32_t> tokens;
  friend auto operator<=>(const PrefixM&, const PrefixM&) = default;
};

class Reference {
 public:
  Reference(const StoreOptions& options, const ManualClock* clock) : options_(options), clock_(clock) {}

  // ---- calls
  std::string RegisterLayout(const v1::RegisterLayoutRequest& in, const Outcome& outcome, const v1::LayoutInfo& out);
  std::string DeleteLayout(const v1::DeleteLayoutRequest& in, const Outcome& outcome,
                           const v1::DeleteLayoutResponse& out);
  std::string GetLayout(const v1::GetLayoutRequest& in, const Outcome& outcome, const v1::LayoutInfo& out) const;
  std::string Create(const v1::CreateRequest& in, const Outcome& outcome, const v1::NameInfo& out);
  std::string Set(const v1::SetRequest& in, const Outcome& outcome, const v1::NameInfo& out);
  std::string Fork(const v1::ForkRequest& in, const Outcome& outcome, const v1::ForkResponse& out);
  std::string Rollback(const v1::RollbackRequest& in, const Outcome& outcome, const v1::NameInfo& out);
  std::string RemoveRange(const v1::RemoveRangeRequest& in, const Outcome& outcome, const v1::RemoveRangeResponse& out);
  std::string Renumber(const v1::RenumberRequest& in, const Outcome& outcome, const v1::NameInfo& out);
  std::string Snapshot(const v1::SnapshotRequest& in, const Outcome& outcome, const v1::NameInfo& out);
  std::string Restore(const v1::RestoreRequest& in, const Outcome& outcome, const v1::NameInfo& out);
  std::string Delete(const v1::DeleteRequest& in, const Outcome& outcome, const v1::DeleteResponse& out);
  std::string BatchWrite(const v1::BatchWriteRequest& in, const Outcome& outcome, const v1::BatchWriteResponse& out);
  std::string DeleteMany(const v1::DeleteManyRequest& in, const Outcome& outcome, const v1::DeleteManyResponse& out);
  std::string Get(const v1::GetRequest& in, const Outcome& outcome, const v1::GetResponse& out);
  std::string BatchGet(const v1::BatchGetRequest& in, uint64_t limit, const Outcome& outcome,
                       const v1::BatchGetResponse& out);
  std::string Describe(const v1::DescribeRequest& in, const Outcome& outcome, const v1::NameInfo& out);
  std::string List(const v1::ListRequest& in, const Outcome& outcome, const v1::ListResponse& out);
  std::string Touch(const v1::TouchRequest& in, const Outcome& outcome, const v1::TouchResponse& out);
  std::string SetTtl(const v1::SetTtlRequest& in, const Outcome& outcome, const v1::NameInfo& out);
  std::string PublishPrefix(const v1::PublishPrefixRequest& in, const Outcome& outcome,
                            const v1::PublishPrefixResponse& out);
  std::string MatchPrefix(const v1::MatchPrefixRequest& in, const Outcome& outcome, const v1::MatchPrefixResponse& out);
  std::string Flush(const v1::FlushRequest& in, const Outcome& outcome, const v1::FlushResponse& out);
  std::string Capabilities(const v1::Capabilities& out) const;

  // ---- what else happens
  void TimePassed() { ForgetExpired(); }
  void ReapedExpired();
  void FlushedDue();
  // A prefix was evicted: the one that is not among `left`, the names of all that there are.
  std::string EvictedPrefix(const std::set<std::string>& left);
  // A restart: before anything else is asked every one of KeysToAsk is described, and Recovered is told the answers.
  void Restarted(bool orderly, std::string incarnation);
  std::vector<Key> KeysToAsk() const;
  std::string Recovered(const Key& key, const Outcome& outcome, const v1::NameInfo& out);
  std::string AllRecovered();  // what was written at one moment came back together

  // Names of which the last call may have been a use or not: to be touched now, which makes it one.
  std::vector<Key> TakeUnsure();

  // ---- for whoever makes requests
  const State* Find(const Key& key) const;
  std::vector<std::string> SequencesLeft() const;  // absent, but a record may be left on disk
  const std::map<Key, State>& names() const { return names_; }
  const std::map<std::string, LayoutM>& layouts() const { return layouts_; }
  const LayoutM* LayoutOf(const std::string& name) const;  // alias or fingerprint
  const std::map<PrefixM, std::string>& prefixes() const { return prefix_names_; }

  struct Counts {
    uint64_t writes = 0, reads = 0, forks = 0, replays = 0, refused = 0, misses = 0, matches = 0, acked_sync = 0,
             survived = 0, lost = 0, expired = 0;
  };
  const Counts& counts() const { return counts_; }

 private:
  // What a write asks for, judged by the names as they are.
  struct Plan {
    std::vector<Fault> faults;  // any: refused
    const AnsweredM* replay = nullptr;
    std::vector<std::pair<Key, std::optional<State>>> next;  // none: nothing to do
    VersionPtr fresh;                                        // a version of it that is new
    std::vector<VersionPtr> renumbered;                      // such versions of a Renumber, newest first
    std::vector<Key> used, unsure;
    enum class Kind { kInfo, kFork, kDelete, kRemove } kind = Kind::kInfo;
    Key key;               // of the info
    bool history = false;  // the info has it
    std::vector<Key> children;
    bool deleted = false;
    bool done = false;    // of a RemoveRange
    bool buries = false;  // nothing is left on disk of an earlier name
  };
  struct Given {  // an answer to a write
    Outcome outcome;
    const v1::NameInfo* info = nullptr;
    const v1::ForkResponse* fork = nullptr;
    const v1::DeleteResponse* deleted = nullptr;
    const v1::RemoveRangeResponse* removed = nullptr;
  };
  struct Disk {
    // What may be recorded of a name on disk: at first nothing.
    std::vector<std::optional<State>> states{std::nullopt};
    bool reaped = false;  // of a name that is gone by itself: the daemon has noticed

    bool MayHaveRecord() const {
      return std::any_of(states.begin(), states.end(), [](const auto& state) { return state.has_value(); });
    }
  };
  struct Stone {
    std::string reason;
    bool perhaps = false;  // before an end that was not orderly: it need not be remembered
  };
  struct Resolved {
    std::vector<Fault> faults;
    State* name = nullptr;
    size_t index = 0;
    Key key;
    const VersionPtr& version() const { return name->ring[index]; }
  };

  // Ids: every one that was issued before this call is at most `before`; and those of this call.
  struct Issued {
    uint64_t before = 0;
    std::set<uint64_t> now;
  };

  Plan PlanCreate(const v1::CreateRequest& in);
  Plan PlanSet(const v1::SetRequest& in, const std::string& data);
  Plan PlanFork(const v1::ForkRequest& in);
  Plan PlanRollback(const v1::RollbackRequest& in);
  Plan PlanRemoveRange(const v1::RemoveRangeRequest& in);
  Plan PlanRenumber(const v1::RenumberRequest& in);
  Plan PlanSnapshot(const v1::SnapshotRequest& in);
  Plan PlanRestore(const v1::RestoreRequest& in);
  Plan PlanDelete(const v1::DeleteRequest& in);
  std::string RunOne(Plan plan, const Given& given);
  // A plan's answer, and what becomes of its names. `prefix`: before the fields of its errors.
  std::string CheckRefused(const std::vector<Fault>& faults, const Outcome& outcome, const std::string& prefix) const;
  void UseAll(const Plan& plan);
  std::string Settle(Plan* plan, const Given& given);
  std::string CheckAnswer(const Plan& plan, const Given& given);
  std::string CheckReplay(const Plan& plan, const Given& given);

  Resolved Resolve(const v1::NameRef& ref, std::optional<int64_t> position, const std::string& layout,
                   uint64_t version_id, const std::string& field);
  State* Live(const Key& key);
  std::vector<Fault> MissOf(const Key& key, const std::string& field) const;
  std::vector<Fault> MissesOf(const Key& key, const std::string& field, const Stone* stone) const;
  void ApplyOptions(const v1::NameOptions& options, State* state, std::vector<Fault>* faults) const;
  void ApplyExpiry(const v1::NameOptions& options, const std::string& field, State* state,
                   std::vector<Fault>* faults) const;
  static void CheckIfRevision(const State* state, bool given, uint64_t if_revision, std::vector<Fault>* faults);
  // True: the request was answered before, or its id belongs to another.
  static bool Answered(const State* state, const std::string& id, const std::string& body, Plan* plan);
  State NewState(const std::string& layout) const;
  static void Finish(const std::string& id, const std::string& body, State* state);
  std::optional<std::vector<std::pair<uint64_t, uint64_t>>> Select(const LayoutM& layout, const v1::Select& select,
                                                                   std::vector<Fault>* faults) const;

  void Publish(const Key& key, State state);
  void Forget(const Key& key, const std::string& reason);
  void ForgetExpired();
  void Recorded(const Key& key);  // it is on disk as it is
  void Use(const Key& key) { names_.at(key).last_used = clock_->Now(); }
  static std::string NewId(uint64_t id, const char* what, Issued* issued);
  void CallBegins();
  uint64_t LastRevision() const;
  std::string DurableRevision(const Key& key, uint64_t revision);
  std::string FlushLag(const Key& key, const v1::NameInfo& actual) const;
  std::string CheckInfo(const Key& key, const VersionM& version, bool history, const v1::NameInfo& actual);
  v1::NameInfo InfoOf(const Key& key, const State& state, const VersionM& version, bool history) const;
  std::string CheckGot(const Resolved& found, const v1::GetRequest& in, const v1::GetResponse& out,
                       const std::string& data);
  std::string CheckLayout(const std::string& fingerprint, const v1::LayoutInfo& out) const;

  const StoreOptions options_;
  const ManualClock* const clock_;
  std::map<std::string, LayoutM> layouts_;
  std::map<std::string, std::string> fingerprints_;  // of every layout there ever was, by its bytes
  std::map<Key, State> names_;
  std::map<Key, Disk> disk_;
  std::map<Key, Stone> stones_;
  std::map<PrefixM, std::string> prefix_names_;
  std::map<std::string, PrefixM> prefix_keys_;
  struct Page {
    int kind;
    std::string name_prefix, last;
  };
  std::map<std::string, Page> pages_;  // by token
  bool uncertain_ = false;
  bool orderly_ = true;  // the last restart was
  std::string incarnation_ = "incarnation-1";
  Issued revisions_, versions_;
  // Names that were written at one moment, with their revisions; and until when a name's past can't tell any more.
  std::vector<std::vector<std::pair<Key, uint64_t>>> groups_;
  std::map<Key, uint64_t> forgotten_at_;
  std::map<Key, State> before_restart_;
  std::vector<Key> unsure_;
  Counts counts_;
};

std::string ChecksumOfBytes(const std::string& data);  // as the contract defines it

}  // namespace statepool::model

#endif  // STATEPOOL_TESTS_MODEL_REFERENCE_H_
