// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The fast lane of the C++ client against a service in this process that has arenas, counts its calls and loses
// answers.
#include "client/cpp/lane.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/arena.h"
#include "client/fake_service.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

constexpr uint64_t kStateBytes = Lane::kStateBytesMin + 4097;
constexpr char kAlias[] = "layout";
const std::string kLayout(64, 'f');  // a fingerprint

std::string StateOf(char c) { return std::string(kStateBytes, c); }

// Names with states, and arenas of one row. Which calls came, `calls` says; what becomes of the next ones, `faults`.
class FakeStates final : public v1::StatePool::Service {
 public:
  FakeStates() : path_(absl::StrCat(testing::TempDir(), "/lane-", getpid(), ".sock")) {
    unlink(path_.c_str());
    listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_, 16), 0);
    acceptor_ = std::thread([this] {
      for (int connection; (connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;) Serve(connection);
    });
  }
  ~FakeStates() override {
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    close(listener_);
    unlink(path_.c_str());
    for (const int connection : connections_) close(connection);
    for (const auto& [id, memory] : arenas_) munmap(memory, kStateBytes);
  }

  // What becomes of a call: an error instead of the deed, or after it.
  struct Fault {
    std::string method;
    bool is_done = false;
    grpc::Status error;
  };
  struct Named {
    std::string bytes;
    uint64_t revision = 0;
    std::map<std::string, std::string> request_ids;  // and which method they were of
  };

  grpc::Status GetCapabilities(grpc::ServerContext*, const v1::GetCapabilitiesRequest*, v1::Capabilities* a) override {
    return Do("GetCapabilities", [&] {
      a->set_incarnation(incarnation);
      a->set_arena_socket(arena_socket.value_or(path_));
      a->set_max_arena_bytes(max_arena_bytes);
      return grpc::Status::OK;
    });
  }
  grpc::Status GetLayout(grpc::ServerContext*, const v1::GetLayoutRequest*, v1::LayoutInfo* a) override {
    return Do("GetLayout", [&] {
      a->set_fingerprint(kLayout);
      a->set_state_bytes(kStateBytes);
      return grpc::Status::OK;
    });
  }
  grpc::Status OpenArena(grpc::ServerContext*, const v1::OpenArenaRequest* r, v1::Arena* a) override {
    return Do("OpenArena", [&] {
      a->set_arena(absl::StrCat("arena", calls["OpenArena"]));
      a->set_incarnation(incarnation);
      a->set_socket(path_);
      a->set_token(a->arena());
      a->set_bytes(kStateBytes);
      a->set_row_bytes(kStateBytes);
      a->set_layout(kLayout);
      a->set_rows(r->rows());
      v1::ArenaTensor& tensor = *a->add_tensors();
      tensor.set_tensor("x");
      tensor.add_layers(0);
      tensor.set_dtype(v1::UINT8);
      for (const char* axis : {"row", "layer", "a"}) tensor.add_axes(axis);
      for (uint64_t n : {uint64_t{1}, uint64_t{1}, kStateBytes}) tensor.add_shape(n);
      for (uint64_t n : {kStateBytes, kStateBytes, uint64_t{1}}) tensor.add_strides(n);
      return grpc::Status::OK;
    });
  }
  grpc::Status CloseArena(grpc::ServerContext*, const v1::CloseArenaRequest*, v1::CloseArenaResponse*) override {
    return Do("CloseArena", [] { return grpc::Status::OK; });
  }
  grpc::Status Load(grpc::ServerContext*, const v1::LoadRequest* r, v1::LoadResponse* a) override {
    return Do("Load", [&] {
      const auto it = names.find(r->items(0).name().sequence());
      if (it == names.end()) {
        *a->add_rows()->mutable_error() = ErrorDetails(grpc::NOT_FOUND, "NEVER_CREATED", "items[0].name");
        return grpc::Status::OK;
      }
      std::memcpy(arenas_.at(r->arena()), it->second.bytes.data(), kStateBytes);
      *a->add_rows()->mutable_info() = InfoOf(it->first);
      if (tampers) *static_cast<char*>(arenas_.at(r->arena())) ^= 1;
      return grpc::Status::OK;
    });
  }
  grpc::Status Store(grpc::ServerContext*, const v1::StoreRequest* r, v1::StoreResponse* a) override {
    return Do("Store", [&] {
      const v1::StoreItem& item = r->items(0);
      EXPECT_TRUE(item.whole_row());
      EXPECT_NE(item.has_if_revision(), item.any_revision());
      const std::string bytes(static_cast<char*>(arenas_.at(r->arena())), kStateBytes);
      Write("Store", "items[0].", item, bytes, a->add_rows());
      return grpc::Status::OK;
    });
  }
  grpc::Status Get(grpc::ServerContext*, const v1::GetRequest* r, v1::GetResponse* a) override {
    return Do("Get", [&] {
      const auto it = names.find(r->name().sequence());
      if (it == names.end()) return Error(grpc::NOT_FOUND, "NEVER_CREATED", "name");
      *a->mutable_info() = InfoOf(it->first);
      a->set_data_bytes(kStateBytes);
      a->set_data(it->second.bytes);
      return grpc::Status::OK;
    });
  }
  grpc::Status Set(grpc::ServerContext*, const v1::SetRequest* r, v1::NameInfo* a) override {
    return Do("Set", [&] {
      if (r->checksum() != ChecksumOfPieces({r->data()}))
        return Error(grpc::INVALID_ARGUMENT, "CHECKSUM_MISMATCH", "checksum");
      v1::StoredRow row;
      Write("Set", "", *r, r->data(), &row);
      *a = row.info();
      return row.has_error() ? grpc::Status(static_cast<grpc::StatusCode>(row.error().code()), row.error().message(),
                                            row.error().SerializeAsString())
                             : grpc::Status::OK;
    });
  }

  std::mutex mutex;  // of what follows
  std::map<std::string, int> calls;
  std::deque<Fault> faults;
  std::map<std::string, Named> names;
  std::string incarnation = "i";
  std::optional<std::string> arena_socket;  // unset: the real one
  uint64_t max_arena_bytes = 1 << 30;
  bool tampers = false;
  std::function<void(const std::string& method)> on_call;  // without the mutex, before anything else

 private:
  template <typename Deed>
  grpc::Status Do(const std::string& method, Deed deed) {
    if (on_call) on_call(method);
    std::lock_guard lock(mutex);
    ++calls[method];
    if (faults.empty() || faults.front().method != method) return deed();
    const Fault fault = faults.front();
    faults.pop_front();
    if (fault.is_done) (void)deed();
    return fault.error;
  }

  v1::NameInfo InfoOf(const std::string& name) {
    v1::NameInfo info;
    *info.mutable_name() = SequenceRef(name);
    info.set_layout(kLayout);
    info.set_revision(names[name].revision);
    info.set_state_bytes(kStateBytes);
    info.set_checksum(ChecksumOfPieces({names[name].bytes}));
    return info;
  }

  template <typename Item>
  void Write(const std::string& method, const std::string& prefix, const Item& item, const std::string& bytes,
             v1::StoredRow* row) {
    Named& named = names[item.sequence()];
    const auto [id, is_new] = named.request_ids.try_emplace(item.request_id(), method);
    if (!is_new && id->second != method) {
      *row->mutable_error() = ErrorDetails(grpc::INVALID_ARGUMENT, "REQUEST_ID_REUSED", prefix + "request_id");
      return;
    }
    if (is_new && item.has_if_revision() && item.if_revision() != named.revision) {
      named.request_ids.erase(id);
      *row->mutable_error() = ErrorDetails(grpc::ABORTED, "REVISION_MISMATCH", prefix + "if_revision");
      return;
    }
    if (is_new) {
      named.bytes = bytes;
      ++named.revision;
    }
    *row->mutable_info() = InfoOf(item.sequence());
    row->mutable_info()->set_replayed(!is_new);
  }

  void Serve(int connection) {
    char token[100];
    const ssize_t n = recv(connection, token, sizeof token, 0);
    const std::string id(token, static_cast<size_t>(std::max<ssize_t>(n, 0)));
    const int memory = memfd_create("fake-lane", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT_EQ(ftruncate(memory, kStateBytes), 0);
    EXPECT_EQ(fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    std::lock_guard lock(mutex);
    connections_.push_back(connection);
    arenas_[id] = mmap(nullptr, kStateBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    std::string text =
        absl::StrCat(R"({"arena":")", id, R"(","bytes":)", kStateBytes, R"(,"incarnation":")", incarnation, R"("})");
    iovec piece = {text.data(), text.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof memory)] = {};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof memory);
    std::memcpy(CMSG_DATA(header), &memory, sizeof memory);
    EXPECT_GT(sendmsg(connection, &message, MSG_NOSIGNAL), 0);
    close(memory);
  }

  const std::string path_;
  int listener_ = -1;
  std::vector<int> connections_;
  std::map<std::string, void*> arenas_;  // by id: their memory
  std::thread acceptor_;
};

class LaneTest : public testing::Test {
 protected:
  static Options With(int max_attempts) {
    Options options;
    options.timeout = absl::Seconds(10);
    options.max_attempts = max_attempts;
    options.direct = false;
    return options;
  }

  static std::string ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason; }
  static std::string BytesOf(const State& state) { return absl::StrJoin(state.pieces(), ""); }

  absl::StatusOr<v1::NameInfo> Set(char c, absl::string_view layout = kLayout, absl::string_view name = "s") {
    return pool_->Set(name, layout, 1, StateOf(c));
  }
  // Calls until there is a row.
  void WarmUp() {
    ASSERT_TRUE(pool_->GetLayout(kLayout).ok());
    for (int i = 0; i < Lane::kCallsMin; ++i) ASSERT_TRUE(Set('w').ok());
    ASSERT_EQ(Calls()["Store"], 1);
  }
  // Since the last look.
  std::map<std::string, int> Calls() {
    std::lock_guard lock(service_.mutex);
    return std::exchange(service_.calls, {});
  }
  void Fail(const std::string& method, const grpc::Status& error, bool is_done = false) {
    std::lock_guard lock(service_.mutex);
    service_.faults.push_back({method, is_done, error});
  }

  FakeStates service_;
  FakeServer server_{&service_};
  std::optional<Pool> pool_ = *Pool::Connect(server_.address(), With(3));
};

using Counts = std::map<std::string, int>;

TEST_F(LaneTest, StatesGoThroughARowFromTheEighthCallOfTheirLayoutOn) {
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(Set('a' + i).ok());
    EXPECT_TRUE(BytesOf(*pool_->Get(SequenceRef("s"))) == StateOf('a' + i));
  }
  // The layout is known after the first Set.
  EXPECT_EQ(Calls(), (Counts{{"Set", 4}, {"Get", 4}}));
  ASSERT_TRUE(Set('z').ok());
  EXPECT_EQ(Calls(), (Counts{{"Store", 1}, {"GetCapabilities", 1}, {"OpenArena", 1}}));
  const Pool copy = *pool_;  // shares the rows
  const auto state = copy.Get(SequenceRef("s"));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->info().revision(), 5u);
  std::string room(kStateBytes, '\0');
  v1::GetRequest request;
  *request.mutable_name() = SequenceRef("s");
  request.set_layout(kLayout);
  const auto into = copy.GetInto(request, absl::MakeSpan(room.data(), room.size()));
  ASSERT_TRUE(into.ok()) << into.status();
  EXPECT_EQ(into->data_bytes(), kStateBytes);
  EXPECT_EQ(into->data_checksum(), state->data_checksum());
  EXPECT_TRUE(room == StateOf('z'));
  EXPECT_EQ(Calls(), (Counts{{"Load", 2}}));
  ASSERT_TRUE(Set('y').ok());
  pool_.reset();
  EXPECT_TRUE(BytesOf(*state) == StateOf('z')) << "what Get gave is the caller's";
}

TEST_F(LaneTest, WhatTheLaneCannotTellGoesInline) {
  WarmUp();
  v1::SetRequest set;
  set.set_sequence("s");
  set.set_layout(kLayout);
  set.set_request_id("mine");
  const std::string bytes = StateOf('a');
  EXPECT_TRUE(pool_->Set(set, {bytes}).ok());
  EXPECT_TRUE(Set('b', kAlias, "new").ok());
  v1::GetRequest get;
  *get.mutable_name() = SequenceRef("s");
  get.set_layout(kAlias);
  EXPECT_TRUE(pool_->Get(get).ok());
  get.clear_layout();
  get.mutable_select()->add_tensors("x");
  EXPECT_TRUE(pool_->Get(get).ok());
  get.clear_select();
  std::string room(kStateBytes - 1, '\0');
  EXPECT_EQ(ReasonOf(pool_->GetInto(get, absl::MakeSpan(room.data(), room.size())).status()), "BYTES_LENGTH_MISMATCH");
  set.clear_request_id();
  set.set_checksum(std::string(16, '0'));
  EXPECT_EQ(ReasonOf(pool_->Set(set, {bytes}).status()), "CHECKSUM_MISMATCH");
  EXPECT_EQ(Calls(), (Counts{{"Set", 3}, {"Get", 3}}));
  set.set_checksum(ChecksumOfPieces({bytes}));
  EXPECT_TRUE(pool_->Set(set, {absl::string_view(bytes).substr(0, 7), absl::string_view(bytes).substr(7)}).ok());
  EXPECT_EQ(Calls(), (Counts{{"Store", 1}}));
  Options options = With(1);
  options.arenas = false;
  pool_ = *Pool::Connect(server_.address(), options);
  for (int i = 0; i < 2 * Lane::kCallsMin; ++i) EXPECT_TRUE(Set('c').ok());
  EXPECT_EQ(Calls(), (Counts{{"Set", 2 * Lane::kCallsMin}}));
}

TEST_F(LaneTest, AnAliasOrNoLayoutIsForTheVersionThatWasSeenLast) {
  WarmUp();
  for (const char* layout : {"", kAlias}) {
    EXPECT_TRUE(Set('a', layout).ok());
    Calls();
    EXPECT_TRUE(Set('b', layout).ok());
    EXPECT_TRUE(pool_->Get(SequenceRef("s")).ok());
    EXPECT_TRUE(Set('c', layout).ok());
    EXPECT_EQ(Calls(), (Counts{{"Store", 2}, {"Load", 1}})) << layout;
    {
      std::lock_guard lock(service_.mutex);
      ++service_.names["s"].revision;  // somebody else's write
    }
    EXPECT_TRUE(Set('d', layout).ok());
    EXPECT_EQ(Calls(), (Counts{{"Store", 1}, {"Set", 1}})) << layout;
  }
  EXPECT_TRUE(Set('e', "another alias").ok());
  EXPECT_EQ(Calls(), (Counts{{"Set", 1}}));
}

TEST_F(LaneTest, ErrorsAreThoseOfTheInlineWay) {
  WarmUp();
  const absl::Status miss = pool_->Get(SequenceRef("nobody")).status();
  EXPECT_EQ(ReasonOf(miss), "NEVER_CREATED");
  EXPECT_EQ(GetErrorDetail(miss).field, "name");
  v1::SetRequest set;
  set.set_sequence("s");
  set.set_layout(kLayout);
  set.set_if_revision(1000);
  const std::string bytes = StateOf('a');
  const absl::Status mismatch = pool_->Set(set, {bytes}).status();
  EXPECT_EQ(ReasonOf(mismatch), "REVISION_MISMATCH");
  EXPECT_EQ(GetErrorDetail(mismatch).field, "if_revision");
  EXPECT_EQ(Calls(), (Counts{{"Load", 1}, {"Store", 1}}));
  service_.tampers = true;
  EXPECT_EQ(ReasonOf(pool_->Get(SequenceRef("s")).status()), "CORRUPT");
}

TEST_F(LaneTest, WhateverIsTheMatterWithARowTheCallGoesInline) {
  for (const char* reason : {"HOT_FULL", "QUEUE_FULL", "ARENA_NOT_CONNECTED", "INTERNAL"}) {
    pool_ = *Pool::Connect(server_.address(), With(3));
    WarmUp();
    for (const char* method : {"Load", "Store"}) Fail(method, Error(grpc::RESOURCE_EXHAUSTED, reason, ""));
    EXPECT_TRUE(pool_->Get(SequenceRef("s")).ok()) << reason;
    EXPECT_TRUE(Set('a').ok()) << reason;
    EXPECT_TRUE(Set('b').ok()) << reason;
    const Counts calls = Calls();
    std::lock_guard lock(service_.mutex);
    EXPECT_EQ(service_.names["s"].bytes[0], 'b');
    if (std::string(reason) == "QUEUE_FULL") {
      EXPECT_EQ(calls, (Counts{{"Load", 1}, {"Get", 1}, {"Store", 2}, {"Set", 1}})) << "that passes";
    } else {
      EXPECT_EQ(calls, (Counts{{"Load", 1}, {"Get", 1}, {"Set", 2}})) << "the row is not tried again";
    }
    service_.faults.clear();
  }
}

TEST_F(LaneTest, ASetWhoseAnswerIsLostHappensOnceAndStaysOnTheLane) {
  WarmUp();
  for (const bool is_done : {false, true}) {
    const uint64_t before = service_.names["s"].revision;
    Fail("Store", Broken(), is_done);
    const auto info = Set('a');
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->replayed(), is_done);
    EXPECT_EQ(service_.names["s"].revision, before + 1);
    EXPECT_EQ(Calls(), (Counts{{"Store", 2}, {"GetCapabilities", 1}}));
  }
}

TEST_F(LaneTest, AfterASetThatMayHaveBeenDoneInlineTellsThatItWas) {
  for (const bool is_done : {false, true}) {
    pool_ = *Pool::Connect(server_.address(), With(3));
    WarmUp();
    Fail("Store", Broken(), is_done);
    Fail("Store", Error(grpc::INTERNAL, "INTERNAL", ""));
    const uint64_t before = service_.names["s"].revision;
    const auto info = Set('a');
    EXPECT_EQ(service_.names["s"].revision, before + 1);
    EXPECT_EQ(Calls(), (Counts{{"Store", 2}, {"GetCapabilities", 1}, {"Set", 1}}));
    if (is_done) {
      EXPECT_EQ(ReasonOf(info.status()), "UNREACHABLE") << "it was stored, but the answer is lost";
    } else {
      EXPECT_TRUE(info.ok()) << info.status();
    }
  }
}

TEST_F(LaneTest, WithoutRetriesTheErrorIsTheCallsOwnAndTheRowIsNotUsedAgain) {
  pool_ = *Pool::Connect(server_.address(), With(1));
  WarmUp();
  Fail("Store", Broken(), /*is_done=*/true);
  EXPECT_EQ(ReasonOf(Set('a').status()), "UNREACHABLE");
  Calls();
  EXPECT_TRUE(Set('b').ok());
  EXPECT_EQ(Calls(), (Counts{{"Set", 1}})) << "the daemon may still be copying the row";
  for (int i = 0; i < Lane::kCallsMin; ++i) EXPECT_TRUE(Set('c').ok());
  EXPECT_EQ(Calls()["OpenArena"], 1) << "there is no pause";
}

TEST_F(LaneTest, AGetThatBreaksOffIsTriedInline) {
  pool_ = *Pool::Connect(server_.address(), With(1));
  WarmUp();
  Fail("Load", Broken());
  EXPECT_TRUE(pool_->Get(SequenceRef("s")).ok());
  EXPECT_EQ(Calls(), (Counts{{"Load", 1}, {"GetCapabilities", 1}, {"Get", 1}}));
}

TEST_F(LaneTest, AfterARestartTheRowIsThereAgain) {
  WarmUp();
  {
    std::lock_guard lock(service_.mutex);
    service_.incarnation = "j";
  }
  Fail("Load", Error(grpc::NOT_FOUND, "ARENA_UNKNOWN", "arena"));
  EXPECT_TRUE(pool_->Get(SequenceRef("s")).ok());
  EXPECT_EQ(Calls(), (Counts{{"Load", 1}, {"GetCapabilities", 1}, {"OpenArena", 1}, {"Get", 1}}));
  Fail("Store", Broken(), /*is_done=*/true);
  {
    std::lock_guard lock(service_.mutex);
    service_.incarnation = "k";
  }
  const auto info = Set('a');
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_TRUE(info->replayed());
  EXPECT_EQ(Calls(), (Counts{{"Store", 2}, {"GetCapabilities", 1}, {"OpenArena", 1}}));
}

TEST_F(LaneTest, ARowThatIsNotToBeHadIsAskedForOnceInAWhile) {
  Fail("OpenArena", Error(grpc::RESOURCE_EXHAUSTED, "TOO_MANY_ARENAS", "", 1));
  for (int i = 0; i < 3 * Lane::kCallsMin; ++i) EXPECT_TRUE(Set('a').ok());
  EXPECT_EQ(Calls(), (Counts{{"Set", 3 * Lane::kCallsMin}, {"GetCapabilities", 1}, {"OpenArena", 1}}));
}

TEST_F(LaneTest, ADaemonOnAnotherMachineOrWithoutRoomIsNotEvenAsked) {
  for (const bool is_here : {false, true}) {
    {
      std::lock_guard lock(service_.mutex);
      service_.arena_socket = is_here ? std::optional<std::string>() : "@statepool/not/here";
      service_.max_arena_bytes = Lane::kShare * 2 * kStateBytes - (is_here ? 1 : 0);
    }
    pool_ = *Pool::Connect(server_.address(), With(1));
    for (int i = 0; i < 3 * Lane::kCallsMin; ++i) EXPECT_TRUE(Set('a').ok());
    EXPECT_EQ(Calls(), (Counts{{"Set", 3 * Lane::kCallsMin}, {"GetCapabilities", 1}})) << is_here;
  }
}

TEST_F(LaneTest, RowsGiveWayToArenasOfTheCallersOwn) {
  WarmUp();
  Fail("OpenArena", Error(grpc::RESOURCE_EXHAUSTED, "TOO_MANY_ARENAS", "", 1));
  ArenaOptions options;
  options.rows = 1;
  const auto arena = pool_->OpenArena(kLayout, options);
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_EQ(Calls(), (Counts{{"OpenArena", 2}, {"CloseArena", 1}}));
  EXPECT_TRUE(Set('a').ok());
  EXPECT_EQ(Calls(), (Counts{{"Set", 1}}));
}

TEST_F(LaneTest, ThreadsHaveAFewRowsAndTheirOwnStates) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      const std::string name = absl::StrCat("s", t);
      for (int i = 0; i < 30; ++i) {
        const char c = static_cast<char>('a' + (7 * t + i) % 26);
        ASSERT_TRUE(Set(c, kLayout, name).ok());
        const auto state = pool_->Get(SequenceRef(name));
        ASSERT_TRUE(state.ok() && BytesOf(*state) == StateOf(c));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Counts calls = Calls();
  EXPECT_EQ(calls["Set"] + calls["Store"], 240);
  EXPECT_EQ(calls["Get"] + calls["Load"], 240);
  EXPECT_GE(calls["Store"], 1);
  EXPECT_LE(calls["OpenArena"], static_cast<int>(Lane::kRowsMax));
}

TEST_F(LaneTest, ARowInUseLeavesTheOthersToMessages) {
  WarmUp();
  service_.on_call = [this, entered = false](const std::string& method) mutable {
    if (method != "Load" || std::exchange(entered, true)) return;
    EXPECT_TRUE(Set('b', kLayout, "other").ok());
  };
  EXPECT_TRUE(pool_->Get(SequenceRef("s")).ok());
  EXPECT_EQ(Calls(), (Counts{{"Load", 1}, {"Set", 1}}));
}

TEST_F(LaneTest, AForkedChildLeavesTheLaneAlone) {
  WarmUp();
  Lane lane(*pool_);
  const pid_t child = fork();
  if (child == 0) {
    v1::GetRequest request;
    *request.mutable_name() = SequenceRef("s");
    const auto room = [](uint64_t) -> char* { return nullptr; };
    const bool inline_alone = !lane.Get(request, std::nullopt, room, true, absl::InfiniteFuture()) && !lane.GiveWay();
    _exit(inline_alone ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(Set('a').ok());
  EXPECT_EQ(Calls(), (Counts{{"Store", 1}}));
}

}  // namespace
}  // namespace statepool::client
