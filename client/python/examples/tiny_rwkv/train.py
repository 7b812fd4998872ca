#!/usr/bin/env python3
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Trains the model of model.py with torch, on the CPU or on a GPU.

    ./get_text.sh
    python3 train.py --device cuda --minutes 5

A CPU takes hours for what a GPU does in minutes.

Each of the batch's streams reads on through the text, segment by segment, and
takes its state along from one segment to the next, so that the model learns to
use states older than the segment that gradients flow through.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import (
    GROUP_NORM_EPS,
    HEAD_SIZE,
    VOCAB,
    WEIGHTS,
    read_safetensors,
    write_safetensors,
)

HERE = Path(__file__).resolve().parent
CHUNK = 16  # tokens the recurrence takes at once

# The text is cut into blocks of 32 KiB. Every 25th is held out, five in all;
# held_out.txt is two of these, prompt.txt the beginning of a third one.
BLOCK = 32768
HELD_OUT = range(9, 10**6, 25)
EXCERPT_BLOCKS = (34, 109)
PROMPT_BLOCK = 59
PROMPT_SIZE = 6000


def split_text(text: bytes) -> tuple[bytes, dict[int, bytes]]:
    """Splits the text into what is trained on and the held-out blocks, by index."""
    blocks = [text[i : i + BLOCK] for i in range(0, len(text), BLOCK)]
    train = b"".join(block for i, block in enumerate(blocks) if i not in HELD_OUT)
    return train, {i: block for i, block in enumerate(blocks) if i in HELD_OUT}


def write_excerpts(held_out: dict[int, bytes], folder: Path) -> None:
    """Writes held_out.txt, and prompt.txt from one line's start to another's end."""
    (folder / "held_out.txt").write_bytes(b"".join(held_out[i] for i in EXCERPT_BLOCKS))
    block = held_out[PROMPT_BLOCK]
    begin = block.index(b"\n") + 1
    end = block.rindex(b"\n", 0, begin + PROMPT_SIZE) + 1
    (folder / "prompt.txt").write_bytes(block[begin:end])


def wkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """RWKV-7's recurrence over T tokens, chunk by chunk.

    r, w, k, v, a, b: [B, H, T, N], with w the decay in (0, 1) and T a multiple
    of CHUNK. state: [B, H, N (value), N (key)]. For every token

        S = S diag(w) + (S a) b^T + v k^T,   y = S r

    Within a chunk, write S_t = Z_t diag(W_t) with W_t the product of the decays
    so far. Then Z_t = Z_{t-1} + u_t (b_t / W_t)^T + v_t (k_t / W_t)^T with
    u_t = Z_{t-1} (W_{t-1} a_t), and the u of a chunk solve a triangular system.
    A decay is at least exp(-0.607), so 16 of them stay well inside float32.
    Returns y [B, H, T, N] and the last state.
    """
    shape = r.shape
    chunks = [x.unflatten(2, (-1, CHUNK)) for x in (r, w, k, v, a, b)]
    r, w, k, v, a, b = chunks  # [B, H, T/CHUNK, CHUNK, N]
    log_decay = w.log().cumsum(3)
    decay = log_decay.exp()
    r = r * decay
    k = k / decay
    b = b / decay
    a = a * (log_decay - w.log()).exp()
    last = decay[:, :, :, -1:]

    lower = torch.ones(CHUNK, CHUNK, device=r.device).tril()
    strict = lower.tril(-1)
    ab = (a @ b.mT) * strict
    ak = (a @ k.mT) * strict
    rb = (r @ b.mT) * lower
    rk = (r @ k.mT) * lower
    eye = torch.eye(CHUNK, device=r.device)
    right = torch.cat([a, ak @ v], -1)
    solved = torch.linalg.solve_triangular(eye - ab, right, upper=False, unitriangular=True)
    u_state, u_own = solved.chunk(2, -1)
    y_own = rk @ v
    state_own = v.mT @ k

    ys = []
    for i in range(r.shape[2]):
        u = u_state[:, :, i] @ state.mT + u_own[:, :, i]
        ys.append(r[:, :, i] @ state.mT + rb[:, :, i] @ u + y_own[:, :, i])
        state = (state + u.mT @ b[:, :, i] + state_own[:, :, i]) * last[:, :, i]
    return torch.stack(ys, 2).reshape(shape), state


def shifted(x: Tensor, previous: Tensor) -> Tensor:
    """x [B, T, C] delayed by one token, with previous [B, C] in front."""
    return torch.cat([previous[:, None], x[:, :-1]], 1)


class TimeMix(nn.Module):
    """RWKV-7's time mix. Parameters are named as in the published checkpoints."""

    def __init__(self, index: int, layers: int, c: int, ranks: dict[str, int]) -> None:
        super().__init__()
        self.index = index
        self.heads = c // HEAD_SIZE
        up = index / max(layers - 1, 1)  # 0 to 1
        down = 1 - index / layers  # 1 to almost 0
        channel = torch.arange(c) / c
        for name, power in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)):
            setattr(self, f"x_{name}", nn.Parameter(1 - channel ** (power * down)))
        speed = (torch.arange(c) / (c - 1)) ** (0.85 + up**0.5)
        self.w0 = nn.Parameter(-6.5 + 5 * speed)
        self.a0 = nn.Parameter(torch.zeros(c))
        if index > 0:
            self.v0 = nn.Parameter(torch.ones(c))
        for name, rank in ranks.items():
            if name == "v" and index == 0:
                continue
            setattr(self, f"{name}1", nn.Parameter(torch.zeros(c, rank)))
            second = nn.init.orthogonal_(torch.empty(rank, c), gain=0.1)
            setattr(self, f"{name}2", nn.Parameter(second))
        self.k_k = nn.Parameter(torch.full((c,), 0.85))
        self.k_a = nn.Parameter(torch.ones(c))
        self.r_k = nn.Parameter(torch.zeros(self.heads, HEAD_SIZE))
        self.receptance = nn.Linear(c, c, bias=False)
        self.key = nn.Linear(c, c, bias=False)
        self.value = nn.Linear(c, c, bias=False)
        self.output = nn.Linear(c, c, bias=False)
        self.ln_x = nn.GroupNorm(self.heads, c, eps=GROUP_NORM_EPS)
        nn.init.uniform_(self.receptance.weight, -0.5 / c**0.5, 0.5 / c**0.5)
        nn.init.uniform_(self.key.weight, -0.05 / c**0.5, 0.05 / c**0.5)
        nn.init.uniform_(self.value.weight, -0.5 / c**0.5, 0.5 / c**0.5)
        nn.init.zeros_(self.output.weight)

    def forward(
        self, x: Tensor, previous: Tensor, wkv: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, C] -> output [B, T, C], last matrix state, first layer's value."""
        delta = shifted(x, previous) - x
        xr, xw, xk, xv, xa, xg = (x + delta * getattr(self, f"x_{n}") for n in "rwkvag")
        r = self.receptance(xr)
        k = self.key(xk)
        v = self.value(xv)
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(self.w0 + torch.tanh(xw @ self.w1) @ self.w2))
        a = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)
        g = torch.sigmoid(xg @ self.g1) @ self.g2
        if self.index == 0:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2)

        def split(t: Tensor) -> Tensor:  # [B, T, C] -> [B, H, T, N]
            return t.unflatten(2, (self.heads, HEAD_SIZE)).transpose(1, 2)

        kk = F.normalize(split(k * self.k_k), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        rh, kh, vh = split(r), split(k), split(v)
        y, wkv = wkv7(rh, split(w), kh, vh, -kk, kk * split(a), wkv)
        y = self.ln_x(y.transpose(1, 2).flatten(0, 1).flatten(1)).view_as(x)
        bonus = (rh * kh * self.r_k[:, None]).sum(-1, keepdim=True) * vh
        y = y + bonus.transpose(1, 2).flatten(2)
        return self.output(y * g), wkv, v_first


class ChannelMix(nn.Module):
    """RWKV-7's channel mix, a squared-relu network of two matrices."""

    def __init__(self, index: int, layers: int, c: int, hidden: int) -> None:
        super().__init__()
        down = 1 - index / layers
        self.x_k = nn.Parameter(1 - (torch.arange(c) / c) ** (down**4))
        self.key = nn.Linear(c, hidden, bias=False)
        self.value = nn.Linear(hidden, c, bias=False)
        nn.init.uniform_(self.key.weight, -0.5 / c**0.5, 0.5 / c**0.5)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        """x [B, T, C] -> [B, T, C]"""
        return self.value(torch.relu(self.key(x + (shifted(x, previous) - x) * self.x_k)) ** 2)


class Block(nn.Module):
    """One layer."""

    def __init__(self, index: int, layers: int, c: int, hidden: int, ranks: dict[str, int]) -> None:
        super().__init__()
        if index == 0:
            self.ln0 = nn.LayerNorm(c)
        self.ln1 = nn.LayerNorm(c)
        self.ln2 = nn.LayerNorm(c)
        self.att = TimeMix(index, layers, c, ranks)
        self.ffn = ChannelMix(index, layers, c, hidden)


class TorchRwkv(nn.Module):
    """The model of model.py, over whole segments."""

    def __init__(
        self,
        layers: int = 4,
        channels: int = 128,
        hidden: int = 512,
        ranks: tuple[int, int, int, int] = (16, 16, 16, 32),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers, self.channels, self.dropout = layers, channels, dropout
        named_ranks = dict(zip("wavg", ranks))
        self.emb = nn.Embedding(VOCAB, channels)
        self.blocks = nn.ModuleList(
            Block(i, layers, channels, hidden, named_ranks) for i in range(layers)
        )
        self.ln_out = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, VOCAB, bias=False)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(self.head.weight, gain=0.5)

    @classmethod
    def from_file(cls, path: Path) -> TorchRwkv:
        """Loads what save() wrote."""
        tensors = {k: torch.from_numpy(v) for k, v in read_safetensors(path).items()}
        layers = 1 + max(int(k.split(".")[1]) for k in tensors if k.startswith("blocks."))
        hidden, channels = tensors["blocks.0.ffn.key.weight"].shape
        ranks = tuple(tensors[f"blocks.{layers - 1}.att.{n}1"].shape[1] for n in "wavg")
        model = cls(layers, channels, hidden, ranks)
        model.load_state_dict(tensors)
        return model

    def save(self, path: Path) -> None:
        """Writes the weights as float16."""
        write_safetensors(path, {k: v.cpu().numpy() for k, v in self.state_dict().items()})

    def initial_state(self, batch: int, device: str | torch.device = "cpu") -> tuple[Tensor, ...]:
        """Zeros: att_shift [L, B, C], wkv [L, B, H, 64, 64], ffn_shift [L, B, C]."""
        shift = (self.layers, batch, self.channels)
        matrix = (self.layers, batch, self.channels // HEAD_SIZE, HEAD_SIZE, HEAD_SIZE)
        return tuple(torch.zeros(shape, device=device) for shape in (shift, matrix, shift))

    def forward(
        self, tokens: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """tokens [B, T] -> logits [B, T, 256] and the state after the last token."""
        drop = lambda t: F.dropout(t, self.dropout, self.training)
        x = drop(self.blocks[0].ln0(self.emb(tokens)))
        v_first = None
        shifts, matrices, ffn_shifts = [], [], []
        for block, att_shift, wkv, ffn_shift in zip(self.blocks, *state):
            h = block.ln1(x)
            out, wkv, v_first = block.att(h, att_shift, wkv, v_first)
            x = x + drop(out)
            shifts.append(h[:, -1])
            matrices.append(wkv)
            h = block.ln2(x)
            x = x + drop(block.ffn(h, ffn_shift))
            ffn_shifts.append(h[:, -1])
        new_state = tuple(torch.stack(part) for part in (shifts, matrices, ffn_shifts))
        return self.head(self.ln_out(x)), new_state


def make_optimizer(model: TorchRwkv, lr: float, device: str) -> torch.optim.Optimizer:
    """AdamW; matrices decay, and the decay bases learn twice as fast."""
    matrices, vectors, bases = [], [], []
    for name, p in model.named_parameters():
        (bases if name.endswith("att.w0") else matrices if p.ndim > 1 else vectors).append(p)
    groups = [
        {"params": matrices, "weight_decay": 0.1, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        {"params": bases, "weight_decay": 0.0, "scale": 2.0},
    ]
    for group in groups:  # tensors, so that a captured graph sees new values
        group["lr"] = torch.tensor(lr * group["scale"], device=device)
    cuda = device.startswith("cuda")
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-12, capturable=cuda)


class Trainer:
    """One training step on B streams, as a CUDA graph where there is a GPU."""

    def __init__(
        self, model: TorchRwkv, text: bytes, batch: int, length: int, lr: float, device: str
    ) -> None:
        self.model, self.batch, self.length, self.device = model, batch, length, device
        self.optimizer = make_optimizer(model, lr, device)
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
        self.state = model.initial_state(batch, device)
        self.offsets = torch.zeros(batch, dtype=torch.long, device=device)
        self.keep = torch.zeros(batch, device=device)  # 0 where a stream starts anew
        self.position = torch.zeros(batch, dtype=torch.long)
        self.loss = torch.zeros((), device=device)
        self.graph = None

    def compute(self) -> None:
        """Forward, backward and update; reads and writes the tensors above."""
        span = torch.arange(self.length + 1, device=self.device)
        tokens = self.text[self.offsets[:, None] + span].long()
        state = tuple(part * self.keep.view(1, -1, *[1] * (part.ndim - 2)) for part in self.state)
        logits, new_state = self.model(tokens[:, :-1], state)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.loss.copy_(loss)
            for old, new in zip(self.state, new_state):
                old.copy_(new)

    def capture(self) -> None:
        """Records compute() as a graph, after a warm-up that leaves the weights alone."""
        for group in self.optimizer.param_groups:
            group["lr"].zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.compute()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.compute()
        self.graph = graph

    def step(self, lr: float, generator: torch.Generator) -> None:
        """Takes the next segment of every stream; some streams start anew."""
        limit = len(self.text) - self.length - 1
        fresh = torch.rand(self.batch, generator=generator) < self.length / 8192
        fresh |= (self.position == 0) | (self.position > limit)
        jump = torch.randint(1, limit, (self.batch,), generator=generator)
        self.position = torch.where(fresh, jump, self.position)
        self.offsets.copy_(self.position)
        self.keep.copy_((~fresh).float())
        self.position = self.position + self.length
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr * group["scale"])
        if self.graph is None:
            self.compute()
        else:
            self.graph.replay()


@torch.no_grad()
def bits_per_byte(model: TorchRwkv, blocks: list[bytes], device: str, length: int = 2048) -> float:
    """Bits per byte on blocks of one size, read as parallel streams.

    As in evaluate.py, each stream starts with a newline that does not count.
    """
    size = len(blocks[0]) // length * length
    rows = [b"\n" + block[:size] for block in blocks]
    tokens = torch.tensor([list(row) for row in rows], device=device)
    state = model.initial_state(len(blocks), device)
    was_training, total = model.training, 0.0
    model.eval()
    for i in range(0, size, length):
        part = tokens[:, i : i + length + 1]
        logits, state = model(part[:, :-1], state)
        loss = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        total += loss.item()
    model.train(was_training)
    return total / (len(blocks) * size) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=5.0, help="time to train for")
    parser.add_argument("--steps", type=int, help="steps to train for, instead of a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", type=Path, default=HERE / ".text" / "kjv.txt")
    parser.add_argument("--out", type=Path, help="default: weights.safetensors, beside this script")
    parser.add_argument("--batch", type=int, default=64, help="streams")
    parser.add_argument("--length", type=int, default=256, help="tokens a segment")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    parser.add_argument("--quick", action="store_true", help="half a minute, to try the script")
    parser.add_argument("--excerpts", action="store_true", help="write held_out.txt and prompt.txt")
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.batch, args.length = 0.5, 8, 128
    if args.out is None:
        args.out = args.text.with_suffix(".quick.safetensors") if args.quick else WEIGHTS

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    train_text, held_out = split_text(args.text.read_bytes())
    if args.excerpts:
        write_excerpts(held_out, HERE)
    model = TorchRwkv(dropout=args.dropout).to(args.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(train_text)} bytes to train on", flush=True)

    trainer = Trainer(model, train_text, args.batch, args.length, args.lr, args.device)
    if args.device.startswith("cuda"):
        trainer.capture()
    generator = torch.Generator().manual_seed(args.seed)
    start, done, steps, shown = time.monotonic(), 0.0, 0, 0.0
    while done < 1:
        warm = min(1.0, (steps + 1) / 100)
        lr = args.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        trainer.step(lr, generator)
        steps += 1
        if steps % 10 == 0:
            loss = trainer.loss.item() / math.log(2)  # waits for the device
            seconds = time.monotonic() - start
            done = steps / args.steps if args.steps else seconds / (60 * args.minutes)
            if done - shown >= 0.1 or done >= 1:
                shown = done
                held = bits_per_byte(model, [b[:4096] for b in held_out.values()], args.device)
                rate = steps * args.batch * args.length / seconds
                print(
                    f"{seconds:6.0f} s  step {steps:6d}  {rate:8.0f} bytes/s  "
                    f"train {loss:.4f}  held out {held:.4f} bits per byte",
                    flush=True,
                )

    args.out.parent.mkdir(parents=True, exist_ok=True)
    model.save(args.out)
    model = TorchRwkv.from_file(args.out).to(args.device)
    held = bits_per_byte(model, list(held_out.values()), args.device)
    excerpt = bits_per_byte(model, [held_out[i] for i in EXCERPT_BLOCKS], args.device)
    rest = bits_per_byte(
        model, [b for i, b in held_out.items() if i not in EXCERPT_BLOCKS], args.device
    )
    print(f"{args.out}: {os.path.getsize(args.out)} bytes, {steps} steps")
    print(f"held out, float16 weights: {held:.4f} bits per byte on all {len(held_out)} blocks,")
    print(f"  {excerpt:.4f} on those of held_out.txt, {rest:.4f} on the others")


if __name__ == "__main__":
    main()
