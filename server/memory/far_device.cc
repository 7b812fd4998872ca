// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/far_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool {

// A copy that happens when it is waited for. `from_device` may be the same.
class FarDevice::LateTransfer final : public Transfer {
 public:
  LateTransfer(FarDevice* device, const FarDevice* from_device, char* to, const char* from, uint64_t bytes)
      : device_(device), from_device_(from_device), to_(to), from_(from), bytes_(bytes) {
    const uint32_t under_way = ++device_->under_way_;
    uint32_t most = device_->most_under_way_.load();
    while (most < under_way && !device_->most_under_way_.compare_exchange_weak(most, under_way)) continue;
  }
  ~LateTransfer() override {
    if (!done_) (void)Wait();
  }
  absl::Status Wait() override {
    assert(!done_ && "waited for twice");
    done_ = true;
    if (bytes_ > 0) std::memcpy(to_, from_, bytes_);
    absl::Status status = device_->health();
    if (status.ok()) status = from_device_->health();
    if (device_->arrival_) device_->arrival_(to_, bytes_);
    --device_->under_way_;
    return status;
  }

 private:
  FarDevice* const device_;
  const FarDevice* const from_device_;
  char* const to_;
  const char* const from_;
  const uint64_t bytes_;
  bool done_ = false;
};

// Addresses without permissions, for as long as this lives.
class FarDevice::Far {
 public:
  Far(const FarDevice* device, uint64_t bytes, char* behind) : bytes_(bytes) {
    data_ = static_cast<char*>(mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    MutexLock lock(&AllRanges().mu);
    AllRanges().by_address[data_] = {device, bytes, behind};
  }
  ~Far() {
    {
      MutexLock lock(&AllRanges().mu);
      AllRanges().by_address.erase(data_);
    }
    munmap(data_, bytes_);
  }
  char* data() const { return data_; }

 private:
  const uint64_t bytes_;
  char* data_;
};

// Memory of several chunks at addresses side by side, for as long as this lives. Null data(): there is no room.
class FarDevice::Joined {
 public:
  explicit Joined(const std::vector<std::unique_ptr<Extent>>& chunks) : bytes_(chunks.size() * chunks[0]->bytes()) {
    void* const range = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return;
    data_ = static_cast<char*>(range);
    char* at = data_;
    for (const std::unique_ptr<Extent>& chunk : chunks) {
      constexpr int kFlags = MAP_SHARED | MAP_FIXED;
      if (mmap(at, chunk->bytes(), PROT_READ | PROT_WRITE, kFlags, chunk->fd(), 0) == MAP_FAILED) {
        munmap(std::exchange(data_, nullptr), bytes_);
        return;
      }
      at += chunk->bytes();
    }
  }
  ~Joined() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  Joined(const Joined&) = delete;
  Joined& operator=(const Joined&) = delete;
  char* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  const uint64_t bytes_;
  char* data_ = nullptr;
};

class FarDevice::FarExtent final : public Extent {
 public:
  FarExtent(FarDevice* device, std::vector<std::unique_ptr<Extent>> chunks, std::unique_ptr<Joined> behind)
      : device_(device),
        chunks_(std::move(chunks)),
        behind_(std::move(behind)),
        far_(device, behind_->bytes(), behind_->data()) {}
  char* data() const override { return far_.data(); }
  uint64_t bytes() const override { return behind_->bytes(); }
  TenantId tenant() const override { return chunks_[0]->tenant(); }
  const std::string& device() const override { return device_->name(); }
  int fd() const override { return -1; }
  absl::StatusOr<std::vector<int>> ExportChunks() override {
    std::vector<int> fds;
    for (const std::unique_ptr<Extent>& chunk : chunks_) {
      const absl::StatusOr<std::vector<int>> one = chunk->ExportChunks();
      if (!one.ok()) {
        for (const int fd : fds) close(fd);
        return one.status();
      }
      fds.push_back(one->front());
    }
    return fds;
  }
  bool can_be_sealed() const override { return false; }
  bool sealed() const override { return false; }
  bool Seal() override { return false; }

 private:
  const FarDevice* const device_;
  const std::vector<std::unique_ptr<Extent>> chunks_;
  const std::unique_ptr<Joined> behind_;
  const Far far_;
};

class FarDevice::FarSharedExtent final : public SharedExtent {
 public:
  FarSharedExtent(FarDevice* device, std::unique_ptr<SharedExtent> inner)
      : device_(device),
        inner_(std::move(inner)),
        far_(std::make_unique<Far>(device, inner_->bytes(), inner_->data())) {}
  char* data() const override { return far_ == nullptr ? nullptr : far_->data(); }
  uint64_t bytes() const override { return inner_->bytes(); }
  TenantId tenant() const override { return inner_->tenant(); }
  const std::string& device() const override { return device_->name(); }
  int fd() const override { return inner_->fd(); }
  absl::StatusOr<std::vector<int>> ExportChunks() override { return inner_->ExportChunks(); }
  bool can_be_sealed() const override { return false; }
  bool sealed() const override { return false; }
  bool Seal() override { return false; }
  bool Revoke() override {
    far_ = nullptr;
    return inner_->Revoke();
  }

 private:
  const FarDevice* const device_;
  const std::unique_ptr<SharedExtent> inner_;
  std::unique_ptr<Far> far_;  // null after Revoke
};

absl::Status FarDevice::health() const {
  if (!failed_.load()) return absl::OkStatus();
  return Error(absl::StatusCode::kUnavailable, "DEVICE_FAILED", "the device failed, and what it held is lost")
      .Meta("device", name_);
}

FarDevice::Ranges& FarDevice::AllRanges() {
  static Ranges& ranges = *new Ranges();
  return ranges;
}

std::optional<FarDevice::Range> FarDevice::Find(const char* address, uint64_t bytes) {
  Ranges& all = AllRanges();
  MutexLock lock(&all.mu);
  auto entry = all.by_address.upper_bound(address);
  if (entry == all.by_address.begin()) return std::nullopt;
  --entry;
  Range range = entry->second;
  const uint64_t offset = static_cast<uint64_t>(address - entry->first);
  if (offset > range.bytes || bytes > range.bytes - offset) return std::nullopt;
  range.behind += offset;
  return range;
}

char* FarDevice::Behind(const char* address, uint64_t bytes) const {
  const std::optional<Range> range = Find(address, bytes);
  return range.has_value() && range->device == this ? range->behind : nullptr;
}

bool FarDevice::Reaches(const Device& other) const {
  return &other == this || (has_peers_ && dynamic_cast<const FarDevice*>(&other) != nullptr);
}

absl::StatusOr<char*> FarDevice::ReachAny(const char* address, uint64_t bytes) const {
  const std::optional<Range> range = Find(address, bytes);
  if (!range.has_value() || !Reaches(*range->device))
    return absl::InternalError("an address out of the device's reach");
  if (absl::Status status = range->device->health(); !status.ok()) return status;
  return range->behind;
}

absl::StatusOr<char*> FarDevice::Reach(const char* address, uint64_t bytes) const {
  if (absl::Status status = health(); !status.ok()) return status;
  char* const behind = Behind(address, bytes);
  if (behind == nullptr) return absl::InternalError("an address that is none of the device's");
  return behind;
}

absl::StatusOr<std::unique_ptr<Extent>> FarDevice::AllocateExtent(TenantId tenant, uint64_t chunks, bool /*sealed*/) {
  if (absl::Status status = health(); !status.ok()) return status;
  std::vector<std::unique_ptr<Extent>> inner;
  while (inner.size() < chunks) {
    absl::StatusOr<std::unique_ptr<Extent>> chunk = inner_->AllocateExtent(tenant, 1, /*sealed=*/false);
    if (!chunk.ok()) return chunk.status();
    inner.push_back(*std::move(chunk));
  }
  auto behind = std::make_unique<Joined>(inner);
  if (behind->data() == nullptr) {
    return Error(absl::StatusCode::kResourceExhausted, "HOT_FULL",
                 absl::StrCat("mmap for ", behind->bytes(), " bytes: ", std::strerror(errno)));
  }
  return std::make_unique<FarExtent>(this, std::move(inner), std::move(behind));
}

absl::StatusOr<std::unique_ptr<SharedExtent>> FarDevice::AllocateShared(TenantId tenant, uint64_t chunks) {
  if (absl::Status status = health(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<SharedExtent>> inner = inner_->AllocateShared(tenant, chunks);
  if (!inner.ok()) return inner.status();
  return std::make_unique<FarSharedExtent>(this, *std::move(inner));
}

absl::StatusOr<std::unique_ptr<Transfer>> FarDevice::CopyIn(char* to, absl::string_view from) {
  const absl::StatusOr<char*> there = Reach(to, from.size());
  if (!there.ok()) return there.status();
  copied_in_bytes_ += from.size();
  return std::make_unique<LateTransfer>(this, this, *there, from.data(), from.size());
}

absl::StatusOr<std::unique_ptr<Transfer>> FarDevice::CopyOut(char* to, const char* from, uint64_t bytes) {
  const absl::StatusOr<char*> there = Reach(from, bytes);
  if (!there.ok()) return there.status();
  copied_out_bytes_ += bytes;
  return std::make_unique<LateTransfer>(this, this, to, *there, bytes);
}

absl::StatusOr<std::unique_ptr<Transfer>> FarDevice::CopyWithin(char* to, const char* from, uint64_t bytes) {
  const absl::StatusOr<char*> source = Reach(from, bytes), target = Reach(to, bytes);
  if (!source.ok()) return source.status();
  if (!target.ok()) return target.status();
  return std::make_unique<LateTransfer>(this, this, *target, *source, bytes);
}

absl::StatusOr<std::unique_ptr<Transfer>> FarDevice::CopyFrom(const Device& other, char* to, const char* from,
                                                              uint64_t bytes) {
  if (&other == this || !Reaches(other)) return absl::UnimplementedError("this device has no such peer");
  const auto* peer = static_cast<const FarDevice*>(&other);
  const absl::StatusOr<char*> source = peer->Reach(from, bytes), target = Reach(to, bytes);
  if (!source.ok()) return source.status();
  if (!target.ok()) return target.status();
  return std::make_unique<LateTransfer>(this, peer, *target, *source, bytes);
}

absl::Status FarDevice::HashStates(absl::Span<const char* const> states, uint64_t bytes, absl::Span<LeafHash> leaves) {
  std::vector<const char*> behind;
  for (const char* state : states) {
    const absl::StatusOr<char*> there = Reach(state, bytes);
    if (!there.ok()) return there.status();
    behind.push_back(*there);
  }
  return inner_->HashStates(behind, bytes, leaves);
}

absl::StatusOr<std::unique_ptr<Staging>> FarDevice::AllocateStaging(uint64_t bytes) {
  if (absl::Status status = health(); !status.ok()) return status;
  return inner_->AllocateStaging(bytes);
}

class FarDevice::Copier final : public RowCopier {
 public:
  Copier(const FarDevice* device, const CopyPlan& plan, const AdvancePlan& advance, uint32_t rows)
      : device_(device), plan_(plan), advance_(advance), rows_(rows) {}

  absl::Status Gather(absl::Span<const GatherItem> items, char* arena) override {
    const absl::StatusOr<char*> rows = device_->Reach(arena, 1);
    if (!rows.ok()) return rows.status();
    for (const GatherItem& item : items) {
      const absl::StatusOr<char*> state = device_->ReachAny(item.state, plan_.state_bytes());
      if (!state.ok()) return state.status();
      plan_.Clear(*rows, item.row);
      plan_.Gather(*state, 0, plan_.state_bytes(), *rows, {item.row}, CopyHint::kCached);
    }
    return absl::OkStatus();
  }
  absl::Status Scatter(absl::Span<const ScatterItem> items, const char* arena, absl::Span<LeafHash> leaves) override {
    const absl::StatusOr<char*> rows = device_->Reach(arena, 1);
    if (!rows.ok()) return rows.status();
    const size_t each = LeafCount(plan_.state_bytes());
    assert(items.size() <= rows_ && (leaves.empty() || leaves.size() == items.size() * each));
    for (const ScatterItem& item : items) {
      const absl::StatusOr<char*> state = device_->ReachAny(item.state, plan_.state_bytes());
      if (!state.ok()) return state.status();
      if (leaves.empty()) {
        plan_.Scatter(*rows, item.row, item.accepted, 0, plan_.state_bytes(), *state, CopyHint::kCached);
        continue;
      }
      plan_.ScatterLeaves(*rows, item.row, item.accepted, 0, each, *state, leaves.data(), CopyHint::kCached);
      leaves.remove_prefix(each);
    }
    return absl::OkStatus();
  }
  absl::Status Advance(absl::Span<const AdvanceMove> items, char* arena) override {
    const absl::StatusOr<char*> rows = device_->Reach(arena, 1);
    if (!rows.ok()) return rows.status();
    for (const AdvanceMove& item : items) {
      assert(item.from_row < rows_ && item.to_row < rows_);
      for (size_t part = 0; part < advance_.parts().size(); ++part) advance_.Move(*rows, item, part);
    }
    return absl::OkStatus();
  }

 private:
  const FarDevice* const device_;
  const CopyPlan plan_;
  const AdvancePlan advance_;
  [[maybe_unused]] const uint32_t rows_;
};

absl::StatusOr<std::unique_ptr<RowCopier>> FarDevice::NewRowCopier(const CopyPlan& plan, const AdvancePlan& advance,
                                                                   uint32_t rows) {
  if (absl::Status status = health(); !status.ok()) return status;
  return std::make_unique<Copier>(this, plan, advance, rows);
}

}  // namespace statepool
