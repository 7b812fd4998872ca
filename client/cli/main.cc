// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// statepool: the command line tool. What it promises to scripts is in README.md.
#include <google/protobuf/stubs/logging.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "client/cli/commands.h"
#include "client/cli/output.h"

namespace statepool::cli {
namespace {

constexpr char kDefaultServer[] = "127.0.0.1:7070";

int Run(const std::vector<std::string>& words) {
  const absl::StatusOr<Arguments> args = Parse(TheProgram(), words);
  if (!args.ok()) return Fail(args.status());
  if (!args->help.empty()) {
    fwrite(args->help.data(), 1, args->help.size(), stdout);
    return 0;
  }
  client::Options options;
  options.arenas = options.direct = false;  // they pay from a few calls on
  options.timeout = args->Seconds("timeout", options.timeout);
  const char* const environment = getenv("STATEPOOL_SERVER");
  const std::string server =
      args->Text("server", environment != nullptr && *environment != '\0' ? environment : kDefaultServer);
  const absl::StatusOr<client::Pool> pool = client::Pool::Connect(server, options);
  if (!pool.ok()) return Fail(pool.status());
  Context context{TheProgram(), *args, *pool, options, args->Text("output") == "json"};
  return args->command->run(context);
}

}  // namespace
}  // namespace statepool::cli

int main(int argc, char** argv) {
  // stderr is for our errors alone.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  google::protobuf::SetLogHandler(nullptr);
  const std::vector<std::string> words(argv + 1, argv + argc);
  int code = 0;
  if (words == std::vector<std::string>{"--version"}) {
    puts("statepool " STATEPOOL_VERSION);
  } else {
    code = statepool::cli::Run(words);
  }
  if (fflush(stdout) != 0 && code == 0) {
    code = statepool::cli::Fail(
        statepool::client::MakeError(absl::StatusCode::kUnknown, "FILE", "stdout", "can't write to stdout"));
  }
  _exit(code);  // a call that was left behind at its deadline must not hold the process
}
