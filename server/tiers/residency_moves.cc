// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Moves: images on their way into one more memory, several at a time. What a call brings up, from the warm memory or
// from another device, and what is demoted goes this way.
#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/tiers/residency.h"
#include "server/tiers/resident.h"

namespace statepool {

bool Residency::Moves::full(uint64_t next_bytes) const {
  return size() >= kMovesMin && (size() == kMovesMost || bytes_ + next_bytes > kMoveBytesMost);
}

void Residency::Moves::Add(std::unique_ptr<Move> move) {
  bytes_ += move->image->bytes();
  moves_.push_back(std::move(move));
}

std::vector<std::unique_ptr<Residency::Move>> Residency::Moves::TakeOldest() {
  std::vector<std::unique_ptr<Move>> oldest;
  for (size_t left = (size() + kMoveGroups - 1) / kMoveGroups; left > 0; --left) {
    oldest.push_back(std::move(moves_.front()));
    moves_.pop_front();
    bytes_ -= oldest.back()->image->bytes();
  }
  return oldest;
}

// ---- one

void Residency::BeginMove(const Op& op, bool may_wait, Move* move) {
  Resident* const image = move->image;
  Memory* const target = move->target;
  assert(CopyIn(*image, *target) == nullptr && image->coming == 0);
  Copy* const source = move->source = BestCopy(*image);
  move->claim.pool = PoolFor(image->family, target);
  Enter(image->family);
  image->coming |= target->bit;
  if (source != nullptr) Hold(image, source);
  MutexUnlock unlock(&mu_);
  move->status = Acquire(op, source == nullptr ? image->info().attachment_bytes : 0, &move->claim, may_wait);
  if (!move->status.ok()) return;
  char* const to = move->claim.slot.data;
  if (source == nullptr) {
    move->status = GetCold(op, image->info(), *target, to, &move->attachment);
    return;
  }
  Device* const from = source->memory().device;
  absl::StatusOr<std::unique_ptr<Transfer>> transfer =
      BeginCopyBetween(from, source->slot.data, target->device, to, image->bytes());
  if (transfer.ok()) {
    move->transfer = *std::move(transfer);
  } else if (absl::IsUnimplemented(transfer.status())) {
    move->status = CopyBetween(op, target->staging, from, source->slot.data, target->device, to, image->bytes());
  } else {
    move->status = transfer.status();
  }
}

void Residency::EndMoves(absl::Span<const std::unique_ptr<Move>> moves) {
  {
    MutexUnlock unlock(&mu_);
    Arrive(moves);
  }
  for (const std::unique_ptr<Move>& move : moves) EndMove(move.get());
}

// What goes down is compared where it was, while the copies run; what comes up where it arrives.
void Residency::Arrive(absl::Span<const std::unique_ptr<Move>> moves) const {
  const auto compare = [&](bool down) {
    std::vector<Move*> some;
    std::vector<Compared> states;
    for (const std::unique_ptr<Move>& move : moves) {
      if (!move->status.ok() || move->source == nullptr || move->target->in_reach != down) continue;
      some.push_back(move.get());
      states.push_back({down ? &move->source->memory() : move->target,
                        down ? move->source->slot.data : move->claim.slot.data, move->image});
    }
    Compare(absl::MakeSpan(states));
    for (size_t i = 0; i < some.size(); ++i) some[i]->status = states[i].status;
  };
  compare(/*down=*/true);
  // The last first: who sleeps is woken once.
  for (auto move = moves.rbegin(); move != moves.rend(); ++move) {
    if ((*move)->transfer == nullptr) continue;
    const absl::Status waited = std::exchange((*move)->transfer, nullptr)->Wait();
    if ((*move)->status.ok()) (*move)->status = waited;
  }
  compare(/*down=*/false);
  for (const std::unique_ptr<Move>& move : moves) {
    if (!absl::IsDataLoss(move->status) || move->source == nullptr || move->target->in_reach) continue;
    // It left damaged, or was damaged on its way.
    Compared left{&move->source->memory(), move->source->slot.data, move->image};
    Compare(absl::MakeSpan(&left, 1));
    move->status = left.status;
    if (!left.status.ok()) continue;
    move->status = Error(absl::StatusCode::kUnavailable, "DEVICE_FAILED",
                         absl::StrCat("a state arrived at ", move->target->device->name(), " with other bytes than ",
                                      left.memory->device->name(), " holds; try again"))
                       .Meta("device", move->target->device->name());
  }
}

void Residency::Compare(absl::Span<Compared> states) {
  while (!states.empty()) {
    const Memory* const memory = states.front().memory;
    const uint64_t bytes = states.front().image->bytes();
    const auto end = std::find_if(states.begin(), states.end(), [&](const Compared& state) {
      return state.memory != memory || state.image->bytes() != bytes;
    });
    const auto batch = states.first(static_cast<size_t>(end - states.begin()));
    std::vector<const char*> places;
    for (const Compared& state : batch) places.push_back(state.state);
    const size_t each = LeafCount(bytes);
    std::vector<LeafHash> leaves(batch.size() * each);
    const absl::Status hashed = memory->device->HashStates(places, bytes, absl::MakeSpan(leaves));
    for (size_t i = 0; i < batch.size(); ++i) {
      const ImageInfo& info = batch[i].image->info();
      batch[i].status = !hashed.ok() ? hashed
                        : HashRoot(absl::MakeConstSpan(leaves).subspan(i * each, each)) == info.checksum
                            ? absl::OkStatus()
                            : Damaged(info.id);
    }
    states.remove_prefix(batch.size());
  }
}

void Residency::EndMove(Move* move) {
  Resident* const image = move->image;
  Memory* const target = move->target;
  Copy* const source = move->source;
  if (move->status.ok()) {
    const uint64_t bytes = image->bytes() + (source == nullptr ? image->info().attachment_bytes : 0);
    stats_.transferred_bytes[{source == nullptr ? Tier::kCold : source->memory().tier, target->tier}] += bytes;
    if (source == nullptr && image->copies.empty()) image->attachment = std::move(move->attachment);
    Install(image, &move->claim);
    if (Copy* const copy = CopyIn(*image, *target); copy != nullptr && source != nullptr)
      copy->verified = !target->in_reach || source->memory().in_reach;
    image->coming &= ~target->bit;  // after it is there: an image that is nowhere, and comes nowhere, is lost
    Progress();
  } else {
    if (source != nullptr && absl::IsDataLoss(move->status)) Damage(image, source);
    Abandon(&move->claim);
    NoticeFailures();
    image->coming &= ~target->bit;
    stats_.lost_images += absl::IsUnavailable(loss(*image));
  }
  move->source_is_gone = source != nullptr && (source->damaged || source->memory().failed);
  if (source != nullptr) Release(image, source);
}

absl::Status Residency::Bring(const Op& op, Resident* image, Memory* target) {
  for (;;) {
    if (absl::Status status = loss(*image); !status.ok()) return status;
    if (!CanBeRead(*image)) return absl::AbortedError("it is being written to the cold store");
    const auto move = std::make_unique<Move>(this, image, target);
    BeginMove(op, /*may_wait=*/true, move.get());
    EndMoves(absl::MakeConstSpan(&move, 1));
    if (move->status.ok() || !move->source_is_gone || target->failed) return move->status;
  }
}

// ---- many

std::vector<absl::StatusOr<Pin>> Residency::ReadMany(const Op& op, absl::Span<const ImageRef> images, PinPlace place) {
  std::vector<absl::StatusOr<Pin>> pins;
  for (size_t i = 0; i < images.size(); ++i) pins.emplace_back(Pin());
  if (place.on != nullptr) BringMany(op, images, place, &pins);
  for (size_t i = 0; i < images.size(); ++i) {
    if (pins[i].ok() && *pins[i] == nullptr) pins[i] = Read(op, images[i], place);
  }
  return pins;
}

// Pins those that are in the place, and those that memories have and that come there without trouble. Others are left
// to Read, which knows what to do.
void Residency::BringMany(const Op& op, absl::Span<const ImageRef> images, PinPlace place,
                          std::vector<absl::StatusOr<Pin>>* pins) {
  Memory* const target = Of(place.on);
  Require(target != nullptr, "states are wanted on a device that is no hot memory's");
  std::vector<std::unique_ptr<Move>> ended;  // outlives the lock
  Moves moves;
  MutexLock lock(&mu_);
  const auto pin = [&](size_t i) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    Copy* const copy = CopyFor(*Resident::Of(*images[i]), *target, place.or_reached);
    if (copy != nullptr && !copy->damaged && copy->verified && !target->failed) (*pins)[i] = PinLocked(images[i], copy);
    return copy != nullptr;
  };
  const auto end_some = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    ended = moves.TakeOldest();
    EndMoves(ended);
    for (const std::unique_ptr<Move>& move : ended) {
      if (!move->status.ok()) continue;
      ++stats_.misses;
      ++stats_.promotions;
      pin(move->index);
    }
  };
  // First those that are there: they need not leave for the others.
  for (size_t i = 0; i < images.size(); ++i) pin(i);
  for (size_t i = 0; i < images.size(); ++i) {
    Resident* const image = Resident::Of(*images[i]);
    if (*(*pins)[i] != nullptr) continue;
    while (!moves.empty() && moves.full(image->bytes())) end_some();
    if (target->failed || image->coming != 0 || pin(i) || BestCopy(*image) == nullptr) continue;
    auto move = std::make_unique<Move>(this, image, target, i);
    BeginMove(op, /*may_wait=*/false, move.get());
    if (move->status.ok()) {
      moves.Add(std::move(move));
      continue;
    }
    // It waits for room, with nothing under way; or is told why it does not come.
    EndMoves(absl::MakeConstSpan(&move, 1));
    while (!moves.empty()) end_some();
    MutexUnlock unlock(&mu_);
    (*pins)[i] = Read(op, images[i], place);
  }
  while (!moves.empty()) end_some();
}

absl::Status Residency::Verify(Resident* image, Copy* copy) {
  Hold(image, copy);
  Compared state{&copy->memory(), copy->slot.data, image};
  {
    MutexUnlock unlock(&mu_);
    Compare(absl::MakeSpan(&state, 1));
  }
  copy->verified = state.status.ok();
  const bool damaged = absl::IsDataLoss(state.status);
  if (damaged) Damage(image, copy);
  Release(image, copy);
  return damaged ? absl::OkStatus() : state.status;
}

// ---- down

bool Residency::MayDemote(const Resident& image, const Memory& from) const {
  return UsesWarm() && from.tier == Tier::kHot && image.coming == 0 && CopyIn(image, *warm_) == nullptr;
}

absl::Status Residency::MoveDown(const Op& op, Resident* image, const Memory& from, bool* demoted) {
  if (MayDemote(*image, from)) {
    absl::Status status = Bring(op, image, warm_);
    *demoted = status.ok();
    stats_.demotions += status.ok();
    // Where the warm memory is short of what may leave, or smaller than the state, or can't be had, there is the disk.
    if (status.ok() || absl::IsDataLoss(status) || from.failed || !op.Check(*clock_).ok()) return status;
  }
  absl::Status status = PersistAny(op, image);
  stats_.spills += status.ok();
  return status;
}

bool Residency::BeginDemotion(std::shared_ptr<Resident> image, Memory* from, Moves* moves) {
  auto move = std::make_unique<Move>(this, image.get(), warm_);
  Pool* const pool = CopyIn(*image, *from)->pool;
  move->from = pool;
  move->reference = std::move(image);
  ++pool->going_down;
  from->going_down_bytes += pool->family->state_bytes;
  from->ahead_bytes -= std::min(from->ahead_bytes, pool->family->state_bytes);
  ++from->moving;
  BeginMove(Op(), /*may_wait=*/false, move.get());
  const bool begun = move->status.ok();
  moves->Add(std::move(move));
  return begun;
}

void Residency::EndDemotions(absl::Span<const std::unique_ptr<Move>> moves) {
  EndMoves(moves);
  for (const std::unique_ptr<Move>& move : moves) {
    Pool* const pool = move->from;
    --pool->going_down;
    pool->memory->going_down_bytes -= pool->family->state_bytes;
    --pool->memory->moving;
    stats_.demotions += move->status.ok();
  }
  changed_.SignalAll();
}

}  // namespace statepool
