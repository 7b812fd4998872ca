// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// TensorRT Edge-LLM's MambaCacheManager over an arena: its pools, its shapes and its calls, in memory of the daemon's,
// so that what is captured in one process is restored in another, by name.
//
//   MambaCacheManager::Config config = {.num_recurrent_layers = 48, .max_batch_size = 16, ...};
//   pool.RegisterLayout(*MambaCacheManager::LayoutOf("sha256:...", config), "my-model");
//   auto cache = MambaCacheManager::Create(pool, "my-model", config, options);
//   Bind((*cache)->GetRecurrentState(0).data, (*cache)->GetConvState(0).data);
//   (*cache)->CaptureStates(/*batch_idx=*/3, "system-prompt/7", /*position=*/512, stream);
//   (*cache)->RestoreStates(client::SequenceRef("system-prompt/7"), /*batch_idx=*/0, stream);   // any process
//
// What each call is in Statepool's words, and where it differs:
//   Edge-LLM                   here
//   the pools, a tensor for    rows [0, max_batch_size) of an arena, dense as they are there. A version has all but the
//   each layer                 oldest of a convolution's conv_kernel columns, which no later step reads: zeros there
//                              where it was restored
//   clearStates                Arena::Reopen: zeros in all rows at the same addresses, the intermediate states' too
//   captureRecurrentStates,    CaptureStates: one Store of the batch slot as a version of a sequence, both kinds, all
//   captureConvStates          layers. From there: Pool::Snapshot, Fork, PublishPrefix. It is one call because a
//   version
//                              is a whole state: of one kind alone nothing could be restored. One kind of a version is
//                              a selection of it (v1::Select, the tensor's name); one kind of a row, for tensors of the
//                              engine's own, is [batch_idx] of each GetRecurrentState or GetConvState
//   restoring them             one Load of any name into a batch slot
//   MTP intermediate states    the arena's further rows, max_intermediate_seq_len for each batch slot
//   reshapeIntermediateStates  says how many of them the next verification writes, one after the other: those of batch
//                              slot i begin behind the i * seq_len of the slots before it
//   scatterMtpStates           one Advance of all rows, into the main pools: both kinds, all layers, no version. With
//                              indices it is SGLang's, dst[:, idx[i]] = src[:, i, step[i]]
// Any dtype of the layout's is taken, for both kinds (there: half, and half or float).
//
// Without recurrent layers there is no arena, and every call does nothing and succeeds.
//
// Errors, beside those of Pool::OpenArena and of arenas (client/cpp/arena.h):
//   INVALID_OPTION   INVALID_ARGUMENT (the field): a configuration or an argument that makes no sense
//   LAYOUT_MISMATCH  FAILED_PRECONDITION (the field of Config): the layout has other sizes, layers or dtypes
#ifndef STATEPOOL_CLIENT_CPP_ENGINES_MAMBA_CACHE_MANAGER_H_
#define STATEPOOL_CLIENT_CPP_ENGINES_MAMBA_CACHE_MANAGER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/cpp/arena.h"
#include "client/cpp/statepool.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::engines {

// MambaCacheManager::Config.
struct MambaCacheConfig {
  int32_t num_recurrent_layers = 0;  // 0: nothing is ever done
  int32_t max_batch_size = 0;
  int32_t recurrent_state_num_heads = 0;
  int32_t recurrent_state_head_dim = 0;
  int32_t recurrent_state_size = 0;
  int32_t conv_dim = 0;
  int32_t conv_kernel = 0;               // at least 2
  int32_t max_intermediate_seq_len = 0;  // tokens of one MTP verification; 0: there is no MTP
  v1::DType recurrent_state_type = v1::FLOAT16;
  v1::DType conv_state_type = v1::FLOAT16;
};

struct MambaCacheOptions {
  // The layout's axes of the recurrent tensor as the engine has them: heads, head_dim, state_size. Empty: in the
  // layout's order.
  std::vector<std::string> recurrent_axes = {};
  // As in client::ArenaOptions.
  bool direct = false;
  std::string device = {};
};

// Which rows a scatter leaves as they are, beside those with accept length 0.
enum class MtpScatterRule {
  // Those of which all of seq_len tokens, or more, are accepted: the engine has left the state after the last token in
  // the main pools itself. Edge-LLM's rule.
  kSkipFullAcceptance,
  // Those whose accept length is above seq_len. SGLang's rule.
  kSkipOutOfRange,
};

// What became of a row.
using MtpScatterOutcome = v1::AdvancedRow::Outcome;  // MOVED, SKIPPED_NONE, SKIPPED_ALL or SKIPPED_OUT_OF_RANGE

// Not thread-safe. Tensors are on the arena's device (device pointers on a GPU), at addresses that stay the same as
// long as this lives. Calls with a stream are for that stream, as Load and Store of client/cpp/arena.h are: what a
// restore or a scatter has written is there for what the stream does next.
//
// The memory: max_batch_size * (1 + max_intermediate_seq_len) rows, and as many slots that the daemon reserves with
// them. After the daemon's restart the next call that asks it (a direct scatter does not) opens the arena again at the
// same addresses and returns CONTENTS_GONE: all rows are zeros then.
class MambaCacheManager {
 public:
  using Config = MambaCacheConfig;
  using Options = MambaCacheOptions;

  // A layout of these sizes, in layers 0, 1, ... num_recurrent_layers - 1: "conv" [tap K-1, channel], "ssm" [head,
  // head_dim, state], zeros at first. For models that no preset fits; it says nothing of tensor parallelism. Errors:
  // INVALID_OPTION.
  static absl::StatusOr<v1::Layout> LayoutOf(absl::string_view model_id, const Config& config);

  // `layout`: an alias or a fingerprint; it has one CONV tensor of two axes, one of them "tap", and one RECURRENT
  // tensor of three, in the same layers. All rows are zeros. Errors: INVALID_OPTION, LAYOUT_MISMATCH, LAYOUT_UNKNOWN,
  // those of Pool::OpenArena.
  static absl::StatusOr<std::unique_ptr<MambaCacheManager>> Create(const client::Pool& pool, absl::string_view layout,
                                                                   const Config& config, const Options& options = {});
  MambaCacheManager(const MambaCacheManager&) = delete;
  MambaCacheManager& operator=(const MambaCacheManager&) = delete;

  int32_t num_layers() const { return config_.num_recurrent_layers; }
  const Config& config() const { return config_; }

  // The n-th of the layers that have a state. [max_batch_size, heads, head_dim, state_size] and [max_batch_size,
  // conv_dim, conv_kernel], dense. REQUIRES: 0 <= recurrent_layer_idx < num_layers().
  const client::ArenaTensor& GetRecurrentState(int32_t recurrent_layer_idx) const;
  const client::ArenaTensor& GetConvState(int32_t recurrent_layer_idx) const;

  // The same of the states after each token of a verification: [active_batch_size, seq_len, ...], as the last
  // ReshapeIntermediateStates said, at first the largest; dense, also where they are smaller. They begin right behind
  // the main states, which begin at a multiple of 256 bytes. REQUIRES: also has_intermediate_states().
  const client::ArenaTensor& GetIntermediateRecurrentState(int32_t recurrent_layer_idx) const;
  const client::ArenaTensor& GetIntermediateConvState(int32_t recurrent_layer_idx) const;
  bool has_intermediate_states() const { return num_layers() > 0 && config_.max_intermediate_seq_len > 0; }

  // Of what the engine writes next: 1 <= active_batch_size <= max_batch_size, 1 <= seq_len <=
  // max_intermediate_seq_len. Does nothing without MTP. Errors: INVALID_OPTION.
  absl::Status ReshapeIntermediateStates(int32_t active_batch_size, int32_t seq_len);

  // Zeros in all rows. Waits for all that this process does on the GPU, and no other thread may launch work there
  // meanwhile: for the time between warm-up and serving.
  absl::Status ClearStates();

  // Makes what a batch slot's main states hold the version of `sequence` at `position` (tokens consumed); makes the
  // sequence where there is none. On a GPU it waits until the stream has written the states. A slot that was restored
  // from this sequence, or captured as it, asks that nobody else wrote to it since (REVISION_MISMATCH).
  absl::StatusOr<v1::NameInfo> CaptureStates(int32_t batch_idx, absl::string_view sequence, int64_t position,
                                             CUstream_st* stream = nullptr);

  // Copies a name's version into a batch slot's main states. The answer has its position. Errors: every miss; the slot
  // is as it was then, unless the error is DEADLINE, CANCELLED or CORRUPT.
  absl::StatusOr<v1::NameInfo> RestoreStates(const v1::NameRef& name, int32_t batch_idx, CUstream_st* stream = nullptr);

  // After a verification: the main states of batch slot i become those after its first accept_lengths[i] tokens, but
  // for slots that `rule` leaves as they are. Says what became of each. accept_lengths is in this process's memory and
  // has at most active_batch_size entries. Does nothing without MTP. Errors: INVALID_OPTION, those of Advance: then
  // nothing was moved.
  absl::StatusOr<std::vector<MtpScatterOutcome>> ScatterMtpStates(
      absl::Span<const int32_t> accept_lengths, MtpScatterRule rule = MtpScatterRule::kSkipFullAcceptance,
      CUstream_st* stream = nullptr);
  // The same for an engine whose verification has its batch in another order than the pools: slot i's state goes to row
  // indices[i] of the main states, 0 <= indices[i] < max_batch_size, as many as accept lengths, no row twice. Of slots
  // that are left as they are the index is not looked at: it may be padding.
  absl::StatusOr<std::vector<MtpScatterOutcome>> ScatterMtpStates(absl::Span<const int32_t> accept_lengths,
                                                                  absl::Span<const int32_t> indices,
                                                                  MtpScatterRule rule = MtpScatterRule::kSkipOutOfRange,
                                                                  CUstream_st* stream = nullptr);

 private:
  // Of one kind of state, a tensor for each layer.
  struct Pools {
    std::vector<client::ArenaTensor> main, intermediate;
  };

  explicit MambaCacheManager(const Config& config) : config_(config) {}

  void AddLayer(const client::ArenaTensor& tensor, Pools* to) const;
  void Reshape(Pools* pools) const;
  absl::Status CheckSlot(int32_t batch_idx) const;

  const Config config_;
  std::unique_ptr<client::Arena> arena_;  // null: there are no layers
  Pools recurrent_, conv_;
  int32_t active_batch_size_ = 0, seq_len_ = 0;
};

}  // namespace statepool::engines

#endif  // STATEPOOL_CLIENT_CPP_ENGINES_MAMBA_CACHE_MANAGER_H_
