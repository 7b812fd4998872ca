// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The commands, a file for each group, and what they share.
#ifndef STATEPOOL_CLIENT_CLI_COMMANDS_H_
#define STATEPOOL_CLIENT_CLI_COMMANDS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cli/args.h"
#include "client/cli/json.h"
#include "client/cpp/statepool.h"

namespace statepool::cli {

// What a command runs with. It prints its answer or its error and gives the exit code.
struct Context {
  const Program& program;
  const Arguments& args;
  const client::Pool& pool;
  const client::Options& options;  // of the pool
  bool json;
};

std::vector<Command> LayoutCommands();      // layout.cc
std::vector<Command> SeqCommands();         // seq.cc
std::vector<Command> SnapshotCommands();    // snapshot.cc
std::vector<Command> PrefixCommands();      // prefix.cc
std::vector<Command> DaemonCommands();      // daemon.cc
std::vector<Command> CompletionCommands();  // completion.cc

// All of them, and the flags that every command has: program.cc.
const Program& TheProgram();

// The rest is in shared.cc.

// Prints an answer, or the error instead.
template <typename Message>
int Answer(const Context& context, const absl::StatusOr<Message>& answer);
int AnswerJson(const Context& context, const absl::StatusOr<Json>& answer);

// Runs `one` for each operand: prints its object if there is one operand, and an array under `kind` for several. Those
// that fail are left out, and their errors printed. Gives the first failure's exit code.
int ForEachOperand(const Context& context, absl::string_view kind,
                   absl::FunctionRef<absl::StatusOr<Json>(const std::string& operand)> one);

// --durability, --ttl, --expire-at, --never-expire, and with `history` --max-history. REQUIRES of OptionsOf: the
// command has some of them.
std::vector<Flag> OptionFlags(bool history);
absl::StatusOr<v1::NameOptions> OptionsOf(const Arguments& args);

// --ttl, --expire-at, --never-expire alone.
std::vector<Flag> ExpirationFlags();

// --tensors and --layers: a part of a state. REQUIRES of SelectOf: the command has them.
std::vector<Flag> SelectFlags();
absl::StatusOr<std::optional<v1::Select>> SelectOf(const Arguments& args);

// 0-3,7 as 0, 1, 2, 3, 7. Errors: USAGE, field `flag`.
absl::StatusOr<std::vector<uint32_t>> ParseRanges(absl::string_view flag, absl::string_view text);

// --from-snapshot and --from-prefix: of which kind the source's name is.
std::vector<Flag> SourceFlags();
absl::StatusOr<v1::NameRef> SourceOf(const Arguments& args, absl::string_view name);

extern const Flag kAt, kIfRevision, kRequestId;

std::vector<Flag> Join(std::initializer_list<std::vector<Flag>> parts);

v1::NameRef RefOf(v1::NameKind kind, absl::string_view name);

// GROUP describe, list, touch, ttl and delete, for one kind of names: names.cc.
std::vector<Command> NameCommands(v1::NameKind kind);

// ----

template <typename Message>
int Answer(const Context& context, const absl::StatusOr<Message>& answer) {
  if (!answer.ok()) return AnswerJson(context, answer.status());
  return AnswerJson(context, ToJson(*answer));
}

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_COMMANDS_H_
