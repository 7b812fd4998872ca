// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// statepoold: flags → parts → serve → drain.
//
// Exit: 0 orderly stop, 1 usage, 2 the data directory can't be used, 3 the disk failed while serving.
#include <malloc.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "server/core/mutex.h"
#include "server/core/store.h"
#include "server/devices.h"
#include "server/flags.h"
#include "server/memory/arenas.h"
#include "server/memory/copy_scheduler.h"
#include "server/memory/host_device.h"
#include "server/report.h"
#include "server/rpc/arena_socket.h"
#include "server/rpc/server.h"
#include "server/rpc/service.h"
#include "server/telemetry/log.h"
#include "server/telemetry/metrics.h"
#include "server/tiers/residency.h"
#include "server/tiers/rocksdb_cold_store.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

enum Exit { kOrderly = 0, kUsage = 1, kDataDirectory = 2, kDisk = 3 };

constexpr uint64_t kMessageRoomBytes = 2 << 20;  // for an attachment and what else is beside a state
constexpr uint64_t kQuotaBytesMin = 1 << 30;
constexpr absl::Duration kGraceAfterDiskFailure = absl::Seconds(2);
constexpr absl::Duration kStopPatience = absl::Seconds(1);

int Fail(Exit code, absl::string_view what, const absl::Status& status) {
  std::cerr << "statepoold: " << what << (what.empty() ? "" : ": ") << status.message() << std::endl;
  return code;
}

// Large messages come and go: memory that was freed is kept instead of being given back and faulted in again for each.
// What one thread freed serves the others: by default there are eight arenas for each core, and each keeps its own.
void TuneMalloc() {
  mallopt(M_ARENA_MAX, static_cast<int>(std::max(2u, std::thread::hardware_concurrency())));
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that glibc takes
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
  mallopt(M_TOP_PAD, 16 << 20);
}

std::string RandomHex() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", static_cast<uint32_t>(random()), static_cast<uint32_t>(random()));
}

std::string JsonString(absl::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&out, "\\u%04x", c);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

void PrintReady(const std::vector<std::string>& listen, const std::string& metrics, const std::string& incarnation,
                const std::vector<std::string>& devices) {
  const auto list = [](const std::vector<std::string>& texts) {
    return absl::StrJoin(texts, ",", [](std::string* out, const std::string& text) { *out += JsonString(text); });
  };
  std::cout << R"({"event":"ready","listen":[)" << list(listen) << R"(],"metrics":)" << JsonString(metrics)
            << R"(,"incarnation":")" << incarnation << R"(","devices":[)" << list(devices) << "]}" << std::endl;
}

// Calls the store's chores about every 100 ms, and writes behind at once when that is urgent, until it goes.
class Housekeeping {
 public:
  Housekeeping(Store* store, Residency* residency) : thread_([this, store, residency] { Run(store, residency); }) {}
  ~Housekeeping() {
    {
      MutexLock lock(&mu_);
      stopping_ = true;
      wake_.SignalAll();
    }
    thread_.join();
  }

 private:
  void Run(Store* store, Residency* residency) {
    constexpr auto kRound = std::chrono::milliseconds(100), kLook = std::chrono::milliseconds(10);
    auto next_round = std::chrono::steady_clock::now();
    for (uint64_t round = 0;;) {
      {
        MutexLock lock(&mu_);
        if (!stopping_) wake_.WaitFor(&mu_, kLook);
        if (stopping_) return;
      }
      const bool is_round = std::chrono::steady_clock::now() >= next_round;
      if (is_round) store->ReapExpired();
      if (is_round || store->FlushIsUrgent()) store->FlushDue();
      if (!is_round) continue;
      store->FoldIdle();
      residency->CheckDevices();
      if (round++ % 50 == 0) ReportFlushing(store->stats().flush_status);
      next_round = std::chrono::steady_clock::now() + kRound;
    }
  }
  void ReportFlushing(const absl::Status& now) {
    if (now.ok() == flushed_.ok()) return;
    if (now.ok()) {
      spdlog::info("names are recorded on disk again");
    } else {
      spdlog::warn("names can't be recorded on disk: {}", std::string(now.message()));
    }
    flushed_ = now;
  }

  Mutex mu_;
  CondVar wake_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status flushed_;
  std::thread thread_;  // the last: it uses the others
};

StoreOptions StoreOptionsOf(const DaemonFlags& flags, const std::string& incarnation) {
  StoreOptions options;
  options.max_names = flags.max_names;
  options.default_durability = flags.default_durability;
  options.default_ttl = flags.default_ttl;
  options.max_ttl = flags.max_ttl;
  options.write_behind = {.flush_interval = flags.flush_interval,
                          .max_dirty_bytes = flags.max_dirty_bytes,
                          .stop_time = flags.drain_grace,
                          .bytes_per_second = flags.flush_bytes_per_second,
                          .max_lag = flags.max_lag,
                          .lag_policy = flags.lag_policy};
  options.incarnation = incarnation;
  return options;
}

ArenaOptions ArenaOptionsOf(const DaemonFlags& flags, const Device& device) {
  ArenaOptions options;
  options.max_arenas = flags.max_arenas;
  options.max_bytes = flags.max_arena_bytes;
  options.granule_bytes = device.chunk_bytes();
  options.max_waiting = static_cast<uint32_t>(std::max<size_t>(1, flags.executor_threads / 2));
  options.token_timeout = flags.arena_token_timeout;
  // A GPU copies that much in a millisecond or two, and a pass more costs a part of that.
  if (!device.host_accessible()) options.max_pinned_bytes = flags.hot_bytes;
  options.max_pinned_bytes = std::min(options.max_pinned_bytes, flags.hot_bytes / 8);
  options.parts.max_bytes = options.max_pinned_bytes;
  return options;
}

LeaseOptions LeaseOptionsOf(const DaemonFlags& flags) {
  LeaseOptions options;
  options.max_leases = flags.max_arenas;
  options.max_pinned_bytes = flags.max_pinned_bytes;
  options.max_granted_bytes = flags.max_granted_bytes;
  options.token_timeout = flags.arena_token_timeout;
  return options;
}

// Where workers get their arenas; empty: nowhere. By default no file: whoever copies a data directory can't copy
// sockets.
std::string ArenaSocketPath(const DaemonFlags& flags) {
  if (flags.arena_socket == "auto") return absl::StrCat("@statepool-", RandomHex());
  if (flags.arena_socket.empty() || flags.arena_socket[0] == '@') return flags.arena_socket;
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(flags.arena_socket, error);
  return error ? flags.arena_socket : path.string();
}

int Run(const DaemonFlags& flags, const sigset_t& stop_signals) {
  const std::string incarnation = RandomHex();
  const SystemClock clock;
  std::atomic<bool> disk_failed{false};
  RaiseOpenFileLimit();

  const absl::StatusOr<Memories> memories = OpenMemories(flags, &clock);
  if (!memories.ok())
    return Fail(kUsage, "--devices, --hot-bytes, --warm-bytes, --chunk-bytes, --staging-bytes", memories.status());
  if (flags.warm_bytes > 0 && memories->warm == nullptr)
    spdlog::info("hot states are in host memory already: --warm-bytes is not used");
  const Device& device = *memories->hot.front();  // all have the same budget

  RocksDbColdStoreOptions cold_options;
  cold_options.path = flags.data_dir;
  cold_options.budget_bytes = flags.cold_bytes;
  cold_options.on_failed = [&disk_failed](const absl::Status&) {  // the cold store has logged it
    disk_failed = true;
    kill(getpid(), SIGTERM);  // wakes main
  };
  absl::StatusOr<std::unique_ptr<RocksDbColdStore>> cold = RocksDbColdStore::Open(cold_options);
  if (!cold.ok()) return Fail(kDataDirectory, absl::StrCat("--data-dir ", flags.data_dir), cold.status());

  ResidencyOptions residency_options;
  residency_options.owned_bytes_max = flags.max_granted_bytes;
  Residency residency(residency_options, memories->for_residency(), cold->get(), &clock);
  Store store(StoreOptionsOf(flags, incarnation), &residency, cold->get(), &clock);
  residency.SetMakeRoom([&store] { return store.EvictPrefix(); });
  if (absl::Status s = store.Recover(); !s.ok())
    return Fail(kDataDirectory, absl::StrCat("--data-dir ", flags.data_dir), s);

  CopyScheduler copies({.threads = flags.copy_threads}, &clock);
  Arenas arenas(ArenaOptionsOf(flags, device), &store, &residency,
                {.devices = memories->hot_devices(),
                 .allocate = [&residency](const Op& op, TenantId tenant, uint64_t bytes,
                                          const Device* on) { return residency.AllocateShared(op, tenant, bytes, on); },
                 .freed = [&residency] { residency.SharedMemoryFreed(); },
                 .staging = memories->staging.get()},
                &copies, &clock);
  std::optional<Leases> leases;
  if (flags.direct) {
    leases.emplace(LeaseOptionsOf(flags), &store,
                   LeaseMemory{.grant =
                                   [&residency, &device](const Op& op, LayoutRef layout, OwnerId owner, bool at_once) {
                                     return residency.BeginOwned(op, layout, owner, &device, at_once);
                                   },
                               .end_owner = [&residency](OwnerId owner, bool gone) { residency.EndOwner(owner, gone); },
                               .freed = [&residency] { residency.SharedMemoryFreed(); },
                               .refusals = [&residency] { return residency.refusals(); }},
                   &clock);
  }
  const std::string arena_path = ArenaSocketPath(flags);
  std::unique_ptr<ArenaSocket> arena_socket;
  if (!arena_path.empty()) {
    absl::StatusOr<std::unique_ptr<ArenaSocket>> started = ArenaSocket::Start(
        {.path = arena_path, .incarnation = incarnation, .uids = {flags.arena_uids.begin(), flags.arena_uids.end()}},
        &arenas, leases ? &*leases : nullptr, &clock);
    if (!started.ok()) {
      store.Drain(Op()).IgnoreError();  // it was not used, so it stays clean
      return Fail(kUsage, "--arena-socket", started.status());
    }
    arena_socket = *std::move(started);
  }

  ServerOptions server_options;
  server_options.listen = flags.listen;
  server_options.max_message_bytes = flags.max_message_bytes + kMessageRoomBytes;
  // A backstop: wide enough that a rush meets ADMISSION, which says when to retry, and not dropped connections.
  server_options.quota_bytes =
      std::max(kQuotaBytesMin, 2 * flags.max_bytes_in_flight + server_options.max_message_bytes);
  ServiceOptions service_options;
  service_options.identity = {
      STATEPOOL_VERSION,
      STATEPOOL_COMMIT,
      incarnation,
      server_options.max_message_bytes,
      flags.max_bytes_in_flight,
      std::min({flags.max_message_bytes,
                flags.max_bytes_in_flight - std::min(flags.max_bytes_in_flight, kMessageOverheadBytes),
                device.budget_bytes()}),
      device.budget_bytes(),
      flags.max_uploads,
      flags.max_upload_bytes,
      flags.upload_timeout,
      flags.stream_timeout,
      arena_path};
  service_options.uploads = {flags.max_uploads, flags.max_upload_bytes, flags.upload_timeout};
  service_options.stream_timeout = flags.stream_timeout;
  service_options.executor_threads = flags.executor_threads;
  service_options.executor_queue = flags.executor_queue;
  service_options.devices = [devices = memories->hot_devices()] { return ReportDevices(devices); };
  RpcMetrics rpc_metrics(MethodNames());
  StatePoolService service(service_options, &store, arena_socket != nullptr ? &arenas : nullptr,
                           leases ? &*leases : nullptr, &clock, &rpc_metrics);

  std::unique_ptr<MetricsServer> metrics;
  if (!flags.metrics.empty()) {
    absl::StatusOr<std::unique_ptr<MetricsServer>> started = MetricsServer::Start(
        flags.metrics, rpc_metrics,
        [&] { return TakeSnapshot(store, residency, arenas, leases ? &*leases : nullptr, copies, service); },
        STATEPOOL_VERSION, STATEPOOL_COMMIT);
    if (!started.ok()) {
      store.Drain(Op()).IgnoreError();  // it was not used, so it stays clean
      return Fail(kUsage, "--metrics", started.status());
    }
    metrics = *std::move(started);
  }
  absl::StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start(server_options, &service);
  if (!server.ok()) {
    store.Drain(Op()).IgnoreError();
    return Fail(kUsage, "--listen", server.status());
  }
  std::optional<Housekeeping> housekeeping(std::in_place, &store, &residency);

  PrintReady((*server)->addresses(), metrics == nullptr ? "" : metrics->address(), incarnation, memories->hot_names());
  spdlog::info("serving {}, epoch {}, data in {}", absl::StrJoin((*server)->addresses(), ", "), store.epoch(),
               flags.data_dir);

  int signal = 0;
  sigwait(&stop_signals, &signal);
  spdlog::info("stopping: refusing new calls, waiting for running ones");
  const bool idle = (*server)->Drain(disk_failed ? kGraceAfterDiskFailure : flags.drain_grace);
  if (!idle) spdlog::warn("calls hang: they are left behind");
  housekeeping.reset();
  const absl::Status drained = disk_failed ? absl::UnavailableError("the disk failed") : store.Drain(Op());
  if (!drained.ok()) spdlog::critical("not everything could be recorded: {}", std::string(drained.message()));
  spdlog::info("stopped");
  // Destructors would wait for calls that hang, for a disk that failed and for connections that close slowly.
  if (!idle || !drained.ok() || !(*server)->Stop(kStopPatience)) std::_Exit(drained.ok() ? kOrderly : kDisk);
  return kOrderly;
}

int Main(int argc, char** argv) {
  TuneMalloc();
  // Debian's Abseil looks for lock cycles at every lock that gRPC takes, under one lock for the whole process.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // Before any thread is there, so that every thread inherits it: only main takes these.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  const absl::StatusOr<DaemonFlags> flags =
      ParseDaemonFlags(argc, argv, absl::StrCat(STATEPOOL_VERSION, " (", STATEPOOL_COMMIT, ")"));
  if (!flags.ok()) {
    return Fail(kUsage, "usage: statepoold --data-dir=DIR [--FLAG=VALUE ...] (--help tells more)", flags.status());
  }
  if (!InitLogging(flags->log_level)) {
    return Fail(kUsage, "--log-level", absl::InvalidArgumentError("must be trace, debug, info, warn, error or off"));
  }
  return Run(*flags, stop_signals);
}

}  // namespace
}  // namespace statepool

int main(int argc, char** argv) { return statepool::Main(argc, argv); }
