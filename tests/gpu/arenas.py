# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Arenas in a GPU's memory: arenas_check.py as a piece, its lines as it prints them."""
import json
import pathlib
import sys

import harness
import kernels

PROGRAM = pathlib.Path(__file__).resolve().parent / "arenas_check.py"


def measure(context):
    """Broken off is not measurable: only what it has judged counts."""
    log = context.workspace / "log"
    status = kernels.run_program([sys.executable, PROGRAM, f"--seed={context.seed}", *["--quick"] * context.quick], context, log)
    output = log.read_text(errors="replace")
    if status not in (harness.OK, harness.FALLS_SHORT):
        raise harness.NotMeasurable(f"arenas_check.py ended with {status}: {output[-2000:]}")
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if status != harness.OK:
        harness.note(output[-6000:])
    if not any(line["name"] == "gpu-arenas" for line in lines) or (status != harness.OK and all(line["ok"] for line in lines)):
        raise harness.NotMeasurable(f"arenas_check.py broke off: {output[-2000:]}")
    return lines
