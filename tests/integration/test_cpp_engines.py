# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The C++ client's engine-shaped adapters against the real daemon: cpp_rnn_state.cc, cpp_mamba_cache_manager.cc and the README's example, over the host's memory and over
a GPU's that is made up, the daemon copying and the worker itself."""
import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

from daemon_process import BINARY

TESTS = BINARY.parent / "tests" / "cpp_engines"
DAEMONS = {"host": (), "host direct": ("--direct",), "far": ("--devices=far", "--chunk-bytes=65536"),
           "far direct": ("--direct", "--devices=far", "--chunk-bytes=65536")}


def test_the_readme_shows_what_is_run():
    repository = Path(__file__).parents[2]
    readme = (repository / "client/cpp/engines/README.md").read_text()
    source = (repository / "tests/integration/cpp_engines_example.cc").read_text()
    shown = re.search(r"```cpp\n.*?\n\n(.*?)```", readme, re.S)[1]
    assert shown == textwrap.dedent(re.search(r"  // ---- README\n(.*?)  // ---- README\n", source, re.S)[1])


def environment(daemon, flags):
    return {**os.environ, "STATEPOOL_SERVER": daemon.unix_address, **({"STATEPOOL_DIRECT": "1"} if "--direct" in flags else {})}


@pytest.mark.parametrize("flags", DAEMONS.values(), ids=DAEMONS.keys())
def test_engines_find_their_own_words_working(start, flags):
    daemon = start(*flags)
    done = subprocess.run([TESTS], env=environment(daemon, flags), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("flags", DAEMONS.values(), ids=DAEMONS.keys())
def test_engines_go_on_after_a_restart(start, flags):
    daemon = start(*flags)
    told, restarts = [], 0
    with subprocess.Popen([TESTS, "--gtest_filter=*Restart*"], env={**environment(daemon, flags), "STATEPOOL_RESTARTS": "1"}, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            told.append(line)
            if line == "restart\n":
                daemon.kill()
                daemon.start()
                restarts += 1
                process.stdin.write("\n")
                process.stdin.flush()
    assert (process.returncode, restarts) == (0, 3), "".join(told)
