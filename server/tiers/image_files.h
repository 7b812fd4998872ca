// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// ImageFiles: the bytes of images, in files of our own, each byte written once.
//
// A file is a row of extents and nothing else: an extent begins at a multiple of kBlockBytes and holds a state, what
// belongs to it (its tail), and zeros up to the next block. Where an extent is only its owner knows (the manifest of
// its image). Nothing is ever written over: a file is appended to by the run that made it, until it has kFileBytes; an
// extent that is freed becomes a hole, and a file without extents is removed. So what no owner knows of is garbage, and
// Sweep finds it after a start.
//
// I/O is direct where the file system has it: states go from their slots to the disk and back without a copy (as far as
// they lie at multiples of kBlockBytes), and leave the system's cache alone.
//
// Thread-safe; every call blocks on the disk. Errors: RESOURCE_EXHAUSTED, the disk is full and nothing was changed;
// ABORTED, the process lacks descriptors or memory now, and nothing was changed; DATA_LOSS, of reads; UNAVAILABLE, the
// disk failed, and what was written since the last Sync may be lost.
#ifndef STATEPOOL_SERVER_TIERS_IMAGE_FILES_H_
#define STATEPOOL_SERVER_TIERS_IMAGE_FILES_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/core/mutex.h"
#include "server/memory/state_io.h"

namespace statepool {

// Where an extent begins.
struct ImagePlace {
  uint64_t file = 0;    // its number; 0: nowhere
  uint64_t offset = 0;  // bytes

  friend bool operator==(const ImagePlace&, const ImagePlace&) = default;
};

class ImageFiles {
 public:
  static constexpr uint64_t kBlockBytes = 4096;
  static constexpr uint64_t kFileBytes = 256 << 20;  // a file that has as much gets no further extent

  // Makes `directory` if it is not there, durable but for its entry in its parent. `first_file`: new files get larger
  // numbers, and larger ones than those that are there.
  static absl::StatusOr<std::unique_ptr<ImageFiles>> Open(const std::string& directory, uint64_t first_file);
  ~ImageFiles();
  ImageFiles(const ImageFiles&) = delete;
  ImageFiles& operator=(const ImageFiles&) = delete;

  // --- after a start: every extent that is somebody's, then Sweep, once. Others may be appended and freed meanwhile.
  void Adopt(ImagePlace place, uint64_t bytes);
  // Gives back what is nobody's in files of earlier runs, and tells the log of files that are missing. Ends early when
  // `stop` becomes true.
  absl::Status Sweep(const std::atomic<bool>& stop);

  // Writes an extent. Durable after the next Sync. Errors of the reader's have a reason (server/core/error.h), those of
  // files have none.
  absl::StatusOr<ImagePlace> Append(StateReader* state, absl::string_view tail);
  // Reads one into `state` and `tail`, which have the sizes that were written; the state is not finished. `leaves`: the
  // hashes of what was read. DATA_LOSS: it is not there, or can't be read. What comes back is not verified. Errors of
  // the filler's have a reason.
  absl::Status Read(ImagePlace place, StateFiller* state, std::vector<LeafHash>* leaves, std::string* tail) const;
  // When this returns OK, all that Append returned before the call is durable. Concurrent calls share the work.
  absl::Status Sync();
  // Gives the space of an extent back. REQUIRES: nobody reads it, and whoever knew of it is durably gone.
  void Free(ImagePlace place, uint64_t bytes);

 private:
  class Descriptor;
  struct Extent {
    uint64_t offset, bytes;
  };

  ImageFiles(std::string directory, uint64_t first_file);
  absl::StatusOr<std::vector<uint64_t>> List() const;  // the files that are there
  std::string PathOf(uint64_t file) const;
  // Room at the end of the newest file, or of a new one.
  absl::StatusOr<ImagePlace> Reserve(uint64_t bytes, std::shared_ptr<const Descriptor>* file) ABSL_LOCKS_EXCLUDED(mu_);
  bool HasExtents(uint64_t file) const ABSL_LOCKS_EXCLUDED(mu_);
  bool Punch(uint64_t file, uint64_t offset, uint64_t bytes) const;
  void Remove(uint64_t file) const;

  const std::string directory_;
  uint64_t first_file_;  // of this run

  mutable Mutex mu_;
  CondVar changed_;
  uint64_t next_file_ ABSL_GUARDED_BY(mu_);
  uint64_t head_ ABSL_GUARDED_BY(mu_) = 0;  // the file that is appended to; 0: none
  uint64_t head_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::shared_ptr<const Descriptor> head_file_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint64_t, uint64_t> extents_ ABSL_GUARDED_BY(mu_);  // of a file: somebody's, or being written
  absl::flat_hash_map<uint64_t, std::vector<Extent>> adopted_ ABSL_GUARDED_BY(mu_);  // until Sweep
  absl::flat_hash_map<uint64_t, std::shared_ptr<const Descriptor>> unsynced_ ABSL_GUARDED_BY(mu_);
  bool entries_unsynced_ ABSL_GUARDED_BY(mu_) = false;  // of the directory
  bool syncing_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failed_ ABSL_GUARDED_BY(mu_);    // of a sync, for good
  uint64_t appended_ ABSL_GUARDED_BY(mu_) = 0;  // extents, ever
  uint64_t synced_ ABSL_GUARDED_BY(mu_) = 0;    // of them
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TIERS_IMAGE_FILES_H_
