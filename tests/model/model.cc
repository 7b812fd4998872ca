// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// statepool_model: random operations over the whole API, in sessions of some thousand on a fresh data directory each;
// every answer is compared with the Reference. Prints one JSON line. Exit: 0 no divergence, 1 one.
#include <google/protobuf/stubs/logging.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/model/session.h"

ABSL_FLAG(uint64_t, seed, 1, "of the first session; each has the next");
ABSL_FLAG(uint64_t, operations, 20'000, "in all");
ABSL_FLAG(uint64_t, session_operations, 4000, "of one session");
ABSL_FLAG(double, seconds_max, 0, "stop after so long, if not 0");
ABSL_FLAG(std::string, directory, ".", "where data directories are made, and removed");
ABSL_FLAG(bool, verbose, false, "print every operation");

namespace {

using statepool::model::Session;

// What is printed when the store or the residency aborts.
char aborted_message[4096];
void OnAbort(int signal) {
  const size_t size = strnlen(aborted_message, sizeof aborted_message);
  static_cast<void>(!write(STDOUT_FILENO, aborted_message, size));
  _exit(signal == SIGTERM ? 128 + SIGTERM : 1);
}

std::string Line(uint64_t divergences, uint64_t operations, const std::string& rest) {
  return absl::StrCat("{\"name\": \"model/sequential\", \"value\": ", divergences,
                      ", \"unit\": \"divergences\", \"goal\": 0, \"n\": ", operations, rest, "}\n");
}

}  // namespace

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  google::protobuf::SetLogHandler(nullptr);
  spdlog::set_level(spdlog::level::off);
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE}) std::signal(signal, OnAbort);

  const uint64_t operations = absl::GetFlag(FLAGS_operations);
  const uint64_t each = absl::GetFlag(FLAGS_session_operations);
  const double seconds_max = absl::GetFlag(FLAGS_seconds_max);
  const absl::Time begin = absl::Now();
  statepool::model::Reference::Counts all;
  statepool::model::WorldCounts worlds;
  uint64_t done = 0, restarts = 0, crashes = 0, divergences = 0;
  for (uint64_t number = 0; done < operations && divergences == 0; ++number) {
    if (seconds_max > 0 && absl::Now() - begin > absl::Seconds(seconds_max)) break;
    statepool::model::SessionOptions options;
    options.seed = absl::GetFlag(FLAGS_seed) + number;
    options.directory = absl::StrCat(absl::GetFlag(FLAGS_directory), "/model-", getpid(), "-", number);
    options.crashes = options.seed % 2 == 1;
    options.verbose = absl::GetFlag(FLAGS_verbose);
    {
      Session session(options);
      for (uint64_t step = 1; step <= each && done < operations; ++step) {
        const std::string where = absl::StrCat("seed ", options.seed, ", operation ", step);
        const std::string message = Line(1, done, absl::StrCat(", \"aborted\": \"", where, "\""));
        message.copy(aborted_message, sizeof aborted_message - 1);
        aborted_message[message.size()] = '\0';
        const std::string wrong = session.Step();
        ++done;
        if (wrong.empty()) continue;
        ++divergences;
        std::fprintf(
            stderr, "%s: %s\n  %s\n  again: statepool_model --seed=%llu --operations=%llu --session_operations=%llu\n",
            where.c_str(), wrong.c_str(), session.last().c_str(), static_cast<unsigned long long>(options.seed),
            static_cast<unsigned long long>(step), static_cast<unsigned long long>(each));
        break;
      }
      const auto& counts = session.counts();
      all.writes += counts.writes, all.reads += counts.reads, all.forks += counts.forks, all.replays += counts.replays;
      all.refused += counts.refused, all.misses += counts.misses, all.matches += counts.matches;
      all.acked_sync += counts.acked_sync, all.survived += counts.survived, all.lost += counts.lost;
      all.expired += counts.expired;
      const auto world = session.world_counts();
      worlds.spills += world.spills, worlds.evictions += world.evictions, worlds.promotions += world.promotions;
      restarts += session.restarts(), crashes += session.crashes();
    }
    std::error_code ignored;
    std::filesystem::remove_all(options.directory, ignored);
    if (number % 10 == 9) std::fprintf(stderr, "%llu operations\n", static_cast<unsigned long long>(done));
  }
  const std::string line = Line(
      divergences, done,
      absl::StrCat(", \"operations\": ", done, ", \"writes\": ", all.writes, ", \"reads\": ", all.reads,
                   ", \"forks\": ", all.forks, ", \"replays\": ", all.replays, ", \"refused\": ", all.refused,
                   ", \"misses\": ", all.misses, ", \"matches\": ", all.matches, ", \"acked_sync\": ", all.acked_sync,
                   ", \"expired\": ", all.expired, ", \"restarts\": ", restarts, ", \"crashes\": ", crashes,
                   ", \"survived\": ", all.survived, ", \"lost\": ", all.lost, ", \"spills\": ", worlds.spills,
                   ", \"evictions\": ", worlds.evictions, ", \"promotions\": ", worlds.promotions));
  std::fputs(line.c_str(), stdout);
  return divergences == 0 ? 0 : 1;
}
