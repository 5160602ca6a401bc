"""The two executions of a kernel: on the CPU emulator behind a double of CuPy, and on a GPU where there is one."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest

from gpugrad import backends
from gpugrad.backends import cuda
from gpugrad.backends.launch import FLOATS
from gpugrad.op import TABLE
from gpugrad.testing import fake_cupy


@pytest.fixture(scope="session", params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request):
    if request.param == "gpu":
        _, reason = cuda.find()
        if reason:
            pytest.skip(reason.partition("\n")[0])
        return cuda.load()
    from gpugrad.testing import emulator

    if emulator.compiler() is None:
        pytest.skip("the emulator needs a C++ compiler")
    emulator.FLAGS = (*emulator.FLAGS, *os.environ.get("GPUGRAD_TEST_FLAGS", "").split())  # of test_sanitizers.py
    return cuda.load(fake_cupy)


@pytest.fixture
def double():
    """CuPy's double as device 'cuda', for the length of a test."""
    by_name, by_type = dict(backends._by_name), dict(backends._by_type)
    backends.register(cuda.load(fake_cupy))
    yield
    for table, before in ((backends._by_name, by_name), (backends._by_type, by_type)):
        table.clear()
        table.update(before)
    for op in TABLE.values():
        op.impls.pop(fake_cupy.ndarray, None)


SCHEDULES = [{}, {"schedule": "reversed", "reverse_blocks": True}, {"schedule": "random", "seed": 5}]


@pytest.fixture(params=FLOATS)
def dtype(request):
    if request.param == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes").bfloat16)
    return np.dtype(request.param)


@pytest.fixture(params=SCHEDULES, ids=["natural", "reversed", "random"])
def scheduled(request, backend):
    """The order in which the emulator runs threads and blocks; a GPU chooses for itself."""
    if backend.xp.__name__ == "cupy":
        if request.param:
            pytest.skip("a GPU has no schedule to choose")
        return contextlib.nullcontext()
    return backend.xp.scheduled(**request.param)
