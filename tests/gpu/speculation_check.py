#!/usr/bin/env python3
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""tests/gpu/speculation_check.py [--seed N] [--quick]: rows of arenas on a GPU, moved to the states after their accepted tokens.

By the daemon in the order of a stream, by this process's kernels and by torch in their place, each against numpy. Lines of the contract on stdout:
"gpu-advance" counts checks that failed, "gpu-advance-16" is a time. Needs a GPU, torch and cuda-bindings."""
import argparse
import random
import traceback

import arenas_check as base
import harness
import numpy as np
import statepool
import torch
from arenas_check import EVERY_DTYPE, LARGE, Checks, Daemon, bits_of, line, times_us
from statepool import AdvanceItem, StoreItem, View, errors, speculation

STEPS, ROWS = 4, 6
LAYOUT = statepool.Layout("speculative", (*EVERY_DTYPE.tensors, statepool.Tensor("gate", (0, 3), "float16", {"tap": 4, "channel": 33}, "conv")))
VIEWS = {
    "steps": View(),
    "columns, DS": View("layer_major", num_spec=STEPS - 1),
    "columns, SD, padded": View("row_major", axis_orders={"conv": ["tap", "channel"], "gate": ["channel", "tap"]}, conv_padding=1, num_spec=STEPS),
    "columns of one": View(axis_orders={"conv": ["tap", "channel"]}, num_spec=STEPS - 1, without_num_spec=["gate"]),
    "columns of none, padded": View("layer_major", conv_padding=1, num_spec=STEPS - 1, without_num_spec=["conv", "gate"]),
}
WAYS = ("isolated", "kernels", "torch")


def tensors_of(arena):
    return {(tensor.name, layer): arena.layer(tensor.name, layer) for tensor in LAYOUT.tensors for layer in tensor.layers}


def in_columns(arena, tensor):
    """Whether its speculative tokens are in columns of its window."""
    return tensor in ("conv", "gate") and arena.view.num_spec > 0 and tensor not in arena.view.without_num_spec


def by_column(arena, tensor, row):
    """A row of a tensor with columns, [column, ...]."""
    axes = [axis for axis in arena.axes[tensor] if axis not in ("layer", "row", "step")]
    return np.moveaxis(row[0], axes.index("tap"), 0)


def expected(arena, held, moves):
    """What the arena holds after moves of {row: (row that gets it, path)}."""
    after = {key: array.copy() for key, array in held.items()}
    for row, (to, path) in moves.items():
        for (tensor, layer), array in held.items():
            if not in_columns(arena, tensor):
                after[tensor, layer][to, 0] = array[row, path[-1]]
                continue
            source, target = by_column(arena, tensor, array[row]), by_column(arena, tensor, after[tensor, layer][to])
            window = source.shape[0] - arena.view.num_spec
            inputs = [*range(window - 1), *(window - 1 + step for step in path)]
            kept = [*inputs[-window:], *range(window + path[-1], source.shape[0])]
            target[:len(kept)] = source[kept]
    return after


def state_after(arena, held, row, tokens):
    """The bytes of a row's state after so many of its step's tokens, in the order of a chain."""
    parts = []
    for tensor in LAYOUT.tensors:
        for layer in tensor.layers:
            array, axes = held[tensor.name, layer][row], [axis for axis in arena.axes[tensor.name] if axis not in ("layer", "row", "step")]
            if in_columns(arena, tensor.name):
                columns = by_column(arena, tensor.name, array)
                end = columns.shape[0] - arena.view.num_spec + tokens - 1
                part, axes = columns[end - tensor.axes["tap"]:end], ["tap", *(axis for axis in axes if axis != "tap")]
            else:
                part = array[tokens - 1]
                if "tap" in axes:
                    part = np.moveaxis(np.moveaxis(part, axes.index("tap"), 0)[-tensor.axes["tap"]:], 0, axes.index("tap"))
            parts.append(part.transpose([axes.index(axis) for axis in tensor.axes]).tobytes())
    return b"".join(parts)


def random_moves(rng):
    rows = rng.sample(range(ROWS), ROWS)
    moves = {}
    for i, row in enumerate(rows[:4]):
        parents = [-1] + [rng.randrange(-1, step) for step in range(1, rng.randint(1, STEPS))]
        moves[row] = (rows[4 + i] if i < 2 else row, speculation.path_of(parents, rng.randrange(len(parents))))
    return moves


def fill(arena, rng):
    """Random bytes into all of it, in the order of its stream; the copies on the GPU that went in."""
    noise = {key: torch.from_numpy(np.frombuffer(rng.randbytes(t.numel() * t.element_size()), np.uint8).copy()).cuda()
             for key, t in tensors_of(arena).items()}
    torch.cuda._sleep(20_000_000)  # the stream is behind
    held = {}
    for key, tensor in tensors_of(arena).items():
        bits = bits_of(tensor)
        held[key] = noise[key].view(bits.dtype).view(bits.shape)
        bits.copy_(held[key])
    return held


def on_host(tensors):
    return {key: tensor.cpu().numpy() for key, tensor in tensors.items()}


def tokens_at_block(item, block):
    """How many of its step's tokens the state at the last block is after; below 1 where there is none."""
    at = item.position // block * block
    return at - (item.position - item.accepted) if at > 0 else 0


def align_items(rng, what, block, every):
    """A Store of each row. every: each has a block, so that none of them is for the daemon to skip."""
    items = {}
    while len(items) < ROWS:
        accepted = rng.randint(1, STEPS)
        item = StoreItem(f"{what}/{len(items)}", accepted + rng.randrange(9), accepted, whole_row=True, advance=rng.random() < 0.6)
        if not every or tokens_at_block(item, block) >= 1:
            items[len(items)] = item
    return items


def check_align(checks, pool, arena, rng, what):
    """Stores of align mode, each of the state at the last block and no other, and rows advanced behind them."""
    by_itself = []  # the calls whose rows this process copied
    if arena._copies is not None:
        real = arena._copies.scatter
        arena._copies.scatter = lambda *arguments: by_itself.append(what) or real(*arguments)
    for round_ in range(6):
        every, name = round_ % 2 == 1, f"{what}, round {round_}"
        block = rng.choice([2, 3, 5] if every else [1, 2, 3, 5])
        items = align_items(rng, name, block, every)
        moves = {row: (row, list(range(item.accepted))) for row, item in items.items() if item.advance}
        held = fill(arena, rng)
        before = len(by_itself)
        stored = arena.store(items, align=block)
        after = on_host({key: bits_of(tensor).clone() for key, tensor in tensors_of(arena).items()})
        held = on_host(held)
        wanted = expected(arena, held, moves)
        checks.expect(f"{name}: who stores", not every or arena._copies is None or len(by_itself) > before)
        checks.expect(f"{name}: advanced by their stores: {items}", all(after[key].tobytes() == wanted[key].tobytes() for key in wanted))
        for row, item in items.items():
            tokens = tokens_at_block(item, block)
            try:
                got = pool.get(item.sequence)
            except errors.NotFound:
                checks.expect(f"{name}: nothing of {item}, {block}", stored[row] is None and tokens < 1)
                continue
            checks.expect(f"{name}: the state of {item}, {block}", tokens >= 1 and stored[row].position == got.position == item.position // block * block and
                          bytes(got.data) == state_after(arena, held, row, tokens))


def check_moves(checks, pool, rng, way):
    layout = pool.register_layout(LAYOUT)
    stream = torch.cuda.Stream()
    for name, view in VIEWS.items():
        with pool.open_arena(layout, rows=ROWS, steps=STEPS, view=view, direct=way != "isolated") as arena, torch.cuda.stream(stream):
            checks.expect(f"{way}: who moves", (arena._moves is not None) == (way != "isolated") and (way == "isolated" or arena._moves.has_kernels))
            if way == "torch":
                arena._moves.close()
            for round_ in range(6):
                moves = random_moves(rng)
                held = fill(arena, rng)
                done = arena.advance({row: AdvanceItem(path=path, to_row=to) for row, (to, path) in moves.items()})
                copies = {key: bits_of(tensor).clone() for key, tensor in tensors_of(arena).items()}
                for tensor in tensors_of(arena).values():
                    bits_of(tensor).zero_()  # what the stream does afterwards
                stream.synchronize()
                wanted = expected(arena, on_host(held), moves)
                wrong = [key for key, array in wanted.items() if copies[key].cpu().numpy().tobytes() != array.tobytes()]
                checks.expect(f"{way}, {name}, round {round_}: {wrong} after {moves}", not wrong)
                checks.expect(f"{way}: outcomes", all(done[row] == ("in_place" if to == row and path == [0] else "moved") for row, (to, path) in moves.items()))
            check_align(checks, pool, arena, rng, f"{way}, {name}")
            for tensor in tensors_of(arena).values():
                bits_of(tensor)[:, min(1, tensor.shape[1] - 1)] = 1
            stored = arena.store({0: StoreItem("advanced", whole_row=True)}, position=2, accepted=2, advance=True)
            stream.synchronize()
            checks.expect(f"{way}, {name}: stored", stored[0].position == 2)
            steps = [tensor for (kind, _), tensor in tensors_of(arena).items() if kind not in ("conv", "gate")]
            checks.expect(f"{way}, {name}: a row advanced by its store", all(torch.equal(bits_of(t)[0, 0], bits_of(t)[0, 1]) for t in steps))
            try:
                with torch.cuda.graph(torch.cuda.CUDAGraph()):
                    arena.advance({0: 2})
                checks.expect("a stream that is captured is refused", False)
            except errors.Conflict as refused:
                checks.expect("a stream that is captured is refused", refused.reason == "STREAM_CAPTURING")
            checks.expect("and goes on", arena.advance({0: 2}) == {0: "moved"})


def run_checks(directory, seed):
    checks, rng = Checks(), random.Random(seed)
    for way in WAYS:
        with Daemon(directory / way, "--hot-bytes=1GiB", *["--direct"] * (way != "isolated")) as daemon, daemon.pool() as pool:
            try:
                check_moves(checks, pool, rng, way)
            except Exception:
                checks.expect(f"{way}: {traceback.format_exc()}", False)
    return {"name": "gpu-advance", "value": len(checks.failed), "unit": "checks failed", "n": checks.n, "goal": 0}


def figure(directory, quick):
    """16 rows of 23 MB by this process's kernels, against torch copying as many bytes."""
    with Daemon(directory / "figure", "--hot-bytes=8GiB", "--direct") as daemon, daemon.pool() as pool:
        layout = pool.register_layout(LARGE)
        with pool.open_arena(layout, rows=16, steps=STEPS, view=View("layer_major"), direct=True) as arena:
            n = 20 if quick else 100
            copy = base.copy_times_us(16 * layout.state_bytes, n)
            return line("gpu-advance-16", times_us(lambda _: arena.advance({row: STEPS for row in range(16)}), n), copy, bytes=16 * layout.state_bytes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=harness.new_seed())
    parser.add_argument("--quick", action="store_true", help="fewer calls for the figure")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise harness.NotMeasurable("torch sees no GPU")
    gpu = torch.cuda.get_device_name()
    with harness.workspace("gpu-advance") as directory:
        fine = harness.figure(figure(directory, options.quick) | {"machine": gpu}, options.seed)
        fine &= harness.figure(run_checks(directory, options.seed) | {"machine": gpu}, options.seed)
    return harness.OK if fine else harness.FALLS_SHORT


if __name__ == "__main__":
    harness.run(main)
