// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A JSON value to print. Objects keep the order in which keys were set; 64-bit numbers are written in full.
#ifndef STATEPOOL_CLIENT_CLI_JSON_H_
#define STATEPOOL_CLIENT_CLI_JSON_H_

#include <google/protobuf/message.h>

#include <concepts>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace statepool::cli {

class Json {
 public:
  enum Kind { kString, kNumber, kBool, kArray, kObject };
  using Member = std::pair<std::string, Json>;

  Json(absl::string_view text) : kind_(kString), text_(text) {}
  Json(const std::string& text) : kind_(kString), text_(text) {}
  Json(const char* text) : kind_(kString), text_(text) {}
  Json(std::same_as<bool> auto value) : kind_(kBool), text_(value ? "true" : "false") {}
  template <std::integral T>
  requires(!std::same_as<T, bool>) Json(T number) : kind_(kNumber), text_(std::to_string(number)) {}
  // In the fewest digits from which it is read back as it is. Not finite: a string.
  explicit Json(double number);
  explicit Json(float number);
  static Json Array() { return Json(kArray); }
  static Json Object() { return Json(kObject); }

  Kind kind() const { return kind_; }
  // The string, or the number or bool as it is written.
  const std::string& text() const { return text_; }
  // Elements of an array have empty keys.
  const std::vector<Member>& members() const { return members_; }
  const Json* Find(absl::string_view key) const;

  Json& Add(Json element);                       // REQUIRES: an array
  Json& Set(absl::string_view key, Json value);  // REQUIRES: an object; replaces what is there
  Json& Merge(const Json& other);                // REQUIRES: objects; keys that are there stay as they are

  // On one line. Bytes that are no UTF-8 become U+FFFD.
  std::string Dump() const;

 private:
  explicit Json(Kind kind) : kind_(kind) {}
  void Append(std::string* out) const;

  Kind kind_;
  std::string text_;
  std::vector<Member> members_;
};

// A message as this tool shows it: proto names as keys, numbers as numbers, scalars also when they are zero, unset
// messages and optional fields left out; durations and times as in proto JSON, bytes as base64. What differs from the
// messages' shape, so that the same thing has the same key everywhere:
//   a NameRef in field `name` is "name" (a string) and "kind"; in another field f, "f" and "f_kind"
//   the fields of a nested `info` stand beside it, and those of the outer message win
//   LayoutInfo has the fingerprint as "layout" as well, and the schema as "schema"
//   a forked child's "sequence" is "name"; "history" is there only when it is given
Json ToJson(const google::protobuf::Message& message);

// The message of a JSON text. Errors: USAGE with this field, also where it is nested deeper than kJsonDepthMax:
// protobuf reads no more than 100 messages in one another, three of a Struct's a level, and takes long over texts that
// are deeper.
constexpr int kJsonDepthMax = 30;
absl::Status FromJson(absl::string_view field, const std::string& json, google::protobuf::Message* message);

}  // namespace statepool::cli

#endif  // STATEPOOL_CLIENT_CLI_JSON_H_
