# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""What a pool has seen of large states. Hints, by which it picks the way for a call; the daemon checks what they lead to."""
from __future__ import annotations

import os
import threading

from .layouts import Layout
from .names import Info

LARGE_BYTES = 256 << 10
"""Smaller states always go in messages: from about half of this on other ways are faster, from here on clearly."""
_NAMES_MAX = 4096

Name = tuple[str, str]  # kind, name


class Seen:
    """Sizes of layouts, and layouts and revisions of names. Thread-safe; a forked child learns nothing more."""

    def __init__(self, layouts: dict[str, Layout]) -> None:
        """layouts: those that are known by fingerprint, which grow elsewhere."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._layouts = layouts
        self._sizes: dict[str, int] = {}
        self._names: dict[Name, tuple[str, int]] = {}
        self.newest = ""
        """Layout of the newest answer; empty: that was a small state."""

    def learn(self, info: Info) -> None:
        """Takes note of an answer, of any way."""
        if os.getpid() != self._pid:
            return
        name = info.kind, info.name
        with self._lock:
            if info.state_bytes < LARGE_BYTES:
                self._names.pop(name, None)
                self.newest = ""
                return
            if len(self._names) >= _NAMES_MAX or len(self._sizes) >= _NAMES_MAX:
                self._names.clear()
                self._sizes.clear()
            self._names[name] = info.layout, info.revision
            self._sizes[info.layout] = info.state_bytes
            self.newest = info.layout

    def of_name(self, kind: str, name: str) -> tuple[str, int] | None:
        """The layout and the revision that a name with a large state had last."""
        return self._names.get((kind, name))

    def size_of(self, layout: str) -> int:
        """Bytes of a state of this layout, given by its fingerprint; 0: not known."""
        known = self._layouts.get(layout)
        return known.state_bytes if known is not None else self._sizes.get(layout, 0)
