// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// prefix: publish, match; what all names have is in names.cc.
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/files.h"
#include "client/cli/output.h"

namespace statepool::cli {
namespace {

int RunPublish(Context& context) {
  const Arguments& args = context.args;
  const absl::StatusOr<v1::NameRef> source = SourceOf(args, args.operands[0]);
  if (!source.ok()) return Fail(source.status());
  const absl::StatusOr<v1::NameOptions> options = OptionsOf(args);
  if (!options.ok()) return Fail(options.status());
  const absl::StatusOr<std::vector<uint32_t>> tokens = ReadTokens("--tokens", args.Text("tokens"));
  if (!tokens.ok()) return Fail(tokens.status());
  v1::PublishPrefixRequest request;
  request.set_layout(args.Text("layout"));
  request.mutable_tokens()->Add(tokens->begin(), tokens->end());
  request.set_extra_key(args.Text("extra-key"));
  request.set_salt(args.Text("salt"));
  *request.mutable_source() = *source;
  if (args.Has("at")) request.set_position(args.Integer("at"));
  *request.mutable_options() = *options;
  return Answer(context, context.pool.PublishPrefix(request));
}

// A hit shows the longest match's fields beside the list of all. A miss is an answer and, for scripts, an error as
// well.
int RunMatch(Context& context) {
  const Arguments& args = context.args;
  const absl::StatusOr<std::vector<uint32_t>> tokens = ReadTokens("--tokens", args.Text("tokens"));
  if (!tokens.ok()) return Fail(tokens.status());
  v1::MatchPrefixRequest request;
  request.set_layout(args.Text("layout"));
  request.mutable_tokens()->Add(tokens->begin(), tokens->end());
  request.set_extra_key(args.Text("extra-key"));
  request.set_salt(args.Text("salt"));
  if (args.Has("max-position")) request.set_max_position(args.Integer("max-position"));
  if (args.Unsigned("max-results") > UINT32_MAX) return Fail(UsageError("--max-results", "--max-results is too large"));
  request.set_max_results(static_cast<uint32_t>(args.Unsigned("max-results")));

  const absl::StatusOr<v1::MatchPrefixResponse> answer = context.pool.MatchPrefix(request);
  if (!answer.ok()) return Fail(answer.status());
  if (answer->matches_size() > 0) {
    Json hit = ToJson(answer->matches(0));
    if (context.json || answer->matches_size() > 1) hit.Merge(ToJson(*answer));
    Print(context.json, hit);
    return 0;
  }
  if (context.json) Print(true, ToJson(*answer));
  const int64_t nearest = answer->nearest_published_position();
  const int64_t limit = args.Integer("max-position", static_cast<int64_t>(tokens->size()) - 1);
  std::string message = absl::StrCat("no prefix of these tokens is published up to position ", limit);
  if (nearest > 0) absl::StrAppend(&message, "; the nearest one is at position ", nearest);
  return Fail(client::MakeError(absl::StatusCode::kNotFound, answer->miss_reason(), "", message,
                                {{"nearest_published_position", absl::StrCat(nearest)}}));
}

}  // namespace

std::vector<Command> PrefixCommands() {
  const std::vector<Flag> key = {
      {"layout", Flag::kText, "L", "alias or fingerprint", true},
      {"tokens", Flag::kText, "FILE", "the tokens, one integer a line; - for stdin", true},
      {"extra-key", Flag::kText, "TEXT", "what else decides the state: a LoRA, hashes of images"},
      {"salt", Flag::kText, "TEXT",
       "keeps apart those who must not see each other's prompts: other salt, other prefix"},
  };
  std::vector<Command> commands = {
      {"prefix publish", "SRC", 1, 1, "Make SRC's version findable by the tokens that lead to it.",
       "Any number of tokens. The version's position must be just that number. A prefix\n"
       "keeps its first version: publishing what is published changes nothing. It lives\n"
       "on its own: what becomes of SRC does not matter to it.",
       "statepool prefix publish chat/42 --layout=my-model --tokens=prompt.txt",
       Join({key, {kAt}, SourceFlags(), OptionFlags(false)}), RunPublish},
      {"prefix match", "", 0, 0, "Find the longest published prefix of some tokens.",
       "Exactly these tokens, this layout, this extra key and salt, or a miss, which\n"
       "says why and exits with 3. A hit's prefix is a source for 'seq fork'.",
       "statepool prefix match --layout=my-model --tokens=prompt.txt\n"
       "statepool seq fork --from-prefix 9f2c4be01d7a88e3b1c05f6a7d3e2190 chat/43",
       Join({key,
             {{"max-position", Flag::kInteger, "N", "longest prefix wanted; default: the number of tokens - 1"},
              {"max-results", Flag::kUnsigned, "K", "how many to list, longest first; default 1"}}}),
       RunMatch},
  };
  for (Command& command : NameCommands(v1::PREFIX)) commands.push_back(std::move(command));
  return commands;
}

}  // namespace statepool::cli
