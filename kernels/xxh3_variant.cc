// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// XXH3-64 for one set of vector instructions: compiled once for each, as STATEPOOL_XXH3_VARIANT, with the flags that
// allow them. Nothing else may be in here: an inline function of a header that is compiled with such flags could be
// the one that the linker keeps for all.
#define XXH_INLINE_ALL
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

namespace statepool {

uint64_t STATEPOOL_XXH3_VARIANT(const void* data, size_t size);
uint64_t STATEPOOL_XXH3_VARIANT(const void* data, size_t size) { return XXH3_64bits(data, size); }

}  // namespace statepool
