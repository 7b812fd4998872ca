// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What there is for names of each kind: describe, list, touch, ttl, delete.
#include <algorithm>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/output.h"

namespace statepool::cli {
namespace {

constexpr int kTouchedTogether = 100;  // far below Capabilities.max_batch

struct KindWords {
  absl::string_view group;   // of commands
  absl::string_view plural;  // the key of a list
  absl::string_view noun;
  absl::string_view sample;
  absl::string_view sample_prefix;
};

constexpr KindWords WordsOf(v1::NameKind kind) {
  switch (kind) {
    case v1::SNAPSHOT: return {"snapshot", "snapshots", "snapshot", "chat/42@system", "chat/"};
    case v1::PREFIX: return {"prefix", "prefixes", "prefix", "9f2c4be01d7a88e3b1c05f6a7d3e2190", "9f"};
    default: return {"seq", "sequences", "sequence", "chat/42", "chat/"};
  }
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
int RunTouch(Context& context) {
  const std::vector<std::string>& names = context.args.operands;
  std::vector<absl::StatusOr<Json>> results;
  for (size_t begin = 0; begin < names.size(); begin += kTouchedTogether) {
    const size_t end = std::min(names.size(), begin + kTouchedTogether);
    v1::TouchRequest request;
    for (size_t i = begin; i < end; ++i) *request.add_names() = RefOf(kind, names[i]);
    const absl::StatusOr<v1::TouchResponse> answer = context.pool.Touch(request);
    for (size_t i = begin; i < end; ++i) {
      absl::Status status = answer.status();
      if (status.ok()) status = client::ToStatus(answer->names(static_cast<int>(i - begin)));
      if (!status.ok()) {
        results.emplace_back(std::move(status));
        continue;
      }
      v1::TouchedName touched = answer->names(static_cast<int>(i - begin));
      results.emplace_back(
          std::move(Json::Object().Set("name", names[i]).Set("kind", WordsOf(kind).noun).Merge(ToJson(touched))));
    }
  }
  size_t next = 0;
  return ForEachOperand(context, "touched", [&](const std::string&) { return results[next++]; });
}

template <v1::NameKind kind>
int RunTtl(Context& context) {
  const absl::StatusOr<v1::NameOptions> options = OptionsOf(context.args);
  if (!options.ok()) return Fail(options.status());
  v1::SetTtlRequest request;
  switch (options->expiration_case()) {
    case v1::NameOptions::kTtl: *request.mutable_ttl() = options->ttl(); break;
    case v1::NameOptions::kExpireTime: *request.mutable_expire_time() = options->expire_time(); break;
    case v1::NameOptions::kNeverExpire: request.set_never_expire(true); break;
    default: return Fail(UsageError("--ttl", "give one of --ttl, --expire-at and --never-expire"));
  }
  if (context.args.Has("if-revision")) request.set_if_revision(context.args.Unsigned("if-revision"));
  return ForEachOperand(context, WordsOf(kind).plural, [&](const std::string& name) -> absl::StatusOr<Json> {
    *request.mutable_name() = RefOf(kind, name);
    const absl::StatusOr<v1::NameInfo> info = context.pool.SetTtl(request);
    if (!info.ok()) return info.status();
    return ToJson(*info);
  });
}

int DeleteByPrefix(Context& context, v1::NameKind kind) {
  const Arguments& args = context.args;
  if (!args.operands.empty() && !args.Has("keep")) {
    return Fail(UsageError(args.operands[0], "give NAMEs, or --prefix or --all, but not both without --keep"));
  }
  if (args.Has("prefix") && args.Has("all")) return Fail(UsageError("--all", "give --prefix or --all, not both"));
  if (args.operands.empty() && args.Has("keep"))
    return Fail(UsageError("NAME...", "give the NAMEs that --keep leaves"));
  for (const char* flag : {"if-revision", "allow-missing"}) {
    if (args.Has(flag))
      return Fail(UsageError(absl::StrCat("--", flag), absl::StrCat("--", flag, " goes with a NAME")));
  }
  v1::DeleteManyRequest request;
  request.set_kind(kind);
  request.set_name_prefix(args.Text("prefix"));
  request.set_all(args.Has("all"));
  request.set_preview(args.Has("preview"));
  if (args.Has("if-count")) request.set_if_count(args.Unsigned("if-count"));
  request.mutable_keep()->Add(args.operands.begin(), args.operands.end());
  return Answer(context, context.pool.DeleteMany(request));
}

template <v1::NameKind kind>
int RunDelete(Context& context) {
  const Arguments& args = context.args;
  if (args.Has("prefix") || args.Has("all")) return DeleteByPrefix(context, kind);
  if (args.operands.empty()) return Fail(UsageError("NAME...", "give NAMEs, or --prefix=P"));
  for (const char* flag : {"preview", "if-count", "keep"}) {
    if (args.Has(flag))
      return Fail(UsageError(absl::StrCat("--", flag), absl::StrCat("--", flag, " goes with --prefix")));
  }
  v1::DeleteRequest request;
  if (args.Has("if-revision")) request.set_if_revision(args.Unsigned("if-revision"));
  request.set_allow_missing(args.Has("allow-missing"));
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
  const auto name = [&](absl::string_view verb) { return Kept(absl::StrCat(words.group, " ", verb)); };
  const auto example = [&](absl::string_view verb, absl::string_view flags = "") {
    return absl::StrCat("statepool ", words.group, " ", verb, " ", words.sample, flags);
  };
  const std::string by_prefix = absl::StrCat("statepool ", words.group, " delete --prefix=", words.sample_prefix, " ");
  return {
      {name("describe"),
       "NAME...",
       1,
       -1,
       Kept(absl::StrCat("Show what a ", words.noun, " points at, without using it.")),
       "That is no use of the name: its idle time goes on. durable_revision is what a\n"
       "crash can't take away; history has the versions that are kept.",
       Kept(example("describe")),
       {},
       RunDescribe<kind>},
      {name("list"),
       "",
       0,
       0,
       Kept(absl::StrCat("List ", words.plural, " in byte order.")),
       "Page by page, so any number. Names made meanwhile may be missed. The column\n"
       "durable says whether the newest version is on disk: yes, older (an older one\n"
       "is) or no.",
       Kept(absl::StrCat("statepool ", words.group, " list --prefix=", words.sample_prefix, " --limit=20")),
       {{"prefix", Flag::kText, "P", "only names that begin with P"},
        {"limit", Flag::kUnsigned, "N", "at most N names; default: all"}},
       RunList<kind>},
      {name("touch"),
       "NAME...",
       1,
       -1,
       Kept(absl::StrCat("Count as a use of ", words.plural, ": their idle time starts anew.")),
       "Never waits. Shows when each expires now; one without expire_time never does.",
       Kept(example("touch")),
       {},
       RunTouch<kind>},
      {name("ttl"), "NAME...", 1, -1, Kept(absl::StrCat("Change when ", words.plural, " expire.")),
       "Give one of --ttl, --expire-at and --never-expire. The state and its revision\n"
       "stay what they are.",
       Kept(example("ttl", " --ttl=12h")), Join({ExpirationFlags(), {kIfRevision}}), RunTtl<kind>},
      {name("delete"),
       "[NAME...]",
       0,
       -1,
       Kept(absl::StrCat("Forget ", words.plural, "; their bytes go when no other name needs them.")),
       "Names that are on disk are forgotten there too before this returns. With\n"
       "--prefix all names that begin so: look first with --preview, and then give\n"
       "--if-count, so that nothing else goes. That is not one step: after an error\n"
       "some are gone and some are not, and the same command goes on.",
       Kept(absl::StrCat(example("delete"), "\n", by_prefix, "--preview\n", by_prefix, "--if-count=64\n", by_prefix,
                         "--keep ", words.sample)),
       {kIfRevision,
        {"allow-missing", Flag::kSwitch, "", "an absent name is no error"},
        {"prefix", Flag::kText, "P", "all names that begin with P"},
        {"all", Flag::kSwitch, "", Kept(absl::StrCat("every ", words.noun, " that the daemon has"))},
        {"preview", Flag::kSwitch, "", "with --prefix or --all: count, delete nothing"},
        {"if-count", Flag::kUnsigned, "N", "with --prefix or --all: only if exactly N names match"},
        {"keep", Flag::kSwitch, "", "with --prefix or --all: the NAMEs stay, and do not count"}},
       RunDelete<kind>},
  };
}

}  // namespace

std::vector<Command> NameCommands(v1::NameKind kind) {
  if (kind == v1::SNAPSHOT) return MakeNameCommands<v1::SNAPSHOT>();
  if (kind == v1::PREFIX) return MakeNameCommands<v1::PREFIX>();
  return MakeNameCommands<v1::SEQUENCE>();
}

}  // namespace statepool::cli
