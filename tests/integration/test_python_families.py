# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Every family as engines hold it: the shapes of their arenas against the engines' own formulas, and what ranks store and load against cuts of the whole state in
numpy. Hyper-parameters, ranks and views are random, from a seed that a failure names (STATEPOOL_SEED gives another one)."""
import dataclasses
import math
import os
import random
from collections.abc import Callable

import numpy as np
import pytest

import statepool
from statepool import PartStored, StoreItem, View, errors, layouts
from statepool.v1 import statepool_pb2 as pb

SEED = int(os.environ.get("STATEPOOL_SEED", 7))
CASES = 6  # of each family
RANKS_MAX = 8


@dataclasses.dataclass
class Engine:
    """One layer's tensors of a family, as an engine has them. t: ranks; s: speculative columns. Sizes that t does not divide are None.

    shapes    {tensor: of one rank}, conv SD (columns, channels), K-1 wide
    sections  {tensor: (axis, [(size, pieces)])}: what tensor parallelism cuts; the pieces go to ranks by equal numbers or, where there are fewer of them, each to
              neighbours. The other tensors every rank has whole
    dtypes    {tensor: the family's default}
    """

    preset: Callable[..., layouts.Preset]
    sizes: dict[str, int]
    shapes: Callable[[int, int], dict[str, tuple[int | None, ...]]]
    sections: dict[str, tuple[int, list[tuple[int, int]]]]
    dtypes: dict[str, str]
    speculates: bool = False  # its convolutions have columns for speculative tokens; those of the others have steps (vLLM ignores S there)


def over(size, t):
    """size / t, which must be exact."""
    return size // t if size % t == 0 else None


def pick(rng, *choices):
    return rng.choice(choices)


def mamba1(rng):
    i, n, k = pick(rng, 8, 12, 24, 40), rng.randint(1, 5), rng.randint(2, 5)
    return Engine(layouts.mamba1, {"intermediate_size": i, "state_size": n, "conv_kernel": k},
                  lambda t, s: {"conv": (k - 1, over(i, t)), "ssm": (over(i, t), n)},
                  {"conv": (1, [(i, i)]), "ssm": (0, [(i, i)])}, {"conv": "bfloat16", "ssm": "float32"})


def mamba2(rng):
    h, p, n, k = pick(rng, 4, 8, 12, 24), rng.randint(1, 4), rng.randint(1, 5), rng.randint(2, 5)
    g = pick(rng, *(g for g in (1, 1, 2, 3, 4, 6, 8) if h % g == 0))
    i = h * p

    def shapes(t, s):
        extra = t - g if g % t else 0  # copies of groups, so that each rank has one
        if extra < 0 or (extra and t % g):
            return {"conv": (k - 1 + s, None), "ssm": (over(h, t), p, n)}
        return {"conv": (k - 1 + s, over(i + 2 * (g + extra) * n, t) if h % t == 0 else None), "ssm": (over(h, t), p, n)}

    return Engine(layouts.mamba2, {"heads": h, "head_dim": p, "state_size": n, "conv_kernel": k, "groups": g}, shapes,
                  {"conv": (1, [(i, h), (g * n, g), (g * n, g)]), "ssm": (0, [(h, h)])}, {"conv": "bfloat16", "ssm": "float32"}, speculates=True)


def short_conv(rng):
    c, k = pick(rng, 8, 12, 24, 35), rng.randint(2, 5)
    return Engine(layouts.short_conv, {"channels": c, "conv_kernel": k}, lambda t, s: {"conv": (k - 1, over(c, t))}, {"conv": (1, [(c, c)])}, {"conv": "bfloat16"})


def gated_delta_net(rng):
    hk, dk, dv, k = pick(rng, 2, 4, 6, 8), rng.randint(1, 4), rng.randint(1, 4), rng.randint(2, 5)
    hv = hk * rng.randint(1, 3)
    channels = 2 * hk * dk + hv * dv
    return Engine(layouts.gated_delta_net, {"key_heads": hk, "key_dim": dk, "value_heads": hv, "value_dim": dv, "conv_kernel": k},
                  lambda t, s: {"conv": (k - 1 + s, over(channels, t) if hk % t == 0 else None), "delta": (over(hv, t), dv, dk)},
                  {"conv": (1, [(hk * dk, hk), (hk * dk, hk), (hv * dv, hv)]), "delta": (0, [(hv, hv)])}, {"conv": "bfloat16", "delta": "float32"}, speculates=True)


def kda(rng):
    h, d, k = pick(rng, 4, 6, 8), rng.randint(1, 4), rng.randint(2, 5)
    hk, dk = pick(rng, h, h // 2), rng.randint(1, 4)
    channels = h * d + 2 * hk * dk
    return Engine(layouts.kda, {"heads": h, "head_dim": d, "key_heads": hk, "key_dim": dk, "conv_kernel": k},
                  lambda t, s: {"conv": (k - 1 + s, over(channels, t) if h % t == 0 and hk % t == 0 else None), "delta": (over(h, t), d, d)},
                  {"conv": (1, [(h * d, h), (hk * dk, hk), (hk * dk, hk)]), "delta": (0, [(h, h)])}, {"conv": "bfloat16", "delta": "float32"}, speculates=True)


def kda_of_the_seed_era(rng):
    h, d, k = pick(rng, 4, 6, 8), rng.randint(1, 4), rng.randint(2, 5)
    hk, dk = pick(rng, h, h // 2), rng.randint(1, 4)

    def shapes(t, s):
        of_keys = over(hk * dk, t) if hk % t == 0 else None
        return {"conv_q": (k - 1, over(h * d, t) if h % t == 0 else None), "conv_k": (k - 1, of_keys), "conv_v": (k - 1, of_keys), "delta": (over(h, t), d, d)}

    return Engine(lambda *a, **b: layouts.kda(*a, separate_convs=True, **b),
                  {"heads": h, "head_dim": d, "key_heads": hk, "key_dim": dk, "conv_kernel": k}, shapes,
                  {"conv_q": (1, [(h * d, h)]), "conv_k": (1, [(hk * dk, hk)]), "conv_v": (1, [(hk * dk, hk)]), "delta": (0, [(h, h)])},
                  {"conv_q": "bfloat16", "conv_k": "bfloat16", "conv_v": "bfloat16", "delta": "float32"})


def linear_attention(rng):
    h, d = pick(rng, 3, 4, 6, 8), rng.randint(1, 5)
    return Engine(layouts.linear_attention, {"heads": h, "head_dim": d}, lambda t, s: {"kv": (over(h, t), d, d)}, {"kv": (0, [(h, h)])}, {"kv": "float32"})


def rwkv4(rng):
    c, a = pick(rng, 7, 8, 12), pick(rng, 8, 12, 24)
    return Engine(layouts.rwkv4, {"hidden_size": c, "attention_size": a},
                  lambda t, s: {"att_shift": (c,), "aa": (over(a, t),), "bb": (over(a, t),), "pp": (over(a, t),), "ffn_shift": (c,)},
                  {name: (0, [(a, a)]) for name in ("aa", "bb", "pp")},
                  {"att_shift": "bfloat16", "aa": "float32", "bb": "float32", "pp": "float32", "ffn_shift": "bfloat16"})


def rwkv4_seed(rng):
    c = pick(rng, 8, 12, 24)
    return Engine(layouts.rwkv4_seed, {"hidden_size": c}, lambda t, s: {"aa": (over(c, t),), "ab": (over(c, t),), "att_x_prev": (c,), "ffn_x_prev": (c,)},
                  {name: (0, [(c, c)]) for name in ("aa", "ab")}, {"aa": "float32", "ab": "float32", "att_x_prev": "bfloat16", "ffn_x_prev": "bfloat16"})


def rwkv(preset):
    def engine(rng):
        h, d = pick(rng, 3, 4, 6, 8), rng.randint(1, 5)
        c = h * d
        return Engine(preset, {"hidden_size": c, "head_size": d}, lambda t, s: {"att_shift": (c,), "wkv": (over(h, t), d, d), "ffn_shift": (c,)},
                      {"wkv": (0, [(h, h)])}, {"att_shift": "bfloat16", "wkv": "float32", "ffn_shift": "bfloat16"})
    return engine


FAMILIES = {f.__name__: f for f in (mamba1, mamba2, short_conv, gated_delta_net, kda, kda_of_the_seed_era, linear_attention, rwkv4, rwkv4_seed)}
FAMILIES.update({f.__name__: rwkv(f) for f in (layouts.rwkv5, layouts.rwkv6, layouts.rwkv7)})
CONVS = ("conv", "conv_q", "conv_k", "conv_v")


def base(tensor):
    """A tensor's name without the prefix of a hybrid's part."""
    return tensor.rpartition(".")[2]


def cut(whole, sections, ranks, rank):
    """The rank's part of a tensor of one layer."""
    if sections is None:
        return whole
    axis, parts = sections
    mine, at = [], 0
    for size, pieces in parts:
        of_section = np.split(np.take(whole, range(at, at + size), axis=axis), pieces, axis=axis)
        mine += of_section[rank * pieces // ranks:(rank + 1) * pieces // ranks] if pieces >= ranks else [of_section[rank * pieces // ranks]]
        at += size
    assert at == whole.shape[axis]
    return np.concatenate(mine, axis=axis)


def noise(rng, shape, dtype):
    return np.frombuffer(rng.randbytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


@dataclasses.dataclass
class Case:
    """A model, of one family or a hybrid, and the whole of its state: {(tensor, layer): array, as the layout orders its axes}."""

    layout: layouts.Layout
    engines: dict[str, Engine]  # by prefix
    rng: random.Random
    devices: list[str]
    turned: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def engine(self, tensor):
        return self.engines[tensor.rpartition(".")[0]]

    def divides(self, ranks):
        return all(None not in shape for engine in self.engines.values() for shape in engine.shapes(ranks, 0).values())

    def some_ranks(self):
        return self.rng.choice([t for t in range(1, RANKS_MAX + 1) if self.divides(t)])

    def some_view(self, ranks, steps):
        """One that all ranks take: the orders of axes, the width of convolutions, and what is contiguous, by chance."""
        orders = {}
        for t in self.layout.tensors:
            axes = list(t.axes)
            if len(axes) > 1 and self.rng.random() < 0.5:  # conv DS, matrices turned
                orders[t.name] = [*axes[:-2], axes[-1], axes[-2]]
        convs = [t.name for t in self.layout.tensors if t.kind == "conv"]
        columns = max(steps - 1, 0) + self.rng.randint(0, 2) if convs and self.rng.random() < 0.8 else 0
        return {"layers": pick(self.rng, "per_layer", "layer_major", "row_major"), "axis_orders": orders, "tp_size": ranks,
                "conv_padding": self.rng.randint(0, 1) if convs else 0,
                "num_spec": columns, "without_num_spec": [name for name in convs if not self.engine(name).speculates]}

    def open(self, pool, view, rank, steps=0):
        return pool.open_arena(self.layout, rows=2, steps=steps, view=View(**view, tp_rank=rank), device=self.devices[rank % len(self.devices)])

    def shape(self, tensor, view):
        """What an engine's own formula says of one rank's tensor, as the view orders its axes."""
        engine, name = self.engine(tensor.name), base(tensor.name)
        shape = engine.shapes(view["tp_size"], view["num_spec"])[name]
        order = view["axis_orders"].get(tensor.name, list(tensor.axes))
        if name in CONVS:
            shape = (shape[0] + view["conv_padding"], shape[1])
        sizes = dict(zip(self.formula_axes(tensor), shape))
        return tuple(sizes[axis] for axis in order)

    @staticmethod
    def formula_axes(tensor):
        """The table has a gated delta net's matrices as (value, key); KDA's are square."""
        return ("head", "value", "key") if base(tensor.name) == "delta" else tuple(tensor.axes)

    def whole_state(self):
        return {(t.name, layer): noise(self.rng, tuple(t.axes.values()), t.numpy_dtype) for t in self.layout.tensors for layer in t.layers}

    def parts(self, whole, view, rank):
        """{(tensor, layer): the rank's part, as the view orders its axes, without what only the view has}."""
        out = {}
        for t in self.layout.tensors:
            order = [list(t.axes).index(axis) for axis in view["axis_orders"].get(t.name, list(t.axes))]
            for layer in t.layers:
                out[t.name, layer] = cut(whole[t.name, layer], self.engine(t.name).sections.get(base(t.name)), view["tp_size"], rank).transpose(order)
        return out

    def speculates(self, tensor, view):
        """Whether its speculative tokens are columns."""
        return tensor.kind == "conv" and view["num_spec"] > 0 and self.engine(tensor.name).speculates

    def columns(self, tensor, array, view, accepted=1):
        """Of a row's step the K-1 columns that it holds after `accepted` tokens; of other tensors all."""
        if tensor.kind != "conv":
            return array
        axis = list(view["axis_orders"].get(tensor.name, list(tensor.axes))).index("tap")
        first = view["conv_padding"] + (accepted - 1 if self.speculates(tensor, view) else 0)
        return array[(slice(None),) * axis + (slice(first, first + tensor.axes["tap"]),)]

    def at(self, arena, tensor, layer, row, view, accepted=1):
        """The K-1 columns, or all, of the step that `accepted` names."""
        array = arena.layer(tensor.name, layer)[row]
        if arena.steps:
            array = array[0 if self.speculates(tensor, view) else accepted - 1]
        return self.columns(tensor, array, view, accepted)

    def store(self, pool, name, whole, view, steps, position):
        """All ranks' parts, in any order; rows hold other bytes wherever the accepted length does not point."""
        ranks = view["tp_size"]
        arenas = [self.open(pool, view, rank, steps) for rank in range(ranks)]
        accepted = self.rng.randint(1, max(steps, 1))
        order = self.rng.sample(range(ranks), ranks)
        for i, rank in enumerate(order):
            arena, parts = arenas[rank], self.parts(whole, view, rank)
            for t in self.layout.tensors:
                for layer in t.layers:
                    row = arena.layer(t.name, layer)[1]
                    shape = self.shape(t, view)
                    assert row.shape == ((1 if self.speculates(t, view) else steps, *shape) if steps else shape), (t.name, rank, view)
                    row[...] = noise(self.rng, row.shape, t.numpy_dtype)
                    self.at(arena, t, layer, 1, view, accepted)[...] = parts[t.name, layer]
            stored = arena.store({1: StoreItem(name, whole_row=True, request_id=f"at {position}")}, position=position, accepted=accepted)[1]
            assert stored == PartStored(ranks - 1 - i) if i < ranks - 1 else stored.position == position
        for arena in arenas:
            arena.close()

    def check_load(self, pool, name, whole, view):
        for rank in range(view["tp_size"]):
            with self.open(pool, view, rank) as arena:
                for t in self.layout.tensors:
                    for layer in t.layers:
                        row = arena.layer(t.name, layer)[1]
                        row[...] = noise(self.rng, row.shape, t.numpy_dtype)
                arena.load({1: name})
                parts = self.parts(whole, view, rank)
                for t in self.layout.tensors:
                    for layer in t.layers:
                        row = arena.layer(t.name, layer)[1]
                        assert row.shape == self.shape(t, view), (t.name, rank, view)
                        mine = self.columns(t, row, view)
                        assert mine.tobytes() == parts[t.name, layer].tobytes(), (t.name, layer, rank, view)
                        mine[...] = 0
                        assert not np.ascontiguousarray(row).view(np.uint8).any(), "what only the view has is zero"


@pytest.fixture(scope="module")
def pool(daemon):
    with statepool.connect(daemon.address) as pool:
        yield pool


@pytest.fixture
def devices(pool):
    return [device.name for device in pool.capabilities().devices]


def make(pool, devices, rng, families, model):
    """A registered layout of one family, or a hybrid of several, each in layers of its own."""
    free = list(range(12))
    engines, presets = {}, []
    for i, family in enumerate(families):
        engine, layer_ids = FAMILIES[family](rng), sorted(rng.sample(free, rng.randint(1, 3)))
        free = [layer for layer in free if layer not in layer_ids]
        prefix = f"{i}." if len(families) > 1 else ""
        engines[prefix[:-1]] = engine
        presets.append(engine.preset("" if prefix else model, layer_ids=layer_ids, prefix=prefix, **engine.sizes))
    layout = pool.register_layout(presets[0] if len(presets) == 1 else layouts.hybrid(model, presets))
    return Case(layout, engines, rng, devices)


def check(pool, case, name):
    for t in case.layout.tensors:
        assert t.dtype == case.engine(t.name).dtypes[base(t.name)]
    for round_ in range(2):
        whole = case.whole_state()
        steps = pick(case.rng, 0, 0, 1, 3)
        case.store(pool, name, whole, case.some_view(case.some_ranks(), steps), steps, position=round_ + 1)
        state = pool.get(name)
        for t in case.layout.tensors:
            for i, layer in enumerate(t.layers):
                assert state.tensors[t.name][i].tobytes() == whole[t.name, layer].tobytes(), (t.name, layer)
        for _ in range(2):
            case.check_load(pool, name, whole, case.some_view(case.some_ranks(), 0))
    for ranks in range(1, RANKS_MAX + 1):
        if not case.divides(ranks):
            with pytest.raises(statepool.InvalidArgument) as error:
                pool.open_arena(case.layout, rows=2, view=View(tp_size=ranks, tp_rank=ranks - 1))
            assert (error.value.reason, error.value.field) == ("INVALID_VIEW", "view.tp_size")


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_of_a_family_store_and_load_cuts_of_the_whole_state(pool, devices, name, family, case):
    rng = random.Random(f"{SEED} {family} {case}")
    print(f"STATEPOOL_SEED={SEED}")
    check(pool, make(pool, devices, rng, [family], name), name)


@pytest.mark.parametrize("case", range(CASES))
def test_ranks_of_a_hybrid_store_and_load_cuts_of_the_whole_state(pool, devices, name, case):
    rng = random.Random(f"{SEED} hybrid {case}")
    print(f"STATEPOOL_SEED={SEED}")
    check(pool, make(pool, devices, rng, rng.sample(list(FAMILIES), rng.randint(2, 4)), name), name)


@pytest.mark.parametrize("groups, ranks, of_each", [
    (1, 4, 1), (2, 8, 1), (4, 8, 1), (4, 4, 1), (8, 4, 2), (8, 1, 8),  # g' = g + (g mod t ? t - g : 0), divided by t
    (8, 3, None), (6, 4, None), (3, 2, None),                          # g' would be less than g
    (3, 4, None), (2, 3, None),                                        # a rank's heads would be of two groups
])
def test_groups_of_mamba2_are_shared_by_ranks_that_are_more(pool, name, groups, ranks, of_each):
    layout = pool.register_layout(layouts.mamba2(name, layers=1, heads=24, head_dim=2, state_size=5, groups=groups))
    if of_each is None:
        with pytest.raises(statepool.InvalidArgument) as error:
            pool.open_arena(layout, rows=1, view=View(tp_size=ranks))
        assert (error.value.reason, error.value.field) == ("INVALID_VIEW", "view.tp_size")
        return
    extra = ranks - groups if groups % ranks else 0
    assert (groups + extra) // ranks == of_each
    with pool.open_arena(layout, rows=1, view=View(tp_size=ranks)) as arena:
        assert arena.layer("conv", 0).shape == (1, 3, (24 * 2 + 2 * (groups + extra) * 5) // ranks)


@pytest.mark.parametrize("family, sizes, field", [
    (layouts.mamba1, {"intermediate_size": 8, "state_size": 2, "layers": 0}, "preset.mamba1.layers"),
    (layouts.short_conv, {"channels": 8, "layers": 1, "conv_kernel": 1}, "preset.short_conv.conv_kernel"),
    (layouts.gated_delta_net, {"key_heads": 4, "key_dim": 2, "value_heads": 6, "value_dim": 2, "layers": 1}, "preset.gated_delta_net.value_heads"),
    (layouts.mamba2, {"heads": 3, "head_dim": 2, "state_size": 2, "groups": 2, "layers": 1}, "preset.mamba2.heads"),
    (layouts.rwkv6, {"hidden_size": 100, "layers": 1}, "preset.rwkv6.hidden_size"),
])
def test_sizes_that_make_no_sense_are_refused(pool, family, sizes, field):
    with pytest.raises(statepool.InvalidArgument) as error:
        pool.register_layout(family("m", **sizes))
    assert (error.value.reason, error.value.field) == ("INVALID_LAYOUT", field)


@pytest.mark.parametrize("family", [layouts.rwkv5, layouts.rwkv6, layouts.rwkv7])
def test_ranks_begin_with_their_heads_of_a_tuned_time_state(pool, devices, name, family):
    heads, size, ranks = 4, 3, 2
    in_file = np.random.default_rng(SEED).standard_normal((2, heads, size, size)).astype(np.float32)
    turned = in_file.swapaxes(-1, -2)  # as the models load it
    layout = pool.register_layout(family(name, layers=2, hidden_size=heads * size, head_size=size, initial={"wkv": turned}))
    pool.create(layout, name)
    for rank in range(ranks):
        with pool.open_arena(layout, rows=1, view=View(tp_size=ranks, tp_rank=rank), device=devices[rank % len(devices)]) as arena:
            arena.load({0: name})
            for layer in range(2):
                mine = arena.layer("wkv", layer)[0]
                expected = np.stack([in_file[layer, head].T for head in range(rank * heads // ranks, (rank + 1) * heads // ranks)])
                assert mine.tobytes() == expected.tobytes() and not arena.layer("att_shift", layer)[0].view(np.uint8).any()


def test_the_attachment_is_any_ranks(pool, devices, name):
    layout = pool.register_layout(layouts.rwkv7(name, layers=1, hidden_size=8, head_size=2))
    arenas = [pool.open_arena(layout, rows=1, view=View(tp_size=2, tp_rank=rank), device=devices[rank % len(devices)]) for rank in range(2)]

    def store(rank, step, attachment):
        return arenas[rank].store({0: StoreItem(name, whole_row=True, request_id=f"step {step}", attachment=attachment)}, position=step)[0]

    for step, giver in enumerate((0, 1), 1):
        store(0, step, b"logits" if giver == 0 else b"")
        assert store(1, step, b"logits" if giver == 1 else b"").attachment_bytes == 6
        assert pool.get(name).attachment == b"logits"
    store(0, 3, b"logits")
    with pytest.raises(statepool.InvalidArgument) as error:
        store(1, 3, b"others")
    assert (error.value.reason, error.value.field) == ("INVALID_OPTION", "items[0].attachment")
    assert pool.get(name).position == 2
    store(1, 3, b"logits")
    assert (pool.get(name).position, pool.get(name).attachment) == (3, b"logits")
    for arena in arenas:
        arena.close()


# ---------------------------------------------------------------------------------------------------------- initial values


def test_a_time_state_of_a_large_model_is_what_its_sequences_begin_with(pool):
    tuned = np.random.default_rng(SEED).standard_normal((24, 32, 64, 64), np.float32)  # RWKV-7 1.5B: 12.6 MB
    layout = pool.register_layout(layouts.rwkv7("tuned", layers=24, hidden_size=2048, initial={"wkv": tuned}))
    state = pool.get(pool.create(layout, "families/tuned"))
    assert np.array_equal(state.tensors["wkv"], tuned) and not state.tensors["att_shift"].any()
    assert pool.get_layout(layout.fingerprint) == layout
    pool.delete("families/tuned")
    pool.delete_layout(layout)


@pytest.mark.parametrize("value", [np.full((2, 1, 64, 64), -5, np.int32), np.zeros((2, 1, 64, 64)), np.zeros((2, 1, 32, 64)), np.zeros((2, 64, 64), np.float32),
                                   np.zeros((1, 2, 64, 64), np.float32)], ids=lambda value: f"{value.dtype}{list(value.shape)}")
def test_an_initial_value_of_another_dtype_or_shape_is_refused_and_registers_nothing(pool, value):
    known = {layout.fingerprint for layout in pool.layouts()}
    family = {"layers": 2, "hidden_size": 64}
    config = {"model_type": "recurrent_gemma", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "block_types": ["recurrent"]}
    for make, name in (lambda: layouts.rwkv7("wrong", **family, initial={"wkv": value}), "wkv"), (
            lambda: layouts.hybrid("wrong", [layouts.rwkv7(**family, prefix="a_")], initial={"a_wkv": value}), "a_wkv"), (
            lambda: layouts.from_hf(config, initial={"lru": value}), "lru"):
        with pytest.raises(errors.InvalidArgument) as refused:
            pool.register_layout(make())
        assert (refused.value.reason, refused.value.field) == ("INVALID_LAYOUT", f'initial["{name}"]')
    assert {layout.fingerprint for layout in pool.layouts()} == known


def test_a_layout_that_is_only_validated_is_not_registered(pool):
    def told(preset):
        return pool._call("RegisterLayout", pb.RegisterLayoutRequest(preset=preset.proto, alias="validated", validate_only=True), pb.LayoutInfo.FromString)

    preset = layouts.mamba1("validated", layers=2, intermediate_size=8, state_size=4)
    info = told(preset)
    assert info.state_bytes == 2 * (3 * 8 * 2 + 8 * 4 * 4) and not info.aliases
    for known in info.fingerprint, "validated":
        with pytest.raises(errors.NotFound):
            pool.get_layout(known)
    with pytest.raises(errors.InvalidArgument, match="INVALID_LAYOUT"):
        told(layouts.mamba1(layers=2, intermediate_size=0, state_size=4))
    assert pool.register_layout(preset).fingerprint == info.fingerprint


@pytest.mark.parametrize("field,call", {
    "preset.mamba1.intermediate_size": lambda pool: layouts.mamba1(layers=1, intermediate_size=-2, state_size=1),
    "preset.rwkv7.layers": lambda pool: layouts.rwkv7(layers=1 << 32, hidden_size=64),
    "preset.layer_ids": lambda pool: layouts.short_conv(layer_ids=[-1], channels=8),
    "tensors": lambda pool: layouts.Layout("x", (layouts.Tensor("a", [-1], "float32", {"x": 4}),)),
    "view.num_spec": lambda pool: pool.open_arena("x", rows=1, view=View(num_spec=-1)),
    "view.tp_rank": lambda pool: pool.open_arena("x", rows=1, view=View(tp_rank=-1)),
    "rows": lambda pool: pool.open_arena("x", rows=-1),
    "steps": lambda pool: pool.open_arena("x", rows=1, steps=-1),
    "options.max_history": lambda pool: pool.create("x", "y", max_history=-1),
    "position": lambda pool: pool.get("x", position=1 << 70),
    "add": lambda pool: pool.renumber("x", 0, 5, add=1 << 70),
    "begin": lambda pool: pool.remove_range("x", 1 << 70),
    "tokens": lambda pool: pool.rollback("x", tokens=-1),
    "select.layers": lambda pool: pool.get("x", layers=[-1]),
}.items())
def test_a_number_that_no_message_holds_is_refused_by_its_field(pool, field, call):
    with pytest.raises(errors.InvalidArgument) as refused:
        call(pool)
    assert refused.value.field == field and refused.value.reason in ("INVALID_LAYOUT", "INVALID_VIEW", "INVALID_OPTION", "INVALID_POSITION")
