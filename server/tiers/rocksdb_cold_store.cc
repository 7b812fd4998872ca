// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/tiers/rocksdb_cold_store.h"

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/listener.h>
#include <sys/random.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/core/error.h"
#include "server/tiers/record_codec.h"
#include "server/tiers/rocksdb_options.h"
#include "server/tiers/witness.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

constexpr uint64_t kFormat = 2;
// Images from this size on have an extent of their own (ImageFiles). Smaller ones lie in the database: an extent's last
// block would cost too much, and its sync as well.
constexpr uint64_t kExtentBytesMin = 64 << 10;
// What images leave free on the disk; of a small disk a share. So records can be written when no image can; they leave
// half of it, so that deletions can, and the next start: that needs as much as the log has, and the log is a quarter.
constexpr uint64_t kReserveBytesMax = 256 << 20;
constexpr uint64_t kReserveShare = 16;
constexpr uint64_t kLogBytesMin = 256 << 10;
constexpr uint64_t kBesideBytesMax = 4 << 20;  // what a start needs beside the log's size
constexpr uint64_t kProbeBytes = 1 << 20;
constexpr int kStuckMax = 5;
constexpr absl::Duration kResumeInterval = absl::Milliseconds(200);

// Column families, in the order in which they are opened. "default" is the meta table.
constexpr std::array<const char*, 5> kFamilies = {"default", "layouts", "names", "manifests", "images"};

constexpr char kFormatKey[] = "format";
constexpr char kEpochKey[] = "epoch";
constexpr char kHashKeyKey[] = "hash_key";
constexpr char kCleanStopKey[] = "clean_stop";
constexpr size_t kHashKeyBytes = 32;

// Of whoever reads or fills the state, and not of files.
bool HasReason(const absl::Status& status) { return ReasonOf(status) != "INTERNAL"; }

rocksdb::Slice ToSlice(absl::string_view s) { return {s.data(), s.size()}; }
absl::string_view FromSlice(const rocksdb::Slice& s) { return {s.data(), s.size()}; }

absl::Status Corrupt(absl::string_view message) { return Error(absl::StatusCode::kDataLoss, "CORRUPT", message); }
absl::Status CorruptImage(ImageId id, absl::string_view message) {
  return Error(absl::StatusCode::kDataLoss, "CORRUPT", message).Meta("image", id);
}
absl::Status DiskFailed(absl::string_view message) {
  return Error(absl::StatusCode::kUnavailable, "DISK_FAILED", message);
}
absl::Status Unusable(absl::string_view reason, absl::string_view message) {
  return Error(absl::StatusCode::kFailedPrecondition, reason, message);
}

ImageManifest ManifestOf(const ImageInfo& info, ImagePlace place) {
  return {.state_bytes = info.layout->state_bytes(),
          .checksum = info.checksum,
          .attachment_bytes = info.attachment_bytes,
          .attachment_checksum = info.attachment_checksum,
          .place = place};
}

// Bytes of an image's extent, if it has one: the state, its leaves' hashes, the attachment.
uint64_t ExtentBytes(const ImageManifest& manifest) {
  return manifest.state_bytes + LeafCount(manifest.state_bytes) * sizeof(LeafHash) + manifest.attachment_bytes;
}

absl::string_view AsBytes(absl::Span<const LeafHash> leaves) {
  return {reinterpret_cast<const char*>(leaves.data()), leaves.size() * sizeof(LeafHash)};
}

// The process has no descriptor, or no memory, to spare.
absl::Status TooBusy(const absl::Status& status) {
  return Error(absl::StatusCode::kResourceExhausted, "ADMISSION",
               absl::StrCat("the daemon can't open its files now: ", status.message(),
                            "; retry, connect less often, or raise its limit of open files"))
      .Meta("limit", static_cast<uint64_t>(sysconf(_SC_OPEN_MAX)))
      .RetryAfter(absl::Milliseconds(200));
}

bool IsLockHeld(const rocksdb::Status& status) {
  // RocksDB has no code for it; these are the three ways in which its environments say it.
  const std::string message = absl::AsciiStrToLower(status.ToString());
  return absl::StrContains(message, "lock hold by current process") || absl::StrContains(message, "while lock file") ||
         absl::StrContains(message, "lock is already held");
}

}  // namespace

// Hears of background errors, which no caller sees, and of every change of the manifest.
class RocksDbColdStore::Listener final : public rocksdb::EventListener {
 public:
  explicit Listener(RocksDbColdStore* store) : store_(store) {}
  void OnBackgroundError(rocksdb::BackgroundErrorReason, rocksdb::Status* error) override {
    if (error->severity() >= rocksdb::Status::Severity::kHardError) store_->FromWrite(*error).IgnoreError();
  }
  void OnFlushCompleted(rocksdb::DB* db, const rocksdb::FlushJobInfo&) override { store_->Witness(db); }
  void OnCompactionCompleted(rocksdb::DB* db, const rocksdb::CompactionJobInfo&) override { store_->Witness(db); }

 private:
  RocksDbColdStore* const store_;
};

// ----
// opening

absl::StatusOr<std::unique_ptr<RocksDbColdStore>> RocksDbColdStore::Open(RocksDbColdStoreOptions options) {
  std::unique_ptr<RocksDbColdStore> store(new RocksDbColdStore(std::move(options)));
  if (absl::Status status = store->OpenDatabase(); !status.ok()) return status;
  if (absl::Status status = store->ReadMeta(); !status.ok()) return status;
  if (absl::Status status = store->OpenFiles(); !status.ok()) return status;
  store->opened_ = true;
  store->Witness(store->db_.get());
  store->collector_ = std::thread(&RocksDbColdStore::CollectLoop, store.get());
  return store;
}

RocksDbColdStore::RocksDbColdStore(RocksDbColdStoreOptions options)
    : options_(std::move(options)),
      env_(options_.env != nullptr ? options_.env : rocksdb::Env::Default()),
      synced_logs_(options_.path) {}

RocksDbColdStore::~RocksDbColdStore() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    wake_.SignalAll();
  }
  cancel_collection_ = true;
  if (collector_.joinable()) collector_.join();
  if (db_ != nullptr) {
    rocksdb::CancelAllBackgroundWork(db_.get(), /*wait=*/true);
    for (rocksdb::ColumnFamilyHandle* family : families_) db_->DestroyColumnFamilyHandle(family).PermitUncheckedError();
    db_->Close().PermitUncheckedError();
    db_.reset();
  }
  if (lock_ != nullptr) env_->UnlockFile(lock_).PermitUncheckedError();
}

absl::Status RocksDbColdStore::OpenDatabase() {
  const bool is_new = env_->FileExists(options_.path).IsNotFound();
  if (rocksdb::Status status = env_->CreateDirIfMissing(options_.path); !status.ok()) {
    return Unusable("DATA_DIR_UNUSABLE", absl::StrCat("data directory ", options_.path, ": ", status.ToString()));
  }
  if (rocksdb::Status status = env_->LockFile(options_.path + "/LOCK", &lock_); !status.ok()) {
    lock_ = nullptr;
    if (IsLockHeld(status))
      return Unusable("DATA_DIR_LOCKED", absl::StrCat("another daemon has the data directory ", options_.path));
    return Unusable("DATA_DIR_UNUSABLE", absl::StrCat("data directory ", options_.path, ": ", status.ToString()));
  }

  if (absl::Status status = CheckWitness(env_, options_.path, &least_epoch_); !status.ok()) return status;
  if (absl::Status status = synced_logs_.Check(); !status.ok()) return status;
  if (struct statvfs disk; statvfs(options_.path.c_str(), &disk) == 0)
    reserve_bytes_ = std::min(kReserveBytesMax, disk.f_blocks * disk.f_frsize / kReserveShare);
  if (absl::Status status = CheckSpaceToStart(); !status.ok()) return status;
  db_env_ = synced_logs_.Follow(env_);
  const RocksDbMemory memory{options_.image_memtable_bytes, rocksdb::NewLRUCache(options_.block_cache_bytes)};
  rocksdb::DBOptions db_options = MakeDbOptions(db_env_.get(), memory);
  if (reserve_bytes_ > 0)
    db_options.max_total_wal_size =
        std::clamp(reserve_bytes_ / 4, kLogBytesMin, static_cast<uint64_t>(db_options.max_total_wal_size));
  db_options.listeners = {std::make_shared<Listener>(this)};
  const std::string path = options_.path + "/db";
  std::vector<std::string> existing;
  env_->CreateDirIfMissing(path).PermitUncheckedError();  // else RocksDB warns that there is none
  if (env_->FileExists(path + "/CURRENT").ok() && rocksdb::DB::ListColumnFamilies(db_options, path, &existing).ok()) {
    for (const std::string& name : existing) {
      if (std::find(kFamilies.begin(), kFamilies.end(), name) != kFamilies.end()) continue;
      return Unusable("FORMAT_UNKNOWN", absl::StrCat("data directory ", options_.path, " has a table '", name,
                                                     "': a newer version wrote it"));
    }
  }
  const rocksdb::ColumnFamilyOptions records = MakeRecordOptions(memory);
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  for (const char* name : kFamilies)
    descriptors.emplace_back(name, name == kFamilies.back() ? MakeImageOptions(memory) : records);
  rocksdb::DB* db = nullptr;
  rocksdb::Status status = rocksdb::DB::Open(db_options, path, descriptors, &families_, &db);
  if (status.IsCorruption()) return Corrupt(absl::StrCat("data directory ", options_.path, ": ", status.ToString()));
  if (status.IsNoSpace()) return FromWrite(status);
  if (!status.ok())
    return Unusable("DATA_DIR_UNUSABLE", absl::StrCat("data directory ", options_.path, ": ", status.ToString()));
  db_.reset(db);
  // RocksDB syncs what it makes inside its directory, but nobody that the directory itself is there.
  if (absl::Status synced = SyncDirectory(options_.path); !synced.ok()) return synced;
  // At every start: the one that made it may have ended here. It may be a directory that we can't read.
  const std::string parent = std::filesystem::path(options_.path).lexically_normal().parent_path();
  if (absl::Status synced = SyncDirectory(parent.empty() ? "." : parent); !synced.ok() && is_new) return synced;
  meta_ = families_[0];
  layouts_ = families_[1];
  names_ = families_[2];
  manifests_ = families_[3];
  images_ = families_[4];
  return absl::OkStatus();
}

absl::Status RocksDbColdStore::SyncDirectory(const std::string& path) {
  std::unique_ptr<rocksdb::Directory> directory;
  rocksdb::Status status = env_->NewDirectory(path, &directory);
  if (status.ok()) status = directory->Fsync();
  if (status.ok()) return absl::OkStatus();
  return Unusable("DATA_DIR_UNUSABLE", absl::StrCat("syncing the directory ", path, ": ", status.ToString()));
}

// Opening writes the log's contents into tables. RocksDB (7.8) aborts when the disk fills up in the middle of that.
absl::Status RocksDbColdStore::CheckSpaceToStart() {
  const uint64_t beside_bytes = reserve_bytes_ > 0 ? std::min(kBesideBytesMax, reserve_bytes_ / 8) : kBesideBytesMax;
  std::vector<rocksdb::Env::FileAttributes> files;
  uint64_t log_bytes = 0;
  if (env_->GetChildrenFileAttributes(options_.path + "/db", &files).ok()) {
    for (const auto& file : files) {
      if (absl::EndsWith(file.name, ".log")) log_bytes += file.size_bytes;
    }
  }
  uint64_t free_bytes = 0;
  if (!env_->GetFreeSpace(options_.path, &free_bytes).ok()) return absl::OkStatus();  // not every file system tells
  if (free_bytes >= log_bytes + beside_bytes) return absl::OkStatus();
  return Error(absl::StatusCode::kResourceExhausted, "COLD_FULL",
               absl::StrCat("the disk of ", options_.path, " has ", free_bytes, " bytes free, and a start needs ",
                            log_bytes + beside_bytes));
}

absl::Status RocksDbColdStore::ReadMeta() {
  // A value, nothing when it is absent, or CORRUPT.
  const auto read = [this](absl::string_view key,
                           auto decode) -> absl::StatusOr<decltype(decode(key, absl::string_view()))> {
    std::string value;
    const rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), meta_, ToSlice(key), &value);
    if (status.IsNotFound()) return std::nullopt;
    if (!status.ok()) return FromRead(status);
    auto decoded = decode(key, value);
    if (!decoded) return Corrupt(absl::StrCat("the record '", key, "' of the data directory is damaged"));
    return decoded;
  };
  const auto format = read(kFormatKey, DecodeMetaNumber);
  const auto epoch = read(kEpochKey, DecodeMetaNumber);
  const auto hash_key = read(kHashKeyKey, DecodeMeta);
  const auto clean_stop = read(kCleanStopKey, DecodeMeta);
  if (!format.ok()) return format.status();
  if (*format && **format != kFormat) {
    return Unusable("FORMAT_UNKNOWN", absl::StrCat("data directory ", options_.path, " has format ", **format,
                                                   "; this version reads ", kFormat));
  }
  for (const absl::Status& status : {epoch.status(), hash_key.status(), clean_stop.status()}) {
    if (!status.ok()) return status;
  }
  last_run_.existed = format->has_value();
  if (last_run_.existed && (!*epoch || !*hash_key || (*hash_key)->size() != kHashKeyBytes)) {
    return Corrupt("the data directory lacks its epoch or its hash key");
  }
  if (least_epoch_ > (last_run_.existed ? **epoch : 0)) {
    return Corrupt(absl::StrCat("the database of ", options_.path, " is older than it was: epoch ",
                                last_run_.existed ? **epoch : 0, ", and there was ", least_epoch_,
                                "; bring the whole directory back from a copy"));
  }
  last_run_.clean = clean_stop->has_value();
  if (last_run_.clean) last_run_.tombstones = **clean_stop;

  rocksdb::WriteBatch batch;
  if (last_run_.existed) {
    epoch_ = **epoch + 1;
    hash_key_ = **hash_key;
  } else {
    epoch_ = 1;
    hash_key_.resize(kHashKeyBytes);
    if (getrandom(hash_key_.data(), hash_key_.size(), 0) != static_cast<ssize_t>(hash_key_.size())) {
      return absl::InternalError("no random bytes for the hash key");
    }
    batch.Put(meta_, kFormatKey, EncodeMetaNumber(kFormatKey, kFormat));
    batch.Put(meta_, kHashKeyKey, EncodeMeta(kHashKeyKey, hash_key_));
  }
  batch.Put(meta_, kEpochKey, EncodeMetaNumber(kEpochKey, epoch_));
  batch.Delete(meta_, kCleanStopKey);
  if (absl::Status status = Write(&batch, /*sync=*/true); !status.ok()) return status;
  // Out of the log: damage to it must not give an epoch out twice, nor bring the mark back.
  return FromWrite(db_->Flush(rocksdb::FlushOptions(), meta_));
}

// Files of images, and what is in them.
absl::Status RocksDbColdStore::OpenFiles() {
  absl::StatusOr<std::unique_ptr<ImageFiles>> files =
      ImageFiles::Open(options_.path + "/images", epoch_ << kCounterBits | 1);
  if (!files.ok()) return Unusable("DATA_DIR_UNUSABLE", files.status().message());
  files_ = *std::move(files);
  if (absl::Status synced = SyncDirectory(options_.path); !synced.ok()) return synced;

  const auto it = Scan(manifests_);
  uint64_t used = 0;
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    const auto manifest = DecodeManifest(FromSlice(it->key()), FromSlice(it->value()));
    if (!manifest) continue;  // where its bytes are nobody knows any more
    used += manifest->state_bytes + manifest->attachment_bytes;
    if (manifest->place.file != 0) files_->Adopt(manifest->place, ExtentBytes(*manifest));
  }
  used_bytes_ = used;
  return FromRead(it->status());
}

void RocksDbColdStore::Witness(rocksdb::DB* db) {
  if (!opened_) return;
  MutexLock lock(&witness_mu_);
  if (absl::Status status = WriteWitness(env_, options_.path, db, epoch_); !status.ok())
    spdlog::warn("the database's witness was not written: {}", std::string(status.message()));
}

// ----
// errors

void RocksDbColdStore::Fail(const absl::Status& status) {
  if (failed_.exchange(true)) return;
  spdlog::critical("the disk failed: {}", status.ToString());
  if (options_.on_failed) options_.on_failed(status);
}

absl::Status RocksDbColdStore::FromWrite(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (status.IsNoSpace()) {
    return Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "the disk is full")
        .Meta("limit", options_.budget_bytes)
        .RetryAfter(absl::Seconds(1));
  }
  // What a failed write left in the log is unknown, so no later write may be built on it.
  const absl::Status failed = DiskFailed(status.ToString());
  Fail(failed);
  return failed;
}

absl::Status RocksDbColdStore::FromFiles(const absl::Status& status) {
  if (status.ok()) return status;
  if (absl::IsResourceExhausted(status)) return FromWrite(rocksdb::Status::NoSpace());
  if (absl::IsAborted(status)) return TooBusy(status);
  const absl::Status failed = DiskFailed(status.message());
  Fail(failed);
  return failed;
}

absl::Status RocksDbColdStore::FromRead(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (status.IsCorruption()) return Corrupt(status.ToString());
  return DiskFailed(status.ToString());
}

absl::Status RocksDbColdStore::Write(rocksdb::WriteBatch* batch, bool sync) {
  if (failed()) return DiskFailed("the disk failed earlier");
  rocksdb::WriteOptions options;
  options.sync = sync;
  rocksdb::Status status = db_->Write(options, batch);
  if (status.IsNoSpace() && TryResume()) status = db_->Write(options, batch);
  if (failed()) return DiskFailed("the disk failed");
  return FromWrite(status);
}

// RocksDB (7.8) looks every 5 s whether there is space again. It gives up for good when a try of its own meets a full
// disk, as where a quota is full that the file system does not tell: then only a start helps, once there is space.
bool RocksDbColdStore::TryResume() {
  if (!CheckFreeSpace(0, reserve_bytes_ / 2).ok()) return false;
  {
    MutexLock lock(&mu_);
    const absl::Time now = absl::Now();
    if (now >= resumed_at_ && now < resumed_at_ + kResumeInterval) return false;
    resumed_at_ = now;
  }
  const rocksdb::Status status = db_->Resume();
  const bool is_stuck = status.IsNoSpace() && HasSpace();  // or there is space only since
  {
    MutexLock lock(&mu_);
    stuck_ = is_stuck ? stuck_ + 1 : 0;
    if (stuck_ < kStuckMax) return status.ok();
  }
  Fail(DiskFailed("there is space again, but RocksDB can't go on after a full disk: the next start will"));
  return false;
}

bool RocksDbColdStore::HasSpace() {
  const std::string probe = options_.path + "/PROBE";
  const bool fits = rocksdb::WriteStringToFile(env_, std::string(kProbeBytes, 0), probe).ok();
  env_->DeleteFile(probe).PermitUncheckedError();
  return fits;
}

absl::Status RocksDbColdStore::CheckFreeSpace(uint64_t bytes, uint64_t reserve) const {
  struct statvfs disk;
  if (statvfs(options_.path.c_str(), &disk) != 0) return absl::OkStatus();  // the write will tell
  const uint64_t free_bytes = disk.f_bavail * disk.f_frsize;
  if (free_bytes >= bytes + reserve) return absl::OkStatus();
  return Error(absl::StatusCode::kResourceExhausted, "COLD_FULL",
               absl::StrCat("the disk is full: ", free_bytes, " bytes are free, and the last ", reserve,
                            " are kept for what must still be written; free some space"))
      .Meta("limit", options_.budget_bytes)
      .RetryAfter(absl::Seconds(1));
}

std::unique_ptr<rocksdb::Iterator> RocksDbColdStore::Scan(rocksdb::ColumnFamilyHandle* family) {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  options.readahead_size = 1 << 20;
  return std::unique_ptr<rocksdb::Iterator>(db_->NewIterator(options, family));
}

// ----
// images

absl::Status RocksDbColdStore::PutImage(const ImageInfo& info, StateReader* state, absl::Span<const LeafHash> leaves,
                                        absl::string_view attachment) {
  assert(state->left() == info.layout->state_bytes() && leaves.size() == LeafCount(state->bytes()));
  assert(attachment.size() == info.attachment_bytes);
  const uint64_t bytes = state->bytes() + attachment.size();
  uint64_t used = used_bytes_.load();
  do {
    if (used > options_.budget_bytes || bytes > options_.budget_bytes - used) {
      return Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "the cold budget is used up")
          .Meta("limit", options_.budget_bytes)
          .RetryAfter(absl::Seconds(1));
    }
  } while (!used_bytes_.compare_exchange_weak(used, used + bytes));

  absl::Status status = CheckFreeSpace(bytes, reserve_bytes_);
  if (status.ok()) status = PutBytes(info, state, leaves, attachment);
  if (!status.ok()) used_bytes_ -= bytes;
  return status;
}

absl::Status RocksDbColdStore::PutBytes(const ImageInfo& info, StateReader* state, absl::Span<const LeafHash> leaves,
                                        absl::string_view attachment) {
  if (failed()) return DiskFailed("the disk failed earlier");
  const std::string key = EncodeImageKey(info.id);
  rocksdb::WriteBatch batch;
  if (state->bytes() + attachment.size() < kExtentBytesMin) {
    const absl::StatusOr<absl::string_view> bytes = state->Next();  // smaller than any piece
    if (!bytes.ok()) return bytes.status();
    const rocksdb::Slice key_parts[] = {key};
    const rocksdb::Slice value_parts[] = {ToSlice(*bytes), ToSlice(attachment)};
    batch.Put(images_, rocksdb::SliceParts(key_parts, 1), rocksdb::SliceParts(value_parts, 2));
    batch.Put(manifests_, key, EncodeManifest(key, ManifestOf(info, ImagePlace{})));
    return Write(&batch, /*sync=*/false);
  }
  const absl::StatusOr<ImagePlace> place = files_->Append(state, absl::StrCat(AsBytes(leaves), attachment));
  if (!place.ok()) return HasReason(place.status()) ? place.status() : FromFiles(place.status());
  const ImageManifest manifest = ManifestOf(info, *place);
  {
    MutexLock lock(&mu_);
    unsynced_.insert(info.id);
  }
  batch.Put(manifests_, key, EncodeManifest(key, manifest));
  absl::Status status = Write(&batch, /*sync=*/false);
  if (status.ok()) return status;
  files_->Free(*place, ExtentBytes(manifest));
  MutexLock lock(&mu_);
  unsynced_.erase(info.id);
  return status;
}

absl::Status RocksDbColdStore::ReadImage(const ImageInfo& info, StateFiller* state, std::string* attachment) {
  rocksdb::ReadOptions options;
  // RocksDB parses index blocks before our checksums see anything: a damaged one must not get that far.
  options.verify_checksums = true;
  options.fill_cache = false;
  const std::string key = EncodeImageKey(info.id);
  rocksdb::PinnableSlice value;
  rocksdb::Status status = db_->Get(options, manifests_, key, &value);
  if (status.IsNotFound()) return CorruptImage(info.id, "the image is missing");
  if (!status.ok()) return CorruptImage(info.id, status.ToString());
  const auto manifest = DecodeManifest(key, FromSlice(value));
  if (!manifest || *manifest != ManifestOf(info, manifest->place))
    return CorruptImage(info.id, "the image's manifest is damaged or another's");

  const uint64_t state_bytes = manifest->state_bytes;
  if (manifest->place.file != 0) {
    const size_t leaf_bytes = LeafCount(state_bytes) * sizeof(LeafHash);
    std::string tail(leaf_bytes + manifest->attachment_bytes, 0);
    std::vector<LeafHash> leaves;
    if (absl::Status read = files_->Read(manifest->place, state, &leaves, &tail); !read.ok()) {
      if (HasReason(read)) return read;
      return absl::IsAborted(read) ? TooBusy(read) : CorruptImage(info.id, read.message());
    }
    if (HashRoot(leaves) != info.checksum) {
      // The hashes beside the state tell where it is damaged; they prove nothing.
      size_t leaf = 0;
      while (leaf + 1 < leaves.size() && AsBytes({&leaves[leaf], 1}) == tail.substr(leaf * sizeof(LeafHash), 8)) ++leaf;
      return CorruptImage(info.id, absl::StrCat("the image fails its checksum from about byte ", leaf * kLeafBytes));
    }
    attachment->assign(tail, leaf_bytes, std::string::npos);
  } else {
    value.Reset();
    status = db_->Get(options, images_, key, &value);
    if (status.IsNotFound()) return CorruptImage(info.id, "the image's bytes are missing");
    if (!status.ok()) return CorruptImage(info.id, status.ToString());
    const absl::string_view bytes = FromSlice(value);
    if (bytes.size() != state_bytes + manifest->attachment_bytes)
      return CorruptImage(info.id, "the image has the wrong length");
    if (ChecksumOf(bytes.substr(0, state_bytes)) != info.checksum)
      return CorruptImage(info.id, "the image fails its checksum");
    const absl::StatusOr<absl::Span<char>> room = state->Room();
    if (!room.ok()) return room.status();
    std::memcpy(room->data(), bytes.data(), state_bytes);
    if (absl::Status filled = state->Filled(); !filled.ok()) return filled;
    *attachment = std::string(bytes.substr(state_bytes));
  }
  if (ChecksumOf(*attachment) != info.attachment_checksum)
    return CorruptImage(info.id, "the attachment fails its checksum");
  return state->Finish();
}

absl::Status RocksDbColdStore::DeleteImages(absl::Span<const ImageId> ids) {
  rocksdb::WriteBatch batch;
  std::vector<ImageManifest> deleted;
  uint64_t bytes = 0, bytes_in_database = 0;
  for (ImageId id : ids) {
    const std::string key = EncodeImageKey(id);
    std::string value;
    const rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), manifests_, key, &value);
    if (status.IsNotFound()) continue;
    if (!status.ok()) return FromRead(status);
    batch.Delete(manifests_, key);
    const auto manifest = DecodeManifest(key, value);
    // With a damaged manifest its bytes may be anywhere; those in a file are found by the sweep of the next start.
    if (!manifest || manifest->place.file == 0) batch.Delete(images_, key);
    if (!manifest) continue;
    bytes += manifest->state_bytes + manifest->attachment_bytes;
    if (manifest->place.file != 0) {
      deleted.push_back(*manifest);
    } else {
      bytes_in_database += manifest->state_bytes + manifest->attachment_bytes;
    }
  }
  // Synced, and with it what made them garbage: an extent that is given back may not be needed after a power cut.
  if (absl::Status status = Write(&batch, /*sync=*/!deleted.empty()); !status.ok()) return status;
  for (const ImageManifest& manifest : deleted) files_->Free(manifest.place, ExtentBytes(manifest));
  used_bytes_ -= bytes;
  MutexLock lock(&mu_);
  for (ImageId id : ids) unsynced_.erase(id);
  deleted_bytes_ += bytes_in_database;
  wake_.SignalAll();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ImageId>> RocksDbColdStore::ListImages(ImageId after, size_t limit) {
  std::vector<ImageId> ids;
  const auto it = Scan(manifests_);
  for (it->Seek(EncodeImageKey(after + 1)); it->Valid() && ids.size() < limit; it->Next()) {
    if (const auto id = DecodeImageKey(FromSlice(it->key()))) ids.push_back(*id);
  }
  if (absl::Status status = FromRead(it->status()); !status.ok()) return status;
  return ids;
}

// ----
// space

void RocksDbColdStore::CollectLoop() {
  if (absl::Status status = files_->Sweep(cancel_collection_); !status.ok())
    spdlog::warn("giving back the space of images that nobody needs: {}", std::string(status.message()));
  MutexLock lock(&mu_);
  while (!stopping_) {
    if (deleted_bytes_ < std::max(options_.collect_min_bytes, used_bytes() / 4)) {
      wake_.Wait(&mu_);
      continue;
    }
    deleted_bytes_ = 0;
    MutexUnlock unlock(&mu_);
    if (absl::Status status = CollectGarbage(); !status.ok() && !cancel_collection_) {
      spdlog::warn("collecting the space of deleted images: {}", status.ToString());
    }
  }
}

absl::Status RocksDbColdStore::CollectGarbage() {
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.canceled = &cancel_collection_;
  // First the references alone: only then is it known which blobs are garbage, and files that are nothing else go by
  // themselves.
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
  rocksdb::Status status = db_->CompactRange(options, images_, nullptr, nullptr);
  uint64_t blob_bytes = 0, garbage_bytes = 0;
  if (status.ok() && db_->GetIntProperty(images_, rocksdb::DB::Properties::kLiveBlobFileSize, &blob_bytes) &&
      db_->GetIntProperty(images_, rocksdb::DB::Properties::kLiveBlobFileGarbageSize, &garbage_bytes) &&
      garbage_bytes >= options_.collect_min_bytes && garbage_bytes >= blob_bytes / 2) {
    options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
    options.blob_garbage_collection_age_cutoff = 1.0;
    options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
    status = db_->CompactRange(options, images_, nullptr, nullptr);
  }
  if (status.ok()) return absl::OkStatus();
  // No write of ours: a full disk or a cancelled run is nothing to stop for, and background errors reach the Listener.
  return absl::UnavailableError(status.ToString());
}

// ----
// names

absl::Status RocksDbColdStore::SyncImagesOf(absl::Span<const NameChange> changes) {
  std::vector<ImageId> unsynced;
  {
    MutexLock lock(&mu_);
    bool needed = false;
    for (const NameChange& change : changes) {
      if (!change.record.has_value() || needed) continue;
      needed = std::any_of(change.record->versions.begin(), change.record->versions.end(),
                           [&](const RecordedVersion& version)
                               ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return unsynced_.contains(version.image); });
    }
    if (!needed) return absl::OkStatus();
    unsynced.assign(unsynced_.begin(), unsynced_.end());
  }
  if (absl::Status status = FromFiles(files_->Sync()); !status.ok()) return status;
  MutexLock lock(&mu_);
  for (ImageId id : unsynced) unsynced_.erase(id);
  return absl::OkStatus();
}

absl::Status RocksDbColdStore::Commit(absl::Span<const NameChange> changes, bool sync) {
  if (std::any_of(changes.begin(), changes.end(), [](const NameChange& change) { return change.record.has_value(); })) {
    if (absl::Status status = CheckFreeSpace(0, reserve_bytes_ / 2); !status.ok()) return status;
  }
  // Before the record, whether that is synced or not: it may survive by chance.
  if (absl::Status status = SyncImagesOf(changes); !status.ok()) return status;
  rocksdb::WriteBatch batch;
  for (const NameChange& change : changes) {
    const std::string key = EncodeNameKey(change.key);
    if (!change.record) {
      batch.Delete(names_, key);
      continue;
    }
    assert(change.record->key == change.key && !change.record->versions.empty());
    batch.Put(names_, key, EncodeNameRecord(key, *change.record));
  }
  return Write(&batch, sync);
}

absl::Status RocksDbColdStore::CommitLayout(const LayoutRecord& record) {
  const absl::StatusOr<LayoutRef> layout = Layout::FromCanonical(record.canonical);
  if (!layout.ok()) return layout.status();
  const std::string key = EncodeLayoutKey(record.tenant, (*layout)->fingerprint());
  rocksdb::WriteBatch batch;
  batch.Put(layouts_, key, EncodeLayoutRecord(key, record));
  return Write(&batch, /*sync=*/true);
}

absl::Status RocksDbColdStore::DeleteLayout(TenantId tenant, absl::string_view fingerprint) {
  rocksdb::WriteBatch batch;
  batch.Delete(layouts_, EncodeLayoutKey(tenant, fingerprint));
  return Write(&batch, /*sync=*/true);
}

absl::Status RocksDbColdStore::CommitCleanStop(absl::string_view tombstones) {
  // What was recorded must not hang on the log any longer: after an orderly stop, damage to it costs the mark at most.
  if (failed()) return DiskFailed("the disk failed earlier");
  if (absl::Status status = FromWrite(db_->Flush(rocksdb::FlushOptions(), families_)); !status.ok()) return status;
  Witness(db_.get());  // the listener may be late
  rocksdb::WriteBatch batch;
  batch.Put(meta_, kCleanStopKey, EncodeMeta(kCleanStopKey, tombstones));
  const absl::Status status = Write(&batch, /*sync=*/true);
  if (status.ok()) synced_logs_.Forget();
  return status;
}

absl::Status RocksDbColdStore::LoadLayouts(absl::FunctionRef<absl::Status(LayoutRecord)> visit) {
  const auto it = Scan(layouts_);
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    auto record = DecodeLayoutRecord(FromSlice(it->key()), FromSlice(it->value()));
    if (!record) {  // names that have it will be found to lack their layout
      spdlog::error("a layout's record is damaged");
      continue;
    }
    if (absl::Status status = visit(*std::move(record)); !status.ok()) return status;
  }
  return FromRead(it->status());
}

absl::Status RocksDbColdStore::LoadNames(absl::FunctionRef<absl::Status(NameChange)> visit) {
  const auto it = Scan(names_);
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    std::optional<NameKey> key = DecodeNameKey(FromSlice(it->key()));
    if (!key) {
      spdlog::error("a name's key is damaged; its record stays where it is");
      continue;
    }
    NameChange change{*std::move(key), DecodeNameRecord(FromSlice(it->key()), FromSlice(it->value()))};
    if (absl::Status status = visit(std::move(change)); !status.ok()) return status;
  }
  return FromRead(it->status());
}

}  // namespace statepool
