# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Figures gpu_peer_*: states that one GPU's arena stored, loaded into another GPU's. README.md says what they mean."""
import contextlib
import random

import gpu_worker as worker
import statepool
import stamped
import torch
from statepool import StoreItem

MODEL, ROWS, QUICK_ROWS = "mamba-2.8b", 64, 16


def main():
    options = worker.options_of(__doc__)
    rows = QUICK_ROWS if options.quick else ROWS
    rng = random.Random(options.seed)
    with statepool.connect(options.server, timeout=120) as pool, contextlib.ExitStack() as stack:
        layout = pool.register_layout(worker.MODELS[MODEL])
        names = [device.name for device in pool.capabilities().devices]
        arenas = [stack.enter_context(pool.open_arena(layout, rows=rows, device=name)) for name in names[:2]]
        views = [stamped.Rows(arena, layout) for arena in arenas]
        places = [arena.layer("state", 0).device for arena in arenas]
        nbytes, every = rows * layout.state_bytes, list(range(rows))
        theirs = [torch.ones(nbytes, dtype=torch.uint8, device=place) for place in places]
        loads, copies, wrong = [], [], 0
        for i in range(worker.N + 3):
            stamps = [rng.randrange(1, 1 << 40) for _ in every]
            order = rng.sample(every, rows)
            with torch.cuda.device(places[0]):
                views[0].write(every, stamps)
                arenas[0].store({row: StoreItem(f"peer/{i}/{row}", whole_row=True, durability="volatile") for row in every}, position=1)
            with torch.cuda.device(places[1]):
                def loaded(i=i, order=order):
                    arenas[1].load({row: f"peer/{i}/{source}" for row, source in enumerate(order)})

                loads.append(worker.took_us(loaded))
                wrong += len(views[1].wrong(every, [stamps[source] for source in order]))
                copies.append(worker.took_us(lambda: theirs[1].copy_(theirs[0])))
            pool.delete_many(f"peer/{i}/", if_count=rows)
        views.clear()
        rates, theirs_rates = ([nbytes / us / 1e3 for us in taken[3:]] for taken in (loads, copies))
        yield {"name": f"gpu_peer_load_{rows}", "value": worker.median(rates), "unit": "GB/s", "n": len(rates), "p50": worker.median(rates),
               "p99": worker.quantile(rates, 0.01), "best": max(rates), "baseline": worker.median(theirs_rates),
               "baseline_name": "torch's copy_ of as many bytes from one GPU to the other", "bytes": nbytes, "from": names[0], "to": names[1],
               "beside_copy_us": worker.median([(ours - copy) / rows for ours, copy in zip(loads[3:], copies[3:])])}
        yield {"name": "gpu_peer_wrong", "value": wrong, "unit": "rows", "n": rows * len(loads), "goal": 0}


worker.run(main)
