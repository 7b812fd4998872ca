# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""States in chunks, as the Python package reads and writes them: against a server that breaks off wherever it can, and against the daemon."""
import contextlib
import io
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

import statepool
from daemon_process import REPOSITORY, Daemon, eventually
from fake_server import FakeServer, fail, serving
from statepool import _wire, streams
from statepool.layouts import Layout, Tensor
from statepool.v1 import statepool_pb2 as pb

LEAF = 65536
# Five chunks of one leaf, the last one short; tensors begin and end inside of chunks.
LAYOUT = Layout("streamed-model", (
    Tensor("conv", range(3), "bfloat16", {"tap": 3, "channel": 33}, kind="conv"),
    Tensor("ssm", range(4), "float32", {"head": 4, "key": 64, "value": 64}, kind="recurrent"),
    Tensor("count", [1], "uint8", {"channel": 6}),
))
CHUNKS = 5


def image(n, size=LAYOUT.state_bytes):
    return random.Random(n).randbytes(size)


IMAGE = image(1)


# -------------------------------------------------------------------------------------------------------- a fake daemon


class Reader(FakeServer):
    """Has one version, IMAGE. `faults`: of each call to come (chunk, what goes wrong there), what: see GetStream."""

    def __init__(self, *faults, whole=None):
        self.faults = list(faults)
        self.whole = whole or _wire.checksum_of(IMAGE)
        self.requests = []

    def Get(self, request, context):
        fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", limit="1")

    def GetStream(self, request, context):
        self.requests.append(request)
        at_chunk, what = self.faults.pop(0) if self.faults else (None, None)
        info = pb.NameInfo(name=request.get.name, layout=LAYOUT.fingerprint, position=7, version_id=8 if what == "other version" else 9,
                           checksum=self.whole, state_bytes=len(IMAGE))
        head = pb.GetResponse(info=info, data_checksum=self.whole, data_bytes=len(IMAGE))
        head.attachment = b"" if request.get.omit_attachment else b"logits"
        offset = request.offset
        for i in itertools.count():
            data = IMAGE[offset:offset + (request.chunk_bytes or LEAF)]
            chunk = pb.GetChunk(offset=offset, data=data, checksum=_wire.checksum_of(data))
            if i == 0 and what != "no head":
                chunk.head.CopyFrom(head)
            if i == at_chunk:
                if what == "head alone":
                    yield pb.GetChunk(head=head, offset=offset)
                    fail(context, grpc.StatusCode.UNAVAILABLE)
                elif what == "flip":
                    chunk.data = bytes([data[0] ^ 1]) + data[1:]
                elif what == "gap":
                    chunk.offset += LEAF
                elif what == "again":
                    chunk.offset -= LEAF
                elif what == "short":
                    chunk.data = data[:-1]
                    chunk.checksum = _wire.checksum_of(chunk.data)
                elif what == "empty":
                    chunk.data, chunk.checksum = b"", ""
                elif what == "end":
                    return
                elif what == "hang":
                    context.add_callback(self.hung.set)
                    self.hung.wait(30)
                elif isinstance(what, tuple):
                    fail(context, *what)
            if not data:
                return
            yield chunk
            offset += len(data)

    hung = threading.Event()


@contextlib.contextmanager
def pool_of(server, **options):
    with serving(server) as address, statepool.connect(address, **{"timeout": 20, **options}) as pool:
        pool._connection.layouts[LAYOUT.fingerprint] = LAYOUT  # so that nobody asks the server
        yield pool


BROKEN = (grpc.StatusCode.UNAVAILABLE,)


@pytest.mark.parametrize("at", range(CHUNKS + 1))
@pytest.mark.parametrize("what", [BROKEN, (grpc.StatusCode.INTERNAL,), (grpc.StatusCode.UNAVAILABLE, "DRAINING", 0.01),
                                  (grpc.StatusCode.DEADLINE_EXCEEDED, "STALLED"), "flip", "gap", "again", "end", "head alone"],
                         ids=["broken", "reset", "draining", "stalled", "flip", "gap", "again", "end", "head alone"])
def test_a_stream_that_goes_wrong_at_any_chunk_goes_on_behind_the_last_good_one(what, at):
    server = Reader((at, what))
    with pool_of(server, retries=1) as pool:
        state = pool.get_into("s", bytearray(len(IMAGE)), 7, chunk_bytes=LEAF)
    assert bytes(state.data) == IMAGE and state.attachment == b"logits"
    harmless = at == CHUNKS or (what == "head alone" and at == CHUNKS)  # all was there already
    assert [r.offset for r in server.requests] == [0] + [at * LEAF] * (not harmless)
    if at and not harmless:  # before the first answer nobody knows which version it will be
        assert server.requests[1].get.version_id == 9 and server.requests[1].get.name.sequence == "s"


def test_a_stream_that_breaks_after_each_chunk_still_arrives_with_one_retry():
    server = Reader(*[(1, BROKEN)] * (CHUNKS - 1))
    with pool_of(server, retries=1) as pool:
        assert bytes(pool.get_into("s", bytearray(len(IMAGE)), chunk_bytes=LEAF).data) == IMAGE
    assert [r.offset for r in server.requests] == [i * LEAF for i in range(CHUNKS)]


@pytest.mark.parametrize("what, reason", [
    ("flip", "CHECKSUM_MISMATCH"), ("gap", "BROKEN_STREAM"), ("again", "BROKEN_STREAM"), ("short", "BROKEN_STREAM"), ("empty", "BROKEN_STREAM"),
    ("end", "BROKEN_STREAM")])
def test_a_chunk_that_is_wrong_each_time_is_data_loss_and_never_given_out(what, reason):
    server = Reader((2, what), *[(0, what)] * 9)
    with pool_of(server, retries=3) as pool, pool.get_stream("s", chunk_bytes=LEAF) as stream:
        assert bytes(next(stream)) + bytes(next(stream)) == IMAGE[:2 * LEAF]
        with pytest.raises(statepool.DataLoss) as error:
            next(stream)
    assert error.value.reason == reason
    assert len(server.requests) == 4  # and its retries


def test_a_stream_without_a_head_is_data_loss():
    with pool_of(Reader((0, "no head")), retries=0) as pool, pytest.raises(statepool.DataLoss):
        pool.get_stream("s")


def test_good_chunks_of_a_bad_whole_are_data_loss():
    with pool_of(Reader(whole="0123456789abcdef")) as pool, pytest.raises(statepool.DataLoss) as error:
        pool.get_into("s", bytearray(len(IMAGE)))
    assert error.value.reason == "CHECKSUM_MISMATCH" and error.value.metadata["actual"] == _wire.checksum_of(IMAGE)


def test_a_stream_never_goes_on_with_another_version():
    with pool_of(Reader((1, BROKEN), (None, "other version"))) as pool, pytest.raises(statepool.DataLoss) as error:
        pool.get_into("s", bytearray(len(IMAGE)), chunk_bytes=LEAF)
    assert error.value.reason == "VERSION_CHANGED"


@pytest.mark.parametrize("what, kind", [((grpc.StatusCode.NOT_FOUND, "VERSION_MISMATCH"), statepool.NotFound),
                                        ((grpc.StatusCode.DATA_LOSS, "CORRUPT"), statepool.DataLoss),
                                        ((grpc.StatusCode.RESOURCE_EXHAUSTED, "STATE_TOO_LARGE"), statepool.Exhausted)])
def test_an_error_of_the_daemons_own_ends_a_stream(what, kind):
    server = Reader((2, what))
    with pool_of(server) as pool, pytest.raises(kind) as error:
        pool.get_into("s", bytearray(len(IMAGE)), chunk_bytes=LEAF)
    assert error.value.reason == what[1] and len(server.requests) == 1


def test_no_retries_means_none():
    server = Reader((2, BROKEN))
    with pool_of(server, retries=0) as pool, pytest.raises(statepool.Unavailable):
        pool.get_into("s", bytearray(len(IMAGE)), chunk_bytes=LEAF)
    assert len(server.requests) == 1


def test_the_timeout_is_for_all_attempts_together():
    server = Reader((1, BROKEN), (1, BROKEN), (1, "hang"))
    server.hung = threading.Event()
    began = time.monotonic()
    with pool_of(server, timeout=1) as pool, pytest.raises(statepool.DeadlineExceeded):
        pool.get_into("s", bytearray(len(IMAGE)), chunk_bytes=LEAF)
    assert len(server.requests) == 3 and 0.9 < time.monotonic() - began < 5


def test_a_state_that_fits_no_message_comes_as_a_stream_by_itself():
    server = Reader((1, BROKEN))
    with pool_of(server) as pool:
        state = pool.get("s")
    assert state.data == IMAGE and state.data.readonly and state.attachment == b"logits"
    assert state.tensors["ssm"].tobytes() == LAYOUT.views(IMAGE)["ssm"].tobytes()


def test_chunks_may_be_passed_on_and_a_stream_left_early():
    server = Reader()
    with pool_of(server) as pool:
        with pool.get_stream("s", chunk_bytes=2 * LEAF) as stream:
            assert (stream.nbytes, stream.info.position, stream.attachment) == (len(IMAGE), 7, b"logits")
            chunks = [bytes(c) for c in stream]
        assert b"".join(chunks) == IMAGE and [len(c) for c in chunks[:-1]] == [2 * LEAF] * (len(chunks) - 1)
        with pool.get_stream("s", chunk_bytes=LEAF) as stream:
            first = bytes(next(stream))
        assert first == IMAGE[:LEAF] and stream.received_bytes == LEAF
        assert first + b"".join(stream) == IMAGE  # a closed one goes on where it was left


def test_a_state_is_read_right_into_the_callers_arrays():
    arrays = {n: np.empty_like(a) for n, a in LAYOUT.views(IMAGE).items()}
    with pool_of(Reader()) as pool:
        seen = []
        state = pool.get_into("s", arrays, chunk_bytes=LEAF, progress=lambda *p: seen.append(p))
        assert LAYOUT.pack(arrays) == IMAGE and state.tensors["conv"] is arrays["conv"]
        assert seen == [(min(i * LEAF, len(IMAGE)), len(IMAGE)) for i in range(1, CHUNKS + 1)]
        room = np.zeros(len(IMAGE) + 3, np.uint8)
        state = pool.get_into("s", room)
        assert state.data == IMAGE and room[:-3].tobytes() == IMAGE and not room[-3:].any()
        ssm = arrays["ssm"]
        for bad in (bytearray(len(IMAGE) - 1), {**arrays, "ssm": ssm[:, :, :, ::2]}, {**arrays, "ssm": ssm.transpose(0, 1, 3, 2)}):
            with pytest.raises(statepool.InvalidArgument):
                pool.get_into("s", bad)
        with pytest.raises(RuntimeError, match="enough"):
            pool.get_into("s", room, progress=lambda *_: (_ for _ in ()).throw(RuntimeError("enough")))


@pytest.mark.parametrize("chunk_bytes", [-LEAF, LEAF - 1, LEAF + 1, 5 << 20])
def test_a_chunk_is_whole_leaves_and_not_too_large(chunk_bytes):
    with pool_of(Reader()) as pool:
        for use in (lambda: pool.get_stream("s", chunk_bytes=chunk_bytes), lambda: pool.set_stream("s", IMAGE, 1, chunk_bytes=chunk_bytes)):
            with pytest.raises(statepool.InvalidArgument) as error:
                use()
            assert error.value.field == "chunk_bytes"


class Writer(FakeServer):
    """Takes one state. `faults`: of each SetStream to come (chunk, what goes wrong there), what: see SetStream."""

    def __init__(self, *faults, size=None):
        self.faults = list(faults)
        self.size = len(IMAGE) if size is None else size
        self.kept = None  # what GetUpload tells
        self.written = None
        self.heads = []
        self.offsets = []
        self.uploads_asked = 0
        self.busy_for = 0  # answers of GetUpload that take the broken call for alive

    def GetCapabilities(self, request, context):
        return pb.Capabilities(max_message_bytes=LEAF)

    def GetUpload(self, request, context):
        self.uploads_asked += 1
        if self.kept is None:
            fail(context, grpc.StatusCode.NOT_FOUND, "UPLOAD_UNKNOWN", request_id=request.request_id)
        if self.busy_for:
            self.busy_for -= 1
            return pb.Upload(total_bytes=self.size)
        return pb.Upload(received_bytes=len(self.kept), total_bytes=self.size, expire_time={"seconds": 1})

    def SetStream(self, messages, context):
        at_chunk, what = self.faults.pop(0) if self.faults else (None, None)
        first = next(messages)
        assert first.HasField("head") and not first.head.data
        self.heads.append(first.head.SerializeToString())
        self.offsets.append(first.offset)
        if what == "busy":
            fail(context, grpc.StatusCode.ABORTED, "UPLOAD_BUSY", 0.01)
        if first.offset == 0:
            self.kept = b""
        assert len(self.kept) == first.offset
        last = False
        for i, message in enumerate(itertools.chain([first] if first.data else [], messages)):
            if i == at_chunk:
                if what == "flip":
                    message.data = bytes([message.data[0] ^ 1]) + message.data[1:]
                elif what == "lose":
                    self.kept = None
                    fail(context, *BROKEN)
                elif what == "lose a chunk":
                    self.kept = self.kept[:-LEAF]
                    fail(context, *BROKEN)
                elif isinstance(what, tuple):
                    fail(context, *what)
                elif callable(what):
                    what(context)
            assert message.offset == len(self.kept) and message.data and not last
            last = len(message.data) % LEAF != 0
            actual = _wire.checksum_of(message.data)
            if actual != message.checksum:
                fail(context, grpc.StatusCode.INVALID_ARGUMENT, "CHECKSUM_MISMATCH", field="checksum", expected=message.checksum, actual=actual)
            self.kept += message.data
        if at_chunk == CHUNKS and isinstance(what, tuple):
            fail(context, *what)
        assert len(self.kept) == self.size
        self.written, self.kept = self.kept, None
        if what == "no answer":
            fail(context, *BROKEN)
        return pb.NameInfo(name=pb.NameRef(sequence=first.head.sequence), position=first.head.position, replayed=len(self.heads) > 1)


def once(data):
    """A source that can't be read twice, in buffers that do not fit chunks."""
    def cut():
        buffer = bytearray(50_000)
        for i in range(0, len(data), len(buffer)):
            piece = memoryview(buffer)[:len(data) - i]
            piece[:] = data[i:i + len(piece)]
            yield piece  # the same memory each time
    return cut()


class Raw(io.RawIOBase):
    """A file that gives less than it is asked for."""

    def __init__(self, data, seekable):
        self.file, self.can_seek = io.BytesIO(b"skipped" + data), seekable
        self.file.seek(7)

    def read(self, size=-1, /):
        return self.file.read(min(size, 30_001))

    def seekable(self):
        return self.can_seek

    def seek(self, offset, whence=0, /):
        assert self.can_seek
        return self.file.seek(offset, whence)

    def tell(self):
        assert self.can_seek
        return self.file.tell()


SOURCES = {
    "bytes": lambda data: data,
    "array": lambda data: np.frombuffer(data, np.uint8),
    "tensors": lambda data: LAYOUT.views(data),
    "file": lambda data: Raw(data, True),
    "pipe": lambda data: Raw(data, False),
    "iterator": once,
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("at", range(CHUNKS + 1))
@pytest.mark.parametrize("what", [BROKEN, (grpc.StatusCode.DEADLINE_EXCEEDED, "STALLED"), "flip", "lose", "busy"],
                         ids=["broken", "stalled", "flip", "lose", "busy"])
def test_a_write_that_goes_wrong_at_any_chunk_goes_on_where_the_daemon_says(source, at, what):
    server = Writer((at, what))
    with pool_of(server, retries=1) as pool:
        info = pool.set_stream("s", source(IMAGE), 7, layout=LAYOUT, chunk_bytes=LEAF)
    assert server.written == IMAGE and info.position == 7
    assert len(set(server.heads)) == 1 and len(pb.SetRequest.FromString(server.heads[0]).request_id) == 32
    went_on = at < CHUNKS or isinstance(what, tuple) or what == "busy"
    assert server.offsets == [0] + [0 if what in ("lose", "busy") else min(at * LEAF, len(IMAGE))] * went_on


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_write_goes_back_when_the_daemon_has_less_than_was_sent(source):
    server = Writer((3, "lose a chunk"), (1, "lose a chunk"))
    seen = []
    with pool_of(server, retries=1) as pool:
        pool.set_stream("s", source(IMAGE), 7, layout=LAYOUT, chunk_bytes=LEAF, progress=lambda *p: seen.append(p))
    assert server.written == IMAGE and server.offsets == [0, 2 * LEAF, 2 * LEAF]
    known = source not in (SOURCES["pipe"], SOURCES["iterator"])
    assert seen[-1] == (len(IMAGE), len(IMAGE) if known else None)


def test_a_write_waits_until_the_daemon_knows_that_the_broken_call_is_over():
    server = Writer((3, BROKEN), (0, "busy"), (0, "busy"))
    server.busy_for = 2
    with pool_of(server, retries=1) as pool:  # waiting is no retry
        pool.set_stream("s", once(IMAGE), 7, layout=LAYOUT, chunk_bytes=LEAF)
    assert server.written == IMAGE and server.offsets == [0] + [3 * LEAF] * 3 and server.uploads_asked == 5
    server = Writer(*[(0, "busy")] * 1000)
    with pool_of(server, timeout=1, retries=1) as pool, pytest.raises((statepool.Conflict, statepool.DeadlineExceeded)):
        pool.set_stream("s", IMAGE, 7, layout=LAYOUT, chunk_bytes=LEAF)
    assert len(server.offsets) > 2
    with pool_of(Writer((0, "busy")), retries=0) as pool, pytest.raises(statepool.Conflict):
        pool.set_stream("s", IMAGE, 7, layout=LAYOUT, chunk_bytes=LEAF)


def test_a_write_whose_answer_was_lost_is_answered_again():
    server = Writer((None, "no answer"))
    with pool_of(server) as pool:
        assert pool.set_stream("s", IMAGE, 7, layout=LAYOUT, chunk_bytes=LEAF).replayed
    assert server.offsets == [0, 0] and server.uploads_asked == 1


def test_a_write_that_gets_nowhere_ends_with_the_error_of_the_break():
    server = Writer(*[(1, BROKEN)] + [(0, BROKEN)] * 9)
    with pool_of(server, retries=2) as pool, pytest.raises(statepool.Unavailable):
        pool.set_stream("s", IMAGE, 7, chunk_bytes=LEAF)
    assert server.offsets == [0, LEAF, LEAF, LEAF]  # the first retry brought the chunk; then all of them again
    server = Writer(*[(1, BROKEN)] * (CHUNKS - 1))
    with pool_of(server, retries=1) as pool:
        pool.set_stream("s", IMAGE, 7, chunk_bytes=LEAF)
    assert server.written == IMAGE


def test_what_can_not_be_sent_again_ends_with_the_error_of_the_break(monkeypatch):
    monkeypatch.setattr(streams, "REPLAY_BYTES", 2 * LEAF)
    server = Writer((4, "lose a chunk"))
    with pool_of(server) as pool:
        pool.set_stream("s", once(IMAGE), 7, chunk_bytes=LEAF)
    assert server.written == IMAGE and server.offsets == [0, 3 * LEAF]
    with pool_of(Writer((4, "lose"))) as pool, pytest.raises(statepool.Unavailable):
        pool.set_stream("s", once(IMAGE), 7, chunk_bytes=LEAF)


@pytest.mark.parametrize("what, kind", [((grpc.StatusCode.ABORTED, "REVISION_MISMATCH"), statepool.Conflict),
                                        ((grpc.StatusCode.INVALID_ARGUMENT, "BYTES_LENGTH_MISMATCH"), statepool.InvalidArgument),
                                        ((grpc.StatusCode.RESOURCE_EXHAUSTED, "STATE_TOO_LARGE"), statepool.Exhausted)])
def test_a_refused_write_is_not_tried_again(what, kind):
    for at in (0, 3, CHUNKS):
        server = Writer((at, what))
        with pool_of(server) as pool, pytest.raises(kind) as error:
            pool.set_stream("s", IMAGE, 7, chunk_bytes=LEAF)
        assert error.value.reason == what[1] and server.offsets == [0] and server.written is None


def test_a_whole_that_differs_from_its_checksum_is_not_sent_again():
    def refuse(context):
        fail(context, grpc.StatusCode.INVALID_ARGUMENT, "CHECKSUM_MISMATCH", field="checksum", expected=_wire.checksum_of(IMAGE), actual="0")

    server = Writer((CHUNKS - 1, refuse))
    with pool_of(server) as pool, pytest.raises(statepool.InvalidArgument):
        pool.set_stream("s", IMAGE, 7, chunk_bytes=LEAF)
    assert server.offsets == [0]


def test_an_upload_of_an_earlier_process_goes_on_under_its_request_id():
    server = Writer()
    server.kept = IMAGE[:3 * LEAF]
    with pool_of(server) as pool:
        upload = pool.get_upload("s", "mine")
        assert (upload.received_bytes, upload.total_bytes, upload.expire_time.timestamp()) == (3 * LEAF, len(IMAGE), 1)
        pool.set_stream("s", IMAGE, 7, request_id="mine")
        assert server.written == IMAGE and server.offsets == [3 * LEAF]
        server.kept = IMAGE[:3 * LEAF]
        pool.set_stream("s", once(IMAGE), 7, request_id="mine")  # it can't be read from there on
        assert server.offsets == [3 * LEAF, 0]
        with pytest.raises(statepool.NotFound) as error:
            pool.get_upload("s", "mine")
        assert error.value.reason == "UPLOAD_UNKNOWN"


def test_a_source_is_read_in_the_callers_thread_and_its_errors_are_the_callers():
    def source():
        yield IMAGE[:2 * LEAF]
        assert threading.current_thread() is caller
        raise KeyError("mine")

    caller = threading.current_thread()
    with pool_of(Writer()) as pool:
        with pytest.raises(KeyError, match="mine"):
            pool.set_stream("s", source(), 7, chunk_bytes=LEAF)
        with pytest.raises(TypeError):
            pool.set_stream("s", 5, 7)
        with pytest.raises(TypeError):
            pool.set_stream("s", "text", 7)


def test_a_source_is_never_far_ahead_of_the_daemon():
    taken = []

    class Slow(Writer):
        def SetStream(self, messages, context):
            next(messages)
            time.sleep(1)
            self.taken = len(taken)
            for _ in messages:
                pass
            return pb.NameInfo()

    def source():
        for i in range(100):
            taken.append(i)
            yield bytes(1 << 20)

    server = Slow()
    with pool_of(server) as pool:
        pool.set_stream("s", source(), 7)
    assert len(taken) == 100 and server.taken <= 40  # MiB: what gRPC and the kernel hold on the way


def test_a_set_that_fits_no_message_goes_as_a_stream_by_itself():
    server = Writer(size=2 << 20)
    data = image(3, 2 << 20)
    with pool_of(server) as pool:  # the daemon takes 64 KiB
        pool.set("s", data, 7, if_revision=5, attachment=b"logits")
        with pytest.raises(statepool.Exhausted) as error:
            pool.set("s", data, 7, if_revision=5, tensors=["ssm"])  # a stream has no part
    assert error.value.reason == "MESSAGE_TOO_LARGE" and len(server.heads) == 1
    head = pb.SetRequest.FromString(server.heads[0])
    assert server.written == data and (head.attachment, head.if_revision, head.checksum) == (b"logits", 5, _wire.checksum_of(data))


# ------------------------------------------------------------------------------------------------------ the real daemon


@pytest.fixture
def pool(daemon):
    with statepool.connect(daemon.address, timeout=20, retries=0) as pool:
        pool.register_layout(LAYOUT, alias="streamed")
        yield pool


@contextlib.contextmanager
def cutting_proxy(address, *, up=None, down=None):
    """Passes everything on; each connection is cut after so many bytes in one of the two directions. -> (address, list of connections)."""
    host, port = address.split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    sockets, connections = [listener], []

    def pump(source, sink, limit, others):
        passed = 0
        with contextlib.suppress(OSError):
            while (data := source.recv(16384)) and (limit is None or passed < limit):
                sink.sendall(data)
                passed += len(data)
        for s in others:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def serve(both):
        pumps = [threading.Thread(target=pump, args=args, daemon=True) for args in ((*both, up, both), (*both[::-1], down, both))]
        for p in pumps:
            p.start()
        for p in pumps:
            p.join()
        for s in both:  # what was not read makes this a reset: nobody waits for more
            s.close()

    def accept():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((host, int(port)))
                both = [client, server]
                sockets.extend(both)
                connections.append(both)
                threading.Thread(target=serve, args=(both,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", connections
    finally:
        for s in sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_what_was_streamed_comes_back(pool, name, source):
    info = pool.set_stream(name, source(IMAGE), 7, layout=LAYOUT, attachment=b"logits", chunk_bytes=LEAF, max_history=4)
    assert info.checksum == _wire.checksum_of(IMAGE) and info.position == 7
    seq = pool.sequence(name)
    assert seq.get().data == IMAGE and seq.get().attachment == b"logits"
    for chunk_bytes in (LEAF, 3 * LEAF, None):
        with seq.get_stream(chunk_bytes=chunk_bytes) as stream:
            assert b"".join(stream) == IMAGE and stream.attachment == b"logits" and stream.info.revision == info.revision
    seq.set_stream(image(2), 8)
    arrays = {n: np.empty_like(a) for n, a in LAYOUT.views(IMAGE).items()}
    assert seq.get_into(arrays, 7).info.version_id == info.version_id and LAYOUT.pack(arrays) == IMAGE
    assert seq.get_into(bytearray(LAYOUT.state_bytes)).data == image(2)


def test_a_part_is_read_as_a_stream_as_well(pool, name):
    seq = pool.sequence(name)
    pool.set(name, IMAGE, 7, layout=LAYOUT)
    ssm = LAYOUT.views(IMAGE)["ssm"]
    with seq.get_stream(tensors=["ssm"], layers=[0, 3], chunk_bytes=LEAF) as stream:
        assert b"".join(stream) == ssm[[0, 3]].tobytes() and stream.nbytes == ssm[0].nbytes * 2
    arrays = {"ssm": np.empty_like(ssm)}
    seq.get_into(arrays)
    assert np.array_equal(arrays["ssm"].view(np.uint8), ssm.view(np.uint8))
    with pytest.raises(statepool.InvalidArgument) as error:
        seq.set_stream(arrays, 8, layout=LAYOUT)
    assert error.value.reason == "TENSORS_MISMATCH"


def test_a_refused_stream_changes_nothing(pool, name):
    seq = pool.sequence(name)
    before = pool.set(name, IMAGE, 7, layout=LAYOUT)
    for data, options, reason in ((IMAGE[:2 * LEAF], {}, "BYTES_LENGTH_MISMATCH"), (IMAGE + b"x", {}, "BYTES_LENGTH_MISMATCH"),
                                  (IMAGE + bytes(LEAF), {}, "BYTES_LENGTH_MISMATCH"), (IMAGE, {"if_revision": 1}, "REVISION_MISMATCH"),
                                  (IMAGE, {"ttl": -1}, "INVALID_OPTION")):
        with pytest.raises(statepool.StatepoolError) as error:
            seq.set_stream(data, 8, **options)
        assert error.value.reason == reason
    with pytest.raises(statepool.NotFound):
        pool.get_stream(name + "/never")
    assert seq.describe().revision == before.revision


def test_a_streamed_write_is_safe_to_repeat(pool, name):
    first = pool.set_stream(name, IMAGE, 7, layout=LAYOUT, request_id="r")
    again = pool.set_stream(name, IMAGE, 7, layout=LAYOUT, request_id="r")
    assert again.replayed and not first.replayed and again.revision == first.revision
    with pytest.raises(statepool.InvalidArgument) as error:
        pool.set_stream(name, image(2), 7, layout=LAYOUT, request_id="r")
    assert error.value.reason == "REQUEST_ID_REUSED"


BIG = Layout("big-model", (Tensor("s", range(24), "uint8", {"x": 1 << 20}),))


def test_connections_that_break_all_the_time_only_cost_time(daemon, name):
    data = image(5, BIG.state_bytes)
    with statepool.connect(daemon.address) as direct:
        direct.register_layout(BIG)
        with cutting_proxy(daemon.address, up=7 << 20) as (address, connections), statepool.connect(address, timeout=60, retries=20) as pool:
            for source in (data, once(data)):
                connections.clear()
                pool.set_stream(name, source, 7, layout=BIG)
                assert direct.get(name).data == data and len(connections) >= 3
        with cutting_proxy(daemon.address, down=7 << 20) as (address, connections), statepool.connect(address, timeout=60, retries=20) as pool:
            assert pool.get_into(name, bytearray(len(data))).data == data and len(connections) >= 3


def test_a_version_that_was_overwritten_while_it_was_read_is_never_mixed(pool, daemon, name):
    pool.set(name, IMAGE, 7, layout=LAYOUT, max_history=2)
    with pool.get_stream(name, chunk_bytes=LEAF) as stream:
        first = bytes(next(stream))
        pool.set(name, image(2), 8)
        stream.close()
        assert first + b"".join(stream) == IMAGE  # it is in the ring still
    with pool.get_stream(name, 7, chunk_bytes=LEAF) as stream:
        next(stream)
        pool.set(name, image(3), 9)
        stream.close()
        with pytest.raises(statepool.NotFound) as miss:
            next(stream)
    assert miss.value.reason == "VERSION_MISMATCH"


def test_an_upload_survives_the_process_that_began_it(pool, name):
    class Gone(Exception):
        pass

    def gone_near_the_end(done, total):
        if done == 20 << 20:  # more than what can be on the way
            raise Gone

    data = image(6, BIG.state_bytes)
    pool.register_layout(BIG)
    with pytest.raises(Gone):
        pool.set_stream(name, data, 7, layout=BIG, request_id="r", progress=gone_near_the_end)
    upload = eventually(lambda: (told := pool.get_upload(name, "r")).expire_time and told)
    assert upload.total_bytes == len(data) and 0 < upload.received_bytes <= 20 << 20
    with pytest.raises(statepool.NotFound):
        pool.describe(name)
    seen = []
    info = pool.set_stream(name, data, 7, layout=BIG, request_id="r", progress=lambda done, total: seen.append(done))
    assert info.position == 7 and seen[0] == upload.received_bytes + (1 << 20) and pool.get(name).data == data
    with pytest.raises(statepool.NotFound) as error:
        pool.get_upload(name, "r")
    assert error.value.reason == "UPLOAD_UNKNOWN"


class Large(Daemon):
    def command(self):
        return [*super().command(), "--hot-bytes=768MiB", "--max-message-bytes=4MiB"]


MEMORY = """
import sys, numpy, statepool
from statepool.layouts import Layout, Tensor

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

layout = Layout("large-model", (Tensor("s", range(16), "uint8", {"x": 12 << 20}),))
with statepool.connect(sys.argv[1], timeout=120) as pool:
    pool.register_layout(layout)
    data = numpy.random.default_rng(1).integers(0, 256, layout.state_bytes, numpy.uint8)
    room = numpy.ones_like(data)
    pool.capabilities()
    before = peak()
    pool.set("large", data, 1, layout=layout)
    pool.set_stream("large", (data[i:i + 99_999] for i in range(0, len(data), 99_999)), 2)
    pool.get_into("large", room)
    assert statepool._wire.checksum_of(room) == statepool._wire.checksum_of(data)
    del room
    for chunk in pool.get_stream("large"):
        pass
    print(peak() - before)
"""


def test_a_large_state_needs_little_memory_beside_the_callers(tmp_path):
    daemon = Large(tmp_path).start()
    try:
        ran = subprocess.run([sys.executable, "-c", MEMORY, daemon.address], stdout=subprocess.PIPE, text=True, timeout=300, cwd=REPOSITORY,
                             env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
        # What gRPC's transport holds grows with the load of the machine. Half of a copy of the state.
        assert ran.returncode == 0 and int(ran.stdout) < 96 << 20, f"{int(ran.stdout or 0) >> 20} MiB"
    finally:
        daemon.stop()
