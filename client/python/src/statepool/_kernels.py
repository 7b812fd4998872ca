# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The daemon's kernels in this process: checksums, and copies between states and arenas' rows, from libstatepool_kernels.so (kernels/c_api.h).

The library is an option: a build of the tree puts it beside this file, or STATEPOOL_KERNELS_LIBRARY names it. Without it (`available` is False), or with
one of another version, hash_of and copy_and_hash do the same in Python, slower, and there are no plans. The library's functions release the GIL.
"""
from __future__ import annotations

import ctypes
import os
import pathlib
import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import xxhash

from .v1 import statepool_pb2 as pb

VERSION = 1
LEAF_BYTES = 65536
_LIBRARY_BYTES_MIN = 256 << 10  # less is done before a call of the library has begun
_LIBRARY = pathlib.Path(__file__).parent / "_lib" / "libstatepool_kernels.so"


class _Piece(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_uint64)]


class _Segment(ctypes.Structure):
    _fields_ = [("state_offset", ctypes.c_uint64), ("arena_offset", ctypes.c_uint64), ("row_stride", ctypes.c_uint64), ("accept_stride", ctypes.c_uint64),
                ("clear_offset", ctypes.c_uint64), ("clear_bytes", ctypes.c_uint64), ("sizes", ctypes.POINTER(ctypes.c_uint64)),
                ("strides", ctypes.POINTER(ctypes.c_uint64)), ("element_bytes", ctypes.c_uint32), ("axis_count", ctypes.c_uint32)]


def _load() -> Any:
    """The library, or None."""
    path = os.environ.get("STATEPOOL_KERNELS_LIBRARY") or str(_LIBRARY)
    try:
        library = ctypes.CDLL(path)
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
    return library


_library = _load()
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


class Plan:
    """How a state lies in the rows of an arena, as the daemon tells it in Arena.plan. Immutable; thread-safe. REQUIRES: `available`."""

    def __init__(self, segments: Sequence[pb.CopySegment], state_bytes: int, arena_bytes: int, rows: int, accepted_max: int) -> None:
        """ValueError when it makes no sense."""
        listed = (_Segment * len(segments))()
        for place, segment in zip(listed, segments):
            for name in ("state_offset", "arena_offset", "row_stride", "accept_stride", "clear_offset", "clear_bytes", "element_bytes"):
                setattr(place, name, getattr(segment, name))
            if len(segment.sizes) != len(segment.strides):
                raise ValueError("a segment has other axes in the state than in the arena")
            place.axis_count = len(segment.sizes)
            place.sizes = (ctypes.c_uint64 * place.axis_count)(*segment.sizes)  # the structure keeps them
            place.strides = (ctypes.c_uint64 * place.axis_count)(*segment.strides)
        self._plan = _library.statepool_kernels_plan_create(listed, len(segments), state_bytes, arena_bytes, rows, accepted_max)
        if not self._plan:
            raise ValueError("the segments do not fit the arena")
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
