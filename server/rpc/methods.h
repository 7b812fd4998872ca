// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The service's methods, once.
#ifndef STATEPOOL_SERVER_RPC_METHODS_H_
#define STATEPOOL_SERVER_RPC_METHODS_H_

#include <string>
#include <vector>

#include "statepool/v1/statepool.grpc.pb.h"

#define STATEPOOL_UNARY_METHODS(X) \
  X(GetCapabilities)               \
  X(RegisterLayout)                \
  X(GetLayout)                     \
  X(ListLayouts)                   \
  X(DeleteLayout)                  \
  X(Create)                        \
  X(Get)                           \
  X(Set)                           \
  X(GetUpload)                     \
  X(BatchGet)                      \
  X(BatchWrite)                    \
  X(Fork)                          \
  X(Describe)                      \
  X(Touch)                         \
  X(SetTtl)                        \
  X(List)                          \
  X(Delete)                        \
  X(DeleteMany)                    \
  X(Rollback)                      \
  X(RemoveRange)                   \
  X(Renumber)                      \
  X(Snapshot)                      \
  X(Restore)                       \
  X(PublishPrefix)                 \
  X(MatchPrefix)                   \
  X(Flush)                         \
  X(OpenArena)                     \
  X(Load)                          \
  X(Store)                         \
  X(Advance)                       \
  X(CloseArena)                    \
  X(OpenDirect)                    \
  X(Grant)

#define STATEPOOL_METHODS(X) \
  STATEPOOL_UNARY_METHODS(X) \
  X(GetStream)               \
  X(SetStream)

namespace statepool {

enum class Method : size_t {
#define STATEPOOL_ENUMERATOR(method) k##method,
  STATEPOOL_METHODS(STATEPOOL_ENUMERATOR)
#undef STATEPOOL_ENUMERATOR
};

// By Method.
inline std::vector<std::string> MethodNames() {
#define STATEPOOL_NAME(method) #method,
  return {STATEPOOL_METHODS(STATEPOOL_NAME)};
#undef STATEPOOL_NAME
}

// The generated service with every method raw: ByteBuffer in, ByteBuffer out.
#define STATEPOOL_OPEN(method) v1::StatePool::WithRawCallbackMethod_##method <
#define STATEPOOL_CLOSE(method) >
using RawStatePoolService = STATEPOOL_METHODS(STATEPOOL_OPEN) v1::StatePool::Service STATEPOOL_METHODS(STATEPOOL_CLOSE);
#undef STATEPOOL_OPEN
#undef STATEPOOL_CLOSE

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_METHODS_H_
