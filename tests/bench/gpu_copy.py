# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Figures gpu_copy_* and gpu_step_*: Load and Store of rows in a GPU's memory, as a worker that uses torch has them. README.md says what they mean."""
import contextlib
import math
import random
import time

import gpu_worker as worker
import harness
import statepool
import stamped
import torch
from statepool import StoreItem

ROWS = {"mamba-2.8b": (1, 64, 256), "rwkv-7": (1, 64, 256), "qwen3-next": (64,), "lfm2": (1, 64, 256)}
QUICK_ROWS = {"mamba-2.8b": (1, 64), "lfm2": (64,)}
CALLS, ONE_ROW_CALLS, QUICK_CALLS = 20, 60, 10
NAMES_BYTES = 1 << 30      # versions of a model are at least so many bytes together
RPC_GOAL = 2               # one large row, times an empty RPC
LARGE_BYTES = 20_000_000
STEP_GOALS_MS = {("direct", "time-sliced"): 0.15, ("direct", "mps"): 0.15, ("isolated", "mps"): 0.5}
STEPS, QUICK_STEPS = 80, 20  # of each kind
STEP_ROUNDS_MAX = 10       # of so many each, until the medians are known well enough for their goal
STEP_PRODUCTS = 10         # a step of the measuring worker: so many products of 4096 x 4096 matrices, about 2 ms
COPY = "one cudaMemcpyAsync device to device of as many bytes, by torch"


class Model:
    """One model's arena in one mode, and its names, of which every version has other bytes."""

    def __init__(self, pool, name, rows_max, mode, rng):
        self.pool, self.name, self.mode, self.rng = pool, name, mode, rng
        self.layout = pool.register_layout(worker.MODELS[name])
        self.arena = pool.open_arena(self.layout, rows=rows_max, direct=mode == "direct")
        self.rows = stamped.Rows(self.arena, self.layout)
        self.stamps = {}  # of each name
        self.next_stamp = 1
        self.wrong = self.checked = 0
        count = max(rows_max, min(4096, math.ceil(NAMES_BYTES / self.layout.state_bytes)))
        names = [f"copy/{mode}/{name}/{i}" for i in range(count)]
        rng.shuffle(names)  # so that no batch has slots that lie in a row
        for first in range(0, count, rows_max):
            self.store(names[first:first + rows_max])
        self.names = sorted(names)

    def close(self):
        del self.rows
        self.arena.close()
        self.pool.delete_many(f"copy/{self.mode}/{self.name}/", if_count=len(self.names))

    def store(self, names, call=worker.took_us, enqueue=False):
        """New versions of these; gives what call() made of it. enqueue: by store_async, whose end is awaited after that."""
        rows = list(range(len(names)))
        stamps = list(range(self.next_stamp, self.next_stamp + len(names)))
        self.next_stamp += len(names)
        self.rows.write(rows, stamps)
        worker.wait()
        items = {row: StoreItem(name, whole_row=True, any_revision=True, durability="volatile", max_history=1) for row, name in zip(rows, names)}
        if enqueue:
            stores = []
            taken = call(lambda: stores.append(self.arena.store_async(items, position=1)))
            stores[0].wait()
        else:
            taken = call(lambda: self.arena.store(items, position=1))
        self.stamps.update(zip(names, stamps))
        return taken

    def load(self, names, call=worker.took_us):
        rows = list(range(len(names)))
        items = dict(zip(rows, names))

        taken = call(lambda: self.arena.load(items))
        self.wrong += len(self.rows.wrong(rows, [self.stamps[name] for name in names]))
        self.checked += len(rows)
        return taken

    def some(self, rows):
        return self.rng.sample(self.names, rows)


def is_direct(model, metrics):
    before = worker.pinned_slots(metrics)
    model.load(model.some(1))
    return worker.pinned_slots(metrics) > before


def copy_lines(model, rows, calls, device_copy, copy_times, sharing):
    """Load and Store of so many rows, each call followed by one of torch's copy and an empty RPC."""
    nbytes = rows * model.layout.state_bytes
    taken = {what: [] for what in ("load", "store", "memcpy", "rpc", "load_copy", "store_copy")}
    for _ in range(calls + 3):
        for what in ("load", "store"):
            taken[what].append(getattr(model, what)(model.some(rows)))
            taken[f"{what}_copy"].append(copy_times.last_us or 0)
        taken["memcpy"].append(worker.took_us(lambda: device_copy.copy(nbytes)))
        taken["rpc"].append(worker.took_us(model.pool.capabilities))
    taken = {what: us[3:] for what, us in taken.items()}
    for what in ("load", "store"):
        memcpy_us, rpc_us = (worker.median(taken[other]) for other in ("memcpy", "rpc"))
        line = worker.times(f"gpu_copy_{what}_{model.name}_{rows}_{model.mode}_{sharing}", taken[what], bytes=nbytes, memcpy_us=memcpy_us,
                            memcpy_best_us=min(taken["memcpy"]), rpc_us=rpc_us, gb_s=2 * nbytes / min(taken[what]) / 1e3,
                            memcpy_gb_s=2 * nbytes / min(taken["memcpy"]) / 1e3)
        if model.mode == "isolated" and what == "store":  # a load is answered before its copy
            line["copy_us"] = worker.median(taken[f"{what}_copy"])
        one_row = rows == 1 and nbytes > LARGE_BYTES and sharing == "idle"
        yield line | ({"baseline": rpc_us, "baseline_name": "an empty RPC", "goal": RPC_GOAL, "goal_of": "ratio"} if one_row else
                      {"baseline": memcpy_us, "baseline_name": COPY})


def step_lines(model, sharing, busy, quick, missed):
    """What a Load or a Store adds to a step of this process, which computes too, beside an empty RPC; an asynchronous Store, beside nothing. Steps with
    each, in random order."""
    a, b, out = (torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda") for _ in range(3))

    def compute():
        for _ in range(STEP_PRODUCTS):
            torch.mm(a, b, out=out)

    def begun(call):
        call()
        compute()

    def ended(call):
        compute()
        call()

    def step(kind):
        if kind == "none":
            return worker.took_us(compute)
        if kind == "rpc":
            return worker.took_us(lambda: begun(model.pool.capabilities))
        if kind == "load":
            return model.load(model.some(1), lambda call: worker.took_us(lambda: begun(call)))
        return model.store(model.some(1), lambda call: worker.took_us(lambda: ended(call)), kind == "store_async")

    beside = {"load": "rpc", "store": "rpc"} | ({"store_async": "none"} if model.mode == "direct" else {})
    goals = dict.fromkeys(beside, STEP_GOALS_MS.get((model.mode, sharing)) if busy else None)
    if model.mode == "direct":
        goals["store"] = None  # it waits for what its step has enqueued before it asks the daemon
    taken = {kind: [] for kind in ("none", "rpc", *beside)}

    def noise_of(kind):
        return math.hypot(*(median_error(taken[other]) for other in (kind, beside[kind])))

    for _ in range(1 if quick else STEP_ROUNDS_MAX):
        order = list(taken) * (QUICK_STEPS if quick else STEPS)
        model.rng.shuffle(order)
        for kind in order:
            taken[kind].append(step(kind) / 1e3)
        if all(goal is None or noise_of(kind) <= goal / 2 for kind, goal in goals.items()):
            break
    for kind, goal in goals.items():
        name, noise = f"gpu_step_{kind}_{model.mode}_{busy}_{sharing}", noise_of(kind)
        added = [ms - worker.median(taken[beside[kind]]) for ms in taken[kind]]
        with missed.one(name):
            line = worker.times(name, added, "ms", goal=goal, noise=noise, step_ms=worker.median(taken["none"]),
                                step_and_rpc_ms=worker.median(taken["rpc"]))
            if goal is not None and noise > goal:
                raise harness.NotMeasurable(f"the medians of {len(added)} steps are within {noise:.2f} ms, which is more than the goal: {line}")
            yield line


def median_error(values):
    """Twice the standard error of a median, as for a normal distribution of this quartile distance."""
    return 2 * 1.2533 * (worker.quantile(values, 0.75) - worker.quantile(values, 0.25)) / 1.349 / math.sqrt(len(values))


def main():
    options = worker.options_of(__doc__, sharing="time-sliced", busy="0,1,4")
    busy_counts = [int(count) for count in options.busy.split(",")]
    rng, missed = random.Random(options.seed), harness.Missed()
    wrong = checked = 0
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(statepool.connect(options.server, timeout=120))
        copy_times = worker.CopyTimes(pool)
        busy = worker.Busy(stack, max(busy_counts))
        every = QUICK_ROWS if options.quick else ROWS
        device_copy = worker.DeviceCopy(max(max(rows) * worker.MODELS[name].state_bytes for name, rows in every.items()))
        for mode in ("isolated", "direct"):
            for name, rows in every.items():
                with missed.one(f"gpu_copy_{name}_{mode}_{options.sharing}"):
                    start = time.monotonic()
                    model = Model(pool, name, max(rows), mode, rng)
                    try:
                        if mode == "direct" and not is_direct(model, options.metrics):
                            raise harness.NotMeasurable(worker.NOT_DIRECT)
                        for count in busy_counts:
                            busy.set(count)
                            sharing = f"{count}_{options.sharing}" if count or options.sharing == "mps" else "idle"
                            for batch in rows:
                                calls = QUICK_CALLS if options.quick else CALLS if batch > 1 else ONE_ROW_CALLS
                                yield from copy_lines(model, batch, calls, device_copy, copy_times, sharing)
                            if name == "mamba-2.8b":
                                yield from step_lines(model, options.sharing, count, options.quick, missed)
                        busy.set(0)
                    finally:
                        wrong, checked = wrong + model.wrong, checked + model.checked
                        model.close()
                    harness.note(f"gpu_copy {name} {mode} {options.sharing}: {time.monotonic() - start:.0f} s")
        yield {"name": f"gpu_copy_wrong_{options.sharing}", "value": wrong, "unit": "rows", "n": checked, "goal": 0}
    missed.tell()


worker.run(main)
