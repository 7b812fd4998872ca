// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// completion: scripts for the shells.
#include "client/cli/completion.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands.h"
#include "client/cli/output.h"

namespace statepool::cli {
namespace {

constexpr absl::string_view kFile = "FILE";  // what stands for a file's name in the table

// A group, or a command of one word.
struct Word {
  absl::string_view word;
  std::vector<const Command*> commands;  // of the group
  bool is_group = false;
};

std::vector<Word> WordsOf(const Program& program) {
  std::vector<Word> words;
  for (const Command& command : program.commands) {
    const std::vector<absl::string_view> parts = absl::StrSplit(command.name, ' ');
    if (words.empty() || words.back().word != parts[0]) words.push_back({parts[0], {}, parts.size() > 1});
    words.back().commands.push_back(&command);
  }
  return words;
}

absl::string_view LastWord(const Command& command) { return command.name.substr(command.name.rfind(' ') + 1); }

// What can be said of a flag's value or of operands: words, FILE, or nothing.
std::string Candidates(absl::string_view value, bool is_choice) {
  if (is_choice) return absl::StrJoin(absl::StrSplit(value, '|'), " ");
  return std::string(absl::StrContains(value, kFile) ? kFile : "");
}

// Operands are a choice where they are all in small letters: bash|zsh|fish.
std::string OperandCandidates(const Command& command) {
  const bool is_choice = !command.operands.empty() &&
                         command.operands.find_first_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ. ") == absl::string_view::npos;
  return Candidates(command.operands, is_choice);
}

std::string SummaryOf(const Word& word) {
  if (!word.is_group) return std::string(word.commands[0]->summary);
  return absl::StrJoin(word.commands, ", ",
                       [](std::string* out, const Command* command) { absl::StrAppend(out, LastWord(*command)); });
}

// ---- bash

void AppendBashFlags(absl::string_view command, const std::vector<Flag>& flags, std::string* out) {
  std::string names;
  for (const Flag& flag : flags) {
    const bool has_value = flag.type != Flag::kSwitch;
    absl::StrAppend(&names, names.empty() ? "" : " ", "--", flag.name, has_value ? "=" : "");
    if (!has_value) continue;
    const std::string letter =
        flag.letter == 0 ? "" : absl::StrCat(" | \"value:", command, ":-", absl::string_view(&flag.letter, 1), "\"");
    absl::StrAppend(out, "    \"value:", command, ":--", flag.name, "\"", letter, ") echo \"",
                    Candidates(flag.value, flag.type == Flag::kChoice), "\" ;;\n");
  }
  absl::StrAppend(out, "    \"flags:", command, "\") echo \"", names, "\" ;;\n");
}

constexpr char kBash[] = R"script(
# $1: what is asked for. Fails where there is no such flag or command.
_NAME_data() {
  case "$1" in
DATA    *) return 1 ;;
  esac
}

_NAME() {
  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"
  local command="" flag="" candidates="" word i
  COMPREPLY=()
  # The command so far. Bash takes --flag=value for three words.
  for ((i = 1; i < COMP_CWORD; ++i)); do
    word="${COMP_WORDS[i]}"
    if [[ $word == -* ]]; then
      if [[ ${COMP_WORDS[i+1]} == "=" ]]; then
        ((i += 2))
      elif _NAME_data "value:$command:$word" >/dev/null || _NAME_data "value::$word" >/dev/null; then
        ((i += 1))
      fi
    elif [[ -z $command ]] || _NAME_data "words:$command" >/dev/null; then
      command="${command:+$command }$word"
    fi
  done
  # The flag whose value is being typed.
  if [[ $current == "=" ]]; then
    flag="$previous" current=""
  elif [[ $previous == "=" ]]; then
    flag="${COMP_WORDS[COMP_CWORD-2]}"
  elif [[ $previous == -* ]]; then
    flag="$previous"
  fi
  if [[ -n $flag ]] && candidates="$(_NAME_data "value:$command:$flag" || _NAME_data "value::$flag")"; then
    :
  elif [[ $current == -* ]]; then
    candidates="$(_NAME_data "flags:$command") $(_NAME_data "flags:")"
  elif ! candidates="$(_NAME_data "words:$command")"; then
    candidates="$(_NAME_data "operands:$command")"
  fi
  if [[ $candidates == FILE ]]; then
    compopt -o filenames 2>/dev/null
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current")
  else
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -W "$candidates" -- "$current")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
  fi
  return 0
}
complete -F _NAME NAME
)script";

std::string BashScript(const Program& program) {
  std::string data;
  const std::vector<Word> words = WordsOf(program);
  absl::StrAppend(&data, "    \"words:\") echo \"",
                  absl::StrJoin(words, " ", [](std::string* out, const Word& w) { absl::StrAppend(out, w.word); }),
                  " help\" ;;\n");
  AppendBashFlags("", program.flags, &data);
  for (const Word& word : words) {
    if (word.is_group) {
      absl::StrAppend(&data, "    \"words:", word.word, "\") echo \"",
                      absl::StrJoin(word.commands, " ",
                                    [](std::string* out, const Command* c) { absl::StrAppend(out, LastWord(*c)); }),
                      "\" ;;\n");
    }
    for (const Command* command : word.commands) {
      AppendBashFlags(command->name, command->flags, &data);
      absl::StrAppend(&data, "    \"operands:", command->name, "\") echo \"", OperandCandidates(*command), "\" ;;\n");
    }
  }
  return absl::StrCat("# bash completion of ", program.name, ": source <(", program.name, " completion bash)\n",
                      absl::StrReplaceAll(kBash, {{"NAME", program.name}, {"DATA", data}}));
}

// ---- zsh

std::string ZshQuoted(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"'", "'\\''"}, {"[", "\\["}, {"]", "\\]"}, {":", "\\:"}});
}

std::string ZshAction(const std::string& candidates) {
  if (candidates == kFile) return "_files";
  return candidates.empty() ? " " : absl::StrCat("(", candidates, ")");
}

void AppendZshFlags(const std::vector<Flag>& flags, std::string* out) {
  for (const Flag& flag : flags) {
    const bool has_value = flag.type != Flag::kSwitch;
    const std::string rest =
        absl::StrCat("[", ZshQuoted(flag.help), "]",
                     has_value ? absl::StrCat(":", ZshQuoted(flag.value), ":",
                                              ZshAction(Candidates(flag.value, flag.type == Flag::kChoice)))
                               : "");
    absl::StrAppend(out, "    '--", flag.name, has_value ? "=" : "", rest, "'\n");
    if (flag.letter != 0)
      absl::StrAppend(out, "    '-", absl::string_view(&flag.letter, 1), has_value ? "+" : "", rest, "'\n");
  }
}

void AppendZshChoice(absl::string_view function, const std::vector<std::pair<std::string, std::string>>& words,
                     absl::string_view program, std::string* out) {
  absl::StrAppend(out, "\n_", function, "() {\n  local -a words_here=(\n");
  for (const auto& [word, summary] : words) absl::StrAppend(out, "    '", word, ":", ZshQuoted(summary), "'\n");
  absl::StrAppend(out, "  )\n  local curcontext=\"$curcontext\" state line\n  typeset -A opt_args\n",
                  "  _arguments -C $_", program, "_flags '1:command:->word' '*::argument:->rest' && return\n",
                  "  case $state in\n    word) _describe command words_here ;;\n    rest)\n      case $line[1] in\n");
  for (const auto& [word, summary] : words) absl::StrAppend(out, "        ", word, ") _", function, "_", word, " ;;\n");
  absl::StrAppend(out, "      esac ;;\n  esac\n}\n");
}

std::string ZshScript(const Program& program) {
  std::string out =
      absl::StrCat("#compdef ", program.name, "\n# zsh completion of ", program.name, ": source <(", program.name,
                   " completion zsh), or as _", program.name, " in $fpath\n\n_", program.name, "_flags=(\n");
  AppendZshFlags(program.flags, &out);
  absl::StrAppend(&out, ")\n");
  std::vector<std::pair<std::string, std::string>> top;
  for (const Word& word : WordsOf(program)) {
    top.emplace_back(std::string(word.word), SummaryOf(word));
    const std::string function = absl::StrCat(program.name, "_", word.word);
    std::vector<std::pair<std::string, std::string>> commands;
    for (const Command* command : word.commands) {
      if (word.is_group) commands.emplace_back(std::string(LastWord(*command)), std::string(command->summary));
      absl::StrAppend(&out, "\n_", function, word.is_group ? absl::StrCat("_", LastWord(*command)) : "",
                      "() {\n  _arguments $_", program.name, "_flags \\\n");
      std::string flags;
      AppendZshFlags(command->flags, &flags);
      for (absl::string_view line : absl::StrSplit(flags, '\n', absl::SkipEmpty()))
        absl::StrAppend(&out, line, " \\\n");
      if (command->max_operands == 0) absl::StrAppend(&out, "    && return\n}\n");
      else
        absl::StrAppend(&out, "    '*:", ZshQuoted(command->operands), ":", ZshAction(OperandCandidates(*command)),
                        "'\n}\n");
    }
    if (word.is_group) AppendZshChoice(function, commands, program.name, &out);
  }
  AppendZshChoice(program.name, top, program.name, &out);
  absl::StrAppend(&out, "\nif [[ $funcstack[1] == _", program.name, " ]]; then _", program.name,
                  " \"$@\"; else compdef _", program.name, " ", program.name, "; fi\n");
  return out;
}

// ---- fish

std::string FishQuoted(absl::string_view text) { return absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"'", "\\'"}}); }

void AppendFishFlags(absl::string_view name, absl::string_view condition, const std::vector<Flag>& flags,
                     std::string* out) {
  for (const Flag& flag : flags) {
    absl::StrAppend(out, "complete -c ", name, condition, " -l ", flag.name);
    if (flag.letter != 0) absl::StrAppend(out, " -s ", absl::string_view(&flag.letter, 1));
    if (flag.type != Flag::kSwitch) {
      const std::string candidates = Candidates(flag.value, flag.type == Flag::kChoice);
      absl::StrAppend(out, candidates == kFile ? " -r -F" : " -x");
      if (candidates != kFile && !candidates.empty()) absl::StrAppend(out, " -a '", candidates, "'");
    }
    absl::StrAppend(out, " -d '", FishQuoted(flag.help), "'\n");
  }
}

constexpr char kFish[] = R"script(
# The words of the command line that are no flags, nor values of those that every command has.
function __NAME_words
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
        else if contains -- $word VALUES
            set skip 1
        else if not string match -q -- '-*' $word
            echo $word
        end
    end
end
# All words are these.
function __NAME_at
    set -l words (__NAME_words)
    test "$words" = "$argv"
end
# The first words are these.
function __NAME_in
    set -l words (__NAME_words)
    test (count $words) -ge (count $argv); or return 1
    for i in (seq (count $argv))
        test $words[$i] = $argv[$i]; or return 1
    end
end
complete -c NAME -f
)script";

std::string FishScript(const Program& program) {
  std::string values;
  for (const Flag& flag : program.flags) {
    if (flag.type == Flag::kSwitch) continue;
    absl::StrAppend(&values, values.empty() ? "" : " ", "--", flag.name);
    if (flag.letter != 0) absl::StrAppend(&values, " -", absl::string_view(&flag.letter, 1));
  }
  std::string out =
      absl::StrCat("# fish completion of ", program.name, ": ", program.name, " completion fish | source\n",
                   absl::StrReplaceAll(kFish, {{"NAME", program.name}, {"VALUES", values}}));
  AppendFishFlags(program.name, "", program.flags, &out);
  const auto word = [&](absl::string_view group, absl::string_view name, absl::string_view summary) {
    absl::StrAppend(&out, "complete -c ", program.name, " -n '__", program.name, "_at", group.empty() ? "" : " ", group,
                    "' -a ", name, " -d '", FishQuoted(summary), "'\n");
  };
  for (const Word& w : WordsOf(program)) {
    word("", w.word, SummaryOf(w));
    for (const Command* command : w.commands) {
      if (w.is_group) word(w.word, LastWord(*command), command->summary);
      const std::string condition = absl::StrCat(" -n '__", program.name, "_in ", command->name, "'");
      AppendFishFlags(program.name, condition, command->flags, &out);
      const std::string candidates = OperandCandidates(*command);
      if (candidates == kFile) absl::StrAppend(&out, "complete -c ", program.name, condition, " -F\n");
      else if (!candidates.empty())
        absl::StrAppend(&out, "complete -c ", program.name, condition, " -a '", candidates, "'\n");
    }
  }
  return out;
}

int RunCompletion(Context& context) {
  const std::string& shell = context.args.operands[0];
  const std::string script = CompletionScript(context.program, shell);
  if (script.empty()) return Fail(UsageError(shell, absl::StrCat("'", shell, "' is none of bash, zsh, fish")));
  fwrite(script.data(), 1, script.size(), stdout);
  return 0;
}

}  // namespace

std::string CompletionScript(const Program& program, absl::string_view shell) {
  if (shell == "bash") return BashScript(program);
  if (shell == "zsh") return ZshScript(program);
  if (shell == "fish") return FishScript(program);
  return "";
}

std::vector<Command> CompletionCommands() {
  return {{"completion",
           "bash|zsh|fish",
           1,
           1,
           "Print a script that lets a shell complete this tool's command lines.",
           "Groups, commands, flags, their choices and files. Asks no daemon.",
           "source <(statepool completion bash)          # in ~/.bashrc; zsh likewise\n"
           "statepool completion fish | source           # in ~/.config/fish/config.fish",
           {},
           RunCompletion}};
}

}  // namespace statepool::cli
