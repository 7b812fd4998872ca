# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""What the runners share: figures as JSON lines, processes that are gone afterwards, builds with a planted defect."""
import contextlib
import ctypes
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]  # or an unpacked deploy/bundle: there bundle.json says what it has
BUNDLE = json.loads((REPOSITORY / "bundle.json").read_text()) if (REPOSITORY / "bundle.json").exists() else None
BUILD = REPOSITORY / ("bin" if BUNDLE else os.environ.get("STATEPOOL_BUILD", "build/release"))
TEST_PROGRAMS = BUILD if BUNDLE else BUILD / "tests"
REDIS_SERVER = BUILD / "redis-server" if BUNDLE else "redis-server"
FIELDS = ("name", "value", "unit", "n", "p50", "p99", "baseline", "baseline_name", "ratio", "goal", "aim", "ok",
          "commit", "machine", "seed")
PLANT_SOURCES = ("CMakeLists.txt", "cmake", "kernels", "proto", "server",
                 "client/CMakeLists.txt", "client/cpp", "client/cli", "client/python/src/statepool/hf_models.json")
PLANT_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O2", "-DSTATEPOOL_TESTS=OFF")
OK, FALLS_SHORT, NOT_MEASURABLE = 0, 1, 2


class NotMeasurable(Exception):
    pass


class Missed:
    """What could not be measured, while the rest is."""

    def __init__(self):
        self.why = []

    @contextlib.contextmanager
    def one(self, name):
        try:
            yield
        except NotMeasurable as error:
            note(f"{name}: not measurable: {error}")
            self.why.append(name)

    def tell(self):
        if self.why:
            raise NotMeasurable(", ".join(self.why))


def note(text):
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------- figures

def machine():
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    models = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = models[0] if models else platform.machine()
    return f"{cpu}, {os.cpu_count()} cores, {gib:.0f} GiB, Linux {platform.release()}"


def commit():
    """The tree's commit, with "-dirty" when it was changed since; or the bundle's."""
    if BUNDLE:
        return BUNDLE["commit"]
    command = ["git", "-C", REPOSITORY, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    git = subprocess.run(command, capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def figure(measured, seed):
    """Prints one figure; gives whether it reaches its goal, a limit of the field that `goal_of` names ("value"): the
    most that it may be, or with `goal_is_least` the least. `machine`: what else the machine has."""
    line = dict.fromkeys(FIELDS) | measured
    if line["baseline"]:
        line["ratio"] = line["value"] / line["baseline"]
    if line["ok"] is None:
        reached = line[line.get("goal_of", "value")]
        line["ok"] = line["goal"] is None or (
            reached >= line["goal"] if line.get("goal_is_least") else reached <= line["goal"])
    line |= {"commit": commit(), "machine": ", ".join(filter(None, (machine(), line["machine"]))), "seed": seed}
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
    return line["ok"]


def new_seed():
    return random.SystemRandom().randrange(1, 2**31)


def run(main):
    """Runs main() and exits with what it gives, or with 2 when it could not measure, or broke off. SIGTERM ends it in order
    too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except NotMeasurable as error:
        note(f"not measurable: {error}")
    except Exception:
        traceback.print_exc()
    sys.exit(NOT_MEASURABLE)


# ----------------------------------------------------------------------------------------------------------- processes

def binary(name, directory=BUILD):
    path = directory / name
    if not os.access(path, os.X_OK):
        raise NotMeasurable(f"{path} is not built")
    return path


@contextlib.contextmanager
def workspace(name, build=None):
    """A fresh directory on the disk that the build is on; gone afterwards."""
    build = build or BUILD
    if not build.is_dir():
        raise NotMeasurable(f"{build} does not exist; build first")
    path = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-", dir=build))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _die_with_parent():
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def process(command, **options):
    """A child that ends with this block, whatever happens."""
    try:
        child = subprocess.Popen([str(part) for part in command], preexec_fn=_die_with_parent, **options)
    except OSError as error:
        raise NotMeasurable(f"{command[0]} can't be started: {error}") from error
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def ready_server(command, log, **options):
    """A child that tells with one line of JSON that it serves; gives (process, that line's object)."""
    options |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with log.open("wb") as stderr, process(command, stderr=stderr, **options) as child:
        line = child.stdout.readline()
        if not line:
            raise NotMeasurable(f"{command[0]} did not get ready: {log.read_text(errors='replace')[-2000:]}")
        yield child, json.loads(line)


@contextlib.contextmanager
def server(command, log, **options):
    """A child that tells with one line of JSON where it listens; gives (process, address)."""
    with ready_server(command, log, **options) as (child, ready):
        yield child, ready["listen"][0]


def each_line(command, cwd, **options):
    """Runs a measuring program; gives what it prints, line by line. Then NotMeasurable unless it has measured all of it."""
    with process(command, cwd=cwd, stdout=subprocess.PIPE, text=True, **options) as child:
        yield from map(json.loads, child.stdout)
        status = child.wait()
    if status not in (OK, FALLS_SHORT):
        name = next((part for part in command if str(part).endswith(".py")), command[0])
        raise NotMeasurable(f"{name} ended with {status}")


def measured_lines(command, cwd):
    """Runs a measuring program; gives all that it printed."""
    return list(each_line(command, cwd))


def python_with(*modules):
    """A Python that has these modules: this one, or the one of deploy/install-deps."""
    code = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {modules!r})))"
    for python in (sys.executable, REPOSITORY / "build/venv/bin/python"):
        if os.access(python, os.X_OK) and subprocess.run([python, "-c", code], stderr=subprocess.DEVNULL).returncode == 0:
            return python
    raise NotMeasurable(f"there is no Python that has {', '.join(modules)}; install them, or run deploy/install-deps")


# -------------------------------------------------------------------------------------------------------------- plants

def plants(directory):
    return sorted(patch.stem for patch in directory.glob("*.patch"))


def build_plant(directory, name, sources=PLANT_SOURCES, options=PLANT_OPTIONS, target="statepoold", folder=None):
    """Builds the daemon (or `target`) with one planted defect, from a copy of its sources; gives the folder of the
    binary, in a bundle that of its own. Plants that share a `folder` are built one after the other in it, each from what
    is left of the one before."""
    if name not in plants(directory):
        raise NotMeasurable(f"no plant {name}; there are: {', '.join(plants(directory))}")
    if BUNDLE:
        return BUILD / "plants" / name
    base = REPOSITORY / "build" / "plants" / (folder or name)
    source, build = base / "src", base / "build"
    _copy_tree(sources, source)
    patch = directory / f"{name}.patch"
    _build_step(base, name, ["patch", "-p1", "--fuzz=0", "--batch", "--no-backup-if-mismatch", "-d", source, "-i", patch])
    _build_step(base, name, ["cmake", "-S", source, "-B", build, "-G", "Ninja", *options])
    build_target(build, name, target)
    return build


def _copy_tree(parts, to):
    """Makes `to` a copy of these parts of the tree. Only what differs is touched, and built again: what an earlier
    plant has changed is as it was then, but newer than what was built of it."""
    wanted = set()
    for part in parts:
        origin = REPOSITORY / part
        for file in origin.rglob("*") if origin.is_dir() else [origin]:
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            copy = to / file.relative_to(REPOSITORY)
            wanted.add(copy)
            if not copy.is_file() or copy.read_bytes() != file.read_bytes():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
    for file in list(to.rglob("*")):
        if file.is_file() and file not in wanted:
            file.unlink()


def build_target(build, name, *targets):
    """Builds what else a plant that is built in this folder needs."""
    _build_step(build.parent, name, ["cmake", "--build", build, "--target", *targets])


def _build_step(base, name, step):
    # One cache for all plants, whatever their folder is called: only the patched file is compiled for each.
    environment = os.environ | {"CCACHE_BASEDIR": str(base), "CCACHE_NOHASHDIR": "1"}
    environment.setdefault("CCACHE_DIR", str(REPOSITORY / "build" / "ccache"))
    note(f"plant {name}: {step[0]} {step[1]}")
    with process(step, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        output = child.stdout.read()
        if child.wait() != 0:
            raise NotMeasurable(f"plant {name}: {step[0]} failed:\n{output[-4000:]}")


def check_plants(names, caught, seed, figure_name):
    """Runs caught(plant) -> figures for every plant: one must fall short. Prints a line each; gives the exit status."""
    missed = 0
    for name in names:
        lines = caught(name)
        short = [line["name"] for line in lines if not line["ok"]]
        missed += not figure({"name": f"{figure_name}/plant/{name}", "value": len(short), "n": len(lines),
                              "unit": "figures that fell short", "goal": 1, "ok": bool(short)}, seed)
    return FALLS_SHORT if missed else OK
