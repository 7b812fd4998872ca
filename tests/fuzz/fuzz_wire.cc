// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// wire::Split and wire::Join against protobuf's own parser: what one accepts the other does too, with the same fields
// and the same bytes, however the message is cut into slices.
//
// Input: a byte for the type of message, a byte for how many of cuts, the cuts, the message.
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/stubs/logging.h>

#include <memory>
#include <string>

#include "absl/strings/str_join.h"
#include "proto/wire.h"
#include "statepool/v1/statepool.pb.h"
#include "tests/fuzz/slices.h"

namespace statepool::fuzz {
namespace {

constexpr size_t kRestBytesMax = 1 << 20;

// Whether a message that protobuf takes has at its top level what Split refuses on purpose: a group, or a tag of more
// than 32 bits, of which protobuf forgets those above.
bool HasGroupOrWideTag(const std::string& message) {
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(message.data()),
                                            static_cast<int>(message.size()));
  uint64_t tag, value;
  while (in.ReadVarint64(&tag)) {
    if (tag > UINT32_MAX) return true;
    switch (tag & 7) {
      case 0:
        if (!in.ReadVarint64(&value)) return false;
        break;
      case 1:
        if (!in.Skip(8)) return false;
        break;
      case 2:
        if (!in.ReadVarint64(&value) || value > message.size() || !in.Skip(static_cast<int>(value))) return false;
        break;
      case 5:
        if (!in.Skip(4)) return false;
        break;
      default: return true;
    }
  }
  return false;
}

template <typename Message>
void Compare(const std::string& flat, Input* cuts, size_t rest_bytes_max) {
  const absl::StatusOr<wire::SplitMessage> split =
      wire::Split(CutIntoSlices(flat, cuts), wire::kDataField, rest_bytes_max);
  Message whole, rest;
  const bool parsed = whole.ParseFromString(flat);
  if (!split.ok()) {
    Require(split.status().code() == absl::StatusCode::kInvalidArgument, "Split: another error than INVALID_ARGUMENT");
    const bool may_be_refused = !parsed || flat.size() > rest_bytes_max || HasGroupOrWideTag(flat);
    Require(may_be_refused, "Split refuses what protobuf takes", split.status().message());
    return;
  }
  Require(split->rest.size() <= rest_bytes_max, "Split: the rest is larger than allowed");
  uint64_t bytes = 0;
  for (absl::string_view piece : split->data) {
    Require(!piece.empty(), "Split: an empty piece");
    bytes += piece.size();
  }
  Require(bytes == split->data_bytes, "Split: data_bytes is not the sum of the pieces");
  Require(split->has_data || bytes == 0, "Split: data without has_data");
  const bool rest_parsed = rest.ParseFromString(split->rest);
  Require(rest_parsed == parsed,
          "Split with protobuf's parser, and protobuf's parser alone, differ on what is a message");
  if (!parsed) return;
  const std::string data = absl::StrJoin(split->data, "");
  Require(rest.data().empty(), "Split left data in the rest");
  Require(whole.data() == data, "Split gives other data than protobuf");
  rest.set_data(data);
  Require(rest.SerializeAsString() == whole.SerializeAsString(), "Split gives other fields than protobuf");

  // And together again.
  std::vector<grpc::Slice> slices;
  for (absl::string_view piece : split->data) slices.emplace_back(piece.data(), piece.size());
  const grpc::ByteBuffer joined = wire::Join(split->rest, wire::kDataField, slices);
  Message again;
  Require(again.ParseFromString(Flat(joined)), "Join gives no message");
  Require(again.SerializeAsString() == whole.SerializeAsString(), "Join gives another message");
  const absl::StatusOr<wire::SplitMessage> split_again = wire::Split(joined, wire::kDataField, rest_bytes_max);
  Require(split_again.ok() && split_again->rest == split->rest && absl::StrJoin(split_again->data, "") == data,
          "Split does not take apart what Join put together");
}

}  // namespace
}  // namespace statepool::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace statepool;
  static const auto* const silent = new google::protobuf::LogSilencer();
  static_cast<void>(silent);
  fuzz::Input input(data, size);
  const uint8_t type = input.Byte();
  const size_t rest_bytes_max = (type & 0x80) != 0 ? 16 : fuzz::kRestBytesMax;
  const absl::string_view cut_bytes = input.Bytes(input.Pick(32));
  fuzz::Input cuts(reinterpret_cast<const uint8_t*>(cut_bytes.data()), cut_bytes.size());
  const std::string message(input.Rest());
  switch (type % 4) {
    case 0: fuzz::Compare<v1::SetRequest>(message, &cuts, rest_bytes_max); break;
    case 1: fuzz::Compare<v1::SetChunk>(message, &cuts, rest_bytes_max); break;
    case 2: fuzz::Compare<v1::BatchWriteRequest>(message, &cuts, rest_bytes_max); break;
    case 3: fuzz::Compare<v1::GetResponse>(message, &cuts, rest_bytes_max); break;
  }
  return 0;
}
