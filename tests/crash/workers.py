# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""What `crash/run workers` runs: lanes of workers that die on one daemon, then a daemon that dies under living workers.
Prints one line of JSON; violations go to stderr. README.md says how it works.

gRPC runs in no process that forks: this one and the lanes talk to the daemon by its metrics alone."""
import argparse
import base64
import collections
import ctypes
import json
import mmap
import os
import pathlib
import pickle
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: no threads where processes are forked
import worker_life  # noqa: E402
import worker_words as words  # noqa: E402
from worker_life import BETWEEN, CLOSE, CONNECT, LOAD, OPEN, PHASES, STORE, Life, Plan  # noqa: E402

# Rows of the lanes' arenas: sizes tell in a sum of bytes how many arenas each lane has, as long as none has four, and the smallest is whole chunks. A GPU
# has none below 2 MiB.
ROWS = {"host": [1, 4, 16, 64, 256], "far": [1, 4, 16, 64, 256], "cuda": [16, 64, 256]}
CHUNK_BYTES = {"host": "128KiB", "far": "128KiB", "cuda": "2MiB"}
ROUND_LIVES = 10  # of a lane, between two looks at an idle daemon
BACK_S = 1.0      # what a worker had is back after so long
TOKEN_S = 1.0     # ... and so much longer if it did not connect: the daemon's --arena-token-timeout
HUNG_S = 10.0
SHOWN_MAX = 20    # violations of a kind that a lane shows, of a round
START_S = 30.0
FLAGS = ("--hot-bytes=1GiB", "--cold-bytes=4GiB", "--log-level=warn")
KINDS = ("leaked", "given_twice", "half_versions", "lost", "hung", "unexpected")
COUNTS = ("operations", "acked", "read", "hang_ups", "kept", "watched", "reopened", "rows_lost", "errors", "leases", "views")
# How likely a life is to end in each phase, and the most seconds from its beginning to the signal, for one row and for each.
ENDS = {BETWEEN: (10, 0.002, 0), OPEN: (15, 0.004, 0.00008), CONNECT: (8, 0.002, 0), LOAD: (20, 0.002, 0.00008),
        STORE: (35, 0.003, 0.00012), CLOSE: (12, 0.002, 0.00002)}


class Tally:
    def __init__(self):
        self.counts = collections.Counter()
        self.back_ms, self.resumed_ms = [], []

    def add(self, other):
        self.counts.update(other.counts)
        self.back_ms += other.back_ms
        self.resumed_ms += other.resumed_ms

    def violation(self, kind, text):
        self.counts[kind] += 1
        if self.counts[kind] > SHOWN_MAX:
            return
        print(f"violation: {kind}: {text}", file=sys.stderr, flush=True)

    def violations(self):
        return sum(self.counts[kind] for kind in KINDS)


def note(text, tally):
    print(f"crash/workers: {text}, {tally.violations()} violations", file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------------- processes


def child(main):
    """Forks a process that runs main() and ends with this one."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        main()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end(pid):
    """Kills a child; whether it was alive."""
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


class Lines:
    """What comes through a pipe, line by line."""

    def __init__(self):
        self.fd, self.writer = os.pipe()
        self._rest = b""

    def keep_reading(self):
        os.close(self.writer)

    def close(self):
        os.close(self.fd)

    def read(self, seconds):
        """Lines that came; none after this time; None at the end."""
        if not select.select([self.fd], [], [], max(seconds, 0))[0]:
            return []
        got = os.read(self.fd, 1 << 16)
        if not got:
            return None
        *whole, self._rest = (self._rest + got).split(b"\n")
        return [line.decode() for line in whole]


class Daemon:
    def __init__(self, binary, directory, direct, devices):
        self.binary, self.directory, self.direct, self.devices, self.process = binary, directory, direct, devices, None
        self.address = f"unix:{directory}/socket"

    def start(self):
        command = [self.binary, f"--listen={self.address}", "--metrics=127.0.0.1:0", f"--data-dir={self.directory}/data", *FLAGS, f"--direct={self.direct}",
                   f"--devices={self.devices}", f"--chunk-bytes={CHUNK_BYTES[self.devices]}"]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log,
                                            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL))
        ready = select.select([self.process.stdout], [], [], START_S)[0] and self.process.stdout.readline()
        if not ready:
            self.kill()
            sys.exit(f"the daemon did not get ready: {(self.directory / 'log').read_text(errors='replace')[-2000:]}")
        ready = json.loads(ready)
        self.metrics, self.incarnation = ready["metrics"], ready["incarnation"]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def is_dead(self):
        return self.process.poll() is not None


class Held:
    """What arenas have of a daemon at a moment."""

    def __init__(self, metrics):
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=HUNG_S) as answer:
            text = answer.read().decode()
        self.arenas, self.bytes, self.slots = (self._sum(text, f"statepool_{name}")
                                               for name in ("arenas", "arena_bytes", "arena_reserved_slots"))
        self.used = self._sum(text, r'statepool_device_bytes\{device="[^"]*",state="used"\}', "")
        self.leases, self.leased_slots, self.leased_bytes = (self._sum(text, f"statepool_direct_{name}") for name in ("leases", "slots", "bytes"))
        self.states = " ".join(re.findall(r'^statepool_arenas{state="(.*)$', text, re.M)).replace('"}', "")

    @staticmethod
    def _sum(text, name, labels=r"(?:\{.*\})?"):
        return sum(int(float(value)) for value in re.findall(rf"^{name}{labels} (\S+)$", text, re.M))

    def of(self, rows):
        """Arenas of the lane that has so many rows in each."""
        return self.bytes // words.LAYOUT.state_bytes // rows % 4

    def is_idle(self):
        return self.arenas == self.bytes == self.slots == self.leases == self.leased_slots == self.leased_bytes == 0

    def __str__(self):
        return f"{self.arenas} arenas ({self.states}) with {self.bytes} bytes, {self.slots} reserved slots, {self.leases} leases with {self.leased_slots} slots and {self.leased_bytes} bytes, {self.used} bytes of the device used"


# --------------------------------------------------------------------------------------------------------------- lanes


class Lane:
    """A process that lets one worker after the other live and die, and checks what each leaves."""

    def __init__(self, number, daemon, oracle, seed):
        self.number, self.daemon, self.oracle = number, daemon, oracle
        self.rows = ROWS[daemon.devices][number]
        self.random = random.Random(seed)
        self.tally = Tally()
        self.page = mmap.mmap(-1, mmap.PAGESIZE)
        self.inbox, self.watcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.seen = Lines()

        def watch():
            self.watcher.close()
            self.seen.close()
            worker_life.watch(number, self.inbox, self.seen.writer)

        self.watching = child(watch)
        self.inbox.close()
        self.seen.keep_reading()

    def close(self):
        if not end(self.watching):
            self.tally.violation("unexpected", f"lane {self.number}: the process that watches died by itself")
        self.heard(self.seen.read(0))

    def heard(self, lines):
        """Takes in what a worker told; gives the lines that are signs."""
        signs = []
        for line in lines or ():
            what, _, rest = line.partition(" ")
            indexes = [int(i) for i in rest.split(",")] if what in "au" and rest else []
            if what == "i":
                number, all_or_none, names = rest.split(" ")
                self.oracle.intend(int(number), [int(i) for i in names.split(",")], all_or_none == "1")
            elif what == "a":
                self.oracle.acknowledge(indexes)
                self.tally.counts["acked"] += len(indexes)
            elif what == "u":
                self.oracle.refuse(indexes)
            elif what == "f":
                index, number = rest.split(" ")
                self.oracle.found(int(index), None if number == "-" else int(number))
            elif what == "s":
                self.oracle.flying = None
            elif what == "n":
                field, count = rest.split(" ")
                self.tally.counts[field] += int(count)
            elif what == "x":
                self.tally.violation(*rest.split(" ", 1))
            else:
                signs.append(line)
        return signs

    def begin(self, life, **plan):
        """A worker; it looks first at what the one before left."""
        self.page[0] = BETWEEN
        self.lines = Lines()
        told = Plan(self.daemon.address, self.number, self.rows, life % words.MAX_LIVES, self.random.randrange(1 << 30),
                    **dict.fromkeys(("phase", "nth", "survives", "verify", "delete"), 0) | {"direct": self.daemon.direct} | plan)

        def main():
            self.lines.close()
            Life(told, self.oracle, self.lines.writer, self.page, self.watcher).live()

        self.life, self.lives_on = told.life, not told.verify
        self.worker = child(main)
        self.lines.keep_reading()
        if not self.until("r", 2 * HUNG_S):
            self.tally.violation("hung", f"lane {self.number} life {life} did not get through what the one before it left")

    def until(self, sign, seconds):
        """Whether this sign came in time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            lines = self.lines.read(left)
            if lines is None:
                return False
            if any(told.startswith(sign) for told in self.heard(lines)):
                return True
        return False

    def finish(self):
        was_alive = end(self.worker)
        gone = time.monotonic()
        if self.lives_on and not was_alive:
            self.tally.violation("unexpected", f"lane {self.number} life {self.life} died by itself")
        while (lines := self.lines.read(1)) is not None:
            self.heard(lines)
        self.lines.close()
        self.watcher.send(f"dead {self.life}".encode())
        self.heard(self.seen.read(0))
        return gone

    def die(self, life):
        """One cycle."""
        phases = list(ENDS)
        phase = self.random.choices(phases, [ENDS[p][0] for p in phases])[0]
        how = self.random.choices(("kill", "stop and kill", "stop and go on"), (60, 25, 15))[0]
        self.begin(life, phase=phase, nth=self.random.randint(1, 2 if phase in (OPEN, CONNECT, CLOSE) else 4))
        if not self.until("!", 3.0) and not self.until("p", HUNG_S * worker_life.patience):
            self.tally.violation("hung", f"lane {self.number} life {life} neither loads and stores nor fails")
        _, delay, for_each_row = ENDS[phase]
        if self.random.random() < 0.8:
            time.sleep(self.random.random() * (delay + for_each_row * self.rows))
        if how != "kill":
            os.kill(self.worker, signal.SIGSTOP)
            self.tally.counts["stops"] += 1
            time.sleep(self.random.uniform(0.01, 0.4))
        if how == "stop and go on":
            os.kill(self.worker, signal.SIGCONT)
            self.until("nothing", self.random.uniform(0, 0.2))
        gone = self.finish()
        self.tally.counts["kills"] += 1
        self.tally.counts[f"in_{PHASES[self.page[0]]}"] += 1
        self.wait_until_back(gone, life, BACK_S * worker_life.patience + TOKEN_S * (self.page[0] in (OPEN, CONNECT)))

    def wait_until_back(self, gone, life, limit):
        while (held := Held(self.daemon.metrics)).of(self.rows):
            if time.monotonic() > gone + limit:
                self.tally.violation("leaked", f"lane {self.number} life {life}, dead in {PHASES[self.page[0]]}: after {limit} s there are {held}")
                return
            time.sleep(0.002)
        if self.page[0] not in (OPEN, CONNECT):
            self.tally.back_ms.append((time.monotonic() - gone) * 1000)

    def survive(self, life, out, stop):
        """A worker that lives until the coordinator says stop, and of which `out` hears."""
        self.oracle.forgets = True
        self.begin(life, survives=1)
        last = time.monotonic()
        while not select.select([stop], [], [], 0)[0]:
            lines = self.lines.read(0.05)
            if lines is None:
                self.tally.violation("unexpected", f"lane {self.number}: the worker that was to survive is dead")
                break
            for sign in self.heard(lines):
                os.write(out, f"{sign}\n".encode())
                last = time.monotonic()
        if time.monotonic() - last > HUNG_S:
            self.tally.violation("hung", f"lane {self.number}: nothing from its worker for {time.monotonic() - last:.0f} s")
        self.finish()

    def look(self, life, delete):
        """A worker that looks at all names, and may delete them."""
        self.begin(life, verify=1, delete=delete)
        self.finish()


class Lanes:
    """Of the coordinator."""

    def __init__(self, daemon, seed):
        self.daemon = daemon
        self.random = random.Random(seed)
        self.tally = Tally()
        self.oracles = [words.Oracle() for _ in ROWS[daemon.devices]]
        self.next_life = 1

    def run(self, job, lives, meanwhile=lambda outs: None):
        """job(lane, lives' numbers, out) in each lane, a process of its own; here meanwhile(pipes, by lane)."""
        outs, pids = [], []
        for number in range(len(self.oracles)):
            out = Lines()
            numbers = range(self.next_life, self.next_life + lives)
            self.next_life += lives
            seed = self.random.randrange(1 << 30)

            def main():
                lane = Lane(number, self.daemon, self.oracles[number], seed)
                job(lane, numbers, out.writer)
                lane.close()
                os.write(out.writer, b"=" + base64.b64encode(pickle.dumps((lane.tally, lane.oracle))) + b"\n")

            pids.append(child(main))
            out.keep_reading()
            outs.append(out)
        meanwhile(outs)
        for number, (out, pid) in enumerate(zip(outs, pids)):
            result = None
            while (lines := out.read(60)) is not None:
                result = next((line for line in lines if line.startswith("=")), result)
            out.close()
            os.waitpid(pid, 0)
            if result is None:
                sys.exit(f"lane {number} is gone")
            tally, self.oracles[number] = pickle.loads(base64.b64decode(result[1:]))
            self.tally.add(tally)

    def look_at_idle(self):
        deadline = time.monotonic() + BACK_S * worker_life.patience + TOKEN_S
        while not (held := Held(self.daemon.metrics)).is_idle():
            if time.monotonic() > deadline:
                self.tally.violation("leaked", f"all workers are gone, and there are {held}")
                return
            time.sleep(0.01)

    def kill_workers(self, lives):
        self.run(lambda lane, numbers, out: [lane.die(life) for life in numbers], lives)
        self.look_at_idle()
        if self.daemon.is_dead():
            self.tally.violation("unexpected", "the daemon died by itself")

    def kill_daemon(self, times):
        stop, stopper = os.pipe()

        def meanwhile(outs):
            incarnation = None
            for i in range(times + 1):
                begin = time.monotonic()
                if i:
                    self.daemon.kill()
                    self.tally.counts["daemon_kills"] += 1
                    self.daemon.start()
                    begin = time.monotonic()
                incarnation = self.daemon.incarnation
                missing = dict(enumerate(outs))
                while missing and (left := begin + HUNG_S + (HUNG_S if i == 0 else 0) - time.monotonic()) > 0:
                    for number, out in list(missing.items()):
                        if f"p {incarnation}" in (out.read(min(left, 0.01)) or ()):
                            del missing[number]
                            if i:
                                self.tally.resumed_ms.append((time.monotonic() - begin) * 1000)
                for number in missing:
                    self.tally.violation("hung", f"lane {number}: its worker had not gone on {HUNG_S:.0f} s after the daemon did")
                time.sleep(self.random.uniform(0, 0.3))
                if i and i % 25 == 0:
                    note(f"the daemon killed {i} times", self.tally)
                for out in outs:  # what was said meanwhile is of this incarnation
                    out.read(0)
            os.write(stopper, b"stop")  # nobody reads it, so that all see it

        self.run(lambda lane, numbers, out: lane.survive(numbers[0], out, stop), 1, meanwhile)
        os.close(stop)
        os.close(stopper)
        self.look_at_idle()

    def clear(self):
        """All names are looked at and deleted: nothing is left."""
        self.run(lambda lane, numbers, out: lane.look(numbers[0], "names"), 1)
        self.run(lambda lane, numbers, out: lane.number or lane.look(numbers[0], "layout"), 1)
        self.look_at_idle()
        deadline = time.monotonic() + BACK_S * worker_life.patience
        while (held := Held(self.daemon.metrics)).used:
            if time.monotonic() > deadline:
                self.tally.violation("leaked", f"no name and no layout is left, and there are {held}")
                return
            time.sleep(0.01)


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else None


def in_flight(counts):
    """How many died within which call."""
    return {"open": counts["in_open"] + counts["in_connect"], "load": counts["in_load"], "store": counts["in_store"], "close": counts["in_close"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    parser.add_argument("--cycles", type=int, required=True)
    parser.add_argument("--in-flight-min", type=json.loads, default={}, help='{"load": 3, ...}: while fewer die in one of these, up to twice --cycles do')
    parser.add_argument("--daemon-kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--patience", type=float, default=1.0, help="what is to be there in time may take so many times as long")
    parser.add_argument("--stop-at-first", type=int, default=0)
    parser.add_argument("--direct", action="store_true", help="workers copy themselves, and keep views")
    parser.add_argument("--devices", choices=sorted(ROWS), default="host")
    options = parser.parse_args()
    worker_life.patience = options.patience
    if options.devices == "cuda":
        import torch  # noqa: F401  once, and not in every process that is forked; none of these uses the GPU itself
    daemon = Daemon(options.daemon, options.directory, options.direct, options.devices)
    daemon.start()
    lanes = Lanes(daemon, options.seed)
    counts = lanes.tally.counts
    stopped = lambda: options.stop_at_first and lanes.tally.violations()  # noqa: E731
    is_short = lambda: any(in_flight(counts)[phase] < least for phase, least in options.in_flight_min.items())  # noqa: E731
    while (counts["kills"] < options.cycles or (is_short() and counts["kills"] < 2 * options.cycles)) and not stopped():
        lanes.kill_workers(max(1, min(ROUND_LIVES, -(-(options.cycles - counts["kills"]) // len(lanes.oracles)))))
        note(f"{counts['kills']} workers killed", lanes.tally)
    if options.daemon_kills and not stopped():
        lanes.kill_daemon(options.daemon_kills)
    if not stopped():
        lanes.clear()
    daemon.kill()
    back, resumed = lanes.tally.back_ms, lanes.tally.resumed_ms
    line = {"name": "crash/direct" if options.direct else "crash/workers", "value": lanes.tally.violations(), "unit": "violations", "n": counts["kills"], "goal": 0,
            "devices": options.devices}
    line |= {field: counts[field] for field in ("kills", "stops")}
    line["kills_in_flight"] = in_flight(counts)
    line |= {field: counts[field] for field in ("daemon_kills", *KINDS, *COUNTS)}
    line |= {"back_ms_p50": quantile(back, 0.5), "back_ms_p99": quantile(back, 0.99), "back_ms_max": quantile(back, 1),
             "resumed_ms_p50": quantile(resumed, 0.5), "resumed_ms_p99": quantile(resumed, 0.99)}
    print(json.dumps(line), flush=True)


main()
