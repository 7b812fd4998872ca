// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/gpu.h"

#include <mutex>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "client/cpp/cuda_gpu.h"

namespace statepool::client {
namespace {

struct Gpus {
  std::mutex mu;
  absl::flat_hash_map<std::string, std::shared_ptr<Gpu>> by_name;
};

Gpus& Known() {
  static auto* const gpus = new Gpus;  // threads may use it until the process has ended
  return *gpus;
}

}  // namespace

bool IsGpu(absl::string_view device) {
  if (absl::StartsWith(device, "cuda:")) return true;
  if (device.empty() || device == "host") return false;
  const std::lock_guard lock(Known().mu);
  return Known().by_name.contains(device);
}

absl::StatusOr<std::shared_ptr<Gpu>> FindGpu(const std::string& device) {
  const std::lock_guard lock(Known().mu);
  if (const auto known = Known().by_name.find(device); known != Known().by_name.end()) return known->second;
  absl::StatusOr<std::shared_ptr<Gpu>> gpu = OpenCudaGpu(device);
  if (gpu.ok()) Known().by_name[device] = *gpu;
  return gpu;
}

void SetGpu(const std::string& device, std::shared_ptr<Gpu> gpu) {
  const std::lock_guard lock(Known().mu);
  Known().by_name.erase(device);
  if (gpu != nullptr) Known().by_name[device] = std::move(gpu);
}

}  // namespace statepool::client
