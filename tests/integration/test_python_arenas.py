# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Arenas, as the Python package does them: its handshake and mapping against a server that goes wrong, then all of it against the daemon."""
import concurrent.futures
import contextlib
import fcntl
import functools
import gc
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

import statepool
from daemon_process import DEVICES, Daemon, eventually
from fake_server import FakeServer, fail, serving, status
from statepool import LoadItem, StoreItem, View
from statepool.layouts import Layout, Tensor
from statepool.v1 import statepool_pb2 as pb

LAYOUT = Layout("arena-model", (
    Tensor("conv", range(3), "bfloat16", {"tap": 3, "channel": 33}, kind="conv"),
    Tensor("ssm", [0, 2], "float32", {"head": 4, "value": 16, "key": 8}, kind="recurrent", initial=1.0),
    Tensor("count", [1], "uint8", {"channel": 6}, initial=bytes(range(6))),
))
OTHER = Layout("other-arena-model", LAYOUT.tensors)

VIEWS = {
    "plain": View(),
    "layer-major": View("layer_major"),
    "row-major": View("row_major"),
    "other axes": View(axis_orders={"ssm": ["key", "head", "value"], "conv": ["channel", "tap"]}),
    "wide conv": View("layer_major", axis_orders={"conv": ["channel", "tap"]}, conv_padding=1),
    "speculative": View("row_major", axis_orders={"ssm": ["head", "key", "value"]}, conv_padding=1, num_spec=3),
}


def image(n):
    """A state without NaNs, whose bytes no comparison of numbers could take for others'."""
    return random.Random(n).randbytes(LAYOUT.state_bytes)


def cell(arena, tensor, layer, row, step=0, accepted=1):
    """What a view's array has for one state, as the layout orders it, worked out by hand."""
    spec = next(t for t in LAYOUT.tensors if t.name == tensor)
    if arena.view.layers == "per_layer":
        array = arena[tensor][layer][row]
    elif arena.view.layers == "layer_major":
        array = arena[tensor][spec.layers.index(layer)][row]
    else:
        array = arena[tensor][row][spec.layers.index(layer)]
    if arena.steps:
        array = array[step]
    order = list(arena.view.axis_orders.get(tensor, spec.axes))
    array = array.transpose([order.index(a) for a in spec.axes])
    if tensor == "conv":
        first = arena.view.conv_padding + accepted - 1
        array = array[first:first + 3]
    return array


def cells(arena, row, step=0, accepted=1):
    """(array of the arena, array of an image) of each tensor and layer, for any image: cells(...)(image)."""
    def of(data):
        views = LAYOUT.views(data)
        for t in LAYOUT.tensors:
            conv_spec = t.name == "conv" and arena.view.num_spec
            for i, layer in enumerate(t.layers):
                yield (cell(arena, t.name, layer, row, 0 if conv_spec else step, accepted if conv_spec else 1), views[t.name][i])
    return of


def holds(arena, row, data):
    return all(a.tobytes() == b.tobytes() for a, b in cells(arena, row)(data))


def write(arena, row, data, step=0, accepted=1):
    for a, b in cells(arena, row, step, accepted)(data):
        a[...] = b


def addresses(arena):
    return {(t.name, i): arena.layer(t.name, i).__array_interface__["data"][0] for t in LAYOUT.tensors for i in t.layers}


def mappings():
    return pathlib.Path("/proc/self/maps").read_text()


def is_mapped(address):
    return any(int(a, 16) <= address < int(b, 16) for a, b in (line.split()[0].split("-") for line in mappings().splitlines()))


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """This process copies to and from arenas where the daemon lets it."""
    monkeypatch.setattr(statepool.Pool, "open_arena", functools.partialmethod(statepool.Pool.open_arena, direct=True))


def direct(request):
    """The flag, as this fixture's parameter says."""
    if request.param == "direct" and "," in DEVICES:
        pytest.skip("a direct lease has slots of one device")
    return f"--direct={request.param == 'direct'}"


@pytest.fixture(scope="module", params=["isolated", "direct"])
def daemon(tmp_path_factory, request):
    """A daemon for all tests of this file, once for each way to copy."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), direct(request)).start()
    yield daemon
    assert daemon.process.poll() is None, f"the daemon died; {daemon.log_tail()}"
    daemon.stop()


@pytest.fixture(params=["isolated", "direct"])
def own_daemon(start, request):
    return start(direct(request))


@pytest.fixture
def pool(daemon):
    with statepool.connect(daemon.address, timeout=20, retries=0) as pool:
        pool.register_layout(LAYOUT, alias="arena")
        pool.register_layout(OTHER, alias="other")
        yield pool


@pytest.fixture
def seq(pool, name):
    """A sequence that was set at positions 4, 8 and 12."""
    for position in (4, 8, 12):
        pool.set(name, image(position), position, layout=LAYOUT, max_history=8)
    return pool.sequence(name)


@pytest.fixture
def arena(pool):
    with pool.open_arena(LAYOUT, rows=4) as arena:
        yield arena


@pytest.fixture
def calls(monkeypatch):
    """The methods that the package called, in order."""
    made = []
    real = statepool._calls.Connection.call

    def call(self, method, *arguments):
        made.append(method)
        return real(self, method, *arguments)

    monkeypatch.setattr(statepool._calls.Connection, "call", call)
    return made


# ------------------------------------------------------------------------------------------------------------ by itself


class Arenas(FakeServer):
    """Arenas of one tensor "x" [row, 8] of bytes, whose socket answers as `answer` says: a reason, or what is wrong with the memory."""

    def __init__(self, directory, answer="", rows=2):
        self.answer, self.rows, self.opened, self.closed, self.requests, self.results, self.stride = answer, rows, 0, [], [], [], 8
        self.at_close = []
        self.path = str(directory / "arena")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen()
        self.leases = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                lease, _ = self.listener.accept()
                token = lease.recv(100)
                self.leases.append(lease)
                size = 4096 if self.answer != "short" else 8
                fds = [os.memfd_create("fake", os.MFD_ALLOW_SEALING) for _ in range(2 if self.answer == "two" else 1)]
                for fd in fds:
                    os.ftruncate(fd, size)
                    if self.answer != "unsealed":
                        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
                told = {"arena": token.decode(), "bytes": 4096, "incarnation": "i" if self.answer != "another" else "j"}
                if self.answer.isupper():
                    told = {"reason": self.answer, "message": "no"}
                text = json.dumps(told).encode() if self.answer != "garbage" else b"\xff"
                if self.answer == "silent":
                    lease.shutdown(socket.SHUT_RDWR)
                else:
                    socket.send_fds(lease, [text], [] if self.answer.isupper() or self.answer == "none" else fds)
                for fd in fds:
                    os.close(fd)

    def OpenArena(self, request, context):
        self.opened += 1
        table = pb.ArenaTensor(tensor="x", layers=[0], dtype=pb.UINT8, axes=["row", "a"], shape=[request.rows, 8], strides=[self.stride, 1])
        return pb.Arena(arena=f"arena{self.opened}", token=f"arena{self.opened}".encode(), socket=self.path, bytes=4096, incarnation="i", layout="f",
                        rows=request.rows, row_bytes=8, tensors=[table])

    def CloseArena(self, request, context):
        self.closed.append(request.arena)
        self.at_close.append((is_faked(), self.hung_up()))
        return pb.CloseArenaResponse(closed=True)

    def hung_up(self):
        """Whether the client of the newest lease did."""
        try:
            return self.leases[-1].recv(1, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False

    def Load(self, request, context):
        self.requests.append(request)
        result = self.results.pop(0)
        return result if isinstance(result, pb.LoadResponse) else fail(context, *result)

    def Store(self, request, context):
        self.requests.append(request)
        result = self.results.pop(0)
        return result if isinstance(result, pb.StoreResponse) else fail(context, *result)

    def GetCapabilities(self, request, context):
        return pb.Capabilities(incarnation="i", arena_socket=self.path, max_arena_rows=9)


def is_faked():
    """Whether memory of Arenas is mapped here."""
    return "/memfd:fake" in mappings()


def has_fake_descriptors():
    """Whether memory of Arenas is open here, on either side."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "/memfd:fake" in os.readlink(f"/proc/self/fd/{fd}"):
                return True
    return False


@pytest.fixture
def fake(tmp_path):
    """fake(answer) -> (server, pool)."""
    with contextlib.ExitStack() as stack:
        def start(answer="", **options):
            server = Arenas(tmp_path, answer)
            stack.callback(server.listener.close)
            return server, stack.enter_context(statepool.connect(stack.enter_context(serving(server)), **{"retries": 0, "timeout": 10, **options}))
        yield start


@pytest.mark.parametrize("answer, kind, reason", [
    ("TOKEN_INVALID", statepool.StatepoolError, "TOKEN_INVALID"), ("PEER_REFUSED", statepool.StatepoolError, "PEER_REFUSED"),
    ("PEER_UNKNOWN", statepool.Conflict, "PEER_UNKNOWN"), ("TOO_MANY_CONNECTIONS", statepool.Exhausted, "TOO_MANY_CONNECTIONS"),
    ("short", statepool.StatepoolError, "BAD_MEMORY"), ("unsealed", statepool.StatepoolError, "BAD_MEMORY"),
    ("two", statepool.StatepoolError, "BAD_ANSWER"), ("none", statepool.StatepoolError, "BAD_ANSWER"),
    ("another", statepool.StatepoolError, "BAD_ANSWER"), ("garbage", statepool.StatepoolError, "BAD_ANSWER"),
    ("silent", statepool.Unavailable, "SOCKET_UNREACHABLE")])
def test_memory_that_is_refused_or_not_safe_to_use_is_not_used(fake, answer, kind, reason):
    server, pool = fake(answer)
    with pytest.raises(kind) as error:
        pool.open_arena("f", rows=2)
    assert (error.value.reason, server.closed) == (reason, ["arena1"]) and not is_faked()
    eventually(lambda: server.hung_up() and not has_fake_descriptors())


def test_an_arena_whose_socket_is_not_on_this_machine_is_given_back(fake):
    server, pool = fake()
    os.unlink(server.path)
    with pytest.raises(statepool.Unavailable) as error:
        pool.open_arena("f", rows=2)
    assert (error.value.reason, error.value.field, server.closed) == ("SOCKET_UNREACHABLE", "socket", ["arena1"])


def test_a_token_that_came_too_late_is_asked_for_again(fake):
    server, pool = fake("TOKEN_INVALID", retries=2)
    with pytest.raises(statepool.StatepoolError):
        pool.open_arena("f", rows=2)
    assert server.closed == ["arena1", "arena2", "arena3"]


def test_a_table_that_leaves_the_memory_is_refused(fake):
    server, pool = fake()
    server.stride = 4090
    with pytest.raises(statepool.StatepoolError) as error:
        pool.open_arena("f", rows=2)
    assert error.value.reason == "BAD_ANSWER" and server.closed == ["arena1"]
    del error  # its traceback has the memory
    gc.collect()
    assert not is_faked()


def test_closing_unmaps_first_then_tells_the_daemon_then_hangs_up(fake):
    server, pool = fake()
    arena = pool.open_arena("f", rows=2)
    assert is_faked() and arena["x"][0].shape == (2, 8)
    eventually(lambda: not has_fake_descriptors())
    arena.close()
    arena.close()
    assert server.closed == ["arena1"] and server.at_close == [(False, False)]
    assert server.hung_up()


def test_an_arena_that_is_only_forgotten_hangs_up_without_a_call(fake):
    server, pool = fake()
    arena = pool.open_arena("f", rows=2)
    del arena
    gc.collect()
    assert server.hung_up() and server.closed == [] and not is_faked()


def test_reopening_with_another_table_is_refused_and_the_arrays_stay(fake):
    server, pool = fake()
    with pool.open_arena("f", rows=2) as arena:
        x = arena["x"][0]
        server.stride = 16
        server.results = [(grpc.StatusCode.NOT_FOUND, "ARENA_UNKNOWN")]
        with pytest.raises(statepool.Conflict) as error:
            arena.load({0: "s"})
        assert error.value.reason == "ARENA_CHANGED" and server.closed == ["arena2"]
        assert not x.any()
        server.stride = 8
        server.results = [(grpc.StatusCode.NOT_FOUND, "ARENA_UNKNOWN")]
        with pytest.raises(statepool.ContentsGone) as gone:
            arena.load({0: "s"})
        assert gone.value.incarnation == "i" and gone.value.reason == "CONTENTS_GONE"
        x[:] = 1
        assert arena["x"][0] is x


def test_a_daemon_that_is_still_there_is_asked_for_no_other_arena(fake):
    server, pool = fake()
    with pool.open_arena("f", rows=2) as arena:
        server.results = [(grpc.StatusCode.UNAVAILABLE, "DRAINING"), (grpc.StatusCode.FAILED_PRECONDITION, "ARENA_NOT_CONNECTED")]
        for kind in (statepool.Unavailable, statepool.Conflict):
            with pytest.raises(kind):
                arena.load({0: "s"})
    assert server.opened == 1


INFO = pb.NameInfo(name=pb.NameRef(sequence="s"), position=3)
FULL = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "HOT_FULL", 0.01, limit="5")
MISSING = status(grpc.StatusCode.NOT_FOUND, "NEVER_CREATED")
DROPPED = status(grpc.StatusCode.ABORTED, "BATCH_ABORTED")


def test_a_load_that_found_no_room_is_tried_again(fake):
    server, pool = fake(retries=2)
    with pool.open_arena("f", rows=2) as arena:
        full = pb.LoadResponse(rows=[pb.LoadedRow(info=INFO, copied=True), pb.LoadedRow(error=FULL)])
        server.results = [full, pb.LoadResponse(rows=[pb.LoadedRow(info=INFO, copied=True)] * 2), full, full, full]
        assert [r.position for r in arena.load({0: "a", 1: "b"}).values()] == [3, 3]
        results = arena.load({0: "a", 1: "b"}, return_errors=True)
        assert results[0].position == 3 and results[1].reason == "HOT_FULL" and results[1].metadata == {"limit": "5", "row": "1"}
    assert len(server.requests) == 5


def test_a_store_is_retried_with_its_request_ids_as_a_whole_only(fake):
    server, pool = fake(retries=2)
    stored, full = pb.StoredRow(info=INFO), pb.StoredRow(error=FULL)
    with pool.open_arena("f", rows=2) as arena:
        server.results = [(grpc.StatusCode.UNAVAILABLE, "DRAINING", 0.01), pb.StoreResponse(rows=[stored, full], done=True)]
        with pytest.raises(statepool.Exhausted) as error:
            arena.store({1: "a", 0: "b"}, position=3)
        assert error.value.metadata["row"] == "0" and len(server.requests) == 2 and server.requests[0] == server.requests[1]
        assert len({i.request_id for i in server.requests[0].items}) == 2 and all(len(i.request_id) == 32 for i in server.requests[0].items)
        server.results = [pb.StoreResponse(rows=[pb.StoredRow(error=DROPPED), full]), pb.StoreResponse(rows=[stored, stored], done=True)]
        assert [i.position for i in arena.store({1: "a", 0: "b"}, position=3, all_or_none=True).values()] == [3, 3]
        assert server.requests[2] == server.requests[3] and server.requests[3].all_or_none
        server.results = [pb.StoreResponse(rows=[pb.StoredRow(error=DROPPED), pb.StoredRow(error=MISSING)])]
        with pytest.raises(statepool.NotFound):
            arena.store({1: "a", 0: "b"}, position=3, all_or_none=True)


def test_what_can_not_be_said_is_refused_before_anything_is_sent(fake):
    server, pool = fake()
    with pool.open_arena("f", rows=2) as arena:
        assert arena.load({}) == arena.store({}) == {}
        for call, reason in (
                (lambda: arena.store({0: "s"}), "MISSING_FIELD"),
                (lambda: arena.store({0: "s", 1: "t"}, {0: 5}), "MISSING_FIELD"),
                (lambda: arena.store({0: pool.name("snapshot", "s")}, 5), "INVALID_NAME"),
                (lambda: arena.load({-1: "s"}), "ROW_OUT_OF_RANGE"),
                (lambda: arena.load({0: statepool.Match((), "NEVER_PUBLISHED", 0)}), "MISSING_FIELD"),
                (lambda: pool.open_arena("f", view=View("sideways")), "INVALID_OPTION")):
            with pytest.raises(statepool.InvalidArgument) as error:
                call()
            assert error.value.reason == reason
        server.results = [pb.StoreResponse(rows=[pb.StoredRow(info=INFO)] * 3, done=True)]
        arena.store({np.int64(1): "s", 0: StoreItem("t", 7, accepted=2), 5: pool.sequence("u")}, position={1: np.int64(9), 0: 8, 5: 6},
                    accepted={1: 3, 2: 4})
        assert [(i.row, i.sequence, i.position, i.accepted_length, i.HasField("accepted_length")) for i in server.requests[-1].items] == [
            (1, "s", 9, 3, True), (0, "t", 7, 2, True), (5, "u", 6, 0, False)]


# --------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("view, steps, conv, ssm, count", [
    ("plain", 0, (5, 3, 33), (5, 4, 16, 8), (5, 6)),
    ("plain", 2, (5, 2, 3, 33), (5, 2, 4, 16, 8), (5, 2, 6)),
    ("layer-major", 0, (3, 5, 3, 33), (2, 5, 4, 16, 8), (1, 5, 6)),
    ("row-major", 2, (5, 3, 2, 3, 33), (5, 2, 2, 4, 16, 8), (5, 1, 2, 6)),
    ("other axes", 0, (5, 33, 3), (5, 8, 4, 16), (5, 6)),
    ("wide conv", 0, (3, 5, 33, 4), (2, 5, 4, 16, 8), (1, 5, 6)),
    ("speculative", 4, (5, 3, 1, 7, 33), (5, 2, 4, 4, 8, 16), (5, 1, 4, 6)),
])
def test_arrays_have_the_shapes_of_the_view(pool, view, steps, conv, ssm, count):
    with pool.open_arena("arena", rows=5, steps=steps, view=VIEWS[view]) as arena:
        assert (arena.rows, arena.steps, arena.view, arena.layout, arena.device) == (5, steps, VIEWS[view], LAYOUT.fingerprint, pool.capabilities().devices[0].name)
        assert arena.incarnation == pool.capabilities().incarnation and arena.nbytes >= 5 * arena.row_bytes
        for name, shape in (("conv", conv), ("ssm", ssm), ("count", count)):
            spec = next(t for t in LAYOUT.tensors if t.name == name)
            if arena.view.layers == "per_layer":
                assert list(arena[name]) == list(spec.layers)
                arrays = list(arena[name].values())
            else:
                arrays = [arena[name]]
            for array in arrays:
                assert array.shape == shape and array.dtype == spec.numpy_dtype and array.flags.writeable and not array.any()
            assert len(arena.axes[name]) == len(shape) and set(arena.axes[name]) - {"layer", "row", "step"} == set(spec.axes)
            for layer in spec.layers:
                one = arena.layer(name, layer)
                assert one.shape == tuple(n for n, a in zip(shape, arena.axes[name]) if a != "layer")
                one[3] = 1
                where = cell(arena, name, layer, 3)
                assert where.all() and not cell(arena, name, layer, 2).any()
        with pytest.raises(KeyError):
            arena["nope"]
        with pytest.raises(KeyError):
            arena.layer("ssm", 1)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("view", VIEWS)
def test_states_go_into_rows_and_back_in_every_view(pool, seq, name, view, steps):
    with pool.open_arena(LAYOUT, rows=4, steps=steps, view=VIEWS[view]) as arena:
        for array in (arena.layer(t.name, i) for t in LAYOUT.tensors for i in t.layers):
            array[...] = 77
        loaded = arena.load({2: seq, 0: LoadItem(seq, 4)})
        assert [(row, r.position, r.copied, r.info.name) for row, r in loaded.items()] == [(2, 12, True, name), (0, 4, True, name)]
        assert holds(arena, 2, image(12)) and holds(arena, 0, image(4))
        assert (arena.layer("ssm", 2)[1] == 77).all() and (arena.layer("count", 1)[3] == 77).all()
        if arena.view.conv_padding:  # what only the view has is zeros
            conv = arena.layer("conv", 1)[2]
            conv = conv[0] if steps else conv
            axis = list(arena.view.axis_orders.get("conv", ["tap", "channel"])).index("tap")
            taps = np.moveaxis(conv, axis, 0)
            assert not taps[0].any() and not taps[4:].any() and taps[1:4].any()
        write(arena, 1, image(20))
        write(arena, 2, image(21))
        infos = arena.store({2: seq, 1: StoreItem(name + "/new", whole_row=True)}, position=16)
        assert [(row, i.name, i.position) for row, i in infos.items()] == [(2, name, 16), (1, name + "/new", 16)]
        assert seq.get().data == image(21) and pool.get(name + "/new").data == image(20) and seq.get(12).data == image(12)


@pytest.mark.parametrize("view", ["plain", "layer-major", "row-major", "speculative"])
def test_the_step_that_was_accepted_is_what_is_stored(pool, name, view):
    with pool.open_arena(LAYOUT, rows=4, steps=4, view=VIEWS[view]) as arena:
        rng = np.random.default_rng(5)
        for t in LAYOUT.tensors:
            for i in t.layers:
                array = arena.layer(t.name, i)
                array.view(np.uint8 if t.dtype == "uint8" else np.uint16 if t.dtype == "bfloat16" else np.uint32)[...] = rng.integers(
                    0, 200, array.shape)
        def expected(row, accepted):
            data = bytearray(LAYOUT.state_bytes)
            for a, b in cells(arena, row, accepted - 1, accepted)(data):
                b[...] = a
            return bytes(data)
        wanted = {row: expected(row, row + 1) for row in range(4)}
        arena.store({row: StoreItem(f"{name}/{row}", whole_row=True) for row in range(4)}, position={row: 10 + row for row in range(4)},
                    accepted={row: row + 1 for row in range(4)})
        for row in range(4):
            state = pool.get(f"{name}/{row}")
            assert (state.position, bytes(state.data)) == (10 + row, wanted[row])
        assert len(set(wanted.values())) == 4
        arena.store({3: StoreItem(f"{name}/default", whole_row=True)}, 5)
        assert pool.get(f"{name}/default").data == expected(3, 1)
        for accepted in (0, 5):
            with pytest.raises(statepool.InvalidArgument) as error:
                arena.store({3: f"{name}/3"}, 20, accepted=accepted)
            assert error.value.reason == "INVALID_ACCEPTED_LENGTH"


def test_one_engine_s_rows_are_another_one_s_in_its_own_view(pool, name):
    with pool.open_arena(LAYOUT, rows=2, view=VIEWS["other axes"]) as one, pool.open_arena(LAYOUT, rows=3, steps=2, view=VIEWS["wide conv"]) as two:
        write(one, 1, image(1))
        one.store({1: StoreItem(name, whole_row=True)}, 7)
        two.load({2: name})
        assert holds(two, 2, image(1))
        write(two, 2, image(2))
        two.store({2: name}, 8)
        assert holds(one, 1, image(1))
        with pytest.raises(statepool.Conflict) as error:
            one.store({1: name}, 9)
        assert error.value.reason == "REVISION_MISMATCH"
        one.load({1: name})
        assert holds(one, 1, image(2)) and pool.get(name).position == 8


# ------------------------------------------------------------------------------------------------------- load and store


def test_names_of_every_kind_are_loaded(pool, arena, seq):
    snapshot = pool.snapshot(seq, seq.name + "@8", position=8)
    tokens = [random.Random(seq.name).getrandbits(31) for _ in range(12)]
    prefix = pool.publish_prefix(LAYOUT, tokens, seq)
    match = pool.match_prefix(LAYOUT, tokens, max_position=12)
    loaded = arena.load({0: snapshot, 1: prefix, 2: match, 3: seq.name})
    assert [(r.info.kind, r.position) for r in loaded.values()] == [("snapshot", 8), ("prefix", 12), ("prefix", 12), ("sequence", 12)]
    assert holds(arena, 0, image(8)) and all(holds(arena, row, image(12)) for row in (1, 2, 3))
    versions = {v.position: v.version_id for v in seq.describe().history}
    assert arena.load({0: LoadItem(seq, version_id=versions[4])})[0].position == 4 and holds(arena, 0, image(4))


def test_an_attachment_comes_when_it_is_asked_for(pool, arena, name):
    arena.store({0: StoreItem(name, whole_row=True, attachment=b"logits", exactness="lossy", durability="volatile", ttl=60, max_history=3)}, 5)
    info = pool.describe(name)
    assert (info.attachment_bytes, info.exactness, info.durability, info.ttl, info.max_history) == (6, "lossy", "volatile", 60, 3)
    assert arena.load({1: name})[1].attachment == b"" and arena.load({1: LoadItem(name, attachment=True)})[1].attachment == b"logits"


def test_a_scribbled_row_is_right_again_after_a_load_and_kept_when_it_is_said_to_be_unmodified(arena, seq):
    arena.load({0: seq})
    arena.layer("ssm", 2)[0] = 5
    assert not holds(arena, 0, image(12))
    assert arena.load({0: seq})[0].copied and holds(arena, 0, image(12))
    assert not arena.load({0: LoadItem(seq, row_unmodified=True)})[0].copied and holds(arena, 0, image(12))
    assert arena.load({0: LoadItem(seq, 8, row_unmodified=True)})[0].copied and holds(arena, 0, image(8))


def test_each_item_that_fails_to_load_has_its_own_error_and_keeps_its_row(pool, arena, seq):
    pool.create(OTHER, seq.name + "/other")
    for row in range(4):
        write(arena, row, image(90 + row))
    items = {1: LoadItem(seq, 5), 0: seq.name + "/never", 3: seq, 2: seq.name + "/other"}
    results = arena.load(items, return_errors=True)
    assert list(results) == [1, 0, 3, 2] and results[3].position == 12 and holds(arena, 3, image(12))
    for row, reason, field in ((1, "POSITION_MISMATCH", "items[0].position"), (0, "NEVER_CREATED", "items[1].name"), (2, "LAYOUT_MISMATCH", None)):
        assert type(results[row]) is statepool.NotFound and results[row].reason == reason and results[row].metadata["row"] == str(row)
        assert field is None or results[row].field == field
        assert holds(arena, row, image(90 + row))
    with pytest.raises(statepool.NotFound) as error:
        arena.load(items)
    assert (error.value.reason, error.value.metadata["row"]) == ("POSITION_MISMATCH", "1")
    for call in (lambda: arena.load({4: seq}), lambda: arena.store({4: seq}, 13)):
        with pytest.raises(statepool.InvalidArgument) as error:
            call()
        assert error.value.reason == "ROW_OUT_OF_RANGE"


def test_each_item_that_fails_to_be_stored_has_its_own_error_and_the_others_are_stored(pool, arena, seq):
    arena.load({0: seq, 2: seq})
    revision = pool.set(seq, image(50), 13).revision
    write(arena, 2, image(51))
    items = {0: seq, 1: seq.name + "/unloaded", 2: StoreItem(seq.name + "/fine"), 3: StoreItem(seq.name + "/bad", -1, whole_row=True)}
    results = arena.store(items, position=14, return_errors=True)
    assert {row: getattr(r, "reason", "") for row, r in results.items()} == {
        0: "REVISION_MISMATCH", 1: "ROW_NOT_LOADED", 2: "", 3: "INVALID_POSITION"}
    assert results[2].position == 14 and pool.get(seq.name + "/fine").data == image(51) and holds(arena, 0, image(12))
    assert (seq.get().data, seq.describe().revision) == (image(50), revision)
    with pytest.raises(statepool.Conflict):
        arena.store({0: seq}, position=14)
    arena.store({0: StoreItem(seq, any_revision=True)}, position=14)
    assert seq.get().data == image(12) and seq.get().position == 14
    with pytest.raises(statepool.Conflict) as error:
        arena.store({0: StoreItem(seq, if_revision=revision)}, position=15)
    assert error.value.reason == "REVISION_MISMATCH"


def test_all_or_none_stores_nothing_when_an_item_fails(pool, arena, seq):
    arena.load({0: seq})
    write(arena, 0, image(60))
    items = {0: seq, 1: StoreItem(seq.name + "/a", whole_row=True), 2: seq.name + "/unloaded"}
    with pytest.raises(statepool.Conflict) as error:
        arena.store(items, position=14, all_or_none=True)
    assert (error.value.reason, error.value.metadata["row"]) == ("ROW_NOT_LOADED", "2")
    assert seq.get().position == 12 and holds(arena, 0, image(60))
    with pytest.raises(statepool.NotFound):
        pool.get(seq.name + "/a")
    del items[2]
    assert [i.position for i in arena.store(items, position=14, all_or_none=True).values()] == [14, 14] and seq.get().data == image(60)


def test_a_store_that_is_repeated_with_its_request_id_is_answered_as_the_first_time(pool, arena, seq):
    arena.load({0: seq})
    item = StoreItem(seq, request_id="mine")
    first = arena.store({0: item}, 13)[0]
    again = arena.store({0: item}, 13)[0]
    assert not first.replayed and again.replayed and again.revision == first.revision == seq.describe().revision


def test_rows_are_loaded_and_stored_by_many_threads(pool, name):
    with pool.open_arena(LAYOUT, rows=8) as arena, concurrent.futures.ThreadPoolExecutor(8) as executor:
        def work(row):
            for turn in range(20):
                write(arena, row, image(100 * row + turn))
                arena.store({row: StoreItem(f"{name}/{row}", whole_row=True)}, turn)
                write(arena, row, image(7))
                arena.load({row: f"{name}/{row}"})
                assert holds(arena, row, image(100 * row + turn))
        list(executor.map(work, range(8)))


def test_two_arenas_of_two_layouts_do_not_mix(pool, arena, seq):
    with pool.open_arena("other", rows=2) as other:
        with pytest.raises(statepool.NotFound) as error:
            other.load({0: seq})
        assert error.value.reason == "LAYOUT_MISMATCH"
        write(other, 0, image(1))
        with pytest.raises(statepool.Conflict) as error:
            other.store({0: StoreItem(seq, whole_row=True)}, 13)
        assert error.value.reason == "LAYOUT_MISMATCH"
        arena.load({0: seq})
        other.close()
        arena.store({0: seq}, 13)


# ------------------------------------------------------------------------------------------------------ opening, closing


@pytest.mark.parametrize("options, kind, reason", [
    ({"rows": 0}, statepool.InvalidArgument, "INVALID_OPTION"), ({"steps": 1 << 20}, statepool.InvalidArgument, "INVALID_OPTION"),
    ({"view": View(axis_orders={"ssm": ["head", "value"]})}, statepool.InvalidArgument, "INVALID_VIEW"),
    ({"view": View(conv_padding=9)}, statepool.InvalidArgument, "INVALID_VIEW"),
    ({"steps": 4, "view": View(num_spec=2)}, statepool.InvalidArgument, "INVALID_VIEW"),
    ({"layout": "nope"}, statepool.NotFound, "LAYOUT_UNKNOWN")])
def test_an_arena_that_makes_no_sense_is_refused(pool, options, kind, reason):
    with pytest.raises(kind) as error:
        pool.open_arena(**{"layout": LAYOUT, **options})
    assert error.value.reason == reason


def test_arrays_outlive_their_arena_and_the_memory_goes_with_the_last_of_them(pool, seq):
    arena = pool.open_arena(LAYOUT, rows=2)
    arena.load({0: seq})
    array = arena.layer("ssm", 0)
    part = array[1:, 2]
    address = array.__array_interface__["data"][0]
    arena.close()
    for call in (lambda: arena["ssm"], lambda: arena.layer("ssm", 0), lambda: arena.load({0: seq}), lambda: arena.store({0: seq}, 13), arena.reopen):
        with pytest.raises(statepool.Conflict) as error:
            call()
        assert error.value.reason == "ARENA_CLOSED"
    array[...] = 3
    del arena, array, error, call
    gc.collect()
    assert is_mapped(address) and 0 <= part.sum() <= 3 * part.size  # until the daemon takes its contents
    del part
    assert not is_mapped(address)


@pytest.mark.parametrize("order", ["arena pool", "pool arena", "arena arena pool", "pool pool arena arena", "daemon arena pool", "daemon pool arena"])
def test_arena_pool_and_daemon_may_end_in_any_order(tmp_path, order):
    daemon = Daemon(tmp_path).start()
    try:
        pool = statepool.connect(daemon.address, timeout=10, retries=0)
        pool.register_layout(LAYOUT)
        arena = pool.open_arena(LAYOUT, rows=2)
        address = addresses(arena)["ssm", 0]
        buffer, = pool.empty(LAYOUT)
        began = time.monotonic()
        for what in order.split():
            {"arena": arena.close, "pool": pool.close, "daemon": daemon.kill}[what]()
        assert time.monotonic() - began < 8 and not is_mapped(address)
        buffer[:] = 1
    finally:
        if daemon.process is not None:
            daemon.stop()


PROLOGUE = """
import os, sys, time
import numpy as np
import statepool
from statepool import StoreItem
pool = statepool.connect(sys.argv[1], timeout=10, retries=0)
pool.register_layout(statepool.layouts.Layout("m", [statepool.layouts.Tensor("x", [0], "float32", {"a": 1024})]), alias="m")
arena = pool.open_arena("m", rows=2)
x = arena["x"][0]
"""


def run_script(daemon, text, timeout=60):
    return subprocess.run([sys.executable, "-W", "error::ResourceWarning", "-c", PROLOGUE + text, daemon.address], capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, "PYTHONFAULTHANDLER": "1"})


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "import atexit; atexit.register(arena.close)", "import atexit; atexit.register(pool.close)",
                                 "import builtins; builtins.kept = arena", "keep = [arena]; keep.append(keep)",
                                 "b, = pool.empty('m'); b[:] = 1"])
def test_a_process_that_closes_nothing_ends_quietly(daemon, end):
    ended = run_script(daemon, "x[0] = 1\n" + end)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("leave", ["arena.close()", "del arena; gc.collect()", "arena.__exit__(None, None, None)", "pool.close()", "pass"])
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_leaves_the_parent_s_lease_alone(daemon, leave, end):
    ended = run_script(daemon, f"""
import gc
x[0] = 5
buffers = pool.empty("m", 2)
pid = os.fork()
if pid == 0:
    assert (x[0] == 5).all()
    for call in (lambda: arena.load({{0: "s"}}), lambda: arena.store({{0: "s"}}, 1), arena.reopen):
        try:
            call()
        except statepool.Conflict as error:
            assert error.reason == "FORKED" and "forked" in str(error)
        else:
            os._exit(3)
    del call
    {leave if leave != "pool.close()" else "pool._rooms.close()"}
    {end}
child, status = os.waitpid(pid, 0)
assert status == 0, status
time.sleep(0.2)
name = "forked/" + str(os.getpid())
arena.store({{0: StoreItem(name, whole_row=True)}}, 1)
assert (np.frombuffer(pool.get(name).data, "<f4") == 5).all()
arena.load({{1: name}})
assert (x[1] == 5).all()
buffers[0][:] = 1
pool.set(name + "b", buffers[0], 2)
arena.close()
print("done")
""")
    assert (ended.returncode, ended.stdout) == (0, "done\n") and "Traceback" not in ended.stderr and "Fatal" not in ended.stderr, ended


def test_a_daemon_without_arenas_says_so_and_buffers_are_ordinary_memory(tmp_path, calls):
    daemon = Daemon(tmp_path, "--arena-socket=").start()
    try:
        with statepool.connect(daemon.address, timeout=10, retries=0) as pool:
            pool.register_layout(LAYOUT)
            assert pool.capabilities().arena_socket == ""
            with pytest.raises(statepool.Conflict) as error:
                pool.open_arena(LAYOUT)
            assert (error.value.code, error.value.reason) == ("FAILED_PRECONDITION", "ARENAS_OFF")
            one, two = pool.empty(LAYOUT, 2)
            one[:] = np.frombuffer(image(1), np.uint8)
            calls.clear()
            pool.set("s", one, 4)  # it brings its layout
            assert pool.get("s", out=two).data == image(1) == two.tobytes() and set(calls) <= {"Set", "Get"}
    finally:
        daemon.stop()


# ------------------------------------------------------------------------------------------------------------- restarts


@pytest.fixture
def own_pool(own_daemon):
    with statepool.connect(own_daemon.unix_address, timeout=20) as pool:
        pool.register_layout(LAYOUT, alias="arena")
        yield pool


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("view", ["plain", "row-major"])
def test_after_a_restart_the_arena_is_at_the_same_addresses_and_its_contents_are_gone(own_daemon, own_pool, end, view):
    own_pool.set("s", image(1), 4, layout=LAYOUT, durability="sync")
    with own_pool.open_arena("arena", rows=3, view=VIEWS[view]) as arena:
        reopened = []
        arena.on_reopen = reopened.append
        arena.load({0: "s", 1: "s"})
        array, before, incarnation = arena.layer("ssm", 0), addresses(arena), arena.incarnation
        getattr(own_daemon, end)()
        own_daemon.start()
        array[2] = 5
        with pytest.raises(statepool.ContentsGone) as gone:
            arena.store({0: "s"}, 5)
        assert gone.value.incarnation == arena.incarnation == own_daemon.ready["incarnation"] != incarnation
        assert isinstance(gone.value, statepool.StatepoolError) and "zeros" in str(gone.value)
        assert reopened == [arena] and addresses(arena) == before and arena.layer("ssm", 0) is array and not array.any()
        with pytest.raises(statepool.Conflict) as error:
            arena.store({0: "s"}, 5)
        assert error.value.reason == "ROW_NOT_LOADED" and own_pool.get("s").position == 4
        arena.load({0: "s"})
        assert holds(arena, 0, image(1))
        array[0] = 2
        arena.store({0: "s"}, 5)
        assert (own_pool.get("s").tensors["ssm"][0] == 2).all() and len(reopened) == 1


def test_while_the_daemon_is_away_the_error_is_the_call_s_own(own_daemon, own_pool):
    own_pool.set("s", image(1), 4, layout=LAYOUT, durability="sync")
    impatient = own_pool.with_options(retries=0)
    with impatient.open_arena(LAYOUT, rows=2) as arena:
        arena.load({0: "s"})
        own_daemon.kill()
        with pytest.raises(statepool.Unavailable):
            arena.load({1: "s"})
        arena.layer("ssm", 0)[1] = 1  # still memory
        own_daemon.start()
        eventually(lambda: reachable(own_pool))
        with pytest.raises(statepool.ContentsGone):
            arena.load({1: "s"})
        arena.load({1: "s"})
        assert holds(arena, 1, image(1))


def reachable(pool):
    try:
        return pool.capabilities()
    except statepool.Unavailable:
        return None


def test_a_layout_that_is_unknown_after_a_restart_leaves_the_call_s_own_error(own_daemon, own_pool):
    with own_pool.open_arena(LAYOUT, rows=2) as arena:
        arena.layer("ssm", 0)[...] = 1
        own_daemon.stop()
        shutil.rmtree(own_daemon.directory / "data")
        own_daemon.start()
        for _ in range(2):
            with pytest.raises(statepool.NotFound) as error:
                arena.load({0: "s"})
            assert error.value.reason == "ARENA_UNKNOWN"
        assert arena.layer("ssm", 0).size
        own_pool.register_layout(LAYOUT)
        with pytest.raises(statepool.ContentsGone):
            arena.load({0: "s"})


def test_every_thread_that_used_the_arena_learns_that_its_contents_are_gone(own_daemon, own_pool):
    with own_pool.open_arena(LAYOUT, rows=2) as arena, concurrent.futures.ThreadPoolExecutor(1) as other:
        store = {1: StoreItem("t", whole_row=True)}
        other.submit(arena.store, store, 1).result()
        own_daemon.kill()
        own_daemon.start()
        with pytest.raises(statepool.ContentsGone):
            arena.store({0: StoreItem("s", whole_row=True)}, 1)
        with pytest.raises(statepool.ContentsGone):
            other.submit(arena.store, store, 2).result()
        assert other.submit(arena.store, store, 2).result()[1].position == 2
        arena.store({0: StoreItem("s", whole_row=True)}, 1)


def test_an_arena_is_reopened_on_request(pool, seq):
    with pool.open_arena(LAYOUT, rows=2) as arena:
        reopened = []
        arena.on_reopen = reopened.append
        arena.load({0: seq})
        before = addresses(arena)
        arena.reopen()
        assert addresses(arena) == before and reopened == [arena] and not arena.layer("ssm", 0).any()
        arena.load({1: seq})
        assert holds(arena, 1, image(12))
    pool.close()
    arena.close()


# -------------------------------------------------------------------------------------------------------------- buffers


def test_buffers_are_filled_and_stored_without_a_message_of_their_bytes(pool, name, calls):
    with pool.empty(LAYOUT, 2) as buffers:
        one, two = buffers
        assert one.dtype == np.uint8 and one.shape == two.shape == (LAYOUT.state_bytes,) and one.flags.writeable
        calls.clear()
        one[:] = np.frombuffer(image(1), np.uint8)
        info = pool.set(name, one, 4, attachment=b"a", ttl=60, max_history=5)
        assert (info.name, info.position, info.ttl, info.attachment_bytes) == (name, 4, 60, 1)
        pool.sequence(name).set(memoryview(one), 5)  # a view of the whole is as good
        state = pool.get(name, out=two)
        assert two.tobytes() == image(1) == bytes(state.data) and (state.position, state.attachment, state.info.name) == (5, b"", name)
        assert np.shares_memory(state.tensors["ssm"], two)
        assert pool.sequence(name).get(4, out=two.reshape(2, -1)).attachment == b"a"
        assert [c for c in calls if c != "GetLayout"] == ["Store", "Store", "Load", "Load"]
    assert pool.get(name).data == image(1) and buffers == []


def test_a_buffer_keeps_the_conditions_of_set_and_get(pool, name):
    buffer, = pool.empty("arena")
    buffer[:] = np.frombuffer(image(1), np.uint8)
    first = pool.set(name, buffer, 4, if_revision=0, request_id="first")
    assert pool.set(name, buffer, 4, if_revision=0, request_id="first").replayed
    with pytest.raises(statepool.Conflict) as error:
        pool.set(name, buffer, 5, if_revision=0)
    assert (error.value.reason, error.value.field, "row" in error.value.metadata) == ("REVISION_MISMATCH", "if_revision", False)
    pool.set(name, image(2), 6)
    pool.set(name, buffer, 7)  # whatever revision it has
    assert first.revision < pool.describe(name).revision and pool.get(name).data == image(1)
    for call, kind, reason in (
            (lambda: pool.get(name, 5, out=buffer), statepool.NotFound, "POSITION_MISMATCH"),
            (lambda: pool.get(name + "/never", out=buffer), statepool.NotFound, "NEVER_CREATED"),
            (lambda: pool.get(name, layout="other", out=buffer), statepool.NotFound, "LAYOUT_MISMATCH"),
            (lambda: pool.set(name, buffer, 8, layout=OTHER), statepool.Conflict, "LAYOUT_MISMATCH"),
            (lambda: pool.set(name, buffer, -1), statepool.InvalidArgument, "INVALID_POSITION")):
        with pytest.raises(kind) as error:
            call()
        assert error.value.reason == reason and not error.value.field.startswith("items")


def test_parts_of_buffers_and_parts_of_states_go_by_message(pool, seq, calls):
    buffer, = pool.empty(LAYOUT)
    pool.get(seq, out=buffer)
    calls.clear()
    part = pool.get(seq, tensors=["count"], out=buffer[:6])
    assert bytes(part.data) == image(12)[-6:] == buffer[:6].tobytes()
    pool.set(seq, LAYOUT.views(buffer), 13, layout=LAYOUT)
    with pytest.raises(statepool.InvalidArgument):
        pool.set(seq, buffer[1:], 13)
    assert "Load" not in calls and "Store" not in calls


def test_rows_of_buffers_are_used_again(pool, calls):
    buffers = pool.empty(OTHER, 3)
    at = {b.__array_interface__["data"][0] for b in buffers}
    assert len(at) == 3
    kept = buffers[1][5:]
    calls.clear()
    del buffers
    gc.collect()
    again = pool.empty(OTHER, 2)
    assert {b.__array_interface__["data"][0] for b in again} == at - {kept.__array_interface__["data"][0] - 5}
    assert "OpenArena" not in calls
    more = [pool.empty(OTHER)[0] for _ in range(20)]
    assert calls.count("OpenArena") <= 5 and len({b.__array_interface__["data"][0] for b in more + again}) == 22


def test_a_buffer_of_one_pool_is_plain_memory_to_another(daemon, pool, name, calls):
    buffer, = pool.empty(LAYOUT)
    buffer[:] = np.frombuffer(image(1), np.uint8)
    with statepool.connect(daemon.address, timeout=20) as other:
        calls.clear()
        other.set(name, buffer, 4)
        buffer[:] = 0
        assert other.get(name, out=buffer).data == image(1) == buffer.tobytes() and set(calls) <= {"Set", "Get", "GetCapabilities"}
    pool.with_options(timeout=5).set(name, buffer, 5)
    assert calls[-1] == "Store"


def test_a_state_that_fits_no_message_goes_through_a_buffer(daemon, name, calls):
    big = Layout("big-arena-model", [Tensor("x", [0], "uint8", {"a": 3 << 20})])
    with statepool.connect(daemon.address, timeout=20, max_message_bytes=2 << 20) as pool:
        pool.register_layout(big)
        with pool.empty(big) as (buffer,):
            buffer[:] = 9
            pool.set(name, buffer, 4)
            buffer[:] = 0
            assert pool.get(name, out=buffer).data == b"\x09" * (3 << 20)
            room = bytearray(3 << 20)
            assert pool.get(name, out=room).data == room == b"\x09" * (3 << 20)  # as a stream
            assert "Set" not in calls and calls.count("Get") == 1


def test_a_state_is_read_into_any_buffer_of_its_length(pool, seq):
    for room in (bytearray(LAYOUT.state_bytes), np.empty(LAYOUT.state_bytes // 2, np.int16), memoryview(bytearray(LAYOUT.state_bytes))):
        state = seq.get(8, out=room)
        assert bytes(memoryview(room).cast("B")) == image(8) == bytes(state.data) and not state.data.readonly
    for room, reason in ((bytearray(5), "BYTES_LENGTH_MISMATCH"), (bytearray(LAYOUT.state_bytes + 1), "BYTES_LENGTH_MISMATCH"),
                         (bytes(LAYOUT.state_bytes), "INVALID_OPTION")):
        with pytest.raises(statepool.InvalidArgument) as error:
            seq.get(out=room)
        assert (error.value.reason, error.value.field) == (reason, "out")


def test_after_a_restart_no_buffer_is_stored_that_was_not_written_since(own_daemon, own_pool):
    own_pool.set("s", image(1), 4, layout=LAYOUT, durability="sync")
    one, two, three = own_pool.empty(LAYOUT, 3)
    for buffer in (one, two, three):
        own_pool.get("s", out=buffer)
    own_daemon.kill()
    own_daemon.start()
    assert own_pool.get("s", out=one).data == image(1) == one.tobytes()
    own_pool.set("s1", one, 5)
    for buffer in (two, three):
        with pytest.raises(statepool.ContentsGone):
            own_pool.set("lost", buffer, 5)
        assert not buffer.any()
        buffer[:] = 3
        own_pool.set("found", buffer, 5)
    with pytest.raises(statepool.NotFound):
        own_pool.get("lost")
    assert own_pool.get("found").data == b"\x03" * LAYOUT.state_bytes and own_pool.get("s1").data == image(1)
