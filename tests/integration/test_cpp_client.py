# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The C++ client against the real daemon: cpp_client.cc, and cpp_gpu_copies.cc."""
import os
import re
import subprocess
import urllib.request

import pytest

from daemon_process import BINARY

TESTS = BINARY.parent / "tests" / "cpp_client"
GPU_COPIES = BINARY.parent / "tests" / "cpp_gpu_copies"
STATE_BYTES = 2_400_000


def moved(daemon):
    """How many states of cpp_client.cc the daemon copied from arenas, and to them."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{daemon.ready['metrics']}/metrics") as answer:
        text = answer.read().decode()
    return [int(sum(map(float, re.findall(rf'^statepool_transfer_bytes_total{{{ways}}} (\S+)$', text, re.M))) / STATE_BYTES)
            for ways in ('from="arena",to="hot"', 'from="hot",to="arena"')]


def run(daemon, tests, **environment):
    done = subprocess.run([TESTS, f"--gtest_filter={tests}"], env={**os.environ, "STATEPOOL_SERVER": daemon.unix_address, **environment},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_the_cpp_client_does_what_its_header_says(own_daemon, over):
    server = own_daemon.address if over == "tcp" else own_daemon.unix_address
    done = subprocess.run([TESTS], env={**os.environ, "STATEPOOL_SERVER": server}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_large_states_go_through_shared_memory(own_daemon):
    """Both Gets of 8 names, and their second Set, when the alias of their layout is known."""
    run(own_daemon, "*LaneAndMessageGiveTheSameAnswers")
    stored, loaded = moved(own_daemon)
    assert stored >= 8 and loaded == 16


def test_the_cpp_client_does_the_same_directly(start):
    daemon = start("--direct")
    run(daemon, "*", STATEPOOL_DIRECT="1")


def restarted(program, tests, daemon, **environment):
    """The exit status of a program that asks for restarts of the daemon, how many, and what it told."""
    told, restarts = [], 0
    environment = {**os.environ, "STATEPOOL_SERVER": daemon.unix_address, "STATEPOOL_RESTARTS": "1", **environment}
    with subprocess.Popen([program, f"--gtest_filter={tests}"], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            told.append(line)
            if line == "restart\n":
                daemon.kill()
                daemon.start()
                restarts += 1
                process.stdin.write("\n")
                process.stdin.flush()
    return process.returncode, restarts, "".join(told)


@pytest.mark.parametrize("direct", [False, True])
def test_arenas_the_lane_and_views_outlive_the_daemon_s_restart(start, direct):
    status, restarts, told = restarted(TESTS, "*Restart*", start(*["--direct"] if direct else []), **({"STATEPOOL_DIRECT": "1"} if direct else {}))
    assert (status, restarts) == (0, 6 if direct else 4), told


FAR = ("--direct", "--devices=far", "--chunk-bytes=65536")


def test_the_cpp_client_copies_in_the_order_of_a_gpu_s_streams(start):
    daemon = start(*FAR)
    done = subprocess.run([GPU_COPIES], env={**os.environ, "STATEPOOL_SERVER": daemon.unix_address, "STATEPOOL_METRICS": daemon.ready["metrics"]},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_gpu_s_copies_that_a_restart_overtakes(start):
    status, restarts, told = restarted(GPU_COPIES, "*Restart*", start(*FAR))
    assert (status, restarts) == (0, 3), told
