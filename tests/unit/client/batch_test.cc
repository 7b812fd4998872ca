// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Batches, and the small calls on several names, against an ordinary generated service.
#include <gtest/gtest.h>

#include <mutex>
#include <set>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cpp/statepool.h"
#include "client/fake_service.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

// Each call is refused `failures_left` times, as worth a retry, before it is answered.
class BatchService final : public v1::StatePool::Service {
 public:
  // Items get the states "s0", "s11", "s222" ..., but an item for `missing` is a miss.
  grpc::Status BatchGet(grpc::ServerContext*, const v1::BatchGetRequest* request,
                        v1::BatchGetResponse* answer) override {
    if (Refuse()) return Refusal();
    for (int i = 0; i < request->items_size(); ++i) {
      v1::BatchGetItem& item = *answer->add_items();
      if (request->items(i).name().sequence() == "missing") {
        *item.mutable_error() = ErrorDetails(grpc::NOT_FOUND, "EVICTED", absl::StrCat("items[", i, "].name"));
        continue;
      }
      const std::string state = absl::StrCat("s", std::string(static_cast<size_t>(i + 1) * bytes_each, '0' + i));
      item.set_data_offset(answer->data().size());
      item.mutable_response()->set_data_bytes(state.size());
      item.mutable_response()->set_data_checksum(ChecksumToHex(ChecksumOf(state)));
      item.mutable_response()->mutable_info()->set_position(i);
      answer->mutable_data()->append(state);
    }
    if (spoil) spoil(answer);
    return grpc::Status::OK;
  }

  grpc::Status BatchWrite(grpc::ServerContext*, const v1::BatchWriteRequest* request,
                          v1::BatchWriteResponse* answer) override {
    std::lock_guard lock(mutex);
    writes.push_back(*request);
    if (Refuse()) return Refusal();
    size_t at = 0;
    answer->set_done(true);
    for (const v1::BatchWriteItem& item : request->items()) {
      v1::BatchWriteResult& result = *answer->add_results();
      const std::string data = request->data().substr(at, item.data_bytes());
      at += item.data_bytes();
      if (item.has_set()) {
        EXPECT_EQ(item.set().checksum(), ChecksumToHex(ChecksumOf(data)));
        states.push_back(data);
        result.mutable_info()->set_checksum(item.set().checksum());
      } else if (item.has_fork()) {
        *result.mutable_error() = ErrorDetails(grpc::ALREADY_EXISTS, "NAME_EXISTS", "items[1].children[0]", 5);
      } else if (item.has_delete_()) {
        result.mutable_delete_()->set_deleted(true);
      } else {
        result.mutable_info()->set_revision(9);
      }
    }
    EXPECT_EQ(at, request->data().size());
    return grpc::Status::OK;
  }

  grpc::Status Touch(grpc::ServerContext*, const v1::TouchRequest* request, v1::TouchResponse* answer) override {
    if (Refuse()) return Refusal();
    for (const v1::NameRef& name : request->names()) {
      v1::TouchedName& touched = *answer->add_names();
      if (name.snapshot() == "gone") *touched.mutable_error() = ErrorDetails(grpc::NOT_FOUND, "EXPIRED", "names");
      else if (name.snapshot() != "forever") touched.mutable_expire_time()->set_seconds(1000);
    }
    return grpc::Status::OK;
  }

  grpc::Status SetTtl(grpc::ServerContext*, const v1::SetTtlRequest* request, v1::NameInfo* info) override {
    if (Refuse()) return Refusal();
    ttl = *request;
    *info->mutable_name() = request->name();
    return grpc::Status::OK;
  }

  grpc::Status DeleteMany(grpc::ServerContext*, const v1::DeleteManyRequest*, v1::DeleteManyResponse* answer) override {
    if (Refuse()) return Refusal();
    answer->set_matched(3);
    return grpc::Status::OK;
  }

  grpc::Status DeleteLayout(grpc::ServerContext*, const v1::DeleteLayoutRequest* request,
                            v1::DeleteLayoutResponse* answer) override {
    if (Refuse()) return Refusal();
    answer->set_deleted(request->layout() == "there");
    return grpc::Status::OK;
  }

  grpc::Status GetUpload(grpc::ServerContext*, const v1::GetUploadRequest* request, v1::Upload* upload) override {
    if (Refuse()) return Refusal();
    upload->set_received_bytes(request->request_id().size());
    return grpc::Status::OK;
  }

  grpc::Status PublishPrefix(grpc::ServerContext*, const v1::PublishPrefixRequest* request,
                             v1::PublishPrefixResponse* answer) override {
    answer->set_prefix(request->salt());
    return grpc::Status::OK;
  }
  grpc::Status MatchPrefix(grpc::ServerContext*, const v1::MatchPrefixRequest* request,
                           v1::MatchPrefixResponse* answer) override {
    answer->set_miss_reason(request->salt());
    return grpc::Status::OK;
  }

  std::mutex mutex;
  size_t bytes_each = 1;
  std::function<void(v1::BatchGetResponse*)> spoil;
  std::vector<v1::BatchWriteRequest> writes;
  std::vector<std::string> states;
  v1::SetTtlRequest ttl;
  std::atomic<int> failures_left = 0;
  std::atomic<int> calls = 0;

 private:
  bool Refuse() {
    ++calls;
    return failures_left > 0 && failures_left-- > 0;
  }
  static grpc::Status Refusal() { return Error(grpc::RESOURCE_EXHAUSTED, "COLD_FULL", "", 1); }
};

class BatchTest : public testing::Test {
 protected:
  // How often a call is made that is refused as worth a retry.
  template <typename Call>
  int AttemptsOf(Call call) {
    service_.failures_left = 100;
    service_.calls = 0;
    EXPECT_EQ(GetErrorDetail(call()).reason, "COLD_FULL");
    service_.failures_left = 0;
    return service_.calls;
  }

  static constexpr int kMany = 4;  // Options::max_attempts
  BatchService service_;
  FakeServer server_{&service_};
  const Pool pool_ = *Pool::Connect(server_.address());
};

TEST_F(BatchTest, EachStateComesInItsPlaceAndOutlivesTheOthers) {
  for (const size_t bytes_each : {size_t{1}, size_t{3000000}}) {
    service_.bytes_each = bytes_each;
    const std::vector<v1::NameRef> names = {SequenceRef("a"), SequenceRef("missing"), SequenceRef("c")};
    auto states = pool_.BatchGet(names);
    ASSERT_TRUE(states.ok()) << states.status();
    ASSERT_EQ(states->size(), 3u);
    const State last = *std::move((*states)[2]);
    EXPECT_TRUE(absl::StrJoin((*states)[0]->pieces(), "") == "s" + std::string(bytes_each, '0'));
    const ErrorDetail miss = GetErrorDetail((*states)[1].status());
    EXPECT_EQ(miss.code, absl::StatusCode::kNotFound);
    EXPECT_EQ(miss.reason, "EVICTED");
    EXPECT_EQ(miss.field, "items[1].name");
    EXPECT_EQ(miss.message, "told so");
    states->clear();
    EXPECT_EQ(last.info().position(), 2);
    EXPECT_EQ(last.size(), 1 + 3 * bytes_each);
    EXPECT_TRUE(absl::StrJoin(last.pieces(), "") == "s" + std::string(3 * bytes_each, '2'));
  }
}

TEST_F(BatchTest, ASpoiledStateIsItsOwnItemsDataLoss) {
  service_.spoil = [](v1::BatchGetResponse* answer) { (*answer->mutable_data())[3] ^= 1; };
  const auto states = pool_.BatchGet({SequenceRef("a"), SequenceRef("b")});
  ASSERT_TRUE(states.ok()) << states.status();
  EXPECT_TRUE((*states)[0].ok());
  EXPECT_EQ(GetErrorDetail((*states)[1].status()).reason, "CORRUPT");
}

TEST_F(BatchTest, AnAnswerThatDoesNotAddUpIsMalformed) {
  const std::function<void(v1::BatchGetResponse*)> spoils[] = {
      [](v1::BatchGetResponse* answer) { answer->mutable_items()->RemoveLast(); },
      [](v1::BatchGetResponse* answer) { answer->mutable_items(1)->set_data_offset(3); },
      [](v1::BatchGetResponse* answer) { answer->mutable_items(1)->set_data_offset(UINT64_MAX); },
      [](v1::BatchGetResponse* answer) { answer->mutable_items(0)->mutable_response()->set_data_bytes(UINT64_MAX); },
  };
  for (const auto& spoil : spoils) {
    service_.spoil = spoil;
    EXPECT_EQ(GetErrorDetail(pool_.BatchGet({SequenceRef("a"), SequenceRef("b")}).status()).reason,
              "MALFORMED_RESPONSE");
  }
  service_.spoil = [](v1::BatchGetResponse* answer) { answer->mutable_items(0)->mutable_error(); };
  EXPECT_EQ(GetErrorDetail((*pool_.BatchGet({SequenceRef("a")}))[0].status()).reason, "MALFORMED_RESPONSE");
}

v1::BatchWriteRequest Writes() {
  v1::BatchWriteRequest request;
  request.add_items()->mutable_set()->set_sequence("a");
  request.add_items()->mutable_fork()->add_children("b");
  request.add_items()->mutable_set()->set_sequence("c");
  request.add_items()->mutable_create()->set_sequence("d");
  request.add_items()->mutable_rollback()->set_sequence("e");
  request.add_items()->mutable_snapshot()->set_snapshot("f");
  request.add_items()->mutable_restore()->set_sequence("g");
  request.mutable_items(6)->mutable_restore()->set_request_id("mine");
  request.add_items()->mutable_delete_()->mutable_name()->set_sequence("h");
  request.mutable_items(7)->mutable_delete_()->set_allow_missing(true);
  request.add_items()->mutable_remove_range()->set_sequence("i");
  request.mutable_items(8)->mutable_remove_range()->set_begin(1);
  request.add_items()->mutable_renumber()->set_sequence("j");
  return request;
}

TEST_F(BatchTest, WritesHaveTheirBytesIdsAndResults) {
  const std::string large(3000000, 'x');
  for (const auto& owner : {std::shared_ptr<int>(), std::make_shared<int>()}) {
    service_.states.clear();
    const auto answer = pool_.BatchWrite(Writes(), {{"one ", "", "state"}, {large}}, owner);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_TRUE(answer->done);
    ASSERT_EQ(answer->results.size(), 10u);
    EXPECT_EQ(service_.states[0], "one state");
    EXPECT_TRUE(service_.states[1] == large);
    EXPECT_EQ(answer->results[2]->info().checksum(), ChecksumToHex(ChecksumOf(large)));
    EXPECT_EQ(GetErrorDetail(answer->results[1].status()).reason, "NAME_EXISTS");
    EXPECT_EQ(GetErrorDetail(answer->results[1].status()).retry_after, absl::Milliseconds(5));
    EXPECT_TRUE(answer->results[7]->delete_().deleted());
  }
}

TEST_F(BatchTest, RetriesCarryTheSameIdsEachItsOwn) {
  service_.failures_left = 2;
  ASSERT_TRUE(pool_.BatchWrite(Writes(), {{"1"}, {"2"}}).ok());
  ASSERT_EQ(service_.writes.size(), 3u);
  EXPECT_EQ(service_.writes[0].SerializeAsString(), service_.writes[2].SerializeAsString());
  const v1::BatchWriteRequest& sent = service_.writes[0];
  const std::set<std::string> ids = {sent.items(0).set().request_id(),      sent.items(1).fork().request_id(),
                                     sent.items(2).set().request_id(),      sent.items(3).create().request_id(),
                                     sent.items(4).rollback().request_id(), sent.items(5).snapshot().request_id(),
                                     sent.items(6).restore().request_id(),  sent.items(8).remove_range().request_id(),
                                     sent.items(9).renumber().request_id()};
  EXPECT_EQ(ids.size(), 9u);
  EXPECT_TRUE(ids.contains("mine"));
  EXPECT_FALSE(ids.contains(""));
}

TEST_F(BatchTest, ABatchThatCanActTwiceIsTriedOnce) {
  v1::BatchWriteRequest request = Writes();
  EXPECT_EQ(AttemptsOf([&] { return pool_.BatchWrite(request, {{"1"}, {"2"}}).status(); }), kMany);
  request.mutable_items(8)->mutable_remove_range()->set_begin(0);  // it may delete
  EXPECT_EQ(AttemptsOf([&] { return pool_.BatchWrite(request, {{"1"}, {"2"}}).status(); }), 1);
  request.mutable_items(8)->mutable_remove_range()->set_allow_missing(true);
  EXPECT_EQ(AttemptsOf([&] { return pool_.BatchWrite(request, {{"1"}, {"2"}}).status(); }), kMany);
  request.mutable_items(7)->mutable_delete_()->set_allow_missing(false);
  EXPECT_EQ(AttemptsOf([&] { return pool_.BatchWrite(request, {{"1"}, {"2"}}).status(); }), 1);
}

TEST_F(BatchTest, WhatDoesNotFitTogetherIsRefusedBeforeItIsSent) {
  EXPECT_EQ(GetErrorDetail(pool_.BatchWrite(Writes(), {{"1"}}).status()).field, "states");
  EXPECT_EQ(GetErrorDetail(pool_.BatchWrite(Writes(), {{"1"}, {"2"}, {"3"}}).status()).field, "states");
  v1::BatchWriteRequest with_data = Writes();
  with_data.mutable_items(0)->mutable_set()->set_data("1");
  EXPECT_EQ(GetErrorDetail(pool_.BatchWrite(with_data, {{"1"}, {"2"}}).status()).field, "data");
  Options small;
  small.max_message_bytes = 1000;
  EXPECT_EQ(
      GetErrorDetail(
          Pool::Connect(server_.address(), small)->BatchWrite(Writes(), {{"1"}, {std::string(1000, 'x')}}).status())
          .reason,
      "MESSAGE_TOO_LARGE");
  EXPECT_TRUE(service_.writes.empty());
}

TEST_F(BatchTest, TouchTellsEachNamesExpiryOrError) {
  v1::TouchRequest request;
  for (const char* name : {"a", "gone", "forever"}) *request.add_names() = SnapshotRef(name);
  service_.failures_left = 1;
  const auto answer = pool_.Touch(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE(ToStatus(answer->names(0)).ok());
  EXPECT_EQ(GetErrorDetail(ToStatus(answer->names(1))).reason, "EXPIRED");
  EXPECT_EQ(*pool_.Touch(SnapshotRef("a")), absl::FromUnixSeconds(1000));
  EXPECT_EQ(*pool_.Touch(SnapshotRef("forever")), absl::InfiniteFuture());
  EXPECT_EQ(pool_.Touch(SnapshotRef("gone")).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(BatchTest, ATtlIsADurationOrNone) {
  ASSERT_TRUE(pool_.SetTtl(SequenceRef("a"), absl::Milliseconds(1500)).ok());
  EXPECT_EQ(service_.ttl.name().sequence(), "a");
  EXPECT_EQ(service_.ttl.ttl().seconds(), 1);
  EXPECT_EQ(service_.ttl.ttl().nanos(), 500000000);
  ASSERT_TRUE(pool_.SetTtl(SequenceRef("a"), absl::InfiniteDuration()).ok());
  EXPECT_TRUE(service_.ttl.never_expire());
}

TEST_F(BatchTest, OnlyCallsThatEndTheSameAreRepeated) {
  v1::DeleteManyRequest many;
  many.set_name_prefix("a/");
  EXPECT_EQ(AttemptsOf([&] { return pool_.DeleteMany(many).status(); }), kMany);
  many.set_if_count(3);
  EXPECT_EQ(AttemptsOf([&] { return pool_.DeleteMany(many).status(); }), 1);
  many.set_preview(true);
  EXPECT_EQ(AttemptsOf([&] { return pool_.DeleteMany(many).status(); }), kMany);
  v1::DeleteLayoutRequest layout;
  EXPECT_EQ(AttemptsOf([&] { return pool_.DeleteLayout(layout).status(); }), 1);
  layout.set_allow_missing(true);
  EXPECT_EQ(AttemptsOf([&] { return pool_.DeleteLayout(layout).status(); }), kMany);
  EXPECT_EQ(AttemptsOf([&] { return pool_.SetTtl(SequenceRef("a"), absl::Seconds(1)).status(); }), kMany);
  EXPECT_EQ(AttemptsOf([&] { return pool_.BatchGet({SequenceRef("a")}).status(); }), kMany);
  EXPECT_EQ(AttemptsOf([&] { return pool_.GetUpload({}).status(); }), kMany);
  EXPECT_TRUE(pool_.DeleteLayout("there")->deleted());
}

TEST_F(BatchTest, ASaltTravelsWithThePrefix) {
  v1::PublishPrefixRequest publish;
  publish.set_salt("user 1");
  EXPECT_EQ(pool_.PublishPrefix(publish)->prefix(), "user 1");
  v1::MatchPrefixRequest match;
  match.set_salt("user 2");
  EXPECT_EQ(pool_.MatchPrefix(match)->miss_reason(), "user 2");
}

}  // namespace
}  // namespace statepool::client
