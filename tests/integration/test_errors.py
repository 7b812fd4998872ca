# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The table of errors in the .proto, row by row: each reason is provoked through stock generated stubs, and looks as the table says.

Each test is marked with the errors that it provokes. What no client can provoke stands in NOT_FROM_OUTSIDE, with the C++ test that has it."""
import contextlib
import os
import pathlib
import queue
import re
import socket
import shutil
import signal
import subprocess
import sys
import threading

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from daemon_process import REPOSITORY, Daemon, eventually
from wire import checksum, details_of, status_of

sys.path.append(str(REPOSITORY / "tests/bench"))
from error_table import Row, read_table  # noqa: E402

DOMAIN = "statepool.v1"
KIB, MIB = 1 << 10, 1 << 20
STATE_BYTES = 200_000  # three leaves and a bit

# What a client can't see, and where it is tested instead.
NOT_FROM_OUTSIDE = {
    # The client's own library answers first: its code is tested here, its reason there.
    ("DEADLINE_EXCEEDED", "DEADLINE"): "ServiceTest.ADeadlineThatPassesInTheQueueSaysSo",
    ("CANCELLED", "CANCELLED"): "Errors.ACancelledCallSaysSo",
    ("UNAVAILABLE", "DEVICE_FAILED"): "DeviceArenasTest.ADeviceThatFailedSaysSoAndSpoilsNothing",
    # A defect is planted below the service.
    ("INTERNAL", "INTERNAL"): "ServiceTest.WhatNoRowOfTheTableSaysIsADefect",
}


# ---- the table

TABLE = read_table()
ROWS = {error: row for row in TABLE for error in row.errors()}


def test_the_table_is_read_whole():
    assert len(TABLE) > 40 and len(ROWS) == sum(len(row.errors()) for row in TABLE), "an error stands twice"
    assert ROWS["ABORTED", "UPLOAD_BUSY"] == Row("the same upload goes on in another call", True, ("ABORTED",), ("UPLOAD_BUSY",), ("request_id",))
    assert ROWS["CANCELLED", "CANCELLED"].reasons == ("DEADLINE", "CANCELLED")
    assert ROWS["NOT_FOUND", "LAYOUT_MISMATCH"].keys == ("layout", "expected", "actual")
    for name in {error for error in ROWS}:
        grpc.StatusCode[name[0]]


def test_every_error_of_the_table_is_provoked():
    marked = {error for test in globals().values() for mark in getattr(test, "pytestmark", ()) if mark.name == "provokes" for error in mark.args}
    assert marked | set(NOT_FROM_OUTSIDE) == set(ROWS)
    tests = {f"{suite}.{test}" for path in pathlib.Path(REPOSITORY, "tests/unit").rglob("*_test.cc")
             for suite, test in re.findall(r"TEST(?:_F|_P)?\((\w+), (\w+)\)", path.read_text())}
    assert set(NOT_FROM_OUTSIDE.values()) <= tests


# ---- looking at errors

class Errors:
    """What a test provoked, each held against its row of the table."""

    def __init__(self):
        self.seen = set()

    def check(self, status, reason, field=None):
        """A google.rpc.Status, of a call or of an item. Gives the metadata."""
        info, = details_of(status, error_details_pb2.ErrorInfo)
        code = next(c.name for c in grpc.StatusCode if c.value[0] == status.code)
        assert (info.reason, info.domain) == (reason, DOMAIN), status
        assert (code, reason) in ROWS, f"{code} / {reason} is no row of the table"
        row = ROWS[code, reason]
        assert len(status.message) > 10
        retry = details_of(status, error_details_pb2.RetryInfo)
        assert len(retry) == row.retry, f"{row}: {status}"
        assert not retry or retry[0].retry_delay.ToNanoseconds() > 0
        at_fault = info.metadata.get("field", "")
        for key in row.keys:
            if key == "the field":
                assert at_fault, f"{row}: {status}"
            else:
                assert info.metadata.get(key) or re.sub(r"\[\d+\]$", "", at_fault).split(".")[-1] == key, f"{row}: {status}"
        if field is not None:
            assert at_fault == field, status
        self.seen.add((code, reason))
        return info.metadata

    @contextlib.contextmanager
    def expected(self, code, reason, field=None):
        """The block raises this error."""
        with pytest.raises(grpc.RpcError) as raised:
            yield
        assert raised.value.code() == grpc.StatusCode[code], raised.value
        self.check(status_of(raised.value), reason, field)


@pytest.fixture
def errors(request):
    """After the test: it provoked all that it is marked with."""
    errors = Errors()
    yield errors
    assert {error for mark in request.node.iter_markers("provokes") for error in mark.args} <= errors.seen


# ---- talking to daemons

class Client:
    """The stub, with a deadline for each call, and the words that all tests need."""

    def __init__(self, stubs, address):
        self.pb = stubs.pb
        self.channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
                                                       ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0),
                                                       # A window that grew would take in a stream that nobody reads.
                                                       ("grpc.http2.bdp_probe", 0)])
        self.stub = stubs.grpc.StatePoolStub(self.channel)

    def __getattr__(self, method):
        return lambda message, timeout=30: getattr(self.stub, method)(message, timeout=timeout)

    def register(self, alias="m", state_bytes=STATE_BYTES, model_id=None):
        pb = self.pb
        return self.RegisterLayout(pb.RegisterLayoutRequest(alias=alias, layout=pb.Layout(model_id=model_id or alias, tensors=[
            pb.TensorSpec(name="t", kind=pb.RECURRENT, layers=[0], dtype=pb.UINT8, axes=[pb.Axis(name="a", size=state_bytes)])])))

    def create(self, sequence, layout="m", **options):
        return self.Create(self.pb.CreateRequest(sequence=sequence, layout=layout, options=self.pb.NameOptions(**options)))

    def set(self, sequence, position=1, data=None, layout="m", request_id="", options=None, **fields):
        pb = self.pb
        return self.Set(pb.SetRequest(sequence=sequence, layout=layout, position=position, data=state(position) if data is None else data,
                                      request_id=request_id, options=pb.NameOptions(**(options or {})), **fields))

    def ref(self, sequence):
        return self.pb.NameRef(sequence=sequence)

    def describe(self, sequence):
        return self.Describe(self.pb.DescribeRequest(name=self.ref(sequence)))

    def get(self, sequence, **fields):
        return self.Get(self.pb.GetRequest(name=self.ref(sequence), **fields))


class Upload:
    """A SetStream that goes on until it is told to end."""

    def __init__(self, client, sequence, layout="m", request_id="", position=1, timeout=60):
        self.client, self.offset = client, 0
        self.messages = queue.Queue()
        self.call = client.stub.SetStream.future(iter(self.messages.get, None), timeout=timeout)
        self.messages.put(client.pb.SetChunk(head=client.pb.SetRequest(sequence=sequence, layout=layout, position=position, request_id=request_id)))

    def send(self, data, **fields):
        fields = {"offset": self.offset, "checksum": checksum(data), **fields}
        self.messages.put(self.client.pb.SetChunk(data=data, **fields))
        self.offset += len(data)

    def wait_until_known(self, sequence, request_id):
        """Until the daemon has begun it."""
        request = self.client.pb.GetUploadRequest(sequence=sequence, request_id=request_id)

        def known():
            with contextlib.suppress(grpc.RpcError):
                return self.client.GetUpload(request)

        eventually(known)

    def result(self):
        self.messages.put(None)
        return self.call.result(timeout=30)


def state(n, size=STATE_BYTES):
    return bytes([n % 251]) * size


@pytest.fixture
def connect(stubs):
    clients = []

    def connect(daemon):
        clients.append(Client(stubs, daemon.address))
        return clients[-1]

    yield connect
    for client in clients:
        client.channel.close()


@pytest.fixture
def start(tmp_path, connect):
    """Starts a daemon with these flags, and gives it and a client with the layout "m"."""
    daemons = []

    def start(*flags, state_bytes=STATE_BYTES, env=None):
        daemons.append(Daemon(tmp_path / str(len(daemons)), *flags, env=env))
        daemons[-1].directory.mkdir()
        client = connect(daemons[-1].start())
        client.register(state_bytes=state_bytes)
        return daemons[-1], client

    yield start
    for daemon in daemons:
        if daemon.process is not None:
            daemon.stop()


@pytest.fixture
def client(daemon, connect):
    client = connect(daemon)
    client.register()
    return client


# ---- requests that make no sense

@pytest.mark.provokes(("INVALID_ARGUMENT", "MALFORMED_REQUEST"))
def test_a_request_that_is_far_too_large_is_malformed(client, errors):
    with errors.expected("INVALID_ARGUMENT", "MALFORMED_REQUEST"):
        client.describe("x" * (2 * MIB))


@pytest.mark.provokes(("INVALID_ARGUMENT", "MISSING_FIELD"))
def test_required_fields(pb, client, errors, name):
    for method, request, field in [
            ("Describe", pb.DescribeRequest(), "name"),
            ("Create", pb.CreateRequest(sequence=name), "layout"),
            ("Set", pb.SetRequest(sequence=name, data=b"x"), "layout"),
            ("Set", pb.SetRequest(sequence=name, layout="m", select=pb.Select()), "if_revision"),
            ("RegisterLayout", pb.RegisterLayoutRequest(), "layout"),
            ("DeleteLayout", pb.DeleteLayoutRequest(), "layout"),
            ("Fork", pb.ForkRequest(children=[name]), "source"),
            ("Fork", pb.ForkRequest(source=client.ref(name)), "children"),
            ("PublishPrefix", pb.PublishPrefixRequest(layout="m", source=client.ref(name)), "tokens"),
            ("BatchGet", pb.BatchGetRequest(), "items"),
            ("BatchWrite", pb.BatchWriteRequest(), "items"),
            ("Touch", pb.TouchRequest(), "names"),
            ("DeleteMany", pb.DeleteManyRequest(), "name_prefix"),
            ("SetTtl", pb.SetTtlRequest(name=client.ref(name)), None),
            ("Renumber", pb.RenumberRequest(sequence=name, end=-1), "change"),
            ("GetUpload", pb.GetUploadRequest(sequence=name), "request_id")]:
        with errors.expected("INVALID_ARGUMENT", "MISSING_FIELD", field):
            getattr(client, method)(request)
    with errors.expected("INVALID_ARGUMENT", "MISSING_FIELD", "head"):
        client.stub.SetStream(iter([pb.SetChunk(data=b"x")]), timeout=30)
    with errors.expected("INVALID_ARGUMENT", "MISSING_FIELD", "get.version_id"):
        list(client.GetStream(pb.GetStreamRequest(get=pb.GetRequest(name=client.ref(name)), offset=64 * KIB)))


@pytest.mark.provokes(("INVALID_ARGUMENT", "INVALID_NAME"))
def test_names(pb, client, errors):
    for bad in ("", "a/../b", "a//b", "line\nbreak", "x" * 513):
        with errors.expected("INVALID_ARGUMENT", "INVALID_NAME", "sequence"):
            client.create(bad)
        with errors.expected("INVALID_ARGUMENT", "INVALID_NAME", "name"):
            client.describe(bad)
    with errors.expected("INVALID_ARGUMENT", "INVALID_NAME", "alias"):
        client.register("f" * 64)
    with errors.expected("INVALID_ARGUMENT", "INVALID_NAME", "name"):
        client.Describe(pb.DescribeRequest(name=pb.NameRef(prefix="no hex digits")))
    with errors.expected("INVALID_ARGUMENT", "INVALID_NAME", "keep[1]"):
        client.DeleteMany(pb.DeleteManyRequest(name_prefix="nothing/", keep=["a", "a//b"]))


@pytest.mark.provokes(("INVALID_ARGUMENT", "INVALID_POSITION"))
def test_positions(pb, client, errors, name):
    for position in (-1, 2**53 + 1):
        with errors.expected("INVALID_ARGUMENT", "INVALID_POSITION", "position"):
            client.set(name, position)
        with errors.expected("INVALID_ARGUMENT", "INVALID_POSITION", "position"):
            client.get(name, position=position)
    client.set(name, 2**53)
    with pytest.raises(grpc.RpcError) as raised:
        client.Renumber(pb.RenumberRequest(sequence=name, end=-1, add=1))
    assert errors.check(status_of(raised.value), "INVALID_POSITION", "add")["position"] == str(2**53)


@pytest.mark.provokes(("INVALID_ARGUMENT", "INVALID_OPTION"))
def test_options(pb, client, errors, name):
    invalid = ("INVALID_ARGUMENT", "INVALID_OPTION")
    client.create(name)
    for field, options in {"max_history": {"max_history": 0}, "ttl": {"ttl": duration_pb2.Duration(seconds=0)},
                           "expire_time": {"expire_time": {"seconds": 1}}}.items():
        with errors.expected(*invalid, f"options.{field}"):
            client.create(f"{name}/new", **options)
    with errors.expected(*invalid, "ttl"):
        client.SetTtl(pb.SetTtlRequest(name=client.ref(name), ttl=duration_pb2.Duration(seconds=-1)))
    with errors.expected(*invalid, "request_id"):
        client.set(name, request_id="x" * 65)
    with errors.expected(*invalid, "checksum"):
        client.set(name, checksum="no hex digits")
    with errors.expected(*invalid, "attachment"):
        client.set(name, attachment=bytes(MIB + 1))
    with errors.expected(*invalid, "tokens"):
        client.Rollback(pb.RollbackRequest(sequence=name, tokens=-1))
    with errors.expected(*invalid, "tokens"):
        client.Rollback(pb.RollbackRequest(sequence=name, tokens=0, position=1))
    with errors.expected(*invalid, "divide"):
        client.Renumber(pb.RenumberRequest(sequence=name, end=-1, divide=0))
    with errors.expected(*invalid, "page_size"):
        client.List(pb.ListRequest(page_size=100_000))
    with errors.expected(*invalid, "page_token"):
        client.List(pb.ListRequest(page_token="made up, and long enough"))
    with errors.expected(*invalid, "select.tensors[0]"):
        client.get(name, select=pb.Select(tensors=["absent"]))
    with errors.expected(*invalid, "select.layers[0]"):
        client.get(name, select=pb.Select(layers=[7]))
    with errors.expected(*invalid, "chunk_bytes"):
        list(client.GetStream(pb.GetStreamRequest(get=pb.GetRequest(name=client.ref(name)), chunk_bytes=1)))


@pytest.mark.provokes(("INVALID_ARGUMENT", "INVALID_LAYOUT"))
def test_layouts_that_make_no_sense(pb, client, errors):
    with errors.expected("INVALID_ARGUMENT", "INVALID_LAYOUT"):
        client.register("empty axis", state_bytes=0)
    with errors.expected("INVALID_ARGUMENT", "INVALID_LAYOUT"):
        client.RegisterLayout(pb.RegisterLayoutRequest(preset=pb.LayoutPreset(model_id="x", mamba2=pb.Mamba2Preset(layers=1))))


@pytest.mark.provokes(("INVALID_ARGUMENT", "BYTES_LENGTH_MISMATCH"), ("INVALID_ARGUMENT", "CHECKSUM_MISMATCH"))
def test_bytes_that_are_not_what_they_should_be(pb, client, errors, name):
    for data in (b"", state(1)[:-1], state(1) + b"x"):
        with errors.expected("INVALID_ARGUMENT", "BYTES_LENGTH_MISMATCH", "data"):
            client.set(name, data=data)
    with errors.expected("INVALID_ARGUMENT", "CHECKSUM_MISMATCH", "checksum"):
        client.set(name, checksum="0" * 16)
    upload = Upload(client, name)
    upload.send(state(1)[:128 * KIB])
    with errors.expected("INVALID_ARGUMENT", "BYTES_LENGTH_MISMATCH", "data"):
        upload.result()
    upload = Upload(client, name)
    upload.send(state(1)[:64 * KIB], checksum="0" * 16)
    with errors.expected("INVALID_ARGUMENT", "CHECKSUM_MISMATCH", "checksum"):
        upload.result()
    with errors.expected("INVALID_ARGUMENT", "BYTES_LENGTH_MISMATCH", "data"):
        client.BatchWrite(pb.BatchWriteRequest(items=[pb.BatchWriteItem(set=pb.SetRequest(sequence=name, layout="m"), data_bytes=7)], data=b"x"))


@pytest.mark.provokes(("INVALID_ARGUMENT", "DUPLICATE_NAME"), ("ABORTED", "BATCH_ABORTED"))
def test_batches(pb, client, errors, name):
    with errors.expected("INVALID_ARGUMENT", "DUPLICATE_NAME", "children[1]"):
        client.Fork(pb.ForkRequest(source=client.ref(name), children=[name, name]))
    delete = pb.BatchWriteItem(delete=pb.DeleteRequest(name=client.ref(name), allow_missing=True))
    create = pb.BatchWriteItem(create=pb.CreateRequest(sequence=f"{name}/new", layout="m"))
    nothing = pb.BatchWriteItem(create=pb.CreateRequest(sequence=f"{name}/x", layout="m", options=pb.NameOptions(durability=99)))
    with errors.expected("INVALID_ARGUMENT", "DUPLICATE_NAME", "items[2]"):
        client.BatchWrite(pb.BatchWriteRequest(items=[nothing, delete, delete]))
    refused = client.BatchWrite(pb.BatchWriteRequest(items=[create, nothing], all_or_none=True))
    assert not refused.done
    errors.check(refused.results[0].error, "BATCH_ABORTED")
    errors.check(refused.results[1].error, "INVALID_OPTION", "items[1].options.durability")
    absent = pb.BatchWriteItem(delete=pb.DeleteRequest(name=client.ref(name)))
    refused = client.BatchWrite(pb.BatchWriteRequest(items=[create, absent], all_or_none=True))
    assert not refused.done
    errors.check(refused.results[0].error, "BATCH_ABORTED")
    errors.check(refused.results[1].error, "NEVER_CREATED", "items[1].name")
    done = client.BatchWrite(pb.BatchWriteRequest(items=[absent, create]))
    assert done.done and done.results[1].info.position == 0
    errors.check(done.results[0].error, "NEVER_CREATED", "items[0].name")
    got = client.BatchGet(pb.BatchGetRequest(items=[pb.GetRequest(name=client.ref(f"{name}/new")), pb.GetRequest(name=client.ref(name))]))
    assert got.data == bytes(STATE_BYTES)
    errors.check(got.items[1].error, "NEVER_CREATED", "items[1].name")
    touched = client.Touch(pb.TouchRequest(names=[client.ref(f"{name}/new"), client.ref(name), client.ref("a//b"), pb.NameRef()]))
    assert not touched.names[0].HasField("error")
    errors.check(touched.names[1].error, "NEVER_CREATED", "names[1]")
    errors.check(touched.names[2].error, "INVALID_NAME", "names[2]")
    errors.check(touched.names[3].error, "MISSING_FIELD", "names[3]")


@pytest.mark.provokes(("INVALID_ARGUMENT", "REQUEST_ID_REUSED"))
def test_request_ids(pb, client, errors, name):
    client.set(name, 1, request_id="id")
    with errors.expected("INVALID_ARGUMENT", "REQUEST_ID_REUSED", "request_id"):
        client.set(name, 2, request_id="id")
    upload = Upload(client, name, request_id="up", position=3)
    upload.send(state(3)[:64 * KIB])
    with pytest.raises(grpc.RpcError):
        upload.result()
    with errors.expected("INVALID_ARGUMENT", "REQUEST_ID_REUSED", "head.request_id"):
        Upload(client, name, request_id="up", position=4).result()


@pytest.mark.provokes(("INVALID_ARGUMENT", "OFFSET_MISMATCH"))
def test_offsets(pb, client, errors, name):
    version = client.set(name).version_id
    for offset in (1, 4 * MIB):
        with errors.expected("INVALID_ARGUMENT", "OFFSET_MISMATCH", "offset"):
            list(client.GetStream(pb.GetStreamRequest(get=pb.GetRequest(name=client.ref(name), version_id=version), offset=offset)))
    upload = Upload(client, name)
    upload.send(state(1)[:64 * KIB], offset=64 * KIB)
    with errors.expected("INVALID_ARGUMENT", "OFFSET_MISMATCH", "offset"):
        upload.result()


@pytest.mark.provokes(("INVALID_ARGUMENT", "TOO_MANY"))
def test_counts(pb, client, errors, name):
    limits = client.GetCapabilities(pb.GetCapabilitiesRequest())
    items = [client.ref(f"{name}/{i}") for i in range(limits.max_batch + 1)]
    children = [r.sequence for r in items] + [f"{name}/x/{i}" for i in range(limits.max_children - limits.max_batch)]
    for method, request, field, limit in [
            ("Touch", pb.TouchRequest(names=items), "names", limits.max_batch),
            ("BatchGet", pb.BatchGetRequest(items=[pb.GetRequest(name=r) for r in items]), "items", limits.max_batch),
            ("BatchWrite", pb.BatchWriteRequest(items=[pb.BatchWriteItem(delete=pb.DeleteRequest(name=r)) for r in items]), "items", limits.max_batch),
            ("BatchWrite", pb.BatchWriteRequest(items=[pb.BatchWriteItem()] * len(items)), "items", limits.max_batch),
            ("Fork", pb.ForkRequest(source=client.ref(name), children=children), "children", limits.max_children),
            ("Flush", pb.FlushRequest(names=[client.ref(c) for c in children]), "names", limits.max_children),
            ("DeleteMany", pb.DeleteManyRequest(name_prefix=name, keep=children), "keep", limits.max_children),
            ("MatchPrefix", pb.MatchPrefixRequest(layout="m", tokens=[1] * (limits.max_tokens + 1)), "tokens", limits.max_tokens)]:
        with pytest.raises(grpc.RpcError) as raised:
            getattr(client, method)(request)
        assert errors.check(status_of(raised.value), "TOO_MANY", field)["limit"] == str(limit)


# ---- what exists, and what does not

@pytest.mark.provokes(("NOT_FOUND", "LAYOUT_UNKNOWN"), ("ALREADY_EXISTS", "LAYOUT_ALIAS_TAKEN"), ("FAILED_PRECONDITION", "LAYOUT_IN_USE"))
def test_layouts(pb, client, errors, name):
    with errors.expected("NOT_FOUND", "LAYOUT_UNKNOWN", "layout"):
        client.GetLayout(pb.GetLayoutRequest(layout="absent"))
    with errors.expected("NOT_FOUND", "LAYOUT_UNKNOWN", "layout"):
        client.create(name, layout="absent")
    taken = client.register(name, 100)
    with pytest.raises(grpc.RpcError) as raised:
        client.register(name, 101)
    assert errors.check(status_of(raised.value), "LAYOUT_ALIAS_TAKEN", "alias")["fingerprint"] == taken.fingerprint
    client.create(name, layout=name)
    with pytest.raises(grpc.RpcError) as raised:
        client.DeleteLayout(pb.DeleteLayoutRequest(layout=name))
    assert errors.check(status_of(raised.value), "LAYOUT_IN_USE", "layout")["names"] == "1"
    client.Delete(pb.DeleteRequest(name=client.ref(name)))
    assert client.DeleteLayout(pb.DeleteLayoutRequest(layout=name)).deleted
    with errors.expected("NOT_FOUND", "LAYOUT_UNKNOWN", "layout"):
        client.DeleteLayout(pb.DeleteLayoutRequest(layout=name))


@pytest.mark.provokes(("ALREADY_EXISTS", "NAME_EXISTS"))
def test_names_that_exist(pb, client, errors, name):
    revision = client.create(name).revision
    snapshot = client.Snapshot(pb.SnapshotRequest(source=client.ref(name), snapshot=name)).revision
    for method, request, field, of in [
            ("Create", pb.CreateRequest(sequence=name, layout="m"), "sequence", revision),
            ("Fork", pb.ForkRequest(source=client.ref(name), children=[f"{name}/new", name]), "children[1]", revision),
            ("Snapshot", pb.SnapshotRequest(source=client.ref(name), snapshot=name), "snapshot", snapshot)]:
        with pytest.raises(grpc.RpcError) as raised:
            getattr(client, method)(request)
        assert errors.check(status_of(raised.value), "NAME_EXISTS", field)["revision"] == str(of)


@pytest.mark.provokes(("NOT_FOUND", "NEVER_CREATED"), ("NOT_FOUND", "NEVER_PUBLISHED"), ("NOT_FOUND", "EXPIRED"), ("NOT_FOUND", "DELETED"))
def test_misses(pb, client, errors, name):
    with errors.expected("NOT_FOUND", "NEVER_CREATED", "name"):
        client.get(name)
    with errors.expected("NOT_FOUND", "NEVER_PUBLISHED", "name"):
        client.Describe(pb.DescribeRequest(name=pb.NameRef(prefix="0" * 32)))
    with errors.expected("NOT_FOUND", "NEVER_CREATED", "source"):
        client.Fork(pb.ForkRequest(source=client.ref(name), children=[f"{name}/new"]))
    with errors.expected("NOT_FOUND", "NEVER_CREATED", "snapshot"):
        client.Restore(pb.RestoreRequest(snapshot=name, sequence=name))
    with errors.expected("NOT_FOUND", "NEVER_CREATED", "sequence"):
        client.Rollback(pb.RollbackRequest(sequence=name, position=1))
    with errors.expected("NOT_FOUND", "NEVER_CREATED", "sequence"):
        client.RemoveRange(pb.RemoveRangeRequest(sequence=name, end=-1))
    with errors.expected("NOT_FOUND", "NEVER_CREATED", "sequence"):
        client.Renumber(pb.RenumberRequest(sequence=name, end=-1, add=1))
    with errors.expected("NOT_FOUND", "NEVER_CREATED", "names"):
        client.Flush(pb.FlushRequest(names=[client.ref(name)]))
    client.create(name)
    client.Delete(pb.DeleteRequest(name=client.ref(name)))
    with errors.expected("NOT_FOUND", "DELETED", "name"):
        client.get(name)
    client.create(name, ttl=duration_pb2.Duration(nanos=1_000_000))

    def expired():
        with contextlib.suppress(grpc.RpcError):
            return not client.describe(name)
        return True

    eventually(expired)
    with errors.expected("NOT_FOUND", "EXPIRED", "name"):
        client.get(name)


@pytest.mark.provokes(("NOT_FOUND", "LAYOUT_MISMATCH"), ("NOT_FOUND", "POSITION_MISMATCH"), ("NOT_FOUND", "VERSION_MISMATCH"))
def test_reads_that_ask_for_something_else(pb, client, errors, name):
    mine, other = client.register(), client.register("other", 100)
    client.set(name, 3)
    client.set(name, 5)
    with pytest.raises(grpc.RpcError) as raised:
        client.get(name, layout="other")
    told = errors.check(status_of(raised.value), "LAYOUT_MISMATCH", "layout")
    assert (told["expected"], told["actual"]) == (other.fingerprint, mine.fingerprint)
    with pytest.raises(grpc.RpcError) as raised:
        client.get(name, position=4)
    assert errors.check(status_of(raised.value), "POSITION_MISMATCH", "position")["positions"] == "5,3"
    with errors.expected("NOT_FOUND", "VERSION_MISMATCH", "version_id"):
        client.get(name, version_id=1)


@pytest.mark.provokes(("FAILED_PRECONDITION", "LAYOUT_MISMATCH"), ("FAILED_PRECONDITION", "POSITION_MISMATCH"),
                      ("FAILED_PRECONDITION", "HISTORY_TOO_SHORT"))
def test_writes_that_do_not_fit_the_name(pb, client, errors, name):
    client.register("other", 100)
    client.set(name, 3)
    with errors.expected("FAILED_PRECONDITION", "LAYOUT_MISMATCH", "layout"):
        client.set(name, 4, layout="other", data=state(4, 100))
    with errors.expected("FAILED_PRECONDITION", "LAYOUT_MISMATCH", "layout"):
        client.PublishPrefix(pb.PublishPrefixRequest(layout="other", tokens=[1, 2, 3], source=client.ref(name)))
    with pytest.raises(grpc.RpcError) as raised:
        client.PublishPrefix(pb.PublishPrefixRequest(layout="m", tokens=[1, 2], source=client.ref(name)))
    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert errors.check(status_of(raised.value), "POSITION_MISMATCH", "tokens")["positions"] == "3"
    client.set(name, 4)
    with pytest.raises(grpc.RpcError) as raised:
        client.Rollback(pb.RollbackRequest(sequence=name, tokens=2))
    assert errors.check(status_of(raised.value), "HISTORY_TOO_SHORT", "tokens")["available"] == "1"


@pytest.mark.provokes(("ABORTED", "REVISION_MISMATCH"), ("ABORTED", "COUNT_MISMATCH"))
def test_conditions_that_do_not_hold(pb, client, errors, name):
    revision = client.create(name).revision
    for method, request in [
            ("Set", pb.SetRequest(sequence=name, data=state(1), if_revision=1)),
            ("Delete", pb.DeleteRequest(name=client.ref(name), if_revision=0)),
            ("SetTtl", pb.SetTtlRequest(name=client.ref(name), never_expire=True, if_revision=1)),
            ("Rollback", pb.RollbackRequest(sequence=name, position=0, if_revision=1)),
            ("RemoveRange", pb.RemoveRangeRequest(sequence=name, end=-1, if_revision=1)),
            ("Renumber", pb.RenumberRequest(sequence=name, end=-1, add=1, if_revision=1))]:
        with pytest.raises(grpc.RpcError) as raised:
            getattr(client, method)(request)
        assert errors.check(status_of(raised.value), "REVISION_MISMATCH", "if_revision")["revision"] == str(revision)
    with pytest.raises(grpc.RpcError) as raised:
        client.DeleteMany(pb.DeleteManyRequest(name_prefix=name, if_count=2))
    assert errors.check(status_of(raised.value), "COUNT_MISMATCH", "if_count")["count"] == "1"


# ---- streams

@pytest.mark.provokes(("ABORTED", "UPLOAD_BUSY"), ("NOT_FOUND", "UPLOAD_UNKNOWN"))
def test_uploads(pb, client, errors, name):
    with errors.expected("NOT_FOUND", "UPLOAD_UNKNOWN", "request_id"):
        client.GetUpload(pb.GetUploadRequest(sequence=name, request_id="up"))
    with errors.expected("NOT_FOUND", "UPLOAD_UNKNOWN", "head.request_id"):
        head = pb.SetRequest(sequence=name, layout="m", position=1, request_id="up")
        client.stub.SetStream(iter([pb.SetChunk(head=head, offset=64 * KIB)]), timeout=30)
    upload = Upload(client, name, request_id="up")
    upload.wait_until_known(name, "up")
    with errors.expected("ABORTED", "UPLOAD_BUSY", "head.request_id"):  # from offset 0 it would take over
        client.stub.SetStream(iter([pb.SetChunk(head=head, offset=64 * KIB)]), timeout=30)
    upload.send(state(1))
    assert upload.result().position == 1


@pytest.mark.provokes(("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS"), ("RESOURCE_EXHAUSTED", "HOT_FULL"), ("DEADLINE_EXCEEDED", "STALLED"))
def test_uploads_that_fill_what_there_is(start, errors):
    size = 4 * MIB
    _, client = start(f"--hot-bytes={3 * size}", f"--chunk-bytes={2 * MIB}", "--max-uploads=3", "--stream-timeout=2s", "--upload-timeout=1s",
                      state_bytes=size)
    uploads = []
    for i in range(2):
        uploads.append(Upload(client, f"up{i}", request_id="up"))
        uploads[-1].wait_until_known(f"up{i}", "up")
    with errors.expected("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS"):  # in bytes: seven eighths of the hot budget
        Upload(client, "up2", request_id="up").result()
    client.register("small", STATE_BYTES)
    uploads.append(Upload(client, "small", layout="small", request_id="up"))
    uploads[-1].wait_until_known("small", "up")
    with errors.expected("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS"):  # in number
        Upload(client, "small2", layout="small", request_id="up").result()
    with errors.expected("RESOURCE_EXHAUSTED", "HOT_FULL"):
        client.set("a", data=state(1, size))
    for upload in uploads:
        with errors.expected("DEADLINE_EXCEEDED", "STALLED"):
            upload.call.result(timeout=30)
    eventually(lambda: fits(client, size))


def created(client, sequence):
    with contextlib.suppress(grpc.RpcError):
        return client.create(sequence)


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def fits(client, size):
    with contextlib.suppress(grpc.RpcError):
        return client.set("a", data=state(1, size))


# ---- limits

@pytest.mark.provokes(("RESOURCE_EXHAUSTED", "ADMISSION"), ("RESOURCE_EXHAUSTED", "STATE_TOO_LARGE"), ("RESOURCE_EXHAUSTED", "TOO_MANY_NAMES"),
                      ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"))
def test_limits_of_bytes_and_names(pb, start, errors):
    _, client = start("--max-bytes-in-flight=5MiB", "--max-message-bytes=4MiB", "--hot-bytes=32MiB", "--max-names=3")
    client.register("large", 16 * MIB)
    client.register("huge", 64 * MIB)
    with errors.expected("RESOURCE_EXHAUSTED", "STATE_TOO_LARGE"):
        client.create("huge", layout="huge")
    with errors.expected("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"):
        client.set("a", data=bytes(5 * MIB + 1))
    client.create("large", layout="large")
    unread = client.GetStream(pb.GetStreamRequest(get=pb.GetRequest(name=client.ref("large")), chunk_bytes=2 * MIB))  # two chunks in flight
    next(unread)
    # The second chunk is read a moment later.
    eventually(lambda: code_of(lambda: client.set("a", data=bytes(2 * MIB))) == grpc.StatusCode.RESOURCE_EXHAUSTED)
    with errors.expected("RESOURCE_EXHAUSTED", "ADMISSION"):
        client.set("a", data=bytes(2 * MIB))
    unread.cancel()
    # Its bytes come back a moment later.
    eventually(lambda: code_of(lambda: client.set("a", data=bytes(2 * MIB))) != grpc.StatusCode.RESOURCE_EXHAUSTED)
    with errors.expected("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"):
        client.get("large")
    with errors.expected("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"):
        client.BatchGet(pb.BatchGetRequest(items=[pb.GetRequest(name=client.ref("large"))]))
    assert sum(len(chunk.data) for chunk in client.GetStream(pb.GetStreamRequest(get=pb.GetRequest(name=client.ref("large"))))) == 16 * MIB
    for other in ("a", "b"):
        client.create(other)
    with errors.expected("RESOURCE_EXHAUSTED", "TOO_MANY_NAMES"):
        client.create("c")


@contextlib.contextmanager
def connected(opened):
    """The connection of an arena or a direct lease: its id."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(re.sub("^@", "\0", opened.socket))
        connection.send(opened.token)
        _, descriptors, _, _ = socket.recv_fds(connection, 4096, 2)
        for descriptor in descriptors:
            os.close(descriptor)
        yield opened.arena if hasattr(opened, "arena") else opened.lease


@pytest.mark.provokes(("INVALID_ARGUMENT", "INVALID_VIEW"), ("INVALID_ARGUMENT", "ROW_OUT_OF_RANGE"), ("INVALID_ARGUMENT", "DUPLICATE_ROW"),
                      ("INVALID_ARGUMENT", "INVALID_ACCEPTED_LENGTH"), ("INVALID_ARGUMENT", "INVALID_PATH"), ("FAILED_PRECONDITION", "ROW_NOT_LOADED"),
                      ("FAILED_PRECONDITION", "ARENA_NOT_CONNECTED"), ("NOT_FOUND", "ARENA_UNKNOWN"))
def test_requests_of_arenas_that_make_no_sense(pb, client, errors):
    client.set("a")
    with errors.expected("INVALID_ARGUMENT", "INVALID_VIEW", "view.conv_padding"):
        client.OpenArena(pb.OpenArenaRequest(layout="m", rows=1, view=pb.View(conv_padding=1)))
    opened = client.OpenArena(pb.OpenArenaRequest(layout="m", rows=2, steps=3))
    item = pb.LoadItem(row=0, name=client.ref("a"))
    with errors.expected("FAILED_PRECONDITION", "ARENA_NOT_CONNECTED", "arena"):
        client.Load(pb.LoadRequest(arena=opened.arena, items=[item]))
    with connected(opened) as arena:
        with errors.expected("INVALID_ARGUMENT", "ROW_OUT_OF_RANGE", "items[0].row"):
            client.Load(pb.LoadRequest(arena=arena, items=[pb.LoadItem(row=2, name=client.ref("a"))]))
        with errors.expected("INVALID_ARGUMENT", "DUPLICATE_ROW", "items[1].row"):
            client.Load(pb.LoadRequest(arena=arena, items=[item, item]))
        loaded = client.Load(pb.LoadRequest(arena=arena, items=[pb.LoadItem(row=1), item])).rows
        errors.check(loaded[0].error, "MISSING_FIELD", "items[0].name")
        assert not loaded[1].HasField("error") and loaded[1].copied
        stored = client.Store(pb.StoreRequest(arena=arena, items=[
            pb.StoreItem(row=0, sequence="a", position=2, accepted_length=4), pb.StoreItem(row=1, sequence="b", position=2)])).rows
        errors.check(stored[0].error, "INVALID_ACCEPTED_LENGTH", "items[0].accepted_length")
        errors.check(stored[1].error, "ROW_NOT_LOADED", "items[1].row")
        stored = client.Store(pb.StoreRequest(arena=arena, items=[
            pb.StoreItem(row=0, sequence="a", position=2, path=[1, 1]), pb.StoreItem(row=1, sequence="b", position=2, path=[1], accepted_length=1, whole_row=True)])).rows
        errors.check(stored[0].error, "INVALID_PATH", "items[0].path")
        errors.check(stored[1].error, "INVALID_OPTION", "items[1].path")

        def advance(*items, **more):
            return client.Advance(pb.AdvanceRequest(arena=arena, items=[pb.AdvanceItem(**item) for item in items], **more)).rows

        for items, reason, field in ([], "MISSING_FIELD", "items"), ([{"row": 2}], "ROW_OUT_OF_RANGE", "items[0].row"), (
                [{"row": 0, "to_row": 2}], "ROW_OUT_OF_RANGE", "items[0].to_row"), ([{"row": 0}, {"row": 0}], "DUPLICATE_ROW", "items[1].row"), (
                [{"row": 0, "to_row": 1}, {"row": 1}], "DUPLICATE_ROW", "items[1].row"), ([{"row": 1}, {"row": 1, "to_row": 0}], "DUPLICATE_ROW", "items[1].row"), (
                [{"row": 0}] * 3, "TOO_MANY", "items"):
            with errors.expected("INVALID_ARGUMENT", reason, field):
                advance(*items)
        for field, value in ("verified_length", 4), ("request_id", 65 * "x"), ("done", pb.FlagValue(word=1)):  # the arena has no flag words
            with errors.expected("INVALID_ARGUMENT", "INVALID_OPTION", field):
                advance({"row": 0, "accepted_length": 1}, **{field: value})
        for item, reason, field in ({}, "MISSING_FIELD", "accepted_length"), ({"accepted_length": 0}, "INVALID_ACCEPTED_LENGTH", "accepted_length"), (
                {"accepted_length": 4}, "INVALID_ACCEPTED_LENGTH", "accepted_length"), ({"path": [0, 3]}, "INVALID_PATH", "path"), (
                {"path": [0], "accepted_length": 1}, "INVALID_OPTION", "path"):
            failed, good = advance({"row": 0, **item}, {"row": 1, "accepted_length": 3})
            errors.check(failed.error, reason, f"items[0].{field}")
            assert good.outcome == pb.AdvancedRow.MOVED
        assert client.CloseArena(pb.CloseArenaRequest(arena=arena)).closed
        with errors.expected("NOT_FOUND", "ARENA_UNKNOWN", "arena"):
            client.Store(pb.StoreRequest(arena=arena, items=[pb.StoreItem(row=0, sequence="a", position=2)]))
        assert not client.CloseArena(pb.CloseArenaRequest(arena=arena, allow_missing=True)).closed


@pytest.mark.provokes(("RESOURCE_EXHAUSTED", "TOO_MANY_ARENAS"), ("RESOURCE_EXHAUSTED", "ARENA_TOO_LARGE"))
def test_limits_of_arenas(pb, start, errors):
    _, client = start("--max-arenas=2", "--max-arena-bytes=16MiB", "--arena-token-timeout=1h")
    request = pb.OpenArenaRequest(layout="m", rows=1)
    for _ in range(2):
        client.OpenArena(request)
    with errors.expected("RESOURCE_EXHAUSTED", "TOO_MANY_ARENAS"):
        client.OpenArena(request)
    client.register("large", 9 * MIB)
    with errors.expected("RESOURCE_EXHAUSTED", "ARENA_TOO_LARGE", "rows"):
        client.OpenArena(pb.OpenArenaRequest(layout="large", rows=1))


@pytest.mark.provokes(("FAILED_PRECONDITION", "ARENAS_OFF"))
def test_a_daemon_without_arenas(pb, start, errors):
    _, client = start("--arena-socket=")
    told = client.GetCapabilities(pb.GetCapabilitiesRequest())
    assert told.copy_mode == "inline" and told.arena_socket == ""
    for call, request in ((client.OpenArena, pb.OpenArenaRequest()), (client.Load, pb.LoadRequest()), (client.Store, pb.StoreRequest()),
                          (client.CloseArena, pb.CloseArenaRequest())):
        with errors.expected("FAILED_PRECONDITION", "ARENAS_OFF"):
            call(request)


@pytest.mark.provokes(("FAILED_PRECONDITION", "DIRECT_OFF"))
def test_a_daemon_without_direct_ways(pb, client, errors):
    client.set("a")
    assert client.GetCapabilities(pb.GetCapabilitiesRequest()).copy_mode == "isolated"
    with errors.expected("FAILED_PRECONDITION", "DIRECT_OFF"):
        client.OpenDirect(pb.OpenDirectRequest())
    with errors.expected("FAILED_PRECONDITION", "DIRECT_OFF"):
        client.Grant(pb.GrantRequest(lease="x", layout="m", count=1))
    with errors.expected("FAILED_PRECONDITION", "DIRECT_OFF"):
        client.get("a", lease="x")
    with errors.expected("FAILED_PRECONDITION", "DIRECT_OFF"):
        client.set("a", data=b"", lease="x", grant=1, checksum=checksum(state(1)))


@pytest.mark.provokes(("NOT_FOUND", "LEASE_UNKNOWN"), ("FAILED_PRECONDITION", "LEASE_NOT_CONNECTED"), ("FAILED_PRECONDITION", "GRANT_UNKNOWN"))
def test_requests_of_direct_leases_that_make_no_sense(pb, start, errors):
    _, client = start("--direct=true", "--arena-token-timeout=1h")
    client.set("a")
    opened = client.OpenDirect(pb.OpenDirectRequest())
    digest = checksum(state(1))

    def refused(code, reason, lease):
        with errors.expected(code, reason, "lease"):
            client.Grant(pb.GrantRequest(lease=lease, layout="m", count=1))
        with errors.expected(code, reason, "lease"):
            client.get("a", lease=lease)
        with errors.expected(code, reason, "lease"):
            client.set("a", data=b"", lease=lease, grant=1, checksum=digest)

    refused("FAILED_PRECONDITION", "LEASE_NOT_CONNECTED", opened.lease)
    with connected(opened) as lease:
        slot, = client.Grant(pb.GrantRequest(lease=lease, layout="m", count=1)).slots
        with errors.expected("INVALID_ARGUMENT", "INVALID_OPTION", "count"):
            client.Grant(pb.GrantRequest(lease=lease, layout="m", count=65))
        with errors.expected("NOT_FOUND", "LAYOUT_UNKNOWN", "layout"):
            client.Grant(pb.GrantRequest(lease=lease, layout="never", count=1))
        for fields, reason, field in [({"checksum": ""}, "MISSING_FIELD", "checksum"), ({"attachment": b"x"}, "INVALID_OPTION", "attachment"),
                                      ({"data": state(1)}, "INVALID_OPTION", "data"), ({"lease": ""}, "MISSING_FIELD", "lease")]:
            with errors.expected("INVALID_ARGUMENT", reason, field):
                client.set("a", **{"data": b"", "lease": lease, "grant": slot.id, "checksum": digest, **fields})
        with errors.expected("INVALID_ARGUMENT", "INVALID_OPTION", "lease"):
            client.get("a", lease=lease, select=pb.Select(tensors=["t"]))
        client.register("other")
        slot, = client.Grant(pb.GrantRequest(lease=lease, layout="other", count=1)).slots
        for grant in (slot.id, slot.id, slot.id + 1):  # of another layout, and used up by that; used; never granted
            with errors.expected("FAILED_PRECONDITION", "GRANT_UNKNOWN", "grant"):
                client.set("a", data=b"", lease=lease, grant=grant, checksum=digest)
        with connected(client.OpenArena(pb.OpenArenaRequest(layout="m", rows=1))) as arena:
            stored, = client.Store(pb.StoreRequest(arena=arena, lease=lease, items=[pb.StoreItem(
                row=0, sequence="b", position=1, whole_row=True, grant=slot.id, checksum=digest)])).rows
            errors.check(stored.error, "GRANT_UNKNOWN", "items[0].grant")
    eventually(lambda: code_of(lambda: client.get("a", lease=lease)) == grpc.StatusCode.NOT_FOUND)
    refused("NOT_FOUND", "LEASE_UNKNOWN", lease)


@pytest.mark.provokes(("RESOURCE_EXHAUSTED", "TOO_MANY_LEASES"), ("RESOURCE_EXHAUSTED", "TOO_MANY_PINS"), ("RESOURCE_EXHAUSTED", "TOO_MUCH_PINNED"),
                      ("RESOURCE_EXHAUSTED", "TOO_MUCH_GRANTED"))
def test_limits_of_direct_leases(pb, start, errors):
    _, client = start("--direct=true", "--max-arenas=2", "--max-pinned-bytes=1MiB", "--max-granted-bytes=1", "--arena-token-timeout=1h")
    told = client.GetCapabilities(pb.GetCapabilitiesRequest())
    assert (told.copy_mode, told.max_leases, told.max_pinned_bytes, told.max_granted_bytes) == ("direct", 2, 1 * MIB, 1)
    with connected(client.OpenDirect(pb.OpenDirectRequest())) as lease:
        client.OpenDirect(pb.OpenDirectRequest())
        with errors.expected("RESOURCE_EXHAUSTED", "TOO_MANY_LEASES"):
            client.OpenDirect(pb.OpenDirectRequest())
        with errors.expected("RESOURCE_EXHAUSTED", "TOO_MUCH_GRANTED"):
            client.Grant(pb.GrantRequest(lease=lease, layout="m", count=1))
        for i in range(6):
            client.set(f"large/{i}", i)
        for i in range(5):
            assert client.get(f"large/{i}", lease=lease).HasField("slot")
        with errors.expected("RESOURCE_EXHAUSTED", "TOO_MUCH_PINNED"):
            client.get("large/5", lease=lease)
        # Small ones, many in one Load: each is a pin of its own.
        client.register("small", 16)
        rows = min(told.max_arena_rows, 1024)
        for begin in range(0, rows, told.max_batch):
            names = range(begin, min(begin + told.max_batch, rows))
            done = client.BatchWrite(pb.BatchWriteRequest(data=b"".join(i.to_bytes(16, "little") for i in names), items=[pb.BatchWriteItem(
                set=pb.SetRequest(sequence=f"small/{i}", layout="small", position=1), data_bytes=16) for i in names]))
            assert done.done and not any(r.HasField("error") for r in done.results)
        with connected(client.OpenArena(pb.OpenArenaRequest(layout="small", rows=rows))) as arena:
            request = pb.LoadRequest(arena=arena, lease=lease, items=[pb.LoadItem(row=i, name=client.ref(f"small/{i}")) for i in range(rows)])
            for _ in range((told.max_pins - 5) // rows):
                assert not any(row.HasField("error") for row in client.Load(request).rows)
            with errors.expected("RESOURCE_EXHAUSTED", "TOO_MANY_PINS"):
                client.Load(request)


@pytest.mark.provokes(("RESOURCE_EXHAUSTED", "TOO_MUCH_PINNED"), ("RESOURCE_EXHAUSTED", "LOAD_TOO_LARGE"), ("RESOURCE_EXHAUSTED", "QUEUE_FULL"),
                      ("INVALID_ARGUMENT", "INVALID_OPTION"), ("UNAVAILABLE", "DRAINING"))
def test_limits_of_flag_words(pb, start, errors):
    daemon, client = start("--hot-bytes=8MiB", "--chunk-bytes=256KiB", "--direct=true", "--arena-token-timeout=1h")
    told = client.GetCapabilities(pb.GetCapabilitiesRequest())
    assert (told.max_flag_pinned_bytes, told.max_flag_waits, told.max_arena_flag_waits) == (1 * MIB, 1024, 64)
    rows = told.max_flag_pinned_bytes // STATE_BYTES + 1
    for i in range(rows):
        client.set(f"s/{i}", i)
    never, done = pb.FlagValue(word=1, value=1), pb.FlagValue(word=2, value=1)
    with connected(client.OpenArena(pb.OpenArenaRequest(layout="m", rows=rows, with_flags=True))) as arena:
        def load(names, **more):
            return client.Load(pb.LoadRequest(arena=arena, items=[pb.LoadItem(row=i, name=client.ref(f"s/{i}")) for i in names], after=never, **more))

        with errors.expected("RESOURCE_EXHAUSTED", "LOAD_TOO_LARGE", "done"):
            load(range(rows), done=done)
        assert all(row.copied for row in load(range(rows - 1), done=done).rows)
        with errors.expected("RESOURCE_EXHAUSTED", "TOO_MUCH_PINNED"):
            load([rows - 1], done=done)
        with errors.expected("INVALID_ARGUMENT", "INVALID_OPTION", "after.word"):
            client.Load(pb.LoadRequest(arena=arena, items=[pb.LoadItem(row=0, name=client.ref("s/0"))], after=pb.FlagValue(word=told.max_flag_waits)))
        with errors.expected("INVALID_ARGUMENT", "INVALID_OPTION", "lease"):
            load([0], lease="x")
        store = pb.StoreRequest(arena=arena, items=[pb.StoreItem(row=0, sequence="a", position=1, whole_row=True)], after=never)
        waiting = [client.stub.Store.future(store, timeout=30) for _ in range(told.max_arena_flag_waits)]  # one more than may: a load waits as well
        refused, = eventually(lambda: [one for one in waiting if one.done()])
        errors.check(status_of(refused.exception()), "QUEUE_FULL")
        daemon.stop()
        waiting.remove(refused)
        for one in waiting:
            errors.check(status_of(one.exception(timeout=30)), "DRAINING")


@pytest.mark.provokes(("RESOURCE_EXHAUSTED", "FLUSH_BEHIND"))
def test_more_waits_for_the_disk_than_may(pb, start, errors):
    _, client = start("--max-dirty-bytes=1", "--flush-interval=1h", "--max-lag=2h", "--lag-policy=throttle")
    told = client.GetCapabilities(pb.GetCapabilitiesRequest())
    assert told.max_dirty_bytes == 1 and told.throttles and told.max_lag.ToSeconds() == 7200
    with errors.expected("RESOURCE_EXHAUSTED", "FLUSH_BEHIND"):
        for i in range(100):  # one may always wait; what waits is recorded about every 100 ms
            client.set(f"n{i}", data=state(i))
    eventually(lambda: fits(client, STATE_BYTES))
    client.set("sync", options={"durability": pb.SYNC})


@pytest.mark.provokes(("RESOURCE_EXHAUSTED", "TOO_MANY_LAYOUTS"))
def test_a_limit_of_layouts_in_bytes(pb, start, errors):
    _, client = start()
    size = 64 * MIB - 4 * KIB
    initial = bytes(range(256)) * (size // 256)
    with errors.expected("RESOURCE_EXHAUSTED", "TOO_MANY_LAYOUTS"):
        for i in range(5):
            client.RegisterLayout(pb.RegisterLayoutRequest(layout=pb.Layout(model_id=str(i), tensors=[
                pb.TensorSpec(name="t", kind=pb.RECURRENT, layers=[0], dtype=pb.UINT8, axes=[pb.Axis(name="a", size=size)],
                              initial=pb.InitialValue(data=initial))])))


@pytest.mark.provokes(("RESOURCE_EXHAUSTED", "QUEUE_FULL"))
def test_a_queue_that_is_full(pb, start, errors):
    _, client = start("--executor-threads=1", "--executor-queue=0")
    eventually(lambda: created(client, "a"))  # the thread may not be back from the call before
    busy = threading.Event()

    def keep_busy():
        for i in range(1000):
            if busy.is_set():
                return
            with contextlib.suppress(grpc.RpcError):  # it may be refused itself
                client.Fork(pb.ForkRequest(source=client.ref("a"), children=[f"c/{i}/{j}" for j in range(1000)]))

    thread = threading.Thread(target=keep_busy)
    thread.start()

    def refused():
        try:
            client.set("b")
        except grpc.RpcError as error:
            return error

    try:
        errors.check(status_of(eventually(refused, seconds=20)), "QUEUE_FULL")
    finally:
        busy.set()
        thread.join()


@pytest.mark.provokes(("RESOURCE_EXHAUSTED", "COLD_FULL"), ("NOT_FOUND", "EVICTED"))
def test_a_cold_budget_that_is_full(pb, start, errors):
    _, client = start("--cold-bytes=4MB", state_bytes=MIB)
    sync = {"durability": pb.SYNC}
    prefixes = []
    for i in range(3):
        client.set(f"s{i}", i + 1, data=state(i, MIB), options=sync)
        prefixes.append(client.PublishPrefix(pb.PublishPrefixRequest(layout="m", tokens=[i] * (i + 1), source=client.ref(f"s{i}"),
                                                                     options=pb.NameOptions(**sync))).prefix)
    with errors.expected("RESOURCE_EXHAUSTED", "COLD_FULL"):
        client.set("one too many", data=state(9, MIB), options=sync)
    with errors.expected("RESOURCE_EXHAUSTED", "COLD_FULL"):
        client.BatchWrite(pb.BatchWriteRequest(items=[pb.BatchWriteItem(data_bytes=MIB, set=pb.SetRequest(
            sequence="one too many", layout="m", position=1, options=pb.NameOptions(**sync)))], data=state(9, MIB)))
    client.Delete(pb.DeleteRequest(name=client.ref("s0")))  # now its prefix alone needs the bytes, and makes room
    client.set("one too many", data=state(9, MIB), options=sync)
    with errors.expected("NOT_FOUND", "EVICTED", "name"):
        client.Describe(pb.DescribeRequest(name=pb.NameRef(prefix=prefixes[0])))


@pytest.mark.provokes(("NOT_FOUND", "UNKNOWN"))
def test_a_table_of_reasons_that_overflowed(pb, start, errors):
    _, client = start(state_bytes=100)
    volatile = pb.NameOptions(durability=pb.VOLATILE)
    client.create("first", durability=pb.VOLATILE)
    client.Delete(pb.DeleteRequest(name=client.ref("first")))
    client.create("source", durability=pb.VOLATILE)
    for _ in range(7):  # 70,000 names; the table has 65,536
        client.Fork(pb.ForkRequest(source=client.ref("source"), children=[f"c/{i}" for i in range(10_000)], options=volatile))
        assert client.DeleteMany(pb.DeleteManyRequest(name_prefix="c/")).deleted == 10_000
    for gone in ("first", "never"):
        with errors.expected("NOT_FOUND", "UNKNOWN", "name"):
            client.describe(gone)


# ---- restarts, and disks

@pytest.mark.provokes(("NOT_FOUND", "NOT_DURABLE_AT_RESTART"), ("NOT_FOUND", "UNKNOWN_SINCE_RESTART"))
def test_restarts(pb, start, connect, errors):
    daemon, client = start()
    client.create("volatile", durability=pb.VOLATILE)
    daemon.stop()
    client = connect(daemon.start())
    with pytest.raises(grpc.RpcError) as raised:
        client.describe("volatile")
    assert errors.check(status_of(raised.value), "NOT_DURABLE_AT_RESTART", "name")["incarnation"] == daemon.ready["incarnation"]
    daemon.kill()
    client = connect(daemon.start())
    with pytest.raises(grpc.RpcError) as raised:
        client.describe("never")
    assert errors.check(status_of(raised.value), "UNKNOWN_SINCE_RESTART", "name")["incarnation"] == daemon.ready["incarnation"]


@pytest.mark.provokes(("DATA_LOSS", "CORRUPT"))
def test_bytes_that_were_damaged_on_disk(pb, start, connect, errors):
    daemon, client = start(state_bytes=MIB)
    version = client.set("a", data=state(7, MIB), options={"durability": pb.SYNC}).version_id
    daemon.stop()
    damaged = 0
    for path in (daemon.directory / "data").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        at = content.find(bytes([7]) * (32 * KIB))
        if at >= 0:
            path.write_bytes(content[:at] + b"\0" + content[at + 1:])
            damaged += 1
    assert damaged
    client = connect(daemon.start())
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as raised:
            client.get("a")
        assert errors.check(status_of(raised.value), "CORRUPT")["version_id"] == str(version)


DISK_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
// Every sync fails from the moment on when the file $FAIL_DISK is there.
static int Fails(void) { return access(getenv("FAIL_DISK"), F_OK) == 0 ? (errno = EIO, 1) : 0; }
#define SHIM(name) int name(int fd) { \
    static int (*real)(int); \
    if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, #name); \
    return Fails() ? -1 : real(fd); }
SHIM(fsync)
SHIM(fdatasync)
"""


@pytest.mark.provokes(("UNAVAILABLE", "DISK_FAILED"))
def test_a_disk_that_fails(pb, start, errors, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    source, library, trigger = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "fail"
    source.write_text(DISK_SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    # The shim is loaded before the runtime of a sanitized build, which minds that without need.
    sanitizer = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "verify_asan_link_order=0"]))
    daemon, client = start(env={"LD_PRELOAD": str(library), "FAIL_DISK": str(trigger), "ASAN_OPTIONS": sanitizer})
    process, daemon.process = daemon.process, None  # it ends by itself
    client.set("a", options={"durability": pb.SYNC})
    trigger.touch()
    with errors.expected("UNAVAILABLE", "DISK_FAILED"):
        client.set("a", 2, options={"durability": pb.SYNC})
    assert process.wait(30) == 3, daemon.log_tail()


@pytest.mark.provokes(("UNAVAILABLE", "DRAINING"))
def test_a_daemon_that_stops(start, errors):
    daemon, client = start()
    upload = Upload(client, "up", request_id="up")
    upload.wait_until_known("up", "up")
    daemon.process.send_signal(signal.SIGTERM)

    def refused():
        try:
            client.create("a", max_history=1)
        except grpc.RpcError as error:
            return error if error.code() == grpc.StatusCode.UNAVAILABLE else None

    errors.check(status_of(eventually(refused)), "DRAINING")
    upload.send(state(1))  # what runs may end
    assert upload.result().position == 1
    assert daemon.process.wait(30) == 0, daemon.log_tail()
    daemon.process = None


# ---- what the client's own library tells

def test_deadlines_and_cancellations_have_their_codes(client, name):
    upload = Upload(client, name, timeout=0.2)
    assert upload.call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    upload.messages.put(None)
    upload = Upload(client, name, request_id="up")
    upload.wait_until_known(name, "up")
    upload.call.cancel()
    assert upload.call.code() == grpc.StatusCode.CANCELLED
    upload.messages.put(None)
