// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figures `inline_*`: Get and Set of whole states in one message, beside Redis with the same bytes.
//
//   statepool_bench_inline --server=ADDRESS --server-pid=N --redis-port=N --redis-pid=N --seed=N --blocks=N --seconds=N
//                          [--sizes=BYTES,...]
//
// What is measured is what a user of our C++ client gets: Pool::Set and Pool::GetInto with verification, default
// durability. Redis: hiredis, redisCommandArgv for SET and GET, no persistence. Each client is a thread with
// connections of its own, over TCP on loopback for both.
//
// Blocks of ours and Redis's alternate. A block is `seconds` of rounds. In a round each client makes its bytes anew,
// then all clients together Set them (timed), then all Get them (timed), then each compares. A round's throughput is
// the bytes of all clients over the time from the first client's start to the last one's end. Before a block of
// Redis's ours flushes, so that nobody's baseline pays for our write-behind; within a block of ours it runs.
//
// CPU seconds a GB are those of the timed parts: of this process (the client), and of the daemon or Redis (the server).
#include <hiredis/hiredis.h>
#include <sys/resource.h>
#include <time.h>

#include <atomic>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "client/cpp/statepool.h"
#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

constexpr size_t kClients[] = {1, 4};
constexpr size_t kWarmUpRounds = 2;
constexpr double kGB = 1e9;

double CpuSeconds(clockid_t clock) {
  timespec time{};
  if (clock_gettime(clock, &time) != 0) NotMeasurable("no CPU clock of a server");
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// One client's way to its server. An error ends the program.
class Way {
 public:
  virtual ~Way() = default;
  virtual void Set(size_t item, const std::string& data) = 0;
  virtual void Get(size_t item) = 0;
  virtual bool LastGetWas(size_t item, const std::string& data) = 0;  // and frees what Get got
};

class OurWay final : public Way {
 public:
  OurWay(const std::string& address, size_t client, size_t items, uint64_t bytes, std::string layout)
      : pool_(Connect(address)), layout_(std::move(layout)), got_(items, std::string(bytes, '\0')) {
    for (size_t i = 0; i < items; ++i) names_.push_back(absl::StrCat("inline/", bytes, "/", client, "/", i));
  }
  void Set(size_t item, const std::string& data) override {
    const auto info = pool_.Set(names_[item], layout_, 1, data);
    if (!info.ok()) NotMeasurable(absl::StrCat("Set: ", info.status().ToString()));
  }
  void Get(size_t item) override {
    v1::GetRequest request;
    request.mutable_name()->set_sequence(names_[item]);
    const auto answer = pool_.GetInto(request, absl::MakeSpan(got_[item].data(), got_[item].size()));
    if (!answer.ok()) NotMeasurable(absl::StrCat("Get: ", answer.status().ToString()));
  }
  bool LastGetWas(size_t item, const std::string& data) override { return got_[item] == data; }

  void Flush() const {
    if (const auto flushed = pool_.Flush({}); !flushed.ok()) NotMeasurable(flushed.status().ToString());
  }
  void Delete() const {
    for (const std::string& name : names_) {
      if (const auto deleted = pool_.Delete(client::SequenceRef(name)); !deleted.ok())
        NotMeasurable(deleted.status().ToString());
    }
  }

 private:
  static client::Pool Connect(const std::string& address) {
    client::Options options;
    options.arenas = options.direct = false;
    absl::StatusOr<client::Pool> pool = client::Pool::Connect(address, options);
    if (!pool.ok()) NotMeasurable(pool.status().ToString());
    return *std::move(pool);
  }
  const client::Pool pool_;
  const std::string layout_;
  std::vector<std::string> names_, got_;
};

class RedisWay final : public Way {
 public:
  RedisWay(int port, size_t client, size_t items) : redis_(redisConnect("127.0.0.1", port)), got_(items) {
    if (redis_ == nullptr || redis_->err != 0) NotMeasurable("no connection to Redis");
    for (size_t i = 0; i < items; ++i) names_.push_back(absl::StrCat("inline/", client, "/", i));
  }
  ~RedisWay() override {
    for (const std::string& name : names_) freeReplyObject(Command({"DEL", name}, REDIS_REPLY_INTEGER));
    redisFree(redis_);
  }
  void Set(size_t item, const std::string& data) override {
    freeReplyObject(Command({"SET", names_[item], data}, REDIS_REPLY_STATUS));
  }
  void Get(size_t item) override { got_[item] = Command({"GET", names_[item]}, REDIS_REPLY_STRING); }
  bool LastGetWas(size_t item, const std::string& data) override {
    redisReply* const reply = std::exchange(got_[item], nullptr);
    const bool same = absl::string_view(reply->str, reply->len) == data;
    freeReplyObject(reply);
    return same;
  }

 private:
  redisReply* Command(std::initializer_list<absl::string_view> words, int type) {
    const char* data[3];
    size_t sizes[3];
    int n = 0;
    for (absl::string_view word : words) data[n] = word.data(), sizes[n++] = word.size();
    auto* reply = static_cast<redisReply*>(redisCommandArgv(redis_, n, data, sizes));
    if (reply == nullptr || reply->type != type) NotMeasurable("Redis: unexpected reply");
    return reply;
  }
  redisContext* const redis_;
  std::vector<std::string> names_;
  std::vector<redisReply*> got_;
};

// Rates of one operation, in bytes a microsecond, and what they cost.
struct Rates {
  std::vector<double> rounds;
  double bytes = 0, us = 0, client_s = 0, server_s = 0;
};
struct Side {
  std::vector<Way*> ways;
  clockid_t server_clock;
  Rates set, get;
};

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments), daemon_(arguments.Text("server")), seed_(arguments.Number("seed")) {}

  int Run() {
    for (absl::string_view text : absl::StrSplit(arguments_.Text("sizes"), ',')) {
      uint64_t bytes;
      if (!absl::SimpleAtoi(text, &bytes) || bytes == 0) NotMeasurable("--sizes is no list of bytes");
      for (size_t clients : kClients) Measure(bytes, clients);
    }
    Figure("inline_wrong")
        .Set("value", static_cast<double>(wrong_.load()))
        .Text("unit", "wrong answers")
        .Set("n", static_cast<double>(gets_))
        .Goal("value", 0)
        .Print();
    return 0;
  }

 private:
  clockid_t ClockOf(const std::string& pid) const {
    clockid_t clock;
    if (clock_getcpuclockid(static_cast<pid_t>(arguments_.Number(pid)), &clock) != 0) NotMeasurable("no " + pid);
    return clock;
  }

  void Measure(uint64_t bytes, size_t clients) {
    const std::string label = absl::StrCat(static_cast<double>(bytes) / 1e6, "MB_", clients);
    std::fprintf(stderr, "inline: %s\n", label.c_str());
    // Enough for a round to take milliseconds.
    const size_t items = std::clamp<size_t>(8'000'000 / bytes, 1, 8);
    const std::string layout = daemon_.RegisterLayout(bytes);
    std::vector<std::unique_ptr<OurWay>> ours;
    std::vector<std::unique_ptr<RedisWay>> theirs;
    Side sides[2] = {{{}, ClockOf("server-pid"), {}, {}}, {{}, ClockOf("redis-pid"), {}, {}}};
    for (size_t i = 0; i < clients; ++i) {
      ours.push_back(std::make_unique<OurWay>(arguments_.Text("server"), i, items, bytes, layout));
      theirs.push_back(std::make_unique<RedisWay>(static_cast<int>(arguments_.Number("redis-port")), i, items));
      sides[0].ways.push_back(ours[i].get());
      sides[1].ways.push_back(theirs[i].get());
    }
    std::vector<std::vector<std::string>> data(clients, std::vector<std::string>(items, std::string(bytes, '\0')));
    std::vector<uint64_t> random;
    for (size_t i = 0; i < clients; ++i) random.push_back((seed_ * 64 + i) * 0x9e3779b97f4a7c15 | 1);

    Crew crew(clients);
    const auto each = [&](const auto& work) {  // work(client, item)
      return crew.All([&](size_t client) {
        for (size_t item = 0; item < items; ++item) work(client, item);
      });
    };
    const auto timed = [&](Side* side, Rates* rates, const auto& work) {
      const double client_s = CpuSeconds(CLOCK_PROCESS_CPUTIME_ID), server_s = CpuSeconds(side->server_clock);
      const double us = each(work);
      rates->client_s += CpuSeconds(CLOCK_PROCESS_CPUTIME_ID) - client_s;
      rates->server_s += CpuSeconds(side->server_clock) - server_s;
      const double moved = static_cast<double>(bytes * items * clients);
      rates->bytes += moved, rates->us += us;
      rates->rounds.push_back(moved / us);
    };
    const auto round = [&](Side* side) {
      each([&](size_t client, size_t item) {
        FillRandom(&random[client], absl::MakeSpan(data[client][item].data(), bytes));
      });
      timed(side, &side->set, [&](size_t client, size_t item) { side->ways[client]->Set(item, data[client][item]); });
      timed(side, &side->get, [&](size_t client, size_t item) { side->ways[client]->Get(item); });
      each([&](size_t client, size_t item) { wrong_ += !side->ways[client]->LastGetWas(item, data[client][item]); });
      gets_ += clients * items;
    };
    const double block_us = static_cast<double>(arguments_.Number("seconds")) * 1e6;
    for (int attempt = 1; attempt == 1 || !IsStable("Redis SET", sides[1].set.rounds, attempt - 1) ||
                          !IsStable("Redis GET", sides[1].get.rounds, attempt - 1);
         ++attempt) {
      for (Side& side : sides) side.set = side.get = Rates();
      for (int64_t block = 0; block < arguments_.Number("blocks"); ++block) {
        for (Side& side : sides) {
          if (block == 0) {
            for (size_t i = 0; i < kWarmUpRounds; ++i) round(&side);
            side.set = side.get = Rates();
          }
          for (const Stopwatch watch; watch.microseconds() < block_us;) round(&side);
          if (&side == &sides[0]) ours[0]->Flush();
        }
      }
    }
    Print("set", label, bytes, sides[0].set, sides[1].set);
    Print("get", label, bytes, sides[0].get, sides[1].get);
    for (const auto& way : ours) way->Delete();
  }

  void Print(absl::string_view operation, const std::string& label, uint64_t bytes, const Rates& ours,
             const Rates& redis) const {
    constexpr double kPerUs = 1e-3;  // bytes a microsecond in GB a second
    const auto cpu = [](double seconds, const Rates& rates) { return seconds / (rates.bytes / kGB); };
    const bool small = bytes <= 4'000'000;
    Figure(absl::StrCat("inline_", operation, "_", label))
        .Set("value", Median(ours.rounds) * kPerUs)
        .Text("unit", "GB/s")
        .Set("n", static_cast<double>(ours.rounds.size()))
        .Set("p50", Median(ours.rounds) * kPerUs)
        .Set("p99", Quantile(ours.rounds, 0.01) * kPerUs)
        .Baseline(absl::StrCat("Redis ", operation == "set" ? "SET" : "GET", ", p50"), Median(redis.rounds) * kPerUs)
        .GoalAtLeast("ratio", small ? 0.7 : 1.0)
        .Set("aim", small ? 1.0 : 1.5)
        .Set("mean", ours.bytes / ours.us * kPerUs)
        .Set("baseline_mean", redis.bytes / redis.us * kPerUs)
        .Set("cpu_s_per_gb_client", cpu(ours.client_s, ours))
        .Set("cpu_s_per_gb_server", cpu(ours.server_s, ours))
        .Set("baseline_cpu_s_per_gb_client", cpu(redis.client_s, redis))
        .Set("baseline_cpu_s_per_gb_server", cpu(redis.server_s, redis))
        .Print();
  }

  const Arguments arguments_;
  const Connection daemon_;
  const uint64_t seed_;
  std::atomic<uint64_t> wrong_{0};
  uint64_t gets_ = 0;
};

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) { return statepool::bench::Bench(statepool::bench::Arguments(argc, argv)).Run(); }
