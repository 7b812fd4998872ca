# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The ranks of tensor parallelism: what they store together is one whole state, of which any number of ranks loads its part. The cuts are made here once
more, in numpy, from the engines' formulas."""
import multiprocessing

import numpy as np
import pytest

import statepool
from statepool import PartStored, StoreItem, View, layouts

HEADS, HEAD_DIM, STATE, GROUPS = 8, 4, 6, 2
MAMBA2 = layouts.mamba2("m", layers=2, heads=HEADS, head_dim=HEAD_DIM, state_size=STATE, groups=GROUPS, conv_dtype="float32")
KEY_HEADS, KEY_DIM, VALUE_HEADS, VALUE_DIM = 4, 3, 8, 5
GDN = layouts.gated_delta_net("g", layers=2, key_heads=KEY_HEADS, key_dim=KEY_DIM, value_heads=VALUE_HEADS, value_dim=VALUE_DIM, conv_dtype="float32")
RWKV7 = layouts.rwkv7("r", layers=2, hidden_size=32, head_size=4, shift_dtype="float32")


@pytest.fixture(scope="module")
def pool(daemon):
    with statepool.connect(daemon.address) as pool:
        yield pool


def share(axis_values, groups, ranks, rank):
    """A rank's share of a section: whole groups, or, of fewer groups than ranks, the one that it has together with its neighbours."""
    parts = np.array_split(axis_values, groups, axis=-1)
    mine = parts[rank * groups // ranks:(rank + 1) * groups // ranks] if groups >= ranks else [parts[rank // (ranks // groups)]]
    return np.concatenate(mine, axis=-1)


def cut(tensors, sections, ranks, rank):
    """What a rank has of each tensor [layer, ...]: of "conv" shares of its sections, of matrices heads, of the rest everything."""
    out = {}
    for name, whole in tensors.items():
        if name == "conv":
            edges = np.cumsum([size for size, _ in sections])[:-1]
            out[name] = np.concatenate([share(section, groups, ranks, rank)
                                        for section, (_, groups) in zip(np.split(whole, edges, axis=-1), sections)], axis=-1)
        elif name in ("ssm", "delta", "wkv"):
            out[name] = np.split(whole, ranks, axis=1)[rank]
        else:
            out[name] = whole
    return out


SECTIONS = {
    "mamba2": [(HEADS * HEAD_DIM, HEADS), (GROUPS * STATE, GROUPS), (GROUPS * STATE, GROUPS)],
    "gated_delta_net": [(KEY_HEADS * KEY_DIM, KEY_HEADS), (KEY_HEADS * KEY_DIM, KEY_HEADS), (VALUE_HEADS * VALUE_DIM, VALUE_HEADS)],
    "rwkv7": [],
}
FAMILIES = {"mamba2": (MAMBA2, (1, 2, 4, 8)), "gated_delta_net": (GDN, (1, 2, 4)), "rwkv7": (RWKV7, (1, 2, 4, 8))}


def rows_of(arena):
    """{tensor: [layer, *axes]} of row 1."""
    return {t.tensor: np.stack([arena[t.tensor][layer][1] for layer in range(2)]) for t in arena._table.tensors}


def fill(arena, tensors):
    for name, values in tensors.items():
        for layer in range(2):
            arena[name][layer][1] = values[layer]


@pytest.mark.parametrize("family", FAMILIES)
def test_any_number_of_ranks_loads_what_any_number_stored(pool, name, family):
    preset, sizes = FAMILIES[family]
    layout = pool.register_layout(preset)
    rng = np.random.default_rng(7)
    for ranks in sizes:
        whole = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in layout.tensors}
        sequence = f"{name}/{ranks}"
        for rank in range(ranks):
            with pool.open_arena(layout, rows=2, view=View(tp_size=ranks, tp_rank=rank)) as arena:
                fill(arena, cut(whole, SECTIONS[family], ranks, rank))
                result = arena.store({1: StoreItem(sequence, whole_row=True, request_id="prefill")}, position=9)[1]
                if rank < ranks - 1:
                    assert result == PartStored(ranks - 1)  # the arena before it was closed, and its part went along
                    break
        arenas = [pool.open_arena(layout, rows=2, view=View(tp_size=ranks, tp_rank=rank)) for rank in range(ranks)]
        for rank, arena in enumerate(arenas):
            fill(arena, cut(whole, SECTIONS[family], ranks, rank))
            result = arena.store({1: StoreItem(sequence, whole_row=True, request_id="once more")}, position=9)[1]
            assert result == PartStored(ranks - 1 - rank) if rank < ranks - 1 else result.position == 9
            if rank < ranks - 1:
                with pytest.raises(statepool.NotFound):
                    pool.get(sequence)
        state = pool.get(sequence)
        for tensor, values in whole.items():
            assert (np.asarray(state.tensors[tensor]) == values).all()
        for arena in arenas:
            arena.close()
        for others in sizes:
            for rank in range(others):
                with pool.open_arena(layout, rows=2, view=View(tp_size=others, tp_rank=rank)) as arena:
                    arena.load({1: sequence})
                    expected, loaded = cut(whole, SECTIONS[family], others, rank), rows_of(arena)
                    assert all((loaded[tensor] == expected[tensor]).all() and loaded[tensor].shape == expected[tensor].shape for tensor in whole), (others, rank)


def work(address, rank, ranks, name, start, results):
    with statepool.connect(address) as pool:
        layout = pool.register_layout(RWKV7)
        with pool.open_arena(layout, rows=2, view=View(tp_size=ranks, tp_rank=rank)) as arena:
            start.wait(30)
            for step in range(1, 21):
                for layer in range(2):
                    for tensor in ("att_shift", "wkv", "ffn_shift"):
                        arena[tensor][layer][1] = step * 10 + (rank if tensor == "wkv" else 0)
                stored = arena.store({1: StoreItem(name, whole_row=True, request_id=f"step {step}")}, position=step)[1]
                results.put((step, rank, not isinstance(stored, PartStored)))
                start.wait(30)  # ranks go in step, as an engine's do
            start.wait(30)


def test_ranks_are_processes_of_their_own(daemon, pool, name):
    ranks = 4
    layout = pool.register_layout(RWKV7)
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(ranks), spawn.Queue()
    workers = [spawn.Process(target=work, args=(daemon.address, rank, ranks, name, start, results)) for rank in range(ranks)]
    for worker in workers:
        worker.start()
    told = [results.get(timeout=60) for _ in range(20 * ranks)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    for step in range(1, 21):
        assert sum(whole for at, _, whole in told if at == step) >= 1
    state = pool.get(name)
    assert state.position == 20
    heads = np.asarray(state.tensors["wkv"])[0, :, 0, 0]
    assert heads.tolist() == [200 + rank for rank in range(ranks) for _ in range(layout.tensors[1].shape[1] // ranks)]


def test_what_a_part_needs_is_said(pool, name):
    layout = pool.register_layout(RWKV7)
    with pool.open_arena(layout, rows=2, view=View(tp_size=2, tp_rank=1)) as arena:
        for item in (name, StoreItem(name, whole_row=True)):
            with pytest.raises(statepool.InvalidArgument) as error:
                arena.store({1: item}, position=1)
            assert error.value.reason == "MISSING_FIELD" and error.value.field == "items[0].request_id"
        with pytest.raises(statepool.InvalidArgument) as error:
            arena.store({1: StoreItem(name, whole_row=True, request_id="1")}, position=1, all_or_none=True)
        assert error.value.field == "all_or_none"
        # A row that was advanced could not be stored once more, when the version is dropped.
        for position in 0, 1:
            with pytest.raises(statepool.InvalidArgument, match="Advance the row by a call of its own") as error:
                arena.store({1: StoreItem(name, whole_row=True, request_id="1", advance=True, align=position)}, position=position)
            assert (error.value.reason, error.value.field) == ("INVALID_OPTION", "items[0].advance")
    for view, field in ((View(tp_size=3), "view.tp_size"), (View(tp_size=2, tp_rank=2), "view.tp_rank")):
        with pytest.raises(statepool.InvalidArgument) as error:
            pool.open_arena(layout, rows=2, view=view)
        assert error.value.reason == "INVALID_VIEW" and error.value.field == field


def test_ranks_of_align_mode_store_the_same_state_or_none(pool, name):
    """Speculative tokens in columns; the version is dropped once in between, when a rank's arena ends."""
    layout, ranks = pool.register_layout(MAMBA2), 2
    views = [View(tp_size=ranks, tp_rank=rank, num_spec=3) for rank in range(ranks)]
    arenas = [pool.open_arena(layout, rows=2, steps=4, view=view) for view in views]

    def fill(arena):
        for layer in range(2):
            arena["ssm"][layer][1] = np.arange(4).reshape(-1, 1, 1, 1)
            arena["conv"][layer][1, 0] = np.arange(arena["conv"][layer].shape[2]).reshape(-1, 1)

    def store(rank, position, request_id):
        return arenas[rank].store({1: StoreItem(name, position, accepted=4, whole_row=True, request_id=request_id, align=8)})[1]

    for arena in arenas:
        fill(arena)
    assert [store(rank, 15, "none") for rank in range(ranks)] == [None, None]
    assert store(0, 18, "step") == PartStored(1)
    arenas[0].close()
    arenas[0] = pool.open_arena(layout, rows=2, steps=4, view=views[0])
    fill(arenas[0])
    assert store(1, 18, "step") == PartStored(1)
    assert store(0, 18, "step").position == 16
    state = pool.get(name)
    assert state.position == 16 and (np.asarray(state.tensors["ssm"]) == 1).all()
    assert (np.asarray(state.tensors["conv"]) == np.array([1, 2, 3]).reshape(1, 3, 1)).all()
    assert [arena.advance({1: 4}) for arena in arenas] == [{1: "moved"}] * ranks  # once the version is whole
    for arena in arenas:
        assert (arena["ssm"][0][1, 0] == 3).all()
        arena.close()
