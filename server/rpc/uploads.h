// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Uploads: states that come by SetStream, while they come, and for a time after their stream broke off.
//
// An upload has the room of its state from the beginning, so uploads are bounded: in number, in bytes, and in the time
// for which a broken-off one is kept. One with a request_id is kept under (tenant, sequence, request_id); one without
// is gone with its stream.
#ifndef STATEPOOL_SERVER_RPC_UPLOADS_H_
#define STATEPOOL_SERVER_RPC_UPLOADS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/core/mutex.h"
#include "server/core/store.h"
#include "server/rpc/watchdog.h"

namespace statepool {

struct UploadLimits {
  uint32_t max_uploads = 64;
  uint64_t max_bytes = 0;  // of all their states; one alone may be larger
  absl::Duration keep = absl::Seconds(60);
};

inline constexpr uint64_t kMaxUploadChunkBytes = 4 << 20;

// Thread-safe. Must outlive the uploads that it gives.
class Uploads {
 public:
  // `store` and `watchdog` must outlive it.
  Uploads(UploadLimits limits, Store* store, const Clock* clock, Watchdog* watchdog);
  ~Uploads();  // REQUIRES: no upload is under way

  // A stream under way. Not thread-safe. Gone before Finish it is kept, or dropped, as it was begun.
  class Upload {
   public:
    ~Upload();
    Upload(const Upload&) = delete;
    Upload& operator=(const Upload&) = delete;

    uint64_t received_bytes() const { return set_.writer->received_bytes(); }
    uint64_t total_bytes() const { return set_.layout->state_bytes(); }
    bool append_waits() const { return set_.writer->append_waits(); }  // for a device's copies
    // The next chunk. Errors: OFFSET_MISMATCH, INVALID_OPTION (its size), BYTES_LENGTH_MISMATCH, CHECKSUM_MISMATCH,
    // UPLOAD_BUSY (another stream started over); nothing was appended then.
    absl::Status Append(uint64_t offset, absl::Span<const absl::string_view> data, Checksum checksum);
    // The last step. Errors: those of Set. After it the upload is not kept, unless bytes were missing.
    absl::StatusOr<NameInfo> Finish(const Op& op);

   private:
    friend class Uploads;
    using Key = std::tuple<TenantId, std::string, std::string>;  // sequence, request_id
    Upload(Uploads* owner, std::optional<Key> key, uint64_t reserved_bytes)
        : owner_(owner), key_(std::move(key)), reserved_bytes_(reserved_bytes) {}

    Uploads* const owner_;
    std::optional<Key> key_;  // none: not kept
    uint64_t serial_ = 0;     // of its entry: another one means that a later stream took over
    uint64_t reserved_bytes_;
    PendingSet set_;
  };

  // Begins an upload at offset 0, or goes on with one that is kept. Blocks as Store::BeginSet does.
  // At offset 0 one that is kept starts over in its own room. Where another stream goes on (its connection may be dead
  // without a word) the new one needs room of its own, and takes over when it has it: the other's next chunk is
  // refused, and it is not kept.
  // Errors: those of Store::BeginSet; UPLOAD_UNKNOWN, UPLOAD_BUSY, OFFSET_MISMATCH, REQUEST_ID_REUSED,
  // TOO_MANY_UPLOADS; at offset 0 also what Append would say of the length of the data that comes with it, if any. What
  // was kept, or went on, is as it was then.
  absl::StatusOr<std::unique_ptr<Upload>> Begin(const Op& op, SetRequest request, std::string attachment,
                                                std::optional<Checksum> expected_checksum, uint64_t offset,
                                                uint64_t first_bytes = 0);

  struct Info {
    uint64_t received_bytes = 0, total_bytes = 0;
    std::optional<absl::Time> expire_time;  // none: a stream is under way
  };
  // Errors: UPLOAD_UNKNOWN.
  absl::StatusOr<Info> Find(const Op& op, const std::string& sequence, const std::string& request_id) const;

  const UploadLimits& limits() const { return limits_; }

 private:
  using Key = Upload::Key;
  struct Entry {
    bool active = true;
    uint64_t body_hash = 0;
    uint64_t received_bytes = 0, total_bytes = 0;
    absl::Time expire_time;
    Watchdog::Id watch = 0;
    std::optional<PendingSet> set;  // while it is kept
    uint64_t reserved_bytes = 0;
  };
  void End(Upload* upload, bool keep);
  void Expire(const Key& key, uint64_t serial);
  // As active, in the place of what has its key. REQUIRES: it has a key.
  void Enter(const Upload& upload, uint64_t body_hash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Null: taken over. REQUIRES: it has a key.
  Entry* EntryOf(const Upload& upload) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Release(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const UploadLimits limits_;
  Store* const store_;
  const Clock* const clock_;
  Watchdog* const watchdog_;
  mutable Mutex mu_;
  uint64_t next_serial_ ABSL_GUARDED_BY(mu_) = 1;
  uint32_t count_ ABSL_GUARDED_BY(mu_) = 0;  // under way and kept
  uint64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<Key, std::pair<uint64_t, Entry>> entries_ ABSL_GUARDED_BY(mu_);  // with a serial number of their own
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_UPLOADS_H_
