// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Gather and scatter of whole batches, the latter also with hashes, beside one cudaMemcpy of as many bytes; hashes
// beside a kernel that only reads. One line of JSON for each figure, which kernels.py reads. `us`: the best of 20
// calls, each between two events, `p50_us` and `p99_us` of the same; `graph_us`: of one of ten in a graph, which leaves
// out what a launch costs the host. Every call takes other slots and rows where there are others, so that the caches
// don't have its bytes from the call before. Bytes are counted as read and as written.
//
// gpu_kernels_bench [--quick] [--seed=N]; --quick: 64 rows of what has a goal, and of the small model.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/checksum.h"
#include "kernels/copy_plan.h"
#include "kernels/device_checksum.h"
#include "kernels/device_copy_plan.h"

namespace statepool {
namespace {

constexpr int kRounds = 20, kGraphCalls = 10;

void Must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(2);
}
void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(2);
}

__global__ void FillKernel(uint32_t* words, uint64_t count) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count; i += uint64_t{gridDim.x} * blockDim.x) {
    words[i] = static_cast<uint32_t>(i * 2654435761u ^ i >> 7);
  }
}

// One block for 64 KiB of one image, as the hashes have it.
struct ReadImages {
  const uint4* at[256];
};
__global__ void __launch_bounds__(256)
    ReadKernel(const __grid_constant__ ReadImages images, uint32_t leaves, uint64_t bytes, uint32_t* out) {
  const uint32_t image = blockIdx.x / leaves, leaf = blockIdx.x % leaves;
  const uint4* const data = images.at[image] + uint64_t{leaf} * (kLeafBytes / 16);
  const uint32_t count = min(static_cast<uint64_t>(kLeafBytes), bytes - uint64_t{leaf} * kLeafBytes) / 16;
  uint32_t sum = 0;
#pragma unroll 16
  for (uint32_t i = threadIdx.x; i < count; i += 256) {
    const uint4 word = __ldcs(data + i);
    sum ^= word.x ^ word.y ^ word.z ^ word.w;
  }
  if (sum == 0x12345678) *out = sum;
}
__global__ void EmptyKernel() {}

class Memory {
 public:
  explicit Memory(uint64_t bytes) {
    Must(cudaMalloc(&at_, bytes));
    FillKernel<<<1024, 256>>>(static_cast<uint32_t*>(at_), bytes / 4);
    Must(cudaDeviceSynchronize());
  }
  ~Memory() { Must(cudaFree(at_)); }
  Memory(const Memory&) = delete;
  char* at() const { return static_cast<char*>(at_); }

 private:
  void* at_ = nullptr;
};

struct Times {
  double us = 0, p50_us = 0, p99_us = 0, graph_us = 0;
};

// call(i, stream) for i = 0, 1, …
Times Measure(const std::function<void(int, cudaStream_t)>& call) {
  cudaStream_t stream;
  cudaEvent_t begin, end;
  Must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Must(cudaEventCreate(&begin)), Must(cudaEventCreate(&end));
  std::vector<double> each;
  double graph_us = 1e30;
  const auto between = [&](const std::function<void()>& work) {
    Must(cudaEventRecord(begin, stream));
    work();
    Must(cudaEventRecord(end, stream));
    Must(cudaStreamSynchronize(stream));
    float ms = 0;
    Must(cudaEventElapsedTime(&ms, begin, end));
    return 1e3 * ms;
  };
  for (int i = 0; i < 3; ++i) call(i, stream);
  Must(cudaStreamSynchronize(stream));
  for (int i = 0; i < kRounds; ++i) each.push_back(between([&] { call(i, stream); }));
  std::sort(each.begin(), each.end());
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  Must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kGraphCalls; ++i) call(i, stream);
  Must(cudaStreamEndCapture(stream, &graph));
  Must(cudaGraphInstantiate(&replay, graph, 0));
  for (int i = 0; i < 5; ++i) {
    graph_us = std::min(graph_us, between([&] { Must(cudaGraphLaunch(replay, stream)); }) / kGraphCalls);
  }
  Must(cudaGraphExecDestroy(replay)), Must(cudaGraphDestroy(graph));
  Must(cudaEventDestroy(begin)), Must(cudaEventDestroy(end)), Must(cudaStreamDestroy(stream));
  return {each.front(), each[(kRounds - 1) / 2], each[(kRounds * 99 - 1) / 100], graph_us};
}

void Print(const char* figure, const std::string& model, uint64_t rows, uint64_t counted, Times ours, Times other) {
  std::printf(
      "{\"figure\":\"%s\",\"model\":\"%s\",\"rows\":%llu,\"bytes\":%llu,\"n\":%d,\"us\":%.2f,\"p50_us\":%.2f,"
      "\"p99_us\":%.2f,\"graph_us\":%.2f,\"baseline_us\":%.2f,\"baseline_p50_us\":%.2f,\"baseline_graph_us\":%.2f}\n",
      figure, model.c_str(), static_cast<unsigned long long>(rows), static_cast<unsigned long long>(counted), kRounds,
      ours.us, ours.p50_us, ours.p99_us, ours.graph_us, other.us, other.p50_us, other.graph_us);
  std::fflush(stdout);
}

struct Tensor {
  uint32_t element_bytes;
  std::vector<uint64_t> shape;  // of one layer, as the state has it
  std::vector<size_t> order;    // as the row has it
  uint64_t extra_columns = 0;   // of the innermost axis of the state, in the row
};

struct Model {
  std::string name;
  int layers;
  std::vector<Tensor> tensors;
};

// Layer by layer [rows, …], as engines have it.
CopyPlan PlanOf(const Model& model, uint64_t rows, uint64_t* arena_bytes) {
  std::vector<CopySegment> segments;
  uint64_t state_bytes = 0;
  *arena_bytes = 0;
  for (const Tensor& tensor : model.tensors) {
    for (int layer = 0; layer < model.layers; ++layer) {
      CopySegment segment;
      segment.state_offset = state_bytes;
      segment.arena_offset = *arena_bytes;
      segment.element_bytes = tensor.element_bytes;
      segment.axes.resize(tensor.shape.size());
      uint64_t stride = tensor.element_bytes;
      for (size_t i = tensor.order.size(); i-- > 0;) {
        const size_t axis = tensor.order[i];
        segment.axes[axis] = {tensor.shape[axis], stride};
        stride *= tensor.shape[axis] + (axis + 1 == tensor.shape.size() ? tensor.extra_columns : 0);
      }
      segment.row_stride = segment.accept_stride = stride;
      if (tensor.extra_columns > 0) segment.clear_offset = *arena_bytes, segment.clear_bytes = stride;
      *arena_bytes += rows * stride;
      state_bytes += segment.Bytes();
      segments.push_back(std::move(segment));
    }
  }
  return CopyPlan(std::move(segments), state_bytes);
}

void BenchCopies(const Model& model, uint64_t batch, uint64_t seed) {
  const uint64_t rows = std::max<uint64_t>(batch, 8);
  uint64_t arena_bytes = 0;
  const CopyPlan plan = PlanOf(model, rows, &arena_bytes);
  const uint64_t state_bytes = plan.state_bytes(), stride = (state_bytes + 511) / 512 * 512;
  // Small batches rotate through 400 MB on each side, so that they come from memory as large ones do.
  const uint64_t sets = std::clamp<uint64_t>((uint64_t{400} << 20) / (batch * stride), 1, 10);
  const uint64_t slots = std::max(batch * 5 / 4, batch * sets) + 1;
  const Memory pool(slots * stride), copy(slots * stride), hashes(batch * LeafCount(state_bytes) * sizeof(LeafHash));
  std::vector<Memory*> arenas;
  for (uint64_t i = 0; i < std::min<uint64_t>(sets, std::max<uint64_t>(1, (uint64_t{8} << 30) / arena_bytes)); ++i) {
    arenas.push_back(new Memory(arena_bytes));
  }
  absl::StatusOr<DeviceCopyPlan> device_plan = DeviceCopyPlan::Create(plan);
  Must(device_plan.status());
  std::mt19937_64 random(seed);
  std::vector<uint64_t> slot(slots), row(rows);
  std::iota(slot.begin(), slot.end(), 0);
  std::iota(row.begin(), row.end(), 0);
  std::shuffle(slot.begin(), slot.end(), random);
  std::shuffle(row.begin(), row.end(), random);
  std::vector<std::vector<DeviceCopyPlan::GatherItem>> gathers(kRounds), many(kRounds);
  std::vector<std::vector<DeviceCopyPlan::ScatterItem>> scatters(kRounds);
  for (int i = 0; i < kRounds; ++i) {
    for (uint64_t b = 0; b < batch; ++b) {
      char* const state = pool.at() + slot[(i * batch + b) % slots] * stride;
      const auto to = static_cast<uint32_t>(row[(i + b) % rows]);
      gathers[i].push_back({state, to});
      many[i].push_back({pool.at() + slot[i % slots] * stride, to});
      scatters[i].push_back({to, 1, state});
    }
  }
  const auto arena = [&](int i) { return arenas[i % arenas.size()]->at(); };
  const uint64_t counted = 2 * batch * state_bytes;
  const Times memcpy_times = Measure([&](int i, cudaStream_t stream) {
    const uint64_t at = i % sets * batch * stride;
    Must(cudaMemcpyAsync(copy.at() + at, pool.at() + at, batch * state_bytes, cudaMemcpyDeviceToDevice, stream));
  });
  Print("gather", model.name, batch, counted,
        Measure([&](int i, cudaStream_t stream) { Must(device_plan->Gather(gathers[i], arena(i), stream)); }),
        memcpy_times);
  Print("scatter", model.name, batch, counted,
        Measure([&](int i, cudaStream_t stream) { Must(device_plan->Scatter(scatters[i], arena(i), stream)); }),
        memcpy_times);
  Print("scatter_and_hash", model.name, batch, counted, Measure([&](int i, cudaStream_t stream) {
          auto* const to = reinterpret_cast<LeafHash*>(hashes.at());
          Must(device_plan->ScatterAndHash(scatters[i], arena(i), to, stream));
        }),
        memcpy_times);
  if (batch > 1) {
    Print("gather_of_one_state", model.name, batch, counted,
          Measure([&](int i, cudaStream_t stream) { Must(device_plan->Gather(many[i], arena(i), stream)); }),
          memcpy_times);
  }
  for (const Memory* memory : arenas) delete memory;
}

void BenchHashes(const std::string& model, uint64_t state_bytes, uint64_t batch) {
  const uint64_t stride = (state_bytes + 511) / 512 * 512, leaves = LeafCount(state_bytes);
  const uint64_t sets = std::clamp<uint64_t>((uint64_t{400} << 20) / (batch * stride), 1, 10);
  const Memory pool(sets * batch * stride), hashes(batch * leaves * 8);
  std::vector<std::vector<const void*>> images(sets);
  for (uint64_t i = 0; i < sets; ++i) {
    for (uint64_t b = 0; b < batch; ++b) images[i].push_back(pool.at() + (i * batch + b) * stride);
  }
  auto* const out = reinterpret_cast<LeafHash*>(hashes.at());
  const Times read = Measure([&](int i, cudaStream_t stream) {
    ReadImages at;
    for (uint64_t b = 0; b < batch; ++b) at.at[b] = static_cast<const uint4*>(images[i % sets][b]);
    ReadKernel<<<static_cast<uint32_t>(batch * leaves), 256, 0, stream>>>(
        at, static_cast<uint32_t>(leaves), state_bytes, reinterpret_cast<uint32_t*>(out));
  });
  const Times hash = Measure(
      [&](int i, cudaStream_t stream) { Must(HashLeavesOnDevice(images[i % sets], state_bytes, out, stream)); });
  Print("hash", model, batch, batch * state_bytes, hash, read);
}

int Main(bool quick, uint64_t seed) {
  const Times empty = Measure([](int, cudaStream_t stream) { EmptyKernel<<<1, 32, 0, stream>>>(); });
  std::printf("{\"figure\":\"empty_kernel\",\"n\":%d,\"us\":%.2f,\"p50_us\":%.2f,\"p99_us\":%.2f,\"graph_us\":%.2f}\n",
              kRounds, empty.us, empty.p50_us, empty.p99_us, empty.graph_us);
  const Model mamba = {"mamba-2.8b", 64, {{4, {5120, 16}, {0, 1}}, {4, {5120, 3}, {0, 1}}}};
  const Model rwkv = {"rwkv-7", 32, {{4, {40, 64, 64}, {0, 1, 2}}, {2, {2, 2560}, {0, 1}}}};
  const Model qwen = {"qwen3-next", 36, {{4, {32, 128, 128}, {0, 1, 2}}, {2, {8192, 3}, {0, 1}}}};
  const Model lfm = {"lfm2", 10, {{2, {2048, 2}, {0, 1}}}};
  const Model turned = {"qwen3-next, turned", 36, {{4, {32, 128, 128}, {0, 2, 1}}, {2, {8192, 3}, {1, 0}}}};
  const Model half = {"qwen3-next, turned, 2 bytes", 36, {{2, {32, 128, 128}, {0, 2, 1}}, {2, {8192, 3}, {1, 0}}}};
  const Model widened = {"mamba-2.8b, a column more", 64, {{4, {5120, 16}, {0, 1}}, {4, {5120, 3}, {0, 1}, 1}}};
  const Model small = {"2 KB segments", 1024, {{4, {512}, {0}}}};
  const uint64_t mamba_bytes = 64 * 5120 * 19 * 4, qwen_bytes = 36 * (32 * 128 * 128 * 4 + 8192 * 3 * 2);
  if (quick) {
    for (const Model* model : {&mamba, &rwkv, &qwen, &lfm}) BenchCopies(*model, 64, seed);
    BenchHashes("mamba-2.8b", mamba_bytes, 64);
    BenchHashes("qwen3-next", qwen_bytes, 64);
    return 0;
  }
  for (const uint64_t batch : {1, 64, 256}) {
    for (const Model* model : {&mamba, &rwkv, &lfm, &widened, &small}) BenchCopies(*model, batch, seed);
  }
  for (const uint64_t batch : {1, 64}) {
    for (const Model* model : {&qwen, &turned, &half}) BenchCopies(*model, batch, seed);
  }
  for (const uint64_t batch : {1, 8, 64, 256}) BenchHashes("mamba-2.8b", mamba_bytes, batch);
  for (const uint64_t batch : {1, 64}) BenchHashes("qwen3-next", qwen_bytes, batch);
  for (const uint64_t batch : {1, 256}) BenchHashes("lfm2", 10 * 8192, batch);
  return 0;
}

}  // namespace
}  // namespace statepool

int main(int argc, char** argv) {
  bool quick = false;
  unsigned long long seed = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else if (std::sscanf(argv[i], "--seed=%llu", &seed) != 1) {
      std::fprintf(stderr, "usage: gpu_kernels_bench [--quick] [--seed=N]\n");
      return 2;
    }
  }
  return statepool::Main(quick, seed);
}
