# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Flag words as the Python package uses them, over a made-up GPU: the daemon's FarDevice, mapped as the host's memory, and streams that do what they were
told when a test lets them, and wait for words. Real ones: tests/gpu."""
import contextlib
import ctypes
import mmap
import os
import pathlib
import random
import re
import signal
import threading
import time
import types
import urllib.request

import numpy as np
import pytest

import statepool
from daemon_process import Daemon, eventually
from statepool import StoreItem, _cuda, _flags, _kernels, _mapping, arenas, errors
from test_python_gpu_copies import LAYOUT, Gpu, Range, Stream, image, put, read, write

pytestmark = pytest.mark.skipif(not _kernels.available, reason="the kernels' library does the copies of the made-up GPU")


class Words:
    """What _cuda.GpuWords is."""

    failures = 0  # so many writes and waits fail

    def __init__(self, fd, nbytes):
        self.memory = mmap.mmap(fd, nbytes)
        self.words = np.frombuffer(self.memory, np.uint32)
        self.count = self.words.size
        self.closed = False

    def get(self, word):
        return int(self.words[word])

    def set(self, word, value):
        self.words[word] = value

    def write(self, stream, word, value):
        self.check()
        stream.enqueue(lambda: self.set(word, value))

    def wait(self, stream, word, value):
        self.check()

        def work():
            while ctypes.c_int32(self.get(word) - value).value < 0:
                assert not self.closed, "a stream waits for words that are unmapped"
                time.sleep(0.0001)

        stream.enqueue(work)

    def check(self):
        assert not self.closed
        if Words.failures:
            Words.failures -= 1
            raise errors.made("UNKNOWN", "GPU_FAILED", "made up")

    def close(self):
        for stream in list(Gpu.streams.values()):
            stream.synchronize()
        self.closed = True


class FlagRange(Range):
    def words(self, fd, nbytes):
        return Words(fd, nbytes)


@pytest.fixture
def stream(monkeypatch):
    Gpu.streams.clear()
    Range.default = Stream()
    monkeypatch.setattr(_mapping, "is_gpu", lambda device: device == "far")
    monkeypatch.setattr(_mapping, "check_memory", lambda fd, nbytes: None)
    monkeypatch.setattr(arenas, "on_host", lambda limits: False)
    monkeypatch.setattr(arenas.Arena, "_range", staticmethod(lambda table, nbytes: FlagRange(nbytes)))
    Stream.failures.clear()
    Words.failures = 0
    yield Range.default
    for each in Gpu.streams.values():
        each.open.set()
        each.synchronize()
    assert not Stream.failures


@pytest.fixture
def far(tmp_path):
    daemon = Daemon(tmp_path, "--devices=far", "--chunk-bytes=65536").start()
    yield daemon
    daemon.stop()


@pytest.fixture
def pool(far, stream):
    with statepool.connect(far.unix_address, timeout=20) as pool:
        pool.register_layout(LAYOUT)
        yield pool


@pytest.fixture
def arena(pool, stream):
    with pool.open_arena(LAYOUT, rows=4, view=statepool.View("row_major")) as arena:
        assert arena._flags is not None and arena._copies is None
        yield arena
        stream.open.set()


def metric(daemon, name):
    with urllib.request.urlopen(f"http://{daemon.ready['metrics']}/metrics") as scrape:
        return int(float(re.search(rf"^{name} (\S+)$", scrape.read().decode(), re.M)[1]))


def test_a_load_returns_before_its_copy_and_the_stream_finds_what_it_loaded(far, pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    write(arena, stream, 0, image(2))
    stream.synchronize()
    stream.open.clear()
    assert arena.load({0: name, 2: name})[2].copied
    seen = []
    stream.enqueue(lambda: seen.append((read(arena, 0), read(arena, 2))))
    time.sleep(0.05)
    assert read(arena, 0) == image(2) and metric(far, "statepool_arena_flag_waits") == 1
    stream.open.set()
    stream.synchronize()
    assert seen == [(image(1), image(1))]
    eventually(lambda: metric(far, "statepool_arena_flag_pinned_bytes") == 0)


def test_what_is_written_after_a_store_began_is_not_stored(pool, arena, stream, request):
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


def test_a_store_waits_for_the_stream_in_the_daemon(pool, arena, stream, request):
    name = request.node.name
    stream.open.clear()
    write(arena, stream, 1, image(1))
    threading.Timer(0.1, stream.open.set).start()
    assert arena.store({1: StoreItem(name, whole_row=True)}, position=5)[1].position == 5
    assert bytes(pool.get(name).data) == image(1)


def test_random_work_in_several_streams_is_in_their_order(pool, arena, stream, request):
    name, seed = request.node.name, 7
    choose = random.Random(seed)
    streams = [stream, Stream()]  # each has two rows of its own
    expected, rows, seen, handles = {}, {}, [], []
    for i in range(150):
        mine = choose.randrange(2)
        row = 2 * mine + choose.randrange(2)
        sequence = f"{name}/{row}"
        what = choose.random()
        if what < 0.4 or row not in rows:
            rows[row] = image(i)
            write(arena, streams[mine], row, rows[row])
        elif what < 0.7:
            handle = arena.store_async({row: StoreItem(sequence, any_revision=True, whole_row=True)}, position=i, stream=streams[mine])
            handles.append(handle)
            expected[sequence] = (i, rows[row])
            if choose.random() < 0.3:
                handle.wait()
        elif sequence in expected:
            arena.load({row: sequence}, stream=streams[mine])
            rows[row] = expected[sequence][1]
            streams[mine].enqueue(lambda row=row, state=rows[row]: seen.append(read(arena, row) == state))
        if choose.random() < 0.1:  # a stream that is behind
            streams[mine].open.clear()
            threading.Timer(0.02, streams[mine].open.set).start()
    for handle in handles:
        handle.wait()
    for each in streams:
        each.synchronize()
    assert len(seen) > 10 and all(seen)
    for sequence, (position, state) in expected.items():
        got = pool.get(sequence)
        assert (got.position, bytes(got.data)) == (position, state)


def test_a_store_of_what_was_just_loaded_has_its_base(pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    for i in range(20):
        arena.load({0: name})
        write(arena, stream, 0, image(i))
        handle = arena.store_async({0: name}, position=2 + i)  # on the revision that was loaded
    assert handle.wait()[0].position == 21
    arena.load({1: name})
    stream.synchronize()
    assert read(arena, 1) == image(19)


def test_items_that_fail_do_not_hold_up_the_stream(pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    results = arena.load({0: name, 1: f"{name}/none"}, return_errors=True)
    assert results[0].position == 1 and isinstance(results[1], statepool.NotFound)
    with pytest.raises(statepool.NotFound):
        arena.load({0: f"{name}/none"})
    with pytest.raises(statepool.Conflict, match="ROW_NOT_LOADED"):
        arena.store_async({2: name}, position=2).wait()
    with pytest.raises(statepool.InvalidArgument, match="ROW_OUT_OF_RANGE"):
        arena.load({9: name})
    stream.synchronize()
    assert read(arena, 0) == image(1)
    arena.load({2: name})
    assert arena._flags._busy[-1].is_load


def test_pairs_are_used_again_and_wrap_around(pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    flags = arena._flags
    while len(flags._free) > 2:
        flags._free.pop()
    for pair in flags._free:
        flags._values[pair] = 0xFFFFFFFD
        flags._words.set(pair, 0xFFFFFFFD)
        flags._words.set(pair + 1, 0xFFFFFFFD)
    for i in range(12):
        arena.load({0: name})
        assert arena._flags._busy, "it went without words"
        stream.synchronize()
    assert {flags._values[pair] for pair in flags._values} <= {2, 3, 4}
    assert read(arena, 0) == image(1)


def test_without_a_free_pair_the_cpu_waits(pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    arena._flags._free.clear()
    stream.open.clear()
    write(arena, stream, 0, image(2))
    threading.Timer(0.1, stream.open.set).start()
    arena.load({0: name})
    assert stream.open.is_set() and read(arena, 0) == image(1) and not arena._flags._busy


def test_what_pins_too_much_is_loaded_without_words(tmp_path, stream, request):
    daemon = Daemon(tmp_path, "--devices=far", "--chunk-bytes=65536", "--hot-bytes=16MiB").start()
    try:
        with statepool.connect(daemon.unix_address) as pool:
            pool.register_layout(LAYOUT)
            assert pool.capabilities().max_flag_pinned_bytes == 2 << 20
            for i in range(6):
                pool.set(f"s/{i}", image(i), 1, layout=LAYOUT)
            with pool.open_arena(LAYOUT, rows=6, view=statepool.View("row_major")) as arena:
                arena.load({i: f"s/{i}" for i in range(6)})
                assert [read(arena, i) for i in range(6)] == [image(i) for i in range(6)]
                assert not [call for call in arena._flags._busy if call.is_load]
                stream.open.clear()
                arena.load({0: "s/1"})
                arena.load({1: "s/2"})
                threading.Timer(0.1, stream.open.set).start()
                arena.load({i: "s/3" for i in range(2, 6)})
                stream.synchronize()
                assert [read(arena, i) for i in range(3)] == [image(1), image(2), image(3)]
    finally:
        daemon.stop()


def test_a_load_that_fails_after_it_returned_is_told_by_the_next_call(far, pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    arena.load({0: name, 1: name})
    stream.synchronize()
    stream.open.clear()
    short = arena._pool
    arena._pool = pool.with_options(timeout=0.3)
    arena.load({0: name, 2: name})
    arena._pool = short
    eventually(lambda: metric(far, "statepool_arena_late_failures_total") == 1)
    stream.open.set()
    stream.synchronize()  # the daemon has let it go
    with pytest.raises(statepool.RowsLost, match="load them again") as raised:
        arena.store({1: name}, position=2)
    assert {0, 2} <= set(raised.value.rows)
    assert arena.store({1: name}, position=2)[1].position == 2
    with pytest.raises(statepool.Conflict, match="ROW_NOT_LOADED"):
        arena.store({0: name}, position=3)
    arena.load({0: name})
    stream.synchronize()
    assert read(arena, 0) == image(1)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_streams_go_on_when_the_daemon_dies_or_stops(far, pool, arena, stream, request, how):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    other = Stream()
    other.open.clear()
    arena.load({0: name}, stream=other)  # answered, and waits for its stream
    handle = arena.store_async({1: StoreItem(f"{name}/b", whole_row=True)}, position=1, stream=other)
    time.sleep(0.05)
    if how == "kill":
        far.kill()
    else:
        began = time.monotonic()
        far.stop()
        assert time.monotonic() - began < 8
    other.open.set()
    other.synchronize()
    with pytest.raises(statepool.errors.StatepoolError) as raised:
        handle.wait()
    assert raised.value.code in ("UNAVAILABLE", "ABORTED")
    far.start()
    with pytest.raises((statepool.ContentsGone, statepool.RowsLost)):
        arena.load({0: name})
    with contextlib.suppress(statepool.ContentsGone):
        arena.load({0: name}) if how == "stop" else None
    pool.set(f"{name}/c", image(3), 1, layout=LAYOUT)
    arena.load({0: f"{name}/c"})
    stream.synchronize()
    assert read(arena, 0) == image(3) and arena._flags is not None


def test_a_daemon_that_hangs_holds_streams_for_a_bounded_time(far, pool, arena, stream, request, monkeypatch):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    monkeypatch.setattr(_flags, "GRACE_S", 0.2)
    arena._pool = pool.with_options(timeout=0.5)
    stream.open.clear()
    arena.load({0: name})
    os.kill(far.process.pid, signal.SIGSTOP)
    try:
        eventually(lambda: all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in pathlib.Path(f"/proc/{far.process.pid}/task").glob("*/stat")))
        stream.open.set()
        stream.synchronize()
    finally:
        os.kill(far.process.pid, signal.SIGCONT)
    arena._pool = pool
    # The daemon finds by itself that it is late: what it counts after this side has told of it would be told again.
    eventually(lambda: arena._flags._words.get(_flags._FAILURES) == 1)
    with pytest.raises(statepool.RowsLost):
        arena.load({0: name})
    arena.load({0: name})
    stream.synchronize()
    assert read(arena, 0) == image(1)


def test_close_and_reopen_let_streams_go(pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    other = Stream()
    other.open.clear()
    arena.load({0: name}, stream=other)
    threading.Timer(0.1, other.open.set).start()
    first = arena._flags
    arena.reopen()
    assert first._words.closed and arena._flags is not first
    arena.load({0: name})
    stream.synchronize()
    assert read(arena, 0) == image(1)
    other.open.clear()
    arena.load({1: name}, stream=other)
    threading.Timer(0.1, other.open.set).start()
    arena.close()
    other.synchronize()


def test_an_arena_that_is_only_dropped_lets_its_streams_go(pool, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    arena = pool.open_arena(LAYOUT, rows=2)
    stream.open.clear()
    arena.load({0: name})
    stream.open.set()
    del arena
    stream.synchronize()


def test_what_a_gpu_refuses_is_an_error_and_leaves_nothing(pool, arena, stream, request):
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)
    Words.failures = 1
    with pytest.raises(statepool.errors.StatepoolError, match="GPU_FAILED"):
        arena.load({0: name})
    with pytest.raises(statepool.errors.StatepoolError, match="GPU_FAILED"):
        Words.failures = 1
        arena.store_async({0: StoreItem(name, whole_row=True)}, position=2).wait()
    stream.synchronize()
    arena.load({0: name})
    stream.synchronize()
    assert read(arena, 0) == image(1)


def test_a_captured_stream_is_refused_before_anything_is_written(pool, arena, stream, request):
    pool.set(request.node.name, image(1), 1, layout=LAYOUT)
    stream.capturing = True
    pieces = len(stream.work)
    for call in (lambda: arena.load({0: request.node.name}), lambda: arena.store_async({0: request.node.name}, position=1)):
        with pytest.raises(statepool.Conflict, match="STREAM_CAPTURING"):
            call()
    assert len(stream.work) == pieces
    stream.capturing = False


@pytest.mark.parametrize("without", ["daemon", "gpu"])
def test_without_words_the_cpu_waits(pool, stream, monkeypatch, request, without):
    """As with a daemon that does not know with_flags, or a GPU that can't have them."""
    name = request.node.name
    pool.set(name, image(1), 1, layout=LAYOUT)

    def none(*_):
        raise errors.made("FAILED_PRECONDITION", "MAPPING_FAILED", "made up")

    if without == "daemon":
        monkeypatch.setattr(arenas, "on_host", lambda limits: True)
    else:
        monkeypatch.setattr(FlagRange, "words", none)
    with pool.open_arena(LAYOUT, rows=2, view=statepool.View("row_major")) as arena:
        assert arena._flags is None and bool(arena._table.flag_words) == (without == "gpu")
        stream.open.clear()
        write(arena, stream, 1, image(2))
        threading.Timer(0.1, stream.open.set).start()
        arena.load({0: name})
        assert stream.open.is_set() and read(arena, 0) == image(1) and read(arena, 1) == image(2)
        put(arena, 1, image(3))
        assert arena.store_async({1: StoreItem(name, whole_row=True, any_revision=True)}, position=3).done()
    assert bytes(pool.get(name).data) == image(3)


class Driver:
    """Of CUDA, as far as GpuWords needs it."""

    CU_MEMHOSTREGISTER_PORTABLE, CU_MEMHOSTREGISTER_DEVICEMAP = 1, 2
    CUresult = types.SimpleNamespace(CUDA_SUCCESS=0, CUDA_ERROR_OUT_OF_MEMORY=2)
    CUdevice_attribute = types.SimpleNamespace(CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS="ops", CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED="host")
    CUstreamWriteValue_flags = types.SimpleNamespace(CU_STREAM_WRITE_VALUE_DEFAULT=0)
    CUstreamWaitValue_flags = types.SimpleNamespace(CU_STREAM_WAIT_VALUE_GEQ=0)
    OFFSET = 1 << 40  # of addresses of the GPU

    def __init__(self, lacks=()):
        self.lacks, self.registered, self.calls, self.status = lacks, {}, [], 0

    def cuDeviceGet(self, ordinal):  # noqa: N802
        return 0, ordinal

    def cuDeviceGetAttribute(self, attribute, device):  # noqa: N802
        return 0, int(attribute not in self.lacks)

    def cuMemHostRegister(self, address, nbytes, flags):  # noqa: N802
        assert flags == 3
        self.registered[address] = nbytes
        return (0,)

    def cuMemHostGetDevicePointer(self, address, flags):  # noqa: N802
        return self.status, address + self.OFFSET

    def cuMemHostUnregister(self, address):  # noqa: N802
        assert self.calls and self.calls[-1] == "synchronize" or self.status
        del self.registered[address]
        return (0,)

    def cuCtxSynchronize(self):  # noqa: N802
        self.calls.append("synchronize")
        return (0,)

    def cuStreamWriteValue32(self, *call):  # noqa: N802
        self.calls.append(("write", *call))
        return (self.status,)

    def cuStreamWaitValue32(self, *call):  # noqa: N802
        self.calls.append(("wait", *call))
        return (self.status,)


def words_of(driver):
    """GpuWords, and the daemon's view of them."""
    gpu = types.SimpleNamespace(driver=driver, ordinal=0, name="cuda:GPU-x", current=contextlib.nullcontext)
    gpu.must = lambda name, *arguments: _cuda._result(driver, name, getattr(driver, name)(*arguments))
    fd = os.memfd_create("words")
    os.ftruncate(fd, 4096)
    daemons = np.frombuffer(mmap.mmap(fd, 4096), np.uint32)
    try:
        return _cuda.GpuWords(gpu, fd, 4096), daemons
    finally:
        os.close(fd)


def test_words_are_registered_with_the_gpu_and_written_and_awaited_by_its_addresses():
    driver = Driver()
    words, daemons = words_of(driver)
    (address, nbytes), = driver.registered.items()
    assert words.count == 1024 and nbytes == 4096
    words.set(3, 0xFFFFFFFF)
    assert daemons[3] == 0xFFFFFFFF
    daemons[4] = 5
    assert words.get(4) == 5
    stream = types.SimpleNamespace(cuda_stream=77)
    words.write(stream, 5, 9)
    words.wait(stream, 6, 9)
    assert driver.calls == [("write", 77, address + Driver.OFFSET + 20, 9, 0), ("wait", 77, address + Driver.OFFSET + 24, 9, 0)]
    driver.status = 719
    with pytest.raises(errors.StatepoolError, match="GPU_FAILED"):
        words.write(stream, 5, 10)
    words.close()
    assert not driver.registered


@pytest.mark.parametrize("lacks", ["ops", "host"])
def test_a_gpu_that_can_not_have_words_says_so(lacks):
    with pytest.raises(statepool.Conflict, match="MAPPING_FAILED"):
        words_of(Driver([lacks]))
    driver = Driver()
    driver.status = 1
    with pytest.raises(statepool.Conflict, match="MAPPING_FAILED"):
        words_of(driver)
    assert not driver.registered


def test_an_advance_is_in_the_order_of_the_stream_and_no_cpu_waits(pool, arena, stream):
    write(arena, stream, 0, image(1))
    write(arena, stream, 1, image(2))
    stream.synchronize()
    stream.open.clear()
    write(arena, stream, 0, image(3))
    assert arena.advance({0: statepool.AdvanceItem(1, to_row=1)}) == {0: "moved"}
    write(arena, stream, 0, image(4))  # what the stream does afterwards
    assert read(arena, 1) == image(2)
    stream.open.set()
    stream.synchronize()
    assert read(arena, 1) == image(3) and read(arena, 0) == image(4)
    with pytest.raises(errors.InvalidArgument, match="INVALID_ACCEPTED_LENGTH"):
        arena.advance({0: 2})
    stream.synchronize()
    assert arena.advance({0: 0}, skip_none=True) == {0: "skipped_none"}
    stream.synchronize()
    assert read(arena, 0) == image(4)


def test_an_advance_whose_stream_is_too_late_is_told_by_the_next_call(far, pool, arena, stream):
    write(arena, stream, 0, image(1))
    write(arena, stream, 1, image(2))
    stream.synchronize()
    stream.open.clear()
    with_deadline = pool.with_options(timeout=1)
    arena._pool = with_deadline
    arena.advance({0: statepool.AdvanceItem(1, to_row=1)})
    eventually(lambda: metric(far, "statepool_arena_late_failures_total") == 1)
    with pytest.raises(errors.RowsLost):
        arena.advance({0: 1})
    stream.open.set()
    stream.synchronize()
    assert read(arena, 1) == image(2)
