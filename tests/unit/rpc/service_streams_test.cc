// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// GetStream and SetStream through a stock client: chunks, breaks, clients that stall or leave, and the drain.
#include <atomic>
#include <thread>

#include "rpc/service_fixture.h"

namespace statepool {
namespace {

constexpr uint64_t kLeaf = 65'536;
constexpr uint64_t kLargeBytes = 32 << 20;  // more than a connection buffers

class StreamTest : public ServiceTest {
 protected:
  struct Received {
    grpc::Status status;
    v1::GetResponse head;
    std::string data;
    int chunks = 0;
  };
  static v1::GetStreamRequest StreamOf(const std::string& name, uint32_t chunk_bytes = kLeaf) {
    v1::GetStreamRequest request;
    request.mutable_get()->mutable_name()->set_sequence(name);
    request.set_chunk_bytes(chunk_bytes);
    return request;
  }
  // Checks each chunk.
  Received Receive(const v1::GetStreamRequest& request) {
    Received received;
    grpc::ClientContext context;
    auto reader = stub_->GetStream(&context, request);
    v1::GetChunk chunk;
    while (reader->Read(&chunk)) {
      EXPECT_EQ(chunk.has_head(), received.chunks == 0);
      if (chunk.has_head()) received.head = chunk.head();
      EXPECT_EQ(chunk.offset(), request.offset() + received.data.size());
      EXPECT_EQ(chunk.checksum(), ChecksumToHex(ChecksumOf(chunk.data())));
      EXPECT_TRUE(!chunk.data().empty() || received.chunks == 0);
      received.data += chunk.data();
      ++received.chunks;
    }
    received.status = reader->Finish();
    return received;
  }

  // A SetStream under way.
  struct Sender {
    grpc::ClientContext context;
    v1::NameInfo info;
    std::unique_ptr<grpc::ClientWriter<v1::SetChunk>> writer;
    uint64_t offset = 0;

    bool Send(const std::string& data, const v1::SetRequest* head = nullptr) {
      v1::SetChunk chunk;
      if (head != nullptr) *chunk.mutable_head() = *head;
      chunk.set_offset(offset);
      if (!data.empty()) chunk.set_checksum(ChecksumToHex(ChecksumOf(data)));
      chunk.set_data(data);
      offset += data.size();
      return writer->Write(chunk);
    }
    grpc::Status End() {
      writer->WritesDone();
      return writer->Finish();
    }
  };
  std::unique_ptr<Sender> Send(const v1::SetRequest& head, uint64_t offset = 0, const std::string& first = "") {
    auto sender = std::make_unique<Sender>();
    sender->writer = stub_->SetStream(&sender->context, &sender->info);
    sender->offset = offset;
    sender->Send(first, &head);
    return sender;
  }
  v1::SetRequest Head(const std::string& name, const std::string& request_id = "") {
    v1::SetRequest head = SetOf(name, 7, "");
    head.set_request_id(request_id);
    return head;
  }
  grpc::Status GetUpload(const std::string& name, const std::string& id, v1::Upload* upload) {
    v1::GetUploadRequest request;
    request.set_sequence(name);
    request.set_request_id(id);
    return Call(&v1::StatePool::Stub::GetUpload, request, upload);
  }
  // Until the daemon has so much of an upload whose stream goes on, or broke off.
  void Await(const std::string& name, const std::string& id, uint64_t bytes, bool broke_off = false) {
    const absl::Time end = absl::Now() + absl::Seconds(20);
    for (v1::Upload upload; absl::Now() < end; std::this_thread::yield()) {
      if (GetUpload(name, id, &upload).ok() && upload.received_bytes() == bytes &&
          upload.has_expire_time() == broke_off)
        return;
    }
    FAIL() << "the upload never had " << bytes << " bytes";
  }
  static std::string ReasonOfCall(const grpc::Status& status) { return DetailsOf(status).info.reason(); }
  void SetState(const std::string& name, int64_t position, const std::string& data, const std::string& layout = "m") {
    v1::SetRequest set = SetOf(name, position, data);
    set.set_layout(layout);
    v1::NameInfo info;
    ASSERT_TRUE(Call(&v1::StatePool::Stub::Set, set, &info).ok());
  }
  // A sequence of kLargeBytes in the initial state.
  void CreateLarge(const std::string& name) {
    Register("large", kLargeBytes);
    v1::CreateRequest create;
    create.set_sequence(name);
    create.set_layout("large");
    v1::NameInfo info;
    ASSERT_TRUE(Call(&v1::StatePool::Stub::Create, create, &info).ok());
  }

  const std::string state_ = Pattern(kStateBytes, 5);
  std::atomic<bool> ended_{false};
};

// ---- GetStream

TEST_F(StreamTest, AStateComesInChunks) {
  SetState("s", 7, state_);
  const Received small = Receive(StreamOf("s"));
  ASSERT_TRUE(small.status.ok()) << small.status.error_message();
  EXPECT_EQ(small.data, state_);
  EXPECT_EQ(small.chunks, 4);
  EXPECT_EQ(small.head.info().position(), 7);
  EXPECT_EQ(small.head.data_bytes(), kStateBytes);
  EXPECT_EQ(small.head.data_checksum(), ChecksumToHex(ChecksumOf(state_)));
  EXPECT_EQ(small.head.data(), "");
  EXPECT_EQ(Receive(StreamOf("s", 0)).chunks, 1);  // the default is 1 MiB
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));
  EXPECT_EQ(images_.pins, 0);
}

TEST_F(StreamTest, AStreamGoesOnInTheSameVersionAlsoWhenTheHeadHasMoved) {
  SetState("s", 7, state_);
  const uint64_t version = Receive(StreamOf("s")).head.info().version_id();
  SetState("s", 8, Pattern(kStateBytes, 6));
  v1::GetStreamRequest rest = StreamOf("s");
  rest.set_offset(2 * kLeaf);
  EXPECT_EQ(ReasonOfCall(Receive(rest).status), "MISSING_FIELD");
  rest.mutable_get()->set_version_id(version);
  const Received tail = Receive(rest);
  ASSERT_TRUE(tail.status.ok());
  EXPECT_EQ(tail.data, state_.substr(2 * kLeaf));
  EXPECT_EQ(tail.head.data_checksum(), ChecksumToHex(ChecksumOf(state_)));  // of all from offset 0
  EXPECT_EQ(tail.head.data_bytes(), kStateBytes);
  rest.set_offset(kLeaf + 1);
  EXPECT_EQ(ReasonOfCall(Receive(rest).status), "OFFSET_MISMATCH");
  rest.set_offset(4 * kLeaf);
  EXPECT_EQ(ReasonOfCall(Receive(rest).status), "OFFSET_MISMATCH");
  rest.set_offset(0);
  rest.mutable_get()->set_version_id(version + 12345);
  EXPECT_EQ(ReasonOfCall(Receive(rest).status), "VERSION_MISMATCH");
  EXPECT_EQ(DetailsOf(Receive(rest).status).Meta("field"), "get.version_id");
}

TEST_F(StreamTest, NothingLeftIsAHeadWithoutData) {
  Register("leaf", kLeaf);
  SetState("s", 1, Pattern(kLeaf, 1), "leaf");
  v1::GetStreamRequest end = StreamOf("s");
  end.mutable_get()->set_version_id(Receive(StreamOf("s")).head.info().version_id());
  end.set_offset(kLeaf);
  const Received nothing = Receive(end);
  ASSERT_TRUE(nothing.status.ok());
  EXPECT_EQ(nothing.chunks, 1);
  EXPECT_EQ(nothing.data, "");
  EXPECT_EQ(nothing.head.data_bytes(), kLeaf);
}

TEST_F(StreamTest, ErrorsOfAGetNameTheFieldOfTheStream) {
  SetState("s", 7, state_);
  EXPECT_EQ(DetailsOf(Receive(StreamOf("absent")).status).Meta("field"), "get.name");
  EXPECT_EQ(DetailsOf(Receive(v1::GetStreamRequest()).status).Meta("field"), "get.name");
  v1::GetStreamRequest part = StreamOf("s");
  part.mutable_get()->mutable_select()->add_tensors("absent");
  EXPECT_EQ(DetailsOf(Receive(part).status).Meta("field"), "get.select.tensors[0]");
  EXPECT_EQ(DetailsOf(Receive(StreamOf("s", kLeaf + 1)).status).Meta("field"), "chunk_bytes");
  EXPECT_EQ(DetailsOf(Receive(StreamOf("s", 8 << 20)).status).Meta("field"), "chunk_bytes");
}

TEST_F(StreamTest, AClientThatStopsReadingLosesItsSlotAfterTheStreamTimeout) {
  CreateLarge("s");
  grpc::ClientContext context;
  auto reader = stub_->GetStream(&context, StreamOf("s", 1 << 20));
  v1::GetChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(images_.pins, 1);
  clock_.Advance(kStreamTimeout / 2);
  EXPECT_FALSE(service_->WaitIdle(absl::Milliseconds(500)));
  EXPECT_EQ(images_.pins, 1);
  // Until buffers on the way are full there is progress, so its time may begin anew a few times.
  bool idle = false;
  for (int i = 0; i < 20 && !idle; ++i) {
    clock_.Advance(kStreamTimeout + absl::Seconds(1));  // a second for each MiB
    idle = service_->WaitIdle(absl::Seconds(1));
  }
  EXPECT_TRUE(idle);
  EXPECT_EQ(images_.pins, 0);
  while (reader->Read(&chunk)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(StreamTest, AClientThatReadsSlowlyIsLeftAlone) {
  CreateLarge("s");
  grpc::ClientContext context;
  auto reader = stub_->GetStream(&context, StreamOf("s", 1 << 20));
  v1::GetChunk chunk;
  int chunks = 0;
  // What is buffered on the way may be read without any progress on the other side: so no more than that much time.
  for (; reader->Read(&chunk); ++chunks) clock_.Advance(chunks == 8 ? kStreamTimeout / 2 : absl::Milliseconds(900));
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(chunks, 32);
}

// Progress with every chunk, and yet it would take two hours.
TEST_F(StreamTest, AClientThatReadsFarTooSlowlyLosesItsSlotToo) {
  CreateLarge("s");
  grpc::ClientContext context;
  auto reader = stub_->GetStream(&context, StreamOf("s", 1 << 16));
  v1::GetChunk chunk;
  int chunks = 0;
  for (; chunks < 512 && reader->Read(&chunk); ++chunks) {
    clock_.Advance(kStreamTimeout / 2);
    absl::SleepFor(absl::Milliseconds(10));  // for the watchdog, which looks at the real time how often it looks
  }
  EXPECT_LT(chunks, 512);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(20)));
  EXPECT_EQ(images_.pins, 0);
}

TEST_F(StreamTest, AClientThatLeavesGivesItsSlotBack) {
  CreateLarge("s");
  grpc::ClientContext context;
  auto reader = stub_->GetStream(&context, StreamOf("s", 1 << 20));
  v1::GetChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  context.TryCancel();
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(20)));
  EXPECT_EQ(images_.pins, 0);
}

// ---- SetStream

TEST_F(StreamTest, AStateThatWasSentInChunksIsASet) {
  v1::SetRequest head = Head("s", "id");
  head.set_attachment("logits");
  head.set_checksum(ChecksumToHex(ChecksumOf(state_)));
  auto sender = Send(head, 0, state_.substr(0, kLeaf));
  ASSERT_TRUE(sender->Send(state_.substr(kLeaf, 2 * kLeaf)));
  Await("s", "id", 3 * kLeaf);
  v1::GetResponse got;
  EXPECT_EQ(ReasonOfCall(Get("s", &got)), "NEVER_CREATED");  // not before the last chunk
  ASSERT_TRUE(sender->Send(state_.substr(3 * kLeaf)));
  const grpc::Status status = sender->End();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(sender->info.position(), 7);
  ASSERT_TRUE(Get("s", &got).ok());
  EXPECT_EQ(got.data(), state_);
  EXPECT_EQ(got.attachment(), "logits");
  v1::Upload upload;
  EXPECT_EQ(ReasonOfCall(GetUpload("s", "id", &upload)), "UPLOAD_UNKNOWN");
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));
}

TEST_F(StreamTest, AStreamThatEndedTooEarlyGoesOnWithAnother) {
  auto sender = Send(Head("s", "id"), 0, state_.substr(0, 2 * kLeaf));
  const grpc::Status early = sender->End();
  EXPECT_EQ(ReasonOfCall(early), "BYTES_LENGTH_MISMATCH");
  v1::Upload upload;
  ASSERT_TRUE(GetUpload("s", "id", &upload).ok());
  EXPECT_EQ(upload.received_bytes(), 2 * kLeaf);
  EXPECT_EQ(upload.total_bytes(), kStateBytes);
  EXPECT_TRUE(upload.has_expire_time());
  EXPECT_EQ(ReasonOfCall(Send(Head("s", "id"), kLeaf)->End()), "OFFSET_MISMATCH");
  ASSERT_TRUE(GetUpload("s", "id", &upload).ok());  // a wrong try takes nothing away
  EXPECT_EQ(upload.received_bytes(), 2 * kLeaf);
  auto rest = Send(Head("s", "id"), upload.received_bytes(), state_.substr(2 * kLeaf));
  const grpc::Status status = rest->End();
  ASSERT_TRUE(status.ok()) << status.error_message();
  v1::GetResponse got;
  ASSERT_TRUE(Get("s", &got).ok());
  EXPECT_EQ(got.data(), state_);
}

TEST_F(StreamTest, AClientThatLeavesInTheMiddleMayGoOnUntilItsTimeIsOver) {
  for (int round = 0; round < 2; ++round) {
    auto sender = Send(Head("s", "id"), 0, state_.substr(0, kLeaf));
    Await("s", "id", kLeaf);
    sender->context.TryCancel();
    EXPECT_EQ(sender->End().error_code(), grpc::StatusCode::CANCELLED);
    Await("s", "id", kLeaf, /*broke_off=*/true);
    v1::GetResponse got;
    EXPECT_EQ(ReasonOfCall(Get("s", &got)), "NEVER_CREATED");
    if (round == 0) {
      auto rest = Send(Head("s", "id"), kLeaf, state_.substr(kLeaf, kLeaf));
      EXPECT_EQ(ReasonOfCall(rest->End()), "BYTES_LENGTH_MISMATCH");
      Await("s", "id", 2 * kLeaf, /*broke_off=*/true);
    }
  }
  clock_.Advance(kUploadTimeout);
  const absl::Time end = absl::Now() + absl::Seconds(20);
  v1::Upload upload;
  grpc::Status gone;
  do gone = GetUpload("s", "id", &upload);
  while (gone.ok() && absl::Now() < end);
  EXPECT_EQ(ReasonOfCall(gone), "UPLOAD_UNKNOWN");
  EXPECT_EQ(ReasonOfCall(Send(Head("s", "id"), kLeaf)->End()), "UPLOAD_UNKNOWN");
}

TEST_F(StreamTest, AStreamThatStallsIsEndedAndKept) {
  auto sender = Send(Head("s", "id"), 0, state_.substr(0, kLeaf));
  Await("s", "id", kLeaf);
  clock_.Advance(kStreamTimeout / 3);
  ASSERT_TRUE(sender->Send(state_.substr(kLeaf, kLeaf)));
  Await("s", "id", 2 * kLeaf);
  clock_.Advance(kStreamTimeout / 3);
  ASSERT_TRUE(sender->Send(state_.substr(2 * kLeaf, kLeaf)));
  Await("s", "id", 3 * kLeaf);
  clock_.Advance(kStreamTimeout);
  const grpc::Status stalled = sender->writer->Finish();
  EXPECT_EQ(stalled.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(ReasonOfCall(stalled), "STALLED");
  EXPECT_NE(DetailsOf(stalled).Meta("limit"), "");
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));
  Await("s", "id", 3 * kLeaf, /*broke_off=*/true);
  EXPECT_TRUE(Send(Head("s", "id"), 3 * kLeaf, state_.substr(3 * kLeaf))->End().ok());
}

// A chunk within every stream_timeout, and yet the stream would take for ever.
TEST_F(StreamTest, AStreamThatIsFarTooSlowIsEndedAndKept) {
  auto sender = Send(Head("s", "id"), 0, state_.substr(0, kLeaf));
  Await("s", "id", kLeaf);
  clock_.Advance(kStreamTimeout - absl::Seconds(1));
  absl::SleepFor(absl::Milliseconds(1500));  // the watchdog looks every second: it leaves this one alone
  ASSERT_TRUE(sender->Send(state_.substr(kLeaf, kLeaf)));
  Await("s", "id", 2 * kLeaf);
  clock_.Advance(absl::Seconds(2));
  const grpc::Status stalled = sender->writer->Finish();
  EXPECT_EQ(ReasonOfCall(stalled), "STALLED");
  EXPECT_NE(stalled.error_message().find("too slowly"), std::string::npos) << stalled.error_message();
  Await("s", "id", 2 * kLeaf, /*broke_off=*/true);
  EXPECT_TRUE(Send(Head("s", "id"), 2 * kLeaf, state_.substr(2 * kLeaf))->End().ok());
}

TEST_F(StreamTest, AStreamThatNeverBeginsIsEndedToo) {
  auto sender = std::make_unique<Sender>();
  sender->writer = stub_->SetStream(&sender->context, &sender->info);
  std::thread advance([this] {
    // Until the call is there, the clock's steps find nobody.
    for (int i = 0; i < 1000 && !ended_; ++i) {
      clock_.Advance(kStreamTimeout);
      absl::SleepFor(absl::Milliseconds(20));
    }
  });
  const grpc::Status stalled = sender->writer->Finish();
  ended_ = true;
  advance.join();
  EXPECT_EQ(ReasonOfCall(stalled), "STALLED");
}

TEST_F(StreamTest, AStartWithBadDataLeavesWhatGoesOnAndWhatIsKept) {
  auto bad_starts = [this] {
    v1::SetChunk chunk;
    *chunk.mutable_head() = Head("s", "id");
    chunk.set_data(state_.substr(0, kLeaf));
    std::vector<v1::SetChunk> starts(3, chunk);  // without a checksum, with a wrong one, of a wrong length
    starts[1].set_checksum("0123456789abcdef");
    starts[2].set_data(state_.substr(0, 100));
    starts[2].set_checksum(ChecksumToHex(ChecksumOf(starts[2].data())));
    std::vector<std::string> reasons;
    for (const v1::SetChunk& start : starts) {
      Sender sender;
      sender.writer = stub_->SetStream(&sender.context, &sender.info);
      sender.writer->Write(start);
      reasons.push_back(ReasonOfCall(sender.End()));
    }
    EXPECT_EQ(reasons, (std::vector<std::string>{"MISSING_FIELD", "CHECKSUM_MISMATCH", "BYTES_LENGTH_MISMATCH"}));
  };
  auto sender = Send(Head("s", "id"), 0, state_.substr(0, kLeaf));
  Await("s", "id", kLeaf);
  bad_starts();
  ASSERT_TRUE(sender->Send(state_.substr(kLeaf, kLeaf)));
  Await("s", "id", 2 * kLeaf);
  sender->context.TryCancel();
  Await("s", "id", 2 * kLeaf, /*broke_off=*/true);
  bad_starts();
  Await("s", "id", 2 * kLeaf, /*broke_off=*/true);
  EXPECT_TRUE(Send(Head("s", "id"), 2 * kLeaf, state_.substr(2 * kLeaf))->End().ok());
}

TEST_F(StreamTest, WhatAFirstMessageMayNotBe) {
  v1::SetRequest with_data = Head("s");
  with_data.set_data("x");
  EXPECT_EQ(DetailsOf(Send(with_data)->End()).Meta("field"), "head.data");
  v1::SetRequest with_select = Head("s");
  with_select.set_if_revision(1);
  with_select.mutable_select()->add_tensors("t");
  EXPECT_EQ(ReasonOfCall(Send(with_select)->End()), "REVISION_MISMATCH");  // there is nothing to be a part of
  SetState("s", 1, state_);
  v1::GetResponse got;
  ASSERT_TRUE(Get("s", &got).ok());
  with_select.set_if_revision(got.info().revision());
  EXPECT_EQ(DetailsOf(Send(with_select)->End()).Meta("field"), "head.select");
  v1::SetRequest bad_checksum = Head("s");
  bad_checksum.set_checksum("no hex");
  EXPECT_EQ(DetailsOf(Send(bad_checksum)->End()).Meta("field"), "head.checksum");
  auto empty = std::make_unique<Sender>();
  empty->writer = stub_->SetStream(&empty->context, &empty->info);
  EXPECT_EQ(DetailsOf(empty->End()).Meta("field"), "head");
  auto twice = Send(Head("s"), 0, state_.substr(0, kLeaf));
  const v1::SetRequest head = Head("s");
  twice->Send(state_.substr(kLeaf, kLeaf), &head);
  EXPECT_EQ(DetailsOf(twice->End()).Meta("field"), "head");
  v1::SetChunk unchecked;
  auto sender = Send(Head("s"));
  unchecked.set_data(state_.substr(0, kLeaf));
  sender->writer->Write(unchecked);
  EXPECT_EQ(DetailsOf(sender->End()).Meta("field"), "checksum");
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));
  EXPECT_EQ(LiveImages(), 1);
}

TEST_F(StreamTest, ErrorsOfTheHeadNameItsFieldAndThoseOfAChunkTheirOwn) {
  v1::SetRequest head = Head("s");
  head.set_layout("absent");
  EXPECT_EQ(DetailsOf(Send(head)->End()).Meta("field"), "head.layout");
  EXPECT_EQ(DetailsOf(Send(Head("a//b"))->End()).Meta("field"), "head.sequence");
  const grpc::Status unknown = Send(Head("s", "id"), kLeaf)->End();
  EXPECT_EQ(ReasonOfCall(unknown), "UPLOAD_UNKNOWN");
  EXPECT_EQ(DetailsOf(unknown).Meta("field"), "head.request_id");
  head = Head("s");
  head.set_checksum("0123456789abcdef");
  const grpc::Status whole = Send(head, 0, state_)->End();
  EXPECT_EQ(ReasonOfCall(whole), "CHECKSUM_MISMATCH");
  EXPECT_EQ(DetailsOf(whole).Meta("field"), "head.checksum");

  EXPECT_EQ(DetailsOf(Send(Head("s"), 0, state_.substr(0, kLeaf))->End()).Meta("field"), "data");  // bytes are missing
  auto gap = Send(Head("s", "id"), 0, state_.substr(0, kLeaf));
  gap->offset += kLeaf;
  gap->Send(state_.substr(kLeaf, kLeaf));
  EXPECT_EQ(DetailsOf(gap->End()).Meta("field"), "offset");
  EXPECT_EQ(DetailsOf(Send(Head("s", "id"), 2 * kLeaf)->End()).Meta("field"), "offset");
  auto damaged = Send(Head("s"));
  v1::SetChunk chunk;
  chunk.set_data(state_);
  chunk.set_checksum("0123456789abcdef");
  damaged->writer->Write(chunk);
  EXPECT_EQ(DetailsOf(damaged->End()).Meta("field"), "checksum");
}

TEST_F(StreamTest, OnlyTheFirstMessageMayHaveNoData) {
  for (const char* checksum : {"", "0123456789abcdef"}) {
    auto sender = Send(Head("s"));
    v1::SetChunk empty;
    empty.set_checksum(checksum);
    sender->writer->Write(empty);
    const grpc::Status refused = sender->End();
    EXPECT_EQ(ReasonOfCall(refused), "INVALID_OPTION");
    EXPECT_EQ(DetailsOf(refused).Meta("field"), "data");
  }
}

TEST_F(StreamTest, WhoeverHearsThatAStreamStalledMayGoOnAtOnce) {
  for (int round = 0; round < 40; ++round) {
    const std::string name = "s" + std::to_string(round);
    auto sender = Send(Head(name, "id"), 0, state_.substr(0, kLeaf));
    Await(name, "id", kLeaf);
    std::thread advance([this] {
      // Again if the read after this chunk, and its time, began only after the clock's step.
      do clock_.Advance(kStreamTimeout);
      while (!ended_ && !service_->WaitIdle(absl::Milliseconds(250)));
    });
    const grpc::Status stalled = sender->writer->Finish();
    v1::Upload upload;
    const grpc::Status found = GetUpload(name, "id", &upload);
    ended_ = true;
    advance.join();
    ended_ = false;
    ASSERT_EQ(ReasonOfCall(stalled), "STALLED");
    EXPECT_TRUE(found.ok() && upload.has_expire_time()) << "in round " << round;
  }
}

TEST_F(StreamTest, AStreamThatWaitsForItsNextChunkCountsNoBytesInFlight) {
  Register("large", kLargeBytes);
  const std::string chunk = Pattern(3 << 20, 1);
  ASSERT_GT(2 * chunk.size(), kInFlightMax);
  v1::SetRequest head = Head("waits", "id");
  head.set_layout("large");
  auto waits = Send(head, 0, chunk);
  Await("waits", "id", chunk.size());
  head = Head("other");
  head.set_layout("large");
  // GetUpload tells of a chunk a moment before its bytes are given back.
  std::string reason;
  const absl::Time end = absl::Now() + absl::Seconds(5);
  do reason = ReasonOfCall(Send(head, 0, chunk)->End());
  while (reason == "ADMISSION" && absl::Now() < end);
  EXPECT_EQ(reason, "BYTES_LENGTH_MISMATCH");  // the end of a state is missing, and no more
  waits->End();
}

TEST_F(StreamTest, UploadsHaveALimitThatOpenStreamsCountAgainst) {
  std::vector<std::unique_ptr<Sender>> senders;
  for (int i = 0; i < 3; ++i) {
    const std::string name = "s" + std::to_string(i);
    senders.push_back(Send(Head(name, "id"), 0, state_.substr(0, kLeaf)));
    Await(name, "id", kLeaf);
  }
  const grpc::Status refused = Send(Head("one too many", "id"))->End();
  EXPECT_EQ(ReasonOfCall(refused), "TOO_MANY_UPLOADS");
  EXPECT_TRUE(DetailsOf(refused).retry.has_value());
  EXPECT_EQ(ReasonOfCall(Send(Head("s0", "id"), kLeaf)->End()), "UPLOAD_BUSY");
  ASSERT_TRUE(senders[0]->Send(state_.substr(kLeaf)));
  EXPECT_TRUE(senders[0]->End().ok());
  EXPECT_TRUE(Send(Head("one too many", "id"), 0, state_)->End().ok());
  for (int i = 1; i < 3; ++i) senders[static_cast<size_t>(i)]->End();
}

// ---- the drain

TEST_F(StreamTest, ADrainLetsStreamsEndAndBeginsNoNewOnes) {
  CreateLarge("large");
  grpc::ClientContext context;
  auto reader = stub_->GetStream(&context, StreamOf("large", 1 << 20));
  v1::GetChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  auto sender = Send(Head("s", "id"), 0, state_.substr(0, kLeaf));
  Await("s", "id", kLeaf);
  bool drained = false;
  std::thread drain([&] { drained = server_->Drain(absl::Seconds(60)); });
  v1::GetResponse got;
  while (ReasonOfCall(Get("absent", &got)) != "DRAINING") std::this_thread::yield();
  EXPECT_EQ(ReasonOfCall(Receive(StreamOf("large")).status), "DRAINING");
  EXPECT_EQ(ReasonOfCall(Send(Head("other"))->End()), "DRAINING");
  uint64_t bytes = chunk.data().size();
  while (reader->Read(&chunk)) bytes += chunk.data().size();
  EXPECT_EQ(bytes, kLargeBytes);
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_TRUE(sender->Send(state_.substr(kLeaf)));
  EXPECT_TRUE(sender->End().ok());
  drain.join();
  EXPECT_TRUE(drained);
  EXPECT_EQ(images_.pins, 0);
}

TEST_F(StreamTest, ADrainCancelsStreamsThatDoNotEnd) {
  CreateLarge("large");
  grpc::ClientContext context;
  auto reader = stub_->GetStream(&context, StreamOf("large", 1 << 20));
  v1::GetChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  auto sender = Send(Head("s", "id"), 0, state_.substr(0, kLeaf));
  Await("s", "id", kLeaf);
  EXPECT_TRUE(server_->Drain(absl::Milliseconds(50)));
  EXPECT_EQ(images_.pins, 0);
  EXPECT_FALSE(sender->End().ok());
  v1::GetChunk rest;
  while (reader->Read(&rest)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

}  // namespace
}  // namespace statepool
