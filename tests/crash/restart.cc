// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// How long a start takes after kill -9 under write load, with a directory full of durable state and a cold page cache.
//
//   statepool_crash_restart --daemon=BINARY --directory=DIR --bytes=N --restarts=N --seed=N
//
// Fills the directory with N bytes of states of 16 KB to 20 MB and some forks. Then again and again: replaces states
// from several threads, kills the daemon, puts the directory's files out of the page cache, and measures from exec to
// the line that says it serves. Right after that one Get must give the bytes of a write that may be there. Prints one
// line of JSON. Exit: 0 measured, 2 not measurable.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <thread>

#include "tests/bench/measure.h"
#include "tests/crash/daemon_process.h"
#include "tests/crash/oracle.h"

namespace statepool::crash {
namespace {

namespace fs = std::filesystem;

constexpr int kThreads = 4;
constexpr int kReadySecondsMax = 60;
constexpr int kLoadMillisMin = 300, kLoadMillisMax = 3000;
constexpr int kForkEvery = 20, kChildren = 5;
constexpr double kCachedPercentMax = 5;  // of the directory, before a start: more is not cold

struct Size {
  uint64_t bytes;
  double share;  // of all bytes
};
constexpr std::array<Size, 5> kSizes = {
    {{16 << 10, 0.03}, {80'000, 0.12}, {500'000, 0.2}, {4'000'000, 0.3}, {20'000'000, 0.35}}};

// A sequence, and which of its writes a restart may show: the newest that is known to be durable, and what came later.
struct Name {
  std::string name;
  size_t size;  // of kSizes
  std::vector<Content> possible;
};

class Restarts {
 public:
  explicit Restarts(const bench::Arguments& arguments)
      : directory_(arguments.Text("directory")),
        binary_(arguments.Text("daemon")),
        bytes_(arguments.Number("bytes")),
        restarts_(static_cast<int>(arguments.Number("restarts"))),
        seed_(static_cast<uint64_t>(arguments.Number("seed"))),
        random_(seed_) {}

  int Main() {
    for (size_t size = 0; size < kSizes.size(); ++size) {
      const double bytes = static_cast<double>(bytes_) * kSizes[size].share;
      for (int64_t i = 0; i < 1 + static_cast<int64_t>(bytes / static_cast<double>(kSizes[size].bytes)); ++i) {
        names_.push_back({absl::StrCat("restart/", size, "/", i), size, {}});
        stored_ += static_cast<int64_t>(kSizes[size].bytes);
      }
    }
    std::shuffle(names_.begin(), names_.end(), random_);
    if (!Start()) bench::NotMeasurable("the daemon did not get ready");
    Fill();
    for (int i = 0; i < restarts_; ++i) {
      LoadAndKill();
      Evict();
      if (!Start()) {
        std::fprintf(stderr, "violation: failed start: seed %llu restart %d\n", static_cast<unsigned long long>(seed_),
                     i);
        ++failed_starts_;
        break;
      }
      CheckOne();
    }
    if (failed_starts_ == 0) CheckAllListed();
    daemon_.reset();
    Print();
    return 0;
  }

 private:
  // Measured from before the fork to the line.
  bool Start() {
    const bench::Stopwatch since_exec;
    daemon_ = std::make_unique<DaemonProcess>(
        std::vector<std::string>{binary_, "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0",
                                 "--data-dir=" + directory_ + "/data", "--hot-bytes=256MiB", "--cold-bytes=16GiB",
                                 "--devices=host", "--log-level=warn"},
        directory_ + "/daemon.log");
    if (!daemon_->WaitReady(kReadySecondsMax)) return false;
    ready_at_us_.push_back(since_exec.microseconds());
    since_exec_ = since_exec;
    return true;
  }

  template <typename Work>
  void InThreads(Work work) {
    std::vector<std::thread> threads;
    for (size_t id = 0; id < kThreads; ++id) threads.emplace_back([=] { work(id); });
    for (std::thread& thread : threads) thread.join();
  }

  v1::SetRequest NewSet(const Name& name, Content content, v1::Durability durability) const {
    v1::SetRequest request;
    request.set_sequence(name.name);
    request.set_layout(layouts_[name.size]);
    request.set_position(content);
    request.set_data(StateBytes(seed_, content, kSizes[name.size].bytes));
    request.mutable_options()->set_durability(durability);
    return request;
  }

  void Fill() {
    const bench::Connection connection(daemon_->address());
    for (size_t size = 0; size < kSizes.size(); ++size) layouts_[size] = connection.RegisterLayout(kSizes[size].bytes);
    InThreads([this](size_t id) {
      const bench::Connection own(daemon_->address());
      for (size_t i = id; i < names_.size(); i += kThreads) {
        Name& name = names_[i];
        name.possible = {++contents_};
        own.Call(&v1::StatePool::Stub::Set, NewSet(name, name.possible[0], v1::SYNC));
        if (i % kForkEvery != 0) continue;
        v1::ForkRequest fork;
        fork.mutable_source()->set_sequence(name.name);
        fork.mutable_options()->set_durability(v1::SYNC);
        for (int child = 0; child < kChildren; ++child) fork.add_children(absl::StrCat(name.name, "/child/", child));
        own.Call(&v1::StatePool::Stub::Fork, fork);
        children_ += kChildren;
      }
    });
    ready_at_us_.clear();  // of the start with nothing there
  }

  // Each thread replaces states of its own names, half of them with SYNC, until the daemon is gone.
  void LoadAndKill() {
    std::atomic<bool> killed = false;
    const uint64_t seed = random_();
    std::thread killer([&, millis = kLoadMillisMin + random_() % (kLoadMillisMax - kLoadMillisMin + 1)] {
      std::this_thread::sleep_for(std::chrono::milliseconds(millis));
      killed = true;
      daemon_->Kill();
    });
    InThreads([&](size_t id) {
      const bench::Connection own(daemon_->address());
      std::mt19937_64 random(seed + id);
      while (true) {
        const size_t in_all = (names_.size() - id + kThreads - 1) / kThreads;
        const bool small = random() % 2 == 0;  // these fill the log, which a start reads
        size_t index = 0;
        do index = id + kThreads * (random() % in_all);
        while (small && names_[index].size != 0);
        Name& name = names_[index];
        const v1::Durability durability = random() % 2 == 0 ? v1::SYNC : v1::WRITE_BEHIND;
        const Content content = ++contents_;
        v1::NameInfo info;
        grpc::ClientContext context;
        const grpc::Status status = own.stub()->Set(&context, NewSet(name, content, durability), &info);
        if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) continue;
        if (status.ok() && durability == v1::SYNC) name.possible.clear();
        name.possible.push_back(content);
        if (status.ok()) {
          ++writes_;
          last_written_ = index;
          continue;
        }
        if (!killed) bench::NotMeasurable(absl::StrCat("Set failed: ", status.error_message()));
        return;
      }
    });
    killer.join();
    daemon_.reset();
  }

  // Everything of the directory out of the page cache, which kill -9 leaves warm.
  void Evict() {
    int64_t log_bytes = 0, all = 0, cached = 0;
    for (const auto& entry : fs::recursive_directory_iterator(directory_ + "/data")) {
      if (!entry.is_regular_file()) continue;
      const std::string path = entry.path();
      const auto size = static_cast<int64_t>(entry.file_size());
      if (entry.path().extension() == ".log") log_bytes += size;
      const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
      // What is dirty stays.
      if (fd < 0 || fdatasync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
        bench::NotMeasurable("putting out of the page cache: " + path);
      all += size;
      cached += CachedBytes(fd, size);
      close(fd);
    }
    log_bytes_.push_back(static_cast<double>(log_bytes));
    cached_percent_ = std::max(cached_percent_, 100.0 * static_cast<double>(cached) / static_cast<double>(all));
    if (cached_percent_ > kCachedPercentMax)
      bench::NotMeasurable(absl::StrCat("the page cache keeps ", cached_percent_, " % of the directory"));
  }

  static int64_t CachedBytes(int fd, int64_t size) {
    if (size == 0) return 0;
    constexpr int64_t kPage = 4096;
    void* const mapped = mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) bench::NotMeasurable("mmap");
    std::vector<unsigned char> pages(static_cast<size_t>((size + kPage - 1) / kPage));
    if (mincore(mapped, static_cast<size_t>(size), pages.data()) != 0) bench::NotMeasurable("mincore");
    munmap(mapped, static_cast<size_t>(size));
    return kPage * std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
  }

  void CheckOne() {
    Name& name = names_[random_() % 2 == 0 ? last_written_.load() : random_() % names_.size()];
    const bench::Connection connection(daemon_->address());
    v1::GetRequest get;
    get.mutable_name()->set_sequence(name.name);
    grpc::ClientContext context;
    v1::GetResponse got;
    const grpc::Status status = connection.stub()->Get(&context, get, &got);
    first_get_us_.push_back(since_exec_.microseconds());
    const Content content = got.info().position();
    const bool may = std::find(name.possible.begin(), name.possible.end(), content) != name.possible.end();
    if (status.ok() && may && got.data() == StateBytes(seed_, content, kSizes[name.size].bytes)) {
      name.possible = {content};
      return;
    }
    ++wrong_;
    std::fprintf(stderr, "violation: seed %llu name %s expected content %lld or one of %zu later ones, got %lld, %s\n",
                 static_cast<unsigned long long>(seed_), name.name.c_str(),
                 static_cast<long long>(name.possible.front()), name.possible.size() - 1,
                 static_cast<long long>(content), status.error_message().c_str());
  }

  void CheckAllListed() {
    const bench::Connection connection(daemon_->address());
    v1::ListRequest request;
    request.set_kind(v1::SEQUENCE);
    request.set_page_size(1000);
    int64_t listed = 0;
    do {
      const v1::ListResponse response = connection.Call(&v1::StatePool::Stub::List, request);
      listed += response.names_size();
      request.set_page_token(response.next_page_token());
    } while (!request.page_token().empty());
    if (listed == static_cast<int64_t>(names_.size()) + children_) return;
    ++wrong_;
    std::fprintf(stderr, "violation: seed %llu: %lld names of %lld\n", static_cast<unsigned long long>(seed_),
                 static_cast<long long>(listed), static_cast<long long>(names_.size()) + children_.load());
  }

  void Print() const {
    bench::Figure figure("crash/restart");
    if (ready_at_us_.empty()) {
      figure.Set("value", kReadySecondsMax).Text("unit", "s").Set("n", 0);
    } else {
      const double p99 = bench::Quantile(ready_at_us_, 0.99) / 1e6;
      figure.Set("value", failed_starts_ > 0 ? kReadySecondsMax : p99)
          .Text("unit", "s")
          .Set("n", static_cast<double>(ready_at_us_.size()))
          .Set("p50", bench::Median(ready_at_us_) / 1e6)
          .Set("p99", p99)
          .Set("first_get_p50", bench::Median(first_get_us_) / 1e6)
          .Set("first_get_p99", bench::Quantile(first_get_us_, 0.99) / 1e6);
    }
    figure.Goal("value", 2)
        .Set("bytes", static_cast<double>(stored_))
        .Set("names", static_cast<double>(static_cast<int64_t>(names_.size()) + children_))
        .Set("writes", static_cast<double>(writes_))
        .Set("log_bytes_p50", bench::Median(log_bytes_))
        .Set("log_bytes_max", *std::max_element(log_bytes_.begin(), log_bytes_.end()))
        .Text("page_cache", "cold")
        .Set("cached_percent_max", cached_percent_)
        .Set("wrong", wrong_)
        .Set("failed_starts", failed_starts_)
        .Print();
  }

  const std::string directory_, binary_;
  const int64_t bytes_;
  const int restarts_;
  const uint64_t seed_;
  std::mt19937_64 random_;
  std::array<std::string, kSizes.size()> layouts_;
  std::vector<Name> names_;
  std::unique_ptr<DaemonProcess> daemon_;
  bench::Stopwatch since_exec_;
  std::atomic<Content> contents_{0};
  std::atomic<size_t> last_written_{0};
  std::atomic<int64_t> writes_{0}, children_{0};
  int64_t stored_ = 0;
  int wrong_ = 0, failed_starts_ = 0;
  double cached_percent_ = 0;
  std::vector<double> ready_at_us_, first_get_us_, log_bytes_;
};

}  // namespace
}  // namespace statepool::crash

int main(int argc, char** argv) { return statepool::crash::Restarts(statepool::bench::Arguments(argc, argv)).Main(); }
