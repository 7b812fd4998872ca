// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/engines/rnn_state.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/calls.h"
#include "client/cpp/errors.h"

namespace statepool::engines {
namespace {

using client::GetErrorDetail;
using client::MakeError;
using client::SequenceRef;

absl::Status InvalidOption(absl::string_view field, absl::string_view message) {
  return client::InvalidArgument("INVALID_OPTION", field, message);
}

constexpr int64_t kPositionMax = int64_t{1} << 53;
constexpr uint32_t kLayersMax = 4096;  // of a tensor, as the daemon takes them
constexpr uint64_t kStateBytesMax = uint64_t{1} << 40;
constexpr uint64_t kLayoutBytesMax = 64 << 20;  // initial values included

absl::Status NoBatch() {
  return MakeError(absl::StatusCode::kFailedPrecondition, "NO_BATCH", "",
                   "no step goes on: BeginForward begins one, and EndForward ends it");
}

// The error that made a batch fail, not those of items that could have been done without it.
template <typename Row>
absl::Status FirstError(const std::vector<absl::StatusOr<Row>>& rows) {
  absl::Status first;
  for (const absl::StatusOr<Row>& row : rows) {
    if (row.ok()) continue;
    if (GetErrorDetail(row.status()).reason != "BATCH_ABORTED") return row.status();
    if (first.ok()) first = row.status();
  }
  return first;
}

}  // namespace

absl::StatusOr<v1::Layout> RNNState::LayoutOf(absl::string_view model_id, uint32_t num_hidden_layers,
                                              absl::Span<const RNNStateInitValue> init_values) {
  if (num_hidden_layers < 1)
    return InvalidOption("num_hidden_layers", "a model without recurrent layers has no layout, and needs no RNNState");
  if (num_hidden_layers > kLayersMax)
    return InvalidOption("num_hidden_layers", absl::StrCat("at most ", kLayersMax, " layers"));
  if (init_values.empty()) return InvalidOption("init_values", "a layer has at least one state");
  v1::Layout layout;
  layout.set_model_id(std::string(model_id));
  uint64_t value_bytes = 0;
  for (size_t i = 0; i < init_values.size(); ++i) {
    const RNNStateInitValue& init = init_values[i];
    const std::string field = absl::StrCat("init_values[", i, "]");
    v1::TensorSpec& tensor = *layout.add_tensors();
    tensor.set_name(absl::StrCat("state_", i));
    tensor.set_kind(v1::RECURRENT);
    for (uint32_t layer = 0; layer < num_hidden_layers; ++layer) tensor.add_layers(layer);
    tensor.set_dtype(init.dtype);
    uint64_t bytes = client::BytesOf(init.dtype);
    for (size_t axis = 0; axis < init.shape.size(); ++axis) {
      v1::Axis& to = *tensor.add_axes();
      to.set_name(absl::StrCat("axis_", axis));
      to.set_size(init.shape[axis]);
      if (init.shape[axis] > 0 && bytes > kStateBytesMax / init.shape[axis])
        return InvalidOption(field, absl::StrCat("a state of this shape has more than ", kStateBytesMax, " bytes"));
      bytes *= init.shape[axis];
    }
    if (init.data.find_first_not_of('\0') == std::string::npos && (init.data.empty() || init.data.size() == bytes))
      continue;
    if (init.data.size() != bytes) {
      return InvalidOption(field,
                           absl::StrCat("a state of this shape has ", bytes, " bytes, and not ", init.data.size()));
    }
    if (init.data.size() > (kLayoutBytesMax - value_bytes) / num_hidden_layers) {
      return InvalidOption(field, absl::StrCat("with one for each layer, a layout has at most ", kLayoutBytesMax,
                                               " bytes of values that are not zero"));
    }
    value_bytes += init.data.size() * num_hidden_layers;
    std::string& data = *tensor.mutable_initial()->mutable_data();
    for (uint32_t layer = 0; layer < num_hidden_layers; ++layer) data += init.data;
  }
  return layout;
}

RNNState::RNNState(const client::Pool& pool, absl::string_view name, uint32_t max_history,
                   const RNNStateOptions& options)
    : pool_(pool), name_(name), name_options_(options.name_options) {
  name_options_.set_max_history(max_history);
}

absl::StatusOr<std::unique_ptr<RNNState>> RNNState::Create(const client::Pool& pool, absl::string_view layout,
                                                           uint32_t max_batch_size, uint32_t max_history,
                                                           absl::string_view name, const RNNStateOptions& options) {
  if (max_batch_size < 1) return InvalidOption("max_batch_size", "a batch has at least one sequence");
  if (max_history < 1) return InvalidOption("max_history", "1 is the state itself: at least that is kept");
  const v1::View& view = options.view;
  if (view.layers() != v1::View::PER_LAYER || view.num_spec() > 0 || view.tp_size() > 1)
    return InvalidOption("view", "only axis_orders and conv_padding may be set");
  const absl::StatusOr<v1::Capabilities> capabilities = pool.GetCapabilities();
  if (!capabilities.ok()) return capabilities.status();
  if (max_history > capabilities->max_history())
    return InvalidOption("max_history", absl::StrCat("at most ", capabilities->max_history()));
  // A daemon without arenas has no limit: OpenArena says that it has none.
  const uint32_t rows_max = capabilities->max_arena_rows() > 0 ? capabilities->max_arena_rows() : UINT32_MAX;
  if (max_batch_size > rows_max / 2) {
    return InvalidOption("max_batch_size", absl::StrCat("at most ", rows_max / 2, ": each sequence has two of the ",
                                                        rows_max, " rows (Capabilities.max_arena_rows)"));
  }
  auto state = absl::WrapUnique(new RNNState(pool, name, max_history, options));
  client::ArenaOptions arena_options;
  arena_options.rows = 2 * max_batch_size;
  arena_options.view = view;
  arena_options.direct = options.direct;
  arena_options.device = options.device;
  absl::StatusOr<std::unique_ptr<client::Arena>> arena = pool.OpenArena(layout, arena_options);
  if (!arena.ok()) return arena.status();
  state->arena_ = *std::move(arena);
  state->pairs_.resize(max_batch_size);  // of which there are not too many
  const std::vector<client::ArenaTensor>& tensors = state->arena_->tensors();
  int64_t state_id = -1;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (i == 0 || tensors[i].tensor != tensors[i - 1].tensor) ++state_id;
    state->tensors_[{tensors[i].layers[0], state_id}] = i;
  }
  return state;
}

std::string RNNState::NameOf(int64_t seq_id) const { return absl::StrCat(name_, "/", seq_id); }

absl::Status RNNState::AddSequence(int64_t seq_id) {
  v1::CreateRequest request;
  request.set_sequence(NameOf(seq_id));
  request.set_layout(arena_->layout());
  *request.mutable_options() = name_options_;
  return pool_.Create(request).status();
}

absl::Status RNNState::RemoveSequence(int64_t seq_id) {
  if (const auto pair = pair_of_.find(seq_id); pair != pair_of_.end()) {
    pairs_[pair->second].seq_id.reset();
    pairs_[pair->second].last_step = 0;
    pair_of_.erase(pair);
  }
  return pool_.Delete(SequenceRef(NameOf(seq_id))).status();
}

absl::Status RNNState::ForkSequence(int64_t parent_seq_id, int64_t child_seq_id, int64_t fork_pos) {
  if (fork_pos < -1) return InvalidOption("fork_pos", "a position, or -1: where the parent is");
  v1::ForkRequest request;
  *request.mutable_source() = SequenceRef(NameOf(parent_seq_id));
  if (fork_pos >= 0) request.set_position(fork_pos);
  request.add_children(NameOf(child_seq_id));
  return pool_.Fork(request).status();
}

absl::Status RNNState::PopN(int64_t seq_id, int32_t n) {
  if (n == 0) return pool_.Describe(client::SequenceRef(NameOf(seq_id))).status();
  v1::RollbackRequest request;
  request.set_sequence(NameOf(seq_id));
  request.set_tokens(n);
  const absl::StatusOr<v1::NameInfo> info = pool_.Rollback(request);
  if (!info.ok()) return info.status();
  // The row that was not written to since may hold what the head is now.
  if (const auto found = pair_of_.find(seq_id); found != pair_of_.end()) {
    RowPair& pair = pairs_[found->second];
    if (pair.version_ids[1 - pair.current] == info->version_id()) pair.current = 1 - pair.current;
  }
  return absl::OkStatus();
}

absl::Status RNNState::CheckBatch(absl::Span<const int64_t> seq_ids, absl::Span<const int64_t> append_lengths,
                                  std::optional<absl::Span<const int64_t>> token_tree_parent_ptr) const {
  if (seq_ids.empty() || seq_ids.size() > pairs_.size())
    return InvalidOption("seq_ids", absl::StrCat("a batch has 1..", pairs_.size(), " sequences"));
  if (append_lengths.size() != seq_ids.size())
    return InvalidOption("append_lengths", absl::StrCat("one for each of the ", seq_ids.size(), " sequences"));
  absl::flat_hash_set<int64_t> seen;
  size_t tokens = 0;
  for (size_t i = 0; i < seq_ids.size(); ++i) {
    if (!seen.insert(seq_ids[i]).second)
      return InvalidOption(absl::StrCat("seq_ids[", i, "]"), absl::StrCat(seq_ids[i], " is there twice"));
    if (append_lengths[i] < 1 || append_lengths[i] > kPositionMax)
      return InvalidOption(absl::StrCat("append_lengths[", i, "]"), "1..2^53 tokens");
    if (!token_tree_parent_ptr.has_value()) continue;
    for (int64_t token = 0; token < append_lengths[i]; ++token, ++tokens) {
      if (tokens >= token_tree_parent_ptr->size())
        return InvalidOption("token_tree_parent_ptr", "has fewer tokens than the sequences together");
      if ((*token_tree_parent_ptr)[tokens] != token - 1) {
        return InvalidOption(absl::StrCat("token_tree_parent_ptr[", tokens, "]"),
                             "a recurrent state goes along a chain: the parent of each token is the one before it");
      }
    }
  }
  if (token_tree_parent_ptr.has_value() && tokens != token_tree_parent_ptr->size())
    return InvalidOption("token_tree_parent_ptr", "has more tokens than the sequences together");
  return absl::OkStatus();
}

// A pair for each: that which has the sequence, or else the one that was not used for longest.
std::vector<size_t> RNNState::PairsFor(absl::Span<const int64_t> seq_ids) {
  ++steps_;
  for (int64_t seq_id : seq_ids) {
    if (const auto found = pair_of_.find(seq_id); found != pair_of_.end()) pairs_[found->second].last_step = steps_;
  }
  std::vector<size_t> pairs;
  for (int64_t seq_id : seq_ids) {
    const auto found = pair_of_.find(seq_id);
    if (found != pair_of_.end()) {
      pairs.push_back(found->second);
      continue;
    }
    const auto oldest = std::min_element(pairs_.begin(), pairs_.end(),
                                         [](const RowPair& a, const RowPair& b) { return a.last_step < b.last_step; });
    if (oldest->seq_id.has_value()) pair_of_.erase(*oldest->seq_id);
    oldest->seq_id = seq_id;
    oldest->last_step = steps_;
    pairs.push_back(static_cast<size_t>(oldest - pairs_.begin()));
    pair_of_[seq_id] = pairs.back();
  }
  return pairs;
}

absl::Status RNNState::BeginForward(absl::Span<const int64_t> seq_ids, absl::Span<const int64_t> append_lengths,
                                    std::optional<absl::Span<const int64_t>> token_tree_parent_ptr,
                                    CUstream_st* stream) {
  batch_.clear();
  seq_lengths_.clear();
  if (absl::Status status = CheckBatch(seq_ids, append_lengths, token_tree_parent_ptr); !status.ok()) return status;
  std::vector<size_t> batch = PairsFor(seq_ids);
  std::vector<v1::LoadItem> items;
  for (size_t i = 0; i < batch.size(); ++i) {
    const RowPair& pair = pairs_[batch[i]];
    items.push_back(
        client::LoadRow(static_cast<uint32_t>(RowOf(batch[i], pair.current)), SequenceRef(NameOf(seq_ids[i]))));
    items.back().set_row_unmodified(true);
  }
  absl::StatusOr<client::LoadAnswer> loaded = arena_->Load(items, {}, stream);
  if (!loaded.ok() && GetErrorDetail(loaded.status()).reason == "CONTENTS_GONE")
    loaded = arena_->Load(items, {}, stream);  // of what the rows held nothing is needed
  if (!loaded.ok()) return loaded.status();
  if (absl::Status status = FirstError(loaded->rows); !status.ok()) return status;

  stores_.clear();
  get_rows_.clear();
  set_rows_.clear();
  is_set_.assign(arena_->tensors().size(), false);
  for (size_t i = 0; i < batch.size(); ++i) {
    RowPair& pair = pairs_[batch[i]];
    const v1::NameInfo& info = loaded->rows[i]->info();
    pair.version_ids[pair.current] = info.version_id();
    pair.version_ids[1 - pair.current] = 0;
    get_rows_.push_back(RowOf(batch[i], pair.current));
    set_rows_.push_back(RowOf(batch[i], 1 - pair.current));
    seq_lengths_.push_back(info.position());
    v1::StoreItem& store = stores_.emplace_back(client::StoreRow(
        static_cast<uint32_t>(set_rows_.back()), NameOf(seq_ids[i]), info.position() + append_lengths[i]));
    store.set_whole_row(true);
    store.set_if_revision(info.revision());
    store.set_request_id(client::NewRequestId());
  }
  batch_ = std::move(batch);
  return absl::OkStatus();
}

absl::StatusOr<size_t> RNNState::TensorOf(int64_t layer_id, int64_t state_id) const {
  if (batch_.empty()) return NoBatch();
  const auto found = tensors_.find({layer_id, state_id});
  if (found != tensors_.end()) return found->second;
  const bool has_layer =
      std::any_of(tensors_.begin(), tensors_.end(), [&](const auto& tensor) { return tensor.first.first == layer_id; });
  return InvalidOption(has_layer ? "state_id" : "layer_id",
                       absl::StrCat("layer ", layer_id, " has no state ", state_id));
}

absl::StatusOr<RNNStateBatch<const void>> RNNState::Get(int64_t layer_id, int64_t state_id) const {
  const absl::StatusOr<size_t> tensor = TensorOf(layer_id, state_id);
  if (!tensor.ok()) return tensor.status();
  return RNNStateBatch<const void>(&arena_->tensors()[*tensor], get_rows_);
}

absl::StatusOr<RNNStateBatch<void>> RNNState::Set(int64_t layer_id, int64_t state_id) {
  const absl::StatusOr<size_t> tensor = TensorOf(layer_id, state_id);
  if (!tensor.ok()) return tensor.status();
  is_set_[*tensor] = true;
  return RNNStateBatch<void>(&arena_->tensors()[*tensor], set_rows_);
}

absl::Status RNNState::EndForward(CUstream_st* stream) {
  if (batch_.empty()) return NoBatch();
  for (const auto& [which, tensor] : tensors_) {
    if (is_set_[tensor]) continue;
    return MakeError(absl::StatusCode::kFailedPrecondition, "STATE_NOT_SET", "",
                     absl::StrCat("state ", which.second, " of layer ", which.first, " was not set in this step"),
                     {{"layer_id", absl::StrCat(which.first)}, {"state_id", absl::StrCat(which.second)}});
  }
  const absl::StatusOr<client::StoreAnswer> stored = arena_->Store(stores_, /*all_or_none=*/true, {}, stream);
  if (!stored.ok()) {
    if (GetErrorDetail(stored.status()).reason == "CONTENTS_GONE") batch_.clear();
    return stored.status();
  }
  if (absl::Status status = FirstError(stored->rows); !status.ok()) return status;
  for (size_t i = 0; i < batch_.size(); ++i) {
    RowPair& pair = pairs_[batch_[i]];
    pair.current = 1 - pair.current;
    pair.version_ids[pair.current] = stored->rows[i]->version_id();
  }
  batch_.clear();
  return absl::OkStatus();
}

}  // namespace statepool::engines
