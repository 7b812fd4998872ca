// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the contract says of errors: its table of reasons, and what stands above each RPC, read from statepool.proto.
#ifndef STATEPOOL_TESTS_FUZZ_DOCUMENTED_ERRORS_H_
#define STATEPOOL_TESTS_FUZZ_DOCUMENTED_ERRORS_H_

#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"

namespace statepool::fuzz {

// Thread-safe: immutable.
class DocumentedErrors {
 public:
  static const DocumentedErrors& Get();  // of the source tree that this was built from

  // Ends the process unless `status` is an error that `method` may give: a reason of the table with its code, with
  // RetryInfo exactly if the table says so, and one of those named above the method or of those that every call may
  // give.
  void Check(const std::string& method, const absl::Status& status) const;
  void CheckItem(const std::string& method, const google::rpc::Status& status) const;

 private:
  DocumentedErrors();
  struct Row {
    bool retry = false;
  };
  std::map<std::pair<std::string, std::string>, Row> rows_;  // (code, reason)
  std::map<std::string, std::set<std::string>> reasons_;     // by method
};

}  // namespace statepool::fuzz

#endif  // STATEPOOL_TESTS_FUZZ_DOCUMENTED_ERRORS_H_
