// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/error.h"
#include "server/core/store_errors.h"
#include "server/memory/arenas_internal.h"
#include "server/memory/slot_pool.h"
#include "server/memory/token.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

constexpr uint64_t kTaskBytes = 1 << 20;  // what a thread copies before it looks who else waits
// Copies above these would only drive other things from the caches. A worker computes on what was loaded at once; what
// was stored is not read again soon.
constexpr uint64_t kStreamingLoadBytes = 4 << 20;
constexpr uint64_t kStreamingStoreBytes = 1 << 20;
constexpr std::chrono::milliseconds kPoll{10};  // how late a cancelled call may notice while it waits
constexpr std::chrono::milliseconds kKeeperRound{100};
constexpr uint32_t kWaitingMax = 8;  // calls that wait for their turn on one arena
constexpr size_t kTaskRowsMax = 16;  // that one task copies an image into
// What a pass of a Load leaves for the next one; never told to anyone.
constexpr char kLater[] = "LATER";

uint64_t RoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

absl::Status Aborted() {
  return Error(absl::StatusCode::kAborted, "BATCH_ABORTED", "another item was refused, so nothing was stored");
}

}  // namespace

absl::Status NotConnected() {
  return Error(absl::StatusCode::kFailedPrecondition, "ARENA_NOT_CONNECTED",
               "connect to the arena's socket with its token first")
      .Field("arena");
}

absl::Status LoadTooLarge(uint64_t limit) {
  return Error(absl::StatusCode::kResourceExhausted, "LOAD_TOO_LARGE",
               absl::StrCat("the states of a Load that is answered before it copies have at most ", limit,
                            " bytes together; ask for fewer rows, or without `done`"))
      .Field("done")
      .Meta("limit", limit);
}

Arenas::Arenas(ArenaOptions options, statepool::Store* store, ImageStore* images, ArenaMemory memory,
               CopyScheduler* copies, const Clock* clock)
    : options_(options),
      store_(store),
      images_(images),
      memory_(std::move(memory)),
      copies_(copies),
      clock_(clock),
      parts_(options.parts, clock),
      waiter_(options.max_flag_waits, clock) {
  keeper_ = std::thread([this] { Loop(&Arenas::FreeOnce, &to_free_); });
  reserver_ = std::thread([this] { Loop(&Arenas::ReserveOnce, &to_reserve_); });
}

Arenas::~Arenas() {
  DrainFlags();
  {
    MutexLock lock(&mu_);
    while (runners_ > 0) turns_.Wait(&mu_);
    stopping_ = true;
    to_free_.Signal();
    to_reserve_.Signal();
  }
  keeper_.join();
  reserver_.join();
  EndAll();
}

// ----
// finding, waiting for one's turn

absl::Status Arenas::Gone(absl::string_view id) const {
  return Error(absl::StatusCode::kNotFound, "ARENA_UNKNOWN",
               absl::StrCat("there is no arena '", id.substr(0, 64),
                            "': it was closed, its lease ended, its device failed, or the daemon was started anew; "
                            "open another"))
      .Field("arena")
      .Meta("incarnation", store_->options().incarnation);
}

absl::StatusOr<Arenas::ArenaRef> Arenas::Find(const Op& op, absl::string_view id) const {
  if (id.empty()) return Invalid("MISSING_FIELD", "arena", "name the arena");
  const auto it = arenas_.find(id);
  if (it == arenas_.end() || it->second->tenant != op.tenant) return Gone(id);
  RETURN_IF_ERROR(it->second->device->health());
  if (it->second->state == Arena::State::kEnded) return Gone(id);
  return it->second;
}

absl::Status Arenas::Take(const Op& op, absl::string_view id, Queue queue, ArenaRef* arena) {
  MutexLock lock(&mu_);
  for (;;) {
    RETURN_IF_ERROR(op.Check(*clock_));
    absl::StatusOr<ArenaRef> found = Find(op, id);
    RETURN_IF_ERROR(found.status());
    if ((*found)->state == Arena::State::kWaiting) {
      return NotConnected();
    }
    if (!(*found)->busy) {
      (*found)->busy = true;
      for (const uint32_t row : (*found)->spoiled) (*found)->rows[row] = {};
      (*found)->spoiled.clear();
      *arena = *std::move(found);
      return absl::OkStatus();
    }
    const bool full = (*found)->waiting >= kWaitingMax || waiting_ >= options_.max_waiting;
    if (full && queue == Queue::kLimited) {
      return Error(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                   "too many calls wait for their turn on arenas already")
          .Meta("limit", (*found)->waiting >= kWaitingMax ? kWaitingMax : options_.max_waiting)
          .RetryAfter(absl::Milliseconds(20));
    }
    ++(*found)->waiting;
    ++waiting_;
    turns_.WaitFor(&mu_, kPoll);
    --waiting_;
    --(*found)->waiting;
  }
}

void Arenas::GiveBack(Arena* arena) {
  MutexLock lock(&mu_);
  arena->busy = false;
  turns_.SignalAll();
  if (arena->state == Arena::State::kEnded) {
    to_free_.Signal();
  } else if (arena->lacks_reserve()) {
    to_reserve_.Signal();
  }
}

// ----
// opening and ending

absl::StatusOr<Device*> Arenas::DeviceFor(const OpenArenaRequest& request) const {
  for (Device* device : memory_.devices) {
    const bool skipped = request.device.empty() ? !device->health().ok() && device != memory_.devices.back()
                                                : device->name() != request.device;
    if (skipped) continue;
    RETURN_IF_ERROR(device->health());
    return device;
  }
  const auto name_of = [](std::string* out, const Device* device) { out->append(device->name()); };
  return Invalid("INVALID_OPTION", "device",
                 absl::StrCat("there is no device '", absl::string_view(request.device).substr(0, 64),
                              "'; arenas are on ", absl::StrJoin(memory_.devices, ", ", name_of)));
}

absl::StatusOr<OpenedArena> Arenas::Open(const Op& op, const OpenArenaRequest& request) {
  RETURN_IF_ERROR(op.Check(*clock_));
  if (request.layout.empty()) return Invalid("MISSING_FIELD", "layout", "name the layout");
  absl::StatusOr<LayoutRef> layout = store_->layouts().Find(op.tenant, request.layout);
  RETURN_IF_ERROR(layout.status());
  if (request.rows == 0 || request.rows > options_.max_rows)
    return Invalid("INVALID_OPTION", "rows", absl::StrCat("an arena has 1..", options_.max_rows, " rows"));
  if (request.steps > options_.max_steps)
    return Invalid("INVALID_OPTION", "steps", absl::StrCat("a row has at most ", options_.max_steps, " steps"));
  absl::StatusOr<ArenaShape> shape = MakeArenaShape(**layout, request.view, request.rows, request.steps);
  RETURN_IF_ERROR(shape.status());
  const absl::StatusOr<Device*> device = DeviceFor(request);
  RETURN_IF_ERROR(device.status());

  auto arena = std::make_shared<Arena>();
  arena->device = *device;
  arena->id = RandomToken();
  arena->token = RandomToken();
  arena->tenant = op.tenant;
  arena->layout = *layout;
  arena->shape = std::make_shared<const ArenaShape>(*std::move(shape));
  arena->memory_bytes = RoundUp(arena->shape->bytes, options_.granule_bytes);
  arena->bytes = arena->memory_bytes + arena->reserve_max() * SlotBytes((*layout)->state_bytes());
  arena->rows.resize(request.rows);
  {
    MutexLock lock(&mu_);
    if (arena->bytes > options_.max_bytes) {
      return Error(absl::StatusCode::kResourceExhausted, "ARENA_TOO_LARGE",
                   absl::StrCat("the arena and the slots reserved for it have ", arena->bytes,
                                " bytes, and all arenas of a device together may have ", options_.max_bytes))
          .Field("rows")
          .Meta("limit", options_.max_bytes);
    }
    const bool too_many = arenas_.size() + opening_ >= options_.max_arenas;
    if (too_many || arena->bytes > options_.max_bytes - bytes_[arena->device]) {
      return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_ARENAS",
                   too_many ? "there are too many arenas already" : "the arenas there are leave no room for this one")
          .Meta("limit", too_many ? options_.max_arenas : options_.max_bytes)
          .RetryAfter(absl::Seconds(1));
    }
    ++opening_;
    bytes_[arena->device] += arena->bytes;
  }
  absl::Status status;
  absl::StatusOr<std::unique_ptr<SharedExtent>> memory =
      memory_.allocate(op, op.tenant, arena->shape->bytes, arena->device);
  status = memory.status();
  if (status.ok() && request.with_flags) {
    absl::StatusOr<std::unique_ptr<FlagWords>> words = FlagWords::Create();
    status = words.status();
    if (status.ok()) arena->words = *std::move(words);
  }
  if (status.ok() && !arena->device->host_accessible()) {
    absl::StatusOr<std::unique_ptr<RowCopier>> copier =
        arena->device->NewRowCopier(arena->shape->plan, arena->shape->advance_plan, request.rows);
    status = copier.status();
    if (status.ok()) arena->copier = *std::move(copier);
    if (const auto& plan = arena->shape->store_plan; status.ok() && plan.has_value() && plan->segment_bytes() > 0) {
      absl::StatusOr<std::unique_ptr<RowCopier>> store_copier =
          arena->device->NewRowCopier(*plan, AdvancePlan({}, /*steps_max=*/1), request.rows);
      status = store_copier.status();
      if (status.ok()) arena->store_copier = *std::move(store_copier);
    }
  }
  while (status.ok() && arena->reserve.size() < arena->reserve_max()) {
    absl::StatusOr<std::unique_ptr<ImageWriter>> writer =
        images_->BeginWrite(op, *layout, /*attachment_bytes=*/0, arena->device);
    status = writer.status();
    if (status.ok()) arena->reserve.push_back(*std::move(writer));
  }
  if (!store_->layouts().IsRegistered(op.tenant, **layout)) images_->LayoutDeleted(op.tenant, **layout);
  if (status.ok()) status = op.Check(*clock_);  // nobody will connect
  if (status.ok()) {
    arena->memory = *std::move(memory);
    arena->token_expires = After(clock_->Now(), options_.token_timeout);
    MutexLock lock(&mu_);
    --opening_;
    arenas_.emplace(arena->id, arena);
    return OpenedArena{arena->id,     arena->token, arena->device->name(),
                       arena->layout, arena->shape, request.with_flags ? FlagWords::kCount : 0};
  }
  arena->reserve.clear();
  if (memory.ok()) {
    memory->reset();
    memory_.freed();
  }
  MutexLock lock(&mu_);
  --opening_;
  bytes_[arena->device] -= arena->bytes;
  return status;
}

absl::StatusOr<Arenas::Lease> Arenas::Connect(absl::string_view token) {
  MutexLock lock(&mu_);
  for (const auto& [id, arena] : arenas_) {
    if (arena->state != Arena::State::kWaiting || arena->token != token) continue;
    if (clock_->Now() >= arena->token_expires) break;
    // A duplicate: the arena may be closed, and the number be another file's, before it is sent.
    absl::StatusOr<std::vector<int>> fds = arena->memory->ExportChunks();
    RETURN_IF_ERROR(fds.status());
    assert(fds->size() == 1);
    Lease lease{id, fds->front(), arena->shape->bytes, arena->memory->bytes()};
    if (arena->words != nullptr) {
      const absl::StatusOr<int> flags_fd = arena->words->Export();
      if (!flags_fd.ok()) {
        close(lease.fd);
        return flags_fd.status();
      }
      lease.flags_fd = *flags_fd;
    }
    arena->state = Arena::State::kLeased;
    arena->token.clear();
    return lease;
  }
  return Error(absl::StatusCode::kUnauthenticated, "TOKEN_INVALID",
               "no arena waits for this token: it is unknown, was used, or came too late; open another arena");
}

void Arenas::EndLocked(Arena* arena) {
  if (arena->state == Arena::State::kEnded) return;
  arena->state = Arena::State::kEnded;
  arena->ended.store(true);
  turns_.SignalAll();
  to_free_.Signal();
}

void Arenas::LeaseEnded(absl::string_view id) {
  MutexLock lock(&mu_);
  if (const auto it = arenas_.find(id); it != arenas_.end()) EndLocked(it->second.get());
}

void Arenas::ProcessGone(absl::string_view id) {
  MutexLock lock(&mu_);
  const auto it = arenas_.find(id);
  if (it == arenas_.end()) return;
  it->second->process_gone = true;
  EndLocked(it->second.get());
  to_free_.Signal();
}

void Arenas::Unmapped(absl::string_view id) {
  MutexLock lock(&mu_);
  const auto it = arenas_.find(id);
  if (it == arenas_.end() || it->second->device->host_accessible()) return;  // the system knows
  it->second->unmapped = true;
  it->second->free_at = 0;
  to_free_.Signal();
}

bool Arenas::IsGone(absl::string_view id) const {
  MutexLock lock(&mu_);
  return !arenas_.contains(id);
}

void Arenas::EndAll() {
  std::vector<ArenaRef> arenas;
  {
    MutexLock lock(&mu_);
    for (const auto& [id, arena] : arenas_) {
      arena->process_gone = true;
      EndLocked(arena.get());
      arenas.push_back(arena);
    }
  }
  for (const ArenaRef& arena : arenas) {
    while (!Free(arena)) std::this_thread::yield();  // the keeper has its turn
  }
}

absl::Status Arenas::Close(const Op& op, absl::string_view id) {
  ArenaRef arena;
  {
    MutexLock lock(&mu_);
    absl::StatusOr<ArenaRef> found = Find(op, id);
    RETURN_IF_ERROR(found.status());
    arena = *std::move(found);
    EndLocked(arena.get());
    while (arena->busy && arenas_.contains(arena->id) && op.Check(*clock_).ok()) turns_.WaitFor(&mu_, kPoll);
    if (arena->busy) return absl::OkStatus();  // it is freed, or the keeper will do it
    arena->busy = true;
  }
  FreeInTurn(arena);
  return absl::OkStatus();
}

// Gives back what an ended arena has; true if its memory is destroyed. Does nothing while a call has its turn.
bool Arenas::Free(const ArenaRef& arena) {
  {
    MutexLock lock(&mu_);
    if (!arenas_.contains(arena->id)) return true;
    if (arena->busy) return false;
    arena->busy = true;
  }
  return FreeInTurn(arena);
}

// REQUIRES: the caller has the arena's turn.
bool Arenas::FreeInTurn(const ArenaRef& arena) {
  bool connected;
  std::vector<std::unique_ptr<ImageWriter>> reserve;
  {
    MutexLock lock(&mu_);
    connected = arena->token.empty();
    reserve.swap(arena->reserve);
  }
  reserve.clear();
  parts_.ArenaEnded(arena->id);
  arena->store_copier.reset();
  arena->copier.reset();  // it waits for the device: not with the last reference, under the lock
  const bool revoked = arena->memory->Revoke() || !connected;
  {
    MutexLock lock(&mu_);
    if (!revoked && !arena->process_gone && !arena->unmapped) {
      arena->busy = false;
      return false;
    }
  }
  arena->memory.reset();
  memory_.freed();
  MutexLock lock(&mu_);
  bytes_[arena->device] -= arena->bytes;
  arenas_.erase(arena->id);
  turns_.SignalAll();
  return true;
}

// ----
// Load

absl::StatusOr<LoadAnswer> Arenas::Load(const Op& op, absl::string_view id, absl::Span<const LoadItem> items,
                                        const HoldPin& hold) {
  return LoadInTurn(op, id, items, hold, Queue::kLimited);
}

absl::StatusOr<LoadAnswer> Arenas::LoadInTurn(const Op& op, absl::string_view id, absl::Span<const LoadItem> items,
                                              const HoldPin& hold, Queue queue) {
  ArenaRef arena;
  RETURN_IF_ERROR(Take(op, id, queue, &arena));
  const Turn turn(this, arena);
  RETURN_IF_ERROR(CheckItems(items, arena->shape->rows, arena->shape->rows));
  if (hold && arena->is_of_parts())
    return Invalid("INVALID_OPTION", "lease", "parts of states are copied by the daemon: leave the lease out");

  LoadAnswer answer;
  answer.rows.resize(items.size());
  std::vector<size_t> waiting;
  for (size_t i = 0; i < items.size(); ++i) {
    answer.rows[i].status = items[i].refused;
    if (items[i].refused.ok()) waiting.push_back(i);
  }
  while (!waiting.empty()) {
    absl::StatusOr<Found> found = FindStates(op, arena.get(), items, &waiting, /*late=*/nullptr, &answer);
    RETURN_IF_ERROR(found.status());
    if (!found->states.empty()) {
      RETURN_IF_ERROR(CopyIntoRows(op, arena.get(), items, found->items, absl::MakeSpan(found->states), hold, &answer));
    }
  }
  return answer;
}

// Looks all waiting items up, and pins those whose images may be pinned together. The others wait on. With `late` these
// are all, within the limit of such Loads; the caller need not have the turn, and what rows hold is not looked at.
absl::StatusOr<Arenas::Found> Arenas::FindStates(const Op& op, Arena* arena, absl::Span<const LoadItem> items,
                                                 std::vector<size_t>* waiting, LateLoad* late, LoadAnswer* answer) {
  std::vector<Source> sources;
  for (const size_t i : *waiting) {
    sources.push_back(items[i].source);
    sources.back().layout = arena->layout->fingerprint();
  }
  const uint64_t max_images = std::max<uint64_t>(1, options_.max_pinned_bytes / arena->layout->state_bytes());
  absl::flat_hash_set<ImageId> images;
  uint64_t attachment_bytes = 0;  // that the answer has, or will have from this pass
  for (const LoadedRow& row : answer->rows) attachment_bytes += row.attachment.size();
  const auto choose = [&](absl::Span<absl::StatusOr<GetAnswer>> found) {
    for (size_t k = 0; k < found.size(); ++k) {
      if (!found[k].ok()) continue;
      const LoadItem& item = items[(*waiting)[k]];
      const NameInfo& info = found[k]->info;
      const bool held = late == nullptr && arena->Holds(item, info);
      if (held && !(item.with_attachment && info.version.attachment_bytes > 0)) {
        answer->rows[(*waiting)[k]].info = info;
        arena->rows[item.row] = {true, info.key, info.revision, info.version.id};
        found[k] = absl::AlreadyExistsError("");  // needs no pin
        continue;
      }
      if (!images.contains(found[k]->image) && images.size() == max_images) {
        if (late != nullptr) return LoadTooLarge(options_.max_pinned_bytes);
        found[k] = absl::UnavailableError(kLater);
        continue;
      }
      if (item.with_attachment) {
        if (info.version.attachment_bytes > options_.max_attachment_bytes - attachment_bytes) {
          found[k] = Error(absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
                           "the attachments of one Load are too large together; ask for fewer in a call")
                         .Field("with_attachment")
                         .Meta("limit", options_.max_attachment_bytes);
          continue;
        }
        attachment_bytes += info.version.attachment_bytes;
      }
      images.insert(found[k]->image);
    }
    return late == nullptr ? absl::OkStatus() : ReservePins(late, images.size() * arena->layout->state_bytes());
  };
  absl::StatusOr<std::vector<absl::StatusOr<GetAnswer>>> found =
      store_->GetMany(op, sources, choose, PinPlace(arena->device, /*other_if_reached=*/arena->is_of_parts()));
  RETURN_IF_ERROR(found.status());

  Found pinned;
  std::vector<size_t> later;
  for (size_t k = 0; k < found->size(); ++k) {
    const absl::Status& status = (*found)[k].status();
    const size_t i = (*waiting)[k];
    if (status.ok()) {
      pinned.items.push_back(i);
      pinned.states.push_back(std::move((*found)[k]));
    } else if (absl::IsUnavailable(status) && status.message() == kLater) {
      later.push_back(i);
    } else if (!(absl::IsAlreadyExists(status) && status.message().empty())) {
      answer->rows[i].status = status;
    }
  }
  *waiting = std::move(later);
  return pinned;
}

// `found` are pinned, parallel to `copied`, which are indexes of items.
absl::Status Arenas::CopyIntoRows(const Op& op, Arena* arena, absl::Span<const LoadItem> items,
                                  absl::Span<const size_t> copied, absl::Span<absl::StatusOr<GetAnswer>> found,
                                  const HoldPin& hold, LoadAnswer* answer) {
  struct Gather {
    const char* state;
    std::vector<uint32_t> rows;
    LeasedSlot slot;
  };
  std::vector<Gather> gathers;  // one for each image
  absl::flat_hash_map<ImageId, size_t> gather_of;
  uint64_t bytes = 0;
  for (size_t k = 0; k < copied.size(); ++k) {
    const LoadItem& item = items[copied[k]];
    const NameInfo& info = found[k]->info;
    const bool held = arena->Holds(item, info);
    LoadedRow& loaded = answer->rows[copied[k]];
    loaded.info = info;
    loaded.copied = !held;
    if (item.with_attachment) loaded.attachment = std::string(found[k]->pin->attachment());
    if (held) continue;
    const auto [it, is_new] = gather_of.try_emplace(found[k]->image, gathers.size());
    if (is_new) gathers.push_back({found[k]->pin->data(), {}, {}});
    Gather& gather = gathers[it->second];
    gather.rows.push_back(item.row);
    bytes += arena->shape->plan.segment_bytes();
    if (!hold) continue;
    if (is_new) {
      absl::StatusOr<LeasedSlot> slot = hold(std::move(found[k]->pin));
      RETURN_IF_ERROR(slot.status());
      gather.slot = *slot;
    }
    loaded.slot = gather.slot;
  }
  const auto take_note = [&] {
    for (size_t k = 0; k < copied.size(); ++k) {
      const NameInfo& info = found[k]->info;
      arena->rows[items[copied[k]].row] = {true, info.key, info.revision, info.version.id};
    }
  };
  if (hold) {
    take_note();
    return absl::OkStatus();
  }

  const CopyPlan& plan = arena->shape->plan;
  char* const memory = arena->memory->data();
  const CopyHint hint = bytes > kStreamingLoadBytes ? CopyHint::kStreaming : CopyHint::kCached;
  // A task for each range of each image and some of its rows; and before, others that clear what a state does not fill.
  struct Task {
    const char* state;
    absl::Span<const uint32_t> rows;
    uint64_t begin, end;
  };
  std::vector<Task> clears, tasks;
  const bool any_clears = absl::c_any_of(plan.segments(), [](const CopySegment& s) { return s.clear_bytes > 0; });
  for (const Gather& gather : gathers) {
    for (size_t first = 0; first < gather.rows.size(); first += kTaskRowsMax) {
      const auto rows = absl::MakeConstSpan(gather.rows).subspan(first, kTaskRowsMax);
      const uint64_t step = std::max<uint64_t>(kLeafBytes, kTaskBytes / rows.size() / kLeafBytes * kLeafBytes);
      if (any_clears) clears.push_back({nullptr, rows, 0, 0});
      for (uint64_t begin = 0; begin < plan.state_bytes(); begin += step)
        tasks.push_back({gather.state, rows, begin, std::min(begin + step, plan.state_bytes())});
    }
  }
  const auto run = [&](const std::vector<Task>& todo) {
    return copies_->Run(op, &arena->ended, bytes, todo.size(), [&](size_t i) {
      const Task& task = todo[i];
      if (task.state != nullptr) return plan.Gather(task.state, task.begin, task.end, memory, task.rows, hint);
      for (const uint32_t row : task.rows) plan.Clear(memory, row);
    });
  };
  const auto run_on_device = [&] {
    std::vector<RowCopier::GatherItem> batch;
    for (const Gather& gather : gathers) {
      for (const uint32_t row : gather.rows) batch.push_back({gather.state, row});
    }
    return arena->copier->Gather(batch, memory);
  };
  const MonoTime start = clock_->Now();
  absl::Status status;
  if (arena->copier != nullptr) {
    status = run_on_device();
  } else {
    status = run(clears);
    if (status.ok()) status = run(tasks);
  }
  if (!status.ok()) {
    for (size_t k = 0; k < copied.size(); ++k) {
      if (answer->rows[copied[k]].copied) arena->rows[items[copied[k]].row] = {};
    }
    return status;
  }
  answer->copy_time += absl::Nanoseconds(clock_->Now() - start);
  take_note();
  MutexLock lock(&mu_);
  stats_.slots_to_arenas_bytes += bytes;
  return absl::OkStatus();
}

// ----
// Store

absl::StatusOr<StoreAnswer> Arenas::Store(const Op& op, absl::string_view id, absl::Span<const StoreItem> items,
                                          bool all_or_none) {
  return StoreInTurn(op, id, items, all_or_none, Queue::kLimited, /*done=*/nullptr);
}

// `done`, if it is there, is set when the rows were copied.
absl::StatusOr<StoreAnswer> Arenas::StoreInTurn(const Op& op, absl::string_view id, absl::Span<const StoreItem> items,
                                                bool all_or_none, Queue queue, Done* done) {
  ArenaRef arena;
  RETURN_IF_ERROR(Take(op, id, queue, &arena));
  const Turn turn(this, arena);
  RETURN_IF_ERROR(
      CheckItems(items, arena->shape->rows, std::min<size_t>(arena->shape->rows, store_->options().max_batch)));
  absl::flat_hash_set<absl::string_view> names;
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].set.sequence.empty() || names.insert(items[i].set.sequence).second) continue;
    return Invalid("DUPLICATE_NAME", absl::StrCat("items[", i, "].sequence"),
                   absl::StrCat("'", items[i].set.sequence, "' is written twice in one call"));
  }

  if (arena->is_of_parts() && all_or_none)
    return Invalid("INVALID_OPTION", "all_or_none", "parts of states are stored one by one");
  StoreAnswer answer;
  answer.rows.resize(items.size());
  std::vector<SetItem> sets(items.size());
  std::vector<ToStore> to_store(items.size());
  std::vector<bool> answered(items.size(), false);  // before, by its request_id
  const StoreRules rules = {arena->shape->max_accepted(), arena->shape->advance_plan.has_windows()};
  bool refused = false, advances = false;
  const auto refuse = [&](size_t i, const absl::Status& status) {
    answer.rows[i].status = status;
    refused = true;
  };
  // What can be refused before a byte is copied is refused now.
  for (size_t i = 0; i < items.size(); ++i) {
    const StoreItem& item = items[i];
    if (!item.refused.ok()) {
      refuse(i, item.refused);
      continue;
    }
    if (const absl::Status part = arena->is_of_parts() ? CheckPart(item) : absl::OkStatus(); !part.ok()) {
      refuse(i, part);
      continue;
    }
    if (item.advance && item.image != nullptr) {
      refuse(i, Invalid("INVALID_OPTION", "advance", "who copies a row into a grant himself advances it himself"));
      continue;
    }
    if (item.advance) {
      const absl::StatusOr<bool> was_answered = AnswerAdvanced(op, *arena, item, &answer.rows[i]);
      if (!was_answered.ok()) refuse(i, was_answered.status());
      answered[i] = was_answered.ok() && *was_answered;
      if (!was_answered.ok() || *was_answered) continue;
      advances = true;
    }
    StoreRules rules_of_item = rules;
    rules_of_item.skip_none = item.skip_none;
    rules_of_item.align = item.align;
    to_store[i] = ToStoreOf(item.accepted_length, item.path, item.set.position, rules_of_item);
    if (to_store[i].outcome == StoreOutcome::kSkipped) {
      answer.rows[i].skipped = true;
      arena->rows[item.row].holds = 0;  // what the worker wrote before this Store was stored nowhere
      continue;
    }
    if (arena->is_of_parts()) SettleRow(arena.get(), item.row);
    const Arena::Row& row = arena->rows[item.row];
    SetRequest& set = sets[i].request = item.set;
    set.layout = arena->layout->fingerprint();
    set.position = to_store[i].position;
    if (item.any_revision && set.if_revision.has_value()) {
      refuse(i, Invalid("INVALID_OPTION", "any_revision", "contradicts if_revision"));
      continue;
    }
    if (!row.loaded && !item.whole_row) {
      refuse(i, Error(absl::StatusCode::kFailedPrecondition, "ROW_NOT_LOADED",
                      absl::StrCat("nothing was loaded into row ", item.row,
                                   "; load it, or say whole_row if all of it was written"))
                    .Field("row"));
      continue;
    }
    if (const absl::Status accepted = StatusOf(to_store[i].outcome, item, rules.steps_max); !accepted.ok()) {
      refuse(i, accepted);
      continue;
    }
    if (!item.any_revision && !set.if_revision.has_value() && row.loaded &&
        row.key == NameKey{op.tenant, NameKind::kSequence, set.sequence}) {
      set.if_revision = row.revision;
    }
    if (item.image != nullptr) continue;  // nothing is copied for it, and the store looks at it once
    if (const absl::StatusOr<LayoutRef> may = store_->LayoutOfSet(op, set); !may.ok()) {
      refuse(i, may.status());
    } else if (item.attachment.size() > store_->options().max_attachment_bytes) {
      refuse(i, Invalid("INVALID_OPTION", "attachment",
                        absl::StrCat("an attachment has at most ", store_->options().max_attachment_bytes, " bytes")));
    }
  }
  const auto abort_all = [&] {
    for (size_t i = 0; i < items.size(); ++i) {
      StoredRow& row = answer.rows[i];
      if (row.status.ok() && !row.skipped && !answered[i]) row.status = Aborted();
    }
    answer.done = false;
  };
  if (refused && all_or_none) {
    abort_all();
    return answer;
  }

  std::vector<size_t> stored;
  for (size_t i = 0; i < items.size(); ++i) {
    if (answer.rows[i].status.ok() && !answer.rows[i].skipped && !answered[i]) stored.push_back(i);
  }
  std::vector<PartAssemblies::Ref> assemblies(stored.size());
  const absl::Cleanup drop = [&] {  // what was not published
    for (const PartAssemblies::Ref& assembly : assemblies) {
      if (assembly != nullptr) parts_.Drop(assembly);
    }
  };
  absl::StatusOr<std::vector<ImageRef>> images =
      arena->is_of_parts() ? CopyParts(op, arena, items, stored, to_store, &assemblies, &answer)
                           : CopyFromRows(op, arena.get(), items, stored, to_store, &answer);
  if (done != nullptr && !advances) done->Set();
  RETURN_IF_ERROR(images.status());
  std::vector<BatchItem> batch;
  std::vector<size_t> published, at;  // parallel: indexes of items and of `stored`
  for (size_t k = 0; k < stored.size(); ++k) {
    const size_t i = stored[k];
    if (!answer.rows[i].status.ok() || (*images)[k] == nullptr) continue;
    if (items[i].advance && IsReplay(op, sets[i].request, *(*images)[k])) {
      answer.rows[i].status = AdvancedElsewhere();
      continue;
    }
    at.push_back(k);
    sets[i].bytes.image = (*images)[k];
    sets[i].bytes.attachment = items[i].attachment;
    batch.push_back(std::move(sets[i]));
    published.push_back(i);
  }
  const bool any_refused = absl::c_any_of(answer.rows, [](const StoredRow& row) { return !row.status.ok(); });
  if (any_refused && all_or_none) {
    abort_all();
    return answer;
  }
  // A lease that ended before is a Store that was not.
  if (!batch.empty() && arena->ended.load()) return Gone(id);
  absl::StatusOr<std::vector<BatchResult>> results = std::vector<BatchResult>();
  if (!batch.empty()) results = store_->Batch(op, batch, all_or_none);
  RETURN_IF_ERROR(results.status());
  for (size_t k = 0; k < published.size(); ++k) {
    const size_t i = published[k];
    BatchResult& result = (*results)[k];
    if (!result.status.ok()) {
      if (all_or_none) answer.done = false;
      answer.rows[i].status = std::move(result.status);
      continue;
    }
    answer.rows[i].info = std::get<NameInfo>(std::move(result.answer));
    const NameInfo& info = answer.rows[i].info;
    arena->rows[items[i].row] = {true, info.key, info.revision, to_store[i].length == 1 ? info.version.id : 0};
    if (PartAssemblies::Ref assembly = std::move(assemblies[at[k]]); assembly != nullptr)
      parts_.Published(assembly, info);
  }
  if (!answer.done) abort_all();
  if (advances && answer.done) RETURN_IF_ERROR(AdvanceStored(op, arena.get(), items, to_store, answered, &answer));
  return answer;
}

// Images of `stored` (indexes of items), parallel to it; null where an item was refused.
absl::StatusOr<std::vector<ImageRef>> Arenas::CopyFromRows(const Op& op, Arena* arena,
                                                           absl::Span<const StoreItem> items,
                                                           absl::Span<const size_t> stored,
                                                           absl::Span<const ToStore> to_store, StoreAnswer* answer) {
  const CopyPlan& plan = arena->shape->plan;
  const uint64_t leaves = LeafCount(plan.state_bytes());
  struct Scatter {
    size_t item;
    std::unique_ptr<ImageWriter> writer;
    bool reserved;
    char* room;
  };
  std::vector<Scatter> scatters;
  std::vector<ImageRef> images(stored.size());
  std::vector<size_t> at;  // parallel to scatters: index into `stored`
  // Room that a Store did not use is kept for the next.
  const absl::Cleanup keep = [&] {
    MutexLock lock(&mu_);
    for (Scatter& scatter : scatters) {
      if (scatter.reserved && scatter.writer != nullptr && arena->reserve.size() < arena->reserve_max())
        arena->reserve.push_back(std::move(scatter.writer));
    }
  };
  for (size_t k = 0; k < stored.size(); ++k) {
    const StoreItem& item = items[stored[k]];
    if (item.image != nullptr) {
      images[k] = item.image;
      continue;
    }
    Scatter scatter{stored[k], nullptr, false, nullptr};
    if (item.attachment.empty()) {
      MutexLock lock(&mu_);
      if (!arena->reserve.empty()) {
        scatter.writer = std::move(arena->reserve.back());
        arena->reserve.pop_back();
        scatter.reserved = true;
      }
    }
    if (scatter.writer == nullptr) {
      absl::StatusOr<std::unique_ptr<ImageWriter>> writer =
          images_->BeginWrite(op, arena->layout, item.attachment.size(), arena->device);
      if (!writer.ok()) {
        answer->rows[stored[k]].status = writer.status();
        continue;
      }
      scatter.writer = *std::move(writer);
    }
    scatter.room = scatter.writer->room();
    scatters.push_back(std::move(scatter));
    at.push_back(k);
  }
  if (scatters.empty()) return images;

  const uint64_t bytes = scatters.size() * plan.state_bytes();
  const CopyHint hint = bytes > kStreamingStoreBytes ? CopyHint::kStreaming : CopyHint::kCached;
  constexpr uint64_t kTaskLeaves = kTaskBytes / kLeafBytes;
  const uint64_t tasks_each = (leaves + kTaskLeaves - 1) / kTaskLeaves;
  char* const memory = arena->memory->data();
  std::vector<LeafHash> hashes(scatters.size() * leaves);
  const auto run_on_device = [&] {
    std::vector<RowCopier::ScatterItem> batch;
    for (const Scatter& scatter : scatters) {
      batch.push_back({items[scatter.item].row, to_store[scatter.item].length, scatter.room});
    }
    return arena->copier->Scatter(batch, memory, absl::MakeSpan(hashes));
  };
  const auto run = [&](size_t task) {
    const Scatter& scatter = scatters[task / tasks_each];
    const uint64_t first = task % tasks_each * kTaskLeaves, last = std::min(first + kTaskLeaves, leaves);
    plan.ScatterLeaves(memory, items[scatter.item].row, to_store[scatter.item].length, first, last, scatter.room,
                       hashes.data() + task / tasks_each * leaves + first, hint);
  };
  const MonoTime start = clock_->Now();
  RETURN_IF_ERROR(arena->copier != nullptr ? run_on_device()
                                           : copies_->Run(op, &arena->ended, bytes, scatters.size() * tasks_each, run));
  answer->copy_time += absl::Nanoseconds(clock_->Now() - start);
  for (size_t s = 0; s < scatters.size(); ++s) {
    const Checksum checksum = HashRoot(absl::MakeConstSpan(hashes).subspan(s * leaves, leaves));
    images[at[s]] = scatters[s].writer->FinishFilled(checksum, items[scatters[s].item].attachment);
    scatters[s].writer = nullptr;
  }
  MutexLock lock(&mu_);
  stats_.arenas_to_slots_bytes += bytes;
  return images;
}

// ----
// the threads of its own

void Arenas::Loop(bool (Arenas::*once)(), CondVar* wake) {
  MutexLock lock(&mu_);
  while (!stopping_) {
    if (!(this->*once)()) wake->WaitFor(&mu_, kKeeperRound);
  }
}

// Each does one thing that is due; false if there was nothing. They give the lock back meanwhile.

bool Arenas::FreeOnce() {
  const MonoTime now = clock_->Now();
  ScheduleAgain();
  {
    MutexUnlock unlock(&mu_);
    parts_.Expire();
  }
  for (const auto& [id, entry] : arenas_) {
    const ArenaRef arena = entry;
    if (arena->state == Arena::State::kWaiting && now >= arena->token_expires) {
      spdlog::info("nobody connected to arena {} in time: it is closed", id);
      EndLocked(arena.get());
    }
    if (!arena->device->health().ok()) EndLocked(arena.get());
    if (arena->state != Arena::State::kEnded || arena->busy || now < arena->free_at) continue;
    arena->free_at = After(now, absl::FromChrono(kKeeperRound));  // while it is in quarantine
    MutexUnlock unlock(&mu_);
    Free(arena);
    return true;
  }
  return false;
}

bool Arenas::ReserveOnce() {
  const MonoTime now = clock_->Now();
  for (const auto& [id, entry] : arenas_) {
    const ArenaRef arena = entry;
    const bool lacks_slots = arena->state == Arena::State::kLeased && arena->lacks_reserve();
    if (!lacks_slots || arena->busy || now < arena->reserve_at) continue;
    std::unique_ptr<ImageWriter> writer;
    {
      MutexUnlock unlock(&mu_);
      Op op;
      op.tenant = arena->tenant;
      op.deadline = After(now, absl::FromChrono(kKeeperRound));
      op.cancelled = &arena->ended;
      absl::StatusOr<std::unique_ptr<ImageWriter>> got =
          images_->BeginWrite(op, arena->layout, /*attachment_bytes=*/0, arena->device);
      if (got.ok()) writer = *std::move(got);
    }
    if (writer == nullptr) {
      arena->reserve_at = After(clock_->Now(), absl::FromChrono(kKeeperRound));
    } else if (arena->state == Arena::State::kLeased && arena->lacks_reserve()) {
      arena->reserve.push_back(std::move(writer));
    } else {
      MutexUnlock unlock(&mu_);
      writer.reset();
    }
    return true;
  }
  return false;
}

// ----
// looking

ArenaStats Arenas::stats() const {
  MutexLock lock(&mu_);
  ArenaStats stats = stats_;
  stats.flag_waits = waiter_.waiting();
  for (const auto& [id, arena] : arenas_) {
    stats.reserved_slots += arena->reserve.size();
    switch (arena->state) {
      case Arena::State::kWaiting: ++stats.waiting; break;
      case Arena::State::kLeased: ++stats.leased; break;
      case Arena::State::kEnded: ++stats.quarantined; break;
    }
    (arena->state == Arena::State::kEnded ? stats.quarantined_bytes : stats.leased_bytes) += arena->memory_bytes;
  }
  return stats;
}

void Arenas::CheckInvariants() const {
  const auto require = [](bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "Arenas: %s\n", what);
    std::abort();
  };
  parts_.CheckInvariants();
  MutexLock lock(&mu_);
  absl::flat_hash_map<const Device*, uint64_t> bytes;
  for (const auto& [id, arena] : arenas_) {
    bytes[arena->device] += arena->bytes;
    require(arena->id == id, "an arena under another's id");
    require(arena->reserve.size() <= arena->reserve_max(), "more is reserved than one Store needs");
    require(arena->ready.size() <= arena->flagged, "calls with flag words are miscounted");
    require(arena->flagged <= options_.max_arena_flag_waits, "too many calls of an arena wait for flag words");
    require((arena->state == Arena::State::kEnded) == arena->ended.load(), "an arena ended and goes on");
    require(arena->state != Arena::State::kWaiting || !arena->token.empty(), "nobody can connect to a waiting arena");
  }
  for (const auto& [device, counted] : bytes_) {
    require(opening_ > 0 || bytes[device] == counted, "bytes are miscounted");
    require(counted <= options_.max_bytes, "a device has too many bytes of arenas");
  }
  require(arenas_.size() <= options_.max_arenas, "there are too many arenas");
}

}  // namespace statepool
