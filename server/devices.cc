// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/devices.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/memory/far_device.h"
#ifdef STATEPOOL_CUDA
#include "server/memory/cuda_device.h"
#endif

namespace statepool {
namespace {

constexpr uint64_t kSpareBytesMax = uint64_t{1} << 30;

absl::StatusOr<std::unique_ptr<HostDevice>> OpenHost(const DaemonFlags& flags) {
  HostDeviceOptions options;
  options.budget_bytes = flags.hot_bytes;
  options.chunk_bytes = flags.chunk_bytes;
  return HostDevice::Create(std::move(options));
}

absl::Status OpenFar(const DaemonFlags& flags, Memories* memories) {
  for (size_t i = 0; i < flags.devices.size(); ++i) {
    absl::StatusOr<std::unique_ptr<HostDevice>> host = OpenHost(flags);
    if (!host.ok()) return host.status();
    const std::string name = flags.devices.size() == 1 ? "far" : absl::StrCat("far:", i);
    memories->hot.push_back(std::make_unique<FarDevice>(host->get(), name));
    memories->behind.push_back(*std::move(host));
  }
  return absl::OkStatus();
}

#ifdef STATEPOOL_CUDA
absl::Status OpenCuda(const DaemonFlags& flags, Memories* memories, HostPinning* pinning) {
  std::vector<std::string> uuids;
  for (absl::string_view device : flags.devices)
    uuids.emplace_back(absl::ConsumePrefix(&device, "cuda:") ? device : absl::string_view());
  std::vector<CudaDevice*> gpus;
  for (const std::string& uuid : uuids) {
    CudaDeviceOptions options;
    options.uuid = uuid;
    options.budget_bytes = flags.hot_bytes;
    options.chunk_bytes = flags.chunk_bytes;
    if (uuids.size() > 1) options.peers = uuids;
    absl::StatusOr<std::unique_ptr<CudaDevice>> gpu = CudaDevice::Create(std::move(options));
    if (!gpu.ok()) return gpu.status();
    gpus.push_back(gpu->get());
    memories->hot.push_back(*std::move(gpu));
  }
  *pinning = PinningBy(std::move(gpus));
  return absl::OkStatus();
}
#else
absl::Status OpenCuda(const DaemonFlags&, Memories*, HostPinning*) {
  return absl::UnimplementedError("this build has no CUDA: build it where nvcc and GCC are, or use --devices=host");
}
#endif

}  // namespace

std::vector<Device*> Memories::hot_devices() const {
  std::vector<Device*> devices;
  for (const auto& device : hot) devices.push_back(device.get());
  return devices;
}

std::vector<std::string> Memories::hot_names() const {
  std::vector<std::string> names;
  for (const auto& device : hot) names.push_back(device->name());
  return names;
}

ResidencyMemories Memories::for_residency() const {
  ResidencyMemories memories;
  for (const auto& device : hot)
    memories.hot.push_back({device.get(), staging.get(), /*dirty_bytes_max=*/device->budget_bytes() / 4 * 3});
  if (warm != nullptr) memories.warm = ResidencyMemory{warm.get(), nullptr, warm->budget_bytes() / 4 * 3};
  memories.warm_is_spare = warm_is_spare;
  return memories;
}

absl::StatusOr<Memories> OpenMemories(const DaemonFlags& flags, const Clock* clock) {
  Memories memories;
  if (flags.devices.front() == "host") {
    absl::StatusOr<std::unique_ptr<HostDevice>> host = OpenHost(flags);
    if (!host.ok()) return host.status();
    memories.hot.push_back(*std::move(host));
    return memories;
  }
  HostDeviceOptions warm;
  absl::Status opened =
      flags.devices.front() == "far" ? OpenFar(flags, &memories) : OpenCuda(flags, &memories, &warm.pinning);
  if (!opened.ok()) return opened;
  memories.warm_is_spare = flags.warm_bytes == 0;
  if (memories.warm_is_spare) warm.pinning = {};
  warm.budget_bytes = memories.warm_is_spare ? std::min(kSpareBytesMax, flags.hot_bytes) : flags.warm_bytes;
  absl::StatusOr<std::unique_ptr<HostDevice>> host = HostDevice::Create(std::move(warm));
  if (!host.ok()) return host.status();
  memories.warm = *std::move(host);
  absl::StatusOr<std::unique_ptr<StagingPool>> staging =
      StagingPool::Create(memories.hot.front().get(), flags.staging_bytes, clock);
  if (!staging.ok()) return staging.status();
  memories.staging = *std::move(staging);
  return memories;
}

}  // namespace statepool
