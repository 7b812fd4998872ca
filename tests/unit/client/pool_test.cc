// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The C++ client against a service in this process that is an ordinary generated one: so it also shows that the
// client's hand-made framing is ordinary proto. StalledPeer is a socket that greets like an HTTP/2 server and then
// reads nothing.
#include <arpa/inet.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cpp/statepool.h"
#include "client/fake_service.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

class FakeService final : public v1::StatePool::Service {
 public:
  grpc::Status Set(grpc::ServerContext*, const v1::SetRequest* request, v1::NameInfo* info) override {
    std::lock_guard lock(mutex);
    request_ids.push_back(request->request_id());
    if (failures_left > 0) {
      --failures_left;
      return Error(grpc::RESOURCE_EXHAUSTED, "ADMISSION", "", 1);
    }
    stored = *request;
    info->mutable_name()->set_sequence(request->sequence());
    info->set_checksum(ChecksumToHex(ChecksumOf(request->data())));
    info->set_revision(1);
    return grpc::Status::OK;
  }
  grpc::Status Get(grpc::ServerContext*, const v1::GetRequest*, v1::GetResponse* response) override {
    std::lock_guard lock(mutex);
    response->set_attachment(stored.attachment());
    response->set_data(stored.data());
    response->mutable_info()->set_checksum(stored.checksum());
    return grpc::Status::OK;
  }
  grpc::Status Delete(grpc::ServerContext*, const v1::DeleteRequest*, v1::DeleteResponse*) override {
    ++deletes;
    return Error(grpc::UNAVAILABLE, "DRAINING", "", 1);
  }
  grpc::Status Describe(grpc::ServerContext*, const v1::DescribeRequest*, v1::NameInfo*) override {
    return Error(grpc::NOT_FOUND, "EVICTED", "name");
  }
  grpc::Status List(grpc::ServerContext*, const v1::ListRequest* request, v1::ListResponse* response) override {
    const int at = request->page_token().empty() ? 0 : std::stoi(request->page_token());
    response->add_names()->mutable_name()->set_sequence(absl::StrCat("s", at));
    if (at < 4) response->set_next_page_token(absl::StrCat(at + 1));
    return grpc::Status::OK;
  }

  std::mutex mutex;
  v1::SetRequest stored;
  std::vector<std::string> request_ids;
  int failures_left = 0;
  std::atomic<int> deletes = 0;
};

class PoolTest : public testing::Test {
 protected:
  PoolTest() {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(64 << 20);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
  }
  ~PoolTest() override { server_->Shutdown(); }

  Pool Connect(const Options& options = {}) { return *Pool::Connect(absl::StrCat("127.0.0.1:", port_), options); }

  FakeService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

v1::SetRequest SetRequestFor(const std::string& sequence) {
  v1::SetRequest request;
  request.set_sequence(sequence);
  request.set_position(9);
  request.set_attachment("logits");
  return request;
}

TEST_F(PoolTest, AStateComesBackAsItWasSet) {
  const Pool pool = Connect();
  for (const size_t n : {size_t{1}, kLeafBytes, size_t{20000000}}) {
    const std::string bytes = Bytes(n);
    const absl::string_view view = bytes;
    const auto info = pool.Set(SetRequestFor("a"), {view.substr(0, n / 3), "", view.substr(n / 3)});
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(service_.stored.checksum(), info->checksum());
    EXPECT_EQ(service_.stored.position(), 9);

    absl::StatusOr<State> got = pool.Get(SequenceRef("a"));
    ASSERT_TRUE(got.ok()) << got.status();
    const State state = *std::move(got);
    EXPECT_EQ(state.size(), n);
    EXPECT_EQ(state.attachment(), "logits");
    EXPECT_TRUE(absl::StrJoin(state.pieces(), "") == bytes);
    std::string copy(n, '\0');
    EXPECT_TRUE(state.CopyTo(copy.data(), n).ok());
    EXPECT_TRUE(copy == bytes);
    EXPECT_FALSE(state.CopyTo(copy.data(), n - 1).ok());

    std::string into(n, '\0');
    const auto answer = pool.GetInto(v1::GetRequest(), absl::MakeSpan(into.data(), n));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->info().checksum(), info->checksum());
    EXPECT_TRUE(into == bytes);
    EXPECT_EQ(GetErrorDetail(pool.GetInto(v1::GetRequest(), absl::MakeSpan(into.data(), n - 1)).status()).reason,
              "BYTES_LENGTH_MISMATCH");
  }
}

TEST_F(PoolTest, BytesThatDifferFromTheirChecksumAreDataLoss) {
  const Pool pool = Connect();
  ASSERT_TRUE(pool.Set("a", "", 1, Bytes(100000)).ok());
  (*service_.stored.mutable_data())[70000] ^= 1;
  const absl::Status status = pool.Get(SequenceRef("a")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(GetErrorDetail(status).reason, "CORRUPT");
  EXPECT_EQ(GetErrorDetail(status).metadata.at("expected"), service_.stored.checksum());
  std::string into(100000, '\0');
  EXPECT_EQ(pool.GetInto(v1::GetRequest(), absl::MakeSpan(into.data(), into.size())).status().code(),
            absl::StatusCode::kDataLoss);
  Options trusting;
  trusting.verify = false;
  EXPECT_TRUE(Connect(trusting).Get(SequenceRef("a")).ok());
}

TEST_F(PoolTest, ErrorsCarryReasonFieldAndMetadata) {
  const ErrorDetail detail = GetErrorDetail(Connect().Describe(SequenceRef("gone")).status());
  EXPECT_EQ(detail.code, absl::StatusCode::kNotFound);
  EXPECT_EQ(detail.reason, "EVICTED");
  EXPECT_EQ(detail.field, "name");
  EXPECT_EQ(detail.message, "told so");
  EXPECT_EQ(detail.metadata, (std::map<std::string, std::string>{{"limit", "7"}}));
  EXPECT_FALSE(detail.retry_after);
}

TEST_F(PoolTest, RetriesAWriteWithOneRequestId) {
  const Pool pool = Connect();
  service_.failures_left = 2;
  ASSERT_TRUE(pool.Set("a", "", 1, "bytes").ok());
  ASSERT_EQ(service_.request_ids.size(), 3u);
  EXPECT_EQ(service_.request_ids[0].size(), 32u);
  EXPECT_EQ(service_.request_ids[0], service_.request_ids[2]);
  ASSERT_TRUE(pool.Set("a", "", 1, "bytes").ok());
  EXPECT_NE(service_.request_ids[3], service_.request_ids[2]);

  service_.failures_left = 100;
  const absl::Status status = pool.Set("a", "", 1, "bytes").status();
  EXPECT_EQ(GetErrorDetail(status).reason, "ADMISSION");
  EXPECT_EQ(GetErrorDetail(status).retry_after, absl::Milliseconds(1));
  EXPECT_EQ(service_.failures_left, 100 - Options().max_attempts);
}

TEST_F(PoolTest, RepeatsADeleteOnlyIfAnAbsentNameIsFine) {
  const Pool pool = Connect();
  v1::DeleteRequest request;
  EXPECT_FALSE(pool.Delete(request).ok());
  EXPECT_EQ(service_.deletes, 1);
  request.set_allow_missing(true);
  EXPECT_FALSE(pool.Delete(request).ok());
  EXPECT_EQ(service_.deletes, 1 + Options().max_attempts);
}

TEST_F(PoolTest, ListsAllPagesUntilTheVisitorHasEnough) {
  const Pool pool = Connect();
  std::vector<std::string> names;
  ASSERT_TRUE(pool.ListAll({},
                           [&](const v1::NameInfo& info) {
                             names.push_back(info.name().sequence());
                             return names.size() != 7;
                           })
                  .ok());
  EXPECT_EQ(absl::StrJoin(names, " "), "s0 s1 s2 s3 s4");
  ASSERT_TRUE(pool.ListAll({},
                           [&](const v1::NameInfo& info) {
                             names.push_back(info.name().sequence());
                             return names.size() != 7;
                           })
                  .ok());
  EXPECT_EQ(absl::StrJoin(names, " "), "s0 s1 s2 s3 s4 s0 s1");
}

TEST_F(PoolTest, ChecksHealth) {
  const Pool pool = Connect();
  EXPECT_EQ(*pool.CheckHealth(), "SERVING");
  server_->GetHealthCheckService()->SetServingStatus(false);
  EXPECT_EQ(*pool.CheckHealth(), "NOT_SERVING");
  EXPECT_EQ(pool.CheckHealth("nobody").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(PoolTest, SendsNoMessageAboveItsCap) {
  Options small;
  small.max_message_bytes = 1000;
  // The fake has no streams, and that is what the client asks for then (stream_test.cc).
  EXPECT_EQ(GetErrorDetail(Connect(small).Set("a", "", 1, Bytes(1001)).status()).reason, "UNIMPLEMENTED");
  EXPECT_TRUE(service_.request_ids.empty());
}

TEST(PoolAddressTest, IsHostAndPortOrAUnixPath) {
  for (const char* good : {"localhost:7070", "[::1]:7070", "unix:/run/x.sock", "unix:x"})
    EXPECT_TRUE(Pool::Connect(good).ok());
  for (const char* bad : {"", "localhost", ":7070", "localhost:", "localhost:0", "localhost:65536", "unix:"}) {
    EXPECT_EQ(GetErrorDetail(Pool::Connect(bad).status()).reason, "INVALID_ADDRESS") << bad;
  }
}

TEST(PoolAddressTest, AnAbsentDaemonIsUnreachable) {
  const absl::Status status = Pool::Connect("unix:/nonexistent/socket")->GetCapabilities().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(GetErrorDetail(status).reason, "UNREACHABLE");
}

TEST(ChecksumOfPiecesTest, DoesNotDependOnTheCuts) {
  const std::string bytes = Bytes(5 * kLeafBytes + 17);
  const std::string expected = ChecksumToHex(ChecksumOf(bytes));
  for (const size_t cut : {size_t{1000}, kLeafBytes - 1, kLeafBytes, kLeafBytes + 1, 3 * kLeafBytes, bytes.size()}) {
    std::vector<absl::string_view> pieces;
    for (size_t at = 0; at < bytes.size(); at += cut) pieces.push_back(absl::string_view(bytes).substr(at, cut));
    EXPECT_EQ(ChecksumOfPieces(pieces), expected) << cut;
  }
  EXPECT_EQ(ChecksumOfPieces({}), ChecksumToHex(ChecksumOf("")));
}

class StalledPeer {
 public:
  StalledPeer() : listener_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), length), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    greeter_ = std::thread([this] {
      connection_ = accept(listener_, nullptr, nullptr);
      if (connection_ < 0) return;  // HangUp: nobody came
      // SETTINGS{INITIAL_WINDOW_SIZE = 2^31 - 1}, WINDOW_UPDATE of the connection: nothing but the socket holds the
      // client back.
      static constexpr char kGreeting[] =
          "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x7f\xff\xff\xff"
          "\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\x00\x00";
      EXPECT_EQ(write(connection_, kGreeting, sizeof(kGreeting) - 1), static_cast<ssize_t>(sizeof(kGreeting) - 1));
    });
  }
  ~StalledPeer() { HangUp(); }

  void HangUp() {
    if (listener_ >= 0) shutdown(listener_, SHUT_RDWR);
    if (greeter_.joinable()) greeter_.join();
    if (listener_ >= 0) {
      close(listener_);
      close(connection_);
    }
    listener_ = -1;
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  int listener_;
  int connection_ = -1;
  int port_ = 0;
  std::thread greeter_;
};

Options Impatient() {
  Options options;
  options.timeout = absl::Seconds(1);       // on a busy machine even a connection takes its time
  options.arenas = options.direct = false;  // what a message does is the question here
  return options;
}

TEST(StalledPeerTest, SetHoldsOnToTheCallersMemoryUntilTheTransportLetsGo) {
  StalledPeer peer;
  const Pool pool = *Pool::Connect(peer.address(), Impatient());
  const std::string bytes = Bytes(20000000);
  auto call = std::async(std::launch::async, [&] { return pool.Set("a", "", 1, bytes).status(); });
  EXPECT_EQ(call.wait_for(std::chrono::seconds(2)), std::future_status::timeout);
  peer.HangUp();
  EXPECT_EQ(call.get().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(StalledPeerTest, SetWithAnOwnerReturnsAtItsDeadline) {
  StalledPeer peer;
  auto bytes = std::make_shared<std::string>(Bytes(20000000));
  const std::weak_ptr<std::string> watch = bytes;
  {
    const Pool pool = *Pool::Connect(peer.address(), Impatient());
    const absl::Time start = absl::Now();
    const absl::string_view view = *bytes;
    EXPECT_EQ(pool.Set(SetRequestFor("a"), {view}, std::move(bytes)).status().code(),
              absl::StatusCode::kDeadlineExceeded);
    EXPECT_LT(absl::Now() - start, absl::Seconds(5));
    EXPECT_FALSE(watch.expired());
    peer.HangUp();
  }
  for (int i = 0; i < 3000 && !watch.expired(); ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_TRUE(watch.expired());
}

}  // namespace
}  // namespace statepool::client
