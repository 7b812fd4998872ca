// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/in_flight.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <iterator>
#include <system_error>
#include <utility>

#include "absl/memory/memory.h"

namespace statepool::client {

bool Storing::WaitUntilOver(absl::Time deadline) const {
  std::unique_lock lock(mu_);
  const auto is_over = [this] { return is_over_.load(); };
  if (deadline != absl::InfiniteFuture()) return changed_.wait_until(lock, absl::ToChronoTime(deadline), is_over);
  changed_.wait(lock, is_over);
  return true;
}

void Storing::Finish() {
  const absl::Status status = copies_->Wait();
  Answer answer = status.ok() ? commit_(copies_->hashes()) : commit_(status);
  copies_ = nullptr;  // not for as long as somebody keeps this
  commit_ = nullptr;
  const std::lock_guard lock(mu_);
  answer_ = std::move(answer);
  is_over_ = true;
  changed_.notify_all();
}

std::unique_ptr<InFlight> InFlight::Make() {
  auto in_flight = absl::WrapUnique(new InFlight);
  // Signals are for the threads of the program.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    in_flight->thread_ = std::thread([worked_on = in_flight.get()] { worked_on->Work(); });
  } catch (const std::system_error&) {
    in_flight = nullptr;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return in_flight;
}

InFlight::~InFlight() {
  Finish();
  {
    const std::lock_guard lock(mu_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  for (const Load& load : loads_) (void)load.copies->Wait();  // after an error nothing reads there either
}

void InFlight::Hold(std::unique_ptr<const Enqueued> copies, std::shared_ptr<const void> pins) {
  const std::lock_guard lock(mu_);
  loads_.push_back({std::move(copies), std::move(pins)});
  changed_.notify_all();
}

void InFlight::Add(std::shared_ptr<Storing> storing, bool attended) {
  const std::lock_guard lock(mu_);
  stores_.push_back(std::move(storing));
  if (attended) changed_.notify_all();
}

void InFlight::FinishThrough(const Storing& storing) {
  const std::lock_guard committing(committing_);
  while (!storing.is_over()) {
    std::shared_ptr<Storing> first;
    {
      const std::lock_guard lock(mu_);
      first = current_ = std::move(stores_.front());
      stores_.pop_front();
    }
    first->Finish();
    const std::lock_guard lock(mu_);
    current_ = nullptr;
  }
}

template <typename IsWanted>
void InFlight::FinishLast(IsWanted is_wanted) {
  std::shared_ptr<Storing> last;
  {
    const std::lock_guard lock(mu_);
    if (current_ != nullptr && is_wanted(*current_)) last = current_;
    for (const std::shared_ptr<Storing>& storing : stores_) {
      if (is_wanted(*storing)) last = storing;
    }
  }
  if (last != nullptr) FinishThrough(*last);
}

void InFlight::Finish() {
  FinishLast([](const Storing&) { return true; });
}

void InFlight::Finish(const absl::flat_hash_set<uint32_t>& rows) {
  FinishLast([&rows](const Storing& storing) {
    return std::any_of(rows.begin(), rows.end(), [&](uint32_t row) { return storing.rows().contains(row); });
  });
}

void InFlight::Release() {
  std::vector<Load> done;  // let go of without the lock
  const std::lock_guard lock(mu_);
  const auto first_done =
      std::partition(loads_.begin(), loads_.end(), [](const Load& load) { return !load.copies->IsDone(); });
  done.assign(std::make_move_iterator(first_done), std::make_move_iterator(loads_.end()));
  loads_.erase(first_done, loads_.end());
}

void InFlight::Work() {
  std::shared_ptr<Storing> looked_at;
  std::chrono::microseconds pause = kLookMin;
  std::unique_lock lock(mu_);
  while (!ending_) {
    if (stores_.empty() && loads_.empty()) {
      looked_at = nullptr;
      changed_.wait(lock);
      continue;
    }
    const std::shared_ptr<Storing> first = stores_.empty() ? nullptr : stores_.front();
    const std::shared_ptr<const Enqueued> copies = first == nullptr ? nullptr : first->copies_;
    lock.unlock();
    if (copies != nullptr && copies->IsDone()) {
      FinishThrough(*first);
      lock.lock();
      continue;
    }
    Release();
    pause = first != nullptr && first == looked_at ? std::min(2 * pause, kLookMax) : kLookMin;
    looked_at = first;
    lock.lock();
    if (!ending_) changed_.wait_for(lock, first == nullptr ? kLookAtLoads : pause);
  }
}

}  // namespace statepool::client
