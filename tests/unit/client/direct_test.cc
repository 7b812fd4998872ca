// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A direct lease of the C++ client whose other end is this test: what it maps, when it lets go, and in which order it
// says so. The same with a daemon is in tests/integration/cpp_client.cc.
#include "client/cpp/direct.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/fake_service.h"

namespace statepool::client {
namespace {

constexpr uint64_t kExtentBytes = 64 << 10;
constexpr uint64_t kSlotBytes = 16 << 10;

bool IsMapped(uint64_t extent) {
  std::ifstream maps("/proc/self/maps");
  const std::string text((std::istreambuf_iterator<char>(maps)), std::istreambuf_iterator<char>());
  return text.find(absl::StrCat("memfd:fake-extent-", extent, " ")) != text.npos;
}

v1::Slot SlotOf(uint64_t id, uint64_t extent, uint64_t offset = 0) {
  v1::Slot slot;
  slot.set_id(id);
  slot.set_extent(extent);
  slot.set_offset(offset);
  return slot;
}

// The daemon's end of a lease, in a thread: gives an extent for every number that is asked for, and counts.
class FakeDaemon final : public v1::StatePool::Service {
 public:
  FakeDaemon() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    socket_ = ends[0];
    lease = std::make_shared<DirectLease>("lease", Descriptor(ends[1]));
    thread_ = std::thread([this] { Run(); });
  }
  ~FakeDaemon() override {
    HangUp();
    thread_.join();
    close(socket_);
  }

  grpc::Status Grant(grpc::ServerContext*, const v1::GrantRequest* request, v1::GrantResponse* response) override {
    const std::lock_guard lock(mutex_);
    grants.push_back(request->count());
    if (refuses_grants) return Error(grpc::RESOURCE_EXHAUSTED, "TOO_MUCH_GRANTED", "", 1);
    for (uint32_t i = 0; i < std::min(request->count(), grants_at_once); ++i) {
      ++granted_;
      *response->add_slots() = SlotOf(1000 + granted_, 50 + (granted_ - 1) / 4, (granted_ - 1) % 4 * kSlotBytes);
    }
    return grpc::Status::OK;
  }

  void Drop(std::vector<uint64_t> extents) const {
    v1::LeaseEvent event;
    event.mutable_drop()->Add(extents.begin(), extents.end());
    Send(event, -1);
  }
  void HangUp() const { shutdown(socket_, SHUT_RDWR); }

  // What was told, once it all was.
  std::multiset<uint64_t> Unpinned(size_t count) { return Told(&unpinned_, count); }
  std::multiset<uint64_t> Dropped(size_t count) { return Told(&dropped_, count); }
  std::map<uint64_t, int> Asked() {
    const std::lock_guard lock(mutex_);
    return asked_;
  }

  std::shared_ptr<DirectLease> lease;
  // Of the extents that are given from now on.
  std::atomic<bool> writable = false, sealed = true;
  std::atomic<uint64_t> bytes = kExtentBytes, bytes_told = kExtentBytes;
  std::string reason;         // instead of an extent
  bool drops_before = false;  // says that extent 1 is to be dropped before it answers
  bool refuses_grants = false;
  uint32_t grants_at_once = 64;
  std::vector<uint32_t> grants;  // how many were asked for
  bool was_mapped = false;       // an extent when its drop was told

 private:
  std::multiset<uint64_t> Told(const std::multiset<uint64_t>* told, size_t count) {
    for (int i = 0; i < 1000; ++i) {
      {
        const std::lock_guard lock(mutex_);
        if (told->size() >= count) return *told;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    const std::lock_guard lock(mutex_);
    return *told;
  }

  void Run() {
    char text[65536];
    for (ssize_t size; (size = recv(socket_, text, sizeof text, 0)) > 0;) {
      v1::LeaseRequest request;
      EXPECT_TRUE(request.ParseFromArray(text, static_cast<int>(size)));
      EXPECT_LE(request.unpin_size(), 8192);
      {
        const std::lock_guard lock(mutex_);
        unpinned_.insert(request.unpin().begin(), request.unpin().end());
        dropped_.insert(request.dropped().begin(), request.dropped().end());
        for (const uint64_t extent : request.dropped()) was_mapped = was_mapped || IsMapped(extent);
        if (request.extent() != 0) ++asked_[request.extent()];
      }
      if (request.extent() == 0) continue;
      if (drops_before) Drop({1});
      v1::LeaseEvent event;
      event.set_extent(request.extent());
      event.set_reason(reason);
      if (!reason.empty()) {
        Send(event, -1);
        continue;
      }
      const int memory =
          memfd_create(absl::StrCat("fake-extent-", request.extent()).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
      EXPECT_EQ(ftruncate(memory, static_cast<off_t>(bytes)), 0);
      EXPECT_EQ(fcntl(memory, F_ADD_SEALS, F_SEAL_GROW | (sealed ? F_SEAL_SHRINK : 0)), 0);
      event.set_bytes(bytes_told);
      event.set_writable(writable);
      Send(event, memory);
      close(memory);
    }
  }

  void Send(const v1::LeaseEvent& event, int fd) const {
    std::string text = event.SerializeAsString();
    iovec piece = {text.data(), text.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (fd >= 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* const header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof fd);
      std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    (void)sendmsg(socket_, &message, MSG_NOSIGNAL);
  }

  int socket_ = -1;
  std::thread thread_;
  std::mutex mutex_;
  std::multiset<uint64_t> unpinned_, dropped_;
  std::map<uint64_t, int> asked_;
  uint64_t granted_ = 0;
};

using Ids = std::multiset<uint64_t>;

std::string ReasonOf(const absl::Status& status) { return GetErrorDetail(status).reason; }

TEST(DirectLeaseTest, AnExtentIsAskedForOnceAndAPinGivenBackAtItsEnd) {
  FakeDaemon daemon;
  {
    const auto first = daemon.lease->Hold(SlotOf(7, 1), kSlotBytes);
    const auto second = daemon.lease->Hold(SlotOf(8, 1, kSlotBytes), kSlotBytes);
    ASSERT_TRUE(first.ok() && second.ok()) << first.status();
    EXPECT_EQ((*second)->data() - (*first)->data(), static_cast<std::ptrdiff_t>(kSlotBytes));
    EXPECT_EQ((*first)->data()[0], 0);
    EXPECT_TRUE(daemon.Unpinned(0).empty());
  }
  EXPECT_EQ(daemon.Unpinned(2), (Ids{7, 8}));
  EXPECT_EQ(daemon.Asked(), (std::map<uint64_t, int>{{1, 1}}));
  EXPECT_TRUE(IsMapped(1)) << "it is kept for the next";
  EXPECT_TRUE(daemon.Dropped(0).empty());
}

TEST(DirectLeaseTest, WhatTheDaemonWantsBackIsUnmappedWhenNoPinIsLeft) {
  FakeDaemon daemon;
  auto one = daemon.lease->Hold(SlotOf(7, 1), kSlotBytes);
  auto two = daemon.lease->Hold(SlotOf(8, 2), kSlotBytes);
  ASSERT_TRUE(one.ok() && two.ok());
  two->reset();
  daemon.Drop({1, 2, 3});
  EXPECT_TRUE(daemon.lease->Poll());
  EXPECT_EQ(daemon.Dropped(1), (Ids{2}));
  EXPECT_TRUE(IsMapped(1));
  EXPECT_FALSE(IsMapped(2));
  one->reset();
  EXPECT_EQ(daemon.Dropped(2), (Ids{1, 2}));
  EXPECT_FALSE(IsMapped(1));
  EXPECT_FALSE(daemon.was_mapped) << "first unmapped, then told";
  // Wanted again, and wanted back while it is waited for.
  daemon.drops_before = true;
  EXPECT_TRUE(daemon.lease->Hold(SlotOf(9, 1), kSlotBytes).ok());
  EXPECT_EQ(daemon.Asked()[1], 2);
}

TEST(DirectLeaseTest, TheEndOfTheLeaseGivesEverythingBack) {
  FakeDaemon daemon;
  auto held = daemon.lease->Hold(SlotOf(7, 1), kSlotBytes);
  ASSERT_TRUE(held.ok() && daemon.lease->Hold(SlotOf(8, 2), kSlotBytes).ok());
  daemon.lease = nullptr;
  EXPECT_EQ((*held)->data()[0], 0) << "a pin keeps it";
  EXPECT_EQ(daemon.Unpinned(1), (Ids{8}));
  held->reset();
  EXPECT_EQ(daemon.Dropped(2), (Ids{1, 2}));
  EXPECT_EQ(daemon.Unpinned(2), (Ids{7, 8}));
  EXPECT_FALSE(IsMapped(1) || IsMapped(2) || daemon.was_mapped);
}

TEST(DirectLeaseTest, ExtentsWithoutPinsAreDroppedOldestFirstWhenTheyAreTooMuch) {
  FakeDaemon daemon;
  daemon.bytes = daemon.bytes_told = DirectLease::kIdleBytesMax / 4;  // no page of which is ever there
  for (const uint64_t extent : {1, 2, 3, 4, 1}) {
    ASSERT_TRUE(daemon.lease->Hold(SlotOf(100 + extent, extent), kSlotBytes).ok());
  }
  EXPECT_EQ(daemon.Unpinned(5).size(), 5u);
  EXPECT_TRUE(daemon.Dropped(0).empty());
  const auto held = daemon.lease->Hold(SlotOf(103, 3), kSlotBytes);
  const auto more = daemon.lease->Hold(SlotOf(105, 5), kSlotBytes);
  ASSERT_TRUE(held.ok() && more.ok());
  EXPECT_TRUE(daemon.lease->Hold(SlotOf(106, 6), kSlotBytes).ok());
  EXPECT_TRUE(daemon.lease->Hold(SlotOf(107, 7), kSlotBytes).ok());
  EXPECT_EQ(daemon.Dropped(1), (Ids{2})) << "1, 4, 6 and 7 may stay, 3 and 5 are in use";
  EXPECT_FALSE(daemon.was_mapped);
}

TEST(DirectLeaseTest, MemoryThatIsNotSafeToUseIsNotUsed) {
  FakeDaemon daemon;
  daemon.sealed = false;
  EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(7, 1), kSlotBytes).status()), "BAD_MEMORY");
  daemon.sealed = true;
  daemon.bytes_told = 2 * kExtentBytes;
  EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(8, 2), kSlotBytes).status()), "BAD_MEMORY");
  daemon.bytes_told = kExtentBytes;
  EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(9, 3, kExtentBytes - kSlotBytes + 1), kSlotBytes).status()),
            "BAD_ANSWER");
  EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(10, 3, UINT64_MAX), kSlotBytes).status()), "BAD_ANSWER");
  daemon.reason = "EXTENT_UNKNOWN";
  EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(11, 4), kSlotBytes).status()), "EXTENT_UNKNOWN");
  EXPECT_EQ(daemon.Unpinned(5), (Ids{7, 8, 9, 10, 11})) << "the pins are given back";
}

TEST(DirectLeaseTest, WhenTheDaemonHangsUpWhatIsThereStays) {
  FakeDaemon daemon;
  auto held = daemon.lease->Hold(SlotOf(7, 1), kSlotBytes);
  ASSERT_TRUE(held.ok());
  EXPECT_TRUE(daemon.lease->Poll());
  daemon.HangUp();
  EXPECT_FALSE(daemon.lease->Poll());
  EXPECT_EQ((*held)->data()[0], 0);
  EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(8, 2), kSlotBytes).status()), "SOCKET_UNREACHABLE");
  held->reset();
  daemon.lease = nullptr;
  EXPECT_FALSE(IsMapped(1));
}

TEST(DirectLeaseTest, AForkedChildLeavesTheLeaseAlone) {
  FakeDaemon daemon;
  auto held = daemon.lease->Hold(SlotOf(7, 1), kSlotBytes);
  ASSERT_TRUE(held.ok());
  const pid_t child = fork();
  if (child == 0) {
    const bool is_none = !daemon.lease->Poll() && !daemon.lease->Hold(SlotOf(8, 2), kSlotBytes).ok();
    held->reset();
    daemon.lease.reset();
    _exit(is_none ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(daemon.lease->Hold(SlotOf(9, 1), kSlotBytes).ok());
  EXPECT_EQ(daemon.Unpinned(1), (Ids{9}));
}

class GrantTest : public testing::Test {
 protected:
  absl::StatusOr<std::vector<DirectLease::Granted>> Take(size_t count) {
    return daemon_.lease->Take(pool_, "layout", kSlotBytes, count, absl::Now() + absl::Seconds(10));
  }

  FakeDaemon daemon_;
  FakeServer server_{&daemon_};
  const Pool pool_ = *Pool::Connect(server_.address(), [] {
    Options options;
    options.direct = options.arenas = false;
    options.max_attempts = 1;
    return options;
  }());
};

TEST_F(GrantTest, AreTakenFromAStockThatOneCallFills) {
  daemon_.writable = true;
  std::set<uint64_t> ids;
  std::set<char*> places;
  for (size_t i = 0; i < Direct::kStockMax; ++i) {
    const auto grants = Take(1);
    ASSERT_TRUE(grants.ok()) << grants.status();
    ids.insert(grants->front().slot.id());
    places.insert(grants->front().data());
    std::memset(grants->front().data(), 1, kSlotBytes);
  }
  EXPECT_EQ(daemon_.grants, (std::vector<uint32_t>{Direct::kStockMax}));
  EXPECT_EQ(ids.size(), Direct::kStockMax);
  EXPECT_EQ(places.size(), Direct::kStockMax);
  auto grants = Take(3);
  ASSERT_TRUE(grants.ok()) << grants.status();
  const uint64_t id = grants->back().slot.id();
  daemon_.lease->PutBack("layout", *std::move(grants));
  EXPECT_EQ(Take(1)->front().slot.id(), id);
  EXPECT_EQ(daemon_.grants.size(), 2u);
}

TEST_F(GrantTest, FewerThanAskedForAreAskedForAgainAndAllOrNoneAreTaken) {
  daemon_.writable = true;
  daemon_.grants_at_once = 3;
  EXPECT_EQ(Take(7)->size(), 7u);
  EXPECT_EQ(daemon_.grants, (std::vector<uint32_t>{8, 8, 8}));
  daemon_.refuses_grants = true;
  EXPECT_EQ(ReasonOf(Take(3).status()), "TOO_MUCH_GRANTED");
  EXPECT_FALSE(Take(3).ok());
  EXPECT_EQ(daemon_.grants.size(), 4u) << "not asked for again at once";
  EXPECT_EQ(Take(2)->size(), 2u) << "what is there is not lost";
}

TEST_F(GrantTest, MemoryThatCannotBeWrittenToIsRefused) { EXPECT_EQ(ReasonOf(Take(1).status()), "BAD_ANSWER"); }

TEST_F(GrantTest, AForkedChildDoesNotGetWhatMayBeWrittenTo) {
  daemon_.writable = true;
  const auto grants = Take(1);
  ASSERT_TRUE(grants.ok()) << grants.status();
  const uint64_t extent = grants->front().slot.extent();
  EXPECT_TRUE(IsMapped(extent));
  const pid_t child = fork();
  if (child == 0) _exit(IsMapped(extent) ? 1 : 0);
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace statepool::client
