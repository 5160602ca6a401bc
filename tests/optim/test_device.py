"""Every update op's forward, and what is built on it, on the double of CuPy: NumPy's numbers, and nobody waits.

The kernels that take the forwards' place are compared with them in tests/cuda/test_kernels_optim.py.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import optim
from gpugrad.backends import cuda
from gpugrad.op import TABLE
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler

from ..cuda.conftest import registered
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
@pytest.mark.parametrize("without", [(), (1,)], ids=["all", "one-without-gradient"])
@pytest.mark.parametrize("skip", [[], [0], [1]], ids=["plain", "not-skipped", "skipped"])
def test_steps(name, dtype, without, skip):
    constants, states, vectors = STEPPING[name]
    rng = np.random.default_rng(3)
    wide = "float32" if dtype == "float16" else dtype
    params = [np.asarray(rng.normal(size=s), dtype) for s in SHAPES]
    grads = [None if i in without else np.asarray(rng.normal(size=s), dtype) for i, s in enumerate(SHAPES)]
    state = [[np.asarray(rng.uniform(low, 2 * low, s), wide) for s in SHAPES] for low in (1, 0.3, 1)[:states]]
    counters = [np.zeros(len(SHAPES)), *(np.ones(len(SHAPES)) for _ in range(vectors))]
    same(
        name, [params, *state, *counters, grads, np.asarray(0.1), *(np.asarray(s, "int32") for s in skip)], **constants
    )


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


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_gradients(dtype):
    arrays = [np.asarray(np.random.default_rng(5).normal(size=s), dtype) for s in SHAPES]
    wide = "float32" if dtype == "float16" else dtype
    same("scale_into", [arrays, np.asarray(3.0, wide)], limit=0.7)
    for bad in (False, True):
        if bad:
            arrays[1][2] = np.inf
        same("unscale_into", [arrays, np.asarray(0, "int32"), np.asarray(8.0, "float32")])


@pytest.mark.parametrize("flags", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("good", [0, 4])
def test_next_scale(flags, good):
    flags = [np.asarray(f, "int32") for f in flags]
    scale, count = np.asarray(8.0, "float32"), np.asarray(good, "int32")
    same("next_scale", [scale, count, flags], growth=2.0, backoff=0.5, interval=5)


@pytest.fixture
def device():
    """The double as a device, with its logs emptied."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    with registered(cuda.load(fake_cupy)):
        yield "cuda:0"


def work(step):
    """Kernels launched, CuPy functions called and waits of the second of two runs: the first one makes the state."""
    for _ in range(2):
        for log in (fake_cupy.launched, fake_cupy.called, fake_cupy.waited):
            log.clear()
        step()
    return [name.partition("<")[0] for name in fake_cupy.launched], fake_cupy.called, fake_cupy.waited


def network(device, count=50):
    """Parameters with gradients."""
    params = [gg.tensor(np.full((1 + i % 7, 3), 0.5, "float32"), device=device).requires_grad_() for i in range(count)]
    for p in params:
        p.grad = gg.ones(p.shape, device=device)
    return params


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "Adamax", "Nadam"])
def test_a_step_of_fifty_tensors_is_one_launch(device, name):
    optimizer = getattr(optim, name)(network(device))
    assert work(optimizer.step) == (["update"], [], [])
    assert optimizer.param_groups[0].counters["step"].tolist() == [2.0] * 50


def test_groups_and_types_take_a_launch_each(device):
    params = network(device)
    params.append(gg.tensor(np.ones(3), dtype="float64", device=device).requires_grad_())
    params[-1].grad = gg.ones(3, dtype="float64", device=device)
    optimizer = optim.AdamW(params, no_decay=lambda name, p: p.shape[0] == 1)
    assert len(optimizer.param_groups) == 2
    assert work(optimizer.step) == (["update"] * 3, [], [])


def test_launches_of_clipping_and_averaging(device):
    params = network(device)
    clip = ["norm_parts", "norm_total", "scale_into"]
    assert work(lambda: optim.clip_grad_norm(params, 1.0)) == (clip, [], [])
    assert work(lambda: optim.clip_grad_value(params, 0.5)) == (["update"], [], [])
    average = optim.ExponentialMovingAverage(params)
    assert work(average.update) == (["update"], [], [])
    assert optim.clip_grad_norm(params, 1e-3).item() == pytest.approx(1.0, rel=1e-6)
    assert optim.clip_grad_norm(params, 1.0).item() == pytest.approx(1e-3, rel=1e-6)
