// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/folded_name.h"

#include <cassert>
#include <cstring>
#include <new>
#include <string>

#include "kernels/checksum.h"
#include "server/core/prefix_index.h"

// The packed bytes, in order. varint: 7 bits a byte, least first. signed: zigzag in a varint. Numbers that are close to
// another one are packed as their distance from it.
//
//   u8 what it has; [varint tenant]; varint length, name
//   varint revision; varint revision - created; u64 create time; varint max_history; u64 last use
//   [u64 ttl]; [u64 expire time, u64 the same on the monotonic clock]; [varint forks]; [3 × u64 of its prefix]
//   varint versions, varint recorded; each version: u8 what it has; signed id - revision; [signed parent - id];
//       varint position; signed image - revision; u64 checksum; [u64 attachment's checksum, varint its bytes]
//   varint requests; each: varint length, id; u64 body hash; u8 whether it made the head; if not: signed
//       revision - the name's; signed version - the name's revision; varint position; u64 checksum

namespace statepool {
namespace {

// What a name has: its kind, its durability << 2, and:
constexpr uint8_t kTenant = 1 << 4, kTtl = 1 << 5, kExpireTime = 1 << 6, kForks = 1 << 7;
// What a version has: its exactness, and:
constexpr uint8_t kParent = 1 << 2, kAttachment = 1 << 3;

class Packer {
 public:
  void Byte(uint8_t value) { out_.push_back(static_cast<char>(value)); }
  void Fixed(uint64_t value) { out_.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void Varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) Byte(static_cast<uint8_t>(value | 0x80));
    Byte(static_cast<uint8_t>(value));
  }
  // value - base, modulo 2^64.
  void Distance(uint64_t value, uint64_t base) {
    const auto distance = static_cast<int64_t>(value - base);
    Varint(static_cast<uint64_t>(distance) << 1 ^ static_cast<uint64_t>(distance >> 63));
  }
  void Text(absl::string_view text) {
    Varint(text.size());
    out_.append(text.data(), text.size());
  }
  const std::string& out() const { return out_; }

 private:
  std::string out_;
};

class Unpacker {
 public:
  explicit Unpacker(const char* in) : in_(in) {}
  uint8_t Byte() { return static_cast<uint8_t>(*in_++); }
  uint64_t Fixed() {
    uint64_t value;
    std::memcpy(&value, in_, sizeof value);
    in_ += sizeof value;
    return value;
  }
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t byte = Byte();
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  }
  uint64_t Distance(uint64_t base) {
    const uint64_t zigzag = Varint();
    return base + (zigzag >> 1 ^ (0 - (zigzag & 1)));
  }
  absl::string_view Text() {
    const size_t size = Varint();
    const absl::string_view text(in_, size);
    in_ += size;
    return text;
  }

 private:
  const char* in_;
};

uint64_t NumberOf(absl::Time time) { return static_cast<uint64_t>(absl::ToInt64Nanoseconds(time - absl::UnixEpoch())); }
absl::Time TimeOf(uint64_t number) {
  const auto ns = static_cast<int64_t>(number);
  return ns == INT64_MAX ? absl::InfiniteFuture() : ns == INT64_MIN ? absl::InfinitePast() : absl::FromUnixNanos(ns);
}

Checksum NoAttachment() {
  static const Checksum checksum = ChecksumOf("");
  return checksum;
}

bool MadeHead(const AnsweredRequest& request, Revision revision, const RecordedVersion& head) {
  return request.revision == revision && request.version == head.id && request.position == head.position &&
         request.checksum == head.checksum;
}

NameTable::View TakeView(uint8_t has, Unpacker* in) {
  NameTable::View view;
  view.kind = static_cast<NameKind>(has & 3);
  view.tenant = has & kTenant ? static_cast<TenantId>(in->Varint()) : kDefaultTenant;
  view.name = in->Text();
  return view;
}

void PackVersion(const RecordedVersion& version, Revision revision, Packer* out) {
  const bool attachment = version.attachment_bytes != 0 || version.attachment_checksum != NoAttachment();
  out->Byte(static_cast<uint8_t>(static_cast<uint8_t>(version.exactness) | (version.parent != 0 ? kParent : 0) |
                                 (attachment ? kAttachment : 0)));
  out->Distance(version.id, revision);
  if (version.parent != 0) out->Distance(version.parent, version.id);
  out->Varint(static_cast<uint64_t>(version.position));
  out->Distance(version.image, revision);
  out->Fixed(version.checksum);
  if (!attachment) return;
  out->Fixed(version.attachment_checksum);
  out->Varint(version.attachment_bytes);
}

RecordedVersion UnpackVersion(Revision revision, Unpacker* in) {
  RecordedVersion version;
  const uint8_t has = in->Byte();
  version.exactness = static_cast<Exactness>(has & 3);
  version.id = in->Distance(revision);
  if (has & kParent) version.parent = in->Distance(version.id);
  version.position = static_cast<int64_t>(in->Varint());
  version.image = in->Distance(revision);
  version.checksum = in->Fixed();
  version.attachment_checksum = has & kAttachment ? in->Fixed() : NoAttachment();
  version.attachment_bytes = has & kAttachment ? static_cast<uint32_t>(in->Varint()) : 0;
  return version;
}

}  // namespace

FoldedPtr FoldedName::Pack(const RestingName& name) {
  const NameState& state = name.state;
  assert(state.ring.empty() && !name.versions.empty() && name.recorded >= 1 && name.recorded <= name.versions.size());
  const bool expires = state.expire_time != absl::InfiniteFuture() || state.expire_at != kNever;
  Packer out;
  out.Byte(static_cast<uint8_t>(static_cast<uint8_t>(name.key.kind) | static_cast<uint8_t>(state.durability) << 2 |
                                (name.key.tenant != kDefaultTenant ? kTenant : 0) |
                                (state.ttl != absl::InfiniteDuration() ? kTtl : 0) | (expires ? kExpireTime : 0) |
                                (name.forks != 0 ? kForks : 0)));
  if (name.key.tenant != kDefaultTenant) out.Varint(name.key.tenant);
  out.Text(name.key.name);
  out.Varint(state.revision);
  out.Varint(state.revision - state.created);
  out.Fixed(NumberOf(state.create_time));
  out.Varint(state.max_history);
  out.Fixed(static_cast<uint64_t>(name.last_used));
  if (state.ttl != absl::InfiniteDuration()) out.Fixed(static_cast<uint64_t>(absl::ToInt64Nanoseconds(state.ttl)));
  if (expires) {
    out.Fixed(NumberOf(state.expire_time));
    out.Fixed(static_cast<uint64_t>(state.expire_at));
  }
  if (name.forks != 0) out.Varint(name.forks);
  if (name.key.kind == NameKind::kPrefix) {
    out.Fixed(state.prefix->locator.stem_high);
    out.Fixed(state.prefix->locator.stem_low);
    out.Fixed(state.prefix->locator.check);
  }
  out.Varint(name.versions.size());
  out.Varint(name.recorded);
  for (const RecordedVersion& version : name.versions) PackVersion(version, state.revision, &out);
  out.Varint(state.requests.size());
  for (const AnsweredRequest& request : state.requests) {
    out.Text(request.id);
    out.Fixed(request.body_hash);
    const bool made_head = MadeHead(request, state.revision, name.versions.back());
    out.Byte(made_head);
    if (made_head) continue;
    out.Distance(request.revision, state.revision);
    out.Distance(request.version, state.revision);
    out.Varint(static_cast<uint64_t>(request.position));
    out.Fixed(request.checksum);
  }
  void* block = ::operator new(sizeof(FoldedName) + out.out().size());
  FoldedPtr folded(new (block) FoldedName(state.layout));
  std::memcpy(static_cast<char*>(block) + sizeof(FoldedName), out.out().data(), out.out().size());
  return folded;
}

NameTable::View FoldedName::view() const {
  Unpacker in(bytes());
  const uint8_t has = in.Byte();
  return TakeView(has, &in);
}

Durability FoldedName::durability() const { return static_cast<Durability>(bytes()[0] >> 2 & 3); }

RestingName FoldedName::Unpack() const {
  Unpacker in(bytes());
  const uint8_t has = in.Byte();
  const NameTable::View view = TakeView(has, &in);
  RestingName name;
  name.key = {view.tenant, view.kind, std::string(view.name)};
  NameState& state = name.state;
  state.layout = layout_;
  state.durability = durability();
  state.revision = in.Varint();
  state.created = state.revision - in.Varint();
  state.create_time = TimeOf(in.Fixed());
  state.max_history = static_cast<uint32_t>(in.Varint());
  name.last_used = static_cast<MonoTime>(in.Fixed());
  if (has & kTtl) state.ttl = absl::Nanoseconds(static_cast<int64_t>(in.Fixed()));
  if (has & kExpireTime) {
    state.expire_time = TimeOf(in.Fixed());
    state.expire_at = static_cast<MonoTime>(in.Fixed());
  }
  if (has & kForks) name.forks = static_cast<uint32_t>(in.Varint());
  PrefixIndex::Place place;
  if (name.key.kind == NameKind::kPrefix) {
    place.locator.stem_high = in.Fixed();
    place.locator.stem_low = in.Fixed();
    place.locator.check = in.Fixed();
  }
  name.versions.resize(in.Varint());
  name.recorded = in.Varint();
  for (RecordedVersion& version : name.versions) version = UnpackVersion(state.revision, &in);
  const RecordedVersion& head = name.versions.back();
  state.requests.resize(in.Varint());
  for (AnsweredRequest& request : state.requests) {
    request.id = std::string(in.Text());
    request.body_hash = in.Fixed();
    const bool made_head = in.Byte() != 0;
    request.revision = made_head ? state.revision : in.Distance(state.revision);
    request.version = made_head ? head.id : in.Distance(state.revision);
    request.position = made_head ? head.position : static_cast<int64_t>(in.Varint());
    request.checksum = made_head ? head.checksum : in.Fixed();
  }
  if (name.key.kind == NameKind::kPrefix) {  // the rest of its place follows from its name and its head
    const bool is_hash = Hash128FromHex(name.key.name, &place.key);
    assert(is_hash);
    (void)is_hash;
    place.length = static_cast<uint64_t>(head.position);
    state.prefix = std::make_shared<const PrefixIndex::Place>(place);
  }
  return name;
}

void FoldedDeleter::operator()(const FoldedName* name) const {
  if (name == nullptr) return;
  name->~FoldedName();
  ::operator delete(const_cast<FoldedName*>(name));
}

}  // namespace statepool
