"""The two executions of a kernel: on the CPU emulator behind a double of CuPy, and on a GPU where there is one."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest

from gpugrad import backends
from gpugrad.backends import cuda
from gpugrad.backends.launch import FLOATS
from gpugrad.op import RAW, TABLE
from gpugrad.ops import random
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler


@pytest.fixture(scope="session", params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request):
    if request.param == "gpu":
        _, reason = cuda.find()
        if reason:
            pytest.skip(reason.partition("\n")[0])
        return cuda.load()
    if compiler() is None:
        pytest.skip("the emulator needs a C++ compiler")
    return cuda.load(fake_cupy)


@pytest.fixture(autouse=True)
def _watched(request, monkeypatch):
    """The tests of kernels run them instrumented: races, access out of bounds and undefined operations are errors."""
    if request.path.name.startswith("test_kernels") and "backend" in request.fixturenames:
        backend = request.getfixturevalue("backend")
        if backend.xp is fake_cupy:
            monkeypatch.setenv("GPUGRAD_EMULATOR", os.environ.get("GPUGRAD_EMULATOR", "checked"))
            monkeypatch.setattr(backend, "checked", True)  # launches by arrays, whose ends are known


@contextlib.contextmanager
def registered(backend):
    """A backend as device 'cuda', for the length of a test."""
    by_name, by_type = dict(backends._by_name), dict(backends._by_type)
    counter = random.default._counter  # it moves to the device that draws
    backends.register(backend)
    try:
        yield backend
    finally:
        random.default._counter = counter
        for table, before in ((backends._by_name, by_name), (backends._by_type, by_type)):
            table.clear()
            table.update(before)
        for bound in (RAW, *(op.impls for op in TABLE.values())):
            bound.pop(backend.array_type, None)


@pytest.fixture
def double():
    """CuPy's double as device 'cuda'."""
    with registered(cuda.load(fake_cupy)) as backend:
        yield backend


@pytest.fixture
def gpu(backend):
    """The double or the GPU, whichever `backend` stands for, as device 'cuda': one test body for both."""
    with registered(backend):
        yield backend


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
