// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// WriteBehind: how much waits to be recorded, how fast it may go, and when writers have to wait for it.
//
// What waits is bounded by what an orderly stop can still write: never more than `max_dirty_bytes`, and no more than
// the disk, as fast as it was lately, takes in `stop_time`. A write that would add more is refused (FLUSH_BEHIND, with
// a hint), and from half of it on nothing waits for its interval. When the oldest change is older than `max_lag` the
// policy decides: go on and let the lag show, or refuse as well.
//
// Not thread-safe: the Store's lock guards it.
#ifndef STATEPOOL_SERVER_CORE_WRITE_BEHIND_H_
#define STATEPOOL_SERVER_CORE_WRITE_BEHIND_H_

#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/core/image.h"

namespace statepool {

enum class LagPolicy : uint8_t { kDegrade, kThrottle };

struct WriteBehindOptions {
  // Of a change, from its answer to when its turn comes.
  absl::Duration flush_interval = absl::Seconds(1);
  uint64_t max_dirty_bytes = UINT64_MAX;
  absl::Duration stop_time = absl::InfiniteDuration();
  uint64_t bytes_per_second = UINT64_MAX;  // what the background may write, while less than half of the limit waits
  absl::Duration max_lag = absl::Seconds(30);
  LagPolicy lag_policy = LagPolicy::kDegrade;
};

class WriteBehind {
 public:
  explicit WriteBehind(const WriteBehindOptions& options) : options_(options) {}

  // A name begins, or ceases, to wait for this image; an image counts once, however many names wait for it.
  void Add(const Image& image);
  void Remove(ImageId image);
  uint64_t dirty_bytes() const { return dirty_bytes_; }
  uint64_t max_dirty_bytes() const;  // now

  // Images that begin to wait with one write, and their bytes.
  struct Adding {
    absl::flat_hash_set<ImageId> images;
    uint64_t bytes = 0;
  };
  // FLUSH_BEHIND if a write after which this image waits has to be refused. `image`: 0 if it is not made yet. `lag`:
  // age of the oldest change. An image that was admitted is added to `adding`. When nothing waits every write is
  // admitted: it could never be otherwise.
  absl::Status Admit(ImageId image, uint64_t bytes, absl::Duration lag, Adding* adding) const;

  // So much waits that nothing is put off.
  bool urgent() const { return dirty_bytes_ > max_dirty_bytes() / 2; }
  // What may be written now, at most a second's worth, and what was of it.
  uint64_t Allowance(MonoTime now);
  void Charge(uint64_t bytes);
  // The disk took so long for so much: tells its rate.
  void Wrote(uint64_t bytes, absl::Duration took);

 private:
  struct Waiting {
    uint64_t names = 0, bytes = 0;
  };

  const WriteBehindOptions options_;
  absl::flat_hash_map<ImageId, Waiting> waiting_;
  uint64_t dirty_bytes_ = 0;
  double allowance_ = 0;  // bytes; below 0: more was written than there was
  MonoTime allowed_at_ = 0;
  double written_bytes_ = 0, written_seconds_ = 0;  // of late
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_WRITE_BEHIND_H_
