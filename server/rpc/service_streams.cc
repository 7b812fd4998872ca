// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// GetStream and SetStream: states of any size, in chunks. A stream holds a few chunks of memory beside the state's
// slot.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "proto/wire.h"
#include "server/core/error.h"
#include "server/core/range_reader.h"
#include "server/core/store_errors.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/errors.h"
#include "server/rpc/requests.h"

namespace statepool {
namespace {

constexpr uint64_t kChunkBytesDefault = 1 << 20;
constexpr uint64_t kChunkBytesMax = 4 << 20;

}  // namespace

// ---- GetStream

// Reads the state on the executor, then sends a chunk whenever the one before has left; on the executor as well where
// a device must copy it first.
class StatePoolService::GetStreamCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public CallBase {
 public:
  GetStreamCall(StatePoolService* service, grpc::CallbackServerContext* context, const grpc::ByteBuffer* request)
      : CallBase(service, Method::kGetStream, context) {
    absl::Status status = Enter();
    if (status.ok()) status = Parse(request);
    if (status.ok())
      status = service_->executor_.Submit([this] {
        if (absl::Status opened = Open(); !opened.ok()) return End(opened);
        SendNext();
      });
    if (!status.ok()) End(status);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return End(Error(absl::StatusCode::kCancelled, "CANCELLED", "the client left"));
    if (sent_ == total_) return End(absl::OkStatus());
    if (!waits_) return SendNext();
    if (absl::Status status = service_->executor_.Submit([this] { SendNext(); }); !status.ok()) End(status);
  }
  void OnCancel() override { Cancelled(); }
  void OnDone() override {
    Leave();
    delete this;
  }

 private:
  absl::Status Parse(const grpc::ByteBuffer* message) {
    if (message->Length() > kSmallRequestBytesMax) {
      return Malformed(
          absl::StrCat("it has ", message->Length(), " bytes, and this method takes at most ", kSmallRequestBytesMax));
    }
    grpc::ByteBuffer copy(*message);  // references
    grpc::ProtoBufferReader reader(&copy);
    if (!reader.status().ok() || !request_.ParseFromZeroCopyStream(&reader))
      return Malformed("this is no statepool.v1.GetStreamRequest");
    if (request_.chunk_bytes() % kLeafBytes != 0 || request_.chunk_bytes() > kChunkBytesMax) {
      return InvalidArgument("INVALID_OPTION", "chunk_bytes",
                             absl::StrCat("a multiple of ", kLeafBytes, ", at most ", kChunkBytesMax));
    }
    if (request_.offset() != 0 && request_.get().version_id() == 0) {
      return InvalidArgument("MISSING_FIELD", "get.version_id",
                             "a stream that goes on must name its version: the head may be another one by now");
    }
    return absl::OkStatus();
  }

  static absl::Status InGet(const absl::Status& status) {
    return GetErrorDetail(status).field.empty() ? status : BelowField(status, "get");
  }

  absl::Status Open() {
    if (absl::Status status = op().Check(*service_->clock_); !status.ok()) return status;
    if (absl::Status status = WithoutLease(request_.get()); !status.ok()) return InGet(status);
    absl::StatusOr<Source> source = service_->handlers_.GetSource(request_.get());
    if (!source.ok()) return InGet(source.status());
    absl::StatusOr<GetAnswer> answer = service_->store_->Get(op(), *source);
    if (!answer.ok()) return InGet(answer.status());
    head_.emplace();
    absl::StatusOr<std::vector<ByteRange>> ranges =
        service_->handlers_.FillGetResponse(*answer, request_.get(), &*head_);
    if (!ranges.ok()) return InGet(ranges.status());
    total_ = BytesOf(*ranges);
    if (request_.offset() % kLeafBytes != 0 || request_.offset() > total_) {
      return Error(absl::StatusCode::kInvalidArgument, "OFFSET_MISMATCH",
                   absl::StrCat("an offset is a multiple of ", kLeafBytes, ", and at most the ", total_,
                                " bytes that there are"))
          .Field("offset")
          .Meta("expected", total_);
    }
    sent_ = request_.offset();
    chunk_bytes_ = request_.chunk_bytes() == 0 ? kChunkBytesDefault : request_.chunk_bytes();
    // gRPC holds one chunk, and the socket's buffer another.
    absl::StatusOr<Admission::Ticket> ticket =
        service_->admission_.Admit(std::min(2 * chunk_bytes_, total_) + head_->attachment().size());
    if (!ticket.ok()) return ticket.status();
    reader_.emplace(answer->pin.get(), *ranges);
    reader_->Skip(sent_);
    waits_ = !answer->pin->in_host_memory();
    lent_ = std::make_shared<LentSlot>(std::move(answer->pin), nullptr,
                                       std::make_shared<Admission::Ticket>(*std::move(ticket)));
    return absl::OkStatus();
  }

  void SendNext() {
    v1::GetChunk chunk;
    if (head_.has_value()) *chunk.mutable_head() = *std::move(head_);
    head_.reset();
    chunk.set_offset(sent_);
    const uint64_t bytes = std::min(chunk_bytes_, total_ - sent_);
    const absl::StatusOr<RangeReader::Bytes> data = reader_->Next(bytes);
    if (!data.ok()) return End(data.status());
    chunk.set_checksum(ChecksumToHex(ChecksumOfPieces(data->pieces)));
    sent_ += bytes;
    service_->sent_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    std::shared_ptr<LentSlot> lent = lent_;
    if (data->copy != nullptr) lent = std::make_shared<LentSlot>(nullptr, data->copy, lent_->ticket);
    message_ = wire::Join(chunk.SerializeAsString(), wire::kDataField, Lend(lent, data->pieces));
    WatchProgress(bytes);
    StartWrite(&message_);
  }

  void End(const absl::Status& status) {
    message_.Clear();
    lent_.reset();
    Finish(Ended(status));
  }

  v1::GetStreamRequest request_;
  std::optional<v1::GetResponse> head_;  // until it is sent
  std::shared_ptr<LentSlot> lent_;
  std::optional<RangeReader> reader_;  // of lent_'s slot: what is still to be sent
  bool waits_ = false;                 // SendNext, for a device's copies
  uint64_t sent_ = 0, total_ = 0, chunk_bytes_ = 0;
  grpc::ByteBuffer message_;
};

grpc::ServerWriteReactor<grpc::ByteBuffer>* StatePoolService::GetStream(grpc::CallbackServerContext* context,
                                                                        const grpc::ByteBuffer* request) {
  return new GetStreamCall(this, context, request);
}

// ---- SetStream

// Reads message after message. The first (room is made for the state) and the end (it is published) run on the
// executor; the chunks between are copied into the slot where they arrive, or on the executor where a device copies.
class StatePoolService::SetStreamCall final : public grpc::ServerReadReactor<grpc::ByteBuffer>, public CallBase {
 public:
  SetStreamCall(StatePoolService* service, grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : CallBase(service, Method::kSetStream, context), response_(response) {
    if (absl::Status status = Enter(); !status.ok()) {
      End(status);
      return;
    }
    WatchSending();
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    StopWatching();
    if (stalled_.load()) return;  // the call was finished there
    waited_ += absl::Nanoseconds(service_->clock_->Now() - waiting_since_);
    received_bytes_ += message_.Length();
    if (!ok || upload_ == nullptr || upload_->append_waits()) {
      const absl::Status status = service_->executor_.Submit([this, ok] {
        const absl::Status done = !ok ? Complete() : upload_ == nullptr ? Open() : TakeChunk();
        if (!ok || !done.ok()) return End(done);
        ReadNext();
      });
      if (!status.ok()) End(status);
      return;
    }
    if (absl::Status status = TakeChunk(); !status.ok()) return End(status);
    ReadNext();
  }
  void OnCancel() override { Cancelled(); }
  void OnDone() override {
    Leave();
    delete this;
  }

 private:
  void ReadNext() {
    message_.Clear();
    Admit(0).IgnoreError();  // gives the bytes of the message back; none are never refused
    WatchSending();
    StartRead(&message_);
  }

  absl::Status ParseMessage(v1::SetChunk* chunk, wire::SplitMessage* split) {
    if (message_.Length() > kMaxUploadChunkBytes + kSetRestBytesMax) {
      return InvalidArgument("INVALID_OPTION", "data",
                             absl::StrCat("a chunk has at most ", kMaxUploadChunkBytes, " bytes"));
    }
    if (absl::Status status = Admit(message_.Length()); !status.ok()) return status;
    absl::StatusOr<wire::SplitMessage> parts = wire::Split(message_, wire::kDataField, kSetRestBytesMax);
    if (!parts.ok()) return Malformed(parts.status().message());
    *split = *std::move(parts);
    if (!chunk->ParseFromString(split->rest)) return Malformed("this is no statepool.v1.SetChunk");
    return absl::OkStatus();
  }

  static absl::Status ParseChecksum(const v1::SetChunk& chunk, Checksum* checksum) {
    if (chunk.checksum().empty())
      return InvalidArgument("MISSING_FIELD", "checksum", "each chunk has the checksum of its data");
    if (!ChecksumFromHex(chunk.checksum(), checksum))
      return InvalidArgument("INVALID_OPTION", "checksum", "a checksum is 16 lower-case hex digits");
    return absl::OkStatus();
  }

  // The same error as seen from the stream: what is not about a chunk is about the head.
  static absl::Status InHead(const absl::Status& status) {
    const std::string field = GetErrorDetail(status).field;
    return field.empty() || field == "offset" || field == "data" ? status : BelowField(status, "head");
  }

  absl::Status Open() {
    if (absl::Status status = op().Check(*service_->clock_); !status.ok()) return status;
    v1::SetChunk chunk;
    wire::SplitMessage split;
    if (absl::Status status = ParseMessage(&chunk, &split); !status.ok()) return status;
    if (!chunk.has_head())
      return InvalidArgument("MISSING_FIELD", "head", "the first message of a stream says what is written");
    if (!chunk.head().data().empty())
      return InvalidArgument("INVALID_OPTION", "head.data", "the bytes go into the chunks' own data");
    if (absl::Status status = WithoutLease(chunk.head()); !status.ok()) return BelowField(status, "head");
    absl::StatusOr<Handlers::SetArguments> set = Handlers::ToSet(chunk.head());
    if (!set.ok()) return BelowField(set.status(), "head");
    // Looked at before anything is made or taken over: a start that is refused changes nothing.
    Checksum checksum = 0;
    if (split.data_bytes > 0) {
      if (absl::Status status = ParseChecksum(chunk, &checksum); !status.ok()) return status;
      const Checksum actual = ChecksumOfPieces(split.data);
      if (chunk.offset() == 0 && actual != checksum) return ChecksumMismatch(checksum, actual);
    }
    absl::StatusOr<std::unique_ptr<Uploads::Upload>> upload = service_->uploads_.Begin(
        op(), std::move(set->request), std::move(set->attachment), set->checksum, chunk.offset(), split.data_bytes);
    if (!upload.ok()) return InHead(upload.status());
    upload_ = *std::move(upload);
    return split.data_bytes == 0 ? absl::OkStatus() : upload_->Append(chunk.offset(), split.data, checksum);
  }

  absl::Status TakeChunk() {
    v1::SetChunk chunk;
    wire::SplitMessage split;
    if (absl::Status status = ParseMessage(&chunk, &split); !status.ok()) return status;
    if (chunk.has_head())
      return InvalidArgument("INVALID_OPTION", "head", "only the first message of a stream has a head");
    if (split.data_bytes == 0)
      return InvalidArgument("INVALID_OPTION", "data", "only the first message of a stream may have no data");
    Checksum checksum;
    if (absl::Status status = ParseChecksum(chunk, &checksum); !status.ok()) return status;
    return upload_->Append(chunk.offset(), split.data, checksum);
  }

  absl::Status Complete() {
    if (absl::Status status = op().Check(*service_->clock_); !status.ok()) return status;
    if (context_->IsCancelled()) return Error(absl::StatusCode::kCancelled, "CANCELLED", "the client left");
    if (upload_ == nullptr)
      return InvalidArgument("MISSING_FIELD", "head", "the first message of a stream says what is written");
    const absl::StatusOr<NameInfo> info = upload_->Finish(op());
    if (!info.ok()) return InHead(info.status());
    v1::NameInfo answer;
    FillNameInfo(*info, &answer);
    bool own_buffer;
    const grpc::Status serialized = grpc::SerializationTraits<v1::NameInfo>::Serialize(answer, response_, &own_buffer);
    return serialized.ok() ? absl::OkStatus() : absl::InternalError(serialized.error_message());
  }

  void End(const absl::Status& status) {
    StopWatching();
    upload_.reset();  // kept, or dropped, before the client hears of the end
    message_.Clear();
    Finish(Ended(status));
  }

  // While a read is under way nothing else touches the call: so the watchdog may finish it, and the read ends then.
  void WatchSending() {
    const absl::Duration timeout = service_->options_.stream_timeout;
    const absl::Duration left = TimeFor(received_bytes_) - waited_;
    waiting_since_ = service_->clock_->Now();
    sending_watch_ = service_->watchdog_.Watch(After(waiting_since_, std::min(timeout, left)), [this, timeout, left] {
      stalled_.store(true);
      upload_.reset();  // kept, or dropped, before the client hears of the end
      const std::string why =
          left < timeout ? absl::StrCat("the chunks come too slowly: a stream may take a second for each MiB, and ",
                                        absl::FormatDuration(timeout), " beside that")
                         : absl::StrCat("no chunk came for ", absl::FormatDuration(timeout));
      Finish(
          Ended(Error(absl::StatusCode::kDeadlineExceeded, "STALLED", absl::StrCat(why, "; go on with another stream"))
                    .Meta("limit", absl::FormatDuration(timeout))));
    });
  }
  void StopWatching() {
    if (sending_watch_ != 0) service_->watchdog_.Forget(std::exchange(sending_watch_, 0));
  }
  grpc::ByteBuffer* const response_;
  grpc::ByteBuffer message_;
  std::unique_ptr<Uploads::Upload> upload_;
  Watchdog::Id sending_watch_ = 0;
  std::atomic<bool> stalled_{false};
  MonoTime waiting_since_ = 0;
  absl::Duration waited_ = absl::ZeroDuration();  // for the client, in all
  uint64_t received_bytes_ = 0;
};

grpc::ServerReadReactor<grpc::ByteBuffer>* StatePoolService::SetStream(grpc::CallbackServerContext* context,
                                                                       grpc::ByteBuffer* response) {
  return new SetStreamCall(this, context, response);
}

}  // namespace statepool
