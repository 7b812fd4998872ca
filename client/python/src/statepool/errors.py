# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""What goes wrong, as exceptions. `reason` is what a program switches on: the table at the head of statepool.proto lists them all."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "statepool.v1"


class StatepoolError(Exception):
    """Every error of the daemon, and of the way to it. Its subclasses say what kind it is; it is itself what fits none of them.

    code         name of the gRPC status code, "NOT_FOUND"
    reason       from the table of statepool.proto, "POSITION_MISMATCH"; empty when the daemon did not say it (transport errors)
    message      for people
    field        path of the request's field at fault, "children[1]", or empty
    metadata     what else the daemon told: "expected", "actual", "revision", "positions", "limit" ...
    retry_after  seconds after which a retry is worth it; None: the daemon does not advise one
    """

    def __init__(self, code: str, reason: str = "", message: str = "", field: str = "",
                 metadata: Mapping[str, str] | None = None, retry_after: float | None = None) -> None:
        super().__init__(code, reason, message, field, metadata, retry_after)
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        at = f" ({self.field})" if self.field else ""
        return f"{self.code} {self.reason}{at}: {self.message}".replace(" :", ":")


class NotFound(StatepoolError, LookupError):
    """A miss: nothing has this name, position or layout. `reason` says why."""


class Conflict(StatepoolError):
    """The pool is in another state than the request assumes: REVISION_MISMATCH, NAME_EXISTS, LAYOUT_MISMATCH, BATCH_ABORTED ..."""


class InvalidArgument(StatepoolError, ValueError):
    """The request makes no sense, whatever the pool holds. Retrying does not help."""


class Exhausted(StatepoolError):
    """A limit is reached: ADMISSION, HOT_FULL, COLD_FULL ... Nothing has changed."""


class Unavailable(StatepoolError):
    """No daemon there, or it is stopping. A write may have happened: retry it with the same request_id."""


class DataLoss(StatepoolError):
    """Bytes are not what was stored: on the daemon's side (CORRUPT), or on the way here (CHECKSUM_MISMATCH, BROKEN_STREAM)."""


class DeadlineExceeded(StatepoolError):
    """The timeout passed. A write is whole or absent: retry it with the same request_id, or describe()."""


class ContentsGone(StatepoolError):
    """An arena was lost, with the daemon's restart as a rule, and is open again at the same addresses: all rows are zeros and must be loaded again.

    Nothing was loaded. A store that this ended is whole or absent: retry it with the same request_id when the row holds its state again, or describe().
    One that advances its row is retried without that, and the row advanced then: only the arena that is gone knew what became of the row.
    incarnation  of the daemon that has the arena now
    """

    @property
    def incarnation(self) -> str:
        return self.metadata.get("incarnation", "")


class RowsLost(StatepoolError):
    """Loads of an arena on a GPU that had returned failed before their copies came (Arena.load). What their rows hold is not known: they must be loaded
    again, and a store of them is refused (ROW_NOT_LOADED) until then. Raised once, by the arena's next call, which did nothing; of a
    daemon that hung perhaps again, without rows, when it goes on and finds that it is late.

    rows  that may have lost their contents: of the loads among which the failed ones are
    """

    @property
    def rows(self) -> list[int]:
        return [int(row) for row in self.metadata.get("rows", "").split(",") if row]


_Error = TypeVar("_Error", bound=StatepoolError)

_CLASSES: Mapping[str, type[StatepoolError]] = {
    "NOT_FOUND": NotFound,
    "ABORTED": Conflict,
    "ALREADY_EXISTS": Conflict,
    "FAILED_PRECONDITION": Conflict,
    "INVALID_ARGUMENT": InvalidArgument,
    "RESOURCE_EXHAUSTED": Exhausted,
    "UNAVAILABLE": Unavailable,
    "DATA_LOSS": DataLoss,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}
_CODES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def from_rpc_error(error: grpc.RpcError) -> StatepoolError:
    """The exception for a failed call, from its code and the google.rpc.Status in its trailer. It is raised from `error`."""
    assert isinstance(error, grpc.Call)
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                pass  # then the code and the message have to do
    found = _make(error.code().name, error.details() or "", status)
    found.__cause__ = error
    return found


def from_status(status: status_pb2.Status) -> StatepoolError:
    """The exception for an item of a batch that failed: the same as if it had been a call of its own."""
    return _make(_CODES.get(status.code, "UNKNOWN"), status.message, status)


def _make(code: str, message: str, status: status_pb2.Status) -> StatepoolError:
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after: float | None = None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    metadata = dict(info.metadata)
    field = metadata.pop("field", "")
    reason = info.reason if info.domain == DOMAIN else ""
    return _CLASSES.get(code, StatepoolError)(code, reason, message, field, metadata, retry_after)


def again(error: _Error) -> _Error:
    """A copy, to raise what a local or a list has, or to keep what was raised. An error has the frames that it came through, by its traceback, and those
    that called them: who keeps it in one of them makes a cycle, and what all these callers have, arrays of arenas among it, lives until Python looks
    for garbage. What it was raised from loses its traceback and context."""
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    cause = error.__cause__
    if cause is not None:
        copy.__cause__ = cause
    while isinstance(cause, (StatepoolError, grpc.RpcError)):
        cause.__traceback__ = None
        cause.__context__ = None  # what was being handled may be what this is made the cause of
        cause = cause.__cause__
    return copy


def made(code: str, reason: str, message: str, field: str = "", **metadata: object) -> StatepoolError:
    """An error of this library's own, of the class that goes with the code."""
    return _CLASSES.get(code, StatepoolError)(code, reason, message, field, {k: str(v) for k, v in metadata.items()})


def invalid(reason: str, message: str, field: str = "", **metadata: object) -> InvalidArgument:
    """An error that this library finds before the daemon would."""
    return InvalidArgument("INVALID_ARGUMENT", reason, message, field, {k: str(v) for k, v in metadata.items()})
