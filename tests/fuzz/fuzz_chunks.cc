// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// SetStream: chunks of states that come in any cut, at wrong offsets, with wrong checksums, break off and go on, in
// streams beside each other. An oracle keeps what was taken of each upload. What must hold:
//   - a chunk is taken exactly when it is the next one, of an allowed length, with its checksum;
//   - a stream goes on exactly where GetUpload says, with the same head;
//   - what is published are the bytes that were taken, in order;
//   - limits of number and bytes are kept, and when all has ended no memory of the device is left.
//
// Input: decisions.
#include <google/protobuf/stubs/logging.h>
#include <spdlog/spdlog.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "server/core/error.h"
#include "tests/fuzz/calls.h"
#include "tests/fuzz/documented_errors.h"
#include "tests/fuzz/slices.h"
#include "tests/fuzz/world.h"

namespace statepool::fuzz {
namespace {

constexpr int kStepsMax = 64;
constexpr size_t kStreams = 3;
constexpr uint64_t kStateBytes[] = {1, 1000, kLeafBytes, kLeafBytes + 1, 3 * kLeafBytes, 200'000};
constexpr size_t kLayouts = std::size(kStateBytes);
const UploadLimits kLimits{4, 500'000, absl::Seconds(60)};

LayoutRef LayoutOf(size_t index) {
  TensorSpec tensor;
  tensor.name = "s";
  tensor.kind = TensorKind::kRecurrent;
  tensor.layers = {0};
  tensor.dtype = DType::kUInt8;
  tensor.axes = {{"n", kStateBytes[index]}};
  return *Layout::Create({absl::StrCat("model", index), {tensor}});
}

class Uploading {
 public:
  explicit Uploading(Input* input) : input_(input), world_({1 << 20, UINT64_MAX, 128, kLimits}) {
    for (size_t i = 0; i < kLayouts; ++i) Register(i);
  }

  void Step() {
    Stream& stream = streams_[input_->Pick(kStreams)];
    const size_t what = input_->Pick(32);
    if (what < 22) {
      if (stream.calls == nullptr) Open(&stream);
      else Chunk(&stream);
    } else if (what < 26) {
      Complete(&stream);
    } else if (what < 28) {
      Drop(&stream);
    } else if (what < 29) {
      FindAll();
    } else if (what < 30) {
      // Beyond `keep` they go some time within a second: then nothing is known of them but that they may be gone.
      const bool far = input_->Rarely(8);
      world_.clock().Advance(far ? absl::Seconds(61) : absl::Seconds(3));
      seconds_ += far ? 61 : 3;
    } else if (what < 31) {
      Meddle();
    } else {
      world_.store().FlushDue();
      world_.store().FoldIdle();
    }
    world_.CheckInvariants();
    CheckLimits();
  }

  void End() {
    for (Stream& stream : streams_) Drop(&stream);
    FindAll();
    world_.CheckInvariants();
    world_.CheckNothingLeaks();
  }

 private:
  using Key = std::pair<std::string, std::string>;  // sequence, request_id
  struct Sent {
    std::string head;  // serialized
    size_t layout = 0;
    uint8_t seed = 0;
    std::string taken;
    int64_t broke_off = 0;  // in seconds_
  };
  struct Stream {
    std::unique_ptr<SetStream> calls;  // null: not begun
    bool taken_over = false;           // by a later stream: its next chunk is refused, and it is not kept
    Key key;
    Sent sent;
  };

  // Again perhaps: then another object, as of another request.
  void Register(size_t layout) {
    const auto entry = world_.store().RegisterLayout(Op(), LayoutOf(layout), absl::StrCat("l", layout));
    Require(entry.ok(), "a layout can't be registered", entry.status().message());
  }

  bool MayBeGone(const Sent& sent) const { return seconds_ >= sent.broke_off + 60; }

  // A message as a client may write it: its fields in any order, with others that nobody knows, in any slices.
  grpc::ByteBuffer Serialize(const v1::SetChunk& chunk) {
    const uint8_t how = input_->Byte();
    v1::SetChunk first, second = chunk;
    if ((how & 1) != 0) {
      first.set_data(chunk.data());
      second.clear_data();
    }
    std::string bytes = first.SerializeAsString();
    if ((how & 2) != 0) absl::StrAppend(&bytes, "\xa2\x06\x03xyz");  // field 100
    absl::StrAppend(&bytes, second.SerializeAsString());
    if ((how & 4) != 0 && (how & 1) == 0 && !chunk.data().empty()) {
      v1::SetChunk wrong;  // of several the last counts
      wrong.set_data("wrong");
      bytes = wrong.SerializeAsString() + bytes;
    }
    return CutIntoSlices(bytes, input_);
  }

  // Decides on data from `received` on. True: it is to be taken.
  bool FillChunk(const Sent& sent, uint64_t received, v1::SetChunk* chunk) {
    const std::string state = Pattern(kStateBytes[sent.layout], sent.seed);
    const uint64_t left = state.size() - received;
    uint64_t bytes = left;
    switch (input_->Pick(12)) {
      case 0: bytes = 0; break;
      case 1: bytes = 1; break;
      case 2: bytes = left + 1; break;
      case 3: bytes = left - std::min<uint64_t>(left, 1); break;
      case 4: bytes = input_->Integer(2); break;
      case 5:
      case 6:
      case 7: bytes = kLeafBytes; break;
      case 8: bytes = 2 * kLeafBytes; break;
      default: break;
    }
    std::string data = state.substr(received, bytes);
    data.resize(bytes, 'z');
    chunk->set_data(data);
    chunk->set_offset(received);
    bool right = bytes > 0 && bytes <= left && (bytes == left || bytes % kLeafBytes == 0);
    if (input_->Rarely(16)) {
      chunk->set_offset(input_->Flip() ? received + kLeafBytes : received == 0 ? 1 : 0);
      right = false;
    }
    chunk->set_checksum(ChecksumToHex(ChecksumOf(data)));
    switch (input_->Pick(32)) {
      case 29: chunk->clear_checksum(), right = false; break;
      case 30: chunk->set_checksum("nonsense"), right = false; break;
      case 31: {
        const char last = chunk->checksum().back();
        chunk->mutable_checksum()->back() = last == '0' ? '1' : '0';
        right = false;
        break;
      }
      default: break;
    }
    return right;
  }

  void Open(Stream* stream) {
    Key key(input_->Flip() ? "a" : "b", std::vector<std::string>{"", "r", "s", "t"}[input_->Pick(4)]);
    Sent sent;
    sent.layout = input_->Pick(kLayouts);
    sent.seed = static_cast<uint8_t>(input_->Pick(3));
    v1::SetRequest head;
    head.set_sequence(key.first);
    head.set_request_id(key.second);
    head.set_layout(absl::StrCat("l", sent.layout));
    head.set_position(static_cast<int64_t>(input_->Pick(3)));
    if (input_->Rarely(4)) {
      const std::string state = Pattern(kStateBytes[sent.layout], input_->Rarely(4) ? 77 : sent.seed);
      head.set_checksum(ChecksumToHex(ChecksumOf(state)));
    }
    if (input_->Rarely(8)) head.set_attachment(std::string(input_->Pick(256) * 8, 'a'));

    auto kept = kept_.find(key);
    if (kept != kept_.end() && MayBeGone(kept->second)) {
      // It is gone when it is asked for no more: told by GetUpload.
      if (!world_.uploads().Find(Op(), key.first, key.second).ok()) kept_.erase(kept), kept = kept_.end();
    }
    // Most often a stream goes on with what is kept.
    if (kept != kept_.end() && !input_->Rarely(4)) {
      Require(head.ParseFromString(kept->second.head), "a head of our own");
      sent.layout = kept->second.layout;
      sent.seed = kept->second.seed;
    }
    sent.head = head.SerializeAsString();
    uint64_t offset = 0;
    if (kept != kept_.end() && !input_->Rarely(4)) offset = kept->second.taken.size();
    else if (input_->Rarely(8)) offset = kLeafBytes;
    Stream* const active = key.second.empty() ? nullptr : ActiveOf(key);
    const bool takes_over = active != nullptr && offset == 0 && active->sent.head == sent.head;
    const bool same_head = kept != kept_.end() && kept->second.head == sent.head;
    const bool goes_on = active == nullptr && offset != 0 && same_head && kept->second.taken.size() == offset;
    if (goes_on) sent.taken = kept->second.taken;

    v1::SetChunk chunk;
    bool right = true;
    const bool with_data = input_->Flip() && offset < kStateBytes[sent.layout];
    if (with_data) right = FillChunk(sent, offset, &chunk);
    if (!with_data) chunk.set_offset(offset);
    *chunk.mutable_head() = head;
    const bool begins_as_meant = chunk.offset() == offset;
    if (!begins_as_meant) return;  // another case than the one foreseen
    const bool has_data = !chunk.data().empty();

    stream->calls = std::make_unique<SetStream>(&world_);
    stream->key = key;
    stream->sent = sent;
    stream->taken_over = false;
    const bool maybe_gone = kept != kept_.end() && MayBeGone(kept->second);
    const absl::Status status = stream->calls->Message(Serialize(chunk));
    DocumentedErrors::Get().Check("SetStream", status);
    const std::string reason = ReasonOf(status);
    if (reason == "UPLOAD_BUSY") Require(active != nullptr, "UPLOAD_BUSY without another stream");
    const bool bad_data = has_data && !right;  // may be what is said first
    if (active != nullptr && offset != 0)
      Require(reason == "UPLOAD_BUSY" || (bad_data && !status.ok()), "a stream goes on where another does", reason);
    if (active != nullptr && offset == 0 && !takes_over) {
      Require(reason == "REQUEST_ID_REUSED" || (bad_data && !status.ok()), "a stream with another head takes over",
              reason);
    }
    // A start that was refused, for whatever reason, leaves what is there.
    const bool refused = reason == "TOO_MANY_UPLOADS" || reason == "HOT_FULL";
    const bool known = !key.second.empty() && world_.uploads().Find(Op(), key.first, key.second).ok();
    if (takes_over) {
      active->taken_over = status.ok();
      Require(status.ok() || known, "a stream is taken over by one that was refused", reason);
    }
    if (kept != kept_.end() && offset == 0 && !maybe_gone)
      Require(status.ok() || known, "what was kept is gone after a start that was refused", reason);
    if (kept != kept_.end() && same_head && !maybe_gone)
      Require(!refused, "a kept upload needs more room to start over or go on", reason);
    if (reason == "UPLOAD_UNKNOWN")
      Require(offset != 0 && (kept == kept_.end() || maybe_gone), "a kept upload is unknown");
    if (offset != 0 && !goes_on && active == nullptr) {
      Require(!status.ok(), "a stream begins in the middle");
      if (!has_data || right) {
        Require(reason == "UPLOAD_UNKNOWN" || reason == "OFFSET_MISMATCH" || reason == "REQUEST_ID_REUSED",
                "another reason for a wrong beginning", reason);
      }
    }
    if (goes_on && !maybe_gone) {
      Require(status.ok() == (!has_data || right), "a kept upload does not go on as it should", reason);
    }
    if (status.ok()) Require(!has_data || right, "a wrong chunk is taken", absl::StrCat(chunk.data().size()));

    // What is kept now.
    const auto kept_since = kept != kept_.end() ? kept->second.broke_off : seconds_;
    const bool replaced = active == nullptr && kept != kept_.end() && same_head && goes_on;
    if (replaced || (status.ok() && kept != kept_.end())) kept_.erase(kept);
    if (status.ok()) {
      if (has_data) stream->sent.taken += chunk.data();
      return;
    }
    stream->calls.reset();
    const bool begun = goes_on && reason != "UPLOAD_UNKNOWN";  // what was taken before stays
    if (begun) {
      Keep(key, sent);
      kept_[key].broke_off = kept_since;  // refused for what was seen before it went on, its time did not begin anew
    }
  }

  void Chunk(Stream* stream) {
    v1::SetChunk chunk;
    const uint64_t received = stream->sent.taken.size();
    Require(stream->calls->upload()->received_bytes() == received, "received_bytes is not what was taken");
    bool right = FillChunk(stream->sent, received, &chunk) && !stream->taken_over;
    if (input_->Rarely(32)) {
      Require(chunk.mutable_head()->ParseFromString(stream->sent.head), "a head of our own");
      right = false;
    }
    const absl::Status status = stream->calls->Message(Serialize(chunk));
    DocumentedErrors::Get().Check("SetStream", status);
    Require(
        status.ok() == right, right ? "the next chunk is refused" : "a wrong chunk is taken",
        absl::StrCat(status.ToString(), ": ", chunk.data().size(), " bytes at ", chunk.offset(), " after ", received));
    if (status.ok()) {
      stream->sent.taken += chunk.data();
    } else {
      End(stream);
    }
  }

  void Complete(Stream* stream) {
    if (stream->calls == nullptr) return;
    const std::string& taken = stream->sent.taken;
    const bool complete = taken.size() == kStateBytes[stream->sent.layout];
    const absl::StatusOr<NameInfo> info = stream->calls->Complete();
    DocumentedErrors::Get().Check("SetStream", info.status());
    const std::string reason = ReasonOf(info.status());
    if (!complete) {
      Require(reason == "BYTES_LENGTH_MISMATCH", "a state is published without its end", reason);
      End(stream);
      return;
    }
    stream->calls.reset();
    v1::SetRequest head;
    Require(head.ParseFromString(stream->sent.head), "a head of our own");
    const std::string checksum = ChecksumToHex(ChecksumOf(taken));
    const bool matches = head.checksum().empty() || head.checksum() == checksum;
    Require(matches == (reason != "CHECKSUM_MISMATCH"), "the checksum of the whole is not verified", reason);
    if (!info.ok()) {
      Require(reason == "CHECKSUM_MISMATCH" || reason == "REQUEST_ID_REUSED" || reason == "LAYOUT_MISMATCH" ||
                  reason == "LAYOUT_UNKNOWN",
              "a whole state is refused", reason);
      return;
    }
    Require(ChecksumToHex(info->version.checksum) == checksum, "another state is published than was sent");
    if (info->replayed) return;
    const absl::StatusOr<GetAnswer> got = world_.store().Get(Op(), {info->key, std::nullopt, "", info->version.id});
    Require(got.ok(), "a published state can't be read", got.status().message());
    Require(got->pin->bytes() == taken, "a published state is not what was sent");
    Require(got->pin->attachment() == head.attachment(), "a published attachment is not what was sent");
  }

  // The stream breaks off.
  void Drop(Stream* stream) {
    if (stream->calls != nullptr) End(stream);
  }

  // What it took is kept, unless it was taken over.
  void End(Stream* stream) {
    stream->calls.reset();
    if (!stream->taken_over) Keep(stream->key, stream->sent);
  }

  void Keep(const Key& key, const Sent& sent) {
    if (key.second.empty() || sent.taken.empty()) return;
    kept_[key] = sent;
    kept_[key].broke_off = seconds_;
  }

  // Something else happens to the names and layouts meanwhile.
  void Meddle() {
    const size_t layout = input_->Pick(kLayouts);
    const std::string name = input_->Flip() ? "a" : "b";
    switch (input_->Pick(4)) {
      case 0: {
        const std::string state = Pattern(kStateBytes[layout], 9);
        const absl::string_view piece = state;
        StateBytes bytes;
        bytes.pieces = {&piece, 1};
        SetRequest set;
        set.sequence = name;
        set.layout = absl::StrCat("l", layout);
        DocumentedErrors::Get().Check("Set", world_.store().Set(Op(), set, bytes).status());
        break;
      }
      case 1: {
        DeleteRequest request;
        request.key = {kDefaultTenant, NameKind::kSequence, name};
        DocumentedErrors::Get().Check("Delete", world_.store().Delete(Op(), request).status());
        break;
      }
      case 2:
        DocumentedErrors::Get().Check("DeleteLayout", world_.store().DeleteLayout(Op(), absl::StrCat("l", layout)));
        break;
      case 3: Register(layout); break;
    }
  }

  void FindAll() {
    for (auto it = kept_.begin(); it != kept_.end();) {
      const absl::StatusOr<Uploads::Info> info = world_.uploads().Find(Op(), it->first.first, it->first.second);
      if (!info.ok() && MayBeGone(it->second)) {
        it = kept_.erase(it);
        continue;
      }
      Require(info.ok(), "a kept upload is not found", info.status().message());
      Require(info->received_bytes == it->second.taken.size(),
              "GetUpload tells another number of bytes than were taken");
      Require(info->total_bytes == kStateBytes[it->second.layout], "GetUpload tells another length");
      Require(info->expire_time.has_value(), "GetUpload tells no expiry of a kept upload");
      ++it;
    }
  }

  // The stream that goes on with this upload; null: none.
  Stream* ActiveOf(const Key& key) {
    for (Stream& stream : streams_) {
      if (stream.calls != nullptr && !stream.taken_over && stream.key == key) return &stream;
    }
    return nullptr;
  }

  void CheckLimits() const {
    uint64_t count = 0, bytes = 0;
    const auto add = [&](const Sent& sent) {
      ++count;
      bytes += kStateBytes[sent.layout];
    };
    for (const Stream& stream : streams_) {
      if (stream.calls != nullptr) add(stream.sent);
    }
    for (const auto& [key, sent] : kept_) {
      if (!MayBeGone(sent)) add(sent);
    }
    Require(count <= kLimits.max_uploads, "more uploads than may be");
    Require(count <= 1 || bytes <= kLimits.max_bytes, "more bytes of uploads than may be", absl::StrCat(bytes));
  }

  Input* const input_;
  World world_;
  Stream streams_[kStreams];
  std::map<Key, Sent> kept_;
  int64_t seconds_ = 0;  // since the beginning
};

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
  fuzz::Uploading uploading(&input);
  for (int i = 0; i < fuzz::kStepsMax && !input.empty(); ++i) uploading.Step();
  uploading.End();
  return 0;
}
