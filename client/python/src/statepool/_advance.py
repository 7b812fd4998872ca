# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Rows that this process itself moves to the states after their accepted tokens (SPECULATION in statepool.proto): on the host, or in the order of a stream.

With libstatepool_kernels.so, or on a GPU with libstatepool_kernels_cuda.so, a batch is one call, or one launch. On a GPU without it torch moves, tensor by
tensor, with the same bytes.
"""
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _kernels, errors
from .layouts import DTYPES
from .names import enum_name
from .v1 import statepool_pb2 as pb

if TYPE_CHECKING:
    from ._cuda import GpuRange

_Outcome = pb.AdvancedRow.Outcome


@dataclasses.dataclass(frozen=True)
class Move:
    """steps: the path as a set of bits, bit i for step i."""

    from_row: int
    to_row: int
    steps: int


def path_bits(path: Sequence[int], steps_max: int) -> int:
    """The steps of a path; 0: it is none."""
    bits = 0
    for step in path:
        if step >= steps_max or bits >> step:
            return 0
        bits |= 1 << step
    return bits


def last_of(bits: int) -> int:
    return bits.bit_length() - 1


def is_chain(bits: int) -> bool:
    return bits & (bits + 1) == 0


def source_columns(bits: int, window: int, columns: int) -> list[int]:
    """Which column becomes column i: kernels/advance_plan.h."""
    path = [window - 1 + step for step in range(bits.bit_length()) if bits >> step & 1]
    return [*range(window - 1), *path, *range(window + last_of(bits), columns)][len(path) - 1:]


def to_store_of(item: pb.StoreItem, steps_max: int, has_windows: bool) -> tuple[int, int]:
    """What of a row an item is to store: the accepted length that names this state, and the steps that hold, to which the row is advanced. Zeros: the daemon
    says what is wrong with it, or skips it. kernels/accepted_steps.h has the same."""
    if not item.path and not item.align and not item.HasField("accepted_length"):  # as most are
        return 1, 1
    length = item.accepted_length if item.HasField("accepted_length") else 1
    bits = path_bits(item.path, steps_max) if item.path else (1 << length) - 1 if length <= steps_max else 0
    if item.path and (item.HasField("accepted_length") or has_windows and not is_chain(bits)):
        return 0, 0
    named, tokens = bits, bin(bits).count("1")
    if item.align and 0 <= item.position <= 1 << 53:
        behind = item.position % item.align
        if item.position == behind or behind >= tokens:
            return 0, 0
        for _ in range(behind):
            named ^= 1 << last_of(named)
    return named.bit_length(), bits


def has_windows(table: pb.Arena) -> bool:
    """Whether the steps of any tensor are columns."""
    return any(dict(zip(tensor.axes, tensor.shape)).get("step", table.steps) < table.steps for tensor in table.tensors)


def moves_of(request: pb.AdvanceRequest, rows: int, steps_max: int) -> tuple[list[Move], pb.AdvanceResponse] | None:
    """What a request asks for, and the answer to it. None: something is wrong with it, and the daemon says what."""
    if request.verified_length > steps_max:
        return None
    answer = pb.AdvanceResponse()
    moves: list[Move] = []
    written: set[int] = set()
    read: set[int] = set()
    for item in request.items:
        to = item.to_row if item.HasField("to_row") else item.row
        if item.row >= rows or to >= rows or to in written or item.HasField("accepted_length") == bool(item.path):
            return None
        written.add(to)
        if to != item.row:
            read.add(item.row)
        length, bits = item.accepted_length, 0
        if item.path:
            bits = path_bits(item.path, steps_max)
            length = len(item.path)
            if not bits:
                return None
        elif 1 <= length <= steps_max:
            bits = (1 << length) - 1
        if 0 < request.verified_length <= length:
            outcome = _Outcome.SKIPPED_ALL
        elif bits:
            outcome = _Outcome.IN_PLACE if bits == 1 and to == item.row else _Outcome.MOVED
        elif length == 0 and request.skip_none:
            outcome = _Outcome.SKIPPED_NONE
        elif length > steps_max and request.skip_out_of_range:
            outcome = _Outcome.SKIPPED_OUT_OF_RANGE
        else:
            return None
        if outcome == _Outcome.MOVED:
            moves.append(Move(item.row, to, bits))
        answer.rows.add(outcome=outcome)
    return None if read & written else (moves, answer)


def segments_of(table: pb.Arena, num_spec: int) -> list[_kernels.AdvanceSegment]:
    """One for each layer of each tensor. ValueError: the daemon's table is not what the contract says."""
    segments = []
    for tensor in table.tensors:
        axes = {name: (size, stride) for name, size, stride in zip(tensor.axes, tensor.shape, tensor.strides)}
        layers, layer_stride = axes.pop("layer", (1, 0))
        _, row_stride = axes.pop("row")
        steps, step_stride = axes.pop("step", (1, 0))
        window = 0
        if steps < table.steps:  # its steps are columns
            columns, step_stride = axes.pop("tap", (0, 0))
            if columns <= num_spec or num_spec + 1 < table.steps:
                raise ValueError(f"tensor {tensor.tensor!r} has neither steps nor columns for them")
            steps, window = columns, columns - num_spec
        element_bytes = DTYPES[enum_name(pb.DType, tensor.dtype)].itemsize
        segments += [_kernels.AdvanceSegment(tensor.offset + layer * layer_stride, row_stride, step_stride, steps, window, element_bytes, list(axes.values()))
                     for layer in range(layers)]
    return segments


class HostMoves:
    """In the calling thread. Thread-safe. REQUIRES: _kernels.available."""

    def __init__(self, table: pb.Arena, num_spec: int) -> None:
        """ValueError when it makes no sense."""
        self._plan = _kernels.AdvancePlan(segments_of(table, num_spec), table.bytes, table.rows, max(table.steps, 1))

    def move(self, moves: Sequence[Move], arena: int) -> None:
        """REQUIRES: moves_of made them; the arena is at this address."""
        self._plan.move([(m.steps, m.from_row, m.to_row) for m in moves], arena)


class GpuMoves:
    """In the order of a stream. Thread-safe, but for close()."""

    def __init__(self, memory: GpuRange, table: pb.Arena, num_spec: int, layers: Mapping[tuple[str, int], Any], axes: Mapping[str, Sequence[str]]) -> None:
        """layers: the tensors [row, step, ...] of the arena; axes: theirs. ValueError when it makes no sense."""
        self._memory = memory
        self._layers = layers
        self._axes = axes
        self._num_spec = num_spec
        self._steps = table.steps
        self._plan: _kernels.DeviceAdvancePlan | None = None
        segments = segments_of(table, num_spec)
        with memory.gpu.current(), contextlib.suppress(_kernels.DeviceFailed):
            self._plan = _kernels.DeviceAdvancePlan(segments, memory.nbytes, table.rows, max(table.steps, 1))

    @property
    def has_kernels(self) -> bool:
        return self._plan is not None

    def close(self) -> None:
        """REQUIRES: nothing is under way, and nothing is enqueued any more."""
        plan, self._plan = self._plan, None
        if plan is not None:
            with self._memory.gpu.current():
                plan.destroy()

    def move(self, moves: Sequence[Move], stream: Any) -> None:
        """REQUIRES: moves_of made them; the arena is mapped. StatepoolError (GPU_FAILED)."""
        try:
            with self._memory.gpu.current():
                if self._plan is not None:
                    self._plan.move([(m.steps, m.from_row, m.to_row) for m in moves], self._memory.address, stream.cuda_stream)
                    return
                with self._memory.gpu.torch.cuda.stream(stream):
                    for move in moves:
                        self._move_by_torch(move)
        except (_kernels.DeviceFailed, RuntimeError) as failure:
            raise errors.made("INTERNAL", "GPU_FAILED", f"this process's GPU refused a copy: {failure}") from failure

    def _move_by_torch(self, move: Move) -> None:
        last = last_of(move.steps)
        for (tensor, _), array in self._layers.items():
            axes = [axis for axis in self._axes[tensor] if axis not in ("layer", "row")]
            to, source = array[move.to_row], array[move.from_row]
            if axes[0] != "step":
                to.copy_(source)  # of a row with one step
            elif source.shape[0] >= self._steps:
                to[0].copy_(source[last])
            else:
                tap = axes.index("tap")
                columns = source.shape[tap]
                taken = source_columns(move.steps, columns - self._num_spec, columns)
                # index_select copies: the two may overlap.
                kept = source.index_select(tap, self._memory.gpu.torch.tensor(taken, device=source.device))
                to.narrow(tap, 0, len(taken)).copy_(kept)
