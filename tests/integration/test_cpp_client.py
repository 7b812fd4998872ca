# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The C++ client against the real daemon: cpp_client.cc."""
import os
import subprocess

import pytest

from daemon_process import BINARY

TESTS = BINARY.parent / "tests" / "cpp_client"


@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_the_cpp_client_does_what_its_header_says(own_daemon, over):
    server = own_daemon.address if over == "tcp" else own_daemon.unix_address
    done = subprocess.run([TESTS], env={**os.environ, "STATEPOOL_SERVER": server}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_arena_outlives_the_daemon_s_restart(own_daemon):
    environment = {**os.environ, "STATEPOOL_SERVER": own_daemon.unix_address, "STATEPOOL_RESTARTS": "1"}
    told, restarts = [], 0
    with subprocess.Popen([TESTS, "--gtest_filter=*Restart*"], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            told.append(line)
            if line == "restart\n":
                own_daemon.kill()
                own_daemon.start()
                restarts += 1
                process.stdin.write("\n")
                process.stdin.flush()
    assert (process.returncode, restarts) == (0, 1), "".join(told)
