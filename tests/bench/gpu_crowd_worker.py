# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""One worker of gpu_crowd.py: a random mix of everything on names of its own, whose states it knows, and looks at other workers' names and prefixes, whose
states must be somebody's. Prints "ready", goes on when its stdin says so, and ends with one line of JSON."""
import argparse
import collections
import json
import pathlib
import random
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
import harness  # noqa: E402

sys.path += [str(harness.REPOSITORY / folder) for folder in ("python", "client/python/src")]
import error_table  # noqa: E402
import numpy as np  # noqa: E402
import stamped  # noqa: E402
import statepool  # noqa: E402
from statepool import Layout, StoreItem, Tensor  # noqa: E402

# Layout, rows of an arena, how often: those of LFM2 1.2B, Mamba 130M and RWKV-7 0.4B, 82 KB to 6.4 MB.
LAYOUTS = (
    (Layout("crowd/lfm2", (Tensor("conv", range(10), "bfloat16", {"channel": 2048, "tap": 2}, "conv"),)), 16, 30),
    (Layout("crowd/mamba", (Tensor("ssm", range(24), "float32", {"channel": 1536, "state": 16}, "recurrent"),
                            Tensor("conv", range(24), "bfloat16", {"channel": 1536, "tap": 3}, "conv"))), 4, 35),
    (Layout("crowd/rwkv", (Tensor("wkv", range(24), "float32", {"head": 16, "value": 64, "key": 64}, "recurrent"),
                           Tensor("shift", range(24), "bfloat16", {"which": 2, "channel": 1024}, "shift"))), 2, 35),
)
OPERATIONS = {"store": 24, "load": 28, "get": 10, "set": 10, "fork": 10, "delete": 8, "publish": 6, "match": 8}
DURABILITIES = ("volatile", "write_behind", "sync")
BOARD_ROWS = 16          # of a worker and a layout: the prefixes that it published last
GONE_PREFIX = ("EVICTED", "UNKNOWN")
REFUSALS = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")  # what a daemon that is short of something may say of a state that is there
SHOWN_MAX = 5
KINDS = ("wrong", "lost", "undocumented")


def stamp_of(worker, layout, number):
    return worker << 40 | layout << 36 | number


def layout_of(stamp):
    return stamp >> 36 & 15


def tokens_of(stamp):
    """A state's position follows from its stamp, and so do the tokens that lead to it."""
    return [stamp >> 24, stamp >> 12 & 4095, stamp & 4095, *range(5 + stamp % 56)]


def position_of(stamp):
    return 8 + stamp % 56


class Worker:
    def __init__(self, options):
        self.number, self.workers = options.number, options.workers
        self.rng = random.Random(f"{options.seed}/{options.number}")
        self.pool = statepool.connect(options.server, timeout=60)
        self.direct = bool(options.number % 2) and self.pool.capabilities().copy_mode == "direct"
        self.layouts = [self.pool.register_layout(layout) for layout, _, _ in LAYOUTS]
        self.arenas = [self.pool.open_arena(layout, rows=rows, direct=self.direct) for layout, (_, rows, _) in zip(self.layouts, LAYOUTS)]
        self.rows = [stamped.Rows(arena, layout) for arena, layout in zip(self.arenas, self.layouts)]
        self.held = [{} for _ in LAYOUTS]        # stamps by row, of those rows that are known
        self.names = [{} for _ in LAYOUTS]       # own ones: the stamps that each may show; more than one after a write without an answer
        self.holders = collections.Counter()     # own names by stamp
        self.live_bytes, self.live_bytes_min = 0, 1 << 62
        self.target_bytes = options.live_bytes
        self.next_number = 1
        self.board = np.memmap(options.board, np.int64, "r+", shape=(self.workers, len(LAYOUTS), BOARD_ROWS))
        self.documented = error_table.documented()
        self.counts, self.errors, self.shown = collections.Counter(), collections.Counter(), collections.Counter()

    # ---------------------------------------------------------------------------------------------------------- judging

    def violation(self, kind, text):
        self.counts[kind] += 1
        self.shown[kind] += 1
        if self.shown[kind] <= SHOWN_MAX:
            harness.note(f"worker {self.number}: {kind}: {text}")

    def refused(self, error, what):
        """An error of a call that has no reason but that the daemon is short of something."""
        self.errors[f"{error.code} {error.reason}"] += 1
        if (error.code, error.reason) not in self.documented:
            self.violation("undocumented", f"{what}: {error}")
        elif isinstance(error, statepool.NotFound):
            self.violation("lost", f"{what}: {error}")
        elif error.code not in REFUSALS:
            self.violation("wrong", f"{what}: {error}")
        else:
            self.counts["refused"] += 1

    def judge(self, name, stamp, position, may):
        """What a read gave: a whole state (its stamp, or None), one that the name may show (None: anyone's)."""
        self.counts["states_checked"] += 1
        if stamp is None:
            self.violation("wrong", f"{name} at {position} is no state; it may have {may}")
        elif position != position_of(stamp):
            self.violation("wrong", f"{name} has the state {stamp:#x} of position {position_of(stamp)} at {position}")
        elif may is None:
            if stamp >> 40 >= self.workers or layout_of(stamp) != int(name.split("/")[2]):
                self.violation("wrong", f"{name} has the state {stamp:#x}, which is of no worker, or of another layout")
        elif stamp not in may:
            self.violation("wrong", f"{name} has the state {stamp:#x}; it may have {[hex(one) for one in may]}")

    # ------------------------------------------------------------------------------------------------------------ names

    def any_layout(self):
        return self.rng.choices(range(len(LAYOUTS)), [often for _, _, often in LAYOUTS])[0]

    def name_of(self, layout, index):
        return f"crowd/{self.number}/{layout}/{index}"

    def new_name(self, layout):
        self.next_number += 1
        return self.name_of(layout, self.next_number)

    def new_stamp(self, layout):
        self.next_number += 1
        return stamp_of(self.number, layout, self.next_number)

    def some_names(self, layout, most):
        """Own ones; may be none."""
        known = list(self.names[layout])
        return self.rng.sample(known, min(len(known), self.rng.randint(1, most)))

    def foreign_name(self, layout):
        """Of another worker, at a guess: it may not be there."""
        other = self.rng.randrange(self.workers)
        return f"crowd/{other}/{layout}/{self.rng.randint(1, max(2, self.next_number))}" if other != self.number else None

    def to_write(self, layout):
        """A name for a new state: a new one, as long as there are too few bytes."""
        known = self.some_names(layout, 1)
        return self.new_name(layout) if not known or self.live_bytes < self.target_bytes else known[0]

    def shows(self, layout, name, stamps):
        """From now on."""
        nbytes = self.layouts[layout].state_bytes
        before = self.names[layout].pop(name, set())
        if stamps:
            self.names[layout][name] = stamps
        for stamp in stamps - before:
            self.live_bytes += nbytes * (self.holders[stamp] == 0)
            self.holders[stamp] += 1
        for stamp in before - stamps:
            self.holders[stamp] -= 1
            if self.holders[stamp] == 0:
                self.live_bytes -= nbytes
                del self.holders[stamp]

    def written(self, layout, name, stamp, error, what):
        """The outcome of a write: done (no error), refused, or not known."""
        if error is None:
            self.shows(layout, name, {stamp})
            return
        self.refused(error, what)
        if error.code == "UNAVAILABLE" or (error.code, error.reason) not in self.documented:
            self.shows(layout, name, self.names[layout].get(name, set()) | {stamp})

    # ------------------------------------------------------------------------------------------------------- operations

    def options(self):
        return {"durability": self.rng.choices(DURABILITIES, (50, 45, 5))[0], "max_history": self.rng.choice((1, 1, 2))}

    def store(self):
        layout = self.any_layout()
        arena, rows, held = self.arenas[layout], self.rows[layout], self.held[layout]
        used = self.rng.sample(range(arena.rows), self.rng.randint(1, arena.rows))
        names = {}  # by row, each once
        for row in used:
            name = self.to_write(layout)
            if name not in names.values():
                names[row] = name
        stamps = {row: self.new_stamp(layout) for row in names}
        rows.write(list(stamps), list(stamps.values()))
        held.update(stamps)
        items = {row: StoreItem(name, position_of(stamps[row]), whole_row=True, any_revision=True, **self.options()) for row, name in names.items()}
        try:
            results = arena.store(items, all_or_none=self.rng.random() < 0.3, return_errors=True)
        except statepool.StatepoolError as error:
            results = dict.fromkeys(items, error)
        for row, result in results.items():
            self.written(layout, names[row], stamps[row], result if isinstance(result, statepool.StatepoolError) else None, f"Store of {names[row]}")

    def load(self):
        layout = self.any_layout()
        arena, rows, held = self.arenas[layout], self.rows[layout], self.held[layout]
        names = self.some_names(layout, arena.rows)
        if self.rng.random() < 0.3 and (foreign := self.foreign_name(layout)):
            names = names[:arena.rows - 1] + [foreign]
        used = dict(zip(self.rng.sample(range(arena.rows), len(names)), names))
        if not used:
            return
        try:
            results = arena.load(used, return_errors=True)
        except statepool.StatepoolError as error:
            self.refused(error, f"Load of {names}")
            for row in used:
                held.pop(row, None)
            return
        self.took(layout, used, results)
        if self.rng.random() < 0.2:  # nobody wrote to the other rows
            if wrong := rows.wrong(list(held), list(held.values())) if held else ():
                self.violation("wrong", f"after a Load into rows {sorted(used)} the rows {wrong} of {arena!r} are not what they were")

    def took(self, layout, used, results):
        """The rows that a Load filled."""
        rows, held = self.rows[layout], self.held[layout]
        loaded = {}
        for row, result in results.items():
            name = used[row]
            own = name in self.names[layout]
            if not isinstance(result, statepool.StatepoolError):
                loaded[row] = result
            elif own or not isinstance(result, statepool.NotFound):
                self.refused(result, f"Load of {name}")
                held.pop(row, None)
        if not loaded:
            return
        told = dict(zip(loaded, rows.stamps(list(loaded))))
        wrong = rows.wrong(list(told), list(told.values()))
        for row, result in loaded.items():
            stamp = None if row in wrong else told[row]
            self.judge(used[row], stamp, result.position, self.names[layout].get(used[row]))
            held.pop(row, None)
            if stamp is not None:
                held[row] = stamp

    def get(self):
        layout = self.any_layout()
        name = self.foreign_name(layout) if self.rng.random() < 0.3 else next(iter(self.some_names(layout, 1)), None)
        if name is not None:
            self.read(layout, name)

    def read(self, layout, name):
        own = name in self.names[layout]
        try:
            state = self.pool.get(name, copy=not self.direct)
        except statepool.StatepoolError as error:
            if own or not isinstance(error, statepool.NotFound):
                self.refused(error, f"Get of {name}")
            return
        self.judge(name, stamped.stamp_of(state.data), state.position, self.names[layout].get(name))

    def set(self):
        layout = self.any_layout()
        name, stamp, failure = self.to_write(layout), self.new_stamp(layout), None
        try:
            self.pool.set(name, stamped.image(stamp, self.layouts[layout].state_bytes), position_of(stamp), layout=self.layouts[layout], **self.options())
        except statepool.StatepoolError as error:
            failure = error
        self.written(layout, name, stamp, failure, f"Set of {name}")

    def fork(self):
        layout = self.any_layout()
        for source in self.some_names(layout, 1):
            may, failure = self.names[layout][source], None
            children = [self.new_name(layout) for _ in range(self.rng.randint(1, 4))]
            try:
                self.pool.fork_many(source, children)
            except statepool.StatepoolError as error:
                failure = error
                self.refused(error, f"Fork of {source}")
            for child in children if failure is None else ():
                self.shows(layout, child, set(may))

    def delete(self):
        layout = self.any_layout()
        for name in self.some_names(layout, 12):
            if self.live_bytes <= self.target_bytes:
                return
            try:
                self.pool.delete(name)
            except statepool.StatepoolError as error:
                self.refused(error, f"Delete of {name}")
                continue
            self.shows(layout, name, set())
            try:
                self.pool.describe(name)
                self.violation("wrong", f"{name} is there though it was deleted")
            except statepool.NotFound:
                pass

    def publish(self):
        layout = self.any_layout()
        for name in self.some_names(layout, 1):
            may = self.names[layout][name]
            stamp = next(iter(may))
            if len(may) > 1 or stamp >> 40 != self.number:
                continue
            try:
                self.pool.publish_prefix(self.layouts[layout], tokens_of(stamp), name)
            except statepool.StatepoolError as error:
                self.refused(error, f"PublishPrefix of {name}")
                continue
            self.board[self.number, layout, self.rng.randrange(BOARD_ROWS)] = stamp

    def match(self):
        """Anybody's prefix: found, it is forked to an own name, whose state is looked at later."""
        layout = self.any_layout()
        stamp = int(self.board[self.rng.randrange(self.workers), layout, self.rng.randrange(BOARD_ROWS)])
        if stamp == 0:
            return
        tokens, name = tokens_of(stamp), self.new_name(layout)
        try:
            hit = self.pool.match_prefix(self.layouts[layout], [*tokens, 1, 2, 3])
            if not hit:
                self.counts["prefixes_gone"] += 1
                if hit.miss_reason not in GONE_PREFIX:
                    self.violation("lost", f"the prefix of {stamp:#x} is missed: {hit.miss_reason}")
                return
            self.counts["hits"] += 1
            if hit.position != len(tokens):
                self.violation("wrong", f"the prefix of {stamp:#x} is {len(tokens)} tokens, the match {hit.position}")
            self.pool.fork(hit, name)
        except statepool.StatepoolError as error:
            if not isinstance(error, statepool.NotFound) or error.reason not in GONE_PREFIX:
                self.refused(error, f"the prefix of {stamp:#x}")
            return
        self.shows(layout, name, {stamp})

    # -------------------------------------------------------------------------------------------------------------- main

    def run(self, seconds):
        kinds, weights = list(OPERATIONS), list(OPERATIONS.values())
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            kind = self.rng.choices(kinds, weights)[0]
            getattr(self, kind)()
            self.counts[kind] += 1
            if elapsed > seconds / 2:
                self.live_bytes_min = min(self.live_bytes_min, self.live_bytes)
        for layout, names in enumerate(self.names):
            for name in list(names):
                self.read(layout, name)
        self.rows = []
        for arena in self.arenas:
            arena.close()
        self.pool.close()


def main():
    parser = argparse.ArgumentParser()
    for flag, kind in (("server", str), ("board", str), ("number", int), ("workers", int), ("seed", int), ("seconds", float), ("live-bytes", int)):
        parser.add_argument(f"--{flag}", type=kind, required=True)
    options = parser.parse_args()
    worker = Worker(options)
    print("ready", flush=True)
    sys.stdin.readline()
    worker.run(options.seconds)
    print(json.dumps({"counts": worker.counts, "errors": worker.errors, "live_bytes": worker.live_bytes_min, "direct": worker.direct}), flush=True)


if __name__ == "__main__":
    main()
