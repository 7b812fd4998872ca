// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Concurrent histories: eight clients on a few names of the real daemon. In half of the histories the daemon is killed
// in the middle and started again. Every name's history must be explained by some order (history.h); what SYNC
// acknowledged must be there after the kill, and of a WRITE_BEHIND name an earlier state that was not deleted, no older
// than its durable_revision. Revisions are never issued twice, and grow over the life of the data directory.
//
//   statepool_histories --daemon=BINARY --directory=DIR --histories=N --seed=N --stop-at-first=0|1
//
// Prints one line of JSON. Exit: 0 measured, 2 not measurable.
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "statepool/v1/statepool.grpc.pb.h"
#include "tests/bench/measure.h"
#include "tests/crash/daemon_process.h"
#include "tests/model/history.h"

namespace statepool::model {
namespace {

constexpr int kClients = 8;
constexpr int kNames = 6;  // the first half SYNC, the others WRITE_BEHIND
constexpr uint64_t kStateBytes = 3000;
constexpr int kPhaseMillis = 150, kKillMillisMin = 30, kKillMillisMax = 200;

int64_t NowNanos() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

bool IsSync(int name) { return name < kNames / 2; }

// A state is told by one number, all over it.
std::string BytesOf(uint64_t value) {
  std::string bytes;
  while (bytes.size() < kStateBytes) bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  bytes.resize(kStateBytes);
  return bytes;
}

struct Recorded {
  std::vector<Event> events;
  uint64_t durable_revision = 0;  // the greatest that was told
};

// One connection. Not thread-safe.
class Client {
 public:
  Client(int id, const std::string& address, std::vector<std::string> names, std::string layout, uint64_t seed)
      : id_(id), names_(std::move(names)), layout_(std::move(layout)), random_(seed), recorded_(kNames) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = v1::StatePool::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  }

  // Random operations until `stop`, or until the daemon is gone. `values` gives every Set its own.
  void Load(const std::atomic<bool>* stop, std::atomic<uint64_t>* values) {
    while (!stop->load() && !gone_) {
      const int name = static_cast<int>(random_() % kNames);
      const uint64_t which = random_() % 100;
      if (which < 35) Set(name, ++*values, random_() % 2 == 0);
      else if (which < 70) Get(name);
      else if (which < 92) Describe(name);
      else Delete(name);
    }
  }

  // The name as it is now; nothing: no answer that says so.
  std::optional<NameAt> Look(int name) {
    const Event event = Get(name);
    if (event.result == Event::Result::kOk) return NameAt{event.revision, event.value};
    if (event.result == Event::Result::kMiss) return NameAt{};
    return std::nullopt;
  }

  void Set(int name, uint64_t value, bool conditional) {
    v1::SetRequest in;
    in.set_sequence(names_[static_cast<size_t>(name)]);
    in.set_layout(layout_);
    in.set_position(1);
    in.set_data(BytesOf(value));
    in.mutable_options()->set_durability(IsSync(name) ? v1::SYNC : v1::WRITE_BEHIND);
    Event event = Begin(Event::Kind::kSet);
    event.value = value;
    if (conditional) event.if_revision = last_[name];
    if (conditional) in.set_if_revision(*event.if_revision);
    v1::NameInfo out;
    Finish(name, &event, Call(&v1::StatePool::Stub::Set, in, &out), out);
  }

  Event Get(int name) {
    v1::GetRequest in;
    in.mutable_name()->set_sequence(names_[static_cast<size_t>(name)]);
    Event event = Begin(Event::Kind::kGet);
    v1::GetResponse out;
    const grpc::Status status = Call(&v1::StatePool::Stub::Get, in, &out);
    if (status.ok() && out.data().size() == kStateBytes) {
      out.data().copy(reinterpret_cast<char*>(&event.value), sizeof event.value);
      if (out.data() != BytesOf(event.value)) unexpected_.push_back("a state of two writes");
    } else if (status.ok()) {
      unexpected_.push_back("a state of another length");
    }
    Finish(name, &event, status, out.info());
    return event;
  }

  void Describe(int name) {
    v1::DescribeRequest in;
    in.mutable_name()->set_sequence(names_[static_cast<size_t>(name)]);
    Event event = Begin(Event::Kind::kDescribe);
    v1::NameInfo out;
    const grpc::Status status = Call(&v1::StatePool::Stub::Describe, in, &out);
    Finish(name, &event, status, out);
  }

  void Delete(int name) {
    v1::DeleteRequest in;
    in.mutable_name()->set_sequence(names_[static_cast<size_t>(name)]);
    Event event = Begin(Event::Kind::kDelete);
    v1::DeleteResponse out;
    const grpc::Status status = Call(&v1::StatePool::Stub::Delete, in, &out);
    Finish(name, &event, status, v1::NameInfo());
  }

  std::string RegisterLayout() {
    v1::RegisterLayoutRequest in;
    in.set_alias("histories");
    in.mutable_layout()->set_model_id("histories");
    v1::TensorSpec* tensor = in.mutable_layout()->add_tensors();
    tensor->set_name("s");
    tensor->set_kind(v1::RECURRENT);
    tensor->add_layers(0);
    tensor->set_dtype(v1::UINT8);
    v1::Axis* axis = tensor->add_axes();
    axis->set_name("n");
    axis->set_size(kStateBytes);
    v1::LayoutInfo out;
    const grpc::Status status = Call(&v1::StatePool::Stub::RegisterLayout, in, &out);
    if (!status.ok()) bench::NotMeasurable(absl::StrCat("RegisterLayout: ", status.error_message()));
    return out.fingerprint();
  }

  const std::vector<Recorded>& recorded() const { return recorded_; }
  const std::vector<std::string>& unexpected() const { return unexpected_; }

 private:
  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& in, Response* out) {
    grpc::ClientContext context;
    context.set_wait_for_ready(false);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    return ((*stub_).*method)(&context, in, out);
  }

  Event Begin(Event::Kind kind) const {
    Event event;
    event.kind = kind;
    event.client = id_;
    event.called = NowNanos();
    return event;
  }

  void Finish(int name, Event* event, const grpc::Status& status, const v1::NameInfo& info) {
    Recorded& recorded = recorded_[static_cast<size_t>(name)];
    const int64_t now = NowNanos();
    google::rpc::Status details;
    google::rpc::ErrorInfo error;
    details.ParseFromString(status.error_details());
    for (const google::protobuf::Any& any : details.details()) any.UnpackTo(&error);
    if (status.ok()) {
      event->result = Event::Result::kOk;
      event->revision = info.revision();
      recorded.durable_revision = std::max<uint64_t>(recorded.durable_revision, info.durable_revision());
      if (event->kind == Event::Kind::kSet && IsSync(name) && info.durable_revision() != info.revision())
        unexpected_.push_back("SYNC was acknowledged before it is durable");
    } else if (status.error_code() == grpc::StatusCode::ABORTED && error.reason() == "REVISION_MISMATCH") {
      event->result = Event::Result::kConflict;
      if (!absl::SimpleAtoi(error.metadata().at("revision"), &event->revision)) unexpected_.push_back("no revision");
    } else if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
      event->result = Event::Result::kMiss;
    } else if (status.error_code() == grpc::StatusCode::UNAVAILABLE && error.reason().empty()) {
      gone_ = true;
    } else {
      unexpected_.push_back(absl::StrCat(event->ToString(), ": ", status.error_message()));
    }
    if (event->result != Event::Result::kUnknown) event->answered = now;
    if (event->result != Event::Result::kUnknown)
      last_[name] = event->kind == Event::Kind::kDelete ? 0 : event->revision;
    recorded.events.push_back(*event);
  }

  const int id_;
  const std::vector<std::string> names_;
  const std::string layout_;
  std::mt19937_64 random_;
  std::unique_ptr<v1::StatePool::Stub> stub_;
  std::vector<Recorded> recorded_;  // by name
  std::map<int, uint64_t> last_;    // the revision last seen
  std::vector<std::string> unexpected_;
  bool gone_ = false;
};

class Harness {
 public:
  explicit Harness(const bench::Arguments& arguments)
      : daemon_(arguments.Text("daemon")),
        directory_(arguments.Text("directory")),
        histories_(arguments.Number("histories")),
        stop_at_first_(arguments.Number("stop-at-first") != 0),
        seed_(static_cast<uint64_t>(arguments.Number("seed"))),
        random_(seed_) {}

  int Main() {
    Start();
    layout_ = Client(-1, process_->address(), {}, "", 0).RegisterLayout();
    int64_t done = 0;
    for (; done < histories_ && !(stop_at_first_ && violations_ > 0); ++done) {
      Run(done, /*kill=*/done % 2 == 1);
      if (done % 20 == 19)
        std::fprintf(stderr, "histories: %lld of %lld, %lld operations, %lld violations\n",
                     static_cast<long long>(done + 1), static_cast<long long>(histories_),
                     static_cast<long long>(operations_), static_cast<long long>(violations_));
    }
    process_->Stop(60);
    bench::Figure("model/histories")
        .Set("value", static_cast<double>(violations_))
        .Text("unit", "violations")
        .Set("n", static_cast<double>(done))
        .Goal("value", 0)
        .Set("operations", static_cast<double>(operations_))
        .Set("acked_sync", static_cast<double>(acked_sync_))
        .Set("conflicts", static_cast<double>(conflicts_))
        .Set("overlapping", static_cast<double>(overlapping_))
        .Set("kills", static_cast<double>(kills_))
        .Set("kills_in_flight", static_cast<double>(kills_in_flight_))
        .Set("went_back", static_cast<double>(went_back_))
        .Print();
    return 0;
  }

 private:
  void Start() {
    process_ = std::make_unique<crash::DaemonProcess>(
        std::vector<std::string>{daemon_, "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0",
                                 "--data-dir=" + directory_ + "/data", "--hot-bytes=8MiB", "--warm-bytes=0",
                                 "--cold-bytes=8GiB", "--devices=host", "--flush-interval=50ms", "--log-level=warn"},
        directory_ + "/daemon.log");
    if (!process_->WaitReady(30)) bench::NotMeasurable("the daemon did not get ready");
  }

  void Violation(const std::string& what) {
    ++violations_;
    std::fprintf(stderr, "violation: seed %llu history %lld: %s\n", static_cast<unsigned long long>(seed_),
                 static_cast<long long>(history_), what.c_str());
  }

  // Eight clients at once, for so long or until the kill; gives what they recorded, by name.
  std::vector<Recorded> Phase(bool kill) {
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < kClients; ++i)
      clients.push_back(std::make_unique<Client>(i, process_->address(), names_, layout_, random_()));
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (auto& client : clients) threads.emplace_back([&] { client->Load(&stop, &values_); });
    const uint64_t millis = kill ? kKillMillisMin + random_() % (kKillMillisMax - kKillMillisMin) : kPhaseMillis;
    std::this_thread::sleep_for(std::chrono::milliseconds(millis));
    if (kill) process_->Kill();
    else stop = true;
    for (std::thread& thread : threads) thread.join();
    if (kill) process_->Wait();
    std::vector<Recorded> all(kNames);
    for (const auto& client : clients) {
      for (const std::string& what : client->unexpected()) Violation(what);
      for (size_t name = 0; name < kNames; ++name) {
        const Recorded& recorded = client->recorded()[name];
        all[name].events.insert(all[name].events.end(), recorded.events.begin(), recorded.events.end());
        all[name].durable_revision = std::max(all[name].durable_revision, recorded.durable_revision);
      }
    }
    Count(all);
    return all;
  }

  void Count(const std::vector<Recorded>& all) {
    uint64_t greatest = greatest_revision_;
    bool in_flight = false;
    for (size_t name = 0; name < kNames; ++name) {
      std::vector<Event> events = all[name].events;
      std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.called < b.called; });
      int64_t latest = 0;
      for (const Event& event : events) {
        ++operations_;
        overlapping_ += event.called < latest;
        latest = std::max(latest, event.answered);
        conflicts_ += event.result == Event::Result::kConflict;
        const bool set = event.kind == Event::Kind::kSet;
        in_flight = in_flight || (set && event.result == Event::Result::kUnknown);
        if (!set || event.result != Event::Result::kOk) continue;
        acked_sync_ += IsSync(static_cast<int>(name));
        if (!revisions_.insert(event.revision).second) Violation(absl::StrCat("revision ", event.revision, " twice"));
        if (event.revision <= greatest_at_start_)
          Violation(absl::StrCat("revision ", event.revision, " is not above all before the kill"));
        greatest = std::max(greatest, event.revision);
      }
    }
    kills_in_flight_ += in_flight;
    greatest_revision_ = greatest;
  }

  void Explain(int name, const Recorded& recorded, const NameAt& initial, const std::optional<NameAt>& last) {
    const std::optional<std::string> wrong = Unexplained(recorded.events, initial, last);
    if (!wrong.has_value()) return;
    Violation(absl::StrCat(names_[static_cast<size_t>(name)], ": ", *wrong));
    std::vector<Event> events = recorded.events;
    std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.called < b.called; });
    if (events.size() > 400) events.resize(400);
    for (const Event& event : events) std::fprintf(stderr, "  %s\n", event.ToString().c_str());
    if (last.has_value())
      std::fprintf(stderr, "  at the end: revision %llu\n", static_cast<unsigned long long>(last->revision));
  }

  // What a kill may leave of a WRITE_BEHIND name.
  void CheckLeft(int name, const Recorded& recorded, const NameAt& initial, const NameAt& left) {
    const std::string& what = names_[static_cast<size_t>(name)];
    const Event* write = nullptr;  // that made what is left
    uint64_t latest = 0;
    for (const Event& event : recorded.events) {
      if (event.kind != Event::Kind::kSet) continue;
      if (event.result == Event::Result::kOk) latest = std::max(latest, event.revision);
      if (left.revision != 0 && event.value == left.value) write = &event;
    }
    const bool as_before = left.revision == initial.revision && left.value == initial.value;
    if (left.revision != 0 && write == nullptr && !as_before) return Violation(what + " is a state that nobody wrote");
    if (write != nullptr && write->result == Event::Result::kOk && write->revision != left.revision)
      return Violation(what + " has the bytes of one write and the revision of another");
    // A Delete that came after it has taken it away for good; one that came after the durable revision may have.
    bool deleted = false;
    for (const Event& event : recorded.events) {
      if (event.kind != Event::Kind::kDelete || event.result == Event::Result::kMiss) continue;
      deleted = true;
      const bool after = left.revision != 0 && event.result == Event::Result::kOk &&
                         (write == nullptr || event.called > write->answered);
      if (after) return Violation(what + " is there again after its Delete");
    }
    if (left.revision < recorded.durable_revision && !deleted)
      return Violation(
          absl::StrCat(what, " is at revision ", left.revision, ", and ", recorded.durable_revision, " was durable"));
    went_back_ += left.revision < latest;
  }

  void Run(int64_t history, bool kill) {
    history_ = history;
    names_.clear();
    for (int name = 0; name < kNames; ++name)
      names_.push_back(absl::StrCat("h", history, IsSync(name) ? "/sync" : "/behind", name));
    std::vector<NameAt> at(kNames);
    if (kill) {
      const std::vector<Recorded> before = Phase(/*kill=*/true);
      ++kills_;
      greatest_at_start_ = greatest_revision_;
      Start();
      Client observer(-1, process_->address(), names_, layout_, 0);
      for (int name = 0; name < kNames; ++name) {
        const auto i = static_cast<size_t>(name);
        const std::optional<NameAt> left = observer.Look(name);
        if (!left.has_value()) return Violation("a name can't be read after the restart");
        Explain(name, before[i], NameAt{}, IsSync(name) ? left : std::nullopt);
        if (!IsSync(name)) CheckLeft(name, before[i], NameAt{}, *left);
        at[i] = *left;
      }
    }
    const std::vector<Recorded> recorded = Phase(/*kill=*/false);
    Client observer(-1, process_->address(), names_, layout_, 0);
    for (int name = 0; name < kNames; ++name) {
      const auto i = static_cast<size_t>(name);
      const std::optional<NameAt> last = observer.Look(name);
      if (!last.has_value()) return Violation("a name can't be read at the end");
      Explain(name, recorded[i], at[i], last);
      observer.Delete(name);
    }
  }

  const std::string daemon_, directory_;
  const int64_t histories_;
  const bool stop_at_first_;
  const uint64_t seed_;
  std::mt19937_64 random_;
  std::unique_ptr<crash::DaemonProcess> process_;
  std::string layout_;
  std::vector<std::string> names_;
  std::atomic<uint64_t> values_{0};
  std::set<uint64_t> revisions_;
  uint64_t greatest_revision_ = 0, greatest_at_start_ = 0;
  int64_t history_ = 0, violations_ = 0, operations_ = 0, acked_sync_ = 0, conflicts_ = 0, overlapping_ = 0, kills_ = 0,
          kills_in_flight_ = 0, went_back_ = 0;
};

}  // namespace
}  // namespace statepool::model

int main(int argc, char** argv) { return statepool::model::Harness(statepool::bench::Arguments(argc, argv)).Main(); }
