// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/telemetry/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "absl/strings/numbers.h"

namespace statepool {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// GET /metrics, as Prometheus would.
std::string Scrape(const std::string& address) {
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, static_cast<size_t>(n));
  close(fd);
  return answer;
}

TEST(Metrics, EverySeriesOfTheContractIsThere) {
  RpcMetrics rpc({"Get", "Set"});
  rpc.Observe(1, 0, absl::Microseconds(70));
  rpc.Observe(1, 0, absl::Seconds(60));
  rpc.Observe(0, 5, absl::Milliseconds(1));
  MetricsSnapshot snapshot;
  snapshot.images_bytes = {{{"hot", "host"}, 4096}, {{"cold", "disk"}, 8192}};
  snapshot.slots = {{{"host", LayoutLabel("0123456789abcdef"), "used"}, 2}};
  snapshot.device_bytes = {{{"host", "used"}, 5}};
  snapshot.names = {{{"sequence"}, 3}};
  snapshot.prefix_lookups = {{{"hit"}, 4}};
  snapshot.misses = {{{"EXPIRED"}, 5}};
  snapshot.evictions = {{{"hot", "budget"}, 6}};
  snapshot.transfer_bytes = {{{"wire", "host"}, uint64_t{1} << 40}};
  snapshot.spills = 7;
  snapshot.promotions = 8;
  snapshot.dirty_bytes = 9;
  snapshot.flush_lag = absl::Milliseconds(1'500);
  const auto server = MetricsServer::Start(
      "127.0.0.1:0", rpc, [&] { return snapshot; }, "0.1.0", "abc");
  ASSERT_TRUE(server.ok()) << server.status();

  const std::string text = Scrape((*server)->address());
  for (const char* line : {
           "# TYPE statepool_rpc_duration_seconds histogram",
           "statepool_rpc_duration_seconds_count{code=\"OK\",method=\"Set\"} 2\n",
           "statepool_rpc_duration_seconds_bucket{code=\"OK\",method=\"Set\",le=\"0.0001\"} 1\n",
           "statepool_rpc_duration_seconds_bucket{code=\"OK\",method=\"Set\",le=\"+Inf\"} 2\n",
           "statepool_rpc_duration_seconds_count{code=\"NOT_FOUND\",method=\"Get\"} 1\n",
           "statepool_images_bytes{tier=\"hot\",device=\"host\"} 4096\n",
           "statepool_images_bytes{tier=\"cold\",device=\"disk\"} 8192\n",
           "statepool_slots{device=\"host\",layout=\"0123456789ab\",state=\"used\"} 2\n",
           "statepool_device_bytes{device=\"host\",state=\"used\"} 5\n",
           "statepool_names{kind=\"sequence\"} 3\n",
           "# TYPE statepool_prefix_lookups_total counter",
           "statepool_prefix_lookups_total{result=\"hit\"} 4\n",
           "statepool_misses_total{reason=\"EXPIRED\"} 5\n",
           "statepool_evictions_total{tier=\"hot\",reason=\"budget\"} 6\n",
           "statepool_transfer_bytes_total{from=\"wire\",to=\"host\"} 1099511627776\n",
           "statepool_spills_total 7\n",
           "statepool_promotions_total 8\n",
           "statepool_dirty_bytes 9\n",
           "statepool_flush_lag_seconds 1.5\n",
           "statepool_build_info{version=\"0.1.0\",commit=\"abc\"} 1\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, Not(HasSubstr("code=\"OK\",method=\"Get\"")));  // did not happen: no series

  snapshot.spills = 70;
  EXPECT_THAT(Scrape((*server)->address()), HasSubstr("statepool_spills_total 70\n"));
}

TEST(Metrics, AddressesThatCannotBeUsedAreErrors) {
  RpcMetrics rpc({"Get"});
  const auto snapshot = [] { return MetricsSnapshot(); };
  const auto first = MetricsServer::Start("127.0.0.1:0", rpc, snapshot, "", "");
  ASSERT_TRUE(first.ok());
  EXPECT_FALSE(MetricsServer::Start((*first)->address(), rpc, snapshot, "", "").ok());
  EXPECT_FALSE(MetricsServer::Start("no address", rpc, snapshot, "", "").ok());
}

TEST(Metrics, UnknownCodesCountAsUnknown) {
  RpcMetrics rpc({"Get"});
  rpc.Observe(0, -1, absl::ZeroDuration());
  rpc.Observe(0, 99, absl::ZeroDuration());
  const auto server = MetricsServer::Start(
      "127.0.0.1:0", rpc, [] { return MetricsSnapshot(); }, "", "");
  EXPECT_THAT(Scrape((*server)->address()),
              HasSubstr("statepool_rpc_duration_seconds_count{code=\"UNKNOWN\",method=\"Get\"} 2\n"));
}

}  // namespace
}  // namespace statepool
