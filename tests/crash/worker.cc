// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/crash/worker.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"

namespace statepool::crash {
namespace {

constexpr int kBaseNames = 6;
constexpr int kChildrenMin = 5, kChildrenMax = 50;
constexpr int64_t kChildrenAtMost = 60;  // of one worker, before it forks again
constexpr size_t kBatchMin = 2, kBatchMax = 8;
constexpr int64_t kSnapshotsAtMost = 6;
constexpr size_t kHistory = 4;

int64_t NowNanos() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

bool IsSequence(const NameOracle& name) { return name.live().exists && name.kind() == v1::SEQUENCE; }
bool IsSnapshot(const NameOracle& name) { return name.live().exists && name.kind() == v1::SNAPSHOT; }
bool IsBase(const NameOracle& name) { return absl::StrContains(name.name(), "/base/"); }

v1::Durability SomeDurability(uint64_t percent) {
  return percent < 65 ? v1::SYNC : percent < 90 ? v1::WRITE_BEHIND : v1::VOLATILE;
}

}  // namespace

void Run::Report(Violation violation, const std::string& name, const std::string& expected, const std::string& got) {
  ++counts[static_cast<size_t>(violation)];
  std::fprintf(stderr, "violation: %s: seed %llu cycle %d name %s expected: %s got: %s\n",
               kViolationNames[static_cast<size_t>(violation)], static_cast<unsigned long long>(seed), cycle.load(),
               name.c_str(), expected.c_str(), got.c_str());
}

int64_t Run::violations() const {
  int64_t sum = 0;
  for (const auto& count : counts) sum += count;
  return sum;
}

void Run::SawRevision(uint64_t revision) {
  uint64_t greatest = greatest_revision;
  while (greatest < revision && !greatest_revision.compare_exchange_weak(greatest, revision)) {
  }
}

Worker::Worker(Run* run, int id) : run_(run), id_(id), random_(run->seed * 1000 + static_cast<uint64_t>(id)) {
  for (size_t i = 0; i < kBaseNames; ++i) {
    names_.push_back(
        std::make_unique<NameOracle>(v1::SEQUENCE, absl::StrCat("w", id, "/base/", i), i % kLayoutBytes.size()));
  }
}

void Worker::Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  stub_ = v1::StatePool::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

// ---- calling

template <typename Request, typename Response>
grpc::Status Worker::Send(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                          const Request& request, Response* response) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  ++run_->operations;
  return ((*stub_).*method)(&context, request, response);
}

template <typename Request, typename Response>
Worker::Answer Worker::Write(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                         Response*),
                             const Request& request, Response* response, Promise promise, const NameOracle& name) {
  const int64_t start = NowNanos();
  const grpc::Status status = Send(method, request, response);
  if (status.ok()) {
    run_->acked_sync += promise == Promise::kSync;
    return Answer::kAcked;
  }
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    ++run_->refused;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return Answer::kRefused;
  }
  const int64_t killed_at = run_->killed_at;
  if (killed_at == 0) Unexpected(name.name(), status);
  if (promise != Promise::kNothing && start < killed_at) durable_in_flight_ = true;
  return Answer::kNone;
}

void Worker::Unexpected(const std::string& name, const grpc::Status& status) {
  run_->Report(Violation::kUnexpected, name, "success",
               absl::StrCat("status ", static_cast<int>(status.error_code()), ": ", status.error_message()));
}

void Worker::Acknowledge(NameOracle* name, State next, uint64_t revision) {
  if (revision <= run_->revision_floor || revision <= name->last_revision()) {
    run_->Report(Violation::kReissued, name->name(),
                 absl::StrCat("a revision above ", std::max<uint64_t>(run_->revision_floor, name->last_revision())),
                 absl::StrCat(revision));
  }
  run_->SawRevision(revision);
  next.exists = true;
  next.revision = revision;
  next.acked_at = NowNanos();
  name->Acknowledged(std::move(next));
}

// The end of a write of one name, other than Delete.
bool Worker::Conclude(Answer answer, NameOracle* name, State next, const v1::NameInfo& info) {
  if (answer == Answer::kNone) name->Unanswered(std::move(next));
  if (answer != Answer::kAcked) return answer == Answer::kRefused;
  if (info.position() != next.head() || info.durability() != next.durability ||
      (next.durability == v1::SYNC && info.durable_revision() != info.revision())) {
    run_->Report(Violation::kUnexpected, name->name(), next.ToString(), info.ShortDebugString());
  }
  Acknowledge(name, std::move(next), info.revision());
  name->Durable(info.durable_revision());
  return true;
}

// ---- operations

NameOracle* Worker::Pick(const Wanted& wanted) {
  NameOracle* picked = nullptr;
  uint64_t seen = 0;
  for (const auto& name : names_) {
    if (wanted(*name) && Below(++seen) == 0) picked = name.get();
  }
  return picked;
}

int64_t Worker::Count(const Wanted& wanted) const {
  return std::count_if(names_.begin(), names_.end(), [&](const auto& name) { return wanted(*name); });
}

bool Worker::Set() {
  NameOracle* name = names_[Below(kBaseNames)].get();
  if (Chance(30)) {
    if (NameOracle* child = Pick(IsSequence)) name = child;
  }
  State next = name->live();
  if (!next.exists) next.ring.clear();
  next.exists = true;
  next.durability = SomeDurability(Below(100));
  next.ring.push_back(NewContent());
  if (next.ring.size() > kHistory) next.ring.erase(next.ring.begin());

  v1::SetRequest request;
  request.set_sequence(name->name());
  request.set_layout(run_->layouts[name->layout()]);
  request.set_position(next.head());
  request.set_data(StateBytes(run_->seed, next.head(), kLayoutBytes[name->layout()]));
  request.mutable_options()->set_durability(next.durability);
  request.mutable_options()->set_max_history(kHistory);
  if (Chance(30)) request.set_if_revision(name->live().exists ? name->live().revision : 0);
  v1::NameInfo info;
  const Answer answer = Write(&v1::StatePool::Stub::Set, request, &info, PromiseOf(next), *name);
  if (answer == Answer::kAcked) hot_.insert(next.head());
  return Conclude(answer, name, std::move(next), info);
}

bool Worker::Fork() {
  NameOracle* source = Pick(IsSequence);
  if (source == nullptr || Count(IsSequence) - kBaseNames > kChildrenAtMost) return true;
  State next = source->live();
  next.durability = Chance(75) ? v1::SYNC : v1::WRITE_BEHIND;
  const uint64_t group = ++groups_;
  const size_t children = kChildrenMin + Below(kChildrenMax - kChildrenMin + 1);
  v1::ForkRequest request;
  *request.mutable_source() = source->ref();
  request.mutable_options()->set_durability(next.durability);
  for (size_t i = 0; i < children; ++i) request.add_children(absl::StrCat("w", id_, "/fork/", group, "/", i));

  v1::ForkResponse response;
  const Answer answer = Write(&v1::StatePool::Stub::Fork, request, &response, PromiseOf(next), *source);
  if (answer == Answer::kRefused) return true;
  if (answer == Answer::kAcked &&
      (response.children_size() != request.children_size() || response.position() != next.head())) {
    run_->Report(Violation::kUnexpected, source->name(), absl::StrCat(children, " children of ", next.ToString()),
                 response.ShortDebugString());
    return false;
  }
  run_->forks += answer == Answer::kAcked;
  for (int i = 0; i < request.children_size(); ++i) {
    auto child = std::make_unique<NameOracle>(v1::SEQUENCE, request.children(i), source->layout());
    if (answer == Answer::kAcked) {
      Acknowledge(child.get(), next, response.children(i).revision());
    } else {
      child->Unanswered(next);
    }
    child->group = group;
    names_.push_back(std::move(child));
  }
  return answer == Answer::kAcked;
}

// New sequences in one BatchWrite, all or none.
bool Worker::Batch() {
  if (Count(IsSequence) - kBaseNames > kChildrenAtMost) return true;
  const v1::Durability durability = Chance(75) ? v1::SYNC : v1::WRITE_BEHIND;
  const uint64_t group = ++groups_;
  const size_t items = kBatchMin + Below(kBatchMax - kBatchMin + 1);
  std::vector<State> next(items);
  v1::BatchWriteRequest request;
  request.set_all_or_none(true);
  for (size_t i = 0; i < items; ++i) {
    next[i] = {.exists = true, .ring = {NewContent()}, .durability = durability};
    const size_t layout = i % 2;
    v1::BatchWriteItem* item = request.add_items();
    item->mutable_set()->set_sequence(absl::StrCat("w", id_, "/batch/", group, "/", i));
    item->mutable_set()->set_layout(run_->layouts[layout]);
    item->mutable_set()->set_position(next[i].head());
    item->mutable_set()->mutable_options()->set_durability(durability);
    item->mutable_set()->mutable_options()->set_max_history(kHistory);
    item->set_data_bytes(kLayoutBytes[layout]);
    request.mutable_data()->append(StateBytes(run_->seed, next[i].head(), kLayoutBytes[layout]));
  }
  v1::BatchWriteResponse response;
  const NameOracle named(v1::SEQUENCE, request.items(0).set().sequence(), 0);
  const Answer answer = Write(&v1::StatePool::Stub::BatchWrite, request, &response, PromiseOf(next[0]), named);
  if (answer == Answer::kRefused) return true;
  if (answer == Answer::kAcked && !response.done()) {
    ++run_->refused;
    const bool full = std::any_of(response.results().begin(), response.results().end(), [](const auto& result) {
      return result.error().code() == static_cast<int>(grpc::StatusCode::RESOURCE_EXHAUSTED);
    });
    if (!full) run_->Report(Violation::kUnexpected, named.name(), "done", response.ShortDebugString());
    return full;
  }
  run_->batches += answer == Answer::kAcked;
  for (size_t i = 0; i < items; ++i) {
    const int index = static_cast<int>(i);
    auto name = std::make_unique<NameOracle>(v1::SEQUENCE, request.items(index).set().sequence(), i % 2);
    if (answer == Answer::kAcked) {
      Acknowledge(name.get(), next[i], response.results(index).info().revision());
      hot_.insert(next[i].head());
    } else {
      name->Unanswered(next[i]);
    }
    name->group = group;
    names_.push_back(std::move(name));
  }
  return answer == Answer::kAcked;
}

bool Worker::Snapshot() {
  const NameOracle* source = Pick(IsSequence);
  if (source == nullptr || Count(IsSnapshot) >= kSnapshotsAtMost) return true;
  State next = source->live();
  next.durability = v1::SYNC;
  next.ring = {next.head()};
  auto snapshot =
      std::make_unique<NameOracle>(v1::SNAPSHOT, absl::StrCat("w", id_, "/snapshot/", NewContent()), source->layout());
  v1::SnapshotRequest request;
  *request.mutable_source() = source->ref();
  request.set_snapshot(snapshot->name());
  request.mutable_options()->set_durability(v1::SYNC);
  v1::NameInfo info;
  const Answer answer = Write(&v1::StatePool::Stub::Snapshot, request, &info, Promise::kSync, *snapshot);
  const bool go_on = Conclude(answer, snapshot.get(), std::move(next), info);
  if (answer != Answer::kRefused) names_.push_back(std::move(snapshot));
  return go_on;
}

bool Worker::Delete() {
  const bool base_too = Chance(15);
  NameOracle* name = Pick([&](const NameOracle& n) { return n.live().exists && (base_too || !IsBase(n)); });
  if (name == nullptr) return true;
  v1::DeleteRequest request;
  *request.mutable_name() = name->ref();
  if (Chance(30)) request.set_if_revision(name->live().revision);
  v1::DeleteResponse response;
  // Deleting what has a record waits for the disk; what has none is gone at once, and stays gone too.
  const Promise promise = name->live().durability == v1::SYNC ? Promise::kOther : Promise::kNothing;
  const Answer answer = Write(&v1::StatePool::Stub::Delete, request, &response, promise, *name);
  if (answer == Answer::kAcked) name->Acknowledged(State());
  if (answer == Answer::kNone) name->Unanswered(State());
  return answer != Answer::kNone;
}

bool Worker::Rollback() {
  NameOracle* name = Pick([](const NameOracle& n) { return IsSequence(n) && n.live().ring.size() > 1; });
  if (name == nullptr) return true;
  State next = name->live();
  next.ring.resize(1 + Below(next.ring.size() - 1));
  v1::RollbackRequest request;
  request.set_sequence(name->name());
  request.set_position(next.head());
  v1::NameInfo info;
  const Answer answer = Write(&v1::StatePool::Stub::Rollback, request, &info, PromiseOf(next), *name);
  return Conclude(answer, name, std::move(next), info);
}

bool Worker::Flush() {
  NameOracle* name = Pick([](const NameOracle& n) { return IsSequence(n) && n.live().durability == v1::WRITE_BEHIND; });
  if (name == nullptr) return true;
  v1::FlushRequest request;
  const bool all = Chance(30);
  if (!all) *request.add_names() = name->ref();
  v1::FlushResponse response;
  const Answer answer = Write(&v1::StatePool::Stub::Flush, request, &response, Promise::kOther, *name);
  if (!all) name->group = 0;  // recorded without its siblings
  if (answer == Answer::kAcked) {
    for (const auto& flushed : names_) {
      if (all || flushed.get() == name) flushed->Durable(flushed->live().revision);
    }
  }
  return answer != Answer::kNone;
}

bool Worker::Look() {
  NameOracle* name = Pick([](const NameOracle& n) { return n.live().exists; });
  if (name == nullptr) return true;
  const std::optional<Observed> seen = Observe(*name);
  if (!seen.has_value()) return false;
  name->Durable(seen->durable_revision);
  const State& live = name->live();
  if (!seen->damaged &&
      (!seen->state.exists || seen->state.revision != live.revision || seen->state.ring != live.ring)) {
    run_->Report(Violation::kUnexpected, name->name(), live.ToString(), seen->state.ToString());
  }
  return true;
}

std::optional<Worker::Observed> Worker::Observe(const NameOracle& name) {
  Observed seen;
  v1::DescribeRequest describe;
  *describe.mutable_name() = name.ref();
  v1::NameInfo info;
  grpc::Status status = Send(&v1::StatePool::Stub::Describe, describe, &info);
  const auto failed = [&]() -> std::optional<Observed> {
    if (run_->killed_at != 0 && status.error_code() == grpc::StatusCode::UNAVAILABLE) return std::nullopt;
    seen.damaged = true;
    if (status.error_code() == grpc::StatusCode::DATA_LOSS || status.error_code() == grpc::StatusCode::NOT_FOUND) {
      run_->Report(Violation::kCorrupt, name.name(), name.Expected(), status.error_message());
    } else {
      Unexpected(name.name(), status);
    }
    return seen;
  };
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return seen;
  if (!status.ok() || info.history().empty()) return failed();
  seen.state.exists = true;
  seen.durable_revision = info.durable_revision();
  seen.state.revision = info.revision();
  seen.state.durability = info.durability();
  for (auto version = info.history().rbegin(); version != info.history().rend(); ++version)
    seen.state.ring.push_back(version->position());
  run_->SawRevision(info.revision());

  // The head, or now and then an older version.
  v1::VersionInfo version = info.history(0);
  v1::GetRequest get;
  *get.mutable_name() = name.ref();
  if (Chance(30)) {
    version = info.history(static_cast<int>(Below(static_cast<uint64_t>(info.history_size()))));
    get.set_position(version.position());
  }
  const Content content = version.position();
  if (version.tier() == v1::COLD && hot_.contains(content)) ++run_->spills;
  v1::GetResponse got;
  for (int attempt = 0; attempt < 5000; ++attempt) {
    status = Send(&v1::StatePool::Stub::Get, get, &got);
    if (status.error_code() != grpc::StatusCode::RESOURCE_EXHAUSTED) break;
    ++run_->refused;  // the other workers' reads fill the budget for a moment
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (!status.ok()) return failed();
  run_->promotions += version.tier() == v1::COLD;
  hot_.insert(content);

  const std::string bytes = StateBytes(run_->seed, content, kLayoutBytes[name.layout()]);
  const std::string checksum = absl::StrCat(absl::Hex(ChecksumOf(bytes), absl::kZeroPad16));
  if (got.data() != bytes || version.checksum() != checksum || info.position() != seen.state.head() ||
      got.info().position() != content) {
    seen.damaged = true;
    int64_t other = 0;
    if (got.data().size() >= sizeof(other))
      std::copy_n(got.data().data(), sizeof(other), reinterpret_cast<char*>(&other));
    run_->Report(
        Violation::kCorrupt, name.name(), absl::StrCat("content ", content, " checksum ", checksum),
        absl::StrCat(got.data().size(), " bytes that begin as content ", other, ", ", info.ShortDebugString()));
  }
  return seen;
}

// ---- cycle

void Worker::Load(const std::string& address) {
  Connect(address);
  durable_in_flight_ = false;
  for (bool go_on = true; go_on;) {
    const uint64_t percent = Below(100);
    go_on = percent < 35   ? Set()
            : percent < 39 ? Batch()
            : percent < 48 ? Fork()
            : percent < 54 ? Snapshot()
            : percent < 76 ? Delete()
            : percent < 82 ? Rollback()
            : percent < 85 ? Flush()
                           : Look();
  }
}

void Worker::Verify(const std::string& address) {
  Connect(address);
  hot_.clear();
  struct Group {
    std::string member;
    int there = 0, all = 0;
  };
  std::map<uint64_t, Group> groups;  // of one Fork or BatchWrite each
  for (const auto& name : names_) {
    const std::string expected = name->Expected();
    const std::optional<Observed> seen = Observe(*name);
    if (!seen.has_value()) return;
    const std::optional<Violation> violation = name->Restarted(seen->state);
    if (violation.has_value() && !seen->damaged)
      run_->Report(*violation, name->name(), expected, seen->state.ToString());
    if (seen->durable_revision != seen->state.revision) {
      run_->Report(Violation::kUnexpected, name->name(), "durable after a restart",
                   absl::StrCat("durable_revision ", seen->durable_revision));
    }
    if (name->group != 0) {
      Group& group = groups[name->group];
      group.member = name->name();
      group.there += seen->state.exists;
      ++group.all;
    }
    name->group = 0;
  }
  for (const auto& [id, group] : groups) {
    if (group.there == 0 || group.there == group.all) continue;
    run_->Report(Violation::kHalfFork, group.member, absl::StrCat("0 or ", group.all, " that were made with it"),
                 absl::StrCat(group.there));
  }
  // Of names that are gone only the base names are used again; that no other comes back, the list of all names tells.
  names_.erase(
      std::remove_if(names_.begin() + kBaseNames, names_.end(), [](const auto& name) { return !name->live().exists; }),
      names_.end());
}

void Worker::RecordedUpTo(int64_t time) {
  for (const auto& name : names_) name->RecordedUpTo(time);
}

void Worker::Collect(std::set<std::string>* names) const {
  for (const auto& name : names_) {
    if (name->live().exists) names->insert(name->name());
  }
}

}  // namespace statepool::crash
