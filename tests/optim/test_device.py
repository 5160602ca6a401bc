"""Every update op on the double of CuPy, while a stream captures: NumPy's numbers, and nothing read by the host."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from gpugrad.op import TABLE
from gpugrad.testing import fake_cupy

from .test_updates import STEPPING

SHAPES = [(3, 4), (5,), (), (0, 2)]


@contextlib.contextmanager
def capture():
    """Record the block's work and do it at the end, as a step is captured on a GPU."""
    stream = fake_cupy.Stream()
    with fake_cupy.using_allocator(fake_cupy.MemoryPool().malloc):
        stream.begin_capture()
        try:
            yield
        finally:
            graph = stream.end_capture()
    graph.launch()


def on_device(x):
    if isinstance(x, list):
        return [on_device(v) for v in x]
    return None if x is None else fake_cupy.asarray(x, copy=True)


def flat(x):
    return [v for part in x for v in flat(part)] if isinstance(x, list) else [] if x is None else [x]


def same(name, host, **constants):
    """Run an op on both and compare everything it may have written; returns both results."""
    device = on_device(host)
    want = TABLE[name].fwd(np, *host, **constants)
    with capture():
        got = TABLE[name].fwd(fake_cupy, *device, **constants)
    for a, b in zip(flat(host), flat(device)):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b.get(), a, rtol=1e-3 if a.dtype == "float16" else 1e-6)
    return want, got


@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("skip", [(), (1,)], ids=["all", "one-without-gradient"])
def test_steps(name, dtype, skip):
    constants, states, vectors = STEPPING[name]
    rng = np.random.default_rng(3)
    wide = "float32" if dtype == "float16" else dtype
    params = [np.asarray(rng.normal(size=s), dtype) for s in SHAPES]
    grads = [None if i in skip else np.asarray(rng.normal(size=s), dtype) for i, s in enumerate(SHAPES)]
    state = [[np.asarray(rng.uniform(low, 2 * low, s), wide) for s in SHAPES] for low in (1, 0.3, 1)[:states]]
    counters = [np.zeros(len(SHAPES)), *(np.ones(len(SHAPES)) for _ in range(vectors))]
    same(name, [params, *state, *counters, grads, np.asarray(0.1)], **constants)


@pytest.mark.parametrize("decay", [0.9, None])
def test_averages(decay):
    rng = np.random.default_rng(4)
    lists = [[np.asarray(rng.normal(size=s)) for s in SHAPES] for _ in range(2)]
    same("average_into", [lists[0], np.zeros(len(SHAPES)), lists[1]], decay=decay)


def test_clipping():
    arrays = [np.asarray(np.random.default_rng(5).normal(size=s)) for s in SHAPES]
    for ord in (1.0, 2.0, np.inf):
        want, got = same("global_norm", arrays, ord=ord)
        assert got.get() == pytest.approx(want, rel=1e-14)
    same("scale_into", [arrays, np.asarray(0.5)])
    same("clamp_into", [arrays], limit=0.3)
