// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What follows when a GPU has done its copies, over copies whose end these tests decide.
#include "client/cpp/in_flight.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "client/fake_gpu.h"

namespace statepool::client {
namespace {

void Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000 && !condition(); ++i) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_TRUE(condition());
}

class InFlightTest : public testing::Test {
 protected:
  struct Begun {
    std::shared_ptr<FakeEnqueued> copies;
    std::shared_ptr<Storing> storing;
  };
  Begun Begin(const std::string& name, absl::flat_hash_set<uint32_t> rows, bool attended = true) {
    const auto copies = std::make_shared<FakeEnqueued>();
    const auto commit = [this, name](const absl::StatusOr<absl::Span<const LeafHash>>& hashes) -> Storing::Answer {
      const std::lock_guard lock(mu_);
      committed_.push_back(hashes.ok() ? name : name + " failed");
      if (!hashes.ok()) return hashes.status();
      v1::StoreResponse response;
      response.add_rows()->mutable_info()->mutable_name()->set_sequence(name);
      return response;
    };
    Begun begun{copies,
                std::make_shared<Storing>(std::move(rows), 1, std::make_unique<SharedEnqueued>(copies), commit)};
    in_flight_->Add(begun.storing, attended);
    return begun;
  }
  std::vector<std::string> Committed() {
    const std::lock_guard lock(mu_);
    return committed_;
  }
  // Copies of a load, and whether its pins are held.
  std::pair<std::shared_ptr<FakeEnqueued>, std::weak_ptr<const int>> Load() {
    const auto copies = std::make_shared<FakeEnqueued>();
    auto pins = std::make_shared<const int>(1);
    const std::weak_ptr<const int> held = pins;
    in_flight_->Hold(std::make_unique<SharedEnqueued>(copies), std::move(pins));
    return {copies, held};
  }

  std::mutex mu_;
  std::vector<std::string> committed_;
  std::unique_ptr<InFlight> in_flight_ = InFlight::Make();  // the last: its end commits
};

using Names = std::vector<std::string>;

TEST_F(InFlightTest, StoresAreCommittedInTheOrderInWhichTheyBeganWhoeverIsDoneFirst) {
  const Begun first = Begin("first", {0}), second = Begin("second", {1}), third = Begin("third", {2});
  third.copies->Fire();
  second.copies->Fire();
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(Committed(), Names{});
  EXPECT_FALSE(third.storing->is_over());
  first.copies->Fire();
  EXPECT_TRUE(third.storing->WaitUntilOver(absl::InfiniteFuture()));
  EXPECT_EQ(Committed(), (Names{"first", "second", "third"}));
  EXPECT_EQ(third.storing->answer()->rows(0).info().name().sequence(), "third");
}

TEST_F(InFlightTest, WhoWaitsCommitsWhatBeganBefore) {
  const Begun first = Begin("first", {0}, false), second = Begin("second", {1}, false), third = Begin("third", {2});
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(20));
    first.copies->Fire();
    second.copies->Fire();
  });
  in_flight_->FinishThrough(*second.storing);
  EXPECT_EQ(Committed(), (Names{"first", "second"}));
  EXPECT_TRUE(first.storing->is_over() && !third.storing->is_over());
  later.join();
  third.copies->Fire();
  EXPECT_TRUE(third.storing->WaitUntilOver(absl::InfiniteFuture()));
}

TEST_F(InFlightTest, AWaitMayBeForATime) {
  const Begun store = Begin("store", {0});
  EXPECT_FALSE(store.storing->WaitUntilOver(absl::Now() + absl::Milliseconds(10)));
  EXPECT_FALSE(store.storing->WaitUntilOver(absl::InfinitePast()));
  store.copies->Fire();
  EXPECT_TRUE(store.storing->WaitUntilOver(absl::Now() + absl::Seconds(10)));
}

TEST_F(InFlightTest, StoresOfSomeRowsAreFinishedWithThoseBeforeThem) {
  const Begun first = Begin("first", {0}), second = Begin("second", {1, 2}), third = Begin("third", {3});
  in_flight_->Finish({4, 5});
  EXPECT_EQ(Committed(), Names{});
  first.copies->Fire();
  second.copies->Fire();
  in_flight_->Finish({2, 9});
  EXPECT_EQ(Committed(), (Names{"first", "second"}));
  third.copies->Fire();
  in_flight_->Finish();
  EXPECT_EQ(Committed(), (Names{"first", "second", "third"}));
}

TEST_F(InFlightTest, CopiesThatFailedAreNotStored) {
  const Begun store = Begin("store", {0}), other = Begin("other", {1});
  store.copies->Fire(absl::InternalError("an illegal address"));
  other.copies->Fire();
  in_flight_->Finish();
  EXPECT_EQ(Committed(), (Names{"store failed", "other"}));
  EXPECT_EQ(store.storing->answer().status().message(), "an illegal address");
}

TEST_F(InFlightTest, PinsAreKeptUntilTheCopiesOfTheirLoadAreDone) {
  const auto [first, first_held] = Load();
  const auto [second, second_held] = Load();
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(first_held.expired() || second_held.expired());
  second->Fire();
  Eventually([&held = second_held] { return held.expired(); });
  in_flight_->Release();
  EXPECT_FALSE(first_held.expired());
  first->Fire();
  Eventually([&held = first_held] { return held.expired(); });
}

TEST_F(InFlightTest, AStoreThatWaitsDoesNotKeepPins) {
  const Begun store = Begin("store", {0});
  const auto [load, held] = Load();
  load->Fire();
  Eventually([&held = held] { return held.expired(); });
  EXPECT_FALSE(store.storing->is_over());
  store.copies->Fire();
}

TEST_F(InFlightTest, ItsEndWaitsForWhatBegan) {
  const Begun store = Begin("store", {0});
  const auto [load, held] = Load();
  std::atomic<bool> may_end = false;
  std::thread later([&, load = load] {
    absl::SleepFor(absl::Milliseconds(20));
    store.copies->Fire();
    absl::SleepFor(absl::Milliseconds(20));
    may_end = true;
    load->Fire();
  });
  in_flight_ = nullptr;
  EXPECT_TRUE(may_end && held.expired());
  EXPECT_EQ(Committed(), (Names{"store"}));
  later.join();
}

TEST_F(InFlightTest, ManyThreadsWaitForEachOthersStores) {
  constexpr int kThreads = 4, kStores = 50;
  std::vector<std::thread> threads;
  for (uint32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([this, thread] {
      for (int i = 0; i < kStores; ++i) {
        const Begun store = Begin("store", {thread}, i % 2 == 0);
        const auto [load, held] = Load();
        store.copies->Fire();
        load->Fire();
        if (i % 3 == 0) in_flight_->Finish({thread});
        in_flight_->Release();
        EXPECT_TRUE(i % 3 != 0 || store.storing->is_over());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  in_flight_->Finish();
  EXPECT_EQ(Committed().size(), size_t{kThreads * kStores});
}

}  // namespace
}  // namespace statepool::client
