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


def _driver():
    """(the driver, how many GPUs it counts)."""
    cuda, count = _library("libcuda.so.1"), ctypes.c_int()
    for what, error in (("cuInit", lambda: cuda.cuInit(0)), ("cuDeviceGetCount", lambda: cuda.cuDeviceGetCount(ctypes.byref(count)))):
        if code := error():
            raise harness.NotMeasurable(f"no GPU: {what} gave CUDA error {code}")
    if count.value == 0:
        raise harness.NotMeasurable("no GPU: the driver counts 0 devices; is CUDA_VISIBLE_DEVICES set?")
    return cuda, count.value


def uuids():
    """Of all GPUs, as --devices=cuda:UUID takes them. Raises NotMeasurable where there is none."""
    cuda, count = _driver()
    found = []
    for ordinal in range(count):
        device, uuid = ctypes.c_int(), ctypes.create_string_buffer(16)
        if cuda.cuDeviceGet(ctypes.byref(device), ordinal) or cuda.cuDeviceGetUuid_v2(uuid, device):
            raise harness.NotMeasurable(f"GPU {ordinal} does not tell its UUID")
        digits = uuid.raw.hex()
        found.append("GPU-" + "-".join(digits[begin:end] for begin, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))))
    return found


def describe():
    """"NVIDIA H100 80GB HBM3, driver 580.159.04": what CUDA counts as device 0. Raises NotMeasurable where there is none."""
    cuda, _ = _driver()
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device):
        raise harness.NotMeasurable("no GPU: device 0 does not tell its name")
    return f"{name.value.decode()}, driver {_driver_version()}"
