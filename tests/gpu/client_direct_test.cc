// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The C++ client's direct loads and stores on a GPU, against the daemon at $STATEPOOL_SERVER, which has direct ways;
// direct_check.py starts one and runs this. Where the daemon is to be killed and started anew, a line "restart" is
// printed, and a line is waited for.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/cpp/arena.h"
#include "client/cpp/errors.h"
#include "client/cpp/statepool.h"

namespace statepool::client {
namespace {

std::string ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason; }

#define EXPECT_CUDA(call) EXPECT_EQ(call, cudaSuccess)

v1::TensorSpec* AddTensor(const std::string& name, v1::TensorKind kind, v1::DType dtype,
                          const std::vector<std::pair<std::string, uint64_t>>& axes, v1::Layout* layout) {
  v1::TensorSpec* const tensor = layout->add_tensors();
  tensor->set_name(name);
  tensor->set_kind(kind);
  tensor->set_dtype(dtype);
  for (const auto& [axis, size] : axes) {
    tensor->add_axes()->set_name(axis);
    tensor->mutable_axes()->rbegin()->set_size(size);
  }
  return tensor;
}

// All dtypes, a convolution and a matrix that views turn.
v1::Layout EveryDtype() {
  v1::Layout layout;
  layout.set_model_id("gpu-client-dtypes");
  for (uint32_t layer : {0, 1, 2}) {
    if (layer == 0) AddTensor("conv", v1::CONV, v1::BFLOAT16, {{"channel", 64}, {"tap", 3}}, &layout);
    layout.mutable_tensors(0)->add_layers(layer);
  }
  v1::TensorSpec* const ssm =
      AddTensor("ssm", v1::RECURRENT, v1::FLOAT32, {{"head", 4}, {"key", 100}, {"value", 72}}, &layout);
  for (uint32_t layer : {0, 2}) ssm->add_layers(layer);
  for (int dtype = v1::DType_MIN + 1; dtype <= v1::DType_MAX; ++dtype) {
    const auto of = static_cast<v1::DType>(dtype);
    v1::TensorSpec* const tensor =
        AddTensor(absl::StrCat("of_", v1::DType_Name(of)), v1::OTHER, of, {{"a", 8}, {"b", 40}}, &layout);
    for (uint32_t layer : {1, 3}) tensor->add_layers(layer);
  }
  return layout;
}

// 4 MiB, in one piece if row-major.
v1::Layout Large() {
  v1::Layout layout;
  layout.set_model_id("gpu-client-large");
  AddTensor("x", v1::RECURRENT, v1::UINT8, {{"x", 4 << 20}}, &layout)->add_layers(0);
  return layout;
}

// Keeps a stream from going on until it is opened; for 20 s, so that who waits for the stream fails, and does not hang.
class Gate {
 public:
  explicit Gate(cudaStream_t stream) : stream_(stream) {
    const auto wait = [](void* open) {
      static_cast<absl::Notification*>(open)->WaitForNotificationWithTimeout(absl::Seconds(20));
    };
    EXPECT_CUDA(cudaLaunchHostFunc(stream, wait, &open_));
  }
  ~Gate() {
    if (!open_.HasBeenNotified()) Open();
    EXPECT_CUDA(cudaStreamSynchronize(stream_));
  }
  void Open() { open_.Notify(); }

 private:
  const cudaStream_t stream_;
  absl::Notification open_;
};

class GpuDirectClientTest : public testing::Test {
 protected:
  GpuDirectClientTest() {
    const char* const address = std::getenv("STATEPOOL_SERVER");
    EXPECT_NE(address, nullptr) << "direct_check.py runs this";
    Options options;
    options.timeout = absl::Seconds(20);
    auto pool = Pool::Connect(address == nullptr ? "" : address, options);
    EXPECT_TRUE(pool.ok()) << pool.status();
    pool_.emplace(*std::move(pool));
    for (const auto& [alias, layout] : {std::pair{"dtypes", EveryDtype()}, {"large", Large()}}) {
      const auto info = pool_->RegisterLayout(layout, alias);
      EXPECT_TRUE(info.ok()) << info.status();
      (alias == std::string("large") ? large_bytes_ : dtypes_bytes_) = info.ok() ? info->state_bytes() : 0;
    }
    EXPECT_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    for (void** memory : {&from_, &to_}) EXPECT_CUDA(cudaMalloc(memory, kBacklogBytes));
  }
  ~GpuDirectClientTest() override {
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaStreamDestroy(stream_));
    for (void* memory : {from_, to_}) EXPECT_CUDA(cudaFree(memory));
  }

  static std::string Name(absl::string_view suffix = "") {
    return absl::StrCat("gpu-direct/", testing::UnitTest::GetInstance()->current_test_info()->name(), suffix);
  }
  static std::string Random(uint32_t seed, uint64_t bytes) {
    std::mt19937 random(seed);
    std::string out(bytes, '\0');
    for (char& byte : out) byte = static_cast<char>(random());
    return out;
  }
  void Set(const std::string& name, const std::string& layout, const std::string& state) const {
    v1::SetRequest request;
    request.set_sequence(name);
    request.set_layout(layout);
    request.set_position(1);
    request.mutable_options()->set_durability(v1::SYNC);
    const auto info = pool_->Set(request, {state});
    EXPECT_TRUE(info.ok()) << info.status();
  }
  std::string Get(const std::string& name) const {
    const auto state = pool_->Get(SequenceRef(name));
    return state.ok() ? absl::StrJoin(state->pieces(), "") : ReasonOf(state.status());
  }
  bool Holds(const std::string& name, int value) const {
    return Get(name) == std::string(large_bytes_, static_cast<char>(value));
  }
  bool Holds(const Arena& arena, uint32_t row, int value, cudaStream_t stream) const {
    return Read(Row(arena, row), large_bytes_, stream) == std::string(large_bytes_, static_cast<char>(value));
  }

  std::unique_ptr<Arena> Open(const std::string& layout, uint32_t rows) const {
    ArenaOptions options{.rows = rows, .direct = true};
    options.view.set_layers(v1::View::ROW_MAJOR);
    absl::StatusOr<std::unique_ptr<Arena>> arena = pool_->OpenArena(layout, options);
    EXPECT_TRUE(arena.ok()) << arena.status();
    return arena.ok() ? *std::move(arena) : nullptr;
  }
  static char* Row(const Arena& arena, uint32_t row) {
    return static_cast<char*>(arena.tensors()[0].data) + row * arena.tensors()[0].strides[0];
  }
  // A row of the large layout, in the order of a stream.
  void Fill(const Arena& arena, uint32_t row, int value, cudaStream_t stream) const {
    EXPECT_CUDA(cudaMemsetAsync(Row(arena, row), value, large_bytes_, stream));
  }
  static std::string Read(const char* from, uint64_t bytes, cudaStream_t stream) {
    std::string out(bytes, '\0');
    EXPECT_CUDA(cudaMemcpyAsync(out.data(), from, bytes, cudaMemcpyDeviceToHost, stream));
    EXPECT_CUDA(cudaStreamSynchronize(stream));
    return out;
  }
  // Work that keeps a stream busy for a good while: some 70 ms.
  void Backlog(cudaStream_t stream) const {
    for (int i = 0; i < 200; ++i)
      EXPECT_CUDA(cudaMemcpyAsync(to_, from_, kBacklogBytes, cudaMemcpyDeviceToDevice, stream));
  }
  static v1::StoreItem Whole(uint32_t row, const std::string& name, int64_t position) {
    v1::StoreItem item = StoreRow(row, name, position);
    item.set_whole_row(true);
    item.set_any_revision(true);
    return item;
  }
  static absl::Status StatusOf(const absl::StatusOr<StoreAnswer>& answer) {
    return !answer.ok() ? answer.status() : answer->rows[0].status();
  }

  // Repeats what the daemon asks to be repeated, of the call or of an item.
  template <typename MakeCall>
  static auto Patiently(MakeCall call) {
    for (int attempt = 0;; ++attempt) {
      auto answer = call();
      absl::Status error = answer.status();
      for (size_t i = 0; error.ok() && i < answer->rows.size(); ++i) error = answer->rows[i].status();
      const std::optional<absl::Duration> delay = GetErrorDetail(error).retry_after;
      if (error.ok() || !delay || attempt == 100) return answer;
      absl::SleepFor(std::min(*delay, absl::Milliseconds(100)));
    }
  }

  static constexpr size_t kBacklogBytes = 512 << 20;

  std::optional<Pool> pool_;
  uint64_t dtypes_bytes_ = 0, large_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  void *from_ = nullptr, *to_ = nullptr;
};

TEST_F(GpuDirectClientTest, EveryDtypeInEachViewIsCopiedAsTheDaemonDoes) {
  const std::string in = Random(1, dtypes_bytes_);
  Set(Name("/in"), "dtypes", in);
  for (const auto layers : {v1::View::PER_LAYER, v1::View::LAYER_MAJOR, v1::View::ROW_MAJOR}) {
    for (const bool is_turned : {false, true}) {
      ArenaOptions options{.rows = 3, .steps = 2};
      options.view.set_layers(layers);
      options.view.set_num_spec(2);
      if (is_turned) {
        options.view.set_conv_padding(1);
        v1::AxisOrder& order = *options.view.add_axis_orders();
        order.set_tensor("ssm");
        for (const char* axis : {"value", "head", "key"}) order.add_axes(axis);
      }
      std::vector<std::string> seen[2];
      for (const bool direct : {false, true}) {
        options.direct = direct;
        const auto arena = pool_->OpenArena("dtypes", options);
        ASSERT_TRUE(arena.ok()) << arena.status();
        char *begin = static_cast<char*>((*arena)->tensors()[0].data), *end = begin;
        for (const ArenaTensor& tensor : (*arena)->tensors()) {
          char* last = static_cast<char*>(tensor.data);
          begin = std::min(begin, last);
          for (size_t axis = 0; axis < tensor.shape.size(); ++axis)
            last += (tensor.shape[axis] - 1) * tensor.strides[axis];
          end = std::max(end, last + BytesOf(tensor.dtype));
        }
        const auto bytes = static_cast<uint64_t>(end - begin);
        EXPECT_CUDA(cudaMemsetAsync(begin, 0x55, bytes, stream_));
        const auto loaded = (*arena)->Load(
            {LoadRow(2, SequenceRef(Name("/in"))), LoadRow(1, SequenceRef(Name("/nobody")))}, {}, stream_);
        ASSERT_TRUE(loaded.ok() && loaded->rows[0].ok()) << loaded.status();
        EXPECT_EQ(ReasonOf(loaded->rows[1].status()), "NEVER_CREATED");
        EXPECT_TRUE(loaded->rows[0]->copied());
        seen[direct].push_back(Read(begin, bytes, stream_));
        for (const uint32_t accepted : {1u, 2u}) {
          const std::string name = Name(absl::StrCat("/", layers, is_turned, direct, accepted));
          v1::StoreItem item = Whole(2, name, 5);
          item.set_accepted_length(accepted);
          const absl::Status stored = StatusOf((*arena)->Store({item}, true, {}, stream_));
          ASSERT_TRUE(stored.ok()) << stored;
          seen[direct].push_back(Get(name));
        }
      }
      EXPECT_TRUE(seen[0] == seen[1]) << layers << is_turned;
      EXPECT_TRUE(seen[1][1] == in && seen[1][2] != in) << layers << is_turned;
    }
  }
}

TEST_F(GpuDirectClientTest, LoadsAndStoresAreInTheOrderOfTheStreamAndWaitForNothing) {
  const std::unique_ptr<Arena> arena = Open("large", 4);
  ASSERT_NE(arena, nullptr);
  for (const cudaStream_t stream : {stream_, cudaStream_t{nullptr}, cudaStreamPerThread}) {
    // The driver loads kernels when they are launched first, and may wait for the GPU then.
    ASSERT_TRUE(StatusOf(arena->Store({Whole(0, Name("/warm"), 1)}, true, {}, stream)).ok());
    ASSERT_TRUE(arena->Load({LoadRow(0, SequenceRef(Name("/warm")))}, {}, stream).ok());
    Gate gate(stream);
    std::vector<PendingStore> stores;
    for (int value = 1; value <= 6; ++value) {
      Fill(*arena, 0, value, stream);
      auto store = arena->StoreAsync({Whole(0, Name(absl::StrCat("/", value)), value)}, true, {}, stream);
      ASSERT_TRUE(store.ok()) << store.status();
      stores.push_back(*std::move(store));
    }
    Fill(*arena, 0, 99, stream);  // after the copies
    EXPECT_FALSE(stores[0].done());
    EXPECT_EQ(ReasonOf(stores[0].Wait(absl::ZeroDuration()).status()), "NOT_DONE_YET");
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady) << "nobody waited";
    gate.Open();
    const auto last = stores.back().Wait();
    ASSERT_TRUE(StatusOf(last).ok()) << StatusOf(last);
    EXPECT_TRUE(last->rows[0]->position() == 6 && stores[0].done() && stores[0].Wait()->rows[0]->position() == 1);
    for (int value = 1; value <= 6; ++value) EXPECT_TRUE(Holds(Name(absl::StrCat("/", value)), value));
    Gate before_load(stream);
    std::vector<v1::LoadItem> items;
    for (uint32_t row = 1; row < 4; ++row) items.push_back(LoadRow(row, SequenceRef(Name(absl::StrCat("/", row)))));
    ASSERT_TRUE(arena->Load(items, {}, stream).ok());
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady) << "nobody waited";
    before_load.Open();
    for (uint32_t row = 1; row < 4; ++row) EXPECT_TRUE(Holds(*arena, row, static_cast<int>(row), stream));
    // What is loaded while a store of the row is under way comes after it.
    Backlog(stream);
    const auto store = arena->StoreAsync({Whole(1, Name("/before"), 1)}, true, {}, stream);
    ASSERT_TRUE(store.ok() && arena->Load({LoadRow(1, SequenceRef(Name("/5")))}, {}, stream).ok());
    EXPECT_TRUE(store->done() && StatusOf(store->Wait()).ok() && Holds(Name("/before"), 1));
    EXPECT_TRUE(Holds(*arena, 1, 5, stream));
  }
}

TEST_F(GpuDirectClientTest, AStoreWhoseHandleIsDroppedIsPublished) {
  const std::unique_ptr<Arena> arena = Open("large", 2);
  ASSERT_NE(arena, nullptr);
  Fill(*arena, 0, 7, stream_);
  ASSERT_TRUE(arena->StoreAsync({Whole(0, Name(), 1)}, true, {}, stream_).ok());
  for (int i = 0; i < 2000 && !pool_->Describe(SequenceRef(Name())).ok(); ++i) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(Holds(Name(), 7));
}

TEST_F(GpuDirectClientTest, AnArenaThatEndsOrOpensAnewFinishesWhatBegan) {
  std::unique_ptr<Arena> arena = Open("large", 3);
  ASSERT_NE(arena, nullptr);
  Set(Name("/in"), "large", std::string(large_bytes_, 3));
  char* const row = Row(*arena, 0);
  for (int i = 0; i < 4; ++i) {
    Backlog(stream_);
    ASSERT_TRUE(arena->Load({LoadRow(0, SequenceRef(Name("/in")))}, {}, stream_).ok());
    const auto store = arena->StoreAsync({Whole(0, Name(absl::StrCat("/", i)), 1)}, true, {}, stream_);
    ASSERT_TRUE(store.ok() && arena->Load({LoadRow(1, SequenceRef(Name("/in")))}, {}, stream_).ok());
    if (i == 3) {
      arena->Close();
    } else {
      ASSERT_TRUE(arena->Reopen().ok());
      EXPECT_EQ(Row(*arena, 0), row);
      EXPECT_TRUE(Holds(*arena, 0, 0, stream_)) << "rows are zeros";
    }
    EXPECT_TRUE(store->done() && StatusOf(store->Wait()).ok());
    EXPECT_TRUE(Holds(Name(absl::StrCat("/", i)), 3));
  }
  EXPECT_EQ(ReasonOf(arena->StoreAsync({Whole(0, Name(), 1)})->Wait().status()), "ARENA_CLOSED");
}

TEST_F(GpuDirectClientTest, AStreamThatIsCapturedIsRefusedAndOthersGoOn) {
  const std::unique_ptr<Arena> arena = Open("large", 2);
  ASSERT_NE(arena, nullptr);
  cudaStream_t captured;
  EXPECT_CUDA(cudaStreamCreate(&captured));  // a blocking one: the legacy stream waits for it
  ASSERT_EQ(cudaStreamBeginCapture(captured, cudaStreamCaptureModeGlobal), cudaSuccess);
  Fill(*arena, 1, 5, captured);
  for (const cudaStream_t stream : {captured, cudaStream_t{nullptr}}) {
    EXPECT_EQ(ReasonOf(arena->Load({LoadRow(0, SequenceRef(Name()))}, {}, stream).status()), "STREAM_CAPTURING");
    EXPECT_EQ(ReasonOf(arena->Store({Whole(0, Name(), 1)}, true, {}, stream).status()), "STREAM_CAPTURING");
    EXPECT_EQ(ReasonOf(arena->StoreAsync({Whole(0, Name(), 1)}, true, {}, stream).status()), "STREAM_CAPTURING");
  }
  Fill(*arena, 0, 4, stream_);
  EXPECT_TRUE(StatusOf(arena->StoreAsync({Whole(0, Name(), 1)}, true, {}, stream_)->Wait()).ok());
  EXPECT_TRUE(arena->Load({LoadRow(0, SequenceRef(Name()))}, {}, stream_).ok());
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamEndCapture(captured, &graph), cudaSuccess) << "nothing has invalidated it";
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  EXPECT_CUDA(cudaGraphLaunch(executable, stream_));
  EXPECT_TRUE(StatusOf(arena->Store({Whole(1, Name("/by-graph"), 1)}, true, {}, stream_)).ok());
  EXPECT_TRUE(Holds(Name(), 4) && Holds(Name("/by-graph"), 5));
  EXPECT_CUDA(cudaGraphExecDestroy(executable));
  EXPECT_CUDA(cudaGraphDestroy(graph));
  EXPECT_CUDA(cudaStreamDestroy(captured));
}

TEST_F(GpuDirectClientTest, ThreadsShareAnArenaEachInItsStream) {
  const std::unique_ptr<Arena> arena = Open("large", 4);
  ASSERT_NE(arena, nullptr);
  std::vector<std::thread> threads;
  for (uint32_t row = 0; row < 4; ++row) {
    threads.emplace_back([&, row] {
      cudaStream_t stream;
      EXPECT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      const std::string name = Name(absl::StrCat("/", row));
      std::optional<PendingStore> store;
      for (int i = 1; i <= 40; ++i) {
        Fill(*arena, row, i, stream);
        store = *arena->StoreAsync({Whole(row, name, i)}, true, {}, stream);
        Fill(*arena, row, 0, stream);
        EXPECT_TRUE(i % 4 != 0 || StatusOf(store->Wait()).ok());
        if (i % 8 != 0) continue;
        const auto loaded = arena->Load({LoadRow(row, SequenceRef(name))}, {}, stream);
        EXPECT_TRUE(loaded.ok() && loaded->rows[0].ok()) << loaded.status();
        EXPECT_TRUE(Holds(*arena, row, i, stream));
      }
      EXPECT_TRUE(StatusOf(store->Wait()).ok() && Holds(name, 40));
      EXPECT_CUDA(cudaStreamDestroy(stream));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(GpuDirectClientTest, MoreStatesThanTheBudgetAreLoadedAsTheyWereStored) {
  // The daemon has 768 MiB.
  constexpr int kStates = 288;
  const std::unique_ptr<Arena> arena = Open("large", 8);
  ASSERT_NE(arena, nullptr);
  for (int i = 0; i < kStates; ++i) {
    Fill(*arena, i % 8, i % 127, stream_);
    const absl::Status stored = StatusOf(
        Patiently([&] { return arena->Store({Whole(i % 8, Name(absl::StrCat("/", i)), 1)}, true, {}, stream_); }));
    ASSERT_TRUE(stored.ok()) << i << stored;
  }
  std::mt19937 random(1);
  for (int i = 0; i < 100; ++i) {
    std::vector<v1::LoadItem> items;
    std::vector<int> loaded;
    for (uint32_t row = 0; row < 8; ++row) {
      loaded.push_back(static_cast<int>(random() % kStates));
      items.push_back(LoadRow(row, SequenceRef(Name(absl::StrCat("/", loaded.back())))));
    }
    const auto answer = Patiently([&] { return arena->Load(items, {}, stream_); });
    ASSERT_TRUE(answer.ok()) << answer.status();
    for (uint32_t row = 0; row < 8; ++row) {
      ASSERT_TRUE(answer->rows[row].ok()) << answer->rows[row].status();
      ASSERT_TRUE(Holds(*arena, row, loaded[row] % 127, stream_));
    }
  }
}

TEST_F(GpuDirectClientTest, AForkedChildIsRefusedAndTheParentGoesOn) {
  const std::unique_ptr<Arena> arena = Open("large", 2);
  ASSERT_NE(arena, nullptr);
  Fill(*arena, 0, 6, stream_);
  Backlog(stream_);
  std::optional<PendingStore> store = *arena->StoreAsync({Whole(0, Name(), 1)}, true, {}, stream_);
  const pid_t child = fork();
  if (child == 0) {
    const bool is_refused = ReasonOf(store->Wait().status()) == "FORKED" &&
                            ReasonOf(arena->Load({LoadRow(0, SequenceRef(Name()))}).status()) == "FORKED";
    store.reset();
    arena->Close();
    _exit(is_refused ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(StatusOf(store->Wait()).ok() && Holds(Name(), 6));
}

TEST_F(GpuDirectClientTest, AfterAKilledDaemonTheArenaIsThereAgainAndItsGraphsAreValid) {
  const std::unique_ptr<Arena> arena = Open("large", 3);
  ASSERT_NE(arena, nullptr);
  Set(Name("/kept"), "large", std::string(large_bytes_, 3));
  char* const row = Row(*arena, 1);
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), cudaSuccess);
  Fill(*arena, 2, 9, stream_);
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(arena->Load({LoadRow(1, SequenceRef(Name("/kept")))}, {}, stream_).ok());
    Backlog(stream_);
    ASSERT_TRUE(arena->Load({LoadRow(0, SequenceRef(Name("/kept")))}, {}, stream_).ok());  // its pins are under way
    const auto store = arena->StoreAsync({Whole(1, Name("/lost"), 2)}, true, {}, stream_);
    ASSERT_TRUE(store.ok()) << store.status();
    std::puts("restart");
    std::fflush(stdout);
    ASSERT_NE(std::getchar(), EOF);
    EXPECT_CUDA(cudaGraphLaunch(executable, stream_));
    const absl::Status lost = StatusOf(store->Wait());
    // It may have come before, and the connection may not be there yet.
    EXPECT_TRUE(lost.ok() || ReasonOf(lost) == "CONTENTS_GONE" || ReasonOf(lost) == "UNREACHABLE") << lost;
    EXPECT_CUDA(cudaStreamSynchronize(stream_));
    absl::Status loaded;
    for (int attempt = 0; attempt < 100; ++attempt) {
      const auto answer = arena->Load({LoadRow(1, SequenceRef(Name("/kept")))}, {}, stream_);
      loaded = answer.ok() ? answer->rows[0].status() : answer.status();
      if (loaded.ok()) break;
      ASSERT_TRUE(ReasonOf(loaded) == "CONTENTS_GONE" || ReasonOf(loaded) == "UNREACHABLE") << loaded;
      absl::SleepFor(absl::Milliseconds(50));
    }
    ASSERT_TRUE(loaded.ok()) << loaded;
    EXPECT_EQ(Row(*arena, 1), row);
    EXPECT_TRUE(Holds(*arena, 1, 3, stream_));
    EXPECT_TRUE(Holds(*arena, 0, 0, stream_)) << "rows are zeros";
    EXPECT_CUDA(cudaGraphLaunch(executable, stream_));
    const absl::Status after = StatusOf(arena->Store({Whole(2, Name("/after"), 2)}, true, {}, stream_));
    EXPECT_TRUE(after.ok() && Holds(Name("/after"), 9)) << after;
  }
  EXPECT_CUDA(cudaGraphExecDestroy(executable));
  EXPECT_CUDA(cudaGraphDestroy(graph));
}

}  // namespace
}  // namespace statepool::client
