# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""tests/gpu/run without a GPU: how it shares out its pieces, what it makes of what programs print, and, with a driver and programs that are
made up, how it ends."""
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from daemon_process import REPOSITORY, eventually

sys.path[:0] = [str(REPOSITORY / "tests/gpu"), str(REPOSITORY / "tests/bench")]
import device  # noqa: E402
import gpu  # noqa: E402
import harness  # noqa: E402
import kernels  # noqa: E402
import parts  # noqa: E402

FIELDS = {"name", "value", "unit", "n", "p50", "p99", "baseline", "baseline_name", "ratio", "goal", "aim", "ok", "commit", "machine", "seed"}
DRIVER = r"""
#include <string.h>
int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGetCount(int* count) { return *count = COUNT, 0; }
int cuDeviceGet(int* device, int index) { return *device = index, 0; }
int cuDeviceGetUuid_v2(char* uuid, int device) { for (int i = 0; i < 16; ++i) uuid[i] = (char)(16 * device + i); return 0; }
int cuDeviceGetName(char* name, int size, int device) { return strncpy(name, "Made-up GPU", size), device; }
int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char* version, unsigned size) { return strncpy(version, "580.1", size), 0; }
"""
# GoogleTest's report goes where --gtest_output says.
TEST = """#!/bin/sh
for argument; do case $argument in --gtest_output=json:*) report=${argument#*json:};; --gtest_random_seed=*) echo seed "$argument";; esac; done
printf '{"tests": 19, "failures": %s, "errors": 0}' FAILED > "$report"
exit STATUS
"""
BENCH = {"figure": "gather", "model": "mamba-2.8b", "rows": 64, "bytes": 3000000000, "n": 20, "us": 1000, "p50_us": 1100, "p99_us": 1200,
         "graph_us": 990, "baseline_us": 950, "baseline_p50_us": 960, "baseline_graph_us": 940}
# Stands for tests/bench/run and tests/crash/run: a line named after its first argument.
HARNESS = """#!/usr/bin/env python3
import json, sys
ended = STATUS
print("told on stderr", file=sys.stderr)
if ended != 3:
    print(json.dumps({"name": sys.argv[1], "value": 0, "unit": "u", "n": 1, "goal": 0, "ok": ended != 1, "machine": "its own"}))
sys.exit(ended)
"""
HARNESSES = ["gpu-copy", "gpu-fork", "gpu-spill", "gpu-crowd", "workers", "direct"]
SANITIZER = """#!/bin/sh
while [ "$1" != "${1#--}" ]; do shift 2; done
"$@"
echo "========= ERROR SUMMARY: ERRORS errors"
exit STATUS
"""


def piece(name, seconds, quick_seconds=None):
    return parts.Piece(name, seconds, None, quick_seconds)


# ---------------------------------------------------------------------------------------------------------------- parts

@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_every_piece_is_in_one_part_whatever_the_number(count):
    pieces = [piece(name, seconds) for name, seconds in zip("abcdefg", [60, 120, 100, 110, 100, 100, 1])]
    given = parts.parts_of(pieces, count)
    assert len(given) == count and given == parts.parts_of(pieces, count)
    assert sorted(each.name for part in given for each in part) == list("abcdefg")


def test_parts_take_about_as_long_as_each_other():
    pieces = [piece(name, seconds) for name, seconds in zip("abcdef", [60, 120, 100, 110, 100, 100])]
    sums = [sum(each.seconds for each in part) for part in parts.parts_of(pieces, 2)]
    assert sum(sums) == 590 and abs(sums[0] - sums[1]) <= 60


def test_quick_leaves_out_what_has_no_quick_form():
    assert parts.parts_of([piece("a", 100), piece("b", 100, 20)], 1, quick=True)[0][0].name == "b"


@pytest.mark.parametrize("text, expected", [("1/1", (1, 1)), ("2/3", (2, 3)), ("3/2", None), ("0/2", None), ("1", None), ("a/b", None)])
def test_a_part_is_a_number_of_a_number(text, expected):
    assert parts.parse_part(text) == expected


# ---------------------------------------------------------------------------------------------------------------- lines

@pytest.mark.parametrize("change, goal", [
    ({}, 0.9), ({"figure": "scatter"}, 0.9), ({"figure": "scatter_and_hash"}, 0.9), ({"figure": "hash"}, 0.7), ({"rows": 256}, 0.9), ({"model": "rwkv-7"}, 0.9),
    ({"model": "qwen3-next"}, 0.9), ({"model": "lfm2"}, None), ({"rows": 1}, None), ({"figure": "gather_of_one_state"}, None),
    ({"model": "qwen3-next, turned"}, None),
])
def test_large_models_in_large_batches_have_goals(change, goal):
    line = kernels.bench_line(BENCH | change)
    assert (line["goal"], line["goal_of"], line["goal_is_least"]) == (goal, "ratio", True)


def test_rates_are_of_bytes_and_microseconds():
    line = kernels.bench_line(BENCH)
    assert line["name"] == "gpu_gather_mamba-2.8b_64"
    assert (line["value"], line["p50"], line["baseline"]) == (3000, pytest.approx(3e9 / 1100 / 1e3), pytest.approx(3e9 / 950 / 1e3))


@pytest.mark.parametrize("output, status, failed, expected", [
    ("========= ERROR SUMMARY: 0 errors", 0, 0, (0, True)),
    ("========= ERROR SUMMARY: 3 errors", 9, 0, (3, False)),
    ("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", 9, 0, (2, False)),
    ("========= ERROR SUMMARY: 0 errors", 1, 1, (0, False)),
])
def test_a_sanitizers_summary_decides(output, status, failed, expected):
    line = kernels.sanitizer_line("memcheck", 10, failed, status, output)
    assert (line["value"], line["ok"]) == expected


@pytest.mark.parametrize("output, tests", [("", 10), ("Device not supported. ERROR SUMMARY: 0 errors", 10), ("ERROR SUMMARY: 0 errors", 0)])
def test_a_sanitizer_that_judged_nothing_is_not_clean(output, tests):
    with pytest.raises(harness.NotMeasurable):
        kernels.sanitizer_line("memcheck", tests, 0, 0, output)


# ------------------------------------------------------------------------------------------------------------- a run

@pytest.fixture
def bundle(tmp_path):
    """make(...) makes a bundle of these programs and a driver that counts `devices`; run(...) gives (status, lines, stderr)."""
    return Bundle(tmp_path)


class Bundle:
    def __init__(self, folder):
        self.root, self.tools = folder / "bundle", folder / "tools"
        (self.root / "tests/crash").mkdir(parents=True)
        for name in ("tests/gpu", "tests/bench"):
            (self.root / name).mkdir()
            for file in (REPOSITORY / name).iterdir():
                if file.suffix == ".py" or file.name == "run":
                    shutil.copy(file, self.root / name)
        (self.root / "bundle.json").write_text(json.dumps({"commit": "0123456789ab", "cuda": True}))
        (self.root / "bin").mkdir()
        self.tools.mkdir()

    def make(self, devices=1, failed=0, status=0, sanitizer=(0, 0), bench=(BENCH,), bench_status=0, harness_status=0):
        (self.tools / "driver.c").write_text(DRIVER)
        for library in ("libcuda.so.1", "libnvidia-ml.so.1"):
            subprocess.run(["gcc", "-shared", "-fPIC", "-w", f"-DCOUNT={devices}", "-o", self.tools / library, self.tools / "driver.c"], check=True)
        self.script("bin/gpu_kernels_test", TEST.replace("FAILED", str(failed)).replace("STATUS", str(status)))
        for program in ("gpu_device_test", "gpu_tiers_test"):
            self.script(f"bin/{program}", TEST.replace("FAILED", "0").replace("STATUS", "0"))
        for program, name in (("arenas_check.py", "gpu-arenas"), ("speculation_check.py", "gpu-advance"), ("ranks_check.py", "gpu-ranks"),
                              ("direct_check.py", "gpu-direct-kills")):
            judged = json.dumps({"name": name, "value": 0, "n": 141, "goal": 0, "ok": True})
            self.script(f"tests/gpu/{program}", f"#!/usr/bin/env python3\nprint({judged!r})\n")
        for name in ("tests/bench/run", "tests/crash/run"):
            self.script(name, HARNESS.replace("STATUS", str(harness_status)))
        self.script("bin/gpu_kernels_bench", "#!/bin/sh\n" + "".join(f"echo '{json.dumps(line)}'\n" for line in bench) + f"exit {bench_status}\n")
        if sanitizer:
            self.script(self.tools / "compute-sanitizer", SANITIZER.replace("ERRORS", str(sanitizer[0])).replace("STATUS", str(sanitizer[1])))
        return self

    def script(self, path, text):
        (self.root / path).write_text(text)
        (self.root / path).chmod(0o755)

    def environment(self):
        return {"PATH": f"{self.tools}:/usr/bin:/bin", "LD_LIBRARY_PATH": str(self.tools)}

    def run(self, *arguments):
        before = sorted(self.root.rglob("*"))
        done = subprocess.run([self.root / "tests/gpu/run", "--seed=5", *arguments], env=self.environment(), capture_output=True, text=True, timeout=60)
        assert sorted(self.root.rglob("*")) == before, "something is left"
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_all_is_well(bundle):
    status, lines, errors = bundle.make().run()
    assert status == 0, errors
    assert [line["name"] for line in lines] == ["gpu_kernels_test", "gpu_device_test", "gpu_tiers_test", "gpu_gather_mamba-2.8b_64", "gpu-arenas",
                                                "gpu-advance", "gpu-ranks", "gpu-direct-kills", *HARNESSES,
                                                "gpu_kernels_memcheck", "gpu_kernels_racecheck", "gpu_kernels_initcheck", "gpu_kernels_synccheck"]
    for line in lines:
        assert FIELDS <= set(line) and line["ok"] is True and (line["commit"], line["seed"]) == ("0123456789ab", 5)
        assert line["machine"].endswith("Made-up GPU, driver 580.1")


def test_the_parts_together_are_the_whole(bundle):
    bundle.make()
    names = [[line["name"] for line in bundle.run(f"--part={k}/3")[1]] for k in (1, 2, 3)]
    whole = [line["name"] for line in bundle.run()[1]]
    assert all(names) and sorted(itertools.chain(*names)) == sorted(whole)


def test_quick_has_no_sanitizers(bundle):
    status, lines, _ = bundle.make(sanitizer=None).run("--quick")
    assert status == 0 and len(lines) == 4


@pytest.mark.parametrize("made", [{"failed": 1, "status": 1}, {"status": 139}, {"sanitizer": (1, 9)}, {"bench": (BENCH | {"us": 1100},)},
                                  {"harness_status": 1}])
def test_what_is_wrong_is_1(bundle, made):
    status, lines, errors = bundle.make(**made).run()
    assert status == 1 and [line for line in lines if not line["ok"]], errors


@pytest.mark.parametrize("made, said", [
    ({"devices": 0}, "no GPU: the driver counts 0 devices"), ({"bench_status": 2}, "gpu_kernels_bench ended with 2"),
    ({"sanitizer": None}, "compute-sanitizer is neither in PATH"), ({"harness_status": 2}, "gpu-copy --quick ended with 2: told on stderr"),
    ({"harness_status": 3}, "gpu-crowd --quick ended with 3"),
])
def test_what_cannot_be_measured_is_2_and_named(bundle, made, said):
    if made.get("sanitizer", 0) is None and os.path.exists("/usr/local/cuda/bin/compute-sanitizer"):
        pytest.skip("compute-sanitizer is here, where it is always found")
    status, _, errors = bundle.make(**made).run()
    assert status == 2 and said in errors


def test_a_program_that_is_missing_is_2_and_what_else_there_is_runs(bundle):
    (bundle.make().root / "bin/gpu_kernels_bench").unlink()
    status, lines, errors = bundle.run()
    assert status == 2 and len(lines) == 11 + len(HARNESSES) and "gpu_kernels_bench is not built" in errors


@pytest.mark.parametrize("arguments", [["--part=3/2"], ["--part=30/30"], ["--part=x"]])
def test_a_part_that_is_none_is_2(bundle, arguments):
    status, lines, errors = bundle.make().run(*arguments)
    assert status == 2 and not lines and "usage" in errors


@pytest.mark.parametrize("failed, status", [(1, 0), (0, 1)])
def test_a_plant_must_be_caught(bundle, failed, status):
    bundle.make()
    (bundle.root / "tests/gpu/plants").mkdir()
    (bundle.root / "tests/gpu/plants/some.patch").touch()
    (bundle.root / "bin/plants/some").mkdir(parents=True)
    bundle.script("bin/plants/some/gpu_kernels_test", TEST.replace("FAILED", str(failed)).replace("STATUS", str(failed)))
    ended, lines, errors = bundle.run("--plants", "--check")
    assert ended == status and lines[-1]["name"] == "gpu/plant/some" and lines[-1]["ok"] == (status == 0), errors


def test_without_plants_the_check_of_plants_does_not_pass(bundle):
    status, lines, errors = bundle.make().run("--plants", "--check")
    assert status == 2 and not lines and "deploy/bundle --plants" in errors


def test_a_run_that_is_ended_leaves_no_process(bundle):
    pid = bundle.tools / "pid"
    bundle.make().script("bin/gpu_kernels_test", f"#!/bin/sh\necho $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 1000\n")
    with subprocess.Popen([bundle.root / "tests/gpu/run"], env=bundle.environment(), stderr=subprocess.DEVNULL) as process:
        eventually(pid.exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not list((bundle.root / "bin").glob("gpu-*"))


# ------------------------------------------------------------------------------------------------------- tests/bench/gpu.py

def test_gpus_are_told_apart_by_their_uuids(bundle):
    bundle.make(devices=2)
    done = subprocess.run([sys.executable, "-B", "-c", "import device; print(device.uuids())"], env=bundle.environment() | {
        "PYTHONPATH": f"{REPOSITORY}/tests/gpu:{REPOSITORY}/tests/bench"}, capture_output=True, text=True)
    assert done.stdout.strip() == "['GPU-00010203-0405-0607-0809-0a0b0c0d0e0f', 'GPU-10111213-1415-1617-1819-1a1b1c1d1e1f']", done.stderr


@pytest.mark.parametrize("name", sorted(gpu.BENCHES))
def test_without_a_gpu_a_figure_of_one_is_not_measurable(name):
    with pytest.raises(harness.NotMeasurable):
        device.describe()
        pytest.skip("there is a GPU")
    done = subprocess.run([REPOSITORY / "tests/bench/run", name, "--quick"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "") and "no GPU" in done.stderr


def test_what_was_measured_before_it_broke_off_is_told(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("import sys\nprint('{\"name\": 1}', flush=True)\nsys.exit(2)")
    lines = harness.each_line([sys.executable, script], tmp_path)
    assert next(lines) == {"name": 1}
    with pytest.raises(harness.NotMeasurable, match="broken.py ended with 2"):
        next(lines)


def test_missed_figures_are_raised_after_the_others():
    missed = harness.Missed()
    missed.tell()
    for name in ("one", "two"):
        with missed.one(name):
            raise harness.NotMeasurable("why")
    with pytest.raises(harness.NotMeasurable, match="one, two"):
        missed.tell()


def test_a_python_that_lacks_something_is_not_taken():
    assert harness.python_with("json", "xml.dom")
    with pytest.raises(harness.NotMeasurable, match="no_such_module"):
        harness.python_with("json", "no_such_module.at_all")


def test_a_program_that_breaks_off_has_measured_nothing(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(REPOSITORY / 'tests/bench')!r}); import harness; harness.run(lambda: 1 / 0)")
    done = subprocess.run([sys.executable, "-B", script], capture_output=True, text=True)
    assert done.returncode == harness.NOT_MEASURABLE and "ZeroDivisionError" in done.stderr
