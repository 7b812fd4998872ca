// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Concurrent histories: eight clients on a few names of the real daemon. In half of the histories the daemon is killed
// in the middle and started again. The history of every pair of names must be explained by some order (history.h), in
// which a batch, read or written, is one moment; what SYNC acknowledged must be there after the kill, of a WRITE_BEHIND
// name an earlier state that was not deleted, no older than its durable_revision, and of a VOLATILE one nothing. What a
// batch wrote comes back whole or not at all. Revisions are never issued twice, and grow over the life of the data
// directory.
//
//   statepool_histories --daemon=BINARY --directory=DIR --histories=N --seed=N --stop-at-first=0|1
//
// A state's position tells which Set wrote its bytes: so every answer tells what it has seen.
//
// Prints one line of JSON. Exit: 0 measured, 2 not measurable.
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "statepool/v1/statepool.grpc.pb.h"
#include "tests/bench/measure.h"
#include "tests/crash/daemon_process.h"
#include "tests/model/history.h"

namespace statepool::model {
namespace {

constexpr int kClients = 8;
constexpr uint64_t kStateBytes = 3000;
constexpr size_t kRing = 4;  // versions that a Set leaves a name
constexpr int kPhaseMillis = 150, kKillMillisMin = 30, kKillMillisMax = 200;

// Pairs of sequences, one of each durability; then snapshots. What is in one group has one history.
constexpr size_t kSequences = 6, kNames = 8, kGroups = 5;
constexpr v1::Durability kDurability[kNames] = {v1::SYNC,     v1::SYNC,     v1::WRITE_BEHIND, v1::WRITE_BEHIND,
                                                v1::VOLATILE, v1::VOLATILE, v1::SYNC,         v1::WRITE_BEHIND};
constexpr size_t kFirstOfGroup[kGroups + 1] = {0, 2, 4, 6, 7, 8};

bool IsSnapshot(size_t name) { return name >= kSequences; }
bool IsSync(size_t name) { return kDurability[name] == v1::SYNC; }
size_t GroupOf(size_t name) { return IsSnapshot(name) ? name - 3 : name / 2; }
size_t IndexOf(size_t name) { return name - kFirstOfGroup[GroupOf(name)]; }
size_t SizeOf(size_t group) { return kFirstOfGroup[group + 1] - kFirstOfGroup[group]; }

int64_t NowNanos() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

// A state is told by one number, all over it.
std::string BytesOf(uint64_t value) {
  std::string bytes;
  while (bytes.size() < kStateBytes) bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  bytes.resize(kStateBytes);
  return bytes;
}

struct Recorded {
  std::vector<Event> events[kGroups];
  uint64_t durable_revision[kNames] = {};  // the greatest that was told
  int64_t forks = 0, rollbacks = 0, restores = 0, batches = 0, aborted = 0;
};

// An answer's error, or none.
struct Outcome {
  explicit Outcome(const grpc::Status& status) : code(status.error_code()), message(status.error_message()) {
    google::rpc::Status details;
    details.ParseFromString(status.error_details());
    Take(details);
  }
  explicit Outcome(const google::rpc::Status& status)
      : code(static_cast<grpc::StatusCode>(status.code())), message(status.message()) {
    Take(status);
  }
  bool ok() const { return code == grpc::StatusCode::OK; }
  // The daemon died under the call.
  bool gone() const { return code == grpc::StatusCode::UNAVAILABLE && error.reason().empty(); }

  grpc::StatusCode code;
  std::string message;
  google::rpc::ErrorInfo error;

 private:
  void Take(const google::rpc::Status& status) {
    for (const google::protobuf::Any& any : status.details()) any.UnpackTo(&error);
  }
};

// One connection. Not thread-safe.
class Client {
 public:
  Client(int id, const std::string& address, std::vector<std::string> names, std::string layout, uint64_t seed)
      : id_(id), names_(std::move(names)), layout_(std::move(layout)), random_(seed) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = v1::StatePool::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  }

  // Random operations until `stop`, or until the daemon is gone. `values` gives every Set its own.
  void Load(const std::atomic<bool>* stop, std::atomic<uint64_t>* values) {
    while (!stop->load() && !gone_) {
      const size_t name = random_() % kSequences, snapshot = kSequences + random_() % (kNames - kSequences);
      const uint64_t which = random_() % 100;
      if (which < 18) One(name, SetOf(name, ++*values));
      else if (which < 34) Get(name);
      else if (which < 36) Get(snapshot);
      else if (which < 46) Describe(name);
      else if (which < 55) MayDelete(name) ? One(name, DeleteOf(name)) : BatchWrite(name / 2, values);
      else if (which < 58) One(snapshot, DeleteOf(snapshot));
      else if (which < 67) One(name, ForkOf(AnySource(), name));
      else if (which < 74) One(name, RollbackOf(name));
      else if (which < 78) One(snapshot, SnapshotOf(name, snapshot));
      else if (which < 83) One(name, RestoreOf(snapshot, name));
      else if (which < 92) BatchWrite(name / 2, values);
      else if (which < 94) Flush();
      else BatchGet(name / 2);
    }
  }

  // The name as it is now, with its ring; nothing: no answer that says so.
  std::optional<NameAt> Look(size_t name) {
    const Part got = Get(name);
    if (got.result == Part::Result::kMiss) return NameAt{};
    if (got.result != Part::Result::kOk) return std::nullopt;
    NameAt at{got.revision, got.value, {got.value}, 1};
    if (IsSnapshot(name)) return at;
    const Part described = Describe(name, &at.max_history);
    if (described.result != Part::Result::kOk || described.revision != got.revision) return std::nullopt;
    at.ring = described.ring;
    return at;
  }

  void Delete(size_t name) { One(name, DeleteOf(name)); }

  std::string RegisterLayout() {
    v1::RegisterLayoutRequest in;
    in.set_alias("histories");
    in.mutable_layout()->set_model_id("histories");
    v1::TensorSpec* tensor = in.mutable_layout()->add_tensors();
    tensor->set_name("s");
    tensor->set_kind(v1::RECURRENT);
    tensor->add_layers(0);
    tensor->set_dtype(v1::UINT8);
    v1::Axis* axis = tensor->add_axes();
    axis->set_name("n");
    axis->set_size(kStateBytes);
    v1::LayoutInfo out;
    const grpc::Status status = Call(&v1::StatePool::Stub::RegisterLayout, in, &out);
    if (!status.ok()) bench::NotMeasurable(absl::StrCat("RegisterLayout: ", status.error_message()));
    return out.fingerprint();
  }

  const Recorded& recorded() const { return recorded_; }
  const std::vector<std::string>& unexpected() const { return unexpected_; }

 private:
  // A write as an item of a batch has it, and what it says of the names that it writes and reads.
  struct Write {
    v1::BatchWriteItem item;
    std::string data;
    Part part;
    std::optional<size_t> source;
  };

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& in, Response* out) {
    grpc::ClientContext context;
    context.set_wait_for_ready(false);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    return ((*stub_).*method)(&context, in, out);
  }

  // ---- requests

  v1::NameRef RefOf(size_t name) const {
    v1::NameRef ref;
    if (IsSnapshot(name)) ref.set_snapshot(names_[name]);
    else ref.set_sequence(names_[name]);
    return ref;
  }
  // Where a name is deleted all the time, nothing can be said of what a kill leaves of it.
  bool MayDelete(size_t name) { return kDurability[name] != v1::WRITE_BEHIND || random_() % 8 == 0; }
  size_t AnySource() { return random_() % kNames; }

  Write WriteOf(Part::Kind kind, size_t name, uint64_t value, size_t max_history) {
    Write write;
    write.part.kind = kind;
    write.part.name = IndexOf(name);
    write.part.value = value;
    write.part.max_history = max_history;
    return write;
  }
  template <typename Request>
  void MaybeConditional(size_t name, Request* in, Part* part) {
    if (random_() % 2 == 0) return;
    part->if_revision = last_[name];
    in->set_if_revision(*part->if_revision);
  }
  Write SetOf(size_t name, uint64_t value) {
    Write write = WriteOf(Part::Kind::kSet, name, value, kRing);
    v1::SetRequest* in = write.item.mutable_set();
    in->set_sequence(names_[name]);
    in->set_layout(layout_);
    in->set_position(static_cast<int64_t>(value));
    in->mutable_options()->set_durability(kDurability[name]);
    in->mutable_options()->set_max_history(kRing);
    MaybeConditional(name, in, &write.part);
    write.data = BytesOf(value);
    return write;
  }
  Write DeleteOf(size_t name) {
    Write write = WriteOf(Part::Kind::kDelete, name, 0, 0);
    *write.item.mutable_delete_()->mutable_name() = RefOf(name);
    return write;
  }
  Write ForkOf(size_t source, size_t child) {
    Write write = WriteOf(Part::Kind::kCreate, child, kUntold, 1);  // the source's ring is in another history
    v1::ForkRequest* in = write.item.mutable_fork();
    *in->mutable_source() = RefOf(source);
    in->add_children(names_[child]);
    in->mutable_options()->set_durability(kDurability[child]);
    in->mutable_options()->set_max_history(1);
    write.source = source;
    return write;
  }
  Write RollbackOf(size_t name) {
    const std::vector<uint64_t>& seen = seen_[name];
    const uint64_t value = seen.empty() ? 1 : seen[seen.size() - 1 - random_() % std::min<size_t>(seen.size(), kRing)];
    Write write = WriteOf(Part::Kind::kRollback, name, value, 0);
    v1::RollbackRequest* in = write.item.mutable_rollback();
    in->set_sequence(names_[name]);
    in->set_position(static_cast<int64_t>(value));
    MaybeConditional(name, in, &write.part);
    return write;
  }
  Write SnapshotOf(size_t source, size_t snapshot) {
    Write write = WriteOf(Part::Kind::kCreate, snapshot, kUntold, 1);
    v1::SnapshotRequest* in = write.item.mutable_snapshot();
    *in->mutable_source() = RefOf(source);
    in->set_snapshot(names_[snapshot]);
    in->mutable_options()->set_durability(kDurability[snapshot]);
    write.source = source;
    return write;
  }
  Write RestoreOf(size_t snapshot, size_t name) {
    Write write = WriteOf(Part::Kind::kRestore, name, kUntold, kRing);
    v1::RestoreRequest* in = write.item.mutable_restore();
    in->set_snapshot(names_[snapshot]);
    in->set_sequence(names_[name]);
    in->mutable_options()->set_durability(kDurability[name]);
    in->mutable_options()->set_max_history(kRing);
    MaybeConditional(name, in, &write.part);
    write.source = snapshot;
    return write;
  }

  // ---- calls

  Event Begin() const {
    Event event;
    event.client = id_;
    event.called = NowNanos();
    return event;
  }
  Event With(const Event& event, const Part& part) const {
    Event one = event;
    one.parts = {part};
    one.all_or_none = false;
    return one;
  }

  Part Get(size_t name) {
    v1::GetRequest in;
    *in.mutable_name() = RefOf(name);
    Event event = Begin();
    v1::GetResponse out;
    const Outcome outcome(Call(&v1::StatePool::Stub::Get, in, &out));
    Part part;
    part.name = IndexOf(name);
    Read(name, outcome, out.info(), &part);
    if (part.result == Part::Result::kOk && out.data() != BytesOf(part.value))
      unexpected_.push_back("a state with the bytes of another");
    Record(name, &event, {part});
    return part;
  }

  Part Describe(size_t name, size_t* max_history = nullptr) {
    v1::DescribeRequest in;
    *in.mutable_name() = RefOf(name);
    Event event = Begin();
    v1::NameInfo out;
    const Outcome outcome(Call(&v1::StatePool::Stub::Describe, in, &out));
    Part part;
    part.kind = Part::Kind::kDescribe;
    part.name = IndexOf(name);
    Read(name, outcome, out, &part);
    for (auto version = out.history().rbegin(); version != out.history().rend(); ++version)
      part.ring.push_back(static_cast<uint64_t>(version->position()));
    if (!part.ring.empty()) seen_[name] = part.ring;
    if (max_history != nullptr) *max_history = out.max_history();
    Record(name, &event, {part});
    return part;
  }

  void BatchGet(size_t group) {
    v1::BatchGetRequest in;
    for (size_t i = 0; i < SizeOf(group); ++i) *in.add_items()->mutable_name() = RefOf(kFirstOfGroup[group] + i);
    Event event = Begin();
    v1::BatchGetResponse out;
    const Outcome outcome(Call(&v1::StatePool::Stub::BatchGet, in, &out));
    std::vector<Part> parts(SizeOf(group));
    for (size_t i = 0; i < parts.size(); ++i) {
      Part& part = parts[i];
      const size_t name = kFirstOfGroup[group] + i;
      part.name = i;
      if (!outcome.ok()) {
        Read(name, outcome, v1::NameInfo(), &part);
        continue;
      }
      const v1::BatchGetItem& item = out.items(static_cast<int>(i));
      Read(name, Outcome(item.error()), item.response().info(), &part);
      if (part.result == Part::Result::kOk &&
          out.data().substr(item.data_offset(), item.response().data_bytes()) != BytesOf(part.value))
        unexpected_.push_back("a state of a batch with the bytes of another");
    }
    Record(kFirstOfGroup[group], &event, std::move(parts));
  }

  // Of the WRITE_BEHIND sequences. It is in no history, but what this client has seen is durable then.
  void Flush() {
    v1::FlushRequest in;
    std::vector<std::pair<size_t, uint64_t>> seen;
    for (size_t name = 0; name < kSequences; ++name) {
      if (kDurability[name] != v1::WRITE_BEHIND) continue;
      *in.add_names() = RefOf(name);
      seen.emplace_back(name, last_[name]);
    }
    v1::FlushResponse out;
    const Outcome outcome(Call(&v1::StatePool::Stub::Flush, in, &out));
    if (outcome.ok()) {
      for (const auto& [name, revision] : seen)
        recorded_.durable_revision[name] = std::max(recorded_.durable_revision[name], revision);
    } else if (outcome.gone()) {
      gone_ = true;
    } else if (outcome.code != grpc::StatusCode::NOT_FOUND) {
      unexpected_.push_back(absl::StrCat("Flush: ", outcome.error.reason(), " ", outcome.message));
    }
  }

  // One write, in its own call.
  void One(size_t name, Write write) {
    Event event = Begin();
    v1::BatchWriteItem& item = write.item;
    v1::BatchWriteResult out;
    grpc::Status status;
    switch (item.write_case()) {
      case v1::BatchWriteItem::kSet:
        item.mutable_set()->set_data(write.data);
        status = Call(&v1::StatePool::Stub::Set, item.set(), out.mutable_info());
        break;
      case v1::BatchWriteItem::kFork: status = Call(&v1::StatePool::Stub::Fork, item.fork(), out.mutable_fork()); break;
      case v1::BatchWriteItem::kRollback:
        status = Call(&v1::StatePool::Stub::Rollback, item.rollback(), out.mutable_info());
        break;
      case v1::BatchWriteItem::kSnapshot:
        status = Call(&v1::StatePool::Stub::Snapshot, item.snapshot(), out.mutable_info());
        break;
      case v1::BatchWriteItem::kRestore:
        status = Call(&v1::StatePool::Stub::Restore, item.restore(), out.mutable_info());
        break;
      default: status = Call(&v1::StatePool::Stub::Delete, item.delete_(), out.mutable_delete_());
    }
    const Outcome outcome(status);
    const bool source_missed = Answered(name, outcome, out, &write);
    RecordSource(event, outcome, write, source_missed);
    if (!source_missed) Record(name, &event, {write.part});
  }

  // One or two writes of a pair's names.
  void BatchWrite(size_t group, std::atomic<uint64_t>* values) {
    const size_t first = kFirstOfGroup[group];
    std::vector<Write> writes;
    for (size_t i = 0; i < 2; ++i) {
      const size_t name = first + i;
      const uint64_t which = random_() % 100;
      if (which < 45) writes.push_back(SetOf(name, ++*values));
      else if (which < 65 && MayDelete(name)) writes.push_back(DeleteOf(name));
      else if (which < 85) writes.push_back(ForkOf(first + 1 - i, name));
      else if (which < 93) writes.push_back(RollbackOf(name));
      else writes.push_back(RestoreOf(kSequences + random_() % (kNames - kSequences), name));
    }
    v1::BatchWriteRequest in;
    in.set_all_or_none(random_() % 2 == 0);
    for (Write& write : writes) {
      write.item.set_data_bytes(write.data.size());
      *in.mutable_data() += write.data;
      *in.add_items() = write.item;
    }
    Event event = Begin();
    event.all_or_none = in.all_or_none();
    v1::BatchWriteResponse out;
    const Outcome whole(Call(&v1::StatePool::Stub::BatchWrite, in, &out));
    ++recorded_.batches;
    recorded_.aborted += whole.ok() && !out.done();

    // What was done was done at one moment. What was refused was refused at some moment, for itself.
    const auto is_done = [](const Write& write) { return write.part.result == Part::Result::kOk; };
    std::vector<Part> done, refused;
    std::vector<bool> source_missed(writes.size());
    for (size_t i = 0; i < writes.size(); ++i) {
      const v1::BatchWriteResult& result = whole.ok() ? out.results(static_cast<int>(i)) : v1::BatchWriteResult();
      const Outcome outcome = whole.ok() ? Outcome(result.error()) : whole;
      if (outcome.error.reason() == "BATCH_ABORTED") continue;  // it says nothing of the names
      source_missed[i] = Answered(first + i, outcome, result, &writes[i]);
      if (source_missed[i]) RecordSource(event, outcome, writes[i], true);
      else if (is_done(writes[i]) || !whole.ok()) done.push_back(writes[i].part);
      else refused.push_back(writes[i].part);
    }
    if (whole.ok() && out.done() != std::all_of(writes.begin(), writes.end(), is_done) && in.all_or_none())
      unexpected_.push_back("a batch that is done has an item that is not, or one that is not has one that is");
    for (size_t i = 0; i < writes.size(); ++i) {
      Write& write = writes[i];
      if (!is_done(write) || !write.source.has_value()) continue;
      // The other name, as it was before: at the same moment if the batch wrote it too.
      const Write& other = writes[1 - i];
      if (*write.source == first + 1 - i && is_done(other)) {
        for (Part& part : done) {
          if (part.name == write.part.name) part.source = other.part.name;
        }
      } else {
        RecordSource(event, Outcome(grpc::Status::OK), write, false);
      }
    }
    for (const Part& part : refused) {
      Event one = With(event, part);
      Record(first, &one, {part});
    }
    if (!done.empty()) Record(first, &event, std::move(done));
  }

  // ---- answers

  void Unexpected(const Outcome& outcome, const Part& part) {
    Event event;
    event.parts = {part};
    unexpected_.push_back(absl::StrCat(event.ToString(), ": ", outcome.error.reason(), " ", outcome.message));
  }
  static uint64_t RevisionIn(const Outcome& outcome) {
    uint64_t revision = kUntold;
    const auto found = outcome.error.metadata().find("revision");
    if (found == outcome.error.metadata().end() || !absl::SimpleAtoi(found->second, &revision)) return kUntold;
    return revision;
  }

  void Read(size_t name, const Outcome& outcome, const v1::NameInfo& info, Part* part) {
    if (outcome.ok()) {
      part->result = Part::Result::kOk;
      Told(name, info, part);
    } else if (outcome.code == grpc::StatusCode::NOT_FOUND) {
      part->result = Part::Result::kMiss;
      last_[name] = 0;
    } else if (outcome.gone()) {
      gone_ = true;
    } else {
      Unexpected(outcome, *part);
    }
  }
  void Told(size_t name, const v1::NameInfo& info, Part* part) {
    part->revision = info.revision();
    part->value = static_cast<uint64_t>(info.position());
    last_[name] = part->revision;
    seen_[name].push_back(part->value);
    recorded_.durable_revision[name] = std::max<uint64_t>(recorded_.durable_revision[name], info.durable_revision());
    if (kDurability[name] == v1::VOLATILE && info.durable_revision() != 0)
      unexpected_.push_back("VOLATILE is said to be durable");
  }

  // What became of a write; true: nothing, as its source is absent.
  bool Answered(size_t name, const Outcome& outcome, const v1::BatchWriteResult& result, Write* write) {
    using Result = Part::Result;
    Part& part = write->part;
    const bool forked = write->item.has_fork();
    if (outcome.ok() && part.kind == Part::Kind::kDelete) {
      part.result = Result::kOk;
      last_[name] = 0;
    } else if (outcome.ok() && forked) {
      part.result = Result::kOk;
      part.revision = last_[name] = result.fork().children(0).revision();
      part.value = static_cast<uint64_t>(result.fork().position());
      ++recorded_.forks;
    } else if (outcome.ok()) {
      part.result = Result::kOk;
      const uint64_t asked = part.value;
      Told(name, result.info(), &part);
      if (asked != kUntold && asked != part.value) unexpected_.push_back("a write's answer has another position");
      if (IsSync(name) && result.info().durable_revision() != result.info().revision())
        unexpected_.push_back("SYNC was acknowledged before it is durable");
      recorded_.rollbacks += part.kind == Part::Kind::kRollback;
      recorded_.restores += part.kind == Part::Kind::kRestore;
    } else if (outcome.code == grpc::StatusCode::ABORTED && outcome.error.reason() == "REVISION_MISMATCH") {
      part.result = Result::kConflict;
      part.revision = last_[name] = RevisionIn(outcome);
    } else if (outcome.code == grpc::StatusCode::ALREADY_EXISTS && part.kind == Part::Kind::kCreate) {
      part.result = Result::kExists;
      part.revision = last_[name] = RevisionIn(outcome);
    } else if (outcome.error.reason() == "POSITION_MISMATCH" && part.kind == Part::Kind::kRollback) {
      part.result = Result::kNoPosition;
    } else if (outcome.code == grpc::StatusCode::NOT_FOUND && write->source.has_value()) {
      return true;
    } else if (outcome.code == grpc::StatusCode::NOT_FOUND) {
      part.result = Result::kMiss;
      last_[name] = 0;
    } else if (outcome.gone()) {
      gone_ = true;
    } else {
      Unexpected(outcome, part);
    }
    if ((part.result == Result::kConflict || part.result == Result::kExists) && part.revision == kUntold)
      unexpected_.push_back("no revision");
    return false;
  }

  // What a write says of the name that it reads.
  void RecordSource(const Event& event, const Outcome& outcome, const Write& write, bool missed) {
    if (!write.source.has_value() || (!missed && !outcome.ok())) return;
    Part part;
    part.kind = Part::Kind::kPeek;
    part.name = IndexOf(*write.source);
    part.result = missed ? Part::Result::kMiss : Part::Result::kOk;
    part.value = missed ? 0 : write.part.value;
    Event peek = With(event, part);
    Record(*write.source, &peek, {part});
  }

  // `name` is any of the group.
  void Record(size_t name, Event* event, std::vector<Part> parts) {
    event->parts = std::move(parts);
    if (!event->unknown()) event->answered = NowNanos();
    recorded_.events[GroupOf(name)].push_back(*event);
  }

  const int id_;
  const std::vector<std::string> names_;
  const std::string layout_;
  std::mt19937_64 random_;
  std::unique_ptr<v1::StatePool::Stub> stub_;
  Recorded recorded_;
  uint64_t last_[kNames] = {};          // the revision last seen
  std::vector<uint64_t> seen_[kNames];  // values
  std::vector<std::string> unexpected_;
  bool gone_ = false;
};

class Harness {
 public:
  explicit Harness(const bench::Arguments& arguments)
      : daemon_(arguments.Text("daemon")),
        directory_(arguments.Text("directory")),
        histories_(arguments.Number("histories")),
        stop_at_first_(arguments.Number("stop-at-first") != 0),
        seed_(static_cast<uint64_t>(arguments.Number("seed"))),
        random_(seed_) {}

  int Main() {
    Start();
    layout_ = Client(-1, process_->address(), {}, "", 0).RegisterLayout();
    int64_t done = 0;
    for (; done < histories_ && !(stop_at_first_ && violations_ > 0); ++done) {
      Run(done, /*kill=*/done % 2 == 1);
      if (done % 20 == 19)
        std::fprintf(stderr, "histories: %lld of %lld, %lld operations, %lld violations\n",
                     static_cast<long long>(done + 1), static_cast<long long>(histories_),
                     static_cast<long long>(operations_), static_cast<long long>(violations_));
    }
    process_->Stop(60);
    bench::Figure("model/histories")
        .Set("value", static_cast<double>(violations_))
        .Text("unit", "violations")
        .Set("n", static_cast<double>(done))
        .Goal("value", 0)
        .Set("operations", static_cast<double>(operations_))
        .Set("acked_sync", static_cast<double>(acked_sync_))
        .Set("conflicts", static_cast<double>(conflicts_))
        .Set("overlapping", static_cast<double>(overlapping_))
        .Set("kills", static_cast<double>(kills_))
        .Set("kills_in_flight", static_cast<double>(kills_in_flight_))
        .Set("went_back", static_cast<double>(went_back_))
        .Set("forks", static_cast<double>(forks_))
        .Set("rollbacks", static_cast<double>(rollbacks_))
        .Set("restores", static_cast<double>(restores_))
        .Set("batches", static_cast<double>(batches_))
        .Set("batches_aborted", static_cast<double>(aborted_))
        .Set("batches_left", static_cast<double>(batches_left_))
        .Print();
    return 0;
  }

 private:
  void Start() {
    process_ = std::make_unique<crash::DaemonProcess>(
        std::vector<std::string>{daemon_, "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0",
                                 "--data-dir=" + directory_ + "/data", "--hot-bytes=8MiB", "--warm-bytes=0",
                                 "--cold-bytes=8GiB", "--devices=host", "--flush-interval=50ms", "--log-level=warn"},
        directory_ + "/daemon.log");
    if (!process_->WaitReady(30)) bench::NotMeasurable("the daemon did not get ready");
  }

  void Violation(const std::string& what) {
    ++violations_;
    std::fprintf(stderr, "violation: seed %llu history %lld: %s\n", static_cast<unsigned long long>(seed_),
                 static_cast<long long>(history_), what.c_str());
  }

  // Eight clients at once, for so long or until the kill; gives what they recorded.
  Recorded Phase(bool kill) {
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < kClients; ++i)
      clients.push_back(std::make_unique<Client>(i, process_->address(), names_, layout_, random_()));
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (auto& client : clients) threads.emplace_back([&] { client->Load(&stop, &values_); });
    const uint64_t millis = kill ? kKillMillisMin + random_() % (kKillMillisMax - kKillMillisMin) : kPhaseMillis;
    std::this_thread::sleep_for(std::chrono::milliseconds(millis));
    if (kill) process_->Kill();
    else stop = true;
    for (std::thread& thread : threads) thread.join();
    if (kill) process_->Wait();
    Recorded all;
    for (const auto& client : clients) {
      for (const std::string& what : client->unexpected()) Violation(what);
      const Recorded& one = client->recorded();
      for (size_t group = 0; group < kGroups; ++group)
        all.events[group].insert(all.events[group].end(), one.events[group].begin(), one.events[group].end());
      for (size_t name = 0; name < kNames; ++name)
        all.durable_revision[name] = std::max(all.durable_revision[name], one.durable_revision[name]);
      forks_ += one.forks, rollbacks_ += one.rollbacks, restores_ += one.restores;
      batches_ += one.batches, aborted_ += one.aborted;
    }
    Count(all);
    return all;
  }

  void Count(const Recorded& all) {
    uint64_t greatest = greatest_revision_;
    bool in_flight = false;
    for (size_t group = 0; group < kGroups; ++group) {
      std::vector<Event> events = all.events[group];
      std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.called < b.called; });
      int64_t latest = 0;
      for (const Event& event : events) {
        ++operations_;
        overlapping_ += event.called < latest;
        latest = std::max(latest, event.answered);
        for (const Part& part : event.parts) {
          conflicts_ += part.result == Part::Result::kConflict || part.result == Part::Result::kExists;
          in_flight = in_flight || (part.is_write() && part.result == Part::Result::kUnknown);
          if (!part.moves_head() || part.result != Part::Result::kOk) continue;
          acked_sync_ += IsSync(kFirstOfGroup[group] + part.name);
          if (!revisions_.insert(part.revision).second) Violation(absl::StrCat("revision ", part.revision, " twice"));
          if (part.revision <= greatest_at_start_)
            Violation(absl::StrCat("revision ", part.revision, " is not above all before the kill"));
          greatest = std::max(greatest, part.revision);
        }
      }
    }
    kills_in_flight_ += in_flight;
    greatest_revision_ = greatest;
  }

  static std::vector<NameAt> OfGroup(const std::vector<NameAt>& names, size_t group) {
    return {names.begin() + static_cast<std::ptrdiff_t>(kFirstOfGroup[group]),
            names.begin() + static_cast<std::ptrdiff_t>(kFirstOfGroup[group + 1])};
  }

  void Explain(size_t group, const std::vector<Event>& recorded, const std::vector<NameAt>& initial,
               const std::vector<NameAt>& last) {
    const std::optional<std::string> wrong = Unexplained(recorded, initial, last);
    if (!wrong.has_value()) return;
    Violation(absl::StrCat(names_[kFirstOfGroup[group]], " and its group: ", *wrong));
    std::vector<Event> events = recorded;
    std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.called < b.called; });
    if (events.size() > 400) events.resize(400);
    for (const Event& event : events) std::fprintf(stderr, "  %s\n", event.ToString().c_str());
    for (const NameAt& name : last)
      std::fprintf(stderr, "  at the end: revision %llu\n", static_cast<unsigned long long>(name.revision));
  }

  // What a kill may leave of a WRITE_BEHIND name.
  void CheckLeft(size_t name, const Recorded& recorded, const NameAt& left) {
    using Result = Part::Result;
    const std::string& what = names_[name];
    bool written = false, maybe_written = false, deleted = false;
    int64_t written_at = INT64_MAX;  // by then, what is left was written
    uint64_t latest = 0;
    const auto each = [&](const auto& visit) {
      for (const Event& event : recorded.events[GroupOf(name)]) {
        for (const Part& part : event.parts) {
          if (part.name == IndexOf(name)) visit(event, part);
        }
      }
    };
    each([&](const Event& event, const Part& part) {
      if (!part.moves_head()) return;
      if (part.result == Result::kUnknown) maybe_written |= part.value == kUntold || part.value == left.value;
      if (part.result != Result::kOk) return;
      latest = std::max(latest, part.revision);
      if (left.revision == 0 || part.revision != left.revision) return;
      written = true, written_at = event.answered;
      if (part.value != left.value) Violation(what + " has the bytes of one write and the revision of another");
    });
    if (left.revision != 0 && !written && !maybe_written) return Violation(what + " is a state that nobody wrote");
    // A Delete that came after it has taken it away for good; one that came after the durable revision may have.
    bool again = false;
    each([&](const Event& event, const Part& part) {
      if (part.kind != Part::Kind::kDelete || part.result == Result::kMiss) return;
      deleted = true;
      again = again || (left.revision != 0 && part.result == Result::kOk && event.called > written_at);
    });
    if (again) return Violation(what + " is there again after its Delete");
    if (left.revision < recorded.durable_revision[name] && !deleted)
      return Violation(absl::StrCat(what, " is at revision ", left.revision, ", and ", recorded.durable_revision[name],
                                    " was durable"));
    went_back_ += left.revision < latest;
  }

  // Of what one batch wrote a kill leaves all or none: where one name has come as far, so have the others.
  void CheckBatches(size_t group, const Recorded& recorded, const std::vector<NameAt>& left) {
    using Result = Part::Result;
    // Whether a name may have been deleted after `event`.
    const auto deleted = [&](size_t name, const Event& event) {
      for (const Event& other : recorded.events[group]) {
        for (const Part& part : other.parts) {
          if (part.name == name && part.kind == Part::Kind::kDelete && part.result != Result::kMiss &&
              other.answered > event.called)
            return true;
        }
      }
      return false;
    };
    for (const Event& event : recorded.events[group]) {
      if (event.parts.size() < 2) continue;
      for (const Part& one : event.parts) {
        if (one.result != Result::kOk || !one.moves_head() || left[one.name].revision < one.revision) continue;
        for (const Part& other : event.parts) {
          const uint64_t revision = left[other.name].revision;
          const bool half = other.moves_head() ? revision < other.revision && !deleted(other.name, event)
                                               : other.is_write() && revision != 0 && revision < one.revision;
          if (half) {
            Violation(absl::StrCat("half of a batch is left: ", names_[kFirstOfGroup[group] + other.name],
                                   " is at revision ", revision, ", after ", event.ToString()));
          }
        }
        ++batches_left_;
      }
    }
  }

  // All names, one after the other; nothing: one can't be read.
  std::optional<std::vector<NameAt>> LookAtAll() {
    Client observer(-1, process_->address(), names_, layout_, 0);
    std::vector<NameAt> all;
    for (size_t name = 0; name < kNames; ++name) {
      const std::optional<NameAt> at = observer.Look(name);
      if (!at.has_value()) return std::nullopt;
      all.push_back(*at);
    }
    for (const std::string& what : observer.unexpected()) Violation(what);
    return all;
  }

  void Run(int64_t history, bool kill) {
    history_ = history;
    names_.clear();
    for (size_t name = 0; name < kNames; ++name)
      names_.push_back(absl::StrCat("h", history, "/", v1::Durability_Name(kDurability[name]), name));
    std::vector<NameAt> at(kNames);
    if (kill) {
      const Recorded before = Phase(/*kill=*/true);
      ++kills_;
      greatest_at_start_ = greatest_revision_;
      Start();
      const std::optional<std::vector<NameAt>> left = LookAtAll();
      if (!left.has_value()) return Violation("a name can't be read after the restart");
      for (size_t group = 0; group < kGroups; ++group) {
        // How much of a ring behind its head comes back is open.
        std::vector<NameAt> last = OfGroup(*left, group);
        for (NameAt& name : last) name.ring.clear();
        const bool sync = IsSync(kFirstOfGroup[group]);
        Explain(group, before.events[group], OfGroup(at, group), sync ? last : std::vector<NameAt>());
        if (kDurability[kFirstOfGroup[group]] == v1::WRITE_BEHIND) CheckBatches(group, before, last);
      }
      for (size_t name = 0; name < kNames; ++name) {
        const NameAt& now = (*left)[name];
        if (kDurability[name] == v1::WRITE_BEHIND) CheckLeft(name, before, now);
        if (kDurability[name] == v1::VOLATILE && now.revision != 0)
          Violation(names_[name] + " is VOLATILE, and there after a kill");
      }
      at = *left;
    }
    const Recorded recorded = Phase(/*kill=*/false);
    const std::optional<std::vector<NameAt>> last = LookAtAll();
    if (!last.has_value()) return Violation("a name can't be read at the end");
    for (size_t group = 0; group < kGroups; ++group)
      Explain(group, recorded.events[group], OfGroup(at, group), OfGroup(*last, group));
    Client observer(-1, process_->address(), names_, layout_, 0);
    for (size_t name = 0; name < kNames; ++name) observer.Delete(name);
  }

  const std::string daemon_, directory_;
  const int64_t histories_;
  const bool stop_at_first_;
  const uint64_t seed_;
  std::mt19937_64 random_;
  std::unique_ptr<crash::DaemonProcess> process_;
  std::string layout_;
  std::vector<std::string> names_;
  std::atomic<uint64_t> values_{0};
  std::set<uint64_t> revisions_;
  uint64_t greatest_revision_ = 0, greatest_at_start_ = 0;
  int64_t history_ = 0, violations_ = 0, operations_ = 0, acked_sync_ = 0, conflicts_ = 0, overlapping_ = 0, kills_ = 0,
          kills_in_flight_ = 0, went_back_ = 0, forks_ = 0, rollbacks_ = 0, restores_ = 0, batches_ = 0, aborted_ = 0,
          batches_left_ = 0;
};

}  // namespace
}  // namespace statepool::model

int main(int argc, char** argv) { return statepool::model::Harness(statepool::bench::Arguments(argc, argv)).Main(); }
