// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/telemetry/metrics.h"

#include <netdb.h>
#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <exception>
#include <thread>

#include "absl/strings/str_cat.h"

namespace statepool {
namespace {

// Seconds: from an empty round trip to a call that waits for a slow disk.
const prometheus::Histogram::BucketBoundaries& Buckets() {
  static const auto* buckets = new prometheus::Histogram::BucketBoundaries{
      25e-6, 50e-6,  100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3,
      50e-3, 100e-3, 250e-3, 500e-3, 1,      2.5,  5,      10,   30};
  return *buckets;
}

constexpr const char* kCodeNames[] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

prometheus::ClientMetric Sample(prometheus::MetricType type, double value) {
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return metric;
}

template <size_t kLabels>
prometheus::MetricFamily Family(const char* name, const char* help, prometheus::MetricType type,
                                const std::array<const char*, kLabels>& labels,
                                const std::map<std::array<std::string, kLabels>, uint64_t>& values) {
  prometheus::MetricFamily family{name, help, type, {}};
  for (const auto& [label_values, value] : values) {
    prometheus::ClientMetric metric = Sample(type, static_cast<double>(value));
    for (size_t i = 0; i < kLabels; ++i) metric.label.push_back({labels[i], label_values[i]});
    family.metric.push_back(std::move(metric));
  }
  return family;
}

prometheus::MetricFamily Single(const char* name, const char* help, prometheus::MetricType type, double value) {
  return {name, help, type, {Sample(type, value)}};
}

// Connects, and hangs up.
void KnockAt(const std::string& address) {
  const size_t colon = address.rfind(':');
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  if (colon == std::string::npos || getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) return;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0) {
    connect(fd, found->ai_addr, found->ai_addrlen);
    close(fd);
  }
  freeaddrinfo(found);
}

class SnapshotCollectable final : public prometheus::Collectable {
 public:
  SnapshotCollectable(std::function<MetricsSnapshot()> snapshot, std::string version, std::string commit)
      : snapshot_(std::move(snapshot)), version_(std::move(version)), commit_(std::move(commit)) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    constexpr auto kGauge = prometheus::MetricType::Gauge;
    constexpr auto kCounter = prometheus::MetricType::Counter;
    using L1 = std::array<const char*, 1>;
    using L2 = std::array<const char*, 2>;
    using L3 = std::array<const char*, 3>;
    const MetricsSnapshot now = snapshot_();
    const std::map<std::array<std::string, 2>, uint64_t> build = {{{version_, commit_}, 1}};
    return {
        Family("statepool_images_bytes", "Bytes of images, by tier and device.", kGauge, L2{"tier", "device"},
               now.images_bytes),
        Family("statepool_slots", "Slots of a device's pools, by layout and state.", kGauge,
               L3{"device", "layout", "state"}, now.slots),
        Family("statepool_device_bytes", "Bytes of a device's budget, by state.", kGauge, L2{"device", "state"},
               now.device_bytes),
        Family("statepool_device_healthy", "1; 0 once the device failed and is not used any more.", kGauge,
               L1{"device"}, now.device_healthy),
        Family("statepool_names", "Names, by kind.", kGauge, L1{"kind"}, now.names),
        Family("statepool_prefix_lookups_total", "MatchPrefix calls, by result.", kCounter, L1{"result"},
               now.prefix_lookups),
        Family("statepool_misses_total", "Lookups that found nothing, by reason.", kCounter, L1{"reason"}, now.misses),
        Family("statepool_evictions_total", "Images that left a tier, and names that left by themselves, by reason.",
               kCounter, L2{"tier", "reason"}, now.evictions),
        Family("statepool_transfer_bytes_total", "Bytes of states copied, by where from and where to.", kCounter,
               L2{"from", "to"}, now.transfer_bytes),
        Family("statepool_arenas", "Arenas, by state.", kGauge, L1{"state"}, now.arenas),
        Family("statepool_arena_bytes", "Bytes of arenas' memory, by state.", kGauge, L1{"state"}, now.arena_bytes),
        Single("statepool_arena_reserved_slots", "Slots that are kept for arenas' next Store.", kGauge,
               static_cast<double>(now.reserved_slots)),
        Single("statepool_arena_flag_waits", "Calls that wait for flag words of arenas.", kGauge,
               static_cast<double>(now.flag_waits)),
        Single("statepool_arena_flag_pinned_bytes", "Bytes of states pinned for Loads that were answered already.",
               kGauge, static_cast<double>(now.flag_pinned_bytes)),
        Single("statepool_arena_late_failures_total",
               "Loads into arenas, and moves of rows there, that failed after their answer.", kCounter,
               static_cast<double>(now.late_failures)),
        Single("statepool_direct_leases", "Workers with a direct lease.", kGauge, static_cast<double>(now.leases)),
        Family(
            "statepool_direct_bytes",
            "Bytes that direct leases have: of pinned slots, of mapped extents, and of those that are needed no more.",
            kGauge, L1{"state"}, now.lease_bytes),
        Family("statepool_direct_slots", "Slots that direct leases have now.", kGauge, L1{"state"}, now.lease_slots),
        Family("statepool_direct_slots_total", "Slots that were pinned for direct leases, granted to them, and filled.",
               kCounter, L1{"state"}, now.lease_slots_total),
        Single("statepool_copy_jobs", "Copies between slots and arenas that wait or run.", kGauge,
               static_cast<double>(now.copy_jobs)),
        Single("statepool_copy_waiting_bytes", "Bytes of these copies that no thread has begun.", kGauge,
               static_cast<double>(now.copy_waiting_bytes)),
        Family("statepool_copies_total", "Copies between slots and arenas, by result.", kCounter, L1{"result"},
               now.copies),
        Single("statepool_spills_total", "Images written to the cold store because their slots were needed.", kCounter,
               static_cast<double>(now.spills)),
        Single("statepool_demotions_total", "Images copied to the warm memory because their slots were needed.",
               kCounter, static_cast<double>(now.demotions)),
        Single("statepool_promotions_total", "Images brought to where they were read, from another place.", kCounter,
               static_cast<double>(now.promotions)),
        Single("statepool_lost_images_total", "Images whose only place was a device that failed.", kCounter,
               static_cast<double>(now.lost_images)),
        Single("statepool_dirty_bytes", "Bytes of images that names wait to have recorded.", kGauge,
               static_cast<double>(now.dirty_bytes)),
        Single("statepool_flush_lag_seconds", "Age of the oldest change that is not recorded yet.", kGauge,
               absl::ToDoubleSeconds(now.flush_lag)),
        Family("statepool_build_info", "Always 1; the labels say what runs.", kGauge, L2{"version", "commit"}, build),
    };
  }

 private:
  const std::function<MetricsSnapshot()> snapshot_;
  const std::string version_, commit_;
};

}  // namespace

std::string LayoutLabel(absl::string_view fingerprint) { return std::string(fingerprint.substr(0, 12)); }

RpcMetrics::RpcMetrics(std::vector<std::string> methods)
    : methods_(std::move(methods)),
      registry_(std::make_shared<prometheus::Registry>()),
      family_(&prometheus::BuildHistogram()
                   .Name("statepool_rpc_duration_seconds")
                   .Help("Time from a call's arrival to the end of its answer, by method and gRPC code.")
                   .Register(*registry_)),
      cells_(methods_.size()) {}

RpcMetrics::~RpcMetrics() = default;

void RpcMetrics::Observe(size_t method, int code, absl::Duration took) {
  if (code < 0 || static_cast<size_t>(code) >= kCodes) code = 2;  // UNKNOWN
  std::atomic<prometheus::Histogram*>& cell = cells_[method][static_cast<size_t>(code)];
  prometheus::Histogram* histogram = cell.load(std::memory_order_acquire);
  if (histogram == nullptr) {
    // The same labels give the same histogram, so two first calls at once do no harm.
    histogram = &family_->Add({{"method", methods_[method]}, {"code", kCodeNames[code]}}, Buckets());
    cell.store(histogram, std::memory_order_release);
  }
  histogram->Observe(absl::ToDoubleSeconds(took));
}

std::shared_ptr<prometheus::Collectable> RpcMetrics::collectable() const { return registry_; }

std::shared_ptr<prometheus::Collectable> MakeSnapshotCollectable(std::function<MetricsSnapshot()> snapshot,
                                                                 const std::string& version,
                                                                 const std::string& commit) {
  return std::make_shared<SnapshotCollectable>(std::move(snapshot), version, commit);
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address, const RpcMetrics& rpc,
                                                                    std::function<MetricsSnapshot()> snapshot,
                                                                    const std::string& version,
                                                                    const std::string& commit) {
  std::unique_ptr<MetricsServer> server(new MetricsServer);
  server->rpc_ = rpc.collectable();
  server->moment_ = MakeSnapshotCollectable(std::move(snapshot), version, commit);
  try {  // prometheus-cpp's way to say that it can't listen
    server->exposer_ = std::make_unique<prometheus::Exposer>(
        std::vector<std::string>{"listening_ports", address, "num_threads", "8", "request_timeout_ms", "5000"});
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("cannot serve metrics on '", address, "': ", e.what()));
  }
  server->exposer_->RegisterCollectable(server->rpc_);
  server->exposer_->RegisterCollectable(server->moment_);
  const std::vector<int> ports = server->exposer_->GetListeningPorts();
  const size_t colon = address.rfind(':');
  const std::string host = colon == std::string::npos ? "0.0.0.0" : address.substr(0, colon);
  server->address_ = ports.empty() ? address : absl::StrCat(host, ":", ports[0]);
  return server;
}

MetricsServer::~MetricsServer() {
  // civetweb looks at its stop flag every 2 s, or when somebody connects: so somebody does.
  std::atomic<bool> ended{false};
  std::thread knock([this, &ended] {
    while (!ended.load()) {
      KnockAt(address_);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  exposer_.reset();
  ended.store(true);
  knock.join();
}

}  // namespace statepool
