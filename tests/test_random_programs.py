"""Random programs: gradients against central differences, forward against reverse mode, replays, and against PyTorch.

GPUGRAD_PROGRAMS sets how many there are (200; `make nightly`: 2,000). A failure shows the program as runnable text.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import compiler
from gpugrad.errors import ReplayError

from .fuzz import NUMPY, generate, on_torch

SEEDS = range(int(os.environ.get("GPUGRAD_PROGRAMS", "200")))
STEP = 2e-4


@pytest.fixture(autouse=True)
def _shown(request, capsys):
    """The program goes to the report of a failure: its captured output."""
    print(generate(request.node.callspec.params["seed"]).text())


def close(got, want, tolerance):
    """Relative to the size of what is compared, and of the gradient's components where they cancel."""
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, np.abs(want).max(initial=0.0)))


def gradients(f, points):
    xs = [gg.Tensor(x.copy()).requires_grad_() for x in points]
    y = f(gg, *xs)
    return y.item(), [g.data for g in gg.gradients(y, xs, unconnected="zero")]


@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_of_a_random_program(seed):
    """Value against NumPy, gradient against central differences of NumPy along two directions, jvp and hvp adjoint."""
    program = generate(seed)
    f, points = program.function(), program.inputs
    before = [x.copy() for x in points]
    value, grads = gradients(f, points)
    close(value, f(NUMPY, *points), 1e-12)
    rng = np.random.default_rng(seed)
    scale = max(np.abs(g).max(initial=0.0) for g in grads)
    directions = [[rng.normal(size=x.shape) for x in points] for _ in range(2)]
    for d in directions:
        d = [v / np.sqrt(sum((w * w).sum() for w in d)) for v in d]
        along = sum((g * v).sum() for g, v in zip(grads, d))

        def at(h, d=d):
            return f(NUMPY, *[x + h * v for x, v in zip(points, d)])

        difference = (8 * (at(STEP) - at(-STEP)) - (at(2 * STEP) - at(-2 * STEP))) / (12 * STEP)
        assert abs(along - difference) <= 1e-7 * max(1.0, scale), "gradient against central differences"
        primals, tangents = (tuple(map(gg.Tensor, v)) for v in (points, d))
        pushed = gg.jvp(lambda *xs: f(gg, *xs), primals, tangents)[1].item()
        assert abs(along - pushed) <= 1e-10 * max(1.0, scale), "reverse against forward mode"
    for x, b in zip(points, before):
        np.testing.assert_array_equal(x, b)


@pytest.mark.parametrize("seed", SEEDS[::10])
def test_second_order_of_a_random_program(seed):
    """v' H u = u' H v, with H u by reverse over reverse and H v by forward over reverse."""
    program = generate(seed)
    f, points = program.function(), tuple(map(gg.Tensor, program.inputs))
    rng = np.random.default_rng(seed)
    u, v = (tuple(gg.Tensor(rng.normal(size=x.shape)) for x in points) for _ in range(2))
    every = tuple(range(len(points)))

    def loss(*xs):
        return f(gg, *xs)

    def slope(*xs):
        return sum((g * w).sum() for g, w in zip(gg.grad(loss, every)(*xs), u))

    hu = gg.grad(slope, every)(*points)
    hv = gg.jvp(gg.grad(loss, every), points, v)[1]
    left, right = (sum((a.data * b.data).sum() for a, b in zip(pair, other)) for pair, other in ((hu, v), (hv, u)))
    assert abs(left - right) <= 1e-9 * max(1.0, *(np.abs(a.data).max(initial=0.0) for a in (*hu, *hv)))


def replays(seed, **options):
    """Value and gradients of five eager steps beside replayed ones, until one says that it cannot be replayed."""
    program = generate(seed)
    f = program.function()

    def step(*xs):
        xs = [x.detach().requires_grad_() for x in xs]
        y = f(gg, *xs)
        return y.detach(), *gg.gradients(y, xs, unconnected="zero")

    replayed = gg.replay(step, **options)
    for k in range(5):
        points = [gg.asarray(x * (1 + 1e-4 * k)) for x in program.inputs]  # no kink is that near
        try:
            got = replayed(*points)
        except ReplayError as error:
            if "reads a value" in str(error) or "selects by a mask" in str(error):
                return
            raise
        yield from zip([t.numpy() for t in got], [t.numpy() for t in step(*points)])
    assert replayed.replays == 2  # after one eager call, one traced and one proved


@pytest.mark.parametrize("seed", SEEDS[::5])
def test_a_random_program_replays_with_the_bits_of_its_eager_runs(seed):
    for got, want in replays(seed):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(compiler.find() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("seed", SEEDS[::20])
def test_a_random_program_compiles(seed):
    for got, want in replays(seed, compiled=True):
        close(got, want, 1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_program_against_torch(seed):
    torch = pytest.importorskip("torch")
    program = generate(seed)
    f = program.function()
    value, grads = gradients(f, program.inputs)
    xs = [torch.tensor(x, requires_grad=True) for x in program.inputs]
    y = f(on_torch(torch), *xs)
    y.backward()
    close(value, y.item(), 1e-11)
    scale = max(np.abs(g).max(initial=0.0) for g in grads)
    for g, x in zip(grads, xs):
        want = np.zeros(x.shape) if x.grad is None else x.grad.numpy()
        assert np.abs(g - want).max(initial=0.0) <= 1e-10 * max(1.0, scale)
