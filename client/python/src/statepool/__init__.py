# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Client of Statepool, the daemon that keeps the recurrent states of sequence models. Begin at connect()."""
from . import errors, layouts
from .client import Pool, connect
from .errors import Conflict, DataLoss, DeadlineExceeded, Exhausted, InvalidArgument, NotFound, StatepoolError, Unavailable
from .layouts import Layout, Tensor
from .names import Info, Match, Name, Prefix, Sequence, Snapshot, State, Version

__all__ = [
    "Conflict", "DataLoss", "DeadlineExceeded", "Exhausted", "Info", "InvalidArgument", "Layout", "Match", "Name", "NotFound", "Pool",
    "Prefix", "Sequence", "Snapshot", "State", "StatepoolError", "Tensor", "Unavailable", "Version", "connect", "errors", "layouts",
]
