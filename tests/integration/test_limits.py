# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""What happens at the limits: full pools, full disks' budgets, requests that are too large, damaged logs."""
import contextlib
import random
import socket
import threading
import time
import urllib.request

import pytest

import statepool
from daemon_process import Daemon, eventually

MIB = 1 << 20


def layout_of(pool, state_bytes, model_id="m"):
    tensor = statepool.layouts.Tensor("s", (0,), "uint8", {"x": state_bytes})
    return pool.register_layout(statepool.layouts.Layout(model_id=model_id, tensors=[tensor]), alias=model_id)


def bytes_of(n, state_bytes):
    return random.Random(n).randbytes(state_bytes)


@contextlib.contextmanager
def stalling_proxy(address):
    """Passes everything on to the daemon, and of its answers only the first 64 KiB."""
    host, port = address.split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    sockets = [listener]

    def pump(source, sink, limit):
        passed = 0
        with contextlib.suppress(OSError):
            while (data := source.recv(16384)) and (limit is None or passed < limit):
                sink.sendall(data)
                passed += len(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((host, int(port)))
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                sockets.extend([client, server])
                threading.Thread(target=pump, args=(client, server, None), daemon=True).start()
                threading.Thread(target=pump, args=(server, client, 65536), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for s in sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()


def metric(daemon, series):
    text = urllib.request.urlopen(f"http://{daemon.ready['metrics']}/metrics", timeout=10).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(series))


def test_a_pool_in_which_everything_is_pinned_is_refused_at_once_and_serves_again_later(start):
    size = 16 * MIB
    daemon = start(f"--hot-bytes={size}", f"--chunk-bytes={2 * MIB}")
    with statepool.connect(daemon.address, timeout=20, retries=0) as pool:
        layout = layout_of(pool, size)
        pool.set("a", bytes_of(1, size), position=1, layout=layout)
        with stalling_proxy(daemon.address) as address, statepool.connect(address, timeout=20, retries=0) as slow:
            reader = threading.Thread(target=lambda: pytest.raises(statepool.StatepoolError, slow.sequence("a").get), daemon=True)
            reader.start()
            eventually(lambda: metric(daemon, 'statepool_transfer_bytes_total{from="hot",to="client"}') > 0)
            began = time.monotonic()
            with pytest.raises(statepool.Exhausted) as error:
                pool.set("b", bytes_of(2, size), position=1, layout=layout)
            assert time.monotonic() - began < 5
            assert error.value.reason == "HOT_FULL" and error.value.retry_after > 0
            with pytest.raises(statepool.NotFound):
                pool.sequence("b").describe()
        reader.join(30)

        def set_b():
            try:
                return pool.set("b", bytes_of(2, size), position=1, layout=layout)
            except statepool.Exhausted:
                return None

        eventually(set_b, seconds=40)
        assert bytes(pool.sequence("b").get().data) == bytes_of(2, size)
        assert bytes(pool.sequence("a").get().data) == bytes_of(1, size)


def test_a_state_larger_than_the_hot_budget_is_refused_without_a_hint_to_retry(start):
    daemon = start("--hot-bytes=4MiB")
    with statepool.connect(daemon.address, retries=0) as pool:
        layout = layout_of(pool, 8 * MIB)
        with pytest.raises(statepool.Exhausted) as error:
            pool.set("a", bytes(8 * MIB), position=1, layout=layout)
        assert error.value.reason == "STATE_TOO_LARGE" and not error.value.retry_after


def test_a_full_cold_budget_refuses_durable_writes_and_takes_nothing_from_anybody(start):
    daemon = start("--hot-bytes=64MiB", "--cold-bytes=4MB")
    with statepool.connect(daemon.address, retries=0) as pool:
        layout = layout_of(pool, MIB)
        for i in range(3):
            pool.set(f"s{i}", bytes_of(i, MIB), position=3, layout=layout, durability="sync")
            pool.publish_prefix(layout, [i, i, i], pool.sequence(f"s{i}"), durability="sync")
        with pytest.raises(statepool.Exhausted) as error:
            pool.set("one too many", bytes_of(9, MIB), position=3, layout=layout, durability="sync")
        assert error.value.reason == "COLD_FULL"
        for i in range(3):
            assert pool.match_prefix(layout, [i, i, i, 7])
            assert bytes(pool.sequence(f"s{i}").get().data) == bytes_of(i, MIB)
        with pytest.raises(statepool.NotFound):
            pool.sequence("one too many").describe()
        # A prefix that alone needs its bytes makes room.
        pool.sequence("s0").delete()
        pool.set("one too many", bytes_of(9, MIB), position=3, layout=layout, durability="sync")
        assert pool.match_prefix(layout, [0, 0, 0, 7]).miss_reason == "EVICTED"
        assert pool.match_prefix(layout, [1, 1, 1, 7])


def test_a_state_that_fits_no_message_is_refused_by_get_and_comes_as_a_stream(start):
    daemon = start("--max-message-bytes=1MiB")
    with statepool.connect(daemon.address, retries=0) as pool:
        layout = layout_of(pool, 4 * MIB)
        sequence = pool.create(layout, "a")
        with pytest.raises(statepool.Exhausted) as error:
            pool.batch_get([sequence], all_or_none=True)
        assert error.value.reason == "MESSAGE_TOO_LARGE"
        assert bytes(sequence.get().data) == bytes(4 * MIB)
        pool.set("a", bytes_of(1, 4 * MIB), position=1)
        assert sequence.get().data == bytes_of(1, 4 * MIB)


def test_layouts_have_a_limit_in_bytes(start):
    daemon = start()
    with statepool.connect(daemon.address, retries=0) as pool:
        for size, reason in (64 * MIB, "INVALID_LAYOUT"), (66 * MIB, "MALFORMED_REQUEST"):  # the second is not even parsed
            tensor = statepool.layouts.Tensor("s", (0,), "uint8", {"x": size}, initial=bytes(size))
            with pytest.raises(statepool.InvalidArgument) as error:
                pool.register_layout(statepool.layouts.Layout(model_id="m", tensors=[tensor]))
            assert error.value.reason == reason


def test_after_an_orderly_stop_damage_to_the_log_takes_nothing(start, tmp_path):
    daemon = start()
    with statepool.connect(daemon.address, retries=0) as pool:
        layout = layout_of(pool, 4096)
        revisions = [pool.set(f"s{i}", bytes_of(i, 4096), position=i + 1, layout=layout, durability="sync").revision for i in range(20)]
    daemon.stop()
    for log in (tmp_path / "data" / "db").glob("*.log"):
        log.write_bytes(b"")
    daemon.start()
    with statepool.connect(daemon.address, retries=0) as pool:
        for i in range(20):
            state = pool.sequence(f"s{i}").get()
            assert bytes(state.data) == bytes_of(i, 4096) and state.position == i + 1
        assert pool.set("new", bytes(4096), position=1, layout=layout).revision > max(revisions)


def test_two_models_of_the_same_shapes_never_mix(start):
    daemon = start()
    with statepool.connect(daemon.address, retries=0) as pool:
        base, tuned = layout_of(pool, 4096, "base"), layout_of(pool, 4096, "tuned")
        pool.set("a", bytes_of(1, 4096), position=3, layout=base)
        pool.publish_prefix(base, [1, 2, 3], pool.sequence("a"))
        assert not pool.match_prefix(tuned, [1, 2, 3, 4])
        with pytest.raises(statepool.Conflict) as error:
            pool.set("a", bytes_of(2, 4096), position=4, layout=tuned)
        assert error.value.reason == "LAYOUT_MISMATCH"
        assert bytes(pool.sequence("a").get().data) == bytes_of(1, 4096)


def test_an_orderly_stop_does_not_wait_for_clients_that_stay_connected(start, tmp_path):
    # gRPC may take 10 s to let go of a connection that a large answer went over.
    for i in range(4):
        daemon = start("--hot-bytes=512MiB")
        with statepool.connect(daemon.address, timeout=20) as pool:
            pool.create(layout_of(pool, 128 * MIB), f"s{i}").get()
            began = time.monotonic()
            daemon.stop()
            assert time.monotonic() - began < 5
