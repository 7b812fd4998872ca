# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The .proto is enough for a language that none of ours is written in: Ruby, with stubs made from proto/ alone, beside the Python package."""
import json
import random
import shutil
import subprocess

import pytest

import statepool
from daemon_process import REPOSITORY
from statepool import _wire
from statepool.layouts import Layout, Tensor

CLIENT = REPOSITORY / "tests/integration/second_language/client.rb"
PROTOS = ["statepool/v1/statepool.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"]
LAYOUT = Layout("their-model", (Tensor("s", [0], "uint8", {"x": (5 << 20) + 1}),))
THEIRS = random.Random(3).randbytes(LAYOUT.state_bytes)


@pytest.fixture(scope="module")
def facts(daemon, tmp_path_factory):
    """What the client in Ruby saw; it checks most by itself."""
    stubs = tmp_path_factory.mktemp("ruby")
    plugin = shutil.which("grpc_ruby_plugin")
    assert plugin and shutil.which("ruby"), "deploy/install-deps ruby-grpc installs what this needs"
    subprocess.run(["protoc", f"-I{REPOSITORY / 'proto'}", f"--ruby_out={stubs}", f"--grpc_out={stubs}", f"--plugin=protoc-gen-grpc={plugin}",
                    *PROTOS], check=True)
    with statepool.connect(daemon.address) as pool:
        pool.register_layout(LAYOUT)
        pool.set("theirs", THEIRS, 3, layout=LAYOUT)
        ran = subprocess.run(["ruby", "-I", stubs, CLIENT, daemon.address, "theirs"], capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        yield json.loads(ran.stdout)


def test_what_ruby_streamed_is_what_python_reads(facts, daemon):
    with statepool.connect(daemon.address, retries=0) as pool:
        state = pool.get("ruby/one")
        assert (state.position, state.attachment, state.revision) == (42, b"from ruby", facts["revision"])
        assert state.checksum == facts["checksum"] == _wire.checksum_of(state.data)
        assert pool.get("ruby/a").data == pool.get("ruby/b").data == state.data


def test_what_python_wrote_is_what_ruby_streamed(facts):
    assert facts["theirs"] == _wire.checksum_of(THEIRS) and facts["version"]


def test_a_broken_upload_went_on_where_the_daemon_said(facts):
    assert facts["went_on_at"] == 1 << 20


@pytest.mark.parametrize("what, code, reason, metadata", [
    ("miss", 5, "NEVER_CREATED", {}),
    ("conflict", 10, "REVISION_MISMATCH", {"field": "if_revision"}),
    ("length", 3, "BYTES_LENGTH_MISMATCH", {"field": "data", "actual": "5"}),
    ("children", 6, "NAME_EXISTS", {"field": "children[1]"}),
])
def test_errors_have_their_details(facts, what, code, reason, metadata):
    error = facts["errors"][what]
    assert (error["code"], error["domain"], error["reason"]) == (code, "statepool.v1", reason)
    assert metadata.items() <= error["metadata"].items()
