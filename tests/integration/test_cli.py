# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The command line tool against the real daemon: every command that scripts rely on, their JSON, errors and exit codes, and what people see at
a terminal."""
import fcntl
import json
import os
import pty
import random
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time

import pytest

from daemon_process import BINARY, eventually

TOOL = BINARY.parent / "statepool"
RWKV = ["layers=3", "hidden_size=128"]
STATE_BYTES = 3 * (128 * 2 + 2 * 64 * 64 * 4 + 128 * 2)
LARGE = ["layers=40", "hidden_size=4096"]  # 40 * (2 * 8 KiB + 1 MiB), so it goes by stream
LARGE_BYTES = 40 * (2 * 4096 * 2 + 64 * 64 * 64 * 4)
TIMEOUT_S = 120


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, "an answer is one object on one line"
        return json.loads(self.out)

    @property
    def error(self):
        """The one error. It has the keys of the contract."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        error = json.loads(lines[0])
        assert set(error) - {"metadata"} == {"code", "reason", "field", "message", "retry_after_ms"}
        return error


class Cli:
    def __init__(self, server):
        self.server = server

    def command(self, *args):
        return [str(TOOL), f"--server={self.server}", *map(str, args)]

    def __call__(self, *args, stdin=b"", env=None):
        done = subprocess.run(self.command(*args), input=stdin, capture_output=True, timeout=TIMEOUT_S, env={**os.environ, **(env or {})})
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *args, **kwargs):
        return self(*args, "-o", "json", **kwargs).json

    def fails(self, code, reason, *args, **kwargs):
        """Exits with `code`, and nothing but one error with this reason."""
        result = self(*args, "-o", "json", **kwargs)
        assert (result.code, result.error["reason"]) == (code, reason), (result.out, result.err)
        assert result.out == ""
        return result.error


@pytest.fixture(scope="module")
def cli(daemon):
    return Cli(daemon.address)


@pytest.fixture(scope="module")
def layout(cli):
    return cli.ok("layout", "register", "--alias=small", "--preset=rwkv7", "--model-id=m", *RWKV)["layout"]


@pytest.fixture(scope="module")
def large(cli):
    return cli.ok("layout", "register", "--alias=large", "--preset=rwkv7", "--model-id=m", *LARGE)["layout"]


@pytest.fixture(scope="module")
def large_state(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "state.bin"
    path.write_bytes(random.Random(1).randbytes(LARGE_BYTES))
    return path


@pytest.fixture
def state(tmp_path):
    """Makes files of states: state(7) is always the same bytes."""
    def make(seed, n=STATE_BYTES):
        path = tmp_path / f"state-{seed}-{n}"
        path.write_bytes(random.Random(seed).randbytes(n))
        return path
    return make


def at_terminal(command, columns=80, only_stderr=False, env=None):
    """Runs a command at a terminal (or with only its stderr there) and gives its exit code, what it showed, and its stdout if that is no terminal."""
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if only_stderr else terminal, stderr=terminal,
                               env={**environment, **(env or {})})
    os.close(terminal)
    shown = bytearray()

    def read():
        while True:
            try:
                data = os.read(control, 65536)
            except OSError:  # EIO: nobody has the terminal any more
                return
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    out = process.communicate(timeout=TIMEOUT_S)[0]
    reader.join(TIMEOUT_S)
    os.close(control)
    return process.returncode, shown.decode(), (out or b"").decode()


# ---- layouts


def test_layouts_are_registered_listed_shown_and_deleted(cli, name, tmp_path):
    preset = {"model_id": "sha256:aa", "mamba2": {"layers": 2, "heads": 4, "head_dim": 16, "state_size": 32}}
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(preset))
    made = cli.ok("layout", "register", file, f"--alias={name}")
    assert made["aliases"] == [name] and made["layout"] == made["fingerprint"] and len(made["layout"]) == 64
    assert made["layout"] in [x["layout"] for x in cli.ok("layout", "list")["layouts"]]
    shown = cli.ok("layout", "show", name)
    assert shown["schema"]["model_id"] == "sha256:aa" and shown["state_bytes"] == made["state_bytes"]
    again = cli.ok("layout", "register", "-", stdin=json.dumps(shown).encode())
    assert again["layout"] == made["layout"]
    cli.fails(4, "LAYOUT_ALIAS_TAKEN", "layout", "register", f"--alias={name}", "--preset=rwkv7", "--model-id=other", *RWKV)
    cli.ok("seq", "create", name, f"--layout={name}")
    assert cli.fails(4, "LAYOUT_IN_USE", "layout", "delete", name)["field"] == "layout"
    cli.ok("seq", "delete", name)
    eventually(lambda: cli("layout", "delete", name).code == 0)
    assert cli.fails(3, "LAYOUT_UNKNOWN", "layout", "show", name)["code"] == "NOT_FOUND"
    assert cli.ok("layout", "delete", name, "--allow-missing") == {"name": name, "deleted": False}


@pytest.mark.parametrize("preset", [
    ("mamba1", "layers=2", "intermediate_size=96", "state_size=16"),
    ("mamba1", "layers=2", "intermediate_size=96", "state_size=16", "conv_kernel=3", "conv_dtype=float32"),
    ("mamba2", "layers=3", "heads=4", "head_dim=16", "state_size=32"),
    ("mamba2", "layers=3", "heads=4", "head_dim=16", "state_size=32", "groups=2", "recurrent_dtype=float16"),
    ("rwkv7", *RWKV),
    ("rwkv7", "layers=1", "hidden_size=96", "head_size=32", "wkv_dtype=bfloat16"),
    ("gated_delta_net", "layers=2", "key_heads=2", "key_dim=8", "value_heads=4", "value_dim=16", "--layer-ids=0,2"),
    ("kda", "layers=2", "heads=4", "head_dim=16", "separate_convs=true"),
    ("linear_attention", "layers=2", "heads=4", "head_dim=16"),
    ("short_conv", "channels=64", "conv_kernel=3", "--layer-ids=1-3,7"),
    ("rwkv4", "layers=2", "hidden_size=64"),
    ("rwkv4_seed", "layers=2", "hidden_size=64"),
    ("rwkv5", *RWKV),
    ("rwkv6", *RWKV),
])
def test_sizes_computed_without_a_daemon_are_those_of_the_daemon(cli, preset, tmp_path):
    absent = Cli("unix:/nonexistent/socket")
    computed = absent.ok("layout", "size", f"--preset={preset[0]}", *preset[1:])
    made = cli.ok("layout", "register", f"--preset={preset[0]}", "--model-id=size", *preset[1:])
    assert computed["state_bytes"] == made["state_bytes"] == sum(t["tensor_bytes"] for t in computed["tensors"])
    for tensor, spec in zip(computed["tensors"], made["schema"]["tensors"], strict=True):
        assert {k: tensor[k] for k in ("name", "kind", "dtype", "layers", "axes")} == {k: spec[k] for k in ("name", "kind", "dtype", "layers", "axes")}
    registered = cli.ok("layout", "size", made["layout"])
    assert registered == {"layout": made["layout"], **computed}
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(made))
    assert absent.ok("layout", "size", file) == computed
    absent.fails(6, "UNREACHABLE", "layout", "size", made["layout"])


def test_a_hybrid_is_registered_from_a_file(cli, name, tmp_path):
    conv = {"layer_ids": [0, 2], "short_conv": {"channels": 32, "conv_kernel": 3}}
    ssm = {"prefix": "m.", "layer_ids": [1], "mamba2": {"heads": 4, "head_dim": 16, "state_size": 8}}
    preset = {"model_id": name, "hybrid": {"parts": [conv, ssm]}, "initial": {"m.ssm": {"constant": 0.5}}}
    file = tmp_path / "preset.json"
    file.write_text(json.dumps(preset))
    made = cli.ok("layout", "register", file)
    assert [(t["name"], t["layers"]) for t in made["schema"]["tensors"]] == [("conv", [0, 2]), ("m.conv", [1]), ("m.ssm", [1])]
    assert cli.ok("layout", "size", file)["state_bytes"] == made["state_bytes"] == 2 * 2 * 32 * 2 + 3 * (64 + 16) * 2 + 4 * 16 * 8 * 4
    preset["hybrid"]["parts"][1].pop("prefix")
    file.write_text(json.dumps(preset))
    assert cli.fails(2, "INVALID_LAYOUT", "layout", "register", file)["field"] == 'preset.initial["m.ssm"]'


def test_models_that_are_known_have_their_sizes_without_a_daemon():
    models = Cli("unix:/nonexistent/socket").ok("layout", "size")["models"]
    assert {m["name"]: m["state_bytes"] for m in models}["Mamba-2.8b"] == 64 * 5120 * (3 * 2 + 16 * 4)
    assert [m["megabytes"] for m in models] == [round(m["state_bytes"] / 1e6, 2) for m in models]


def test_numbers_have_the_digits_that_they_need():
    absent = Cli("unix:/nonexistent/socket")
    text = absent("-o", "json", "layout", "size").out
    assert '"megabytes":0.08}' in text and '"megabytes":2.58}' in text and '"megabytes":912.61}' in text
    table = absent("layout", "size").out.splitlines()
    assert table[0].split() == ["NAME", "FAMILY", "LAYERS", "STATE", "MB"]
    assert table[1].endswith("  80.0 KiB    0.08") and table[2].endswith("   2.5 MiB    2.58") and table[-1].endswith(" 870.3 MiB  912.61")
    assert len({len(line) for line in table}) == 1 and len({line.rindex(".") for line in table[1:]}) == 1


def test_an_initial_value_is_shown_as_it_was_written(cli, tmp_path, name):
    file = tmp_path / "preset.json"
    values = (-1e30, 0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 123456789.0)
    for i, value in enumerate(values):
        axes = [{"name": "channel", "size": 2}]
        file.write_text(json.dumps({"model_id": f"{name}/{i}", "tensors": [{"name": "pp", "kind": "OTHER", "layers": [0], "dtype": "FLOAT64", "axes": axes,
                                                                           "initial": {"constant": value}}]}))
        shown = cli.ok("layout", "show", cli.ok("layout", "register", file)["layout"])
        assert shown["schema"]["tensors"][0]["initial"]["constant"] == value


def test_presets_are_described(cli):
    presets = cli.ok("layout", "presets")["presets"]
    assert [p["family"] for p in presets] == ["mamba1", "mamba2", "gated_delta_net", "kda", "linear_attention", "short_conv", "rwkv4", "rwkv4_seed", "rwkv5",
                                              "rwkv6", "rwkv7", "hybrid"]
    text = cli("layout", "presets").out
    assert "PARAMETER" in text and "statepool layout register FILE" in text


# ---- sequences


def test_a_state_is_set_got_rolled_back_and_described(cli, layout, name, state, tmp_path):
    first, second, out = state(1), state(2), tmp_path / "out"
    made = cli.ok("seq", "set", name, "--layout=small", f"--in={first}", "--position=10", "--durability=sync")
    assert {"name", "layout", "position", "revision", "durable_revision", "checksum", "exactness", "tier"} <= set(made)
    assert (made["name"], made["layout"], made["position"], made["exactness"]) == (name, layout, 10, "EXACT")
    assert made["durable_revision"] == made["revision"]
    cli.fails(4, "REVISION_MISMATCH", "seq", "set", name, f"--in={second}", "--position=20", "--if-revision=1")
    newer = cli.ok("seq", "set", name, "--in=-", "--position=20", f"--if-revision={made['revision']}", "--request-id=once", stdin=second.read_bytes())
    again = cli.ok("seq", "set", name, f"--in={second}", "--position=20", f"--if-revision={made['revision']}", "--request-id=once")
    assert again["replayed"] and again["revision"] == newer["revision"]

    got = cli.ok("seq", "get", name, f"--out={out}")
    assert out.read_bytes() == second.read_bytes()
    assert (got["checksum"], got["data_checksum"], got["data_bytes"]) == (newer["checksum"], newer["checksum"], STATE_BYTES)
    earlier = cli.ok("seq", "get", name, f"--out={out}", "--at=10")
    assert out.read_bytes() == first.read_bytes() and earlier["position"] == 10
    assert cli.ok("seq", "get", name, f"--out={out}", f"--version-id={made['version_id']}")["version_id"] == made["version_id"]
    cli.fails(3, "VERSION_MISMATCH", "seq", "get", name, f"--out={out}", "--version-id=999999999")
    before = out.read_bytes()
    assert cli.fails(3, "POSITION_MISMATCH", "seq", "get", name, f"--out={out}", "--at=11")["metadata"]["positions"]
    assert out.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out")) == ["out"]

    described = cli.ok("seq", "describe", name)
    assert [v["position"] for v in described["history"]] == [20, 10]
    assert described["rollback_tokens"] == 0
    assert cli.fails(4, "HISTORY_TOO_SHORT", "seq", "rollback", name, "--tokens=1")["metadata"]["available"] == "0"
    cli.fails(2, "USAGE", "seq", "rollback", name)
    cli.fails(2, "USAGE", "seq", "rollback", name, "--tokens=1", "--position=10")
    assert cli.ok("seq", "rollback", name, "--tokens=0")["position"] == 20
    back = cli.ok("seq", "rollback", name, "--position=10")
    assert back["position"] == 10 and back["checksum"] == made["checksum"]
    assert cli.ok("seq", "flush", name)["names"] == 1
    assert cli.ok("seq", "describe", name)["durable_revision"] == back["revision"]


def test_ranges_of_tokens(cli, layout, name, state):
    def now(answer):
        return [answer.get(key) for key in ("done", "deleted", "position", "revision")]

    for position in (10, 11, 14):
        revision = cli.ok("seq", "set", name, "--layout=small", f"--in={state(position)}", f"--position={position}")["revision"]
    assert now(cli.ok("seq", "remove-range", name, "--begin=3", "--end=9")) == [True, False, 14, revision]
    refused = cli("seq", "remove-range", name, "--begin=12", "-o", "json")
    assert (refused.code, refused.err, now(json.loads(refused.out))) == (3, "", [False, False, 14, revision])
    assert cli.ok("seq", "remove-range", name, "--begin=11")["position"] == 11
    moved = cli.ok("seq", "renumber", name, "--begin=9", "--add=-2")
    assert [v["position"] for v in moved["history"]] == [9, 8] and moved["exactness"] == "EDITED" and moved["rollback_tokens"] == 1
    assert cli.ok("seq", "renumber", name, "--divide=4")["position"] == 3
    cli.fails(2, "INVALID_POSITION", "seq", "renumber", name, "--add=-3")
    cli.fails(2, "USAGE", "seq", "renumber", name)
    cli.fails(2, "USAGE", "seq", "renumber", name, "--add=1", "--divide=2")
    for unsaid in ([], ["--end=2"], ["--allow-missing"]):
        cli.fails(2, "USAGE", "seq", "remove-range", name, *unsaid)
    assert cli.ok("seq", "describe", name)["position"] == 3
    assert cli.ok("seq", "remove-range", name, "--begin=0") == {"done": True, "deleted": True}
    cli.fails(3, "DELETED", "seq", "remove-range", name, "--begin=0")
    assert cli.ok("seq", "remove-range", name, "--begin=0", "--allow-missing") == {"done": True, "deleted": False}


def test_names_to_keep(cli, layout, name):
    for child in "abc":
        cli.ok("seq", "create", f"{name}/{child}", "--layout=small")
    assert cli.ok("seq", "delete", f"--prefix={name}/", "--if-count=1", "--keep", f"{name}/a", f"{name}/c")["names"] == [f"{name}/b"]
    assert [s["name"] for s in cli.ok("seq", "list", f"--prefix={name}/")["sequences"]] == [f"{name}/a", f"{name}/c"]
    for wrong in ([name, "--keep"], [f"--prefix={name}/", "--keep"], [f"--prefix={name}/", f"{name}/a"]):
        cli.fails(2, "USAGE", "seq", "delete", *wrong)


def test_bytes_go_to_stdout_alone(cli, layout, name, state):
    cli.ok("seq", "set", name, "--layout=small", f"--in={state(3)}", "--position=1")
    done = subprocess.run(cli.command("seq", "get", name, "--out=-", "-o", "json"), capture_output=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout == state(3).read_bytes()


def test_an_attachment_comes_back(cli, layout, name, state, tmp_path):
    (tmp_path / "logits").write_bytes(b"\x00logits")
    info = cli.ok("seq", "set", name, "--layout=small", f"--in={state(3)}", "--position=1", f"--attachment={tmp_path / 'logits'}")
    assert info["attachment_bytes"] == 7
    cli.ok("seq", "get", name, "--out=/dev/null", f"--attachment={tmp_path / 'copy'}")
    assert (tmp_path / "copy").read_bytes() == b"\x00logits"


def test_wrong_bytes_are_refused(cli, layout, name, state):
    assert cli.fails(2, "BYTES_LENGTH_MISMATCH", "seq", "set", name, "--layout=small", f"--in={state(1, 100)}", "--position=1")["field"] == "data"
    cli.fails(2, "CHECKSUM_MISMATCH", "seq", "set", name, "--layout=small", f"--in={state(1)}", "--position=1", "--checksum=0123456789abcdef")
    cli.fails(3, "LAYOUT_UNKNOWN", "seq", "set", name, "--layout=no-such", f"--in={state(1)}", "--position=1")
    cli.fails(2, "MISSING_FIELD", "seq", "set", name, f"--in={state(1)}", "--position=1")
    cli.fails(3, "NEVER_CREATED", "seq", "describe", name)


def test_a_part_of_a_state_is_got_and_set(cli, layout, name, state, tmp_path):
    whole = state(1).read_bytes()
    shift, wkv = 128 * 2, 2 * 64 * 64 * 4
    layer = [whole[3 * shift + i * wkv:3 * shift + (i + 1) * wkv] for i in range(3)]
    out = tmp_path / "out"
    made = cli.ok("seq", "set", name, "--layout=small", f"--in={state(1)}", "--position=5")
    got = cli.ok("seq", "get", name, f"--out={out}", "--tensors=wkv", "--layers=0,2")
    assert out.read_bytes() == layer[0] + layer[2]
    assert got["checksum"] == made["checksum"] != got["data_checksum"] and got["data_bytes"] == 2 * wkv
    cli.ok("seq", "get", name, f"--out={out}", "--layers=1-2")
    assert out.read_bytes() == whole[shift:3 * shift] + layer[1] + layer[2] + whole[-2 * shift:]

    part = state(9, wkv)
    cli.fails(2, "MISSING_FIELD", "seq", "set", name, f"--in={part}", "--position=5", "--tensors=wkv", "--layers=1")
    edited = cli.ok("seq", "set", name, f"--in={part}", "--position=5", "--tensors=wkv", "--layers=1", f"--if-revision={made['revision']}")
    assert edited["exactness"] == "EDITED"
    cli.ok("seq", "get", name, f"--out={out}")
    assert out.read_bytes() == whole[:3 * shift + wkv] + part.read_bytes() + whole[3 * shift + 2 * wkv:]
    cli.fails(2, "INVALID_OPTION", "seq", "get", name, f"--out={out}", "--tensors=no-such")
    cli.fails(2, "USAGE", "seq", "get", name, f"--out={out}", "--layers=3-1")


def test_forks_point_at_their_sources_version(cli, layout, name, state):
    made = cli.ok("seq", "set", name, "--layout=small", f"--in={state(1)}", "--position=5")
    fork = cli.ok("seq", "fork", name, f"{name}/a", f"{name}/b")
    assert [c["name"] for c in fork["children"]] == [f"{name}/a", f"{name}/b"] and fork["version_id"] == made["version_id"]
    many = cli.ok("seq", "fork", name, "--count=5", f"--prefix={name}/beam", "--durability=volatile", "--at=5")
    assert [c["name"] for c in many["children"]] == [f"{name}/beam{i}" for i in range(5)] and many["durability"] == "VOLATILE"
    assert cli.fails(4, "NAME_EXISTS", "seq", "fork", name, f"{name}/c", f"{name}/a")["field"] == "children[1]"
    cli.fails(3, "NEVER_CREATED", "seq", "describe", f"{name}/c")
    listed = cli.ok("seq", "list", f"--prefix={name}")["sequences"]
    assert [s["name"] for s in listed] == sorted([name, f"{name}/a", f"{name}/b", *(f"{name}/beam{i}" for i in range(5))])
    assert {s["checksum"] for s in listed} == {made["checksum"]}
    assert len(cli.ok("seq", "list", f"--prefix={name}", "--limit=3")["sequences"]) == 3


def test_several_names_give_a_list_and_an_error_for_each_that_failed(cli, layout, name):
    made = cli("seq", "create", f"{name}/a", f"{name}/b", "--layout=small", "-o", "json").json
    assert [s["position"] for s in made["sequences"]] == [0, 0]
    result = cli("seq", "describe", f"{name}/a", f"{name}/no", f"{name}/b", "-o", "json")
    assert result.code == 3 and result.error["reason"] == "NEVER_CREATED" and f"{name}/no" in result.error["message"]
    assert [s["name"] for s in json.loads(result.out)["sequences"]] == [f"{name}/a", f"{name}/b"]


# ---- expiry and deletes, for each kind


def tokens_file(tmp_path, n, seed=0):
    path = tmp_path / f"tokens-{n}-{seed}"
    path.write_text("\n".join(str((seed * 1000003 + i) % 2**32) for i in range(n)))
    return path


@pytest.fixture(params=["seq", "snapshot", "prefix"])
def named(request, cli, layout, name, state, tmp_path):
    """(kind, its name) of something that is there."""
    cli.ok("seq", "set", name, "--layout=small", f"--in={state(1)}", "--position=4")
    if request.param == "seq":
        return "seq", name
    if request.param == "snapshot":
        return "snapshot", cli.ok("snapshot", "create", name, f"{name}@s")["name"]
    made = cli.ok("prefix", "publish", name, "--layout=small", f"--tokens={tokens_file(tmp_path, 4)}", f"--extra-key={name}")
    return "prefix", made["prefix"]


def test_ttl_and_touch_change_when_a_name_expires(cli, named):
    kind, name = named
    before = cli.ok(kind, "describe", name)
    assert "expire_time" not in cli.ok(kind, "touch", name)
    info = cli.ok(kind, "ttl", name, "--ttl=1h")
    assert info["ttl"] == "3600s" and info["revision"] == before["revision"]
    first = cli.ok(kind, "describe", name)["expire_time"]
    assert cli.ok(kind, "touch", name)["expire_time"] > first
    assert cli.ok(kind, "ttl", name, "--expire-at=2026-12-31T12:00:00Z")["expire_time"] == "2026-12-31T12:00:00Z"
    cli.fails(4, "REVISION_MISMATCH", kind, "ttl", name, "--never-expire", f"--if-revision={before['revision'] + 1}")
    assert "expire_time" not in cli.ok(kind, "ttl", name, "--never-expire", f"--if-revision={before['revision']}")
    cli.fails(2, "USAGE", kind, "ttl", name)
    cli.fails(2, "USAGE", kind, "ttl", name, "--ttl=1h", "--never-expire")
    cli.ok(kind, "ttl", name, "--ttl=10ms")
    eventually(lambda: cli(kind, "describe", name).code == 3)
    assert cli.fails(3, "EXPIRED", kind, "touch", name)["code"] == "NOT_FOUND"


def test_a_deleted_name_is_gone(cli, named):
    kind, name = named
    revision = cli.ok(kind, "describe", name)["revision"]
    cli.fails(4, "REVISION_MISMATCH", kind, "delete", name, f"--if-revision={revision + 1}")
    assert cli.ok(kind, "delete", name, f"--if-revision={revision}") == {"name": name, "deleted": True}
    cli.fails(3, "DELETED", kind, "delete", name)
    assert cli.ok(kind, "delete", name, "--allow-missing")["deleted"] is False


def test_names_are_deleted_by_prefix_after_a_preview(cli, layout, name, state):
    cli.ok("seq", "set", f"{name}/x", "--layout=small", f"--in={state(1)}", "--position=4")
    cli.ok("seq", "fork", f"{name}/x", "--count=9", f"--prefix={name}/x/")
    cli.ok("seq", "create", f"{name}/y", "--layout=small")
    preview = cli.ok("seq", "delete", f"--prefix={name}/x", "--preview")
    assert (preview["matched"], preview["deleted"], preview["state_bytes"]) == (10, 0, STATE_BYTES)
    assert preview["names"] == [f"{name}/x", *(f"{name}/x/{i}" for i in range(9))]
    assert cli.fails(4, "COUNT_MISMATCH", "seq", "delete", f"--prefix={name}/x", "--if-count=9")["metadata"]["count"] == "10"
    assert cli.ok("seq", "delete", f"--prefix={name}/x", "--if-count=10")["deleted"] == 10
    assert [s["name"] for s in cli.ok("seq", "list", f"--prefix={name}")["sequences"]] == [f"{name}/y"]
    cli.fails(2, "MISSING_FIELD", "seq", "delete", "--prefix=")
    for wrong in (["seq", "delete"], ["seq", "delete", "a", "--prefix=b"], ["seq", "delete", "a", "--preview"],
                  ["seq", "delete", "--prefix=a", "--allow-missing"], ["seq", "delete", "--all", "--if-revision=1"]):
        cli.fails(2, "USAGE", *wrong)


def test_all_of_a_kind_go_only_with_all(own_daemon, state):
    cli = Cli(own_daemon.unix_address)
    cli.ok("layout", "register", "--alias=small", "--preset=rwkv7", "--model-id=m", *RWKV)
    cli.ok("seq", "create", "a", "b", "--layout=small")
    cli.ok("snapshot", "create", "a", "s")
    assert cli.ok("snapshot", "delete", "--all")["names"] == ["s"]
    assert cli.ok("seq", "delete", "--all", "--preview")["matched"] == 2
    assert cli.ok("seq", "delete", "--all", "--if-count=2")["deleted"] == 2
    assert cli.ok("seq", "list") == {"sequences": []}


# ---- snapshots and prefixes


def test_a_snapshot_is_made_listed_and_restored(cli, layout, name, state):
    made = cli.ok("seq", "set", name, "--layout=small", f"--in={state(1)}", "--position=4")
    snapshot = cli.ok("snapshot", "create", name, f"{name}@s", "--durability=sync")
    assert snapshot["kind"] == "snapshot" and snapshot["version_id"] == made["version_id"] and snapshot["durability"] == "SYNC"
    cli.fails(4, "NAME_EXISTS", "snapshot", "create", name, f"{name}@s")
    cli.ok("seq", "set", name, f"--in={state(2)}", "--position=8")
    restored = cli.ok("snapshot", "restore", f"{name}@s", name)
    assert (restored["position"], restored["checksum"]) == (4, made["checksum"])
    assert cli.ok("snapshot", "restore", f"{name}@s", f"{name}/new")["checksum"] == made["checksum"]
    assert [s["name"] for s in cli.ok("snapshot", "list", f"--prefix={name}")["snapshots"]] == [f"{name}@s"]
    assert cli.ok("seq", "get", f"{name}@s", "--from-snapshot", "--out=/dev/null")["kind"] == "snapshot"


def test_a_prefix_is_found_by_its_tokens_key_and_salt_alone(cli, layout, name, state, tmp_path):
    cli.ok("seq", "set", name, "--layout=small", f"--in={state(1)}", "--position=6")
    tokens, longer = tokens_file(tmp_path, 6), tokens_file(tmp_path, 9)
    key = [f"--extra-key={name}", "--salt=user 1"]
    made = cli.ok("prefix", "publish", name, "--layout=small", f"--tokens={tokens}", *key)
    assert not made["already_published"] and re.fullmatch("[0-9a-f]{32}", made["prefix"]) and made["position"] == 6
    assert cli.ok("prefix", "publish", name, "--layout=small", f"--tokens={tokens}", *key)["already_published"]
    hit = cli.ok("prefix", "match", "--layout=small", f"--tokens={longer}", *key)
    assert (hit["prefix"], hit["position"]) == (made["prefix"], 6) and len(hit["matches"]) == 1
    for other in ([f"--extra-key={name}"], ["--salt=user 1"], [f"--extra-key={name}", "--salt=user 2"]):
        miss = cli("prefix", "match", "--layout=small", f"--tokens={longer}", *other, "-o", "json")
        assert (miss.code, miss.error["reason"]) == (3, "NEVER_PUBLISHED")
        assert json.loads(miss.out)["matches"] == []
    beyond = cli("prefix", "match", "--layout=small", f"--tokens={tokens}", *key, "-o", "json")
    assert (beyond.code, beyond.error["reason"], json.loads(beyond.out)["nearest_published_position"]) == (3, "POSITION_MISMATCH", 6)
    fork = cli.ok("seq", "fork", made["prefix"], f"{name}/child", "--from-prefix")
    assert fork["position"] == 6
    assert made["prefix"] in [p["name"] for p in cli.ok("prefix", "list")["prefixes"]]
    cli.fails(4, "POSITION_MISMATCH", "prefix", "publish", name, "--layout=small", f"--tokens={longer}")


# ---- the daemon, errors and exit codes


def test_status_and_health(cli, daemon):
    status = cli.ok("status")
    assert status["incarnation"] == daemon.ready["incarnation"] and status["devices"][0]["healthy"]
    assert cli.ok("health") == {"status": "SERVING"}
    assert cli("health").out.split() == ["status", "SERVING"]


def test_the_server_may_come_from_the_environment(daemon):
    done = subprocess.run([TOOL, "health", "-o", "json"], capture_output=True, timeout=TIMEOUT_S, env={**os.environ, "STATEPOOL_SERVER": daemon.unix_address})
    assert json.loads(done.stdout) == {"status": "SERVING"}


def test_an_absent_daemon_is_unavailable():
    absent = Cli("unix:/nonexistent/socket")
    assert absent.fails(6, "UNREACHABLE", "status")["code"] == "UNAVAILABLE"
    absent.fails(6, "UNREACHABLE", "seq", "get", "a", "--out=/dev/null")


def test_a_full_pool_is_exhausted(own_daemon, state):
    cli = Cli(own_daemon.address)
    cli.ok("layout", "register", "--alias=huge", "--preset=rwkv7", "--model-id=m", "layers=40", "hidden_size=16384")
    assert cli.fails(5, "STATE_TOO_LARGE", "seq", "create", "a", "--layout=huge")["code"] == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("line", ["", "seq", "seq gte a", "seq get", "seq get a", "seq get a --out=x --bogus", "seq set a --in=x --position=ten", "-o xml status",
                                  "completion", "completion tcsh", "seq fork a", "layout register", "layout size a b", "layout register --preset=rwkv7 layers=1"])
def test_a_wrong_command_line_is_a_usage_error(cli, line):
    result = cli(*line.split())
    assert result.code == 2 and result.out == ""
    assert (result.error["code"], result.error["reason"]) == ("INVALID_ARGUMENT", "USAGE")


@pytest.mark.parametrize(("line", "part"), [
    ("seq renumber a --begin=0 --add=9223372036854775808", "--add is a whole number -9223372036854775808..9223372036854775807, not"),
    ("layout size --preset=rwkv7 layers=99999999999999999999", "layers is a whole number 1..4294967295, not"),
    ("layout size --preset=rwkv7 layers=1 hidden_size=64 layers=2", "layers is given twice"),
    ("layout size --preset=rwkv7 layers=1 hidden_size=64 --layer-ids=0-4294967295", "'0-4294967295' is 4294967296 layers, more than 65536"),
    ("layout size --preset=rwkv7 layers=1 hidden_size=64 --layer-ids=4294967296", "numbers 0..4294967295"),
    ("seq delete --all --prefix=a", "--prefix or --all, not both"),
])
def test_a_usage_error_names_its_cause(cli, line, part):
    assert part in cli.fails(2, "USAGE", *line.split())["message"]


def test_what_is_neither_a_file_nor_a_layout_is_told_so(cli, tmp_path):
    for operand, what in ((f"{tmp_path}/none.json", "no file"), (str(tmp_path), "a directory")):
        error = cli.fails(3, "LAYOUT_UNKNOWN", "layout", "size", operand)
        assert error["message"] == f"'{operand}' is {what}, and no layout that is registered; 'layout list' lists those"
        error = Cli("unix:/nonexistent").fails(6, "UNREACHABLE", "layout", "size", operand)
        assert error["message"].startswith(f"'{operand}' is {what}, so the daemon was asked")


def test_a_file_that_is_not_there_is_another_error(cli, layout, name):
    assert cli.fails(1, "FILE", "seq", "set", name, "--layout=small", "--in=/nonexistent", "--position=1")["field"] == "--in"
    cli.ok("seq", "create", name, "--layout=small")
    assert cli.fails(1, "FILE", "seq", "get", name, "--out=/nonexistent/x")["field"] == "--out"


def test_help_is_there_at_every_level():
    for words in ([], ["seq"], ["seq", "set"], ["layout", "size"], ["prefix", "delete"], ["completion"]):
        done = subprocess.run([TOOL, *words, "--help"], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Usage: statepool")
        assert "Example:" in done.stdout
    assert subprocess.run([TOOL, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S).stdout.startswith("statepool ")


def test_every_command_of_the_contract_is_there(cli):
    for group, commands in {"layout": "register from-hf presets list show size delete",
                            "seq": "create get set fork rollback remove-range renumber describe list touch ttl flush delete",
                            "snapshot": "create restore list describe touch ttl delete",
                            "prefix": "publish match list describe touch ttl delete"}.items():
        for command in commands.split():
            assert cli(group, command, "--help").code == 0, (group, command)


# ---- large states


def peak_rss_bytes(command, **kwargs):
    """Runs it to its successful end; the most memory it ever had."""
    process = subprocess.Popen(command, **kwargs)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_a_large_state_travels_in_little_memory(cli, large, large_state, name, tmp_path):
    out = tmp_path / "out"
    quiet = {"stdout": subprocess.DEVNULL}
    base = peak_rss_bytes(cli.command("health"), **quiet)
    room = 48 << 20
    assert peak_rss_bytes(cli.command("seq", "set", name, "--layout=large", f"--in={large_state}", "--position=1"), **quiet) - base < room
    assert peak_rss_bytes(cli.command("seq", "get", name, f"--out={out}"), **quiet) - base < room
    assert out.read_bytes() == large_state.read_bytes()
    with large_state.open("rb") as stdin:
        cat = subprocess.Popen(["cat"], stdin=stdin, stdout=subprocess.PIPE)
        peak_rss_bytes(cli.command("seq", "set", f"{name}/piped", "--layout=large", "--in=-", "--position=1"), stdin=cat.stdout, **quiet)
        cat.stdout.close()
        assert cat.wait() == 0
    assert cli.ok("seq", "describe", f"{name}/piped")["checksum"] == cli.ok("seq", "describe", name)["checksum"]


def test_a_large_state_of_wrong_length_is_refused_and_leaves_nothing(cli, large, large_state, name, tmp_path):
    short = tmp_path / "short"
    short.write_bytes(large_state.read_bytes()[:-65536])
    cli.fails(2, "BYTES_LENGTH_MISMATCH", "seq", "set", name, "--layout=large", f"--in={short}", "--position=1")
    cli.fails(3, "NEVER_CREATED", "seq", "describe", name)


class CuttingProxy:
    """Forwards connections to a daemon; cuts each after it carried `limit` bytes. Counts the cuts, and the bytes of all."""

    def __init__(self, address, limit):
        host, port = address.rsplit(":", 1)
        self.target, self.limit, self.cuts, self.carried = (host, int(port)), limit, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                a = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._forward, args=(a, socket.create_connection(self.target)), daemon=True).start()

    def _forward(self, a, b):
        other, carried = {a: b, b: a}, 0
        with a, b:
            while carried < self.limit:
                for end in select.select([a, b], [], [])[0]:
                    try:
                        data = end.recv(65536)
                        other[end].sendall(data)
                    except OSError:
                        return
                    carried += len(data)
                    self.carried += len(data)
                    if not data:
                        return
            self.cuts += 1


def test_transfers_go_on_after_broken_connections(cli, daemon, large, large_state, name, tmp_path):
    proxy = CuttingProxy(daemon.address, 15 << 20)
    broken = Cli(proxy.address)
    with proxy.listener:
        made = broken.ok("seq", "set", name, "--layout=large", f"--in={large_state}", "--position=1")
        assert proxy.cuts >= 2
        got = broken.ok("seq", "get", name, f"--out={tmp_path / 'out'}")
        assert proxy.cuts >= 4
    assert (tmp_path / "out").read_bytes() == large_state.read_bytes()
    assert got["checksum"] == made["checksum"]


def test_the_same_command_goes_on_after_it_was_killed(cli, daemon, large, large_state, name):
    proxy = CuttingProxy(daemon.address, 20 << 20)
    command = ("seq", "set", name, "--layout=large", f"--in={large_state}", "--position=1", "--request-id=upload")
    with proxy.listener:
        process = subprocess.Popen(Cli(proxy.address).command(*command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: proxy.cuts >= 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    counting = CuttingProxy(daemon.address, 1 << 40)
    with counting.listener:
        assert Cli(counting.address).ok(*command)["position"] == 1
        assert counting.carried < LARGE_BYTES - (10 << 20)
    assert cli.ok(*command)["replayed"]


# ---- at a terminal


def test_a_transfer_shows_its_progress_at_a_terminal_alone(cli, large, large_state, name, tmp_path):
    put = cli.command("seq", "set", name, "--layout=large", f"--in={large_state}", "--position=1", "-o", "json")
    code, shown, out = at_terminal(put, only_stderr=True)
    assert code == 0 and json.loads(out)["position"] == 1 and out.count("\n") == 1
    assert f"100%  {LARGE_BYTES / 2**20:.1f} MiB of {LARGE_BYTES / 2**20:.1f} MiB" in shown and "[###" in shown
    for line in re.split("[\r\n]+", shown.replace("\033[K", "")):
        assert len(line) < 80, line
    code, shown, out = at_terminal(cli.command("seq", "get", name, f"--out={tmp_path / 'out'}", "-o", "json"), only_stderr=True)
    assert code == 0 and "100%" in shown and json.loads(out)["name"] == name
    piped = cli("seq", "get", name, f"--out={tmp_path / 'out'}", "-o", "json")
    assert piped.code == 0 and piped.err == ""


def test_a_failed_transfer_leaves_its_error_alone_at_the_terminal(cli, large, large_state, name):
    code, shown, _ = at_terminal(cli.command("seq", "set", name, "--layout=large", f"--in={large_state}", "--position=1", "--checksum=0123456789abcdef"),
                                 only_stderr=True)
    assert code == 2
    last = shown.rsplit("\033[K", 1)[1]
    assert json.loads(last)["reason"] == "CHECKSUM_MISMATCH"


def test_tables_fit_the_terminal_and_are_whole_in_a_pipe(cli, layout, name):
    long = f"{name}/{'very-' * 30}long"
    cli.ok("seq", "create", long, f"{name}/short", "--layout=small")
    command = cli.command("seq", "list", f"--prefix={name}")
    for columns in (72, 100):
        code, shown, _ = at_terminal(command, columns=columns)
        lines = shown.splitlines()
        assert code == 0 and len(lines) == 3
        assert all(len(line) <= columns for line in lines), shown
        assert "…" in shown and "long" in shown and long not in shown and "/short" in shown
    assert long in at_terminal(command, columns=300)[1]
    assert long in at_terminal(command, columns=72, env={"COLUMNS": "300"})[1]
    piped = cli("seq", "list", f"--prefix={name}").out
    assert long in piped and "…" not in piped
    assert long in cli("seq", "list", f"--prefix={name}", env={"COLUMNS": "40"}).out


# ---- completion


def completions(*words):
    """What bash offers for the last of these words."""
    script = """
        source <("$TOOL" completion bash)
        complete -p statepool >/dev/null || exit 1
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _statepool
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", script, "bash", "statepool", *words], capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ, "TOOL": str(TOOL)})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_bash_completes_words_flags_choices_and_files(tmp_path):
    assert completions("") == ["layout", "seq", "snapshot", "prefix", "status", "health", "completion", "help"]
    assert completions("se") == ["seq"]
    assert completions("seq", "") == "create set get fork rollback remove-range renumber flush describe list touch ttl delete".split()
    assert completions("--server", "=", "x:1", "-o", "json", "layout", "s") == ["show", "size"]
    assert completions("seq", "get", "a", "--o") == ["--out=", "--output="]
    assert "--durability=" not in completions("seq", "get", "--")
    assert completions("seq", "set", "a", "--durability", "=") == ["sync", "write-behind", "volatile"]
    assert completions("seq", "set", "a", "--durability", "w") == ["write-behind"]
    assert completions("status", "-o", "") == ["table", "json"]
    assert completions("completion", "") == ["bash", "zsh", "fish"]
    (tmp_path / "state.bin").touch()
    assert completions("seq", "set", "a", "--in", "=", f"{tmp_path}/st") == [f"{tmp_path}/state.bin"]
    assert completions("layout", "register", f"{tmp_path}/st") == [f"{tmp_path}/state.bin"]
    assert completions("seq", "describe", "") == []


def test_the_scripts_are_the_shells_own_language(tmp_path):
    for shell in ("bash", "zsh", "fish"):
        script = tmp_path / shell
        script.write_text(subprocess.run([TOOL, "completion", shell], capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout)
        assert script.stat().st_size > 1000
        try:
            done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=TIMEOUT_S)
        except FileNotFoundError:
            continue  # a machine without this shell
        assert (done.returncode, done.stderr) == (0, "")
