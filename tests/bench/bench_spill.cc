// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figures `spill*`, `restore*`, `hot_get_p99_*`, `write_amplification*`: how fast states go to disk and come back,
// beside what the disk itself does.
//
//   statepool_bench_spill --part=PART --server=A --pid=N --data-dir=DIR --directory=DIR --seed=N --rounds=N --block=N
//     spill --idle_ms=N      a block of N states is more than twice what the daemon may have in memory
//     restore --states=N     after `spill`: N states that it wrote, all of them cold
//     flush                  a block fits the memory, and the daemon writes nothing before it must
//     overwrite              of twice a block of names
//
// States have 20 MiB, and differ in one of 320 layers. So that the disk is what is measured and not the transport,
// `spill`, `flush` and `restore` send and take that layer only (`select`): an edited fork is a new image, which the
// daemon makes, hashes and writes whole; a Get of one layer brings the whole image back. `spill_set` sends states
// whole.
//
// Blocks of ours and of the disk's alternate. The disk's: a new file in the same file system, written with O_DIRECT in
// pieces of 1 MiB, fdatasync every 64 MiB (as much as the daemon commits at a time); ranges as long as a state, read
// with O_DIRECT in pieces of 1 MiB by as many readers as ours. Before each block the daemon has nothing left to write
// and the file system is synced; before a block of reads the page cache is without the daemon's files, and mincore says
// so. What the daemon has really read and written is told by the kernel (/proc/PID/io): bytes that did not come from
// the disk, or never went there, are not measured.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <optional>
#include <thread>

#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

constexpr uint64_t kLayerBytes = 64 << 10, kLayers = 320, kStateBytes = kLayerBytes * kLayers;
constexpr uint64_t kHotStateBytes = 80'000;
constexpr uint64_t kPieceBytes = 1 << 20, kGroupBytes = 64 << 20;
constexpr size_t kClients = 4;  // that write, or read, at a time
constexpr double kReallyMin = 0.95;
constexpr double kMB = 1e6;
constexpr auto kHotPause = std::chrono::milliseconds(2);  // a Get so often costs the others little

struct DiskBytes {
  double read = 0, written = 0;
};

// A block of ours: from its first call until all is on disk (or read), and until the daemon writes no more.
struct Block {
  double us = 0, settled_us = 0;
  DiskBytes disk;
};

void Require(bool condition, absl::string_view what) {
  if (!condition) NotMeasurable(absl::StrCat(what, ": ", std::strerror(errno)));
}

// work(item) for each, by `threads` of them together; gives microseconds.
double Together(size_t threads, size_t items, const std::function<void(size_t thread, size_t item)>& work) {
  const Stopwatch watch;
  std::atomic<size_t> next{0};
  std::vector<std::thread> all;
  for (size_t t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      for (size_t i = next++; i < items; i = next++) work(t, i);
    });
  }
  for (std::thread& thread : all) thread.join();
  return watch.microseconds();
}

// Bytes a second, in MB, of blocks of `bytes` that took so many microseconds.
std::vector<double> Rates(double bytes, const std::vector<double>& us) {
  std::vector<double> rates;
  for (double one : us) rates.push_back(bytes / one);
  return rates;
}

// -- the disk itself

class AlignedBuffer {
 public:
  explicit AlignedBuffer(uint64_t bytes) : data_(static_cast<char*>(std::aligned_alloc(4096, bytes))), bytes_(bytes) {}
  ~AlignedBuffer() { std::free(data_); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  char* data() const { return data_; }
  void Fill(uint64_t seed) const { RandomBytes(bytes_, seed).copy(data_, bytes_); }

 private:
  char* const data_;
  const uint64_t bytes_;
};

class RawDisk {
 public:
  RawDisk(std::string directory, uint64_t seed) : directory_(std::move(directory)), random_(kGroupBytes) {
    random_.Fill(seed);
  }

  // A new file of so many states; gives microseconds until all of it is on the disk.
  double Write(size_t states) {
    const std::string path = absl::StrCat(directory_, "/raw", files_.size());
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
    Require(fd >= 0, path);
    const uint64_t bytes = states * kStateBytes;
    const Stopwatch watch;
    for (uint64_t at = 0; at < bytes; at += kPieceBytes) {
      char* piece = random_.data() + at % kGroupBytes;
      for (uint64_t page = 0; page < kPieceBytes; page += 4096) std::memcpy(piece + page, &at, sizeof at);
      Require(pwrite(fd, piece, kPieceBytes, static_cast<off_t>(at)) == static_cast<ssize_t>(kPieceBytes), path);
      if ((at + kPieceBytes) % kGroupBytes == 0) Require(fdatasync(fd) == 0, path);
    }
    Require(fdatasync(fd) == 0, path);
    const double us = watch.microseconds();
    close(fd);
    files_.push_back({path, states});
    return us;
  }

  // All of a file's states in random order, of each file in turn.
  double Read(std::mt19937_64* random) {
    const auto& [path, states] = files_[next_++ % files_.size()];
    std::vector<size_t> order(states);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), *random);
    std::vector<std::unique_ptr<AlignedBuffer>> buffers;
    for (size_t i = 0; i < kClients; ++i) buffers.push_back(std::make_unique<AlignedBuffer>(kStateBytes));
    const int fd = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    Require(fd >= 0, path);
    const double us = Together(kClients, states, [&, &path = path](size_t client, size_t i) {
      for (uint64_t at = 0; at < kStateBytes; at += kPieceBytes) {
        const auto offset = static_cast<off_t>(order[i] * kStateBytes + at);
        Require(pread(fd, buffers[client]->data() + at, kPieceBytes, offset) == static_cast<ssize_t>(kPieceBytes),
                path);
      }
    });
    close(fd);
    return us;
  }

  // For a part that only reads.
  void Adopt(size_t states) {
    for (;; ++adopted_) {
      const std::string path = absl::StrCat(directory_, "/raw", adopted_);
      if (!std::filesystem::exists(path)) break;
      files_.push_back({path, states});
    }
    if (files_.empty()) NotMeasurable("no file to read in " + directory_);
  }

 private:
  const std::string directory_;
  const AlignedBuffer random_;
  std::vector<std::pair<std::string, size_t>> files_;
  size_t next_ = 0, adopted_ = 0;
};

// -- the daemon's side of the disk

class Disk {
 public:
  Disk(std::string data_directory, int64_t pid)
      : data_directory_(std::move(data_directory)), io_(absl::StrCat("/proc/", pid, "/io")) {}

  // Since the daemon started. What was dirty in the page cache when its file went, never went to the disk.
  DiskBytes Bytes() const {
    std::ifstream file(io_);
    std::map<std::string, double> fields;
    std::string name;
    for (double value; file >> name >> value;) fields[name] = value;
    if (!fields.contains("cancelled_write_bytes:")) NotMeasurable("no " + io_);
    return {fields["read_bytes:"], fields["write_bytes:"] - fields["cancelled_write_bytes:"]};
  }

  // Until the daemon writes no more, and all that anyone wrote is on the disk; gives microseconds that it went on.
  double Settle() const {
    const Stopwatch watch;
    double went_on_us = 0;
    double before = Bytes().written;
    for (int quiet = 0, polls = 0; quiet < 3; ++polls) {
      if (polls == 600) NotMeasurable("the daemon never stops writing");
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      const double now = Bytes().written;
      quiet = now - before < static_cast<double>(kPieceBytes) ? quiet + 1 : 0;
      if (quiet == 0) went_on_us = watch.microseconds();
      before = now;
    }
    const int fd = open(data_directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const Stopwatch sync;
    Require(fd >= 0 && syncfs(fd) == 0, data_directory_);
    went_on_us += sync.microseconds();
    close(fd);
    return went_on_us;
  }

  // Nothing of the daemon's files is in the page cache afterwards.
  void DropCache() const {
    Settle();
    uint64_t cached = 0;
    for (int attempt = 0; attempt < 5; ++attempt) {
      cached = 0;
      ForEachFile([&](const std::string& path) { cached += Drop(path); });
      if (cached <= kPieceBytes) return;
    }
    NotMeasurable(absl::StrCat(cached, " bytes of ", data_directory_, " stay in the page cache"));
  }

  uint64_t Used() const {
    uint64_t used = 0;
    ForEachFile([&](const std::string& path) {
      struct stat status;
      if (stat(path.c_str(), &status) == 0) used += static_cast<uint64_t>(status.st_blocks) * 512;
    });
    return used;
  }

 private:
  // The daemon may delete some meanwhile.
  void ForEachFile(const std::function<void(const std::string&)>& visit) const {
    std::error_code error;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(data_directory_)) {
      if (entry.is_regular_file(error)) visit(entry.path());
    }
  }
  // Gives the bytes that are still cached.
  static uint64_t Drop(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;  // it is gone
    uint64_t cached = 0;
    const off_t size = lseek(fd, 0, SEEK_END);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    void* const mapped = size > 0 ? mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (mapped != MAP_FAILED) {
      std::vector<unsigned char> pages((static_cast<size_t>(size) + 4095) / 4096);
      if (mincore(mapped, static_cast<size_t>(size), pages.data()) == 0)
        cached = 4096 * static_cast<uint64_t>(std::count_if(pages.begin(), pages.end(), [](auto p) { return p & 1; }));
      munmap(mapped, static_cast<size_t>(size));
    }
    close(fd);
    return cached;
  }

  const std::string data_directory_, io_;
};

// -- states

// State i is the base with layer i mod kLayers replaced.
class States {
 public:
  explicit States(uint64_t seed) : seed_(seed), base_(RandomBytes(kStateBytes, seed << 32 | 0xffffffff)) {}
  const std::string& base() const { return base_; }
  uint32_t LayerOf(uint64_t i) const { return static_cast<uint32_t>(i % kLayers); }
  std::string Layer(uint64_t i) const { return RandomBytes(kLayerBytes, seed_ << 32 | i); }
  std::string Whole(uint64_t i) const {
    std::string state = base_;
    return state.replace(LayerOf(i) * kLayerBytes, kLayerBytes, Layer(i));
  }

 private:
  const uint64_t seed_;
  const std::string base_;
};

std::string RegisterLayers(const Connection& daemon) {
  v1::RegisterLayoutRequest request;
  request.mutable_layout()->set_model_id("bench/spill");
  v1::TensorSpec* tensor = request.mutable_layout()->add_tensors();
  tensor->set_name("state");
  tensor->set_kind(v1::OTHER);
  for (uint32_t layer = 0; layer < kLayers; ++layer) tensor->add_layers(layer);
  tensor->set_dtype(v1::UINT8);
  v1::Axis* axis = tensor->add_axes();
  axis->set_name("byte");
  axis->set_size(kLayerBytes);
  return daemon.Call(&v1::StatePool::Stub::RegisterLayout, request).fingerprint();
}

// A daemon that is short of room for a moment says so, and is asked again.
void SetPatiently(const Connection& daemon, const v1::SetRequest& request) {
  for (const Stopwatch watch;;) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    v1::NameInfo info;
    const grpc::Status status = daemon.stub()->Set(&context, request, &info);
    if (status.ok()) return;
    if (status.error_code() != grpc::RESOURCE_EXHAUSTED || watch.microseconds() > 60e6)
      NotMeasurable(absl::StrCat("Set failed: ", static_cast<int>(status.error_code()), " ", status.error_message()));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// Gets one hot state again and again while others work, and keeps the times of what is going on now.
class HotGetter {
 public:
  enum Phase { kNothing, kIdle, kSpilling, kDirectWrites, kPhases };

  explicit HotGetter(const std::string& address, uint64_t seed)
      : daemon_(address), data_(RandomBytes(kHotStateBytes, seed)) {
    v1::SetRequest set;
    set.set_sequence("spill/hot");
    set.set_layout(daemon_.RegisterLayout(kHotStateBytes));
    set.set_position(1);
    set.set_data(data_);
    set.mutable_options()->set_durability(v1::VOLATILE);  // a clean one would be the first to leave
    daemon_.Call(&v1::StatePool::Stub::Set, set);
    thread_ = std::thread([this] { Run(); });
  }
  ~HotGetter() {
    stop_ = true;
    thread_.join();
  }
  void Begin(Phase phase) { phase_ = phase; }
  // REQUIRES: phase kNothing
  const std::vector<double>& us(Phase phase) const { return us_[phase]; }
  uint64_t wrong() const { return wrong_; }

 private:
  void Run() {
    v1::GetRequest get;
    get.mutable_name()->set_sequence("spill/hot");
    for (auto next = std::chrono::steady_clock::now(); !stop_; next += kHotPause) {
      next = std::max(next, std::chrono::steady_clock::now() - kHotPause);
      std::this_thread::sleep_until(next);
      const Phase phase = phase_;
      if (phase == kNothing) continue;
      const Stopwatch watch;
      const v1::GetResponse answer = daemon_.Call(&v1::StatePool::Stub::Get, get);
      const double us = watch.microseconds();
      wrong_ += answer.data() != data_;
      if (phase == phase_) us_[phase].push_back(us);
    }
  }
  const Connection daemon_;
  const std::string data_;
  std::atomic<Phase> phase_{kNothing};
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> wrong_{0};
  std::vector<double> us_[kPhases];
  std::thread thread_;
};

// -- the parts

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments),
        seed_(static_cast<uint64_t>(arguments.Number("seed"))),
        block_(static_cast<size_t>(arguments.Number("block"))),
        random_(seed_),
        disk_(arguments.Text("data-dir"), arguments.Number("pid")),
        raw_(arguments.Text("directory"), seed_),
        states_(seed_) {
    for (size_t i = 0; i < kClients; ++i) clients_.push_back(std::make_unique<Connection>(arguments.Text("server")));
    layout_ = RegisterLayers(daemon());
  }

  int Run() {
    const std::string& part = arguments_.Text("part");
    if (part == "spill") Spill();
    else if (part == "flush") Flush();
    else if (part == "overwrite") Overwrite();
    else if (part == "restore") Restore();
    else NotMeasurable("--part is none of spill, flush, overwrite, restore");
    return 0;
  }

 private:
  const Connection& daemon() const { return *clients_[0]; }
  static std::string NameOf(uint64_t i) { return absl::StrCat("spill/", i); }
  double block_bytes() const { return static_cast<double>(block_ * kStateBytes); }
  void FlushAll() const { daemon().Call(&v1::StatePool::Stub::Flush, v1::FlushRequest()); }

  // `rounds` of them, and as many again while the disk is not the same in the first half as in the second.
  void Rounds(const std::vector<double>* raw_us, const std::function<void()>& round) {
    for (int attempt = 1; attempt == 1 || !IsStable("the disk itself", *raw_us, attempt - 1); ++attempt) {
      for (int64_t i = 0; i < arguments_.Number("rounds"); ++i) round();
    }
  }

  // VOLATILE, as their base is, so that nobody writes that while it lies there; gives their revisions.
  std::vector<uint64_t> ForkBase(uint64_t first, size_t count) {
    v1::ForkRequest fork;
    fork.mutable_source()->set_sequence("base");
    fork.mutable_options()->set_durability(v1::VOLATILE);
    for (uint64_t i = first; i < first + count; ++i) fork.add_children(NameOf(i));
    std::vector<uint64_t> revisions;
    const v1::ForkResponse answer = daemon().Call(&v1::StatePool::Stub::Fork, fork);
    for (const v1::ForkedChild& child : answer.children()) revisions.push_back(child.revision());
    return revisions;
  }
  void SetBase() {
    v1::SetRequest set;
    set.set_sequence("base");
    set.set_layout(layout_);
    set.set_position(1);
    set.set_data(states_.base());
    set.mutable_options()->set_durability(v1::VOLATILE);
    set.mutable_options()->set_max_history(1);
    SetPatiently(daemon(), set);
  }
  void Edit(size_t client, uint64_t i, uint64_t revision) {
    v1::SetRequest set;
    set.set_sequence(NameOf(i));
    set.set_position(2);
    set.set_if_revision(revision);
    set.mutable_select()->add_layers(states_.LayerOf(i));
    set.set_data(states_.Layer(i));
    set.mutable_options()->set_durability(v1::WRITE_BEHIND);
    set.mutable_options()->set_max_history(1);
    SetPatiently(*clients_[client], set);
  }
  v1::SetRequest WholeSet(const std::string& name, uint64_t content) const {
    v1::SetRequest set;
    set.set_sequence(name);
    set.set_layout(layout_);
    set.set_position(2);
    set.set_data(states_.Whole(content));
    set.mutable_options()->set_max_history(1);
    return set;
  }

  // Runs `work`, a block of ours that ends when its bytes are on disk, and waits for what the daemon writes afterwards.
  Block Measured(const std::function<double()>& work) {
    const DiskBytes before = disk_.Bytes();
    Block block;
    block.us = work();
    block.settled_us = block.us + disk_.Settle();
    const DiskBytes after = disk_.Bytes();
    block.disk = {after.read - before.read, after.written - before.written};
    return block;
  }

  struct Side {
    std::vector<double> us, settled_us;
    double bytes = 0, written = 0, read = 0;
    void Add(const Block& block, double state_bytes) {
      us.push_back(block.us), settled_us.push_back(block.settled_us);
      bytes += state_bytes;
      written += block.disk.written, read += block.disk.read;
    }
  };

  // A figure of rates in MB/s; p99 is the slowest of 100 blocks.
  Figure RateFigure(absl::string_view name, const Side& side, absl::string_view baseline,
                    const std::vector<double>& raw_us) const {
    const std::vector<double> ours = Rates(block_bytes(), side.us);
    Figure figure(name);
    figure.Set("value", Median(ours))
        .Text("unit", "MB/s")
        .Set("n", static_cast<double>(ours.size()))
        .Set("p50", Median(ours))
        .Set("p99", Quantile(ours, 0.01))
        .Baseline(baseline, Median(Rates(block_bytes(), raw_us)))
        .Set("block_bytes", block_bytes());
    return figure;
  }
  void PrintSpill(absl::string_view name, const Side& side, const std::vector<double>& raw_us, bool has_goal,
                  double made = 0) const {
    if (side.written < kReallyMin * side.bytes)
      NotMeasurable(absl::StrCat(name, ": of ", side.bytes, " bytes ", side.written, " were written to the disk"));
    Figure figure = RateFigure(name, side, "direct writes, fdatasync every 64 MiB, MB/s", raw_us);
    if (has_goal) figure.GoalAtLeast("ratio", 0.8);
    if (made > 0) figure.Set("made_in_memory", made);  // as fast as states could come, were there no disk
    figure.Set("until_settled", Median(Rates(block_bytes(), side.settled_us)))
        .Set("write_amplification", side.written / side.bytes)
        .Set("read_bytes", side.read)
        .Print();
  }
  static void PrintAmplification(absl::string_view name, double written, double bytes) {
    Figure(name)
        .Set("value", written / bytes)
        .Text("unit", "bytes written a byte of state")
        .Set("n", bytes / static_cast<double>(kStateBytes))
        .Set("aim", 1.5)
        .Set("state_bytes", bytes)
        .Set("write_bytes", written)
        .Print();
  }
  static void PrintWrong(uint64_t wrong, uint64_t compared, uint64_t bytes) {
    Figure("spill_wrong")
        .Set("value", static_cast<double>(wrong))
        .Text("unit", "wrong answers")
        .Set("n", static_cast<double>(compared))
        .Goal("value", 0)
        .Set("bytes", static_cast<double>(bytes))
        .Print();
  }

  // ---- spill

  void Spill() {
    SetBase();
    HotGetter hot(arguments_.Text("server"), seed_);
    Side edits, sets;
    std::vector<double> raw_us;
    uint64_t first = 0;
    Rounds(&raw_us, [&] {
      hot.Begin(HotGetter::kIdle);
      std::this_thread::sleep_for(std::chrono::milliseconds(arguments_.Number("idle_ms")));
      hot.Begin(HotGetter::kNothing);

      const std::vector<uint64_t> revisions = ForkBase(first, block_);
      edits.Add(Measured([&] {
                  hot.Begin(HotGetter::kSpilling);
                  const Stopwatch watch;
                  Together(kClients, block_, [&](size_t client, size_t i) { Edit(client, first + i, revisions[i]); });
                  FlushAll();
                  hot.Begin(HotGetter::kNothing);
                  return watch.microseconds();
                }),
                block_bytes());
      first += block_;

      hot.Begin(HotGetter::kDirectWrites);
      raw_us.push_back(raw_.Write(block_));
      hot.Begin(HotGetter::kNothing);

      std::vector<v1::SetRequest> requests;
      for (size_t i = 0; i < block_; ++i) requests.push_back(WholeSet(NameOf(first + i), first + i));
      sets.Add(Measured([&] {
                 const Stopwatch watch;
                 Together(kClients, block_,
                          [&](size_t client, size_t i) { SetPatiently(*clients_[client], requests[i]); });
                 FlushAll();
                 return watch.microseconds();
               }),
               block_bytes());
      first += block_;
      std::fprintf(stderr, "spill: %.0f MB/s, sent whole %.0f, the disk itself %.0f\n",
                   Rates(block_bytes(), edits.us).back(), Rates(block_bytes(), sets.us).back(),
                   Rates(block_bytes(), raw_us).back());
    });
    PrintSpill("spill", edits, raw_us, /*has_goal=*/true);
    PrintSpill("spill_set", sets, raw_us, /*has_goal=*/false);
    PrintAmplification("write_amplification", edits.written + sets.written, edits.bytes + sets.bytes);
    const auto p99 = [&](absl::string_view name, HotGetter::Phase phase) {
      const std::vector<double>& us = hot.us(phase);
      if (us.size() < 100) NotMeasurable(absl::StrCat(name, ": too few Gets"));
      Figure figure(name);
      figure.Set("value", Quantile(us, 0.99) / 1e3)
          .Text("unit", "ms")
          .Set("n", static_cast<double>(us.size()))
          .Set("p50", Median(us) / 1e3)
          .Set("p99", Quantile(us, 0.99) / 1e3);
      return figure;
    };
    p99("hot_get_p99_idle", HotGetter::kIdle).Print();
    p99("hot_get_p99_spilling", HotGetter::kSpilling)
        .Baseline("the same, idle, ms", Quantile(hot.us(HotGetter::kIdle), 0.99) / 1e3)
        .Print();
    p99("hot_get_p99_direct_writes", HotGetter::kDirectWrites)
        .Baseline("the same, idle, ms", Quantile(hot.us(HotGetter::kIdle), 0.99) / 1e3)
        .Print();
    const uint64_t gets = hot.us(HotGetter::kIdle).size() + hot.us(HotGetter::kSpilling).size();
    PrintWrong(hot.wrong(), gets, gets * kHotStateBytes);
    Figure("states").Set("value", static_cast<double>(first)).Print();  // for `restore`
  }

  // ---- flush

  void Flush() {
    SetBase();
    Side side;
    std::vector<double> raw_us, made;
    uint64_t first = 0;
    Rounds(&raw_us, [&] {
      const std::vector<uint64_t> revisions = ForkBase(first, block_);
      const double made_us =
          Together(kClients, block_, [&](size_t client, size_t i) { Edit(client, first + i, revisions[i]); });
      made.push_back(block_bytes() / made_us);
      side.Add(Measured([&] {
                 const Stopwatch watch;
                 FlushAll();
                 return watch.microseconds();
               }),
               block_bytes());
      first += block_;
      raw_us.push_back(raw_.Write(block_));
      std::fprintf(stderr, "spill: flush %.0f MB/s, the disk itself %.0f\n", Rates(block_bytes(), side.us).back(),
                   Rates(block_bytes(), raw_us).back());
    });
    PrintSpill("spill_flush", side, raw_us, /*has_goal=*/true, Median(made));
  }

  // ---- overwrite

  // Names that are written again and again, a random half of them at a time: what was there must be collected from
  // among what is still needed.
  void Overwrite() {
    const size_t names = 2 * block_;
    std::vector<uint64_t> contents(names);
    std::vector<size_t> order(names);
    std::iota(contents.begin(), contents.end(), 0);
    std::iota(order.begin(), order.end(), 0);
    const auto name = [](size_t i) { return absl::StrCat("overwritten/", i); };
    const auto write = [&](size_t count) {
      Together(kClients, count, [&](size_t client, size_t i) {
        SetPatiently(*clients_[client], WholeSet(name(order[i]), contents[order[i]]));
      });
      FlushAll();
      return 0.0;
    };
    Block block = Measured([&] { return write(names); });
    double bytes = names * kStateBytes;
    uint64_t used = 0;
    for (int64_t round = 0; round < arguments_.Number("rounds"); ++round) {
      std::shuffle(order.begin(), order.end(), random_);
      for (size_t i = 0; i < block_; ++i) contents[order[i]] += names;
      const Block one = Measured([&] { return write(block_); });
      block.disk.written += one.disk.written;
      bytes += block_bytes();
      used = std::max(used, disk_.Used());
    }
    PrintAmplification("write_amplification_overwritten", block.disk.written, bytes);
    Figure("spill_disk_overwritten")
        .Set("value", static_cast<double>(used) / (names * kStateBytes))
        .Text("unit", "bytes of files, at most, a byte of state")
        .Set("n", names)
        .Print();
    uint64_t wrong = 0;
    for (size_t i = 0; i < names; i += 4) wrong += WholeIsWrong(name(i), contents[i]);
    PrintWrong(wrong, names / 4, names / 4 * kStateBytes);
  }

  // ---- restore

  // An answer that has other bytes, or none; every other error ends the program.
  bool GetIsWrong(const Connection& daemon, const v1::GetRequest& get, absl::string_view bytes) const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    v1::GetResponse answer;
    const grpc::Status status = daemon.stub()->Get(&context, get, &answer);
    if (status.ok()) return answer.data() != bytes;
    if (status.error_code() != grpc::DATA_LOSS && status.error_code() != grpc::NOT_FOUND)
      NotMeasurable(absl::StrCat("Get failed: ", static_cast<int>(status.error_code()), " ", status.error_message()));
    return true;
  }
  bool WholeIsWrong(const std::string& name, uint64_t content) const {
    v1::GetRequest get;
    get.mutable_name()->set_sequence(name);
    return GetIsWrong(daemon(), get, states_.Whole(content));
  }

  void Restore() {
    std::vector<uint64_t> order(static_cast<size_t>(arguments_.Number("states")));
    if (order.size() < 2 * block_) NotMeasurable("--states are too few to be cold");
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    raw_.Adopt(block_);
    std::atomic<uint64_t> wrong{0};
    uint64_t compared = 0, bytes = 0;
    Side side;
    std::vector<double> raw_us;
    size_t at = 0;
    // The next ones in `order`; gives microseconds.
    const auto restore = [&](size_t count) {
      std::vector<std::string> layers;
      for (size_t i = 0; i < count; ++i) layers.push_back(states_.Layer(order[(at + i) % order.size()]));
      const double us = Together(kClients, count, [&](size_t client, size_t i) {
        const uint64_t state = order[(at + i) % order.size()];
        v1::GetRequest get;
        get.mutable_name()->set_sequence(NameOf(state));
        get.mutable_select()->add_layers(states_.LayerOf(state));
        wrong += GetIsWrong(*clients_[client], get, layers[i]);
      });
      at += count, compared += count, bytes += count * kLayerBytes;
      return us;
    };
    Rounds(&raw_us, [&] {
      disk_.DropCache();
      side.Add(Measured([&] { return restore(block_); }), block_bytes());
      raw_us.push_back(raw_.Read(&random_));
      std::fprintf(stderr, "spill: restore %.0f MB/s, the disk itself %.0f\n", Rates(block_bytes(), side.us).back(),
                   Rates(block_bytes(), raw_us).back());
    });
    while (at < order.size()) restore(std::min(block_, order.size() - at));
    const uint64_t step = std::max<uint64_t>(order.size() / 48, 1);
    for (uint64_t state = 0; state < order.size(); state += step) {
      wrong += WholeIsWrong(NameOf(state), state);
      ++compared, bytes += kStateBytes;
    }
    PrintWrong(wrong, compared, bytes);
    if (side.read < kReallyMin * side.bytes && wrong == 0)
      NotMeasurable(absl::StrCat("restore: of ", side.bytes, " bytes ", side.read, " were read from the disk"));
    RateFigure("restore", side, absl::StrCat("direct reads by ", kClients, " readers, MB/s"), raw_us)
        .GoalAtLeast("ratio", 0.8)
        .Set("read_amplification", side.read / side.bytes)
        .Set("write_bytes", side.written)
        .Print();
  }

  const Arguments arguments_;
  const uint64_t seed_;
  const size_t block_;  // states
  std::mt19937_64 random_;
  const Disk disk_;
  RawDisk raw_;
  const States states_;
  std::vector<std::unique_ptr<Connection>> clients_;
  std::string layout_;
};

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) { return statepool::bench::Bench(statepool::bench::Arguments(argc, argv)).Run(); }
