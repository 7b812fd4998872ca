// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figures `local_*`: plain Set and Get of whole states between processes of one machine, beside memcpy of the same
// bytes and Redis over its Unix socket.
//
//   statepool_bench_local --isolated=ADDRESS --direct=ADDRESS --empty=ADDRESS --redis=SOCKET --seed=N --sizes=BYTES,...
//                         --rounds=N --milliseconds=N
//
// What is measured is what one thread gets that uses our C++ client as it is, checksums on, one call at a time:
//   isolated  Pool::Set of the caller's buffer, and Pool::GetInto into one
//   arena     Arena::Store and Arena::Load of one row of an arena of the caller's own
//   direct    the same as isolated, of a daemon with --direct
//   view      Pool::GetView of such a daemon, until the view is given back
// Names are VOLATILE and have no history, so that no disk is in the way. Redis: hiredis, redisCommandArgv for SET and
// GET, no persistence; a reply is freed when the clock has stopped.
//
// The baseline is memcpy, as libc does it, by one thread, from one caller's buffer to another. Whatever is copied is in
// no cache, on either side: there are states, rows and buffers, kColdBytes of each, that have their turns, and every
// operation takes another one than those before it. Each was set and got before, so that no page is new to anybody.
// That holds for 0.5 MB as well, which would fit a cache: a model's state that was just computed may lie in one, and
// then memcpy, Redis and we would all be faster.
//
// A round has one Set and one Get of each way, each of them followed by memcpy of as many bytes and by an empty RPC: a
// unary call of the same gRPC over a Unix socket that does nothing (`rpc_us`).
//
// A state has a stamp in each leaf of 64 KiB, another one with each Set, which every Get must give. Every
// kCheckEvery-th round is not timed: there each way gets the state that it has just set, and every byte is compared.
//
// Views have rounds of their own, with one view of each size and an empty RPC after each. Nobody reads the bytes there:
// that is what a view costs, whatever its size. In rounds that are not timed a view must still have the bytes that it
// was got with when another version was set meanwhile, and the next view those of that version, every one of them.
#include <hiredis/hiredis.h>
#include <sys/mman.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "client/cpp/arena.h"
#include "client/cpp/statepool.h"
#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

constexpr uint64_t kColdBytes = 320'000'000;  // at least so many in each set of buffers
constexpr uint64_t kLeafBytes = 65536;
constexpr uint64_t kCheckEvery = 8;
constexpr uint64_t kViewCheckEvery = 256;
// Of views: the slowest size against an empty RPC and against the fastest size.
constexpr double kViewGoal = 2, kViewSizesGoal = 1.2;
constexpr double kGbPerS = 1e-3;  // of bytes a microsecond

template <typename Answer>
Answer Must(absl::StatusOr<Answer> answer, absl::string_view what) {
  if (!answer.ok()) NotMeasurable(absl::StrCat(what, ": ", answer.status().ToString()));
  return *std::move(answer);
}

// A caller's buffers, all of their pages there.
class Buffers {
 public:
  Buffers(size_t n, uint64_t bytes) : n_(n), bytes_(bytes) {
    void* const data =
        mmap(nullptr, n * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (data == MAP_FAILED) NotMeasurable("no memory for buffers");
    data_ = static_cast<char*>(data);
  }
  ~Buffers() { munmap(data_, n_ * bytes_); }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  absl::Span<char> operator[](size_t i) const { return {data_ + i * bytes_, bytes_}; }
  size_t size() const { return n_; }

 private:
  const size_t n_;
  const uint64_t bytes_;
  char* data_;
};

void Stamp(absl::Span<char> state, uint64_t stamp) {
  for (size_t at = 0; at < state.size(); at += kLeafBytes)
    std::memcpy(state.data() + at, &stamp, std::min(sizeof stamp, state.size() - at));
}

bool HasStamp(absl::string_view state, uint64_t stamp) {
  for (size_t at = 0; at < state.size(); at += kLeafBytes) {
    if (std::memcmp(state.data() + at, &stamp, std::min(sizeof stamp, state.size() - at)) != 0) return false;
  }
  return true;
}

// One way of states to a server and back: state i is set from Source(i). An error ends the program.
class Way {
 public:
  Way(std::string label, size_t states) : label_(std::move(label)), stamps_(states) {}
  virtual ~Way() = default;
  virtual absl::Span<char> Source(size_t i) = 0;
  virtual void Set(size_t i) = 0;
  virtual void Get(size_t i) = 0;
  virtual absl::string_view Got(size_t i) = 0;  // by the last Get of it; valid until Forget
  virtual void Forget(size_t /*i*/) {}

  const std::string& label() const { return label_; }
  uint64_t& stamp(size_t i) { return stamps_[i]; }  // what was set last

  // One operation's samples. `copy_us` is what the daemon says it spent copying; empty where it does not say.
  struct Samples {
    std::vector<double> call_us, copy_us;
  };
  Samples sets, gets;
  absl::Duration last_copy_time;

 private:
  const std::string label_;
  std::vector<uint64_t> stamps_;
};

class PoolWay final : public Way {
 public:
  PoolWay(const std::string& label, const std::string& address, std::string layout, const Buffers& from,
          const Buffers& to)
      : Way(label, from.size()),
        pool_(Must(client::Pool::Connect(address), "Connect")),
        layout_(std::move(layout)),
        prefix_(absl::StrCat("local/", label, "/")),
        from_(from),
        to_(to) {}
  ~PoolWay() override {
    v1::DeleteManyRequest all;
    all.set_name_prefix(prefix_);
    Must(pool_.DeleteMany(all), "DeleteMany");
  }
  absl::Span<char> Source(size_t i) override { return from_[i]; }
  void Set(size_t i) override {
    v1::SetRequest request;
    request.set_sequence(absl::StrCat(prefix_, i));
    request.set_layout(layout_);
    request.set_position(1);
    request.mutable_options()->set_durability(v1::VOLATILE);
    request.mutable_options()->set_max_history(1);
    Must(pool_.Set(std::move(request), {absl::string_view(from_[i].data(), from_[i].size())}), "Set");
  }
  void Get(size_t i) override {
    v1::GetRequest request;
    request.mutable_name()->set_sequence(absl::StrCat(prefix_, i));
    Must(pool_.GetInto(request, to_[i]), "GetInto");
  }
  absl::string_view Got(size_t i) override { return {to_[i].data(), to_[i].size()}; }

 private:
  const client::Pool pool_;
  const std::string layout_, prefix_;
  const Buffers &from_, &to_;
};

// What `way` is to reach beside memcpy and beside Redis, at least; 0: it is only told.
double MemcpyGoal(absl::string_view way, absl::string_view operation, uint64_t bytes) {
  if (way == "isolated") return 0.30;
  if (way == "arena") return bytes >= 4'000'000 ? 0.5 : 0;
  return operation == "set" ? 0.5 : 0;
}
double RedisGoal(absl::string_view way, absl::string_view operation, uint64_t bytes) {
  if (way == "isolated") return 2;
  return way == "direct" && operation == "get" && bytes >= 20'000'000 ? 5 : 0;
}

// Rows [0, n) are what is stored, rows [n, 2n) are loaded.
class ArenaWay final : public Way {
 public:
  ArenaWay(const std::string& label, const std::string& address, const std::string& layout, const Buffers& from)
      : Way(label, from.size()),
        pool_(Must(client::Pool::Connect(address), "Connect")),
        states_(from.size()),
        prefix_(absl::StrCat("local/", label, "/")) {
    client::ArenaOptions options;
    options.rows = static_cast<uint32_t>(2 * states_);
    arena_ = Must(pool_.OpenArena(layout, options), "OpenArena");
    for (size_t i = 0; i < states_; ++i) std::memcpy(Row(i).data(), from[i].data(), from[i].size());
  }
  ~ArenaWay() override {
    arena_->Close();
    v1::DeleteManyRequest all;
    all.set_name_prefix(prefix_);
    Must(pool_.DeleteMany(all), "DeleteMany");
  }
  absl::Span<char> Source(size_t i) override { return Row(i); }
  void Set(size_t i) override {
    v1::StoreItem item = client::StoreRow(static_cast<uint32_t>(i), absl::StrCat(prefix_, i), 1);
    item.set_whole_row(true);
    item.mutable_options()->set_durability(v1::VOLATILE);
    item.mutable_options()->set_max_history(1);
    const client::StoreAnswer answer = Must(arena_->Store({item}), "Store");
    Must(answer.rows[0], "Store of a row");
    last_copy_time = answer.copy_time;
  }
  void Get(size_t i) override {
    const v1::LoadItem item =
        client::LoadRow(static_cast<uint32_t>(states_ + i), client::SequenceRef(absl::StrCat(prefix_, i)));
    const client::LoadAnswer answer = Must(arena_->Load({item}), "Load");
    Must(answer.rows[0], "Load of a row");
    last_copy_time = answer.copy_time;
  }
  absl::string_view Got(size_t i) override { return {Row(states_ + i).data(), Row(states_ + i).size()}; }

 private:
  absl::Span<char> Row(size_t row) const {
    const client::ArenaTensor& tensor = arena_->tensors()[0];
    return {static_cast<char*>(tensor.data) + row * tensor.strides[0], tensor.shape[1] * tensor.strides[1]};
  }
  const client::Pool pool_;
  const size_t states_;
  const std::string prefix_;
  std::unique_ptr<client::Arena> arena_;
};

class RedisWay final : public Way {
 public:
  RedisWay(const std::string& socket, const Buffers& from)
      : Way("redis", from.size()), redis_(Connect(socket)), from_(from) {}
  ~RedisWay() override {
    freeReplyObject(Command({"FLUSHALL", "SYNC"}, REDIS_REPLY_STATUS));
    redisFree(redis_);
  }
  absl::Span<char> Source(size_t i) override { return from_[i]; }
  void Set(size_t i) override {
    freeReplyObject(
        Command({"SET", absl::StrCat("local/", i), {from_[i].data(), from_[i].size()}}, REDIS_REPLY_STATUS));
  }
  void Get(size_t i) override { got_ = Command({"GET", absl::StrCat("local/", i)}, REDIS_REPLY_STRING); }
  absl::string_view Got(size_t /*i*/) override { return {got_->str, got_->len}; }
  void Forget(size_t /*i*/) override { freeReplyObject(std::exchange(got_, nullptr)); }

 private:
  static redisContext* Connect(const std::string& socket) {
    for (int attempt = 0; attempt < 100; ++attempt) {  // it was started just now
      redisContext* const redis = redisConnectUnix(socket.c_str());
      if (redis != nullptr && redis->err == 0) return redis;
      redisFree(redis);
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    NotMeasurable("no connection to Redis");
  }
  redisReply* Command(std::initializer_list<absl::string_view> words, int type) {
    const char* data[3];
    size_t sizes[3];
    int n = 0;
    for (absl::string_view word : words) data[n] = word.data(), sizes[n++] = word.size();
    auto* const reply = static_cast<redisReply*>(redisCommandArgv(redis_, n, data, sizes));
    if (reply == nullptr || reply->type != type) NotMeasurable("Redis: unexpected reply");
    return reply;
  }
  redisContext* const redis_;
  const Buffers& from_;
  redisReply* got_ = nullptr;
};

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments),
        empty_(arguments.Text("empty")),
        isolated_(arguments.Text("isolated")),
        direct_(arguments.Text("direct")),
        random_((static_cast<uint64_t>(arguments.Number("seed")) * 0x9e3779b97f4a7c15) | 1) {}

  int Run() {
    RequireMode(isolated_, "isolated");
    RequireMode(direct_, "direct");
    std::vector<uint64_t> sizes;
    for (absl::string_view text : absl::StrSplit(arguments_.Text("sizes"), ',')) {
      uint64_t bytes;
      if (!absl::SimpleAtoi(text, &bytes) || bytes == 0) NotMeasurable("--sizes is no list of bytes");
      sizes.push_back(bytes);
    }
    for (const uint64_t bytes : sizes) Measure(bytes);
    MeasureViews(sizes);
    Figure("local_wrong")
        .Set("value", static_cast<double>(wrong_))
        .Text("unit", "wrong answers")
        .Set("n", static_cast<double>(checked_))
        .Goal("value", 0)
        .Print();
    return 0;
  }

 private:
  struct Baseline {
    std::vector<double> memcpy_us, rpc_us;
  };

  static void RequireMode(const Connection& daemon, absl::string_view mode) {
    const auto capabilities = daemon.Call(&v1::StatePool::Stub::GetCapabilities, v1::GetCapabilitiesRequest());
    if (capabilities.copy_mode() != mode)
      NotMeasurable(absl::StrCat("a daemon is ", capabilities.copy_mode(), ", not ", mode));
  }
  static std::string LabelOf(uint64_t bytes) { return absl::StrCat(static_cast<double>(bytes) / 1e6, "MB"); }

  double EmptyRpc() const {
    const Stopwatch watch;
    empty_.Call(&v1::StatePool::Stub::GetCapabilities, v1::GetCapabilitiesRequest());
    return watch.microseconds();
  }

  void Measure(uint64_t bytes) {
    const std::string label = LabelOf(bytes);
    std::fprintf(stderr, "local: %s\n", label.c_str());
    const size_t states = (kColdBytes + bytes - 1) / bytes;
    const Buffers from(states, bytes), to(states, bytes);
    for (size_t i = 0; i < states; ++i) FillRandom(&random_, from[i]);
    const std::string layout = isolated_.RegisterLayout(bytes);
    direct_.RegisterLayout(bytes);
    PoolWay isolated("isolated", arguments_.Text("isolated"), layout, from, to);
    ArenaWay arena("arena", arguments_.Text("isolated"), layout, from);
    PoolWay direct("direct", arguments_.Text("direct"), layout, from, to);
    RedisWay redis(arguments_.Text("redis"), from);
    Way* const ways[] = {&isolated, &arena, &direct, &redis};
    for (Way* way : ways) {
      for (size_t i = 0; i < states; ++i) Set(way, i);
      for (size_t i = 0; i < states; ++i) Get(way, i);
    }

    const double milliseconds = static_cast<double>(arguments_.Number("milliseconds"));
    const auto rounds = static_cast<uint64_t>(arguments_.Number("rounds"));
    Baseline baseline;
    for (int attempt = 1; attempt == 1 || !IsStable("memcpy", baseline.memcpy_us, attempt - 1) ||
                          !IsStable("Redis SET", redis.sets.call_us, attempt - 1) ||
                          !IsStable("Redis GET", redis.gets.call_us, attempt - 1);
         ++attempt) {
      baseline = {};
      for (Way* way : ways) way->sets = way->gets = {};
      const Stopwatch watch;
      for (uint64_t round = 0; redis.gets.call_us.size() < rounds || watch.microseconds() < milliseconds * 1e3;
           ++round) {
        if (round % kCheckEvery == 0) Check(ways, from, round % states);
        else Round(ways, from, to, round, &baseline);
      }
    }
    for (Way* way : absl::MakeSpan(ways).first(std::size(ways) - 1)) {
      Print(*way, "set", label, bytes, way->sets, redis.sets, baseline);
      Print(*way, "get", label, bytes, way->gets, redis.gets, baseline);
    }
  }

  double Set(Way* way, size_t i) {
    Stamp(way->Source(i), way->stamp(i) = ++last_stamp_);
    const Stopwatch watch;
    way->Set(i);
    return watch.microseconds();
  }

  double Get(Way* way, size_t i) {
    const Stopwatch watch;
    way->Get(i);
    const double us = watch.microseconds();
    Count(HasStamp(way->Got(i), way->stamp(i)), way->label());
    way->Forget(i);
    return us;
  }

  static void Add(double call_us, const Way& way, Way::Samples* samples) {
    samples->call_us.push_back(call_us);
    if (way.last_copy_time > absl::ZeroDuration())
      samples->copy_us.push_back(absl::ToDoubleMicroseconds(way.last_copy_time));
  }

  void Round(absl::Span<Way* const> ways, const Buffers& from, const Buffers& to, uint64_t round, Baseline* baseline) {
    const size_t n = from.size(), operations = 2 * ways.size();
    size_t operation = 0;
    // Each operation goes through all states, and a state rests for about `n` operations. Gets are behind Sets.
    const auto next = [&] { return (round + n - operation++ * n / operations) % n; };
    const auto beside = [&](size_t i) {
      const Stopwatch watch;
      std::memcpy(to[(i + 1) % n].data(), from[i].data(), from[i].size());
      baseline->memcpy_us.push_back(watch.microseconds());
      baseline->rpc_us.push_back(EmptyRpc());
    };
    for (Way* way : ways) {
      const size_t i = next();
      Add(Set(way, i), *way, &way->sets);
      beside((i + n / 2) % n);
    }
    for (Way* way : ways) {
      const size_t i = next();
      Add(Get(way, i), *way, &way->gets);
      beside((i + n / 2) % n);
    }
  }

  void Check(absl::Span<Way* const> ways, const Buffers& from, size_t i) {
    for (Way* way : ways) {
      Set(way, i);
      way->Get(i);
      Stamp(from[i], way->stamp(i));  // else it is what an arena's row was filled with
      Count(way->Got(i) == absl::string_view(from[i].data(), from[i].size()), way->label());
      way->Forget(i);
    }
  }

  void Count(bool right, absl::string_view way) {
    ++checked_;
    if (!right && wrong_++ == 0) std::fprintf(stderr, "local: wrong bytes, %s\n", std::string(way).c_str());
  }

  static void Print(const Way& way, const std::string& operation, const std::string& label, uint64_t bytes,
                    const Way::Samples& samples, const Way::Samples& redis_samples, const Baseline& baseline) {
    const std::vector<double>& us = samples.call_us;
    const auto rate = [&](double us) { return static_cast<double>(bytes) / us * kGbPerS; };
    const double value = rate(Median(us)), redis = rate(Median(redis_samples.call_us));
    Figure figure(absl::StrCat("local_", operation, "_", label, "_", way.label()));
    figure.Set("value", value)
        .Text("unit", "GB/s")
        .Set("n", static_cast<double>(us.size()))
        .Set("p50", value)
        .Set("p99", rate(Quantile(us, 0.99)))
        .Baseline("memcpy by one thread, p50", rate(Median(baseline.memcpy_us)));
    if (const double goal = MemcpyGoal(way.label(), operation, bytes); goal > 0) figure.GoalAtLeast("ratio", goal);
    figure.Set("redis_ratio", value / redis)
        .Set("call_us", Median(us))
        .Set("memcpy_us", Median(baseline.memcpy_us))
        .Set("rpc_us", Median(baseline.rpc_us));
    if (!samples.copy_us.empty()) figure.Set("copy_us", Median(samples.copy_us));
    figure.Print();
    const double goal = RedisGoal(way.label(), operation, bytes);
    if (goal == 0) return;
    Figure(absl::StrCat("local_redis_", operation, "_", label, "_", way.label()))
        .Set("value", value)
        .Text("unit", "GB/s")
        .Set("n", static_cast<double>(us.size()))
        .Set("p50", value)
        .Set("p99", rate(Quantile(us, 0.99)))
        .Baseline(absl::StrCat("Redis ", operation == "set" ? "SET" : "GET", ", Unix socket, p50"), redis)
        .GoalAtLeast("ratio", goal)
        .Print();
  }

  // A sequence whose views are taken.
  struct Viewed {
    std::string name, layout, state;
    uint64_t stamp = 0;
    std::vector<double> us;
  };

  void MeasureViews(const std::vector<uint64_t>& sizes) {
    std::fprintf(stderr, "local: views\n");
    const client::Pool pool = Must(client::Pool::Connect(arguments_.Text("direct")), "Connect");
    std::vector<Viewed> all;
    for (const uint64_t bytes : sizes) {
      Viewed& viewed = all.emplace_back();
      viewed.name = absl::StrCat("local/view/", bytes);
      viewed.layout = direct_.RegisterLayout(bytes);
      viewed.state.resize(bytes);
      FillRandom(&random_, absl::MakeSpan(viewed.state.data(), bytes));
      SetViewed(pool, &viewed);
    }
    std::vector<double> rpc_us;
    const double milliseconds = static_cast<double>(arguments_.Number("milliseconds"));
    const auto rounds = static_cast<uint64_t>(arguments_.Number("rounds"));
    for (int attempt = 1; attempt == 1 || !IsStable("an empty RPC", rpc_us, attempt - 1); ++attempt) {
      rpc_us.clear();
      for (Viewed& viewed : all) viewed.us.clear();
      const Stopwatch watch;
      for (uint64_t round = 0; all[0].us.size() < rounds || watch.microseconds() < milliseconds * 1e3; ++round) {
        for (Viewed& viewed : all) {
          if (round % kViewCheckEvery == 0) {
            CheckView(pool, &viewed);
            continue;
          }
          const Stopwatch view_watch;
          { const client::StateView view = View(pool, viewed); }
          viewed.us.push_back(view_watch.microseconds());
          rpc_us.push_back(EmptyRpc());
        }
      }
    }
    const auto slower = [](const Viewed& a, const Viewed& b) { return Median(a.us) < Median(b.us); };
    const auto [fastest, slowest] = std::minmax_element(all.begin(), all.end(), slower);
    for (const Viewed& viewed : all) {
      Figure(absl::StrCat("local_view_", LabelOf(viewed.state.size()), "_direct"))
          .Samples(viewed.us, "us", 1)
          .Baseline("empty RPC, p50", Median(rpc_us))
          .Goal("ratio", kViewGoal)
          .Print();
    }
    Figure("local_view_sizes_direct")
        .Samples(slowest->us, "us", 1)
        .Baseline(absl::StrCat("view of ", LabelOf(fastest->state.size()), ", p50"), Median(fastest->us))
        .Goal("ratio", kViewSizesGoal)
        .Text("slowest", LabelOf(slowest->state.size()))
        .Print();
  }

  static client::StateView View(const client::Pool& pool, const Viewed& viewed) {
    return Must(pool.GetView(client::SequenceRef(viewed.name)), "GetView");
  }

  void SetViewed(const client::Pool& pool, Viewed* viewed) {
    Stamp(absl::MakeSpan(viewed->state.data(), viewed->state.size()), viewed->stamp = ++last_stamp_);
    v1::SetRequest request;
    request.set_sequence(viewed->name);
    request.set_layout(viewed->layout);
    request.set_position(1);
    request.mutable_options()->set_durability(v1::VOLATILE);
    request.mutable_options()->set_max_history(1);
    Must(pool.Set(std::move(request), {viewed->state}), "Set");
  }

  void CheckView(const client::Pool& pool, Viewed* viewed) {
    const client::StateView before = View(pool, *viewed);
    Count(before.bytes() == viewed->state, "view");
    const uint64_t stamp = viewed->stamp;
    SetViewed(pool, viewed);
    Count(HasStamp(before.bytes(), stamp), "view");
    Count(View(pool, *viewed).bytes() == viewed->state, "view");
  }

  const Arguments arguments_;
  const Connection empty_, isolated_, direct_;
  uint64_t random_, last_stamp_ = 0;
  uint64_t wrong_ = 0, checked_ = 0;
};

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) { return statepool::bench::Bench(statepool::bench::Arguments(argc, argv)).Run(); }
