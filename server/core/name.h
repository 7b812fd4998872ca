// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Names, as they are recorded: sequences, snapshots and prefixes with the versions they point at.
#ifndef STATEPOOL_SERVER_CORE_NAME_H_
#define STATEPOOL_SERVER_CORE_NAME_H_

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/ids.h"
#include "server/core/image.h"

namespace statepool {

// Numbers as in the .proto. No version has kUnknown: it is told of one that is forgotten.
enum class NameKind : uint8_t { kSequence = 1, kSnapshot = 2, kPrefix = 3 };
enum class Durability : uint8_t { kVolatile = 1, kWriteBehind = 2, kSync = 3 };
enum class Exactness : uint8_t { kUnknown = 0, kExact = 1, kEdited = 2, kLossy = 3 };

inline constexpr size_t kMaxNameBytes = 512;
inline constexpr int64_t kMaxPosition = int64_t{1} << 53;
inline constexpr size_t kMaxRequestIds = 8;
inline constexpr size_t kMaxRequestIdBytes = 64;

struct NameKey {
  TenantId tenant = kDefaultTenant;
  NameKind kind = NameKind::kSequence;
  std::string name;

  friend bool operator==(const NameKey&, const NameKey&) = default;
  friend auto operator<=>(const NameKey&, const NameKey&) = default;
};

// Image + position + exactness + the id of the version it came from. Immutable; shared by any number of names.
struct Version {
  VersionId id = 0;
  VersionId parent = 0;  // an id, not a reference
  int64_t position = 0;
  Exactness exactness = Exactness::kExact;
  ImageRef image;
};
using VersionRef = std::shared_ptr<const Version>;

// A request that was answered, so that its retry gets the same answer.
struct AnsweredRequest {
  std::string id;
  uint64_t body_hash = 0;  // of the whole request, its method included
  Revision revision = 0;   // the answer
  VersionId version = 0;
  int64_t position = 0;
  Checksum checksum = 0;
};

// Where a prefix hangs in the PrefixIndex: what can't be had from its key without its tokens.
struct PrefixLocator {
  uint64_t stem_high = 0, stem_low = 0;  // hash of the tokens up to the last multiple of PrefixHasher::kStride
  uint64_t check = 0;                    // a second, independent hash of all tokens: tells a collision
};

// A version as a record holds it.
struct RecordedVersion {
  VersionId id = 0;
  VersionId parent = 0;
  int64_t position = 0;
  Exactness exactness = Exactness::kExact;
  ImageId image = 0;
  Checksum checksum = 0;
  Checksum attachment_checksum = 0;
  uint32_t attachment_bytes = 0;
};

// All that is durable of a name. Encoded by server/tiers (FORMAT.md).
struct NameRecord {
  NameKey key;
  std::string layout;     // fingerprint
  Revision revision = 0;  // of the head
  Revision created = 0;   // the revision that made the name: tells it from an earlier one of the same name
  absl::Time create_time;
  Durability durability = Durability::kWriteBehind;
  uint32_t max_history = 1;
  absl::Duration ttl = absl::InfiniteDuration();    // idle time
  absl::Time expire_time = absl::InfiniteFuture();  // absolute
  std::vector<RecordedVersion> versions;            // oldest first, the head last; never empty
  std::vector<AnsweredRequest> requests;            // oldest first, at most kMaxRequestIds
  PrefixLocator prefix;                             // prefixes only
};

// INVALID_NAME with `field` unless 1..kMaxNameBytes of valid UTF-8 without control characters, no segment empty, '.' or
// '..'.
absl::Status ValidateName(absl::string_view name, absl::string_view field);
absl::Status ValidatePosition(int64_t position, absl::string_view field);
// INVALID_OPTION (request_id) for more than kMaxRequestIdBytes. Empty: none was given, which is fine.
absl::Status ValidateRequestId(absl::string_view id);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_NAME_H_
