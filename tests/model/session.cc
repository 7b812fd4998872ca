// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/model/session.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace statepool::model {
namespace {

using google::protobuf::Message;

v1::TensorSpec Tensor(const char* name, const std::vector<uint32_t>& layers, v1::DType dtype, uint64_t size) {
  v1::TensorSpec tensor;
  tensor.set_name(name);
  tensor.set_kind(v1::RECURRENT);
  tensor.mutable_layers()->Add(layers.begin(), layers.end());
  tensor.set_dtype(dtype);
  v1::Axis* axis = tensor.add_axes();
  axis->set_name("n");
  axis->set_size(size);
  return tensor;
}

// Of a few bytes in several tensors, of two chunks of the device, of two leaves of the checksum, and one that comes and
// goes.
std::vector<v1::Layout> Layouts() {
  std::vector<v1::Layout> layouts(4);
  layouts[0].set_model_id("m");
  *layouts[0].add_tensors() = Tensor("s", {0, 1, 2}, v1::FLOAT32, 8);
  *layouts[0].add_tensors() = Tensor("t", {1, 3}, v1::INT8, 5);
  layouts[0].mutable_tensors(1)->mutable_initial()->set_constant(7);
  layouts[1].set_model_id("n");
  *layouts[1].add_tensors() = Tensor("s", {0, 1}, v1::UINT8, 2500);
  layouts[2].set_model_id("o");
  *layouts[2].add_tensors() = Tensor("u", {0, 4}, v1::UINT8, 65636 / 2);
  layouts[3].set_model_id("p");
  *layouts[3].add_tensors() = Tensor("t", {0}, v1::INT16, 3);
  layouts[3].mutable_tensors(0)->mutable_initial()->set_data("abcdef");
  return layouts;
}

const std::vector<std::string>& Aliases() {
  static const auto* const aliases = new std::vector<std::string>{"m", "n", "o", "p"};
  return *aliases;
}

const std::vector<std::string>& Sequences() {
  static const auto* const names = new std::vector<std::string>{"a", "b", "c", "d/1", "d/2", "d/2/x", "e", "ab"};
  return *names;
}
const std::vector<std::string>& Snapshots() {
  static const auto* const names = new std::vector<std::string>{"a", "b", "s", "s/1", "s/2"};
  return *names;
}

// A request without its bytes.
std::string Text(const Message& message) {
  std::string text = message.ShortDebugString();
  if (text.size() <= 2000) return text;
  std::unique_ptr<Message> copy(message.New());
  copy->CopyFrom(message);
  if (const auto* field = copy->GetDescriptor()->FindFieldByName("data"); field != nullptr) {
    const std::string data = copy->GetReflection()->GetString(*copy, field);
    copy->GetReflection()->SetString(copy.get(), field,
                                     absl::StrCat("(", data.size(), " bytes, ", ChecksumOfBytes(data), ")"));
  }
  return copy->ShortDebugString().substr(0, 4000);
}

v1::NameRef RefOf(const Key& key) {
  v1::NameRef ref;
  if (key.first == v1::SEQUENCE) ref.set_sequence(key.second);
  if (key.first == v1::SNAPSHOT) ref.set_snapshot(key.second);
  if (key.first == v1::PREFIX) ref.set_prefix(key.second);
  return ref;
}

void ToProto(absl::Time time, google::protobuf::Timestamp* proto) {
  proto->set_seconds(absl::ToUnixSeconds(time));
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(proto->seconds()))));
}

}  // namespace

Session::Session(const SessionOptions& options)
    : options_(options),
      random_(options.seed),
      world_(options.directory, &clock_),
      reference_(OptionsOfWorld(), &clock_),
      layouts_(Layouts()) {}

void Session::Note(const std::string& what) {
  last_ = what;
  if (options_.verbose) std::fprintf(stderr, "%6llu %s\n", static_cast<unsigned long long>(steps_), last_.c_str());
}

void Session::Note(const char* method, const Message& request, const Outcome& outcome, const Message& answer) {
  if (!options_.verbose && last_.capacity() > 0) last_.clear();
  Note(absl::StrCat(method, " {", Text(request), "} -> ", outcome.ToString(), " {", Text(answer), "}"));
}

// ---- pieces

std::string Session::Sequence() {
  if (Chance(0.01)) return OneOf<std::string>({"", "a//b", "..", "x\ny"});
  return OneOf(Sequences());
}
std::string Session::SnapshotName() {
  if (Chance(0.01)) return OneOf<std::string>({"", "/", "a/.", "x\ty"});
  return OneOf(Snapshots());
}
std::string Session::LayoutName() {
  if (Chance(0.02)) return OneOf<std::string>({"", "unknown", std::string(64, 'a')});
  if (Chance(0.1) && !reference_.layouts().empty()) {
    auto it = reference_.layouts().begin();
    std::advance(it, static_cast<ptrdiff_t>(Pick(reference_.layouts().size())));
    return it->first;
  }
  const uint64_t which = Pick(20);
  return Aliases()[which < 11 ? 0 : which < 15 ? 1 : which < 19 ? 2 : 3];
}
int64_t Session::Position() {
  if (Chance(0.01)) return OneOf<int64_t>({-1, (int64_t{1} << 53) + 1, int64_t{1} << 53});
  return Chance(0.1) ? OneOf<int64_t>({63, 64, 65, 128, 130}) : static_cast<int64_t>(Pick(7));
}
int64_t Session::PositionOf(const State* state) {
  if (state == nullptr || Chance(0.2)) return Position();
  return OneOf(state->ring)->position;
}
std::string Session::RequestId() {
  if (Chance(0.6)) return "";
  return Chance(0.3) ? absl::StrCat("r", Pick(6)) : absl::StrCat("q", serial_++);
}
std::string Session::Pattern(uint64_t bytes) {
  std::string data(bytes, '\0');
  uint64_t x = random_() | 1;
  for (size_t i = 0; i < data.size(); i += 97) data[i] = static_cast<char>(x >> 56), x = x * 6364136223846793005 + 1;
  if (!data.empty()) data[Pick(data.size())] = static_cast<char>(x >> 48);
  return data;
}
std::vector<uint32_t> Session::Tokens(uint64_t count) {
  // Two streams, which part at the fourth token or at the seventieth.
  const uint64_t part = Chance(0.5) ? 3 : 69;
  const uint32_t stream = static_cast<uint32_t>(Pick(2));
  std::vector<uint32_t> tokens;
  for (uint64_t i = 0; i < count; ++i) tokens.push_back(static_cast<uint32_t>(i) + (i >= part ? 1000 * stream : 0));
  return tokens;
}
v1::NameRef Session::ExistingRef() {
  if (reference_.names().empty()) return Ref();
  auto it = reference_.names().begin();
  std::advance(it, static_cast<ptrdiff_t>(Pick(reference_.names().size())));
  return RefOf(it->first);
}
v1::NameRef Session::Ref() {
  v1::NameRef ref;
  const uint64_t which = Pick(100);
  if (which < 1) return ref;
  if (which < 60) ref.set_sequence(Sequence());
  else if (which < 80) ref.set_snapshot(SnapshotName());
  else if (which < 81 || reference_.prefixes().empty())
    ref.set_prefix(OneOf<std::string>({"xyz", std::string(32, 'b')}));
  else {
    auto it = reference_.prefixes().begin();
    std::advance(it, static_cast<ptrdiff_t>(Pick(reference_.prefixes().size())));
    ref.set_prefix(it->second);
  }
  return ref;
}
void Session::Fill(v1::NameOptions* options) {
  if (Chance(0.5)) options->set_durability(static_cast<v1::Durability>(1 + Pick(3)));
  if (Chance(0.2)) options->set_max_history(OneOf<uint32_t>({1, 2, 3, 5, 8}));
  if (Chance(0.01)) options->set_max_history(OneOf<uint32_t>({0, 9}));
  const uint64_t expiry = Pick(100);
  if (expiry < 12) options->mutable_ttl()->set_seconds(static_cast<int64_t>(1 + Pick(20)));
  else if (expiry < 14) options->mutable_ttl()->set_nanos(static_cast<int32_t>(1 + Pick(999'999'999)));
  else if (expiry < 20)
    ToProto(clock_.WallNow() + absl::Milliseconds(1 + Pick(20'000)), options->mutable_expire_time());
  else if (expiry < 26) options->set_never_expire(true);
  else if (expiry < 27) options->mutable_ttl()->set_seconds(OneOf<int64_t>({0, -1, 3601}));
  else if (expiry < 28)
    ToProto(clock_.WallNow() + absl::Seconds(OneOf<int64_t>({0, -5, 3601})), options->mutable_expire_time());
}
std::pair<int64_t, int64_t> Session::RangeOf(const State* state) {
  const auto index = [&] {
    const int64_t of_ring = PositionOf(state) + static_cast<int64_t>(Pick(3)) - 1;
    return Chance(0.8) ? of_ring : OneOf<int64_t>({0, 0, -1, -5, INT64_MAX, INT64_MIN});
  };
  const int64_t begin = index();
  return {begin, Chance(0.4) ? -1 : index()};
}
v1::Select Session::SelectOf(const LayoutM* layout) {
  v1::Select select;
  if (layout == nullptr || Chance(0.05)) {
    select.add_tensors("none");
    return select;
  }
  const v1::TensorSpec& tensor = layout->layout.tensors(static_cast<int>(Pick(layout->layout.tensors_size())));
  if (Chance(0.6)) select.add_tensors(tensor.name());
  if (Chance(0.5)) select.add_layers(tensor.layers(static_cast<int>(Pick(tensor.layers_size()))));
  if (Chance(0.03)) select.add_layers(Pick(5));
  if (Chance(0.03)) select.add_tensors(tensor.name());
  return select;
}
uint64_t Session::IfRevision(const Key& key) {
  const State* state = reference_.Find(key);
  if (Chance(0.1)) return 0;
  if (state == nullptr) return Pick(3);
  return Chance(0.75) ? state->revision : state->revision - 1 - Pick(4);
}

// ---- requests

v1::CreateRequest Session::MakeCreate() {
  v1::CreateRequest in;
  in.set_sequence(Sequence());
  in.set_layout(LayoutName());
  if (Chance(0.5)) Fill(in.mutable_options());
  in.set_request_id(RequestId());
  return in;
}

v1::SetRequest Session::MakeSet() {
  v1::SetRequest in;
  in.set_sequence(Sequence());
  const Key key(v1::SEQUENCE, in.sequence());
  const State* state = reference_.Find(key);
  if (state == nullptr || Chance(0.2)) in.set_layout(LayoutName());
  if (state != nullptr && Chance(0.1)) in.set_layout(state->layout);
  const LayoutM* layout = reference_.LayoutOf(state != nullptr ? state->layout : in.layout());
  in.set_position(Position());
  if (Chance(0.25)) in.set_if_revision(IfRevision(key));
  if (Chance(0.3)) Fill(in.mutable_options());
  if (Chance(0.15)) in.set_attachment(Pattern(1 + Pick(200)));
  if (Chance(0.003)) in.set_attachment(std::string(4097, 'x'));
  if (Chance(0.1)) in.set_exactness(static_cast<v1::Exactness>(1 + Pick(3)));
  uint64_t bytes = layout != nullptr ? layout->bytes : 10;
  if (Chance(0.15)) {
    *in.mutable_select() = SelectOf(layout);
    if (Chance(0.95)) in.set_if_revision(IfRevision(key));
    static constexpr uint64_t kSize[] = {0, 4, 2, 2, 8, 1, 1, 1, 1, 2, 4, 8};
    bytes = 0;
    const v1::Layout none;
    for (const v1::TensorSpec& tensor : (layout != nullptr ? layout->layout : none).tensors()) {
      const auto has = [](const auto& list, const auto& item) {
        return list.empty() || std::find(list.begin(), list.end(), item) != list.end();
      };
      if (!has(in.select().tensors(), tensor.name())) continue;
      for (const uint32_t layer : tensor.layers()) {
        if (has(in.select().layers(), layer)) bytes += kSize[tensor.dtype()] * tensor.axes(0).size();
      }
    }
  }
  if (Chance(0.02)) bytes += Chance(0.5) && bytes > 0 ? -1 : 1;
  in.set_data(Pattern(bytes));
  if (Chance(0.15)) in.set_checksum(ChecksumOfBytes(in.data()));
  if (Chance(0.01)) in.set_checksum("0123456789abcdef");
  in.set_request_id(RequestId());
  return in;
}

v1::ForkRequest Session::MakeFork() {
  v1::ForkRequest in;
  *in.mutable_source() = Chance(0.8) ? ExistingRef() : Ref();
  const State* source = in.source().has_sequence() ? reference_.Find({v1::SEQUENCE, in.source().sequence()}) : nullptr;
  if (Chance(0.3)) in.set_position(PositionOf(source));
  if (Chance(0.1)) in.set_layout(source != nullptr && Chance(0.7) ? source->layout : LayoutName());
  const uint64_t children = Chance(0.02) ? 0 : 1 + Pick(3);
  std::set<std::string> distinct;
  for (uint64_t i = 0; i < children; ++i) {
    const std::string child = Chance(0.5) ? Sequence() : absl::StrCat("f/", Pick(12));
    if (distinct.insert(child).second || Chance(0.05)) in.add_children(child);
  }
  if (Chance(0.002)) {
    for (int i = 0; i < 25; ++i) in.add_children(absl::StrCat("g/", i));
  }
  if (Chance(0.4)) Fill(in.mutable_options());
  in.set_request_id(RequestId());
  return in;
}

v1::RollbackRequest Session::MakeRollback() {
  v1::RollbackRequest in;
  in.set_sequence(Sequence());
  const Key key(v1::SEQUENCE, in.sequence());
  if (Chance(0.4)) {
    in.set_tokens(Chance(0.02) ? -1 : static_cast<int64_t>(Pick(4)));
    if (Chance(0.02)) in.set_position(1);
  } else {
    in.set_position(PositionOf(reference_.Find(key)));
  }
  if (Chance(0.2)) in.set_if_revision(IfRevision(key));
  in.set_request_id(RequestId());
  return in;
}

v1::RemoveRangeRequest Session::MakeRemoveRange() {
  v1::RemoveRangeRequest in;
  const std::vector<std::string> left = reference_.SequencesLeft();
  in.set_sequence(!left.empty() && Chance(0.7) ? OneOf(left) : Sequence());
  const Key key(v1::SEQUENCE, in.sequence());
  const auto [begin, end] = RangeOf(reference_.Find(key));
  in.set_begin(begin);
  in.set_end(end);
  if (Chance(0.2)) in.set_if_revision(IfRevision(key));
  in.set_request_id(RequestId());
  in.set_allow_missing(Chance(reference_.Find(key) == nullptr ? 0.8 : 0.3));
  return in;
}

v1::RenumberRequest Session::MakeRenumber() {
  v1::RenumberRequest in;
  in.set_sequence(Sequence());
  const Key key(v1::SEQUENCE, in.sequence());
  auto [begin, end] = RangeOf(reference_.Find(key));
  if (Chance(0.3)) begin = 0;
  in.set_begin(begin);
  in.set_end(Chance(0.3) ? -1 : end);
  if (Chance(0.5)) in.set_add(static_cast<int64_t>(Pick(9)) - 4);
  else if (Chance(0.95)) in.set_divide(static_cast<int64_t>(Pick(4)));
  if (Chance(0.02)) in.set_add(OneOf<int64_t>({INT64_MIN, INT64_MAX, int64_t{1} << 53, -(int64_t{1} << 53)}));
  if (Chance(0.2)) in.set_if_revision(IfRevision(key));
  in.set_request_id(RequestId());
  return in;
}

v1::SnapshotRequest Session::MakeSnapshot() {
  v1::SnapshotRequest in;
  *in.mutable_source() = Chance(0.8) ? ExistingRef() : Ref();
  const State* source = in.source().has_sequence() ? reference_.Find({v1::SEQUENCE, in.source().sequence()}) : nullptr;
  if (Chance(0.3)) in.set_position(PositionOf(source));
  in.set_snapshot(SnapshotName());
  if (Chance(0.4)) Fill(in.mutable_options());
  in.set_request_id(RequestId());
  return in;
}

v1::RestoreRequest Session::MakeRestore() {
  v1::RestoreRequest in;
  in.set_snapshot(SnapshotName());
  in.set_sequence(Sequence());
  if (Chance(0.3)) in.set_if_revision(IfRevision({v1::SEQUENCE, in.sequence()}));
  if (Chance(0.3)) Fill(in.mutable_options());
  in.set_request_id(RequestId());
  return in;
}

v1::DeleteRequest Session::MakeDelete() {
  v1::DeleteRequest in;
  *in.mutable_name() = Chance(0.5) ? ExistingRef() : Ref();
  if (Chance(0.2) && in.name().has_sequence()) in.set_if_revision(IfRevision({v1::SEQUENCE, in.name().sequence()}));
  in.set_allow_missing(Chance(0.5));
  return in;
}

v1::GetRequest Session::MakeGet() {
  v1::GetRequest in;
  *in.mutable_name() = Chance(0.75) ? ExistingRef() : Ref();
  Key key(v1::SEQUENCE, in.name().sequence());
  if (in.name().has_snapshot()) key = {v1::SNAPSHOT, in.name().snapshot()};
  if (in.name().has_prefix()) key = {v1::PREFIX, in.name().prefix()};
  const State* state = reference_.Find(key);
  if (Chance(0.25)) in.set_position(PositionOf(state));
  if (Chance(0.15) && state != nullptr) in.set_version_id(OneOf(state->ring)->id + (Chance(0.2) ? 1 : 0));
  if (Chance(0.1)) in.set_layout(state != nullptr && Chance(0.7) ? state->layout : LayoutName());
  in.set_omit_attachment(Chance(0.2));
  if (Chance(0.2)) *in.mutable_select() = SelectOf(state != nullptr ? reference_.LayoutOf(state->layout) : nullptr);
  return in;
}

v1::BatchWriteItem Session::MakeWrite() {
  v1::BatchWriteItem item;
  const uint64_t which = Pick(100);
  if (which < 10) *item.mutable_create() = MakeCreate();
  else if (which < 52) *item.mutable_set() = MakeSet();
  else if (which < 66) *item.mutable_fork() = MakeFork();
  else if (which < 73) *item.mutable_rollback() = MakeRollback();
  else if (which < 77) *item.mutable_remove_range() = MakeRemoveRange();
  else if (which < 81) *item.mutable_renumber() = MakeRenumber();
  else if (which < 86) *item.mutable_snapshot() = MakeSnapshot();
  else if (which < 92) *item.mutable_restore() = MakeRestore();
  else *item.mutable_delete_() = MakeDelete();
  return item;
}

// ---- operations

// A macro because a method, its request and its answer have one name.
#define STATEPOOL_CALL(method, in, Answer)                          \
  Answer out;                                                       \
  const Outcome outcome = world_.handlers().method(Op(), in, &out); \
  Note(#method, in, outcome, out)

std::string Session::Write(const v1::BatchWriteItem& item) {
  switch (item.write_case()) {
    case v1::BatchWriteItem::kCreate: {
      STATEPOOL_CALL(Create, item.create(), v1::NameInfo);
      return reference_.Create(item.create(), outcome, out);
    }
    case v1::BatchWriteItem::kSet: {
      v1::NameInfo out;
      const Outcome outcome = world_.Set(item.set(), &out);
      Note("Set", item.set(), outcome, out);
      return reference_.Set(item.set(), outcome, out);
    }
    case v1::BatchWriteItem::kFork: {
      STATEPOOL_CALL(Fork, item.fork(), v1::ForkResponse);
      return reference_.Fork(item.fork(), outcome, out);
    }
    case v1::BatchWriteItem::kRollback: {
      STATEPOOL_CALL(Rollback, item.rollback(), v1::NameInfo);
      return reference_.Rollback(item.rollback(), outcome, out);
    }
    case v1::BatchWriteItem::kSnapshot: {
      STATEPOOL_CALL(Snapshot, item.snapshot(), v1::NameInfo);
      return reference_.Snapshot(item.snapshot(), outcome, out);
    }
    case v1::BatchWriteItem::kRestore: {
      STATEPOOL_CALL(Restore, item.restore(), v1::NameInfo);
      return reference_.Restore(item.restore(), outcome, out);
    }
    case v1::BatchWriteItem::kDelete: {
      STATEPOOL_CALL(Delete, item.delete_(), v1::DeleteResponse);
      return reference_.Delete(item.delete_(), outcome, out);
    }
    case v1::BatchWriteItem::kRemoveRange: {
      const std::vector<std::string> left = reference_.SequencesLeft();
      const bool was_left = std::find(left.begin(), left.end(), item.remove_range().sequence()) != left.end();
      STATEPOOL_CALL(RemoveRange, item.remove_range(), v1::RemoveRangeResponse);
      std::string wrong = reference_.RemoveRange(item.remove_range(), outcome, out);
      if (!wrong.empty() || !was_left || !outcome.ok() || !options_.crashes || Chance(0.5)) return wrong;
      return Restart(/*orderly=*/false);  // it must not come back
    }
    case v1::BatchWriteItem::kRenumber: {
      STATEPOOL_CALL(Renumber, item.renumber(), v1::NameInfo);
      return reference_.Renumber(item.renumber(), outcome, out);
    }
    case v1::BatchWriteItem::WRITE_NOT_SET: break;
  }
  return "";
}

std::string Session::BatchWrite() {
  v1::BatchWriteRequest in;
  in.set_all_or_none(Chance(0.5));
  const uint64_t items = Chance(0.01) ? Pick(2) * 7 : 1 + Pick(4);
  std::set<std::string> written;
  const bool twice = Chance(0.03);
  for (uint64_t i = 0; i < items; ++i) {
    v1::BatchWriteItem item = Chance(0.1) && !written_.empty() ? written_[Pick(written_.size())] : MakeWrite();
    std::vector<std::string> names;
    if (item.has_create()) names = {item.create().sequence()};
    if (item.has_set()) names = {item.set().sequence()};
    if (item.has_fork()) names = {item.fork().children().begin(), item.fork().children().end()};
    if (item.has_rollback()) names = {item.rollback().sequence()};
    if (item.has_remove_range()) names = {item.remove_range().sequence()};
    if (item.has_renumber()) names = {item.renumber().sequence()};
    if (item.has_snapshot()) names = {"snapshot:" + item.snapshot().snapshot()};
    if (item.has_restore()) names = {item.restore().sequence()};
    if (item.has_delete_()) {
      const v1::NameRef& ref = item.delete_().name();
      // A reference that is none has no name, so it can't be one that is written twice.
      if (ref.name_case() == v1::NameRef::NAME_NOT_SET) continue;
      names = {ref.has_sequence() ? ref.sequence() : ref.has_snapshot() ? "snapshot:" + ref.snapshot() : ref.prefix()};
    }
    bool distinct = true;
    for (const std::string& name : std::set<std::string>(names.begin(), names.end()))
      distinct &= written.insert(name).second;
    if (!distinct && !twice) continue;
    if (item.has_set()) {
      in.mutable_data()->append(item.set().data());
      item.set_data_bytes(item.set().data().size());
      item.mutable_set()->clear_data();
    }
    *in.add_items() = std::move(item);
  }
  if (Chance(0.005)) in.mutable_data()->push_back('x');
  v1::BatchWriteResponse out;
  const Outcome outcome = world_.BatchWrite(in, &out);
  Note("BatchWrite", in, outcome, out);
  // A Renumber gives every version of the ring another id, and here only Describe tells them.
  for (int i = 0; i < out.results_size(); ++i) {
    if (!in.items(i).has_renumber() || !out.results(i).has_info()) continue;
    v1::NameInfo& info = *out.mutable_results(i)->mutable_info();
    if (info.history_size() > 0 || info.has_rollback_tokens()) return "a batch that tells a history";
    v1::DescribeRequest describe;
    describe.mutable_name()->set_sequence(in.items(i).renumber().sequence());
    v1::NameInfo described;
    if (const absl::Status status = world_.handlers().Describe(Op(), describe, &described); !status.ok())
      return status.ToString();
    *info.mutable_history() = described.history();
    info.set_rollback_tokens(described.rollback_tokens());
  }
  return reference_.BatchWrite(in, outcome, out);
}

std::string Session::Register(size_t layout) {
  v1::RegisterLayoutRequest in;
  *in.mutable_layout() = layouts_[layout];
  in.set_alias(Aliases()[layout]);
  if (Chance(0.15)) in.set_alias(OneOf<std::string>({"", "m", "n", "x", "y", "a//b"}));
  STATEPOOL_CALL(RegisterLayout, in, v1::LayoutInfo);
  return reference_.RegisterLayout(in, outcome, out);
}

std::string Session::DeleteLayout() {
  v1::DeleteLayoutRequest in;
  in.set_layout(Chance(0.6) ? "p" : LayoutName());
  in.set_allow_missing(Chance(0.5));
  STATEPOOL_CALL(DeleteLayout, in, v1::DeleteLayoutResponse);
  return reference_.DeleteLayout(in, outcome, out);
}

std::string Session::GetLayout() {
  v1::GetLayoutRequest in;
  in.set_layout(LayoutName());
  STATEPOOL_CALL(GetLayout, in, v1::LayoutInfo);
  return reference_.GetLayout(in, outcome, out);
}

std::string Session::Get() {
  const v1::GetRequest in = MakeGet();
  v1::GetResponse out;
  const Outcome outcome = world_.Get(in, &out);
  Note("Get", in, outcome, out);
  return reference_.Get(in, outcome, out);
}

std::string Session::BatchGet() {
  v1::BatchGetRequest in;
  in.set_all_or_none(Chance(0.4));
  const uint64_t items = Chance(0.02) ? Pick(2) * 7 : 1 + Pick(5);
  for (uint64_t i = 0; i < items; ++i) *in.add_items() = MakeGet();
  v1::BatchGetResponse out;
  const Outcome outcome = world_.BatchGet(in, &out);
  Note("BatchGet", in, outcome, out);
  return reference_.BatchGet(in, kHotBytes / 2, outcome, out);
}

std::string Session::DeleteMany() {
  v1::DeleteManyRequest in;
  in.set_kind(static_cast<v1::NameKind>(Pick(4)));
  in.set_name_prefix(in.kind() == v1::PREFIX ? OneOf<std::string>({"0", "1", "a", "f", ""})
                                             : OneOf<std::string>({"d/", "f/", "s/", "a", "e", "g/", ""}));
  in.set_all(Chance(0.02));
  in.set_preview(Chance(0.5));
  if (Chance(0.2)) in.set_if_count(Pick(4));
  while (Chance(0.4)) in.add_keep(in.kind() == v1::PREFIX ? ExistingRef().prefix() : Sequence());
  STATEPOOL_CALL(DeleteMany, in, v1::DeleteManyResponse);
  return reference_.DeleteMany(in, outcome, out);
}

std::string Session::Describe(const v1::NameRef& name) {
  v1::DescribeRequest in;
  *in.mutable_name() = name;
  STATEPOOL_CALL(Describe, in, v1::NameInfo);
  return reference_.Describe(in, outcome, out);
}

std::string Session::List() {
  v1::ListRequest in;
  in.set_kind(static_cast<v1::NameKind>(Pick(4)));
  in.set_name_prefix(OneOf<std::string>({"", "", "d/", "a", "f/"}));
  in.set_page_size(static_cast<uint32_t>(1 + Pick(4)));
  if (Chance(0.02)) in.set_page_size(11);
  if (Chance(0.02)) in.set_page_token("nonsense of more than 16 bytes");
  if (Chance(0.3) && !page_tokens_.empty()) in.set_page_token(OneOf(page_tokens_));
  for (int page = 0; page < 3; ++page) {
    STATEPOOL_CALL(List, in, v1::ListResponse);
    if (std::string wrong = reference_.List(in, outcome, out); !wrong.empty()) return wrong;
    if (out.next_page_token().empty()) break;
    if (page_tokens_.size() < 20) page_tokens_.push_back(out.next_page_token());
    else page_tokens_[Pick(20)] = out.next_page_token();
    in.set_page_token(out.next_page_token());
  }
  return "";
}

std::string Session::ListAll(v1::NameKind kind) {
  v1::ListRequest in;
  in.set_kind(kind);
  in.set_page_size(10);
  for (;;) {
    STATEPOOL_CALL(List, in, v1::ListResponse);
    if (std::string wrong = reference_.List(in, outcome, out); !wrong.empty()) return wrong;
    if (out.next_page_token().empty()) return "";
    in.set_page_token(out.next_page_token());
  }
}

std::string Session::Touch(const std::vector<v1::NameRef>& names) {
  v1::TouchRequest in;
  for (const v1::NameRef& name : names) *in.add_names() = name;
  STATEPOOL_CALL(Touch, in, v1::TouchResponse);
  return reference_.Touch(in, outcome, out);
}

std::string Session::SetTtl() {
  v1::SetTtlRequest in;
  *in.mutable_name() = Chance(0.8) ? ExistingRef() : Ref();
  v1::NameOptions options;
  while (options.expiration_case() == v1::NameOptions::EXPIRATION_NOT_SET && !Chance(0.02)) Fill(&options);
  if (options.has_ttl()) *in.mutable_ttl() = options.ttl();
  if (options.has_expire_time()) *in.mutable_expire_time() = options.expire_time();
  if (options.has_never_expire()) in.set_never_expire(true);
  if (Chance(0.2) && in.name().has_sequence()) in.set_if_revision(IfRevision({v1::SEQUENCE, in.name().sequence()}));
  STATEPOOL_CALL(SetTtl, in, v1::NameInfo);
  return reference_.SetTtl(in, outcome, out);
}

std::string Session::Publish() {
  v1::PublishPrefixRequest in;
  *in.mutable_source() = Chance(0.9) ? ExistingRef() : Ref();
  Key key(v1::SEQUENCE, in.source().sequence());
  if (in.source().has_snapshot()) key = {v1::SNAPSHOT, in.source().snapshot()};
  if (in.source().has_prefix()) key = {v1::PREFIX, in.source().prefix()};
  const State* source = reference_.Find(key);
  int64_t position = source != nullptr ? source->head()->position : Position();
  if (Chance(0.25)) {
    position = PositionOf(source);
    in.set_position(position);
  }
  const auto tokens = static_cast<uint64_t>(std::clamp<int64_t>(Chance(0.95) ? position : Position(), 0, 141));
  for (const uint32_t token : Tokens(tokens)) in.add_tokens(token);
  in.set_layout(source != nullptr && Chance(0.95) ? source->layout : LayoutName());
  if (Chance(0.15)) in.set_extra_key("lora");
  if (Chance(0.15)) in.set_salt("tenant");
  if (Chance(0.4)) Fill(in.mutable_options());
  STATEPOOL_CALL(PublishPrefix, in, v1::PublishPrefixResponse);
  return reference_.PublishPrefix(in, outcome, out);
}

std::string Session::Match() {
  v1::MatchPrefixRequest in;
  in.set_layout(LayoutName());
  const uint64_t tokens = Chance(0.01) ? Pick(2) * 141 : Chance(0.6) ? 1 + Pick(10) : 60 + Pick(80);
  for (const uint32_t token : Tokens(tokens)) in.add_tokens(token);
  if (Chance(0.15)) in.set_extra_key("lora");
  if (Chance(0.15)) in.set_salt("tenant");
  if (Chance(0.4)) in.set_max_position(Position());
  if (Chance(0.5)) in.set_max_results(static_cast<uint32_t>(1 + Pick(4)));
  if (Chance(0.01)) in.set_max_results(5);
  STATEPOOL_CALL(MatchPrefix, in, v1::MatchPrefixResponse);
  return reference_.MatchPrefix(in, outcome, out);
}

std::string Session::Flush() {
  v1::FlushRequest in;
  const uint64_t names = Chance(0.2) ? 0 : 1 + Pick(3);
  for (uint64_t i = 0; i < names; ++i) *in.add_names() = Chance(0.9) ? ExistingRef() : Ref();
  STATEPOOL_CALL(Flush, in, v1::FlushResponse);
  return reference_.Flush(in, outcome, out);
}

std::string Session::Capabilities() {
  world_.store().ReapExpired();  // what is told counts names that nobody has looked at
  reference_.ReapedExpired();
  v1::GetCapabilitiesRequest in;
  STATEPOOL_CALL(GetCapabilities, in, v1::Capabilities);
  return reference_.Capabilities(out);
}

std::string Session::Evict() {
  world_.store().ReapExpired();  // one that is over already may be the one of least value
  reference_.ReapedExpired();
  const bool evicted = world_.store().EvictPrefix();
  Note(evicted ? "EvictPrefix: one" : "EvictPrefix: none");
  if (!evicted) return ListAll(v1::PREFIX);
  std::set<std::string> left;
  statepool::ListRequest list;
  list.kind = NameKind::kPrefix;
  list.page_size = 10;
  do {
    const absl::StatusOr<ListAnswer> answer = world_.store().List(Op(), list);
    if (!answer.ok()) return answer.status().ToString();
    for (const NameInfo& info : answer->names) left.insert(info.key.name);
    list.page_token = answer->next_page_token;
  } while (!list.page_token.empty());
  return reference_.EvictedPrefix(left);
}

std::string Session::Housekeeping() {
  const uint64_t which = Pick(100);
  if (which < 45) {
    const absl::Duration by = absl::Milliseconds(1 + Pick(Chance(0.1) ? 20'000 : 700));
    Note(absl::StrCat("clock +", absl::FormatDuration(by)));
    clock_.Advance(by);
    reference_.TimePassed();
  } else if (which < 48) {
    const absl::Duration by = Chance(0.8) ? absl::Seconds(static_cast<int64_t>(Pick(40)) - 20)
                                          : absl::Hours(OneOf<int64_t>({1, -1, 24 * 365, -24 * 365}));
    Note(absl::StrCat("wall clock jumps ", absl::FormatDuration(by)));
    clock_.JumpWall(by);
  } else if (which < 60) {
    Note("ReapExpired");
    world_.store().ReapExpired();
    reference_.ReapedExpired();
  } else if (which < 80) {
    Note("FlushDue");
    world_.store().FlushDue();
    reference_.FlushedDue();
  } else if (which < 95) {
    Note("FoldIdle");
    world_.store().FoldIdle();
  } else if (which < 96) {
    Note("WaitForReclaim");
    world_.residency().WaitForReclaim();
  } else {
    return Evict();
  }
  return "";
}

std::string Session::DescribeAll() {
  std::vector<v1::NameRef> all;
  for (const auto& [key, state] : reference_.names()) all.push_back(RefOf(key));
  for (const v1::NameRef& name : all) {
    if (std::string wrong = Describe(name); !wrong.empty()) return wrong;
  }
  return "";
}

std::string Session::Restart(bool orderly) {
  if (Chance(0.5)) {
    if (std::string wrong = DescribeAll(); !wrong.empty()) return wrong;
  }
  if (Chance(0.2)) clock_.JumpWall(absl::Seconds(static_cast<int64_t>(Pick(20)) - 5));
  Note(orderly ? "restart" : "crash");
  world_.Restart(orderly);
  ++restarts_;
  crashes_ += !orderly;
  reference_.Restarted(orderly, world_.incarnation());
  for (const Key& key : reference_.KeysToAsk()) {
    v1::DescribeRequest in;
    *in.mutable_name() = RefOf(key);
    STATEPOOL_CALL(Describe, in, v1::NameInfo);
    std::string wrong = reference_.Recovered(key, outcome, out);
    if (!wrong.empty()) return absl::StrCat(orderly ? "after a restart: " : "after a crash: ", wrong);
  }
  if (std::string wrong = reference_.AllRecovered(); !wrong.empty()) return wrong;
  for (const v1::NameKind kind : {v1::SEQUENCE, v1::SNAPSHOT, v1::PREFIX}) {
    if (std::string wrong = ListAll(kind); !wrong.empty()) return wrong;
  }
  return "";
}

std::string Session::Run() {
  if (steps_ <= 3) return Register(steps_ - 1);
  const uint64_t which = Pick(1000);
  if (which < 2) return Restart(!options_.crashes || Chance(0.4));
  if (which < 150) return Housekeeping();
  if (which < 165) return Register(Pick(layouts_.size()));
  if (which < 172) return DeleteLayout();
  if (which < 178) return GetLayout();
  if (which < 500) {
    const bool again = Chance(0.08) && !written_.empty();
    v1::BatchWriteItem item = again ? written_[Pick(written_.size())] : MakeWrite();
    if (again && Chance(0.1) && item.has_set()) item.mutable_set()->set_position(Position());
    if (!again) written_.push_back(item);
    if (written_.size() > 12) written_.pop_front();
    return Write(item);
  }
  if (which < 640) return Get();
  if (which < 680) return BatchGet();
  if (which < 740) return BatchWrite();
  if (which < 755) return DeleteMany();
  if (which < 800) return Describe(Chance(0.6) ? ExistingRef() : Ref());
  if (which < 820) return List();
  if (which < 840) return Touch({Ref(), ExistingRef()});
  if (which < 860) return SetTtl();
  if (which < 910) return Publish();
  if (which < 970) return Match();
  if (which < 990) return Flush();
  return Capabilities();
}

std::string Session::Step() {
  ++steps_;
  std::string wrong = Run();
  if (!wrong.empty()) return wrong;
  const std::string operation = last_;
  const std::vector<Key> unsure = reference_.TakeUnsure();
  for (size_t at = 0; at < unsure.size(); at += 6) {
    std::vector<v1::NameRef> names;
    for (size_t i = at; i < unsure.size() && i < at + 6; ++i) names.push_back(RefOf(unsure[i]));
    if (wrong = Touch(names); !wrong.empty()) {
      last_ = absl::StrCat(last_, "\n  after ", operation);
      return wrong;
    }
  }
  if (steps_ % 64 == 0) world_.CheckInvariants();
  return "";
}

}  // namespace statepool::model
