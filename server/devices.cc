// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/devices.h"

#include <string>
#include <utility>

#include "absl/strings/strip.h"
#include "server/memory/far_device.h"
#include "server/memory/host_device.h"
#ifdef STATEPOOL_CUDA
#include "server/memory/cuda_device.h"
#endif

namespace statepool {
namespace {

absl::StatusOr<std::unique_ptr<HostDevice>> OpenHost(const DaemonFlags& flags) {
  HostDeviceOptions options;
  options.budget_bytes = flags.hot_bytes;
  options.chunk_bytes = flags.chunk_bytes;
  return HostDevice::Create(std::move(options));
}

absl::StatusOr<std::unique_ptr<Device>> OpenCuda([[maybe_unused]] const DaemonFlags& flags) {
#ifdef STATEPOOL_CUDA
  CudaDeviceOptions options;
  absl::string_view uuid = flags.device;
  if (absl::ConsumePrefix(&uuid, "cuda:")) options.uuid = std::string(uuid);
  options.budget_bytes = flags.hot_bytes;
  options.chunk_bytes = flags.chunk_bytes;
  return CudaDevice::Create(std::move(options));
#else
  return absl::UnimplementedError("this build has no CUDA: build it where nvcc and GCC are, or use --devices=host");
#endif
}

}  // namespace

absl::StatusOr<HotMemory> OpenHotMemory(const DaemonFlags& flags, const Clock* clock) {
  HotMemory memory;
  if (flags.device == "host" || flags.device == "far") {
    absl::StatusOr<std::unique_ptr<HostDevice>> host = OpenHost(flags);
    if (!host.ok()) return host.status();
    if (flags.device == "far") {
      memory.device = std::make_unique<FarDevice>(host->get());
      memory.behind = *std::move(host);
    } else {
      memory.device = *std::move(host);
    }
  } else {
    absl::StatusOr<std::unique_ptr<Device>> cuda = OpenCuda(flags);
    if (!cuda.ok()) return cuda.status();
    memory.device = *std::move(cuda);
  }
  if (!memory.device->host_accessible()) {
    absl::StatusOr<std::unique_ptr<StagingPool>> staging =
        StagingPool::Create(memory.device.get(), flags.staging_bytes, clock);
    if (!staging.ok()) return staging.status();
    memory.staging = *std::move(staging);
  }
  return memory;
}

}  // namespace statepool
