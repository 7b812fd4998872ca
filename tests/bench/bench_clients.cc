// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figures `clients_*`: 1, 8 and 64 clients at once, nine Gets to a Set, states of 80 KB.
//
//   statepool_bench_clients --server=ADDRESS --seed=N --rounds=N --milliseconds=N
//
// A client is a thread with a Pool of our C++ client of its own (so with connections of its own, one for Gets and one
// for Sets), and calls without a pause. It Sets its own sequence and Gets any of 64 (always the same, however many
// clients there are), into its own memory, verified. A round runs each number of clients for the same time, in an order
// that is drawn anew.
//
// Whether the throughput falls from 8 to 64 clients is decided by the medians over the rounds; from the goal of 1 is
// taken what the rounds' noise leaves open: twice the standard error of the median of the rounds' ratios, at most 0.1.
#include <atomic>
#include <cmath>
#include <thread>

#include "client/cpp/statepool.h"
#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

constexpr size_t kClients[] = {1, 8, 64};
constexpr size_t kStateBytes = 80'000;
constexpr size_t kGetsOfTen = 9;

std::string NameOf(size_t client) { return absl::StrCat("clients/", client); }

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments),
        daemon_(arguments.Text("server")),
        layout_(daemon_.RegisterLayout(kStateBytes)),
        random_(static_cast<uint64_t>(arguments.Number("seed"))) {
    for (size_t i = 0; i < kClients[2]; ++i) {
      absl::StatusOr<client::Pool> pool = client::Pool::Connect(arguments.Text("server"));
      if (!pool.ok()) NotMeasurable(pool.status().ToString());
      pools_.push_back(*std::move(pool));
      data_.push_back(RandomBytes(kStateBytes, random_()));
      if (const absl::Status status = Set(i); !status.ok()) NotMeasurable(status.ToString());
    }
  }

  int Run() {
    const size_t rounds = static_cast<size_t>(arguments_.Number("rounds"));
    for (int attempt = 1; attempt == 1 || !IsStable("throughput of 8 clients", sides_[1].per_second, attempt - 1);
         ++attempt) {
      for (Side& side : sides_) side = Side();
      for (size_t round = 0; round < 1 + rounds; ++round) {
        std::fprintf(stderr, "clients: round %zu\n", round);
        size_t order[] = {0, 1, 2};
        std::shuffle(std::begin(order), std::end(order), random_);
        for (size_t i : order) Block(kClients[i], round > 0 ? &sides_[i] : nullptr);
      }
    }
    std::vector<double> ratios, distances;
    for (size_t i = 0; i < rounds; ++i) ratios.push_back(sides_[2].per_second[i] / sides_[1].per_second[i]);
    for (double ratio : ratios) distances.push_back(std::abs(ratio - Median(ratios)));
    const double deviation = 1.4826 * Median(distances);
    const double noise = std::min(0.1, 2 * 1.2533 * deviation / std::sqrt(static_cast<double>(rounds)));
    for (size_t i = 0; i < 3; ++i) {
      const Side& side = sides_[i];
      Figure figure(absl::StrCat("clients_", kClients[i]));
      figure.Set("value", Median(side.per_second))
          .Text("unit", "calls/s")
          .Set("n", static_cast<double>(rounds))
          .Set("get_p50_us", Median(side.get_us))
          .Set("get_p99_us", Quantile(side.get_us, 0.99))
          .Set("set_p50_us", Median(side.set_us))
          .Set("set_p99_us", Quantile(side.set_us, 0.99))
          .Set("gb_per_s", Median(side.per_second) * static_cast<double>(kStateBytes) * 1e-9);
      if (i == 2) {
        figure.Baseline("8 clients, p50", Median(sides_[1].per_second))
            .GoalAtLeast("ratio", 1 - noise)
            .Set("aim", 1)
            .Set("noise", noise);
      }
      figure.Print();
    }
    Figure("clients_failed")
        .Set("value", static_cast<double>(failed_.load()))
        .Text("unit", "failed calls")
        .Set("n", static_cast<double>(calls_.load()))
        .Goal("value", 0)
        .Print();
    return 0;
  }

 private:
  struct Side {
    std::vector<double> per_second;  // of each round
    std::vector<double> get_us, set_us;
  };

  absl::Status Set(size_t client) { return pools_[client].Set(NameOf(client), layout_, 1, data_[client]).status(); }

  void Block(size_t clients, Side* side) {
    struct Client {
      std::vector<double> get_us, set_us;
    };
    std::vector<Client> results(clients);
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    const Stopwatch watch;
    for (size_t c = 0; c < clients; ++c) {
      threads.emplace_back([this, c, &stop, &client = results[c], seed = random_()] {
        std::mt19937_64 random(seed);
        std::string got(kStateBytes, '\0');
        while (!stop.load(std::memory_order_relaxed)) {
          const bool get = random() % 10 < kGetsOfTen;
          v1::GetRequest request;
          request.mutable_name()->set_sequence(NameOf(random() % kClients[2]));
          const Stopwatch call;
          const absl::Status status =
              get ? pools_[c].GetInto(request, absl::MakeSpan(got.data(), got.size())).status() : Set(c);
          (get ? client.get_us : client.set_us).push_back(call.microseconds());
          failed_ += !status.ok();
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(arguments_.Number("milliseconds")));
    stop = true;
    for (std::thread& thread : threads) thread.join();
    const double seconds = watch.microseconds() * 1e-6;
    size_t calls = 0;
    for (const Client& client : results) calls += client.get_us.size() + client.set_us.size();
    calls_ += calls;
    if (side == nullptr) return;
    side->per_second.push_back(static_cast<double>(calls) / seconds);
    for (const Client& client : results) {
      side->get_us.insert(side->get_us.end(), client.get_us.begin(), client.get_us.end());
      side->set_us.insert(side->set_us.end(), client.set_us.begin(), client.set_us.end());
    }
  }

  const Arguments arguments_;
  const Connection daemon_;
  const std::string layout_;
  std::mt19937_64 random_;
  std::vector<client::Pool> pools_;
  std::vector<std::string> data_;
  Side sides_[3];
  std::atomic<uint64_t> failed_{0}, calls_{0};
};

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) { return statepool::bench::Bench(statepool::bench::Arguments(argc, argv)).Run(); }
