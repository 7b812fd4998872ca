// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/shim/control_page.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace statepool::shim {

ControlPage::ControlPage(const std::string& path) : path_(path) {
  const int fd = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  void* const page = fd < 0 || ftruncate(fd, sizeof(Control)) != 0
                         ? MAP_FAILED
                         : mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) {
    std::fprintf(stderr, "not measurable: %s: %s\n", path_.c_str(), std::strerror(errno));
    std::exit(2);
  }
  close(fd);
  control_ = static_cast<Control*>(page);
  Reset();
}

ControlPage::~ControlPage() { munmap(control_, sizeof(Control)); }

void ControlPage::Reset() {
  control_->calls = 0;
  control_->at = 0;
  control_->action = Action::kNone;
  control_->reached = 0;
  for (auto& row : control_->seen) {
    for (auto& count : row) count = 0;
  }
  control_->point_at = 0;
  control_->count_reads = 0;
  control_->free_bytes = kUnlimited;
  control_->hides_free = 0;
  control_->sync_micros_max = 0;
  control_->journal_bytes = 0;
  control_->unfollowed = 0;
}

std::vector<std::string> ControlPage::Behind(const std::string& library, const std::string& directory,
                                             const std::vector<std::string>& command,
                                             const std::string& journal) const {
  std::vector<std::string> all = {"/usr/bin/env", absl::StrCat("LD_PRELOAD=", library),
                                  absl::StrCat(kDirectoryVariable, "=", directory),
                                  absl::StrCat(kControlVariable, "=", path_)};
  if (!journal.empty()) all.push_back(absl::StrCat(kJournalVariable, "=", journal));
  all.insert(all.end(), command.begin(), command.end());
  return all;
}

}  // namespace statepool::shim
