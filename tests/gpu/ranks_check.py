#!/usr/bin/env python3
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""tests/gpu/ranks_check.py [--seed N] [--quick]: ranks of tensor parallelism that store versions together and load their parts, all on one GPU, and, where there
are two, on both by turns.

Lines of the contract on stdout: "gpu-ranks" counts checks that failed; the others are p50 of a rank's Load and Store on the second GPU of what lies on the first.
Needs a GPU, torch and cuda-bindings."""
import argparse
import contextlib
import random
import time
import traceback

import arenas_check as base
import device
import harness
import numpy as np
import statepool
import torch
from arenas_check import BITS, Checks, Daemon, line, times_us
from statepool import PartStored, StoreItem, View

HEADS, HEAD_DIM, STATE, GROUPS = 8, 16, 24, 2
KDA_HEADS, KDA_DIM = 8, 16
# {model: (preset, the convolution's sections as (channels, pieces), the tensor of heads)}
MODELS = {
    "mamba2": (statepool.layouts.mamba2("gpu-ranks", layers=3, heads=HEADS, head_dim=HEAD_DIM, state_size=STATE, groups=GROUPS),
               [(HEADS * HEAD_DIM, HEADS), (GROUPS * STATE, GROUPS), (GROUPS * STATE, GROUPS)], "ssm"),
    "kda": (statepool.layouts.kda("gpu-ranks", layers=2, heads=KDA_HEADS, head_dim=KDA_DIM), [(KDA_HEADS * KDA_DIM, KDA_HEADS)] * 3, "delta"),
}
ORDERS = {"mamba2": {"conv": ["channel", "tap"]}, "kda": {"conv": ["channel", "tap"], "delta": ["head", "value", "key"]}}
LARGE_HEADS, LARGE_LAYERS = 80, 64


def share(section, pieces, ranks, rank):
    """A rank's channels of a section: whole pieces, or, of fewer than there are ranks, the one that it has together with its neighbours."""
    each = np.split(section, pieces, axis=-1)
    return np.concatenate(each[rank * pieces // ranks:max((rank + 1) * pieces // ranks, rank * pieces // ranks + 1)], axis=-1)


def cut(whole, sections, heads, ranks, rank):
    """{tensor: [layer, ...]} of one rank."""
    edges = np.cumsum([size for size, _ in sections])[:-1]
    conv = [share(section, pieces, ranks, rank) for section, (_, pieces) in zip(np.split(whole["conv"], edges, axis=-1), sections)]
    return {"conv": np.concatenate(conv, axis=-1), heads: np.split(whole[heads], ranks, axis=1)[rank]}


def row_of(arena, layout, tensor, layer, row):
    """A row as integers, its axes in the layout's order."""
    view = arena.layer(tensor.name, layer)[row]
    axes = [axis for axis in arena.axes[tensor.name] if axis not in ("layer", "row", "step")]
    return view.view(BITS[view.element_size()]).permute([axes.index(axis) for axis in tensor.axes])


def write_part(arena, layout, row, part):
    for tensor in layout.tensors:
        for i, layer in enumerate(tensor.layers):
            to = row_of(arena, layout, tensor, layer, row)
            to.copy_(torch.from_numpy(part[tensor.name][i].copy()).to(to.device))


def read_part(arena, layout, row):
    return {tensor.name: np.stack([row_of(arena, layout, tensor, layer, row).cpu().numpy() for layer in tensor.layers]) for tensor in layout.tensors}


def open_ranks(stack, pool, layout, ranks, names, **view):
    return [stack.enter_context(pool.open_arena(layout, rows=2, view=View(tp_size=ranks, tp_rank=rank, **view), device=names[rank % len(names)])) for rank in range(ranks)]


def current(arena):
    """The stream of a call is the current one of the arena's GPU."""
    return torch.cuda.device(arena.layer("conv", 0).device)


def check_model(checks, pool, names, model, rng):
    preset, sections, heads = MODELS[model]
    layout = pool.register_layout(preset)
    where = f"{model} on {len(names)} GPU(s)"
    for ranks in (2, 4):
        numbers = np.random.default_rng(rng.randrange(1 << 32))
        whole = {t.name: numbers.integers(-2**15, 2**15, t.shape).astype(np.int16 if t.numpy_dtype.itemsize == 2 else np.int32) for t in layout.tensors}
        name = f"{where}/{ranks}"
        with contextlib.ExitStack() as stack:
            arenas = open_ranks(stack, pool, layout, ranks, names, axis_orders=ORDERS[model] if ranks == 2 else {})
            for i, rank in enumerate(rng.sample(range(ranks), ranks)):
                with current(arenas[rank]):
                    write_part(arenas[rank], layout, 1, cut(whole, sections, heads, ranks, rank))
                    stored = arenas[rank].store({1: StoreItem(name, whole_row=True, request_id="once", attachment=b"logits" if rank == 1 else b"")}, position=7)[1]
                missing = ranks - 1 - i
                checks.expect(f"{name}: {missing} parts missing", stored == PartStored(missing) if missing else stored.position == 7)
        state = pool.get(name)
        checks.expect(f"{name}: stored together", bytes(state.data) == b"".join(whole[t.name].tobytes() for t in layout.tensors))
        checks.expect(f"{name}: the attachment", state.attachment == b"logits")
        for others in (1, 2, 4):
            with contextlib.ExitStack() as stack:
                for rank, arena in enumerate(open_ranks(stack, pool, layout, others, names, axis_orders=ORDERS[model] if others == 4 else {})):
                    with current(arena):
                        arena.load({0: name})
                        part, expected = read_part(arena, layout, 0), cut(whole, sections, heads, others, rank)
                    checks.expect(f"{name}: rank {rank} of {others} loads its part", all((part[t] == expected[t]).all() for t in expected))


def figures(pool, names, quick):
    layout = pool.register_layout(statepool.layouts.mamba2("gpu-ranks-large", layers=LARGE_LAYERS, heads=LARGE_HEADS, head_dim=64, state_size=128))
    with contextlib.ExitStack() as stack:
        arenas = open_ranks(stack, pool, layout, 2, names)
        stores, n = [], 5 if quick else 20
        for i in range(n + 1):
            for rank, arena in enumerate(arenas):
                with current(arena):
                    start = time.monotonic()
                    arena.store({0: StoreItem("large", whole_row=True, any_revision=True, request_id=f"{i}", durability="volatile")}, position=i)
                    stores += [1e6 * (time.monotonic() - start)] * (rank == 1 and i > 0)
        with current(arenas[1]):
            loads = times_us(lambda _: arenas[1].load({1: "large"}), n)
        more = {"bytes": layout.state_bytes // 2}  # of the rank's part; a little less, for the groups are both ranks'
        yield line("gpu-ranks-load-1", sorted(loads), None, "none", **more)
        yield line("gpu-ranks-store-1", sorted(stores), None, "none", **more)


def run_checks(directory, options):
    checks, rng = Checks(), random.Random(options.seed)
    gpus = device.uuids()[:2]
    lines = []
    with Daemon(directory / "checks", "--hot-bytes=3GiB", "--devices=cuda:" + ",".join(gpus)) as daemon, daemon.pool() as pool:
        names = [one.name for one in pool.capabilities().devices]
        for places in ([names[:1]] if len(names) == 1 else [names[:1], names]):
            for model in MODELS:
                try:
                    check_model(checks, pool, places, model, rng)
                except Exception:
                    checks.expect(f"{model}: {traceback.format_exc()}", False)
        if len(names) > 1:
            lines = list(figures(pool, names, options.quick))
    return [*lines, {"name": "gpu-ranks", "value": len(checks.failed), "unit": "checks failed", "n": checks.n, "gpus": len(gpus), "goal": 0}]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=harness.new_seed())
    parser.add_argument("--quick", action="store_true", help="fewer calls for the figures")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise harness.NotMeasurable("torch sees no GPU")
    short = 0
    with harness.workspace("gpu-ranks") as directory:
        for measured in run_checks(directory, options):
            short += not harness.figure(measured | {"machine": torch.cuda.get_device_name()}, options.seed)
    return harness.FALLS_SHORT if short else harness.OK


if __name__ == "__main__":
    harness.run(main)
