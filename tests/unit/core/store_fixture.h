// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A Store over fakes, with short words for what tests do all the time. Every word checks the store's invariants.
#ifndef STATEPOOL_TESTS_UNIT_CORE_STORE_FIXTURE_H_
#define STATEPOOL_TESTS_UNIT_CORE_STORE_FIXTURE_H_

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>

#include "core/fakes.h"
#include "server/core/store.h"

namespace statepool {

class StoreTest : public ::testing::Test {
 protected:
  StoreTest() { Start(); }
  ~StoreTest() override {
    store_.reset();
    EXPECT_EQ(LiveImages(), 0);
  }

  void Start() {
    images_ = std::make_unique<FakeImageStore>(&disk_);
    log_ = std::make_unique<FakeNameLog>(&disk_);
    store_ = std::make_unique<Store>(options_, images_.get(), log_.get(), &clock_);
    ASSERT_TRUE(store_->Recover().ok());
    if (layout_ == nullptr) {
      layout_ = *Layout::Create(
          {"test-model", {{"ssm", TensorKind::kRecurrent, {0, 1}, DType::kFloat32, {{"state", 8}}, {}, {}}}});
      other_layout_ = *Layout::Create(
          {"other-model", {{"ssm", TensorKind::kRecurrent, {0, 1}, DType::kFloat32, {{"state", 8}}, {}, {}}}});
    }
    ASSERT_TRUE(store_->RegisterLayout(op_, layout_, "m").ok());
    ASSERT_TRUE(store_->RegisterLayout(op_, other_layout_, "other").ok());
    store_->CheckInvariants();
  }
  // kill -9: what was written stays.
  void Crash() {
    store_.reset();
    Start();
  }
  void LosePower() {
    store_.reset();
    disk_.LosePower();
    Start();
  }
  void Stop() {
    ASSERT_TRUE(store_->Drain(op_).ok());
    Crash();
  }

  int64_t LiveImages() {
    MutexLock lock(&disk_.mu);
    return disk_.live_images;
  }

  static NameKey Seq(std::string name) { return {kDefaultTenant, NameKind::kSequence, std::move(name)}; }
  static NameKey Snap(std::string name) { return {kDefaultTenant, NameKind::kSnapshot, std::move(name)}; }

  // A state is told by one character.
  absl::StatusOr<NameInfo> Set(const std::string& name, int64_t position, char fill, NameOptions options = {},
                               std::optional<uint64_t> if_revision = {}, RequestId request = {}) {
    SetRequest set{name, "m", position, Exactness::kExact, if_revision, options, request};
    return SetRaw(set, std::string(layout_->state_bytes(), fill));
  }
  absl::StatusOr<NameInfo> SetRaw(const SetRequest& set, const std::string& bytes) {
    const absl::string_view piece(bytes);
    StateBytes state;
    state.pieces = {&piece, 1};
    absl::StatusOr<NameInfo> info = store_->Set(op_, set, state);
    store_->CheckInvariants();
    return info;
  }
  absl::StatusOr<PendingSet> BeginSet(const SetRequest& set, std::string attachment,
                                      std::optional<Checksum> expected_checksum) {
    absl::StatusOr<LayoutRef> layout = store_->LayoutOfSet(op_, set);
    if (!layout.ok()) return layout.status();
    return store_->BeginSet(op_, set, *layout, std::move(attachment), expected_checksum);
  }
  absl::StatusOr<char> Get(const NameKey& key, std::optional<int64_t> position = {}) {
    absl::StatusOr<GetAnswer> answer = store_->Get(op_, {key, position, ""});
    if (!answer.ok()) return answer.status();
    const absl::string_view bytes = answer->pin->bytes();
    EXPECT_EQ(bytes, std::string(layout_->state_bytes(), bytes[0]));
    EXPECT_EQ(answer->info.version.checksum, ChecksumOf(bytes));
    return bytes[0];
  }
  absl::StatusOr<ForkAnswer> Fork(const NameKey& source, std::vector<std::string> children, NameOptions options = {},
                                  RequestId request = {}) {
    absl::StatusOr<ForkAnswer> answer = store_->Fork(op_, {{source, {}, ""}, std::move(children), options, request});
    store_->CheckInvariants();
    return answer;
  }
  absl::StatusOr<bool> Delete(const NameKey& key) {
    absl::StatusOr<bool> deleted = store_->Delete(op_, {key, {}, false});
    store_->CheckInvariants();
    return deleted;
  }
  absl::StatusOr<PublishAnswer> Publish(const std::string& source, std::vector<uint32_t> tokens,
                                        NameOptions options = {}) {
    absl::StatusOr<PublishAnswer> answer =
        store_->PublishPrefix(op_, {"m", std::move(tokens), "", {Seq(source), {}, ""}, options});
    store_->CheckInvariants();
    return answer;
  }
  absl::StatusOr<MatchAnswer> Match(std::vector<uint32_t> tokens, std::optional<int64_t> max_position = {},
                                    uint32_t k = 1) {
    return store_->MatchPrefix(op_, {"m", std::move(tokens), "", max_position, k});
  }
  // An item of a batch that sets a state told by one character. Its bytes live as long as the test.
  BatchItem SetItemOf(const std::string& name, int64_t position, char fill, NameOptions options = {},
                      std::optional<uint64_t> if_revision = {}, RequestId request = {}) {
    const std::string& bytes = item_bytes_.emplace_back(layout_->state_bytes(), fill);
    const absl::string_view& piece = item_pieces_.emplace_back(bytes);
    StateBytes state;
    state.pieces = {&piece, 1};
    return SetItem{{name, "m", position, Exactness::kExact, if_revision, options, request}, state};
  }
  absl::StatusOr<std::vector<BatchResult>> Batch(const std::vector<BatchItem>& items, bool all_or_none = false) {
    absl::StatusOr<std::vector<BatchResult>> results = store_->Batch(op_, items, all_or_none);
    store_->CheckInvariants();
    return results;
  }
  void FlushDue() {
    store_->FlushDue();
    store_->CheckInvariants();
  }
  void Reap() {
    store_->ReapExpired();
    store_->CheckInvariants();
  }
  static NameOptions With(Durability durability) { return {durability, {}, {}, {}, false}; }
  static NameOptions Ttl(absl::Duration ttl) { return {{}, {}, ttl, {}, false}; }

  StoreOptions options_;
  ManualClock clock_;
  Op op_;
  FakeDisk disk_;
  std::unique_ptr<FakeImageStore> images_;
  std::unique_ptr<FakeNameLog> log_;
  std::unique_ptr<Store> store_;
  LayoutRef layout_, other_layout_;

 private:
  std::deque<std::string> item_bytes_;
  std::deque<absl::string_view> item_pieces_;
};

#define EXPECT_REASON(status_or, reason_) EXPECT_EQ(ReasonOf(StatusOf(status_or)), reason_)
inline const absl::Status& StatusOf(const absl::Status& s) { return s; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& s) {
  return s.status();
}

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_CORE_STORE_FIXTURE_H_
