# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Harnesses of other folders as pieces: their lines as they print them, in the order in which they come."""
import json
import pathlib
import sys

import harness
import kernels

TESTS = pathlib.Path(__file__).resolve().parents[1]


def measure_harness(folder, *arguments):
    """A piece that runs tests/FOLDER/run with these arguments. What it could not measure is raised after its lines."""
    def measure(context):
        log = context.workspace / "log"
        command = [sys.executable, "-B", TESTS / folder / "run", *arguments, f"--seed={context.seed}"]
        status = kernels.run_program(command, context, log)
        output = log.read_text(errors="replace").splitlines()
        lines = [json.loads(line) for line in output if line.startswith("{")]
        yield from lines
        said = "\n".join(line for line in output if not line.startswith("{"))
        short = not all(line["ok"] for line in lines)
        if status not in (harness.OK, harness.FALLS_SHORT) or (status == harness.FALLS_SHORT) != short or not lines:
            raise harness.NotMeasurable(f"tests/{folder}/run {' '.join(arguments)} ended with {status}: {said[-3000:]}")
        if short:
            harness.note(said[-6000:])
    return measure
