// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the shim (shim.cc, preloaded into the daemon) and a harness share: a page of control (control_page.h), and a
// journal of everything that was done below the data directory. Both outlive the daemon.
#ifndef STATEPOOL_TESTS_SHIM_SHIM_H_
#define STATEPOOL_TESTS_SHIM_SHIM_H_

#include <atomic>
#include <cstdint>

namespace statepool::shim {

// The shim's environment: the data directory (absolute), and the files of the page and of the journal, outside of it.
// Without a journal only faults are made.
inline constexpr char kDirectoryVariable[] = "STATEPOOL_SHIM_DIRECTORY";
inline constexpr char kControlVariable[] = "STATEPOOL_SHIM_CONTROL";
inline constexpr char kJournalVariable[] = "STATEPOOL_SHIM_JOURNAL";

enum class Action : uint32_t {
  kNone,
  kFreeze,    // call `at` never happens, nor any later one that changes something: the disk stands still
  kFail,      // call `at` fails with EIO
  kFailFrom,  // call `at` and all later ones do
};

// A call that changes something or makes it durable, by what it does to what: together they name a point of the
// daemon's work from outside.
enum class Call : uint32_t { kCreate, kWrite, kSync, kPunch, kRename, kRemove, kCalls };
enum class File : uint32_t {
  kData,    // the data directory itself
  kImages,  // the directory of image files
  kImage,
  kDatabase,  // the directory of the database
  kLog,
  kTable,
  kBlob,
  kManifest,
  kCurrent,  // a rename goes by the new name
  kWitness,
  kSynced,
  kOther,
  kFiles,
};
enum class Moment : uint32_t {
  kBefore,
  kWithin,  // of a write: the first part of its bytes is there
  kAfter,   // the call has happened, and the daemon does not know
};

inline constexpr int64_t kUnlimited = INT64_MAX / 2;

// Set by a harness before the daemon starts or while it runs, and counted by the shim.
struct Control {
  std::atomic<uint64_t> calls;  // opens, writes, syncs and changes of directories so far; with count_reads reads too
  std::atomic<uint64_t> at;     // counted from 1
  std::atomic<Action> action;
  std::atomic<uint32_t> reached;  // call `at` has come, or the point has
  // Calls of each kind so far, and the one of them at which the disk stands still as with kFreeze, counted from 1; 0:
  // none. point_at is set last.
  std::atomic<uint64_t> seen[static_cast<uint32_t>(Call::kCalls)][static_cast<uint32_t>(File::kFiles)];
  std::atomic<Call> point_call;
  std::atomic<File> point_file;
  std::atomic<Moment> point_moment;
  std::atomic<uint64_t> point_at;
  std::atomic<uint32_t> count_reads;
  std::atomic<int64_t> free_bytes;        // what files may still grow by; kUnlimited: no limit
  std::atomic<uint32_t> hides_free;       // statvfs does not tell free_bytes: a quota
  std::atomic<uint32_t> sync_micros_max;  // a sync takes a random time up to this
  std::atomic<uint64_t> journal_bytes;
  // I/O that the shim can't follow (a writable mapping, O_SYNC ...). A harness must see none.
  std::atomic<uint32_t> unfollowed;
  char unfollowed_what[256];
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<Action>::is_always_lock_free);

enum class RecordType : uint32_t {
  kOpen = 0x5350f001,  // a: bit 0 created, bit 1 truncated
  kWrite,              // a: offset; the bytes follow
  kTruncate,           // a: the new size
  kPunch,              // a: offset; how many bytes became zeros follows as a uint64_t
  kSync,               // a: bytes of the journal when it began: what stands before is durable
  kRename,             // path, 0, new path
  kUnlink,             // also of a directory
  kMkdir,
};

// A record of the journal, `bytes` bytes follow: what was written, or a path.
struct Record {
  RecordType type;
  uint32_t reserved;
  uint64_t handle;  // of kOpen and what is done to an open file: never used twice
  uint64_t a;
  uint64_t bytes;
};

}  // namespace statepool::shim

#endif  // STATEPOOL_TESTS_SHIM_SHIM_H_
