// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Every RPC against a Store over a Residency with little memory. What must hold:
//   - an error has a reason that the contract has in its table and names at the RPC, and never INTERNAL;
//   - bytes that are read have the checksum that is told with them;
//   - a version, once told, never changes, and a revision is never issued twice, also after a restart;
//   - an answer can be parsed by any proto parser;
//   - the Store and the Residency never contradict themselves, and nothing is left when every name is gone.
//
// Input: a byte below the number of methods: that method, with the rest as its serialized request. Another: decisions
// for a sequence of requests, which meet in a few names and layouts, with time passing, records being written, names
// being folded, a full disk and restarts in between.
#include <google/protobuf/stubs/logging.h>
#include <spdlog/spdlog.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "server/rpc/convert.h"
#include "server/rpc/errors.h"
#include "tests/fuzz/calls.h"
#include "tests/fuzz/documented_errors.h"
#include "tests/fuzz/message_builder.h"
#include "tests/fuzz/slices.h"
#include "tests/fuzz/world.h"

namespace statepool::fuzz {
namespace {

using google::protobuf::DynamicCastToGenerated;
using google::protobuf::Message;

constexpr int kStepsMax = 60;

TensorSpec Tensor(std::string name, std::vector<uint32_t> layers, DType dtype, uint64_t size, InitialValue initial) {
  TensorSpec tensor;
  tensor.name = std::move(name);
  tensor.kind = TensorKind::kRecurrent;
  tensor.layers = std::move(layers);
  tensor.dtype = dtype;
  tensor.axes = {{"n", size}};
  tensor.initial = std::move(initial);
  return tensor;
}

// Of a few bytes in several tensors; of two chunks of the device; of two leaves.
const std::vector<LayoutRef>& Layouts() {
  static const auto* const layouts = new std::vector<LayoutRef>{
      *Layout::Create(
          {"m",
           {Tensor("s", {0, 1, 2}, DType::kFloat32, 8, {}), Tensor("t", {1, 3}, DType::kInt8, 5, ConstantInitial{7})}}),
      *Layout::Create({"n", {Tensor("s", {0, 1}, DType::kUInt8, 2500, {})}}),
      *Layout::Create({"o", {Tensor("u", {0}, DType::kUInt8, kLeafBytes + 100, {})}})};
  return *layouts;
}

const std::vector<std::string>& Names() {
  static const auto* const names = new std::vector<std::string>(MethodNames());
  return *names;
}

// One client's view of a World: what it was told must stay true.
class Session {
 public:
  explicit Session(const WorldOptions& options) : world_(options) {
    for (size_t i = 0; i < Layouts().size(); ++i) {
      Require(world_.store().RegisterLayout(Op(), Layouts()[i], std::string(1, "mno"[i])).ok(), "no layout");
      known_.fingerprints.push_back(Layouts()[i]->fingerprint());
    }
    known_.now = world_.clock().WallNow();

    // Something for the first requests to meet.
    Input none(nullptr, 0);
    v1::SetRequest set;
    set.set_sequence("a");
    set.set_layout("m");
    set.set_position(2);
    set.set_data(Pattern(Layouts()[0]->state_bytes(), 1));
    Serve(Method::kSet, CutIntoSlices(set.SerializeAsString(), &none));
    set.set_sequence("b");
    set.set_layout("n");
    set.set_data(Pattern(Layouts()[1]->state_bytes(), 2));
    Serve(Method::kSet, CutIntoSlices(set.SerializeAsString(), &none));
    v1::SnapshotRequest snapshot;
    snapshot.mutable_source()->set_sequence("a");
    snapshot.set_snapshot("a");
    Serve(Method::kSnapshot, CutIntoSlices(snapshot.SerializeAsString(), &none));
    v1::PublishPrefixRequest publish;
    publish.set_layout("m");
    publish.mutable_tokens()->Resize(2, 0);
    publish.mutable_source()->set_sequence("a");
    Serve(Method::kPublishPrefix, CutIntoSlices(publish.SerializeAsString(), &none));
  }

  void Serve(Method method, const grpc::ByteBuffer& request) {
    const std::string& name = Names()[static_cast<size_t>(method)];
    const Answer answer = Call(&world_, method, request);
    DocumentedErrors::Get().Check(name, answer.status);
    if (!answer.status.ok()) return;
    Require(answer.message != nullptr, "no answer", name);
    const std::string bytes = answer.message->SerializeAsString();
    const std::unique_ptr<Message> again(answer.message->New());
    Require(again->ParseFromString(bytes), "an answer that a client can't parse", name);
    if (const auto* got = DynamicCastToGenerated<v1::GetResponse>(answer.message.get())) CheckData(*got, answer.data);
    if (const auto* batch = DynamicCastToGenerated<v1::BatchGetResponse>(answer.message.get())) {
      uint64_t end = 0;
      for (const v1::BatchGetItem& item : batch->items()) {
        if (item.has_error()) continue;
        Require(item.data_offset() == end, "items of a batch overlap, or leave a gap");
        Require(item.response().data_bytes() <= answer.data.size() - end, "an item reaches beyond the batch's data");
        CheckData(item.response(), answer.data.substr(end, item.response().data_bytes()));
        end += item.response().data_bytes();
      }
      Require(end == answer.data.size(), "a batch's data belongs to no item");
    }
    Learn(name, *answer.message);
  }

  void Step(Input* input) {
    const uint8_t what = input->Byte();
    if (what < 232) {
      const Method method = MethodOf(input, what);
      if (method == Method::kSetStream && input->Flip()) {
        StreamStep(input);
      } else {
        const std::unique_ptr<Message> request = NewRequest(method);
        MessageBuilder(input, &known_, &Layouts()).Fill(request.get());
        Serve(method, CutIntoSlices(request->SerializeAsString(), input));
      }
    } else if (what < 236) {
      world_.clock().Advance(absl::Milliseconds(100) * (1 << input->Pick(16)));
      known_.now = world_.clock().WallNow();
    } else if (what < 239) {
      world_.store().FlushDue();
    } else if (what < 242) {
      world_.store().FoldIdle();
    } else if (what < 246) {
      world_.store().ReapExpired();
    } else if (what < 248) {
      world_.store().EvictPrefix();
    } else if (what < 250) {
      world_.SetDiskFull(input->Flip());
    } else if (what < 253) {
      static_cast<void>(world_.residency().WaitForReclaim());
    } else {
      stream_.reset();
      world_.Restart(/*clean=*/input->Flip());
    }
    world_.CheckInvariants();
  }

  void End() {
    stream_.reset();
    world_.CheckInvariants();
    world_.CheckNothingLeaks();
  }

 private:
  // Every method, and those more often that make something than those that end all.
  static Method MethodOf(Input* input, uint8_t what) {
    static const auto* const methods = [] {
      auto* weighted = new std::vector<Method>;
      for (size_t i = 0; i < Names().size(); ++i) weighted->push_back(static_cast<Method>(i));
      for (Method more : {Method::kSet,         Method::kSet,         Method::kSet,           Method::kSet,
                          Method::kCreate,      Method::kFork,        Method::kPublishPrefix, Method::kPublishPrefix,
                          Method::kMatchPrefix, Method::kSetStream,   Method::kGet,           Method::kOpenArena,
                          Method::kLoad,        Method::kLoad,        Method::kStore,         Method::kStore,
                          Method::kBatchWrite,  Method::kRollback,    Method::kSnapshot,      Method::kRestore,
                          Method::kOpenDirect,  Method::kRemoveRange, Method::kRenumber,      Method::kAdvance})
        weighted->push_back(more);
      return weighted;
    }();
    const Method method = (*methods)[what % methods->size()];
    const bool ends_all = method == Method::kDeleteMany || method == Method::kDeleteLayout;
    return ends_all && !input->Rarely(3) ? Method::kSet : method;
  }

  // A SetStream that stays open while other requests are served.
  void StreamStep(Input* input) {
    if (stream_ == nullptr) stream_ = std::make_unique<SetStream>(&world_);
    if (stream_->open() && input->Rarely(3)) {
      if (input->Flip()) {
        const absl::StatusOr<NameInfo> info = stream_->Complete();
        DocumentedErrors::Get().Check("SetStream", info.status());
        if (info.ok()) {
          v1::NameInfo answer;
          FillNameInfo(*info, &answer);
          Learn("SetStream", answer);
        }
      }
      stream_.reset();
      return;
    }
    v1::SetChunk chunk;
    MessageBuilder(input, &known_, &Layouts()).Fill(&chunk);
    if (stream_->open() && !input->Rarely(8)) {
      // The rest of what is written, or its next leaf.
      const uint64_t received = stream_->upload()->received_bytes();
      uint64_t left = stream_->upload()->total_bytes() - received;
      if (input->Flip()) left = std::min<uint64_t>(left, kLeafBytes);
      chunk.clear_head();
      chunk.set_offset(received);
      chunk.set_data(Pattern(left, input->Byte()));
      chunk.set_checksum(ChecksumToHex(ChecksumOf(chunk.data())));
    }
    DocumentedErrors::Get().Check("SetStream", stream_->Message(CutIntoSlices(chunk.SerializeAsString(), input)));
  }

  static void CheckData(const v1::GetResponse& head, const std::string& data) {
    Require(head.data_bytes() == data.size(), "a read gives another number of bytes than it says");
    Require(head.data_checksum() == ChecksumToHex(ChecksumOf(data)), "bytes do not match the checksum told with them");
    Require(data.size() <= head.info().state_bytes(), "a read gives more than a state");
    if (data.size() == head.info().state_bytes()) {
      Require(head.data_checksum() == head.info().checksum(), "a whole state does not match its version's checksum");
    }
    Require(head.attachment().empty() || head.attachment().size() == head.info().attachment_bytes(),
            "an attachment of another length than it says");
  }

  // Looks through an answer for what must never change, and for what later requests may name.
  void Learn(const std::string& method, const Message& message) {
    if (const auto* info = DynamicCastToGenerated<v1::NameInfo>(&message)) {
      LearnInfo(*info);
    } else if (const auto* error = DynamicCastToGenerated<google::rpc::Status>(&message)) {
      DocumentedErrors::Get().CheckItem(method, *error);
      return;
    } else if (const auto* layout = DynamicCastToGenerated<v1::LayoutInfo>(&message)) {
      Known::Add(layout->fingerprint(), &known_.fingerprints);
    } else if (const auto* page = DynamicCastToGenerated<v1::ListResponse>(&message)) {
      if (!page->next_page_token().empty()) Known::Add(page->next_page_token(), &known_.page_tokens);
    } else if (const auto* published = DynamicCastToGenerated<v1::PublishPrefixResponse>(&message)) {
      Known::Add(published->prefix(), &known_.prefixes);
    } else if (const auto* fork = DynamicCastToGenerated<v1::ForkResponse>(&message)) {
      for (const v1::ForkedChild& child : fork->children())
        LearnRevision(child.revision(), absl::StrCat("1/", child.sequence()));
    }
    const google::protobuf::Reflection* reflection = message.GetReflection();
    std::vector<const google::protobuf::FieldDescriptor*> fields;
    reflection->ListFields(message, &fields);
    for (const google::protobuf::FieldDescriptor* field : fields) {
      if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) continue;
      if (!field->is_repeated()) {
        Learn(method, reflection->GetMessage(message, field));
        continue;
      }
      for (int i = 0; i < reflection->FieldSize(message, field); ++i)
        Learn(method, reflection->GetRepeatedMessage(message, field, i));
    }
  }

  void LearnInfo(const v1::NameInfo& info) {
    const std::string name = absl::StrCat(info.name().name_case(), "/", info.name().sequence(), info.name().snapshot(),
                                          info.name().prefix());
    LearnVersion(info.version_id(), info.position(), info.checksum());
    for (const v1::VersionInfo& version : info.history())
      LearnVersion(version.version_id(), version.position(), version.checksum());
    LearnRevision(info.revision(), name);
    if (info.name().has_sequence()) known_.positions[info.name().sequence()] = info.position();
    Require(info.durable_revision() == 0 || info.durable_revision() <= info.revision() || info.replayed(),
            "a revision is durable that was never issued", name);
    Require(info.history_size() <= 8, "a ring is longer than max_history", name);
  }

  void LearnVersion(uint64_t id, int64_t position, const std::string& checksum) {
    const auto [it, fresh] = versions_.emplace(id, std::pair(position, checksum));
    Require(it->second == std::pair(position, checksum), "a version changed", absl::StrCat(id));
    if (!fresh) return;
    Known::Add(id, &known_.version_ids);
    Known::Add(checksum, &known_.checksums);
  }

  void LearnRevision(uint64_t revision, const std::string& name) {
    const auto [it, fresh] = revisions_.emplace(revision, name);
    Require(it->second == name, "a revision was issued twice", absl::StrCat(revision, ": ", it->second, ", ", name));
    if (fresh) Known::Add(revision, &known_.revisions);
  }

  World world_;
  std::unique_ptr<SetStream> stream_;  // goes before the world
  Known known_;
  std::map<uint64_t, std::pair<int64_t, std::string>> versions_;
  std::map<uint64_t, std::string> revisions_;
};

void RunRaw(Method method, absl::string_view bytes) {
  Session session(WorldOptions{});
  Input none(nullptr, 0);
  session.Serve(method, CutIntoSlices(bytes, &none));
  session.End();
}

void RunSequence(Input* input) {
  static const std::vector<uint64_t> kHotBytes = {256 << 10, 1 << 20, 32 << 10, 16 << 10};
  static const std::vector<uint64_t> kColdBytes = {UINT64_MAX, UINT64_MAX, 8 << 10, 128 << 10};
  WorldOptions options;
  options.hot_bytes = input->Of(kHotBytes);
  options.cold_bytes = input->Of(kColdBytes);
  options.prefix_key_bits = input->Rarely(8) ? 2 : 128;
  Session session(options);
  for (int i = 0; i < kStepsMax && !input->empty(); ++i) session.Step(input);
  session.End();
}

}  // namespace
}  // namespace statepool::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace statepool;
  static const bool silent = [] {
    google::protobuf::SetLogHandler(nullptr);
    spdlog::set_level(spdlog::level::off);
    return true;
  }();
  static_cast<void>(silent);
  fuzz::Input input(data, size);
  const uint8_t mode = input.Byte();
  if (mode < fuzz::Names().size()) fuzz::RunRaw(static_cast<Method>(mode), input.Rest());
  else fuzz::RunSequence(&input);
  return 0;
}
