// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The calls of the CUDA driver that the runtime has no word for, found at run time, so that a program with them starts
// on a machine without a driver. They give CUresult and want a context: cudaSetDevice has made one current.
#ifndef STATEPOOL_SERVER_MEMORY_CUDA_DRIVER_H_
#define STATEPOOL_SERVER_MEMORY_CUDA_DRIVER_H_

#include <cuda.h>
#include <cudaTypedefs.h>

#include "absl/status/statusor.h"

namespace statepool {

struct CudaDriver {
  // The same for as long as the process runs. Thread-safe. Errors: UNAVAILABLE: no driver, or one without these calls.
  static absl::StatusOr<const CudaDriver*> Get();

  PFN_cuGetErrorName_v6000 get_error_name = nullptr;
  PFN_cuGetErrorString_v6000 get_error_string = nullptr;
  PFN_cuDeviceGetAttribute_v2000 device_get_attribute = nullptr;
  PFN_cuMemGetAllocationGranularity_v10020 mem_get_allocation_granularity = nullptr;
  PFN_cuMemAddressReserve_v10020 mem_address_reserve = nullptr;
  PFN_cuMemAddressFree_v10020 mem_address_free = nullptr;
  PFN_cuMemCreate_v10020 mem_create = nullptr;
  PFN_cuMemRelease_v10020 mem_release = nullptr;
  PFN_cuMemMap_v10020 mem_map = nullptr;
  PFN_cuMemUnmap_v10020 mem_unmap = nullptr;
  PFN_cuMemSetAccess_v10020 mem_set_access = nullptr;
  PFN_cuMemExportToShareableHandle_v10020 mem_export_to_shareable_handle = nullptr;
  PFN_cuMemImportFromShareableHandle_v10020 mem_import_from_shareable_handle = nullptr;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_CUDA_DRIVER_H_
