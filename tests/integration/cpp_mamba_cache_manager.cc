// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// MambaCacheManager: random histories beside a reference that is written from Edge-LLM's rules, and every refusal.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/arena.h"
#include "client/cpp/engines/mamba_cache_manager.h"
#include "cpp_engines.h"

namespace statepool::engines {
namespace {

using client::ArenaTensor;
using client::BytesOf;
using client::Pool;
using client::SequenceRef;

// Edge-LLM's pools, as vectors of bytes: main [layer][slot] and intermediate [layer], contiguous at actual sizes.
struct MambaReference {
  struct Kind {
    uint64_t bytes = 0;  // of one state
    std::vector<std::vector<std::string>> main;
    std::vector<std::string> intermediate;
  };
  Kind recurrent, conv;
};

class MambaCacheManagerTest : public EnginesTest {
 protected:
  using Config = MambaCacheManager::Config;

  Config RandomConfig() {
    const v1::DType dtypes[] = {v1::FLOAT16, v1::BFLOAT16, v1::FLOAT32};
    Config config;
    config.num_recurrent_layers = 1 + static_cast<int32_t>(Random(3));
    config.max_batch_size = 1 + static_cast<int32_t>(Random(4));
    config.recurrent_state_num_heads = 1 + static_cast<int32_t>(Random(4));
    config.recurrent_state_head_dim = 1 + static_cast<int32_t>(Random(9));
    config.recurrent_state_size = 1 + static_cast<int32_t>(Random(17));
    config.conv_dim = 1 + static_cast<int32_t>(Random(23));
    config.conv_kernel = 2 + static_cast<int32_t>(Random(4));
    config.max_intermediate_seq_len = static_cast<int32_t>(Random(6));
    config.recurrent_state_type = dtypes[Random(3)];
    config.conv_state_type = dtypes[Random(3)];
    return config;
  }
  std::unique_ptr<MambaCacheManager> Create(const Pool& pool, const std::string& layout, const Config& config,
                                            std::vector<std::string> recurrent_axes = {}) const {
    auto manager = MambaCacheManager::Create(pool, layout, config,
                                             {.recurrent_axes = std::move(recurrent_axes), .direct = IsDirect()});
    EXPECT_TRUE(manager.ok()) << manager.status();
    return *std::move(manager);
  }

  static uint64_t RecurrentElements(const Config& config) {
    return static_cast<uint64_t>(config.recurrent_state_num_heads) *
           static_cast<uint64_t>(config.recurrent_state_head_dim) * static_cast<uint64_t>(config.recurrent_state_size);
  }
  static MambaReference Zeros(const Config& config) {
    MambaReference reference;
    reference.recurrent.bytes = RecurrentElements(config) * BytesOf(config.recurrent_state_type);
    reference.conv.bytes = static_cast<uint64_t>(config.conv_dim) * static_cast<uint64_t>(config.conv_kernel) *
                           BytesOf(config.conv_state_type);
    for (MambaReference::Kind* kind : {&reference.recurrent, &reference.conv}) {
      kind->main.assign(
          static_cast<size_t>(config.num_recurrent_layers),
          std::vector<std::string>(static_cast<size_t>(config.max_batch_size), std::string(kind->bytes, '\0')));
      kind->intermediate.assign(
          static_cast<size_t>(config.num_recurrent_layers),
          std::string(static_cast<size_t>(config.max_batch_size * config.max_intermediate_seq_len) * kind->bytes,
                      '\0'));
    }
    return reference;
  }

  // The columns of a convolution that a later step reads: all but the first of conv_kernel.
  static std::string Live(const Config& config, const std::string& conv) {
    const uint64_t element = BytesOf(config.conv_state_type), row = static_cast<uint64_t>(config.conv_kernel) * element;
    std::string live;
    for (uint64_t at = 0; at < conv.size(); at += row) live += conv.substr(at + element, row - element);
    return live;
  }
  // A slot as the image that it is stored as: conv [tap, channel] of each layer, then recurrent.
  static std::string ImageOf(const Config& config, const MambaReference& reference, size_t slot) {
    std::string image;
    const uint64_t element = BytesOf(config.conv_state_type);
    for (const auto& layer : reference.conv.main) {
      for (uint64_t tap = 1; tap < static_cast<uint64_t>(config.conv_kernel); ++tap) {
        for (uint64_t channel = 0; channel < static_cast<uint64_t>(config.conv_dim); ++channel)
          image += layer[slot].substr((channel * static_cast<uint64_t>(config.conv_kernel) + tap) * element, element);
      }
    }
    for (const auto& layer : reference.recurrent.main) image += layer[slot];
    return image;
  }

  // What an engine that knows nothing of strides finds at [slot].
  std::string ReadDense(const ArenaTensor& tensor, size_t slot, uint64_t bytes) {
    return Read(static_cast<const char*>(tensor.data) + slot * bytes, bytes);
  }
  void ExpectSame(const MambaCacheManager& manager, const MambaReference& reference) {
    for (int32_t layer = 0; layer < manager.num_layers(); ++layer) {
      const auto l = static_cast<size_t>(layer);
      for (size_t slot = 0; slot < static_cast<size_t>(manager.config().max_batch_size); ++slot) {
        EXPECT_TRUE(ReadDense(manager.GetRecurrentState(layer), slot, reference.recurrent.bytes) ==
                    reference.recurrent.main[l][slot])
            << "recurrent, layer " << layer << ", slot " << slot;
        EXPECT_TRUE(Live(manager.config(), ReadDense(manager.GetConvState(layer), slot, reference.conv.bytes)) ==
                    Live(manager.config(), reference.conv.main[l][slot]))
            << "conv, layer " << layer << ", slot " << slot;
      }
    }
  }
  // A step of the engine for one slot.
  void WriteMain(const MambaCacheManager& manager, size_t slot, MambaReference* reference) {
    for (int32_t layer = 0; layer < manager.num_layers(); ++layer) {
      for (const auto& [kind, tensor] : {std::pair(&reference->recurrent, &manager.GetRecurrentState(layer)),
                                         std::pair(&reference->conv, &manager.GetConvState(layer))}) {
        std::string& state = kind->main[static_cast<size_t>(layer)][slot];
        state = RandomBytes(kind->bytes);
        Write(static_cast<char*>(tensor->data) + slot * kind->bytes, state);
      }
    }
  }

  void RunHistory(int operations);
};

void MambaCacheManagerTest::RunHistory(int operations) {
  const Config config = RandomConfig();
  const auto layout = MambaCacheManager::LayoutOf(absl::StrCat("mamba-", Random(1u << 30)), config);
  ASSERT_TRUE(layout.ok()) << layout.status();
  const auto info = pool_.RegisterLayout(*layout);
  ASSERT_TRUE(info.ok()) << info.status();
  const Pool other_pool = Connect();
  // Two processes.
  const std::unique_ptr<MambaCacheManager> managers[] = {Create(pool_, info->fingerprint(), config),
                                                         Create(other_pool, info->fingerprint(), config)};
  MambaReference references[] = {Zeros(config), Zeros(config)};
  std::map<std::string, std::pair<MambaReference, size_t>> captured;  // by name: which slot of a reference it is
  const int32_t max_seq_len = config.max_intermediate_seq_len;
  int32_t active[] = {config.max_batch_size, config.max_batch_size}, seq_len[] = {max_seq_len, max_seq_len};
  const std::string prefix = Name(absl::StrCat("/", Random(1u << 30), "/"));
  for (int operation = 0; operation < operations && !HasFailure(); ++operation) {
    SCOPED_TRACE(absl::StrCat("operation ", operation));
    const size_t which = Random(2);
    MambaCacheManager& manager = *managers[which];
    MambaReference& reference = references[which];
    const size_t slot = Random(static_cast<uint32_t>(config.max_batch_size));
    switch (Random(8)) {
      case 0:
      case 1: WriteMain(manager, slot, &reference); break;
      case 2: {
        const std::string name = absl::StrCat(prefix, Random(4));
        const auto stored = manager.CaptureStates(static_cast<int32_t>(slot), name, operation, stream());
        if (stored.ok()) {
          EXPECT_EQ(stored->position(), operation);
          captured.insert_or_assign(name, std::pair(reference, slot));
          EXPECT_TRUE(GetBytes(pool_, name) == ImageOf(config, reference, slot));
        } else {
          EXPECT_EQ(ReasonOf(stored.status()), "REVISION_MISMATCH") << stored.status();
        }
        break;
      }
      case 3: {
        if (captured.empty()) break;
        const auto& [name, state] = *std::next(captured.begin(), Random(static_cast<uint32_t>(captured.size())));
        const auto restored = manager.RestoreStates(SequenceRef(name), static_cast<int32_t>(slot), stream());
        ASSERT_TRUE(restored.ok()) << restored.status();
        for (size_t layer = 0; layer < reference.conv.main.size(); ++layer) {
          reference.recurrent.main[layer][slot] = state.first.recurrent.main[layer][state.second];
          reference.conv.main[layer][slot] = state.first.conv.main[layer][state.second];
        }
        break;
      }
      case 4:
        if (Random(6) != 0) break;
        EXPECT_TRUE(manager.ClearStates().ok());
        reference = Zeros(config);
        break;
      default: {
        if (max_seq_len == 0) {
          EXPECT_TRUE(manager.ScatterMtpStates({1, 2, 3, 4, 5}, MtpScatterRule::kSkipOutOfRange, stream())->empty());
          break;
        }
        active[which] = 1 + static_cast<int32_t>(Random(static_cast<uint32_t>(config.max_batch_size)));
        seq_len[which] = 1 + static_cast<int32_t>(Random(static_cast<uint32_t>(max_seq_len)));
        ASSERT_TRUE(manager.ReshapeIntermediateStates(active[which], seq_len[which]).ok());
        for (int32_t layer = 0; layer < config.num_recurrent_layers; ++layer) {
          for (const auto& [kind, tensor] :
               {std::pair(&reference.recurrent, &manager.GetIntermediateRecurrentState(layer)),
                std::pair(&reference.conv, &manager.GetIntermediateConvState(layer))}) {
            EXPECT_EQ(tensor->shape[0], static_cast<uint64_t>(active[which]));
            EXPECT_EQ(tensor->shape[1], static_cast<uint64_t>(seq_len[which]));
            EXPECT_EQ(tensor->strides[1], kind->bytes);
            EXPECT_EQ(tensor->strides[0], kind->bytes * static_cast<uint64_t>(seq_len[which]));
            const std::string written =
                RandomBytes(kind->bytes * static_cast<uint64_t>(active[which] * seq_len[which]));
            kind->intermediate[static_cast<size_t>(layer)].replace(0, written.size(), written);
            Write(tensor->data, written);
          }
        }
        const MtpScatterRule rule =
            Random(2) == 0 ? MtpScatterRule::kSkipFullAcceptance : MtpScatterRule::kSkipOutOfRange;
        std::vector<int32_t> accept_lengths;
        for (int32_t i = 0; i < active[which]; ++i)
          accept_lengths.push_back(static_cast<int32_t>(Random(static_cast<uint32_t>(seq_len[which]) + 3)) - 1);
        // SGLang's form: slot i's state goes to row indices[i].
        std::vector<int32_t> indices(static_cast<size_t>(config.max_batch_size));
        std::iota(indices.begin(), indices.end(), 0);
        const bool is_indexed = Random(2) == 0;
        if (is_indexed) std::shuffle(indices.begin(), indices.end(), random_);
        indices.resize(accept_lengths.size());
        const auto outcomes = is_indexed ? manager.ScatterMtpStates(accept_lengths, indices, rule, stream())
                                         : manager.ScatterMtpStates(accept_lengths, rule, stream());
        ASSERT_TRUE(outcomes.ok()) << outcomes.status();
        for (size_t i = 0; i < accept_lengths.size(); ++i) {
          const int32_t step = accept_lengths[i] - 1, verify = seq_len[which];
          const bool skipped =
              step < 0 || (rule == MtpScatterRule::kSkipFullAcceptance ? step >= verify - 1 : step >= verify);
          EXPECT_EQ((*outcomes)[i] != v1::AdvancedRow::MOVED, skipped) << "accept length " << accept_lengths[i];
          if (skipped) continue;
          for (MambaReference::Kind* kind : {&reference.recurrent, &reference.conv}) {
            const uint64_t at = (i * static_cast<uint64_t>(verify) + static_cast<uint64_t>(step)) * kind->bytes;
            for (size_t layer = 0; layer < kind->main.size(); ++layer)
              kind->main[layer][static_cast<size_t>(indices[i])] = kind->intermediate[layer].substr(at, kind->bytes);
          }
        }
      }
    }
    ExpectSame(manager, reference);
  }
}

TEST_F(MambaCacheManagerTest, RandomHistoriesAreThoseOfEdgeLlm) {
  for (int i = 0; i < 12 && !HasFailure(); ++i) {
    SCOPED_TRACE(absl::StrCat("history ", i));
    RunHistory(60);
  }
}

TEST_F(MambaCacheManagerTest, EveryAcceptLengthOfBothRules) {
  constexpr int32_t kVerify = 4;
  const Config config = {.num_recurrent_layers = 2,
                         .max_batch_size = kVerify + 3,
                         .recurrent_state_num_heads = 2,
                         .recurrent_state_head_dim = 3,
                         .recurrent_state_size = 5,
                         .conv_dim = 7,
                         .conv_kernel = 4,
                         .max_intermediate_seq_len = kVerify};
  const std::string layout = pool_.RegisterLayout(*MambaCacheManager::LayoutOf(Name(), config))->fingerprint();
  const auto manager = Create(pool_, layout, config);
  const std::vector<int32_t> accept_lengths = {-1, 0, 1, 2, kVerify - 1, kVerify, kVerify + 1};
  using Row = v1::AdvancedRow;
  EXPECT_EQ(*manager->ScatterMtpStates(accept_lengths, MtpScatterRule::kSkipFullAcceptance, stream()),
            (std::vector<MtpScatterOutcome>{Row::SKIPPED_NONE, Row::SKIPPED_NONE, Row::MOVED, Row::MOVED, Row::MOVED,
                                            Row::SKIPPED_ALL, Row::SKIPPED_ALL}));
  EXPECT_EQ(*manager->ScatterMtpStates(accept_lengths, MtpScatterRule::kSkipOutOfRange, stream()),
            (std::vector<MtpScatterOutcome>{Row::SKIPPED_NONE, Row::SKIPPED_NONE, Row::MOVED, Row::MOVED, Row::MOVED,
                                            Row::MOVED, Row::SKIPPED_OUT_OF_RANGE}));
  EXPECT_TRUE(manager->ScatterMtpStates({}, MtpScatterRule::kSkipOutOfRange, stream())->empty());
}

// dst[:, idx[i]] = src[:, i, step[i]]: each slot's state goes elsewhere, also to the row that another slot's came from.
TEST_F(MambaCacheManagerTest, AScatterWithIndicesIsThatOfSgLang) {
  constexpr int32_t kSlots = 4, kVerify = 3;
  const Config config = {.num_recurrent_layers = 2,
                         .max_batch_size = kSlots + 1,
                         .recurrent_state_num_heads = 2,
                         .recurrent_state_head_dim = 3,
                         .recurrent_state_size = 5,
                         .conv_dim = 7,
                         .conv_kernel = 4,
                         .max_intermediate_seq_len = kVerify};
  const std::string layout = pool_.RegisterLayout(*MambaCacheManager::LayoutOf(Name(), config))->fingerprint();
  const auto manager = Create(pool_, layout, config);
  ASSERT_TRUE(manager->ReshapeIntermediateStates(kSlots, kVerify).ok());
  MambaReference reference = Zeros(config);
  for (size_t slot = 0; slot <= kSlots; ++slot) WriteMain(*manager, slot, &reference);
  for (int32_t layer = 0; layer < config.num_recurrent_layers; ++layer) {
    for (const auto& [kind, tensor] : {std::pair(&reference.recurrent, &manager->GetIntermediateRecurrentState(layer)),
                                       std::pair(&reference.conv, &manager->GetIntermediateConvState(layer))}) {
      std::string& states = kind->intermediate[static_cast<size_t>(layer)];
      states = RandomBytes(kind->bytes * kSlots * kVerify);
      Write(tensor->data, states);
    }
  }
  const std::vector<int32_t> accept_lengths = {1, 2, 3, 2};
  std::vector<int32_t> indices = {0, 1, 2, 3};  // the identity first
  do {
    const auto outcomes = manager->ScatterMtpStates(accept_lengths, indices, MtpScatterRule::kSkipOutOfRange, stream());
    ASSERT_TRUE(outcomes.ok()) << outcomes.status();
    for (size_t i = 0; i < kSlots; ++i) {
      EXPECT_EQ((*outcomes)[i], v1::AdvancedRow::MOVED);
      const auto step = static_cast<uint64_t>(accept_lengths[i]) - 1;
      for (MambaReference::Kind* kind : {&reference.recurrent, &reference.conv}) {
        for (size_t layer = 0; layer < kind->main.size(); ++layer) {
          kind->main[layer][static_cast<size_t>(indices[i])] =
              kind->intermediate[layer].substr((i * kVerify + step) * kind->bytes, kind->bytes);
        }
      }
    }
    ExpectSame(*manager, reference);
    if (indices == std::vector<int32_t>{0, 1, 2, 3}) {
      ASSERT_TRUE(manager->ScatterMtpStates(accept_lengths, MtpScatterRule::kSkipOutOfRange, stream()).ok());
      ExpectSame(*manager, reference);
    }
  } while (!HasFailure() && std::next_permutation(indices.begin(), indices.end()));

  const auto refusal = [&](const std::vector<int32_t>& lengths, const std::vector<int32_t>& rows) {
    return FieldOf(manager->ScatterMtpStates(lengths, rows).status());
  };
  EXPECT_EQ(refusal({1, 1}, {3, 3}), "indices[1]");
  EXPECT_EQ(refusal({1, 1, 1}, {4, 5, 0}), "indices[1]");
  EXPECT_EQ(refusal({1}, {-1}), "indices[0]");
  EXPECT_EQ(refusal({1, 1}, {0}), "indices");
  ExpectSame(*manager, reference);
  // What is skipped needs no row: padding.
  EXPECT_EQ(*manager->ScatterMtpStates({0, 4, 1}, {-1, 0, 0}, MtpScatterRule::kSkipOutOfRange, stream()),
            (std::vector<MtpScatterOutcome>{v1::AdvancedRow::SKIPPED_NONE, v1::AdvancedRow::SKIPPED_OUT_OF_RANGE,
                                            v1::AdvancedRow::MOVED}));
}

TEST_F(MambaCacheManagerTest, WithoutLayersNothingIsDone) {
  const auto manager = Create(pool_, "no-such-layout", Config());
  EXPECT_EQ(manager->num_layers(), 0);
  EXPECT_FALSE(manager->has_intermediate_states());
  EXPECT_TRUE(manager->ClearStates().ok());
  EXPECT_TRUE(manager->ReshapeIntermediateStates(7, 7).ok());
  EXPECT_TRUE(manager->CaptureStates(3, Name(), 1)->name().sequence().empty());
  EXPECT_EQ(GetBytes(pool_, Name()), "NEVER_CREATED");
  EXPECT_TRUE(manager->RestoreStates(SequenceRef(Name()), 3).ok());
  EXPECT_TRUE(manager->ScatterMtpStates({1, 2})->empty());
  EXPECT_TRUE(manager->ScatterMtpStates({1, 2}, {0, 0})->empty());
}

TEST_F(MambaCacheManagerTest, AnEngineWithAnotherOrderOfAxesSharesStates) {
  Config config = {.num_recurrent_layers = 2,
                   .max_batch_size = 2,
                   .recurrent_state_num_heads = 3,
                   .recurrent_state_head_dim = 4,
                   .recurrent_state_size = 5,
                   .conv_dim = 6,
                   .conv_kernel = 4};
  const std::string layout = pool_.RegisterLayout(*MambaCacheManager::LayoutOf(Name(), config))->fingerprint();
  const auto manager = Create(pool_, layout, config);
  MambaReference reference = Zeros(config);
  WriteMain(*manager, 1, &reference);
  ASSERT_TRUE(manager->CaptureStates(1, Name(), 9, stream()).ok());
  std::swap(config.recurrent_state_head_dim, config.recurrent_state_size);
  const auto turned = Create(pool_, layout, config, {"head", "state", "head_dim"});
  EXPECT_EQ(turned->RestoreStates(SequenceRef(Name()), 0, stream())->position(), 9);
  const uint64_t element = BytesOf(config.recurrent_state_type);
  for (int32_t layer = 0; layer < 2; ++layer) {
    const std::string& straight = reference.recurrent.main[static_cast<size_t>(layer)][1];
    const std::string found = ReadDense(turned->GetRecurrentState(layer), 0, straight.size());
    for (uint64_t h = 0; h < 3; ++h) {
      for (uint64_t p = 0; p < 4; ++p) {
        for (uint64_t n = 0; n < 5; ++n) {
          EXPECT_EQ(found.substr(((h * 5 + n) * 4 + p) * element, element),
                    straight.substr(((h * 4 + p) * 5 + n) * element, element));
        }
      }
    }
    const std::string conv = ReadDense(turned->GetConvState(layer), 0, reference.conv.bytes);
    for (uint64_t at = 0; at < conv.size(); at += 4 * element)
      EXPECT_EQ(conv.substr(at, element), std::string(element, '\0')) << "the oldest column is not part of a state";
  }
}

TEST_F(MambaCacheManagerTest, AfterARestartTheRowsAreZerosAndWhatWasCapturedIsThere) {
  if (std::getenv("STATEPOOL_RESTARTS") == nullptr) GTEST_SKIP();
  Config config = RandomConfig();
  config.max_intermediate_seq_len = 2;
  const std::string layout = pool_.RegisterLayout(*MambaCacheManager::LayoutOf(Name(), config))->fingerprint();
  const auto manager = Create(pool_, layout, config);
  MambaReference reference = Zeros(config);
  WriteMain(*manager, 0, &reference);
  ASSERT_TRUE(manager->CaptureStates(0, Name(), 5, stream()).ok());
  v1::FlushRequest flush;
  *flush.add_names() = SequenceRef(Name());
  ASSERT_TRUE(pool_.Flush(flush).ok());
  Restart();
  EXPECT_EQ(ReasonOf(manager->RestoreStates(SequenceRef(Name()), 0, stream()).status()), "CONTENTS_GONE");
  ExpectSame(*manager, Zeros(config));
  EXPECT_EQ(manager->RestoreStates(SequenceRef(Name()), 0, stream())->position(), 5);
  ExpectSame(*manager, reference);
}

TEST_F(MambaCacheManagerTest, WhatDoesNotFitIsRefused) {
  const Config config = {.num_recurrent_layers = 2,
                         .max_batch_size = 2,
                         .recurrent_state_num_heads = 3,
                         .recurrent_state_head_dim = 4,
                         .recurrent_state_size = 5,
                         .conv_dim = 6,
                         .conv_kernel = 4,
                         .max_intermediate_seq_len = 3};
  const std::string layout = pool_.RegisterLayout(*MambaCacheManager::LayoutOf(Name(), config))->fingerprint();
  const auto refusal = [&](auto change) {
    Config changed = config;
    change(&changed);
    const absl::Status status = MambaCacheManager::Create(pool_, layout, changed).status();
    return absl::StrCat(ReasonOf(status), " ", FieldOf(status));
  };
  EXPECT_EQ(refusal([](Config* c) { c->num_recurrent_layers = -1; }), "INVALID_OPTION num_recurrent_layers");
  EXPECT_EQ(refusal([](Config* c) { c->max_batch_size = 0; }), "INVALID_OPTION max_batch_size");
  EXPECT_EQ(refusal([](Config* c) { c->conv_kernel = 1; }), "INVALID_OPTION conv_kernel");
  EXPECT_EQ(refusal([](Config* c) { c->max_intermediate_seq_len = -1; }), "INVALID_OPTION max_intermediate_seq_len");
  EXPECT_EQ(refusal([](Config* c) { c->max_batch_size = c->max_intermediate_seq_len = 1 << 20; }),
            "INVALID_OPTION max_intermediate_seq_len");
  const auto rows_max = static_cast<int32_t>(pool_.GetCapabilities()->max_arena_rows());
  EXPECT_EQ(refusal([&](Config* c) { c->max_batch_size = rows_max + 1; }), "INVALID_OPTION max_batch_size");
  EXPECT_EQ(refusal([&](Config* c) { c->max_batch_size = rows_max / 2; }), "INVALID_OPTION max_intermediate_seq_len");
  EXPECT_EQ(refusal([](Config* c) { c->num_recurrent_layers = 3; }), "LAYOUT_MISMATCH num_recurrent_layers");
  EXPECT_EQ(refusal([](Config* c) { c->recurrent_state_num_heads = 1; }), "LAYOUT_MISMATCH recurrent_state_num_heads");
  EXPECT_EQ(refusal([](Config* c) { c->recurrent_state_head_dim = 1; }), "LAYOUT_MISMATCH recurrent_state_head_dim");
  EXPECT_EQ(refusal([](Config* c) { c->recurrent_state_size = 1; }), "LAYOUT_MISMATCH recurrent_state_size");
  EXPECT_EQ(refusal([](Config* c) { c->conv_dim = 1; }), "LAYOUT_MISMATCH conv_dim");
  EXPECT_EQ(refusal([](Config* c) { c->conv_kernel = 5; }), "LAYOUT_MISMATCH conv_kernel");
  Config other = config;
  other.conv_kernel = 5;
  EXPECT_EQ(MambaCacheManager::Create(pool_, layout, other).status().message(),
            "conv_kernel is 4 in the layout, and 5 in this configuration");
  EXPECT_EQ(refusal([](Config* c) { c->conv_state_type = v1::BFLOAT16; }), "LAYOUT_MISMATCH conv_state_type");
  EXPECT_EQ(refusal([](Config* c) { c->recurrent_state_type = v1::FLOAT32; }), "LAYOUT_MISMATCH recurrent_state_type");
  EXPECT_EQ(ReasonOf(MambaCacheManager::Create(pool_, "no-such-layout", config).status()), "LAYOUT_UNKNOWN");
  EXPECT_EQ(FieldOf(MambaCacheManager::Create(pool_, layout, config, {.recurrent_axes = {"head"}}).status()),
            "recurrent_axes");
  EXPECT_EQ(
      FieldOf(MambaCacheManager::Create(pool_, layout, config, {.recurrent_axes = {"head", "head_dim", "n"}}).status()),
      "recurrent_axes");
  v1::Layout without_taps = *MambaCacheManager::LayoutOf(Name("/column"), config);
  without_taps.mutable_tensors(0)->mutable_axes(0)->set_name("column");
  const std::string odd = pool_.RegisterLayout(without_taps)->fingerprint();
  EXPECT_EQ(ReasonOf(MambaCacheManager::Create(pool_, odd, config).status()), "LAYOUT_MISMATCH");
  EXPECT_EQ(ReasonOf(MambaCacheManager::LayoutOf("x", Config()).status()), "INVALID_OPTION");
  const auto manager = Create(pool_, layout, config);
  EXPECT_EQ(FieldOf(manager->ReshapeIntermediateStates(3, 1)), "active_batch_size");
  EXPECT_EQ(FieldOf(manager->ReshapeIntermediateStates(0, 1)), "active_batch_size");
  EXPECT_EQ(FieldOf(manager->ReshapeIntermediateStates(1, 4)), "seq_len");
  EXPECT_EQ(FieldOf(manager->ReshapeIntermediateStates(1, 0)), "seq_len");
  EXPECT_EQ(FieldOf(manager->CaptureStates(2, Name(), 1).status()), "batch_idx");
  EXPECT_EQ(FieldOf(manager->CaptureStates(-1, Name(), 1).status()), "batch_idx");
  EXPECT_EQ(FieldOf(manager->RestoreStates(SequenceRef(Name()), 2).status()), "batch_idx");
  EXPECT_EQ(ReasonOf(manager->RestoreStates(SequenceRef(Name()), 1).status()), "NEVER_CREATED");
  EXPECT_EQ(FieldOf(manager->ScatterMtpStates({1, 1, 1}).status()), "accept_lengths");
}

}  // namespace
}  // namespace statepool::engines
