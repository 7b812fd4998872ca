// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figures `fork_*`: one Fork of 1,000 children costs a pointer each, whatever the state's size.
//
//   statepool_bench_fork --part=times --server=ADDRESS --seed=N --rounds=N --redis=UNIX_SOCKET
//   statepool_bench_fork --part=memory --server=ADDRESS --seed=N --pid=DAEMON
//
// Times are wall times at the client, from the call to its answer. Default durability (WRITE_BEHIND), cold store open.
// The sources are flushed before anything is timed, so that their own bytes are not on their way to disk meanwhile.
// Rounds alternate between the sizes, in an order that is drawn anew for each; the children of a round are deleted
// before the next one.
//
// Memory is measured in a daemon that was started anew on the same data directory: the buffers that a Set of 300 MB
// leaves to the allocator would take in any number of children unseen.
#include <hiredis/hiredis.h>

#include <fstream>
#include <thread>

#include "kernels/checksum.h"
#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

constexpr size_t kChildren = 1000;
constexpr size_t kGets = 10;
constexpr size_t kWarmUpRounds = 3;
constexpr size_t kMemoryRounds = 3;
constexpr size_t kRedisCopies = 20;
constexpr int64_t kPosition = 4711;

struct Source {
  std::string label, sequence, layout, data, checksum;
};

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments),
        daemon_(arguments.Text("server")),
        seed_(static_cast<uint64_t>(arguments.Number("seed"))),
        random_(seed_) {}

  int Run() {
    if (arguments_.Text("part") == "memory") {
      MemoryAndContents(MakeSource("20MB", 20'000'000));
      return 0;
    }
    sources_ = {MakeSource("80KB", 80'000), MakeSource("20MB", 20'000'000), MakeSource("300MB", 300'000'000)};
    for (const Source& source : sources_) Set(source);
    const std::vector<double> copies = RedisCopies();
    const size_t rounds = static_cast<size_t>(arguments_.Number("rounds"));
    Times(rounds, copies);
    SyncTimes(rounds, copies);
    return 0;
  }

 private:
  static constexpr size_t k80KB = 0, k20MB = 1, k300MB = 2;

  Source MakeSource(const std::string& label, uint64_t bytes) const {
    Source source{label, "bench/" + label, daemon_.RegisterLayout(bytes), RandomBytes(bytes, seed_ + bytes), ""};
    source.checksum = absl::StrCat(absl::Hex(ChecksumOf(source.data), absl::kZeroPad16));
    return source;
  }

  void Set(const Source& source) const {
    std::fprintf(stderr, "fork: set %s\n", source.label.c_str());
    daemon_.Set(source.sequence, source.layout, kPosition, source.data);
    v1::FlushRequest flush;
    flush.add_names()->set_sequence(source.sequence);
    daemon_.Call(&v1::StatePool::Stub::Flush, flush);
  }

  std::vector<std::string> ChildNames(const Source& source) {
    const std::string prefix = absl::StrCat("bench/", arguments_.Text("part"), "/", source.label, "/", ++forks_, "/");
    std::vector<std::string> names;
    for (size_t i = 0; i < kChildren; ++i) names.push_back(absl::StrCat(prefix, i));
    return names;
  }

  // One Fork of kChildren; gives microseconds.
  double Fork(const Source& source, const std::vector<std::string>& children,
              v1::Durability durability = v1::DURABILITY_UNSPECIFIED) {
    v1::ForkRequest request;
    request.mutable_source()->set_sequence(source.sequence);
    for (const std::string& child : children) request.add_children(child);
    request.mutable_options()->set_durability(durability);
    const Stopwatch watch;
    const v1::ForkResponse response = daemon_.Call(&v1::StatePool::Stub::Fork, request);
    const double us = watch.microseconds();
    if (response.children_size() != static_cast<int>(kChildren))
      NotMeasurable("Fork answered another number of children");
    return us;
  }

  void Delete(const std::vector<std::string>& children) const {
    constexpr size_t kThreads = 8;
    std::vector<std::thread> threads;
    for (size_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        v1::DeleteRequest request;
        for (size_t i = t; i < children.size(); i += kThreads) {
          request.mutable_name()->set_sequence(children[i]);
          daemon_.Call(&v1::StatePool::Stub::Delete, request);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  double ForkAndDelete(const Source& source, v1::Durability durability = v1::DURABILITY_UNSPECIFIED) {
    const std::vector<std::string> children = ChildNames(source);
    const double us = Fork(source, children, durability);
    Delete(children);
    return us;
  }

  void Times(size_t rounds, const std::vector<double>& copies) {
    std::fprintf(stderr, "fork: %zu rounds of 3 sizes\n", rounds);
    std::vector<double> us[3];
    for (int attempt = 1; attempt == 1 || !IsStable("Fork of 80 KB", us[k80KB], attempt - 1); ++attempt) {
      for (std::vector<double>& samples : us) samples.clear();
      for (size_t round = 0; round < kWarmUpRounds + rounds; ++round) {
        size_t order[] = {k80KB, k20MB, k300MB};
        std::shuffle(std::begin(order), std::end(order), random_);
        for (size_t i : order) {
          const double took = ForkAndDelete(sources_[i]);
          if (round >= kWarmUpRounds) us[i].push_back(took);
        }
      }
    }
    Figure("fork_1000_20MB")
        .Samples(us[k20MB], "ms", 1000)
        .Baseline("Redis COPY of one 20 MB string, p50", Median(copies) / 1000)
        .Goal("value", 5)
        .Print();
    for (size_t i : {k20MB, k300MB}) {
      Figure(absl::StrCat("fork_1000_", sources_[i].label, "_equals_80KB"))
          .Samples(us[i], "ms", 1000)
          .Baseline("Fork of 1,000 children of 80 KB, p50", Median(us[k80KB]) / 1000)
          .Goal("ratio", 1.2)
          .Print();
    }
    std::vector<double> per_child = us[k20MB];
    for (double& one : per_child) one /= kChildren;
    Figure("fork_child_20MB")
        .Samples(per_child, "us", 1)
        .Baseline("Redis COPY of one 20 MB string, p50", Median(copies))
        .Print();
  }

  void SyncTimes(size_t rounds, const std::vector<double>& copies) {
    std::fprintf(stderr, "fork: %zu rounds with SYNC\n", rounds);
    std::vector<double> us;
    for (size_t round = 0; round < rounds; ++round) us.push_back(ForkAndDelete(sources_[k20MB], v1::SYNC));
    Figure("fork_1000_20MB_sync")
        .Samples(us, "ms", 1000)
        .Baseline("Redis COPY of one 20 MB string, p50", Median(copies) / 1000)
        .Print();
  }

  redisContext* ConnectRedis() const {
    for (int attempt = 0; attempt < 100; ++attempt) {  // it was started just now
      redisContext* redis = redisConnectUnix(arguments_.Text("redis").c_str());
      if (redis != nullptr && redis->err == 0) return redis;
      redisFree(redis);
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    NotMeasurable("no connection to redis-server");
  }

  // COPY of a 20 MB string inside Redis, each to a fresh key, without persistence; microseconds of each.
  std::vector<double> RedisCopies() const {
    std::fprintf(stderr, "fork: redis COPY\n");
    redisContext* redis = ConnectRedis();
    const auto command = [redis](const auto&... arguments) {
      auto* reply = static_cast<redisReply*>(redisCommand(redis, arguments...));
      if (reply == nullptr || reply->type == REDIS_REPLY_ERROR) NotMeasurable("redis refused a command");
      freeReplyObject(reply);
    };
    const Source& source = sources_[k20MB];
    command("SET source %b", source.data.data(), source.data.size());
    std::vector<double> us;
    for (int attempt = 1; attempt == 1 || !IsStable("Redis COPY", us, attempt - 1); ++attempt) {
      us.clear();
      for (size_t i = 0; i < kWarmUpRounds + kRedisCopies; ++i) {
        const Stopwatch watch;
        command("COPY source copy");
        if (i >= kWarmUpRounds) us.push_back(watch.microseconds());
        command("DEL copy");
      }
    }
    redisFree(redis);
    return us;
  }

  // A field of /proc/PID/status, in KiB.
  double Memory(absl::string_view field) const {
    std::ifstream status("/proc/" + arguments_.Text("pid") + "/status");
    for (std::string line; std::getline(status, line);) {
      if (line.rfind(absl::StrCat(field, ":"), 0) == 0) return std::atof(line.substr(field.size() + 1).c_str());
    }
    NotMeasurable(absl::StrCat("no ", field, " of the daemon"));
  }

  void WaitRecorded(const std::vector<std::string>& children) const {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    for (;;) {
      const v1::NameInfo info = daemon_.Describe(children.back());  // children of one fork are recorded together
      if (info.durable_revision() == info.revision()) return;
      if (std::chrono::steady_clock::now() > end) NotMeasurable("children were not recorded within 30 s");
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  // By how much the daemon's resident memory (VmRSS) grows when 1,000 children of a 20 MB state are made and recorded
  // by the write-behind. One such fork goes before, so that the threads and buffers of gRPC, RocksDB and the allocator
  // exist; its children stay, and so do those of each measured round, so no round can hide in memory that an earlier
  // one gave back. The largest of the rounds counts, and in each the larger of right after the answer and after the
  // write-behind.
  void MemoryAndContents(const Source& source) {
    std::vector<std::string> children = ChildNames(source);
    Fork(source, children);
    WaitRecorded(children);
    std::vector<double> grown, grown_anon, grown_shmem;
    for (size_t round = 0; round < kMemoryRounds; ++round) {
      std::fprintf(stderr, "fork: memory, round %zu\n", round);
      children = ChildNames(source);
      const double rss = Memory("VmRSS"), anon = Memory("RssAnon"), shmem = Memory("RssShmem");
      Fork(source, children);
      const double at_answer = Memory("VmRSS");
      WaitRecorded(children);
      grown.push_back(std::max(at_answer, Memory("VmRSS")) - rss);
      grown_anon.push_back(Memory("RssAnon") - anon);
      grown_shmem.push_back(Memory("RssShmem") - shmem);
    }
    constexpr double kKiB = 1024, kMB = 1e6;
    const auto largest_mb = [](const std::vector<double>& kib) {
      return *std::max_element(kib.begin(), kib.end()) * kKiB / kMB;
    };
    Figure("fork_memory")
        .Set("value", largest_mb(grown))
        .Text("unit", "MB")
        .Set("n", kMemoryRounds)
        .Set("p50", Median(grown) * kKiB / kMB)
        .Set("p99", largest_mb(grown))
        .Goal("value", 2)
        .Set("rss_anon_grown", largest_mb(grown_anon))
        .Set("rss_shmem_grown", largest_mb(grown_shmem))
        .Set("rss", Memory("VmRSS") * kKiB / kMB)
        .Print();

    std::fprintf(stderr, "fork: contents of the children\n");
    size_t wrong = 0;
    for (const std::string& child : children) {
      const v1::NameInfo info = daemon_.Describe(child);
      wrong += info.position() != kPosition || info.layout() != source.layout || info.checksum() != source.checksum;
    }
    for (size_t i = 0; i < kGets; ++i) {
      v1::GetRequest request;
      request.mutable_name()->set_sequence(children[random_() % children.size()]);
      wrong += daemon_.Call(&v1::StatePool::Stub::Get, request).data() != source.data;
    }
    const double operations = static_cast<double>(kChildren + kGets);
    Figure("fork_wrong")
        .Set("value", static_cast<double>(wrong))
        .Text("unit", "wrong answers")
        .Set("n", operations)
        .Goal("value", 0)
        .Set("acked_sync", 0)
        .Set("kills_in_flight", 0)
        .Set("spills", 0)
        .Set("promotions", 0)
        .Set("forks", static_cast<double>(forks_))
        .Set("operations", operations)
        .Print();
  }

  const Arguments arguments_;
  const Connection daemon_;
  const uint64_t seed_;
  std::mt19937_64 random_;
  std::vector<Source> sources_;
  size_t forks_ = 0;
};

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) { return statepool::bench::Bench(statepool::bench::Arguments(argc, argv)).Run(); }
