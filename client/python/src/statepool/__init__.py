# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Client of Statepool, the daemon that keeps the recurrent states of sequence models. Begin at connect()."""
from . import errors, layouts
from .batches import Batch, Get
from .client import Pool, connect
from .errors import Conflict, DataLoss, DeadlineExceeded, Exhausted, InvalidArgument, NotFound, StatepoolError, Unavailable
from .layouts import Layout, Part, Tensor
from .names import Deletion, Info, Match, Name, Prefix, Sequence, Snapshot, State, Upload, Version
from .streams import StateStream

__all__ = [
    "Batch", "Conflict", "DataLoss", "DeadlineExceeded", "Deletion", "Exhausted", "Get", "Info", "InvalidArgument", "Layout", "Match", "Name",
    "NotFound", "Part", "Pool", "Prefix", "Sequence", "Snapshot", "State", "StatepoolError", "StateStream", "Tensor", "Unavailable", "Upload",
    "Version", "connect", "errors", "layouts",
]
