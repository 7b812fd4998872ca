// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Bytes flipped and files cut short in a data directory at rest. The daemon may refuse to start, and a name may say
// that it is damaged or lost; it never shows a state that is not the one acknowledged last.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <map>
#include <random>

#include "absl/strings/match.h"
#include "tests/fault/daemon.h"
#include "tests/fault/ledger.h"
#include "tests/fault/parts.h"

namespace statepool::fault {
namespace {

namespace fs = std::filesystem;

constexpr int kNames = 16;
// Of files whose damage does not hide that of others.
constexpr uint64_t kTableDamagesMax = 8, kBlobDamagesMax = 24;
constexpr int kCutPercent = 30;
constexpr std::array<const char*, 11> kKinds = {"CURRENT", "MANIFEST", "OPTIONS", "IDENTITY", "LOCK", "WITNESS",
                                                "SYNCED",  ".log",     ".sst",    ".blob",    ".img"};

// 0 after an orderly stop, 1 after a kill.
constexpr std::array<const char*, 2> kStates = {"stopped", "killed"};

bool IsOfKind(const std::string& name, const std::string& kind) {
  return kind[0] == '.' ? absl::EndsWith(name, kind) : absl::StartsWith(name, kind);
}

class Rotting {
 public:
  explicit Rotting(const bench::Arguments& arguments)
      : damages_(arguments.Number("damages")),
        stop_at_first_(arguments.Number("stop-at-first") != 0),
        root_(arguments.Text("directory")),
        data_(root_ + "/data"),
        log_(root_ + "/daemon.log"),
        run_(static_cast<uint64_t>(arguments.Number("seed"))),
        random_(run_.seed),
        command_(DaemonCommand(arguments.Text("daemon"), data_)) {}

  int Main() {
    for (size_t i = 0; i < kStates.size(); ++i) Prepare(i);
    int64_t done = 0;
    for (int64_t next = 500; done < damages_ && !(stop_at_first_ && bad() > 0);) {
      done += One();
      if (done < next) continue;
      next += 500;
      std::fprintf(stderr, "fault rot: %lld of %lld damages, %d starts, %lld violations\n",
                   static_cast<long long>(done), static_cast<long long>(damages_), starts_,
                   static_cast<long long>(bad()));
    }
    bench::Figure figure = ViolationFigure("fault/rot", run_, bad(), done);
    figure.Set("starts", starts_)
        .Set("crashed", crashed_)
        .Set("hung", hung_)
        .Set("wrong_bytes", sights_[Sight::kWrongBytes])
        .Set("stale", sights_[Sight::kStale])
        .Set("gone", sights_[Sight::kGone])
        .Set("right", sights_[Sight::kRight])
        .Set("told", sights_[Sight::kTold])
        .Set("starts_refused", refused_);
    for (const auto& [kind, count] : by_kind_) figure.Set("damaged_" + kind, count);
    for (const auto& [kind, count] : bad_by_kind_) figure.Set("bad_" + kind, count);
    figure.Print();
    return 0;
  }

 private:
  uint64_t Below(uint64_t n) { return random_() % n; }
  int64_t bad() const {
    int64_t sum = crashed_ + hung_;
    for (const Sight sight : {Sight::kWrongBytes, Sight::kStale, Sight::kGone}) {
      if (const auto it = sights_.find(sight); it != sights_.end()) sum += it->second;
    }
    return sum;
  }

  // Several runs, so that there are tables, blobs, and a log, with older states of every name in them.
  void Prepare(size_t state) {
    fs::remove_all(data_);
    auto ledger = std::make_unique<Ledger>(&run_, kNames);
    run_.greatest_revision = 0;
    run_.revision_floor = 0;
    const int rounds = 3;
    for (int round = 0; round < rounds; ++round) {
      crash::DaemonProcess daemon(command_, log_);
      if (!daemon.WaitReady(kReadySeconds)) bench::NotMeasurable("the daemon did not start");
      ledger->Connect(daemon.address());
      bool good = ledger->RegisterLayouts() == Answer::kAcked;
      for (size_t i = 0; i < kNames; ++i) {
        if (round == 0 || Below(2) == 0) good = good && ledger->Set(i, v1::SYNC) == Answer::kAcked;
      }
      good = good && ledger->Fork(Below(kNames - rounds), 3) == Answer::kAcked;  // of one that is never deleted
      if (round > 0) good = good && ledger->Delete(kNames - static_cast<size_t>(round)) == Answer::kAcked;
      if (!good) bench::NotMeasurable("the first writes failed");
      if (state == 0 || round + 1 < rounds) {
        daemon.Stop(kStopSeconds);
      } else {
        daemon.Kill();
        daemon.Wait();
      }
    }
    fs::copy(data_, root_ + "/" + kStates[state], fs::copy_options::recursive);
    ledgers_.push_back(std::move(ledger));
  }

  std::vector<std::string> Files(const std::string& kind) const {
    std::vector<std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(data_)) {
      if (entry.is_regular_file() && entry.file_size() > 0 && IsOfKind(entry.path().filename(), kind))
        files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
  }

  std::string Damage(const std::string& path) {
    const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) bench::NotMeasurable("damaging " + path);
    const off_t at = info.st_size == 0 ? 0 : static_cast<off_t>(Below(static_cast<uint64_t>(info.st_size)));
    std::string what = absl::StrCat(fs::path(path).filename().string(), " ");
    bool good = true;
    if (info.st_size == 0 || Below(100) < kCutPercent) {
      good = ftruncate(fd, at) == 0;
      absl::StrAppend(&what, "cut at ", at, " of ", info.st_size);
    } else {
      char byte = 0;
      good = pread(fd, &byte, 1, at) == 1;
      byte = static_cast<char>(byte ^ static_cast<char>(1 + Below(255)));
      good = good && pwrite(fd, &byte, 1, at) == 1;
      absl::StrAppend(&what, "flipped at ", at, " of ", info.st_size);
    }
    if (!good) bench::NotMeasurable("damaging " + path);
    close(fd);
    return what;
  }

  void Bad(size_t state, const std::string& kind, const std::string& damage, const std::string& name,
           const std::string& what) {
    ++bad_by_kind_[kind];
    if (++told_ > 50) return;
    std::fprintf(stderr, "violation: rot: seed %llu start %d, %s, %s: %s %s\n",
                 static_cast<unsigned long long>(run_.seed), starts_, kStates[state], damage.c_str(), name.c_str(),
                 what.c_str());
  }

  // One start on a damaged directory; gives how many damages it had.
  int64_t One() {
    const size_t state = Below(kStates.size());
    fs::remove_all(data_);
    fs::copy(root_ + "/" + kStates[state], data_, fs::copy_options::recursive);
    std::string kind;
    std::vector<std::string> files;
    while (files.empty()) {
      kind = kKinds[Below(kKinds.size())];
      files = Files(kind);
      if (kind == "LOCK") files = {data_ + "/LOCK"};
    }
    const uint64_t most = kind == ".sst" ? kTableDamagesMax : kind == ".blob" || kind == ".img" ? kBlobDamagesMax : 1;
    const uint64_t damages = 1 + Below(most);
    std::string damage;
    for (uint64_t i = 0; i < damages; ++i)
      absl::StrAppend(&damage, i == 0 ? "" : "; ", Damage(files[Below(files.size())]));
    const std::string label = kind[0] == '.' ? kind.substr(1) : kind;
    by_kind_[label] += static_cast<double>(damages);

    ++starts_;
    crash::DaemonProcess daemon(command_, log_);
    if (!daemon.WaitReady(kReadySeconds)) {
      const int end = EndOf(daemon.Stop(1));
      if (end == 2) {
        ++refused_;
      } else if (end == 1000 + SIGKILL) {
        ++hung_, Bad(state, label, damage, "statepoold", "hung");
      } else {
        ++crashed_, Bad(state, label, damage, "statepoold", absl::StrCat("ended with ", end));
      }
      return static_cast<int64_t>(damages);
    }
    Ledger& ledger = *ledgers_[state];
    ledger.Connect(daemon.address());
    for (size_t i = 0; i < ledger.size(); ++i) {
      const Sight sight = ledger.See(i);
      ++sights_[sight];
      if (sight == Sight::kWrongBytes) Bad(state, label, damage, ledger.name(i), "wrong bytes");
      if (sight == Sight::kStale) Bad(state, label, damage, ledger.name(i), "an older state, or one that was deleted");
      if (sight == Sight::kGone) Bad(state, label, damage, ledger.name(i), "said never to have been there");
    }
    daemon.Kill();
    const int end = EndOf(daemon.Wait());
    if (end != 1000 + SIGKILL) ++crashed_, Bad(state, label, damage, "statepoold", absl::StrCat("ended with ", end));
    return static_cast<int64_t>(damages);
  }

  const int64_t damages_;
  const bool stop_at_first_;
  const std::string root_, data_, log_;
  crash::Run run_;
  std::mt19937_64 random_;
  const std::vector<std::string> command_;
  std::vector<std::unique_ptr<Ledger>> ledgers_;
  std::map<Sight, double> sights_;
  std::map<std::string, double> by_kind_, bad_by_kind_;
  int starts_ = 0, refused_ = 0, crashed_ = 0, hung_ = 0, told_ = 0;
};

}  // namespace

int Rot(const bench::Arguments& arguments) { return Rotting(arguments).Main(); }

}  // namespace statepool::fault
