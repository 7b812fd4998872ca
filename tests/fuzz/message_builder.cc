// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/message_builder.h"

#include <algorithm>
#include <bit>
#include <set>
#include <utility>

#include "kernels/checksum.h"
#include "server/core/select.h"
#include "server/rpc/convert.h"

namespace statepool::fuzz {
namespace {

constexpr int kDepthMax = 6;

// Fields without which most requests are refused at once.
bool IsUsual(const std::string& name) {
  static const auto* const names = new std::set<std::string>{
      "sequence", "snapshot", "prefix",   "layout",   "name",    "names", "source", "children", "tokens",
      "items",    "get",      "head",     "model_id", "tensors", "kind",  "layers", "dtype",    "axes",
      "size",     "all",      "position", "arena",    "rows",    "row",   "lease",  "begin",    "end"};
  return names->count(name) > 0;
}

}  // namespace

std::string MessageBuilder::StringFor(const Field* field) {
  static const std::vector<std::string> kNames = {"a", "a", "a", "b", "b", "a/b", "c", "d"};
  static const std::vector<std::string> kOddNames = {
      "",      ".",        "..",   "a//b", "/a",          std::string(512, 'x'), std::string(513, 'x'),
      "a\x01", "\xc3\xa9", "\xff", "a/..", "\xef\xbf\xbf"};
  static const std::vector<std::string> kLayouts = {"m", "m", "m", "m", "m", "m", "n", "n", "o", "k", "", "none"};
  static const std::vector<std::string> kPrefixes = {"a", "", "a/", "b", "x"};
  static const std::vector<std::string> kRequestIds = {
      "r", "s", "t", "r", "s", "t", std::string(64, 'r'), std::string(65, 'r')};
  static const std::vector<std::string> kParts = {"s", "t", "u", "v", "w"};
  static const std::vector<std::string> kArenas = {"0", "0", "0", "1", "2", "", "none"};  // calls.cc
  static const std::vector<std::string> kKeys = {"", "", "", "k", std::string(16, 'k'), std::string(17, 'k')};
  const std::string& name = field->name();
  if (name == "sequence" || name == "snapshot" || name == "children" || name == "keep") {
    return input_->Rarely(24) ? input_->Of(kOddNames) : input_->Of(kNames);
  }
  if (name == "prefix") {  // the newest most often
    const size_t back = input_->Pick(std::min<size_t>(known_->prefixes.size(), input_->Rarely(4) ? Known::kMost : 2));
    return known_->prefixes[known_->prefixes.size() - 1 - back];
  }
  if (name == "layout" || name == "alias") {
    return input_->Rarely(12) ? input_->Of(known_->fingerprints) : input_->Of(kLayouts);
  }
  if (name == "arena" || name == "lease") return input_->Of(kArenas);
  if (name == "name_prefix") return input_->Of(kPrefixes);
  if (name == "request_id") return input_->Of(kRequestIds);
  if (name == "checksum") return input_->Of(known_->checksums);
  if (name == "page_token") return input_->Of(known_->page_tokens);
  if (name == "tensors" || name == "name" || name == "model_id") return input_->Of(kParts);
  if (name == "extra_key" || name == "salt") return input_->Of(kKeys);
  if (name == "attachment") return Pattern(input_->Pick(64) * (input_->Rarely(8) ? 80 : 1), input_->Byte());
  if (name == "data") return Pattern(input_->Pick(256), input_->Byte());
  return std::string(input_->Bytes(input_->Pick(16)));
}

uint64_t MessageBuilder::NumberFor(const Field* field) {
  static const std::vector<uint64_t> kSmall = {0, 1,  2,  3,  4,   5,     7,          8,
                                               9, 10, 11, 64, 255, 65536, UINT32_MAX, UINT64_MAX};
  static const std::vector<int64_t> kPositions = {1, 2, 3, 1, 2, 3, 0, 4, 66};
  static const std::vector<int64_t> kOddPositions = {-1, int64_t{1} << 53, (int64_t{1} << 53) + 1, INT64_MAX,
                                                     INT64_MIN};
  static const std::vector<uint64_t> kChunks = {0, 65536, 65536, 131072, 1, 4 << 20, 8 << 20, UINT32_MAX};
  const std::string& name = field->name();
  if (name == "position" || name == "max_position")
    return static_cast<uint64_t>(input_->Rarely(16) ? input_->Of(kOddPositions) : input_->Of(kPositions));
  if (name == "if_revision") {
    const uint8_t which = input_->Byte();
    return which < 64 ? 0 : which < 240 ? known_->revisions[which % known_->revisions.size()] : input_->Integer(8);
  }
  if (name == "version_id") return input_->Of(known_->version_ids);
  if (name == "tokens") return input_->Pick(2);
  if (name == "layers") return input_->Pick(4);
  if (name == "size") return input_->Rarely(16) ? input_->Integer(8) : 1 + input_->Pick(9);
  if (name == "axis") return input_->Pick(3);
  if (name == "row") return input_->Rarely(16) ? input_->Integer(4) : input_->Pick(5);
  if (name == "rows") return input_->Rarely(16) ? input_->Integer(4) : 1 + input_->Pick(5);
  if (name == "steps" || name == "accepted_length" || name == "num_spec" || name == "conv_padding") {
    return input_->Rarely(16) ? input_->Integer(4) : input_->Pick(4);
  }
  if (name == "offset" || name == "chunk_bytes") return input_->Of(kChunks);
  if (name == "max_history") return input_->Pick(10);
  if (name == "page_size") return input_->Pick(12);
  if (name == "max_results") return input_->Pick(6);
  if (name == "if_count") return input_->Pick(3);
  if (name == "heads" || name == "head_dim" || name == "state_size" || name == "groups" || name == "conv_kernel" ||
      name == "intermediate_size" || name == "hidden_size" || name == "head_size") {
    return input_->Rarely(16) ? input_->Integer(8) : 1 + input_->Pick(4);
  }
  if (input_->Rarely(16)) return input_->Integer(8);
  return input_->Of(kSmall);
}

void MessageBuilder::FillField(google::protobuf::Message* message, const Field* field, int depth) {
  const google::protobuf::Reflection* reflection = message->GetReflection();
  size_t count = 1;
  if (field->is_repeated()) {
    count = field->name() == "tensors" || field->name() == "axes" ? 1 + input_->Pick(2) : input_->Pick(4);
    if (input_->Rarely(32)) count = input_->Pick(100);
    if (field->name() == "tokens" && input_->Rarely(8)) count = 60 + input_->Pick(24);
  }
  for (size_t i = 0; i < count; ++i) {
    const bool repeated = field->is_repeated();
    switch (field->cpp_type()) {
#define STATEPOOL_FUZZ_SET(TYPE, Method, value)                   \
  case Field::CPPTYPE_##TYPE: {                                   \
    const auto given = value;                                     \
    if (repeated) reflection->Add##Method(message, field, given); \
    else reflection->Set##Method(message, field, given);          \
    break;                                                        \
  }
      STATEPOOL_FUZZ_SET(INT32, Int32, static_cast<int32_t>(NumberFor(field)))
      STATEPOOL_FUZZ_SET(INT64, Int64, static_cast<int64_t>(NumberFor(field)))
      STATEPOOL_FUZZ_SET(UINT32, UInt32, static_cast<uint32_t>(NumberFor(field)))
      STATEPOOL_FUZZ_SET(UINT64, UInt64, NumberFor(field))
      STATEPOOL_FUZZ_SET(DOUBLE, Double, input_->Flip() ? 7.0 : std::bit_cast<double>(input_->Integer(8)))
      STATEPOOL_FUZZ_SET(FLOAT, Float, static_cast<float>(input_->Byte()))
      STATEPOOL_FUZZ_SET(BOOL, Bool, input_->Flip())
      STATEPOOL_FUZZ_SET(ENUM, EnumValue,
                         input_->Rarely(32)
                             ? static_cast<int>(input_->Byte())
                             : static_cast<int>(input_->Pick(static_cast<size_t>(field->enum_type()->value_count()))))
      STATEPOOL_FUZZ_SET(STRING, String, StringFor(field))
#undef STATEPOOL_FUZZ_SET
      case Field::CPPTYPE_MESSAGE: {
        google::protobuf::Message* part =
            repeated ? reflection->AddMessage(message, field) : reflection->MutableMessage(message, field);
        FillFields(part, depth + 1);
        break;
      }
    }
  }
}

void MessageBuilder::FillFields(google::protobuf::Message* message, int depth) {
  static const std::vector<int64_t> kSeconds = {1,        60, 600, 3599, 1, 60, 600, 3600, 3601, 0, -1, 315'576'000'001,
                                                INT64_MAX};
  static const std::vector<int32_t> kNanos = {0, 0, 0, 0, 0, 0, 1, -1, 999'999'999, 1'000'000'000};
  if (depth > kDepthMax || input_->empty()) return;
  if (auto* duration = google::protobuf::DynamicCastToGenerated<google::protobuf::Duration>(message)) {
    duration->set_seconds(input_->Of(kSeconds));
    duration->set_nanos(input_->Of(kNanos));
    return;
  }
  if (auto* time = google::protobuf::DynamicCastToGenerated<google::protobuf::Timestamp>(message)) {
    const int64_t seconds = input_->Of(kSeconds);
    time->set_seconds(seconds > 100'000 ? seconds : absl::ToUnixSeconds(known_->now) + seconds);
    time->set_nanos(input_->Of(kNanos));
    return;
  }
  const google::protobuf::Descriptor* type = message->GetDescriptor();
  for (int i = 0; i < type->real_oneof_decl_count(); ++i) {
    const google::protobuf::OneofDescriptor* one = type->oneof_decl(i);
    if (input_->Pick(16) == 15) continue;
    size_t which = input_->Pick(static_cast<size_t>(one->field_count()));
    if (type->name() == "NameRef" && input_->Flip()) which = 0;  // sequences are what there is most of
    if (type->name() == "NameOptions" && !input_->Flip()) continue;
    FillField(message, one->field(static_cast<int>(which)), depth);
  }
  for (int i = 0; i < type->field_count(); ++i) {
    const Field* field = type->field(i);
    if (field->real_containing_oneof() != nullptr) continue;
    const bool usual = IsUsual(field->name()) || type->name() == "GetUploadRequest";
    // A position is optional in reads, and most often meant to be the head's.
    const bool seldom = (field->name() == "position" || field->name() == "tokens") && field->has_presence();
    const bool given = seldom ? input_->Rarely(3) : usual ? !input_->Rarely(24) : input_->Rarely(4);
    if (given) FillField(message, field, depth);
  }
  // A Rollback goes by tokens or to a position.
  auto* rollback = google::protobuf::DynamicCastToGenerated<v1::RollbackRequest>(message);
  if (rollback != nullptr && rollback->has_tokens() && !input_->Rarely(8)) rollback->clear_position();
}

void MessageBuilder::RepairLayout(v1::Layout* layout) {
  for (v1::TensorSpec& tensor : *layout->mutable_tensors()) {
    std::set<uint32_t> layers(tensor.layers().begin(), tensor.layers().end());
    tensor.mutable_layers()->Assign(layers.begin(), layers.end());
    if (tensor.initial().has_data() && tensor.dtype() >= v1::FLOAT32 && tensor.dtype() <= v1::INT64) {
      uint64_t bytes = DTypeBytes(static_cast<DType>(tensor.dtype())) * layers.size();
      for (const v1::Axis& axis : tensor.axes()) bytes = axis.size() < 4096 && bytes < 4096 ? bytes * axis.size() : 0;
      if (bytes < 65536) tensor.mutable_initial()->set_data(Pattern(bytes, input_->Byte()));
    }
  }
}

// Gives `set` bytes of the right length, in `data`, and a checksum that is theirs if it has one.
void MessageBuilder::RepairSet(v1::SetRequest* set, std::string* data) {
  const LayoutRef* layout = &(*layouts_)[0];
  if (set->layout() == "n") layout = &(*layouts_)[1];
  if (set->layout() == "o") layout = &(*layouts_)[2];
  uint64_t bytes = (*layout)->state_bytes();
  if (set->has_select()) {
    const auto ranges = RangesOf(**layout, *ToSelect(set->select(), true));
    if (ranges.ok()) bytes = BytesOf(*ranges);
  }
  const uint8_t wrong = input_->Byte();
  if (wrong == 255) ++bytes;
  if (wrong == 254) --bytes;
  *data = Pattern(bytes, input_->Byte());
  if (!set->checksum().empty() && !input_->Rarely(4)) set->set_checksum(ChecksumToHex(ChecksumOf(*data)));
}

void MessageBuilder::Repair(google::protobuf::Message* message) {
  using google::protobuf::DynamicCastToGenerated;
  if (auto* set = DynamicCastToGenerated<v1::SetRequest>(message)) {
    RepairSet(set, set->mutable_data());
  } else if (auto* batch = DynamicCastToGenerated<v1::BatchWriteRequest>(message)) {
    std::string all;
    for (v1::BatchWriteItem& item : *batch->mutable_items()) {
      item.clear_data_bytes();
      if (!item.has_set()) continue;
      std::string data;
      RepairSet(item.mutable_set(), &data);
      item.mutable_set()->clear_data();
      item.set_data_bytes(data.size());
      all += data;
    }
    if (input_->Rarely(32)) all += "x";
    batch->set_data(all);
  } else if (auto* chunk = DynamicCastToGenerated<v1::SetChunk>(message)) {
    std::string data;
    if (chunk->has_head()) {
      chunk->mutable_head()->clear_data();
      chunk->mutable_head()->clear_select();
      RepairSet(chunk->mutable_head(), &data);
    }
    if (input_->Rarely(3)) data.resize(std::min<size_t>(data.size(), 65536));
    chunk->set_data(data);
    if (!input_->Rarely(16)) chunk->set_checksum(ChecksumToHex(ChecksumOf(data)));
    if (!input_->Rarely(4)) chunk->clear_offset();
  } else if (auto* published = DynamicCastToGenerated<v1::PublishPrefixRequest>(message)) {
    if (published->layout().empty()) published->set_layout("m");
    const auto source = known_->positions.find(published->source().sequence());
    if (source != known_->positions.end() && source->second <= 80)
      published->mutable_tokens()->Resize(static_cast<int>(source->second), 0);
  } else if (auto* match = DynamicCastToGenerated<v1::MatchPrefixRequest>(message)) {
    if (match->layout().empty()) match->set_layout("m");
    if (match->tokens().empty()) match->mutable_tokens()->Resize(3, 0);
  } else if (auto* registered = DynamicCastToGenerated<v1::RegisterLayoutRequest>(message)) {
    if (registered->has_layout()) RepairLayout(registered->mutable_layout());
  }
}

void MessageBuilder::Fill(google::protobuf::Message* message) {
  FillFields(message, 0);
  if (!input_->Rarely(16)) Repair(message);
}

}  // namespace statepool::fuzz
