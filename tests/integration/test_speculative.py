# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Speculative decoding against numpy: random layouts, views and histories; what an arena holds after Advance, and what Store makes of it, byte by byte.

The references are written from what engines do: vLLM's copies of convolutions and recurrent states, SGLang's scatter by accepted steps, TensorRT Edge-LLM's
with its skips, and token trees as the inputs along a path."""
import collections
import dataclasses
import os
import random

import numpy as np
import pytest

import statepool
from daemon_process import Daemon
from statepool import AdvanceItem, LoadItem, StoreItem, View, _advance, _kernels, errors, speculation
from statepool.layouts import Layout, Tensor
from statepool.v1 import statepool_pb2 as pb

DTYPES = ["float32", "float16", "bfloat16", "float64", "uint8", "int32"]
SEEDS = [random.SystemRandom().randrange(1 << 32) for _ in range(4)]


@pytest.fixture(scope="module", params=["isolated", "direct"])
def pool(request, tmp_path_factory):
    if request.param == "direct" and "," in os.environ.get("STATEPOOL_DEVICES", ""):
        pytest.skip("a lease has slots of one device only")
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), *(["--direct"] if request.param == "direct" else [])).start()
    with statepool.connect(daemon.address, timeout=30) as pool:
        pool.is_direct = request.param == "direct"
        yield pool
    daemon.stop()


@pytest.fixture
def calls(monkeypatch):
    """How often the package called each method."""
    made = collections.Counter()
    real = statepool._calls.Connection.call

    def call(self, method, *arguments):
        made[method] += 1
        return real(self, method, *arguments)

    monkeypatch.setattr(statepool._calls.Connection, "call", call)
    return made


class World:
    """An arena of a random layout and view, its tensors [row, (step,) ...] in the view's order, and what they held when it was filled."""

    def __init__(self, pool, rng, **forced):
        self.rng = rng
        self.name = f"world/{rng.getrandbits(64):x}"  # what the names of its sequences begin with
        tensors = []
        for i in range(rng.randint(1, 4)):
            conv = rng.random() < 0.6
            axes = {"tap": rng.randint(1, 4)} if conv else {}
            names = ["head", "channel"]
            for name in names[:rng.randint(0 if conv else 1, 2)]:
                axes[name] = rng.choice([1, 2, 5, 17, 64])
            order = list(axes.items())
            rng.shuffle(order)
            layers = sorted(rng.sample(range(6), rng.randint(1, 3)))
            tensors.append(Tensor(f"t{i}", layers, rng.choice(DTYPES), dict(order), kind="conv" if conv else "recurrent"))
        self.has_conv = any(t.kind == "conv" for t in tensors)
        self.layout = Layout(f"spec-{rng.getrandbits(64):x}", tensors)
        self.steps = forced.get("steps", rng.choice([0, 1, 2, 3, 5, 8]))
        spec = rng.random() < 0.5 if "num_spec" not in forced else forced["num_spec"]
        self.num_spec = max(self.steps - 1, 0) + rng.randint(0, 2) if self.has_conv and spec else 0
        convs = [t.name for t in tensors if t.kind == "conv"]
        self.without = rng.sample(convs, rng.randint(0, len(convs))) if rng.random() < 0.5 else []
        orders = {}
        for t in tensors:
            if rng.random() < 0.5:
                orders[t.name] = rng.sample(list(t.axes), len(t.axes))
        self.view = View(rng.choice(["per_layer", "layer_major", "row_major"]), orders, conv_padding=rng.randint(0, 2) if self.has_conv else 0,
                         num_spec=self.num_spec, without_num_spec=self.without)
        self.rows = forced.get("rows", rng.randint(1, 5))
        pool.register_layout(self.layout)
        self.arena = pool.open_arena(self.layout, self.rows, self.steps, self.view, direct=pool.is_direct)
        assert (self.arena._moves is not None) == (pool.is_direct and _kernels.available and self.arena._table.plan != [])
        self.most = max(self.steps, 1)
        self.axes = {t.name: [a for a in self.arena.axes[t.name] if a not in ("layer", "row", "step")] for t in tensors}
        self.filled = {}
        self.fill()

    def fill(self):
        """Random bytes into all of it."""
        for key, array in self.arena._layers.items():
            noise = np.frombuffer(self.rng.randbytes(array.size * array.itemsize), array.dtype).reshape(array.shape)
            array[...] = noise
            self.filled[key] = array.copy()

    def held(self):
        return {key: array.copy() for key, array in self.arena._layers.items()}

    def columns(self, tensor):
        """Whether its speculative tokens are in columns."""
        spec = next(t for t in self.layout.tensors if t.name == tensor)
        return spec.kind == "conv" and self.num_spec > 0 and tensor not in self.without

    @property
    def has_windows(self):
        return self.steps > 1 and any(self.columns(t.name) for t in self.layout.tensors)

    def by_column(self, tensor, array):
        """A row of a tensor with columns, [column, ...]."""
        if self.steps:
            array = array[0]
        return np.moveaxis(array, self.axes[tensor].index("tap"), 0)

    def check(self, expected):
        for key, array in self.arena._layers.items():
            assert array.tobytes() == expected[key].tobytes(), (key, self.view, self.steps)


def worlds(pool, count, **forced):
    for seed in SEEDS:
        for i in range(count):
            print(f"seed {seed}, world {i}")
            world = World(pool, random.Random(f"{seed} {i}"), **forced)
            with world.arena:
                yield world
            pool.delete_many(f"{world.name}/")
            pool.delete_layout(world.layout)


# ------------------------------------------------------------------------------------------------------------ references


def vllm_copy(world, to_row, row, accepted):
    """vLLM's copy functions: convolutions dst[0 : W-b] = src[b : W] along the window, b = accepted - 1; recurrent states from the block of step b."""
    b = max(accepted - 1, 0)
    result = {}
    for (tensor, layer), array in world.filled.items():
        now = array.copy()
        if world.columns(tensor):
            dst, src = world.by_column(tensor, now[to_row]), world.by_column(tensor, array[row])
            width = src.shape[0]
            dst[0:width - b] = src[b:width]
        elif world.steps:
            now[to_row, 0] = array[row, b]
        else:
            now[to_row] = array[row]
        result[tensor, layer] = now
    return result


def tree_copy(world, to_row, row, path):
    """The window after a path: the inputs that were there before the step, then those along the path; its length stays. What was behind the path's last
    token follows."""
    result = {}
    for (tensor, layer), array in world.filled.items():
        now = array.copy()
        if world.columns(tensor):
            dst, src = world.by_column(tensor, now[to_row]), world.by_column(tensor, array[row])
            window = src.shape[0] - world.num_spec
            inputs = [src[i].copy() for i in range(window - 1)] + [src[window - 1 + step].copy() for step in path]
            kept = inputs[-window:] + [src[i].copy() for i in range(window + path[-1], src.shape[0])]
            for i, column in enumerate(kept):
                dst[i] = column
        elif world.steps:
            now[to_row, 0] = array[row, path[-1]]
        else:
            now[to_row] = array[row]
        result[tensor, layer] = now
    return result


def merged(world, moves):
    """Of moves of different rows, {row that gets it: what all of the arena holds after this one}."""
    result = {key: array.copy() for key, array in world.filled.items()}
    for to_row, after in moves.items():
        for key in result:
            result[key][to_row] = after[key][to_row]
    return result


def state_of(world, row, path):
    """The bytes of the state after the path, as Store is to write them."""
    image = bytearray(world.layout.state_bytes)
    views = world.layout.views(memoryview(image))
    for t in world.layout.tensors:
        for i, layer in enumerate(t.layers):
            array = world.filled[t.name, layer][row]
            widened = t.kind == "conv" and world.view.conv_padding > 0
            if world.columns(t.name):
                source = world.by_column(t.name, array)
                window = source.shape[0] - world.num_spec
                inputs = [source[c] for c in range(window - 1)] + [source[window - 1 + step] for step in path]
                source = np.stack(inputs[-t.axes["tap"]:])
                order = ["tap"] + [a for a in world.axes[t.name] if a != "tap"]
            else:
                source = array[path[-1]] if world.steps else array
                order = world.axes[t.name]
                if widened:
                    tap = order.index("tap")
                    source = np.take(source, range(world.view.conv_padding, source.shape[tap]), tap)
            views[t.name][i][...] = source.transpose([order.index(a) for a in t.axes])
    return bytes(image)


def random_tree(rng, count):
    """Parents: mostly trees with one root, chains, and forests."""
    kind = rng.choice(["chain", "tree", "forest"])
    if kind == "chain":
        return list(range(-1, count - 1))
    return [-1] + [rng.randrange(-1 if kind == "forest" else 0, step) for step in range(1, count)]


# ----------------------------------------------------------------------------------------------------------------- advance


def test_chains_move_as_vllm_copies_them(pool, calls):
    for world in worlds(pool, 12):
        accepted = {row: world.rng.choice([1, world.most, world.rng.randint(1, world.most)]) for row in range(world.rows) if world.rng.random() < 0.8}
        calls.clear()
        done = world.arena.advance(accepted)
        assert done == {row: "in_place" if a == 1 else "moved" for row, a in accepted.items()}
        world.check(merged(world, {row: vllm_copy(world, row, row, a) for row, a in accepted.items()}))
        assert calls["Advance"] == (1 if accepted and world.arena._moves is None else 0)


def test_trees_move_along_their_paths(pool):
    for world in worlds(pool, 12):
        moves, expected = {}, {}
        for row in range(world.rows):
            parents = random_tree(world.rng, world.rng.randint(1, world.most))
            path = speculation.path_of(parents, world.rng.randrange(len(parents)))
            moves[row], expected[row] = path, tree_copy(world, row, row, path)
        done = world.arena.advance(moves)
        assert done == {row: "in_place" if path == [0] else "moved" for row, path in moves.items()}
        world.check(merged(world, expected))


def test_rows_are_scattered_to_others_as_sglang_does(pool):
    for world in worlds(pool, 8):
        rows = world.rng.sample(range(world.rows), world.rows)
        sources, targets = rows[:world.rows // 2], rows[world.rows // 2:]
        steps = {row: world.rng.randint(-1, world.most + 1) for row in sources}
        done = world.arena.advance({row: AdvanceItem(step + 1, to_row=to) for (row, step), to in zip(steps.items(), targets)},
                                   skip_none=True, skip_out_of_range=True)
        expected = {}
        for (row, step), to in zip(steps.items(), targets):  # dst[:, idx[i]] = src[:, i, step[i]]
            if 0 <= step < world.most:
                expected[to] = vllm_copy(world, to, row, step + 1)
            assert done[row] == ("skipped_none" if step < 0 else "moved" if step < world.most else "skipped_out_of_range")
        world.check(merged(world, expected))


def test_tensorrts_form_skips_rows_that_accepted_all(pool):
    for world in worlds(pool, 6):
        verify = world.rng.randint(1, world.most)
        accept = {row: world.rng.randint(0, world.most) for row in range(world.rows)}
        done = world.arena.advance(accept, skip_none=True, verified_length=verify)
        expected = {}
        for row, a in accept.items():
            step = a - 1
            skipped = step < 0 or step >= verify - 1
            assert done[row].startswith("skipped") == skipped and (not skipped or done[row] == ("skipped_none" if step < 0 else "skipped_all"))
            if not skipped:
                expected[row] = vllm_copy(world, row, row, a)
        world.check(merged(world, expected))


def test_nothing_is_skipped_unasked_and_rows_that_fail_stay(pool):
    for world in worlds(pool, 2, steps=3):
        for bad, reason in (0, "INVALID_ACCEPTED_LENGTH"), (4, "INVALID_ACCEPTED_LENGTH"), ([1, 1], "INVALID_PATH"), ([0, 3], "INVALID_PATH"):
            world.fill()
            with pytest.raises(errors.InvalidArgument) as failure:
                world.arena.advance({0: bad})
            assert failure.value.reason == reason and failure.value.metadata["row"] == "0"
            world.check(world.filled)
            if world.rows > 1:
                done = world.arena.advance({0: bad, 1: 3}, return_errors=True)
                assert done[0].reason == reason and done[1] == "moved"
                world.check(merged(world, {1: vllm_copy(world, 1, 1, 3)}))
        if world.rows > 1:
            world.fill()
            for items in {0: AdvanceItem(1, to_row=1), 1: 2}, {0: 2, 1: AdvanceItem(2, to_row=0)}:
                with pytest.raises(errors.InvalidArgument, match="DUPLICATE_ROW"):
                    world.arena.advance(items)
            world.check(world.filled)
        with pytest.raises(errors.InvalidArgument, match="ROW_OUT_OF_RANGE"):
            world.arena.advance({world.rows: 1})
        with pytest.raises(errors.InvalidArgument, match="verified_length"):
            world.arena.advance({0: 1}, verified_length=4)
        assert world.arena.advance({}) == {}


def test_one_row_is_scattered_to_several(pool):
    for world in worlds(pool, 3, steps=4, rows=4):
        row, *others = world.rng.sample(range(4), 4)
        lengths = [world.rng.randint(1, 4) for _ in others]
        done = world.arena.advance([AdvanceItem(a, row=row, to_row=to) for a, to in zip(lengths, others)])
        assert done == ["moved"] * 3
        world.check(merged(world, {to: vllm_copy(world, to, row, a) for a, to in zip(lengths, others)}))
        world.fill()
        done = world.arena.advance([AdvanceItem(2, row=row), AdvanceItem(5, row=others[0])], return_errors=True)
        assert done[0] == "moved" and done[1].reason == "INVALID_ACCEPTED_LENGTH" and done[1].field == "items[1].accepted_length"
        world.check(merged(world, {row: vllm_copy(world, row, row, 2)}))
        with pytest.raises(errors.InvalidArgument, match="DUPLICATE_ROW"):
            world.arena.advance([AdvanceItem(2, row=row), AdvanceItem(2, row=row, to_row=others[0])])
        with pytest.raises(errors.InvalidArgument, match="MISSING_FIELD"):
            world.arena.advance([AdvanceItem(2)])
        with pytest.raises(errors.InvalidArgument, match="INVALID_OPTION"):
            world.arena.advance({0: AdvanceItem(2, row=1)})
        assert world.arena.advance([]) == [] and world.arena.advance({row: AdvanceItem(1, row=row)}) == {row: "in_place"}


@pytest.mark.parametrize("length", [-1, 1 << 32, 1 << 70])
def test_what_no_message_can_say_is_refused_as_the_daemon_would(pool, length):
    for world in worlds(pool, 1, steps=3):
        calls = {
            "accepted_length": ("INVALID_ACCEPTED_LENGTH", [lambda: world.arena.advance({0: length}), lambda: world.arena.advance({0: length}, skip_none=True),
                                                            lambda: world.arena.store({0: "x"}, 1, accepted=length),
                                                            lambda: world.arena.store_async({0: StoreItem("x", 1, length)})]),
            "path": ("INVALID_PATH", [lambda: world.arena.advance({0: [0, length]}), lambda: world.arena.store({0: StoreItem("x", 1, path=[length])})]),
        }
        for field, (reason, attempts) in calls.items():
            for attempt in attempts:
                with pytest.raises(errors.InvalidArgument) as failure:
                    attempt()
                found = failure.value
                assert (found.reason, found.field, found.metadata["row"], found.metadata["limit"]) == (reason, f"items[0].{field}", "0", "3")
        with pytest.raises(errors.InvalidArgument) as failure:
            world.arena.advance({0: 1}, verified_length=length)
        assert (failure.value.reason, failure.value.field) == ("INVALID_OPTION", "verified_length")
        if length > 0:
            assert world.arena.advance({0: length}, skip_out_of_range=True) == {0: "skipped_out_of_range"}
        world.check(world.filled)


# ------------------------------------------------------------------------------------------------------------------- store


def test_stores_make_the_state_of_a_length_or_path_a_version(pool):
    for world in worlds(pool, 8):
        for row in range(world.rows):
            parents = random_tree(world.rng, world.rng.randint(1, world.most))
            path = speculation.path_of(parents, world.rng.randrange(len(parents)))
            chain = path == list(range(len(path)))
            sequence = f"{world.name}/{row}"
            item = StoreItem(sequence, 7, whole_row=True, **({"accepted": len(path)} if chain and world.rng.random() < 0.5 else {"path": path}))
            if world.has_windows and not chain:
                with pytest.raises(errors.InvalidArgument, match="Advance the row along this path"):
                    world.arena.store({row: item})
                world.arena.advance({row: path})  # as it says
                world.arena.store({row: StoreItem(sequence, 7, whole_row=True)})
            else:
                world.arena.store({row: item})
                world.check(world.filled)
            assert bytes(pool.get(sequence).data) == state_of(world, row, path), (path, world.view, world.steps)
            world.fill()


def test_a_store_can_leave_the_row_advanced(pool):
    for world in worlds(pool, 6):
        accepted = {row: world.rng.randint(0, world.most) for row in range(world.rows)}
        items = {row: StoreItem(f"{world.name}/{row}", 5, whole_row=True, advance=world.rng.random() < 0.7) for row in accepted}
        stored = world.arena.store(items, accepted=accepted, skip_none=True)
        expected = {}
        for row, a in accepted.items():
            assert (stored[row] is None) == (a == 0)
            if a > 0:
                assert bytes(pool.get(items[row].sequence).data) == state_of(world, row, range(a))
            if a > 0 and items[row].advance:
                expected[row] = vllm_copy(world, row, row, a)
        world.check(merged(world, expected))
        # The rows hold what was stored: another load of it copies nothing where the daemon moved them, and knows.
        advanced = {row: LoadItem(items[row].sequence, row_unmodified=True) for row in expected}
        for row, loaded in world.arena.load(advanced).items():
            assert not loaded.copied or world.arena._moves is not None, (row, accepted[row])
        # What fails moves nothing.
        world.fill()
        refused = {row: StoreItem(f"{world.name}/none", 5, whole_row=True, if_revision=1, advance=True) for row in list(accepted)[:1]}
        with pytest.raises(errors.Conflict, match="REVISION_MISMATCH"):
            world.arena.store(refused, accepted=world.most)
        world.check(world.filled)


def test_a_retry_of_a_store_that_advanced_is_answered_and_moves_nothing(pool):
    for world in worlds(pool, 4, steps=4, num_spec=True):
        item = StoreItem(f"{world.name}/0", 5, whole_row=True, advance=True, request_id="once")
        first = world.arena.store({0: item}, accepted=3)[0]
        after = world.held()
        for _ in range(2):
            again = world.arena.store({0: item}, accepted=3)
            assert (again[0].version_id, again[0].replayed) == (first.version_id, True)
            world.check(after)
        # Nothing else is taken for it.
        for accepted, position in (2, 5), (3, 6):
            with pytest.raises(errors.InvalidArgument, match="REQUEST_ID_REUSED") as failure:
                world.arena.store({0: dataclasses.replace(item, position=position)}, accepted=accepted)
            assert failure.value.field == "items[0].request_id"
            world.check(after)
        assert bytes(pool.get(item.sequence).data) == state_of(world, 0, range(3))
        # Another sequence has ids of its own, and what comes after another call is a new one.
        world.fill()
        world.arena.store({0: dataclasses.replace(item, sequence=f"{world.name}/other")}, accepted=4)
        assert bytes(pool.get(f"{world.name}/other").data) == state_of(world, 0, range(4))
        world.check(vllm_copy(world, 0, 0, 4))


def test_a_retry_of_a_batch_that_advanced_finishes_what_failed_before(pool):
    for world in worlds(pool, 3, steps=4, rows=2):
        pool.set(f"{world.name}/1", bytes(world.layout.state_bytes), position=9, layout=world.layout)
        items = {row: StoreItem(f"{world.name}/{row}", 5, whole_row=True, advance=True, request_id="once", if_revision=0) for row in range(2)}
        done = world.arena.store(items, accepted={0: 3, 1: 2}, return_errors=True)
        assert done[0].position == 5 and done[1].reason == "REVISION_MISMATCH"
        world.check(merged(world, {0: vllm_copy(world, 0, 0, 3)}))
        pool.delete(f"{world.name}/1")
        again = world.arena.store(items, accepted={0: 3, 1: 2}, all_or_none=world.rng.random() < 0.5)
        assert (again[0].version_id, again[0].replayed, again[1].replayed) == (done[0].version_id, True, False)
        world.check(merged(world, {0: vllm_copy(world, 0, 0, 3), 1: vllm_copy(world, 1, 1, 2)}))


# ------------------------------------------------------------------------------------------------- request_ids of Advance


def advance_as(pool, world, request_id, row, accepted=None, path=(), to_row=None, **options):
    """One Advance by this id: what each row's entry of the answer says."""
    request = pb.AdvanceRequest(arena=world.arena._name, request_id=request_id, **options)
    item = request.items.add(row=row, accepted_length=accepted, path=path, to_row=to_row)
    answer = world.arena._call("Advance", request, pb.AdvanceResponse.FromString, pool._attempts(), None)
    assert len(answer.rows) == 1 and item.row == row
    if answer.rows[0].HasField("error"):
        error = errors.from_status(answer.rows[0].error)
        return error.reason, error.field
    return pb.AdvancedRow.Outcome.Name(answer.rows[0].outcome)


REUSED = ("REQUEST_ID_REUSED", "items[0].request_id")


def test_an_advance_is_repeated_by_the_same_request_alone(pool):
    for world in worlds(pool, 3, steps=4, rows=3):
        assert advance_as(pool, world, "a", 0, 3) == "MOVED"
        after = merged(world, {0: vllm_copy(world, 0, 0, 3)})
        for same in {"accepted": 3}, {"path": [0, 1, 2]}, {"accepted": 3, "to_row": 0}:
            assert advance_as(pool, world, "a", 0, **same) == "MOVED"
        others = [{"accepted": 1}, {"accepted": 2}, {"accepted": 4}, {"path": [0, 2, 3]}, {"accepted": 0, "skip_none": True}, {"accepted": 3, "verified_length": 3}]
        for other in others:
            assert advance_as(pool, world, "a", 0, **other) == REUSED, other
        assert advance_as(pool, world, "a", 1, 3, to_row=0) == REUSED
        world.check(after)
        assert advance_as(pool, world, "a", 0, 3, to_row=1) == "MOVED"  # another row, which remembers by itself
        assert advance_as(pool, world, "b", 2, 1) == "IN_PLACE"
        assert advance_as(pool, world, "b", 2, 1) == "IN_PLACE"
        assert advance_as(pool, world, "b", 2, 2) == REUSED
        assert advance_as(pool, world, "c", 2, 0, skip_none=True) == "SKIPPED_NONE"
        assert advance_as(pool, world, "b", 2, 2) == REUSED  # what skips the row is no call after it
        assert advance_as(pool, world, "c", 2, 2) == "MOVED"


def test_an_id_of_a_store_is_none_of_an_advance(pool):
    for world in worlds(pool, 3, steps=4, rows=2):
        sequence = f"{world.name}/0"
        item = StoreItem(sequence, 5, whole_row=True, advance=True, request_id="x")
        # An Advance, then a Store that advances by its id.
        assert advance_as(pool, world, "x", 0, 2) == "MOVED"
        after = world.held()
        with pytest.raises(errors.InvalidArgument, match="REQUEST_ID_REUSED") as failure:
            world.arena.store({0: item}, accepted=4)
        assert failure.value.field == "items[0].request_id"
        world.check(after)
        # A Store that advances, then an Advance.
        world.fill()
        world.arena.store({0: dataclasses.replace(item, request_id="y")}, accepted=3)
        assert advance_as(pool, world, "y", 0, 3) == REUSED
        world.check(vllm_copy(world, 0, 0, 3))
        # A Store that does not advance is no Advance.
        world.fill()
        world.arena.store({0: dataclasses.replace(item, advance=False, request_id="z")}, accepted=2)
        assert advance_as(pool, world, "z", 0, 3) == "MOVED"
        world.check(vllm_copy(world, 0, 0, 3))
        # Nor is a Load, after which an id may come again.
        world.arena.load({0: sequence})
        assert advance_as(pool, world, "z", 0, 2) == "MOVED"


# ------------------------------------------------------------------------------------------------------------- align mode


def aligned(block, accepted, position):
    """The formula: the position and the accepted length of the state that is cached, or None."""
    first = position - accepted + 1
    at = position // block * block
    return (at, at - first + 1) if at >= first and at > 0 else None


def test_align_mode_stores_the_state_at_the_last_block_and_nothing_else(pool):
    for world in worlds(pool, 10):
        block, batch, expected = world.rng.choice([1, 2, 3, 4, 7, 528, 1 << 53]), {}, {}
        for row in range(world.rows):
            accepted = world.rng.randint(1, world.most)
            position = accepted + world.rng.choice([0, world.rng.randrange(20), world.rng.randrange(3000)])
            path = sorted(world.rng.sample(range(world.most), accepted)) if not world.has_windows and world.rng.random() < 0.5 else list(range(accepted))
            held = {"path": path} if path != list(range(accepted)) or world.rng.random() < 0.3 else {"accepted": accepted}
            advance = world.rng.random() < 0.5
            batch[row] = StoreItem(f"{world.name}/{row}", position, whole_row=True, advance=advance, **held)
            there = aligned(block, accepted, position)
            pure = speculation.align_after(block, position - accepted, accepted, accepted - 1, accepted)
            assert (there is not None) == (pure.caches and pure.position > 0)
            expected[row] = there, path, advance
        stored = world.arena.store(batch, align=block, all_or_none=world.rng.random() < 0.3)
        moved = {}
        for row, (there, path, advance) in expected.items():
            if advance:
                moved[row] = tree_copy(world, row, row, path)
            if there is None:
                assert stored[row] is None
                with pytest.raises(errors.NotFound):
                    pool.get(batch[row].sequence)
                continue
            at, length = there
            state = pool.get(batch[row].sequence)
            assert (stored[row].position, state.position) == (at, at)
            assert bytes(state.data) == state_of(world, row, path[:length]), (block, batch[row], world.view, world.steps)
        world.check(merged(world, moved))
        # Bases are what was stored: the next one goes on there, and a write of somebody else's between is seen.
        for row, (there, _, _) in expected.items():
            if there is not None:
                world.arena.store({row: batch[row].sequence}, position=there[0] + 1)
                pool.set(batch[row].sequence, bytes(world.layout.state_bytes), position=9)
                with pytest.raises(errors.Conflict, match="REVISION_MISMATCH"):
                    world.arena.store({row: batch[row].sequence}, position=there[0] + 2)


def test_align_mode_at_its_edges(pool):
    for world in worlds(pool, 2, steps=4, rows=1):
        cases = [(4, 1, 8, (8, 1)), (4, 1, 9, None), (4, 3, 6, (4, 1)), (4, 2, 6, None), (4, 4, 8, (8, 4)), (1, 4, 9, (9, 4)), (100, 4, 8, None), (8, 4, 4, None),
                 (4, 4, 4, (4, 4)), (4, 1, 0, None), (1, 1, 1, (1, 1)), (3, 4, 4, (3, 3))]
        for block, accepted, position, there in cases:
            assert aligned(block, accepted, position) == there
            world.fill()
            sequence = f"{world.name}/{block} {accepted} {position}"
            item = StoreItem(sequence, position, accepted, whole_row=True, align=block)
            stored = world.arena.store({0: item})[0]
            assert (stored is None) == (there is None)
            if there:
                assert stored.position == there[0] and bytes(pool.get(sequence).data) == state_of(world, 0, range(there[1]))
            world.check(world.filled)
        for bad, field in ({"align": -1}, "align"), ({"align": 4, "position": -1}, "position"), ({"align": 4, "position": 1 << 60}, "position"):
            item = StoreItem(f"{world.name}/bad", **{"position": 8, **bad}, accepted=1, whole_row=True)
            with pytest.raises(errors.InvalidArgument) as failure:
                world.arena.store({0: item})
            assert failure.value.field == f"items[0].{field}"
        # A skipped row looks at no revision, and need not have been loaded; what it says of its tokens is looked at.
        assert world.arena.store({0: StoreItem(f"{world.name}/none", 9, 1, align=4, if_revision=77)}) == {0: None}
        with pytest.raises(errors.InvalidArgument, match="INVALID_ACCEPTED_LENGTH"):
            world.arena.store({0: StoreItem(f"{world.name}/none", 9, 5, align=4)})
        with pytest.raises(errors.Conflict, match="REVISION_MISMATCH"):
            world.arena.store({0: StoreItem(f"{world.name}/none", 9, 2, align=4, if_revision=77, whole_row=True)})


def test_a_retry_of_align_mode_that_advanced_is_answered_and_moves_nothing(pool):
    """Also where the row has passed the state that was stored, or nothing was."""
    for world in worlds(pool, 4, steps=4, rows=2):
        items = {0: StoreItem(f"{world.name}/0", 6, 4, whole_row=True, request_id="once"), 1: StoreItem(f"{world.name}/1", 7, 3, whole_row=True, request_id="once")}
        first = world.arena.store(items, align=4, advance=True)
        assert first[0].position == 4 and first[1] is None
        after = merged(world, {0: vllm_copy(world, 0, 0, 4), 1: vllm_copy(world, 1, 1, 3)})
        world.check(after)
        for _ in range(2):
            again = world.arena.store(items, align=4, advance=True, all_or_none=True)
            assert (again[0].version_id, again[0].replayed, again[1]) == (first[0].version_id, True, None)
            world.check(after)
        assert bytes(pool.get(items[0].sequence).data) == state_of(world, 0, range(2))
        for row in items:
            with pytest.raises(errors.InvalidArgument, match="REQUEST_ID_REUSED"):
                world.arena.store({row: items[row]}, align=5, advance=True)
        world.check(after)
        # The row is not what was stored, and where it is the daemon knows.
        loaded = world.arena.load({0: LoadItem(items[0].sequence, row_unmodified=True)})
        assert loaded[0].copied


def test_what_fails_in_align_mode_moves_no_row_of_all_or_none(pool):
    for world in worlds(pool, 2, steps=4, rows=2):
        items = {0: StoreItem(f"{world.name}/0", 7, 3, advance=True), 1: StoreItem(f"{world.name}/1", 8, 3, whole_row=True, advance=True, if_revision=5)}
        with pytest.raises(errors.Conflict, match="REVISION_MISMATCH"):
            world.arena.store(items, align=4, all_or_none=True)
        world.check(world.filled)
        done = world.arena.store(items, align=4, return_errors=True)
        assert done[0] is None and done[1].reason == "REVISION_MISMATCH"
        world.check(merged(world, {0: vllm_copy(world, 0, 0, 3)}))


def test_a_store_that_is_refused_at_last_moves_no_row(pool):
    for world in worlds(pool, 2, steps=4, rows=2):
        world.arena.store({1: StoreItem(f"{world.name}/1", 5, whole_row=True, request_id="X")})
        items = {0: StoreItem(f"{world.name}/0", 7, 3, advance=True), 1: StoreItem(f"{world.name}/1", 8, 2, whole_row=True, request_id="X")}
        with pytest.raises(errors.InvalidArgument, match="REQUEST_ID_REUSED"):
            world.arena.store(items, align=4, all_or_none=True)
        world.check(world.filled)


def test_a_retry_moves_no_row_that_has_something_else_since(pool):
    for world in worlds(pool, 2, steps=3, num_spec=False):
        item = StoreItem(f"{world.name}/0", 3, 3, whole_row=True, advance=True, request_id="R")
        world.arena.store({0: item})
        world.arena.load({0: pool.create(world.layout, f"{world.name}/other")})
        held = world.held()
        with pytest.raises(errors.InvalidArgument, match="REQUEST_ID_REUSED"):
            world.arena.store({0: item})
        world.check(held)


def test_what_a_skipped_store_left_is_not_taken_for_what_was_loaded(pool):
    for world in worlds(pool, 2, steps=0, num_spec=False):
        sequence = pool.create(world.layout, f"{world.name}/skipped")
        world.arena.load({0: sequence})
        loaded = world.held()
        world.fill()
        assert world.arena.store({0: sequence}, position=3, align=64)[0] is None
        assert world.arena.load({0: LoadItem(sequence, row_unmodified=True)})[0].copied
        for key, array in world.held().items():
            assert array[0].tobytes() == loaded[key][0].tobytes()


def test_a_store_goes_on_where_the_row_was_loaded_from(pool):
    """Bases stay: Advance between Load and Store neither makes the one forget the other, nor another's write unseen."""
    for world in worlds(pool, 2, steps=3):
        sequence = pool.create(world.layout, f"{world.name}/0")
        world.arena.load({0: sequence})
        world.arena.advance({0: 2})
        assert world.arena.store({0: sequence}, position=2)[0].position == 2
        pool.set(sequence, bytes(world.layout.state_bytes), position=9)
        world.arena.advance({0: 3})
        with pytest.raises(errors.Conflict, match="REVISION_MISMATCH"):
            world.arena.store({0: sequence}, position=3)


# ----------------------------------------------------------------------------------------------------------------- helpers


def test_paths_of_trees_are_walked_from_the_root_and_everything_else_is_refused():
    rng = random.Random(SEEDS[0])
    for _ in range(300):
        parents = random_tree(rng, rng.randint(1, 64))
        accepted = rng.randrange(len(parents))
        path = speculation.path_of(parents, accepted)
        assert path[-1] == accepted and parents[path[0]] == -1
        assert all(parents[child] == parent for parent, child in zip(path, path[1:]))
    assert speculation.chain_of([-1, 0, 1]) == 3
    for parents, accepted in ([], 0), ([-1] * 65, 0), ([0], 0), ([-1, 1], 1), ([-1, 2, 0], 0), ([-1, -2], 0), ([-1], 1), ([-1], -1):
        with pytest.raises(errors.InvalidArgument, match="INVALID_PATH"):
            speculation.path_of(parents, accepted)
    for parents in ([], [-1, -1], [-1, 0, 0], [0]):
        with pytest.raises(errors.InvalidArgument, match="INVALID_PATH"):
            speculation.chain_of(parents)


def test_align_mode_is_the_table_that_brute_force_gives():
    """Blocks as sets of positions, walked one by one."""
    for block in range(1, 6):
        for computed in range(12):
            for scheduled in range(1, 8):
                for stored in (None, *range(4)):
                    # The block that has the last computed token, -1 for none, and the block that the step's last token falls into.
                    source = stored if stored else next((i for i in range(99) if i * block < computed <= (i + 1) * block), -1)
                    target = next(i for i in range(99) if i * block < computed + scheduled <= (i + 1) * block)
                    copies = source >= 0 and source != target
                    assert speculation.align_before(block, computed, scheduled, stored) == speculation.BlockCopy(copies, source, target)
                for draft in range(scheduled):
                    for accepted in range(1, draft + 2):
                        first = computed + scheduled - draft  # tokens after the one that always holds
                        reached = [first + i for i in range(accepted)]  # positions whose states there are
                        cached = [position for position in reached if position % block == 0]
                        answer = speculation.align_after(block, computed, scheduled, draft, accepted)
                        assert answer.caches == bool(cached)
                        if cached:
                            assert (answer.position, answer.accepted) == (cached[-1], 1 + reached.index(cached[-1]))
                            assert (answer.block + 1) * block == cached[-1]
    for call in (lambda: speculation.align_before(0, 1, 1), lambda: speculation.align_before(4, -1, 1), lambda: speculation.align_before(4, 1, 0),
                 lambda: speculation.align_after(4, 1, 2, 2, 1), lambda: speculation.align_after(4, 1, 2, 1, 3), lambda: speculation.align_after(4, 1, 2, 1, 0)):
        with pytest.raises(errors.InvalidArgument, match="INVALID_OPTION"):
            call()


def test_align_mode_takes_what_the_cpp_client_takes():
    most, more = 2**53, 2**53 + 1
    cache = speculation.align_after(2**34, 0, 2**34, 2**34 - 1, 2**34)
    assert (cache.caches, cache.position, cache.accepted) == (True, 2**34, 2**34)
    assert speculation.align_after(most, 0, most, most - 1, most).accepted == most
    speculation.align_before(most, most, most, most)
    for call, field in ((lambda: speculation.align_before(more, 1, 1), "block"), (lambda: speculation.align_before(1, more, 1), "computed"),
                        (lambda: speculation.align_before(1, 1, more), "scheduled"), (lambda: speculation.align_before(1, 1, 1, more), "stored"),
                        (lambda: speculation.align_after(more, 1, 1, 0, 1), "block"), (lambda: speculation.align_after(1, more, 1, 0, 1), "computed"),
                        (lambda: speculation.align_after(1, 1, more, 0, 1), "scheduled"), (lambda: speculation.align_after(4, 1, 2, 2, 1), "draft"),
                        (lambda: speculation.align_after(4, 1, 2, -1, 1), "draft"), (lambda: speculation.align_after(4, 1, 2, 1, 3), "accepted")):
        with pytest.raises(errors.InvalidArgument, match="INVALID_OPTION") as error:
            call()
        assert error.value.field == field


def test_what_python_sees_of_a_path_is_what_the_kernels_see():
    """The parts of the package that stand in for the library."""
    assert _advance.source_columns(0b1001, 3, 8) == [1, 2, 5, 6, 7]
    assert _advance.source_columns(0b111, 3, 8) == [2, 3, 4, 5, 6, 7]
    assert [_advance.path_bits(path, 4) for path in ([0, 2, 3], [1], [1, 1], [2, 1], [4], [])] == [0b1101, 0b10, 0, 0, 0, 0]
