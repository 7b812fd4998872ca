# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Several memories: devices, a warm one below them, the disk. Wherever a state has been, it is the same, bit by bit; and the daemon says where it is."""
import random
import re
import subprocess
import urllib.request

import pytest

import statepool
from daemon_process import BINARY, Daemon
from statepool.layouts import DTYPES, Layout, Tensor

LAYOUT = Layout("every-dtype", tuple(Tensor(dtype, [0, 1], dtype, {"head": 3, "value": 61, "key": 67}) for dtype in DTYPES))
STATES = 40


def image(n):
    """Any bits at all: floats that are NaNs, too."""
    return random.Random(n).randbytes(LAYOUT.state_bytes)


@pytest.fixture(params=["far", "far,far"])
def small(request, tmp_path):
    """A daemon with room for a third of the states, a sixth below, and the disk; nothing is recorded by itself."""
    devices = request.param.count("far")
    hot = LAYOUT.state_bytes * STATES // 3 // devices
    daemon = Daemon(tmp_path, f"--devices={request.param}", f"--hot-bytes={hot}", f"--warm-bytes={LAYOUT.state_bytes * STATES // 6}",
                    "--chunk-bytes=65536", "--default-durability=volatile").start()
    yield daemon
    daemon.stop()


def metrics(daemon):
    """{series with its labels: value}"""
    text = urllib.request.urlopen(f"http://{daemon.ready['metrics']}/metrics", timeout=10).read().decode()
    return {m[1]: float(m[2]) for m in re.finditer(r"^(statepool_\S+) (\S+)$", text, re.MULTILINE)}


def moved(daemon, source, target):
    return metrics(daemon).get(f'statepool_transfer_bytes_total{{from="{source}",to="{target}"}}', 0)


def test_states_of_every_dtype_take_every_way_and_are_what_they_were(small):
    with statepool.connect(small.address) as pool:
        pool.register_layout(LAYOUT, "all")
        for n in range(STATES):
            pool.create("all", f"seq/{n}")
            pool.set(f"seq/{n}", image(n), n)
        tiers = [pool.describe(f"seq/{n}").tier for n in range(STATES)]
        assert set(tiers) == {"hot", "warm", "cold"} and tiers[-1] == "hot", tiers
        assert moved(small, "hot", "warm") > 0 and moved(small, "warm", "cold") + moved(small, "hot", "cold") > 0
        last = None
        for device in small.ready["devices"]:
            with pool.open_arena("all", rows=2, device=device) as arena:  # the way up to the device, and down again
                if last is not None:
                    arena.load({0: f"copy/{last}"})  # it was stored on the other device a moment ago
                for n in sorted(range(STATES), key=lambda n: pool.describe(f"seq/{n}").tier, reverse=True):  # warm ones first
                    arena.load({1: f"seq/{n}"})
                    arena.store({1: f"copy/{n}"}, position=n)
                last = n
        assert moved(small, "warm", "hot") > 0 and moved(small, "cold", "hot") > 0
        for n in random.Random(1).sample(range(STATES), STATES):  # by message, from where it is
            assert bytes(pool.get(f"seq/{n}").data) == image(n), n
            assert bytes(pool.get(f"copy/{n}").data) == image(n), n
        assert moved(small, "cold", "warm") > 0
        if len(small.ready["devices"]) > 1:
            assert moved(small, "hot", "hot") > 0


def test_a_read_by_message_leaves_a_warm_state_where_it_is(small):
    with statepool.connect(small.address) as pool:
        pool.register_layout(LAYOUT, "all")
        for n in range(STATES):
            pool.create("all", f"seq/{n}")
            pool.set(f"seq/{n}", image(n), n)
        warm = next(n for n in range(STATES) if pool.describe(f"seq/{n}").tier == "warm")
        for _ in range(2):
            assert bytes(pool.get(f"seq/{warm}").data) == image(warm)
            assert pool.describe(f"seq/{warm}").tier == "warm"
        assert moved(small, "warm", "hot") == 0


def test_the_daemon_tells_its_devices(small):
    names = small.ready["devices"]
    assert names in (["far"], ["far:0", "far:1"])
    with statepool.connect(small.address) as pool:
        devices = pool.capabilities().devices
        assert [d.name for d in devices] == names and all(d.healthy for d in devices)
        pool.register_layout(LAYOUT, "all")
        with pool.open_arena("all", rows=1) as arena:
            assert arena.device == names[0]
        with pool.open_arena("all", rows=1, device=names[-1]) as arena:
            assert arena.device == names[-1]
            assert next(d for d in pool.capabilities().devices if d.name == names[-1]).used_bytes > 0
        with pytest.raises(statepool.InvalidArgument) as refused:
            pool.open_arena("all", rows=1, device="far:7")
        assert (refused.value.reason, refused.value.field) == ("INVALID_OPTION", "device") and names[-1] in str(refused.value)
        with pytest.raises(statepool.Conflict) as refused:  # a GPU of this process, which has none
            pool.open_arena("all", rows=1, device="cuda:0")
        assert refused.value.reason == "MAPPING_FAILED"
    told = metrics(small)
    for name in names:
        assert told[f'statepool_device_healthy{{device="{name}"}}'] == 1
        assert told[f'statepool_device_bytes{{device="{name}",state="free"}}'] > 0
        assert f'statepool_images_bytes{{tier="hot",device="{name}"}}' in told
    assert told['statepool_images_bytes{tier="warm",device="host"}'] == 0


@pytest.mark.parametrize("devices, why", [
    ("gpu", "is no device"),
    ("host,far", "several are GPUs by their UUIDs"),
    ("host,host", "several are GPUs by their UUIDs"),
    ("cuda,cuda", "several are GPUs by their UUIDs"),
    ("cuda:", "is no device"),
    ("cuda:GPU-1,", "is no device"),
    ("cuda:GPU-1,GPU-1", "is named twice"),
    ("cuda:GPU-1,host", "uuid|driver|no CUDA|no GPU"),
    (",".join(["far"] * 17), "at most 16"),
])
def test_a_list_of_devices_that_makes_no_sense_is_refused(tmp_path, devices, why):
    command = [str(BINARY), f"--data-dir={tmp_path / 'data'}", "--listen=127.0.0.1:0", "--metrics=", "--hot-bytes=64MiB", f"--devices={devices}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and re.search(why, done.stderr), done.stderr


def test_a_direct_lease_wants_one_device(tmp_path):
    command = [str(BINARY), f"--data-dir={tmp_path / 'data'}", "--listen=127.0.0.1:0", "--metrics=", "--hot-bytes=64MiB", "--devices=far,far", "--direct"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "--direct" in done.stderr and "one device" in done.stderr, done.stderr
