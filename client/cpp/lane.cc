// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/lane.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cpp/arena.h"
#include "client/cpp/calls.h"
#include "client/cpp/mapping.h"
#include "google/rpc/error_details.pb.h"
#include "kernels/checksum.h"

namespace statepool::client {
namespace {

constexpr size_t kNamesMax = 4096;

std::pair<int, std::string> KeyOf(const v1::NameRef& name) {
  switch (name.name_case()) {
    case v1::NameRef::kSequence: return {name.name_case(), name.sequence()};
    case v1::NameRef::kSnapshot: return {name.name_case(), name.snapshot()};
    case v1::NameRef::kPrefix: return {name.name_case(), name.prefix()};
    default: return {0, ""};
  }
}

// No alias looks like one.
bool IsFingerprint(absl::string_view layout) {
  return layout.size() == 64 && layout.find_first_not_of("0123456789abcdef") == layout.npos;
}

// After these the arena is as good as before, or opens again by itself.
bool Passes(absl::string_view reason) {
  return reason == "UNREACHABLE" || reason == "DRAINING" || reason == "DEADLINE" || reason == "CANCELLED" ||
         reason == "QUEUE_FULL" || reason == "CONTENTS_GONE";
}

// The error of the only item, as that of a call of its own.
absl::Status Alone(google::rpc::Status error) {
  for (google::protobuf::Any& any : *error.mutable_details()) {
    google::rpc::ErrorInfo info;
    if (!any.UnpackTo(&info)) continue;
    info.mutable_metadata()->erase("row");
    if (const auto field = info.mutable_metadata()->find("field"); field != info.mutable_metadata()->end())
      field->second = std::string(absl::StripPrefix(field->second, "items[0]."));
    any.PackFrom(info);
  }
  return FromItemError(error);
}

// Where the arena's only row begins, if it is an image: in one piece, the tensors one after the other. Null: it is not.
char* ImageOf(const Arena& arena, uint64_t state_bytes) {
  if (arena.tensors().empty()) return nullptr;
  char* const begin = static_cast<char*>(arena.tensors().front().data);
  uint64_t at = 0;
  for (const ArenaTensor& tensor : arena.tensors()) {
    uint64_t bytes = BytesOf(tensor.dtype);
    for (size_t i = tensor.shape.size(); i-- > 0;) {
      if (tensor.shape[i] != 1 && tensor.strides[i] != bytes) return nullptr;
      bytes *= tensor.shape[i];
    }
    if (tensor.data != begin + at) return nullptr;
    at += bytes;
  }
  return at == state_bytes ? begin : nullptr;
}

}  // namespace

// An arena of one row, which is an image.
struct Lane::Slot {
  ~Slot() {
    if (getpid() == pid) arena->Drop();  // a forked child lets the arena's destructor do what it can
  }

  std::string layout;
  uint64_t bytes = 0;
  const pid_t pid = getpid();
  std::unique_ptr<Arena> arena;
  char* row = nullptr;
  bool busy = true;  // guarded by Lane::mu_
};

class Lane::Taken {
 public:
  Taken(Lane* lane, const std::string& layout, std::optional<uint64_t> bytes)
      : lane_(lane), slot_(lane->Take(layout, bytes)) {}
  ~Taken() {
    if (slot_ == nullptr) return;
    const std::lock_guard lock(lane_->mu_);
    slot_->busy = false;
  }
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;

  const std::shared_ptr<Slot>& slot() const { return slot_; }

 private:
  Lane* const lane_;
  const std::shared_ptr<Slot> slot_;
};

Lane::Lane(const Pool& pool) : pid_(getpid()), pool_(std::make_unique<Pool>(pool)) {}

Lane::~Lane() {
  if (IsForked()) (void)pool_.release();  // gRPC's threads are not in this process, and it may wait for them
}

bool Lane::IsForked() const { return getpid() != pid_; }

void Lane::Learn(const v1::NameInfo& info, absl::string_view layout) {
  if (IsForked()) return;
  std::pair<int, std::string> name = KeyOf(info.name());
  const std::lock_guard lock(mu_);
  if (info.state_bytes() < kStateBytesMin) {
    names_.erase(name);
    newest_.clear();
    return;
  }
  if (names_.size() >= kNamesMax || sizes_.size() >= kNamesMax) {
    names_.clear();
    sizes_.clear();
  }
  Seen& seen = names_[std::move(name)];
  if (!layout.empty() && !IsFingerprint(layout)) {
    seen.alias = std::string(layout);
  } else if (seen.layout != info.layout() || seen.revision != info.revision()) {
    seen.alias.clear();
  }
  seen.layout = info.layout();
  seen.revision = info.revision();
  sizes_[info.layout()] = info.state_bytes();
  newest_ = info.layout();
}

void Lane::LearnLayout(const v1::LayoutInfo& info) {
  if (IsForked() || info.state_bytes() < kStateBytesMin) return;
  const std::lock_guard lock(mu_);
  if (sizes_.size() < kNamesMax) sizes_[info.fingerprint()] = info.state_bytes();
}

std::optional<absl::StatusOr<v1::GetResponse>> Lane::Get(const v1::GetRequest& request, std::optional<uint64_t> bytes,
                                                         absl::FunctionRef<char*(uint64_t bytes)> room, bool verify,
                                                         absl::Time deadline) {
  if (IsForked() || (!request.layout().empty() && !IsFingerprint(request.layout()))) return std::nullopt;
  std::string layout = request.layout();
  if (layout.empty()) {
    // Of names never seen it is a guess; when it is wrong the daemon says LAYOUT_MISMATCH.
    const std::lock_guard lock(mu_);
    const auto seen = names_.find(KeyOf(request.name()));
    layout = seen == names_.end() ? newest_ : seen->second.layout;
  }
  const Taken taken(this, layout, bytes);
  const std::shared_ptr<Slot>& slot = taken.slot();
  if (slot == nullptr) return std::nullopt;
  v1::LoadRequest load;
  v1::LoadItem& item = *load.add_items();
  *item.mutable_name() = request.name();
  item.set_version_id(request.version_id());
  item.set_with_attachment(!request.omit_attachment());
  if (request.has_position()) item.set_position(request.position());
  absl::Status unanswered;
  absl::StatusOr<v1::LoadResponse> answer = slot->arena->LoadAnyhow(load, Until(deadline), &unanswered);
  if (!answer.ok()) {
    Failed(slot, answer.status(), unanswered.ok());
    return std::nullopt;
  }
  v1::LoadedRow& row = *answer->mutable_rows(0);
  if (row.has_error()) {
    const absl::Status error = Alone(row.error());
    const std::string reason = GetErrorDetail(error).reason;
    if (!absl::IsNotFound(error) || reason == "LAYOUT_MISMATCH" || reason == "LAYOUT_UNKNOWN") return std::nullopt;
    return error;  // Get says the same
  }
  v1::GetResponse response;
  *response.mutable_info() = std::move(*row.mutable_info());
  *response.mutable_attachment() = std::move(*row.mutable_attachment());
  response.set_data_checksum(response.info().checksum());
  response.set_data_bytes(slot->bytes);
  char* const to = room(slot->bytes);
  if (!verify) {
    std::memcpy(to, slot->row, slot->bytes);
    return response;
  }
  CopyHasher hasher(to, slot->bytes);
  hasher.Append(absl::string_view(slot->row, slot->bytes));
  const absl::Status same = CompareChecksums(response.data_checksum(), ChecksumToHex(HashRoot(hasher.Finish())));
  if (!same.ok()) return same;
  return response;
}

Lane::SetOutcome Lane::Set(const v1::SetRequest& request, absl::Span<const absl::string_view> pieces, int max_attempts,
                           absl::Time deadline) {
  SetOutcome outcome;
  if (IsForked()) return outcome;
  v1::StoreRequest store;
  v1::StoreItem& item = *store.add_items();
  if (request.has_if_revision()) item.set_if_revision(request.if_revision());
  std::string layout = request.layout();
  const bool is_told = IsFingerprint(layout);
  if (!is_told) {
    // It must be there, and have that layout: so it does if it has the revision that was seen last.
    const std::lock_guard lock(mu_);
    const auto seen = names_.find({v1::NameRef::kSequence, request.sequence()});
    if (seen == names_.end() || (!layout.empty() && seen->second.alias != layout)) return outcome;
    if (!item.has_if_revision()) item.set_if_revision(seen->second.revision);
    if (item.if_revision() == 0 || (!layout.empty() && item.if_revision() != seen->second.revision)) return outcome;
    layout = seen->second.layout;
  }
  uint64_t bytes = 0;
  for (absl::string_view piece : pieces) bytes += piece.size();
  const Taken taken(this, layout, bytes);
  const std::shared_ptr<Slot>& slot = taken.slot();
  if (slot == nullptr) return outcome;
  item.set_sequence(request.sequence());
  item.set_position(request.position());
  item.set_whole_row(true);
  item.set_any_revision(!item.has_if_revision());
  if (request.has_options()) *item.mutable_options() = request.options();
  item.set_request_id(request.request_id());
  item.set_attachment(request.attachment());
  item.set_exactness(request.exactness());
  while (true) {
    if (request.checksum().empty()) {
      char* to = slot->row;
      for (absl::string_view piece : pieces) {
        std::memcpy(to, piece.data(), piece.size());
        to += piece.size();
      }
    } else {
      CopyHasher hasher(slot->row, slot->bytes);
      for (absl::string_view piece : pieces) hasher.Append(piece);
      if (ChecksumToHex(HashRoot(hasher.Finish())) != request.checksum()) return outcome;
    }
    absl::Status unanswered;
    absl::StatusOr<v1::StoreResponse> answer = slot->arena->StoreAnyhow(store, Until(deadline), &unanswered);
    ++outcome.attempts;
    if (outcome.doubt.ok()) outcome.doubt = unanswered;
    if (answer.ok()) {
      v1::StoredRow& row = *answer->mutable_rows(0);
      if (!row.has_error()) {
        outcome.answer = std::move(*row.mutable_info());
      } else if (absl::Status error = Alone(row.error());
                 is_told && GetErrorDetail(error).reason == "REVISION_MISMATCH") {
        outcome.answer = std::move(error);  // Set says the same
      }
      return outcome;
    }
    const absl::Status& error = answer.status();
    const std::string reason = GetErrorDetail(error).reason;
    if (absl::IsDeadlineExceeded(error)) {
      outcome.answer = error;
    } else if (!outcome.doubt.ok() && reason == "CONTENTS_GONE") {
      continue;  // the arena is there again, and its daemon knows whether it has the write
    } else if (!outcome.doubt.ok() && absl::IsUnavailable(error) && Passes(reason)) {
      const std::optional<absl::Duration> delay = RetryDelay(error, outcome.attempts);
      if (delay && outcome.attempts < max_attempts && absl::Now() + *delay < deadline) {
        absl::SleepFor(*delay);
        continue;
      }
      outcome.answer = error;
    }
    Failed(slot, error, unanswered.ok());
    return outcome;
  }
}

// ---- slots

std::shared_ptr<Lane::Slot> Lane::Take(const std::string& layout, std::optional<uint64_t> bytes) {
  if (layout.empty()) return nullptr;
  uint64_t need = 0;
  {
    const std::lock_guard lock(mu_);
    const auto size = sizes_.find(layout);
    if (size == sizes_.end() || size->second < kStateBytesMin || bytes.value_or(size->second) != size->second)
      return nullptr;
    std::vector<std::shared_ptr<Slot>>& slots = slots_[layout];
    for (const std::shared_ptr<Slot>& slot : slots) {
      if (!std::exchange(slot->busy, true)) return slot;
    }
    need = 2 * size->second;
    if (++calls_[layout] < kCallsMin || slots.size() >= kRowsMax || opening_ ||
        std::chrono::steady_clock::now() < paused_until_ || (bytes_max_ && bytes_ + need > *bytes_max_)) {
      return nullptr;
    }
    opening_ = true;
  }
  absl::StatusOr<std::shared_ptr<Slot>> made = Open(layout, need / 2);
  const std::lock_guard lock(mu_);
  opening_ = false;
  calls_[layout] = 0;
  if (!made.ok()) {
    PauseLocked();
    return nullptr;
  }
  if (*made != nullptr) {
    slots_[layout].push_back(*made);
    bytes_ += need;
  }
  return *std::move(made);
}

absl::StatusOr<std::shared_ptr<Lane::Slot>> Lane::Open(const std::string& layout, uint64_t state_bytes) {
  const absl::Time deadline = absl::Now() + kOpenTimeout;
  uint64_t bytes_max;
  {
    const std::lock_guard lock(mu_);
    bytes_max = bytes_max_.value_or(UINT64_MAX);
  }
  if (bytes_max == UINT64_MAX) {
    const absl::StatusOr<v1::Capabilities> limits = pool_->GetCapabilities(Until(deadline));
    if (!limits.ok()) return limits.status();
    // A daemon of another machine is not even asked, nor one whose arenas are in a GPU's memory.
    const bool is_host = absl::c_all_of(
        limits->devices(), [](const v1::DeviceInfo& device) { return !absl::StartsWith(device.name(), "cuda:"); });
    bytes_max = is_host && IsHere(limits->arena_socket()) ? limits->max_arena_bytes() / kShare : 0;
    const std::lock_guard lock(mu_);
    bytes_max_ = bytes_max;
  }
  if (bytes_ + 2 * state_bytes > bytes_max) return std::shared_ptr<Slot>();
  ArenaOptions options;
  options.rows = 1;
  options.view.set_layers(v1::View::ROW_MAJOR);
  absl::StatusOr<std::unique_ptr<Arena>> arena = pool_->OpenArena(layout, options, Until(deadline));
  if (!arena.ok()) return arena.status();
  auto slot = std::make_shared<Slot>();
  slot->layout = layout;
  slot->bytes = state_bytes;
  slot->row = ImageOf(**arena, state_bytes);
  slot->arena = *std::move(arena);
  if (slot->row == nullptr)
    return MakeError(absl::StatusCode::kInternal, "BAD_ANSWER", "tensors", "the row of this arena is no image");
  return slot;
}

bool Lane::GiveWay() {
  if (IsForked()) return false;
  std::vector<std::shared_ptr<Slot>> idle;
  {
    const std::lock_guard lock(mu_);
    for (auto& [layout, slots] : slots_) {
      const auto first = std::stable_partition(slots.begin(), slots.end(), [](const auto& slot) { return slot->busy; });
      for (auto it = first; it != slots.end(); ++it) bytes_ -= 2 * (*it)->bytes;
      std::move(first, slots.end(), std::back_inserter(idle));
      slots.erase(first, slots.end());
    }
    if (!idle.empty()) PauseLocked();
  }
  for (const std::shared_ptr<Slot>& slot : idle) slot->arena->Close();
  return !idle.empty();
}

// A row whose last call had no answer is not used again: the daemon may still be copying.
void Lane::Failed(const std::shared_ptr<Slot>& slot, const absl::Status& error, bool answered) {
  const std::string reason = GetErrorDetail(error).reason;
  const bool passes = Passes(reason) || absl::IsInvalidArgument(error);
  if (passes && (answered || reason == "CONTENTS_GONE")) return;
  const std::lock_guard lock(mu_);
  std::vector<std::shared_ptr<Slot>>& slots = slots_[slot->layout];
  const auto it = std::find(slots.begin(), slots.end(), slot);
  if (it != slots.end()) {
    slots.erase(it);
    bytes_ -= 2 * slot->bytes;
  }
  if (!passes) PauseLocked();
}

void Lane::PauseLocked() {
  paused_until_ = std::chrono::steady_clock::now() + absl::ToChronoSeconds(kPause);
  bytes_max_ = std::nullopt;  // it may be another daemon then
}

}  // namespace statepool::client
