// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "proto/wire.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace statepool::wire {
namespace {

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };  // 3 and 4 are groups

constexpr int kVarintBytesMax = 10;
constexpr int kTagBytesMax = 5;
constexpr uint64_t kLengthMax = 0x7fffffff;

absl::string_view View(const grpc::Slice& slice) {
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

// Reads forward through slices. After a method returned false the position is meaningless.
class Reader {
 public:
  explicit Reader(absl::Span<const grpc::Slice> slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices_) remaining_ += slice.size();
  }

  uint64_t remaining() const { return remaining_; }

  // The next bytes that lie in one piece, at most n of them. REQUIRES: 0 < n <= remaining().
  absl::string_view Next(uint64_t n) {
    assert(n > 0 && n <= remaining_);
    while (offset_ == slices_[index_].size()) {
      ++index_;
      offset_ = 0;
    }
    const absl::string_view piece = View(slices_[index_]).substr(offset_, n);
    offset_ += piece.size();
    remaining_ -= piece.size();
    return piece;
  }

  // A varint of at most bytes_max bytes. Appends its bytes, as they are, to *raw.
  bool Varint(int bytes_max, uint64_t* value, std::string* raw) {
    *value = 0;
    for (int i = 0; i < bytes_max && remaining_ > 0; ++i) {
      const char c = Next(1)[0];
      raw->push_back(c);
      *value |= static_cast<uint64_t>(c & 0x7f) << (7 * i);
      if ((c & 0x80) == 0) return true;
    }
    return false;
  }

  bool Copy(uint64_t n, std::string* to) {
    if (n > remaining_) return false;
    while (n > 0) {
      const absl::string_view piece = Next(n);
      to->append(piece.data(), piece.size());
      n -= piece.size();
    }
    return true;
  }

 private:
  const absl::Span<const grpc::Slice> slices_;
  size_t index_ = 0;
  size_t offset_ = 0;  // within slices_[index_]
  uint64_t remaining_ = 0;
};

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed message: ", what));
}

void AppendVarint(uint64_t value, std::string* to) {
  for (; value >= 0x80; value >>= 7) to->push_back(static_cast<char>(value | 0x80));
  to->push_back(static_cast<char>(value));
}

}  // namespace

absl::StatusOr<SplitMessage> Split(const grpc::ByteBuffer& message, uint32_t field, size_t max_rest_bytes) {
  SplitMessage out;
  // Dump refuses a buffer that was never filled; to us that is the empty message.
  if (message.Valid() && !message.Dump(&out.slices).ok()) return Malformed("unreadable buffer");

  Reader reader(out.slices);
  std::string head;  // tag and length of the current field
  while (reader.remaining() > 0) {
    head.clear();
    uint64_t tag = 0;
    if (!reader.Varint(kTagBytesMax, &tag, &head)) return Malformed("bad or truncated tag");
    const uint64_t number = tag >> 3;
    if (tag > 0xffffffff || number == 0) return Malformed("bad field number");

    uint64_t bytes = 0;  // that follow `head`
    switch (tag & 7) {
      case kVarint: {
        uint64_t ignored;
        if (!reader.Varint(kVarintBytesMax, &ignored, &head)) return Malformed("bad or truncated varint");
        break;
      }
      case kFixed64: bytes = 8; break;
      case kFixed32: bytes = 4; break;
      case kLengthDelimited:
        if (!reader.Varint(kVarintBytesMax, &bytes, &head) || bytes > kLengthMax) return Malformed("bad length");
        break;
      default: return Malformed("groups and unknown wire types are not accepted");
    }
    if (bytes > reader.remaining()) return Malformed(absl::StrCat("field ", number, " is truncated"));

    if (number == field && (tag & 7) == kLengthDelimited) {
      out.has_data = true;
      out.data_bytes = bytes;
      out.data.clear();
      while (bytes > 0) {
        out.data.push_back(reader.Next(bytes));
        bytes -= out.data.back().size();
      }
      continue;
    }
    if (head.size() + bytes > max_rest_bytes - out.rest.size()) {
      return Malformed(absl::StrCat("the fields beside field ", field, " exceed ", max_rest_bytes, " bytes"));
    }
    out.rest.append(head);
    reader.Copy(bytes, &out.rest);
  }
  return out;
}

grpc::Slice SliceOf(absl::string_view bytes, std::shared_ptr<const void> owner) {
  using Owner = std::shared_ptr<const void>;
  return grpc::Slice(
      const_cast<char*>(bytes.data()), bytes.size(), [](void* user_data) { delete static_cast<Owner*>(user_data); },
      new Owner(std::move(owner)));
}

grpc::ByteBuffer Join(std::string rest, uint32_t field, absl::Span<const grpc::Slice> data,
                      std::shared_ptr<const void> keep) {
  uint64_t data_bytes = 0;
  for (const grpc::Slice& slice : data) data_bytes += slice.size();
  assert(rest.size() + data_bytes < kLengthMax);

  if (data_bytes > 0) {
    AppendVarint(static_cast<uint64_t>(field) << 3 | kLengthDelimited, &rest);
    AppendVarint(data_bytes, &rest);
  }
  std::vector<grpc::Slice> slices;
  slices.reserve(1 + data.size());
  if (keep == nullptr) {
    slices.emplace_back(rest);
  } else {
    const auto head = std::make_shared<std::pair<std::string, std::shared_ptr<const void>>>(std::move(rest), keep);
    slices.push_back(SliceOf(head->first, head));
  }
  slices.insert(slices.end(), data.begin(), data.end());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace statepool::wire
