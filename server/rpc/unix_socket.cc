// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/unix_socket.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace statepool {

absl::Status ClearSocket(const std::string& path, int type) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() > kMaxSocketPathBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a socket's path has 1..", kMaxSocketPathBytes, " bytes: ", path));
  }
  struct stat info;
  if (lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return absl::OkStatus();  // bind will say whether its directory is there
    return absl::InvalidArgumentError(absl::StrCat("cannot look at ", path, ": ", strerror(errno)));
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " exists and is no socket; it was left alone"));
  }
  const int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return absl::InternalError(absl::StrCat("socket: ", strerror(errno)));
  absl::Cleanup close_fd = [fd] { close(fd); };
  memcpy(address.sun_path, path.data(), path.size());
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 || errno == EAGAIN ||
      errno == EPROTOTYPE) {
    return absl::FailedPreconditionError(absl::StrCat("another process listens on ", path));
  }
  if (errno != ECONNREFUSED) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot tell whether somebody listens on ", path, ": ", strerror(errno)));
  }
  if (unlink(path.c_str()) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("cannot remove the stale socket ", path, ": ", strerror(errno)));
  }
  spdlog::info("removed the stale socket {}", path);
  return absl::OkStatus();
}

}  // namespace statepool
