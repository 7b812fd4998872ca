// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Calls: every RPC from its serialized request to its answer, over a World, as server/rpc/service*.cc serves it but for
// gRPC's reactors, the executor and admission.
#ifndef STATEPOOL_TESTS_FUZZ_CALLS_H_
#define STATEPOOL_TESTS_FUZZ_CALLS_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/rpc/methods.h"
#include "server/rpc/uploads.h"
#include "tests/fuzz/world.h"

namespace statepool::fuzz {

struct Answer {
  absl::Status status;
  std::unique_ptr<google::protobuf::Message> message;  // with OK
  std::string data;                                    // of the states: those of a stream one after the other
};

// An empty message of the method's request type.
std::unique_ptr<google::protobuf::Message> NewRequest(Method method);

// Any method. A SetStream's request is all of its messages; here it is one.
Answer Call(World* world, Method method, const grpc::ByteBuffer& request);

// A SetStream under way: message after message, then Complete; gone before that it was broken off. After an error it
// has ended. The World must outlive it.
class SetStream {
 public:
  explicit SetStream(World* world) : world_(world) {}

  absl::Status Message(const grpc::ByteBuffer& message);
  absl::StatusOr<NameInfo> Complete();
  bool open() const { return upload_ != nullptr; }
  const Uploads::Upload* upload() const { return upload_.get(); }

 private:
  absl::Status Take(const grpc::ByteBuffer& message);

  World* const world_;
  std::unique_ptr<Uploads::Upload> upload_;
};

}  // namespace statepool::fuzz

#endif  // STATEPOOL_TESTS_FUZZ_CALLS_H_
