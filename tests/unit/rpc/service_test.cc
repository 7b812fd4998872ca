// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The service behind a real gRPC server, over a Store with fakes below it.
#include "server/rpc/service.h"

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/fakes.h"
#include "rpc/rpc_status.h"
#include "server/rpc/server.h"

namespace statepool {
namespace {

constexpr uint64_t kInFlightMax = 4 << 20;
constexpr size_t kStateBytes = 200'000;  // three leaves and a bit

std::string Pattern(size_t bytes, int seed) {
  std::string out(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) out[i] = static_cast<char>((i * 31 + seed * 7) % 251);
  return out;
}

class ServiceTest : public ::testing::Test {
 protected:
  ServiceTest() {
    EXPECT_TRUE(store_.Recover().ok());
    ServiceOptions options;
    options.identity = {"1.2.3", "abc", "0123456789abcdef", 16 << 20, kInFlightMax, 1 << 20};
    options.executor_threads = 4;
    options.devices = [] { return std::vector<v1::DeviceInfo>(1); };
    service_ = std::make_unique<StatePoolService>(options, &store_, &clock_, &metrics_);
    const ServerOptions server_options{{"127.0.0.1:0"}, 16 << 20, 256 << 20};
    absl::StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start(server_options, service_.get());
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel_ = grpc::CreateCustomChannel(server_->addresses()[0], grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::StatePool::NewStub(channel_);

    v1::RegisterLayoutRequest layout;
    layout.set_alias("m");
    layout.mutable_layout()->set_model_id("model");
    v1::TensorSpec* tensor = layout.mutable_layout()->add_tensors();
    tensor->set_name("t");
    tensor->set_kind(v1::RECURRENT);
    tensor->set_dtype(v1::UINT8);
    tensor->add_layers(0);
    v1::Axis* axis = tensor->add_axes();
    axis->set_name("a");
    axis->set_size(kStateBytes);
    v1::LayoutInfo info;
    EXPECT_TRUE(Call(&v1::StatePool::Stub::RegisterLayout, layout, &info).ok());
  }

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::StatePool::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    return (stub_.get()->*method)(&context, request, response);
  }

  // Any bytes as the request of any method; `method` with its service, or one of ours.
  grpc::Status CallRaw(const std::string& method, const std::vector<std::string>& pieces, grpc::ByteBuffer* response) {
    std::vector<grpc::Slice> slices(pieces.begin(), pieces.end());
    const grpc::ByteBuffer request(slices.data(), slices.size());
    const std::string path = method[0] == '/' ? method : "/statepool.v1.StatePool/" + method;
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::Status status;
    auto call = stub.PrepareUnaryCall(&context, path, request, &queue);
    call->StartCall();
    call->Finish(response, &status, nullptr);
    void* tag;
    bool ok;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    return status;
  }

  // grpc.health.v1: 1 is SERVING, 2 is NOT_SERVING.
  int Health(const std::string& service) {
    const std::string request =
        service.empty() ? "" : absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service);
    grpc::ByteBuffer response;
    EXPECT_TRUE(CallRaw("/grpc.health.v1.Health/Check", {request}, &response).ok());
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(response.Dump(&slices).ok());
    std::string bytes;
    for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    return bytes.size() == 2 && bytes[0] == 8 ? bytes[1] : -1;
  }

  v1::SetRequest SetOf(const std::string& name, int64_t position, const std::string& data) {
    v1::SetRequest set;
    set.set_sequence(name);
    set.set_layout("m");
    set.set_position(position);
    set.set_data(data);
    return set;
  }
  grpc::Status Get(const std::string& name, v1::GetResponse* response) {
    v1::GetRequest get;
    get.mutable_name()->set_sequence(name);
    return Call(&v1::StatePool::Stub::Get, get, response);
  }

  SystemClock clock_;
  FakeDisk disk_;
  FakeImageStore images_{&disk_};
  FakeNameLog log_{&disk_};
  Store store_{StoreOptions(), &images_, &log_, &clock_};
  RpcMetrics metrics_{MethodNames()};
  std::unique_ptr<StatePoolService> service_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::StatePool::Stub> stub_;
};

TEST_F(ServiceTest, AStateComesBackAsItWasSet) {
  v1::SetRequest set = SetOf("s", 7, Pattern(kStateBytes, 1));
  set.set_attachment("logits");
  v1::NameInfo info;
  ASSERT_TRUE(Call(&v1::StatePool::Stub::Set, set, &info).ok());
  EXPECT_EQ(info.position(), 7);
  v1::GetResponse got;
  ASSERT_TRUE(Get("s", &got).ok());
  EXPECT_EQ(got.data(), set.data());
  EXPECT_EQ(got.attachment(), "logits");
  EXPECT_EQ(got.info().checksum(), ChecksumToHex(ChecksumOf(set.data())));
  EXPECT_EQ(got.info().revision(), info.revision());

  v1::GetRequest get;
  get.mutable_name()->set_sequence("s");
  get.set_omit_attachment(true);
  ASSERT_TRUE(Call(&v1::StatePool::Stub::Get, get, &got).ok());
  EXPECT_EQ(got.attachment(), "");
}

TEST_F(ServiceTest, TheLargeFieldMayStandAnywhereAndItsLastOccurrenceCounts) {
  v1::SetRequest head = SetOf("s", 1, ""), first, last;
  first.set_data(Pattern(1000, 9));
  last.set_data(Pattern(kStateBytes, 2));
  v1::SetRequest position;
  position.set_position(5);
  grpc::ByteBuffer response;
  const grpc::Status status = CallRaw(
      "Set",
      {first.SerializeAsString(), head.SerializeAsString(), last.SerializeAsString(), position.SerializeAsString()},
      &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  v1::GetResponse got;
  ASSERT_TRUE(Get("s", &got).ok());
  EXPECT_EQ(got.data(), last.data());
  EXPECT_EQ(got.info().position(), 5);
}

TEST_F(ServiceTest, ARequestThatCannotBeParsedIsMalformed) {
  for (const std::string& method : MethodNames()) {
    grpc::ByteBuffer response;
    const grpc::Status status =
        CallRaw(method, {std::string("\x0a\x7fshort", 7)}, &response);  // promises 127 bytes, has 5
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
    EXPECT_EQ(DetailsOf(status).info.reason(), "MALFORMED_REQUEST") << method;
  }
  grpc::ByteBuffer response;
  const grpc::Status not_utf8 = CallRaw("Create", {"\x0a\x02\xff\xfe"}, &response);
  EXPECT_EQ(DetailsOf(not_utf8).info.reason(), "MALFORMED_REQUEST");
}

TEST_F(ServiceTest, AnEmptyRequestIsARequest) {
  grpc::ByteBuffer response;
  EXPECT_TRUE(CallRaw("GetCapabilities", {}, &response).ok());
  EXPECT_EQ(DetailsOf(CallRaw("Describe", {}, &response)).info.reason(), "MISSING_FIELD");
  EXPECT_EQ(DetailsOf(CallRaw("Set", {}, &response)).info.reason(), "INVALID_NAME");
}

TEST_F(ServiceTest, CapabilitiesTellTheLimits) {
  v1::Capabilities told;
  ASSERT_TRUE(Call(&v1::StatePool::Stub::GetCapabilities, v1::GetCapabilitiesRequest(), &told).ok());
  EXPECT_EQ(told.version(), "1.2.3");
  EXPECT_EQ(told.incarnation(), "0123456789abcdef");
  EXPECT_EQ(told.copy_mode(), "inline");
  EXPECT_EQ(told.devices_size(), 1);
  EXPECT_EQ(told.max_bytes_in_flight(), kInFlightMax);
  EXPECT_EQ(told.max_name_bytes(), 512u);
  EXPECT_EQ(told.default_durability(), v1::WRITE_BEHIND);
  EXPECT_FALSE(told.has_default_ttl());
}

TEST_F(ServiceTest, ARetryGivesTheFirstAnswerAndAnotherRequestWithItsIdIsRefused) {
  v1::SetRequest set = SetOf("s", 7, Pattern(kStateBytes, 1));
  set.set_request_id("id");
  v1::NameInfo first, again;
  ASSERT_TRUE(Call(&v1::StatePool::Stub::Set, set, &first).ok());
  ASSERT_TRUE(Call(&v1::StatePool::Stub::Set, set, &again).ok());
  EXPECT_TRUE(again.replayed());
  EXPECT_EQ(again.revision(), first.revision());

  set.mutable_data()->back() ^= 1;  // one bit of the state is enough
  const grpc::Status other_data = Call(&v1::StatePool::Stub::Set, set, &again);
  EXPECT_EQ(DetailsOf(other_data).info.reason(), "REQUEST_ID_REUSED");
  set.mutable_data()->back() ^= 1;
  set.set_position(8);
  EXPECT_EQ(DetailsOf(Call(&v1::StatePool::Stub::Set, set, &again)).info.reason(), "REQUEST_ID_REUSED");

  v1::RollbackRequest other_method;
  other_method.set_sequence("s");
  other_method.set_position(7);
  other_method.set_request_id("id");
  EXPECT_EQ(DetailsOf(Call(&v1::StatePool::Stub::Rollback, other_method, &again)).info.reason(), "REQUEST_ID_REUSED");
}

TEST_F(ServiceTest, MoreBytesInFlightThanAllowedAreRefusedAndNothingIsKept) {
  v1::NameInfo info;
  const grpc::Status refused =
      Call(&v1::StatePool::Stub::Set, SetOf("s", 1, std::string(kInFlightMax + 1, 'x')), &info);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const RpcDetails details = DetailsOf(refused);
  EXPECT_EQ(details.info.reason(), "ADMISSION");
  EXPECT_EQ(details.Meta("limit"), absl::StrCat(kInFlightMax));
  EXPECT_TRUE(details.retry.has_value());
  EXPECT_TRUE(Call(&v1::StatePool::Stub::Set, SetOf("s", 1, Pattern(kStateBytes, 1)), &info).ok());
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));  // every ticket came back
}

TEST_F(ServiceTest, AnAnswerHoldsItsSlotOnlyUntilItIsSent) {
  v1::NameInfo info;
  ASSERT_TRUE(Call(&v1::StatePool::Stub::Set, SetOf("s", 1, Pattern(kStateBytes, 1)), &info).ok());
  for (int i = 0; i < 100; ++i) {  // 20 MB through a limit of 4
    v1::GetResponse got;
    ASSERT_TRUE(Get("s", &got).ok());
  }
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));
}

TEST_F(ServiceTest, DrainingRefusesNewCallsAndSaysSoToHealthChecks) {
  EXPECT_EQ(Health(""), 1);
  EXPECT_EQ(Health("statepool.v1.StatePool"), 1);
  ASSERT_TRUE(server_->Drain(absl::Seconds(10)));
  EXPECT_EQ(Health(""), 2);
  EXPECT_EQ(Health("statepool.v1.StatePool"), 2);
  v1::GetResponse got;
  const grpc::Status refused = Get("s", &got);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(refused).info.reason(), "DRAINING");
  EXPECT_TRUE(DetailsOf(refused).retry.has_value());
}

TEST_F(ServiceTest, AnExpiredDeadlineIsSeenByTheStore) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() - std::chrono::seconds(1));
  v1::NameInfo info;
  EXPECT_EQ(stub_->Set(&context, SetOf("s", 1, Pattern(kStateBytes, 1)), &info).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
}

// ----
// listening

class ListenTest : public ServiceTest {
 protected:
  ListenTest() {
    char pattern[] = "/tmp/statepool-listen-XXXXXX";
    directory_ = mkdtemp(pattern);
    path_ = directory_ + "/socket";
  }
  ~ListenTest() override {
    unlink(path_.c_str());
    rmdir(directory_.c_str());
  }
  absl::StatusOr<std::unique_ptr<RpcServer>> Listen(std::vector<std::string> addresses) {
    return RpcServer::Start({std::move(addresses), 1 << 20, 64 << 20}, service_.get());
  }
  // A socket as a process leaves it that was killed.
  void LeaveSocket() {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    close(fd);
  }
  std::string directory_, path_;
};

TEST_F(ListenTest, ReportsRealPortsAndSocketsInTheirOrder) {
  const auto server = Listen({"unix:" + path_, "127.0.0.1:0"});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ((*server)->addresses()[0], "unix:" + path_);
  EXPECT_EQ((*server)->addresses()[1].substr(0, 10), "127.0.0.1:");
  EXPECT_NE((*server)->addresses()[1], "127.0.0.1:0");
}

TEST_F(ListenTest, ReplacesTheSocketOfADeadDaemon) {
  LeaveSocket();
  EXPECT_TRUE(Listen({"unix:" + path_}).ok());
}

TEST_F(ListenTest, LeavesTheSocketOfALivingDaemonAlone) {
  const auto first = Listen({"unix:" + path_});
  ASSERT_TRUE(first.ok());
  EXPECT_FALSE(Listen({"unix:" + path_}).ok());
  struct stat info;
  EXPECT_EQ(stat(path_.c_str(), &info), 0);
}

TEST_F(ListenTest, LeavesAFileThatIsNoSocketAlone) {
  std::ofstream(path_) << "precious";
  EXPECT_FALSE(Listen({"unix:" + path_}).ok());
  struct stat info;
  EXPECT_EQ(stat(path_.c_str(), &info), 0);
}

TEST_F(ListenTest, RefusesAPortThatIsTakenAndAddressesThatAreNone) {
  EXPECT_FALSE(Listen({server_->addresses()[0]}).ok());
  for (const char* address :
       {"", "localhost", "127.0.0.1:", "127.0.0.1:99999", ":7070", "ipv4:127.0.0.1:0/x", "unix:", "203.0.113.1:1"}) {
    EXPECT_FALSE(Listen({address}).ok()) << address;
  }
}

}  // namespace
}  // namespace statepool
