// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands.h"
#include "client/cli/output.h"

namespace statepool::cli {
namespace {

constexpr uint32_t kLayersMax = 65536;  // in one range: more than any model has

}  // namespace

const Flag kAt = {"at", Flag::kInteger, "POSITION",
                  "a version of the ring at exactly this position; default: the head"};
const Flag kIfRevision = {"if-revision", Flag::kUnsigned, "R",
                          "only if the name has revision R; 0: only if it does not exist"};
const Flag kRequestId = {"request-id", Flag::kText, "ID",
                         "makes repeating the command safe: the same ID gives the first answer again"};

int AnswerJson(const Context& context, const absl::StatusOr<Json>& answer) {
  if (!answer.ok()) return Fail(answer.status());
  Print(context.json, *answer);
  return 0;
}

int ForEachOperand(const Context& context, absl::string_view kind,
                   absl::FunctionRef<absl::StatusOr<Json>(const std::string& operand)> one) {
  if (context.args.operands.size() == 1) return AnswerJson(context, one(context.args.operands[0]));
  std::vector<Json> done;
  int code = 0;
  for (const std::string& operand : context.args.operands) {
    absl::StatusOr<Json> answer = one(operand);
    if (answer.ok()) {
      done.push_back(*std::move(answer));
    } else {
      const int failure = Fail(answer.status(), operand);
      if (code == 0) code = failure;
    }
  }
  ListPrinter printer(context.json, kind);
  for (Json& answer : done) printer.Add(std::move(answer));
  printer.Finish();
  return code;
}

v1::NameRef RefOf(v1::NameKind kind, absl::string_view name) {
  if (kind == v1::SNAPSHOT) return client::SnapshotRef(name);
  if (kind == v1::PREFIX) return client::PrefixRef(name);
  return client::SequenceRef(name);
}

std::vector<Flag> ExpirationFlags() {
  return {
      {"ttl", Flag::kDuration, "TIME", "expire after this long without use, as in 30s or 12h"},
      {"expire-at", Flag::kTime, "TIME", "expire then, as in 2030-01-31T12:00:00Z"},
      {"never-expire", Flag::kSwitch, "", "drop an earlier --ttl or --expire-at"},
  };
}

std::vector<Flag> OptionFlags(bool history) {
  std::vector<Flag> flags = Join({{{"durability", Flag::kChoice, "sync|write-behind|volatile",
                                    "what a crash may take; default: kept or inherited, else the daemon's"}},
                                  ExpirationFlags()});
  if (history)
    flags.push_back({"max-history", Flag::kUnsigned, "N", "versions to keep, the head included; 1: no rollback"});
  return flags;
}

absl::StatusOr<v1::NameOptions> OptionsOf(const Arguments& args) {
  v1::NameOptions options;
  const std::string durability = args.Text("durability");
  if (durability == "sync") options.set_durability(v1::SYNC);
  if (durability == "write-behind") options.set_durability(v1::WRITE_BEHIND);
  if (durability == "volatile") options.set_durability(v1::VOLATILE);
  if (args.Has("ttl") + args.Has("expire-at") + args.Has("never-expire") > 1) {
    return UsageError("--ttl", "give only one of --ttl, --expire-at and --never-expire");
  }
  if (args.Has("ttl")) {
    timespec ttl = absl::ToTimespec(args.Duration("ttl"));
    options.mutable_ttl()->set_seconds(ttl.tv_sec);
    options.mutable_ttl()->set_nanos(static_cast<int32_t>(ttl.tv_nsec));
  }
  if (args.Has("expire-at")) {
    timespec time = absl::ToTimespec(args.Time("expire-at"));
    options.mutable_expire_time()->set_seconds(time.tv_sec);
    options.mutable_expire_time()->set_nanos(static_cast<int32_t>(time.tv_nsec));
  }
  if (args.Has("never-expire")) options.set_never_expire(true);
  if (args.Has("max-history")) {
    const uint64_t versions = args.Unsigned("max-history");
    if (versions < 1 || versions > UINT32_MAX) return UsageError("--max-history", "--max-history is at least 1");
    options.set_max_history(static_cast<uint32_t>(versions));
  }
  return options;
}

std::vector<Flag> SelectFlags() {
  return {{"tensors", Flag::kText, "A,B", "only these tensors, as 'layout show' names them"},
          {"layers", Flag::kText, "0-3,7", "only these layers of the model"}};
}

absl::StatusOr<std::vector<uint32_t>> ParseRanges(absl::string_view flag, absl::string_view text) {
  std::vector<uint32_t> numbers;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(part, '-');
    uint32_t first = 0, last = 0;
    if (ends.size() > 2 || !absl::SimpleAtoi(ends[0], &first) || !absl::SimpleAtoi(ends.back(), &last) ||
        last < first || (!numbers.empty() && first <= numbers.back())) {
      return UsageError(flag, absl::StrCat(flag, " is ascending numbers 0..", UINT32_MAX,
                                           " and ranges of them, as in 0-3,7, not '", text, "'"));
    }
    if (last - first >= kLayersMax) {
      return UsageError(flag, absl::StrCat(flag, ": '", part, "' is ", uint64_t{last} - first + 1,
                                           " layers, more than ", kLayersMax));
    }
    for (uint64_t n = first; n <= last; ++n) numbers.push_back(static_cast<uint32_t>(n));
  }
  return numbers;
}

absl::StatusOr<std::optional<v1::Select>> SelectOf(const Arguments& args) {
  v1::Select select;
  if (!args.Has("tensors") && !args.Has("layers")) return std::nullopt;
  if (args.Has("tensors")) {
    for (absl::string_view tensor : absl::StrSplit(args.Text("tensors"), ',')) {
      if (tensor.empty()) return UsageError("--tensors", "--tensors is names with commas between them, as in conv,ssm");
      select.add_tensors(std::string(tensor));
    }
  }
  if (args.Has("layers")) {
    const absl::StatusOr<std::vector<uint32_t>> layers = ParseRanges("--layers", args.Text("layers"));
    if (!layers.ok()) return layers.status();
    select.mutable_layers()->Add(layers->begin(), layers->end());
  }
  return select;
}

std::vector<Flag> SourceFlags() {
  return {{"from-snapshot", Flag::kSwitch, "", "the source is a snapshot, not a sequence"},
          {"from-prefix", Flag::kSwitch, "", "the source is a prefix: 32 hex digits, from 'prefix match'"}};
}

absl::StatusOr<v1::NameRef> SourceOf(const Arguments& args, absl::string_view name) {
  if (args.Has("from-snapshot") && args.Has("from-prefix")) {
    return UsageError("--from-prefix", "give only one of --from-snapshot and --from-prefix");
  }
  return RefOf(args.Has("from-snapshot") ? v1::SNAPSHOT : args.Has("from-prefix") ? v1::PREFIX : v1::SEQUENCE, name);
}

std::vector<Flag> Join(std::initializer_list<std::vector<Flag>> parts) {
  std::vector<Flag> all;
  for (const std::vector<Flag>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace statepool::cli
