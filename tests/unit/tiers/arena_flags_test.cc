// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Calls with flag words, over memory of each kind: rows are touched when their words say so, and nothing that a worker
// does or leaves undone holds up others.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <future>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/memory/arenas.h"
#include "tiers/device_arenas_fixture.h"
#include "tiers/memory_kinds.h"
#include "tiers/test_support.h"

namespace statepool {
namespace {

using std::chrono::milliseconds;

// Runs what it is given, each on a thread of its own, unless it is told to refuse.
class Threads {
 public:
  ~Threads() {
    for (std::thread& thread : threads_) thread.join();
  }
  absl::Status Run(absl::AnyInvocable<void()> task) {
    if (refuse.load() > 0) {
      --refuse;
      return absl::ResourceExhaustedError("full");
    }
    MutexLock lock(&mu_);
    threads_.emplace_back([task = std::move(task)]() mutable { task(); });
    return absl::OkStatus();
  }
  std::atomic<int> refuse{0};  // so many

 private:
  Mutex mu_;
  std::vector<std::thread> threads_;
};

// The words of an arena as its worker has them.
class WorkersWords {
 public:
  explicit WorkersWords(int fd)
      : words_(static_cast<uint32_t*>(mmap(nullptr, FlagWords::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0))) {
    close(fd);
  }
  ~WorkersWords() { munmap(words_, FlagWords::kBytes); }
  uint32_t Get(uint32_t word) const { return std::atomic_ref<uint32_t>(words_[word]).load(); }
  void Set(FlagValue to) { std::atomic_ref<uint32_t>(words_[to.word]).store(to.value); }
  bool Has(FlagValue value) const { return static_cast<int32_t>(Get(value.word) - value.value) >= 0; }
  bool Gets(FlagValue value) const {
    for (int i = 0; i < 5'000 && !Has(value); ++i) std::this_thread::sleep_for(milliseconds(1));
    return Has(value);
  }

 private:
  uint32_t* const words_;
};

// The worker is another process, which the words alone order with this one; ThreadSanitizer sees no order between two
// mappings of one memory.
#if defined(__SANITIZE_THREAD__)
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
class AsAnotherProcess {
 public:
  AsAnotherProcess() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~AsAnotherProcess() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
class AsAnotherProcess {
 public:
  AsAnotherProcess() {}
};
#endif

class ArenaFlagsTest : public DeviceArenasTest {
 protected:
  explicit ArenaFlagsTest(ArenaOptions options = {}) : DeviceArenasTest(options) {
    arenas_.GoOnWith([this](absl::AnyInvocable<void()> task) { return threads_->Run(std::move(task)); });
  }
  ~ArenaFlagsTest() override {
    arenas_.DrainFlags();
    threads_.reset();  // waits for what goes on
    EXPECT_EQ(arenas_.stats().flag_pinned_bytes, 0u);
    EXPECT_EQ(arenas_.stats().flag_waits, 0u);
    arenas_.CheckInvariants();
    residency_.CheckInvariants();
  }

  struct Flagged : Open {
    std::unique_ptr<WorkersWords> words;
  };
  Flagged OpenFlagged(uint32_t rows) {
    absl::StatusOr<OpenedArena> opened;
    Eventually([&] {  // arenas that died may still have their memory, until the keeper's next round
      clock_.Advance(absl::Milliseconds(1));
      opened = arenas_.Open({}, {"m", rows, 0, {.layers = View::Layers::kRowMajor}, "", /*with_flags=*/true});
      return !absl::IsResourceExhausted(opened.status());
    });
    EXPECT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->flag_words, FlagWords::kCount);
    absl::StatusOr<Arenas::Lease> lease = arenas_.Connect(opened->token);
    EXPECT_TRUE(lease.ok()) << lease.status();
    close(lease->fd);
    return {{opened->id, newest_memory_, opened->shape}, std::make_unique<WorkersWords>(lease->flags_fd)};
  }

  // The worker's hands on its rows.
  std::string BytesOfArena(const Open& arena) {
    const AsAnotherProcess worker;
    return DeviceArenasTest::BytesOfArena(arena);
  }
  std::string RowOf(const Open& arena, uint32_t row) {
    const AsAnotherProcess worker;
    return DeviceArenasTest::RowOf(arena, row);
  }
  void SetRow(const Open& arena, uint32_t row, const std::string& state) {
    const AsAnotherProcess worker;
    DeviceArenasTest::SetRow(arena, row, state);
  }

  template <typename Answer>
  using Later = std::future<absl::StatusOr<Answer>>;
  template <typename Answer>
  static std::pair<Arenas::Answered<Answer>, Later<Answer>> Promise() {
    auto answer = std::make_shared<std::promise<absl::StatusOr<Answer>>>();
    Later<Answer> later = answer->get_future();
    return {[answer](absl::StatusOr<Answer> got) { answer->set_value(std::move(got)); }, std::move(later)};
  }
  static StoreItem ToStore(uint32_t row, const std::string& name, int64_t position, bool whole_row = true) {
    StoreItem item;
    item.row = row;
    item.set.sequence = name;
    item.set.position = position;
    item.whole_row = whole_row;
    return item;
  }
  static LoadItem ToLoad(uint32_t row, const std::string& name) {
    LoadItem item;
    item.row = row;
    item.source = {Key(name), std::nullopt, ""};
    return item;
  }
  Later<StoreAnswer> StoreWith(const Open& arena, const CallFlags& flags, std::vector<StoreItem> items,
                               const Op& op = {}) {
    auto [answered, later] = Promise<StoreAnswer>();
    arenas_.Store(op, arena.id, std::move(items), /*all_or_none=*/false, flags, std::move(answered));
    return std::move(later);
  }
  Later<LoadAnswer> LoadWith(const Open& arena, const CallFlags& flags, std::vector<LoadItem> items,
                             const Op& op = {}) {
    auto [answered, later] = Promise<LoadAnswer>();
    arenas_.Load(op, arena.id, std::move(items), flags, std::move(answered));
    return std::move(later);
  }
  Later<AdvanceAnswer> AdvanceWith(const Open& arena, const CallFlags& flags, std::vector<AdvanceItem> items,
                                   const Op& op = {}) {
    auto [answered, later] = Promise<AdvanceAnswer>();
    arenas_.Advance(op, arena.id, {std::move(items)}, flags, std::move(answered));
    return std::move(later);
  }
  template <typename Answer>
  static absl::Status StatusOf(Later<Answer> later) {
    if (later.wait_for(std::chrono::seconds(20)) != std::future_status::ready)
      return absl::InternalError("it was not answered");
    const absl::StatusOr<Answer> answer = later.get();
    if (!answer.ok()) return answer.status();
    for (const auto& row : answer->rows) {
      if (!row.status.ok()) return row.status;
    }
    return absl::OkStatus();
  }
  template <typename Answer>
  static bool IsAnswered(const Later<Answer>& later, milliseconds within = milliseconds(0)) {
    return later.wait_for(within) == std::future_status::ready;
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    for (int i = 0; i < 5'000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(milliseconds(1));
    }
    return false;
  }
  Op Within(absl::Duration time) const {
    Op op;
    op.deadline = After(clock_.Now(), time);
    return op;
  }
  std::string State(uint64_t seed) const { return MakeBytes(layout_->state_bytes(), seed); }

  std::unique_ptr<Threads> threads_ = std::make_unique<Threads>();
};
INSTANTIATE_TEST_SUITE_P(Memory, ArenaFlagsTest, AllMemories(), MemoryKindName);

TEST_P(ArenaFlagsTest, AStoreALoadAndAStoreOfARowAreInTheOrderOfTheirWords) {
  const Flagged arena = OpenFlagged(2);
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  SetRow(arena, 0, State(1));
  Later<StoreAnswer> first = StoreWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToStore(0, "a", 5)});
  Later<LoadAnswer> second = LoadWith(arena, {FlagValue{3, 1}, FlagValue{4, 1}}, {ToLoad(0, "b")});
  Later<StoreAnswer> third = StoreWith(arena, {FlagValue{5, 1}, FlagValue{6, 1}}, {ToStore(0, "b", 6, false)});
  const absl::StatusOr<LoadAnswer> loaded = second.get();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->rows[0].info.version.position, 1);
  EXPECT_TRUE(loaded->rows[0].copied);
  EXPECT_FALSE(IsAnswered(first, milliseconds(20)));
  EXPECT_TRUE(RowOf(arena, 0) == State(1));
  EXPECT_EQ(arenas_.stats().flag_waits, 3u);

  arena.words->Set({1, 1});
  ASSERT_TRUE(arena.words->Gets({2, 1}));
  EXPECT_EQ(StatusOf(std::move(first)), absl::OkStatus());
  EXPECT_TRUE(Get("a") == State(1));
  SetRow(arena, 0, State(9));  // which nobody stored
  EXPECT_FALSE(arena.words->Has({4, 1}));
  arena.words->Set({3, 1});
  ASSERT_TRUE(arena.words->Gets({4, 1}));
  EXPECT_TRUE(RowOf(arena, 0) == State(2));
  SetRow(arena, 0, State(3));
  EXPECT_FALSE(IsAnswered(third, milliseconds(5)));
  arena.words->Set({5, 1});
  EXPECT_EQ(StatusOf(std::move(third)), absl::OkStatus()) << "on the revision that was loaded";
  EXPECT_TRUE(arena.words->Has({6, 1}));
  EXPECT_TRUE(Get("b") == State(3));
  EXPECT_EQ(arena.words->Get(FlagWords::kFailures), 0u);
}

TEST_P(ArenaFlagsTest, ALoadThatWaitsDoesNotHoldUpTheStoreThatItsStreamWaitsFor) {
  const Flagged arena = OpenFlagged(2);
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  SetRow(arena, 0, State(1));
  // The stream comes to the load when the store is done.
  EXPECT_EQ(StatusOf(LoadWith(arena, {FlagValue{3, 1}, FlagValue{4, 1}}, {ToLoad(0, "b")})), absl::OkStatus());
  EXPECT_EQ(StatusOf(StoreWith(arena, {std::nullopt, FlagValue{2, 1}}, {ToStore(0, "a", 5)})), absl::OkStatus());
  EXPECT_EQ(Store(arena, 0, "without words", 5), absl::OkStatus());
  EXPECT_EQ(Load(arena, 1, "b"), absl::OkStatus());
  EXPECT_TRUE(arena.words->Has({2, 1}));
  EXPECT_FALSE(arena.words->Has({4, 1}));
  arena.words->Set({3, 1});
  ASSERT_TRUE(arena.words->Gets({4, 1}));
  EXPECT_TRUE(Get("a") == State(1) && RowOf(arena, 0) == State(2));
}

TEST_P(ArenaFlagsTest, WhatIsReachedAlreadyIsDoneAtOnce) {
  const Flagged arena = OpenFlagged(2);
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  arena.words->Set({1, 8});
  EXPECT_EQ(StatusOf(LoadWith(arena, {FlagValue{1, 7}, FlagValue{2, 1}}, {ToLoad(0, "b")})), absl::OkStatus());
  ASSERT_TRUE(arena.words->Gets({2, 1}));
  EXPECT_TRUE(RowOf(arena, 0) == State(2));
  EXPECT_EQ(StatusOf(LoadWith(arena, {std::nullopt, FlagValue{2, 2}}, {ToLoad(1, "b")})), absl::OkStatus());
  ASSERT_TRUE(arena.words->Gets({2, 2}));
  EXPECT_TRUE(RowOf(arena, 1) == State(2));
  EXPECT_EQ(StatusOf(StoreWith(arena, {FlagValue{1, 8}, std::nullopt}, {ToStore(1, "b", 2, false)})), absl::OkStatus());
}

TEST_P(ArenaFlagsTest, WhoSeesDoneFindsWhatWasLoadedInEveryRow) {
  constexpr uint32_t kRows = 6;
  const Flagged arena = OpenFlagged(kRows);
  std::vector<LoadItem> items;
  for (uint32_t row = 0; row < kRows; ++row) items.push_back(ToLoad(row, "b"));
  for (uint32_t i = 1; i <= 200; ++i) {
    ASSERT_TRUE(Set("b", i, State(i)).ok());
    ASSERT_EQ(StatusOf(LoadWith(arena, {FlagValue{1, i}, FlagValue{2, i}}, items)), absl::OkStatus());
    arena.words->Set({1, i});
    while (!arena.words->Has({2, i})) {
    }
    const std::string bytes = BytesOfArena(arena);
    for (const uint32_t row : {kRows - 1, 0u}) {
      std::string state(layout_->state_bytes(), 0);
      arena.shape->plan.Scatter(bytes.data(), row, 1, 0, state.size(), state.data(), CopyHint::kCached);
      ASSERT_TRUE(state == State(i)) << "row " << row << ", round " << i;
    }
  }
}

TEST_P(ArenaFlagsTest, ALoadWithoutDoneWaitsAndIsThenAsAlways) {
  const Flagged arena = OpenFlagged(1);
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  Later<LoadAnswer> load = LoadWith(arena, {FlagValue{1, 1}, std::nullopt}, {ToLoad(0, "b")});
  EXPECT_FALSE(IsAnswered(load, milliseconds(10)));
  ASSERT_TRUE(Set("b", 2, State(3)).ok());
  arena.words->Set({1, 1});
  EXPECT_EQ(StatusOf(std::move(load)), absl::OkStatus());
  EXPECT_TRUE(RowOf(arena, 0) == State(3)) << "it is looked up when the word is reached";
}

TEST_P(ArenaFlagsTest, CallsThatAreReachedTogetherAreInTheOrderInWhichTheyWereMade) {
  const Flagged arena = OpenFlagged(1);
  SetRow(arena, 0, State(1));
  threads_->refuse = 2;  // no thread for them at first
  std::vector<Later<StoreAnswer>> stores;
  for (int i = 0; i < 20; ++i) {
    StoreItem item = ToStore(0, "a", i);
    if (i > 0) item.whole_row = false;  // each on the revision of the one before
    stores.push_back(StoreWith(arena, {FlagValue{1, 1}, FlagValue{2u + i, 1}}, {item}));
  }
  arena.words->Set({1, 1});
  uint64_t revision = 0;
  for (Later<StoreAnswer>& store : stores) {
    const absl::StatusOr<StoreAnswer> answer = store.get();
    ASSERT_TRUE(answer.ok() && answer->rows[0].status.ok()) << answer.status();
    EXPECT_GT(answer->rows[0].info.revision, revision);
    revision = answer->rows[0].info.revision;
  }
  for (uint32_t i = 0; i < 20; ++i) EXPECT_TRUE(arena.words->Has({2 + i, 1}));
}

TEST_P(ArenaFlagsTest, AStoreWhoseWordIsNotReachedByItsDeadlineStoresNothing) {
  const Flagged arena = OpenFlagged(1);
  Later<StoreAnswer> store =
      StoreWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToStore(0, "a", 5)}, Within(absl::Seconds(3)));
  EXPECT_FALSE(IsAnswered(store, milliseconds(10)));
  clock_.Advance(absl::Seconds(4));
  EXPECT_EQ(ReasonOf(StatusOf(std::move(store))), "DEADLINE");
  EXPECT_TRUE(arena.words->Has({2, 1}));
  arena.words->Set({1, 1});
  EXPECT_EQ(ReasonOf(store_.Get({}, {Key("a"), std::nullopt, ""}).status()), "NEVER_CREATED");

  std::atomic<bool> cancelled{false};
  Op op;
  op.cancelled = &cancelled;
  store = StoreWith(arena, {FlagValue{1, 2}, FlagValue{2, 2}}, {ToStore(0, "a", 5)}, op);
  EXPECT_FALSE(IsAnswered(store, milliseconds(5)));
  cancelled = true;
  EXPECT_EQ(ReasonOf(StatusOf(std::move(store))), "CANCELLED");
  EXPECT_TRUE(arena.words->Has({2, 2}));
}

TEST_P(ArenaFlagsTest, RowsOfALoadThatFailedAfterItsAnswerHaveNoBase) {
  const Flagged arena = OpenFlagged(3);
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  ASSERT_EQ(Load(arena, 0, "b"), absl::OkStatus());
  ASSERT_EQ(Load(arena, 1, "b"), absl::OkStatus());
  uint32_t failures = 0;
  // By its own deadline, and by what the daemon waits at most.
  for (const Op& op : {Within(absl::Seconds(3)), Op()}) {
    const uint32_t value = ++failures;
    ASSERT_EQ(
        StatusOf(LoadWith(arena, {FlagValue{1, value}, FlagValue{2, value}}, {ToLoad(0, "b"), ToLoad(2, "b")}, op)),
        absl::OkStatus());
    EXPECT_GT(arenas_.stats().flag_pinned_bytes, 0u);
    EXPECT_FALSE(arena.words->Has({2, value}));
    clock_.Advance(op.deadline == kNever ? absl::Seconds(61) : absl::Seconds(4));
    ASSERT_TRUE(arena.words->Gets({2, value}));
    EXPECT_EQ(arena.words->Get(FlagWords::kFailures), failures) << "counted before `done` is set";
    EXPECT_EQ(arenas_.stats().late_failures, failures);
    EXPECT_TRUE(Eventually([&] { return arenas_.stats().flag_pinned_bytes == 0; }));
    const auto store = [&](uint32_t row, bool whole) {
      return StatusOf(
          StoreWith(arena, {std::nullopt, FlagValue{3, value}}, {ToStore(row, absl::StrCat(row), 2, whole)}));
    };
    EXPECT_EQ(ReasonOf(store(0, false)), "ROW_NOT_LOADED");
    EXPECT_EQ(ReasonOf(store(2, false)), "ROW_NOT_LOADED");
    EXPECT_EQ(store(1, false), absl::OkStatus()) << "another row";
    EXPECT_EQ(store(0, true), absl::OkStatus());
    ASSERT_EQ(Load(arena, 0, "b"), absl::OkStatus());
    EXPECT_EQ(store(0, false), absl::OkStatus());
  }
}

TEST_P(ArenaFlagsTest, AnAdvanceIsAnsweredAtOnceAndMovesWhenItsWordIsReached) {
  const Flagged arena = OpenFlagged(3);
  SetRow(arena, 0, State(1));
  SetRow(arena, 1, State(2));
  const AdvanceItem to_row_1 = {0, 1, {}, 1};
  ASSERT_EQ(StatusOf(AdvanceWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {to_row_1})), absl::OkStatus());
  EXPECT_FALSE(arena.words->Has({2, 1}));
  EXPECT_TRUE(RowOf(arena, 1) == State(2));
  SetRow(arena, 0, State(3));  // what the stream does before it comes there
  arena.words->Set({1, 1});
  ASSERT_TRUE(arena.words->Gets({2, 1}));
  EXPECT_TRUE(RowOf(arena, 1) == State(3));
  EXPECT_EQ(arena.words->Get(FlagWords::kFailures), 0u);

  // Without `done` it is answered when it has moved; what is wrong with it sets the word at once.
  SetRow(arena, 0, State(4));
  Later<AdvanceAnswer> later = AdvanceWith(arena, {FlagValue{1, 2}, std::nullopt}, {to_row_1});
  EXPECT_FALSE(IsAnswered(later, milliseconds(10)));
  arena.words->Set({1, 2});
  EXPECT_EQ(StatusOf(std::move(later)), absl::OkStatus());
  EXPECT_TRUE(RowOf(arena, 1) == State(4));
  EXPECT_EQ(ReasonOf(StatusOf(AdvanceWith(arena, {FlagValue{1, 9}, FlagValue{2, 2}}, {{3, 1, {}, {}}}))),
            "ROW_OUT_OF_RANGE");
  EXPECT_TRUE(arena.words->Has({2, 2}));
  EXPECT_EQ(ReasonOf(StatusOf(AdvanceWith(arena, {FlagValue{1, 9}, FlagValue{2, 3}}, {{0, 2, {}, {}}}))),
            "INVALID_ACCEPTED_LENGTH");
  EXPECT_TRUE(arena.words->Has({2, 3})) << "there is nothing to wait for";
}

TEST_P(ArenaFlagsTest, AnAdvanceThatIsRepeatedAfterItsAnswerMovesNothingAndAnothersIdSpoilsItsRowAlone) {
  const Flagged arena = OpenFlagged(4);
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  for (uint32_t row = 0; row < 4; ++row) ASSERT_EQ(Load(arena, row, "b"), absl::OkStatus());
  uint32_t done = 0;
  const auto advance = [&](std::vector<AdvanceItem> items) {
    AdvanceRequest request{std::move(items), {}, "once"};
    auto [answered, later] = Promise<AdvanceAnswer>();
    arenas_.Advance({}, arena.id, std::move(request), {std::nullopt, FlagValue{2, ++done}}, std::move(answered));
    EXPECT_EQ(StatusOf(std::move(later)), absl::OkStatus());
    ASSERT_TRUE(arena.words->Gets({2, done}));
  };
  SetRow(arena, 0, State(3));
  advance({{0, 1, {}, 1}});
  EXPECT_TRUE(RowOf(arena, 1) == State(3));
  SetRow(arena, 0, State(4));
  advance({{0, 1, {}, 1}});
  EXPECT_TRUE(RowOf(arena, 1) == State(3));
  EXPECT_EQ(arena.words->Get(FlagWords::kFailures), 0u);
  advance({{2, 1, {}, 1}, {0, 1, {}, 3}});
  EXPECT_TRUE(RowOf(arena, 1) == State(3));
  EXPECT_TRUE(RowOf(arena, 3) == State(4));
  EXPECT_EQ(arena.words->Get(FlagWords::kFailures), 1u);
  const auto store = [&](uint32_t row) {
    return ReasonOf(StatusOf(StoreWith(arena, {std::nullopt, FlagValue{3, 1}}, {ToStore(row, "c", 2, false)})));
  };
  EXPECT_EQ(store(1), "ROW_NOT_LOADED");
  EXPECT_EQ(store(3), "");
}

TEST_P(ArenaFlagsTest, RowsOfAnAdvanceThatFailedAfterItsAnswerHaveNoBase) {
  const Flagged arena = OpenFlagged(2);
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  ASSERT_EQ(Load(arena, 0, "b"), absl::OkStatus());
  ASSERT_EQ(Load(arena, 1, "b"), absl::OkStatus());
  ASSERT_EQ(StatusOf(AdvanceWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {{1, 1, {}, 0}}, Within(absl::Seconds(3)))),
            absl::OkStatus());
  clock_.Advance(absl::Seconds(4));
  ASSERT_TRUE(arena.words->Gets({2, 1}));
  EXPECT_EQ(arena.words->Get(FlagWords::kFailures), 1u) << "counted before `done` is set";
  const auto store = [&](uint32_t row) {
    return ReasonOf(StatusOf(StoreWith(arena, {std::nullopt, FlagValue{3, 1}}, {ToStore(row, "c", 2, false)})));
  };
  EXPECT_EQ(store(0), "ROW_NOT_LOADED");
  EXPECT_EQ(store(1), "") << "the row that was to be read";
}

TEST_P(ArenaFlagsTest, TheEndOfALeaseEndsWhatWaits) {
  for (const bool hangs_up : {true, false}) {
    const Flagged arena = OpenFlagged(2);
    const Flagged other = OpenFlagged(1);
    ASSERT_TRUE(Set("b", 1, State(2)).ok());
    Later<StoreAnswer> store = StoreWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToStore(0, "a", 5)});
    ASSERT_EQ(StatusOf(LoadWith(arena, {FlagValue{1, 1}, FlagValue{3, 1}}, {ToLoad(1, "b")})), absl::OkStatus());
    Later<StoreAnswer> others = StoreWith(other, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToStore(0, "c", 5)});
    if (hangs_up) {
      arenas_.ProcessGone(arena.id);
    } else {
      EXPECT_EQ(arenas_.Close({}, arena.id), absl::OkStatus());
      arenas_.ProcessGone(arena.id);
    }
    EXPECT_EQ(ReasonOf(StatusOf(std::move(store))), "ARENA_UNKNOWN");
    EXPECT_TRUE(arena.words->Gets({2, 1}) && arena.words->Gets({3, 1}));
    EXPECT_TRUE(Eventually([&] { return arenas_.IsGone(arena.id) && arenas_.stats().flag_pinned_bytes == 0; }));
    EXPECT_FALSE(IsAnswered(others, milliseconds(5)));
    other.words->Set({1, 1});
    EXPECT_EQ(StatusOf(std::move(others)), absl::OkStatus());
    EXPECT_EQ(ReasonOf(store_.Get({}, {Key("a"), std::nullopt, ""}).status()), "NEVER_CREATED");
    arenas_.ProcessGone(other.id);
  }
}

TEST_P(ArenaFlagsTest, WhatWaitsWhenTheDaemonStopsIsToldSo) {
  const Flagged arena = OpenFlagged(2);
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  Later<StoreAnswer> store = StoreWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToStore(0, "a", 5)});
  ASSERT_EQ(StatusOf(LoadWith(arena, {FlagValue{1, 1}, FlagValue{3, 1}}, {ToLoad(1, "b")})), absl::OkStatus());
  arenas_.DrainFlags();
  ASSERT_TRUE(IsAnswered(store)) << "before it returns";
  EXPECT_EQ(ReasonOf(StatusOf(std::move(store))), "DRAINING");
  EXPECT_TRUE(arena.words->Has({2, 1}) && arena.words->Has({3, 1}));
  EXPECT_EQ(arena.words->Get(FlagWords::kFailures), 1u);
  EXPECT_EQ(ReasonOf(StatusOf(LoadWith(arena, {FlagValue{1, 1}, FlagValue{4, 1}}, {ToLoad(1, "b")}))), "DRAINING");
  EXPECT_TRUE(arena.words->Has({4, 1}));
  EXPECT_EQ(arena.words->Get(FlagWords::kFailures), 1u) << "it was not answered";
  EXPECT_EQ(Load(arena, 1, "b"), absl::OkStatus());
}

TEST_P(ArenaFlagsTest, WhatHadNoThreadWhenTheDaemonStopsIsDone) {
  const Flagged arena = OpenFlagged(1);
  threads_->refuse = 1'000'000;
  Later<StoreAnswer> store = StoreWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToStore(0, "a", 5)});
  arena.words->Set({1, 1});
  EXPECT_TRUE(Eventually([&] { return threads_->refuse < 1'000'000; }));
  EXPECT_FALSE(IsAnswered(store));
  arenas_.DrainFlags();
  EXPECT_EQ(StatusOf(std::move(store)), absl::OkStatus());
}

TEST_P(ArenaFlagsTest, ItemsThatFailSetDoneWithTheAnswer) {
  const Flagged arena = OpenFlagged(2);
  EXPECT_EQ(ReasonOf(StatusOf(LoadWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToLoad(0, "none")}))),
            "NEVER_CREATED");
  EXPECT_TRUE(arena.words->Has({2, 1})) << "nothing is copied, so there is nothing to wait for";
  EXPECT_EQ(ReasonOf(StatusOf(LoadWith(arena, {FlagValue{1, 1}, FlagValue{2, 2}}, {ToLoad(7, "none")}))),
            "ROW_OUT_OF_RANGE");
  EXPECT_TRUE(arena.words->Has({2, 2}));
  EXPECT_EQ(ReasonOf(StatusOf(StoreWith(arena, {std::nullopt, FlagValue{2, 3}}, {ToStore(0, "a", 1, false)}))),
            "ROW_NOT_LOADED");
  EXPECT_TRUE(arena.words->Has({2, 3}));
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  const absl::StatusOr<LoadAnswer> some =
      LoadWith(arena, {std::nullopt, FlagValue{2, 4}}, {ToLoad(0, "none"), ToLoad(1, "b")}).get();
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ(ReasonOf(some->rows[0].status), "NEVER_CREATED");
  EXPECT_EQ(some->rows[1].status, absl::OkStatus());
  ASSERT_TRUE(arena.words->Gets({2, 4}));
  EXPECT_TRUE(RowOf(arena, 1) == State(2));
}

TEST_P(ArenaFlagsTest, WordsThatAreNotTheWorkersAreRefused) {
  const Flagged arena = OpenFlagged(1);
  for (const FlagValue bad : {FlagValue{0, 1}, FlagValue{FlagWords::kCount, 1}, FlagValue{0xffffffff, 1}}) {
    absl::Status status = StatusOf(LoadWith(arena, {bad, FlagValue{1, 1}}, {ToLoad(0, "b")}));
    EXPECT_EQ(ReasonOf(status), "INVALID_OPTION");
    EXPECT_EQ(GetErrorDetail(status).field, "after.word");
    status = StatusOf(StoreWith(arena, {FlagValue{1, 1}, bad}, {ToStore(0, "a", 1)}));
    EXPECT_EQ(GetErrorDetail(status).field, "done.word");
  }
  const Open without = OpenArena(1);
  const absl::Status status = StatusOf(StoreWith(without, {FlagValue{1, 1}, std::nullopt}, {ToStore(0, "a", 1)}));
  EXPECT_EQ(ReasonOf(status), "INVALID_OPTION");
  EXPECT_EQ(GetErrorDetail(status).field, "after");
  absl::StatusOr<OpenedArena> opened = arenas_.Open({}, {"m", 1, 0, {}, "", /*with_flags=*/true});
  EXPECT_EQ(ReasonOf(StatusOf(LoadWith({opened->id, nullptr, nullptr}, {FlagValue{1, 1}, {}}, {ToLoad(0, "b")}))),
            "ARENA_NOT_CONNECTED");
  EXPECT_EQ(ReasonOf(StatusOf(LoadWith({"none", nullptr, nullptr}, {FlagValue{1, 1}, {}}, {ToLoad(0, "b")}))),
            "ARENA_UNKNOWN");
}

TEST_P(ArenaFlagsTest, AnArenaHasSoManyCallsThatWaitAndOthersGoOn) {
  const Flagged arena = OpenFlagged(1), other = OpenFlagged(1);
  std::vector<Later<StoreAnswer>> stores;
  const uint32_t limit = arenas_.options().max_arena_flag_waits;
  for (uint32_t i = 0; i < limit; ++i)
    stores.push_back(StoreWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToStore(0, absl::StrCat("a/", i), 5)}));
  const absl::Status status = StatusOf(StoreWith(arena, {FlagValue{1, 1}, FlagValue{3, 1}}, {ToStore(0, "x", 5)}));
  EXPECT_EQ(ReasonOf(status), "QUEUE_FULL");
  EXPECT_GT(GetErrorDetail(status).retry_after, absl::ZeroDuration());
  EXPECT_TRUE(arena.words->Has({3, 1}));
  other.words->Set({1, 1});
  EXPECT_EQ(StatusOf(StoreWith(other, {FlagValue{1, 1}, FlagValue{3, 1}}, {ToStore(0, "x", 5)})), absl::OkStatus());
  EXPECT_EQ(Store(arena, 0, "y", 5), absl::OkStatus());
  arena.words->Set({1, 1});
  for (Later<StoreAnswer>& store : stores) EXPECT_EQ(StatusOf(std::move(store)), absl::OkStatus());
}

#ifndef STATEPOOL_GPU_TESTS  // a FarDevice can be told to fail
TEST_P(ArenaFlagsTest, ADeviceThatFailsEndsWhatWaits) {
  if (memory_.far() == nullptr) GTEST_SKIP() << "the host does not fail";
  const Flagged arena = OpenFlagged(2);
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  ASSERT_EQ(StatusOf(LoadWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToLoad(1, "b")})), absl::OkStatus());
  Later<StoreAnswer> store = StoreWith(arena, {FlagValue{1, 1}, FlagValue{3, 1}}, {ToStore(0, "a", 5)});
  for (size_t i = 0; i < memory_.devices().size(); ++i) memory_.far(i)->Fail();
  arena.words->Set({1, 1});
  const std::string reason = ReasonOf(StatusOf(std::move(store)));
  EXPECT_TRUE(reason == "DEVICE_FAILED" || reason == "ARENA_UNKNOWN") << reason;
  EXPECT_TRUE(arena.words->Gets({2, 1}) && arena.words->Has({3, 1}));
  EXPECT_EQ(arena.words->Get(FlagWords::kFailures), 1u);
}
#endif

class ArenaFlagLimitsTest : public ArenaFlagsTest {
 protected:
  // Two states may be pinned.
  ArenaFlagLimitsTest() : ArenaFlagsTest({.max_pinned_bytes = 30'000, .max_flag_waits = 4}) {}
};
INSTANTIATE_TEST_SUITE_P(Memory, ArenaFlagLimitsTest, OneMemory(), MemoryKindName);

TEST_P(ArenaFlagLimitsTest, LoadsThatWereAnsweredPinSoMuchTogether) {
  ASSERT_GT(30'000u, 2 * layout_->state_bytes());
  ASSERT_LT(30'000u, 3 * layout_->state_bytes());
  const Flagged arena = OpenFlagged(4), other = OpenFlagged(1);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Set(absl::StrCat(i), 1, State(i)).ok());
  absl::Status status =
      StatusOf(LoadWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToLoad(0, "0"), ToLoad(1, "1"), ToLoad(2, "2")}));
  EXPECT_EQ(ReasonOf(status), "LOAD_TOO_LARGE");
  EXPECT_EQ(GetErrorDetail(status).retry_after, absl::ZeroDuration());
  EXPECT_TRUE(arena.words->Has({2, 1}));
  EXPECT_EQ(arenas_.stats().flag_pinned_bytes, 0u);
  EXPECT_EQ(StatusOf(LoadWith(arena, {FlagValue{1, 1}, FlagValue{2, 2}},
                              {ToLoad(0, "0"), ToLoad(1, "1"), ToLoad(2, "1"), ToLoad(3, "0")})),
            absl::OkStatus())
      << "two states in four rows";
  EXPECT_EQ(arenas_.stats().flag_pinned_bytes, 2 * layout_->state_bytes());
  status = StatusOf(LoadWith(other, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToLoad(0, "2")}));
  EXPECT_EQ(ReasonOf(status), "TOO_MUCH_PINNED");
  EXPECT_GT(GetErrorDetail(status).retry_after, absl::ZeroDuration());
  EXPECT_EQ(Load(other, 0, "2"), absl::OkStatus()) << "without words";
  arena.words->Set({1, 1});
  ASSERT_TRUE(arena.words->Gets({2, 2}));
  ASSERT_TRUE(Eventually([&] { return arenas_.stats().flag_pinned_bytes == 0; }));
  EXPECT_TRUE(RowOf(arena, 2) == State(1) && RowOf(arena, 3) == State(0));
  EXPECT_EQ(StatusOf(LoadWith(other, {FlagValue{1, 0}, FlagValue{2, 2}}, {ToLoad(0, "2")})), absl::OkStatus());
  EXPECT_TRUE(other.words->Gets({2, 2}));
}

TEST_P(ArenaFlagLimitsTest, SoManyCallsWaitOnAllArenas) {
  const Flagged arena = OpenFlagged(1), other = OpenFlagged(1);
  std::vector<Later<StoreAnswer>> stores;
  for (uint32_t i = 0; i < 4; ++i)
    stores.push_back(StoreWith(arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToStore(0, absl::StrCat("a/", i), 5)}));
  EXPECT_EQ(ReasonOf(StatusOf(StoreWith(other, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToStore(0, "x", 5)}))),
            "QUEUE_FULL");
  EXPECT_TRUE(other.words->Has({2, 1}));
  ASSERT_TRUE(Set("b", 1, State(2)).ok());
  EXPECT_EQ(ReasonOf(StatusOf(LoadWith(other, {FlagValue{1, 1}, FlagValue{2, 2}}, {ToLoad(0, "b")}))), "QUEUE_FULL");
  EXPECT_TRUE(other.words->Has({2, 2}));
  EXPECT_EQ(other.words->Get(FlagWords::kFailures), 0u);
  EXPECT_EQ(arenas_.stats().flag_pinned_bytes, 0u);
  arena.words->Set({1, 1});
  for (Later<StoreAnswer>& store : stores) EXPECT_EQ(StatusOf(std::move(store)), absl::OkStatus());
}

// What a worker's GPU does: pieces of work one after the other, among them words that are written and waited for.
class Stream {
 public:
  ~Stream() { Synchronize(); }
  void Enqueue(std::function<void()> piece) {
    MutexLock lock(&mu_);
    work_.push_back(std::move(piece));
    changed_.SignalAll();
  }
  void Synchronize() {
    MutexLock lock(&mu_);
    while (!work_.empty()) changed_.Wait(&mu_);
  }
  // Does its work, until Stop.
  void Run() {
    MutexLock lock(&mu_);
    for (;;) {
      while (work_.empty() && !stopping_) changed_.Wait(&mu_);
      if (work_.empty()) return;
      {
        const std::function<void()> piece = work_.front();
        MutexUnlock unlock(&mu_);
        piece();
      }
      work_.pop_front();
      changed_.SignalAll();
    }
  }
  void Stop() {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool stopping_ = false;
  std::deque<std::function<void()>> work_;
};

TEST_P(ArenaFlagsTest, RandomWorkOfSeveralWorkersIsInTheOrderOfTheirStreamsWhileOthersDie) {
  constexpr int kWorkers = 3, kRows = 2, kSteps = 120;
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;
  Mutex opening;  // newest_memory_
  for (int w = 0; w < kWorkers; ++w) {
    workers.emplace_back([&, w] {
      std::mt19937_64 random(seed + w);
      std::unique_ptr<Flagged> arena;
      {
        MutexLock lock(&opening);
        arena = std::make_unique<Flagged>(OpenFlagged(kRows));
      }
      Stream stream;
      std::thread gpu([&] { stream.Run(); });
      std::map<uint32_t, std::string> rows;                          // what the row will hold, as the stream goes
      std::map<std::string, std::pair<int64_t, std::string>> names;  // what is stored
      uint32_t next = 0;
      const auto begin = [&] {  // a call's words
        const FlagValue after{1 + 2 * (next % 100), 1 + next / 100}, done{after.word + 1, after.value};
        ++next;
        stream.Enqueue([&arena, after] { arena->words->Set(after); });
        return CallFlags{after, done};
      };
      const auto follow = [&](const CallFlags& flags) {
        stream.Enqueue([&, done = *flags.done] { EXPECT_TRUE(arena->words->Gets(done)); });
      };
      std::vector<Later<StoreAnswer>> stores;
      for (int i = 0; i < kSteps; ++i) {
        const auto row = static_cast<uint32_t>(random() % kRows);
        const std::string name = absl::StrCat(w, "/", row);
        switch (random() % 4) {
          case 0: {
            const std::string state = State(random());
            rows[row] = state;
            stream.Enqueue([this, &arena, row, state] { SetRow(*arena, row, state); });
            break;
          }
          case 1: {
            if (!rows.contains(row)) break;
            const CallFlags flags = begin();
            follow(flags);
            StoreItem item = ToStore(row, name, i);
            item.any_revision = true;
            stores.push_back(StoreWith(*arena, flags, {item}));
            names[name] = {i, rows[row]};
            break;
          }
          case 2: {
            if (!names.contains(name)) break;
            for (Later<StoreAnswer>& store : stores) EXPECT_EQ(StatusOf(std::move(store)), absl::OkStatus());
            stores.clear();
            const CallFlags flags = begin();
            EXPECT_EQ(StatusOf(LoadWith(*arena, flags, {ToLoad(row, name)})), absl::OkStatus());
            follow(flags);
            rows[row] = names[name].second;
            break;
          }
          default:
            if (!rows.contains(row)) break;
            stream.Enqueue([this, &arena, row, state = rows[row]] { EXPECT_TRUE(RowOf(*arena, row) == state); });
        }
      }
      stream.Synchronize();
      for (Later<StoreAnswer>& store : stores) EXPECT_EQ(StatusOf(std::move(store)), absl::OkStatus());
      for (const auto& [name, stored] : names) EXPECT_TRUE(Get(name) == stored.second);
      EXPECT_EQ(arena->words->Get(FlagWords::kFailures), 0u);
      stream.Stop();
      gpu.join();
      arenas_.ProcessGone(arena->id);
    });
  }
  std::thread dying([&] {
    for (int i = 0; !stop; ++i) {
      std::unique_ptr<Flagged> arena;
      {
        MutexLock lock(&opening);
        arena = std::make_unique<Flagged>(OpenFlagged(1));
      }
      const std::string name = absl::StrCat("dying/", i % 3);
      ASSERT_TRUE(Set(name, i, State(i)).ok());
      const absl::Status loaded = StatusOf(LoadWith(*arena, {FlagValue{1, 1}, FlagValue{2, 1}}, {ToLoad(0, name)}));
      Later<StoreAnswer> store = StoreWith(*arena, {FlagValue{1, 1}, FlagValue{3, 1}}, {ToStore(0, "dying", 1)});
      const bool reached = i % 2 == 0;
      if (reached) arena->words->Set({1, 1});
      arenas_.ProcessGone(arena->id);
      EXPECT_EQ(loaded, absl::OkStatus());
      const absl::Status stored = StatusOf(std::move(store));
      EXPECT_TRUE(ReasonOf(stored) == "ARENA_UNKNOWN" || (reached && stored.ok())) << stored;
      EXPECT_TRUE(arena->words->Gets({2, 1}) && arena->words->Gets({3, 1}));
    }
  });
  for (std::thread& worker : workers) worker.join();
  stop = true;
  dying.join();
}

}  // namespace
}  // namespace statepool
