// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/crash/cycles.h"

#include <sys/wait.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace statepool::crash {
namespace {

constexpr int kWorkers = 6;
constexpr int kReadySecondsMax = 30;
constexpr int kKillMillisMin = 20, kKillMillisMax = 400;
// Some starts are killed as well, before or while the daemon recovers.
constexpr int kKilledStartsPercent = 15, kKilledStartMillisMax = 60;

}  // namespace

Cycles::Cycles(std::string name, const bench::Arguments& arguments)
    : name_(std::move(name)),
      binary_(arguments.Text("daemon")),
      directory_(arguments.Text("directory")),
      cycles_(static_cast<int>(arguments.Number("cycles"))),
      stop_at_first_(arguments.Number("stop-at-first") != 0),
      run_(static_cast<uint64_t>(arguments.Number("seed"))),
      random_(run_.seed) {
  if (arguments.Has("least")) {
    for (const absl::string_view least : absl::StrSplit(arguments.Text("least"), ',')) {
      const std::pair<std::string, std::string> field = absl::StrSplit(least, absl::MaxSplits(':', 1));
      if (!absl::SimpleAtoi(field.second, &least_[field.first])) bench::NotMeasurable("--least");
    }
  }
  for (int i = 0; i < kWorkers; ++i) workers_.push_back(std::make_unique<Worker>(&run_, i));
}

int Cycles::Main() {
  int done = 0;
  for (int cycle = 1; cycle <= (IsEnough() ? cycles_ : 4 * cycles_) && GoOn(); ++cycle) {
    run_.cycle = cycle;
    if (!Start()) break;
    if (cycle == 1) RegisterLayouts();
    if (cycle > 1) Verify();
    if (!GoOn()) break;
    LoadAndKill();
    ++done;
    if (cycle % 10 == 0) Progress();
  }
  if (GoOn() && Start()) {
    Verify();
    const int status = daemon_->Stop(60);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      run_.Report(Violation::kUnexpected, "statepoold", "exit 0 after SIGTERM",
                  absl::StrCat("waitpid status ", status));
    }
    Ended();
  }
  daemon_.reset();
  bench::Figure figure(name_);
  figure.Set("value", static_cast<double>(run_.violations() + failed_starts_))
      .Text("unit", "violations")
      .Set("n", done)
      .Goal("value", 0);
  for (int i = 0; i < kViolations; ++i)
    figure.Set(kViolationNames[i], static_cast<double>(run_.counts[static_cast<size_t>(i)]));
  figure.Set("failed_starts", failed_starts_);
  for (const auto& [field, count] : Happened()) figure.Set(field, static_cast<double>(count));
  AddTo(&figure);
  figure.Print();
  return 0;
}

std::vector<std::pair<std::string, int64_t>> Cycles::Happened() const {
  return {{"acked_sync", run_.acked_sync},
          {"kills_in_flight", kills_in_flight_},
          {"spills", run_.spills},
          {"promotions", run_.promotions},
          {"forks", run_.forks},
          {"batches", run_.batches},
          {"operations", run_.operations},
          {"refused", run_.refused},
          {"killed_starts", killed_starts_}};
}

bool Cycles::IsEnough() const {
  const auto happened = Happened();
  return std::all_of(happened.begin(), happened.end(), [this](const auto& field) {
    const auto least = least_.find(field.first);
    return least == least_.end() || field.second >= least->second;
  });
}

void Cycles::Progress() {
  std::fprintf(stderr, "%s: cycle %d of %d, %lld violations, %lld SYNC writes, %d kills with one in flight\n",
               name_.c_str(), run_.cycle.load(), cycles_, static_cast<long long>(run_.violations()),
               static_cast<long long>(run_.acked_sync), kills_in_flight_);
}

bool Cycles::Start() {
  daemon_.reset();
  const std::vector<std::string> command = {binary_,
                                            "--listen=127.0.0.1:0",
                                            "--metrics=127.0.0.1:0",
                                            "--data-dir=" + directory_ + "/data",
                                            "--hot-bytes=4MiB",
                                            "--warm-bytes=0",
                                            "--cold-bytes=8GiB",
                                            "--devices=host",
                                            "--flush-interval=100ms",
                                            "--log-level=warn"};
  const std::string log = directory_ + "/daemon.log";
  while (random_() % 100 < kKilledStartsPercent) {
    {
      const DaemonProcess killed(Command(command), log);
      WaitToKillStart();
    }
    Killed(/*while_starting=*/true);
    ++killed_starts_;
  }
  daemon_ = std::make_unique<DaemonProcess>(Command(command), log);
  if (daemon_->WaitReady(kReadySecondsMax)) {
    run_.revision_floor = run_.greatest_revision.load();
    run_.killed_at = 0;
    return true;
  }
  ++failed_starts_;
  std::fprintf(stderr,
               "violation: failed_starts: seed %llu cycle %d the daemon did not get ready; the end of its log:\n",
               static_cast<unsigned long long>(run_.seed), run_.cycle.load());
  std::ifstream file(log);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  for (size_t i = lines.size() < 20 ? 0 : lines.size() - 20; i < lines.size(); ++i)
    std::fprintf(stderr, "  %s\n", lines[i].c_str());
  return false;
}

void Cycles::RegisterLayouts() {
  const bench::Connection connection(daemon_->address());
  for (size_t i = 0; i < kLayoutBytes.size(); ++i) run_.layouts[i] = connection.RegisterLayout(kLayoutBytes[i]);
}

template <typename Work>
std::vector<std::thread> Cycles::ForEachWorker(Work work) {
  std::vector<std::thread> threads;
  for (const auto& worker : workers_) threads.emplace_back([&worker = *worker, work] { work(&worker); });
  return threads;
}

void Cycles::Verify() {
  const std::string& address = daemon_->address();
  for (std::thread& thread : ForEachWorker([&](Worker* worker) { worker->Verify(address); })) thread.join();

  // Nothing else is there, and all of it is listed.
  std::set<std::string> names, listed;
  for (const auto& worker : workers_) worker->Collect(&names);
  const bench::Connection connection(address);
  for (const v1::NameKind kind : {v1::SEQUENCE, v1::SNAPSHOT}) {
    v1::ListRequest request;
    request.set_kind(kind);
    request.set_page_size(1000);
    do {
      const v1::ListResponse response = connection.Call(&v1::StatePool::Stub::List, request);
      for (const v1::NameInfo& info : response.names())
        listed.insert(kind == v1::SEQUENCE ? info.name().sequence() : info.name().snapshot());
      request.set_page_token(response.next_page_token());
    } while (!request.page_token().empty());
  }
  for (const std::string& name : listed) {
    if (!names.contains(name)) run_.Report(Violation::kResurrected, name, "absent", "listed");
  }
  for (const std::string& name : names) {
    if (!listed.contains(name)) run_.Report(Violation::kLost, name, "listed", "absent");
  }
  run_.revision_floor = run_.greatest_revision.load();  // what was just seen was written by earlier runs
}

void Cycles::WaitToKill() {
  std::this_thread::sleep_for(std::chrono::milliseconds(kKillMillisMin + Below(kKillMillisMax - kKillMillisMin + 1)));
}

void Cycles::WaitToKillStart() { std::this_thread::sleep_for(std::chrono::milliseconds(Below(kKilledStartMillisMax))); }

void Cycles::LoadAndKill() {
  std::vector<std::thread> threads =
      ForEachWorker([address = daemon_->address()](Worker* worker) { worker->Load(address); });
  WaitToKill();
  run_.killed_at = std::chrono::steady_clock::now().time_since_epoch().count();
  daemon_->Kill();
  for (std::thread& thread : threads) thread.join();
  const int status = daemon_->Wait();
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
    run_.Report(Violation::kUnexpected, "statepoold", "alive until it is killed",
                absl::StrCat("waitpid status ", status));
  }
  kills_in_flight_ +=
      std::any_of(workers_.begin(), workers_.end(), [](const auto& worker) { return worker->durable_in_flight(); });
  Killed(/*while_starting=*/false);
}

}  // namespace statepool::crash
