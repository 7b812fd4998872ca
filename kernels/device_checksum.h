// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The hashes of images that lie in a device's memory: for each leaf exactly the host's HashLeaf (checksum.h). The root
// over them is the host's HashRoot.
#ifndef STATEPOOL_KERNELS_DEVICE_CHECKSUM_H_
#define STATEPOOL_KERNELS_DEVICE_CHECKSUM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/checksum.h"
#include "kernels/device_error.h"

namespace statepool {

// Writes the hash of leaf i of image n to hashes[n * LeafCount(bytes) + i], in one launch for each 1,024 images. Images
// are of `bytes` each and may begin anywhere; at multiples of 16 bytes they are hashed fastest. Returns when the launch
// is in the stream; the images' addresses are in it by then.
//
// REQUIRES: images and hashes are in memory that the current device can reach, which is also the stream's; they live,
// and nobody writes to them, until the stream has passed the launch. Any thread may call it. Errors: device_error.h.
absl::Status HashLeavesOnDevice(absl::Span<const void* const> images, uint64_t bytes, LeafHash* hashes,
                                DeviceStream stream);

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_DEVICE_CHECKSUM_H_
