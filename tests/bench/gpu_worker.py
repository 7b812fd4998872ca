# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""What the measuring programs of the figures gpu-* share: the models, clocks, what torch itself takes, workers that keep the GPU busy.

Needs torch, cuda-bindings and statepool (a bundle's, the tree's) in the Python that runs it."""
import argparse
import json
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
import harness  # noqa: E402

sys.path += [str(harness.REPOSITORY / folder) for folder in ("python", "client/python/src")]
import torch  # noqa: E402
from statepool import Layout, Tensor  # noqa: E402

N = 20  # calls for a figure
BUFFER_BYTES = 512 << 20  # of torch's own copies, on either side: more than any cache has


def recurrent(model, layers, state, dtype="float32", more=()):
    return Layout(f"bench/{model}", (Tensor("state", range(layers), dtype, state, "recurrent"), *more))


# As kernels_bench.cu has them, with a convolution in bfloat16.
MODELS = {
    "mamba-2.8b": recurrent("mamba-2.8b", 64, {"channel": 5120, "state": 16}, more=(
        Tensor("conv", range(64), "bfloat16", {"channel": 5120, "tap": 3}, "conv"),)),
    "rwkv-7": recurrent("rwkv-7", 32, {"head": 40, "value": 64, "key": 64}, more=(
        Tensor("shift", range(32), "bfloat16", {"which": 2, "channel": 2560}, "shift"),)),
    "qwen3-next": recurrent("qwen3-next", 36, {"head": 32, "key": 128, "value": 128}, more=(
        Tensor("conv", range(36), "bfloat16", {"channel": 8192, "tap": 3}, "conv"),)),
    "lfm2": Layout("bench/lfm2", (Tensor("conv", range(10), "bfloat16", {"channel": 2048, "tap": 2}, "conv"),)),
}


# ------------------------------------------------------------------------------------------------------------- programs

def options_of(description, **more):
    """What every measuring program takes, and `more` flags with their defaults."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("server", "metrics"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    for name, default in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


def run(main):
    """As harness.run, where there is a GPU. main() gives lines, one by one, and raises NotMeasurable at the end for what it could not measure."""
    def checked():
        if not torch.cuda.is_available():
            raise harness.NotMeasurable("torch sees no GPU")
        for line in main():
            print(json.dumps(line), flush=True)
    harness.run(checked)


def metrics(address):
    """{'statepool_transfer_bytes_total{from="hot",to="cold"}': 123.0, …}"""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", answer.read().decode(), re.M)}


def moved(address):
    """{(from, to): bytes} so far, as the daemon counts them."""
    found = {}
    for name, value in metrics(address).items():
        if match := re.fullmatch(r'statepool_transfer_bytes_total\{from="(\w+)",to="(\w+)"\}', name):
            found[match.groups()] = value
    return found


NOT_DIRECT = "the daemon does not let its workers copy in a GPU's memory, or the Python package here lacks the kernels for it"


def pinned_slots(address):
    """Slots that workers gathered from themselves, so far: nothing else tells whether an arena is direct."""
    return metrics(address).get('statepool_direct_slots_total{state="pinned"}', 0)


class CopyTimes:
    """Of a pool's Loads and Stores: what the daemon says that copying took, in microseconds. None where it copied nothing."""

    def __init__(self, pool):
        self.last_us = None
        self._call, pool._connection.call = pool._connection.call, self.call

    def call(self, method, *arguments):
        answer = self._call(method, *arguments)
        if method in ("Load", "Store") and answer.HasField("copy_time"):
            self.last_us = answer.copy_time.ToTimedelta().total_seconds() * 1e6
        return answer


# --------------------------------------------------------------------------------------------------------------- clocks

def wait():
    torch.cuda.current_stream().synchronize()


def took_us(call):
    """From the call until what it enqueued is done."""
    start = time.perf_counter()
    call()
    wait()
    return (time.perf_counter() - start) * 1e6


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def median(values):
    return statistics.median(values)


def times(name, taken, unit="us", **more):
    """A line of the contract for what was timed."""
    return {"name": name, "value": median(taken), "unit": unit, "n": len(taken), "p50": median(taken),
            "p99": quantile(taken, 0.99), "best": min(taken)} | more


class DeviceCopy:
    """One cudaMemcpyAsync device to device, as torch's copy_ does it: each of other bytes than the one before, so that no cache has them."""

    def __init__(self, most_bytes):
        self._nbytes = max(most_bytes, BUFFER_BYTES)
        self._source, self._target = (torch.ones(self._nbytes, dtype=torch.uint8, device="cuda") for _ in range(2))
        self._at = 0

    def copy(self, nbytes):
        """Enqueued on the current stream."""
        if self._at + nbytes > self._nbytes:
            self._at = 0
        self._target[self._at:self._at + nbytes].copy_(self._source[self._at:self._at + nbytes])
        self._at += nbytes


# ---------------------------------------------------------------------------------------------------------- busy workers

class Busy:
    """Processes that multiply matrices on the GPU without pause, as many as set() says. Those that are not wanted are stopped: they have a context
    on the GPU, and nothing to do there."""

    def __init__(self, stack, most):
        self._workers = [stack.enter_context(harness.process([sys.executable, HERE / "gpu_busy.py"], stdout=subprocess.PIPE)) for _ in range(most)]
        for worker in self._workers:
            if not worker.stdout.readline():
                raise harness.NotMeasurable("a worker that was to keep the GPU busy did not get ready")
        stack.callback(self._signal, most)  # a process that is stopped would not end
        self.set(0)

    def set(self, count):
        if ended := [worker for worker in self._workers if worker.poll() is not None]:
            raise harness.NotMeasurable(f"a worker that was to keep the GPU busy ended with {ended[0].returncode}")
        self._signal(count)
        time.sleep(0.2)

    def _signal(self, count):
        for i, worker in enumerate(self._workers):
            worker.send_signal(signal.SIGCONT if i < count else signal.SIGSTOP)
