// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/name.h"

#include <gtest/gtest.h>

#include "server/core/error.h"
#include "server/core/name_table.h"

namespace statepool {
namespace {

TEST(Name, AcceptsWhatPeopleWrite) {
  for (const char* name : {"a", "chat/42", "chat/42@system", "Größe/日本/😀", "a b", "...", "a/.b", "x=1,y=2"}) {
    EXPECT_TRUE(ValidateName(name, "name").ok()) << name;
  }
  EXPECT_TRUE(ValidateName(std::string(512, 'x'), "name").ok());
}

TEST(Name, RefusesWhatIsNoName) {
  for (const std::string& name : {std::string(),
                                  std::string(513, 'x'),
                                  std::string(10'240, 'x'),
                                  std::string("."),
                                  std::string(".."),
                                  std::string("../x"),
                                  std::string("a/../b"),
                                  std::string("a/."),
                                  std::string("/a"),
                                  std::string("a/"),
                                  std::string("a//b"),
                                  std::string("a\0b", 3),
                                  std::string("a\nb"),
                                  std::string("a\x7f"),
                                  std::string("\xff"),
                                  std::string("\xc0\xaf"),
                                  std::string("\xe0\x80\xaf"),
                                  std::string("\xed\xa0\x80"),
                                  std::string("\xf4\x90\x80\x80"),
                                  std::string("\xe2\x82"),
                                  std::string("\xc2\x85")}) {
    const absl::Status status = ValidateName(name, "sequence");
    EXPECT_EQ(ReasonOf(status), "INVALID_NAME") << name;
    EXPECT_EQ(GetErrorDetail(status).field, "sequence");
  }
}

TEST(Error, CarriesItsDetailWhateverItsValuesHold) {
  const absl::Status status = Error(absl::StatusCode::kAborted, "R", "message")
                                  .Field("f:[0]")
                                  .Meta("k:", "1:2:\n")
                                  .Meta("n", 7)
                                  .RetryAfter(absl::Seconds(2));
  const ErrorDetail detail = GetErrorDetail(status);
  EXPECT_EQ(detail.reason, "R");
  EXPECT_EQ(detail.field, "f:[0]");
  EXPECT_EQ(detail.metadata, (std::vector<std::pair<std::string, std::string>>{{"k:", "1:2:\n"}, {"n", "7"}}));
  EXPECT_EQ(detail.retry_after, absl::Seconds(2));
  EXPECT_EQ(ReasonOf(absl::InternalError("x")), "INTERNAL");
  EXPECT_EQ(ReasonOf(absl::OkStatus()), "");
}

NameKey Key(size_t i) { return {kDefaultTenant, NameKind::kPrefix, std::to_string(i)}; }
TombstoneTable::PrefixPlace Place(uint64_t length) {
  return std::make_shared<const PrefixIndex::Place>(PrefixIndex::Place{{length, 2}, {3, 4, 5}, length});
}

TEST(TombstoneTable, RemembersReasonsUpToItsLimitOldestOutFirst) {
  TombstoneTable table;
  for (size_t i = 0; i < TombstoneTable::kLimit; ++i)
    EXPECT_TRUE(table.Add(Key(i), TombstoneTable::Reason::kDeleted, nullptr).empty());
  EXPECT_FALSE(table.overflowed());
  (void)table.Add(Key(TombstoneTable::kLimit), TombstoneTable::Reason::kExpired, nullptr);
  EXPECT_TRUE(table.overflowed());
  EXPECT_FALSE(table.Find(Key(0)).has_value());
  EXPECT_EQ(table.Find(Key(1)), TombstoneTable::Reason::kDeleted);
  EXPECT_EQ(table.size(), TombstoneTable::kLimit);
}

TEST(TombstoneTable, GivesThePrefixesBackWhenTheirTombstonesGo) {
  TombstoneTable table;
  EXPECT_TRUE(table.Add(Key(1), TombstoneTable::Reason::kDeleted, Place(7)).empty());
  EXPECT_EQ(table.prefixes(), 1u);
  EXPECT_EQ(table.Add(Key(1), TombstoneTable::Reason::kExpired, Place(8)).front()->length, 7u);  // renewed
  EXPECT_EQ(table.Remove(Key(1))->length, 8u);
  EXPECT_EQ(table.prefixes(), 0u);
  EXPECT_EQ(table.Remove(Key(1)), nullptr);
}

TEST(TombstoneTable, IsSavedAndLoaded) {
  TombstoneTable table;
  (void)table.Add(Key(1), TombstoneTable::Reason::kDeleted, nullptr);
  (void)table.Add(Key(2), TombstoneTable::Reason::kExpired, Place(9));
  table.SetUncertain();
  const std::string saved = table.Save();
  TombstoneTable loaded;
  const auto prefixes = loaded.Load(saved);
  ASSERT_EQ(prefixes.size(), 1u);
  EXPECT_EQ(prefixes[0]->length, 9u);
  EXPECT_EQ(loaded.Find(Key(2)), TombstoneTable::Reason::kExpired);
  EXPECT_TRUE(loaded.uncertain());
  EXPECT_EQ(loaded.Save(), saved);
  for (size_t n = 0; n < saved.size(); ++n) {  // cut short: never crashes
    TombstoneTable cut;
    (void)cut.Load(saved.substr(0, n));
  }
}

TEST(TombstoneTable, WhatWasNeverSavedMakesItUncertain) {
  TombstoneTable table;
  (void)table.Add(Key(1), TombstoneTable::Reason::kDeleted, Place(9));
  const std::string saved = table.Save();
  const auto loads = [](std::string bytes) {
    TombstoneTable loaded;
    (void)loaded.Load(bytes);
    EXPECT_LE(loaded.size(), 1u);
    return !loaded.uncertain();
  };
  EXPECT_TRUE(loads(saved));
  EXPECT_FALSE(loads(saved + saved.substr(1)));  // a name with two stones
  constexpr size_t kFlags = 0, kReason = 9, kHasPrefix = 10;
  for (const size_t at : {kFlags, kReason, kHasPrefix}) {
    std::string damaged = saved;
    damaged[at] = 100;
    EXPECT_FALSE(loads(damaged)) << at;
  }
}

}  // namespace
}  // namespace statepool
