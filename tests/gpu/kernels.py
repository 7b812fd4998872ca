# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The kernels' tests, also under compute-sanitizer, and their benchmark: programs' output as lines of the contract."""
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess

import harness

# What is large, or wants an error of CUDA's, is left to the run without a sanitizer.
FEW = "-*SixtyFour*:*Beyond*:*NoMemory*:*Captured*:*RoundEvery*:*BatchesOf*:*ManyImages*"
ERROR_EXIT_CODE, CANNOT_START = 9, 127  # compute-sanitizer's as we ask for it; the dynamic linker's
LARGE = ("mamba-2.8b", "qwen3-next", "rwkv-7")
BATCH_MIN = 64  # of a large model that is 1 GB moved, which goals want
GOALS = {"gather": 0.90, "scatter": 0.90, "scatter_and_hash": 0.90, "hash": 0.70}
BASELINES = {"hash": "a kernel that only reads"}
COPY_BASELINE = "cudaMemcpy device to device"


# ------------------------------------------------------------------------------------------------------------ programs

def run_program(command, context, log):
    """Runs a program, what it prints to `log`; gives its exit status. It has the time that context.seconds_left() tells."""
    seconds = context.seconds_left()
    with log.open("wb") as output, \
            harness.process(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True) as child:
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise harness.NotMeasurable(f"{command[0]} took more than {seconds:.0f} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # what a sanitizer has started, too


def counted_tests(report):
    """(tests run, those that failed) of GoogleTest's report, (0, 0) if it did not come to write one."""
    if not report.exists():
        return 0, 0
    counted = json.loads(report.read_text())
    return counted["tests"] - counted.get("disabled", 0), counted["failures"] + counted["errors"]


def run_tests(context, program, few, before=()):
    """Runs gpu_kernels_test; gives (tests, failed, exit status, output)."""
    log, report = context.workspace / "log", context.workspace / "report.json"
    report.unlink(missing_ok=True)
    command = [*before, program, "--gtest_brief=1", f"--gtest_output=json:{report}", f"--gtest_random_seed={context.seed}"]
    status = run_program([*command, *[f"--gtest_filter={FEW}"] * few], context, log)
    output = log.read_text(errors="replace")
    tests, failed = counted_tests(report)
    if status != 0:
        harness.note(output[-6000:])
    return tests, failed, status, output


# -------------------------------------------------------------------------------------------------------------- pieces

def measure_tests(context, program=None):
    """Broken off, as by a CUDA error that is fatal, is a failure: what must be 0 is the tests that did not pass."""
    tests, failed, status, _ = run_tests(context, program or context.program("gpu_kernels_test"), context.quick)
    wrong = max(failed, int(status != 0))
    if tests == 0 and status in (0, CANNOT_START):
        raise harness.NotMeasurable(f"gpu_kernels_test ended with {status} and has run no test")
    return [{"name": "gpu_kernels_test", "value": wrong, "unit": "tests failed", "n": tests, "goal": 0}]


def measure_program(name):
    """A piece that runs a program of tests."""
    def measure(context):
        tests, failed, status, _ = run_tests(context, context.program(name), False)
        if tests == 0 and status in (0, CANNOT_START):
            raise harness.NotMeasurable(f"{name} ended with {status} and has run no test")
        return [{"name": name, "value": max(failed, int(status != 0)), "unit": "tests failed", "n": tests, "goal": 0}]
    return measure


def measure_sanitizer(tool):
    """A piece that runs the tests under one of compute-sanitizer's tools."""
    def measure(context):
        sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
        if sanitizer is None:
            raise harness.NotMeasurable("compute-sanitizer is neither in PATH nor in /usr/local/cuda/bin; it comes with the CUDA toolkit")
        before = [sanitizer, "--tool", tool, "--error-exitcode", ERROR_EXIT_CODE, "--print-limit", "5"]
        tests, failed, status, output = run_tests(context, context.program("gpu_kernels_test"), True, before)
        return [sanitizer_line(tool, tests, failed, status, output)]
    return measure


def sanitizer_line(tool, tests, failed, status, output):
    if "Device not supported" in output:
        raise harness.NotMeasurable(f"compute-sanitizer's {tool} does not support this device")
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", output)
    if not summaries or (tests == 0 and status == 0):
        raise harness.NotMeasurable(f"compute-sanitizer's {tool} ended with {status} and has judged nothing")
    found = max(int(summaries[-1]), int(status == ERROR_EXIT_CODE))
    return {"name": f"gpu_kernels_{tool}", "value": found, "unit": "errors found", "n": tests, "goal": 0, "tests_failed": failed,
            "ok": found == 0 and failed == 0 and status == 0}


def measure_bench(context):
    log = context.workspace / "log"
    command = [context.program("gpu_kernels_bench"), f"--seed={context.seed}", *["--quick"] * context.quick]
    status = run_program(command, context, log)
    output = log.read_text(errors="replace")
    if status != 0:
        raise harness.NotMeasurable(f"gpu_kernels_bench ended with {status}: {output[-2000:]}")
    return [bench_line(json.loads(line)) for line in output.splitlines()]


def bench_line(measured):
    """One line of the contract from one of gpu_kernels_bench: rates, of reading and writing for copies; the baseline's too."""
    figure, n = measured["figure"], measured["n"]
    if figure == "empty_kernel":
        return {"name": "gpu_empty_kernel", "value": measured["us"], "unit": "us", "n": n, "p50": measured["p50_us"],
                "p99": measured["p99_us"], "graph_us": measured["graph_us"]}
    def rate(field):
        return measured["bytes"] / measured[field] / 1e3
    goal = GOALS.get(figure) if measured["model"] in LARGE and measured["rows"] >= BATCH_MIN else None
    return {"name": f"gpu_{figure}_{re.sub(r'[^a-z0-9.-]+', '_', measured['model'].lower())}_{measured['rows']}",
            "value": rate("us"), "unit": "GB/s", "n": n, "p50": rate("p50_us"), "p99": rate("p99_us"), "baseline": rate("baseline_us"),
            "baseline_name": BASELINES.get(figure, COPY_BASELINE), "goal": goal, "goal_of": "ratio", "goal_is_least": True,
            "bytes": measured["bytes"], "us": measured["us"], "baseline_p50": rate("baseline_p50_us"),
            "graph_ratio": measured["baseline_graph_us"] / measured["graph_us"]}


