// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figures `prefix_*`: the longest published prefix of 32,768 tokens, among 100,000.
//
//   statepool_bench_prefix --server=ADDRESS --pid=DAEMON --seed=N --prefixes=N --queries=N
//
// The data: prefixes of 16 to 32,768 tokens, log-uniform; four in five lie on 100 shared streams of tokens (so a query
// on one passes hundreds of published lengths), each of the others on a stream of its own. The queries: 32,768 tokens
// of a stream drawn alike; half of them diverge from it at a depth drawn uniformly.
//
// The time in the server is measured in this process, over the daemon's own Store and handlers with the tests' fakes
// for the disk: from the serialized request to the serialized answer. End to end is over the wire to a daemon with the
// same data. Every answer is compared with what a sorted list of the lengths published on each stream says. With keys
// of 16 bits, where nearly every key belongs to several prefixes, an answer may be shorter or a miss, but never wrong.
#include <cmath>
#include <fstream>
#include <set>
#include <thread>

#include "core/fakes.h"
#include "server/rpc/handlers.h"
#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

constexpr size_t kTokensMax = 32'768, kTokensMin = 16;
constexpr size_t kSharedStreams = 100;
constexpr size_t kPublishers = 4;
constexpr uint64_t kStateBytes = 64;
constexpr int kCollidingKeyBits = 16;
constexpr uint32_t kVocabulary = 150'000;

using Tokens = std::vector<uint32_t>;

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

class Data {
 public:
  Data(uint64_t seed, size_t prefixes) : seed_(seed), random_(seed) {
    const double low = std::log(kTokensMin), high = std::log(kTokensMax + 1);
    std::uniform_real_distribution<double> log_length(low, high);
    for (size_t i = 0; i < prefixes;) {
      const size_t length = std::min(kTokensMax, static_cast<size_t>(std::exp(log_length(random_))));
      const size_t stream = i % 5 != 0 ? random_() % kSharedStreams : kSharedStreams + i;
      if (!published_[stream].insert(length).second) continue;  // drawn again
      prefixes_[length].push_back(stream);
      own_.push_back(stream);
      ++i;
    }
    std::erase_if(own_, [](size_t stream) { return stream < kSharedStreams; });
    for (size_t i = 0; i < kSharedStreams; ++i) shared_.push_back(Make(i, kTokensMax));
  }

  // Streams by the length published on them; ascending lengths.
  const std::map<size_t, std::vector<size_t>>& prefixes() const { return prefixes_; }

  Tokens Prefix(size_t stream, size_t length) const {
    if (stream >= kSharedStreams) return Make(stream, length);
    return {shared_[stream].begin(), shared_[stream].begin() + static_cast<std::ptrdiff_t>(length)};
  }

  struct Query {
    Tokens tokens;
    size_t expected;  // the longest published prefix; 0: a miss
    size_t stream, depth;
  };
  Query NextQuery() {
    Query query;
    query.stream = random_() % 5 != 0 ? random_() % kSharedStreams : own_[random_() % own_.size()];
    query.tokens = Prefix(query.stream, kTokensMax);
    query.depth = kTokensMax;
    if (queries_++ % 2 == 1) {
      query.depth = random_() % kTokensMax;
      const Tokens other = Make(Mix(queries_) | 1u << 31, kTokensMax);
      std::copy(other.begin() + static_cast<std::ptrdiff_t>(query.depth), other.end(),
                query.tokens.begin() + static_cast<std::ptrdiff_t>(query.depth));
      query.tokens[query.depth] = kVocabulary;  // in no stream
    }
    // At most one token less than the query has: the default of max_position.
    const std::set<size_t>& lengths = published_.at(query.stream);
    const auto after = lengths.upper_bound(std::min(query.depth, kTokensMax - 1));
    query.expected = after == lengths.begin() ? 0 : *std::prev(after);
    return query;
  }
  bool IsPublished(const Query& query, size_t length) const {
    return length <= query.depth && published_.at(query.stream).contains(length);
  }

 private:
  Tokens Make(uint64_t stream, size_t length) const {
    Tokens tokens(length);
    const uint64_t base = Mix(seed_ ^ Mix(stream));
    for (size_t i = 0; i < length; ++i) tokens[i] = static_cast<uint32_t>(Mix(base + i) % kVocabulary);
    return tokens;
  }

  const uint64_t seed_;
  std::mt19937_64 random_;
  uint64_t queries_ = 0;
  std::map<size_t, std::set<size_t>> published_;  // by stream
  std::map<size_t, std::vector<size_t>> prefixes_;
  std::vector<size_t> own_;
  std::vector<Tokens> shared_;
};

void Require(const absl::Status& status) {
  if (!status.ok()) NotMeasurable(status.ToString());
}

v1::MatchPrefixRequest MatchRequestOf(const std::string& layout, const Tokens& tokens) {
  v1::MatchPrefixRequest request;
  request.set_layout(layout);
  request.mutable_tokens()->Add(tokens.begin(), tokens.end());
  return request;
}

size_t PositionOf(const v1::MatchPrefixResponse& response) {
  return response.matches_size() == 0 ? 0 : static_cast<size_t>(response.matches(0).position());
}

// A Store in this process with all prefixes published.
class Local {
 public:
  Local(const Data& data, int key_bits)
      : images_(&disk_),
        log_(&disk_),
        store_(OptionsOf(key_bits), &images_, &log_, &clock_),
        handlers_(&store_, /*arenas=*/nullptr, /*leases=*/nullptr, Identity(),
                  [] { return std::vector<v1::DeviceInfo>(); }) {
    Require(store_.Recover());
    absl::StatusOr<LayoutRef> layout =
        Layout::Create({"bench", {{"state", TensorKind::kOther, {0}, DType::kUInt8, {{"byte", kStateBytes}}, {}, {}}}});
    Require(layout.status());
    Require(store_.RegisterLayout(op_, *layout, "bench").status());
    const std::string bytes(kStateBytes, 'x');
    const absl::string_view piece(bytes);
    for (const auto& [length, streams] : data.prefixes()) {
      SetRequest set;
      set.sequence = "source", set.layout = "bench", set.position = static_cast<int64_t>(length);
      StateBytes state;
      state.pieces = {&piece, 1};
      Require(store_.Set(op_, set, state).status());
      for (const size_t stream : streams) {
        const Source source{{kDefaultTenant, NameKind::kSequence, "source"}, std::nullopt, ""};
        Require(store_.PublishPrefix(op_, {"bench", data.Prefix(stream, length), "", source, {}}).status());
      }
    }
  }

  // Gives microseconds.
  double Match(const std::string& request, v1::MatchPrefixResponse* response) {
    std::string answer;
    const Stopwatch watch;
    v1::MatchPrefixRequest parsed;
    if (!parsed.ParseFromString(request)) NotMeasurable("a request could not be parsed");
    const absl::Status status = handlers_.MatchPrefix(op_, parsed, response);
    response->SerializeToString(&answer);
    const double us = watch.microseconds();
    Require(status);
    return us;
  }

 private:
  static StoreOptions OptionsOf(int key_bits) {
    StoreOptions options;
    options.prefix_key_bits = key_bits;
    return options;
  }
  const Op op_;
  SystemClock clock_;
  FakeDisk disk_;
  FakeImageStore images_;
  FakeNameLog log_;
  Store store_;
  Handlers handlers_;
};

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments),
        daemon_(arguments.Text("server")),
        data_(static_cast<uint64_t>(arguments.Number("seed")), static_cast<size_t>(arguments.Number("prefixes"))),
        queries_(static_cast<size_t>(arguments.Number("queries"))) {}

  int Run() {
    const double prefixes = static_cast<double>(arguments_.Number("prefixes"));
    std::vector<double> diverging;
    size_t wrong_local = 0, wrong_colliding = 0, shorter_colliding = 0, wrong_wire = 0, hits = 0;
    std::vector<double> local_us;
    {
      std::fprintf(stderr, "prefix: publishing in this process\n");
      Local local(data_, 128);
      std::fprintf(stderr, "prefix: %zu queries\n", queries_);
      for (size_t i = 0; i < queries_; ++i) {
        const Data::Query query = data_.NextQuery();
        v1::MatchPrefixResponse response;
        local_us.push_back(local.Match(MatchRequestOf("bench", query.tokens).SerializeAsString(), &response));
        if (query.depth < kTokensMax) diverging.push_back(local_us.back());
        wrong_local += PositionOf(response) != query.expected;
        hits += query.expected != 0;
      }
    }
    Figure("prefix_server")
        .Samples(local_us, "us", 1)
        .Goal("value", 1000)
        .Set("aim", 100)
        .Set("p50_diverging", Median(diverging))
        .Set("prefixes", prefixes)
        .Set("hits", static_cast<double>(hits))
        .Print();
    {
      std::fprintf(stderr, "prefix: the same with colliding keys\n");
      Local local(data_, kCollidingKeyBits);
      for (size_t i = 0; i < queries_; ++i) {
        const Data::Query query = data_.NextQuery();
        v1::MatchPrefixResponse response;
        local.Match(MatchRequestOf("bench", query.tokens).SerializeAsString(), &response);
        const size_t position = PositionOf(response);
        wrong_colliding += position > query.expected || (position != 0 && !data_.IsPublished(query, position));
        shorter_colliding += position < query.expected;
      }
    }
    const double wire_prefix_bytes = Publish() / prefixes;
    std::vector<double> wire_us;
    const std::string layout = daemon_.RegisterLayout(kStateBytes);
    for (size_t i = 0; i < queries_; ++i) {
      const Data::Query query = data_.NextQuery();
      const v1::MatchPrefixRequest request = MatchRequestOf(layout, query.tokens);
      const Stopwatch watch;
      const v1::MatchPrefixResponse response = daemon_.Call(&v1::StatePool::Stub::MatchPrefix, request);
      wire_us.push_back(watch.microseconds());
      wrong_wire += PositionOf(response) != query.expected;
    }
    Figure("prefix_end_to_end").Samples(wire_us, "us", 1).Set("prefixes", prefixes).Print();
    Figure("prefix_memory")
        .Set("value", wire_prefix_bytes)
        .Text("unit", "bytes of the daemon a prefix")
        .Set("n", prefixes)
        .Set("rss_mb", Memory("VmRSS") / 1e6)
        .Print();
    Figure("prefix_wrong")
        .Set("value", static_cast<double>(wrong_local + wrong_colliding + wrong_wire))
        .Text("unit", "wrong answers")
        .Set("n", static_cast<double>(3 * queries_))
        .Goal("value", 0)
        .Set("wrong_in_process", static_cast<double>(wrong_local))
        .Set("wrong_with_colliding_keys", static_cast<double>(wrong_colliding))
        .Set("shorter_with_colliding_keys", static_cast<double>(shorter_colliding))
        .Set("wrong_over_the_wire", static_cast<double>(wrong_wire))
        .Print();
    return 0;
  }

 private:
  // A field of /proc/PID/status, in bytes.
  double Memory(absl::string_view field) const {
    std::ifstream status("/proc/" + arguments_.Text("pid") + "/status");
    for (std::string line; std::getline(status, line);) {
      if (line.rfind(absl::StrCat(field, ":"), 0) == 0) return std::atof(line.substr(field.size() + 1).c_str()) * 1024;
    }
    NotMeasurable(absl::StrCat("no ", field, " of the daemon"));
  }

  // Publishes all prefixes in the daemon; gives by how much its anonymous memory grew.
  double Publish() const {
    std::fprintf(stderr, "prefix: publishing in the daemon\n");
    const std::string layout = daemon_.RegisterLayout(kStateBytes);
    const double before = Memory("RssAnon");
    std::vector<std::thread> threads;
    for (size_t t = 0; t < kPublishers; ++t) {
      threads.emplace_back([this, t, &layout] {
        const Connection connection(arguments_.Text("server"));
        const std::string source = absl::StrCat("source/", t);
        size_t i = 0;
        for (const auto& [length, streams] : data_.prefixes()) {
          if (i++ % kPublishers != t) continue;
          connection.Set(source, layout, static_cast<int64_t>(length), std::string(kStateBytes, 'x'));
          for (const size_t stream : streams) {
            const Tokens tokens = data_.Prefix(stream, length);
            v1::PublishPrefixRequest request;
            request.set_layout(layout);
            request.mutable_tokens()->Add(tokens.begin(), tokens.end());
            request.mutable_source()->set_sequence(source);
            connection.Call(&v1::StatePool::Stub::PublishPrefix, request);
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return Memory("RssAnon") - before;
  }

  const Arguments arguments_;
  const Connection daemon_;
  Data data_;
  const size_t queries_;
};

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) { return statepool::bench::Bench(statepool::bench::Arguments(argc, argv)).Run(); }
