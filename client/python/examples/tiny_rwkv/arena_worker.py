#!/usr/bin/env python3
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""A worker that serves several users at once, on an arena: memory that it shares with the daemon of its machine. The model computes right there, so no
state is ever sent, packed or unpacked. Its result is one line of JSON on stdout.

    arena_worker.py --server ADDR --tokens N --users '[{"name": "B", "from": "", "text": "Behold, ", "seed": 4}, …]'

For each user it forks a sequence of this `name`: from the sequence `from`, or from the published state of the prompt if that is empty. Then it reads
the user's text and writes N tokens; without a text it goes on with the logits and the sampler that were stored beside the state.

Where the daemon has no arenas, OwnMemory takes the place of one, and "arenas" in the result says why.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from worker import PROMPT, Reader, Result, Worker, from_attachment, said, to_attachment  # before numpy: it sets the number of BLAS threads
from model import STATE_NAMES

import numpy as np

import statepool
from statepool import LoadItem, StoreItem

CHECKPOINT = 40  # tokens between two stores
NO_ARENAS = ("ARENAS_OFF", "SOCKET_UNREACHABLE", "PEER_REFUSED", "PEER_UNKNOWN", "ARENA_TOO_LARGE")


def serve(users: list[dict[str, Any]], tokens: int, worker: Worker) -> Result:
    rows = range(len(users))
    names = [user["name"] for user in users]
    fork_all(users, worker)

    arena, why_not = open_arena(worker, len(users))
    with arena:
        # One call loads all rows. arena["wkv"] is an array [row, layer, head, value, key], and so on: a row of each is a state of the model.
        loaded = worker.timed("load", lambda: arena.load({row: LoadItem(names[row], attachment=True) for row in rows}))
        readers = [Reader(worker.model, {tensor: arena[tensor][row] for tensor in STATE_NAMES}, loaded[row].position, in_place=True)
                   for row in rows]
        samplers = [np.random.default_rng(user["seed"]) for user in users]
        for row, user in enumerate(users):
            if user["text"]:
                readers[row].read(user["text"].encode())
            else:
                readers[row].logits, samplers[row] = from_attachment(loaded[row].attachment)

        # All users in turn, token by token; at each checkpoint one call makes all rows new versions of their sequences.
        written: list[list[int]] = [[] for _ in rows]
        checkpoints = 0
        while len(written[0]) < tokens:
            for _ in range(min(CHECKPOINT, tokens - len(written[0]))):
                for row in rows:
                    written[row] += readers[row].write(1, samplers[row])
            items = {row: StoreItem(names[row], readers[row].position, attachment=to_attachment(readers[row].logits, samplers[row])) for row in rows}
            infos = worker.timed("store", lambda: arena.store(items, all_or_none=True))  # waits where the disk is behind
            checkpoints += 1
    return {"arenas": why_not, "checkpoints": checkpoints,
            "users": {names[row]: {**said(readers[row], written[row]), "loaded_position": loaded[row].position, "checksum": infos[row].checksum}
                      for row in rows}}


def fork_all(users: list[dict[str, Any]], worker: Worker) -> None:
    prompt = PROMPT.read_bytes()
    hit = worker.timed("match", lambda: worker.pool.match_prefix(worker.layout, prompt, max_position=len(prompt)))
    for user in users:
        worker.timed("fork", lambda: worker.pool.fork(user["from"] or hit, user["name"]))


def open_arena(worker: Worker, rows: int) -> tuple[Any, str]:
    """An arena or what takes its place, and why."""
    try:
        return worker.pool.open_arena(worker.layout, rows, view=statepool.View("row_major")), ""
    except statepool.StatepoolError as error:
        if error.reason not in NO_ARENAS:
            raise
        return OwnMemory(worker.pool, worker.layout, rows), error.reason


class OwnMemory:
    """What serve() uses of an Arena, with a get or a set for each row."""

    def __init__(self, pool: statepool.Pool, layout: statepool.Layout, rows: int) -> None:
        self._pool = pool
        self._rows = np.empty((rows, layout.state_bytes), np.uint8)
        self._views = [layout.views(row) for row in self._rows]

    def __getitem__(self, tensor: str) -> list[Any]:
        return [views[tensor] for views in self._views]

    def load(self, items: Mapping[int, LoadItem]) -> dict[int, statepool.State]:
        return {row: self._pool.get(item.source, out=self._rows[row]) for row, item in items.items()}

    def store(self, items: Mapping[int, StoreItem], *, all_or_none: bool) -> dict[int, statepool.Info]:  # one by one, each with its retries
        return {row: self._pool.set(item.sequence, self._rows[row], item.position or 0, attachment=item.attachment) for row, item in items.items()}

    def __enter__(self) -> OwnMemory:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the daemon's address")
    parser.add_argument("--users", required=True, type=json.loads, help="JSON; see above")
    parser.add_argument("--tokens", type=int, default=100, help="how many to write for each (default: %(default)s)")
    args = parser.parse_args()
    worker = Worker(args.server)
    try:
        result = serve(args.users, args.tokens, worker)
    except statepool.StatepoolError as error:
        print(f"arena_worker: {error}", file=sys.stderr)
        return 1
    finally:
        worker.pool.close()
    print(json.dumps({"pid": os.getpid(), "steps": worker.model.steps, "pool_ms": worker.pool_ms, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
