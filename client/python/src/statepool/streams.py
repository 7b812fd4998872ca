# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""States in chunks, for any size: reading (StateStream) and writing (send), which go on by themselves after the connection broke.

Both hold a few chunks beside what the caller gave. Each chunk is verified by itself as it arrives, here and on the daemon's side, and the
whole at its end.
"""
from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import numpy.typing as npt
from google.protobuf.message import DecodeError

from . import _wire, errors
from ._calls import Attempts, Connection
from .names import Info
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from types import TracebackType

CHUNK_BYTES = 1 << 20
"""Default size of a chunk. Any multiple of 65,536 up to 4 MiB will do."""
CHUNK_BYTES_MAX = 4 << 20
REPLAY_BYTES = 16 << 20
"""How much of what an iterator gave is kept for sending it again: twice what was seen on the way between the two ends."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are through, and with all of them (None: not known), in the caller's thread. What it raises ends the call."""


class Readable(Protocol):
    """A file, as far as set_stream uses it. One with seek() and tell() can be sent again from anywhere."""

    def read(self, size: int, /) -> bytes: ...


Source = _wire.Buffer | Mapping[str, npt.ArrayLike] | Readable | Iterable[_wire.Buffer]
"""Bytes to write: a contiguous buffer, tensors by name, an open binary file, or an iterable of buffers of any sizes."""


# -------------------------------------------------------------------------------------------------------------- reading


class StateStream(Iterator[memoryview]):
    """The bytes of one version, as an iterator of verified chunks, in order and without a gap. Made by Pool.get_stream.

    info           what the daemon said of the version
    attachment     the opaque bytes beside it
    nbytes         of all chunks
    received_bytes of the chunks that were given out

    A broken connection is made up for inside, by asking for the rest of the same version, while the pool's timeout lasts. NotFound (VERSION_MISMATCH)
    when the name has lost that version meanwhile; DataLoss when bytes do not arrive as they were stored. Chunks stay valid. For one thread at a time;
    used as a context manager, or closed, it ends early without reading the rest.
    """

    info: Info
    attachment: bytes
    nbytes: int
    received_bytes: int

    def __init__(self, connection: Connection, attempts: Attempts, request: pb.GetRequest, chunk_bytes: int | None, verify: bool) -> None:
        """Returns when the daemon answered."""
        self._call: Any = None
        self._connection = connection
        self._attempts = attempts
        self._request = pb.GetRequest()
        self._request.CopyFrom(request)
        self._chunk_bytes = _checked(chunk_bytes)
        self._verify = verify
        self._head: pb.GetResponse | None = None
        self._leaves = bytearray()
        self._ready: memoryview | None = None  # a chunk that came with the head
        self.received_bytes = 0
        while self._head is None:
            self._ready = self._next()
        self.info = Info.from_proto(self._head.info)
        self.attachment = self._head.attachment
        self.nbytes = self._head.data_bytes
        self.data_checksum: str = self._head.data_checksum

    def __next__(self) -> memoryview:
        while True:
            chunk, self._ready = self._ready, None
            if chunk is None:
                if self.received_bytes == self.nbytes:
                    self._end()
                    raise StopIteration
                chunk = self._next()
            if chunk is not None:
                self.received_bytes += len(chunk)
                return chunk

    def close(self) -> None:
        """Ends the stream. Iterating over it afterwards begins a new one where it was left."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def __enter__(self) -> StateStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _next(self) -> memoryview | None:
        """The next chunk, whatever it takes; None for a message without one."""
        while True:
            try:
                chunk = self._receive()
            except errors.StatepoolError as error:
                self.close()
                self._attempts.wait(error, broken=_is_broken(error))
            else:
                if chunk is not None:
                    self._attempts.progress()
                return chunk

    def _receive(self) -> memoryview | None:
        """One message of the daemon's, verified."""
        begins = self._call is None
        if begins:
            self._call = self._connection.receive("GetStream", pb.GetStreamRequest(
                get=self._request, offset=self.received_bytes, chunk_bytes=self._chunk_bytes), self._attempts.timeout())
        try:
            rest, data = _wire.split_data(next(self._call))
            message = pb.GetChunk.FromString(rest)
        except grpc.RpcError as failure:
            raise self._connection.error(failure) from failure
        except StopIteration:
            raise _broken("the stream ended before its last chunk", self._total(), self.received_bytes) from None
        except DecodeError as failure:
            raise _broken(f"a chunk can't be parsed: {failure}") from failure
        if begins:
            self._take_head(message)
        if not data and begins:
            return None
        at, total = message.offset, self._total()
        if at != self.received_bytes or at + len(data) > total or not data or (len(data) % _wire.LEAF_BYTES and at + len(data) < total):
            raise _broken(f"{len(data)} bytes at {at} are not the next chunk", self.received_bytes, at)
        if self._verify:
            leaves = _wire.leaves_of(data)
            actual = _wire.root_of(leaves)
            if actual != message.checksum:
                raise _differs(f"the chunk at {at} did not arrive as it was sent", message.checksum, actual)
            self._leaves += leaves
        return data

    def _take_head(self, message: pb.GetChunk) -> None:
        if not message.HasField("head"):
            raise _broken("the first chunk has no head")
        head = message.head
        known = self._head
        if known is None:
            self._head = head
            # From now on it is this version or none, wherever the name's head moves.
            self._request.ClearField("position")
            self._request.version_id = head.info.version_id
            self._request.omit_attachment = True
        elif (head.info.version_id, head.data_bytes, head.data_checksum) != (known.info.version_id, known.data_bytes, known.data_checksum):
            raise errors.DataLoss("DATA_LOSS", "VERSION_CHANGED", "the daemon goes on with another version", "version_id",
                                  {"expected": str(known.info.version_id), "actual": str(head.info.version_id)})

    def _total(self) -> int:
        return self._head.data_bytes if self._head is not None else 0

    def _end(self) -> None:
        """All chunks were given out. The state is whole when the checksum says so, whatever becomes of the rest of the call."""
        call, self._call = self._call, None
        if call is not None:
            try:
                next(call, None)  # the daemon's OK
            except grpc.RpcError:
                pass
            call.cancel()
        assert self._head is not None
        expected = self._head.data_checksum
        if self._verify and _wire.root_of(self._leaves) != expected:
            raise errors.DataLoss("DATA_LOSS", "CHECKSUM_MISMATCH", f"{self.info.kind} {self.info.name!r} did not arrive as it was stored", "data",
                                  {"expected": expected, "actual": _wire.root_of(self._leaves)})


# -------------------------------------------------------------------------------------------------------------- writing


def send(connection: Connection, attempts: Attempts, head: pb.SetRequest, source: Rewindable, progress: Progress | None = None, *,
         resume: bool = False) -> pb.NameInfo:
    """SetStream with what `source` reads, going on after breaks where GetUpload says. REQUIRES: head.request_id, and no head.data.

    resume: ask before the first attempt as well, for an upload with this request_id may have been left by an earlier call.
    """
    offset = _received(connection, attempts, head) if resume else 0
    if not source.seek(offset):
        offset = 0  # it was never read: it begins there
    furthest = offset
    while True:
        try:
            return _send_from(connection, attempts, head, source, offset, progress)
        except errors.StatepoolError as error:
            # A chunk that differs from its checksum was damaged on the way; a whole that does will not get better.
            damaged = error.reason == "CHECKSUM_MISMATCH" and error.metadata.get("expected") != head.checksum
            attempts.wait(error, broken=_is_broken(error) or damaged, busy=error.reason == "UPLOAD_BUSY")
            failure = errors.again(error)
        offset = _received(connection, attempts, head)
        if offset > furthest:
            furthest = offset
            attempts.progress()
        if not source.seek(offset):
            raise errors.again(failure)


def _received(connection: Connection, attempts: Attempts, head: pb.SetRequest) -> int:
    """Bytes that the daemon keeps. None of them: nothing arrived, it was given up, or all is done and the answer was lost.

    Waits while a call goes on with them: it may be a dead one that the daemon takes for alive still, and then more may have arrived than it says.
    """
    request = pb.GetUploadRequest(sequence=head.sequence, request_id=head.request_id)
    while True:
        try:
            upload = connection.call("GetUpload", request, pb.Upload.FromString, attempts)
        except errors.NotFound:
            return 0
        if upload.HasField("expire_time"):
            return upload.received_bytes
        attempts.wait(errors.Conflict("ABORTED", "UPLOAD_BUSY", "another call goes on with this upload", "request_id"), busy=True)


def _send_from(connection: Connection, attempts: Attempts, head: pb.SetRequest, source: Rewindable, offset: int,
               progress: Progress | None) -> pb.NameInfo:
    feed = _Feed()
    call = connection.send("SetStream", feed, attempts.timeout())
    call.add_done_callback(lambda _: feed.close())
    try:
        # The head by itself: what is refused because of it is refused before the bytes are sent.
        feed.put(pb.SetChunk(head=head, offset=offset).SerializeToString())
        while pieces := source.read():
            chunk = pb.SetChunk(offset=offset, checksum=_wire.checksum_of(*pieces))
            if not feed.put(_wire.with_data(chunk, pieces)):
                break  # there is an answer already
            offset += sum(map(len, pieces))
            if progress is not None:
                progress(offset, source.nbytes)
        feed.end()
        return pb.NameInfo.FromString(call.result())
    except grpc.RpcError as failure:
        raise connection.error(failure) from failure
    finally:
        if not call.done():
            call.cancel()
        feed.close()


class _Feed:
    """Messages on their way to the thread of gRPC's that sends them. Two may wait: the source is never far ahead of the connection."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._messages: collections.deque[bytes] = collections.deque()
        self._ended = False
        self._closed = False

    def put(self, message: bytes) -> bool:
        """Waits for room. False: nobody takes it any more."""
        with self._condition:
            self._condition.wait_for(lambda: len(self._messages) < 2 or self._closed)
            self._messages.append(message)
            self._condition.notify_all()
            return not self._closed

    def end(self) -> None:
        """No more messages: those that wait are still sent."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def close(self) -> None:
        """The call is over: those that wait are dropped."""
        with self._condition:
            self._closed = True
            self._messages.clear()
            self._condition.notify_all()

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> bytes:
        with self._condition:
            self._condition.wait_for(lambda: self._messages or self._ended or self._closed)
            if not self._messages:
                raise StopIteration
            message = self._messages.popleft()
            self._condition.notify_all()
            return message


class Rewindable(Protocol):
    """Bytes in chunks. nbytes: of all of them, or None if that is not known."""

    nbytes: int | None

    def read(self) -> list[memoryview]:
        """The next chunk, in pieces: a multiple of 65,536 bytes but for the last one. Empty: that was all."""

    def seek(self, offset: int) -> bool:
        """The next chunk begins there. False: it can't be had again."""


    def checksum(self) -> str:
        """Of all the bytes; empty if that would mean to read them twice."""


def rewindable(source: Source, chunk_bytes: int | None) -> Rewindable:
    """What `source` is. TypeError if it is nothing that can be sent. (Tensors by name are the caller's to turn into buffers.)"""
    chunk_bytes = _checked(chunk_bytes)
    try:
        return FromBuffers([_wire.as_bytes(source)], chunk_bytes)
    except TypeError:
        pass
    if hasattr(source, "read"):
        return _FromFile(source, chunk_bytes) if _seekable(source) else _FromIterator(iter(lambda: source.read(chunk_bytes), b""), chunk_bytes)
    return _FromIterator(iter(source), chunk_bytes)


class FromBuffers:
    """Buffers laid end to end."""

    nbytes: int | None

    def __init__(self, buffers: Iterable[_wire.Buffer], chunk_bytes: int | None = None) -> None:
        self._pieces = _wire.Pieces(buffers)
        self._chunk_bytes = _checked(chunk_bytes)
        self._at = 0
        self.nbytes = self._pieces.nbytes

    def read(self) -> list[memoryview]:
        begin, self._at = self._at, min(self._at + self._chunk_bytes, self._pieces.nbytes)
        return self._pieces.cut(begin, self._at)

    def seek(self, offset: int) -> bool:
        self._at = offset
        return True

    def checksum(self) -> str:
        return _wire.checksum_of(*self._pieces.cut(0, self._pieces.nbytes))


class _FromFile:
    """From where the file is to its end."""

    def __init__(self, file: Any, chunk_bytes: int) -> None:
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._begin = file.tell()
        self.nbytes: int | None = file.seek(0, 2) - self._begin
        file.seek(self._begin)

    def read(self) -> list[memoryview]:
        pieces: list[memoryview] = []
        missing = self._chunk_bytes
        while missing and (piece := self._file.read(missing)):  # a raw file may give less than it has
            pieces.append(_wire.as_bytes(piece))
            missing -= len(piece)
        return pieces

    def seek(self, offset: int) -> bool:
        self._file.seek(self._begin + offset)
        return True

    def checksum(self) -> str:
        return ""


class _FromIterator:
    """Buffers of any sizes, cut and joined into chunks. The newest REPLAY_BYTES are kept: what the daemon lacks after a break is among them."""

    def __init__(self, buffers: Iterator[_wire.Buffer], chunk_bytes: int) -> None:
        self._buffers = buffers
        self._chunk_bytes = chunk_bytes
        self._rest = memoryview(b"")  # of the newest buffer
        self._kept: collections.deque[bytes] = collections.deque()
        self._kept_from = 0  # offset of the first byte that is kept
        self._kept_to = 0  # of the first one that was not made yet
        self._at = 0
        self.nbytes: int | None = None

    def read(self) -> list[memoryview]:
        if self._at < self._kept_to:
            begin = self._kept_from
            for chunk in self._kept:
                if self._at < begin + len(chunk):
                    piece = memoryview(chunk)[self._at - begin:]
                    self._at += len(piece)
                    return [piece]
                begin += len(chunk)
        chunk = self._make()
        if not chunk:
            return []
        self._kept.append(chunk)
        self._kept_to += len(chunk)
        while self._kept_to - self._kept_from > REPLAY_BYTES:
            self._kept_from += len(self._kept.popleft())
        self._at = self._kept_to
        return [memoryview(chunk)]

    def seek(self, offset: int) -> bool:
        if not self._kept_from <= offset <= self._kept_to:
            return False
        self._at = offset
        return True

    def checksum(self) -> str:
        return ""

    def _make(self) -> bytes:
        """A copy: whoever made the buffers may use them again."""
        chunk = bytearray()
        while len(chunk) < self._chunk_bytes:
            if not self._rest:
                try:
                    self._rest = _wire.as_bytes(next(self._buffers))
                except StopIteration:
                    break
                continue
            part = self._rest[:self._chunk_bytes - len(chunk)]
            chunk += part
            self._rest = self._rest[len(part):]
        return bytes(chunk)


def _checked(chunk_bytes: int | None) -> int:
    if chunk_bytes is None:
        return CHUNK_BYTES
    if chunk_bytes <= 0 or chunk_bytes % _wire.LEAF_BYTES or chunk_bytes > CHUNK_BYTES_MAX:
        raise errors.invalid("INVALID_OPTION", "chunk_bytes is not a multiple of 65,536 up to 4 MiB", "chunk_bytes")
    return chunk_bytes


def _seekable(file: Any) -> bool:
    return bool(getattr(file, "seekable", lambda: False)())


def _is_broken(error: errors.StatepoolError) -> bool:
    """The stream broke off, and nothing speaks against going on, beside what Attempts knows by itself."""
    if isinstance(error, errors.DataLoss):
        return error.reason in ("BROKEN_STREAM", "CHECKSUM_MISMATCH")  # of this library; CORRUPT is the daemon's, and final
    if error.reason:
        return error.reason in ("STALLED", "UPLOAD_UNKNOWN", "OFFSET_MISMATCH")
    return error.code in ("UNKNOWN", "INTERNAL")  # how gRPC tells some of the ways in which a connection goes


def _broken(message: str, expected: object = "", actual: object = "") -> errors.DataLoss:
    return errors.DataLoss("DATA_LOSS", "BROKEN_STREAM", message, "offset", {"expected": str(expected), "actual": str(actual)})


def _differs(message: str, expected: str, actual: str) -> errors.DataLoss:
    return errors.DataLoss("DATA_LOSS", "CHECKSUM_MISMATCH", message, "checksum", {"expected": expected, "actual": actual})
