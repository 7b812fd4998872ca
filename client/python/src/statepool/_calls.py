# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Calls: the methods of the service on one channel, and when a failed one is tried again."""
from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from . import errors
from .layouts import Layout
from .v1 import statepool_pb2 as pb

_T = TypeVar("_T")

_BACKOFF_S = 0.1  # before the first retry that the daemon gives no delay for; doubles
_BACKOFF_S_MAX = 2.0


class Attempts:
    """The time and the retries that one call of the user's has, however many calls of gRPC it takes. Used by one thread."""

    def __init__(self, timeout: float, retries: int) -> None:
        """timeout: seconds, all attempts and the waits between them included. retries: those in a row that bring nothing."""
        self._deadline = time.monotonic() + timeout
        self._retries = retries
        self.progress()

    def timeout(self) -> float:
        """Seconds left."""
        return max(0.0, self._deadline - time.monotonic())

    def progress(self) -> None:
        """The newest attempt brought something that need not be done again: the next ones have all retries again."""
        self._left = self._retries
        self._backoff = _BACKOFF_S

    def wait(self, error: errors.StatepoolError, *, broken: bool = False, busy: bool = False) -> None:
        """Returns when the next attempt may begin; raises `error` if there is none.

        An error is worth another attempt when the daemon advised a delay for UNAVAILABLE or RESOURCE_EXHAUSTED, when nobody answered, and when
        the caller says that it is (`broken`; `busy`: it only has to wait, and that is no retry lost).
        """
        delay = error.retry_after
        unanswered = isinstance(error, errors.Unavailable) and not error.reason
        if delay is None and (unanswered or broken or busy):
            delay = self._backoff * random.uniform(0.5, 1.0)
            self._backoff = min(2 * self._backoff, _BACKOFF_S_MAX)
        worth_it = broken or busy or isinstance(error, (errors.Unavailable, errors.Exhausted))
        left = self._retries if busy else self._left
        if not worth_it or delay is None or left <= 0 or delay >= self.timeout():
            try:
                raise error
            finally:
                del error  # a frame that has what it raised is a cycle: errors.again
        self._left -= not busy
        time.sleep(delay)


class Connection:
    """One channel, and what its users share. They encode and decode the messages, not gRPC: images never pass through protobuf (see _wire)."""

    def __init__(self, channel: grpc.Channel, max_message_bytes: int) -> None:
        self._channel = channel
        self._closed = False
        self.layouts: dict[str, Layout] = {}  # by fingerprint: those never change
        self.max_message_bytes = max_message_bytes  # of this side
        self.daemon_max_message_bytes: int | None = None  # unknown before somebody asked
        service = pb.DESCRIPTOR.services_by_name["StatePool"]
        kinds = {(False, False): channel.unary_unary, (False, True): channel.unary_stream, (True, False): channel.stream_unary}
        self._methods: dict[str, Any] = {
            m.name: kinds[m.client_streaming, m.server_streaming](f"/{service.full_name}/{m.name}") for m in service.methods}

    def call(self, method: str, request: Message | bytes, parse: Callable[[bytes], _T], attempts: Attempts) -> _T:
        """A unary call, tried again as `attempts` allow. REQUIRES: doing it twice is the same as doing it once, or `attempts` has no retries."""
        encoded = request if isinstance(request, bytes) else request.SerializeToString()
        while True:
            try:
                answer: bytes = self._methods[method](encoded, timeout=attempts.timeout())
            except (grpc.RpcError, ValueError) as failure:
                attempts.wait(self.error(failure))
            else:
                return parse(answer)

    def receive(self, method: str, request: Message, timeout: float) -> Any:
        """Begins a call whose answer is a stream: the iterator of its messages, and the grpc.Call."""
        return self._begin(self._methods[method], request.SerializeToString(), timeout)

    def send(self, method: str, messages: Any, timeout: float) -> Any:
        """Begins a call whose request is a stream: the grpc.Future of its answer, and the grpc.Call. A thread of gRPC's iterates over `messages`."""
        return self._begin(self._methods[method].future, messages, timeout)

    def close(self) -> None:
        """Calls in flight fail, and all later ones."""
        self._closed = True
        self._channel.close()

    def error(self, failure: grpc.RpcError | ValueError) -> errors.StatepoolError:
        """What a failed call raises. A ValueError that is not about a closed channel is raised as it is."""
        if isinstance(failure, ValueError) and not self._closed and "closed channel" not in str(failure):
            raise failure
        failure.__traceback__ = None  # of gRPC's own frames: a stream raises itself, and they have it
        if isinstance(failure, grpc.RpcError):
            error = errors.from_rpc_error(failure)
            if not self._closed or error.reason or error.code != "CANCELLED":
                return error
        error = errors.made("FAILED_PRECONDITION", "POOL_CLOSED", "this pool was closed; a write that was in flight is whole or absent")
        error.__cause__ = failure
        return error

    def _begin(self, begin: Any, request: Any, timeout: float) -> Any:
        try:
            return begin(request, timeout=timeout)
        except ValueError as failure:
            raise self.error(failure) from failure
