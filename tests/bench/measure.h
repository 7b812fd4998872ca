// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the measuring programs share: samples, figures, threads, and a client that gives up loudly.
//
// A program prints each figure as one line of JSON on stdout, with the fields that only it can know; tests/bench/run
// adds the others and decides `ok`. It exits with 0 when it has measured all, and with 2 when something could not be
// measured.
#ifndef STATEPOOL_TESTS_BENCH_MEASURE_H_
#define STATEPOOL_TESTS_BENCH_MEASURE_H_

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "statepool/v1/statepool.grpc.pb.h"

namespace statepool::bench {

[[noreturn]] inline void NotMeasurable(absl::string_view why) {
  std::fprintf(stderr, "not measurable: %.*s\n", static_cast<int>(why.size()), why.data());
  std::exit(2);
}

// Wall time, in microseconds.
class Stopwatch {
 public:
  double microseconds() const {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// The q-quantile by nearest rank. REQUIRES: samples.
inline double Quantile(std::vector<double> samples, double q) {
  const size_t rank = std::min(samples.size() - 1, static_cast<size_t>(q * static_cast<double>(samples.size())));
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(rank), samples.end());
  return samples[rank];
}
inline double Median(const std::vector<double>& samples) { return Quantile(samples, 0.5); }

// Whether the baseline was the same all the time (medians of its halves within 1.5); else a ratio to it says nothing
// and all is to be measured again. The third attempt is the last: it ends the program.
inline bool IsStable(absl::string_view what, const std::vector<double>& samples, int attempt) {
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  const double first = Median({samples.begin(), middle}), second = Median({middle, samples.end()});
  if (std::max(first, second) <= 1.5 * std::min(first, second)) return true;
  if (std::getenv("STATEPOOL_BENCH_ANY_SPEED") != nullptr) return true;  // run --any-speed: nobody judges the ratio
  const std::string why = absl::StrCat(what, " is unstable: medians of its halves ", first, " and ", second);
  if (attempt == 3) NotMeasurable(why);
  std::fprintf(stderr, "once more: %s\n", why.c_str());
  return false;
}

// One line of JSON, built field by field.
class Figure {
 public:
  explicit Figure(absl::string_view name) : json_(absl::StrCat("{\"name\":\"", name, "\"")) {}
  Figure& Set(absl::string_view field, double value) { return Raw(field, absl::StrCat(value)); }
  Figure& Text(absl::string_view field, absl::string_view value) { return Raw(field, absl::StrCat("\"", value, "\"")); }
  Figure& Counts(absl::string_view field, const std::map<std::string, int64_t>& counts) {
    std::string json;
    for (const auto& [name, count] : counts) absl::StrAppend(&json, json.empty() ? "" : ",", "\"", name, "\":", count);
    return Raw(field, absl::StrCat("{", json, "}"));
  }
  // Median, n, p50 and p99 of samples in microseconds, told in `unit` of `unit_us` microseconds each.
  Figure& Samples(const std::vector<double>& us, absl::string_view unit, double unit_us) {
    const double p50 = Median(us) / unit_us;
    return Set("value", p50)
        .Text("unit", unit)
        .Set("n", static_cast<double>(us.size()))
        .Set("p50", p50)
        .Set("p99", Quantile(us, 0.99) / unit_us);
  }
  Figure& Baseline(absl::string_view name, double value) { return Set("baseline", value).Text("baseline_name", name); }
  // `goal_of` says which field the goal limits: "value" or "ratio" (value / baseline).
  Figure& Goal(absl::string_view goal_of, double goal) { return Text("goal_of", goal_of).Set("goal", goal); }
  // The same for a figure of which more is better.
  Figure& GoalAtLeast(absl::string_view goal_of, double goal) {
    return Goal(goal_of, goal).Raw("goal_is_least", "true");
  }
  void Print() {
    std::printf("%s}\n", json_.c_str());
    std::fflush(stdout);
  }

 private:
  Figure& Raw(absl::string_view field, absl::string_view json) {
    absl::StrAppend(&json_, ",\"", field, "\":", json);
    return *this;
  }
  std::string json_;
};

// --name=value, all of them required by the program that asks.
class Arguments {
 public:
  Arguments(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      const size_t equals = argument.find('=');
      if (argument.rfind("--", 0) == 0 && equals != std::string::npos)
        values_[argument.substr(2, equals - 2)] = argument.substr(equals + 1);
    }
  }
  const std::string& Text(const std::string& name) const {
    const auto it = values_.find(name);
    if (it == values_.end()) NotMeasurable(absl::StrCat("--", name, " is missing"));
    return it->second;
  }
  bool Has(const std::string& name) const { return values_.contains(name); }
  int64_t Number(const std::string& name) const { return std::atoll(Text(name).c_str()); }

 private:
  std::map<std::string, std::string> values_;
};

inline std::string RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(size + sizeof(uint64_t), '\0');
  for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
    const uint64_t word = random();
    bytes.replace(i, sizeof(word), reinterpret_cast<const char*>(&word), sizeof(word));
  }
  bytes.resize(size);
  return bytes;
}

// Fast enough not to be most of the run; incompressible.
inline void FillRandom(uint64_t* state, absl::Span<char> bytes) {
  uint64_t x = *state;
  for (size_t at = 0; at < bytes.size(); at += sizeof x) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    std::memcpy(bytes.data() + at, &x, std::min(sizeof x, bytes.size() - at));
  }
  *state = x;
}

// Threads that do the same at the same time, again and again.
class Crew {
 public:
  explicit Crew(size_t threads) : times_(threads), barrier_(static_cast<std::ptrdiff_t>(threads) + 1) {
    for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this, i] { Run(i); });
  }
  ~Crew() {
    work_ = nullptr;
    barrier_.arrive_and_wait();
    for (std::thread& thread : threads_) thread.join();
  }
  // work(thread) in every thread; gives microseconds from the first start to the last end.
  double All(const std::function<void(size_t)>& work) {
    work_ = &work;
    barrier_.arrive_and_wait();
    barrier_.arrive_and_wait();
    Clock::time_point start = times_[0].first, end = times_[0].second;
    for (const auto& [s, e] : times_) start = std::min(start, s), end = std::max(end, e);
    return std::chrono::duration<double, std::micro>(end - start).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  void Run(size_t i) {
    for (;;) {
      barrier_.arrive_and_wait();
      if (work_ == nullptr) return;
      times_[i].first = Clock::now();
      (*work_)(i);
      times_[i].second = Clock::now();
      barrier_.arrive_and_wait();
    }
  }
  const std::function<void(size_t)>* work_ = nullptr;
  std::vector<std::pair<Clock::time_point, Clock::time_point>> times_;
  std::barrier<> barrier_;
  std::vector<std::thread> threads_;
};

// A connection of its own to one server. Thread-safe.
class Connection {
 public:
  explicit Connection(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(1 << 30);
    arguments.SetMaxSendMessageSize(1 << 30);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::StatePool::NewStub(channel_);
    if (!channel_->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10)))
      NotMeasurable("no connection to " + address);
  }

  v1::StatePool::Stub* stub() const { return stub_.get(); }

  // Calls and gives the answer; an error ends the program.
  template <typename Request, typename Response>
  Response Call(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request) const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    Response response;
    const grpc::Status status = ((*stub_).*method)(&context, request, &response);
    if (!status.ok()) {
      NotMeasurable(absl::StrCat(Request::descriptor()->name(), " failed: ", static_cast<int>(status.error_code()), " ",
                                 status.error_message()));
    }
    return response;
  }

  // A layout of one tensor with exactly `bytes` bytes; gives its fingerprint.
  std::string RegisterLayout(uint64_t bytes) const {
    v1::RegisterLayoutRequest request;
    request.mutable_layout()->set_model_id(absl::StrCat("bench/", bytes));
    v1::TensorSpec* tensor = request.mutable_layout()->add_tensors();
    tensor->set_name("state");
    tensor->set_kind(v1::OTHER);
    tensor->add_layers(0);
    tensor->set_dtype(v1::UINT8);
    v1::Axis* axis = tensor->add_axes();
    axis->set_name("byte");
    axis->set_size(bytes);
    return Call(&v1::StatePool::Stub::RegisterLayout, request).fingerprint();
  }

  v1::NameInfo Set(const std::string& sequence, const std::string& layout, int64_t position, std::string data) const {
    v1::SetRequest request;
    request.set_sequence(sequence);
    request.set_layout(layout);
    request.set_position(position);
    request.set_data(std::move(data));
    return Call(&v1::StatePool::Stub::Set, request);
  }

  v1::NameInfo Describe(const std::string& sequence) const {
    v1::DescribeRequest request;
    request.mutable_name()->set_sequence(sequence);
    return Call(&v1::StatePool::Stub::Describe, request);
  }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::StatePool::Stub> stub_;
};

}  // namespace statepool::bench

#endif  // STATEPOOL_TESTS_BENCH_MEASURE_H_
