# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Figures gpu_spill_* and gpu_trips_*: states that leave a GPU's memory and come back. README.md says what they mean.

--part=disk     until states that lie in the GPU's memory alone are on the disk, beside direct writes
--part=warm     GPU to pinned memory and back, beside torch's pinned copies; of a daemon with a warm tier
--part=trips    every dtype through all tiers, bit for bit"""
import mmap
import os
import pathlib
import random
import time

import gpu_worker as worker
import harness
import numpy as np
import statepool
import stamped
import torch
from statepool import StoreItem

MODEL = "mamba-2.8b"
DISK_ROWS, WARM_ROWS = 16, 64                       # of an arena; a call takes all. An RPC is little beside 64 rows to and from pinned memory
BLOCKS, QUICK_BLOCKS, BLOCK_STORES = 6, 3, 4        # a block of the disk's: so many Stores
PIECE_BYTES, GROUP_BYTES = 1 << 20, 64 << 20        # of direct writes: a write, and what is synced at a time
REALLY_MIN = 0.95                                   # of the bytes must have gone to the block device
WARM_PASSES, QUICK_WARM_PASSES, WARM_STATES = 8, 4, 320
WARM_CALLS_MIN = 8                                  # Loads that moved as many bytes as they have: some states stay on the GPU
WARM_PASS_MIN = 0.5                                 # of the bytes of a pass of Stores must have been driven out meanwhile
DISK_GOAL, WARM_GOAL = 0.8, 0.9
TRIP_STATES, TRIP_ROUNDS, QUICK_TRIP_ROUNDS = 96, 16, 8
TRIPS = statepool.Layout("bench/trips", tuple(       # every dtype, 4 MB together
    statepool.Tensor(f"of_{dtype}", range(4), dtype, {"a": 64, "b": 512}) for dtype in (
        "float32", "float16", "bfloat16", "float64", "float8_e4m3", "float8_e5m2", "int8", "uint8", "int16", "int32", "int64")))
EVERYWHERE_MIN = 0.5                                # of these states, that were seen in every tier


class Disk:
    """What the block device gets from this daemon, and a file that is written past the page cache."""

    def __init__(self, directory, pid):
        self._directory, self._io = directory, f"/proc/{pid}/io"
        self._piece = mmap.mmap(-1, PIECE_BYTES)  # aligned, as O_DIRECT wants it
        self._piece.write(random.randbytes(PIECE_BYTES))

    def written(self):
        fields = dict(line.split(": ") for line in pathlib.Path(self._io).read_text().splitlines())
        return int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])

    def settle(self):
        """Until the daemon writes no more, and the file system is synced."""
        quiet, before = 0, self.written()
        for _ in range(600):
            time.sleep(0.1)
            now = self.written()
            quiet, before = (quiet + 1 if now - before < PIECE_BYTES else 0), now
            if quiet == 3:
                os.sync()
                return
        raise harness.NotMeasurable("the daemon never stops writing")

    def write_directly(self, nbytes):
        """Seconds."""
        path = self._directory / "raw"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
        try:
            start = time.perf_counter()
            for at in range(0, nbytes, PIECE_BYTES):
                self._piece[:8] = at.to_bytes(8, "little")
                if os.pwrite(fd, self._piece, at) != PIECE_BYTES:
                    raise harness.NotMeasurable(f"{path}: a short write")
                if (at + PIECE_BYTES) % GROUP_BYTES == 0:
                    os.fdatasync(fd)
            os.fdatasync(fd)
            return time.perf_counter() - start
        finally:
            os.close(fd)
            path.unlink()


class Writer:
    """An arena whose rows are stored, each time other states."""

    def __init__(self, pool, rows):
        self.pool = pool
        self.layout = pool.register_layout(worker.MODELS[MODEL])
        self.arena = pool.open_arena(self.layout, rows=rows)
        self.rows = stamped.Rows(self.arena, self.layout)
        self.every = list(range(rows))
        self.stamps, self.next_stamp = {}, 1
        self.wrong = self.checked = 0

    def store(self, names, durability):
        """New states under these names. Seconds that the call took."""
        stamps = list(range(self.next_stamp, self.next_stamp + len(names)))
        self.next_stamp += len(names)
        self.rows.write(self.every, stamps)
        worker.wait()
        items = {row: StoreItem(name, whole_row=True, any_revision=True, durability=durability, max_history=1) for row, name in zip(self.every, names)}
        taken = worker.took_us(lambda: self.arena.store(items, position=1)) / 1e6
        self.stamps.update(zip(names, stamps))
        return taken

    def load(self, names):
        """Seconds that the call took."""
        taken = worker.took_us(lambda: self.arena.load(dict(zip(self.every, names)))) / 1e6
        self.wrong += len(self.rows.wrong(self.every, [self.stamps[name] for name in names]))
        self.checked += len(names)
        return taken

    def check_line(self, name):
        return {"name": name, "value": self.wrong, "unit": "states", "n": self.checked, "goal": 0}


def rates(name, ours, theirs, baseline_name, goal, **more):
    return {"name": name, "value": worker.median(ours), "unit": "GB/s", "n": len(ours), "p50": worker.median(ours), "p99": min(ours), "best": max(ours),
            "baseline": worker.median(theirs), "baseline_name": baseline_name, "goal": goal, "goal_of": "ratio", "goal_is_least": True} | more


def disk(options, pool):
    """Blocks of ours and of direct writes alternate. Rows are stored first, which takes milliseconds; then Flush says when all is on the disk."""
    writer, device = Writer(pool, DISK_ROWS), Disk(pathlib.Path(options.directory), options.pid)
    nbytes = BLOCK_STORES * DISK_ROWS * writer.layout.state_bytes
    ours, theirs, shares = [], [], []
    for i in range(1 + (QUICK_BLOCKS if options.quick else BLOCKS)):  # the first does not count
        device.settle()
        before = device.written()
        blocks = [[f"spill/{i}/{j}/{row}" for row in writer.every] for j in range(BLOCK_STORES)]
        taken = sum(writer.store(names, "write_behind") for names in blocks)
        start = time.perf_counter()
        pool.flush()
        taken += time.perf_counter() - start
        device.settle()
        shares.append((device.written() - before) / nbytes)
        theirs.append(nbytes / device.write_directly(nbytes) / 1e9)
        ours.append(nbytes / taken / 1e9)
        writer.load(blocks[0])
        pool.delete_many(f"spill/{i}/")
    if min(shares[1:]) < REALLY_MIN:
        raise harness.NotMeasurable(f"only {min(shares[1:]):.2f} of the bytes went to the block device")
    yield rates("gpu_spill_disk", ours[1:], theirs[1:], "direct writes, fdatasync every 64 MiB", DISK_GOAL, bytes=nbytes,
                write_amplification=worker.median(shares[1:]))
    yield writer.check_line("gpu_spill_disk_wrong")


def pinned_rates(nbytes):
    """GB/s of torch's copies GPU to pinned memory, and back."""
    on_gpu = torch.ones(nbytes, dtype=torch.uint8, device="cuda")
    pinned = torch.ones(nbytes, dtype=torch.uint8, pin_memory=True)
    for to, source in ((pinned, on_gpu), (on_gpu, pinned)):
        taken = [worker.took_us(lambda to=to, source=source: to.copy_(source, non_blocking=True)) for _ in range(worker.N)]
        yield [nbytes / us / 1e3 for us in taken[3:]]


def warm(options, pool):
    """More states than the GPU has room for, none of which may go to the disk. First all are stored, again and again: each Store drives others out, to
    memory that was pinned in the first round, which does not count. The daemon does that between calls too, for the next one: so what it moved in a pass
    counts over the time of all of the pass, in which the worker also writes its rows. Then all are loaded: what comes back was driven out before, those
    that must leave for it have their copy still, and nothing comes back between calls."""
    writer = Writer(pool, WARM_ROWS)
    state_bytes = writer.layout.state_bytes
    per_call = WARM_ROWS * state_bytes
    out, back = pinned_rates(per_call)
    moved, out_rates, back_rates, out_beside, back_beside = worker.moved(options.metrics), [], [], [], []
    blocks = [[f"spill/{i}/{row}" for row in writer.every] for i in range(WARM_STATES // WARM_ROWS)]
    passes = QUICK_WARM_PASSES if options.quick else WARM_PASSES

    def moved_since(way):
        nonlocal moved
        before, moved = moved, worker.moved(options.metrics)
        return moved.get(way, 0) - before.get(way, 0)

    def beside_us(nbytes, taken, theirs):
        """Microseconds that a state took beside its copy."""
        return (taken * 1e6 - nbytes / worker.median(theirs) / 1e3) / (nbytes / state_bytes)

    for i in range(1 + passes):
        moved_since(None)
        start = time.perf_counter()
        for names in blocks:
            writer.store(names, "volatile")
        taken = time.perf_counter() - start
        nbytes = moved_since(("hot", "warm"))
        if i > 0 and nbytes >= WARM_PASS_MIN * len(blocks) * per_call:
            out_rates.append(nbytes / taken / 1e9)
            out_beside.append(beside_us(nbytes, taken, out))
        if pool.describe(blocks[0][0]).tier != "warm":
            raise harness.NotMeasurable("the daemon has no warm tier behind this device: what left the GPU is not WARM")
    for _ in range(passes):
        for names in blocks:
            taken = writer.load(names)
            nbytes = moved_since(("warm", "hot"))
            if nbytes >= 0.9 * per_call:
                back_rates.append(nbytes / taken / 1e9)
                back_beside.append(beside_us(nbytes, taken, back))
    if len(out_rates) < passes or len(back_rates) < WARM_CALLS_MIN:
        raise harness.NotMeasurable(f"too little moved: {len(out_rates)} of {passes} passes of Stores, {len(back_rates)} Loads")
    yield rates("gpu_spill_to_pinned", out_rates, out, "torch's copy to pinned memory", WARM_GOAL, bytes=len(blocks) * per_call,
                beside_copy_us=worker.median(out_beside))
    yield rates("gpu_spill_from_pinned", back_rates, back, "torch's copy from pinned memory", WARM_GOAL, bytes=per_call,
                beside_copy_us=worker.median(back_beside))
    yield writer.check_line("gpu_spill_warm_wrong")


def trips(options, pool):
    """States of random bits, NaNs among them, in a daemon whose tiers above the disk have room for some: each is described, loaded and compared in every
    round, and stored anew in a third of them. VOLATILE, so that it goes the whole way down: what the disk has already is dropped at once."""
    layout = pool.register_layout(TRIPS)
    rng = random.Random(options.seed)
    arena = pool.open_arena(layout, rows=8)
    cells = [arena.layer(tensor.name, layer) for tensor in layout.tensors for layer in tensor.layers]
    wrong = checked = 0
    states, seen = {}, {f"trips/{i}": {"hot": 0, "warm": 0, "cold": 0} for i in range(TRIP_STATES)}

    def write(row, state):
        at = 0
        for cell in cells:
            nbytes = cell[row].numel() * cell.element_size()
            cell[row].view(torch.uint8).copy_(torch.from_numpy(state[at:at + nbytes]).view(cell[row].view(torch.uint8).shape))
            at += nbytes

    def read(row):
        return np.concatenate([cell[row].view(torch.uint8).flatten().cpu().numpy() for cell in cells])

    names = sorted(seen)
    for round_number in range(1 + (QUICK_TRIP_ROUNDS if options.quick else TRIP_ROUNDS)):
        for name in rng.sample(names, len(names)):
            if name in states:
                seen[name][pool.describe(name).tier] += 1
                arena.load({0: name})
                checked += 1
                wrong += not np.array_equal(read(0), states[name])
                seen[name]["hot"] += pool.describe(name).tier == "hot"
            if name not in states or rng.random() < 1 / 3:
                states[name] = np.frombuffer(rng.randbytes(layout.state_bytes), np.uint8).copy()
                write(1, states[name])
                arena.store({1: StoreItem(name, whole_row=True, any_revision=True, max_history=1, durability="volatile")}, position=round_number)
    for name in names:
        checked += 1
        wrong += not np.array_equal(np.frombuffer(pool.get(name).data, np.uint8), states[name])
    cells.clear()
    arena.close()
    tiers = {tier: sum(each[tier] for each in seen.values()) for tier in ("hot", "warm", "cold")}
    wanted = ("hot", "warm", "cold") if options.with_warm else ("hot", "cold")
    everywhere = sum(all(each[tier] for tier in wanted) for each in seen.values())
    if everywhere < EVERYWHERE_MIN * TRIP_STATES:
        raise harness.NotMeasurable(f"of {TRIP_STATES} states only {everywhere} were seen {', '.join(wanted)}: {tiers}")
    name = "gpu_trips_warm_wrong" if options.with_warm else "gpu_trips_wrong"
    yield {"name": name, "value": wrong, "unit": "states", "n": checked, "goal": 0, "dtypes": len(layout.tensors), "seen": tiers, "everywhere": everywhere}


def main():
    options = worker.options_of(__doc__, part="disk", directory="", pid=0, with_warm=0)
    with statepool.connect(options.server, timeout=120) as pool:
        yield from {"disk": disk, "warm": warm, "trips": trips}[options.part](options, pool)


worker.run(main)
