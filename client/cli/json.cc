// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/json.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <cassert>
#include <charconv>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/args.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Bytes of the well-formed UTF-8 character that `text` begins with; 0: none.
size_t Utf8Bytes(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  const size_t n = lead < 0x80                   ? 1
                   : lead >= 0xc2 && lead < 0xe0 ? 2
                   : (lead & 0xf0) == 0xe0       ? 3
                   : lead >= 0xf0 && lead < 0xf5 ? 4
                                                 : 0;
  if (n > text.size()) return 0;
  for (size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, above U+10FFFF.
  if ((lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xed && byte(1) >= 0xa0) || (lead == 0xf0 && byte(1) < 0x90) ||
      (lead == 0xf4 && byte(1) >= 0x90)) {
    return 0;
  }
  return n;
}

void AppendQuoted(absl::string_view text, std::string* out) {
  out->push_back('"');
  while (!text.empty()) {
    const char c = text[0];
    const size_t n = Utf8Bytes(text);
    if (c == '"' || c == '\\') absl::StrAppend(out, "\\", text.substr(0, 1));
    else if (c == '\n') absl::StrAppend(out, "\\n");
    else if (c == '\t') absl::StrAppend(out, "\\t");
    else if (n == 1 && (absl::ascii_iscntrl(c) != 0))
      absl::StrAppendFormat(out, "\\u%04x", static_cast<unsigned char>(c));
    else absl::StrAppend(out, n == 0 ? "\xef\xbf\xbd" : text.substr(0, n));
    text.remove_prefix(n == 0 ? 1 : n);
  }
  out->push_back('"');
}

Json RefToJson(const v1::NameRef& ref, std::string* kind) {
  switch (ref.name_case()) {
    case v1::NameRef::kSequence: *kind = "sequence"; return ref.sequence();
    case v1::NameRef::kSnapshot: *kind = "snapshot"; return ref.snapshot();
    case v1::NameRef::kPrefix: *kind = "prefix"; return ref.prefix();
    default: return "";
  }
}

Json MessageToJson(const Message& message) {
  using google::protobuf::util::TimeUtil;
  if (const auto* duration = dynamic_cast<const google::protobuf::Duration*>(&message))
    return TimeUtil::ToString(*duration);
  if (const auto* time = dynamic_cast<const google::protobuf::Timestamp*>(&message)) return TimeUtil::ToString(*time);
  return ToJson(message);
}

// Element `i` of a repeated field, or with -1 the value of a singular one.
Json Value(const Message& message, const FieldDescriptor* field, int i) {
  const Reflection& r = *message.GetReflection();
  std::string scratch;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return i < 0 ? r.GetInt32(message, field) : r.GetRepeatedInt32(message, field, i);
    case FieldDescriptor::CPPTYPE_INT64:
      return i < 0 ? r.GetInt64(message, field) : r.GetRepeatedInt64(message, field, i);
    case FieldDescriptor::CPPTYPE_UINT32:
      return i < 0 ? r.GetUInt32(message, field) : r.GetRepeatedUInt32(message, field, i);
    case FieldDescriptor::CPPTYPE_UINT64:
      return i < 0 ? r.GetUInt64(message, field) : r.GetRepeatedUInt64(message, field, i);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return Json(i < 0 ? r.GetFloat(message, field) : r.GetRepeatedFloat(message, field, i));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return Json(i < 0 ? r.GetDouble(message, field) : r.GetRepeatedDouble(message, field, i));
    case FieldDescriptor::CPPTYPE_BOOL: return i < 0 ? r.GetBool(message, field) : r.GetRepeatedBool(message, field, i);
    case FieldDescriptor::CPPTYPE_ENUM:
      return (i < 0 ? r.GetEnum(message, field) : r.GetRepeatedEnum(message, field, i))->name();
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string& text = i < 0 ? r.GetStringReference(message, field, &scratch)
                                      : r.GetRepeatedStringReference(message, field, i, &scratch);
      return field->type() == FieldDescriptor::TYPE_BYTES ? Json(absl::Base64Escape(text)) : Json(text);
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return MessageToJson(i < 0 ? r.GetMessage(message, field) : r.GetRepeatedMessage(message, field, i));
  }
  return "";
}

template <typename T>
std::string Shortest(T number) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof text, number).ptr);
}

// How deep its brackets are at most, be they balanced or not.
int DepthOf(absl::string_view json) {
  int depth = 0, most = 0;
  char quote = 0;  // that the string began with: protobuf takes both
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (quote != 0 && c == '\\') ++i;
    else if (quote != 0) quote = c == quote ? char{0} : quote;
    else if (c == '"' || c == '\'') quote = c;
    else if (c == '{' || c == '[') most = std::max(most, ++depth);
    else if (c == '}' || c == ']') --depth;
  }
  return most;
}

}  // namespace

Json::Json(double number) : kind_(std::isfinite(number) ? kNumber : kString), text_(Shortest(number)) {}
Json::Json(float number) : kind_(std::isfinite(number) ? kNumber : kString), text_(Shortest(number)) {}

const Json* Json::Find(absl::string_view key) const {
  for (const Member& member : members_) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

Json& Json::Add(Json element) {
  assert(kind_ == kArray);
  members_.emplace_back("", std::move(element));
  return *this;
}

Json& Json::Set(absl::string_view key, Json value) {
  assert(kind_ == kObject);
  for (Member& member : members_) {
    if (member.first == key) {
      member.second = std::move(value);
      return *this;
    }
  }
  members_.emplace_back(std::string(key), std::move(value));
  return *this;
}

Json& Json::Merge(const Json& other) {
  for (const Member& member : other.members_) {
    if (Find(member.first) == nullptr) members_.push_back(member);
  }
  return *this;
}

void Json::Append(std::string* out) const {
  if (kind_ == kString) return AppendQuoted(text_, out);
  if (kind_ == kNumber || kind_ == kBool) return absl::StrAppend(out, text_);
  out->push_back(kind_ == kArray ? '[' : '{');
  for (const Member& member : members_) {
    if (&member != &members_.front()) out->push_back(',');
    if (kind_ == kObject) {
      AppendQuoted(member.first, out);
      out->push_back(':');
    }
    member.second.Append(out);
  }
  out->push_back(kind_ == kArray ? ']' : '}');
}

std::string Json::Dump() const {
  std::string out;
  Append(&out);
  return out;
}

Json ToJson(const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  const auto* layout_info = dynamic_cast<const v1::LayoutInfo*>(&message);
  const bool is_child = dynamic_cast<const v1::ForkedChild*>(&message) != nullptr;
  Json object = Json::Object();
  if (layout_info != nullptr) object.Set("layout", layout_info->fingerprint());
  Json nested = Json::Object();  // of `info`
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* const field = message.GetDescriptor()->field(i);
    std::string key = field->name();
    if (layout_info != nullptr && key == "layout") key = "schema";
    if (is_child && key == "sequence") key = "name";
    if (field->is_repeated()) {
      const int n = reflection.FieldSize(message, field);
      if (n == 0 && key == "history") continue;
      Json array = Json::Array();
      for (int at = 0; at < n; ++at) array.Add(Value(message, field, at));
      object.Set(key, std::move(array));
      continue;
    }
    if (field->has_presence() && !reflection.HasField(message, field)) continue;
    if (field->message_type() == v1::NameRef::descriptor()) {
      std::string kind;
      object.Set(key, RefToJson(static_cast<const v1::NameRef&>(reflection.GetMessage(message, field)), &kind));
      object.Set(key == "name" ? "kind" : absl::StrCat(key, "_kind"), kind);
    } else if (field->message_type() == v1::NameInfo::descriptor() && key == "info") {
      nested = ToJson(reflection.GetMessage(message, field));
    } else {
      object.Set(key, Value(message, field, -1));
    }
  }
  return object.Merge(nested);
}

absl::Status FromJson(absl::string_view field, const std::string& json, Message* message) {
  if (DepthOf(json) > kJsonDepthMax)
    return UsageError(field, absl::StrCat("the JSON is nested deeper than ", kJsonDepthMax, " levels"));
  const auto status = google::protobuf::util::JsonStringToMessage(json, message);
  if (status.ok()) return absl::OkStatus();
  return UsageError(field, absl::StrCat("no ", std::string(message->GetDescriptor()->name()),
                                        " in JSON: ", std::string(status.message())));
}

}  // namespace statepool::cli
