# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Names of a pool: what the daemon says of them (Info), and handles to use them with (Sequence, Snapshot, Prefix).

A handle is a name and the pool it belongs to, nothing more: making one costs no call, it does not keep the name alive, and it may be used from any
thread. Every method that calls the daemon raises the errors of statepool.errors; a name that is not there is NotFound, with the reason.
"""
from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from . import _wire, errors, layouts
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from .client import Pool
    from .streams import Progress, Source, StateStream

_T = TypeVar("_T", bound="FromMessage")
Kind = Literal["sequence", "snapshot", "prefix"]
Durability = Literal["volatile", "write_behind", "sync"]
"""volatile: lives until the daemon dies. write_behind (default): on disk soon after the answer. sync: on disk before the answer."""
Exactness = Literal["exact", "edited", "lossy"]
"""exact: as a model computed it. edited: changed by hand. lossy: lost precision on the way."""
Image = bytes | bytearray | memoryview | npt.NDArray[np.uint8] | Mapping[str, npt.ArrayLike]
"""A state to write, or a part of one: its bytes (anything with a contiguous buffer), or its tensors by name, as Layout.pack and Part.pack do."""
Room = bytearray | memoryview | npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]
"""Where a state is to be read into: a writable contiguous buffer, or an array [layers, *axes] for each tensor."""
Out = bytearray | memoryview | npt.NDArray[Any]
"""Where a whole answer of get() is to be: a writable contiguous buffer of its length."""
Expiry = datetime.datetime | float
"""A point in time: a datetime with a time zone, or seconds since the Unix epoch."""


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of a sequence's ring."""

    position: int
    version_id: int
    parent_version_id: int  # 0: none
    exactness: str
    checksum: str
    tier: str


class FromMessage:
    """A dataclass whose fields are taken out of a message of the daemon's when the first of them is asked for: of a large batch most never are. Until then
    the message keeps all of the answer that it is a part of."""

    @classmethod
    def of(cls: type[_T], message: Any) -> _T:
        made = object.__new__(cls)
        object.__setattr__(made, "_message", message)
        return made

    @staticmethod
    def _fields_of(message: Any) -> dict[str, Any]:
        """Of the message."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        message = self.__dict__.get("_message")
        return {k: v for k, v in self.__dict__.items() if k != "_message"} if message is None else self._fields_of(message)

    if not TYPE_CHECKING:  # to a type checker there are the dataclass's fields, and no others
        def __getattr__(self, field):
            fields = self.__dict__
            message = fields.get("_message")
            if message is not None:
                fields.update(self._fields_of(message))
                fields.pop("_message", None)
            if field not in fields:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {field!r}")
            return fields[field]


@dataclasses.dataclass(frozen=True)
class Info(FromMessage):
    """What a name points at, when the daemon answered."""

    kind: str
    name: str
    layout: str  # fingerprint
    position: int  # tokens consumed
    revision: int
    durable_revision: int  # equal to revision: a crash loses nothing. 0: nothing is recorded yet
    checksum: str
    exactness: str
    tier: str  # "hot", "warm" or "cold"
    version_id: int
    parent_version_id: int
    state_bytes: int
    attachment_bytes: int
    durability: str
    max_history: int
    history: tuple[Version, ...]  # newest first; only from describe() and renumber()
    rollback_tokens: int | None  # how many tokens the head can go back by; where there is a history
    ttl: float | None  # idle seconds
    expire_time: datetime.datetime | None
    create_time: datetime.datetime | None
    replayed: bool  # the answer to an earlier request with this request_id
    flush_lag: float | None  # seconds that its oldest unrecorded change waits; None: none does, or it is volatile

    @staticmethod
    def from_proto(info: pb.NameInfo, *, copy: bool = False) -> Info:
        """copy: it does not keep the answer, which has bytes of states or attachments."""
        if copy:
            own = pb.NameInfo()
            own.CopyFrom(info)
            info = own
        return Info.of(info)

    @staticmethod
    def _fields_of(info: pb.NameInfo) -> dict[str, Any]:
        return {
            "kind": info.name.WhichOneof("name") or "", "name": _name_of(info.name), "layout": info.layout, "position": info.position,
            "revision": info.revision, "durable_revision": info.durable_revision, "checksum": info.checksum,
            "exactness": enum_name(pb.Exactness, info.exactness), "tier": enum_name(pb.Tier, info.tier), "version_id": info.version_id,
            "parent_version_id": info.parent_version_id, "state_bytes": info.state_bytes, "attachment_bytes": info.attachment_bytes,
            "durability": enum_name(pb.Durability, info.durability), "max_history": info.max_history,
            "history": tuple(Version(v.position, v.version_id, v.parent_version_id, enum_name(pb.Exactness, v.exactness), v.checksum,
                                     enum_name(pb.Tier, v.tier)) for v in info.history),
            "rollback_tokens": info.rollback_tokens if info.HasField("rollback_tokens") else None,
            "ttl": info.ttl.ToTimedelta().total_seconds() if info.HasField("ttl") else None,
            "expire_time": info.expire_time.ToDatetime(datetime.timezone.utc) if info.HasField("expire_time") else None,
            "create_time": info.create_time.ToDatetime(datetime.timezone.utc) if info.HasField("create_time") else None,
            "replayed": info.replayed,
            "flush_lag": info.flush_lag.ToTimedelta().total_seconds() if info.HasField("flush_lag") else None}


@dataclasses.dataclass(frozen=True)
class Upload:
    """A stream of chunks that is not whole yet."""

    received_bytes: int  # verified, and kept: a stream with the same request_id goes on here
    total_bytes: int
    expire_time: datetime.datetime | None  # until then it is kept; None while a call goes on with it

    @staticmethod
    def from_proto(upload: pb.Upload) -> Upload:
        return Upload(upload.received_bytes, upload.total_bytes,
                      upload.expire_time.ToDatetime(datetime.timezone.utc) if upload.HasField("expire_time") else None)


@dataclasses.dataclass(frozen=True)
class Deletion:
    """The answer of Pool.delete_many."""

    matched: int
    deleted: int  # 0 in a preview
    state_bytes: int  # of the heads of those that match, each image once; other names may need some of them too
    names: tuple[str, ...]  # the first 100 that match, in byte order


@dataclasses.dataclass(frozen=True)
class Removal:
    """The answer of Pool.remove_range. True unless it was refused."""

    done: bool  # False: the ring holds no version at the range's begin, and nothing changed
    deleted: bool  # the sequence is gone
    info: Info | None  # what the sequence is now; None: deleted, or absent (with allow_missing)

    @staticmethod
    def from_proto(removal: pb.RemoveRangeResponse) -> Removal:
        return Removal(removal.done, removal.deleted, Info.from_proto(removal.info) if removal.HasField("info") else None)

    def __bool__(self) -> bool:
        return self.done


class State:
    """The bytes of one version, or of a part of it, verified against their checksum unless Pool.get(copy=False) gave them. Immutable; may be used from any
    thread.

    data        view of the bytes, Layout.state_bytes long (Part.nbytes for a part); read-only unless the caller gave the memory
    attachment  the opaque bytes beside it
    info        all that the daemon said of the version; its checksum and state_bytes are those of the whole image
    """

    def __init__(self, pool: Pool, info: Info, data: memoryview, attachment: bytes, select: pb.Select | None = None, data_checksum: str = "") -> None:
        """data_checksum: of `data`; needed for a part."""
        self._pool = pool
        self._data_checksum = data_checksum or info.checksum
        self._select = select
        self.info = info
        self.data = data
        self.attachment = attachment

    @property
    def position(self) -> int:
        """Tokens consumed."""
        return self.info.position

    @property
    def revision(self) -> int:
        """The name's revision, for if_revision."""
        return self.info.revision

    @property
    def checksum(self) -> str:
        return self.info.checksum

    def verify(self) -> None:
        """Raises DataLoss unless the bytes have, now, the checksum that the daemon told."""
        actual = _wire.checksum_of(*([self.data] if len(self.data) else self.part.pieces(self.tensors)))
        if actual != self._data_checksum:
            raise wrong_bytes(self.info, self._data_checksum, actual)

    @functools.cached_property
    def part(self) -> layouts.Part:
        """Which tensors and layers `data` has. Asks the daemon for the layout the first time that this pool meets it."""
        layout = self._pool.get_layout(self.info.layout)
        chosen = self._select
        return layout.part() if chosen is None else layout.part(chosen.tensors or None, chosen.layers or None)

    @functools.cached_property
    def tensors(self) -> dict[str, layouts.Array]:
        """Arrays [layers, *axes] over `data`, nothing copied: those tensors, and of each those layers, that were asked for. As `part` says."""
        return self.part.views(self.data)

    def __repr__(self) -> str:
        return f"<State of {self.info.kind} {self.info.name!r} at position {self.position}, {len(self.data)} bytes>"


class Name:
    """A name of any kind."""

    kind: Kind

    def __init__(self, pool: Pool, name: str) -> None:
        self._pool = pool
        self.name = name

    @property
    def ref(self) -> pb.NameRef:
        """The message that names it in requests."""
        return pb.NameRef(**{self.kind: self.name})

    def get(self, position: int | None = None, *, tensors: Iterable[str] | None = None, layers: Iterable[int] | None = None,
            version_id: int | None = None, layout: layouts.Layout | str = "", attachment: bool = True, out: Out | None = None,
            copy: bool = True) -> State:
        """The bytes: of the head, of the newest version of the ring at exactly `position`, or of the version with this id. Counts as a use.

        tensors, layers  only these tensors, only these of the model's layers; None: all
        layout           answer only if the name has this layout
        attachment       False: leave the attachment out
        out              where they are to be: a writable contiguous buffer of their length, of which State.data is a view then. After an error its
                         contents are undefined. A buffer of Pool.empty goes through shared memory, and takes states of its layout
        copy             False: where the daemon is on this machine and lets its workers (Capabilities.copy_mode "direct"), State.data is a view of
                         the daemon's own memory, which can't be written. No byte is copied, nor verified again: State.verify() does that. The bytes
                         stay as they are, whatever becomes of the name, and keep their place in the daemon's memory, until the last array or view of
                         them is gone. Where that can't be, or not now (also for parts), it is a copy as always. Not with `out`
        A state that fits no message comes as a stream. NotFound (also LAYOUT_MISMATCH, POSITION_MISMATCH, VERSION_MISMATCH), DataLoss, Exhausted.
        """
        return self._pool.get(self, position, tensors=tensors, layers=layers, version_id=version_id, layout=layout, attachment=attachment, out=out,
                              copy=copy)

    def get_into(self, room: Room, position: int | None = None, *, tensors: Iterable[str] | None = None, layers: Iterable[int] | None = None,
                 version_id: int | None = None, layout: layouts.Layout | str = "", attachment: bool = True, chunk_bytes: int | None = None,
                 progress: Progress | None = None) -> State:
        """Pool.get_into with this name."""
        return self._pool.get_into(self, room, position, tensors=tensors, layers=layers, version_id=version_id, layout=layout, attachment=attachment,
                                   chunk_bytes=chunk_bytes, progress=progress)

    def get_stream(self, position: int | None = None, *, tensors: Iterable[str] | None = None, layers: Iterable[int] | None = None,
                   version_id: int | None = None, layout: layouts.Layout | str = "", attachment: bool = True,
                   chunk_bytes: int | None = None) -> StateStream:
        """Pool.get_stream with this name."""
        return self._pool.get_stream(self, position, tensors=tensors, layers=layers, version_id=version_id, layout=layout, attachment=attachment,
                                     chunk_bytes=chunk_bytes)

    def describe(self) -> Info:
        """What the name points at, with its history. Does not count as a use."""
        return self._pool.describe(self)

    def touch(self) -> datetime.datetime | None:
        """Counts as a use: the idle time starts anew. When the name expires now; None: never."""
        answer = self._pool.touch(self)[0]
        if isinstance(answer, errors.StatepoolError):
            raise errors.again(answer)
        return answer

    def set_ttl(self, ttl: float | datetime.timedelta | None = None, *, expire_at: Expiry | None = None, if_revision: int | None = None) -> Info:
        """Pool.set_ttl with this name."""
        return self._pool.set_ttl(self, ttl, expire_at=expire_at, if_revision=if_revision)

    def delete(self, *, if_revision: int | None = None, allow_missing: bool = False) -> bool:
        """Forgets the name; waits for the disk if it is recorded there. False: it was absent (with allow_missing).

        Retried by itself only with allow_missing: there is no request_id to tell a second deletion from a first one.
        """
        return self._pool.delete(self, if_revision=if_revision, allow_missing=allow_missing)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class Sequence(Name):
    """A name with a moving head and a short ring of earlier versions.

    position, revision, replayed  as in the answer that made this handle; position and revision are None from Pool.sequence(), and no later
    call changes them: describe() and the answers of set() and rollback() tell what holds then.
    """

    kind = "sequence"

    def __init__(self, pool: Pool, name: str, *, position: int | None = None, revision: int | None = None, replayed: bool = False) -> None:
        super().__init__(pool, name)
        self.position = position
        self.revision = revision
        self.replayed = replayed

    def set(self, data: Image, position: int, *, tensors: Iterable[str] | None = None, layers: Iterable[int] | None = None,
            layout: layouts.Layout | str = "", if_revision: int | None = None, attachment: bytes = b"", exactness: Exactness | None = None,
            durability: Durability | None = None, ttl: float | datetime.timedelta | None = None, expire_at: Expiry | None = None,
            max_history: int | None = None, request_id: str | None = None) -> Info:
        """Pool.set with this name."""
        return self._pool.set(
            self.name, data, position, tensors=tensors, layers=layers, layout=layout, if_revision=if_revision, attachment=attachment,
            exactness=exactness, durability=durability, ttl=ttl, expire_at=expire_at, max_history=max_history, request_id=request_id)

    def set_stream(self, source: Source, position: int, *, layout: layouts.Layout | str = "", if_revision: int | None = None,
                   attachment: bytes = b"", exactness: Exactness | None = None, durability: Durability | None = None,
                   ttl: float | datetime.timedelta | None = None, expire_at: Expiry | None = None, max_history: int | None = None,
                   request_id: str | None = None, chunk_bytes: int | None = None, progress: Progress | None = None) -> Info:
        """Pool.set_stream with this name."""
        return self._pool.set_stream(
            self.name, source, position, layout=layout, if_revision=if_revision, attachment=attachment, exactness=exactness,
            durability=durability, ttl=ttl, expire_at=expire_at, max_history=max_history, request_id=request_id, chunk_bytes=chunk_bytes,
            progress=progress)

    def get_upload(self, request_id: str) -> Upload:
        """How much of a set_stream with this request_id has arrived and is kept. NotFound (UPLOAD_UNKNOWN)."""
        return self._pool.get_upload(self.name, request_id)

    def rollback(self, position: int | None = None, *, tokens: int | None = None, if_revision: int | None = None,
                 request_id: str | None = None) -> Info:
        """Moves the head back to the newest version at exactly `position`, or back by so many `tokens`; later versions are dropped.

        tokens  0..Info.rollback_tokens of describe(): versions behind the head, each one token back. Conflict (HISTORY_TOO_SHORT, metadata
                "available") for more
        NotFound (POSITION_MISMATCH, metadata "positions") when the ring does not hold the position; nothing changes then.
        """
        return self._pool.rollback(self.name, position, tokens=tokens, if_revision=if_revision, request_id=request_id)

    def remove_range(self, begin: int, end: int = -1, *, if_revision: int | None = None, allow_missing: bool = False,
                     request_id: str | None = None) -> Removal:
        """Takes the tokens with the indices [begin, end) out of the sequence, as far as that can be done: llama.cpp's seq_rm.

        The indices of a state at position P are 0..P-1; a negative begin is 0, a negative end is after all of them. A range with all tokens deletes
        the sequence. One with the last but not the first moves the head back to position `begin` if the ring holds it, and is refused (a false
        answer, and nothing changes) if not. One without the last changes nothing, and is done.

        allow_missing  a sequence that is not there is fine
        Retried by itself unless it might delete and allow_missing is not set. NotFound; Conflict (REVISION_MISMATCH).
        """
        return self._pool.remove_range(self.name, begin, end, if_revision=if_revision, allow_missing=allow_missing, request_id=request_id)

    def renumber(self, begin: int = 0, end: int = -1, *, add: int | None = None, divide: int | None = None, if_revision: int | None = None,
                 request_id: str | None = None) -> Info:
        """Gives the sequence another position if its last token is one of [begin, end), as in remove_range: llama.cpp's seq_add and seq_div.

        add     to the position; may be negative
        divide  the last token's index, rounded down; at least 1. One of the two
        No byte is copied. The versions behind the head go along as far as their own last tokens are in the range; the rest of the ring is dropped.
        The states are "edited" then. What it is now, with its history. InvalidArgument (INVALID_POSITION: the last token's index would be negative);
        NotFound; Conflict (REVISION_MISMATCH).
        """
        return self._pool.renumber(self.name, begin, end, add=add, divide=divide, if_revision=if_revision, request_id=request_id)


class Snapshot(Name):
    """A name with a fixed version."""

    kind = "snapshot"


class Prefix(Name):
    """A version that is found by the tokens that lead to it.

    position           number of its tokens; None from Pool.name()
    already_published  it was there before: the version is that of the first publisher (only from Pool.publish_prefix)
    """

    kind = "prefix"

    def __init__(self, pool: Pool, name: str, *, position: int | None = None, already_published: bool = False) -> None:
        super().__init__(pool, name)
        self.position = position
        self.already_published = already_published


@dataclasses.dataclass(frozen=True)
class Match:
    """The answer of Pool.match_prefix. True on a hit; then it may be forked like the longest of its matches."""

    matches: tuple[Prefix, ...]  # longest first
    miss_reason: str  # "" on a hit, else NEVER_PUBLISHED, EXPIRED, EVICTED, DELETED, POSITION_MISMATCH ...
    nearest_published_position: int  # on a miss: the shortest published prefix beyond max_position; 0: none

    def __bool__(self) -> bool:
        return bool(self.matches)

    @property
    def position(self) -> int:
        """Number of tokens that need not be computed again; 0 on a miss."""
        return (self.matches[0].position or 0) if self.matches else 0

    @property
    def prefix(self) -> str:
        """Name of the longest match; "" on a miss."""
        return self.matches[0].name if self.matches else ""


def ref_of(source: Name | Match | str) -> pb.NameRef:
    """How a request names `source`; a str is a sequence. InvalidArgument (MISSING_FIELD) for a miss."""
    if isinstance(source, str):
        return pb.NameRef(sequence=source)
    if isinstance(source, Match):
        if not source:
            raise errors.invalid("MISSING_FIELD", f"this match is a miss: {source.miss_reason}", "source")
        return source.matches[0].ref
    return source.ref


def wrong_bytes(info: Info, expected: str, actual: str) -> errors.DataLoss:
    return errors.DataLoss("DATA_LOSS", "CHECKSUM_MISMATCH", f"{info.kind} {info.name!r} is not here as it was stored", "data",
                           {"expected": expected, "actual": actual})


@functools.lru_cache(maxsize=256)
def enum_name(enum: Any, number: int) -> str:
    """Lower-case name of an enum's value; "" for 0, and digits for one that this library does not know."""
    return str(enum.Name(number)).lower() if number in enum.values() and number else str(number or "")


def _name_of(ref: pb.NameRef) -> str:
    kind = ref.WhichOneof("name")
    return getattr(ref, kind) if kind else ""
