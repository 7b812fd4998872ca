// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// MessageBuilder: fills any request from a fuzzer's decisions, field by field through reflection. A field's name says
// what makes sense in it: names and layouts come from small pools, so that requests meet each other; positions, ids and
// revisions mostly from what answers told. A new RPC or field needs no new code here to be reached, only to be reached
// often.
#ifndef STATEPOOL_TESTS_FUZZ_MESSAGE_BUILDER_H_
#define STATEPOOL_TESTS_FUZZ_MESSAGE_BUILDER_H_

#include <google/protobuf/message.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/core/layout.h"
#include "statepool/v1/statepool.pb.h"
#include "tests/fuzz/input.h"

namespace statepool::fuzz {

// What answers told so far: the newest few of each.
struct Known {
  static constexpr size_t kMost = 16;
  std::vector<uint64_t> revisions = {1}, version_ids = {1};
  std::vector<std::string> prefixes = {std::string(32, '0')}, page_tokens = {"a"}, checksums = {std::string(16, '0')};
  std::vector<std::string> fingerprints = {std::string(64, '0')};
  std::map<std::string, int64_t> positions;  // of sequences
  absl::Time now;

  template <typename T>
  static void Add(T value, std::vector<T>* to) {
    if (to->size() == kMost) to->erase(to->begin());
    to->push_back(std::move(value));
  }
};

// Not thread-safe. All that it is given must outlive it.
class MessageBuilder {
 public:
  // `layouts`: those registered from the beginning, under the aliases "m", "n", "o".
  MessageBuilder(Input* input, const Known* known, const std::vector<LayoutRef>* layouts)
      : input_(input), known_(known), layouts_(layouts) {}

  // Fills `message`, and then mostly makes lengths and checksums right: no fuzzer finds those.
  void Fill(google::protobuf::Message* message);

 private:
  using Field = google::protobuf::FieldDescriptor;
  void FillFields(google::protobuf::Message* message, int depth);
  void FillField(google::protobuf::Message* message, const Field* field, int depth);
  void Repair(google::protobuf::Message* message);
  void RepairLayout(v1::Layout* layout);
  void RepairSet(v1::SetRequest* set, std::string* data);
  std::string StringFor(const Field* field);
  uint64_t NumberFor(const Field* field);

  Input* const input_;
  const Known* const known_;
  const std::vector<LayoutRef>* const layouts_;
};

}  // namespace statepool::fuzz

#endif  // STATEPOOL_TESTS_FUZZ_MESSAGE_BUILDER_H_
