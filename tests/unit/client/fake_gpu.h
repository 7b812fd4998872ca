// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A GPU that is made up of the host's memory, for the client's tests: a FarDevice of the daemon's maps here as a GPU's
// memory would, and streams do what they were told when a test lets them. Memory that is not mapped kills who touches
// it, and what is unmapped while a stream has work there is counted.
#ifndef STATEPOOL_TESTS_UNIT_CLIENT_FAKE_GPU_H_
#define STATEPOOL_TESTS_UNIT_CLIENT_FAKE_GPU_H_

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "client/cpp/errors.h"
#include "client/cpp/gpu.h"
#include "kernels/checksum.h"
#include "kernels/copy_plan.h"

namespace statepool::client {

// Does its work in a thread of its own, one piece after the other, while it is open.
class FakeStream {
 public:
  FakeStream() : thread_([this] { Run(); }) {}
  ~FakeStream() {
    Open();
    {
      const std::lock_guard lock(mu_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  CUstream_st* handle() { return reinterpret_cast<CUstream_st*>(this); }

  // The number of the piece, for Wait.
  uint64_t Enqueue(std::function<void()> piece) {
    const std::lock_guard lock(mu_);
    work_.push_back(std::move(piece));
    changed_.notify_all();
    return ++enqueued_;
  }
  void Hold() {
    const std::lock_guard lock(mu_);
    open_ = false;
  }
  void Open() {
    const std::lock_guard lock(mu_);
    open_ = true;
    changed_.notify_all();
  }
  bool IsDone(uint64_t number) const {
    const std::lock_guard lock(mu_);
    return done_ >= number;
  }
  void Wait(uint64_t number) const {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return done_ >= number; });
  }
  void Synchronize() const { Wait(enqueued()); }
  uint64_t enqueued() const {
    const std::lock_guard lock(mu_);
    return enqueued_;
  }

  std::atomic<bool> is_captured = false;

 private:
  void Run() {
    std::unique_lock lock(mu_);
    while (true) {
      changed_.wait(lock, [this] { return (open_ && !work_.empty()) || (ending_ && work_.empty()); });
      if (work_.empty()) return;
      const std::function<void()> piece = std::move(work_.front());
      work_.pop_front();
      lock.unlock();
      piece();
      lock.lock();
      ++done_;
      changed_.notify_all();
    }
  }

  mutable std::mutex mu_;
  mutable std::condition_variable changed_;
  std::deque<std::function<void()>> work_;
  uint64_t enqueued_ = 0, done_ = 0;
  bool open_ = true, ending_ = false;
  std::thread thread_;
};

// Copies whose end a test decides, or a stream.
class FakeEnqueued final : public Enqueued {
 public:
  explicit FakeEnqueued(size_t hashes = 0) : hashes_(hashes) {}

  void Fire(absl::Status status = absl::OkStatus()) {
    const std::lock_guard lock(mu_);
    status_ = std::move(status);
    is_done_ = true;
    changed_.notify_all();
  }

  bool IsDone() const override {
    const std::lock_guard lock(mu_);
    return is_done_;
  }
  absl::Status Wait() const override {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [this] { return is_done_; });
    return status_;
  }
  absl::Span<const LeafHash> hashes() const override { return hashes_; }
  LeafHash* hashes_to_write() { return hashes_.data(); }

 private:
  mutable std::mutex mu_;
  mutable std::condition_variable changed_;
  bool is_done_ = false;
  absl::Status status_;
  std::vector<LeafHash> hashes_;
};

// One that others may fire after its owner has let go of it.
class SharedEnqueued final : public Enqueued {
 public:
  explicit SharedEnqueued(std::shared_ptr<FakeEnqueued> behind) : behind_(std::move(behind)) {}

  bool IsDone() const override { return behind_->IsDone(); }
  absl::Status Wait() const override { return behind_->Wait(); }
  absl::Span<const LeafHash> hashes() const override { return behind_->hashes(); }

 private:
  const std::shared_ptr<FakeEnqueued> behind_;
};

// REQUIRES: it outlives what was made with it.
class FakeGpu final : public Gpu {
 public:
  FakeStream legacy;  // the stream that null is

  // Threads that mapped or unmapped an arena's memory.
  std::set<std::thread::id> mapping_threads() const {
    const std::lock_guard lock(mu_);
    return mapping_threads_;
  }
  // How often memory was unmapped that a stream had yet to read or write.
  int unmapped_in_use() const { return unmapped_in_use_; }

  std::atomic<bool> refuses_copies = false;    // from now on, after the first of a call
  std::atomic<bool> fails_next_event = false;  // the copies of the next call fail when they are waited for
  std::atomic<bool> refuses_memory = false;    // of arenas

  absl::StatusOr<std::unique_ptr<Range>> Reserve(uint64_t bytes) override {
    return std::make_unique<ArenaRange>(this, NewAddresses(bytes), bytes);
  }
  absl::StatusOr<std::unique_ptr<MappedChunks>> ReserveChunks(uint64_t bytes, uint64_t chunk_bytes,
                                                              bool writable) override {
    return std::make_unique<Chunks>(this, NewAddresses(bytes), bytes, chunk_bytes, writable);
  }
  absl::StatusOr<std::unique_ptr<GpuCopies>> NewCopies(const CopyPlan& plan, const AdvancePlan& advance) override {
    return std::make_unique<Copies>(this, plan, advance);
  }
  absl::StatusOr<bool> IsCapturing(CUstream_st* stream) override { return Of(stream)->is_captured.load(); }

 private:
  static absl::Status Failed() {
    return MakeError(absl::StatusCode::kInternal, "GPU_FAILED", "", "an illegal address");
  }
  static char* NewAddresses(uint64_t bytes) {
    void* const data = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(data, MAP_FAILED);
    return static_cast<char*>(data);
  }
  FakeStream* Of(CUstream_st* stream) {
    if (stream == nullptr) return &legacy;
    auto* const found = reinterpret_cast<FakeStream*>(stream);
    const std::lock_guard lock(mu_);
    streams_.insert(found);
    return found;
  }
  // Of all streams that were ever named: they must live on.
  void Synchronize() {
    std::set<FakeStream*> streams;
    {
      const std::lock_guard lock(mu_);
      streams = streams_;
    }
    legacy.Synchronize();
    for (const FakeStream* stream : streams) stream->Synchronize();
  }
  void CheckUnused(const char* data, uint64_t bytes) {
    const std::lock_guard lock(mu_);
    for (const char* used : in_use_) unmapped_in_use_ += data <= used && used < data + bytes ? 1 : 0;
  }

  class ArenaRange final : public Range {
   public:
    ArenaRange(FakeGpu* gpu, char* data, uint64_t bytes) : Range(data, bytes), gpu_(gpu), pid_(getpid()) {}
    ~ArenaRange() override {
      EXPECT_EQ(getpid(), pid_) << "CUDA does not work in a forked child";
      (void)Vacate();
      munmap(data_, bytes_);
    }
    absl::Status Put(int fd) override {
      (void)Vacate();
      if (gpu_->refuses_memory) return MakeError(absl::StatusCode::kResourceExhausted, "MAPPING_FAILED", "", "no room");
      Note();
      is_mapped_ = mmap(data_, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED;
      return is_mapped_ ? absl::OkStatus() : Failed();
    }
    absl::Status Vacate() override {
      if (!is_mapped_) return absl::OkStatus();
      Note();
      gpu_->Synchronize();
      gpu_->CheckUnused(data_, bytes_);
      is_mapped_ = false;
      constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
      return mmap(data_, bytes_, PROT_NONE, kFlags, -1, 0) != MAP_FAILED ? absl::OkStatus() : Failed();
    }
    bool is_mapped() const override { return is_mapped_; }
    absl::Status WaitFor(CUstream_st* stream) const override {
      gpu_->Of(stream)->Synchronize();
      return absl::OkStatus();
    }

   private:
    void Note() {
      const std::lock_guard lock(gpu_->mu_);
      gpu_->mapping_threads_.insert(std::this_thread::get_id());
    }

    FakeGpu* const gpu_;
    const pid_t pid_;
    bool is_mapped_ = false;
  };

  class Chunks final : public MappedChunks {
   public:
    Chunks(FakeGpu* gpu, char* data, uint64_t bytes, uint64_t chunk_bytes, bool writable)
        : MappedChunks(data), gpu_(gpu), bytes_(bytes), chunk_bytes_(chunk_bytes), writable_(writable) {}
    ~Chunks() override {
      gpu_->CheckUnused(data_, bytes_);
      munmap(data_, bytes_);
    }
    absl::Status Add(const Descriptor& chunk) override {
      const int protection = writable_ ? PROT_READ | PROT_WRITE : PROT_READ;
      void* const at = data_ + mapped_bytes_;
      if (mmap(at, chunk_bytes_, protection, MAP_SHARED | MAP_FIXED, chunk.get(), 0) == MAP_FAILED) return Failed();
      mapped_bytes_ += chunk_bytes_;
      return absl::OkStatus();
    }
    absl::Status Finish() override {
      EXPECT_EQ(mapped_bytes_, bytes_);
      return absl::OkStatus();
    }

   private:
    FakeGpu* const gpu_;
    const uint64_t bytes_, chunk_bytes_;
    const bool writable_;
    uint64_t mapped_bytes_ = 0;
  };

  // The host's kernels, in the order of a stream.
  class Copies final : public GpuCopies {
   public:
    Copies(FakeGpu* gpu, const CopyPlan& plan, const AdvancePlan& advance)
        : gpu_(gpu),
          advance_(std::make_shared<const AdvancePlan>(advance)),
          plan_(std::make_shared<const CopyPlan>(
              std::vector<CopySegment>(plan.segments().begin(), plan.segments().end()), plan.state_bytes())) {}

    absl::StatusOr<std::unique_ptr<const Enqueued>> Gather(absl::Span<const FromSlot> items, char* arena,
                                                           CUstream_st* stream) override {
      const auto work = [plan = plan_, arena](const FromSlot& item, LeafHash*) {
        plan->Clear(arena, item.row);
        plan->Gather(item.state, 0, plan->state_bytes(), arena, {item.row}, CopyHint::kCached);
      };
      return Enqueue(items, /*leaves=*/0, arena, stream, work);
    }
    absl::StatusOr<std::unique_ptr<const Enqueued>> Scatter(absl::Span<const ToSlot> items, const char* arena,
                                                            CUstream_st* stream) override {
      const size_t leaves = LeafCount(plan_->state_bytes());
      const auto work = [plan = plan_, arena, leaves](const ToSlot& item, LeafHash* hashes) {
        plan->ScatterLeaves(arena, item.row, item.accepted, 0, leaves, item.state, hashes, CopyHint::kCached);
      };
      return Enqueue(items, leaves, arena, stream, work);
    }
    absl::Status Advance(absl::Span<const AdvanceMove> items, char* arena, CUstream_st* stream) override {
      for (const AdvanceMove& move : items) {
        gpu_->Use(arena, arena);
        gpu_->Of(stream)->Enqueue([=, gpu = gpu_, plan = advance_] {
          for (size_t part = 0; part < plan->parts().size(); ++part) plan->Move(arena, move, part);
          gpu->Disuse(arena, arena);
        });
        if (gpu_->refuses_copies) {
          gpu_->Of(stream)->Synchronize();
          return Failed();
        }
      }
      return absl::OkStatus();
    }

   private:
    template <typename Item, typename Work>
    absl::StatusOr<std::unique_ptr<const Enqueued>> Enqueue(absl::Span<const Item> items, size_t leaves,
                                                            const char* arena, CUstream_st* handle, Work work) {
      FakeStream* const stream = gpu_->Of(handle);
      const auto enqueued = std::make_shared<FakeEnqueued>(items.size() * leaves);
      for (size_t i = 0; i < items.size(); ++i) {
        gpu_->Use(items[i].state, arena);
        stream->Enqueue([=, gpu = gpu_, item = items[i]] {
          work(item, enqueued->hashes_to_write() + i * leaves);
          gpu->Disuse(item.state, arena);
        });
        if (gpu_->refuses_copies) {
          stream->Synchronize();
          return Failed();
        }
      }
      stream->Enqueue([enqueued, fails = gpu_->fails_next_event.exchange(false)] {
        enqueued->Fire(fails ? Failed() : absl::OkStatus());
      });
      return std::make_unique<const SharedEnqueued>(enqueued);
    }

    FakeGpu* const gpu_;
    const std::shared_ptr<const AdvancePlan> advance_;
    const std::shared_ptr<const CopyPlan> plan_;
  };

  void Use(const char* state, const char* arena) {
    const std::lock_guard lock(mu_);
    in_use_.insert({state, arena});
  }
  void Disuse(const char* state, const char* arena) {
    const std::lock_guard lock(mu_);
    in_use_.erase(in_use_.find(state));
    in_use_.erase(in_use_.find(arena));
  }

  mutable std::mutex mu_;  // of what follows
  std::set<FakeStream*> streams_;
  std::multiset<const char*> in_use_;  // a byte of each thing that a stream has yet to read or write
  std::set<std::thread::id> mapping_threads_;
  std::atomic<int> unmapped_in_use_ = 0;
};

}  // namespace statepool::client

#endif  // STATEPOOL_TESTS_UNIT_CLIENT_FAKE_GPU_H_
