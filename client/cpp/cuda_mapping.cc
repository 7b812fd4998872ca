// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/cuda_mapping.h"

#include <cuda.h>
#include <dlfcn.h>

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "client/cpp/calls.h"

namespace statepool::client {
namespace {

absl::Status Failed(absl::string_view message) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "MAPPING_FAILED", "", message);
}

// The driver's functions that are needed here.
struct Driver {
  decltype(&cuInit) init = nullptr;
  decltype(&cuGetErrorName) error_name = nullptr;
  decltype(&cuDeviceGetCount) device_count = nullptr;
  decltype(&cuDeviceGet) device = nullptr;
  decltype(&cuDeviceGetUuid) device_uuid = nullptr;
  decltype(&cuDevicePrimaryCtxRetain) retain_context = nullptr;
  decltype(&cuCtxPushCurrent) push_context = nullptr;
  decltype(&cuCtxPopCurrent) pop_context = nullptr;
  decltype(&cuCtxSynchronize) synchronize = nullptr;
  decltype(&cuStreamSynchronize) synchronize_stream = nullptr;
  decltype(&cuThreadExchangeStreamCaptureMode) exchange_capture_mode = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free = nullptr;
  decltype(&cuMemImportFromShareableHandle) import = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;

  absl::Status Must(CUresult result, absl::string_view call) const {
    if (result == CUDA_SUCCESS) return absl::OkStatus();
    const char* name = nullptr;
    if (error_name(result, &name) != CUDA_SUCCESS) name = "an error without a name";
    const std::string message = absl::StrCat(call, ": ", name);
    if (result != CUDA_ERROR_OUT_OF_MEMORY) return Failed(message);
    return MakeError(absl::StatusCode::kResourceExhausted, "MAPPING_FAILED", "", message);
  }
};

absl::StatusOr<const Driver*> FindDriver() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return Failed(absl::StrCat("the arena is in a GPU's memory, and this machine has no NVIDIA driver: ", dlerror(),
                               "; Get and Set work"));
  }
  auto* const driver = new Driver;  // for as long as the process runs
  std::string missing;
  const auto find = [&](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, name));
    if (*function == nullptr) missing = name;
  };
  find("cuInit", &driver->init);
  find("cuGetErrorName", &driver->error_name);
  find("cuDeviceGetCount", &driver->device_count);
  find("cuDeviceGet", &driver->device);
  find("cuDeviceGetUuid_v2", &driver->device_uuid);
  find("cuDevicePrimaryCtxRetain", &driver->retain_context);
  find("cuCtxPushCurrent_v2", &driver->push_context);
  find("cuCtxPopCurrent_v2", &driver->pop_context);
  find("cuCtxSynchronize", &driver->synchronize);
  find("cuStreamSynchronize", &driver->synchronize_stream);
  find("cuThreadExchangeStreamCaptureMode", &driver->exchange_capture_mode);
  find("cuMemAddressReserve", &driver->reserve);
  find("cuMemAddressFree", &driver->free);
  find("cuMemImportFromShareableHandle", &driver->import);
  find("cuMemMap", &driver->map);
  find("cuMemUnmap", &driver->unmap);
  find("cuMemRelease", &driver->release);
  find("cuMemSetAccess", &driver->set_access);
  if (!missing.empty()) {
    delete driver;
    return Failed(absl::StrCat("the NVIDIA driver of this machine has no ", missing, ": install a newer one"));
  }
  if (const absl::Status status = driver->Must(driver->init(0), "cuInit"); !status.ok()) {
    delete driver;
    return status;
  }
  return driver;
}

absl::StatusOr<const Driver*> TheDriver() {
  static const auto* const found = new absl::StatusOr<const Driver*>(FindDriver());
  return *found;
}

// The ordinal of the GPU with this name.
absl::StatusOr<CUdevice> FindGpu(const Driver& driver, absl::string_view device) {
  int count = 0;
  if (absl::Status status = driver.Must(driver.device_count(&count), "cuDeviceGetCount"); !status.ok()) return status;
  absl::string_view hex = device;
  (void)absl::ConsumePrefix(&hex, "cuda:GPU-");
  const std::string wanted = absl::AsciiStrToLower(absl::StrReplaceAll(hex, {{"-", ""}}));
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    CUdevice found = 0;
    CUuuid uuid{};
    absl::Status status = driver.Must(driver.device(&found, ordinal), "cuDeviceGet");
    if (status.ok()) status = driver.Must(driver.device_uuid(&uuid, found), "cuDeviceGetUuid");
    if (!status.ok()) return status;
    if (absl::BytesToHexString({uuid.bytes, sizeof uuid.bytes}) == wanted) return found;
  }
  return Failed(absl::StrCat("the arena is on ", device, ", which this process does not see (CUDA_VISIBLE_DEVICES)"));
}

class GpuRange final : public Range {
 public:
  GpuRange(const Driver* driver, CUdevice gpu, CUcontext context, CUdeviceptr address, uint64_t bytes)
      : Range(reinterpret_cast<char*>(address), bytes),  // NOLINT(performance-no-int-to-ptr): the driver's are numbers
        driver_(driver),
        gpu_(gpu),
        context_(context) {}
  ~GpuRange() override {
    (void)Vacate();
    (void)InContext([this] { return driver_->Must(driver_->free(address(), bytes_), "cuMemAddressFree"); });
  }

  absl::Status Put(int fd) override {
    if (absl::Status status = Vacate(); !status.ok()) return status;
    return InContext([this, fd] {
      CUmemGenericAllocationHandle handle = 0;
      // The driver takes the number of the descriptor for the pointer.  NOLINTNEXTLINE(performance-no-int-to-ptr)
      void* const descriptor = reinterpret_cast<void*>(static_cast<uintptr_t>(fd));
      absl::Status status =
          driver_->Must(driver_->import(&handle, descriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                        "cuMemImportFromShareableHandle");
      if (!status.ok()) return status;
      status = driver_->Must(driver_->map(address(), bytes_, /*offset=*/0, handle, 0), "cuMemMap");
      (void)driver_->release(handle);  // a mapping keeps it
      if (!status.ok()) return status;
      CUmemAccessDesc access{};
      access.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = gpu_};
      access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      status = driver_->Must(driver_->set_access(address(), bytes_, &access, 1), "cuMemSetAccess");
      if (status.ok()) {
        is_mapped_ = true;
      } else {
        (void)driver_->unmap(address(), bytes_);
      }
      return status;
    });
  }
  absl::Status Vacate() override {
    if (!is_mapped_) return absl::OkStatus();
    return InContext([this] {
      absl::Status status = driver_->Must(driver_->synchronize(), "cuCtxSynchronize");
      if (status.ok()) status = driver_->Must(driver_->unmap(address(), bytes_), "cuMemUnmap");
      if (status.ok()) is_mapped_ = false;
      return status;
    });
  }
  absl::Status WaitFor(CUstream_st* stream) const override {
    return InContext([&] { return driver_->Must(driver_->synchronize_stream(stream), "cuStreamSynchronize"); });
  }

 private:
  CUdeviceptr address() const { return reinterpret_cast<CUdeviceptr>(data_); }

  // Calls work() with the GPU's context current, whatever other threads capture into graphs meanwhile.
  template <typename Work>
  absl::Status InContext(Work work) const {
    if (absl::Status status = driver_->Must(driver_->push_context(context_), "cuCtxPushCurrent"); !status.ok())
      return status;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    (void)driver_->exchange_capture_mode(&mode);
    const absl::Cleanup restore = [&] {
      (void)driver_->exchange_capture_mode(&mode);
      CUcontext popped;
      (void)driver_->pop_context(&popped);
    };
    return work();
  }

  const Driver* const driver_;
  const CUdevice gpu_;
  const CUcontext context_;
  bool is_mapped_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Range>> ReserveOnGpu(const std::string& device, uint64_t bytes) {
  const absl::StatusOr<const Driver*> driver = TheDriver();
  if (!driver.ok()) return driver.status();
  const absl::StatusOr<CUdevice> gpu = FindGpu(**driver, device);
  if (!gpu.ok()) return gpu.status();
  CUcontext context = nullptr;
  CUdeviceptr address = 0;
  absl::Status status = (*driver)->Must((*driver)->retain_context(&context, *gpu), "cuDevicePrimaryCtxRetain");
  if (status.ok()) status = (*driver)->Must((*driver)->reserve(&address, bytes, 0, 0, 0), "cuMemAddressReserve");
  if (!status.ok()) return status;
  return std::make_unique<GpuRange>(*driver, *gpu, context, address, bytes);
}

}  // namespace statepool::client
