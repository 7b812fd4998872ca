// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// ImageStore: where images' bytes live, as core sees it. Implemented by server/tiers (Residency).
//
// Thread-safe. Nothing here calls back into core, so core may hold no lock that it would need; calls marked "blocks"
// may wait for disk or for memory and must not be made under a lock.
#ifndef STATEPOOL_SERVER_CORE_IMAGE_STORE_H_
#define STATEPOOL_SERVER_CORE_IMAGE_STORE_H_

#include <cassert>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/core/image.h"
#include "server/core/op.h"
#include "server/core/select.h"

namespace statepool {

// Where a state lies, for a process that may map it: bytes from the beginning of an extent (server/memory/device.h).
class Extent;
class Device;
struct SlotPlace {
  std::shared_ptr<Extent> extent;  // null: nobody else can map it
  uint64_t offset = 0;
};

// Where a pin's bytes shall be: on this device for hot states; or, null, wherever the CPU gets at them with the least
// trouble. With `or_reached` another device for hot states that has them will do, whose memory this one Reaches.
struct PinPlace {
  PinPlace(const Device* device, bool other_if_reached = false) : on(device), or_reached(other_if_reached) {}

  const Device* on;
  bool or_reached;
};

// Keeps an image's bytes where they can be read, for as long as it lives: a pinned slot never leaves its device.
// Movable.
class PinnedImage {
 public:
  virtual ~PinnedImage() = default;
  virtual uint64_t size() const = 0;        // layout.state_bytes()
  virtual const char* data() const = 0;     // an address of the device's that has the bytes
  virtual bool in_host_memory() const = 0;  // the CPU can read there
  absl::string_view bytes() const {         // REQUIRES: in_host_memory()
    assert(in_host_memory());
    return {data(), size()};
  }
  // Copies bytes to host memory, wherever they are. Blocks. REQUIRES: offset + bytes <= size(). Errors: DEVICE_FAILED.
  virtual absl::Status CopyOut(uint64_t offset, uint64_t bytes, char* to) const = 0;
  virtual absl::string_view attachment() const = 0;
  virtual SlotPlace place() const { return {}; }
};
using Pin = std::unique_ptr<const PinnedImage>;

// The bytes of a state on their way in. `pieces` are read in order, once for each memory that is tried, and need to
// live only as long as the call. An initial state has no pieces: it comes from layout.FillInitial.
struct StateBytes {
  absl::Span<const absl::string_view> pieces;
  bool initial = false;
  std::optional<Checksum> expected_checksum;  // of `pieces`, verified before the image exists: CHECKSUM_MISMATCH
  absl::string_view attachment;
  // A state that is written already (ImageWriter), and nothing else. Null: none.
  ImageRef image = nullptr;
  // A state that differs from another in some ranges only: `pieces` fill these, the rest is `base`'s. Null: none.
  const PinnedImage* base = nullptr;
  absl::Span<const ByteRange> ranges = {};  // as RangesOf gives them
};

// A whole state on its way in, chunk by chunk. Holds room for it; destroyed before Finish it leaves nothing. After
// Finish it is empty. Not thread-safe. Destroyed before the ImageStore that made it.
class ImageWriter {
 public:
  virtual ~ImageWriter() = default;
  virtual uint64_t received_bytes() const = 0;  // so far

  // The next bytes, if they have this checksum. None but the last has a length that is no multiple of kLeafBytes.
  // REQUIRES: not beyond the state's end. Errors: CHECKSUM_MISMATCH (then nothing was appended).
  virtual absl::Status Append(absl::Span<const absl::string_view> pieces, Checksum expected) = 0;
  virtual bool append_waits() const { return false; }  // for a device's copies

  // Forgets what was appended: the state comes anew, into the same room.
  virtual void Restart() = 0;

  // The other way to fill it, for copies that several threads share, or another process, or a device: the room itself,
  // state_bytes() long, on its device. Whoever wrote all of it gives FinishFilled the checksum of what stands there.
  virtual char* room() = 0;
  virtual SlotPlace place() const { return {}; }
  virtual ImageRef FinishFilled(Checksum checksum, absl::string_view attachment) = 0;

  // Room for so many more bytes of an attachment than BeginWrite was told of. May wait for the disk. Errors:
  // STATE_TOO_LARGE, HOT_FULL, COLD_FULL, DISK_FAILED, DEADLINE, CANCELLED; the writer is as it was.
  virtual absl::Status AddAttachmentRoom(const Op& op, uint64_t bytes) = 0;

  // The image. After it the writer is empty. Errors: BYTES_LENGTH_MISMATCH (bytes are missing), CHECKSUM_MISMATCH (of
  // the whole); then the writer is as it was.
  virtual absl::StatusOr<ImageRef> Finish(std::optional<Checksum> expected, absl::string_view attachment) = 0;
};

class ImageStore {
 public:
  virtual ~ImageStore() = default;

  // Copies bytes into fresh slots: a whole image, or none. Blocks for the copy, and when the budget is short for
  // spills. A base is a pin of this store's. Errors: BYTES_LENGTH_MISMATCH, CHECKSUM_MISMATCH, STATE_TOO_LARGE,
  // HOT_FULL, COLD_FULL, DISK_FAILED, DEADLINE, CANCELLED.
  virtual absl::StatusOr<ImageRef> Write(const Op& op, LayoutRef layout, const StateBytes& bytes) = 0;

  // The same for a state that comes in its own time: while it does, its room is taken and nobody waits for it. Blocks
  // as Write does. `attachment_bytes`: of the attachment to come. `on`: a device for hot states that its room shall be
  // on; null: any. Errors: STATE_TOO_LARGE, HOT_FULL, COLD_FULL, DISK_FAILED, DEVICE_FAILED, DEADLINE, CANCELLED.
  virtual absl::StatusOr<std::unique_ptr<ImageWriter>> BeginWrite(const Op& op, LayoutRef layout,
                                                                  uint64_t attachment_bytes, const Device* on) = 0;

  // Pins an image's bytes in a place that will do. Where there are none they are copied first (blocks), to `place.on`
  // if it is a device, and verified on the way. Errors: CORRUPT (DATA_LOSS), STATE_TOO_LARGE, HOT_FULL, DISK_FAILED,
  // DEVICE_FAILED (of `place.on`, or of the one that alone had them: loss()), DEADLINE, CANCELLED.
  virtual absl::StatusOr<Pin> Read(const Op& op, const ImageRef& image, PinPlace place) = 0;

  // Many at once, each as Read does: those that memories have and the place lacks are copied there together, which
  // takes the time of the bytes alone. Parallel to `images`, which may name one twice; what becomes of one is no
  // other's matter.
  virtual std::vector<absl::StatusOr<Pin>> ReadMany(const Op& op, absl::Span<const ImageRef> images,
                                                    PinPlace place) = 0;

  // As Read when it needs no waiting and the CPU can read the bytes, else null. Counts as a use.
  virtual Pin TryRead(const ImageRef& image) = 0;

  // Writes an image's bytes to the cold store, if they are not there yet: after this returned OK, a commit of the
  // NameLog may name them, and makes them durable. Blocks. Errors: COLD_FULL, DISK_FAILED, DEADLINE, CANCELLED.
  virtual absl::Status Persist(const Op& op, const ImageRef& image) = 0;

  // Why an image can be neither read nor persisted, ever: CORRUPT (its bytes changed in memory, or are not what their
  // writer said) or DEVICE_FAILED (only a device had them, which failed). OK for all others.
  virtual absl::Status loss(const Image& image) const = 0;
  // True once Persist succeeded (or the image was adopted). Never false again.
  virtual bool persisted(const Image& image) const = 0;
  virtual Tier tier(const Image& image) const = 0;

  // An image that is known to be in the cold store alone: one that a durable name needs, at recovery, or one that was
  // disowned. During recovery the same id gives the same image; afterwards each id may be adopted once, until it is
  // disowned again.
  virtual ImageRef Adopt(const ImageInfo& info) = 0;
  // The caller takes these images over, all or none: they go without their bytes in the cold store, which stay until
  // someone adopts the image again and drops it, or a restart finds nobody who needs it. False, and nothing changed,
  // unless all of them are in the cold store alone, at rest, and referred to by nobody but the caller, who has one
  // reference to each and drops it afterwards.
  virtual bool Disown(absl::Span<const Image* const> images) = 0;
  // At recovery: an image that is needed and not adopted now (a folded name has it, or one whose layout's record is
  // damaged): its bytes stay.
  virtual void KeepUnused(ImageId id) = 0;
  // A layout is not registered any more: what is kept for the next images of it goes as soon as none of it lives. Only
  // a hint: images of it may still be written. Never blocks.
  virtual void LayoutDeleted(TenantId tenant, const Layout& layout) = 0;
  // At the end of recovery: images in the cold store that nobody adopted or keeps are garbage and go, in the
  // background.
  virtual void RecoveryDone() = 0;
  // The store of names ends, its records stay: from now on an image that goes leaves its bytes in the cold store.
  // Called once, by ~Store.
  virtual void Detach() = 0;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_IMAGE_STORE_H_
