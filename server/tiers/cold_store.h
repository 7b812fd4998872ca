// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// ColdStore: images and names on disk.
//
// A record that is there has its images: an image is put first, the names that need it are committed after, and the
// commit makes sure of the images' bytes before it writes the records. Likewise an image is deleted only after the
// commit of the last record that needed it. Records come back in the order in which they were committed: what is
// written first survives whenever something written later does.
//
// Thread-safe. Every call blocks on the disk: never under a lock that others wait for. Errors of all writes:
//   RESOURCE_EXHAUSTED / COLD_FULL   the budget or the disk is full; nothing was changed, reads go on, and writes do
//   when space returns UNAVAILABLE / DISK_FAILED        the disk failed; failed() is true from now on and every write
//   fails: the daemon must end
#ifndef STATEPOOL_SERVER_TIERS_COLD_STORE_H_
#define STATEPOOL_SERVER_TIERS_COLD_STORE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/checksum.h"
#include "server/core/ids.h"
#include "server/core/image.h"
#include "server/core/name_log.h"
#include "server/memory/state_io.h"

namespace statepool {

class ColdStore : public NameLog {
 public:
  // Writes an image, its bytes first and its manifest last: it exists whole or not at all. Not synced. A failed put
  // leaves nothing that counts, and may be repeated with another reader. REQUIRES: `state` has info.bytes, nothing of
  // it read; `leaves` are its leaves; the image is not stored yet. Errors: of the reader, too.
  virtual absl::Status PutImage(const ImageInfo& info, StateReader* state, absl::Span<const LeafHash> leaves,
                                absl::string_view attachment) = 0;

  // Reads an image into `state`, which has layout.state_bytes(), and finishes it. Every leaf, the root and the
  // attachment are verified against `info`. Errors: DATA_LOSS / CORRUPT when they differ or are missing (`state` then
  // holds anything), UNAVAILABLE / DISK_FAILED; of the filler, too.
  virtual absl::Status ReadImage(const ImageInfo& info, StateFiller* state, std::string* attachment) = 0;

  // Forgets images; unknown ids are skipped. Their space comes back in the background.
  virtual absl::Status DeleteImages(absl::Span<const ImageId> ids) = 0;

  // Ids of stored images, ascending: the first `limit` above `after`.
  virtual absl::StatusOr<std::vector<ImageId>> ListImages(ImageId after, size_t limit) = 0;

  // States and attachments stored, and being stored. What the file system holds is more: see FORMAT.md, "Space".
  virtual uint64_t used_bytes() const = 0;
  virtual uint64_t budget_bytes() const = 0;
  virtual bool failed() const = 0;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TIERS_COLD_STORE_H_
