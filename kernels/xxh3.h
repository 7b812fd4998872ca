// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// XXH3-64 with the widest vectors that this CPU has. Debian's libxxhash is built for the oldest CPUs of its
// architecture, and hashing is a large part of what a state costs.
//
// Thread-safe, never fails, the same result everywhere: XXH3_64bits, seed 0.
#ifndef STATEPOOL_KERNELS_XXH3_H_
#define STATEPOOL_KERNELS_XXH3_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace statepool {

uint64_t Xxh3(const void* data, size_t size);

// Every variant that this CPU can run, the plainest first: for tests.
std::vector<uint64_t (*)(const void* data, size_t size)> Xxh3Variants();

}  // namespace statepool

#endif  // STATEPOOL_KERNELS_XXH3_H_
