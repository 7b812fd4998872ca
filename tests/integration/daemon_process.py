# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: start, orderly stop, kill -9, start again on the same data."""
import json
import os
import pathlib
import queue
import signal
import subprocess
import threading
import time

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / os.environ.get("STATEPOOL_BUILD", "build/release") / "statepoold"
DEVICES = os.environ.get("STATEPOOL_DEVICES", "host")  # "far": every test over memory that the CPU can't reach
START_S_MAX = 30
STOP_S_MAX = 30


class Daemon:
    """One data directory, and the daemon that serves it while it is up. `address` changes with each start()."""

    def __init__(self, directory, *flags, env=None):
        self.directory = directory
        self.flags = flags  # the last value of a flag counts
        self.env = env
        self.log = directory / "log"
        self.process = None

    def command(self):
        """It also serves on unix_address, which stays the same."""
        return [str(BINARY), f"--listen=127.0.0.1:0,{self.unix_address}", "--metrics=127.0.0.1:0", f"--data-dir={self.directory / 'data'}",
                "--hot-bytes=128MiB", "--warm-bytes=64MiB", "--cold-bytes=1GiB", f"--devices={DEVICES}", *self.flags]

    @property
    def unix_address(self):
        return f"unix:{self.directory / 'socket'}"

    def start(self):
        """Returns when the daemon serves; self.ready is its ready line."""
        assert self.process is None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log, env={**os.environ, **(self.env or {})})
        lines = queue.Queue()
        threading.Thread(target=_forward, args=(self.process.stdout, lines), daemon=True).start()
        try:
            line = lines.get(timeout=START_S_MAX)
        except queue.Empty:
            line = b""
        if not line:
            self.kill()
            pytest.fail(f"the daemon did not get ready; {self.log_tail()}")
        self.ready = json.loads(line)
        assert self.ready["event"] == "ready"
        self.address = next(a for a in self.ready["listen"] if not a.startswith("unix:"))
        return self

    def stop(self):
        """SIGTERM; the daemon must exit with 0."""
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = f"still there {STOP_S_MAX} s after SIGTERM"
        assert status == 0, self.log_tail()

    def kill(self):
        """kill -9."""
        process, self.process = self.process, None
        process.kill()
        process.wait()

    def log_tail(self):
        return f"the end of its log:\n{self.log.read_text(errors='replace')[-4000:]}"


def eventually(condition, seconds=10.0):
    """The first true value of condition(), asked again and again; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.01)


def _forward(stream, lines):
    for line in stream:
        lines.put(line)
    lines.put(b"")
