// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// seq: create, get, set, fork, rollback, remove-range, renumber, flush; what all names have is in names.cc.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/files.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"

namespace statepool::cli {
namespace {

constexpr size_t kAttachmentBytesMax = 16 << 20;  // the daemon's own limit is lower
constexpr uint64_t kCountMax = 1000000;           // and so is this one's
constexpr size_t kMessageBytes = 16 << 20;        // a state that is sent in one message, not as a stream
constexpr size_t kReadBytes = 1 << 20;

int RunCreate(Context& context) {
  const absl::StatusOr<v1::NameOptions> options = OptionsOf(context.args);
  if (!options.ok()) return Fail(options.status());
  if (context.args.Has("request-id") && context.args.operands.size() > 1) {
    return Fail(UsageError("--request-id", "--request-id goes with one NAME"));
  }
  return ForEachOperand(context, "sequences", [&](const std::string& name) -> absl::StatusOr<Json> {
    v1::CreateRequest request;
    request.set_sequence(name);
    request.set_layout(context.args.Text("layout"));
    request.set_request_id(context.args.Text("request-id"));
    *request.mutable_options() = *options;
    const absl::StatusOr<v1::NameInfo> info = context.pool.Create(request);
    if (!info.ok()) return info.status();
    return ToJson(*info);
  });
}

int RunGet(Context& context) {
  const Arguments& args = context.args;
  const absl::StatusOr<v1::NameRef> source = SourceOf(args, args.operands[0]);
  if (!source.ok()) return Fail(source.status());
  const absl::StatusOr<std::optional<v1::Select>> select = SelectOf(args);
  if (!select.ok()) return Fail(select.status());
  const std::string out = args.Text("out"), attachment = args.Text("attachment");
  if (out == "-" && attachment == "-") return Fail(UsageError("--attachment", "only one file can go to stdout"));

  v1::GetRequest request;
  *request.mutable_name() = *source;
  if (args.Has("at")) request.set_position(args.Integer("at"));
  request.set_layout(args.Text("layout"));
  request.set_version_id(args.Unsigned("version-id"));
  if (*select) *request.mutable_select() = **select;
  request.set_omit_attachment(!args.Has("attachment"));
  absl::StatusOr<v1::GetResponse> answer = v1::GetResponse();
  {
    absl::StatusOr<FileWriter> file = FileWriter::Open("--out", out);
    if (!file.ok()) return Fail(file.status());
    Progress progress(args.operands[0]);
    client::CallOptions call;
    call.progress = progress.Callback();
    answer = context.pool.GetStream(
        request, [&](uint64_t, absl::string_view data) { return file->Append(data); }, call);
    if (answer.ok() && args.Has("attachment")) {
      const absl::Status written = WriteFile("--attachment", attachment, {answer->attachment()});
      if (!written.ok()) answer = written;
    }
    if (answer.ok()) {
      if (absl::Status written = file->Commit(); !written.ok()) answer = written;
    }
  }
  if (!answer.ok()) return Fail(answer.status());
  if (out == "-" || attachment == "-") return 0;
  Json json = ToJson(answer->info());
  json.Set("data_bytes", answer->data_bytes()).Set("data_checksum", answer->data_checksum());
  Print(context.json, json);
  return 0;
}

// Sends what `file` has: small states in one message, others as they are read.
absl::StatusOr<v1::NameInfo> Send(const Context& context, v1::SetRequest request, FileReader file) {
  // A part has to go in one message, whatever its size.
  const size_t message_bytes =
      request.has_select() ? static_cast<size_t>(context.options.max_message_bytes) : kMessageBytes;
  std::string start(kMessageBytes + 1, '\0');
  size_t used = 0;
  for (size_t n = 1; n > 0 && used < start.size(); used += n) {
    const absl::StatusOr<size_t> got = file.Read(used, start.data() + used, start.size() - used);
    if (!got.ok()) return got.status();
    n = *got;
    if (used + n == start.size() && start.size() <= message_bytes)
      start.resize(std::min(message_bytes + 1, 2 * start.size()));
  }
  if (used <= message_bytes) {
    const auto owner = std::make_shared<const std::string>(std::move(start));
    return context.pool.Set(std::move(request), {absl::string_view(*owner).substr(0, used)}, owner);
  }
  if (request.has_select()) {
    return UsageError("--in", absl::StrCat("a part of a state has at most ", message_bytes, " bytes"));
  }
  start = std::string();  // the reader has it, or reads it again
  if (file.is_regular() && request.checksum().empty()) {
    // Read twice: then the daemon can verify the whole, and the same command with the same --request-id goes on where
    // an earlier one ended.
    client::Checksummer checksummer;
    std::string buffer(kReadBytes, '\0');
    for (uint64_t offset = 0;;) {
      const absl::StatusOr<size_t> got = file.Read(offset, buffer.data(), buffer.size());
      if (!got.ok()) return got.status();
      if (*got == 0) break;
      checksummer.Append(absl::string_view(buffer).substr(0, *got));
      offset += *got;
    }
    request.set_checksum(checksummer.Finish());
  }
  Progress progress(context.args.operands[0]);
  client::CallOptions call;
  call.progress = progress.Callback();
  return context.pool.SetStream(
      std::move(request), file.size(),
      [&](uint64_t offset, char* to, size_t max) { return file.Read(offset, to, max); }, call);
}

int RunSet(Context& context) {
  const Arguments& args = context.args;
  const absl::StatusOr<v1::NameOptions> options = OptionsOf(args);
  if (!options.ok()) return Fail(options.status());
  const absl::StatusOr<std::optional<v1::Select>> select = SelectOf(args);
  if (!select.ok()) return Fail(select.status());
  v1::SetRequest request;
  request.set_sequence(args.operands[0]);
  request.set_layout(args.Text("layout"));
  request.set_position(args.Integer("position"));
  request.set_checksum(args.Text("checksum"));
  if (args.Has("if-revision")) request.set_if_revision(args.Unsigned("if-revision"));
  request.set_request_id(args.Text("request-id"));
  *request.mutable_options() = *options;
  if (*select) *request.mutable_select() = **select;
  if (args.Has("exactness")) {
    const std::string exactness = args.Text("exactness");
    request.set_exactness(exactness == "exact" ? v1::EXACT : exactness == "edited" ? v1::EDITED : v1::LOSSY);
  }
  if (args.Text("in") == "-" && args.Text("attachment") == "-") {
    return Fail(UsageError("--attachment", "only one file can come from stdin"));
  }
  if (args.Has("attachment")) {
    absl::StatusOr<std::string> attachment = ReadFile("--attachment", args.Text("attachment"), kAttachmentBytesMax);
    if (!attachment.ok()) return Fail(attachment.status());
    request.set_attachment(*std::move(attachment));
  }
  absl::StatusOr<FileReader> file = FileReader::Open("--in", args.Text("in"));
  if (!file.ok()) return Fail(file.status());
  return Answer(context, Send(context, std::move(request), *std::move(file)));
}

int RunFork(Context& context) {
  const Arguments& args = context.args;
  const absl::StatusOr<v1::NameRef> source = SourceOf(args, args.operands[0]);
  if (!source.ok()) return Fail(source.status());
  const absl::StatusOr<v1::NameOptions> options = OptionsOf(args);
  if (!options.ok()) return Fail(options.status());

  v1::ForkRequest request;
  *request.mutable_source() = *source;
  if (args.Has("at")) request.set_position(args.Integer("at"));
  request.set_layout(args.Text("layout"));
  request.set_request_id(args.Text("request-id"));
  *request.mutable_options() = *options;
  for (size_t i = 1; i < args.operands.size(); ++i) request.add_children(args.operands[i]);
  if (args.Has("count") != args.Has("prefix")) return Fail(UsageError("--count", "--count and --prefix go together"));
  if (args.Has("count") == (request.children_size() > 0)) {
    return Fail(UsageError("CHILD", "name the children, or give --count=N --prefix=P"));
  }
  const uint64_t count = args.Unsigned("count");
  if (count > kCountMax) return Fail(UsageError("--count", absl::StrCat("--count is at most ", kCountMax)));
  for (uint64_t i = 0; i < count; ++i) request.add_children(absl::StrCat(args.Text("prefix"), i));
  return Answer(context, context.pool.Fork(request));
}

int RunRollback(Context& context) {
  const Arguments& args = context.args;
  if (args.Has("position") == args.Has("tokens"))
    return Fail(UsageError("--position", "give one of --position and --tokens"));
  v1::RollbackRequest request;
  request.set_sequence(args.operands[0]);
  if (args.Has("position")) request.set_position(args.Integer("position"));
  if (args.Has("tokens")) request.set_tokens(args.Integer("tokens"));
  if (args.Has("if-revision")) request.set_if_revision(args.Unsigned("if-revision"));
  request.set_request_id(args.Text("request-id"));
  return Answer(context, context.pool.Rollback(request));
}

int RunRemoveRange(Context& context) {
  const Arguments& args = context.args;
  v1::RemoveRangeRequest request;
  request.set_sequence(args.operands[0]);
  request.set_begin(args.Integer("begin"));
  request.set_end(args.Has("end") ? args.Integer("end") : -1);
  if (args.Has("if-revision")) request.set_if_revision(args.Unsigned("if-revision"));
  request.set_request_id(args.Text("request-id"));
  request.set_allow_missing(args.Has("allow-missing"));
  const absl::StatusOr<v1::RemoveRangeResponse> answer = context.pool.RemoveRange(request);
  const int code = Answer(context, answer);
  return code == 0 && !answer->done() ? ExitCode(absl::StatusCode::kNotFound) : code;
}

int RunRenumber(Context& context) {
  const Arguments& args = context.args;
  if (args.Has("add") == args.Has("divide")) return Fail(UsageError("--add", "give one of --add and --divide"));
  v1::RenumberRequest request;
  request.set_sequence(args.operands[0]);
  request.set_begin(args.Integer("begin"));
  request.set_end(args.Has("end") ? args.Integer("end") : -1);
  if (args.Has("add")) request.set_add(args.Integer("add"));
  if (args.Has("divide")) request.set_divide(args.Integer("divide"));
  if (args.Has("if-revision")) request.set_if_revision(args.Unsigned("if-revision"));
  request.set_request_id(args.Text("request-id"));
  return Answer(context, context.pool.Renumber(request));
}

int RunFlush(Context& context) {
  v1::FlushRequest request;
  if (context.args.Has("all") == !context.args.operands.empty()) {
    return Fail(UsageError("--all", "name sequences, or give --all"));
  }
  for (const std::string& name : context.args.operands) *request.add_names() = client::SequenceRef(name);
  return Answer(context, context.pool.Flush(request));
}

}  // namespace

std::vector<Command> SeqCommands() {
  const Flag layout_of_read = {"layout", Flag::kText, "L", "only if the state has this layout (alias or fingerprint)"};
  std::vector<Command> commands = {
      {"seq create", "NAME...", 1, -1, "Make sequences at position 0, in their layout's initial state.",
       "Costs no bytes: initial states are shared. A name that exists is an error, and\n"
       "changes nothing. Several names are made one by one.",
       "statepool seq create chat/42 --layout=my-model --ttl=24h",
       Join({{{"layout", Flag::kText, "L", "alias or fingerprint", true}}, OptionFlags(true), {kRequestId}}),
       RunCreate},
      {"seq set", "NAME", 1, 1, "Write a whole state as a sequence's new head: all or nothing.",
       "Makes the sequence when it does not exist; then --layout is needed. The file is\n"
       "an image: tensors in the layout's order, layers ascending, row-major,\n"
       "little-endian, without padding. With --tensors or --layers it has only these,\n"
       "all else stays what the head has, and --if-revision is required.\n"
       "\n"
       "Any size: above 16 MiB it is sent as it is read, and a broken connection goes\n"
       "on where it broke. The same command with the same --request-id does so too\n"
       "after it was killed (from a file, not from stdin). Earlier states stay in the\n"
       "ring for 'seq rollback', up to --max-history.",
       "statepool seq set chat/42 --layout=my-model --in=state.bin --position=128\n"
       "statepool seq set chat/42 --in=next.bin --position=256 --if-revision=7",
       Join({{{"in", Flag::kText, "FILE", "the image; - for stdin", true},
              {"position", Flag::kInteger, "N", "tokens consumed so far: the state is valid at exactly this position",
               true},
              {"layout", Flag::kText, "L", "alias or fingerprint"},
              kIfRevision,
              kRequestId},
             SelectFlags(),
             OptionFlags(true),
             {{"attachment", Flag::kText, "FILE", "opaque bytes to keep beside the state"},
              {"checksum", Flag::kText, "HEX", "what the image must have; default: computed from the file"},
              {"exactness", Flag::kChoice, "exact|edited|lossy",
               "how the state came about; default: exact, of a part: edited"}}}),
       RunSet},
      {"seq get", "NAME", 1, 1, "Write a state's bytes to a file, verified against their checksum.",
       "Gives exactly the version that was asked for, or a miss that says why (exit 3).\n"
       "Any size: the bytes go to the file as they come, and a broken connection goes\n"
       "on where it broke. The file is replaced as a whole, when all is verified, or\n"
       "not at all. With - as a file the bytes go to stdout and no answer is printed;\n"
       "then only the exit code tells that all of them are right.",
       "statepool seq get chat/42 --out=state.bin --at=128\n"
       "statepool seq get chat/42 --out=wkv.bin --tensors=wkv --layers=0-3,7",
       Join({{{"out", Flag::kText, "FILE", "replaced as a whole or not at all; - for stdout", true},
              kAt,
              {"version-id", Flag::kUnsigned, "ID", "exactly this version, as 'seq describe' shows it"},
              layout_of_read},
             SelectFlags(),
             {{"attachment", Flag::kText, "FILE", "where to write the attachment"}},
             SourceFlags()}),
       RunGet},
      {"seq fork", "SRC [CHILD...]", 1, -1, "Make new sequences that point at SRC's version. Copies no byte.",
       "All children or none. --count=N --prefix=P makes P0, P1 ... up to N - 1.\n"
       "Children inherit durability, expiry and the versions that SRC keeps, up to the\n"
       "one that is forked, unless flags say otherwise.",
       "statepool seq fork chat/42 chat/43 chat/44\n"
       "statepool seq fork chat/42 --count=64 --prefix=beam/ --durability=volatile",
       Join({{kAt,
              {"count", Flag::kUnsigned, "N", "make N children"},
              {"prefix", Flag::kText, "P", "how the names of --count begin"},
              layout_of_read},
             SourceFlags(),
             OptionFlags(true),
             {kRequestId}}),
       RunFork},
      {"seq rollback",
       "NAME",
       1,
       1,
       "Move a sequence's head back to an earlier version that it keeps.",
       "'seq describe' shows the positions under history, and as rollback_tokens how\n"
       "many tokens can be taken back one by one. Later versions are dropped.",
       "statepool seq rollback chat/42 --position=128\n"
       "statepool seq rollback chat/42 --tokens=3",
       {{"position", Flag::kInteger, "N", "to exactly this position"},
        {"tokens", Flag::kInteger, "N", "by N tokens"},
        kIfRevision,
        kRequestId},
       RunRollback},
      {"seq remove-range",
       "NAME",
       1,
       1,
       "Take a range of tokens out of a sequence, as far as that can be done.",
       "A range with all tokens deletes the sequence. One with the last token but not\n"
       "the first moves the head back to position --begin; if no version is kept there,\n"
       "done is false, nothing changes, and the exit code is 3. One without the last\n"
       "token changes nothing.",
       "statepool seq remove-range chat/42 --begin=120\n"
       "statepool seq remove-range chat/42 --begin=0   # deletes it",
       {{"begin", Flag::kInteger, "I", "index of the first token", true},
        {"end", Flag::kInteger, "I", "index after the last one; default: after all tokens"},
        kIfRevision,
        kRequestId,
        {"allow-missing", Flag::kSwitch, "", "an absent sequence is no error"}},
       RunRemoveRange},
      {"seq renumber",
       "NAME",
       1,
       1,
       "Give a sequence another position. Copies no byte.",
       "Only if its last token is in the range; else nothing changes. Earlier versions\n"
       "go along as far as theirs are, too; the others are dropped. The states count as\n"
       "edited then.",
       "statepool seq renumber chat/42 --begin=64 --add=-32",
       {{"add", Flag::kInteger, "N", "to the position; may be negative"},
        {"divide", Flag::kInteger, "N", "the last token's index, rounded down"},
        {"begin", Flag::kInteger, "I", "index of the range's first token; default: 0"},
        {"end", Flag::kInteger, "I", "index after its last one; default: after all tokens"},
        kIfRevision,
        kRequestId},
       RunRenumber},
      {"seq flush",
       "[NAME...]",
       0,
       -1,
       "Wait until the newest versions are on disk.",
       "As if they had been written with --durability=sync. Volatile names stay what\n"
       "they are and are not written.",
       "statepool seq flush chat/42 && echo durable",
       {{"all", Flag::kSwitch, "", "every name that the daemon has"}},
       RunFlush},
  };
  for (Command& command : NameCommands(v1::SEQUENCE)) commands.push_back(std::move(command));
  return commands;
}

}  // namespace statepool::cli
