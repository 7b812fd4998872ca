// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The engine-shaped adapters (client/cpp/engines) in a GPU's memory, against the daemon at $STATEPOOL_SERVER, with
// direct ways where it has them; arenas_check.py and direct_check.py start one and run this. Their rules are tested in
// tests/integration/cpp_rnn_state.cc and cpp_mamba_cache_manager.cc.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "client/cpp/engines/mamba_cache_manager.h"
#include "client/cpp/engines/rnn_state.h"
#include "client/cpp/errors.h"
#include "client/cpp/statepool.h"

namespace statepool::engines {
namespace {

class GpuEnginesTest : public testing::Test {
 protected:
  GpuEnginesTest() {
    const char* const address = std::getenv("STATEPOOL_SERVER");
    EXPECT_NE(address, nullptr) << "arenas_check.py and direct_check.py run this";
    auto pool = client::Pool::Connect(address == nullptr ? "" : address);
    EXPECT_TRUE(pool.ok()) << pool.status();
    pool_.emplace(*std::move(pool));
    is_direct_ = pool_->GetCapabilities()->copy_mode() == "direct";
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~GpuEnginesTest() override { EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess); }

  // Names that no other run with this daemon has used.
  static std::string Name() {
    return testing::UnitTest::GetInstance()->current_test_info()->name() + std::to_string(std::random_device()());
  }
  std::string RandomBytes(uint64_t size) {
    std::string bytes(size, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random_());
    return bytes;
  }
  void Write(void* to, const std::string& bytes) {
    ASSERT_EQ(cudaMemcpyAsync(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream_), cudaSuccess);
  }
  std::string Read(const void* from, uint64_t size) {
    std::string bytes(size, '\0');
    EXPECT_EQ(cudaMemcpyAsync(bytes.data(), from, size, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return bytes;
  }

  std::optional<client::Pool> pool_;
  bool is_direct_ = false;
  cudaStream_t stream_ = nullptr;
  std::mt19937 random_{7};
};

TEST_F(GpuEnginesTest, StepsArePoppedForkedAndSeenByAnotherRnnState) {
  constexpr uint64_t kBytes = 4 * 96 * 33;
  const auto layout = RNNState::LayoutOf("gpu-engines-rnn", /*num_hidden_layers=*/2, {{{96, 33}, v1::FLOAT32, ""}});
  const std::string fingerprint = pool_->RegisterLayout(*layout)->fingerprint();
  const std::string name = Name();
  RNNStateOptions options;
  options.direct = is_direct_;
  const auto state = RNNState::Create(*pool_, fingerprint, 2, 4, name, options);
  const auto other = RNNState::Create(*pool_, fingerprint, 2, 4, name, options);
  ASSERT_TRUE(state.ok() && other.ok()) << state.status() << other.status();
  ASSERT_TRUE((*state)->AddSequence(0).ok());
  std::vector<std::string> states(1, std::string(2 * kBytes, '\0'));
  const auto read = [&](const RNNState& from) {
    return Read(from.Get(0, 0)->data(0), kBytes) + Read(from.Get(1, 0)->data(0), kBytes);
  };
  for (int step = 0; step < 3; ++step) {
    const absl::Status begun = (*state)->BeginForward({0}, {1}, std::nullopt, stream_);
    ASSERT_TRUE(begun.ok()) << begun;
    EXPECT_TRUE(read(**state) == states.back()) << "step " << step;
    states.push_back(RandomBytes(2 * kBytes));
    for (int64_t layer : {0, 1})
      Write((*state)->Set(layer, 0)->data(0), states.back().substr(static_cast<size_t>(layer) * kBytes, kBytes));
    EXPECT_TRUE(read(**state) == states[states.size() - 2]) << "the old state";
    const absl::Status ended = (*state)->EndForward(stream_);
    ASSERT_TRUE(ended.ok()) << ended;
  }
  ASSERT_TRUE((*other)->ForkSequence(0, 1, /*fork_pos=*/2).ok());
  ASSERT_TRUE((*state)->PopN(0, 2).ok());
  EXPECT_EQ(client::GetErrorDetail((*state)->PopN(0, 2)).reason, "HISTORY_TOO_SHORT");
  for (const auto& [id, position] : {std::pair<int64_t, size_t>{0, 1}, {1, 2}}) {
    for (RNNState* process : {state->get(), other->get()}) {
      ASSERT_TRUE(process->BeginForward({id}, {1}, std::nullopt, stream_).ok());
      EXPECT_EQ(process->seq_lengths()[0], static_cast<int64_t>(position));
      EXPECT_TRUE(read(*process) == states[position]) << "sequence " << id;
    }
  }
}

TEST_F(GpuEnginesTest, WhatIsScatteredIsCapturedAndRestored) {
  const MambaCacheConfig config = {.num_recurrent_layers = 3,
                                   .max_batch_size = 4,
                                   .recurrent_state_num_heads = 4,
                                   .recurrent_state_head_dim = 16,
                                   .recurrent_state_size = 24,
                                   .conv_dim = 112,
                                   .conv_kernel = 4,
                                   .max_intermediate_seq_len = 4,
                                   .recurrent_state_type = v1::FLOAT32};
  constexpr uint64_t kRecurrent = 4 * 4 * 16 * 24, kConv = 2 * 112 * 4;
  constexpr uint64_t kVerify = 3;
  const auto layout = MambaCacheManager::LayoutOf("gpu-engines-mamba", config);
  const std::string fingerprint = pool_->RegisterLayout(*layout)->fingerprint();
  const auto manager = MambaCacheManager::Create(*pool_, fingerprint, config, {.direct = is_direct_});
  ASSERT_TRUE(manager.ok()) << manager.status();
  ASSERT_TRUE((*manager)->ReshapeIntermediateStates(4, kVerify).ok());
  std::vector<std::string> recurrent, conv;
  for (int32_t layer = 0; layer < 3; ++layer) {
    recurrent.push_back(RandomBytes(4 * kVerify * kRecurrent));
    conv.push_back(RandomBytes(4 * kVerify * kConv));
    Write((*manager)->GetIntermediateRecurrentState(layer).data, recurrent.back());
    Write((*manager)->GetIntermediateConvState(layer).data, conv.back());
  }
  const auto at = [](const void* data, uint64_t slot, uint64_t bytes) {
    return static_cast<const char*>(data) + slot * bytes;
  };
  // The columns that a later step reads.
  const auto live = [](const std::string& window) {
    std::string columns;
    for (size_t i = 0; i < window.size(); i += 8) columns += window.substr(i + 2, 6);
    return columns;
  };
  const std::vector<int32_t> accept_lengths = {2, 0, kVerify, 1};
  const auto outcomes = (*manager)->ScatterMtpStates(accept_lengths, MtpScatterRule::kSkipFullAcceptance, stream_);
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  EXPECT_EQ((*outcomes)[2], v1::AdvancedRow::SKIPPED_ALL);
  const auto expect = [&](int32_t layer, uint64_t slot, uint64_t from, bool zeros) {
    const auto l = static_cast<size_t>(layer);
    const uint64_t step = from * kVerify + static_cast<uint64_t>(accept_lengths[from]) - 1;
    EXPECT_TRUE(Read(at((*manager)->GetRecurrentState(layer).data, slot, kRecurrent), kRecurrent) ==
                (zeros ? std::string(kRecurrent, '\0') : recurrent[l].substr(step * kRecurrent, kRecurrent)))
        << "layer " << layer << ", slot " << slot;
    EXPECT_TRUE(live(Read(at((*manager)->GetConvState(layer).data, slot, kConv), kConv)) ==
                live(zeros ? std::string(kConv, '\0') : conv[l].substr(step * kConv, kConv)))
        << "layer " << layer << ", slot " << slot;
  };
  for (int32_t layer = 0; layer < 3; ++layer) {
    for (uint64_t slot : {0, 1, 2, 3}) expect(layer, slot, slot, /*zeros=*/slot == 1 || slot == 2);
  }
  const std::string name = Name();
  ASSERT_TRUE((*manager)->CaptureStates(3, name, 17, stream_).ok());
  ASSERT_TRUE((*manager)->ClearStates().ok());
  for (int32_t layer = 0; layer < 3; ++layer) expect(layer, 3, 3, /*zeros=*/true);
  const auto restored = (*manager)->RestoreStates(client::SequenceRef(name), 1, stream_);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->position(), 17);
  for (int32_t layer = 0; layer < 3; ++layer) expect(layer, 1, 3, /*zeros=*/false);
}

}  // namespace
}  // namespace statepool::engines
