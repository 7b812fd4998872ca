// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Direct loads and stores of the C++ client's arenas on a GPU, over a made-up one: the FarDevice of the daemon at
// $STATEPOOL_SERVER (--direct, metrics at $STATEPOOL_METRICS), mapped as the host's memory, and streams that do what
// they were told when a test lets them. Real ones: tests/gpu/client_test.cc. test_cpp_client.py starts a daemon and
// runs this; with $STATEPOOL_RESTARTS it kills the daemon and starts it anew whenever a line "restart" comes from here,
// and answers with a line.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/cpp/arena.h"
#include "client/cpp/errors.h"
#include "client/cpp/statepool.h"
#include "client/fake_gpu.h"

namespace statepool::client {
namespace {

std::string ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason; }

void Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000 && !condition(); ++i) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_TRUE(condition());
}

// Slots that direct leases have: "pinned" or "granted".
int Slots(absl::string_view state) {
  const std::vector<std::string> address = absl::StrSplit(std::getenv("STATEPOOL_METRICS"), ':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  int port = 0;
  if (!absl::SimpleAtoi(address.back(), &port)) return -1;
  to.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, address.front().c_str(), &to.sin_addr);
  const Descriptor socket(::socket(AF_INET, SOCK_STREAM, 0));
  const std::string request = "GET /metrics HTTP/1.0\r\nHost: x\r\nConnection: close\r\n\r\n";
  if (connect(socket.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0 ||
      send(socket.get(), request.data(), request.size(), 0) < 0) {
    return -1;
  }
  std::string text;
  char some[65536];
  for (ssize_t size; (size = recv(socket.get(), some, sizeof some, 0)) > 0;) text.append(some, some + size);
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    double number = 0;
    if (absl::StartsWith(line, absl::StrCat("statepool_direct_slots{state=\"", state, "\"} ")) &&
        absl::SimpleAtod(std::vector<absl::string_view>(absl::StrSplit(line, ' ')).back(), &number))
      return static_cast<int>(number);
  }
  return -1;
}

class CppGpuCopiesTest : public testing::Test {
 protected:
  CppGpuCopiesTest() {
    SetGpu("far", gpu_);
    v1::Layout layout;
    layout.set_model_id("gpu-copies");
    for (const auto& [name, kind] : {std::pair{"conv", v1::CONV}, {"ssm", v1::RECURRENT}}) {
      v1::TensorSpec& tensor = *layout.add_tensors();
      tensor.set_name(name);
      tensor.set_kind(kind);
      for (uint32_t layer = 0; layer < 3; ++layer) tensor.add_layers(layer);
      tensor.set_dtype(kind == v1::CONV ? v1::BFLOAT16 : v1::FLOAT32);
      for (const auto& [axis, size] :
           kind == v1::CONV ? std::vector<std::pair<std::string, uint64_t>>{{"tap", 3}, {"c", 33}}
                            : std::vector<std::pair<std::string, uint64_t>>{{"h", 4}, {"k", 125}, {"v", 131}}) {
        tensor.add_axes()->set_name(axis);
        tensor.mutable_axes()->rbegin()->set_size(size);
      }
    }
    pool_ = Connect();
    const auto info = pool_->RegisterLayout(layout, "gpu-copies");
    EXPECT_TRUE(info.ok()) << info.status();
    state_bytes_ = info.ok() ? info->state_bytes() : 0;
    arena_ = Open(RowMajor(4));
  }
  ~CppGpuCopiesTest() override {
    for (FakeStream* stream : {&gpu_->legacy, &other_}) {
      stream->is_captured = false;
      stream->Open();
    }
    arena_ = nullptr;
    pool_.reset();
    EXPECT_EQ(gpu_->unmapped_in_use(), 0);
    SetGpu("far", nullptr);
  }

  static std::optional<Pool> Connect(int max_attempts = 3) {
    Options options;
    options.direct = true;
    options.max_attempts = max_attempts;
    absl::StatusOr<Pool> pool = Pool::Connect(std::getenv("STATEPOOL_SERVER"), options);
    EXPECT_TRUE(pool.ok()) << pool.status();
    return *std::move(pool);
  }
  // A row is a state, in one piece.
  static ArenaOptions RowMajor(uint32_t rows, bool direct = true) {
    ArenaOptions options{.rows = rows, .direct = direct};
    options.view.set_layers(v1::View::ROW_MAJOR);
    return options;
  }
  std::unique_ptr<Arena> Open(const ArenaOptions& options) const {
    absl::StatusOr<std::unique_ptr<Arena>> arena = pool_->OpenArena("gpu-copies", options);
    EXPECT_TRUE(arena.ok()) << arena.status();
    if (!arena.ok()) return nullptr;
    EXPECT_EQ((*arena)->device(), "far");
    return *std::move(arena);
  }

  std::string Image(uint32_t seed) const {
    std::mt19937 random(seed);
    std::string bytes(state_bytes_, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    return bytes;
  }
  static std::string Name(absl::string_view suffix = "") {
    return absl::StrCat(testing::UnitTest::GetInstance()->current_test_info()->name(), suffix);
  }
  void Set(const std::string& name, const std::string& state, int64_t position = 1) const {
    const auto info = pool_->Set(name, "gpu-copies", position, state);
    EXPECT_TRUE(info.ok()) << info.status();
  }
  std::string Get(const std::string& name) const {
    const auto state = pool_->Get(SequenceRef(name));
    return state.ok() ? absl::StrJoin(state->pieces(), "") : ReasonOf(state.status());
  }
  // A row of an arena with rows in one piece: a state.
  char* Row(uint32_t row) const {
    const ArenaTensor& tensor = arena_->tensors().front();
    return static_cast<char*>(tensor.data) + row * tensor.strides[0];
  }
  std::string Read(uint32_t row) const { return std::string(Row(row), state_bytes_); }
  // In the order of the stream.
  void Write(uint32_t row, const std::string& state, FakeStream* stream = nullptr) {
    (stream == nullptr ? gpu_->legacy : *stream).Enqueue([to = Row(row), state] {
      std::memcpy(to, state.data(), state.size());
    });
  }
  static v1::StoreItem Whole(uint32_t row, const std::string& name, int64_t position) {
    v1::StoreItem item = StoreRow(row, name, position);
    item.set_whole_row(true);
    item.set_any_revision(true);
    return item;
  }
  PendingStore Begin(const v1::StoreItem& item, FakeStream* stream = nullptr) const {
    absl::StatusOr<PendingStore> begun =
        arena_->StoreAsync({item}, /*all_or_none=*/false, {}, stream == nullptr ? nullptr : stream->handle());
    EXPECT_TRUE(begun.ok()) << begun.status();
    return *std::move(begun);
  }
  // The error of the call, or of its only item.
  static absl::Status StatusOf(const absl::StatusOr<StoreAnswer>& answer) {
    return !answer.ok() ? answer.status() : answer->rows.size() == 1 ? answer->rows[0].status() : absl::OkStatus();
  }
  static void Restart() {
    std::puts("restart");
    std::fflush(stdout);
    ASSERT_NE(std::getchar(), EOF);
  }

  const std::shared_ptr<FakeGpu> gpu_ = std::make_shared<FakeGpu>();
  FakeStream other_, of_row_[4];
  std::optional<Pool> pool_;
  uint64_t state_bytes_ = 0;
  std::unique_ptr<Arena> arena_;
};

TEST_F(CppGpuCopiesTest, ALoadReturnsBeforeItsCopiesAndKeepsItsPinsUntilTheyAreDone) {
  Set(Name(), Image(1));
  gpu_->legacy.Hold();
  const auto loaded = arena_->Load({LoadRow(0, SequenceRef(Name())), LoadRow(2, SequenceRef(Name()))});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE(loaded->rows[1]->copied() && !loaded->rows[1]->has_slot());
  EXPECT_EQ(loaded->copy_time, absl::ZeroDuration());
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(Slots("pinned"), 1);
  EXPECT_NE(Read(0), Image(1));
  gpu_->legacy.Open();
  gpu_->legacy.Synchronize();
  EXPECT_EQ(Read(0), Image(1));
  EXPECT_EQ(Read(2), Image(1));
  Eventually([] { return Slots("pinned") == 0; });
}

TEST_F(CppGpuCopiesTest, WhatIsWrittenAfterAStoreBeganIsNotStored) {
  gpu_->legacy.Hold();
  std::vector<PendingStore> stores;
  for (uint32_t i = 0; i < 3; ++i) {
    Write(0, Image(i));
    stores.push_back(Begin(Whole(0, Name(absl::StrCat("/", i)), i)));
  }
  Write(0, Image(99));
  EXPECT_FALSE(stores[0].done());
  EXPECT_EQ(ReasonOf(stores[0].Wait(absl::Milliseconds(10)).status()), "NOT_DONE_YET");
  EXPECT_EQ(Get(Name("/0")), "NEVER_CREATED");
  gpu_->legacy.Open();
  const auto last = stores[2].Wait();
  ASSERT_TRUE(last.ok() && last->rows[0].ok()) << StatusOf(last);
  EXPECT_TRUE(last->done && last->rows[0]->position() == 2 && stores[0].done());
  for (int i = 0; i < 2; ++i) EXPECT_EQ(stores[0].Wait(absl::ZeroDuration())->rows[0]->position(), 0);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(Get(Name(absl::StrCat("/", i))), Image(i));
}

TEST_F(CppGpuCopiesTest, StoresOfOneRowAreCommittedInTheirOrderByWhoeverComes) {
  std::optional<PendingStore> last;
  for (uint32_t i = 0; i < 30; ++i) {
    Write(1, Image(i));
    v1::StoreItem item = StoreRow(1, Name(), i);  // each on the revision of the one before
    item.set_whole_row(i == 0);
    last = Begin(item);
    EXPECT_TRUE(i % 7 != 0 || StatusOf(last->Wait()).ok());
  }
  Eventually([&] { return last->done(); });
  EXPECT_EQ(last->Wait()->rows[0]->position(), 29);
  EXPECT_EQ(Get(Name()), Image(29));
}

TEST_F(CppGpuCopiesTest, ALoadIntoARowThatIsBeingStoredComesAfterTheStore) {
  Set(Name("/b"), Image(2));
  gpu_->legacy.Hold();
  Write(0, Image(1));
  const PendingStore store = Begin(Whole(0, Name("/a"), 1));
  ASSERT_TRUE(arena_->Load({LoadRow(1, SequenceRef(Name("/b")))}).ok());  // another row
  EXPECT_FALSE(store.done());
  std::jthread later([this] {
    absl::SleepFor(absl::Milliseconds(100));
    gpu_->legacy.Open();
  });
  ASSERT_TRUE(arena_->Load({LoadRow(0, SequenceRef(Name("/b")))}).ok());
  EXPECT_TRUE(store.done());
  later.join();
  // The daemon knows what the row holds now.
  v1::LoadItem same = LoadRow(0, SequenceRef(Name("/b")));
  same.set_row_unmodified(true);
  EXPECT_FALSE(arena_->Load({same})->rows[0]->copied());
  *same.mutable_name() = SequenceRef(Name("/a"));
  EXPECT_TRUE(arena_->Load({same})->rows[0]->copied());
  gpu_->legacy.Synchronize();
  EXPECT_EQ(Read(0), Image(1));
  EXPECT_EQ(Read(1), Image(2));
}

TEST_F(CppGpuCopiesTest, AnAdvanceIsInTheOrderOfTheStream) {
  Write(0, Image(1), &other_);
  Write(1, Image(2), &other_);
  other_.Synchronize();
  other_.Hold();
  Write(0, Image(3), &other_);
  v1::AdvanceItem item = AdvanceRow(0, 1);
  item.set_to_row(1);
  const auto moved = arena_->Advance({item, AdvanceRow(2, 1)}, {}, {}, other_.handle());
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(*moved->rows[0], v1::AdvancedRow::MOVED);
  EXPECT_EQ(*moved->rows[1], v1::AdvancedRow::IN_PLACE);
  Write(0, Image(4), &other_);  // what the stream does afterwards
  EXPECT_EQ(Read(1), Image(2));
  other_.Open();
  other_.Synchronize();
  EXPECT_EQ(Read(1), Image(3));
  EXPECT_EQ(Read(0), Image(4));
  // The daemon does not know that row 1 is not what was loaded there.
  Set(Name("/a"), Image(5));
  ASSERT_TRUE(arena_->Load({LoadRow(1, SequenceRef(Name("/a")))}).ok());
  ASSERT_TRUE(arena_->Advance({item}).ok());
  v1::LoadItem same = LoadRow(1, SequenceRef(Name("/a")));
  same.set_row_unmodified(true);
  EXPECT_TRUE(arena_->Load({same})->rows[0]->copied());
  gpu_->refuses_copies = true;
  EXPECT_EQ(ReasonOf(arena_->Advance({item}).status()), "GPU_FAILED");
  gpu_->refuses_copies = false;
}

TEST_F(CppGpuCopiesTest, AStoreWhoseHandleIsDroppedIsCommitted) {
  Write(1, Image(5));
  (void)Begin(Whole(1, Name(), 1));
  Eventually([this] { return pool_->Describe(SequenceRef(Name())).ok(); });
  EXPECT_EQ(Get(Name()), Image(5));
}

TEST_F(CppGpuCopiesTest, ErrorsOfItemsComeWithWaitAndAllOrNoneIsKept) {
  Set(Name(), Image(1));
  v1::StoreItem stale = StoreRow(0, Name(), 2), fine = Whole(1, Name("/fine"), 2);
  stale.set_whole_row(true);
  stale.set_if_revision(0);
  const auto some = arena_->StoreAsync({stale, fine})->Wait();
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ(ReasonOf(some->rows[0].status()), "REVISION_MISMATCH");
  EXPECT_TRUE(some->done && some->rows[1].ok());
  fine.set_sequence(Name("/none"));
  const auto none = arena_->StoreAsync({stale, fine}, /*all_or_none=*/true)->Wait();
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->done);
  EXPECT_EQ(ReasonOf(none->rows[1].status()), "BATCH_ABORTED");
  EXPECT_EQ(Get(Name("/none")), "NEVER_CREATED");
  EXPECT_EQ(ReasonOf(arena_->StoreAsync({Whole(7, Name(), 2)})->Wait().status()), "ROW_OUT_OF_RANGE");
  EXPECT_EQ(ReasonOf(arena_->StoreAsync({})->Wait().status()), "MISSING_FIELD");
}

TEST_F(CppGpuCopiesTest, ABaseRevisionIsCheckedAndAnAttachmentIsLeftToTheDaemon) {
  Set(Name(), Image(1));
  ASSERT_TRUE(arena_->Load({LoadRow(0, SequenceRef(Name()))}).ok());
  v1::StoreItem item = StoreRow(0, Name(), 2);
  item.set_attachment("logits");
  const PendingStore store = Begin(item);
  EXPECT_TRUE(store.done());
  ASSERT_TRUE(StatusOf(store.Wait()).ok()) << StatusOf(store.Wait());
  EXPECT_EQ(pool_->Get(SequenceRef(Name()))->attachment(), "logits");
  Set(Name(), Image(3), 3);
  EXPECT_EQ(ReasonOf(StatusOf(arena_->Store({StoreRow(0, Name(), 4)}))), "REVISION_MISMATCH");
  EXPECT_EQ(ReasonOf(StatusOf(arena_->Store({StoreRow(3, Name(), 4)}))), "ROW_NOT_LOADED");
}

TEST_F(CppGpuCopiesTest, AStoreThatTheDaemonCopiesComesAfterThoseThatBeganBefore) {
  gpu_->legacy.Hold();
  Write(0, Image(1));
  const PendingStore first = Begin(Whole(0, Name(), 1));
  Write(1, Image(2), &other_);
  std::jthread later([this] {
    absl::SleepFor(absl::Milliseconds(100));
    gpu_->legacy.Open();
  });
  v1::StoreItem item = Whole(1, Name(), 2);
  item.set_attachment("logits");
  const PendingStore second = Begin(item, &other_);
  EXPECT_TRUE(first.done() && second.done());
  later.join();
  EXPECT_EQ(pool_->Describe(SequenceRef(Name()))->position(), 2);
  EXPECT_EQ(Get(Name()), Image(2));
}

TEST_F(CppGpuCopiesTest, TheDaemonCopiesWhenTheStreamIsDone) {
  arena_ = Open(RowMajor(2, /*direct=*/false));
  ASSERT_NE(arena_, nullptr);
  Set(Name("/in"), Image(1));
  for (const bool is_load : {false, true}) {
    gpu_->legacy.Hold();
    Write(0, Image(2));
    const std::jthread later([this] {
      absl::SleepFor(absl::Milliseconds(100));
      gpu_->legacy.Open();
    });
    if (is_load) {
      EXPECT_TRUE(arena_->Load({LoadRow(0, SequenceRef(Name("/in")))}).ok());
      gpu_->legacy.Synchronize();
      EXPECT_TRUE(Read(0) == Image(1)) << "what the stream was told before is done before";
    } else {
      const PendingStore store = Begin(Whole(0, Name("/out"), 1));
      EXPECT_TRUE(store.done() && StatusOf(store.Wait()).ok());
      EXPECT_TRUE(Get(Name("/out")) == Image(2));
    }
  }
}

TEST_F(CppGpuCopiesTest, AnotherThreadIsToldThatTheContentsAreGone) {
  std::promise<void> is_known, is_reopened;
  std::string reasons[3];
  std::jthread other([&] {
    EXPECT_TRUE(StatusOf(arena_->Store({Whole(0, Name(), 1)}, false, {}, other_.handle())).ok());
    is_known.set_value();
    is_reopened.get_future().wait();
    reasons[0] = ReasonOf(StatusOf(Begin(Whole(0, Name(), 2), &other_).Wait()));
    reasons[1] = ReasonOf(StatusOf(Begin(Whole(0, Name(), 3), &other_).Wait()));
    reasons[2] = absl::StrCat(other_.enqueued());
  });
  is_known.get_future().wait();
  const uint64_t before = other_.enqueued();
  EXPECT_TRUE(arena_->Reopen().ok());
  is_reopened.set_value();
  other.join();
  EXPECT_EQ(reasons[0], "CONTENTS_GONE");
  EXPECT_EQ(reasons[1], "") << "once";
  EXPECT_EQ(reasons[2], absl::StrCat(before + 2)) << "one copy, and its event";
  EXPECT_EQ(pool_->Describe(SequenceRef(Name()))->position(), 3);
}

TEST_F(CppGpuCopiesTest, AStreamThatIsGivenIsTheOne) {
  gpu_->legacy.Hold();
  Write(0, Image(4), &other_);
  ASSERT_TRUE(StatusOf(arena_->Store({Whole(0, Name(), 1)}, false, {}, other_.handle())).ok());
  ASSERT_TRUE(arena_->Load({LoadRow(1, SequenceRef(Name()))}, {}, other_.handle()).ok());
  other_.Synchronize();
  EXPECT_EQ(Read(1), Image(4));
  EXPECT_EQ(Get(Name()), Image(4));
  EXPECT_EQ(gpu_->legacy.enqueued(), 0u);
}

TEST_F(CppGpuCopiesTest, AStreamThatIsCapturedIsRefusedBeforeAnythingIsAskedFor) {
  Set(Name(), Image(1));
  gpu_->legacy.is_captured = true;
  const std::unique_ptr<Arena> isolated = Open(RowMajor(2, /*direct=*/false));
  for (const std::unique_ptr<Arena>& arena : {std::cref(arena_), std::cref(isolated)}) {
    EXPECT_EQ(ReasonOf(arena->Load({LoadRow(0, SequenceRef(Name()))}).status()), "STREAM_CAPTURING");
    EXPECT_EQ(ReasonOf(arena->Store({Whole(0, Name(), 2)}).status()), "STREAM_CAPTURING");
    EXPECT_EQ(ReasonOf(arena->StoreAsync({Whole(0, Name(), 2)}).status()), "STREAM_CAPTURING");
  }
  EXPECT_EQ(gpu_->legacy.enqueued(), 0u);
  EXPECT_EQ(Slots("pinned"), 0);
  ASSERT_TRUE(arena_->Load({LoadRow(0, SequenceRef(Name()))}, {}, other_.handle()).ok());
  other_.Synchronize();
  EXPECT_EQ(Read(0), Image(1));
}

TEST_F(CppGpuCopiesTest, ACopyThatTheGpuRefusesStoresNothingAndGivesEverythingBack) {
  Set(Name("/in"), Image(1));
  gpu_->refuses_copies = true;
  EXPECT_EQ(ReasonOf(StatusOf(arena_->StoreAsync({Whole(0, Name(), 1)})->Wait())), "GPU_FAILED");
  EXPECT_EQ(ReasonOf(StatusOf(arena_->Store({Whole(0, Name(), 1)}))), "GPU_FAILED");
  EXPECT_EQ(ReasonOf(arena_->Load({LoadRow(1, SequenceRef(Name("/in")))}).status()), "GPU_FAILED");
  gpu_->refuses_copies = false;
  EXPECT_EQ(Get(Name()), "NEVER_CREATED");
  Eventually([] { return Slots("granted") == 0 && Slots("pinned") == 0; });
  // To the daemon the row holds it; here it does not.
  std::memset(Row(1), 0, state_bytes_);
  v1::LoadItem same = LoadRow(1, SequenceRef(Name("/in")));
  same.set_row_unmodified(true);
  EXPECT_TRUE(arena_->Load({same})->rows[0]->copied());
  gpu_->legacy.Synchronize();
  EXPECT_EQ(Read(1), Image(1));
}

TEST_F(CppGpuCopiesTest, SlotsOfAStoreWhoseCopiesFailedGoBack) {
  gpu_->fails_next_event = true;
  EXPECT_EQ(ReasonOf(StatusOf(arena_->StoreAsync({Whole(0, Name(), 1)})->Wait())), "GPU_FAILED");
  EXPECT_EQ(Get(Name()), "NEVER_CREATED");
  Eventually([] { return Slots("granted") == 0; });
}

TEST_F(CppGpuCopiesTest, SlotsOfACallThatIsRefusedGoBack) {
  const std::vector<v1::StoreItem> twice = {Whole(0, Name("/a"), 1), Whole(0, Name("/b"), 1)};
  EXPECT_EQ(ReasonOf(arena_->StoreAsync(twice)->Wait().status()), "DUPLICATE_ROW");
  EXPECT_EQ(ReasonOf(arena_->Store(twice).status()), "DUPLICATE_ROW");
  Eventually([] { return Slots("granted") == 0; });
  EXPECT_TRUE(StatusOf(arena_->Store({Whole(0, Name("/a"), 1)})).ok());
}

TEST_F(CppGpuCopiesTest, EachViewGivesTheStatesThatTheDaemonsCopiesGive) {
  Set(Name("/in"), Image(1));
  for (const auto layers : {v1::View::PER_LAYER, v1::View::LAYER_MAJOR, v1::View::ROW_MAJOR}) {
    ArenaOptions options{.rows = 3, .steps = 2};
    options.view.set_layers(layers);
    options.view.set_conv_padding(1);
    options.view.set_num_spec(2);
    v1::AxisOrder& order = *options.view.add_axis_orders();
    order.set_tensor("ssm");
    for (const char* axis : {"v", "h", "k"}) order.add_axes(axis);
    std::vector<std::string> seen[2];
    for (const bool direct : {false, true}) {
      options.direct = direct;
      const std::unique_ptr<Arena> arena = Open(options);
      ASSERT_NE(arena, nullptr);
      char* const begin = static_cast<char*>(arena->tensors().front().data);
      const size_t bytes = arena->bytes() - 4096;
      std::memset(begin, 0x55, bytes);
      const uint64_t before = gpu_->legacy.enqueued();
      const auto loaded = arena->Load({LoadRow(2, SequenceRef(Name("/in"))), LoadRow(0, SequenceRef(Name("/nobody")))});
      EXPECT_EQ(gpu_->legacy.enqueued() > before, direct);
      ASSERT_TRUE(loaded.ok() && loaded->rows[0].ok()) << loaded.status();
      EXPECT_EQ(ReasonOf(loaded->rows[1].status()), "NEVER_CREATED");
      gpu_->legacy.Synchronize();
      seen[direct].emplace_back(begin, bytes);
      for (const uint32_t accepted : {1u, 2u}) {
        const std::string name = Name(absl::StrCat("/", layers, direct, accepted));
        v1::StoreItem item = Whole(2, name, 5);
        item.set_accepted_length(accepted);
        ASSERT_TRUE(StatusOf(arena->Store({item})).ok());
        seen[direct].push_back(Get(name));
      }
      v1::StoreItem wrong = Whole(2, Name("/wrong"), 5);
      wrong.set_accepted_length(3);
      EXPECT_EQ(ReasonOf(StatusOf(arena->Store({wrong}))), "INVALID_ACCEPTED_LENGTH");
    }
    EXPECT_TRUE(seen[0] == seen[1]) << layers;
    EXPECT_TRUE(seen[0][1] == Image(1) && seen[0][2] != Image(1));
  }
}

TEST_F(CppGpuCopiesTest, CloseFinishesWhatBegan) {
  Set(Name("/other"), Image(8));
  Write(0, Image(7));
  const PendingStore store = Begin(Whole(0, Name(), 1));
  ASSERT_TRUE(arena_->Load({LoadRow(1, SequenceRef(Name("/other")))}).ok());
  arena_->Close();
  EXPECT_TRUE(store.done());
  EXPECT_EQ(store.Wait()->rows[0]->position(), 1);
  EXPECT_EQ(Get(Name()), Image(7));
  Eventually([] { return Slots("pinned") == 0; });
  EXPECT_EQ(ReasonOf(arena_->StoreAsync({Whole(0, Name(), 2)})->Wait().status()), "ARENA_CLOSED");
  EXPECT_EQ(ReasonOf(arena_->Load({LoadRow(1, SequenceRef(Name("/other")))}).status()), "ARENA_CLOSED");
}

TEST_F(CppGpuCopiesTest, ReopenFinishesWhatBeganAndTheAddressesStay) {
  char* const row = Row(0);
  Write(0, Image(7));
  const PendingStore store = Begin(Whole(0, Name(), 1));
  ASSERT_TRUE(arena_->Reopen().ok());
  EXPECT_TRUE(StatusOf(store.Wait()).ok());
  EXPECT_EQ(Row(0), row);
  EXPECT_EQ(Read(0), std::string(state_bytes_, '\0'));
  ASSERT_TRUE(arena_->Load({LoadRow(1, SequenceRef(Name()))}).ok());
  gpu_->legacy.Synchronize();
  EXPECT_EQ(Read(1), Image(7));
}

TEST_F(CppGpuCopiesTest, NothingIsEnqueuedOverRowsThatAreNotMapped) {
  Set(Name("/in"), Image(1));
  gpu_->refuses_memory = true;
  EXPECT_EQ(ReasonOf(arena_->Reopen()), "MAPPING_FAILED");
  EXPECT_EQ(ReasonOf(arena_->StoreAsync({Whole(0, Name(), 1)})->Wait().status()), "MAPPING_FAILED");
  EXPECT_EQ(ReasonOf(arena_->Store({Whole(0, Name(), 1)}).status()), "MAPPING_FAILED");
  EXPECT_EQ(ReasonOf(arena_->Load({LoadRow(0, SequenceRef(Name("/in")))}).status()), "MAPPING_FAILED");
  EXPECT_EQ(gpu_->legacy.enqueued(), 0u);
  gpu_->refuses_memory = false;
  EXPECT_EQ(ReasonOf(arena_->Load({LoadRow(0, SequenceRef(Name("/in")))}).status()), "CONTENTS_GONE");
  ASSERT_TRUE(arena_->Load({LoadRow(0, SequenceRef(Name("/in")))}).ok());
  EXPECT_TRUE(StatusOf(Begin(StoreRow(0, Name(), 1)).Wait()).ok());
  EXPECT_EQ(Get(Name()), Image(1));
}

TEST_F(CppGpuCopiesTest, AnArenaThatIsDroppedFinishesWhatBegan) {
  Set(Name("/in"), Image(1));
  for (int i = 0; i < 5; ++i) {
    const std::unique_ptr<Arena> arena = Open(RowMajor(2));
    ASSERT_NE(arena, nullptr);
    ASSERT_TRUE(arena->Load({LoadRow(0, SequenceRef(Name("/in")))}).ok());
    (void)arena->StoreAsync({StoreRow(0, Name(absl::StrCat("/", i)), 1)});
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Get(Name(absl::StrCat("/", i))), Image(1));
}

TEST_F(CppGpuCopiesTest, GetsAndSetsLeaveTheLeaseOut) {
  ASSERT_TRUE(StatusOf(arena_->Store({Whole(0, Name("/first"), 1)})).ok());
  Set(Name(), Image(3));
  const auto view = pool_->GetView(SequenceRef(Name()));
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->bytes(), Image(3));
  EXPECT_EQ(Slots("pinned"), 0);
}

TEST_F(CppGpuCopiesTest, ThreadsShareAnArena) {
  std::vector<std::thread> threads;
  for (uint32_t row = 0; row < 4; ++row) {
    threads.emplace_back([this, row] {
      FakeStream* const stream = &of_row_[row];
      const std::string name = Name(absl::StrCat("/", row));
      std::optional<PendingStore> store;
      for (uint32_t i = 0; i < 20; ++i) {
        Write(row, Image(row * 100 + i), stream);
        store = Begin(Whole(row, name, i), stream);
        EXPECT_TRUE(i % 2 == 0 || StatusOf(store->Wait()).ok());
        Write(row, std::string(state_bytes_, '\0'), stream);
        if (i % 5 != 4) continue;
        const auto loaded = arena_->Load({LoadRow(row, SequenceRef(name))}, {}, stream->handle());
        EXPECT_TRUE(loaded.ok() && loaded->rows[0].ok()) << loaded.status();
        stream->Synchronize();
        EXPECT_EQ(Read(row), Image(row * 100 + i));
      }
      EXPECT_TRUE(StatusOf(store->Wait()).ok());
      EXPECT_EQ(Get(name), Image(row * 100 + 19));
      arena_->Load({LoadRow(row, SequenceRef(name))}, {}, stream->handle()).IgnoreError();
      stream->Synchronize();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(CppGpuCopiesTest, WhatTheDaemonWantsBackIsNotUnmappedUnderCopies) {
  Set(Name("/0"), Image(0));
  gpu_->legacy.Hold();
  ASSERT_TRUE(arena_->Load({LoadRow(0, SequenceRef(Name("/0")))}).ok());
  Write(1, Image(1));
  const PendingStore store = Begin(Whole(1, Name("/stored"), 1));
  // More than the budget: other extents leave, and slots with them.
  for (uint32_t i = 1; i <= 200; ++i) {
    Set(Name("/0"), Image(i), i + 1);
    Set(Name(absl::StrCat("/", i)), Image(i));
  }
  gpu_->legacy.Open();
  ASSERT_TRUE(StatusOf(store.Wait()).ok()) << StatusOf(store.Wait());
  gpu_->legacy.Synchronize();
  EXPECT_EQ(Read(0), Image(0));
  EXPECT_EQ(Get(Name("/stored")), Image(1));
}

TEST_F(CppGpuCopiesTest, AForkedChildIsRefusedAndLeavesTheParentsCopiesAlone) {
  Set(Name("/in"), Image(1));
  gpu_->legacy.Hold();
  ASSERT_TRUE(arena_->Load({LoadRow(0, SequenceRef(Name("/in")))}).ok());
  Write(1, Image(2));
  std::optional<PendingStore> store = Begin(Whole(1, Name(), 1));
  const pid_t child = fork();
  if (child == 0) {
    const bool is_refused = ReasonOf(arena_->Load({LoadRow(0, SequenceRef(Name("/in")))}).status()) == "FORKED" &&
                            ReasonOf(arena_->StoreAsync({Whole(1, Name(), 1)}).status()) == "FORKED" &&
                            ReasonOf(store->Wait().status()) == "FORKED" && !store->done();
    store.reset();
    arena_->Close();
    _exit(is_refused ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(Slots("pinned"), 1);
  gpu_->legacy.Open();
  EXPECT_TRUE(StatusOf(store->Wait()).ok());
  EXPECT_EQ(Get(Name()), Image(2));
}

TEST_F(CppGpuCopiesTest, ARestartOvertakesAStoreAndOnlyWhoWaitsOpensTheArenaAgain) {
  if (getenv("STATEPOOL_RESTARTS") == nullptr) GTEST_SKIP() << "nobody restarts the daemon";
  v1::SetRequest request;
  request.set_sequence(Name("/kept"));
  request.set_layout("gpu-copies");
  request.set_position(1);
  request.mutable_options()->set_durability(v1::SYNC);
  const std::string kept = Image(1);
  ASSERT_TRUE(pool_->Set(request, {kept}).ok());
  gpu_->legacy.Hold();
  ASSERT_TRUE(arena_->Load({LoadRow(2, SequenceRef(Name("/kept")))}).ok());
  const PendingStore store = Begin(Whole(0, Name("/lost"), 1));
  Restart();
  gpu_->legacy.Open();
  Eventually([&] { return store.done(); });
  EXPECT_EQ(gpu_->mapping_threads(), std::set<std::thread::id>{std::this_thread::get_id()});
  for (int i = 0; i < 2; ++i) EXPECT_EQ(ReasonOf(store.Wait().status()), "CONTENTS_GONE");
  EXPECT_EQ(gpu_->mapping_threads(), std::set<std::thread::id>{std::this_thread::get_id()});
  EXPECT_EQ(Read(2), std::string(state_bytes_, '\0'));
  ASSERT_TRUE(arena_->Load({LoadRow(1, SequenceRef(Name("/kept")))}).ok()) << "this thread was told";
  gpu_->legacy.Synchronize();
  EXPECT_EQ(Read(1), kept);
  EXPECT_EQ(ReasonOf(StatusOf(arena_->Store({StoreRow(0, Name("/lost"), 1)}))), "ROW_NOT_LOADED");
}

TEST_F(CppGpuCopiesTest, AfterARestartALoadOrAStoreSaysThatTheContentsAreGone) {
  if (getenv("STATEPOOL_RESTARTS") == nullptr) GTEST_SKIP() << "nobody restarts the daemon";
  ASSERT_TRUE(StatusOf(arena_->Store({Whole(0, Name(), 1)})).ok());
  Restart();
  EXPECT_EQ(ReasonOf(arena_->Store({Whole(0, Name(), 2)}).status()), "CONTENTS_GONE");
  EXPECT_TRUE(StatusOf(arena_->Store({Whole(0, Name(), 3)})).ok());
  Restart();
  EXPECT_EQ(ReasonOf(arena_->Load({LoadRow(0, SequenceRef(Name()))}).status()), "CONTENTS_GONE");
  Write(0, Image(4));
  EXPECT_TRUE(StatusOf(arena_->StoreAsync({Whole(0, Name("/new"), 3)})->Wait()).ok());
  EXPECT_EQ(Get(Name("/new")), Image(4));
}

}  // namespace
}  // namespace statepool::client
