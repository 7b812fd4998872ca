// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Session: random operations on one World, each compared with the Reference. All of it follows from the seed.
#ifndef STATEPOOL_TESTS_MODEL_SESSION_H_
#define STATEPOOL_TESTS_MODEL_SESSION_H_

#include <deque>
#include <random>
#include <string>
#include <vector>

#include "server/core/clock.h"
#include "statepool/v1/statepool.pb.h"
#include "tests/model/reference.h"
#include "tests/model/world.h"

namespace statepool::model {

struct SessionOptions {
  uint64_t seed = 0;
  std::string directory;
  bool crashes = false;  // restarts without an orderly stop, too
  bool verbose = false;
};

// Not thread-safe.
class Session {
 public:
  explicit Session(const SessionOptions& options);

  // One operation. Gives what the daemon did that the contract does not allow; empty: nothing.
  std::string Step();
  const std::string& last() const { return last_; }  // the last operation, with its answer

  uint64_t restarts() const { return restarts_; }
  uint64_t crashes() const { return crashes_; }
  const Reference::Counts& counts() const { return reference_.counts(); }
  WorldCounts world_counts() const { return world_.counts(); }

 private:
  // Decisions.
  uint64_t Pick(uint64_t n) { return random_() % n; }
  bool Chance(double probability) { return static_cast<double>(random_() >> 11) * 0x1p-53 < probability; }
  template <typename T>
  const T& OneOf(const std::vector<T>& of) {
    return of[Pick(of.size())];
  }

  // Pieces of requests: mostly something that exists, now and then something that is wrong.
  std::string Sequence();
  std::string SnapshotName();
  std::string LayoutName();
  int64_t Position();
  std::string RequestId();
  std::string Pattern(uint64_t bytes);
  std::vector<uint32_t> Tokens(uint64_t count);
  v1::NameRef Ref();
  v1::NameRef ExistingRef();
  void Fill(v1::NameOptions* options);
  v1::Select SelectOf(const LayoutM* layout);
  uint64_t IfRevision(const Key& key);
  int64_t PositionOf(const State* state);
  // A range of tokens, [begin, end), about those of a sequence.
  std::pair<int64_t, int64_t> RangeOf(const State* state);

  // Requests.
  v1::CreateRequest MakeCreate();
  v1::SetRequest MakeSet();
  v1::ForkRequest MakeFork();
  v1::RollbackRequest MakeRollback();
  v1::RemoveRangeRequest MakeRemoveRange();
  v1::RenumberRequest MakeRenumber();
  v1::SnapshotRequest MakeSnapshot();
  v1::RestoreRequest MakeRestore();
  v1::DeleteRequest MakeDelete();
  v1::GetRequest MakeGet();
  v1::BatchWriteItem MakeWrite();

  // Operations.
  std::string Write(const v1::BatchWriteItem& item);
  std::string Register(size_t layout);
  std::string DeleteLayout();
  std::string GetLayout();
  std::string Get();
  std::string BatchGet();
  std::string BatchWrite();
  std::string DeleteMany();
  std::string Describe(const v1::NameRef& name);
  std::string List();
  std::string ListAll(v1::NameKind kind);
  std::string Touch(const std::vector<v1::NameRef>& names);
  std::string SetTtl();
  std::string Publish();
  std::string Match();
  std::string Flush();
  std::string Capabilities();
  std::string Evict();
  std::string Housekeeping();
  std::string Restart(bool orderly);
  std::string DescribeAll();
  std::string Run();

  void Note(const char* method, const google::protobuf::Message& request, const Outcome& outcome,
            const google::protobuf::Message& answer);
  void Note(const std::string& what);

  const SessionOptions options_;
  std::mt19937_64 random_;
  ManualClock clock_;
  World world_;
  Reference reference_;
  std::vector<v1::Layout> layouts_;
  std::deque<v1::BatchWriteItem> written_;  // to be sent again
  std::vector<std::string> page_tokens_;
  uint64_t serial_ = 0, steps_ = 0, restarts_ = 0, crashes_ = 0;
  std::string last_;
};

}  // namespace statepool::model

#endif  // STATEPOOL_TESTS_MODEL_SESSION_H_
