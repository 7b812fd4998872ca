// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/host_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/memory/failing_device.h"
#include "server/memory/far_device.h"

namespace statepool {
namespace {

constexpr uint64_t operator""_KiB(unsigned long long n) { return n << 10; }
constexpr uint64_t operator""_MiB(unsigned long long n) { return n << 20; }
constexpr uint64_t operator""_GiB(unsigned long long n) { return n << 30; }

std::unique_ptr<HostDevice> MakeDevice(uint64_t budget_bytes, uint64_t chunk_bytes = 64_KiB) {
  return *HostDevice::Create({.budget_bytes = budget_bytes, .chunk_bytes = chunk_bytes});
}

TEST(HostDevice, GivesZeroedMemoryThatCanBeWritten) {
  const auto device = MakeDevice(1_MiB);
  const auto extent = device->AllocateExtent(7, 3);
  ASSERT_TRUE(extent.ok()) << extent.status();
  char* data = (*extent)->data();
  EXPECT_EQ((*extent)->bytes(), 192_KiB);
  EXPECT_EQ((*extent)->tenant(), 7u);
  EXPECT_TRUE(std::all_of(data, data + 192_KiB, [](char c) { return c == 0; }));
  ASSERT_TRUE((*device->CopyIn(data + 100, "state"))->Wait().ok());
  std::string back(5, 0);
  ASSERT_TRUE((*device->CopyOut(back.data(), data + 100, 5))->Wait().ok());
  EXPECT_EQ(back, "state");
}

TEST(HostDevice, NeverExceedsItsBudgetAndGivesBackWhatIsFreed) {
  const auto device = MakeDevice(256_KiB + 1);  // the odd byte is no chunk
  EXPECT_EQ(device->budget_bytes(), 256_KiB);
  auto first = device->AllocateExtent(0, 3);
  ASSERT_TRUE(first.ok());
  const auto refused = device->AllocateExtent(0, 2);
  EXPECT_EQ(ReasonOf(refused.status()), "HOT_FULL");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GT(GetErrorDetail(refused.status()).retry_after, absl::ZeroDuration());
  EXPECT_EQ(device->used_bytes(), 192_KiB);
  EXPECT_TRUE(device->AllocateExtent(0, 1).ok());
  first->reset();
  EXPECT_EQ(device->used_bytes(), 0u);
  EXPECT_TRUE(device->AllocateExtent(0, 4).ok());
}

TEST(HostDevice, RefusesSizesThatWouldOverflow) {
  const auto device = MakeDevice(1_MiB);
  EXPECT_EQ(ReasonOf(device->AllocateExtent(0, UINT64_MAX / 64_KiB + 2).status()), "HOT_FULL");
  EXPECT_EQ(device->used_bytes(), 0u);
}

TEST(HostDevice, LetsAnotherHolderOfTheDescriptorReadOnly) {
  const auto device = MakeDevice(1_MiB);
  const auto extent = *device->AllocateExtent(0, 1);
  std::strcpy(extent->data(), "mine");
  const int fd = static_cast<const HostExtent&>(*extent).fd();

  void* view = mmap(nullptr, 64_KiB, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(view, MAP_FAILED);
  EXPECT_STREQ(static_cast<const char*>(view), "mine");
  EXPECT_NE(mprotect(view, 64_KiB, PROT_READ | PROT_WRITE), 0);
  munmap(view, 64_KiB);
  EXPECT_EQ(mmap(nullptr, 64_KiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  EXPECT_EQ(pwrite(fd, "x", 1, 0), -1);
  EXPECT_EQ(ftruncate(fd, 0), -1);
  const int reopened = open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_RDWR);
  if (reopened >= 0) {
    EXPECT_EQ(mmap(nullptr, 64_KiB, PROT_READ | PROT_WRITE, MAP_SHARED, reopened, 0), MAP_FAILED);
    close(reopened);
  }
  extent->data()[0] = 'w';  // we still can
}

TEST(HostDevice, WhatWasMappedBeforeTheSealStaysWritableAndNothingElseIs) {
  const auto device = MakeDevice(1_MiB);
  const auto extent = *device->AllocateExtent(0, 1, /*sealed=*/false);
  EXPECT_FALSE(extent->sealed());
  void* mapped = mmap(nullptr, 64_KiB, PROT_READ | PROT_WRITE, MAP_SHARED, extent->fd(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  EXPECT_EQ(ftruncate(extent->fd(), 0), -1);
  ASSERT_TRUE(extent->Seal());
  ASSERT_TRUE(extent->Seal());
  EXPECT_TRUE(extent->sealed());
  std::strcpy(static_cast<char*>(mapped), "theirs");
  EXPECT_STREQ(extent->data(), "theirs");
  EXPECT_EQ(mmap(nullptr, 64_KiB, PROT_READ | PROT_WRITE, MAP_SHARED, extent->fd(), 0), MAP_FAILED);
  EXPECT_EQ(pwrite(extent->fd(), "x", 1, 0), -1);
  munmap(mapped, 64_KiB);
}

TEST(HostDevice, ExportsADescriptorThatOutlivesTheExtent) {
  const auto device = MakeDevice(256_KiB);
  auto extent = *device->AllocateExtent(0, 2);
  std::strcpy(extent->data(), "kept");
  const auto fds = extent->ExportChunks();
  ASSERT_TRUE(fds.ok()) << fds.status();
  ASSERT_EQ(fds->size(), 1u);
  EXPECT_NE(fds->front(), extent->fd());
  extent.reset();
  char kept[5];
  EXPECT_EQ(pread(fds->front(), kept, 5, 0), 5);
  EXPECT_STREQ(kept, "kept");
  close(fds->front());
}

TEST(HostDevice, NeverShowsOneTenantsBytesToTheNext) {
  const auto device = MakeDevice(64_KiB);
  for (TenantId tenant = 0; tenant < 8; ++tenant) {
    const auto extent = *device->AllocateExtent(tenant, 1);
    ASSERT_TRUE(std::all_of(extent->data(), extent->data() + 64_KiB, [](char c) { return c == 0; }));
    std::memset(extent->data(), 0x5a, 64_KiB);
  }
}

TEST(HostDevice, TakesSmallerChunksForSmallBudgets) {
  EXPECT_EQ(HostDevice::ChunkBytesFor(8_GiB), 2_MiB);
  EXPECT_EQ(HostDevice::ChunkBytesFor(128_MiB), 2_MiB);
  EXPECT_EQ(HostDevice::ChunkBytesFor(64_MiB), 1_MiB);
  EXPECT_EQ(HostDevice::ChunkBytesFor(1), 64_KiB);
}

TEST(HostDevice, RefusesOptionsThatMakeNoSense) {
  EXPECT_FALSE(HostDevice::Create({.budget_bytes = 1_MiB, .chunk_bytes = 100'000}).ok());
  EXPECT_FALSE(HostDevice::Create({.budget_bytes = 1_MiB, .chunk_bytes = 512}).ok());
  EXPECT_FALSE(HostDevice::Create({.budget_bytes = 1_KiB}).ok());
}

TEST(HostDevice, KeepsItsBudgetUnderContention) {
  const auto device = MakeDevice(640_KiB);
  std::atomic<int> held{0}, most{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        const auto extent = device->AllocateExtent(0, 3);
        if (!extent.ok()) continue;
        const int now = ++held;
        for (int before = most; before < now && !most.compare_exchange_weak(before, now);) {
        }
        --held;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(most, 1);
  EXPECT_LE(most, 3);  // ten chunks
  EXPECT_EQ(device->used_bytes(), 0u);
}

TEST(FailingDevice, RefusesOnDemandAndElseIsItsInnerDevice) {
  const auto inner = MakeDevice(1_MiB);
  bool fail = true;
  FailingDevice device(inner.get(),
                       [&](TenantId, uint64_t) { return fail ? absl::InternalError("planted") : absl::OkStatus(); });
  EXPECT_EQ(device.AllocateExtent(0, 1).status().message(), "planted");
  fail = false;
  const auto extent = device.AllocateExtent(0, 1);
  EXPECT_TRUE(extent.ok());
  EXPECT_EQ(device.used_bytes(), 64_KiB);
  EXPECT_EQ(device.budget_bytes(), 1_MiB);
}

TEST(OpenFileLimit, IsRaisedToTheHardLimit) {
  rlimit limit{};
  const uint64_t raised = RaiseOpenFileLimit();
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(raised, limit.rlim_max);
  EXPECT_EQ(limit.rlim_cur, limit.rlim_max);
}

bool CanBeWrittenThrough(int fd) {
  void* mapped = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped != MAP_FAILED) munmap(mapped, 4096);
  const bool by_call = pwrite(fd, "x", 1, 0) == 1;
  EXPECT_EQ(by_call, mapped != MAP_FAILED);
  return by_call;
}

TEST(HostDevice, SharedMemoryIsZeroedCountedAndOfFixedSize) {
  const auto device = MakeDevice(256_KiB);
  auto shared = device->AllocateShared(7, 3);
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ((*shared)->bytes(), 192_KiB);
  EXPECT_EQ((*shared)->tenant(), 7u);
  EXPECT_EQ(device->used_bytes(), 192_KiB);
  EXPECT_EQ(ReasonOf(device->AllocateShared(7, 2).status()), "HOT_FULL");
  EXPECT_EQ(ReasonOf(device->AllocateExtent(7, 2).status()), "HOT_FULL");
  const char* data = (*shared)->data();
  EXPECT_TRUE(std::all_of(data, data + 192_KiB, [](char c) { return c == 0; }));
  EXPECT_TRUE(CanBeWrittenThrough((*shared)->fd()));
  EXPECT_EQ(data[0], 'x');
  EXPECT_NE(ftruncate((*shared)->fd(), 0), 0);
  EXPECT_NE(ftruncate((*shared)->fd(), 1 << 20), 0);
  shared->reset();
  EXPECT_EQ(device->used_bytes(), 0u);
}

TEST(HostDevice, RevokedMemoryIsEmptyAndCanNotBeWrittenAnyMore) {
  const auto device = MakeDevice(256_KiB);
  auto shared = *device->AllocateShared(0, 4);
  const int kept = dup(shared->fd());
  std::memset(shared->data(), 'w', 256_KiB);
  EXPECT_TRUE(shared->Revoke());
  EXPECT_TRUE(shared->Revoke());
  struct stat info;
  ASSERT_EQ(fstat(kept, &info), 0);
  EXPECT_EQ(info.st_blocks, 0);
  EXPECT_FALSE(CanBeWrittenThrough(kept));
  EXPECT_EQ(device->used_bytes(), 256_KiB);  // until it is destroyed
  shared.reset();
  EXPECT_EQ(device->used_bytes(), 0u);
  close(kept);
}

TEST(HostDevice, MemoryThatSomebodyCanWriteToIsNotRevokedYet) {
  const auto device = MakeDevice(256_KiB);
  auto shared = *device->AllocateShared(0, 1);
  char* theirs = static_cast<char*>(mmap(nullptr, 64_KiB, PROT_READ | PROT_WRITE, MAP_SHARED, shared->fd(), 0));
  theirs[0] = 'w';
  EXPECT_FALSE(shared->Revoke());
  EXPECT_EQ(theirs[0], 0);  // its contents are gone all the same
  theirs[0] = 'z';
  EXPECT_FALSE(shared->Revoke());
  EXPECT_EQ(theirs[0], 0);
  munmap(theirs, 64_KiB);
  EXPECT_TRUE(shared->Revoke());
}

TEST(HostDevice, MemoryThatWasSealedAgainstRevokingIsNeverSaidToBeFree) {
  const auto device = MakeDevice(256_KiB);
  for (const int seal : {F_SEAL_SEAL, 0x0010 /* F_SEAL_FUTURE_WRITE */}) {
    auto shared = *device->AllocateShared(0, 1);
    ASSERT_EQ(fcntl(shared->fd(), F_ADD_SEALS, seal), 0);
    EXPECT_FALSE(shared->Revoke());
    EXPECT_FALSE(shared->Revoke());
  }
}

TEST(HostDevice, PinsEachExtentWhileItLivesAndArenasNever) {
  std::map<char*, uint64_t> pinned;
  bool refuse = false;
  HostDeviceOptions options{.budget_bytes = 4 << 20, .chunk_bytes = 1 << 20};
  options.pinning.pin = [&](char* data, uint64_t bytes) -> absl::Status {
    if (refuse) return absl::InternalError("planted");
    EXPECT_TRUE(pinned.emplace(data, bytes).second);
    data[bytes - 1] = 1;  // it is mapped
    return absl::OkStatus();
  };
  options.pinning.unpin = [&](char* data) {
    EXPECT_EQ(data[pinned.at(data) - 1], 1);  // still
    pinned.erase(data);
    return absl::OkStatus();
  };
  const auto device = *HostDevice::Create(std::move(options));
  auto one = *device->AllocateExtent(0, 1), two = *device->AllocateExtent(0, 2);
  EXPECT_EQ(pinned, (std::map<char*, uint64_t>{{one->data(), 1 << 20}, {two->data(), 2 << 20}}));
  one.reset();
  EXPECT_EQ(pinned.size(), 1u);
  auto arena = *device->AllocateShared(0, 1);
  EXPECT_EQ(pinned.size(), 1u);
  two.reset();
  refuse = true;
  const auto refused = device->AllocateExtent(0, 1);
  EXPECT_EQ(ReasonOf(refused.status()), "HOT_FULL");
  EXPECT_EQ(device->used_bytes(), arena->bytes());
  EXPECT_TRUE(pinned.empty());
}

TEST(HostDevice, HashesStatesAsTheyWouldBeHashedAlone) {
  const auto host = *HostDevice::Create({.budget_bytes = 4 << 20, .chunk_bytes = 1 << 20});
  const auto behind = *HostDevice::Create({.budget_bytes = 4 << 20, .chunk_bytes = 1 << 20});
  FarDevice far(behind.get());
  for (Device* device : {static_cast<Device*>(host.get()), static_cast<Device*>(&far)}) {
    const auto extent = *device->AllocateExtent(0, 2);
    std::string bytes(extent->bytes(), 0);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * i >> 7);
    ASSERT_TRUE((*device->CopyIn(extent->data(), bytes))->Wait().ok());
    for (const uint64_t size : {uint64_t{0}, uint64_t{100}, kLeafBytes, 3 * kLeafBytes + 17}) {
      std::vector<const char*> states;
      std::vector<LeafHash> expected;
      for (const uint64_t at : {400'000, 0, 999'999}) {
        states.push_back(extent->data() + at);
        for (const LeafHash hash : HashLeaves(absl::string_view(bytes).substr(at, size))) expected.push_back(hash);
      }
      std::vector<LeafHash> hashes(states.size() * LeafCount(size));
      ASSERT_TRUE(device->HashStates(states, size, absl::MakeSpan(hashes)).ok());
      EXPECT_EQ(hashes, expected) << size << " bytes on " << device->name();
    }
  }
}

TEST(HostDevice, KeepsWhatCanNotBeUnpinnedMappedAndCounted) {
  bool refuse = true;
  HostDeviceOptions options{.budget_bytes = 2 << 20, .chunk_bytes = 1 << 20};
  options.pinning.pin = [](char*, uint64_t) { return absl::OkStatus(); };
  options.pinning.unpin = [&](char*) { return refuse ? absl::UnavailableError("planted") : absl::OkStatus(); };
  const auto device = *HostDevice::Create(std::move(options));
  auto stuck = *device->AllocateExtent(0, 1), other = *device->AllocateExtent(0, 1);
  char* const data = stuck->data();
  data[5] = 7;
  stuck.reset();
  refuse = false;
  other.reset();
  EXPECT_EQ(device->used_bytes(), 1u << 20);
  unsigned char resident = 0;
  ASSERT_EQ(mincore(data, 1, &resident), 0) << "nothing is mapped there";
  EXPECT_EQ(data[5], 7);
  EXPECT_EQ(ReasonOf(device->AllocateExtent(0, 2).status()), "HOT_FULL");
  EXPECT_TRUE(device->AllocateExtent(0, 1).ok());
}

}  // namespace
}  // namespace statepool
