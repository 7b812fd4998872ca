// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Stores of arenas that have a rank's part of each state: into slots that all ranks fill (part_assembly.h).
#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "server/memory/arenas_internal.h"

namespace statepool {

absl::Status Arenas::CheckPart(const StoreItem& item) {
  if (item.set.request.id.empty()) {
    return Invalid("MISSING_FIELD", "request_id",
                   "a part of a version needs the request_id that all ranks give for this version, and for no other");
  }
  if (item.image != nullptr) return Invalid("INVALID_OPTION", "grant", "parts of states are copied by the daemon");
  if (!item.attachment.empty()) return Invalid("INVALID_OPTION", "attachment", "a part has no room for an attachment");
  return absl::OkStatus();
}

void Arenas::SettleRow(Arena* arena, uint32_t index) const {
  Arena::Row* const row = &arena->rows[index];
  if (row->stored_with == nullptr) return;
  const PartAssemblies::State state = parts_.StateOf(*row->stored_with);
  switch (state.what) {
    case PartAssemblies::State::kOpen:
    case PartAssemblies::State::kWhole: break;  // it has a base, whose revision nobody knows yet
    case PartAssemblies::State::kPublished: *row = {true, state.info.key, state.info.revision, 0}; break;
    case PartAssemblies::State::kDropped: *row = {}; break;
  }
}

absl::StatusOr<std::vector<ImageRef>> Arenas::CopyParts(const Op& op, Arena* arena, absl::Span<const StoreItem> items,
                                                        absl::Span<const size_t> stored,
                                                        std::vector<PartAssemblies::Ref>* assemblies,
                                                        StoreAnswer* answer) {
  const CopyPlan& plan = *arena->shape->store_plan;
  const uint32_t rank = arena->shape->tp_rank;
  struct Scatter {
    size_t k;  // index into `stored`
    PartAssemblies::Ref assembly;
  };
  std::vector<Scatter> scatters;
  // What is not said to have arrived failed.
  const absl::Cleanup fail = [&] {
    for (const Scatter& scatter : scatters) {
      if (scatter.assembly != nullptr) parts_.Failed(scatter.assembly, rank);
    }
  };
  const auto take_note = [&](size_t k, const PartAssemblies::Ref& assembly, uint32_t missing) {
    answer->rows[stored[k]].parts_missing = missing;
    Arena::Row& base = arena->rows[items[stored[k]].row];
    base = {};
    base.loaded = true;
    base.stored_with = assembly;
  };
  for (size_t k = 0; k < stored.size(); ++k) {
    const absl::StatusOr<PartAssemblies::Joined> joined = JoinParts(op, arena, items[stored[k]].set);
    if (!joined.ok()) {
      answer->rows[stored[k]].status = joined.status();
    } else if (joined->copies) {
      scatters.push_back({k, joined->assembly});
    } else {
      const PartAssemblies::State state = parts_.StateOf(*joined->assembly);
      StoredRow& row = answer->rows[stored[k]];
      switch (state.what) {
        case PartAssemblies::State::kOpen: take_note(k, joined->assembly, state.missing); break;
        case PartAssemblies::State::kWhole: row.status = PartAssemblies::BeingPublished(); break;
        case PartAssemblies::State::kDropped: row.status = PartAssemblies::Unknown(); break;
        case PartAssemblies::State::kPublished:
          take_note(k, joined->assembly, 0);
          row.info = state.info;
          row.info.replayed = true;
      }
    }
  }

  std::vector<ImageRef> images(stored.size());
  if (scatters.empty()) return images;
  char* const memory = arena->memory->data();
  const auto item_of = [&](const Scatter& scatter) -> const StoreItem& { return items[stored[scatter.k]]; };
  const uint64_t bytes = scatters.size() * plan.segment_bytes();
  const MonoTime start = clock_->Now();
  if (arena->copier != nullptr) {
    std::vector<RowCopier::ScatterItem> batch;
    for (const Scatter& scatter : scatters) {
      const StoreItem& item = item_of(scatter);
      batch.push_back({item.row, arena->AcceptedLengthOf(item), PartAssemblies::room(*scatter.assembly)});
    }
    if (arena->store_copier != nullptr) RETURN_IF_ERROR(arena->store_copier->Scatter(batch, memory, {}));
  } else {
    constexpr uint64_t kTaskStateBytes = 1 << 20;  // a range of the state: what the rank has of it is copied
    const uint64_t tasks_each = (plan.state_bytes() + kTaskStateBytes - 1) / kTaskStateBytes;
    RETURN_IF_ERROR(copies_->Run(op, &arena->ended, bytes, scatters.size() * tasks_each, [&](size_t task) {
      const Scatter& scatter = scatters[task / tasks_each];
      const StoreItem& item = item_of(scatter);
      const uint64_t begin = task % tasks_each * kTaskStateBytes;
      plan.Scatter(memory, item.row, arena->AcceptedLengthOf(item), begin,
                   std::min(begin + kTaskStateBytes, plan.state_bytes()),
                   PartAssemblies::room(*scatter.assembly) + begin, CopyHint::kCached);
    }));
  }

  for (Scatter& scatter : scatters) {
    const PartAssemblies::Ref assembly = std::move(scatter.assembly);
    const absl::StatusOr<uint32_t> missing = parts_.Arrived(assembly, rank);
    if (!missing.ok()) {
      answer->rows[stored[scatter.k]].status = missing.status();
      continue;
    }
    if (*missing > 0) {
      take_note(scatter.k, assembly, *missing);
      continue;
    }
    (*assemblies)[scatter.k] = assembly;
    std::unique_ptr<ImageWriter> writer = parts_.TakeWriter(assembly);
    std::vector<LeafHash> leaves(LeafCount(plan.state_bytes()));
    const absl::Status hashed =
        PartAssemblies::device(*assembly)->HashLeaves(writer->room(), plan.state_bytes(), absl::MakeSpan(leaves));
    if (hashed.ok()) {
      images[scatter.k] = writer->FinishFilled(HashRoot(leaves), /*attachment=*/"");
    } else {
      answer->rows[stored[scatter.k]].status = hashed;
    }
  }
  answer->copy_time += absl::Nanoseconds(clock_->Now() - start);
  MutexLock lock(&mu_);
  stats_.arenas_to_slots_bytes += bytes;
  return images;
}

// A slot that was reserved for it or, for whichever rank comes first begins all versions, for another rank.
std::unique_ptr<ImageWriter> Arenas::TakeReserved(Arena* arena) {
  MutexLock lock(&mu_);
  Arena* from = arena->reserve.empty() ? nullptr : arena;
  for (auto it = arenas_.begin(); from == nullptr && it != arenas_.end(); ++it) {
    Arena& other = *it->second;
    const bool is_alike = other.tenant == arena->tenant && other.device == arena->device &&
                          other.shape->tp_size == arena->shape->tp_size &&
                          other.layout->fingerprint() == arena->layout->fingerprint();
    if (is_alike && !other.reserve.empty()) from = &other;
  }
  if (from == nullptr) return nullptr;
  std::unique_ptr<ImageWriter> writer = std::move(from->reserve.back());
  from->reserve.pop_back();
  changed_.SignalAll();  // to the keeper: there is something to reserve
  return writer;
}

absl::StatusOr<PartAssemblies::Joined> Arenas::JoinParts(const Op& op, Arena* arena, const SetRequest& set) {
  const PartAssemblies::Key key = {arena->tenant, set.sequence,         set.request.id, arena->layout->fingerprint(),
                                   set.position,  arena->shape->tp_size};
  const uint32_t rank = arena->shape->tp_rank;
  absl::StatusOr<PartAssemblies::Joined> joined = parts_.Join(key, rank, arena->id);
  if (joined.ok() && joined->assembly == nullptr) {
    std::unique_ptr<ImageWriter> writer = TakeReserved(arena);
    const bool is_reserved = writer != nullptr;
    if (writer == nullptr) {
      absl::StatusOr<std::unique_ptr<ImageWriter>> begun =
          images_->BeginWrite(op, arena->layout, /*attachment_bytes=*/0, arena->device);
      RETURN_IF_ERROR(begun.status());
      writer = *std::move(begun);
    }
    const uint64_t bytes = is_reserved ? 0 : arena->layout->state_bytes();
    joined = parts_.Begin(key, rank, arena->id, bytes, arena->device, &writer);
    if (writer != nullptr && is_reserved) {
      MutexLock lock(&mu_);
      if (arena->reserve.size() < arena->reserve_max()) arena->reserve.push_back(std::move(writer));
    }
  }
  if (joined.ok() && joined->copies && PartAssemblies::device(*joined->assembly) != arena->device) {
    parts_.Failed(joined->assembly, rank);
    return Invalid(
        "INVALID_OPTION", "arena",
        absl::StrCat("another rank's part is on ", PartAssemblies::device(*joined->assembly)->name(), ", this one on ",
                     arena->device->name(), ": the arenas of a version's ranks are on one device"));
  }
  return joined;
}

}  // namespace statepool
