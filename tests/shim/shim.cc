// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// libstatepool_shim.so: stands between the daemon and its data directory (LD_PRELOAD).
//
// Every call that changes a file or directory below it is done, and written to the journal, under one lock: so the
// journal has them in the order in which they happened, and a kill leaves at most the last one out. A sync is written
// to the journal when it is over, with what the journal held when it began. All is done by system calls, never by the
// functions that are replaced here. Nothing is allocated.
#include "tests/shim/shim.h"

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

namespace statepool::shim {
namespace {

constexpr int kFdsMax = 1 << 16;
constexpr int kSlicesMax = 64;
constexpr int64_t kPage = 4096;

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
Control* control = nullptr;
const char* directory = nullptr;
size_t directory_bytes = 0;
int journal = -1;
uint64_t last_handle = 0;
std::atomic<uint64_t> handles[kFdsMax];  // of the file below the data directory that a descriptor has open; 0: none
std::atomic<File> files[kFdsMax];        // which kind that is
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

// REQUIRES: it is inside.
File FileOf(const char* path) {
  const auto begins = [](const char* text, const char* with) { return strncmp(text, with, strlen(with)) == 0; };
  const auto ends = [](const char* text, const char* with) {
    return strlen(text) >= strlen(with) && strcmp(text + strlen(text) - strlen(with), with) == 0;
  };
  const char* name = path + directory_bytes;
  while (*name == '/') ++name;
  if (*name == '\0') return File::kData;
  if (begins(name, "WITNESS")) return File::kWitness;  // also what is written beside it
  if (strcmp(name, "SYNCED") == 0) return File::kSynced;
  if (strcmp(name, "images") == 0) return File::kImages;
  if (begins(name, "images/")) return ends(name, ".img") ? File::kImage : File::kImages;
  if (!begins(name, "db")) return File::kOther;
  name += strlen("db");
  while (*name == '/') ++name;
  if (*name == '\0') return File::kDatabase;
  if (begins(name, "MANIFEST-")) return File::kManifest;
  if (strcmp(name, "CURRENT") == 0) return File::kCurrent;
  return ends(name, ".log")    ? File::kLog
         : ends(name, ".sst")  ? File::kTable
         : ends(name, ".blob") ? File::kBlob
                               : File::kOther;
}

uint64_t Random() {
  uint64_t x = noise;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return noise = x;
}

uint64_t HandleOf(int fd) { return control == nullptr || fd < 0 || fd >= kFdsMax ? 0 : handles[fd].load(); }

// With the lock, so nothing moves any more until the daemon is killed.
[[noreturn]] void Freeze() {
  control->reached = 1;
  for (;;) {
    const timespec second = {1, 0};
    nanosleep(&second, nullptr);
  }
}

bool IsPoint(Call call, File file, uint64_t number, Moment moment) {
  return number == control->point_at && call == control->point_call && file == control->point_file &&
         moment == control->point_moment;
}

// Each REQUIRES the lock. A call is about to happen: which of its kind it is, for the other two.
uint64_t Before(Call call, File file) {
  const uint64_t number = ++control->seen[static_cast<uint32_t>(call)][static_cast<uint32_t>(file)];
  if (IsPoint(call, file, number, Moment::kBefore)) Freeze();
  return number;
}
void After(Call call, File file, uint64_t number) {
  if (IsPoint(call, file, number, Moment::kAfter)) Freeze();
}

// Counts the call. Whether it is to fail, with errno set. REQUIRES: the lock, unless it is a read.
bool Fails(bool is_read = false) {
  if (is_read && control->count_reads == 0) return false;
  const uint64_t call = ++control->calls;
  const Action action = control->action;
  if (action == Action::kNone || call < control->at || (call > control->at && action != Action::kFailFrom))
    return false;
  if (action == Action::kFreeze) Freeze();
  control->reached = 1;
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
  const bool creates = !existed && (flags & O_CREAT) != 0;
  if (creates && control->free_bytes <= 0) return errno = ENOSPC, -1;
  const File file = FileOf(path);
  const uint64_t number = creates ? Before(Call::kCreate, file) : 0;
  const int fd = static_cast<int>(syscall(SYS_openat, dirfd, path, flags, mode));
  if (fd < 0) return fd;
  if (fd >= kFdsMax) return Unfollowed("too many descriptors"), fd;
  if ((flags & (O_SYNC | O_DSYNC)) != 0 || (flags & O_TMPFILE) == O_TMPFILE) Unfollowed(path);
  fstat(fd, &after);
  const bool truncated = existed && S_ISREG(before.st_mode) && before.st_size > 0 && after.st_size == 0;
  if (truncated && control->free_bytes < kUnlimited) control->free_bytes += before.st_size;
  files[fd] = file;
  handles[fd] = ++last_handle;
  JournalPath(RecordType::kOpen, last_handle, (existed ? 0 : 1) | (truncated ? 2 : 0), path);
  if (creates) After(Call::kCreate, file, number);
  return fd;
}

// Makes `slices` shorter: `bytes` altogether.
void Cut(iovec* slices, int count, int64_t bytes) {
  for (int i = 0; i < count; ++i) {
    slices[i].iov_len = static_cast<size_t>(std::min(bytes, static_cast<int64_t>(slices[i].iov_len)));
    bytes -= static_cast<int64_t>(slices[i].iov_len);
  }
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
    Cut(own, count, may);
  }
  const File file = files[fd];
  const uint64_t number = Before(Call::kWrite, file);
  const bool within = IsPoint(Call::kWrite, file, number, Moment::kWithin);
  if (within) {  // pages that are whole, or anywhere where no direct I/O forbids it
    const int64_t part = static_cast<int64_t>(Random() % static_cast<uint64_t>(bytes + 1));
    Cut(own, count, (syscall(SYS_fcntl, fd, F_GETFL) & O_DIRECT) != 0 ? part / kPage * kPage : part);
  }
  const ssize_t written = syscall(SYS_pwritev, fd, own, count, offset, 0);
  if (within) Freeze();
  if (written <= 0) return written;
  const int64_t end = offset + written;
  if (control->free_bytes < kUnlimited) control->free_bytes -= std::max<int64_t>(0, end - size);
  Journal(RecordType::kWrite, handles[fd], static_cast<uint64_t>(offset), own, count, static_cast<size_t>(written));
  After(Call::kWrite, file, number);
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
  const File file = files[fd];
  uint64_t began, call;
  {
    const Locked locked;
    if (Fails()) return -1;
    call = Before(Call::kSync, file);
    began = control->journal_bytes;
  }
  if (const uint32_t most = control->sync_micros_max) {
    const timespec time = {0, static_cast<long>(Random() % most) * 1000};
    nanosleep(&time, nullptr);
  }
  const int result = static_cast<int>(syscall(number, fd));
  const Locked locked;
  if (result == 0) Journal(RecordType::kSync, handle, began, nullptr, 0, 0);
  After(Call::kSync, file, call);
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
  const File file = files[fd];
  const uint64_t number = Before(Call::kPunch, file);
  const int64_t before = DiskBytesOf(fd);
  const int result =
      static_cast<int>(syscall(SYS_fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes));
  if (result != 0) return result;
  if (control->free_bytes < kUnlimited) control->free_bytes += before - DiskBytesOf(fd);
  const iovec slice = {&bytes, sizeof(bytes)};
  Journal(RecordType::kPunch, handles[fd], static_cast<uint64_t>(offset), &slice, 1, sizeof(bytes));
  After(Call::kPunch, file, number);
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
  const File file = FileOf(to_inside ? to : from);
  const uint64_t number = Before(Call::kRename, file);
  struct stat replaced;
  const bool replaces = stat(to, &replaced) == 0;
  const int result = static_cast<int>(syscall(SYS_renameat2, from_dir, from, to_dir, to, flags));
  if (result != 0) return result;
  if (replaces && control->free_bytes < kUnlimited) control->free_bytes += replaced.st_size;
  JournalPath(RecordType::kRename, 0, 0, from, to);
  After(Call::kRename, file, number);
  return result;
}

int Unlink(int dirfd, const char* path, int flags) {
  if (!IsInside(dirfd, path)) return static_cast<int>(syscall(SYS_unlinkat, dirfd, path, flags));
  const Locked locked;
  if (Fails()) return -1;
  const File file = FileOf(path);
  const uint64_t number = Before(Call::kRemove, file);
  struct stat before;
  const bool counts = stat(path, &before) == 0 && S_ISREG(before.st_mode) && before.st_nlink == 1;
  const int result = static_cast<int>(syscall(SYS_unlinkat, dirfd, path, flags));
  if (result != 0) return result;
  // Of a file with holes less than its size.
  if (counts && control->free_bytes < kUnlimited)
    control->free_bytes += std::min<int64_t>(before.st_size, before.st_blocks * 512);
  JournalPath(RecordType::kUnlink, 0, 0, path);
  After(Call::kRemove, file, number);
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
}  // namespace statepool::shim

// ---- what is replaced

namespace shim = statepool::shim;

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
  return shim::Open(AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  STATEPOOL_OPEN_MODE(flags)
  return shim::Open(AT_FDCWD, path, flags, mode);
}
int openat(int dirfd, const char* path, int flags, ...) {
  STATEPOOL_OPEN_MODE(flags)
  return shim::Open(dirfd, path, flags, mode);
}
int openat64(int dirfd, const char* path, int flags, ...) {
  STATEPOOL_OPEN_MODE(flags)
  return shim::Open(dirfd, path, flags, mode);
}
int creat(const char* path, mode_t mode) { return shim::Open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char* path, mode_t mode) { return shim::Open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
  if (fd >= 0 && fd < shim::kFdsMax) shim::handles[fd] = 0;
  return static_cast<int>(syscall(SYS_close, fd));
}

ssize_t write(int fd, const void* data, size_t bytes) {
  if (shim::HandleOf(fd) == 0) return syscall(SYS_write, fd, data, bytes);
  const iovec slice = {const_cast<void*>(data), bytes};
  return shim::WriteHere(fd, &slice, 1);
}
ssize_t writev(int fd, const iovec* slices, int count) {
  if (shim::HandleOf(fd) == 0) return syscall(SYS_writev, fd, slices, count);
  return shim::WriteHere(fd, slices, count);
}
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  if (shim::HandleOf(fd) == 0) return syscall(SYS_pwrite64, fd, data, bytes, offset);
  const iovec slice = {const_cast<void*>(data), bytes};
  return shim::Write(fd, &slice, 1, offset);
}
ssize_t pwrite64(int fd, const void* data, size_t bytes, off64_t offset) { return pwrite(fd, data, bytes, offset); }
ssize_t pwritev(int fd, const iovec* slices, int count, off_t offset) {
  if (shim::HandleOf(fd) == 0) return syscall(SYS_pwritev, fd, slices, count, offset, 0);
  return shim::Write(fd, slices, count, offset);
}
ssize_t pwritev64(int fd, const iovec* slices, int count, off64_t offset) { return pwritev(fd, slices, count, offset); }

ssize_t read(int fd, void* data, size_t bytes) {
  if (shim::HandleOf(fd) != 0 && shim::Fails(/*is_read=*/true)) return -1;
  return syscall(SYS_read, fd, data, bytes);
}
ssize_t pread(int fd, void* data, size_t bytes, off_t offset) {
  if (shim::HandleOf(fd) != 0 && shim::Fails(/*is_read=*/true)) return -1;
  return syscall(SYS_pread64, fd, data, bytes, offset);
}
ssize_t pread64(int fd, void* data, size_t bytes, off64_t offset) { return pread(fd, data, bytes, offset); }
// RocksDB reads logs, manifests and CURRENT by this one.
size_t fread_unlocked(void* data, size_t size, size_t n, FILE* file) {
  if (shim::HandleOf(fileno_unlocked(file)) != 0 && shim::Fails(/*is_read=*/true)) return 0;
  return fread(data, size, n, file);
}

int fsync(int fd) { return shim::Sync(fd, SYS_fsync); }
int fdatasync(int fd) { return shim::Sync(fd, SYS_fdatasync); }
// Starts writing back and promises nothing, so it makes nothing durable.
int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags) {
  return static_cast<int>(syscall(SYS_sync_file_range, fd, offset, bytes, flags));
}

int ftruncate(int fd, off_t size) { return shim::Truncate(fd, size); }
int ftruncate64(int fd, off64_t size) { return shim::Truncate(fd, size); }
int truncate(const char* path, off_t size) {
  if (shim::IsInside(AT_FDCWD, path)) shim::Unfollowed("truncate");
  return static_cast<int>(syscall(SYS_truncate, path, size));
}
int truncate64(const char* path, off64_t size) { return truncate(path, size); }
int fallocate(int fd, int mode, off_t offset, off_t bytes) { return shim::Allocate(fd, mode, offset, bytes); }
int fallocate64(int fd, int mode, off64_t offset, off64_t bytes) { return shim::Allocate(fd, mode, offset, bytes); }
int posix_fallocate(int fd, off_t offset, off_t bytes) { return shim::Allocate(fd, 0, offset, bytes) == 0 ? 0 : errno; }
int posix_fallocate64(int fd, off64_t offset, off64_t bytes) { return posix_fallocate(fd, offset, bytes); }

int rename(const char* from, const char* to) { return shim::Rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_dir, const char* from, int to_dir, const char* to) {
  return shim::Rename(from_dir, from, to_dir, to, 0);
}
int renameat2(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) {
  return shim::Rename(from_dir, from, to_dir, to, flags);
}
int link(const char* from, const char* to) {
  if (shim::IsInside(AT_FDCWD, from) || shim::IsInside(AT_FDCWD, to)) shim::Unfollowed("link");
  return static_cast<int>(syscall(SYS_link, from, to));
}
int unlink(const char* path) { return shim::Unlink(AT_FDCWD, path, 0); }
int unlinkat(int dirfd, const char* path, int flags) { return shim::Unlink(dirfd, path, flags); }
int remove(const char* path) {
  struct stat info;
  return shim::Unlink(AT_FDCWD, path, lstat(path, &info) == 0 && S_ISDIR(info.st_mode) ? AT_REMOVEDIR : 0);
}
int mkdir(const char* path, mode_t mode) { return shim::Mkdir(AT_FDCWD, path, mode); }
int mkdirat(int dirfd, const char* path, mode_t mode) { return shim::Mkdir(dirfd, path, mode); }
int rmdir(const char* path) { return shim::Unlink(AT_FDCWD, path, AT_REMOVEDIR); }

void* mmap(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) {
  if ((flags & MAP_SHARED) != 0 && (protection & PROT_WRITE) != 0 && shim::HandleOf(fd) != 0)
    shim::Unfollowed("a writable mapping");
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
  return shim::StatVfs(path, info, next(path, info));
}
int fclose(FILE* file) {
  int (*next)(FILE*) = nullptr;
  static std::atomic<void*> found{nullptr};
  if (found == nullptr) found = dlsym(RTLD_NEXT, "fclose");
  void* const symbol = found;
  memcpy(&next, &symbol, sizeof(next));
  if (const int fd = fileno(file); fd >= 0 && fd < shim::kFdsMax) shim::handles[fd] = 0;
  return next(file);
}
FILE* fopen(const char* path, const char* how) {
  FILE* (*next)(const char*, const char*) = nullptr;
  static std::atomic<void*> found{nullptr};
  if (found == nullptr) found = dlsym(RTLD_NEXT, "fopen");
  void* const symbol = found;
  memcpy(&next, &symbol, sizeof(next));
  if (shim::IsInside(AT_FDCWD, path) && strpbrk(how, "wa+") != nullptr) shim::Unfollowed(path);
  return next(path, how);
}

}  // extern "C"
#pragma GCC visibility pop
