# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The figure gpu_crowd: many workers at once on a daemon that has room for two thirds of their states. README.md says what it means; gpu_crowd_worker.py is
one of them."""
import argparse
import collections
import contextlib
import json
import pathlib
import re
import subprocess
import sys
import urllib.request

import harness
import numpy as np
from gpu_crowd_worker import BOARD_ROWS, KINDS, LAYOUTS, OPERATIONS

LIVE_SHARE = 1.5          # of the budget, that the states of all names are together
# What must have happened, for each worker and second.
PER_WORKER_SECOND_MIN = {"operations": 10, "states_checked": 10, "spills": 0.5, "promotions": 0.5}


def moves(metrics):
    """What left the device for other tiers, and came back, so far: images spilled and demoted, bytes promoted."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=30) as answer:
        text = answer.read().decode()

    def counted(name):
        return sum(map(float, re.findall(rf"^{name} (\S+)$", text, re.M)))

    return {"spills": counted(r'statepool_evictions_total\{tier="(?:hot|warm)",reason="spilled"\}'),
            "demotions": counted(r'statepool_evictions_total\{tier="hot",reason="demoted"\}'),
            "promoted_bytes": counted(r'statepool_transfer_bytes_total\{from="(?:cold|warm)",to="hot"\}')}


def main():
    parser = argparse.ArgumentParser()
    for flag, kind in (("server", str), ("metrics", str), ("directory", pathlib.Path), ("devices", str), ("hot-bytes", int), ("workers", int), ("seconds", int),
                       ("seed", int)):
        parser.add_argument(f"--{flag}", type=kind, required=True)
    options = parser.parse_args()
    board = options.directory / "board"
    np.zeros((options.workers, len(LAYOUTS), BOARD_ROWS), np.int64).tofile(board)
    # A little above: what a worker is about to write is not there yet.
    live_bytes = int(1.1 * LIVE_SHARE * options.hot_bytes / options.workers)
    command = [sys.executable, "-B", pathlib.Path(__file__).with_name("gpu_crowd_worker.py"), f"--server={options.server}", f"--board={board}",
               f"--workers={options.workers}", f"--seed={options.seed}", f"--seconds={options.seconds}", f"--live-bytes={live_bytes}"]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(harness.process([*command, f"--number={number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
                   for number in range(options.workers)]
        for worker in workers:
            if not worker.stdout.readline():
                raise harness.NotMeasurable("a worker did not get ready")
        before = moves(options.metrics)
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        results = [worker.stdout.readline() for worker in workers]
        moved = {what: round(count - before[what]) for what, count in moves(options.metrics).items()}
    counts, errors = collections.Counter(), collections.Counter()
    ended = [json.loads(result) for result in results if result]
    for result in ended:
        counts.update(result["counts"])
        errors.update(result["errors"])
    largest = max(layout.state_bytes for layout, _, _ in LAYOUTS)
    counts.update({"operations": sum(counts[kind] for kind in OPERATIONS), "promotions": moved["promoted_bytes"] // largest} | moved)
    died = len(workers) - len(ended)
    line = {"name": "gpu_crowd", "value": sum(counts[kind] for kind in KINDS) + died, "unit": "violations", "n": counts["operations"], "goal": 0,
            "devices": options.devices, "workers": options.workers, "direct_workers": sum(result["direct"] for result in ended), "layouts": len(LAYOUTS),
            "seconds": options.seconds, "live_share": sum(result["live_bytes"] for result in ended) / options.hot_bytes, "died": died}
    line |= {field: counts[field] for field in (*KINDS, "operations", *OPERATIONS, "states_checked", "spills", "demotions", "promotions", "hits",
                                                "prefixes_gone", "refused")}
    print(json.dumps(line | {"errors": errors}), flush=True)
    least = {field: minimum * options.workers * options.seconds for field, minimum in PER_WORKER_SECOND_MIN.items()} | {"live_share": LIVE_SHARE}
    if short := [f"{field} {line[field]:g} < {minimum:g}" for field, minimum in least.items() if line[field] < minimum]:
        raise harness.NotMeasurable(f"too little happened: {', '.join(short)}")


if __name__ == "__main__":
    harness.run(main)
