# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Planted defects: patches in plants/, and gpu_kernels_test with one of them; those of figures of a GPU in ../bench/plants, and the daemon with one."""
import pathlib

import harness

PLANTS = pathlib.Path(__file__).resolve().parent / "plants"
FIGURES_PLANTS = PLANTS.parents[1] / "bench" / "plants"
SOURCES = harness.PLANT_SOURCES + ("tests",)
OPTIONS = harness.PLANT_OPTIONS[:-1] + ("-DSTATEPOOL_TESTS=ON",)


def of_kernels():
    return harness.plants(PLANTS)


def of_figures():
    """Those that tests/bench/run judges."""
    return [name for name in harness.plants(FIGURES_PLANTS) if name.startswith("gpu-")]


def names():
    found = of_kernels() + of_figures()
    if not found:
        raise harness.NotMeasurable("this bundle has no planted defects; make it with: deploy/bundle --plants")
    return found


def program(name):
    """Of a plant of either kind; built here, or the bundle's."""
    if name in of_figures():
        return harness.binary("statepoold", harness.build_plant(FIGURES_PLANTS, name))
    build = harness.build_plant(PLANTS, name, SOURCES, OPTIONS, "gpu_kernels_test", "gpu")
    return harness.binary("gpu_kernels_test", build if harness.BUNDLE else build / "tests")
