// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Stand-ins for what core names as interfaces: images on the heap, and a name log whose "disk" outlives it and can lose
// power.
#ifndef STATEPOOL_TESTS_UNIT_CORE_FAKES_H_
#define STATEPOOL_TESTS_UNIT_CORE_FAKES_H_

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/core/error.h"
#include "server/core/image_store.h"
#include "server/core/mutex.h"
#include "server/core/name_log.h"

namespace statepool {

// What survives the death of a store. `synced` survives power loss; `written` only the death of the process.
struct FakeDisk {
  struct Content {
    std::map<std::string, LayoutRecord> layouts;
    std::map<NameKey, std::optional<NameRecord>> names;             // nothing: a corrupt record
    std::map<ImageId, std::pair<std::string, std::string>> images;  // bytes, attachment
    bool clean = false;
    std::string tombstones;
  };
  Mutex mu;
  Content written ABSL_GUARDED_BY(mu);
  Content synced ABSL_GUARDED_BY(mu);
  uint64_t epoch = 0;
  int64_t live_images ABSL_GUARDED_BY(mu) = 0;  // Images in memory, all stores together
  bool detached ABSL_GUARDED_BY(mu) = false;    // the last store ended

  void LosePower() {
    MutexLock lock(&mu);
    written = synced;
  }
};

class FakeImage final : public Image, public std::enable_shared_from_this<FakeImage> {
 public:
  FakeImage(ImageInfo info, FakeDisk* disk, std::optional<std::pair<std::string, std::string>> bytes, bool persisted)
      : Image(std::move(info)), disk_(disk), bytes_(std::move(bytes)), persisted_(persisted) {
    MutexLock lock(&disk_->mu);
    ++disk_->live_images;
  }
  ~FakeImage() override {
    MutexLock lock(&disk_->mu);
    --disk_->live_images;
    if (disk_->detached) return;
    if (heads() != 0) std::abort();
    if (!disowned_) disk_->written.images.erase(info().id);
  }

 private:
  friend class FakeImageStore;
  void HeadsChanged() const override {}
  FakeDisk* const disk_;
  mutable std::optional<std::pair<std::string, std::string>> bytes_;  // nothing: cold
  mutable bool persisted_;
  mutable bool disowned_ = false;
};

class FakeImageStore final : public ImageStore {
 public:
  explicit FakeImageStore(FakeDisk* disk) : disk_(disk), ids_(disk->epoch + 1) {}

  absl::StatusOr<ImageRef> Write(const Op&, LayoutRef layout, const StateBytes& in) override {
    std::string bytes;
    if (in.initial) {
      bytes.resize(layout->state_bytes());
      layout->FillInitial(0, bytes.data(), bytes.size());
    }
    for (absl::string_view piece : in.pieces) bytes.append(piece.data(), piece.size());
    if (in.base != nullptr) {
      std::string part = std::exchange(bytes, std::string(in.base->bytes()));
      if (part.size() != BytesOf(in.ranges)) {
        return Error(absl::StatusCode::kInvalidArgument, "BYTES_LENGTH_MISMATCH", "").Field("data");
      }
      size_t used = 0;
      for (const ByteRange& range : in.ranges) {
        bytes.replace(range.offset, range.bytes, part, used, range.bytes);
        used += range.bytes;
      }
    }
    if (bytes.size() != layout->state_bytes()) {
      return Error(absl::StatusCode::kInvalidArgument, "BYTES_LENGTH_MISMATCH", "").Field("data");
    }
    if (in.expected_checksum.has_value() && *in.expected_checksum != ChecksumOf(bytes)) {
      return Error(absl::StatusCode::kInvalidArgument, "CHECKSUM_MISMATCH", "").Field("checksum");
    }
    ++writes;
    const ImageInfo info{ids_.Next(),
                         kDefaultTenant,
                         layout,
                         ChecksumOf(bytes),
                         ChecksumOf(in.attachment),
                         static_cast<uint32_t>(in.attachment.size())};
    if (first_written == 0) first_written = info.id;
    return ImageRef(std::make_shared<FakeImage>(info, disk_, std::pair(bytes, std::string(in.attachment)), false));
  }

  absl::StatusOr<std::unique_ptr<ImageWriter>> BeginWrite(const Op&, LayoutRef layout, uint64_t,
                                                          const Device*) override {
    while (begin_write_hangs) std::this_thread::yield();
    if (no_room) return absl::Status(Error(absl::StatusCode::kResourceExhausted, "HOT_FULL", ""));
    if (!begin_write_error.ok()) return begin_write_error;
    return std::make_unique<FakeWriter>(this, std::move(layout));
  }

  absl::StatusOr<Pin> Read(const Op&, const ImageRef& image, PinPlace) override {
    ++reads;
    const auto& fake = static_cast<const FakeImage&>(*image);
    MutexLock lock(&disk_->mu);
    if (fake.bytes_.has_value()) return PinOf(fake, image);
    const auto& stored = disk_->written.images.at(image->info().id);
    if (!cold_at_once) fake.bytes_ = stored;
    return std::make_unique<FakePin>(image, stored, &pins);
  }

  std::vector<absl::StatusOr<Pin>> ReadMany(const Op& op, absl::Span<const ImageRef> images, PinPlace place) override {
    std::vector<absl::StatusOr<Pin>> pins;
    for (const ImageRef& image : images) pins.push_back(Read(op, image, place));
    return pins;
  }

  Pin TryRead(const ImageRef& image) override {
    const auto& fake = static_cast<const FakeImage&>(*image);
    MutexLock lock(&disk_->mu);
    if (!fake.bytes_.has_value()) return nullptr;
    return PinOf(fake, image);
  }

  absl::Status Persist(const Op&, const ImageRef& image) override {
    const auto& fake = static_cast<const FakeImage&>(*image);
    MutexLock lock(&disk_->mu);
    if (fake.persisted_) return absl::OkStatus();
    if (!persist_error.ok() && (persist_fails_for == 0 || persist_fails_for == image->info().id)) return persist_error;
    disk_->written.images[image->info().id] = *fake.bytes_;
    fake.persisted_ = true;
    if (cold_at_once) fake.bytes_.reset();
    ++persists;
    return absl::OkStatus();
  }

  absl::Status loss(const Image& image) const override {
    const bool lost = absl::IsDataLoss(persist_error) || ReasonOf(persist_error) == "DEVICE_FAILED";
    return lost && (persist_fails_for == 0 || persist_fails_for == image.info().id) ? persist_error : absl::OkStatus();
  }
  bool persisted(const Image& image) const override {
    MutexLock lock(&disk_->mu);
    return static_cast<const FakeImage&>(image).persisted_;
  }
  Tier tier(const Image& image) const override {
    MutexLock lock(&disk_->mu);
    return static_cast<const FakeImage&>(image).bytes_.has_value() ? Tier::kHot : Tier::kCold;
  }

  ImageRef Adopt(const ImageInfo& info) override {
    if (recovered_) return std::make_shared<FakeImage>(info, disk_, std::nullopt, true);
    ImageRef image = adopted_[info.id].lock();
    if (image == nullptr) {
      image = std::make_shared<FakeImage>(info, disk_, std::nullopt, true);
      adopted_[info.id] = image;
    }
    return image;
  }
  bool Disown(absl::Span<const Image* const> images) override {
    MutexLock lock(&disk_->mu);
    for (const Image* image : images) {
      const auto& fake = static_cast<const FakeImage&>(*image);
      if (!fake.persisted_ || fake.bytes_.has_value() || fake.weak_from_this().use_count() != 1) return false;
    }
    for (const Image* image : images) static_cast<const FakeImage&>(*image).disowned_ = true;
    return true;
  }
  void KeepUnused(ImageId id) override { kept.insert(id); }
  void LayoutDeleted(TenantId, const Layout& layout) override { deleted_layouts.push_back(layout.fingerprint()); }
  void RecoveryDone() override {
    recovered_ = true;
    adopted_.clear();
    // The sweep: what nobody adopted or keeps. Those adopted are among those kept.
    MutexLock lock(&disk_->mu);
    std::erase_if(disk_->written.images, [this](const auto& image) { return !kept.contains(image.first); });
  }
  void Detach() override {
    MutexLock lock(&disk_->mu);
    disk_->detached = true;
  }

  std::atomic<int> writes{0}, reads{0}, persists{0};
  std::atomic<bool> cold_at_once{
      false};                // what is persisted leaves memory, and what is read stays there no longer than its pin
  std::atomic<int> pins{0};  // alive
  std::set<ImageId> kept;
  std::vector<std::string> deleted_layouts;  // fingerprints, as they were told
  ImageId persist_fails_for = 0;             // 0: every image
  std::atomic<ImageId> first_written{0};
  absl::Status persist_error;                  // set to make Persist fail; not while other threads run
  absl::Status begin_write_error;              // of the next ones too
  std::atomic<bool> begin_write_hangs{false};  // as one does that waits for a slow disk
  std::atomic<bool> no_room{false};            // the same, HOT_FULL, also while other threads run

 private:
  class FakeWriter final : public ImageWriter {
   public:
    FakeWriter(FakeImageStore* store, LayoutRef layout) : store_(store), layout_(std::move(layout)) {}
    uint64_t received_bytes() const override { return bytes_.size(); }
    absl::Status Append(absl::Span<const absl::string_view> pieces, Checksum expected) override {
      if (ChecksumOfPieces(pieces) != expected) {
        return Error(absl::StatusCode::kInvalidArgument, "CHECKSUM_MISMATCH", "").Field("checksum");
      }
      for (absl::string_view piece : pieces) bytes_.append(piece.data(), piece.size());
      return absl::OkStatus();
    }
    void Restart() override { bytes_.clear(); }
    char* room() override {
      bytes_.resize(layout_->state_bytes());
      return bytes_.data();
    }
    ImageRef FinishFilled(Checksum checksum, absl::string_view attachment) override {
      return *Finish(checksum, attachment);
    }
    absl::StatusOr<ImageRef> Finish(std::optional<Checksum> expected, absl::string_view attachment) override {
      const absl::string_view piece = bytes_;
      StateBytes bytes;
      bytes.pieces = {&piece, 1};
      bytes.expected_checksum = expected;
      bytes.attachment = attachment;
      return store_->Write(Op(), layout_, bytes);
    }
    absl::Status AddAttachmentRoom(const Op&, uint64_t) override { return absl::OkStatus(); }

   private:
    FakeImageStore* const store_;
    const LayoutRef layout_;
    std::string bytes_;
  };

  class FakePin final : public PinnedImage {
   public:
    FakePin(ImageRef image, std::pair<std::string, std::string> bytes, std::atomic<int>* pins)
        : image_(std::move(image)), bytes_(std::move(bytes)), pins_(pins) {
      ++*pins_;
    }
    ~FakePin() override { --*pins_; }
    uint64_t size() const override { return bytes_.first.size(); }
    const char* data() const override { return bytes_.first.data(); }
    bool in_host_memory() const override { return true; }
    absl::Status CopyOut(uint64_t offset, uint64_t bytes, char* to) const override {
      bytes_.first.copy(to, bytes, offset);
      return absl::OkStatus();
    }
    absl::string_view attachment() const override { return bytes_.second; }

   private:
    ImageRef image_;
    std::pair<std::string, std::string> bytes_;
    std::atomic<int>* const pins_;
  };
  Pin PinOf(const FakeImage& fake, const ImageRef& image) {
    return std::make_unique<FakePin>(image, *fake.bytes_, &pins);
  }

  FakeDisk* const disk_;
  IdSource ids_;
  bool recovered_ = false;
  std::map<ImageId, std::weak_ptr<const Image>> adopted_;
};

class FakeNameLog final : public NameLog {
 public:
  explicit FakeNameLog(FakeDisk* disk) : disk_(disk) {
    MutexLock lock(&disk_->mu);
    last_run_ = {disk_->epoch > 0, disk_->written.clean, disk_->written.tombstones};
    disk_->written.clean = disk_->synced.clean = false;
    disk_->detached = false;
    epoch_ = ++disk_->epoch;
  }

  absl::Status Commit(absl::Span<const NameChange> changes, bool sync) override {
    if (before_commit) before_commit(changes);
    absl::Status status = Put(changes, sync);
    if (after_commit) after_commit();
    return status;
  }
  absl::Status CommitLayout(const LayoutRecord& layout) override {
    MutexLock lock(&disk_->mu);
    disk_->written.layouts[layout.canonical] = layout;
    disk_->synced = disk_->written;
    return absl::OkStatus();
  }
  absl::Status DeleteLayout(TenantId, absl::string_view fingerprint) override {
    MutexLock lock(&disk_->mu);
    for (auto it = disk_->written.layouts.begin(); it != disk_->written.layouts.end(); ++it) {
      if ((*Layout::FromCanonical(it->first))->fingerprint() != fingerprint) continue;
      disk_->written.layouts.erase(it);
      break;
    }
    disk_->synced = disk_->written;
    return absl::OkStatus();
  }
  absl::Status CommitCleanStop(absl::string_view tombstones) override {
    MutexLock lock(&disk_->mu);
    disk_->written.clean = true;
    disk_->written.tombstones = std::string(tombstones);
    disk_->synced = disk_->written;
    return absl::OkStatus();
  }

  LastRun last_run() const override { return last_run_; }
  uint64_t epoch() const override { return epoch_; }
  const std::string& hash_key() const override { return hash_key_; }
  absl::Status LoadLayouts(absl::FunctionRef<absl::Status(LayoutRecord)> visit) override {
    for (const auto& [canonical, record] : Written().layouts) {
      if (absl::Status s = visit(record); !s.ok()) return s;
    }
    return absl::OkStatus();
  }
  absl::Status LoadNames(absl::FunctionRef<absl::Status(NameChange)> visit) override {
    for (const auto& [key, record] : Written().names) {
      if (absl::Status s = visit({key, record}); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  std::atomic<int> commits{0};
  absl::Status commit_error;  // set to make Commit fail; not while other threads run
  // Called round each Commit, without any lock; may call the store. Not while other threads run.
  std::function<void(absl::Span<const NameChange>)> before_commit;
  std::function<void()> after_commit;

 private:
  absl::Status Put(absl::Span<const NameChange> changes, bool sync) {
    MutexLock lock(&disk_->mu);
    ++commits;
    if (!commit_error.ok()) return commit_error;
    for (const NameChange& change : changes) {
      if (!change.record.has_value()) {
        disk_->written.names.erase(change.key);
        continue;
      }
      for (const RecordedVersion& v : change.record->versions) {
        if (!disk_->written.images.contains(v.image)) std::abort();  // a record before its image
      }
      disk_->written.names[change.key] = change.record;
    }
    if (sync) disk_->synced = disk_->written;
    return absl::OkStatus();
  }
  FakeDisk::Content Written() {
    MutexLock lock(&disk_->mu);
    return disk_->written;
  }
  FakeDisk* const disk_;
  const std::string hash_key_ = std::string(32, 'k');
  LastRun last_run_;
  uint64_t epoch_;
};

}  // namespace statepool

#endif  // STATEPOOL_TESTS_UNIT_CORE_FAKES_H_
