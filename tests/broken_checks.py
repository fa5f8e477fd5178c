"""Checks that must not pass, importable in a process of their own."""

import os
import time
from unittest import mock

from jobs.gpu_kernels import Numbers, Settings, check_paged
from model import cpu_kernels


def check_broken_kernel(settings: Settings) -> Numbers:
    """The compiled loop of CPUs, which sees half of what lies before a chunk."""
    whole = cpu_kernels.attend_paged

    def broken(*tensors, starts_S, **places):
        whole(*tensors, starts_S=starts_S // 2, **places)

    with mock.patch("model.cpu_kernels.attend_paged", broken):
        return check_paged(settings, implementation="numba")


def check_that_hangs(settings: Settings) -> Numbers:
    time.sleep(600)
    return {}


def check_that_crashes(settings: Settings) -> Numbers:
    os.write(2, b"the device is lost\n")
    os.abort()


def check_that_raises(settings: Settings) -> Numbers:
    return {"share": 1 // 0}
