# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The figures gpu-*: which daemons they want, and which programs measure them. Each measure_*() gives lines, and raises NotMeasurable after them for what
could not be measured: all of it where there is no GPU."""
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "gpu"))
import device as gpu_device  # noqa: E402
import harness  # noqa: E402

MODULES = ("grpc", "google.protobuf", "google.rpc", "numpy", "xxhash")
GPU_MODULES = (*MODULES, "torch", "cuda.bindings")
CROWD_S, QUICK_CROWD_S = 60, 20
START_S = 10.0
SHARINGS = ("time-sliced", "mps")


# -------------------------------------------------------------------------------------------------------------- daemons

@contextlib.contextmanager
def daemon(workspace, directory, name, devices, hot, warm="0", more=(), environment=None, direct=True):
    """A daemon, with direct ways if it can have them on these devices; gives (process, address, address of its metrics)."""
    def start(*flags):
        command = [harness.binary("statepoold", directory), f"--listen=unix:{name}.sock", "--metrics=127.0.0.1:0", f"--data-dir={workspace / name}",
                   f"--hot-bytes={hot}", f"--warm-bytes={warm}", "--cold-bytes=40GiB", f"--devices={devices}", "--log-level=warn", *more, *flags]
        return harness.ready_server(command, workspace / f"{name}.log", cwd=workspace, env=environment)

    with contextlib.ExitStack() as stack:
        try:
            child, ready = stack.enter_context(start(*["--direct"] * direct))
        except harness.NotMeasurable as error:
            if not direct:
                raise
            harness.note(f"without --direct: {error}")
            child, ready = stack.enter_context(start())
        yield child, f"unix:{workspace / name}.sock", ready["metrics"]


@contextlib.contextmanager
def mps():
    """The environment in which processes share the GPU by MPS, whose control daemon is this block's own."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        raise harness.NotMeasurable("nvidia-cuda-mps-control is not in PATH: nothing is measured under MPS")
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:  # the paths of its sockets must be short
        environment = os.environ | {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        with open(f"{folder}/output", "wb") as output, \
                harness.process([control, "-f"], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as child:
            deadline = time.monotonic() + START_S
            while ask_mps(environment, "get_server_list") is None:
                if child.poll() is not None or time.monotonic() > deadline:
                    raise harness.NotMeasurable(f"MPS does not start: {pathlib.Path(output.name).read_text(errors='replace')[-500:]}")
                time.sleep(0.1)
            try:
                yield environment
            finally:
                ask_mps(environment, "quit -t 5")


def ask_mps(environment, command):
    """The control daemon's answer; None: there is none."""
    try:
        asked = subprocess.run(["nvidia-cuda-mps-control"], input=f"{command}\n", env=environment, capture_output=True, text=True, timeout=START_S)
    except subprocess.TimeoutExpired:
        return None
    return asked.stdout if asked.returncode == 0 else None


def require_mps(environment, pid):
    """NotMeasurable unless this process is one of MPS's."""
    servers = (ask_mps(environment, "get_server_list") or "").split()
    clients = [client for server in servers for client in (ask_mps(environment, f"get_client_list {server}") or "").split()]
    if str(pid) not in clients:
        raise harness.NotMeasurable(f"MPS started, but the daemon ({pid}) is none of its clients ({clients}) of servers {servers}")


def program(name, modules, workspace, environment=None, **options):
    """Lines of one of the measuring programs; those that need torch tell which GPU they are of."""
    gpu = {"machine": gpu_device.describe()} if "torch" in modules else {}
    flags = [f"--{key.replace('_', '-')}" if value is True else f"--{key.replace('_', '-')}={value}" for key, value in options.items() if value is not False]
    for line in harness.each_line([harness.python_with(*modules), "-B", HERE / name, *flags], workspace, env=environment):
        yield line | gpu


# -------------------------------------------------------------------------------------------------------------- figures

def require_gpus(count=1):
    gpu_device.describe()
    if count > 1 and len(gpu_device.uuids()) < count:
        raise harness.NotMeasurable(f"this needs {count} GPUs, the driver counts {len(gpu_device.uuids())}")


# -------------------------------------------------------------------------------------------------------------- figures

def measure_copy(workspace, directory, quick, seed, options):
    """Time-sliced, and then the same under MPS, or one of them. 256 rows of 23 MB are 5.9 GB, which the arena, the slots reserved for it, the versions and what a
    direct worker was granted take each; the last two lie in extents of the worker's own."""
    require_gpus()
    missed = harness.Missed()
    hot, granted = ("10GiB", "4GiB") if quick else ("32GiB", "16GiB")
    for sharing in (options.sharing,) if options.sharing else SHARINGS:
        with missed.one(f"gpu-copy {sharing}"), mps() if sharing == "mps" else contextlib.nullcontext() as environment, \
                daemon(workspace, directory, f"copy-{sharing}", "cuda", hot, more=[f"--max-granted-bytes={granted}"], environment=environment) as (child, address, metrics):
            if environment:
                require_mps(environment, child.pid)
            yield from program("gpu_copy.py", GPU_MODULES, workspace, environment, server=address, metrics=metrics, seed=seed, quick=quick,
                               sharing=sharing, busy="0,1" if quick else "0,1,4")
    missed.tell()


def measure_fork(workspace, directory, quick, seed, _options):
    require_gpus()
    with daemon(workspace, directory, "fork", "cuda", "8GiB" if quick else "20GiB") as (_, address, metrics):
        yield from program("gpu_fork.py", GPU_MODULES, workspace, server=address, metrics=metrics, seed=seed, quick=quick)


def measure_spill(workspace, directory, quick, seed, _options):
    require_gpus()
    missed = harness.Missed()
    for part, hot, warm in (("disk", "4GiB", "0"), ("warm", "5GiB", "10GiB"), ("trips", "192MiB", "0"), ("trips", "192MiB", "192MiB")):
        name = f"{part}-{warm}"
        with missed.one(f"gpu-spill {name}"), daemon(workspace, directory, name, "cuda", hot, warm, direct=False) as (child, address, metrics):
            yield from program("gpu_spill.py", GPU_MODULES, workspace, part=part, server=address, metrics=metrics, seed=seed, quick=quick,
                               directory=workspace, pid=child.pid, with_warm=int(part == "trips" and warm != "0"))
        shutil.rmtree(workspace / name, ignore_errors=True)
    missed.tell()


def measure_crowd(workspace, directory, quick, seed, options):
    """Also without a GPU: over far or host memory it says the same of everything but the copies."""
    devices = options.devices or "cuda"
    if devices == "cuda":
        require_gpus()
    hot_bytes, workers, seconds = (512 << 20, 4, QUICK_CROWD_S) if quick else (1 << 30, 8, CROWD_S)
    warm_bytes = 0 if devices == "host" else hot_bytes // 4
    with daemon(workspace, directory, "crowd", devices, hot_bytes, warm_bytes) as (_, address, metrics):
        yield from program("gpu_crowd.py", GPU_MODULES if devices == "cuda" else MODULES, workspace, server=address, metrics=metrics, directory=workspace,
                           devices=devices, hot_bytes=hot_bytes, workers=workers, seconds=seconds, seed=seed)


def measure_peer(workspace, directory, quick, seed, _options):
    require_gpus(2)
    devices = "cuda:" + ",".join(gpu_device.uuids()[:2])
    with daemon(workspace, directory, "peer", devices, "8GiB", direct=False) as (_, address, metrics):
        yield from program("gpu_peer.py", GPU_MODULES, workspace, server=address, metrics=metrics, seed=seed, quick=quick)


BENCHES = {"gpu-copy": measure_copy, "gpu-crowd": measure_crowd, "gpu-fork": measure_fork, "gpu-peer": measure_peer, "gpu-spill": measure_spill}
