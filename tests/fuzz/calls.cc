// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/calls.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <type_traits>
#include <utility>

#include "kernels/checksum.h"
#include "proto/wire.h"
#include "server/core/error.h"
#include "server/core/store_errors.h"
#include "server/rpc/convert.h"
#include "server/rpc/errors.h"
#include "tests/fuzz/input.h"

namespace statepool::fuzz {
namespace {

constexpr size_t kRestBytesMax = 4 << 20;  // kSetRestBytesMax of call.h

absl::Status Malformed() {
  return Error(absl::StatusCode::kInvalidArgument, "MALFORMED_REQUEST", "the request can't be parsed");
}

template <typename Message>
absl::Status Parse(const grpc::ByteBuffer& buffer, Message* message) {
  grpc::ByteBuffer copy(buffer);
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok() || !message->ParseFromZeroCopyStream(&reader) || !reader.status().ok()) return Malformed();
  return absl::OkStatus();
}

// A message with one large field; `split` keeps that.
template <typename Message>
absl::Status ParseSplit(const grpc::ByteBuffer& buffer, Message* message, wire::SplitMessage* split) {
  absl::StatusOr<wire::SplitMessage> parts = wire::Split(buffer, wire::kDataField, kRestBytesMax);
  if (!parts.ok()) return Malformed();
  *split = *std::move(parts);
  return message->ParseFromString(split->rest) ? absl::OkStatus() : Malformed();
}

// Requests name leases by their number. Grants are never used: nobody here writes states as a worker would.
template <typename Request>
void NameLease(const World* world, Request* request) {
  if constexpr (requires { request->lease(); }) request->set_lease(world->LeaseOf(request->lease()));
  if constexpr (requires { request->grant(); }) {
    if (request->grant() != 0) request->set_grant(UINT64_MAX);
  }
  if constexpr (std::is_same_v<Request, v1::StoreRequest>) {
    for (v1::StoreItem& item : *request->mutable_items()) NameLease(world, &item);
  }
}

template <typename Request, typename Response>
Answer Unary(World* world, absl::Status (Handlers::*handler)(const Op&, const Request&, Response*),
             const grpc::ByteBuffer& buffer) {
  Request request;
  auto response = std::make_unique<Response>();
  absl::Status status = Parse(buffer, &request);
  if (status.ok()) {
    NameLease(world, &request);
    status = (world->handlers().*handler)(Op(), request, response.get());
  }
  return {status, std::move(response), ""};
}

template <typename Request, typename Response>
Answer Split(World* world,
             absl::Status (Handlers::*handler)(const Op&, const Request&, absl::Span<const absl::string_view>,
                                               Response*),
             const grpc::ByteBuffer& buffer) {
  Request request;
  wire::SplitMessage split;
  auto response = std::make_unique<Response>();
  absl::Status status = ParseSplit(buffer, &request, &split);
  if (status.ok()) {
    NameLease(world, &request);
    status = (world->handlers().*handler)(Op(), request, split.data, response.get());
  }
  return {status, std::move(response), ""};
}

Answer OpenDirect(World* world, const grpc::ByteBuffer& buffer) {
  Answer answer = Unary(world, &Handlers::OpenDirect, buffer);
  if (answer.status.ok()) world->Connect(static_cast<const v1::DirectLease&>(*answer.message));
  return answer;
}

// An arena is connected to as soon as it is open.
Answer OpenArena(World* world, const grpc::ByteBuffer& buffer) {
  Answer answer = Unary(world, &Handlers::OpenArena, buffer);
  if (answer.status.ok()) world->Connect(static_cast<const v1::Arena&>(*answer.message));
  return answer;
}

// Requests name arenas by their number.
template <typename Request, typename Response>
Answer OfArena(World* world, absl::Status (Handlers::*handler)(const Op&, const Request&, Response*),
               const grpc::ByteBuffer& buffer) {
  Request request;
  auto response = std::make_unique<Response>();
  absl::Status status = Parse(buffer, &request);
  if (status.ok()) {
    request.set_arena(world->ArenaOf(request.arena()));
    NameLease(world, &request);
    status = (world->handlers().*handler)(Op(), request, response.get());
  }
  return {status, std::move(response), ""};
}

absl::Status Read(World* world, const v1::GetRequest& request, v1::GetResponse* response, std::string* data) {
  const absl::StatusOr<Source> source = world->handlers().GetSource(request);
  if (!source.ok()) return source.status();
  if (!request.lease().empty()) {
    if (absl::Status status = world->handlers().CheckLease(Op(), request.lease()); !status.ok()) return status;
  }
  absl::StatusOr<GetAnswer> answer = absl::UnknownError("");
  std::optional<absl::StatusOr<GetAnswer>> at_once;
  if (!request.has_select()) at_once = world->store().TryGet(Op(), *source);
  answer = at_once.has_value() ? *std::move(at_once) : world->store().Get(Op(), *source);
  if (!answer.ok()) return answer.status();
  if (!request.lease().empty()) {
    *data = std::string(answer->pin->bytes());
    return world->handlers().FillSlotResponse(Op(), *std::move(answer), request, response);
  }
  const absl::StatusOr<std::vector<ByteRange>> ranges = world->handlers().FillGetResponse(*answer, request, response);
  if (!ranges.ok()) return ranges.status();
  for (absl::string_view piece : Cut(answer->pin->bytes(), *ranges)) data->append(piece.data(), piece.size());
  return absl::OkStatus();
}

Answer Get(World* world, const grpc::ByteBuffer& buffer) {
  v1::GetRequest request;
  auto response = std::make_unique<v1::GetResponse>();
  Answer answer;
  answer.status = Parse(buffer, &request);
  NameLease(world, &request);
  if (answer.status.ok()) answer.status = Read(world, request, response.get(), &answer.data);
  answer.message = std::move(response);
  return answer;
}

// The chunks themselves are gRPC's business: their head, and all their bytes.
Answer GetStream(World* world, const grpc::ByteBuffer& buffer) {
  v1::GetStreamRequest request;
  auto head = std::make_unique<v1::GetResponse>();
  Answer answer;
  answer.status = Parse(buffer, &request);
  if (!answer.status.ok()) return answer;
  if (request.chunk_bytes() % kLeafBytes != 0 || request.chunk_bytes() > kMaxUploadChunkBytes) {
    answer.status = InvalidArgument("INVALID_OPTION", "chunk_bytes", "");
  } else if (request.offset() != 0 && request.get().version_id() == 0) {
    answer.status = InvalidArgument("MISSING_FIELD", "get.version_id", "");
  } else {
    answer.status = Read(world, request.get(), head.get(), &answer.data);
    if (answer.status.ok() && (request.offset() % kLeafBytes != 0 || request.offset() > answer.data.size()))
      answer.status = InvalidArgument("OFFSET_MISMATCH", "offset", "");
  }
  answer.message = std::move(head);
  return answer;
}

Answer BatchGet(World* world, const grpc::ByteBuffer& buffer) {
  v1::BatchGetRequest request;
  auto response = std::make_unique<v1::BatchGetResponse>();
  Answer answer;
  answer.status = Parse(buffer, &request);
  if (!answer.status.ok()) return answer;
  const absl::StatusOr<std::vector<Handlers::PinnedPart>> parts = world->handlers().BatchGet(
      Op(), request, [](uint64_t) { return absl::OkStatus(); }, response.get());
  answer.status = parts.status();
  if (!parts.ok()) return answer;
  for (const Handlers::PinnedPart& part : *parts) {
    for (absl::string_view piece : Cut(part.pin->bytes(), part.ranges)) answer.data.append(piece.data(), piece.size());
  }
  answer.message = std::move(response);
  return answer;
}

Answer GetUpload(World* world, const grpc::ByteBuffer& buffer) {
  v1::GetUploadRequest request;
  auto response = std::make_unique<v1::Upload>();
  Answer answer;
  answer.status = Parse(buffer, &request);
  if (answer.status.ok()) answer.status = ValidateName(request.sequence(), "sequence");
  if (answer.status.ok() && request.request_id().empty())
    answer.status = InvalidArgument("MISSING_FIELD", "request_id", "");
  if (!answer.status.ok()) return answer;
  const absl::StatusOr<Uploads::Info> info = world->uploads().Find(Op(), request.sequence(), request.request_id());
  answer.status = info.status();
  if (!info.ok()) return answer;
  response->set_received_bytes(info->received_bytes);
  response->set_total_bytes(info->total_bytes);
  if (info->expire_time.has_value()) *response->mutable_expire_time() = ToProto(*info->expire_time);
  answer.message = std::move(response);
  return answer;
}

absl::Status ParseChecksum(const v1::SetChunk& chunk, Checksum* checksum) {
  if (chunk.checksum().empty()) return InvalidArgument("MISSING_FIELD", "checksum", "");
  if (!ChecksumFromHex(chunk.checksum(), checksum)) return InvalidArgument("INVALID_OPTION", "checksum", "");
  return absl::OkStatus();
}

Answer WholeSetStream(World* world, const grpc::ByteBuffer& buffer) {
  SetStream stream(world);
  Answer answer;
  answer.status = stream.Message(buffer);
  if (!answer.status.ok()) return answer;
  const absl::StatusOr<NameInfo> info = stream.Complete();
  answer.status = info.status();
  if (!info.ok()) return answer;
  auto response = std::make_unique<v1::NameInfo>();
  FillNameInfo(*info, response.get());
  answer.message = std::move(response);
  return answer;
}

}  // namespace

std::unique_ptr<google::protobuf::Message> NewRequest(Method method) {
  static const auto* const names = new std::vector<std::string>(MethodNames());
  const google::protobuf::ServiceDescriptor* service =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName("statepool.v1.StatePool");
  const google::protobuf::Descriptor* type =
      service->FindMethodByName((*names)[static_cast<size_t>(method)])->input_type();
  return std::unique_ptr<google::protobuf::Message>(
      google::protobuf::MessageFactory::generated_factory()->GetPrototype(type)->New());
}

Answer Call(World* world, Method method, const grpc::ByteBuffer& request) {
#define STATEPOOL_UNARY(name) \
  case Method::k##name: return Unary(world, &Handlers::name, request)
  switch (method) {
    STATEPOOL_UNARY(GetCapabilities);
    STATEPOOL_UNARY(RegisterLayout);
    STATEPOOL_UNARY(GetLayout);
    STATEPOOL_UNARY(ListLayouts);
    STATEPOOL_UNARY(DeleteLayout);
    STATEPOOL_UNARY(Create);
    STATEPOOL_UNARY(Fork);
    STATEPOOL_UNARY(Describe);
    STATEPOOL_UNARY(Touch);
    STATEPOOL_UNARY(SetTtl);
    STATEPOOL_UNARY(List);
    STATEPOOL_UNARY(Delete);
    STATEPOOL_UNARY(DeleteMany);
    STATEPOOL_UNARY(Rollback);
    STATEPOOL_UNARY(RemoveRange);
    STATEPOOL_UNARY(Renumber);
    STATEPOOL_UNARY(Snapshot);
    STATEPOOL_UNARY(Restore);
    STATEPOOL_UNARY(PublishPrefix);
    STATEPOOL_UNARY(MatchPrefix);
    STATEPOOL_UNARY(Flush);
    STATEPOOL_UNARY(Grant);
    case Method::kOpenDirect: return OpenDirect(world, request);
    case Method::kOpenArena: return OpenArena(world, request);
    case Method::kLoad: return OfArena(world, &Handlers::Load, request);
    case Method::kStore: return OfArena(world, &Handlers::Store, request);
    case Method::kAdvance: return OfArena(world, &Handlers::Advance, request);
    case Method::kCloseArena: return OfArena(world, &Handlers::CloseArena, request);
    case Method::kSet: return Split(world, &Handlers::Set, request);
    case Method::kBatchWrite: return Split(world, &Handlers::BatchWrite, request);
    case Method::kGet: return Get(world, request);
    case Method::kGetStream: return GetStream(world, request);
    case Method::kBatchGet: return BatchGet(world, request);
    case Method::kGetUpload: return GetUpload(world, request);
    case Method::kSetStream: return WholeSetStream(world, request);
  }
#undef STATEPOOL_UNARY
  return {};
}

absl::Status SetStream::Message(const grpc::ByteBuffer& message) {
  absl::Status status = Take(message);
  if (!status.ok()) upload_.reset();  // kept, or dropped
  return status;
}

absl::Status SetStream::Take(const grpc::ByteBuffer& message) {
  if (message.Length() > kMaxUploadChunkBytes + kRestBytesMax)
    return InvalidArgument("INVALID_OPTION", "data", "the chunk is too large");
  v1::SetChunk chunk;
  wire::SplitMessage split;
  if (absl::Status status = ParseSplit(message, &chunk, &split); !status.ok()) return status;
  if (upload_ == nullptr) {
    if (!chunk.has_head()) return InvalidArgument("MISSING_FIELD", "head", "");
    if (!chunk.head().data().empty()) return InvalidArgument("INVALID_OPTION", "head.data", "");
    absl::StatusOr<Handlers::SetArguments> set = Handlers::ToSet(chunk.head());
    if (!set.ok()) return BelowField(set.status(), "head");
    Checksum checksum = 0;
    if (split.data_bytes > 0) {
      if (absl::Status status = ParseChecksum(chunk, &checksum); !status.ok()) return status;
      const Checksum actual = ChecksumOfPieces(split.data);
      if (chunk.offset() == 0 && actual != checksum) return ChecksumMismatch(checksum, actual);
    }
    absl::StatusOr<std::unique_ptr<Uploads::Upload>> upload = world_->uploads().Begin(
        Op(), std::move(set->request), std::move(set->attachment), set->checksum, chunk.offset(), split.data_bytes);
    if (!upload.ok()) return upload.status();
    upload_ = *std::move(upload);
    return split.data_bytes == 0 ? absl::OkStatus() : upload_->Append(chunk.offset(), split.data, checksum);
  }
  if (chunk.has_head()) {
    return InvalidArgument("INVALID_OPTION", "head", "");
  } else if (split.data_bytes == 0) {
    return InvalidArgument("INVALID_OPTION", "data", "");
  }
  Checksum checksum;
  if (absl::Status status = ParseChecksum(chunk, &checksum); !status.ok()) return status;
  return upload_->Append(chunk.offset(), split.data, checksum);
}

absl::StatusOr<NameInfo> SetStream::Complete() {
  if (upload_ == nullptr) return InvalidArgument("MISSING_FIELD", "head", "");
  absl::StatusOr<NameInfo> info = upload_->Finish(Op());
  upload_.reset();
  return info;
}

}  // namespace statepool::fuzz
