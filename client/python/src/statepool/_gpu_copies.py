# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Direct loads and stores of arenas on a GPU (DIRECT in statepool.proto): this process copies between the daemon's slots and an arena's rows there, in the
order of the caller's streams, and what follows a copy is done when its event has fired.

With libstatepool_kernels_cuda.so a batch is one launch. Without it torch copies, tensor by tensor, and states are hashed on the host: slower, with the
same bytes.
"""
from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import _kernels, errors

if TYPE_CHECKING:
    from ._cuda import Gpu, GpuRange
    from ._direct import Grant, Lease, Pin
    from .v1 import statepool_pb2 as pb

LOOK_MIN_S, LOOK_MAX_S = 0.0001, 0.001
"""How often the thread looks whether a store is written: less and less often."""
LOOK_AT_LOADS_S = 0.005
"""The same for the pins of loads."""
PINS_MAX = 32
"""When so many are held a load looks at them itself: they count for Capabilities.max_pinned_bytes."""
LINGER_S = 1.0
"""So long after it had something to do the thread looks by itself for loads that were added: to wake it would take the caller's time."""
_WORDS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


class Written:
    """States that a stream writes, and their hashes. For one thread."""

    def __init__(self, gpu: Gpu, event: Any, checksums: Callable[[], list[str]]) -> None:
        self._gpu = gpu
        self._event = event
        self._checksums = checksums

    def is_done(self) -> bool:
        """checksums() would not wait."""
        with self._gpu.current():
            return _has_fired(self._event)

    def checksums(self) -> list[str]:
        """Waits until they are written: the checksum of each. StatepoolError (GPU_FAILED)."""
        try:
            with self._gpu.current():
                self._event.synchronize()
                return self._checksums()
        except RuntimeError as failure:
            raise _failed(failure) from failure

    def settle(self) -> None:
        """Waits until nothing writes there any more, be it that the GPU failed."""
        with contextlib.suppress(Exception), self._gpu.current():
            self._event.synchronize()


class Copies:
    """Enqueues copies for one arena. Thread-safe, but for close()."""

    def __init__(self, memory: GpuRange, plan: Sequence[pb.CopySegment], state_bytes: int, rows: int, accepted_max: int) -> None:
        """memory: the arena's, for as long as this is used. ValueError for a plan that makes no sense; Exhausted or Conflict when the GPU has no room."""
        self.state_bytes = state_bytes
        self.rows = rows
        self.accepted_max = accepted_max
        self._memory = memory
        self._gpu: Gpu = memory.gpu
        self._torch = self._gpu.torch
        self._segments = list(plan)
        self._plan: _kernels.DevicePlan | None = None
        with self._gpu.current():
            with contextlib.suppress(_kernels.DeviceFailed):
                self._plan = _kernels.DevicePlan(plan, state_bytes, memory.nbytes, rows, accepted_max)
        self._leaf_count = -(-state_bytes // _kernels.LEAF_BYTES)

    @property
    def has_kernels(self) -> bool:
        return self._plan is not None

    def close(self) -> None:
        """REQUIRES: nothing is under way, and nothing is enqueued any more."""
        plan, self._plan = self._plan, None
        if plan is not None:
            with self._gpu.current():
                plan.destroy()

    def gather(self, states: Sequence[Pin], rows: Sequence[int], stream: Any) -> Any:
        """Each state into its row: an event that fires when they are there. StatepoolError (GPU_FAILED): some may be, and none is under way."""
        with self._gpu.current(), self._all_or_settled(stream):
            if self._plan is not None:
                self._plan.gather([state.address for state in states], rows, self._memory.address, stream.cuda_stream)
            else:
                with self._torch.cuda.stream(stream):
                    for state, row in zip(states, rows):
                        self._gather_by_torch(state, row)
            return self._event(stream)

    def scatter(self, rows: Sequence[int], accepted: Sequence[int], states: Sequence[Grant], stream: Any) -> Written:
        """What each row holds after so many steps into its slot. StatepoolError (GPU_FAILED): some may be written to, and none is any more."""
        torch, gpu = self._torch, self._gpu
        copies: list[Any] = []  # with `hashes` what the GPU writes to: here until _all_or_settled has waited for it
        hashes: Any = None
        with gpu.current(), self._all_or_settled(stream):
            if self._plan is None:
                with torch.cuda.stream(stream):
                    for row, length, state in zip(rows, accepted, states):
                        self._scatter_by_torch(row, length, state, copies)
                return Written(gpu, self._event(stream), lambda: [_kernels.hash_of([memoryview(copy.numpy()).cast("B")]) for copy in copies])
            hashes = torch.empty(len(rows) * self._leaf_count, dtype=torch.int64, pin_memory=True)
            self._plan.scatter(rows, accepted, [state.address for state in states], self._memory.address, hashes.data_ptr(), stream.cuda_stream)
            return Written(gpu, self._event(stream), lambda: _kernels.roots_of(memoryview(hashes.numpy()).cast("B"), len(rows)))

    @contextlib.contextmanager
    def _all_or_settled(self, stream: Any) -> Iterator[None]:
        """For what enqueues copies: after an error waits for those that are in the stream, before anybody lets go of what they read and write."""
        try:
            yield
        except BaseException as failure:
            with contextlib.suppress(Exception):
                stream.synchronize()
            if isinstance(failure, (_kernels.DeviceFailed, RuntimeError)):
                raise _failed(failure) from failure
            raise

    def _event(self, stream: Any) -> Any:
        event = self._torch.cuda.Event()
        event.record(stream)
        return event

    # ------------------------------------------------------------------------------------------------- without the kernels

    def _gather_by_torch(self, state: Pin, row: int) -> None:
        whole = self._gpu.bytes_at(state.address, self.state_bytes)
        arena = self._gpu.bytes_at(self._memory.address, self._memory.nbytes)
        for segment in self._segments:
            if segment.clear_bytes:
                begin = segment.clear_offset + row * segment.row_stride
                arena[begin:begin + segment.clear_bytes].zero_()
        for segment in self._segments:
            in_row, in_state = self._views(segment, row, 1, arena, whole)
            in_row.copy_(in_state)

    def _scatter_by_torch(self, row: int, accepted: int, state: Grant, copies: list[Any]) -> None:
        """Appends a copy of the state on the host, there when the stream is done."""
        whole = self._gpu.bytes_at(state.address, self.state_bytes)
        arena = self._gpu.bytes_at(self._memory.address, self._memory.nbytes)
        for segment in self._segments:
            in_row, in_state = self._views(segment, row, accepted, arena, whole)
            in_state.copy_(in_row)
        copy = self._torch.empty(self.state_bytes, dtype=self._torch.uint8, pin_memory=True)
        copies.append(copy)
        copy.copy_(whole, non_blocking=True)

    def _views(self, segment: pb.CopySegment, row: int, accepted: int, arena: Any, state: Any) -> tuple[Any, Any]:
        """A segment of this row, and of the state."""
        at = segment.arena_offset + row * segment.row_stride + (accepted - 1) * segment.accept_stride
        sizes, strides, word = list(segment.sizes), list(segment.strides), segment.element_bytes
        if word not in _WORDS or any(n % word for n in (at, segment.state_offset, arena.data_ptr(), state.data_ptr(), *strides)):
            sizes, strides, word = [*sizes, word], [*strides, 1], 1
        packed = [1] * len(sizes)
        for i in range(len(sizes) - 1, 0, -1):
            packed[i - 1] = packed[i] * sizes[i]
        nbytes = word
        for size in sizes:
            nbytes *= size
        element = getattr(self._torch, _WORDS[word])
        reach = at + sum((size - 1) * stride for size, stride in zip(sizes, strides)) + word
        in_row = arena[at:reach].view(element).as_strided(sizes, [stride // word for stride in strides]) if word > 1 else (
            arena[at:reach].as_strided(sizes, strides))
        in_state = state[segment.state_offset:segment.state_offset + nbytes].view(element).as_strided(sizes, packed)
        return in_row, in_state


class Storing:
    """A store of these rows under way. Either is called once: `commit`, after it is written, which gives its answer or raises a StatepoolError; or, when
    the GPU failed, `abandon`. Nothing writes to the slots then."""

    def __init__(self, rows: frozenset[int], written: Written, commit: Callable[[list[str]], Any], abandon: Callable[[], None]) -> None:
        self.rows = rows
        self._written: Written | None = written
        self._calls: tuple[Callable[[list[str]], Any], Callable[[], None]] | None = commit, abandon
        self._over = threading.Event()
        self._answer: Any = None
        self._error: BaseException | None = None

    def is_written(self) -> bool:
        """finish() would not wait for the GPU."""
        written = self._written
        return written is None or written.is_done()

    def is_over(self) -> bool:
        return self._over.is_set()

    def wait_until_over(self, timeout: float | None) -> bool:
        return self._over.wait(timeout)

    def answer(self) -> Any:
        """REQUIRES: is_over()."""
        if self._error is not None:
            raise errors.again(self._error) if isinstance(self._error, errors.StatepoolError) else self._error
        return self._answer

    def finish(self) -> None:
        """Raises only what is no Exception (Ctrl-C), which answer() raises as well. REQUIRES: it was not called."""
        try:
            assert self._calls is not None and self._written is not None
            commit, abandon = self._calls
            self._calls = None  # they have the arena: the thread that looked at this must not keep that
            try:
                checksums = self._written.checksums()
            except BaseException:
                self._written.settle()
                abandon()
                raise
            self._answer = commit(checksums)
        except BaseException as error:  # what on_reopen raises, too
            self._error = errors.again(error) if isinstance(error, errors.StatepoolError) else error
            if not isinstance(error, Exception):
                raise
        finally:
            self._written = None  # its memory is not for as long as somebody keeps the handle
            self._over.set()


class InFlight:
    """What is under way for one arena: stores, which are committed in the order in which they began, and the pins of loads. Thread-safe.

    A thread of its own, from the first that nobody waits for on, commits stores whose event has fired, and gives pins back. It ends with close().
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._committing = threading.RLock()  # on_reopen may store
        self._changed = threading.Condition()  # of what follows
        self._stores: collections.deque[Storing] = collections.deque()
        self._current: tuple[Storing, int] | None = None  # the one that is being committed, and the thread that does it
        self._loads: collections.deque[tuple[Any, Lease, list[Pin]]] = collections.deque()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._sleeps = False  # the thread: nothing but being told wakes it

    def hold(self, event: Any, lease: Lease, pins: list[Pin]) -> None:
        """Keeps pins until the event has fired."""
        with self._changed:
            self._loads.append((event, lease, pins))
            if self._thread is None or self._sleeps:
                self._wake()

    def relieve(self) -> None:
        """Before more is pinned."""
        if sum(len(pins) for _, _, pins in list(self._loads)) >= PINS_MAX:
            self.release()

    def add(self, storing: Storing, *, attended: bool) -> None:
        """attended: the thread commits it; else whoever calls finish_through()."""
        with self._changed:
            self._stores.append(storing)
            if attended:
                self._wake()

    def finish_through(self, storing: Storing) -> None:
        """Waits for this store and those that began before it, and commits them. RuntimeError from within its own commit (on_reopen)."""
        with self._committing:
            while not storing.is_over():
                before = self._current
                try:
                    with self._changed:
                        if not self._stores:
                            raise RuntimeError("a store can't be waited for where its own end is told")
                        first = self._stores.popleft()
                        self._current = first, threading.get_ident()
                    first.finish()
                finally:
                    with self._changed:
                        self._current = before

    def finish(self, rows: frozenset[int] | None = None) -> None:
        """All stores; those of any of these rows, and what was before them."""
        with self._changed:
            begun = list(self._stores)
            if self._current is not None and self._current[1] != threading.get_ident():
                begun.insert(0, self._current[0])
            wanted = [storing for storing in begun if rows is None or not rows.isdisjoint(storing.rows)]
        if wanted:
            self.finish_through(wanted[-1])

    def release(self) -> bool:
        """Gives back the pins of loads that are done; whether all are. Never waits."""
        if not self._loads:
            return True
        done: list[tuple[Any, Lease, list[Pin]]] = []
        with self._gpu.current(), self._changed:
            while self._loads and _has_fired(self._loads[0][0]):
                done.append(self._loads.popleft())
            left = bool(self._loads)
        for _, lease, pins in done:
            lease.unpin_all(pins)
        return not left

    def close(self) -> None:
        """REQUIRES: no store is left. The thread ends when the loads are done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def is_own_thread(self) -> bool:
        """Whether the caller is what its thread calls."""
        return threading.current_thread() is self._thread

    def _wake(self) -> None:
        """Also after close(), for who was about to add something. REQUIRES: _changed."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="statepool-copies", daemon=True)
            thread.start()
            self._thread = thread
        self._changed.notify_all()

    def _run(self) -> None:
        looked_at: Storing | None = None
        pause = LOOK_MIN_S
        busy_at = time.monotonic()
        while True:
            self.release()
            with self._changed:
                if self._loads or self._stores:
                    busy_at = time.monotonic()
                elif self._closed:
                    self._thread = None
                    return
                if not self._stores:
                    self._sleeps = not self._loads and time.monotonic() - busy_at > LINGER_S
                    self._changed.wait(None if self._sleeps else LOOK_AT_LOADS_S)
                    self._sleeps = False
                    continue
                first = self._stores[0]
            if first.is_written():
                self.finish_through(first)
                continue
            pause = min(2 * pause, LOOK_MAX_S) if first is looked_at else LOOK_MIN_S
            looked_at = first
            time.sleep(pause)


def _has_fired(event: Any) -> bool:
    """REQUIRES: within Gpu.current(). Elsewhere a query fails while another thread captures a graph, and tells nothing."""
    try:
        return bool(event.query())
    except RuntimeError:  # the GPU failed: nothing reads there any more
        return True


def _failed(failure: Exception) -> errors.StatepoolError:
    return errors.made("INTERNAL", "GPU_FAILED", f"this process's GPU refused a copy: {failure}")
