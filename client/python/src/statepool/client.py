# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The client: connect() and Pool."""
from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message

from . import _lane, _requests, _wire, arenas, batches, errors, names, streams
from ._calls import Attempts, Connection
from ._direct import Direct
from ._requests import Tokens, Ttl
from ._seen import Seen
from .arenas import Arena, Buffers, LoadItem, Rooms, StoreItem, View
from .layouts import Layout, Preset, check_initial, without_arrays
from .names import (Deletion, Durability, Exactness, Expiry, Image, Info, Match, Name, Out, Prefix, Removal, Room, Sequence, Snapshot, State,
                    Upload)
from .streams import Progress, Source, StateStream
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from types import TracebackType

_T = TypeVar("_T")

MAX_MESSAGE_BYTES = (512 << 20) + (2 << 20)
"""Default limit of a message, either way: a state of 512 MiB, its attachment and the rest."""
TIMEOUT_S = 30.0
RETRIES = 5
_SURELY_FITS_BYTES = 1 << 20  # not worth asking the daemon for its limit

def connect(address: str, *, timeout: float = TIMEOUT_S, retries: int = RETRIES, verify: bool = True,
            max_message_bytes: int = MAX_MESSAGE_BYTES, credentials: grpc.ChannelCredentials | None = None, arenas: bool = True,
            direct: bool = True) -> Pool:
    """A client of the daemon at "host:port" or "unix:/path". Nothing is sent before the first call.

    timeout            seconds that a call may take, its retries included (DeadlineExceeded)
    retries            how often a call is tried again after UNAVAILABLE, or RESOURCE_EXHAUSTED with a hint; a stream: how often without a
                       further byte; 0: never
    verify             send the checksum of what is written, and verify that of what is read
    max_message_bytes  limit of a message, either way; the daemon has one of its own. Larger states travel as streams
    credentials        for TLS; None: plain text
    arenas             get and set of large states may go through arenas that the pool opens for itself: see Pool, fast lane
    direct             states may be read and written in the daemon's own memory where it lets its workers: see Pool, direct ways
    """
    options = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.enable_http_proxy", 0),
        # A daemon that restarts is back within seconds.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # To gRPC this is the time that an attempt to connect may take: enough for a far or a busy host.
        ("grpc.min_reconnect_backoff_ms", 5000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # While calls wait: a peer that is gone without a word is noticed within 25 s. (The daemon lets clients ping every 10 s.)
        ("grpc.keepalive_time_ms", 15_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    channel = (grpc.insecure_channel(address, options) if credentials is None
               else grpc.secure_channel(address, credentials, options))
    return Pool(channel, timeout=timeout, retries=retries, verify=verify, max_message_bytes=max_message_bytes, arenas=arenas, direct=direct)


class Pool:
    """One daemon. Made by connect(); all methods may be called from any thread.

    Retries: a call that failed with UNAVAILABLE, or with a delay that the daemon advised, is tried again while its timeout lasts. Writes carry a
    `request_id` for it, made here unless the caller gives one, so that no write happens twice. Give one (1..64 bytes) to make your own
    retries safe as well: within a name's last 8, the same id with the same request gives the first answer again (`replayed`).
    A stream that breaks off goes on where it was. The timeout is for all attempts together; with_options() gives a large state a longer one.

    Fast lane: with a daemon of this machine, get and set of whole states of 256 KiB and more go through small arenas that the pool opens for itself, at
    the eighth such call of a layout. Nothing else tells: arguments, answers, errors and retries are the same, and whenever there is something the matter
    with an arena the call goes in a message, as it does otherwise; then none is opened for 30 s. In messages go also parts, batches, writes with a
    request_id of yours, layouts named by an alias, a set() without `layout` of a sequence that this pool has not seen, and what comes while all rows are
    in use. A set() there sends no checksum, for the bytes never leave the machine's memory. Limits: a row takes twice its state of the daemon's budget
    until the pool is closed; a layout has as many rows as threads used it at once, up to 4; all rows together at most a sixteenth of
    Capabilities.max_arena_bytes; they give way to arenas and buffers that you ask this pool for. connect(arenas=False) turns it off.

    Direct ways: with a daemon of this machine that lets its workers (Capabilities.copy_mode "direct"), get(copy=False) gives views of the daemon's own
    memory, get and set of whole states of 256 KiB and more copy from and to there, in one pass with their checksum, and load and store of arenas are
    done by this process, where the library of kernels is there (_kernels). This goes before the fast lane, and again nothing else tells. A set() with an
    attachment goes another way, so does what the fast lane leaves to messages, but for a request_id of yours; and everything does whenever the
    daemon has no room for it: then none is tried for a while. Limits: the daemon's memory stays mapped for reuse, up to
    1 GiB and a quarter of Capabilities.max_pinned_bytes where no view is used any more; up to 64 MiB and a sixteenth of Capabilities.max_granted_bytes
    of granted slots, or one, wait for sets of each layout, and go back after a second without any. A thread gives the daemon what it wants back. After
    os.fork() views are good as long as the parent keeps the state's views: when it dropped them, or is gone, the child's silently show other
    states. Copy in the child what it is to keep. connect(direct=False) turns it off.

    Options of names, wherever a method takes them:
      durability   "volatile", "write_behind" or "sync"; None: keep, inherit, or the daemon's default
      ttl          idle seconds (or a timedelta) until the name expires; math.inf: never; None: keep, inherit, or the default
      expire_at    when it expires, used or not: a datetime with a time zone, or seconds since the epoch. Not both
      max_history  versions that a sequence keeps, the head included; 1: no rollback

    Errors: statepool.StatepoolError and its subclasses, on every method.
    """

    def __init__(self, channel: grpc.Channel, *, timeout: float = TIMEOUT_S, retries: int = RETRIES, verify: bool = True,
                 max_message_bytes: int = MAX_MESSAGE_BYTES, arenas: bool = True, direct: bool = True) -> None:
        """On a channel of the caller's own, whose limit is max_message_bytes. Closing the pool closes it."""
        self._connection = Connection(channel, max_message_bytes)
        self._timeout = timeout
        self._retries = retries
        self._verify = verify
        self._rooms = Rooms()
        self._seen = Seen(self._connection.layouts)
        self._lane = _lane.Lane(arenas, self._seen)
        self._direct = Direct(direct, self._seen)

    def close(self) -> None:
        """Ends the connection. Calls in flight fail, and later ones: Conflict (POOL_CLOSED). A write that was in flight is whole or absent. States of
        get(copy=False) stay as they are."""
        self._direct.close()
        self._lane.close()
        self._rooms.close()
        self._connection.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def with_options(self, *, timeout: float | None = None, retries: int | None = None) -> Pool:
        """The same pool on the same connection, with another timeout (seconds) or number of retries."""
        other = Pool.__new__(Pool)
        other._connection = self._connection
        other._timeout = self._timeout if timeout is None else timeout
        other._retries = self._retries if retries is None else retries
        other._verify = self._verify
        other._rooms = self._rooms
        other._seen = self._seen
        other._lane = self._lane
        other._direct = self._direct
        return other

    # ----------------------------------------------------------------------------------------------------------- layouts

    def register_layout(self, layout: Layout | Preset, alias: str = "") -> Layout:
        """Makes a layout known to the daemon, durably, also under an alias. Registering it again is fine.

        Conflict (LAYOUT_ALIAS_TAKEN) when the alias has another layout; InvalidArgument (INVALID_LAYOUT, INVALID_NAME).
        """
        request = pb.RegisterLayoutRequest(alias=alias)
        if isinstance(layout, Preset):
            if layout.arrays:
                told = pb.RegisterLayoutRequest(preset=without_arrays(layout), validate_only=True)
                check_initial(Layout.from_proto(self._call("RegisterLayout", told, pb.LayoutInfo.FromString)), layout.arrays)
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
        known = self._connection.layouts.get(layout)
        return known or self._remember(self._call("GetLayout", pb.GetLayoutRequest(layout=layout), pb.LayoutInfo.FromString))

    def layouts(self) -> list[Layout]:
        """All registered layouts, by fingerprint."""
        answer = self._call("ListLayouts", pb.ListLayoutsRequest(), pb.ListLayoutsResponse.FromString)
        return [self._remember(info) for info in answer.layouts]

    def delete_layout(self, layout: Layout | str, *, allow_missing: bool = False) -> bool:
        """Forgets a layout and all its aliases, durably. False: it was absent (with allow_missing).

        Conflict (LAYOUT_IN_USE, metadata "names") while a name has it; NotFound (LAYOUT_UNKNOWN). Retried by itself only with allow_missing.
        """
        request = pb.DeleteLayoutRequest(layout=_requests.fingerprint(layout), allow_missing=allow_missing)
        return self._call("DeleteLayout", request, pb.DeleteLayoutResponse.FromString, retry=allow_missing).deleted

    # --------------------------------------------------------------------------------------------------------- sequences

    def create(self, layout: Layout | str, name: str, *, durability: Durability | None = None,
               ttl: Ttl = None, expire_at: Expiry | None = None, max_history: int | None = None,
               request_id: str | None = None) -> Sequence:
        """A new sequence at position 0 in the layout's initial state. Costs no bytes.

        Conflict (NAME_EXISTS); NotFound (LAYOUT_UNKNOWN); InvalidArgument; Exhausted.
        """
        return self._sequence(self._info("Create", _requests.create(layout, name, durability, ttl, expire_at, max_history, request_id)))

    def sequence(self, name: str) -> Sequence:
        """A handle for the sequence of this name. No call is made: whether it exists, its first use tells."""
        return Sequence(self, name)

    def name(self, kind: names.Kind, name: str) -> Name:
        """A handle for a name of any kind, as list() gives them. No call is made."""
        kinds: Mapping[str, type[Name]] = {"sequence": Sequence, "snapshot": Snapshot, "prefix": Prefix}
        return kinds[kind](self, name)

    def get(self, source: Name | Match | str, position: int | None = None, *, tensors: Iterable[str] | None = None,
            layers: Iterable[int] | None = None, version_id: int | None = None, layout: Layout | str = "", attachment: bool = True,
            out: Out | None = None, copy: bool = True) -> State:
        """Name.get of any source; a str is a sequence."""
        attempts = self._attempts()
        row = None
        if out is not None:
            if not copy:
                raise errors.invalid("INVALID_OPTION", "what is to be in `out` is copied", "copy")
            if _wire.as_bytes(out).readonly:
                raise errors.invalid("INVALID_OPTION", "out is read-only", "out")
            row = arenas.row_of(out)
        if row is not None and tensors is None and layers is None:
            layout = layout or row.layout
            if row.is_shared_by(self, layout):
                loaded = row.load(LoadItem(source, position, version_id=version_id, attachment=attachment), attempts)
                return State(self, loaded.info, _wire.as_bytes(out), loaded.attachment)
        request = _requests.get(source, position, layout, tensors, layers, version_id, attachment)
        if tensors is None and layers is None:
            view = None if out is None else _wire.as_bytes(out)
            pinned = self._direct.get(self, request, attempts, copy=copy)
            if pinned is not None:
                answered, slot = pinned
                if copy:
                    return self._state(request, answered, slot, view if view is not None else np.empty(len(slot), np.uint8))
                info = Info.from_proto(answered.info, copy=True)
                self._seen.learn(info)
                return State(self, info, slot, answered.attachment)
            answer = self._lane.get(self, request, view, attempts)
            if answer is not None:
                return self._verified(request, *answer)
        try:
            rest, data = self._connection.call("Get", request, _wire.split_data, attempts)
        except errors.Exhausted as error:
            if not _too_large(error):
                raise
            with StateStream(self._connection, attempts, request, None, self._verify) as stream:
                room = np.empty(stream.nbytes, np.uint8) if out is None else _exactly(out, stream.nbytes)
                state = self._receive(request, stream, [room], None)
                if out is None:
                    state.data = state.data.toreadonly()
                return state
        return self._state(request, pb.GetResponse.FromString(rest), data, out)

    def get_into(self, source: Name | Match | str, room: Room, position: int | None = None, *, tensors: Iterable[str] | None = None,
                 layers: Iterable[int] | None = None, version_id: int | None = None, layout: Layout | str = "", attachment: bool = True,
                 chunk_bytes: int | None = None, progress: Progress | None = None) -> State:
        """Name.get into memory of the caller's, as a stream: beside it a few chunks are needed, whatever the size.

        room         a writable contiguous buffer at least as long as the state, or an array [layers, *axes] for each tensor: of all of them, or of
                     those that are to be read (then `tensors` may be left out)
        chunk_bytes  a multiple of 65,536 up to 4 MiB; None: 1 MiB
        progress     called with the bytes that arrived and with all of them, after each chunk
        State.data is a view of `room`, or empty if that is arrays: then they are State.tensors. After an error the contents of `room` are
        undefined. InvalidArgument (BYTES_LENGTH_MISMATCH, TENSORS_MISMATCH) when it does not fit; and the errors of get.
        """
        if isinstance(room, Mapping) and tensors is None:
            tensors = list(room)
        request = _requests.get(source, position, layout, tensors, layers, version_id, attachment)
        with StateStream(self._connection, self._attempts(), request, chunk_bytes, self._verify) as stream:
            if isinstance(room, Mapping):
                part = self.get_layout(stream.info.layout).part(request.select.tensors, request.select.layers or None)
                state = self._receive(request, stream, part.pieces(_writable(room)), progress)
                state.tensors = dict(room)
                return state
            return self._receive(request, stream, [_wire.as_bytes(room)], progress)

    def get_stream(self, source: Name | Match | str, position: int | None = None, *, tensors: Iterable[str] | None = None,
                   layers: Iterable[int] | None = None, version_id: int | None = None, layout: Layout | str = "", attachment: bool = True,
                   chunk_bytes: int | None = None) -> StateStream:
        """The bytes of Name.get as an iterator of verified chunks: to pass a state on, or into a file, without holding it.

            with pool.get_stream("chat/42") as stream:
                for chunk in stream:
                    file.write(chunk)

        chunk_bytes  a multiple of 65,536 up to 4 MiB; None: 1 MiB
        The timeout runs from here to the last chunk, the time between them included. Errors are those of get, here or at any chunk.
        """
        request = _requests.get(source, position, layout, tensors, layers, version_id, attachment)
        return StateStream(self._connection, self._attempts(), request, chunk_bytes, self._verify)

    def batch_get(self, items: Iterable[batches.Get | Name | Match | str], *, all_or_none: bool = False) -> list[State | errors.StatepoolError]:
        """Many states in one message, of names that are looked up at one moment: each item's state or its error, in the order of the items.

        items        names (a str is a sequence), or statepool.Get(name, ...) with the arguments of get
        all_or_none  raise the first error instead
        The states are views of one message, which stays as long as one of them does. InvalidArgument (TOO_MANY: more than Capabilities.max_batch);
        Exhausted (MESSAGE_TOO_LARGE: ask for fewer).
        """
        return batches.batch_get(self, self._connection, self._attempts(), items, all_or_none)

    def set(self, name: str | Sequence, data: Image, position: int, *, tensors: Iterable[str] | None = None,
            layers: Iterable[int] | None = None, layout: Layout | str = "", if_revision: int | None = None,
            attachment: bytes = b"", exactness: Exactness | None = None, durability: Durability | None = None,
            ttl: Ttl = None, expire_at: Expiry | None = None, max_history: int | None = None, request_id: str | None = None) -> Info:
        """Writes a state as a new version and moves the head of the sequence to it: all or nothing.

        data             the image, or its tensors by name (then the layout is looked up unless `layout` is a Layout). A buffer of empty() brings
                         its layout, and goes through shared memory
        position         tokens consumed
        tensors, layers  `data` is these tensors in these of the model's layers alone (None: all), and all else is that of the head: then if_revision
                         is required, and the version is "edited" unless `exactness` says otherwise. Tensors by name that are not all of the
                         layout's are such a part by themselves. It must fit a message (Exhausted, MESSAGE_TOO_LARGE)
        layout           required when the sequence does not exist yet: it is made then; else checked
        if_revision      write only if this is the sequence's revision; 0: only if it does not exist
        attachment       opaque bytes beside the state
        A whole state that fits no message goes as a stream. Conflict (REVISION_MISMATCH, LAYOUT_MISMATCH), InvalidArgument (BYTES_LENGTH_MISMATCH,
        INVALID_POSITION, MISSING_FIELD ...), Exhausted. After an error nothing has changed, but for DeadlineExceeded, Unavailable and POOL_CLOSED: the write is
        whole or absent then, and a retry with the same request_id is safe.
        """
        attempts = self._attempts()
        row = arenas.row_of(data)
        if row is not None and tensors is None and layers is None:
            layout = layout or row.layout
            if row.is_shared_by(self, layout):
                return row.store(StoreItem(
                    name if isinstance(name, str) else name.name, position, if_revision=if_revision, any_revision=if_revision is None,
                    whole_row=True, attachment=attachment, exactness=exactness, durability=durability, ttl=ttl, expire_at=expire_at,
                    max_history=max_history, request_id=request_id), attempts)
        pieces, chosen = self._image(name, data, tensors, layers, layout)
        head = _requests.set(name, position, chosen, layout, if_revision, attachment, exactness, durability, ttl, expire_at, max_history,
                             request_id)
        doubt = None
        if chosen is None:
            stored = self._direct.set(self, head, [_wire.as_bytes(piece) for piece in pieces], attempts)
            # After an attempt there (head.checksum) it goes in a message alone: only to the daemon's Set it is the same request.
            if stored is None and request_id is None and not head.checksum:
                stored, doubt = self._lane.set(self, head, _wire.Pieces(pieces), attempts)
            if stored is not None:
                self._seen.learn(stored)
                return stored
        try:
            info = self._set(head, pieces, attempts)
        except errors.InvalidArgument as error:
            if doubt is not None and error.reason == "REQUEST_ID_REUSED":
                raise errors.again(doubt)  # it was stored, but the answer is lost
            raise
        self._seen.learn(info)
        return info

    def _set(self, head: pb.SetRequest, pieces: SequenceOf[_wire.Buffer], attempts: Attempts) -> Info:
        """set() in one message, or as a stream."""
        if self._verify:
            head.checksum = _wire.checksum_of(*pieces)
        if self._fits(_wire.Pieces(pieces).nbytes + head.ByteSize() + 16, attempts):  # and the tag and length of the data
            try:
                return Info.from_proto(self._connection.call("Set", _wire.with_data(head, pieces), pb.NameInfo.FromString, attempts))
            except errors.Exhausted as error:
                if not _too_large(error):
                    raise
        if head.HasField("select"):
            raise errors.Exhausted("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", "a part of a state travels in one message", "data")
        return Info.from_proto(streams.send(self._connection, attempts, head, streams.FromBuffers(pieces)))

    def set_stream(self, name: str | Sequence, source: Source, position: int, *, layout: Layout | str = "", if_revision: int | None = None,
                   attachment: bytes = b"", exactness: Exactness | None = None, durability: Durability | None = None,
                   ttl: Ttl = None, expire_at: Expiry | None = None, max_history: int | None = None, request_id: str | None = None,
                   chunk_bytes: int | None = None, progress: Progress | None = None) -> Info:
        """set() of a whole state in chunks, for any size and from anything that gives bytes; beside the source a few chunks are needed.

        source       a buffer; all tensors by name; an open binary file, from where it is to its end; an iterable of buffers of any sizes
        request_id   with your own, an upload that an earlier call (of another process, too) left unfinished goes on where it was
        chunk_bytes  a multiple of 65,536 up to 4 MiB; None: 1 MiB
        progress     called with the bytes that were handed to gRPC and with all of them (None: not known), after each chunk. It steps back when
                     some of them were lost on the way
        After a break the stream goes on behind what the daemon has. An iterable, or a file without seek(), can go back 16 MiB for that; when this is
        not enough (the daemon lost the upload) the error of the break is raised. Other arguments and errors are those of set.
        """
        rewindable: streams.Rewindable
        if isinstance(source, Mapping):
            rewindable = streams.FromBuffers(self._layout_for(name, layout).pieces(source), chunk_bytes)
        else:
            rewindable = streams.rewindable(source, chunk_bytes)
        head = _requests.set(name, position, None, layout, if_revision, attachment, exactness, durability, ttl, expire_at, max_history,
                             request_id)
        if self._verify:
            head.checksum = rewindable.checksum()
        return Info.from_proto(streams.send(self._connection, self._attempts(), head, rewindable, progress, resume=request_id is not None))

    def get_upload(self, name: str, request_id: str) -> Upload:
        """Sequence.get_upload by name."""
        request = pb.GetUploadRequest(sequence=name, request_id=request_id)
        return Upload.from_proto(self._call("GetUpload", request, pb.Upload.FromString))

    def batch(self, *, all_or_none: bool = False) -> batches.Batch:
        """Many writes that are published at one moment. See Batch: its methods add them, and run() or the end of a `with` block sends them.

        all_or_none  all of them, or none and the first error is raised. Otherwise each item's result or error is in its place
        """
        return batches.Batch(self, self._connection, self._attempts, self._verify, all_or_none)

    def fork(self, source: Name | Match | str, name: str, *, position: int | None = None, layout: Layout | str = "",
             durability: Durability | None = None, ttl: Ttl = None, expire_at: Expiry | None = None,
             max_history: int | None = None, request_id: str | None = None) -> Sequence:
        """A new sequence at the version of `source` (a handle, a match, or a sequence's name). No byte is copied.

        position  fork this version of the source's ring instead of its head
        layout    only if the source has this layout
        The child has the source's ring up to there, as far as its max_history goes, and can be rolled back by itself.
        NotFound (the source, also LAYOUT_MISMATCH and POSITION_MISMATCH); Conflict (NAME_EXISTS); InvalidArgument.
        """
        return self.fork_many(source, [name], position=position, layout=layout, durability=durability, ttl=ttl, expire_at=expire_at,
                              max_history=max_history, request_id=request_id)[0]

    def fork_many(self, source: Name | Match | str, children: Iterable[str | Sequence], *, position: int | None = None, layout: Layout | str = "",
                  durability: Durability | None = None, ttl: Ttl = None, expire_at: Expiry | None = None,
                  max_history: int | None = None, request_id: str | None = None) -> list[Sequence]:
        """fork() into many names at once, in their order: all of them or none. InvalidArgument (INVALID_OPTION: one string in the place of a list)."""
        request = _requests.fork(source, children, position, layout, durability, ttl, expire_at, max_history, request_id)
        return self._children(self._call("Fork", request, pb.ForkResponse.FromString))

    def _children(self, answer: pb.ForkResponse) -> list[Sequence]:
        return [Sequence(self, child.sequence, position=answer.position, revision=child.revision, replayed=answer.replayed)
                for child in answer.children]

    def rollback(self, name: str | Sequence, position: int | None = None, *, tokens: int | None = None, if_revision: int | None = None,
                 request_id: str | None = None) -> Info:
        """Sequence.rollback by name."""
        return self._info("Rollback", _requests.rollback(name, position, tokens, if_revision, request_id))

    def remove_range(self, name: str | Sequence, begin: int, end: int = -1, *, if_revision: int | None = None, allow_missing: bool = False,
                     request_id: str | None = None) -> Removal:
        """Sequence.remove_range by name."""
        request = _requests.remove_range(name, begin, end, if_revision, allow_missing, request_id)
        return Removal.from_proto(self._call("RemoveRange", request, pb.RemoveRangeResponse.FromString, retry=_requests.may_repeat(request)))

    def renumber(self, name: str | Sequence, begin: int = 0, end: int = -1, *, add: int | None = None, divide: int | None = None,
                 if_revision: int | None = None, request_id: str | None = None) -> Info:
        """Sequence.renumber by name."""
        return self._info("Renumber", _requests.renumber(name, begin, end, add, divide, if_revision, request_id))

    # --------------------------------------------------------------------------------------------------------- any name

    def describe(self, source: Name | Match | str) -> Info:
        """Name.describe of any source; a str is a sequence."""
        return self._info("Describe", pb.DescribeRequest(name=names.ref_of(source)))

    def delete(self, source: Name | Match | str, *, if_revision: int | None = None, allow_missing: bool = False) -> bool:
        """Name.delete of any source; a str is a sequence."""
        request = _requests.delete(source, if_revision, allow_missing)
        return self._call("Delete", request, pb.DeleteResponse.FromString, retry=_requests.may_repeat(request)).deleted

    def delete_many(self, prefix: str = "", kind: names.Kind = "sequence", *, keep: Iterable[str | Name] = (), preview: bool = False,
                    if_count: int | None = None, all: bool = False) -> Deletion:
        """Forgets all names of one kind that begin with `prefix`.

        keep      but for these (names, or handles of this kind), which don't count; they need not be there. A string alone is InvalidArgument
        preview   only count them
        if_count  only if exactly so many match: what a preview said. Conflict (COUNT_MISMATCH), and nothing was deleted, otherwise
        all       required for an empty prefix: every name of this kind
        Not one step: after an error some are gone and some are not; call it again. Retried by itself without if_count; then the answer is that
        of the last attempt.
        """
        request = pb.DeleteManyRequest(kind=_requests.enum(pb.NameKind, kind, "kind"), name_prefix=prefix, all=all, preview=preview,
                                       if_count=if_count, keep=_requests.name_list(keep, "keep", kind))
        answer = self._call("DeleteMany", request, pb.DeleteManyResponse.FromString, retry=preview or if_count is None)
        return Deletion(answer.matched, answer.deleted, answer.state_bytes, tuple(answer.names))

    def touch(self, *sources: Name | Match | str) -> list[datetime.datetime | None | errors.StatepoolError]:
        """Counts as a use of these names (a str is a sequence): their idle time starts anew. When each expires now (None: never), or its error.

        InvalidArgument (TOO_MANY: more than Capabilities.max_batch).
        """
        if not sources:
            return []
        answer = self._call("Touch", pb.TouchRequest(names=map(names.ref_of, sources)), pb.TouchResponse.FromString)
        return [errors.from_status(n.error) if n.HasField("error")
                else n.expire_time.ToDatetime(datetime.timezone.utc) if n.HasField("expire_time") else None for n in answer.names]

    def set_ttl(self, source: Name | Match | str, ttl: Ttl = None, *, expire_at: Expiry | None = None, if_revision: int | None = None) -> Info:
        """Changes when a name expires; its head and revision stay.

        ttl        idle seconds or a timedelta; math.inf: never
        expire_at  used or not: a datetime with a time zone, or seconds since the epoch. One of the two
        NotFound; Conflict (REVISION_MISMATCH); InvalidArgument (INVALID_OPTION: beyond Capabilities.max_ttl; MISSING_FIELD).
        """
        request = pb.SetTtlRequest(name=names.ref_of(source), if_revision=if_revision)
        _requests.expiration(request, ttl, expire_at)
        return self._info("SetTtl", request)

    def list(self, kind: names.Kind = "sequence", prefix: str = "", *, page_size: int = 0) -> Iterator[Info]:
        """Names of one kind that begin with `prefix`, in byte order, asked for page by page (page_size; 0: the daemon's) as they are used.

        A page is consistent in itself; names made meanwhile may be missed.
        """
        token = ""
        while True:
            request = pb.ListRequest(kind=_requests.enum(pb.NameKind, kind, "kind"), name_prefix=prefix, page_size=page_size, page_token=token)
            answer = self._call("List", request, pb.ListResponse.FromString)
            yield from map(Info.from_proto, answer.names)
            token = answer.next_page_token
            if not token:
                return

    # ------------------------------------------------------------------------------------------------------- snapshots

    def snapshot(self, source: Name | Match | str, name: str, *, durable: bool = False, position: int | None = None,
                 durability: Durability | None = None, ttl: Ttl = None,
                 expire_at: Expiry | None = None, request_id: str | None = None) -> Snapshot:
        """Gives the version of `source` (of its head, or at `position`) a fixed name. Costs no bytes.

        durable  the same as durability="sync": on disk before this returns. Otherwise the source's durability
        NotFound (the source); Conflict (NAME_EXISTS): a snapshot's name is free again only after delete().
        """
        request = _requests.snapshot(source, name, durable, position, durability, ttl, expire_at, request_id)
        return Snapshot(self, self._info("Snapshot", request).name)

    def restore(self, snapshot: Snapshot | str, name: str, *, if_revision: int | None = None, durability: Durability | None = None,
                ttl: Ttl = None, expire_at: Expiry | None = None, max_history: int | None = None,
                request_id: str | None = None) -> Sequence:
        """Moves the head of the sequence `name` to a snapshot's version; makes the sequence when it does not exist.

        NotFound (the snapshot); Conflict (LAYOUT_MISMATCH, REVISION_MISMATCH).
        """
        request = _requests.restore(snapshot, name, if_revision, durability, ttl, expire_at, max_history, request_id)
        return self._sequence(self._info("Restore", request))

    # -------------------------------------------------------------------------------------------------------- prefixes

    def publish_prefix(self, layout: Layout | str, tokens: Tokens, source: Name | Match | str, *, extra_key: bytes = b"",
                       salt: bytes = b"", position: int | None = None, durability: Durability | None = None,
                       ttl: Ttl = None, expire_at: Expiry | None = None) -> Prefix:
        """Makes the version of `source` findable by `tokens` (0..2^32-1 each), the ones that lead to it.

        extra_key  what else decides the state: LoRA, hashes of images ...
        salt       keeps those apart who must not see whose prompts were computed before: found with the same salt only
        position   publish this version of the source's ring instead of its head; it must be the number of tokens either way
        Publishing what is published changes nothing (already_published). Conflict (POSITION_MISMATCH, LAYOUT_MISMATCH); NotFound.
        """
        answer = self._call("PublishPrefix", pb.PublishPrefixRequest(
            layout=_requests.fingerprint(layout), tokens=_requests.tokens_of(tokens), extra_key=extra_key, salt=salt, source=names.ref_of(source),
            position=position, options=_requests.options(durability, ttl, expire_at, None)), pb.PublishPrefixResponse.FromString)
        return Prefix(self, answer.prefix, position=answer.info.position, already_published=answer.already_published)

    def match_prefix(self, layout: Layout | str, tokens: Tokens, max_position: int | None = None, max_results: int = 1,
                     extra_key: bytes = b"", salt: bytes = b"") -> Match:
        """The longest published prefixes of `tokens`. A miss is not an error: the answer is falsy and has a miss_reason.

        max_position  longest prefix wanted; None: len(tokens) - 1, so that something is left to compute
        max_results   1..64
        salt          that of publish_prefix
        """
        answer = self._call("MatchPrefix", pb.MatchPrefixRequest(
            layout=_requests.fingerprint(layout), tokens=_requests.tokens_of(tokens), extra_key=extra_key, salt=salt, max_position=max_position,
            max_results=max_results), pb.MatchPrefixResponse.FromString)
        matches = tuple(Prefix(self, m.prefix, position=m.position) for m in answer.matches)
        return Match(matches, answer.miss_reason, answer.nearest_published_position)

    # ---------------------------------------------------------------------------------------------------------- arenas

    def open_arena(self, layout: Layout | str, rows: int = 64, steps: int = 0, view: View = View(), *, direct: bool = False,
                   device: Any = None) -> Arena:
        """Memory of the daemon's on this machine, with rows for so many states of a layout, in the shapes that `view` says. See Arena.

        steps   states that a row holds, for speculative decoding: 0 (one, without an axis of its own) .. Capabilities.max_arena_steps
        direct  this process copies, in the thread that calls, where it may (direct ways): the daemon's threads are left to others. Otherwise the daemon
                does, and its threads share the work
        device  of the daemon's devices the one whose memory it is: a name of Capabilities.devices, or a torch.device (or 1, "cuda:1"): the daemon must
                have that GPU. None: the daemon's only one; of several GPUs the one that is torch's current one, else the first that is healthy
        InvalidArgument (INVALID_VIEW, INVALID_OPTION); NotFound (LAYOUT_UNKNOWN); Exhausted (TOO_MANY_ARENAS, ARENA_TOO_LARGE, HOT_FULL); Conflict
        (ARENAS_OFF: Capabilities.arena_socket is empty); Unavailable (SOCKET_UNREACHABLE: the daemon is on another machine; DEVICE_FAILED).
        """
        name = arenas.device_of(self, device)
        if self._lane.has_rows:
            try:
                return Arena(self, layout, rows, steps, view, self._attempts(retry=False), direct=direct, device=name)
            except (errors.Exhausted, errors.Unavailable) as error:
                if isinstance(error, errors.Exhausted):
                    self._lane.give_way()
        return Arena(self, layout, rows, steps, view, self._attempts(), direct=direct, device=name)

    def empty(self, layout: Layout | str, count: int = 1) -> Buffers:
        """Arrays of Layout.state_bytes (uint8) for `get(out=...)` and `set`, which then go through memory shared with the daemon, not in messages.

            buffer, = pool.empty(layout)
            state = pool.get("chat/42", out=buffer)          # state.tensors are views of it
            pool.set("chat/42", buffer, 129)

        Their contents are undefined. They are for whole states of this layout; elsewhere they are arrays as any other, and that is all they are where
        arenas are not to be had. A row is free for another buffer when its array and all views of it are gone.
        Limits: rows are the pool's until it is closed, and count as those of open_arena: as many as were ever in use at once, and at most as many
        again (up to arenas.SPARE_BYTES at a time). Exhausted (TOO_MANY_ARENAS, ARENA_TOO_LARGE, HOT_FULL).
        A restart of the daemon makes zeros of them all; then set() of each raises ContentsGone once, unless get() has filled it. After a call that got no
        answer the daemon may still be copying: leave the buffer as it is until another call with it is answered.
        """
        layout = layout if isinstance(layout, Layout) else self.get_layout(layout)
        try:
            return self._rooms.take(self, layout, count)
        except errors.Exhausted:
            if not self._lane.give_way():
                raise
        return self._rooms.take(self, layout, count)

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

    def _attempts(self, retry: bool = True) -> Attempts:
        return Attempts(self._timeout, self._retries if retry else 0)

    def _call(self, method: str, request: Message, parse: Callable[[bytes], _T], *, retry: bool = True) -> _T:
        """One call with its retries. REQUIRES: `retry` only if doing it twice is the same as doing it once."""
        return self._connection.call(method, request, parse, self._attempts(retry))

    def _info(self, method: str, request: Message) -> Info:
        return Info.from_proto(self._call(method, request, pb.NameInfo.FromString))

    def _sequence(self, info: Info) -> Sequence:
        return Sequence(self, info.name, position=info.position, revision=info.revision, replayed=info.replayed)

    def _state(self, request: pb.GetRequest, response: pb.GetResponse, data: memoryview, to: _wire.Buffer | None = None) -> State:
        """The state that this is the answer for, whose bytes are here, or are copied to `to`. DataLoss; InvalidArgument when they don't fit."""
        info = Info.from_proto(response.info, copy=True)
        if to is None:
            return self._verified(request, info, data, response.attachment, response.data_checksum)
        room = _exactly(to, len(data))
        actual = None
        if self._verify:
            actual = _wire.copy_and_hash(room, data)
        else:
            np.copyto(np.frombuffer(room, np.uint8), np.frombuffer(data, np.uint8))
        return self._checked(request, info, room, response.attachment, response.data_checksum, actual)

    def _verified(self, request: pb.GetRequest, info: Info, data: memoryview, attachment: bytes, data_checksum: str = "") -> State:
        return self._checked(request, info, data, attachment, data_checksum, _wire.checksum_of(data) if self._verify else None)

    def _checked(self, request: pb.GetRequest, info: Info, data: memoryview, attachment: bytes, data_checksum: str, actual: str | None) -> State:
        """actual: the checksum that `data` has, unless nobody wants to know."""
        self._seen.learn(info)
        expected = data_checksum or info.checksum
        if actual is not None and actual != expected:
            raise names.wrong_bytes(info, expected, actual)
        return State(self, info, data, attachment, request.select if request.HasField("select") else None, expected)

    def _receive(self, request: pb.GetRequest, stream: StateStream, room: SequenceOf[_wire.Buffer], progress: Progress | None) -> State:
        """Reads all of `stream` into the buffers, laid end to end."""
        pieces = _wire.Pieces(room)
        if pieces.nbytes < stream.nbytes:
            raise errors.invalid("BYTES_LENGTH_MISMATCH", f"the state has {stream.nbytes} bytes, there is room for {pieces.nbytes}", "room",
                                 expected=stream.nbytes, actual=pieces.nbytes)
        at = 0
        for chunk in stream:
            pieces.write(at, chunk)
            at += len(chunk)
            if progress is not None:
                progress(at, stream.nbytes)
        data = _wire.as_bytes(room[0])[:at] if len(room) == 1 else memoryview(b"")  # arrays are the caller's to find again
        return State(self, stream.info, data, stream.attachment, request.select if request.HasField("select") else None, stream.data_checksum)

    def _fits(self, nbytes: int, attempts: Attempts) -> bool:
        """Whether a request of this size fits a message, as far as is known."""
        connection = self._connection
        if nbytes <= _SURELY_FITS_BYTES and nbytes <= connection.max_message_bytes:
            return True
        if connection.daemon_max_message_bytes is None:
            told = connection.call("GetCapabilities", pb.GetCapabilitiesRequest(), pb.Capabilities.FromString, attempts)
            connection.daemon_max_message_bytes = told.max_message_bytes
        return nbytes <= min(connection.max_message_bytes, connection.daemon_max_message_bytes)

    def _layout_for(self, name: str | Name, layout: Layout | str) -> Layout:
        """That of the sequence, unless the caller says which."""
        return layout if isinstance(layout, Layout) else self.get_layout(layout or self.describe(name).layout)

    def _image(self, name: str | Name, data: Image, tensors: Iterable[str] | None, layers: Iterable[int] | None,
               layout: Layout | str) -> tuple[SequenceOf[_wire.Buffer], pb.Select | None]:
        """What is to be written, as buffers laid end to end, and which part of the state it is."""
        if not isinstance(data, Mapping):
            return [data], _requests.select(tensors, layers)
        layout = self._layout_for(name, layout)
        if tensors is None and data.keys() < {t.name for t in layout.tensors}:
            tensors = data.keys()
        chosen = _requests.select(tensors, layers)
        block = layout if chosen is None else layout.part(chosen.tensors or None, chosen.layers or None)
        return block.pieces(data), chosen

    def _remember(self, info: pb.LayoutInfo) -> Layout:
        layout = Layout.from_proto(info)
        self._connection.layouts[layout.fingerprint] = layout
        return layout


def _too_large(error: errors.Exhausted) -> bool:
    """The message was, for the daemon or for the transport of either side: nothing was done."""
    return error.reason in ("", "MESSAGE_TOO_LARGE") and error.retry_after is None


def _exactly(out: Out, nbytes: int) -> memoryview:
    """A view of its bytes. InvalidArgument unless there are so many."""
    view = _wire.as_bytes(out)
    if len(view) != nbytes:
        raise errors.invalid("BYTES_LENGTH_MISMATCH", f"the state has {nbytes} bytes, there is room for {len(view)}", "out", expected=nbytes,
                             actual=len(view))
    return view


def _writable(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """What pieces() will give views of, not copies. InvalidArgument otherwise."""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.flags.writeable:
            raise errors.invalid("TENSORS_MISMATCH", f"tensor {name!r} is no writable C-contiguous array", name)
    return arrays
