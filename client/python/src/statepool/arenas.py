# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Arenas: memory that the daemon of this machine and this process share, so that states travel without messages.

Arena is what Pool.open_arena gives: tensors in the shapes of an engine, which a model computes on. Buffers is what Pool.empty gives: whole images, in
rows of arenas that the pool keeps for it. Linux only.
"""
from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import operator
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeVar, overload

import numpy as np
import numpy.typing as npt

from . import _advance, _direct, _flags, _gpu_copies, _kernels, _requests, _wire, errors, names
from ._calls import Attempts
from ._requests import Ttl
from .layouts import DTYPES, Array, Layout
from .names import Durability, Exactness, Expiry, Info, Match, Name, Sequence
from .speculation import AdvanceItem
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from types import TracebackType

    from ._cuda import GpuRange
    from ._mapping import Range
    from .client import Pool

_Answer = TypeVar("_Answer", pb.LoadResponse, pb.StoreResponse, pb.AdvanceResponse)
_Result = TypeVar("_Result")

CLOSE_TIMEOUT_S = 5.0
"""How long close() waits for the daemon to say that the lease has ended; the socket tells it as well."""
SPARE_BYTES = 64 << 20
"""Pool.empty opens arenas with room for so many bytes more than it needs, at most."""


@dataclasses.dataclass(frozen=True)
class View:
    """How an engine wants to see a layout.

    layers        "per_layer": an array [row, step, ...] for each layer. "layer_major": all layers of a tensor in one, [layer, row, step, ...].
                  "row_major": the same row by row, [row, layer, step, ...]; with no other wish (and steps 0) a row is an image, in one piece
    axis_orders   the axes of tensors that are not wanted in the layout's order, outermost first: {"ssm": ["head", "key", "value"]}
    conv_padding  columns of conv tensors (axis "tap") before the K-1 that the layout has, 0..8. Zeros after a load, not stored
    num_spec      columns after them, for the inputs of speculative tokens: at least steps - 1. Such a tensor has one step, and what is stored are the
                  K-1 columns that end accepted - 1 columns later
    without_num_spec  conv tensors that it does not widen: they have steps, as other tensors have. vLLM ignores its number of speculative tokens for the
                  convolutions of mamba1, short_conv and KDA's separate ones; a hybrid may have both kinds. Without num_spec it says nothing
    tp_size       tensor parallelism: the part of each tensor that the rank tp_rank of so many has, as the layout divides it. See Arena.store
    tp_rank
    """

    layers: Literal["per_layer", "layer_major", "row_major"] = "per_layer"
    axis_orders: Mapping[str, Iterable[str]] = dataclasses.field(default_factory=dict)
    conv_padding: int = 0
    num_spec: int = 0
    tp_size: int = 1
    tp_rank: int = 0
    without_num_spec: Iterable[str] = ()

    def to_proto(self) -> pb.View:
        return _wire.message(pb.View, "INVALID_VIEW", "view.", layers=_requests.enum(pb.View.Layers, self.layers, "view.layers"),
                             conv_padding=self.conv_padding, num_spec=self.num_spec, tp_size=self.tp_size, tp_rank=self.tp_rank,
                             without_num_spec=self.without_num_spec,
                             axis_orders=[pb.AxisOrder(tensor=tensor, axes=axes) for tensor, axes in self.axis_orders.items()])


@dataclasses.dataclass(frozen=True)
class LoadItem:
    """What Arena.load takes for a row: a name with, as in Pool.get, the position or the version that is wanted.

    row_unmodified  nobody wrote to the row since its last load or store: if that was of this same version nothing is copied
    attachment      whether its attachment is wanted
    """

    source: Name | Match | str
    position: int | None = None
    _: dataclasses.KW_ONLY
    version_id: int | None = None
    row_unmodified: bool = False
    attachment: bool = False


@dataclasses.dataclass(frozen=True)
class Loaded(names.FromMessage):
    """What a row holds after Arena.load."""

    info: Info  # of the version
    attachment: bytes  # empty unless it was asked for
    copied: bool  # False: the row held it already (row_unmodified)

    @property
    def position(self) -> int:
        """Tokens consumed."""
        return self.info.position

    @staticmethod
    def _fields_of(row: pb.LoadedRow) -> dict[str, Any]:
        return {"info": Info.of(row.info), "attachment": row.attachment, "copied": row.copied}


@dataclasses.dataclass(frozen=True)
class StoreItem:
    """What Arena.store takes for a row: the sequence to write and, as in Pool.set, what else is to be said of it.

    position      tokens consumed; None: that of Arena.store
    accepted      how many of the row's steps hold, 1..max(steps, 1): the state after this many tokens is stored; None: that of Arena.store
    path          in its place, of a tree's tokens: the steps of those that hold, ascending (speculation.path_of)
    advance       once it is stored the row is advanced to its accepted length, or path (Arena.advance); None: as Arena.store says. Not of a rank's part
    align         for engines that find states at multiples of so many tokens alone (align mode, SPECULATION in statepool.proto): `position` is that after all
                  accepted tokens, and what is stored is the state at the last such multiple among those after each of them, at its position (Info.position); if
                  there is none nothing is, and None stands in its place. 0: the state at `position`. None: as Arena.store says
    if_revision   write only if this is the sequence's revision; 0: only if it does not exist. None: that of the row's last load or store, if it was of
                  this sequence; else whatever it has
    any_revision  whatever it has in any case
    whole_row     all of the row was written: it need not have been loaded
    """

    sequence: str | Sequence
    position: int | None = None
    accepted: int | None = None
    _: dataclasses.KW_ONLY
    if_revision: int | None = None
    any_revision: bool = False
    whole_row: bool = False
    path: Iterable[int] = ()
    advance: bool | None = None
    align: int | None = None
    attachment: bytes = b""
    exactness: Exactness | None = None
    durability: Durability | None = None
    ttl: Ttl = None
    expire_at: Expiry | None = None
    max_history: int | None = None
    request_id: str | None = None


@dataclasses.dataclass(frozen=True)
class PartStored:
    """What Arena.store tells of a row of a rank's part while parts of other ranks are missing: the version is there when the last of them is."""

    missing: int  # parts that were not there yet


class Store:
    """A store that Arena.store_async began. Thread-safe."""

    def __init__(self, arena: Arena, generation: int, storing: _gpu_copies.Storing | errors.StatepoolError | None,
                 result: Callable[[Any], dict[int, Any]] | None) -> None:
        """generation: of the arena when it began. storing: None, or why not, if it is over. result: makes what wait() gives of its answer."""
        self._arena = arena
        self._generation = generation
        self._storing = storing
        self._result = result

    def done(self) -> bool:
        """Whether wait() would return, or raise, at once. Does nothing to bring that about."""
        return self._storing is None or isinstance(self._storing, errors.StatepoolError) or self._storing.is_over()

    def wait(self, timeout: float | None = None) -> dict[int, Any]:
        """What Arena.store returns, or raises. Can be called again.

        timeout  seconds; TimeoutError when it is not done by then, and it goes on. None: until the stream has passed the copies, and then as long as a
                 call may take
        """
        if os.getpid() != self._arena._pid:
            raise self._arena._refusal()
        storing, result = self._storing, self._result
        if isinstance(storing, errors.StatepoolError):
            raise errors.again(storing)
        assert result is not None
        if storing is None:
            return result(None)
        if timeout is None:
            assert self._arena._in_flight is not None
            self._arena._in_flight.finish_through(storing)
        elif not storing.wait_until_over(timeout):
            raise TimeoutError(f"the store is not done after {timeout} s; it goes on")
        try:
            return result(storing.answer())
        except errors.ContentsGone:
            self._arena._told.generation = self._arena._generation  # now this thread knows
            raise
        except (errors.NotFound, errors.Unavailable) as error:
            self._arena._reopen_if_lost(error, self._generation)
            raise


class Arena:
    """Rows for states of a layout, in memory that the daemon and this process share. Made by Pool.open_arena.

        with pool.open_arena(layout, rows=64) as arena:
            arena.load({0: "chat/42"})
            arena["ssm"][layer][0] += 1                      # a numpy array over the shared memory: [row, head, value, key]
            arena.store({0: "chat/42"}, position=129)

    arena[tensor]  per-layer: an array for each of the model's layers that have it, by their indexes. Otherwise one array, whose axis "layer" has
                   them in ascending order: arena["ssm"][i][row] if layer-major, arena["ssm"][row][i] if row-major, i counting from 0.
                   Dtypes are those of layouts.DTYPES; torch.from_numpy copies nothing
                   On a GPU (device is "cuda:GPU-<uuid>") they are torch tensors of the same shapes and strides; torch and cuda-bindings are needed
    layer()        the array [row, step, ...] of one layer, whatever the view
    axes           of each tensor's arrays, outermost first: "layer", "row", "step" and the layout's names
    layout         fingerprint
    rows, steps, view, device
    row_bytes      of one row of all tensors; nbytes: of all memory
    incarnation    of the daemon that has it
    on_reopen      called with the arena after each reopening, in the thread that did it, before ContentsGone is raised: what it raises comes instead

    Threads: load, store and advance may be called from any thread, also at once for different rows. Nobody else may touch a row meanwhile: also not after
    a call that got no answer (DeadlineExceeded or Unavailable without a reason), until another load, store or advance of this arena is answered.
    The arrays stay valid as long as they live, also after close(): then they hold zeros, or what was there. They keep the memory as well, which counts
    against the daemon's budget until it is unmapped: drop them.

    On a GPU: load and store are for a stream, torch's current one in the calling thread unless they are given another; work of other streams on these rows
    must be done. They are in the stream's order, and no CPU waits for it: load returns when the copies are enqueued, or the stream waits for them, so that
    what the stream does afterwards finds them, and only that; store_async does so too, and what the stream does afterwards may write to the rows. store
    returns when it is done. *Direct* (Pool.open_arena) this process copies. Otherwise the daemon does, when the stream has come to the call, and the stream
    waits for the daemon (flag words, ARENAS in statepool.proto). Such a load can fail after it returned, when the stream is too late (the timeout, at most
    60 s), or the daemon: the arena's next call raises RowsLost, once, and does nothing else. When the daemon is gone, or does not answer in time, the stream
    goes on all the same. Where neither is to be had now (also: a load of very many bytes, Capabilities.max_flag_pinned_bytes) the daemon copies while the CPU
    waits for the stream. None may be called while the stream is captured into a graph: Conflict (STREAM_CAPTURING). close() and reopen() wait for all work of
    this process on the GPU, and unmap the memory: after close(), and after a reopen() that failed, a tensor or a captured graph that touches it is an error
    of CUDA's; until then graphs that touch rows stay valid, whatever is loaded, stored or opened again. Close the arena: of one that is only dropped the
    memory counts until this process ends. Conflict (MAPPING_FAILED) when it can't be mapped here, StatepoolError (GPU_FAILED) when this process's GPU
    refuses to copy.

    Restarts: when the daemon has lost the arena, load, store and advance open it again at the same addresses and raise ContentsGone: all rows are zeros
    (where the daemon lives on and only the connection broke, they are as soon as it notices, maybe before a call says so: what was computed meanwhile
    can't be stored). So does the next load, store or advance of every other thread that used it before. When it can't be had again, the call's own error is raised, and the
    next call tries anew. Nothing but load, store, advance, store_async, Store.wait() and reopen() opens it again, in the thread that called. On a GPU the
    rows are not mapped for a moment then, and what another thread launches on them just there is an illegal address, which ends its CUDA context: no other thread may
    launch work on rows of this arena while one of these calls may open it again.

    After os.fork() it is the parent's: in the child load, store and advance raise Conflict (FORKED), and close() drops what the child has of it, no
    more.
    """

    def __init__(self, pool: Pool, layout: Layout | str, rows: int, steps: int, view: View, attempts: Attempts, *, direct: bool = False,
                 device: str = "", is_host: bool = False) -> None:
        """attempts: those of opening it. direct: this process copies where it may. device: its name, as the daemon tells it; "": the daemon's choice.
        is_host: it is known to be in the host's memory."""
        self._closed = True
        self._pool = pool
        self._connection = pool._connection
        self._pid = os.getpid()
        self._request = _wire.message(pb.OpenArenaRequest, layout=_requests.fingerprint(layout), rows=rows, steps=steps, view=view.to_proto(), device=device)
        self._lock = threading.Lock()  # of what follows; held while it is opened again
        self._generation = 0  # grows with each opening
        self._told = threading.local()  # .generation: the newest one that this thread knows of
        self._lease: socket.socket | None = None
        self._memory: Range | GpuRange | None = None
        self._plan: _kernels.Plan | None = None  # None: this process does not copy on the host
        self._copies: _gpu_copies.Copies | None = None  # nor on a GPU
        self._in_flight: _gpu_copies.InFlight | None = None  # what those copies, and stores with flag words, are
        self._flags: _flags.Flags | None = None  # None: streams and the daemon have no words for each other
        self._late_bytes_max = 0  # of states that a load may have which returns before its copies
        self._moves: _advance.HostMoves | _advance.GpuMoves | None = None  # None: nor does it move rows
        self._has_windows = False  # it moves rows, and steps of some tensors are columns
        self._doubtful: set[int] = set()  # rows that the daemon may take for loaded, and nobody copied to
        self._on_gpu = False
        self._table: pb.Arena  # as the daemon told it first
        self._name = ""  # what the daemon calls it
        self._tensors: dict[str, Any] = {}
        self._layers: dict[tuple[str, int], Array] = {}
        self.incarnation = ""
        self.view = view
        self.on_reopen: Callable[[Arena], object] | None = None
        self._closed = False
        try:
            lease = pool._direct.lease(pool, attempts) if direct and view.tp_size <= 1 else None
            self._request.with_plan = lease is not None and (_kernels.available or not lease.on_host)
            if lease is None and not is_host:
                limits = pool.capabilities()
                self._request.with_flags = not on_host(limits)
                self._late_bytes_max = limits.max_flag_pinned_bytes
            self._open(attempts)
            self._make_arrays()
            self._make_plan()
        except BaseException:
            self.close()
            raise
        self.layout = self._table.layout
        self.rows = self._table.rows
        self.steps = self._table.steps
        self.row_bytes = self._table.row_bytes
        self.nbytes = self._table.bytes
        self.device = self._table.device
        self.axes: Mapping[str, tuple[str, ...]] = MappingProxyType({t.tensor: tuple(t.axes) for t in self._table.tensors})

    # --------------------------------------------------------------------------------------------------------- arrays

    def __getitem__(self, tensor: str) -> Any:
        """See the class. KeyError for a tensor that the layout lacks; Conflict (ARENA_CLOSED)."""
        if self._closed:
            raise self._refusal()
        return self._tensors[tensor]

    def layer(self, tensor: str, layer: int) -> Array:
        """The array [row, step, ...] of this of the model's layers. KeyError when the tensor has no such layer; Conflict (ARENA_CLOSED)."""
        if self._closed:
            raise self._refusal()
        return self._layers[tensor, layer]

    # -------------------------------------------------------------------------------------------------- load and store

    def load(self, items: Mapping[int, LoadItem | Name | Match | str], *, return_errors: bool = False, stream: Any = None) -> dict[int, Any]:
        """Copies versions into rows; with steps, into their first. Columns that only the view has become zero.

        items          what each row is to hold: a name (a str is a sequence, a match its longest prefix) or a LoadItem
        return_errors  put the error of an item that fails in its place, instead of raising the first of them
        stream         on a GPU: the torch stream that the rows are for; None: the current one
        What each row holds then, as Loaded, in the order of the items. The row of an item that fails is as it was, unless it is DataLoss or
        DeadlineExceeded: then it counts as never loaded. The others are loaded. Errors of items have "row" in their metadata. NotFound (also
        LAYOUT_MISMATCH, POSITION_MISMATCH ...), DataLoss, Exhausted; InvalidArgument (ROW_OUT_OF_RANGE); ContentsGone; RowsLost of an earlier load.
        """
        request = _load_request(items)
        if not request.items:
            return {}
        self._enter(stream)
        results = self._load(request, self._pool._attempts(), self._known(), stream)
        return _by_row(items, results, return_errors)

    def store(self, items: Mapping[int, StoreItem | Sequence | str], position: int | Mapping[int, int] | None = None, *,
              accepted: int | Mapping[int, int] | None = None, advance: bool = False, skip_none: bool = False, align: int = 0, all_or_none: bool = False,
              return_errors: bool = False, stream: Any = None) -> dict[int, Any]:
        """Makes rows new versions of sequences, existing or new ones, as Pool.set would; published at one moment, recorded together.

        items          which sequence each row is for (a str is one), or a StoreItem
        position       tokens consumed: of all rows, or by row
        accepted       how many of the row's steps hold, 1..max(steps, 1): of all rows, or by row. None: 1
        advance        each row that was stored is left advanced to its accepted length, or path, as advance() does
        align          stores at multiples of so many tokens alone: StoreItem.align. Rows that have none are no errors either, and are advanced all the same
        skip_none      rows of which no token holds (accepted 0) are no errors: nothing is stored for them, and None stands in their place
        all_or_none    store nothing, and raise the first error, when an item fails
        return_errors  otherwise: put the error of an item that fails in its place, instead of raising the first of them
        stream         on a GPU: the torch stream that wrote the rows; None: the current one
        The Info of what was stored by row, in the order of the items. An item that fails changes nothing, also not its row; the others are stored. The
        sequence that a row was loaded from or stored as must still have that revision: Conflict (REVISION_MISMATCH). Errors of items have "row" in
        their metadata. Conflict (ROW_NOT_LOADED, LAYOUT_MISMATCH), InvalidArgument (INVALID_ACCEPTED_LENGTH, INVALID_POSITION ...), Exhausted;
        ContentsGone. Retries are safe: each item has a request_id. Who gives it himself (StoreItem.request_id), to repeat a call that advances rows, has them
        copied and moved by the daemon, also direct: it knows what it did before.

        Where the view is of a rank of several (View.tp_size) the ranks store a version together: all of them under the same name, position and
        StoreItem.request_id, which must be given, and never again for another version. The last one's result is the Info, that of those before it PartStored;
        until then nobody finds the version. None has `advance`, for a part may have to be stored again: call advance() once the version is there. Its attachment is that of the rank that gives one, or several the same. Parts that stay alone for a minute are dropped: then the rows have no base any more, and all ranks store again.
        """
        self._check_parts(items)
        request = _store_request(items, position, accepted, all_or_none, advance, skip_none, align, max(self.steps, 1))
        if not request.items:
            return {}
        self._enter(stream)
        results = self._store(request, self._pool._attempts(), self._known(), stream, may_be_a_retry=_may_be_a_retry(items, request))
        return _by_row(items, results, return_errors)

    def store_async(self, items: Mapping[int, StoreItem | Sequence | str], position: int | Mapping[int, int] | None = None, *,
                    accepted: int | Mapping[int, int] | None = None, advance: bool = False, skip_none: bool = False, align: int = 0, all_or_none: bool = False,
                    return_errors: bool = False, stream: Any = None) -> Store:
        """store(), which is done when the handle's wait() returns, or done() is true; without either a thread of the arena's does it soon.

        On a GPU this returns when the copies are enqueued, or the stream waits for them: what the stream does afterwards may write to the rows, and is not
        stored. The versions are published when the stream has passed them: those of one arena in the order of the calls; until then everybody finds what
        was there before. A load into one of these rows waits for its store. Elsewhere all of it has happened when this returns. What is invalid in itself is
        raised here, and so are Conflict (STREAM_CAPTURING, FORKED) and RowsLost; every other error of store() by wait(): then nothing of the item was
        stored, and the row has to be stored again, if it still holds the state.
        Wait for what has to be there: a process that ends takes along what was not published. With `advance` of any row it is store(), where this process
        copies: it must know what was stored. advance() after store_async() does the same in the stream's order.
        """
        self._check_parts(items)
        request = _store_request(items, position, accepted, all_or_none, advance, skip_none, align, max(self.steps, 1))
        rows = list(items)
        self._enter(stream)
        attempts = self._pool._attempts()
        known = self._known()
        try:
            waits = any([item.advance for item in request.items])
            storing = self._begin_store(request, attempts, known, stream, attended=True) if request.items and not waits else None
            if storing is None and request.items:
                storing = self._begin_in_order(request, known, stream)
            if storing is not None:
                return Store(self, known, storing, lambda answer: _by_row(rows, _stored(request.items, answer), return_errors))
            results = self._store(request, attempts, known, stream, may_be_a_retry=_may_be_a_retry(items, request)) if request.items else []
            result = _by_row(rows, results, return_errors)
        except errors.StatepoolError as error:
            return Store(self, known, errors.again(error), None)
        return Store(self, known, None, lambda _: result)

    @overload
    def advance(self, items: Mapping[int, AdvanceItem | Iterable[int] | int], *, skip_none: bool = ..., skip_out_of_range: bool = ...,
                verified_length: int = ..., return_errors: bool = ..., stream: Any = ...) -> dict[int, Any]: ...
    @overload
    def advance(self, items: Iterable[AdvanceItem], *, skip_none: bool = ..., skip_out_of_range: bool = ..., verified_length: int = ...,
                return_errors: bool = ..., stream: Any = ...) -> list[Any]: ...

    def advance(self, items: Mapping[int, AdvanceItem | Iterable[int] | int] | Iterable[AdvanceItem], *, skip_none: bool = False,
                skip_out_of_range: bool = False, verified_length: int = 0, return_errors: bool = False, stream: Any = None) -> dict[int, Any] | list[Any]:
        """Moves rows to the states after their accepted tokens, without a version (SPECULATION in statepool.proto): each row's first step becomes the state
        after the accepted length, or path; of tensors with num_spec columns the window moves up. One pass for all rows; on a GPU one launch.

        items              what holds of each row: an accepted length, a path (a list, of a tree's tokens: speculation.path_of), or an AdvanceItem. Or a list of
                           AdvanceItems that name their rows: then several may have the same, and other rows that get its states
        skip_none          rows of accepted length 0 are left as they are, instead of an error
        skip_out_of_range  and those whose length is above the steps
        verified_length    and those of which at least so many tokens hold: all were accepted, and the engine has left their state in its place. 0: none
        return_errors      put the error of an item that fails in its place, instead of raising the first of them
        stream             on a GPU: the torch stream that the rows are for; None: the current one
        What was done with each row, in the order of the items (of a list, a list): "moved", "in_place" (its first step was it already), "skipped_none", "skipped_out_of_range" or
        "skipped_all". The row of an item that fails is as it was. Rows need not have been loaded; what they are stored as later is checked then, as if
        this had not been. row_unmodified says nothing of these rows until the next load or store. InvalidArgument (INVALID_ACCEPTED_LENGTH, INVALID_PATH,
        ROW_OUT_OF_RANGE; DUPLICATE_ROW: a row that two items write, or one writes and another reads); ContentsGone; RowsLost of an earlier call.
        """
        request = _advance_request(items.items() if isinstance(items, Mapping) else [(None, item) for item in items], max(self.steps, 1), skip_out_of_range)
        request.skip_none, request.skip_out_of_range = skip_none, skip_out_of_range
        try:
            request.verified_length = verified_length
        except ValueError:
            raise errors.invalid("INVALID_OPTION", f"a row of this arena holds {max(self.steps, 1)} steps, so {verified_length} are not verified",
                                 "verified_length") from None
        if not request.items:
            return {} if isinstance(items, Mapping) else []
        self._enter(stream)
        known, attempts = self._known(), self._pool._attempts()
        answer = self._advance_directly(request, known, stream)
        if answer is None:
            self._finish_stores()  # in the order of the calls
            answer = self._advance_in_order(request, attempts, known, stream)
        if answer is None:
            self._wait_for(stream)
            answer = self._call("Advance", request, pb.AdvanceResponse.FromString, attempts, known)
        results = [_error(request.items[i], r.error) if r.HasField("error") else names.enum_name(pb.AdvancedRow.Outcome, r.outcome)
                   for i, r in enumerate(answer.rows)]
        if isinstance(items, Mapping):
            return _by_row(items, results, return_errors)
        return list(_by_row(range(len(results)), results, return_errors).values())

    def _advance_directly(self, request: pb.AdvanceRequest, generation: int, stream: Any) -> pb.AdvanceResponse | None:
        """An Advance that is done, or enqueued, here. None: it is for the daemon to do, or to refuse."""
        if self._moves is None:
            return None
        made = _advance.moves_of(request, self._table.rows, max(self._table.steps, 1))
        if made is None:
            return None
        moves, answer = made
        if moves:
            self._move(moves, generation, stream)
        return answer

    def _move(self, moves: SequenceOf[_advance.Move], generation: int | None, stream: Any) -> None:
        """REQUIRES: _moves. ContentsGone, Conflict (ARENA_CLOSED), StatepoolError (GPU_FAILED)."""
        with self._lock:  # while it is held nobody unmaps the arena
            self._check(generation)
            memory = self._memory
            assert memory is not None
            self._doubtful.update(move.to_row for move in moves)
            if isinstance(self._moves, _advance.GpuMoves):
                if not memory.is_mapped:  # type: ignore[union-attr]
                    raise self._gone()  # a reopen() failed
                self._moves.move(moves, memory.stream(stream))  # type: ignore[union-attr]
                return
        assert self._moves is not None
        self._moves.move(moves, memory.address)

    def _advance_stored(self, request: pb.StoreRequest, answer: pb.StoreResponse, generation: int | None, stream: Any) -> None:
        """The rows of a direct Store that were stored, and ask for it."""
        if not answer.done or not any([item.advance for item in request.items]):
            return
        moves = [_advance.Move(item.row, item.row, steps) for item, row, (_, steps) in zip(request.items, answer.rows, self._to_store(request))
                 if item.advance and not row.HasField("error") and steps > 1]
        if moves:
            self._move(moves, generation, stream)

    def _advance_in_order(self, request: pb.AdvanceRequest, attempts: Attempts, generation: int, stream: Any) -> pb.AdvanceResponse | None:
        """An Advance that the stream waits for. None: it is to be done without words."""
        flags = self._flags
        if flags is None:
            return None
        rows = frozenset(item.to_row if item.HasField("to_row") else item.row for item in request.items)
        call = self._begin_call(rows, attempts.timeout(), generation, stream, is_load=True)
        if call is None:
            return None
        told = pb.AdvanceRequest()
        told.CopyFrom(request)
        told.after.CopyFrom(call.after)
        told.done.CopyFrom(call.done)
        return self._call_with_words("Advance", told, pb.AdvanceResponse.FromString, attempts, generation, flags, call, stream)

    def _to_store(self, request: pb.StoreRequest) -> list[tuple[int, int]]:
        """_advance.to_store_of its items. REQUIRES: this process copies."""
        steps_max, has_windows = max(self._table.steps, 1), self._has_windows
        return [_advance.to_store_of(item, steps_max, has_windows) for item in request.items]

    def _lengths(self, request: pb.StoreRequest, rows: int) -> list[int] | None:
        """The accepted lengths that name the states which its items are to store. None: let the daemon say what is wrong with one, skip it, or keep its
        attachment. REQUIRES: this process copies."""
        lengths = [length for length, _ in self._to_store(request)]
        return None if 0 in lengths or any([item.attachment or item.row >= rows for item in request.items]) else lengths

    def _check_parts(self, items: Mapping[int, StoreItem | Sequence | str]) -> None:
        """InvalidArgument (MISSING_FIELD) for a part without what tells which version it is of: an id made here would be this rank's alone."""
        if self.view.tp_size <= 1:
            return
        for i, item in enumerate(items.values()):
            if not isinstance(item, StoreItem) or not item.request_id:
                raise errors.invalid("MISSING_FIELD", "a part of a version needs the request_id that all ranks give for it: StoreItem(..., request_id=...)",
                                     f"items[{i}].request_id")

    def _enter(self, stream: Any) -> None:
        """Conflict (FORKED) in a child, whose locks another thread may have had; on a GPU Conflict (STREAM_CAPTURING) while this stream, or the current
        one, is captured into a graph: before anything is asked for, or the stream is waited for. RowsLost."""
        if os.getpid() != self._pid:
            raise self._refusal()
        memory = self._memory if self._on_gpu else None
        flags = self._flags
        if flags is not None:
            flags.check()
        if memory is not None and memory.gpu.is_capturing(stream):  # type: ignore[union-attr]
            raise errors.made("FAILED_PRECONDITION", "STREAM_CAPTURING", "this stream is being captured into a graph, which can't have loads or stores: call "
                              "them before or after the capture, or give them another stream", "stream")

    def _load(self, request: pb.LoadRequest, attempts: Attempts, generation: int | None, stream: Any = None) -> list[Loaded | errors.StatepoolError]:
        if self._in_flight is not None:  # to the daemon a row is what the last call that it hears of made of it
            self._in_flight.finish(frozenset(item.row for item in request.items))
        while True:
            results = self._load_directly(request, attempts, generation, stream)
            left = [i for i, result in enumerate(results) if result is None]
            if left:
                rest = request if len(left) == len(results) else pb.LoadRequest(items=[request.items[i] for i in left])
                self._doubt(rest)
                answer = self._load_in_order(rest, attempts, generation, stream)
                if answer is None:
                    self._wait_for(stream)
                    answer = self._call("Load", rest, pb.LoadResponse.FromString, attempts, generation)
                attachments = any([item.with_attachment for item in rest.items])
                for i, r in zip(left, answer.rows):
                    if r.HasField("error"):
                        results[i] = _error(request.items[i], r.error)
                    else:
                        results[i] = _loaded(r, attachments)
                        if self._doubtful:
                            self._doubtful.discard(request.items[i].row)
            again = next((r for r in results if isinstance(r, errors.StatepoolError) and r.retry_after is not None), None)
            if again is None:
                return results
            try:
                attempts.wait(errors.again(again))
            except errors.StatepoolError:
                return results

    def _load_directly(self, request: pb.LoadRequest, attempts: Attempts, generation: int | None, stream: Any) -> list[Any]:
        """A Load whose copies are done, or enqueued, here. The results; None where it is for the daemon to load the row, and to copy."""
        plan = self._plan or self._copies
        lease = None if plan is None else self._pool._direct.lease(self._pool, attempts)
        if plan is None or lease is None:
            return [None] * len(request.items)
        if self._in_flight is not None:
            self._in_flight.relieve()
        if generation is None:
            generation = self._generation
        direct = pb.LoadRequest(items=request.items, lease=lease.id)
        self._doubt(direct)
        rows = [item.row for item in request.items]
        self._doubtful.update(rows)
        try:
            answer = self._call("Load", direct, pb.LoadResponse.FromString, Attempts(attempts.timeout(), 0), generation)
        except errors.StatepoolError as error:
            if _direct.goes_on(lease, error):
                return [None] * len(request.items)
            raise
        slots: list[pb.Slot] = []
        rows_of: dict[int, list[int]] = {}  # by pin
        for row, r in zip(rows, answer.rows):
            if r.HasField("slot"):
                slot = r.slot
                if slot.id not in rows_of:
                    slots.append(slot)
                rows_of.setdefault(slot.id, []).append(row)
            else:
                self._doubtful.discard(row)  # what it holds is what it held
        pins = lease.pin_all(slots, plan.state_bytes, self._gpu_name())
        pinned = [(pin, of_pin) for pin, of_pin in zip(pins, rows_of.values()) if pin is not None]
        if pinned:
            self._gather(lease, pinned, generation, stream)
        self._doubtful.difference_update(*[of_pin for _, of_pin in pinned])
        results: list[Any] = []
        attachments = any([item.with_attachment for item in request.items])
        for i, (row, r) in enumerate(zip(rows, answer.rows)):
            if r.HasField("error"):
                refusal = _error(request.items[i], r.error)
                results.append(None if refusal.reason in _direct.SHORTAGES else refusal)
            elif row in self._doubtful:
                results.append(None)
            else:
                results.append(_loaded(r, attachments))
        return results

    def _doubt(self, request: pb.LoadRequest) -> None:
        """Takes `row_unmodified` from rows that the daemon may be wrong about."""
        if self._doubtful:
            for item in request.items:
                if item.row_unmodified and item.row in self._doubtful:
                    item.row_unmodified = False

    def _gather(self, lease: _direct.Lease, pinned: list[tuple[_direct.Pin, list[int]]], generation: int, stream: Any) -> None:
        """Copies pinned states into rows; on a GPU enqueues that, and keeps the pins until it is done. ContentsGone, Conflict (ARENA_CLOSED)."""
        if self._copies is None or self._in_flight is None:
            assert self._plan is not None and self._memory is not None
            for pin, rows in pinned:
                self._plan.gather(pin.address, self._memory.address, rows)
            lease.unpin_all([pin for pin, _ in pinned])  # at one time
            return
        with self._lock:  # while it is held nobody unmaps the arena
            self._check(generation)
            if not self._memory.is_mapped:  # type: ignore[union-attr]
                raise self._gone()  # since the daemon answered: a reopen() failed
            states = [pin for pin, rows in pinned for _ in rows]
            event = self._copies.gather(states, [row for _, rows in pinned for row in rows], self._memory.stream(stream))  # type: ignore[union-attr]
        self._in_flight.hold(event, lease, [pin for pin, _ in pinned])

    def _store(self, request: pb.StoreRequest, attempts: Attempts, generation: int | None, stream: Any = None, *,
               may_be_a_retry: bool = False) -> list[Info | PartStored | errors.StatepoolError | None]:
        """may_be_a_retry: of a call that advanced rows, which the daemon alone remembers: it is the daemon's to do."""
        while True:
            answer = None if may_be_a_retry else self._store_directly(request, attempts, generation, stream)
            if answer is None:
                self._finish_stores()  # in the order of the calls
                answer = self._store_in_order(request, attempts, generation, stream)
            if answer is None:
                self._wait_for(stream)
                answer = self._call("Store", request, pb.StoreResponse.FromString, attempts, generation)
            results = _stored(request.items, answer)
            failed = [r for r in results if isinstance(r, errors.StatepoolError)]
            if answer.done or not request.all_or_none or not failed:
                return results
            # Nothing was stored, and those that could have been wait for the others.
            attempts.wait(errors.again(next((e for e in failed if e.reason != "BATCH_ABORTED"), failed[0])))

    def _store_directly(self, request: pb.StoreRequest, attempts: Attempts, generation: int | None, stream: Any) -> pb.StoreResponse | None:
        """A Store whose copies are done here. None: it is for the daemon to do, with the same requests."""
        if self._in_flight is not None:
            storing = self._begin_store(request, attempts, generation, stream, attended=False)
            if storing is None:
                return None
            self._in_flight.finish_through(storing)
            try:
                answer: pb.StoreResponse = storing.answer()
            except errors.StatepoolError as error:
                if _direct.may_do_without(error):
                    return None
                raise
            return self._store_the_rest(request, answer, attempts, generation, stream)
        plan, memory, count = self._plan, self._memory, len(request.items)
        if plan is None or memory is None:
            return None
        lengths = self._lengths(request, plan.rows)
        if lengths is None:
            return None
        if generation not in (None, self._generation):
            return None  # the other way says what is to be said
        lease = self._pool._direct.lease(self._pool, attempts)
        grants = [] if lease is None else lease.take_grants(self._pool, self._table.layout, plan.state_bytes, count, attempts)
        if lease is None or not grants:
            return None
        try:
            direct = pb.StoreRequest()
            direct.CopyFrom(request)
            direct.lease = lease.id
            direct.grants = lease.stock_wanted(self._table.layout, plan.state_bytes, count)
            for item, length, grant in zip(direct.items, lengths, grants):
                item.checksum = plan.scatter(memory.address, item.row, length, grant.address)
                item.grant = grant.id
                item.advance = False  # it is done here
            answer = self._call("Store", direct, pb.StoreResponse.FromString, Attempts(attempts.timeout(), 0), generation)
        except BaseException as error:
            lease.give_back(grants)  # the daemon may have refused the call before it looked at them
            if isinstance(error, errors.StatepoolError) and _direct.goes_on(lease, error):
                return None
            raise
        lease.done_with(grants)
        lease.add_to_stock(self._table.layout, answer.grants, plan.state_bytes)
        return self._store_the_rest(request, answer, attempts, generation, stream)

    def _store_the_rest(self, request: pb.StoreRequest, answer: pb.StoreResponse, attempts: Attempts, generation: int | None,
                        stream: Any) -> pb.StoreResponse | None:
        """The answer of a direct Store, after the daemon has stored what only a direct one fails for. None: all of it is for the daemon to do."""
        self._advance_stored(request, answer, generation, stream)
        short = [i for i, row in enumerate(answer.rows) if row.HasField("error") and errors.from_status(row.error).reason in _direct.SHORTAGES]
        if short and request.all_or_none:
            return None  # nothing was stored
        if short:
            self._wait_for(stream)
            rest = pb.StoreRequest(items=[request.items[i] for i in short])
            for i, row in zip(short, self._call("Store", rest, pb.StoreResponse.FromString, attempts, generation).rows):
                answer.rows[i].CopyFrom(row)
        return answer

    def _begin_store(self, request: pb.StoreRequest, attempts: Attempts, generation: int | None, stream: Any, *,
                     attended: bool) -> _gpu_copies.Storing | None:
        """A Store on a GPU whose copies are enqueued here, and that is committed when they are done: by the arena's thread if it is attended. None: it is
        for the daemon to do, with the same request."""
        copies, in_flight, count = self._copies, self._in_flight, len(request.items)
        if copies is None or in_flight is None:
            return None
        lengths = self._lengths(request, copies.rows)
        if lengths is None:
            return None
        if generation is None:
            generation = self._generation
        lease = self._pool._direct.lease(self._pool, attempts)
        grants = [] if lease is None else lease.take_grants(self._pool, self._table.layout, copies.state_bytes, count, attempts, self._gpu_name())
        if lease is None or not grants:
            return None
        written: _gpu_copies.Written | None = None
        try:
            with self._lock:  # while it is held nobody unmaps the arena
                self._check(generation)
                if not self._memory.is_mapped:  # type: ignore[union-attr]
                    lease.give_back(grants)
                    return None  # the daemon says that it is lost, and it is opened again
                written = copies.scatter([item.row for item in request.items], lengths, grants, self._memory.stream(stream))  # type: ignore[union-attr]
            direct = pb.StoreRequest()  # while the GPU copies
            direct.CopyFrom(request)
            direct.lease = lease.id
            for item, grant in zip(direct.items, grants):
                item.grant, item.advance = grant.id, False  # that is done here
        except BaseException:
            if written is not None:
                written.settle()
            lease.give_back(grants)
            raise

        def commit(checksums: list[str]) -> pb.StoreResponse:
            direct.grants = lease.stock_wanted(self._table.layout, copies.state_bytes, count)
            for item, checksum in zip(direct.items, checksums):
                item.checksum = checksum
            left = self._pool._attempts() if attended else attempts  # a stream may take its time
            reopen = not in_flight.is_own_thread()  # under the feet of a model that is at work here
            try:
                answer = self._call("Store", direct, pb.StoreResponse.FromString, Attempts(left.timeout(), 0), generation, reopen=reopen)
            except BaseException as error:
                lease.give_back(grants)  # the daemon may have refused the call before it looked at them, or never have heard of it
                if isinstance(error, errors.StatepoolError):
                    _direct.goes_on(lease, error)
                    if reopen:
                        self._reopen_if_restarted(error, generation, left)
                raise
            lease.done_with(grants)
            lease.add_to_stock(self._table.layout, answer.grants, copies.state_bytes, self._gpu_name())
            return answer

        storing = _gpu_copies.Storing(frozenset(item.row for item in request.items), written, commit, lambda: lease.give_back(grants))
        in_flight.add(storing, attended=attended)
        return storing

    # ---- with flag words: the daemon copies, in the stream's order

    def _begin_call(self, rows: frozenset[int], timeout: float, generation: int | None, stream: Any, *, is_load: bool) -> _flags.Call | None:
        """The stream will tell the daemon when it has come here, and waits for it if this is a store. None: there are no words for it."""
        with self._lock:  # while it is held nobody drops the words
            self._check(generation)
            flags, memory = self._flags, self._memory
            if flags is None or memory is None or not memory.is_mapped:  # type: ignore[union-attr]
                return None
            return flags.begin(memory.stream(stream), rows, timeout, is_load=is_load)  # type: ignore[union-attr]

    def _load_in_order(self, request: pb.LoadRequest, attempts: Attempts, generation: int | None, stream: Any) -> pb.LoadResponse | None:
        """A Load whose copies the stream waits for. None: it is to be done without words."""
        flags = self._flags
        if flags is None or self._is_too_large(request):
            return None
        if generation is None:
            generation = self._generation
        call = self._begin_call(frozenset(item.row for item in request.items), attempts.timeout(), generation, stream, is_load=True)
        if call is None:
            return None
        told = pb.LoadRequest(items=request.items, after=call.after, done=call.done)
        return self._call_with_words("Load", told, pb.LoadResponse.FromString, attempts, generation, flags, call, stream)

    def _is_too_large(self, request: pb.LoadRequest) -> bool:
        """Whether the daemon would not pin all of these states for a load that returns before its copies, as far as their names tell."""
        most = max(self._late_bytes_max * max(self._table.steps, 1) // self._table.row_bytes, 1)
        return len(request.items) > most and len({item.name.SerializeToString() for item in request.items}) > most

    def _store_in_order(self, request: pb.StoreRequest, attempts: Attempts, generation: int | None, stream: Any) -> pb.StoreResponse | None:
        """A Store that waits for the stream in the daemon. None: it is to be done without words."""
        flags = self._flags
        if flags is None or any([item.attachment for item in request.items]):
            return None
        if generation is None:
            generation = self._generation
        call = self._begin_call(frozenset(item.row for item in request.items), attempts.timeout(), generation, stream, is_load=False)
        if call is None:
            return None
        told = pb.StoreRequest(items=request.items, all_or_none=request.all_or_none, after=call.after, done=call.done)
        return self._call_with_words("Store", told, pb.StoreResponse.FromString, attempts, generation, flags, call, stream, is_late=False)

    def _call_with_words(self, method: str, told: pb.LoadRequest | pb.StoreRequest | pb.AdvanceRequest, parse: Callable[[bytes], _Answer], attempts: Attempts,
                         generation: int, flags: _flags.Flags, call: _flags.Call, stream: Any, *, is_late: bool = True) -> _Answer | None:
        """is_late: it is answered before the daemon is done with its rows, which the stream waits for. None: it is to be made without words."""
        try:
            answer = self._call(method, told, parse, Attempts(attempts.timeout(), 0), generation)
        except errors.StatepoolError as error:
            return self._without_words(flags, call, error)
        except BaseException:
            flags.leave(call)
            self._follow(flags, call, stream)
            raise
        flags.answered(call)
        if is_late:
            self._follow(flags, call, stream)
        return answer

    def _follow(self, flags: _flags.Flags, call: _flags.Call, stream: Any) -> None:
        """The stream goes on when the daemon is done with the call's rows."""
        with self._lock:  # while it is held nobody drops the words
            memory = self._memory
            if memory is not None:  # else it was closed, and streams wait for nothing
                flags.follow(call, memory.stream(stream))  # type: ignore[union-attr]

    @staticmethod
    def _without_words(flags: _flags.Flags, call: _flags.Call, error: errors.StatepoolError) -> None:
        """After a call that failed, when nothing is left of it. Returns if it is worth a try without words, which may be repeated; raises `error`."""
        if error.reason:
            flags.refused(call)
        else:
            flags.settle(call)
        if not isinstance(error, (errors.Exhausted, errors.Unavailable)):
            try:
                raise error
            finally:
                del error

    def _begin_in_order(self, request: pb.StoreRequest, generation: int | None, stream: Any) -> _gpu_copies.Storing | None:
        """A Store that the arena's thread asks for, and the stream waits for before it goes on. None: it is to be done without words."""
        flags, in_flight = self._flags, self._in_flight
        if flags is None or in_flight is None or any([item.attachment for item in request.items]):
            return None
        if generation is None:
            generation = self._generation
        rows, first = frozenset(item.row for item in request.items), self._pool._attempts()
        call = self._begin_call(rows, first.timeout(), generation, stream, is_load=False)
        if call is None:
            return None

        def commit(_: list[str]) -> pb.StoreResponse:
            told = pb.StoreRequest(items=request.items, all_or_none=request.all_or_none, after=call.after, done=call.done)
            reopen = not in_flight.is_own_thread()  # under the feet of a model that is at work here
            left = self._pool._attempts()
            flags.extend(call, left.timeout())
            try:
                # Once: the stream may have gone on, and written to the rows, by the second time.
                answer = self._call("Store", told, pb.StoreResponse.FromString, Attempts(left.timeout(), 0), generation, reopen=reopen)
            except errors.StatepoolError as error:
                if error.reason:
                    flags.refused(call)
                else:
                    flags.settle(call)
                raise
            except BaseException:
                flags.leave(call)
                raise
            flags.answered(call)
            return answer

        storing = _gpu_copies.Storing(rows, _flags.Enqueued(), commit, lambda: flags.refused(call))
        in_flight.add(storing, attended=True)
        try:
            self._follow(flags, call, stream)
        except BaseException:
            in_flight.finish_through(storing)  # nothing keeps the stream off the rows: they are stored now
            raise
        return storing

    def _call(self, method: str, request: pb.LoadRequest | pb.StoreRequest | pb.AdvanceRequest, parse: Callable[[bytes], _Answer], attempts: Attempts,
              generation: int | None, *, reopen: bool = True) -> _Answer:
        """One call on the arena as it was in this generation (None: as it is now). reopen: if it is lost, which is ContentsGone then."""
        if os.getpid() != self._pid:
            raise self._refusal()
        with self._lock:
            self._check(generation)
            generation = self._generation
            request.arena = self._name
        try:
            return self._connection.call(method, request, parse, attempts)
        except (errors.NotFound, errors.Unavailable) as error:
            if not reopen or isinstance(error, errors.NotFound) and error.reason != "ARENA_UNKNOWN":
                raise
            if not self._revive(error, generation, attempts):
                raise
            raise self._gone() from error

    def _check(self, generation: int | None) -> None:
        """That the arena is open, and as it was in this generation. REQUIRES: _lock."""
        if self._closed:
            raise self._refusal()
        if generation not in (None, self._generation):
            raise self._gone()

    def _wait_for(self, stream: Any) -> None:
        """Before the daemon copies on a GPU: for this stream, or the current one."""
        with self._lock:
            memory = None if self._closed or not self._on_gpu else self._memory
        if memory is not None:
            memory.wait(stream)  # type: ignore[union-attr]

    def _gpu_name(self) -> str:
        return self._table.device if self._on_gpu else ""

    def _known(self) -> int:
        """The generation that the calling thread takes the rows to be of; from now on it knows the newest one."""
        newest = self._generation
        known: int = getattr(self._told, "generation", newest)
        self._told.generation = newest
        return known

    # --------------------------------------------------------------------------------------------- opening and closing

    def reopen(self) -> None:
        """Gives this arena up, and opens it anew at the same addresses: all rows are zeros, and all arrays stay valid. Stores that began are done before.

        Errors are those of Pool.open_arena. After one the arrays are memory of this process alone, and the next load, store or reopen() tries again.
        """
        if os.getpid() != self._pid:
            raise self._refusal()
        self._finish_stores()
        with self._lock:
            if self._closed:
                raise self._refusal()
            assert self._memory is not None
            self._drop_flags()
            self._memory.vacate()
            self._say_unmapped()
            self._end(self._name)
            self._drop_lease()
            self._open(self._pool._attempts())
        self._reopened()

    def close(self) -> None:
        """Ends the lease: what was not stored is lost; stores that began are done before. The memory goes with the last array, on a GPU now. May be called
        again, and after the pool's close()."""
        if os.getpid() != self._pid:
            self._drop()  # another thread may have held the lock when this process was forked
            return
        self._finish_stores()
        with self._lock:
            if self._closed:
                return
            memory = self._memory if self._on_gpu else None  # of host memory this would be one more who has it
            flags, self._flags = self._flags, None
            self._drop()  # before the daemon hears of it: then it gets its memory back at once
            try:
                if flags is not None:
                    flags.close()
                if memory is not None:
                    memory.vacate()
                    self._say_unmapped()
            finally:
                try:
                    if self._in_flight is not None:
                        self._in_flight.close()
                        self._in_flight.release()  # all are done
                    if self._copies is not None:
                        self._copies.close()
                    if isinstance(self._moves, _advance.GpuMoves):
                        self._moves.close()
                finally:
                    self._end(self._name)
                    self._drop_lease()

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # No call to the daemon from wherever this happens: that the socket hangs up is enough.
        if not self._closed:
            self._closed = True
            if self._flags is not None and os.getpid() == self._pid:
                self._flags.release()
            self._drop_lease()
            if self._in_flight is not None and os.getpid() == self._pid:  # in a child somebody may have its lock for ever
                self._in_flight.close()

    def __repr__(self) -> str:
        return f"<Arena {self._name!r}{' (closed)' if self._closed else ''}>"

    def _finish_stores(self) -> None:
        """All that began. Their errors are their handles'."""
        if self._in_flight is not None:
            self._in_flight.finish()

    def _open(self, attempts: Attempts) -> None:
        """An arena of the daemon's, mapped. REQUIRES: _lock, or that nobody else knows this yet. After an error all is as it was, but for the memory
        that mmap refused: it is zeros."""
        if not sys.platform.startswith("linux"):
            raise errors.made("UNIMPLEMENTED", "ARENAS_OFF", "arenas need Linux")
        while True:
            # Repeated safely: an arena that nobody connects to ends by itself.
            table = self._connection.call("OpenArena", self._request, pb.Arena.FromString, attempts)
            try:
                self._connect(table, attempts)
                return
            except errors.StatepoolError as error:
                self._end(table.arena)
                if error.reason not in ("TOKEN_INVALID", "TOO_MANY_CONNECTIONS", "NO_DESCRIPTORS"):
                    raise
                attempts.wait(error, broken=True)  # this process was too slow, or others are in the way
            except BaseException:
                self._end(table.arena)
                raise

    def _connect(self, table: pb.Arena, attempts: Attempts) -> None:
        from . import _mapping

        if self._memory is not None:
            _check_same(self._table, table)
        lease, fd, mapped_bytes, flags_fd, flag_bytes = _mapping.connect(table, attempts.timeout())
        assert fd is not None
        try:
            self._drop_flags()
            if self._memory is None:
                self._memory = self._range(table, mapped_bytes)
                self._table = table
                self._on_gpu = _mapping.is_gpu(table.device)
                self._request.layout = table.layout  # whatever becomes of an alias
                if self._on_gpu:
                    self._request.device = table.device  # whose addresses these are
            elif _mapping.is_gpu(table.device) and self._memory.nbytes != mapped_bytes:
                raise _changed()
            self._memory.put(fd)
            if flags_fd is not None and self._on_gpu:
                with contextlib.suppress(errors.StatepoolError):  # then CPUs wait
                    self._flags = _flags.Flags(self._memory.words(flags_fd, flag_bytes), lease)  # type: ignore[union-attr]
        except BaseException:
            lease.close()
            raise
        finally:
            os.close(fd)
            if flags_fd is not None:
                os.close(flags_fd)
        self._drop_lease()
        self._lease = lease
        self._name = table.arena
        self.incarnation = table.incarnation
        self._generation += 1

    @staticmethod
    def _range(table: pb.Arena, mapped_bytes: int) -> Range | GpuRange:
        """Addresses for the memory of this arena."""
        from . import _mapping

        if not _mapping.is_gpu(table.device):
            return _mapping.Range(table.bytes)
        from . import _cuda

        return _cuda.GpuRange(table.device, mapped_bytes)

    def _revive(self, error: errors.NotFound | errors.Unavailable, generation: int, attempts: Attempts) -> bool:
        """Opens the arena again, which was lost after this generation: a call failed with `error`. False: the daemon has it, or is not there, and the
        caller raises `error`."""
        with self._lock:
            if self._closed:
                return False
            if self._generation != generation:
                return True  # another thread was first
            try:
                daemon = self._connection.call("GetCapabilities", pb.GetCapabilitiesRequest(), pb.Capabilities.FromString,
                                               Attempts(attempts.timeout(), 0))
                here = daemon.incarnation == self.incarnation
                if here and isinstance(error, errors.Unavailable):
                    return False
                assert self._memory is not None
                self._drop_flags()
                if here:  # its contents are gone, and this daemon counts it until nobody has it
                    self._memory.vacate()
                    self._say_unmapped()
                self._open(Attempts(attempts.timeout(), self._pool._retries))
            except (errors.NotFound, errors.Unavailable, errors.DeadlineExceeded) as failure:
                error.__cause__ = errors.again(failure)  # why the call goes on failing
                return False
        self._reopened()
        return True

    def _reopen_if_restarted(self, error: errors.StatepoolError, generation: int, attempts: Attempts) -> None:
        """ContentsGone, with the arena open again, when a lease is unknown because the daemon is another one."""
        if error.reason != "LEASE_UNKNOWN" or not isinstance(error, errors.NotFound):
            return
        if self._generation == generation and error.metadata.get("incarnation") == self.incarnation:
            return
        if self._revive(error, generation, attempts):
            raise self._gone() from error

    def _reopen_if_lost(self, error: errors.NotFound | errors.Unavailable, generation: int) -> None:
        """ContentsGone, with the arena open again, when a store failed with `error` in the arena's own thread because this generation of it was lost."""
        attempts = self._pool._attempts()
        if isinstance(error, errors.Unavailable) or error.reason == "ARENA_UNKNOWN":
            if self._revive(error, generation, attempts):
                raise self._gone() from error
            return
        self._reopen_if_restarted(error, generation, attempts)

    def _reopened(self) -> None:
        self._told.generation = self._generation
        if self.on_reopen is not None:
            self.on_reopen(self)

    def _gone(self) -> errors.ContentsGone:
        self._told.generation = self._generation
        return errors.ContentsGone(
            "ABORTED", "CONTENTS_GONE", "the daemon had lost this arena. It is open again at the same addresses: all rows are zeros and must be loaded "
            "again", metadata={"incarnation": self.incarnation, "arena": self._name})

    def _refusal(self) -> errors.StatepoolError:
        if os.getpid() != self._pid:
            return errors.made("FAILED_PRECONDITION", "FORKED", "this arena is that of the process that this one was forked from: open another one")
        return errors.made("FAILED_PRECONDITION", "ARENA_CLOSED", "this arena was closed")

    def _drop(self) -> None:
        """Lets go of what this process has of the arena, but in the process that opened it for the lease."""
        self._closed = True
        self._tensors = {}
        self._layers = {}
        self._memory = None
        if os.getpid() != self._pid:
            self._drop_lease()

    def _say_unmapped(self) -> None:
        """Of a GPU's memory the daemon can't tell. REQUIRES: this process maps none of it."""
        if self._on_gpu and self._lease is not None:
            with contextlib.suppress(OSError):
                self._lease.send(b"unmapped", socket.MSG_DONTWAIT)

    def _drop_flags(self) -> None:
        """Before the memory is unmapped, which waits for streams: those that wait for the daemon go on. REQUIRES: _lock, or that nobody else knows this."""
        flags, self._flags = self._flags, None
        if flags is not None:
            flags.close()

    def _drop_lease(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.close()  # no shutdown(): a parent's lease goes on

    def _end(self, name: str) -> None:
        """CloseArena as far as the daemon can be reached: if it can't, it sees the socket hang up, or the token expire."""
        if not name or sys.is_finalizing():
            return
        request = pb.CloseArenaRequest(arena=name, allow_missing=True)
        try:
            self._connection.call("CloseArena", request, pb.CloseArenaResponse.FromString, Attempts(min(self._pool._timeout, CLOSE_TIMEOUT_S), 0))
        except (errors.StatepoolError, RuntimeError):
            pass  # RuntimeError: the interpreter is about to end

    def _make_plan(self) -> None:
        """REQUIRES: the arena is open. Its layout never changes, so neither does the plan."""
        if self._flags is not None:
            self._in_flight = _gpu_copies.InFlight(self._memory.gpu)  # type: ignore[union-attr]
        if not self._table.plan:
            return
        state_bytes = sum(segment.element_bytes * math.prod(segment.sizes) for segment in self._table.plan)
        accepted_max = max(self._table.steps, 1)
        self._has_windows = _advance.has_windows(self._table)
        with contextlib.suppress(ValueError):  # then the daemon copies
            if self._on_gpu:
                self._copies = _gpu_copies.Copies(self._memory, self._table.plan, state_bytes, self._table.rows, accepted_max)  # type: ignore[arg-type]
                axes = {t.tensor: tuple(t.axes) for t in self._table.tensors}
                self._moves = _advance.GpuMoves(self._memory, self._table, self.view.num_spec, self._layers, axes)  # type: ignore[arg-type]
                self._in_flight = _gpu_copies.InFlight(self._memory.gpu)  # type: ignore[union-attr]
            else:
                self._plan = _kernels.Plan(self._table.plan, state_bytes, self._table.bytes, self._table.rows, accepted_max)
                self._moves = _advance.HostMoves(self._table, self.view.num_spec)

    def _numpy_array(self, dtype: str, shape: Iterable[int], strides: Iterable[int], offset: int) -> Array:
        array: Array = np.ndarray(tuple(shape), DTYPES[dtype], np.asarray(self._memory), offset, tuple(strides))
        return array

    def _make_arrays(self) -> None:
        assert self._memory is not None
        array_of = self._memory.tensor if self._on_gpu else self._numpy_array  # type: ignore[union-attr]
        per_layer: dict[str, dict[int, Array]] = {}
        for t in self._table.tensors:
            dtype = names.enum_name(pb.DType, t.dtype)
            if dtype not in DTYPES:
                raise errors.invalid("INVALID_LAYOUT", f"tensor {t.tensor!r} has the unknown dtype {t.dtype}", "dtype")
            try:
                array: Any = array_of(dtype, t.shape, t.strides, t.offset)
            except (TypeError, ValueError) as failure:
                raise errors.made("INTERNAL", "BAD_ANSWER", f"tensor {t.tensor!r} does not lie within the arena", "tensors") from failure
            if "layer" in t.axes:
                axis = list(t.axes).index("layer")
                self._tensors[t.tensor] = array
                for i, layer in enumerate(t.layers):
                    self._layers[t.tensor, layer] = array[(slice(None),) * axis + (i,)]
            else:
                per_layer.setdefault(t.tensor, {})[t.layers[0]] = array
                self._layers[t.tensor, t.layers[0]] = array
        self._tensors.update((tensor, MappingProxyType(arrays)) for tensor, arrays in per_layer.items())


# A batch may have many rows, of which each costs the caller time: their messages are made in place, for one that is made by itself is copied, and nothing
# is set to what it is anyway.


def _load_request(items: Mapping[int, LoadItem | Name | Match | str]) -> pb.LoadRequest:
    request = pb.LoadRequest()
    add = request.items.add
    for row, item in items.items():
        to = add(row=_row(row))
        source = item.source if isinstance(item, LoadItem) else item
        if isinstance(source, str):
            to.name.sequence = source
        else:
            to.name.CopyFrom(names.ref_of(source))
        if isinstance(item, LoadItem):
            if item.position is not None:
                to.position = item.position
            if item.version_id:
                to.version_id = item.version_id
            if item.row_unmodified:
                to.row_unmodified = True
            if item.attachment:
                to.with_attachment = True
    return request


def _store_request(items: Mapping[int, StoreItem | Sequence | str], position: int | Mapping[int, int] | None,
                   accepted: int | Mapping[int, int] | None, all_or_none: bool, advance: bool = False, skip_none: bool = False, align: int = 0,
                   steps_max: int = 1) -> pb.StoreRequest:
    request = pb.StoreRequest(all_or_none=all_or_none)
    add = request.items.add
    position_of, accepted_of = _by_row_of(position), _by_row_of(accepted)
    request_ids = os.urandom(14).hex()  # what those of this call begin with
    for i, (row, item) in enumerate(items.items()):
        more = item if isinstance(item, StoreItem) else None
        sequence: Any = item if more is None else more.sequence
        if not isinstance(sequence, str):
            if not isinstance(sequence, Sequence):
                raise errors.invalid("INVALID_NAME", f"{sequence!r} is no sequence", f"items[{i}].sequence")
            sequence = sequence.name
        at = position_of(row) if more is None or more.position is None else more.position
        if at is None:
            raise errors.invalid("MISSING_FIELD", f"row {row} has no position", f"items[{i}].position")
        to = add()
        if more is not None:
            to.CopyFrom(_alike(more.any_revision, more.whole_row, more.exactness, more.durability, more.ttl, more.expire_at, more.max_history))
            if more.if_revision is not None:
                to.if_revision = more.if_revision
            if more.attachment:
                to.attachment = more.attachment
            _set_path(to, more.path, i, row, steps_max)
        block = align if more is None or more.align is None else more.align
        if block:
            if operator.index(block) < 0:
                raise errors.invalid("INVALID_OPTION", f"a block has 1 token or more, not {block}", f"items[{i}].align", row=row)
            to.align = min(operator.index(block), (1 << 64) - 1)  # no position is a multiple of more
        if advance if more is None or more.advance is None else more.advance:
            to.advance = True
        if skip_none:
            to.skip_none = True
        length = accepted_of(row) if more is None or more.accepted is None else more.accepted
        if length is not None:
            _set_length(to, length, i, row, steps_max)
        to.row = _row(row)
        to.sequence = sequence
        try:
            to.position = at
        except ValueError:
            raise errors.invalid("INVALID_POSITION", f"a position is 0..2^53, not {at}", f"items[{i}].position", row=row) from None
        to.request_id = f"{request_ids}{i:04x}" if more is None or more.request_id is None else more.request_id
    return request


def _may_be_a_retry(items: Mapping[int, StoreItem | Sequence | str], request: pb.StoreRequest) -> bool:
    """Whether a row may have been advanced already by an earlier call with the caller's own request_id."""
    return any([to.advance and isinstance(item, StoreItem) and item.request_id is not None for item, to in zip(items.values(), request.items)])


def _advance_request(items: Iterable[tuple[int | None, Any]], steps_max: int, skip_out_of_range: bool) -> pb.AdvanceRequest:
    """Of rows, None where the item names it itself."""
    request = pb.AdvanceRequest(request_id=os.urandom(16).hex())
    for i, (row, given) in enumerate(items):
        if row is None:
            if not isinstance(given, AdvanceItem) or given.row is None:
                raise errors.invalid("MISSING_FIELD", "an item of a list says which row it is for: AdvanceItem(..., row=...)", f"items[{i}].row")
            row = given.row
        item = given if isinstance(given, AdvanceItem) else AdvanceItem(path=given) if isinstance(given, Iterable) else AdvanceItem(given)
        if item.row is not None and item.row != row:
            raise errors.invalid("INVALID_OPTION", f"this item is for row {item.row}, and stands at row {row}", f"items[{i}].row")
        to = request.items.add(row=_row(row))
        _set_path(to, item.path, i, row, steps_max)
        if item.accepted is not None:
            most = (1 << 32) - 1  # above all steps, as what is larger
            _set_length(to, most if skip_out_of_range and item.accepted > most else item.accepted, i, row, steps_max)
        if item.to_row is not None:
            to.to_row = _row(item.to_row)
    return request


def _set_length(to: pb.StoreItem | pb.AdvanceItem, length: int, i: int, row: int, steps_max: int) -> None:
    try:
        to.accepted_length = length
    except ValueError:
        raise errors.invalid("INVALID_ACCEPTED_LENGTH", f"the accepted length is 1..{steps_max}, not {length}", f"items[{i}].accepted_length", limit=steps_max,
                             row=row) from None


def _set_path(to: pb.StoreItem | pb.AdvanceItem, path: Iterable[int], i: int, row: int, steps_max: int) -> None:
    try:
        to.path.extend(path)
    except ValueError:
        raise errors.invalid("INVALID_PATH", f"a path is steps of the row, 0..{steps_max - 1}, each larger than the one before it", f"items[{i}].path",
                             limit=steps_max, row=row) from None


@functools.lru_cache(maxsize=64)
def _alike(any_revision: bool, whole_row: bool, exactness: Exactness | None, durability: Durability | None, ttl: Ttl, expire_at: Expiry | None,
           max_history: int | None) -> pb.StoreItem:
    """What most items of a worker's stores have in common. Nobody may change it."""
    return pb.StoreItem(any_revision=any_revision, whole_row=whole_row, options=_requests.options(durability, ttl, expire_at, max_history),
                        exactness=_requests.enum(pb.Exactness, exactness, "exactness"))


def _by_row_of(given: int | Mapping[int, int] | None) -> Callable[[int], int | None]:
    return given.get if isinstance(given, Mapping) else lambda _: given


def _loaded(row: pb.LoadedRow, attachments: bool) -> Loaded:
    """attachments: the answer may have some."""
    return Loaded(Info.from_proto(row.info, copy=True), row.attachment, row.copied) if attachments else Loaded.of(row)


def _stored(items: SequenceOf[pb.StoreItem], answer: pb.StoreResponse) -> list[Info | PartStored | errors.StatepoolError | None]:
    return [_error(items[i], r.error) if r.HasField("error") else PartStored(r.parts_missing) if r.parts_missing else None if r.skipped else Info.of(r.info)
            for i, r in enumerate(answer.rows)]


def _row(row: SupportsIndex) -> int:
    number = operator.index(row)
    if not 0 <= number < 1 << 32:
        raise errors.invalid("ROW_OUT_OF_RANGE", f"there is no row {number}", "row")
    return number


def _error(item: pb.LoadItem | pb.StoreItem | pb.AdvanceItem, status: Any) -> errors.StatepoolError:
    error = errors.from_status(status)
    error.metadata = {**error.metadata, "row": str(item.row)}
    return error


def _by_row(rows: Iterable[SupportsIndex], results: Iterable[Any], return_errors: bool) -> dict[int, Any]:
    out = dict(zip(map(operator.index, rows), results))
    if not return_errors:
        for result in out.values():
            if isinstance(result, errors.StatepoolError):
                raise errors.again(result)
    return out


def _check_same(first: pb.Arena, now: pb.Arena) -> None:
    """That arrays of the first arena have their tensors where the other one has them."""
    def table(arena: pb.Arena) -> tuple[Any, ...]:
        return arena.device, arena.layout, arena.rows, arena.steps, arena.bytes, arena.row_bytes, list(arena.tensors)

    if table(first) != table(now):
        raise _changed()


def _changed() -> errors.StatepoolError:
    return errors.made("FAILED_PRECONDITION", "ARENA_CHANGED", "the daemon lays this arena out in another way than before: open a new one")


# -------------------------------------------------------------------------------------------------------------- buffers


class Buffers(list[npt.NDArray[np.uint8]]):
    """What Pool.empty gives: arrays of Layout.state_bytes each. The end of a `with` block drops them."""

    def __enter__(self) -> Buffers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.clear()


class Row:
    """The memory of one buffer: a row of an arena, or ordinary memory where there are no arenas. numpy makes an array of it, which keeps it alive; then
    the row is free for another buffer. For one thread at a time, as the array is."""

    def __init__(self, layout: Layout, shelf: _Shelf | None, index: int) -> None:
        self._shelf = shelf
        self._index = index
        self.layout = layout
        if shelf is None:
            self._memory: Any = np.empty(layout.state_bytes, np.uint8)
            address = self._memory.__array_interface__["data"][0]
        else:
            self._memory = shelf.arena._memory  # it outlives the arena
            self._generation = shelf.arena._generation
            address = self._memory.address + shelf.begin + index * shelf.pitch
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (layout.state_bytes,), "data": (address, False)}

    def __del__(self) -> None:
        if self._shelf is not None:
            self._shelf.free.append(self._index)

    def is_shared_by(self, pool: Pool, layout: Layout | str) -> bool:
        """Whether a state of this layout can be loaded to and stored from here through this pool, in this process."""
        arena = None if self._shelf is None else self._shelf.arena
        return (arena is not None and arena._connection is pool._connection and arena._pid == os.getpid() and not arena._closed
                and _requests.fingerprint(layout) in (self.layout.fingerprint, *self.layout.aliases))

    def load(self, item: LoadItem, attempts: Attempts) -> Loaded:
        """REQUIRES: is_shared_by()."""
        assert self._shelf is not None
        request = _load_request({self._index: item})
        arena = self._shelf.arena
        while True:
            try:
                result, = arena._load(request, attempts, None)
            except errors.ContentsGone as gone:
                attempts.wait(gone, broken=True)  # what was here was to be overwritten anyway
                continue
            self._generation = arena._generation
            return _raised(result)

    def store(self, item: StoreItem, attempts: Attempts) -> Info:
        """REQUIRES: is_shared_by()."""
        assert self._shelf is not None
        request = _store_request({self._index: item}, None, None, all_or_none=True)
        arena = self._shelf.arena
        try:
            result, = arena._store(request, attempts, self._generation)
        except errors.ContentsGone:
            self._generation = arena._generation  # now they know
            raise
        except errors.StatepoolError as error:
            _set_alone(error)
            raise
        stored = _raised(result)
        assert isinstance(stored, Info)  # buffers have whole states
        return stored


class _Shelf:
    """An arena whose rows are buffers. free: those that nobody has, to take from and give back without a lock."""

    def __init__(self, pool: Pool, layout: Layout, rows: int, attempts: Attempts) -> None:
        self.arena = Arena(pool, layout, rows, 0, View("row_major"), attempts, is_host=True)
        self.free = collections.deque(range(rows))
        first = self.arena[layout.tensors[0].name]
        base = np.asarray(self.arena._memory).__array_interface__["data"][0]
        self.begin = first.__array_interface__["data"][0] - base
        self.pitch = first.strides[0]
        for t, (at, _) in zip(layout.tensors, layout.ranges()):
            array = self.arena[t.name]
            if (array.__array_interface__["data"][0] - base, array.strides[0]) != (self.begin + at, self.pitch) or not array[0].flags.c_contiguous:
                self.arena.close()
                raise errors.made("INTERNAL", "BAD_ANSWER", "the rows of this arena are not images", "tensors")


class Rooms:
    """The arenas that a pool keeps for its buffers, by layout. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._shelves: dict[str, list[_Shelf]] = {}

    def take(self, pool: Pool, layout: Layout, count: int) -> Buffers:
        """Pool.empty."""
        if os.getpid() != self._pid:
            raise errors.made("FAILED_PRECONDITION", "FORKED", "this pool is that of the process that this one was forked from: make another one")
        with self._lock:
            shelves = self._shelves.setdefault(layout.fingerprint, [])
            rows: list[Row] = []
            for shelf in shelves:
                _fill(rows, layout, shelf, count)
            while len(rows) < count:
                found = self._new(pool, layout, count - len(rows), sum(s.arena.rows for s in shelves))
                if found is None:
                    rows += [Row(layout, None, 0) for _ in range(count - len(rows))]
                else:
                    shelves.append(found)
                    _fill(rows, layout, found, count)
        return Buffers(np.asarray(row) for row in rows)

    def close(self) -> None:
        """Ends the leases. Buffers stay valid as memory."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            shelves = [s for listed in self._shelves.values() for s in listed]
            self._shelves = {}
        for shelf in shelves:
            shelf.arena.close()

    def _new(self, pool: Pool, layout: Layout, missing: int, had: int) -> _Shelf | None:
        """An arena for the buffers that are missing, and for some more if there is room; None if arenas are not to be had here."""
        limits = pool.capabilities()
        if not limits.arena_socket or not on_host(limits) or not sys.platform.startswith("linux"):
            return None
        most = min(missing, limits.max_arena_rows)
        wished = min(missing + min(had, SPARE_BYTES // layout.state_bytes), limits.max_arena_rows)
        try:
            try:
                return _Shelf(pool, layout, wished, pool._attempts(retry=wished == most))
            except errors.Exhausted:
                if wished == most:
                    raise
                return _Shelf(pool, layout, most, pool._attempts())
        except errors.StatepoolError as error:
            if error.reason in ("SOCKET_UNREACHABLE", "PEER_REFUSED", "PEER_UNKNOWN", "ARENAS_OFF"):
                return None
            raise


def device_of(pool: Pool, device: Any) -> str:
    """The name of the device for an arena, "" for the daemon's choice: of what Pool.open_arena was given. ValueError, Conflict (MAPPING_FAILED): of
    _cuda.device_name."""
    if isinstance(device, str) and not re.fullmatch(r"cuda(:\d+)?", device):
        return device
    if device is None and "torch" not in sys.modules:  # nothing has a current GPU
        return ""
    from . import _cuda

    if device is not None:
        return _cuda.device_name(device)
    gpus = [one.name for one in pool.capabilities().devices if one.name.startswith("cuda:")]
    current = _cuda.device_name() if len(gpus) > 1 else ""
    return current if current in gpus else ""


def on_host(limits: pb.Capabilities) -> bool:
    """Whether this daemon's arenas are memory that the CPU reaches."""
    return not any(device.name.startswith("cuda:") for device in limits.devices)


def row_of(buffer: Any) -> Row | None:
    """What `buffer` is the whole of, if it is one that Pool.empty gave, or a view of one."""
    owner = buffer
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, Row):
        return None
    whole = buffer.flags.c_contiguous if isinstance(buffer, np.ndarray) else buffer.c_contiguous
    return owner if whole and buffer.nbytes == owner.layout.state_bytes else None


def _fill(rows: list[Row], layout: Layout, shelf: _Shelf, count: int) -> None:
    """Appends rows that are free, until there are `count`."""
    while len(rows) < count and shelf.free:
        rows.append(Row(layout, shelf, shelf.free.popleft()))


def _raised(result: _Result | errors.StatepoolError) -> _Result:
    if isinstance(result, errors.StatepoolError):
        raise _alone(result)
    return result


def _alone(error: errors.StatepoolError) -> errors.StatepoolError:
    """The error of an item, as that of a call of its own."""
    error = errors.again(error)
    _set_alone(error)
    return error


def _set_alone(error: errors.StatepoolError) -> None:
    error.field = error.field.removeprefix("items[0].")
    error.metadata = {k: v for k, v in error.metadata.items() if k != "row"}
