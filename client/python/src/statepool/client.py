# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The client: connect() and Pool."""
from __future__ import annotations

import datetime
import math
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from . import _wire, errors, names
from .layouts import Layout, Preset
from .names import Durability, Exactness, Expiry, Image, Info, Match, Name, Prefix, Sequence, Snapshot, State
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from types import TracebackType

_T = TypeVar("_T")

MAX_MESSAGE_BYTES = (512 << 20) + (2 << 20)
"""Default limit of a message, either way: a state of 512 MiB, its attachment and the rest."""
TIMEOUT_S = 30.0
RETRIES = 5
_BACKOFF_S = 0.1  # before the first retry that the daemon gives no delay for; doubles
_BACKOFF_S_MAX = 2.0

Tokens = SequenceOf[int] | npt.NDArray[np.integer]


def connect(address: str, *, timeout: float = TIMEOUT_S, retries: int = RETRIES, verify: bool = True,
            max_message_bytes: int = MAX_MESSAGE_BYTES, credentials: grpc.ChannelCredentials | None = None) -> Pool:
    """A client of the daemon at "host:port" or "unix:/path". Nothing is sent before the first call.

    timeout            seconds that a call may take, its retries included (DeadlineExceeded)
    retries            how often a call is tried again after UNAVAILABLE, or RESOURCE_EXHAUSTED with a hint; 0: never
    verify             send the checksum of what is written, and verify that of what is read
    max_message_bytes  limit of a message, either way (Exhausted without a reason); the daemon has one of its own
    credentials        for TLS; None: plain text
    """
    options = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.enable_http_proxy", 0),
        # A daemon that restarts is back within seconds.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    channel = (grpc.insecure_channel(address, options) if credentials is None
               else grpc.secure_channel(address, credentials, options))
    return Pool(channel, timeout=timeout, retries=retries, verify=verify)


class Pool:
    """One daemon. Made by connect(); all methods may be called from any thread.

    Retries: a call that failed with UNAVAILABLE, or with a delay that the daemon advised, is tried again while its timeout lasts. Writes carry a
    `request_id` for it, made here unless the caller gives one, so that no write happens twice. Give one (1..64 bytes) to make your own
    retries safe as well: within a name's last 8, the same id with the same request gives the first answer again (`replayed`).

    Options of names, wherever a method takes them:
      durability   "volatile", "write_behind" or "sync"; None: keep, inherit, or the daemon's default
      ttl          idle seconds (or a timedelta) until the name expires; math.inf: never; None: keep, inherit, or the default
      expire_at    when it expires, used or not: a datetime with a time zone, or seconds since the epoch. Not both
      max_history  versions that a sequence keeps, the head included; 1: no rollback

    Errors: statepool.StatepoolError and its subclasses, on every method.
    """

    def __init__(self, channel: grpc.Channel, *, timeout: float = TIMEOUT_S, retries: int = RETRIES, verify: bool = True) -> None:
        """On a channel of the caller's own. Closing the pool closes it."""
        self._channel = channel
        self._timeout = timeout
        self._retries = retries
        self._verify = verify
        self._layouts: dict[str, Layout] = {}  # by fingerprint: those never change
        service = pb.DESCRIPTOR.services_by_name["StatePool"]
        # Messages are encoded and decoded here, not by gRPC: images never pass through protobuf (see _wire).
        self._methods: dict[str, Callable[..., Any]] = {
            m.name: channel.unary_unary(f"/{service.full_name}/{m.name}") for m in service.methods}

    def close(self) -> None:
        """Ends the connection. Calls in flight fail."""
        self._channel.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def with_options(self, *, timeout: float | None = None, retries: int | None = None) -> Pool:
        """The same pool on the same connection, with another timeout (seconds) or number of retries."""
        return Pool(self._channel, timeout=self._timeout if timeout is None else timeout,
                    retries=self._retries if retries is None else retries, verify=self._verify)

    # ----------------------------------------------------------------------------------------------------------- layouts

    def register_layout(self, layout: Layout | Preset, alias: str = "") -> Layout:
        """Makes a layout known to the daemon, durably, also under an alias. Registering it again is fine.

        Conflict (LAYOUT_ALIAS_TAKEN) when the alias has another layout; InvalidArgument (INVALID_LAYOUT, INVALID_NAME).
        """
        request = pb.RegisterLayoutRequest(alias=alias)
        if isinstance(layout, Preset):
            request.preset.CopyFrom(layout.proto)
        else:
            request.layout.CopyFrom(layout.to_proto())
        registered = self._remember(self._call("RegisterLayout", request, pb.LayoutInfo.FromString))
        if isinstance(layout, Layout) and registered != layout:
            raise errors.StatepoolError("INTERNAL", "FINGERPRINT_MISMATCH", "the daemon understood another layout", metadata={
                "expected": layout.fingerprint, "actual": registered.fingerprint})
        return registered

    def get_layout(self, layout: str) -> Layout:
        """A registered layout by alias or fingerprint; one known by fingerprint is not asked for again. NotFound (LAYOUT_UNKNOWN)."""
        known = self._layouts.get(layout)
        return known or self._remember(self._call("GetLayout", pb.GetLayoutRequest(layout=layout), pb.LayoutInfo.FromString))

    def layouts(self) -> list[Layout]:
        """All registered layouts, by fingerprint."""
        answer = self._call("ListLayouts", pb.ListLayoutsRequest(), pb.ListLayoutsResponse.FromString)
        return [self._remember(info) for info in answer.layouts]

    # --------------------------------------------------------------------------------------------------------- sequences

    def create(self, layout: Layout | str, name: str, *, durability: Durability | None = None,
               ttl: float | datetime.timedelta | None = None, expire_at: Expiry | None = None, max_history: int | None = None,
               request_id: str | None = None) -> Sequence:
        """A new sequence at position 0 in the layout's initial state. Costs no bytes.

        Conflict (NAME_EXISTS); NotFound (LAYOUT_UNKNOWN); InvalidArgument; Exhausted.
        """
        info = self._info("Create", pb.CreateRequest(
            sequence=name, layout=_fingerprint(layout), options=_options(durability, ttl, expire_at, max_history),
            request_id=_id(request_id)))
        return _sequence(self, info)

    def sequence(self, name: str) -> Sequence:
        """A handle for the sequence of this name. No call is made: whether it exists, its first use tells."""
        return Sequence(self, name)

    def name(self, kind: names.Kind, name: str) -> Name:
        """A handle for a name of any kind, as list() gives them. No call is made."""
        kinds: Mapping[str, type[Name]] = {"sequence": Sequence, "snapshot": Snapshot, "prefix": Prefix}
        return kinds[kind](self, name)

    def get(self, source: Name | Match | str, position: int | None = None, *, layout: Layout | str = "",
            attachment: bool = True) -> State:
        """Name.get of any source; a str is a sequence."""
        request = pb.GetRequest(name=names.ref_of(source), position=position, layout=_fingerprint(layout), omit_attachment=not attachment)
        head, data = self._call("Get", request, _wire.split_data)
        response = pb.GetResponse.FromString(head)
        info = Info.from_proto(response.info)
        if self._verify:
            actual = _wire.checksum_of(data)
            if actual != info.checksum:
                raise errors.DataLoss("DATA_LOSS", "CHECKSUM_MISMATCH", f"{info.kind} {info.name!r} did not arrive as it was stored", "data",
                                      {"expected": info.checksum, "actual": actual})
        return State(self, info, data, response.attachment)

    def set(self, name: str | Sequence, data: Image, position: int, *, layout: Layout | str = "", if_revision: int | None = None,
            attachment: bytes = b"", exactness: Exactness | None = None, durability: Durability | None = None,
            ttl: float | datetime.timedelta | None = None, expire_at: Expiry | None = None, max_history: int | None = None,
            request_id: str | None = None) -> Info:
        """Writes a whole state as a new version and moves the head of the sequence to it: all or nothing.

        data         the image, or all its tensors by name (then the layout is looked up unless `layout` is a Layout)
        position     tokens consumed
        layout       required when the sequence does not exist yet: it is made then; else checked
        if_revision  write only if this is the sequence's revision; 0: only if it does not exist
        attachment   opaque bytes beside the state
        Conflict (REVISION_MISMATCH, LAYOUT_MISMATCH), InvalidArgument (BYTES_LENGTH_MISMATCH, INVALID_POSITION ...), Exhausted. After an error
        nothing has changed, but for DeadlineExceeded and Unavailable: the write is whole or absent then, and a retry with the same
        request_id is safe.
        """
        name = name.name if isinstance(name, Sequence) else name
        pieces: SequenceOf[_wire.Buffer]
        if isinstance(data, Mapping):
            pieces = self._layout_for(name, layout).pieces(data)
        else:
            pieces = [data]
        head = pb.SetRequest(
            sequence=name, layout=_fingerprint(layout), position=position, checksum=_wire.checksum_of(*pieces) if self._verify else "",
            attachment=attachment, if_revision=if_revision, request_id=_id(request_id),
            options=_options(durability, ttl, expire_at, max_history), exactness=_enum(pb.Exactness, exactness, "exactness"))
        return self._info("Set", _wire.with_data(head, pieces))

    def fork(self, source: Name | Match | str, name: str, *, position: int | None = None, layout: Layout | str = "",
             durability: Durability | None = None, ttl: float | datetime.timedelta | None = None, expire_at: Expiry | None = None,
             max_history: int | None = None, request_id: str | None = None) -> Sequence:
        """A new sequence at the version of `source` (a handle, a match, or a sequence's name). No byte is copied.

        position  fork this version of the source's ring instead of its head
        layout    only if the source has this layout
        NotFound (the source, also LAYOUT_MISMATCH and POSITION_MISMATCH); Conflict (NAME_EXISTS); InvalidArgument.
        """
        return self.fork_many(source, [name], position=position, layout=layout, durability=durability, ttl=ttl, expire_at=expire_at,
                              max_history=max_history, request_id=request_id)[0]

    def fork_many(self, source: Name | Match | str, children: Iterable[str], *, position: int | None = None, layout: Layout | str = "",
                  durability: Durability | None = None, ttl: float | datetime.timedelta | None = None, expire_at: Expiry | None = None,
                  max_history: int | None = None, request_id: str | None = None) -> list[Sequence]:
        """fork() into many names at once, in their order: all of them or none."""
        answer = self._call("Fork", pb.ForkRequest(
            source=names.ref_of(source), position=position, layout=_fingerprint(layout), children=children,
            options=_options(durability, ttl, expire_at, max_history), request_id=_id(request_id)), pb.ForkResponse.FromString)
        return [Sequence(self, child.sequence, position=answer.position, revision=child.revision, replayed=answer.replayed)
                for child in answer.children]

    def rollback(self, name: str, position: int, *, if_revision: int | None = None, request_id: str | None = None) -> Info:
        """Sequence.rollback by name."""
        return self._info("Rollback", pb.RollbackRequest(
            sequence=name, position=position, if_revision=if_revision, request_id=_id(request_id)))

    # --------------------------------------------------------------------------------------------------------- any name

    def describe(self, source: Name | Match | str) -> Info:
        """Name.describe of any source; a str is a sequence."""
        return self._info("Describe", pb.DescribeRequest(name=names.ref_of(source)))

    def list(self, kind: names.Kind = "sequence", prefix: str = "", *, page_size: int = 0) -> Iterator[Info]:
        """Names of one kind that begin with `prefix`, in byte order, asked for page by page (page_size; 0: the daemon's) as they are used.

        A page is consistent in itself; names made meanwhile may be missed.
        """
        token = ""
        while True:
            answer = self._call("List", pb.ListRequest(
                kind=_enum(pb.NameKind, kind, "kind"), name_prefix=prefix, page_size=page_size, page_token=token), pb.ListResponse.FromString)
            yield from map(Info.from_proto, answer.names)
            token = answer.next_page_token
            if not token:
                return

    def delete(self, source: Name | Match | str, *, if_revision: int | None = None, allow_missing: bool = False) -> bool:
        """Name.delete of any source; a str is a sequence."""
        request = pb.DeleteRequest(name=names.ref_of(source), if_revision=if_revision, allow_missing=allow_missing)
        return self._call("Delete", request, pb.DeleteResponse.FromString, retry=allow_missing).deleted

    # ------------------------------------------------------------------------------------------------------- snapshots

    def snapshot(self, source: Name | Match | str, name: str, *, durable: bool = False, position: int | None = None,
                 durability: Durability | None = None, ttl: float | datetime.timedelta | None = None,
                 expire_at: Expiry | None = None, request_id: str | None = None) -> Snapshot:
        """Gives the version of `source` (of its head, or at `position`) a fixed name. Costs no bytes.

        durable  the same as durability="sync": on disk before this returns. Otherwise the source's durability
        NotFound (the source); Conflict (NAME_EXISTS): a snapshot's name is free again only after delete().
        """
        if durable and durability not in (None, "sync"):
            raise errors.invalid("INVALID_OPTION", "durable says sync, durability says otherwise", "options.durability")
        info = self._info("Snapshot", pb.SnapshotRequest(
            source=names.ref_of(source), position=position, snapshot=name,
            options=_options("sync" if durable else durability, ttl, expire_at, None), request_id=_id(request_id)))
        return Snapshot(self, info.name)

    def restore(self, snapshot: Snapshot | str, name: str, *, if_revision: int | None = None, durability: Durability | None = None,
                ttl: float | datetime.timedelta | None = None, expire_at: Expiry | None = None, max_history: int | None = None,
                request_id: str | None = None) -> Sequence:
        """Moves the head of the sequence `name` to a snapshot's version; makes the sequence when it does not exist.

        NotFound (the snapshot); Conflict (LAYOUT_MISMATCH, REVISION_MISMATCH).
        """
        info = self._info("Restore", pb.RestoreRequest(
            snapshot=snapshot if isinstance(snapshot, str) else snapshot.name, sequence=name, if_revision=if_revision,
            options=_options(durability, ttl, expire_at, max_history), request_id=_id(request_id)))
        return _sequence(self, info)

    # -------------------------------------------------------------------------------------------------------- prefixes

    def publish_prefix(self, layout: Layout | str, tokens: Tokens, source: Name | Match | str, *, extra_key: bytes = b"",
                       position: int | None = None, durability: Durability | None = None,
                       ttl: float | datetime.timedelta | None = None, expire_at: Expiry | None = None) -> Prefix:
        """Makes the version of `source` findable by `tokens` (0..2^32-1 each), the ones that lead to it.

        extra_key  what else decides the state: LoRA, hashes of images ...
        position   publish this version of the source's ring instead of its head; it must be the number of tokens either way
        Publishing what is published changes nothing (already_published). Conflict (POSITION_MISMATCH, LAYOUT_MISMATCH); NotFound.
        """
        answer = self._call("PublishPrefix", pb.PublishPrefixRequest(
            layout=_fingerprint(layout), tokens=_tokens(tokens), extra_key=extra_key, source=names.ref_of(source), position=position,
            options=_options(durability, ttl, expire_at, None)), pb.PublishPrefixResponse.FromString)
        return Prefix(self, answer.prefix, position=answer.info.position, already_published=answer.already_published)

    def match_prefix(self, layout: Layout | str, tokens: Tokens, max_position: int | None = None, max_results: int = 1,
                     extra_key: bytes = b"") -> Match:
        """The longest published prefixes of `tokens`. A miss is not an error: the answer is falsy and has a miss_reason.

        max_position  longest prefix wanted; None: len(tokens) - 1, so that something is left to compute
        max_results   1..64
        """
        answer = self._call("MatchPrefix", pb.MatchPrefixRequest(
            layout=_fingerprint(layout), tokens=_tokens(tokens), extra_key=extra_key, max_position=max_position,
            max_results=max_results), pb.MatchPrefixResponse.FromString)
        matches = tuple(Prefix(self, m.prefix, position=m.position) for m in answer.matches)
        return Match(matches, answer.miss_reason, answer.nearest_published_position)

    # ------------------------------------------------------------------------------------------------ daemon as a whole

    def flush(self, sources: Iterable[Name | str] | None = None) -> int:
        """Waits until the newest version of these names is on disk (None: of every name). Number of names that are durable now.

        Volatile names stay what they are and are not written. NotFound; Exhausted (COLD_FULL); DeadlineExceeded.
        """
        refs = [] if sources is None else [names.ref_of(s) for s in sources]
        if sources is not None and not refs:
            return 0  # to the daemon an empty list means every name
        return self._call("Flush", pb.FlushRequest(names=refs), pb.FlushResponse.FromString).names

    def capabilities(self) -> pb.Capabilities:
        """What the daemon is, and every limit it has: the message Capabilities of statepool.proto."""
        return self._call("GetCapabilities", pb.GetCapabilitiesRequest(), pb.Capabilities.FromString)

    # -------------------------------------------------------------------------------------------------------- plumbing

    def _call(self, method: str, request: Message | bytes, parse: Callable[[bytes], _T], *, retry: bool = True) -> _T:
        """One call with its retries. REQUIRES: `retry` only if doing it twice is the same as doing it once."""
        encoded = request if isinstance(request, bytes) else request.SerializeToString()
        deadline = time.monotonic() + self._timeout
        left = self._retries if retry else 0
        backoff = _BACKOFF_S
        while True:
            try:
                answer: bytes = self._methods[method](encoded, timeout=max(0.0, deadline - time.monotonic()))
            except grpc.RpcError as failure:
                error = errors.from_rpc_error(failure)
                delay = error.retry_after
                if delay is None and isinstance(error, errors.Unavailable) and not error.reason:
                    delay = backoff * random.uniform(0.5, 1.0)  # nobody answered: the transport said it
                    backoff = min(2 * backoff, _BACKOFF_S_MAX)
                retryable = isinstance(error, (errors.Unavailable, errors.Exhausted)) and delay is not None
                if not retryable or left == 0 or delay is None or time.monotonic() + delay >= deadline:
                    raise error from failure
            else:
                return parse(answer)
            left -= 1
            time.sleep(delay)

    def _info(self, method: str, request: Message | bytes) -> Info:
        return Info.from_proto(self._call(method, request, pb.NameInfo.FromString))

    def _remember(self, info: pb.LayoutInfo) -> Layout:
        layout = Layout.from_proto(info)
        self._layouts[layout.fingerprint] = layout
        return layout

    def _layout_for(self, name: str, layout: Layout | str) -> Layout:
        if isinstance(layout, Layout):
            return layout
        return self.get_layout(layout or self.describe(name).layout)


def _sequence(pool: Pool, info: Info) -> Sequence:
    return Sequence(pool, info.name, position=info.position, revision=info.revision, replayed=info.replayed)


def _fingerprint(layout: Layout | str) -> str:
    return layout.fingerprint if isinstance(layout, Layout) else layout


def _id(request_id: str | None) -> str:
    return uuid.uuid4().hex if request_id is None else request_id


# An enum's value is an int at run time, and a class of its own in the generated types: hence Any.
def _enum(enum: Any, name: str | None, field: str) -> Any:
    if name is None:
        return 0
    try:
        return enum.Value(name.upper().replace("-", "_"))
    except ValueError:
        raise errors.invalid("INVALID_OPTION", f"{name!r} is not a {field}", field) from None


def _tokens(tokens: Tokens) -> list[int]:
    listed = tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
    if any(not 0 <= t < 1 << 32 for t in listed):
        raise errors.invalid("INVALID_OPTION", "a token is not in 0..2^32-1", "tokens")
    return listed


def _options(durability: Durability | None, ttl: float | datetime.timedelta | None, expire_at: Expiry | None,
             max_history: int | None) -> pb.NameOptions | None:
    if durability is None and ttl is None and expire_at is None and max_history is None:
        return None
    if ttl is not None and expire_at is not None:
        raise errors.invalid("INVALID_OPTION", "ttl and expire_at exclude each other", "options.expiration")
    options = pb.NameOptions(durability=_enum(pb.Durability, durability, "durability"), max_history=max_history)
    if isinstance(ttl, datetime.timedelta):
        options.ttl.FromTimedelta(ttl)
    elif ttl == math.inf:
        options.never_expire = True
    elif ttl is not None:
        options.ttl.FromNanoseconds(round(ttl * 1e9))
    if isinstance(expire_at, datetime.datetime):
        if expire_at.tzinfo is None:
            raise errors.invalid("INVALID_OPTION", "expire_at has no time zone", "options.expire_time")
        options.expire_time.FromDatetime(expire_at)
    elif expire_at is not None:
        options.expire_time.FromNanoseconds(round(expire_at * 1e9))
    return options
