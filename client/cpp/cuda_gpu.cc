// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/cuda_gpu.h"

#include <cuda.h>
#include <dlfcn.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "client/cpp/calls.h"
#include "kernels/device_advance_plan.h"
#include "kernels/device_copy_plan.h"

namespace statepool::client {
namespace {

absl::Status Failed(absl::string_view message) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "MAPPING_FAILED", "", message);
}

absl::Status GpuFailed(absl::string_view message) {
  return MakeError(absl::StatusCode::kInternal, "GPU_FAILED", "",
                   absl::StrCat("this process can't use its GPU: ", message));
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
  decltype(&cuMemHostAlloc) allocate_pinned = nullptr;
  decltype(&cuMemFreeHost) free_pinned = nullptr;
  decltype(&cuStreamIsCapturing) is_capturing = nullptr;
  decltype(&cuEventCreate) create_event = nullptr;
  decltype(&cuEventRecord) record_event = nullptr;
  decltype(&cuEventQuery) query_event = nullptr;
  decltype(&cuEventSynchronize) synchronize_event = nullptr;
  decltype(&cuEventDestroy) destroy_event = nullptr;
  const pid_t pid = getpid();

  bool IsForked() const { return getpid() != pid; }
  // Of what maps memory.
  absl::Status Must(CUresult result, absl::string_view call) const {
    if (result == CUDA_SUCCESS) return absl::OkStatus();
    if (result != CUDA_ERROR_OUT_OF_MEMORY) return Failed(Message(result, call));
    return MakeError(absl::StatusCode::kResourceExhausted, "MAPPING_FAILED", "", Message(result, call));
  }
  // Of what copies.
  absl::Status Copied(CUresult result, absl::string_view call) const {
    return result == CUDA_SUCCESS ? absl::OkStatus() : GpuFailed(Message(result, call));
  }
  std::string Message(CUresult result, absl::string_view call) const {
    const char* name = nullptr;
    if (error_name(result, &name) != CUDA_SUCCESS) name = "an error without a name";
    return absl::StrCat(call, ": ", name);
  }
};

absl::StatusOr<const Driver*> FindDriver() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return Failed(absl::StrCat("this is memory of a GPU, and this machine has no NVIDIA driver: ", dlerror(),
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
  find("cuMemHostAlloc", &driver->allocate_pinned);
  find("cuMemFreeHost", &driver->free_pinned);
  find("cuStreamIsCapturing", &driver->is_capturing);
  find("cuEventCreate", &driver->create_event);
  find("cuEventRecord", &driver->record_event);
  find("cuEventQuery", &driver->query_event);
  find("cuEventSynchronize", &driver->synchronize_event);
  find("cuEventDestroy_v2", &driver->destroy_event);
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
absl::StatusOr<CUdevice> OrdinalOf(const Driver& driver, absl::string_view device) {
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
  return Failed(absl::StrCat("this is memory of ", device, ", which this process does not see (CUDA_VISIBLE_DEVICES)"));
}

// The primary context of a GPU. Thread-safe, immutable.
struct Context {
  const Driver* driver;
  CUdevice gpu;
  CUcontext context;

  // Calls work() with the context current, whatever other threads capture into graphs meanwhile.
  template <typename Work>
  absl::Status Within(Work work) const {
    if (driver->IsForked()) return GpuFailed("CUDA is not there in a forked child");
    if (absl::Status status = driver->Copied(driver->push_context(context), "cuCtxPushCurrent"); !status.ok())
      return status;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    (void)driver->exchange_capture_mode(&mode);
    const absl::Cleanup restore = [&] {
      (void)driver->exchange_capture_mode(&mode);
      CUcontext popped;
      (void)driver->pop_context(&popped);
    };
    return work();
  }

  // Maps so many bytes of the memory that `fd` is. It is not accessible yet.
  absl::Status Map(CUdeviceptr address, uint64_t bytes, int fd) const {
    CUmemGenericAllocationHandle handle = 0;
    // The driver takes the number of the descriptor for the pointer.  NOLINTNEXTLINE(performance-no-int-to-ptr)
    void* const descriptor = reinterpret_cast<void*>(static_cast<uintptr_t>(fd));
    absl::Status status = driver->Must(driver->import(&handle, descriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                                       "cuMemImportFromShareableHandle");
    if (!status.ok()) return status;
    status = driver->Must(driver->map(address, bytes, /*offset=*/0, handle, 0), "cuMemMap");
    (void)driver->release(handle);  // a mapping keeps it
    return status;
  }
  absl::Status SetAccess(CUdeviceptr address, uint64_t bytes, bool writable) const {
    CUmemAccessDesc access{};
    access.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = gpu};
    access.flags = writable ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ;
    return driver->Must(driver->set_access(address, bytes, &access, 1), "cuMemSetAccess");
  }
};

// The driver's addresses are numbers.
char* ToPointer(CUdeviceptr address) {
  return reinterpret_cast<char*>(address);  // NOLINT(performance-no-int-to-ptr)
}
CUdeviceptr ToAddress(const char* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

class CudaRange final : public Range {
 public:
  CudaRange(const Context& context, CUdeviceptr address, uint64_t bytes)
      : Range(ToPointer(address), bytes), context_(context), driver_(context.driver) {}
  ~CudaRange() override {
    (void)Vacate();
    (void)context_.Within([this] { return driver_->Must(driver_->free(address(), bytes_), "cuMemAddressFree"); });
  }

  absl::Status Put(int fd) override {
    if (absl::Status status = Vacate(); !status.ok()) return status;
    return context_.Within([this, fd] {
      absl::Status status = context_.Map(address(), bytes_, fd);
      if (!status.ok()) return status;
      status = context_.SetAccess(address(), bytes_, /*writable=*/true);
      is_mapped_ = status.ok();
      if (!status.ok()) (void)driver_->unmap(address(), bytes_);
      return status;
    });
  }
  absl::Status Vacate() override {
    if (!is_mapped_) return absl::OkStatus();
    return context_.Within([this] {
      absl::Status status = driver_->Must(driver_->synchronize(), "cuCtxSynchronize");
      if (status.ok()) status = driver_->Must(driver_->unmap(address(), bytes_), "cuMemUnmap");
      if (status.ok()) is_mapped_ = false;
      return status;
    });
  }
  bool is_mapped() const override { return is_mapped_; }
  absl::Status WaitFor(CUstream_st* stream) const override {
    return context_.Within([&] { return driver_->Copied(driver_->synchronize_stream(stream), "cuStreamSynchronize"); });
  }

 private:
  CUdeviceptr address() const { return ToAddress(data_); }

  const Context context_;
  const Driver* const driver_;
  bool is_mapped_ = false;
};

class CudaChunks final : public MappedChunks {
 public:
  CudaChunks(const Context& context, CUdeviceptr address, uint64_t bytes, uint64_t chunk_bytes, bool writable)
      : MappedChunks(ToPointer(address)),
        context_(context),
        bytes_(bytes),
        chunk_bytes_(chunk_bytes),
        writable_(writable) {}
  ~CudaChunks() override {
    (void)context_.Within([this] {
      const Driver& driver = *context_.driver;
      // Each mapping by itself: it is what cuMemMap made.
      for (uint64_t at = 0; at < mapped_bytes_; at += chunk_bytes_)
        (void)driver.unmap(ToAddress(data_) + at, chunk_bytes_);
      return driver.Must(driver.free(ToAddress(data_), bytes_), "cuMemAddressFree");
    });
  }

  absl::Status Add(const Descriptor& chunk) override {
    return context_.Within([&] {
      absl::Status status = context_.Map(ToAddress(data_) + mapped_bytes_, chunk_bytes_, chunk.get());
      if (status.ok()) mapped_bytes_ += chunk_bytes_;
      return status;
    });
  }
  absl::Status Finish() override {
    return context_.Within([this] { return context_.SetAccess(ToAddress(data_), bytes_, writable_); });
  }

 private:
  const Context context_;
  const uint64_t bytes_, chunk_bytes_;
  const bool writable_;
  uint64_t mapped_bytes_ = 0;
};

// Pinned memory for hashes, kept for the next: to allocate and to free it is slow, and may wait for the GPU. There is
// some from the beginning. Thread-safe.
class HashMemory {
 public:
  struct Piece {
    LeafHash* hashes = nullptr;
    size_t count = 0;
  };

  // REQUIRES: within the context.
  static absl::StatusOr<std::shared_ptr<HashMemory>> Make(const Context& context) {
    auto memory = std::make_shared<HashMemory>(context);
    const absl::StatusOr<Piece> all = memory->Allocate(kPieces * kPieceHashes);
    if (!all.ok()) return all.status();
    for (size_t i = 0; i < kPieces; ++i) memory->PutBack({all->hashes + i * kPieceHashes, kPieceHashes});
    return memory;
  }
  explicit HashMemory(const Context& context) : context_(context) {}
  ~HashMemory() {
    (void)context_.Within([this] {
      for (LeafHash* const hashes : allocated_) (void)context_.driver->free_pinned(hashes);
      return absl::OkStatus();
    });
  }

  // At least so many. REQUIRES: within the context.
  absl::StatusOr<Piece> Take(size_t count) {
    {
      const std::lock_guard lock(mu_);
      const auto large_enough =
          std::find_if(free_.begin(), free_.end(), [count](const Piece& piece) { return piece.count >= count; });
      if (large_enough != free_.end()) {
        const Piece found = *large_enough;
        free_.erase(large_enough);
        return found;
      }
    }
    return Allocate(count);
  }
  void PutBack(const Piece& piece) {
    if (piece.hashes == nullptr || context_.driver->IsForked()) return;
    const std::lock_guard lock(mu_);
    free_.push_back(piece);
  }

 private:
  // What there is from the beginning: 1 MiB, for so many stores at once of at most 512 MiB each.
  static constexpr size_t kPieces = 16, kPieceHashes = 8192;

  absl::StatusOr<Piece> Allocate(size_t count) {
    void* memory = nullptr;
    absl::Status status = context_.driver->Copied(
        context_.driver->allocate_pinned(&memory, count * sizeof(LeafHash), 0), "cuMemHostAlloc");
    if (!status.ok()) return status;
    const std::lock_guard lock(mu_);
    allocated_.push_back(static_cast<LeafHash*>(memory));
    return Piece{allocated_.back(), count};
  }

  const Context context_;
  std::mutex mu_;  // of what follows
  std::vector<LeafHash*> allocated_;
  std::vector<Piece> free_;
};

// An event, and what it is about.
class CudaEnqueued final : public Enqueued {
 public:
  CudaEnqueued(const Context& context, std::shared_ptr<HashMemory> memory)
      : context_(context), memory_(std::move(memory)) {}
  ~CudaEnqueued() override {
    if (event_ != nullptr) {
      (void)context_.Within([this] { return driver().Copied(driver().destroy_event(event_), "cuEventDestroy"); });
    }
    if (memory_ != nullptr) memory_->PutBack(piece_);
  }

  // Room for so many hashes. REQUIRES, here and below: within the context.
  absl::StatusOr<LeafHash*> HashesFor(size_t count) {
    absl::StatusOr<HashMemory::Piece> piece = memory_->Take(count);
    if (!piece.ok()) return piece.status();
    piece_ = *piece;
    count_ = count;
    return piece_.hashes;
  }
  absl::Status Record(CUstream_st* stream) {
    absl::Status status = driver().Copied(driver().create_event(&event_, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    if (status.ok()) status = driver().Copied(driver().record_event(event_, stream), "cuEventRecord");
    return status;
  }

  bool IsDone() const override {
    CUresult result = CUDA_SUCCESS;
    const absl::Status status = context_.Within([&] {
      result = driver().query_event(event_);
      return absl::OkStatus();
    });
    return !status.ok() || result != CUDA_ERROR_NOT_READY;
  }
  absl::Status Wait() const override {
    return context_.Within(
        [this] { return driver().Copied(driver().synchronize_event(event_), "cuEventSynchronize"); });
  }
  absl::Span<const LeafHash> hashes() const override { return {piece_.hashes, count_}; }

 private:
  const Driver& driver() const { return *context_.driver; }

  const Context context_;
  const std::shared_ptr<HashMemory> memory_;  // null: there are no hashes
  HashMemory::Piece piece_;
  size_t count_ = 0;
  CUevent event_ = nullptr;
};

class CudaCopies final : public GpuCopies {
 public:
  CudaCopies(const Context& context, DeviceCopyPlan plan, DeviceAdvancePlan advance, uint64_t state_bytes,
             std::shared_ptr<HashMemory> hashes)
      : context_(context),
        leaves_(LeafCount(state_bytes)),
        plan_(std::make_unique<DeviceCopyPlan>(std::move(plan))),
        advance_(std::make_unique<DeviceAdvancePlan>(std::move(advance))),
        hashes_(std::move(hashes)) {}
  ~CudaCopies() override {
    if (context_.driver->IsForked()) {
      (void)plan_.release();
      (void)advance_.release();
      return;
    }
    (void)context_.Within([this] {
      plan_ = nullptr;
      advance_ = nullptr;
      return absl::OkStatus();
    });
  }

  absl::StatusOr<std::unique_ptr<const Enqueued>> Gather(absl::Span<const FromSlot> items, char* arena,
                                                         CUstream_st* stream) override {
    std::vector<DeviceCopyPlan::GatherItem> copies;
    copies.reserve(items.size());
    for (const FromSlot& item : items) copies.push_back({item.state, item.row});
    return Enqueue(std::make_unique<CudaEnqueued>(context_, nullptr), stream,
                   [&](CudaEnqueued*) { return plan_->Gather(copies, arena, stream); });
  }
  absl::StatusOr<std::unique_ptr<const Enqueued>> Scatter(absl::Span<const ToSlot> items, const char* arena,
                                                          CUstream_st* stream) override {
    std::vector<DeviceCopyPlan::ScatterItem> copies;
    copies.reserve(items.size());
    for (const ToSlot& item : items) copies.push_back({item.row, item.accepted, item.state});
    return Enqueue(std::make_unique<CudaEnqueued>(context_, hashes_), stream, [&](CudaEnqueued* to) -> absl::Status {
      const absl::StatusOr<LeafHash*> hashes = to->HashesFor(items.size() * leaves_);
      if (!hashes.ok()) return hashes.status();
      return plan_->ScatterAndHash(copies, arena, *hashes, stream);
    });
  }
  absl::Status Advance(absl::Span<const AdvanceMove> items, char* arena, CUstream_st* stream) override {
    absl::Status status = context_.Within([&] { return advance_->Move(items, arena, stream); });
    if (!status.ok() && GetErrorDetail(status).reason != "GPU_FAILED") status = GpuFailed(status.message());
    return status;
  }

 private:
  // Puts copies and an event into the stream. After an error it waits for what is there, before anybody lets go of what
  // they read and write.
  template <typename Launch>
  absl::StatusOr<std::unique_ptr<const Enqueued>> Enqueue(std::unique_ptr<CudaEnqueued> enqueued, CUstream_st* stream,
                                                          Launch launch) const {
    absl::Status status = context_.Within([&] {
      absl::Status done = launch(enqueued.get());
      if (done.ok()) done = enqueued->Record(stream);
      if (!done.ok()) (void)context_.driver->synchronize_stream(stream);
      return done;
    });
    if (status.ok()) return enqueued;
    if (GetErrorDetail(status).reason != "GPU_FAILED") status = GpuFailed(status.message());
    return status;
  }

  const Context context_;
  const size_t leaves_;
  std::unique_ptr<const DeviceCopyPlan> plan_;
  std::unique_ptr<const DeviceAdvancePlan> advance_;
  const std::shared_ptr<HashMemory> hashes_;
};

class CudaGpu final : public Gpu {
 public:
  explicit CudaGpu(const Context& context) : context_(context) {}

  absl::StatusOr<std::unique_ptr<Range>> Reserve(uint64_t bytes) override {
    const absl::StatusOr<CUdeviceptr> address = ReserveAddresses(bytes);
    if (!address.ok()) return address.status();
    return std::make_unique<CudaRange>(context_, *address, bytes);
  }
  absl::StatusOr<std::unique_ptr<MappedChunks>> ReserveChunks(uint64_t bytes, uint64_t chunk_bytes,
                                                              bool writable) override {
    const absl::StatusOr<CUdeviceptr> address = ReserveAddresses(bytes);
    if (!address.ok()) return address.status();
    return std::make_unique<CudaChunks>(context_, *address, bytes, chunk_bytes, writable);
  }
  absl::StatusOr<std::unique_ptr<GpuCopies>> NewCopies(const CopyPlan& plan, const AdvancePlan& advance) override {
    std::unique_ptr<GpuCopies> copies;
    absl::Status status = context_.Within([&] {
      absl::StatusOr<DeviceCopyPlan> on_gpu = DeviceCopyPlan::Create(plan);
      if (!on_gpu.ok()) return on_gpu.status();
      absl::StatusOr<DeviceAdvancePlan> moves = DeviceAdvancePlan::Create(advance);
      if (!moves.ok()) return moves.status();
      absl::StatusOr<std::shared_ptr<HashMemory>> hashes = HashMemory::Make(context_);
      if (!hashes.ok()) return hashes.status();
      copies = std::make_unique<CudaCopies>(context_, *std::move(on_gpu), *std::move(moves), plan.state_bytes(),
                                            *std::move(hashes));
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return copies;
  }
  absl::StatusOr<bool> IsCapturing(CUstream_st* stream) override {
    CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
    bool is_implied = false;  // the legacy stream can't be asked while a stream that waits for it is captured
    absl::Status status = context_.Within([&] {
      const CUresult result = context_.driver->is_capturing(stream, &capture);
      is_implied = result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      return is_implied ? absl::OkStatus() : context_.driver->Copied(result, "cuStreamIsCapturing");
    });
    if (!status.ok()) return status;
    return is_implied || capture != CU_STREAM_CAPTURE_STATUS_NONE;
  }

 private:
  absl::StatusOr<CUdeviceptr> ReserveAddresses(uint64_t bytes) const {
    CUdeviceptr address = 0;
    absl::Status status = context_.Within([&] {
      return context_.driver->Must(context_.driver->reserve(&address, bytes, 0, 0, 0), "cuMemAddressReserve");
    });
    if (!status.ok()) return status;
    return address;
  }

  const Context context_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<Gpu>> OpenCudaGpu(const std::string& device) {
  const absl::StatusOr<const Driver*> driver = TheDriver();
  if (!driver.ok()) return driver.status();
  const absl::StatusOr<CUdevice> gpu = OrdinalOf(**driver, device);
  if (!gpu.ok()) return gpu.status();
  Context context{*driver, *gpu, nullptr};
  const absl::Status status =
      (*driver)->Must((*driver)->retain_context(&context.context, *gpu), "cuDevicePrimaryCtxRetain");
  if (!status.ok()) return status;
  return std::make_shared<CudaGpu>(context);
}

}  // namespace statepool::client
