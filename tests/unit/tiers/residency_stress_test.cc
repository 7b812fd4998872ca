// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Many threads over one small residency: whatever they do to each other, every read gives exactly the bytes that were
// written, and in the end nothing is left. Made for ThreadSanitizer.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "server/core/mutex.h"
#include "server/memory/host_device.h"
#include "server/tiers/residency.h"
#include "tiers/memory_kinds.h"
#include "tiers/test_support.h"

namespace statepool {
namespace {

constexpr int kThreads = 6;
constexpr int kSteps = 250;

class ResidencyStressTest : public AnyColdStoreTest, public testing::WithParamInterface<MemoryKind> {
 protected:
  struct Entry {
    ImageRef image;
    uint64_t seed = 0;
    std::string attachment;
  };

  // What any thread may replace, read or persist at any time.
  class Table {
   public:
    Entry Get(size_t i) {
      MutexLock lock(&mu_);
      return entries_[i];
    }
    void Set(size_t i, Entry entry) {
      Entry old;  // outlives the lock, though nothing would forbid dropping it inside
      MutexLock lock(&mu_);
      if (entry.image != nullptr) entry.image->AddHead();
      if (entries_[i].image != nullptr) entries_[i].image->DropHead();
      old = std::exchange(entries_[i], std::move(entry));
    }
    size_t size() const { return 24; }

   private:
    Mutex mu_;
    std::vector<Entry> entries_ ABSL_GUARDED_BY(mu_) = std::vector<Entry>(24);
  };

  // A new image into the table.
  void Put(const Op& op, size_t i, const LayoutRef& layout, uint64_t seed = 1, std::string attachment = {}) {
    Entry entry{nullptr, seed, std::move(attachment)};
    const std::string bytes = MakeBytes(layout->state_bytes(), seed);
    const absl::string_view piece = bytes;
    StateBytes state;
    state.pieces = {&piece, 1};
    state.attachment = entry.attachment;
    auto image = residency_->Write(op, layout, state);
    if (!Allowed(image.status())) return;
    entry.image = *std::move(image);
    table_.Set(i, std::move(entry));
  }
  void Run(int thread, uint64_t seed) {
    std::mt19937_64 random(seed + static_cast<uint64_t>(thread));
    for (int step = 0; step < kSteps; ++step) {
      const size_t i = random() % table_.size();
      const Op op{.tenant = static_cast<TenantId>(random() % 2)};
      switch (random() % 7) {
        case 0:
        case 1:
          Put(op, i, layouts_[random() % layouts_.size()], random(),
              std::string(random() % 3 ? 0 : random() % 200'000, 'a'));
          break;
        case 2:
        case 3: {
          const Entry entry = table_.Get(i);
          if (entry.image == nullptr) break;
          // On a device, or wherever it is read best.
          const std::vector<Device*> devices = memory_.devices();
          const size_t on = random() % (devices.size() + 2);
          auto pin = residency_->Read(op, entry.image, on < devices.size() ? devices[on] : nullptr);
          if (!Allowed(pin.status())) break;
          std::string bytes(entry.image->bytes(), 0);
          if (!Allowed((*pin)->CopyOut(0, bytes.size(), bytes.data()))) break;
          EXPECT_TRUE(bytes == MakeBytes(entry.image->bytes(), entry.seed));
          EXPECT_TRUE((*pin)->attachment() == entry.attachment);
          ++reads_;
          break;
        }
        case 4: {
          const Entry entry = table_.Get(i);
          if (entry.image == nullptr || !Allowed(residency_->Persist(op, entry.image))) break;
          EXPECT_TRUE(residency_->persisted(*entry.image));
          break;
        }
        case 6: {
          const std::vector<Device*> devices = memory_.devices();
          std::vector<Entry> entries;
          std::vector<ImageRef> images;
          for (size_t count = 1 + random() % 6; count > 0; --count) {
            Entry entry = table_.Get(random() % table_.size());
            if (entry.image == nullptr) continue;
            images.push_back(entry.image);
            entries.push_back(std::move(entry));
          }
          const auto pins = residency_->ReadMany(op, images, devices[random() % devices.size()]);
          for (size_t k = 0; k < pins.size(); ++k) {
            std::string bytes(images[k]->bytes(), 0);
            if (!Allowed(pins[k].status()) || !Allowed((*pins[k])->CopyOut(0, bytes.size(), bytes.data()))) continue;
            EXPECT_TRUE(bytes == MakeBytes(bytes.size(), entries[k].seed));
            EXPECT_TRUE((*pins[k])->attachment() == entries[k].attachment);
            ++reads_;
          }
          break;
        }
        case 5:
          if (random() % 2) table_.Set(i, {});
          else if (const Entry entry = table_.Get(i); entry.image != nullptr) residency_->TryRead(entry.image);
          break;
      }
      for (const Device* device : memory_.devices()) EXPECT_LE(device->used_bytes(), device->budget_bytes());
      if (before_step_) before_step_(step);
      if (step % 50 == 0) residency_->CheckInvariants();
    }
  }
  void RunAll(uint64_t seed) {
    std::cout << "seed " << seed << std::endl;
    cold_budget_ = 3_MiB;
    Restart();
    ResidencyMemories memories = memory_.memories();
    if (moves_ahead_) {
      for (ResidencyMemory& hot : memories.hot) hot.dirty_bytes_max = hot.device->budget_bytes() / 2;
    }
    residency_ =
        std::make_unique<Residency>(ResidencyOptions{.attachment_budget_bytes = 1_MiB}, memories, cold_.get(), &clock_);
    if (before_threads_) before_threads_();
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) threads.emplace_back([this, t, seed] { Run(t, seed); });
    for (std::thread& thread : threads) thread.join();
    residency_->CheckInvariants();
    const ResidencyStats stats = residency_->stats();
    const ResidencyStats::Evictions& gone = stats.evictions;
    std::cout << reads_ << " reads, " << refused_ << " refused, " << stats.spills << " spills, " << stats.demotions
              << " demotions, " << stats.promotions << " promotions, "
              << gone.behind_head + gone.clean + gone.demoted + gone.spilled << " evictions, " << stats.lost_images
              << " lost" << std::endl;
  }
  void EndAll() {
    for (size_t i = 0; i < table_.size(); ++i) table_.Set(i, {});
    // The spiller may be at work on some yet.
    for (int i = 0; i < 10'000; ++i) {
      ASSERT_TRUE(residency_->WaitForReclaim());
      const auto memories = residency_->stats().memories;
      const auto empty = [](const auto& memory) { return memory.images == 0; };
      if (cold_->used_bytes() == 0 && std::all_of(memories.begin(), memories.end(), empty)) break;
      usleep(500);
    }
    residency_->CheckInvariants();
    for (const auto& memory : residency_->stats().memories) EXPECT_EQ(memory.images, 0u);
    EXPECT_EQ(residency_->stats().attachment_bytes, 0u);
    EXPECT_EQ(cold_->used_bytes(), 0u);
    EXPECT_TRUE(Stored().empty());
  }
  // True for OK; else it must be a shortage, or the loss of a device that failed.
  bool Allowed(const absl::Status& status) {
    EXPECT_TRUE(status.ok() || ReasonOf(status) == "HOT_FULL" || ReasonOf(status) == "COLD_FULL" ||
                (fails_ && ReasonOf(status) == "DEVICE_FAILED"))
        << status;
    if (!status.ok()) ++refused_;
    return status.ok();
  }

  SystemClock clock_;
  const std::vector<LayoutRef> layouts_ = {MakeLayout(5'000), MakeLayout(kChunk), MakeLayout(3 * kChunk + 17)};
  const TestMemory memory_{GetParam(), 16 * kChunk, &clock_};
  std::unique_ptr<Residency> residency_;
  Table table_;
  std::atomic<int> reads_{0}, refused_{0};
  bool moves_ahead_ = true;  // dirty images go down before their slots are needed
  bool fails_ = false;       // a device may fail
  std::function<void()> before_threads_;
  std::function<void(int)> before_step_;  // of any thread
};

INSTANTIATE_TEST_SUITE_P(Memory, ResidencyStressTest, AllMemories(), MemoryKindName);

TEST_P(ResidencyStressTest, EveryReadIsExactAndNothingIsLeftInTheEnd) {
  RunAll(std::random_device()());
  const ResidencyStats stats = residency_->stats();
  EXPECT_GT(reads_, 100);
  EXPECT_GT(stats.spills, 10u);
  EXPECT_GT(stats.promotions, 10u);
  if (memory_.warm() != nullptr) {
    EXPECT_GT(stats.demotions, 10u);
  }
  EndAll();
  residency_.reset();
  for (const Device* device : memory_.devices()) EXPECT_EQ(device->used_bytes(), 0u);
  if (memory_.warm() != nullptr) {
    EXPECT_EQ(memory_.warm()->used_bytes(), 0u);
  }
}

#ifndef STATEPOOL_GPU_TESTS
TEST_P(ResidencyStressTest, WhereDevicesFailUnderLoadEveryReadIsExactOrSaysSo) {
  if (memory_.warm() == nullptr) GTEST_SKIP() << "nothing is left then";
  fails_ = true;
  moves_ahead_ = false;
  std::atomic<size_t> failed{0};
  const size_t devices = memory_.devices().size();
  std::vector<Pin> alone(devices);  // of an image that is on this device alone, and stays: for it to lose
  const std::string bytes = MakeBytes(layouts_[0]->state_bytes(), 1);
  const absl::string_view piece = bytes;
  before_threads_ = [&] {
    for (size_t i = 0; i < devices; ++i) {
      auto writer = residency_->BeginWrite({}, layouts_[0], 0, memory_.devices()[i]);
      ASSERT_TRUE(writer.ok()) << writer.status();
      ASSERT_TRUE((*writer)->Append({&piece, 1}, ChecksumOf(bytes)).ok());
      auto image = (*writer)->Finish(std::nullopt, "");
      ASSERT_TRUE(image.ok()) << image.status();
      auto pin = residency_->Read({}, *image, memory_.devices()[i]);
      ASSERT_TRUE(pin.ok()) << pin.status();
      alone[i] = *std::move(pin);
    }
  };
  const auto fail = [&](size_t i) {
    memory_.far(i)->Fail();
    residency_->CheckDevices();
    alone[i].reset();
  };
  before_step_ = [&](int step) {  // the first a third of the way, the next after two
    if (step >= kSteps / 3 && failed == 0 && failed.fetch_add(1) == 0) fail(0);
    if (step >= kSteps * 2 / 3 && devices > 1 && failed == 1 && failed.fetch_add(1) == 1) fail(1);
  };
  RunAll(std::random_device()());
  EXPECT_EQ(failed, devices);
  EXPECT_GT(reads_, 50);
  EXPECT_GE(residency_->stats().lost_images, devices);
  EndAll();
}
#endif

}  // namespace
}  // namespace statepool
