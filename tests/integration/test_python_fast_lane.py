# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The fast lane of the Python package: plain get and set through arenas of the pool's own. What the caller sees is compared with the inline way
(connect(arenas=False)); which way it was, the daemon's metrics say."""
import collections
import concurrent.futures
import dataclasses
import datetime
import json
import math
import os
import random
import re
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

import statepool
from daemon_process import Daemon, eventually
from statepool import _lane, _mapping, _seen, errors
from statepool.layouts import Layout, Tensor

LAYOUT = Layout("fast-lane", (
    Tensor("conv", range(3), "bfloat16", {"tap": 3, "channel": 33}, kind="conv"),
    Tensor("ssm", [0, 2], "float32", {"head": 4, "value": 125, "key": 131}, kind="recurrent"),
))
TWIN = Layout("fast-lane-twin", LAYOUT.tensors)
SMALL = Layout("fast-lane-small", [Tensor("x", [0], "uint8", {"a": _seen.LARGE_BYTES - 1})])
NBYTES = LAYOUT.state_bytes
WAYS = ["lane", "inline"]
assert _seen.LARGE_BYTES < NBYTES < 1 << 20


def image(n, layout=LAYOUT):
    return random.Random(n).randbytes(layout.state_bytes)


def array(n):
    return np.frombuffer(image(n), np.uint8)


def scrape(daemon):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{daemon.ready['metrics']}/metrics" if "://" not in daemon.ready["metrics"] else daemon.ready["metrics"]) as answer:
        return {series: float(value) for series, value in re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", answer.read().decode(), re.M)}


class Moved:
    """What the daemon copied between arenas and slots, and which messages it got, since the last look. It counts a call a moment after its
    answer, so a look takes until nothing changes any more."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.now()

    def counts(self):
        seen = scrape(self.daemon)
        return [seen.get('statepool_transfer_bytes_total{from="arena",to="hot"}', 0) / NBYTES,
                  seen.get('statepool_transfer_bytes_total{from="hot",to="arena"}', 0) / NBYTES,
                  *(sum(v for k, v in seen.items() if k.startswith("statepool_rpc_duration_seconds_count") and f'method="{method}"' in k)
                    for method in ("Set", "Get"))]

    def now(self):
        counts, same = self.counts(), 0
        while same < 3:
            time.sleep(0.03)
            last, counts = counts, self.counts()
            same = same + 1 if counts == last else 0
        moved = [a - b for a, b in zip(counts, getattr(self, "before", counts))]
        self.before = counts
        return dict(zip(("stored", "loaded", "Set", "Get"), moved))


@pytest.fixture
def moved(daemon):
    return Moved(daemon)


def connect(address, way="lane", **options):
    pool = statepool.connect(address, arenas=way == "lane", **{"timeout": 20, "retries": 0, **options})
    for layout in (LAYOUT, TWIN, SMALL):
        pool.register_layout(layout, alias=layout.model_id)
    return pool


@pytest.fixture
def at_once(monkeypatch):
    """An arena is opened for the first call."""
    monkeypatch.setattr(_lane, "CALLS_MIN", 1)


@pytest.fixture
def pool(daemon, at_once):
    with connect(daemon.address) as pool:
        yield pool


@pytest.fixture(params=WAYS)
def either(daemon, at_once, request):
    """A pool of each way."""
    with connect(daemon.address, request.param) as pool:
        pool.way = request.param
        yield pool


@pytest.fixture
def calls(monkeypatch):
    """How often the package called each method."""
    made = collections.Counter()
    real = statepool._calls.Connection.call

    def call(self, method, *arguments):
        made[method] += 1
        return real(self, method, *arguments)

    monkeypatch.setattr(statepool._calls.Connection, "call", call)
    return made


def rows_of(pool):
    return sum(map(len, pool._lane._slots.values()))


# -------------------------------------------------------------------------------------------------------------- which way


def test_states_go_through_shared_memory_from_the_eighth_call_of_their_layout_on(daemon, name, moved):
    with connect(daemon.address) as pool:
        for n in range(1, 6):
            assert pool.set(name, image(n), n, layout=LAYOUT).position == n
            assert bytes(pool.get(name).data) == image(n)
        assert moved.now() == {"Set": 4, "Get": 3, "stored": 1, "loaded": 2} and rows_of(pool) == 1 and _lane.CALLS_MIN == 8
        assert bytes(pool.get(name, layout=LAYOUT).data) == image(5) and pool.sequence(name).set(image(6), 6).position == 6
        assert pool.with_options(timeout=5).get(pool.snapshot(name, name)).position == 6  # a kind of name that was not met before
        assert moved.now() == {"Set": 0, "Get": 0, "stored": 1, "loaded": 2}


def test_everything_else_goes_inline(pool, name, moved):
    pool.set(name, image(1), 1, layout=LAYOUT)
    assert moved.now()["stored"] == 1
    pool.set(name + "/small", image(1, SMALL), 1, layout=SMALL)
    pool.get(name + "/small", layout=SMALL)
    pool.set(name, image(2), 2, layout=LAYOUT, request_id="mine")
    pool.set(name, image(2), 3, layout="fast-lane")
    pool.get(name, layout="fast-lane")
    revision = pool.get(name, tensors=["ssm"]).revision
    pool.set(name, {"conv": np.zeros((3, 3, 33), np.uint16)}, 4, layout=LAYOUT, if_revision=revision)
    pool.get(name, layers=[0, 1, 2])
    assert moved.now() == {"Set": 4, "Get": 4, "stored": 0, "loaded": 0}
    pool.batch_get([name])
    with pool.batch() as batch:
        batch.set(name, image(3), 5, layout=LAYOUT)
    pool.get_into(name, bytearray(NBYTES))
    pool.set_stream(name, image(4), 6, layout=LAYOUT)
    assert moved.now() == {"Set": 0, "Get": 0, "stored": 0, "loaded": 0}
    with connect(pool.address, "inline") as other:
        for n in range(4):
            other.set(name, image(n), n + 7, layout=LAYOUT)
            other.get(name)
    assert moved.now() == {"Set": 4, "Get": 4, "stored": 0, "loaded": 0}


@pytest.fixture(autouse=True)
def with_address(monkeypatch):
    real = statepool.connect

    def connect(address, **options):
        pool = real(address, **options)
        pool.address = address
        return pool

    monkeypatch.setattr(statepool, "connect", connect)


def test_tensors_and_pieces_and_buffers_of_any_kind_are_written(either, name):
    tensors = {k: v.copy() for k, v in LAYOUT.views(image(1)).items()}
    for n, data in enumerate([image(1), bytearray(image(1)), memoryview(image(1)), array(1), array(1).reshape(2, -1), tensors]):
        either.set(name, data, n, layout=LAYOUT)
        assert bytes(either.get(name).data) == image(1)
        either.set(name, image(2), n, layout=LAYOUT)


# ------------------------------------------------------------------------------------------------------ the same, both ways


def told(info, name):
    """What does not depend on which name it is, and when."""
    return dataclasses.replace(info, name=info.name.removeprefix(name), revision=0, durable_revision=info.durable_revision == info.revision, version_id=0,
                               parent_version_id=info.parent_version_id > 0, create_time=None, flush_lag=None,
                               expire_time=info.expire_time is not None)


OPTIONS = [
    {}, {"attachment": b"a" * 70_000}, {"exactness": "lossy"}, {"durability": "sync"}, {"durability": "volatile"}, {"ttl": 500},
    {"ttl": datetime.timedelta(hours=2)}, {"ttl": math.inf}, {"expire_at": time.time() + 1e6}, {"max_history": 1}, {"max_history": 3}, {"if_revision": 0},
    {"attachment": b"b", "exactness": "edited", "durability": "sync", "ttl": 77, "max_history": 2, "if_revision": 0}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "none")
def test_a_set_with_any_option_is_answered_alike(daemon, at_once, moved, name, options):
    answers = {}
    for way in WAYS:
        with connect(daemon.address, way) as pool:
            first = pool.set(f"{name}/{way}", image(1), 4, layout=LAYOUT, **options)
            options_now = {**options, **({"if_revision": first.revision} if "if_revision" in options else {})}
            second = pool.sequence(f"{name}/{way}").set(array(2), 9, **options_now)
            state = pool.get(f"{name}/{way}")
            assert bytes(state.data) == image(2)
            answers[way] = [told(i, f"{name}/{way}") for i in (first, second, state.info, pool.describe(f"{name}/{way}"))], state.attachment
            assert second.revision > first.revision and state.revision == second.revision
        assert moved.now() == ({"stored": 2, "loaded": 1, "Set": 0, "Get": 0} if way == "lane" else {"stored": 0, "loaded": 0, "Set": 2, "Get": 1})
    lane, inline = answers["lane"], answers["inline"]
    for one, other in zip(lane[0], inline[0]):
        assert dataclasses.replace(one, history=()) == dataclasses.replace(other, history=())
        assert [(v.position, v.exactness, v.checksum) for v in one.history] == [(v.position, v.exactness, v.checksum) for v in other.history]
    assert lane[1] == inline[1] == options.get("attachment", b"")


def test_a_get_of_any_kind_is_answered_alike(daemon, at_once, name):
    found = {}
    with connect(daemon.address, "inline") as writer:
        for position in (4, 8, 12):
            writer.set(name, image(position), position, layout=LAYOUT, max_history=8, attachment=b"x%d" % position)
        tokens = [random.Random(name).getrandbits(31) for _ in range(12)]
        sources = [name, writer.sequence(name), writer.snapshot(name, name + "@8", position=8), writer.publish_prefix(LAYOUT, tokens, name),
                   writer.match_prefix(LAYOUT, tokens, max_position=12)]
        version = writer.describe(name).history[-1].version_id
    for way in WAYS:
        with connect(daemon.address, way) as pool:
            room = bytearray(NBYTES)
            states = [pool.get(source) for source in sources] + [
                pool.get(name, 4), pool.get(name, 8, layout=LAYOUT), pool.get(name, version_id=version), pool.get(name, attachment=False),
                pool.get(name, 8, out=room), pool.sequence(name).get(out=np.empty(NBYTES, np.uint8))]
            assert bytes(room) == image(8)
            found[way] = [(dataclasses.replace(s.info, flush_lag=None), bytes(s.data), s.attachment, s.data.readonly, s.data.format, s.data.ndim,
                           type(s.data), {k: (v.dtype, v.shape, v.tobytes()) for k, v in s.tensors.items()}) for s in states]
    for one, other in zip(found["lane"], found["inline"]):
        assert one == other


def test_what_get_gave_is_the_caller_s(pool, name, moved):
    pool.set(name, image(1), 1, layout=LAYOUT)
    first = pool.get(name)
    pool.set(name, image(2), 2, layout=LAYOUT)
    second, room = pool.get(name), bytearray(NBYTES)
    assert pool.get(name, out=room).data.obj is room
    pool.close()
    assert bytes(first.data) == image(1) and bytes(second.data) == image(2) == bytes(room) and first.data.readonly
    assert moved.now()["loaded"] == 3


ERRORS = {
    "never created": lambda p, n: p.get(n + "/never", layout=LAYOUT),
    "never created, no layout": lambda p, n: p.get(n + "/never"),
    "snapshot": lambda p, n: p.get(p.name("snapshot", n), layout=LAYOUT),
    "position": lambda p, n: p.get(n, 5),
    "version": lambda p, n: p.get(n, version_id=1 << 50),
    "layout to read": lambda p, n: p.get(n, layout=TWIN),
    "layout to write": lambda p, n: p.set(n, image(1), 5, layout=TWIN),
    "unknown layout": lambda p, n: p.set(n, image(1), 5, layout="0" * 64),
    "length": lambda p, n: p.set(n, image(1)[1:], 5, layout=LAYOUT),
    "out is too short": lambda p, n: p.get(n, out=bytearray(5)),
    "out is too long": lambda p, n: p.get(n, out=bytearray(NBYTES + 1)),
    "out is read-only": lambda p, n: p.get(n, out=bytes(NBYTES)),
    "revision": lambda p, n: p.set(n, image(1), 5, layout=LAYOUT, if_revision=1),
    "revision of none": lambda p, n: p.set(n, image(1), 5, layout=LAYOUT, if_revision=0),
    "revision, no layout": lambda p, n: p.set(n, image(1), 5, if_revision=1),
    "revision of none, no layout": lambda p, n: p.set(n, image(1), 5, if_revision=0),
    "revision of none, no layout, not there": lambda p, n: p.set(n + "/never", image(1), 5, if_revision=0),
    "not there, no layout": lambda p, n: p.set(n + "/never", image(1), 5),
    "a position": lambda p, n: p.set(n, image(1), -1, layout=LAYOUT),
    "a name": lambda p, n: p.set(n + "//", image(1), 5, layout=LAYOUT),
    "a name to read": lambda p, n: p.get(n + "//", layout=LAYOUT),
    "ttl": lambda p, n: p.set(n, image(1), 5, layout=LAYOUT, ttl=-1),
    "ttl and expire_at": lambda p, n: p.set(n, image(1), 5, layout=LAYOUT, ttl=1, expire_at=2e9),
    "history": lambda p, n: p.set(n, image(1), 5, layout=LAYOUT, max_history=10**6),
    "exactness": lambda p, n: p.set(n, image(1), 5, layout=LAYOUT, exactness="nearly"),
    "attachment": lambda p, n: p.set(n, image(1), 5, layout=LAYOUT, attachment=bytes(3 << 20)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_are_those_of_the_inline_way(daemon, at_once, name, what):
    got = []
    for way in WAYS:
        with connect(daemon.address, way) as pool:
            own = f"{name}/{way}"
            revision = pool.set(own, image(1), 4, layout=LAYOUT).revision
            pool.get(own)
            with pytest.raises(statepool.StatepoolError) as error:
                ERRORS[what](pool, own)
            e = error.value
            text = json.dumps([type(e).__name__, e.code, e.reason, e.field, e.message, dict(sorted(e.metadata.items()))])
            got.append(text.replace(own, "NAME").replace(str(revision), "REVISION"))
            assert pool.describe(own).revision == revision and (rows_of(pool) >= 1 or way == "inline")
    assert got[0] == got[1]


def test_a_request_id_of_the_caller_s_is_replayed_whatever_the_way(daemon, at_once, name):
    with connect(daemon.address) as lane, connect(daemon.address, "inline") as inline:
        lane.set(name, image(0), 1, layout=LAYOUT)
        first = lane.set(name, image(1), 4, layout=LAYOUT, request_id="mine")
        for pool in (lane, inline):
            again = pool.set(name, image(1), 4, layout=LAYOUT, request_id="mine")
            assert again.replayed and again.revision == first.revision


def test_a_set_without_a_layout_makes_no_sequence_and_asks_for_no_revision(either, name, moved):
    """Also when another process deleted the sequence, changed it, or made it anew with another layout of the same size."""
    with connect(either.address, "inline") as other:
        either.set(name, image(1), 1, layout=LAYOUT)
        other.set(name, image(2), 2)
        assert either.set(name, image(3), 3).position == 3 and bytes(other.get(name).data) == image(3)
        moved.now()
        either.set(name, image(4), 4)
        assert moved.now()["stored"] == (1 if either.way == "lane" else 0)
        other.delete(name)
        with pytest.raises(statepool.StatepoolError) as error:
            either.set(name, image(5), 5)
        assert error.value.reason == "DELETED"
        other.set(name, image(6), 6, layout=TWIN)
        assert either.set(name, image(7), 7).layout == TWIN.fingerprint
        assert bytes(either.get(name).data) == image(7)
        other.delete(name)
        other.create(SMALL, name)
        assert either.get(name).info.state_bytes == SMALL.state_bytes
        either.set(name, image(1, SMALL), 9)
        assert bytes(either.get(name).data) == image(1, SMALL)


def test_states_of_several_layouts_are_told_apart(either, name):
    for n in range(6):
        for layout in (LAYOUT, TWIN, SMALL):
            either.set(f"{name}/{layout.model_id}", image(n, layout), n, layout=layout)
        for layout in (SMALL, LAYOUT, TWIN):
            state = either.get(f"{name}/{layout.model_id}")
            assert (bytes(state.data), state.info.layout) == (image(n, layout), layout.fingerprint)


def test_bytes_that_do_not_arrive_as_they_were_stored_are_data_loss(pool, name, monkeypatch):
    pool.set(name, image(1), 1, layout=LAYOUT)
    real = statepool.Arena._load

    def load(arena, *arguments):
        results = real(arena, *arguments)
        arena["ssm"][0, 1, 2, 3, 4] += 1
        return results

    monkeypatch.setattr(statepool.Arena, "_load", load)
    for out in (None, bytearray(NBYTES)):
        with pytest.raises(statepool.DataLoss) as error:
            pool.get(name, out=out)
        assert error.value.reason == "CHECKSUM_MISMATCH" and error.value.metadata["expected"] != error.value.metadata["actual"]
    with connect(pool.address, verify=False) as trusting:
        assert bytes(trusting.get(name, layout=LAYOUT).data) != image(1)


# -------------------------------------------------------------------------------------------------------------- fall-backs


def works(pool, name, times=3):
    """get and set do what they do."""
    for n in range(times):
        pool.set(name, image(n), n, layout=LAYOUT)
        assert bytes(pool.get(name, n).data) == image(n)


@pytest.mark.parametrize("flags, opens", [
    (["--arena-socket="], 0), ([f"--max-arena-bytes={2 * 16 * NBYTES - 1}"], 0), ([f"--max-arena-bytes={2 * 16 * NBYTES}"], 1)])
def test_without_arenas_or_room_for_them_nothing_is_opened(start, at_once, calls, flags, opens):
    daemon = start(*flags)
    with connect(daemon.address) as pool:
        works(pool, "s")
        assert (calls["OpenArena"], rows_of(pool)) == (opens, opens) and calls["GetCapabilities"] <= 2
        if not opens:
            assert Moved(daemon).before[:2] == [0, 0]


@pytest.mark.parametrize("abstract", [True, False])
def test_a_socket_that_is_not_on_this_machine_is_not_even_tried(start, at_once, calls, tmp_path, monkeypatch, abstract):
    daemon = start(*([] if abstract else [f"--arena-socket={tmp_path / 'arenas'}"]))
    with connect(daemon.address) as pool:
        told = pool.capabilities().arena_socket
        assert _mapping.is_here(told) and told.startswith("@") == abstract
        if abstract:
            monkeypatch.setattr(_mapping, "is_here", lambda path: False)
        else:
            os.rename(told, daemon.directory / "elsewhere")
            assert not _mapping.is_here(told)
        works(pool, "s")
        assert calls["OpenArena"] == 0


@pytest.mark.parametrize("reason", ["TOO_MANY_ARENAS", "TOKEN_INVALID"])
def test_arenas_that_the_daemon_refuses_are_asked_for_once_in_a_while(start, at_once, calls, reason, monkeypatch):
    daemon = start(*(["--max-arenas=1"] if reason == "TOO_MANY_ARENAS" else ["--arena-token-timeout=1ns"]))
    with connect(daemon.address) as other, connect(daemon.address, retries=5) as pool:
        taken = other.open_arena(LAYOUT, rows=1) if reason == "TOO_MANY_ARENAS" else None
        calls.clear()
        works(pool, "s")
        assert calls["OpenArena"] == 1 and rows_of(pool) == 0
        pool._lane._paused_until -= _lane.PAUSE_S - 1
        works(pool, "s")
        assert calls["OpenArena"] == 1
        if taken is not None:
            taken.close()
            pool._lane._paused_until -= 1
            works(pool, "s")
            assert calls["OpenArena"] == 2 and rows_of(pool) == 1


@pytest.mark.parametrize("trouble", [
    errors.made("RESOURCE_EXHAUSTED", "HOT_FULL", ""), errors.made("RESOURCE_EXHAUSTED", "ARENA_TOO_LARGE", ""),
    errors.made("RESOURCE_EXHAUSTED", "MAPPING_FAILED", ""), errors.made("UNAVAILABLE", "SOCKET_UNREACHABLE", ""),
    errors.made("PERMISSION_DENIED", "PEER_REFUSED", ""), errors.made("INTERNAL", "BAD_MEMORY", ""), errors.made("DEADLINE_EXCEEDED", "DEADLINE", ""),
    errors.made("UNAVAILABLE", "", ""), OSError("no"), MemoryError()], ids=lambda e: getattr(e, "reason", "") or type(e).__name__)
def test_whatever_is_the_matter_with_opening_an_arena_the_call_goes_inline(pool, name, calls, monkeypatch, trouble):
    def shelf(*arguments):
        calls["tried"] += 1
        raise trouble

    monkeypatch.setattr(statepool.arenas, "_Shelf", shelf)
    works(pool, name)
    assert calls["tried"] == 1 and calls["Set"] == calls["Get"] == 3


@pytest.mark.parametrize("trouble", [
    errors.made("RESOURCE_EXHAUSTED", "HOT_FULL", ""), errors.made("RESOURCE_EXHAUSTED", "QUEUE_FULL", ""), errors.made("NOT_FOUND", "ARENA_UNKNOWN", ""),
    errors.made("FAILED_PRECONDITION", "ARENA_NOT_CONNECTED", ""), errors.made("ABORTED", "CONTENTS_GONE", ""), errors.made("INTERNAL", "INTERNAL", ""),
    errors.made("UNIMPLEMENTED", "", "")], ids=lambda e: e.reason or e.code)
@pytest.mark.parametrize("where", ["call", "item"])
def test_whatever_is_the_matter_with_using_it_the_call_goes_inline(pool, name, calls, monkeypatch, trouble, where):
    if trouble.code == "NOT_FOUND" and where == "item":
        pytest.skip("then it is the name that is not found")
    works(pool, name, 1)

    def fails(*arguments):
        calls["tried"] += 1
        if where == "call":
            raise trouble
        return [trouble]

    monkeypatch.setattr(statepool.Arena, "_load", fails)
    monkeypatch.setattr(statepool.Arena, "_store", fails)
    calls.clear()
    works(pool, name)
    assert calls["tried"] >= 1 and calls["Set"] == calls["Get"] == 3


def losing(monkeypatch, method, answers, then=lambda: None):
    """The first call of `method` breaks: `answers`, after the daemon did it."""
    real = statepool._calls.Connection.call
    left = [1]

    def call(self, called, *arguments):
        if called == method and left and left.pop():
            if answers:
                real(self, called, *arguments)
            then()
            raise errors.Unavailable("UNAVAILABLE", "", "broken")
        return real(self, called, *arguments)

    monkeypatch.setattr(statepool._calls.Connection, "call", call)


@pytest.mark.parametrize("done", [True, False])
def test_a_set_whose_answer_is_lost_is_tried_again_on_the_lane_and_happens_once(daemon, at_once, name, moved, monkeypatch, done):
    with connect(daemon.address, retries=3) as pool:
        before = pool.set(name, image(1), 1, layout=LAYOUT, max_history=9).revision
        losing(monkeypatch, "Store", done)
        info = pool.set(name, image(2), 2, layout=LAYOUT)
        assert info.replayed == done and info.revision == pool.describe(name).revision > before
        assert [v.position for v in pool.describe(name).history] == [2, 1] and bytes(pool.get(name).data) == image(2)
        assert moved.now()["Set"] == 0


def test_without_retries_the_error_is_the_call_s_own(pool, name, monkeypatch):
    pool.set(name, image(1), 1, layout=LAYOUT)
    losing(monkeypatch, "Store", True)
    with pytest.raises(statepool.Unavailable):
        pool.set(name, image(2), 2, layout=LAYOUT)
    assert pool.describe(name).position == 2


def test_a_get_that_breaks_off_is_tried_again_inline(daemon, at_once, name, moved, monkeypatch):
    with connect(daemon.address) as pool:
        works(pool, name, 1)
        losing(monkeypatch, "Load", False)
        moved.now()
        assert bytes(pool.get(name).data) == image(0) and moved.now() == {"stored": 0, "loaded": 0, "Set": 0, "Get": 1}
        assert bytes(pool.get(name).data) == image(0) and moved.now()["loaded"] == 1


# ---------------------------------------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_goes_unnoticed(own_daemon, at_once, end):
    with connect(own_daemon.unix_address, retries=5) as pool:
        pool.set("s", image(1), 1, layout=LAYOUT, durability="sync")
        pool.get("s")
        for n in range(2, 5):
            getattr(own_daemon, end)()
            own_daemon.start()
            moved = Moved(own_daemon)
            assert bytes(pool.get("s").data) == image(n - 1)
            pool.set("s", image(n), n, layout=LAYOUT)
            pool.set("s", image(n), n)
            assert bytes(pool.get("s").data) == image(n) and moved.now()["stored"] >= 1 and rows_of(pool) == 1


@pytest.mark.parametrize("done", [True, False])
def test_a_restart_in_the_middle_of_a_set(own_daemon, at_once, monkeypatch, done):
    with connect(own_daemon.unix_address, retries=5) as pool:
        pool.set("s", image(1), 1, layout=LAYOUT, durability="sync", max_history=9)

        def restart():
            own_daemon.kill()
            own_daemon.start()

        losing(monkeypatch, "Store", done, restart)
        assert pool.set("s", image(2), 2, layout=LAYOUT).replayed == done
        assert [v.position for v in pool.describe("s").history] == [2, 1] and bytes(pool.get("s").data) == image(2)


@pytest.mark.parametrize("done", [True, False])
def test_a_restart_without_arenas_in_the_middle_of_a_set(own_daemon, at_once, monkeypatch, done):
    """The attempt that broke is followed by one in a message, whose request_id tells whether it was done: written twice it never is."""
    with connect(own_daemon.unix_address, retries=5) as pool:
        pool.set("s", image(1), 1, layout=LAYOUT, durability="sync", max_history=9)

        def restart():
            own_daemon.kill()
            own_daemon.flags = ["--arena-socket="]
            own_daemon.start()

        losing(monkeypatch, "Store", done, restart)
        if done:
            with pytest.raises(statepool.Unavailable, match="broken"):
                pool.set("s", image(2), 2, layout=LAYOUT)
        else:
            assert not pool.set("s", image(2), 2, layout=LAYOUT).replayed
        assert [v.position for v in pool.describe("s").history] == [2, 1] and bytes(pool.get("s").data) == image(2)
        works(pool, "t")


# ------------------------------------------------------------------------------------------------------- threads, processes


def test_eight_threads_have_a_few_rows_and_their_own_states(pool, name, moved):
    def work(thread):
        room = bytearray(NBYTES)
        for n in range(15):
            data = image(100 * thread + n)
            pool.set(f"{name}/{thread}", data, n, layout=LAYOUT)
            assert bytes(pool.get(f"{name}/{thread}", out=room).data) == data == bytes(pool.get(f"{name}/{thread}", n).data)

    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    seen = moved.now()
    assert seen["stored"] + seen["Set"] == 120 and seen["loaded"] + seen["Get"] == 240 and seen["stored"] > 10
    assert 1 <= rows_of(pool) <= _lane.ROWS_MAX and not any(slot.busy for slots in pool._lane._slots.values() for slot in slots)


def test_rows_in_use_leave_the_others_to_messages(pool, name, calls, monkeypatch):
    monkeypatch.setattr(_lane, "ROWS_MAX", 1)
    works(pool, name, 1)
    slot, = pool._lane._slots[LAYOUT.fingerprint]
    slot.busy = True
    calls.clear()
    works(pool, name)
    assert calls["Set"] == calls["Get"] == 3 and "OpenArena" not in calls
    slot.busy = False
    works(pool, name)
    assert calls["Store"] == calls["Load"] == 3


def test_a_forked_child_leaves_the_lane_alone(daemon):
    script = """
import os, sys
import numpy as np
import statepool
from statepool import _lane
_lane.CALLS_MIN = 1
pool = statepool.connect(sys.argv[1], timeout=10, retries=0)
layout = pool.register_layout(statepool.layouts.Layout("forked-lane", [statepool.layouts.Tensor("x", [0], "float32", {"a": 1 << 18})]))
name = f"forked-lane/{os.getpid()}"
pool.set(name, np.ones(1 << 18, np.float32), 1, layout=layout)
assert pool._lane.has_rows
pool._lane._lock.acquire()
pid = os.fork()
if pid == 0:
    assert pool._lane._take(pool, layout.fingerprint, None) is None
    pool._seen.learn(None)
    assert not pool._lane.give_way()
    pool._lane.close()
    del pool._lane._slots
    os._exit(0)
pool._lane._lock.release()
child, status = os.waitpid(pid, 0)
assert status == 0, status
pool.set(name, np.full(1 << 18, 2, np.float32), 2, layout=layout)
assert (np.frombuffer(pool.get(name).data, np.float32) == 2).all() and pool._lane.has_rows
print("done")
"""
    ended = subprocess.run([sys.executable, "-W", "error::ResourceWarning", "-c", script, daemon.address], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "done\n") and "Traceback" not in ended.stderr, ended


def test_rows_give_way_to_arenas_and_buffers_of_the_caller_s(start, at_once):
    daemon = start("--max-arenas=1")
    with connect(daemon.address) as pool:
        works(pool, "s")
        assert rows_of(pool) == 1
        with pool.open_arena(LAYOUT, rows=1) as arena:
            arena.load({0: "s"})
            works(pool, "s")
            assert rows_of(pool) == 0
        pool._lane._paused_until = 0
        works(pool, "s")
        assert rows_of(pool) == 1
        with pool.empty(LAYOUT) as (buffer,):
            assert pool.get("s", out=buffer).data == image(2)


def test_closing_the_pool_gives_the_rows_back(start, at_once):
    daemon = start()
    with connect(daemon.address) as pool:
        works(pool, "s")
        assert scrape(daemon)['statepool_arenas{state="leased"}'] == 1
    eventually(lambda: sum(v for k, v in scrape(daemon).items() if k.startswith("statepool_arenas{")) == 0)


@pytest.mark.parametrize("lost", ["Store", "Load"])
def test_a_row_is_left_alone_until_a_call_without_an_answer_has_ended(pool, name, monkeypatch, lost):
    works(pool, name, 1)
    slot, = pool._lane._slots[pool.describe(name).layout]
    real, seen = statepool._calls.Connection.call, []

    def call(self, method, *arguments):
        if method == lost and not seen:
            seen.append("lost")
            raise errors.made("DEADLINE_EXCEEDED", "", "planted")
        if method in ("Load", "Store"):
            seen.append((method, slot.row.tobytes() == image(9)))
        return real(self, method, *arguments)

    monkeypatch.setattr(statepool._calls.Connection, "call", call)
    if lost == "Store":
        with pytest.raises(statepool.DeadlineExceeded):
            pool.set(name, image(8), 8)
    else:
        pool.get(name)
    assert pool.set(name, image(9), 9).position == 9
    assert pool.set(name, image(9), 10).position == 10
    assert seen == ["lost", ("Load", False), ("Store", True), ("Store", True)]
    assert bytes(pool.get(name).data) == image(9)
