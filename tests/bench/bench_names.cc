// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figures `names_*`: what a name costs whose state is on disk, and only there.
//
//   statepool_bench_names --part=fill --server=ADDRESS --seed=N --first=I --count=N --max_history=N
//   statepool_bench_names --part=check --server=ADDRESS --seed=N --names=N --samples=N
//   statepool_bench_names --part=describe --server=ADDRESS --names=N --few_server=ADDRESS --few_names=N --samples=N
//
// `fill` Sets the names first..first+count-1, each with a state of its own and a request_id of 24 characters, and
// flushes them; max_history 0 leaves it to the daemon. `check` reads random names back and compares every byte (figure
// names_wrong). `describe` times Describe of random names, one call at a time, in alternating blocks of 20 with those
// of a daemon that has few names. What is measured from outside, memory and the time of a start, is measured by
// tests/bench/run.
#include <atomic>
#include <thread>

#include "absl/strings/str_format.h"
#include "kernels/checksum.h"
#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

constexpr uint64_t kStateBytes = 4096;
constexpr size_t kBlock = 20;
constexpr int kWriters = 8;
constexpr int kAttempts = 1000;

std::string NameOf(int64_t i) { return absl::StrFormat("bench/names/%08d", i); }
int64_t PositionOf(int64_t i) { return 1 + i % 5000; }
std::string StateOf(uint64_t seed, int64_t i) {
  return RandomBytes(kStateBytes, seed << 32 | static_cast<uint64_t>(i));
}

// A daemon that is short of room for a moment says so, and is asked again.
void SetOne(const Connection& daemon, const std::string& layout, uint64_t seed, int64_t i, uint32_t max_history) {
  v1::SetRequest request;
  request.set_sequence(NameOf(i));
  request.set_layout(layout);
  request.set_position(PositionOf(i));
  request.set_request_id(absl::StrFormat("bench-%08x-%09d", static_cast<uint32_t>(seed), i));
  request.set_data(StateOf(seed, i));
  if (max_history != 0) request.mutable_options()->set_max_history(max_history);
  for (int attempt = 1;; ++attempt) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    v1::NameInfo info;
    const grpc::Status status = daemon.stub()->Set(&context, request, &info);
    if (status.ok()) return;
    if (status.error_code() != grpc::RESOURCE_EXHAUSTED || attempt == kAttempts)
      NotMeasurable(absl::StrCat("Set failed: ", static_cast<int>(status.error_code()), " ", status.error_message()));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

int Fill(const Arguments& arguments) {
  const uint64_t seed = static_cast<uint64_t>(arguments.Number("seed"));
  const int64_t first = arguments.Number("first"), end = first + arguments.Number("count");
  const auto max_history = static_cast<uint32_t>(arguments.Number("max_history"));
  const Stopwatch watch;
  std::atomic<int64_t> next{first};
  std::vector<std::thread> writers;
  for (int t = 0; t < kWriters; ++t) {
    writers.emplace_back([&] {
      const Connection daemon(arguments.Text("server"));
      const std::string layout = daemon.RegisterLayout(kStateBytes);
      for (int64_t i = next++; i < end; i = next++) SetOne(daemon, layout, seed, i, max_history);
    });
  }
  for (std::thread& writer : writers) writer.join();
  const double set_s = watch.microseconds() / 1e6;
  const Connection daemon(arguments.Text("server"));
  daemon.Call(&v1::StatePool::Stub::Flush, v1::FlushRequest());
  std::fprintf(stderr, "names: %.0f Sets a second; with the last flush %.1f s\n",
               static_cast<double>(end - first) / set_s, watch.microseconds() / 1e6);
  return 0;
}

int Check(const Arguments& arguments) {
  const Connection daemon(arguments.Text("server"));
  const uint64_t seed = static_cast<uint64_t>(arguments.Number("seed"));
  const std::string layout = daemon.RegisterLayout(kStateBytes);
  std::mt19937_64 random(seed);
  const int64_t samples = arguments.Number("samples");
  int64_t wrong = 0;
  for (int64_t sample = 0; sample < samples; ++sample) {
    const int64_t i = static_cast<int64_t>(random() % static_cast<uint64_t>(arguments.Number("names")));
    const std::string expected = StateOf(seed, i);
    const v1::NameInfo info = daemon.Describe(NameOf(i));
    v1::GetRequest request;
    request.mutable_name()->set_sequence(NameOf(i));
    const v1::GetResponse got = daemon.Call(&v1::StatePool::Stub::Get, request);
    wrong += info.position() != PositionOf(i) || info.layout() != layout ||
             info.revision() != info.durable_revision() ||
             info.checksum() != absl::StrCat(absl::Hex(ChecksumOf(expected), absl::kZeroPad16)) ||
             info.history_size() != 1 || got.data() != expected;
  }
  Figure("names_wrong")
      .Set("value", static_cast<double>(wrong))
      .Text("unit", "wrong answers")
      .Set("n", static_cast<double>(samples))
      .Goal("value", 0)
      .Print();
  return 0;
}

int DescribeTimes(const Arguments& arguments) {
  const Connection many(arguments.Text("server")), few(arguments.Text("few_server"));
  std::mt19937_64 random(1);
  const auto describe = [&random](const Connection& daemon, int64_t names) {
    v1::DescribeRequest request;
    request.mutable_name()->set_sequence(NameOf(static_cast<int64_t>(random() % static_cast<uint64_t>(names))));
    const Stopwatch watch;
    daemon.Call(&v1::StatePool::Stub::Describe, request);
    return watch.microseconds();
  };
  const int64_t many_names = arguments.Number("names"), few_names = arguments.Number("few_names");
  const size_t samples = static_cast<size_t>(arguments.Number("samples"));
  for (int i = 0; i < 2000; ++i) describe(many, many_names), describe(few, few_names);  // warm-up
  std::vector<double> of_many, of_few;
  const auto stable = [&](int attempt) {
    return IsStable("Describe, few names", of_few, attempt) && IsStable("Describe, many names", of_many, attempt);
  };
  for (int attempt = 1; attempt == 1 || !stable(attempt - 1); ++attempt) {
    of_many.clear(), of_few.clear();
    while (of_many.size() < samples) {
      for (size_t i = 0; i < kBlock; ++i) of_many.push_back(describe(many, many_names));
      for (size_t i = 0; i < kBlock; ++i) of_few.push_back(describe(few, few_names));
    }
  }
  Figure("names_describe")
      .Samples(of_many, "us", 1)
      .Baseline(absl::StrCat("Describe with ", few_names, " names, p50"), Median(of_few))
      .Goal("ratio", 1.2)
      .Set("names", static_cast<double>(many_names))
      .Set("baseline_p99", Quantile(of_few, 0.99))
      .Print();
  return 0;
}

int Main(const Arguments& arguments) {
  const std::string& part = arguments.Text("part");
  return part == "fill" ? Fill(arguments) : part == "check" ? Check(arguments) : DescribeTimes(arguments);
}

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) { return statepool::bench::Main(statepool::bench::Arguments(argc, argv)); }
