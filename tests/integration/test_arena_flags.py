# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Flag words as any process sees them: calls that wait for words which the test sets, workers that die, hang and lie meanwhile, a daemon that stops.

Through stock generated stubs and a plain socket. What the Python package makes of them: test_python_flags.py."""
import contextlib
import fcntl
import json
import mmap
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

import test_arena_socket as plain
from daemon_process import Daemon, eventually
from test_arena_socket import BYTES
from wire import details_of, status_of

FAILURES = 0


class Worker(plain.Client):
    """A client with an arena, its rows and its words."""

    def __init__(self, stubs, daemon, rows=4):
        super().__init__(stubs, daemon)
        self.stack = contextlib.ExitStack()
        self.arena = self.stub.OpenArena(self.pb.OpenArenaRequest(layout="m", rows=rows, with_flags=True,
                                                                  view=self.pb.View(layers=self.pb.View.ROW_MAJOR)), timeout=30)
        self.lease = self.stack.enter_context(plain.connect(self.arena))
        self.lease.send(self.arena.token)
        text, (memory, words), _, _ = socket.recv_fds(self.lease, 4096, 4)
        self.told, self.words_fd = json.loads(text), words
        self.rows = np.frombuffer(mmap.mmap(memory, self.arena.bytes), np.uint8)
        self.words = np.frombuffer(mmap.mmap(words, self.told["flag_bytes"]), np.uint32)
        self.stack.callback(os.close, words)
        os.close(memory)

    def close(self):
        self.stack.close()
        self.channel.close()

    def row(self, row):
        at = self.arena.tensors[0].offset + row * self.arena.tensors[0].strides[0]
        return self.rows[at:at + BYTES]

    def flags(self, after=None, done=None):
        return {name: self.pb.FlagValue(word=at[0], value=at[1]) for name, at in (("after", after), ("done", done)) if at}

    def load_with(self, name, row=0, timeout=30, **flags):
        """The future of it."""
        return self.stub.Load.future(self.pb.LoadRequest(arena=self.arena.arena, items=[
            self.pb.LoadItem(row=row, name=self.pb.NameRef(sequence=name))], **self.flags(**flags)), timeout=timeout)

    def store_with(self, name, row=0, position=1, timeout=30, whole_row=True, **flags):
        return self.stub.Store.future(self.pb.StoreRequest(arena=self.arena.arena, items=[self.pb.StoreItem(
            row=row, sequence=name, position=position, whole_row=whole_row, any_revision=True,
            options=self.pb.NameOptions(durability=self.pb.VOLATILE))], **self.flags(**flags)), timeout=timeout)

    def get(self, name):
        return self.stub.Get(self.pb.GetRequest(name=self.pb.NameRef(sequence=name)), timeout=30).data

    def set_word(self, word, value):
        self.words[word] = value

    def reaches(self, word, value):
        eventually(lambda: (int(self.words[word]) - value) % 2**32 < 2**31)


def metric(daemon, name):
    with urllib.request.urlopen(f"http://{daemon.ready['metrics']}/metrics") as scrape:
        return int(float(re.search(rf"^{re.escape(name)} (\S+)$", scrape.read().decode(), re.M)[1]))


def reason_of(failure):
    return details_of(status_of(failure), error_details_pb2.ErrorInfo)[0].reason


def refused(future):
    """The reason."""
    error = future.exception(timeout=30)
    assert error is not None, "it was done"
    return reason_of(error)


def stored(future):
    answer = future.result(timeout=30)
    assert not answer.rows[0].HasField("error"), answer
    return answer.rows[0].info


@pytest.fixture
def daemon(tmp_path):
    daemon = Daemon(tmp_path, "--flush-interval=1h", "--executor-threads=4").start()
    yield daemon
    if daemon.process is not None:
        daemon.stop()


@pytest.fixture
def workers(stubs, daemon):
    with contextlib.ExitStack() as stack:
        def make(**options):
            worker = Worker(stubs, daemon, **options)
            stack.callback(worker.close)
            return worker
        yield make


def test_words_come_only_when_they_are_asked_for_and_nobody_can_shrink_them(stubs, daemon, workers):
    worker = workers()
    assert worker.told["flag_bytes"] == 4 * worker.arena.flag_words == os.fstat(worker.words_fd).st_size
    seals = fcntl.fcntl(worker.words_fd, plain.F_GET_SEALS)
    assert seals & (plain.SEAL_SHRINK | plain.SEAL_GROW) == plain.SEAL_SHRINK | plain.SEAL_GROW
    assert not worker.words.any()
    old = plain.Client(stubs, daemon)
    arena = old.open()
    assert arena.flag_words == 0
    with plain.mapped(arena):  # which wants one descriptor
        answer = old.stub.Load.future(old.pb.LoadRequest(arena=arena.arena, done=old.pb.FlagValue(word=1, value=1), items=[
            old.pb.LoadItem(row=0, name=old.pb.NameRef(sequence="a"))]))
        assert refused(answer) == "INVALID_OPTION"
    old.channel.close()


def test_stores_and_loads_are_in_the_order_of_their_words(workers):
    worker = workers()
    worker.set("b", 2)
    worker.row(0)[:] = 1
    store = worker.store_with("a", after=(1, 1), done=(2, 1))
    loaded = worker.load_with("b", after=(3, 1), done=(4, 1)).result(timeout=30).rows[0]
    assert loaded.info.position == 1 and loaded.copied
    time.sleep(0.05)
    assert not store.done() and worker.row(0)[0] == 1 and worker.words[2] == 0
    worker.set_word(1, 1)
    worker.reaches(2, 1)
    stored(store)
    assert worker.get("a") == b"\x01" * BYTES
    worker.row(0)[:] = 9
    worker.set_word(3, 1)
    worker.reaches(4, 1)
    assert (worker.row(0) == 2).all()
    stored(worker.store_with("b", position=2, whole_row=False, done=(2, 2)))
    assert worker.words[2] == 2 and worker.words[FAILURES] == 0


def test_words_wrap_around(workers):
    worker = workers()
    worker.set("b", 2)
    worker.words[1] = worker.words[2] = 0xFFFFFFFE
    for value in (0xFFFFFFFF, 0, 1):
        worker.row(0)[:] = 0
        worker.load_with("b", after=(1, value), done=(2, value)).result(timeout=30)
        time.sleep(0.01)
        assert worker.row(0)[0] == 0
        worker.set_word(1, value)
        eventually(lambda: worker.words[2] == value)
        assert (worker.row(0) == 2).all()


def test_calls_that_wait_hold_no_thread_and_there_are_so_many(daemon, workers):
    worker, other = workers(), workers()
    limit = worker.stub.GetCapabilities(worker.pb.GetCapabilitiesRequest()).max_arena_flag_waits
    waiting = [worker.store_with(f"never/{i}", after=(1, 1), timeout=100) for i in range(limit)]
    eventually(lambda: metric(daemon, "statepool_arena_flag_waits") == limit)
    assert refused(worker.store_with("one more", after=(1, 1), done=(2, 1))) == "QUEUE_FULL"
    worker.reaches(2, 1)
    # The daemon has four threads.
    other.set("b", 3)
    assert other.get("b") == b"\x03" * BYTES
    other.load_with("b", done=(2, 1)).result(timeout=30)
    other.reaches(2, 1)
    stored(worker.store_with("without words"))
    worker.set_word(1, 1)
    for store in waiting:
        stored(store)


def test_one_that_never_reaches_its_words_does_not_slow_down_another(workers):
    hung, worker = workers(), workers()
    worker.set("b", 4)

    def round_trip_s(i):
        start = time.perf_counter()
        worker.set_word(1, i)
        worker.load_with("b", after=(1, i), done=(2, i)).result(timeout=30)
        while worker.words[2] != i:
            pass
        stored(worker.store_with("c", after=(1, i), done=(3, i)))
        return time.perf_counter() - start

    alone = statistics.median(round_trip_s(i) for i in range(1, 101))
    waiting = [hung.store_with(f"never/{i}", after=(1, 1), timeout=100) for i in range(30)]
    loads = [hung.load_with("b", after=(1, 1), done=(2, 1), timeout=100).result(timeout=30) for _ in range(30)]
    beside = statistics.median(round_trip_s(i) for i in range(101, 201))
    assert len(loads) == 30 and not any(store.done() for store in waiting)
    assert beside < 3 * alone + 0.002, f"{1e3 * alone:.2f} ms alone, {1e3 * beside:.2f} ms beside one that hangs"


def test_what_is_late_or_cancelled_stores_nothing_and_lets_go(daemon, workers):
    worker = workers()
    worker.set("b", 2)
    worker.load(worker.arena, "b", row=0)
    late = worker.store_with("late", after=(1, 1), done=(2, 1), timeout=0.2)
    given_up = worker.store_with("given up", after=(1, 1), done=(3, 1))
    load = worker.load_with("b", row=0, after=(1, 1), done=(4, 1), timeout=0.3)
    assert load.result(timeout=30).rows[0].copied
    assert late.exception(timeout=30).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    given_up.cancel()
    for word in (2, 3, 4):
        worker.reaches(word, 1)
    assert worker.words[FAILURES] == 1
    eventually(lambda: metric(daemon, "statepool_arena_late_failures_total") == 1)
    eventually(lambda: metric(daemon, "statepool_arena_flag_pinned_bytes") == 0)
    worker.set_word(1, 1)
    answer = worker.store_with("b", position=2, whole_row=False).result(timeout=30)
    assert "ROW_NOT_LOADED" in str(answer.rows[0].error)
    for name in ("late", "given up"):
        with pytest.raises(grpc.RpcError) as missing:
            worker.get(name)
        assert reason_of(missing.value) == "NEVER_CREATED"


def test_wrong_words_are_refused(workers):
    worker = workers()
    worker.set("b", 2)
    for word in (0, worker.arena.flag_words, 2**32 - 1):
        assert refused(worker.load_with("b", after=(word, 1), done=(1, 1))) == "INVALID_OPTION"
        assert refused(worker.store_with("b", done=(word, 1))) == "INVALID_OPTION"
    stored(worker.store_with("a"))


CHILD = """
import sys, types
sys.path[:0] = {path!r}
from statepool.v1 import statepool_pb2, statepool_pb2_grpc
import test_arena_flags as flags

worker = flags.Worker(types.SimpleNamespace(pb=statepool_pb2, grpc=statepool_pb2_grpc), types.SimpleNamespace(address={address!r}))
store = worker.store_with("never", after=(1, 1), done=(2, 1))
load = worker.load_with("b", after=(1, 1), done=(3, 1)).result(timeout=30)
print("waiting", flush=True)
store.result()
"""


@contextlib.contextmanager
def another_process(stubs, daemon, code):
    path = [str(pathlib.Path(stubs.pb.__file__).parents[2]), str(pathlib.Path(__file__).parent)]
    child = subprocess.Popen([sys.executable, "-c", code.format(path=path, address=daemon.address)], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"waiting\n"
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_worker_that_dies_or_hangs_while_its_calls_wait_holds_nothing_up(stubs, daemon, workers, how):
    other = workers()
    other.set("b", 2)
    with another_process(stubs, daemon, CHILD) as child:
        eventually(lambda: metric(daemon, "statepool_arena_flag_waits") == 2 and metric(daemon, "statepool_arena_flag_pinned_bytes") == BYTES)
        os.kill(child.pid, how)
        other.load_with("b", done=(1, 1)).result(timeout=30)
        other.reaches(1, 1)
        stored(other.store_with("c", done=(1, 2)))
        if how == signal.SIGKILL:
            for name, value in (("arena_flag_waits", 0), ("arena_flag_pinned_bytes", 0), ('arenas{state="quarantined"}', 0), ('arenas{state="leased"}', 1)):
                eventually(lambda: metric(daemon, f"statepool_{name}") == value)
    eventually(lambda: metric(daemon, "statepool_arena_flag_waits") == 0)
    with pytest.raises(grpc.RpcError):
        other.get("never")


def test_closing_the_arena_ends_what_waits(daemon, workers):
    worker = workers()
    worker.set("b", 2)
    store = worker.store_with("never", after=(1, 1), done=(2, 1))
    worker.load_with("b", after=(1, 1), done=(3, 1)).result(timeout=30)
    eventually(lambda: metric(daemon, "statepool_arena_flag_waits") == 2)
    assert plain.Client.close(worker, worker.arena)
    assert refused(store) == "ARENA_UNKNOWN"
    worker.reaches(2, 1)
    worker.reaches(3, 1)
    eventually(lambda: metric(daemon, "statepool_arena_flag_pinned_bytes") == 0)


def test_a_daemon_that_is_told_to_stop_waits_for_no_word(daemon, workers):
    worker = workers()
    worker.set("b", 2)
    store = worker.store_with("never", after=(1, 1), done=(2, 1), timeout=100)
    worker.load_with("b", after=(1, 1), done=(3, 1)).result(timeout=30)
    eventually(lambda: metric(daemon, "statepool_arena_flag_waits") == 2)
    start = time.monotonic()
    daemon.stop()
    assert time.monotonic() - start < 5
    assert refused(store) == "DRAINING"
    assert worker.words[2] == 1 and worker.words[3] == 1 and worker.words[FAILURES] == 1


def test_after_kill_9_a_worker_is_on_its_own_and_the_next_daemon_knows_nothing(daemon, workers):
    worker = workers()
    worker.set("b", 2)
    store = worker.store_with("never", after=(1, 1), done=(2, 1), timeout=100)
    worker.load_with("b", after=(1, 1), done=(3, 1)).result(timeout=30)
    daemon.kill()
    assert store.exception(timeout=30).code() == grpc.StatusCode.UNAVAILABLE
    assert worker.lease.recv(100) == b"", "the connection tells it"
    assert worker.words[2] == worker.words[3] == 0
    daemon.start()
    assert metric(daemon, "statepool_arena_flag_waits") == 0


def test_words_that_change_at_random_spoil_nobody_elses_states(workers):
    liar, worker = workers(), workers()
    worker.set("b", 5)
    stop = threading.Event()

    def lie():
        random = np.random.default_rng(1)
        while not stop.is_set():
            liar.words[:] = random.integers(0, 2**32, liar.words.size, np.uint32)
            time.sleep(0.0005)

    thread = threading.Thread(target=lie)
    thread.start()
    try:
        for i in range(100):
            liar.load_with("b", row=i % 4, after=(1 + i, 1 << 31), done=(1 + i, i), timeout=0.5).exception(timeout=30)
            liar.store_with(f"liar/{i % 3}", row=i % 4, after=(5, i), done=(6, i), timeout=0.5).exception(timeout=30)
            worker.load_with("b", done=(1, i + 1)).result(timeout=30)  # the word is 0 before
            worker.reaches(1, i + 1)
            assert (worker.row(0) == 5).all()
            stored(worker.store_with("mine", position=i))
    finally:
        stop.set()
        thread.join()
    assert worker.get("b") == worker.get("mine") == b"\x05" * BYTES
