// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// fuzz_seeds TARGET DIRECTORY: writes inputs for a fuzzer to begin with: valid ones where bytes have a format, and
// decisions at random (always the same) where any bytes are decisions.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "server/core/layout.h"
#include "server/rpc/methods.h"
#include "server/tiers/record_codec.h"
#include "tests/fuzz/calls.h"
#include "tests/fuzz/message_builder.h"

namespace statepool::fuzz {
namespace {

using Inputs = std::vector<std::string>;

std::string Random(std::mt19937* random, size_t bytes) {
  std::string out(bytes, '\0');
  for (char& byte : out) byte = static_cast<char>((*random)());
  return out;
}

Inputs Decisions(std::string first, int count, size_t longest_bytes) {
  std::mt19937 random(1);
  Inputs inputs;
  for (int i = 0; i < count; ++i) inputs.push_back(first + Random(&random, 16 + random() % longest_bytes));
  return inputs;
}

LayoutSpec Spec() {
  TensorSpec zero, constant, data;
  zero = {"conv", TensorKind::kConv, {0, 1, 2}, DType::kBFloat16, {{"tap", 3}, {"channel", 4}}, {}, {}};
  constant = {"ssm",
              TensorKind::kRecurrent,
              {1, 3},
              DType::kFloat32,
              {{"state", 5}},
              ConstantInitial{0.5},
              Sharding{0, {{2}, {3}}}};
  data = {"shift", TensorKind::kShift, {7}, DType::kInt8, {{"channel", 3}}, DataInitial{"abc"}, {}};
  return {"model", {zero, constant, data}};
}

// Requests of every method, as the builder makes them from decisions at random.
Inputs Requests(bool with_method, int of_each) {
  const std::vector<LayoutRef> layouts(3, *Layout::Create(Spec()));
  Known known;
  known.now = absl::FromUnixSeconds(1'700'000'000);
  std::mt19937 random(2);
  Inputs inputs;
  for (size_t method = 0; method < MethodNames().size(); ++method) {
    for (int i = 0; i < of_each; ++i) {
      const std::string decisions = Random(&random, 300);
      Input input(reinterpret_cast<const uint8_t*>(decisions.data()), decisions.size());
      const std::unique_ptr<google::protobuf::Message> request = NewRequest(static_cast<Method>(method));
      MessageBuilder(&input, &known, &layouts).Fill(request.get());
      std::string bytes;
      if (with_method) bytes.push_back(static_cast<char>(method));
      inputs.push_back(bytes + request->SerializeAsString());
    }
  }
  return inputs;
}

Inputs ForRequest() {
  Inputs inputs = Requests(/*with_method=*/true, 4);
  for (std::string& sequence : Decisions("\xff", 64, 2000)) inputs.push_back(std::move(sequence));
  return inputs;
}

Inputs ForWire() {
  Inputs inputs;
  for (const std::string& request : Requests(/*with_method=*/false, 1)) {
    for (char type = 0; type < 4; ++type) inputs.push_back(std::string({type, 3, 2, 30, 7}) + request);
  }
  return inputs;
}

Inputs ForLayout() {
  Inputs inputs = Decisions(std::string(1, '\0'), 64, 300);
  inputs.push_back("\x01" + (*Layout::Create(Spec()))->canonical());
  return inputs;
}

Inputs ForRecords() {
  constexpr size_t kSumBytes = 8;
  const auto body = [](std::string value) { return value.substr(0, value.size() - kSumBytes); };
  NameRecord record;
  record.key = {kDefaultTenant, NameKind::kSequence, "a"};
  record.layout = std::string(64, 'f');
  record.versions.resize(2);
  record.requests.resize(1);
  record.requests[0].id = "r";
  const std::string key = EncodeNameKey(record.key);
  const std::string layout_key = EncodeLayoutKey(kDefaultTenant, "f");
  ImageManifest manifest;
  manifest.place = {1, 4096};
  return {
      std::string(1, '\0') + key,
      std::string(1, '\0') + EncodeImageKey(7),
      std::string("\1\0\1", 3) + body(EncodeNameRecord(key, record)),
      "\2" + body(EncodeLayoutRecord(layout_key, {kDefaultTenant, (*Layout::Create(Spec()))->canonical(), {"m", "n"}})),
      "\3" + body(EncodeManifest(EncodeImageKey(7), manifest)),
      "\4" + body(EncodeMeta("k", "bytes")),
      "\5" + body(EncodeMetaNumber("k", 7)),
      std::string("\6\1hashhash\1\0", 12)};
}

int Write(const std::string& target, const std::filesystem::path& directory) {
  Inputs inputs;
  if (target == "request") inputs = ForRequest();
  else if (target == "chunks") inputs = Decisions("", 64, 500);
  else if (target == "wire") inputs = ForWire();
  else if (target == "layout") inputs = ForLayout();
  else if (target == "records") inputs = ForRecords();
  else return std::fprintf(stderr, "no target %s\n", target.c_str()), 2;
  std::filesystem::create_directories(directory);
  for (size_t i = 0; i < inputs.size(); ++i) std::ofstream(directory / absl::StrCat(i), std::ios::binary) << inputs[i];
  return 0;
}

}  // namespace
}  // namespace statepool::fuzz

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: fuzz_seeds TARGET DIRECTORY\n"), 2;
  return statepool::fuzz::Write(argv[1], argv[2]);
}
