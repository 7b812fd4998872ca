// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Messages as gRPC hands them over: in slices, cut anywhere.
#ifndef STATEPOOL_TESTS_FUZZ_SLICES_H_
#define STATEPOOL_TESTS_FUZZ_SLICES_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <string>
#include <vector>

#include "tests/fuzz/input.h"

namespace statepool::fuzz {

// `bytes` in slices whose sizes `cuts` decides; some are empty. A slice of 24 bytes or more has memory of exactly its
// own size, so that a read past it is seen.
inline grpc::ByteBuffer CutIntoSlices(absl::string_view bytes, Input* cuts) {
  std::vector<grpc::Slice> slices;
  while (!bytes.empty() && slices.size() < 64) {
    const uint8_t way = cuts->Byte();
    // 0, which is also the end of the decisions: all the rest.
    const size_t size = way == 0 ? bytes.size() : way < 200 ? way - 1 : (way - 199) * 1000;
    const absl::string_view piece = bytes.substr(0, size);
    slices.emplace_back(piece.data(), piece.size());
    bytes.remove_prefix(piece.size());
  }
  if (!bytes.empty()) slices.emplace_back(bytes.data(), bytes.size());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

inline std::string Flat(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string flat;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return flat;
  for (const grpc::Slice& slice : slices) flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return flat;
}

}  // namespace statepool::fuzz

#endif  // STATEPOOL_TESTS_FUZZ_SLICES_H_
