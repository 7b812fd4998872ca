# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The Python package leaves no garbage behind its errors: what a caller has when a call fails, arrays of an arena among it, goes when he lets go of it, not
when Python next looks for cycles. Arenas that nobody closed to the last array count against the daemon's budget."""
import contextlib
import gc
import shutil
import types

import numpy as np
import pytest

import statepool
from daemon_process import eventually
from statepool import StoreItem, errors
from statepool.layouts import Layout, Tensor

LAYOUT = Layout("garbage", (Tensor("state", [0], "float32", {"row": 512, "column": 512}, kind="recurrent"),))
IMAGE = bytes(LAYOUT.state_bytes)


@pytest.fixture(params=["", "--direct"], ids=["daemon copies", "direct"])
def daemon(request, start):
    return start(*filter(None, [request.param]))


@pytest.fixture
def pool(daemon):
    with statepool.connect(daemon.unix_address, timeout=5, retries=1) as pool:
        pool.register_layout(LAYOUT)
        pool.set("there", IMAGE, 1, layout=LAYOUT)
        yield pool


@pytest.fixture
def arena(pool):
    with pool.open_arena(LAYOUT, rows=4, steps=2) as arena:
        yield arena


@contextlib.contextmanager
def no_garbage():
    """No exception or frame that the block left is in a cycle."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        found = [thing for thing in gc.garbage if isinstance(thing, (BaseException, types.FrameType))]
        assert not found, f"{len(found)} things, {found[:9]}"
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def refused(call):
    """The reason or code of the error."""
    try:
        result = call()
    except statepool.StatepoolError as error:
        return error.reason or error.code
    return [getattr(each, "reason", None) for each in (result.values() if isinstance(result, dict) else result)]


def test_what_is_found_when_there_is_garbage():
    def fail():
        kept = statepool.NotFound("NOT_FOUND", "REASON")
        raise kept

    with pytest.raises(AssertionError, match="things"), no_garbage():
        refused(fail)


CALLS = {
    "get": (lambda pool: pool.get("nope"), "NEVER_CREATED"),
    "get a view": (lambda pool: pool.get("nope", copy=False), "NEVER_CREATED"),
    "get a part": (lambda pool: pool.get("nope", tensors=["state"]), "NEVER_CREATED"),
    "get into a buffer": (lambda pool: pool.get("nope", out=pool.empty(LAYOUT)[0]), "NEVER_CREATED"),
    "get another version": (lambda pool: pool.get("there", 7), "POSITION_MISMATCH"),
    "get_stream": (lambda pool: pool.get_stream("nope"), "NEVER_CREATED"),
    "batch": (lambda pool: pool.batch_get(["nope", "there"]), ["NEVER_CREATED", None]),
    "set": (lambda pool: pool.set("there", IMAGE, 2, layout=LAYOUT, if_revision=99), "REVISION_MISMATCH"),
    "set again": (lambda pool: [pool.set("there", IMAGE, 2, layout=LAYOUT, if_revision=99) for _ in range(20)], "REVISION_MISMATCH"),
    "create": (lambda pool: pool.create(LAYOUT, "there"), "NAME_EXISTS"),
    "fork": (lambda pool: pool.fork("nope", "child"), "NEVER_CREATED"),
    "match": (lambda pool: pool.match_prefix("no layout", [1, 2]), "LAYOUT_UNKNOWN"),
    "touch": (lambda pool: pool.sequence("nope").touch(), "NEVER_CREATED"),
    "an arena": (lambda pool: pool.open_arena(LAYOUT, rows=4000), "ARENA_TOO_LARGE"),
}

ARENA_CALLS = {
    "load": (lambda arena: arena.load({0: "nope"}), "NEVER_CREATED"),
    "load, errors returned": (lambda arena: arena.load({0: "nope", 1: "there"}, return_errors=True), ["NEVER_CREATED", None]),
    "load too far": (lambda arena: arena.load({99: "there"}), "ROW_OUT_OF_RANGE"),
    "store": (lambda arena: arena.store({0: StoreItem("there", 2, whole_row=True, if_revision=99)}), "REVISION_MISMATCH"),
    "store all": (lambda arena: arena.store({0: StoreItem("there", 2, whole_row=True, if_revision=99), 1: StoreItem("x", 2, whole_row=True, if_revision=0)},
                                            all_or_none=True), "REVISION_MISMATCH"),
    "store two": (lambda arena: arena.store({0: StoreItem("one", 1, whole_row=True), 1: StoreItem("one", 1, whole_row=True)}), "DUPLICATE_NAME"),
    "store_async": (lambda arena: arena.store_async({0: StoreItem("there", 2, whole_row=True, if_revision=99)}).wait(), "REVISION_MISMATCH"),
    "store_async, twice": (lambda arena: wait_twice(arena.store_async({0: StoreItem("one", 1), 1: StoreItem("one", 1)})), "DUPLICATE_NAME"),
    "advance": (lambda arena: arena.advance({0: 9}), "INVALID_ACCEPTED_LENGTH"),
}


def wait_twice(storing):
    first = refused(storing.wait)
    assert first == refused(storing.wait)
    return storing.wait()


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_fails_leaves_no_garbage(pool, what):
    call, reason = CALLS[what]
    assert refused(lambda: call(pool)) == reason  # what is made once is made now
    with no_garbage():
        assert refused(lambda: call(pool)) == reason


@pytest.mark.parametrize("what", ARENA_CALLS)
def test_a_call_of_an_arena_that_fails_leaves_no_garbage(arena, what):
    call, reason = ARENA_CALLS[what]
    assert refused(lambda: call(arena)) == reason
    with no_garbage():
        assert refused(lambda: call(arena)) == reason


def test_arenas_of_calls_that_missed_are_given_back_with_their_last_array(pool):
    """A quarter of the budget each, with what is reserved: if a call that missed keeps one there is soon no other."""
    rows = 16

    def session(i):
        with pool.open_arena(LAYOUT, rows=rows) as arena:
            array = arena.layer("state", 0)
            assert refused(lambda: arena.load({0: "nope"})) == "NEVER_CREATED"
            array[:] = i
            arena.store({0: StoreItem("session", 1 + i, whole_row=True, any_revision=True)})

    gc.collect()
    gc.disable()
    try:
        for i in range(6):
            session(i)
    finally:
        gc.enable()
    assert (np.frombuffer(pool.get("session").data, np.float32) == 5).all()


def test_a_pool_that_was_closed_leaves_no_garbage(pool, arena):
    with no_garbage():
        pool.close()
        assert refused(lambda: pool.get("there")) == "POOL_CLOSED"
        assert refused(arena.store_async({0: StoreItem("there", 2, whole_row=True)}).wait) == "POOL_CLOSED"


def test_what_is_raised_again_is_what_it_was():
    class Own(statepool.Conflict):
        def __init__(self, what):
            super().__init__("ABORTED", "OWN", "a message", "field", {"key": "value"}, 1.5)
            self.what = what

    try:
        try:
            raise ValueError("the cause")
        except ValueError as cause:
            raise Own("this") from cause
    except Own as own:
        first, copy = own, errors.again(own)
    assert type(copy) is Own and copy is not first and vars(copy) == vars(first) and copy.args == first.args and str(copy) == str(first)
    assert copy.__cause__ is first.__cause__ and copy.__cause__.__traceback__ is not None and copy.__traceback__ is None


def test_why_an_arena_can_not_be_opened_again_is_told(daemon, pool, arena):
    daemon.kill()
    shutil.rmtree(daemon.directory / "data")
    daemon.start()

    def failure():
        try:
            arena.load({0: "there"})
        except statepool.NotFound as error:
            return error
        except statepool.Unavailable:
            return None

    error = eventually(failure)
    assert error.reason == "ARENA_UNKNOWN" and error.__cause__.reason == "LAYOUT_UNKNOWN"


def test_a_daemon_that_dies_and_one_that_comes_leave_no_garbage(daemon, pool, arena):
    with no_garbage():
        daemon.kill()
        assert refused(lambda: pool.get("there")) == "UNAVAILABLE"
        assert refused(lambda: pool.set("there", IMAGE, 2, layout=LAYOUT)) == "UNAVAILABLE"
        assert refused(lambda: arena.load({0: "there"})) == "UNAVAILABLE"
        assert refused(lambda: arena.store({0: StoreItem("there", 2, whole_row=True)})) == "UNAVAILABLE"
        daemon.start()
        eventually(lambda: refused(lambda: arena.store({0: StoreItem("there", 2, whole_row=True)})) == "CONTENTS_GONE")
        arena.store({0: StoreItem("there", 2, whole_row=True, any_revision=True)})
