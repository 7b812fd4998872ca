// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What a shell has to know to complete command lines of a program: its groups, commands, flags and their choices, made
// from the table that parsing and help are made from.
#ifndef STATEPOOL_CLIENT_CLI_COMPLETION_H_
#define STATEPOOL_CLIENT_CLI_COMPLETION_H_

#include <string>

#include "absl/strings/string_view.h"
#include "client/cli/args.h"

namespace statepool::cli {

// A script for `shell`: bash, zsh or fish; empty for another.
std::string CompletionScript(const Program& program, absl::string_view shell);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_COMPLETION_H_
