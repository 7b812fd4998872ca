# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Flag words of an arena on a GPU (ARENAS in statepool.proto): the worker's streams and the daemon tell each other by words in memory when rows may be
touched, and no CPU waits for a stream.

A call has a pair of words: its stream sets one when it has come to the call (`after`), the daemon the other when it is done with the rows (`done`). Each
use of a pair counts both up by one. A pair is free for the next call when both have reached what the last one gave them: so no word ever goes back.
"""
from __future__ import annotations

import collections
import contextlib
import select
import socket
import threading
import time
from typing import Any, Protocol

from . import _gpu_copies, errors
from .v1 import statepool_pb2 as pb

GRACE_S = 1.0
"""How long after a call's deadline the daemon has to set its word, before this side does it."""
LATE_S = 60.0
"""The daemon's own limit for copies after the answer."""
LOOK_S = 0.0005
"""How often a CPU looks at a word that it waits for; less often by and by."""
WATCH_S = 0.5
"""How often the thread looks at calls of its own accord: less than GRACE_S, so that one that begins meanwhile need not wake it."""
_FAILURES = 0  # the daemon's word: loads and advances that failed after their answer


class Words(Protocol):
    """The words' memory, for this process's CPU and its streams. _cuda.GpuWords is one."""

    count: int

    def get(self, word: int) -> int: ...

    def set(self, word: int, value: int) -> None: ...

    def write(self, stream: Any, word: int, value: int) -> None:
        """In the stream's order, after all that is in it has been written. StatepoolError (GPU_FAILED)."""

    def wait(self, stream: Any, word: int, value: int) -> None:
        """The stream goes on when the word has reached the value. StatepoolError (GPU_FAILED)."""

    def close(self) -> None:
        """REQUIRES: every word that a stream waits for is reached. Waits for the streams."""


class Call:
    """A load, store or advance that uses a pair."""

    def __init__(self, pair: int, value: int, rows: frozenset[int], is_load: bool, deadline: float) -> None:
        self.after = pb.FlagValue(word=pair, value=value)
        self.done = pb.FlagValue(word=pair + 1, value=value)
        self.rows = rows
        self.is_load = is_load  # it may fail after its answer
        self.deadline = deadline  # time.monotonic(), after which nothing is heard of it any more
        self.is_open = True  # somebody waits for its answer
        self.is_watched = False  # nobody does, and a stream may wait for the daemon
        self.is_retired = False  # the daemon may still set its word: the pair is not used again


class Enqueued(_gpu_copies.Written):
    """Of a store that the daemon copies: here there is nothing to wait for."""

    def __init__(self) -> None:  # no event, and no hashes
        pass

    def is_done(self) -> bool:
        return True

    def checksums(self) -> list[str]:
        return []

    def settle(self) -> None:
        pass


class Flags:
    """The pairs of one arena, as long as it is not opened again. Thread-safe.

    A thread of its own, from the first load that was answered on, sets the words that streams wait for when the daemon is gone or late: until close().
    """

    def __init__(self, words: Words, lease: socket.socket) -> None:
        """words: closed with this. lease: the arena's connection, which is there until close()."""
        self._words = words
        self._lease = lease
        self._changed, self._change = socket.socketpair()  # wakes the thread
        self._changed.setblocking(False)
        self._change.setblocking(False)
        self._lock = threading.RLock()  # of what follows; an Arena may be collected wherever it is held
        self._free = collections.deque(range(1, words.count - 1, 2))
        self._values: dict[int, int] = {}  # of each pair, last
        self._busy: list[Call] = []  # in the order of their calls
        self._failures = 0  # that were told
        self._suspects: set[int] = set()  # rows of loads that are over, and may be what failed
        self._forced = 0  # loads whose word this side has set
        self._closed = False
        self._thread: threading.Thread | None = None
        self._sleeps = False  # the thread, until it is woken
        self._had_news = False  # since it looked

    def begin(self, stream: Any, rows: frozenset[int], timeout: float, *, is_load: bool) -> Call | None:
        """A call's pair: `after` is in the stream. timeout: seconds, of the call. None: there is no pair, or none any more. StatepoolError (GPU_FAILED)."""
        with self._lock:
            self._reclaim()
            if self._closed or not self._free:
                return None
            pair = self._free[0]
            value = self._values.get(pair, 0) + 1 & 0xFFFFFFFF
            self._words.write(stream, pair, value)
            self._free.popleft()
            self._values[pair] = value
            call = Call(pair, value, rows, is_load, time.monotonic() + timeout + GRACE_S)
            self._busy.append(call)
            return call

    def extend(self, call: Call, timeout: float) -> None:
        """The call is asked for now, and has so many seconds."""
        with self._lock:
            call.deadline = time.monotonic() + timeout + GRACE_S

    def follow(self, call: Call, stream: Any) -> None:
        """The stream goes on when the daemon is done with the rows. StatepoolError (GPU_FAILED)."""
        with self._lock:
            if self._closed:
                return
            self._words.wait(stream, call.done.word, call.done.value)

    def answered(self, call: Call) -> None:
        """The daemon has answered: it sets `done`, or has."""
        with self._lock:
            call.is_open = False
            if call.is_load:
                call.deadline = min(call.deadline, time.monotonic() + LATE_S + GRACE_S)
                self._watch(call)

    def leave(self, call: Call) -> None:
        """Of a call that was interrupted: nobody waits for its answer, and the daemon has until its deadline to be done with its rows."""
        with self._lock:
            call.is_open = False
            self._watch(call)

    def refused(self, call: Call) -> None:
        """The daemon has answered with an error of the call: it sets nothing any more."""
        with self._lock:
            call.is_open = call.is_load = False
            self._set_done(call)

    def settle(self, call: Call) -> bool:
        """After a call that got no answer: waits until the daemon is done with its rows. False: it is gone, or late, and they are left to the stream; what
        it still does there is not known."""
        pause = LOOK_S
        while True:
            with self._lock:
                done = self._closed or self._has_reached(call.done)
                gone = not done and (self._hung_up() or time.monotonic() >= call.deadline)
                if done or gone:
                    call.is_open = call.is_load = False
                    if gone:
                        self._give_up(call)
                    return done
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def check(self) -> None:
        """RowsLost, once, when loads failed after their answer."""
        with self._lock:
            if self._closed:
                return
            self._reclaim()  # first: the daemon counts before it says that it is done
            count = self._words.get(_FAILURES)
            lost = (count - self._failures & 0xFFFFFFFF) + self._forced
            rows, self._suspects = sorted(self._suspects), set()
            self._failures, self._forced = count, 0
        if lost:
            raise errors.RowsLost(
                "ABORTED", "ROWS_LOST", f"{lost} loads or advances failed after they had returned: the stream, or the daemon, did not come to their copies in time, or "
                f"a device failed. What is in their rows, some of {rows}, is not known; load them again", metadata={"rows": ",".join(map(str, rows))})

    def release(self) -> None:
        """All streams go on, and no word is used any more: of an arena that is lost, or is to be closed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for call in self._busy:
                self._set_done(call)
            thread = self._thread
            self._tell()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def close(self) -> None:
        """release(), and then the memory: waits for the GPU. Once."""
        self.release()
        self._words.close()

    # ------------------------------------------------------------------------------------------ REQUIRES of these: _lock

    def _has_reached(self, flag: pb.FlagValue) -> bool:
        return self._words.get(flag.word) - flag.value & 0x80000000 == 0

    def _set_done(self, call: Call) -> None:
        if not self._has_reached(call.done):
            self._words.set(call.done.word, call.done.value)

    def _give_up(self, call: Call) -> None:
        self._set_done(call)
        call.is_retired = True

    def _reclaim(self) -> None:
        """Frees the pairs of calls that are over."""
        if self._closed:
            return
        busy: list[Call] = []
        for call in self._busy:
            if call.is_open or not self._has_reached(call.done) or not self._has_reached(call.after):
                busy.append(call)
                continue
            if not call.is_retired:
                self._free.append(call.after.word)
            if call.is_load:
                self._suspects |= call.rows
        self._busy = busy

    def _watch(self, call: Call) -> None:
        call.is_watched = self._had_news = True
        if self._closed:
            return
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="statepool-flags", daemon=True)
            thread.start()
            self._thread = thread
        elif self._sleeps:
            self._sleeps = False
            self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full: the thread will look
            self._change.send(b"\0")

    def _hung_up(self) -> bool:
        return self._lease.fileno() < 0 or bool(_poll(self._lease.fileno(), None, 0.0)[0])

    # ------------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                late = [call for call in self._busy if call.is_watched and not self._has_reached(call.done)]
                self._sleeps, self._had_news = not late and not self._had_news, False
                pause = None if self._sleeps else WATCH_S
                lease, now = self._lease.fileno(), time.monotonic()
                for call in late:
                    if now >= call.deadline:
                        self._give_up(call)
                        self._forced += call.is_load
            for call in late:
                if now < call.deadline:
                    pause = min(pause or WATCH_S, call.deadline - now)
            hung_up, woken = _poll(lease, self._changed.fileno(), pause)
            with self._lock:
                if hung_up:
                    for call in self._busy:
                        self._give_up(call)
                    return  # the arena's next call finds it lost
            if woken:
                with contextlib.suppress(BlockingIOError):
                    self._changed.recv(4096)


def _poll(lease: int, changed: int | None, timeout: float | None) -> tuple[bool, bool]:
    """Whether the lease has hung up, and whether there is something to read from `changed`."""
    poll = select.poll()
    poll.register(lease, 0)
    if changed is not None:
        poll.register(changed, select.POLLIN)
    told = {fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)}
    return lease in told, changed in told
