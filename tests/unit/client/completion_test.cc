// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The shells' scripts have what the table has. That bash does with them what it should: tests/integration/test_cli.py.
#include "client/cli/completion.h"

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"

namespace statepool::cli {
namespace {

Program TestProgram() {
  return {"pool",
          "A program.",
          "",
          {{"output", Flag::kChoice, "table|json", "how", false, 'o'}},
          {{"cup fill",
            "FILE...",
            1,
            -1,
            "Fill cups: it's [easy].",
            "",
            "",
            {{"with", Flag::kChoice, "tea|milk", "what"},
             {"from", Flag::kText, "FILE", "where"},
             {"hot", Flag::kSwitch, "", "hot"}},
            nullptr},
           {"cup empty", "NAME", 1, 1, "Empty one.", "", "", {}, nullptr},
           {"wash", "warm|cold", 1, 1, "Wash.", "", "", {}, nullptr}}};
}

TEST(CompletionTest, BashKnowsWordsFlagsValuesAndFiles) {
  const std::string script = CompletionScript(TestProgram(), "bash");
  for (const char* line :
       {"\"words:\") echo \"cup wash help\" ;;", "\"words:cup\") echo \"fill empty\" ;;",
        "\"flags:\") echo \"--output=\" ;;", "\"value::--output\" | \"value::-o\") echo \"table json\" ;;",
        "\"flags:cup fill\") echo \"--with= --from= --hot\" ;;", "\"value:cup fill:--with\") echo \"tea milk\" ;;",
        "\"value:cup fill:--from\") echo \"FILE\" ;;", "\"operands:cup fill\") echo \"FILE\" ;;",
        "\"operands:cup empty\") echo \"\" ;;", "\"operands:wash\") echo \"warm cold\" ;;", "complete -F _pool pool"}) {
    EXPECT_TRUE(absl::StrContains(script, line)) << line;
  }
}

TEST(CompletionTest, ZshQuotesWhatItWouldReadItself) {
  const std::string script = CompletionScript(TestProgram(), "zsh");
  EXPECT_EQ(script.rfind("#compdef pool\n", 0), 0u);
  for (const char* line :
       {"'fill:Fill cups\\: it'\\''s \\[easy\\].'", "'--with=[what]:tea|milk:(tea milk)'",
        "'--from=[where]:FILE:_files'", "'--hot[hot]'", "'-o+[how]:table|json:(table json)'", "'*:FILE...:_files'",
        "cup) _pool_cup ;;", "fill) _pool_cup_fill ;;", "wash) _pool_wash ;;"}) {
    EXPECT_TRUE(absl::StrContains(script, line)) << line << "\n" << script;
  }
}

TEST(CompletionTest, FishHasALineForEachWordAndFlag) {
  const std::string script = CompletionScript(TestProgram(), "fish");
  for (const char* line :
       {"complete -c pool -l output -s o -x -a 'table json' -d 'how'\n",
        "complete -c pool -n '__pool_at' -a cup -d 'fill, empty'\n",
        "complete -c pool -n '__pool_at cup' -a fill -d 'Fill cups: it\\'s [easy].'\n",
        "complete -c pool -n '__pool_in cup fill' -l from -r -F -d 'where'\n",
        "complete -c pool -n '__pool_in cup fill' -F\n", "complete -c pool -n '__pool_in wash' -a 'warm cold'\n",
        "contains -- $word --output -o\n"}) {
    EXPECT_TRUE(absl::StrContains(script, line)) << line;
  }
}

TEST(CompletionTest, EveryCommandAndFlagOfTheToolIsInEveryScript) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const std::string script = CompletionScript(TheProgram(), shell);
    for (const Command& command : TheProgram().commands) {
      const absl::string_view word = command.name.substr(command.name.rfind(' ') + 1);
      EXPECT_TRUE(absl::StrContains(script, word)) << shell << ": " << command.name;
      for (const Flag& flag : command.flags) {
        const std::string spelled =
            shell == std::string("fish") ? absl::StrCat("-l ", flag.name) : absl::StrCat("--", flag.name);
        EXPECT_TRUE(absl::StrContains(script, spelled)) << shell << ": " << command.name << " " << flag.name;
      }
    }
  }
  EXPECT_EQ(CompletionScript(TheProgram(), "tcsh"), "");
}

}  // namespace
}  // namespace statepool::cli
