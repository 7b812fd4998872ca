// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/model/reference.h"

#include <google/rpc/error_details.pb.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/core/error.h"

namespace statepool::model {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr auto kAborted = absl::StatusCode::kAborted;
constexpr auto kExists = absl::StatusCode::kAlreadyExists;

bool IsName(const std::string& name) {
  if (name.empty() || name.size() > 512) return false;
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20) return false;
  }
  for (const std::string& segment : std::vector<std::string>(absl::StrSplit(name, '/'))) {
    if (segment.empty() || segment == "." || segment == "..") return false;
  }
  return true;
}

bool IsPrefixName(const std::string& name) {
  return name.size() == 32 && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool IsPosition(int64_t position) { return position >= 0 && position <= int64_t{1} << 53; }

Key KeyOf(const v1::NameRef& ref) {
  switch (ref.name_case()) {
    case v1::NameRef::kSequence: return {v1::SEQUENCE, ref.sequence()};
    case v1::NameRef::kSnapshot: return {v1::SNAPSHOT, ref.snapshot()};
    case v1::NameRef::kPrefix: return {v1::PREFIX, ref.prefix()};
    case v1::NameRef::NAME_NOT_SET: break;
  }
  return {0, ""};
}

template <typename Request>
std::string Body(const char* method, Request request) {
  request.clear_request_id();
  return absl::StrCat(method, "\n", request.SerializeAsString());
}

absl::Duration FromProto(const google::protobuf::Duration& d) {
  return absl::Seconds(d.seconds()) + absl::Nanoseconds(d.nanos());
}
absl::Time FromProto(const google::protobuf::Timestamp& t) {
  return absl::FromUnixSeconds(t.seconds()) + absl::Nanoseconds(t.nanos());
}
void ToProto(absl::Duration duration, google::protobuf::Duration* proto) {
  proto->set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}
void ToProto(absl::Time time, google::protobuf::Timestamp* proto) {
  proto->set_seconds(absl::ToUnixSeconds(time));
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(proto->seconds()))));
}

std::string Differs(const google::protobuf::Message& expected, const google::protobuf::Message& actual) {
  if (expected.SerializeAsString() == actual.SerializeAsString()) return "";
  return absl::StrCat("expected {", expected.ShortDebugString(), "}, got {", actual.ShortDebugString(), "}");
}

}  // namespace

std::string ChecksumOfBytes(const std::string& data) {
  constexpr size_t kLeaf = 65536;
  std::string hashes;
  for (size_t at = 0; at < data.size(); at += kLeaf) {
    const uint64_t hash = XXH3_64bits(data.data() + at, std::min(kLeaf, data.size() - at));
    for (int byte = 0; byte < 8; ++byte) hashes.push_back(static_cast<char>(hash >> (8 * byte)));
  }
  return absl::StrCat(absl::Hex(XXH3_64bits(hashes.data(), hashes.size()), absl::kZeroPad16));
}

Outcome::Outcome(const absl::Status& status) : code(status.code()) {
  if (status.ok()) return;
  const ErrorDetail detail = GetErrorDetail(status);
  reason = detail.reason;
  field = detail.field;
  metadata.insert(detail.metadata.begin(), detail.metadata.end());
}

Outcome::Outcome(const google::rpc::Status& item) : code(static_cast<absl::StatusCode>(item.code())) {
  for (const google::protobuf::Any& any : item.details()) {
    google::rpc::ErrorInfo info;
    if (!any.UnpackTo(&info)) continue;
    reason = info.reason();
    metadata.insert(info.metadata().begin(), info.metadata().end());
    field = metadata["field"];
  }
}

std::string Outcome::ToString() const {
  if (ok()) return "OK";
  std::string text = absl::StrCat(absl::StatusCodeToString(code), " ", reason, " field=", field);
  for (const auto& [key, value] : metadata) absl::StrAppend(&text, " ", key, "=", value);
  return text;
}

// ---- finding

State* Reference::Live(const Key& key) {
  const auto it = names_.find(key);
  return it == names_.end() ? nullptr : &it->second;
}
const State* Reference::Find(const Key& key) const {
  const auto it = names_.find(key);
  return it == names_.end() ? nullptr : &it->second;
}

const LayoutM* Reference::LayoutOf(const std::string& name) const {
  if (const auto it = layouts_.find(name); it != layouts_.end()) return &it->second;
  for (const auto& [fingerprint, layout] : layouts_) {
    if (layout.aliases.count(name) > 0) return &layout;
  }
  return nullptr;
}

std::vector<Fault> Reference::MissesOf(const Key& key, const std::string& field, const Stone* stone) const {
  std::vector<Fault> misses;
  const auto with_incarnation = [&](const std::string& reason) {
    misses.push_back({kNotFound, reason, field, {{"incarnation", incarnation_}}});
  };
  if (stone != nullptr && stone->reason == "NOT_DURABLE_AT_RESTART") with_incarnation(stone->reason);
  else if (stone != nullptr) misses.push_back({kNotFound, stone->reason, field});
  if (stone == nullptr && !uncertain_)
    misses.push_back({kNotFound, key.first == v1::PREFIX ? "NEVER_PUBLISHED" : "NEVER_CREATED", field});
  if (uncertain_ && (stone == nullptr || stone->perhaps)) with_incarnation("UNKNOWN_SINCE_RESTART");
  return misses;
}

std::vector<Fault> Reference::MissOf(const Key& key, const std::string& field) const {
  const auto stone = stones_.find(key);
  return MissesOf(key, field, stone == stones_.end() ? nullptr : &stone->second);
}

Reference::Resolved Reference::Resolve(const v1::NameRef& ref, std::optional<int64_t> position,
                                       const std::string& layout, uint64_t version_id, const std::string& field) {
  Resolved found;
  if (position.has_value() && !IsPosition(*position))
    found.faults.push_back({kInvalid, "INVALID_POSITION", "position"});
  const LayoutM* wanted = LayoutOf(layout);
  if (!layout.empty() && wanted == nullptr) found.faults.push_back({kNotFound, "LAYOUT_UNKNOWN", "layout"});
  found.key = KeyOf(ref);
  if (found.key.first == 0) {
    found.faults.push_back({kInvalid, "MISSING_FIELD", field});
    return found;
  }
  if (!IsName(found.key.second) || (found.key.first == v1::PREFIX && !IsPrefixName(found.key.second))) {
    found.faults.push_back({kInvalid, "INVALID_NAME", field});
    return found;
  }
  found.name = Live(found.key);
  if (found.name == nullptr) {
    for (Fault& miss : MissOf(found.key, field)) found.faults.push_back(std::move(miss));
    return found;
  }
  if (wanted != nullptr && &layouts_.at(found.name->layout) != wanted)
    found.faults.push_back({kNotFound, "LAYOUT_MISMATCH", "layout"});
  const std::vector<VersionPtr>& ring = found.name->ring;
  if (version_id == 0 && !position.has_value()) {
    found.index = ring.size() - 1;
    return found;
  }
  for (size_t i = ring.size(); i-- > 0;) {
    if (version_id != 0 && ring[i]->id != version_id) continue;
    if (position.has_value() && ring[i]->position != *position) continue;
    found.index = i;
    return found;
  }
  const bool has_version = std::any_of(ring.begin(), ring.end(), [&](const auto& v) { return v->id == version_id; });
  if (version_id != 0 && !has_version) found.faults.push_back({kNotFound, "VERSION_MISMATCH", "version_id"});
  else found.faults.push_back({kNotFound, "POSITION_MISMATCH", "position"});
  return found;
}

std::optional<std::vector<std::pair<uint64_t, uint64_t>>> Reference::Select(const LayoutM& layout,
                                                                            const v1::Select& select,
                                                                            std::vector<Fault>* faults) const {
  // Byte by byte ranges, one for each layer of each tensor.
  static constexpr uint64_t kSize[] = {0, 4, 2, 2, 8, 1, 1, 1, 1, 2, 4, 8};
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  std::multiset<std::string> tensors(select.tensors().begin(), select.tensors().end());
  std::multiset<uint32_t> layers(select.layers().begin(), select.layers().end());
  bool valid = std::is_sorted(select.layers().begin(), select.layers().end());
  std::set<std::string> seen_tensors;
  std::set<uint32_t> seen_layers;
  uint64_t offset = 0;
  for (const v1::TensorSpec& tensor : layout.layout.tensors()) {
    uint64_t bytes = kSize[tensor.dtype()];
    for (const v1::Axis& axis : tensor.axes()) bytes *= axis.size();
    const bool selected = tensors.empty() || tensors.count(tensor.name()) == 1;
    if (tensors.count(tensor.name()) == 1) seen_tensors.insert(tensor.name());
    for (const uint32_t layer : tensor.layers()) {
      if (selected && (layers.empty() || layers.count(layer) == 1)) {
        ranges.emplace_back(offset, bytes);
        seen_layers.insert(layer);
      }
      offset += bytes;
    }
  }
  valid = valid && seen_tensors.size() == tensors.size() && (layers.empty() || seen_layers.size() == layers.size());
  if (valid) return ranges;
  faults->push_back({kInvalid, "INVALID_OPTION"});
  return std::nullopt;
}

// ---- what an answer says

// How many tokens the head can go back by: a version for each, and each one token on from the one before it.
uint32_t RollbackTokensOf(const State& state) {
  uint32_t tokens = 0;
  for (size_t i = state.ring.size(); i-- > 1 && state.ring[i - 1]->position + 1 == state.ring[i]->position;) ++tokens;
  return tokens;
}

v1::NameInfo Reference::InfoOf(const Key& key, const State& state, const VersionM& version, bool history) const {
  v1::NameInfo info;
  if (key.first == v1::SEQUENCE) info.mutable_name()->set_sequence(key.second);
  if (key.first == v1::SNAPSHOT) info.mutable_name()->set_snapshot(key.second);
  if (key.first == v1::PREFIX) info.mutable_name()->set_prefix(key.second);
  info.set_layout(state.layout);
  info.set_state_bytes(layouts_.at(state.layout).bytes);
  info.set_position(version.position);
  info.set_revision(state.revision);
  info.set_checksum(version.checksum);
  info.set_exactness(version.exactness);
  info.set_version_id(version.id);
  info.set_parent_version_id(version.parent);
  info.set_attachment_bytes(version.attachment.size());
  info.set_durability(state.durability);
  info.set_max_history(state.max_history);
  for (auto v = state.ring.rbegin(); history && v != state.ring.rend(); ++v) {
    v1::VersionInfo* to = info.add_history();
    to->set_position((*v)->position);
    to->set_version_id((*v)->id);
    to->set_parent_version_id((*v)->parent);
    to->set_exactness((*v)->exactness);
    to->set_checksum((*v)->checksum);
  }
  if (history) info.set_rollback_tokens(RollbackTokensOf(state));
  if (state.ttl != absl::InfiniteDuration()) ToProto(state.ttl, info.mutable_ttl());
  if (const MonoTime deadline = state.Deadline(); deadline != kNever) {
    const absl::Time idle_end = clock_->WallNow() + absl::Nanoseconds(deadline - clock_->Now());
    ToProto(state.ttl == absl::InfiniteDuration() ? state.expire_time : idle_end, info.mutable_expire_time());
  }
  ToProto(state.create_time, info.mutable_create_time());
  return info;
}

namespace {

// Where the bytes lie is not promised; durable_revision and flush_lag are judged apart.
v1::NameInfo Comparable(v1::NameInfo info, std::string* error) {
  const auto take_tier = [&](v1::Tier tier) {
    if (tier != v1::HOT && tier != v1::COLD) *error = absl::StrCat("tier ", tier);
  };
  take_tier(info.tier());
  info.clear_tier();
  info.clear_durable_revision();
  info.clear_flush_lag();
  for (v1::VersionInfo& version : *info.mutable_history()) {
    take_tier(version.tier());
    version.clear_tier();
  }
  return info;
}

}  // namespace

std::string Reference::CheckInfo(const Key& key, const VersionM& version, bool history, const v1::NameInfo& actual) {
  std::string error;
  const v1::NameInfo comparable = Comparable(actual, &error);
  if (!error.empty()) return error;
  error = Differs(InfoOf(key, names_.at(key), version, history), comparable);
  if (error.empty()) error = FlushLag(key, actual);
  return error.empty() ? DurableRevision(key, actual.durable_revision()) : error;
}

std::string Reference::FlushLag(const Key& key, const v1::NameInfo& actual) const {
  const State& state = names_.at(key);
  const int64_t lag = actual.flush_lag().seconds() * 1'000'000'000 + actual.flush_lag().nanos();
  if (state.durability != v1::WRITE_BEHIND)
    return lag == 0 ? "" : absl::StrCat("flush_lag ", lag, " of a name that is not WRITE_BEHIND");
  // What is not recorded waits since its newest change at least, in this run.
  const int64_t since = clock_->Now() - state.last_change;
  if (lag == 0 && since > 0 && actual.durable_revision() != state.revision)
    return "no flush_lag, and it is not recorded";
  return lag == 0 || lag >= since ? "" : absl::StrCat("flush_lag ", lag, ", and its last change was ", since, " ago");
}

std::string Reference::DurableRevision(const Key& key, uint64_t revision) {
  const State& state = names_.at(key);
  std::vector<std::optional<State>>& states = disk_[key].states;
  if (state.durability == v1::SYNC && revision != state.revision)
    return absl::StrCat("a SYNC name of revision ", state.revision, " has durable_revision ", revision);
  const auto is = [&](const std::optional<State>& s) { return s.has_value() && s->revision == revision; };
  const auto of_this_life = [&](const std::optional<State>& s) { return s.has_value() && s->created == state.created; };
  if (revision == 0) {
    if (std::all_of(states.begin(), states.end(), of_this_life)) return "durable_revision went back to 0";
    return "";
  }
  if (std::none_of(states.begin(), states.end(), is))
    return absl::StrCat("durable_revision ", revision, " is of no state that may be on disk");
  std::erase_if(states, [&](const auto& s) { return !s.has_value() || s->revision < revision; });
  return "";
}

std::string Reference::CheckRefused(const std::vector<Fault>& faults, const Outcome& outcome,
                                    const std::string& prefix) const {
  std::string expected;
  for (const Fault& fault : faults) {
    const std::string field = fault.field.empty() ? "" : absl::StrCat(prefix, fault.field);
    bool same = fault.code == outcome.code && fault.reason == outcome.reason;
    same = same && (field.empty() || field == outcome.field);
    for (const auto& [key, value] : fault.metadata) {
      const auto it = outcome.metadata.find(key);
      same = same && it != outcome.metadata.end() && it->second == value;
    }
    if (same) return "";
    absl::StrAppend(&expected, expected.empty() ? "" : " or ", absl::StatusCodeToString(fault.code), " ", fault.reason,
                    " field=", field);
    for (const auto& [key, value] : fault.metadata) absl::StrAppend(&expected, " ", key, "=", value);
  }
  return absl::StrCat("expected ", expected, ", got ", outcome.ToString());
}

// ---- names change

void Reference::CallBegins() {
  for (Issued* issued : {&revisions_, &versions_}) {
    if (!issued->now.empty()) issued->before = std::max(issued->before, *issued->now.rbegin());
    issued->now.clear();
  }
}

uint64_t Reference::LastRevision() const {
  return revisions_.now.empty() ? revisions_.before : std::max(revisions_.before, *revisions_.now.rbegin());
}

std::string Reference::NewId(uint64_t id, const char* what, Issued* issued) {
  if (id > issued->before && issued->now.insert(id).second) return "";
  return absl::StrCat(what, " ", id, " is not greater than all before (", issued->before, ")");
}

State Reference::NewState(const std::string& layout) const {
  State state;
  state.layout = layout;
  state.create_time = clock_->WallNow();
  state.durability = static_cast<v1::Durability>(options_.default_durability);
  state.max_history = options_.default_max_history;
  return state;
}

void Reference::Finish(const std::string& id, const std::string& body, State* state) {
  while (state->ring.size() > state->max_history) state->ring.erase(state->ring.begin());
  state->revision = 0;  // the answer tells
  if (id.empty()) return;
  if (state->requests.size() == 8) state->requests.erase(state->requests.begin());
  state->requests.push_back({id, body, 0, 0, state->head()->position, state->head()->checksum});
}

void Reference::Publish(const Key& key, State state) {
  state.last_used = state.last_change = clock_->Now();
  stones_.erase(key);
  Disk& disk = disk_[key];
  disk.reaped = false;
  if (state.durability == v1::SYNC) {
    ++counts_.acked_sync;
    disk.states = {state};
  } else if (state.durability == v1::WRITE_BEHIND) {
    disk.states.push_back(state);
  } else {
    forgotten_at_[key] = state.revision;  // what it says from now on dies with the daemon
  }
  names_[key] = std::move(state);
}

void Reference::Forget(const Key& key, const std::string& reason) {
  names_.erase(key);
  stones_[key] = {reason, false};
  forgotten_at_[key] = LastRevision();
  disk_[key].reaped = false;
  if (reason != "EXPIRED") disk_[key].states.clear();
  disk_[key].states.push_back(std::nullopt);  // what is expired leaves the disk a moment later
}

void Reference::ForgetExpired() {
  std::vector<Key> expired;
  for (const auto& [key, state] : names_) {
    if (clock_->Now() >= state.Deadline()) expired.push_back(key);
  }
  for (const Key& key : expired) Forget(key, "EXPIRED");
  counts_.expired += expired.size();
}

void Reference::Recorded(const Key& key) {
  const State& state = names_.at(key);
  if (state.durability != v1::VOLATILE) disk_[key].states = {state};
}

void Reference::ApplyExpiry(const v1::NameOptions& options, const std::string& field, State* state,
                            std::vector<Fault>* faults) const {
  if (options.expiration_case() == v1::NameOptions::EXPIRATION_NOT_SET) return;
  if (options.has_never_expire() && !options.never_expire()) return;
  state->ttl = absl::InfiniteDuration();
  state->expire_time = absl::InfiniteFuture();
  state->expire_at = kNever;
  if (options.has_ttl()) {
    state->ttl = FromProto(options.ttl());
    if (state->ttl <= absl::ZeroDuration() || state->ttl > options_.max_ttl)
      faults->push_back({kInvalid, "INVALID_OPTION", field + "ttl"});
  }
  if (options.has_expire_time()) {
    state->expire_time = FromProto(options.expire_time());
    const absl::Duration left = state->expire_time - clock_->WallNow();
    if (left <= absl::ZeroDuration() || left > options_.max_ttl)
      faults->push_back({kInvalid, "INVALID_OPTION", field + "expire_time"});
    else state->expire_at = clock_->Now() + absl::ToInt64Nanoseconds(left);
  }
}

void Reference::ApplyOptions(const v1::NameOptions& options, State* state, std::vector<Fault>* faults) const {
  if (options.durability() != v1::DURABILITY_UNSPECIFIED) state->durability = options.durability();
  if (options.has_max_history()) {
    state->max_history = options.max_history();
    if (state->max_history < 1 || state->max_history > options_.max_history)
      faults->push_back({kInvalid, "INVALID_OPTION", "options.max_history"});
  }
  ApplyExpiry(options, "options.", state, faults);
}

void Reference::CheckIfRevision(const State* state, bool given, uint64_t if_revision, std::vector<Fault>* faults) {
  const uint64_t revision = state == nullptr ? 0 : state->revision;
  if (!given || if_revision == revision) return;
  faults->push_back({kAborted, "REVISION_MISMATCH", "if_revision", {{"revision", absl::StrCat(revision)}}});
}

bool Reference::Answered(const State* state, const std::string& id, const std::string& body, Plan* plan) {
  if (state == nullptr || id.empty()) return false;
  for (const AnsweredM& answered : state->requests) {
    if (answered.id != id) continue;
    if (answered.body == body) {
      plan->faults.clear();
      plan->replay = &answered;
      return true;
    }
    plan->faults.push_back({kInvalid, "REQUEST_ID_REUSED", "request_id"});
  }
  return false;
}

// ---- writes, planned

Reference::Plan Reference::PlanCreate(const v1::CreateRequest& in) {
  Plan plan;
  plan.key = {v1::SEQUENCE, in.sequence()};
  const State* name = Live(plan.key);
  const std::string body = Body("Create", in);
  if (Answered(name, in.request_id(), body, &plan)) return plan;
  if (!IsName(in.sequence())) plan.faults.push_back({kInvalid, "INVALID_NAME", "sequence"});
  if (name != nullptr)
    plan.faults.push_back({kExists, "NAME_EXISTS", "sequence", {{"revision", absl::StrCat(name->revision)}}});
  const LayoutM* layout = LayoutOf(in.layout());
  if (in.layout().empty()) plan.faults.push_back({kInvalid, "MISSING_FIELD", "layout"});
  else if (layout == nullptr) plan.faults.push_back({kNotFound, "LAYOUT_UNKNOWN", "layout"});
  State state = NewState(layout == nullptr ? "" : fingerprints_.at(layout->layout.SerializeAsString()));
  ApplyOptions(in.options(), &state, &plan.faults);
  if (!plan.faults.empty()) return plan;
  plan.fresh = std::make_shared<VersionM>();
  plan.fresh->data = layout->initial;
  plan.fresh->checksum = ChecksumOfBytes(layout->initial);
  plan.fresh->initial = true;
  state.ring = {plan.fresh};
  Finish(in.request_id(), body, &state);
  plan.next.emplace_back(plan.key, std::move(state));
  return plan;
}

Reference::Plan Reference::PlanSet(const v1::SetRequest& in, const std::string& data) {
  Plan plan;
  plan.key = {v1::SEQUENCE, in.sequence()};
  State* name = Live(plan.key);
  v1::SetRequest without_data = in;
  without_data.clear_data();
  const std::string body = absl::StrCat(Body("Set", without_data), "\n", ChecksumOfBytes(data));
  if (Answered(name, in.request_id(), body, &plan)) return plan;
  if (!IsName(in.sequence())) plan.faults.push_back({kInvalid, "INVALID_NAME", "sequence"});
  if (!IsPosition(in.position())) plan.faults.push_back({kInvalid, "INVALID_POSITION", "position"});
  if (in.attachment().size() > options_.max_attachment_bytes)
    plan.faults.push_back({kInvalid, "INVALID_OPTION", "attachment"});
  CheckIfRevision(name, in.has_if_revision(), in.if_revision(), &plan.faults);
  if (in.has_select() && !in.has_if_revision()) plan.faults.push_back({kInvalid, "MISSING_FIELD", "if_revision"});
  const LayoutM* layout = LayoutOf(in.layout());
  if (!in.layout().empty() && layout == nullptr) plan.faults.push_back({kNotFound, "LAYOUT_UNKNOWN", "layout"});
  if (name == nullptr && (in.has_select() || in.layout().empty()) && IsName(in.sequence())) {
    for (Fault& miss : MissOf(plan.key, "sequence")) {
      const bool never = miss.reason == "NEVER_CREATED" && !in.has_select();
      plan.faults.push_back(never ? Fault{kInvalid, "MISSING_FIELD", "layout"} : std::move(miss));
    }
  }
  if (name != nullptr && layout != nullptr && layout != &layouts_.at(name->layout))
    plan.faults.push_back({kPrecondition, "LAYOUT_MISMATCH", "layout"});
  if (name != nullptr) layout = &layouts_.at(name->layout);
  State state = name != nullptr ? *name : NewState("");
  ApplyOptions(in.options(), &state, &plan.faults);
  const std::string checksum = ChecksumOfBytes(data);
  if (!in.checksum().empty() && in.checksum() != checksum)
    plan.faults.push_back(
        {kInvalid, "CHECKSUM_MISMATCH", "checksum", {{"expected", in.checksum()}, {"actual", checksum}}});
  if (layout == nullptr) return plan;

  // The whole image: what was given, in its places.
  std::vector<std::pair<uint64_t, uint64_t>> ranges = {{0, layout->bytes}};
  if (in.has_select()) {
    auto selected = Select(*layout, in.select(), &plan.faults);
    if (!selected.has_value()) return plan;
    ranges = *std::move(selected);
  }
  uint64_t bytes = 0;
  for (const auto& range : ranges) bytes += range.second;
  if (bytes != data.size()) {
    plan.faults.push_back({kInvalid,
                           "BYTES_LENGTH_MISMATCH",
                           "data",
                           {{"expected", absl::StrCat(bytes)}, {"actual", absl::StrCat(data.size())}}});
  }
  const bool part = bytes < layout->bytes;
  if (part && in.exactness() == v1::EXACT) plan.faults.push_back({kInvalid, "INVALID_OPTION", "exactness"});
  if (!plan.faults.empty()) return plan;
  plan.fresh = std::make_shared<VersionM>();
  VersionM& version = *plan.fresh;
  version.data = part ? name->head()->data : std::string(layout->bytes, '\0');
  uint64_t at = 0;
  for (const auto& [offset, size] : ranges) {
    version.data.replace(offset, size, data, at, size);
    at += size;
  }
  version.parent = name != nullptr ? name->head()->id : 0;
  version.position = in.position();
  version.attachment = part && in.attachment().empty() ? name->head()->attachment : in.attachment();
  version.checksum = ChecksumOfBytes(version.data);
  version.exactness = in.exactness() != v1::EXACTNESS_UNSPECIFIED ? in.exactness() : part ? v1::EDITED : v1::EXACT;
  state.layout = fingerprints_.at(layout->layout.SerializeAsString());
  state.ring.push_back(plan.fresh);
  Finish(in.request_id(), body, &state);
  plan.next.emplace_back(plan.key, std::move(state));
  return plan;
}

Reference::Plan Reference::PlanFork(const v1::ForkRequest& in) {
  Plan plan;
  plan.kind = Plan::Kind::kFork;
  const std::string body = Body("Fork", in);
  const auto field = [](int i) { return absl::StrCat("children[", i, "]"); };
  if (in.children().empty()) plan.faults.push_back({kInvalid, "MISSING_FIELD", "children"});
  if (static_cast<uint32_t>(in.children_size()) > options_.max_children)
    plan.faults.push_back({kInvalid, "TOO_MANY", "children", {{"limit", absl::StrCat(options_.max_children)}}});
  std::set<std::string> distinct;
  std::vector<int> answered, absent;
  for (int i = 0; i < in.children_size(); ++i) {
    const std::string& child = in.children(i);
    if (!IsName(child)) plan.faults.push_back({kInvalid, "INVALID_NAME", field(i)});
    if (!distinct.insert(child).second) plan.faults.push_back({kInvalid, "DUPLICATE_NAME", field(i)});
    plan.children.emplace_back(v1::SEQUENCE, child);
    const State* name = Live(plan.children.back());
    if (name == nullptr) {
      absent.push_back(i);
      continue;
    }
    Plan one;
    if (Answered(name, in.request_id(), body, &one)) {
      answered.push_back(i);
      if (i == 0) plan.replay = one.replay;
    } else {
      plan.faults.insert(plan.faults.end(), one.faults.begin(), one.faults.end());
      plan.faults.push_back({kExists, "NAME_EXISTS", field(i), {{"revision", absl::StrCat(name->revision)}}});
    }
  }
  if (!plan.children.empty() && answered.size() == plan.children.size()) {
    plan.faults.clear();
    return plan;
  }
  plan.replay = nullptr;
  if (!answered.empty()) {
    // Some children of the first answer are gone.
    for (const int i : absent) plan.faults.push_back({kAborted, "REVISION_MISMATCH", field(i)});
  }
  const Resolved source =
      Resolve(in.source(), in.has_position() ? std::optional(in.position()) : std::nullopt, in.layout(), 0, "source");
  plan.faults.insert(plan.faults.end(), source.faults.begin(), source.faults.end());
  State child = NewState("");
  if (source.faults.empty()) {
    if (source.key.first == v1::SEQUENCE) child = *source.name;
    child.requests.clear();
    child.created = 0;
    child.create_time = clock_->WallNow();
    child.layout = source.name->layout;
    child.ring.assign(source.name->ring.begin(), source.name->ring.begin() + static_cast<ptrdiff_t>(source.index) + 1);
  }
  ApplyOptions(in.options(), &child, &plan.faults);
  if (!plan.faults.empty()) return plan;
  Finish(in.request_id(), body, &child);
  for (const Key& key : plan.children) plan.next.emplace_back(key, child);
  plan.used = {source.key};
  return plan;
}

Reference::Plan Reference::PlanRollback(const v1::RollbackRequest& in) {
  Plan plan;
  plan.key = {v1::SEQUENCE, in.sequence()};
  State* name = Live(plan.key);
  const std::string body = Body("Rollback", in);
  if (Answered(name, in.request_id(), body, &plan)) return plan;
  v1::NameRef ref;
  ref.set_sequence(in.sequence());
  Resolved to = Resolve(ref, in.has_tokens() ? std::nullopt : std::optional(in.position()), "", 0, "sequence");
  plan.faults.insert(plan.faults.end(), to.faults.begin(), to.faults.end());
  if (name != nullptr) CheckIfRevision(name, in.has_if_revision(), in.if_revision(), &plan.faults);
  if (in.has_tokens() && (in.tokens() < 0 || in.position() != 0)) {
    plan.faults.push_back({kInvalid, "INVALID_OPTION", "tokens"});
  } else if (in.has_tokens() && name != nullptr) {
    const int64_t available = RollbackTokensOf(*name);
    if (in.tokens() > available)
      plan.faults.push_back({kPrecondition, "HISTORY_TOO_SHORT", "tokens", {{"available", absl::StrCat(available)}}});
    to.index -= static_cast<size_t>(std::min(in.tokens(), available));
  }
  if (!plan.faults.empty()) return plan;
  State state = *name;
  state.ring.resize(to.index + 1);
  Finish(in.request_id(), body, &state);
  plan.next.emplace_back(plan.key, std::move(state));
  return plan;
}

namespace {

// Whether the last token of a state is one of [begin, end), as a request says it; and whether all of them are.
bool HasLast(int64_t begin, int64_t end, int64_t position) {
  const int64_t last = position - 1;
  return std::max<int64_t>(begin, 0) <= last && (end < 0 || last < end);
}
bool HasAll(int64_t begin, int64_t end, int64_t position) {
  return begin <= 0 && (end < 0 || (end > 0 && end >= position));
}

}  // namespace

Reference::Plan Reference::PlanRemoveRange(const v1::RemoveRangeRequest& in) {
  Plan plan;
  plan.kind = Plan::Kind::kRemove;
  plan.key = {v1::SEQUENCE, in.sequence()};
  State* name = Live(plan.key);
  const std::string body = Body("RemoveRange", in);
  plan.done = true;
  if (Answered(name, in.request_id(), body, &plan)) return plan;
  v1::NameRef ref;
  ref.set_sequence(in.sequence());
  const std::vector<Fault> faults = Resolve(ref, std::nullopt, "", 0, "sequence").faults;
  if (name == nullptr && IsName(in.sequence()) && in.allow_missing()) {
    // Of a range that begins after all tokens and ends there, it is open whether it is empty.
    const int64_t begin = std::max<int64_t>(in.begin(), 0);
    plan.buries = in.end() < 0 ? begin < int64_t{1} << 53 : in.end() > begin;
    return plan;
  }
  plan.faults.insert(plan.faults.end(), faults.begin(), faults.end());
  if (name != nullptr) CheckIfRevision(name, in.has_if_revision(), in.if_revision(), &plan.faults);
  if (!plan.faults.empty()) return plan;
  const int64_t position = name->head()->position;
  if (HasAll(in.begin(), in.end(), position)) {
    plan.deleted = plan.buries = true;
    plan.next.emplace_back(plan.key, std::nullopt);
    return plan;
  }
  if (!HasLast(in.begin(), in.end(), position)) return plan;
  State state = *name;
  const auto at = std::find_if(state.ring.rbegin(), state.ring.rend(),
                               [&](const VersionPtr& version) { return version->position == in.begin(); });
  plan.done = at != state.ring.rend();
  if (!plan.done) return plan;
  state.ring.erase(at.base(), state.ring.end());
  Finish(in.request_id(), body, &state);
  plan.next.emplace_back(plan.key, std::move(state));
  return plan;
}

Reference::Plan Reference::PlanRenumber(const v1::RenumberRequest& in) {
  Plan plan;
  plan.key = {v1::SEQUENCE, in.sequence()};
  plan.history = true;
  State* name = Live(plan.key);
  const std::string body = Body("Renumber", in);
  if (in.change_case() != v1::RenumberRequest::CHANGE_NOT_SET && (!in.has_divide() || in.divide() >= 1) &&
      Answered(name, in.request_id(), body, &plan))
    return plan;
  v1::NameRef ref;
  ref.set_sequence(in.sequence());
  const std::vector<Fault> faults = Resolve(ref, std::nullopt, "", 0, "sequence").faults;
  plan.faults.insert(plan.faults.end(), faults.begin(), faults.end());
  if (name != nullptr) CheckIfRevision(name, in.has_if_revision(), in.if_revision(), &plan.faults);
  if (in.change_case() == v1::RenumberRequest::CHANGE_NOT_SET)
    plan.faults.push_back({kInvalid, "MISSING_FIELD", "change"});
  if (in.has_divide() && in.divide() < 1) plan.faults.push_back({kInvalid, "INVALID_OPTION", "divide"});
  // Of a state whose last token is in the range; nothing: it can't be there.
  const auto renumbered = [&](int64_t position) -> std::optional<int64_t> {
    if (in.has_divide()) return (position - 1) / in.divide() + 1;
    const __int128 moved = static_cast<__int128>(position) + in.add();
    return moved >= 1 && moved <= int64_t{1} << 53 ? std::optional(static_cast<int64_t>(moved)) : std::nullopt;
  };
  const bool meant = plan.faults.empty() && HasLast(in.begin(), in.end(), name->head()->position);
  if (meant && !renumbered(name->head()->position).has_value()) {
    const std::string position = absl::StrCat(name->head()->position);
    plan.faults.push_back({kInvalid, "INVALID_POSITION", "add", {{"position", position}}});
  }
  if (!meant || !plan.faults.empty() || *renumbered(name->head()->position) == name->head()->position) return plan;
  State state = *name;
  state.ring.clear();
  for (auto version = name->ring.rbegin(); version != name->ring.rend(); ++version) {
    const VersionM& old = **version;
    if (!HasLast(in.begin(), in.end(), old.position) || !renumbered(old.position).has_value()) break;
    auto moved = std::make_shared<VersionM>(old);
    moved->parent = old.id;
    moved->position = *renumbered(old.position);
    if (old.exactness == v1::EXACT) moved->exactness = v1::EDITED;
    moved->image_from = old.image();
    plan.renumbered.push_back(moved);
    state.ring.insert(state.ring.begin(), moved);
  }
  Finish(in.request_id(), body, &state);
  plan.next.emplace_back(plan.key, std::move(state));
  return plan;
}

Reference::Plan Reference::PlanSnapshot(const v1::SnapshotRequest& in) {
  Plan plan;
  plan.key = {v1::SNAPSHOT, in.snapshot()};
  const State* name = Live(plan.key);
  const std::string body = Body("Snapshot", in);
  if (Answered(name, in.request_id(), body, &plan)) return plan;
  if (!IsName(in.snapshot())) plan.faults.push_back({kInvalid, "INVALID_NAME", "snapshot"});
  if (name != nullptr)
    plan.faults.push_back({kExists, "NAME_EXISTS", "snapshot", {{"revision", absl::StrCat(name->revision)}}});
  const Resolved source =
      Resolve(in.source(), in.has_position() ? std::optional(in.position()) : std::nullopt, "", 0, "source");
  plan.faults.insert(plan.faults.end(), source.faults.begin(), source.faults.end());
  State state = NewState("");
  if (source.faults.empty()) {
    state.layout = source.name->layout;
    state.durability = source.name->durability;
    state.ring = {source.version()};
  }
  ApplyOptions(in.options(), &state, &plan.faults);
  if (!plan.faults.empty()) return plan;
  state.max_history = 1;
  Finish(in.request_id(), body, &state);
  plan.next.emplace_back(plan.key, std::move(state));
  plan.used = {source.key};
  return plan;
}

Reference::Plan Reference::PlanRestore(const v1::RestoreRequest& in) {
  Plan plan;
  plan.key = {v1::SEQUENCE, in.sequence()};
  State* name = Live(plan.key);
  const std::string body = Body("Restore", in);
  if (Answered(name, in.request_id(), body, &plan)) return plan;
  if (!IsName(in.sequence())) plan.faults.push_back({kInvalid, "INVALID_NAME", "sequence"});
  v1::NameRef ref;
  ref.set_snapshot(in.snapshot());
  const Resolved source = Resolve(ref, std::nullopt, "", 0, "snapshot");
  plan.faults.insert(plan.faults.end(), source.faults.begin(), source.faults.end());
  CheckIfRevision(name, in.has_if_revision(), in.if_revision(), &plan.faults);
  if (name != nullptr && source.name != nullptr && name->layout != source.name->layout)
    plan.faults.push_back({kPrecondition, "LAYOUT_MISMATCH", "layout"});
  State state = name != nullptr ? *name : NewState(source.name != nullptr ? source.name->layout : "");
  ApplyOptions(in.options(), &state, &plan.faults);
  if (!plan.faults.empty()) return plan;
  state.ring.push_back(source.version());
  Finish(in.request_id(), body, &state);
  plan.next.emplace_back(plan.key, std::move(state));
  plan.used = {source.key};
  return plan;
}

Reference::Plan Reference::PlanDelete(const v1::DeleteRequest& in) {
  Plan plan;
  plan.kind = Plan::Kind::kDelete;
  const Resolved found = Resolve(in.name(), std::nullopt, "", 0, "name");
  plan.key = found.key;
  plan.faults = found.faults;
  if (found.name != nullptr) CheckIfRevision(found.name, in.has_if_revision(), in.if_revision(), &plan.faults);
  const bool missing = !plan.faults.empty() && plan.faults.front().code == kNotFound;
  if (missing && in.allow_missing()) plan.faults.clear();
  plan.deleted = found.name != nullptr;
  plan.buries = plan.faults.empty();
  if (plan.deleted && plan.faults.empty()) plan.next.emplace_back(plan.key, std::nullopt);
  return plan;
}

// ---- writes, settled

std::string Reference::CheckReplay(const Plan& plan, const Given& given) {
  ++counts_.replays;
  const AnsweredM& answered = *plan.replay;
  unsure_.push_back(plan.key);
  if (plan.kind == Plan::Kind::kFork) {
    for (const Key& child : plan.children) unsure_.push_back(child);
    v1::ForkResponse expected = *given.fork;  // its state_bytes and durability are those of today
    expected.clear_children();
    const std::string& id = answered.id;
    for (const Key& key : plan.children) {
      const State& child = names_.at(key);
      const auto own =
          std::find_if(child.requests.begin(), child.requests.end(), [&](const auto& a) { return a.id == id; });
      v1::ForkedChild* to = expected.add_children();
      to->set_sequence(key.second);
      to->set_revision(own->revision);
    }
    expected.set_position(answered.position);
    expected.set_version_id(answered.version_id);
    expected.set_checksum(answered.checksum);
    expected.set_replayed(true);
    return Differs(expected, *given.fork);
  }
  // What is not of that answer is as it is now; what the ring has lost of its version is left out.
  const State& state = names_.at(plan.key);
  VersionM version;
  for (const VersionPtr& v : state.ring) {
    if (v->id == answered.version_id) version = *v;
  }
  const bool lost = version.id == 0;
  version.id = answered.version_id;
  version.position = answered.position;
  version.checksum = answered.checksum;
  v1::NameInfo expected = InfoOf(plan.key, state, version, plan.history);
  if (lost) expected.clear_exactness();
  expected.set_revision(answered.revision);
  expected.set_replayed(true);
  std::string error;
  const v1::NameInfo actual = Comparable(*given.info, &error);
  if (!error.empty() && !(lost && given.info->tier() == v1::TIER_UNSPECIFIED)) return error;
  error = Differs(expected, actual);
  return error.empty() ? DurableRevision(plan.key, given.info->durable_revision()) : error;
}

std::string Reference::CheckAnswer(const Plan& plan, const Given& given) {
  if (plan.kind == Plan::Kind::kDelete) {
    if (given.deleted == nullptr) return "no answer";
    return given.deleted->deleted() == plan.deleted ? "" : absl::StrCat("expected deleted=", plan.deleted);
  }
  if (plan.kind == Plan::Kind::kRemove) {
    if (given.removed == nullptr) return "no answer";
    if (given.removed->done() != plan.done || given.removed->deleted() != plan.deleted)
      return absl::StrCat("expected done=", plan.done, " deleted=", plan.deleted);
    const bool there = names_.count(plan.key) > 0;
    if (given.removed->has_info() != there) return absl::StrCat("expected info=", there);
    if (!there) return "";
  }
  if (plan.kind == Plan::Kind::kFork ? given.fork == nullptr : given.info == nullptr) return "no answer";
  if (plan.replay != nullptr) return CheckReplay(plan, given);
  if (plan.kind != Plan::Kind::kFork)
    return CheckInfo(plan.key, *names_.at(plan.key).head(), plan.history, *given.info);
  v1::ForkResponse expected;
  for (const Key& key : plan.children) {
    v1::ForkedChild* child = expected.add_children();
    child->set_sequence(key.second);
    child->set_revision(names_.at(key).revision);
  }
  const State& child = names_.at(plan.children.front());
  expected.set_position(child.head()->position);
  expected.set_version_id(child.head()->id);
  expected.set_checksum(child.head()->checksum);
  expected.set_state_bytes(layouts_.at(child.layout).bytes);
  expected.set_durability(child.durability);
  return Differs(expected, *given.fork);
}

void Reference::UseAll(const Plan& plan) {
  for (const Key& key : plan.used) {
    if (names_.count(key) > 0) Use(key);
  }
}

// REQUIRES: it was not refused.
std::string Reference::Settle(Plan* plan, const Given& given) {
  if (plan->fresh != nullptr && given.info != nullptr) {
    plan->fresh->id = given.info->version_id();
    if (std::string wrong = NewId(plan->fresh->id, "version_id", &versions_); !wrong.empty()) return wrong;
  }
  if (!plan->renumbered.empty()) {
    if (given.info == nullptr || given.info->history_size() != static_cast<int>(plan->renumbered.size()))
      return absl::StrCat("expected a history of ", plan->renumbered.size());
    for (int i = 0; i < given.info->history_size(); ++i) {
      uint64_t& id = plan->renumbered[static_cast<size_t>(i)]->id;
      id = given.info->history(i).version_id();
      if (std::string wrong = NewId(id, "version_id", &versions_); !wrong.empty()) return wrong;
    }
  }
  for (size_t i = 0; i < plan->next.size(); ++i) {
    auto& [key, next] = plan->next[i];
    ++counts_.writes;
    if (!next.has_value()) {
      Forget(key, "DELETED");
      continue;
    }
    if (plan->kind == Plan::Kind::kFork) {
      if (given.fork == nullptr || given.fork->children_size() != static_cast<int>(plan->next.size()))
        return "children";
      next->revision = given.fork->children(static_cast<int>(i)).revision();
      ++counts_.forks;
    } else {
      if (given.info == nullptr) return "no answer";
      next->revision = given.info->revision();
    }
    if (std::string wrong = NewId(next->revision, "revision", &revisions_); !wrong.empty()) return wrong;
    if (next->created == 0) next->created = next->revision;
    if (!next->requests.empty() && next->requests.back().revision == 0) {
      next->requests.back().revision = next->revision;
      next->requests.back().version_id = next->head()->id;
    }
    Publish(key, *std::move(next));
  }
  if (plan->buries) disk_[plan->key].states = {std::nullopt};
  return CheckAnswer(*plan, given);
}

std::string Reference::RunOne(Plan plan, const Given& given) {
  CallBegins();
  if (!plan.faults.empty()) {
    ++counts_.refused;
    return CheckRefused(plan.faults, given.outcome, "");
  }
  if (!given.outcome.ok()) return absl::StrCat("expected OK, got ", given.outcome.ToString());
  std::vector<std::pair<Key, uint64_t>> group;
  UseAll(plan);
  const std::string wrong = Settle(&plan, given);
  for (const auto& [key, next] : plan.next) {
    const State* state = Find(key);
    if (state != nullptr && state->durability != v1::VOLATILE) group.emplace_back(key, state->revision);
  }
  if (group.size() > 1) groups_.push_back(std::move(group));
  return wrong;
}

std::string Reference::Create(const v1::CreateRequest& in, const Outcome& outcome, const v1::NameInfo& out) {
  return RunOne(PlanCreate(in), {outcome, &out});
}
std::string Reference::Set(const v1::SetRequest& in, const Outcome& outcome, const v1::NameInfo& out) {
  return RunOne(PlanSet(in, in.data()), {outcome, &out});
}
std::string Reference::Fork(const v1::ForkRequest& in, const Outcome& outcome, const v1::ForkResponse& out) {
  return RunOne(PlanFork(in), {outcome, nullptr, &out});
}
std::string Reference::Rollback(const v1::RollbackRequest& in, const Outcome& outcome, const v1::NameInfo& out) {
  return RunOne(PlanRollback(in), {outcome, &out});
}
std::string Reference::RemoveRange(const v1::RemoveRangeRequest& in, const Outcome& outcome,
                                   const v1::RemoveRangeResponse& out) {
  return RunOne(PlanRemoveRange(in), {outcome, out.has_info() ? &out.info() : nullptr, nullptr, nullptr, &out});
}
std::string Reference::Renumber(const v1::RenumberRequest& in, const Outcome& outcome, const v1::NameInfo& out) {
  return RunOne(PlanRenumber(in), {outcome, &out});
}
std::string Reference::Snapshot(const v1::SnapshotRequest& in, const Outcome& outcome, const v1::NameInfo& out) {
  return RunOne(PlanSnapshot(in), {outcome, &out});
}
std::string Reference::Restore(const v1::RestoreRequest& in, const Outcome& outcome, const v1::NameInfo& out) {
  return RunOne(PlanRestore(in), {outcome, &out});
}
std::string Reference::Delete(const v1::DeleteRequest& in, const Outcome& outcome, const v1::DeleteResponse& out) {
  return RunOne(PlanDelete(in), {outcome, nullptr, nullptr, &out});
}

std::string Reference::BatchWrite(const v1::BatchWriteRequest& in, const Outcome& outcome,
                                  const v1::BatchWriteResponse& out) {
  CallBegins();
  std::vector<Plan> plans;
  std::set<Key> written, written_well;
  std::vector<Fault> faults, duplicates;
  bool must_refuse = false;
  uint64_t at = 0;
  size_t refused = 0, names = 0;
  if (in.items().empty()) faults.push_back({kInvalid, "MISSING_FIELD", "items"});
  if (static_cast<uint32_t>(in.items_size()) > options_.max_batch)
    faults.push_back({kInvalid, "TOO_MANY", "items", {{"limit", absl::StrCat(options_.max_batch)}}});
  for (int i = 0; i < in.items_size(); ++i) {
    const v1::BatchWriteItem& item = in.items(i);
    std::set<Key> own;
    if (item.data_bytes() > 0 && !item.has_set())
      faults.push_back({kInvalid, "INVALID_OPTION", absl::StrCat("items[", i, "].data_bytes")});
    switch (item.write_case()) {
      case v1::BatchWriteItem::kCreate: plans.push_back(PlanCreate(item.create())); break;
      case v1::BatchWriteItem::kSet:
        plans.push_back(
            PlanSet(item.set(), in.data().substr(std::min<uint64_t>(at, in.data().size()), item.data_bytes())));
        break;
      case v1::BatchWriteItem::kFork: plans.push_back(PlanFork(item.fork())); break;
      case v1::BatchWriteItem::kRollback: plans.push_back(PlanRollback(item.rollback())); break;
      case v1::BatchWriteItem::kSnapshot: plans.push_back(PlanSnapshot(item.snapshot())); break;
      case v1::BatchWriteItem::kRestore: plans.push_back(PlanRestore(item.restore())); break;
      case v1::BatchWriteItem::kDelete: plans.push_back(PlanDelete(item.delete_())); break;
      case v1::BatchWriteItem::kRemoveRange: plans.push_back(PlanRemoveRange(item.remove_range())); break;
      case v1::BatchWriteItem::kRenumber: plans.push_back(PlanRenumber(item.renumber())); break;
      case v1::BatchWriteItem::WRITE_NOT_SET:
        plans.emplace_back();
        plans.back().faults.push_back({kInvalid, "MISSING_FIELD", "write"});
    }
    at += item.data_bytes();
    if (item.has_fork()) own.insert(plans.back().children.begin(), plans.back().children.end());
    else if (item.write_case() != v1::BatchWriteItem::WRITE_NOT_SET) own.insert(plans.back().key);
    names += own.size();
    const bool well = plans.back().faults.empty();
    bool twice = false;
    for (const Key& key : own) {
      twice |= !written.insert(key).second;
      if (well && !written_well.insert(key).second) must_refuse = true;
    }
    if (twice) duplicates.push_back({kInvalid, "DUPLICATE_NAME", absl::StrCat("items[", i, "]")});
    refused += !well;
  }
  if (names > options_.max_children) faults.push_back({kInvalid, "TOO_MANY", "items"});
  if (at != in.data().size())
    faults.push_back({kInvalid, "BYTES_LENGTH_MISMATCH", "data", {{"expected", absl::StrCat(at)}}});
  // Where an item of a pair is refused by itself, or for that none is done, the daemon may tell that instead.
  if ((must_refuse && !(in.all_or_none() && refused > 0)) || !outcome.ok())
    faults.insert(faults.end(), duplicates.begin(), duplicates.end());
  if (!faults.empty()) {
    ++counts_.refused;
    return CheckRefused(faults, outcome, "");
  }
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  if (out.results_size() != in.items_size()) return "not one result for each item";
  const bool none = in.all_or_none() && refused > 0;
  if (out.done() == none) return absl::StrCat("expected done=", !none);
  std::vector<std::pair<Key, uint64_t>> group;
  for (int i = 0; i < in.items_size(); ++i) {
    Plan& plan = plans[static_cast<size_t>(i)];
    const v1::BatchWriteResult& result = out.results(i);
    const std::string item = absl::StrCat("items[", i, "]");
    std::string wrong;
    if (none && plan.replay != nullptr) unsure_.push_back(plan.key);
    // Which of several faults is told, and whether an item's own fault or that another one failed, is the daemon's.
    if (none) plan.faults.push_back({kAborted, "BATCH_ABORTED"});
    if (none || !plan.faults.empty()) {
      if (!result.has_error()) return absl::StrCat(item, " is not refused");
      wrong = CheckRefused(plan.faults, Outcome(result.error()), item + ".");
    } else if (result.has_error()) {
      wrong = absl::StrCat("expected OK, got ", Outcome(result.error()).ToString());
    } else {
      Given given{absl::OkStatus()};
      if (result.has_info()) given.info = &result.info();
      if (result.has_fork()) given.fork = &result.fork();
      if (result.has_delete_()) given.deleted = &result.delete_();
      if (result.has_remove_range()) given.removed = &result.remove_range();
      if (result.has_remove_range() && given.removed->has_info()) given.info = &given.removed->info();
      wrong = Settle(&plan, given);
      for (const auto& [key, next] : plan.next) {
        const State* state = Find(key);
        if (state != nullptr && state->durability != v1::VOLATILE) group.emplace_back(key, state->revision);
      }
    }
    if (!wrong.empty()) return absl::StrCat(item, ": ", wrong);
  }
  // Of one moment: no item's answer shows that another one used its name.
  for (const Plan& plan : plans) {
    if (!none && plan.faults.empty()) UseAll(plan);
  }
  if (group.size() > 1) groups_.push_back(std::move(group));
  return "";
}

std::string Reference::SetTtl(const v1::SetTtlRequest& in, const Outcome& outcome, const v1::NameInfo& out) {
  v1::NameOptions options;
  if (in.has_ttl()) *options.mutable_ttl() = in.ttl();
  if (in.has_expire_time()) *options.mutable_expire_time() = in.expire_time();
  if (in.has_never_expire() && in.never_expire()) options.set_never_expire(true);
  Resolved found = Resolve(in.name(), std::nullopt, "", 0, "name");
  std::vector<Fault> faults = found.faults;
  if (options.expiration_case() == v1::NameOptions::EXPIRATION_NOT_SET)
    faults.push_back({kInvalid, "MISSING_FIELD", "expiration"});
  State state = found.name != nullptr ? *found.name : State();
  ApplyExpiry(options, "", &state, &faults);
  if (found.name != nullptr) CheckIfRevision(found.name, in.has_if_revision(), in.if_revision(), &faults);
  if (!faults.empty()) return CheckRefused(faults, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  Publish(found.key, std::move(state));
  return CheckInfo(found.key, *names_.at(found.key).head(), /*history=*/false, out);
}

std::string Reference::DeleteMany(const v1::DeleteManyRequest& in, const Outcome& outcome,
                                  const v1::DeleteManyResponse& out) {
  const int kind = in.kind() == v1::NAME_KIND_UNSPECIFIED ? v1::SEQUENCE : in.kind();
  std::vector<Key> matched;
  uint64_t bytes_most = 0, bytes_least = 0;
  std::set<std::pair<std::string, uint64_t>> images, shared;  // initial states of a layout may be one image
  const std::set<std::string> keep(in.keep().begin(), in.keep().end());
  for (const auto& [key, state] : names_) {
    if (key.first != kind || !absl::StartsWith(key.second, in.name_prefix()) || keep.count(key.second) > 0) continue;
    matched.push_back(key);
    const uint64_t bytes = layouts_.at(state.layout).bytes;
    const uint64_t image = state.head()->image();
    if (images.insert({state.layout, image}).second) bytes_most += bytes;
    if (shared.insert({state.layout, state.head()->initial ? 0 : image}).second) bytes_least += bytes;
  }
  std::vector<Fault> faults;
  for (int i = 0; i < in.keep_size(); ++i) {
    if (!IsName(in.keep(i)) || (kind == v1::PREFIX && !IsPrefixName(in.keep(i))))
      faults.push_back({kInvalid, "INVALID_NAME", absl::StrCat("keep[", i, "]")});
  }
  if (static_cast<uint32_t>(in.keep_size()) > options_.max_children)
    faults.push_back({kInvalid, "TOO_MANY", "keep", {{"limit", absl::StrCat(options_.max_children)}}});
  if (in.name_prefix().empty() && !in.all()) faults.push_back({kInvalid, "MISSING_FIELD", "name_prefix"});
  if (in.has_if_count() && in.if_count() != matched.size())
    faults.push_back({kAborted, "COUNT_MISMATCH", "if_count", {{"count", absl::StrCat(matched.size())}}});
  if (!faults.empty()) return CheckRefused(faults, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  v1::DeleteManyResponse expected;
  expected.set_matched(matched.size());
  expected.set_deleted(in.preview() ? 0 : matched.size());
  expected.set_state_bytes(out.state_bytes());
  for (size_t i = 0; i < matched.size() && i < 100; ++i) expected.add_names(matched[i].second);
  if (out.state_bytes() < bytes_least || out.state_bytes() > bytes_most)
    return absl::StrCat("expected state_bytes ", bytes_least, "..", bytes_most, ", got ", out.state_bytes());
  if (!in.preview()) {
    for (const Key& key : matched) Forget(key, "DELETED");
    counts_.writes += matched.size();
  }
  return Differs(expected, out);
}

// ---- reads

std::string Reference::CheckGot(const Resolved& found, const v1::GetRequest& in, const v1::GetResponse& out,
                                const std::string& data) {
  ++counts_.reads;
  Use(found.key);
  const VersionM& version = *found.version();
  if (std::string wrong = CheckInfo(found.key, version, /*history=*/false, out.info()); !wrong.empty()) return wrong;
  std::string expected;
  std::vector<std::pair<uint64_t, uint64_t>> ranges = {{0, version.data.size()}};
  std::vector<Fault> none;
  if (in.has_select()) ranges = *Select(layouts_.at(found.name->layout), in.select(), &none);
  for (const auto& [offset, bytes] : ranges) expected += version.data.substr(offset, bytes);
  if (data != expected) return "other bytes";
  if (out.attachment() != (in.omit_attachment() ? "" : version.attachment)) return "another attachment";
  if (out.data_bytes() != expected.size()) return absl::StrCat("data_bytes ", out.data_bytes());
  if (out.data_checksum() != ChecksumOfBytes(expected)) return absl::StrCat("data_checksum ", out.data_checksum());
  return "";
}

std::string Reference::Get(const v1::GetRequest& in, const Outcome& outcome, const v1::GetResponse& out) {
  Resolved found = Resolve(in.name(), in.has_position() ? std::optional(in.position()) : std::nullopt, in.layout(),
                           in.version_id(), "name");
  if (found.faults.empty() && in.has_select()) Select(layouts_.at(found.name->layout), in.select(), &found.faults);
  if (!found.faults.empty()) {
    if (found.name != nullptr) unsure_.push_back(found.key);
    ++counts_.misses;
    return CheckRefused(found.faults, outcome, "");
  }
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  return CheckGot(found, in, out, out.data());
}

std::string Reference::BatchGet(const v1::BatchGetRequest& in, uint64_t limit, const Outcome& outcome,
                                const v1::BatchGetResponse& out) {
  std::vector<Resolved> found;
  std::vector<Fault> faults;
  if (in.items().empty()) faults.push_back({kInvalid, "MISSING_FIELD", "items"});
  if (static_cast<uint32_t>(in.items_size()) > options_.max_batch)
    faults.push_back({kInvalid, "TOO_MANY", "items", {{"limit", absl::StrCat(options_.max_batch)}}});
  if (!faults.empty()) return CheckRefused(faults, outcome, "");
  uint64_t most = 0, least = 0;
  std::set<std::pair<std::string, uint64_t>> images, shared;
  int first_refused = -1;
  for (int i = 0; i < in.items_size(); ++i) {
    const v1::GetRequest& item = in.items(i);
    found.push_back(Resolve(item.name(), item.has_position() ? std::optional(item.position()) : std::nullopt,
                            item.layout(), item.version_id(), "name"));
    Resolved& one = found.back();
    if (one.faults.empty() && item.has_select()) Select(layouts_.at(one.name->layout), item.select(), &one.faults);
    if (one.name != nullptr) unsure_.push_back(one.key);
    if (!one.faults.empty()) {
      if (first_refused < 0) first_refused = i;
      continue;
    }
    const uint64_t bytes = layouts_.at(one.name->layout).bytes;
    const uint64_t image = one.version()->image();
    if (images.insert({one.name->layout, image}).second) most += bytes;
    if (shared.insert({one.name->layout, one.version()->initial ? 0 : image}).second) least += bytes;
  }
  if (in.all_or_none() && first_refused >= 0) {
    const Resolved& one = found[static_cast<size_t>(first_refused)];
    return CheckRefused(one.faults, outcome, absl::StrCat("items[", first_refused, "]."));
  }
  const bool may_fit = shared.size() <= 1 || least <= limit, must_fit = images.size() <= 1 || most <= limit;
  if (!may_fit || (!must_fit && !outcome.ok()))
    return CheckRefused({{absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE"}}, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  if (out.items_size() != in.items_size()) return "not one answer for each item";
  // All were looked up, and used, before the first was read.
  for (const Resolved& one : found) {
    if (one.faults.empty()) Use(one.key);
  }
  uint64_t at = 0;
  for (int i = 0; i < in.items_size(); ++i) {
    const std::string item = absl::StrCat("items[", i, "]");
    const Resolved& one = found[static_cast<size_t>(i)];
    const v1::BatchGetItem& got = out.items(i);
    std::string wrong;
    if (!one.faults.empty()) {
      wrong = CheckRefused(one.faults, Outcome(got.error()), item + ".");
    } else if (got.has_error()) {
      wrong = absl::StrCat("expected OK, got ", Outcome(got.error()).ToString());
    } else if (got.data_offset() != at) {
      wrong = absl::StrCat("data_offset ", got.data_offset());
    } else {
      wrong = CheckGot(one, in.items(i), got.response(), out.data().substr(at, got.response().data_bytes()));
      at += got.response().data_bytes();
    }
    if (!wrong.empty()) return absl::StrCat(item, ": ", wrong);
  }
  return at == out.data().size() ? "" : "bytes that belong to no item";
}

std::string Reference::Describe(const v1::DescribeRequest& in, const Outcome& outcome, const v1::NameInfo& out) {
  const Resolved found = Resolve(in.name(), std::nullopt, "", 0, "name");
  if (!found.faults.empty()) return CheckRefused(found.faults, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  return CheckInfo(found.key, *found.name->head(), /*history=*/true, out);
}

std::string Reference::List(const v1::ListRequest& in, const Outcome& outcome, const v1::ListResponse& out) {
  const int kind = in.kind() == v1::NAME_KIND_UNSPECIFIED ? v1::SEQUENCE : in.kind();
  std::vector<Fault> faults;
  if (in.page_size() > options_.max_page_size) faults.push_back({kInvalid, "INVALID_OPTION", "page_size"});
  std::string after;
  if (!in.page_token().empty()) {
    const auto page = pages_.find(in.page_token());
    if (page == pages_.end() || page->second.kind != kind || page->second.name_prefix != in.name_prefix())
      faults.push_back({kInvalid, "INVALID_OPTION", "page_token"});
    else after = page->second.last;
  }
  if (!faults.empty()) return CheckRefused(faults, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  const int size = in.page_size() == 0 ? 100 : static_cast<int>(in.page_size());
  int listed = 0;
  bool more = false;
  for (const auto& [key, state] : names_) {
    if (key.first != kind || !absl::StartsWith(key.second, in.name_prefix())) continue;
    if (!in.page_token().empty() && key.second <= after) continue;
    if (listed == size) {
      more = true;
      break;
    }
    const Key got = listed < out.names_size() ? KeyOf(out.names(listed).name()) : Key();
    if (listed == out.names_size() || got > key) return absl::StrCat("'", key.second, "' is missing");
    if (got < key) return absl::StrCat("'", got.second, "' is listed, and must not be there");
    if (std::string wrong = CheckInfo(key, *state.head(), /*history=*/false, out.names(listed++)); !wrong.empty())
      return absl::StrCat("'", key.second, "': ", wrong);
    after = key.second;
  }
  if (listed != out.names_size()) return absl::StrCat("too many names: {", out.names(listed).ShortDebugString(), "}");
  if (more == out.next_page_token().empty()) return more ? "no next_page_token" : "a next_page_token at the end";
  if (more) pages_[out.next_page_token()] = {kind, in.name_prefix(), after};
  return "";
}

std::string Reference::Touch(const v1::TouchRequest& in, const Outcome& outcome, const v1::TouchResponse& out) {
  if (in.names().empty()) return CheckRefused({{kInvalid, "MISSING_FIELD", "names"}}, outcome, "");
  if (static_cast<uint32_t>(in.names_size()) > options_.max_batch)
    return CheckRefused({{kInvalid, "TOO_MANY", "names"}}, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  if (out.names_size() != in.names_size()) return "not one answer for each name";
  for (int i = 0; i < in.names_size(); ++i) {
    const Resolved found = Resolve(in.names(i), std::nullopt, "", 0, absl::StrCat("names[", i, "]"));
    std::string wrong;
    if (!found.faults.empty()) {
      wrong = CheckRefused(found.faults, Outcome(out.names(i).error()), "");
    } else {
      Use(found.key);
      v1::TouchedName expected;
      const v1::NameInfo info = InfoOf(found.key, *found.name, *found.name->head(), false);
      if (info.has_expire_time()) *expected.mutable_expire_time() = info.expire_time();
      wrong = Differs(expected, out.names(i));
    }
    if (!wrong.empty()) return absl::StrCat("names[", i, "]: ", wrong);
  }
  return "";
}

std::string Reference::Flush(const v1::FlushRequest& in, const Outcome& outcome, const v1::FlushResponse& out) {
  std::vector<Key> keys;
  std::vector<Fault> faults;
  for (const v1::NameRef& ref : in.names()) {
    const Resolved found = Resolve(ref, std::nullopt, "", 0, "names");
    faults.insert(faults.end(), found.faults.begin(), found.faults.end());
    keys.push_back(found.key);
  }
  if (!faults.empty()) return CheckRefused(faults, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  if (keys.empty()) {
    for (const auto& [key, state] : names_) keys.push_back(key);
  }
  uint64_t durable = 0;
  for (const Key& key : keys) {
    durable += names_.at(key).durability != v1::VOLATILE;
    Recorded(key);
  }
  return durable == out.names() ? "" : absl::StrCat("expected names=", durable, ", got ", out.names());
}

std::string Reference::Capabilities(const v1::Capabilities& out) const {
  uint64_t counts[4] = {};
  for (const auto& [key, state] : names_) ++counts[key.first];
  if (out.sequences() != counts[1] || out.snapshots() != counts[2] || out.prefixes() != counts[3])
    return absl::StrCat("expected ", counts[1], " sequences, ", counts[2], " snapshots, ", counts[3], " prefixes; got ",
                        out.sequences(), ", ", out.snapshots(), ", ", out.prefixes());
  return out.incarnation() == incarnation_ ? "" : "another incarnation";
}

// ---- prefixes

std::string Reference::PublishPrefix(const v1::PublishPrefixRequest& in, const Outcome& outcome,
                                     const v1::PublishPrefixResponse& out) {
  CallBegins();
  std::vector<Fault> faults;
  if (in.tokens().empty()) faults.push_back({kInvalid, "MISSING_FIELD", "tokens"});
  if (static_cast<uint32_t>(in.tokens_size()) > options_.max_tokens) faults.push_back({kInvalid, "TOO_MANY", "tokens"});
  const LayoutM* layout = LayoutOf(in.layout());
  if (in.layout().empty()) faults.push_back({kInvalid, "MISSING_FIELD", "layout"});
  else if (layout == nullptr) faults.push_back({kNotFound, "LAYOUT_UNKNOWN", "layout"});
  const Resolved source =
      Resolve(in.source(), in.has_position() ? std::optional(in.position()) : std::nullopt, "", 0, "source");
  faults.insert(faults.end(), source.faults.begin(), source.faults.end());
  if (source.name != nullptr && layout != nullptr && &layouts_.at(source.name->layout) != layout)
    faults.push_back({kPrecondition, "LAYOUT_MISMATCH", "layout"});
  if (source.faults.empty() && source.version()->position != in.tokens_size())
    faults.push_back({kPrecondition, "POSITION_MISMATCH", "tokens"});
  State state = NewState(layout == nullptr ? "" : fingerprints_.at(layout->layout.SerializeAsString()));
  ApplyOptions(in.options(), &state, &faults);
  if (!faults.empty()) return CheckRefused(faults, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());

  const PrefixM prefix{state.layout, in.extra_key(), in.salt(), {in.tokens().begin(), in.tokens().end()}};
  const std::string& name = prefix_names_.try_emplace(prefix, out.prefix()).first->second;
  if (!IsPrefixName(name)) return "no name of a prefix";
  if (name != out.prefix()) return absl::StrCat("the same prefix has two names: ", name);
  if (prefix_keys_.try_emplace(name, prefix).first->second != prefix) return "two prefixes have one name";
  const Key key(v1::PREFIX, name);
  State* known = Live(key);
  if (out.already_published() != (known != nullptr))
    return absl::StrCat("expected already_published=", known != nullptr);
  // A stronger durability is given what it promises; nothing else changes.
  const bool stronger = known != nullptr && in.options().durability() > known->durability;
  if (known != nullptr && !stronger) {
    Use(key);
    unsure_.push_back(source.key);
    return CheckInfo(key, *known->head(), /*history=*/false, out.info());
  }
  if (stronger) {
    state = *known;
    state.durability = in.options().durability();
  } else {
    state.ring = {source.version()};
    state.max_history = 1;
  }
  state.revision = out.info().revision();
  if (std::string wrong = NewId(state.revision, "revision", &revisions_); !wrong.empty()) return wrong;
  if (state.created == 0) state.created = state.revision;
  Use(source.key);
  Publish(key, std::move(state));
  ++counts_.writes;
  return CheckInfo(key, *names_.at(key).head(), /*history=*/false, out.info());
}

std::string Reference::MatchPrefix(const v1::MatchPrefixRequest& in, const Outcome& outcome,
                                   const v1::MatchPrefixResponse& out) {
  std::vector<Fault> faults;
  if (in.tokens().empty()) faults.push_back({kInvalid, "MISSING_FIELD", "tokens"});
  if (static_cast<uint32_t>(in.tokens_size()) > options_.max_tokens) faults.push_back({kInvalid, "TOO_MANY", "tokens"});
  if (in.max_results() > options_.max_results) faults.push_back({kInvalid, "INVALID_OPTION", "max_results"});
  if (in.has_max_position() && !IsPosition(in.max_position()))
    faults.push_back({kInvalid, "INVALID_POSITION", "max_position"});
  const LayoutM* layout = LayoutOf(in.layout());
  if (in.layout().empty()) faults.push_back({kInvalid, "MISSING_FIELD", "layout"});
  else if (layout == nullptr) faults.push_back({kNotFound, "LAYOUT_UNKNOWN", "layout"});
  if (!faults.empty()) return CheckRefused(faults, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());

  const int64_t max_position = in.has_max_position() ? in.max_position() : in.tokens_size() - 1;
  const std::string fingerprint = fingerprints_.at(layout->layout.SerializeAsString());
  std::vector<Key> matches;  // longest first
  std::set<std::string> gone;
  int64_t nearest = 0;
  bool perhaps = true;
  for (int length = in.tokens_size(); length > 0; --length) {
    const PrefixM prefix{fingerprint, in.extra_key(), in.salt(), {in.tokens().begin(), in.tokens().begin() + length}};
    const auto name = prefix_names_.find(prefix);
    if (name == prefix_names_.end()) continue;
    const Key key(v1::PREFIX, name->second);
    if (names_.count(key) > 0) {
      if (length <= max_position) matches.push_back(key);
      else nearest = length;
    } else if (const auto stone = stones_.find(key); stone != stones_.end() && length <= max_position) {
      gone.insert(stone->second.reason);
      perhaps = perhaps && stone->second.perhaps;
    }
  }
  if (matches.size() > std::max(1u, in.max_results())) matches.resize(std::max(1u, in.max_results()));
  if (out.matches_size() != static_cast<int>(matches.size()))
    return absl::StrCat("expected ", matches.size(), " matches, got ", out.matches_size());
  for (const Key& key : matches) Use(key);
  for (int i = 0; i < out.matches_size(); ++i) {
    const Key& key = matches[static_cast<size_t>(i)];
    const VersionM& head = *names_.at(key).head();
    const v1::PrefixMatch& match = out.matches(i);
    if (match.prefix() != key.second || match.position() != head.position)
      return absl::StrCat("expected ", key.second, " at ", head.position);
    if (std::string wrong = CheckInfo(key, head, /*history=*/false, match.info()); !wrong.empty()) return wrong;
  }
  if (!matches.empty()) {
    ++counts_.matches;
    return out.miss_reason().empty() && out.nearest_published_position() == 0 ? "" : "a hit that is a miss";
  }
  ++counts_.misses;
  if (out.nearest_published_position() != nearest) return absl::StrCat("expected nearest ", nearest);
  std::set<std::string> allowed;
  if (nearest > 0) allowed = {"POSITION_MISMATCH"};
  else if (!gone.empty()) allowed = gone;
  else if (!uncertain_) allowed = {"NEVER_PUBLISHED"};
  if (nearest == 0 && uncertain_ && perhaps) allowed.insert("UNKNOWN_SINCE_RESTART");
  if (allowed.count(out.miss_reason()) > 0) return "";
  return absl::StrCat("expected miss_reason ", *allowed.begin(), " (of ", allowed.size(), ")");
}

std::string Reference::EvictedPrefix(const std::set<std::string>& left) {
  std::vector<Key> gone;
  for (const auto& [key, state] : names_) {
    if (key.first == v1::PREFIX && left.count(key.second) == 0) gone.push_back(key);
  }
  for (const Key& key : gone) Forget(key, "EVICTED");
  return gone.size() == 1 ? "" : absl::StrCat(gone.size(), " prefixes are gone instead of one");
}

// ---- layouts

std::string Reference::CheckLayout(const std::string& fingerprint, const v1::LayoutInfo& out) const {
  const LayoutM& layout = layouts_.at(fingerprint);
  v1::LayoutInfo expected;
  expected.set_fingerprint(fingerprint);
  for (const std::string& alias : layout.aliases) expected.add_aliases(alias);
  *expected.mutable_layout() = layout.layout;
  expected.set_state_bytes(layout.bytes);
  return Differs(expected, out);
}

std::string Reference::RegisterLayout(const v1::RegisterLayoutRequest& in, const Outcome& outcome,
                                      const v1::LayoutInfo& out) {
  const std::string encoded = in.layout().SerializeAsString();
  const auto known = fingerprints_.find(encoded);
  std::vector<Fault> faults;
  if (!in.alias().empty() && !IsName(in.alias())) faults.push_back({kInvalid, "INVALID_NAME", "alias"});
  for (const auto& [fingerprint, layout] : layouts_) {
    if (layout.aliases.count(in.alias()) > 0 && (known == fingerprints_.end() || known->second != fingerprint))
      faults.push_back({kExists, "LAYOUT_ALIAS_TAKEN", "alias", {{"fingerprint", fingerprint}}});
  }
  if (!faults.empty()) return CheckRefused(faults, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  if (known == fingerprints_.end()) {
    for (const auto& [other, fingerprint] : fingerprints_) {
      if (fingerprint == out.fingerprint()) return "two layouts have one fingerprint";
    }
    fingerprints_[encoded] = out.fingerprint();
  } else if (known->second != out.fingerprint()) {
    return "a layout has two fingerprints";
  }
  LayoutM& layout = layouts_[out.fingerprint()];
  layout.layout = in.layout();
  if (!in.alias().empty()) layout.aliases.insert(in.alias());
  static constexpr uint64_t kSize[] = {0, 4, 2, 2, 8, 1, 1, 1, 1, 2, 4, 8};
  layout.initial.clear();
  for (const v1::TensorSpec& tensor : in.layout().tensors()) {
    uint64_t bytes = kSize[tensor.dtype()] * static_cast<uint64_t>(tensor.layers_size());
    for (const v1::Axis& axis : tensor.axes()) bytes *= axis.size();
    // Constants are bytes here: the worlds' layouts have no others.
    if (tensor.initial().has_data()) layout.initial += tensor.initial().data();
    else layout.initial.append(bytes, static_cast<char>(tensor.initial().constant()));
  }
  layout.bytes = layout.initial.size();
  return CheckLayout(out.fingerprint(), out);
}

std::string Reference::GetLayout(const v1::GetLayoutRequest& in, const Outcome& outcome,
                                 const v1::LayoutInfo& out) const {
  const LayoutM* layout = LayoutOf(in.layout());
  if (in.layout().empty()) return CheckRefused({{kInvalid, "MISSING_FIELD", "layout"}}, outcome, "");
  if (layout == nullptr) return CheckRefused({{kNotFound, "LAYOUT_UNKNOWN", "layout"}}, outcome, "");
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  return CheckLayout(fingerprints_.at(layout->layout.SerializeAsString()), out);
}

std::string Reference::DeleteLayout(const v1::DeleteLayoutRequest& in, const Outcome& outcome,
                                    const v1::DeleteLayoutResponse& out) {
  const LayoutM* layout = LayoutOf(in.layout());
  if (in.layout().empty()) return CheckRefused({{kInvalid, "MISSING_FIELD", "layout"}}, outcome, "");
  if (layout == nullptr && !in.allow_missing())
    return CheckRefused({{kNotFound, "LAYOUT_UNKNOWN", "layout"}}, outcome, "");
  if (layout == nullptr) {
    if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
    return out.deleted() ? "deleted what was not there" : "";
  }
  const std::string fingerprint = fingerprints_.at(layout->layout.SerializeAsString());
  const auto has_it = [&](const auto& name) { return name.second.layout == fingerprint; };
  const auto uses = std::count_if(names_.begin(), names_.end(), has_it);
  if (uses > 0) {
    return CheckRefused({{kPrecondition, "LAYOUT_IN_USE", "layout", {{"names", absl::StrCat(uses)}}}}, outcome, "");
  }
  if (!outcome.ok()) return absl::StrCat("expected OK, got ", outcome.ToString());
  layouts_.erase(fingerprint);
  // No record can tell of it any more.
  for (auto& [key, disk] : disk_) {
    std::erase_if(disk.states, [&](const auto& s) { return s.has_value() && s->layout == fingerprint; });
    if (disk.states.empty()) disk.states = {std::nullopt};
  }
  return out.deleted() ? "" : "expected deleted";
}

// ---- what else happens

void Reference::ReapedExpired() {
  for (auto& [key, disk] : disk_) {
    if (names_.count(key) == 0) disk.reaped = true;
  }
}

void Reference::FlushedDue() {
  for (auto& [key, disk] : disk_) {
    const State* state = Find(key);
    if (state == nullptr && disk.reaped) disk.states = {std::nullopt};
    if (state != nullptr &&
        clock_->Now() - state->last_change >= absl::ToInt64Nanoseconds(options_.write_behind.flush_interval))
      Recorded(key);
  }
}

void Reference::Restarted(bool orderly, std::string incarnation) {
  incarnation_ = std::move(incarnation);
  orderly_ = orderly;
  if (orderly) {
    for (auto& [key, disk] : disk_) {
      const State* state = Find(key);
      if (state == nullptr) disk.states = {std::nullopt};
      else if (state->durability != v1::VOLATILE) disk.states = {*state};
      else  // what is recorded of it, but nothing of an earlier name
        std::erase_if(disk.states, [&](const auto& s) { return s.has_value() && s->created != state->created; });
    }
  } else {
    uncertain_ = true;
    for (auto& [key, stone] : stones_) stone.perhaps = true;
  }
  before_restart_ = std::move(names_);
  names_.clear();
}

std::vector<Key> Reference::KeysToAsk() const {
  std::vector<Key> keys;
  for (const auto& [key, disk] : disk_) {
    if (before_restart_.count(key) > 0 || disk.MayHaveRecord()) keys.push_back(key);
  }
  return keys;
}

std::vector<std::string> Reference::SequencesLeft() const {
  std::vector<std::string> left;
  for (const auto& [key, disk] : disk_) {
    if (key.first == v1::SEQUENCE && Find(key) == nullptr && disk.MayHaveRecord()) left.push_back(key.second);
  }
  return left;
}

std::string Reference::Recovered(const Key& key, const Outcome& outcome, const v1::NameInfo& out) {
  std::vector<std::optional<State>>& states = disk_[key].states;
  const auto is_over = [&](const std::optional<State>& s) {
    return s.has_value() && s->expire_time <= clock_->WallNow();
  };
  if (!outcome.ok()) {
    ++counts_.lost;
    std::vector<Fault> faults;
    const bool was = before_restart_.count(key) > 0;
    if (std::any_of(states.begin(), states.end(), [](const auto& s) { return !s.has_value(); })) {
      const Stone lost{"NOT_DURABLE_AT_RESTART"};
      faults = was && orderly_ ? MissesOf(key, "name", &lost) : MissOf(key, "name");
    }
    if (std::any_of(states.begin(), states.end(), is_over)) faults.push_back({kNotFound, "EXPIRED", "name"});
    if (faults.empty()) return absl::StrCat("it must be there, got ", outcome.ToString());
    if (std::string wrong = CheckRefused(faults, outcome, ""); !wrong.empty()) return wrong;
    if (outcome.reason == "EXPIRED" && was) {
      forgotten_at_[key] = LastRevision();
      std::erase_if(states, [&](const auto& s) { return !is_over(s); });
      states.push_back(std::nullopt);
    } else if (was) {
      states = {std::nullopt};
    }
    if (outcome.reason == "UNKNOWN_SINCE_RESTART") stones_.erase(key);
    else stones_[key] = {outcome.reason, false};
    return "";
  }
  std::string closest = "no state of it may be on disk";
  for (const std::optional<State>& candidate : states) {
    if (!candidate.has_value() || is_over(candidate)) continue;
    State state = *candidate;
    state.last_used = state.last_change = clock_->Now();
    if (state.expire_time != absl::InfiniteFuture())
      state.expire_at = clock_->Now() + absl::ToInt64Nanoseconds(state.expire_time - clock_->WallNow());
    // The ring keeps an unbroken run that ends at the head.
    const auto kept = static_cast<size_t>(out.history_size());
    if (kept >= 1 && kept < state.ring.size())
      state.ring.erase(state.ring.begin(), state.ring.end() - out.history_size());
    std::string error;
    const v1::NameInfo actual = Comparable(out, &error);
    if (error.empty()) error = Differs(InfoOf(key, state, *state.head(), /*history=*/true), actual);
    if (error.empty() && out.durable_revision() != state.revision) error = "what was recovered is not durable";
    if (!error.empty()) {
      closest = error;
      continue;
    }
    ++counts_.survived;
    stones_.erase(key);
    states = {state};
    names_[key] = std::move(state);
    return "";
  }
  return closest;
}

std::string Reference::AllRecovered() {
  std::string wrong;
  for (const auto& group : groups_) {
    int all = 0, none = 0;
    std::string text;
    for (const auto& [key, revision] : group) {
      const auto forgotten = forgotten_at_.find(key);
      if (forgotten != forgotten_at_.end() && forgotten->second >= revision) continue;
      const State* state = Find(key);
      const bool there = state != nullptr && state->revision >= revision;
      ++(there ? all : none);
      absl::StrAppend(&text, " ", key.second, "@", revision, there ? "+" : "-");
    }
    if (all > 0 && none > 0) wrong = absl::StrCat("of names written at one moment only some came back:", text);
  }
  groups_.clear();
  forgotten_at_.clear();
  before_restart_.clear();
  return wrong;
}

std::vector<Key> Reference::TakeUnsure() {
  std::vector<Key> unsure;
  for (Key& key : std::exchange(unsure_, {})) {
    if (names_.count(key) > 0) unsure.push_back(std::move(key));
  }
  return unsure;
}

}  // namespace statepool::model
