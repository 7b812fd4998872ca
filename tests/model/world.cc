// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/model/world.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool::model {
namespace {

void Require(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  std::abort();
}

// A NameLog whose secret is always the same, so that a seed makes the same names of prefixes again.
class KnownKeyLog final : public NameLog {
 public:
  explicit KnownKeyLog(NameLog* log) : log_(log) {}
  absl::Status Commit(absl::Span<const NameChange> changes, bool sync) override { return log_->Commit(changes, sync); }
  absl::Status CommitLayout(const LayoutRecord& layout) override { return log_->CommitLayout(layout); }
  absl::Status DeleteLayout(TenantId tenant, absl::string_view fingerprint) override {
    return log_->DeleteLayout(tenant, fingerprint);
  }
  absl::Status CommitCleanStop(absl::string_view tombstones) override { return log_->CommitCleanStop(tombstones); }
  LastRun last_run() const override { return log_->last_run(); }
  uint64_t epoch() const override { return log_->epoch(); }
  const std::string& hash_key() const override { return hash_key_; }
  absl::Status LoadLayouts(absl::FunctionRef<absl::Status(LayoutRecord)> visit) override {
    return log_->LoadLayouts(visit);
  }
  absl::Status LoadNames(absl::FunctionRef<absl::Status(NameChange)> visit) override { return log_->LoadNames(visit); }

 private:
  NameLog* const log_;
  const std::string hash_key_ = std::string(32, 'k');
};

}  // namespace

StoreOptions OptionsOfWorld() {
  StoreOptions options;
  options.max_names = 10'000;
  options.max_layouts = 16;
  options.max_history = 8;
  options.default_max_history = 3;
  options.max_children = 24;
  options.max_tokens = 140;  // more than two stems
  options.max_attachment_bytes = 4096;
  options.max_page_size = 10;
  options.max_results = 4;
  options.max_batch = 6;
  options.max_ttl = absl::Hours(1);
  options.write_behind.flush_interval = absl::Seconds(1);
  options.flush_batch_bytes = 100 << 10;
  return options;
}

World::World(std::string directory, ManualClock* clock) : directory_(std::move(directory)), clock_(clock) { Start(); }

World::~World() { Stop(); }

void World::Start() {
  incarnation_ = absl::StrCat("incarnation-", ++starts_);
  device_ = *HostDevice::Create({"host", kHotBytes, 4096});
  RocksDbColdStoreOptions cold;
  cold.path = directory_;
  cold.image_memtable_bytes = 1 << 20;
  cold.collect_min_bytes = 8 << 20;
  absl::StatusOr<std::unique_ptr<RocksDbColdStore>> opened = RocksDbColdStore::Open(cold);
  Require(opened.status(), "the data directory does not open");
  cold_ = *std::move(opened);
  residency_ = std::make_unique<Residency>(ResidencyOptions{1 << 20}, ResidencyMemories{.hot = {{device_.get()}}},
                                           cold_.get(), clock_);
  StoreOptions options = OptionsOfWorld();
  options.incarnation = incarnation_;
  log_ = std::make_unique<KnownKeyLog>(cold_.get());
  store_ = std::make_unique<Store>(options, residency_.get(), log_.get(), clock_);
  residency_->SetMakeRoom([this] { return store_->EvictPrefix(); });
  Require(store_->Recover(), "the store does not recover");
  Identity identity;
  identity.incarnation = incarnation_;
  identity.max_message_bytes = identity.max_bytes_in_flight = identity.max_state_bytes = 16 << 20;
  identity.max_stream_state_bytes = kHotBytes;
  handlers_ = std::make_unique<Handlers>(store_.get(), /*arenas=*/nullptr, /*leases=*/nullptr, identity,
                                         [] { return std::vector<v1::DeviceInfo>(1); });
}

void World::Stop() {
  before_ = counts();
  handlers_.reset();
  store_.reset();
  residency_.reset();
  log_.reset();
  cold_.reset();
  device_.reset();
}

void World::Restart(bool orderly) {
  if (orderly) Require(store_->Drain(Op()), "an orderly stop");
  Stop();
  Start();
}

void World::CheckInvariants() const {
  store_->CheckInvariants();
  residency_->CheckInvariants();
}

WorldCounts World::counts() const {
  if (residency_ == nullptr) return before_;
  const ResidencyStats stats = residency_->stats();
  WorldCounts counts = before_;
  counts.spills += stats.spills;
  counts.evictions += stats.evictions.behind_head + stats.evictions.clean + stats.evictions.spilled;
  counts.promotions += stats.promotions;
  return counts;
}

absl::Status World::Get(const v1::GetRequest& request, v1::GetResponse* response) {
  const absl::StatusOr<Source> source = handlers_->GetSource(request);
  if (!source.ok()) return source.status();
  absl::StatusOr<GetAnswer> answer = absl::UnknownError("");
  if (std::optional<absl::StatusOr<GetAnswer>> at_once = store_->TryGet(Op(), *source); at_once.has_value()) {
    answer = *std::move(at_once);
  } else {
    answer = store_->Get(Op(), *source);
  }
  if (!answer.ok()) return answer.status();
  const absl::StatusOr<uint64_t> bytes = Handlers::AnswerBytes(*answer, request);
  if (!bytes.ok()) return bytes.status();
  const absl::StatusOr<std::vector<ByteRange>> ranges = handlers_->FillGetResponse(*answer, request, response);
  if (!ranges.ok()) return ranges.status();
  for (absl::string_view piece : Cut(answer->pin->bytes(), *ranges))
    response->mutable_data()->append(piece.data(), piece.size());
  return absl::OkStatus();
}

absl::Status World::BatchGet(const v1::BatchGetRequest& request, v1::BatchGetResponse* response) {
  const absl::StatusOr<std::vector<Handlers::PinnedPart>> parts = handlers_->BatchGet(
      Op(), request, [](uint64_t) { return absl::OkStatus(); }, response);
  if (!parts.ok()) return parts.status();
  for (const Handlers::PinnedPart& part : *parts) {
    for (absl::string_view piece : Cut(part.pin->bytes(), part.ranges))
      response->mutable_data()->append(piece.data(), piece.size());
  }
  return absl::OkStatus();
}

absl::Status World::Set(const v1::SetRequest& request, v1::NameInfo* info) {
  v1::SetRequest head = request;
  head.clear_data();
  // In two pieces, as a transport may give them.
  const absl::string_view data = request.data();
  const absl::string_view pieces[] = {data.substr(0, data.size() / 3), data.substr(data.size() / 3)};
  return handlers_->Set(Op(), head, pieces, info);
}

absl::Status World::BatchWrite(const v1::BatchWriteRequest& request, v1::BatchWriteResponse* response) {
  v1::BatchWriteRequest head = request;
  head.clear_data();
  const absl::string_view data = request.data();
  const absl::string_view pieces[] = {data.substr(0, data.size() / 2), data.substr(data.size() / 2)};
  return handlers_->BatchWrite(Op(), head, pieces, response);
}

}  // namespace statepool::model
