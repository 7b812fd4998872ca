// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/output.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "client/cli/terminal.h"
#include "client/cpp/errors.h"

namespace statepool::cli {
namespace {

constexpr size_t kTableRows = 1000;  // whose widths are computed together
constexpr size_t kFingerprintDigits = 12;
constexpr size_t kColumnMin = 8;  // of text that is cut

void Write(absl::string_view text) { fwrite(text.data(), 1, text.size(), stdout); }

const std::vector<std::string>& ColumnsOf(absl::string_view kind) {
  static const auto* const columns = new std::map<std::string, std::vector<std::string>, std::less<>>{
      {"sequences", {"name", "position", "revision", "durable", "tier", "state_bytes"}},
      {"snapshots", {"name", "position", "revision", "durable", "tier", "state_bytes"}},
      {"prefixes", {"name", "position", "durable", "tier", "state_bytes"}},
      {"touched", {"name", "expire_time"}},
      {"children", {"name", "revision"}},
      {"matches", {"prefix", "position", "tier", "state_bytes"}},
      {"history", {"position", "version_id", "checksum", "exactness", "tier"}},
      {"layouts", {"layout", "state_bytes", "aliases", "model_id"}},
      {"models", {"name", "family", "layers", "state_bytes", "megabytes"}},
      {"tensors", {"name", "kind", "dtype", "layers", "axes", "layer_bytes", "tensor_bytes"}},
      {"devices", {"name", "healthy", "used_bytes", "budget_bytes", "chunk_bytes"}},
  };
  static const auto* const none = new std::vector<std::string>;
  const auto it = columns->find(kind);
  return it == columns->end() ? *none : it->second;
}

std::string BytesCell(const std::string& digits) {
  uint64_t bytes = 0;
  return absl::SimpleAtoi(digits, &bytes) ? HumanBytes(bytes) : digits;
}

// Decimal ones, their points below each other.
std::string MegabytesCell(const std::string& text) {
  double megabytes = 0;
  return absl::SimpleAtod(text, &megabytes) ? absl::StrFormat("%.2f", megabytes) : text;
}

std::string HeaderOf(absl::string_view column) {
  return column == "megabytes" ? "MB" : absl::AsciiStrToUpper(absl::StripSuffix(column, "_bytes"));
}

// 0,1,2,3,7 as "0-3,7".
std::string Ranges(const std::vector<Json::Member>& numbers) {
  std::string out;
  for (size_t i = 0; i < numbers.size();) {
    int64_t first = 0, last = 0, next = 0;
    (void)absl::SimpleAtoi(numbers[i].second.text(), &first);
    last = first;
    for (++i; i < numbers.size() && absl::SimpleAtoi(numbers[i].second.text(), &next) && next == last + 1; ++i)
      last = next;
    absl::StrAppend(&out, out.empty() ? "" : ",", first);
    if (last > first) absl::StrAppend(&out, "-", last);
  }
  return out;
}

// One value in one line.
std::string Cell(absl::string_view key, const Json& value) {
  switch (value.kind()) {
    case Json::kString:
      return std::string(key == "layout" ? absl::string_view(value.text()).substr(0, kFingerprintDigits)
                                         : value.text());
    case Json::kBool: return value.text() == "true" ? "yes" : "no";
    case Json::kNumber:
      if (key == "megabytes") return MegabytesCell(value.text());
      return absl::StrContains(key, "bytes") ? BytesCell(value.text()) : value.text();
    case Json::kArray:
      if (!value.members().empty() && value.members()[0].second.kind() == Json::kNumber) return Ranges(value.members());
      return absl::StrJoin(value.members(), ", ", [](std::string* out, const Json::Member& element) {
        absl::StrAppend(out, Cell("", element.second));
      });
    case Json::kObject:
      return absl::StrJoin(value.members(), " ", [](std::string* out, const Json::Member& member) {
        absl::StrAppend(out, Cell(member.first, member.second));
      });
  }
  return "";
}

// A column of the item's table. "durable" and a layout's "model_id" are not keys of the item itself.
std::string Column(const Json& item, absl::string_view column) {
  if (column == "durable") {
    const Json* const revision = item.Find("revision");
    const Json* const durable = item.Find("durable_revision");
    if (revision == nullptr || durable == nullptr) return "";
    return durable->text() == "0" ? "no" : durable->text() == revision->text() ? "yes" : "older";
  }
  if (const Json* value = item.Find(column)) return Cell(column, *value);
  if (const Json* schema = item.Find("schema")) return Column(*schema, column);
  return "";
}

// Makes columns of text narrower, the widest first, until a line has at most `columns` columns, or none can give more.
void Shrink(size_t columns, const std::vector<std::string>& headers, const std::vector<bool>& numeric,
            std::vector<size_t>* widths) {
  size_t total = 2 * (widths->size() - 1);
  for (size_t width : *widths) total += width;
  while (total > columns) {
    size_t widest = widths->size();
    for (size_t c = 0; c < widths->size(); ++c) {
      const bool may_give = !numeric[c] && (*widths)[c] > std::max(kColumnMin, headers[c].size());
      if (may_give && (widest == widths->size() || (*widths)[c] > (*widths)[widest])) widest = c;
    }
    if (widest == widths->size()) return;
    --(*widths)[widest];
    --total;
  }
}

bool IsTable(const Json& value) {
  return value.kind() == Json::kArray && !value.members().empty() && value.members()[0].second.kind() == Json::kObject;
}

}  // namespace

int ExitCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk: return 0;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange: return 2;
    case absl::StatusCode::kNotFound: return 3;
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kFailedPrecondition: return 4;
    case absl::StatusCode::kResourceExhausted: return 5;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded: return 6;
    case absl::StatusCode::kDataLoss: return 7;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated: return 8;
    default: return 1;
  }
}

Json ErrorToJson(const absl::Status& status) {
  const client::ErrorDetail detail = client::GetErrorDetail(status);
  int64_t retry_after_ms = 0;
  if (detail.retry_after) retry_after_ms = std::max<int64_t>(1, absl::ToInt64Milliseconds(*detail.retry_after));
  Json error = Json::Object();
  error.Set("code", absl::StatusCodeToString(detail.code)).Set("reason", detail.reason).Set("field", detail.field);
  error.Set("message", detail.message).Set("retry_after_ms", retry_after_ms);
  if (!detail.metadata.empty()) {
    Json metadata = Json::Object();
    for (const auto& [key, value] : detail.metadata) metadata.Set(key, value);
    error.Set("metadata", std::move(metadata));
  }
  return error;
}

int Fail(const absl::Status& status, absl::string_view subject) {
  Json error = ErrorToJson(status);
  if (!subject.empty()) error.Set("message", absl::StrCat(subject, ": ", status.message()));
  fflush(stdout);
  absl::FPrintF(stderr, "%s\n", error.Dump());
  return ExitCode(status.code());
}

std::string TableAsText(absl::string_view kind, const std::vector<Json>& items, size_t max_columns) {
  std::vector<std::string> columns = ColumnsOf(kind);
  if (columns.empty() && !items.empty()) {
    for (const Json::Member& member : items[0].members()) {
      if (member.second.kind() < Json::kArray) columns.push_back(member.first);
    }
  }
  // A layout's tensors have their bytes only where they were asked for.
  columns.erase(std::remove_if(columns.begin(), columns.end(),
                               [&](const std::string& column) {
                                 return kind == "tensors" && absl::EndsWith(column, "_bytes") &&
                                        (items.empty() || items[0].Find(column) == nullptr);
                               }),
                columns.end());
  std::vector<std::vector<std::string>> rows(1);
  std::vector<bool> numeric(columns.size(), false);
  for (const std::string& column : columns) rows[0].push_back(HeaderOf(column));
  for (const Json& item : items) {
    rows.emplace_back();
    for (size_t c = 0; c < columns.size(); ++c) {
      rows.back().push_back(Column(item, columns[c]));
      const Json* const value = item.Find(columns[c]);
      numeric[c] = numeric[c] || (value != nullptr && value->kind() == Json::kNumber);
    }
  }
  std::vector<size_t> widths(columns.size(), 0);
  for (const std::vector<std::string>& row : rows) {
    for (size_t c = 0; c < columns.size(); ++c) widths[c] = std::max(widths[c], Columns(row[c]));
  }
  if (!columns.empty()) Shrink(max_columns, rows[0], numeric, &widths);
  std::string out;
  for (const std::vector<std::string>& row : rows) {
    std::string line;
    for (size_t c = 0; c < columns.size(); ++c) {
      absl::StrAppend(&line, c == 0 ? "" : "  ");
      const std::string cell = CutMiddle(row[c], widths[c]);
      const std::string padding(widths[c] - Columns(cell), ' ');
      absl::StrAppend(&line, numeric[c] ? padding : "", cell, numeric[c] ? "" : padding);
    }
    absl::StrAppend(&out, absl::StripTrailingAsciiWhitespace(line), "\n");
  }
  return out;
}

std::string ObjectAsText(const Json& object, size_t max_columns) {
  size_t width = 0;
  for (const Json::Member& member : object.members()) {
    if (member.second.kind() < Json::kArray) width = std::max(width, member.first.size());
  }
  std::string lines, below;
  for (const auto& [key, value] : object.members()) {
    if (IsTable(value)) {
      std::vector<Json> items;
      for (const Json::Member& element : value.members()) items.push_back(element.second);
      absl::StrAppend(&below, "\n", TableAsText(key, items, max_columns));
    } else if (value.kind() == Json::kObject) {
      absl::StrAppend(&below, "\n", ObjectAsText(value, max_columns));
    } else if (const std::string cell = Cell(key, value); !cell.empty()) {
      absl::StrAppend(&lines, key, std::string(width > key.size() ? width - key.size() : 0, ' '), "  ", cell, "\n");
    }
  }
  if (lines.empty() && !below.empty()) below.erase(0, 1);
  return absl::StrCat(lines, below);
}

size_t StdoutColumns() {
  const size_t columns = TerminalColumns(STDOUT_FILENO);
  return columns == 0 ? SIZE_MAX : columns;
}

void Print(bool json, const Json& object) {
  Write(json ? object.Dump() + "\n" : ObjectAsText(object, StdoutColumns()));
}

void ListPrinter::Add(Json item) {
  if (json_) {
    Write(absl::StrCat(count_ == 0 ? absl::StrCat("{\"", kind_, "\":[") : ",", item.Dump()));
  } else {
    rows_.push_back(std::move(item));
    if (rows_.size() == kTableRows) {
      Write(TableAsText(kind_, rows_, StdoutColumns()));
      rows_.clear();
    }
  }
  ++count_;
}

void ListPrinter::Finish() {
  if (json_) Write(count_ == 0 ? absl::StrCat("{\"", kind_, "\":[]}\n") : "]}\n");
  else if (count_ == 0 || !rows_.empty()) Write(TableAsText(kind_, rows_, StdoutColumns()));
}

}  // namespace statepool::cli
