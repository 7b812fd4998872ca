# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Figures gpu_spill_* and gpu_trips_*: states that leave a GPU's memory and come back. README.md says what they mean.

--part=disk     until states that lie in the GPU's memory alone are on the disk, beside direct writes
--part=warm     GPU to pinned memory and back, beside torch's pinned copies; of a daemon with a warm tier
--part=trips    every dtype through all tiers, bit for bit"""
import concurrent.futures
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
DISK_ROWS, WARM_ROWS, WARM_WORKERS = 16, 32, 2      # of an arena; a call takes all its rows
BLOCKS, QUICK_BLOCKS, BLOCK_STORES = 6, 3, 4        # a block of the disk's: so many Stores
PIECE_BYTES, GROUP_BYTES = 1 << 20, 64 << 20        # of direct writes: a write, and what is synced at a time
REALLY_MIN = 0.95                                   # of the bytes must have gone to the block device
WARM_PASSES, QUICK_WARM_PASSES, WARM_STATES = 8, 4, 320
WARM_FIRST_PASSES = 6                               # of Stores: until the warm tier has pinned what it uses
WARM_PASS_MIN = 0.5                                 # of the bytes of a pass must have moved: some states stay on the GPU
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

    def load(self, names, compare=True):
        """Into the rows, and compares them then."""
        self.arena.load(dict(zip(self.every, names)))
        worker.wait()
        if compare:
            self.wrong += len(self.rows.wrong(self.every, [self.stamps[name] for name in names]))
            self.checked += len(names)

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


class Workers:
    """Threads with an arena and a stream each, which take the blocks of a pass in turns: so the daemon has work while one of them is busy with itself."""

    def __init__(self, pool):
        self.writers = [Writer(pool, WARM_ROWS) for _ in range(WARM_WORKERS)]
        for writer in self.writers[1:]:
            writer.stamps = self.writers[0].stamps
        self._streams = [torch.cuda.Stream() for _ in self.writers]

    def each(self, blocks, call):
        """call(writer, names) for each block. Seconds that all of it took."""
        def work(index):
            with torch.cuda.stream(self._streams[index]):
                for names in blocks[index::len(self.writers)]:
                    call(self.writers[index], names)

        with concurrent.futures.ThreadPoolExecutor(len(self.writers)) as threads:
            start = time.perf_counter()
            for done in [threads.submit(work, index) for index in range(len(self.writers))]:
                done.result()
            return time.perf_counter() - start


def warm(options, pool):
    """More states than the GPU has room for, none of which may go to the disk. First all are stored, again and again: each Store drives others out, to
    memory that was pinned in the first rounds, which do not count. Then all are loaded: what comes back was driven out before, and those that must leave
    for it have their copy still. What moved in a pass counts over the time of all of the pass, in which the workers also write their rows. Rows are
    compared in a last pass, whose time does not count: the GPU can't do that and hash what arrives, both processes at once."""
    workers = Workers(pool)
    state_bytes = workers.writers[0].layout.state_bytes
    out, back = pinned_rates(64 * state_bytes)
    blocks = [[f"spill/{i}/{row}" for row in range(WARM_ROWS)] for i in range(WARM_STATES // WARM_ROWS)]
    passes = QUICK_WARM_PASSES if options.quick else WARM_PASSES

    def rates_of(way, first, call, theirs):
        """GB/s of each pass, and microseconds that a state took beside its copy."""
        found, beside = [], []
        for i in range(first + passes):
            before = worker.moved(options.metrics).get(way, 0)
            taken = workers.each(blocks, call)
            nbytes = worker.moved(options.metrics).get(way, 0) - before
            if i >= first and nbytes >= WARM_PASS_MIN * WARM_STATES * state_bytes:
                found.append(nbytes / taken / 1e9)
                beside.append((taken * 1e6 - nbytes / worker.median(theirs) / 1e3) / (nbytes / state_bytes))
            if pool.describe(blocks[0][0]).tier == "cold":
                raise harness.NotMeasurable("the daemon has no warm tier behind this device, or too small a one: what left the GPU is COLD")
        if len(found) < passes:
            raise harness.NotMeasurable(f"too little moved: {len(found)} of {passes} passes")
        return found, beside

    stored, stored_beside = rates_of(("hot", "warm"), WARM_FIRST_PASSES, lambda writer, names: writer.store(names, "volatile"), out)
    loaded, loaded_beside = rates_of(("warm", "hot"), 1, lambda writer, names: writer.load(names, compare=False), back)
    workers.each(blocks, lambda writer, names: writer.load(names))
    nbytes = WARM_STATES * state_bytes
    yield rates("gpu_spill_to_pinned", stored, out, "torch's copy to pinned memory", WARM_GOAL, bytes=nbytes, beside_copy_us=worker.median(stored_beside),
                each=[round(rate, 1) for rate in stored])
    yield rates("gpu_spill_from_pinned", loaded, back, "torch's copy from pinned memory", WARM_GOAL, bytes=nbytes,
                beside_copy_us=worker.median(loaded_beside), each=[round(rate, 1) for rate in loaded])
    yield {"name": "gpu_spill_warm_wrong", "value": sum(writer.wrong for writer in workers.writers), "unit": "states",
           "n": sum(writer.checked for writer in workers.writers), "goal": 0}


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
