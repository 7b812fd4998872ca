# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The daemon's memory in a process of `crash/run workers`, as words of 8 bytes: of the host, or of a GPU (then torch has the mappings).

What is read is a copy, a numpy array of uint64. Nothing here touches a GPU before the first Words of its memory are made: processes may fork until then."""
import mmap

import numpy as np


class Words:
    """Words that this process maps, in an array of one or two axes."""

    def __init__(self, array, memory=None):
        """memory: what is kept with them."""
        self._array, self._memory = array, memory
        self._is_host = isinstance(array, np.ndarray)

    @property
    def count(self):
        """Of the last axis."""
        return self._array.shape[-1]

    @property
    def address(self):
        return self._array.__array_interface__["data"][0] if self._is_host else self._array.data_ptr()

    def get(self, index=...):
        found = self._array[index]
        return found.copy() if self._is_host else found.cpu().numpy().view(np.uint64)

    def put(self, index, words):
        """A number, or an array of as many."""
        if self._is_host:
            self._array[index] = words
        else:
            import torch
            bits = np.asarray(words, np.uint64).view(np.int64)
            self._array[index] = torch.from_numpy(bits.copy()).to(self._array.device)

    def nonzero(self):
        """The first word that is not zero; None: all are."""
        if not self._array.any():
            return None
        found = self._array[self._array != 0][0]
        return int(found) if self._is_host else int(found) % (1 << 64)


def rows_of(cell, rows):
    """Words [row, word] of one layer of an arena's tensor."""
    if isinstance(cell, np.ndarray):
        flat = cell.reshape(rows, -1).view(np.uint64)
        assert np.shares_memory(cell, flat)
    else:
        import torch
        flat = cell.reshape(rows, -1).view(torch.int64)
        assert flat.data_ptr() == cell.data_ptr()
    return Words(flat)


def map_again(device, fd, nbytes, mapped_bytes):
    """Words of a mapping of one's own of an arena's memory. The descriptor stays the caller's. PermissionError: it was sealed meanwhile."""
    if not mapped_bytes:
        return Words(np.frombuffer(mmap.mmap(fd, nbytes), np.uint64))
    from statepool import _cuda
    memory = _cuda.GpuRange(device, mapped_bytes)
    memory.put(fd)
    return Words(memory.tensor("int64", (nbytes // 8,), (8,), 0), memory)


def prepare(device):
    """What takes long is done before the clock starts: a context on the GPU."""
    if device.startswith("cuda"):
        import torch
        torch.zeros(1, device="cuda")
