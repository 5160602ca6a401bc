"""The two executions of a kernel: on the CPU emulator behind a double of CuPy, and on a GPU where there is one."""

from __future__ import annotations

import os

import pytest

from gpugrad.backends import cuda


@pytest.fixture(scope="session", params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request):
    if request.param == "gpu":
        _, reason = cuda.find()
        if reason:
            pytest.skip(reason.partition("\n")[0])
        return cuda.load()
    from gpugrad.testing import emulator, fake_cupy

    if emulator.compiler() is None:
        pytest.skip("the emulator needs a C++ compiler")
    emulator.FLAGS = (*emulator.FLAGS, *os.environ.get("GPUGRAD_TEST_FLAGS", "").split())  # of test_sanitizers.py
    return cuda.load(fake_cupy)
