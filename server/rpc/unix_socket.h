// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Unix sockets in the file system.
#ifndef STATEPOOL_SERVER_RPC_UNIX_SOCKET_H_
#define STATEPOOL_SERVER_RPC_UNIX_SOCKET_H_

#include <sys/un.h>

#include <string>

#include "absl/status/status.h"

namespace statepool {

inline constexpr size_t kMaxSocketPathBytes = sizeof(sockaddr_un::sun_path) - 1;

// Makes room for a socket of `type` (SOCK_STREAM, SOCK_SEQPACKET) at `path`: removes one that a dead daemon left, and
// nothing else. Errors: a sentence for whoever chose the path.
absl::Status ClearSocket(const std::string& path, int type);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_UNIX_SOCKET_H_
