// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/tiers/record_codec.h"

#include <xxhash.h>

#include <bit>
#include <cstring>
#include <memory>
#include <type_traits>

#include "absl/time/time.h"

namespace statepool {
namespace {

static_assert(std::endian::native == std::endian::little, "records are little-endian");

constexpr uint8_t kRecordVersion = 1;
constexpr size_t kRecordedVersionBytes = 8 + 8 + 8 + 1 + 8 + 8 + 8 + 4;
constexpr size_t kMinAnsweredRequestBytes = 4 + 8 + 8 + 8 + 8 + 8;

uint64_t SumOf(absl::string_view key, absl::string_view body) {
  return XXH3_64bits_withSeed(body.data(), body.size(), XXH3_64bits(key.data(), key.size()));
}

class Writer {
 public:
  Writer() { Put(kRecordVersion); }

  template <typename T>
  void Put(T value) {
    static_assert(std::is_integral_v<T> || std::is_enum_v<T>);
    out_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void PutString(absl::string_view value) {
    Put(static_cast<uint32_t>(value.size()));
    out_.append(value.data(), value.size());
  }
  std::string Finish(absl::string_view key) && {
    Put(SumOf(key, out_));
    return std::move(out_);
  }

 private:
  std::string out_;
};

// Once something does not fit, everything that follows reads as zero and Done() is false.
class Reader {
 public:
  Reader(absl::string_view key, absl::string_view value) {
    uint64_t sum;
    if (value.size() < 1 + sizeof(sum)) return;
    rest_ = value.substr(0, value.size() - sizeof(sum));
    std::memcpy(&sum, value.data() + rest_.size(), sizeof(sum));
    ok_ = sum == SumOf(key, rest_) && Get<uint8_t>() == kRecordVersion;
  }

  template <typename T>
  T Get() {
    T value{};
    if (rest_.size() < sizeof(value)) {
      Fail();
      return value;
    }
    std::memcpy(&value, rest_.data(), sizeof(value));
    rest_.remove_prefix(sizeof(value));
    return value;
  }
  template <typename Enum>
  Enum GetEnum(Enum last) {
    const auto number = Get<uint8_t>();
    if (number < 1 || number > static_cast<uint8_t>(last)) Fail();
    return static_cast<Enum>(number);
  }
  std::string GetString() {
    const auto size = Get<uint32_t>();
    if (size > rest_.size()) {
      Fail();
      return {};
    }
    std::string value(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return value;
  }
  // A number of things that take at least `each_bytes`: never more than there is room for.
  uint32_t GetCount(size_t each_bytes) {
    const auto count = Get<uint32_t>();
    if (count > rest_.size() / each_bytes) {
      Fail();
      return 0;
    }
    return count;
  }
  bool Done() const { return ok_ && rest_.empty(); }

 private:
  void Fail() {
    ok_ = false;
    rest_ = {};
  }

  absl::string_view rest_;
  bool ok_ = false;
};

void AppendBigEndian(std::string* out, uint64_t value, int bytes) {
  for (int i = bytes - 1; i >= 0; --i) out->push_back(static_cast<char>(value >> (8 * i)));
}

uint64_t ReadBigEndian(absl::string_view in, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | static_cast<uint8_t>(in[i]);
  return value;
}

int64_t TimeToNumber(absl::Time time) {
  if (time == absl::InfiniteFuture()) return INT64_MAX;
  if (time == absl::InfinitePast()) return INT64_MIN;
  return absl::ToInt64Nanoseconds(time - absl::UnixEpoch());  // saturates at the two above
}
absl::Time TimeFromNumber(int64_t number) {
  if (number == INT64_MAX) return absl::InfiniteFuture();
  if (number == INT64_MIN) return absl::InfinitePast();
  return absl::FromUnixNanos(number);
}
absl::Duration DurationFromNumber(int64_t number) {
  if (number == INT64_MAX) return absl::InfiniteDuration();
  if (number == INT64_MIN) return -absl::InfiniteDuration();
  return absl::Nanoseconds(number);
}

}  // namespace

std::string EncodeNameKey(const NameKey& key) {
  std::string out;
  out.reserve(5 + key.name.size());
  AppendBigEndian(&out, key.tenant, 4);
  out.push_back(static_cast<char>(key.kind));
  out += key.name;
  return out;
}

std::optional<NameKey> DecodeNameKey(absl::string_view key) {
  if (key.size() < 5) return std::nullopt;
  const auto kind = static_cast<uint8_t>(key[4]);
  if (kind < 1 || kind > static_cast<uint8_t>(NameKind::kPrefix)) return std::nullopt;
  return NameKey{static_cast<TenantId>(ReadBigEndian(key, 4)), static_cast<NameKind>(kind), std::string(key.substr(5))};
}

std::string EncodeLayoutKey(TenantId tenant, absl::string_view fingerprint) {
  std::string out;
  AppendBigEndian(&out, tenant, 4);
  out.append(fingerprint.data(), fingerprint.size());
  return out;
}

std::string EncodeImageKey(ImageId id) {
  std::string out;
  AppendBigEndian(&out, id, 8);
  return out;
}

std::optional<ImageId> DecodeImageKey(absl::string_view key) {
  if (key.size() != 8) return std::nullopt;
  return ReadBigEndian(key, 8);
}

std::string EncodeNameRecord(absl::string_view key, const NameRecord& record) {
  Writer out;
  out.PutString(record.layout);
  out.Put(record.revision);
  out.Put(record.created);
  out.Put(TimeToNumber(record.create_time));
  out.Put(record.durability);
  out.Put(record.max_history);
  out.Put(absl::ToInt64Nanoseconds(record.ttl));  // saturates: infinity is INT64_MAX
  out.Put(TimeToNumber(record.expire_time));
  out.Put(static_cast<uint32_t>(record.versions.size()));
  for (const RecordedVersion& version : record.versions) {
    out.Put(version.id);
    out.Put(version.parent);
    out.Put(version.position);
    out.Put(version.exactness);
    out.Put(version.image);
    out.Put(version.checksum);
    out.Put(version.attachment_checksum);
    out.Put(version.attachment_bytes);
  }
  out.Put(static_cast<uint32_t>(record.requests.size()));
  for (const AnsweredRequest& request : record.requests) {
    out.PutString(request.id);
    out.Put(request.body_hash);
    out.Put(request.revision);
    out.Put(request.version);
    out.Put(request.position);
    out.Put(request.checksum);
  }
  out.Put(record.prefix.stem_high);
  out.Put(record.prefix.stem_low);
  out.Put(record.prefix.check);
  return std::move(out).Finish(key);
}

std::optional<NameRecord> DecodeNameRecord(absl::string_view key, absl::string_view value) {
  const std::optional<NameKey> name = DecodeNameKey(key);
  if (!name) return std::nullopt;
  Reader in(key, value);
  NameRecord record;
  record.key = *name;
  record.layout = in.GetString();
  record.revision = in.Get<uint64_t>();
  record.created = in.Get<uint64_t>();
  record.create_time = TimeFromNumber(in.Get<int64_t>());
  record.durability = in.GetEnum(Durability::kSync);
  record.max_history = in.Get<uint32_t>();
  record.ttl = DurationFromNumber(in.Get<int64_t>());
  record.expire_time = TimeFromNumber(in.Get<int64_t>());
  record.versions.resize(in.GetCount(kRecordedVersionBytes));
  for (RecordedVersion& version : record.versions) {
    version.id = in.Get<uint64_t>();
    version.parent = in.Get<uint64_t>();
    version.position = in.Get<int64_t>();
    version.exactness = in.GetEnum(Exactness::kLossy);
    version.image = in.Get<uint64_t>();
    version.checksum = in.Get<uint64_t>();
    version.attachment_checksum = in.Get<uint64_t>();
    version.attachment_bytes = in.Get<uint32_t>();
  }
  record.requests.resize(in.GetCount(kMinAnsweredRequestBytes));
  for (AnsweredRequest& request : record.requests) {
    request.id = in.GetString();
    request.body_hash = in.Get<uint64_t>();
    request.revision = in.Get<uint64_t>();
    request.version = in.Get<uint64_t>();
    request.position = in.Get<int64_t>();
    request.checksum = in.Get<uint64_t>();
  }
  record.prefix.stem_high = in.Get<uint64_t>();
  record.prefix.stem_low = in.Get<uint64_t>();
  record.prefix.check = in.Get<uint64_t>();
  if (!in.Done() || record.versions.empty()) return std::nullopt;
  return record;
}

std::string EncodeLayoutRecord(absl::string_view key, const LayoutRecord& record) {
  Writer out;
  out.Put(record.tenant);
  out.PutString(record.canonical);
  out.Put(static_cast<uint32_t>(record.aliases.size()));
  for (const std::string& alias : record.aliases) out.PutString(alias);
  return std::move(out).Finish(key);
}

std::optional<LayoutRecord> DecodeLayoutRecord(absl::string_view key, absl::string_view value) {
  Reader in(key, value);
  LayoutRecord record;
  record.tenant = in.Get<TenantId>();
  record.canonical = in.GetString();
  record.aliases.resize(in.GetCount(sizeof(uint32_t)));
  for (std::string& alias : record.aliases) alias = in.GetString();
  if (!in.Done()) return std::nullopt;
  return record;
}

std::string EncodeManifest(absl::string_view key, const ImageManifest& manifest) {
  Writer out;
  out.Put(manifest.state_bytes);
  out.Put(manifest.checksum);
  out.Put(manifest.attachment_bytes);
  out.Put(manifest.attachment_checksum);
  out.Put(manifest.place.file);
  out.Put(manifest.place.offset);
  return std::move(out).Finish(key);
}

std::optional<ImageManifest> DecodeManifest(absl::string_view key, absl::string_view value) {
  Reader in(key, value);
  ImageManifest manifest;
  manifest.state_bytes = in.Get<uint64_t>();
  manifest.checksum = in.Get<uint64_t>();
  manifest.attachment_bytes = in.Get<uint32_t>();
  manifest.attachment_checksum = in.Get<uint64_t>();
  manifest.place.file = in.Get<uint64_t>();
  manifest.place.offset = in.Get<uint64_t>();
  if (!in.Done()) return std::nullopt;
  return manifest;
}

std::string EncodeMeta(absl::string_view key, absl::string_view bytes) {
  Writer out;
  out.PutString(bytes);
  return std::move(out).Finish(key);
}

std::optional<std::string> DecodeMeta(absl::string_view key, absl::string_view value) {
  Reader in(key, value);
  std::string bytes = in.GetString();
  if (!in.Done()) return std::nullopt;
  return bytes;
}

std::string EncodeMetaNumber(absl::string_view key, uint64_t number) {
  Writer out;
  out.Put(number);
  return std::move(out).Finish(key);
}

std::optional<uint64_t> DecodeMetaNumber(absl::string_view key, absl::string_view value) {
  Reader in(key, value);
  const auto number = in.Get<uint64_t>();
  if (!in.Done()) return std::nullopt;
  return number;
}

}  // namespace statepool
