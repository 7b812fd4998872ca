// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "proto/wire.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::wire {
namespace {

constexpr size_t kRestMax = 1 << 20;

// `bytes` cut into slices of `cut` bytes, each preceded by an empty one. Slices below 24 bytes hold their bytes inside
// themselves.
grpc::ByteBuffer Cut(absl::string_view bytes, size_t cut) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += cut) {
    slices.emplace_back();
    const absl::string_view piece = bytes.substr(at, cut);
    slices.emplace_back(piece.data(), piece.size());
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string Flat(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string flat;
  for (const grpc::Slice& s : slices) flat.append(reinterpret_cast<const char*>(s.begin()), s.size());
  return flat;
}

v1::SetRequest Request(size_t data_bytes) {
  v1::SetRequest request;
  request.set_sequence("chat/42");
  request.set_position(1 << 20);
  request.set_attachment(std::string(300, 'a'));
  request.set_if_revision(0);
  request.mutable_options()->mutable_ttl()->set_seconds(30);
  for (size_t i = 0; i < data_bytes; ++i) request.mutable_data()->push_back(static_cast<char>(i * 7 + i / 251));
  return request;
}

TEST(WireTest, SplitsAMessageHoweverItIsCut) {
  for (const size_t data_bytes : {0, 1, 127, 128, 5000}) {
    v1::SetRequest request = Request(data_bytes);
    for (const size_t cut : {1, 2, 3, 7, 23, 24, 64, 1000, 100000}) {
      SCOPED_TRACE(absl::StrCat(data_bytes, " bytes in slices of ", cut));
      absl::StatusOr<SplitMessage> split = Split(Cut(request.SerializeAsString(), cut), kDataField, kRestMax);
      ASSERT_TRUE(split.ok()) << split.status();
      const SplitMessage moved = *std::move(split);
      EXPECT_EQ(moved.has_data, data_bytes > 0);
      EXPECT_EQ(moved.data_bytes, data_bytes);
      EXPECT_EQ(absl::StrJoin(moved.data, ""), request.data());
      v1::SetRequest rest;
      ASSERT_TRUE(rest.ParseFromString(moved.rest));
      EXPECT_TRUE(rest.has_if_revision());
      rest.set_data(request.data());
      EXPECT_EQ(rest.SerializeAsString(), request.SerializeAsString());
    }
  }
}

TEST(WireTest, TakesFieldsInAnyOrderAndTheLastOfSeveral) {
  v1::SetRequest first, second;
  first.set_data("first");
  second.set_data("second");
  v1::SetRequest small;
  small.set_sequence("s");
  const std::string bytes =
      absl::StrCat(first.SerializeAsString(), small.SerializeAsString(), second.SerializeAsString());
  absl::StatusOr<SplitMessage> split = Split(Cut(bytes, 4), kDataField, kRestMax);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(absl::StrJoin(split->data, ""), "second");
  EXPECT_EQ(split->data_bytes, 6u);
  EXPECT_EQ(split->rest, small.SerializeAsString());
}

TEST(WireTest, AnUnfilledBufferIsTheEmptyMessage) {
  const absl::StatusOr<SplitMessage> split = Split(grpc::ByteBuffer(), kDataField, kRestMax);
  ASSERT_TRUE(split.ok());
  EXPECT_TRUE(split->rest.empty());
  EXPECT_FALSE(split->has_data);
}

TEST(WireTest, KeepsUnknownFieldsAndAnotherWireTypeOfTheField) {
  const std::string bytes(
      "\xf8\xff\xff\xff\x0f\x01"
      "\x78\x05"
      "\x7d"
      "abcd"
      "\x09"
      "12345678",
      6 + 2 + 5 + 9);
  absl::StatusOr<SplitMessage> split = Split(Cut(bytes, 3), kDataField, kRestMax);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->rest, bytes);
  EXPECT_FALSE(split->has_data);
}

TEST(WireTest, RefusesWhatIsNoMessage) {
  struct Case {
    const char* what;
    std::string bytes;
  };
  const Case cases[] = {
      {"field number 0", std::string("\x02\x00", 2)},
      {"tag without end", "\xff\xff\xff\xff\xff\xff"},
      {"tag above 32 bits", "\xfa\xff\xff\xff\x7f"},
      {"cut tag", "\x80"},
      {"varint without end", "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"},
      {"cut varint", "\x08\x80"},
      {"no varint", "\x08"},
      {"group", "\x0b\x0c"},
      {"wire type 6", "\x0e"},
      {"no length", "\x7a"},
      {"cut data",
       "\x7a\x05"
       "abcd"},
      {"length of 2^31", "\x7a\x80\x80\x80\x80\x08"},
      {"length of 2^64 - 1", "\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"},
      {"cut fixed64",
       "\x09"
       "1234567"},
      {"cut fixed32",
       "\x0d"
       "123"},
  };
  for (const Case& c : cases) {
    for (const size_t cut : {1, 100}) {
      EXPECT_EQ(Split(Cut(c.bytes, cut), kDataField, kRestMax).status().code(), absl::StatusCode::kInvalidArgument)
          << c.what;
    }
  }
}

TEST(WireTest, BoundsTheRest) {
  v1::SetRequest request = Request(1000);
  const size_t rest_bytes = request.SerializeAsString().size() - 1000 - 3;
  EXPECT_TRUE(Split(Cut(request.SerializeAsString(), 50), kDataField, rest_bytes).ok());
  EXPECT_FALSE(Split(Cut(request.SerializeAsString(), 50), kDataField, rest_bytes - 1).ok());
  EXPECT_FALSE(Split(Cut(request.SerializeAsString(), 50), kDataField, 0).ok());
}

TEST(WireTest, EveryTruncationIsRefusedOrAMessage) {
  const std::string bytes = Request(200).SerializeAsString();
  for (size_t n = 0; n < bytes.size(); ++n) {
    const auto split = Split(Cut(absl::string_view(bytes).substr(0, n), 5), kDataField, kRestMax);
    v1::SetRequest parsed;
    EXPECT_EQ(split.ok() && parsed.ParseFromString(split->rest), v1::SetRequest().ParseFromString(bytes.substr(0, n)));
  }
}

TEST(WireTest, AgreesWithTheProtoParserOnDamagedMessages) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  google::protobuf::LogSilencer silence;  // bad UTF-8
  const std::string good = Request(60).SerializeAsString();
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (int flips = 1 + random() % 3; flips > 0; --flips) bytes[random() % bytes.size()] = static_cast<char>(random());
    const auto split = Split(Cut(bytes, 1 + random() % 40), kDataField, kRestMax);
    if (!split.ok()) continue;  // stricter than the parser: groups
    v1::SetRequest whole, rest;
    const bool parsed = whole.ParseFromString(bytes);
    ASSERT_EQ(parsed, rest.ParseFromString(split->rest)) << round;
    if (!parsed) continue;
    rest.set_data(absl::StrJoin(split->data, ""));
    EXPECT_EQ(whole.SerializeAsString(), rest.SerializeAsString()) << round;
  }
}

TEST(WireTest, JoinMakesAnOrdinaryMessageOverTheCallersMemory) {
  const v1::SetRequest request = Request(0);
  const std::string first(60000, '1'), second(40000, '2');
  const std::vector<grpc::Slice> slices = {grpc::Slice(first.data(), first.size(), grpc::Slice::STATIC_SLICE),
                                           grpc::Slice(second.data(), second.size(), grpc::Slice::STATIC_SLICE)};
  const grpc::ByteBuffer joined = Join(request.SerializeAsString(), kDataField, slices);

  absl::StatusOr<SplitMessage> split = Split(joined, kDataField, kRestMax);
  ASSERT_TRUE(split.ok()) << split.status();
  ASSERT_EQ(split->data.size(), 2u);
  EXPECT_EQ(split->data[0].data(), first.data());  // no copy on either side
  EXPECT_EQ(split->data[1].data(), second.data());
  v1::SetRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(Flat(joined)));
  EXPECT_EQ(parsed.data(), first + second);
  EXPECT_EQ(parsed.sequence(), "chat/42");

  EXPECT_EQ(Flat(Join("rest", kDataField, {})), "rest");
}

}  // namespace
}  // namespace statepool::wire
