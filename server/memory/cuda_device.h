// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaDevice: extents in the memory of one GPU, made of chunks of CUDA's virtual-memory API.
//
// Each chunk is a handle of the driver's of its own, that another process may be given as a descriptor (POSIX). A range
// of addresses is taken once, at start; an extent's chunks are mapped into it one after the other, with access for this
// GPU and for the peers that were asked for. The range is so large that the budget alone ever refuses an extent
// (address_range.h): addresses cost no memory.
//
// The budget is taken from the GPU at start, as handles in a reserve that extents are made of. Those of a destroyed
// extent go back there if no descriptor of them was ever made, and are zeroed before they are another's. Otherwise they
// are released to the system, which frees them when the last process that maps them lets go, and the reserve is filled
// again when an extent wants them: if by then others have taken the GPU's memory, that is HOT_FULL. A shared extent is
// one handle, made for it and released with it, whose bytes the reserve gives up meanwhile.
//
// Beside the budget the device takes from the GPU what a CUDA context needs and 256 KiB.
//
// A GPU has no seals: a process that was given a descriptor may map it for writing; that it maps it for reading is its
// own choice. Who hands out descriptors trusts the tenant.
//
// The runtime's kernels work on its memory: it lives in the GPU's primary context. Calls leave the GPU current in the
// thread that made them.
//
// Failure. An error that leaves CUDA's context useless (an illegal address, a launch that failed, uncorrectable memory,
// a GPU that fell off the bus; whatever is not known to be harmless) fails the device for the life of the process:
// health() and every call give that first error at once, waits end, destructors ask the driver nothing more, so that
// what the device held, pinned staging too, comes back with the end of the process. CUDA then fails other devices of
// the same process with the same error, at their next call (tests/gpu tells): GPUs that shall not fail together need
// processes of their own.
//
// Memory of the caller. A call that fails returns, as one that succeeds, when nothing that it began reads or writes the
// caller's memory any more: after every error its stream is waited for. Where that fails too CUDA has given the context
// up, and ended what ran in it; it does not promise more.
//
// Sources that include this need no header of CUDA's.
#ifndef STATEPOOL_SERVER_MEMORY_CUDA_DEVICE_H_
#define STATEPOOL_SERVER_MEMORY_CUDA_DEVICE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/device_error.h"
#include "server/core/mutex.h"
#include "server/memory/address_range.h"
#include "server/memory/device.h"
#include "server/memory/host_device.h"

struct CUevent_st;

namespace statepool {

struct CudaDriver;
class CudaDevice;

struct GpuInfo {
  std::string uuid;  // "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", as nvidia-smi writes it
  std::string name;
  uint64_t total_bytes = 0;
  int ordinal = 0;  // in this process, which may see a part of the machine's GPUs: for calls of CUDA's, not for people
};

struct CudaDeviceOptions {
  std::string uuid{};         // empty: the first
  uint64_t budget_bytes = 0;  // rounded down to whole chunks
  uint64_t chunk_bytes = 0;   // a power of two, a multiple of what the GPU maps (2 MiB); 0: ChunkBytesFor
  bool reserve = true;        // false: memory is taken from the GPU when an extent wants it, and given back with it
  std::vector<std::string> peers{};  // uuids of GPUs that shall reach the extents; those that can't are left out
};

// What an extent consists of. CudaDevice alone changes it.
struct CudaMemory {
  uint64_t chunks = 0;  // of the budget; 0: there is nothing
  uint64_t place = 0;   // in the range of addresses, in chunks
  char* data = nullptr;
  std::vector<unsigned long long> handles;  // of the driver's: in order of addresses, of equal sizes
  uint64_t handle_bytes = 0;
  uint64_t mapped_bytes = 0;
};

class CudaExtent final : public Extent {
 public:
  ~CudaExtent() override;
  char* data() const override { return memory_.data; }
  uint64_t bytes() const override { return bytes_; }
  TenantId tenant() const override { return tenant_; }
  const std::string& device() const override;
  int fd() const override { return -1; }
  absl::StatusOr<std::vector<int>> ExportChunks() override;  // one a chunk; they are never another extent's then
  bool can_be_sealed() const override { return false; }
  bool sealed() const override { return false; }
  bool Seal() override { return false; }

 private:
  friend class CudaDevice;
  CudaExtent(CudaDevice* device, TenantId tenant, uint64_t bytes) : device_(device), tenant_(tenant), bytes_(bytes) {}

  CudaDevice* const device_;
  const TenantId tenant_;
  const uint64_t bytes_;
  CudaMemory memory_;
  std::atomic<bool> exported_{false};
};

class CudaSharedExtent final : public SharedExtent {
 public:
  ~CudaSharedExtent() override;
  char* data() const override { return memory_.data; }  // null after Revoke
  uint64_t bytes() const override { return bytes_; }
  TenantId tenant() const override { return tenant_; }
  const std::string& device() const override;
  int fd() const override { return -1; }
  absl::StatusOr<std::vector<int>> ExportChunks() override;  // one. FAILED_PRECONDITION after Revoke
  bool can_be_sealed() const override { return false; }
  bool sealed() const override { return false; }
  bool Seal() override { return false; }
  // The first call zeroes it, takes it out of our addresses and releases it. Whoever maps it may write to it after
  // that: its bytes are never seen by anyone else, and go when the last process lets go.
  bool Revoke() override;

 private:
  friend class CudaDevice;
  CudaSharedExtent(CudaDevice* device, TenantId tenant, uint64_t bytes)
      : device_(device), tenant_(tenant), bytes_(bytes) {}

  CudaDevice* const device_;
  const TenantId tenant_;
  const uint64_t bytes_;
  CudaMemory memory_;
  std::atomic<bool> exported_{false};
};

// Thread-safe. Errors of all calls, beside the interface's: UNAVAILABLE / DEVICE_FAILED, which names CUDA's call and
// error; the device may be healthy still.
class CudaDevice final : public Device {
 public:
  // The GPUs that this process may use, in CUDA's order. Errors: UNAVAILABLE: there is no driver, or no GPU; the
  // message says which, and what to do.
  static absl::StatusOr<std::vector<GpuInfo>> ListGpus();

  // Errors: INVALID_ARGUMENT for a budget of nothing or below one chunk, a chunk size that is none; NOT_FOUND for a
  // uuid that no GPU has; those of ListGpus; RESOURCE_EXHAUSTED when the GPU has no room for the budget; UNIMPLEMENTED
  // for a GPU whose memory can't be shared as descriptors.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(CudaDeviceOptions options);
  ~CudaDevice() override;

  // 16 MiB, or less (down to 2 MiB) for budgets that would have fewer than 64 such chunks.
  static uint64_t ChunkBytesFor(uint64_t budget_bytes);

  const std::string& name() const override { return name_; }  // "cuda:<uuid>"
  uint64_t chunk_bytes() const override { return chunk_bytes_; }
  uint64_t budget_bytes() const override { return budget_bytes_; }
  uint64_t used_bytes() const override { return used_.load(); }
  bool host_accessible() const override { return false; }
  absl::StatusOr<std::unique_ptr<Extent>> AllocateExtent(TenantId tenant, uint64_t chunks, bool sealed = true) override;
  absl::StatusOr<std::unique_ptr<SharedExtent>> AllocateShared(TenantId tenant, uint64_t chunks) override;
  // On streams of the device: those in, those out and those from peers beside each other. Copies from and to memory of
  // the host that is neither staging nor pinned (PinHost) run at a fraction of the speed, and may be done when the call
  // returns.
  absl::StatusOr<std::unique_ptr<Transfer>> CopyIn(char* to, absl::string_view from) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyOut(char* to, const char* from, uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<Transfer>> CopyWithin(char* to, const char* from, uint64_t bytes) override;
  // Of GPUs that were made with this one among their peers.
  absl::StatusOr<std::unique_ptr<Transfer>> CopyFrom(const Device& other, char* to, const char* from,
                                                     uint64_t bytes) override;
  bool Reaches(const Device& other) const override;  // itself, and those
  // By a kernel, one launch and one wait for as many states as have 512 MiB together. A few calls at a time; others
  // wait for their turn.
  absl::Status HashStates(absl::Span<const char* const> states, uint64_t bytes, absl::Span<LeafHash> leaves) override;
  // Pinned, for every GPU. May take milliseconds for each MiB: keep it.
  absl::StatusOr<std::unique_ptr<Staging>> AllocateStaging(uint64_t bytes) override;
  // One launch for 1,024 items, on a stream of its own. Takes memory of the GPU beside the budget (device_copy_plan.h),
  // and pinned memory for the hashes of all rows.
  absl::StatusOr<std::unique_ptr<RowCopier>> NewRowCopier(const CopyPlan& plan, const AdvancePlan& advance,
                                                          uint32_t rows) override;
  absl::Status health() const override;

  // Pins memory of the host where it is, for every GPU of the process: takes about 0.6 ms for each MiB. Any GPU unpins
  // what any has pinned. REQUIRES: whole pages, that stay mapped until UnpinHost was OK.
  absl::Status PinHost(char* data, uint64_t bytes);
  absl::Status UnpinHost(char* data);

  const GpuInfo& gpu() const { return gpu_; }
  const std::vector<GpuInfo>& peers() const { return peers_; }  // those that reach its extents
  uint64_t reserve_bytes() const;                               // taken from the GPU, and in no extent

 private:
  friend class CudaExtent;
  friend class CudaSharedExtent;
  class Copier;
  class Copy;
  class PinnedStaging;

  static constexpr size_t kCopyStreams = 2;  // for each direction: one copy is prepared while another runs
  static constexpr size_t kHashers = 4;
  static constexpr uint64_t kHashedLeaves = 8192;  // of one launch: 512 MiB

  CudaDevice(GpuInfo gpu, std::vector<GpuInfo> peers, uint64_t budget_bytes, uint64_t chunk_bytes, bool reserve);
  absl::Status Start();
  absl::Status FillReserve() ABSL_LOCKS_EXCLUDED(mu_);

  // Begins every call: the device is healthy, and is made current in this thread.
  absl::Status Enter() const;
  // CUDA's errors become ours here and nowhere else: of the runtime (cudaError_t) and of the driver (CUresult).
  absl::Status Runtime(int error, absl::string_view call) const;
  absl::Status Driver(int error, absl::string_view call) const;
  absl::Status ToStatus(int code, absl::string_view error, absl::string_view sentence, absl::string_view call) const;
  absl::Status OfKernels(absl::string_view what) const;  // one of kernels/ refused: CUDA's last error
  void Fail(const absl::Status& status) const;
  absl::Status Full(absl::string_view message) const;

  // Counts the chunks as used and gives them addresses.
  absl::Status Admit(uint64_t chunks, CudaMemory* memory) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<unsigned long long> CreateHandle(uint64_t bytes) const;
  // After an error all of these leave in *memory what there is to undo.
  absl::Status TakeChunks(uint64_t chunks, CudaMemory* memory) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status TakeShared(uint64_t chunks, CudaMemory* memory) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Map(CudaMemory* memory) const;
  absl::Status Zero(const CudaMemory& memory) const;
  absl::StatusOr<std::vector<int>> Export(const CudaMemory& memory) const;
  void Unmap(CudaMemory* memory) const;
  void Release(CudaMemory* memory) const;  // the handles
  // Undoes it all. `recycle`: nobody else has its handles.
  void Free(CudaMemory* memory, bool recycle) ABSL_LOCKS_EXCLUDED(mu_);

  absl::StatusOr<CUevent_st*> TakeEvent() const ABSL_LOCKS_EXCLUDED(events_mu_);
  void GiveBackEvent(CUevent_st* event) const ABSL_LOCKS_EXCLUDED(events_mu_);
  // For what is in it now. After an error, too, nothing of that touches memory any more.
  absl::Status WaitFor(DeviceStream stream, absl::string_view what) const;
  absl::Status TryWaitFor(DeviceStream stream, absl::string_view what) const;
  // After an error, whether the device failed or not: until nothing of what is in the stream touches memory any more.
  // Where CUDA can't tell either, the device fails: its context is of no use then, and what ran in it has ended.
  void Settle(DeviceStream stream) const;
  enum class Direction { kIn, kOut, kWithin, kFromPeer };
  absl::StatusOr<std::unique_ptr<Transfer>> BeginCopy(void* to, const void* from, uint64_t bytes, Direction direction);
  absl::Status HashPieces(size_t hasher, absl::Span<const void* const> pieces, uint64_t bytes,
                          absl::Span<LeafHash> leaves);

  const GpuInfo gpu_;
  const std::vector<GpuInfo> peers_;
  const std::string name_;
  const uint64_t budget_bytes_;
  const uint64_t chunk_bytes_;
  const bool reserve_;
  const CudaDriver* driver_ = nullptr;

  // Set by Start.
  unsigned long long addresses_begin_ = 0;
  uint64_t addresses_bytes_ = 0;
  std::array<DeviceStream, kCopyStreams> in_streams_{}, out_streams_{}, peer_streams_{};
  std::array<DeviceStream, kHashers> hash_streams_{};
  DeviceStream zero_stream_ = nullptr;
  void* hashes_ = nullptr;         // kHashedLeaves for each hasher, on the device
  void* pinned_hashes_ = nullptr;  // the same on the host

  std::atomic<uint64_t> used_{0};  // changed under mu_
  std::atomic<uint32_t> next_in_{0}, next_out_{0}, next_peer_{0};
  mutable std::atomic<uint32_t> awake_{0};  // waits that are not asleep yet

  // Held while handles are made, so that what one call gives to the system another finds there.
  mutable Mutex mu_;
  AddressRange addresses_ ABSL_GUARDED_BY(mu_);
  // With the chunks in use never more than the budget.
  std::vector<unsigned long long> free_handles_ ABSL_GUARDED_BY(mu_);

  mutable Mutex events_mu_;
  mutable std::vector<CUevent_st*> events_ ABSL_GUARDED_BY(events_mu_);

  Mutex hashers_mu_;
  CondVar hasher_free_;
  std::vector<size_t> free_hashers_ ABSL_GUARDED_BY(hashers_mu_);

  mutable std::atomic<bool> failed_{false};
  mutable Mutex health_mu_;
  mutable absl::Status health_ ABSL_GUARDED_BY(health_mu_);
};

// Pins for all of these by the first that works, so that it does not matter to the others which one that was; unpins by
// any that works. Memory is left as it is, and OK, once all have failed. What was pinned before that can't be unpinned:
// CUDA knows its addresses until the process ends. The GPUs must outlive what is pinned.
HostPinning PinningBy(std::vector<CudaDevice*> gpus);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_MEMORY_CUDA_DEVICE_H_
