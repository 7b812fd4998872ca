// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Metrics: what the daemon tells Prometheus, at http://ADDRESS/metrics.
//
// Calls are observed as they end. Everything else is a moment: when somebody scrapes, a function that main supplies
// fills a MetricsSnapshot, and nothing is counted twice. Names of series are part of the contract: docs and dashboards
// rely on them.
//
// Labels are bounded: methods, codes, tiers, devices, reasons, and layouts by the first 12 digits of their
// fingerprints.
#ifndef STATEPOOL_SERVER_TELEMETRY_METRICS_H_
#define STATEPOOL_SERVER_TELEMETRY_METRICS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace prometheus {
class Collectable;
class Exposer;
class Histogram;
class Registry;
template <typename T>
class Family;
}  // namespace prometheus

namespace statepool {

// statepool_rpc_duration_seconds{method,code}. Thread-safe; Observe takes well below a microsecond.
class RpcMetrics {
 public:
  explicit RpcMetrics(std::vector<std::string> methods);
  ~RpcMetrics();

  // `method`: index into `methods`. `code`: a gRPC status code.
  void Observe(size_t method, int code, absl::Duration took);

  std::shared_ptr<prometheus::Collectable> collectable() const;

 private:
  static constexpr size_t kCodes = 17;
  using Row = std::array<std::atomic<prometheus::Histogram*>, kCodes>;

  const std::vector<std::string> methods_;
  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Family<prometheus::Histogram>* family_;
  std::vector<Row> cells_;  // null until its first call, so that only what happens is a series
};

// The daemon at one moment. Each map is one family; a key holds the values of its labels in the order of their names.
struct MetricsSnapshot {
  std::map<std::array<std::string, 2>, uint64_t> images_bytes;                                 // tier, device
  std::map<std::array<std::string, 3>, uint64_t> slots;                                        // device, layout, state
  std::map<std::array<std::string, 2>, uint64_t> device_bytes;                                 // device, state
  std::map<std::array<std::string, 1>, uint64_t> device_healthy;                               // device
  std::map<std::array<std::string, 1>, uint64_t> names;                                        // kind
  std::map<std::array<std::string, 1>, uint64_t> prefix_lookups;                               // result
  std::map<std::array<std::string, 1>, uint64_t> misses;                                       // reason
  std::map<std::array<std::string, 2>, uint64_t> evictions;                                    // tier, reason
  std::map<std::array<std::string, 2>, uint64_t> transfer_bytes;                               // from, to
  std::map<std::array<std::string, 1>, uint64_t> arenas, arena_bytes;                          // state
  std::map<std::array<std::string, 1>, uint64_t> copies;                                       // result
  std::map<std::array<std::string, 1>, uint64_t> lease_bytes, lease_slots, lease_slots_total;  // state
  uint64_t leases = 0;
  uint64_t flag_waits = 0, flag_pinned_bytes = 0, late_failures = 0;
  uint64_t reserved_slots = 0, copy_jobs = 0, copy_waiting_bytes = 0;
  uint64_t spills = 0, demotions = 0, promotions = 0, lost_images = 0;
  uint64_t dirty_bytes = 0;
  absl::Duration flush_lag;
};

// A layout as a label.
std::string LayoutLabel(absl::string_view fingerprint);

// Serves the metrics. Thread-safe.
class MetricsServer {
 public:
  // `snapshot` is called by the server's threads at each scrape; it must not block for long.
  // Errors: INVALID_ARGUMENT when it can't listen on `address` (host:port; port 0 picks a free one).
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address, const RpcMetrics& rpc,
                                                              std::function<MetricsSnapshot()> snapshot,
                                                              const std::string& version, const std::string& commit);
  ~MetricsServer();

  const std::string& address() const { return address_; }  // with the real port

 private:
  MetricsServer() = default;
  std::string address_;
  std::shared_ptr<prometheus::Collectable> rpc_, moment_;
  std::unique_ptr<prometheus::Exposer> exposer_;  // the last: ends before what it reads
};

// What a scrape of the moment gives. For tests, and for MetricsServer.
std::shared_ptr<prometheus::Collectable> MakeSnapshotCollectable(std::function<MetricsSnapshot()> snapshot,
                                                                 const std::string& version, const std::string& commit);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TELEMETRY_METRICS_H_
