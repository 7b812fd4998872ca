# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Planted defects: patches in plants/, and gpu_kernels_test with one of them."""
import pathlib

import harness

PLANTS = pathlib.Path(__file__).resolve().parent / "plants"
SOURCES = harness.PLANT_SOURCES + ("tests",)
OPTIONS = harness.PLANT_OPTIONS[:-1] + ("-DSTATEPOOL_TESTS=ON",)


def names():
    found = harness.plants(PLANTS)
    if not found:
        raise harness.NotMeasurable("this bundle has no planted defects; make it with: deploy/bundle --plants")
    return found


def program(name):
    """Built here, or the bundle's."""
    if harness.BUNDLE:
        return harness.binary("gpu_kernels_test", harness.BUILD / "plants" / name)
    build = harness.build_plant(PLANTS, name, SOURCES, OPTIONS, "gpu_kernels_test", "gpu")
    return harness.binary("gpu_kernels_test", build / "tests")
