// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// ControlPage: a harness's side of the shim's page of control, and the command that puts a daemon behind the shim.
#ifndef STATEPOOL_TESTS_SHIM_CONTROL_PAGE_H_
#define STATEPOOL_TESTS_SHIM_CONTROL_PAGE_H_

#include <string>
#include <vector>

#include "tests/shim/shim.h"

namespace statepool::shim {

// Not thread-safe, but for what it points at. Errors of the file system end the program.
class ControlPage {
 public:
  // The page is the file `path`, outside of the data directory.
  explicit ControlPage(const std::string& path);
  ~ControlPage();
  ControlPage(const ControlPage&) = delete;
  ControlPage& operator=(const ControlPage&) = delete;

  Control* get() const { return control_; }
  Control* operator->() const { return control_; }
  // Before each start of a daemon: no faults, no point, counts at 0.
  void Reset();
  // The daemon's command, run behind the shim `library`, which stands before `directory` (absolute). `journal`: an
  // empty file; without it ("") nothing is written down.
  std::vector<std::string> Behind(const std::string& library, const std::string& directory,
                                  const std::vector<std::string>& command, const std::string& journal) const;

 private:
  const std::string path_;
  Control* control_ = nullptr;
};

}  // namespace statepool::shim

#endif  // STATEPOOL_TESTS_SHIM_CONTROL_PAGE_H_
