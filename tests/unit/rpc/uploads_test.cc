// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/uploads.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <tuple>

#include "core/store_fixture.h"
#include "server/core/error.h"

namespace statepool {
namespace {

using UploadPtr = std::unique_ptr<Uploads::Upload>;

constexpr uint64_t kBytes = 3 * kLeafBytes + 100;
constexpr absl::Duration kKeep = absl::Seconds(60);

class UploadsTest : public StoreTest {
 protected:
  UploadsTest() {
    big_ = *Layout::Create({"big", {{"t", TensorKind::kOther, {0}, DType::kUInt8, {{"x", kBytes}}, {}, {}}}});
    EXPECT_TRUE(store_->RegisterLayout(op_, big_, "big").ok());
    watchdog_.emplace(&clock_);
    Limit(3, 10 * kBytes);
    for (size_t i = 0; i < kBytes; ++i) state_.push_back(static_cast<char>(i % 251));
  }
  ~UploadsTest() override { uploads_.reset(); }

  void Limit(uint32_t count, uint64_t bytes) {
    uploads_.reset();
    uploads_.emplace(UploadLimits{count, bytes, kKeep}, store_.get(), &clock_, &*watchdog_);
  }
  absl::StatusOr<UploadPtr> Begin(const std::string& name, const std::string& id, uint64_t offset = 0,
                                  uint64_t body_hash = 1) {
    return uploads_->Begin(op_, {name, "big", 1, {}, {}, {}, {id, body_hash}}, "", std::nullopt, offset);
  }
  absl::Status Send(Uploads::Upload* upload, uint64_t offset, uint64_t bytes) {
    const absl::string_view piece = absl::string_view(state_).substr(offset, bytes);
    return upload->Append(offset, {&piece, 1}, ChecksumOf(piece));
  }
  // An upload that broke off after this many bytes.
  void BreakOff(const std::string& name, const std::string& id, uint64_t bytes) {
    const auto upload = Begin(name, id);
    ASSERT_TRUE(upload.ok()) << upload.status();
    ASSERT_TRUE(Send(upload->get(), 0, bytes).ok());
  }
  absl::StatusOr<Uploads::Info> Find(const std::string& name, const std::string& id) {
    return uploads_->Find(op_, name, id);
  }
  static absl::Status HotFull() { return Error(absl::StatusCode::kResourceExhausted, "HOT_FULL", ""); }
  // What the watchdog had to do by now is done.
  void Look() {
    std::atomic<bool> looked{false};
    watchdog_->Watch(clock_.Now(), [&] { looked = true; });
    while (!looked) std::this_thread::yield();
  }

  LayoutRef big_;
  std::string state_;
  std::optional<Watchdog> watchdog_;
  std::optional<Uploads> uploads_;
};

TEST_F(UploadsTest, WhatWasSentInChunksIsPublishedAtTheEndAndNotBefore) {
  {
    const auto upload = Begin("a", "r");
    ASSERT_TRUE(upload.ok()) << upload.status();
    EXPECT_EQ((*upload)->total_bytes(), kBytes);
    ASSERT_TRUE(Send(upload->get(), 0, kLeafBytes).ok());
    ASSERT_TRUE(Send(upload->get(), kLeafBytes, kBytes - kLeafBytes).ok());
    EXPECT_EQ((*upload)->received_bytes(), kBytes);
    EXPECT_REASON(store_->Describe(op_, Seq("a")), "NEVER_CREATED");
    const auto info = (*upload)->Finish(op_);
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->version.checksum, ChecksumOf(state_));
  }
  EXPECT_REASON(Find("a", "r"), "UPLOAD_UNKNOWN");
  EXPECT_EQ(store_->Get(op_, {Seq("a"), {}, ""})->pin->bytes(), state_);
}

TEST_F(UploadsTest, AChunkThatIsRefusedAppendsNothing) {
  const auto begun = Begin("a", "r");
  Uploads::Upload* upload = begun->get();
  ASSERT_TRUE(Send(upload, 0, kLeafBytes).ok());
  const absl::Status gap = Send(upload, 2 * kLeafBytes, kLeafBytes);
  EXPECT_REASON(gap, "OFFSET_MISMATCH");
  EXPECT_EQ(GetErrorDetail(gap).metadata[0].second, std::to_string(kLeafBytes));
  EXPECT_REASON(Send(upload, 0, kLeafBytes), "OFFSET_MISMATCH");
  EXPECT_REASON(Send(upload, kLeafBytes, 100), "BYTES_LENGTH_MISMATCH");  // no leaf, so the last
  EXPECT_REASON(Send(upload, kLeafBytes, 0), "INVALID_OPTION");
  const std::string beyond(kBytes, 'x');
  const absl::string_view piece = beyond;
  EXPECT_REASON(upload->Append(kLeafBytes, {&piece, 1}, ChecksumOf(piece)), "BYTES_LENGTH_MISMATCH");
  const absl::string_view leaf = piece.substr(0, kLeafBytes);
  EXPECT_REASON(upload->Append(kLeafBytes, {&leaf, 1}, 7), "CHECKSUM_MISMATCH");
  EXPECT_EQ(upload->received_bytes(), kLeafBytes);
  ASSERT_TRUE(Send(upload, kLeafBytes, kBytes - kLeafBytes).ok());
  EXPECT_TRUE(upload->Finish(op_).ok());
}

TEST_F(UploadsTest, ABrokenOffUploadIsKeptAndGoesOnWhereItWas) {
  BreakOff("a", "r", 2 * kLeafBytes);
  const auto kept = Find("a", "r");
  ASSERT_TRUE(kept.ok());
  EXPECT_EQ(kept->received_bytes, 2 * kLeafBytes);
  EXPECT_EQ(kept->total_bytes, kBytes);
  EXPECT_EQ(kept->expire_time, clock_.WallNow() + kKeep);
  EXPECT_REASON(Begin("a", "r", kLeafBytes), "OFFSET_MISMATCH");
  EXPECT_REASON(Begin("a", "r", 2 * kLeafBytes, /*body_hash=*/2), "REQUEST_ID_REUSED");
  EXPECT_REASON(Begin("a", "other", 2 * kLeafBytes), "UPLOAD_UNKNOWN");
  EXPECT_REASON(Begin("b", "r", 2 * kLeafBytes), "UPLOAD_UNKNOWN");
  const auto again = Begin("a", "r", 2 * kLeafBytes);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(Find("a", "r")->expire_time, std::nullopt);  // a stream is under way
  EXPECT_REASON(Begin("a", "r", 2 * kLeafBytes), "UPLOAD_BUSY");
  ASSERT_TRUE(Send(again->get(), 2 * kLeafBytes, kBytes - 2 * kLeafBytes).ok());
  EXPECT_TRUE((*again)->Finish(op_).ok());
}

TEST_F(UploadsTest, AStreamUnderWayTellsHowFarItIs) {
  const auto upload = Begin("a", "r");
  EXPECT_EQ(Find("a", "r")->received_bytes, 0u);
  ASSERT_TRUE(Send(upload->get(), 0, kLeafBytes).ok());
  EXPECT_EQ(Find("a", "r")->received_bytes, kLeafBytes);
  EXPECT_EQ(Find("a", "r")->total_bytes, kBytes);
}

TEST_F(UploadsTest, AStreamThatStartsOverTakesOverFromOneThatSeemsToGoOn) {
  auto dead = Begin("a", "r");
  ASSERT_TRUE(Send(dead->get(), 0, kLeafBytes).ok());
  auto anew = Begin("a", "r");
  ASSERT_TRUE(anew.ok()) << anew.status();
  EXPECT_EQ(Find("a", "r")->received_bytes, 0u);
  const absl::Status cut_off = Send(dead->get(), kLeafBytes, kLeafBytes);
  EXPECT_REASON(cut_off, "UPLOAD_BUSY");
  EXPECT_GT(GetErrorDetail(cut_off).retry_after, absl::ZeroDuration());
  EXPECT_EQ((*dead)->received_bytes(), kLeafBytes);
  dead->reset();
  ASSERT_TRUE(Send(anew->get(), 0, kBytes).ok());
  EXPECT_EQ(Find("a", "r")->received_bytes, kBytes);
  EXPECT_TRUE((*anew)->Finish(op_).ok());
  anew->reset();
  EXPECT_REASON(Find("a", "r"), "UPLOAD_UNKNOWN");
}

TEST_F(UploadsTest, AnUploadMayStartOverAtOffsetZero) {
  BreakOff("a", "r", 2 * kLeafBytes);
  const auto again = Begin("a", "r");
  ASSERT_TRUE(again.ok());
  EXPECT_EQ((*again)->received_bytes(), 0u);
  ASSERT_TRUE(Send(again->get(), 0, kBytes).ok());
  EXPECT_TRUE((*again)->Finish(op_).ok());
}

TEST_F(UploadsTest, AKeptUploadStartsOverInItsOwnRoomWhenThereIsNoOther) {
  Limit(1, kBytes);
  BreakOff("a", "r", 2 * kLeafBytes);
  images_->begin_write_error = HotFull();
  const auto again = Begin("a", "r");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->received_bytes(), 0u);
  EXPECT_EQ(Find("a", "r")->received_bytes, 0u);
  EXPECT_EQ(Find("a", "r")->expire_time, std::nullopt);
  clock_.Advance(2 * kKeep);
  Look();  // what was to end it while it was kept does not
  std::reverse(state_.begin(), state_.end());
  ASSERT_TRUE(Send(again->get(), 0, kLeafBytes).ok());
  EXPECT_EQ(Find("a", "r")->received_bytes, kLeafBytes);
  ASSERT_TRUE(Send(again->get(), kLeafBytes, kBytes - kLeafBytes).ok());
  EXPECT_TRUE((*again)->Finish(op_).ok());
  EXPECT_EQ(store_->Get(op_, {Seq("a"), {}, ""})->pin->bytes(), state_);
}

TEST_F(UploadsTest, AStartThatIsRefusedLeavesWhatIsKept) {
  BreakOff("a", "r", 2 * kLeafBytes);
  EXPECT_REASON(uploads_->Begin(op_, {"a", "big", 1, {}, 77, {}, {"r", 1}}, "", {}, 0), "REVISION_MISMATCH");
  // Its alias means another layout by now, so the room that is kept is of no use.
  const SetRequest other{"a", "m", 1, {}, {}, {}, {"r", 1}};
  images_->begin_write_error = HotFull();
  EXPECT_REASON(uploads_->Begin(op_, other, "", {}, 0), "HOT_FULL");
  EXPECT_EQ(Find("a", "r")->received_bytes, 2 * kLeafBytes);
  EXPECT_TRUE(Begin("a", "r", 2 * kLeafBytes).ok());
  images_->begin_write_error = absl::OkStatus();
  const auto again = uploads_->Begin(op_, other, "", {}, 0);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(Find("a", "r")->total_bytes, layout_->state_bytes());
  EXPECT_REASON(Begin("a", "r", 2 * kLeafBytes), "UPLOAD_BUSY");
}

TEST_F(UploadsTest, AStartThatIsRefusedLeavesTheStreamThatGoesOn) {
  for (const auto& [count, bytes, reason] : {std::tuple(1u, 10 * kBytes, "TOO_MANY_UPLOADS"),
                                             {10u, kBytes, "TOO_MANY_UPLOADS"},
                                             {10u, 10 * kBytes, "HOT_FULL"}}) {
    images_->begin_write_error = absl::OkStatus();
    Limit(count, bytes);
    auto upload = Begin("a", "r");
    ASSERT_TRUE(Send(upload->get(), 0, kLeafBytes).ok());
    images_->begin_write_error = HotFull();
    for (int i = 0; i < 3; ++i) EXPECT_REASON(Begin("a", "r"), reason);
    EXPECT_EQ(Find("a", "r")->received_bytes, kLeafBytes);
    ASSERT_TRUE(Send(upload->get(), kLeafBytes, kLeafBytes).ok());
    upload->reset();
    EXPECT_EQ(Find("a", "r")->received_bytes, 2 * kLeafBytes);
    EXPECT_TRUE(Begin("a", "r").ok());  // it is kept by now
  }
}

TEST_F(UploadsTest, MissingBytesKeepAnUploadAndARefusalOfTheWholeEndsIt) {
  {
    const auto upload = Begin("a", "r");
    ASSERT_TRUE(Send(upload->get(), 0, kLeafBytes).ok());
    EXPECT_REASON((*upload)->Finish(op_), "BYTES_LENGTH_MISMATCH");
  }
  EXPECT_EQ(Find("a", "r")->received_bytes, kLeafBytes);
  {
    const auto upload =
        uploads_->Begin(op_, {"b", "big", 1, {}, 77, {}, {"r", 1}}, "", std::nullopt, 0);  // if_revision
    EXPECT_REASON(upload, "REVISION_MISMATCH");
    EXPECT_REASON(Find("b", "r"), "UPLOAD_UNKNOWN");
    const auto wrong = uploads_->Begin(op_, {"b", "big", 1, {}, {}, {}, {"r", 1}}, "", Checksum{7}, 0);
    ASSERT_TRUE(Send(wrong->get(), 0, kBytes).ok());
    EXPECT_REASON((*wrong)->Finish(op_), "CHECKSUM_MISMATCH");
  }
  EXPECT_REASON(Find("b", "r"), "UPLOAD_UNKNOWN");
}

TEST_F(UploadsTest, WhatIsKeptGoesWhenItsTimeIsOver) {
  BreakOff("a", "r", kLeafBytes);
  clock_.Advance(kKeep - absl::Seconds(1));
  Look();
  EXPECT_TRUE(Find("a", "r").ok());
  {
    const auto again = Begin("a", "r", kLeafBytes);  // its time starts anew
    ASSERT_TRUE(again.ok());
    clock_.Advance(2 * kKeep);
    Look();
    EXPECT_TRUE(Find("a", "r").ok());  // not while a stream goes on with it
  }
  clock_.Advance(kKeep - absl::Seconds(1));
  Look();
  EXPECT_TRUE(Find("a", "r").ok());
  clock_.Advance(absl::Seconds(1));
  Look();
  EXPECT_REASON(Find("a", "r"), "UPLOAD_UNKNOWN");
  EXPECT_REASON(Begin("a", "r", kLeafBytes), "UPLOAD_UNKNOWN");
}

TEST_F(UploadsTest, AStepOfTheWallClockNeitherEndsNorProlongsWhatIsKept) {
  for (const absl::Duration step : {absl::Hours(1), absl::Hours(-1), absl::Hours(24 * 365), absl::Hours(-24 * 365)}) {
    BreakOff("a", "r", kLeafBytes);
    clock_.JumpWall(step);
    clock_.Advance(kKeep - absl::Nanoseconds(1));
    Look();
    EXPECT_TRUE(Find("a", "r").ok());
    clock_.Advance(absl::Nanoseconds(1));
    Look();
    EXPECT_REASON(Find("a", "r"), "UPLOAD_UNKNOWN");
  }
}

TEST_F(UploadsTest, WithoutARequestIdOrBytesNothingIsKept) {
  BreakOff("a", "", kLeafBytes);
  EXPECT_REASON(Find("a", ""), "UPLOAD_UNKNOWN");
  { EXPECT_TRUE(Begin("a", "r").ok()); }
  EXPECT_REASON(Find("a", "r"), "UPLOAD_UNKNOWN");
  // Two without a name for themselves don't meet.
  const auto one = Begin("a", ""), two = Begin("a", "");
  EXPECT_TRUE(one.ok() && two.ok());
}

TEST_F(UploadsTest, UploadsAreBoundedInNumberKeptOnesToo) {
  Limit(2, UINT64_MAX);
  BreakOff("a", "r", kLeafBytes);
  {
    const auto second = Begin("b", "");
    ASSERT_TRUE(second.ok());
    const auto third = Begin("c", "r");
    EXPECT_REASON(third, "TOO_MANY_UPLOADS");
    EXPECT_GT(GetErrorDetail(third.status()).retry_after, absl::ZeroDuration());
    EXPECT_TRUE(Begin("a", "r", kLeafBytes).ok());  // it has its place
  }
  EXPECT_TRUE(Begin("c", "r").ok());
  for (int i = 0; i < 5; ++i) EXPECT_REASON(Begin("d", "r", kLeafBytes), "UPLOAD_UNKNOWN");
  for (int i = 0; i < 5; ++i)
    EXPECT_FALSE(uploads_->Begin(op_, {"e", "absent", 1, {}, {}, {}, {"r", 1}}, "", {}, 0).ok());
  EXPECT_TRUE(Begin("c", "r").ok());  // those that were refused gave their places back
}

TEST_F(UploadsTest, UploadsAreBoundedInBytesButOneMayAlwaysBe) {
  Limit(10, kBytes / 2);
  {
    const auto one = Begin("a", "r");
    ASSERT_TRUE(one.ok()) << one.status();
    EXPECT_REASON(Begin("b", "r"), "TOO_MANY_UPLOADS");
    EXPECT_REASON(Find("b", "r"), "UPLOAD_UNKNOWN");
  }
  BreakOff("b", "r", kLeafBytes);
  EXPECT_REASON(Begin("a", "r"), "TOO_MANY_UPLOADS");
  EXPECT_TRUE(Begin("b", "r", 0).ok());  // in place of what it was
  clock_.Advance(kKeep);
  Look();
  EXPECT_TRUE(Begin("a", "r").ok());
}

}  // namespace
}  // namespace statepool
