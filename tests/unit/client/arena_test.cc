// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Arenas of the C++ client against a service in this process and a socket that gives what it should not.
#include "client/cpp/arena.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/fake_service.h"

namespace statepool::client {
namespace {

constexpr uint64_t kArenaBytes = 8192;
constexpr uint64_t kStride = 4096;

bool IsMapped() {
  std::ifstream maps("/proc/self/maps");
  const std::string text((std::istreambuf_iterator<char>(maps)), std::istreambuf_iterator<char>());
  return text.find("memfd:fake-arena") != text.npos;
}

size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

// One tensor "x" of two rows. What the socket does with a token, `answer` says: a reason to refuse with, or "short",
// "unsealed", "two", "none", "another", "garbage", "hang up"; empty: what it should.
class FakeArenas final : public v1::StatePool::Service {
 public:
  FakeArenas() : path_(absl::StrCat(testing::TempDir(), "/arena-", getpid(), ".sock")) {
    unlink(path_.c_str());
    listener_ = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_, 16), 0);
    acceptor_ = std::thread([this] {
      for (int connection; (connection = accept(listener_, nullptr, nullptr)) >= 0;) Serve(connection);
    });
  }
  ~FakeArenas() override {
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    close(listener_);
    unlink(path_.c_str());
    HangUp();
  }

  grpc::Status OpenArena(grpc::ServerContext*, const v1::OpenArenaRequest* request, v1::Arena* arena) override {
    std::lock_guard lock(mutex);
    arena->set_arena(absl::StrCat("arena", ++opened));
    arena->set_incarnation(incarnation);
    arena->set_socket(path_);
    arena->set_token(arena->arena());
    arena->set_bytes(kArenaBytes);
    arena->set_row_bytes(32);
    arena->set_layout("fingerprint");
    arena->set_rows(request->rows());
    v1::ArenaTensor& tensor = *arena->add_tensors();
    tensor.set_tensor("x");
    tensor.add_layers(0);
    tensor.set_dtype(v1::FLOAT32);
    for (const char* axis : {"row", "a"}) tensor.add_axes(axis);
    for (uint64_t n : {2, 8}) tensor.add_shape(n);
    for (uint64_t n : {stride, uint64_t{4}}) tensor.add_strides(n);
    return grpc::Status::OK;
  }
  grpc::Status CloseArena(grpc::ServerContext*, const v1::CloseArenaRequest* request,
                          v1::CloseArenaResponse* response) override {
    std::lock_guard lock(mutex);
    closed.push_back(absl::StrCat(request->arena(), IsMapped() ? " mapped" : "", HasHungUp() ? " hung up" : ""));
    response->set_closed(true);
    return grpc::Status::OK;
  }
  grpc::Status GetCapabilities(grpc::ServerContext*, const v1::GetCapabilitiesRequest*,
                               v1::Capabilities* capabilities) override {
    std::lock_guard lock(mutex);
    capabilities->set_incarnation(incarnation);
    return grpc::Status::OK;
  }
  grpc::Status Load(grpc::ServerContext*, const v1::LoadRequest* request, v1::LoadResponse* response) override {
    std::lock_guard lock(mutex);
    if (!failures.empty()) {
      const grpc::Status failure = failures.front();
      failures.pop_front();
      return failure;
    }
    for (int i = 0; i < request->items_size(); ++i) response->add_rows();
    *response->mutable_rows(0)->mutable_error() = ErrorDetails(grpc::NOT_FOUND, "EVICTED", "items[0].name");
    response->mutable_copy_time()->set_nanos(7);
    return grpc::Status::OK;
  }
  grpc::Status Store(grpc::ServerContext*, const v1::StoreRequest* request, v1::StoreResponse* response) override {
    std::lock_guard lock(mutex);
    stores.push_back(*request);
    if (stores.size() < 3) return Error(grpc::RESOURCE_EXHAUSTED, "QUEUE_FULL", "", 1);
    for (int i = 0; i < request->items_size(); ++i) response->add_rows()->mutable_info()->set_revision(5);
    response->set_done(true);
    return grpc::Status::OK;
  }

  // Of the newest connection.
  bool HasHungUp() {
    char byte;
    return connections_.empty() || recv(connections_.back(), &byte, 1, MSG_DONTWAIT) == 0;
  }
  void HangUp() {
    for (const int connection : connections_) close(connection);
    connections_.clear();
  }

  std::mutex mutex;  // of what follows
  std::string answer, incarnation = "i";
  uint64_t stride = kStride;
  int opened = 0;
  std::vector<std::string> closed;
  std::deque<grpc::Status> failures;
  std::vector<v1::StoreRequest> stores;

 private:
  void Serve(int connection) {
    char token[100];
    const ssize_t n = recv(connection, token, sizeof token, 0);
    std::lock_guard lock(mutex);
    connections_.push_back(connection);
    if (answer == "hang up") {
      shutdown(connection, SHUT_RDWR);
      return;
    }
    const int memory = memfd_create("fake-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT_EQ(ftruncate(memory, answer == "short" ? 4096 : static_cast<off_t>(kArenaBytes)), 0);
    EXPECT_EQ(fcntl(memory, F_ADD_SEALS, answer == "unsealed" ? F_SEAL_GROW : F_SEAL_SHRINK | F_SEAL_GROW), 0);
    const int fds[] = {memory, memory};
    size_t count = 1;
    std::string text = absl::StrCat(R"({"arena":")", std::string(token, static_cast<size_t>(std::max<ssize_t>(n, 0))),
                                    R"(","bytes":)", kArenaBytes, R"(,"incarnation":")", incarnation, R"("})");
    if (answer == "two") count = 2;
    if (answer == "none") count = 0;
    if (answer == "another") text = R"({"arena":"another","bytes":8192,"incarnation":"i"})";
    if (answer == "garbage") text = "hello";
    if (answer.find('_') != answer.npos) {
      text = absl::StrCat(R"({"reason":")", answer, R"(","message":"no"})");
      count = 0;
    }
    iovec piece = {text.data(), text.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (count > 0) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(count * sizeof(int));
      cmsghdr* const header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(count * sizeof(int));
      std::memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    }
    EXPECT_GT(sendmsg(connection, &message, MSG_NOSIGNAL), 0);
    close(memory);
  }

  const std::string path_;
  int listener_ = -1;
  std::vector<int> connections_;
  std::thread acceptor_;
};

class ArenaTest : public testing::Test {
 protected:
  static Pool Connect(const std::string& address) {
    Options options;
    options.timeout = absl::Seconds(10);
    options.max_attempts = 3;
    return *Pool::Connect(address, options);
  }
  absl::StatusOr<std::unique_ptr<Arena>> Open(ArenaOptions options = {}) {
    options.rows = 2;
    return pool_.OpenArena("f", options);
  }
  static std::string ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason; }
  std::vector<std::string> Closed() {
    std::lock_guard lock(service_.mutex);
    return service_.closed;
  }
  void FailNext(const grpc::Status& failure) {
    std::lock_guard lock(service_.mutex);
    service_.failures.push_back(failure);
  }

  FakeArenas service_;
  FakeServer server_{&service_};
  Pool pool_ = Connect(server_.address());
};

const std::vector<v1::LoadItem> kItems = {LoadRow(0, SequenceRef("s")), LoadRow(1, SequenceRef("s"))};

TEST_F(ArenaTest, TensorsLieWhereTheTableSays) {
  const auto arena = Open();
  ASSERT_TRUE(arena.ok()) << arena.status();
  const ArenaTensor& x = (*arena)->tensors().at(0);
  EXPECT_EQ(x.tensor, "x");
  EXPECT_EQ(x.axes, (std::vector<std::string>{"row", "a"}));
  EXPECT_EQ(x.shape, (std::vector<uint64_t>{2, 8}));
  EXPECT_EQ(x.strides, (std::vector<uint64_t>{kStride, 4}));
  char* const last = static_cast<char*>(x.data) + kArenaBytes - 1;
  EXPECT_EQ(*last, 0);
  *last = 1;
  EXPECT_EQ((*arena)->rows(), 2u);
  EXPECT_EQ((*arena)->bytes(), kArenaBytes);
  EXPECT_EQ((*arena)->incarnation(), "i");
}

TEST_F(ArenaTest, EachItemHasItsOwnResult) {
  const auto arena = Open();
  ASSERT_TRUE(arena.ok()) << arena.status();
  const auto loaded = (*arena)->Load(kItems);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(ReasonOf(loaded->rows.at(0).status()), "EVICTED");
  EXPECT_TRUE(loaded->rows.at(1).ok());
  EXPECT_EQ(loaded->copy_time, absl::Nanoseconds(7));
}

TEST_F(ArenaTest, AStoreIsRetriedWithTheSameRequestIds) {
  const auto arena = Open();
  ASSERT_TRUE(arena.ok()) << arena.status();
  v1::StoreItem own = StoreRow(1, "t", 4);
  own.set_request_id("own");
  const auto stored = (*arena)->Store({StoreRow(0, "s", 3), own}, /*all_or_none=*/true);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_TRUE(stored->done);
  EXPECT_EQ(stored->rows.at(1)->revision(), 5u);
  ASSERT_EQ(service_.stores.size(), 3u);
  EXPECT_FALSE(service_.stores[0].items(0).request_id().empty());
  EXPECT_EQ(service_.stores[0].items(1).request_id(), "own");
  EXPECT_EQ(service_.stores[0].SerializeAsString(), service_.stores[2].SerializeAsString());
}

TEST_F(ArenaTest, MemoryThatIsRefusedOrNotSafeToUseIsNotUsed) {
  ASSERT_TRUE(pool_.GetCapabilities().ok());
  const std::pair<const char*, const char*> cases[] = {{"PEER_REFUSED", "PEER_REFUSED"},
                                                       {"PEER_UNKNOWN", "PEER_UNKNOWN"},
                                                       {"short", "BAD_MEMORY"},
                                                       {"unsealed", "BAD_MEMORY"},
                                                       {"two", "BAD_ANSWER"},
                                                       {"none", "BAD_ANSWER"},
                                                       {"another", "BAD_ANSWER"},
                                                       {"garbage", "BAD_ANSWER"},
                                                       {"hang up", "SOCKET_UNREACHABLE"}};
  const size_t before = OpenDescriptors();
  for (const auto& [answer, reason] : cases) {
    {
      std::lock_guard lock(service_.mutex);
      service_.answer = answer;
      service_.closed.clear();
      service_.opened = 0;
    }
    EXPECT_EQ(ReasonOf(Open().status()), reason) << answer;
    EXPECT_EQ(Closed(), std::vector<std::string>{"arena1 hung up"}) << answer;
    EXPECT_FALSE(IsMapped()) << answer;
    std::lock_guard lock(service_.mutex);
    service_.HangUp();
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(ArenaTest, ATokenThatCameTooLateIsAskedForAgain) {
  service_.answer = "TOKEN_INVALID";
  const absl::Status status = Open().status();
  EXPECT_EQ(ReasonOf(status), "TOKEN_INVALID");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(Closed().size(), 3u);
}

TEST_F(ArenaTest, ATableThatLeavesTheMemoryIsRefused) {
  service_.stride = kArenaBytes - 31;
  EXPECT_EQ(ReasonOf(Open().status()), "BAD_ANSWER");
  EXPECT_EQ(Closed().size(), 1u);
  EXPECT_FALSE(IsMapped());
}

TEST_F(ArenaTest, ClosingUnmapsFirstThenTellsTheDaemonThenHangsUp) {
  auto arena = Open();
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_TRUE(IsMapped());
  (*arena)->Close();
  EXPECT_EQ(Closed(), std::vector<std::string>{"arena1"});
  EXPECT_TRUE(service_.HasHungUp());
  EXPECT_EQ(ReasonOf((*arena)->Load(kItems).status()), "ARENA_CLOSED");
  EXPECT_EQ(ReasonOf((*arena)->Reopen()), "ARENA_CLOSED");
  arena->reset();
  EXPECT_EQ(Closed().size(), 1u);
}

TEST_F(ArenaTest, AnArenaThatIsGoneIsOpenAgainAtTheSameAddresses) {
  int reopened = 0;
  ArenaOptions options;
  options.on_reopen = [&](Arena&) { ++reopened; };
  const auto arena = Open(options);
  ASSERT_TRUE(arena.ok()) << arena.status();
  char* const x = static_cast<char*>((*arena)->tensors()[0].data);
  for (const bool restarted : {false, true}) {
    *x = 1;
    if (restarted) {
      std::lock_guard lock(service_.mutex);
      service_.incarnation = "j";
    }
    for (int i = 0; i < 3; ++i) FailNext(restarted ? Broken() : Error(grpc::NOT_FOUND, "ARENA_UNKNOWN", "arena"));
    const absl::Status gone = (*arena)->Load(kItems).status();
    EXPECT_EQ(gone.code(), absl::StatusCode::kAborted);
    EXPECT_EQ(ReasonOf(gone), "CONTENTS_GONE");
    EXPECT_EQ(GetErrorDetail(gone).metadata["incarnation"], restarted ? "j" : "i");
    EXPECT_EQ((*arena)->tensors()[0].data, x);
    EXPECT_EQ(*x, 0);
    EXPECT_TRUE(IsMapped());
    std::lock_guard lock(service_.mutex);
    service_.failures.clear();
  }
  EXPECT_EQ(reopened, 2);
  EXPECT_TRUE((*arena)->Load(kItems).ok());
}

TEST_F(ArenaTest, WhileTheSameDaemonIsUnavailableTheErrorIsTheCallsOwn) {
  const auto arena = Open();
  ASSERT_TRUE(arena.ok()) << arena.status();
  for (int i = 0; i < 3; ++i) FailNext(Broken());
  EXPECT_EQ(ReasonOf((*arena)->Load(kItems).status()), "UNREACHABLE");
  EXPECT_TRUE((*arena)->Load(kItems).ok());
}

TEST_F(ArenaTest, EveryThreadThatUsedItLearnsThatItsContentsAreGone) {
  const auto arena = Open();
  ASSERT_TRUE(arena.ok()) << arena.status();
  std::thread newcomer, other([&] {
    EXPECT_TRUE((*arena)->Load(kItems).ok());
    std::thread([&] { EXPECT_TRUE((*arena)->Reopen().ok()); }).join();
    EXPECT_EQ(ReasonOf((*arena)->Load(kItems).status()), "CONTENTS_GONE");
    EXPECT_TRUE((*arena)->Load(kItems).ok());
    newcomer = std::thread([&] { EXPECT_TRUE((*arena)->Load(kItems).ok()); });
    newcomer.join();
  });
  other.join();
}

TEST_F(ArenaTest, ATableThatDiffersAfterwardsIsRefusedAndTheAddressesStay) {
  const auto arena = Open();
  ASSERT_TRUE(arena.ok()) << arena.status();
  char* const x = static_cast<char*>((*arena)->tensors()[0].data);
  {
    std::lock_guard lock(service_.mutex);
    service_.stride = 32;
  }
  FailNext(Error(grpc::NOT_FOUND, "ARENA_UNKNOWN", "arena"));
  EXPECT_EQ(ReasonOf((*arena)->Load(kItems).status()), "ARENA_CHANGED");
  EXPECT_EQ(*x, 0);
  *x = 1;
}

TEST_F(ArenaTest, AForkedChildLeavesTheParentsLeaseAlone) {
  auto arena = Open();
  ASSERT_TRUE(arena.ok()) << arena.status();
  char* const x = static_cast<char*>((*arena)->tensors()[0].data);
  *x = 7;
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    int failed = *x == 7 ? 0 : 1;
    if (ReasonOf((*arena)->Load(kItems).status()) != "FORKED") failed |= 2;
    if (ReasonOf((*arena)->Reopen()) != "FORKED") failed |= 4;
    arena->reset();
    if (IsMapped()) failed |= 8;
    _exit(failed);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(Closed().empty());
  EXPECT_FALSE(service_.HasHungUp());
  EXPECT_EQ(*x, 7);
  EXPECT_TRUE((*arena)->Load(kItems).ok());
}

}  // namespace
}  // namespace statepool::client
