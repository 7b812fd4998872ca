// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// One I/O call after the other fails with EIO, once or from then on, in a run that starts on a directory left by a
// kill, writes, reads, and stops. The daemon may refuse to start (exit 2), answer with errors, or end (exit 3). What it
// acknowledged is there on the next start, also when the power went with it: what was written when a sync failed may
// be gone then.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <random>

#include "tests/fault/daemon.h"
#include "tests/fault/disk.h"
#include "tests/fault/ledger.h"
#include "tests/fault/parts.h"

namespace statepool::fault {
namespace {

namespace fs = std::filesystem;
using crash::Violation;

constexpr int kNames = 10;
constexpr int kRounds = 3;

class IoErrors {
 public:
  explicit IoErrors(const bench::Arguments& arguments)
      : from_(arguments.Number("from")),
        step_(arguments.Number("step")),
        sticky_(arguments.Number("sticky") != 0),
        stop_at_first_(arguments.Number("stop-at-first") != 0),
        root_(arguments.Text("directory")),
        log_(root_ + "/daemon.log"),
        run_(static_cast<uint64_t>(arguments.Number("seed"))),
        disk_(root_, arguments.Text("shim"), run_.seed),
        command_(disk_.Behind(DaemonCommand(arguments.Text("daemon"), disk_.data()))),
        start_(&run_, kNames) {}

  int Main() {
    Prepare();
    const uint64_t all = One(0);
    if (run_.violations() != 0) bench::NotMeasurable("the run without faults is not right");
    int64_t done = 0;
    for (uint64_t at = static_cast<uint64_t>(from_); at <= all && !(stop_at_first_ && run_.violations() > 0);
         at += static_cast<uint64_t>(step_)) {
      One(at);
      if (++done % 50 == 0) {
        std::fprintf(stderr, "fault eio: call %llu of %llu, %lld violations\n", static_cast<unsigned long long>(at),
                     static_cast<unsigned long long>(all), static_cast<long long>(run_.violations()));
      }
    }
    ViolationFigure(sticky_ ? "fault/eio/from" : "fault/eio/once", run_, 0, done)
        .Set("calls", static_cast<double>(all))
        .Set("reached", reached_)
        .Set("exit_0", ends_[0])
        .Set("exit_2", ends_[2])
        .Set("exit_3", ends_[3])
        .Set("with_errors", with_errors_)
        .Print();
    return 0;
  }

 private:
  void Unexpected(uint64_t at, const std::string& expected, const std::string& got) {
    run_.Report(Violation::kUnexpected, absl::StrCat("call ", at), expected, got);
  }

  // The directory that every run starts on: tables and a log with something in it.
  void Prepare() {
    disk_.Reset();
    for (int round = 0; round < 2; ++round) {
      crash::DaemonProcess daemon(command_, log_);
      if (!daemon.WaitReady(kReadySeconds)) bench::NotMeasurable("the daemon did not start");
      start_.Connect(daemon.address());
      bool good = start_.RegisterLayouts() == Answer::kAcked;
      for (size_t i = 0; i < kNames; ++i) good = good && start_.Set(i, v1::SYNC) == Answer::kAcked;
      good = good && start_.Fork(0, 3) == Answer::kAcked && start_.Delete(1) == Answer::kAcked;
      if (!good) bench::NotMeasurable("the first writes failed");
      if (round == 0) {
        daemon.Stop(kStopSeconds);
      } else {
        daemon.Kill();
        daemon.Wait();
      }
    }
    fs::copy(disk_.data(), root_ + "/start", fs::copy_options::recursive);
  }

  // The work of one run; it goes on after errors. Gives whether there were some.
  bool Work(Ledger* ledger) {
    bool errors = false;
    const auto tell = [&](Answer answer) { errors = errors || answer != Answer::kAcked; };
    for (int round = 0; round < kRounds; ++round) {
      for (size_t i = 0; i < kNames; ++i) {
        if (!ledger->uncertain(i))
          tell(ledger->Set(i, (i + static_cast<size_t>(round)) % 3 == 0 ? v1::WRITE_BEHIND : v1::SYNC));
        const size_t other = (i * 7 + 3) % ledger->size();
        if (!ledger->uncertain(other)) tell(ledger->Look(other));
      }
      const size_t source = static_cast<size_t>(round) + 2;
      if (!ledger->uncertain(source) && ledger->exists(source)) tell(ledger->Fork(source, 3));
      if (!ledger->uncertain(0) && ledger->exists(0)) tell(ledger->Delete(0));
      tell(ledger->Flush());
    }
    return errors;
  }

  // Gives how many calls there were. at 0: none fails.
  uint64_t One(uint64_t at) {
    run_.cycle = static_cast<int>(at);
    run_.greatest_revision = 0;
    run_.revision_floor = 0;
    disk_.Replace(root_ + "/start");
    Ledger ledger(start_);
    disk_.Reset();
    Control* const control = disk_.control();
    control->count_reads = 1;
    control->at = at;
    if (at != 0) control->action = sticky_ ? Action::kFailFrom : Action::kFail;
    int end;
    {
      crash::DaemonProcess daemon(command_, log_);
      const bool ready = daemon.WaitReady(kReadySeconds);
      if (ready) {
        ledger.Connect(daemon.address());
        with_errors_ += Work(&ledger);
      }
      end = EndOf(daemon.Stop(ready ? kStopSeconds : 5));
      if (!ready && end != 2) Unexpected(at, "exit 2 of a daemon that does not start", absl::StrCat("end ", end));
      if (ready && end != 0 && end != 3) Unexpected(at, "exit 0 or 3", absl::StrCat("end ", end));
    }
    ++ends_[end];
    const uint64_t calls = control->calls;
    reached_ += control->reached != 0;
    disk_.Cut(at == 0 ? Keep::kAll : Keep::kSome, /*compare=*/false);
    disk_.Reset();
    crash::DaemonProcess daemon(command_, log_);
    if (!daemon.WaitReady(kReadySeconds)) {
      Unexpected(at, "a start once the disk is good again", absl::StrCat("end ", EndOf(daemon.Stop(5))));
      return calls;
    }
    ledger.Connect(daemon.address());
    if (!ledger.Verify()) Unexpected(at, "all names", "UNAVAILABLE");
    return calls;
  }

  const int64_t from_, step_;
  const bool sticky_, stop_at_first_;
  const std::string root_, log_;
  crash::Run run_;
  Disk disk_;
  const std::vector<std::string> command_;
  Ledger start_;
  std::map<int, int> ends_;
  int reached_ = 0, with_errors_ = 0;
};

}  // namespace

int IoError(const bench::Arguments& arguments) { return IoErrors(arguments).Main(); }

}  // namespace statepool::fault
