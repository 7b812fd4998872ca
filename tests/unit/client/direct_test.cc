// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// A direct lease of the C++ client whose other end is this test: what it maps, when it lets go, and in which order it
// says so. The same with a daemon is in tests/integration/cpp_client.cc.
#include "client/cpp/direct.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
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

// fd < 0: none. Else so many times, at most 8.
void SendText(int to, std::string text, int fd, size_t times) {
  iovec piece = {text.data(), text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (fd >= 0 && times > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(times * sizeof fd);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(times * sizeof fd);
    for (size_t i = 0; i < times; ++i) std::memcpy(CMSG_DATA(header) + i * sizeof fd, &fd, sizeof fd);
  }
  (void)sendmsg(to, &message, MSG_NOSIGNAL);
}

void SendEvent(int to, const v1::LeaseEvent& event, int fd) { SendText(to, event.SerializeAsString(), fd, 1); }

v1::Capabilities Budgets(uint64_t max_pinned_bytes, uint64_t max_granted_bytes) {
  v1::Capabilities budgets;
  budgets.set_max_pinned_bytes(max_pinned_bytes);
  budgets.set_max_granted_bytes(max_granted_bytes);
  return budgets;
}

size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

// The daemon's end of a lease, in a thread: gives an extent for every number that is asked for, and counts.
class FakeDaemon final : public v1::StatePool::Service {
 public:
  explicit FakeDaemon(const v1::Capabilities& budgets = Budgets(uint64_t{1} << 40, uint64_t{1} << 40)) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    socket_ = ends[0];
    lease = DirectLease::Make("lease", Descriptor(ends[1]), budgets);
    EXPECT_NE(lease, nullptr);
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
    if (refuses_grants || granted_ >= grants_max) return Error(grpc::RESOURCE_EXHAUSTED, "TOO_MUCH_GRANTED", "", 1);
    for (uint32_t i = 0; i < std::min(request->count(), grants_at_once) && granted_ < grants_max; ++i) {
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
  void SayShortOfRoom() const {
    v1::LeaseEvent event;
    event.set_short_of_room(true);
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
  std::atomic<uint64_t> bytes = kExtentBytes, bytes_told = kExtentBytes, chunk_bytes = 0;
  std::string reason;             // instead of an extent
  bool drops_before = false;      // says that extent 1 is to be dropped before it answers
  std::string text_after;         // that an answer has at its end, which is none then
  std::atomic<size_t> times = 1;  // that its descriptor comes
  std::atomic<absl::Duration> late{absl::ZeroDuration()};
  std::atomic<bool> reads = true;
  bool refuses_grants = false;
  uint64_t grants_max = UINT64_MAX;
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
      while (!reads) absl::SleepFor(absl::Milliseconds(1));
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
      { const Descriptor closed = std::move(memory_); }
      const int memory =
          memfd_create(absl::StrCat("fake-extent-", request.extent()).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
      EXPECT_EQ(ftruncate(memory, static_cast<off_t>(bytes)), 0);
      EXPECT_EQ(fcntl(memory, F_ADD_SEALS, F_SEAL_GROW | (sealed ? F_SEAL_SHRINK : 0)), 0);
      event.set_bytes(bytes_told);
      event.set_chunk_bytes(chunk_bytes);
      event.set_writable(writable);
      absl::SleepFor(late);
      SendText(socket_, event.SerializeAsString() + text_after, memory, times);
      memory_ = Descriptor(memory);
    }
  }

  void Send(const v1::LeaseEvent& event, int fd) const { SendEvent(socket_, event, fd); }

  int socket_ = -1;
  Descriptor memory_;  // the last extent's
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

TEST(DirectLeaseTest, ChunksOfAnExtentLieSideBySide) {
  FakeDaemon daemon;
  daemon.times = 4;
  daemon.chunk_bytes = kExtentBytes / 4;
  daemon.writable = true;
  const auto held = daemon.lease->Hold(SlotOf(7, 1), kExtentBytes);
  ASSERT_TRUE(held.ok()) << held.status();
  char* const data = const_cast<char*>((*held)->data());
  data[1] = 'x';  // each chunk is the same memory here
  for (uint64_t chunk = 0; chunk < 4; ++chunk) EXPECT_EQ(data[chunk * kExtentBytes / 4 + 1], 'x');
  daemon.times = 3;
  EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(8, 2), kSlotBytes).status()), "MAPPING_FAILED") << "one is missing";
  daemon.chunk_bytes = kExtentBytes / 4 + 1;
  EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(9, 3), kSlotBytes).status()), "BAD_ANSWER");
  EXPECT_EQ(daemon.Unpinned(2), (Ids{8, 9}));
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

TEST(DirectLeaseTest, WithoutAnyCallWhatTheDaemonWantsBackIsUnmapped) {
  FakeDaemon daemon;
  ASSERT_TRUE(daemon.lease->Hold(SlotOf(7, 1), kSlotBytes).ok());
  EXPECT_EQ(daemon.Unpinned(1), (Ids{7}));
  daemon.Drop({1});
  EXPECT_EQ(daemon.Dropped(1), (Ids{1}));
  EXPECT_FALSE(IsMapped(1) || daemon.was_mapped);
}

TEST(DirectLeaseTest, WithoutAnyCallWhatCouldNotBeToldIsTold) {
  constexpr size_t kPins = 5000;  // each in a message of its own: more than there is room for on a connection
  FakeDaemon daemon;
  std::vector<std::unique_ptr<const DirectLease::Held>> held;
  for (size_t pin = 1; pin <= kPins; ++pin) held.push_back(*daemon.lease->Hold(SlotOf(pin, 1), kSlotBytes));
  daemon.reads = false;
  held.clear();
  daemon.reads = true;
  EXPECT_EQ(daemon.Unpinned(kPins).size(), kPins);
  EXPECT_TRUE(daemon.lease->Poll());
}

TEST(DirectLeaseTest, IdleExtentsAreAtMostAQuarterOfWhatLeasesMayPin) {
  FakeDaemon daemon(Budgets(4 * 2 * kExtentBytes, 0));
  for (const uint64_t extent : {1, 2, 3}) {
    ASSERT_TRUE(daemon.lease->Hold(SlotOf(100 + extent, extent), kSlotBytes).ok());
  }
  EXPECT_EQ(daemon.Dropped(1), (Ids{1}));
}

TEST(DirectLeaseTest, AnExtentThatCameToNothingIsToldToBeUnmapped) {
  const size_t descriptors = OpenDescriptors();
  {
    FakeDaemon daemon;
    daemon.times = 0;
    EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(7, 1), kSlotBytes).status()), "MAPPING_FAILED");
    daemon.times = 3;
    EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(8, 2), kSlotBytes).status()), "MAPPING_FAILED");
    daemon.times = 8;
    EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(9, 3), kSlotBytes).status()), "MAPPING_FAILED");
    daemon.times = 1;
    Ids dropped{1, 2, 3}, unpinned{7, 8, 9, 11, 12, 13};
#ifndef __SANITIZE_ADDRESS__  // whose runtime needs descriptors itself, to look at memory
    EXPECT_EQ(daemon.Dropped(3), (Ids{1, 2, 3})) << "it has done with files of its own";
    // No room for a descriptor but the daemon's own: it comes truncated.
    rlimit limit{};
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    const int memory = memfd_create("the last", MFD_CLOEXEC);
    const int last = dup(memory);
    rlimit none = limit;
    none.rlim_cur = static_cast<rlim_t>(last) + 1;
    close(last);
    close(memory);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    std::vector<Descriptor> others;
    for (int fd; (fd = dup(0)) >= 0;) others.emplace_back(fd);
    const absl::Status status = daemon.lease->Hold(SlotOf(10, 4), kSlotBytes).status();
    others.clear();
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    EXPECT_EQ(ReasonOf(status), "MAPPING_FAILED");
    dropped.insert(4);
    unpinned.insert(10);
#endif
    EXPECT_TRUE(daemon.lease->Hold(SlotOf(11, 5), kSlotBytes).ok()) << "nothing else is lost";
    EXPECT_EQ(daemon.Dropped(dropped.size()), dropped);
    // Larger than an event may be.
    daemon.text_after = std::string(70000, '\0');
    EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(12, 6), kSlotBytes).status()), "SOCKET_UNREACHABLE");
    dropped.insert(6);
    EXPECT_EQ(daemon.Dropped(dropped.size()), dropped);
    EXPECT_FALSE(daemon.lease->Poll());
    EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(13, 7), kSlotBytes).status()), "SOCKET_UNREACHABLE");
    EXPECT_EQ(daemon.Asked().count(7), 0u);
    daemon.lease = nullptr;
    dropped.insert(5);
    EXPECT_EQ(daemon.Dropped(dropped.size()), dropped) << "the rest, at the end of a broken lease too";
    EXPECT_EQ(daemon.Unpinned(unpinned.size()), unpinned);
  }
  EXPECT_EQ(OpenDescriptors(), descriptors);
}

TEST(DirectLeaseTest, AnAnswerThatComesTooLateIsOfNoUseAndToldToBeUnmapped) {
  FakeDaemon daemon;
  daemon.late = DirectLease::kAnswerTimeout + absl::Seconds(1);
  EXPECT_EQ(ReasonOf(daemon.lease->Hold(SlotOf(7, 1), kSlotBytes).status()), "SOCKET_UNREACHABLE");
  EXPECT_FALSE(daemon.lease->Poll());
  EXPECT_EQ(daemon.Dropped(2), (Ids{1, 1})) << "when it was given up, and again when it came";
}

class GrantTest : public testing::Test {
 protected:
  static Pool Connect(const std::string& address) {
    Options options;
    options.direct = options.arenas = false;
    options.max_attempts = 1;
    return *Pool::Connect(address, options);
  }
  absl::StatusOr<std::vector<DirectLease::Granted>> Take(size_t count) {
    return daemon_.lease->Take(pool_, "layout", kSlotBytes, count, absl::Now() + absl::Seconds(10));
  }

  FakeDaemon daemon_;
  FakeServer server_{&daemon_};
  const Pool pool_ = Connect(server_.address());
};

TEST_F(GrantTest, AreTakenFromAStockThatOneCallFills) {
  daemon_.writable = true;
  std::set<uint64_t> ids;
  std::set<char*> places;
  for (size_t i = 0; i < DirectLease::kStockMax; ++i) {
    const auto grants = Take(1);
    ASSERT_TRUE(grants.ok()) << grants.status();
    ids.insert(grants->front().slot.id());
    places.insert(grants->front().data());
    std::memset(grants->front().data(), 1, kSlotBytes);
  }
  EXPECT_EQ(daemon_.grants, (std::vector<uint32_t>{DirectLease::kStockMax}));
  EXPECT_EQ(ids.size(), DirectLease::kStockMax);
  EXPECT_EQ(places.size(), DirectLease::kStockMax);
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

TEST_F(GrantTest, AStockThatNobodyUsesIsGivenBack) {
  daemon_.writable = true;
  const absl::Time start = absl::Now();
  const auto grants = Take(1);
  ASSERT_TRUE(grants.ok()) << grants.status();
  const Ids given_back = daemon_.Unpinned(DirectLease::kStockMax - 1);
  EXPECT_GE(absl::Now() - start, absl::FromChrono(DirectLease::kStockIdle));
  EXPECT_EQ(given_back.size(), DirectLease::kStockMax - 1);
  EXPECT_EQ(given_back.count(grants->front().slot.id()), 0u);
  EXPECT_TRUE(Take(1).ok());
  EXPECT_EQ(daemon_.grants.size(), 2u);
}

TEST_F(GrantTest, AStockIsGivenBackAtOnceWhenSomebodyWasRefusedRoom) {
  daemon_.writable = true;
  const absl::Time start = absl::Now();
  const auto grants = Take(1);
  ASSERT_TRUE(grants.ok()) << grants.status();
  daemon_.SayShortOfRoom();
  const Ids given_back = daemon_.Unpinned(DirectLease::kStockMax - 1);
  EXPECT_LT(absl::Now() - start, absl::FromChrono(DirectLease::kStockIdle)) << "at once";
  EXPECT_EQ(given_back.count(grants->front().slot.id()), 0u) << "that is in use";
  EXPECT_TRUE(Take(1).ok());
}

TEST_F(GrantTest, ExtentsThatTheDaemonWantsBackAreUnmappedWhenNoCallUsesThem) {
  daemon_.writable = true;
  auto grants = Take(1);  // of extent 50, as three in the stock; 51 has the other four
  ASSERT_TRUE(grants.ok()) << grants.status();
  const absl::Time start = absl::Now();
  daemon_.Drop({50, 51});
  EXPECT_EQ(daemon_.Unpinned(7).size(), 7u);
  EXPECT_LT(absl::Now() - start, absl::FromChrono(DirectLease::kStockIdle)) << "at once";
  EXPECT_EQ(daemon_.Dropped(1), (Ids{51}));
  EXPECT_TRUE(IsMapped(50));
  grants->clear();
  EXPECT_EQ(daemon_.Dropped(2), (Ids{50, 51})) << "without another call";
  EXPECT_FALSE(daemon_.was_mapped);
}

TEST_F(GrantTest, WhatIsMoreThanAStockAfterARefusalIsGivenBack) {
  daemon_.writable = true;
  daemon_.grants_max = DirectLease::kStockMax + 2;
  EXPECT_EQ(ReasonOf(Take(DirectLease::kStockMax + 4).status()), "TOO_MUCH_GRANTED");
  EXPECT_EQ(daemon_.Unpinned(2).size(), 2u);
  EXPECT_EQ(Take(DirectLease::kStockMax)->size(), DirectLease::kStockMax);
}

TEST_F(GrantTest, AStockIsAtMostASixteenthOfWhatLeasesMayHave) {
  for (const auto& [slots, asked] : {std::pair(3u, 3u), {0u, 1u}}) {
    FakeDaemon daemon(Budgets(0, 16 * slots * kSlotBytes));
    daemon.writable = true;
    FakeServer server(&daemon);
    const Pool pool = Connect(server.address());
    ASSERT_TRUE(daemon.lease->Take(pool, "layout", kSlotBytes, 1, absl::Now() + absl::Seconds(10)).ok());
    EXPECT_EQ(daemon.grants, (std::vector<uint32_t>{asked}));
  }
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

// A daemon with direct ways whose answers get lost. One name "s", one layout, slots that are never free again.
class FakeDirect final : public v1::StatePool::Service {
 public:
  static constexpr uint64_t kStateBytes = Direct::kStateBytesMin;

  FakeDirect() : path_(absl::StrCat(testing::TempDir(), "/direct-", getpid(), ".sock")) {
    unlink(path_.c_str());
    listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_, 16), 0);
    memory_ = memfd_create("fake-slots", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT_EQ(ftruncate(memory_, 64 * kStateBytes), 0);
    EXPECT_EQ(fcntl(memory_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    slots_ = static_cast<char*>(mmap(nullptr, 64 * kStateBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_, 0));
    acceptor_ = std::thread([this] {
      for (int to; (to = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;)
        workers_.emplace_back([this, to] { Serve(to); });
    });
  }
  ~FakeDirect() override {
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    for (std::thread& worker : workers_) worker.join();
    close(listener_);
    close(memory_);
    munmap(slots_, 64 * kStateBytes);
    unlink(path_.c_str());
  }

  grpc::Status GetCapabilities(grpc::ServerContext*, const v1::GetCapabilitiesRequest*, v1::Capabilities* a) override {
    a->set_copy_mode("direct");
    a->set_arena_socket(path_);
    return grpc::Status::OK;
  }
  grpc::Status GetLayout(grpc::ServerContext*, const v1::GetLayoutRequest*, v1::LayoutInfo* a) override {
    a->set_fingerprint("fingerprint");
    a->set_state_bytes(kStateBytes);
    return grpc::Status::OK;
  }
  grpc::Status OpenDirect(grpc::ServerContext*, const v1::OpenDirectRequest*, v1::DirectLease* a) override {
    a->set_lease(absl::StrCat("lease", ++opened));
    a->set_incarnation("i");
    a->set_socket(path_);
    a->set_token(a->lease());
    return grpc::Status::OK;
  }
  grpc::Status Grant(grpc::ServerContext*, const v1::GrantRequest*, v1::GrantResponse* a) override {
    if (!grant_error.ok()) return grant_error;
    ++next_slot_;
    *a->add_slots() = SlotOf(next_slot_, 1, next_slot_ * kStateBytes);
    return grpc::Status::OK;
  }
  grpc::Status Get(grpc::ServerContext*, const v1::GetRequest* r, v1::GetResponse* a) override {
    calls.push_back(r->lease().empty() ? "Get" : "Get " + r->lease());
    if (!r->lease().empty() && !error.ok()) return std::exchange(error, grpc::Status::OK);
    const std::string bytes(slots_ + slot_ * kStateBytes, kStateBytes);
    *a->mutable_info()->mutable_name() = SequenceRef("s");
    a->mutable_info()->set_layout("fingerprint");
    a->mutable_info()->set_state_bytes(kStateBytes);
    a->mutable_info()->set_checksum(ChecksumOfPieces({bytes}));
    a->set_data_bytes(kStateBytes);
    if (r->lease().empty()) {
      a->set_data(bytes);
    } else {
      *a->mutable_slot() = SlotOf(1, 1, slot_ * kStateBytes);
    }
    return grpc::Status::OK;
  }
  grpc::Status Set(grpc::ServerContext*, const v1::SetRequest* r, v1::NameInfo* a) override {
    calls.push_back(r->lease().empty() ? "Set" : "Set " + r->lease());
    if (r->lease().empty() && r->checksum() != ChecksumOfPieces({r->data()}))
      return Error(grpc::INVALID_ARGUMENT, "CHECKSUM_MISMATCH", "checksum");
    const bool fails = !r->lease().empty() && !error.ok();
    if (!fails || is_done) {
      a->set_replayed(!request_ids.insert(r->request_id()).second);
      slot_ = r->lease().empty() ? ++next_slot_ : r->grant();
      std::memcpy(slots_ + slot_ * kStateBytes, r->data().data(), r->data().size());
    }
    *a->mutable_name() = SequenceRef("s");
    a->set_layout("fingerprint");
    a->set_state_bytes(kStateBytes);
    return fails ? std::exchange(error, grpc::Status::OK) : grpc::Status::OK;
  }

  // Calls come one after the other.
  int opened = 0;
  std::vector<std::string> calls;  // and the lease that they named
  std::set<std::string> request_ids;
  grpc::Status error, grant_error;  // of the next call with a lease; of Grant
  bool is_done = false;             // the call that fails does what it should

 private:
  void Serve(int to) const {
    char text[65536];
    ssize_t size = recv(to, text, sizeof text, 0);
    std::string answer =
        absl::StrCat(R"({"lease":")", absl::string_view(text, static_cast<size_t>(size)), R"(","incarnation":"i"})");
    EXPECT_GT(send(to, answer.data(), answer.size(), MSG_NOSIGNAL), 0);
    while ((size = recv(to, text, sizeof text, 0)) > 0) {
      v1::LeaseRequest request;
      EXPECT_TRUE(request.ParseFromArray(text, static_cast<int>(size)));
      if (request.extent() == 0) continue;
      v1::LeaseEvent event;
      event.set_extent(request.extent());
      event.set_bytes(64 * kStateBytes);
      event.set_writable(true);
      SendEvent(to, event, memory_);
    }
    close(to);
  }

  const std::string path_;
  int listener_ = -1, memory_ = -1;
  char* slots_ = nullptr;
  uint64_t next_slot_ = 0, slot_ = 0;  // the last one that was given, and the one that "s" has
  std::thread acceptor_;
  std::vector<std::thread> workers_;
};

class DirectPoolTest : public testing::Test {
 protected:
  static Pool Connect(const std::string& address, int max_attempts = 3) {
    Options options;
    options.timeout = absl::Seconds(10);
    options.max_attempts = max_attempts;
    options.arenas = false;
    return *Pool::Connect(address, options);
  }
  absl::StatusOr<v1::NameInfo> Set(char c) {
    return pool_->Set("s", "layout", 1, std::string(FakeDirect::kStateBytes, c));
  }
  char Seen() {
    const auto view = pool_->GetView(SequenceRef("s"));
    EXPECT_TRUE(view.ok()) << view.status();
    return view.ok() && view->Verify().ok() ? view->bytes().back() : '?';
  }
  std::vector<std::string> Calls() { return std::exchange(service_.calls, {}); }

  FakeDirect service_;
  FakeServer server_{&service_};
  std::optional<Pool> pool_ = Connect(server_.address());
};

using Names = std::vector<std::string>;

TEST_F(DirectPoolTest, OneLeaseIsForAllCalls) {
  EXPECT_TRUE(Set('a').ok());
  const Pool copy = *pool_;
  EXPECT_EQ(Seen(), 'a');
  EXPECT_TRUE(Set('b').ok());
  const auto state = copy.Get(SequenceRef("s"));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->pieces().front().back(), 'b');
  EXPECT_EQ(Calls(), (Names{"Set lease1", "Get lease1", "Set lease1", "Get lease1"}));
  EXPECT_EQ(service_.opened, 1);
}

TEST_F(DirectPoolTest, ASetWhoseAnswerIsLostIsSentAgainInAMessageWithTheSameRequestId) {
  for (const bool is_done : {false, true}) {
    service_.error = Broken();
    service_.is_done = is_done;
    const auto info = Set('a');
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->replayed(), is_done);
    const Names calls = Calls();
    EXPECT_EQ(calls, (Names{is_done ? "Set lease2" : "Set lease1", "Set"}));
  }
  EXPECT_TRUE(Set('b').ok());
  EXPECT_EQ(Calls(), (Names{"Set lease3"})) << "nobody knows what the lease has after that";
}

TEST_F(DirectPoolTest, WithoutRetriesTheErrorOfASetIsTheCallsOwn) {
  pool_ = Connect(server_.address(), 1);
  service_.error = Broken();
  EXPECT_EQ(ReasonOf(Set('a').status()), "UNREACHABLE");
  EXPECT_EQ(Calls(), (Names{"Set lease1"}));
}

TEST_F(DirectPoolTest, AGetWhoseAnswerIsLostIsAskedInAMessageAndThePinEndsWithItsLease) {
  EXPECT_TRUE(Set('a').ok());
  Calls();
  service_.error = Broken();
  EXPECT_EQ(Seen(), 'a');
  EXPECT_EQ(Seen(), 'a');
  EXPECT_EQ(Calls(), (Names{"Get lease1", "Get", "Get lease2"}));
}

TEST_F(DirectPoolTest, ALeaseThatTheDaemonDoesNotKnowIsReplaced) {
  EXPECT_TRUE(Set('a').ok());
  service_.error = Error(grpc::NOT_FOUND, "LEASE_UNKNOWN", "lease");
  EXPECT_EQ(Seen(), 'a');
  service_.error = Error(grpc::NOT_FOUND, "LEASE_UNKNOWN", "lease");
  EXPECT_TRUE(Set('b').ok());
  EXPECT_EQ(Seen(), 'b');
  EXPECT_EQ(Calls(), (Names{"Set lease1", "Get lease1", "Get lease2", "Set lease2", "Set", "Get lease3"}));
}

TEST_F(DirectPoolTest, WhatTheDaemonHasNoRoomForGoesInMessagesAndTheLeaseStays) {
  EXPECT_TRUE(Set('a').ok());
  service_.error = Error(grpc::RESOURCE_EXHAUSTED, "TOO_MUCH_PINNED", "", 1);
  EXPECT_EQ(Seen(), 'a');
  service_.grant_error = Error(grpc::RESOURCE_EXHAUSTED, "TOO_MUCH_GRANTED", "", 1);
  EXPECT_TRUE(Set('b').ok());
  EXPECT_EQ(Calls(), (Names{"Set lease1", "Get lease1", "Get", "Set"}));
  EXPECT_EQ(service_.opened, 1);
}

TEST_F(DirectPoolTest, ErrorsOfTheNameAreTheCallsOwn) {
  EXPECT_TRUE(Set('a').ok());
  service_.error = Error(grpc::NOT_FOUND, "EVICTED", "name");
  EXPECT_EQ(ReasonOf(pool_->GetView(SequenceRef("s")).status()), "EVICTED");
  service_.error = Error(grpc::ABORTED, "REVISION_MISMATCH", "if_revision");
  EXPECT_EQ(ReasonOf(Set('b').status()), "REVISION_MISMATCH");
  EXPECT_EQ(Calls(), (Names{"Set lease1", "Get lease1", "Set lease1"}));
}

TEST_F(DirectPoolTest, ALieAboutTheChecksumIsTold) {
  v1::SetRequest request;
  request.set_sequence("s");
  request.set_layout("layout");
  const std::string bytes(FakeDirect::kStateBytes, 'a');
  request.set_checksum(ChecksumOfPieces({bytes}));
  EXPECT_TRUE(pool_->Set(request, {bytes}).ok());
  request.set_checksum("0123456789abcdef");
  EXPECT_NE(request.checksum(), ChecksumOfPieces({bytes}));
  EXPECT_EQ(ReasonOf(pool_->Set(request, {bytes}).status()), "CHECKSUM_MISMATCH");
  EXPECT_EQ(Calls(), (Names{"Set lease1", "Set"})) << "by the daemon, to which the bytes go";
}

}  // namespace
}  // namespace statepool::client
