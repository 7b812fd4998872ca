// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A disk that fills up and is freed, again and again. While it is full reads go on and durable writes are refused with
// COLD_FULL; once there is space the daemon goes on by itself; a refused write never shows, not after kill -9 either.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>

#include "tests/fault/daemon.h"
#include "tests/fault/disk.h"
#include "tests/fault/ledger.h"
#include "tests/fault/parts.h"

namespace statepool::fault {
namespace {

using crash::Violation;

constexpr int kNames = 24;
constexpr int kWritesWhileFree = 10, kWritesUntilFull = 400, kWritesWhileFull = 4, kReadsWhileFull = 8;
constexpr uint64_t kLeftBytesMax = 1 << 20;
constexpr double kResumeSecondsMax = 20;
constexpr auto kRetryAfter = std::chrono::seconds(1);
constexpr int kKilledPercent = 20;  // of the full disks also see a kill -9 and a start

bool WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  return file.good();
}

// A file system of this process and its children alone; it goes with them.
void MountTmpfs(const std::string& path) {
  const uid_t user = getuid();
  const gid_t group = getgid();
  if (unshare(CLONE_NEWNS) != 0) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) bench::NotMeasurable("no mount namespace for the tmpfs");
    WriteFile("/proc/self/setgroups", "deny");
    if (!WriteFile("/proc/self/uid_map", absl::StrCat("0 ", user, " 1\n")) ||
        !WriteFile("/proc/self/gid_map", absl::StrCat("0 ", group, " 1\n")))
      bench::NotMeasurable("no user namespace for the tmpfs");
  }
  if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      mount("none", path.c_str(), "tmpfs", 0, "size=192m") != 0)
    bench::NotMeasurable(absl::StrCat("mounting a tmpfs: ", std::strerror(errno)));
}

class FullDisk {
 public:
  explicit FullDisk(const bench::Arguments& arguments)
      : tmpfs_(arguments.Number("tmpfs") != 0),
        cycles_(static_cast<int>(arguments.Number("cycles"))),
        stop_at_first_(arguments.Number("stop-at-first") != 0),
        log_(arguments.Text("directory") + "/daemon.log"),
        run_(static_cast<uint64_t>(arguments.Number("seed"))),
        random_(run_.seed),
        disk_(arguments.Text("directory"), arguments.Text("shim"), run_.seed),
        ballast_(disk_.data() + "/ballast"),
        ledger_(&run_, kNames) {
    if (tmpfs_) MountTmpfs(disk_.data());
    command_ = DaemonCommand(arguments.Text("daemon"), disk_.data());
    if (!tmpfs_) command_ = disk_.Behind(command_, /*journal=*/false);
  }

  int Main() {
    Free();
    if (!Start() || ledger_.RegisterLayouts() != Answer::kAcked) bench::NotMeasurable("the daemon did not start");
    int done = 0;
    for (; done < cycles_ && GoOn(); ++done) {
      run_.cycle = done + 1;
      Cycle();
      if ((done + 1) % 20 == 0) {
        std::fprintf(stderr, "fault enospc: cycle %d of %d, %lld violations\n", done + 1, cycles_,
                     static_cast<long long>(run_.violations()));
      }
    }
    if (GoOn()) {
      const int end = EndOf(daemon_->Stop(kStopSeconds));
      if (end != 0) Unexpected("exit 0 after SIGTERM", absl::StrCat(end));
    }
    daemon_.reset();
    if (resume_ms_.empty()) resume_ms_.push_back(0);
    ViolationFigure(tmpfs_ ? "fault/enospc/tmpfs" : "fault/enospc/wrapper", run_, 0, done)
        .Set("times_full", times_full_)
        .Set("refused", static_cast<double>(ledger_.refused()))
        .Set("reads_while_full", reads_)
        .Set("acked_while_full", acked_while_full_)
        .Set("killed_while_full", killed_)
        .Set("starts_refused", starts_refused_)
        .Set("restarted", restarted_)
        .Set("resume_ms_p50", bench::Median(resume_ms_))
        .Set("resume_ms_max", *std::max_element(resume_ms_.begin(), resume_ms_.end()))
        .Print();
    return 0;
  }

 private:
  bool GoOn() const { return !over_ && !(stop_at_first_ && run_.violations() > 0); }
  uint64_t Below(uint64_t n) { return random_() % n; }
  void Unexpected(const std::string& expected, const std::string& got) {
    run_.Report(Violation::kUnexpected, "statepoold", expected, got);
  }

  void Free() {
    is_free_ = true;
    if (tmpfs_) {
      unlink(ballast_.c_str());
    } else {
      disk_.control()->free_bytes = kUnlimited;
    }
  }

  void Fill() {
    is_free_ = false;
    const uint64_t left = Below(kLeftBytesMax);
    if (!tmpfs_) {
      hides_ = Below(2) == 0;  // as a quota does, or the daemon may see it coming
      disk_.control()->hides_free = hides_;
      disk_.control()->free_bytes = static_cast<int64_t>(left);
      return;
    }
    const int fd = open(ballast_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    const std::string block(64 << 10, 'b');
    off_t size = 0;
    for (ssize_t put = 0; (put = write(fd, block.data(), block.size())) > 0;) size += put;
    if (ftruncate(fd, std::max<off_t>(0, size - static_cast<off_t>(left))) != 0) bench::NotMeasurable("ftruncate");
    close(fd);
  }

  // False: it ended, with `end`.
  bool TryStart(int* end) {
    daemon_ = std::make_unique<crash::DaemonProcess>(command_, log_);
    if (!daemon_->WaitReady(kReadySeconds)) {
      *end = EndOf(daemon_->Stop(1));
      return false;
    }
    ledger_.Connect(daemon_->address());
    return true;
  }
  bool Start() {
    int end = 0;
    if (TryStart(&end)) return true;
    over_ = true;
    Unexpected("a daemon that serves", absl::StrCat("exit ", end));
    return false;
  }

  // One write of a random kind. With kFailed the daemon says that its disk failed, which is wrong here.
  Answer Write(bool sync_only) {
    const size_t i = Below(ledger_.size());
    const uint64_t kind = Below(100);
    if (ledger_.uncertain(i)) return Answer::kAcked;
    Answer answer;
    if (kind < 10 && ledger_.exists(i) && ledger_.size() < 60) {
      answer = ledger_.Fork(i, 3);
    } else if (kind < 25 && ledger_.exists(i)) {
      answer = ledger_.Delete(i);
    } else {
      answer = ledger_.Set(i, sync_only || kind < 90 ? v1::SYNC : v1::WRITE_BEHIND);
    }
    return Judge(answer);
  }

  Answer Judge(Answer answer) {
    if (answer == Answer::kFailed && is_free_ && hides_) return answer;  // Resume looks
    if (answer == Answer::kFull && (ledger_.reason() != "COLD_FULL" || !ledger_.has_retry()))
      Unexpected("COLD_FULL with a retry hint", ledger_.reason());
    if (answer == Answer::kFailed || answer == Answer::kDamaged) {
      over_ = true;
      Unexpected("COLD_FULL", absl::StrCat("UNAVAILABLE or DATA_LOSS, reason ", ledger_.reason()));
    }
    return answer;
  }

  void Look(int times) {
    for (int i = 0; i < times && !over_; ++i) {
      const Answer answer = ledger_.Look(Below(ledger_.size()));
      if (answer != Answer::kAcked && answer != Answer::kWrong)
        Unexpected("a state read while the disk is full", ledger_.reason());
      ++reads_;
    }
  }

  void Resume() {
    const bench::Stopwatch watch;
    for (;;) {
      // A Set: what has no record is deleted without the disk.
      const Answer answer = Judge(ledger_.Set(Below(kNames), v1::SYNC));
      if (answer == Answer::kAcked || over_) break;
      if (answer == Answer::kFailed) {  // RocksDB could not go on: the daemon ends, and the next start must be good
        ++restarted_;
        const int end = EndOf(daemon_->Wait());
        if (end != 3) Unexpected("exit 3", absl::StrCat("exit ", end));
        if (!Start()) return;
        run_.revision_floor = run_.greatest_revision.load();
        if (!ledger_.Verify()) over_ = true, Unexpected("all names", "the daemon ended");
        continue;
      }
      if (watch.microseconds() / 1e6 > kResumeSecondsMax) {
        over_ = true;
        return Unexpected("writes soon after there was space", "COLD_FULL");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    resume_ms_.push_back(watch.microseconds() / 1e3);
  }

  void Cycle() {
    for (int i = 0; i < kWritesWhileFree && GoOn(); ++i) {
      if (Write(/*sync_only=*/false) != Answer::kFull) continue;
      // What waited for the full disk may still be on its way: the hint says when to come back.
      std::this_thread::sleep_for(kRetryAfter);
      if (GoOn() && Write(/*sync_only=*/false) == Answer::kFull)
        Unexpected("a write while there is space", "COLD_FULL");
    }
    Fill();
    bool full = false;
    for (int i = 0; i < kWritesUntilFull && !full && GoOn(); ++i) full = Write(/*sync_only=*/true) == Answer::kFull;
    if (!GoOn()) return;
    if (!full) Unexpected("COLD_FULL at some time", "400 writes");
    times_full_ += full;
    Look(kReadsWhileFull);
    for (int i = 0; i < kWritesWhileFull && GoOn(); ++i) {
      acked_while_full_ += Write(/*sync_only=*/true) == Answer::kAcked;
      Look(1);
    }
    if (!GoOn()) return;
    if (Below(100) < kKilledPercent) {
      ++killed_;
      daemon_->Kill();
      daemon_->Wait();
      int end = 0;
      const bool started = TryStart(&end);
      if (!started) {
        ++starts_refused_;
        if (end != 2) Unexpected("exit 2: no space to start", absl::StrCat("exit ", end));
        Free();
        if (!Start()) return;
      }
      run_.revision_floor = run_.greatest_revision.load();
      if (!ledger_.Verify()) over_ = true, Unexpected("all names", "the daemon ended");
    }
    Free();
    Resume();
  }

  const bool tmpfs_;
  const int cycles_;
  const bool stop_at_first_;
  const std::string log_;
  crash::Run run_;
  std::mt19937_64 random_;
  Disk disk_;
  const std::string ballast_;
  Ledger ledger_;
  std::vector<std::string> command_;
  std::unique_ptr<crash::DaemonProcess> daemon_;
  bool over_ = false, hides_ = false, is_free_ = true;
  int times_full_ = 0, reads_ = 0, acked_while_full_ = 0, killed_ = 0, starts_refused_ = 0, restarted_ = 0;
  std::vector<double> resume_ms_;
};

}  // namespace

int NoSpace(const bench::Arguments& arguments) { return FullDisk(arguments).Main(); }

}  // namespace statepool::fault
