# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Every RPC, called through the stubs that stock grpcio-tools generates from the .proto, with nothing of ours in between."""
import json
import mmap
import os
import socket
import threading

import grpc
import numpy
import pytest
from google.rpc import error_details_pb2, status_pb2

from daemon_process import DEVICES, eventually
from wire import checksum, error_info, reason_of


@pytest.fixture
def call(request, stubs):
    """call.Method(request), of a daemon of its own if the test is marked with flags. After the test: every RPC that it is marked with was answered."""
    answered = set()
    flags = request.node.get_closest_marker("flags")
    daemon = request.getfixturevalue("start")(*flags.args) if flags else request.getfixturevalue("daemon")

    class Call:
        def __getattr__(self, method):
            def run(message):
                answer = getattr(stub, method)(message, timeout=20)
                if isinstance(answer, grpc.Call):  # a stream of answers: all of them
                    answer = list(answer)
                answered.add(method)
                return answer
            return run

        stub = property(lambda self: stub)

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
    assert told.version and told.epoch >= 1 and told.copy_mode == "isolated"
    names = [f"far:{i}" for i in range(2)] if DEVICES == "far,far" else [DEVICES]
    assert [d.name for d in told.devices] == names and all(d.healthy for d in told.devices)
    assert told.devices[0].used_bytes <= told.devices[0].budget_bytes
    assert told.default_durability == pb.WRITE_BEHIND
    assert told.flush_interval.ToMilliseconds() > 0 and told.max_ttl.ToSeconds() > 0
    assert told.upload_timeout.ToMilliseconds() > 0 and told.stream_timeout.ToMilliseconds() > 0
    assert told.max_name_bytes == 512 and told.max_attachment_bytes == 1 << 20 and told.max_extra_key_bytes == 4096
    for limit in ("max_message_bytes", "max_bytes_in_flight", "max_state_bytes", "max_history", "max_children", "max_tokens", "max_page_size",
                  "max_layouts", "max_names", "default_max_history", "max_batch", "max_stream_state_bytes", "max_uploads", "max_upload_bytes"):
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


@pytest.mark.rpc("Get", "Set")
def test_some_tensors_and_layers_are_read_and_written(pb, call, written, name):
    second = pb.Select(tensors=["state"], layers=[1])
    got = call.Get(pb.GetRequest(name=pb.NameRef(sequence=name), select=second))
    assert got.data == image(8)[35_000:] and got.data_bytes == 35_000 and got.data_checksum == checksum(got.data)
    assert got.info.checksum == written.checksum and got.info.state_bytes == 70_000
    part = bytes(35_000)
    request = pb.SetRequest(sequence=name, position=9, select=second, data=part, checksum=checksum(part))
    with pytest.raises(grpc.RpcError) as missing:
        call.Set(request)
    assert (reason_of(missing.value), error_info(missing.value).metadata["field"]) == ("MISSING_FIELD", "if_revision")
    request.if_revision = written.revision
    info = call.Set(request)
    assert info.exactness == pb.EDITED and info.parent_version_id == written.version_id
    assert call.Get(pb.GetRequest(name=pb.NameRef(sequence=name))).data == image(8)[:35_000] + part
    earlier = call.Get(pb.GetRequest(name=pb.NameRef(sequence=name), version_id=written.version_id))
    assert earlier.data == image(8)
    with pytest.raises(grpc.RpcError) as miss:
        call.Get(pb.GetRequest(name=pb.NameRef(sequence=name), version_id=2**63))
    assert (miss.value.code(), reason_of(miss.value)) == (grpc.StatusCode.NOT_FOUND, "VERSION_MISMATCH")


@pytest.mark.rpc("GetStream")
def test_a_stream_gives_the_state_in_chunks_and_goes_on_at_an_offset(pb, call, written, name):
    get = pb.GetRequest(name=pb.NameRef(sequence=name))
    first, second = call.GetStream(pb.GetStreamRequest(get=get, chunk_bytes=65536))
    assert first.head.info.version_id == written.version_id and first.head.attachment == b"logits" and not first.head.data
    assert first.head.data_bytes == 70_000 and first.head.data_checksum == written.checksum and not second.HasField("head")
    assert [(c.offset, c.data, c.checksum) for c in (first, second)] == [
        (0, image(8)[:65536], checksum(image(8)[:65536])), (65536, image(8)[65536:], checksum(image(8)[65536:]))]
    call.Set(pb.SetRequest(sequence=name, position=12, data=image(12)))
    get.version_id = written.version_id
    rest, = call.GetStream(pb.GetStreamRequest(get=get, offset=65536))
    assert rest.HasField("head") and rest.head.data_bytes == 70_000 and (rest.offset, rest.data) == (65536, second.data)
    for change, reason, field in ((dict(offset=65536, get=pb.GetRequest(name=get.name)), "MISSING_FIELD", "get.version_id"),
                                  (dict(offset=100, get=get), "OFFSET_MISMATCH", "offset"),
                                  (dict(offset=131072, get=get), "OFFSET_MISMATCH", "offset"),
                                  (dict(get=get, chunk_bytes=1000), "INVALID_OPTION", "chunk_bytes")):
        with pytest.raises(grpc.RpcError) as error:
            call.GetStream(pb.GetStreamRequest(**change))
        assert (reason_of(error.value), error_info(error.value).metadata["field"]) == (reason, field)


def chunks_of(pb, head, data, offset=0, change=None):
    """The messages of a SetStream from `offset` on; `change` is made to the last one."""
    yield pb.SetChunk(head=head, offset=offset)
    for at in range(offset, len(data), 65536):
        part = data[at:at + 65536]
        last = change if change and at + 65536 >= len(data) else {}
        yield pb.SetChunk(**{"offset": at, "data": part, "checksum": checksum(part), **last})


@pytest.mark.rpc("SetStream")
def test_a_state_that_is_streamed_is_visible_when_all_of_it_is_there(pb, call, written, name):
    head = pb.SetRequest(sequence=name, position=12, checksum=checksum(image(12)), request_id="stream", if_revision=written.revision)
    for change, reason, field in ((dict(checksum="0" * 16), "CHECKSUM_MISMATCH", "checksum"), (dict(checksum=""), "MISSING_FIELD", "checksum"),
                                  (dict(offset=0), "OFFSET_MISMATCH", "offset")):
        head.request_id = f"refused-{reason}"
        with pytest.raises(grpc.RpcError) as error:
            call.SetStream(chunks_of(pb, head, image(12), change=change))
        assert (reason_of(error.value), error_info(error.value).metadata["field"]) == (reason, field)
        assert call.Describe(pb.DescribeRequest(name=pb.NameRef(sequence=name))).revision == written.revision
    for bad in ([], [pb.SetChunk(offset=0, data=b"x", checksum=checksum(b"x"))]):
        with pytest.raises(grpc.RpcError) as error:
            call.SetStream(iter(bad))
        assert (reason_of(error.value), error_info(error.value).metadata["field"]) == ("MISSING_FIELD", "head")
    with pytest.raises(grpc.RpcError) as error:
        call.SetStream(chunks_of(pb, pb.SetRequest(sequence=name, position=12, if_revision=written.revision, select=pb.Select(layers=[1])), image(12)))
    assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_OPTION")
    head.request_id = "stream"
    info = call.SetStream(chunks_of(pb, head, image(12)))
    assert (info.position, info.checksum, info.replayed) == (12, checksum(image(12)), False)
    assert call.Get(pb.GetRequest(name=pb.NameRef(sequence=name))).data == image(12)
    again = call.SetStream(chunks_of(pb, head, image(12)))
    assert again.replayed and again.revision == info.revision
    with pytest.raises(grpc.RpcError) as error:
        call.SetStream(chunks_of(pb, pb.SetRequest(sequence=name, position=13, request_id="stream"), image(13)))
    assert reason_of(error.value) == "REQUEST_ID_REUSED"


@pytest.mark.rpc("GetUpload", "SetStream")
def test_an_upload_that_broke_off_goes_on_where_it_was(pb, call, layout, name):
    head = pb.SetRequest(sequence=name, layout="stock", position=12, checksum=checksum(image(12)), request_id="broken")
    upload = pb.GetUploadRequest(sequence=name, request_id="broken")

    def told():
        try:
            return call.GetUpload(upload)
        except grpc.RpcError as error:
            assert reason_of(error) == "UPLOAD_UNKNOWN"

    def broken_off():
        """What is kept of a stream that broke off after its first chunk; nothing if the break came before that had arrived."""
        given_up = threading.Event()

        def messages():
            yield pb.SetChunk(head=head, data=image(12)[:65536], checksum=checksum(image(12)[:65536]))
            given_up.wait(20)

        going_on = call.stub.SetStream.future(messages(), timeout=20)
        assert not eventually(told).HasField("expire_time")  # a call goes on with it
        with pytest.raises(grpc.RpcError) as busy:
            call.SetStream(chunks_of(pb, head, image(12), 65536))
        assert (busy.value.code(), reason_of(busy.value)) == (grpc.StatusCode.ABORTED, "UPLOAD_BUSY") and retry_delay(busy.value) > 0
        going_on.cancel()
        given_up.set()
        eventually(lambda: (left := told()) is None or left.HasField("expire_time"))
        return told()

    kept = eventually(broken_off)
    assert (kept.received_bytes, kept.total_bytes) == (65536, 70_000)
    with pytest.raises(grpc.RpcError) as miss:
        call.Describe(pb.DescribeRequest(name=pb.NameRef(sequence=name)))
    assert reason_of(miss.value) == "NEVER_CREATED"
    info = call.SetStream(chunks_of(pb, head, image(12), 65536))
    assert info.position == 12 and call.Get(pb.GetRequest(name=pb.NameRef(sequence=name))).data == image(12)
    for use in (lambda: call.GetUpload(upload), lambda: call.SetStream(chunks_of(
            pb, pb.SetRequest(sequence=name, position=13, request_id="never begun"), image(13), 65536))):
        with pytest.raises(grpc.RpcError) as unknown:
            use()
        assert (unknown.value.code(), reason_of(unknown.value)) == (grpc.StatusCode.NOT_FOUND, "UPLOAD_UNKNOWN")


@pytest.mark.rpc("BatchGet")
def test_a_batch_of_states_comes_in_one_message(pb, call, written, name):
    sequence = pb.NameRef(sequence=name)
    got = call.BatchGet(pb.BatchGetRequest(items=[
        pb.GetRequest(name=sequence), pb.GetRequest(name=pb.NameRef(sequence=f"{name}/never")), pb.GetRequest(name=sequence, position=5),
        pb.GetRequest(name=sequence, position=4, select=pb.Select(layers=[1]))]))
    first, never, position, part = got.items
    assert got.data[first.data_offset:][:first.response.data_bytes] == image(8) and first.response.attachment == b"logits" and not first.response.data
    assert got.data[part.data_offset:][:part.response.data_bytes] == image(4)[35_000:]
    assert part.response.data_checksum == checksum(image(4)[35_000:]) and not part.HasField("error")
    assert item_error(never) == (grpc.StatusCode.NOT_FOUND, "NEVER_CREATED", "items[1].name") and not never.HasField("response")
    assert item_error(position) == (grpc.StatusCode.NOT_FOUND, "POSITION_MISMATCH", "items[2].position")
    with pytest.raises(grpc.RpcError) as error:
        call.BatchGet(pb.BatchGetRequest(items=[pb.GetRequest(name=sequence), pb.GetRequest(name=sequence, position=5)], all_or_none=True))
    assert (reason_of(error.value), error_info(error.value).metadata["field"]) == ("POSITION_MISMATCH", "items[1].position")
    with pytest.raises(grpc.RpcError) as error:
        call.BatchGet(pb.BatchGetRequest())
    assert (reason_of(error.value), error_info(error.value).metadata["field"]) == ("MISSING_FIELD", "items")


@pytest.mark.rpc("BatchWrite")
def test_a_batch_of_writes_is_done_at_one_moment(pb, call, written, name):
    def items(revision):
        return [
            pb.BatchWriteItem(create=pb.CreateRequest(sequence=f"{name}/new", layout="stock", request_id="new")),
            pb.BatchWriteItem(data_bytes=70_000, set=pb.SetRequest(
                sequence=name, position=12, checksum=checksum(image(12)), if_revision=revision, request_id="set")),
            pb.BatchWriteItem(fork=pb.ForkRequest(source=pb.NameRef(sequence=name), children=[f"{name}/child"], request_id="fork")),
            pb.BatchWriteItem(snapshot=pb.SnapshotRequest(source=pb.NameRef(sequence=name), snapshot=f"{name}@8", request_id="snapshot")),
            pb.BatchWriteItem(data_bytes=70_000, set=pb.SetRequest(sequence=f"{name}/other", layout="stock", position=13, request_id="other")),
            pb.BatchWriteItem(delete=pb.DeleteRequest(name=pb.NameRef(sequence=f"{name}/never"), allow_missing=True))]

    data = image(12) + image(13)
    refused = call.BatchWrite(pb.BatchWriteRequest(items=items(written.revision + 1), all_or_none=True, data=data))
    assert not refused.done and item_error(refused.results[1]) == (grpc.StatusCode.ABORTED, "REVISION_MISMATCH", "items[1].if_revision")
    assert all(item_error(r)[:2] == (grpc.StatusCode.ABORTED, "BATCH_ABORTED") for r in [refused.results[0], *refused.results[2:]])
    for absent in ("/new", "/child", "/other"):
        with pytest.raises(grpc.RpcError) as miss:
            call.Describe(pb.DescribeRequest(name=pb.NameRef(sequence=name + absent)))
        assert reason_of(miss.value) == "NEVER_CREATED"

    done = call.BatchWrite(pb.BatchWriteRequest(items=items(written.revision), all_or_none=True, data=data))
    assert done.done and not any(r.HasField("error") for r in done.results)
    new, set_, fork, snapshot, other, delete = done.results
    assert (new.info.position, set_.info.position, fork.fork.position, snapshot.info.position, other.info.position) == (0, 12, 8, 8, 13)
    assert fork.fork.children[0].sequence == f"{name}/child" and not delete.delete.deleted
    for sequence, expected in ((name, 12), (f"{name}/child", 8), (f"{name}/other", 13)):
        assert call.Get(pb.GetRequest(name=pb.NameRef(sequence=sequence))).data == image(expected)
    again = call.BatchWrite(pb.BatchWriteRequest(items=items(written.revision), all_or_none=True, data=data))
    assert again.done and again.results[1].info.replayed and again.results[1].info.revision == set_.info.revision and again.results[2].fork.replayed

    mixed = call.BatchWrite(pb.BatchWriteRequest(items=[
        pb.BatchWriteItem(create=pb.CreateRequest(sequence=f"{name}/new", layout="stock")),
        pb.BatchWriteItem(rollback=pb.RollbackRequest(sequence=name, position=8)),
        pb.BatchWriteItem(restore=pb.RestoreRequest(snapshot=f"{name}@8", sequence=f"{name}/restored"))]))
    assert mixed.done and item_error(mixed.results[0]) == (grpc.StatusCode.ALREADY_EXISTS, "NAME_EXISTS", "items[0].sequence")
    assert (mixed.results[1].info.position, mixed.results[2].info.position) == (8, 8)

    for change, reason in ((dict(items=items(0), data=data + b"x"), "BYTES_LENGTH_MISMATCH"), (dict(), "MISSING_FIELD"),
                           (dict(items=[pb.BatchWriteItem(rollback=pb.RollbackRequest(sequence=name, position=8))] * 2), "DUPLICATE_NAME")):
        with pytest.raises(grpc.RpcError) as error:
            call.BatchWrite(pb.BatchWriteRequest(**change))
        assert reason_of(error.value) == reason


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


@pytest.mark.rpc("Touch")
def test_a_touch_is_a_use_and_misses_are_told_one_by_one(pb, call, layout, name):
    for each, options in ((name, pb.NameOptions(ttl={"seconds": 60})), (f"{name}/forever", pb.NameOptions(never_expire=True))):
        made = call.Create(pb.CreateRequest(sequence=each, layout="stock", options=options))
    before = call.Describe(pb.DescribeRequest(name=pb.NameRef(sequence=name)))
    touched = call.Touch(pb.TouchRequest(names=[pb.NameRef(sequence=n) for n in (name, f"{name}/never", f"{name}/forever", "a//b")]))
    idle, never, forever, bad = touched.names
    assert idle.expire_time.ToNanoseconds() > before.expire_time.ToNanoseconds() and not idle.HasField("error")
    assert item_error(never)[:2] == (grpc.StatusCode.NOT_FOUND, "NEVER_CREATED")
    assert not forever.HasField("expire_time") and not forever.HasField("error")
    assert item_error(bad)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")
    assert call.Describe(pb.DescribeRequest(name=pb.NameRef(sequence=f"{name}/forever"))).revision == made.revision
    with pytest.raises(grpc.RpcError) as error:
        call.Touch(pb.TouchRequest())
    assert (reason_of(error.value), error_info(error.value).metadata["field"]) == ("MISSING_FIELD", "names")


@pytest.mark.rpc("SetTtl")
def test_the_expiry_of_a_name_changes_alone(pb, call, written, name):
    ref = pb.NameRef(sequence=name)
    idle = call.SetTtl(pb.SetTtlRequest(name=ref, ttl={"seconds": 60}, if_revision=written.revision))
    assert idle.ttl.ToSeconds() == 60 and idle.HasField("expire_time") and idle.revision == written.revision and idle.version_id == written.version_id
    never = call.SetTtl(pb.SetTtlRequest(name=ref, never_expire=True))
    assert not never.HasField("ttl") and not never.HasField("expire_time")
    for change, reason in ((dict(), "MISSING_FIELD"), (dict(ttl={"seconds": -1}), "INVALID_OPTION"),
                           (dict(never_expire=True, if_revision=written.revision + 1), "REVISION_MISMATCH")):
        with pytest.raises(grpc.RpcError) as error:
            call.SetTtl(pb.SetTtlRequest(name=ref, **change))
        assert reason_of(error.value) == reason
    call.SetTtl(pb.SetTtlRequest(name=ref, ttl={"nanos": 10_000_000}))

    def gone():
        try:
            call.Describe(pb.DescribeRequest(name=ref))
        except grpc.RpcError as error:
            return reason_of(error)

    assert eventually(gone) == "EXPIRED"


@pytest.mark.rpc("DeleteMany")
def test_names_are_deleted_by_prefix_when_their_count_is_right(pb, call, written, name):
    call.Fork(pb.ForkRequest(source=pb.NameRef(sequence=name), children=[f"{name}/{i}" for i in range(3)]))
    preview = call.DeleteMany(pb.DeleteManyRequest(name_prefix=f"{name}/", preview=True))
    assert (preview.matched, preview.deleted, preview.state_bytes) == (3, 0, 70_000)  # one image
    assert list(preview.names) == [f"{name}/{i}" for i in range(3)]
    for change, code, reason, field in (
            (dict(name_prefix=f"{name}/", if_count=2), grpc.StatusCode.ABORTED, "COUNT_MISMATCH", "if_count"),
            (dict(), grpc.StatusCode.INVALID_ARGUMENT, "MISSING_FIELD", "name_prefix")):
        with pytest.raises(grpc.RpcError) as error:
            call.DeleteMany(pb.DeleteManyRequest(**change))
        assert (error.value.code(), reason_of(error.value), error_info(error.value).metadata["field"]) == (code, reason, field)
    kept = call.DeleteMany(pb.DeleteManyRequest(name_prefix=f"{name}/", keep=[f"{name}/1", f"{name}/absent"]))
    assert (kept.matched, kept.deleted, list(kept.names)) == (2, 2, [f"{name}/0", f"{name}/2"])
    done = call.DeleteMany(pb.DeleteManyRequest(kind=pb.SEQUENCE, name_prefix=f"{name}/", if_count=1))
    assert (done.matched, done.deleted) == (1, 1)
    assert not call.List(pb.ListRequest(name_prefix=f"{name}/")).names
    assert call.Get(pb.GetRequest(name=pb.NameRef(sequence=name))).data == image(8)


@pytest.mark.rpc("DeleteLayout")
def test_a_layout_is_deleted_when_no_name_has_it(pb, call, name):
    spec = pb.Layout(model_id=name, tensors=[pb.TensorSpec(name="s", kind=pb.OTHER, layers=[0], dtype=pb.UINT8, axes=[pb.Axis(name="x", size=9)])])
    fingerprint = call.RegisterLayout(pb.RegisterLayoutRequest(alias="unwanted", layout=spec)).fingerprint
    call.Create(pb.CreateRequest(sequence=name, layout="unwanted"))
    with pytest.raises(grpc.RpcError) as in_use:
        call.DeleteLayout(pb.DeleteLayoutRequest(layout="unwanted"))
    assert (in_use.value.code(), reason_of(in_use.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "LAYOUT_IN_USE")
    assert error_info(in_use.value).metadata["names"] == "1"
    call.Delete(pb.DeleteRequest(name=pb.NameRef(sequence=name)))
    assert call.DeleteLayout(pb.DeleteLayoutRequest(layout=fingerprint)).deleted
    assert not call.DeleteLayout(pb.DeleteLayoutRequest(layout="unwanted", allow_missing=True)).deleted
    for use in (lambda: call.GetLayout(pb.GetLayoutRequest(layout="unwanted")),
                lambda: call.DeleteLayout(pb.DeleteLayoutRequest(layout=fingerprint))):
        with pytest.raises(grpc.RpcError) as unknown:
            use()
        assert (unknown.value.code(), reason_of(unknown.value)) == (grpc.StatusCode.NOT_FOUND, "LAYOUT_UNKNOWN")


@pytest.mark.rpc("Rollback")
def test_a_rollback_moves_the_head_back_under_a_new_revision(pb, call, written, name):
    back = call.Rollback(pb.RollbackRequest(sequence=name, position=4, if_revision=written.revision, request_id="back"))
    assert back.position == 4 and back.checksum == checksum(image(4)) and back.revision > written.revision
    assert call.Get(pb.GetRequest(name=pb.NameRef(sequence=name))).data == image(4)


def test_a_rollback_by_tokens_goes_back_as_far_as_single_steps_lead(pb, call, written, name):
    for position in (9, 10):
        call.Set(pb.SetRequest(sequence=name, position=position, data=image(position)))
    assert call.Describe(pb.DescribeRequest(name=pb.NameRef(sequence=name))).rollback_tokens == 2
    with pytest.raises(grpc.RpcError) as refused:
        call.Rollback(pb.RollbackRequest(sequence=name, tokens=3))
    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "HISTORY_TOO_SHORT")
    back = call.Rollback(pb.RollbackRequest(sequence=name, tokens=2))
    assert back.checksum == checksum(image(8)) and not back.HasField("rollback_tokens")  # it is told where the history is


@pytest.mark.rpc("RemoveRange", "Renumber")
def test_ranges_of_tokens_are_removed_and_numbered_anew(pb, call, written, name):
    nothing = call.RemoveRange(pb.RemoveRangeRequest(sequence=name, begin=1, end=7))
    assert nothing.done and nothing.info.revision == written.revision
    refused = call.RemoveRange(pb.RemoveRangeRequest(sequence=name, begin=5, end=-1))
    assert not refused.done and refused.info.revision == written.revision
    moved = call.Renumber(pb.RenumberRequest(sequence=name, end=-1, add=2, request_id="add"))
    assert (moved.position, moved.checksum, moved.exactness) == (10, checksum(image(8)), pb.EDITED)
    assert [(v.position, v.checksum) for v in moved.history] == [(10, checksum(image(8))), (6, checksum(image(4)))]
    assert call.Renumber(pb.RenumberRequest(sequence=name, end=-1, add=2, request_id="add")).replayed
    back = call.RemoveRange(pb.RemoveRangeRequest(sequence=name, begin=6, end=-1, request_id="back"))
    assert back.done and (back.info.position, back.info.checksum) == (6, checksum(image(4)))
    assert call.RemoveRange(pb.RemoveRangeRequest(sequence=name, begin=6, end=-1, request_id="back")).info.replayed
    results = call.BatchWrite(pb.BatchWriteRequest(all_or_none=True, items=[
        pb.BatchWriteItem(fork=pb.ForkRequest(source=pb.NameRef(sequence=name), children=[f"{name}/child"])),
        pb.BatchWriteItem(renumber=pb.RenumberRequest(sequence=name, end=6, divide=5))])).results
    assert results[1].info.position == 2  # index 5 becomes 1
    gone = call.BatchWrite(pb.BatchWriteRequest(items=[
        pb.BatchWriteItem(remove_range=pb.RemoveRangeRequest(sequence=name, begin=1, end=-1)),
        pb.BatchWriteItem(remove_range=pb.RemoveRangeRequest(sequence=f"{name}/child", end=6))])).results
    assert not gone[0].remove_range.done and gone[0].remove_range.info.position == 2
    assert gone[1].remove_range.deleted and not gone[1].remove_range.HasField("info")
    again = call.RemoveRange(pb.RemoveRangeRequest(sequence=f"{name}/child", end=6, allow_missing=True))
    assert again.done and not again.deleted and not again.HasField("info")


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
    salted = call.PublishPrefix(pb.PublishPrefixRequest(tokens=tokens, source=pb.NameRef(sequence=name), salt=b"salt", **ask))
    assert salted.prefix != published.prefix and not salted.already_published
    assert call.MatchPrefix(pb.MatchPrefixRequest(tokens=[*tokens, 99], salt=b"salt", **ask)).matches[0].prefix == salted.prefix
    assert call.MatchPrefix(pb.MatchPrefixRequest(tokens=[*tokens, 99], salt=b"pepper", **ask)).miss_reason == "NEVER_PUBLISHED"


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


def retry_delay(error):
    """Seconds that the error's RetryInfo gives; fails if it has none."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.retry_delay.ToTimedelta().total_seconds()


def item_error(item):
    """Of an item of a batch: (code, reason, field)."""
    assert item.HasField("error")
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in item.error.details) and info.domain == "statepool.v1"
    return next(c for c in grpc.StatusCode if c.value[0] == item.error.code), info.reason, info.metadata.get("field", "")


@pytest.mark.rpc("OpenArena", "Load", "Store", "Advance", "CloseArena")
def test_states_are_loaded_into_memory_computed_on_there_and_stored(pb, call, written, name):
    arena = call.OpenArena(pb.OpenArenaRequest(layout="stock", rows=3, steps=2, view=pb.View(
        layers=pb.View.LAYER_MAJOR, axis_orders=[pb.AxisOrder(tensor="state", axes=["key", "head"])])))
    state, = arena.tensors
    assert list(state.axes) == ["layer", "row", "step", "key", "head"] and list(state.shape) == [2, 3, 2, 875, 10] and list(state.layers) == [0, 1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as lease:
        lease.settimeout(20)
        lease.connect("\0" + arena.socket[1:] if arena.socket.startswith("@") else arena.socket)
        lease.send(arena.token)
        _, (descriptor,), _, _ = socket.recv_fds(lease, 4096, 1)
        memory = mmap.mmap(descriptor, arena.bytes)
        os.close(descriptor)
        tensor = numpy.ndarray(tuple(state.shape), numpy.float32, memory, state.offset, tuple(state.strides))
        sequence = pb.NameRef(sequence=name)
        loaded = call.Load(pb.LoadRequest(arena=arena.arena, items=[
            pb.LoadItem(row=2, name=sequence, with_attachment=True), pb.LoadItem(row=0, name=sequence, position=4), pb.LoadItem(row=1, name=sequence, position=5)]))
        assert [row.info.position for row in loaded.rows] == [8, 4, 0] and loaded.rows[0].attachment == b"logits" and loaded.rows[0].copied
        assert item_error(loaded.rows[2]) == (grpc.StatusCode.NOT_FOUND, "POSITION_MISMATCH", "items[2].position")
        for row, position in ((2, 8), (0, 4)):
            expected = numpy.frombuffer(image(position), numpy.float32).reshape(2, 10, 875)
            assert tensor[:, row, 0].transpose(0, 2, 1).tobytes() == expected.tobytes()
        tensor[:, 2, 1] = 2 * tensor[:, 2, 0]
        stored = call.Store(pb.StoreRequest(arena=arena.arena, items=[
            pb.StoreItem(row=2, sequence=name, position=10, accepted_length=2), pb.StoreItem(row=0, sequence=f"{name}/copy", position=4)], all_or_none=True))
        assert stored.done and [row.info.position for row in stored.rows] == [10, 4]
        assert stored.rows[1].info.checksum == checksum(image(4))
        twice = (2 * numpy.frombuffer(image(8), numpy.float32)).tobytes()
        assert call.Get(pb.GetRequest(name=sequence)).data == twice and stored.rows[0].info.checksum == checksum(twice)
        tensor[:, 0, 1] = 5 * tensor[:, 0, 0]
        advanced = call.Advance(pb.AdvanceRequest(arena=arena.arena, skip_none=True, items=[
            pb.AdvanceItem(row=2, accepted_length=2), pb.AdvanceItem(row=0, path=[1], to_row=1)]))
        assert [row.outcome for row in advanced.rows] == [pb.AdvancedRow.MOVED] * 2
        assert tensor[:, 2, 0].transpose(0, 2, 1).tobytes() == twice and (tensor[:, 1, 0] == tensor[:, 0, 1]).all()
        skipped = call.Advance(pb.AdvanceRequest(arena=arena.arena, skip_none=True, items=[pb.AdvanceItem(row=2, accepted_length=0)]))
        assert [row.outcome for row in skipped.rows] == [pb.AdvancedRow.SKIPPED_NONE]
        del tensor
        memory.close()
        assert call.CloseArena(pb.CloseArenaRequest(arena=arena.arena)).closed


@pytest.mark.rpc("OpenDirect", "Grant")
@pytest.mark.flags("--direct")
def test_states_are_read_and_written_where_they_lie(pb, call, written, name):
    assert call.GetCapabilities(pb.GetCapabilitiesRequest()).copy_mode == "direct"
    sequence = pb.NameRef(sequence=name)
    direct = call.OpenDirect(pb.OpenDirectRequest())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as lease:
        lease.settimeout(20)
        lease.connect("\0" + direct.socket[1:] if direct.socket.startswith("@") else direct.socket)
        lease.send(direct.token)
        assert json.loads(lease.recv(4096)) == {"lease": direct.lease, "incarnation": direct.incarnation}

        def extent(slot, writable):
            lease.send(pb.LeaseRequest(extent=slot.extent).SerializeToString())
            answer, (descriptor,), _, _ = socket.recv_fds(lease, 4096, 1)
            event = pb.LeaseEvent.FromString(answer)
            assert (event.extent, event.writable) == (slot.extent, writable)
            memory = mmap.mmap(descriptor, event.bytes, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
            return descriptor, memory

        def bytes_of(memory, slot):
            return memory[slot.offset:slot.offset + 70_000]

        got = call.Get(pb.GetRequest(name=sequence, lease=direct.lease))
        assert (got.info.position, got.attachment, got.data, got.data_bytes) == (8, b"logits", b"", 70_000)
        descriptor, memory = extent(got.slot, writable=False)
        assert bytes_of(memory, got.slot) == image(8)
        granted, = call.Grant(pb.GrantRequest(lease=direct.lease, layout="stock", count=1)).slots
        own_descriptor, own = extent(granted, writable=True)
        own[granted.offset:granted.offset + 70_000] = image(12)
        info = call.Set(pb.SetRequest(sequence=name, position=12, lease=direct.lease, grant=granted.id, checksum=checksum(image(12))))
        assert (info.position, info.checksum) == (12, checksum(image(12)))
        assert call.Get(pb.GetRequest(name=sequence)).data == image(12)
        for sealed in (descriptor, own_descriptor):
            if DEVICES == "host":  # other memory has no seals
                with pytest.raises(PermissionError):
                    mmap.mmap(sealed, 4096, access=mmap.ACCESS_WRITE)
            os.close(sealed)
        again = call.Get(pb.GetRequest(name=sequence, lease=direct.lease)).slot
        assert (again.extent, again.offset) == (granted.extent, granted.offset) and bytes_of(own, again) == image(12)
        assert bytes_of(memory, got.slot) == image(8)  # as long as it is pinned
        lease.send(pb.LeaseRequest(unpin=[got.slot.id, again.id]).SerializeToString())
        memory.close()
        own.close()
