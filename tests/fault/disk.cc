// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/fault/disk.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace statepool::fault {
namespace {

namespace fs = std::filesystem;
using shim::Record, shim::RecordType;

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "not measurable: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(2);
}

std::string ReadAll(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (fd < 0 || fstat(fd, &info) != 0) Die(path);
  std::string content(static_cast<size_t>(info.st_size), '\0');
  for (size_t done = 0; done < content.size();) {
    const ssize_t got = read(fd, content.data() + done, content.size() - done);
    if (got <= 0) Die(path);
    done += static_cast<size_t>(got);
  }
  close(fd);
  return content;
}

// A new file, never the one that was there: others may share that.
void WriteAll(const std::string& path, const std::string& content) {
  unlink(path.c_str());
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) Die(path);
  for (size_t done = 0; done < content.size();) {
    const ssize_t put = write(fd, content.data() + done, content.size() - done);
    if (put <= 0) Die(path);
    done += static_cast<size_t>(put);
  }
  close(fd);
}

std::pair<int64_t, int64_t> Stamp(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return {-1, 0};
  return {info.st_size, info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec};
}

std::string Join(const std::string& directory, const std::string& name) {
  return directory.empty() ? name : absl::StrCat(directory, "/", name);
}

std::vector<std::string> List(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

// What is to be there: by relative path, the node and how much of it.
struct Disk::Tree {
  struct File {
    int node;
    size_t writes;
    uint64_t last_bytes;  // of the last of these writes
    bool zeros;           // up to the size that all writes would have given
  };
  std::map<std::string, File> files;
  std::set<std::string> directories;
};

Disk::Disk(const std::string& directory, const std::string& shim, uint64_t seed)
    : data_(directory + "/data"),
      base_(directory + "/base"),
      journal_path_(directory + "/journal"),
      shim_(shim),
      random_(seed),
      page_(directory + "/control") {
  fs::create_directories(data_);
  fs::create_directories(base_);
  Reset();
}

std::vector<std::string> Disk::Behind(const std::vector<std::string>& command, bool journal) const {
  return page_.Behind(shim_, data_, command, journal ? journal_path_ : "");
}

void Disk::Reset() {
  page_.Reset();
  WriteAll(journal_path_, "");
}

void Disk::Replace(const std::string& source) {
  for (const std::string& root : {data_, base_}) {
    fs::remove_all(root);
    fs::copy(source, root, fs::copy_options::recursive);
  }
  stamps_.clear();
  for (const auto& entry : fs::recursive_directory_iterator(data_)) {
    const std::string path = entry.path();
    if (entry.is_regular_file()) stamps_[path.substr(data_.size() + 1)] = Stamp(path);
  }
}

// ---- what was done

int Disk::NewNode(bool is_directory) {
  nodes_.emplace_back();
  nodes_.back().is_directory = is_directory;
  return static_cast<int>(nodes_.size()) - 1;
}

void Disk::Load(const std::string& relative, int node) {
  for (const std::string& name : List(Join(base_, relative))) {
    const std::string path = Join(relative, name);
    const int child = NewNode(fs::is_directory(Join(base_, path)));
    nodes_[static_cast<size_t>(node)].now[name] = child;
    if (nodes_[static_cast<size_t>(child)].is_directory) {
      Load(path, child);
    } else {
      nodes_[static_cast<size_t>(child)].base = path;
    }
  }
  nodes_[static_cast<size_t>(node)].durable = nodes_[static_cast<size_t>(node)].now;
}

int Disk::Resolve(const std::string& path, int* parent, std::string* name) const {
  *parent = -1;
  name->clear();
  int node = 0;
  for (const absl::string_view part : absl::StrSplit(path.substr(data_.size()), '/', absl::SkipEmpty())) {
    if (node < 0) Die("the journal names what is in no directory: " + path);
    *parent = node;
    *name = std::string(part);
    const auto& entries = nodes_[static_cast<size_t>(node)].now;
    const auto it = entries.find(*name);
    node = it == entries.end() ? -1 : it->second;
  }
  return node;
}

void Disk::Apply(const EntryChange& change, std::map<std::string, int>* entries) {
  if (!change.removed.empty()) entries->erase(change.removed);
  if (!change.added.empty()) (*entries)[change.added] = change.node;
}

void Disk::Change(int parent, EntryChange change) {
  Node& directory = nodes_[static_cast<size_t>(parent)];
  Apply(change, &directory.now);
  directory.changes.push_back(std::move(change));
}

void Disk::Replay() {
  nodes_.clear();
  handles_.clear();
  Load("", NewNode(/*is_directory=*/true));
  int parent = 0;
  std::string name;
  for (uint64_t at = 0; at + sizeof(Record) <= journal_bytes_;) {
    Record record;
    std::memcpy(&record, journal_ + at, sizeof(record));
    const char* const bytes = journal_ + at + sizeof(record);
    if (at + sizeof(record) + record.bytes > journal_bytes_) break;  // killed in the middle: it did not count yet
    const bool has_path = record.type != RecordType::kWrite && record.type != RecordType::kPunch;
    const std::string path(has_path ? bytes : "", has_path ? record.bytes : 0);
    const auto handle = handles_.find(record.handle);
    if (record.handle != 0 && record.type != RecordType::kOpen && handle == handles_.end())
      Die("a journal without an open");
    Node* node =
        record.handle != 0 && handle != handles_.end() ? &nodes_[static_cast<size_t>(handle->second)] : nullptr;
    switch (record.type) {
      case RecordType::kOpen: {
        int opened = Resolve(path, &parent, &name);
        if ((record.a & 1) != 0) {
          opened = NewNode(/*is_directory=*/false);
          Change(parent, {"", name, opened, at});
        }
        if (opened < 0) Die("the journal opens what is not there: " + path);
        handles_[record.handle] = opened;
        if ((record.a & 2) != 0) nodes_[static_cast<size_t>(opened)].writes.push_back({true, 0, 0, nullptr, at});
        break;
      }
      case RecordType::kWrite: node->writes.push_back({false, record.a, record.bytes, bytes, at}); break;
      case RecordType::kTruncate: node->writes.push_back({true, record.a, 0, nullptr, at}); break;
      case RecordType::kPunch: {
        uint64_t punched;
        std::memcpy(&punched, bytes, sizeof(punched));
        node->writes.push_back({false, record.a, punched, nullptr, at});
        break;
      }
      case RecordType::kSync: {
        while (node->synced < node->writes.size() && node->writes[node->synced].at < record.a) ++node->synced;
        auto change = node->changes.begin();
        for (; change != node->changes.end() && change->at < record.a; ++change) Apply(*change, &node->durable);
        node->changes.erase(node->changes.begin(), change);
        break;
      }
      case RecordType::kRename: {
        const std::string from = path.c_str(), to = path.substr(from.size() + 1);
        int from_parent = 0;
        std::string from_name;
        const int moved = Resolve(from, &from_parent, &from_name);
        Resolve(to, &parent, &name);
        if (moved < 0 || parent != from_parent) Die("a rename between directories: " + from);
        Change(parent, {from_name, name, moved, at});
        break;
      }
      case RecordType::kUnlink:
        Resolve(path, &parent, &name);
        Change(parent, {name, "", -1, at});
        break;
      case RecordType::kMkdir: {
        Resolve(path, &parent, &name);
        const int made = NewNode(/*is_directory=*/true);
        Change(parent, {"", name, made, at});
        break;
      }
      default: Die("the journal is damaged");
    }
    at += sizeof(record) + record.bytes;
  }
}

std::string Disk::Base(const Node& node) const { return node.base.empty() ? "" : ReadAll(Join(base_, node.base)); }

std::string Disk::Content(const Node& node, size_t writes, uint64_t last_bytes, bool zeros) const {
  std::string content = Base(node);
  for (size_t i = 0; i < writes; ++i) {
    const Write& write = node.writes[i];
    if (write.truncates) {
      content.resize(write.offset);
      continue;
    }
    const uint64_t bytes = i + 1 == writes ? std::min(last_bytes, write.bytes) : write.bytes;
    if (write.from == nullptr) {
      const uint64_t begin = std::min<uint64_t>(write.offset, content.size());
      std::fill_n(content.begin() + static_cast<ptrdiff_t>(begin), std::min(bytes, content.size() - begin), '\0');
      continue;
    }
    if (content.size() < write.offset + bytes) content.resize(write.offset + bytes);
    content.replace(write.offset, bytes, write.from, bytes);
  }
  if (zeros) {
    size_t size = content.size();
    for (size_t i = writes; i < node.writes.size() && !node.writes[i].truncates; ++i)  // logs have no holes
      size = std::max<size_t>(size, node.writes[i].offset + node.writes[i].bytes);
    content.resize(size);
  }
  return content;
}

// ---- the cut

CutFigures Disk::Cut(Keep keep, bool compare) {
  CutFigures figures;
  if (page_->unfollowed != 0) figures.not_as_is = absl::StrCat("unfollowed: ", page_->unfollowed_what);
  const int fd = open(journal_path_.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (fd < 0 || fstat(fd, &info) != 0) Die(journal_path_);
  journal_bytes_ = static_cast<uint64_t>(info.st_size);
  void* mapped = journal_bytes_ == 0 ? nullptr : mmap(nullptr, journal_bytes_, PROT_READ, MAP_PRIVATE, fd, 0);
  if (mapped == MAP_FAILED) Die(journal_path_);
  close(fd);
  journal_ = static_cast<const char*>(mapped);
  Replay();

  // How much stays.
  Tree tree, everything;
  std::vector<std::pair<std::string, int>> todo;
  const auto collect = [&](Tree* into, bool all) {
    todo = {{"", 0}};
    while (!todo.empty()) {
      const auto [path, index] = todo.back();
      todo.pop_back();
      const Node& node = nodes_[static_cast<size_t>(index)];
      if (node.is_directory) {
        if (!path.empty()) into->directories.insert(path);
        std::map<std::string, int> entries = node.durable;
        size_t kept = all ? node.changes.size() : 0;
        if (!all && keep == Keep::kSome && Below(3) != 0) {
          kept = Below(2) == 0 ? node.changes.size() : Below(node.changes.size() + 1);
        }
        for (size_t i = 0; i < kept; ++i) Apply(node.changes[i], &entries);
        if (!all) figures.entries += static_cast<int64_t>(node.changes.size() - kept);
        for (const auto& [name, child] : entries) todo.emplace_back(Join(path, name), child);
        continue;
      }
      Tree::File file = {index, all ? node.writes.size() : node.synced, UINT64_MAX, false};
      uint64_t pending = 0;
      for (size_t i = node.synced; i < node.writes.size(); ++i) pending += node.writes[i].bytes;
      if (!all && keep == Keep::kSome && node.synced < node.writes.size() && Below(3) != 0) {
        if (Below(2) == 0) {
          file.writes = node.writes.size();
          pending = 0;
        } else {
          uint64_t left = Below(pending + 1);
          pending -= left;
          for (; file.writes < node.writes.size(); ++file.writes) {
            const uint64_t bytes = node.writes[file.writes].bytes;
            if (left < bytes) break;
            left -= bytes;
          }
          if (left > 0) ++file.writes, file.last_bytes = left;
          file.zeros = absl::EndsWith(path, ".log") && Below(4) == 0;
        }
      }
      if (!all) figures.bytes += static_cast<int64_t>(pending);
      if (!all) figures.files += file.writes != node.writes.size() || file.last_bytes != UINT64_MAX;
      into->files[path] = file;
    }
  };
  collect(&everything, /*all=*/true);
  if (compare && figures.not_as_is.empty()) {
    std::set<std::string> there;
    for (const auto& entry : fs::recursive_directory_iterator(data_)) {
      if (entry.is_regular_file()) there.insert(entry.path().string().substr(data_.size() + 1));
    }
    for (const auto& [path, file] : everything.files) {
      if (there.erase(path) == 0) {
        figures.not_as_is = absl::StrCat(path, " is missing");
        break;
      }
      const Node& node = nodes_[static_cast<size_t>(file.node)];
      if (node.writes.empty() && node.base == path && Stamp(Join(data_, path)) == stamps_[path]) continue;
      if (ReadAll(Join(data_, path)) != Content(node, file.writes, file.last_bytes, file.zeros)) {
        figures.not_as_is = absl::StrCat(path, " has other bytes");
        break;
      }
    }
    if (figures.not_as_is.empty() && !there.empty())
      figures.not_as_is = absl::StrCat(*there.begin(), " is not in the journal");
  }
  if (keep == Keep::kAll) {
    tree = everything;
  } else {
    collect(&tree, /*all=*/false);
  }

  // Contents first, as they come from what is overwritten then.
  std::map<std::string, std::string> contents;
  for (const auto& [path, file] : tree.files) {
    const Node& node = nodes_[static_cast<size_t>(file.node)];
    if (file.writes == 0 && node.base == path && !file.zeros) {
      if (Stamp(Join(data_, path)) != stamps_[path]) WriteAll(Join(data_, path), Base(node));
      continue;
    }
    contents[path] = Content(node, file.writes, file.last_bytes, file.zeros);
  }
  for (const std::string& root : {data_, base_}) {
    std::vector<std::string> gone;
    for (const auto& entry : fs::recursive_directory_iterator(root)) {
      const std::string path = entry.path().string().substr(root.size() + 1);
      if (!tree.files.contains(path) && !tree.directories.contains(path)) gone.push_back(entry.path());
    }
    for (const std::string& path : gone) fs::remove_all(path);
    for (const std::string& path : tree.directories) fs::create_directory(Join(root, path));
    for (const auto& [path, content] : contents) WriteAll(Join(root, path), content);
  }
  stamps_.clear();
  for (const auto& [path, file] : tree.files) stamps_[path] = Stamp(Join(data_, path));
  if (mapped != nullptr) munmap(mapped, journal_bytes_);
  journal_ = nullptr;
  return figures;
}

}  // namespace statepool::fault
