// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Names that nobody can guess.
#ifndef STATEPOOL_SERVER_MEMORY_TOKEN_H_
#define STATEPOOL_SERVER_MEMORY_TOKEN_H_

#include <sys/random.h>

#include <cstdlib>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace statepool {

// 128 random bits, as 32 hex digits. The kernel has them at any time, but for its first moments.
inline std::string RandomToken() {
  char bytes[16];
  if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) std::abort();
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_TOKEN_H_
