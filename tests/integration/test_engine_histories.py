# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""What engines do with the history of a sequence: MLC-LLM's RNNState and llama.cpp's llama_memory_recurrent are written down here once more, from what they
do, and the daemon must give the same bytes, positions and refusals after any operations. Each random history is that of the seed in its test's name."""
import math
import random
import time

import numpy as np
import pytest

import statepool
from daemon_process import DEVICES
from statepool import View, layouts
from statepool.layouts import Layout, Tensor
from statepool.v1 import statepool_pb2 as pb

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@pytest.fixture(scope="module")
def pool(daemon):
    with statepool.connect(daemon.address, retries=0) as pool:
        yield pool


def random_layout(choose):
    """Of a hybrid: each tensor in some of the layers, in a dtype of its own, and not zero at first."""
    def tensor(name, dtype, axes, initial):
        layers = sorted(choose.sample(range(6), choose.randint(1, 3)))
        return Tensor(name, layers, dtype, {axis: choose.randint(1, 5) for axis in axes}, initial=initial)

    return Layout(f"histories-{choose.random()}", (tensor("r", choose.choice(("bfloat16", "float16")), ("tap", "channel"), choose.choice((0.0, 0.5))),
                                                   tensor("s", "float32", ("head", "key", "value"), choose.choice((0.0, -2.0))),
                                                   tensor("n", "int8", ("head",), 7)))


def initial_state(layout):
    """The bytes of a layout's initial state, of constants alone."""
    def element(tensor):
        if tensor.dtype == "bfloat16":  # the upper half of a float32
            return np.float32(tensor.initial).tobytes()[2:]
        return np.dtype(tensor.dtype).type(tensor.initial).tobytes()

    return b"".join(element(t) * (len(t.layers) * math.prod(t.axes.values())) for t in layout.tensors)


def reason_of(call):
    """Of the refusal that must come, with the field at fault and what else it tells."""
    with pytest.raises(statepool.StatepoolError) as refused:
        call()
    return refused.value.reason, refused.value.field, refused.value.metadata


# ------------------------------------------------------------------------------------------------------ MLC-LLM's RNNState


class RnnState:
    """Sequences with a ring of H states each, [seq_slot, H, *shape] for each tensor, as MLC-LLM keeps them."""

    def __init__(self, layout, max_history):
        self.shapes = [(len(t.layers), *t.axes.values(), ITEM_BYTES[t.dtype]) for t in layout.tensors]
        self.initial = self.split(initial_state(layout))
        self.max_history = max_history
        self.storage, self.length, self.available, self.at = {}, {}, {}, {}

    def split(self, image):
        edges = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(np.frombuffer(image, np.uint8), edges), self.shapes)]

    def add(self, seq):
        self.storage[seq] = [np.zeros((self.max_history, *shape), np.uint8) for shape in self.shapes]
        for storage, initial in zip(self.storage[seq], self.initial):
            storage[0] = initial
        self.length[seq] = self.available[seq] = self.at[seq] = 0

    def get(self, seq):
        return b"".join(storage[self.at[seq]].tobytes() for storage in self.storage[seq])

    def step(self, seq, tokens, image):
        """set, and the end of a step of so many tokens."""
        self.at[seq] = (self.at[seq] + 1) % self.max_history
        for storage, part in zip(self.storage[seq], self.split(image)):
            storage[self.at[seq]] = part
        self.length[seq] += tokens
        self.available[seq] = 0 if tokens > 1 else min(self.available[seq] + 1, self.max_history - 1)

    def pop(self, seq, tokens):
        if not 0 <= tokens <= self.available[seq]:
            raise ValueError(tokens)
        self.at[seq] = (self.at[seq] - tokens) % self.max_history
        self.length[seq] -= tokens
        self.available[seq] -= tokens

    def fork(self, parent, child, position):
        """`position` is honoured: the child is as the parent was there."""
        self.storage[child] = [storage.copy() for storage in self.storage[parent]]
        for numbers in (self.length, self.available, self.at):
            numbers[child] = numbers[parent]
        self.pop(child, self.length[parent] - position)

    def remove(self, seq):
        for kept in (self.storage, self.length, self.available, self.at):
            del kept[seq]


@pytest.mark.parametrize("seed, max_history", [(1, 1), (2, 2), (3, 4), (4, 9)])
def test_any_history_is_as_in_rnn_state(pool, name, seed, max_history):
    choose = random.Random(seed)
    layout = pool.register_layout(random_layout(choose))
    model = RnnState(layout, max_history)
    popped = refused = wrapped = 0
    of = {f"{name}/{i}": i for i in range(5)}
    for _ in range(1000):
        seq, other = choose.sample(sorted(of), 2)
        what = choose.random()
        if seq not in model.length:
            pool.create(layout, seq, max_history=max_history)
            model.add(seq)
        elif what < 0.6:  # a step of a batch
            batch = {s: (choose.choice((1, 1, 1, 1, 1, 2, 5)), choose.randbytes(layout.state_bytes))
                     for s in choose.sample(sorted(model.length), choose.randint(1, len(model.length)))}
            with pool.batch(all_or_none=True) as step:
                for s, (tokens, image) in batch.items():
                    step.set(s, image, model.length[s] + tokens, layout=layout)
            for s, (tokens, image) in batch.items():
                if max_history > 1:  # the old one is there as well
                    assert pool.get(s, model.length[s]).data == model.get(s)
                model.step(s, tokens, image)
            wrapped += model.at[seq] == 0
        elif what < 0.8:
            tokens = choose.randint(0, model.available[seq] + 1)
            if tokens <= model.available[seq]:
                assert pool.rollback(seq, tokens=tokens).position == model.length[seq] - tokens
                model.pop(seq, tokens)
                popped += tokens > 0
            else:
                available = model.available[seq]
                assert reason_of(lambda: pool.rollback(seq, tokens=tokens)) == ("HISTORY_TOO_SHORT", "tokens", {"available": str(available)})
                refused += 1
        elif what < 0.95:
            if other in model.length:
                pool.delete(other)
                model.remove(other)
            position = model.length[seq] - choose.randint(0, model.available[seq])
            pool.fork(seq, other, position=position)
            model.fork(seq, other, position)
        else:
            pool.delete(seq)
            model.remove(seq)
        for s in {seq, other} & set(model.length):
            info = pool.describe(s)
            assert (info.position, info.rollback_tokens) == (model.length[s], model.available[s])
            assert pool.get(s).data == model.get(s)
    assert refused > 10 and (max_history == 1 or popped > 20) and wrapped > 10, "the history had too little of what it is to show"


def test_a_history_of_one_keeps_the_head_alone_and_one_of_none_is_refused(pool, name):
    layout = pool.register_layout(random_layout(random.Random(11)))
    assert reason_of(lambda: pool.create(layout, name, max_history=0))[:2] == ("INVALID_OPTION", "options.max_history")
    seq = pool.create(layout, name, max_history=1)
    for position in (1, 2):
        seq.set(bytes([position]) * layout.state_bytes, position)
        assert seq.describe().rollback_tokens == 0 and len(seq.describe().history) == 1
    assert reason_of(lambda: seq.rollback(tokens=1))[0] == "HISTORY_TOO_SHORT"
    assert reason_of(lambda: seq.rollback(1))[0] == "POSITION_MISMATCH"
    assert seq.rollback(tokens=0).position == 2


def test_the_end_of_a_prefill_is_gone_back_to_and_nothing_before_it(pool, name):
    layout = pool.register_layout(random_layout(random.Random(12)))
    seq = pool.create(layout, name, max_history=8)
    for position in (1, 40, 41, 42):  # 39 tokens at once
        seq.set(bytes([position]) * layout.state_bytes, position)
    assert seq.describe().rollback_tokens == 2
    assert reason_of(lambda: seq.rollback(tokens=3)) == ("HISTORY_TOO_SHORT", "tokens", {"available": "2"})
    assert seq.rollback(tokens=2).position == 40 and seq.describe().rollback_tokens == 0
    assert reason_of(lambda: seq.rollback(tokens=1))[0] == "HISTORY_TOO_SHORT"
    assert seq.rollback(1).position == 1  # what the ring has is found by its position all the same
    assert seq.rollback(tokens=1).position == 0 and seq.get().data == initial_state(layout)


def test_a_fork_at_every_position_goes_back_by_itself(pool, name):
    layout = pool.register_layout(random_layout(random.Random(13)))
    seq = pool.create(layout, name, max_history=4)
    images = [initial_state(layout)] + [bytes([i]) * layout.state_bytes for i in range(1, 7)]
    for position in range(1, 7):
        seq.set(images[position], position)
    for position in range(3, 7):
        child = pool.fork(seq, f"{name}/{position}", position=position)
        assert child.describe().rollback_tokens == position - 3
        for back in range(position, 2, -1):
            assert child.get().data == images[back] and child.describe().position == back
            if back > 3:
                child.rollback(tokens=1)
        assert reason_of(lambda: child.rollback(tokens=1))[0] == "HISTORY_TOO_SHORT"
    assert reason_of(lambda: pool.fork(seq, f"{name}/2", position=2))[0] == "POSITION_MISMATCH"
    assert seq.describe().rollback_tokens == 3 and seq.get().data == images[6]


# -------------------------------------------------------------------------------------------- llama.cpp's recurrent memory


class MemoryRecurrent:
    """Of each sequence the cells that can be gone back to, newest last: (pos, data), where pos is the index of the last token. What happens to cells behind
    the tail when positions change is the contract's; llama.cpp counts back from the tail."""

    def __init__(self, history):
        self.history = history
        self.cells = {}

    @staticmethod
    def ends(p0, p1):
        return (max(p0, 0), math.inf if p1 < 0 else p1)

    def decode(self, seq, tokens, data):
        self.cells[seq] = [*self.cells[seq], (self.cells[seq][-1][0] + tokens, data)][-self.history:]

    def seq_rm(self, seq, p0, p1):
        p0, p1 = self.ends(p0, p1)
        cells = self.cells.get(seq)
        if cells is None:
            return True
        pos = cells[-1][0]
        if p0 == 0 and p1 > max(pos, 0):
            del self.cells[seq]
        elif 0 < p0 <= pos < p1:
            held = [i for i, (last, _) in enumerate(cells) if last == p0 - 1]
            if not held:
                return False
            self.cells[seq] = cells[:held[-1] + 1]
        return True

    def seq_cp(self, source, to):
        self.cells[to] = list(self.cells[source])

    def seq_keep(self, group, keep):
        for seq in [s for s in self.cells if s.startswith(group) and s not in keep]:
            del self.cells[seq]

    def renumber(self, seq, p0, p1, change):
        """False: refused."""
        p0, p1 = self.ends(p0, p1)
        cells = self.cells[seq]
        pos = cells[-1][0]
        if not p0 <= pos < p1 or change(pos) == pos:
            return True
        if change(pos) < 0:
            return False
        moved = []
        for last, data in reversed(cells):
            if not p0 <= last < p1 or change(last) < 0:
                break
            moved.insert(0, (change(last), data))
        self.cells[seq] = moved
        return True

    def seq_add(self, seq, p0, p1, delta):
        return self.renumber(seq, p0, p1, lambda pos: pos + delta)

    def seq_div(self, seq, p0, p1, divisor):
        return self.renumber(seq, p0, p1, lambda pos: pos // divisor)


@pytest.mark.parametrize("seed, max_history", [(1, 1), (2, 3), (3, 6)])
def test_any_history_is_as_in_memory_recurrent(pool, name, seed, max_history):
    choose = random.Random(seed)
    layout = pool.register_layout(random_layout(choose))
    model = MemoryRecurrent(max_history)
    outcomes = dict.fromkeys(("gone", "back", "refused", "nothing", "added", "add refused", "divided"), 0)
    seqs = [f"{name}/{group}/{i}" for group in "ab" for i in range(3)]

    def index(seq):
        pos = choose.choice(model.cells[seq])[0] if seq in model.cells else 0
        return choose.choice((pos - 1, pos, pos, pos + 1, pos + 1, pos + 2, 0, -1))

    for _ in range(900):
        seq, other = choose.sample(seqs, 2)
        what = choose.random()
        p0, p1 = index(seq), choose.choice((-1, index(seq)))
        before = model.cells.get(seq)
        if what < 0.25:
            done = pool.remove_range(seq, p0, p1, allow_missing=True)
            assert bool(done) == model.seq_rm(seq, p0, p1)
            after = model.cells.get(seq)
            assert done.deleted == (before is not None and after is None) and (done.info is None) == (after is None)
            outcomes["refused" if not done else "gone" if done.deleted else "nothing" if after == before else "back"] += 1
        elif before is None:
            pool.create(layout, seq, max_history=max_history)
            model.cells[seq] = [(-1, initial_state(layout))]
        elif what < 0.65:
            tokens, data = choose.choice((1, 1, 1, 2, 3)), choose.randbytes(layout.state_bytes)
            pool.set(seq, data, before[-1][0] + 1 + tokens)
            model.decode(seq, tokens, data)
        elif what < 0.75:
            if other not in model.cells:
                pool.fork(seq, other)
                model.seq_cp(seq, other)
        elif what < 0.85:
            delta = choose.randint(-4, 4)
            if model.seq_add(seq, p0, p1, delta):
                info = pool.renumber(seq, p0, p1, add=delta)
                assert [v.position - 1 for v in info.history] == [pos for pos, _ in reversed(model.cells[seq])]
                outcomes["added"] += model.cells[seq] != before
            else:
                assert reason_of(lambda: pool.renumber(seq, p0, p1, add=delta)) == (
                    "INVALID_POSITION", "add", {"position": str(before[-1][0] + 1)})
                outcomes["add refused"] += 1
        elif what < 0.95:
            divisor = choose.randint(1, 4)
            assert model.seq_div(seq, p0, p1, divisor)
            assert pool.renumber(seq, p0, p1, divide=divisor).position - 1 == model.cells[seq][-1][0]
            outcomes["divided"] += model.cells[seq] != before
        elif what < 0.98:
            group = f"{name}/{choose.choice('ab')}/"
            pool.delete_many(group, keep=[seq])
            model.seq_keep(group, [seq])
        assert {info.name for info in pool.list(prefix=f"{name}/")} == set(model.cells)
        for s in {seq, other} & set(model.cells):
            ring = [(version.position - 1, bytes(pool.get(s, version_id=version.version_id).data)) for version in reversed(pool.describe(s).history)]
            assert ring == model.cells[s]
            assert pool.get(s).data == model.cells[s][-1][1]
    possible = {o: n for o, n in outcomes.items() if max_history > 1 or o != "back"}
    assert all(n > 3 for n in possible.values()), f"the history had too little of what it is to show: {outcomes}"


@pytest.fixture
def seq(pool, name):
    """Three tokens were decoded, then four more at once: the last one's index is 6."""
    layout = pool.register_layout(random_layout(random.Random(21)))
    seq = pool.create(layout, name, max_history=8)
    for position in (1, 2, 3, 7):
        seq.set(bytes([position]) * layout.state_bytes, position)
    return seq


@pytest.mark.parametrize("p0, p1, done, position", [
    (0, -1, True, None), (-5, -1, True, None), (0, 7, True, None), (0, 100, True, None),       # all of them
    (3, -1, True, 3), (3, 7, True, 3), (2, 8, True, 2), (1, -1, True, 1),                      # back to what the ring holds
    (4, -1, False, 7), (5, 7, False, 7), (6, -1, False, 7), (6, 7, False, 7),                  # it holds no other
    (0, 6, True, 7), (0, 0, True, 7), (2, 5, True, 7), (7, -1, True, 7), (9, 12, True, 7), (6, 6, True, 7), (8, 3, True, 7)])  # not the last one
def test_every_case_of_a_range_that_is_removed(seq, p0, p1, done, position):
    revision = seq.describe().revision
    answer = seq.remove_range(p0, p1)
    assert (answer.done, answer.deleted) == (done, position is None)
    if position is None:
        assert reason_of(seq.describe)[0] == "DELETED"
        return
    info = seq.describe()
    assert info.position == answer.info.position == position and (info.revision == revision) == (position == 7)
    assert seq.get().data == bytes([position]) * info.state_bytes


@pytest.mark.parametrize("p0, p1, change, positions", [
    (0, -1, {"add": 3}, [10, 6, 5, 4]), (2, -1, {"add": 3}, [10, 6]), (6, 7, {"add": -6}, [1]), (0, -1, {"add": -1}, [6, 2, 1]),
    (0, -1, {"add": -6}, [1]), (0, 6, {"add": 3}, [7, 3, 2, 1, 0]), (7, -1, {"add": 3}, [7, 3, 2, 1, 0]), (0, -1, {"add": 0}, [7, 3, 2, 1, 0]),
    (0, -1, {"divide": 2}, [4, 2, 1, 1]), (0, -1, {"divide": 7}, [1, 1, 1, 1]), (3, -1, {"divide": 4}, [2]), (0, -1, {"divide": 1}, [7, 3, 2, 1, 0]),
    (0, 6, {"divide": 2}, [7, 3, 2, 1, 0])])
def test_every_case_of_positions_that_change(seq, p0, p1, change, positions):
    before = seq.describe()
    info = seq.renumber(p0, p1, **change)
    assert [v.position for v in info.history] == [v.position for v in seq.describe().history] == positions
    assert [v.checksum for v in info.history] == [v.checksum for v in before.history[:len(positions)]]
    changed = info.revision != before.revision
    assert changed == (positions != [7, 3, 2, 1, 0])
    assert {v.exactness for v in info.history} == {"edited" if changed else "exact"}


def test_every_refusal_of_ranges(pool, seq):
    revision = seq.describe().revision
    for add in (-7, -8, 2**53 - 6, -2**63, 2**63 - 1):
        assert reason_of(lambda: seq.renumber(add=add)) == ("INVALID_POSITION", "add", {"position": "7"})
    for divide in (0, -1):
        assert reason_of(lambda: seq.renumber(divide=divide))[0] == "INVALID_OPTION"
    assert reason_of(seq.renumber)[0] == "MISSING_FIELD"
    assert reason_of(lambda: seq.renumber(add=1, divide=2))[0] == "INVALID_OPTION"
    assert reason_of(lambda: seq.renumber(add=1, if_revision=revision - 1))[0] == "REVISION_MISMATCH"
    assert reason_of(lambda: seq.remove_range(0, if_revision=revision - 1))[0] == "REVISION_MISMATCH"
    absent = pool.sequence(seq.name + "/absent")
    assert reason_of(lambda: absent.remove_range(0))[0] == reason_of(lambda: absent.renumber(add=1))[0] == "NEVER_CREATED"
    assert absent.remove_range(0, allow_missing=True) == statepool.names.Removal(True, False, None)
    assert seq.describe().revision == revision


def test_ranges_are_safe_to_retry_and_may_be_items_of_a_batch(pool, seq):
    first = seq.renumber(add=1, request_id="r")
    assert seq.renumber(add=1, request_id="r").replayed and seq.describe().revision == first.revision
    assert reason_of(lambda: seq.renumber(add=2, request_id="r"))[0] == "REQUEST_ID_REUSED"
    with pool.batch(all_or_none=True) as batch:
        batch.fork(seq, f"{seq.name}/child", position=4)
        batch.remove_range(seq, 6)
        batch.create(seq_layout := pool.get_layout(first.layout), f"{seq.name}/new")
    child, refused, _ = batch.results
    assert not refused and refused.info.position == 8 and child[0].describe().rollback_tokens == 2
    with pool.batch(all_or_none=True) as batch:
        batch.remove_range(seq, 4, request_id="s")
        batch.renumber(f"{seq.name}/child", add=5)
        batch.rollback(f"{seq.name}/new", tokens=0)
    assert batch.results[0].info.position == 4 and batch.results[1].position == 9
    assert seq.remove_range(4, request_id="s").info.replayed
    assert seq.get().data == bytes([3]) * seq_layout.state_bytes


def test_a_sequence_that_expired_and_was_removed_is_not_back_after_a_crash(own_daemon):
    for attempt in range(3):  # the daemon reclaims it by itself a moment later
        with statepool.connect(own_daemon.address) as pool:
            layout = pool.register_layout(random_layout(random.Random(41)))
            names = [f"{attempt}/{how}" for how in ("call", "batch", "kept")]
            for name in names:
                pool.create(layout, name, durability="sync", ttl=math.inf if name.endswith("kept") else 1)
                pool.set(name, bytes(layout.state_bytes), 1)
            time.sleep(1.01)
            assert pool.remove_range(names[0], 0, allow_missing=True) == statepool.names.Removal(True, False, None)
            with pool.batch() as batch:
                batch.remove_range(names[1], 0, allow_missing=True)
            assert batch.results == [statepool.names.Removal(True, False, None)]
        own_daemon.kill()
        own_daemon.start()
        with statepool.connect(own_daemon.address) as pool:
            assert [info.name for info in pool.list(prefix=f"{attempt}/")] == names[2:]


def test_a_batch_of_renumberings_answers_without_their_histories(own_daemon):
    with statepool.connect(own_daemon.address) as pool:
        layout = pool.register_layout(random_layout(random.Random(43)))
        pool.create(layout, "p", max_history=256)
        for position in range(1, 257):
            pool.set("p", bytes(layout.state_bytes), position)
        names = [f"c/{i}" for i in range(1000)]
        pool.fork_many("p", names)
        for add in (7, 0, 7):  # done; nothing to do; answered again
            items = [pb.BatchWriteItem(renumber=pb.RenumberRequest(sequence=name, end=-1, add=add, request_id="r" if add else "")) for name in names]
            answer = pool._call("BatchWrite", pb.BatchWriteRequest(items=items), pb.BatchWriteResponse.FromString)
            assert answer.ByteSize() < 1 << 20
            for result in answer.results:
                assert result.info.position == 263 and not result.info.history and not result.info.HasField("rollback_tokens")
        info = pool.renumber("c/0", add=1)
        assert len(info.history) == 256 and info.rollback_tokens == 255


def test_positions_that_changed_are_there_after_a_restart(own_daemon):
    with statepool.connect(own_daemon.address) as pool:
        layout = pool.register_layout(random_layout(random.Random(31)))
        for name in ("a", "b", "c"):
            for position in (4, 5, 6):
                pool.set(name, bytes([position]) * layout.state_bytes, position, layout=layout, durability="sync", max_history=4)
        pool.fork("a", "child", position=5)
        pool.renumber("a", add=10)
        pool.remove_range("b", 5)
        pool.remove_range("c", 0)
    own_daemon.kill()
    own_daemon.start()
    with statepool.connect(own_daemon.address) as pool:
        for name, positions, content in (("a", [16, 15, 14], [6, 5, 4]), ("b", [5, 4], [5, 4]), ("child", [5, 4], [5, 4])):
            info = pool.describe(name)
            assert [v.position for v in info.history] == positions and info.rollback_tokens == len(positions) - 1
            assert [pool.get(name, position).data[0] for position in positions] == content
        with pytest.raises(statepool.NotFound):
            pool.get("c")


# ------------------------------------------------------------------------------------------------------------------- clear


def test_no_byte_of_a_state_that_was_forgotten_is_seen_again(start):
    secret = 0xAB
    daemon = start("--hot-bytes=2MiB", "--warm-bytes=0", "--chunk-bytes=256KiB")  # so small that slots are used again at once
    with statepool.connect(daemon.address) as pool:
        layout = pool.register_layout(layouts.mamba2("clear", layers=2, heads=4, head_dim=16, state_size=64, conv_dtype="float32"))
        for turn in range(3):
            for i in range(200):
                pool.set(f"a/{i}", bytes([secret]) * layout.state_bytes, 1, layout=layout, durability="volatile")
                if i % 20 == 19:
                    assert pool.delete_many("a/").deleted == 20
            pool.set("b/kept", bytes(layout.state_bytes), 1, layout=layout)
            fresh = pool.create(layout, f"fresh/{turn}")
            assert fresh.get().data == bytes(layout.state_bytes)
            part = fresh.get(tensors=["ssm"], layers=[1]).data
            fresh.set(part, 1, tensors=["ssm"], layers=[1], if_revision=fresh.describe().revision)
            assert fresh.get().data == bytes(layout.state_bytes)
            with pool.open_arena(layout, rows=4, view=View(conv_padding=1, num_spec=2), steps=3) as arena:
                arena.load({0: fresh, 2: "b/kept"})
                if DEVICES == "host":  # else its memory is not the CPU's to read
                    for tensor in arena._table.tensors:
                        for layer in tensor.layers:
                            assert not np.asarray(arena[tensor.tensor][layer]).view(np.uint8).any()
                arena.store({0: f"stored/{turn}"}, 2)
            assert pool.get(f"stored/{turn}").data == bytes(layout.state_bytes)
        assert pool.delete_many(all=True, keep=["b/kept"]).matched == 6
        assert [info.name for info in pool.list()] == ["b/kept"]
