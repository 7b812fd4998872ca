// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// snapshot: create, restore; what all names have is in names.cc.
#include <utility>

#include "client/cli/commands.h"
#include "client/cli/output.h"

namespace statepool::cli {
namespace {

int RunCreate(Context& context) {
  const absl::StatusOr<v1::NameRef> source = SourceOf(context.args, context.args.operands[0]);
  if (!source.ok()) return Fail(source.status());
  const absl::StatusOr<v1::NameOptions> options = OptionsOf(context.args);
  if (!options.ok()) return Fail(options.status());
  v1::SnapshotRequest request;
  *request.mutable_source() = *source;
  request.set_snapshot(context.args.operands[1]);
  if (context.args.Has("at")) request.set_position(context.args.Integer("at"));
  request.set_request_id(context.args.Text("request-id"));
  *request.mutable_options() = *options;
  return Answer(context, context.pool.Snapshot(request));
}

int RunRestore(Context& context) {
  const absl::StatusOr<v1::NameOptions> options = OptionsOf(context.args);
  if (!options.ok()) return Fail(options.status());
  v1::RestoreRequest request;
  request.set_snapshot(context.args.operands[0]);
  request.set_sequence(context.args.operands[1]);
  if (context.args.Has("if-revision")) request.set_if_revision(context.args.Unsigned("if-revision"));
  request.set_request_id(context.args.Text("request-id"));
  *request.mutable_options() = *options;
  return Answer(context, context.pool.Restore(request));
}

}  // namespace

std::vector<Command> SnapshotCommands() {
  std::vector<Command> commands = {
      {"snapshot create", "SRC NAME", 2, 2, "Give SRC's version a fixed name. Copies no byte.",
       "A snapshot never changes, and its name can't be used again until it is deleted.\n"
       "It is as durable as its source unless --durability says otherwise.",
       "statepool snapshot create chat/42 chat/42@system --durability=sync",
       Join({{kAt}, SourceFlags(), OptionFlags(false), {kRequestId}}), RunCreate},
      {"snapshot restore", "SNAPSHOT SEQ", 2, 2, "Move a sequence's head to a snapshot's version.",
       "Makes the sequence when it does not exist. What its head was stays in history.\n"
       "Copies no byte. The sequence must have the snapshot's layout.",
       "statepool snapshot restore chat/42@system chat/42", Join({{kIfRevision, kRequestId}, OptionFlags(true)}),
       RunRestore},
  };
  for (Command& command : NameCommands(v1::SNAPSHOT)) commands.push_back(std::move(command));
  return commands;
}

}  // namespace statepool::cli
