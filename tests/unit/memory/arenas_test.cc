// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Arenas over a Store with fakes and a real HostDevice. What views do stands in core/view_test.cc.
#include "server/memory/arenas.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/store_fixture.h"
#include "server/core/error.h"
#include "server/memory/host_device.h"

namespace statepool {
namespace {

// What a worker has of an arena.
class Mapping {
 public:
  Mapping(int fd, uint64_t bytes) : bytes_(bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data != MAP_FAILED) data_ = static_cast<char*>(data);
    close(fd);
  }
  ~Mapping() { munmap(data_, bytes_); }
  char* data() const { return data_; }

 private:
  const uint64_t bytes_;
  char* data_ = nullptr;
};

class ArenasTest : public StoreTest {
 protected:
  ArenasTest() { StartArenas({}); }
  ~ArenasTest() override { arenas_.reset(); }

  void StartArenas(ArenaOptions options, uint64_t device_bytes = 1 << 20) {
    arenas_.reset();
    if (options.max_bytes == 0) options.max_bytes = 1 << 20;
    options.granule_bytes = 4096;
    device_ = *HostDevice::Create({.budget_bytes = device_bytes, .chunk_bytes = 4096});
    arenas_ = std::make_unique<Arenas>(options, store_.get(), images_.get(),
                                       ArenaMemory{{device_.get()},
                                                   [this](const Op&, TenantId tenant, uint64_t bytes, const Device*) {
                                                     return device_->AllocateShared(tenant, (bytes + 4095) / 4096);
                                                   },
                                                   [this] { ++freed_; }},
                                       &copies_, &clock_);
  }

  struct Open {
    std::string id;
    std::unique_ptr<Mapping> memory;
    std::shared_ptr<const ArenaShape> shape;
    uint64_t state_bytes;
    // The row as a state of one character, if it is row-major.
    char* row(uint32_t i) const { return memory->data() + i * shape->tensors[0].strides[0]; }
  };
  // An arena whose rows are images, connected and mapped.
  Open OpenAndMap(uint32_t rows = 4, const std::string& layout = "m") {
    absl::StatusOr<OpenedArena> opened = arenas_->Open(op_, {layout, rows, 0, {.layers = View::Layers::kRowMajor}});
    EXPECT_TRUE(opened.ok()) << opened.status();
    absl::StatusOr<Arenas::Lease> lease = arenas_->Connect(opened->token);
    EXPECT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ(lease->arena, opened->id);
    arenas_->CheckInvariants();
    return {opened->id, std::make_unique<Mapping>(lease->fd, lease->bytes), opened->shape,
            opened->layout->state_bytes()};
  }
  static LoadItem RowOf(uint32_t row, const std::string& name) {
    LoadItem item;
    item.row = row;
    item.source.key = Seq(name);
    return item;
  }
  static StoreItem ToName(uint32_t row, const std::string& name, int64_t position) {
    StoreItem item;
    item.row = row;
    item.set.sequence = name;
    item.set.position = position;
    return item;
  }
  LoadAnswer Load(const Open& arena, std::vector<LoadItem> items) {
    absl::StatusOr<LoadAnswer> answer = arenas_->Load(op_, arena.id, items);
    EXPECT_TRUE(answer.ok()) << answer.status();
    arenas_->CheckInvariants();
    return *std::move(answer);
  }
  StoreAnswer Store(const Open& arena, std::vector<StoreItem> items, bool all_or_none = false) {
    absl::StatusOr<StoreAnswer> answer = arenas_->Store(op_, arena.id, items, all_or_none);
    EXPECT_TRUE(answer.ok()) << answer.status();
    arenas_->CheckInvariants();
    store_->CheckInvariants();
    return *std::move(answer);
  }
  static std::string ReasonOfItem(const StoreAnswer& answer, size_t i) { return ReasonOf(answer.rows[i].status); }
  char FillOf(const std::string& name) {
    absl::StatusOr<GetAnswer> got = store_->Get(op_, {Seq(name), std::nullopt, ""});
    EXPECT_TRUE(got.ok()) << got.status();
    if (!got.ok()) return 0;
    const absl::string_view bytes = got->pin->bytes();
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [&](char c) { return c == bytes[0]; })) << "half of a state";
    EXPECT_EQ(ChecksumOf(bytes), got->info.version.checksum);
    return bytes[0];
  }
  // The threads of the arenas do their rounds in real time, and wait for some things by the clock.
  template <typename Condition>
  void Eventually(Condition condition) {
    for (int i = 0; i < 1000 && !condition(); ++i) {
      clock_.Advance(absl::Milliseconds(100));
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_TRUE(condition());
  }

  CopyScheduler copies_{{.threads = 2, .inline_bytes = 0}, &clock_};
  std::unique_ptr<HostDevice> device_;
  std::atomic<int> freed_{0};
  std::unique_ptr<Arenas> arenas_;
};

TEST_F(ArenasTest, ARowIsLoadedComputedOnAndStored) {
  ASSERT_TRUE(Set("a", 3, 'a').ok());
  const Open arena = OpenAndMap();
  const LoadAnswer loaded = Load(arena, {RowOf(1, "a")});
  EXPECT_TRUE(loaded.rows[0].copied);
  EXPECT_EQ(loaded.rows[0].info.version.position, 3);
  EXPECT_EQ(std::string(arena.row(1), arena.state_bytes), std::string(arena.state_bytes, 'a'));
  EXPECT_EQ(arena.row(0)[0], 0);
  std::memset(arena.row(1), 'b', arena.state_bytes);
  const StoreAnswer stored = Store(arena, {ToName(1, "a", 5)});
  ASSERT_TRUE(stored.rows[0].status.ok()) << stored.rows[0].status;
  EXPECT_EQ(stored.rows[0].info.version.position, 5);
  EXPECT_EQ(FillOf("a"), 'b');
  // Between Stores nothing is looked at.
  std::memset(arena.row(1), 'x', arena.state_bytes);
  EXPECT_EQ(FillOf("a"), 'b');
}

TEST_F(ArenasTest, AStoreChecksTheRevisionThatItsRowIsBasedOn) {
  ASSERT_TRUE(Set("a", 1, 'a').ok());
  const Open arena = OpenAndMap();
  Load(arena, {RowOf(0, "a")});
  ASSERT_TRUE(Set("a", 2, 'b').ok());
  EXPECT_EQ(ReasonOfItem(Store(arena, {ToName(0, "a", 3)}), 0), "REVISION_MISMATCH");
  EXPECT_EQ(FillOf("a"), 'b');
  StoreItem any = ToName(0, "a", 3);
  any.any_revision = true;
  EXPECT_TRUE(Store(arena, {any}).rows[0].status.ok());
  EXPECT_EQ(FillOf("a"), 'a');
  // What was stored is the new base, also under another name.
  EXPECT_TRUE(Store(arena, {ToName(0, "a", 4)}).rows[0].status.ok());
  EXPECT_TRUE(Store(arena, {ToName(0, "new", 4)}).rows[0].status.ok());
  ASSERT_TRUE(Set("new", 5, 'n').ok());
  EXPECT_EQ(ReasonOfItem(Store(arena, {ToName(0, "new", 6)}), 0), "REVISION_MISMATCH");
  // A name that is not the base is written whatever it has.
  EXPECT_TRUE(Store(arena, {ToName(0, "a", 7)}).rows[0].status.ok());
  StoreItem both = any;
  both.set.if_revision = 1;
  EXPECT_EQ(ReasonOfItem(Store(arena, {both}), 0), "INVALID_OPTION");
}

TEST_F(ArenasTest, ARowThatTheCallerLeftAloneIsNotCopiedAgain) {
  ASSERT_TRUE(Set("a", 1, 'a').ok());
  const Open arena = OpenAndMap();
  Load(arena, {RowOf(0, "a")});
  LoadItem again = RowOf(0, "a");
  again.row_unmodified = true;
  std::memset(arena.row(0), 'x', arena.state_bytes);  // it lies
  EXPECT_FALSE(Load(arena, {again}).rows[0].copied);
  EXPECT_EQ(arena.row(0)[0], 'x');
  EXPECT_TRUE(Load(arena, {RowOf(0, "a")}).rows[0].copied);
  EXPECT_EQ(arena.row(0)[0], 'a');
  ASSERT_TRUE(Set("a", 2, 'b').ok());
  EXPECT_TRUE(Load(arena, {again}).rows[0].copied);
  EXPECT_EQ(arena.row(0)[0], 'b');
  Store(arena, {ToName(0, "c", 2)});
  again.source.key = Seq("c");
  EXPECT_FALSE(Load(arena, {again}).rows[0].copied);
}

TEST_F(ArenasTest, AnItemThatFailsLeavesTheOthersAlone) {
  ASSERT_TRUE(Set("a", 1, 'a').ok());
  SetRequest other{"o", "other", 1, Exactness::kExact, {}, {}, {}};
  ASSERT_TRUE(SetRaw(other, std::string(layout_->state_bytes(), 'o')).ok());
  const Open arena = OpenAndMap();
  std::memset(arena.row(1), 'x', arena.state_bytes);
  const LoadAnswer loaded = Load(arena, {RowOf(1, "none"), RowOf(0, "a"), RowOf(2, "o")});
  EXPECT_EQ(ReasonOf(loaded.rows[0].status), "NEVER_CREATED");
  EXPECT_TRUE(loaded.rows[1].status.ok());
  EXPECT_EQ(ReasonOf(loaded.rows[2].status), "LAYOUT_MISMATCH");
  EXPECT_EQ(arena.row(1)[0], 'x');
  const StoreAnswer stored = Store(arena, {ToName(1, "b", 1), ToName(0, "a", 2), ToName(2, "o", 2)});
  EXPECT_EQ(ReasonOfItem(stored, 0), "ROW_NOT_LOADED");
  EXPECT_TRUE(stored.rows[1].status.ok());
  EXPECT_EQ(ReasonOfItem(stored, 2), "ROW_NOT_LOADED");
  EXPECT_TRUE(stored.done);
  StoreItem whole = ToName(1, "b", 1);
  whole.whole_row = true;
  EXPECT_TRUE(Store(arena, {whole}).rows[0].status.ok());
  EXPECT_EQ(FillOf("b"), 'x');
  whole = ToName(2, "o", 1);
  whole.whole_row = true;
  EXPECT_EQ(ReasonOfItem(Store(arena, {whole}), 0), "LAYOUT_MISMATCH");
}

TEST_F(ArenasTest, AllOrNoneIsNoneWhenOneFails) {
  ASSERT_TRUE(Set("a", 1, 'a').ok() && Set("b", 1, 'b').ok());
  const Open arena = OpenAndMap();
  Load(arena, {RowOf(0, "a"), RowOf(1, "b")});
  ASSERT_TRUE(Set("b", 2, 'B').ok());
  std::memset(arena.row(0), 'x', arena.state_bytes);
  const StoreAnswer stored = Store(arena, {ToName(0, "a", 2), ToName(1, "b", 2)}, /*all_or_none=*/true);
  EXPECT_FALSE(stored.done);
  EXPECT_EQ(ReasonOfItem(stored, 0), "BATCH_ABORTED");
  EXPECT_EQ(ReasonOfItem(stored, 1), "REVISION_MISMATCH");
  EXPECT_EQ(FillOf("a"), 'a');
  EXPECT_TRUE(Store(arena, {ToName(0, "a", 2), ToName(1, "c", 2)}, true).done);
  EXPECT_EQ(FillOf("a"), 'x');
}

TEST_F(ArenasTest, ARequestThatMakesNoSenseIsRefusedByItsField) {
  ASSERT_TRUE(Set("a", 1, 'a').ok());
  const Open arena = OpenAndMap(2);
  const auto load = [&](std::vector<LoadItem> items) { return arenas_->Load(op_, arena.id, items).status(); };
  EXPECT_EQ(ReasonOf(load({})), "MISSING_FIELD");
  EXPECT_EQ(ReasonOf(load({RowOf(2, "a")})), "ROW_OUT_OF_RANGE");
  EXPECT_EQ(GetErrorDetail(load({RowOf(0, "a"), RowOf(9, "a")})).field, "items[1].row");
  EXPECT_EQ(ReasonOf(load({RowOf(0, "a"), RowOf(0, "a")})), "DUPLICATE_ROW");
  const auto store = [&](std::vector<StoreItem> items) { return arenas_->Store(op_, arena.id, items, false).status(); };
  EXPECT_EQ(ReasonOf(store({ToName(0, "a", 1), ToName(1, "a", 1)})), "DUPLICATE_NAME");
  EXPECT_EQ(ReasonOf(store({ToName(2, "a", 1)})), "ROW_OUT_OF_RANGE");
  EXPECT_EQ(ReasonOf(arenas_->Load(op_, "none", std::vector<LoadItem>{RowOf(0, "a")}).status()), "ARENA_UNKNOWN");
  EXPECT_EQ(ReasonOf(arenas_->Close(op_, "")), "MISSING_FIELD");
  for (const uint32_t length : {0u, 2u}) {
    StoreItem item = ToName(0, "a", 2);
    item.whole_row = true;
    item.accepted_length = length;
    EXPECT_EQ(ReasonOfItem(Store(arena, {item}), 0), "INVALID_ACCEPTED_LENGTH");
  }
  const auto open = [&](uint32_t rows, uint32_t steps, const std::string& layout) {
    return ReasonOf(arenas_->Open(op_, {layout, rows, steps, {}}).status());
  };
  EXPECT_EQ(open(0, 0, "m"), "INVALID_OPTION");
  EXPECT_EQ(open(kMaxArenaRows + 1, 0, "m"), "INVALID_OPTION");
  EXPECT_EQ(open(1, kMaxArenaSteps + 1, "m"), "INVALID_OPTION");
  EXPECT_EQ(open(1, 0, "none"), "LAYOUT_UNKNOWN");
  EXPECT_EQ(open(1, 0, ""), "MISSING_FIELD");
}

TEST_F(ArenasTest, ATokenIsGoodForOneConnectionInItsTime) {
  absl::StatusOr<OpenedArena> opened = arenas_->Open(op_, {"m", 1, 0, {}});
  ASSERT_TRUE(opened.ok());
  EXPECT_EQ(ReasonOf(arenas_->Load(op_, opened->id, std::vector<LoadItem>{RowOf(0, "a")}).status()),
            "ARENA_NOT_CONNECTED");
  EXPECT_EQ(ReasonOf(arenas_->Connect("").status()), "TOKEN_INVALID");
  const absl::StatusOr<Arenas::Lease> lease = arenas_->Connect(opened->token);
  ASSERT_TRUE(lease.ok());
  close(lease->fd);
  EXPECT_EQ(ReasonOf(arenas_->Connect(opened->token).status()), "TOKEN_INVALID");

  opened = arenas_->Open(op_, {"m", 1, 0, {}});
  ASSERT_TRUE(opened.ok());
  clock_.Advance(arenas_->options().token_timeout);
  EXPECT_EQ(ReasonOf(arenas_->Connect(opened->token).status()), "TOKEN_INVALID");
  Eventually([&] { return arenas_->IsGone(opened->id); });
  EXPECT_EQ(arenas_->stats().leased, 1u);
}

TEST_F(ArenasTest, MemoryThatIsStillMappedIsInQuarantineAndShowsZeros) {
  Open arena = OpenAndMap();
  std::memset(arena.row(0), 'x', arena.state_bytes);
  const uint64_t used = device_->used_bytes();
  ASSERT_TRUE(arenas_->Close(op_, arena.id).ok());
  EXPECT_EQ(arena.row(0)[0], 0);
  EXPECT_EQ(device_->used_bytes(), used);
  EXPECT_EQ(arenas_->stats().quarantined, 1u);
  EXPECT_EQ(arenas_->stats().reserved_slots, 0u);
  EXPECT_EQ(ReasonOf(arenas_->Close(op_, arena.id)), "ARENA_UNKNOWN");
  // Another gets other memory.
  const Open next = OpenAndMap();
  std::memset(next.row(0), 'n', next.state_bytes);
  EXPECT_EQ(arena.row(0)[0], 0);
  arena.memory.reset();
  clock_.Advance(absl::Seconds(1));
  Eventually([&] { return arenas_->IsGone(arena.id); });
  EXPECT_EQ(device_->used_bytes(), used);
  EXPECT_EQ(freed_, 1);
}

TEST_F(ArenasTest, MemoryThatIsUnmappedIsFreeWhenCloseReturns) {
  Open arena = OpenAndMap();
  arena.memory.reset();
  ASSERT_TRUE(arenas_->Close(op_, arena.id).ok());
  EXPECT_TRUE(arenas_->IsGone(arena.id));
  EXPECT_EQ(device_->used_bytes(), 0u);
}

TEST_F(ArenasTest, MemoryIsFreeWhenTheProcessIsGoneHoweverItIsMapped) {
  const Open arena = OpenAndMap();
  arenas_->LeaseEnded(arena.id);
  clock_.Advance(absl::Seconds(1));
  Eventually([&] { return arenas_->stats().reserved_slots == 0; });
  EXPECT_FALSE(arenas_->IsGone(arena.id));
  arenas_->ProcessGone(arena.id);
  clock_.Advance(absl::Seconds(1));
  Eventually([&] { return arenas_->IsGone(arena.id); });
  EXPECT_EQ(device_->used_bytes(), 0u);
  arena.row(0)[0] = 'x';  // what a process maps that is none of the dead one stays its own
  EXPECT_EQ(arena.row(0)[0], 'x');
}

TEST_F(ArenasTest, ADescriptorThatWasGivenOutIsThatOfItsArenaThoughItWasClosedMeanwhile) {
  const absl::StatusOr<OpenedArena> first = arenas_->Open(op_, {"m", 1, 0, {}});
  ASSERT_TRUE(first.ok());
  const absl::StatusOr<Arenas::Lease> lease = arenas_->Connect(first->token);
  ASSERT_TRUE(lease.ok());
  struct stat before, after;
  ASSERT_EQ(fstat(lease->fd, &before), 0);
  ASSERT_TRUE(arenas_->Close(op_, first->id).ok());
  const Open second = OpenAndMap(1);  // has its descriptors now
  ASSERT_EQ(fstat(lease->fd, &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
  close(lease->fd);
}

TEST_F(ArenasTest, AnArenaCountsWithWholeChunksAndSlots) {
  // One row of 64 bytes: a chunk of 4 KiB, and a slot of 256 bytes.
  StartArenas({.max_bytes = 3 * (4096 + 256)});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(arenas_->Open(op_, {"m", 1, 0, {}}).ok());
  EXPECT_EQ(ReasonOf(arenas_->Open(op_, {"m", 1, 0, {}}).status()), "TOO_MANY_ARENAS");
  EXPECT_EQ(arenas_->stats().leased_bytes, device_->used_bytes());
}

TEST_F(ArenasTest, AttachmentsOfOneLoadAreBounded) {
  StartArenas({.max_attachment_bytes = 10});
  const Open arena = OpenAndMap();
  for (const char* name : {"a", "b"}) {
    StoreItem item = ToName(0, name, 1);
    item.whole_row = true;
    item.attachment = "sixsix";
    ASSERT_TRUE(Store(arena, {item}).rows[0].status.ok());
  }
  std::memset(arena.row(2), 'x', arena.state_bytes);
  std::vector<LoadItem> items = {RowOf(1, "a"), RowOf(2, "b"), RowOf(3, "b")};
  for (LoadItem& item : items) item.with_attachment = item.row < 3;
  const LoadAnswer answer = Load(arena, items);
  EXPECT_EQ(answer.rows[0].attachment, "sixsix");
  EXPECT_EQ(ReasonOf(answer.rows[1].status), "MESSAGE_TOO_LARGE");
  EXPECT_EQ(arena.row(2)[0], 'x');
  EXPECT_TRUE(answer.rows[2].status.ok());
}

TEST_F(ArenasTest, CallsThatWaitForTheirTurnAreBounded) {
  const uint64_t bytes = 8 << 20;
  const LayoutRef large =
      *Layout::Create({"large", {{"t", TensorKind::kOther, {0}, DType::kUInt8, {{"x", bytes}}, {}, {}}}});
  ASSERT_TRUE(store_->RegisterLayout(op_, large, "large").ok());
  StartArenas({.max_bytes = 256 << 20, .max_waiting = 2}, 256 << 20);
  const Open arena = OpenAndMap(4, "large");
  std::atomic<int> refused{0}, done{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 4; ++i) {
        StoreItem item = ToName(static_cast<uint32_t>(t % 4), "s" + std::to_string(t), i);
        item.whole_row = true;
        const absl::Status status = arenas_->Store(op_, arena.id, std::vector<StoreItem>{item}, false).status();
        if (!status.ok()) {
          EXPECT_EQ(ReasonOf(status), "QUEUE_FULL");
          EXPECT_GT(GetErrorDetail(status).retry_after, absl::ZeroDuration());
        }
        ++(status.ok() ? done : refused);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(done, 0);
  EXPECT_GT(refused, 0);
}

TEST_F(ArenasTest, ArenasAreLimitedInNumberAndBytes) {
  StartArenas({.max_arenas = 2, .max_bytes = 64 << 10, .granule_bytes = 4096});
  const Open first = OpenAndMap(1);
  OpenAndMap(1);
  const absl::Status third = arenas_->Open(op_, {"m", 1, 0, {}}).status();
  EXPECT_EQ(ReasonOf(third), "TOO_MANY_ARENAS");
  EXPECT_GT(GetErrorDetail(third).retry_after, absl::ZeroDuration());
  EXPECT_EQ(ReasonOf(arenas_->Open(op_, {"m", 4000, 0, {}}).status()), "ARENA_TOO_LARGE");
  arenas_->ProcessGone(first.id);
  clock_.Advance(absl::Seconds(1));
  Eventually([&] { return arenas_->IsGone(first.id); });
  EXPECT_EQ(ReasonOf(arenas_->Open(op_, {"m", 150, 0, {}}).status()), "");
  // What could not be had leaves nothing behind.
  images_->no_room = true;
  StartArenas({.max_bytes = 64 << 10, .granule_bytes = 4096});
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(arenas_->Open(op_, {"m", 100, 0, {}}).ok());
  EXPECT_EQ(device_->used_bytes(), 0u);
  arenas_->CheckInvariants();
}

TEST_F(ArenasTest, SlotsOfOneStoreAreReservedAndReservedAnew) {
  const Open arena = OpenAndMap(3);
  EXPECT_EQ(arenas_->stats().reserved_slots, 3u);
  // No more room: a whole Store has its own all the same, and says of the next that there is none.
  images_->no_room = true;
  const auto all = [&](int64_t position) {
    std::vector<StoreItem> items;
    for (uint32_t row = 0; row < 3; ++row) {
      items.push_back(ToName(row, "s" + std::to_string(row), position));
      items.back().whole_row = true;
    }
    return items;
  };
  for (const StoredRow& row : Store(arena, all(1)).rows) EXPECT_TRUE(row.status.ok()) << row.status;
  EXPECT_EQ(arenas_->stats().reserved_slots, 0u);
  for (const StoredRow& row : Store(arena, all(2)).rows) EXPECT_EQ(ReasonOf(row.status), "HOT_FULL");
  for (uint32_t row = 0; row < 3; ++row) EXPECT_EQ(store_->Describe(op_, Seq("s0"))->version.position, 1);
  images_->no_room = false;
  clock_.Advance(absl::Seconds(1));
  Eventually([&] { return arenas_->stats().reserved_slots == 3; });
}

TEST_F(ArenasTest, MemoryOfTheDeadComesBackWhileSlotsAreWaitedFor) {
  const Open arena = OpenAndMap(1), dead = OpenAndMap(1);
  images_->begin_write_hangs = true;
  StoreItem item = ToName(0, "a", 1);
  item.whole_row = true;
  ASSERT_TRUE(Store(arena, {item}).rows[0].status.ok());  // and its slot is wanted anew
  arenas_->ProcessGone(dead.id);
  clock_.Advance(absl::Seconds(1));
  Eventually([&] { return arenas_->IsGone(dead.id); });
  images_->begin_write_hangs = false;
}

TEST_F(ArenasTest, AStoreThatIsRefusedKeepsItsReservedSlots) {
  ASSERT_TRUE(Set("a", 1, 'a').ok());
  const Open arena = OpenAndMap(2);
  Load(arena, {RowOf(0, "a")});
  Op late = op_;
  std::atomic<bool> cancelled{true};
  late.cancelled = &cancelled;
  EXPECT_EQ(ReasonOf(arenas_->Store(late, arena.id, std::vector<StoreItem>{ToName(0, "a", 2)}, false).status()),
            "CANCELLED");
  EXPECT_EQ(arenas_->stats().reserved_slots, 2u);
  EXPECT_EQ(store_->Describe(op_, Seq("a"))->version.position, 1);
}

TEST_F(ArenasTest, AttachmentsAndRetriesAreThoseOfSet) {
  ASSERT_TRUE(Set("a", 1, 'a').ok());
  const Open arena = OpenAndMap();
  Load(arena, {RowOf(0, "a")});
  StoreItem item = ToName(0, "a", 2);
  item.attachment = "logits";
  item.set.request = {"once", 42};
  const StoreAnswer first = Store(arena, {item}), second = Store(arena, {item});
  ASSERT_TRUE(first.rows[0].status.ok() && second.rows[0].status.ok()) << second.rows[0].status;
  EXPECT_FALSE(first.rows[0].info.replayed);
  EXPECT_TRUE(second.rows[0].info.replayed);
  EXPECT_EQ(first.rows[0].info.revision, second.rows[0].info.revision);
  arena.row(0)[0] = 'z';
  EXPECT_EQ(ReasonOfItem(Store(arena, {item}), 0), "REQUEST_ID_REUSED");
  LoadItem load = RowOf(1, "a");
  EXPECT_EQ(Load(arena, {load}).rows[0].attachment, "");
  load.with_attachment = true;
  EXPECT_EQ(Load(arena, {load}).rows[0].attachment, "logits");
  load.row_unmodified = true;
  const LoadAnswer held = Load(arena, {load});
  EXPECT_FALSE(held.rows[0].copied);
  EXPECT_EQ(held.rows[0].attachment, "logits");
}

TEST_F(ArenasTest, ManyImagesAreLoadedInPasses) {
  StartArenas({.max_pinned_bytes = 1});
  const Open arena = OpenAndMap(6);
  std::vector<LoadItem> items;
  for (uint32_t row = 0; row < 6; ++row) {
    const std::string name = "s" + std::to_string(row / 2);  // two rows each
    if (row % 2 == 0) {
      ASSERT_TRUE(Set(name, row, static_cast<char>('a' + row)).ok());
    }
    items.push_back(RowOf(row, name));
  }
  items.push_back(RowOf(0, "none"));
  items.erase(items.begin());
  const LoadAnswer answer = Load(arena, items);
  for (size_t i = 0; i + 1 < items.size(); ++i) EXPECT_TRUE(answer.rows[i].status.ok()) << answer.rows[i].status;
  EXPECT_EQ(ReasonOf(answer.rows.back().status), "NEVER_CREATED");
  for (uint32_t row = 1; row < 6; ++row) EXPECT_EQ(arena.row(row)[7], static_cast<char>('a' + row / 2 * 2));
}

TEST_F(ArenasTest, LargeStatesOfManyTasksAreWholeAndHaveTheirChecksum) {
  const uint64_t bytes = (5 << 20) + 12345;
  const LayoutRef large =
      *Layout::Create({"large", {{"t", TensorKind::kOther, {0}, DType::kUInt8, {{"x", bytes}}, {}, {}}}});
  ASSERT_TRUE(store_->RegisterLayout(op_, large, "large").ok());
  StartArenas({.max_bytes = 64 << 20}, 64 << 20);
  const Open arena = OpenAndMap(2, "large");
  std::string state(bytes, 0);
  for (size_t i = 0; i < state.size(); ++i) state[i] = static_cast<char>(i * 2654435761u >> 24);
  std::memcpy(arena.row(0), state.data(), state.size());
  StoreItem item = ToName(0, "big", 1);
  item.whole_row = true;
  const StoreAnswer stored = Store(arena, {item});
  ASSERT_TRUE(stored.rows[0].status.ok());
  EXPECT_EQ(stored.rows[0].info.version.checksum, ChecksumOf(state));
  Load(arena, {RowOf(1, "big")});
  EXPECT_TRUE(std::memcmp(arena.row(1), state.data(), state.size()) == 0);
}

// Many workers at once; some leave in the middle of a Store.
TEST_F(ArenasTest, WorkersThatComeAndGoLeaveWholeVersionsAndNothingElse) {
  const uint64_t bytes = 3 << 20;
  const LayoutRef large =
      *Layout::Create({"large", {{"t", TensorKind::kOther, {0}, DType::kUInt8, {{"x", bytes}}, {}, {}}}});
  ASSERT_TRUE(store_->RegisterLayout(op_, large, "large").ok());
  StartArenas({.max_bytes = 512 << 20}, 512 << 20);
  std::atomic<int> stored{0}, abandoned{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 12; ++i) {
        absl::StatusOr<OpenedArena> opened = arenas_->Open(op_, {"large", 2, 0, {.layers = View::Layers::kRowMajor}});
        ASSERT_TRUE(opened.ok()) << opened.status();
        absl::StatusOr<Arenas::Lease> lease = arenas_->Connect(opened->token);
        ASSERT_TRUE(lease.ok());
        auto memory = std::make_unique<Mapping>(lease->fd, lease->bytes);
        std::vector<StoreItem> items;
        for (uint32_t row = 0; row < 2; ++row) {
          std::memset(memory->data() + row * opened->shape->tensors[0].strides[0], 'a' + t, bytes);
          items.push_back(ToName(row, "w" + std::to_string((t + static_cast<int>(row)) % 4), i));
          items.back().whole_row = true;
        }
        std::thread ends;
        if (i % 3 == 0) ends = std::thread([&] { arenas_->LeaseEnded(opened->id); });
        const absl::StatusOr<StoreAnswer> answer = arenas_->Store(op_, opened->id, items, i % 2 == 0);
        answer.ok() ? ++stored : ++abandoned;
        if (!answer.ok()) {
          EXPECT_TRUE(ReasonOf(answer.status()) == "ARENA_UNKNOWN" || ReasonOf(answer.status()) == "CANCELLED");
        }
        if (ends.joinable()) ends.join();
        memory.reset();
        arenas_->Close(op_, opened->id).IgnoreError();
        arenas_->ProcessGone(opened->id);
        arenas_->CheckInvariants();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(stored, 0);
  for (const char* name : {"w0", "w1", "w2", "w3"}) EXPECT_NE(FillOf(name), 0);
  Eventually([&] {
    clock_.Advance(absl::Seconds(1));
    return device_->used_bytes() == 0;
  });
  EXPECT_EQ(arenas_->stats().reserved_slots, 0u);
}

}  // namespace
}  // namespace statepool
