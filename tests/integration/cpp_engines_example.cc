// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The example of client/cpp/engines/README.md, which is what stands here between the two marks, to the letter
// (test_cpp_engines.py compares them), and what it leaves behind.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "client/cpp/engines/rnn_state.h"
#include "cpp_engines.h"

namespace {

namespace se = statepool::engines;
using statepool::client::SequenceRef;

class EnginesExampleTest : public se::EnginesTest {};

void Check(const absl::Status& status) { ASSERT_TRUE(status.ok()) << status; }
template <typename T>
void Check(const absl::StatusOr<T>& answer) {
  Check(answer.status());
}

// Counts: the layer's number and one more are added in each step.
void Step(int64_t layer, const se::RNNStateBatch<const void>& from, const se::RNNStateBatch<void>& to) {
  for (size_t i = 0; i < from.rows().size(); ++i)
    *static_cast<float*>(to.data(i)) = *static_cast<const float*>(from.data(i)) + static_cast<float>(layer) + 1;
}

TEST_F(EnginesExampleTest, RunsAsTheReadmeHasIt) {
  if (is_far_) GTEST_SKIP() << "it has no stream";
  const statepool::client::Pool& pool = pool_;
  const std::vector<se::RNNStateInitValue> init_values = {{{1}, statepool::v1::FLOAT32, ""}};
  // ---- README
  Check(pool.RegisterLayout(*se::RNNState::LayoutOf("sha256:…", /*num_hidden_layers=*/24, init_values), "my-model"));
  auto state = se::RNNState::Create(pool, "my-model", /*max_batch_size=*/8, /*max_history=*/4, "chat");
  Check(state);  // every call says whether it could
  Check((*state)->AddSequence(42));
  Check((*state)->AddSequence(43));
  Check((*state)->BeginForward({42, 43}, /*append_lengths=*/{7, 1}));  // a prompt of 7 tokens, one of 1
  for (int64_t layer = 0; layer < 24; ++layer) {
    // storage() and rows() are for a kernel of the whole batch, data(i) for one sequence.
    auto from = (*state)->Get(layer, /*state_id=*/0);
    auto to = (*state)->Set(layer, /*state_id=*/0);  // other rows: `from` stays what it is until the step ends
    Step(layer, *from, *to);
  }
  Check((*state)->EndForward());                          // two new versions, or none
  Check((*state)->ForkSequence(42, 44, /*fork_pos=*/7));  // 44 goes on where 42 is now, at 7 tokens
  Check((*state)->PopN(43, 1));                           // 43 is where it began
  // ---- README
  struct Expected {
    const char* name;
    int64_t position;
    float last_count;
  };
  for (const auto& [name, position, last_count] :
       {Expected{"chat/42", 7, 24}, Expected{"chat/43", 0, 0}, Expected{"chat/44", 7, 24}}) {
    const std::string bytes = GetBytes(pool, name);
    ASSERT_EQ(bytes.size(), 24 * sizeof(float)) << bytes;
    float last;
    std::memcpy(&last, &bytes[23 * sizeof last], sizeof last);
    EXPECT_EQ(last, last_count) << name;
    EXPECT_EQ(pool.Describe(SequenceRef(name))->position(), position);
  }
  for (const int64_t seq_id : {42, 43, 44}) Check((*state)->RemoveSequence(seq_id));
}

}  // namespace
