// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// kill -9 under load, again and again on one data directory, with an oracle of what was acknowledged.
//
//   statepool_crash_load --daemon=BINARY --directory=DIR --cycles=N --seed=N --stop-at-first=0|1
//
// A cycle: start the daemon, look at every name that the oracle knows, load it from several threads, kill it 20..400 ms
// later. Prints one line of JSON. Exit: 0 measured, 2 not measurable.
#include <sys/wait.h>

#include <fstream>
#include <thread>

#include "tests/bench/measure.h"
#include "tests/crash/daemon_process.h"
#include "tests/crash/worker.h"

namespace statepool::crash {
namespace {

constexpr int kWorkers = 6;
constexpr int kReadySecondsMax = 30;
constexpr int kKillMillisMin = 20, kKillMillisMax = 400;
// Some starts are killed as well, before or while the daemon recovers.
constexpr int kKilledStartsPercent = 15, kKilledStartMillisMax = 60;

class Harness {
 public:
  explicit Harness(const bench::Arguments& arguments)
      : daemon_(arguments.Text("daemon")),
        directory_(arguments.Text("directory")),
        cycles_(static_cast<int>(arguments.Number("cycles"))),
        stop_at_first_(arguments.Number("stop-at-first") != 0),
        run_(static_cast<uint64_t>(arguments.Number("seed"))),
        random_(run_.seed) {
    for (int i = 0; i < kWorkers; ++i) workers_.push_back(std::make_unique<Worker>(&run_, i));
  }

  int Main() {
    int done = 0;
    for (int cycle = 1; cycle <= cycles_ && GoOn(); ++cycle) {
      run_.cycle = cycle;
      std::unique_ptr<DaemonProcess> daemon = Start();
      if (daemon == nullptr) break;
      if (cycle == 1) RegisterLayouts(daemon->address());
      if (cycle > 1) Verify(daemon->address());
      if (!GoOn()) break;
      LoadAndKill(daemon.get());
      ++done;
      if (cycle % 10 == 0) Progress();
    }
    if (GoOn()) {
      if (std::unique_ptr<DaemonProcess> daemon = Start()) {
        Verify(daemon->address());
        const int status = daemon->Stop(60);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
          run_.Report(Violation::kUnexpected, "statepoold", "exit 0 after SIGTERM",
                      absl::StrCat("waitpid status ", status));
        }
      }
    }
    bench::Figure figure("crash");
    figure.Set("value", static_cast<double>(run_.violations() + failed_starts_))
        .Text("unit", "violations")
        .Set("n", done)
        .Goal("value", 0);
    for (int i = 0; i < kViolations; ++i)
      figure.Set(kViolationNames[i], static_cast<double>(run_.counts[static_cast<size_t>(i)]));
    figure.Set("failed_starts", failed_starts_)
        .Set("acked_sync", run_.acked_sync)
        .Set("kills_in_flight", kills_in_flight_)
        .Set("spills", run_.spills)
        .Set("promotions", run_.promotions)
        .Set("forks", run_.forks)
        .Set("operations", run_.operations)
        .Set("refused", run_.refused)
        .Set("killed_starts", killed_starts_)
        .Print();
    return 0;
  }

 private:
  bool GoOn() const { return failed_starts_ == 0 && !(stop_at_first_ && run_.violations() > 0); }

  void Progress() {
    std::fprintf(stderr, "crash: cycle %d of %d, %lld violations, %lld SYNC writes, %d kills with one in flight\n",
                 run_.cycle.load(), cycles_, static_cast<long long>(run_.violations()),
                 static_cast<long long>(run_.acked_sync), kills_in_flight_);
  }

  // Null: it did not get ready, which counts.
  std::unique_ptr<DaemonProcess> Start() {
    const std::vector<std::string> command = {daemon_,
                                              "--listen=127.0.0.1:0",
                                              "--metrics=127.0.0.1:0",
                                              "--data-dir=" + directory_ + "/data",
                                              "--hot-bytes=8MiB",
                                              "--warm-bytes=0",
                                              "--cold-bytes=8GiB",
                                              "--devices=host",
                                              "--flush-interval=100ms",
                                              "--log-level=warn"};
    const std::string log = directory_ + "/daemon.log";
    while (random_() % 100 < kKilledStartsPercent) {
      const DaemonProcess killed(command, log);
      std::this_thread::sleep_for(std::chrono::milliseconds(random_() % kKilledStartMillisMax));
      ++killed_starts_;
    }
    auto daemon = std::make_unique<DaemonProcess>(command, log);
    if (daemon->WaitReady(kReadySecondsMax)) {
      run_.revision_floor = run_.greatest_revision.load();
      run_.killed_at = 0;
      return daemon;
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
    return nullptr;
  }

  void RegisterLayouts(const std::string& address) {
    const bench::Connection connection(address);
    for (size_t i = 0; i < kLayoutBytes.size(); ++i) run_.layouts[i] = connection.RegisterLayout(kLayoutBytes[i]);
  }

  template <typename Work>
  std::vector<std::thread> ForEachWorker(Work work) {
    std::vector<std::thread> threads;
    for (const auto& worker : workers_) threads.emplace_back([&worker = *worker, work] { work(&worker); });
    return threads;
  }

  void Verify(const std::string& address) {
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

  void LoadAndKill(DaemonProcess* daemon) {
    const auto delay = std::chrono::milliseconds(kKillMillisMin + random_() % (kKillMillisMax - kKillMillisMin + 1));
    std::vector<std::thread> threads =
        ForEachWorker([address = daemon->address()](Worker* worker) { worker->Load(address); });
    std::this_thread::sleep_for(delay);
    run_.killed_at = std::chrono::steady_clock::now().time_since_epoch().count();
    daemon->Kill();
    for (std::thread& thread : threads) thread.join();
    const int status = daemon->Wait();
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
      run_.Report(Violation::kUnexpected, "statepoold", "alive until it is killed",
                  absl::StrCat("waitpid status ", status));
    }
    kills_in_flight_ +=
        std::any_of(workers_.begin(), workers_.end(), [](const auto& worker) { return worker->durable_in_flight(); });
  }

  const std::string daemon_, directory_;
  const int cycles_;
  const bool stop_at_first_;
  Run run_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<Worker>> workers_;
  int kills_in_flight_ = 0, failed_starts_ = 0, killed_starts_ = 0;
};

}  // namespace
}  // namespace statepool::crash

int main(int argc, char** argv) { return statepool::crash::Harness(statepool::bench::Arguments(argc, argv)).Main(); }
