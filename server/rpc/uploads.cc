// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/uploads.h"

#include <cassert>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool {
namespace {

absl::Status Unknown() {
  return Error(
             absl::StatusCode::kNotFound, "UPLOAD_UNKNOWN",
             "no upload of this request is kept: it was never begun, ended, or broke off too long ago; send the state "
             "from offset 0, with the same request_id")
      .Field("request_id");
}

absl::Status WrongOffset(uint64_t expected, uint64_t offset) {
  return Error(absl::StatusCode::kInvalidArgument, "OFFSET_MISMATCH",
               absl::StrCat("the next chunk begins at ", expected, ", not at ", offset))
      .Field("offset")
      .Meta("expected", expected);
}

absl::Status Busy(absl::string_view field) {
  return Error(absl::StatusCode::kAborted, "UPLOAD_BUSY",
               "another stream goes on with this upload; wait until it has ended or the daemon has given it up")
      .Field(field)
      .RetryAfter(absl::Seconds(1));
}

absl::Status Reused() {
  return Error(absl::StatusCode::kInvalidArgument, "REQUEST_ID_REUSED",
               "this request_id belongs to an upload with another head; choose a new one")
      .Field("request_id");
}

// May a chunk of so many bytes stand there in a state?
absl::Status CheckLength(uint64_t offset, uint64_t bytes, uint64_t total_bytes) {
  if (bytes == 0 || bytes > kMaxUploadChunkBytes) {
    return Error(absl::StatusCode::kInvalidArgument, "INVALID_OPTION",
                 absl::StrCat("a chunk has 1 to ", kMaxUploadChunkBytes, " bytes"))
        .Field("data");
  }
  // Only the last chunk ends off a leaf's border: so one that does ends a state, of a wrong length.
  const bool last = offset + bytes == total_bytes;
  if (offset + bytes > total_bytes || (!last && bytes % kLeafBytes != 0)) {
    return Error(absl::StatusCode::kInvalidArgument, "BYTES_LENGTH_MISMATCH",
                 absl::StrCat("a state of this layout has ", total_bytes, " bytes, and this chunk ends at ",
                              offset + bytes, "; all chunks but the last have a multiple of ", kLeafBytes))
        .Field("data")
        .Meta("expected", total_bytes)
        .Meta("actual", offset + bytes);
  }
  return absl::OkStatus();
}

absl::Status TooMany(uint64_t limit, absl::string_view of_what) {
  return Error(
             absl::StatusCode::kResourceExhausted, "TOO_MANY_UPLOADS",
             absl::StrCat("uploads that go on or are kept have reached the limit of ", limit, of_what, "; retry later"))
      .Meta("limit", limit)
      .RetryAfter(absl::Seconds(1));
}

}  // namespace

Uploads::Uploads(UploadLimits limits, Store* store, const Clock* clock, Watchdog* watchdog)
    : limits_(limits), store_(store), clock_(clock), watchdog_(watchdog) {}

Uploads::~Uploads() {
  for (;;) {
    Watchdog::Id watch = 0;
    {
      MutexLock lock(&mu_);
      if (entries_.empty()) break;
      assert(!entries_.begin()->second.second.active);
      watch = entries_.begin()->second.second.watch;
      Release(entries_.begin()->second.second.reserved_bytes);
      entries_.erase(entries_.begin());
    }
    watchdog_->Forget(watch);
  }
}

Uploads::Entry* Uploads::EntryOf(const Upload& upload) {
  const auto it = entries_.find(*upload.key_);
  return it == entries_.end() || it->second.first != upload.serial_ ? nullptr : &it->second.second;
}

void Uploads::Enter(const Upload& upload, uint64_t body_hash) {
  Entry entry;
  entry.body_hash = body_hash;
  entry.total_bytes = entry.reserved_bytes = upload.reserved_bytes_;
  entries_.insert_or_assign(*upload.key_, std::pair(upload.serial_, std::move(entry)));
}

void Uploads::Release(uint64_t bytes) {
  --count_;
  bytes_ -= bytes;
}

absl::StatusOr<std::unique_ptr<Uploads::Upload>> Uploads::Begin(const Op& op, SetRequest request,
                                                                std::string attachment,
                                                                std::optional<Checksum> expected_checksum,
                                                                uint64_t offset, uint64_t first_bytes) {
  std::optional<Key> key;
  if (!request.request.id.empty()) key = Key(op.tenant, request.sequence, request.request.id);
  const uint64_t body_hash = request.request.body_hash;
  absl::StatusOr<LayoutRef> layout = nullptr;  // to begin anew with
  if (offset == 0) layout = store_->LayoutOfSet(op, request);
  std::unique_ptr<Upload> upload;
  Watchdog::Id watch = 0;
  bool takes_over = false;
  {
    MutexLock lock(&mu_);
    const auto found = key.has_value() ? entries_.find(*key) : entries_.end();
    Entry* const entry = found != entries_.end() ? &found->second.second : nullptr;
    if (entry == nullptr && offset != 0) return Unknown();
    if (entry != nullptr) {
      if (entry->active && offset != 0) return Busy("request_id");
      if (entry->body_hash != body_hash) return Reused();
      if (offset != 0 && offset != entry->received_bytes) return WrongOffset(entry->received_bytes, offset);
    }
    if (!layout.ok()) return layout.status();
    if (offset == 0 && first_bytes > 0) {
      if (absl::Status status = CheckLength(0, first_bytes, (*layout)->state_bytes()); !status.ok()) return status;
    }
    // What is kept is of no use if the head means another layout by now.
    if (entry != nullptr && !entry->active &&
        (offset != 0 || entry->set->layout->fingerprint() == (*layout)->fingerprint())) {
      upload.reset(new Upload(this, key, entry->reserved_bytes));
      upload->set_ = *std::move(entry->set);
      upload->serial_ = found->second.first;
      entry->set.reset();
      entry->active = true;
      entry->received_bytes = offset;
      watch = std::exchange(entry->watch, 0);
    } else {
      const uint64_t bytes = (*layout)->state_bytes();
      if (count_ >= limits_.max_uploads) return TooMany(limits_.max_uploads, "");
      if (bytes_ > 0 && bytes > limits_.max_bytes - std::min(bytes_, limits_.max_bytes))
        return TooMany(limits_.max_bytes, " bytes");
      ++count_;
      bytes_ += bytes;
      upload.reset(new Upload(this, key, bytes));
      upload->serial_ = next_serial_++;
      takes_over = entry != nullptr;
      if (key.has_value() && !takes_over) Enter(*upload, body_hash);
    }
  }
  if (watch != 0) watchdog_->Forget(watch);
  if (upload->set_.writer != nullptr) {
    if (offset == 0) upload->set_.writer->Restart();
    return upload;
  }

  // From here on the upload gives its place back when it goes.
  absl::StatusOr<PendingSet> set =
      store_->BeginSet(op, std::move(request), *layout, std::move(attachment), expected_checksum);
  if (!set.ok()) return set.status();
  upload->set_ = *std::move(set);
  if (!takes_over) return upload;
  // Only now, so that whatever refused this one left the other as it was.
  std::optional<PendingSet> dropped;  // destroyed without the lock
  {
    MutexLock lock(&mu_);
    if (const auto found = entries_.find(*key); found != entries_.end()) {
      Entry& entry = found->second.second;
      if (entry.body_hash != body_hash) return Reused();
      if (!entry.active) Release(entry.reserved_bytes);
      dropped = std::move(entry.set);
      watch = entry.watch;
    }
    Enter(*upload, body_hash);
  }
  if (watch != 0) watchdog_->Forget(watch);
  return upload;
}

Uploads::Upload::~Upload() { owner_->End(this, /*keep=*/set_.writer != nullptr); }

void Uploads::End(Upload* upload, bool keep) {
  MutexLock lock(&mu_);
  if (!upload->key_.has_value()) {
    Release(upload->reserved_bytes_);
    return;
  }
  if (EntryOf(*upload) == nullptr) {
    Release(upload->reserved_bytes_);
    return;
  }
  const auto it = entries_.find(*upload->key_);
  Entry& entry = it->second.second;
  if (!keep || upload->received_bytes() == 0) {
    Release(upload->reserved_bytes_);
    entries_.erase(it);
    return;
  }
  entry.active = false;
  entry.received_bytes = upload->received_bytes();
  entry.expire_time = clock_->WallNow() + limits_.keep;
  entry.set = std::move(upload->set_);
  it->second.first = next_serial_++;
  entry.watch = watchdog_->Watch(After(clock_->Now(), limits_.keep),
                                 [this, key = *upload->key_, serial = it->second.first] { Expire(key, serial); });
}

void Uploads::Expire(const Key& key, uint64_t serial) {
  std::optional<PendingSet> dropped;  // destroyed without the lock
  MutexLock lock(&mu_);
  const auto it = entries_.find(key);
  if (it == entries_.end() || it->second.first != serial || it->second.second.active) return;
  dropped = std::move(it->second.second.set);
  Release(it->second.second.reserved_bytes);
  entries_.erase(it);
}

absl::StatusOr<Uploads::Info> Uploads::Find(const Op& op, const std::string& sequence,
                                            const std::string& request_id) const {
  MutexLock lock(&mu_);
  const auto it = entries_.find(Key(op.tenant, sequence, request_id));
  if (it == entries_.end()) return Unknown();
  const Entry& entry = it->second.second;
  Info info{entry.received_bytes, entry.total_bytes, std::nullopt};
  if (!entry.active) info.expire_time = entry.expire_time;
  return info;
}

absl::Status Uploads::Upload::Append(uint64_t offset, absl::Span<const absl::string_view> data, Checksum checksum) {
  if (offset != received_bytes()) return WrongOffset(received_bytes(), offset);
  uint64_t bytes = 0;
  for (absl::string_view piece : data) bytes += piece.size();
  if (absl::Status status = CheckLength(offset, bytes, total_bytes()); !status.ok()) return status;
  if (key_.has_value()) {
    MutexLock lock(&owner_->mu_);
    if (owner_->EntryOf(*this) == nullptr) return Busy("head.request_id");
  }
  if (absl::Status status = set_.writer->Append(data, checksum); !status.ok()) return status;
  if (key_.has_value()) {
    MutexLock lock(&owner_->mu_);
    if (Entry* entry = owner_->EntryOf(*this)) entry->received_bytes = received_bytes();
  }
  return absl::OkStatus();
}

absl::StatusOr<NameInfo> Uploads::Upload::Finish(const Op& op) {
  const bool complete = received_bytes() == total_bytes();
  absl::StatusOr<NameInfo> info = owner_->store_->FinishSet(op, &set_);
  // A complete upload has done what it could: it was written, or refused for good.
  if (complete) set_.writer.reset();
  return info;
}

}  // namespace statepool
