# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Imports gRPC so that a small call changes threads least: to be imported before anything that imports grpc.

Its clients may leave their sockets to threads of gRPC's own (the experiment event_engine_client, on by default since 1.7x). Without, the calling thread
reads its socket itself: 1.5 changes of thread a call in place of 6.5. Between calls somebody has to look at sockets then, lest a channel be slow to find
a daemon that was started anew: gRPC does every 5 s, here every 0.1 s. It reads what it is told when it is imported, for the whole process: so whoever
imported it before, or set GRPC_EXPERIMENTS, has decided himself, and the environment is as it was afterwards.
"""
import os
import sys

_SETTINGS = {"GRPC_EXPERIMENTS": "-event_engine_client", "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS": "100"}

if "grpc" not in sys.modules and not _SETTINGS.keys() & os.environ.keys():
    os.environ.update(_SETTINGS)
    try:
        import grpc  # noqa: F401
    finally:
        for _name in _SETTINGS:
            del os.environ[_name]
