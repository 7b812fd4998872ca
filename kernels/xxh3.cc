// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "kernels/xxh3.h"

namespace statepool {

// Each is xxh3_variant.cc with other flags.
uint64_t Xxh3Plain(const void* data, size_t size);
#ifdef STATEPOOL_XXH3_X86
uint64_t Xxh3Avx2(const void* data, size_t size);
uint64_t Xxh3Avx512(const void* data, size_t size);
#endif

std::vector<uint64_t (*)(const void* data, size_t size)> Xxh3Variants() {
  std::vector<uint64_t (*)(const void*, size_t)> variants = {Xxh3Plain};
#ifdef STATEPOOL_XXH3_X86
  if (__builtin_cpu_supports("avx2")) variants.push_back(Xxh3Avx2);
  if (__builtin_cpu_supports("avx512f")) variants.push_back(Xxh3Avx512);
#endif
  return variants;
}

uint64_t Xxh3(const void* data, size_t size) {
  static const auto best = Xxh3Variants().back();
  return best(data, size);
}

}  // namespace statepool
