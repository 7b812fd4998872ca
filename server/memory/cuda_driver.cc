// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/cuda_driver.h"

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace statepool {
namespace {

// `version`: that of CUDA which the call's type is of, as in the type's name.
template <typename Call>
absl::Status Find(const char* name, unsigned int version, Call* call) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableLegacyStream, &result);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return absl::UnavailableError(absl::StrCat("CUDA finds no driver to ask for ", name, ": ", cudaGetErrorName(error),
                                               ", ", cudaGetErrorString(error)));
  }
  if (result != cudaDriverEntryPointSuccess || found == nullptr) {
    return absl::UnavailableError(absl::StrCat("the NVIDIA driver has no ", name, ": install a newer one"));
  }
  *call = reinterpret_cast<Call>(found);
  return absl::OkStatus();
}

absl::StatusOr<const CudaDriver*> FindAll() {
  auto* const driver = new CudaDriver;  // for as long as the process runs
  absl::Status status;
  const auto find = [&status](const char* name, unsigned int version, auto* call) {
    if (status.ok()) status = Find(name, version, call);
  };
  find("cuGetErrorName", 6000, &driver->get_error_name);
  find("cuGetErrorString", 6000, &driver->get_error_string);
  find("cuDeviceGetAttribute", 2000, &driver->device_get_attribute);
  find("cuMemGetAllocationGranularity", 10020, &driver->mem_get_allocation_granularity);
  find("cuMemAddressReserve", 10020, &driver->mem_address_reserve);
  find("cuMemAddressFree", 10020, &driver->mem_address_free);
  find("cuMemCreate", 10020, &driver->mem_create);
  find("cuMemRelease", 10020, &driver->mem_release);
  find("cuMemMap", 10020, &driver->mem_map);
  find("cuMemUnmap", 10020, &driver->mem_unmap);
  find("cuMemSetAccess", 10020, &driver->mem_set_access);
  find("cuMemExportToShareableHandle", 10020, &driver->mem_export_to_shareable_handle);
  find("cuMemImportFromShareableHandle", 10020, &driver->mem_import_from_shareable_handle);
  if (!status.ok()) {
    delete driver;
    return status;
  }
  return driver;
}

}  // namespace

absl::StatusOr<const CudaDriver*> CudaDriver::Get() {
  static const auto* const found = new absl::StatusOr<const CudaDriver*>(FindAll());
  return *found;
}

}  // namespace statepool
