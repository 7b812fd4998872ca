// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/documented_errors.h"

#include <algorithm>
#include <fstream>
#include <regex>
#include <sstream>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "google/rpc/error_details.pb.h"
#include "server/rpc/errors.h"
#include "tests/fuzz/input.h"

namespace statepool::fuzz {
namespace {

// What any call may end with.
const std::set<std::string>& OfEveryCall() {
  static const auto* const reasons =
      new std::set<std::string>{"MALFORMED_REQUEST", "DEADLINE", "CANCELLED", "DRAINING", "ADMISSION", "QUEUE_FULL"};
  return *reasons;
}

std::vector<std::string> UpperCaseWords(const std::string& text) {
  static const auto* const word = new std::regex("[A-Z][A-Z_]+[A-Z]");
  std::vector<std::string> words;
  for (std::sregex_iterator it(text.begin(), text.end(), *word), end; it != end; ++it) words.push_back(it->str());
  return words;
}

}  // namespace

const DocumentedErrors& DocumentedErrors::Get() {
  static const auto* const errors = new DocumentedErrors();
  return *errors;
}

DocumentedErrors::DocumentedErrors() {
  std::ifstream file(STATEPOOL_PROTO_FILE);
  std::stringstream text;
  text << file.rdbuf();
  const std::string contract = text.str();
  Require(!contract.empty(), "the contract can't be read", STATEPOOL_PROTO_FILE);

  std::set<std::string> misses;
  std::map<std::string, std::string> prose;  // what stands above each RPC
  bool in_table = false;
  std::string said;
  for (const absl::string_view line_view : absl::StrSplit(contract, '\n')) {
    const std::string line(line_view);
    if (absl::StartsWith(line, "//   condition ")) {
      in_table = true;
      continue;
    }
    if (in_table) {
      // A condition of 52 columns that ends in R where a retry is worth it, the codes, the reasons, what goes with
      // them.
      if (line.size() < 57) {
        in_table = false;
        continue;
      }
      if (line[5] == '-') continue;
      const std::string condition = line.substr(5, 52);
      // Some are too wide for their columns: the words are told apart by being codes or not.
      std::vector<std::string> code_words, reason_words;
      for (const std::string& word : UpperCaseWords(line.substr(57))) {
        bool is_code = false;
        for (int code = 1; code <= 16; ++code)
          is_code = is_code || absl::StatusCodeToString(static_cast<absl::StatusCode>(code)) == word;
        // CANCELLED and INTERNAL are both.
        if (is_code && std::find(code_words.begin(), code_words.end(), word) == code_words.end())
          code_words.push_back(word);
        else reason_words.push_back(word);
      }
      for (size_t i = 0; i < reason_words.size(); ++i) {
        // Two codes with two reasons: in this order.
        const std::string& code = code_words.size() == reason_words.size() ? code_words[i] : code_words[0];
        rows_[{code, reason_words[i]}].retry = absl::StrContains(condition, " R ");
        if (code == "NOT_FOUND" && reason_words[i] != "LAYOUT_UNKNOWN" && reason_words[i] != "UPLOAD_UNKNOWN" &&
            reason_words[i] != "VERSION_MISMATCH")
          misses.insert(reason_words[i]);
      }
      continue;
    }
    const absl::string_view trimmed = absl::StripLeadingAsciiWhitespace(line);
    if (absl::StartsWith(trimmed, "rpc ")) {
      const std::string name(trimmed.substr(4, trimmed.find('(') - 4));
      prose[name] = said;
      said.clear();
    } else if (absl::StartsWith(trimmed, "//")) {
      absl::StrAppend(&said, " ", trimmed.substr(2));
    } else {
      said.clear();
    }
  }
  Require(rows_.size() > 40 && prose.size() > 20, "the contract is not understood");

  for (const auto& [method, said] : prose) {
    std::set<std::string>& reasons = reasons_[method];
    for (const std::string& word : UpperCaseWords(said)) reasons.insert(word);
    if (absl::StrContains(said, "every miss")) reasons.insert(misses.begin(), misses.end());
  }
  for (int i = 0; i < 2; ++i) {  // "those of Get but for ..."
    for (const auto& [method, said] : prose) {
      for (const char* other : {"Get", "Set"}) {
        if (absl::StrContains(said, absl::StrCat("those of ", other)))
          reasons_[method].insert(reasons_[other].begin(), reasons_[other].end());
      }
      if (!absl::StrContains(said, "those of their own call")) continue;
      for (const char* other :
           {"Create", "Set", "Fork", "Rollback", "RemoveRange", "Renumber", "Snapshot", "Restore", "Delete"})
        reasons_[method].insert(reasons_[other].begin(), reasons_[other].end());
    }
  }
}

void DocumentedErrors::Check(const std::string& method, const absl::Status& status) const {
  if (!status.ok()) CheckItem(method, ToRpcStatus(status));
}

void DocumentedErrors::CheckItem(const std::string& method, const google::rpc::Status& status) const {
  google::rpc::ErrorInfo info;
  google::rpc::RetryInfo retry;
  bool has_info = false, has_retry = false;
  for (const google::protobuf::Any& detail : status.details()) {
    if (detail.UnpackTo(&info)) has_info = true;
    if (detail.UnpackTo(&retry)) has_retry = true;
  }
  const std::string code = absl::StatusCodeToString(static_cast<absl::StatusCode>(status.code()));
  const std::string error = absl::StrCat(method, ": ", code, " / ", info.reason(), ": ", status.message());
  Require(has_info && info.domain() == "statepool.v1", "an error without ErrorInfo", error);
  Require(info.reason() != "INTERNAL", "an internal error", error);
  const auto row = rows_.find({code, info.reason()});
  Require(row != rows_.end(), "an error that is not in the contract's table", error);
  Require(row->second.retry == has_retry, "an error with RetryInfo that the table does not promise, or without", error);
  Require(OfEveryCall().count(info.reason()) > 0 || reasons_.at(method).count(info.reason()) > 0,
          "an error that the contract does not name at this RPC", error);
  google::rpc::Status again;
  Require(again.ParseFromString(status.SerializeAsString()), "an error that a client can't parse", error);
  google::rpc::ErrorInfo info_again;
  Require(info_again.ParseFromString(info.SerializeAsString()), "ErrorInfo that a client can't parse", error);
}

}  // namespace statepool::fuzz
