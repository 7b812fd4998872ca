# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Arenas in a GPU's memory: programs in Python as pieces, their lines as they print them."""
import json
import pathlib
import sys

import harness
import kernels

HERE = pathlib.Path(__file__).resolve().parent


def measure_check(program, last):
    """A piece: what this program prints, up to a line of the name `last`. Broken off is not measurable: only what it has judged counts."""
    def measure(context):
        log = context.workspace / "log"
        status = kernels.run_program([sys.executable, "-B", HERE / program, f"--seed={context.seed}", *["--quick"] * context.quick], context, log)
        output = log.read_text(errors="replace")
        if status not in (harness.OK, harness.FALLS_SHORT):
            raise harness.NotMeasurable(f"{program} ended with {status}: {output[-2000:]}")
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        if status != harness.OK:
            harness.note(output[-6000:])
        if not any(line["name"] == last for line in lines) or (status != harness.OK and all(line["ok"] for line in lines)):
            raise harness.NotMeasurable(f"{program} broke off: {output[-2000:]}")
        return lines

    return measure
