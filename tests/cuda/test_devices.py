"""Memory of a device, and ops on a second one."""

from __future__ import annotations

import types

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.backends import cuda
from gpugrad.errors import DeviceError, DomainError
from gpugrad.testing import fake_cupy


def test_memory_adds_up(gpu):
    gg.release_memory()
    before = gg.memory()
    a = gg.zeros((1024, 1024), device="cuda")
    during = gg.memory()
    assert during["used"] - before["used"] == a.nbytes
    assert during["reserved"] >= during["used"]
    assert during["free"] + during["reserved"] <= during["total"]
    del a
    assert gg.memory()["used"] == before["used"]
    gg.release_memory()
    assert gg.memory()["reserved"] <= during["reserved"]


def test_a_limit_stops_arrays_beyond_it(gpu):
    try:
        gg.set_memory_limit(gg.memory()["reserved"] + (1 << 20))
        with pytest.raises(gg.errors.OutOfMemoryError, match="zeros"):
            gg.zeros((1 << 20,), device="cuda")
        gg.set_memory_limit(0.5)
        assert gg.memory()["limit"] == pytest.approx(gg.memory()["total"] / 2, rel=0.01)
    finally:
        gg.set_memory_limit(0)
    gg.zeros((1 << 20,), device="cuda")
    assert gg.memory()["limit"] == 0


def test_arrays_come_from_the_allocator_that_the_program_chose(gpu):
    """As with PyTorch's or RMM's pool under CuPy: one pool for both."""
    cuda = gpu.xp.cuda
    x = gg.tensor(np.linspace(0, 1, 1 << 12, dtype="float32"), device="cuda", requires_grad=True)
    shared = cuda.MemoryPool()
    with cuda.using_allocator(shared.malloc):
        y = gg.softmax(x)
        (y * y).sum().backward()
        assert shared.used_bytes() >= y.nbytes + x.grad.nbytes
    used = shared.used_bytes()
    del y
    assert shared.used_bytes() < used


def test_refusals():
    with pytest.raises(DeviceError, match="CPU's memory is NumPy's"):
        gg.memory("cpu")
    for limit in (-1, 1.5):
        with pytest.raises(DomainError, match="expected bytes, or a share up to"):
            gg.set_memory_limit(limit)


def test_an_op_runs_on_the_device_of_its_first_array(monkeypatch):
    """With several GPUs: whichever is current, results and launches belong to where the arrays lie."""
    now, seen = [0], []

    class Device:
        def __init__(self, index=None):
            self.id = now[-1] if index is None else index

        def __enter__(self):
            now.append(self.id)

        def __exit__(self, *_):
            now.pop()

    class Far(fake_cupy.ndarray):
        device = types.SimpleNamespace(id=1)

    runtime = types.SimpleNamespace(
        **{**vars(fake_cupy.runtime), "getDeviceCount": lambda: 2, "getDevice": lambda: now[-1]}
    )
    monkeypatch.setattr(fake_cupy, "runtime", runtime)
    monkeypatch.setattr(fake_cupy.cuda, "runtime", runtime)
    monkeypatch.setattr(fake_cupy.cuda, "Device", Device)
    backend = cuda.load(fake_cupy)
    run = backend.implement(lambda xp, *arrays: seen.append(backend.device), {})
    near, far = fake_cupy.ndarray(np.ones(2)), Far(np.ones(2))
    for arrays in ((near,), (far,), (None, far), ([far, far],), (2.0, near), ()):
        run(*arrays)
    assert seen == [0, 1, 1, 1, 0, 0]
    assert now == [0]
