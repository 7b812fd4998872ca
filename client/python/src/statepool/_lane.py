# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The fast lane: Pool.get and Pool.set of whole large states through small arenas that the pool keeps for itself, when the daemon is on this machine.

To the caller it is the inline way (the one message of Get or Set), only faster: same arguments, answers and errors. What the lane can't do, or can't do
now, goes inline. Not for the lane, ever:
  - parts, streams, batches, and buffers of Pool.empty, which have rows of their own;
  - a request_id of the caller's: to the daemon a Store and a Set with the same id are two requests, and which of them another process's or a later
    retry will be, nobody knows. For the same reason a set() stays on the lane when an attempt there may have stored it;
  - a layout given by its alias: the lane can't tell what it stands for.
"""
from __future__ import annotations

import collections
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import _wire, arenas, errors
from ._calls import Attempts
from ._seen import LARGE_BYTES, Seen
from .names import Info
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from .client import Pool

CALLS_MIN = 8
"""So many calls with states of a layout find no row before one more is made: that costs about what so many calls save."""
ROWS_MAX = 4
"""Arenas of one row (calls on one arena take turns) for each layout, at most: as many as threads were in such calls at once."""
SHARE = 16
"""All arenas of a lane, with the slots that the daemon reserves for them, have at most this part of Capabilities.max_arena_bytes."""
OPEN_TIMEOUT_S = 2.0
"""How long a call may be held up by opening an arena that then is not to be had."""
PAUSE_S = 30.0
"""How long none is opened after that."""
_PASSING = ("", "DRAINING", "DEADLINE", "QUEUE_FULL", "CONTENTS_GONE")  # after these the arena is as good as before, or opens again by itself


class Lane:
    """The arenas of a pool's fast lane. Thread-safe; in a forked child everything goes inline."""

    def __init__(self, enabled: bool, seen: Seen) -> None:
        self._seen = seen
        self._enabled = enabled and sys.platform.startswith("linux")
        self._pid = os.getpid()
        self._lock = threading.Lock()  # of what follows
        self._slots: dict[str, list[_Slot]] = {}  # by fingerprint
        self._calls: collections.Counter[str] = collections.Counter()  # by fingerprint, those that no slot was there for
        self._bytes = 0  # of all slots and what is reserved for them
        self._bytes_max: int | None = None  # unknown before somebody asked
        self._opening = False
        self._paused_until = 0.0

    def close(self) -> None:
        """Drops the arenas; for the daemon it is enough that their sockets hang up."""
        if os.getpid() == self._pid:
            with self._lock:
                self._enabled = False
                self._slots = {}

    @property
    def has_rows(self) -> bool:
        return self._bytes > 0

    def get(self, pool: Pool, request: pb.GetRequest, out: memoryview | None, attempts: Attempts) -> tuple[Info, memoryview, bytes] | None:
        """What Get answers, its bytes (those of `out` if that is given) and attachment, not yet verified; None: ask inline."""
        layout = request.layout
        if not layout and self._enabled:
            kind = request.name.WhichOneof("name") or ""
            # Of names never seen it is a guess; when it is wrong the daemon says LAYOUT_MISMATCH.
            layout, _ = self._seen.of_name(kind, getattr(request.name, kind, "")) or (self._seen.newest, 0)
        with self._slot(pool, layout, None if out is None else len(out)) as slot:
            if slot is None:
                return None
            load = pb.LoadRequest(items=[pb.LoadItem(row=0, name=request.name, version_id=request.version_id,
                                                     with_attachment=not request.omit_attachment)])
            if request.HasField("position"):
                load.items[0].position = request.position
            try:
                result, = slot.arena._load(load, Attempts(attempts.timeout(), 0), None)
            except errors.StatepoolError as error:
                slot.unsettled = not error.reason
                self._failed(layout, slot, error)
                return None
            slot.unsettled = False  # calls on an arena take turns
            if isinstance(result, errors.NotFound) and result.reason not in ("LAYOUT_MISMATCH", "LAYOUT_UNKNOWN"):
                raise arenas._alone(result)  # Get says the same
            if isinstance(result, errors.StatepoolError):
                return None
            room = np.empty(len(slot.row), np.uint8) if out is None else np.frombuffer(out, np.uint8)
            np.copyto(room, slot.row)
            return result.info, _wire.as_bytes(room).toreadonly() if out is None else out, result.attachment

    def set(self, pool: Pool, head: pb.SetRequest, pieces: _wire.Pieces,
            attempts: Attempts) -> tuple[Info | None, errors.StatepoolError | None]:
        """The answer of Set, whose request is `head` and `pieces`. Without one it is to be tried inline; then with the error of the attempt that may have
        stored it, if there was one: inline, REQUEST_ID_REUSED tells that it has."""
        if_revision = head.if_revision if head.HasField("if_revision") else None
        layout = head.layout
        if not layout and self._enabled:
            # It must be there, and have that layout: so it does if it has the revision that was seen last.
            layout, revision = self._seen.of_name("sequence", head.sequence) or ("", 0)
            if if_revision is None:
                if_revision = revision
            elif if_revision == 0:
                layout = ""
        doubt: errors.StatepoolError | None = None
        with self._slot(pool, layout, pieces.nbytes) as slot:
            if slot is None or not slot.settle(attempts):
                return None, None
            store = pb.StoreRequest(items=[pb.StoreItem(
                row=0, sequence=head.sequence, position=head.position, whole_row=True, if_revision=if_revision, any_revision=if_revision is None,
                options=head.options if head.HasField("options") else None, request_id=head.request_id, attachment=head.attachment,
                exactness=head.exactness)])
            while True:
                slot.fill(pieces)
                try:
                    result, = slot.arena._store(store, Attempts(attempts.timeout(), 0), None)
                except errors.DeadlineExceeded as error:
                    slot.unsettled = not error.reason
                    raise
                except errors.StatepoolError as error:
                    slot.unsettled = not error.reason
                    doubt = doubt or _unanswered(error)
                    if doubt is None or not isinstance(error, (errors.Unavailable, errors.ContentsGone)) or error.reason not in _PASSING:
                        self._failed(layout, slot, error)
                        return None, doubt
                    if isinstance(error, errors.Unavailable):
                        attempts.wait(error)
                    # After ContentsGone the arena is there again, and its daemon knows whether it has the write.
                else:
                    slot.unsettled = False
                    if isinstance(result, Info):
                        return result, None
                    assert isinstance(result, errors.StatepoolError)  # a whole state, and no skip
                    if result.reason == "REVISION_MISMATCH" and head.layout:
                        raise arenas._alone(result)  # Set says the same
                    return None, doubt

    # -------------------------------------------------------------------------------------------------------------- slots

    @contextmanager
    def _slot(self, pool: Pool, layout: str, nbytes: int | None) -> Iterator[_Slot | None]:
        """A row for a state of this layout, which is to have so many bytes, for the `with` block alone; None: there is none for it now."""
        slot = self._take(pool, layout, nbytes)
        try:
            yield slot
        finally:
            if slot is not None:
                slot.busy = False

    def _take(self, pool: Pool, layout: str, nbytes: int | None) -> _Slot | None:
        if not layout or not self._enabled or os.getpid() != self._pid:
            return None
        with self._lock:
            size = self._seen.size_of(layout)
            if size < LARGE_BYTES or nbytes not in (None, size):
                return None
            slots = self._slots.get(layout, [])
            for slot in slots:
                if not slot.busy:
                    slot.busy = True
                    return slot
            self._calls[layout] += 1
            need = 2 * size
            if (self._calls[layout] < CALLS_MIN or len(slots) >= ROWS_MAX or self._opening or time.monotonic() < self._paused_until
                    or (self._bytes_max is not None and self._bytes + need > self._bytes_max)):
                return None
            self._opening = True
        made: _Slot | None = None
        try:
            made = self._open(pool, layout, need)
        except Exception:  # whatever it is, the inline way does without
            self._pause()
        finally:
            with self._lock:
                self._opening = False
                self._calls[layout] = 0
                if made is not None and self._enabled:
                    self._slots.setdefault(layout, []).append(made)
                    self._bytes += need
        return made

    def _open(self, pool: Pool, layout: str, need: int) -> _Slot | None:
        """A new row, already taken. Errors: those of Pool.open_arena and others."""
        quick = pool.with_options(timeout=min(pool._timeout, OPEN_TIMEOUT_S), retries=0)
        if self._bytes_max is None:
            limits = quick.capabilities()
            # A daemon of another machine is not even asked, nor one whose arenas are in a GPU's memory.
            from . import _mapping  # Linux alone has it
            here = limits.arena_socket and arenas.on_host(limits) and _mapping.is_here(limits.arena_socket)
            self._bytes_max = limits.max_arena_bytes // SHARE if here else 0
        if self._bytes + need > self._bytes_max:
            return None
        shape = quick.get_layout(layout)
        return _Slot(arenas._Shelf(quick, shape, 1, quick._attempts()), shape.state_bytes)

    def give_way(self) -> bool:
        """Gives the daemon back what no call uses now, for an arena of the caller's own; whether there was anything."""
        if os.getpid() != self._pid:
            return False
        with self._lock:
            idle = [slot for slots in self._slots.values() for slot in slots if not slot.busy]
            for slots in self._slots.values():
                slots[:] = [slot for slot in slots if slot.busy]
            self._bytes -= sum(2 * len(slot.row) for slot in idle)
        if idle:
            self._pause()
        for slot in idle:
            arena = slot.arena
            del slot.row  # so that nothing is mapped when the daemon hears of it
            arena.close()
        return bool(idle)

    def _failed(self, layout: str, slot: _Slot, error: errors.StatepoolError) -> None:
        """Drops the slot unless it is good for other calls."""
        if error.reason in _PASSING or isinstance(error, errors.InvalidArgument):
            return
        with self._lock:
            slots = self._slots.get(layout, [])
            if slot in slots:
                slots.remove(slot)
                self._bytes -= 2 * len(slot.row)
        self._pause()

    def _pause(self) -> None:
        with self._lock:
            self._paused_until = time.monotonic() + PAUSE_S
            self._bytes_max = None  # it may be another daemon then


class _Slot:
    """An arena of one row, which is an image. For the call that made it busy."""

    def __init__(self, shelf: arenas._Shelf, nbytes: int) -> None:
        self.busy = True
        self.unsettled = False  # a call got no answer: the daemon may still be copying to or from the row
        self.arena = shelf.arena
        self.row: npt.NDArray[np.uint8] = np.asarray(shelf.arena._memory)[shelf.begin:shelf.begin + nbytes]

    def settle(self, attempts: Attempts) -> bool:
        """Whether the row may be written to: the daemon serves one call on an arena at a time, and refuses this one when its turn has come."""
        if self.unsettled:
            try:
                self.arena._call("Load", pb.LoadRequest(), pb.LoadResponse.FromString, Attempts(attempts.timeout(), 0), None)
            except (errors.InvalidArgument, errors.ContentsGone):
                self.unsettled = False
            except errors.StatepoolError:
                pass
        return not self.unsettled

    def fill(self, pieces: _wire.Pieces) -> None:
        at = 0
        for view in pieces.cut(0, pieces.nbytes):
            np.copyto(self.row[at:at + len(view)], np.frombuffer(view, np.uint8))
            at += len(view)


def _unanswered(error: BaseException | None) -> errors.Unavailable | None:
    """What kept an attempt's answer away, if that is behind this error: it may have been done."""
    while error is not None and not isinstance(error, errors.Unavailable):
        error = error.__cause__ or error.__context__
    return None if error is None else errors.again(error)
