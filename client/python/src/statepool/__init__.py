# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Client of Statepool, the daemon that keeps the recurrent states of sequence models. Begin at connect()."""
from . import _grpc, errors, ggsq, layouts, speculation  # _grpc: before what imports gRPC
from .arenas import Arena, Buffers, Loaded, LoadItem, PartStored, Store, StoreItem, View
from .batches import Batch, Get
from .client import Pool, connect
from .errors import Conflict, ContentsGone, DataLoss, DeadlineExceeded, Exhausted, InvalidArgument, NotFound, RowsLost, StatepoolError, Unavailable
from .layouts import Layout, Part, Tensor
from .names import Deletion, Info, Match, Name, Prefix, Removal, Sequence, Snapshot, State, Upload, Version
from .speculation import AdvanceItem
from .streams import StateStream

__all__ = [
    "AdvanceItem", "Arena", "Batch", "Buffers", "Conflict", "ContentsGone", "DataLoss", "DeadlineExceeded", "Deletion", "Exhausted", "Get", "Info",
    "InvalidArgument", "Layout", "LoadItem", "Loaded", "Match", "Name", "NotFound", "Part", "PartStored", "Pool", "Prefix", "Removal", "RowsLost", "Sequence",
    "Snapshot", "State", "StateStream", "StatepoolError", "Store", "StoreItem", "Tensor", "Unavailable", "Upload", "Version", "View", "connect", "errors", "ggsq",
    "layouts", "speculation",
]
