// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/layout.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>

#include "server/core/error.h"

namespace statepool {
namespace {

TensorSpec Tensor(std::string name, std::vector<Axis> axes, DType dtype = DType::kFloat32) {
  return {std::move(name), TensorKind::kOther, {0}, dtype, std::move(axes), {}, {}};
}
std::string FieldOf(const absl::StatusOr<LayoutRef>& layout) {
  EXPECT_EQ(ReasonOf(layout.status()), "INVALID_LAYOUT") << layout.status();
  return GetErrorDetail(layout.status()).field;
}

// Computed from the .proto's definition with another program.
TEST(Layout, FingerprintIsSha256OverTheCanonicalEncoding) {
  const auto shift = [](const char* name) {
    return TensorSpec{name, TensorKind::kShift, {0, 1}, DType::kBFloat16, {{"channel", 128}}, {}, {}};
  };
  const TensorSpec wkv = {
      "wkv", TensorKind::kRecurrent, {0, 1}, DType::kFloat32, {{"head", 2}, {"value", 64}, {"key", 64}},
      {},    Sharding{0, {}}};
  const auto rwkv = Layout::Create({"sha256:abc", {shift("att_shift"), wkv, shift("ffn_shift")}});
  ASSERT_TRUE(rwkv.ok());
  EXPECT_EQ((*rwkv)->fingerprint(), "52af5b3fcc5e98e4441c5df1c9417645757b40c7ff95a00498918ea066dd4dde");
  const TensorSpec conv = {"conv",
                           TensorKind::kConv,
                           {0},
                           DType::kBFloat16,
                           {{"tap", 3}, {"channel", 112}},
                           {},
                           Sharding{1, {{48, 6}, {32, 2, true}, {32, 2, true}}}};
  EXPECT_EQ((*Layout::Create({"m", {conv}}))->fingerprint(),
            "9bee9b54088b7d118cd69b69fcf7c9dd7b872847c4c42187c040c94b2e9335e4");
  TensorSpec pp = {"pp", TensorKind::kOther, {3, 7}, DType::kFloat32, {{"channel", 4}}, ConstantInitial{-1e30}, {}};
  TensorSpec t = {"t", TensorKind::kOther, {0}, DType::kUInt8, {{"x", 3}}, DataInitial{"abc"}, {}};
  EXPECT_EQ((*Layout::Create({"m", {pp, t}}))->fingerprint(),
            "704631e198586e4ee25077383aff0ac340c4be5557d4d9354625cafb95156cd5");
}

TEST(Layout, FingerprintTellsModelsOfTheSameShapesApart) {
  const auto a = Layout::Create({"base", {Tensor("s", {{"x", 4}})}});
  const auto b = Layout::Create({"fine-tune", {Tensor("s", {{"x", 4}})}});
  EXPECT_NE((*a)->fingerprint(), (*b)->fingerprint());
}

TEST(Layout, AConstantOfZeroCountsAsZero) {
  TensorSpec zero = Tensor("s", {{"x", 4}});
  zero.initial = ConstantInitial{-0.0};
  EXPECT_EQ((*Layout::Create({"m", {zero}}))->fingerprint(),
            (*Layout::Create({"m", {Tensor("s", {{"x", 4}})}}))->fingerprint());
}

TEST(Layout, EveryFieldIsChecked) {
  const Axis x{"x", 4};
  EXPECT_EQ(FieldOf(Layout::Create({"", {Tensor("s", {x})}})), "model_id");
  EXPECT_EQ(FieldOf(Layout::Create({"a\nb", {Tensor("s", {x})}})), "model_id");
  EXPECT_EQ(FieldOf(Layout::Create({"m", {}})), "tensors");
  EXPECT_EQ(FieldOf(Layout::Create({"m", {Tensor("", {x})}})), "tensors[0].name");
  EXPECT_EQ(FieldOf(Layout::Create({"m", {Tensor("s", {x}), Tensor("s", {x})}})), "tensors[1].name");
  EXPECT_EQ(FieldOf(Layout::Create({"m", {Tensor("s", {})}})), "tensors[0].axes");
  EXPECT_EQ(FieldOf(Layout::Create({"m", {Tensor("s", {{"x", 0}})}})), "tensors[0].axes[0].size");
  EXPECT_EQ(FieldOf(Layout::Create({"m", {Tensor("s", {x, x})}})), "tensors[0].axes[1].name");
  EXPECT_EQ(FieldOf(Layout::Create({"m", {Tensor("s", {{"x", uint64_t{1} << 33}, {"y", uint64_t{1} << 33}})}})),
            "tensors[0].axes[1].size");
  EXPECT_EQ(FieldOf(Layout::Create({"m", {Tensor("s", {{"x", ~uint64_t{0}}})}})), "tensors[0].axes[0].size");
  EXPECT_EQ(FieldOf(Layout::Create({"m", {Tensor("s", {x}, static_cast<DType>(77))}})), "tensors[0].dtype");
  TensorSpec t = Tensor("s", {x});
  t.layers = {3, 3};
  EXPECT_EQ(FieldOf(Layout::Create({"m", {t}})), "tensors[0].layers");
  t = Tensor("s", {x});
  t.initial = DataInitial{"short"};
  EXPECT_EQ(FieldOf(Layout::Create({"m", {t}})), "tensors[0].initial.data");
  t.initial = ConstantInitial{1e300};
  EXPECT_EQ(FieldOf(Layout::Create({"m", {t}})), "tensors[0].initial.constant");
  t = Tensor("s", {x});
  t.sharding = Sharding{1, {}};
  EXPECT_EQ(FieldOf(Layout::Create({"m", {t}})), "tensors[0].sharding.axis");
  t.sharding = Sharding{0, {{1}, {2}}};
  EXPECT_EQ(FieldOf(Layout::Create({"m", {t}})), "tensors[0].sharding.sections");
  t.sharding = Sharding{0, {{4, 3}}};
  EXPECT_EQ(FieldOf(Layout::Create({"m", {t}})), "tensors[0].sharding.section_groups");
}

TEST(Layout, HowAnAxisIsDividedIsPartOfItsIdentity) {
  const auto fingerprint = [](std::vector<Sharding::Section> sections) {
    TensorSpec t = Tensor("s", {{"x", 12}});
    t.sharding = Sharding{0, std::move(sections)};
    const absl::StatusOr<LayoutRef> layout = Layout::Create({"m", {t}});
    EXPECT_TRUE(layout.ok()) << layout.status();
    return (*layout)->fingerprint();
  };
  EXPECT_EQ(fingerprint({}), fingerprint({{12}}));
  EXPECT_EQ(fingerprint({{12}}), fingerprint({{12, 12}}));
  const std::set<std::string> all = {fingerprint({{12}}), fingerprint({{4}, {8}}), fingerprint({{12, 4}}),
                                     fingerprint({{12, 4, true}}), fingerprint({{12, 12, true}})};
  EXPECT_EQ(all.size(), 5u);
}

void CheckThatTheCanonicalEncodingAloneIsReadBack(Sharding sharding) {
  TensorSpec t = Tensor("s", {{"x", 4}, {"y", 6}}, DType::kBFloat16);
  t.sharding = std::move(sharding);
  t.initial = ConstantInitial{1.5};
  t.layers = {1, 5, 9};
  const LayoutRef layout = *Layout::Create({"m", {t, Tensor("u", {{"z", 3}})}});
  const std::string& encoding = layout->canonical();
  const auto back = Layout::FromCanonical(encoding);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ((*back)->fingerprint(), layout->fingerprint());
  for (size_t n = 0; n < encoding.size(); ++n) EXPECT_FALSE(Layout::FromCanonical(encoding.substr(0, n)).ok()) << n;
  EXPECT_FALSE(Layout::FromCanonical(encoding + "x").ok());
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {  // never crashes, and what it accepts is canonical
    std::string bad = encoding;
    for (int k = random() % 3; k >= 0; --k) bad[random() % bad.size()] = static_cast<char>(random());
    const auto read = Layout::FromCanonical(bad);
    if (read.ok()) {
      EXPECT_EQ((*read)->canonical(), bad);
    }
  }
}

TEST(Layout, TheCanonicalEncodingIsReadBackAndNothingElseIs) {
  CheckThatTheCanonicalEncodingAloneIsReadBack({1, {{2}, {4}}});
  CheckThatTheCanonicalEncodingAloneIsReadBack({1, {{2}, {4, 2, true}}});
}

template <typename T>
T InitialElement(DType dtype, double value) {
  TensorSpec t = Tensor("s", {{"x", 3}}, dtype);
  t.initial = ConstantInitial{value};
  const auto layout = Layout::Create({"m", {t}});
  EXPECT_TRUE(layout.ok()) << layout.status();
  std::vector<T> elements(3);
  (*layout)->FillInitial(0, reinterpret_cast<char*>(elements.data()), 3 * sizeof(T));
  EXPECT_EQ(elements[0], elements[2]);
  return elements[1];
}

TEST(Layout, ConstantsAreEncodedInEachDtype) {
  EXPECT_EQ(InitialElement<float>(DType::kFloat32, -1e30), -1e30f);
  EXPECT_EQ(InitialElement<double>(DType::kFloat64, 0.1), 0.1);
  EXPECT_EQ(InitialElement<uint16_t>(DType::kFloat16, 1.0), 0x3c00);
  EXPECT_EQ(InitialElement<uint16_t>(DType::kFloat16, -2.5), 0xc100);
  EXPECT_EQ(InitialElement<uint16_t>(DType::kFloat16, 65504), 0x7bff);
  EXPECT_EQ(InitialElement<uint16_t>(DType::kFloat16, std::ldexp(1, -24)), 0x0001);
  EXPECT_EQ(InitialElement<uint16_t>(DType::kFloat16, std::ldexp(1, -14)), 0x0400);
  EXPECT_EQ(InitialElement<uint16_t>(DType::kFloat16, 0.1), 0x2e66);
  EXPECT_EQ(InitialElement<uint16_t>(DType::kFloat16, 2047.9), 0x6800);  // rounds up into the next exponent
  EXPECT_EQ(InitialElement<uint16_t>(DType::kBFloat16, 1.0), 0x3f80);
  EXPECT_EQ(InitialElement<uint16_t>(DType::kBFloat16, -1e30), 0xf14a);
  EXPECT_EQ(InitialElement<uint8_t>(DType::kFloat8E4M3, 448), 0x7e);
  EXPECT_EQ(InitialElement<uint8_t>(DType::kFloat8E4M3, 1), 0x38);
  EXPECT_EQ(InitialElement<uint8_t>(DType::kFloat8E5M2, 1), 0x3c);
  EXPECT_EQ(InitialElement<uint8_t>(DType::kFloat8E5M2, -57344), 0xfb);
  EXPECT_EQ(InitialElement<int8_t>(DType::kInt8, -128), -128);
  EXPECT_EQ(InitialElement<int64_t>(DType::kInt64, -5), -5);
}

TEST(Layout, ConstantsBeyondADtypesRangeAreRefused) {
  for (auto [dtype, value] : std::vector<std::pair<DType, double>>{{DType::kFloat16, 70000},
                                                                   {DType::kFloat8E4M3, 500},
                                                                   {DType::kBFloat16, 1e39},
                                                                   {DType::kFloat32, 1e39},
                                                                   {DType::kInt8, 128},
                                                                   {DType::kInt8, 0.5},
                                                                   {DType::kUInt8, -1},
                                                                   {DType::kInt64, std::ldexp(1, 63)},
                                                                   {DType::kFloat32, std::nan("")},
                                                                   {DType::kFloat64, INFINITY}}) {
    TensorSpec t = Tensor("s", {{"x", 3}}, dtype);
    t.initial = ConstantInitial{value};
    EXPECT_FALSE(Layout::Create({"m", {t}}).ok()) << static_cast<int>(dtype) << " " << value;
  }
}

TEST(Layout, TheInitialStateReadsTheSameFromEveryOffset) {
  TensorSpec a = Tensor("a", {{"x", 5}});
  a.initial = ConstantInitial{1.5};
  a.layers = {0, 1};
  TensorSpec b = Tensor("b", {{"x", 7}}, DType::kUInt8);
  b.initial = DataInitial{"ABCDEFG"};
  TensorSpec c = Tensor("c", {{"x", 3}});
  const LayoutRef layout = *Layout::Create({"m", {a, b, c}});
  std::string whole(layout->state_bytes(), 'x');
  layout->FillInitial(0, whole.data(), whole.size());
  EXPECT_EQ(whole.substr(40, 7), "ABCDEFG");
  EXPECT_EQ(whole.substr(47), std::string(12, '\0'));
  for (size_t offset = 0; offset < whole.size(); ++offset) {
    for (size_t size : {size_t{1}, size_t{9}, whole.size() - offset}) {
      if (offset + size > whole.size()) continue;
      std::string part(size, 'y');
      layout->FillInitial(offset, part.data(), size);
      EXPECT_EQ(part, whole.substr(offset, size)) << offset << "+" << size;
    }
  }
}

}  // namespace
}  // namespace statepool
