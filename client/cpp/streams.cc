// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// States in streams, whatever their size: GetStream, SetStream, and what Get and Set do with states that don't fit one
// message.
//
// Both directions go on after a break. A read asks for the version that it began with, from the first byte that has
// not been verified yet. A write asks GetUpload how much the daemon has.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/calls.h"
#include "client/cpp/statepool.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

constexpr char kGetStreamMethod[] = "/statepool.v1.StatePool/GetStream";
constexpr char kSetStreamMethod[] = "/statepool.v1.StatePool/SetStream";
constexpr absl::Duration kUploadPoll = absl::Milliseconds(20);
constexpr size_t kFieldBytesMax = 4 << 20;  // of a message beside its chunk

// The version that a broken stream was reading is gone, and the caller asked for no version in particular.
bool MayBeginAnew(const v1::GetRequest& request, const absl::Status& status) {
  return status.code() == absl::StatusCode::kNotFound && request.version_id() == 0 &&
         GetErrorDetail(status).reason == "VERSION_MISMATCH";
}

// One GetStream, over as many calls as it takes.
class StreamReader {
 public:
  using Begin = absl::FunctionRef<absl::Status(const v1::GetResponse&)>;
  using Take = absl::FunctionRef<absl::Status(uint64_t, wire::SplitMessage)>;

  StreamReader(const v1::GetStreamRequest& request, bool verify, absl::Duration timeout, Begin begin, Take take,
               const CallOptions& call)
      : request_(request),
        verify_(verify),
        timeout_(timeout),
        begin_(begin),
        take_(take),
        call_(call),
        at_(request.offset()),
        deadline_(absl::Now() + timeout) {}

  absl::StatusOr<v1::GetResponse> Run(const std::shared_ptr<grpc::Channel>& channel, int max_attempts) {
    const uint64_t first = at_;
    for (int failures = 0;;) {
      const uint64_t before = at_;
      const absl::Status status = ReadOnce(channel);
      if (status.ok()) break;
      if (final_) return status;
      failures = at_ > before ? 1 : failures + 1;
      const std::optional<absl::Duration> delay = RetryDelay(status, failures);
      if (!delay || failures >= max_attempts || absl::Now() + *delay >= deadline_) return status;
      absl::SleepFor(*delay);
      if (begun_) request_.mutable_get()->set_version_id(head_.info().version_id());
      request_.set_offset(at_);
    }
    if (verify_ && first == 0) {
      const std::string& expected = head_.data_checksum().empty() ? head_.info().checksum() : head_.data_checksum();
      if (absl::Status same = CompareChecksums(expected, whole_.Finish()); !same.ok()) return same;
    }
    return std::move(head_);
  }

 private:
  absl::Status ReadOnce(const std::shared_ptr<grpc::Channel>& channel) {
    const grpc::Slice slice(request_.SerializeAsString());
    auto stream = StreamCall::Start(channel, kGetStreamMethod, deadline_);
    if (stream->Write(grpc::ByteBuffer(&slice, 1), deadline_)) stream->WritesDone(deadline_);
    grpc::ByteBuffer message;
    for (bool is_first = true; stream->Read(&message, deadline_); is_first = false) {
      if (absl::Status status = TakeMessage(message, is_first); !status.ok()) {
        final_ = true;
        StreamCall::Drop(std::move(stream));
        return status;
      }
      deadline_ = absl::Now() + timeout_;
    }
    const absl::Status status = FromGrpcStatus(StreamCall::Finish(std::move(stream), deadline_));
    if (begun_ && at_ == head_.data_bytes()) return absl::OkStatus();  // however the call ended
    if (!status.ok()) return status;
    final_ = true;
    return MalformedResponse("the stream ended before the state did");
  }

  absl::Status TakeMessage(const grpc::ByteBuffer& message, bool is_first) {
    absl::StatusOr<wire::SplitMessage> chunk = wire::Split(message, wire::kDataField, kFieldBytesMax);
    if (!chunk.ok()) return MalformedResponse(chunk.status().message());
    v1::GetChunk small;
    if (!small.ParseFromString(chunk->rest)) return MalformedResponse("not a GetChunk");
    if (is_first != small.has_head()) return MalformedResponse("the first chunk has the head, and no other");
    if (is_first) {
      if (absl::Status status = TakeHead(std::move(*small.mutable_head())); !status.ok()) return status;
    }
    if (chunk->data_bytes == 0) return is_first ? absl::OkStatus() : MalformedResponse("an empty chunk");
    if (small.offset() != at_ || chunk->data_bytes > head_.data_bytes() - at_) {
      return MalformedResponse(absl::StrCat("a chunk at ", small.offset(), " where ", at_, " comes next"));
    }
    if (at_ + chunk->data_bytes != head_.data_bytes() && chunk->data_bytes % kLeafBytes != 0) {
      return MalformedResponse("a chunk ends within a leaf");
    }
    if (verify_) {
      if (absl::Status same = CompareChecksums(small.checksum(), ChecksumOfPieces(chunk->data)); !same.ok())
        return same;
      for (absl::string_view piece : chunk->data) whole_.Append(piece);
    }
    const uint64_t offset = at_;
    at_ += chunk->data_bytes;
    chunk->rest.clear();
    if (absl::Status status = take_(offset, *std::move(chunk)); !status.ok()) return status;
    if (call_.progress) call_.progress(at_, head_.data_bytes());
    return absl::OkStatus();
  }

  absl::Status TakeHead(v1::GetResponse head) {
    if (begun_) {
      const bool same = head.info().version_id() == head_.info().version_id() &&
                        head.data_bytes() == head_.data_bytes() && head.data_checksum() == head_.data_checksum();
      return same ? absl::OkStatus() : MalformedResponse("the stream goes on in another state");
    }
    if (at_ > head.data_bytes()) return MalformedResponse("the stream begins behind the state's end");
    head_ = std::move(head);
    begun_ = true;
    return begin_(head_);
  }

  v1::GetStreamRequest request_;
  const bool verify_;
  const absl::Duration timeout_;
  const Begin begin_;
  const Take take_;
  const CallOptions& call_;
  v1::GetResponse head_;
  bool begun_ = false;  // head_ is there
  bool final_ = false;  // the error is not the call's
  uint64_t at_;         // all before it is verified and taken
  Checksummer whole_;   // of all chunks
  absl::Time deadline_;
};

// One call of SetStream.
class UploadAttempt {
 public:
  UploadAttempt(const v1::SetRequest& head, uint64_t total_bytes, uint32_t chunk_bytes, Source source,
                const CallOptions& call, absl::Duration timeout)
      : head_(head),
        total_bytes_(total_bytes),
        chunk_bytes_(chunk_bytes),
        source_(source),
        call_(call),
        timeout_(timeout) {}

  // Sends everything from `offset` on.
  absl::StatusOr<v1::NameInfo> Run(const std::shared_ptr<grpc::Channel>& channel, uint64_t offset) {
    auto stream = StreamCall::Start(channel, kSetStreamMethod, Deadline());
    bool more = true;
    for (bool is_first = true; more; is_first = false) {
      absl::StatusOr<grpc::Slice> chunk = Fill(offset, &more);
      if (!chunk.ok()) {
        source_failed_ = true;
        StreamCall::Drop(std::move(stream));
        return chunk.status();
      }
      if (chunk->size() == 0 && !is_first) break;
      if (!stream->Write(MessageOf(offset, *chunk, is_first), Deadline())) break;  // Finish knows why
      wrote_ = true;
      offset += chunk->size();
      if (call_.progress) call_.progress(offset, total_bytes_);
    }
    stream->WritesDone(Deadline());
    grpc::ByteBuffer answer, none;
    const bool answered = stream->Read(&answer, Deadline());
    if (answered) stream->Read(&none, Deadline());
    const absl::Status status = FromGrpcStatus(StreamCall::Finish(std::move(stream), Deadline()));
    if (!status.ok()) return status;
    v1::NameInfo info;
    absl::StatusOr<wire::SplitMessage> split = wire::Split(answer, /*field=*/0, kFieldBytesMax);
    if (!answered || !split.ok() || !info.ParseFromString(split->rest)) return MalformedResponse("not a NameInfo");
    return info;
  }

  bool source_failed() const { return source_failed_; }
  bool wrote() const { return wrote_; }  // the transport took something

 private:
  absl::Time Deadline() const { return absl::Now() + timeout_; }

  // The next chunk: a whole one unless the source ends before.
  absl::StatusOr<grpc::Slice> Fill(uint64_t offset, bool* more) {
    grpc::Slice chunk(chunk_bytes_);
    char* const to = reinterpret_cast<char*>(const_cast<uint8_t*>(chunk.begin()));
    size_t n = 0;
    while (n < chunk_bytes_) {
      const absl::StatusOr<size_t> got = source_(offset + n, to + n, chunk_bytes_ - n);
      if (!got.ok()) return got.status();
      if (*got > chunk_bytes_ - n) return absl::InternalError("a source gave more than it was asked for");
      n += *got;
      if (*got == 0) {
        *more = false;
        break;
      }
    }
    return chunk.sub(0, n);
  }

  grpc::ByteBuffer MessageOf(uint64_t offset, const grpc::Slice& data, bool is_first) const {
    v1::SetChunk message;
    if (is_first) *message.mutable_head() = head_;
    message.set_offset(offset);
    if (data.size() > 0) {
      const absl::string_view bytes(reinterpret_cast<const char*>(data.begin()), data.size());
      message.set_checksum(ChecksumToHex(ChecksumOf(bytes)));
    }
    return wire::Join(message.SerializeAsString(), wire::kDataField, {data});
  }

  const v1::SetRequest& head_;
  const uint64_t total_bytes_;
  const uint32_t chunk_bytes_;
  const Source source_;
  const CallOptions& call_;
  const absl::Duration timeout_;
  bool source_failed_ = false;
  bool wrote_ = false;
};

}  // namespace

absl::StatusOr<v1::GetResponse> Pool::ReadStream(v1::GetStreamRequest request,
                                                 absl::FunctionRef<absl::Status(const v1::GetResponse&)> begin,
                                                 absl::FunctionRef<absl::Status(uint64_t, wire::SplitMessage)> take,
                                                 const CallOptions& call) const {
  if (request.chunk_bytes() == 0) request.set_chunk_bytes(options_.chunk_bytes);
  StreamReader reader(request, options_.verify, call.timeout.value_or(options_.timeout), begin, take, call);
  return reader.Run(streams_, options_.max_attempts);
}

absl::StatusOr<v1::GetResponse> Pool::GetStream(const v1::GetStreamRequest& request, Sink sink,
                                                const CallOptions& call) const {
  return ReadStream(
      request, [](const v1::GetResponse&) { return absl::OkStatus(); },
      [&](uint64_t offset, const wire::SplitMessage& chunk) {
        for (absl::string_view piece : chunk.data) {
          if (absl::Status status = sink(offset, piece); !status.ok()) return status;
          offset += piece.size();
        }
        return absl::OkStatus();
      },
      call);
}

absl::StatusOr<v1::GetResponse> Pool::GetStream(const v1::GetRequest& request, Sink sink,
                                                const CallOptions& call) const {
  v1::GetStreamRequest stream;
  *stream.mutable_get() = request;
  return GetStream(stream, sink, call);
}

absl::StatusOr<State> Pool::GetByStream(const v1::GetRequest& request, const CallOptions& call) const {
  v1::GetStreamRequest stream;
  *stream.mutable_get() = request;
  for (int n = 1;; ++n) {
    State state;
    auto messages = std::make_shared<std::vector<wire::SplitMessage>>();
    absl::StatusOr<v1::GetResponse> head = ReadStream(
        stream, [](const v1::GetResponse&) { return absl::OkStatus(); },
        [&](uint64_t, wire::SplitMessage chunk) {
          state.pieces_.insert(state.pieces_.end(), chunk.data.begin(), chunk.data.end());
          state.size_ += chunk.data_bytes;
          messages->push_back(std::move(chunk));
          return absl::OkStatus();
        },
        call);
    if (head.ok()) {
      state.small_ = *std::move(head);
      state.owner_ = std::move(messages);
      return state;
    }
    if (n >= options_.max_attempts || !MayBeginAnew(request, head.status())) return head.status();
  }
}

absl::StatusOr<v1::GetResponse> Pool::GetIntoByStream(const v1::GetRequest& request, absl::Span<char> destination,
                                                      const CallOptions& call) const {
  v1::GetStreamRequest stream;
  *stream.mutable_get() = request;
  for (int n = 1;; ++n) {
    absl::StatusOr<v1::GetResponse> head = ReadStream(
        stream,
        [&](const v1::GetResponse& h) {
          if (h.data_bytes() == destination.size()) return absl::OkStatus();
          return InvalidArgument("BYTES_LENGTH_MISMATCH", "n",
                                 absl::StrCat("the state has ", h.data_bytes(), " bytes, not ", destination.size()));
        },
        [&](uint64_t offset, const wire::SplitMessage& chunk) {
          for (absl::string_view piece : chunk.data) {
            std::memcpy(destination.data() + offset, piece.data(), piece.size());
            offset += piece.size();
          }
          return absl::OkStatus();
        },
        call);
    if (head.ok() || n >= options_.max_attempts || !MayBeginAnew(request, head.status())) return head;
  }
}

absl::StatusOr<v1::NameInfo> Pool::SetPiecesByStream(v1::SetRequest request, absl::Span<const absl::string_view> pieces,
                                                     const CallOptions& call) const {
  uint64_t total_bytes = 0;
  for (absl::string_view piece : pieces) total_bytes += piece.size();
  // Where the last read ended, since the next one mostly begins there.
  size_t piece = 0;
  uint64_t piece_offset = 0;  // of pieces[piece]
  return SetStream(
      std::move(request), total_bytes,
      [&](uint64_t offset, char* to, size_t max) -> absl::StatusOr<size_t> {
        if (offset < piece_offset) piece = piece_offset = 0;
        while (piece < pieces.size() && offset - piece_offset >= pieces[piece].size())
          piece_offset += pieces[piece++].size();
        if (piece == pieces.size()) return size_t{0};
        const absl::string_view rest = pieces[piece].substr(offset - piece_offset, max);
        std::memcpy(to, rest.data(), rest.size());
        return rest.size();
      },
      call);
}

absl::StatusOr<v1::NameInfo> Pool::SetStream(v1::SetRequest request, uint64_t total_bytes, Source source,
                                             const CallOptions& call) const {
  if (!request.data().empty()) return InvalidArgument("INVALID_OPTION", "data", "the source gives the bytes");
  // What an earlier call left behind may be of other bytes: only the checksum of the whole tells.
  const bool may_go_on = !request.request_id().empty() && !request.checksum().empty();
  if (request.request_id().empty()) request.set_request_id(NewRequestId());
  v1::GetUploadRequest upload_request;
  upload_request.set_sequence(request.sequence());
  upload_request.set_request_id(request.request_id());
  const absl::Duration timeout = call.timeout.value_or(options_.timeout);
  // Where the daemon says that an attempt has to begin. It may not have noticed yet that the call that broke is over;
  // until then it does not say how much it will keep.
  const auto received = [&]() -> absl::StatusOr<uint64_t> {
    const absl::Time patience = absl::Now() + timeout;
    for (;;) {
      const absl::StatusOr<v1::Upload> upload = GetUpload(upload_request, call);
      if (GetErrorDetail(upload.status()).reason == "UPLOAD_UNKNOWN") return 0;
      if (!upload.ok()) return upload.status();
      if (upload->has_expire_time() || absl::Now() >= patience) return upload->received_bytes();
      absl::SleepFor(kUploadPoll);
    }
  };

  uint64_t offset = 0;
  if (may_go_on) {
    const absl::StatusOr<uint64_t> kept = received();
    if (!kept.ok()) return kept.status();
    offset = *kept;
  }
  uint64_t acknowledged = offset;  // the most that the daemon ever had
  absl::Time deadline = absl::Now() + timeout;
  absl::Status broke;  // how the last attempt ended
  for (int failures = 0;;) {
    UploadAttempt attempt(request, total_bytes, options_.chunk_bytes, source, call, timeout);
    absl::StatusOr<v1::NameInfo> info = attempt.Run(streams_, offset);
    if (info.ok()) return info;
    if (attempt.source_failed()) return !broke.ok() && !attempt.wrote() ? broke : info.status();
    broke = info.status();
    // Another call has the upload: of another process, or one whose end the daemon has not noticed yet.
    const bool busy = GetErrorDetail(broke).reason == "UPLOAD_BUSY";
    if (!busy) ++failures;
    if (attempt.wrote() && !busy) deadline = absl::Now() + timeout;
    const std::optional<absl::Duration> delay = RetryDelay(broke, std::max(failures, 1));
    if (!delay || failures >= options_.max_attempts || absl::Now() + *delay >= deadline) return broke;
    absl::SleepFor(*delay);
    const absl::StatusOr<uint64_t> kept = received();
    if (!kept.ok()) return kept.status();
    offset = *kept;
    if (offset > acknowledged) {
      acknowledged = offset;
      failures = 0;
    }
  }
}

}  // namespace statepool::client
