# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Figures gpu_fork_*: a batch of rows that begin with one prefix, as a worker has them that continues one prompt many times. README.md says what they mean."""
import random

import gpu_worker as worker
import harness
import statepool
import stamped
import torch
from statepool import StoreItem

ROWS, QUICK_ROWS = 256, 64
MODEL = "mamba-2.8b"
TOKENS = 4096


def main():
    options = worker.options_of(__doc__)
    rows = QUICK_ROWS if options.quick else ROWS
    rng, missed = random.Random(options.seed), harness.Missed()
    with statepool.connect(options.server, timeout=120) as pool:
        layout = pool.register_layout(worker.MODELS[MODEL])
        state = torch.ones(layout.state_bytes, dtype=torch.uint8, device="cuda")
        wrong = checked = 0
        for mode in ("isolated", "direct"):
            with missed.one(f"gpu_fork_{rows}_{mode}"):
                arena = pool.open_arena(layout, rows=rows, direct=mode == "direct")
                view = stamped.Rows(arena, layout)
                every = list(range(rows))
                tokens = [rng.randrange(50_000) for _ in range(TOKENS)]
                stamp = rng.randrange(1, 1 << 30)
                view.write([0], [stamp])
                arena.store({0: StoreItem("fork/prompt", whole_row=True, any_revision=True)}, position=TOKENS)
                pool.publish_prefix(layout, tokens, "fork/prompt")

                def forked(i, tokens=tokens, arena=arena, view=view, every=every):
                    hit = pool.match_prefix(layout, tokens, TOKENS)
                    children = pool.fork_many(hit, [f"fork/{i}/{row}" for row in every])
                    arena.load(dict(zip(every, children)))

                copies = []

                def cloned(every=every, copies=copies):
                    for _ in every:
                        copies.append(state.clone())

                before = worker.pinned_slots(options.metrics)
                ours, clones = [], []
                for i in range(worker.N + 3):
                    view.write(every, [0] * rows)
                    worker.wait()
                    ours.append(worker.took_us(lambda i=i: forked(i)))
                    wrong, checked = wrong + len(view.wrong(every, [stamp] * rows)), checked + rows
                    clones.append(worker.took_us(cloned))
                    copies.clear()
                    pool.delete_many(f"fork/{i}/", if_count=rows)
                was_direct = worker.pinned_slots(options.metrics) > before
                del view
                arena.close()
                if mode == "direct" and not was_direct:
                    raise harness.NotMeasurable(worker.NOT_DIRECT)
                nbytes = rows * layout.state_bytes
                yield worker.times(f"gpu_fork_{rows}_{mode}", [us / 1e3 for us in ours[3:]], "ms", bytes=nbytes, baseline=worker.median(clones[3:]) / 1e3,
                                   baseline_name=f"{rows} torch.clone() of the same state", baseline_best=min(clones[3:]) / 1e3)
        yield {"name": "gpu_fork_wrong", "value": wrong, "unit": "rows", "n": checked, "goal": 0}
    missed.tell()


worker.run(main)
