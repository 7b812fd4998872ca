# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
import pathlib
import sys

import pytest
import statepool

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
from daemon_process import Daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("daemon")).start()
    yield daemon
    assert daemon.process.poll() is None, f"the daemon died; {daemon.log_tail()}"
    daemon.stop()


@pytest.fixture(scope="session")
def pool(daemon):
    with statepool.connect(daemon.unix_address) as pool:
        yield pool
