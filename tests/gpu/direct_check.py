#!/usr/bin/env python3
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""tests/gpu/direct_check.py [--seed N] [--quick] [--kills N]: direct loads and stores on a GPU: workers map the daemon's slots, and copy in their streams.

Lines of the contract on stdout: "gpu-direct" counts checks that failed, "gpu-direct-kills" what 200 killed workers left behind; the others are times.
Needs a GPU, torch and cuda-bindings. With --worker it is what starts the workers that are killed, with --by-torch one that has no kernels' library."""
import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request

import arenas_check as base
import harness
import statepool
import torch
from arenas_check import EVERY_DTYPE, LARGE, VIEWS, Checks, Daemon, bits_of, line, read_row, times_us, used_bytes, wait_until, write_row
from statepool import LoadItem, StoreItem, View

SMALL = statepool.Layout("small", (  # 1.2 MB
    statepool.Tensor("conv", tuple(range(8)), "bfloat16", {"channel": 1024, "tap": 3}, "conv"),
    statepool.Tensor("ssm", tuple(range(8)), "float32", {"channel": 2048, "state": 16}, "recurrent")))
ROWS = 3  # of a worker that is killed
CPP_CLIENT_S_MAX = 90


class Counted(Daemon):
    """A daemon with direct ways and metrics."""

    def __init__(self, directory, *flags):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.metrics = f"127.0.0.1:{free.getsockname()[1]}"
        super().__init__(directory, "--direct", f"--metrics={self.metrics}", *flags)


def slots(daemon):
    """What direct leases have: {"pinned": …, "granted": …}."""
    text = urllib.request.urlopen(f"http://{daemon.metrics}/metrics", timeout=10).read().decode()
    return {state: sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("statepool_direct_slots{") and f'"{state}"' in line)
            for state in ("pinned", "granted")}


def fill(arena, layout, row, value):
    """All bytes of a row become `value`; on torch's current stream."""
    for tensor in layout.tensors:
        for layer in tensor.layers:
            bits = bits_of(arena.layer(tensor.name, layer))[row]
            bits.fill_(int.from_bytes(bytes([value]) * bits.element_size(), "little", signed=bits.dtype != torch.uint8))


def backlog(n=60):
    """Work that keeps the current stream busy for a good while."""
    a = torch.randn(8192, 8192, device="cuda")
    for _ in range(n):
        a = torch.nn.functional.normalize(a @ a)


# ----------------------------------------------------------------------------------------------------------------- checks

def check_views(checks, pool, randbytes, has_kernels=True):
    layout = pool.register_layout(EVERY_DTYPE)
    with contextlib.ExitStack() as stack:
        direct = {name: stack.enter_context(pool.open_arena(layout, rows=5, view=view, direct=True)) for name, view in VIEWS.items()}
        isolated = {name: stack.enter_context(pool.open_arena(layout, rows=5, view=view)) for name, view in VIEWS.items()}
        for name, arena in direct.items():
            checks.expect(f"{name}: is direct", arena._copies is not None and arena._copies.has_kernels == has_kernels)
            state, other = randbytes(layout.state_bytes), randbytes(layout.state_bytes)
            pool.set(f"in/{name}", state, 3, layout=layout)
            arena.layer("conv", 0).fill_(1)
            arena.load({2: f"in/{name}", 3: f"in/{name}"})
            checks.expect(f"{name}: Set, direct Load", read_row(arena, layout, 2) == read_row(arena, layout, 3) == state)
            write_row(arena, layout, 4, other)
            info = arena.store({4: StoreItem(f"out/{name}", whole_row=True)}, position=4)[4]
            checks.expect(f"{name}: direct Store, Get", bytes(pool.get(f"out/{name}").data) == other and info.position == 4)
            for to in VIEWS:
                for kind, arenas in (("direct", direct), ("isolated", isolated)):
                    arenas[to].load({0: f"out/{name}"})
                    checks.expect(f"direct Store from {name}, {kind} Load into {to}", read_row(arenas[to], layout, 0) == other)
            isolated[name].load({1: f"in/{name}"})
            isolated[name].store({1: StoreItem(f"isolated/{name}", any_revision=True)}, position=9)
            arena.load({1: f"isolated/{name}"})
            checks.expect(f"{name}: isolated Store, direct Load", read_row(arena, layout, 1) == state)
        padding = direct["padded"].layer("conv", 0)[2]
        checks.expect("padding is zeros", not padding.select(list(EVERY_DTYPE.tensors[0].axes).index("tap"), 0).any().item())
        lease = pool._direct._lease
        checks.expect("a lease", lease is not None and not lease.on_host)
        steps = stack.enter_context(pool.open_arena(layout, rows=2, steps=3, view=View(num_spec=2), direct=True))
        steps.load({0: "in/per_layer"})
        state = bytes(pool.get("in/per_layer").data)
        checks.expect("steps: the first", bytes(_stored(pool, steps, "steps/1", 1)) == state)
        with pool.open_arena(layout, rows=2, steps=3, view=View(num_spec=2)) as other:
            other.load({0: "in/per_layer"})
            for arena in (steps, other):
                for tensor in layout.tensors:
                    for layer in tensor.layers:
                        bits = bits_of(arena.layer(tensor.name, layer))[0]
                        bits.copy_((torch.arange(bits.numel(), device="cuda") % 120).to(bits.dtype).view(bits.shape))
            for accepted in (1, 2, 3):
                both = [bytes(_stored(pool, arena, f"steps/{accepted}/{i}", accepted)) for i, arena in enumerate((steps, other))]
                checks.expect(f"steps: accepted {accepted}, direct and isolated", both[0] == both[1])


def _stored(pool, arena, name, accepted):
    arena.store({0: StoreItem(name, accepted=accepted, any_revision=True)}, position=1)
    return pool.get(name).data


def check_stream_order(checks, daemon, pool):
    layout = pool.register_layout(LARGE)
    with pool.open_arena(layout, rows=4, direct=True) as arena:
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                stores = []
                fill(arena, layout, 0, 1)
                arena.store({0: StoreItem("order/warm", whole_row=True, any_revision=True)}, position=1)
                torch.cuda.synchronize()
                backlog()
                start = time.monotonic()
                for value in range(1, 7):
                    fill(arena, layout, 0, value)
                    stores.append(arena.store_async({0: StoreItem(f"order/{value}", whole_row=True, any_revision=True)}, position=value))
                fill(arena, layout, 0, 99)  # after the copies, in stream order
                took = time.monotonic() - start
                pending = not stores[0].done()
                checks.expect(f"store_async does not wait ({took:.4f} s)", pending)
                last = stores[-1].wait()
                checks.expect("what wait() gives", last[0].position == 6 and stores[0].done() and stores[0].wait()[0].position == 1)
                for value in range(1, 7):
                    checks.expect("stored is what the row held in stream order", set(bytes(pool.get(f"order/{value}").data)) == {value})
                backlog()
                arena.load({row: f"order/{row + 2}" for row in range(1, 4)})
                checks.expect("load does not wait", not stream.query())
                total = sum(arena.layer("ssm", 3)[row].view(torch.uint8)[0, :4].int() for row in range(1, 4))
                checks.expect("a stream sees what was loaded", bool((total == 3 + 4 + 5).all().item()))
        other = torch.cuda.Stream()
        with torch.cuda.stream(other):
            backlog()
            fill(arena, layout, 1, 7)
        arena.store({1: StoreItem("order/given", whole_row=True, any_revision=True)}, position=1, stream=other)
        checks.expect("a stream that was given", set(bytes(pool.get("order/given").data)) == {7})
        handle = arena.store_async({1: StoreItem("order/given", whole_row=True, if_revision=12345)}, position=2)
        try:
            handle.wait()
            checks.expect("a conflict", False)
        except statepool.Conflict as error:
            checks.expect("a conflict", error.reason == "REVISION_MISMATCH")
        handle = arena.store_async({1: StoreItem("order/alone", whole_row=True)}, position=2)
        checks.expect("the thread commits", wait_until(handle.done) is not None and pool.get("order/alone").position == 2)
        with contextlib.suppress(TimeoutError):
            with torch.cuda.stream(other):
                backlog()
                handle = arena.store_async({1: StoreItem("order/late", whole_row=True)}, position=2)
            handle.wait(timeout=0.001)
            checks.expect("a timeout", False)
        checks.expect("after a timeout", handle.wait()[1].position == 2)
        torch.cuda.synchronize()
    checks.expect(f"pins are given back {slots(daemon)}", wait_until(lambda: slots(daemon)["pinned"] == 0) is not None)
    checks.expect(f"grants are used or given back {slots(daemon)}", wait_until(lambda: slots(daemon)["granted"] == 0) is not None)


def check_stock(checks, daemon, pool):
    layout = pool.register_layout(LARGE)
    calls, call = collections.Counter(), pool._connection.call

    def counted(method, *arguments):
        calls[method] += 1
        return call(method, *arguments)

    with pool.open_arena(layout, rows=4, direct=True) as arena:
        pool._connection.call = counted
        try:
            for value in range(1, 9):
                for row in range(4):
                    fill(arena, layout, row, 10 * value + row)
                items = {row: StoreItem(f"stock/{row}", whole_row=True, any_revision=True, max_history=1) for row in range(4)}
                handle = arena.store_async(items, position=value) if value % 2 else arena.store(items, position=value)
                if value % 2:
                    handle.wait()
        finally:
            pool._connection.call = call
        checks.expect(f"a store brings the slots of the next {dict(calls)}", calls["Store"] == 8 and calls["Grant"] <= 1)
        for row in range(4):
            checks.expect("what they were written with", set(bytes(pool.get(f"stock/{row}").data)) == {80 + row})
    checks.expect(f"stock goes back {slots(daemon)}", wait_until(lambda: slots(daemon)["granted"] == 0) is not None)


def check_capture(checks, pool):
    """A thread that gives pins back and commits does not break the capture of a graph."""
    layout = pool.register_layout(LARGE)
    with pool.open_arena(layout, rows=3, direct=True) as arena:
        fill(arena, layout, 0, 5)
        handle = None
        ssm = arena.layer("ssm", 0)
        ssm[2].add_(1)
        for i in range(5):
            with torch.cuda.stream(torch.cuda.Stream()):
                backlog(10)
                handle = arena.store_async({0: StoreItem(f"capture/{i}", whole_row=True)}, position=1)
                arena.load({1: "capture/0"} if i else {})
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream()
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(50):
                    ssm[2].add_(1)
                    time.sleep(0.001)
            graph.replay()
            torch.cuda.synchronize()
            handle.wait()
        checks.expect("graphs captured meanwhile", True)


def check_threads(checks, pool):
    layout = pool.register_layout(SMALL)
    wrong = []
    with pool.open_arena(layout, rows=8, direct=True) as arena:
        def work(first):
            try:
                with torch.cuda.stream(torch.cuda.Stream()):
                    for i in range(40):
                        row, value = first + i % 2, (first * 40 + i) % 250 + 1
                        fill(arena, layout, row, value)
                        handle = arena.store_async({row: StoreItem(f"threads/{row}", whole_row=True, any_revision=True)}, position=i)
                        fill(arena, layout, row, 0)
                        if i % 3:
                            handle.wait()
                        else:
                            wait_until(handle.done)
                        arena.load({row: f"threads/{row}"})
                        if set(read_row(arena, layout, row)) != {value}:
                            wrong.append((row, value))
            except Exception:
                wrong.append(traceback.format_exc())

        threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 8, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    checks.expect(f"four threads {wrong[:1]}", not wrong)


def check_evictions(checks, directory):
    """States of 150 % of the budget: what is loaded directly was promoted first, and what a worker maps is asked back."""
    with Counted(directory / "evictions", "--hot-bytes=768MiB", "--max-arena-bytes=128MiB") as daemon, daemon.pool() as pool:
        layout = pool.register_layout(LARGE)
        with pool.open_arena(layout, rows=2, direct=True) as arena:
            for i in range(48):
                fill(arena, layout, i % 2, i + 1)
                arena.store({i % 2: StoreItem(f"e/{i}", whole_row=True, durability="volatile")}, position=1)
            for i in [*range(48), *range(0, 48, 5)]:
                arena.load({0: f"e/{i}"})
                checks.expect("spilled, promoted and loaded", set(read_row(arena, layout, 0)) == {i + 1})
        checks.expect("nothing stays pinned", wait_until(lambda: slots(daemon) == {"pinned": 0, "granted": 0}) is not None)


def check_cpp_client(checks, directory):
    """client_direct_test.cc and client_engines_test.cc, the first of which says when the daemon is to be killed and started anew."""
    program = harness.binary("gpu_client_test", harness.BUILD if harness.BUNDLE else harness.BUILD / "tests")
    with Counted(directory / "cpp", "--hot-bytes=768MiB") as daemon:
        told = []
        with subprocess.Popen([program, "--gtest_filter=GpuDirectClientTest.*:GpuEnginesTest.*"], env=os.environ | {"STATEPOOL_SERVER": daemon.address},
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            too_long = threading.Timer(CPP_CLIENT_S_MAX, process.kill)
            too_long.start()
            for line in process.stdout:
                told.append(line)
                if line == "restart\n":
                    daemon.kill()
                    daemon.start()
                    process.stdin.write("\n")
                    process.stdin.flush()
            too_long.cancel()
        passed = re.search(r"PASSED  \] (\d+) tests", "".join(told))
        checks.expect(f"gpu_client_test: {''.join(told)[-4000:]}", process.returncode == 0 and passed and int(passed[1]) >= 11)
        checks.expect("gpu_client_test left no pins and grants", wait_until(lambda: not any(slots(daemon).values())) is not None)


def check_restart(checks, directory, randbytes):
    with Counted(directory / "restart", "--hot-bytes=1GiB") as daemon, daemon.pool() as pool:
        layout = pool.register_layout(EVERY_DTYPE)
        state = randbytes(layout.state_bytes)
        pool.set("kept", state, 1, layout=layout, durability="sync")
        arena = pool.open_arena(layout, rows=3, view=VIEWS["layer_major"], direct=True)
        counter = arena["of_int32"]
        address = counter.data_ptr()
        arena.load({1: "kept"})
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            counter.add_(1)
        for _ in range(3):
            backlog(20)
            arena.load({1: "kept"})  # its pins are under way
            handle = arena.store_async({1: StoreItem("lost", whole_row=True, any_revision=True)}, position=2)
            daemon.kill()
            graph.replay()
            try:
                handle.wait()  # it may have come before
            except (statepool.ContentsGone, statepool.Unavailable):
                pass
            torch.cuda.synchronize()
            daemon.start()
            gone = 0
            while gone < 3:
                try:
                    arena.load({1: "kept"})
                    break
                except statepool.ContentsGone:
                    gone += 1
            checks.expect(f"ContentsGone after a restart, once ({gone})", gone == 1)
            checks.expect("a direct load after the restart", read_row(arena, layout, 1) == state and counter.data_ptr() == address)
            before = counter[:, 1].clone()
            graph.replay()
            checks.expect("a graph over rows of a reopened arena", torch.equal(counter[:, 1], before + 1))
            arena.store({1: StoreItem("after", any_revision=True)}, position=2)
            checks.expect("what the graph did is stored", bytes(pool.get("after").data) == read_row(arena, layout, 1))
        arena.reopen()
        arena.load({0: "kept"})
        checks.expect("after reopen()", read_row(arena, layout, 0) == state and counter.data_ptr() == address)
        arena.close()


def check_by_torch(checks, daemon):
    done = subprocess.run([sys.executable, __file__, "--by-torch", "--address", daemon.address], stdout=subprocess.PIPE, text=True, timeout=300,
                          env=os.environ | {"STATEPOOL_KERNELS_CUDA_LIBRARY": "/nonexistent"})
    told = json.loads(done.stdout or "{}")
    checks.n += told.get("n", 0)
    checks.expect(f"without the kernels' library: {told.get('failed', done.returncode)}", done.returncode == 0 and told["n"] > 50 and not told["failed"])


def by_torch(address):
    checks = Checks()
    with statepool.connect(address) as pool:
        check_views(checks, pool, random.Random(1).randbytes, has_kernels=False)
    print(json.dumps({"n": checks.n, "failed": checks.failed}))
    return 0


# ------------------------------------------------------------------------------------------------------------------ kills

def value_of(worker, row, position):
    return (worker * 7 + row * 31 + position) % 250 + 1


def life(address, worker, out):
    """A worker until it is killed: stores and loads, and tells which stores were acknowledged."""
    rng = random.Random(worker)
    pool = statepool.connect(address)
    layout = pool.register_layout(SMALL)
    arena = pool.open_arena(layout, rows=ROWS, direct=True)
    pending, position = [], 0
    while True:
        position += 1
        row = rng.randrange(ROWS)
        fill(arena, layout, row, value_of(worker, row, position))
        handle = arena.store_async({row: StoreItem(f"k/{worker}/{row}", whole_row=True, any_revision=True, max_history=2)}, position=position)
        fill(arena, layout, row, 0)
        pending.append((row, position, handle))
        if rng.random() < 0.4:
            for stored, at, begun in pending:
                begun.wait()
                os.write(out, f"{stored} {at}\n".encode())
            pending = []
            arena.load({row: f"k/{worker}/{row}"})
            if set(read_row(arena, layout, row)) != {value_of(worker, row, position)}:
                os.write(out, b"wrong\n")
            if position == 40:
                os.write(out, b"done\n")


def start_workers(address):
    """Forks a worker for each line "NUMBER" on stdin, and tells its process, until stdin ends. So torch is imported once."""
    for number in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                life(address, int(number), write)
            except BaseException:
                traceback.print_exc()
                os.write(write, f"failed {traceback.format_exc().splitlines()[-1]}\n".encode())
            os._exit(1)
        os.close(write)
        threading.Thread(target=tell, args=(int(number), child, read), daemon=True).start()


def tell(number, child, out):
    print(json.dumps({"worker": number, "pid": child}), flush=True)
    said = b""
    while part := os.read(out, 65536):
        said += part
    os.waitpid(child, 0)
    print(json.dumps({"worker": number, "said": said.decode().splitlines()}), flush=True)


def run_kills(directory, seed, kills):
    """Kills workers at random moments, four at a time, and looks at what they left."""
    rng, wrong, acked_total, in_flight = random.Random(seed), [], 0, 0
    with Counted(directory / "kills", "--hot-bytes=2GiB", "--default-durability=volatile") as daemon, daemon.pool() as pool:
        layout = pool.register_layout(SMALL)
        rest = used_bytes(pool)
        starter = subprocess.Popen([sys.executable, __file__, "--worker", "--address", daemon.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   text=True, bufsize=1)
        try:
            started, living, finished = 0, 0, 0
            while finished < kills:
                while living < 4 and started < kills:
                    starter.stdin.write(f"{started}\n")
                    starter.stdin.flush()
                    started, living = started + 1, living + 1
                told = json.loads(starter.stdout.readline())
                if "pid" in told:
                    # From before it has a context to well into its work.
                    threading.Timer(rng.choice((0.05, 0.3, 0.6, 0.8, 1.0, 1.2)) + rng.random() * 0.4, os.kill, (told["pid"], signal.SIGKILL)).start()
                    continue
                living, finished = living - 1, finished + 1
                acked = {}
                for said in told["said"]:
                    if said == "wrong" or said.startswith("failed"):
                        wrong.append(f"worker {told['worker']}: {said}")
                    elif said != "done":
                        row, position = map(int, said.split())
                        acked[row] = position
                        acked_total += 1
                for row in range(ROWS):
                    try:
                        state = pool.get(f"k/{told['worker']}/{row}")
                    except statepool.NotFound:
                        if row in acked:
                            wrong.append(f"worker {told['worker']}: row {row} is lost")
                        continue
                    in_flight += state.position > acked.get(row, 0)
                    if state.position < acked.get(row, 0) or set(bytes(state.data)) != {value_of(told["worker"], row, state.position)}:
                        wrong.append(f"worker {told['worker']}: row {row} is not what was stored")
                    pool.delete(f"k/{told['worker']}/{row}")
        finally:
            starter.stdin.close()
            starter.wait(60)
        empty = wait_until(lambda: slots(daemon) == {"pinned": 0, "granted": 0}, 10)
        if empty is None:
            wrong.append(f"dead workers have {slots(daemon)}")
        # A pool keeps some empty extents; nothing more.
        pool.set("last", bytes(layout.state_bytes), 1, layout=layout)
        back = wait_until(lambda: used_bytes(pool) <= rest + (64 << 20), 10)
        if back is None:
            wrong.append(f"{used_bytes(pool) - rest} bytes are still in use")
        for reason in wrong[:10]:
            harness.note(f"FAILS: {reason}")
    return {"name": "gpu-direct-kills", "value": len(wrong), "unit": "leaked, lost or wrong", "n": kills, "goal": 0, "acked": acked_total,
            "published_unacked": in_flight}


# ---------------------------------------------------------------------------------------------------------------- figures

def figures(directory, quick):
    with Counted(directory / "figures", "--hot-bytes=24GiB", "--max-arena-bytes=5GiB", "--max-granted-bytes=8GiB", "--default-durability=volatile") as daemon, daemon.pool() as pool:
        layout = pool.register_layout(LARGE)
        yield line("gpu-direct-rpc", times_us(lambda _: pool.capabilities(), 50), None, "GetCapabilities")
        with pool.open_arena(layout, rows=64, direct=True) as arena:
            order = list(range(128))
            random.Random(1).shuffle(order)
            for first in (0, 64):
                arena.store({row: StoreItem(f"f/{order[first + row]}", whole_row=True, max_history=1) for row in range(64)}, position=1)
            for rows in (1, 64):
                n = (20 if rows == 64 else 100) // (4 if quick else 1)

                def names_of(i, rows=rows):
                    return [f"f/{(i * rows + row) % 128}" for row in range(rows)]

                def items_of(i, rows=rows):
                    return {row: StoreItem(name, whole_row=True, any_revision=True, max_history=1) for row, name in enumerate(names_of(i, rows))}

                copy = base.copy_times_us(rows * layout.state_bytes, n)
                nbytes = rows * layout.state_bytes
                loads = times_us(lambda i: arena.load({row: LoadItem(name) for row, name in enumerate(names_of(i))}), n)
                yield line(f"gpu-direct-load-{rows}", loads, copy, bytes=nbytes)
                yield line(f"gpu-direct-store-{rows}", times_us(lambda i: arena.store(items_of(i), position=2), n), copy, bytes=nbytes)
                enqueued = []

                def enqueue(i):
                    start = time.perf_counter()
                    handle = arena.store_async(items_of(i), position=3)
                    enqueued.append((time.perf_counter() - start) * 1e6)
                    handle.wait()

                times_us(enqueue, n)
                yield line(f"gpu-direct-store_async-{rows}", sorted(enqueued[3:]), copy, bytes=nbytes)


def figures_of_cpp_client(directory, quick):
    """What client_bench.cc tells: whole calls, and what a call takes until it returns ("-returned"), each beside a copy of as many bytes."""
    program = harness.binary("gpu_client_bench", harness.BUILD if harness.BUNDLE else harness.BUILD / "tests")
    with Counted(directory / "cpp-figures", "--hot-bytes=24GiB", "--max-arena-bytes=5GiB", "--max-granted-bytes=8GiB", "--default-durability=volatile") as daemon:
        done = subprocess.run([program, *["--quick"] * quick], env=os.environ | {"STATEPOOL_SERVER": daemon.address}, capture_output=True, text=True,
                              timeout=CPP_CLIENT_S_MAX)
        if done.returncode:
            raise harness.NotMeasurable(f"gpu_client_bench ended with {done.returncode}: {done.stderr[-2000:]}")
        copy = None
        for told in map(json.loads, done.stdout.splitlines()):
            taken = sorted(told["us"])
            if told["what"] == "copy":
                copy = taken
            elif told["what"] == "rpc":
                yield line("gpu-direct-cpp-rpc", taken, None, "GetCapabilities")
            else:
                yield line(f"gpu-direct-cpp-{told['what']}-{told['rows']}", taken, copy, "cudaMemcpyAsync device to device", bytes=told["bytes"])


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

    with Counted(directory / "checks", "--hot-bytes=4GiB") as daemon, daemon.pool() as pool:
        checks.expect("copy_mode", pool.capabilities().copy_mode == "direct")
        attempt(check_views, pool, rng.randbytes)
        attempt(check_stream_order, daemon, pool)
        attempt(check_stock, daemon, pool)
        attempt(check_capture, pool)
        attempt(check_threads, pool)
        attempt(base.check_inline, pool, rng.randbytes)
        attempt(check_by_torch, daemon)
    attempt(check_cpp_client, directory)
    attempt(check_evictions, directory)
    attempt(check_restart, directory, rng.randbytes)
    return {"name": "gpu-direct", "value": len(checks.failed), "unit": "checks failed", "n": checks.n, "goal": 0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=harness.new_seed())
    parser.add_argument("--quick", action="store_true", help="fewer calls for the figures, fewer kills")
    parser.add_argument("--kills", type=int, help="workers to kill; 200 without, 12 with --quick")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--by-torch", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return start_workers(options.address)
    if options.by_torch:
        return by_torch(options.address)
    kills = options.kills if options.kills is not None else 12 if options.quick else 200
    if not torch.cuda.is_available():
        raise harness.NotMeasurable("torch sees no GPU")
    gpu = torch.cuda.get_device_name()
    short = 0
    with harness.workspace("gpu-direct") as directory:
        short += not harness.figure(run_checks(directory, options.seed) | {"machine": gpu}, options.seed)
        for measured in itertools.chain(figures(directory, options.quick), figures_of_cpp_client(directory, options.quick)):
            short += not harness.figure(measured | {"machine": gpu}, options.seed)
        short += not harness.figure(run_kills(directory, options.seed, kills) | {"machine": gpu}, options.seed)
    return harness.FALLS_SHORT if short else harness.OK


if __name__ == "__main__":
    harness.run(main)
