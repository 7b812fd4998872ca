# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""What one worker of `crash/run workers` does until it is killed, and the process that keeps its memory beyond that.

A worker runs in a process of its own, forked from one in which gRPC never ran. It tells its lane by lines, each written
with one call, so that a line is whole or was never written:
    r                           it has looked at what the worker before it left, and begins
    !                           it enters the phase in which it is to die
    i NUMBER ALL_OR_NONE NAMES  a Store begins; a NAMES: so many were acknowledged; u NAMES: refused
    f NAME NUMBER               what was found under a name that could have been one of several
    s                           what it found tells the outcome of the Store that began last
    p INCARNATION               it loaded and stored something
    n FIELD COUNT               so much more happened
    x KIND TEXT                 a violation
The phase that it is in stands in memory that outlives it."""
import collections
import contextlib
import os
import random
import select
import socket
import threading
import time

import numpy as np

import statepool
import worker_memory as memory
import worker_words as words
from statepool import StoreItem, View, _mapping
from statepool.v1 import statepool_pb2

PHASES = ("between", "open", "connect", "load", "store", "close")
BETWEEN, OPEN, CONNECT, LOAD, STORE, CLOSE = range(len(PHASES))
VIEWS = ("per_layer", "layer_major", "row_major")
NEW_NAMES = 4       # of a lane, that are made anew again and again
LOOSE_MAX = 2       # arenas of a life that someone keeps, or that hang up: with the one in use there are never more than three
NOTICED_S = 1.0
WATCHED_MAX = 4
WATCH_S = 0.02
TIMEOUT_S = 20.0
patience = 1.0      # what is to happen in time may take so many times as long

Plan = collections.namedtuple("Plan", "address lane rows life seed phase nth survives verify delete direct")
SAMPLE = slice(None, None, words.SAMPLE)
VIEWS_KEPT = 3      # of states, that a life in direct mode looks at again and again


class Life:
    """Of the child process. `page`: memory shared with the lane; `watcher`: a socket to the process that keeps memory."""

    def __init__(self, plan, oracle, pipe, page, watcher):
        self.plan, self.oracle, self.pipe, self.page, self.watcher = plan, oracle, pipe, page, watcher
        self.random = random.Random(plan.seed)
        self.entered = 0
        self.begun = False
        self.loose = 0
        self.mappings = []  # of arenas of this life, that it keeps
        self.views = collections.deque()  # of states, with what they were
        self.arena = self.lease = None
        self.cells = []  # (first word, Words [row, word]) of each tensor and layer of the arena
        self.unsure = self.hung_up = False
        self.doubts = []  # (row, what a load left there that is not what it said): the arena's next call is to fail
        self.within = BETWEEN
        self.real_connect, _mapping.connect = _mapping.connect, self.connect

    # ------------------------------------------------------------------------------------------------------ telling

    def say(self, *parts):
        os.write(self.pipe, (" ".join(map(str, parts)) + "\n").encode())

    def say_names(self, what, indexes):
        self.say(what, ",".join(map(str, indexes)))

    def violation(self, kind, text):
        self.say("x", kind, f"lane {self.plan.lane} life {self.plan.life}: {text}"[:2000].replace("\n", " "))

    @contextlib.contextmanager
    def phase(self, phase):
        before, self.within = self.within, phase
        self.page[0] = phase
        if self.begun and phase == self.plan.phase:
            self.entered += 1
            if self.entered == self.plan.nth:
                self.say("!")
        try:
            yield
        finally:
            self.page[0] = self.within = before

    # ------------------------------------------------------------------------------------------------------ living

    def live(self):
        with statepool.connect(self.plan.address, timeout=TIMEOUT_S) as self.pool:
            self.real_call, self.pool._connection.call = self.pool._connection.call, self.call
            self.layout = self.pool.register_layout(words.LAYOUT)
            memory.prepare(self.pool.capabilities().devices[0].name)
            self.settle(range(self.plan.rows) if self.plan.verify else self.oracle.unsure())
            self.renew()
            for i in range(self.plan.rows) if self.plan.delete else ():
                self.delete(i)
            if self.plan.delete == "layout":
                self.pool.delete_layout(self.layout)
            self.say("r")
            self.begun = True
            while not self.plan.verify:
                self.step()

    def step(self):
        """One turn, of which any part may fail because the arena or the daemon is gone."""
        try:
            if self.unsure:
                self.settle(self.oracle.unsure())
                self.unsure = False
            if self.arena is None:
                self.open()
            self.load()
            self.scribble()
            self.store()
            self.say("p", self.arena.incarnation)
            with self.phase(BETWEEN):
                self.look_at_kept()
                time.sleep(self.random.choice((0, 0, 0.002)))
            if self.random.random() < (0.05 if self.plan.survives else 0.35):
                self.end()
        except statepool.ContentsGone:
            self.reopened()
        except statepool.StatepoolError as error:
            self.failed(error)
        self.look_at_kept()

    def failed(self, error):
        # A load that had returned is not copied any more once the arena ended.
        hung_up = self.hung_up and (isinstance(error, statepool.RowsLost) or (not self.plan.survives and error.code == "CANCELLED"))
        if isinstance(error, statepool.RowsLost):
            self.told(error.rows)
        if isinstance(error, statepool.DataLoss):
            self.violation("half_versions", error)
        elif not hung_up and not (self.plan.survives and isinstance(error, (statepool.Unavailable, statepool.NotFound))):
            self.violation("hung" if isinstance(error, statepool.DeadlineExceeded) else "unexpected", error)
        elif self.plan.survives:
            self.say("n errors 1")
            time.sleep(0.02)
        self.unsure = True

    def doubt(self, row, is_left, text):
        """Of a row that does not hold what a load said; is_left: but for zeros it does. An arena whose connection broke is zeros as soon as the daemon
        notices, and nothing else. Where the daemon copies in the order of a stream the arena may also end, or the daemon die, after its answer and before
        the copy. Then the arena's next call says that this row is lost, or all are. If it does not, the row was wrong."""
        is_late = not self.plan.direct and self.arena.device.startswith("cuda") and (self.plan.survives or self.hung_up)
        if is_late or (self.hung_up and is_left):
            self.doubts.append((row, text))
        else:
            self.violation("half_versions", text)

    def told(self, rows):
        """The arena has said that these rows are lost, and no others."""
        if not self.doubts:
            return
        lost = [row for row, _ in self.doubts if row in rows]
        self.say(f"n rows_lost {len(lost)}")
        for row, text in self.doubts:
            if row not in lost:
                self.violation("half_versions", f"{text}; and the arena does not say so")
        self.doubts = []

    def reopened(self):
        self.say("n reopened 1")
        self.told(range(self.plan.rows))
        if not self.plan.survives and not self.hung_up:
            self.violation("unexpected", "the arena was gone though nobody ended it")
        self.hung_up = False
        self.unsure = True
        if self.addresses() != self.at:
            self.violation("unexpected", "the arena was opened again at other addresses")
        self.look_for_zeros()

    # ------------------------------------------------------------------------------------- opening, keeping, ending

    def open(self):
        with self.phase(OPEN):
            view = View(VIEWS[(self.plan.lane + self.plan.life) % len(VIEWS)])
            self.arena = self.pool.open_arena(self.layout, rows=self.plan.rows, view=view, direct=bool(self.plan.direct))
        self.hung_up = False
        self.cells, at = [], 0
        for tensor in words.LAYOUT.tensors:
            for layer in tensor.layers:
                self.cells.append((at, memory.rows_of(self.arena.layer(tensor.name, layer), self.plan.rows)))
                at += self.cells[-1][1].count
        assert at == words.WORDS and self.arena.nbytes == self.plan.rows * words.LAYOUT.state_bytes
        self.at = self.addresses()
        self.look_for_zeros()
        self.say("n operations 1")

    def call(self, method, *arguments):
        """In place of the package's, which opens arenas in other calls too: a worker that dies now leaves one that nobody connects to."""
        if method == "OpenArena":
            self.page[0] = OPEN
        return self.real_call(method, *arguments)

    def connect(self, table, timeout):
        """In place of the package's: what it gets is kept elsewhere too."""
        with self.phase(CONNECT):
            connected = self.real_connect(table, timeout)
        lease, fd, mapped_bytes = connected[:3]
        self.page[0] = self.within
        if not isinstance(table, statepool_pb2.Arena):
            self.say("n leases 1")
            return connected
        self.lease = lease
        if self.may_be_loose(0.4):
            if self.random.random() < 0.4:
                self.mappings.append(memory.map_again(table.device, fd, table.bytes, mapped_bytes))
                self.say("n kept 1")
            else:
                fds = [fd] + [lease.fileno()] * (self.random.random() < 0.5)  # the connection, too: it will not hang up
                socket.send_fds(self.watcher, [f"{self.plan.life} {table.device} {table.bytes} {mapped_bytes}".encode()], fds)
                self.say("n watched 1")
        return connected

    def end(self):
        if self.may_be_loose(0.3):
            self.hang_up()
        self.cells = []
        arena, self.arena = self.arena, None
        with self.phase(CLOSE):
            arena.close()
        self.say("n operations 1")

    def hang_up(self):
        """The lease ends though this process lives on with its mapping; then the arena is open anew."""
        self.say("n hang_ups 1")
        self.hung_up = True
        _hang_up(self.lease, 0)
        deadline = time.monotonic() + NOTICED_S * patience
        while time.monotonic() < deadline:
            try:
                self.arena.load({0: words.name_of(self.plan.lane, 0)}, return_errors=True)
            except statepool.RowsLost as error:  # of the load before
                self.told(error.rows)
            except statepool.ContentsGone:
                self.reopened()
                return
            time.sleep(0.001)
        self.violation("leaked", f"the lease goes on {NOTICED_S * patience} s after it hung up")

    def may_be_loose(self, how_often):
        if self.plan.survives or self.loose == LOOSE_MAX or self.random.random() >= how_often:
            return False
        self.loose += 1
        return True

    def addresses(self):
        return [cell.address for _, cell in self.cells]

    # ---------------------------------------------------------------------------------------------------- looking

    def look_for_zeros(self):
        for _, cell in self.cells:
            if (found := cell.nonzero()) is not None:
                self.violation("given_twice", f"a new arena has {words.tell(found)}")
                return

    def look_for_foreign(self):
        for _, cell in self.cells:
            if found := words.foreign(cell.get((slice(None), SAMPLE)).ravel(), self.plan.lane, self.plan.life):
                self.violation("given_twice", f"a row has {found}")
                return

    def keep(self, index, state):
        self.say("n views 1")
        self.views.append((index, state.position, np.frombuffer(state.data, np.uint64)))
        if len(self.views) > VIEWS_KEPT:
            self.views.popleft()

    def look_at_views(self):
        """They show what they showed at first, whatever became of their names."""
        for index, number, view in self.views:
            found = words.whole(view)
            if found is None or found[:2] != (words.STATE, self.plan.lane) or (found.name, found.number) != (index, number):
                self.violation("half_versions", f"a view of name {index} at {number} is {words.tell(view[0])} now")

    def look_at_kept(self):
        """They show what this life wrote, or zeros. It goes on writing: nobody else must ever see that."""
        for mapping in self.mappings:
            if found := words.foreign(mapping.get(SAMPLE), self.plan.lane, self.plan.life):
                self.violation("given_twice", f"a mapping that was kept has {found}")
        for mapping in self.mappings[:-1] if self.arena is not None else self.mappings:
            mapping.put(SAMPLE, words.first(words.SCRIBBLE, self.plan.lane, self.plan.life, 0, 0))

    def row(self, row):
        return np.concatenate([cell.get(row) for _, cell in self.cells])

    def fill(self, rows, firsts):
        begin = np.array(firsts, np.uint64)[:, None]
        for at, cell in self.cells:
            cell.put(rows, begin + np.arange(at, at + cell.count, dtype=np.uint64))

    def check(self, index, position, data, where, row=None):
        """The number of the write that these words are, which were loaded into a row, or read otherwise."""
        found = words.whole(data)
        if found is None or found[:2] != (words.STATE, self.plan.lane) or found.name != index or found.number != position:
            breaks = np.flatnonzero(np.diff(data) != 1)[:4] + 1
            text = f"{where}: name {index} at {position} is {words.tell(data[0])}, breaks at {[int(b) for b in breaks]}"
            if row is None:
                self.violation("half_versions", text)
            else:
                self.doubt(row, words.is_left(data, words.STATE, self.plan.lane, index, position), text)
            return None
        if not self.oracle.is_right(index, found.number):
            self.violation("lost", f"{where}: name {index} has {found.number}, not one of {self.oracle.of(index)}")
        return found.number

    def settle(self, indexes):
        """Looks at what these names have, by another way than arenas."""
        found = {}
        for i in indexes:
            try:
                state = self.pool.get(words.name_of(self.plan.lane, i), copy=not self.plan.direct)
                found[i] = self.check(i, state.position, np.frombuffer(state.data, np.uint64), "Get")
                if self.plan.direct and self.random.random() < 0.5:
                    self.keep(i, state)
            except statepool.NotFound:
                found[i] = None
                if not self.oracle.is_right(i, None):
                    self.violation("lost", f"name {i} is not there, though it had {self.oracle.of(i)}")
            except statepool.DataLoss as error:
                found[i] = None
                self.violation("half_versions", f"name {i}: {error}")
        if self.oracle.is_half(found):
            self.violation("half_versions", f"half of a Store that was all or none: {self.oracle.flying} left {found}")
        for i, number in found.items():
            self.oracle.found(i, number)
            self.say("f", i, "-" if number is None else number)
        if self.oracle.flying is not None and set(self.oracle.flying[0]) <= found.keys():
            self.oracle.flying = None
            self.say("s")
        self.say(f"n read {len(found)}")

    def renew(self):
        for i in range(self.plan.rows, self.plan.rows + NEW_NAMES):
            self.delete(i)

    def delete(self, index):
        if self.oracle.of(index) != {None}:
            self.pool.delete(words.name_of(self.plan.lane, index), allow_missing=True)
            self.oracle.found(index, None)
            self.say("f", index, "-")

    # ----------------------------------------------------------------------------------------------- load and store

    def load(self):
        rows = self.some_rows()
        source = {row: row for row in rows}
        if self.random.random() < 0.1:
            source = dict.fromkeys(rows, rows[0])
        source = {row: i for row, i in source.items() if self.oracle.of(i) != {None}}
        with self.phase(LOAD), self.perhaps_hung_up(0.05):
            loaded = self.arena.load({row: words.name_of(self.plan.lane, i) for row, i in source.items()}, return_errors=True)
        if loaded:  # without rows nobody was asked
            self.told(())
        self.say("n operations 1")
        self.look_at_views()
        if self.plan.direct and self.random.random() < 0.1:
            self.settle(self.random.sample(range(self.plan.rows), min(2, self.plan.rows)))
        for row, result in loaded.items():
            i = source[row]
            if isinstance(result, statepool.NotFound):
                if not self.oracle.is_right(i, None):
                    self.violation("lost", f"Load: name {i} is not there: {result}")
            elif isinstance(result, statepool.StatepoolError):
                self.violation("half_versions" if isinstance(result, statepool.DataLoss) else "unexpected", f"Load of name {i}: {result}")
            else:
                self.check(i, result.position, self.row(row), "Load", row)
        self.say(f"n read {len(loaded)}")
        self.look_for_foreign()

    def scribble(self):
        rows = self.some_rows()
        number = self.random.randrange(1 << 20)
        self.fill(rows, [words.first(words.SCRIBBLE, self.plan.lane, self.plan.life, row, number) for row in rows])

    def store(self):
        plan, number = self.plan, self.oracle.number + 1
        rows, all_or_none = self.some_rows(), self.random.random() < 0.5
        index = {row: row for row in rows}
        for row, new in zip(self.random.sample(rows, min(len(rows), self.random.randrange(3))), range(plan.rows, plan.rows + NEW_NAMES)):
            index[row] = new
        self.fill(rows, [words.first(words.STATE, plan.lane, plan.life, index[row], number) for row in rows])
        self.look_for_foreign()
        items = {}
        for row, i in index.items():
            absent = self.oracle.of(i) == {None}
            items[row] = StoreItem(words.name_of(plan.lane, i), number, whole_row=True, durability=words.durability_of(i), max_history=1,
                                   if_revision=0 if absent else None, any_revision=i != row and not absent)
        written = list(index.values())
        self.oracle.intend(number, written, all_or_none)
        self.say("i", number, int(all_or_none), ",".join(map(str, written)))
        with self.phase(STORE), self.perhaps_hung_up(0.1):
            stored = self.arena.store(items, all_or_none=all_or_none, return_errors=not all_or_none)
        self.told(())
        refused = [index[row] for row, result in stored.items() if isinstance(result, statepool.StatepoolError)]
        for row, result in stored.items():
            if isinstance(result, statepool.StatepoolError):
                self.violation("unexpected", f"Store of name {index[row]}: {result}")
        acked = [i for i in written if i not in refused]
        self.oracle.refuse(refused)
        self.oracle.acknowledge(acked)
        if refused:
            self.say_names("u", refused)
        self.say_names("a", acked)
        self.say("n operations 1")

    @contextlib.contextmanager
    def perhaps_hung_up(self, how_often):
        """The connection of the arena breaks off during the call, or right after it."""
        if not self.may_be_loose(how_often):
            yield
            return
        delay = self.random.random() * 0.0002 * (self.plan.rows + 5)
        self.hung_up = True
        self.say("n hang_ups 1")
        thread = threading.Thread(target=_hang_up, args=(self.lease, delay))
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def some_rows(self):
        rows = range(self.plan.rows)
        return list(rows) if self.random.random() < 0.4 else self.random.sample(rows, self.random.randint(1, self.plan.rows))


def _hang_up(lease, delay):
    time.sleep(delay)
    with contextlib.suppress(OSError):  # the package was first
        lease.shutdown(socket.SHUT_RDWR)


# ------------------------------------------------------------------------------------------------------------- watching


class _Kept:
    def __init__(self, life, device, nbytes, mapped_bytes, fds):
        self.life, self.fds = life, fds
        self.words = memory.map_again(device, fds[0], nbytes, mapped_bytes)
        self.seen = False

    def close(self):
        del self.words
        for fd in self.fds:
            os.close(fd)


def watch(lane, inbox, pipe):
    """A process that has the descriptors, mappings and some connections of arenas, but opened none. Its lane tells "dead LIFE" when that worker is
    gone: from then on it writes to its mapping. Never returns."""
    kept, dead = collections.deque(), set()
    while True:
        while select.select([inbox], [], [], WATCH_S)[0]:
            message, fds, _, _ = socket.recv_fds(inbox, 256, 4)
            if not message:
                os._exit(0)
            what, *told = message.decode().split()
            if what == "dead":
                dead.add(int(told[0]))
                continue
            device, nbytes, mapped_bytes = told
            try:
                kept.append(_Kept(int(what), device, int(nbytes), int(mapped_bytes), list(fds)))
            except PermissionError:  # sealed before it came here: nobody can write to it any more
                for fd in fds:
                    os.close(fd)
            if len(kept) > WATCHED_MAX:
                kept.popleft().close()
        for one in kept:
            found = words.foreign(one.words.get(SAMPLE), lane, one.life)
            if found and not one.seen:
                one.seen = True
                os.write(pipe, f"x given_twice lane {lane}: a process that keeps memory of life {one.life} sees {found}\n".encode())
            if one.life in dead:
                one.words.put(SAMPLE, words.first(words.SCRIBBLE, lane, one.life, 0, 0))
