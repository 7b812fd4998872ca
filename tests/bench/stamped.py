# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""States that tell which they are. All 8-byte words of a state follow from its stamp, a number: word i is stamp * A + i * B modulo 2^64. So any whole
state gives its stamp back, and one with a word of another state, or in another place, is no state at all.

Rows are those of an arena, numpy arrays or torch tensors on a GPU; images are bytes. Layouts must have tensors whose layers are multiples of 8 bytes."""
import numpy as np

A, B = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
A_INVERSE = pow(A, -1, 1 << 64)
STAMP_MAX = 1 << 48


def _signed(value):
    """As an int64 of the same bits: torch has no others of 8 bytes."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def image(stamp, nbytes):
    """The state as bytes, in a numpy array."""
    return (np.arange(nbytes // 8, dtype=np.int64) * _signed(B) + _signed(stamp * A)).view(np.uint8)


def stamp_of(data):
    """The stamp of these bytes; None: they are no state."""
    words = np.frombuffer(data, np.int64)
    stamp = int(words[0]) * A_INVERSE % (1 << 64)
    return stamp if stamp < STAMP_MAX and np.array_equal(words, image(stamp, len(words) * 8).view(np.int64)) else None


class Rows:
    """The words of an arena's rows, in the view "per_layer" with the layout's order of axes. Keeps the arena's memory: let go of it before close()."""

    def __init__(self, arena, layout):
        first = arena.layer(layout.tensors[0].name, layout.tensors[0].layers[0])
        self._library, self._place = (np, {}) if isinstance(first, np.ndarray) else (_torch(), {"device": first.device})
        self._cells, at = [], 0  # (what the state's words here are above its first, [row, word])
        for tensor in layout.tensors:
            for layer in tensor.layers:
                cell = arena.layer(tensor.name, layer).reshape(arena.rows, -1).view(self._library.int64)
                count = cell.shape[1]
                self._cells.append((self._library.arange(at, at + count, dtype=self._library.int64, **self._place) * _signed(B), cell))
                at += count
        assert at * 8 == layout.state_bytes, "a layer is no multiple of 8 bytes"

    def write(self, rows, stamps):
        """On a GPU this is enqueued on the current stream, and so is what the others read."""
        index, firsts = self._index(rows), self._firsts(stamps)
        for above, cell in self._cells:
            cell[index] = firsts + above

    def stamps(self, rows):
        """What the first word of each row tells, whatever the others do."""
        firsts = self._cells[0][1][self._index(rows), 0]
        return [first * A_INVERSE % (1 << 64) for first in firsts.tolist()]

    def wrong(self, rows, stamps):
        """Those of the rows that are not the states of these stamps."""
        index, firsts, right = self._index(rows), self._firsts(stamps), True
        for above, cell in self._cells:
            right = (cell[index] == firsts + above).all(1) & right
        return [row for row, is_right in zip(rows, right.tolist()) if not is_right]

    def _firsts(self, stamps):
        """The first words of these states: [row, 1]. Once for all cells, for it waits for the GPU."""
        return self._array([_signed(stamp * A) for stamp in stamps])[:, None]

    def _index(self, rows):
        """A slice where it can be: that is no copy."""
        rows = list(rows)
        return slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else self._array(rows)

    def _array(self, values):
        return self._library.asarray(values, dtype=self._library.int64, **self._place)


def _torch():
    import torch
    return torch
