// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figure `control`: what a call that moves no bytes costs. Describe of one sequence against an empty unary callback of
// the same gRPC (bench_empty_server), each over one connection of its own, one call at a time, in alternating blocks of
// 20; medians over all calls.
//
//   statepool_bench_control --server=ADDRESS --empty=ADDRESS --samples=N
#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

constexpr size_t kBlock = 20;
constexpr uint64_t kStateBytes = 80'000;

// A busy machine slows one of the two more than the other, so both must be steady.
bool AreStable(const std::vector<double>& describes, const std::vector<double>& empties, int attempt) {
  return IsStable("empty unary callback", empties, attempt) && IsStable("Describe", describes, attempt);
}

int Main(const Arguments& arguments) {
  const Connection daemon(arguments.Text("server")), empty(arguments.Text("empty"));
  const size_t samples = static_cast<size_t>(arguments.Number("samples"));
  daemon.Set("bench/control", daemon.RegisterLayout(kStateBytes), 1, RandomBytes(kStateBytes, 1));

  v1::DescribeRequest request;
  request.mutable_name()->set_sequence("bench/control");
  const auto describe = [&] {
    const Stopwatch watch;
    daemon.Call(&v1::StatePool::Stub::Describe, request);
    return watch.microseconds();
  };
  const auto call_empty = [&] {
    const Stopwatch watch;
    empty.Call(&v1::StatePool::Stub::GetCapabilities, v1::GetCapabilitiesRequest());
    return watch.microseconds();
  };
  for (size_t i = 0; i < 1000; ++i) describe(), call_empty();  // warm-up

  std::vector<double> describes, empties;
  for (int attempt = 1; attempt == 1 || !AreStable(describes, empties, attempt - 1); ++attempt) {
    describes.clear(), empties.clear();
    while (describes.size() < samples) {
      for (size_t i = 0; i < kBlock; ++i) describes.push_back(describe());
      for (size_t i = 0; i < kBlock; ++i) empties.push_back(call_empty());
    }
  }
  Figure("control")
      .Samples(describes, "us", 1)
      .Baseline("empty unary callback, p50", Median(empties))
      .Goal("ratio", 1.3)
      .Set("aim", 1.1)
      .Set("baseline_p99", Quantile(empties, 0.99))
      .Print();
  return 0;
}

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) { return statepool::bench::Main(statepool::bench::Arguments(argc, argv)); }
