// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Many threads over few names, with housekeeping beside them: what ThreadSanitizer runs. Each state tells which write
// it came from, so every read is checked; at the end the store agrees with itself and, after a power loss, with what
// was acknowledged as durable.
#include <random>
#include <thread>

#include "core/store_fixture.h"

namespace statepool {
namespace {

class StoreThreadsTest : public StoreTest {
 protected:
  void Contend();
};

void StoreThreadsTest::Contend() {
  constexpr int kThreads = 6, kSteps = 400, kNames = 5;
  constexpr unsigned kSeed = 7;
  SCOPED_TRACE(kSeed);
  std::atomic<bool> stop{false};
  std::atomic<int> reads{0}, writes{0}, forks{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(kSeed * 100 + static_cast<unsigned>(t));
      const auto name = [&] { return "n" + std::to_string(random() % kNames); };
      for (int i = 0; i < kSteps; ++i) {
        const Op op;
        const auto fill = static_cast<char>(random());
        const std::string bytes(layout_->state_bytes(), fill);
        const absl::string_view piece(bytes);
        StateBytes state;
        state.pieces = {&piece, 1};
        NameOptions options;
        options.durability = static_cast<Durability>(1 + random() % 3);
        options.max_history = 1 + random() % 3;
        switch (random() % 10) {
          case 0:
          case 1:
          case 2: {
            const auto info = store_->Set(op, {name(), "m", fill & 0x7f, Exactness::kExact, {}, options, {}}, state);
            ASSERT_TRUE(info.ok()) << info.status();
            ++writes;
            break;
          }
          case 3: {
            const auto fork = store_->Fork(
                op, {{Seq(name()), {}, ""}, {name() + "/" + std::to_string(t), name() + "/x"}, options, {}});
            if (fork.ok()) ++forks;
            break;
          }
          case 4: (void)store_->Delete(op, {Seq(random() % 2 ? name() : name() + "/x"), {}, true}); break;
          case 5: (void)store_->Rollback(op, {name(), static_cast<int64_t>(random() % 128), {}, {}}); break;
          case 6: {
            const TokenRange range(static_cast<int64_t>(random() % 128), -1);
            (void)store_->RemoveRange(op, {name(), range, {}, {}, false});
            (void)store_->Renumber(op, {name() + "/x", range, {.add = 1}, {}, {}});
            break;
          }
          default: {
            const auto answer = store_->Get(op, {Seq(name()), {}, ""});
            if (!answer.ok()) break;
            const absl::string_view got = answer->pin->bytes();
            ASSERT_EQ(got, std::string(got.size(), got[0]));
            ASSERT_EQ(answer->info.version.position, got[0] & 0x7f);
            ASSERT_EQ(answer->info.version.checksum, ChecksumOf(got));
            ++reads;
          }
        }
      }
    });
  }
  std::thread housekeeping([&] {
    while (!stop) {
      clock_.Advance(options_.write_behind.flush_interval);
      store_->FlushDue();
      store_->ReapExpired();
      store_->FoldIdle();
      store_->CheckInvariants();
      (void)store_->stats();
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  housekeeping.join();
  store_->CheckInvariants();
  EXPECT_GT(reads, 50);
  EXPECT_GT(writes, 300);
  EXPECT_GT(forks, 3);

  std::map<std::string, Revision> durable;
  std::map<std::string, int64_t> positions;
  const auto all = store_->List(op_, {NameKind::kSequence, "", 1000, ""});
  for (const NameInfo& info : all->names) {
    if (info.durable_revision != info.revision) continue;
    durable[info.key.name] = info.revision;
    positions[info.key.name] = info.version.position;
  }
  LosePower();
  for (const auto& [name, revision] : durable) {
    const auto info = store_->Describe(op_, Seq(name));
    ASSERT_TRUE(info.ok()) << name;
    EXPECT_EQ(info->revision, revision);
    EXPECT_EQ(info->version.position, positions[name]);
    const absl::StatusOr<char> fill = Get(Seq(name));
    ASSERT_TRUE(fill.ok()) << name;
    // One that was renumbered is not where its bytes say.
    if (info->version.exactness == Exactness::kExact) {
      EXPECT_EQ(*fill & 0x7f, positions[name]);
    }
  }
}

TEST_F(StoreThreadsTest, ReadersSeeWholeVersionsWhileWritersForksDeletesAndFlushesContend) { Contend(); }

TEST_F(StoreThreadsTest, AndWhileWhatIsRecordedIsFoldedAtOnce) {
  images_->cold_at_once = true;
  Contend();
}

TEST_F(StoreThreadsTest, OnlyOneOfManyWritersWinsACompareAndSet) {
  ASSERT_TRUE(Set("a", 0, 'x').ok());
  for (int round = 0; round < 50; ++round) {
    const Revision revision = store_->Describe(op_, Seq("a"))->revision;
    std::atomic<int> winners{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        const std::string bytes(layout_->state_bytes(), static_cast<char>('a' + t));
        const absl::string_view piece(bytes);
        StateBytes state;
        state.pieces = {&piece, 1};
        const Durability durability = t % 2 ? Durability::kSync : Durability::kWriteBehind;
        winners += store_->Set(Op{}, {"a", "m", t, Exactness::kExact, revision, With(durability), {}}, state).ok();
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(winners, 1);
    store_->CheckInvariants();
  }
}

// A retry may come while its first attempt is at any point of its way.
TEST_F(StoreThreadsTest, ARetryThatMeetsItsFirstAttemptGetsItsAnswer) {
  const std::string bytes(layout_->state_bytes(), 'x');
  const absl::string_view piece(bytes);
  StateBytes state;
  state.pieces = {&piece, 1};
  // Somebody who holds the lock for long makes them meet everywhere.
  std::vector<std::string> listed;
  for (int i = 0; i < 1000; ++i) listed.push_back("listed/" + std::to_string(i));
  ASSERT_TRUE(Set("listed", 1, 'x', With(Durability::kVolatile)).ok());
  ASSERT_TRUE(Fork(Seq("listed"), listed).ok());
  std::atomic<bool> stop{false};
  std::thread listing([&] {
    while (!stop) (void)store_->List(op_, {NameKind::kSequence, "listed/", 1000, ""});
  });
  std::atomic<int> others{0};
  for (int round = 0; round < 300 && others == 0; ++round) {
    const std::string name = "n" + std::to_string(round % 7);
    const auto before = store_->Describe(op_, Seq(name));
    const SetRequest request{
        name, "m", 1, Exactness::kExact, before.ok() ? before->revision : 0, With(Durability::kVolatile), {"r", 1}};
    SetRequest named = request;
    named.request.id += std::to_string(round);
    std::vector<Revision> revisions(3);
    std::vector<std::thread> threads;
    for (Revision& revision : revisions) {
      threads.emplace_back([&] {
        const auto info = store_->Set(Op{}, named, state);
        if (info.ok()) {
          revision = info->revision;
        } else {
          ++others;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(others, 0) << "in round " << round;
    EXPECT_EQ(revisions, std::vector<Revision>(3, revisions[0]));
  }
  stop = true;
  listing.join();
}

// What was written while an older state of its name is on its way to the disk waits outside the queue.
TEST_F(StoreThreadsTest, AFlushOfEverythingTakesWhatWasWrittenWhileItsNameWasBeingRecorded) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  clock_.Advance(options_.write_behind.flush_interval);
  ASSERT_TRUE(Set("later", 1, 'l').ok());
  Revision written = 0, durable = 0;
  std::atomic<int> commits{0};
  std::thread flusher;
  log_->before_commit = [&](absl::Span<const NameChange>) {
    switch (++commits) {
      case 1:  // of "a", as it was first
        written = Set("a", 2, 'y')->revision;
        flusher = std::thread([&] {
          EXPECT_TRUE(store_->Flush(op_, {}).ok());
          durable = store_->Describe(op_, Seq("a"))->durable_revision;
        });
        while (commits < 2) std::this_thread::yield();
        break;
      case 2:  // of "later", by the Flush
        while (store_->Describe(op_, Seq("a"))->durable_revision == 0) std::this_thread::yield();
        break;
    }
  };
  store_->FlushDue();
  flusher.join();
  EXPECT_EQ(durable, written);
}

TEST_F(StoreThreadsTest, AFlushOfANameTakesATtlThatWasSetWhileItWasBeingRecorded) {
  ASSERT_TRUE(Set("a", 1, 'x', With(Durability::kSync)).ok());
  ASSERT_TRUE(Set("a", 2, 'y', With(Durability::kWriteBehind)).ok());
  const std::vector<NameKey> a = {Seq("a")};
  ASSERT_TRUE(store_->Flush(op_, a).ok());
  ASSERT_TRUE(store_->SetTtl(op_, {a[0], Ttl(absl::Hours(1)), {}}).ok());
  clock_.Advance(options_.write_behind.flush_interval);
  clock_.SetTick(absl::Nanoseconds(1));
  std::atomic<bool> first{true};
  std::thread flusher;
  log_->before_commit = [&](absl::Span<const NameChange>) {
    if (!first.exchange(false)) return;
    ASSERT_TRUE(store_->SetTtl(op_, {a[0], Ttl(absl::Hours(2)), {}}).ok());
    const MonoTime before = clock_.Now();
    flusher = std::thread([&] { EXPECT_TRUE(store_->Flush(op_, a).ok()); });
    for (MonoTime looks = 1; clock_.Now() - before == looks; ++looks) std::this_thread::yield();
    // It has looked; when the lock is free it knows what it waits for.
    EXPECT_TRUE(store_->Describe(op_, a[0]).ok());
  };
  store_->FlushDue();
  flusher.join();
  Crash();
  EXPECT_EQ(store_->Describe(op_, a[0])->ttl, absl::Hours(2));
}

}  // namespace
}  // namespace statepool
