// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The kernels on a device against the host's, byte by byte, with guards round everything that they write. Fails where
// there is no GPU. --gtest_random_seed=N repeats a run; without it the seeds are random.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "kernels/advance_cases.h"
#include "kernels/checksum.h"
#include "kernels/copy_plan.h"
#include "kernels/device_advance_plan.h"
#include "kernels/device_checksum.h"
#include "kernels/device_copy_plan.h"
#include "kernels/plan_cases.h"

namespace statepool {
namespace {

void Must(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

// Bytes on the device that begin `shift` after a multiple of 256, with guards on both sides.
class DeviceBytes {
 public:
  DeviceBytes(const std::string& bytes, uint64_t shift) : begin_(kGuardBytes + shift), size_(bytes.size()) {
    all_ = std::string(begin_, '\xa5') + bytes + std::string(kGuardBytes, '\x5a');
    Must(cudaMalloc(&memory_, all_.size()));
    Must(cudaMemcpy(memory_, all_.data(), all_.size(), cudaMemcpyHostToDevice));
  }
  ~DeviceBytes() { (void)cudaFree(memory_); }
  DeviceBytes(const DeviceBytes&) = delete;

  char* data() const { return static_cast<char*>(memory_) + begin_; }

  // What is there after all that was launched; fails where a guard has changed.
  std::string Read() const {
    std::string now(all_.size(), '\0');
    Must(cudaDeviceSynchronize());
    Must(cudaMemcpy(now.data(), memory_, now.size(), cudaMemcpyDeviceToHost));
    EXPECT_EQ(now.compare(0, begin_, all_, 0, begin_), 0) << "bytes before were written";
    EXPECT_EQ(now.compare(begin_ + size_, kGuardBytes, all_, begin_ + size_, kGuardBytes), 0)
        << "bytes behind were written";
    return now.substr(begin_, size_);
  }

 private:
  static constexpr uint64_t kGuardBytes = 512;
  const uint64_t begin_, size_;
  std::string all_;
  void* memory_ = nullptr;
};

DeviceCopyPlan OnDevice(const CopyPlan& plan) {
  absl::StatusOr<DeviceCopyPlan> device = DeviceCopyPlan::Create(plan);
  EXPECT_TRUE(device.ok()) << device.status();
  return *std::move(device);
}

class DeviceKernels : public testing::Test {
 protected:
  DeviceKernels()
      : seed_(GTEST_FLAG_GET(random_seed) ? GTEST_FLAG_GET(random_seed) : std::random_device()()), random_(seed_) {
    RecordProperty("seed", std::to_string(seed_));
    printf("seed %llu\n", static_cast<unsigned long long>(seed_));
  }

  uint64_t RandomShift() { return Below(random_, 2) == 0 ? 0 : Below(random_, 17); }

  std::vector<uint32_t> RandomRows(const Case& c) {
    std::vector<uint32_t> rows(c.rows);
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), random_);
    rows.resize(1 + Below(random_, c.rows));
    return rows;
  }

  // A gather of random states into these rows: some of one state, some of zeros.
  void CheckGather(const Case& c, const std::vector<uint32_t>& rows, uint64_t state_shift, uint64_t arena_shift) {
    const CopyPlan plan = c.Plan();
    const DeviceCopyPlan device_plan = OnDevice(plan);
    const uint64_t stride = c.state_bytes + Below(random_, 2) * Below(random_, 20),
                   slots = std::min<uint64_t>(rows.size(), 5);
    const std::string states = RandomBytes(random_, slots * stride), zeros(c.state_bytes, '\0');
    std::string expected = RandomBytes(random_, c.arena_bytes);
    const DeviceBytes on_device(states, state_shift), arena(expected, arena_shift);
    std::vector<DeviceCopyPlan::GatherItem> items;
    for (const uint32_t row : rows) {
      const uint64_t slot = Below(random_, slots + 1);
      items.push_back({slot == slots ? nullptr : on_device.data() + slot * stride, row});
      if (Below(random_, 2) == 0 && items.size() > 1) items.back().state = items[items.size() - 2].state;
      const auto* state = static_cast<const char*>(items.back().state);
      plan.Clear(expected.data(), row);
      plan.Gather(state == nullptr ? zeros.data() : states.data() + (state - on_device.data()), 0, c.state_bytes,
                  expected.data(), {&row, 1}, CopyHint::kCached);
    }
    ASSERT_EQ(device_plan.Gather(items, arena.data(), nullptr), absl::OkStatus());
    ASSERT_EQ(arena.Read() == expected, true);
    ASSERT_EQ(on_device.Read() == states, true);
  }

  void CheckScatter(const Case& c, const std::vector<uint32_t>& rows, uint64_t state_shift, uint64_t arena_shift) {
    const CopyPlan plan = c.Plan();
    const DeviceCopyPlan device_plan = OnDevice(plan);
    const uint64_t stride = c.state_bytes + Below(random_, 2) * Below(random_, 20);
    const std::string bytes = RandomBytes(random_, c.arena_bytes);
    std::string expected = RandomBytes(random_, rows.size() * stride);
    const DeviceBytes states(expected, state_shift), arena(bytes, arena_shift);
    std::vector<DeviceCopyPlan::ScatterItem> items;
    for (size_t i = 0; i < rows.size(); ++i) {
      items.push_back({rows[i], 1 + static_cast<uint32_t>(Below(random_, c.steps)), states.data() + i * stride});
      plan.Scatter(bytes.data(), rows[i], items[i].accepted, 0, c.state_bytes, expected.data() + i * stride,
                   CopyHint::kCached);
    }
    ASSERT_EQ(device_plan.Scatter(items, arena.data(), nullptr), absl::OkStatus());
    ASSERT_EQ(states.Read() == expected, true);
    ASSERT_EQ(arena.Read() == bytes, true);
  }

  // The same with hashes on the way.
  void CheckScatterAndHash(const Case& c, const std::vector<uint32_t>& rows, uint64_t state_shift,
                           uint64_t arena_shift) {
    const CopyPlan plan = c.Plan();
    const DeviceCopyPlan device_plan = OnDevice(plan);
    const uint64_t stride = c.state_bytes + Below(random_, 2) * Below(random_, 20);
    const std::string bytes = RandomBytes(random_, c.arena_bytes);
    std::string expected = RandomBytes(random_, rows.size() * stride);
    const DeviceBytes states(expected, state_shift), arena(bytes, arena_shift);
    std::vector<DeviceCopyPlan::ScatterItem> items;
    std::vector<LeafHash> leaves;
    for (size_t i = 0; i < rows.size(); ++i) {
      items.push_back({rows[i], 1 + static_cast<uint32_t>(Below(random_, c.steps)), states.data() + i * stride});
      plan.Scatter(bytes.data(), rows[i], items[i].accepted, 0, c.state_bytes, expected.data() + i * stride,
                   CopyHint::kCached);
      const std::vector<LeafHash> more = HashLeaves({expected.data() + i * stride, c.state_bytes});
      leaves.insert(leaves.end(), more.begin(), more.end());
    }
    std::string hashes(leaves.size() * sizeof(LeafHash), 'x');
    const DeviceBytes device_hashes(hashes, 0);
    ASSERT_EQ(
        device_plan.ScatterAndHash(items, arena.data(), reinterpret_cast<LeafHash*>(device_hashes.data()), nullptr),
        absl::OkStatus());
    ASSERT_EQ(states.Read() == expected, true);
    ASSERT_EQ(arena.Read() == bytes, true);
    ASSERT_EQ(device_hashes.Read() == std::string(reinterpret_cast<const char*>(leaves.data()), hashes.size()), true);
  }

  // The host's plan moves the same bytes, and no others.
  void CheckAdvance(const MoveCase& c, const std::vector<AdvanceMove>& moves, uint64_t arena_shift) {
    const AdvancePlan plan = c.Plan();
    const absl::StatusOr<DeviceAdvancePlan> device_plan = DeviceAdvancePlan::Create(plan);
    ASSERT_TRUE(device_plan.ok()) << device_plan.status();
    std::string expected = RandomBytes(random_, c.arena_bytes);
    const DeviceBytes arena(expected, arena_shift);
    for (const AdvanceMove& move : moves) {
      for (size_t part = 0; part < plan.parts().size(); ++part) plan.Move(expected.data(), move, part);
    }
    ASSERT_EQ(device_plan->Move(moves, arena.data(), nullptr), absl::OkStatus());
    ASSERT_EQ(arena.Read() == expected, true);
  }

  // Of some rows, each in place or from another that nobody writes to.
  std::vector<AdvanceMove> RandomMoves(const MoveCase& c) {
    std::vector<uint32_t> rows(c.rows);
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), random_);
    const size_t sources = Below(random_, c.rows);
    std::vector<AdvanceMove> moves;
    for (size_t i = sources; i < c.rows; ++i) {
      const uint32_t from = sources > 0 && Below(random_, 2) == 0 ? rows[Below(random_, sources)] : rows[i];
      moves.push_back({from, rows[i], RandomPath(random_, c)});
    }
    return moves;
  }

  void CheckHashes(uint64_t bytes, uint64_t images, uint64_t shift) {
    const uint64_t stride = bytes + Below(random_, 2) * Below(random_, 30), leaves = LeafCount(bytes);
    const std::string all = RandomBytes(random_, images * stride);
    const DeviceBytes on_device(all, shift), hashes(std::string(images * leaves * 8, '!'), 0);
    std::vector<const void*> at;
    std::string expected;
    for (uint64_t i = 0; i < images; ++i) {
      at.push_back(on_device.data() + i * stride);
      const std::vector<LeafHash> of_image = HashLeaves(absl::string_view(all).substr(i * stride, bytes));
      expected.append(reinterpret_cast<const char*>(of_image.data()), leaves * 8);
    }
    ASSERT_EQ(HashLeavesOnDevice(at, bytes, reinterpret_cast<LeafHash*>(hashes.data()), nullptr), absl::OkStatus());
    ASSERT_EQ(hashes.Read() == expected, true) << images << " of " << bytes << " bytes, shift " << shift;
  }

  const uint64_t seed_;
  Random random_;
};

TEST_F(DeviceKernels, GatherGivesTheBytesThatTheHostGives) {
  for (int round = 0; round < 300; ++round) {
    const Case c = RandomCase(random_);
    SCOPED_TRACE(round);
    ASSERT_NO_FATAL_FAILURE(CheckGather(c, RandomRows(c), RandomShift(), RandomShift()));
  }
}

TEST_F(DeviceKernels, ScatterGivesTheBytesThatTheHostGives) {
  for (int round = 0; round < 300; ++round) {
    const Case c = RandomCase(random_);
    SCOPED_TRACE(round);
    ASSERT_NO_FATAL_FAILURE(CheckScatter(c, RandomRows(c), RandomShift(), RandomShift()));
    ASSERT_NO_FATAL_FAILURE(CheckScatterAndHash(c, RandomRows(c), RandomShift(), RandomShift()));
  }
}

TEST_F(DeviceKernels, AdvanceGivesTheBytesThatTheHostGives) {
  for (int round = 0; round < 300; ++round) {
    MoveCase c = RandomMoveCase(random_);
    if (round % 3 == 0) {
      c = {};
      c.rows = 3, c.steps = 6, c.num_spec = 5 + static_cast<uint32_t>(Below(random_, 2));
      const uint32_t element_bytes = 1u << Below(random_, 4);
      AddMoveTensor(&c, random_, element_bytes, {{"tap", 4}, {"channel", 3001}}, 16);
      AddMoveTensor(&c, random_, element_bytes, {{"channel", 3001}, {"tap", 4}}, element_bytes);
      AddMoveTensor(&c, random_, 4, {{"channel", 30'001}}, 4);
      AddMoveTensor(&c, random_, 8, {{"head", 64}, {"channel", 1024}}, 16);
    }
    SCOPED_TRACE(round);
    ASSERT_NO_FATAL_FAILURE(CheckAdvance(c, RandomMoves(c), RandomShift()));
  }
}

TEST_F(DeviceKernels, BatchesOfEverySizeAreAdvanced) {
  for (const uint32_t rows : {1u, 64u, 65u, 1024u, 1025u, 2500u}) {
    MoveCase c;
    c.rows = rows, c.steps = 4, c.num_spec = 3;
    AddMoveTensor(&c, random_, 2, {{"tap", 3}, {"channel", 40}}, 16);
    AddMoveTensor(&c, random_, 4, {{"channel", 70}}, 16);
    SCOPED_TRACE(rows);
    ASSERT_NO_FATAL_FAILURE(CheckAdvance(c, RandomMoves(c), 0));
  }
}

TEST_F(DeviceKernels, LargeTransposedAndContiguousTensorsAreCopiedAtAnyAlignment) {
  for (const uint32_t element_bytes : {1u, 2u, 4u, 8u}) {
    Case c;
    c.rows = 3, c.steps = 2;
    AddTensor(&c, element_bytes, {130, 257}, {1, 0}, {}, element_bytes);
    AddTensor(&c, element_bytes, {4, 128, 128}, {0, 2, 1}, {}, element_bytes);
    AddTensor(&c, element_bytes, {2, 67, 5, 33}, {0, 3, 2, 1}, {}, element_bytes);
    AddTensor(&c, element_bytes, {9, 700}, {0, 1}, {}, 3 * element_bytes);
    AddTensor(&c, element_bytes, {5120, 3}, {1, 0}, {true, 1, 2}, 0);
    AddTensor(&c, element_bytes, {5120, 3}, {0, 1}, {true, 0, 1}, 0);
    AddTensor(&c, element_bytes, {300, 200, 2}, {1, 0, 2}, {}, element_bytes);
    AddTensor(&c, element_bytes, {7, 3, 100'000 / element_bytes}, {1, 0, 2}, {}, element_bytes);
    for (const uint64_t shift : {0, 1, 2, 4, 8, 13, 16}) {
      SCOPED_TRACE(testing::Message() << element_bytes << " bytes, shift " << shift);
      ASSERT_NO_FATAL_FAILURE(CheckGather(c, {2, 0}, shift, RandomShift()));
      ASSERT_NO_FATAL_FAILURE(CheckScatter(c, {2, 0, 2}, RandomShift(), shift));
      ASSERT_NO_FATAL_FAILURE(CheckScatterAndHash(c, {1}, RandomShift(), shift));
    }
  }
}

TEST_F(DeviceKernels, BatchesOfEverySizeAreCopied) {
  for (const uint32_t rows : {1u, 2u, 64u, 65u, 256u, 1024u, 1025u, 2500u}) {
    Case c;
    c.rows = rows, c.steps = 2;
    AddTensor(&c, 4, {40, 3}, {0, 1}, {true, 1, 1}, 16);
    AddTensor(&c, 2, {32, 34}, {1, 0}, {}, 16);
    std::vector<uint32_t> all(rows);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random_);
    SCOPED_TRACE(rows);
    ASSERT_NO_FATAL_FAILURE(CheckGather(c, all, 0, 0));
    ASSERT_NO_FATAL_FAILURE(CheckScatter(c, all, 0, 0));
    ASSERT_NO_FATAL_FAILURE(CheckScatterAndHash(c, all, 0, 0));
  }
}

TEST_F(DeviceKernels, OneStateGoesIntoAllRows) {
  Case c;
  c.rows = 300;
  AddTensor(&c, 4, {3000, 3}, {0, 1}, {true, 0, 1}, 16);
  const CopyPlan plan = c.Plan();
  const DeviceCopyPlan device_plan = OnDevice(plan);
  const std::string state = RandomBytes(random_, c.state_bytes);
  std::string expected = RandomBytes(random_, c.arena_bytes);
  const DeviceBytes on_device(state, 0), arena(expected, 0);
  std::vector<DeviceCopyPlan::GatherItem> items;
  for (uint32_t row = 0; row < c.rows; ++row) {
    items.push_back({on_device.data(), row});
    plan.Clear(expected.data(), row);
    plan.Gather(state.data(), 0, c.state_bytes, expected.data(), {&row, 1}, CopyHint::kCached);
  }
  ASSERT_EQ(device_plan.Gather(items, arena.data(), nullptr), absl::OkStatus());
  ASSERT_EQ(arena.Read() == expected, true);
}

TEST_F(DeviceKernels, SixtyFourThousandSegmentsAreOnePlan) {
  Case c;
  c.rows = 2;
  for (int i = 0; i < 1 << 16; ++i) AddTensor(&c, 4, {64}, {0}, {}, 0);
  ASSERT_NO_FATAL_FAILURE(CheckGather(c, {1, 0}, 0, 0));
  ASSERT_NO_FATAL_FAILURE(CheckScatter(c, {1, 0}, 0, 0));
  ASSERT_NO_FATAL_FAILURE(CheckScatterAndHash(c, {1, 0}, 0, 0));
}

TEST_F(DeviceKernels, ScattersHashStatesOfEverySizeRoundALeafAndAShortOne) {
  for (const uint64_t near : {uint64_t{0}, uint64_t{16}, uint64_t{128}, uint64_t{240}, uint64_t{1024}, uint64_t{4096},
                              uint64_t{kLeafBytes}, 2 * kLeafBytes}) {
    for (int64_t off : {-65, -64, -17, -3, -1, 0, 1, 2, 4, 8, 9, 16, 63, 64, 65}) {
      const auto bytes = static_cast<int64_t>(near) + off;
      if (bytes <= 0) continue;
      Case c;
      c.rows = 2, c.steps = 2;
      AddTensor(&c, 1, {static_cast<uint64_t>(bytes)}, {0}, {}, 5);
      SCOPED_TRACE(bytes);
      ASSERT_NO_FATAL_FAILURE(CheckScatterAndHash(c, {1, 0, 1}, RandomShift(), RandomShift()));
    }
  }
}

TEST_F(DeviceKernels, ScattersHashLeavesThatManySegmentsShare) {
  // What a segment begins with moves on against the leaves'.
  for (const uint32_t element_bytes : {1u, 2u, 4u, 8u}) {
    Case c;
    c.rows = 3, c.steps = 3;
    for (int layer = 0; layer < 40; ++layer) {
      AddTensor(&c, element_bytes, {2048 / element_bytes}, {0}, {}, 16);
      AddTensor(&c, element_bytes, {1000, 3}, {0, 1}, {true, 1, 2}, 0);
      AddTensor(&c, element_bytes, {4, 33, 36}, {0, 2, 1}, {}, 0);
      AddTensor(&c, element_bytes, {700, 4}, {1, 0}, {true, 0, 2}, element_bytes);
    }
    AddTensor(&c, element_bytes, {3, 128, 128}, {0, 2, 1}, {}, 0);
    SCOPED_TRACE(element_bytes);
    ASSERT_NO_FATAL_FAILURE(CheckScatterAndHash(c, {2, 0, 1}, 0, 0));
    ASSERT_NO_FATAL_FAILURE(CheckScatterAndHash(c, {0, 2}, RandomShift(), RandomShift()));
  }
}

TEST_F(DeviceKernels, APlaceBeyondFourGiBIsReached) {
  CopySegment segment;
  segment.arena_offset = 16;
  segment.row_stride = (uint64_t{3} << 30) + 8;
  segment.accept_stride = 64;
  segment.element_bytes = 8;
  segment.axes = {{4, 16}};
  const CopyPlan plan({segment}, 32);
  const DeviceCopyPlan device_plan = OnDevice(plan);
  const std::string state = RandomBytes(random_, 32);
  const DeviceBytes from(state, 0), to(std::string(32, '!'), 0);
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, 3 * segment.row_stride), cudaSuccess);
  char* const arena = static_cast<char*>(memory);
  std::string row(160, '!'), expected = row;
  char* const place = arena + 2 * segment.row_stride;
  ASSERT_EQ(cudaMemcpy(place, row.data(), row.size(), cudaMemcpyHostToDevice), cudaSuccess);
  ASSERT_EQ(device_plan.Gather({{from.data(), 2}}, arena, nullptr), absl::OkStatus());
  ASSERT_EQ(device_plan.Scatter({{2, 1, to.data()}}, arena, nullptr), absl::OkStatus());
  EXPECT_EQ(to.Read(), state);
  ASSERT_EQ(cudaMemcpy(row.data(), place, row.size(), cudaMemcpyDeviceToHost), cudaSuccess);
  for (int i = 0; i < 4; ++i) expected.replace(16 + 16 * i, 8, state, 8 * i, 8);
  EXPECT_EQ(row, expected);
  EXPECT_EQ(cudaFree(arena), cudaSuccess);
}

TEST_F(DeviceKernels, NothingToDoIsNoLaunch) {
  Case c;
  AddTensor(&c, 4, {64}, {0}, {}, 0);
  const DeviceCopyPlan plan = OnDevice(c.Plan()), empty = OnDevice(CopyPlan({}, 0));
  EXPECT_EQ(plan.Gather({}, nullptr, nullptr), absl::OkStatus());
  EXPECT_EQ(plan.Scatter({}, nullptr, nullptr), absl::OkStatus());
  EXPECT_EQ(plan.ScatterAndHash({}, nullptr, nullptr, nullptr), absl::OkStatus());
  EXPECT_EQ(empty.ScatterAndHash({{0, 1, nullptr}}, nullptr, nullptr, nullptr), absl::OkStatus());
  const absl::StatusOr<DeviceAdvancePlan> moves = DeviceAdvancePlan::Create(AdvancePlan({}, 4));
  ASSERT_TRUE(moves.ok()) << moves.status();
  EXPECT_EQ(moves->Move({{0, 0, AcceptedSteps::Chain(2)}}, nullptr, nullptr), absl::OkStatus());
  EXPECT_EQ(empty.Gather({{nullptr, 0}}, nullptr, nullptr), absl::OkStatus());
  EXPECT_EQ(HashLeavesOnDevice({}, 5, nullptr, nullptr), absl::OkStatus());
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(DeviceKernels, CapturedCopiesAreReplayed) {
  Case c;
  AddTensor(&c, 4, {30'000}, {0}, {}, 0);
  const DeviceCopyPlan plan = OnDevice(c.Plan());
  const std::string state = RandomBytes(random_, c.state_bytes), none(c.state_bytes, '!');
  const std::vector<LeafHash> leaves = HashLeaves(state);
  const DeviceBytes from(state, 0), arena(std::string(c.arena_bytes, '!'), 0), to(none, 0),
      hashes(std::string(leaves.size() * sizeof(LeafHash), '!'), 0);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(plan.Gather({{from.data(), 0}}, arena.data(), stream), absl::OkStatus());
  EXPECT_EQ(plan.ScatterAndHash({{0, 1, to.data()}}, arena.data(), reinterpret_cast<LeafHash*>(hashes.data()), stream),
            absl::OkStatus());
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  EXPECT_EQ(to.Read(), none);
  ASSERT_EQ(cudaGraphInstantiate(&replay, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(replay, stream), cudaSuccess);
  EXPECT_EQ(arena.Read(), state);
  EXPECT_EQ(to.Read(), state);
  EXPECT_EQ(hashes.Read(), std::string(reinterpret_cast<const char*>(leaves.data()), leaves.size() * 8));
  EXPECT_EQ(cudaGraphExecDestroy(replay), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_F(DeviceKernels, APlanThatGetsNoMemoryIsAnError) {
  Case c;
  AddTensor(&c, 4, {64}, {0}, {}, 0);
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  // Memory cannot be had here while a stream is captured.
  EXPECT_EQ(DeviceCopyPlan::Create(c.Plan()).status().code(), absl::StatusCode::kInternal);
  cudaGraph_t graph = nullptr;
  (void)cudaStreamEndCapture(stream, &graph);
  (void)cudaGetLastError();
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_F(DeviceKernels, HashesAreTheHostsForEveryLengthOfAShortImage) {
  for (uint64_t bytes = 1; bytes <= 1200; ++bytes) {
    ASSERT_NO_FATAL_FAILURE(CheckHashes(bytes, 1 + bytes % 2, bytes % 3 == 0 ? RandomShift() : 0));
  }
}

TEST_F(DeviceKernels, HashesAreTheHostsRoundEveryBoundary) {
  for (const uint64_t near : {uint64_t{2048}, uint64_t{4096}, uint64_t{5120}, uint64_t{32768}, uint64_t{33792},
                              kLeafBytes - 1024, uint64_t{kLeafBytes}, 2 * kLeafBytes, 5 * kLeafBytes}) {
    for (int64_t off : {-1025, -1024, -1023, -961, -960, -65, -64, -63, -9,  -1,  0,   1,   3,    4,    8,
                        9,     16,    17,    63,   64,   65,  128, 129, 239, 240, 241, 256, 1023, 1024, 1025}) {
      for (const uint64_t shift : {0, 1, 4, 8}) {
        ASSERT_NO_FATAL_FAILURE(CheckHashes(near + off, 2, shift));
      }
    }
  }
}

TEST_F(DeviceKernels, HashesOfManyImagesAreTheHosts) {
  for (const uint64_t images : {64, 65, 1024, 1030}) {
    ASSERT_NO_FATAL_FAILURE(CheckHashes(2 * kLeafBytes + 300 + images, images, 0));
  }
}

}  // namespace
}  // namespace statepool

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no GPU: %s\n", cudaGetErrorString(error));
    return 1;
  }
  return RUN_ALL_TESTS();
}
