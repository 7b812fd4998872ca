# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Imports gRPC so that a small call changes threads least: to be imported before anything that imports grpc.

Its clients may leave their sockets to threads of gRPC's own (the experiment event_engine_client, on by default since 1.7x); without, the calling thread
reads its socket itself: 1.5 changes of thread a call in place of 6.5. gRPC reads what it is told when it is imported, for the whole process: so whoever
imported it before, or set GRPC_EXPERIMENTS, has decided himself, and the variable is as it was afterwards.
"""
import os
import sys

_EXPERIMENTS = "GRPC_EXPERIMENTS"

if "grpc" not in sys.modules and _EXPERIMENTS not in os.environ:
    os.environ[_EXPERIMENTS] = "-event_engine_client"
    try:
        import grpc  # noqa: F401
    finally:
        del os.environ[_EXPERIMENTS]
