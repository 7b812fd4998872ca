// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/args.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/cpp/errors.h"

namespace statepool::cli {
namespace {

constexpr size_t kColumns = 80;
constexpr size_t kFlagColumn = 28;     // where the flags' help begins
constexpr size_t kCommandColumn = 20;  // where the commands' summaries begin

bool IsSeconds(absl::string_view text, double* seconds) {
  return absl::SimpleAtod(text, seconds) && *seconds > 0 && *seconds < 1e9;
}

bool IsDuration(absl::string_view text, absl::Duration* duration) {
  return absl::ParseDuration(text, duration) && *duration > absl::ZeroDuration() &&
         *duration < absl::InfiniteDuration();
}

// What the value should be; empty: it is.
std::string Fault(const Flag& flag, absl::string_view text) {
  int64_t integer;
  uint64_t number;
  double seconds;
  absl::Duration duration;
  absl::Time time;
  switch (flag.type) {
    case Flag::kSwitch:
    case Flag::kText: return "";
    case Flag::kInteger:
      return absl::SimpleAtoi(text, &integer) ? "" : absl::StrCat("a whole number ", INT64_MIN, "..", INT64_MAX);
    case Flag::kUnsigned: return absl::SimpleAtoi(text, &number) ? "" : absl::StrCat("a whole number 0..", UINT64_MAX);
    case Flag::kSeconds: return IsSeconds(text, &seconds) ? "" : "a number of seconds above 0";
    case Flag::kDuration: return IsDuration(text, &duration) ? "" : "a time with a unit, as in 500ms, 30s or 1h30m";
    case Flag::kTime:
      return absl::ParseTime(absl::RFC3339_full, text, &time, nullptr) ? "" : "a time as in 2030-01-31T12:00:00Z";
    case Flag::kChoice:
      for (absl::string_view choice : absl::StrSplit(flag.value, '|')) {
        if (choice == text) return "";
      }
      return absl::StrCat("one of ", absl::StrJoin(absl::StrSplit(flag.value, '|'), ", "));
  }
  return "";
}

std::string DidYouMean(absl::string_view prefix, absl::string_view nearest) {
  return nearest.empty() ? "" : absl::StrCat("; did you mean ", prefix, nearest, "?");
}

std::string Spelled(const Flag& flag) {
  return absl::StrCat("--", flag.name, flag.type == Flag::kSwitch ? "" : "=", flag.value);
}

void AppendFlags(absl::Span<const Flag> flags, std::string* out) {
  for (const Flag& flag : flags) {
    const std::string letter = flag.letter == 0 ? "" : absl::StrCat("-", absl::string_view(&flag.letter, 1), ", ");
    std::string line = absl::StrCat("  ", letter, Spelled(flag));
    const size_t value_column = line.find('=') + 1;
    for (size_t end; line.size() > kColumns && (end = line.rfind('|', kColumns - 1)) != line.npos;) {
      absl::StrAppend(out, line.substr(0, end + 1), "\n");
      line.replace(0, end + 1, std::string(value_column, ' '));
    }
    if (line.size() + 2 > kFlagColumn) {
      absl::StrAppend(out, line, "\n");
      line.clear();
    }
    line.resize(kFlagColumn, ' ');
    const std::string help = absl::StrCat(flag.help, flag.required ? " (required)" : "");
    for (absl::string_view word : absl::StrSplit(help, ' ')) {
      if (line.size() > kFlagColumn && line.size() + 1 + word.size() > kColumns) {
        absl::StrAppend(out, line, "\n");
        line.assign(kFlagColumn, ' ');
      }
      if (line.size() > kFlagColumn) line.push_back(' ');
      absl::StrAppend(&line, word);
    }
    absl::StrAppend(out, line, "\n");
  }
}

void AppendExample(absl::string_view example, std::string* out) {
  if (example.empty()) return;
  absl::StrAppend(out, "\nExample:\n");
  for (absl::string_view line : absl::StrSplit(example, '\n')) absl::StrAppend(out, "  ", line, "\n");
}

std::string CommandHelp(const Program& program, const Command& command) {
  std::string usage = absl::StrCat("Usage: ", program.name, " ", command.name);
  if (!command.operands.empty()) absl::StrAppend(&usage, " ", command.operands);
  for (const Flag& flag : command.flags) {
    if (flag.required) absl::StrAppend(&usage, " ", Spelled(flag));
  }
  std::string out = absl::StrCat(usage, " [flags]\n\n", command.summary, "\n");
  if (!command.details.empty()) absl::StrAppend(&out, "\n", command.details, "\n");
  if (!command.flags.empty()) {
    absl::StrAppend(&out, "\nFlags:\n");
    AppendFlags(command.flags, &out);
  }
  absl::StrAppend(&out, "\nGlobal flags:\n");
  AppendFlags(program.flags, &out);
  AppendExample(command.example, &out);
  return out;
}

// Help for a group, or with an empty one for the program.
std::string GroupHelp(const Program& program, absl::string_view group) {
  std::string out = absl::StrCat("Usage: ", program.name, group.empty() ? "" : " ", group, " COMMAND [flags]\n");
  if (group.empty()) absl::StrAppend(&out, "\n", program.summary, "\n");
  absl::StrAppend(&out, "\nCommands:\n");
  absl::string_view example = program.example;
  for (const Command& command : program.commands) {
    if (!group.empty() && !absl::StartsWith(command.name, absl::StrCat(group, " "))) continue;
    std::string line = absl::StrCat("  ", command.name);
    line.resize(kCommandColumn, ' ');
    absl::StrAppend(&out, line, command.summary, "\n");
    if (!group.empty() && example == program.example) example = command.example;
  }
  absl::StrAppend(&out, "\nGlobal flags:\n");
  AppendFlags(program.flags, &out);
  AppendExample(example, &out);
  absl::StrAppend(&out, "\n'", program.name, group.empty() ? "" : " ", group,
                  " COMMAND --help' tells more of a command.\n");
  return out;
}

// Insertions, deletions, changes, and swaps of neighbours, each for 1.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

absl::Status UsageError(absl::string_view field, absl::string_view message) {
  return client::MakeError(absl::StatusCode::kInvalidArgument, "USAGE", field, message);
}

absl::string_view Nearest(absl::string_view word, absl::Span<const absl::string_view> candidates) {
  constexpr size_t kWordMax = 64;
  absl::string_view nearest;
  if (word.size() > kWordMax) return nearest;
  size_t limit = std::max<size_t>(1, word.size() / 3) + 1;  // the first distance that is too far
  for (absl::string_view candidate : candidates) {
    const size_t distance = word.size() >= 3 && absl::StartsWith(candidate, word) ? 1 : EditDistance(word, candidate);
    if (distance < limit) {
      limit = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string Arguments::Text(absl::string_view flag, absl::string_view fallback) const {
  const auto it = values_.find(flag);
  return it == values_.end() ? std::string(fallback) : it->second;
}

int64_t Arguments::Integer(absl::string_view flag, int64_t fallback) const {
  int64_t value;
  return absl::SimpleAtoi(Text(flag), &value) ? value : fallback;
}

uint64_t Arguments::Unsigned(absl::string_view flag, uint64_t fallback) const {
  uint64_t value;
  return absl::SimpleAtoi(Text(flag), &value) ? value : fallback;
}

absl::Duration Arguments::Seconds(absl::string_view flag, absl::Duration fallback) const {
  double seconds;
  return IsSeconds(Text(flag), &seconds) ? absl::Seconds(seconds) : fallback;
}

absl::Duration Arguments::Duration(absl::string_view flag) const {
  absl::Duration duration;
  return IsDuration(Text(flag), &duration) ? duration : absl::ZeroDuration();
}

absl::Time Arguments::Time(absl::string_view flag) const {
  absl::Time time = absl::InfinitePast();
  absl::ParseTime(absl::RFC3339_full, Text(flag), &time, nullptr);
  return time;
}

// One parse. Errors end it.
class Parser {
 public:
  explicit Parser(const Program& program) : program_(program) {}

  absl::StatusOr<Arguments> Run(absl::Span<const std::string> args) {
    bool operands_only = false;
    for (size_t i = 0; i < args.size(); ++i) {
      const absl::string_view arg = args[i];
      absl::Status status;
      if (operands_only || arg.empty() || arg == "-" || arg[0] != '-') {
        status = TakeWord(arg);
      } else if (arg == "--") {
        operands_only = true;
      } else {
        status = TakeFlag(arg, args.subspan(i + 1), &i);
      }
      if (!status.ok()) return status;
    }
    return Finish();
  }

 private:
  absl::Status TakeWord(absl::string_view word) {
    if (result_.command != nullptr) {
      result_.operands.emplace_back(word);
      return absl::OkStatus();
    }
    if (group_.empty() && word == "help") {
      help_ = true;
      return absl::OkStatus();
    }
    const std::string name = group_.empty() ? std::string(word) : absl::StrCat(group_, " ", word);
    std::vector<absl::string_view> known;
    for (const Command& command : program_.commands) {
      const std::vector<absl::string_view> words = absl::StrSplit(command.name, ' ');
      if (command.name == name) {
        result_.command = &command;
        return absl::OkStatus();
      }
      if (group_.empty() && words[0] == name) {
        group_ = name;
        return absl::OkStatus();
      }
      if (group_.empty() || words[0] == group_) known.push_back(words[group_.empty() ? 0 : 1]);
    }
    known.erase(std::unique(known.begin(), known.end()), known.end());
    return UsageError(name, absl::StrCat("unknown command '", name, "'", DidYouMean("", Nearest(word, known)),
                                         " (there are ", absl::StrJoin(known, ", "), ")"));
  }

  const Flag* Find(absl::string_view name, char letter) const {
    for (const std::vector<Flag>* flags :
         {result_.command == nullptr ? nullptr : &result_.command->flags, &program_.flags}) {
      if (flags == nullptr) continue;
      for (const Flag& flag : *flags) {
        if (letter == 0 ? flag.name == name : flag.letter == letter) return &flag;
      }
    }
    return nullptr;
  }

  absl::Status UnknownFlag(absl::string_view given, absl::string_view name) const {
    std::vector<absl::string_view> known = {"help"};
    for (const Flag& flag : program_.flags) known.push_back(flag.name);
    if (result_.command != nullptr) {
      for (const Flag& flag : result_.command->flags) known.push_back(flag.name);
    }
    const std::string where =
        result_.command == nullptr ? "before the command" : absl::StrCat("for ", result_.command->name);
    return UsageError(given, absl::StrCat("unknown flag ", given, " ", where, DidYouMean("--", Nearest(name, known))));
  }

  // `rest` follows `arg`; advances *index when a value is taken from it.
  absl::Status TakeFlag(absl::string_view arg, absl::Span<const std::string> rest, size_t* index) {
    const bool spelled_out = absl::StartsWith(arg, "--");
    const size_t equals = arg.find('=');
    const absl::string_view given = spelled_out ? arg.substr(0, equals) : arg.substr(0, 2);
    const absl::string_view name = spelled_out ? given.substr(2) : "";
    if (arg == "--help" || arg == "-h") {
      help_ = true;
      return absl::OkStatus();
    }
    const Flag* const flag = Find(name, spelled_out ? 0 : arg[1]);
    if (flag == nullptr) return UnknownFlag(given, spelled_out ? name : arg.substr(1));

    const std::string field = absl::StrCat("--", flag->name);
    const bool attached = spelled_out ? equals != arg.npos : arg.size() > 2;
    std::string value;
    if (flag->type == Flag::kSwitch) {
      if (attached) return UsageError(field, absl::StrCat(given, " takes no value"));
    } else if (attached) {
      value = std::string(spelled_out ? arg.substr(equals + 1) : arg.substr(arg[2] == '=' ? 3 : 2));
    } else if (!rest.empty() && !absl::StartsWith(rest[0], "--")) {
      value = rest[0];
      ++*index;
    } else {
      return UsageError(field, absl::StrCat(given, " needs a value: ", Spelled(*flag)));
    }
    if (const std::string fault = Fault(*flag, value); !fault.empty()) {
      return UsageError(field, absl::StrCat(given, " is ", fault, ", not '", value, "'"));
    }
    result_.values_.insert_or_assign(std::string(flag->name), std::move(value));
    return absl::OkStatus();
  }

  absl::StatusOr<Arguments> Finish() {
    const Command* const command = result_.command;
    if (help_) {
      result_.help = command == nullptr ? GroupHelp(program_, group_) : CommandHelp(program_, *command);
      return std::move(result_);
    }
    if (command == nullptr) {
      const std::string path = absl::StrCat(program_.name, group_.empty() ? "" : " ", group_);
      return UsageError("", absl::StrCat("no command; '", path, " --help' lists them"));
    }
    const std::string see = absl::StrCat("; '", program_.name, " ", command->name, " --help' has an example");
    const int given = static_cast<int>(result_.operands.size());
    if (given < command->min_operands)
      return UsageError(command->operands, absl::StrCat("give ", command->operands, see));
    if (command->max_operands >= 0 && given > command->max_operands) {
      return UsageError(result_.operands[command->max_operands],
                        absl::StrCat("'", result_.operands[command->max_operands], "' is one argument too many", see));
    }
    for (const Flag& flag : command->flags) {
      if (flag.required && !result_.Has(flag.name)) {
        return UsageError(absl::StrCat("--", flag.name), absl::StrCat(Spelled(flag), " is required", see));
      }
    }
    return std::move(result_);
  }

  const Program& program_;
  std::string group_;
  bool help_ = false;
  Arguments result_;
};

absl::StatusOr<Arguments> Parse(const Program& program, absl::Span<const std::string> args) {
  return Parser(program).Run(args);
}

}  // namespace statepool::cli
