// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/convert.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "server/core/error.h"

namespace statepool {
namespace {

template <typename Message>
Message Parse(const std::string& text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

// "REASON field", or "ok".
template <typename T>
std::string Complaint(const absl::StatusOr<T>& result) {
  if (result.ok()) return "ok";
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  const ErrorDetail detail = GetErrorDetail(result.status());
  return detail.reason + " " + detail.field;
}

std::string LayoutComplaint(const std::string& text) {
  return Complaint(ToLayout(Parse<v1::RegisterLayoutRequest>(text)));
}

TEST(Convert, ANameIsOneOfThreeKindsOrMissing) {
  EXPECT_EQ(*ToNameKey(Parse<v1::NameRef>("sequence: 'a/b'"), "name"), (NameKey{0, NameKind::kSequence, "a/b"}));
  EXPECT_EQ(*ToNameKey(Parse<v1::NameRef>("snapshot: ''"), "name"),
            (NameKey{0, NameKind::kSnapshot, ""}));  // the store refuses it
  EXPECT_EQ(*ToNameKey(Parse<v1::NameRef>("prefix: '00'"), "name"), (NameKey{0, NameKind::kPrefix, "00"}));
  EXPECT_EQ(Complaint(ToNameKey(v1::NameRef(), "names[3]")), "MISSING_FIELD names[3]");
}

TEST(Convert, OptionsThatAreNotSetStayUnset) {
  const NameOptions options = *ToNameOptions(v1::NameOptions());
  EXPECT_FALSE(options.durability || options.max_history || options.ttl || options.expire_time || options.never_expire);
}

TEST(Convert, OptionsKeepWhatTheySay) {
  EXPECT_EQ(ToNameOptions(Parse<v1::NameOptions>("durability: SYNC"))->durability, Durability::kSync);
  EXPECT_EQ(ToNameOptions(Parse<v1::NameOptions>("max_history: 0"))->max_history, 0u);  // the store refuses it
  EXPECT_EQ(ToNameOptions(Parse<v1::NameOptions>("ttl { seconds: 1 nanos: 500000000 }"))->ttl,
            absl::Milliseconds(1'500));
  EXPECT_EQ(ToNameOptions(Parse<v1::NameOptions>("ttl { seconds: -5 }"))->ttl, absl::Seconds(-5));
  EXPECT_EQ(ToNameOptions(Parse<v1::NameOptions>("expire_time { seconds: 7 nanos: 1 }"))->expire_time,
            absl::FromUnixNanos(7'000'000'001));
  EXPECT_TRUE(ToNameOptions(Parse<v1::NameOptions>("never_expire: true"))->never_expire);
  EXPECT_FALSE(ToNameOptions(Parse<v1::NameOptions>("never_expire: false"))->never_expire);
}

TEST(Convert, OptionsThatMakeNoSenseNameTheirField) {
  EXPECT_EQ(Complaint(ToNameOptions(Parse<v1::NameOptions>("durability: 9"))), "INVALID_OPTION options.durability");
  EXPECT_EQ(Complaint(ToNameOptions(Parse<v1::NameOptions>("ttl { nanos: 1000000000 }"))),
            "INVALID_OPTION options.ttl");
  EXPECT_EQ(Complaint(ToNameOptions(Parse<v1::NameOptions>("ttl { seconds: 1 nanos: -1 }"))),
            "INVALID_OPTION options.ttl");
  EXPECT_EQ(Complaint(ToNameOptions(Parse<v1::NameOptions>("ttl { seconds: 9223372036854775807 }"))),
            "INVALID_OPTION options.ttl");
  EXPECT_EQ(Complaint(ToNameOptions(Parse<v1::NameOptions>("expire_time { nanos: -1 }"))),
            "INVALID_OPTION options.expire_time");
  EXPECT_EQ(Complaint(ToExactness(static_cast<v1::Exactness>(17))), "INVALID_OPTION exactness");
  EXPECT_EQ(Complaint(ToNameKind(static_cast<v1::NameKind>(-1))), "INVALID_OPTION kind");
}

TEST(Convert, UnspecifiedEnumsHaveTheirDefaults) {
  EXPECT_EQ(*ToExactness(v1::EXACTNESS_UNSPECIFIED), Exactness::kExact);
  EXPECT_EQ(*ToExactness(v1::LOSSY), Exactness::kLossy);
  EXPECT_EQ(*ToNameKind(v1::NAME_KIND_UNSPECIFIED), NameKind::kSequence);
  EXPECT_EQ(*ToNameKind(v1::PREFIX), NameKind::kPrefix);
}

constexpr char kLayout[] = R"(layout {
  model_id: "m"
  tensors { name: "conv" kind: CONV layers: [0, 2] dtype: BFLOAT16 axes { name: "tap" size: 3 } axes { name: "channel" size: 8 }
            sharding { axis: 1 sections: [4, 4] } }
  tensors { name: "pp" kind: OTHER layers: 1 dtype: FLOAT32 axes { name: "channel" size: 2 } initial { constant: -1e30 } }
  tensors { name: "s" kind: SHIFT layers: 1 dtype: UINT8 axes { name: "channel" size: 2 } initial { data: "xy" } }
})";

TEST(Convert, ALayoutComesBackAsItWent) {
  const auto request = Parse<v1::RegisterLayoutRequest>(kLayout);
  const LayoutRef layout = *ToLayout(request);
  v1::LayoutInfo info;
  FillLayoutInfo({layout, {"a", "b"}}, &info);
  EXPECT_EQ(info.layout().SerializeAsString(), request.layout().SerializeAsString());
  EXPECT_EQ(info.fingerprint(), layout->fingerprint());
  EXPECT_EQ(info.state_bytes(), 2u * 3 * 8 * 2 + 2 * 4 + 2);
  EXPECT_EQ(info.aliases_size(), 2);
}

TEST(Convert, LayoutsThatMakeNoSenseNameTheirFieldFromTheRequestsRoot) {
  EXPECT_EQ(LayoutComplaint(""), "MISSING_FIELD layout");
  EXPECT_EQ(LayoutComplaint("preset {}"), "MISSING_FIELD preset");
  EXPECT_EQ(LayoutComplaint("layout { model_id: 'm' tensors { name: 'x' dtype: FLOAT32 } }"),
            "INVALID_LAYOUT layout.tensors[0].kind");
  EXPECT_EQ(LayoutComplaint("layout { model_id: 'm' tensors { name: 'x' kind: CONV dtype: 99 } }"),
            "INVALID_LAYOUT layout.tensors[0].dtype");
  EXPECT_EQ(LayoutComplaint("layout { }"), "INVALID_LAYOUT layout.model_id");
  EXPECT_EQ(LayoutComplaint("preset { model_id: 'm' mamba1 { layers: 1 intermediate_size: 1 } }"),
            "INVALID_LAYOUT preset.mamba1.state_size");
  EXPECT_EQ(LayoutComplaint(
                "preset { model_id: 'm' mamba1 { layers: 1 intermediate_size: 1 state_size: 1 conv_dtype: 99 } }"),
            "INVALID_LAYOUT preset.mamba1.conv_dtype");
  EXPECT_EQ(LayoutComplaint("preset { model_id: 'm' hybrid { parts { rwkv7 { layers: 1 hidden_size: 65 } } } }"),
            "INVALID_LAYOUT preset.hybrid.parts[0].rwkv7.hidden_size");
  EXPECT_EQ(LayoutComplaint("preset { model_id: 'm' rwkv7 { layers: 1 hidden_size: 64 } initial { key: 'wkv' "
                            "value { data: 'short' } } }"),
            "INVALID_LAYOUT preset.initial[\"wkv\"]");
  EXPECT_EQ(LayoutComplaint("preset { mamba1 { layers: 1 intermediate_size: 1 state_size: 1 } }"),
            "INVALID_LAYOUT preset.model_id");
}

TEST(Convert, PresetsThatMakeNoSenseAreToldInTheirOwnFieldsAndOnce) {
  const auto complaint = [](const std::string& preset) {
    const absl::Status status = ToLayout(Parse<v1::RegisterLayoutRequest>("preset { " + preset + " }")).status();
    return absl::StrCat(GetErrorDetail(status).field, " | ", status.message());
  };
  const std::string rwkv4 = "model_id: 'm' rwkv4 { layers: 2 hidden_size: 4 } ";
  EXPECT_EQ(complaint(""), "preset | names no family that is known here");
  EXPECT_EQ(complaint("mamba1 { layers: 1 intermediate_size: 1 }"), "preset.mamba1.state_size | must be 1..2^32");
  EXPECT_EQ(complaint("mamba1 { layers: 1 intermediate_size: 1 state_size: 1 }"),
            "preset.model_id | must be 1..512 bytes without control characters");
  EXPECT_EQ(complaint(rwkv4 + "initial { key: 'pp' value { data: 'abc' } }"),
            "preset.initial[\"pp\"] | has 3 bytes, the tensor 32");
  EXPECT_EQ(complaint(rwkv4 + "initial { key: 'pp' value { constant: 1e300 } }"),
            "preset.initial[\"pp\"] | the dtype can't represent it");
  EXPECT_EQ(complaint(rwkv4 + "prefix: '\\n'"),
            "preset.prefix | tensor '\natt_shift': must be 1..128 bytes without control characters");
  EXPECT_EQ(complaint("model_id: 'm' hybrid { parts { short_conv { channels: 4 } layer_ids: 0 } "
                      "parts { short_conv { channels: 4 } layer_ids: 1 } }"),
            "preset.hybrid.parts[1].prefix | tensor 'conv': twice in one layout");
  EXPECT_THAT(complaint("model_id: 'm' mamba1 { layers: 4096 intermediate_size: 4294967296 state_size: 1 }"),
              testing::StartsWith("preset.mamba1 | tensor 'conv': the state would be larger than "));
  EXPECT_THAT(complaint("model_id: 'm' rwkv4 { layers: 64 hidden_size: 262144 } initial { key: 'aa' value { data: '" +
                        std::string(64 * 262144 * 4, 'x') + "' } }"),
              testing::StartsWith("preset.initial | the layout has "));
}

TEST(Convert, HowAnAxisIsDividedIsToldAsItWasGiven) {
  for (const char* sharding : {"axis: 1", "axis: 0 sections: 2 sections: 2", "axis: 1 sections: 6 section_groups: 3",
                               "axis: 1 sections: 2 sections: 4 section_groups: 2 section_groups: 1 "
                               "section_shared: false section_shared: true"}) {
    const absl::StatusOr<LayoutRef> layout = ToLayout(Parse<v1::RegisterLayoutRequest>(
        absl::StrCat("layout { model_id: 'm' tensors { name: 'x' kind: CONV dtype: INT8 layers: 0 axes { name: 'a' "
                     "size: 4 } axes { name: 'b' size: 6 } sharding { ",
                     sharding, " } } }")));
    ASSERT_TRUE(layout.ok()) << layout.status();
    v1::LayoutInfo told;
    FillLayoutInfo({*layout, {}}, &told);
    v1::RegisterLayoutRequest again;
    *again.mutable_layout() = told.layout();
    EXPECT_EQ((*ToLayout(again))->fingerprint(), (*layout)->fingerprint());
    v1::Sharding given = Parse<v1::Sharding>(sharding);
    if (given.sections().empty()) given.add_sections(6);
    EXPECT_EQ(told.layout().tensors(0).sharding().SerializeAsString(), given.SerializeAsString());
  }
  EXPECT_EQ(LayoutComplaint("layout { model_id: 'm' tensors { name: 'x' kind: CONV dtype: INT8 layers: 0 axes { name: "
                            "'a' size: 4 } sharding { sections: 4 section_shared: true section_shared: true } } }"),
            "INVALID_LAYOUT layout.tensors[0].sharding.section_shared");
}

TEST(Convert, PresetsFillTheirDefaults) {
  const auto bytes = [](const std::string& preset) {
    return (*ToLayout(Parse<v1::RegisterLayoutRequest>("preset { model_id: 'm' " + preset + " }")))->state_bytes();
  };
  // The formulas of the .proto: K = 4, G = 1, D = 64, convolutions and shifts in 2 bytes, recurrences in 4.
  EXPECT_EQ(bytes("mamba1 { layers: 2 intermediate_size: 32 state_size: 16 }"), 2u * 32 * (3 * 2 + 16 * 4));
  EXPECT_EQ(bytes("mamba2 { layers: 2 heads: 4 head_dim: 8 state_size: 16 }"),
            2u * ((32 + 2 * 16) * 3 * 2 + 4 * 8 * 16 * 4));
  EXPECT_EQ(bytes("rwkv7 { layers: 2 hidden_size: 128 }"), 2u * (128 * 2 + 2 * 64 * 64 * 4 + 128 * 2));
  EXPECT_EQ(bytes("mamba1 { layers: 2 intermediate_size: 32 state_size: 16 conv_kernel: 5 recurrent_dtype: FLOAT16 }"),
            2u * 32 * (4 * 2 + 16 * 2));
}

TEST(Convert, ANamesInfoIsToldInFull) {
  NameInfo info;
  info.key = {0, NameKind::kSequence, "s"};
  info.layout = *ToLayout(Parse<v1::RegisterLayoutRequest>(kLayout));
  info.version = {7, 5, 42, Exactness::kEdited, 0xabc, 9, Tier::kHot};
  info.revision = 3;
  info.durable_revision = 2;
  info.max_history = 4;
  info.history = {info.version, {5, 0, 40, Exactness::kExact, 1, 0, Tier::kCold}};
  info.ttl = absl::Milliseconds(2'500);
  info.expire_time = absl::FromUnixMillis(1'500);
  info.create_time = absl::FromUnixSeconds(1);
  v1::NameInfo out;
  FillNameInfo(info, &out);
  EXPECT_EQ(out.name().sequence(), "s");
  EXPECT_EQ(out.layout(), info.layout->fingerprint());
  EXPECT_EQ(out.state_bytes(), info.layout->state_bytes());
  EXPECT_EQ(out.position(), 42);
  EXPECT_EQ(out.revision(), 3u);
  EXPECT_EQ(out.durable_revision(), 2u);
  EXPECT_EQ(out.max_history(), 4u);
  EXPECT_EQ(out.create_time().seconds(), 1);
  EXPECT_FALSE(out.replayed());
  EXPECT_EQ(out.version_id(), 7u);
  EXPECT_EQ(out.parent_version_id(), 5u);
  EXPECT_EQ(out.checksum(), "0000000000000abc");
  EXPECT_EQ(out.exactness(), v1::EDITED);
  EXPECT_EQ(out.tier(), v1::HOT);
  EXPECT_EQ(out.attachment_bytes(), 9u);
  EXPECT_EQ(out.durability(), v1::WRITE_BEHIND);
  ASSERT_EQ(out.history_size(), 2);
  EXPECT_EQ(out.history(1).position(), 40);
  EXPECT_EQ(out.history(1).tier(), v1::COLD);
  EXPECT_EQ(out.ttl().seconds(), 2);
  EXPECT_EQ(out.ttl().nanos(), 500'000'000);
  EXPECT_EQ(out.expire_time().nanos(), 500'000'000);
}

TEST(Convert, ANameThatLivesForeverHasNoTtlAndNoEnd) {
  NameInfo info;
  info.key = {0, NameKind::kPrefix, "00"};
  v1::NameInfo out;
  FillNameInfo(info, &out);
  EXPECT_FALSE(out.has_ttl() || out.has_expire_time());
  EXPECT_EQ(out.name().prefix(), "00");
}

TEST(Convert, TimesBefore1970KeepPositiveNanoseconds) {
  const google::protobuf::Timestamp time = ToProto(absl::FromUnixMillis(-500));
  EXPECT_EQ(time.seconds(), -1);
  EXPECT_EQ(time.nanos(), 500'000'000);
}

}  // namespace
}  // namespace statepool
