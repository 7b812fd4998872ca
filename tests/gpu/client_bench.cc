// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What direct loads and stores of the C++ client take on a GPU, against the daemon at $STATEPOOL_SERVER, which has
// direct ways and room for 192 states: JSON lines of times in us, for direct_check.py, which starts one and runs this.
// Of one state of 23 MB and of 64, distinct ones, in an otherwise idle stream. --quick: fewer calls.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "client/cpp/arena.h"
#include "client/cpp/statepool.h"

namespace statepool::client {
namespace {

constexpr uint32_t kRows = 64, kStates = 128;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::exit(2);
}
void Must(cudaError_t error) {
  if (error != cudaSuccess) Must(absl::InternalError(cudaGetErrorString(error)));
}
template <typename Answer>
void MustAll(const absl::StatusOr<Answer>& answer) {
  Must(answer.status());
  for (const auto& row : answer->rows) Must(row.status());
}

// mamba-2.8b.
v1::Layout Mamba() {
  v1::Layout layout;
  layout.set_model_id("gpu-client-bench");
  for (const auto& [name, axis, size] : {std::tuple{"conv", "tap", 3u}, {"ssm", "state", 16u}}) {
    const bool is_conv = std::string(name) == "conv";
    v1::TensorSpec& tensor = *layout.add_tensors();
    tensor.set_name(name);
    tensor.set_kind(is_conv ? v1::CONV : v1::RECURRENT);
    tensor.set_dtype(is_conv ? v1::BFLOAT16 : v1::FLOAT32);
    for (uint32_t layer = 0; layer < 64; ++layer) tensor.add_layers(layer);
    tensor.add_axes()->set_name("channel");
    tensor.mutable_axes(0)->set_size(5120);
    tensor.add_axes()->set_name(axis);
    tensor.mutable_axes(1)->set_size(size);
  }
  return layout;
}

class Bench {
 public:
  Bench(const std::string& address, bool is_quick) : is_quick_(is_quick) {
    auto pool = Pool::Connect(address);
    Must(pool.status());
    pool_ = std::make_unique<Pool>(*std::move(pool));
    const auto info = pool_->RegisterLayout(Mamba(), "gpu-client-bench");
    Must(info.status());
    state_bytes_ = info->state_bytes();
    auto arena = pool_->OpenArena("gpu-client-bench", {.rows = kRows, .direct = true});
    Must(arena.status());
    arena_ = *std::move(arena);
    Must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), std::mt19937(1));
    for (const uint32_t first : {0u, kRows}) MustAll(arena_->Store(Stores(first, kRows, order_), false, {}, stream_));
  }
  ~Bench() {
    arena_ = nullptr;
    Must(cudaStreamDestroy(stream_));
  }

  void Run() {
    Print("rpc", 0, Times(100, [this](int) { Must(pool_->GetCapabilities().status()); }));
    for (const uint32_t rows : {1u, kRows}) {
      const int n = (rows == 1 ? 100 : 20) / (is_quick_ ? 4 : 1);
      const auto loads = [&](int i) {
        MustAll(arena_->Load(Loads(static_cast<uint32_t>(i) * rows, rows), {}, stream_));
      };
      const auto stores = [&](int i) { return Stores(static_cast<uint32_t>(i) * rows, rows, in_order_); };
      PrintCopy(rows, n);
      Print("load", rows, Times(n, [&](int i) {
              loads(i);
              Must(cudaStreamSynchronize(stream_));
            }));
      Print("load-returned", rows, Times(n, loads));
      Print("store", rows, Times(n, [&](int i) { MustAll(arena_->Store(stores(i), false, {}, stream_)); }));
      std::vector<PendingStore> begun;
      Print("store_async-returned", rows,
            Times(
                n,
                [&](int i) {
                  auto store = arena_->StoreAsync(stores(i), false, {}, stream_);
                  Must(store.status());
                  begun.push_back(*std::move(store));
                },
                [&] {
                  if (!begun.empty()) MustAll(begun.back().Wait());
                }));
    }
  }

 private:
  using Order = std::array<uint32_t, kStates>;

  static Order InOrder() {
    Order order;
    std::iota(order.begin(), order.end(), 0);
    return order;
  }
  static std::string NameOf(uint32_t state) { return absl::StrCat("bench/", state); }
  static std::vector<v1::StoreItem> Stores(uint32_t first, uint32_t rows, const Order& order) {
    std::vector<v1::StoreItem> items;
    for (uint32_t row = 0; row < rows; ++row) {
      items.push_back(StoreRow(row, NameOf(order[(first + row) % kStates]), 1));
      items.back().set_whole_row(true);
      items.back().set_any_revision(true);
      items.back().mutable_options()->set_max_history(1);
    }
    return items;
  }
  static std::vector<v1::LoadItem> Loads(uint32_t first, uint32_t rows) {
    std::vector<v1::LoadItem> items;
    for (uint32_t row = 0; row < rows; ++row)
      items.push_back(LoadRow(row, SequenceRef(NameOf((first + row) % kStates))));
    return items;
  }

  // Of calls of an idle GPU, after three that don't count. before: each, not counted.
  std::vector<double> Times(
      int n, const std::function<void(int)>& call, const std::function<void()>& before = [] {}) {
    std::vector<double> times;
    for (int i = 0; i < n + 3; ++i) {
      before();
      Must(cudaDeviceSynchronize());
      const auto start = std::chrono::steady_clock::now();
      call(i);
      const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
      if (i >= 3) times.push_back(took.count());
    }
    before();
    return times;
  }
  void PrintCopy(uint32_t rows, int n) {
    void *from = nullptr, *to = nullptr;
    const uint64_t bytes = rows * state_bytes_;
    Must(cudaMalloc(&from, bytes));
    Must(cudaMalloc(&to, bytes));
    Print("copy", rows, Times(n, [&](int) {
            Must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
            Must(cudaStreamSynchronize(stream_));
          }));
    Must(cudaFree(from));
    Must(cudaFree(to));
  }
  void Print(const char* what, uint32_t rows, const std::vector<double>& times) const {
    std::printf("{\"what\": \"%s\", \"rows\": %u, \"bytes\": %llu, \"us\": [%s]}\n", what, rows,
                static_cast<unsigned long long>(rows * state_bytes_), absl::StrJoin(times, ", ").c_str());
    std::fflush(stdout);
  }

  const bool is_quick_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Arena> arena_;
  uint64_t state_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  const Order in_order_ = InOrder();
  Order order_;
};

}  // namespace
}  // namespace statepool::client

int main(int argc, char** argv) {
  const char* const address = std::getenv("STATEPOOL_SERVER");
  if (address == nullptr) {
    std::fputs("direct_check.py runs this\n", stderr);
    return 2;
  }
  statepool::client::Bench(address, argc > 1 && absl::string_view(argv[1]) == "--quick").Run();
}
