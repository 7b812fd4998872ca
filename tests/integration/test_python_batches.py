# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Batches, parts of states, and what concerns many names or a name's life, as the Python package does them."""
import datetime
import math
import random
import time

import grpc
import numpy as np
import pytest

import statepool
from daemon_process import eventually
from fake_server import FakeServer, fail, serving, status
from statepool import _wire
from statepool.layouts import Layout, Tensor
from statepool.v1 import statepool_pb2 as pb

LAYOUT = Layout("batched-model", (
    Tensor("conv", range(3), "bfloat16", {"tap": 3, "channel": 33}, kind="conv", initial=bytes(range(198)) * 3),
    Tensor("wkv", [0, 2], "float32", {"head": 4, "value": 64, "key": 64}, kind="recurrent"),
    Tensor("count", [1], "uint8", {"channel": 6}),
))


def image(n, layout=LAYOUT):
    return random.Random(n).randbytes(layout.state_bytes)


@pytest.fixture
def pool(daemon):
    with statepool.connect(daemon.address, timeout=20, retries=0) as pool:
        pool.register_layout(LAYOUT, alias="batched")
        yield pool


@pytest.fixture
def seq(pool, name):
    """A sequence that was set at positions 4, 8 and 12."""
    for position in (4, 8, 12):
        pool.set(name, image(position), position, layout=LAYOUT, max_history=8)
    return pool.sequence(name)


# ------------------------------------------------------------------------------------------------------------ by itself


def test_a_part_is_laid_out_as_the_contract_says():
    data = bytearray(image(1))
    whole = LAYOUT.views(data)
    for tensors, layers, expected in [
            (None, None, {"conv": (0, 1, 2), "wkv": (0, 2), "count": (1,)}),
            (["wkv", "conv"], None, {"conv": (0, 1, 2), "wkv": (0, 2)}),
            (None, [2], {"conv": (2,), "wkv": (2,)}),
            (None, [0, 2], {"conv": (0, 2), "wkv": (0, 2)}),
            ("conv", [1, 2], {"conv": (1, 2)}),
            (["wkv", "count"], [1, 2], {"wkv": (2,), "count": (1,)})]:
        part = LAYOUT.part(tensors, layers)
        assert {t.name: t.layers for t in part.tensors} == expected and list(expected) == [t.name for t in part.tensors]
        cut = b"".join(data[at:at + size] for at, size in part.ranges())
        assert len(cut) == part.nbytes == sum(t.nbytes for t in part.tensors)
        for t in part.tensors:
            rows = [next(full for full in LAYOUT.tensors if full.name == t.name).layers.index(i) for i in t.layers]
            assert part.views(cut)[t.name].tobytes() == whole[t.name][rows].tobytes() and t.nbytes == len(t.layers) * t.layer_nbytes
        assert part.pack(part.views(cut)) == cut
    assert LAYOUT.part(layers=[1]).tensors[0].initial == bytes(range(198))
    assert LAYOUT.ranges() == [(0, 594), (594, 131072), (131666, 6)] and LAYOUT.part(layers=[0, 2]).ranges()[:2] == [(0, 198), (396, 198)]


@pytest.mark.parametrize("tensors, layers", [(["nope"], None), (None, [3]), (["wkv"], [1]), ([], None), (None, [])])
def test_a_part_that_is_not_there_is_refused(tensors, layers):
    with pytest.raises(statepool.InvalidArgument) as error:
        LAYOUT.part(tensors, layers)
    assert error.value.reason == "INVALID_OPTION"


def test_writing_a_part_needs_a_revision_before_anything_is_sent():
    with statepool.connect("unix:/nowhere", retries=0) as pool:
        for data, options in ((b"x", {"layers": [0]}), (b"x", {"tensors": ["conv"]}), ({"count": LAYOUT.views(image(1))["count"]}, {})):
            for use in (pool.set, pool.batch().set):
                with pytest.raises(statepool.InvalidArgument) as error:
                    use("s", data, 1, layout=LAYOUT, **options)
                assert (error.value.reason, error.value.field) == ("MISSING_FIELD", "if_revision")


def test_empty_batches_make_no_call():
    with statepool.connect("unix:/nowhere", retries=0) as pool:
        assert pool.batch_get([]) == pool.batch().run() == pool.touch() == []
        with pytest.raises(KeyError), pool.batch() as batch:
            batch.delete("s")
            raise KeyError  # nothing is sent: it would be Unavailable


class Batches(FakeServer):
    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def BatchWrite(self, request, context):
        self.requests.append(request)
        answer = self.answers.pop(0)
        return answer if isinstance(answer, pb.BatchWriteResponse) else fail(context, *answer)

    def BatchGet(self, request, context):
        self.requests.append(request)
        return self.answers.pop(0)


INFO = pb.NameInfo(name=pb.NameRef(sequence="s"))
FULL = pb.BatchWriteResult(error=status(grpc.StatusCode.RESOURCE_EXHAUSTED, "HOT_FULL", 0.01, limit="5"))
DROPPED = pb.BatchWriteResult(error=status(grpc.StatusCode.ABORTED, "BATCH_ABORTED"))
DONE = pb.BatchWriteResult(info=INFO)


def filled(pool, **options):
    batch = pool.batch(**options)
    batch.set("s", b"one", 1, layout="l")
    batch.create("l", "t")
    batch.set("u", b"three", 3)
    return batch


def test_a_batch_is_retried_with_the_request_ids_of_its_items():
    answer = pb.BatchWriteResponse(results=[DONE] * 3, done=True)
    server = Batches((grpc.StatusCode.UNAVAILABLE,), (grpc.StatusCode.UNAVAILABLE, "DRAINING", 0.01), answer)
    with serving(server) as address, statepool.connect(address) as pool:
        assert [type(r) for r in filled(pool).run()] == [statepool.Info, statepool.Sequence, statepool.Info]
    assert len(server.requests) == 3 and all(r == server.requests[0] for r in server.requests)
    sent = server.requests[0]
    assert sent.data == b"onethree" and [i.data_bytes for i in sent.items] == [3, 0, 5] and not sent.all_or_none
    ids = {sent.items[0].set.request_id, sent.items[1].create.request_id, sent.items[2].set.request_id}
    assert len(ids) == 3 and {len(i) for i in ids} == {32}
    assert sent.items[2].set.checksum == _wire.checksum_of(b"three")


def test_an_item_that_failed_keeps_its_place_and_is_not_tried_again():
    server = Batches(pb.BatchWriteResponse(results=[DONE, FULL, DONE], done=True))
    with serving(server) as address, statepool.connect(address) as pool:
        first, second, third = filled(pool).run()
    assert isinstance(second, statepool.Exhausted) and isinstance(third, statepool.Info)
    assert (second.code, second.reason, second.retry_after, second.metadata) == ("RESOURCE_EXHAUSTED", "HOT_FULL", 0.01, {"limit": "5"})
    assert len(server.requests) == 1


def test_all_or_none_is_tried_again_as_a_whole_and_raises_the_error_that_counts():
    again = pb.BatchWriteResponse(results=[DROPPED, FULL, DROPPED])
    server = Batches(again, again, pb.BatchWriteResponse(results=[DONE] * 3, done=True), *[again] * 3)
    with serving(server) as address, statepool.connect(address, retries=2) as pool:
        with filled(pool, all_or_none=True) as batch:
            pass
        assert len(batch.results) == 3 and len(server.requests) == 3 and all(r == server.requests[0] for r in server.requests)
        with pytest.raises(statepool.Exhausted) as error:
            filled(pool, all_or_none=True).run()
    assert error.value.reason == "HOT_FULL" and len(server.requests) == 6


def test_a_batch_with_an_unsafe_deletion_is_not_retried():
    for allow_missing, calls in ((False, 1), (True, 2)):
        deleted = pb.BatchWriteResult(delete=pb.DeleteResponse(deleted=True))
        server = Batches((grpc.StatusCode.UNAVAILABLE,), pb.BatchWriteResponse(results=[deleted], done=True))
        with serving(server) as address, statepool.connect(address) as pool:
            batch = pool.batch()
            batch.delete("s", allow_missing=allow_missing)
            if allow_missing:
                assert batch.run() == [True]
            else:
                pytest.raises(statepool.Unavailable, batch.run)
        assert len(server.requests) == calls


def test_a_state_of_a_batch_that_changed_on_the_way_is_data_loss_in_its_place():
    def item(data, at):
        return pb.BatchGetItem(response=pb.GetResponse(info=INFO, data_checksum=_wire.checksum_of(data), data_bytes=len(data)), data_offset=at)

    answer = pb.BatchGetResponse(items=[item(b"abc", 0), item(b"def", 3), item(b"gh", 6)], data=b"abcdeFgh")
    with serving(Batches(answer, answer)) as address, statepool.connect(address) as pool:
        first, second, third = pool.batch_get(["a", "b", "c"])
        assert (first.data, third.data) == (b"abc", b"gh") and isinstance(second, statepool.DataLoss)
        with pytest.raises(statepool.DataLoss):
            pool.batch_get(["a", "b", "c"], all_or_none=True)


# ------------------------------------------------------------------------------------------------------ parts of states


def test_some_tensors_and_layers_are_read(pool, seq):
    whole = LAYOUT.views(image(12))
    state = seq.get(tensors=["wkv", "count"])
    assert set(state.tensors) == {"wkv", "count"} and state.checksum == _wire.checksum_of(image(12)) != _wire.checksum_of(state.data)
    assert all(state.tensors[n].tobytes() == whole[n].tobytes() for n in state.tensors)
    state = seq.get(layers=[2, 0], attachment=False)
    assert {n: a.shape for n, a in state.tensors.items()} == {"conv": (2, 3, 33), "wkv": (2, 4, 64, 64)}
    assert state.tensors["conv"].tobytes() == whole["conv"][[0, 2]].tobytes() and state.tensors["wkv"].tobytes() == whole["wkv"].tobytes()
    assert {t.name: t.layers for t in state.part.tensors} == {"conv": (0, 2), "wkv": (0, 2)}
    assert seq.get(8, tensors="count").data == image(8)[-6:]
    assert seq.get().part.nbytes == LAYOUT.state_bytes


@pytest.mark.parametrize("options", [{"tensors": ["nope"]}, {"layers": [7]}, {"tensors": ["wkv"], "layers": [1]}, {"tensors": ["wkv", "wkv"]}])
def test_a_part_that_the_layout_lacks_is_refused(pool, seq, options):
    revision = seq.describe().revision
    for use in (lambda: seq.get(**options), lambda: seq.get_stream(**options), lambda: seq.set(b"x", 13, if_revision=revision, **options)):
        with pytest.raises(statepool.InvalidArgument) as error:
            use()
        assert error.value.reason == "INVALID_OPTION" and error.value.field.startswith(("select", "get.select"))


def test_some_tensors_and_layers_are_written_over_the_head(pool, seq):
    revision = seq.describe().revision
    expected = LAYOUT.views(bytearray(image(12)))
    count = np.full((1, 6), 9, np.uint8)
    info = seq.set({"count": count}, 13, if_revision=revision)  # the dict says which
    expected["count"][:] = count
    assert info.exactness == "edited" and seq.get().data == LAYOUT.pack(expected)
    wkv = np.ones((1, 4, 64, 64), np.float32)
    info = seq.set({"wkv": wkv}, 14, layers=[2], if_revision=info.revision)
    expected["wkv"][1] = 1
    assert seq.get().data == LAYOUT.pack(expected)
    part = LAYOUT.part(layers=[1])
    info = seq.set(b"\7" * part.nbytes, 15, layers=[1], if_revision=info.revision, exactness="lossy")
    expected["conv"][1], expected["count"][:] = 0x0707, 7
    assert info.exactness == "lossy" and seq.get().data == LAYOUT.pack(expected) and seq.get(12).data == image(12)
    whole = seq.set(LAYOUT.views(image(3)), 16, tensors=["conv", "wkv", "count"], if_revision=info.revision, exactness="exact")
    assert whole.exactness == "exact" and seq.get().data == image(3)
    with pytest.raises(statepool.Conflict) as error:
        seq.set({"count": count}, 17, if_revision=revision)
    assert error.value.reason == "REVISION_MISMATCH"
    with pytest.raises(statepool.InvalidArgument) as error:
        seq.set(b"12345", 17, tensors=["count"], if_revision=whole.revision)
    assert error.value.reason == "BYTES_LENGTH_MISMATCH" and error.value.metadata["expected"] == "6"


def test_a_version_is_read_by_its_id(pool, seq):
    versions = {v.position: v.version_id for v in seq.describe().history}
    assert seq.get(version_id=versions[8]).data == image(8)
    seq.rollback(8)
    with pytest.raises(statepool.NotFound) as miss:
        seq.get(version_id=versions[12])
    assert miss.value.reason == "VERSION_MISMATCH"


# -------------------------------------------------------------------------------------------------------------- batches


def test_many_states_come_in_one_message_each_with_its_own_error(pool, seq):
    snapshot = pool.snapshot(seq, seq.name + "@4", position=4)
    got = pool.batch_get([
        seq, statepool.Get(seq.name, 8), seq.name + "/never", snapshot, statepool.Get(seq, tensors=["count"]), statepool.Get(seq, 5)])
    assert [g.data for g in (got[0], got[1], got[3], got[4])] == [image(12), image(8), image(4), image(12)[-6:]]
    assert (got[0].position, got[3].info.kind, got[4].tensors["count"].tobytes()) == (12, "snapshot", image(12)[-6:])
    for failed, reason in ((got[2], "NEVER_CREATED"), (got[5], "POSITION_MISMATCH")):
        assert type(failed) is statepool.NotFound and failed.reason == reason
    assert got[5].field == "items[5].position" and got[5].metadata["positions"]
    with pytest.raises(statepool.NotFound) as miss:
        pool.batch_get([seq, seq.name + "/never"], all_or_none=True)
    assert miss.value.reason == "NEVER_CREATED"


def test_a_batch_writes_everything_at_once(pool, seq):
    a = seq.name
    snapshot = pool.snapshot(seq, a + "@12")
    for victim in ("/rolled", "/gone"):
        pool.fork(seq, a + victim)
    with pool.batch(all_or_none=True) as batch:
        batch.create("batched", a + "/new", ttl=60)
        batch.set(a, image(16), 16, attachment=b"x")
        batch.fork(a, a + "/f1", a + "/f2", durability="sync")
        batch.rollback(a + "/rolled", 4)
        batch.snapshot(a, a + "@before")
        batch.restore(snapshot, a + "/restored")
        batch.delete(a + "/gone", allow_missing=True)
        batch.delete(a + "/never", allow_missing=True)
        batch.set(a + "/tensors", LAYOUT.views(image(17)), 17, layout=LAYOUT)
    new, info, forks, rolled, before, restored, gone, never, tensors = batch.results
    assert new.position == 0 and info.position == 16 and [f.name for f in forks] == [a + "/f1", a + "/f2"]
    assert (rolled.position, restored.position, gone, never, tensors.position) == (4, 12, True, False, 17)
    states = pool.batch_get([a, *forks, a + "/rolled", before, restored, a + "/tensors"], all_or_none=True)
    # The sources are those from before the batch: the fork and the snapshot have position 12, not 16.
    assert [s.data for s in states] == [image(n) for n in (16, 12, 12, 4, 12, 12, 17)]
    assert forks[0].describe().durability == "sync" and new.describe().ttl == 60 and states[0].attachment == b"x"
    again = batch.run()  # the same request_ids
    assert not again[6] and again[0].replayed and again[1].replayed
    assert again[1].revision == info.revision and [f.revision for f in again[2]] == [f.revision for f in forks]


def test_items_fail_alone_or_none_is_done(pool, seq):
    def batch(**options):
        out = pool.batch(**options)
        out.set(seq, image(16), 16, if_revision=1)
        out.create("batched", seq.name + "/new")
        out.set(seq.name + "/short", b"short", 1, layout=LAYOUT)
        out.fork(seq.name + "/never", seq.name + "/child")
        return out

    before = seq.describe().revision
    with pytest.raises(statepool.StatepoolError) as error:
        batch(all_or_none=True).run()
    assert (error.value.reason, error.value.field) == ("REVISION_MISMATCH", "items[0].if_revision")
    with pytest.raises(statepool.NotFound):
        pool.describe(seq.name + "/new")
    conflict, made, short, miss = batch().run()
    assert type(conflict) is statepool.Conflict and (conflict.reason, conflict.field) == ("REVISION_MISMATCH", "items[0].if_revision")
    assert made.describe().position == 0
    assert type(short) is statepool.InvalidArgument and (short.reason, short.field) == ("BYTES_LENGTH_MISMATCH", "items[2].data")
    assert type(miss) is statepool.NotFound and miss.reason == "NEVER_CREATED"
    assert seq.describe().revision == before


def test_a_name_is_written_once_in_a_batch_and_a_batch_has_a_limit(pool, seq):
    twice = pool.batch()
    twice.delete(seq)
    twice.set(seq, image(1), 16)
    with pytest.raises(statepool.InvalidArgument) as error:
        twice.run()
    assert error.value.reason == "DUPLICATE_NAME"
    limit = pool.capabilities().max_batch
    for use in (lambda: pool.batch_get([seq] * (limit + 1)), lambda: pool.touch(*[seq] * (limit + 1))):
        with pytest.raises(statepool.InvalidArgument) as error:
            use()
        assert error.value.reason == "TOO_MANY" and error.value.metadata["limit"] == str(limit)
    assert seq.describe().position == 12


# -------------------------------------------------------------------------------------------- expiry, deletion, layouts


def test_a_touch_starts_the_idle_time_anew(pool, name):
    idle = pool.create(LAYOUT, name, ttl=30)
    pool.create(LAYOUT, name + "/forever")
    first = idle.describe().expire_time
    time.sleep(0.02)
    now, forever, miss = pool.touch(idle, name + "/forever", name + "/never")
    assert now > first and forever is None and type(miss) is statepool.NotFound and miss.reason == "NEVER_CREATED"
    time.sleep(0.02)
    assert idle.touch() > now
    assert pool.snapshot(idle, name + "@", ttl=5).touch() is not None
    with pytest.raises(statepool.NotFound):
        pool.sequence(name + "/never").touch()


def test_the_expiry_of_a_name_is_changed_and_its_revision_is_not(pool, name):
    seq = pool.create(LAYOUT, name)
    assert seq.set_ttl(datetime.timedelta(seconds=60)).ttl == 60
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    info = seq.set_ttl(expire_at=at)
    assert abs(info.expire_time - at) < datetime.timedelta(seconds=1) and info.ttl is None and info.revision == seq.revision
    assert seq.set_ttl(math.inf, if_revision=seq.revision).expire_time is None
    with pytest.raises(statepool.Conflict):
        seq.set_ttl(5, if_revision=seq.revision + 1)
    for bad in ({}, {"ttl": -1}, {"ttl": 5, "expire_at": 5}, {"ttl": 1e9}):
        with pytest.raises(statepool.InvalidArgument):
            seq.set_ttl(**bad)
    snapshot = pool.snapshot(seq, name + "@")
    snapshot.set_ttl(0.05)
    with pytest.raises(statepool.NotFound) as miss:
        eventually(lambda: snapshot.describe() is None)
    assert miss.value.reason == "EXPIRED" and seq.describe().expire_time is None


def test_many_names_are_deleted_after_a_preview(pool, name):
    root = pool.create(LAYOUT, name)
    pool.fork_many(root, [f"{name}/{i:03}" for i in range(120)])
    pool.snapshot(root, name + "/000")
    seen = pool.delete_many(name + "/", preview=True)
    assert (seen.matched, seen.deleted, seen.state_bytes) == (120, 0, LAYOUT.state_bytes)  # one image
    assert list(seen.names) == [f"{name}/{i:03}" for i in range(100)]
    pool.create(LAYOUT, name + "/more")
    with pytest.raises(statepool.Conflict) as error:
        pool.delete_many(name + "/", if_count=seen.matched)
    assert error.value.reason == "COUNT_MISMATCH" and error.value.metadata["count"] == "121"
    done = pool.delete_many(name + "/", if_count=121)
    assert (done.matched, done.deleted) == (121, 121)
    assert not list(pool.list(prefix=name + "/")) and root.describe().position == 0
    assert [i.name for i in pool.list("snapshot", name)] == [name + "/000"]
    assert pool.delete_many(name + "/", "snapshot").deleted == 1 and pool.delete_many(name + "/").matched == 0
    with pytest.raises(statepool.InvalidArgument) as error:
        pool.delete_many()
    assert (error.value.reason, error.value.field) == ("MISSING_FIELD", "name_prefix")
    assert pool.delete_many(all=True, preview=True).matched >= 1


def test_a_layout_goes_when_no_name_has_it(pool, name):
    layout = pool.register_layout(Layout("short-lived " + name, LAYOUT.tensors), alias="short-lived")
    seq = pool.create("short-lived", name)
    with pytest.raises(statepool.Conflict) as error:
        pool.delete_layout(layout)
    assert error.value.reason == "LAYOUT_IN_USE" and error.value.metadata["names"] == "1"
    seq.delete()
    assert pool.delete_layout("short-lived") and layout not in pool.layouts()
    assert not pool.delete_layout(layout, allow_missing=True)
    with pytest.raises(statepool.NotFound) as error:
        pool.delete_layout(layout)
    assert error.value.reason == "LAYOUT_UNKNOWN"
    assert pool.register_layout(layout, alias="short-lived") == layout and pool.create(layout, name).get().position == 0


def test_a_prefix_is_found_with_its_salt_only(pool, seq):
    tokens, key = list(range(500, 512)), seq.name.encode()
    published = pool.publish_prefix(LAYOUT, tokens, seq, extra_key=key, salt=b"tenant a")
    ask = [*tokens, 1]
    assert pool.match_prefix(LAYOUT, ask, extra_key=key, salt=b"tenant a").prefix == published.name
    for salt in (b"", b"tenant b"):
        assert pool.match_prefix(LAYOUT, ask, extra_key=key, salt=salt).miss_reason == "NEVER_PUBLISHED"
    other = pool.publish_prefix(LAYOUT, tokens, seq, extra_key=key, salt=b"tenant b")
    assert other.name != published.name and not other.already_published
    with pytest.raises(statepool.InvalidArgument):
        pool.match_prefix(LAYOUT, ask, salt=bytes(4097))


def test_a_batch_with_one_sync_item_survives_a_kill_whole_and_may_be_repeated(own_daemon):
    def batch(pool):
        out = pool.batch()
        out.set("behind", image(1), 1, layout=LAYOUT, request_id="r1")
        out.set("sync", image(2), 2, layout=LAYOUT, durability="sync", request_id="r2")
        return out.run()

    with statepool.connect(own_daemon.address, timeout=20) as pool:
        pool.register_layout(LAYOUT)
        first = batch(pool)
    own_daemon.kill()
    own_daemon.start()
    with statepool.connect(own_daemon.address, timeout=20) as pool:
        assert [s.data for s in pool.batch_get(["behind", "sync"], all_or_none=True)] == [image(1), image(2)]
        again = batch(pool)
        assert all(i.replayed for i in again) and [i.revision for i in again] == [i.revision for i in first]
