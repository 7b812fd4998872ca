// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What is beside whole writes of one name: parts of states, versions by id, many reads at once, uses and expiry, many
// deletes, pages, uploads, layouts that go, salt.
#include <future>
#include <thread>

#include "core/store_fixture.h"

namespace statepool {
namespace {

constexpr auto kSync = Durability::kSync;

// Two tensors of 4 and 6 bytes.
class StorePartsTest : public StoreTest {
 protected:
  StorePartsTest() {
    const auto tensor = [](std::string name, uint64_t bytes) {
      return TensorSpec{std::move(name), TensorKind::kOther, {0}, DType::kUInt8, {{"x", bytes}}, {}, {}};
    };
    parts_ = *Layout::Create({"parts", {tensor("a", 4), tensor("b", 6)}});
    EXPECT_TRUE(store_->RegisterLayout(op_, parts_, "p").ok());
  }
  absl::StatusOr<NameInfo> SetPart(const SetRequest& request, const std::string& bytes,
                                   std::optional<Checksum> checksum = {}, absl::string_view attachment = "") {
    const absl::string_view piece(bytes);
    StateBytes state;
    state.pieces = {&piece, 1};
    state.expected_checksum = checksum;
    state.attachment = attachment;
    absl::StatusOr<NameInfo> info = store_->Set(op_, request, state);
    store_->CheckInvariants();
    return info;
  }
  static SetRequest Part(std::optional<uint64_t> if_revision, Select select, int64_t position = 2) {
    return {"s", "", position, {}, if_revision, {}, {}, std::move(select)};
  }
  std::string Bytes(const Source& source) {
    const auto answer = store_->Get(op_, source);
    return answer.ok() ? std::string(answer->pin->bytes()) : ReasonOf(answer.status());
  }
  std::string Bytes() { return Bytes({Seq("s"), {}, ""}); }

  LayoutRef parts_;
};

// ---- parts

TEST_F(StorePartsTest, ASetOfAPartLeavesTheRestAsItWasAndIsEdited) {
  const auto whole = SetPart({"s", "p", 1, {}, {}, {}, {}}, "aaaabbbbbb");
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(whole->version.exactness, Exactness::kExact);
  const auto part = SetPart(Part(whole->revision, {{"b"}, {}}), "BBBBBB", ChecksumOf("BBBBBB"));
  ASSERT_TRUE(part.ok()) << part.status();
  EXPECT_EQ(Bytes(), "aaaaBBBBBB");
  EXPECT_EQ(part->version.exactness, Exactness::kEdited);
  EXPECT_EQ(part->version.parent, whole->version.id);
  EXPECT_EQ(part->version.checksum, ChecksumOf("aaaaBBBBBB"));  // of the whole
  EXPECT_EQ(Bytes({Seq("s"), 1, ""}), "aaaabbbbbb");            // images never change
  SetRequest lossy = Part(part->revision, {{"a"}, {}});
  lossy.exactness = Exactness::kLossy;
  EXPECT_EQ(SetPart(lossy, "AAAA")->version.exactness, Exactness::kLossy);
}

TEST_F(StorePartsTest, ASetOfAPartKeepsTheAttachmentUnlessItBringsOne) {
  const auto attachment = [this] { return std::string(store_->Get(op_, {Seq("s"), {}, ""})->pin->attachment()); };
  const auto whole = SetPart({"s", "p", 1, {}, {}, {}, {}}, "aaaabbbbbb", {}, "logits");
  const auto kept = SetPart(Part(whole->revision, {{"b"}, {}}), "BBBBBB");
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(attachment(), "logits");
  EXPECT_EQ(kept->version.attachment_bytes, 6u);
  const auto brought = SetPart(Part(kept->revision, {{"b"}, {}}), "cccccc", {}, "new");
  EXPECT_EQ(attachment(), "new");
  ASSERT_TRUE(SetPart(Part(brought->revision, {{"b", "a"}, {}}), "aaaadddddd").ok());  // a whole state has its own
  EXPECT_EQ(attachment(), "");
}

TEST_F(StorePartsTest, APartThatIsEverythingIsAWholeState) {
  const auto whole = SetPart({"s", "p", 1, {}, {}, {}, {}}, "aaaabbbbbb");
  const auto all = SetPart(Part(whole->revision, {{"b", "a"}, {0}}), "AAAABBBBBB", ChecksumOf("AAAABBBBBB"));
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->version.exactness, Exactness::kExact);
  EXPECT_EQ(Bytes(), "AAAABBBBBB");
}

TEST_F(StorePartsTest, ARefusedSetOfAPartChangesNothing) {
  EXPECT_REASON(SetPart(Part(0, {{"b"}, {}}), "BBBBBB"), "NEVER_CREATED");  // nothing to be a part of
  const auto whole = SetPart({"s", "p", 1, {}, {}, {}, {}}, "aaaabbbbbb");
  EXPECT_REASON(SetPart(Part({}, {{"b"}, {}}), "BBBBBB"), "MISSING_FIELD");
  EXPECT_REASON(SetPart(Part(whole->revision - 1, {{"b"}, {}}), "BBBBBB"), "REVISION_MISMATCH");
  EXPECT_REASON(SetPart(Part(whole->revision, {{"c"}, {}}), "BBBBBB"), "INVALID_OPTION");
  EXPECT_REASON(SetPart(Part(whole->revision, {{"b"}, {}}), "BBBBB"), "BYTES_LENGTH_MISMATCH");
  EXPECT_REASON(SetPart(Part(whole->revision, {{"b"}, {}}), "aaaaBBBBBB"), "BYTES_LENGTH_MISMATCH");
  EXPECT_REASON(SetPart(Part(whole->revision, {{"b"}, {}}), "BBBBBB", 7), "CHECKSUM_MISMATCH");
  SetRequest exact = Part(whole->revision, {{"b"}, {}});
  exact.exactness = Exactness::kExact;
  EXPECT_REASON(SetPart(exact, "BBBBBB"), "INVALID_OPTION");
  EXPECT_EQ(Bytes(), "aaaabbbbbb");
  EXPECT_EQ(store_->Describe(op_, Seq("s"))->revision, whole->revision);
  EXPECT_EQ(LiveImages(), 1);
}

TEST_F(StorePartsTest, ARetryOfAPartIsReplayedAlthoughItsRevisionIsOverAndTellsOtherBytesApart) {
  const auto whole = SetPart({"s", "p", 1, {}, {}, {}, {}}, "aaaabbbbbb");
  SetRequest part = Part(whole->revision, {{"b"}, {}});
  part.request = {"r", 1};
  const auto first = SetPart(part, "BBBBBB");
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(SetPart({"s", "p", 3, {}, {}, {}, {}}, "ccccdddddd").ok());
  const auto again = SetPart(part, "BBBBBB");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->replayed);
  EXPECT_EQ(again->revision, first->revision);
  EXPECT_REASON(SetPart(part, "BBBBBX"), "REQUEST_ID_REUSED");
  EXPECT_EQ(Bytes(), "ccccdddddd");
}

TEST_F(StorePartsTest, TheBytesOfARequestBelongToItsId) {
  ASSERT_TRUE(Set("a", 1, 'x', {}, {}, {"r", 5}).ok());
  EXPECT_REASON(Set("a", 1, 'y', {}, {}, {"r", 5}), "REQUEST_ID_REUSED");
  EXPECT_TRUE(Set("a", 1, 'x', {}, {}, {"r", 5})->replayed);
  ASSERT_TRUE(Set("a", 2, 'z', With(kSync), {}, {"s", 6}).ok());
  LosePower();
  EXPECT_TRUE(Set("a", 2, 'z', With(kSync), {}, {"s", 6})->replayed);
  EXPECT_REASON(Set("a", 2, 'Z', With(kSync), {}, {"s", 6}), "REQUEST_ID_REUSED");
}

// ---- versions and many reads

TEST_F(StorePartsTest, AVersionIsFoundByItsIdWhileTheRingHasIt) {
  NameOptions two;
  two.max_history = 2;
  const auto first = Set("a", 5, '1', two);
  const auto second = Set("a", 5, '2', two);  // the same position twice: only the id tells them apart
  EXPECT_EQ(Bytes({Seq("a"), {}, "", first->version.id})[0], '1');
  EXPECT_EQ(Bytes({Seq("a"), 5, "", first->version.id})[0], '1');
  EXPECT_EQ(Bytes({Seq("a"), 5, ""})[0], '2');
  EXPECT_EQ(Bytes({Seq("a"), 6, "", first->version.id}), "POSITION_MISMATCH");
  ASSERT_TRUE(Fork(Seq("a"), {"c"}).ok());
  EXPECT_EQ(Bytes({Seq("c"), {}, "", second->version.id})[0], '2');  // a fork shares versions
  ASSERT_TRUE(Set("a", 7, '3', two).ok());
  EXPECT_EQ(Bytes({Seq("a"), {}, "", first->version.id}), "VERSION_MISMATCH");
  EXPECT_EQ(Bytes({Seq("a"), {}, "", 12345}), "VERSION_MISMATCH");
  EXPECT_EQ(GetErrorDetail(store_->Get(op_, {Seq("a"), {}, "", 12345}).status()).field, "version_id");
  EXPECT_EQ(store_->stats().misses["VERSION_MISMATCH"], 3u);
}

TEST_F(StorePartsTest, ManyReadsHaveAnAnswerEachAndCountAsUses) {
  ASSERT_TRUE(Set("a", 1, 'x', Ttl(absl::Seconds(10))).ok());
  ASSERT_TRUE(Set("b", 1, 'y').ok());
  clock_.Advance(absl::Seconds(8));
  const std::vector<Source> sources = {{Seq("a"), {}, ""},      {Seq("absent"), {}, ""}, {Seq("b"), 9, ""},
                                       {Seq("b"), {}, "other"}, {Seq("b"), {}, ""},      {Seq("a"), {}, ""}};
  const auto all = [](absl::Span<absl::StatusOr<GetAnswer>>) { return absl::OkStatus(); };
  const auto read = store_->GetMany(op_, sources, all);
  ASSERT_TRUE(read.ok());
  const auto& answers = *read;
  ASSERT_EQ(answers.size(), 6u);
  EXPECT_EQ(answers[0]->pin->bytes()[0], 'x');
  EXPECT_REASON(answers[1], "NEVER_CREATED");
  EXPECT_REASON(answers[2], "POSITION_MISMATCH");
  EXPECT_REASON(answers[3], "LAYOUT_MISMATCH");
  EXPECT_EQ(answers[4]->pin->bytes()[0], 'y');
  EXPECT_EQ(answers[5]->pin->bytes()[0], 'x');
  clock_.Advance(absl::Seconds(8));
  EXPECT_TRUE(store_->Describe(op_, Seq("a")).ok());
  EXPECT_TRUE(store_->GetMany(op_, {}, all)->empty());
}

TEST_F(StorePartsTest, NothingIsReadOfWhatMayNotBe) {
  ASSERT_TRUE(Set("a", 1, 'x').ok());
  ASSERT_TRUE(Set("b", 1, 'y').ok());
  ASSERT_TRUE(Fork(Seq("a"), {"c"}).ok());
  const std::vector<Source> sources = {{Seq("a"), {}, ""}, {Seq("b"), {}, ""}, {Seq("c"), {}, ""}};
  const int reads = images_->reads;
  const absl::Status refused = store_
                                   ->GetMany(op_, sources,
                                             [](absl::Span<absl::StatusOr<GetAnswer>> found) {
                                               EXPECT_EQ(found[0]->info.version.position, 1);
                                               EXPECT_EQ(found[0]->pin, nullptr);
                                               EXPECT_EQ(found[0]->image, found[2]->image);
                                               EXPECT_NE(found[0]->image, found[1]->image);
                                               return absl::ResourceExhaustedError("too much");
                                             })
                                   .status();
  EXPECT_EQ(refused.message(), "too much");
  EXPECT_EQ(images_->reads, reads);
  const auto one = store_->GetMany(op_, sources, [](absl::Span<absl::StatusOr<GetAnswer>> found) {
    found[0] = absl::ResourceExhaustedError("not this one");
    return absl::OkStatus();
  });
  ASSERT_TRUE(one.ok());
  EXPECT_EQ((*one)[0].status().message(), "not this one");
  EXPECT_EQ((*one)[1]->pin->bytes()[0], 'y');
}

// ---- uses and expiry

TEST_F(StorePartsTest, TouchStartsIdleTimeAnewAndTellsWhenItEnds) {
  const auto info = Set("a", 1, 'x', Ttl(absl::Seconds(10)));
  ASSERT_TRUE(Set("forever", 1, 'x').ok());
  for (int i = 0; i < 3; ++i) {
    clock_.Advance(absl::Seconds(8));
    Reap();
    const auto touched = store_->Touch(op_, Seq("a"));
    ASSERT_TRUE(touched.ok());
    EXPECT_EQ(*touched, clock_.WallNow() + absl::Seconds(10));
  }
  EXPECT_EQ(*store_->Touch(op_, Seq("forever")), absl::InfiniteFuture());
  EXPECT_EQ(info->revision, store_->Describe(op_, Seq("a"))->revision);
  clock_.Advance(absl::Seconds(11));
  EXPECT_REASON(store_->Touch(op_, Seq("a")), "EXPIRED");
  EXPECT_EQ(GetErrorDetail(store_->Touch(op_, Seq("a"), "names[3]").status()).field, "names[3]");
  EXPECT_REASON(store_->Touch(op_, Seq("a//b")), "INVALID_NAME");
}

TEST_F(StorePartsTest, ADeadlineThatComesNearerIsLookedAtInTime) {
  ASSERT_TRUE(Set("a", 1, 'x', Ttl(absl::Hours(1))).ok());
  ASSERT_TRUE(store_->SetTtl(op_, {Seq("a"), Ttl(absl::Seconds(1)), {}}).ok());
  clock_.Advance(absl::Seconds(1));
  Reap();
  EXPECT_EQ(store_->stats().sequences, 0u);
}

TEST_F(StorePartsTest, SetTtlChangesOnlyWhenANameExpires) {
  const auto info = Set("a", 1, 'x', Ttl(absl::Seconds(10)));
  const auto set = store_->SetTtl(op_, {Seq("a"), Ttl(absl::Hours(1)), info->revision});
  store_->CheckInvariants();
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(set->revision, info->revision);
  EXPECT_EQ(set->version.id, info->version.id);
  EXPECT_EQ(set->ttl, absl::Hours(1));
  clock_.Advance(absl::Minutes(30));
  Reap();
  EXPECT_EQ(*Get(Seq("a")), 'x');
  NameOptions never;
  never.never_expire = true;
  ASSERT_TRUE(store_->SetTtl(op_, {Seq("a"), never, {}}).ok());
  clock_.Advance(absl::Hours(100));
  Reap();
  EXPECT_EQ(*Get(Seq("a")), 'x');
  ASSERT_TRUE(store_->SetTtl(op_, {Seq("a"), Ttl(absl::Seconds(1)), {}}).ok());
  EXPECT_REASON(store_->SetTtl(op_, {Seq("a"), never, info->revision + 1}), "REVISION_MISMATCH");
  EXPECT_REASON(store_->SetTtl(op_, {Seq("a"), Ttl(absl::ZeroDuration()), {}}), "INVALID_OPTION");
  clock_.Advance(absl::Seconds(2));
  EXPECT_REASON(store_->SetTtl(op_, {Seq("a"), never, {}}), "EXPIRED");
}

TEST_F(StorePartsTest, ANewTtlIsRecordedAsTheNamesDurabilitySays) {
  ASSERT_TRUE(Set("sync", 1, 's', With(kSync)).ok());
  ASSERT_TRUE(Set("behind", 1, 'b').ok());
  ASSERT_TRUE(store_->Flush(op_, {}).ok());
  ASSERT_TRUE(store_->SetTtl(op_, {Seq("sync"), Ttl(absl::Hours(1)), {}}).ok());
  ASSERT_TRUE(store_->SetTtl(op_, {Seq("behind"), Ttl(absl::Hours(2)), {}}).ok());
  store_->CheckInvariants();
  LosePower();
  EXPECT_EQ(store_->Describe(op_, Seq("sync"))->ttl, absl::Hours(1));
  EXPECT_EQ(store_->Describe(op_, Seq("behind"))->ttl, absl::InfiniteDuration());
  ASSERT_TRUE(store_->SetTtl(op_, {Seq("behind"), Ttl(absl::Hours(2)), {}}).ok());
  const NameKey key = Seq("behind");
  const auto flushed = store_->Flush(op_, {&key, 1});
  ASSERT_TRUE(flushed.ok());
  EXPECT_EQ(flushed->written, 1u);
  LosePower();
  EXPECT_EQ(store_->Describe(op_, Seq("behind"))->ttl, absl::Hours(2));
  log_->commit_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_REASON(store_->SetTtl(op_, {Seq("sync"), Ttl(absl::Hours(5)), {}}), "COLD_FULL");
  EXPECT_EQ(store_->Describe(op_, Seq("sync"))->ttl, absl::Hours(1));
}

// ---- many deletes

TEST_F(StorePartsTest, DeleteManyTakesWhatMatchesOfOneKind) {
  for (const char* name : {"b/2", "a", "b/1", "b", "b0", "c"}) ASSERT_TRUE(Set(name, 1, 'x').ok());
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("a"), {}, ""}, "b/s", {}, {}}).ok());
  ASSERT_TRUE(Fork(Seq("b/1"), {"b/1/f"}).ok());
  EXPECT_REASON(store_->DeleteMany(op_, {NameKind::kSequence, "", false, false, {}}), "MISSING_FIELD");
  const auto preview = store_->DeleteMany(op_, {NameKind::kSequence, "b/", false, true, {}});
  ASSERT_TRUE(preview.ok());
  EXPECT_EQ(preview->matched, 3u);
  EXPECT_EQ(preview->deleted, 0u);
  EXPECT_EQ(preview->names, (std::vector<std::string>{"b/1", "b/1/f", "b/2"}));
  EXPECT_EQ(preview->state_bytes, 2 * layout_->state_bytes());  // a fork has its source's image
  EXPECT_REASON(store_->DeleteMany(op_, {NameKind::kSequence, "b/", false, false, 2}), "COUNT_MISMATCH");
  EXPECT_EQ(store_->counts().sequences, 7u);
  const auto deleted = store_->DeleteMany(op_, {NameKind::kSequence, "b/", false, false, 3});
  store_->CheckInvariants();
  ASSERT_TRUE(deleted.ok());
  EXPECT_EQ(deleted->deleted, 3u);
  EXPECT_REASON(Get(Seq("b/1")), "DELETED");
  EXPECT_EQ(*Get(Snap("b/s")), 'x');
  EXPECT_EQ(*Get(Seq("b")), 'x');
  EXPECT_EQ(store_->DeleteMany(op_, {NameKind::kSequence, "", true, false, {}})->deleted, 4u);
  EXPECT_EQ(store_->counts().sequences, 0u);
  EXPECT_EQ(store_->DeleteMany(op_, {NameKind::kSequence, "", true, false, 0})->deleted, 0u);
}

TEST_F(StorePartsTest, DeleteManyGoesThroughThousandsOfNamesForGood) {
  ASSERT_TRUE(Set("p", 1, 'x', With(kSync)).ok());
  std::vector<std::string> children;
  for (int i = 0; i < 2500; ++i) children.push_back("c/" + std::to_string(i));
  ASSERT_TRUE(Fork(Seq("p"), children).ok());
  const int commits = log_->commits;
  const auto deleted = store_->DeleteMany(op_, {NameKind::kSequence, "c/", false, false, 2500});
  store_->CheckInvariants();
  ASSERT_TRUE(deleted.ok());
  EXPECT_EQ(deleted->deleted, 2500u);
  EXPECT_EQ(deleted->names.size(), DeleteManyAnswer::kNamesTold);
  EXPECT_LE(log_->commits - commits, 3);  // a thousand in one
  LosePower();
  EXPECT_EQ(store_->counts().sequences, 1u);
}

TEST_F(StorePartsTest, DeleteManyLeavesOutWhatIsExpiredAndSaysWhenTheDiskIsFull) {
  ASSERT_TRUE(Set("a/1", 1, 'x', {kSync, {}, absl::Seconds(1), {}, false}).ok());
  ASSERT_TRUE(Set("a/2", 1, 'x', With(kSync)).ok());
  clock_.Advance(absl::Seconds(2));
  log_->commit_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_REASON(store_->DeleteMany(op_, {NameKind::kSequence, "a/", false, false, {}}), "COLD_FULL");
  log_->commit_error = absl::OkStatus();
  const auto deleted = store_->DeleteMany(op_, {NameKind::kSequence, "a/", false, false, 1});
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(deleted->deleted, 1u);
  EXPECT_REASON(Get(Seq("a/1")), "EXPIRED");
  op_.deadline = clock_.Now() - 1;
  EXPECT_REASON(store_->DeleteMany(op_, {NameKind::kSequence, "a/", false, false, {}}), "DEADLINE");
  op_.deadline = kNever;
}

TEST_F(StorePartsTest, DeleteManyLeavesWhatWasMadeAfterItCounted) {
  ASSERT_TRUE(Set("p", 1, 'x', With(kSync)).ok());
  std::vector<std::string> children;
  for (int i = 1000; i < 2500; ++i) children.push_back("c/" + std::to_string(i));
  ASSERT_TRUE(Fork(Seq("p"), children, With(kSync)).ok());
  log_->before_commit = [&](absl::Span<const NameChange>) {  // of the first thousand
    log_->before_commit = nullptr;
    ASSERT_TRUE(Set("c/2000/new", 2, 'n', With(Durability::kVolatile)).ok());
    ASSERT_TRUE(Delete(Seq("c/2001")).ok());
    ASSERT_TRUE(Set("c/2001", 2, 'n', With(Durability::kVolatile)).ok());
    ASSERT_TRUE(Set("c/2002", 2, 'n', With(Durability::kVolatile)).ok());  // was counted
  };
  const auto deleted = store_->DeleteMany(op_, {NameKind::kSequence, "c/", false, false, 1500});
  store_->CheckInvariants();
  ASSERT_TRUE(deleted.ok());
  EXPECT_EQ(deleted->deleted, 1499u);
  EXPECT_EQ(*Get(Seq("c/2000/new")), 'n');
  EXPECT_EQ(*Get(Seq("c/2001")), 'n');
  EXPECT_REASON(Get(Seq("c/2002")), "DELETED");
  EXPECT_EQ(store_->counts().sequences, 3u);
}

TEST_F(StorePartsTest, DeleteManyLeavesWhatWasBeingMadeWhenItCounted) {
  ASSERT_TRUE(Set("c/1", 1, 'x', With(kSync)).ok());
  std::vector<std::string> children;
  for (int i = 1000; i < 2500; ++i) children.push_back("c/" + std::to_string(i));
  ASSERT_TRUE(Fork(Seq("c/1"), children, With(kSync)).ok());
  std::promise<void> writing, deleting;
  std::thread writer;
  log_->before_commit = [&](absl::Span<const NameChange> changes) {
    if (changes[0].key.name == "c/2000/new") {
      writing.set_value();
      deleting.get_future().wait();
    } else if (writer.joinable()) {  // of the first thousand
      deleting.set_value();
      writer.join();
    }
  };
  writer = std::thread([&] { ASSERT_TRUE(Set("c/2000/new", 2, 'n', With(kSync)).ok()); });
  writing.get_future().wait();
  const auto deleted = store_->DeleteMany(op_, {NameKind::kSequence, "c/", false, false, {}});
  store_->CheckInvariants();
  ASSERT_TRUE(deleted.ok());
  EXPECT_EQ(deleted->matched, 1501u);
  EXPECT_EQ(deleted->deleted, 1501u);
  EXPECT_EQ(*Get(Seq("c/2000/new")), 'n');
}

// ---- pages

TEST_F(StorePartsTest, APageTokenBelongsToItsListAndOutlivesItsName) {
  for (const char* name : {"a", "b/1", "b/2", "b/3", "c"}) ASSERT_TRUE(Set(name, 1, 'x').ok());
  const std::string token = store_->List(op_, {NameKind::kSequence, "b/", 1, ""})->next_page_token;
  EXPECT_REASON(store_->List(op_, {NameKind::kSnapshot, "b/", 1, token}), "INVALID_OPTION");
  EXPECT_REASON(store_->List(op_, {NameKind::kSequence, "b", 1, token}), "INVALID_OPTION");
  EXPECT_REASON(store_->List(op_, {NameKind::kSequence, "", 1, token}), "INVALID_OPTION");
  EXPECT_REASON(store_->List(op_, {NameKind::kSequence, "b/", 1, token.substr(0, 16)}), "INVALID_OPTION");
  EXPECT_REASON(store_->List(op_, {NameKind::kSequence, "b/", 1, token.substr(0, 16) + "c"}), "INVALID_OPTION");
  ASSERT_TRUE(Delete(Seq("b/1")).ok());
  const auto next = store_->List(op_, {NameKind::kSequence, "b/", 1, token});
  ASSERT_TRUE(next.ok());
  EXPECT_EQ(next->names[0].key.name, "b/2");
  Stop();  // nothing of it is in memory
  EXPECT_EQ(store_->List(op_, {NameKind::kSequence, "b/", 1, token})->names[0].key.name, "b/2");
  EXPECT_EQ(store_->List(op_, {NameKind::kSequence, "b/", 5, token})->next_page_token, "");
}

// ---- uploads

TEST_F(StorePartsTest, ASetInTwoHalvesIsASet) {
  auto set = BeginSet({"a", "p", 3, {}, {}, {}, {"r", 1}}, "logits", ChecksumOf("aaaabbbbbb"));
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_REASON(store_->Describe(op_, Seq("a")), "NEVER_CREATED");
  EXPECT_REASON(store_->FinishSet(op_, &*set), "BYTES_LENGTH_MISMATCH");
  const absl::string_view bytes = "aaaabbbbbb";
  EXPECT_REASON(set->writer->Append({&bytes, 1}, 7), "CHECKSUM_MISMATCH");
  EXPECT_EQ(set->writer->received_bytes(), 0u);
  ASSERT_TRUE(set->writer->Append({&bytes, 1}, ChecksumOf(bytes)).ok());
  const auto info = store_->FinishSet(op_, &*set);
  store_->CheckInvariants();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version.attachment_bytes, 6u);
  EXPECT_EQ(Bytes({Seq("a"), 3, ""}), "aaaabbbbbb");
  // The same request as one message is the same request.
  EXPECT_TRUE(SetPart({"a", "p", 3, {}, {}, {}, {"r", 1}}, "aaaabbbbbb", {}, "logits")->replayed);
  // And its retry as a stream, also when it could not be made any more.
  auto again = BeginSet({"a", "p", 3, {}, 0, {}, {"r", 1}}, "logits", {});
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_TRUE(again->writer->Append({&bytes, 1}, ChecksumOf(bytes)).ok());
  EXPECT_TRUE(store_->FinishSet(op_, &*again)->replayed);
}

TEST_F(StorePartsTest, WhatCanBeRefusedBeforeTheBytesIs) {
  const auto begin = [&](const SetRequest& request) { return BeginSet(request, "", {}); };
  const auto info = Set("a", 1, 'x');
  EXPECT_REASON(begin({"a//b", "m", 1, {}, {}, {}, {}}), "INVALID_NAME");
  EXPECT_REASON(begin({"new", "", 1, {}, {}, {}, {}}), "MISSING_FIELD");
  EXPECT_REASON(begin({"new", "absent", 1, {}, {}, {}, {}}), "LAYOUT_UNKNOWN");
  EXPECT_REASON(begin({"a", "other", 1, {}, {}, {}, {}}), "LAYOUT_MISMATCH");
  EXPECT_REASON(begin({"a", "", 1, {}, info->revision + 1, {}, {}}), "REVISION_MISMATCH");
  EXPECT_REASON(begin({"a", "", -1, {}, {}, {}, {}}), "INVALID_POSITION");
  EXPECT_REASON(begin({"a", "", 1, {}, {}, Ttl(absl::ZeroDuration()), {}}), "INVALID_OPTION");
  EXPECT_REASON(begin({"a", "", 1, {}, info->revision, {}, {}, Select{}}), "INVALID_OPTION");
  EXPECT_EQ((*begin({"a", "", 2, {}, {}, {}, {}})).layout, layout_);
}

TEST_F(StorePartsTest, WhatChangesWhileTheBytesComeIsSeenAtTheEnd) {
  const auto info = Set("a", 1, 'x');
  auto set = BeginSet({"a", "", 2, {}, info->revision, {}, {}}, "", {});
  const std::string bytes(layout_->state_bytes(), 'y');
  const absl::string_view piece = bytes;
  ASSERT_TRUE(set->writer->Append({&piece, 1}, ChecksumOf(bytes)).ok());
  ASSERT_TRUE(Set("a", 2, 'z').ok());
  EXPECT_REASON(store_->FinishSet(op_, &*set), "REVISION_MISMATCH");
  EXPECT_EQ(*Get(Seq("a")), 'z');
}

// ---- layouts

TEST_F(StorePartsTest, ALayoutGoesWithItsAliasesWhenNoNameHasIt) {
  ASSERT_TRUE(store_->RegisterLayout(op_, layout_, "second").ok());
  ASSERT_TRUE(Set("a", 1, 'x', With(kSync)).ok());
  ASSERT_TRUE(store_->Snapshot(op_, {{Seq("a"), {}, ""}, "s", {}, {}}).ok());
  const absl::Status used = store_->DeleteLayout(op_, "m");
  EXPECT_REASON(used, "LAYOUT_IN_USE");
  EXPECT_EQ(GetErrorDetail(used).metadata[0], (std::pair<std::string, std::string>("names", "2")));
  EXPECT_TRUE(Set("b", 1, 'x').ok());  // it is as it was
  ASSERT_TRUE(store_->DeleteMany(op_, {NameKind::kSequence, "", true, false, {}}).ok());
  EXPECT_REASON(store_->DeleteLayout(op_, "m"), "LAYOUT_IN_USE");
  ASSERT_TRUE(Delete(Snap("s")).ok());
  ASSERT_TRUE(store_->DeleteLayout(op_, "second").ok());
  store_->CheckInvariants();
  EXPECT_REASON(store_->DeleteLayout(op_, "m"), "LAYOUT_UNKNOWN");
  EXPECT_REASON(Set("a", 1, 'x'), "LAYOUT_UNKNOWN");
  for (const auto& entry : store_->layouts().List(kDefaultTenant)) EXPECT_NE(entry.layout, layout_);
  // The alias is free for another one, and so it stays.
  ASSERT_TRUE(store_->RegisterLayout(op_, other_layout_, "m").ok());
  EXPECT_EQ(store_->layouts().Describe(kDefaultTenant, "m")->layout, other_layout_);
  ASSERT_TRUE(store_->RegisterLayout(op_, layout_, "third").ok());
}

TEST_F(StorePartsTest, ADeletedLayoutStaysDeletedAndAnExpiredNamesRecordGoesBeforeIt) {
  ASSERT_TRUE(SetPart({"s", "p", 1, {}, {}, {kSync, {}, absl::Seconds(1), {}, false}, {}}, "aaaabbbbbb").ok());
  clock_.Advance(absl::Seconds(2));
  Reap();
  ASSERT_TRUE(store_->DeleteLayout(op_, "p").ok());
  {
    MutexLock lock(&disk_.mu);
    EXPECT_TRUE(disk_.synced.names.empty());
  }
  LosePower();
  EXPECT_REASON(store_->layouts().Find(kDefaultTenant, "p"), "LAYOUT_UNKNOWN");
  EXPECT_REASON(store_->Describe(op_, Seq("s")), "UNKNOWN_SINCE_RESTART");
}

TEST_F(StorePartsTest, ALayoutIsInUseWhileItsFirstNameIsBeingRecorded) {
  log_->before_commit = [this](absl::Span<const NameChange>) {
    EXPECT_REASON(store_->DeleteLayout(op_, "p"), "LAYOUT_IN_USE");
  };
  ASSERT_TRUE(SetPart({"s", "p", 1, {}, {}, With(kSync), {}}, "aaaabbbbbb").ok());
  log_->before_commit = nullptr;
  LosePower();
  EXPECT_EQ(Bytes(), "aaaabbbbbb");
}

TEST_F(StorePartsTest, ANameThatCouldNotBeRecordedUsesNoLayout) {
  log_->commit_error = Error(absl::StatusCode::kResourceExhausted, "COLD_FULL", "");
  EXPECT_REASON(SetPart({"s", "p", 1, {}, {}, With(kSync), {}}, "aaaabbbbbb"), "COLD_FULL");
  log_->commit_error = absl::OkStatus();
  EXPECT_TRUE(store_->DeleteLayout(op_, "p").ok());
}

TEST_F(StorePartsTest, ALayoutIsThereUntilItIsCertainThatNoNameHasIt) {
  ASSERT_TRUE(SetPart({"s", "p", 1, {}, {}, {kSync, {}, absl::Seconds(1), {}, false}, {}}, "aaaabbbbbb").ok());
  clock_.Advance(absl::Seconds(2));
  Reap();
  log_->before_commit = [this](absl::Span<const NameChange>) {  // the expired name's record goes
    log_->before_commit = nullptr;
    EXPECT_TRUE(SetPart({"t", "p", 1, {}, {}, {}, {}}, "aaaabbbbbb").ok());
  };
  EXPECT_REASON(store_->DeleteLayout(op_, "p"), "LAYOUT_IN_USE");
  EXPECT_EQ(Bytes({Seq("t"), {}, ""}), "aaaabbbbbb");
  EXPECT_TRUE(images_->deleted_layouts.empty());
  ASSERT_TRUE(Delete(Seq("t")).ok());
  EXPECT_TRUE(store_->DeleteLayout(op_, "p").ok());
  EXPECT_EQ(images_->deleted_layouts, std::vector<std::string>{parts_->fingerprint()});
}

TEST_F(StorePartsTest, WhoWaitsForALayoutThatGoesWaitsNoLongerThanItMay) {
  ASSERT_TRUE(SetPart({"s", "p", 1, {}, {}, {kSync, {}, absl::Seconds(1), {}, false}, {}}, "aaaabbbbbb").ok());
  clock_.Advance(absl::Seconds(2));
  Reap();
  log_->before_commit = [this](absl::Span<const NameChange>) {
    clock_.SetTick(absl::Seconds(1));
    Op op;
    op.deadline = clock_.Now() + absl::ToInt64Nanoseconds(absl::Milliseconds(1500));  // the first look is in time
    EXPECT_REASON(store_->RegisterLayout(op, other_layout_, "again"), "DEADLINE");
    op.deadline = clock_.Now() + absl::ToInt64Nanoseconds(absl::Milliseconds(1500));
    EXPECT_REASON(store_->DeleteLayout(op, "other"), "DEADLINE");
    clock_.SetTick(absl::ZeroDuration());
  };
  EXPECT_TRUE(store_->DeleteLayout(op_, "p").ok());
}

TEST_F(StorePartsTest, AStateIsOfTheLayoutThatItsSenderWasTold) {
  const SetRequest request{"s", "p", 1, {}, {}, {}, {}};
  const auto told = store_->LayoutOfSet(op_, request);
  ASSERT_TRUE(told.ok());
  ASSERT_TRUE(store_->DeleteLayout(op_, "p").ok());
  ASSERT_TRUE(store_->RegisterLayout(op_, other_layout_, "p").ok());
  auto set = store_->BeginSet(op_, request, *told, "", {});
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->layout, parts_);
  EXPECT_EQ(images_->deleted_layouts, std::vector<std::string>(2, parts_->fingerprint())) << "of this image, too";
  const absl::string_view bytes = "aaaabbbbbb";
  ASSERT_TRUE(set->writer->Append({&bytes, 1}, ChecksumOf(bytes)).ok());
  EXPECT_REASON(store_->FinishSet(op_, &*set), "LAYOUT_UNKNOWN");
}

TEST_F(StorePartsTest, ALayoutThatGoesWhileItsBytesComeMakesNoName) {
  auto set = BeginSet({"s", "p", 1, {}, {}, {}, {}}, "", {});
  const absl::string_view bytes = "aaaabbbbbb";
  ASSERT_TRUE(set->writer->Append({&bytes, 1}, ChecksumOf(bytes)).ok());
  ASSERT_TRUE(store_->DeleteLayout(op_, "p").ok());
  const auto refused = store_->FinishSet(op_, &*set);
  EXPECT_REASON(refused, "LAYOUT_UNKNOWN");
  EXPECT_EQ(GetErrorDetail(refused.status()).field, "layout");
  store_->CheckInvariants();
}

// ---- salt

TEST_F(StorePartsTest, SaltKeepsPrefixesApart) {
  ASSERT_TRUE(Set("a", 3, 'a').ok());
  ASSERT_TRUE(Set("b", 3, 'b').ok());
  const std::vector<uint32_t> tokens = {1, 2, 3}, longer = {1, 2, 3, 4};
  const auto publish = [&](const std::string& source, const std::string& key, const std::string& salt) {
    return store_->PublishPrefix(op_, {"m", tokens, key, {Seq(source), {}, ""}, {}, salt});
  };
  const auto match = [&](const std::string& key, const std::string& salt) -> std::string {
    const auto answer = store_->MatchPrefix(op_, {"m", longer, key, {}, 1, salt});
    return answer->matches.empty() ? answer->miss_reason : std::string(1, *Get(answer->matches[0].key));
  };
  const auto plain = publish("a", "", "");
  EXPECT_EQ(match("", "salt"), "NEVER_PUBLISHED");
  const auto salted = publish("b", "", "salt");
  ASSERT_TRUE(plain.ok() && salted.ok());
  EXPECT_FALSE(salted->already_published);
  EXPECT_NE(plain->info.key, salted->info.key);
  EXPECT_EQ(match("", ""), "a");
  EXPECT_EQ(match("", "salt"), "b");
  EXPECT_EQ(match("salt", ""), "NEVER_PUBLISHED");  // another field is another prefix
  EXPECT_EQ(match("sa", "lt"), "NEVER_PUBLISHED");
  ASSERT_TRUE(publish("a", "sa", "lt").ok());
  EXPECT_EQ(match("s", "alt"), "NEVER_PUBLISHED");
  EXPECT_EQ(match("sal", "t"), "NEVER_PUBLISHED");
  EXPECT_REASON(publish("a", "", std::string(4097, 's')), "INVALID_OPTION");
  EXPECT_EQ(GetErrorDetail(publish("a", "", std::string(4097, 's')).status()).field, "salt");
  Stop();
  EXPECT_EQ(match("", "salt"), "b");
}

}  // namespace
}  // namespace statepool
