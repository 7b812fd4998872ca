// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The whole of the tool as data: help, parsing and completion follow from it.
#include <utility>

#include "client/cli/commands.h"

namespace statepool::cli {

const Program& TheProgram() {
  static const Program* const program = [] {
    auto* p = new Program{
        "statepool",
        "Keeps the recurrent states of sequence models where inference workers can share them.\n"
        "This tool speaks to the daemon, statepoold.\n"
        "\n"
        "A layout is the schema of one model's state. A sequence is a name whose head\n"
        "moves (seq set, seq rollback), a snapshot one that stays, and a prefix is found\n"
        "by the tokens that lead to it. All point at states that never change, so a fork\n"
        "copies no byte.",
        "statepool layout register --alias=my-model --preset=rwkv7 --model-id=sha256:0a1b \\\n"
        "    layers=12 hidden_size=768\n"
        "statepool seq create chat/42 --layout=my-model\n"
        "statepool seq set chat/42 --in=state.bin --position=128\n"
        "statepool seq fork chat/42 chat/43\n"
        "statepool seq get chat/43 --out=copy.bin -o json",
        {{"server", Flag::kText, "ADDR", "HOST:PORT or unix:PATH; default $STATEPOOL_SERVER, else 127.0.0.1:7070"},
         {"output", Flag::kChoice, "table|json", "how answers are printed; default table", false, 'o'},
         {"timeout", Flag::kSeconds, "SECONDS",
          "for each call, retries included; of a transfer: without progress; default 30"},
         {"help", Flag::kSwitch, "", "show help, at every level", false, 'h'},
         {"version", Flag::kSwitch, "", "show the tool's version"}},
        {}};
    for (std::vector<Command> group : {LayoutCommands(), SeqCommands(), SnapshotCommands(), PrefixCommands(),
                                       DaemonCommands(), CompletionCommands()}) {
      for (Command& command : group) p->commands.push_back(std::move(command));
    }
    return p;
  }();
  return *program;
}

}  // namespace statepool::cli
