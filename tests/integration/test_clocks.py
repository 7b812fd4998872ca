# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The daemon while its wall clock steps: by an hour and by a year in both directions, in a suspend, and across restarts.

Debian's libfaketime sits between the daemon and the wall clock; the monotonic clock stays the kernel's. (gRPC's timer thread waits by the kernel's
wall clock, which is not faked: it spins while the faked one is behind. So nothing here judges CPU time.)"""
import contextlib
import glob
import os
import queue
import signal
import time
import urllib.request

import grpc
import pytest

from daemon_process import Daemon, eventually
from wire import checksum, reason_of

HOUR, YEAR = 3600, 365 * 24 * 3600
STEPS = {"an hour ahead": HOUR, "an hour back": -HOUR, "a year ahead": YEAR, "a year back": -YEAR}
AHEAD = {name: step for name, step in STEPS.items() if step > 0}
HOURS = {name: step for name, step in STEPS.items() if abs(step) == HOUR}
SLACK_S = 5  # of a busy machine
STATE = bytes(range(250)) * 4 * 75


def steps(chosen):
    return pytest.mark.parametrize("step", chosen.values(), ids=[name.replace(" ", "-") for name in chosen])


class SteppedDaemon(Daemon):
    """A daemon whose wall clock is `offset` seconds ahead of ours."""

    def __init__(self, directory, stubs, *flags):
        library, = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        self.file = directory / "faketime"
        super().__init__(directory, *flags, env={
            "LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(self.file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"})
        self.stubs = stubs
        self.step_to(0)

    def step_to(self, offset):
        self.offset = offset
        new = self.file.with_suffix(".new")
        new.write_text(f"{offset:+d}")
        new.rename(self.file)

    def start(self):
        super().start()
        self.channel = grpc.insecure_channel(self.address, [("grpc.enable_http_proxy", 0)])
        self.stub = self.stubs.grpc.StatePoolStub(self.channel)
        return self

    def stop(self):
        self.channel.close()
        super().stop()

    def kill(self):
        pid = self.process.pid
        self.channel.close()
        super().kill()
        for left in (f"/dev/shm/faketime_shm_{pid}", f"/dev/shm/sem.faketime_sem_{pid}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)

    def wall_now(self):
        return time.time() + self.offset

    def metric(self, series):
        text = urllib.request.urlopen(f"http://{self.ready['metrics']}/metrics", timeout=10).read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(series))

    # What the tests do all the time.

    def options(self, **options):
        """ttl and expires_in in seconds."""
        pb = self.stubs.pb
        made = pb.NameOptions(durability=options.get("durability", pb.WRITE_BEHIND))
        if "ttl" in options:
            made.ttl.FromMilliseconds(int(options["ttl"] * 1000))
        if "expires_in" in options:
            made.expire_time.FromMilliseconds(int((self.wall_now() + options["expires_in"]) * 1000))
        return made

    def set(self, name, position=1, **options):
        return self.stub.Set(self.stubs.pb.SetRequest(sequence=name, layout="m", position=position, data=STATE, options=self.options(**options)),
                             timeout=20)

    def describe(self, name):
        """What is told of a name, or the reason why it is not there."""
        try:
            return self.stub.Describe(self.stubs.pb.DescribeRequest(name=self.stubs.pb.NameRef(sequence=name)), timeout=20)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
            return reason_of(error)

    def lives(self, *names):
        told = {name: self.describe(name) for name in names}
        return not [name for name, info in told.items() if isinstance(info, str)]

    def is_durable(self, name):
        info = self.describe(name)
        return info.durable_revision == info.revision

    def told_wall_time(self):
        return self.set("what time is it").create_time.ToMilliseconds() / 1000


@pytest.fixture
def start(tmp_path, stubs):
    daemons = []

    def start(*flags):
        pb = stubs.pb
        daemon = SteppedDaemon(tmp_path, stubs, *flags).start()
        daemons.append(daemon)
        daemon.stub.RegisterLayout(pb.RegisterLayoutRequest(alias="m", layout=pb.Layout(model_id="m", tensors=[
            pb.TensorSpec(name="s", kind=pb.OTHER, layers=[0], dtype=pb.UINT8, axes=[pb.Axis(name="x", size=len(STATE))])])), timeout=20)
        return daemon

    yield start
    for daemon in daemons:
        if daemon.process is not None:
            daemon.stop()


@steps(STEPS)
def test_a_step_of_the_wall_clock_expires_nothing_early_or_late_and_writes_behind_as_before(start, step):
    daemon = start()
    life_s = 4
    began = time.monotonic()
    daemon.set("idle", ttl=life_s)
    daemon.set("absolute", expires_in=life_s)
    made = time.monotonic()
    daemon.set("used", ttl=life_s)
    daemon.set("forever")
    expire_time = daemon.describe("absolute").expire_time

    daemon.step_to(step)
    assert abs(daemon.told_wall_time() - daemon.wall_now()) < SLACK_S, "the clock has not stepped"
    daemon.set("written after it")
    lags = []
    while time.monotonic() - began < life_s * 0.4:  # housekeeping looks ten times a second
        assert daemon.lives("idle", "absolute", "used", "forever") or time.monotonic() - began > life_s * 0.9, "expired by a step"
        lags.append(daemon.metric("statepool_flush_lag_seconds"))
        time.sleep(0.1)
    assert daemon.describe("absolute").expire_time == expire_time, "an absolute time is what it was"
    touched = daemon.stub.Touch(daemon.stubs.pb.TouchRequest(names=[daemon.stubs.pb.NameRef(sequence="used")]), timeout=20).names[0]
    assert abs(touched.expire_time.ToMilliseconds() / 1000 - daemon.wall_now() - life_s) < SLACK_S
    eventually(lambda: daemon.is_durable("forever") and daemon.is_durable("written after it"))
    eventually(lambda: daemon.metric("statepool_flush_lag_seconds") == 0)
    assert all(0 <= lag < 1 + SLACK_S for lag in lags), lags

    eventually(lambda: daemon.describe("idle") == daemon.describe("absolute") == "EXPIRED", life_s + SLACK_S)
    assert time.monotonic() - began >= life_s and time.monotonic() - made < life_s + SLACK_S
    assert daemon.lives("forever")
    eventually(lambda: daemon.describe("used") == "EXPIRED", life_s + SLACK_S)
    # A new absolute time is judged by the clock as it is now.
    with pytest.raises(grpc.RpcError) as error:
        daemon.set("past", expires_in=-10)
    assert reason_of(error.value) == "INVALID_OPTION"
    daemon.set("soon", expires_in=60)
    assert daemon.lives("soon")


@steps({"an hour back": -HOUR, "a year ahead": YEAR})
def test_calls_and_uploads_under_way_end_by_their_own_time(start, step):
    timeout_s = 1.5
    daemon = start(f"--stream-timeout={timeout_s}s", f"--upload-timeout={timeout_s}s")
    pb = daemon.stubs.pb
    messages = queue.SimpleQueue()
    head = pb.SetRequest(sequence="streamed", layout="m", position=1, checksum=checksum(STATE), request_id="upload")
    messages.put(pb.SetChunk(head=head, data=STATE[:65536], checksum=checksum(STATE[:65536])))

    def upload():
        try:
            return daemon.stub.GetUpload(pb.GetUploadRequest(sequence="streamed", request_id="upload"), timeout=20)
        except grpc.RpcError as error:
            return reason_of(error)

    # The one is ended by the daemon, the other by its own deadline.
    stream = daemon.stub.SetStream.future(iter(messages.get, None), timeout=60)
    eventually(lambda: not isinstance(upload(), str))
    began = time.monotonic()
    late = daemon.stub.SetStream.future(iter(queue.SimpleQueue().get, None), timeout=timeout_s / 2)
    daemon.step_to(step)
    daemon.set("another call")
    assert not stream.done() or time.monotonic() - began >= timeout_s * 0.9
    for call, reason in ((late, None), (stream, "STALLED")):
        assert call.exception(timeout=timeout_s + SLACK_S).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert reason is None or reason_of(call.exception()) == reason
        assert time.monotonic() - began >= timeout_s * 0.45
    messages.put(None)
    kept = upload()
    assert kept.received_bytes == 65536
    assert abs(kept.expire_time.ToMilliseconds() / 1000 - daemon.wall_now() - timeout_s) < SLACK_S
    daemon.step_to(2 * step)
    daemon.set("one more call")
    assert upload() == kept or time.monotonic() - began > 2 * timeout_s * 0.9
    eventually(lambda: upload() == "UPLOAD_UNKNOWN", timeout_s + SLACK_S)


@steps(AHEAD)
def test_a_suspended_machine_finds_everything_as_it_was(start, step):
    """In a suspend the monotonic clock stands still and the wall clock goes on."""
    daemon = start()
    daemon.set("idle", ttl=60)
    daemon.set("absolute", expires_in=60)
    daemon.set("dirty")
    with suspended(daemon, ahead=step):
        call = daemon.stub.Describe.future(daemon.stubs.pb.DescribeRequest(name=daemon.stubs.pb.NameRef(sequence="idle")), timeout=20)
        time.sleep(0.3)
        assert not call.done()
    assert call.result(SLACK_S).position == 1
    assert abs(daemon.told_wall_time() - daemon.wall_now()) < SLACK_S
    assert daemon.metric("statepool_flush_lag_seconds") < SLACK_S
    eventually(lambda: daemon.is_durable("dirty"))
    assert daemon.lives("idle", "absolute", "dirty")
    # What the suspend left of it, a restart counts by the wall clock.
    daemon.stop()
    daemon.start()
    assert daemon.lives("idle", "dirty") and daemon.describe("absolute") == "EXPIRED"


def test_a_process_that_was_stopped_expires_what_is_over_at_its_first_look(start):
    """Frozen by a debugger or a container: both clocks go on."""
    daemon = start()
    daemon.set("idle", ttl=1.5)
    daemon.set("absolute", expires_in=1.5)
    daemon.set("longer", ttl=60)
    with suspended(daemon, ahead=0):
        time.sleep(2)
    assert daemon.describe("idle") == daemon.describe("absolute") == "EXPIRED" and daemon.lives("longer")
    eventually(lambda: daemon.is_durable("longer"))


@pytest.mark.parametrize("orderly", [True, False], ids=["stop", "kill"])
@steps(STEPS)
def test_after_a_restart_an_absolute_time_is_the_wall_clocks_and_idle_time_starts_anew(start, step, orderly):
    daemon = start("--flush-interval=100ms")
    sync = daemon.stubs.pb.SYNC
    idle = daemon.set("idle", ttl=HOUR / 2, durability=sync)
    absolute = daemon.set("absolute", expires_in=HOUR / 2, durability=sync)
    forever = daemon.set("forever", durability=sync)

    def restart_at(offset):
        (daemon.stop if orderly else daemon.kill)()
        daemon.step_to(offset)
        daemon.start()

    restart_at(step)
    assert daemon.describe("forever").revision == forever.revision
    assert abs(daemon.told_wall_time() - daemon.wall_now()) < SLACK_S
    told = daemon.describe("idle")
    assert told.revision == idle.revision and told.ttl == idle.ttl
    assert abs(told.expire_time.ToMilliseconds() / 1000 - daemon.wall_now() - HOUR / 2) < SLACK_S
    assert daemon.set("idle", position=2).revision > max(idle.revision, absolute.revision, forever.revision)
    if step > 0:
        assert daemon.describe("absolute") == "EXPIRED"
        # Once its record is gone, no clock brings it back. It goes before what is written behind later.
        daemon.set("later")
        eventually(lambda: daemon.is_durable("later"))
        restart_at(0)
        assert daemon.describe("absolute") == ("EXPIRED" if orderly else "UNKNOWN_SINCE_RESTART")
    else:
        told = daemon.describe("absolute")
        assert (told.revision, told.expire_time) == (absolute.revision, absolute.expire_time)
        # Just before its time: then it goes while the daemon runs.
        restart_at(int(absolute.expire_time.ToMilliseconds() / 1000 - time.time()) - 1)
        assert daemon.lives("absolute") or daemon.wall_now() > absolute.expire_time.ToMilliseconds() / 1000 - 0.1
        eventually(lambda: daemon.describe("absolute") == "EXPIRED", 1 + SLACK_S)
        assert daemon.wall_now() > absolute.expire_time.ToMilliseconds() / 1000 - 0.1


@steps(HOURS)
def test_a_stop_waits_for_running_calls_as_long_as_it_says(start, step):
    grace_s = 1.5
    daemon = start(f"--drain-grace={grace_s}s")
    pb = daemon.stubs.pb
    messages = queue.SimpleQueue()
    head = pb.SetRequest(sequence="streamed", layout="m", position=1, checksum=checksum(STATE), request_id="upload")
    messages.put(pb.SetChunk(head=head, data=STATE[:65536], checksum=checksum(STATE[:65536])))
    stream = daemon.stub.SetStream.future(iter(messages.get, None), timeout=60)
    upload = pb.GetUploadRequest(sequence="streamed", request_id="upload")
    eventually(lambda: arrived(daemon, upload))
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    eventually(lambda: "stopping" in daemon.log_tail())
    daemon.step_to(step)
    assert stream.exception(timeout=grace_s + SLACK_S).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert grace_s * 0.9 <= time.monotonic() - began < grace_s + SLACK_S
    messages.put(None)
    assert daemon.process.wait(SLACK_S) == 0
    daemon.channel.close()
    daemon.process = None


def arrived(daemon, upload):
    try:
        return daemon.stub.GetUpload(upload, timeout=20).received_bytes
    except grpc.RpcError:
        return 0


@contextlib.contextmanager
def suspended(daemon, ahead):
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        daemon.step_to(daemon.offset + ahead)
        yield
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
