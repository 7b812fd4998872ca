# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""deploy/bundle: what it makes runs by itself, with nothing of this tree and nothing in the environment, and is the same every time."""
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

from daemon_process import BINARY, REPOSITORY

BUNDLE = REPOSITORY / "deploy/bundle"
BUILD = BINARY.parent
BYTES_MAX = 40_000_000
LIBC = re.compile(r"(linux-vdso|ld-linux-x86-64|lib(c|m|mvec|dl|rt|pthread|resolv|util|anl))\.so(\.\d+)?")
PYTHONS_OWN = {"libstdc++.so.6", "libgcc_s.so.1"}  # what numpy has loaded serves the library in the package
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # also where there is one
IN_PYTHON = """
import pathlib, sys
import statepool
from statepool import _kernels
from statepool.layouts import Layout, Tensor
address, root = sys.argv[1:]
assert pathlib.Path(statepool.__file__).is_relative_to(root), statepool.__file__
assert _kernels.available, "libstatepool_kernels.so is not used"
layout = Layout("bundled", (Tensor("s", [0], "uint8", {"x": 3 << 20}),))
data = bytes(range(256)) * (3 << 12)
with statepool.connect(address) as pool:
    pool.register_layout(layout)
    pool.set("from/python", data, 7, layout=layout)
    assert pool.get("from/python").data == data
"""


def run_clean(*command, env=None, **options):
    """With an environment that has nothing but what is given."""
    return subprocess.run([str(part) for part in command], env=env or {}, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def tarballs(tmp_path_factory):
    """Two, made side by side."""
    folder = tmp_path_factory.mktemp("tarballs")
    paths = [folder / "one.tar.xz", folder / "two.tar.xz"]
    runs = [subprocess.Popen([BUNDLE, "--build", BUILD, "--level=0", f"--output={path}"], stderr=subprocess.PIPE, text=True) for path in paths]
    for process in runs:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert sorted(folder.iterdir()) == sorted(paths), "something is left beside the tarballs"
    return paths


@pytest.fixture(scope="module")
def root(tarballs, tmp_path_factory):
    """The bundle, unpacked in a path that nobody knew."""
    folder = tmp_path_factory.mktemp("some where")
    with tarfile.open(tarballs[0]) as tar:
        tar.extractall(folder)
    (only,) = folder.iterdir()
    return only


@pytest.fixture(scope="module")
def cuda(root):
    return json.loads((root / "bundle.json").read_text())["cuda"]


@pytest.fixture
def served(root, tmp_path):
    """(process, address) of the bundle's daemon."""
    command = [root / "bin/statepoold", "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", f"--data-dir={tmp_path / 'data'}",
               "--hot-bytes=64MiB", "--warm-bytes=0", "--cold-bytes=1GiB", "--devices=host"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, env={}, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log) as process:
        try:
            line = process.stdout.readline()
            assert line, (tmp_path / "log").read_text()[-2000:]
            yield process, json.loads(line)["listen"][0]
        finally:
            process.terminate()
            assert process.wait(30) == 0, (tmp_path / "log").read_text()[-2000:]


def loaded_by(file):
    """{soname: where the dynamic linker finds it}."""
    listed = run_clean("/usr/bin/ldd", file)
    assert listed.returncode == 0, f"{file}: {listed.stdout}{listed.stderr}"
    return dict(re.findall(r"^\s*(\S+)(?: => (.*?))? ?\(0x", listed.stdout.replace("not found", "not found (0x"), re.MULTILINE))


def test_two_runs_give_the_same_bytes_below_the_limit(tarballs):
    assert tarballs[0].stat().st_size <= BYTES_MAX
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in tarballs}) == 1


def test_the_tarball_has_one_folder_and_neither_owners_nor_links(tarballs):
    with tarfile.open(tarballs[0]) as tar:
        entries = tar.getmembers()
    names = [entry.name for entry in entries]
    assert names[0] == "statepool-bundle" and all(name.startswith("statepool-bundle/") for name in names[1:])
    assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in entries} == {(0, 0, "", "")}
    assert all(entry.isfile() or entry.isdir() for entry in entries) and names[1:] == sorted(names[1:])
    head = subprocess.run(["git", "-C", REPOSITORY, "log", "-1", "--format=%ct"], capture_output=True, text=True)
    assert {entry.mtime for entry in entries} == {int(head.stdout or 0)}, "the time is the commit's, not that of the run"
    assert not [name for name in names if "__pycache__" in name]


def test_every_library_but_libcs_is_the_bundles(root):
    programs = [path for path in (root / "bin").rglob("*") if path.is_file()]
    assert {"statepoold", "statepool", "redis-server", "statepool_bench_local"} <= {path.name for path in programs}
    used = set()
    for program in programs:
        for soname, path in loaded_by(program).items():
            if not LIBC.fullmatch(pathlib.Path(soname).name):
                assert pathlib.Path(path).resolve().parent == root / "lib", f"{program.name} loads {soname} from {path}"
                used.add(soname)
    assert {"libgrpc++.so.1.51", "librocksdb.so.7.8", "libstdc++.so.6"} <= used
    assert used == {path.name for path in (root / "lib").iterdir()}, "lib has what nothing loads"
    library = root / "python/statepool/_lib/libstatepool_kernels.so"
    assert {name for name in loaded_by(library) if not LIBC.fullmatch(pathlib.Path(name).name)} <= PYTHONS_OWN


def test_the_kernels_for_a_gpu_bring_abseil_along_and_nothing_else(root, cuda):
    folder = root / "python/statepool/_lib"
    library = folder / "libstatepool_kernels_cuda.so"
    assert library.exists() == cuda
    if cuda:
        used = {soname: path for soname, path in loaded_by(library).items() if not LIBC.fullmatch(pathlib.Path(soname).name)}
        own = {soname for soname in used if soname.startswith("libabsl_")}
        assert own and set(used) - own <= PYTHONS_OWN and {pathlib.Path(used[soname]).parent for soname in own} == {folder}
        assert {path.name for path in folder.iterdir()} == {library.name, "libstatepool_kernels.so", *own}


def test_the_programs_for_a_gpu_are_there_if_they_are_built(root, cuda):
    built = f"{(BUILD / 'build.ninja').read_text()}".count("build tests/gpu_kernels_test:") == 1
    assert built == cuda == (root / "bin/gpu_kernels_test").exists() == (root / "bin/gpu_kernels_bench").exists()


def test_the_daemon_maps_nothing_from_elsewhere(served, root):
    process, _ = served
    mapped = {line.split(maxsplit=5)[5] for line in pathlib.Path(f"/proc/{process.pid}/maps").read_text().splitlines() if ".so" in line}
    outside = {path for path in mapped if not pathlib.Path(path).is_relative_to(root)}
    assert len(mapped) > len(outside) + 20 and all(LIBC.fullmatch(pathlib.Path(path).name) for path in outside), outside


def test_the_python_package_sets_and_gets_and_the_tool_gets_the_same(served, root, tmp_path):
    _, address = served
    done = run_clean(sys.executable, "-B", "-c", IN_PYTHON, address, root, env={"PYTHONPATH": str(root / "python")}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "state"
    done = run_clean(root / "bin/statepool", f"--server={address}", "-o", "json", "seq", "get", "from/python", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == bytes(range(256)) * (3 << 12) and json.loads(done.stdout)["position"] == 7


def test_the_wheel_installs_without_a_registry(root, tmp_path):
    wheels = [path.name for path in (root / "wheels").iterdir()]
    assert wheels == ["statepool-0.1.0-py3-none-linux_x86_64.whl"]
    done = run_clean(sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", f"--target={tmp_path / 'site'}", "--find-links",
                     root / "wheels", "statepool")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/statepool/_lib/libstatepool_kernels.so").exists() and (tmp_path / "site/statepool/v1/statepool_pb2.py").exists()


def test_redis_for_the_comparisons_starts(root):
    done = run_clean(root / "bin/redis-server", "--version")
    assert done.returncode == 0 and done.stdout.startswith("Redis server"), done.stderr


def test_everything_has_its_licence(root):
    rows = [line.split("\t") for line in (root / "THIRD_PARTY").read_text().split("\n\n", 1)[1].splitlines()]
    assert all((root / row[3]).stat().st_size > 100 for row in rows)
    named = {name for row in rows for name in row[4].split(", ")}
    assert {f"lib/{path.name}" for path in (root / "lib").iterdir()} | {"bin/redis-server"} <= named
    assert "Apache License" in (root / "LICENSE").read_text()


def everything_in(root):
    return {path.relative_to(root) for path in root.rglob("*")}


def test_without_a_gpu_its_tests_for_one_fail(root, cuda):
    before = everything_in(root)
    done = run_clean(root / "tests/gpu/run", "--part=1/3", env={"PATH": "/usr/bin:/bin"} | NO_GPU, cwd="/")
    assert (done.returncode, done.stdout) == (2, "")
    assert ("no GPU" if cuda else "this bundle was built without CUDA") in done.stderr
    assert everything_in(root) == before


def test_without_cuda_its_tests_for_a_gpu_say_so(root, tmp_path):
    for name in ("tests", "bundle.json"):
        (shutil.copytree if (root / name).is_dir() else shutil.copy)(root / name, tmp_path / name)
    (tmp_path / "bundle.json").write_text(json.dumps({"commit": "0", "cuda": False}))
    done = run_clean(tmp_path / "tests/gpu/run", env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (2, "") and "this bundle was built without CUDA" in done.stderr


def test_its_harnesses_run_with_any_python_that_has_the_packages_needs(root):
    before = everything_in(root)
    environment = {"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"}
    done = run_clean(sys.executable, root / "tests/crash/run", "workers", "--any-speed", "--cycles=5", "--daemon-kills=1", env=environment, cwd="/")
    line = json.loads(done.stdout)
    assert (line["value"], line["daemon_kills"]) == (0, 1) and line["kills"] >= 5, done.stderr
    done = run_clean(sys.executable, root / "tests/bench/run", "gpu-crowd", "--quick", env=environment | NO_GPU, cwd="/")
    assert (done.returncode, done.stdout) == (2, "") and "no GPU" in done.stderr
    assert everything_in(root) == before


def refused(*arguments, env=None):
    done = subprocess.run([BUNDLE, *arguments], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_what_is_not_built_is_named_with_the_command_that_builds_it(tmp_path):
    build = tmp_path / "release"
    assert "is no build; run: cmake --preset release && cmake --build --preset release" in refused("--build", build)
    build.mkdir()
    (build / "build.ninja").touch()
    (build / "CMakeCache.txt").touch()
    assert f"{build}/statepoold is not built; run: cmake --preset release" in refused("--build", build)
    (build / "CMakeCache.txt").write_text("STATEPOOL_SANITIZE:STRING=thread\n")
    assert "has sanitizers in it" in refused("--build", build)


def test_an_output_that_cannot_be_is_refused(tmp_path):
    assert "does not exist" in refused("--build", BUILD, "--output", tmp_path / "nowhere/bundle.tar.xz")
