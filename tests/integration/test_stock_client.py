# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Every RPC, called through the stubs that stock grpcio-tools generates from the .proto, with nothing of ours in between."""
import grpc
import pytest

from wire import checksum, error_info, reason_of


@pytest.fixture
def call(request, stubs, daemon):
    """call.Method(request). After the test: every RPC that it is marked with was answered."""
    answered = set()

    class Call:
        def __getattr__(self, method):
            def run(message):
                answer = getattr(stub, method)(message, timeout=20)
                answered.add(method)
                return answer
            return run

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(daemon.address, options) as channel:
        stub = stubs.grpc.StatePoolStub(channel)
        yield Call()
    assert {m for mark in request.node.iter_markers("rpc") for m in mark.args} <= answered


@pytest.fixture
def layout(pb, call):
    """A registered layout of 70,000 bytes: two leaves of the checksum, the second one short."""
    return call.RegisterLayout(pb.RegisterLayoutRequest(alias="stock", layout=pb.Layout(model_id="stock-model", tensors=[
        pb.TensorSpec(name="state", kind=pb.RECURRENT, layers=[0, 1], dtype=pb.FLOAT32,
                      axes=[pb.Axis(name="head", size=10), pb.Axis(name="key", size=875)], sharding=pb.Sharding(axis=0))])))


def image(n):
    return bytes((n + i * 7) % 251 for i in range(70_000))


@pytest.fixture
def written(pb, call, layout, name):
    """A sequence with image(4) at position 4 and image(8) at its head, position 8."""
    for position in (4, 8):
        info = call.Set(pb.SetRequest(sequence=name, layout="stock", position=position, data=image(position), checksum=checksum(image(position)),
                                      attachment=b"logits", request_id=f"set-{position}", options=pb.NameOptions(max_history=4)))
    return info


def test_every_rpc_of_the_service_has_a_test(pb):
    tested = {m for test in globals().values() for mark in getattr(test, "pytestmark", ()) if mark.name == "rpc" for m in mark.args}
    assert tested == {m.name for m in pb.DESCRIPTOR.services_by_name["StatePool"].methods}


@pytest.mark.rpc("GetCapabilities")
def test_the_daemon_tells_what_it_is_and_all_its_limits(pb, call, daemon):
    told = call.GetCapabilities(pb.GetCapabilitiesRequest())
    assert told.incarnation == daemon.ready["incarnation"]
    assert told.version and told.epoch >= 1 and told.copy_mode == "inline"
    assert [d.name for d in told.devices] == ["host"] and told.devices[0].healthy
    assert told.devices[0].used_bytes <= told.devices[0].budget_bytes
    assert told.default_durability == pb.WRITE_BEHIND
    assert told.flush_interval.ToMilliseconds() > 0 and told.max_ttl.ToSeconds() > 0
    assert told.max_name_bytes == 512 and told.max_attachment_bytes == 1 << 20 and told.max_extra_key_bytes == 4096
    for limit in ("max_message_bytes", "max_bytes_in_flight", "max_state_bytes", "max_history", "max_children", "max_tokens", "max_page_size",
                  "max_layouts", "max_names", "default_max_history"):
        assert getattr(told, limit) > 0, limit


@pytest.mark.rpc("RegisterLayout", "GetLayout", "ListLayouts")
def test_a_layout_is_found_by_alias_and_by_fingerprint(pb, call, layout):
    assert layout.state_bytes == 70_000 and len(layout.fingerprint) == 64 and "stock" in layout.aliases
    by_alias = call.GetLayout(pb.GetLayoutRequest(layout="stock"))
    assert by_alias == call.GetLayout(pb.GetLayoutRequest(layout=layout.fingerprint)) == layout
    listed = call.ListLayouts(pb.ListLayoutsRequest()).layouts
    assert layout in listed
    assert [i.fingerprint for i in listed] == sorted(i.fingerprint for i in listed)


@pytest.mark.rpc("Create", "Describe")
def test_a_new_sequence_is_at_position_0_in_the_initial_state(pb, call, layout, name):
    made = call.Create(pb.CreateRequest(sequence=name, layout="stock", options=pb.NameOptions(durability=pb.VOLATILE, max_history=3)))
    assert made.name.sequence == name and made.layout == layout.fingerprint and made.position == 0 and made.revision > 0
    assert made.durability == pb.VOLATILE and made.durable_revision == 0 and made.max_history == 3 and made.state_bytes == 70_000
    assert made.checksum == checksum(bytes(70_000))
    described = call.Describe(pb.DescribeRequest(name=pb.NameRef(sequence=name)))
    assert described.revision == made.revision
    assert [(v.position, v.version_id) for v in described.history] == [(0, made.version_id)]


@pytest.mark.rpc("Set", "Get")
def test_what_was_set_comes_back_with_its_checksum_and_attachment(pb, call, written, name):
    assert written.position == 8 and written.checksum == checksum(image(8)) and written.exactness == pb.EXACT and not written.replayed
    got = call.Get(pb.GetRequest(name=pb.NameRef(sequence=name)))
    assert got.data == image(8) and got.attachment == b"logits"
    assert (got.info.position, got.info.revision, got.info.checksum) == (8, written.revision, written.checksum)
    earlier = call.Get(pb.GetRequest(name=pb.NameRef(sequence=name), position=4, layout="stock", omit_attachment=True))
    assert earlier.data == image(4) and earlier.attachment == b"" and earlier.info.position == 4


@pytest.mark.rpc("Fork")
def test_a_fork_shares_the_version_of_its_source(pb, call, written, name):
    children = [f"{name}/a", f"{name}/b"]
    forked = call.Fork(pb.ForkRequest(source=pb.NameRef(sequence=name), children=children, request_id="fork"))
    assert [c.sequence for c in forked.children] == children and all(c.revision > 0 for c in forked.children)
    assert (forked.position, forked.version_id, forked.checksum, forked.state_bytes) == (8, written.version_id, written.checksum, 70_000)
    assert forked.durability == written.durability and not forked.replayed
    assert call.Get(pb.GetRequest(name=pb.NameRef(sequence=children[1]))).data == image(8)
    again = call.Fork(pb.ForkRequest(source=pb.NameRef(sequence=name), children=children, request_id="fork"))
    assert again.replayed and again.children == forked.children


@pytest.mark.rpc("List")
def test_names_are_listed_in_byte_order_page_by_page(pb, call, layout, name):
    names = [f"{name}/{i}" for i in range(5)]
    for each in reversed(names):
        call.Create(pb.CreateRequest(sequence=each, layout="stock"))
    listed, token = [], ""
    while True:
        page = call.List(pb.ListRequest(kind=pb.SEQUENCE, name_prefix=f"{name}/", page_size=2, page_token=token))
        assert len(page.names) <= 2
        listed += [i.name.sequence for i in page.names]
        token = page.next_page_token
        if not token:
            break
    assert listed == names


@pytest.mark.rpc("Delete")
def test_a_deleted_name_is_gone_and_may_be_deleted_again_if_allowed(pb, call, written, name):
    assert call.Delete(pb.DeleteRequest(name=pb.NameRef(sequence=name), if_revision=written.revision)).deleted
    assert not call.Delete(pb.DeleteRequest(name=pb.NameRef(sequence=name), allow_missing=True)).deleted
    with pytest.raises(grpc.RpcError) as miss:
        call.Get(pb.GetRequest(name=pb.NameRef(sequence=name)))
    assert reason_of(miss.value) == "DELETED"


@pytest.mark.rpc("Rollback")
def test_a_rollback_moves_the_head_back_under_a_new_revision(pb, call, written, name):
    back = call.Rollback(pb.RollbackRequest(sequence=name, position=4, if_revision=written.revision, request_id="back"))
    assert back.position == 4 and back.checksum == checksum(image(4)) and back.revision > written.revision
    assert call.Get(pb.GetRequest(name=pb.NameRef(sequence=name))).data == image(4)


@pytest.mark.rpc("Snapshot", "Restore")
def test_a_snapshot_outlives_later_writes_and_is_restored(pb, call, written, name):
    taken = call.Snapshot(pb.SnapshotRequest(source=pb.NameRef(sequence=name), snapshot=f"{name}@8", options=pb.NameOptions(durability=pb.SYNC)))
    assert taken.name.snapshot == f"{name}@8" and taken.version_id == written.version_id
    assert taken.durability == pb.SYNC and taken.durable_revision == taken.revision > 0
    call.Set(pb.SetRequest(sequence=name, position=12, data=image(12)))
    restored = call.Restore(pb.RestoreRequest(snapshot=f"{name}@8", sequence=name))
    assert restored.name.sequence == name and restored.position == 8 and restored.version_id == written.version_id
    made = call.Restore(pb.RestoreRequest(snapshot=f"{name}@8", sequence=f"{name}/new", if_revision=0))
    assert made.position == 8 and call.Get(pb.GetRequest(name=pb.NameRef(sequence=f"{name}/new"))).data == image(8)


@pytest.mark.rpc("PublishPrefix", "MatchPrefix")
def test_a_published_prefix_is_found_by_longer_token_lists(pb, call, written, name):
    tokens = [10, 11, 12, 13, 14, 15, 16, 0xFFFFFFFF]
    ask = {"layout": "stock", "extra_key": name.encode()}
    published = call.PublishPrefix(pb.PublishPrefixRequest(tokens=tokens, source=pb.NameRef(sequence=name), **ask))
    assert len(published.prefix) == 32 and published.info.version_id == written.version_id and not published.already_published
    assert call.PublishPrefix(pb.PublishPrefixRequest(tokens=tokens, source=pb.NameRef(sequence=name), **ask)).already_published
    hit = call.MatchPrefix(pb.MatchPrefixRequest(tokens=[*tokens, 99, 100], **ask))
    assert [(m.prefix, m.position, m.info.checksum) for m in hit.matches] == [(published.prefix, 8, written.checksum)]
    assert hit.miss_reason == ""
    miss = call.MatchPrefix(pb.MatchPrefixRequest(tokens=tokens, **ask))  # max_position is 7: one token is left to compute
    assert (list(miss.matches), miss.miss_reason, miss.nearest_published_position) == ([], "POSITION_MISMATCH", 8)


@pytest.mark.rpc("Flush")
def test_a_flush_makes_the_newest_version_durable(pb, call, written, name):
    flushed = call.Flush(pb.FlushRequest(names=[pb.NameRef(sequence=name)]))
    assert flushed.names == 1 and flushed.written <= 1
    info = call.Describe(pb.DescribeRequest(name=pb.NameRef(sequence=name)))
    assert info.durable_revision == info.revision == written.revision


def test_an_error_says_its_reason_field_and_metadata(pb, call, layout, name):
    with pytest.raises(grpc.RpcError) as short:
        call.Set(pb.SetRequest(sequence=name, layout="stock", position=1, data=image(1)[:-1]))
    assert short.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    info = error_info(short.value)
    assert (info.domain, info.reason) == ("statepool.v1", "BYTES_LENGTH_MISMATCH")
    assert (info.metadata["field"], info.metadata["expected"], info.metadata["actual"]) == ("data", "70000", "69999")
