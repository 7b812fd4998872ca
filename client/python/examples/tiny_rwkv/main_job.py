#!/usr/bin/env python3
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The main job of Statepool, on a real model: states that several workers share, fork, and find again after kill -9.

run() starts a daemon and worker processes (worker.py), and checks every claim that it reports; the quickstart shows it, and
tests/integration/test_main_job.py asserts its facts one by one. Needs the package statepool and numpy.
"""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import statepool

HERE = Path(__file__).resolve().parent
PROMPT = HERE / "prompt.txt"
START_S_MAX = 30.0
STOP_S_MAX = 30.0
WORKER_S_MAX = 120.0

HOT_BYTES = "1MiB"  # on purpose: a state has 132 KiB, so six or seven fit
KEPT_HOT_BYTES = "64MiB"
COLD_BYTES = "256MiB"
CROWD = 24  # states of others, more than three times what fits
BRANCHES = 1000
WRITTEN, MORE = 160, 80  # tokens written at first, and by those who resume
DOCUMENT = "document"

Facts = dict[str, Any]
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class User:
    text: str  # what they add to the prompt
    seed: int
    durability: str  # of their sequence


USERS = {"B": User("Behold, ", 4, "volatile"), "C": User("My soul ", 1, "sync")}


class MainJobError(Exception):
    """Something that must hold does not; the message is a sentence for people."""


def require(condition: object, otherwise: str) -> None:
    if not condition:
        raise MainJobError(otherwise)


class Daemon:
    """statepoold over work_dir/data, with its log in work_dir/log. Not yet running when made."""

    def __init__(self, statepoold: Path, work_dir: Path, hot_bytes: str = HOT_BYTES, flags: Iterable[str] = ()) -> None:
        self.work_dir = work_dir
        self.command = [str(statepoold), "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", f"--data-dir={work_dir / 'data'}",
                        f"--hot-bytes={hot_bytes}", f"--cold-bytes={COLD_BYTES}", *flags]
        self.process: subprocess.Popen[bytes] | None = None
        self.address = self.metrics = self.incarnation = ""

    def start(self) -> float:
        """Returns the seconds until it served. It has a session of its own, and holds none of our descriptors."""
        ready = self.work_dir / "ready"
        began = time.monotonic()
        with ready.open("wb") as out, (self.work_dir / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True,
                                            env={k: v for k, v in os.environ.items() if not k.startswith("STATEPOOL_")})  # those are flags
        while not (text := ready.read_text()).endswith("\n"):
            status = self.process.poll()
            require(status is None, f"The daemon ended with {status} instead of serving. {self.log_tail()}")
            require(time.monotonic() < began + START_S_MAX, f"The daemon did not serve within {START_S_MAX:.0f} s. {self.log_tail()}")
            time.sleep(0.005)
        took = time.monotonic() - began
        told = json.loads(text.splitlines()[0])
        self.address = next(a for a in told["listen"] if not a.startswith("unix:"))
        self.metrics, self.incarnation = told["metrics"], told["incarnation"]
        return took

    def stop(self) -> None:
        """SIGTERM, and after STOP_S_MAX kill -9. Does nothing when it is not running."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            status = self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise MainJobError(f"The daemon did not stop within {STOP_S_MAX:.0f} s of SIGTERM. {self.log_tail()}") from None
        self.process = None
        require(status == 0, f"The daemon ended with {status} after SIGTERM. {self.log_tail()}")

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def scrape(self) -> Metrics:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        url = self.metrics if "://" in self.metrics else f"http://{self.metrics}/metrics"
        with opener.open(url, timeout=10) as answer:
            return Metrics(answer.read().decode())

    def log_tail(self) -> str:
        return f"The end of its log:\n{(self.work_dir / 'log').read_text(errors='replace')[-2000:]}"


class Metrics:
    """A scrape in Prometheus' text format."""

    _LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)")
    _LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text: str) -> None:
        found = filter(None, map(self._LINE.match, text.splitlines()))
        self._series = [(m[1], dict(self._LABEL.findall(m[2] or "")), float(m[3])) for m in found]

    def total(self, name: str, **labels: str) -> int:
        """Sum over the series of this name that have these labels; 0 when there are none."""
        return int(sum(value for n, has, value in self._series if n == name and labels.items() <= has.items()))

    def tiers(self) -> dict[str, int]:
        """What shows how states move between the tiers."""
        return {"hot_bytes": self.total("statepool_images_bytes", tier="hot"), "cold_bytes": self.total("statepool_images_bytes", tier="cold"),
                "evictions": self.total("statepool_evictions_total", tier="hot"), "spills": self.total("statepool_spills_total"),
                "promotions": self.total("statepool_promotions_total")}


def work(*job: str, script: str = "worker.py", **options: object) -> Facts:
    """Runs a worker process to its end and returns its result. MainJobError when it fails."""
    arguments = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, str(HERE / script), *job, *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WORKER_S_MAX)
    except subprocess.TimeoutExpired:
        raise MainJobError(f"A worker did not end within {WORKER_S_MAX:.0f} s: {shlex.join(command)}") from None
    require(done.returncode == 0, f"A worker failed: {shlex.join(command)}\n{done.stderr[-2000:]}")
    result: Facts = json.loads(done.stdout)
    return result


def require_same(who: str, worker: Facts, oracle: Facts) -> None:
    """A continuation must be that of the process that read everything itself: its position, its tokens, and the bits of all its logits."""
    for what in ("position", "tokens", "first_logits_sha256", "logits_sha256"):
        require(worker[what] == oracle[what], f"{who}'s continuation is not that of a process that read everything itself: its {what} differ.")


def run(statepoold: Path, work_dir: Path, report: Report = print, after_publishing: Callable[[statepool.Pool, Facts], None] | None = None,
        flags: Iterable[str] = ()) -> Facts:
    """Plays the story in work_dir (made if need be, not removed), line by line to `report`; returns what was seen. No process outlives it.

    after_publishing  called with a connection and worker A's result before anybody uses what A published: for tests that plant a wrong state
    flags             more of the daemon's
    MainJobError when anything that the story claims does not hold.
    """
    require(statepoold.is_file(), f"There is no daemon at {statepoold}: build it first.")
    work_dir.mkdir(parents=True, exist_ok=True)
    story = _Story(Daemon(statepoold, work_dir, flags=flags), report)
    try:
        story.daemon.start()
        with story.connect():
            story.read_and_publish()
            if after_publishing is not None:
                after_publishing(story.pool, story.workers["A"])
            story.fork_branches()
            story.share()
            story.evict_and_resume()
            story.try_wrong_states()
            story.remember_before_kill()
        story.kill_and_restart()
        with story.connect():
            story.resume_after_restart()
            story.compute_in_place()
        story.sum_up()
    except BaseException:
        if story.daemon.process is not None:
            story.daemon.kill()  # whatever went wrong, it is more telling than how the daemon stops
        raise
    story.daemon.stop()
    return story.facts


class _Story:
    """The steps of run(), in their order. Each checks what it claims, reports it, and leaves what it saw in `facts`."""

    pool: statepool.Pool

    def __init__(self, daemon: Daemon, report: Report) -> None:
        self.daemon, self.report = daemon, report
        self.prompt = PROMPT.read_bytes()
        self.n = len(self.prompt)
        self.workers: dict[str, Facts] = {}
        self.oracles: dict[str, Facts] = {}
        self.facts: Facts = {"prompt_tokens": self.n, "workers": self.workers, "oracles": self.oracles}
        require(self.n >= 4096, "The prompt is too short.")

    @contextlib.contextmanager
    def connect(self) -> Iterator[None]:
        with statepool.connect(self.daemon.address) as self.pool:
            yield

    def work(self, who: str, job: str, sequence: str, steps: int, **options: object) -> Facts:
        """One of the workers that the story is about: its own count of model steps must be `steps`."""
        w = self.workers[who] = work(job, server=self.daemon.address, sequence=sequence, **options)
        w["expected_steps"] = steps
        require(w["steps"] == steps, f"Worker {who} computed {w['steps']} tokens instead of {steps}.")
        return w

    def read_and_publish(self) -> None:
        a = self.work("A", "read-and-publish", DOCUMENT, self.n, durability="sync")
        require(a["position"] == self.n, "Worker A did not read the whole text.")
        self.facts.update(state_bytes=a["state_bytes"], hot_budget_bytes=self.pool.capabilities().devices[0].budget_bytes)
        self.report(f"Seven workers, each a process with the same small RWKV-7, and a pool that holds {HOT_BYTES.replace('MiB', ' MiB')} of states:\n")
        self.report(f"A  read a text of {self.n:,} tokens in {a['reading_s']:.2f} s and published its state: {a['state_bytes']:,} bytes.")

    def fork_branches(self) -> None:
        prefix = self.pool.name("prefix", self.workers["A"]["prefix"])
        source = self.pool.describe(prefix)
        before = self.daemon.scrape().total("statepool_images_bytes")
        began = time.perf_counter()
        children = self.pool.fork_many(prefix, [f"branch/{i}" for i in range(BRANCHES)], durability="volatile")
        took_ms = (time.perf_counter() - began) * 1e3
        used = self.daemon.scrape().total("statepool_images_bytes") - before
        last = self.pool.describe(children[-1])
        require((last.position, last.version_id, last.checksum) == (self.n, source.version_id, source.checksum),
                "A fork is not at the version of its source.")
        require(used == 0, f"{BRANCHES} forks took {used} bytes of states instead of none.")
        self.facts["forks"] = {"count": len(children), "ms": took_ms, "bytes_used": used, "bytes_of_copies": len(children) * source.state_bytes}

    def share(self) -> None:
        """B and C go on from what A published, each in a way of its own."""
        for who, user in USERS.items():
            w = self.work(who, "continue", f"chat/{who}", len(user.text) + WRITTEN, tokens=WRITTEN, durability=user.durability,
                          text=user.text, seed=user.seed)
            require(w["matched_position"] == self.n, f"Worker {who} did not match the whole text.")
            self.oracles[who] = work("reference", tokens=WRITTEN, more=MORE, text=user.text, seed=user.seed)
            require_same(who, w, self.oracles[who])
        self.report(f"B  found it, forked it in {self.workers['B']['pool_ms']['fork']:.1f} ms and wrote {WRITTEN} tokens, without reading the text.")
        self.report("C  did the same with another question and another seed.")

    def evict_and_resume(self) -> None:
        """Others fill the pool: B's state, which nobody asked to have on disk, moves to RocksDB, and comes back for D."""
        before, tier_before = self.daemon.scrape().tiers(), self.pool.describe("chat/B").tier
        work("fill", server=self.daemon.address, sequence="crowd", tokens=CROWD, durability="volatile")
        after, tier_after = self.daemon.scrape().tiers(), self.pool.describe("chat/B").tier
        b = self.workers["B"]
        d = self.work("D", "resume", "chat/B", MORE, position=b["position"], tokens=MORE, store=True)
        resumed = self.daemon.scrape().tiers()
        self.facts["eviction"] = {"tier_before": tier_before, "tier_after": tier_after, "before": before, "after": after, "resumed": resumed}
        require(tier_before == "hot", f"B's state was {tier_before} before the pool filled up.")
        require(tier_after == "cold", f"B's state is {tier_after}, though the pool is full of others.")
        require(after["evictions"] > before["evictions"], "/metrics shows no eviction.")
        require(after["spills"] > before["spills"], "/metrics shows no spill to the cold store.")
        require(after["cold_bytes"] > before["cold_bytes"], "/metrics shows no more bytes in the cold store than before.")
        require(resumed["promotions"] > after["promotions"], "/metrics shows no promotion.")
        require(d["resumed_checksum"] == b["checksum"], "Worker D got another state than B stored.")
        require_same("D", d, self.oracles["B"]["more"])
        self.report(f"D  resumed B's work after {CROWD} other states had filled the pool: "
                    f"B's had moved to RocksDB, and came back in {d['pool_ms']['get']:.1f} ms.")

    def try_wrong_states(self) -> None:
        """What must not pass for the right state."""
        self.pool.create(self.workers["A"]["fingerprint"], "zero", durability="volatile")
        user = USERS["B"]
        wrong = {"zero": ("zero", 0), "one_token_earlier": (f"{DOCUMENT}/one-token-earlier", self.n - 1)}
        self.facts["wrong_states"] = {}
        for what, (name, position) in wrong.items():
            w = work("resume", server=self.daemon.address, sequence=name, position=position, tokens=WRITTEN, text=user.text, seed=user.seed)
            self.facts["wrong_states"][what] = w
            require(w["first_logits_sha256"] != self.oracles["B"]["first_logits_sha256"],
                    f"The state {what.replace('_', ' ')} gives the logits of the right one: the check is blind.")

    def remember_before_kill(self) -> None:
        info = self.pool.describe("chat/C")
        require(info.durable_revision == info.revision, "C's state was acknowledged as durable, and is not.")
        self.facts["before_kill"] = {"incarnation": self.daemon.incarnation, "revision": info.revision, "durable_revision": info.durable_revision,
                                     "position": info.position, "checksum": info.checksum}

    def kill_and_restart(self) -> None:
        self.daemon.kill()
        self.facts["restart_s"] = self.daemon.start()

    def resume_after_restart(self) -> None:
        a, c = self.workers["A"], self.workers["C"]
        info = self.pool.describe("chat/C")
        self.facts["after_restart"] = after = {"incarnation": self.daemon.incarnation, "revision": info.revision, "position": info.position,
                                               "checksum": info.checksum}
        require((info.position, info.checksum) == (c["position"], c["checksum"]), "After the restart C's state is not what was acknowledged.")
        e = self.work("E", "resume", "chat/C", MORE, position=c["position"], tokens=MORE, store=True)
        require_same("E", e, self.oracles["C"]["more"])
        after["prefix_position"] = self.pool.match_prefix(a["fingerprint"], [*self.prompt, 0]).position
        require(after["prefix_position"] == self.n, "After the restart the published prefix is not found.")
        try:
            self.pool.get("chat/B")
            after["volatile_miss"] = ""
        except statepool.NotFound as miss:
            after["volatile_miss"] = miss.reason
        require(after["volatile_miss"] in ("NOT_DURABLE_AT_RESTART", "UNKNOWN_SINCE_RESTART"),
                f"After kill -9 a volatile state must be a miss that says so, not {after['volatile_miss'] or 'an answer'}.")
        self.report(f"E  resumed C's work after kill -9 of the daemon, which served again {self.facts['restart_s']:.2f} s later.")

    def compute_in_place(self) -> None:
        """F does B's and C's work anew, both at once, right in memory that it shares with the daemon; G goes on where F ended, in an arena of its own."""
        before = self.daemon.scrape()
        self.work_in_place("F", WRITTEN, {who: ("", user.text, user.seed) for who, user in USERS.items()})
        self.work_in_place("G", MORE, {who: (f"shared/F/{who}", "", 0) for who in USERS})
        after = self.daemon.scrape()
        f, g = self.workers["F"], self.workers["G"]
        for who in USERS:
            for worker, oracle in ((f, self.oracles[who]), (g, self.oracles[who]["more"])):
                require_same(worker["who"], worker["users"][f"shared/{worker['who']}/{who}"], oracle)
            require(f["users"][f"shared/F/{who}"]["checksum"] == self.workers[who]["checksum"], f"F's state is not the one that {who} stored.")
        def grown(name: str, **labels: str) -> int:
            return after.total(name, **labels) - before.total(name, **labels)
        moved = "statepool_transfer_bytes_total"
        self.facts["in_place"] = seen = {
            "arenas": f["arenas"], "loaded_bytes": grown(moved, **{"from": "hot", "to": "arena"}),
            "stored_bytes": grown(moved, **{"from": "arena", "to": "hot"}),
            "message_bytes": grown(moved, **{"from": "hot", "to": "client"}) + grown(moved, **{"from": "client", "to": "hot"})}
        if f["arenas"]:
            self.report(f"F  did B's and C's work anew, both at once. This daemon has no arenas ({f['arenas']}), so it used get and set.")
            self.report("G  went on with both where F ended, in the same way.")
            return
        rows, size = len(USERS), self.facts["state_bytes"]
        require(seen["loaded_bytes"] == 2 * rows * size, "F and G did not load each row once.")
        require(seen["stored_bytes"] == (f["checkpoints"] + g["checkpoints"]) * rows * size, "F and G did not store all rows at each checkpoint.")
        require(seen["message_bytes"] == 0, "F or G sent or received a state.")
        self.report(f"F  did B's and C's work anew, both at once, computing in memory shared with the daemon (an arena): stored {f['checkpoints']} times.")
        self.report("G  went on with both where F ended, in an arena of its own: neither sent or received a state.")

    def work_in_place(self, who: str, tokens: int, users: dict[str, tuple[str, str, int]]) -> None:
        """users: where from, text, seed. Steps as in work()."""
        asked = [{"name": f"shared/{who}/{user}", "from": source, "text": text, "seed": seed} for user, (source, text, seed) in users.items()]
        w = self.workers[who] = work(script="arena_worker.py", server=self.daemon.address, tokens=tokens, users=json.dumps(asked))
        w["who"] = who
        w["expected_steps"] = sum(len(text) + tokens for _, text, _ in users.values())
        require(w["steps"] == w["expected_steps"], f"Worker {who} computed {w['steps']} tokens instead of {w['expected_steps']}.")

    def sum_up(self) -> None:
        workers, forks = self.workers, self.facts["forks"]
        require(len({w["pid"] for w in workers.values()}) == len(workers) == 7, "Two workers were one process.")
        began_at = {"B": workers["B"]["matched_position"], "C": workers["C"]["matched_position"],
                    "D": workers["D"]["resumed_position"], "E": workers["E"]["resumed_position"],
                    **{who: sum(user["loaded_position"] for user in workers[who]["users"].values()) for who in "FG"}}
        tokens = sum(began_at.values())
        seconds = tokens * workers["A"]["reading_s"] / self.n
        asking_ms = sum(sum(workers[who]["pool_ms"].values()) for who in began_at)
        self.facts["saved"] = {"tokens": tokens, "seconds": seconds, "asking_ms": asking_ms}
        for line in ("", "Each continuation equals that of one process that read everything itself: token for token,",
                     "and bit for bit in all logits. A zero state, or that of one token earlier, gives others.", "",
                     f"    … {self.prompt.decode().rstrip().splitlines()[-1]}",
                     *(f" {who}: {_snippet(user.text, workers[who]['tokens'])}" for who, user in USERS.items()), "",
                     f"{tokens:,} tokens were not computed again: {seconds:.1f} s saved, for {asking_ms:.0f} ms of asking the pool.",
                     f"{forks['count']:,} more forks took {forks['ms']:.1f} ms and {forks['bytes_used']} bytes; "
                     f"copies would have taken {forks['bytes_of_copies'] / 1e6:.0f} MB."):
            self.report(line)


def _snippet(text: str, tokens: list[int]) -> str:
    """What the user asked and the first line of the answer, cut to one line of a terminal."""
    line = (text + bytes(tokens).decode(errors="replace")).split("\n")[0]
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= 110 else line[:109].rsplit(" ", 1)[0] + " …"


# ------------------------------------------------------------------------------------------------------------ command line


def _kept_pid(work_dir: Path) -> int | None:
    """The daemon that an earlier --keep left running there."""
    try:
        pid = int((work_dir / "pid").read_text())
        running = f"--data-dir={work_dir / 'data'}" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (OSError, ValueError):
        return None
    return pid if running else None


def _keep(statepoold: Path, work_dir: Path) -> None:
    """Leaves a daemon running on what the story left behind, and says how to use it."""
    daemon = Daemon(statepoold, work_dir, KEPT_HOT_BYTES)
    try:
        daemon.start()
    except BaseException:
        if daemon.process is not None:
            daemon.kill()
        raise
    assert daemon.process is not None
    (work_dir / "pid").write_text(f"{daemon.process.pid}\n")
    tokens = work_dir / "prompt.tokens"
    tokens.write_text("".join(f"{t}\n" for t in [*PROMPT.read_bytes(), ord("B")]))
    tool = f"{_shown(statepoold.parent / 'statepool')} --server={daemon.address}"
    print(f"\nA daemon with these states is running at {daemon.address} (metrics: http://{daemon.metrics}/metrics).")
    print(f"  {tool} seq list")
    print(f"  {tool} prefix match --layout=tiny-rwkv --tokens={_shown(tokens)}")
    print(f"  kill {daemon.process.pid}    # stops it; its data stays in {_shown(work_dir / 'data')}")


def _shown(path: Path) -> str:
    """As it may be typed where we were called."""
    path = Path(os.path.abspath(path))
    shown = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return shlex.quote(shown if "/" in shown else f"./{shown}")


def _print(line: str) -> None:
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        line = re.sub(r"^( *[A-G])(?=:? )", "\033[1m\\1\033[0m", line)
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", type=Path, required=True, help="statepoold")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this directory, emptied first, and leave a daemon running on it")
    args = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # whatever the terminal's encoding is
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))  # so that what was started is stopped
    statepoold = args.daemon.resolve()
    try:
        if args.keep is None:
            with tempfile.TemporaryDirectory(prefix="statepool-main-job-") as directory:
                run(statepoold, Path(directory), _print)
        else:
            work_dir = args.keep.resolve()
            pid = _kept_pid(work_dir)
            require(pid is None, f"The daemon that an earlier run kept is still there: stop it with `kill {pid}` first.")
            shutil.rmtree(work_dir, ignore_errors=True)
            run(statepoold, work_dir, _print)
            _keep(statepoold, work_dir)
    except (MainJobError, statepool.StatepoolError) as error:
        print(f"main_job: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
