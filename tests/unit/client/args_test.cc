// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/args.h"

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands.h"
#include "client/cpp/errors.h"

namespace statepool::cli {
namespace {

Program TestProgram() {
  return {"pool",
          "A program.",
          "pool cup fill big --with=tea",
          {{"server", Flag::kText, "ADDR", "where"}, {"output", Flag::kChoice, "table|json", "how", false, 'o'}},
          {{"cup fill",
            "NAME...",
            1,
            2,
            "Fill cups.",
            "",
            "pool cup fill big --with=tea",
            {{"with", Flag::kText, "WHAT", "what to fill in", true},
             {"level", Flag::kInteger, "N", "how far"},
             {"revision", Flag::kUnsigned, "R", "of the cup"},
             {"ttl", Flag::kDuration, "TIME", "how long"},
             {"timeout", Flag::kSeconds, "SECONDS", "how patient"},
             {"until", Flag::kTime, "TIME", "when"},
             {"hot", Flag::kSwitch, "", "hot"}},
            nullptr},
           {"cup empty", "", 0, 0, "Empty all.", "", "", {}, nullptr},
           {"wash", "", 0, -1, "Wash.", "", "", {}, nullptr}}};
}

class ArgsTest : public testing::Test {
 protected:
  absl::StatusOr<Arguments> Try(absl::string_view line) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    return Parse(program_, words);
  }
  Arguments Good(absl::string_view line) {
    absl::StatusOr<Arguments> args = Try(line);
    EXPECT_TRUE(args.ok()) << line << ": " << args.status();
    return args.ok() ? *args : Arguments();
  }
  // The message of a usage error about `field`.
  std::string Bad(absl::string_view line, absl::string_view field) {
    const absl::Status status = Try(line).status();
    EXPECT_EQ(client::GetErrorDetail(status).reason, "USAGE") << line;
    EXPECT_EQ(client::GetErrorDetail(status).field, field) << line;
    return std::string(status.message());
  }

  const Program program_ = TestProgram();
};

TEST_F(ArgsTest, FlagsAndOperandsComeInAnyOrder) {
  for (const char* line : {"cup fill a b --with=tea --level=-3 -o json", "cup fill --with tea a --level -3 b -ojson",
                           "--output=json cup -o json fill --with=tea a --level=-3 -- b"}) {
    const Arguments args = Good(line);
    EXPECT_EQ(args.command, &program_.commands[0]);
    EXPECT_EQ(args.operands, (std::vector<std::string>{"a", "b"})) << line;
    EXPECT_EQ(args.Text("with"), "tea");
    EXPECT_EQ(args.Integer("level"), -3);
    EXPECT_EQ(args.Text("output"), "json");
  }
}

TEST_F(ArgsTest, AfterTwoDashesAllAreOperands) {
  EXPECT_EQ(Good("cup fill --with=tea -- --with -x").operands, (std::vector<std::string>{"--with", "-x"}));
  EXPECT_EQ(Good("wash - -- -- help").operands, (std::vector<std::string>{"-", "--", "help"}));
}

TEST_F(ArgsTest, ValuesHaveTheirTypes) {
  const Arguments args = Good(
      "cup fill a --with= --revision=18446744073709551615 --ttl=1h30m --timeout=0.25 --until=2030-01-31T12:00:00Z "
      "--hot");
  EXPECT_TRUE(args.Has("with"));
  EXPECT_EQ(args.Text("with", "fallback"), "");
  EXPECT_EQ(args.Text("server", "fallback"), "fallback");
  EXPECT_EQ(args.Unsigned("revision"), UINT64_MAX);
  EXPECT_EQ(args.Duration("ttl"), absl::Minutes(90));
  EXPECT_EQ(args.Seconds("timeout", absl::Seconds(9)), absl::Milliseconds(250));
  EXPECT_EQ(args.Time("until"), absl::FromUnixSeconds(1896091200));
  EXPECT_TRUE(args.Has("hot"));
  EXPECT_FALSE(args.Has("level"));
  EXPECT_EQ(args.Integer("level", 7), 7);
  EXPECT_EQ(Good("cup fill a --with=x --with=y").Text("with"), "y");
}

TEST_F(ArgsTest, BadValuesNameTheirFlag) {
  Bad("cup fill a --with=x --level=3x", "--level");
  Bad("cup fill a --with=x --level=9223372036854775808", "--level");
  Bad("cup fill a --with=x --level=", "--level");
  Bad("cup fill a --with=x --revision=-1", "--revision");
  Bad("cup fill a --with=x --ttl=30", "--ttl");
  Bad("cup fill a --with=x --ttl=-3s", "--ttl");
  Bad("cup fill a --with=x --ttl=inf", "--ttl");
  Bad("cup fill a --with=x --timeout=0", "--timeout");
  Bad("cup fill a --with=x --timeout=nan", "--timeout");
  Bad("cup fill a --with=x --until=tomorrow", "--until");
  Bad("cup fill a --with=x --hot=yes", "--hot");
  Bad("cup fill a --with=x --level", "--level");
  Bad("cup fill a --with --level=3", "--with");
  EXPECT_EQ(Bad("cup fill a --with=x -o xml", "--output"), "-o is one of table, json, not 'xml'");
}

TEST_F(ArgsTest, UnknownWordsGetASuggestion) {
  EXPECT_TRUE(absl::StrContains(Bad("cup fill a --wiht=x", "--wiht"), "did you mean --with?"));
  EXPECT_TRUE(absl::StrContains(Bad("cup fill a --with=x --rev=3", "--rev"), "did you mean --revision?"));
  EXPECT_FALSE(absl::StrContains(Bad("cup fill a --with=x --zzzzzz", "--zzzzzz"), "did you mean"));
  EXPECT_TRUE(absl::StrContains(Bad("cup fil a", "cup fil"), "did you mean fill?"));
  EXPECT_TRUE(absl::StrContains(Bad("cap fill a", "cap"), "did you mean cup?"));
  EXPECT_TRUE(absl::StrContains(Bad("--with=x cup fill a", "--with"), "before the command"));
  Bad("cup fill a --with=x -x", "-x");
}

TEST_F(ArgsTest, WhatIsMissingOrTooMuchIsAnError) {
  Bad("", "");
  Bad("cup", "");
  Bad("cup fill --with=x", "NAME...");
  Bad("cup fill a b c --with=x", "c");
  Bad("cup empty a", "a");
  EXPECT_TRUE(absl::StrContains(Bad("cup fill a", "--with"), "--with=WHAT is required"));
}

TEST_F(ArgsTest, HelpIsThereAtEveryLevelAndTeaches) {
  for (const char* line : {"--help", "-h", "help"}) {
    const std::string help = Good(line).help;
    EXPECT_TRUE(absl::StrContains(help, "A program.") && absl::StrContains(help, "cup empty") &&
                absl::StrContains(help, "wash"));
  }
  for (const char* line : {"cup --help", "help cup"}) {
    const std::string help = Good(line).help;
    EXPECT_TRUE(absl::StrContains(help, "cup empty") && !absl::StrContains(help, "wash"));
  }
  for (const char* line : {"cup fill --help", "help cup fill", "cup fill a b c d -h"}) {
    const std::string help = Good(line).help;
    EXPECT_TRUE(absl::StrContains(help, "--ttl=TIME") && absl::StrContains(help, "pool cup fill big --with=tea"));
  }
}

TEST(CommandsTest, HaveAnExampleAndHelpWithin80Columns) {
  const Program& program = TheProgram();
  for (const Command& command : program.commands) {
    EXPECT_FALSE(command.example.empty()) << command.name;
    EXPECT_FALSE(command.details.empty()) << command.name;
    EXPECT_NE(command.run, nullptr) << command.name;
    std::vector<std::string> words = absl::StrSplit(command.name, ' ');
    words.push_back("--help");
    const absl::StatusOr<Arguments> args = Parse(program, words);
    ASSERT_TRUE(args.ok()) << args.status();
    for (absl::string_view line : absl::StrSplit(args->help, '\n')) {
      EXPECT_LE(line.size(), absl::StrContains(line, "statepool ") ? 100 : 80) << line;
    }
  }
}

}  // namespace
}  // namespace statepool::cli
