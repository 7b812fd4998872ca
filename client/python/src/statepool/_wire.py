# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Bytes of images: their checksum, and messages that carry them without a copy by protobuf.

Wherever a message carries bytes of images, they are its field 15, `data`. Such a message is the ordinary encoding of its other fields with this field
put after them, so the image is copied once into the request, and a response's image is a view of the bytes that gRPC received.
"""
from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import xxhash
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from . import _kernels, errors

LEAF_BYTES = _kernels.LEAF_BYTES
_DATA_TAG = 15 << 3 | 2  # field 15, length-delimited

Buffer = Any  # what memoryview takes, C-contiguous


_RANGES = {FieldDescriptor.CPPTYPE_INT32: "-2^31..2^31-1", FieldDescriptor.CPPTYPE_INT64: "-2^63..2^63-1", FieldDescriptor.CPPTYPE_UINT32: "0..2^32-1",
           FieldDescriptor.CPPTYPE_UINT64: "0..2^64-1"}
_Message = TypeVar("_Message", bound=Message)


def message(kind: type[_Message], reason: str = "INVALID_OPTION", path: str = "", /, **values: Any) -> _Message:
    """A message with these fields. InvalidArgument (the reason, of positions INVALID_POSITION; the field behind the path) for a number that its field can't hold."""
    try:
        return kind(**values)
    except ValueError:
        for field, value in values.items():
            try:
                kind(**{field: value})
            except ValueError:
                raise errors.invalid("INVALID_POSITION" if field == "position" else reason, f"{value!r} is not in {_RANGES.get(kind.DESCRIPTOR.fields_by_name[field].cpp_type)}",
                                     path + field) from None
        raise


def checksum_of(*pieces: Buffer) -> str:
    """The checksum (16 lower-case hex digits) of the image that the pieces are when laid end to end. Thread-safe."""
    return _kernels.hash_of([as_bytes(piece) for piece in pieces])


def root_of(leaves: bytes | bytearray) -> str:
    """The checksum of the image that has these leaves, as leaves_of() gives them."""
    return xxhash.xxh3_64_hexdigest(leaves)


def leaves_of(*pieces: Buffer) -> bytes:
    """The hashes of the leaves, 8 little-endian bytes each. Those of chunks that begin at multiples of LEAF_BYTES may be joined."""
    return _kernels.leaves_of(map(as_bytes, pieces))


def copy_and_hash(to: Buffer, *pieces: Buffer) -> str:
    """Copies the pieces to `to`, laid end to end, and gives the checksum of what was written, in one pass.

    REQUIRES: `to` is writable, as long as all pieces, and shares no byte with them.
    """
    return _kernels.copy_and_hash(as_bytes(to), [as_bytes(piece) for piece in pieces])


class Pieces:
    """Buffers laid end to end, to be read or written by offset. Copies nothing. nbytes: of all of them."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self._views = [view for view in map(as_bytes, buffers) if len(view)]
        self._starts = [0, *itertools.accumulate(map(len, self._views))]
        self.nbytes = self._starts[-1]

    def cut(self, start: int, end: int) -> list[memoryview]:
        """The bytes [start, end), in order. REQUIRES: 0 <= start <= end <= nbytes."""
        out: list[memoryview] = []
        i = bisect.bisect_right(self._starts, start) - 1
        while start < end:
            view = self._views[i][start - self._starts[i]:end - self._starts[i]]
            out.append(view)
            start += len(view)
            i += 1
        return out

    def write(self, start: int, data: memoryview) -> None:
        """Copies `data` to [start, start + len(data)). REQUIRES: it lies inside, and the buffers are writable."""
        at = 0
        for view in self.cut(start, start + len(data)):
            view[:] = data[at:at + len(view)]
            at += len(view)


def as_bytes(buffer: Buffer) -> memoryview:
    """A flat view of a buffer's bytes. TypeError or ValueError when it has none, or not in one piece."""
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")


def with_data(head: Message, pieces: Sequence[Buffer]) -> bytes:
    """The encoding of `head` with field 15 set to the pieces laid end to end. REQUIRES: `head` does not set field 15."""
    views = [as_bytes(p) for p in pieces]
    size = _varint_of(sum(len(v) for v in views))
    return b"".join([head.SerializeToString(), bytes([_DATA_TAG]), size, *views])


def split_data(message: bytes) -> tuple[bytes, memoryview]:
    """The encoding of a message without its field 15, and a view of that field (empty when it is absent). DecodeError."""
    view = memoryview(message)
    data = view[:0]
    rest: list[memoryview] = []
    at = 0
    while at < len(view):
        start = at
        tag, at = _varint(view, at)
        wire_type = tag & 7
        body = at
        if wire_type == 0:
            _, at = _varint(view, at)
        elif wire_type == 1:
            at += 8
        elif wire_type == 2:
            size, body = _varint(view, at)
            at = body + size
        elif wire_type == 5:
            at += 4
        else:
            raise DecodeError(f"wire type {wire_type} at byte {start}")
        if at > len(view):
            raise DecodeError("truncated message")
        if tag == _DATA_TAG:
            data = view[body:at]
        else:
            rest.append(view[start:at])
    return b"".join(rest), data


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DecodeError("malformed integer")


def _varint_of(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
