// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/output.h"

namespace statepool::cli {
namespace {

struct KindWords {
  absl::string_view group;   // of commands
  absl::string_view plural;  // the key of a list
  absl::string_view noun;
  absl::string_view sample;
};

constexpr KindWords WordsOf(v1::NameKind kind) {
  switch (kind) {
    case v1::SNAPSHOT: return {"snapshot", "snapshots", "snapshot", "chat/42@system"};
    case v1::PREFIX: return {"prefix", "prefixes", "prefix", "9f2c4be01d7a88e3b1c05f6a7d3e2190"};
    default: return {"seq", "sequences", "sequence", "chat/42"};
  }
}

v1::NameRef RefOf(v1::NameKind kind, absl::string_view name) {
  if (kind == v1::SNAPSHOT) return client::SnapshotRef(name);
  if (kind == v1::PREFIX) return client::PrefixRef(name);
  return client::SequenceRef(name);
}

template <v1::NameKind kind>
int RunDescribe(Context& context) {
  return ForEachOperand(context, WordsOf(kind).plural, [&](const std::string& name) -> absl::StatusOr<Json> {
    const absl::StatusOr<v1::NameInfo> info = context.pool.Describe(RefOf(kind, name));
    if (!info.ok()) return info.status();
    return ToJson(*info);
  });
}

template <v1::NameKind kind>
int RunDelete(Context& context) {
  v1::DeleteRequest request;
  if (context.args.Has("if-revision")) request.set_if_revision(context.args.Unsigned("if-revision"));
  request.set_allow_missing(context.args.Has("allow-missing"));
  return ForEachOperand(context, "deletions", [&](const std::string& name) -> absl::StatusOr<Json> {
    *request.mutable_name() = RefOf(kind, name);
    const absl::StatusOr<v1::DeleteResponse> answer = context.pool.Delete(request);
    if (!answer.ok()) return answer.status();
    return std::move(Json::Object().Set("name", name).Merge(ToJson(*answer)));
  });
}

template <v1::NameKind kind>
int RunList(Context& context) {
  v1::ListRequest request;
  request.set_kind(kind);
  request.set_name_prefix(context.args.Text("prefix"));
  uint64_t left = context.args.Unsigned("limit", UINT64_MAX);
  if (left == 0) return Fail(UsageError("--limit", "--limit is at least 1"));
  ListPrinter printer(context.json, WordsOf(kind).plural);
  const absl::Status status = context.pool.ListAll(request, [&](const v1::NameInfo& info) {
    printer.Add(ToJson(info));
    return --left > 0;
  });
  if (!status.ok()) return Fail(status);
  printer.Finish();
  return 0;
}

// Text that outlives every command: help is made of views.
absl::string_view Kept(std::string text) {
  static auto* const texts = new std::deque<std::string>;
  return texts->emplace_back(std::move(text));
}

template <v1::NameKind kind>
std::vector<Command> MakeNameCommands() {
  const KindWords words = WordsOf(kind);
  const auto example = [&](absl::string_view verb) {
    return Kept(absl::StrCat("statepool ", words.group, " ", verb, " ", words.sample));
  };
  return {
      {Kept(absl::StrCat(words.group, " describe")),
       "NAME...",
       1,
       -1,
       Kept(absl::StrCat("Show what a ", words.noun, " points at, without using it.")),
       "",
       example("describe"),
       {},
       RunDescribe<kind>},
      {Kept(absl::StrCat(words.group, " list")),
       "",
       0,
       0,
       Kept(absl::StrCat("List ", words.plural, " in byte order.")),
       "",
       Kept(absl::StrCat("statepool ", words.group, " list --prefix=", words.sample.substr(0, 5))),
       {{"prefix", Flag::kText, "P", "only names that begin with P"},
        {"limit", Flag::kUnsigned, "N", "at most N names; default: all"}},
       RunList<kind>},
      {Kept(absl::StrCat(words.group, " delete")),
       "NAME...",
       1,
       -1,
       Kept(absl::StrCat("Forget a ", words.noun, "; its bytes go when no other name needs them.")),
       "",
       example("delete"),
       {kIfRevision, {"allow-missing", Flag::kSwitch, "", "an absent name is no error"}},
       RunDelete<kind>},
  };
}

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

std::vector<Flag> OptionFlags(bool history) {
  std::vector<Flag> flags = {
      {"durability", Flag::kChoice, "sync|write-behind|volatile",
       "what a crash may take; default: kept or inherited, else the daemon's"},
      {"ttl", Flag::kDuration, "TIME", "expire after this long without use, as in 30s or 12h"},
      {"expire-at", Flag::kTime, "TIME", "expire then, as in 2030-01-31T12:00:00Z"},
      {"never-expire", Flag::kSwitch, "", "drop an earlier --ttl or --expire-at"},
  };
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

std::vector<Command> NameCommands(v1::NameKind kind) {
  if (kind == v1::SNAPSHOT) return MakeNameCommands<v1::SNAPSHOT>();
  if (kind == v1::PREFIX) return MakeNameCommands<v1::PREFIX>();
  return MakeNameCommands<v1::SEQUENCE>();
}

}  // namespace statepool::cli
