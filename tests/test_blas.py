"""Products on NumPy: the same bits for any number of threads, and a BLAS that does not spin beside its neighbours."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.backends import blas

controlled = pytest.mark.skipif(blas.controls() is None, reason="NumPy's BLAS is no OpenBLAS that can be controlled")
SHAPES = [
    (128, 784, 512), (512, 128, 784), (2048, 64, 40), (40, 64, 2048), (1, 4096, 2048), (4096, 2048, 1), (301, 299, 307),
]  # fmt: skip
STACKS = [((8, 96, 100), (8, 100, 96)), ((2, 5, 96, 100), (2, 5, 100, 96)), ((3, 400, 100), (1, 100, 96))]


def values(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    return (a + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else a).astype(dtype)


@pytest.fixture
def two():
    """BLAS with two threads, whatever the environment says."""
    if (found := blas.controls()) is None:
        yield
        return
    before = found[0]()
    found[1](2)
    yield
    found[1](before)


def several(x, y, monkeypatch, into=None):
    """The product, which has the same bits with 1, 2, 3 and 7 threads."""
    monkeypatch.setenv("GPUGRAD_THREADS", "1")
    want = blas.matmul(x, y)
    for count in (2, 3, 7):
        monkeypatch.setenv("GPUGRAD_THREADS", str(count))
        got = blas.matmul(x, y, into)
        assert into is None or got is into
        np.testing.assert_array_equal(got, want)
    return want


def close(got, x, y):
    """Within the bound of any order of summation."""
    exact, size = np.matmul(x.astype("D"), y.astype("D")), np.matmul(np.abs(x), np.abs(y))
    assert (np.abs(got - exact) <= 2 * x.shape[-1] * np.finfo(got.dtype).eps * size).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_do_not_depend_on_the_number_of_threads(shape, dtype, monkeypatch, two):
    m, k, n = shape
    x, y = values((m, k), dtype), values((k, n), dtype, 1)
    for a, b in [(x, y), (x.T.copy().T, y), (x, y.T.copy().T)]:
        close(several(a, b, monkeypatch), a, b)
        close(several(a, b, monkeypatch, np.full((m, n), np.nan, dtype)), a, b)


@pytest.mark.parametrize("shapes", STACKS, ids=str)
def test_stacks(shapes, monkeypatch, two):
    x, y = (values(s, "float32", i) for i, s in enumerate(shapes))
    np.testing.assert_array_equal(several(x, y, monkeypatch), np.matmul(x, y))


@controlled
def test_large_products_are_shared(monkeypatch, two):
    monkeypatch.setenv("GPUGRAD_THREADS", "2")
    meeting, real, met = threading.Barrier(2), np.matmul, []

    def waiting(*args, **kwargs):
        meeting.wait(60)
        met.append(threading.current_thread().name)
        return real(*args, **kwargs)

    x, y = values((256, 400), "float32"), values((400, 256), "float32")
    monkeypatch.setattr(np, "matmul", waiting)
    got = blas.matmul(x, y)
    monkeypatch.undo()
    assert len(set(met)) == 2
    close(got, x, y)


ODD = {
    "sliced": lambda a: a[::2, ::2],
    "backwards": lambda a: a[::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "vector": lambda a: a[0],
    "whole numbers": lambda a: (a * 9).astype(int),
}


@pytest.mark.parametrize("odd", ODD)
def test_other_layouts_and_types_are_numpys_affair(odd, monkeypatch, two):
    monkeypatch.setenv("GPUGRAD_THREADS", "2")
    x, y = ODD[odd](values((600, 600), "float64")), values((600, 600), "float64", 1)
    y = y[: x.shape[-1]]
    np.testing.assert_allclose(blas.matmul(x, y), np.dot(x, y), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(blas.matmul(y.T, y), np.dot(y.T, y), rtol=1e-9, atol=1e-9)


def test_a_result_that_lies_otherwise(two):
    x, y, out = values((300, 600), "float64"), values((600, 400), "float64", 1), np.empty((400, 300)).T
    assert blas.matmul(x, y, out) is out
    np.testing.assert_allclose(out, np.dot(x, y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_matrix_times_its_transpose_is_symmetric(dtype, two):
    x = values((500, 300), dtype)
    for a, b in [(x, x.T), (x.T, x), (x[None], x[None].swapaxes(1, 2))]:
        got = blas.matmul(a, b)
        np.testing.assert_array_equal(got, got.swapaxes(-1, -2))


def test_errors_are_numpys():
    with pytest.raises(ValueError, match="matmul"):
        blas.matmul(np.ones((600, 700)), np.ones((600, 700)))


@controlled
def test_blas_has_its_threads_back(two):
    read = blas.controls()[0]
    with blas.single:
        assert read() == 1
        with blas.single:
            assert read() == 1
        assert read() == 1
    assert read() == 2
    with pytest.raises(ValueError):
        blas.matmul(np.ones((600, 700)), np.ones((600, 700)))
    assert read() == 2
    inside, go = threading.Event(), threading.Event()

    def other():
        with blas.single:
            inside.set()
            go.wait(60)

    thread = threading.Thread(target=other)
    with blas.single:
        thread.start()
        assert inside.wait(60)
    assert read() == 1  # the other is still inside
    go.set()
    thread.join(60)
    assert read() == 2


@controlled
def test_one_thread_for_blas_is_one_thread_for_products(two, monkeypatch):
    monkeypatch.setenv("GPUGRAD_THREADS", "2")
    blas.controls()[1](1)
    names, real = set(), np.matmul

    def seen(*args, **kwargs):
        names.add(threading.current_thread())
        return real(*args, **kwargs)

    monkeypatch.setattr(np, "matmul", seen)
    blas.matmul(values((400, 400), "float32"), values((400, 400), "float32"))
    assert names == {threading.current_thread()}


def test_a_blas_that_cannot_be_controlled_is_left_alone(monkeypatch):
    monkeypatch.setattr(blas, "controls", lambda: None)
    x, y = values((400, 400), "float32"), values((400, 400), "float32")
    np.testing.assert_array_equal(blas.matmul(x, y), np.matmul(x, y))


@controlled
def test_nothing_spins_when_a_step_is_over(two):
    """OpenBLAS's threads go on for 25 ms or more after a product of theirs."""
    w = gg.tensor(values((784, 512), "float32"), requires_grad=True)
    x = gg.tensor(values((256, 784), "float32"))
    idle = []
    for _ in range(5):
        loss = (x @ w).sum()
        loss.backward()
        w.grad = None
        time.sleep(0.002)
        before = time.process_time()
        time.sleep(0.02)
        idle.append(time.process_time() - before)
    assert min(idle) < 0.004, idle


@controlled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_of_a_thread_inside_a_product():
    """A fork while another thread holds BLAS to one thread: the child has its threads back, before and after."""
    text = """
import os, threading, numpy as np
from gpugrad.backends import blas
go = threading.Event()
def hold():
    with blas.single:
        inside.set(); go.wait(60)
inside = threading.Event()
read, write = blas.controls()
write(2)
threading.Thread(target=hold).start()
inside.wait(60)
assert read() == 1
pid = os.fork()
if pid == 0:
    a = np.ones((400, 400), "float32")
    os._exit(0 if read() == 2 and blas.matmul(a, a)[0, 0] == 400 and read() == 2 else 1)
go.set()
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", text], check=True, timeout=120)
