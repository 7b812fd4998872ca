# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Servers in this process that speak the contract as far as a test needs it, and go wrong where the real daemon will not when it is asked to."""
import concurrent.futures
import contextlib

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from statepool.v1 import statepool_pb2 as pb

_METHODS = {m.name: m for m in pb.DESCRIPTOR.services_by_name["StatePool"].methods}


def status(code, reason, retry_after=None, message="no", **metadata):
    """An error as the daemon makes them. code: a grpc.StatusCode."""
    out = status_pb2.Status(code=code.value[0], message=message)
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="statepool.v1", metadata=metadata)]
    if retry_after is not None:
        details.append(error_details_pb2.RetryInfo())
        details[-1].retry_delay.FromMilliseconds(int(retry_after * 1000))
    for each in details:
        packed = any_pb2.Any()
        packed.Pack(each)
        out.details.append(packed)
    return out


def fail(context, code, reason="", retry_after=None, **metadata):
    """Ends the call with this error; without a reason it is one that the daemon did not make."""
    if reason:
        context.set_trailing_metadata([("grpc-status-details-bin", status(code, reason, retry_after, **metadata).SerializeToString())])
    context.abort(code, "no")


class FakeServer(grpc.GenericRpcHandler):
    """A subclass has a method for each RPC that it answers, which takes the request (or their iterator) and the context."""

    def service(self, details):
        method = _METHODS[details.method.rsplit("/", 1)[1]]
        kind = {(False, False): grpc.unary_unary_rpc_method_handler, (False, True): grpc.unary_stream_rpc_method_handler,
                (True, False): grpc.stream_unary_rpc_method_handler}[method.client_streaming, method.server_streaming]
        return kind(getattr(self, method.name), request_deserializer=getattr(pb, method.input_type.name).FromString,
                    response_serializer=lambda message: message.SerializeToString())


@contextlib.contextmanager
def serving(handler):
    """-> the address at which the handler is served."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), [handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
