#!/usr/bin/env python3
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""One worker process of the example: it runs the model, and keeps states in a pool. One job a process; its result is one line of JSON on stdout.

    worker.py read-and-publish --server ADDR --sequence NAME         reads the prompt, stores its state, publishes it as a prefix
    worker.py continue         --server ADDR --sequence NAME …       finds the prompt's state, forks it, reads a new text and writes on
    worker.py resume           --server ADDR --sequence NAME …       gets a stored state at exactly one position and writes on
    worker.py fill             --server ADDR --sequence NAME …       stores states of other texts, as other users of the pool would
    worker.py reference                                              no pool: reads everything itself, and writes. What must come out

`model.py` does not know of Statepool. What a worker adds is four calls: match, fork, get, set. Beside each state that it stores, it
attaches the last logits and the sampler's state, so that whoever resumes goes on with the very next draw.
"""
from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is imported: other numbers of threads give other bits

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from model import VOCAB, WEIGHTS, State, TinyRwkv, sample

import statepool

HERE = Path(__file__).resolve().parent
PROMPT = HERE / "prompt.txt"
ALIAS = "tiny-rwkv"
TEMPERATURE = 0.6

_T = TypeVar("_T")
Result = dict[str, Any]


def layout_of(model: TinyRwkv) -> statepool.layouts.Preset:
    """Whose states these are, and their shapes: another set of weights is another layout, so the two never mix."""
    weights = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    return statepool.layouts.rwkv7(f"sha256:{weights}", layers=model.layers, hidden_size=model.channels,
                                   shift_dtype="float32", wkv_dtype="float32")


class Reader:
    """The model on its way through a text. in_place: `state` is memory that it computes on; otherwise it is left as it is."""

    def __init__(self, model: TinyRwkv, state: State, position: int = 0, in_place: bool = False) -> None:
        self.model, self.state, self.position, self.in_place = model, state, position, in_place
        self.logits: np.ndarray | None = None  # of the token to come
        self.first_logits_sha256 = ""
        self._digest = hashlib.sha256()  # of all logits since this reader began

    def read(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.logits, self.state = self.model.step(self.state, token, out=self.state if self.in_place else None)
            self.position += 1
            self._digest.update(self.logits.tobytes())
            self.first_logits_sha256 = self.first_logits_sha256 or self.logits_sha256

    def write(self, count: int, rng: np.random.Generator) -> list[int]:
        """Draws tokens and reads each. REQUIRES: logits."""
        tokens: list[int] = []
        for _ in range(count):
            assert self.logits is not None
            tokens.append(sample(self.logits, rng, TEMPERATURE))
            self.read(tokens[-1:])
        return tokens

    @property
    def logits_sha256(self) -> str:
        return self._digest.hexdigest()


def to_attachment(logits: np.ndarray, rng: np.random.Generator) -> bytes:
    return logits.astype("<f4").tobytes() + json.dumps(rng.bit_generator.state).encode()


def from_attachment(data: bytes) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng()
    rng.bit_generator.state = json.loads(data[4 * VOCAB:])
    return np.frombuffer(data, "<f4", VOCAB), rng


class Worker:
    """A model, a pool, and how long the pool's answers took."""

    def __init__(self, server: str) -> None:
        self.model = TinyRwkv.load()
        self.pool = statepool.connect(server)
        self.layout = self.pool.register_layout(layout_of(self.model), ALIAS)
        self.pool_ms: dict[str, float] = {}

    def timed(self, what: str, call: Callable[[], _T]) -> _T:
        began = time.perf_counter()
        answer = call()
        self.pool_ms[what] = self.pool_ms.get(what, 0.0) + (time.perf_counter() - began) * 1e3
        return answer

    def get(self, name: str, position: int) -> tuple[statepool.State, Reader]:
        stored = self.timed("get", lambda: self.pool.get(name, position, layout=self.layout))
        return stored, Reader(self.model, self.model.state_from_bytes(stored.data), position)

    def set(self, name: str, reader: Reader, **options: Any) -> statepool.Info:
        data = self.model.state_to_bytes(reader.state)
        return self.timed("set", lambda: self.pool.set(name, data, reader.position, layout=self.layout, **options))


def read_and_publish(args: argparse.Namespace, worker: Worker) -> Result:
    """Stores also the state of one token earlier, as `NAME/one-token-earlier`: a state that looks right and is not."""
    tokens = args.prompt.read_bytes()
    reader = Reader(worker.model, worker.model.initial_state())
    began = time.perf_counter()
    reader.read(tokens[:-1])
    earlier = Reader(worker.model, reader.state, reader.position)
    reader.read(tokens[-1:])
    reading_s = time.perf_counter() - began
    worker.set(f"{args.sequence}/one-token-earlier", earlier, durability="volatile")
    worker.set(args.sequence, reader, durability=args.durability)
    prefix = worker.timed("publish", lambda: worker.pool.publish_prefix(
        worker.layout, tokens, args.sequence, position=reader.position, durability=args.durability))
    return {"position": reader.position, "reading_s": reading_s, "prefix": prefix.name, "state_bytes": worker.layout.state_bytes,
            "fingerprint": worker.layout.fingerprint}


def go_on(args: argparse.Namespace, worker: Worker) -> Result:
    tokens = args.prompt.read_bytes() + args.text.encode()
    hit = worker.timed("match", lambda: worker.pool.match_prefix(worker.layout, tokens))
    if not hit:
        raise SystemExit(f"worker: no prefix of these tokens: {hit.miss_reason}")
    worker.timed("fork", lambda: worker.pool.fork(hit, args.sequence, durability=args.durability))
    _, reader = worker.get(args.sequence, hit.position)
    reader.read(tokens[hit.position:])
    rng = np.random.default_rng(args.seed)
    written = reader.write(args.tokens, rng)
    assert reader.logits is not None
    info = worker.set(args.sequence, reader, attachment=to_attachment(reader.logits, rng))
    return {"matched_position": hit.position, **said(reader, written), "revision": info.revision, "checksum": info.checksum}


def resume(args: argparse.Namespace, worker: Worker) -> Result:
    """With --text the sampler is seeded anew and the text is read first; otherwise logits and sampler are those stored beside the state."""
    stored, reader = worker.get(args.sequence, args.position)
    rng = np.random.default_rng(args.seed)
    if args.text:
        reader.read(args.text.encode())
    else:
        reader.logits, rng = from_attachment(stored.attachment)
    written = reader.write(args.tokens, rng)
    result = {"resumed_position": stored.position, "resumed_checksum": stored.checksum, **said(reader, written)}
    if args.store:
        assert reader.logits is not None
        worker.set(args.sequence, reader, attachment=to_attachment(reader.logits, rng), if_revision=stored.revision)
    return result


def fill(args: argparse.Namespace, worker: Worker) -> Result:
    """After each of its tokens the text's state goes into the pool under a name of its own."""
    reader = Reader(worker.model, worker.model.initial_state())
    for i, token in enumerate(args.prompt.read_bytes()[:args.tokens]):
        reader.read([token])
        worker.set(f"{args.sequence}/{i}", reader, durability=args.durability)
    return {"states": args.tokens}


def reference(args: argparse.Namespace) -> Result:
    model = TinyRwkv.load()
    reader = Reader(model, model.initial_state())
    reader.read(args.prompt.read_bytes())
    reader = Reader(model, reader.state, reader.position)  # from here on its digest counts
    reader.read(args.text.encode())
    rng = np.random.default_rng(args.seed)
    written = reader.write(args.tokens, rng)
    more = Reader(model, reader.state, reader.position)
    more.logits = reader.logits
    return {**said(reader, written), "more": said(more, more.write(args.more, rng)), "steps": model.steps}


def said(reader: Reader, written: list[int]) -> Result:
    return {"position": reader.position, "tokens": written, "logits_sha256": reader.logits_sha256,
            "first_logits_sha256": reader.first_logits_sha256}


JOBS: dict[str, Callable[[argparse.Namespace, Worker], Result]] = {
    "read-and-publish": read_and_publish, "continue": go_on, "resume": resume, "fill": fill}


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=[*JOBS, "reference"])
    parser.add_argument("--server", help="the daemon's address")
    parser.add_argument("--sequence", help="the sequence to make, write or resume")
    parser.add_argument("--prompt", type=Path, default=PROMPT, help="the text that is read, byte by byte (default: %(default)s)")
    parser.add_argument("--text", default="", help="what the user adds to the prompt")
    parser.add_argument("--tokens", type=int, default=100, help="how many to write; fill: how many states (default: %(default)s)")
    parser.add_argument("--more", type=int, default=0, help="reference: how many to write after that")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--position", type=int, help="resume: tokens consumed by the state that is wanted")
    parser.add_argument("--durability", choices=["volatile", "write_behind", "sync"], help="of the sequence (default: the daemon's)")
    parser.add_argument("--store", action="store_true", help="resume: store the new state as well")
    args = parser.parse_args()
    if args.job == "reference":
        result = reference(args)
    else:
        if not args.server or not args.sequence or (args.job == "resume" and args.position is None):
            parser.error(f"{args.job} needs --server, --sequence and, to resume, --position")
        if args.job == "continue" and not args.text:
            parser.error("continue needs --text: something to compute")
        worker = Worker(args.server)
        try:
            result = JOBS[args.job](args, worker)
        except statepool.StatepoolError as error:
            print(f"worker: {args.job}: {error}", file=sys.stderr)
            return 1
        finally:
            worker.pool.close()
        result.update(steps=worker.model.steps, pool_ms=worker.pool_ms)
    print(json.dumps({"job": args.job, "pid": os.getpid(), "seconds": time.perf_counter() - began, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
