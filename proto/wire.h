// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Serialized messages with one large `bytes` field, taken apart and put together without copying that field.
//
// Proto `bytes` costs two copies of every state. Both sides of our own calls therefore handle raw ByteBuffers: the
// small fields go through the generated message, the large one (`data` of SetRequest and GetResponse) stays in gRPC's
// slices. On the wire it is ordinary proto, in any order of fields and any cut into slices.
//
// All functions are thread-safe. Input may come from anyone: nothing here reads past it, recurses, or allocates more
// than `max_rest_bytes` and a small constant for each slice.
#ifndef STATEPOOL_PROTO_WIRE_H_
#define STATEPOOL_PROTO_WIRE_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace statepool::wire {

// The field number of `data` in SetRequest and GetResponse.
inline constexpr uint32_t kDataField = 15;

// A message in two parts. Owns its bytes: `data` stays valid while this lives, also when it is moved.
struct SplitMessage {
  SplitMessage() = default;
  SplitMessage(SplitMessage&&) = default;
  SplitMessage& operator=(SplitMessage&&) = default;
  SplitMessage(const SplitMessage&) =
      delete;  // small slices hold their bytes inside: a copy's views would point into the original
  SplitMessage& operator=(const SplitMessage&) = delete;

  std::string rest;                     // all other fields, still serialized: give it to ParseFromString
  std::vector<absl::string_view> data;  // the large field's content in order; no piece is empty
  uint64_t data_bytes = 0;              // sum over `data`
  bool has_data = false;                // the field was there, perhaps empty
  std::vector<grpc::Slice> slices;      // what `data` points into
};

// Takes a serialized message apart. Of several occurrences of `field` the last one counts, as in every proto parser.
// Fields that nobody knows go to `rest`; so does `field` with another wire type.
// Errors: INVALID_ARGUMENT if this is no well-formed message (truncated, bad tag, a group), or if `rest` would exceed
// `max_rest_bytes`. Does not look inside `rest`.
absl::StatusOr<SplitMessage> Split(const grpc::ByteBuffer& message, uint32_t field, size_t max_rest_bytes);

// The reverse: `rest` (a serialized message without `field`), and then `field` with `data` as content; without data
// just `rest`. References `data`. `keep` is kept until gRPC has let go of the first slice, with `rest` in it.
// REQUIRES: all together below 2 GiB, the limit of proto parsers.
grpc::ByteBuffer Join(std::string rest, uint32_t field, absl::Span<const grpc::Slice> data,
                      std::shared_ptr<const void> keep = nullptr);

// A slice over `bytes` that keeps `owner` until nobody references it. gRPC only reads it.
grpc::Slice SliceOf(absl::string_view bytes, std::shared_ptr<const void> owner);

}  // namespace statepool::wire

#endif  // STATEPOOL_PROTO_WIRE_H_
