// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// MLC-LLM's RNNState (in TVM: RNNStateObj) over a pool: its calls, its words and its history, but the states are
// sequences of the daemon's, which other processes find, fork and go on with.
//
//   auto layout = RNNState::LayoutOf("sha256:...", num_hidden_layers, init_values);
//   pool.RegisterLayout(*layout, "my-model");
//   auto state = RNNState::Create(pool, "my-model", /*max_batch_size=*/8, /*max_history=*/4, "chat");
//   (*state)->AddSequence(42);                      // the sequence "chat/42"
//   (*state)->BeginForward({42}, {1});
//   auto from = (*state)->Get(layer_id, state_id);  // from->data(0): the state before the step
//   auto to = (*state)->Set(layer_id, state_id);    // to->data(0): where the model writes the one after it
//   (*state)->EndForward();                         // all sequences of the batch have a new version, or none has
//   (*state)->PopN(42, 1);
//
// What each call is in Statepool's words, and where it differs from MLC's (H = max_history):
//   MLC             here
//   create          OpenArena with 2 * max_batch_size rows; num_hidden_layers and init_values are the layout's. A
//                   sequence's history is the ring of its name, in the daemon: H versions, which cost no arena memory
//   add             Create: the initial state at position 0 of all layers, and of every place of the history (MLC: of
//                   the first alone). There is no number of slots to run out of: max_batch_size is that of one batch
//   begin_forward   Load of the batch's sequences, where their rows do not hold them already. Token trees: chains
//                   alone. A step has at least one token (MLC takes 0, and is one version further without being one
//                   token)
//   get             the row that holds the sequence's state, in place: also after a set within the step the state
//                   before it. Read-only (MLC: a copy)
//   set             a second row, in place, which becomes the state when the step ends: the two take turns
//   end_forward     Store of the second rows at `length + append_length`, all or none. Refused while a state of a
//                   layer was not set (MLC: goes on to a slot that nothing wrote)
//   pop_n           Rollback by tokens: 0 <= n <= NameInfo.rollback_tokens, the versions behind the head that are one
//                   token apart, at most H - 1. So a step of more than one token can't be rolled back into
//   fork            Fork with the ring, no byte copied; fork_pos is honoured (MLC: ignored), if the ring has it
//   remove          Delete
//
// Errors, beside those of the calls named above (statepool.proto) and of arenas (client/cpp/arena.h):
//   INVALID_OPTION      INVALID_ARGUMENT (the field): a batch that makes no sense, a token tree that is no chain, a
//                       layer or a state that the layout does not have
//   NO_BATCH            FAILED_PRECONDITION: no step began, or it ended
//   STATE_NOT_SET       FAILED_PRECONDITION: EndForward before Set of this layer and state (metadata: layer_id,
//                       state_id)
//   REVISION_MISMATCH   ABORTED: somebody else wrote to a sequence of the batch since BeginForward. Nothing was stored
#ifndef STATEPOOL_CLIENT_CPP_ENGINES_RNN_STATE_H_
#define STATEPOOL_CLIENT_CPP_ENGINES_RNN_STATE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/cpp/arena.h"
#include "client/cpp/statepool.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::engines {

// What one state of every layer is at first.
struct RNNStateInitValue {
  std::vector<uint64_t> shape;  // of one layer and sequence
  v1::DType dtype = v1::DTYPE_UNSPECIFIED;
  std::string data;  // row-major, little-endian; empty: zeros
};

struct RNNStateOptions {
  // Of sequences that are added; children inherit those of their parents. Its max_history is not used.
  v1::NameOptions name_options = {};
  // How the engine sees the states, where it is not as the layout has them: axis_orders and conv_padding.
  v1::View view = {};
  // As in client::ArenaOptions.
  bool direct = false;
  std::string device = {};
};

// One state of one layer for the sequences of a batch, in the arena's memory: on a GPU, device pointers. An engine's
// kernel takes `storage` and `rows` as MLC's take their storage and slot ids; data(i) is for those that go one by one.
// Valid until EndForward, the next BeginForward or the RNNState's end.
template <typename Void>
class RNNStateBatch {
 public:
  RNNStateBatch(const client::ArenaTensor* storage, absl::Span<const int32_t> rows) : storage_(storage), rows_(rows) {}

  // [row, *shape of the state]; its strides are in bytes. A state is contiguous there, in the view's order of axes.
  const client::ArenaTensor& storage() const { return *storage_; }
  // The row of each sequence, in the order of the batch.
  absl::Span<const int32_t> rows() const { return rows_; }
  // REQUIRES: i < rows().size().
  Void* data(size_t i) const {
    return static_cast<char*>(storage_->data) + static_cast<uint64_t>(rows_[i]) * storage_->strides[0];
  }

 private:
  const client::ArenaTensor* storage_;
  absl::Span<const int32_t> rows_;
};

// Not thread-safe. Several, in one process or many, may have the same name: they see the same sequences, and of two
// that step one sequence at a time the one that ends first wins (REVISION_MISMATCH).
//
// On a GPU each step is for the stream that BeginForward and EndForward get (client/cpp/arena.h): what BeginForward
// loaded is there for it, and EndForward waits until it has written the states.
//
// Rows keep the sequences that were stepped last, max_batch_size of them: a sequence that is stepped again, and that
// nobody else wrote to, is not copied, nor is one that lost its last step by PopN. After the daemon's restart
// BeginForward loads anew; a step that it interrupts ends with CONTENTS_GONE and has to begin again.
class RNNState {
 public:
  // A layout with one tensor "state_<i>" for each of the init values, in layers 0, 1, ... num_hidden_layers - 1, its
  // axes "axis_0", "axis_1", ...: for models that no preset knows. Values that are not zero are in the layout once for
  // each layer; it has at most 64 MiB. At least one layer and one init value: without a state there is nothing to keep,
  // and a model without recurrent layers makes no RNNState (a MambaCacheManager of no layers does nothing, as
  // Edge-LLM's). Errors: INVALID_OPTION (num_hidden_layers: 1..4,096 of them; init_values: none, bytes that are not of
  // the shape, a state above 2^40 bytes, more than 64 MiB of values).
  static absl::StatusOr<v1::Layout> LayoutOf(absl::string_view model_id, uint32_t num_hidden_layers,
                                             absl::Span<const RNNStateInitValue> init_values);

  // `layout`: an alias or a fingerprint. `name`: what the names of the sequences begin with, before a '/'.
  // max_batch_size: 1..Capabilities.max_arena_rows / 2. max_history: 1..Capabilities.max_history. Errors:
  // INVALID_OPTION, those of Pool::OpenArena.
  static absl::StatusOr<std::unique_ptr<RNNState>> Create(const client::Pool& pool, absl::string_view layout,
                                                          uint32_t max_batch_size, uint32_t max_history,
                                                          absl::string_view name, const RNNStateOptions& options = {});
  RNNState(const RNNState&) = delete;
  RNNState& operator=(const RNNState&) = delete;

  // The name of a sequence in the pool: to publish a prefix of it, to make it a snapshot, to describe it.
  std::string NameOf(int64_t seq_id) const;

  // Errors: ALREADY_EXISTS (NAME_EXISTS).
  absl::Status AddSequence(int64_t seq_id);
  // Errors: every miss.
  absl::Status RemoveSequence(int64_t seq_id);
  // The child is the parent as it was at position fork_pos, or, by default, as it is; with what is behind that in the
  // parent's history, and with its max_history. Errors: every miss (of fork_pos: POSITION_MISMATCH), NAME_EXISTS.
  absl::Status ForkSequence(int64_t parent_seq_id, int64_t child_seq_id, int64_t fork_pos = -1);
  // Of 0 tokens nothing changes. Errors: every miss; INVALID_OPTION (tokens): n < 0; HISTORY_TOO_SHORT (metadata:
  // available): more than can be popped. Then nothing changes.
  absl::Status PopN(int64_t seq_id, int32_t n);

  // Begins a step of append_lengths[i] >= 1 tokens of each sequence; no sequence twice. token_tree_parent_ptr, if there
  // is one, has for each token of each sequence, one sequence after the other, the number of its parent within its
  // sequence's tokens, -1 for the first: only chains (i - 1) are taken. Drops what a step that did not end has set.
  // Errors: INVALID_OPTION, those of Load of the first sequence that has one: then no step began.
  absl::Status BeginForward(absl::Span<const int64_t> seq_ids, absl::Span<const int64_t> append_lengths,
                            std::optional<absl::Span<const int64_t>> token_tree_parent_ptr = std::nullopt,
                            CUstream_st* stream = nullptr);

  // The length of each sequence of the batch before the step: its position.
  absl::Span<const int64_t> seq_lengths() const { return seq_lengths_; }

  // layer_id is the model's, state_id the index of the layout's tensor. Get is the state before the step; whoever
  // writes there breaks what later steps read. Set is memory for the state after it, whose bytes are not said: the
  // engine, that called it, writes all of them before EndForward. Errors: NO_BATCH, INVALID_OPTION.
  absl::StatusOr<RNNStateBatch<const void>> Get(int64_t layer_id, int64_t state_id) const;
  absl::StatusOr<RNNStateBatch<void>> Set(int64_t layer_id, int64_t state_id);

  // Errors: NO_BATCH, STATE_NOT_SET, those of Store. Nothing is stored then, and the step goes on: EndForward may be
  // called again, also where it is not known whether the first one was done (then it is not done twice). But after
  // CONTENTS_GONE, which takes along what was set, the step is over, and BeginForward tells by seq_lengths() whether it
  // was done.
  absl::Status EndForward(CUstream_st* stream = nullptr);

 private:
  // Two rows, 2 * i and 2 * i + 1.
  struct RowPair {
    std::optional<int64_t> seq_id;  // whose state is there
    int current = 0;                // of the two; nobody wrote to this one since the arena's last Load or Store of it
    uint64_t version_ids[2] = {};   // what they hold; 0: not known
    uint64_t last_step = 0;
  };

  RNNState(const client::Pool& pool, absl::string_view name, uint32_t max_history, const RNNStateOptions& options);

  static int32_t RowOf(size_t pair, int which) { return static_cast<int32_t>(2 * pair) + which; }
  absl::Status CheckBatch(absl::Span<const int64_t> seq_ids, absl::Span<const int64_t> append_lengths,
                          std::optional<absl::Span<const int64_t>> token_tree_parent_ptr) const;
  std::vector<size_t> PairsFor(absl::Span<const int64_t> seq_ids);
  absl::StatusOr<size_t> TensorOf(int64_t layer_id, int64_t state_id) const;

  const client::Pool pool_;
  const std::string name_;
  v1::NameOptions name_options_;
  std::unique_ptr<client::Arena> arena_;
  absl::flat_hash_map<std::pair<int64_t, int64_t>, size_t> tensors_;  // of the arena, by layer and state

  std::vector<RowPair> pairs_;
  absl::flat_hash_map<int64_t, size_t> pair_of_;  // by sequence
  uint64_t steps_ = 0;                            // that began

  // The step that goes on; empty: none does.
  std::vector<size_t> batch_;  // the pair of each sequence
  std::vector<v1::StoreItem> stores_;
  std::vector<int64_t> seq_lengths_;
  std::vector<int32_t> get_rows_, set_rows_;
  std::vector<bool> is_set_;  // by tensor
};

}  // namespace statepool::engines

#endif  // STATEPOOL_CLIENT_CPP_ENGINES_RNN_STATE_H_
