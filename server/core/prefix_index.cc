// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/prefix_index.h"

#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include <algorithm>
#include <cassert>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace statepool {
namespace {

// A secret for XXH3 derived from the hash key: its bytes look random, as XXH3 asks.
std::string Secret(absl::string_view hash_key, absl::string_view use) {
  std::string secret(XXH3_SECRET_DEFAULT_SIZE, '\0');
  const std::string seed = absl::StrCat(use, ":", hash_key);
  XXH3_generateSecret(secret.data(), secret.size(), seed.data(), seed.size());
  return secret;
}

Hash128 Hash(const std::string& secret, const void* data, size_t size) {
  const XXH128_hash_t h = XXH3_128bits_withSecret(data, size, secret.data(), secret.size());
  return {h.high64, h.low64};
}

// A hash followed by up to a stride of tokens and a length, in one piece on the stack.
struct Block {
  uint64_t high, low, length;
  uint32_t tokens[PrefixHasher::kStride];
};

}  // namespace

std::string Hash128ToHex(const Hash128& hash) { return absl::StrFormat("%016x%016x", hash.high, hash.low); }

bool Hash128FromHex(absl::string_view hex, Hash128* hash) {
  if (hex.size() != 32) return false;
  Checksum high, low;
  if (!ChecksumFromHex(hex.substr(0, 16), &high) || !ChecksumFromHex(hex.substr(16), &low)) return false;
  *hash = {high, low};
  return true;
}

PrefixHasher::PrefixHasher(absl::string_view hash_key, int key_bits)
    : stem_secret_(Secret(hash_key, "stem")),
      key_secret_(Secret(hash_key, "key")),
      check_secret_(Secret(hash_key, "check")) {
  assert(key_bits >= 0 && key_bits <= 128);
  const auto mask = [](int bits) { return bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1; };
  mask_low_ = mask(key_bits);
  mask_high_ = mask(std::max(0, key_bits - 64));
}

Hash128 PrefixHasher::Root(TenantId tenant, absl::string_view fingerprint, absl::string_view extra_key,
                           absl::string_view salt) const {
  const std::string text = absl::StrCat(tenant, ":", fingerprint.size(), ":", fingerprint, ":", extra_key);
  const Hash128 root = Hash(stem_secret_, text.data(), text.size());
  if (salt.empty()) return root;
  const std::string salted = absl::StrCat("salt:", Hash128ToHex(root), ":", salt);
  return Hash(stem_secret_, salted.data(), salted.size());
}

Hash128 PrefixHasher::NextStem(const Hash128& stem, const uint32_t* tokens) const {
  Block block{stem.high, stem.low, kStride, {}};
  std::memcpy(block.tokens, tokens, sizeof block.tokens);
  return Hash(stem_secret_, &block, sizeof block);
}

Hash128 PrefixHasher::Key(const Hash128& stem, const uint32_t* tail, size_t tail_size, uint64_t length) const {
  Block block{stem.high, stem.low, length, {}};
  std::memcpy(block.tokens, tail, tail_size * sizeof *tail);
  Hash128 key = Hash(key_secret_, &block, offsetof(Block, tokens) + tail_size * sizeof *tail);
  key.high &= mask_high_;
  key.low &= mask_low_;
  return key;
}

std::vector<uint64_t> PrefixHasher::Checks(const Hash128& root, absl::Span<const uint32_t> tokens,
                                           absl::Span<const uint64_t> lengths) const {
  std::vector<uint64_t> checks;
  checks.reserve(lengths.size());
  XXH3_state_t state;
  XXH3_64bits_reset_withSecret(&state, check_secret_.data(), check_secret_.size());
  uint64_t hashed = 0;
  for (uint64_t length : lengths) {
    assert(length >= hashed && length <= tokens.size());
    XXH3_64bits_update(&state, tokens.data() + hashed, (length - hashed) * sizeof(uint32_t));
    hashed = length;
    const uint64_t mixed[3] = {root.high, root.low, XXH3_64bits_digest(&state)};
    checks.push_back(XXH3_64bits_withSecret(mixed, sizeof mixed, check_secret_.data(), check_secret_.size()));
  }
  return checks;
}

std::vector<Hash128> PrefixIndex::Stems(const PrefixHasher& hasher, const Hash128& root,
                                        absl::Span<const uint32_t> tokens) {
  std::vector<Hash128> stems{root};
  stems.reserve(tokens.size() / PrefixHasher::kStride + 1);
  for (size_t at = 0; at + PrefixHasher::kStride <= tokens.size(); at += PrefixHasher::kStride) {
    stems.push_back(hasher.NextStem(stems.back(), tokens.data() + at));
  }
  return stems;
}

PrefixIndex::Place PrefixIndex::Locate(const PrefixHasher& hasher, const Hash128& root,
                                       absl::Span<const uint32_t> tokens) {
  const Hash128 stem = Stems(hasher, root, tokens).back();
  const size_t tail = tokens.size() % PrefixHasher::kStride;
  Place place;
  place.length = tokens.size();
  place.key = hasher.Key(stem, tokens.data() + tokens.size() - tail, tail, tokens.size());
  const uint64_t length = tokens.size();
  place.locator = {stem.high, stem.low, hasher.Checks(root, tokens, {&length, 1}).front()};
  return place;
}

void PrefixIndex::Insert(const Place& place) {
  std::vector<Tail>& tails = tails_[{place.locator.stem_high, place.locator.stem_low}];
  const auto length = static_cast<uint8_t>(place.length % PrefixHasher::kStride);
  const auto at =
      std::lower_bound(tails.begin(), tails.end(), length, [](const Tail& t, uint8_t l) { return t.length < l; });
  if (at != tails.end() && at->length == length) {
    ++at->count;
  } else {
    tails.insert(at, {length, 1});
  }
  ++size_;
}

void PrefixIndex::Erase(const Place& place) {
  const auto stem = tails_.find({place.locator.stem_high, place.locator.stem_low});
  assert(stem != tails_.end());
  std::vector<Tail>& tails = stem->second;
  const auto length = static_cast<uint8_t>(place.length % PrefixHasher::kStride);
  const auto at =
      std::lower_bound(tails.begin(), tails.end(), length, [](const Tail& t, uint8_t l) { return t.length < l; });
  assert(at != tails.end() && at->length == length);
  if (--at->count == 0) tails.erase(at);
  if (tails.empty()) tails_.erase(stem);
  --size_;
}

std::vector<PrefixIndex::Candidate> PrefixIndex::Find(const PrefixHasher& hasher, absl::Span<const Hash128> stems,
                                                      absl::Span<const uint32_t> tokens, uint64_t longest,
                                                      size_t limit) const {
  assert(longest <= tokens.size());
  std::vector<Candidate> found;
  for (size_t i = std::min<size_t>(stems.size(), longest / PrefixHasher::kStride + 1); i-- > 0;) {
    const auto stem = tails_.find(stems[i]);
    if (stem == tails_.end()) continue;
    const size_t begin = i * PrefixHasher::kStride;
    for (auto tail = stem->second.rbegin(); tail != stem->second.rend(); ++tail) {
      const uint64_t length = begin + tail->length;
      if (length == 0 || length > longest) continue;
      if (found.size() == limit) return found;
      found.push_back({hasher.Key(stems[i], tokens.data() + begin, tail->length, length), length});
    }
  }
  return found;
}

}  // namespace statepool
