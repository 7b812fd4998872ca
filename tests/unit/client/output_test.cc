// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the tool prints, and the files it reads and writes.
#include "client/cli/output.h"

#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/files.h"
#include "client/cli/json.h"
#include "client/cli/layout.h"
#include "client/cli/layout_size.h"
#include "client/cli/terminal.h"
#include "client/cpp/errors.h"
#include "proto/presets.h"

namespace statepool::cli {
namespace {

v1::NameInfo Info() {
  v1::NameInfo info;
  info.mutable_name()->set_sequence("chat/\"42\"");
  info.set_layout(std::string(64, 'f'));
  info.set_position(128);
  info.set_revision(uint64_t{3} << 40 | 7);
  info.set_checksum("0123456789abcdef");
  info.set_exactness(v1::EXACT);
  info.set_tier(v1::HOT);
  info.set_state_bytes(20 << 20);
  info.set_durability(v1::WRITE_BEHIND);
  info.mutable_ttl()->set_seconds(30);
  return info;
}

TEST(JsonTest, ANameHasSnakeCaseKeysAndNumbers) {
  EXPECT_EQ(
      ToJson(Info()).Dump(),
      "{\"name\":\"chat/\\\"42\\\"\",\"kind\":\"sequence\",\"layout\":\"" + std::string(64, 'f') +
          "\",\"position\":128,\"revision\":3298534883335,\"durable_revision\":0,\"checksum\":\"0123456789abcdef\","
          "\"exactness\":\"EXACT\",\"tier\":\"HOT\",\"version_id\":0,\"parent_version_id\":0,\"state_bytes\":20971520,"
          "\"attachment_bytes\":0,\"durability\":\"WRITE_BEHIND\",\"max_history\":0,\"ttl\":\"30s\",\"replayed\":"
          "false}");
}

TEST(JsonTest, AMatchHasTheNamesFieldsBesideItsOwn) {
  v1::PrefixMatch match;
  match.set_prefix("00ff");
  match.set_position(5);
  *match.mutable_info() = Info();
  match.mutable_info()->mutable_name()->set_prefix("00ff");
  const Json json = ToJson(match);
  EXPECT_EQ(json.Find("position")->text(), "5");
  EXPECT_EQ(json.Find("name")->text(), "00ff");
  EXPECT_EQ(json.Find("tier")->text(), "HOT");
  EXPECT_EQ(json.Find("info"), nullptr);
}

TEST(JsonTest, TextIsEscapedAndAlwaysUtf8) {
  EXPECT_EQ(Json("a\"\\\n\t\x01\x7f\u00e4\u20ac\U0001F600").Dump(),
            "\"a\\\"\\\\\\n\\t\\u0001\\u007f\u00e4\u20ac\U0001F600\"");
  EXPECT_EQ(Json("\xff|\xc3|\xe0\x80\x80|\xed\xa0\x80|\xf5").Dump(),
            "\"\uFFFD|\uFFFD|\uFFFD\uFFFD\uFFFD|\uFFFD\uFFFD\uFFFD|\uFFFD\"");
}

TEST(JsonTest, NumbersHaveTheDigitsFromWhichTheyAreReadBack) {
  EXPECT_EQ(Json(0.08).Dump(), "0.08");
  EXPECT_EQ(Json(102.0).Dump(), "102");
  EXPECT_EQ(Json(1.0 / 3).Dump(), "0.3333333333333333");
  EXPECT_EQ(Json(-1e30).Dump(), "-1e+30");
  EXPECT_EQ(Json(0.1f).Dump(), "0.1");
  EXPECT_EQ(Json(std::numeric_limits<double>::infinity()).Dump(), "\"inf\"");
  for (const double number : {5e-324, 1.7976931348623157e308, 0.1 + 0.2, 9007199254740993.0, -0.0})
    EXPECT_EQ(std::strtod(Json(number).Dump().c_str(), nullptr), number);
}

TEST(JsonTest, IsJsonToAParser) {
  v1::NameInfo parsed;
  Json json = ToJson(Info());
  json.Set("name", Json::Object().Set("sequence", json.Find("name")->text()));
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  ASSERT_TRUE(google::protobuf::util::JsonStringToMessage(json.Dump(), &parsed, options).ok());
  EXPECT_EQ(parsed.SerializeAsString(), Info().SerializeAsString());
}

TEST(ErrorOutputTest, HasTheFiveKeysAndMetadata) {
  EXPECT_EQ(ErrorToJson(client::MakeError(absl::StatusCode::kAborted, "REVISION_MISMATCH", "if_revision", "it is 9",
                                          {{"revision", "9"}}))
                .Dump(),
            "{\"code\":\"ABORTED\",\"reason\":\"REVISION_MISMATCH\",\"field\":\"if_revision\",\"message\":\"it is 9\","
            "\"retry_after_ms\":0,\"metadata\":{\"revision\":\"9\"}}");
}

TEST(ErrorOutputTest, ExitCodesAreThoseOfTheContract) {
  using absl::StatusCode;
  const std::pair<StatusCode, int> expected[] = {
      {StatusCode::kOk, 0},       {StatusCode::kInvalidArgument, 2},   {StatusCode::kNotFound, 3},
      {StatusCode::kAborted, 4},  {StatusCode::kAlreadyExists, 4},     {StatusCode::kFailedPrecondition, 4},
      {StatusCode::kDataLoss, 7}, {StatusCode::kResourceExhausted, 5}, {StatusCode::kUnavailable, 6},
      {StatusCode::kInternal, 1}, {StatusCode::kDeadlineExceeded, 6},  {StatusCode::kPermissionDenied, 8},
      {StatusCode::kUnknown, 1},  {StatusCode::kUnauthenticated, 8},   {StatusCode::kUnimplemented, 1},
      {StatusCode::kCancelled, 1}};
  for (const auto& [code, exit_code] : expected) EXPECT_EQ(ExitCode(code), exit_code) << absl::StatusCodeToString(code);
}

TEST(TableTest, FitsInto80Columns) {
  const std::string text =
      absl::StrCat(ObjectAsText(ToJson(Info())), TableAsText("sequences", {ToJson(Info()), ToJson(Info())}));
  for (absl::string_view line : absl::StrSplit(text, '\n')) EXPECT_LE(line.size(), 80u) << line;
  EXPECT_EQ(TableAsText("sequences", {ToJson(Info())}),
            "NAME       POSITION       REVISION  DURABLE  TIER     STATE\n"
            "chat/\"42\"       128  3298534883335  no       HOT   20.0 MiB\n");
  EXPECT_EQ(TableAsText("sequences", {}), "NAME  POSITION  REVISION  DURABLE  TIER  STATE\n");
}

TEST(TableTest, CutsTextsInTheirMiddleToFitATerminal) {
  v1::NameInfo info = Info();
  info.mutable_name()->set_sequence("users/someone/chats/2026-11-22/the-first-one");
  const std::vector<Json> items = {ToJson(Info()), ToJson(info)};
  const std::string whole = TableAsText("sequences", items);
  EXPECT_TRUE(absl::StrContains(whole, "users/someone/chats/2026-11-22/the-first-one"));
  for (const size_t columns : {size_t{60}, size_t{70}, size_t{80}}) {
    const std::string cut = TableAsText("sequences", items, columns);
    for (absl::string_view line : absl::StrSplit(cut, '\n')) EXPECT_LE(Columns(line), columns) << line;
    EXPECT_TRUE(absl::StrContains(cut, "3298534883335")) << "numbers are never cut";
    EXPECT_TRUE(absl::StrContains(cut, "…")) << cut;
  }
  EXPECT_EQ(TableAsText("sequences", items, 200), whole);
  EXPECT_TRUE(absl::StrContains(TableAsText("sequences", items, 1), "user…one")) << "no less than 8 columns";
}

TEST(TableTest, AlignsColumnsByCharactersNotBytes) {
  v1::NameInfo umlauts = Info(), plain = Info();
  umlauts.mutable_name()->set_sequence("äöü");
  plain.mutable_name()->set_sequence("aouxx");
  const std::vector<std::string> lines =
      absl::StrSplit(TableAsText("sequences", {ToJson(umlauts), ToJson(plain)}), '\n');
  EXPECT_EQ(Columns(lines[1]), Columns(lines[2]));
}

TEST(TableTest, ShowsTensorsCompactly) {
  v1::LayoutInfo info;
  info.set_fingerprint(std::string(64, 'a'));
  info.add_aliases("my-model");
  info.set_state_bytes(100);
  v1::TensorSpec& tensor = *info.mutable_layout()->add_tensors();
  tensor.set_name("wkv");
  tensor.set_kind(v1::RECURRENT);
  for (uint32_t layer : {0, 1, 2, 5, 7, 8}) tensor.add_layers(layer);
  tensor.set_dtype(v1::FLOAT32);
  for (const char* name : {"head", "key"}) {
    v1::Axis& axis = *tensor.add_axes();
    axis.set_name(name);
    axis.set_size(64);
  }
  EXPECT_EQ(ObjectAsText(ToJson(info)), "layout       aaaaaaaaaaaa\nfingerprint  " + std::string(64, 'a') +
                                            "\naliases      my-model\nstate_bytes  100 B\n"
                                            "\n"
                                            "NAME  KIND       DTYPE    LAYERS     AXES\n"
                                            "wkv   RECURRENT  FLOAT32  0-2,5,7-8  head 64, key 64\n");
}

TEST(PresetTest, HelpNamesExactlyTheContractsParametersAndItsExamplesParse) {
  EXPECT_EQ(static_cast<int>(PresetFamilies().size()),
            v1::LayoutPreset::descriptor()->FindOneofByName("family")->field_count());
  for (const PresetFamily& help : PresetFamilies()) {
    const auto* family = v1::LayoutPreset::descriptor()->FindFieldByName(help.name);
    ASSERT_NE(family, nullptr) << help.name;
    ASSERT_EQ(static_cast<int>(help.parameters.size()), family->message_type()->field_count());
    for (size_t i = 0; i < help.parameters.size(); ++i) {
      EXPECT_EQ(help.parameters[i].name, family->message_type()->field(static_cast<int>(i))->name());
    }
    const auto request = LayoutFromJson(help.example);
    ASSERT_TRUE(request.ok()) << request.status();
    EXPECT_EQ(request->preset().family_case(), family->number());
    EXPECT_TRUE(FromPreset(request->preset()).ok()) << help.example;
  }
}

TEST(LayoutFileTest, TellsItsShapesApart) {
  EXPECT_EQ(LayoutFromJson(R"({"model_id":"m","tensors":[{"name":"a"}]})")->layout().tensors(0).name(), "a");
  EXPECT_EQ(LayoutFromJson(R"({"alias":"x","layout":{"modelId":"m"}})")->alias(), "x");
  EXPECT_EQ(LayoutFromJson(R"({"preset":{"model_id":"m","rwkv7":{"layers":3}}})")->preset().rwkv7().layers(), 3u);
  EXPECT_EQ(LayoutFromJson(R"({"layout":"ff","schema":{"model_id":"m","tensors":[{"name":"a","axes":[{"size":9}]}]}})")
                ->layout()
                .tensors(0)
                .axes(0)
                .size(),
            9u);
  for (const char* bad :
       {"", "[]", "{}", "{\"model_id\":\"m\"}", R"({"tensors":[{"nmae":"a"}]})", R"({"rwkv7":{"layres":3}})"}) {
    EXPECT_EQ(client::GetErrorDetail(LayoutFromJson(bad).status()).reason, "USAGE") << bad;
  }
}

class FilesTest : public testing::Test {
 protected:
  FilesTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "statepool.XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
  }
  ~FilesTest() override { std::filesystem::remove_all(dir_); }

  size_t FilesThere() const {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator(dir_), std::filesystem::directory_iterator()));
  }

  std::string dir_;
};

TEST_F(FilesTest, AWrittenFileReadsBackAndReplacesTheOldOne) {
  const std::string path = dir_ + "/state.bin", large(3000000, 'x');
  ASSERT_TRUE(WriteFile("--out", path, {large, "tail"}).ok());
  EXPECT_TRUE(*ReadFile("--in", path, 3000004) == large + "tail");
  EXPECT_EQ(ReadFile("--in", path, 3000003).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(chmod(path.c_str(), 0640), 0);
  ASSERT_TRUE(WriteFile("--out", path, {"new"}).ok());
  EXPECT_EQ(*ReadFile("--in", path, 3), "new");
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
  EXPECT_EQ(FilesThere(), 1u);
  ASSERT_TRUE(WriteFile("--out", path, {}).ok());
  EXPECT_EQ(*ReadFile("--in", path, 0), "");
}

TEST_F(FilesTest, AFailedWriteLeavesNothing) {
  ASSERT_EQ(mkdir((dir_ + "/d").c_str(), 0700), 0);
  for (const std::string& path : {dir_ + "/missing/state.bin", dir_ + "/d"}) {
    const absl::Status status = WriteFile("--out", path, {"x"});
    EXPECT_EQ(status.code(), absl::StatusCode::kUnknown);
    EXPECT_EQ(client::GetErrorDetail(status).field, "--out");
  }
  EXPECT_EQ(FilesThere(), 1u);
  {
    absl::StatusOr<FileWriter> abandoned = FileWriter::Open("--out", dir_ + "/state.bin");
    ASSERT_TRUE(abandoned.ok() && abandoned->Append("half").ok());
    EXPECT_EQ(FilesThere(), 2u);
  }
  EXPECT_EQ(FilesThere(), 1u);
  EXPECT_EQ(client::GetErrorDetail(ReadFile("--in", dir_ + "/missing", 9).status()).reason, "FILE");
  EXPECT_TRUE(WriteFile("--out", "/dev/null", {"x"}).ok());
}

TEST_F(FilesTest, ARegularFileIsReadFromAnywhere) {
  const std::string path = dir_ + "/state.bin";
  ASSERT_TRUE(WriteFile("", path, {"0123456789"}).ok());
  absl::StatusOr<FileReader> file = FileReader::Open("--in", path);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->size(), 10u);
  char bytes[10];
  EXPECT_EQ(*file->Read(7, bytes, 10), 3u);
  EXPECT_EQ(std::string(bytes, 3), "789");
  EXPECT_EQ(*file->Read(0, bytes, 2), 2u);
  EXPECT_EQ(std::string(bytes, 2), "01");
  EXPECT_EQ(*file->Read(10, bytes, 2), 0u);
  EXPECT_EQ(client::GetErrorDetail(FileReader::Open("--in", dir_ + "/missing").status()).reason, "FILE");
}

TEST_F(FilesTest, APipeIsReadOnAndAgainFromItsLastBytes) {
  const std::string path = dir_ + "/pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const size_t n = 50 << 20;
  std::thread writer([&] {
    std::string bytes(n, '\0');
    for (size_t i = 0; i < n; ++i) bytes[i] = static_cast<char>(i >> 10);
    EXPECT_TRUE(WriteFile("", path, {bytes}).ok());
  });
  absl::StatusOr<FileReader> file = FileReader::Open("--in", path);
  ASSERT_TRUE(file.ok());
  EXPECT_FALSE(file->is_regular());
  std::string piece(1 << 20, '\0');
  uint64_t at = 0;
  for (size_t got = 1; got > 0; at += got) {
    got = *file->Read(at, piece.data(), piece.size());
    for (size_t i = 0; i < got; i += 997) ASSERT_EQ(piece[i], static_cast<char>((at + i) >> 10));
  }
  writer.join();
  EXPECT_EQ(at, n);
  const uint64_t again = n - (24 << 20);
  EXPECT_GT(*file->Read(again, piece.data(), 100), 0u);
  EXPECT_EQ(piece[0], static_cast<char>(again >> 10));
  EXPECT_EQ(*file->Read(n, piece.data(), 100), 0u);
  EXPECT_EQ(file->Read(0, piece.data(), 100).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(file->Read(n + 1, piece.data(), 100).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(FilesTest, TokensAreOneIntegerALine) {
  const std::string path = dir_ + "/tokens";
  ASSERT_TRUE(WriteFile("", path, {"1\n 2 \r\n\n4294967295"}).ok());
  EXPECT_EQ(*ReadTokens("--tokens", path), (std::vector<uint32_t>{1, 2, 4294967295}));
  for (const char* bad : {"1\n-2", "4294967296", "1 2", "x"}) {
    ASSERT_TRUE(WriteFile("", path, {bad}).ok());
    EXPECT_EQ(client::GetErrorDetail(ReadTokens("--tokens", path).status()).field, "--tokens") << bad;
  }
}

}  // namespace
}  // namespace statepool::cli
