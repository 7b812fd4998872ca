# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Direct loads and stores of arenas on a GPU, as the Python package does them, over a made-up GPU: the daemon's FarDevice, mapped as the host's memory, and
streams that do what they were told when a test lets them. Real ones: tests/gpu."""
import contextlib
import ctypes
import gc
import random
import threading
import time

import numpy as np
import pytest

import statepool
from daemon_process import Daemon, eventually
from statepool import StoreItem, _direct, _gpu_copies, _kernels, _mapping, arenas, errors
from statepool.layouts import DTYPES, Layout, Tensor
from test_python_direct import slots

LAYOUT = Layout("gpu-copies", (
    Tensor("conv", range(3), "bfloat16", {"tap": 3, "channel": 33}, kind="conv"),
    Tensor("ssm", [0, 2], "float32", {"head": 4, "value": 125, "key": 131}, kind="recurrent"),
))
pytestmark = pytest.mark.skipif(not _kernels.available, reason="the kernels' library does the copies of the made-up GPU")


class Stream:
    """Does its work in a thread of its own, one piece after the other, while it is not held."""

    failures = []

    def __init__(self):
        self.open = threading.Event()
        self.open.set()
        self.capturing = False
        self.work, self.done = [], 0
        self.changed = threading.Condition()
        self.cuda_stream = id(self)
        Gpu.streams[self.cuda_stream] = self
        threading.Thread(target=self.run, daemon=True).start()

    def enqueue(self, piece):
        with self.changed:
            self.work.append(piece)
            self.changed.notify_all()
            return len(self.work)

    def run(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: len(self.work) > self.done)
            self.open.wait()
            try:
                self.work[self.done]()
            except Exception as failure:
                Stream.failures.append(failure)
            with self.changed:
                self.done += 1
                self.changed.notify_all()

    def wait(self, number):
        with self.changed:
            self.changed.wait_for(lambda: self.done >= number)

    def synchronize(self):
        self.wait(len(self.work))


class Event:
    failure = None  # of the next synchronize()

    def record(self, stream):
        Gpu.check_relaxed()
        self.stream, self.number = stream, stream.enqueue(lambda: None)

    def query(self):
        Gpu.check_relaxed()
        return self.stream.done >= self.number

    def synchronize(self):
        Gpu.check_relaxed()
        self.stream.wait(self.number)
        failure, Event.failure = Event.failure, None
        if failure is not None:
            raise failure


class Pinned:
    def __init__(self, size):
        self.array = np.zeros(size, np.int64)

    def data_ptr(self):
        return self.array.ctypes.data

    def numpy(self):
        return self.array


class Torch:
    class cuda:  # noqa: N801
        Event = Event

    int64 = None

    @staticmethod
    def empty(size, dtype, pin_memory):
        assert pin_memory
        Gpu.check_relaxed()
        return Pinned(size)


class Gpu:
    streams = {}
    torch = Torch
    thread = threading.local()  # .depth: of current()

    @contextlib.contextmanager
    def current(self):
        Gpu.thread.depth = getattr(Gpu.thread, "depth", 0) + 1
        try:
            yield
        finally:
            Gpu.thread.depth -= 1

    def is_capturing(self, stream):
        return (stream or Range.default).capturing

    @staticmethod
    def check_relaxed():
        """As if another thread were always capturing a graph."""
        if not getattr(Gpu.thread, "depth", 0):
            raise RuntimeError("operation not permitted when stream is capturing")


class Plan:
    """The kernels' plan of the host, in the order of a stream. Once it was destroyed it is an error to use it."""

    def __init__(self, segments, state_bytes, arena_bytes, rows, accepted_max):
        self.plan = _kernels.Plan(segments, state_bytes, arena_bytes, rows, accepted_max)
        self.state_bytes = state_bytes

    def destroy(self):
        self.plan = None

    def gather(self, states, rows, arena, stream):
        plan = self.plan
        Gpu.streams[stream].enqueue(lambda: [plan.gather(state, arena, [row]) for state, row in zip(states, rows)])

    def scatter(self, rows, accepted, states, arena, hashes, stream):
        plan, each = self.plan, -(-self.state_bytes // _kernels.LEAF_BYTES) * 8

        def work():
            for i, (row, length, state) in enumerate(zip(rows, accepted, states)):
                plan.scatter(arena, row, length, state)
                leaves = _kernels.leaves_of([memoryview(ctypes.string_at(state, self.state_bytes))])
                ctypes.memmove(hashes + i * each, leaves, each)

        Gpu.streams[stream].enqueue(work)


class Moves:
    """The same for moves of rows."""

    def __init__(self, segments, arena_bytes, rows, steps_max):
        self.plan = _kernels.AdvancePlan(segments, arena_bytes, rows, steps_max)

    def destroy(self):
        self.plan = None

    def move(self, moves, arena, stream):
        plan = self.plan
        Gpu.streams[stream].enqueue(lambda: plan.move(moves, arena))


class Range(_mapping.Range):
    """What _cuda.GpuRange is."""

    default = None  # the stream

    def __init__(self, nbytes):
        super().__init__(nbytes)
        self.gpu = Gpu()
        self.is_mapped = False
        self.threads = []  # that mapped and unmapped it

    def put(self, fd):
        super().put(fd)
        self.is_mapped = True
        self.threads.append(threading.current_thread())

    def stream(self, stream):
        return stream or Range.default

    def wait(self, stream):
        self.stream(stream).synchronize()

    def vacate(self):
        for stream in list(Gpu.streams.values()):
            stream.synchronize()
        super().vacate()
        self.is_mapped = False
        self.threads.append(threading.current_thread())

    def tensor(self, dtype, shape, strides, offset):
        return np.ndarray(tuple(shape), DTYPES[dtype], np.asarray(self), offset, tuple(strides))


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("far"), "--direct", "--devices=far", "--chunk-bytes=65536").start()
    yield daemon
    daemon.stop()


@pytest.fixture
def stream(monkeypatch):
    Gpu.streams.clear()
    Range.default = Stream()
    monkeypatch.setattr(_mapping, "is_gpu", lambda device: device == "far")
    monkeypatch.setattr(_mapping, "check_memory", lambda fd, nbytes: None)
    monkeypatch.setattr(arenas.Arena, "_range", staticmethod(lambda table, nbytes: Range(nbytes)))
    monkeypatch.setattr(arenas.Arena, "_gpu_name", lambda self: "")  # the far device's extents are the host's
    monkeypatch.setattr(_gpu_copies._kernels, "DevicePlan", Plan)
    monkeypatch.setattr(_gpu_copies._kernels, "DeviceAdvancePlan", Moves)
    Stream.failures.clear()
    yield Range.default
    for each in Gpu.streams.values():
        each.open.set()
        each.synchronize()
    assert not Stream.failures


@pytest.fixture
def pool(far, stream):
    with statepool.connect(far.unix_address) as pool:
        pool.register_layout(LAYOUT)
        yield pool


@pytest.fixture
def arena(pool, stream):
    with pool.open_arena(LAYOUT, rows=4, view=statepool.View("row_major"), direct=True) as arena:
        assert arena._copies is not None and arena._copies.has_kernels
        yield arena
        stream.open.set()


def image(seed):
    return random.Random(seed).randbytes(LAYOUT.state_bytes)


def write(arena, stream, row, state):
    """In the order of the stream."""
    stream.enqueue(lambda: put(arena, row, state))


def put(arena, row, state):
    at = 0
    for tensor in LAYOUT.tensors:
        for layer in tensor.layers:
            target = arena.layer(tensor.name, layer)[row]
            target[...] = np.frombuffer(state, target.dtype, target.size, at).reshape(target.shape)
            at += target.nbytes


def read(arena, row):
    return b"".join(arena.layer(tensor.name, layer)[row].tobytes() for tensor in LAYOUT.tensors for layer in tensor.layers)


def test_a_load_returns_before_its_copies_and_keeps_its_pins_until_they_are_done(far, pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    stream.open.clear()
    assert arena.load({0: name, 2: name})[2].copied
    time.sleep(0.05)
    assert slots(far, "pinned") == 1
    stream.open.set()
    stream.synchronize()
    assert read(arena, 0) == read(arena, 2) == image(1)
    eventually(lambda: slots(far, "pinned") == 0)


def test_what_is_written_after_a_store_began_is_not_stored(far, pool, arena, stream, request):
    name = request.node.name
    stream.open.clear()
    handles = []
    for i in range(3):
        write(arena, stream, 0, image(i))
        handles.append(arena.store_async({0: StoreItem(f"{name}/{i}", whole_row=True)}, position=i))
    write(arena, stream, 0, image(99))
    assert not handles[0].done()
    with pytest.raises(TimeoutError):
        handles[0].wait(timeout=0.01)
    with pytest.raises(statepool.NotFound):
        pool.get(f"{name}/0")
    stream.open.set()
    assert handles[2].wait()[0].position == 2
    assert handles[0].done() and handles[0].wait()[0].position == 0
    assert [bytes(pool.get(f"{name}/{i}").data) for i in range(3)] == [image(i) for i in range(3)]


def test_stores_of_one_row_are_committed_in_their_order_by_whoever_comes(pool, arena, stream, request):
    name = request.node.name
    for i in range(30):
        write(arena, stream, 1, image(i))
        handle = arena.store_async({1: StoreItem(name, whole_row=not i)}, position=i)  # each on the revision of the one before
        if i % 7 == 0:
            handle.wait()
    eventually(handle.done)
    assert handle.wait()[1].position == 29 and bytes(pool.get(name).data) == image(29)


def test_a_load_into_a_row_that_is_being_stored_comes_after_the_store(pool, arena, stream, request):
    name = request.node.name
    pool.set(f"{name}/b", image(2), 1, layout=LAYOUT)
    stream.open.clear()
    write(arena, stream, 0, image(1))
    handle = arena.store_async({0: StoreItem(f"{name}/a", whole_row=True)}, position=1)
    arena.load({1: f"{name}/b"})  # another row
    assert not handle.done()
    threading.Timer(0.1, stream.open.set).start()
    arena.load({0: f"{name}/b"})
    assert handle.done()
    # The daemon knows what the row holds now.
    assert not arena.load({0: statepool.LoadItem(f"{name}/b", row_unmodified=True)})[0].copied
    assert arena.load({0: statepool.LoadItem(f"{name}/a", row_unmodified=True)})[0].copied
    stream.synchronize()
    assert read(arena, 0) == image(1) and read(arena, 1) == image(2)


@pytest.fixture
def steps(pool, stream):
    with pool.open_arena(LAYOUT, rows=4, steps=3, view=statepool.View("row_major"), direct=True) as arena:
        assert arena._copies is not None and arena._moves.has_kernels
        yield arena
        stream.open.set()


def fill(arena, stream, row, step, value):
    """In the order of the stream: this step of all tensors of a row."""
    def work():
        for tensor in LAYOUT.tensors:
            for layer in tensor.layers:
                arena.layer(tensor.name, layer)[row, step] = value

    stream.enqueue(work)


def values(arena, row, step=0):
    return {arena.layer(tensor.name, layer)[row, step].ravel()[0] for tensor in LAYOUT.tensors for layer in tensor.layers}


def test_an_advance_is_in_the_order_of_the_stream_and_asks_nobody(pool, steps, stream, monkeypatch):
    stream.open.clear()
    for step in range(3):
        fill(steps, stream, 0, step, 10 + step)
    with monkeypatch.context() as patch:
        patch.setattr(pool._connection, "call", lambda *_: pytest.fail("the daemon has nothing to do with it"))
        assert steps.advance({0: 3, 1: 1}) == {0: "moved", 1: "in_place"}
    fill(steps, stream, 0, 2, 99)  # what the stream does afterwards
    assert values(steps, 0) == {0}
    stream.open.set()
    stream.synchronize()
    assert values(steps, 0) == {12} and values(steps, 0, 1) == {11} and values(steps, 0, 2) == {99}


def test_a_store_with_advance_is_done_before_its_row_moves_on(pool, steps, stream, request):
    name = request.node.name
    for step in range(3):
        fill(steps, stream, 2, step, 20 + step)
    handle = steps.store_async({2: StoreItem(name, whole_row=True)}, position=2, accepted=2, advance=True)
    assert handle.done() and handle.wait()[2].position == 2
    stream.synchronize()
    assert values(steps, 2) == values(steps, 2, 1) == {21}
    # A row that was moved here is not what the daemon takes it for.
    pool.set(f"{name}/b", bytes(LAYOUT.state_bytes), 1, layout=LAYOUT)
    assert steps.load({2: f"{name}/b"})[2].copied
    steps.advance({2: 2})
    assert steps.load({2: statepool.LoadItem(f"{name}/b", row_unmodified=True)})[2].copied


def test_align_mode_stores_what_the_row_has_passed_and_a_retry_finds_it(pool, steps, stream, request, monkeypatch):
    name = request.node.name
    for row in range(2):
        for step in range(3):
            fill(steps, stream, row, step, 10 * row + step)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "_wait_for", lambda _: pytest.fail("the daemon need not copy"))
        stored = steps.store({0: StoreItem(f"{name}/0", whole_row=True)}, position=9, accepted=3, align=4, advance=True)
    assert stored[0].position == 8
    assert {t.ravel()[0] for t in pool.get(f"{name}/0").tensors.values()} == {1}
    stream.synchronize()
    assert values(steps, 0) == values(steps, 0, 2) == {2}
    # With an id of the caller's, and where a row is skipped, it is the daemon's to do.
    items = {1: StoreItem(f"{name}/1", 9, 3, whole_row=True, request_id="once"), 0: StoreItem(f"{name}/none", 11, 3, request_id="once")}
    first = steps.store(items, align=4, advance=True)
    assert (first[1].position, first[0]) == (8, None) and values(steps, 1) == {12}
    again = steps.store(items, align=4, advance=True)
    assert (again[1].version_id, again[1].replayed, again[0]) == (first[1].version_id, True, None) and values(steps, 1) == {12}


def test_a_store_that_nobody_waits_for_is_committed(pool, arena, stream, request):
    name = request.node.name
    write(arena, stream, 1, image(5))
    arena.store_async({1: StoreItem(name, whole_row=True)}, position=1)
    eventually(lambda: _position(pool, name) == 1)


def test_asynchronous_stores_bring_each_other_s_slots(far, pool, arena, stream, request, monkeypatch):
    name, asked, handles = request.node.name, [], []
    call = pool._connection.call
    monkeypatch.setattr(pool._connection, "call", lambda method, *arguments: (asked.append(method), call(method, *arguments))[1])
    for i in range(12):
        write(arena, stream, 0, image(i))
        handles.append(arena.store_async({0: StoreItem(name, whole_row=True, any_revision=True, max_history=1)}, position=i))
        handles[max(i - 1, 0)].wait()
    handles[-1].wait()
    assert bytes(pool.get(name).data) == image(11)
    assert asked.count("Store") == 12 and asked.count("Grant") == 1


def _position(pool, name):
    try:
        return pool.get(name).position
    except statepool.NotFound:
        return None


def test_a_store_that_is_interrupted_ends_with_the_interruption(far, pool, arena, stream, request, monkeypatch):
    in_flight = arena._in_flight
    monkeypatch.setattr(in_flight, "_wake", lambda: None)  # this thread commits
    handle = arena.store_async({0: StoreItem(request.node.name, whole_row=True)}, position=1)
    with monkeypatch.context() as patch:
        patch.setattr(Event, "failure", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            handle.wait()
    with pytest.raises(KeyboardInterrupt):
        handle.wait()
    assert handle.done() and handle._storing._written is None
    eventually(lambda: slots(far, "granted") == 0)


def test_what_is_added_after_close_is_attended_to(pool, arena, stream, request):
    released = threading.Event()

    class Lease:
        def unpin_all(self, pins):
            released.set()

    in_flight = _gpu_copies.InFlight(Gpu())
    in_flight.close()
    event = Event()
    with Gpu().current():
        event.record(stream)
    in_flight.hold(event, Lease(), [])
    assert released.wait(5)
    eventually(lambda: in_flight._thread is None)


def test_pins_are_kept_while_another_thread_captures(far, pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    stream.open.clear()
    arena.load({0: name})
    assert not arena._in_flight.release()  # in this thread
    time.sleep(0.02)
    assert slots(far, "pinned") == 1
    stream.open.set()
    stream.synchronize()
    eventually(lambda: slots(far, "pinned") == 0)


def test_pins_go_back_whether_the_arenas_thread_sleeps_or_not(far, pool, arena, stream, request, monkeypatch):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    for linger_s in (0.0, 600.0):
        monkeypatch.setattr(_gpu_copies, "LINGER_S", linger_s)
        for _ in range(3):
            arena.load({0: name})
            eventually(lambda: slots(far, "pinned") == 0)
            if not linger_s:
                eventually(lambda: arena._in_flight._sleeps)
    assert not arena._in_flight._sleeps


def test_a_load_gives_back_the_pins_of_others_when_there_are_many(far, pool, arena, stream, request, monkeypatch):
    name = request.node.name
    for i in range(3):
        pool.set(f"{name}/{i}", image(i), 1, layout=LAYOUT)
    monkeypatch.setattr(_gpu_copies, "PINS_MAX", 3)
    monkeypatch.setattr(arena._in_flight, "_wake", lambda: None)  # there is no thread
    arena.load({0: f"{name}/0", 1: f"{name}/1"})
    arena.load({2: f"{name}/2"})
    stream.synchronize()
    assert slots(far, "pinned") == 3
    arena.load({3: f"{name}/2"})
    eventually(lambda: slots(far, "pinned") == 1)
    stream.synchronize()
    assert arena._in_flight.release()


def test_errors_of_a_store_come_with_wait(pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    with pytest.raises(statepool.Conflict) as error:
        arena.store_async({0: StoreItem(name, whole_row=True, if_revision=0)}, position=2).wait()
    assert error.value.reason == "REVISION_MISMATCH" and error.value.metadata["row"] == "0"
    handle = arena.store_async({0: StoreItem(name, whole_row=True, if_revision=0)}, position=2, return_errors=True)
    assert isinstance(handle.wait()[0], statepool.Conflict)
    with pytest.raises(statepool.InvalidArgument):
        arena.store_async({0: name})  # without a position
    handle = arena.store_async({7: StoreItem(name, whole_row=True)}, position=2)
    with pytest.raises(statepool.InvalidArgument) as error:
        handle.wait()
    assert error.value.reason == "ROW_OUT_OF_RANGE"


def test_a_stream_that_is_given_is_the_one(pool, arena, stream, request):
    name, other = request.node.name, Stream()
    stream.open.clear()
    write(arena, other, 0, image(4))
    arena.store({0: StoreItem(name, whole_row=True)}, position=1, stream=other)
    arena.load({1: name}, stream=other)
    other.synchronize()
    assert read(arena, 1) == bytes(pool.get(name).data) == image(4)


def test_a_shortage_of_slots_leaves_it_to_the_daemon(pool, arena, stream, request, monkeypatch):
    name = request.node.name
    write(arena, stream, 0, image(6))
    monkeypatch.setattr(_direct.Lease, "take_grants", lambda *_: [])
    handle = arena.store_async({0: StoreItem(name, whole_row=True)}, position=1)
    assert handle.done() and handle.wait()[0].position == 1 and bytes(pool.get(name).data) == image(6)
    monkeypatch.setattr(_direct.Lease, "pin_all", lambda self, slots, nbytes, device: [None] * len(slots))
    assert arena.load({3: name})[3].copied and read(arena, 3) == image(6)


def test_close_finishes_what_began(far, pool, stream, request):
    name = request.node.name
    arena = pool.open_arena(LAYOUT, rows=2, direct=True)
    write(arena, stream, 0, image(7))
    handle = arena.store_async({0: StoreItem(name, whole_row=True)}, position=1)
    arena.load({1: _other(pool, name)})
    arena.close()
    assert handle.done() and handle.wait()[0].position == 1 and bytes(pool.get(name).data) == image(7)
    eventually(lambda: slots(far, "pinned") == 0)
    with pytest.raises(statepool.Conflict):
        arena.store_async({0: name}, position=2).wait()


def _other(pool, name):
    pool.set(f"{name}/other", image(8), 1, layout=LAYOUT)
    return f"{name}/other"


def test_reopen_finishes_what_began_and_the_addresses_stay(pool, arena, stream, request):
    name = request.node.name
    address = arena.layer("ssm", 0).ctypes.data
    write(arena, stream, 0, image(7))
    handle = arena.store_async({0: StoreItem(name, whole_row=True)}, position=1)
    arena.reopen()
    assert handle.wait()[0].position == 1 and not any(read(arena, 0))
    arena.load({1: name})
    stream.synchronize()
    assert read(arena, 1) == image(7) and arena.layer("ssm", 0).ctypes.data == address


def test_a_store_that_the_daemons_end_overtakes_says_that_the_contents_are_gone(tmp_path, stream):
    daemon = Daemon(tmp_path, "--direct", "--devices=far").start()
    try:
        with statepool.connect(daemon.unix_address) as pool:
            pool.register_layout(LAYOUT)
            arena = pool.open_arena(LAYOUT, rows=2, direct=True)
            pool.set("kept", image(1), 1, layout=LAYOUT, durability="sync")
            stream.open.clear()
            handle = arena.store_async({0: StoreItem("lost", whole_row=True)}, position=1)
            daemon.kill()
            daemon.start()
            stream.open.set()
            with pytest.raises(statepool.ContentsGone):
                handle.wait()
            arena.load({1: "kept"})  # this thread was told
            stream.synchronize()
            assert read(arena, 1) == image(1)
            with pytest.raises(statepool.NotFound):
                pool.get("lost")
            arena.close()
    finally:
        daemon.stop()


def test_the_arenas_own_thread_does_not_open_it_again(tmp_path, stream):
    daemon = Daemon(tmp_path, "--direct", "--devices=far").start()
    try:
        with statepool.connect(daemon.unix_address) as pool:
            pool.register_layout(LAYOUT)
            arena = pool.open_arena(LAYOUT, rows=2, direct=True)
            pool.set("kept", image(1), 1, layout=LAYOUT, durability="sync")
            stream.open.clear()
            handle = arena.store_async({0: StoreItem("lost", whole_row=True)}, position=1)
            daemon.kill()
            daemon.start()
            stream.open.set()
            eventually(handle.done)  # in that thread
            assert len(arena._memory.threads) == 1
            for _ in range(2):
                with pytest.raises(statepool.ContentsGone):
                    handle.wait()
            assert set(arena._memory.threads) == {threading.current_thread()} and len(arena._memory.threads) > 1
            arena.load({1: "kept"})  # this thread was told
            stream.synchronize()
            assert read(arena, 1) == image(1)
            arena.close()
    finally:
        daemon.stop()


def test_nothing_is_enqueued_over_rows_that_are_not_mapped(far, pool, arena, stream, request, monkeypatch):
    name = request.node.name
    with monkeypatch.context() as patch:
        patch.setattr(arenas.Arena, "_open", _refuse_to_open)
        with pytest.raises(statepool.Exhausted):
            arena.reopen()
        with pytest.raises(statepool.Exhausted):
            arena.store({0: StoreItem(name, whole_row=True)}, position=1)
        begun = len(stream.work)
        with pytest.raises(statepool.Exhausted):
            arena.store_async({0: StoreItem(name, whole_row=True)}, position=1).wait()
        assert len(stream.work) == begun
    with pytest.raises(statepool.ContentsGone):
        arena.store({0: StoreItem(name, whole_row=True)}, position=1)
    write(arena, stream, 0, image(3))
    arena.store({0: StoreItem(name, whole_row=True)}, position=1)
    assert bytes(pool.get(name).data) == image(3)


def _refuse_to_open(arena, attempts):
    raise errors.made("RESOURCE_EXHAUSTED", "HOT_FULL", "no room")


def test_threads_share_an_arena(pool, arena, stream, request):
    name, failed = request.node.name, []

    def work(row):
        try:
            own = Stream()
            for i in range(20):
                write(arena, own, row, image(row * 100 + i))
                handle = arena.store_async({row: StoreItem(f"{name}/{row}", whole_row=True, any_revision=True)}, position=i, stream=own)
                if i % 2:
                    handle.wait()
                write(arena, own, row, bytes(LAYOUT.state_bytes))
                if i % 5 == 4:
                    arena.load({row: f"{name}/{row}"}, stream=own)
                    own.synchronize()
                    assert i % 2 == 0 or read(arena, row) == image(row * 100 + i)
            handle.wait()
            assert bytes(pool.get(f"{name}/{row}").data) == image(row * 100 + 19)
        except Exception as failure:
            failed.append(failure)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_an_arena_that_is_dropped_takes_its_thread_along(pool, stream, request):
    arena = pool.open_arena(LAYOUT, rows=2, direct=True)
    arena.store_async({0: StoreItem(request.node.name, whole_row=True)}, position=1).wait()
    thread = arena._in_flight._thread
    assert thread.is_alive()
    del arena
    gc.collect()
    eventually(lambda: not thread.is_alive())


def test_a_copy_that_the_gpu_refuses_stores_nothing_and_gives_the_slots_back(far, pool, arena, stream, request, monkeypatch):
    def refuse(*_):
        raise _kernels.DeviceFailed("an illegal address")

    monkeypatch.setattr(Plan, "scatter", refuse)
    with pytest.raises(errors.StatepoolError) as error:
        arena.store_async({0: StoreItem(request.node.name, whole_row=True)}, position=1).wait()
    assert error.value.reason == "GPU_FAILED"
    eventually(lambda: slots(far, "granted") == 0)


def test_a_copy_that_is_partly_under_way_is_waited_for(far, pool, arena, stream, request, monkeypatch):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    given_back = []
    for method in ("give_back", "unpin_all"):
        then = getattr(_direct.Lease, method)
        monkeypatch.setattr(_direct.Lease, method, lambda lease, held, then=then: (given_back.append(stream.done == len(stream.work)), then(lease, held)))
    settled = _direct.Pin.__del__
    monkeypatch.setattr(_direct.Pin, "__del__", lambda pin: (given_back.append(stream.done == len(stream.work)), settled(pin)))

    def refuse(*_):
        raise RuntimeError("no event")

    monkeypatch.setattr(_gpu_copies.Copies, "_event", refuse)
    for call in (lambda: arena.load({1: name}), lambda: arena.store_async({0: StoreItem(name, whole_row=True)}, position=2).wait()):
        stream.open.clear()
        threading.Timer(0.1, stream.open.set).start()
        with pytest.raises(errors.StatepoolError) as error:
            call()
        assert error.value.reason == "GPU_FAILED"
        del error
    gc.collect()
    assert len(given_back) >= 2 and all(given_back)
    eventually(lambda: slots(far, "granted") == slots(far, "pinned") == 0)


def test_a_stream_that_is_being_captured_is_refused_before_anything_is_asked_for(far, pool, arena, stream, request, monkeypatch):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    other, asked = Stream(), []
    call = pool._connection.call
    with monkeypatch.context() as patch:
        patch.setattr(pool._connection, "call", lambda method, *arguments: (asked.append(method), call(method, *arguments))[1])
        stream.capturing = True
        for refused in (arena.load, arena.store, arena.store_async):
            with pytest.raises(statepool.Conflict) as error:
                refused({0: name}, *([2] if refused != arena.load else []))
            assert error.value.reason == "STREAM_CAPTURING"
        assert not asked and not stream.work
        assert arena.load({0: name}, stream=other)[0].copied and "Load" in asked
    stream.capturing = False
    other.synchronize()
    assert read(arena, 0) == image(1)


def test_slots_of_a_store_that_failed_go_back(far, pool, arena, stream, request, monkeypatch):
    def store():
        arena.store_async({0: StoreItem(request.node.name, whole_row=True)}, position=1).wait()

    with monkeypatch.context() as patch:
        patch.setattr(Event, "failure", RuntimeError("an illegal address"))
        with pytest.raises(errors.StatepoolError) as error:
            store()
        assert error.value.reason == "GPU_FAILED"
    eventually(lambda: slots(far, "granted") == 0)
    call = pool._connection.call

    def refuse(method, *arguments):
        if method == "Store":  # before it looked at the slots
            raise errors.made("RESOURCE_EXHAUSTED", "QUEUE_FULL", "too many calls")
        return call(method, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pool._connection, "call", refuse)
        with pytest.raises(statepool.Exhausted):
            store()
    eventually(lambda: slots(far, "granted") == 0)
    store()


def test_gets_and_sets_leave_the_lease_out(far, pool, arena, request):
    name = request.node.name
    pool.set(name, image(3), 1, layout=LAYOUT)
    assert bytes(pool.get(name, copy=False).data) == image(3) and slots(far, "pinned") == 0
