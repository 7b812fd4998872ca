// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The C++ client's arenas in a GPU's memory, against the daemon at $STATEPOOL_SERVER; arenas_check.py starts one and
// runs this.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "client/cpp/arena.h"
#include "client/cpp/statepool.h"

namespace statepool::client {
namespace {

constexpr uint64_t kLayerBytes = 300'000;
constexpr uint32_t kLayers = 3;
constexpr uint64_t kStateBytes = kLayers * kLayerBytes;

class GpuClientTest : public testing::Test {
 protected:
  GpuClientTest() {
    const char* const address = std::getenv("STATEPOOL_SERVER");
    EXPECT_NE(address, nullptr) << "arenas_check.py runs this";
    auto pool = Pool::Connect(address == nullptr ? "" : address);
    EXPECT_TRUE(pool.ok()) << pool.status();
    pool_.emplace(*std::move(pool));
    v1::Layout layout;
    layout.set_model_id("gpu-client");
    v1::TensorSpec& tensor = *layout.add_tensors();
    tensor.set_name("x");
    tensor.set_kind(v1::RECURRENT);
    for (uint32_t layer = 0; layer < kLayers; ++layer) tensor.add_layers(layer);
    tensor.set_dtype(v1::UINT8);
    v1::Axis& axis = *tensor.add_axes();
    axis.set_name("x");
    axis.set_size(kLayerBytes);
    const auto info = pool_->RegisterLayout(layout, "gpu-client");
    EXPECT_TRUE(info.ok()) << info.status();
  }

  static std::string Bytes(uint32_t seed) {
    std::mt19937 random(seed);
    std::string bytes(kStateBytes, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    return bytes;
  }
  // A row, layer by layer, in the order of a stream.
  static void Write(const Arena& arena, uint32_t row, const std::string& bytes, cudaStream_t stream) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_EQ(cudaMemcpyAsync(At(arena, layer, row), bytes.data() + layer * kLayerBytes, kLayerBytes,
                                cudaMemcpyHostToDevice, stream),
                cudaSuccess);
    }
  }
  static std::string Read(const Arena& arena, uint32_t row) {
    std::string bytes(kStateBytes, '\0');
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      EXPECT_EQ(
          cudaMemcpy(bytes.data() + layer * kLayerBytes, At(arena, layer, row), kLayerBytes, cudaMemcpyDeviceToHost),
          cudaSuccess);
    }
    return bytes;
  }
  static char* At(const Arena& arena, uint32_t layer, uint32_t row) {
    const ArenaTensor& tensor = arena.tensors()[layer];
    return static_cast<char*>(tensor.data) + row * tensor.strides[0];
  }

  std::optional<Pool> pool_;
};

TEST_F(GpuClientTest, RowsTravelBetweenArenasAndMessages) {
  auto arena = pool_->OpenArena("gpu-client", {.rows = 3});
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_TRUE(absl::StartsWith((*arena)->device(), "cuda:GPU-"));
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  Write(**arena, 1, Bytes(1), stream);
  v1::StoreItem item = StoreRow(1, "gpu-client/a", 7);
  item.set_whole_row(true);
  const auto stored = (*arena)->Store({item}, /*all_or_none=*/true, {}, stream);
  ASSERT_TRUE(stored.ok() && stored->rows[0].ok()) << stored.status();
  EXPECT_EQ(stored->rows[0]->position(), 7);
  const auto state = pool_->Get(SequenceRef("gpu-client/a"));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(absl::StrJoin(state->pieces(), ""), Bytes(1));
  const auto loaded = (*arena)->Load({LoadRow(2, SequenceRef("gpu-client/a"))}, {}, stream);
  ASSERT_TRUE(loaded.ok() && loaded->rows[0].ok()) << loaded.status();
  EXPECT_EQ(Read(**arena, 2), Bytes(1));
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_F(GpuClientTest, AddressesStayOverAReopening) {
  auto arena = pool_->OpenArena("gpu-client", {.rows = 2});
  ASSERT_TRUE(arena.ok()) << arena.status();
  void* const before = (*arena)->tensors()[0].data;
  Write(**arena, 0, Bytes(2), nullptr);
  v1::StoreItem item = StoreRow(0, "gpu-client/b", 1);
  item.set_whole_row(true);
  ASSERT_TRUE((*arena)->Store({item}).ok());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE((*arena)->Reopen().ok());
    EXPECT_EQ((*arena)->tensors()[0].data, before);
    EXPECT_EQ(Read(**arena, 0), std::string(kStateBytes, '\0')) << "rows are zeros";
    ASSERT_TRUE((*arena)->Load({LoadRow(0, SequenceRef("gpu-client/b"))}).ok());
    EXPECT_EQ(Read(**arena, 0), Bytes(2));
  }
}

TEST_F(GpuClientTest, AnOrderlyCloseGivesTheBudgetBackAtOnce) {
  { ASSERT_TRUE(pool_->OpenArena("gpu-client", {.rows = 2}).ok()); }  // the pool of slots keeps what it has
  const uint64_t before = pool_->GetCapabilities()->devices(0).used_bytes();
  for (int i = 0; i < 5; ++i) {
    auto arena = pool_->OpenArena("gpu-client", {.rows = 2});
    ASSERT_TRUE(arena.ok()) << arena.status();
    EXPECT_GT(pool_->GetCapabilities()->devices(0).used_bytes(), before);
    (*arena)->Close();
    EXPECT_LE(pool_->GetCapabilities()->devices(0).used_bytes(), before);
  }
}

}  // namespace
}  // namespace statepool::client

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
