# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""A small byte-level RWKV-7 language model in numpy, one token a step.

The whole past of the model is a state of fixed size. It is a dict of three
float32 arrays, shaped as Statepool's layout preset `rwkv7` stacked over L layers:

    att_shift  [L, C]         last input of each layer's time mix
    wkv        [L, H, 64, 64] matrix state of each head, axes (head, value, key)
    ffn_shift  [L, C]         last input of each layer's channel mix

The same state and token give the same bits in every process on one machine, as
long as the BLAS library runs one thread: its way of splitting a sum depends on
the number of threads. Entry scripts set OPENBLAS_NUM_THREADS=1 before numpy is
first imported; importing this module first does so too.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np

HEAD_SIZE = 64
VOCAB = 256
LN_EPS = 1e-5
GROUP_NORM_EPS = 64e-5
STATE_NAMES = ("att_shift", "wkv", "ffn_shift")
WEIGHTS = Path(__file__).resolve().parent / "weights.safetensors"

State = dict[str, np.ndarray]


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a .safetensors file of F16 and F32 tensors, as float32 arrays."""
    data = Path(path).read_bytes()
    (header_size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_size])
    types = {"F16": "<f2", "F32": "<f4"}
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + header_size + offset for offset in info["data_offsets"])
        flat = np.frombuffer(data[begin:end], dtype=types[info["dtype"]])
        tensors[name] = flat.reshape(info["shape"]).astype(np.float32)
    return tensors


def write_safetensors(path: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes arrays to a .safetensors file as float16."""
    header, blobs, offset = {}, [], 0
    for name, tensor in tensors.items():
        blob = np.ascontiguousarray(tensor, dtype="<f2").tobytes()
        header[name] = {
            "dtype": "F16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Normalizes x [C] over its elements."""
    x = x - np.add.reduce(x) / x.size
    return x * (1 / np.sqrt(np.dot(x, x) / x.size + LN_EPS)) * weight + bias


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function in a form that never overflows."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def sample(logits: np.ndarray, rng: np.random.Generator, temperature: float = 1.0) -> int:
    """Draws a token from logits [256]; temperature 0 takes the likeliest one."""
    if temperature <= 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    cumulative = np.cumsum(np.exp(scaled - scaled.max()))
    drawn = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return min(int(drawn), logits.size - 1)


class _Layer:
    """Weights of one layer, laid out for matrix-vector products."""

    def __init__(self, tensors: dict[str, np.ndarray], index: int) -> None:
        prefix = f"blocks.{index}."
        get = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        transposed = lambda name: np.ascontiguousarray(get[name].T)
        self.ln1 = get["ln1.weight"], get["ln1.bias"]
        self.ln2 = get["ln2.weight"], get["ln2.bias"]
        # [6, C], one row for each of r, w, k, v, a, g.
        self.mix = np.stack([get[f"att.x_{name}"] for name in "rwkvag"])
        self.receptance = get["att.receptance.weight"]  # these four [C, C]
        self.key = get["att.key.weight"]
        self.value = get["att.value.weight"]
        self.output = get["att.output.weight"]
        # Low-rank pairs, [D, C] and [C, D]; layer 0 has no value residual.
        self.has_v = "att.v0" in get
        names = "wav" if self.has_v else "wa"
        self.low_bias = np.stack([get[f"att.{name}0"] for name in names])
        self.w1, self.w2 = transposed("att.w1"), transposed("att.w2")
        self.a1, self.a2 = transposed("att.a1"), transposed("att.a2")
        self.g1, self.g2 = transposed("att.g1"), transposed("att.g2")
        if self.has_v:
            self.v1, self.v2 = transposed("att.v1"), transposed("att.v2")
        self.k_k = get["att.k_k"]
        self.k_a = get["att.k_a"]
        self.r_k = get["att.r_k"]  # [H, 64]
        heads = self.r_k.shape[0]
        self.ln_x_weight = get["att.ln_x.weight"].reshape(heads, HEAD_SIZE)
        self.ln_x_bias = get["att.ln_x.bias"].reshape(heads, HEAD_SIZE)
        self.ffn_mix = get["ffn.x_k"]
        self.ffn_key = get["ffn.key.weight"]  # [F, C]
        self.ffn_value = get["ffn.value.weight"]  # [C, F]


class TinyRwkv:
    """RWKV-7 inference in float32, one token a step."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.parameters = sum(tensor.size for tensor in tensors.values())
        self.layers = 1 + max(int(k.split(".")[1]) for k in tensors if k.startswith("blocks."))
        self.channels = tensors["emb.weight"].shape[1]
        self.heads = self.channels // HEAD_SIZE
        self.steps = 0  # tokens this object has computed
        self._layers = [_Layer(tensors, index) for index in range(self.layers)]
        # The first layer norm sees nothing but embeddings: apply it once.
        ln0 = tensors["blocks.0.ln0.weight"], tensors["blocks.0.ln0.bias"]
        self._emb = np.stack([layer_norm(row, *ln0) for row in tensors["emb.weight"]])
        self._ln_out = tensors["ln_out.weight"], tensors["ln_out.bias"]
        self._head = tensors["head.weight"]  # [256, C]

    @classmethod
    def load(cls, path: str | Path | None = None) -> TinyRwkv:
        """Loads a weights file, by default the one beside this module."""
        return cls(read_safetensors(WEIGHTS if path is None else path))

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array of a state, in the order of its bytes."""
        matrix = (self.heads, HEAD_SIZE, HEAD_SIZE)
        shapes = ((self.channels,), matrix, (self.channels,))
        return {name: (self.layers, *shape) for name, shape in zip(STATE_NAMES, shapes)}

    @property
    def state_size(self) -> int:
        """Bytes of a state."""
        return sum(4 * int(np.prod(shape)) for shape in self.state_shapes.values())

    def initial_state(self) -> State:
        """The state before the first token: zeros."""
        return {k: np.zeros(shape, np.float32) for k, shape in self.state_shapes.items()}

    def state_to_bytes(self, state: State) -> bytes:
        """The three arrays one after the other, little endian, row-major."""
        parts = []
        for name, shape in self.state_shapes.items():
            if state[name].shape != shape or state[name].dtype != np.float32:
                raise ValueError(f"{name}: expected a float32 array of shape {shape}")
            parts.append(np.ascontiguousarray(state[name], dtype="<f4").tobytes())
        return b"".join(parts)

    def state_from_bytes(self, data: bytes | bytearray | memoryview) -> State:
        """The inverse of state_to_bytes; the arrays do not share data's memory."""
        if len(data) != self.state_size:
            raise ValueError(f"expected {self.state_size} bytes, got {len(data)}")
        state, offset = {}, 0
        for name, shape in self.state_shapes.items():
            flat = np.frombuffer(data, "<f4", int(np.prod(shape)), offset)
            state[name] = flat.reshape(shape).astype(np.float32)
            offset += flat.nbytes
        return state

    def step(
        self, state: State, token: int, out: State | None = None
    ) -> tuple[np.ndarray, State]:
        """Feeds one byte: returns logits [256] of the next one and the new state.

        The new state is written to `out`, by default to arrays of its own. `out` may
        be `state` itself; otherwise the state passed in is not modified.
        """
        self.steps += 1
        new = {name: np.empty_like(state[name]) for name in STATE_NAMES} if out is None else out
        x = self._emb[token]  # [C]
        v_first = None
        for i, layer in enumerate(self._layers):
            h = layer_norm(x, *layer.ln1)
            added, v_first = self._time_mix(
                layer, h, state["att_shift"][i], state["wkv"][i], new["wkv"][i], v_first
            )
            new["att_shift"][i] = h
            x = x + added
            h = layer_norm(x, *layer.ln2)
            mixed = h + (state["ffn_shift"][i] - h) * layer.ffn_mix
            new["ffn_shift"][i] = h
            x = x + layer.ffn_value @ np.square(np.maximum(layer.ffn_key @ mixed, 0))
        return self._head @ layer_norm(x, *self._ln_out), new

    def _time_mix(
        self,
        layer: _Layer,
        h: np.ndarray,
        previous: np.ndarray,
        wkv: np.ndarray,
        new_wkv: np.ndarray,
        v_first: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Time mix of input h [C] after input previous [C].

        Reads the matrix state wkv [H, 64, 64] and writes the next one to new_wkv,
        which may be the same array. Returns the output [C] and the first layer's value [C].
        """
        heads = (self.heads, HEAD_SIZE)
        hr, hw, hk, hv, ha, hg = h + (previous - h) * layer.mix
        r = (layer.receptance @ hr).reshape(heads)
        k = layer.key @ hk
        v = layer.value @ hv

        low = np.empty_like(layer.low_bias)
        np.matmul(layer.w2, np.tanh(layer.w1 @ hw), out=low[0])
        np.matmul(layer.a2, layer.a1 @ ha, out=low[1])
        if layer.has_v:
            np.matmul(layer.v2, layer.v1 @ hv, out=low[2])
        low = sigmoid(low + layer.low_bias)
        w = np.exp(-0.6065306597126334 * low[0]).reshape(heads)  # decay; exp(-1/2)
        a = low[1]
        if layer.has_v:
            v = v + (v_first - v) * low[2]
        else:
            v_first = v
        g = layer.g2 @ sigmoid(layer.g1 @ hg)

        kk = (k * layer.k_k).reshape(heads)
        kk = kk / np.maximum(np.sqrt(np.add.reduce(kk * kk, axis=1, keepdims=True)), 1e-12)
        k = (k * (1 + (a - 1) * layer.k_a)).reshape(heads)
        v = v.reshape(heads)

        # S = S diag(w) + (S (-kk)) (kk a)^T + v k^T, then y = S r, for each head.
        removed = wkv @ -kk[:, :, None]  # [H, 64, 1]
        np.multiply(wkv, w[:, None, :], out=new_wkv)
        new_wkv += removed * (kk * a.reshape(heads))[:, None, :]
        new_wkv += v[:, :, None] * k[:, None, :]
        y = (new_wkv @ r[:, :, None])[:, :, 0]  # [H, 64]

        y = y - np.add.reduce(y, axis=1, keepdims=True) / HEAD_SIZE
        variance = np.add.reduce(y * y, axis=1, keepdims=True) / HEAD_SIZE
        y = y / np.sqrt(variance + GROUP_NORM_EPS) * layer.ln_x_weight + layer.ln_x_bias
        y = y + np.add.reduce(r * k * layer.r_k, axis=1, keepdims=True) * v
        return layer.output @ (y.reshape(-1) * g), v_first
