// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the tests of the engine-shaped adapters (client/cpp/engines) have in common: the daemon at $STATEPOOL_SERVER,
// memory as an engine touches it, and what is random. test_cpp_engines.py starts daemons of each kind and runs them.
// With $STATEPOOL_DIRECT the daemon has direct ways, and they are used; where its device is "far" arenas are in a GPU's
// memory that is made up, and every touch of a row is in the order of a stream. $STATEPOOL_SEED chooses what is random;
// it is printed. With $STATEPOOL_RESTARTS it kills the daemon and starts it anew whenever a line "restart" comes from
// here, and answers with a line.
#ifndef STATEPOOL_TESTS_INTEGRATION_CPP_ENGINES_H_
#define STATEPOOL_TESTS_INTEGRATION_CPP_ENGINES_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "client/cpp/errors.h"
#include "client/cpp/statepool.h"
#include "client/fake_gpu.h"

namespace statepool::engines {
inline bool IsDirect() { return std::getenv("STATEPOOL_DIRECT") != nullptr; }

inline uint32_t Seed() {
  static const uint32_t seed = [] {
    uint32_t chosen = std::random_device()();
    const char* const given = std::getenv("STATEPOOL_SEED");
    if (given != nullptr && !absl::SimpleAtoi(given, &chosen)) std::abort();
    std::printf("STATEPOOL_SEED=%u\n", chosen);
    return chosen;
  }();
  return seed;
}

inline std::string SeededBytes(uint32_t seed, uint64_t size) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

inline std::string ReasonOf(const absl::Status& status) { return client::GetErrorDetail(status).reason; }
inline std::string FieldOf(const absl::Status& status) { return client::GetErrorDetail(status).field; }

class EnginesTest : public testing::Test {
 protected:
  EnginesTest() : random_(Seed()), pool_(Connect()) {
    is_far_ = pool_.GetCapabilities()->devices(0).name() == "far";
    if (is_far_) client::SetGpu("far", gpu_);
  }
  ~EnginesTest() override {
    stream_.Open();
    stream_.Synchronize();
    if (is_far_) client::SetGpu("far", nullptr);
  }

  static client::Pool Connect() {
    client::Options options;
    options.direct = IsDirect();
    return *client::Pool::Connect(std::getenv("STATEPOOL_SERVER"), options);
  }

  // That no other test, nor run, has used.
  static std::string Name(absl::string_view suffix = "") {
    return absl::StrCat(testing::UnitTest::GetInstance()->current_test_info()->name(), "/", Seed(), suffix);
  }
  static void Restart() {
    std::puts("restart");
    std::fflush(stdout);
    ASSERT_NE(std::getchar(), EOF);
  }

  // Numbers below `end`.
  uint32_t Random(uint32_t end) { return static_cast<uint32_t>(random_() % end); }
  std::string RandomBytes(uint64_t size) { return SeededBytes(static_cast<uint32_t>(random_()), size); }

  std::string GetBytes(const client::Pool& pool, const std::string& name,
                       std::optional<int64_t> position = std::nullopt) {
    v1::GetRequest request;
    *request.mutable_name() = client::SequenceRef(name);
    if (position.has_value()) request.set_position(*position);
    const auto state = pool.Get(request);
    return state.ok() ? absl::StrJoin(state->pieces(), "") : ReasonOf(state.status());
  }

  // As an engine's kernels would, in the order of its stream.
  CUstream_st* stream() { return is_far_ ? stream_.handle() : nullptr; }
  void Write(void* to, const std::string& bytes) {
    if (!is_far_) {
      std::memcpy(to, bytes.data(), bytes.size());
    } else {
      stream_.Enqueue([to, bytes] { std::memcpy(to, bytes.data(), bytes.size()); });
    }
  }
  std::string Read(const void* from, uint64_t size) {
    if (is_far_) stream_.Synchronize();
    return std::string(static_cast<const char*>(from), size);
  }

  bool is_far_ = false;
  const std::shared_ptr<client::FakeGpu> gpu_ = std::make_shared<client::FakeGpu>();
  client::FakeStream stream_;
  std::mt19937 random_;
  const client::Pool pool_;
};

}  // namespace statepool::engines

#endif  // STATEPOOL_TESTS_INTEGRATION_CPP_ENGINES_H_
