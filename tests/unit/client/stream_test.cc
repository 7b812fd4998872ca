// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// States by stream, against a service that breaks off where it is told to, and behind a proxy that cuts the connection.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cpp/statepool.h"
#include "client/fake_service.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

constexpr uint32_t kChunk = 2 * kLeafBytes;
constexpr size_t kStateBytes = 5 * kChunk + 777;  // six chunks
constexpr int kChunks = 6;

std::string HexOf(absl::string_view bytes) { return ChecksumToHex(ChecksumOf(bytes)); }

// One sequence that takes and gives streams.
class StreamService final : public v1::StatePool::Service {
 public:
  grpc::Status Get(grpc::ServerContext*, const v1::GetRequest*, v1::GetResponse*) override {
    ++gets;
    return Error(grpc::RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", "");
  }

  grpc::Status GetStream(grpc::ServerContext*, const v1::GetStreamRequest* request,
                         grpc::ServerWriter<v1::GetChunk>* writer) override {
    std::lock_guard lock(mutex);
    reads.push_back(*request);
    const int break_after = Next(&breaks);
    if (break_after == 0) return Broken();
    if (request->get().version_id() != 0 && request->get().version_id() != version_id)
      return Error(grpc::NOT_FOUND, "VERSION_MISMATCH", "version_id");
    if (request->offset() % kLeafBytes != 0) return Error(grpc::INVALID_ARGUMENT, "OFFSET_MISMATCH", "offset");
    uint64_t at = request->offset();
    for (int sent = 0; sent == 0 || at < state.size(); ++sent) {
      if (sent == break_after) {
        if (change_version_at_break) ++version_id;
        return Broken();
      }
      v1::GetChunk chunk;
      if (sent == 0) {
        chunk.mutable_head()->mutable_info()->set_version_id(version_id);
        chunk.mutable_head()->mutable_info()->set_checksum("of the whole image");
        chunk.mutable_head()->set_data_checksum(HexOf(state));
        chunk.mutable_head()->set_data_bytes(state.size());
        chunk.mutable_head()->set_attachment("logits");
      }
      chunk.set_offset(at);
      chunk.set_data(state.substr(at, request->chunk_bytes()));
      at += chunk.data().size();
      chunk.set_checksum(HexOf(chunk.data()));
      if (spoil) spoil(sent, &chunk);
      if (!writer->Write(chunk)) return Broken();
    }
    return grpc::Status::OK;
  }

  grpc::Status SetStream(grpc::ServerContext* context, grpc::ServerReader<v1::SetChunk>* reader,
                         v1::NameInfo* info) override {
    std::lock_guard lock(mutex);
    const int break_after = Next(&breaks);
    const grpc::Status failure = failures.empty() ? grpc::Status::OK : failures.front();
    if (!failures.empty()) {
      failures.pop_front();
      return failure;
    }
    std::string received;
    v1::SetRequest head;
    v1::SetChunk chunk;
    for (int taken = 0;; ++taken) {
      if (taken == break_after) {
        if (keep) uploads[head.request_id()] = received;
        return Broken();
      }
      if (!reader->Read(&chunk)) break;
      if ((taken == 0) != chunk.has_head()) return Error(grpc::INVALID_ARGUMENT, "MISSING_FIELD", "head");
      if (taken == 0) {
        head = chunk.head();
        heads.push_back(head);
        offsets.push_back(chunk.offset());
        if (chunk.offset() > 0) {
          if (!uploads.contains(head.request_id())) return Error(grpc::NOT_FOUND, "UPLOAD_UNKNOWN", "request_id");
          received = uploads[head.request_id()];
        }
      }
      if (chunk.offset() != received.size()) return Error(grpc::INVALID_ARGUMENT, "OFFSET_MISMATCH", "offset");
      if (!chunk.data().empty() && chunk.checksum() != HexOf(chunk.data()))
        return Error(grpc::INVALID_ARGUMENT, "CHECKSUM_MISMATCH", "checksum");
      largest_chunk = std::max(largest_chunk, chunk.data().size());
      received += chunk.data();
    }
    if (context->IsCancelled()) {
      uploads[head.request_id()] = received;
      return Broken();
    }
    if (!head.checksum().empty() && head.checksum() != HexOf(received))
      return Error(grpc::INVALID_ARGUMENT, "CHECKSUM_MISMATCH", "checksum");
    uploads.erase(head.request_id());
    info->set_replayed(answered.contains(head.request_id()));
    answered[head.request_id()] = true;
    state = received;
    info->set_checksum(HexOf(received));
    info->set_revision(7);
    if (lose_answers > 0) {
      --lose_answers;
      return Broken();
    }
    return grpc::Status::OK;
  }

  grpc::Status GetUpload(grpc::ServerContext*, const v1::GetUploadRequest* request, v1::Upload* upload) override {
    std::lock_guard lock(mutex);
    ++upload_questions;
    const auto it = uploads.find(request->request_id());
    if (it == uploads.end()) return Error(grpc::NOT_FOUND, "UPLOAD_UNKNOWN", "request_id");
    if (unnoticed > 0) {  // a call that broke, as far as the daemon knows it goes on
      --unnoticed;
      return grpc::Status::OK;
    }
    upload->set_received_bytes(it->second.size());
    upload->mutable_expire_time()->set_seconds(1);
    return grpc::Status::OK;
  }

  std::mutex mutex;
  std::string state;
  uint64_t version_id = 41;
  std::deque<int> breaks;  // of the next streams: messages before each breaks; none: never
  bool change_version_at_break = false;
  bool keep = true;                   // uploads that broke off
  int lose_answers = 0;               // of streams that were done
  std::deque<grpc::Status> failures;  // of the next SetStreams, before anything is read
  std::function<void(int, v1::GetChunk*)> spoil;
  std::vector<v1::GetStreamRequest> reads;
  std::vector<v1::SetRequest> heads;
  std::vector<uint64_t> offsets;
  std::map<std::string, std::string> uploads;
  std::map<std::string, bool> answered;
  size_t largest_chunk = 0;
  int gets = 0;
  int upload_questions = 0;
  int unnoticed = 0;

 private:
  static int Next(std::deque<int>* numbers) {
    if (numbers->empty()) return -1;
    const int n = numbers->front();
    numbers->pop_front();
    return n;
  }
};

class StreamTest : public testing::Test {
 protected:
  static Options WithChunks() {
    Options options;
    options.chunk_bytes = kChunk;
    return options;
  }

  Pool Connect(const Options& options = WithChunks()) { return *Pool::Connect(server_.address(), options); }

  // Reads it all into got_, checking that each byte comes once and in order.
  absl::Status Read(const Pool& pool, const v1::GetRequest& request = {}, const CallOptions& call = {}) {
    got_.clear();
    return pool
        .GetStream(
            request,
            [&](uint64_t offset, absl::string_view data) {
              EXPECT_EQ(offset, got_.size());
              got_.append(data.data(), data.size());
              return absl::OkStatus();
            },
            call)
        .status();
  }

  // Sends `bytes` and gives as many at a time as `step` says.
  absl::StatusOr<v1::NameInfo> Write(const Pool& pool, const std::string& bytes, const v1::SetRequest& request = {},
                                     size_t step = 50000, const CallOptions& call = {}) {
    return pool.SetStream(
        request, bytes.size(),
        [&, step](uint64_t offset, char* to, size_t max) -> absl::StatusOr<size_t> {
          const size_t n = std::min({step, max, bytes.size() - offset});
          std::memcpy(to, bytes.data() + offset, n);
          return n;
        },
        call);
  }

  StreamService service_;
  FakeServer server_{&service_};
  std::string got_;
};

std::string ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason; }

TEST_F(StreamTest, AReadGivesEveryByteOnceAndTellsItsProgress) {
  service_.state = Bytes(kStateBytes);
  std::vector<uint64_t> seen;
  CallOptions call;
  call.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_EQ(total, kStateBytes);
    seen.push_back(done);
  };
  ASSERT_TRUE(Read(Connect(), {}, call).ok());
  EXPECT_TRUE(got_ == service_.state);
  EXPECT_EQ(seen.size(), static_cast<size_t>(kChunks));
  EXPECT_EQ(seen.back(), kStateBytes);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(service_.reads[0].chunk_bytes(), kChunk);
}

TEST_F(StreamTest, AReadGoesOnInTheSameVersionWhereverItBroke) {
  service_.state = Bytes(kStateBytes);
  const Pool pool = Connect();
  for (int messages = 0; messages <= kChunks; ++messages) {
    service_.breaks = {messages};
    service_.reads.clear();
    ASSERT_TRUE(Read(pool).ok()) << messages;
    EXPECT_TRUE(got_ == service_.state) << messages;
    if (messages == kChunks) continue;  // it never came to the break
    ASSERT_EQ(service_.reads.size(), 2u);
    EXPECT_EQ(service_.reads[1].offset(), static_cast<uint64_t>(messages) * kChunk);
    EXPECT_EQ(service_.reads[1].get().version_id(), messages == 0 ? 0 : service_.version_id);
  }
}

TEST_F(StreamTest, ProgressBeginsTheAttemptsAnewAndLackOfItEndsThem) {
  service_.state = Bytes(kStateBytes);
  const Pool pool = Connect();
  service_.breaks = {1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0};
  ASSERT_TRUE(Read(pool).ok());
  EXPECT_TRUE(got_ == service_.state);
  EXPECT_EQ(service_.reads.size(), 13u);

  service_.reads.clear();
  service_.breaks = {1, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(ReasonOf(Read(pool)), "UNREACHABLE");
  EXPECT_EQ(service_.reads.size(), static_cast<size_t>(Options().max_attempts));
}

TEST_F(StreamTest, ASpoiledChunkIsDataLossAndNeverReachesTheSink) {
  service_.state = Bytes(kStateBytes);
  const Pool pool = Connect();
  for (int spoiled = 0; spoiled < kChunks; ++spoiled) {
    service_.spoil = [&](int n, v1::GetChunk* chunk) {
      if (n == spoiled) (*chunk->mutable_data())[chunk->data().size() / 2] ^= 1;
    };
    EXPECT_EQ(ReasonOf(Read(pool)), "CORRUPT");
    EXPECT_EQ(got_.size(), static_cast<size_t>(spoiled) * kChunk);
    EXPECT_TRUE(got_ == service_.state.substr(0, got_.size()));
  }
  EXPECT_EQ(service_.reads.size(), static_cast<size_t>(kChunks));  // none was tried again
}

TEST_F(StreamTest, AWholeThatDiffersFromItsChecksumIsDataLossAlthoughEachChunkIsGood) {
  service_.state = Bytes(kStateBytes);
  service_.spoil = [&](int n, v1::GetChunk* chunk) {
    if (n != 3) return;
    (*chunk->mutable_data())[5] ^= 1;
    chunk->set_checksum(HexOf(chunk->data()));
  };
  EXPECT_EQ(ReasonOf(Read(Connect())), "CORRUPT");
  Options trusting = WithChunks();
  trusting.verify = false;
  EXPECT_TRUE(Read(Connect(trusting)).ok());
}

TEST_F(StreamTest, WhatTheContractDoesNotAllowIsAMalformedResponse) {
  service_.state = Bytes(kStateBytes);
  const Pool pool = Connect();
  const std::function<void(int, v1::GetChunk*)> spoils[] = {
      [](int n, v1::GetChunk* chunk) {  // a gap
        if (n == 2) chunk->set_offset(chunk->offset() + kLeafBytes);
      },
      [](int n, v1::GetChunk* chunk) {  // no head
        if (n == 0) chunk->clear_head();
      },
      [](int n, v1::GetChunk* chunk) {  // a second head
        if (n == 1) chunk->mutable_head()->set_data_bytes(kStateBytes);
      },
      [](int n, v1::GetChunk* chunk) {  // nothing in it
        if (n == 1) chunk->clear_data();
      },
      [](int n, v1::GetChunk* chunk) {  // too short
        if (n == 0) chunk->mutable_head()->set_data_bytes(kStateBytes + 1);
      },
      [](int n, v1::GetChunk* chunk) {  // too long
        if (n == 0) chunk->mutable_head()->set_data_bytes(kStateBytes - 1);
      },
      [](int n, v1::GetChunk* chunk) {  // ends within a leaf
        if (n == 0) chunk->mutable_data()->resize(1000);
        if (n == 0) chunk->set_checksum(HexOf(chunk->data()));
      },
  };
  for (const auto& spoil : spoils) {
    service_.spoil = spoil;
    EXPECT_EQ(ReasonOf(Read(pool)), "MALFORMED_RESPONSE") << &spoil - spoils;
  }
}

TEST_F(StreamTest, TheSinksErrorEndsTheCall) {
  service_.state = Bytes(kStateBytes);
  const absl::Status status =
      Connect()
          .GetStream(v1::GetRequest(),
                     [](uint64_t offset, absl::string_view) {
                       return offset < 2 * kChunk ? absl::OkStatus() : absl::UnavailableError("disk");
                     })
          .status();
  EXPECT_EQ(status, absl::UnavailableError("disk"));
  EXPECT_EQ(service_.reads.size(), 1u);
}

TEST_F(StreamTest, AVersionThatIsGoneAfterTheBreakIsAMissForASinkAndBegunAnewInMemory) {
  service_.state = Bytes(kStateBytes);
  service_.change_version_at_break = true;
  const Pool pool = Connect();
  service_.breaks = {2};
  EXPECT_EQ(ReasonOf(Read(pool)), "VERSION_MISMATCH");

  service_.breaks = {2};
  const absl::StatusOr<State> state = pool.Get(v1::GetRequest());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_TRUE(absl::StrJoin(state->pieces(), "") == service_.state);

  service_.breaks = {2};
  std::string into(kStateBytes, '\0');
  ASSERT_TRUE(pool.GetInto(v1::GetRequest(), absl::MakeSpan(into.data(), into.size())).ok());
  EXPECT_TRUE(into == service_.state);

  v1::GetRequest exact;
  exact.set_version_id(service_.version_id);
  service_.breaks = {2};
  EXPECT_EQ(ReasonOf(pool.Get(exact).status()), "VERSION_MISMATCH");
}

TEST_F(StreamTest, GetTakesTheStreamWhereAMessageIsTooSmall) {
  service_.state = Bytes(kStateBytes);
  const Pool pool = Connect();
  const absl::StatusOr<State> state = pool.Get(v1::GetRequest());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(service_.gets, 1);
  EXPECT_EQ(state->size(), kStateBytes);
  EXPECT_EQ(state->attachment(), "logits");
  EXPECT_EQ(state->data_checksum(), HexOf(service_.state));
  EXPECT_TRUE(absl::StrJoin(state->pieces(), "") == service_.state);

  std::string into(kStateBytes, '\0');
  ASSERT_TRUE(pool.GetInto(v1::GetRequest(), absl::MakeSpan(into.data(), into.size())).ok());
  EXPECT_TRUE(into == service_.state);
  EXPECT_EQ(ReasonOf(pool.GetInto(v1::GetRequest(), absl::MakeSpan(into.data(), into.size() - 1)).status()),
            "BYTES_LENGTH_MISMATCH");

  Options small = WithChunks();
  small.max_message_bytes = 100000;
  service_.gets = 0;
  ASSERT_TRUE(Connect(small).GetInto(v1::GetRequest(), absl::MakeSpan(into.data(), into.size())).ok());
  EXPECT_EQ(service_.gets, 0);  // the size alone told
}

TEST_F(StreamTest, AReadFromAnOffsetGivesTheRest) {
  service_.state = Bytes(kStateBytes);
  v1::GetStreamRequest request;
  request.set_offset(4 * kChunk);
  request.mutable_get()->set_version_id(service_.version_id);
  std::string rest;
  ASSERT_TRUE(Connect()
                  .GetStream(request,
                             [&](uint64_t offset, absl::string_view data) {
                               EXPECT_EQ(offset, 4 * kChunk + rest.size());
                               rest.append(data.data(), data.size());
                               return absl::OkStatus();
                             })
                  .ok());
  EXPECT_TRUE(rest == service_.state.substr(4 * kChunk));
  request.set_offset(1);
  EXPECT_EQ(
      ReasonOf(Connect().GetStream(request, [](uint64_t, absl::string_view) { return absl::OkStatus(); }).status()),
      "OFFSET_MISMATCH");
}

TEST_F(StreamTest, AWriteSendsWholeChunksWhateverTheSourceGives) {
  const Pool pool = Connect();
  for (const size_t n : {size_t{0}, size_t{1}, size_t{kChunk}, size_t{3 * kChunk}, kStateBytes}) {
    for (const size_t step : {size_t{1000}, size_t{1} << 30}) {
      const std::string bytes = Bytes(n);
      const auto info = Write(pool, bytes, {}, step);
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_EQ(info->checksum(), HexOf(bytes));
      EXPECT_TRUE(service_.state == bytes);
    }
  }
  EXPECT_EQ(service_.largest_chunk, size_t{kChunk});
  EXPECT_EQ(service_.upload_questions, 0);
}

TEST_F(StreamTest, AWriteGoesOnWhereTheDaemonHasItWhereverItBroke) {
  const Pool pool = Connect();
  const std::string bytes = Bytes(kStateBytes);
  for (int messages = 0; messages <= kChunks; ++messages) {
    service_.breaks = {messages};
    service_.offsets.clear();
    service_.state.clear();
    const auto info = Write(pool, bytes);
    ASSERT_TRUE(info.ok()) << messages << ": " << info.status();
    EXPECT_TRUE(service_.state == bytes);
    const uint64_t kept = std::min<uint64_t>(static_cast<uint64_t>(messages) * kChunk, bytes.size());
    EXPECT_EQ(service_.offsets.back(), kept) << messages;
  }
}

TEST_F(StreamTest, AWriteWaitsUntilTheDaemonKnowsThatTheCallBeforeIsOver) {
  service_.breaks = {3};
  service_.unnoticed = 3;
  const std::string bytes = Bytes(kStateBytes);
  ASSERT_TRUE(Write(Connect(), bytes).ok());
  EXPECT_TRUE(service_.state == bytes);
  EXPECT_EQ(service_.offsets, (std::vector<uint64_t>{0, 3 * kChunk}));
}

TEST_F(StreamTest, AWriteBeginsAnewWhereNothingWasKept) {
  const Pool pool = Connect();
  const std::string bytes = Bytes(kStateBytes);
  service_.keep = false;
  service_.breaks = {3, 2};
  ASSERT_TRUE(Write(pool, bytes).ok());
  EXPECT_TRUE(service_.state == bytes);
  EXPECT_EQ(service_.offsets, (std::vector<uint64_t>{0, 0, 0}));
  service_.breaks = {1, 1, 1, 1, 1, 1, 1};
  EXPECT_EQ(ReasonOf(Write(pool, bytes).status()), "UNREACHABLE");
  EXPECT_EQ(service_.offsets.size(), 3u + Options().max_attempts);
}

TEST_F(StreamTest, WhatTheDaemonKeptBeginsTheAttemptsAnew) {
  service_.breaks = {0, 0, 1, 0, 0, 1, 0, 0, 1};
  const std::string bytes = Bytes(kStateBytes);
  const Pool pool = Connect();
  const auto info = Write(pool, bytes);
  // A break before the head leaves no upload: three of them in a row are within the four attempts.
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_TRUE(service_.state == bytes);
}

TEST_F(StreamTest, ALostAnswerIsAskedForAgainWithTheSameRequestId) {
  service_.lose_answers = 1;
  const auto info = Write(Connect(), Bytes(kStateBytes));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_TRUE(info->replayed());
  ASSERT_EQ(service_.heads.size(), 2u);
  EXPECT_EQ(service_.heads[0].SerializeAsString(), service_.heads[1].SerializeAsString());
  EXPECT_EQ(service_.heads[0].request_id().size(), 32u);
}

TEST_F(StreamTest, AWriteThatIsRefusedIsNotTriedAgainAndOneWorthARetryIs) {
  const Pool pool = Connect();
  service_.failures = {Error(grpc::FAILED_PRECONDITION, "LAYOUT_MISMATCH", "layout")};
  EXPECT_EQ(ReasonOf(Write(pool, Bytes(kStateBytes)).status()), "LAYOUT_MISMATCH");
  service_.failures = {Error(grpc::RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS", "", 1),
                       Error(grpc::RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS", "", 1)};
  EXPECT_TRUE(Write(pool, Bytes(kStateBytes)).ok());
  // The daemon may take its time to see that a connection is gone; that uses up no attempt.
  service_.failures.assign(7, Error(grpc::ABORTED, "UPLOAD_BUSY", "request_id", 1));
  EXPECT_TRUE(Write(pool, Bytes(kStateBytes)).ok());
  CallOptions impatient;
  impatient.timeout = absl::Milliseconds(300);
  service_.failures.assign(1000, Error(grpc::ABORTED, "UPLOAD_BUSY", "request_id", 1));
  EXPECT_EQ(ReasonOf(Write(pool, Bytes(kStateBytes), {}, 50000, impatient).status()), "UPLOAD_BUSY");
}

TEST_F(StreamTest, AnEarlierCallsUploadGoesOnOnlyUnderItsIdAndAChecksum) {
  const Pool pool = Connect();
  const std::string bytes = Bytes(kStateBytes);
  service_.uploads["mine"] = bytes.substr(0, 2 * kChunk);
  v1::SetRequest request;
  request.set_request_id("mine");
  ASSERT_TRUE(Write(pool, bytes, request).ok());
  EXPECT_EQ(service_.offsets.back(), 0u);
  service_.uploads["mine"] = bytes.substr(0, 2 * kChunk);
  request.set_checksum(HexOf(bytes));
  ASSERT_TRUE(Write(pool, bytes, request).ok());
  EXPECT_EQ(service_.offsets.back(), 2 * kChunk);
  EXPECT_TRUE(service_.state == bytes);
}

TEST_F(StreamTest, TheSourcesErrorEndsTheCall) {
  const Pool pool = Connect();
  int asked = 0;
  const auto failing = [&](uint64_t, char*, size_t) -> absl::StatusOr<size_t> {
    ++asked;
    return absl::UnavailableError("disk");
  };
  EXPECT_EQ(pool.SetStream({}, 0, failing).status(), absl::UnavailableError("disk"));
  EXPECT_EQ(asked, 1);
}

TEST_F(StreamTest, ABreakThatTheSourceCantRepairIsItsOwnError) {
  const Pool pool = Connect();
  const std::string bytes = Bytes(kStateBytes);
  uint64_t given = 0;
  const auto once = [&](uint64_t offset, char* to, size_t max) -> absl::StatusOr<size_t> {
    if (offset < given) return absl::FailedPreconditionError("a pipe");
    const size_t n = std::min(max, bytes.size() - offset);
    std::memcpy(to, bytes.data() + offset, n);
    given += n;
    return n;
  };
  service_.keep = false;
  service_.breaks = {2};
  const absl::Status broke = pool.SetStream({}, 0, once).status();
  EXPECT_EQ(ReasonOf(broke), "UNREACHABLE") << broke;
}

TEST_F(StreamTest, SetTakesTheStreamWhereAMessageIsTooSmall) {
  Options small = WithChunks();
  small.max_message_bytes = 100000;
  const Pool pool = Connect(small);
  const std::string bytes = Bytes(kStateBytes);
  const absl::string_view view = bytes;
  v1::SetRequest request;
  request.set_sequence("a");
  request.set_attachment("logits");
  for (int messages = 0; messages < kChunks; ++messages) {
    service_.breaks = {messages};
    const auto info = pool.Set(request, {view.substr(0, 99), "", view.substr(99, kChunk), view.substr(99 + kChunk)});
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->checksum(), HexOf(bytes));
    EXPECT_TRUE(service_.state == bytes);
    EXPECT_EQ(service_.heads.back().checksum(), HexOf(bytes));
    EXPECT_EQ(service_.heads.back().attachment(), "logits");
  }
}

TEST_F(StreamTest, StreamsSurviveAConnectionThatIsCutAnywhere) {
  CuttingProxy proxy(server_.port());
  const std::string bytes = Bytes(3000000);
  Options options = WithChunks();
  options.max_attempts = 20;
  options.max_message_bytes = 100000;
  for (const int64_t limit : {200000, 700001, 1500000, 2900000}) {
    const Pool pool = *Pool::Connect(proxy.address(), options);
    proxy.SetLimit(limit);
    service_.state.clear();
    const auto info = pool.Set("a", "", 1, bytes);
    ASSERT_TRUE(info.ok()) << limit << ": " << info.status();
    EXPECT_TRUE(service_.state == bytes);
    const absl::Status status = Read(pool);
    ASSERT_TRUE(status.ok()) << limit << ": " << status;
    EXPECT_TRUE(got_ == bytes);
  }
  EXPECT_GE(proxy.cuts(), 8);
}

// Takes the head and then nothing.
class DeafService final : public v1::StatePool::Service {
 public:
  grpc::Status SetStream(grpc::ServerContext* context, grpc::ServerReader<v1::SetChunk>*, v1::NameInfo*) override {
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    return grpc::Status::CANCELLED;
  }
  grpc::Status GetStream(grpc::ServerContext* context, const v1::GetStreamRequest*,
                         grpc::ServerWriter<v1::GetChunk>*) override {
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    return grpc::Status::CANCELLED;
  }
};

TEST(DeafServiceTest, AStreamWithoutProgressEndsAtItsDeadline) {
  DeafService service;
  FakeServer server(&service);
  Options impatient;
  impatient.timeout = absl::Milliseconds(200);
  const Pool pool = *Pool::Connect(server.address(), impatient);
  const absl::Time start = absl::Now();
  const auto endless = [&](uint64_t, char* to, size_t max) -> absl::StatusOr<size_t> {
    std::memset(to, 'x', max);
    return max;
  };
  EXPECT_EQ(ReasonOf(pool.SetStream({}, 0, endless).status()), "DEADLINE");
  EXPECT_EQ(
      ReasonOf(pool.GetStream(v1::GetRequest(), [](uint64_t, absl::string_view) { return absl::OkStatus(); }).status()),
      "DEADLINE");
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

}  // namespace
}  // namespace statepool::client
