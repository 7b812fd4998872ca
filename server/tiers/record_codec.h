// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// How keys and values lie in the cold store: the code of FORMAT.md. Pure functions, thread-safe.
//
// A value is: version byte, fields in order (little-endian, strings with a 32-bit length before them), XXH3-64 of
// everything before with the key's XXH3-64 as seed. So a value that turns up under another key is as bad as a damaged
// one. Decoding accepts exactly what encoding gives: any other input, of any length, is refused without being trusted
// for a single length or number.
#ifndef STATEPOOL_SERVER_TIERS_RECORD_CODEC_H_
#define STATEPOOL_SERVER_TIERS_RECORD_CODEC_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "kernels/checksum.h"
#include "server/core/ids.h"
#include "server/core/name.h"
#include "server/core/name_log.h"
#include "server/tiers/image_files.h"

namespace statepool {

// --- keys; they sort by their fields, in the order of the arguments

std::string EncodeNameKey(const NameKey& key);
std::optional<NameKey> DecodeNameKey(absl::string_view key);

std::string EncodeLayoutKey(TenantId tenant, absl::string_view fingerprint);

std::string EncodeImageKey(ImageId id);
std::optional<ImageId> DecodeImageKey(absl::string_view key);

// --- values; `key` is the encoded key that the value stands under

// Times are kept to the nanosecond; beyond the years 1678..2262 they are infinite.
std::string EncodeNameRecord(absl::string_view key, const NameRecord& record);
std::optional<NameRecord> DecodeNameRecord(absl::string_view key, absl::string_view value);

std::string EncodeLayoutRecord(absl::string_view key, const LayoutRecord& record);
std::optional<LayoutRecord> DecodeLayoutRecord(absl::string_view key, absl::string_view value);

// What is stored of an image beside its bytes.
struct ImageManifest {
  uint64_t state_bytes = 0;
  Checksum checksum = 0;
  uint32_t attachment_bytes = 0;
  Checksum attachment_checksum = 0;
  ImagePlace place;  // nowhere: in the database

  friend bool operator==(const ImageManifest&, const ImageManifest&) = default;
};
std::string EncodeManifest(absl::string_view key, const ImageManifest& manifest);
std::optional<ImageManifest> DecodeManifest(absl::string_view key, absl::string_view value);

// A value of the meta table: opaque bytes, or a number.
std::string EncodeMeta(absl::string_view key, absl::string_view bytes);
std::optional<std::string> DecodeMeta(absl::string_view key, absl::string_view value);
std::string EncodeMetaNumber(absl::string_view key, uint64_t number);
std::optional<uint64_t> DecodeMetaNumber(absl::string_view key, absl::string_view value);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TIERS_RECORD_CODEC_H_
