# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Direct ways, as the Python package goes them, and what the daemon's memory lets a worker do with it, through the raw protocol.

Which way it was, the daemon's metrics and the package's calls say."""
import collections
import concurrent.futures
import contextlib
import ctypes
import ctypes.util
import fcntl
import gc
import mmap
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest

import statepool
from daemon_process import BINARY, DEVICES, Daemon, eventually
from statepool import LoadItem, StoreItem, _direct, _kernels, _mapping, errors
from statepool.layouts import Layout, Tensor
from statepool.v1 import statepool_pb2 as pb
from wire import checksum

LAYOUT = Layout("direct", (
    Tensor("conv", range(3), "bfloat16", {"tap": 3, "channel": 33}, kind="conv"),
    Tensor("ssm", [0, 2], "float32", {"head": 4, "value": 125, "key": 131}, kind="recurrent"),
))
SMALL = Layout("direct-small", [Tensor("x", [0], "uint8", {"a": 1000})])
NBYTES = LAYOUT.state_bytes
assert _direct.SET_BYTES_MIN < NBYTES < 1 << 20
PROT_READ, PROT_WRITE, MAP_SHARED, PAGE = 1, 2, 1, 4096
F_GET_SEALS, SEAL_FUTURE_WRITE = 1034, 0x10

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
MAP_FAILED = ctypes.c_void_p(-1).value


def image(n, layout=LAYOUT):
    return random.Random(n).randbytes(layout.state_bytes)


def address(state):
    return np.asarray(state.data).__array_interface__["data"][0]


def scrape(daemon):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{daemon.ready['metrics']}/metrics") as answer:
        return {series: float(value) for series, value in re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", answer.read().decode(), re.M)}


def slots(daemon, state):
    return scrape(daemon)[f'statepool_direct_slots{{state="{state}"}}']


def mapped_bytes(daemon):
    return scrape(daemon)['statepool_direct_bytes{state="mapped"}']


def transferred(daemon):
    """Bytes that the daemon itself copied between arenas and slots."""
    return sum(v for k, v in scrape(daemon).items() if k.startswith("statepool_transfer_bytes_total") and '"arena"' in k)


@contextlib.contextmanager
def connected(daemon, **options):
    with statepool.connect(daemon.address, **{"timeout": 20, "retries": 2, "arenas": False, **options}) as pool:
        for layout in (LAYOUT, SMALL):
            pool.register_layout(layout, alias=layout.model_id)
        yield pool


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), "--direct=true", "--hot-bytes=512MiB", "--max-granted-bytes=256MiB", "--max-pinned-bytes=512MiB").start()
    yield daemon
    assert daemon.process.poll() is None, f"the daemon died; {daemon.log_tail()}"
    daemon.stop()


@pytest.fixture
def pool(daemon):
    gc.collect()
    eventually(lambda: slots(daemon, "pinned") == 0)  # what earlier tests let go of
    with connected(daemon) as pool:
        yield pool


@pytest.fixture
def inline(daemon):
    """A pool that never goes a direct way."""
    with connected(daemon, direct=False) as pool:
        yield pool


@pytest.fixture
def calls(monkeypatch):
    """How often the package called each method; those with a lease also as "Get+"."""
    made = collections.Counter()
    real = statepool._calls.Connection.call

    def call(self, method, request, *arguments):
        made[method] += 1
        if getattr(request, "lease", "") and method != "Grant":
            made[method + "+"] += 1
        return real(self, method, request, *arguments)

    monkeypatch.setattr(statepool._calls.Connection, "call", call)
    return made


@pytest.fixture
def stock_stays(monkeypatch):
    """However slow the machine is, slots in stock are not given back meanwhile."""
    monkeypatch.setattr(_direct, "STOCK_IDLE_S", 600.0)


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setattr(_kernels, "_library", None)
    monkeypatch.setattr(_kernels, "available", False)


needs_the_library = pytest.mark.skipif(not _kernels.available, reason="without the library of kernels the daemon copies")


def test_the_library_of_kernels_is_there():
    if re.search("^STATEPOOL_SANITIZE:STRING=.", (BINARY.parent / "CMakeCache.txt").read_text(), re.M):
        pytest.skip("a library with a sanitizer can't be loaded into Python, so none is made")
    assert _kernels.available, "ninja statepool_kernels_c"


# ---- views

def test_two_gets_of_one_version_share_the_daemon_s_memory(daemon, pool, name, calls):
    pool.set(name, image(1), 1, layout=LAYOUT)
    first = pool.get(name, copy=False)
    calls.clear()
    moved = scrape(daemon)['statepool_direct_slots_total{state="pinned"}']
    second = pool.get(name, copy=False)
    assert calls == {"Get": 1, "Get+": 1} and scrape(daemon)['statepool_direct_slots_total{state="pinned"}'] == moved + 1
    assert address(first) == address(second) and bytes(second.data) == image(1)
    assert second.tensors["conv"].__array_interface__["data"][0] == address(first)
    assert second.tensors["ssm"].tobytes() == LAYOUT.views(image(1))["ssm"].tobytes()
    first.verify()
    pool.fork(name, name + "/child")
    assert address(pool.get(name + "/child", copy=False)) == address(first), "the same image by another name"
    other = Layout("direct-other", LAYOUT.tensors)
    with pytest.raises(statepool.NotFound) as raised:
        pool.get(name, copy=False, layout=pool.register_layout(other))
    assert raised.value.reason == "LAYOUT_MISMATCH"


def test_a_view_shares_its_pages_with_what_another_process_maps(daemon, pool, name):
    """Bytes that another worker writes to its granted slot after it was told are seen through a view: there is one copy of them."""
    with raw(daemon, pool) as lease:
        slot = lease.grant()
        memory = lease.map(slot.extent, writable=True)
        at = slot.offset
        memory[at:at + NBYTES] = image(1)
        pool._call("Set", lease.set(name, slot, checksum(image(1))), pb.NameInfo.FromString)
        state = pool.get(name, copy=False)
        assert bytes(state.data) == image(1)
        memory[at] = bytes([image(1)[0] ^ 255])
        assert state.data[0] == image(1)[0] ^ 255
        with pytest.raises(statepool.DataLoss) as raised:
            state.verify()
        assert raised.value.reason == "CHECKSUM_MISMATCH"
        memory[at] = image(1)[:1]
        state.verify()


def test_a_view_can_not_be_written(daemon, pool, name):
    pool.set(name, image(1), 1, layout=LAYOUT)
    state = pool.get(name, copy=False)
    array = np.asarray(state.data)
    assert state.data.readonly and not array.flags.writeable and not any(t.flags.writeable for t in state.tensors.values())
    for change in (lambda: state.data.__setitem__(0, 1), lambda: array.__setitem__(0, 1), lambda: setattr(array.flags, "writeable", True),
                   lambda: setattr(state.tensors["ssm"].flags, "writeable", True)):
        with pytest.raises((TypeError, ValueError)):
            change()
    script = (f"import ctypes, numpy, statepool\npool = statepool.connect({daemon.address!r})\n"
              f"state = pool.get({name!r}, copy=False)\nat = numpy.asarray(state.data).ctypes.data\n"
              "assert ctypes.string_at(at, 1) == bytes(state.data[:1])\nprint('read', flush=True)\nctypes.memset(at, 0, 1)\nprint('written')")
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGSEGV, "read\n"), ended.stderr
    assert bytes(state.data) == image(1)


def test_a_view_is_pinned_until_the_last_view_of_it_is_gone(daemon, pool, name):
    pool.set(name, image(1), 1, layout=LAYOUT)
    before = slots(daemon, "pinned")
    state = pool.get(name, copy=False)
    assert slots(daemon, "pinned") == before + 1
    kept = np.asarray(memoryview(state.tensors["ssm"][1, 2:])[1:])
    del state
    gc.collect()
    assert slots(daemon, "pinned") == before + 1
    pool.delete(name)
    part = LAYOUT.views(image(1))["ssm"][1, 2:][1:]
    assert kept.tobytes() == part.tobytes()
    del kept
    eventually(lambda: slots(daemon, "pinned") == before)


def test_a_view_stays_as_it_is_whatever_becomes_of_the_name(start):
    daemon = start("--direct=true", "--hot-bytes=32MiB", "--flush-interval=1h")
    with connected(daemon) as pool, connected(daemon, direct=False) as inline:
        for writer, other in ((pool, inline), (inline, pool)):
            writer.set("s", image(1), 1, layout=LAYOUT)
            view = pool.get("s", copy=False)
            other.set("s", image(2), 2, layout=LAYOUT)
            assert bytes(view.data) == image(1) and bytes(pool.get("s", copy=False).data) == image(2)
            pool.delete("s")
            for i in range(120):  # twice the hot budget
                (pool, inline)[i % 2].set(f"n{i}", image(i), 1, layout=LAYOUT)
            assert bytes(view.data) == image(1)
            view.verify()
            for i in range(0, 120, 7):
                assert bytes(pool.get(f"n{i}", copy=False).data) == image(i)
            pool.delete_many("n")
            del view
        eventually(lambda: slots(daemon, "pinned") == 0)


def test_views_outlive_their_pool_and_stay_pinned(daemon, pool, inline, name):
    inline.set(name, image(1), 1, layout=LAYOUT)
    before, leases = slots(daemon, "pinned"), scrape(daemon)["statepool_direct_leases"]
    with connected(daemon) as pool:
        state = pool.get(name, copy=False)
    inline.set(name, image(2), 2, max_history=1)
    assert slots(daemon, "pinned") == before + 1 and bytes(state.data) == image(1)
    del state
    eventually(lambda: slots(daemon, "pinned") == before and scrape(daemon)["statepool_direct_leases"] == leases)


def test_what_has_no_view_is_copied(daemon, pool, inline, name, calls):
    pool.set(name, image(1), 1, layout=LAYOUT, attachment=b"beside it")
    view = pool.get(name, copy=False)
    assert (view.attachment, view.info.attachment_bytes) == (b"beside it", 9) and bytes(view.data) == image(1)
    part = pool.get(name, tensors=["ssm"], copy=False)
    assert part.tensors["ssm"].tobytes() == LAYOUT.views(image(1))["ssm"].tobytes()
    part.verify()
    state = inline.get(name, copy=False)
    assert bytes(state.data) == image(1) and address(state) != address(view)
    with pytest.raises(statepool.InvalidArgument) as raised:
        pool.get(name, copy=False, out=bytearray(NBYTES))
    assert raised.value.field == "copy"
    with pytest.raises(statepool.NotFound):
        pool.get(name + "/never", copy=False)
    pool.set(name + "/small", image(2, SMALL), 2, layout=SMALL)
    small = pool.get(name + "/small", copy=False)
    assert bytes(small.data) == image(2, SMALL) and address(small) == address(pool.get(name + "/small", copy=False))


@pytest.mark.parametrize("flag", ["--max-pinned-bytes=1MiB", "--direct=false"])
def test_where_nothing_can_be_pinned_gets_give_copies(start, flag, calls):
    daemon = start("--direct=true", flag)
    with connected(daemon) as pool:
        for i in range(4):
            pool.set(f"s{i}", image(i), 1, layout=LAYOUT)
        states = [pool.get(f"s{i}", copy=False) for i in range(4)]
        assert [bytes(s.data) for s in states] == [image(i) for i in range(4)]
        one_fits = flag.startswith("--max-pinned")
        assert (calls["Get+"], scrape(daemon).get('statepool_direct_slots{state="pinned"}', 0)) == ((4, 1) if one_fits else (0, 0))
        assert [bytes(pool.get(f"s{i}").data) for i in range(4)] == [image(i) for i in range(4)]


# ---- gets and sets that copy

@pytest.mark.parametrize("library", [True, False])
def test_states_go_in_and_out_without_their_bytes_in_messages(daemon, pool, inline, name, calls, stock_stays, request, library):
    if not library:
        request.getfixturevalue("no_library")
    for i in range(4):
        written = pool.set(name, image(i), i + 1, layout=LAYOUT)
        assert written.checksum == checksum(image(i)) and written.position == i + 1
    assert calls["Set+"] == 4 and calls["Set"] == 4 and calls["Grant"] == 1
    assert bytes(inline.get(name).data) == image(3)
    tensors = {k: v.copy() for k, v in LAYOUT.views(image(9)).items()}
    pool.set(name, tensors, 9)  # in pieces, and of a layout that the pool has seen
    assert calls["Set+"] == 5
    out = np.empty(NBYTES, np.uint8)
    calls.clear()
    assert bytes(pool.get(name).data) == image(9) and bytes(pool.get(name, out=out).data) == image(9) == out.tobytes()
    assert calls == {"Get": 2, "Get+": 2}
    eventually(lambda: slots(daemon, "pinned") == 0)
    with pytest.raises(statepool.InvalidArgument) as raised:
        pool.get(name, out=np.empty(NBYTES - 1, np.uint8))
    assert raised.value.reason == "BYTES_LENGTH_MISMATCH"
    with pytest.raises(statepool.Conflict) as raised:
        pool.set(name, image(1), 10, layout=LAYOUT, if_revision=1)
    assert raised.value.reason == "REVISION_MISMATCH"
    with pytest.raises(statepool.InvalidArgument) as raised:
        pool.set(name, image(1)[1:], 10, layout=LAYOUT)
    assert raised.value.reason == "BYTES_LENGTH_MISMATCH"
    assert bytes(pool.get(name).data) == image(9)


def test_what_was_set_directly_is_there_after_a_restart(start, stock_stays):
    daemon = start("--direct=true")
    with connected(daemon) as pool:
        pool.set("s", image(1), 1, layout=LAYOUT, durability="sync")
        pool.set("t", image(2), 2, layout=LAYOUT)
        assert slots(daemon, "granted") > 0
        view = pool.get("s", copy=False)
        pool.flush()
        daemon.kill()
        assert bytes(view.data) == image(1)
        view.verify()
        daemon.start()
        with connected(daemon) as again:
            assert bytes(again.get("s", copy=False).data) == image(1) and bytes(again.get("t").data) == image(2)
        assert bytes(view.data) == image(1)


def test_after_a_restart_the_next_need_opens_another_lease(own_direct, calls):
    with statepool.connect(own_direct.unix_address, timeout=20, retries=5, arenas=False) as pool:
        pool.register_layout(LAYOUT)
        pool.set("s", image(1), 1, layout=LAYOUT, durability="sync")
        view = pool.get("s", copy=False)
        own_direct.kill()
        own_direct.start()
        first = pool._direct._lease
        eventually(lambda: bytes(pool.get("s", copy=False).data) == image(1) and pool._direct._lease is not first)
        calls.clear()
        pool.set("s", image(2), 2, layout=LAYOUT)
        second = pool.get("s", copy=False)
        assert calls["Set+"] == 1 and calls["Get+"] == 1 and bytes(second.data) == image(2)
        assert bytes(view.data) == image(1)


@pytest.fixture
def own_direct(tmp_path):
    daemon = Daemon(tmp_path, "--direct=true").start()
    yield daemon
    if daemon.process is not None:
        daemon.stop()


def test_a_request_id_holds_whichever_way_the_retry_goes(pool, inline, name, calls):
    first = pool.set(name, image(1), 1, layout=LAYOUT, request_id="r")
    again = pool.set(name, image(1), 1, layout=LAYOUT, request_id="r")
    other = inline.set(name, image(1), 1, layout=LAYOUT, request_id="r")
    assert calls["Set+"] == 2 and calls["Set"] == 3
    assert (first.replayed, again.replayed, other.replayed) == (False, True, True) and first.revision == again.revision == other.revision
    with pytest.raises(statepool.InvalidArgument) as raised:
        pool.set(name, image(2), 1, layout=LAYOUT, request_id="r")
    assert raised.value.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("verify", [True, False])
def test_a_set_whose_answer_is_lost_is_done_once(daemon, name, monkeypatch, verify):
    real = statepool._calls.Connection.call
    lost = []

    def call(self, method, request, *arguments):
        answer = real(self, method, request, *arguments)
        if method == "Set" and not lost:
            lost.append(answer)
            raise errors.Unavailable("UNAVAILABLE", "", "the answer is lost")
        return answer

    with connected(daemon, verify=verify) as pool:
        pool.set(name, image(0), 0, layout=LAYOUT)
        view = pool.get(name, copy=False)
        monkeypatch.setattr(statepool._calls.Connection, "call", call)
        lease = pool._direct._lease
        info = pool.set(name, image(1), 1, layout=LAYOUT)
        assert info.replayed and info.revision == lost[0].revision and len(pool.describe(name).history) == 2
        # It may have left a grant behind: so it is for no further call, and ends with the last view.
        assert lease.retired and not lease.ended and pool._direct._lease is not lease and bytes(view.data) == image(0)
        del view
        gc.collect()
        assert lease.ended


def test_shortages_of_slots_are_nobody_s_errors(start, calls):
    daemon = start("--direct=true", "--max-granted-bytes=1")
    with connected(daemon) as pool:
        for i in range(3):
            pool.set("s", image(i), i, layout=LAYOUT)
        assert calls["Set+"] == 0 and calls["Set"] == 3 and calls["Grant"] == 1
        assert bytes(pool.get("s", copy=False).data) == image(2)
        with pool.open_arena(LAYOUT, rows=1, direct=True) as arena:
            arena.load({0: "s"})
            arena.store({0: "t"}, position=3)
        assert bytes(pool.get("t").data) == image(2)


def test_many_threads_read_and_write(daemon, name):
    with connected(daemon) as pool:
        names = [f"{name}/{i}" for i in range(6)]
        for n in names:
            pool.set(n, image(0), 0, layout=LAYOUT)

        def work(seed):
            random_ = random.Random(seed)
            kept = []
            for i in range(25):
                n = random_.choice(names)
                if random_.random() < 0.3:
                    pool.set(n, image(seed * 100 + i), seed * 100 + i, layout=LAYOUT)
                state = pool.get(n, copy=random_.random() < 0.5)
                assert bytes(state.data) == image(state.position)
                kept.append((state, state.position))
                if len(kept) > 4:
                    state, position = kept.pop(random_.randrange(4))
                    assert bytes(state.data) == image(position)

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(work, seed) for seed in range(8)]:
                done.result()
        gc.collect()
        eventually(lambda: slots(daemon, "pinned") == 0)
        assert slots(daemon, "granted") <= _direct.STOCK_MAX + 8


FORK = """
import gc, os, sys
import statepool
pool = statepool.connect(sys.argv[1], arenas=False)
view = pool.get(sys.argv[2], copy=False)
want = bytes(view.data)
pool._direct._lease._lock.acquire()
child = os.fork()
if child == 0:
    assert bytes(view.data) == want
    assert pool._direct.lease(pool, None) is None
    pool._direct.close()
    watch = pool._direct._lease._watch
    fds = watch._connection.fileno(), watch._wake
    pool._direct._lease = None
    del view, watch
    gc.collect()
    for fd in fds:
        try:
            os.fstat(fd)
        except OSError:
            continue
        os._exit(1)
    os._exit(0)
pool._direct._lease._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert bytes(view.data) == want and pool._direct._lease.is_good()
print(len(pool._direct._lease._extents))
"""


def test_a_forked_child_leaves_the_parent_s_lease_alone(daemon, pool, name):
    pool.set(name, image(1), 1, layout=LAYOUT)
    ended = subprocess.run([sys.executable, "-c", FORK, daemon.address, name], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr


# ---- what is mapped

def test_extents_that_are_idle_are_unmapped_beyond_a_limit(daemon, inline, name, monkeypatch):
    for i in range(12):
        inline.set(f"{name}/{i}", np.full(8 << 20, i, np.uint8), 1, layout=inline.register_layout(BIG))
    before = mapped_bytes(daemon)
    with connected(daemon) as pool:
        kept = pool.get(f"{name}/0", copy=False)
        seen = {extent_of(pool.get(f"{name}/{i}", copy=False)) for i in range(12)}
        assert len(seen) > 3
        eventually(lambda: mapped_bytes(daemon) - before == sum(e.nbytes for e in pool._direct._lease._extents.values()) >= 12 * (8 << 20))
        monkeypatch.setattr(_direct, "IDLE_BYTES_MAX", 24 << 20)
        assert bytes(pool.get(f"{name}/11", copy=False).data[:9]) == bytes([11]) * 9
        lease = pool._direct._lease
        idle = [e for e in lease._extents.values() if not e.users]
        assert sum(e.nbytes for e in idle) == lease._idle_bytes <= 24 << 20 and extent_of(kept) in lease._extents.values()
        eventually(lambda: mapped_bytes(daemon) - before == sum(e.nbytes for e in lease._extents.values()))
        for i in range(12):
            assert bytes(pool.get(f"{name}/{i}", copy=False).data[-9:]) == bytes([i]) * 9
        assert bytes(kept.data[:9]) == bytes(9)
        del kept
    eventually(lambda: mapped_bytes(daemon) == before)
    inline.delete_many(name)


BIG = Layout("direct-big", [Tensor("x", [0], "uint8", {"a": 8 << 20})])


def extent_of(state):
    owner = state.data
    while not isinstance(owner, _direct.Pin):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return owner._extent


def test_what_the_daemon_wants_back_is_unmapped_when_nobody_uses_it(start):
    daemon = start("--direct=true", "--hot-bytes=64MiB", "--max-pinned-bytes=64MiB", "--flush-interval=10ms")
    with connected(daemon) as pool, connected(daemon, direct=False) as inline:
        big = pool.register_layout(BIG)
        for i in range(4):
            inline.set(f"big{i}", np.full(8 << 20, i, np.uint8), 1, layout=big)
        kept = pool.get("big0", copy=False)
        for i in range(4):
            pool.get(f"big{i}", copy=False)
        lease = pool._direct._lease
        had = len(lease._extents)
        assert had >= 2
        pool.flush()
        pool.delete_many("big")
        for i in range(150):  # needs the room of the other layout's extents
            inline.set(f"n{i}", image(i), 1, layout=LAYOUT)

        eventually(lambda: len(lease._extents) < had)  # with no call of the pool's
        assert bytes(kept.data[:9]) == bytes(9) and extent_of(kept) in lease._extents.values()
        kept.verify()
        kept_in = extent_of(kept).id
        del kept
        gc.collect()

        def gone():
            for i in range(8):
                inline.set(f"n{i}", image(i), 1, layout=LAYOUT)
                inline.set(f"m{i}", image(i), 1, layout=LAYOUT)
            return kept_in not in lease._extents

        eventually(gone)
        eventually(lambda: scrape(daemon)['statepool_direct_bytes{state="retired"}'] == 0)


def test_an_idle_pool_gives_its_stock_back(daemon, pool, name, calls):
    before = slots(daemon, "granted")
    pool.set(name, image(0), 0, layout=LAYOUT)
    lease = pool._direct._lease
    eventually(lambda: slots(daemon, "granted") == before and not any(lease._stock.values()))
    assert not lease.ended and calls["Set+"] == calls["Grant"] == 1
    pool.set(name, image(1), 1, layout=LAYOUT)
    assert pool._direct._lease is lease and calls["Set+"] == calls["Grant"] == 2
    assert bytes(pool.get(name).data) == image(1)


@needs_the_library
def test_grants_that_do_not_suffice_for_a_store_go_back_too(start, calls):
    daemon = start("--direct=true", "--max-granted-bytes=2MiB")
    with connected(daemon) as pool, pool.open_arena(LAYOUT, rows=8, direct=True) as arena:
        pool.set("s", image(1), 1, layout=LAYOUT)
        arena.load({row: "s" for row in range(8)})
        arena.store({row: f"t{row}" for row in range(8)}, position=1)
        assert calls["Store+"] == 0 and scrape(daemon)['statepool_direct_slots_total{state="granted"}'] > 1
        eventually(lambda: slots(daemon, "granted") == 0)
        assert bytes(pool.get("t7").data) == image(1)


@pytest.mark.parametrize("granted, stock", [("16MiB", 1), ("64MiB", 7), ("8MiB", 1)])
def test_a_pool_keeps_a_share_of_what_the_daemon_has(start, stock_stays, granted, stock):
    daemon = start("--direct=true", f"--max-granted-bytes={granted}", "--max-pinned-bytes=64MiB")
    with connected(daemon) as pool, connected(daemon, direct=False) as inline:
        pool.set("s", image(1), 1, layout=LAYOUT)
        assert scrape(daemon)['statepool_direct_slots_total{state="granted"}'] == stock
        big = inline.register_layout(BIG)
        for i in range(5):
            inline.set(f"big{i}", np.full(8 << 20, i, np.uint8), 1, layout=big)
        for i in range(5):
            assert pool.get(f"big{i}", copy=False).data[0] == i
        lease = pool._direct._lease
        assert 8 << 20 <= lease._idle_bytes <= 16 << 20
        eventually(lambda: mapped_bytes(daemon) == sum(e.nbytes for e in lease._extents.values()))


def leases_of_this_process():
    with open("/proc/self/maps") as maps:
        mapped = sum("statepool-slots" in line for line in maps)
    return mapped, sum(t.name == "statepool-lease" for t in threading.enumerate()), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("cycle", [False, True])
def test_a_pool_that_is_dropped_leaves_nothing_behind(daemon, inline, name, cycle):
    def told():
        metrics = scrape(daemon)
        return [v for k, v in metrics.items() if k.startswith(("statepool_direct_leases", "statepool_direct_bytes", "statepool_direct_slots{"))]

    inline.set(name, image(1), 1, layout=LAYOUT)
    gc.collect()
    eventually(lambda: slots(daemon, "pinned") == 0)
    pool = statepool.connect(daemon.address, arenas=False)
    pool.get_layout(LAYOUT.fingerprint)
    before, told_before = leases_of_this_process(), told()
    view = pool.get(name, copy=False)
    pool.set(name + "/b", image(2), 2, layout=LAYOUT)
    assert leases_of_this_process() > before and told() != told_before
    if cycle:  # the lease is found with its pin, by the collector
        pin = view.data.obj
        while not isinstance(pin, _direct.Pin):
            pin = pin.base if isinstance(pin, np.ndarray) else pin.obj
        pool._direct._lease.cycle = pin, pool._direct._lease
        del pin
    del pool, view
    gc.collect()
    eventually(lambda: told() == told_before)
    eventually(lambda: leases_of_this_process()[:2] == before[:2] and leases_of_this_process()[2] <= before[2])


@pytest.mark.parametrize("failure", ["no descriptor", "no answer"])
def test_what_could_not_be_handed_over_is_not_taken_for_mapped(daemon, pool, inline, name, monkeypatch, failure):
    inline.set(name, image(1), 1, layout=LAYOUT)
    inline.set(name + "/small", image(2, SMALL), 1, layout=SMALL)
    before = mapped_bytes(daemon)
    pool.get(name + "/small", copy=False)
    lease = pool._direct._lease
    real = socket.recv_fds
    failed = []

    def recv_fds(*arguments):
        data, fds, flags, address = real(*arguments)
        for fd in fds:
            os.close(fd)
            failed.append(fd)
        return data, [], flags | (socket.MSG_CTRUNC if fds else 0), address

    class Never:
        def poll(self, timeout):
            failed.append(timeout)
            return []

    if failure == "no descriptor":
        monkeypatch.setattr(socket, "recv_fds", recv_fds)
    else:
        monkeypatch.setattr(lease, "_poll", Never())
    assert bytes(pool.get(name, copy=False).data) == image(1)
    assert failed and lease.ended
    monkeypatch.undo()
    eventually(lambda: mapped_bytes(daemon) == before)
    assert bytes(pool.get(name, copy=False).data) == image(1) and pool._direct._lease is not lease


EXIT = """
import sys, threading, time
import statepool
pool = statepool.connect(sys.argv[1], arenas=False)
views = [pool.get(sys.argv[2], copy=False) for _ in range(3)]
pool.set(sys.argv[2] + "/w", bytes(views[0].data), 1, layout=views[0].info.layout)
assert any(thread.name == "statepool-lease" for thread in threading.enumerate())
{}
print("there")
"""


@pytest.mark.parametrize("end", ["", "pool.close()", "del pool", "views.append(views)", "sys.exit(0)", "lock = pool._direct._lease._lock.acquire()"])
def test_an_interpreter_ends_in_silence(daemon, inline, name, end):
    inline.set(name, image(1), 1, layout=LAYOUT)
    before = scrape(daemon)["statepool_direct_leases"]
    script = EXIT.format("print('there')\nsys.exit(0)" if end == "sys.exit(0)" else end)
    ended = subprocess.run([sys.executable, "-X", "dev", "-c", script, daemon.address, name], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "there\n", "")
    eventually(lambda: scrape(daemon)["statepool_direct_leases"] == before)


# ---- pools that are closed

def test_calls_on_a_closed_pool_say_so(daemon, name):
    with connected(daemon) as pool:
        pool.set(name, image(1), 1, layout=LAYOUT)
        view = pool.get(name, copy=False)
        other = pool.with_options(retries=0)
    for call in (lambda: pool.get(name), lambda: pool.get(name, copy=False), lambda: pool.set(name, image(2), 2, layout=LAYOUT), lambda: other.get(name),
                 lambda: pool.describe(name), lambda: next(iter(pool.get_stream(name))), lambda: pool.batch_get([name]),
                 lambda: pool.set_stream(name, iter([image(2)]), 2, layout=LAYOUT), lambda: pool.open_arena(LAYOUT, rows=1)):
        with pytest.raises(statepool.Conflict) as raised:
            call()
        assert raised.value.reason == "POOL_CLOSED"
    pool.close()
    assert bytes(view.data) == image(1)


@pytest.mark.parametrize("call", [lambda pool: pool.describe("s"), lambda pool: next(iter(pool.get_stream("s"))), lambda pool: pool.get("s", copy=False),
                                  lambda pool: pool.set_stream("s", iter([bytes(100)]), 2, layout=SMALL)], ids=["unary", "get_stream", "get", "set_stream"])
def test_calls_in_flight_say_that_their_pool_was_closed(call):
    with socket.create_server(("127.0.0.1", 0)) as silent, concurrent.futures.ThreadPoolExecutor(1) as threads:
        pool = statepool.connect(f"127.0.0.1:{silent.getsockname()[1]}", timeout=30)
        waiting = threads.submit(call, pool)
        connection, _ = silent.accept()
        with connection:
            pool.close()
            with pytest.raises(statepool.Conflict) as raised:
                waiting.result(20)
        assert raised.value.reason == "POOL_CLOSED"


def test_a_pool_may_be_closed_while_threads_use_it(daemon, inline, name):
    inline.set(name, image(0), 0, layout=LAYOUT)
    for _ in range(5):
        pool = statepool.connect(daemon.address, timeout=20)

        def work():
            while True:
                assert bytes(pool.get(name, copy=False).data) == image(0)
                pool.set(f"{name}/{threading.get_ident()}", image(1), 1, layout=LAYOUT)

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            working = [threads.submit(work) for _ in range(4)]
            eventually(lambda: pool._direct._lease is not None)
            pool.close()
            for each in working:
                with pytest.raises(statepool.Conflict) as raised:
                    each.result(30)
                assert raised.value.reason == "POOL_CLOSED"
    gc.collect()
    eventually(lambda: slots(daemon, "pinned") == 0)


# ---- arenas

@needs_the_library
@pytest.mark.parametrize("steps, view", [(0, statepool.View()), (3, statepool.View("row_major", conv_padding=1, num_spec=3))])
def test_arenas_are_copied_to_and_from_by_this_process(daemon, pool, inline, name, calls, steps, view):
    pool.set(name, image(1), 1, layout=LAYOUT)
    with pool.open_arena(LAYOUT, rows=4, steps=steps, view=view, direct=True) as arena:
        before = transferred(daemon)
        loaded = arena.load({0: name, 1: name, 3: LoadItem(name, 1)})
        assert all(item.copied and item.info.checksum == checksum(image(1)) for item in loaded.values())
        stored = arena.store({0: name, 1: f"{name}/b", 3: StoreItem(f"{name}/c", 7)}, position=2)
        assert [i.checksum for i in stored.values()] == [checksum(image(1))] * 3 and stored[3].position == 7
        assert calls["Load+"] == calls["Load"] == 1 and calls["Store+"] == calls["Store"] == 1 and transferred(daemon) == before
        assert not arena.load({0: LoadItem(name, row_unmodified=True)})[0].copied
        # An attachment is for the daemon to take.
        arena.store({1: StoreItem(f"{name}/b", 3, attachment=b"beside")})
        assert calls["Store"] == 2 and calls["Store+"] == 1 and pool.get(f"{name}/b").attachment == b"beside"
        with pytest.raises(statepool.NotFound):
            arena.load({0: f"{name}/never"})
    assert bytes(inline.get(f"{name}/b").data) == bytes(inline.get(f"{name}/c").data) == image(1)
    eventually(lambda: slots(daemon, "pinned") == 0)


def test_a_row_that_could_not_be_copied_here_is_loaded_by_the_daemon(daemon, pool, name, monkeypatch):
    pool.set(name, image(1), 1, layout=LAYOUT)
    with pool.open_arena(LAYOUT, rows=2, view=statepool.View("row_major"), direct=True) as arena:
        monkeypatch.setattr(_direct.Lease, "pin_all", lambda self, slots, nbytes, device: [None] * len(slots))
        before = transferred(daemon)
        # To the daemon the row holds it already: that must not be taken for granted.
        assert arena.load({0: LoadItem(name, row_unmodified=True)})[0].copied
        assert transferred(daemon) == before + NBYTES
        monkeypatch.undo()
        arena.store({0: f"{name}/b"}, position=1)
        assert bytes(pool.get(f"{name}/b").data) == image(1)


@needs_the_library
def test_a_load_without_an_answer_leaves_no_row_that_is_taken_for_loaded(daemon, pool, name, monkeypatch):
    pool.set(name, image(1), 1, layout=LAYOUT)
    real = statepool._calls.Connection.call

    def call(self, method, request, *arguments):
        answer = real(self, method, request, *arguments)
        if method == "Load":
            raise errors.DeadlineExceeded("DEADLINE_EXCEEDED", "", "too late")
        return answer

    with pool.open_arena(LAYOUT, rows=1, view=statepool.View("row_major"), direct=True) as arena:
        monkeypatch.setattr(statepool._calls.Connection, "call", call)
        with pytest.raises(statepool.DeadlineExceeded):
            arena.load({0: name})
        monkeypatch.undo()
        assert arena.load({0: LoadItem(name, row_unmodified=True)})[0].copied
        arena.store({0: f"{name}/b"}, position=1)
    assert bytes(pool.get(f"{name}/b").data) == image(1)


def test_without_the_library_the_daemon_copies_for_arenas(daemon, pool, name, no_library, calls):
    pool.set(name, image(1), 1, layout=LAYOUT)
    with pool.open_arena(LAYOUT, rows=1, direct=True) as arena:
        arena.load({0: name})
        arena.store({0: f"{name}/b"}, position=1)
    assert calls["Load"] == calls["Store"] == 1 and calls["Load+"] == calls["Store+"] == 0
    assert bytes(pool.get(f"{name}/b").data) == image(1)


@pytest.mark.parametrize("library", ["none", "other"])
def test_a_library_that_is_not_there_or_another_is_not_used(tmp_path, library):
    path = "/nowhere.so" if library == "none" else ctypes.util.find_library("c") or "libc.so.6"
    script = "from statepool import _kernels\nassert not _kernels.available\nprint(_kernels.hash_of([memoryview(bytes(300_000))]))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "STATEPOOL_KERNELS_LIBRARY": path})
    assert (ended.returncode, ended.stdout) == (0, checksum(bytes(300_000)) + "\n"), ended.stderr


# ---- the raw protocol

class Raw:
    """A direct lease without the package's."""

    def __init__(self, pool, opened, connection):
        self.pool, self.opened, self.connection = pool, opened, connection
        self.id = opened.lease
        self.open = contextlib.ExitStack()

    def grant(self, layout=LAYOUT):
        slot, = self.pool._call("Grant", pb.GrantRequest(lease=self.id, layout=layout.fingerprint, count=1), pb.GrantResponse.FromString).slots
        return slot

    def get(self, name):
        request = pb.GetRequest(name=pb.NameRef(sequence=name), lease=self.id)
        answer = self.pool._call("Get", request, pb.GetResponse.FromString)
        assert answer.data == b"" and answer.HasField("slot")
        return answer.slot

    def set(self, name, slot, digest, **fields):
        return pb.SetRequest(sequence=name, layout=LAYOUT.fingerprint, position=1, lease=self.id, grant=slot.id, checksum=digest, **fields)

    def tell(self, **fields):
        self.connection.send(pb.LeaseRequest(**fields).SerializeToString())

    def event(self):
        data, fds, _, _ = socket.recv_fds(self.connection, 1 << 16, 64)
        for fd in fds:
            self.open.callback(os.close, fd)
        return pb.LeaseEvent.FromString(data) if data else None, *fds

    def ask(self, extent):
        """The event, and its descriptors; those of the events that go on with it as well."""
        self.tell(extent=extent)
        event, *fds = self.event()
        assert event.extent == extent and event.device == ""
        while event.bytes and len(fds) < event.bytes // event.chunk_bytes:
            more, *others = self.event()
            assert more == event and 0 < len(others) <= 64 and len(fds) % 64 == 0
            fds += others
        return event, fds

    def map(self, extent, writable=False):
        event, fds = self.ask(extent)
        assert event.writable == writable
        pieces = _mapping.Pieces(event.bytes, writable)
        for fd in fds:
            pieces.add(fd, event.chunk_bytes)
        self.open.callback(pieces.unmap)
        return (ctypes.c_char * event.bytes).from_address(pieces.writable_address if writable else pieces.address)


@contextlib.contextmanager
def raw(daemon, pool):
    opened = pool._call("OpenDirect", pb.OpenDirectRequest(), pb.DirectLease.FromString)
    connection, fd, *_ = _mapping.connect(opened, 5.0)
    assert fd is None
    connection.settimeout(20)
    lease = Raw(pool, opened, connection)
    with connection, lease.open:
        yield lease


seals = pytest.mark.skipif(DEVICES != "host", reason="only the host's memory has seals")


@seals
def test_sealed_memory_can_not_be_written_in_any_way(daemon, pool, name):
    with raw(daemon, pool) as lease, raw(daemon, pool) as reader:
        slot = lease.grant()
        memory = lease.map(slot.extent, writable=True)
        memory[slot.offset:slot.offset + NBYTES] = image(1)
        pool._call("Set", lease.set(name, slot, checksum(image(1))), pb.NameInfo.FromString)
        for who in (lease, reader):
            found = who.get(name)
            assert (found.extent, found.offset) == (slot.extent, slot.offset)
            event, (fd,) = who.ask(slot.extent)
            assert not event.writable
            assert_read_only(fd, event.bytes, slot.offset)
        memory[slot.offset] = image(1)[:1]  # what was mapped before stays so
        assert bytes(pool.get(name).data) == image(1)


@seals
def test_memory_that_was_never_granted_can_not_be_written_either(daemon, pool, inline, name):
    inline.set(name, image(1), 1, layout=LAYOUT)
    with raw(daemon, pool) as lease:
        slot = lease.get(name)
        event, (fd,) = lease.ask(slot.extent)
        assert not event.writable
        assert_read_only(fd, event.bytes, slot.offset)
        memory = mmap.mmap(fd, event.bytes, prot=PROT_READ)
        assert memory[slot.offset:slot.offset + NBYTES] == image(1)


def test_an_extent_of_many_chunks_comes_in_several_events(start):
    daemon = start("--direct=true", "--devices=far", "--chunk-bytes=65536", "--hot-bytes=64MiB")
    layout = Layout("direct-chunks", [Tensor("x", [0], "uint8", {"a": 150 * 65536 + 17})])
    with connected(daemon) as pool:
        pool.register_layout(layout)
        with raw(daemon, pool) as lease, raw(daemon, pool) as reader:
            slot = lease.grant(layout)
            memory = lease.map(slot.extent, writable=True)
            assert len(memory) >= 150 * 65536
            memory[slot.offset:slot.offset + layout.state_bytes] = image(1, layout)
            request = pb.SetRequest(sequence="s", layout=layout.fingerprint, position=1, lease=lease.id, grant=slot.id, checksum=checksum(image(1, layout)))
            pool._call("Set", request, pb.NameInfo.FromString)
            found = reader.get("s")
            assert reader.map(found.extent)[found.offset:found.offset + layout.state_bytes] == image(1, layout)
            pool.flush(["s"])
        assert pool.get("s", copy=False).data == image(1, layout)
        pool.set("s", image(2, layout), 2)
        assert pool.get("s", copy=False).data == image(2, layout)


def assert_read_only(fd, nbytes, offset):
    def failed(result, bad):
        return result == bad and ctypes.get_errno()

    assert failed(libc.mmap(None, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED)
    at = libc.mmap(None, nbytes, PROT_READ, MAP_SHARED, fd, 0)
    assert at != MAP_FAILED
    try:
        assert failed(libc.mprotect(at, PAGE, PROT_READ | PROT_WRITE), -1)
    finally:
        libc.munmap(at, nbytes)
    for write in (lambda: os.pwrite(fd, b"x", offset), lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 2 * nbytes),
                  lambda: os.posix_fallocate(fd, nbytes, PAGE)):
        with pytest.raises(OSError):
            write()
    # Where it can be opened anew, it is the same memory with the same seals.
    with contextlib.suppress(OSError):
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            assert failed(libc.mmap(None, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0), MAP_FAILED)
            with pytest.raises(OSError):
                os.pwrite(again, b"x", offset)
        finally:
            os.close(again)
    assert fcntl.fcntl(fd, F_GET_SEALS) & SEAL_FUTURE_WRITE


def test_a_wrong_checksum_is_found_when_the_state_leaves_the_hot_tier(start):
    daemon = start("--direct=true", "--flush-interval=1h")
    with connected(daemon) as pool, raw(daemon, pool) as lease:
        slot = lease.grant()
        memory = lease.map(slot.extent, writable=True)
        memory[slot.offset:slot.offset + NBYTES] = image(1)
        info = pool._call("Set", lease.set("s", slot, checksum(image(2))), pb.NameInfo.FromString)
        assert info.checksum == checksum(image(2))
        with pytest.raises(statepool.DataLoss) as raised:
            pool.get("s")
        assert raised.value.reason == "CHECKSUM_MISMATCH"
        with pytest.raises(statepool.StatepoolError) as raised:
            pool.flush(["s"])
        assert raised.value.reason == "CORRUPT"
        pool.delete("s")  # or the daemon could not stop in good order


def test_descriptors_are_for_extents_that_slots_of_the_lease_named(daemon, pool, name):
    pool.set(name, image(1), 1, layout=LAYOUT)
    with raw(daemon, pool) as lease, raw(daemon, pool) as other:
        slot = lease.get(name)
        for extent in (slot.extent, 1 << 60):
            other.tell(extent=extent)
            event, *fds = other.event()
            assert (event.extent, event.reason, fds) == (extent, "EXTENT_UNKNOWN", [])
        assert lease.ask(slot.extent)[0].bytes >= NBYTES


def test_what_makes_no_sense_on_the_connection_ends_the_lease(daemon, pool, name):
    pool.set(name, image(1), 1, layout=LAYOUT)
    for message in (b"\xff\xff\xff", b"", pb.LeaseRequest(unpin=range(1, 8194)).SerializeToString()):
        before = slots(daemon, "pinned")
        with raw(daemon, pool) as lease:
            lease.get(name)
            lease.tell(unpin=[12345], dropped=[1 << 50])  # unknown ones are ignored
            assert slots(daemon, "pinned") == before + 1
            lease.connection.send(message)
            assert lease.event() == (None,)
            eventually(lambda: slots(daemon, "pinned") == before)
            with pytest.raises(statepool.NotFound) as raised:
                lease.get(name)
            assert raised.value.reason == "LEASE_UNKNOWN"


WORKER = """
import sys, time
import statepool
pool = statepool.connect(sys.argv[1], arenas=False)
views = [pool.get(sys.argv[2], copy=False) for _ in range(3)]
statepool._direct.STOCK_IDLE_S = 600.0
pool.set(sys.argv[2] + "/w", bytes(views[0].data), 1, layout=views[0].info.layout)
print("there", flush=True)
time.sleep(600)
"""


def test_a_worker_that_is_killed_gives_back_its_pins_and_grants(start):
    daemon = start("--direct=true", "--max-granted-bytes=128MiB")
    with connected(daemon, direct=False) as pool:
        pool.set("s", image(1), 1, layout=LAYOUT)
        worker = subprocess.Popen([sys.executable, "-c", WORKER, daemon.address, "s"], stdout=subprocess.PIPE, text=True)
        try:
            assert worker.stdout.readline() == "there\n"
            assert slots(daemon, "pinned") == 3 and slots(daemon, "granted") == _direct.STOCK_MAX - 1 and mapped_bytes(daemon) > 0
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
        eventually(lambda: (slots(daemon, "pinned"), slots(daemon, "granted"), mapped_bytes(daemon)) == (0, 0, 0))
        assert bytes(pool.get("s/w").data) == image(1)
