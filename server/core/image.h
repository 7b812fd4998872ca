// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Image: the bytes of one state. Immutable, reference-counted.
//
// core knows an image by its identity, size, checksum and by how many names need it at their heads; where its bytes are
// is the business of whoever implements ImageStore, by deriving from Image. When the last reference goes, the
// destructor gives the bytes back, in all tiers.
#ifndef STATEPOOL_SERVER_CORE_IMAGE_H_
#define STATEPOOL_SERVER_CORE_IMAGE_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/checksum.h"
#include "server/core/ids.h"
#include "server/core/layout.h"

namespace statepool {

// What is known of an image for good; recorded with each durable name that needs it.
struct ImageInfo {
  ImageId id = 0;
  TenantId tenant = kDefaultTenant;
  LayoutRef layout;
  Checksum checksum = 0;             // of the state's bytes
  Checksum attachment_checksum = 0;  // ChecksumOf(attachment)
  uint32_t attachment_bytes = 0;
};

// Thread-safe. The destructor may run under any lock: it must not block or call back into core.
class Image {
 public:
  explicit Image(ImageInfo info) : info_(std::move(info)) {}
  virtual ~Image() = default;
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  const ImageInfo& info() const { return info_; }
  uint64_t bytes() const { return info_.layout->state_bytes(); }

  // How many names have this image at their head. An image behind all heads leaves the device first.
  void AddHead() const {
    if (heads_.fetch_add(1) == 0) HeadsChanged();
  }
  void DropHead() const {
    if (heads_.fetch_sub(1) == 1) HeadsChanged();
  }
  bool is_head() const { return heads_.load() > 0; }
  int64_t heads() const { return heads_.load(); }

 protected:
  // is_head() may have changed. Called under core's locks: must not block or call back into core.
  virtual void HeadsChanged() const = 0;

 private:
  const ImageInfo info_;
  mutable std::atomic<int64_t> heads_{0};
};

using ImageRef = std::shared_ptr<const Image>;

enum class Tier : uint8_t { kUnknown = 0, kHot = 1, kWarm = 2, kCold = 3 };

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_IMAGE_H_
