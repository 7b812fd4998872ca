// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Disk: a data directory whose disk can lose what was never synced, fill up and fail.
//
// The daemon runs with the shim, which writes down what it does. When it is dead, Cut() makes of the directory what a
// power cut would have left: of each file the content as of its last sync, of each directory the entries as of its
// last sync. What came later may be there too, as far as a disk keeps order: of a file's unsynced bytes a prefix (of a
// log's perhaps with zeros behind it), of a directory's changes the first ones. A rename is whole or absent.
//
// Not thread-safe. Errors of the file system end the program.
#ifndef STATEPOOL_TESTS_FAULT_DISK_H_
#define STATEPOOL_TESTS_FAULT_DISK_H_

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/shim/control_page.h"

namespace statepool::fault {

using shim::Action, shim::Control, shim::kUnlimited;

enum class Keep {
  kNothing,  // that was not synced
  kSome,     // a part, chosen for each file and directory
  kAll,      // as if only the daemon had been killed
};

struct CutFigures {
  int64_t files = 0;      // whose content changed by the cut
  int64_t bytes = 0;      // written, never synced, and lost
  int64_t entries = 0;    // changes of directories that were lost: files made, renamed, removed
  std::string not_as_is;  // the directory differs from what the journal says, though nothing was under way; or what
                          // the shim could not follow
};

class Disk {
 public:
  // Makes DIRECTORY/data, empty, and what it needs beside it; DIRECTORY is there. `shim`: the library.
  Disk(const std::string& directory, const std::string& shim, uint64_t seed);
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;

  const std::string& data() const { return data_; }
  Control* control() { return page_.get(); }
  // The daemon's command, run behind the shim. Without a journal there is no Cut.
  std::vector<std::string> Behind(const std::vector<std::string>& command, bool journal = true) const;
  // Before each start of a daemon: no faults, an empty journal, counts at 0.
  void Reset();

  // The directory is a copy of `source` from now on, all of it durable. REQUIRES: no daemon.
  void Replace(const std::string& source);

  // REQUIRES: the daemon is dead. `compare`: nothing was under way when it died (it was frozen, or ended by itself), so
  // the directory must be as the journal says, byte for byte.
  CutFigures Cut(Keep keep, bool compare);

 private:
  struct Write {
    bool truncates;
    uint64_t offset, bytes;  // truncates: `offset` is the new size
    const char* from;        // in the journal; null: a hole, zeros as far as the file goes
    uint64_t at;             // of the record
  };
  struct EntryChange {
    std::string removed, added;  // either may be empty
    int node;
    uint64_t at;
  };
  struct Node {
    bool is_directory = false;
    std::string base;  // where its content is below base_; empty: it had none
    std::vector<Write> writes;
    size_t synced = 0;  // writes
    std::map<std::string, int> now, durable;
    std::vector<EntryChange> changes;  // since the last sync
  };
  struct Tree;

  void Load(const std::string& relative, int node);
  void Replay();
  // Node of a path as it is now; -1: none. `parent`, `name`: where it is, or would be.
  int Resolve(const std::string& path, int* parent, std::string* name) const;
  int NewNode(bool is_directory);
  void Change(int parent, EntryChange change);
  static void Apply(const EntryChange& change, std::map<std::string, int>* entries);
  std::string Content(const Node& node, size_t writes, uint64_t last_bytes, bool zeros) const;
  std::string Base(const Node& node) const;
  uint64_t Below(uint64_t n) { return random_() % n; }

  const std::string data_, base_, journal_path_, shim_;
  std::mt19937_64 random_;
  shim::ControlPage page_;
  std::vector<Node> nodes_;  // [0] is the data directory
  std::map<uint64_t, int> handles_;
  const char* journal_ = nullptr;
  uint64_t journal_bytes_ = 0;
  std::map<std::string, std::pair<int64_t, int64_t>> stamps_;  // by path: size and time of what Cut left
};

}  // namespace statepool::fault

#endif  // STATEPOOL_TESTS_FAULT_DISK_H_
