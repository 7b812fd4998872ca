# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Keeps the GPU busy until it is ended: products of 4096 x 4096 matrices in bfloat16, of which one is always waiting behind the one that runs."""
import torch

a, b, out = (torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda") for _ in range(3))
enqueued = [torch.cuda.Event() for _ in range(4)]
for i in range(1 << 62):
    if i >= len(enqueued):
        enqueued[i % len(enqueued)].synchronize()
    for _ in range(4):
        torch.mm(a, b, out=out)
    enqueued[i % len(enqueued)].record()
    if i == 8:
        print("busy", flush=True)
