// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figures `clients_*`: 1, 8 and 64 connections at once, nine Gets to a Set, states of 80 KB.
//
//   statepool_bench_clients --server=ADDRESS --server-pid=N --empty=ADDRESS --empty-pid=N --seed=N --rounds=N
//                           --milliseconds=N
//
// A connection is one HTTP/2 connection with one call under way, the next begun when it ends. It Sets its own sequence
// and Gets any of 64 (always the same, however many connections there are). All of them are driven by kThreads
// threads with a completion queue each: a thread for each connection would make this process the bottleneck, and its
// task switches the figure. Messages are raw; what a Set sends lies ready before the call begins.
//
// A state begins with a stamp (whose it is, which of the bodies follows, a serial number). Each Get's stamp and length
// are checked, and of one in kWholeChecks all bytes.
//
// The same is done with a server of the same gRPC that does nothing (bench_empty_server.cc), by 8 and by 64: what
// falls there falls for reasons of gRPC and of the machine. A round runs each side for the same time, in an order that
// is drawn anew. Both processes' CPU time a call is told too: where others use the machine, how much of it a side gets
// is their doing, and `ratio_of_cpu` (CPU a call by 8 connections / by 64) is what the ratio would be on busy cores of
// our own.
//
// Whether the throughput falls from 8 to 64 is decided by the medians over the rounds; from the goal of 1 is taken what
// the rounds' noise leaves open: twice the standard error of the median of the rounds' ratios, at most 0.1.
#include <grpcpp/generic/generic_stub.h>
#include <malloc.h>
#include <time.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "proto/wire.h"
#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

constexpr size_t kConnections[] = {1, 8, 64};
constexpr size_t kMost = 64;
constexpr size_t kThreads = 2;
constexpr size_t kStateBytes = 80'000;
constexpr size_t kGetsOfTen = 9;
constexpr size_t kWholeChecks = 16;
constexpr size_t kBodies = 64;

struct Stamp {
  uint32_t owner, body;
  uint64_t serial;
};
constexpr size_t kBodyBytes = kStateBytes - sizeof(Stamp);

std::string NameOf(size_t connection) { return absl::StrCat("clients/", connection); }

double CpuSeconds(clockid_t clock) {
  timespec time;
  if (clock_gettime(clock, &time) != 0) NotMeasurable("no CPU clock of a server");
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// What all connections send.
struct Messages {
  std::string set_rest[kMost];  // a SetRequest but for its data
  std::vector<grpc::Slice> bodies;
  grpc::ByteBuffer gets[kMost];

  Messages(const std::string& layout, std::mt19937_64* random) {
    for (size_t i = 0; i < kMost; ++i) {
      v1::SetRequest set;
      set.set_sequence(NameOf(i));
      set.set_layout(layout);
      set.set_position(1);
      set_rest[i] = set.SerializeAsString();
      v1::GetRequest get;
      get.mutable_name()->set_sequence(NameOf(i));
      gets[i] = wire::Join(get.SerializeAsString(), wire::kDataField, {});
    }
    for (size_t i = 0; i < kBodies; ++i) bodies.emplace_back(RandomBytes(kBodyBytes, (*random)()));
  }
};

struct Server {
  std::string address;
  clockid_t clock;
  bool stores;  // a Get gives what was Set
};

struct Results {
  std::vector<double> get_us, set_us;
  uint64_t failed = 0, wrong = 0;
};

// One connection and its call. Not thread-safe.
class Client {
 public:
  Client(const Server& server, const Messages& messages, size_t number, uint64_t seed)
      : messages_(messages), number_(number), stores_(server.stores), random_(seed) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(server.address, grpc::InsecureChannelCredentials(), arguments);
    stub_.emplace(channel_);
    if (!channel_->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10)))
      NotMeasurable("no connection to " + server.address);
  }

  void Start(grpc::CompletionQueue* queue) { Start(random_() % 10 < kGetsOfTen, queue); }

  void Start(bool get, grpc::CompletionQueue* queue) {
    static const std::string kGet = "/statepool.v1.StatePool/Get", kSet = "/statepool.v1.StatePool/Set";
    is_get_ = get;
    name_ = is_get_ ? random_() % kMost : number_;
    context_.emplace();
    response_.Clear();
    const grpc::ByteBuffer request = is_get_ ? messages_.gets[name_] : NextSet();
    watch_ = Stopwatch();
    call_ = stub_->PrepareUnaryCall(&*context_, is_get_ ? kGet : kSet, request, queue);
    call_->StartCall();
    call_->Finish(&response_, &status_, this);
  }

  void Ended(Results* results) {
    const double us = watch_.microseconds();
    (is_get_ ? results->get_us : results->set_us).push_back(us);
    if (!status_.ok()) {
      if (results->failed++ == 0) std::fprintf(stderr, "failed: %s\n", status_.error_message().c_str());
    } else if (is_get_ && !IsRight()) {
      ++results->wrong;
    }
  }

 private:
  grpc::ByteBuffer NextSet() {
    const Stamp stamp = {static_cast<uint32_t>(number_), static_cast<uint32_t>(random_() % kBodies), ++serial_};
    return wire::Join(messages_.set_rest[number_], wire::kDataField,
                      {grpc::Slice(&stamp, sizeof(stamp)), messages_.bodies[stamp.body]});
  }

  bool IsRight() {
    const absl::StatusOr<wire::SplitMessage> answer = wire::Split(response_, wire::kDataField, 1 << 20);
    if (!answer.ok() || answer->data_bytes != kStateBytes) return false;
    if (!stores_) return true;
    char head[sizeof(Stamp)];
    size_t done = 0;  // bytes of the state
    Stamp stamp;
    const char* body = nullptr;
    const bool whole = random_() % kWholeChecks == 0;
    for (absl::string_view piece : answer->data) {
      if (done < sizeof(head)) {
        const size_t part = std::min(piece.size(), sizeof(head) - done);
        std::memcpy(head + done, piece.data(), part);
        piece.remove_prefix(part);
        done += part;
        if (done < sizeof(head)) continue;
        std::memcpy(&stamp, head, sizeof(head));
        if (stamp.owner != name_ || stamp.body >= kBodies) return false;
        if (!whole) return true;
        body = reinterpret_cast<const char*>(messages_.bodies[stamp.body].begin()) - sizeof(head);
      }
      if (std::memcmp(piece.data(), body + done, piece.size()) != 0) return false;
      done += piece.size();
    }
    return true;
  }

  const Messages& messages_;
  const size_t number_;
  const bool stores_;
  std::mt19937_64 random_;
  std::shared_ptr<grpc::Channel> channel_;
  std::optional<grpc::GenericStub> stub_;
  uint64_t serial_ = 0;

  bool is_get_ = false;
  size_t name_ = 0;
  std::optional<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> call_;
  grpc::ByteBuffer response_;
  grpc::Status status_;
  Stopwatch watch_;
};

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments),
        random_(static_cast<uint64_t>(arguments.Number("seed"))),
        messages_(Connection(arguments.Text("server")).RegisterLayout(kStateBytes), &random_),
        servers_{{arguments.Text("server"), ClockOf("server-pid"), true},
                 {arguments.Text("empty"), ClockOf("empty-pid"), false}} {
    for (size_t connections : kConnections) sides_.push_back({&servers_[0], connections, {}, {}, {}, {}, {}});
    sides_.push_back({&servers_[1], kConnections[1], {}, {}, {}, {}, {}});
    sides_.push_back({&servers_[1], kConnections[2], {}, {}, {}, {}, {}});
  }

  int Run() {
    const size_t rounds = static_cast<size_t>(arguments_.Number("rounds"));
    for (int attempt = 1; attempt == 1 || !IsStable("throughput of 8 connections", sides_[1].per_second, attempt - 1);
         ++attempt) {
      for (Side& side : sides_) side = {side.server, side.connections, {}, {}, {}, {}, {}};
      for (size_t round = 0; round < 1 + rounds; ++round) {
        std::fprintf(stderr, "clients: round %zu\n", round);
        std::vector<Side*> order;
        for (Side& side : sides_) order.push_back(&side);
        std::shuffle(order.begin(), order.end(), random_);
        for (Side* side : order) Block(side, /*counts=*/round > 0);
      }
    }
    std::vector<double> ratios;
    for (size_t i = 0; i < rounds; ++i) ratios.push_back(sides_[2].per_second[i] / sides_[1].per_second[i]);
    std::vector<double> distances;
    for (double ratio : ratios) distances.push_back(std::abs(ratio - Median(ratios)));
    const double deviation = 1.4826 * Median(distances);
    const double noise = std::min(0.1, 2 * 1.2533 * deviation / std::sqrt(static_cast<double>(rounds)));
    for (size_t i = 0; i < sides_.size(); ++i) {
      const Side& side = sides_[i];
      Figure figure(absl::StrCat(side.server->stores ? "clients_" : "clients_empty_server_", side.connections));
      figure.Set("value", Median(side.per_second))
          .Text("unit", "calls/s")
          .Set("n", static_cast<double>(rounds))
          .Set("get_p50_us", Median(side.get_us))
          .Set("get_p99_us", Quantile(side.get_us, 0.99))
          .Set("set_p50_us", Median(side.set_us))
          .Set("set_p99_us", Quantile(side.set_us, 0.99))
          .Set("gb_per_s", Median(side.per_second) * static_cast<double>(kStateBytes) * 1e-9)
          .Set("cpu_us_per_call_client", Median(side.client_cpu_us))
          .Set("cpu_us_per_call_server", Median(side.server_cpu_us))
          .Set("cores_used", Median(side.per_second) * CpuOf(side) * 1e-6);
      if (i == 2) {
        figure.Baseline("8 connections, p50", Median(sides_[1].per_second))
            .GoalAtLeast("ratio", 1 - noise)
            .Set("aim", 1)
            .Set("noise", noise)
            .Set("ratio_of_cpu", CpuOf(sides_[1]) / CpuOf(sides_[2]))
            .Set("ratio_empty_server", Median(sides_[4].per_second) / Median(sides_[3].per_second))
            .Set("ratio_of_cpu_empty_server", CpuOf(sides_[3]) / CpuOf(sides_[4]));
      }
      figure.Print();
    }
    const auto none = [&](absl::string_view name, absl::string_view unit, uint64_t value) {
      Figure(name)
          .Set("value", static_cast<double>(value))
          .Text("unit", unit)
          .Set("n", static_cast<double>(calls_))
          .Goal("value", 0)
          .Print();
    };
    none("clients_failed", "failed calls", failed_);
    none("clients_wrong", "wrong answers", wrong_);
    return 0;
  }

 private:
  struct Side {
    const Server* server;
    size_t connections;
    std::vector<double> per_second, client_cpu_us, server_cpu_us;  // of each round
    std::vector<double> get_us, set_us;
  };

  // Of both processes, in microseconds a call.
  static double CpuOf(const Side& side) { return Median(side.client_cpu_us) + Median(side.server_cpu_us); }

  clockid_t ClockOf(const std::string& pid) const {
    clockid_t clock;
    if (clock_getcpuclockid(static_cast<pid_t>(arguments_.Number(pid)), &clock) != 0) NotMeasurable("no " + pid);
    return clock;
  }

  // The first `connections` clients of a server.
  std::vector<std::unique_ptr<Client>>& ClientsOf(const Side& side) {
    std::vector<std::unique_ptr<Client>>& clients = clients_[side.server == &servers_[1]];
    if (!clients.empty()) return clients;
    Results results;
    for (size_t i = 0; i < kMost; ++i) {
      clients.push_back(std::make_unique<Client>(*side.server, messages_, i, random_()));
      grpc::CompletionQueue queue;
      clients.back()->Start(/*get=*/false, &queue);
      void* tag;
      bool ok;
      queue.Next(&tag, &ok);
      clients.back()->Ended(&results);
      queue.Shutdown();
      queue.Next(&tag, &ok);
    }
    if (results.failed > 0) NotMeasurable("the first Sets failed");
    return clients;
  }

  void Block(Side* side, bool counts) {
    std::vector<std::unique_ptr<Client>>& clients = ClientsOf(*side);
    Results results[kThreads];
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    const double client_s = CpuSeconds(CLOCK_PROCESS_CPUTIME_ID), server_s = CpuSeconds(side->server->clock);
    const Stopwatch watch;
    for (size_t t = 0; t < std::min(kThreads, side->connections); ++t) {
      threads.emplace_back([&, t] {
        grpc::CompletionQueue queue;
        size_t running = 0;
        for (size_t c = t; c < side->connections; c += kThreads, ++running) clients[c]->Start(&queue);
        void* tag;
        bool ok;
        while (running > 0 && queue.Next(&tag, &ok)) {
          Client* client = static_cast<Client*>(tag);
          client->Ended(&results[t]);
          if (stop.load(std::memory_order_relaxed)) {
            --running;
          } else {
            client->Start(&queue);
          }
        }
        queue.Shutdown();
        while (queue.Next(&tag, &ok)) {
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(arguments_.Number("milliseconds")));
    stop = true;
    for (std::thread& thread : threads) thread.join();
    const double seconds = watch.microseconds() * 1e-6;
    double calls = 0;
    for (const Results& of : results) {
      calls += static_cast<double>(of.get_us.size() + of.set_us.size());
      failed_ += of.failed;
      wrong_ += of.wrong;
    }
    calls_ += static_cast<uint64_t>(calls);
    if (!counts) return;
    side->per_second.push_back(calls / seconds);
    side->client_cpu_us.push_back((CpuSeconds(CLOCK_PROCESS_CPUTIME_ID) - client_s) / calls * 1e6);
    side->server_cpu_us.push_back((CpuSeconds(side->server->clock) - server_s) / calls * 1e6);
    for (const Results& of : results) {
      side->get_us.insert(side->get_us.end(), of.get_us.begin(), of.get_us.end());
      side->set_us.insert(side->set_us.end(), of.set_us.begin(), of.set_us.end());
    }
  }

  const Arguments arguments_;
  std::mt19937_64 random_;
  const Messages messages_;
  const Server servers_[2];
  std::vector<Side> sides_;
  std::vector<std::unique_ptr<Client>> clients_[2];
  uint64_t failed_ = 0, wrong_ = 0, calls_ = 0;
};

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) {
  // As the daemon (server/main.cc).
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
  mallopt(M_TOP_PAD, 16 << 20);
  return statepool::bench::Bench(statepool::bench::Arguments(argc, argv)).Run();
}
