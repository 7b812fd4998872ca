# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Which GPU the programs get, and its driver, from the driver's own libraries."""
import ctypes

import harness


def _library(name):
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise harness.NotMeasurable(f"no GPU: {name} of NVIDIA's driver can't be loaded ({error}); run this on a machine with a GPU") from error


def _driver_version():
    """"580.159.04", or "unknown" where only CUDA is let through."""
    try:
        management = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "unknown"
    version = ctypes.create_string_buffer(80)
    if management.nvmlInit_v2() != 0 or management.nvmlSystemGetDriverVersion(version, len(version)) != 0:
        return "unknown"
    return version.value.decode()


def describe():
    """"NVIDIA H100 80GB HBM3, driver 580.159.04": what CUDA counts as device 0. Raises NotMeasurable where there is none."""
    cuda = _library("libcuda.so.1")
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    for what, error in (("cuInit", lambda: cuda.cuInit(0)), ("cuDeviceGetCount", lambda: cuda.cuDeviceGetCount(ctypes.byref(count)))):
        if code := error():
            raise harness.NotMeasurable(f"no GPU: {what} gave CUDA error {code}")
    if count.value == 0:
        raise harness.NotMeasurable("no GPU: the driver counts 0 devices; is CUDA_VISIBLE_DEVICES set?")
    if cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device):
        raise harness.NotMeasurable("no GPU: device 0 does not tell its name")
    return f"{name.value.decode()}, driver {_driver_version()}"
