// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// PrefixIndex: finds published prefixes of a token sequence, at any length, without blocks.
//
// The key of the first n tokens is a keyed 128-bit hash, incremental over strides of 64 tokens:
//   stem(0)      = H(tenant, layout fingerprint, extra_key, salt)
//   stem(64·b+64) = H(stem(64·b), tokens[64·b .. 64·b+64))
//   key(n)       = H'(stem(n - n mod 64), tokens[n - n mod 64 .. n), n)
// H, H' are XXH3-128 with secrets derived from the data directory's hash key. The index remembers for each stem which
// tails (n mod 64) were published below it, so a lookup of n tokens costs n/64 stems plus one hash for each candidate,
// not n hashes. A second, independent 64-bit hash over all tokens is compared before a hit is believed: a collision is
// a miss.
#ifndef STATEPOOL_SERVER_CORE_PREFIX_INDEX_H_
#define STATEPOOL_SERVER_CORE_PREFIX_INDEX_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/core/ids.h"
#include "server/core/name.h"

namespace statepool {

struct Hash128 {
  uint64_t high = 0, low = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const Hash128& h) {
    return H::combine(std::move(state), h.high, h.low);
  }
};

// 32 lower-case hex digits: the name of a prefix.
std::string Hash128ToHex(const Hash128& hash);
bool Hash128FromHex(absl::string_view hex, Hash128* hash);

// Thread-safe: immutable.
class PrefixHasher {
 public:
  static constexpr size_t kStride = 64;  // tokens a stem

  // `hash_key`: NameLog::hash_key(). `key_bits` < 128 keeps only so many bits of key(): for tests that force
  // collisions.
  explicit PrefixHasher(absl::string_view hash_key, int key_bits = 128);

  Hash128 Root(TenantId tenant, absl::string_view fingerprint, absl::string_view extra_key,
               absl::string_view salt = "") const;
  Hash128 NextStem(const Hash128& stem, const uint32_t* tokens /* kStride of them */) const;
  Hash128 Key(const Hash128& stem, const uint32_t* tail, size_t tail_size, uint64_t length) const;
  // Over the first n tokens for each n of `lengths`, which ascend; one pass over the tokens. `root` keeps tenants,
  // layouts and extra keys apart.
  std::vector<uint64_t> Checks(const Hash128& root, absl::Span<const uint32_t> tokens,
                               absl::Span<const uint64_t> lengths) const;

 private:
  std::string stem_secret_, key_secret_, check_secret_;
  uint64_t mask_high_, mask_low_;
};

// Not thread-safe: the Store's lock guards it. Holds keys only; what a key points at is a name of kind kPrefix.
class PrefixIndex {
 public:
  struct Place {
    Hash128 key;
    PrefixLocator locator;
    uint64_t length = 0;  // tokens
  };
  struct Candidate {
    Hash128 key;
    uint64_t length = 0;
  };

  // Where the prefix of all `tokens` belongs. Static work: hashes only.
  static Place Locate(const PrefixHasher& hasher, const Hash128& root, absl::Span<const uint32_t> tokens);

  void Insert(const Place& place);
  void Erase(const Place& place);  // REQUIRES: inserted

  // Stems of `tokens` (tokens.size()/64 + 1 of them): work that needs no lock.
  static std::vector<Hash128> Stems(const PrefixHasher& hasher, const Hash128& root, absl::Span<const uint32_t> tokens);
  // Keys published at lengths 1..`longest` below these stems, longest first, at most `limit` of them. The caller
  // compares the check of each. REQUIRES: longest <= tokens.size().
  std::vector<Candidate> Find(const PrefixHasher& hasher, absl::Span<const Hash128> stems,
                              absl::Span<const uint32_t> tokens, uint64_t longest, size_t limit) const;

  size_t size() const { return size_; }

 private:
  struct Tail {
    uint8_t length;  // n mod kStride
    uint32_t count;  // prefixes with it
  };
  absl::flat_hash_map<Hash128, std::vector<Tail>> tails_;  // by stem; sorted by length
  size_t size_ = 0;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_PREFIX_INDEX_H_
