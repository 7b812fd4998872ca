// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// ArenaSocket: hands arenas' memory, and slots' to direct leases, to workers, and watches them. The protocol stands in
// the .proto (ARENAS, DIRECT).
//
// A thread of its own accepts connections, exchanges a token for an arena or a direct lease, and then waits for two
// things of each connection: that it hangs up (the lease ends), and that the process that opened it is gone (its memory
// is free). The process is watched through a pidfd, which can't come to mean another process. What workers with a
// direct lease send is answered as it comes; whoever has no room for an answer is hung up on.
#ifndef STATEPOOL_SERVER_RPC_ARENA_SOCKET_H_
#define STATEPOOL_SERVER_RPC_ARENA_SOCKET_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/core/clock.h"
#include "server/memory/arenas.h"
#include "server/memory/leases.h"

namespace statepool {

struct ArenaSocketOptions {
  std::string path;  // "@name": in the abstract namespace
  std::string incarnation;
  std::vector<uid_t> uids;                       // that may connect, besides the daemon's own and root
  size_t max_connections = 64;                   // beside those that have an arena
  absl::Duration token_time = absl::Seconds(5);  // that a connection may take to send its token
};

class ArenaSocket {
 public:
  // Listens. `arenas` and `leases` (null: none) must outlive it. Errors: the path can't be used.
  static absl::StatusOr<std::unique_ptr<ArenaSocket>> Start(ArenaSocketOptions options, Arenas* arenas, Leases* leases,
                                                            const Clock* clock);
  ~ArenaSocket();  // hangs up all connections, and removes the socket
  ArenaSocket(const ArenaSocket&) = delete;
  ArenaSocket& operator=(const ArenaSocket&) = delete;

 private:
  // Of one accepted connection, until there is nothing to watch any more. The thread's own.
  struct Connection {
    int socket = -1;  // -1: hung up
    int pidfd = -1;   // -1: not known yet, or gone
    pid_t pid = 0;    // for people; 0 in another pid namespace
    MonoTime token_due = 0;
    std::string arena, lease;  // one of them; both empty: no token yet

    bool has_token() const { return !arena.empty() || !lease.empty(); }
  };

  ArenaSocket(ArenaSocketOptions options, Arenas* arenas, Leases* leases, const Clock* clock)
      : options_(std::move(options)), arenas_(arenas), leases_(leases), clock_(clock) {}

  bool is_abstract() const { return options_.path[0] == '@'; }
  absl::Status Listen();
  void Run();
  void Accept();
  void Receive(uint64_t id, Connection* connection);
  // What a token is for: the connection has it then, `arena` too if it is one. Errors: the socket's own reasons.
  absl::Status Admit(absl::string_view token, Connection* connection, Arenas::Lease* arena) const;
  bool MayConnect(uid_t uid) const;
  // Messages of a worker with an arena. False: it hung up, or is no worker of ours.
  bool HearOfArena(const Connection& connection);
  // Messages of a worker with a direct lease. False: it hung up, or is no worker of ours.
  bool Serve(const Connection& connection);
  bool HandOut(const Connection& connection, uint64_t extent) const;
  void HangUp(Connection* connection) const;
  void ProcessGone(Connection* connection) const;
  // With at most kDescriptorsMax descriptors. False: the peer got nothing.
  bool Answer(const Connection& connection, const std::string& message_bytes, absl::Span<const int> fds = {}) const;
  void CloseLate();
  void AskBack() const;
  void Watch(int fd, uint64_t key) const;

  const ArenaSocketOptions options_;
  Arenas* const arenas_;
  Leases* const leases_;
  const Clock* const clock_;
  int listener_ = -1, epoll_ = -1, stop_ = -1;
  uint64_t next_id_ = 1;
  MonoTime warn_at_ = 0;  // not more often than once a second
  MonoTime next_round_ = 0;
  std::string received_;  // room for a message
  std::map<uint64_t, Connection> connections_;
  std::thread thread_;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_RPC_ARENA_SOCKET_H_
