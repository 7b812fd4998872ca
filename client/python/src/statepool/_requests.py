# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The messages of requests, from what users write. A call of its own and an item of a batch are made by the same function.

InvalidArgument for what can't be said in a message; all else is left to the daemon to refuse.
"""
from __future__ import annotations

import datetime
import math
import os
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
import numpy.typing as npt

from . import errors, names
from ._wire import message
from .layouts import Layout
from .names import Durability, Exactness, Expiry, Match, Name
from .v1 import statepool_pb2 as pb

Tokens = SequenceOf[int] | npt.NDArray[np.integer]
Ttl = float | datetime.timedelta | None


def get(source: Name | Match | str, position: int | None, layout: Layout | str, tensors: Iterable[str] | None, layers: Iterable[int] | None,
        version_id: int | None, attachment: bool) -> pb.GetRequest:
    return message(pb.GetRequest, name=names.ref_of(source), position=position, layout=fingerprint(layout), omit_attachment=not attachment,
                   select=select(tensors, layers), version_id=version_id or 0)


def create(layout: Layout | str, name: str, durability: Durability | None, ttl: Ttl, expire_at: Expiry | None, max_history: int | None,
           request_id: str | None) -> pb.CreateRequest:
    return message(pb.CreateRequest, sequence=name, layout=fingerprint(layout), options=options(durability, ttl, expire_at, max_history),
                   request_id=id_or_new(request_id))


def set(name: str | Name, position: int, chosen: pb.Select | None, layout: Layout | str, if_revision: int | None, attachment: bytes,
        exactness: Exactness | None, durability: Durability | None, ttl: Ttl, expire_at: Expiry | None, max_history: int | None,
        request_id: str | None) -> pb.SetRequest:
    """Without data and checksum."""
    if chosen is not None and if_revision is None:
        raise errors.invalid("MISSING_FIELD", "writing a part of a state needs if_revision: that of the state whose rest it keeps", "if_revision")
    return message(pb.SetRequest, sequence=name if isinstance(name, str) else name.name, layout=fingerprint(layout), position=position, attachment=attachment,
                   if_revision=if_revision, request_id=id_or_new(request_id), options=options(durability, ttl, expire_at, max_history),
                   exactness=enum(pb.Exactness, exactness, "exactness"), select=chosen)


def fork(source: Name | Match | str, children: Iterable[str | Name], position: int | None, layout: Layout | str, durability: Durability | None,
         ttl: Ttl, expire_at: Expiry | None, max_history: int | None, request_id: str | None) -> pb.ForkRequest:
    return message(pb.ForkRequest, source=names.ref_of(source), position=position, layout=fingerprint(layout), children=name_list(children, "children", "sequence"),
                   options=options(durability, ttl, expire_at, max_history), request_id=id_or_new(request_id))


def rollback(name: str | Name, position: int | None, tokens: int | None, if_revision: int | None, request_id: str | None) -> pb.RollbackRequest:
    if (position is None) == (tokens is None):
        raise errors.invalid("INVALID_OPTION", "say where to go back to by a position, or by how many tokens", "tokens")
    return message(pb.RollbackRequest, sequence=name if isinstance(name, str) else name.name, position=position or 0, tokens=tokens, if_revision=if_revision,
                   request_id=id_or_new(request_id))


def remove_range(name: str | Name, begin: int, end: int, if_revision: int | None, allow_missing: bool,
                 request_id: str | None) -> pb.RemoveRangeRequest:
    return message(pb.RemoveRangeRequest, sequence=name if isinstance(name, str) else name.name, begin=begin, end=end, if_revision=if_revision,
                   allow_missing=allow_missing, request_id=id_or_new(request_id))


def renumber(name: str | Name, begin: int, end: int, add: int | None, divide: int | None, if_revision: int | None,
             request_id: str | None) -> pb.RenumberRequest:
    if add is not None and divide is not None:
        raise errors.invalid("INVALID_OPTION", "add and divide exclude each other", "change")
    return message(pb.RenumberRequest, sequence=name if isinstance(name, str) else name.name, begin=begin, end=end, add=add, divide=divide,
                   if_revision=if_revision, request_id=id_or_new(request_id))


def may_repeat(request: pb.RemoveRangeRequest | pb.DeleteRequest) -> bool:
    """Whether it may be sent again by itself: a second deletion finds nothing, which is an error unless that is fine."""
    return request.allow_missing or isinstance(request, pb.RemoveRangeRequest) and request.begin > 0


def snapshot(source: Name | Match | str, name: str, durable: bool, position: int | None, durability: Durability | None, ttl: Ttl,
             expire_at: Expiry | None, request_id: str | None) -> pb.SnapshotRequest:
    if durable and durability not in (None, "sync"):
        raise errors.invalid("INVALID_OPTION", "durable says sync, durability says otherwise", "options.durability")
    return message(pb.SnapshotRequest, source=names.ref_of(source), position=position, snapshot=name,
                   options=options("sync" if durable else durability, ttl, expire_at, None), request_id=id_or_new(request_id))


def restore(snapshot: Name | str, name: str, if_revision: int | None, durability: Durability | None, ttl: Ttl, expire_at: Expiry | None,
            max_history: int | None, request_id: str | None) -> pb.RestoreRequest:
    return message(pb.RestoreRequest, snapshot=snapshot if isinstance(snapshot, str) else snapshot.name, sequence=name, if_revision=if_revision,
                   options=options(durability, ttl, expire_at, max_history), request_id=id_or_new(request_id))


def delete(source: Name | Match | str, if_revision: int | None, allow_missing: bool) -> pb.DeleteRequest:
    return message(pb.DeleteRequest, name=names.ref_of(source), if_revision=if_revision, allow_missing=allow_missing)


def name_list(given: Iterable[str | Name], field: str, kind: str) -> list[str]:
    """Names of one kind, or handles of such. A string is refused: its letters would be taken for names."""
    if isinstance(given, (str, bytes, Name)):
        raise errors.invalid("INVALID_OPTION", "one name in the place of several: give a list", field)
    listed = list(given)
    for i, name in enumerate(listed):
        if isinstance(name, Name) and name.kind != kind:
            raise errors.invalid("INVALID_OPTION", f"a {name.kind}, where names of {kind}s are wanted", f"{field}[{i}]")
    return [name.name if isinstance(name, Name) else name for name in listed]


def select(tensors: Iterable[str] | str | None, layers: Iterable[int] | None) -> pb.Select | None:
    """None: the whole image. An empty list is refused here: to the daemon it would mean all of them."""
    if tensors is None and layers is None:
        return None
    chosen = message(pb.Select, "INVALID_OPTION", "select.", tensors=[tensors] if isinstance(tensors, str) else tensors, layers=None if layers is None else sorted(layers))
    if (tensors is not None and not chosen.tensors) or (layers is not None and not chosen.layers):
        raise errors.invalid("INVALID_OPTION", "a part has at least one tensor and one layer", "select")
    return chosen


def options(durability: Durability | None, ttl: Ttl, expire_at: Expiry | None, max_history: int | None) -> pb.NameOptions | None:
    if durability is None and ttl is None and expire_at is None and max_history is None:
        return None
    out = message(pb.NameOptions, "INVALID_OPTION", "options.", durability=enum(pb.Durability, durability, "durability"), max_history=max_history)
    expiration(out, ttl, expire_at, "options.")
    return out


def expiration(out: pb.NameOptions | pb.SetTtlRequest, ttl: Ttl, expire_at: Expiry | None, path: str = "") -> None:
    """Sets the oneof `expiration` that both have. path: of its fields, for errors."""
    if ttl is not None and expire_at is not None:
        raise errors.invalid("INVALID_OPTION", "ttl and expire_at exclude each other", f"{path}expiration")
    if isinstance(ttl, datetime.timedelta):
        out.ttl.FromTimedelta(ttl)
    elif ttl == math.inf:
        out.never_expire = True
    elif ttl is not None:
        out.ttl.FromNanoseconds(round(ttl * 1e9))
    if isinstance(expire_at, datetime.datetime):
        if expire_at.tzinfo is None:
            raise errors.invalid("INVALID_OPTION", "expire_at has no time zone", f"{path}expire_time")
        out.expire_time.FromDatetime(expire_at)
    elif expire_at is not None:
        out.expire_time.FromNanoseconds(round(expire_at * 1e9))


def fingerprint(layout: Layout | str) -> str:
    return layout.fingerprint if isinstance(layout, Layout) else layout


def id_or_new(request_id: str | None) -> str:
    return os.urandom(16).hex() if request_id is None else request_id


# An enum's value is an int at run time, and a class of its own in the generated types: hence Any.
def enum(kind: Any, name: str | None, field: str) -> Any:
    if name is None:
        return 0
    try:
        return kind.Value(name.upper().replace("-", "_"))
    except ValueError:
        raise errors.invalid("INVALID_OPTION", f"{name!r} is not a {field}", field) from None


def tokens_of(tokens: Tokens) -> list[int]:
    listed = tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
    if any(not 0 <= t < 1 << 32 for t in listed):
        raise errors.invalid("INVALID_OPTION", "a token is not in 0..2^32-1", "tokens")
    return listed
