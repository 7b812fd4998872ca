# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Bytes of images: their checksum, and messages that carry them without a copy by protobuf.

SetRequest.data and GetResponse.data are field 15. A message that carries an image is the ordinary encoding of its other fields with this field
put after them, so the image is copied once into the request, and a response's image is a view of the bytes that gRPC received.
"""
from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import xxhash
from google.protobuf.message import DecodeError, Message

LEAF_BYTES = 65536
_DATA_TAG = 15 << 3 | 2  # field 15, length-delimited

Buffer = Any  # what memoryview takes, C-contiguous


def checksum_of(*pieces: Buffer) -> str:
    """The checksum (16 lower-case hex digits) of the image that the pieces are when laid end to end. Thread-safe."""
    leaves: list[int] = []
    partial = xxhash.xxh3_64()
    filled = 0  # bytes in `partial`
    for piece in map(as_bytes, pieces):
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
    return xxhash.xxh3_64_hexdigest(struct.pack(f"<{len(leaves)}Q", *leaves))


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
