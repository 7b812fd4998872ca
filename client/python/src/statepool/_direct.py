# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The direct ways (DIRECT in statepool.proto): states are read and written where the daemon of this machine has them, and no byte travels.

A pool has one direct lease at a time, opened at the first call that it is good for, where Capabilities.copy_mode is "direct". Pool.get(copy=False) gives
views of the daemon's slots; other gets of large states copy from there; sets of large states write into slots that the daemon granted; arenas are copied
to and from by this process if they were opened so. What can't go this way, or not now, goes as it would without, and with the same answer.

A lease has a thread of its own, a daemon thread that ends with it. It gives the daemon back what it asks for, and granted slots that no set or store used
for STOCK_IDLE_S.
"""
from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError

from . import _kernels, _wire, errors
from ._calls import Attempts
from ._seen import LARGE_BYTES, Seen
from .names import Info
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from . import _cuda, _mapping
    from .client import Pool

GET_BYTES_MIN = LARGE_BYTES
"""A get that copies, of a smaller state, goes as it would without."""
SET_BYTES_MIN = LARGE_BYTES
"""The same for sets."""
IDLE_BYTES_MAX = 1 << 30
"""So much of the daemon's memory stays mapped where no pin is used any more; beyond it what was used longest ago goes. Extents of the lease's own are not
counted: Capabilities.max_granted_bytes bounds them; nor a GPU's: what the daemon wants back of them it says."""
IDLE_SHARE = 4
"""And at most this part of Capabilities.max_pinned_bytes."""
STOCK_BYTES_MAX = 64 << 20
"""Granted slots that wait for sets, for each layout: so many bytes or one slot, and at most STOCK_MAX."""
STOCK_SHARE = 16
"""And at most this part of Capabilities.max_granted_bytes, or one slot."""
STOCK_MAX = 8
STORE_STOCK_SHARE = 2
"""A store brings as many slots as it uses up, unless this part of Capabilities.max_granted_bytes waits already."""
STOCK_IDLE_S = 2.0
"""What was in stock all of this time is given back."""
STOCK_PAUSE_S = 5.0
"""How long nothing is put in stock after the daemon had to refuse somebody room, and got all of it back."""
TELL_PAUSE_S = 0.1
"""What the daemon had no room for is told again after so long."""
OPEN_TIMEOUT_S = 2.0
"""How long a call may be held up by opening a lease that then is not to be had."""
PAUSE_S = 30.0
"""How long none is opened after that."""
PAUSE_UNAVAILABLE_S = 0.5
"""The same if the daemon was not there."""
GRANT_PAUSE_S = 1.0
"""How long a lease asks for no slots after it got none."""
ANSWER_TIMEOUT_S = 5.0
"""How long the daemon may take for a descriptor; then the lease is given up."""
_DESCRIPTORS_MAX = 64  # in one event
_UNPINS_MAX, _DROPPED_MAX = 8192, 1024  # in one message
_EVENT_BYTES_MAX = 256 << 10
_GRANTS_MAX = 64  # in one call
_AT_ONCE = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)

_LEASE_GONE = ("LEASE_UNKNOWN", "LEASE_NOT_CONNECTED", "DIRECT_OFF")
SHORTAGES = (*_LEASE_GONE, "TOO_MANY_PINS", "TOO_MUCH_PINNED", "TOO_MUCH_GRANTED", "GRANT_UNKNOWN")
"""Reasons that only a direct call fails for: without a lease it may do."""


class Direct:
    """The direct lease of a pool. Thread-safe; in a forked child there is none."""

    def __init__(self, enabled: bool, seen: Seen) -> None:
        self._enabled = enabled and sys.platform.startswith("linux")
        self._seen = seen
        self._pid = os.getpid()
        self._lock = threading.Lock()  # of what follows; held while a lease is opened
        self._lease: Lease | None = None
        self._paused_until = 0.0

    def close(self) -> None:
        """The lease ends when no view is left."""
        if os.getpid() == self._pid:
            with self._lock:
                self._enabled = False
                lease, self._lease = self._lease, None
            if lease is not None:
                lease.retire()

    def lease(self, pool: Pool, attempts: Attempts) -> Lease | None:
        """The lease, opened if need be; None: there is none to be had now."""
        if not self._enabled or os.getpid() != self._pid:
            return None
        lease = self._lease
        if lease is not None and lease.is_good():
            return lease
        if time.monotonic() < self._paused_until:
            return None
        with self._lock:
            if self._lease is not None and not self._lease.ended and not self._lease.retired:
                return self._lease  # another thread was first
            if not self._enabled or time.monotonic() < self._paused_until:
                return None
            try:
                self._lease = self._open(pool, attempts)
            except errors.Unavailable as error:
                self._paused_until = time.monotonic() + (PAUSE_S if error.reason == "SOCKET_UNREACHABLE" else PAUSE_UNAVAILABLE_S)
                return None
            except Exception:  # whatever it is, there are ways that do without
                self._lease = None
            if self._lease is None:
                self._paused_until = time.monotonic() + PAUSE_S
            return self._lease

    def get(self, pool: Pool, request: pb.GetRequest, attempts: Attempts, *, copy: bool) -> tuple[pb.GetResponse, memoryview] | None:
        """What Get answers, and a view of the slot with the bytes, which is pinned as long as somebody has the view. None: ask in another way.

        copy  the bytes will be copied: only large states are worth it. REQUIRES: no `select`.
        """
        if copy and self._size_wanted(request) < GET_BYTES_MIN:
            return None
        lease = self.lease(pool, attempts)
        if lease is None or not lease.on_host:
            return None
        direct = pb.GetRequest()
        direct.CopyFrom(request)
        direct.lease = lease.id
        try:
            answer = pool._connection.call("Get", direct, pb.GetResponse.FromString, Attempts(attempts.timeout(), 0))
        except errors.StatepoolError as error:
            if goes_on(lease, error):
                return None
            raise
        pin = lease.pin(answer.slot, answer.data_bytes) if answer.HasField("slot") else None
        return None if pin is None else (answer, pin.view())

    def set(self, pool: Pool, head: pb.SetRequest, pieces: Sequence[memoryview], attempts: Attempts) -> Info | None:
        """The answer of Set, whose request is `head` and these bytes. None: it is to be tried in another way, with this same head, which has a checksum
        if it may have been done here."""
        layout = head.layout
        if not layout:
            layout, _ = self._seen.of_name("sequence", head.sequence) or ("", 0)
        nbytes = sum(map(len, pieces))
        if nbytes < SET_BYTES_MIN or self._seen.size_of(layout) != nbytes or head.attachment or head.HasField("select"):
            return None
        while True:
            lease = self.lease(pool, attempts)
            grants = [] if lease is None or not lease.on_host else lease.take_grants(pool, layout, nbytes, 1, attempts)
            if lease is None or not grants:
                return None
            grant, = grants
            direct = pb.SetRequest()
            try:
                head.checksum = _kernels.copy_and_hash(grant.view(), pieces)
                direct.CopyFrom(head)
                direct.lease, direct.grant = lease.id, grant.id
                info = pool._connection.call("Set", direct, pb.NameInfo.FromString, Attempts(attempts.timeout(), 0))
            except BaseException as error:
                lease.give_back(grants)  # the daemon may have refused the call before it looked at them
                if not isinstance(error, errors.StatepoolError) or not goes_on(lease, error):
                    raise
                if error.reason in SHORTAGES:
                    return None
                attempts.wait(error)  # and once more, with another slot
            else:
                lease.done_with(grants)
                return Info.from_proto(info)

    def _size_wanted(self, request: pb.GetRequest) -> int:
        """Bytes of the state that is asked for, as far as anybody knows."""
        layout = request.layout
        if not layout:
            kind = request.name.WhichOneof("name") or ""
            layout, _ = self._seen.of_name(kind, getattr(request.name, kind, "")) or (self._seen.newest, 0)
        return self._seen.size_of(layout)

    def _open(self, pool: Pool, attempts: Attempts) -> Lease | None:
        """A new lease. Errors: those of the daemon, and of its socket."""
        quick = pool.with_options(timeout=min(attempts.timeout(), OPEN_TIMEOUT_S), retries=0)
        limits = quick.capabilities()
        if limits.copy_mode != "direct":
            return None
        from . import _mapping  # Linux alone has it

        opened = quick._call("OpenDirect", pb.OpenDirectRequest(), pb.DirectLease.FromString)
        connection = _mapping.connect(opened, OPEN_TIMEOUT_S).lease
        return Lease(opened.lease, connection, limits)


class Lease:
    """A direct lease: the connection, what is mapped of the daemon's memory, and the granted slots in stock. Thread-safe.

    Nothing here waits for the daemon but pin() and take_grants(), for descriptors. The daemon's events are read with each call that uses the lease, and
    by a thread as they come. When it has ended its memory stays mapped where somebody uses it.
    """

    def __init__(self, id: str, connection: socket.socket, limits: pb.Capabilities) -> None:
        """Takes the connection. limits: of the daemon. OSError, RuntimeError when the process can't have the thread.

        on_host  the CPU reaches the daemon's slots
        """
        from . import _mapping

        self.id = id
        self.on_host = not any(_mapping.is_gpu(device.name) for device in limits.devices)
        self.ended = False
        self.retired = False
        self._pid = os.getpid()
        self._idle_bytes_max = limits.max_pinned_bytes // IDLE_SHARE
        self._granted_bytes_max = limits.max_granted_bytes
        self._released: collections.deque[tuple[int, _Extent | None]] = collections.deque()  # pins (0: a used grant) and their extents; from any thread
        self._lock = threading.Lock()  # of what follows; who had it calls settle() afterwards
        self._connection = connection  # not to be used once it has ended
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._extents: collections.OrderedDict[int, _Extent] = collections.OrderedDict()  # by id, those that were used longest ago first
        self._idle_bytes = 0  # of extents that count for IDLE_BYTES_MAX
        self._asked = 0  # the extent whose descriptor is on its way
        self._unpin: list[int] = []  # to be told
        self._dropped: list[int] = []
        self._untold = False  # the daemon had no room for it
        self._hung_up = False
        self._stock = _Stock()
        self._asking = threading.Lock()  # held while more slots are asked for
        self._no_grants_until = self._no_stock_until = 0.0
        try:
            self._watch = _Watch(self, connection)
        except BaseException:
            self.ended = True
            connection.close()
            raise

    def __del__(self) -> None:
        if os.getpid() != self._pid:
            if not self.ended:
                self._watch.close()  # no shutdown(): a parent's lease goes on
        else:
            self.retire()

    def is_good(self) -> bool:
        """Reads what the daemon has said; whether the lease is good for another call."""
        with self._lock:
            self._read_events()
            self._tell()
        self.settle()
        return not self.ended and not self.retired

    def end(self) -> None:
        """Ends it. What is in use stays mapped."""
        with self._lock:
            self._end()
        self.retire()

    def retire(self) -> None:
        """It is for no further call, and ends with the last view: the pool was closed, or a call that got no answer may have left a pin or a grant, which
        nobody could give back."""
        if os.getpid() != self._pid or sys.is_finalizing():
            return
        self.retired = True
        self._release(self._stock.take_all())
        with self._lock:
            self._end_if_idle()
        self.settle()

    def attend(self) -> float | None:
        """What its thread does: reads what the daemon has said, and gives an idle stock back. Seconds until it is to do so again if nothing happens; None:
        it need not."""
        with self._lock:
            self._read_events()
            self._tell()
            pauses = [TELL_PAUSE_S] if self._untold and not self.ended else []
        idle, pause = self._stock.look()
        self._release(idle)
        self.settle()
        if pause is not None:
            pauses.append(pause)
        return min(pauses, default=None)

    def pin(self, slot: pb.Slot, nbytes: int) -> Pin | None:
        """The pin of a slot that the daemon has just pinned, with so many bytes; None: they can't be seen from here, and the pin is given back."""
        pin, = self.pin_all([slot], nbytes)
        return pin

    def pin_all(self, slots: Sequence[pb.Slot], nbytes: int, device: str = "") -> list[Pin | None]:
        """The same for several slots on this GPU; without a device on the host."""
        pins: list[Pin | None] = []
        with self._lock:
            for slot in slots:
                extent = self._used_extent(slot, nbytes, device)
                pins.append(None if extent is None else Pin(self, slot.id, extent, extent.address + slot.offset, nbytes))
        self.settle()
        return pins

    def unpin_all(self, pins: Sequence[Pin]) -> None:
        """Gives pins back before their objects are gone. REQUIRES: nobody uses them any more."""
        for pin in pins:
            pin._is_given_back = True
            self._released.append((pin._id, pin._extent))
        self.settle()

    def take_grants(self, pool: Pool, layout: str, nbytes: int, count: int, attempts: Attempts, device: str = "") -> list[Grant]:
        """So many granted slots for states of this layout, or none, on this GPU; without a device on the host. The caller's, until done_with() or
        give_back(). DeadlineExceeded."""
        taken = self._stock.take(layout, count)
        if taken:
            return taken
        with self._asking:  # what comes may do for the others as well
            while not (taken := self._stock.take(layout, count)) and not self.ended and time.monotonic() >= self._no_grants_until:
                for_sets = min(STOCK_MAX, min(STOCK_BYTES_MAX, self._granted_bytes_max // STOCK_SHARE) // nbytes)
                wanted = max(count - self._stock.count(layout), for_sets if time.monotonic() >= self._no_stock_until else 0)
                request = pb.GrantRequest(lease=self.id, layout=layout, count=min(wanted, _GRANTS_MAX))
                try:
                    answer = pool._connection.call("Grant", request, pb.GrantResponse.FromString, Attempts(attempts.timeout(), 0))
                    found = self.add_to_stock(layout, answer.slots, nbytes, device)
                except errors.StatepoolError as error:
                    found = 0
                    goes_on(self, error)
                    if isinstance(error, errors.DeadlineExceeded):
                        raise
                if not found:
                    self._no_grants_until = time.monotonic() + GRANT_PAUSE_S
        return taken

    def stock_wanted(self, layout: str, nbytes: int, count: int) -> int:
        """How many slots for states of this layout a store that uses up `count` should ask for in its answer, for add_to_stock()."""
        if self.ended or self.retired or time.monotonic() < self._no_stock_until:
            return 0
        room = self._granted_bytes_max // STORE_STOCK_SHARE // nbytes - self._stock.count(layout)
        return max(0, min(count, room))

    def add_to_stock(self, layout: str, slots: Sequence[pb.Slot], nbytes: int, device: str = "") -> int:
        """Slots that the daemon has just granted: how many of them can be written from here, and are in stock now. The others go back."""
        grants: list[Grant] = []
        with self._lock:
            for slot in slots:
                extent = self._used_extent(slot, nbytes, device, writable=True)
                if extent is not None:
                    assert extent.writable_address is not None
                    grants.append(Grant(slot.id, extent, extent.writable_address + slot.offset, nbytes))
        self.settle()
        is_first = self._stock.add(layout, grants)
        if self.ended or self.retired:
            self._release(self._stock.take_all())
            self.settle()
        elif is_first:
            with self._lock:
                if not self.ended:
                    self._watch.wake()
        return len(grants)

    def done_with(self, grants: Sequence[Grant]) -> None:
        """They were used up by a call that named them, and was answered."""
        self._released.extend((0, grant.extent) for grant in grants)
        self.settle()

    def give_back(self, grants: Sequence[Grant]) -> None:
        """No call named them, or one that failed: it may have used them up, which the daemon knows. REQUIRES: nobody writes to them any more."""
        self._release(grants)
        self.settle()

    def _release(self, grants: Sequence[Grant]) -> None:
        """What nobody writes to any more: the next settle() gives it back."""
        self._released.extend((grant.id, grant.extent) for grant in grants)

    def settle(self) -> None:
        """Gives back what is not used any more. May be called from anywhere, finalizers too: it never waits."""
        if os.getpid() != self._pid or sys.is_finalizing():
            return
        while self._released and self._lock.acquire(blocking=False):  # who else has it will be here
            try:
                self._give_back()
            finally:
                self._lock.release()

    # ------------------------------------------------------------------------------------------------- REQUIRES: _lock

    def _give_back(self) -> None:
        while self._released:
            pin, extent = self._released.popleft()
            if pin:
                self._unpin.append(pin)
            if extent is not None:
                extent.users -= 1
                if not extent.users:
                    self._idle_bytes += extent.counted
                    if extent.doomed or self.ended:
                        self._unmap(extent)
        idle = (e for e in list(self._extents.values()) if not e.users and e.counted)
        while self._idle_bytes > min(IDLE_BYTES_MAX, self._idle_bytes_max):
            self._unmap(next(idle))
        self._end_if_idle()
        self._tell()

    def _end_if_idle(self) -> None:
        if self.retired and not any(extent.users for extent in self._extents.values()):
            self._end()

    def _give_up(self) -> None:
        """Nothing more can be asked for. It ends with its last user: until then the daemon keeps the pins, for a GPU may be told to read there."""
        self.retired = True
        self._end_if_idle()

    def _use(self, extent: _Extent) -> None:
        if not extent.users:
            self._idle_bytes -= extent.counted
        extent.users += 1
        self._extents.move_to_end(extent.id)

    def _unmap(self, extent: _Extent) -> None:
        """REQUIRES: nobody uses it."""
        del self._extents[extent.id]
        self._idle_bytes -= extent.counted
        extent.unmap()
        self._dropped.append(extent.id)

    def _end(self) -> None:
        if self.ended:
            return
        self.ended = True
        for extent in list(self._extents.values()):
            if not extent.users:
                self._unmap(extent)
        if self._asked:
            self._dropped.append(self._asked)  # to the daemon it is mapped, wherever its descriptor is
        self._tell()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)  # children may have copies of it
        self._hung_up = True
        self._watch.end()

    def _used_extent(self, slot: pb.Slot, nbytes: int, device: str, writable: bool = False) -> _Extent | None:
        """The extent of a slot that the daemon has just given, with a user more; None: it can't be had here, and the slot goes back."""
        extent = self._extent(slot.extent)
        if extent is None or extent.device != device or slot.offset + nbytes > extent.nbytes or writable and extent.writable_address is None:
            self._released.append((slot.id, None))
            return None
        self._use(extent)
        return extent

    def _extent(self, id: int) -> _Extent | None:
        """What is mapped of this extent, now or before; None: it can't be had."""
        found = None if self.ended else self._extents.get(id)
        if found is not None or self.ended or self._asked:
            return found
        self._read_events()
        if not self._tell(extent=id):
            self._give_up()  # the daemon does not read
            return None
        self._asked = id
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        mapping: _Mapping | None = None
        while not self.ended:
            event, fds = self._read_event(deadline)
            try:
                if event is None:
                    break  # its answer would come when another is expected
                if event.extent:
                    mapping = mapping or _Mapping(event)
                    if event.extent != id or bool(fds) == bool(event.reason) or len(fds) > mapping.left:
                        self._end()
                    elif event.reason:
                        self._asked = 0
                        mapping.give_up()
                        return None
                    else:
                        mapping.add(fds)
                if mapping is not None and not mapping.left and not self.ended:
                    self._asked = 0
                    return self._keep(mapping)
            finally:
                for fd in fds:
                    os.close(fd)
        if mapping is not None:
            mapping.give_up()
        self._give_up()
        return None

    def _keep(self, mapping: _Mapping) -> _Extent | None:
        extent = mapping.finish()
        if extent is None:
            self._dropped.append(mapping.event.extent)
            return None
        self._extents[extent.id] = extent
        self._idle_bytes += extent.counted
        return extent

    def _tell(self, extent: int = 0) -> bool:
        """Sends what the daemon is to know, without waiting for it; what it has no room for is kept. Whether `extent` was asked for."""
        while not self._hung_up and (extent or self._unpin or self._dropped):
            request = pb.LeaseRequest(extent=extent, unpin=self._unpin[:_UNPINS_MAX], dropped=self._dropped[:_DROPPED_MAX])
            try:
                self._connection.send(request.SerializeToString(), _AT_ONCE)
            except BlockingIOError:
                if not self._untold:
                    self._untold = True
                    self._watch.wake()
                return False
            except OSError:
                self._end()
                return False
            del self._unpin[:_UNPINS_MAX], self._dropped[:_DROPPED_MAX]
            self._untold = False
            if extent:
                return True
        return False

    def _read_events(self) -> None:
        """All that is there."""
        while not self.ended:
            event, fds = self._read_event(0)
            for fd in fds:
                os.close(fd)  # nobody asked for it
            if event is None:
                return

    def _read_event(self, deadline: float) -> tuple[pb.LeaseEvent | None, list[int]]:
        """The next event, of which `drop` and `short_of_room` are done, and its descriptors, which are the caller's to close. None: there is none before
        the deadline (0: now), or the lease has ended."""
        if not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000 if deadline else 0):
            return None, []
        data, flags = b"", 0  # as when it has hung up
        fds: list[int] = []
        with contextlib.suppress(OSError):
            data, fds, flags, _ = socket.recv_fds(self._connection, _EVENT_BYTES_MAX, _DESCRIPTORS_MAX, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        try:
            if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise DecodeError
            event = pb.LeaseEvent.FromString(data)
        except DecodeError:
            for fd in fds:
                os.close(fd)
            self._end()
            return None, []
        for id in event.drop:
            extent = self._extents.get(id)
            if extent is not None:
                extent.doomed = True
                if not extent.users:
                    self._unmap(extent)
        if event.short_of_room:
            self._no_stock_until = time.monotonic() + STOCK_PAUSE_S
            self._release(self._stock.take_all())
        return event, fds


class _Watch:
    """The thread of a lease, which it does not keep alive. It polls the connection, and closes it when the lease has ended: nobody else does, but a forked
    child its copy."""

    def __init__(self, lease: Lease, connection: socket.socket) -> None:
        self._connection = connection
        self._ended = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            threading.Thread(target=self._run, args=(weakref.ref(lease),), name="statepool-lease", daemon=True).start()
        except BaseException:
            os.close(self._wake)
            raise

    def wake(self) -> None:
        """REQUIRES: the lease has not ended."""
        os.eventfd_write(self._wake, 1)

    def end(self) -> None:
        """Nobody uses the connection any more. Called once."""
        os.eventfd_write(self._wake, 1)  # before: afterwards it may be closed
        self._ended = True

    def close(self) -> None:
        """REQUIRES: the thread is not there, or has left the loop."""
        self._connection.close()
        os.close(self._wake)

    def _run(self, lease: weakref.ref[Lease]) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        pause: float | None = None
        while not self._ended:
            poll.poll(None if pause is None else pause * 1000)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            pause = _attend(lease)
        # A daemon that is just sending an answer must not fail before it has read the last of what it was told: it hangs up when it has.
        hung_up = select.poll()
        hung_up.register(self._connection, 0)
        hung_up.poll(ANSWER_TIMEOUT_S * 1000)
        self.close()


def _attend(lease: weakref.ref[Lease]) -> float | None:
    """Lease.attend(), without a reference that stays."""
    found = lease()
    if found is not None:
        return found.attend()
    time.sleep(0.01)  # its finalizer is about to end it
    return None


class _Stock:
    """Granted slots that wait to be used. Thread-safe; nothing here waits for the daemon."""

    class _Shelf:
        def __init__(self) -> None:
            self.grants: list[Grant] = []
            self.low = 0  # the fewest since the last look that was due

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shelves: dict[str, _Stock._Shelf] = {}  # by layout
        self._look_at: float | None = None  # when look() is due; None: nobody looks

    def count(self, layout: str) -> int:
        shelf = self._shelves.get(layout)
        return 0 if shelf is None else len(shelf.grants)

    def take(self, layout: str, count: int) -> list[Grant]:
        """So many, or none."""
        with self._lock:
            shelf = self._shelves.setdefault(layout, _Stock._Shelf())
            if len(shelf.grants) < count:
                return []
            taken = shelf.grants[-count:]  # those that were used a moment ago are in caches
            del shelf.grants[-count:]
            shelf.low = min(shelf.low, len(shelf.grants))
            return taken

    def take_all(self) -> list[Grant]:
        with self._lock:
            taken = [grant for shelf in self._shelves.values() for grant in shelf.grants]
            self._shelves = {}
            return taken

    def add(self, layout: str, grants: Sequence[Grant]) -> bool:
        """Whether somebody has to begin to look()."""
        with self._lock:
            self._shelves.setdefault(layout, _Stock._Shelf()).grants += grants
            begins = bool(grants) and self._look_at is None
            if begins:
                self._look_at = time.monotonic() + STOCK_IDLE_S
            return begins

    def look(self) -> tuple[list[Grant], float | None]:
        """What nobody needed for STOCK_IDLE_S, and is not in stock any more; and in how many seconds to look again, None: when add() says so."""
        with self._lock:
            if self._look_at is None:
                return [], None
            left = self._look_at - time.monotonic()
            if left > 0:
                return [], left
            idle: list[Grant] = []
            for shelf in self._shelves.values():
                idle += shelf.grants[:shelf.low]
                del shelf.grants[:shelf.low]
                shelf.low = len(shelf.grants)
            pause = STOCK_IDLE_S if any(shelf.grants for shelf in self._shelves.values()) else None
            self._look_at = None if pause is None else time.monotonic() + pause
            return idle, pause


class _Mapping:
    """An extent whose descriptors are coming. After an error they are taken all the same."""

    def __init__(self, event: pb.LeaseEvent) -> None:
        """event: the first one."""
        self.event = event
        self._chunk_bytes = event.chunk_bytes or event.bytes
        self.left = -(-event.bytes // max(self._chunk_bytes, 1))  # descriptors
        self._pieces: _mapping.Pieces | _cuda.GpuPieces | None = None
        if event.reason or not event.bytes or event.bytes % self._chunk_bytes:
            return
        with contextlib.suppress(errors.StatepoolError):
            if event.device:
                from . import _cuda
                self._pieces = _cuda.GpuPieces(event.device, event.bytes, event.writable)
            else:
                from . import _mapping
                self._pieces = _mapping.Pieces(event.bytes, event.writable)

    def add(self, fds: Sequence[int]) -> None:
        """REQUIRES: no more than `left`."""
        self.left -= len(fds)
        try:
            for fd in fds:
                if self._pieces is not None:
                    self._pieces.add(fd, self._chunk_bytes)
        except (errors.StatepoolError, OSError):
            self.give_up()

    def finish(self) -> _Extent | None:
        """REQUIRES: none is left. None: it can't be had in this process."""
        if self._pieces is None:
            return None
        try:
            self._pieces.finish()
        except errors.StatepoolError:
            self.give_up()
            return None
        return _Extent(self.event, self._pieces)

    def give_up(self) -> None:
        if self._pieces is not None:
            self._pieces.unmap()
        self._pieces = None


class _Extent:
    """Memory of the daemon's, mapped for reading; if it came so also for writing. Guarded by its lease's lock."""

    def __init__(self, event: pb.LeaseEvent, pieces: _mapping.Pieces | _cuda.GpuPieces) -> None:
        self.id = event.extent
        self.nbytes = event.bytes
        self.device = event.device
        self.users = 0  # pins and grants
        self.doomed = False  # the daemon wants it back
        # For IDLE_BYTES_MAX. On a GPU a mapping costs addresses alone, and unmapping time.
        self.counted = 0 if event.writable or event.device else event.bytes
        self.address = pieces.address
        self.writable_address = pieces.writable_address
        self._pieces = pieces

    def unmap(self) -> None:
        """REQUIRES: no users."""
        self._pieces.unmap()


class Pin:
    """A pinned slot. On the host numpy makes an array of it that can't be written, and that keeps it alive; the slot is given back when this object is
    gone."""

    def __init__(self, lease: Lease, id: int, extent: _Extent, address: int, nbytes: int) -> None:
        self._lease = lease
        self._id = id
        self._extent = extent
        self._is_given_back = False
        self._nbytes = nbytes
        self.address = address

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "typestr": "|u1", "shape": (self._nbytes,), "data": (self.address, True)}

    def __del__(self) -> None:
        if not self._is_given_back:
            self._lease._released.append((self._id, self._extent))
            self._lease.settle()

    def view(self) -> memoryview:
        return _wire.as_bytes(np.asarray(self))


class Grant:
    """A granted slot, to be written by whoever took it from its lease."""

    def __init__(self, id: int, extent: _Extent, address: int, nbytes: int) -> None:
        self.id = id
        self.extent = extent
        self._nbytes = nbytes
        self.address = address

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "typestr": "|u1", "shape": (self._nbytes,), "data": (self.address, False)}

    def view(self) -> memoryview:
        return _wire.as_bytes(np.asarray(self))


def goes_on(lease: Lease, error: errors.StatepoolError) -> bool:
    """Whether a call that failed so with this lease may still do without one. Ends the lease if the daemon says that it has; retires it if nobody
    answered."""
    if error.reason in _LEASE_GONE:
        lease.end()
    elif not error.reason:
        lease.retire()
    return may_do_without(error)


def may_do_without(error: errors.StatepoolError) -> bool:
    """Whether a call that failed so may do without a lease."""
    return error.reason in SHORTAGES or isinstance(error, (errors.Unavailable, errors.Exhausted))
