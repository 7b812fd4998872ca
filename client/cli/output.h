// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the tool writes: answers to stdout, as JSON or as text for people; errors to stderr, always as one JSON object a
// line.
#ifndef STATEPOOL_CLIENT_CLI_OUTPUT_H_
#define STATEPOOL_CLIENT_CLI_OUTPUT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/cli/json.h"

namespace statepool::cli {

// 0 ok, 2 usage, 3 miss, 4 conflict, 5 exhausted, 6 unavailable, 7 data loss, 8 denied, 1 other.
int ExitCode(absl::StatusCode code);

// {"code","reason","field","message","retry_after_ms"} and "metadata" when there is some. retry_after_ms is 0 for
// errors that are not worth a retry, else at least 1.
Json ErrorToJson(const absl::Status& status);

// Prints the error, with `subject` before its message if given, and gives its exit code. REQUIRES: not ok.
int Fail(const absl::Status& status, absl::string_view subject = "");

// Of stdout if it is a terminal, else SIZE_MAX: what is piped is never cut.
size_t StdoutColumns();

// An object as lines "key  value", its arrays of objects as tables below. Fingerprints of layouts are cut to 12 digits
// there.
std::string ObjectAsText(const Json& object, size_t max_columns = SIZE_MAX);

// `items` as columns. Which ones follows from `kind`, the key under which JSON has them; for an unknown kind all that
// are scalars. Texts are cut in their middle until lines fit into `max_columns`, but never to less than 8 columns.
std::string TableAsText(absl::string_view kind, const std::vector<Json>& items, size_t max_columns = SIZE_MAX);

// Prints one answer.
void Print(bool json, const Json& object);

// Prints {"<kind>":[...]} or a table, item by item, so that a long list needs no memory. Not thread-safe.
class ListPrinter {
 public:
  ListPrinter(bool json, absl::string_view kind) : json_(json), kind_(kind) {}
  void Add(Json item);
  void Finish();  // once, after the last; without it the output is not well-formed

 private:
  bool json_;
  std::string kind_;
  size_t count_ = 0;
  std::vector<Json> rows_;  // of the next part of the table
};

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_OUTPUT_H_
