# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The Python package: first by itself, then its whole API against the daemon, restarts and bad input included."""
import concurrent.futures
import copy
import dataclasses
import math
import os
import pickle
import random
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import xxhash
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

import statepool
from daemon_process import STOP_S_MAX, eventually
from statepool import _wire
from statepool.layouts import Layout, Tensor
from statepool.v1 import statepool_pb2 as pb

# 131,672 bytes: three leaves of the checksum, the last one short, and a first tensor that ends inside a leaf.
LAYOUT = Layout("test-model", (
    Tensor("conv", range(3), "bfloat16", {"tap": 3, "channel": 33}, kind="conv", shard_axis="channel", shard_sections=(11, 22)),
    Tensor("wkv", [0, 2], "float32", {"head": 4, "value": 64, "key": 64}, kind="recurrent", initial=1.0, shard_axis="head"),
    Tensor("count", [1], "uint8", {"channel": 6}, initial=bytes(range(6))),
))
OTHER = Layout("other-model", LAYOUT.tensors)


def image(n):
    return random.Random(n).randbytes(LAYOUT.state_bytes)


@pytest.fixture
def pool(daemon):
    with statepool.connect(daemon.address, timeout=20, retries=0) as pool:
        pool.register_layout(LAYOUT, alias="test")
        yield pool


@pytest.fixture
def seq(pool, name):
    """A sequence that was set at positions 4, 8 and 12."""
    for position in (4, 8, 12):
        pool.set(name, image(position), position, layout=LAYOUT, max_history=8)
    return pool.sequence(name)


# ------------------------------------------------------------------------------------------------------------ by itself


def test_a_checksum_is_that_of_the_contract_however_the_image_is_cut():
    data = image(1)
    leaves = b"".join(xxhash.xxh3_64_intdigest(data[i:i + 65536]).to_bytes(8, "little") for i in range(0, len(data), 65536))
    assert _wire.checksum_of(data) == xxhash.xxh3_64_hexdigest(leaves)
    for cuts in ([], [1], [65535, 65537], [65536, 131072], [100, 200, 65600, 131072, 131073]):
        ends = [0, *cuts, len(data)]
        assert _wire.checksum_of(*(data[a:b] for a, b in zip(ends, ends[1:]))) == _wire.checksum_of(data)
    assert _wire.checksum_of(data[:65536]) == _wire.checksum_of(data[:60000], data[60000:65536]) != _wire.checksum_of(data)
    assert _wire.checksum_of() == _wire.checksum_of(b"") == xxhash.xxh3_64_hexdigest(b"")


def test_a_message_with_an_image_is_ordinary_proto():
    head = pb.SetRequest(sequence="s", position=3, if_revision=0, options=pb.NameOptions(max_history=2))
    message = pb.SetRequest.FromString(_wire.with_data(head, [b"ab", bytearray(200), np.arange(3, dtype=np.uint8)]))
    assert message.data == b"ab" + bytes(200) + b"\0\1\2"
    assert message.HasField("if_revision") and message.options.max_history == 2
    response = pb.GetResponse(attachment=b"a", data=image(1), info=pb.NameInfo(position=7))
    rest, data = _wire.split_data(response.SerializeToString())
    assert data == image(1) and pb.GetResponse.FromString(rest) == pb.GetResponse(attachment=b"a", info=pb.NameInfo(position=7))


def test_views_share_memory_and_pack_is_their_inverse():
    data = bytearray(image(2))
    views = LAYOUT.views(data)
    assert {n: a.shape for n, a in views.items()} == {"conv": (3, 3, 33), "wkv": (2, 4, 64, 64), "count": (1, 6)}
    views["count"][0, 5] = data[-1] ^ 255
    assert data[-1] == views["count"][0, 5]
    assert LAYOUT.pack(views) == data
    assert LAYOUT.pack({**views, "wkv": np.asfortranarray(views["wkv"]), "conv": views["conv"].view("<u2")}) == data


@pytest.mark.parametrize("change", [
    {"wkv": np.zeros((2, 4, 64, 64), np.float64)}, {"wkv": np.zeros((2, 64, 4, 64), np.float32)}, {"more": np.zeros(1)}])
def test_pack_never_casts_broadcasts_or_ignores(change):
    with pytest.raises(statepool.InvalidArgument) as error:
        LAYOUT.pack({**LAYOUT.views(image(1)), **change})
    assert error.value.reason == "TENSORS_MISMATCH"


class Fake(grpc.GenericRpcHandler):
    """A server that fails `failures` times as told, then answers `answer`; keeps the requests."""

    def __init__(self, code, failures, retry_after=None, answer=b""):
        self.code, self.left, self.answer, self.requests = code, failures, answer, []
        info = any_pb2.Any()
        info.Pack(error_details_pb2.ErrorInfo(reason="DRAINING", domain="statepool.v1", metadata={"field": "f", "limit": "7"}))
        self.details = status_pb2.Status(code=code.value[0], message="no", details=[info])
        if retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(int(retry_after * 1000))
            self.details.details.add().Pack(retry)

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.serve)

    def serve(self, request, context):
        self.requests.append(request)
        if self.left:
            self.left -= 1
            context.set_trailing_metadata([("grpc-status-details-bin", self.details.SerializeToString())])
            context.abort(self.code, "no")
        return self.answer


@pytest.fixture
def fake_pool():
    """fake_pool(Fake(...), **options) -> a Pool that speaks to it."""
    stops = []

    def start(fake, **options):
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(1), [fake])
        pool = statepool.connect(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", **{"timeout": 20, **options})
        server.start()
        stops.extend([pool.close, lambda: server.stop(None).wait()])
        return pool

    yield start
    for stop in stops:
        stop()


def test_an_info_has_its_fields_whoever_asks_first():
    message = pb.NameInfo(name=pb.NameRef(sequence="a"), position=7, revision=3, tier=pb.HOT)
    message.ttl.FromSeconds(5)
    first, second = statepool.Info.from_proto(message), statepool.Info.from_proto(message)
    assert (first.kind, first.name, first.position, first.tier, first.ttl, first.expire_time) == ("sequence", "a", 7, "hot", 5.0, None)
    assert second == first and hash(second) == hash(first) and repr(second) == repr(first)
    for again in (copy.copy, lambda info: pickle.loads(pickle.dumps(info)), dataclasses.replace):
        assert again(statepool.Info.from_proto(message)) == first
    assert dataclasses.replace(statepool.Info.from_proto(message), position=8).position == 8
    with pytest.raises(AttributeError):
        _ = first.positions
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.position = 8
    shared = [statepool.Info.from_proto(message) for _ in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda i: shared[i % 200].revision == 3, range(1600)))


def test_an_info_is_pickled_while_another_thread_asks_for_its_first_field():
    message = pb.NameInfo(name=pb.NameRef(sequence="a"), position=7)
    shared = [statepool.Info.from_proto(message) for _ in range(500)]

    def use(i):
        return shared[i // 4].position if i % 4 else pickle.loads(pickle.dumps(shared[i // 4])).position

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert set(threads.map(use, range(2000))) == {7}
    untouched = statepool.Info.from_proto(message)
    assert "_message" not in pickle.loads(pickle.dumps(untouched)).__dict__


def test_infos_of_states_do_not_keep_the_states():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blob = pb.GetResponse(info=pb.NameInfo(position=7), data=bytes(8 << 20)).SerializeToString()
    before = resident()
    kept = [statepool.Info.from_proto(pb.GetResponse.FromString(bytes(bytearray(blob))).info, copy=True) for _ in range(16)]
    assert resident() - before < 64 << 20
    assert {info.position for info in kept} == {7}


def test_a_write_is_retried_with_its_request_id_when_the_daemon_advises_it(fake_pool):
    fake = Fake(grpc.StatusCode.UNAVAILABLE, 2, retry_after=0.01)
    fake_pool(fake).rollback("s", 1)
    assert len(fake.requests) == 3 and len(set(fake.requests)) == 1
    assert len(pb.RollbackRequest.FromString(fake.requests[0]).request_id) == 32


@pytest.mark.parametrize("call, options, code, retry_after", [
    (lambda pool: pool.describe("s"), {"retries": 0}, "UNAVAILABLE", 0.01),
    (lambda pool: pool.describe("s"), {}, "RESOURCE_EXHAUSTED", None),  # no advice
    (lambda pool: pool.describe("s"), {}, "UNAVAILABLE", 60),  # the timeout is earlier
    (lambda pool: pool.describe("s"), {}, "ABORTED", 0.01),
    (lambda pool: pool.delete("s"), {}, "UNAVAILABLE", 0.01),  # not safe
    (lambda pool: pool.remove_range("s", 0), {}, "UNAVAILABLE", 0.01),  # nor is this
], ids=["retries=0", "no advice", "too late", "conflict", "unsafe", "unsafe range"])
def test_a_call_is_not_retried_when_that_is_not_wanted_or_not_safe(fake_pool, call, options, code, retry_after):
    fake = Fake(grpc.StatusCode[code], 1, retry_after)
    with pytest.raises(statepool.StatepoolError) as error:
        call(fake_pool(fake, **options))
    assert len(fake.requests) == 1
    e = error.value
    assert (e.code, e.reason, e.field, e.message, e.metadata, e.retry_after) == (code, "DRAINING", "f", "no", {"limit": "7"}, retry_after)


@pytest.mark.parametrize("before, left", [("", None), ("os.environ['GRPC_EXPERIMENTS'] = 'event_engine_client'", "event_engine_client")])
def test_a_small_call_wakes_no_threads_of_grpcs_unless_somebody_decided_before(daemon, before, left):
    program = f"""
import glob, os, re
{before}
import statepool
def switches():
    found = 0
    for path in glob.glob("/proc/self/task/*/status"):
        try:
            status = open(path).read()
        except OSError:  # it has ended
            continue
        if status.startswith("Name:\\tevent_engine"):
            found += int(re.search("\\nvoluntary_ctxt_switches:\\s(.*)", status)[1])
    return found
with statepool.connect({daemon.address!r}) as pool:
    pool.capabilities()
    before = switches()
    for _ in range(500):
        pool.capabilities()
print(switches() - before, os.environ.get("GRPC_EXPERIMENTS"))
"""
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_EXPERIMENTS"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    switches, said = done.stdout.split()
    assert said == str(left)
    assert left is not None or int(switches) < 250, "of 500 calls, each of which woke some"


@pytest.mark.parametrize("call", [lambda pool: pool.remove_range("s", 1), lambda pool: pool.remove_range("s", 0, allow_missing=True),
                                  lambda pool: pool.renumber("s", add=1)])
def test_a_range_is_retried_where_a_second_time_does_what_the_first_did(fake_pool, call):
    fake = Fake(grpc.StatusCode.UNAVAILABLE, 1, retry_after=0.01)
    call(fake_pool(fake))
    assert len(fake.requests) == 2 and len(set(fake.requests)) == 1


def test_retries_are_bounded(fake_pool):
    fake = Fake(grpc.StatusCode.RESOURCE_EXHAUSTED, 9, retry_after=0.01)
    with pytest.raises(statepool.Exhausted):
        fake_pool(fake, retries=3).describe("s")
    assert len(fake.requests) == 4


def test_bytes_that_changed_on_the_way_are_data_loss_unless_verification_is_off(fake_pool):
    answer = pb.GetResponse(info=pb.NameInfo(checksum=_wire.checksum_of(b"abc")), data=b"abd").SerializeToString()
    with pytest.raises(statepool.DataLoss):
        fake_pool(Fake(grpc.StatusCode.OK, 0, answer=answer)).get("s")
    assert fake_pool(Fake(grpc.StatusCode.OK, 0, answer=answer), verify=False).get("s").data == b"abd"


# -------------------------------------------------------------------------------------------------------------- layouts


def test_client_and_daemon_agree_on_layouts_and_their_fingerprints(pool):
    registered = pool.register_layout(LAYOUT, alias="test")  # raises when the fingerprints differ
    assert registered == LAYOUT and registered.state_bytes == LAYOUT.state_bytes == 131_672 and "test" in registered.aliases
    # An empty list of sections is the same layout as one section, and the daemon may tell either.
    assert [(t.name, t.layers, t.dtype, t.axes, t.kind, t.initial, t.shard_axis) for t in pool.get_layout("test").tensors] == [
        (t.name, t.layers, t.dtype, t.axes, t.kind, t.initial, t.shard_axis) for t in LAYOUT.tensors]
    assert pool.get_layout(LAYOUT.fingerprint) == LAYOUT and LAYOUT in pool.layouts()
    every = Layout("every-dtype", tuple(Tensor(d, [i], d, {"a": 3}) for i, d in enumerate(statepool.layouts.DTYPES)))
    assert pool.register_layout(every).state_bytes == every.state_bytes == sum(a.nbytes for a in every.views(bytes(every.state_bytes)).values())


def test_an_alias_never_changes_its_layout(pool):
    with pytest.raises(statepool.Conflict) as error:
        pool.register_layout(OTHER, alias="test")
    assert error.value.reason == "LAYOUT_ALIAS_TAKEN" and error.value.metadata["fingerprint"] == LAYOUT.fingerprint


@pytest.mark.parametrize("preset, shapes", [
    (statepool.layouts.mamba1("m", layers=2, intermediate_size=96, state_size=16), {"conv": (2, 3, 96), "ssm": (2, 96, 16)}),
    (statepool.layouts.mamba2("m", layers=2, heads=4, head_dim=8, state_size=16, groups=2, conv_kernel=5, conv_dtype="float16"),
     {"conv": (2, 4, 96), "ssm": (2, 4, 8, 16)}),
    (statepool.layouts.gated_delta_net("m", layers=2, key_heads=2, key_dim=8, value_heads=4, value_dim=16), {"conv": (2, 3, 96), "delta": (2, 4, 8, 16)}),
    (statepool.layouts.kda("m", layers=2, heads=4, head_dim=16), {"conv": (2, 3, 192), "delta": (2, 4, 16, 16)}),
    (statepool.layouts.kda("m", layers=1, heads=4, head_dim=16, key_heads=2, key_dim=8, separate_convs=True),
     {"conv_q": (1, 3, 64), "conv_k": (1, 3, 16), "conv_v": (1, 3, 16), "delta": (1, 4, 16, 16)}),
    (statepool.layouts.linear_attention("m", layers=2, heads=4, head_dim=16), {"kv": (2, 4, 16, 16)}),
    (statepool.layouts.short_conv("m", layer_ids=[1, 4], channels=32, conv_kernel=3), {"conv": (2, 2, 32)}),
    (statepool.layouts.rwkv4("m", layers=2, hidden_size=32), {"att_shift": (2, 32), "aa": (2, 32), "bb": (2, 32), "pp": (2, 32), "ffn_shift": (2, 32)}),
    (statepool.layouts.rwkv4_seed("m", layers=2, hidden_size=32), {"aa": (2, 32), "ab": (2, 32), "att_x_prev": (2, 32), "ffn_x_prev": (2, 32)}),
    (statepool.layouts.rwkv5("m", layers=2, hidden_size=128), {"att_shift": (2, 128), "wkv": (2, 2, 64, 64), "ffn_shift": (2, 128)}),
    (statepool.layouts.rwkv6("m", layers=2, hidden_size=128), {"att_shift": (2, 128), "wkv": (2, 2, 64, 64), "ffn_shift": (2, 128)}),
    (statepool.layouts.rwkv7("m", layers=2, hidden_size=128), {"att_shift": (2, 128), "wkv": (2, 2, 64, 64), "ffn_shift": (2, 128)}),
    (statepool.layouts.hybrid("m", [statepool.layouts.short_conv(layer_ids=[0], channels=8, prefix="c."), statepool.layouts.mamba1(
        layer_ids=[1, 2], intermediate_size=8, state_size=4)]), {"c.conv": (1, 3, 8), "conv": (2, 3, 8), "ssm": (2, 8, 4)}),
])
def test_a_preset_has_the_shapes_of_the_contract(pool, preset, shapes):
    layout = pool.register_layout(preset)
    assert {t.name: t.shape for t in layout.tensors} == shapes
    assert Layout(layout.model_id, layout.tensors).fingerprint == layout.fingerprint
    in_four_bytes = ("ssm", "wkv", "delta", "kv", "aa", "ab", "bb", "pp")
    assert layout.state_bytes == sum(math.prod(s) * (4 if n in in_four_bytes else 2) for n, s in shapes.items())


def test_a_preset_begins_as_its_user_says(pool, name):
    time_state = np.random.default_rng(1).standard_normal((2, 2, 64, 64)).astype(np.float32)
    preset = statepool.layouts.rwkv7("tuned", layers=2, hidden_size=128, initial={"wkv": time_state, "ffn_shift": 2})
    state = pool.create(pool.register_layout(preset), name).get()
    assert (state.tensors["wkv"] == time_state).all() and not state.tensors["att_shift"].any()
    assert (np.asarray(state.tensors["ffn_shift"]).view(np.uint16) == 0x4000).all()  # 2 in bfloat16
    pp = pool.create(pool.register_layout(statepool.layouts.rwkv4("m", layers=1, hidden_size=8)), f"{name}/4").get().tensors["pp"]
    assert (pp == np.float32(-1e30)).all()
    for family, initial in (("rwkv7", {"kv": 1}), ("rwkv7", {"wkv": b"short"}), ("rwkv4", {"pp": 1e300})):
        with pytest.raises(statepool.InvalidArgument) as error:
            pool.register_layout(getattr(statepool.layouts, family)("m", layers=1, hidden_size=64, initial=initial))
        assert [error.value.field] == [f'preset.initial["{tensor}"]' for tensor in initial]
        assert error.value.field not in error.value.message
    convs = [statepool.layouts.short_conv(layer_ids=[i], channels=4) for i in range(2)]
    with pytest.raises(statepool.InvalidArgument, match="tensor 'conv': twice") as error:
        pool.register_layout(statepool.layouts.hybrid("m", convs))
    assert error.value.field == "preset.hybrid.parts[1].prefix"


# ------------------------------------------------------------------------------------------------------------ sequences


def test_a_new_sequence_has_the_initial_state(pool, name):
    seq = pool.create(LAYOUT, name, durability="volatile", max_history=3, ttl=60)
    state = seq.get()
    assert (seq.position, state.position, state.revision) == (0, 0, seq.revision)
    assert not state.tensors["conv"].any() and (state.tensors["wkv"] == 1).all() and bytes(state.tensors["count"]) == bytes(range(6))
    info = seq.describe()
    assert (info.durability, info.max_history, info.ttl, info.layout) == ("volatile", 3, 60.0, LAYOUT.fingerprint)


def test_bytes_come_back_as_they_were_set(pool, name):
    for data in (image(1), bytearray(image(2)), memoryview(image(3)), np.frombuffer(image(4), np.uint8)):
        info = pool.set(name, data, 7, layout=LAYOUT, attachment=b"\0logits", exactness="edited")
        state = pool.sequence(name).get()
        assert state.data == bytes(data) and state.attachment == b"\0logits" and state.data.readonly
        assert (state.position, state.revision, state.checksum, state.info.exactness) == (7, info.revision, info.checksum, "edited")
        assert state.info.attachment_bytes == 7 and pool.get(name, attachment=False).attachment == b""


def test_tensors_come_back_as_they_were_set(pool, name):
    tensors = LAYOUT.views(image(5))
    pool.set(name, tensors, 7, layout=LAYOUT)
    seq = pool.sequence(name)
    assert seq.get().data == image(5)
    seq.set(seq.get(layout="test").tensors, 8)  # the layout is looked up
    state = seq.get()
    assert state.position == 8 and all(np.array_equal(state.tensors[n].view(np.uint8), tensors[n].view(np.uint8)) for n in tensors)


def test_versions_of_the_ring_are_found_by_exact_position_only(pool, seq):
    assert seq.get(8).data == image(8)
    assert [v.position for v in seq.describe().history] == [12, 8, 4]
    with pytest.raises(statepool.NotFound) as miss:
        seq.get(7)
    assert miss.value.reason == "POSITION_MISMATCH" and miss.value.field == "position" and "8" in miss.value.metadata["positions"]


def test_a_rollback_drops_later_versions(pool, seq):
    head = seq.describe().revision
    info = seq.rollback(8, if_revision=head)
    assert info.position == 8 and info.revision > head and seq.get().data == image(8)
    with pytest.raises(statepool.NotFound):
        seq.rollback(12)


def test_where_to_go_back_to_is_said_in_one_way(seq):
    for wrong in ({}, {"position": 8, "tokens": 1}):
        with pytest.raises(statepool.InvalidArgument) as error:
            seq.rollback(**wrong)
        assert (error.value.reason, error.value.field) == ("INVALID_OPTION", "tokens")


def test_names_that_are_kept_stay(pool, seq):
    children = pool.fork_many(seq, [f"{seq.name}/{i}" for i in range(4)])
    kept = [children[1].name, children[3].name]
    assert pool.delete_many(f"{seq.name}/", keep=kept, if_count=2).names == (children[0].name, children[2].name)
    assert [info.name for info in pool.list(prefix=f"{seq.name}/")] == kept


def test_names_to_keep_and_children_may_be_handles(pool, seq):
    children = pool.fork_many(seq, [pool.sequence(f"{seq.name}/{i}") for i in range(3)])
    assert [c.name for c in children] == [f"{seq.name}/{i}" for i in range(3)]
    assert pool.delete_many(f"{seq.name}/", keep=[children[1], children[2].name]).deleted == 1
    assert pool.rollback(children[1], 8).position == pool.remove_range(children[1], 8).info.position == pool.renumber(children[1], add=0).position == 8


@pytest.mark.parametrize("call, field", [
    (lambda p, s: p.delete_many(s.name, keep="main"), "keep"),
    (lambda p, s: p.delete_many(s.name, keep=s), "keep"),
    (lambda p, s: p.delete_many(s.name, keep=[s.name, p.snapshot(s, s.name)]), "keep[1]"),
    (lambda p, s: p.fork_many(s, "ab"), "children"),
    (lambda p, s: p.fork_many(s, p.sequence("ab")), "children")])
def test_one_name_is_not_taken_for_several(pool, seq, call, field):
    with pytest.raises(statepool.InvalidArgument) as error:
        call(pool, seq)
    assert (error.value.reason, error.value.field) == ("INVALID_OPTION", field)
    assert [info.name for info in pool.list(prefix=seq.name)] == [seq.name]


def test_a_range_that_is_removed_has_a_begin(pool, seq):
    for call in (seq.remove_range, lambda: pool.remove_range(seq), lambda: pool.batch().remove_range(seq)):
        with pytest.raises(TypeError):
            call()
    assert seq.describe().position == 12


def test_a_fork_is_independent_of_its_source(pool, seq):
    child = pool.fork(seq, seq.name + "/child")
    earlier = pool.fork(seq.name, seq.name + "/earlier", position=4, durability="sync")
    seq.set(image(16), 16)
    child.set(image(17), 17)
    assert (seq.get().data, child.get().data, earlier.get().data) == (image(16), image(17), image(4))
    assert child.get(12).data == image(12) and earlier.position == 4
    info = earlier.describe()
    assert info.durability == "sync" and info.durable_revision == info.revision == earlier.revision


def test_many_children_are_made_all_or_none(pool, seq):
    names = [f"{seq.name}/{i}" for i in range(3)]
    assert [c.name for c in pool.fork_many(seq, names)] == names
    assert {c.describe().version_id for c in map(pool.sequence, names)} == {seq.describe().version_id}
    with pytest.raises(statepool.Conflict) as error:
        pool.fork_many(seq, [seq.name + "/new", names[1]])
    assert (error.value.reason, error.value.field) == ("NAME_EXISTS", "children[1]")
    with pytest.raises(statepool.NotFound):
        pool.describe(seq.name + "/new")


def test_a_request_id_makes_a_retry_safe(pool, seq):
    first = seq.set(image(20), 20, request_id="r1")
    later = seq.set(image(24), 24, request_id="r2")
    again = seq.set(image(20), 20, request_id="r1")
    assert again.replayed and not first.replayed and (again.revision, again.position) == (first.revision, 20)
    assert seq.describe().revision == later.revision
    with pytest.raises(statepool.InvalidArgument) as error:
        seq.set(image(21), 20, request_id="r1")
    assert error.value.reason == "REQUEST_ID_REUSED"
    assert pool.create(LAYOUT, seq.name + "/c", request_id="r").revision == pool.create(LAYOUT, seq.name + "/c", request_id="r").revision


def test_if_revision_lets_only_one_writer_win(pool, name):
    first = pool.set(name, image(1), 1, layout=LAYOUT, if_revision=0)
    second = pool.set(name, image(2), 2, if_revision=first.revision)
    assert second.revision > first.revision
    for stale in (0, first.revision):
        with pytest.raises(statepool.Conflict) as error:
            pool.set(name, image(3), 3, if_revision=stale)
        assert (error.value.code, error.value.reason, error.value.field) == ("ABORTED", "REVISION_MISMATCH", "if_revision")
        assert error.value.metadata["revision"] == str(second.revision)
    assert pool.get(name).data == image(2)


@pytest.mark.parametrize("expiration", [lambda: {"ttl": 0.1}, lambda: {"expire_at": time.time() + 0.3}], ids=["ttl", "expire_at"])
def test_an_expired_name_is_a_miss_that_says_so(pool, name, expiration):
    pool.create(LAYOUT, name, **expiration())

    def miss():
        try:
            pool.describe(name)
        except statepool.NotFound as e:
            return e.reason

    assert eventually(miss) == "EXPIRED"
    for use in (pool.get, lambda n: pool.fork(n, n + "/child"), lambda n: pool.rollback(n, 0), pool.delete):
        with pytest.raises(statepool.NotFound) as error:
            use(name)
        assert error.value.reason == "EXPIRED"
    assert pool.create(LAYOUT, name).describe().ttl is None


def test_names_are_listed_in_order_across_pages_and_deleted(pool, name):
    pool.create(LAYOUT, name)
    names = [c.name for c in pool.fork_many(name, [f"{name}/{i:02}" for i in range(7)])]
    assert [i.name for i in pool.list(prefix=name + "/", page_size=3)] == names
    assert pool.delete(names[0]) and not pool.sequence(names[0]).delete(allow_missing=True)
    assert [i.name for i in pool.list("sequence", name + "/")] == names[1:]


# ------------------------------------------------------------------------------------------------ snapshots and prefixes


def test_a_snapshot_is_fixed_and_restores_and_forks(pool, seq):
    snapshot = pool.snapshot(seq, seq.name + "@8", position=8, durable=True)
    info = snapshot.describe()
    assert (info.kind, info.position, info.durability, info.durable_revision) == ("snapshot", 8, "sync", info.revision)
    with pytest.raises(statepool.Conflict) as error:
        pool.snapshot(seq, snapshot.name)
    assert error.value.reason == "NAME_EXISTS"
    restored = pool.restore(snapshot, seq.name)
    assert restored.position == 8 and seq.get().data == image(8) and seq.get(12).data == image(12)  # the head went into the ring
    assert pool.restore(snapshot.name, seq.name + "/new", if_revision=0).get().data == image(8)
    seq.delete()
    assert pool.fork(snapshot, seq.name + "/fork").get().data == image(8)
    assert [i.name for i in pool.list("snapshot", seq.name)] == [snapshot.name]
    snapshot.delete()
    with pytest.raises(statepool.NotFound) as miss:
        pool.restore(snapshot, seq.name)
    assert miss.value.reason == "DELETED"


def test_a_prefix_is_found_by_its_tokens_and_forked(pool, seq, name):
    tokens, key = np.arange(100, 120, dtype=np.int64), name.encode()
    published = pool.publish_prefix(LAYOUT, tokens[:12], seq, extra_key=key)
    pool.publish_prefix(LAYOUT, tokens[:4], seq, extra_key=key, position=4)
    assert not published.already_published and pool.publish_prefix(LAYOUT, tokens[:12], seq, extra_key=key).already_published
    hit = pool.match_prefix(LAYOUT, tokens, extra_key=key)
    assert hit and (hit.position, hit.prefix, hit.miss_reason) == (12, published.name, "")
    assert pool.fork(hit, name + "/fork").get().data == image(12) == published.get().data
    assert [m.position for m in pool.match_prefix(LAYOUT, tokens, max_results=9, extra_key=key).matches] == [12, 4]
    assert pool.match_prefix(LAYOUT, tokens, max_position=11, extra_key=key).position == 4
    assert pool.match_prefix(LAYOUT, [*tokens[:11], 7, 7], extra_key=key).position == 4


def test_a_missed_prefix_says_why(pool, seq, name):
    pool.register_layout(OTHER)
    tokens, key = list(range(12)), name.encode()
    prefix = pool.publish_prefix("test", tokens, seq, extra_key=key)

    def miss(layout=LAYOUT, tokens=(*tokens, 12), extra_key=key, **options):
        answer = pool.match_prefix(layout, tokens, extra_key=extra_key, **options)
        assert not answer and answer.position == 0 and answer.matches == ()
        return answer.miss_reason, answer.nearest_published_position

    assert miss(tokens=[5, 6, 7]) == miss(layout=OTHER) == miss(extra_key=b"lora" + key) == ("NEVER_PUBLISHED", 0)
    assert miss(tokens=tokens) == miss(max_position=11) == ("POSITION_MISMATCH", 12)
    prefix.delete()
    assert miss() == ("DELETED", 0)
    with pytest.raises(statepool.InvalidArgument):
        pool.fork(pool.match_prefix(LAYOUT, [1, 2], extra_key=key), name + "/fork")


def test_a_prefix_has_as_many_tokens_as_its_version_says(pool, seq):
    with pytest.raises(statepool.Conflict) as error:
        pool.publish_prefix(LAYOUT, range(11), seq)
    assert (error.value.reason, error.value.field) == ("POSITION_MISMATCH", "tokens")


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("bad", ["", "x" * 10_240, "../x", "a//b", "a/./b", "a\0b", "a\nb"])
def test_a_bad_name_is_refused_everywhere(pool, bad):
    for field, use in {"sequence": lambda: pool.create(LAYOUT, bad), "name": lambda: pool.get(bad),
                       "snapshot": lambda: pool.snapshot("s", bad), "children[0]": lambda: pool.fork("s", bad)}.items():
        with pytest.raises(statepool.InvalidArgument) as error:
            use()
        assert (error.value.reason, error.value.field) == ("INVALID_NAME", field)


@pytest.mark.parametrize("use, kind, reason, field", [
    (lambda s, p: s.set(image(1), -1), statepool.InvalidArgument, "INVALID_POSITION", "position"),
    (lambda s, p: s.set(image(1), 2**53 + 1), statepool.InvalidArgument, "INVALID_POSITION", "position"),
    (lambda s, p: s.get(-1), statepool.InvalidArgument, "INVALID_POSITION", "position"),
    (lambda s, p: s.rollback(-1), statepool.InvalidArgument, "INVALID_POSITION", "position"),
    (lambda s, p: s.set(image(1)[:-1], 9), statepool.InvalidArgument, "BYTES_LENGTH_MISMATCH", "data"),
    (lambda s, p: s.set(image(1) + b"x", 9), statepool.InvalidArgument, "BYTES_LENGTH_MISMATCH", "data"),
    (lambda s, p: s.set(b"", 9), statepool.InvalidArgument, "BYTES_LENGTH_MISMATCH", "data"),
    (lambda s, p: p.set(s.name + "/new", image(1), 9), statepool.InvalidArgument, "MISSING_FIELD", "layout"),
    (lambda s, p: s.set(image(1), 9, max_history=10**6), statepool.InvalidArgument, "INVALID_OPTION", "options.max_history"),
    (lambda s, p: s.set(image(1), 9, ttl=-1), statepool.InvalidArgument, "INVALID_OPTION", "options.ttl"),
    (lambda s, p: s.set(image(1), 9, request_id="x" * 65), statepool.InvalidArgument, "INVALID_OPTION", "request_id"),
    (lambda s, p: s.set(image(1), 9, attachment=bytes(2**20 + 1)), statepool.InvalidArgument, "INVALID_OPTION", "attachment"),
    (lambda s, p: p.fork_many(s, ["c", "c"]), statepool.InvalidArgument, "DUPLICATE_NAME", "children[1]"),
    (lambda s, p: p.fork_many(s, []), statepool.InvalidArgument, "MISSING_FIELD", "children"),
    (lambda s, p: next(p.list(page_size=10**6)), statepool.InvalidArgument, "INVALID_OPTION", "page_size"),
    (lambda s, p: p.match_prefix(LAYOUT, []), statepool.InvalidArgument, "MISSING_FIELD", "tokens"),
    (lambda s, p: p.match_prefix(LAYOUT, [1], max_results=65), statepool.InvalidArgument, "INVALID_OPTION", "max_results"),
    (lambda s, p: p.publish_prefix(LAYOUT, range(12), s, extra_key=bytes(4097)), statepool.InvalidArgument, "INVALID_OPTION", "extra_key"),
    (lambda s, p: p.register_layout(Layout("", LAYOUT.tensors)), statepool.InvalidArgument, "INVALID_LAYOUT", "layout.model_id"),
    (lambda s, p: p.register_layout(LAYOUT, alias="0" * 64), statepool.InvalidArgument, "INVALID_NAME", "alias"),
    (lambda s, p: p.create("nobody", "c"), statepool.NotFound, "LAYOUT_UNKNOWN", "layout"),
    (lambda s, p: p.get_layout("0" * 64), statepool.NotFound, "LAYOUT_UNKNOWN", "layout"),
    (lambda s, p: p.get(s.name + "/never"), statepool.NotFound, "NEVER_CREATED", ""),
    (lambda s, p: s.get(layout=OTHER), statepool.NotFound, "LAYOUT_MISMATCH", "layout"),
    (lambda s, p: p.fork(s, "c", layout=OTHER), statepool.NotFound, "LAYOUT_MISMATCH", "layout"),
    (lambda s, p: s.set(image(1), 9, layout=OTHER), statepool.Conflict, "LAYOUT_MISMATCH", "layout"),
    (lambda s, p: p.publish_prefix(OTHER, range(12), s), statepool.Conflict, "LAYOUT_MISMATCH", "layout"),
    (lambda s, p: p.create(LAYOUT, s.name), statepool.Conflict, "NAME_EXISTS", "sequence"),
    (lambda s, p: s.delete(if_revision=1), statepool.Conflict, "REVISION_MISMATCH", "if_revision"),
])
def test_bad_input_is_refused_with_its_reason_and_changes_nothing(pool, seq, use, kind, reason, field):
    pool.register_layout(OTHER)

    def told():
        return dataclasses.replace(seq.describe(), flush_lag=None)  # which goes on

    before = told()
    with pytest.raises(kind) as error:
        use(seq, pool)
    assert (type(error.value), error.value.reason) == (kind, reason)
    assert not field or error.value.field == field
    assert error.value.message
    assert told() == before


def test_bytes_that_differ_from_their_checksum_are_refused(pool, seq, monkeypatch):
    monkeypatch.setattr(_wire, "checksum_of", lambda *pieces: "0123456789abcdef")
    with pytest.raises(statepool.InvalidArgument) as error:
        seq.set(image(1), 16)
    monkeypatch.undo()
    assert (error.value.reason, error.value.field) == ("CHECKSUM_MISMATCH", "checksum")
    assert error.value.metadata == {"expected": "0123456789abcdef", "actual": _wire.checksum_of(image(1))}
    assert seq.get().data == image(12)


# ------------------------------------------------------------------------------------------------------ daemon as a whole


def test_threads_share_a_pool(pool, name):
    def work(n):
        seq = pool.create(LAYOUT, f"{name}/{n}")
        for position in range(1, 6):
            seq.set(image(100 * n + position), position)
        return seq.get().data == image(100 * n + 5)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))


def test_an_acknowledged_sync_write_survives_a_kill_and_a_volatile_one_is_known_to_be_lost(own_daemon):
    with statepool.connect(own_daemon.address, timeout=20) as pool:
        pool.register_layout(LAYOUT, alias="test")
        written = pool.set("sync", image(1), 5, layout="test", durability="sync", attachment=b"a", request_id="r")
        assert written.durable_revision == written.revision
        pool.set("behind", image(2), 6, layout="test")
        assert pool.flush(["behind"]) == 1
        pool.set("volatile", image(3), 7, layout="test", durability="volatile")
        pool.snapshot("volatile", "kept", durable=True)
        pool.publish_prefix("test", range(5), "sync", durability="sync")
        incarnation, epoch = pool.capabilities().incarnation, pool.capabilities().epoch
    own_daemon.kill()
    own_daemon.start()
    with statepool.connect(own_daemon.address, timeout=20) as pool:
        assert pool.capabilities().incarnation != incarnation and pool.capabilities().epoch > epoch
        state = pool.get("sync")
        assert (state.data, state.attachment, state.position, state.revision) == (image(1), b"a", 5, written.revision)
        assert pool.set("sync", image(1), 5, layout="test", durability="sync", attachment=b"a", request_id="r").replayed
        assert pool.get("behind").data == image(2)
        assert pool.get(pool.name("snapshot", "kept")).data == image(3)
        assert pool.fork(pool.match_prefix("test", range(6)), "child").get().data == image(1)
        with pytest.raises(statepool.NotFound) as miss:
            pool.get("volatile")
        assert miss.value.reason in ("NOT_DURABLE_AT_RESTART", "UNKNOWN_SINCE_RESTART")
        assert miss.value.metadata["incarnation"]
        assert pool.set("sync", image(4), 8).revision > written.revision


def test_an_orderly_stop_keeps_what_was_not_flushed_yet(own_daemon):
    with statepool.connect(own_daemon.address, timeout=20) as pool:
        pool.register_layout(LAYOUT)
        pool.set("behind", image(1), 5, layout=LAYOUT)
        pool.set("volatile", image(1), 5, layout=LAYOUT, durability="volatile")
    own_daemon.stop()
    own_daemon.start()
    with statepool.connect(own_daemon.address, timeout=20) as pool:
        assert pool.get("behind").data == image(1)
        with pytest.raises(statepool.NotFound) as miss:
            pool.get("volatile")
        assert miss.value.reason == "NOT_DURABLE_AT_RESTART"


def test_calls_wait_out_a_restart(own_daemon):
    with statepool.connect(own_daemon.unix_address, timeout=60, retries=1000) as pool:
        pool.register_layout(LAYOUT)
        pool.create(LAYOUT, "s", durability="sync")
        own_daemon.kill()
        with pytest.raises(statepool.Unavailable):
            pool.with_options(retries=0).describe("s")
        restart = threading.Thread(target=own_daemon.start)
        restart.start()
        assert pool.describe("s").position == 0
        restart.join()


def test_a_second_daemon_on_one_data_directory_exits_with_2(own_daemon):
    second = subprocess.run([f for f in own_daemon.command() if "unix:" not in f] + ["--listen=127.0.0.1:0"],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=STOP_S_MAX)
    assert second.returncode == 2 and second.stdout == b"" and second.stderr
    with statepool.connect(own_daemon.address, timeout=20) as pool:
        assert pool.capabilities().incarnation == own_daemon.ready["incarnation"]
