// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/engines/mamba_cache_manager.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/calls.h"
#include "client/cpp/errors.h"

namespace statepool::engines {
namespace {

using Config = MambaCacheManager::Config;

constexpr char kTapAxis[] = "tap";

absl::Status InvalidOption(absl::string_view field, absl::string_view message) {
  return client::InvalidArgument("INVALID_OPTION", field, message);
}

absl::Status Mismatch(absl::string_view field, absl::string_view message) {
  return client::MakeError(absl::StatusCode::kFailedPrecondition, "LAYOUT_MISMATCH", field, message);
}

// Of the arena: the main states of each batch slot, and its intermediate ones.
int64_t RowsOf(const Config& config) {
  return int64_t{config.max_batch_size} * (int64_t{1} + config.max_intermediate_seq_len);
}

absl::Status CheckConfig(const Config& config) {
  if (config.num_recurrent_layers < 0) return InvalidOption("num_recurrent_layers", "must not be negative");
  if (config.num_recurrent_layers == 0) return absl::OkStatus();
  for (const auto& [field, value, least] :
       {std::tuple("max_batch_size", config.max_batch_size, 1),
        std::tuple("recurrent_state_num_heads", config.recurrent_state_num_heads, 1),
        std::tuple("recurrent_state_head_dim", config.recurrent_state_head_dim, 1),
        std::tuple("recurrent_state_size", config.recurrent_state_size, 1), std::tuple("conv_dim", config.conv_dim, 1),
        std::tuple("conv_kernel", config.conv_kernel, 2),
        std::tuple("max_intermediate_seq_len", config.max_intermediate_seq_len, 0)}) {
    if (value < least) return InvalidOption(field, absl::StrCat("must be at least ", least));
  }
  if (RowsOf(config) > INT32_MAX)
    return InvalidOption("max_intermediate_seq_len", absl::StrCat("makes ", RowsOf(config), " rows of an arena"));
  return absl::OkStatus();
}

struct AxisSize {
  std::string name;
  int32_t size;
};

void AddTensor(absl::string_view name, v1::TensorKind kind, const Config& config, v1::DType dtype,
               absl::Span<const AxisSize> axes, v1::Layout* layout) {
  v1::TensorSpec& tensor = *layout->add_tensors();
  tensor.set_name(std::string(name));
  tensor.set_kind(kind);
  for (int32_t layer = 0; layer < config.num_recurrent_layers; ++layer) tensor.add_layers(static_cast<uint32_t>(layer));
  tensor.set_dtype(dtype);
  for (const AxisSize& axis : axes) {
    v1::Axis& to = *tensor.add_axes();
    to.set_name(axis.name);
    to.set_size(static_cast<uint64_t>(axis.size));
  }
}

// The layout's only tensor of this kind.
absl::StatusOr<const v1::TensorSpec*> Find(const v1::Layout& layout, v1::TensorKind kind, int axes) {
  const v1::TensorSpec* found = nullptr;
  for (const v1::TensorSpec& tensor : layout.tensors()) {
    if (tensor.kind() != kind) continue;
    if (found != nullptr) return Mismatch("", absl::StrCat("it has several ", v1::TensorKind_Name(kind), " tensors"));
    found = &tensor;
  }
  if (found == nullptr || found->axes_size() != axes)
    return Mismatch("", absl::StrCat("it has no ", v1::TensorKind_Name(kind), " tensor of ", axes, " axes"));
  return found;
}

struct NamedSize {
  const char* field;  // of Config
  int32_t size;
  int32_t not_kept = 0;  // how much of it the layout's axis leaves out
};

// That the tensor has these axes, outermost first, each of the size that the engine says; the view then has them so.
absl::Status CheckTensor(const v1::TensorSpec& tensor, const Config& config, const char* dtype_field, v1::DType dtype,
                         const char* axes_field, absl::Span<const std::string> axes, absl::Span<const NamedSize> sizes,
                         v1::View* view) {
  if (tensor.layers_size() != config.num_recurrent_layers) {
    return Mismatch("num_recurrent_layers",
                    absl::StrCat("'", tensor.name(), "' has ", tensor.layers_size(), " layers in the layout"));
  }
  if (tensor.dtype() != dtype) {
    return Mismatch(dtype_field,
                    absl::StrCat("'", tensor.name(), "' is ", v1::DType_Name(tensor.dtype()), " in the layout"));
  }
  v1::AxisOrder& order = *view->add_axis_orders();
  order.set_tensor(tensor.name());
  for (size_t i = 0; i < axes.size(); ++i) {
    const auto axis = std::find_if(tensor.axes().begin(), tensor.axes().end(),
                                   [&](const v1::Axis& candidate) { return candidate.name() == axes[i]; });
    if (axis == tensor.axes().end())
      return InvalidOption(axes_field, absl::StrCat("'", tensor.name(), "' has no axis '", axes[i], "' in the layout"));
    const auto& [field, size, not_kept] = sizes[i];
    if (axis->size() != static_cast<uint64_t>(size - not_kept)) {
      return Mismatch(field, absl::StrCat(field, " is ", axis->size() + static_cast<uint64_t>(not_kept),
                                          " in the layout, and ", size, " in this configuration"));
    }
    order.add_axes(axes[i]);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::Layout> MambaCacheManager::LayoutOf(absl::string_view model_id, const Config& config) {
  if (absl::Status status = CheckConfig(config); !status.ok()) return status;
  if (config.num_recurrent_layers == 0)
    return InvalidOption("num_recurrent_layers", "a model without recurrent layers has no layout, and needs none");
  v1::Layout layout;
  layout.set_model_id(std::string(model_id));
  AddTensor("conv", v1::CONV, config, config.conv_state_type,
            {{kTapAxis, config.conv_kernel - 1}, {"channel", config.conv_dim}}, &layout);
  AddTensor("ssm", v1::RECURRENT, config, config.recurrent_state_type,
            {{"head", config.recurrent_state_num_heads},
             {"head_dim", config.recurrent_state_head_dim},
             {"state", config.recurrent_state_size}},
            &layout);
  return layout;
}

absl::StatusOr<std::unique_ptr<MambaCacheManager>> MambaCacheManager::Create(const client::Pool& pool,
                                                                             absl::string_view layout,
                                                                             const Config& config,
                                                                             const Options& options) {
  if (absl::Status status = CheckConfig(config); !status.ok()) return status;
  auto manager = absl::WrapUnique(new MambaCacheManager(config));
  if (config.num_recurrent_layers == 0) return manager;

  const absl::StatusOr<v1::LayoutInfo> info = pool.GetLayout(layout);
  if (!info.ok()) return info.status();
  const absl::StatusOr<const v1::TensorSpec*> conv = Find(info->layout(), v1::CONV, 2);
  if (!conv.ok()) return conv.status();
  const absl::StatusOr<const v1::TensorSpec*> recurrent = Find(info->layout(), v1::RECURRENT, 3);
  if (!recurrent.ok()) return recurrent.status();
  if ((*conv)->layers_size() != (*recurrent)->layers_size() ||
      !std::equal((*conv)->layers().begin(), (*conv)->layers().end(), (*recurrent)->layers().begin()))
    return Mismatch("num_recurrent_layers", "its two tensors are those of different layers");
  std::vector<std::string> recurrent_axes = options.recurrent_axes, conv_axes;
  if (recurrent_axes.empty()) {
    for (const v1::Axis& axis : (*recurrent)->axes()) recurrent_axes.push_back(axis.name());
  }
  if (recurrent_axes.size() != 3)
    return InvalidOption("recurrent_axes", "heads, head_dim and state_size: three, or none");
  for (const v1::Axis& axis : (*conv)->axes()) {
    if (axis.name() != kTapAxis) conv_axes.push_back(axis.name());
  }
  if (conv_axes.size() != 1)
    return Mismatch("conv_kernel", absl::StrCat("'", (*conv)->name(), "' has no axis '", kTapAxis, "' in the layout"));
  conv_axes.push_back(kTapAxis);

  client::ArenaOptions arena_options;
  arena_options.rows = static_cast<uint32_t>(RowsOf(config));
  arena_options.view.set_conv_padding(1);
  arena_options.direct = options.direct;
  arena_options.device = options.device;
  absl::Status status = CheckTensor(
      **conv, config, "conv_state_type", config.conv_state_type, "", conv_axes,
      {{"conv_dim", config.conv_dim}, {"conv_kernel", config.conv_kernel, /*not_kept=*/1}}, &arena_options.view);
  if (!status.ok()) return status;
  status = CheckTensor(**recurrent, config, "recurrent_state_type", config.recurrent_state_type, "recurrent_axes",
                       recurrent_axes,
                       {{"recurrent_state_num_heads", config.recurrent_state_num_heads},
                        {"recurrent_state_head_dim", config.recurrent_state_head_dim},
                        {"recurrent_state_size", config.recurrent_state_size}},
                       &arena_options.view);
  if (!status.ok()) return status;
  const absl::StatusOr<v1::Capabilities> capabilities = pool.GetCapabilities();
  if (!capabilities.ok()) return capabilities.status();
  // A daemon without arenas has no limit: OpenArena says that it has none.
  if (const uint32_t limit = capabilities->max_arena_rows(); limit > 0 && arena_options.rows > limit) {
    const bool alone = static_cast<uint32_t>(config.max_batch_size) > limit;
    return InvalidOption(alone ? "max_batch_size" : "max_intermediate_seq_len",
                         absl::StrCat("makes ", arena_options.rows, " rows of an arena, which has at most ", limit,
                                      " (Capabilities.max_arena_rows)"));
  }
  absl::StatusOr<std::unique_ptr<client::Arena>> arena = pool.OpenArena(layout, arena_options);
  if (!arena.ok()) return arena.status();
  manager->arena_ = *std::move(arena);
  for (const client::ArenaTensor& tensor : manager->arena_->tensors())
    manager->AddLayer(tensor, tensor.tensor == (*conv)->name() ? &manager->conv_ : &manager->recurrent_);
  status = manager->ReshapeIntermediateStates(config.max_batch_size, config.max_intermediate_seq_len);
  if (!status.ok()) return status;
  return manager;
}

// The arena's first rows; behind them, if there are any, those that Reshape gives a shape of their own.
void MambaCacheManager::AddLayer(const client::ArenaTensor& tensor, Pools* to) const {
  client::ArenaTensor& main = to->main.emplace_back(tensor);
  main.shape[0] = static_cast<uint64_t>(config_.max_batch_size);
  if (config_.max_intermediate_seq_len == 0) return;
  client::ArenaTensor& intermediate = to->intermediate.emplace_back(tensor);
  intermediate.data = static_cast<char*>(tensor.data) + main.shape[0] * tensor.strides[0];
  intermediate.axes.insert(intermediate.axes.begin() + 1, "step");
  intermediate.shape.insert(intermediate.shape.begin() + 1, 0);
  intermediate.strides.insert(intermediate.strides.begin() + 1, tensor.strides[0]);
}

void MambaCacheManager::Reshape(Pools* pools) const {
  for (client::ArenaTensor& tensor : pools->intermediate) {
    tensor.shape[0] = static_cast<uint64_t>(active_batch_size_);
    tensor.shape[1] = static_cast<uint64_t>(seq_len_);
    tensor.strides[0] = tensor.shape[1] * tensor.strides[1];
  }
}

const client::ArenaTensor& MambaCacheManager::GetRecurrentState(int32_t recurrent_layer_idx) const {
  return recurrent_.main[static_cast<size_t>(recurrent_layer_idx)];
}

const client::ArenaTensor& MambaCacheManager::GetConvState(int32_t recurrent_layer_idx) const {
  return conv_.main[static_cast<size_t>(recurrent_layer_idx)];
}

const client::ArenaTensor& MambaCacheManager::GetIntermediateRecurrentState(int32_t recurrent_layer_idx) const {
  return recurrent_.intermediate[static_cast<size_t>(recurrent_layer_idx)];
}

const client::ArenaTensor& MambaCacheManager::GetIntermediateConvState(int32_t recurrent_layer_idx) const {
  return conv_.intermediate[static_cast<size_t>(recurrent_layer_idx)];
}

absl::Status MambaCacheManager::ReshapeIntermediateStates(int32_t active_batch_size, int32_t seq_len) {
  if (!has_intermediate_states()) return absl::OkStatus();
  if (active_batch_size < 1 || active_batch_size > config_.max_batch_size)
    return InvalidOption("active_batch_size", absl::StrCat("must be 1..", config_.max_batch_size));
  if (seq_len < 1 || seq_len > config_.max_intermediate_seq_len)
    return InvalidOption("seq_len", absl::StrCat("must be 1..", config_.max_intermediate_seq_len));
  active_batch_size_ = active_batch_size;
  seq_len_ = seq_len;
  Reshape(&recurrent_);
  Reshape(&conv_);
  return absl::OkStatus();
}

absl::Status MambaCacheManager::ClearStates() { return arena_ == nullptr ? absl::OkStatus() : arena_->Reopen(); }

absl::Status MambaCacheManager::CheckSlot(int32_t batch_idx) const {
  if (batch_idx >= 0 && batch_idx < config_.max_batch_size) return absl::OkStatus();
  return InvalidOption("batch_idx", absl::StrCat("must be 0..", config_.max_batch_size - 1));
}

absl::StatusOr<v1::NameInfo> MambaCacheManager::CaptureStates(int32_t batch_idx, absl::string_view sequence,
                                                              int64_t position, CUstream_st* stream) {
  if (arena_ == nullptr) return v1::NameInfo();
  if (absl::Status status = CheckSlot(batch_idx); !status.ok()) return status;
  v1::StoreItem item = client::StoreRow(static_cast<uint32_t>(batch_idx), sequence, position);
  item.set_whole_row(true);
  absl::StatusOr<client::StoreAnswer> answer = arena_->Store({item}, /*all_or_none=*/false, {}, stream);
  if (!answer.ok()) return answer.status();
  return std::move(answer->rows[0]);
}

absl::StatusOr<v1::NameInfo> MambaCacheManager::RestoreStates(const v1::NameRef& name, int32_t batch_idx,
                                                              CUstream_st* stream) {
  if (arena_ == nullptr) return v1::NameInfo();
  if (absl::Status status = CheckSlot(batch_idx); !status.ok()) return status;
  const absl::StatusOr<client::LoadAnswer> answer =
      arena_->Load({client::LoadRow(static_cast<uint32_t>(batch_idx), name)}, {}, stream);
  if (!answer.ok()) return answer.status();
  if (!answer->rows[0].ok()) return answer->rows[0].status();
  return answer->rows[0]->info();
}

absl::StatusOr<std::vector<MtpScatterOutcome>> MambaCacheManager::ScatterMtpStates(
    absl::Span<const int32_t> accept_lengths, MtpScatterRule rule, CUstream_st* stream) {
  std::vector<int32_t> indices(accept_lengths.size());
  std::iota(indices.begin(), indices.end(), 0);
  return ScatterMtpStates(accept_lengths, indices, rule, stream);
}

absl::StatusOr<std::vector<MtpScatterOutcome>> MambaCacheManager::ScatterMtpStates(
    absl::Span<const int32_t> accept_lengths, absl::Span<const int32_t> indices, MtpScatterRule rule,
    CUstream_st* stream) {
  if (!has_intermediate_states()) return std::vector<MtpScatterOutcome>();
  if (accept_lengths.size() > static_cast<size_t>(active_batch_size_))
    return InvalidOption("accept_lengths", absl::StrCat("more than the ", active_batch_size_, " active batch slots"));
  if (indices.size() != accept_lengths.size())
    return InvalidOption("indices", absl::StrCat("one for each of the ", accept_lengths.size(), " accept lengths"));
  std::vector<MtpScatterOutcome> outcomes(accept_lengths.size(), v1::AdvancedRow::MOVED);
  std::vector<v1::AdvanceItem> items;
  std::vector<bool> is_taken(static_cast<size_t>(config_.max_batch_size), false);
  for (size_t i = 0; i < accept_lengths.size(); ++i) {
    const int32_t step = std::max(accept_lengths[i], 0) - 1;
    if (step < 0) {
      outcomes[i] = v1::AdvancedRow::SKIPPED_NONE;
    } else if (rule == MtpScatterRule::kSkipFullAcceptance && step >= seq_len_ - 1) {
      outcomes[i] = v1::AdvancedRow::SKIPPED_ALL;
    } else if (step >= seq_len_) {
      outcomes[i] = v1::AdvancedRow::SKIPPED_OUT_OF_RANGE;
    } else {
      const std::string field = absl::StrCat("indices[", i, "]");
      if (indices[i] < 0 || indices[i] >= config_.max_batch_size)
        return InvalidOption(field, absl::StrCat("must be 0..", config_.max_batch_size - 1));
      const auto to = static_cast<size_t>(indices[i]);
      if (is_taken[to]) return InvalidOption(field, absl::StrCat("row ", to, " gets another slot's state as well"));
      is_taken[to] = true;
      const auto slot = static_cast<int32_t>(i);
      items.push_back(client::AdvanceRow(static_cast<uint32_t>(config_.max_batch_size + slot * seq_len_ + step), 1));
      items.back().set_to_row(static_cast<uint32_t>(to));
    }
  }
  if (items.empty()) return outcomes;
  const absl::StatusOr<client::AdvanceAnswer> answer = arena_->Advance(items, {}, {}, stream);
  if (!answer.ok()) return answer.status();
  for (const absl::StatusOr<MtpScatterOutcome>& row : answer->rows) {
    if (!row.ok()) return row.status();
  }
  return outcomes;
}

}  // namespace statepool::engines
