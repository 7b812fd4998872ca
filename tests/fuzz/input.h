// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Input: the bytes of a fuzzer as decisions, and Require, with which a target says what must hold.
//
// Decisions are read from the front, a few bytes each, so that a change of one byte changes one decision. When the
// bytes have come to their end every further one is 0.
#ifndef STATEPOOL_TESTS_FUZZ_INPUT_H_
#define STATEPOOL_TESTS_FUZZ_INPUT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace statepool::fuzz {

// Ends the process, which is how a target tells its fuzzer of a violation.
inline void Require(bool holds, absl::string_view what, absl::string_view detail = {}) {
  if (holds) return;
  std::fprintf(stderr, "VIOLATION: %.*s: %.*s\n", static_cast<int>(what.size()), what.data(),
               static_cast<int>(detail.size()), detail.data());
  std::abort();
}

// Bytes of a state, which differ from those of another seed at nearly every place. Cut from one piece: making them one
// by one under sanitizers would take most of a target's time. REQUIRES: bytes <= 1 MiB.
inline std::string Pattern(uint64_t bytes, uint8_t seed) {
  static const auto* const source = [] {
    auto* random_bytes = new std::string((1 << 20) + 256, '\0');
    std::minstd_rand random(1);
    for (char& byte : *random_bytes) byte = static_cast<char>(random() >> 8);
    return random_bytes;
  }();
  Require(bytes <= 1 << 20, "a pattern that is too long");
  return source->substr(seed, bytes);
}

// Not thread-safe. The bytes must outlive it.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return rest_.empty(); }

  uint8_t Byte() {
    if (rest_.empty()) return 0;
    const auto byte = static_cast<uint8_t>(rest_[0]);
    rest_.remove_prefix(1);
    return byte;
  }
  // Below `n`. REQUIRES: 0 < n <= 256.
  size_t Pick(size_t n) { return Byte() % n; }
  template <typename T>
  const T& Of(const std::vector<T>& choices) {
    return choices[Pick(choices.size())];
  }
  // True in about one of `n`. REQUIRES: 1 < n <= 256. False at the end.
  bool Rarely(size_t n) { return Pick(n) == n - 1; }
  bool Flip() { return (Byte() & 1) != 0; }
  uint64_t Integer(int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | Byte();
    return value;
  }
  absl::string_view Bytes(size_t n) {
    const absl::string_view taken = rest_.substr(0, n);
    rest_.remove_prefix(taken.size());
    return taken;
  }
  absl::string_view Rest() { return Bytes(rest_.size()); }

 private:
  absl::string_view rest_;
};

}  // namespace statepool::fuzz

#endif  // STATEPOOL_TESTS_FUZZ_INPUT_H_
