// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/memory/cuda_device.h"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "kernels/device_advance_plan.h"
#include "kernels/device_checksum.h"
#include "kernels/device_copy_plan.h"
#include "server/core/error.h"
#include "server/core/store_errors.h"
#include "server/memory/cuda_driver.h"

namespace statepool {
namespace {

constexpr uint64_t kMostAutomaticChunkBytes = 16 << 20;
constexpr uint64_t kLeastAutomaticChunkBytes = 2 << 20;
constexpr uint64_t kAutomaticChunks = 64;
constexpr uint64_t kStagingAlignment = 4096;
// Who sleeps is woken 50 to 200 us after the device is done, for as long as which it copies some hundred MiB: so a wait
// begins awake, unless others do already.
constexpr std::chrono::microseconds kAwake{500};
constexpr uint32_t kAwakeMost = 2;
constexpr uint64_t kStagingMost = uint64_t{1} << 46;  // no machine has more, and sums don't overflow

// Errors after which CUDA goes on as before; the driver numbers them as the runtime does. Of all others that is not
// known.
bool IsHarmless(int code) {
  switch (code) {
    case cudaErrorInvalidValue:
    case cudaErrorMemoryAllocation:
    case cudaErrorOperatingSystem:
    case cudaErrorNotReady:
    case cudaErrorNotPermitted:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorHostMemoryNotRegistered:
    case cudaErrorNotSupported: return true;
    default: return false;
  }
}

// Why there are no GPUs.
absl::Status NoGpus(cudaError_t error) {
  (void)cudaGetLastError();
  const std::string said =
      error == cudaSuccess ? "" : absl::StrCat(" (", cudaGetErrorName(error), ": ", cudaGetErrorString(error), ")");
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
      return absl::UnavailableError(
          absl::StrCat("this machine has no NVIDIA driver, or one that is too old for CUDA ", CUDART_VERSION / 1000,
                       said, ": install a newer one, start the container with its GPUs, or do without GPU devices"));
    case cudaSuccess:
    case cudaErrorNoDevice:
      return absl::UnavailableError(absl::StrCat("the NVIDIA driver shows this process no GPU", said,
                                                 ": see what nvidia-smi lists, and whether CUDA_VISIBLE_DEVICES hides "
                                                 "it, or do without GPU devices"));
    default:
      return absl::UnavailableError(absl::StrCat("CUDA does not start on this machine", said,
                                                 ": see what nvidia-smi says, or do without GPU devices"));
  }
}

std::string UuidText(const cudaUUID_t& uuid) {
  const std::string hex = absl::BytesToHexString({uuid.bytes, sizeof uuid.bytes});
  const absl::string_view all = hex;
  return absl::StrCat("GPU-", all.substr(0, 8), "-", all.substr(8, 4), "-", all.substr(12, 4), "-", all.substr(16, 4),
                      "-", all.substr(20));
}

absl::StatusOr<GpuInfo> FindGpu(const std::vector<GpuInfo>& gpus, absl::string_view uuid) {
  for (const GpuInfo& gpu : gpus) {
    if (gpu.uuid == uuid) return gpu;
  }
  return absl::NotFoundError(
      absl::StrCat("no GPU has the uuid '", uuid, "'; there are: ",
                   absl::StrJoin(gpus, ", ", [](std::string* out, const GpuInfo& gpu) { out->append(gpu.uuid); })));
}

CUmemAllocationProp HandleProperties(int ordinal) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = ordinal;
  return properties;
}

CUdeviceptr Address(const char* data) { return reinterpret_cast<CUdeviceptr>(data); }

bool HasDescriptorToSpare() {
  const int probe = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (probe >= 0) close(probe);
  return probe >= 0;
}

}  // namespace

// ----
// extents

CudaExtent::~CudaExtent() { device_->Free(&memory_, /*recycle=*/!exported_.load()); }

const std::string& CudaExtent::device() const { return device_->name(); }

const std::string& CudaSharedExtent::device() const { return device_->name(); }

absl::StatusOr<std::vector<int>> CudaExtent::ExportChunks() {
  exported_.store(true);
  return device_->Export(memory_);
}

CudaSharedExtent::~CudaSharedExtent() { device_->Free(&memory_, /*recycle=*/false); }

absl::StatusOr<std::vector<int>> CudaSharedExtent::ExportChunks() {
  if (memory_.data == nullptr) return absl::FailedPreconditionError("this memory was revoked");
  exported_.store(true);
  return device_->Export(memory_);
}

bool CudaSharedExtent::Revoke() {
  if (memory_.data != nullptr) {
    // What fails here fails the device, or leaves bytes to a process that could have kept a copy of them.
    if (device_->Enter().ok()) (void)device_->Zero(memory_);
    device_->Unmap(&memory_);
    device_->Release(&memory_);
    memory_.data = nullptr;
  }
  return !exported_.load();
}

// ----
// copies and staging

class CudaDevice::Copy final : public Transfer {
 public:
  Copy(const CudaDevice* device, DeviceStream stream, cudaEvent_t event)
      : device_(device), stream_(stream), event_(event) {}
  ~Copy() override {
    if (event_ != nullptr) (void)Wait();
  }

  absl::Status Wait() override {
    assert(event_ != nullptr && "waited for twice");
    const cudaEvent_t event = std::exchange(event_, nullptr);
    const absl::Cleanup give_back = [&] { device_->GiveBackEvent(event); };
    absl::Status status = device_->Enter();
    if (status.ok()) status = device_->Runtime(cudaEventSynchronize(event), "waiting for a copy");
    if (!status.ok()) device_->Settle(stream_);
    return status;
  }

 private:
  const CudaDevice* const device_;
  const DeviceStream stream_;
  cudaEvent_t event_;
};

class CudaDevice::PinnedStaging final : public Staging {
 public:
  PinnedStaging(const CudaDevice* device, void* memory, uint64_t bytes)
      : device_(device),
        memory_(memory),
        data_(static_cast<char*>(memory) + (0 - reinterpret_cast<uintptr_t>(memory)) % kStagingAlignment),
        bytes_(bytes) {}
  ~PinnedStaging() override {
    if (device_->Enter().ok()) (void)device_->Runtime(cudaFreeHost(memory_), "cudaFreeHost");
  }
  char* data() const override { return data_; }
  uint64_t bytes() const override { return bytes_; }

 private:
  const CudaDevice* const device_;
  void* const memory_;
  char* const data_;  // the first aligned address: CUDA does not promise one
  const uint64_t bytes_;
};

// ----
// start and end

absl::StatusOr<std::vector<GpuInfo>> CudaDevice::ListGpus() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) return NoGpus(error);
  std::vector<GpuInfo> gpus;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    cudaDeviceProp properties;
    if (const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal); error != cudaSuccess)
      return NoGpus(error);
    gpus.push_back({UuidText(properties.uuid), properties.name, properties.totalGlobalMem, ordinal});
  }
  return gpus;
}

uint64_t CudaDevice::ChunkBytesFor(uint64_t budget_bytes) {
  uint64_t chunk_bytes = kMostAutomaticChunkBytes;
  while (chunk_bytes > kLeastAutomaticChunkBytes && budget_bytes / chunk_bytes < kAutomaticChunks) chunk_bytes /= 2;
  return chunk_bytes;
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(CudaDeviceOptions options) {
  if (options.budget_bytes == 0) return absl::InvalidArgumentError("a GPU device needs a budget in bytes");
  const uint64_t chunk_bytes = options.chunk_bytes ? options.chunk_bytes : ChunkBytesFor(options.budget_bytes);
  if (!std::has_single_bit(chunk_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("a chunk of ", chunk_bytes, " bytes is not a power of two"));
  }
  const uint64_t budget_bytes = options.budget_bytes / chunk_bytes * chunk_bytes;
  if (budget_bytes == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a GPU budget of ", options.budget_bytes, " bytes is less than one chunk of ", chunk_bytes));
  }
  const absl::StatusOr<std::vector<GpuInfo>> gpus = ListGpus();
  RETURN_IF_ERROR(gpus.status());
  const absl::StatusOr<GpuInfo> gpu = options.uuid.empty() ? gpus->front() : FindGpu(*gpus, options.uuid);
  RETURN_IF_ERROR(gpu.status());
  if (budget_bytes > gpu->total_bytes) {
    return Error(absl::StatusCode::kResourceExhausted, "HOT_FULL",
                 absl::StrCat("a budget of ", budget_bytes, " bytes is more than ", gpu->uuid,
                              " has at all: ", gpu->total_bytes))
        .Meta("limit", gpu->total_bytes);
  }
  std::vector<GpuInfo> peers;
  for (const std::string& uuid : options.peers) {
    const absl::StatusOr<GpuInfo> peer = FindGpu(*gpus, uuid);
    RETURN_IF_ERROR(peer.status());
    int reaches = 0;
    if (peer->ordinal == gpu->ordinal) continue;
    if (cudaDeviceCanAccessPeer(&reaches, peer->ordinal, gpu->ordinal) != cudaSuccess) (void)cudaGetLastError();
    if (reaches != 0) peers.push_back(*peer);
  }
  std::unique_ptr<CudaDevice> device(
      new CudaDevice(*gpu, std::move(peers), budget_bytes, chunk_bytes, options.reserve));
  RETURN_IF_ERROR(device->Start());
  return device;
}

CudaDevice::CudaDevice(GpuInfo gpu, std::vector<GpuInfo> peers, uint64_t budget_bytes, uint64_t chunk_bytes,
                       bool reserve)
    : gpu_(std::move(gpu)),
      peers_(std::move(peers)),
      name_(absl::StrCat("cuda:", gpu_.uuid)),
      budget_bytes_(budget_bytes),
      chunk_bytes_(chunk_bytes),
      reserve_(reserve),
      addresses_(budget_bytes / chunk_bytes) {}

// What was done before an error is the destructor's to undo.
absl::Status CudaDevice::Start() {
  const absl::StatusOr<const CudaDriver*> driver = CudaDriver::Get();
  RETURN_IF_ERROR(driver.status());
  driver_ = *driver;
  RETURN_IF_ERROR(Enter());
  for (const CUdevice_attribute needed : {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
                                          CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED}) {
    int has = 0;
    RETURN_IF_ERROR(Driver(driver_->device_get_attribute(&has, needed, gpu_.ordinal), "cuDeviceGetAttribute"));
    if (has == 0) {
      return absl::UnimplementedError(
          absl::StrCat(name_, " (", gpu_.name, ") can't share its memory as descriptors of CUDA's virtual-memory API"));
    }
  }
  const CUmemAllocationProp properties = HandleProperties(gpu_.ordinal);
  size_t granularity = 0;
  RETURN_IF_ERROR(
      Driver(driver_->mem_get_allocation_granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
             "cuMemGetAllocationGranularity"));
  if (granularity == 0 || chunk_bytes_ % granularity != 0) {
    return absl::InvalidArgumentError(absl::StrCat("a chunk of ", chunk_bytes_, " bytes is no multiple of the ",
                                                   granularity, " that ", name_, " maps"));
  }

  const auto stream = [this](DeviceStream* made) {
    return Runtime(cudaStreamCreateWithFlags(made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  };
  for (DeviceStream& made : in_streams_) RETURN_IF_ERROR(stream(&made));
  for (DeviceStream& made : out_streams_) RETURN_IF_ERROR(stream(&made));
  for (DeviceStream& made : peer_streams_) RETURN_IF_ERROR(stream(&made));
  for (DeviceStream& made : hash_streams_) RETURN_IF_ERROR(stream(&made));
  RETURN_IF_ERROR(stream(&zero_stream_));
  constexpr uint64_t kHashesBytes = kHashers * kHashedLeaves * sizeof(LeafHash);
  RETURN_IF_ERROR(Runtime(cudaMalloc(&hashes_, kHashesBytes), "cudaMalloc"));
  RETURN_IF_ERROR(Runtime(cudaHostAlloc(&pinned_hashes_, kHashesBytes, cudaHostAllocPortable), "cudaHostAlloc"));
  // Once now, so that a GPU for which there is no kernel is found here, and the first call does not wait for its code.
  RETURN_IF_ERROR(Runtime(cudaMemsetAsync(hashes_, 0, kHashesBytes, hash_streams_[0]), "cudaMemsetAsync"));
  LeafHash hash;
  const void* const piece = static_cast<char*>(hashes_) + kHashesBytes / 2;
  RETURN_IF_ERROR(HashPieces(0, absl::MakeConstSpan(&piece, 1), 4096, absl::MakeSpan(&hash, 1)));
  {
    MutexLock lock(&hashers_mu_);
    for (size_t hasher = 0; hasher < kHashers; ++hasher) free_hashers_.push_back(hasher);
  }

  uint64_t addresses_bytes;
  {
    MutexLock lock(&mu_);
    addresses_bytes = addresses_.total() * chunk_bytes_;
  }
  CUdeviceptr begin = 0;
  RETURN_IF_ERROR(Driver(driver_->mem_address_reserve(&begin, addresses_bytes, granularity, 0, 0),
                         absl::StrCat("cuMemAddressReserve of ", addresses_bytes, " bytes")));
  addresses_begin_ = begin;
  addresses_bytes_ = addresses_bytes;
  return reserve_ ? FillReserve() : absl::OkStatus();
}

absl::Status CudaDevice::FillReserve() {
  MutexLock lock(&mu_);
  while (free_handles_.size() < budget_bytes_ / chunk_bytes_) {
    const absl::StatusOr<unsigned long long> handle = CreateHandle(chunk_bytes_);
    if (absl::IsResourceExhausted(handle.status())) {
      size_t free = 0, total = 0;
      (void)Runtime(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
      return Error(
                 absl::StatusCode::kResourceExhausted, "HOT_FULL",
                 absl::StrCat(name_, " has no room for a budget of ", budget_bytes_, " bytes: after ",
                              free_handles_.size() * chunk_bytes_, " of them ", free, " of its ", total,
                              " are free; others use it, or the budget is too large (", handle.status().message(), ")"))
          .Meta("limit", budget_bytes_);
    }
    RETURN_IF_ERROR(handle.status());
    free_handles_.push_back(*handle);
  }
  return absl::OkStatus();
}

CudaDevice::~CudaDevice() {
  assert(used_.load() == 0 && "extents outlive their device");
  if (driver_ == nullptr || !Enter().ok()) return;
  {
    MutexLock lock(&mu_);
    for (const unsigned long long handle : free_handles_) (void)Driver(driver_->mem_release(handle), "cuMemRelease");
  }
  if (addresses_bytes_ > 0)
    (void)Driver(driver_->mem_address_free(addresses_begin_, addresses_bytes_), "cuMemAddressFree");
  if (hashes_ != nullptr) (void)Runtime(cudaFree(hashes_), "cudaFree");
  if (pinned_hashes_ != nullptr) (void)Runtime(cudaFreeHost(pinned_hashes_), "cudaFreeHost");
  {
    MutexLock lock(&events_mu_);
    for (const cudaEvent_t event : events_) (void)Runtime(cudaEventDestroy(event), "cudaEventDestroy");
  }
  const auto destroy = [this](DeviceStream stream) {
    if (stream != nullptr) (void)Runtime(cudaStreamDestroy(stream), "cudaStreamDestroy");
  };
  for (const DeviceStream stream : in_streams_) destroy(stream);
  for (const DeviceStream stream : out_streams_) destroy(stream);
  for (const DeviceStream stream : peer_streams_) destroy(stream);
  for (const DeviceStream stream : hash_streams_) destroy(stream);
  destroy(zero_stream_);
}

// ----
// errors and health

absl::Status CudaDevice::health() const {
  if (!failed_.load()) return absl::OkStatus();
  MutexLock lock(&health_mu_);
  return health_;
}

void CudaDevice::Fail(const absl::Status& status) const {
  MutexLock lock(&health_mu_);
  if (health_.ok()) health_ = status;
  failed_.store(true);
}

absl::Status CudaDevice::Enter() const {
  RETURN_IF_ERROR(health());
  return Runtime(cudaSetDevice(gpu_.ordinal), "cudaSetDevice");
}

absl::Status CudaDevice::Runtime(int error, absl::string_view call) const {
  if (error == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();  // so that the next launch in this thread does not find it
  const auto code = static_cast<cudaError_t>(error);
  return ToStatus(error, cudaGetErrorName(code), cudaGetErrorString(code), call);
}

absl::Status CudaDevice::Driver(int error, absl::string_view call) const {
  if (error == CUDA_SUCCESS) return absl::OkStatus();
  const auto code = static_cast<CUresult>(error);
  const char *name = nullptr, *sentence = nullptr;
  if (driver_->get_error_name(code, &name) != CUDA_SUCCESS || name == nullptr) name = "an error without a name";
  if (driver_->get_error_string(code, &sentence) != CUDA_SUCCESS || sentence == nullptr) sentence = "no more is known";
  return ToStatus(error, name, sentence, call);
}

absl::Status CudaDevice::ToStatus(int code, absl::string_view error, absl::string_view sentence,
                                  absl::string_view call) const {
  const std::string message = absl::StrCat(name_, ": ", call, ": ", error, " (", code, "), ", sentence);
  if (code == cudaErrorMemoryAllocation) return Full(message);
  const auto failed = [&](absl::string_view text) -> absl::Status {
    return Error(absl::StatusCode::kUnavailable, "DEVICE_FAILED", text).Meta("device", name_);
  };
  if (IsHarmless(code)) return failed(message);
  const absl::Status status =
      failed(absl::StrCat(message, "; the device is not used any more, until the daemon is started anew"));
  Fail(status);
  return status;
}

absl::Status CudaDevice::OfKernels(absl::string_view what) const {
  const cudaError_t error = cudaGetLastError();
  return Runtime(error == cudaSuccess ? cudaErrorUnknown : error, what);
}

absl::Status CudaDevice::Full(absl::string_view message) const {
  return Error(absl::StatusCode::kResourceExhausted, "HOT_FULL", message)
      .Meta("limit", budget_bytes_)
      .RetryAfter(absl::Milliseconds(100));
}

// ----
// memory

uint64_t CudaDevice::reserve_bytes() const {
  MutexLock lock(&mu_);
  return free_handles_.size() * chunk_bytes_;
}

absl::Status CudaDevice::Admit(uint64_t chunks, CudaMemory* memory) {
  assert(chunks >= 1);
  if (chunks > (budget_bytes_ - used_.load()) / chunk_bytes_)
    return Full(absl::StrCat("the hot budget of ", name_, " is used up"));
  used_.fetch_add(chunks * chunk_bytes_);
  memory->chunks = chunks;
  memory->place = addresses_.Take(chunks);
  // The driver's addresses are numbers.  NOLINTNEXTLINE(performance-no-int-to-ptr)
  memory->data = reinterpret_cast<char*>(addresses_begin_ + memory->place * chunk_bytes_);
  return absl::OkStatus();
}

absl::StatusOr<unsigned long long> CudaDevice::CreateHandle(uint64_t bytes) const {
  const CUmemAllocationProp properties = HandleProperties(gpu_.ordinal);
  CUmemGenericAllocationHandle handle = 0;
  RETURN_IF_ERROR(
      Driver(driver_->mem_create(&handle, bytes, &properties, 0), absl::StrCat("cuMemCreate of ", bytes, " bytes")));
  return handle;
}

absl::Status CudaDevice::TakeChunks(uint64_t chunks, CudaMemory* memory) {
  MutexLock lock(&mu_);
  RETURN_IF_ERROR(Admit(chunks, memory));
  memory->handle_bytes = chunk_bytes_;
  memory->handles.reserve(chunks);
  while (memory->handles.size() < chunks && !free_handles_.empty()) {
    memory->handles.push_back(free_handles_.back());
    free_handles_.pop_back();
  }
  while (memory->handles.size() < chunks) {
    const absl::StatusOr<unsigned long long> handle = CreateHandle(chunk_bytes_);
    RETURN_IF_ERROR(handle.status());
    memory->handles.push_back(*handle);
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::TakeShared(uint64_t chunks, CudaMemory* memory) {
  MutexLock lock(&mu_);
  RETURN_IF_ERROR(Admit(chunks, memory));
  while (used_.load() + free_handles_.size() * chunk_bytes_ > budget_bytes_) {
    const unsigned long long handle = free_handles_.back();
    free_handles_.pop_back();
    RETURN_IF_ERROR(Driver(driver_->mem_release(handle), "cuMemRelease"));
  }
  memory->handle_bytes = chunks * chunk_bytes_;
  const absl::StatusOr<unsigned long long> handle = CreateHandle(memory->handle_bytes);
  RETURN_IF_ERROR(handle.status());
  memory->handles.push_back(*handle);
  return absl::OkStatus();
}

absl::Status CudaDevice::Map(CudaMemory* memory) const {
  for (const unsigned long long handle : memory->handles) {
    RETURN_IF_ERROR(Driver(
        driver_->mem_map(Address(memory->data) + memory->mapped_bytes, memory->handle_bytes, /*offset=*/0, handle, 0),
        "cuMemMap"));
    memory->mapped_bytes += memory->handle_bytes;
  }
  std::vector<CUmemAccessDesc> access(1 + peers_.size());
  for (size_t i = 0; i < access.size(); ++i) {
    access[i].location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access[i].location.id = i == 0 ? gpu_.ordinal : peers_[i - 1].ordinal;
    access[i].flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  }
  return Driver(driver_->mem_set_access(Address(memory->data), memory->mapped_bytes, access.data(), access.size()),
                "cuMemSetAccess");
}

absl::Status CudaDevice::Zero(const CudaMemory& memory) const {
  const absl::Status begun =
      Runtime(cudaMemsetAsync(memory.data, 0, memory.mapped_bytes, zero_stream_), "cudaMemsetAsync of an extent");
  const absl::Status done = WaitFor(zero_stream_, "zeroing an extent");
  return begun.ok() ? done : begun;
}

absl::StatusOr<std::unique_ptr<Extent>> CudaDevice::AllocateExtent(TenantId tenant, uint64_t chunks, bool /*sealed*/) {
  RETURN_IF_ERROR(Enter());
  std::unique_ptr<CudaExtent> extent(
      new CudaExtent(this, tenant, chunks * chunk_bytes_));  // from here on its destructor undoes everything
  RETURN_IF_ERROR(TakeChunks(chunks, &extent->memory_));
  RETURN_IF_ERROR(Map(&extent->memory_));
  RETURN_IF_ERROR(Zero(extent->memory_));
  return extent;
}

absl::StatusOr<std::unique_ptr<SharedExtent>> CudaDevice::AllocateShared(TenantId tenant, uint64_t chunks) {
  RETURN_IF_ERROR(Enter());
  std::unique_ptr<CudaSharedExtent> extent(new CudaSharedExtent(this, tenant, chunks * chunk_bytes_));
  RETURN_IF_ERROR(TakeShared(chunks, &extent->memory_));
  RETURN_IF_ERROR(Map(&extent->memory_));
  RETURN_IF_ERROR(Zero(extent->memory_));
  return extent;
}

absl::StatusOr<std::vector<int>> CudaDevice::Export(const CudaMemory& memory) const {
  RETURN_IF_ERROR(Enter());
  std::vector<int> fds;
  absl::Cleanup close_all = [&fds] {
    for (const int fd : fds) close(fd);
  };
  fds.reserve(memory.handles.size());
  for (const unsigned long long handle : memory.handles) {
    int fd = -1;
    const CUresult result =
        driver_->mem_export_to_shareable_handle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    // The driver says this in many ways.
    if (result != CUDA_SUCCESS && !HasDescriptorToSpare()) {
      return Error(absl::StatusCode::kUnavailable, "NO_DESCRIPTORS",
                   absl::StrCat("the daemon has no descriptor to spare: ", std::strerror(errno), "; try again"));
    }
    RETURN_IF_ERROR(Driver(result, "cuMemExportToShareableHandle"));
    fds.push_back(fd);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  std::move(close_all).Cancel();
  return fds;
}

void CudaDevice::Unmap(CudaMemory* memory) const {
  if (memory->mapped_bytes == 0 || !Enter().ok()) return;
  const absl::Status status = Driver(driver_->mem_unmap(Address(memory->data), memory->mapped_bytes), "cuMemUnmap");
  // Neither its addresses nor its memory could be anyone else's now.
  if (!status.ok()) Fail(status);
  memory->mapped_bytes = 0;
}

void CudaDevice::Release(CudaMemory* memory) const {
  if (Enter().ok()) {
    for (const unsigned long long handle : memory->handles) (void)Driver(driver_->mem_release(handle), "cuMemRelease");
  }
  memory->handles.clear();
}

void CudaDevice::Free(CudaMemory* memory, bool recycle) {
  if (memory->chunks == 0) return;
  Unmap(memory);
  if (!recycle || !reserve_) Release(memory);
  MutexLock lock(&mu_);
  free_handles_.insert(free_handles_.end(), memory->handles.begin(), memory->handles.end());
  addresses_.GiveBack(memory->place, memory->chunks);
  used_.fetch_sub(memory->chunks * chunk_bytes_);
  memory->chunks = 0;
}

// ----
// events, copies, hashes

absl::StatusOr<cudaEvent_t> CudaDevice::TakeEvent() const {
  {
    MutexLock lock(&events_mu_);
    if (!events_.empty()) {
      const cudaEvent_t event = events_.back();
      events_.pop_back();
      return event;
    }
  }
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(Runtime(cudaEventCreateWithFlags(&event, cudaEventBlockingSync | cudaEventDisableTiming),
                          "cudaEventCreateWithFlags"));
  return event;
}

void CudaDevice::GiveBackEvent(cudaEvent_t event) const {
  MutexLock lock(&events_mu_);
  events_.push_back(event);
}

absl::Status CudaDevice::WaitFor(DeviceStream stream, absl::string_view what) const {
  const absl::Status status = TryWaitFor(stream, what);
  if (!status.ok()) Settle(stream);
  return status;
}

void CudaDevice::Settle(DeviceStream stream) const {
  (void)cudaSetDevice(gpu_.ordinal);
  const absl::Status status = Runtime(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  if (!status.ok()) Fail(status);
}

absl::Status CudaDevice::TryWaitFor(DeviceStream stream, absl::string_view what) const {
  const absl::StatusOr<cudaEvent_t> event = TakeEvent();
  RETURN_IF_ERROR(event.status());
  const absl::Cleanup give_back = [&] { GiveBackEvent(*event); };
  RETURN_IF_ERROR(Runtime(cudaEventRecord(*event, stream), "cudaEventRecord"));
  cudaError_t error = cudaErrorNotReady;
  if (awake_.fetch_add(1) < kAwakeMost) {
    const auto end = std::chrono::steady_clock::now() + kAwake;
    do error = cudaEventQuery(*event);
    while (error == cudaErrorNotReady && std::chrono::steady_clock::now() < end);
    (void)cudaGetLastError();  // that it was not ready
  }
  awake_.fetch_sub(1);
  return Runtime(error == cudaErrorNotReady ? cudaEventSynchronize(*event) : error, what);
}

absl::StatusOr<std::unique_ptr<Transfer>> CudaDevice::CopyIn(char* to, absl::string_view from) {
  return BeginCopy(to, from.data(), from.size(), Direction::kIn);
}

absl::StatusOr<std::unique_ptr<Transfer>> CudaDevice::CopyOut(char* to, const char* from, uint64_t bytes) {
  return BeginCopy(to, from, bytes, Direction::kOut);
}

absl::StatusOr<std::unique_ptr<Transfer>> CudaDevice::CopyWithin(char* to, const char* from, uint64_t bytes) {
  return BeginCopy(to, from, bytes, Direction::kWithin);
}

absl::StatusOr<std::unique_ptr<Transfer>> CudaDevice::CopyFrom(const Device& other, char* to, const char* from,
                                                               uint64_t bytes) {
  if (!Reaches(other))
    return absl::UnimplementedError(absl::StrCat(name_, " does not reach the memory of ", other.name()));
  RETURN_IF_ERROR(other.health());
  return BeginCopy(to, from, bytes, Direction::kFromPeer);
}

bool CudaDevice::Reaches(const Device& other) const {
  if (&other == this) return true;
  const auto* gpu = dynamic_cast<const CudaDevice*>(&other);
  return gpu != nullptr && std::any_of(gpu->peers().begin(), gpu->peers().end(),
                                       [this](const GpuInfo& peer) { return peer.uuid == gpu_.uuid; });
}

absl::Status CudaDevice::PinHost(char* data, uint64_t bytes) {
  RETURN_IF_ERROR(Enter());
  return Runtime(cudaHostRegister(data, bytes, cudaHostRegisterPortable),
                 absl::StrCat("cudaHostRegister of ", bytes, " bytes"));
}

absl::Status CudaDevice::UnpinHost(char* data) {
  RETURN_IF_ERROR(Enter());
  return Runtime(cudaHostUnregister(data), "cudaHostUnregister");
}

HostPinning PinningBy(std::vector<CudaDevice*> gpus) {
  struct Pinned {
    Mutex mu;
    absl::flat_hash_set<char*> ranges ABSL_GUARDED_BY(mu);  // by their first byte
  };
  auto pinned = std::make_shared<Pinned>();
  HostPinning pinning;
  pinning.pin = [gpus, pinned](char* data, uint64_t bytes) -> absl::Status {
    const auto gpu = std::find_if(gpus.begin(), gpus.end(), [](const CudaDevice* one) { return one->health().ok(); });
    if (gpu == gpus.end()) return absl::OkStatus();
    RETURN_IF_ERROR((*gpu)->PinHost(data, bytes));
    MutexLock lock(&pinned->mu);
    pinned->ranges.insert(data);
    return absl::OkStatus();
  };
  pinning.unpin = [gpus, pinned](char* data) -> absl::Status {
    MutexLock lock(&pinned->mu);
    if (!pinned->ranges.contains(data)) return absl::OkStatus();
    absl::Status status;
    for (CudaDevice* gpu : gpus) {
      status = gpu->UnpinHost(data);
      if (!status.ok()) continue;
      pinned->ranges.erase(data);
      break;
    }
    return status;
  };
  return pinning;
}

absl::StatusOr<std::unique_ptr<Transfer>> CudaDevice::BeginCopy(void* to, const void* from, uint64_t bytes,
                                                                Direction direction) {
  struct Kind {
    cudaMemcpyKind kind;
    const char* call;
  };
  const Kind kind = direction == Direction::kIn       ? Kind{cudaMemcpyHostToDevice, "cudaMemcpyAsync to the device"}
                    : direction == Direction::kOut    ? Kind{cudaMemcpyDeviceToHost, "cudaMemcpyAsync from the device"}
                    : direction == Direction::kWithin ? Kind{cudaMemcpyDeviceToDevice, "cudaMemcpyAsync on the device"}
                                                      : Kind{cudaMemcpyDefault, "cudaMemcpyAsync from another device"};
  RETURN_IF_ERROR(Enter());
  const absl::StatusOr<cudaEvent_t> event = TakeEvent();
  RETURN_IF_ERROR(event.status());
  absl::Cleanup give_back = [&] { GiveBackEvent(*event); };
  const DeviceStream stream = direction == Direction::kOut ? out_streams_[next_out_.fetch_add(1) % kCopyStreams]
                              : direction == Direction::kFromPeer
                                  ? peer_streams_[next_peer_.fetch_add(1) % kCopyStreams]
                                  : in_streams_[next_in_.fetch_add(1) % kCopyStreams];
  absl::Status status = Runtime(cudaMemcpyAsync(to, from, bytes, kind.kind, stream), kind.call);
  if (status.ok()) status = Runtime(cudaEventRecord(*event, stream), "cudaEventRecord");
  if (!status.ok()) {
    Settle(stream);  // nobody could wait for the copy
    return status;
  }
  std::move(give_back).Cancel();
  return std::make_unique<Copy>(this, stream, *event);
}

// Rows of one arena. The kernel writes hashes to pinned memory by itself: they are a part in eight thousand of the
// bytes, and a copy of them would be one more thing to launch and to wait for.
class CudaDevice::Copier final : public RowCopier {
 public:
  Copier(CudaDevice* device, DeviceCopyPlan plan, DeviceAdvancePlan advance, size_t leaves)
      : device_(device),
        plan_(std::make_unique<DeviceCopyPlan>(std::move(plan))),
        advance_(std::make_unique<DeviceAdvancePlan>(std::move(advance))),
        leaves_(leaves) {}
  ~Copier() override {
    if (!device_->Enter().ok()) {
      static_cast<void>(plan_.release());  // what they have on the device goes with the process
      static_cast<void>(advance_.release());
      return;
    }
    if (stream_ != nullptr) {
      (void)device_->Runtime(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
      (void)device_->Runtime(cudaStreamDestroy(stream_), "cudaStreamDestroy");
    }
    if (hashes_ != nullptr) (void)device_->Runtime(cudaFreeHost(hashes_), "cudaFreeHost");
  }

  // What was taken before an error is the destructor's to give back.
  absl::Status Start() {
    RETURN_IF_ERROR(device_->Runtime(cudaHostAlloc(&hashes_, leaves_ * sizeof(LeafHash), cudaHostAllocPortable),
                                     "cudaHostAlloc of hashes"));
    // Somebody's step waits for these copies, which are short: where processes share the GPU's multiprocessors (MPS)
    // they go before what runs at the default priority.
    int lowest = 0, highest = 0;
    RETURN_IF_ERROR(
        device_->Runtime(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriorityRange"));
    return device_->Runtime(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest),
                            "cudaStreamCreateWithPriority");
  }

  absl::Status Gather(absl::Span<const GatherItem> items, char* arena) override {
    std::vector<DeviceCopyPlan::GatherItem> batch;
    batch.reserve(items.size());
    for (const GatherItem& item : items) batch.push_back({item.state, item.row});
    return Run("gathering rows", [&] { return plan_->Gather(batch, arena, stream_); });
  }
  absl::Status Scatter(absl::Span<const ScatterItem> items, const char* arena, absl::Span<LeafHash> leaves) override {
    assert(leaves.size() <= leaves_);
    std::vector<DeviceCopyPlan::ScatterItem> batch;
    batch.reserve(items.size());
    for (const ScatterItem& item : items) batch.push_back({item.row, item.accepted, item.state});
    if (leaves.empty()) return Run("scattering rows", [&] { return plan_->Scatter(batch, arena, stream_); });
    auto* const hashes = static_cast<LeafHash*>(hashes_);
    RETURN_IF_ERROR(Run("scattering rows", [&] { return plan_->ScatterAndHash(batch, arena, hashes, stream_); }));
    std::copy_n(hashes, leaves.size(), leaves.begin());
    return absl::OkStatus();
  }
  absl::Status Advance(absl::Span<const AdvanceMove> items, char* arena) override {
    return Run("advancing rows", [&] { return advance_->Move(items, arena, stream_); });
  }

 private:
  template <typename Launch>
  absl::Status Run(absl::string_view what, Launch launch) {
    RETURN_IF_ERROR(device_->Enter());
    const absl::Status refused = launch().ok() ? absl::OkStatus() : device_->OfKernels(what);
    // A part of the batch may be under way though the rest was refused: nobody uses its memory meanwhile.
    const absl::Status waited = device_->WaitFor(stream_, what);
    return refused.ok() ? waited : refused;
  }

  CudaDevice* const device_;
  std::unique_ptr<DeviceCopyPlan> plan_;
  std::unique_ptr<DeviceAdvancePlan> advance_;
  const size_t leaves_;  // that hashes_ has room for
  cudaStream_t stream_ = nullptr;
  void* hashes_ = nullptr;
};

absl::StatusOr<std::unique_ptr<RowCopier>> CudaDevice::NewRowCopier(const CopyPlan& plan, const AdvancePlan& advance,
                                                                    uint32_t rows) {
  RETURN_IF_ERROR(Enter());
  const auto check = [this](const absl::Status& made) -> absl::Status {
    if (absl::IsUnimplemented(made)) {
      return Error(absl::StatusCode::kInvalidArgument, "INVALID_OPTION",
                   absl::StrCat("the GPU can't copy rows of this view: ", made.message()))
          .Field("view");
    }
    if (absl::IsResourceExhausted(made)) return Full(made.message());
    return made.ok() ? absl::OkStatus() : OfKernels("a copy plan on the device");
  };
  absl::StatusOr<DeviceCopyPlan> on_device = DeviceCopyPlan::Create(plan);
  RETURN_IF_ERROR(check(on_device.status()));
  absl::StatusOr<DeviceAdvancePlan> moves = DeviceAdvancePlan::Create(advance);
  RETURN_IF_ERROR(check(moves.status()));
  auto copier =
      std::make_unique<Copier>(this, *std::move(on_device), *std::move(moves), rows * LeafCount(plan.state_bytes()));
  RETURN_IF_ERROR(copier->Start());
  return copier;
}

absl::Status CudaDevice::HashStates(absl::Span<const char* const> states, uint64_t bytes, absl::Span<LeafHash> leaves) {
  assert(leaves.size() == states.size() * LeafCount(bytes));
  RETURN_IF_ERROR(Enter());
  if (leaves.empty()) return absl::OkStatus();
  size_t hasher;
  {
    MutexLock lock(&hashers_mu_);
    while (free_hashers_.empty()) hasher_free_.Wait(&hashers_mu_);
    hasher = free_hashers_.back();
    free_hashers_.pop_back();
  }
  const absl::Cleanup give_back = [&] {
    MutexLock lock(&hashers_mu_);
    free_hashers_.push_back(hasher);
    hasher_free_.Signal();
  };
  // Whole states together, or those that are too large for one launch piece by piece.
  const size_t together = std::max<size_t>(1, kHashedLeaves / LeafCount(bytes));
  while (!states.empty()) {
    const auto batch = states.first(std::min(together, states.size()));
    std::vector<const void*> pieces(batch.begin(), batch.end());
    for (uint64_t done = 0; done < bytes;) {
      const uint64_t piece = std::min(bytes - done, kHashedLeaves * kLeafBytes);
      const size_t count = batch.size() * LeafCount(piece);
      RETURN_IF_ERROR(HashPieces(hasher, pieces, piece, leaves.first(count)));
      leaves.remove_prefix(count);
      done += piece;
      for (const void*& at : pieces) at = static_cast<const char*>(at) + piece;
    }
    states.remove_prefix(batch.size());
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::HashPieces(size_t hasher, absl::Span<const void* const> pieces, uint64_t bytes,
                                    absl::Span<LeafHash> leaves) {
  RETURN_IF_ERROR(health());
  const DeviceStream stream = hash_streams_[hasher];
  LeafHash* const scratch = static_cast<LeafHash*>(hashes_) + hasher * kHashedLeaves;
  LeafHash* const pinned = static_cast<LeafHash*>(pinned_hashes_) + hasher * kHashedLeaves;
  const uint64_t hashes_bytes = leaves.size() * sizeof(LeafHash);
  const bool launched = HashLeavesOnDevice(pieces, bytes, scratch, stream).ok();
  absl::Status begun = launched ? absl::OkStatus() : OfKernels("hashing leaves");
  if (begun.ok()) {
    begun = Runtime(cudaMemcpyAsync(pinned, scratch, hashes_bytes, cudaMemcpyDeviceToHost, stream),
                    "cudaMemcpyAsync of hashes");
  }
  const absl::Status done = WaitFor(stream, "hashing leaves");  // in any case: the scratch memory is the next one's
  RETURN_IF_ERROR(begun);
  RETURN_IF_ERROR(done);
  std::memcpy(leaves.data(), pinned, hashes_bytes);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Staging>> CudaDevice::AllocateStaging(uint64_t bytes) {
  RETURN_IF_ERROR(Enter());
  void* memory = nullptr;
  const int error = bytes > kStagingMost ? cudaErrorMemoryAllocation
                                         : cudaHostAlloc(&memory, bytes + kStagingAlignment, cudaHostAllocPortable);
  RETURN_IF_ERROR(Runtime(error, absl::StrCat("cudaHostAlloc of ", bytes, " bytes for staging")));
  return std::make_unique<PinnedStaging>(this, memory, bytes);
}

}  // namespace statepool
