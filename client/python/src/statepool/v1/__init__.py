# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The messages of proto/statepool/v1/statepool.proto, generated when the package is built: statepool.v1.statepool_pb2."""
