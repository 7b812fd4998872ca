// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// status, health.
#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/output.h"

namespace statepool::cli {
namespace {

int RunStatus(Context& context) { return Answer(context, context.pool.GetCapabilities()); }

int RunHealth(Context& context) {
  const std::string service = context.args.operands.empty() ? "" : context.args.operands[0];
  const absl::StatusOr<std::string> health = context.pool.CheckHealth(service);
  if (!health.ok()) return Fail(health.status());
  Print(context.json, Json::Object().Set("status", *health));
  if (*health == "SERVING") return 0;
  return Fail(client::MakeError(absl::StatusCode::kUnavailable, *health, "", "the daemon does not serve now"));
}

}  // namespace

std::vector<Command> DaemonCommands() {
  return {
      {"status",
       "",
       0,
       0,
       "Show the daemon's version, devices, limits and counts.",
       "Another incarnation means that the daemon was started anew.",
       "statepool status --server=unix:/run/statepool/grpc.sock",
       {},
       RunStatus},
      {"health",
       "[SERVICE]",
       0,
       1,
       "Ask whether the daemon serves; exits with 6 if not.",
       "With SERVICE of one service of it, as grpc.health.v1 names them.",
       "statepool health && echo ready",
       {},
       RunHealth},
  };
}

}  // namespace statepool::cli
