// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/mapping.h"

#include <fcntl.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "client/cpp/errors.h"
#include "client/cpp/gpu.h"

namespace statepool::client {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
constexpr size_t kAnswerBytesMax = 65536;
constexpr size_t kDescriptorsMax = 4;

absl::Status MappingFailed(uint64_t bytes) {
  return MakeError(absl::StatusCode::kResourceExhausted, "MAPPING_FAILED", "",
                   absl::StrCat("mmap of ", bytes, " bytes: ", std::strerror(errno)));
}

absl::Status Unreachable(const std::string& path, absl::string_view why) {
  return MakeError(absl::StatusCode::kUnavailable, "SOCKET_UNREACHABLE", "socket",
                   absl::StrCat(path, ": ", why, "; an arena needs the daemon on this machine"));
}

absl::Status BadAnswer(absl::string_view what) {
  return MakeError(absl::StatusCode::kInternal, "BAD_ANSWER", "socket",
                   absl::StrCat("the arena's socket answered ", what));
}

absl::StatusCode CodeOfRefusal(absl::string_view reason) {
  if (reason == "TOKEN_INVALID") return absl::StatusCode::kUnauthenticated;
  if (reason == "PEER_REFUSED") return absl::StatusCode::kPermissionDenied;
  if (reason == "PEER_UNKNOWN") return absl::StatusCode::kFailedPrecondition;
  if (reason == "TOO_MANY_CONNECTIONS" || reason == "NO_DESCRIPTORS") return absl::StatusCode::kResourceExhausted;
  return absl::StatusCode::kUnknown;
}

// Again when a signal came between.
template <typename Operation>
ssize_t Uninterrupted(Operation operation) {
  ssize_t result;
  do {
    result = operation();
  } while (result < 0 && errno == EINTR);
  return result;
}

// Sends the token; gives the answer and the descriptors that came with it. False: errno says why.
bool Exchange(int socket, const sockaddr_un& address, socklen_t size, const std::string& token, std::string* answer,
              std::vector<Descriptor>* descriptors) {
  if (Uninterrupted([&] { return connect(socket, reinterpret_cast<const sockaddr*>(&address), size); }) < 0)
    return false;
  // Where it was refused already the answer says why.
  if (Uninterrupted([&] { return send(socket, token.data(), token.size(), MSG_NOSIGNAL); }) < 0 && errno != EPIPE &&
      errno != ECONNRESET) {
    return false;
  }
  answer->resize(kAnswerBytesMax);
  iovec piece = {answer->data(), answer->size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsMax * sizeof(int))];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t received = Uninterrupted([&] { return recvmsg(socket, &message, MSG_CMSG_CLOEXEC); });
  // A reset is told once, before the answer that is there.
  if (received < 0 && errno == ECONNRESET) received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (received < 0) return false;
  answer->resize(static_cast<size_t>(received));
  *descriptors = DescriptorsOf(&message);
  return true;
}

std::string TextOf(const google::protobuf::Struct& told, const char* field) {
  const auto it = told.fields().find(field);
  return it == told.fields().end() ? std::string() : it->second.string_value();
}

// What a socket told, or the error that it told.
absl::StatusOr<google::protobuf::Struct> Read(const std::string& path, const std::string& answer) {
  if (answer.empty()) return Unreachable(path, "the daemon hung up");
  google::protobuf::Struct told;
  if (!google::protobuf::util::JsonStringToMessage(answer, &told).ok())
    return BadAnswer(absl::StrCat("'", absl::string_view(answer).substr(0, 100), "'"));
  if (const std::string reason = TextOf(told, "reason"); !reason.empty())
    return MakeError(CodeOfRefusal(reason), reason, "token", TextOf(told, "message"));
  return told;
}

// A number, exact up to 2^53, or text.
uint64_t NumberOf(const google::protobuf::Struct& told, const char* field) {
  const auto it = told.fields().find(field);
  uint64_t number = 0;
  if (it == told.fields().end() || absl::SimpleAtoi(it->second.string_value(), &number)) return number;
  return static_cast<uint64_t>(std::max(it->second.number_value(), 0.0));
}

absl::Status Check(const v1::Arena& arena, const google::protobuf::Struct& told,
                   const std::vector<Descriptor>& descriptors) {
  const auto text = [&told](const char* field) { return TextOf(told, field); };
  const uint64_t bytes = NumberOf(told, "bytes");
  if (text("arena") != arena.arena() || text("incarnation") != arena.incarnation() || bytes != arena.bytes() ||
      descriptors.size() != 1) {
    return BadAnswer(absl::StrCat("of arena '", text("arena"), "' of ", bytes, " bytes and ", descriptors.size(),
                                  " descriptors, not of '", arena.arena(), "' of ", arena.bytes(), " and one"));
  }
  if (IsGpu(arena.device())) {
    const uint64_t mapped_bytes = NumberOf(told, "mapped_bytes");
    if (mapped_bytes >= bytes) return absl::OkStatus();
    return MakeError(absl::StatusCode::kInternal, "BAD_MEMORY", "mapped_bytes",
                     absl::StrCat(mapped_bytes, " bytes of a GPU's memory are no arena of ", bytes),
                     {{"expected", absl::StrCat(bytes)}, {"actual", absl::StrCat(mapped_bytes)}});
  }
  struct stat status {};
  if (fstat(descriptors[0].get(), &status) != 0) return BadAnswer("with something that is no memory");
  if (static_cast<uint64_t>(status.st_size) < arena.bytes()) {
    return MakeError(absl::StatusCode::kInternal, "BAD_MEMORY", "bytes",
                     absl::StrCat("the arena's memory has ", status.st_size, " bytes, not ", arena.bytes()),
                     {{"expected", absl::StrCat(arena.bytes())}, {"actual", absl::StrCat(status.st_size)}});
  }
  const int seals = std::max(fcntl(descriptors[0].get(), F_GET_SEALS), 0);  // < 0: no memfd
  if ((seals & kSeals) != kSeals) {
    return MakeError(
        absl::StatusCode::kInternal, "BAD_MEMORY", "",
        absl::StrCat("the arena's memory could shrink or grow under us: its seals are 0x", absl::Hex(seals)));
  }
  return absl::OkStatus();
}

// Connects and sends a token: what the daemon answered.
absl::StatusOr<Descriptor> Take(const std::string& path, const std::string& token, absl::Time deadline,
                                google::protobuf::Struct* told, std::vector<Descriptor>* descriptors) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) return BadAnswer("with a path that is no socket's");
  std::memcpy(address.sun_path, path.data(), path.size());
  // "@name": in the abstract namespace, where every byte counts.
  const bool is_abstract = path[0] == '@';
  if (is_abstract) address.sun_path[0] = '\0';
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + (is_abstract ? 0 : 1));
  Descriptor connection(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (connection.get() < 0) return Unreachable(path, std::strerror(errno));
  if (deadline != absl::InfiniteFuture()) {  // a timeout of 0 would be none
    const timeval left = absl::ToTimeval(std::max(deadline - absl::Now(), absl::Milliseconds(1)));
    for (const int option : {SO_SNDTIMEO, SO_RCVTIMEO})  // the first holds for connect as well
      setsockopt(connection.get(), SOL_SOCKET, option, &left, sizeof left);
  }
  std::string answer;
  if (!Exchange(connection.get(), address, size, token, &answer, descriptors))
    return Unreachable(path, std::strerror(errno));
  absl::StatusOr<google::protobuf::Struct> read = Read(path, answer);
  if (!read.ok()) return read.status();
  *told = *std::move(read);
  return connection;
}

class HostRange final : public Range {
 public:
  HostRange(char* data, uint64_t bytes) : Range(data, bytes) {}
  ~HostRange() override { munmap(data_, bytes_); }

  absl::Status Put(int fd) override {
    constexpr int kFlags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;
    is_mapped_ = mmap(data_, bytes_, PROT_READ | PROT_WRITE, kFlags, fd, 0) != MAP_FAILED;
    if (is_mapped_) return absl::OkStatus();
    const absl::Status failed = MappingFailed(bytes_);
    Vacate().IgnoreError();
    return failed;
  }
  absl::Status Vacate() override {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    if (mmap(data_, bytes_, PROT_READ | PROT_WRITE, kFlags, -1, 0) == MAP_FAILED) return MappingFailed(bytes_);
    is_mapped_ = false;
    return absl::OkStatus();
  }
  bool is_mapped() const override { return is_mapped_; }
  absl::Status WaitFor(CUstream_st*) const override { return absl::OkStatus(); }

 private:
  bool is_mapped_ = false;
};

class HostChunks final : public MappedChunks {
 public:
  HostChunks(char* data, uint64_t bytes, uint64_t chunk_bytes, bool writable)
      : MappedChunks(data), pid_(getpid()), bytes_(bytes), chunk_bytes_(chunk_bytes), writable_(writable) {}
  ~HostChunks() override {
    if (writable_ && getpid() != pid_) return;  // a forked child has other things there
    munmap(data_, bytes_);
  }

  absl::Status Add(const Descriptor& chunk) override {
    struct stat status {};
    if (fstat(chunk.get(), &status) != 0 || static_cast<uint64_t>(status.st_size) < chunk_bytes_ ||
        (std::max(fcntl(chunk.get(), F_GET_SEALS), 0) & kSeals) != kSeals) {
      return MakeError(absl::StatusCode::kInternal, "BAD_MEMORY", "",
                       absl::StrCat("a chunk is no memory of ", chunk_bytes_, " bytes that stays as large"));
    }
    const int protection = writable_ ? PROT_READ | PROT_WRITE : PROT_READ;
    const int flags = MAP_SHARED | MAP_FIXED | (writable_ ? MAP_POPULATE : 0);
    if (mmap(data_ + mapped_bytes_, chunk_bytes_, protection, flags, chunk.get(), 0) == MAP_FAILED)
      return MappingFailed(chunk_bytes_);
    mapped_bytes_ += chunk_bytes_;
    return absl::OkStatus();
  }
  absl::Status Finish() override {
    if (writable_) (void)madvise(data_, bytes_, MADV_DONTFORK);
    return absl::OkStatus();
  }

 private:
  const pid_t pid_;
  const uint64_t bytes_, chunk_bytes_;
  const bool writable_;
  uint64_t mapped_bytes_ = 0;
};

}  // namespace

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

std::vector<Descriptor> DescriptorsOf(msghdr* message) {
  std::vector<Descriptor> descriptors;
  for (cmsghdr* header = CMSG_FIRSTHDR(message); header != nullptr; header = CMSG_NXTHDR(message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = 0; at + sizeof(int) <= header->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + at, sizeof fd);
      descriptors.emplace_back(fd);
    }
  }
  return descriptors;
}

absl::StatusOr<std::unique_ptr<Range>> Range::Reserve(uint64_t bytes) {
  void* const data = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return MappingFailed(bytes);
  return std::make_unique<HostRange>(static_cast<char*>(data), bytes);
}

absl::StatusOr<std::unique_ptr<MappedChunks>> MappedChunks::Reserve(uint64_t bytes, uint64_t chunk_bytes,
                                                                    bool writable) {
  void* const data = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return MappingFailed(bytes);
  return std::make_unique<HostChunks>(static_cast<char*>(data), bytes, chunk_bytes, writable);
}

absl::StatusOr<Lease> TakeLease(const v1::Arena& arena, absl::Time deadline) {
  std::vector<Descriptor> descriptors;
  google::protobuf::Struct told;
  absl::StatusOr<Descriptor> socket = Take(arena.socket(), arena.token(), deadline, &told, &descriptors);
  if (!socket.ok()) return socket.status();
  if (absl::Status status = Check(arena, told, descriptors); !status.ok()) return status;
  return Lease{*std::move(socket), std::move(descriptors[0]), NumberOf(told, "mapped_bytes")};
}

absl::StatusOr<Descriptor> TakeDirectLease(const v1::DirectLease& lease, absl::Time deadline) {
  std::vector<Descriptor> descriptors;
  google::protobuf::Struct told;
  absl::StatusOr<Descriptor> socket = Take(lease.socket(), lease.token(), deadline, &told, &descriptors);
  if (!socket.ok()) return socket;
  if (TextOf(told, "lease") != lease.lease() || TextOf(told, "incarnation") != lease.incarnation())
    return BadAnswer(absl::StrCat("of lease '", TextOf(told, "lease"), "', not of '", lease.lease(), "'"));
  return socket;
}

bool IsHere(const std::string& socket) {
  if (socket.empty()) return false;
  if (socket[0] != '@') return access(socket.c_str(), F_OK) == 0;
  std::ifstream sockets("/proc/net/unix");
  if (!sockets) return true;
  for (std::string line; std::getline(sockets, line);) {
    if (absl::EndsWith(line, absl::StrCat(" ", socket))) return true;
  }
  return false;
}

}  // namespace statepool::client
