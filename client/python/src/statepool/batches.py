# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Many operations in one call: Get (what Pool.batch_get takes) and Batch (what Pool.batch makes).

An item that fails has its error, an instance of the same exception as a call of its own would raise, in its place among the results. Items are
not tried again one by one: a Fork that is repeated alone would see what the rest of the batch wrote.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from . import _requests, _wire, errors
from ._calls import Attempts, Connection
from ._requests import Ttl
from .layouts import Layout
from .names import Durability, Exactness, Expiry, Image, Info, Match, Name, Removal, Sequence, Snapshot, State
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from types import TracebackType

    from .client import Pool

Result = Info | Sequence | list[Sequence] | Snapshot | Removal | bool
"""What an item of a Batch gives, as the method of Pool with its name: set, rollback, renumber: Info; create, restore: Sequence; fork: list[Sequence];
snapshot: Snapshot; remove_range: Removal; delete: bool."""


@dataclasses.dataclass(frozen=True)
class Get:
    """One item of Pool.batch_get; the fields are the arguments of Pool.get."""

    source: Name | Match | str
    position: int | None = None
    _: dataclasses.KW_ONLY
    tensors: Iterable[str] | None = None
    layers: Iterable[int] | None = None
    version_id: int | None = None
    layout: Layout | str = ""
    attachment: bool = True

    def request(self) -> pb.GetRequest:
        return _requests.get(self.source, self.position, self.layout, self.tensors, self.layers, self.version_id, self.attachment)


class Batch:
    """Writes that are published at one moment and recorded on disk together. Made by Pool.batch; for one thread.

        with pool.batch(all_or_none=True) as batch:        # sent at the end of the block, unless it raises
            batch.set("chat/1", image, 128, if_revision=7)
            batch.snapshot("chat/2", "chat/2@128")
        info, snapshot = batch.results

    Each method adds an item, whose arguments and result are those of the method of Pool with its name; no name may be written twice. Sources of fork,
    snapshot and restore are read as they were before the batch. Nothing is sent before run() or the end of the block; then all goes in one message:
    Exhausted without a reason when it is larger than the daemon takes.

    results  after run(): one for each item, in their order
    """

    def __init__(self, pool: Pool, connection: Connection, attempts: Callable[[bool], Attempts], verify: bool, all_or_none: bool) -> None:
        """attempts: whether it may be repeated -> those of the call."""
        self._pool = pool
        self._connection = connection
        self._attempts = attempts
        self._verify = verify
        self._all_or_none = all_or_none
        self._items: list[pb.BatchWriteItem] = []
        self._data: list[_wire.Buffer] = []
        self.results: list[Result | errors.StatepoolError] = []

    def __len__(self) -> int:
        return len(self._items)

    def create(self, layout: Layout | str, name: str, *, durability: Durability | None = None, ttl: Ttl = None, expire_at: Expiry | None = None,
               max_history: int | None = None, request_id: str | None = None) -> None:
        """Pool.create."""
        self._items.append(pb.BatchWriteItem(create=_requests.create(
            layout, name, durability, ttl, expire_at, max_history, request_id)))

    def set(self, name: str | Sequence, data: Image, position: int, *, tensors: Iterable[str] | None = None, layers: Iterable[int] | None = None,
            layout: Layout | str = "", if_revision: int | None = None, attachment: bytes = b"", exactness: Exactness | None = None,
            durability: Durability | None = None, ttl: Ttl = None, expire_at: Expiry | None = None, max_history: int | None = None,
            request_id: str | None = None) -> None:
        """Pool.set. `data` is not copied before run(): leave it as it is until then."""
        pieces, chosen = self._pool._image(name, data, tensors, layers, layout)
        head = _requests.set(name, position, chosen, layout, if_revision, attachment, exactness, durability, ttl, expire_at, max_history,
                             request_id)
        if self._verify:
            head.checksum = _wire.checksum_of(*pieces)
        self._items.append(pb.BatchWriteItem(set=head, data_bytes=sum(len(_wire.as_bytes(p)) for p in pieces)))
        self._data += pieces

    def fork(self, source: Name | Match | str, *children: str | Sequence, position: int | None = None, layout: Layout | str = "",
             durability: Durability | None = None, ttl: Ttl = None, expire_at: Expiry | None = None, max_history: int | None = None,
             request_id: str | None = None) -> None:
        """Pool.fork_many."""
        self._items.append(pb.BatchWriteItem(fork=_requests.fork(
            source, children, position, layout, durability, ttl, expire_at, max_history, request_id)))

    def rollback(self, name: str | Sequence, position: int | None = None, *, tokens: int | None = None, if_revision: int | None = None,
                 request_id: str | None = None) -> None:
        """Pool.rollback."""
        self._items.append(pb.BatchWriteItem(rollback=_requests.rollback(name, position, tokens, if_revision, request_id)))

    def remove_range(self, name: str | Sequence, begin: int, end: int = -1, *, if_revision: int | None = None, allow_missing: bool = False,
                     request_id: str | None = None) -> None:
        """Pool.remove_range. One that is refused is an answer: also with all_or_none the others are done."""
        self._items.append(pb.BatchWriteItem(remove_range=_requests.remove_range(name, begin, end, if_revision, allow_missing, request_id)))

    def renumber(self, name: str | Sequence, begin: int = 0, end: int = -1, *, add: int | None = None, divide: int | None = None,
                 if_revision: int | None = None, request_id: str | None = None) -> None:
        """Pool.renumber."""
        self._items.append(pb.BatchWriteItem(renumber=_requests.renumber(name, begin, end, add, divide, if_revision, request_id)))

    def snapshot(self, source: Name | Match | str, name: str, *, durable: bool = False, position: int | None = None,
                 durability: Durability | None = None, ttl: Ttl = None, expire_at: Expiry | None = None, request_id: str | None = None) -> None:
        """Pool.snapshot."""
        self._items.append(pb.BatchWriteItem(snapshot=_requests.snapshot(
            source, name, durable, position, durability, ttl, expire_at, request_id)))

    def restore(self, snapshot: Snapshot | str, name: str, *, if_revision: int | None = None, durability: Durability | None = None, ttl: Ttl = None,
                expire_at: Expiry | None = None, max_history: int | None = None, request_id: str | None = None) -> None:
        """Pool.restore."""
        self._items.append(pb.BatchWriteItem(restore=_requests.restore(
            snapshot, name, if_revision, durability, ttl, expire_at, max_history, request_id)))

    def delete(self, source: Name | Match | str, *, if_revision: int | None = None, allow_missing: bool = False) -> None:
        """Pool.delete. One without allow_missing keeps the whole batch from being retried by itself."""
        self._items.append(pb.BatchWriteItem(delete=_requests.delete(source, if_revision, allow_missing)))

    def run(self) -> list[Result | errors.StatepoolError]:
        """Sends the items, and gives their results. With all_or_none it raises the first error instead, and nothing was done.

        A batch without items does nothing. A batch that ran may run again: as its items have the same request_ids, what was done stays done once.
        """
        self.results = []
        if not self._items:
            return self.results
        request = pb.BatchWriteRequest(items=self._items, all_or_none=self._all_or_none)
        encoded = _wire.with_data(request, self._data) if self._data else request.SerializeToString()
        deletions = [i.delete if i.HasField("delete") else i.remove_range for i in self._items if i.WhichOneof("write") in ("delete", "remove_range")]
        attempts = self._attempts(all(map(_requests.may_repeat, deletions)))
        while True:
            answer = self._connection.call("BatchWrite", encoded, pb.BatchWriteResponse.FromString, attempts)
            failed = [errors.from_status(r.error) for r in answer.results if r.HasField("error")]
            if answer.done or not self._all_or_none or not failed:
                break
            # Nothing was done, and those that could have been wait for the others.
            attempts.wait(next((e for e in failed if e.reason != "BATCH_ABORTED"), failed[0]))
        self.results = [self._result(item, result) for item, result in zip(self._items, answer.results)]
        return self.results

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.run()

    def _result(self, item: pb.BatchWriteItem, result: pb.BatchWriteResult) -> Result | errors.StatepoolError:
        if result.HasField("error"):
            return errors.from_status(result.error)
        kind = item.WhichOneof("write")
        if kind == "fork":
            return self._pool._children(result.fork)
        if kind == "delete":
            return result.delete.deleted
        if kind == "remove_range":
            return Removal.from_proto(result.remove_range)
        info = Info.from_proto(result.info)
        if kind in ("create", "restore"):
            return self._pool._sequence(info)
        return Snapshot(self._pool, info.name) if kind == "snapshot" else info


def batch_get(pool: Pool, connection: Connection, attempts: Attempts, items: Iterable[Get | Name | Match | str],
              all_or_none: bool) -> list[State | errors.StatepoolError]:
    """Pool.batch_get."""
    requests = [item.request() if isinstance(item, Get) else Get(item).request() for item in items]
    if not requests:
        return []
    rest, data = connection.call("BatchGet", pb.BatchGetRequest(items=requests, all_or_none=all_or_none), _wire.split_data, attempts)
    answer = pb.BatchGetResponse.FromString(rest)
    out: list[State | errors.StatepoolError] = []
    for request, item in zip(requests, answer.items):
        found: State | errors.StatepoolError
        if item.HasField("error"):
            found = errors.from_status(item.error)
        else:
            try:
                found = pool._state(request, item.response, data[item.data_offset:item.data_offset + item.response.data_bytes])
            except errors.DataLoss as error:
                if all_or_none:
                    raise
                found = errors.again(error)
        out.append(found)
    return out
