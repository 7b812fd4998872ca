// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/flags.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace statepool {
namespace {

std::string ParseSize(const std::string& text) {
  ByteSize size;
  std::string error;
  if (AbslParseFlag(text, &size, &error)) return std::to_string(size.bytes);
  EXPECT_FALSE(error.empty());
  return "error";
}

TEST(ByteSize, TakesPlainBytesAndUnits) {
  EXPECT_EQ(ParseSize("0"), "0");
  EXPECT_EQ(ParseSize("1048576"), "1048576");
  EXPECT_EQ(ParseSize("512KiB"), "524288");
  EXPECT_EQ(ParseSize("64MiB"), "67108864");
  EXPECT_EQ(ParseSize("8GiB"), "8589934592");
  EXPECT_EQ(ParseSize("8 GiB"), "8589934592");
  EXPECT_EQ(ParseSize("1TiB"), "1099511627776");
  EXPECT_EQ(ParseSize("5kB"), "5000");
  EXPECT_EQ(ParseSize("500MB"), "500000000");
  EXPECT_EQ(ParseSize("2GB"), "2000000000");
  EXPECT_EQ(ParseSize("18446744073709551615"), "18446744073709551615");
}

TEST(ByteSize, RefusesAnythingElse) {
  for (const char* text :
       {"", "GiB", "-1", "+1", "1.5GiB", "1gib", "8G", "8 GiB x", "0x10", "18446744073709551616", "16777216TiB"}) {
    EXPECT_EQ(ParseSize(text), "error") << text;
  }
}

TEST(ByteSize, PrintsWhatItWouldParse) {
  EXPECT_EQ(AbslUnparseFlag(ByteSize{uint64_t{8} << 30}), "8GiB");
  EXPECT_EQ(AbslUnparseFlag(ByteSize{1536 << 10}), "1536KiB");
  EXPECT_EQ(AbslUnparseFlag(ByteSize{1000}), "1000");
  EXPECT_EQ(AbslUnparseFlag(ByteSize{0}), "0");
}

class ExpandArgumentsTest : public ::testing::Test {
 protected:
  std::vector<std::string> Expand(const std::vector<std::string>& arguments) {
    absl::StatusOr<std::vector<std::string>> expanded = ExpandArguments(
        arguments, {"data_dir", "direct", "hot_bytes", "listen"},
        [this](const std::string& variable) -> std::optional<std::string> {
          const auto it = environment_.find(variable);
          return it == environment_.end() ? std::nullopt : std::optional<std::string>(it->second);
        },
        [this](const std::string& path) -> absl::StatusOr<std::string> {
          const auto it = files_.find(path);
          if (it == files_.end()) return absl::InvalidArgumentError("no file " + path);
          return it->second;
        });
    if (!expanded.ok()) return {"error"};
    return *expanded;
  }

  using Strings = std::vector<std::string>;
  std::map<std::string, std::string> environment_, files_;
};

TEST_F(ExpandArgumentsTest, DashesInNamesBecomeUnderscoresAndValuesStay) {
  EXPECT_EQ(Expand({"--data-dir=/a-b/c", "--hot_bytes=8GiB", "-listen=a-b:1"}),
            (Strings{"--data_dir=/a-b/c", "--hot_bytes=8GiB", "--listen=a-b:1"}));
}

TEST_F(ExpandArgumentsTest, AValueMayStandInTheNextArgument) {
  EXPECT_EQ(Expand({"--data-dir", "--odd-value", "--listen", "x"}), (Strings{"--data_dir=--odd-value", "--listen=x"}));
}

TEST_F(ExpandArgumentsTest, ABoolTakesNoValueFromTheNextArgument) {
  EXPECT_EQ(Expand({"--direct", "--data-dir", "x"}), (Strings{"--direct", "--data_dir=x"}));
  EXPECT_EQ(Expand({"--direct=false"}), (Strings{"--direct=false"}));
}

TEST_F(ExpandArgumentsTest, UnknownFlagsAndPositionalArgumentsAreLeftForTheParserToRefuse) {
  EXPECT_EQ(Expand({"--no-such", "positional", "--data-dir=x"}), (Strings{"--no_such", "positional", "--data-dir=x"}));
}

TEST_F(ExpandArgumentsTest, TheEnvironmentComesFirstSoThatTheCommandLineWins) {
  environment_ = {
      {"STATEPOOL_DATA_DIR", "/from-environment"}, {"STATEPOOL_PORT", "tcp://10.0.0.1:7070"}, {"DATA_DIR", "no"}};
  EXPECT_EQ(Expand({"--data-dir=/from-command-line"}),
            (Strings{"--data_dir=/from-environment", "--data_dir=/from-command-line"}));
}

TEST_F(ExpandArgumentsTest, FlagfilesStandWhereTheyAreNamed) {
  files_["f"] = "# a comment\n\n  --hot-bytes=1GiB  \n--flagfile=g\n";
  files_["g"] = "--listen=unix:/a b";
  EXPECT_EQ(Expand({"--data-dir=1", "--flagfile=f", "--data-dir=2"}),
            (Strings{"--data_dir=1", "--hot_bytes=1GiB", "--listen=unix:/a b", "--data_dir=2"}));
  environment_["STATEPOOL_FLAGFILE"] = "g";
  EXPECT_EQ(Expand({}), (Strings{"--listen=unix:/a b"}));
}

TEST_F(ExpandArgumentsTest, BadFlagfilesAreErrors) {
  files_ = {{"no-flags", "hot-bytes=1"}, {"loop", "--flagfile=loop"}, {"two", "--hot-bytes 1"}};
  EXPECT_EQ(Expand({"--flagfile=absent"}), Strings{"error"});
  EXPECT_EQ(Expand({"--flagfile"}), Strings{"error"});
  EXPECT_EQ(Expand({"--flagfile=no-flags"}), Strings{"error"});
  EXPECT_EQ(Expand({"--flagfile=loop"}), Strings{"error"});
  EXPECT_EQ(Expand({"--flagfile=two"}), Strings{"error"});
}

}  // namespace
}  // namespace statepool
