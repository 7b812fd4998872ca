#!/usr/bin/env python3
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""tests/gpu/arenas_check.py [--seed N] [--quick]: arenas in a GPU's memory, from the daemon to torch tensors in a worker.

Lines of the contract on stdout: "gpu-arenas" counts checks that failed; the others are times of Load and Store. Needs a GPU, torch and cuda-bindings.
With --worker NAME it is one of the workers that it starts."""
import argparse
import contextlib
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path[:0] = [str(HERE), str(HERE.parent / "bench")]
import harness  # noqa: E402

sys.path += [str(harness.REPOSITORY / folder) for folder in ("python", "client/python/src")]  # a bundle's, the tree's
try:
    import cuda.bindings.driver  # noqa: F401
    import numpy as np
    import statepool
    import torch
    from statepool import LoadItem, StoreItem, View
except ImportError as missing:
    harness.note(f"not measurable: {missing}; pip install cuda-bindings torch statepool")
    sys.exit(harness.NOT_MEASURABLE)

MIB = 1 << 20
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
VIEWS = {
    "per_layer": View(),
    "transposed": View(axis_orders={"ssm": ["head", "value", "key"]}),
    "layer_major": View("layer_major", axis_orders={"ssm": ["key", "head", "value"]}),
    "row_major": View("row_major"),
    "padded": View(conv_padding=1),
}
EVERY_DTYPE = statepool.Layout("every-dtype", (
    statepool.Tensor("conv", (0, 1, 2), "bfloat16", {"channel": 64, "tap": 3}, "conv"),
    statepool.Tensor("ssm", (0, 2), "float32", {"head": 4, "key": 16, "value": 24}, "recurrent"),
    *(statepool.Tensor(f"of_{dtype}", (1, 3), dtype, {"a": 8, "b": 40}) for dtype in (
        "float16", "bfloat16", "float64", "float8_e4m3", "float8_e5m2", "int8", "uint8", "int16", "int32", "int64"))))
LARGE = statepool.Layout("large", (  # 23 MB, as mamba-2.8b has
    statepool.Tensor("conv", tuple(range(64)), "bfloat16", {"channel": 5120, "tap": 3}, "conv"),
    statepool.Tensor("ssm", tuple(range(64)), "float32", {"channel": 5120, "state": 16}, "recurrent")))


# -------------------------------------------------------------------------------------------------------------- the daemon

class Daemon:
    def __init__(self, directory, *flags):
        self.directory = directory
        self.address = f"unix:{directory / 'socket'}"
        self.flags = flags
        self.stack = contextlib.ExitStack()
        directory.mkdir()
        self.start()

    def start(self):
        command = [harness.binary("statepoold"), f"--listen={self.address}", "--metrics=", f"--data-dir={self.directory / 'data'}", "--devices=cuda",
                   "--cold-bytes=8GiB", *self.flags]
        self.process, _ = self.stack.enter_context(harness.server(command, self.directory / "log"))

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def pool(self):
        return statepool.connect(self.address)


def used_bytes(pool):
    return pool.capabilities().devices[0].used_bytes


def wait_until(condition, seconds=10.0):
    """Seconds that it took; None: it did not come true."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            return None
        time.sleep(0.002)
    return time.monotonic() - start


# ------------------------------------------------------------------------------------------------------------------- rows

def bits_of(tensor):
    return tensor.view(BITS[tensor.element_size()])


def in_state_order(arena, tensor, layer, row):
    """The part of a row that a state has, as integers, its axes in the layout's order."""
    view = bits_of(arena.layer(tensor.name, layer))[row]
    axes = [axis for axis in arena.axes[tensor.name] if axis not in ("layer", "row", "step")]
    view = view.permute([axes.index(axis) for axis in tensor.axes])
    for i, (axis, size) in enumerate(tensor.axes.items()):
        view = view.narrow(i, view.shape[i] - size, size) if axis == "tap" else view
    return view


def read_row(arena, layout, row):
    return b"".join(in_state_order(arena, tensor, layer, row).contiguous().cpu().numpy().tobytes()
                    for tensor in layout.tensors for layer in tensor.layers)


def write_row(arena, layout, row, state):
    at = 0
    for tensor in layout.tensors:
        for layer in tensor.layers:
            view = in_state_order(arena, tensor, layer, row)
            part = np.frombuffer(state, np.uint8, tensor.layer_nbytes, at).copy()
            view.copy_(torch.from_numpy(part).view(view.dtype).view(view.shape))
            at += tensor.layer_nbytes


# ----------------------------------------------------------------------------------------------------------------- checks

class Checks:
    def __init__(self):
        self.n, self.failed = 0, []

    def expect(self, what, holds):
        self.n += 1
        if not holds:
            self.failed.append(what)
            harness.note(f"FAILS: {what}")


def check_views(checks, pool, randbytes):
    layout = pool.register_layout(EVERY_DTYPE)
    with contextlib.ExitStack() as stack:
        arenas = {name: stack.enter_context(pool.open_arena(layout, rows=5, view=view)) for name, view in VIEWS.items()}
        for name, arena in arenas.items():
            checks.expect(f"{name}: tensors on the GPU", arena.device.startswith("cuda:GPU-") and arena.layer("ssm", 0).is_cuda)
            checks.expect(f"{name}: bfloat16", arena.layer("conv", 0).dtype == torch.bfloat16)
            state, other = randbytes(layout.state_bytes), randbytes(layout.state_bytes)
            pool.set(f"in/{name}", state, 3, layout=layout)
            for to, target in arenas.items():
                target.load({2: f"in/{name}"})
                checks.expect(f"Set, Load into {to}", read_row(target, layout, 2) == state)
            write_row(arena, layout, 4, other)
            arena.store({4: StoreItem(f"out/{name}", whole_row=True)}, position=4)
            checks.expect(f"Store from {name}, Get", bytes(pool.get(f"out/{name}").data) == other)
            checks.expect(f"{name}: the other row", read_row(arena, layout, 2) == state)
            for to, target in arenas.items():
                target.load({0: f"out/{name}"})
                checks.expect(f"Store from {name}, Load into {to}", read_row(target, layout, 0) == other)
            pool.fork(f"out/{name}", f"fork/{name}")
            arena.load({1: f"fork/{name}"})
            checks.expect(f"{name}: Fork, Load", read_row(arena, layout, 1) == other)
        padding = arenas["padded"].layer("conv", 0)[0]
        checks.expect("padding is zeros after a Load", not padding.select(list(EVERY_DTYPE.tensors[0].axes).index("tap"), 0).any().item())


def check_stream_order(checks, pool, randbytes):
    layout = pool.register_layout(LARGE)
    with pool.open_arena(layout, rows=2) as arena:
        ssm = arena.layer("ssm", 0)
        stream = torch.cuda.Stream()
        a = torch.randn(4096, 4096, device="cuda")
        with torch.cuda.stream(stream):
            for i in range(5):
                ssm[0].zero_()
                for _ in range(20):
                    a = torch.nn.functional.normalize(a @ a)
                ssm[0].fill_(i + 1)
                arena.store({0: StoreItem("order", whole_row=True, any_revision=True)}, position=i)
                arena.load({1: "order"})
                checks.expect("Store waits for the stream", bool((ssm[1] == i + 1).all().item()))


class Behind:
    """A stream that is kept busy for a while, so that what is enqueued in it comes later than the CPU."""

    def __init__(self):
        self.stream = torch.cuda.Stream()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(1000)
            begin.record()
            torch.cuda._sleep(50_000_000)
            end.record()
        end.synchronize()
        self.cycles_per_ms = 50_000_000 / begin.elapsed_time(end)

    def __enter__(self):
        self.scope = torch.cuda.stream(self.stream)
        self.scope.__enter__()
        return self

    def __exit__(self, *details):
        self.scope.__exit__(*details)

    def sleep(self, ms):
        torch.cuda._sleep(int(ms * self.cycles_per_ms))

    def is_done(self):
        return self.stream.query()


def check_flags(checks, pool, daemon, rng):
    """Isolated loads and stores are in the stream's order, and the CPU does not wait for it."""
    layout = pool.register_layout(LARGE)
    pool.set("flags/a", rng.randbytes(layout.state_bytes), 1, layout=layout)
    with pool.open_arena(layout, rows=4, view=View("layer_major")) as arena, Behind() as behind:
        if not arena._flags:
            return checks.expect("an arena has flag words", False)
        expected, words = bytes(pool.get("flags/a").data), arena["ssm"].view(torch.int32)  # its states are random bits, NaNs among them
        arena.load({0: "flags/a"})
        behind.stream.synchronize()
        behind.sleep(100)
        start = time.monotonic()
        arena.load({1: "flags/a"})
        copy = words[:, 1].clone()
        took = time.monotonic() - start
        checks.expect(f"a load returns while its stream is busy: after {1e3 * took:.1f} ms", not behind.is_done() and took < 0.08)
        behind.stream.synchronize()
        checks.expect("what follows a load in its stream finds it", torch.equal(copy, words[:, 0]) and read_row(arena, layout, 1) == expected)
        behind.sleep(100)
        handle = arena.store_async({1: StoreItem("flags/b", whole_row=True)}, position=2)
        arena["ssm"][:, 1].fill_(7)
        arena["conv"][:, 1].fill_(7)
        checks.expect("store_async returns while its stream is busy", not behind.is_done() and not handle.done())
        checks.expect("what is written after store_async is not stored", handle.wait()[1].position == 2 and bytes(pool.get("flags/b").data) == expected)
        graph = torch.cuda.CUDAGraph()
        refused = 0
        with torch.cuda.graph(graph, stream=behind.stream):
            for call in (lambda: arena.load({2: "flags/a"}), lambda: arena.store_async({0: "flags/a"}, position=3)):
                try:
                    call()
                except statepool.Conflict as error:
                    refused += error.reason == "STREAM_CAPTURING"
            words[:, 3].add_(1)
        checks.expect("captured streams are refused", refused == 2)
        arena.load({3: "flags/a"})
        graph.replay()
        behind.stream.synchronize()
        checks.expect("a graph after a load in its stream", torch.equal(words[:, 3], words[:, 0] + 1))
        arena._pool, whole = pool.with_options(timeout=0.3), arena._pool
        behind.sleep(1500)
        arena.load({2: "flags/a"})
        arena._pool = whole
        behind.stream.synchronize()
        try:
            arena.load({0: "flags/a"})
            checks.expect("a load that failed late is told", False)
        except statepool.RowsLost as lost:
            checks.expect("a load that failed late is told", 2 in lost.rows)
        arena.load({2: "flags/a"})
        behind.stream.synchronize()
        checks.expect("and can be made again", read_row(arena, layout, 2) == expected)
    random_streams(checks, pool, rng, rounds=300)
    before = used_bytes(pool)
    worker = start_worker(daemon.address, "waits")
    while worker.stdout.readline() not in (b"waiting\n", b""):
        pass
    random_streams(checks, pool, rng, rounds=40)
    worker.kill()
    worker.wait()
    random_streams(checks, pool, rng, rounds=40)
    checks.expect("a worker that was killed while its calls waited leaves nothing", wait_until(lambda: used_bytes(pool) <= before + (64 << 20)) is not None)


def random_streams(checks, pool, rng, rounds):
    """Kernels, loads and stores of four streams of one arena at random, each stream with rows of its own, held against what they must see."""
    layout = pool.register_layout(EVERY_DTYPE)
    streams = [torch.cuda.Stream() for _ in range(4)]
    names, rows, seen, handles = {}, {}, [], []
    with pool.open_arena(layout, rows=8) as arena:
        for i in range(rounds):
            mine = rng.randrange(4)
            row = 2 * mine + rng.randrange(2)
            sequence, what = f"random/{row}", rng.random()
            with torch.cuda.stream(streams[mine]):
                if rng.random() < 0.1:
                    torch.cuda._sleep(rng.randrange(5_000_000))
                if what < 0.4 or row not in rows:
                    rows[row] = i
                    for tensor in layout.tensors:
                        for layer in tensor.layers:
                            bits_of(arena.layer(tensor.name, layer))[row].fill_(i % 100)
                elif what < 0.7:
                    handles.append(arena.store_async({row: StoreItem(sequence, whole_row=True, any_revision=True)}, position=i))
                    names[sequence] = rows[row]
                    if rng.random() < 0.2:
                        handles[-1].wait()
                elif sequence in names:
                    for handle in handles:
                        handle.wait()
                    handles.clear()
                    arena.load({row: sequence})
                    rows[row] = names[sequence]
                    seen.append((rows[row] % 100, [bits_of(arena.layer(tensor.name, layer))[row].clone() for tensor in layout.tensors
                                                  for layer in tensor.layers]))
        for handle in handles:
            handle.wait()
        torch.cuda.synchronize()
        wrong = sum(not (part == value).all().item() for value, parts in seen for part in parts)
        checks.expect(f"{len(seen)} loads in the order of four streams: {wrong} parts wrong", seen and not wrong)


def check_flags_and_dead_daemons(checks, directory, randbytes):
    with Daemon(directory / "flags", "--hot-bytes=1GiB") as daemon, daemon.pool() as pool:
        layout = pool.register_layout(EVERY_DTYPE)
        state = randbytes(layout.state_bytes)
        pool.set("kept", state, 1, layout=layout, durability="sync")
        with pool.open_arena(layout, rows=2) as arena, Behind() as behind:
            for i in range(3):
                behind.sleep(200)
                arena.load({0: "kept"})
                handle = arena.store_async({1: StoreItem(f"never/{i}", whole_row=True)}, position=1)
                daemon.kill()
                start = time.monotonic()
                behind.stream.synchronize()
                took = time.monotonic() - start
                checks.expect(f"a stream goes on without its daemon: {took:.2f} s", took < 3)
                try:
                    handle.wait()
                    checks.expect("a store without a daemon", False)
                except statepool.errors.StatepoolError:
                    pass
                daemon.start()
                try:
                    arena.load({0: "kept"})
                    checks.expect("ContentsGone", False)
                except statepool.ContentsGone:
                    pass
                arena.load({0: "kept"})
                behind.stream.synchronize()
                checks.expect("words of the next daemon", arena._flags is not None and read_row(arena, layout, 0) == state)


def check_inline(checks, pool, randbytes):
    layout = pool.register_layout(LARGE)
    state = randbytes(layout.state_bytes)
    for i in range(12):
        pool.set("inline", state, i, layout=layout)
        got = bytes(pool.get("inline").data) if i in (0, 11) else state
        checks.expect("Get gives what was set", got == state)
    checks.expect("no fast lane", not pool._lane.has_rows)
    with pool.empty(layout, 1) as buffers:
        pool.get("inline", out=buffers[0])
        checks.expect("Pool.empty is ordinary memory", bytes(buffers[0]) == state)


def check_spills(checks, directory, randbytes):
    with Daemon(directory / "spills", "--hot-bytes=384MiB", "--max-arena-bytes=128MiB") as daemon, daemon.pool() as pool:
        layout = pool.register_layout(LARGE)
        states = [randbytes(layout.state_bytes) for _ in range(24)]
        with pool.open_arena(layout, rows=2) as arena:
            for i, state in enumerate(states):
                write_row(arena, layout, i % 2, state)
                arena.store({i % 2: StoreItem(f"s/{i}", whole_row=True, durability="volatile")}, position=1)
            for i, state in enumerate(states):
                arena.load({0: f"s/{i}"})
                checks.expect("spilled and promoted", read_row(arena, layout, 0) == state)


def check_budget(checks, daemon, pool):
    layout = pool.register_layout(LARGE)
    pool.open_arena(layout, rows=2).close()  # what a pool keeps of its slots is there afterwards
    time.sleep(0.3)
    rest = used_bytes(pool)
    arena = pool.open_arena(layout, rows=2)
    held = used_bytes(pool)
    tensor = arena["ssm"][0]
    checks.expect("an arena counts", held >= rest + arena.nbytes)
    arena.close()
    took = wait_until(lambda: used_bytes(pool) <= rest, 2)
    checks.expect(f"an orderly close gives the budget back at once ({took})", took is not None and took < 0.1)
    del tensor
    worker = start_worker(daemon.address, "held")
    worker.stdout.readline()
    checks.expect("a worker's arena counts", used_bytes(pool) > rest)
    worker.kill()
    worker.wait()
    took = wait_until(lambda: used_bytes(pool) <= rest)
    checks.expect("a killed worker's arena comes back", took is not None)
    harness.note(f"budget back {took} s after kill -9")


def check_restart(checks, directory, randbytes):
    with Daemon(directory / "restart", "--hot-bytes=1GiB") as daemon, daemon.pool() as pool:
        layout = pool.register_layout(EVERY_DTYPE)
        state = randbytes(layout.state_bytes)
        pool.set("kept", state, 1, layout=layout, durability="sync")
        arena = pool.open_arena(layout, rows=3, view=VIEWS["layer_major"])
        tensors = [arena[name] for name in ("ssm", "conv", "of_int32")]
        addresses = [tensor.data_ptr() for tensor in tensors]
        counter = arena["of_int32"]
        arena.load({1: "kept"})
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            counter.add_(1)
        arena.load({1: "kept"})
        before = counter[:, 1].clone()
        graph.replay()
        checks.expect("a graph over rows", torch.equal(counter[:, 1], before + 1))
        for _ in range(2):
            daemon.kill()
            graph.replay()
            torch.cuda.synchronize()  # the memory is there without its daemon
            daemon.start()
            try:
                arena.load({1: "kept"})
                checks.expect("ContentsGone after a restart", False)
            except statepool.ContentsGone:
                checks.expect("ContentsGone after a restart", True)
            checks.expect("rows of a reopened arena are zeros", not counter.any().item())
            checks.expect("the same addresses", addresses == [arena[name].data_ptr() for name in ("ssm", "conv", "of_int32")])
            arena.load({1: "kept"})
            checks.expect("a state after the restart", read_row(arena, layout, 1) == state)
            before = counter[:, 1].clone()
            graph.replay()
            checks.expect("a graph over rows of a reopened arena", torch.equal(counter[:, 1], before + 1))
            arena.store({1: StoreItem("after", any_revision=True)}, position=2)
            checks.expect("what the graph did is stored", bytes(pool.get("after").data) == read_row(arena, layout, 1))
        arena.reopen()
        arena.load({0: "kept"})
        checks.expect("after reopen()", read_row(arena, layout, 0) == state and counter.data_ptr() == addresses[2])
        arena.close()


def check_cpp_client(checks, daemon):
    program = harness.binary("gpu_client_test", harness.BUILD if harness.BUNDLE else harness.BUILD / "tests")
    done = subprocess.run([program, "--gtest_filter=GpuClientTest.*:GpuEnginesTest.*"], env=os.environ | {"STATEPOOL_SERVER": daemon.address}, stdout=subprocess.PIPE, text=True, timeout=60)
    passed = re.search(r"PASSED  \] (\d+) tests", done.stdout)
    checks.expect(f"gpu_client_test: {done.stdout[-2000:]}", done.returncode == 0 and passed and int(passed[1]) >= 5)


def check_workers(checks, daemon):
    workers = [start_worker(daemon.address, f"w{i}") for i in range(4)]
    for worker in workers:
        checks.expect("a worker among four", worker.wait(120) == 0)


def start_worker(address, name):
    return subprocess.Popen([sys.executable, __file__, "--worker", name, "--address", address], stdout=subprocess.PIPE)


def work(address, name):
    """Opens an arena and stays ("held"), with calls that wait for a stream ("waits"), or stores and loads for some seconds; 0: every state was right."""
    with statepool.connect(address) as pool:
        layout = pool.register_layout(EVERY_DTYPE)
        arena = pool.open_arena(layout, rows=8)
        arena["ssm"][0].fill_(1)
        torch.cuda.synchronize()
        print("ready", flush=True)
        if name == "held":
            signal.pause()
        if name == "waits":
            pool.set("waits", bytes(layout.state_bytes), 1, layout=layout)
            torch.cuda._sleep(1 << 40)
            for row in range(4):
                arena.load({row: "waits"})
                arena.store_async({row: StoreItem(f"waits/{row}", whole_row=True)}, position=1)
            print("waiting", flush=True)
            signal.pause()
        rng, end = random.Random(name), time.monotonic() + 4
        states = {}
        while time.monotonic() < end:
            row = rng.randrange(8)
            states[row] = rng.randbytes(layout.state_bytes)
            write_row(arena, layout, row, states[row])
            arena.store({row: StoreItem(f"{name}/{row}", whole_row=True, any_revision=True)}, position=1)
            other = rng.choice(list(states))
            arena.load({row: f"{name}/{other}"})
            if read_row(arena, layout, row) != states[other]:
                return 1
        arena.close()
    return 0


# ---------------------------------------------------------------------------------------------------------------- figures

def times_us(call, n):
    taken = []
    for i in range(n + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call(i)
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) * 1e6)
    return sorted(taken[3:])


def call_times_us(call, n):
    """What the CPU's part of a call takes, in a stream that is 20 ms behind."""
    taken = []
    with Behind() as behind:
        for i in range(n + 3):
            behind.sleep(20)
            start = time.perf_counter()
            call(i)
            taken.append((time.perf_counter() - start) * 1e6)
            behind.stream.synchronize()
    return sorted(taken[3:])


def copy_times_us(nbytes, n):
    source = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return times_us(lambda _: target.copy_(source), n)


def figures(directory, quick):
    with Daemon(directory / "figures", "--hot-bytes=24GiB", "--max-arena-bytes=5GiB", "--default-durability=volatile") as daemon, daemon.pool() as pool:
        layout = pool.register_layout(LARGE)
        empty = times_us(lambda _: pool.capabilities(), 50)
        yield line("gpu-arena-rpc", empty, None, "GetCapabilities")
        with pool.open_arena(layout, rows=64) as arena:
            rng = random.Random(1)
            order = list(range(128))
            rng.shuffle(order)
            for first in (0, 64):
                arena.store({row: StoreItem(f"f/{order[first + row]}", whole_row=True, max_history=1) for row in range(64)}, position=1)
            for rows in (1, 64):
                n = (20 if rows == 64 else 100) // (4 if quick else 1)
                def names_of(i, rows=rows):
                    return [f"f/{(i * rows + row) % 128}" for row in range(rows)]
                copy = copy_times_us(rows * layout.state_bytes, n)
                loads = times_us(lambda i: arena.load({row: LoadItem(name) for row, name in enumerate(names_of(i))}), n)
                yield line(f"gpu-arena-load-{rows}", loads, copy, bytes=rows * layout.state_bytes)
                calls = call_times_us(lambda i: arena.load({row: LoadItem(name) for row, name in enumerate(names_of(i))}), n)
                yield line(f"gpu-arena-load-{rows}-call", calls, None, "until it returns, in a busy stream", bytes=rows * layout.state_bytes)
                stores = times_us(lambda i: arena.store({row: StoreItem(name, whole_row=True, any_revision=True, max_history=1)
                                                         for row, name in enumerate(names_of(i))}, position=2), n)
                yield line(f"gpu-arena-store-{rows}", stores, copy, bytes=rows * layout.state_bytes)


def line(name, taken, baseline, baseline_name="torch copy_ device to device", **more):
    return {"name": name, "value": statistics.median(taken), "unit": "us", "n": len(taken), "p50": statistics.median(taken),
            "p99": taken[min(len(taken) - 1, int(len(taken) * 0.99))], "baseline": statistics.median(baseline) if baseline else None,
            "baseline_name": baseline_name, "goal": None, **more}


# ------------------------------------------------------------------------------------------------------------------- main

def run_checks(directory, seed):
    checks, rng = Checks(), random.Random(seed)

    def attempt(check, *arguments):
        start = time.monotonic()
        try:
            check(checks, *arguments)
        except Exception:
            checks.expect(f"{check.__name__}: {traceback.format_exc()}", False)
        harness.note(f"{check.__name__}: {time.monotonic() - start:.1f} s")

    with Daemon(directory / "checks", "--hot-bytes=2GiB") as daemon, daemon.pool() as pool:
        attempt(check_views, pool, rng.randbytes)
        attempt(check_stream_order, pool, rng.randbytes)
        attempt(check_flags, pool, daemon, rng)
        attempt(check_inline, pool, rng.randbytes)
        attempt(check_budget, daemon, pool)
        attempt(check_cpp_client, daemon)
        attempt(check_workers, daemon)
    attempt(check_spills, directory, rng.randbytes)
    attempt(check_restart, directory, rng.randbytes)
    attempt(check_flags_and_dead_daemons, directory, rng.randbytes)
    return {"name": "gpu-arenas", "value": len(checks.failed), "unit": "checks failed", "n": checks.n, "goal": 0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=harness.new_seed())
    parser.add_argument("--quick", action="store_true", help="fewer calls for the figures")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.address, options.worker)
    if not torch.cuda.is_available():
        raise harness.NotMeasurable("torch sees no GPU")
    gpu = torch.cuda.get_device_name()
    short = 0
    with harness.workspace("gpu-arenas") as directory:
        short += not harness.figure(run_checks(directory, options.seed) | {"machine": gpu}, options.seed)
        for measured in figures(directory, options.quick):
            short += not harness.figure(measured | {"machine": gpu}, options.seed)
    return harness.FALLS_SHORT if short else harness.OK


if __name__ == "__main__":
    harness.run(main)
