# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The daemon's memory on a GPU in this process: arenas whose Arena.device is "cuda:GPU-<uuid>".

Imported when there is one: needs torch and cuda-bindings, which are options of the package.
"""
from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from . import errors

_TORCH = {"float8_e4m3": "float8_e4m3fn"}  # where torch has another name


class GpuRange:
    """Addresses on a GPU that are this object's for as long as it lives; what is mapped there may change. tensor() gives torch tensors of it, which keep
    the addresses, but not the memory: after release(), and after a put() that failed, using one is an error of CUDA's. Not thread-safe.
    """

    def __init__(self, device: str, nbytes: int) -> None:
        """device: "cuda:GPU-<uuid>". nbytes: of the whole allocation, as the daemon's socket tells them.

        Conflict (MAPPING_FAILED) without torch or cuda-bindings, or when this process does not see the GPU; Exhausted when there is no room.
        """
        self._torch, self._driver = _libraries()
        self.nbytes = nbytes
        self.ordinal = self._ordinal_of(device)
        # What torch uses. It stays retained: torch would make it anew otherwise.
        self._context = self._must("cuDevicePrimaryCtxRetain", self._must("cuDeviceGet", self.ordinal))
        with self._current():
            self.address = int(self._must("cuMemAddressReserve", nbytes, 0, 0, 0))
        self._handle: list[Any] = []  # of what is mapped
        self._holder = _Holder(self.address, nbytes)
        weakref.finalize(self._holder, _free, self._driver, self._context, self.address, nbytes, self._handle).atexit = False

    def put(self, fd: int) -> None:
        """Maps the memory that `fd` is, all of it, in place of what was there; waits for what this process does on the GPU first. After an error all is as
        it was, or nothing is mapped (`is_mapped`)."""
        kind = self._driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        with self._current():
            handle = self._must("cuMemImportFromShareableHandle", fd, kind)
            try:
                self.release()
                self._must("cuMemMap", self.address, self.nbytes, 0, handle, 0)
            except BaseException:
                self._driver.cuMemRelease(handle)
                raise
            self._handle.append(handle)
            access = self._driver.CUmemAccessDesc()
            access.location.type = self._driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            access.location.id = self.ordinal
            access.flags = self._driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
            try:
                self._must("cuMemSetAccess", self.address, self.nbytes, [access], 1)
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
        with self._current():
            self._must("cuCtxSynchronize")
            self._must("cuMemUnmap", self.address, self.nbytes)
            self._must("cuMemRelease", self._handle.pop())

    vacate = release

    def wait(self) -> None:
        """Waits for the stream that is torch's current one in this thread."""
        self._torch.cuda.current_stream(self.ordinal).synchronize()

    def tensor(self, dtype: str, shape: Sequence[int], strides: Sequence[int], offset: int) -> Any:
        """A torch tensor. dtype: a name as in layouts.DTYPES; strides and offset: bytes. ValueError: it does not lie in the range; InvalidArgument
        (INVALID_VIEW): torch has no tensors that are aligned like this."""
        element = getattr(self._torch, _TORCH.get(dtype, dtype), None)
        if element is None:
            raise errors.invalid("INVALID_LAYOUT", f"this torch has no {dtype}", "dtype")
        size = element.itemsize
        if offset % size or any(stride % size for stride in strides):
            raise errors.invalid("INVALID_VIEW", f"{dtype} would not be aligned in torch tensors; take another View.layers", "view")
        if offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) + size > self.nbytes:
            raise ValueError("beyond the arena's end")
        flat = self._torch.as_tensor(self._holder, device=f"cuda:{self.ordinal}").view(element)
        return flat.as_strided(tuple(shape), tuple(stride // size for stride in strides), offset // size)

    # ---------------------------------------------------------------------------------------------------------- the driver

    def _ordinal_of(self, device: str) -> int:
        self._must("cuInit", 0)
        for ordinal in range(self._must("cuDeviceGetCount")):
            uuid = self._must("cuDeviceGetUuid", self._must("cuDeviceGet", ordinal))
            if bytes(uuid.bytes)[:16].hex() == device.removeprefix("cuda:GPU-").replace("-", "").lower():
                return ordinal
        raise errors.made("FAILED_PRECONDITION", "MAPPING_FAILED", f"the arena is on {device}, which this process does not see (CUDA_VISIBLE_DEVICES)")

    def _must(self, name: str, *arguments: Any) -> Any:
        """What the driver's function gives. Exhausted or Conflict (MAPPING_FAILED)."""
        return _result(self._driver, name, getattr(self._driver, name)(*arguments))

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        self._must("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent()


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

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, False), "strides": None}


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


def _free(driver: Any, context: Any, address: int, nbytes: int, handle: list[Any]) -> None:
    """What nobody has a tensor of any more."""
    driver.cuCtxPushCurrent(context)
    if handle:
        driver.cuCtxSynchronize()
        driver.cuMemUnmap(address, nbytes)
        driver.cuMemRelease(handle.pop())
    driver.cuMemAddressFree(address, nbytes)
    driver.cuCtxPopCurrent()
