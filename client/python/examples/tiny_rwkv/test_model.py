# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Tests of the example model: python3 -m pytest test_model.py"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pytest

from evaluate import bits_per_byte
from model import STATE_NAMES, WEIGHTS, TinyRwkv, sample

TEXT = (HERE / "held_out.txt").read_bytes()


@pytest.fixture(scope="module")
def model() -> TinyRwkv:
    return TinyRwkv.load()


def read(model: TinyRwkv, state: dict, text: bytes) -> tuple[np.ndarray, dict]:
    """Feeds the text; returns the last logits and the last state."""
    logits = None
    for token in text:
        logits, state = model.step(state, token)
    return logits, state


def test_state_has_the_layout_of_the_preset(model: TinyRwkv) -> None:
    state = model.initial_state()
    layers, c, heads = model.layers, model.channels, model.heads
    assert tuple(state) == STATE_NAMES
    assert state["att_shift"].shape == (layers, c)
    assert state["wkv"].shape == (layers, heads, 64, 64)
    assert state["ffn_shift"].shape == (layers, c)
    assert all(part.dtype == np.float32 for part in state.values())
    assert model.state_size == layers * (2 * c + heads * 64 * 64) * 4
    assert WEIGHTS.stat().st_size <= 1_900_000


def test_bytes_are_the_arrays_in_order(model: TinyRwkv) -> None:
    _, state = read(model, model.initial_state(), TEXT[:20])
    data = model.state_to_bytes(state)
    assert len(data) == model.state_size
    assert data == b"".join(state[name].astype("<f4").tobytes() for name in STATE_NAMES)
    with pytest.raises(ValueError):
        model.state_from_bytes(data[:-4])
    with pytest.raises(ValueError):
        model.state_to_bytes({**state, "wkv": state["wkv"].astype(np.float64)})


@pytest.mark.parametrize("skew", [0, 1, 3])
def test_state_through_bytes_continues_bit_for_bit(model: TinyRwkv, skew: int) -> None:
    _, state = read(model, model.initial_state(), TEXT[:300])
    buffer = bytearray(skew) + model.state_to_bytes(state)
    back = model.state_from_bytes(memoryview(buffer)[skew:])
    buffer[:] = bytes(len(buffer))  # the state must not look into the buffer
    for token in TEXT[300:500]:
        logits, state = model.step(state, token)
        logits_back, back = model.step(back, token)
        assert logits.tobytes() == logits_back.tobytes()
    assert model.state_to_bytes(state) == model.state_to_bytes(back)


def test_step_leaves_its_input_alone(model: TinyRwkv) -> None:
    _, state = read(model, model.initial_state(), TEXT[:50])
    before = model.state_to_bytes(state)
    first, _ = model.step(state, 65)
    second, _ = model.step(state, 65)
    assert model.state_to_bytes(state) == before
    assert first.tobytes() == second.tobytes()


def test_a_state_in_place_gives_the_same_bits(model: TinyRwkv) -> None:
    _, state = read(model, model.initial_state(), TEXT[:50])
    # As in an arena: rows of larger arrays, at whatever address.
    room = {k: np.full((3, *shape), 7, np.float32) for k, shape in model.state_shapes.items()}
    own = {name: array[1] for name, array in room.items()}
    for name in STATE_NAMES:
        own[name][:] = state[name]
    for token in TEXT[50:250]:
        logits, state = model.step(state, token)
        logits_in_place, same = model.step(own, token, out=own)
        assert same is own and logits.tobytes() == logits_in_place.tobytes()
    assert model.state_to_bytes(state) == model.state_to_bytes(own)
    assert all((array[[0, 2]] == 7).all() for array in room.values())


def test_another_process_gets_the_same_bits(model: TinyRwkv) -> None:
    logits, state = read(model, model.initial_state(), TEXT[:400])
    script = (
        "import hashlib, sys\n"
        "from model import TinyRwkv\n"
        "model = TinyRwkv.load()\n"
        "state = model.initial_state()\n"
        "for token in open('held_out.txt', 'rb').read(400):\n"
        "    logits, state = model.step(state, token)\n"
        "sys.stdout.buffer.write(logits.tobytes() + model.state_to_bytes(state))\n"
    )
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, cwd=HERE, capture_output=True, check=True)
    assert other.stdout == logits.tobytes() + model.state_to_bytes(state)


def test_steps_counts_tokens() -> None:
    model = TinyRwkv.load()
    assert model.steps == 0
    read(model, model.initial_state(), TEXT[:7])
    assert model.steps == 7


def test_sample_is_deterministic() -> None:
    logits = np.random.default_rng(5).normal(size=256).astype(np.float32)
    draws = []
    for seed in (1, 1, 2):
        rng = np.random.default_rng(seed)
        draws.append([sample(logits, rng, 0.8) for _ in range(50)])
    assert draws[0] == draws[1] != draws[2]
    assert sample(logits, np.random.default_rng(1), 0) == int(np.argmax(logits))
    peaked = np.full(256, -100, np.float32)
    peaked[[3, 255]] = 0
    rng = np.random.default_rng(9)
    assert {sample(peaked, rng) for _ in range(50)} == {3, 255}


def test_held_out_bits_per_byte(model: TinyRwkv) -> None:
    bits, _ = bits_per_byte(model, TEXT[:4096])
    assert bits <= 2.5  # the committed weights: about 1.3


def test_numpy_agrees_with_torch(model: TinyRwkv) -> None:
    torch = pytest.importorskip("torch")
    from train import TorchRwkv

    text = TEXT[:192]
    reference = TorchRwkv.from_file(WEIGHTS).eval()
    with torch.no_grad():
        tokens = torch.tensor([list(text)])
        expected, last = reference(tokens, reference.initial_state(1))
    state = model.initial_state()
    for i, token in enumerate(text):
        logits, state = model.step(state, token)
        np.testing.assert_allclose(logits, expected[0, i].numpy(), rtol=0, atol=2e-3)
    for name, part in zip(STATE_NAMES, last):
        np.testing.assert_allclose(state[name], part[:, 0].numpy(), rtol=0, atol=2e-3)
