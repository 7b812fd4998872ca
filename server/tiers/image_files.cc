// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/tiers/image_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

constexpr uint64_t kBlock = ImageFiles::kBlockBytes;
constexpr uint64_t kCallBytes = 8 << 20;  // of one read or write: enough to keep a disk's queue full
constexpr char kSuffix[] = ".img";

constexpr uint64_t RoundUp(uint64_t bytes) { return (bytes + kBlock - 1) / kBlock * kBlock; }
constexpr uint64_t RoundDown(uint64_t bytes) { return bytes / kBlock * kBlock; }
bool IsAligned(const char* data) { return reinterpret_cast<uintptr_t>(data) % kBlock == 0; }

std::string ErrnoText(absl::string_view what) { return absl::StrCat(what, ": ", strerror(errno)); }

absl::Status WriteError(absl::string_view what) {
  if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG) return absl::ResourceExhaustedError(ErrnoText(what));
  if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) return absl::AbortedError(ErrnoText(what));
  return absl::UnavailableError(ErrnoText(what));
}

absl::Status ReadError(absl::string_view what) {
  if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) return absl::AbortedError(ErrnoText(what));
  return absl::DataLossError(ErrnoText(what));
}

// Memory that direct I/O takes.
struct FreeDeleter {
  void operator()(char* data) const { std::free(data); }
};
using Block = std::unique_ptr<char, FreeDeleter>;
Block NewBlock(uint64_t bytes) { return Block(static_cast<char*>(std::aligned_alloc(kBlock, RoundUp(bytes)))); }

// Direct where the file system can.
int OpenFile(const std::string& path, int flags) {
  // Not at once: a file system without it makes the file all the same, and then refuses.
  const int fd = open(path.c_str(), flags | O_CLOEXEC, 0600);
  if (fd >= 0) fcntl(fd, F_SETFL, O_DIRECT);
  return fd;
}

// REQUIRES: all are multiples of a block.
absl::Status WriteBlocks(int fd, const char* data, uint64_t bytes, uint64_t offset) {
  while (bytes > 0) {
    const ssize_t written = pwrite(fd, data, std::min(bytes, kCallBytes), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return WriteError("writing an image");
    // What is written of a block is written again.
    const uint64_t whole = RoundDown(static_cast<uint64_t>(written));
    if (whole == 0) return absl::ResourceExhaustedError("writing an image: no more fits");
    data += whole, offset += whole, bytes -= whole;
  }
  return absl::OkStatus();
}

absl::Status ReadBlocks(int fd, char* data, uint64_t bytes, uint64_t offset) {
  while (bytes > 0) {
    const ssize_t read = pread(fd, data, std::min(bytes, kCallBytes), static_cast<off_t>(offset));
    if (read < 0 && errno == EINTR) continue;
    if (read < 0) return ReadError("reading an image");
    const uint64_t whole = RoundDown(static_cast<uint64_t>(read));
    if (whole == 0) return absl::DataLossError("reading an image: its file ends too early");
    data += whole, offset += whole, bytes -= whole;
  }
  return absl::OkStatus();
}

bool ParseFileName(absl::string_view name, uint64_t* number) {
  return absl::EndsWith(name, kSuffix) && name.size() == 16 + strlen(kSuffix) &&
         absl::SimpleHexAtoi(name.substr(0, 16), number) && *number != 0;
}

absl::Status SyncDirectory(const std::string& path) {
  const int directory = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  absl::Status status;
  if (directory < 0 || fsync(directory) != 0) status = absl::UnavailableError(ErrnoText("syncing " + path));
  if (directory >= 0) close(directory);
  return status;
}

// Of a piece of a state and a tail that lie one after the other: what is at `from`, `bytes` long, into `out`.
void CopyOut(absl::string_view piece, absl::string_view tail, uint64_t from, uint64_t bytes, char* out) {
  const uint64_t of_piece = std::min(bytes, piece.size() - std::min<uint64_t>(from, piece.size()));
  if (of_piece > 0) std::memcpy(out, piece.data() + from, of_piece);
  if (bytes > of_piece) std::memcpy(out + of_piece, tail.data() + (from + of_piece - piece.size()), bytes - of_piece);
}

// The way back.
void CopyIn(const char* in, uint64_t from, uint64_t bytes, absl::Span<char> piece, char* tail) {
  const uint64_t of_piece = std::min(bytes, piece.size() - std::min<uint64_t>(from, piece.size()));
  if (of_piece > 0) std::memcpy(piece.data() + from, in, of_piece);
  if (bytes > of_piece) std::memcpy(tail + (from + of_piece - piece.size()), in + of_piece, bytes - of_piece);
}

// Writes both at `offset`, with zeros up to the next block. Whole blocks go from where they are; what is left of the
// piece goes with the tail.
absl::Status WritePiece(int fd, absl::string_view piece, absl::string_view tail, uint64_t offset) {
  const uint64_t bytes = piece.size() + tail.size();
  uint64_t done = IsAligned(piece.data()) ? RoundDown(piece.size()) : 0;
  absl::Status status = WriteBlocks(fd, piece.data(), done, offset);
  if (done == bytes) return status;
  const Block block = NewBlock(std::min(kCallBytes, bytes - done));
  while (status.ok() && done < bytes) {
    const uint64_t size = std::min(kCallBytes, bytes - done);
    CopyOut(piece, tail, done, size, block.get());
    std::memset(block.get() + size, 0, RoundUp(size) - size);
    status = WriteBlocks(fd, block.get(), RoundUp(size), offset + done);
    done += size;
  }
  return status;
}

// The way back.
absl::Status ReadPiece(int fd, absl::Span<char> piece, std::string* tail, uint64_t offset) {
  const uint64_t bytes = piece.size() + tail->size();
  uint64_t done = IsAligned(piece.data()) ? RoundDown(piece.size()) : 0;
  absl::Status status = ReadBlocks(fd, piece.data(), done, offset);
  if (done == bytes) return status;
  const Block block = NewBlock(std::min(kCallBytes, bytes - done));
  while (status.ok() && done < bytes) {
    const uint64_t size = std::min(kCallBytes, bytes - done);
    status = ReadBlocks(fd, block.get(), RoundUp(size), offset + done);
    if (status.ok()) CopyIn(block.get(), done, size, piece, tail->data());
    done += size;
  }
  return status;
}

}  // namespace

class ImageFiles::Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }

 private:
  const int fd_;
};

absl::StatusOr<std::unique_ptr<ImageFiles>> ImageFiles::Open(const std::string& directory, uint64_t first_file) {
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return WriteError("making " + directory);
  std::unique_ptr<ImageFiles> files(new ImageFiles(directory, first_file));
  const absl::StatusOr<std::vector<uint64_t>> there = files->List();
  if (!there.ok()) return there.status();
  // Larger ones come from a database that is newer than the one here.
  for (const uint64_t number : *there) files->first_file_ = std::max(files->first_file_, number + 1);
  MutexLock lock(&files->mu_);
  files->next_file_ = files->first_file_;
  return files;
}

absl::StatusOr<std::vector<uint64_t>> ImageFiles::List() const {
  std::vector<uint64_t> numbers;
  DIR* const directory = opendir(directory_.c_str());
  if (directory == nullptr) return absl::UnavailableError(ErrnoText("listing " + directory_));
  while (const dirent* entry = readdir(directory)) {
    uint64_t number;
    if (ParseFileName(entry->d_name, &number)) numbers.push_back(number);
  }
  closedir(directory);
  return numbers;
}

ImageFiles::ImageFiles(std::string directory, uint64_t first_file)
    : directory_(std::move(directory)), first_file_(first_file), next_file_(first_file) {}

ImageFiles::~ImageFiles() = default;

std::string ImageFiles::PathOf(uint64_t file) const { return absl::StrFormat("%s/%016x%s", directory_, file, kSuffix); }

// ---- writing

absl::StatusOr<ImagePlace> ImageFiles::Reserve(uint64_t bytes, std::shared_ptr<const Descriptor>* file) {
  MutexLock lock(&mu_);
  if (head_ != 0 && head_bytes_ >= kFileBytes) {
    const uint64_t full = std::exchange(head_, 0);
    head_file_.reset();
    if (extents_.at(full) == 0) {
      extents_.erase(full);
      Remove(full);
    }
  }
  if (head_ == 0) {
    auto made = std::make_shared<const Descriptor>(OpenFile(PathOf(next_file_), O_WRONLY | O_CREAT | O_EXCL));
    if (!made->ok()) return WriteError("making a file for images");
    head_file_ = std::move(made);
    head_ = next_file_++;
    head_bytes_ = 0;
    entries_unsynced_ = true;
  }
  *file = head_file_;
  ++extents_[head_];
  const ImagePlace place{head_, head_bytes_};
  head_bytes_ += bytes;
  return place;
}

absl::StatusOr<ImagePlace> ImageFiles::Append(StateReader* state, absl::string_view tail) {
  const uint64_t bytes = state->bytes() + tail.size();
  std::shared_ptr<const Descriptor> file;
  const absl::StatusOr<ImagePlace> place = Reserve(RoundUp(bytes), &file);
  if (!place.ok()) return place;

  absl::Status status;
  while (status.ok() && state->left() > 0) {
    const uint64_t offset = place->offset + state->bytes() - state->left();
    const absl::StatusOr<absl::string_view> piece = state->Next();
    status = piece.ok() ? WritePiece(file->get(), *piece, state->left() > 0 ? "" : tail, offset) : piece.status();
  }
  if (!status.ok()) {
    Free(*place, bytes);
    return status;
  }
  MutexLock lock(&mu_);
  ++appended_;
  unsynced_.emplace(place->file, std::move(file));
  return place;
}

absl::Status ImageFiles::Sync() {
  MutexLock lock(&mu_);
  const uint64_t wanted = appended_;
  while (synced_ < wanted) {
    // What a failed sync has written nobody knows, and the next one may say OK about it.
    if (!failed_.ok()) return failed_;
    if (syncing_) {
      changed_.Wait(&mu_);
      continue;
    }
    syncing_ = true;
    const uint64_t until = appended_;
    absl::flat_hash_map<uint64_t, std::shared_ptr<const Descriptor>> files;
    files.swap(unsynced_);
    const bool entries = std::exchange(entries_unsynced_, false);
    absl::Status status;
    {
      MutexUnlock unlock(&mu_);
      for (const auto& [number, file] : files) {
        struct stat info;
        if (fdatasync(file->get()) != 0 || fstat(file->get(), &info) != 0) {
          status = absl::UnavailableError(ErrnoText("syncing images"));
        } else if (info.st_nlink == 0 && HasExtents(number)) {
          status = absl::UnavailableError(absl::StrCat("somebody removed ", PathOf(number)));
        }
      }
      if (entries && status.ok()) status = SyncDirectory(directory_);
      files.clear();
    }
    syncing_ = false;
    changed_.SignalAll();
    failed_.Update(status);
    if (status.ok()) synced_ = until;
  }
  return absl::OkStatus();
}

// ---- reading

absl::Status ImageFiles::Read(ImagePlace place, StateFiller* state, std::vector<LeafHash>* leaves,
                              std::string* tail) const {
  const Descriptor file(OpenFile(PathOf(place.file), O_RDONLY));
  if (!file.ok()) return ReadError("opening an image's file");
  leaves->clear();
  std::string no_tail;
  while (state->left() > 0) {
    const uint64_t offset = place.offset + state->bytes() - state->left();
    const absl::StatusOr<absl::Span<char>> room = state->Room();
    if (!room.ok()) return room.status();
    std::string* const its_tail = room->size() == state->left() ? tail : &no_tail;
    if (absl::Status status = ReadPiece(file.get(), *room, its_tail, offset); !status.ok()) return status;
    const std::vector<LeafHash> hashes = HashLeaves({room->data(), room->size()});
    leaves->insert(leaves->end(), hashes.begin(), hashes.end());
    if (absl::Status status = state->Filled(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// ---- space

void ImageFiles::Free(ImagePlace place, uint64_t bytes) {
  bool is_empty;
  {
    MutexLock lock(&mu_);
    const auto extents = extents_.find(place.file);
    if (extents == extents_.end()) return;
    is_empty = --extents->second == 0 && place.file != head_;
    if (is_empty) {
      extents_.erase(extents);
      unsynced_.erase(place.file);  // which would keep its space
    }
  }
  if (is_empty) {
    Remove(place.file);
  } else {
    Punch(place.file, place.offset, RoundUp(bytes));
  }
}

// False: it can't be done. Then the space comes back with the last extent of the file.
bool ImageFiles::Punch(uint64_t file, uint64_t offset, uint64_t bytes) const {
  const Descriptor fd(open(PathOf(file).c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.ok()) return errno == ENOENT;
  if (fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                static_cast<off_t>(bytes)) == 0)
    return true;
  spdlog::warn("{}", ErrnoText(absl::StrCat("giving back ", bytes, " bytes of ", PathOf(file))));
  return false;
}

void ImageFiles::Remove(uint64_t file) const {
  if (unlink(PathOf(file).c_str()) != 0 && errno != ENOENT) spdlog::warn("{}", ErrnoText("removing " + PathOf(file)));
}

bool ImageFiles::HasExtents(uint64_t file) const {
  MutexLock lock(&mu_);
  const auto extents = extents_.find(file);
  return extents != extents_.end() && extents->second > 0;
}

void ImageFiles::Adopt(ImagePlace place, uint64_t bytes) {
  MutexLock lock(&mu_);
  ++extents_[place.file];
  adopted_[place.file].push_back({place.offset, RoundUp(bytes)});
}

absl::Status ImageFiles::Sweep(const std::atomic<bool>& stop) {
  absl::flat_hash_map<uint64_t, std::vector<Extent>> adopted;
  {
    MutexLock lock(&mu_);
    adopted.swap(adopted_);
  }
  absl::StatusOr<std::vector<uint64_t>> numbers = List();
  if (!numbers.ok()) return numbers.status();
  for (const auto& [number, extents] : adopted) {
    if (std::find(numbers->begin(), numbers->end(), number) == numbers->end() && HasExtents(number))
      spdlog::error("{} is missing: {} images are lost with it", PathOf(number), extents.size());
  }
  for (const uint64_t number : *numbers) {
    if (stop) return absl::OkStatus();
    if (number >= first_file_) continue;
    std::vector<Extent>& extents = adopted[number];
    if (extents.empty()) {
      Remove(number);
      continue;
    }
    struct stat info;
    if (stat(PathOf(number).c_str(), &info) != 0) continue;
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
    uint64_t end = 0;  // of what was looked at
    extents.push_back({RoundUp(static_cast<uint64_t>(info.st_size)), 0});
    for (const Extent& extent : extents) {
      if (extent.offset > end && !Punch(number, end, extent.offset - end)) break;
      end = std::max(end, extent.offset + extent.bytes);
    }
  }
  return absl::OkStatus();
}

}  // namespace statepool
