// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/arena_socket.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "server/core/error.h"
#include "server/rpc/unix_socket.h"
#include "spdlog/spdlog.h"
#include "statepool/v1/statepool.pb.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5
#endif

namespace statepool {
namespace {

constexpr size_t kTokenBytesMax = 64;
// How late a connection without a token, an arena that is gone, or an extent to ask back may be noticed.
constexpr int kRoundMs = 100;
constexpr size_t kRequestBytesMax = 128 << 10;       // of a LeaseRequest
constexpr int kUnpinMax = 8192;                      // in one
constexpr size_t kDescriptorsMax = 64;               // in one event; what the .proto says (Linux: 253)
constexpr int kRequestsAtOnce = 16;                  // before others have their turn
constexpr absl::string_view kUnmapped = "unmapped";  // all that a worker says of an arena
constexpr int kLastWordsMax = 256;                   // of a worker that is gone

// What epoll tells of: a connection's id, and which of its descriptors.
enum Which : uint64_t { kSocket = 0, kProcess = 1 };
constexpr uint64_t kListener = 0, kStop = 1;
constexpr uint64_t KeyOf(uint64_t id, Which which) { return id << 1 | which; }

absl::Status Refused(absl::string_view reason, absl::string_view message) {
  return Error(absl::StatusCode::kPermissionDenied, reason, message);
}

void Close(int* fd) {
  if (*fd >= 0) close(std::exchange(*fd, -1));
}

// A descriptor of the process that connected; -1 if there is no way to tell.
int PeerProcess(int socket, pid_t pid) {
  int pidfd = -1;
  socklen_t size = sizeof(pidfd);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) return pidfd;
  if (pid <= 0) return -1;              // it is in another pid namespace
  if (errno != ENOPROTOOPT) return -1;  // this kernel can tell, and can't
  pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  // Its number may be another process's by now: but then its socket has hung up.
  pollfd hung_up = {socket, 0, 0};
  if (pidfd >= 0 && poll(&hung_up, 1, 0) != 0) Close(&pidfd);
  return pidfd;
}

// Hangs up on a peer that was answered. What it has sent is read, or the kernel would tell it of a reset connection
// before the answer.
void Dismiss(int* socket) {
  char ignored[kTokenBytesMax];
  while (recv(*socket, ignored, sizeof(ignored), MSG_DONTWAIT) > 0) continue;
  Close(socket);
}

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"\"", "\\\""}}), "\"");
}

}  // namespace

absl::StatusOr<std::unique_ptr<ArenaSocket>> ArenaSocket::Start(ArenaSocketOptions options, Arenas* arenas,
                                                                Leases* leases, const Clock* clock) {
  std::unique_ptr<ArenaSocket> socket(new ArenaSocket(std::move(options), arenas, leases, clock));
  if (absl::Status status = socket->Listen(); !status.ok()) return status;
  socket->thread_ = std::thread([s = socket.get()] { s->Run(); });
  return socket;
}

absl::Status ArenaSocket::Listen() {
  const std::string& path = options_.path;
  if (!is_abstract()) {
    if (absl::Status status = ClearSocket(path, SOCK_SEQPACKET); !status.ok()) return status;
  } else if (path.size() > kMaxSocketPathBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a socket's name has at most ", kMaxSocketPathBytes, " bytes: ", path));
  }
  const auto failed = [&](absl::string_view call) {
    return absl::FailedPreconditionError(absl::StrCat("cannot listen on ", path, ": ", call, ": ", strerror(errno)));
  };
  listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener_ < 0) return failed("socket");
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, path.data(), path.size());
  if (is_abstract()) address.sun_path[0] = '\0';
  // Of an abstract name every byte counts; a path ends with its zero.
  const size_t size = offsetof(sockaddr_un, sun_path) + path.size() + (is_abstract() ? 0 : 1);
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), static_cast<socklen_t>(size)) != 0) return failed("bind");
  // Who may have arenas is decided by the user behind a connection, and said in words.
  if (!is_abstract() && chmod(path.c_str(), 0666) != 0) return failed("chmod");
  if (listen(listener_, 128) != 0) return failed("listen");
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  received_.resize(kRequestBytesMax + 1);
  stop_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_ < 0 || stop_ < 0) return failed("epoll");
  Watch(listener_, kListener);
  Watch(stop_, kStop);
  return absl::OkStatus();
}

ArenaSocket::~ArenaSocket() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    if (write(stop_, &one, sizeof(one)) != sizeof(one))
      spdlog::error("the arena socket's thread can't be told to stop");
    thread_.join();
  }
  for (auto& [id, connection] : connections_) {
    Close(&connection.socket);
    Close(&connection.pidfd);
  }
  if (listener_ >= 0 && !is_abstract()) unlink(options_.path.c_str());
  Close(&listener_);
  Close(&epoll_);
  Close(&stop_);
}

void ArenaSocket::Watch(int fd, uint64_t key) const {
  epoll_event event = {};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = key;
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) spdlog::error("epoll: {}", strerror(errno));
}

void ArenaSocket::Run() {
  for (;;) {
    epoll_event events[64];
    const int count = epoll_wait(epoll_, events, 64, kRoundMs);
    for (int i = 0; i < count; ++i) {
      const uint64_t key = events[i].data.u64;
      if (key == kStop) return;
      if (key == kListener) {
        Accept();
        continue;
      }
      const auto it = connections_.find(key >> 1);
      if (it == connections_.end()) continue;
      Connection& connection = it->second;
      if ((key & 1) == kProcess) {
        ProcessGone(&connection);
      } else if (!connection.has_token()) {
        Receive(it->first, &connection);
      } else if (connection.lease.empty() ? !HearOfArena(connection) : !Serve(connection)) {
        // It hung up, or sent something that makes no sense.
        HangUp(&connection);
      }
      if (connection.socket < 0 && connection.pidfd < 0) connections_.erase(it);
    }
    if (const MonoTime now = clock_->Now(); now >= next_round_) {
      next_round_ = After(now, absl::Milliseconds(kRoundMs));
      CloseLate();
      AskBack();
    }
  }
}

void ArenaSocket::HangUp(Connection* connection) const {
  Close(&connection->socket);
  if (!connection->arena.empty()) arenas_->LeaseEnded(connection->arena);
  if (!connection->lease.empty()) leases_->LeaseEnded(connection->lease);
}

void ArenaSocket::ProcessGone(Connection* connection) const {
  Close(&connection->pidfd);
  if (!connection->arena.empty()) arenas_->ProcessGone(connection->arena);
  if (!connection->lease.empty()) leases_->ProcessGone(connection->lease);
  Close(&connection->socket);
}

void ArenaSocket::Accept() {
  for (;;) {
    Connection connection;
    connection.socket = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (connection.socket < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno != EAGAIN) {  // no descriptors left: in a moment there may be
        if (const MonoTime now = clock_->Now(); now >= warn_at_) {
          spdlog::warn("arena socket: accept: {}", strerror(errno));
          warn_at_ = After(now, absl::Seconds(1));
        }
        poll(nullptr, 0, 10);
      }
      return;
    }
    ucred peer = {};
    socklen_t size = sizeof(peer);
    if (getsockopt(connection.socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || !MayConnect(peer.uid)) {
      spdlog::info("arena socket: a process of user {} was refused", peer.uid);
      Answer(connection, absl::StrCat(R"({"reason":"PEER_REFUSED","message":"user )", peer.uid,
                                      " may not have arenas of this daemon, which runs as user ", geteuid(),
                                      R"(; --arena-uids allows others"})"));
      Dismiss(&connection.socket);
      continue;
    }
    connection.pid = peer.pid;
    const auto waiting = std::count_if(connections_.begin(), connections_.end(),
                                       [](const auto& entry) { return !entry.second.has_token(); });
    if (static_cast<size_t>(waiting) >= options_.max_connections) {
      Answer(connection, R"({"reason":"TOO_MANY_CONNECTIONS","message":"too many connections wait without a token"})");
      Dismiss(&connection.socket);
      continue;
    }
    connection.token_due = After(clock_->Now(), options_.token_time);
    const uint64_t id = next_id_++;
    Watch(connection.socket, KeyOf(id, kSocket));
    connections_.emplace(id, std::move(connection));
  }
}

void ArenaSocket::Receive(uint64_t id, Connection* connection) {
  char token[kTokenBytesMax + 1];
  const ssize_t size = recv(connection->socket, token, sizeof(token), 0);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size <= 0) {  // it hung up, or sent an empty message: who can tell
    Answer(*connection, R"({"reason":"TOKEN_INVALID","message":"an empty message is no token"})");
    return Close(&connection->socket);
  }
  Arenas::Lease arena;
  const absl::Status status = Admit({token, static_cast<size_t>(size)}, connection, &arena);
  if (!status.ok()) {
    spdlog::info("arena socket: process {} was refused: {}", connection->pid, std::string(status.message()));
    Answer(*connection,
           absl::StrCat(R"({"reason":)", Quoted(ReasonOf(status)), R"(,"message":)", Quoted(status.message()), "}"));
    Close(&connection->socket);
    Close(&connection->pidfd);
    return;
  }
  Watch(connection->pidfd, KeyOf(id, kProcess));
  std::string what = connection->arena.empty()
                         ? absl::StrCat(R"({"lease":)", Quoted(connection->lease))
                         : absl::StrCat(R"({"arena":)", Quoted(arena.arena), R"(,"bytes":)", arena.bytes,
                                        R"(,"mapped_bytes":)", arena.mapped_bytes);
  std::vector<int> fds;
  if (arena.fd >= 0) fds.push_back(arena.fd);
  if (arena.flags_fd >= 0) {
    absl::StrAppend(&what, R"(,"flag_bytes":)", FlagWords::kBytes);
    fds.push_back(arena.flags_fd);
  }
  const bool sent =
      Answer(*connection, absl::StrCat(what, R"(,"incarnation":)", Quoted(options_.incarnation), "}"), fds);
  Close(&arena.fd);
  Close(&arena.flags_fd);
  if (!sent) HangUp(connection);
}

bool ArenaSocket::MayConnect(uid_t uid) const {
  return uid == geteuid() || uid == 0 ||
         std::find(options_.uids.begin(), options_.uids.end(), uid) != options_.uids.end();
}

absl::Status ArenaSocket::Admit(absl::string_view token, Connection* connection, Arenas::Lease* arena) const {
  connection->pidfd = PeerProcess(connection->socket, connection->pid);
  if (connection->pidfd < 0 && (errno == EMFILE || errno == ENFILE))
    return Refused("NO_DESCRIPTORS", "the daemon has no descriptor to spare; try again");
  if (connection->pidfd < 0) {
    return Refused(
        "PEER_UNKNOWN",
        "the worker's process can't be watched: it is gone, or it is in another pid namespace and the kernel "
        "is older than Linux 6.5");
  }
  absl::StatusOr<Arenas::Lease> connected = arenas_->Connect(token);
  if (connected.ok()) {
    *arena = *std::move(connected);
    connection->arena = arena->arena;
    return absl::OkStatus();
  }
  if (leases_ == nullptr || ReasonOf(connected.status()) != "TOKEN_INVALID") return connected.status();
  absl::StatusOr<std::string> lease = leases_->Connect(token);
  if (lease.ok()) connection->lease = *std::move(lease);
  return lease.status();
}

bool ArenaSocket::HearOfArena(const Connection& connection) {
  for (int i = 0; i < kRequestsAtOnce; ++i) {
    const ssize_t size = recv(connection.socket, received_.data(), received_.size(), 0);
    if (size < 0 && errno == ECONNRESET) continue;  // told once, before the last words that are there
    if (size < 0) return errno == EAGAIN || errno == EINTR;
    if (absl::string_view(received_.data(), static_cast<size_t>(size)) != kUnmapped) return false;
    arenas_->Unmapped(connection.arena);
  }
  return true;
}

bool ArenaSocket::Serve(const Connection& connection) {
  bool is_there = true;
  for (int i = 0; i < (is_there ? kRequestsAtOnce : kLastWordsMax); ++i) {
    const ssize_t size = recv(connection.socket, received_.data(), received_.size(), 0);
    if (size < 0 && errno == ECONNRESET) continue;  // told once, before the last words that are there
    if (size < 0) return is_there && (errno == EAGAIN || errno == EINTR);
    v1::LeaseRequest request;
    const bool understood = size > 0 && static_cast<size_t>(size) <= kRequestBytesMax &&
                            request.ParseFromArray(received_.data(), static_cast<int>(size)) &&
                            request.unpin_size() <= kUnpinMax && request.dropped_size() <= kUnpinMax;
    if (!understood) return false;
    leases_->Unpin(connection.lease, request.unpin());
    leases_->Dropped(connection.lease, request.dropped());
    // Who is not there for an answer may have left last words.
    if (request.extent() != 0) is_there = is_there && HandOut(connection, request.extent());
  }
  return is_there;
}

bool ArenaSocket::HandOut(const Connection& connection, uint64_t extent) const {
  v1::LeaseEvent event;
  event.set_extent(extent);
  absl::StatusOr<Leases::Handout> handout = leases_->HandOut(connection.lease, extent);
  if (!handout.ok()) {
    event.set_reason(ReasonOf(handout.status()));
    return Answer(connection, event.SerializeAsString());
  }
  event.set_bytes(handout->bytes);
  event.set_writable(handout->writable);
  event.set_chunk_bytes(handout->bytes / handout->fds.size());
  if (absl::StartsWith(handout->device, "cuda:")) event.set_device(handout->device);
  const std::string message = event.SerializeAsString();
  bool sent = true;
  absl::Span<const int> left = handout->fds;
  for (bool first = true; sent && !left.empty(); first = false) {
    const absl::Span<const int> some = left.subspan(0, kDescriptorsMax);
    sent = Answer(connection, message, some);
    // Who has a part of it counts as who has it all.
    if (!sent && first) leases_->Dropped(connection.lease, {extent});
    left.remove_prefix(some.size());
  }
  for (int& fd : handout->fds) Close(&fd);
  return sent;
}

// Tells workers which extents the daemon wants back.
void ArenaSocket::AskBack() const {
  if (leases_ == nullptr) return;
  for (const auto& [lease, extents] : leases_->Tend()) {
    for (const auto& [id, connection] : connections_) {
      if (connection.lease != lease || connection.socket < 0) continue;
      v1::LeaseEvent event;
      event.mutable_drop()->Add(extents.begin(), extents.end());
      if (!Answer(connection, event.SerializeAsString())) leases_->NotTold(lease, extents);
    }
  }
}

bool ArenaSocket::Answer(const Connection& connection, const std::string& message_bytes,
                         absl::Span<const int> fds) const {
  iovec data = {const_cast<char*>(message_bytes.data()), message_bytes.size()};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsMax * sizeof(int))] = {};
  if (!fds.empty()) {
    const size_t bytes = fds.size() * sizeof(int);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(bytes);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(header), fds.data(), bytes);
  }
  if (sendmsg(connection.socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return true;
  spdlog::debug("arena socket: no answer to process {}: {}", connection.pid, strerror(errno));
  return false;
}

// Connections that never sent a token, and those whose arena is gone though their process lives.
void ArenaSocket::CloseLate() {
  const MonoTime now = clock_->Now();
  for (auto it = connections_.begin(); it != connections_.end();) {
    Connection& connection = it->second;
    const bool late = !connection.has_token() && now >= connection.token_due;
    const bool over = (!connection.arena.empty() && arenas_->IsGone(connection.arena)) ||
                      (!connection.lease.empty() && leases_->IsGone(connection.lease));
    if (late || over) {
      if (late) Answer(connection, R"({"reason":"TOKEN_INVALID","message":"no token came in time"})");
      Close(&connection.socket);
      Close(&connection.pidfd);
    }
    it = connection.socket < 0 && connection.pidfd < 0 ? connections_.erase(it) : std::next(it);
  }
}

}  // namespace statepool
