// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaDevice on a GPU; fails where there is none. The program starts itself anew as the other process: as one that maps
// what it is sent (--importer), and as one that breaks its GPU (--break), since nothing in a process can use a GPU any
// more whose context is broken.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/checksum.h"
#include "server/core/error.h"
#include "server/memory/cuda_device.h"
#include "server/memory/cuda_driver.h"
#include "server/memory/host_device.h"

// The linker gives CudaDevice this in the place of CUDA's own: it refuses as often as a test wants.
std::atomic<int> refused_waits{0};
extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier): the linker's names
cudaError_t __real_cudaEventSynchronize(cudaEvent_t event);
cudaError_t __wrap_cudaEventSynchronize(cudaEvent_t event);
cudaError_t __wrap_cudaEventSynchronize(cudaEvent_t event) {
  if (refused_waits.load() == 0) return __real_cudaEventSynchronize(event);
  --refused_waits;
  return cudaErrorNotPermitted;
}
// NOLINTEND(bugprone-reserved-identifier)
}

namespace statepool {
namespace {

constexpr uint64_t operator""_KiB(unsigned long long n) { return n << 10; }
constexpr uint64_t operator""_MiB(unsigned long long n) { return n << 20; }

constexpr uint64_t kChunk = 2_MiB;
constexpr int kSocket = 3;  // the importer's
constexpr size_t kSentMax = 64;

using Random = std::mt19937_64;

std::string RandomBytes(Random* random, uint64_t size) {
  std::string bytes((size + 7) / 8 * 8, '\0');
  for (uint64_t i = 0; i < bytes.size(); i += 8) {
    const uint64_t word = (*random)();
    std::memcpy(&bytes[i], &word, 8);
  }
  bytes.resize(size);
  return bytes;
}

std::unique_ptr<CudaDevice> MakeDevice(CudaDeviceOptions options) {
  auto device = CudaDevice::Create(std::move(options));
  EXPECT_TRUE(device.ok()) << device.status();
  return *std::move(device);  // throws, and so ends the test
}

// ----
// bytes of a device, through staging of its own

absl::Status Write(Device* device, char* to, absl::string_view bytes) {
  auto staging = device->AllocateStaging(bytes.size());
  if (!staging.ok()) return staging.status();
  std::memcpy((*staging)->data(), bytes.data(), bytes.size());
  auto copy = device->CopyIn(to, {(*staging)->data(), bytes.size()});
  return copy.ok() ? (*copy)->Wait() : copy.status();
}

absl::StatusOr<std::string> Read(Device* device, const char* from, uint64_t bytes) {
  auto staging = device->AllocateStaging(bytes);
  if (!staging.ok()) return staging.status();
  std::memset((*staging)->data(), '?', bytes);
  auto copy = device->CopyOut((*staging)->data(), from, bytes);
  if (!copy.ok()) return copy.status();
  if (absl::Status status = (*copy)->Wait(); !status.ok()) return status;
  return std::string((*staging)->data(), bytes);
}

// The first byte that is not `value`, and where; empty if there is none.
std::string Otherwise(Device* device, const Extent& extent, char value) {
  const auto bytes = Read(device, extent.data(), extent.bytes());
  if (!bytes.ok()) return bytes.status().ToString();
  const size_t at = bytes->find_first_not_of(value);
  if (at == std::string::npos) return "";
  char text[80];
  std::snprintf(text, sizeof text, "byte %zu is 0x%02x", at, static_cast<unsigned char>((*bytes)[at]));
  return text;
}

// ----
// another process

class OtherProcess {
 public:
  // Runs this program with `argument`; a socket to it is the other's descriptor kSocket.
  explicit OtherProcess(const char* argument) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return;
    socket_ = ends[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], kSocket);
    char program[] = "gpu_device_test";
    std::string given = argument;
    char* arguments[] = {program, given.data(), nullptr};
    if (posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, arguments, environ) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
  }
  ~OtherProcess() { (void)End(); }

  bool started() const { return pid_ > 0; }
  int socket() const { return socket_; }

  // Hangs up and waits. 0: it was content; else its exit code, or 1000 and the signal that ended it.
  int End() {
    if (socket_ >= 0) close(std::exchange(socket_, -1));
    if (pid_ <= 0) return -1;
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

 private:
  int socket_ = -1;
  pid_t pid_ = -1;
};

struct Request {
  enum What : uint64_t { kMap, kHash, kFill } what = kMap;
  uint64_t value = 0;  // kMap: bytes of each descriptor's memory; kFill: the byte
};

bool Send(int socket, const Request& request, const std::vector<int>& fds) {
  iovec data{const_cast<Request*>(&request), sizeof request};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kSentMax * sizeof(int))] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  return sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof request);
}

// False: the other hung up.
bool Receive(int socket, Request* request, std::vector<int>* fds) {
  iovec data{request, sizeof *request};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kSentMax * sizeof(int))];
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(sizeof *request)) return false;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_type != SCM_RIGHTS) continue;
    fds->resize((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(fds->data(), CMSG_DATA(header), fds->size() * sizeof(int));
  }
  return true;
}

// Maps memory of the first GPU that it is sent.
class Importer {
 public:
  Importer() : process_("--importer") {}

  // The checksum of all that it maps after it did what was asked; fails the test if it says nothing.
  uint64_t Ask(Request request, const std::vector<int>& fds = {}) {
    uint64_t answer = 0;
    EXPECT_TRUE(process_.started());
    EXPECT_TRUE(Send(process_.socket(), request, fds)) << std::strerror(errno);
    pollfd answered{process_.socket(), POLLIN, 0};
    EXPECT_EQ(poll(&answered, 1, 60'000), 1) << "the other process did not answer within a minute";
    EXPECT_EQ(recv(process_.socket(), &answer, sizeof answer, MSG_DONTWAIT), static_cast<ssize_t>(sizeof answer))
        << "the other process failed; what it said stands above";
    return answer;
  }
  // Descriptors of the whole extent, which are closed here.
  uint64_t Map(Extent* extent) {
    auto fds = extent->ExportChunks();
    EXPECT_TRUE(fds.ok()) << fds.status();
    if (!fds.ok()) return 0;
    const uint64_t answer = Ask({Request::kMap, extent->bytes() / fds->size()}, *fds);
    for (const int fd : *fds) close(fd);
    return answer;
  }
  uint64_t Hash() { return Ask({Request::kHash, 0}); }
  uint64_t Fill(char byte) { return Ask({Request::kFill, static_cast<unsigned char>(byte)}); }
  int End() { return process_.End(); }

 private:
  OtherProcess process_;
};

#define OR_EXIT(call)                                                              \
  if (const int error = static_cast<int>(call); error != 0) {                      \
    std::fprintf(stderr, "the importer: %s gave CUDA's error %d\n", #call, error); \
    std::fflush(stderr);                                                           \
    _exit(3);                                                                      \
  }

int ImporterMain() {
  alarm(280);  // whoever started it may be gone
  OR_EXIT(cudaSetDevice(0));
  const auto found = CudaDriver::Get();
  if (!found.ok()) {
    std::fprintf(stderr, "the importer: %s\n", found.status().ToString().c_str());
    return 3;
  }
  const CudaDriver& driver = **found;
  CUdeviceptr begin = 0;
  uint64_t bytes = 0;
  Request request;
  std::vector<int> fds;
  while (Receive(kSocket, &request, &fds)) {
    if (request.what == Request::kMap) {
      bytes = request.value * fds.size();
      OR_EXIT(driver.mem_address_reserve(&begin, bytes, 0, 0, 0));
      for (size_t i = 0; i < fds.size(); ++i) {
        CUmemGenericAllocationHandle handle = 0;
        OR_EXIT(driver.mem_import_from_shareable_handle(&handle,
                                                        reinterpret_cast<void*>(static_cast<uintptr_t>(fds[i])),
                                                        CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
        OR_EXIT(driver.mem_map(begin + i * request.value, request.value, 0, handle, 0));
        OR_EXIT(driver.mem_release(handle));
        close(fds[i]);
      }
      fds.clear();
      CUmemAccessDesc access{};
      access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
      access.location.id = 0;
      access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      OR_EXIT(driver.mem_set_access(begin, bytes, &access, 1));
    } else if (request.what == Request::kFill) {
      OR_EXIT(cudaMemset(reinterpret_cast<void*>(begin), static_cast<int>(request.value), bytes));
      OR_EXIT(cudaDeviceSynchronize());
    }
    std::string all(bytes, '?');
    OR_EXIT(cudaMemcpy(all.data(), reinterpret_cast<const void*>(begin), bytes, cudaMemcpyDeviceToHost));
    const uint64_t answer = ChecksumOf(all);
    if (send(kSocket, &answer, sizeof answer, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof answer)) return 4;
  }
  return 0;
}

uint64_t ChecksumOfFilled(uint64_t bytes, char byte) { return ChecksumOf(std::string(bytes, byte)); }

// ----
// what there is, options

class GpuDevice : public testing::Test {
 protected:
  GpuDevice() : seed_(std::random_device()()), random_(seed_) {
    std::printf("seed %llu\n", static_cast<unsigned long long>(seed_));
  }
  uint64_t Below(uint64_t limit) { return random_() % limit; }

  const uint64_t seed_;
  Random random_;
};

TEST_F(GpuDevice, IsListedWithItsUuidAndCreatedByIt) {
  const auto gpus = CudaDevice::ListGpus();
  ASSERT_TRUE(gpus.ok()) << gpus.status();
  for (const GpuInfo& gpu : *gpus) {
    std::printf("%s: %s, %.1f GiB\n", gpu.uuid.c_str(), gpu.name.c_str(),
                static_cast<double>(gpu.total_bytes) / (1 << 30));
    EXPECT_EQ(gpu.uuid.size(), 40u);
    EXPECT_EQ(gpu.uuid.substr(0, 4), "GPU-");
    EXPECT_FALSE(gpu.name.empty());
    EXPECT_GT(gpu.total_bytes, 1_MiB);
  }
  const std::string& uuid = gpus->back().uuid;
  const auto device = MakeDevice({.uuid = uuid, .budget_bytes = 64_MiB});
  ASSERT_NE(device, nullptr);
  EXPECT_EQ(device->name(), "cuda:" + uuid);
  EXPECT_EQ(device->chunk_bytes(), 2_MiB);
  EXPECT_FALSE(device->host_accessible());
  EXPECT_EQ(device->health(), absl::OkStatus());
  EXPECT_EQ(MakeDevice({.budget_bytes = 64_MiB})->name(), "cuda:" + gpus->front().uuid);
}

TEST_F(GpuDevice, RefusesOptionsThatMakeNoSense) {
  EXPECT_EQ(CudaDevice::Create({.uuid = "GPU-0", .budget_bytes = 64_MiB}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(CudaDevice::Create({.budget_bytes = 64_MiB, .peers = {"GPU-0"}}).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(CudaDevice::Create({.budget_bytes = 64_MiB, .chunk_bytes = 64_KiB}).status().code(),
            absl::StatusCode::kInvalidArgument);
  const uint64_t total = CudaDevice::ListGpus()->front().total_bytes;
  for (const uint64_t budget : {total, 2 * total}) {  // all of it: the context has some of that
    const auto beyond = CudaDevice::Create({.budget_bytes = budget});
    EXPECT_EQ(beyond.status().code(), absl::StatusCode::kResourceExhausted) << beyond.status();
    EXPECT_EQ(ReasonOf(beyond.status()), "HOT_FULL");
  }
  EXPECT_NE(MakeDevice({.budget_bytes = 64_MiB}), nullptr) << "nothing of the refused ones is left";
}

// ----
// the budget

TEST_F(GpuDevice, NeverExceedsItsBudgetAndGivesBackWhatIsFreed) {
  const auto device = MakeDevice({.budget_bytes = 4 * kChunk + 1, .chunk_bytes = kChunk});  // the odd byte is no chunk
  EXPECT_EQ(device->budget_bytes(), 4 * kChunk);
  EXPECT_EQ(device->reserve_bytes(), 4 * kChunk);
  auto first = device->AllocateExtent(7, 3);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ((*first)->tenant(), 7u);
  EXPECT_EQ((*first)->bytes(), 3 * kChunk);
  EXPECT_EQ((*first)->fd(), -1);
  EXPECT_FALSE((*first)->sealed());
  EXPECT_FALSE((*first)->Seal());
  EXPECT_EQ(device->used_bytes(), 3 * kChunk);
  const auto refused = device->AllocateExtent(0, 2);
  EXPECT_EQ(ReasonOf(refused.status()), "HOT_FULL") << refused.status();
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GT(GetErrorDetail(refused.status()).retry_after, absl::ZeroDuration());
  EXPECT_EQ(ReasonOf(device->AllocateShared(0, 2).status()), "HOT_FULL");
  EXPECT_EQ(ReasonOf(device->AllocateExtent(0, UINT64_MAX / kChunk + 2).status()), "HOT_FULL");
  EXPECT_EQ(device->used_bytes(), 3 * kChunk);
  EXPECT_TRUE(device->AllocateExtent(0, 1).ok());
  first->reset();
  EXPECT_EQ(device->used_bytes(), 0u);
  EXPECT_EQ(device->reserve_bytes(), 4 * kChunk);
  EXPECT_TRUE(device->AllocateExtent(0, 4).ok());
  EXPECT_EQ(device->health(), absl::OkStatus());
}

TEST_F(GpuDevice, WithoutReserveTakesMemoryWhenItIsWanted) {
  const auto device = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk, .reserve = false});
  for (int round = 0; round < 3; ++round) {
    const auto extent = device->AllocateExtent(0, 4);
    ASSERT_TRUE(extent.ok()) << extent.status();
    EXPECT_EQ(Otherwise(device.get(), **extent, 0), "");
    EXPECT_EQ(Write(device.get(), (*extent)->data(), RandomBytes(&random_, 4 * kChunk)), absl::OkStatus());
    EXPECT_EQ(device->reserve_bytes(), 0u);
  }
  EXPECT_EQ(device->reserve_bytes(), 0u);
}

TEST_F(GpuDevice, NeverShowsOneTenantsBytesToTheNext) {
  const auto device = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  for (TenantId tenant = 0; tenant < 8; ++tenant) {
    const auto extent = device->AllocateExtent(tenant, 4);
    ASSERT_TRUE(extent.ok()) << extent.status();
    EXPECT_EQ(device->reserve_bytes(), 0u) << "it is not made of the memory that the one before had";
    ASSERT_EQ(Otherwise(device.get(), **extent, 0), "") << "tenant " << tenant;
    ASSERT_EQ(Write(device.get(), (*extent)->data(), RandomBytes(&random_, 4 * kChunk)), absl::OkStatus());
  }
}

TEST_F(GpuDevice, GivesAllOfItsBudgetHoweverItWasUsedBefore) {
  constexpr uint64_t kBudget = 64;
  const auto device = MakeDevice({.budget_bytes = kBudget * kChunk, .chunk_bytes = kChunk});
  struct Living {
    std::unique_ptr<Extent> extent;
    std::string first, last;  // bytes at both ends
  };
  std::vector<Living> living;
  uint64_t used = 0, refused = 0;
  const char *lowest = nullptr, *highest = nullptr;
  const auto check = [&](const Living& one) {
    EXPECT_EQ(*Read(device.get(), one.extent->data(), 64), one.first);
    EXPECT_EQ(*Read(device.get(), one.extent->data() + one.extent->bytes() - 64, 64), one.last);
  };
  for (int step = 0; step < 800 && !HasFailure(); ++step) {
    const uint64_t chunks = 1 + Below(Below(4) == 0 ? kBudget : 6);
    auto extent = device->AllocateExtent(step, chunks);
    ASSERT_EQ(extent.ok(), used + chunks <= kBudget)
        << extent.status() << ": " << chunks << " chunks, " << used << " in use";
    if (extent.ok()) {
      used += chunks;
      Living one{*std::move(extent), RandomBytes(&random_, 64), RandomBytes(&random_, 64)};
      char* const data = one.extent->data();
      ASSERT_EQ(Write(device.get(), data, one.first), absl::OkStatus());
      ASSERT_EQ(Write(device.get(), data + one.extent->bytes() - 64, one.last), absl::OkStatus());
      lowest = lowest == nullptr ? data : std::min<const char*>(lowest, data);
      highest = std::max<const char*>(highest, data + one.extent->bytes());
      living.push_back(std::move(one));
    } else {
      ++refused;
      EXPECT_EQ(ReasonOf(extent.status()), "HOT_FULL");
      const size_t victim = Below(living.size());
      check(living[victim]);
      used -= living[victim].extent->bytes() / kChunk;
      living.erase(living.begin() + static_cast<std::ptrdiff_t>(victim));
    }
    ASSERT_EQ(device->used_bytes(), used * kChunk);
    ASSERT_EQ(device->used_bytes() + device->reserve_bytes(), kBudget * kChunk);
  }
  EXPECT_GT(refused, 100u);
  for (const Living& one : living) check(one);
  EXPECT_LE(static_cast<uint64_t>(highest - lowest), AddressRange(kBudget).total() * kChunk) << "not one address range";
  living.clear();
  const auto whole = device->AllocateExtent(0, kBudget);
  EXPECT_TRUE(whole.ok()) << whole.status();
}

TEST_F(GpuDevice, AGpuThatIsFullIsAnErrorThatPasses) {
  const auto device = MakeDevice({.budget_bytes = 256 * kChunk, .chunk_bytes = kChunk, .reserve = false});
  std::vector<void*> hog;
  for (uint64_t bytes = uint64_t{1} << 34; bytes >= 1_MiB;) {
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes) == cudaSuccess) {
      hog.push_back(memory);
    } else {
      (void)cudaGetLastError();
      bytes /= 2;
    }
  }
  const auto extent = device->AllocateExtent(0, 256);
  const auto shared = device->AllocateShared(0, 256);
  EXPECT_EQ(extent.status().code(), absl::StatusCode::kResourceExhausted) << extent.status();
  EXPECT_EQ(ReasonOf(extent.status()), "HOT_FULL");
  EXPECT_GT(GetErrorDetail(extent.status()).retry_after, absl::ZeroDuration());
  EXPECT_EQ(ReasonOf(shared.status()), "HOT_FULL") << shared.status();
  EXPECT_EQ(device->used_bytes(), 0u);
  EXPECT_EQ(device->health(), absl::OkStatus());
  for (void* memory : hog) EXPECT_EQ(cudaFree(memory), cudaSuccess);
  const auto again = device->AllocateExtent(0, 256);
  EXPECT_TRUE(again.ok()) << again.status();
}

// ----
// other processes

TEST_F(GpuDevice, AnotherProcessSeesTheBytesOfExportedChunks) {
  const auto device = MakeDevice({.budget_bytes = 8 * kChunk, .chunk_bytes = kChunk});
  Importer other;
  const auto extent = *device->AllocateExtent(0, 3);
  const std::string before = RandomBytes(&random_, 3 * kChunk), after = RandomBytes(&random_, 3 * kChunk);
  ASSERT_EQ(Write(device.get(), extent->data(), before), absl::OkStatus());
  ASSERT_EQ(other.Map(extent.get()), ChecksumOf(before));
  ASSERT_EQ(Write(device.get(), extent->data(), after), absl::OkStatus());
  EXPECT_EQ(other.Hash(), ChecksumOf(after));
  // There are no seals.
  EXPECT_EQ(other.Fill('w'), ChecksumOfFilled(3 * kChunk, 'w'));
  EXPECT_EQ(Otherwise(device.get(), *extent, 'w'), "");
  EXPECT_EQ(other.End(), 0);
}

TEST_F(GpuDevice, ExportsADescriptorForEachChunkThatIsClosedOnExec) {
  const auto device = MakeDevice({.budget_bytes = 8 * kChunk, .chunk_bytes = kChunk});
  const auto extent = *device->AllocateExtent(0, 5);
  const auto shared = *device->AllocateShared(0, 3);
  const auto chunks = extent->ExportChunks(), whole = shared->ExportChunks();
  ASSERT_TRUE(chunks.ok()) << chunks.status();
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(chunks->size(), 5u);
  EXPECT_EQ(whole->size(), 1u);
  for (const int fd : *chunks) EXPECT_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
  for (const int fd : *chunks) close(fd);
  for (const int fd : *whole) close(fd);
}

TEST_F(GpuDevice, WhatWasExportedIsNeverAnotherExtents) {
  const auto device = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  Importer other;
  auto extent = *device->AllocateExtent(1, 3);
  const std::string bytes = RandomBytes(&random_, 3 * kChunk);
  ASSERT_EQ(Write(device.get(), extent->data(), bytes), absl::OkStatus());
  ASSERT_EQ(other.Map(extent.get()), ChecksumOf(bytes));
  extent.reset();
  EXPECT_EQ(device->used_bytes(), 0u);
  EXPECT_EQ(device->reserve_bytes(), kChunk) << "its chunks went back to the reserve";
  EXPECT_EQ(other.Hash(), ChecksumOf(bytes)) << "it is the other process's still";
  const auto next = device->AllocateExtent(2, 4);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(Otherwise(device.get(), **next, 0), "");
  EXPECT_EQ(other.Fill('w'), ChecksumOfFilled(3 * kChunk, 'w'));
  EXPECT_EQ(Otherwise(device.get(), **next, 0), "") << "the other process writes to it";
  ASSERT_EQ(Write(device.get(), (*next)->data(), RandomBytes(&random_, 4 * kChunk)), absl::OkStatus());
  EXPECT_EQ(other.Hash(), ChecksumOfFilled(3 * kChunk, 'w')) << "the other process reads it";
  EXPECT_EQ(other.End(), 0);
}

TEST_F(GpuDevice, SharedMemoryIsZeroedCountedAndNeverUsedAgain) {
  const auto device = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  {
    // Left in the reserve with something in it.
    const auto extent = *device->AllocateExtent(0, 4);
    ASSERT_EQ(Write(device.get(), extent->data(), RandomBytes(&random_, 4 * kChunk)), absl::OkStatus());
  }
  Importer other;
  auto shared = device->AllocateShared(7, 3);
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ((*shared)->bytes(), 3 * kChunk);
  EXPECT_EQ((*shared)->tenant(), 7u);
  EXPECT_EQ(device->used_bytes(), 3 * kChunk);
  EXPECT_EQ(device->reserve_bytes(), kChunk) << "the reserve did not make room for it";
  EXPECT_EQ(ReasonOf(device->AllocateShared(7, 2).status()), "HOT_FULL");
  EXPECT_EQ(ReasonOf(device->AllocateExtent(7, 2).status()), "HOT_FULL");
  EXPECT_EQ(other.Map(shared->get()), ChecksumOfFilled(3 * kChunk, 0));
  EXPECT_EQ(other.Fill('w'), ChecksumOfFilled(3 * kChunk, 'w'));
  EXPECT_EQ(Otherwise(device.get(), **shared, 'w'), "");

  EXPECT_FALSE((*shared)->Revoke()) << "nobody can know that";
  EXPECT_EQ((*shared)->data(), nullptr);
  EXPECT_FALSE((*shared)->Revoke());
  EXPECT_EQ((*shared)->ExportChunks().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(other.Hash(), ChecksumOfFilled(3 * kChunk, 0)) << "its contents are not gone";
  EXPECT_EQ(device->used_bytes(), 3 * kChunk) << "until it is destroyed";
  EXPECT_EQ(other.End(), 0);
  shared->reset();
  EXPECT_EQ(device->used_bytes(), 0u);
  EXPECT_EQ(device->reserve_bytes(), kChunk);
  const auto whole = device->AllocateExtent(0, 4);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(Otherwise(device.get(), **whole, 0), "");
}

TEST_F(GpuDevice, SharedMemoryThatNobodyGotIsRevokedAtOnce) {
  const auto device = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  const auto shared = *device->AllocateShared(0, 4);
  EXPECT_TRUE(shared->Revoke());
  EXPECT_TRUE(shared->Revoke());
  EXPECT_EQ(device->used_bytes(), 4 * kChunk);
}

TEST_F(GpuDevice, MayGoWhileOthersMapItsMemory) {
  auto device = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  Importer other;
  const std::string bytes = RandomBytes(&random_, 4 * kChunk);
  {
    const auto extent = *device->AllocateExtent(0, 4);
    ASSERT_EQ(Write(device.get(), extent->data(), bytes), absl::OkStatus());
    ASSERT_EQ(other.Map(extent.get()), ChecksumOf(bytes));
    const auto unused = extent->ExportChunks();  // and descriptors that nobody took
    ASSERT_TRUE(unused.ok()) << unused.status();
    for (const int fd : *unused) close(fd);
  }
  device.reset();
  EXPECT_EQ(other.Hash(), ChecksumOf(bytes));
  const auto next = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  const auto extent = next->AllocateExtent(0, 4);
  ASSERT_TRUE(extent.ok()) << extent.status();
  EXPECT_EQ(Otherwise(next.get(), **extent, 0), "");
  EXPECT_EQ(other.Hash(), ChecksumOf(bytes));
  EXPECT_EQ(other.End(), 0);
}

// ----
// copies and hashes

TEST_F(GpuDevice, StagingIsAlignedAndOfAnySize) {
  const auto device = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{4095}, 4_KiB, 64_KiB + 1, 3_MiB, 64_MiB}) {
    const auto staging = device->AllocateStaging(bytes);
    ASSERT_TRUE(staging.ok()) << staging.status();
    EXPECT_EQ((*staging)->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*staging)->data()) % 4096, 0u) << bytes;
    std::memset((*staging)->data(), 'x', bytes);
  }
  EXPECT_EQ(ReasonOf(device->AllocateStaging(UINT64_MAX).status()), "HOT_FULL");
  EXPECT_EQ(device->health(), absl::OkStatus());
}

TEST_F(GpuDevice, CopiesAndHashesAsTheHostDoes) {
  const auto device = MakeDevice({.budget_bytes = 16 * kChunk, .chunk_bytes = kChunk});
  const auto extent = *device->AllocateExtent(0, 16);
  const uint64_t room = extent->bytes();
  const auto staging = *device->AllocateStaging(room);
  std::string expected(room, '\0');
  for (int round = 0; round < 120 && !HasFailure(); ++round) {
    const uint64_t most = round % 3 == 0 ? room : round % 3 == 1 ? 300_KiB : 200;
    const uint64_t bytes = 1 + Below(most);
    uint64_t offset = Below(room - bytes + 1);
    if (round % 2 == 0) offset -= offset % 4096;
    const std::string data = RandomBytes(&random_, bytes);
    expected.replace(offset, bytes, data);
    std::memcpy(staging->data(), data.data(), bytes);
    auto in = device->CopyIn(extent->data() + offset, {staging->data(), bytes});
    ASSERT_TRUE(in.ok()) << in.status();
    ASSERT_EQ((*in)->Wait(), absl::OkStatus());
    std::vector<LeafHash> hashes(LeafCount(bytes));
    ASSERT_EQ(device->HashLeaves(extent->data() + offset, bytes, absl::MakeSpan(hashes)), absl::OkStatus());
    EXPECT_EQ(hashes, HashLeaves(data)) << bytes << " bytes at " << offset;
    std::memset(staging->data(), '?', bytes);
    auto out = device->CopyOut(staging->data(), extent->data() + offset, bytes);
    ASSERT_TRUE(out.ok()) << out.status();
    ASSERT_EQ((*out)->Wait(), absl::OkStatus());
    EXPECT_EQ(std::memcmp(staging->data(), data.data(), bytes), 0) << bytes << " bytes at " << offset;
  }
  EXPECT_EQ(*Read(device.get(), extent->data(), room) == expected, true) << "bytes beside a copy were written";
  EXPECT_EQ(device->HashLeaves(extent->data(), 0, {}), absl::OkStatus());
}

TEST_F(GpuDevice, HashesManyStatesAsTheyWouldBeHashedAlone) {
  const auto device = MakeDevice({.budget_bytes = 600_MiB, .chunk_bytes = kChunk});
  const auto extent = *device->AllocateExtent(0, 600_MiB / kChunk);
  const std::string bytes = RandomBytes(&random_, extent->bytes());
  ASSERT_EQ(Write(device.get(), extent->data(), bytes), absl::OkStatus());
  // The last have more leaves together than one launch.
  for (const auto& [size, count] : {std::pair<uint64_t, size_t>{100, 2'000}, {64_KiB, 40}, {3_MiB + 17, 190}}) {
    std::vector<const char*> states;
    std::vector<LeafHash> expected;
    for (size_t i = 0; i < count; ++i) {
      const uint64_t at = Below(bytes.size() - size) / 16 * 16;
      states.push_back(extent->data() + at);
      for (const LeafHash hash : HashLeaves(absl::string_view(bytes).substr(at, size))) expected.push_back(hash);
    }
    std::vector<LeafHash> hashes(count * LeafCount(size));
    ASSERT_EQ(device->HashStates(states, size, absl::MakeSpan(hashes)), absl::OkStatus());
    EXPECT_EQ(hashes == expected, true) << count << " of " << size << " bytes";
  }
}

TEST_F(GpuDevice, HashesAStateOfMoreLeavesThanOneLaunchHas) {
  const uint64_t bytes = 1100_MiB + 12'345;
  const auto device = MakeDevice({.budget_bytes = 1104_MiB, .chunk_bytes = 16_MiB});
  auto extent = device->AllocateExtent(0, 69);
  ASSERT_TRUE(extent.ok()) << extent.status();
  const std::string block = RandomBytes(&random_, 16_MiB);
  std::string state(bytes, '\0');
  for (uint64_t at = 0; at < bytes; at += block.size() + 1) {
    state.replace(at, std::min<uint64_t>(block.size(), bytes - at), block, 0, bytes - at);
  }
  ASSERT_EQ(Write(device.get(), (*extent)->data(), state), absl::OkStatus());
  std::vector<LeafHash> hashes(LeafCount(bytes));
  ASSERT_EQ(device->HashLeaves((*extent)->data(), bytes, absl::MakeSpan(hashes)), absl::OkStatus());
  EXPECT_EQ(hashes == HashLeaves(state), true);
}

TEST_F(GpuDevice, ATransferThatNobodyWaitedForIsWaitedForAtItsEnd) {
  const auto device = MakeDevice({.budget_bytes = 16 * kChunk, .chunk_bytes = kChunk});
  const auto extent = *device->AllocateExtent(0, 16);
  const std::string data = RandomBytes(&random_, extent->bytes());
  for (int round = 0; round < 8; ++round) {
    ASSERT_EQ(Write(device.get(), extent->data(), data), absl::OkStatus());
    const auto staging = *device->AllocateStaging(data.size());
    std::memset(staging->data(), '?', data.size());
    ASSERT_TRUE(device->CopyOut(staging->data(), extent->data(), data.size()).ok());
    ASSERT_EQ(absl::string_view(staging->data(), data.size()) == data, true);
  }
}

TEST_F(GpuDevice, ServesEightThreads) {
  const auto device = MakeDevice({.budget_bytes = 20 * kChunk, .chunk_bytes = kChunk});
  std::atomic<int> done{0}, refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, seed = random_()] {
      Random random(seed);
      const auto staging = device->AllocateStaging(4 * kChunk);
      ASSERT_TRUE(staging.ok()) << staging.status();
      char* const host = (*staging)->data();
      for (int i = 0; i < 40 && !HasFailure(); ++i) {
        const uint64_t chunks = 1 + random() % 4, bytes = chunks * kChunk - random() % 1000;
        std::unique_ptr<Extent> extent;
        if (i % 8 == 7) {
          auto shared = device->AllocateShared(0, chunks);
          ASSERT_TRUE(shared.ok() || ReasonOf(shared.status()) == "HOT_FULL") << shared.status();
          if (shared.ok()) extent = *std::move(shared);
        } else {
          auto own = device->AllocateExtent(0, chunks);
          ASSERT_TRUE(own.ok() || ReasonOf(own.status()) == "HOT_FULL") << own.status();
          if (own.ok()) extent = *std::move(own);
        }
        if (extent == nullptr) {
          ++refused;
          continue;
        }
        EXPECT_EQ(Otherwise(device.get(), *extent, 0), "");
        const std::string data = RandomBytes(&random, bytes);
        std::memcpy(host, data.data(), bytes);
        auto in = device->CopyIn(extent->data(), {host, bytes});
        ASSERT_TRUE(in.ok()) << in.status();
        ASSERT_EQ((*in)->Wait(), absl::OkStatus());
        std::vector<LeafHash> hashes(LeafCount(bytes));
        ASSERT_EQ(device->HashLeaves(extent->data(), bytes, absl::MakeSpan(hashes)), absl::OkStatus());
        EXPECT_EQ(hashes == HashLeaves(data), true);
        std::memset(host, '?', bytes);
        auto out = device->CopyOut(host, extent->data(), bytes);
        ASSERT_TRUE(out.ok()) << out.status();
        ASSERT_EQ((*out)->Wait(), absl::OkStatus());
        EXPECT_EQ(std::memcmp(host, data.data(), bytes), 0);
        if (i % 5 == 0) {
          const auto fds = extent->ExportChunks();
          ASSERT_TRUE(fds.ok()) << fds.status();
          for (const int fd : *fds) close(fd);
        }
        ++done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%d rounds, %d refused\n", done.load(), refused.load());
  EXPECT_GT(done, 50);
  EXPECT_EQ(device->used_bytes(), 0u);
  EXPECT_EQ(device->health(), absl::OkStatus());
  const auto whole = device->AllocateExtent(0, 20);
  EXPECT_TRUE(whole.ok()) << whole.status();
}

// ----
// failure

// What is wrong is said on stderr, and counted.
class Broken {
 public:
  void Require(bool condition, const char* what, const absl::Status& status) {
    if (condition) return;
    ++wrong_;
    std::fprintf(stderr, "the broken one: %s: %s\n", what, status.ToString().c_str());
  }
  // It is the error that the device failed with.
  void RequireFailed(const absl::Status& status, const char* what) {
    Require(status.code() == absl::StatusCode::kUnavailable && ReasonOf(status) == "DEVICE_FAILED", what, status);
    if (!first_.ok()) Require(status == first_, what, status);
  }
  void set_first(const absl::Status& first) { first_ = first; }
  int wrong() const { return wrong_; }

 private:
  absl::Status first_;
  int wrong_ = 0;
};

// A chunk's trip through staging that is there already.
absl::Status RoundTrip(Device* device, Staging* staging) {
  const auto extent = device->AllocateExtent(0, 1);
  if (!extent.ok()) return extent.status();
  std::memset(staging->data(), 'x', kChunk);
  auto in = device->CopyIn((*extent)->data(), {staging->data(), kChunk});
  if (!in.ok()) return in.status();
  if (absl::Status status = (*in)->Wait(); !status.ok()) return status;
  std::memset(staging->data(), '?', kChunk);
  auto out = device->CopyOut(staging->data(), (*extent)->data(), kChunk);
  if (!out.ok()) return out.status();
  if (absl::Status status = (*out)->Wait(); !status.ok()) return status;
  std::vector<LeafHash> leaves(LeafCount(kChunk));
  if (absl::Status status = device->HashLeaves((*extent)->data(), kChunk, absl::MakeSpan(leaves)); !status.ok())
    return status;
  const std::string expected(kChunk, 'x');
  if (expected != absl::string_view(staging->data(), kChunk)) return absl::DataLossError("other bytes came back");
  return leaves == HashLeaves(expected) ? absl::OkStatus() : absl::DataLossError("other hashes came back");
}

int BreakMain() {
  alarm(100);  // a call that hangs ends it
  Broken broken;
  const auto gpus = CudaDevice::ListGpus();
  auto created = CudaDevice::Create({.budget_bytes = 8 * kChunk, .chunk_bytes = kChunk});
  if (!gpus.ok() || !created.ok()) {
    std::fprintf(stderr, "the broken one: %s\n", (gpus.ok() ? created.status() : gpus.status()).ToString().c_str());
    return 2;
  }
  std::unique_ptr<CudaDevice> device = *std::move(created), second;
  if (gpus->size() > 1) {
    auto other = CudaDevice::Create({.uuid = gpus->back().uuid, .budget_bytes = 8 * kChunk, .chunk_bytes = kChunk});
    broken.Require(other.ok(), "the second device", other.status());
    if (other.ok()) second = *std::move(other);
  }
  std::unique_ptr<Staging> seconds_staging;
  if (second != nullptr) seconds_staging = *second->AllocateStaging(kChunk);
  auto kept = *device->AllocateExtent(0, 2), gone = *device->AllocateExtent(0, 2);
  auto shared = *device->AllocateShared(0, 2);
  auto exported = shared->ExportChunks();
  broken.Require(exported.ok(), "ExportChunks before", exported.status());
  auto staging = *device->AllocateStaging(kChunk);
  auto waited = *device->CopyIn(kept->data(), {staging->data(), kChunk});
  auto dropped = *device->CopyOut(staging->data(), kept->data(), kChunk);
  const char* const nowhere = gone->data();
  gone.reset();

  std::vector<LeafHash> hashes(1);
  const absl::Status first = device->HashLeaves(nowhere, kLeafBytes, absl::MakeSpan(hashes));
  std::fprintf(stderr, "the broken one: as it should: %s\n", first.ToString().c_str());
  broken.RequireFailed(first, "hashing where nothing is mapped");
  broken.set_first(first);
  broken.RequireFailed(device->health(), "health");
  broken.RequireFailed(device->HashLeaves(kept->data(), kLeafBytes, absl::MakeSpan(hashes)), "HashLeaves");
  broken.RequireFailed(device->AllocateExtent(0, 1).status(), "AllocateExtent");
  broken.RequireFailed(device->AllocateShared(0, 1).status(), "AllocateShared");
  broken.RequireFailed(device->AllocateStaging(1).status(), "AllocateStaging");
  broken.RequireFailed(device->CopyIn(kept->data(), {staging->data(), 1}).status(), "CopyIn");
  broken.RequireFailed(device->CopyOut(staging->data(), kept->data(), 1).status(), "CopyOut");
  broken.RequireFailed(kept->ExportChunks().status(), "ExportChunks");
  broken.RequireFailed(waited->Wait(), "Wait");
  broken.Require(!shared->Revoke(), "Revoke of what was exported", absl::OkStatus());
  if (exported.ok()) {
    for (const int fd : *exported) close(fd);
  }
  if (second != nullptr) {
    const absl::Status trip = RoundTrip(second.get(), seconds_staging.get());
    std::fprintf(stderr, "the broken one: the second device afterwards: %s\n", trip.ToString().c_str());
    broken.Require(trip.ok() == second->health().ok(), "the second device does not know how it is", trip);
    seconds_staging.reset();
    second.reset();
  }
  waited.reset();
  dropped.reset();
  staging.reset();
  shared.reset();
  kept.reset();
  broken.Require(device->used_bytes() == 0, "bytes are in use", absl::OkStatus());
  device.reset();
  return broken.wrong() == 0 ? 0 : 1;
}

TEST_F(GpuDevice, ThatFailsSaysSoFromThenOnAndTheProcessLives) {
  OtherProcess broken("--break");
  ASSERT_TRUE(broken.started());
  EXPECT_EQ(broken.End(), 0) << "what is wrong stands above";
  // Nobody else is touched by it.
  const auto device = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  ASSERT_NE(device, nullptr);
  const auto staging = *device->AllocateStaging(kChunk);
  EXPECT_EQ(RoundTrip(device.get(), staging.get()), absl::OkStatus());
}

TEST_F(GpuDevice, WhatIsWrongButHarmlessIsAnErrorAndNoFailure) {
  const auto device = MakeDevice({.budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  const auto extent = *device->AllocateExtent(0, 1);
  const auto copy = device->CopyIn(extent->data(), absl::string_view(nullptr, 64));
  EXPECT_EQ(ReasonOf(copy.status()), "DEVICE_FAILED") << copy.status();
  EXPECT_EQ(device->health(), absl::OkStatus());
  EXPECT_EQ(RoundTrip(device.get(), (*device->AllocateStaging(kChunk)).get()), absl::OkStatus());
}

TEST_F(GpuDevice, ACopyThatCanNotBeWaitedForIsOverWhenItsErrorComes) {
  const uint64_t bytes = 256_MiB;  // some 5 ms
  const auto device = MakeDevice({.budget_bytes = bytes, .chunk_bytes = kChunk});
  const auto extent = *device->AllocateExtent(0, bytes / kChunk);
  const auto staging = *device->AllocateStaging(bytes);
  for (int i = 0; i < 5; ++i) {
    std::memset(staging->data(), '?', bytes);
    auto copy = *device->CopyOut(staging->data(), extent->data(), bytes);
    refused_waits = 1;
    const absl::Status status = copy->Wait();
    const char last = staging->data()[bytes - 1];
    EXPECT_EQ(ReasonOf(status), "DEVICE_FAILED") << status;
    EXPECT_EQ(refused_waits, 0) << "CUDA was not asked";
    EXPECT_EQ(last, 0) << "the copy goes on";
  }
  EXPECT_EQ(device->health(), absl::OkStatus());
}

TEST_F(GpuDevice, WhatOneGpuPinnedAnotherUnpins) {
  const auto gpus = CudaDevice::ListGpus();
  ASSERT_TRUE(gpus.ok()) << gpus.status();
  const auto first = MakeDevice({.uuid = gpus->front().uuid, .budget_bytes = kChunk, .chunk_bytes = kChunk});
  const auto last = MakeDevice({.uuid = gpus->back().uuid, .budget_bytes = kChunk, .chunk_bytes = kChunk});
  if (gpus->size() < 2) std::printf("there is one GPU: it unpins by itself\n");
  const auto host = *HostDevice::Create({.budget_bytes = 2 * kChunk, .chunk_bytes = kChunk});
  const auto extent = *host->AllocateExtent(0, 2);
  ASSERT_EQ(first->PinHost(extent->data(), extent->bytes()), absl::OkStatus());
  EXPECT_EQ(last->UnpinHost(extent->data()), absl::OkStatus());
  EXPECT_FALSE(first->UnpinHost(extent->data()).ok()) << "it is pinned still";
  EXPECT_EQ(first->health(), absl::OkStatus());
}

TEST_F(GpuDevice, ASecondOneHasItsOwnMemoryAndReachesItsPeers) {
  const auto gpus = CudaDevice::ListGpus();
  ASSERT_TRUE(gpus.ok()) << gpus.status();
  if (gpus->size() < 2) GTEST_SKIP() << "not run: ASecondOneHasItsOwnMemoryAndReachesItsPeers, there is one GPU";
  const std::string &one = (*gpus)[0].uuid, &two = (*gpus)[1].uuid;
  const auto first = MakeDevice(
      {.uuid = one, .budget_bytes = 4 * kChunk, .chunk_bytes = kChunk, .reserve = true, .peers = {one, two}});
  const auto second = MakeDevice({.uuid = two, .budget_bytes = 4 * kChunk, .chunk_bytes = kChunk});
  ASSERT_TRUE(first != nullptr && second != nullptr);
  const auto here = *first->AllocateExtent(0, 4), there = *second->AllocateExtent(0, 4);
  EXPECT_EQ(first->used_bytes(), 4 * kChunk);
  EXPECT_EQ(second->used_bytes(), 4 * kChunk);
  const std::string bytes = RandomBytes(&random_, 4 * kChunk);
  ASSERT_EQ(Write(first.get(), here->data(), bytes), absl::OkStatus());
  std::printf("%zu peers reach the first GPU\n", first->peers().size());
  if (first->peers().empty()) return;
  std::vector<LeafHash> hashes(LeafCount(bytes.size()));
  EXPECT_EQ(second->HashLeaves(here->data(), bytes.size(), absl::MakeSpan(hashes)), absl::OkStatus());
  EXPECT_EQ(hashes == HashLeaves(bytes), true) << "the second GPU reads something else";

  // Rows of the second's, from and to states that lie on the first.
  EXPECT_TRUE(second->Reaches(*first) && second->Reaches(*second));
  EXPECT_FALSE(first->Reaches(*second)) << "which was made without peers";
  CopySegment segment;
  segment.row_stride = kChunk;
  segment.element_bytes = 4;
  segment.axes = {{kChunk / 4, 4}};
  const auto copier = second->NewRowCopier(CopyPlan({segment}, kChunk), AdvancePlan({}, /*steps_max=*/1), 4);
  ASSERT_TRUE(copier.ok()) << copier.status();
  ASSERT_EQ((*copier)->Gather({{here->data() + kChunk, 2}}, there->data()), absl::OkStatus());
  EXPECT_EQ(*Read(second.get(), there->data() + 2 * kChunk, kChunk) == bytes.substr(kChunk, kChunk), true);
  const std::string row = RandomBytes(&random_, kChunk);
  ASSERT_EQ(Write(second.get(), there->data() + 3 * kChunk, row), absl::OkStatus());
  ASSERT_EQ((*copier)->Scatter({{3, 1, here->data()}}, there->data(), {}), absl::OkStatus());
  EXPECT_EQ(*Read(first.get(), here->data(), kChunk) == row, true);
  ASSERT_EQ(first->HashLeaves(here->data(), kChunk, absl::MakeSpan(hashes).first(LeafCount(kChunk))), absl::OkStatus());
  EXPECT_EQ(absl::MakeSpan(hashes).first(LeafCount(kChunk)) == absl::MakeConstSpan(HashLeaves(row)), true)
      << "the first GPU sees something else than the second wrote";
}

}  // namespace
}  // namespace statepool

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--importer") == 0) return statepool::ImporterMain();
  if (argc == 2 && std::strcmp(argv[1], "--break") == 0) return statepool::BreakMain();
  testing::InitGoogleTest(&argc, argv);
  if (const auto gpus = statepool::CudaDevice::ListGpus(); !gpus.ok()) {
    std::fprintf(stderr, "gpu_device_test: %s\n", gpus.status().ToString().c_str());
    if (!testing::GTEST_FLAG(list_tests)) return 1;
  }
  return RUN_ALL_TESTS();
}
