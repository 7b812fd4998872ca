// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Command lines with subcommands: what a command accepts is data, and parsing, checking and help follow from it.
//
//   statepool [GLOBAL FLAGS] GROUP COMMAND [FLAGS and OPERANDS in any order] [-- OPERANDS]
//
// Flags are --name=VALUE or --name VALUE; switches are --name; the last of several counts. "-" is an operand (a file:
// stdin or stdout). Values are checked while parsing, so a command reads them without error handling. Errors are
// INVALID_ARGUMENT with reason USAGE and the flag as field (client/cpp/errors.h).
#ifndef STATEPOOL_CLIENT_CLI_ARGS_H_
#define STATEPOOL_CLIENT_CLI_ARGS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace statepool::cli {

struct Context;  // commands.h

struct Flag {
  enum Type {
    kSwitch,
    kText,
    kInteger,   // a signed 64-bit number
    kUnsigned,  // an unsigned 64-bit number
    kSeconds,   // > 0, with fractions
    kDuration,  // > 0, with a unit: 500ms, 30s, 1h30m
    kTime,      // RFC 3339: 2030-01-31T12:00:00Z
    kChoice,    // one of those that `value` lists: a|b|c
  };
  absl::string_view name;  // without dashes
  Type type;
  absl::string_view value;  // what stands for the value in the help: FILE, N, a|b|c; empty for a switch
  absl::string_view help;
  bool required = false;
  char letter = 0;  // -o besides --output
};

struct Command {
  absl::string_view name;      // "seq set", or one word
  absl::string_view operands;  // for the help: "NAME", "SRC [CHILD...]"
  int min_operands;
  int max_operands;           // -1: any number
  absl::string_view summary;  // one line
  absl::string_view details;  // lines of at most 80 columns, may be empty
  absl::string_view example;  // shell lines
  std::vector<Flag> flags;
  int (*run)(Context&);  // gives the exit code
};

struct Program {
  absl::string_view name;
  absl::string_view summary;
  absl::string_view example;
  std::vector<Flag> flags;        // for every command; --help (-h) is always there
  std::vector<Command> commands;  // in the order of the help, groups together
};

// What was given. REQUIRES for each getter: the command or the program has this flag with this type.
class Arguments {
 public:
  const Command* command = nullptr;  // null only with help
  std::vector<std::string> operands;
  std::string help;  // --help was given: print this and do nothing else

  bool Has(absl::string_view flag) const { return values_.contains(flag); }
  // The value, or `fallback` if it was not given.
  std::string Text(absl::string_view flag, absl::string_view fallback = "") const;
  int64_t Integer(absl::string_view flag, int64_t fallback = 0) const;
  uint64_t Unsigned(absl::string_view flag, uint64_t fallback = 0) const;
  absl::Duration Seconds(absl::string_view flag, absl::Duration fallback) const;
  absl::Duration Duration(absl::string_view flag) const;
  absl::Time Time(absl::string_view flag) const;

 private:
  friend class Parser;
  std::map<std::string, std::string, std::less<>> values_;
};

// `args` without the program's name. The result points into `program`.
absl::StatusOr<Arguments> Parse(const Program& program, absl::Span<const std::string> args);

absl::Status UsageError(absl::string_view field, absl::string_view message);

// The candidate that `word` was probably meant to be, or empty.
absl::string_view Nearest(absl::string_view word, absl::Span<const absl::string_view> candidates);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_ARGS_H_
