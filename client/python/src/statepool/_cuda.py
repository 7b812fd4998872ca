# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The daemon's memory on a GPU in this process: arenas whose Arena.device is "cuda:GPU-<uuid>", and slots there.

Imported when there is one: needs torch and cuda-bindings, which are options of the package.
"""
from __future__ import annotations

import contextlib
import functools
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from . import errors

_TORCH = {"float8_e4m3": "float8_e4m3fn"}  # where torch has another name


class Gpu:
    """One GPU as this process sees it: the driver's calls, in torch's context. Thread-safe."""

    def __init__(self, device: str) -> None:
        """device: "cuda:GPU-<uuid>". Conflict (MAPPING_FAILED) without torch or cuda-bindings, or when this process does not see the GPU."""
        self.name = device
        self.torch, self.driver = _libraries()
        self.ordinal = self._ordinal_of(device)
        # What torch uses. It stays retained: torch would make it anew otherwise.
        self._context = self.must("cuDevicePrimaryCtxRetain", self.must("cuDeviceGet", self.ordinal))

    def must(self, name: str, *arguments: Any) -> Any:
        """What the driver's function gives. Exhausted or Conflict (MAPPING_FAILED)."""
        return _result(self.driver, name, getattr(self.driver, name)(*arguments))

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """For calls of the driver: in the GPU's context, and whatever other threads capture into graphs meanwhile."""
        self.must("cuCtxPushCurrent", self._context)
        _, mode = self.driver.cuThreadExchangeStreamCaptureMode(self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            yield
        finally:
            self.driver.cuThreadExchangeStreamCaptureMode(mode)
            self.driver.cuCtxPopCurrent()

    def import_memory(self, fd: int) -> Any:
        """The handle of the memory that `fd` is, to be released."""
        return self.must("cuMemImportFromShareableHandle", fd, self.driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)

    def set_access(self, address: int, nbytes: int, writable: bool) -> None:
        flags = self.driver.CUmemAccess_flags
        access = self.driver.CUmemAccessDesc()
        access.location.type = self.driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = self.ordinal
        access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if writable else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        self.must("cuMemSetAccess", address, nbytes, [access], 1)

    def bytes_at(self, address: int, nbytes: int, keep: object = None) -> Any:
        """A flat torch tensor of bytes, which keeps `keep`."""
        return self.torch.as_tensor(_Holder(address, nbytes, keep), device=f"cuda:{self.ordinal}")

    def is_capturing(self, stream: Any) -> bool:
        """Whether this torch stream is being captured into a graph; None: torch's current one in this thread, on this GPU."""
        cuda = self.torch.cuda
        if stream is None and cuda.current_device() == self.ordinal:
            return bool(cuda.is_current_stream_capturing())  # to change streams for it takes ten times as long
        with cuda.stream(cuda.current_stream(self.ordinal) if stream is None else stream):
            return bool(cuda.is_current_stream_capturing())

    def _ordinal_of(self, device: str) -> int:
        self.must("cuInit", 0)
        for ordinal in range(self.must("cuDeviceGetCount")):
            uuid = self.must("cuDeviceGetUuid", self.must("cuDeviceGet", ordinal))
            if bytes(uuid.bytes)[:16].hex() == device.removeprefix("cuda:GPU-").replace("-", "").lower():
                return ordinal
        raise errors.made("FAILED_PRECONDITION", "MAPPING_FAILED", f"the arena is on {device}, which this process does not see (CUDA_VISIBLE_DEVICES)")


@functools.cache
def gpu_of(device: str) -> Gpu:
    """The same for each call. Errors are those of Gpu."""
    return Gpu(device)


class GpuRange:
    """Addresses on a GPU that are this object's for as long as it lives; what is mapped there may change. tensor() gives torch tensors of it, which keep
    the addresses, but not the memory: after release(), and after a put() that failed, using one is an error of CUDA's. Not thread-safe.
    """

    def __init__(self, device: str, nbytes: int) -> None:
        """device: "cuda:GPU-<uuid>". nbytes: of the whole allocation, as the daemon's socket tells them.

        Conflict (MAPPING_FAILED) without torch or cuda-bindings, or when this process does not see the GPU; Exhausted when there is no room.
        """
        self.gpu = gpu_of(device)
        self.nbytes = nbytes
        with self.gpu.current():
            self.address = int(self.gpu.must("cuMemAddressReserve", nbytes, 0, 0, 0))
        self._handle: list[Any] = []  # of what is mapped
        self._holder = _Holder(self.address, nbytes, None)
        weakref.finalize(self._holder, _free, os.getpid(), self.gpu, self.address, nbytes, self._handle).atexit = False

    def put(self, fd: int) -> None:
        """Maps the memory that `fd` is, all of it, in place of what was there; waits for what this process does on the GPU first. After an error all is as
        it was, or nothing is mapped (`is_mapped`)."""
        gpu = self.gpu
        with gpu.current():
            handle = gpu.import_memory(fd)
            try:
                self.release()
                gpu.must("cuMemMap", self.address, self.nbytes, 0, handle, 0)
            except BaseException:
                gpu.driver.cuMemRelease(handle)
                raise
            self._handle.append(handle)
            try:
                gpu.set_access(self.address, self.nbytes, writable=True)
            except BaseException:
                self.release()
                raise

    @property
    def is_mapped(self) -> bool:
        return bool(self._handle)

    def release(self) -> None:
        """Unmaps and releases the memory, when what this process does on the GPU is done. May be called again."""
        if not self._handle:
            return
        with self.gpu.current():
            self.gpu.must("cuCtxSynchronize")
            self.gpu.must("cuMemUnmap", self.address, self.nbytes)
            self.gpu.must("cuMemRelease", self._handle.pop())

    vacate = release

    def stream(self, stream: Any) -> Any:
        """This torch stream; None: torch's current one in this thread, on this GPU."""
        return self.gpu.torch.cuda.current_stream(self.gpu.ordinal) if stream is None else stream

    def wait(self, stream: Any) -> None:
        """Waits for a stream, as above."""
        self.stream(stream).synchronize()

    def tensor(self, dtype: str, shape: Sequence[int], strides: Sequence[int], offset: int) -> Any:
        """A torch tensor. dtype: a name as in layouts.DTYPES; strides and offset: bytes. ValueError: it does not lie in the range; InvalidArgument
        (INVALID_VIEW): torch has no tensors that are aligned like this."""
        torch = self.gpu.torch
        element = getattr(torch, _TORCH.get(dtype, dtype), None)
        if element is None:
            raise errors.invalid("INVALID_LAYOUT", f"this torch has no {dtype}", "dtype")
        size = element.itemsize
        if offset % size or any(stride % size for stride in strides):
            raise errors.invalid("INVALID_VIEW", f"{dtype} would not be aligned in torch tensors; take another View.layers", "view")
        if offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) + size > self.nbytes:
            raise ValueError("beyond the arena's end")
        flat = torch.as_tensor(self._holder, device=f"cuda:{self.gpu.ordinal}").view(element)
        return flat.as_strided(tuple(shape), tuple(stride // size for stride in strides), offset // size)


class GpuPieces:
    """What _mapping.Pieces is, on a GPU. Nobody may read or write there before finish(). What is not writable can't be written through these addresses."""

    def __init__(self, device: str, nbytes: int, writable: bool) -> None:
        """Errors are those of GpuRange."""
        self.gpu = gpu_of(device)
        self.nbytes = nbytes
        self._writable = writable
        self._mapped = 0
        with self.gpu.current():
            self.address = int(self.gpu.must("cuMemAddressReserve", nbytes, 0, 0, 0))
        self.writable_address = self.address if writable else None

    def add(self, fd: int, nbytes: int) -> None:
        with self.gpu.current():
            handle = self.gpu.import_memory(fd)
            try:
                self.gpu.must("cuMemMap", self.address + self._mapped, nbytes, 0, handle, 0)
            finally:
                self.gpu.driver.cuMemRelease(handle)  # a mapping keeps it
        self._mapped += nbytes

    def finish(self) -> None:
        with self.gpu.current():
            self.gpu.set_access(self.address, self.nbytes, self._writable)

    def unmap(self) -> None:
        """REQUIRES: nothing that this process does on the GPU uses it."""
        with self.gpu.current():
            if self._mapped:
                self.gpu.driver.cuMemUnmap(self.address, self._mapped)
            self.gpu.driver.cuMemAddressFree(self.address, self.nbytes)


def device_name(device: Any = None) -> str:
    """What the daemon calls a GPU of this process: "cuda:GPU-<uuid>". device: a torch.device, or what makes one (1, "cuda", "cuda:1"); None: torch's current
    one. ValueError when it is no GPU; Conflict (MAPPING_FAILED) without torch or cuda-bindings."""
    torch, driver = _libraries()
    wanted = torch.device("cuda" if device is None else device)
    if wanted.type != "cuda":
        raise ValueError(f"{device!r} is no GPU")
    ordinal = torch.cuda.current_device() if wanted.index is None else wanted.index
    torch.cuda.init()
    handle = _result(driver, "cuDeviceGet", driver.cuDeviceGet(ordinal))
    uuid = bytes(_result(driver, "cuDeviceGetUuid", driver.cuDeviceGetUuid(handle)).bytes)[:16].hex()
    return f"cuda:GPU-{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"


class _Holder:
    """What torch makes tensors of, and keeps with them."""

    def __init__(self, address: int, nbytes: int, keep: object) -> None:
        self.__cuda_array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, False), "strides": None}
        self._keep = keep


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        from cuda.bindings import driver
    except ImportError as failure:
        raise errors.made("FAILED_PRECONDITION", "MAPPING_FAILED",
                          f"the arena is in a GPU's memory, and this process lacks what maps it ({failure}): pip install cuda-bindings torch") from failure
    if not torch.cuda.is_available():
        raise errors.made("FAILED_PRECONDITION", "MAPPING_FAILED",
                          "the arena is in a GPU's memory, and this process's torch sees no GPU: install one that is built for CUDA")
    return torch, driver


def _result(driver: Any, name: str, answer: tuple[Any, ...]) -> Any:
    error, *results = answer
    if error == driver.CUresult.CUDA_SUCCESS:
        return results[0] if results else None
    full = error == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    raise errors.made("RESOURCE_EXHAUSTED" if full else "FAILED_PRECONDITION", "MAPPING_FAILED", f"{name}: {getattr(error, 'name', error)}")


def _free(pid: int, gpu: Gpu, address: int, nbytes: int, handle: list[Any]) -> None:
    """What nobody has a tensor of any more, in the process that has it: CUDA does not work in a forked child."""
    if os.getpid() != pid:
        return
    with gpu.current():
        if handle:
            gpu.driver.cuCtxSynchronize()
            gpu.driver.cuMemUnmap(address, nbytes)
            gpu.driver.cuMemRelease(handle.pop())
        gpu.driver.cuMemAddressFree(address, nbytes)
