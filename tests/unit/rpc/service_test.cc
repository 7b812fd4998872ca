// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The service as unary calls see it, and how it listens.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fstream>
#include <random>
#include <thread>

#include "proto/wire.h"
#include "rpc/service_fixture.h"
#include "server/rpc/call.h"

namespace statepool {
namespace {

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

TEST_F(ServiceTest, ARequestWithMoreBytesThanMayBeInFlightIsRefusedAndNothingIsKept) {
  v1::NameInfo info;
  const grpc::Status refused =
      Call(&v1::StatePool::Stub::Set, SetOf("s", 1, std::string(kInFlightMax + 1, 'x')), &info);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const RpcDetails details = DetailsOf(refused);
  EXPECT_EQ(details.info.reason(), "MESSAGE_TOO_LARGE");
  EXPECT_EQ(details.Meta("limit"), absl::StrCat(kInFlightMax));
  EXPECT_FALSE(details.retry.has_value());
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

TEST_F(ServiceTest, ADeadlineThatPassesInTheQueueSaysSo) {
  // Every thread of the executor holds still in a commit.
  Mutex mu;
  CondVar changed;
  size_t waiting = 0;
  bool go = false;
  log_.before_commit = [&](absl::Span<const NameChange>) {
    MutexLock lock(&mu);
    ++waiting;
    changed.SignalAll();
    while (!go) changed.Wait(&mu);
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kExecutorThreads; ++i) {
    threads.emplace_back([&, i] {
      v1::SetRequest set = SetOf("s" + std::to_string(i), 1, Pattern(kStateBytes, 1));
      set.mutable_options()->set_durability(v1::SYNC);
      v1::NameInfo info;
      EXPECT_TRUE(Call(&v1::StatePool::Stub::Set, set, &info).ok());
    });
  }
  {
    MutexLock lock(&mu);
    while (waiting < kExecutorThreads) changed.Wait(&mu);
  }
  const MonoTime before = clock_.Now();
  grpc::Status queued;
  std::thread last([&] {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::hours(1));
    v1::NameInfo info;
    queued = stub_->Set(&context, SetOf("late", 1, Pattern(kStateBytes, 1)), &info);
  });
  while (service_->queued() == 0) std::this_thread::yield();
  clock_.Advance(absl::Hours(2));
  {
    MutexLock lock(&mu);
    go = true;
    changed.SignalAll();
  }
  last.join();
  for (std::thread& thread : threads) thread.join();
  log_.before_commit = nullptr;
  EXPECT_EQ(images_.writes, static_cast<int>(kExecutorThreads));  // it cost no copy
  EXPECT_GT(clock_.Now(), before);
  EXPECT_EQ(queued.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(DetailsOf(queued).info.reason(), "DEADLINE");
  EXPECT_EQ(DetailsOf(queued).info.domain(), "statepool.v1");
  v1::GetResponse got;
  EXPECT_EQ(DetailsOf(Get("late", &got)).info.reason(), "NEVER_CREATED");
}

TEST_F(ServiceTest, WhatNoRowOfTheTableSaysIsADefect) {
  v1::SetRequest set = SetOf("s", 1, Pattern(kStateBytes, 1));
  set.mutable_options()->set_durability(v1::SYNC);
  for (const absl::Status& undocumented : {absl::UnknownError("a surprise"), absl::OutOfRangeError("a surprise"),
                                           absl::InternalError("a surprise"), absl::NotFoundError("a surprise")}) {
    images_.persist_error = undocumented;
    v1::NameInfo info;
    const grpc::Status status = Call(&v1::StatePool::Stub::Set, set, &info);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_EQ(DetailsOf(status).info.reason(), "INTERNAL");
    EXPECT_EQ(DetailsOf(status).info.domain(), "statepool.v1");
    EXPECT_FALSE(DetailsOf(status).retry.has_value());
    EXPECT_NE(status.error_message(), "");
  }
}

// ----
// batches

class BatchServiceTest : public ServiceTest {
 protected:
  static v1::GetRequest* AddGet(v1::BatchGetRequest* batch, const std::string& name) {
    v1::GetRequest* get = batch->add_items();
    get->mutable_name()->set_sequence(name);
    return get;
  }
  void AddSet(v1::BatchWriteRequest* batch, const std::string& name, int64_t position, const std::string& data) {
    v1::BatchWriteItem* item = batch->add_items();
    *item->mutable_set() = SetOf(name, position, "");
    item->set_data_bytes(data.size());
    batch->mutable_data()->append(data);
  }
};

TEST_F(BatchServiceTest, ManyStatesAreWrittenAndReadInOneMessageEach) {
  v1::BatchWriteRequest write;
  for (int i = 0; i < 4; ++i) AddSet(&write, "s" + std::to_string(i), i, Pattern(kStateBytes, i));
  write.mutable_items(2)->mutable_set()->set_attachment("logits");
  v1::BatchWriteResponse written;
  ASSERT_TRUE(Call(&v1::StatePool::Stub::BatchWrite, write, &written).ok());
  EXPECT_TRUE(written.done());
  ASSERT_EQ(written.results_size(), 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(written.results(i).info().position(), i);

  v1::BatchGetRequest read;
  AddGet(&read, "s2");
  AddGet(&read, "absent");
  AddGet(&read, "s0");
  AddGet(&read, "s2")->set_omit_attachment(true);
  read.mutable_items(2)->mutable_select()->add_tensors("t");
  v1::BatchGetResponse got;
  ASSERT_TRUE(Call(&v1::StatePool::Stub::BatchGet, read, &got).ok());
  ASSERT_EQ(got.items_size(), 4);
  const auto data_of = [&](int i) {
    return got.data().substr(got.items(i).data_offset(), got.items(i).response().data_bytes());
  };
  EXPECT_EQ(data_of(0), Pattern(kStateBytes, 2));
  EXPECT_EQ(got.items(0).response().attachment(), "logits");
  EXPECT_EQ(got.items(0).response().data(), "");
  EXPECT_EQ(got.items(1).error().code(), static_cast<int>(grpc::StatusCode::NOT_FOUND));
  EXPECT_FALSE(got.items(1).has_response());
  EXPECT_EQ(data_of(2), Pattern(kStateBytes, 0));
  EXPECT_EQ(data_of(3), Pattern(kStateBytes, 2));
  EXPECT_EQ(got.items(3).response().attachment(), "");
  EXPECT_EQ(got.items(3).response().data_checksum(), ChecksumToHex(ChecksumOf(Pattern(kStateBytes, 2))));
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));
  EXPECT_EQ(images_.pins, 0);

  read.set_all_or_none(true);
  const grpc::Status none = Call(&v1::StatePool::Stub::BatchGet, read, &got);
  EXPECT_EQ(DetailsOf(none).info.reason(), "NEVER_CREATED");
  EXPECT_EQ(DetailsOf(none).Meta("field"), "items[1].name");

  // Whatever kind of error it is, the first one counts.
  read.add_items();
  EXPECT_EQ(DetailsOf(Call(&v1::StatePool::Stub::BatchGet, read, &got)).Meta("field"), "items[1].name");
  read.mutable_items(0)->clear_name();
  EXPECT_EQ(DetailsOf(Call(&v1::StatePool::Stub::BatchGet, read, &got)).Meta("field"), "items[0].name");
}

TEST_F(BatchServiceTest, AnItemThatCannotBeConvertedKeepsItsPlaceAndItsBytes) {
  v1::BatchWriteRequest write;
  AddSet(&write, "a", 1, Pattern(kStateBytes, 1));
  AddSet(&write, "bad", 1, Pattern(kStateBytes, 2));
  write.mutable_items(1)->mutable_set()->set_checksum("no hex");
  AddSet(&write, "c", 1, Pattern(kStateBytes, 3));
  write.add_items();
  v1::BatchWriteResponse written;
  ASSERT_TRUE(Call(&v1::StatePool::Stub::BatchWrite, write, &written).ok());
  EXPECT_TRUE(written.done());
  ASSERT_EQ(written.results_size(), 4);
  EXPECT_FALSE(written.results(0).has_error());
  EXPECT_TRUE(written.results(1).has_error());
  EXPECT_FALSE(written.results(2).has_error());
  EXPECT_TRUE(written.results(3).has_error());
  v1::GetResponse got;
  ASSERT_TRUE(Get("c", &got).ok());
  EXPECT_EQ(got.data(), Pattern(kStateBytes, 3));

  write.set_all_or_none(true);
  write.mutable_items(0)->mutable_set()->set_position(9);
  ASSERT_TRUE(Call(&v1::StatePool::Stub::BatchWrite, write, &written).ok());
  EXPECT_FALSE(written.done());
  ASSERT_TRUE(Get("a", &got).ok());
  EXPECT_EQ(got.info().position(), 1);
}

TEST_F(BatchServiceTest, TheErrorOfABatchNamesTheItemOfTheRequest) {
  v1::BatchWriteRequest write;
  write.add_items();  // refused before core sees it
  AddSet(&write, "a", 1, Pattern(kStateBytes, 1));
  AddSet(&write, "a", 2, Pattern(kStateBytes, 1));
  v1::BatchWriteResponse written;
  const grpc::Status twice = Call(&v1::StatePool::Stub::BatchWrite, write, &written);
  EXPECT_EQ(DetailsOf(twice).info.reason(), "DUPLICATE_NAME");
  EXPECT_EQ(DetailsOf(twice).Meta("field"), "items[2]");
  write.mutable_items(2)->set_data_bytes(kStateBytes - 1);
  const grpc::Status bytes = Call(&v1::StatePool::Stub::BatchWrite, write, &written);
  EXPECT_EQ(DetailsOf(bytes).info.reason(), "BYTES_LENGTH_MISMATCH");
  EXPECT_EQ(DetailsOf(bytes).Meta("expected"), std::to_string(2 * kStateBytes - 1));
  write.Clear();
  for (uint32_t i = 0; i <= store_.options().max_batch; ++i) write.add_items();
  const grpc::Status many = Call(&v1::StatePool::Stub::BatchWrite, write, &written);
  EXPECT_EQ(DetailsOf(many).info.reason(), "TOO_MANY");
  EXPECT_EQ(DetailsOf(many).Meta("limit"), std::to_string(store_.options().max_batch));
}

TEST_F(BatchServiceTest, AnAnswerThatIsTooLargeHoldsNothing) {
  Register("large", 1 << 20);
  v1::BatchGetRequest read;
  for (int i = 0; i < 17; ++i) {
    v1::CreateRequest create;
    create.set_sequence("s" + std::to_string(i));
    create.set_layout("large");
    v1::NameInfo info;
    ASSERT_TRUE(Call(&v1::StatePool::Stub::Create, create, &info).ok());
    AddGet(&read, create.sequence());
  }
  v1::BatchGetResponse got;
  const grpc::Status large = Call(&v1::StatePool::Stub::BatchGet, read, &got);
  EXPECT_EQ(DetailsOf(large).info.reason(), "MESSAGE_TOO_LARGE");
  EXPECT_EQ(DetailsOf(large).Meta("field"), "");  // nothing that the request names
  read.mutable_items()->DeleteSubrange(5, 12);
  const grpc::Status flight = Call(&v1::StatePool::Stub::BatchGet, read, &got);  // 5 MiB, of 4
  EXPECT_EQ(DetailsOf(flight).info.reason(), "MESSAGE_TOO_LARGE");
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));
  EXPECT_EQ(images_.pins, 0);
}

// Parts may be small; the slots that they lie in are not.
TEST_F(BatchServiceTest, PartsOfMoreStatesThanHalfOfTheHotBudgetAreRefusedBeforeAnyIsRead) {
  Register("large", kHotBytes / 8);
  v1::BatchGetRequest read;
  for (int i = 0; i < 5; ++i) {
    v1::SetRequest set = SetOf("s" + std::to_string(i), 1, std::string(kHotBytes / 8, 'x'));
    set.set_layout("large");
    v1::NameInfo info;
    ASSERT_TRUE(Call(&v1::StatePool::Stub::Set, set, &info).ok());
    v1::GetRequest* item = read.add_items();
    item->mutable_name()->set_sequence(set.sequence());
    item->mutable_select()->add_layers(0);
    item->mutable_select()->add_tensors("t");
  }
  const int reads = images_.reads;
  v1::BatchGetResponse got;
  const RpcDetails refused = DetailsOf(Call(&v1::StatePool::Stub::BatchGet, read, &got));
  EXPECT_EQ(refused.info.reason(), "MESSAGE_TOO_LARGE");
  EXPECT_EQ(refused.Meta("limit"), std::to_string(kHotBytes / 2));
  EXPECT_EQ(images_.reads, reads);
  // The same bytes several times are one slot; and one state is always served.
  for (int i = 1; i < 5; ++i) read.mutable_items(i)->mutable_name()->set_sequence("s0");
  EXPECT_EQ(DetailsOf(Call(&v1::StatePool::Stub::BatchGet, read, &got)).info.reason(), "");
}

// Pieces that were copied need no slot any more, but their bytes are in flight like all others.
TEST(Lend, BytesAreInFlightUntilTheLastSliceIsGone) {
  Admission admission(100 << 10);
  const std::string state(64 << 10, 'x');
  const absl::string_view whole = state;
  for (const bool copied : {false, true}) {
    const std::vector<absl::string_view> pieces =
        copied ? std::vector<absl::string_view>{whole.substr(0, 10), whole.substr(20, 10)}
               : std::vector<absl::string_view>{whole.substr(0, 40'000), "", whole.substr(50'000)};
    auto ticket = std::make_shared<Admission::Ticket>(*admission.Admit(50'000));
    auto lent = std::make_shared<LentSlot>(nullptr, nullptr, ticket);
    const std::weak_ptr<LentSlot> slot = lent;
    std::vector<grpc::Slice> slices = Lend(lent, pieces);
    grpc::ByteBuffer message = wire::Join("beside", wire::kDataField, slices, std::move(ticket));
    lent.reset();
    EXPECT_EQ(slot.expired(), copied);
    EXPECT_EQ(slices.size(), copied ? 1u : 2u);
    std::vector<grpc::Slice> sent;
    ASSERT_TRUE(message.Dump(&sent).ok());
    message.Clear();
    slices.clear();
    for (; !sent.empty(); sent.pop_back()) EXPECT_EQ(admission.bytes_in_flight(), 50'000u);
    EXPECT_EQ(admission.bytes_in_flight(), 0u);
    EXPECT_TRUE(slot.expired());
  }
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
