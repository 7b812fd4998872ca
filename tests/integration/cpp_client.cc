// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The C++ client against the daemon at $STATEPOOL_SERVER, which has a hot budget of 128 MiB. test_cpp_client.py starts
// one and runs this, and looks how many bytes went through arenas. With $STATEPOOL_RESTARTS it kills the daemon and
// starts it anew whenever a line "restart" comes from here, and answers with a line. With $STATEPOOL_DIRECT the daemon
// has direct ways, and they are used.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numeric>
#include <optional>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "client/cpp/arena.h"
#include "client/cpp/direct.h"
#include "client/cpp/statepool.h"

namespace statepool::client {
namespace {

constexpr uint64_t kLayerBytes = 300'000;  // of each tensor: not a multiple of a leaf
constexpr uint32_t kLayers = 4;
constexpr uint64_t kStateBytes = 2 * kLayers * kLayerBytes;

class CppClientTest : public testing::Test {
 protected:
  // max_message_bytes of `streaming_` is below a state's size, so that states travel as streams.
  CppClientTest() : pool_(Connect(64 << 20)), streaming_(Connect(1 << 20)) {
    v1::Layout layout;
    layout.set_model_id("cpp");
    for (const char* name : {"a", "b"}) {
      v1::TensorSpec& tensor = *layout.add_tensors();
      tensor.set_name(name);
      tensor.set_kind(v1::RECURRENT);
      for (uint32_t layer = 0; layer < kLayers; ++layer) tensor.add_layers(layer);
      tensor.set_dtype(v1::UINT8);
      v1::Axis& axis = *tensor.add_axes();
      axis.set_name("x");
      axis.set_size(kLayerBytes);
    }
    const auto info = pool_.RegisterLayout(layout, "cpp");
    EXPECT_TRUE(info.ok()) << info.status();
    EXPECT_TRUE(!info.ok() || info->state_bytes() == kStateBytes);
  }

  static bool IsDirect() { return getenv("STATEPOOL_DIRECT") != nullptr; }

  static Pool Connect(int max_message_bytes, bool arenas = false, bool direct = IsDirect()) {
    Options options;
    options.max_message_bytes = max_message_bytes;
    options.chunk_bytes = 256 << 10;
    options.arenas = arenas;
    options.direct = direct;
    return *Pool::Connect(getenv("STATEPOOL_SERVER"), options);
  }

  static std::string Name(absl::string_view suffix = "") {
    return absl::StrCat(testing::UnitTest::GetInstance()->current_test_info()->name(), suffix);
  }

  static std::string StateOf(uint32_t seed, size_t n = kStateBytes) {
    std::mt19937 random(seed);
    std::string bytes(n, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    return bytes;
  }

  v1::NameInfo Make(const std::string& name, const std::string& bytes, int64_t position = 1) {
    const auto info = pool_.Set(name, "cpp", position, bytes);
    EXPECT_TRUE(info.ok()) << info.status();
    return info.ok() ? *info : v1::NameInfo();
  }

  static std::string ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason; }

  // Copied to and from by this process, where the daemon lets it.
  std::unique_ptr<Arena> OpenArena(ArenaOptions options) {
    options.direct = true;
    absl::StatusOr<std::unique_ptr<Arena>> arena = pool_.OpenArena("cpp", options);
    EXPECT_TRUE(arena.ok()) << arena.status();
    return arena.ok() ? *std::move(arena) : nullptr;
  }

  // The bytes of one layer of a row. REQUIRES: steps 0.
  static char* LayerOf(const Arena& arena, absl::string_view name, uint32_t layer, uint32_t row) {
    for (const ArenaTensor& tensor : arena.tensors()) {
      const auto at = std::find(tensor.layers.begin(), tensor.layers.end(), layer);
      if (tensor.tensor != name || at == tensor.layers.end()) continue;
      char* data = static_cast<char*>(tensor.data);
      for (size_t i = 0; i < tensor.axes.size(); ++i) {
        if (tensor.axes[i] == "row") data += row * tensor.strides[i];
        if (tensor.axes[i] == "layer") data += static_cast<uint64_t>(at - tensor.layers.begin()) * tensor.strides[i];
      }
      return data;
    }
    ADD_FAILURE() << "no layer " << layer << " of " << name;
    return nullptr;
  }

  // The row as an image.
  static std::string ImageOf(const Arena& arena, uint32_t row) {
    std::string image;
    for (const char* name : {"a", "b"}) {
      for (uint32_t layer = 0; layer < kLayers; ++layer) image.append(LayerOf(arena, name, layer, row), kLayerBytes);
    }
    return image;
  }

  // With a row of the fast lane for states of "cpp".
  Pool ConnectLane() {
    const Pool pool = Connect(64 << 20, /*arenas=*/true, /*direct=*/false);
    for (int i = 0; i < 10; ++i) EXPECT_TRUE(pool.Set(Name("/warm"), "cpp", i, StateOf(0)).ok());
    return pool;
  }

  // What does not depend on which name it is, and when.
  static std::string Told(v1::NameInfo info) {
    info.clear_name();
    info.set_durable_revision(info.durable_revision() == info.revision());
    info.clear_revision();
    info.clear_version_id();
    info.set_parent_version_id(info.parent_version_id() > 0);
    info.clear_create_time();
    info.clear_flush_lag();
    if (info.has_expire_time()) info.mutable_expire_time()->Clear();
    return info.ShortDebugString();
  }
  static std::string Told(const absl::Status& status, const std::string& name) {
    const ErrorDetail detail = GetErrorDetail(status);
    std::string text = absl::StrCat(static_cast<int>(detail.code), " ", detail.reason, " ", detail.field, " ",
                                    detail.message, " ", absl::StrJoin(detail.metadata, " ", absl::PairFormatter("=")));
    return absl::StrReplaceAll(text, {{name, "NAME"}});
  }

  void ExpectSameErrors(const Pool& other);

  const Pool pool_, streaming_;
};

TEST_F(CppClientTest, AStateIsTheSameByMessageAndByStream) {
  const std::string bytes = StateOf(1);
  v1::SetRequest request;
  request.set_layout("cpp");
  request.set_position(3);
  request.set_attachment("logits");
  for (const Pool* writer : {&pool_, &streaming_}) {
    const std::string name = Name(writer == &pool_ ? "/message" : "/stream");
    request.set_sequence(name);
    const absl::string_view view = bytes;
    const auto info = writer->Set(request, {view.substr(0, 7), view.substr(7)});
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->checksum(), ChecksumOfPieces({bytes}));
    for (const Pool* reader : {&pool_, &streaming_}) {
      const auto state = reader->Get(SequenceRef(name));
      ASSERT_TRUE(state.ok()) << state.status();
      EXPECT_TRUE(absl::StrJoin(state->pieces(), "") == bytes);
      EXPECT_EQ(state->attachment(), "logits");
      EXPECT_EQ(state->info().position(), 3);
      std::string into(kStateBytes, '\0');
      v1::GetRequest get;
      *get.mutable_name() = SequenceRef(name);
      const auto answer = reader->GetInto(get, absl::MakeSpan(into.data(), into.size()));
      ASSERT_TRUE(answer.ok()) << answer.status();
      EXPECT_TRUE(into == bytes);
      EXPECT_EQ(answer->data_checksum(), info->checksum());
    }
  }
}

TEST_F(CppClientTest, APartIsTheSameByMessageAndByStreamAndReplacesOnlyItself) {
  std::string bytes = StateOf(1);
  const v1::NameInfo info = Make(Name(), bytes);
  v1::GetRequest get;
  *get.mutable_name() = SequenceRef(Name());
  get.mutable_select()->add_tensors("b");
  for (uint32_t layer : {0, 1, 2, 3}) get.mutable_select()->add_layers(layer);
  const std::string part = bytes.substr(kLayers * kLayerBytes);
  for (const Pool* reader : {&pool_, &streaming_}) {
    const auto state = reader->Get(get);
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_TRUE(absl::StrJoin(state->pieces(), "") == part);
    EXPECT_EQ(state->data_checksum(), ChecksumOfPieces({part}));
    EXPECT_EQ(state->info().checksum(), info.checksum());
  }
  v1::SetRequest set;
  set.set_sequence(Name());
  set.set_position(1);
  set.mutable_select()->add_tensors("a");
  set.mutable_select()->add_layers(2);
  set.set_if_revision(info.revision());
  const std::string replacement = StateOf(2, kLayerBytes);
  const auto edited = pool_.Set(set, {replacement});
  ASSERT_TRUE(edited.ok()) << edited.status();
  EXPECT_EQ(edited->exactness(), v1::EDITED);
  bytes.replace(2 * kLayerBytes, kLayerBytes, replacement);
  EXPECT_TRUE(absl::StrJoin(pool_.Get(SequenceRef(Name()))->pieces(), "") == bytes);
}

TEST_F(CppClientTest, AStreamGoesOnInAVersionThatIsNoLongerTheHead) {
  const std::string bytes = StateOf(1);
  const v1::NameInfo first = Make(Name(), bytes, 1);
  Make(Name(), StateOf(2), 2);
  v1::GetStreamRequest request;
  *request.mutable_get()->mutable_name() = SequenceRef(Name());
  request.mutable_get()->set_version_id(first.version_id());
  request.set_offset(640 << 10);
  std::string rest;
  const auto answer = pool_.GetStream(request, [&](uint64_t offset, absl::string_view data) {
    EXPECT_EQ(offset, (640 << 10) + rest.size());
    rest.append(data.data(), data.size());
    return absl::OkStatus();
  });
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE(rest == bytes.substr(640 << 10));
  request.mutable_get()->set_version_id(first.version_id() + 1000000);
  EXPECT_EQ(ReasonOf(pool_.GetStream(request, [](uint64_t, absl::string_view) { return absl::OkStatus(); }).status()),
            "VERSION_MISMATCH");
}

TEST_F(CppClientTest, AnUploadThatItsSourceBrokeOffGoesOnUnderItsRequestId) {
  const std::string bytes = StateOf(1);
  v1::SetRequest request;
  request.set_sequence(Name());
  request.set_layout("cpp");
  request.set_position(1);
  request.set_request_id("upload");
  request.set_checksum(ChecksumOfPieces({bytes}));
  v1::GetUploadRequest question;
  question.set_sequence(Name());
  question.set_request_id("upload");
  // What the daemon says once `is_so` holds of it.
  const auto eventually = [&](auto is_so) {
    absl::StatusOr<v1::Upload> upload;
    for (int i = 0; i < 1000; ++i) {
      upload = pool_.GetUpload(question);
      if (upload.ok() && is_so(*upload)) break;
      absl::SleepFor(absl::Milliseconds(10));
    }
    return upload;
  };
  const auto source = [&](uint64_t offset, char* to, size_t max) -> absl::StatusOr<size_t> {
    if (offset == 1 << 20) {
      (void)eventually([](const v1::Upload&) { return true; });  // the daemon has the call
      return absl::AbortedError("pulled the plug");
    }
    std::memcpy(to, bytes.data() + offset, max);
    return max;
  };
  EXPECT_EQ(pool_.SetStream(request, bytes.size(), source).status(), absl::AbortedError("pulled the plug"));
  // Until the daemon has seen that the call is over.
  const auto upload = eventually([](const v1::Upload& u) { return u.has_expire_time(); });
  ASSERT_TRUE(upload.ok()) << upload.status();
  EXPECT_EQ(upload->total_bytes(), kStateBytes);
  EXPECT_LE(upload->received_bytes(), 1u << 20);
  uint64_t first = UINT64_MAX;
  const auto info =
      pool_.SetStream(request, bytes.size(), [&](uint64_t offset, char* to, size_t max) -> absl::StatusOr<size_t> {
        first = std::min(first, offset);
        const size_t n = std::min(max, bytes.size() - offset);
        std::memcpy(to, bytes.data() + offset, n);
        return n;
      });
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(first, upload->received_bytes());
  EXPECT_EQ(info->checksum(), request.checksum());
  EXPECT_EQ(ReasonOf(pool_.GetUpload(question).status()), "UPLOAD_UNKNOWN");
}

TEST_F(CppClientTest, BatchesWriteAndReadManyNames) {
  Make(Name("/source"), StateOf(1), 5);
  v1::BatchWriteRequest request;
  for (const char* name : {"/x", "/y"}) {
    v1::SetRequest& set = *request.add_items()->mutable_set();
    set.set_sequence(Name(name));
    set.set_layout("cpp");
    set.set_position(7);
  }
  v1::ForkRequest& fork = *request.add_items()->mutable_fork();
  *fork.mutable_source() = SequenceRef(Name("/source"));
  fork.add_children(Name("/child"));
  v1::ForkRequest& bad = *request.add_items()->mutable_fork();
  *bad.mutable_source() = SequenceRef(Name("/nobody"));
  bad.add_children(Name("/orphan"));
  const std::string x = StateOf(10), y = StateOf(11);
  const absl::string_view view = y;
  request.set_all_or_none(true);
  auto answer = pool_.BatchWrite(request, {{x}, {view.substr(0, 5), view.substr(5)}});
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_FALSE(answer->done);
  EXPECT_EQ(ReasonOf(answer->results[0].status()), "BATCH_ABORTED");
  EXPECT_EQ(ReasonOf(answer->results[3].status()), "NEVER_CREATED");
  EXPECT_EQ(GetErrorDetail(answer->results[3].status()).field, "items[3].source");
  request.set_all_or_none(false);
  answer = pool_.BatchWrite(request, {{x}, {view.substr(0, 5), view.substr(5)}});
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE(answer->done);
  EXPECT_EQ(answer->results[1]->info().checksum(), ChecksumOfPieces({y}));
  EXPECT_EQ(answer->results[2]->fork().children(0).sequence(), Name("/child"));
  EXPECT_FALSE(answer->results[3].ok());

  const auto states = pool_.BatchGet(
      {SequenceRef(Name("/y")), SequenceRef(Name("/nobody")), SequenceRef(Name("/child")), SequenceRef(Name("/x"))});
  ASSERT_TRUE(states.ok()) << states.status();
  EXPECT_TRUE(absl::StrJoin((*states)[0]->pieces(), "") == y);
  EXPECT_EQ(ReasonOf((*states)[1].status()), "NEVER_CREATED");
  EXPECT_EQ((*states)[2]->info().position(), 5);
  EXPECT_TRUE(absl::StrJoin((*states)[3]->pieces(), "") == x);
}

TEST_F(CppClientTest, NamesAreTouchedGivenATtlAndDeletedByPrefix) {
  Make(Name("/a"), StateOf(1));
  ASSERT_TRUE(pool_.Fork(SequenceRef(Name("/a")), {Name("/b"), Name("/c")}).ok());
  EXPECT_EQ(*pool_.Touch(SequenceRef(Name("/a"))), absl::InfiniteFuture());
  ASSERT_TRUE(pool_.SetTtl(SequenceRef(Name("/a")), absl::Hours(1)).ok());
  const absl::StatusOr<absl::Time> expires = pool_.Touch(SequenceRef(Name("/a")));
  ASSERT_TRUE(expires.ok()) << expires.status();
  EXPECT_GT(*expires, absl::Now() + absl::Minutes(55));
  EXPECT_LT(*expires, absl::Now() + absl::Minutes(65));
  ASSERT_TRUE(pool_.SetTtl(SequenceRef(Name("/a")), absl::InfiniteDuration()).ok());
  EXPECT_EQ(*pool_.Touch(SequenceRef(Name("/a"))), absl::InfiniteFuture());
  EXPECT_EQ(ReasonOf(pool_.Touch(SequenceRef(Name("/z"))).status()), "NEVER_CREATED");

  v1::DeleteManyRequest request;
  request.set_name_prefix(Name("/"));
  request.set_if_count(2);
  const absl::Status wrong = pool_.DeleteMany(request).status();
  EXPECT_EQ(ReasonOf(wrong), "COUNT_MISMATCH");
  EXPECT_EQ(GetErrorDetail(wrong).metadata["count"], "3");
  request.set_if_count(3);
  EXPECT_EQ(pool_.DeleteMany(request)->deleted(), 3u);
}

TEST_F(CppClientTest, TokensAreTakenBackRemovedAndNumberedAnew) {
  for (const int64_t position : {4, 5, 6})
    ASSERT_TRUE(pool_.Set(Name(), "cpp", position, StateOf(static_cast<int>(position))).ok());
  EXPECT_EQ(pool_.Describe(SequenceRef(Name()))->rollback_tokens(), 2u);
  const absl::Status too_far = pool_.RollbackTokens(Name(), 3).status();
  EXPECT_EQ(ReasonOf(too_far), "HISTORY_TOO_SHORT");
  EXPECT_EQ(GetErrorDetail(too_far).metadata["available"], "2");
  EXPECT_EQ(pool_.RollbackTokens(Name(), 1)->position(), 5);

  v1::RenumberRequest renumber;
  renumber.set_sequence(Name());
  renumber.set_end(-1);
  renumber.set_add(10);
  const absl::StatusOr<v1::NameInfo> renumbered = pool_.Renumber(renumber);
  ASSERT_TRUE(renumbered.ok()) << renumbered.status();
  EXPECT_EQ(renumbered->position(), 15);
  EXPECT_EQ(renumbered->history_size(), 2);
  EXPECT_TRUE(absl::StrJoin(pool_.Get(SequenceRef(Name()))->pieces(), "") == StateOf(5));

  EXPECT_FALSE(pool_.RemoveRange(Name(), 13, -1)->done());
  const absl::StatusOr<v1::RemoveRangeResponse> back = pool_.RemoveRange(Name(), 14, 15);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->info().position(), 14);
  EXPECT_TRUE(absl::StrJoin(pool_.Get(SequenceRef(Name()))->pieces(), "") == StateOf(4));
  EXPECT_TRUE(pool_.RemoveRange(Name(), 0, -1)->deleted());
  EXPECT_EQ(ReasonOf(pool_.RemoveRange(Name(), 0, -1).status()), "DELETED");
}

TEST_F(CppClientTest, ALayoutIsForgottenWhenNoNameHasIt) {
  v1::LayoutPreset preset;
  preset.set_model_id(Name());
  preset.mutable_rwkv7()->set_layers(1);
  preset.mutable_rwkv7()->set_hidden_size(64);
  ASSERT_TRUE(pool_.RegisterLayout(preset, "short-lived").ok());
  ASSERT_TRUE(pool_.Create(Name(), "short-lived").ok());
  EXPECT_EQ(ReasonOf(pool_.DeleteLayout("short-lived").status()), "LAYOUT_IN_USE");
  ASSERT_TRUE(pool_.Delete(SequenceRef(Name())).ok());
  const auto deleted = pool_.DeleteLayout("short-lived");
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_TRUE(deleted->deleted());
  EXPECT_EQ(ReasonOf(pool_.DeleteLayout("short-lived").status()), "LAYOUT_UNKNOWN");
}

TEST_F(CppClientTest, APrefixIsFoundUnderItsSaltAlone) {
  Make(Name(), StateOf(1), 3);
  v1::PublishPrefixRequest publish;
  publish.set_layout("cpp");
  for (uint32_t token : {1, 2, 3}) publish.add_tokens(token);
  *publish.mutable_source() = SequenceRef(Name());
  publish.set_salt("mine");
  const auto published = pool_.PublishPrefix(publish);
  ASSERT_TRUE(published.ok()) << published.status();
  v1::MatchPrefixRequest match;
  match.set_layout("cpp");
  for (uint32_t token : {1, 2, 3, 4}) match.add_tokens(token);
  EXPECT_EQ(pool_.MatchPrefix(match)->matches_size(), 0);
  match.set_salt("mine");
  ASSERT_EQ(pool_.MatchPrefix(match)->matches_size(), 1);
  EXPECT_EQ(pool_.MatchPrefix(match)->matches(0).prefix(), published->prefix());
}

TEST_F(CppClientTest, RowsOfAnArenaHoldTheStatesInEachView) {
  const std::string x = StateOf(1), y = StateOf(2);
  Make(Name("/x"), x, 3);
  Make(Name("/y"), y, 4);
  for (const v1::View::Layers layers : {v1::View::PER_LAYER, v1::View::LAYER_MAJOR, v1::View::ROW_MAJOR}) {
    ArenaOptions options;
    options.rows = 3;
    options.view.set_layers(layers);
    const std::unique_ptr<Arena> arena = OpenArena(options);
    ASSERT_NE(arena, nullptr);
    EXPECT_EQ(arena->tensors().size(), layers == v1::View::PER_LAYER ? 2 * kLayers : 2);
    const auto loaded = arena->Load({LoadRow(2, SequenceRef(Name("/x"))), LoadRow(0, SequenceRef(Name("/y"))),
                                     LoadRow(1, SequenceRef(Name("/nobody")))});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->rows[0]->info().position(), 3);
    EXPECT_TRUE(loaded->rows[1]->copied());
    EXPECT_EQ(ReasonOf(loaded->rows[2].status()), "NEVER_CREATED");
    EXPECT_EQ(GetErrorDetail(loaded->rows[2].status()).field, "items[2].name");
    EXPECT_TRUE(ImageOf(*arena, 2) == x && ImageOf(*arena, 0) == y);

    const std::string layer = StateOf(3, kLayerBytes);
    std::memcpy(LayerOf(*arena, "b", 2, 2), layer.data(), layer.size());
    const std::string name = Name(absl::StrCat("/", layers));
    const auto stored = arena->Store({StoreRow(2, name, 5), StoreRow(1, Name("/z"), 1)});
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_EQ(stored->rows[0]->position(), 5);
    EXPECT_EQ(ReasonOf(stored->rows[1].status()), "ROW_NOT_LOADED");
    EXPECT_TRUE(stored->done);
    std::string edited = x;
    edited.replace((kLayers + 2) * kLayerBytes, kLayerBytes, layer);
    EXPECT_TRUE(absl::StrJoin(pool_.Get(SequenceRef(name))->pieces(), "") == edited);
  }
}

TEST_F(CppClientTest, AStoreIsOfTheRevisionThatWasLoadedAndAllOrNoneIfSoAsked) {
  Make(Name(), StateOf(1), 3);
  const std::unique_ptr<Arena> arena = OpenArena({.rows = 2});
  ASSERT_NE(arena, nullptr);
  ASSERT_TRUE(arena->Load({LoadRow(0, SequenceRef(Name())), LoadRow(1, SequenceRef(Name()))}).ok());
  Make(Name(), StateOf(2), 4);
  const auto stored = arena->Store({StoreRow(0, Name(), 5), StoreRow(1, Name("/other"), 5)}, /*all_or_none=*/true);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_FALSE(stored->done);
  EXPECT_EQ(ReasonOf(stored->rows[0].status()), "REVISION_MISMATCH");
  EXPECT_EQ(ReasonOf(stored->rows[1].status()), "BATCH_ABORTED");
  EXPECT_EQ(ReasonOf(pool_.Describe(SequenceRef(Name("/other"))).status()), "NEVER_CREATED");
  v1::LoadItem again = LoadRow(1, SequenceRef(Name()));
  again.set_position(3);
  again.set_row_unmodified(true);
  const auto loaded = arena->Load({again});
  ASSERT_TRUE(loaded.ok() && loaded->rows[0].ok());
  EXPECT_FALSE(loaded->rows[0]->copied());
  EXPECT_EQ(ReasonOf(arena->Load({LoadRow(2, SequenceRef(Name()))}).status()), "ROW_OUT_OF_RANGE");
}

TEST_F(CppClientTest, RanksStoreAVersionTogetherAndEachLoadsItsPart) {
  v1::RegisterLayoutRequest request;
  request.set_alias("cpp ranks");
  v1::LayoutPreset& preset = *request.mutable_preset();
  preset.set_model_id("cpp ranks");
  preset.mutable_rwkv7()->set_layers(1);
  preset.mutable_rwkv7()->set_hidden_size(8);
  preset.mutable_rwkv7()->set_head_size(2);
  ASSERT_TRUE(pool_.RegisterLayout(request).ok());
  constexpr size_t kShift = 16, kMatrices = 64, kPart = kMatrices / 2;  // bytes; two of the four heads
  std::vector<std::unique_ptr<Arena>> ranks;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    ArenaOptions options{.rows = 1, .direct = true};
    options.view.set_tp_size(2);
    options.view.set_tp_rank(rank);
    auto arena = pool_.OpenArena("cpp ranks", options);
    ASSERT_TRUE(arena.ok()) << arena.status();
    ranks.push_back(*std::move(arena));
  }
  const std::string state = StateOf(1, kShift + kMatrices + kShift);
  v1::StoreItem item = StoreRow(0, Name(), 5);
  item.set_whole_row(true);
  const auto refused = ranks[0]->Store({item});
  EXPECT_EQ(ReasonOf(refused.status()), "MISSING_FIELD");
  EXPECT_EQ(GetErrorDetail(refused.status()).field, "items[0].request_id");
  item.set_request_id("prefill");
  for (uint32_t rank = 0; rank < 2; ++rank) {
    const Arena& arena = *ranks[rank];
    state.copy(LayerOf(arena, "att_shift", 0, 0), kShift, 0);
    state.copy(LayerOf(arena, "wkv", 0, 0), kPart, kShift + rank * kPart);
    state.copy(LayerOf(arena, "ffn_shift", 0, 0), kShift, kShift + kMatrices);
    if (rank == 1) item.set_attachment("logits");
    const auto stored = ranks[rank]->Store({item});
    ASSERT_TRUE(stored.ok() && stored->rows[0].ok()) << stored.status();
    EXPECT_EQ(stored->parts_missing, std::vector<uint32_t>{1 - rank});
    EXPECT_EQ(stored->rows[0]->position(), rank == 1 ? 5 : 0);
  }
  const auto got = pool_.Get(SequenceRef(Name()));
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(absl::StrJoin(got->pieces(), "") == state);
  EXPECT_EQ(got->attachment(), "logits");
  for (uint32_t rank = 0; rank < 2; ++rank) {
    const Arena& arena = *ranks[rank];
    std::memset(LayerOf(arena, "wkv", 0, 0), 0x5a, kPart);
    const auto loaded = ranks[rank]->Load({LoadRow(0, SequenceRef(Name()))});
    ASSERT_TRUE(loaded.ok() && loaded->rows[0].ok());
    EXPECT_TRUE(std::string(LayerOf(arena, "wkv", 0, 0), kPart) == state.substr(kShift + rank * kPart, kPart));
  }
}

TEST_F(CppClientTest, ArenasAreRefusedWithTheDaemonsReason) {
  EXPECT_EQ(ReasonOf(pool_.OpenArena("nobody", {}).status()), "LAYOUT_UNKNOWN");
  ArenaOptions options;
  options.rows = 60;
  EXPECT_EQ(ReasonOf(pool_.OpenArena("cpp", options).status()), "ARENA_TOO_LARGE");
  options.rows = 0;
  EXPECT_EQ(ReasonOf(pool_.OpenArena("cpp", options).status()), "INVALID_OPTION");
}

TEST_F(CppClientTest, AClosedArenaGivesItsMemoryBackAtOnce) {
  for (int i = 0; i < 8; ++i) {
    // Two of them would be more than the daemon has.
    const std::unique_ptr<Arena> arena = OpenArena({.rows = 12});
    ASSERT_NE(arena, nullptr);
  }
}

TEST_F(CppClientTest, LaneAndMessageGiveTheSameAnswers) {
  const Pool lane = ConnectLane();
  const std::string first = StateOf(1), second = StateOf(2);
  std::vector<v1::SetRequest> requests(8);
  requests[1].set_attachment(std::string(70'000, 'a'));
  requests[2].set_exactness(v1::LOSSY);
  requests[3].mutable_options()->set_durability(v1::SYNC);
  requests[4].mutable_options()->set_durability(v1::VOLATILE);
  requests[5].mutable_options()->mutable_ttl()->set_seconds(500);
  requests[6].mutable_options()->set_max_history(3);
  requests[7].set_if_revision(0);
  for (size_t i = 0; i < requests.size(); ++i) {
    std::vector<std::string> told[2];
    for (const Pool* pool : {&lane, &pool_}) {
      v1::SetRequest request = requests[i];
      request.set_sequence(Name(absl::StrCat("/", i, pool == &lane ? "/lane" : "/message")));
      request.set_layout("cpp");
      request.set_position(4);
      const absl::string_view view = first;
      const auto set = pool->Set(request, {view.substr(0, 77), view.substr(77)});
      ASSERT_TRUE(set.ok()) << set.status();
      request.set_position(9);
      if (request.has_if_revision()) request.set_if_revision(set->revision());
      const auto again = pool->Set(request, {second});
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_GT(again->revision(), set->revision());
      const auto state = pool->Get(SequenceRef(request.sequence()));
      ASSERT_TRUE(state.ok()) << state.status();
      EXPECT_TRUE(absl::StrJoin(state->pieces(), "") == second);
      std::string room(kStateBytes, '\0');
      v1::GetRequest get;
      *get.mutable_name() = SequenceRef(request.sequence());
      get.set_omit_attachment(true);
      const auto into = pool->GetInto(get, absl::MakeSpan(room.data(), room.size()));
      ASSERT_TRUE(into.ok()) << into.status();
      EXPECT_TRUE(room == second);
      EXPECT_EQ(into->attachment(), "");
      told[pool == &lane] = {Told(*set),
                             Told(*again),
                             Told(state->info()),
                             Told(into->info()),
                             state->attachment(),
                             std::string(state->data_checksum()),
                             absl::StrCat(into->data_bytes()),
                             into->data_checksum()};
    }
    EXPECT_EQ(told[0], told[1]) << requests[i].ShortDebugString();
  }
}

// Calls that fail, through `other` and in messages.
void CppClientTest::ExpectSameErrors(const Pool& other) {
  const Pool messages = Connect(64 << 20, false, false);
  const std::string bytes = StateOf(1);
  const std::string layout = other.GetLayout("cpp")->fingerprint();
  const auto get = [&](const Pool& pool, const v1::GetRequest& request) { return pool.Get(request).status(); };
  const auto set = [&](const Pool& pool, const v1::SetRequest& request) { return pool.Set(request, {bytes}).status(); };
  std::vector<std::string> told[2];
  for (const Pool* pool : {&other, &messages}) {
    const std::string name = Name(pool == &other ? "/other" : "/message");
    const auto made = pool->Set(name, layout, 4, bytes);
    ASSERT_TRUE(made.ok()) << made.status();
    std::vector<absl::Status> errors;
    v1::GetRequest request;
    *request.mutable_name() = SequenceRef(name + "/never");
    errors.push_back(get(*pool, request));
    *request.mutable_name() = SnapshotRef(name);
    errors.push_back(get(*pool, request));
    *request.mutable_name() = SequenceRef(name + "//");
    errors.push_back(get(*pool, request));
    *request.mutable_name() = SequenceRef(name);
    request.set_position(5);
    errors.push_back(get(*pool, request));
    request.clear_position();
    request.set_version_id(uint64_t{1} << 50);
    errors.push_back(get(*pool, request));
    request.clear_version_id();
    request.set_layout(std::string(64, '0'));
    errors.push_back(get(*pool, request));
    std::string room(5, '\0');
    request.clear_layout();
    errors.push_back(pool->GetInto(request, absl::MakeSpan(room.data(), room.size())).status());

    v1::SetRequest write;
    write.set_sequence(name);
    write.set_layout(layout);
    write.set_if_revision(0);
    errors.push_back(set(*pool, write));
    write.clear_if_revision();
    write.set_position(-1);
    errors.push_back(set(*pool, write));
    write.set_position(5);
    write.set_checksum(std::string(16, '0'));
    errors.push_back(set(*pool, write));
    write.clear_checksum();
    write.set_attachment(std::string(3 << 20, 'a'));
    errors.push_back(set(*pool, write));
    write.clear_attachment();
    write.mutable_options()->set_max_history(1'000'000);
    errors.push_back(set(*pool, write));
    write.clear_options();
    write.clear_layout();
    write.set_sequence(name + "/never");
    errors.push_back(set(*pool, write));
    for (const absl::Status& error : errors) {
      EXPECT_FALSE(error.ok());
      told[pool == &other].push_back(
          absl::StrReplaceAll(Told(error, name), {{absl::StrCat(made->revision()), "REVISION"}}));
    }
    EXPECT_EQ(pool->Describe(SequenceRef(name))->revision(), made->revision());
  }
  EXPECT_EQ(told[0], told[1]);
}

TEST_F(CppClientTest, LaneAndMessageGiveTheSameErrors) { ExpectSameErrors(ConnectLane()); }

TEST_F(CppClientTest, LaneGoesOnAfterARestart) {
  if (getenv("STATEPOOL_RESTARTS") == nullptr) GTEST_SKIP() << "nobody restarts the daemon";
  const Pool lane = ConnectLane();
  v1::SetRequest request;
  request.set_sequence(Name());
  request.set_layout("cpp");
  request.mutable_options()->set_durability(v1::SYNC);
  for (uint32_t i = 0; i < 3; ++i) {
    request.set_position(i);
    const std::string bytes = StateOf(i);
    const auto set = lane.Set(request, {bytes});
    ASSERT_TRUE(set.ok()) << set.status();
    std::puts("restart");
    std::fflush(stdout);
    ASSERT_NE(std::getchar(), EOF);
    const auto state = lane.Get(SequenceRef(Name()));
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_TRUE(absl::StrJoin(state->pieces(), "") == bytes);
  }
}

class DirectTest : public CppClientTest {
 protected:
  void SetUp() override {
    if (!IsDirect()) GTEST_SKIP() << "the daemon has no direct ways";
  }

  // As /proc/self/maps shows the memory at this address: its permissions and name.
  static std::string MappingOf(const char* address) {
    std::ifstream maps("/proc/self/maps");
    const auto at = reinterpret_cast<uintptr_t>(address);
    for (std::string line; std::getline(maps, line);) {
      uintptr_t begin = 0, end = 0;
      char permissions[5] = {}, name[200] = {};
      std::sscanf(line.c_str(), "%lx-%lx %4s %*s %*s %*s %199s", &begin, &end, permissions, name);
      if (begin <= at && at < end) return absl::StrCat(permissions, " ", name);
    }
    return "nothing";
  }

  static bool IsTheDaemonsMemory(const StateView& view) {
    const std::string first = MappingOf(view.bytes().data());
    return absl::StrContains(first, "s /memfd:") && first == MappingOf(view.bytes().data() + view.size() - 1);
  }

  const Pool inline_ = Connect(64 << 20, false, false);
};

TEST_F(DirectTest, AViewIsTheDaemonsMemoryAndCannotBeWrittenTo) {
  const std::string bytes = StateOf(1);
  v1::SetRequest request;
  request.set_sequence(Name());
  request.set_layout("cpp");
  request.set_position(3);
  request.set_attachment("logits");
  ASSERT_TRUE(inline_.Set(request, {bytes}).ok());
  std::optional<StateView> moved;
  {
    const Pool pool = Connect(64 << 20);
    auto view = pool.GetView(SequenceRef(Name()));
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_TRUE(IsTheDaemonsMemory(*view)) << MappingOf(view->bytes().data());
    EXPECT_EQ(view->info().position(), 3);
    EXPECT_EQ(view->attachment(), "logits");
    EXPECT_EQ(view->size(), kStateBytes);
    moved = *std::move(view);
  }
  EXPECT_TRUE(moved->bytes() == bytes) << "it outlives the pool";
  EXPECT_TRUE(moved->Verify().ok());
  const auto page = reinterpret_cast<uintptr_t>(moved->bytes().data()) & ~uintptr_t{4095};
  EXPECT_TRUE(absl::StartsWith(MappingOf(moved->bytes().data()), "r--s"));
  if (pool_.GetCapabilities()->devices(0).name() == "host") {  // others have no seals
    EXPECT_EQ(mprotect(reinterpret_cast<void*>(page), 4096, PROT_READ | PROT_WRITE), -1);
  }
}

TEST_F(DirectTest, WhatAViewShowsStaysWhateverBecomesOfTheName) {
  const std::string bytes = StateOf(1);
  Make(Name(), bytes, 1);
  const auto view = pool_.GetView(SequenceRef(Name()));
  const auto again = pool_.GetView(SequenceRef(Name()));
  ASSERT_TRUE(view.ok() && again.ok()) << view.status();
  EXPECT_TRUE(IsTheDaemonsMemory(*view));
  EXPECT_EQ(view->bytes().data(), again->bytes().data());
  for (uint32_t i = 0; i < 80; ++i) {  // more than the hot budget
    const std::string other = StateOf(100 + i);
    ASSERT_TRUE((i % 2 ? pool_ : inline_).Set(Name(absl::StrCat("/", i % 60)), "cpp", i, other).ok());
  }
  Make(Name(), StateOf(2), 2);
  EXPECT_TRUE(view->bytes() == bytes);
  EXPECT_TRUE(view->Verify().ok());
  ASSERT_TRUE(pool_.Delete(SequenceRef(Name())).ok());
  EXPECT_TRUE(view->bytes() == bytes);
  for (uint32_t i = 20; i < 80; ++i) {
    const auto state = (i % 3 ? pool_ : inline_).Get(SequenceRef(Name(absl::StrCat("/", i % 60))));
    ASSERT_TRUE(state.ok()) << state.status();
    ASSERT_TRUE(absl::StrJoin(state->pieces(), "") == StateOf(100 + i)) << i;
  }
}

TEST_F(DirectTest, AViewOfWhatCannotBePinnedIsACopy) {
  std::vector<StateView> views;
  size_t copies = 0;
  for (uint32_t i = 0; i < 40; ++i) {  // of 2.4 MB; 64 MiB may be pinned
    Make(Name(absl::StrCat("/", i)), StateOf(i));
    auto view = pool_.GetView(SequenceRef(Name(absl::StrCat("/", i))));
    ASSERT_TRUE(view.ok()) << view.status();
    if (!IsTheDaemonsMemory(*view)) ++copies;
    views.push_back(*std::move(view));
  }
  EXPECT_GT(copies, 0u);
  EXPECT_LT(copies, 30u);
  for (uint32_t i = 0; i < 40; ++i) EXPECT_TRUE(views[i].bytes() == StateOf(i)) << i;
  views.clear();
  const auto view = pool_.GetView(SequenceRef(Name("/39")));
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_TRUE(IsTheDaemonsMemory(*view)) << "pins were given back";
  v1::GetRequest part;
  *part.mutable_name() = SequenceRef(Name("/39"));
  part.mutable_select()->add_tensors("b");
  const auto selected = pool_.GetView(part);
  ASSERT_TRUE(selected.ok()) << selected.status();
  EXPECT_TRUE(selected->bytes() == view->bytes().substr(kLayers * kLayerBytes));
  EXPECT_TRUE(selected->Verify().ok());
}

TEST_F(DirectTest, DirectWaysAndMessagesGiveTheSameAnswers) {
  const std::string first = StateOf(1), second = StateOf(2);
  std::vector<v1::SetRequest> requests(7);
  requests[1].set_request_id("mine");
  requests[2].set_exactness(v1::LOSSY);
  requests[3].mutable_options()->set_durability(v1::SYNC);
  requests[4].set_checksum(ChecksumOfPieces({first}));
  requests[5].mutable_options()->mutable_ttl()->set_seconds(500);
  requests[6].set_if_revision(0);
  for (size_t i = 0; i < requests.size(); ++i) {
    std::vector<std::string> told[2];
    for (const Pool* pool : {&pool_, &inline_}) {
      const Pool* const other = pool == &pool_ ? &inline_ : &pool_;
      v1::SetRequest request = requests[i];
      request.set_sequence(Name(absl::StrCat("/", i, pool == &pool_ ? "/direct" : "/message")));
      request.set_layout("cpp");
      request.set_position(4);
      const absl::string_view view = first;
      const auto set = pool->Set(request, {view.substr(0, 77), view.substr(77)});
      ASSERT_TRUE(set.ok()) << set.status();
      if (!request.request_id().empty()) {
        const auto replayed = other->Set(request, {first});
        ASSERT_TRUE(replayed.ok()) << replayed.status();
        EXPECT_TRUE(replayed->replayed() && replayed->revision() == set->revision());
      }
      request.set_position(9);
      request.clear_checksum();
      request.clear_request_id();
      request.clear_layout();
      if (request.has_if_revision()) request.set_if_revision(set->revision());
      const auto again = pool->Set(request, {second});
      ASSERT_TRUE(again.ok()) << again.status();
      told[pool == &pool_] = {Told(*set), Told(*again)};
      for (const Pool* reader : {pool, other}) {
        const auto state = reader->Get(SequenceRef(request.sequence()));
        ASSERT_TRUE(state.ok()) << state.status();
        EXPECT_TRUE(absl::StrJoin(state->pieces(), "") == second);
        std::string room(kStateBytes, '\0');
        v1::GetRequest get;
        *get.mutable_name() = SequenceRef(request.sequence());
        const auto into = reader->GetInto(get, absl::MakeSpan(room.data(), room.size()));
        ASSERT_TRUE(into.ok()) << into.status();
        EXPECT_TRUE(room == second);
        for (const std::string& text : {Told(state->info()), Told(into->info()), std::string(state->data_checksum()),
                                        absl::StrCat(into->data_bytes()), into->data_checksum()}) {
          if (reader == pool) told[pool == &pool_].push_back(text);
        }
      }
    }
    EXPECT_EQ(told[0], told[1]) << requests[i].ShortDebugString();
  }
}

TEST_F(DirectTest, DirectWaysAndMessagesGiveTheSameErrors) { ExpectSameErrors(Connect(64 << 20)); }

TEST_F(DirectTest, RowsAreGatheredAndScatteredAsTheDaemonWould) {
  v1::Layout layout;
  layout.set_model_id(Name());
  for (const auto& [name, kind] : {std::pair{"conv", v1::CONV}, {"ssm", v1::RECURRENT}}) {
    v1::TensorSpec& tensor = *layout.add_tensors();
    tensor.set_name(name);
    tensor.set_kind(kind);
    for (uint32_t layer = 0; layer < 3; ++layer) tensor.add_layers(layer);
    tensor.set_dtype(kind == v1::CONV ? v1::BFLOAT16 : v1::FLOAT32);
    for (const auto& [axis, size] :
         kind == v1::CONV ? std::vector<std::pair<std::string, uint64_t>>{{"tap", 3}, {"c", 77}}
                          : std::vector<std::pair<std::string, uint64_t>>{{"h", 5}, {"k", 200}, {"v", 31}}) {
      tensor.add_axes()->set_name(axis);
      tensor.mutable_axes()->rbegin()->set_size(size);
    }
  }
  const auto info = pool_.RegisterLayout(layout, Name());
  ASSERT_TRUE(info.ok()) << info.status();
  const std::string x = StateOf(1, info->state_bytes()), y = StateOf(2, info->state_bytes());
  ASSERT_TRUE(pool_.Set(Name("/x"), Name(), 1, x).ok() && inline_.Set(Name("/y"), Name(), 2, y).ok());
  ArenaOptions options;
  options.direct = true;
  options.rows = 3;
  options.steps = 2;
  options.view.set_layers(v1::View::LAYER_MAJOR);
  options.view.set_conv_padding(1);
  options.view.set_num_spec(2);
  v1::AxisOrder& order = *options.view.add_axis_orders();
  order.set_tensor("ssm");
  for (const char* axis : {"v", "h", "k"}) order.add_axes(axis);
  std::vector<std::string> memory[2];
  for (const Pool* pool : {&pool_, &inline_}) {
    std::vector<std::string>& seen = memory[pool == &pool_];
    const auto arena = pool->OpenArena(Name(), options);
    ASSERT_TRUE(arena.ok()) << arena.status();
    const ArenaTensor& first = (*arena)->tensors().front();
    char* const begin = static_cast<char*>(first.data);
    const size_t bytes = (*arena)->bytes() - 4096;
    std::memset(begin, 0x55, bytes);
    v1::LoadItem missing = LoadRow(1, SequenceRef(Name("/nobody")));
    const auto loaded =
        (*arena)->Load({LoadRow(2, SequenceRef(Name("/x"))), missing, LoadRow(0, SequenceRef(Name("/x")))});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_TRUE(loaded->rows[0]->copied() && !loaded->rows[0]->has_slot());
    EXPECT_EQ(ReasonOf(loaded->rows[1].status()), "NEVER_CREATED");
    seen.emplace_back(begin, bytes);
    ASSERT_TRUE((*arena)->Load({LoadRow(1, SequenceRef(Name("/y")))}).ok());
    v1::LoadItem same = LoadRow(1, SequenceRef(Name("/y")));
    same.set_row_unmodified(true);
    const auto held = (*arena)->Load({same});
    ASSERT_TRUE(held.ok()) << held.status();
    EXPECT_FALSE(held->rows[0]->copied());
    seen.emplace_back(begin, bytes);
    // Bytes that no Load wrote are in later steps.
    for (const uint32_t accepted : {1u, 2u}) {
      const std::string name = Name(absl::StrCat(pool == &pool_ ? "/direct/" : "/isolated/", accepted));
      v1::StoreItem item = StoreRow(1, name, 5), other = StoreRow(2, name + "/other", 6);
      item.set_accepted_length(accepted);
      const auto stored = (*arena)->Store({item, other});
      ASSERT_TRUE(stored.ok()) << stored.status();
      for (const auto& row : stored->rows) ASSERT_TRUE(row.ok()) << row.status();
      for (const std::string& written : {name, name + "/other"}) {
        const auto state = inline_.Get(SequenceRef(written));
        ASSERT_TRUE(state.ok()) << state.status();
        seen.push_back(absl::StrJoin(state->pieces(), ""));
      }
    }
    EXPECT_TRUE(seen[2] == y && seen[3] == x && seen[4] != y && seen[5] == x);
    v1::StoreItem wrong = StoreRow(1, Name("/wrong"), 7);
    wrong.set_accepted_length(3);
    EXPECT_EQ(ReasonOf((*arena)->Store({wrong})->rows[0].status()), "INVALID_ACCEPTED_LENGTH");
    wrong.set_accepted_length(1);
    wrong.set_attachment("logits");
    EXPECT_TRUE((*arena)->Store({wrong})->rows[0].ok());
    EXPECT_EQ(inline_.Get(SequenceRef(Name("/wrong")))->attachment(), "logits");

    std::iota(begin, begin + bytes, '\0');
    v1::AdvanceItem path;
    path.set_row(1);
    path.add_path(1);
    const auto moved = (*arena)->Advance({AdvanceRow(0, 2), path, AdvanceRow(2, 0)}, {.skip_none = true});
    ASSERT_TRUE(moved.ok()) << moved.status();
    EXPECT_EQ(*moved->rows[0], v1::AdvancedRow::MOVED);
    EXPECT_EQ(*moved->rows[1], v1::AdvancedRow::MOVED);
    EXPECT_EQ(*moved->rows[2], v1::AdvancedRow::SKIPPED_NONE);
    seen.emplace_back(begin, bytes);
    const auto refused = (*arena)->Advance({AdvanceRow(0, 3), AdvanceRow(1, 2)});
    ASSERT_TRUE(refused.ok()) << refused.status();
    EXPECT_EQ(ReasonOf(refused->rows[0].status()), "INVALID_ACCEPTED_LENGTH");
    EXPECT_EQ(*refused->rows[1], v1::AdvancedRow::MOVED);
    EXPECT_EQ(ReasonOf((*arena)->Advance({AdvanceRow(0, 1), AdvanceRow(0, 1)}).status()), "DUPLICATE_ROW");
    v1::StoreItem advanced = StoreRow(2, Name(pool == &pool_ ? "/direct/a" : "/isolated/a"), 8),
                  none = StoreRow(0, "n", 8);
    advanced.set_accepted_length(2);
    advanced.set_advance(true);
    none.set_accepted_length(0);
    none.set_skip_none(true);
    for (const bool alone : {true, false}) {  // of both together the daemon copies
      advanced.set_position(alone ? 8 : 9);
      const auto stored =
          alone ? (*arena)->Store({advanced}) : (*arena)->Store(std::vector<v1::StoreItem>{advanced, none});
      ASSERT_TRUE(stored.ok()) << stored.status();
      ASSERT_TRUE(stored->rows[0].ok()) << stored->rows[0].status();
      EXPECT_EQ(stored->skipped, alone ? std::vector<bool>{false} : (std::vector<bool>{false, true}));
      seen.emplace_back(begin, bytes);
      seen.push_back(absl::StrJoin(inline_.Get(SequenceRef(advanced.sequence()))->pieces(), ""));
    }
    // Align mode: of two tokens that end at 9 the first one's state is at 8. By an id of the caller's, again.
    std::iota(begin, begin + bytes, '\1');
    v1::StoreItem aligned = StoreRow(2, Name(pool == &pool_ ? "/direct/8" : "/isolated/8"), 9);
    aligned.set_accepted_length(2);
    aligned.set_align(8);
    for (const char* id : {"", "once", "once"}) {
      aligned.set_advance(!std::string(id).empty());
      aligned.set_request_id(id);
      const auto stored = (*arena)->Store({aligned});
      ASSERT_TRUE(stored.ok() && stored->rows[0].ok()) << stored.status() << stored->rows[0].status();
      EXPECT_EQ(stored->rows[0]->position(), 8);
      seen.emplace_back(begin, bytes);
      seen.push_back(absl::StrJoin(inline_.Get(SequenceRef(aligned.sequence()))->pieces(), ""));
    }
    EXPECT_TRUE(seen[seen.size() - 2] == seen[seen.size() - 4]) << "the row is not moved again";
    EXPECT_TRUE(seen[seen.size() - 4] != seen[seen.size() - 6]) << "but it was once";
    aligned.set_position(16 + 7);
    aligned.set_request_id("skipped");
    EXPECT_EQ((*arena)->Store({aligned})->skipped, std::vector<bool>{true});
    seen.emplace_back(begin, bytes);
  }
  EXPECT_TRUE(memory[0] == memory[1]);
}

TEST_F(DirectTest, AStateThatIsNotWhatItsWriterSaidIsFoundWhenItLeaves) {
  const std::string fingerprint = pool_.GetLayout("cpp")->fingerprint();
  const auto stub = v1::StatePool::NewStub(pool_.channel());
  v1::DirectLease table;
  grpc::ClientContext contexts[3];
  ASSERT_TRUE(stub->OpenDirect(&contexts[0], v1::OpenDirectRequest(), &table).ok());
  absl::StatusOr<Descriptor> socket = TakeDirectLease(table, absl::Now() + absl::Seconds(10));
  ASSERT_TRUE(socket.ok()) << socket.status();
  const auto lease = DirectLease::Make(table.lease(), *std::move(socket), *pool_.GetCapabilities());
  ASSERT_NE(lease, nullptr);
  const auto grants = lease->Take(pool_, fingerprint, kStateBytes, 1, absl::Now() + absl::Seconds(10));
  ASSERT_TRUE(grants.ok()) << grants.status();
  const std::string bytes = StateOf(1);
  std::memcpy(grants->front().data(), bytes.data(), bytes.size());
  v1::SetRequest request;
  request.set_sequence(Name());
  request.set_layout("cpp");
  request.set_lease(table.lease());
  request.set_grant(grants->front().slot.id());
  request.set_checksum(ChecksumOfPieces({StateOf(2)}));
  v1::NameInfo info;
  ASSERT_TRUE(stub->Set(&contexts[1], request, &info).ok());
  v1::FlushRequest flush;
  *flush.add_names() = SequenceRef(Name());
  EXPECT_EQ(ReasonOf(pool_.Flush(flush).status()), "CORRUPT");
  request.set_request_id("again");
  EXPECT_EQ(ReasonOf(FromGrpcStatus(stub->Set(&contexts[2], request, &info))), "GRANT_UNKNOWN") << "it is used up";
  ASSERT_TRUE(pool_.Delete(SequenceRef(Name())).ok());
}

TEST_F(DirectTest, ViewsOutliveARestartAndAfterItAllGoesOn) {
  if (getenv("STATEPOOL_RESTARTS") == nullptr) GTEST_SKIP() << "nobody restarts the daemon";
  const std::string bytes = StateOf(1);
  v1::SetRequest request;
  request.set_sequence(Name());
  request.set_layout("cpp");
  request.mutable_options()->set_durability(v1::SYNC);
  ASSERT_TRUE(pool_.Set(request, {bytes}).ok());
  const auto view = pool_.GetView(SequenceRef(Name()));
  ASSERT_TRUE(view.ok()) << view.status();
  ASSERT_TRUE(IsTheDaemonsMemory(*view));
  for (uint32_t i = 2; i < 4; ++i) {
    std::puts("restart");
    std::fflush(stdout);
    ASSERT_NE(std::getchar(), EOF);
    EXPECT_TRUE(view->bytes() == bytes);
    const auto now = pool_.GetView(SequenceRef(Name()));
    ASSERT_TRUE(now.ok()) << now.status();
    EXPECT_TRUE(now->bytes() == StateOf(i - 1));
    const std::string next = StateOf(i);
    ASSERT_TRUE(pool_.Set(request, {next}).ok());
    // The daemon is there again, and with it the direct ways.
    bool is_direct = false;
    for (int attempt = 0; attempt < 300 && !is_direct; ++attempt) {
      const auto found = pool_.GetView(SequenceRef(Name()));
      ASSERT_TRUE(found.ok() && found->bytes() == next) << found.status();
      is_direct = IsTheDaemonsMemory(*found);
      if (!is_direct) absl::SleepFor(absl::Milliseconds(10));
    }
    EXPECT_TRUE(is_direct);
  }
  EXPECT_TRUE(view->bytes() == bytes);
}

TEST_F(CppClientTest, AfterARestartAnArenaIsAtTheSameAddressesAndItsContentsAreGone) {
  if (getenv("STATEPOOL_RESTARTS") == nullptr) GTEST_SKIP() << "nobody restarts the daemon";
  const std::string bytes = StateOf(1);
  Make(Name(), bytes, 3);
  ASSERT_TRUE(pool_.Flush({}).ok());
  int reopened = 0;
  ArenaOptions options;
  options.rows = 2;
  options.on_reopen = [&](Arena&) { ++reopened; };
  const std::unique_ptr<Arena> arena = OpenArena(options);
  ASSERT_NE(arena, nullptr);
  ASSERT_TRUE(arena->Load({LoadRow(0, SequenceRef(Name()))}).ok());
  char* const first = LayerOf(*arena, "a", 0, 0);
  const std::string incarnation = arena->incarnation();
  std::puts("restart");
  std::fflush(stdout);
  ASSERT_NE(std::getchar(), EOF);

  const absl::Status gone = arena->Store({StoreRow(0, Name(), 4)}).status();
  EXPECT_EQ(ReasonOf(gone), "CONTENTS_GONE") << gone;
  EXPECT_EQ(GetErrorDetail(gone).metadata["incarnation"], arena->incarnation());
  EXPECT_NE(arena->incarnation(), incarnation);
  EXPECT_EQ(reopened, 1);
  EXPECT_EQ(LayerOf(*arena, "a", 0, 0), first);
  EXPECT_TRUE(ImageOf(*arena, 0) == std::string(kStateBytes, '\0'));
  EXPECT_EQ(ReasonOf(arena->Store({StoreRow(0, Name(), 4)})->rows[0].status()), "ROW_NOT_LOADED");
  EXPECT_EQ(pool_.Describe(SequenceRef(Name()))->position(), 3);
  ASSERT_TRUE(arena->Load({LoadRow(0, SequenceRef(Name()))}).ok());
  EXPECT_TRUE(ImageOf(*arena, 0) == bytes);
  EXPECT_TRUE(arena->Store({StoreRow(0, Name(), 4)})->rows[0].ok());
}

}  // namespace
}  // namespace statepool::client
