// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/fault/ledger.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "kernels/checksum.h"

namespace statepool::fault {
namespace {

using crash::kLayoutBytes;
using crash::NameOracle;
using crash::State;
using crash::Violation;

constexpr size_t kHistory = 3;

}  // namespace

Ledger::Ledger(crash::Run* run, int names) : run_(run), random_(run->seed) {
  for (int i = 0; i < names; ++i)
    names_.push_back(std::make_unique<NameOracle>(v1::SEQUENCE, absl::StrCat("fault/", i),
                                                  static_cast<size_t>(i) % kLayoutBytes.size()));
}

Ledger::Ledger(const Ledger& other)
    : run_(other.run_),
      random_(other.random_),
      refused_contents_(other.refused_contents_),
      contents_(other.contents_),
      forks_(other.forks_) {
  for (const auto& name : other.names_) {
    names_.push_back(std::make_unique<NameOracle>(*name));
    if (other.uncertain_.contains(name.get())) uncertain_.insert(names_.back().get());
  }
}

void Ledger::Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  stub_ = v1::StatePool::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

template <typename Request, typename Response>
Answer Ledger::Send(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response, const std::string& name) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  ++run_->operations;
  const grpc::Status status = ((*stub_).*method)(&context, request, response);
  reason_.clear();
  message_ = absl::StrCat("status ", static_cast<int>(status.error_code()), ": ", status.error_message());
  has_retry_ = false;
  if (status.ok()) return Answer::kAcked;
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  for (const google::protobuf::Any& any : details.details()) {
    google::rpc::ErrorInfo info;
    if (any.Is<google::rpc::ErrorInfo>() && any.UnpackTo(&info)) reason_ = info.reason();
    has_retry_ = has_retry_ || any.Is<google::rpc::RetryInfo>();
  }
  switch (status.error_code()) {
    case grpc::StatusCode::RESOURCE_EXHAUSTED: return Answer::kFull;
    case grpc::StatusCode::UNAVAILABLE: return Answer::kFailed;
    case grpc::StatusCode::DATA_LOSS: return Answer::kDamaged;
    case grpc::StatusCode::NOT_FOUND:
      if constexpr (std::is_same_v<Request, v1::DescribeRequest>) return Answer::kWrong;  // Observe's to judge
      break;
    default: break;
  }
  if (!quiet_) run_->Report(Violation::kUnexpected, name, "success or a refusal", message_);
  return Answer::kWrong;
}

Answer Ledger::RegisterLayouts() {
  for (size_t i = 0; i < kLayoutBytes.size(); ++i) {
    v1::RegisterLayoutRequest request;
    request.mutable_layout()->set_model_id(absl::StrCat("fault/", i));
    v1::TensorSpec* tensor = request.mutable_layout()->add_tensors();
    tensor->set_name("state");
    tensor->set_kind(v1::OTHER);
    tensor->add_layers(0);
    tensor->set_dtype(v1::UINT8);
    v1::Axis* axis = tensor->add_axes();
    axis->set_name("byte");
    axis->set_size(kLayoutBytes[i]);
    v1::LayoutInfo info;
    const Answer answer = Send(&v1::StatePool::Stub::RegisterLayout, request, &info, "layouts");
    if (answer != Answer::kAcked) return answer;
    run_->layouts[i] = info.fingerprint();
  }
  return Answer::kAcked;
}

Answer Ledger::Conclude(Answer answer, NameOracle* name, State next, uint64_t revision) {
  if (answer == Answer::kAcked) {
    if (revision <= name->last_revision() || revision <= run_->revision_floor)
      run_->Report(Violation::kReissued, name->name(), "a new revision", absl::StrCat(revision));
    run_->SawRevision(revision);
    next.revision = revision;
    acked_ += next.durability == v1::SYNC;
    run_->acked_sync += next.durability == v1::SYNC;
    name->Acknowledged(std::move(next));
  } else if (answer == Answer::kFull) {
    ++refused_;
    if (!next.ring.empty() && (!name->live().exists || name->live().head() != next.head()))
      refused_contents_.insert(next.head());
  } else {
    uncertain_.insert(name);
    name->Unanswered(std::move(next));
  }
  return answer;
}

Answer Ledger::Set(size_t i, v1::Durability durability) {
  NameOracle* name = names_[i].get();
  State next = name->live();
  next.exists = true;
  next.durability = durability;
  next.ring.push_back(++contents_);
  if (next.ring.size() > kHistory) next.ring.erase(next.ring.begin());
  v1::SetRequest request;
  request.set_sequence(name->name());
  request.set_layout(run_->layouts[name->layout()]);
  request.set_position(next.head());
  request.set_data(crash::StateBytes(run_->seed, next.head(), kLayoutBytes[name->layout()]));
  request.mutable_options()->set_durability(durability);
  request.mutable_options()->set_max_history(kHistory);
  v1::NameInfo info;
  const Answer answer = Send(&v1::StatePool::Stub::Set, request, &info, name->name());
  return Conclude(answer, name, std::move(next), info.revision());
}

Answer Ledger::Fork(size_t source, int children) {
  State next = names_[source]->live();
  next.durability = v1::SYNC;
  v1::ForkRequest request;
  *request.mutable_source() = names_[source]->ref();
  request.mutable_options()->set_durability(v1::SYNC);
  const uint64_t group = static_cast<uint64_t>(++forks_);
  for (int i = 0; i < children; ++i) request.add_children(absl::StrCat("fault/fork/", group, "/", i));
  v1::ForkResponse response;
  const Answer answer = Send(&v1::StatePool::Stub::Fork, request, &response, names_[source]->name());
  if (answer == Answer::kFull) return ++refused_, answer;
  run_->forks += answer == Answer::kAcked;
  for (int i = 0; i < children; ++i) {
    names_.push_back(std::make_unique<NameOracle>(v1::SEQUENCE, request.children(i), names_[source]->layout()));
    Conclude(answer, names_.back().get(), next,
             i < response.children_size() ? response.children(i).revision() : uint64_t{0});
    names_.back()->group = group;
  }
  return answer;
}

Answer Ledger::Delete(size_t i) {
  NameOracle* name = names_[i].get();
  v1::DeleteRequest request;
  *request.mutable_name() = name->ref();
  v1::DeleteResponse response;
  const Answer answer = Send(&v1::StatePool::Stub::Delete, request, &response, name->name());
  if (answer == Answer::kAcked) {
    name->Acknowledged(State());
  } else if (answer == Answer::kFull) {
    ++refused_;
  } else {
    uncertain_.insert(name);
    name->Unanswered(State());
  }
  return answer;
}

Answer Ledger::Flush() {
  v1::FlushResponse response;
  const Answer answer = Send(&v1::StatePool::Stub::Flush, v1::FlushRequest(), &response, "flush");
  for (const auto& name : names_) {
    if (answer == Answer::kAcked && !uncertain_.contains(name.get())) name->Durable(name->live().revision);
    if (answer == Answer::kFailed) name->group = 0;
  }
  return answer;
}

Ledger::Seen Ledger::Observe(const NameOracle& name) {
  Seen seen;
  v1::DescribeRequest describe;
  *describe.mutable_name() = name.ref();
  v1::NameInfo info;
  seen.answer = Send(&v1::StatePool::Stub::Describe, describe, &info, name.name());
  if (seen.answer == Answer::kWrong && !reason_.empty()) return seen.answer = Answer::kAcked, seen;  // absent
  if (seen.answer != Answer::kAcked) return seen;
  seen.state.exists = true;
  seen.state.revision = info.revision();
  seen.state.durability = info.durability();
  seen.durable_revision = info.durable_revision();
  for (auto version = info.history().rbegin(); version != info.history().rend(); ++version)
    seen.state.ring.push_back(version->position());
  v1::GetRequest get;
  *get.mutable_name() = name.ref();
  v1::GetResponse got;
  seen.answer = Send(&v1::StatePool::Stub::Get, get, &got, name.name());
  if (seen.answer != Answer::kAcked) return seen;
  const std::string bytes = crash::StateBytes(run_->seed, seen.state.head(), kLayoutBytes[name.layout()]);
  seen.bytes_right = got.data() == bytes && got.info().position() == seen.state.head() &&
                     info.checksum() == absl::StrCat(absl::Hex(ChecksumOf(bytes), absl::kZeroPad16));
  return seen;
}

Answer Ledger::Look(size_t i) {
  NameOracle* name = names_[i].get();
  const Seen seen = Observe(*name);
  if (seen.answer != Answer::kAcked) return seen.answer;
  const State& live = name->live();
  if (seen.state.exists != live.exists ||
      (live.exists && (seen.state.revision != live.revision || seen.state.ring != live.ring))) {
    run_->Report(Violation::kUnexpected, name->name(), live.ToString(), seen.state.ToString());
    return Answer::kWrong;
  }
  if (live.exists && !seen.bytes_right) {
    run_->Report(Violation::kCorrupt, name->name(), live.ToString(), "other bytes");
    return Answer::kWrong;
  }
  if (live.exists) name->Durable(seen.durable_revision);
  return Answer::kAcked;
}

bool Ledger::Verify() {
  std::map<uint64_t, std::pair<int, int>> groups;
  for (const auto& name : names_) {
    const std::string expected = name->Expected();
    const Seen seen = Observe(*name);
    if (seen.answer == Answer::kFailed) return false;
    const std::optional<Violation> violation = name->Restarted(seen.state);
    if (seen.answer != Answer::kAcked) {
      run_->Report(Violation::kCorrupt, name->name(), expected, message_);
    } else if (seen.state.exists && refused_contents_.contains(seen.state.head())) {
      run_->Report(Violation::kResurrected, name->name(), expected,
                   "a write that was refused: " + seen.state.ToString());
    } else if (violation.has_value()) {
      run_->Report(*violation, name->name(), expected, seen.state.ToString());
    } else if (seen.state.exists && !seen.bytes_right) {
      run_->Report(Violation::kCorrupt, name->name(), expected, "other bytes");
    }
    if (name->group != 0) {
      groups[name->group].first += seen.state.exists;
      ++groups[name->group].second;
      name->group = 0;
    }
  }
  for (const auto& [group, children] : groups) {
    if (children.first != 0 && children.first != children.second)
      run_->Report(Violation::kHalfFork, absl::StrCat("fault/fork/", group), "0 or all children",
                   absl::StrCat(children.first, " of ", children.second));
  }
  uncertain_.clear();
  run_->revision_floor = run_->greatest_revision.load();
  // Children that are gone are not made again.
  names_.erase(std::remove_if(names_.begin(), names_.end(),
                              [](const auto& name) {
                                return !name->live().exists && name->name().find("/fork/") != std::string::npos;
                              }),
               names_.end());
  return true;
}

Sight Ledger::See(size_t i) {
  quiet_ = true;
  const NameOracle& name = *names_[i];
  const Seen seen = Observe(name);
  quiet_ = false;
  const State& live = name.live();
  if (seen.answer != Answer::kAcked) return Sight::kTold;
  if (!seen.state.exists) {
    if (!live.exists) return Sight::kRight;
    // That nobody ever made it would be a lie; that it may be lost is none.
    return reason_ == "NEVER_CREATED" || reason_ == "DELETED" ? Sight::kGone : Sight::kTold;
  }
  if (!seen.bytes_right) return Sight::kWrongBytes;
  // The ring keeps its unbroken run to the head: it may be shorter.
  const bool same = live.exists && seen.state.revision == live.revision && !seen.state.ring.empty() &&
                    seen.state.ring.size() <= live.ring.size() &&
                    std::equal(seen.state.ring.rbegin(), seen.state.ring.rend(), live.ring.rbegin());
  return same ? Sight::kRight : Sight::kStale;
}

}  // namespace statepool::fault
