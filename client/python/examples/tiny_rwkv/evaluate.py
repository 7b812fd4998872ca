#!/usr/bin/env python3
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Prints the model's bits per byte on text it was not trained on, with numpy."""

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import time
from pathlib import Path

import numpy as np

from model import WEIGHTS, State, TinyRwkv

HERE = Path(__file__).resolve().parent


def surprise_bits(logits: np.ndarray, token: int) -> float:
    """Bits that the byte `token` costs under logits [256]."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float((np.log(np.exp(shifted).sum()) - shifted[token]) / np.log(2))


def bits_per_byte(model: TinyRwkv, text: bytes) -> tuple[float, State]:
    """Mean bits per byte of the text after a newline, and the state before its last byte."""
    total, state, previous = 0.0, model.initial_state(), ord("\n")
    for token in text:
        logits, state = model.step(state, previous)
        total += surprise_bits(logits, token)
        previous = token
    return total / len(text), state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--text", type=Path, default=HERE / "held_out.txt")
    parser.add_argument("--bytes", type=int, help="read only this many")
    args = parser.parse_args()
    model = TinyRwkv.load(args.weights)
    text = args.text.read_bytes()[: args.bytes]
    bits, _ = bits_per_byte(model, text)

    state, tokens = model.initial_state(), text[:2000]
    start = time.perf_counter()
    for token in tokens:
        _, state = model.step(state, token)
    milliseconds = (time.perf_counter() - start) / len(tokens) * 1e3
    print(f"{args.text.name}: {len(text)} bytes, {bits:.4f} bits per byte")
    print(f"{model.parameters} parameters, state {model.state_size} bytes")
    print(f"{milliseconds:.3f} ms a step")


if __name__ == "__main__":
    main()
