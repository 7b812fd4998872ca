// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// libstatepool_fault_shim.so: stands between the daemon and its data directory (LD_PRELOAD).
//
// Every call that changes a file or directory below it is done, and written to the journal, under one lock: so the
// journal has them in the order in which they happened, and a kill leaves at most the last one out. A sync is written
// to the journal when it is over, with what the journal held when it began. All is done by system calls, never by the
// functions that are replaced here. Nothing is allocated.
#include "tests/fault/shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

namespace statepool::fault {
namespace {

constexpr int kFdsMax = 1 << 16;
constexpr int kSlicesMax = 64;

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
Control* control = nullptr;
const char* directory = nullptr;
size_t directory_bytes = 0;
int journal = -1;
uint64_t last_handle = 0;
std::atomic<uint64_t> handles[kFdsMax];  // of the file below the data directory that a descriptor has open; 0: none
std::atomic<uint64_t> noise{88172645463325252};

class Locked {
 public:
  Locked() { pthread_mutex_lock(&lock); }
  ~Locked() { pthread_mutex_unlock(&lock); }
};

__attribute__((constructor)) void Start() {
  const char* path = getenv(kControlVariable);
  directory = getenv(kDirectoryVariable);
  if (path == nullptr || directory == nullptr) return;
  directory_bytes = strlen(directory);
  const int fd = static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC));
  void* page = fd < 0 ? MAP_FAILED : mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) _exit(126);
  syscall(SYS_close, fd);
  if (const char* name = getenv(kJournalVariable)) {
    journal = static_cast<int>(syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_APPEND | O_CLOEXEC));
    if (journal < 0) _exit(126);
  }
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  noise = static_cast<uint64_t>(now.tv_nsec) * 2654435761 + 1;
  control = static_cast<Control*>(page);
}

void Unfollowed(const char* what) {
  if (control->unfollowed.fetch_add(1) != 0) return;
  strncpy(control->unfollowed_what, what, sizeof(control->unfollowed_what) - 1);
}

bool IsInside(int dirfd, const char* path) {
  if (control == nullptr || path == nullptr) return false;
  if (path[0] != '/' && dirfd != AT_FDCWD && dirfd >= 0 && dirfd < kFdsMax && handles[dirfd] != 0) Unfollowed(path);
  if (strncmp(path, directory, directory_bytes) != 0) return false;
  return path[directory_bytes] == '\0' || path[directory_bytes] == '/';
}

uint64_t HandleOf(int fd) { return control == nullptr || fd < 0 || fd >= kFdsMax ? 0 : handles[fd].load(); }

// Counts the call. Whether it is to fail, with errno set. REQUIRES: the lock, unless it is a read.
bool Fails(bool is_read = false) {
  if (is_read && control->count_reads == 0) return false;
  const uint64_t call = ++control->calls;
  const Action action = control->action;
  if (action == Action::kNone || call < control->at || (call > control->at && action != Action::kFailFrom))
    return false;
  control->reached = 1;
  while (action == Action::kFreeze) {  // with the lock: nothing moves any more until the daemon is killed
    const timespec second = {1, 0};
    nanosleep(&second, nullptr);
  }
  errno = EIO;
  return true;
}

void Journal(RecordType type, uint64_t handle, uint64_t a, const iovec* slices, int count, size_t bytes) {
  if (journal < 0) return;
  const int saved = errno;
  Record record = {type, 0, handle, a, bytes};
  iovec all[kSlicesMax + 1] = {{&record, sizeof(record)}};
  size_t left = bytes;
  int used = 1;
  for (int i = 0; i < count && left > 0; ++i) {
    all[used] = slices[i];
    all[used].iov_len = std::min(left, slices[i].iov_len);
    left -= all[used++].iov_len;
  }
  const ssize_t want = static_cast<ssize_t>(sizeof(record) + bytes);
  if (syscall(SYS_writev, journal, all, used) != want) Unfollowed("the journal can't be written");
  control->journal_bytes += static_cast<uint64_t>(want);
  errno = saved;
}

void JournalPath(RecordType type, uint64_t handle, uint64_t a, const char* path, const char* second = nullptr) {
  iovec slices[2] = {{const_cast<char*>(path), strlen(path)}, {nullptr, 0}};
  if (second != nullptr) {
    ++slices[0].iov_len;  // the 0
    slices[1] = {const_cast<char*>(second), strlen(second)};
  }
  Journal(type, handle, a, slices, 2, slices[0].iov_len + slices[1].iov_len);
}

int64_t SizeOf(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 ? info.st_size : 0;
}

int Open(int dirfd, const char* path, int flags, mode_t mode) {
  if (!IsInside(dirfd, path)) return static_cast<int>(syscall(SYS_openat, dirfd, path, flags, mode));
  const Locked locked;
  if (Fails()) return -1;
  struct stat before, after;
  const bool existed = stat(path, &before) == 0;
  if (!existed && (flags & O_CREAT) != 0 && control->free_bytes <= 0) return errno = ENOSPC, -1;
  const int fd = static_cast<int>(syscall(SYS_openat, dirfd, path, flags, mode));
  if (fd < 0) return fd;
  if (fd >= kFdsMax) return Unfollowed("too many descriptors"), fd;
  if ((flags & (O_SYNC | O_DSYNC)) != 0 || (flags & O_TMPFILE) == O_TMPFILE) Unfollowed(path);
  fstat(fd, &after);
  const bool truncated = existed && S_ISREG(before.st_mode) && before.st_size > 0 && after.st_size == 0;
  if (truncated && control->free_bytes < kUnlimited) control->free_bytes += before.st_size;
  handles[fd] = ++last_handle;
  JournalPath(RecordType::kOpen, last_handle, (existed ? 0 : 1) | (truncated ? 2 : 0), path);
  return fd;
}

// offset < 0: where the descriptor stands.
ssize_t Write(int fd, const iovec* slices, int count, int64_t offset) {
  const Locked locked;
  if (Fails()) return -1;
  if (count > kSlicesMax) Unfollowed("a write of too many slices");
  iovec own[kSlicesMax];
  count = std::min(count, kSlicesMax);
  std::copy_n(slices, count, own);
  int64_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += static_cast<int64_t>(own[i].iov_len);
  const int64_t size = SizeOf(fd);
  if ((syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND) != 0) {
    offset = size;
  } else if (offset < 0) {
    offset = syscall(SYS_lseek, fd, 0, SEEK_CUR);
  }
  if (const int64_t free = control->free_bytes; free < kUnlimited && offset + bytes > size) {
    const int64_t may = std::max<int64_t>(0, std::min(bytes, size + std::max<int64_t>(free, 0) - offset));
    if (may == 0) return errno = ENOSPC, -1;  // a disk takes what fits, and refuses the rest
    int64_t left = may;
    for (int i = 0; i < count; ++i) {
      own[i].iov_len = static_cast<size_t>(std::min(left, static_cast<int64_t>(own[i].iov_len)));
      left -= static_cast<int64_t>(own[i].iov_len);
    }
  }
  const ssize_t written = syscall(SYS_pwritev, fd, own, count, offset, 0);
  if (written <= 0) return written;
  const int64_t end = offset + written;
  if (control->free_bytes < kUnlimited) control->free_bytes -= std::max<int64_t>(0, end - size);
  Journal(RecordType::kWrite, handles[fd], static_cast<uint64_t>(offset), own, count, static_cast<size_t>(written));
  return written;
}

ssize_t WriteHere(int fd, const iovec* slices, int count) {
  const ssize_t written = Write(fd, slices, count, -1);
  // Nobody else moves this descriptor meanwhile: RocksDB writes a file from one thread at a time.
  if (written > 0 && (syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND) == 0) syscall(SYS_lseek, fd, written, SEEK_CUR);
  return written;
}

int Sync(int fd, long number) {
  const uint64_t handle = HandleOf(fd);
  if (handle == 0) return static_cast<int>(syscall(number, fd));
  uint64_t began;
  {
    const Locked locked;
    if (Fails()) return -1;
    began = control->journal_bytes;
  }
  if (const uint32_t most = control->sync_micros_max) {
    uint64_t x = noise;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    noise = x;
    const timespec time = {0, static_cast<long>(x % most) * 1000};
    nanosleep(&time, nullptr);
  }
  const int result = static_cast<int>(syscall(number, fd));
  const Locked locked;
  if (result == 0) Journal(RecordType::kSync, handle, began, nullptr, 0, 0);
  return result;
}

int Truncate(int fd, int64_t size) {
  if (HandleOf(fd) == 0) return static_cast<int>(syscall(SYS_ftruncate, fd, size));
  const Locked locked;
  if (Fails()) return -1;
  const int64_t before = SizeOf(fd);
  const int result = static_cast<int>(syscall(SYS_ftruncate, fd, size));
  if (result != 0) return result;
  if (control->free_bytes < kUnlimited) control->free_bytes += before - size;
  Journal(RecordType::kTruncate, handles[fd], static_cast<uint64_t>(size), nullptr, 0, 0);
  return result;
}

int64_t DiskBytesOf(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 ? info.st_blocks * 512 : 0;
}

// REQUIRES: the lock.
int Punch(int fd, int64_t offset, int64_t bytes) {
  const int64_t before = DiskBytesOf(fd);
  const int result =
      static_cast<int>(syscall(SYS_fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes));
  if (result != 0) return result;
  if (control->free_bytes < kUnlimited) control->free_bytes += before - DiskBytesOf(fd);
  const iovec slice = {&bytes, sizeof(bytes)};
  Journal(RecordType::kPunch, handles[fd], static_cast<uint64_t>(offset), &slice, 1, sizeof(bytes));
  return result;
}

int Allocate(int fd, int mode, int64_t offset, int64_t bytes) {
  if (HandleOf(fd) == 0) return static_cast<int>(syscall(SYS_fallocate, fd, mode, offset, bytes));
  const Locked locked;
  if (Fails()) return -1;
  if (mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)) return Punch(fd, offset, bytes);
  if (mode != FALLOC_FL_KEEP_SIZE) Unfollowed("fallocate that changes a file");
  if (control->free_bytes <= 0) return errno = ENOSPC, -1;
  return static_cast<int>(syscall(SYS_fallocate, fd, mode, offset, bytes));
}

int Rename(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) {
  const bool inside = IsInside(from_dir, from), to_inside = IsInside(to_dir, to);
  if (!inside && !to_inside) return static_cast<int>(syscall(SYS_renameat2, from_dir, from, to_dir, to, flags));
  const Locked locked;
  if (Fails()) return -1;
  if (!inside || !to_inside || flags != 0) Unfollowed("rename");
  struct stat replaced;
  const bool replaces = stat(to, &replaced) == 0;
  const int result = static_cast<int>(syscall(SYS_renameat2, from_dir, from, to_dir, to, flags));
  if (result != 0) return result;
  if (replaces && control->free_bytes < kUnlimited) control->free_bytes += replaced.st_size;
  JournalPath(RecordType::kRename, 0, 0, from, to);
  return result;
}

int Unlink(int dirfd, const char* path, int flags) {
  if (!IsInside(dirfd, path)) return static_cast<int>(syscall(SYS_unlinkat, dirfd, path, flags));
  const Locked locked;
  if (Fails()) return -1;
  struct stat before;
  const bool counts = stat(path, &before) == 0 && S_ISREG(before.st_mode) && before.st_nlink == 1;
  const int result = static_cast<int>(syscall(SYS_unlinkat, dirfd, path, flags));
  if (result != 0) return result;
  // Of a file with holes less than its size.
  if (counts && control->free_bytes < kUnlimited)
    control->free_bytes += std::min<int64_t>(before.st_size, before.st_blocks * 512);
  JournalPath(RecordType::kUnlink, 0, 0, path);
  return result;
}

int Mkdir(int dirfd, const char* path, mode_t mode) {
  if (!IsInside(dirfd, path)) return static_cast<int>(syscall(SYS_mkdirat, dirfd, path, mode));
  const Locked locked;
  if (Fails()) return -1;
  const int result = static_cast<int>(syscall(SYS_mkdirat, dirfd, path, mode));
  if (result == 0) JournalPath(RecordType::kMkdir, 0, 0, path);
  return result;
}

int StatVfs(const char* path, struct statvfs* info, int result) {
  if (result != 0 || !IsInside(AT_FDCWD, path)) return result;
  if (const int64_t free = control->free_bytes; free < kUnlimited && control->hides_free == 0) {
    const uint64_t block = info->f_frsize != 0 ? info->f_frsize : info->f_bsize;
    info->f_bavail = info->f_bfree = static_cast<uint64_t>(std::max<int64_t>(0, free)) / block;
  }
  return result;
}

}  // namespace
}  // namespace statepool::fault

// ---- what is replaced

namespace fault = statepool::fault;

#pragma GCC visibility push(default)
extern "C" {

#define STATEPOOL_OPEN_MODE(flags)                             \
  mode_t mode = 0;                                             \
  if (((flags)&O_CREAT) || ((flags)&O_TMPFILE) == O_TMPFILE) { \
    va_list rest;                                              \
    va_start(rest, flags);                                     \
    mode = va_arg(rest, mode_t);                               \
    va_end(rest);                                              \
  }

int open(const char* path, int flags, ...) {
  STATEPOOL_OPEN_MODE(flags)
  return fault::Open(AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  STATEPOOL_OPEN_MODE(flags)
  return fault::Open(AT_FDCWD, path, flags, mode);
}
int openat(int dirfd, const char* path, int flags, ...) {
  STATEPOOL_OPEN_MODE(flags)
  return fault::Open(dirfd, path, flags, mode);
}
int openat64(int dirfd, const char* path, int flags, ...) {
  STATEPOOL_OPEN_MODE(flags)
  return fault::Open(dirfd, path, flags, mode);
}
int creat(const char* path, mode_t mode) { return fault::Open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char* path, mode_t mode) { return fault::Open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
  if (fd >= 0 && fd < fault::kFdsMax) fault::handles[fd] = 0;
  return static_cast<int>(syscall(SYS_close, fd));
}

ssize_t write(int fd, const void* data, size_t bytes) {
  if (fault::HandleOf(fd) == 0) return syscall(SYS_write, fd, data, bytes);
  const iovec slice = {const_cast<void*>(data), bytes};
  return fault::WriteHere(fd, &slice, 1);
}
ssize_t writev(int fd, const iovec* slices, int count) {
  if (fault::HandleOf(fd) == 0) return syscall(SYS_writev, fd, slices, count);
  return fault::WriteHere(fd, slices, count);
}
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  if (fault::HandleOf(fd) == 0) return syscall(SYS_pwrite64, fd, data, bytes, offset);
  const iovec slice = {const_cast<void*>(data), bytes};
  return fault::Write(fd, &slice, 1, offset);
}
ssize_t pwrite64(int fd, const void* data, size_t bytes, off64_t offset) { return pwrite(fd, data, bytes, offset); }
ssize_t pwritev(int fd, const iovec* slices, int count, off_t offset) {
  if (fault::HandleOf(fd) == 0) return syscall(SYS_pwritev, fd, slices, count, offset, 0);
  return fault::Write(fd, slices, count, offset);
}
ssize_t pwritev64(int fd, const iovec* slices, int count, off64_t offset) { return pwritev(fd, slices, count, offset); }

ssize_t read(int fd, void* data, size_t bytes) {
  if (fault::HandleOf(fd) != 0 && fault::Fails(/*is_read=*/true)) return -1;
  return syscall(SYS_read, fd, data, bytes);
}
ssize_t pread(int fd, void* data, size_t bytes, off_t offset) {
  if (fault::HandleOf(fd) != 0 && fault::Fails(/*is_read=*/true)) return -1;
  return syscall(SYS_pread64, fd, data, bytes, offset);
}
ssize_t pread64(int fd, void* data, size_t bytes, off64_t offset) { return pread(fd, data, bytes, offset); }
// RocksDB reads logs, manifests and CURRENT by this one.
size_t fread_unlocked(void* data, size_t size, size_t n, FILE* file) {
  if (fault::HandleOf(fileno_unlocked(file)) != 0 && fault::Fails(/*is_read=*/true)) return 0;
  return fread(data, size, n, file);
}

int fsync(int fd) { return fault::Sync(fd, SYS_fsync); }
int fdatasync(int fd) { return fault::Sync(fd, SYS_fdatasync); }
// Starts writing back and promises nothing, so it makes nothing durable.
int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags) {
  return static_cast<int>(syscall(SYS_sync_file_range, fd, offset, bytes, flags));
}

int ftruncate(int fd, off_t size) { return fault::Truncate(fd, size); }
int ftruncate64(int fd, off64_t size) { return fault::Truncate(fd, size); }
int truncate(const char* path, off_t size) {
  if (fault::IsInside(AT_FDCWD, path)) fault::Unfollowed("truncate");
  return static_cast<int>(syscall(SYS_truncate, path, size));
}
int truncate64(const char* path, off64_t size) { return truncate(path, size); }
int fallocate(int fd, int mode, off_t offset, off_t bytes) { return fault::Allocate(fd, mode, offset, bytes); }
int fallocate64(int fd, int mode, off64_t offset, off64_t bytes) { return fault::Allocate(fd, mode, offset, bytes); }
int posix_fallocate(int fd, off_t offset, off_t bytes) {
  return fault::Allocate(fd, 0, offset, bytes) == 0 ? 0 : errno;
}
int posix_fallocate64(int fd, off64_t offset, off64_t bytes) { return posix_fallocate(fd, offset, bytes); }

int rename(const char* from, const char* to) { return fault::Rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_dir, const char* from, int to_dir, const char* to) {
  return fault::Rename(from_dir, from, to_dir, to, 0);
}
int renameat2(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) {
  return fault::Rename(from_dir, from, to_dir, to, flags);
}
int link(const char* from, const char* to) {
  if (fault::IsInside(AT_FDCWD, from) || fault::IsInside(AT_FDCWD, to)) fault::Unfollowed("link");
  return static_cast<int>(syscall(SYS_link, from, to));
}
int unlink(const char* path) { return fault::Unlink(AT_FDCWD, path, 0); }
int unlinkat(int dirfd, const char* path, int flags) { return fault::Unlink(dirfd, path, flags); }
int remove(const char* path) {
  struct stat info;
  return fault::Unlink(AT_FDCWD, path, lstat(path, &info) == 0 && S_ISDIR(info.st_mode) ? AT_REMOVEDIR : 0);
}
int mkdir(const char* path, mode_t mode) { return fault::Mkdir(AT_FDCWD, path, mode); }
int mkdirat(int dirfd, const char* path, mode_t mode) { return fault::Mkdir(dirfd, path, mode); }
int rmdir(const char* path) { return fault::Unlink(AT_FDCWD, path, AT_REMOVEDIR); }

void* mmap(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) {
  if ((flags & MAP_SHARED) != 0 && (protection & PROT_WRITE) != 0 && fault::HandleOf(fd) != 0)
    fault::Unfollowed("a writable mapping");
  // NOLINTNEXTLINE(performance-no-int-to-ptr): that is how the system call gives it
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, bytes, protection, flags, fd, offset));
}
void* mmap64(void* address, size_t bytes, int protection, int flags, int fd, off64_t offset) {
  return mmap(address, bytes, protection, flags, fd, offset);
}

int statvfs(const char* path, struct statvfs* info) {
  int (*next)(const char*, struct statvfs*) = nullptr;
  static std::atomic<void*> found{nullptr};
  if (found == nullptr) found = dlsym(RTLD_NEXT, "statvfs");
  void* const symbol = found;
  memcpy(&next, &symbol, sizeof(next));
  return fault::StatVfs(path, info, next(path, info));
}
int fclose(FILE* file) {
  int (*next)(FILE*) = nullptr;
  static std::atomic<void*> found{nullptr};
  if (found == nullptr) found = dlsym(RTLD_NEXT, "fclose");
  void* const symbol = found;
  memcpy(&next, &symbol, sizeof(next));
  if (const int fd = fileno(file); fd >= 0 && fd < fault::kFdsMax) fault::handles[fd] = 0;
  return next(file);
}
FILE* fopen(const char* path, const char* how) {
  FILE* (*next)(const char*, const char*) = nullptr;
  static std::atomic<void*> found{nullptr};
  if (found == nullptr) found = dlsym(RTLD_NEXT, "fopen");
  void* const symbol = found;
  memcpy(&next, &symbol, sizeof(next));
  if (fault::IsInside(AT_FDCWD, path) && strpbrk(how, "wa+") != nullptr) fault::Unfollowed(path);
  return next(path, how);
}

}  // extern "C"
#pragma GCC visibility pop
