// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Store, Residency and Arenas together, over memory of each kind, and a worker's hands on rows.
#ifndef STATEPOOL_TESTS_UNIT_TIERS_DEVICE_ARENAS_FIXTURE_H_
#define STATEPOOL_TESTS_UNIT_TIERS_DEVICE_ARENAS_FIXTURE_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "server/core/view.h"
#include "server/memory/arenas.h"
#include "server/tiers/residency.h"
#include "tiers/memory_kinds.h"
#include "tiers/test_support.h"

namespace statepool {

class DeviceArenasTest : public testing::TestWithParam<MemoryKind> {
 protected:
  explicit DeviceArenasTest(ArenaOptions options = {})
      : arenas_(WithRoom(options), &store_, &residency_,
                {memory_.devices(),
                 [this](const Op& op, TenantId tenant, uint64_t bytes, const Device* on) {
                   absl::StatusOr<std::unique_ptr<SharedExtent>> memory =
                       residency_.AllocateShared(op, tenant, bytes, on);
                   if (memory.ok()) newest_memory_ = (*memory)->data();
                   return memory;
                 },
                 [this] { residency_.SharedMemoryFreed(); }, memory_.staging()},
                &copies_, &clock_) {
    EXPECT_TRUE(store_.Recover().ok());
    EXPECT_TRUE(store_.RegisterLayout({}, layout_, "m").ok());
  }
  ~DeviceArenasTest() override { arenas_.EndAll(); }

  struct Open {
    std::string id;
    char* memory;  // on the device
    std::shared_ptr<const ArenaShape> shape;
  };
  Open OpenArena(uint32_t rows, const View& view = {}, const std::string& device = "") {
    absl::StatusOr<OpenedArena> opened = arenas_.Open({}, {"m", rows, 0, view, device});
    EXPECT_TRUE(opened.ok()) << opened.status();
    absl::StatusOr<Arenas::Lease> lease = arenas_.Connect(opened->token);
    EXPECT_TRUE(lease.ok()) << lease.status();
    close(lease->fd);
    return {opened->id, newest_memory_, opened->shape};
  }
  // As by a worker that has unmapped it, until its memory is there again.
  void CloseArena(const Open& arena) {
    EXPECT_EQ(arenas_.Close({}, arena.id), absl::OkStatus());
    arenas_.Unmapped(arena.id);
    for (int i = 0; i < 2'000 && !arenas_.IsGone(arena.id); ++i) {
      clock_.Advance(absl::Milliseconds(1));
      usleep(1'000);
    }
    EXPECT_TRUE(arenas_.IsGone(arena.id));
  }
  // The arena's bytes, as its worker would see and change them.
  std::string BytesOfArena(const Open& arena) { return memory_.Read(arena.memory, arena.shape->bytes); }
  void FillArena(const Open& arena, char byte) { memory_.Write(arena.memory, std::string(arena.shape->bytes, byte)); }
  // What a row holds, in the order of bytes.
  std::string RowOf(const Open& arena, uint32_t row) {
    std::string state(layout_->state_bytes(), 0);
    arena.shape->plan.Scatter(BytesOfArena(arena).data(), row, 1, 0, state.size(), state.data(), CopyHint::kCached);
    return state;
  }
  void SetRow(const Open& arena, uint32_t row, const std::string& state) {
    std::string bytes = BytesOfArena(arena);
    arena.shape->plan.Gather(state.data(), 0, state.size(), bytes.data(), {row}, CopyHint::kCached);
    memory_.Write(arena.memory, bytes);
  }
  absl::Status Store(const Open& arena, uint32_t row, const std::string& name, uint64_t position) {
    StoreItem item;
    item.row = row;
    item.set.sequence = name;
    item.set.position = position;
    item.any_revision = item.whole_row = true;
    absl::StatusOr<StoreAnswer> answer = arenas_.Store({}, arena.id, {&item, 1}, false);
    return answer.ok() ? answer->rows[0].status : answer.status();
  }
  absl::Status Load(const Open& arena, uint32_t row, const std::string& name) {
    LoadItem item;
    item.row = row;
    item.source = {{kDefaultTenant, NameKind::kSequence, name}, std::nullopt, ""};
    absl::StatusOr<LoadAnswer> answer = arenas_.Load({}, arena.id, {&item, 1});
    return answer.ok() ? answer->rows[0].status : answer.status();
  }
  static NameKey Key(const std::string& name) { return {kDefaultTenant, NameKind::kSequence, name}; }
  absl::StatusOr<NameInfo> Set(const std::string& name, int64_t position, const std::string& state) {
    const absl::string_view piece = state;
    StateBytes bytes;
    bytes.pieces = {&piece, 1};
    return store_.Set({}, {name, "m", position, std::nullopt, std::nullopt, {}, {}}, bytes);
  }
  std::string Get(const std::string& name) {
    absl::StatusOr<GetAnswer> answer = store_.Get({}, {Key(name), std::nullopt, ""});
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? BytesOf(*answer->pin) : "";
  }

  ManualClock clock_;
  char* newest_memory_ = nullptr;  // of an arena
  const TestMemory memory_{GetParam(), 24 * kChunk, &clock_};
  MemoryDisk images_on_disk_;
  MemoryColdStore cold_{&images_on_disk_, 256_MiB};
  // A convolution, which views pad, a matrix, which they transpose, and what every rank has. One, two or four ranks.
  const LayoutRef layout_ =
      *Layout::Create({"m",
                       {{"conv",
                         TensorKind::kConv,
                         {0, 1, 2},
                         DType::kBFloat16,
                         {{"channel", 48}, {"tap", 3}},
                         {},
                         Sharding{0, {{32, 4}, {16, 2, true}}}},
                        {"ssm",
                         TensorKind::kRecurrent,
                         {0, 2},
                         DType::kFloat32,
                         {{"head", 4}, {"dk", 16}, {"dv", 24}},
                         {},
                         Sharding{0, {}}},
                        {"shift", TensorKind::kShift, {1}, DType::kBFloat16, {{"channel", 10}}, {}, {}}}});
  Residency residency_{{}, memory_.memories(), &cold_, &clock_};
  statepool::Store store_{StoreOptions(), &residency_, &cold_, &clock_};  // which takes names, and forgets them
  CopyScheduler copies_{{}, &clock_};
  Arenas arenas_;

 private:
  static ArenaOptions WithRoom(ArenaOptions options) {
    options.max_bytes = 16 * kChunk;
    options.granule_bytes = kChunk;
    return options;
  }
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_TIERS_DEVICE_ARENAS_FIXTURE_H_
