# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The daemon's kernels in this process: checksums, and copies between states and arenas' rows, from libstatepool_kernels.so (kernels/c_api.h).

The library is an option: a build of the tree puts it beside this file, or STATEPOOL_KERNELS_LIBRARY names it. Without it (`available` is False), or with
one of another version, hash_of, copy_and_hash and roots_of do the same in Python, slower, and there are no plans. The library's functions release the GIL.
The kernels for a GPU are in another one, libstatepool_kernels_cuda.so (STATEPOOL_KERNELS_CUDA_LIBRARY).
"""
from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import pathlib
import struct
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import xxhash

from .v1 import statepool_pb2 as pb

VERSION = 3
LEAF_BYTES = 65536
_LIBRARY_BYTES_MIN = 256 << 10  # less is done before a call of the library has begun
_LIBRARIES = pathlib.Path(__file__).parent / "_lib"


class _Piece(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_uint64)]


class _Segment(ctypes.Structure):
    _fields_ = [("state_offset", ctypes.c_uint64), ("arena_offset", ctypes.c_uint64), ("row_stride", ctypes.c_uint64), ("accept_stride", ctypes.c_uint64),
                ("clear_offset", ctypes.c_uint64), ("clear_bytes", ctypes.c_uint64), ("sizes", ctypes.POINTER(ctypes.c_uint64)),
                ("strides", ctypes.POINTER(ctypes.c_uint64)), ("element_bytes", ctypes.c_uint32), ("axis_count", ctypes.c_uint32)]


class _AdvanceSegment(ctypes.Structure):
    _fields_ = [("arena_offset", ctypes.c_uint64), ("row_stride", ctypes.c_uint64), ("step_stride", ctypes.c_uint64),
                ("sizes", ctypes.POINTER(ctypes.c_uint64)), ("strides", ctypes.POINTER(ctypes.c_uint64)), ("steps", ctypes.c_uint32),
                ("window", ctypes.c_uint32), ("element_bytes", ctypes.c_uint32), ("axis_count", ctypes.c_uint32)]


class _Move(ctypes.Structure):
    _fields_ = [("steps", ctypes.c_uint64), ("from_row", ctypes.c_uint32), ("to_row", ctypes.c_uint32)]


def _load(name: str, variable: str) -> Any:
    """The library of this name, or that which the variable of the environment names. None: there is none that can be used."""
    try:
        library = ctypes.CDLL(os.environ.get(variable) or str(_LIBRARIES / name))
        library.statepool_kernels_version.restype = ctypes.c_uint32
        if library.statepool_kernels_version() != VERSION:
            return None
    except (OSError, AttributeError):  # AttributeError: another library
        return None
    pieces: list[Any] = [ctypes.POINTER(_Piece), ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)]
    library.statepool_kernels_hash.argtypes = pieces
    library.statepool_kernels_copy_and_hash.argtypes = [ctypes.c_void_p, *pieces]
    library.statepool_kernels_plan_create.restype = ctypes.c_void_p
    library.statepool_kernels_plan_create.argtypes = [ctypes.POINTER(_Segment), ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32,
                                                      ctypes.c_uint32]
    library.statepool_kernels_plan_destroy.restype = None
    library.statepool_kernels_plan_destroy.argtypes = [ctypes.c_void_p]
    library.statepool_kernels_gather.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32), ctypes.c_size_t]
    library.statepool_kernels_scatter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p,
                                                  ctypes.POINTER(ctypes.c_uint64)]
    rows = ctypes.POINTER(ctypes.c_uint32)
    states = ctypes.POINTER(ctypes.c_void_p)
    library.statepool_kernels_roots.restype = None
    library.statepool_kernels_roots.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)]
    library.statepool_kernels_device_error.restype = ctypes.c_char_p
    library.statepool_kernels_device_error.argtypes = []
    library.statepool_kernels_device_plan_create.restype = ctypes.c_void_p
    library.statepool_kernels_device_plan_create.argtypes = [ctypes.c_void_p]
    library.statepool_kernels_device_plan_destroy.restype = None
    library.statepool_kernels_device_plan_destroy.argtypes = [ctypes.c_void_p]
    library.statepool_kernels_device_gather.argtypes = [ctypes.c_void_p, states, rows, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
    library.statepool_kernels_device_scatter.argtypes = [ctypes.c_void_p, rows, rows, states, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p,
                                                         ctypes.c_void_p]
    library.statepool_kernels_advance_create.restype = ctypes.c_void_p
    library.statepool_kernels_advance_create.argtypes = [ctypes.POINTER(_AdvanceSegment), ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32]
    library.statepool_kernels_advance_destroy.restype = None
    library.statepool_kernels_advance_destroy.argtypes = [ctypes.c_void_p]
    moves: list[Any] = [ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(_Move), ctypes.c_size_t]
    library.statepool_kernels_advance_rows.argtypes = moves
    library.statepool_kernels_device_advance_create.restype = ctypes.c_void_p
    library.statepool_kernels_device_advance_create.argtypes = [ctypes.c_void_p]
    library.statepool_kernels_device_advance_destroy.restype = None
    library.statepool_kernels_device_advance_destroy.argtypes = [ctypes.c_void_p]
    library.statepool_kernels_device_advance_rows.argtypes = [*moves, ctypes.c_void_p]
    return library


_library = _load("libstatepool_kernels.so", "STATEPOOL_KERNELS_LIBRARY")
available: bool = _library is not None


def hash_of(pieces: Sequence[memoryview]) -> str:
    """The checksum (16 lower-case hex digits) of the image that the pieces are when laid end to end. REQUIRES: flat views of bytes. Thread-safe."""
    if _library is None or sum(map(len, pieces)) < _LIBRARY_BYTES_MIN:
        return xxhash.xxh3_64_hexdigest(leaves_of(pieces))
    listed, keep = _pieces(pieces)
    return _root(lambda root: _library.statepool_kernels_hash(listed, len(pieces), root), keep)


def copy_and_hash(to: memoryview, pieces: Sequence[memoryview]) -> str:
    """Copies the pieces to `to`, end to end, with their checksum, which is that of what was written; in one pass as a rule.

    REQUIRES: flat views of bytes; `to` is writable, as long as all pieces, and shares no byte with them.
    """
    assert len(to) == sum(map(len, pieces))
    if _library is None or len(to) < _LIBRARY_BYTES_MIN:
        leaves = bytearray()
        at = 0
        if len(pieces) == 1:
            while at < len(to):
                end = min(at + LEAF_BYTES, len(to))
                to[at:end] = pieces[0][at:end]
                leaves += xxhash.xxh3_64_intdigest(to[at:end]).to_bytes(8, "little")
                at = end
            return xxhash.xxh3_64_hexdigest(leaves)
        for piece in pieces:
            to[at:at + len(piece)] = piece
            at += len(piece)
        return xxhash.xxh3_64_hexdigest(leaves_of([to]))
    listed, keep = _pieces(pieces)
    target = np.frombuffer(to, np.uint8)
    return _root(lambda root: _library.statepool_kernels_copy_and_hash(target.ctypes.data, listed, len(pieces), root), keep)


def leaves_of(pieces: Iterable[memoryview]) -> bytes:
    """The hashes of the image's leaves, 8 little-endian bytes each. Those of chunks that begin at multiples of LEAF_BYTES may be joined."""
    leaves: list[int] = []
    partial = xxhash.xxh3_64()
    filled = 0  # bytes in `partial`
    for piece in pieces:
        at = 0
        while at < len(piece):
            part = piece[at:at + LEAF_BYTES - filled]
            at += len(part)
            if len(part) == LEAF_BYTES:
                leaves.append(xxhash.xxh3_64_intdigest(part))
                continue
            partial.update(part)
            filled += len(part)
            if filled == LEAF_BYTES:
                leaves.append(partial.intdigest())
                partial.reset()
                filled = 0
    if filled:
        leaves.append(partial.intdigest())
    return struct.pack(f"<{len(leaves)}Q", *leaves)


def roots_of(leaves: memoryview, count: int) -> list[str]:
    """The checksums of `count` images of as many leaves each. leaves: their hashes, image after image, 8 bytes each as this machine has numbers."""
    each = len(leaves) // count
    if _library is None:
        order = sys.byteorder
        return [xxhash.xxh3_64_hexdigest(b"".join(int.from_bytes(leaves[at:at + 8], order).to_bytes(8, "little") for at in range(first, first + each, 8)))
                for first in range(0, each * count, each)]
    hashes = np.frombuffer(leaves, np.uint64)
    roots = (ctypes.c_uint64 * count)()
    _library.statepool_kernels_roots(hashes.ctypes.data, each // 8, count, roots)
    return [f"{root:016x}" for root in roots]


class Plan:
    """How a state lies in the rows of an arena, as the daemon tells it in Arena.plan. Immutable; thread-safe. REQUIRES: `available`."""

    def __init__(self, segments: Sequence[pb.CopySegment], state_bytes: int, arena_bytes: int, rows: int, accepted_max: int) -> None:
        """ValueError when it makes no sense."""
        self._plan = _create(_library, segments, state_bytes, arena_bytes, rows, accepted_max)
        self.state_bytes = state_bytes
        self.rows = rows
        self.accepted_max = accepted_max
        weakref.finalize(self, _library.statepool_kernels_plan_destroy, self._plan).atexit = False

    def gather(self, state: int, arena: int, rows: Sequence[int]) -> None:
        """Copies the state at this address into the first step of these rows of the arena at that one. REQUIRES: `rows` are those of the arena."""
        listed = (ctypes.c_uint32 * len(rows))(*rows)
        _check(_library.statepool_kernels_gather(self._plan, state, arena, listed, len(rows)))

    def scatter(self, arena: int, row: int, accepted: int, state: int) -> str:
        """Writes what the row of the arena at this address holds after `accepted` steps to that one: the checksum of what was written.

        REQUIRES: 0 <= row < rows, 1 <= accepted <= accepted_max.
        """
        return _root(lambda root: _library.statepool_kernels_scatter(self._plan, arena, row, accepted, state, root), None)


def _create(library: Any, segments: Sequence[pb.CopySegment], state_bytes: int, arena_bytes: int, rows: int, accepted_max: int) -> int:
    """A plan of this library. ValueError when it makes no sense."""
    listed = (_Segment * len(segments))()
    for place, segment in zip(listed, segments):
        for name in ("state_offset", "arena_offset", "row_stride", "accept_stride", "clear_offset", "clear_bytes", "element_bytes"):
            setattr(place, name, getattr(segment, name))
        if len(segment.sizes) != len(segment.strides):
            raise ValueError("a segment has other axes in the state than in the arena")
        place.axis_count = len(segment.sizes)
        place.sizes = (ctypes.c_uint64 * place.axis_count)(*segment.sizes)  # the structure keeps them
        place.strides = (ctypes.c_uint64 * place.axis_count)(*segment.strides)
    plan: int | None = library.statepool_kernels_plan_create(listed, len(segments), state_bytes, arena_bytes, rows, accepted_max)
    if not plan:
        raise ValueError("the segments do not fit the arena")
    return plan


@dataclasses.dataclass(frozen=True)
class AdvanceSegment:
    """One layer of one tensor: AdvanceSegment of kernels/advance_plan.h. axes: size and stride of each of one step, or one column."""

    arena_offset: int
    row_stride: int
    step_stride: int
    steps: int
    window: int
    element_bytes: int
    axes: Sequence[tuple[int, int]]


class AdvancePlan:
    """Where the rows of an arena have the states of their steps. Immutable; thread-safe. REQUIRES: `available`."""

    def __init__(self, segments: Sequence[AdvanceSegment], arena_bytes: int, rows: int, steps_max: int) -> None:
        """ValueError when it makes no sense."""
        self._plan = _create_advance(_library, segments, arena_bytes, rows, steps_max)
        weakref.finalize(self, _library.statepool_kernels_advance_destroy, self._plan).atexit = False

    def move(self, moves: Sequence[tuple[int, int, int]], arena: int) -> None:
        """Moves rows of the arena at this address: the path's bits, the row and the row that gets its state, of each. REQUIRES: no row is written by two
        moves, or written by one and read by another. ValueError: no such row or step; then nothing was moved."""
        _check(_library.statepool_kernels_advance_rows(self._plan, arena, (_Move * len(moves))(*[_Move(*move) for move in moves]), len(moves)))


def _create_advance(library: Any, segments: Sequence[AdvanceSegment], arena_bytes: int, rows: int, steps_max: int) -> int:
    """A plan of this library. ValueError when it makes no sense."""
    listed = (_AdvanceSegment * len(segments))()
    for place, segment in zip(listed, segments):
        for name in ("arena_offset", "row_stride", "step_stride", "steps", "window", "element_bytes"):
            setattr(place, name, getattr(segment, name))
        place.axis_count = len(segment.axes)
        place.sizes = (ctypes.c_uint64 * place.axis_count)(*(size for size, _ in segment.axes))  # the structure keeps them
        place.strides = (ctypes.c_uint64 * place.axis_count)(*(stride for _, stride in segment.axes))
    plan: int | None = library.statepool_kernels_advance_create(listed, len(segments), arena_bytes, rows, steps_max)
    if not plan:
        raise ValueError("the segments do not fit the arena")
    return plan


# ---------------------------------------------------------------------------------------------------------------- on a GPU


class DeviceFailed(Exception):
    """A GPU's kernel could not be enqueued, or there is no library with any; the message is why."""


class DevicePlan:
    """A plan in the memory of the GPU whose primary context is current in the thread that makes it, and in those that use it. Immutable; thread-safe.
    destroy() frees it, nothing else does: a copy may be under way."""

    def __init__(self, segments: Sequence[pb.CopySegment], state_bytes: int, arena_bytes: int, rows: int, accepted_max: int) -> None:
        """DeviceFailed; ValueError when it makes no sense."""
        self._library = _cuda_library()
        if self._library is None:
            raise DeviceFailed(f"there is no libstatepool_kernels_cuda.so of version {VERSION}: a build with nvcc makes it")
        plan = _create(self._library, segments, state_bytes, arena_bytes, rows, accepted_max)
        try:
            self._plan = self._library.statepool_kernels_device_plan_create(plan)
        finally:
            self._library.statepool_kernels_plan_destroy(plan)
        if not self._plan:
            raise self._failure()

    def destroy(self) -> None:
        """Frees it. REQUIRES: what was enqueued with it is done, and nothing is enqueued any more."""
        self._library.statepool_kernels_device_plan_destroy(self._plan)

    def gather(self, states: Sequence[int], rows: Sequence[int], arena: int, stream: int) -> None:
        """Enqueues the copies of the states at these addresses into these rows of the arena at that one. DeviceFailed."""
        self._enqueued(self._library.statepool_kernels_device_gather(self._plan, _addresses(states), _numbers(rows), len(rows), arena, stream))

    def scatter(self, rows: Sequence[int], accepted: Sequence[int], states: Sequence[int], arena: int, hashes: int, stream: int) -> None:
        """Enqueues the copies of what rows hold after so many steps to these addresses, with the hashes of their leaves, state after state, to the
        address `hashes`. DeviceFailed."""
        self._enqueued(self._library.statepool_kernels_device_scatter(self._plan, _numbers(rows), _numbers(accepted), _addresses(states), len(rows), arena,
                                                                      hashes, stream))

    def _enqueued(self, result: int) -> None:
        if result == 3:
            raise self._failure()
        _check(result)

    def _failure(self) -> DeviceFailed:
        return DeviceFailed(self._library.statepool_kernels_device_error().decode(errors="replace"))


class DeviceAdvancePlan:
    """What AdvancePlan is, in the memory of a GPU; as a DevicePlan."""

    def __init__(self, segments: Sequence[AdvanceSegment], arena_bytes: int, rows: int, steps_max: int) -> None:
        """DeviceFailed; ValueError when it makes no sense."""
        self._library = _cuda_library()
        if self._library is None:
            raise DeviceFailed(f"there is no libstatepool_kernels_cuda.so of version {VERSION}: a build with nvcc makes it")
        plan = _create_advance(self._library, segments, arena_bytes, rows, steps_max)
        try:
            self._plan = self._library.statepool_kernels_device_advance_create(plan)
        finally:
            self._library.statepool_kernels_advance_destroy(plan)
        if not self._plan:
            raise DeviceFailed(self._library.statepool_kernels_device_error().decode(errors="replace"))

    def destroy(self) -> None:
        """Frees it. REQUIRES: what was enqueued with it is done, and nothing is enqueued any more."""
        self._library.statepool_kernels_device_advance_destroy(self._plan)

    def move(self, moves: Sequence[tuple[int, int, int]], arena: int, stream: int) -> None:
        """Enqueues what AdvancePlan.move does. DeviceFailed; ValueError."""
        result = self._library.statepool_kernels_device_advance_rows(self._plan, arena, (_Move * len(moves))(*[_Move(*move) for move in moves]), len(moves), stream)
        if result == 3:
            raise DeviceFailed(self._library.statepool_kernels_device_error().decode(errors="replace"))
        _check(result)


@functools.cache
def _cuda_library() -> Any:
    return _load("libstatepool_kernels_cuda.so", "STATEPOOL_KERNELS_CUDA_LIBRARY")


def _addresses(values: Sequence[int]) -> Any:
    return (ctypes.c_void_p * len(values))(*values)


def _numbers(values: Sequence[int]) -> Any:
    return (ctypes.c_uint32 * len(values))(*values)


def _pieces(views: Sequence[memoryview]) -> tuple[Any, list[Any]]:
    """The argument, and what keeps it valid."""
    arrays = [np.frombuffer(view, np.uint8) if len(view) else np.empty(0, np.uint8) for view in views]
    listed = (_Piece * len(arrays))(*(_Piece(array.ctypes.data, array.nbytes) for array in arrays))
    return listed, arrays


def _root(call: Callable[[Any], int], keep: Any) -> str:
    root = ctypes.c_uint64()
    _check(call(ctypes.byref(root)))
    del keep  # until here
    return f"{root.value:016x}"


def _check(result: int) -> None:
    if result == 2:
        raise MemoryError
    if result != 0:
        raise ValueError("a row or an accepted length that the plan lacks")
