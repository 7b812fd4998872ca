# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
import itertools

import pytest

from daemon_process import Daemon

_numbers = itertools.count(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "rpc(method, ...): the test calls these RPCs, successfully")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A daemon for all tests of a file; each uses names of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon")).start()
    yield daemon
    assert daemon.process.poll() is None, f"the daemon died; {daemon.log_tail()}"
    daemon.stop()


@pytest.fixture
def own_daemon(tmp_path):
    """A daemon for one test, which may stop, kill and start() it again."""
    daemon = Daemon(tmp_path).start()
    yield daemon
    if daemon.process is not None:
        daemon.stop()


@pytest.fixture
def name(request):
    """A name that no other test uses."""
    return f"{request.node.originalname}/{next(_numbers)}"
