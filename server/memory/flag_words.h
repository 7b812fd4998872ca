// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// FlagWords: the 32-bit words of one arena, in host memory that its worker maps too, and its GPU may. What they mean
// stands in the .proto (ARENAS, flag words).
//
// A worker can write anything there at any time: no value is trusted, but to say when the worker's own rows may be
// touched. The memory is a memfd that can neither shrink nor grow, of this arena alone; it goes with this object and
// the worker's mapping.
#ifndef STATEPOOL_SERVER_MEMORY_FLAG_WORDS_H_
#define STATEPOOL_SERVER_MEMORY_FLAG_WORDS_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"

namespace statepool {

struct FlagValue {
  uint32_t word = 0;
  uint32_t value = 0;
};

// The words of one call.
struct CallFlags {
  std::optional<FlagValue> after;  // reached: the call's rows may be touched
  std::optional<FlagValue> done;   // set: they are not touched any more
  explicit operator bool() const { return after.has_value() || done.has_value(); }
};

// Thread-safe.
class FlagWords {
 public:
  static constexpr uint32_t kCount = 1024;  // one page
  static constexpr uint64_t kBytes = kCount * sizeof(uint32_t);
  static constexpr uint32_t kFailures = 0;  // the daemon's own word: calls that failed after their answer

  // All words are 0. Errors: RESOURCE_EXHAUSTED / HOT_FULL when the system has no memory or no descriptor for it.
  static absl::StatusOr<std::unique_ptr<FlagWords>> Create();
  ~FlagWords();
  FlagWords(const FlagWords&) = delete;
  FlagWords& operator=(const FlagWords&) = delete;

  // A descriptor of the memory for another process: the caller's to close. Errors: NO_DESCRIPTORS.
  absl::StatusOr<int> Export() const;

  // REQUIRES of all: a word that there is.

  // Whether the word has come to this value or beyond: what was written before the word was is seen then.
  bool Reached(FlagValue at) const;
  // Whoever sees this value sees what was written before.
  void Set(FlagValue to);

 private:
  FlagWords(int fd, uint32_t* words) : fd_(fd), words_(words) {}

  const int fd_;
  uint32_t* const words_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_FLAG_WORDS_H_
