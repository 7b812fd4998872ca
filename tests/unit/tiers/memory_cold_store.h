// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// MemoryColdStore: a ColdStore in a map, with the same promises but durability. The tests of Residency use it where
// RocksDB, which is not instrumented, would drown ThreadSanitizer in reports that are none of ours.
#ifndef STATEPOOL_TESTS_UNIT_TIERS_MEMORY_COLD_STORE_H_
#define STATEPOOL_TESTS_UNIT_TIERS_MEMORY_COLD_STORE_H_

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/mutex.h"
#include "server/tiers/cold_store.h"

namespace statepool {

// What stays when the store over it is closed and opened again.
struct MemoryDisk {
  struct Stored {
    std::string state, attachment;
  };
  Mutex mu;
  uint64_t epoch ABSL_GUARDED_BY(mu) = 0;
  uint64_t used_bytes ABSL_GUARDED_BY(mu) = 0;
  std::map<ImageId, Stored> images ABSL_GUARDED_BY(mu);
};

class MemoryColdStore final : public ColdStore {
 public:
  MemoryColdStore(MemoryDisk* disk, uint64_t budget_bytes) : disk_(disk), budget_bytes_(budget_bytes) {
    MutexLock lock(&disk_->mu);
    epoch_ = ++disk_->epoch;
  }

  absl::Status PutImage(const ImageInfo& info, StateReader* reader, absl::Span<const LeafHash> leaves,
                        absl::string_view attachment) override {
    if (before_put) before_put();
    MemoryDisk::Stored stored{"", std::string(attachment)};
    while (reader->left() > 0) {
      const absl::StatusOr<absl::string_view> piece = reader->Next();
      if (!piece.ok()) return piece.status();
      absl::StrAppend(&stored.state, *piece);
    }
    const uint64_t bytes = stored.state.size() + attachment.size();
    MutexLock lock(&disk_->mu);
    if (HashRoot(leaves) != info.checksum || disk_->images.contains(info.id))
      return absl::InternalError("a put that must not be");
    if (bytes > budget_bytes_ - disk_->used_bytes) {
      return Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "the cold budget is used up")
          .RetryAfter(absl::Seconds(1));
    }
    disk_->used_bytes += bytes;
    disk_->images[info.id] = std::move(stored);
    return put_status;
  }
  absl::Status ReadImage(const ImageInfo& info, StateFiller* filler, std::string* attachment) override {
    const Error corrupt(absl::StatusCode::kDataLoss, "CORRUPT", "planted, or a defect");
    if (before_read) before_read();
    MutexLock lock(&disk_->mu);
    const auto it = disk_->images.find(info.id);
    if (it == disk_->images.end() || ChecksumOf(it->second.state) != info.checksum) return corrupt;
    *attachment = it->second.attachment;
    for (absl::string_view left = it->second.state; !left.empty();) {
      const absl::StatusOr<absl::Span<char>> room = filler->Room();
      if (!room.ok()) return room.status();
      std::memcpy(room->data(), left.data(), room->size());
      left.remove_prefix(room->size());
      if (absl::Status status = filler->Filled(); !status.ok()) return status;
    }
    return filler->Finish();
  }
  absl::Status DeleteImages(absl::Span<const ImageId> ids) override {
    MutexLock lock(&disk_->mu);
    for (ImageId id : ids) {
      const auto it = disk_->images.find(id);
      if (it == disk_->images.end()) continue;
      disk_->used_bytes -= it->second.state.size() + it->second.attachment.size();
      disk_->images.erase(it);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<ImageId>> ListImages(ImageId after, size_t limit) override {
    std::vector<ImageId> ids;
    MutexLock lock(&disk_->mu);
    for (auto it = disk_->images.upper_bound(after); it != disk_->images.end() && ids.size() < limit; ++it)
      ids.push_back(it->first);
    return ids;
  }
  uint64_t used_bytes() const override {
    MutexLock lock(&disk_->mu);
    return disk_->used_bytes;
  }
  uint64_t budget_bytes() const override { return budget_bytes_; }
  bool failed() const override { return false; }

  // Names are no business of Residency.
  absl::Status Commit(absl::Span<const NameChange>, bool) override { return absl::OkStatus(); }
  absl::Status CommitLayout(const LayoutRecord&) override { return absl::OkStatus(); }
  absl::Status DeleteLayout(TenantId, absl::string_view) override { return absl::OkStatus(); }
  absl::Status CommitCleanStop(absl::string_view) override { return absl::OkStatus(); }
  LastRun last_run() const override { return {}; }
  uint64_t epoch() const override { return epoch_; }
  const std::string& hash_key() const override { return hash_key_; }
  absl::Status LoadLayouts(absl::FunctionRef<absl::Status(LayoutRecord)>) override { return absl::OkStatus(); }
  absl::Status LoadNames(absl::FunctionRef<absl::Status(NameChange)>) override { return absl::OkStatus(); }

  absl::Status put_status;  // of every put; what it put is there, whatever this says
  std::function<void()> before_read, before_put;

 private:
  MemoryDisk* const disk_;
  const uint64_t budget_bytes_;
  uint64_t epoch_;
  const std::string hash_key_ = std::string(32, 'k');
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_TIERS_MEMORY_COLD_STORE_H_
