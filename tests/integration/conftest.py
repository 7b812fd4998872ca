# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
import importlib
import itertools
import subprocess
import sys
import types

import pytest

from daemon_process import REPOSITORY, Daemon

_numbers = itertools.count(1)
PROTO = "statepool/v1/statepool.proto"


def pytest_configure(config):
    config.addinivalue_line("markers", "rpc(method, ...): the test calls these RPCs, successfully")
    config.addinivalue_line("markers", "provokes((code, reason), ...): the test gets these errors")
    config.addinivalue_line("markers", "flags(flag, ...): the test wants a daemon of its own, with these")


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
def start(tmp_path):
    """start(*flags) starts a daemon for one test, on the same data each time."""
    daemons = []

    def start(*flags):
        daemons.append(Daemon(tmp_path, *flags).start())
        return daemons[-1]

    yield start
    for daemon in daemons:
        if daemon.process is not None:
            daemon.stop()


@pytest.fixture
def name(request):
    """A name that no other test uses."""
    return f"{request.node.originalname}/{next(_numbers)}"


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """Freshly generated modules: .pb, .grpc."""
    out = tmp_path_factory.mktemp("stubs")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{REPOSITORY / 'proto'}", f"--python_out={out}", f"--grpc_python_out={out}",
                    PROTO], check=True)
    for package in (out / "statepool", out / "statepool/v1"):
        (package / "__init__.py").touch()

    def forget():
        return {m: sys.modules.pop(m) for m in list(sys.modules) if m.split(".")[0] == "statepool"}

    ours = forget()  # the installed package has the same module names: out of the way while these are imported
    sys.path.insert(0, str(out))
    try:
        found = types.SimpleNamespace(pb=importlib.import_module("statepool.v1.statepool_pb2"),
                                      grpc=importlib.import_module("statepool.v1.statepool_pb2_grpc"))
    finally:
        sys.path.remove(str(out))
        forget()
        sys.modules.update(ours)
    assert found.pb.__file__.startswith(str(out))
    return found


@pytest.fixture
def pb(stubs):
    return stubs.pb
