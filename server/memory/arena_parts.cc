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
  if (item.advance) {
    return Invalid("INVALID_OPTION", "advance",
                   "a part may have to be stored again, from a row that is as it was; Advance the row by a call of its "
                   "own once the version is whole");
  }
  if (item.image != nullptr) return Invalid("INVALID_OPTION", "grant", "parts of states are copied by the daemon");
  return absl::OkStatus();
}

void Arenas::SettleRow(Arena* arena, uint32_t index) const {
  Arena::Row* const row = &arena->rows[index];
  if (row->stored_with == nullptr) return;
  const PartAssemblies::State state = parts_.StateOf(*row->stored_with);
  switch (state.what) {
    case PartAssemblies::State::kOpen:
    case PartAssemblies::State::kWhole: break;  // it has a base, whose revision nobody knows yet
    case PartAssemblies::State::kPublished:
      *row = {true, state.info.key, state.info.revision, 0, nullptr, std::move(row->moved_by)};
      break;
    case PartAssemblies::State::kDropped: *row = {false, {}, 0, 0, nullptr, std::move(row->moved_by)}; break;
  }
}

absl::StatusOr<std::vector<ImageRef>> Arenas::CopyParts(
    const Op& op, const ArenaRef& arena, absl::Span<const StoreItem> items, absl::Span<const size_t> stored,
    absl::Span<const ToStore> to_store, std::vector<PartAssemblies::Ref>* assemblies, StoreAnswer* answer) {
  const CopyPlan& plan = *arena->shape->store_plan;
  const uint32_t rank = arena->shape->tp_rank;
  struct Scatter {
    size_t k;  // index into `stored`
    PartAssemblies::Ref assembly;
    absl::Status status{};  // of its copy
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
    const absl::StatusOr<PartAssemblies::Joined> joined =
        JoinParts(op, arena, items[stored[k]], to_store[stored[k]].position);
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
  const auto item_of = [&](const Scatter& scatter) {
    const size_t i = stored[scatter.k];
    return RowCopier::ScatterItem{items[i].row, to_store[i].length, PartAssemblies::room(*scatter.assembly)};
  };
  const uint64_t bytes = scatters.size() * plan.segment_bytes();
  const MonoTime start = clock_->Now();
  if (arena->store_copier != nullptr) {
    std::vector<RowCopier::ScatterItem> batch;
    for (Scatter& scatter : scatters) {
      Device* const home = PartAssemblies::device(*scatter.assembly);
      if (arena->device->Reaches(*home)) {
        batch.push_back(item_of(scatter));
      } else {
        scatter.status = ScatterOver(op, arena, item_of(scatter), home);
      }
    }
    if (!batch.empty()) RETURN_IF_ERROR(arena->store_copier->Scatter(batch, memory, {}));
  } else if (arena->copier == nullptr) {
    constexpr uint64_t kTaskStateBytes = 1 << 20;  // a range of the state: what the rank has of it is copied
    const uint64_t tasks_each = (plan.state_bytes() + kTaskStateBytes - 1) / kTaskStateBytes;
    RETURN_IF_ERROR(copies_->Run(op, &arena->ended, bytes, scatters.size() * tasks_each, [&](size_t task) {
      const RowCopier::ScatterItem item = item_of(scatters[task / tasks_each]);
      const uint64_t begin = task % tasks_each * kTaskStateBytes;
      plan.Scatter(memory, item.row, item.accepted, begin, std::min(begin + kTaskStateBytes, plan.state_bytes()),
                   item.state + begin, CopyHint::kCached);
    }));
  }

  for (Scatter& scatter : scatters) {
    if (!scatter.status.ok()) {
      answer->rows[stored[scatter.k]].status = scatter.status;
      continue;
    }
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
    const PartAssemblies::Whole whole = parts_.Take(assembly);
    std::vector<LeafHash> leaves(LeafCount(plan.state_bytes()));
    absl::Status status = PartAssemblies::device(*assembly)->HashLeaves(whole.slot.writer->room(), plan.state_bytes(),
                                                                        absl::MakeSpan(leaves));
    if (status.ok() && !whole.attachment.empty())
      status = whole.slot.writer->AddAttachmentRoom(op, whole.attachment.size());
    if (status.ok()) {
      images[scatter.k] = whole.slot.writer->FinishFilled(HashRoot(leaves), whole.attachment);
    } else {
      answer->rows[stored[scatter.k]].status = status;
    }
  }
  answer->copy_time += absl::Nanoseconds(clock_->Now() - start);
  MutexLock lock(&mu_);
  stats_.arenas_to_slots_bytes += bytes;
  to_reserve_.Signal();  // those that are whole hold no slot of a reserve any more
  return images;
}

// Copies a row's part into a slot on a device that the arena's does not reach: by way of a slot of the arena's own
// device, and from there range by range through the host.
absl::Status Arenas::ScatterOver(const Op& op, const ArenaRef& arena, const RowCopier::ScatterItem& item,
                                 Device* home) {
  Reserved between = TakeReserved(arena, /*elsewhere_too=*/false);
  if (between.slot.writer == nullptr) {
    absl::StatusOr<std::unique_ptr<ImageWriter>> begun =
        images_->BeginWrite(op, arena->layout, /*attachment_bytes=*/0, arena->device);
    RETURN_IF_ERROR(begun.status());
    between.slot.writer = *std::move(begun);
  }
  const absl::Cleanup put_back = [&] {
    if (between.of != nullptr) PutBack(std::move(between));
  };
  char* const from = between.slot.writer->room();
  RETURN_IF_ERROR(arena->store_copier->Scatter({{item.row, item.accepted, from}}, arena->memory->data(), {}));
  const absl::Span<const CopySegment> segments = arena->shape->store_plan->segments();
  for (size_t i = 0; i < segments.size();) {
    const uint64_t begin = segments[i].state_offset;
    uint64_t end = begin;
    for (; i < segments.size() && segments[i].state_offset == end; ++i) end += segments[i].Bytes();
    RETURN_IF_ERROR(
        CopyBetween(op, memory_.staging, arena->device, from + begin, home, item.state + begin, end - begin));
  }
  return absl::OkStatus();
}

// A slot that was reserved for it or, for whichever rank comes first begins all versions, for another rank: on its own
// device, if there is one there.
Arenas::Reserved Arenas::TakeReserved(const ArenaRef& arena, bool elsewhere_too) {
  MutexLock lock(&mu_);
  ArenaRef from = arena->reserve.empty() ? nullptr : arena;
  for (const bool elsewhere : {false, true}) {
    if (elsewhere && !elsewhere_too) break;
    for (auto it = arenas_.begin(); from == nullptr && it != arenas_.end(); ++it) {
      const Arena& other = *it->second;
      const bool is_alike = other.tenant == arena->tenant && (elsewhere || other.device == arena->device) &&
                            other.shape->tp_size == arena->shape->tp_size &&
                            other.layout->fingerprint() == arena->layout->fingerprint();
      if (is_alike && !other.reserve.empty() && other.device->health().ok()) from = it->second;
    }
  }
  if (from == nullptr) return {};
  from->held->fetch_add(1);
  Reserved reserved{{std::move(from->reserve.back()), {nullptr, [held = from->held](void*) { held->fetch_sub(1); }}},
                    from};
  from->reserve.pop_back();
  return reserved;
}

// What was not used is kept for the next Store.
void Arenas::PutBack(Reserved reserved) {
  MutexLock lock(&mu_);
  Arena& of = *reserved.of;
  reserved.slot.of_reserve.reset();
  if (of.state == Arena::State::kLeased && of.lacks_reserve()) of.reserve.push_back(std::move(reserved.slot.writer));
}

absl::StatusOr<PartAssemblies::Joined> Arenas::JoinParts(const Op& op, const ArenaRef& arena, const StoreItem& item,
                                                         int64_t position) {
  const SetRequest& set = item.set;
  const PartAssemblies::Key key = {arena->tenant, set.sequence,         set.request.id, arena->layout->fingerprint(),
                                   position,      arena->shape->tp_size};
  const PartAssemblies::Part part = {arena->shape->tp_rank, arena->id, item.attachment};
  absl::StatusOr<PartAssemblies::Joined> joined = parts_.Join(key, part);
  if (joined.ok() && joined->assembly == nullptr) {
    Reserved room = TakeReserved(arena, /*elsewhere_too=*/true);
    Device* home = arena->device;
    if (room.slot.writer != nullptr) {
      home = room.of->device;
    } else {
      absl::StatusOr<std::unique_ptr<ImageWriter>> begun =
          images_->BeginWrite(op, arena->layout, /*attachment_bytes=*/0, home);
      RETURN_IF_ERROR(begun.status());
      room.slot.writer = *std::move(begun);
    }
    const uint64_t bytes = room.of != nullptr ? 0 : arena->layout->state_bytes();
    joined = parts_.Begin(key, part, bytes, home, &room.slot);
    if (room.slot.writer != nullptr && room.of != nullptr) PutBack(std::move(room));
  }
  if (joined.ok() && joined->copies && !PartAssemblies::device(*joined->assembly)->health().ok()) {
    parts_.Failed(joined->assembly, part.rank);
    parts_.Drop(joined->assembly);  // what the others brought is lost
    return PartAssemblies::Unknown();
  }
  return joined;
}

}  // namespace statepool
