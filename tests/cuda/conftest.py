"""The two executions of a kernel: on the CPU emulator behind a double of CuPy, and on a GPU where there is one."""

from __future__ import annotations

import pytest

from gpugrad.backends import cuda


@pytest.fixture(scope="session", params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request):
    if request.param == "gpu":
        _, reason = cuda.find()
        if reason:
            pytest.skip(reason.partition("\n")[0])
        return cuda.load()
    from gpugrad.testing import fake_cupy
    from gpugrad.testing.emulator import compiler

    if compiler() is None:
        pytest.skip("the emulator needs a C++ compiler")
    return cuda.load(fake_cupy)
