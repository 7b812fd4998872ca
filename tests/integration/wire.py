# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""What a client without our package has to know of the wire: the checksum of a state, and where an error's details are."""
import xxhash
from google.rpc import error_details_pb2, status_pb2


def checksum(data):
    leaves = b"".join(xxhash.xxh3_64_intdigest(data[i:i + 65536]).to_bytes(8, "little") for i in range(0, len(data), 65536))
    return xxhash.xxh3_64_hexdigest(leaves)


def status_of(error):
    """The google.rpc.Status of a grpc.RpcError."""
    trailer = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(trailer)
    assert status.code == error.code().value[0] and status.message == error.details()
    return status


def details_of(status, kind):
    """The details of this kind in a google.rpc.Status."""
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


def error_info(error):
    info, = details_of(status_of(error), error_details_pb2.ErrorInfo)
    return info


def reason_of(error):
    return error_info(error).reason
