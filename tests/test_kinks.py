"""Masked branches: the table of docs/kinks.md, and every elementwise op of the table where its slope is inf or NaN."""

from __future__ import annotations

import itertools
import math
import pathlib
import re
import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.op import TABLE

from .ops.samples import collect

PAGE = pathlib.Path(__file__).parents[1].joinpath("docs", "kinks.md").read_text(encoding="utf-8")
CELL = r" `(.+?)` \|"
MASKED = re.findall(rf"^\| (\S[^|`]*) \|{CELL}{CELL}{CELL}{CELL}$", PAGE, re.M)
NAMES = {**vars(gg), "inf": math.inf, "nan": math.nan, "pi": math.pi}

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # log(0) and its kind are what this file is about


def leaf(values):
    return gg.Tensor(np.array(values, "float64")).requires_grad_()


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


# --- the table -----------------------------------------------------------------------------------------------


def test_the_table_of_masked_branches_is_read():
    assert len(MASKED) >= 12
    assert len({name for name, *_ in MASKED}) == len(MASKED)


@pytest.mark.parametrize("name, program, at, slope, curvature", MASKED, ids=[r[0] for r in MASKED])
def test_masked_branch(name, program, at, slope, curvature):
    """Reverse mode, forward mode, each over the other, vmap, and what a user sees: no NaN."""

    def f(x):
        return eval(program, NAMES, {"x": x}).sum()

    x, slope, curvature = (np.array(eval(cell, NAMES), "float64") for cell in (at, slope, curvature))
    ones = gg.Tensor(np.ones_like(x))
    point = gg.Tensor(x)
    close(gg.grad(f)(point).data, slope)
    close(gg.grad(lambda x: gg.grad(f)(x).sum())(point).data, curvature)
    _, forward = gg.jvp(f, (point,), (ones,))
    close(forward.data, slope.sum())
    _, reverse = gg.jvp(gg.grad(f), (point,), (ones,))
    close(reverse.data, curvature)
    many = gg.Tensor(np.stack([x, x]))
    close(gg.vmap(gg.grad(f))(many).data, np.stack([slope, slope]))
    saved = gg.checkpoint(f)
    close(gg.grad(saved)(point).data, slope)


def test_backward_says_nothing_of_masked_branches():
    """The forward warned at the user's line; the 0 * inf that the gradient absorbs is not the user's concern."""
    x = leaf([0.0, 1000.0, 2.0])
    y = gg.where(x > 500, x, gg.where(x > 0, x * gg.log(x) + gg.exp(x), 0.0)).sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y.backward()
    close(x.grad.data, [0, 1, math.log(2) + 1 + math.exp(2)])


def test_a_cotangent_with_zeros_masks_too():
    x, y = leaf([1.0, 1.0]), leaf([0.0, 2.0])
    (x / y).backward(gg.Tensor(np.array([0.0, 1.0])))
    close(x.grad.data, [0, 0.5])
    close(y.grad.data, [0, -0.25])
    _, pullback = gg.vjp(lambda y: gg.exp(y) / y, leaf([1e3, 0.0, 1.0]))
    close(pullback(gg.Tensor(np.array([0.0, 0.0, 1.0])))[0].data, [0, 0, 0])


def test_what_is_not_masked_stays():
    """Absorbing hides no pole, no overflow and no NaN of an element that counts."""
    assert math.isinf(gg.grad(lambda x: gg.where(x >= 0, gg.sqrt(x), 0.0))(leaf(0.0)).item())
    assert math.isinf(gg.grad(lambda x: gg.where(x == x, 1 / x, 0.0))(leaf(0.0)).item())
    assert math.isnan(gg.grad(lambda x: gg.where(x != x, x * x, 0.0))(leaf(math.nan)).item())
    assert gg.grad(lambda x: gg.where(x > 0, gg.exp(x), 0.0))(leaf(1e3)).item() == math.inf
    x = leaf([0.0, 1.0])
    gg.where(x >= 0, x * gg.log(x), 0.0).sum().backward()
    assert x.grad.tolist() == [-math.inf, 1] or math.isnan(x.grad.tolist()[0])


ROOTS = {
    "sqrt of a sum of squares": lambda x: gg.sqrt((x * x).sum()),
    "sqrt of a sum of powers": lambda x: gg.sqrt((x**2).sum()),
    "sqrt of a sum of square": lambda x: gg.sqrt(gg.square(x).sum()),
    "power of a sum": lambda x: (x**2).sum() ** 0.5,
    "tensor exponents": lambda x: (x ** gg.asarray(2.0)).sum() ** gg.asarray(0.5),
    "mean": lambda x: gg.sqrt((x * x).mean()),
    "sum of roots": lambda x: gg.sqrt(x * x).sum(),
    "distance": lambda x: gg.sqrt(((x - 0 * x) ** 2).sum()),
    "norm": gg.norm,
    "linalg.vector_norm": gg.linalg.vector_norm,
    "linalg.matrix_norm": lambda x: gg.linalg.matrix_norm(x.reshape(1, -1)),
    "hypot": lambda x: gg.hypot(x[0], x[1]),
    "cube root of cubes": lambda x: gg.cbrt((gg.abs(x) ** 3).sum()),
    "std": gg.std,
}


@pytest.mark.parametrize("n", [3, 10_000])
@pytest.mark.parametrize("name", ROOTS)
def test_length_of_the_zero_vector_has_gradient_zero(name, n):
    f = ROOTS[name]
    assert gg.grad(f)(leaf(np.zeros(n))).tolist() == [0.0] * n
    v = np.linspace(0.5, 1.5, n)
    step = 1e-6
    along = gg.grad(f)(leaf(v)).data @ np.cos(v)
    want = (f(leaf(v + step * np.cos(v))) - f(leaf(v - step * np.cos(v)))).item() / (2 * step)
    assert along == pytest.approx(want, rel=1e-7, abs=1e-7)


ROWS = {
    "norm": ([0, 0, 0], lambda x: gg.norm(x, axis=1)),
    "norm of order 3": ([0, 0, 0], lambda x: gg.norm(x, axis=1, ord=3)),
    "std": ([2, 2, 2], lambda x: gg.std(x, axis=1)),
    "prod": ([0, 2, 0], lambda x: gg.prod(x, axis=1)),
    "cumulative_prod": ([0, 2, 0], lambda x: gg.cumulative_prod(x, axis=1)),
    "logsumexp": ([-math.inf] * 3, lambda x: gg.logsumexp(x, axis=1)),
    "softmax": ([-math.inf] * 3, lambda x: gg.softmax(x, axis=1) * gg.tensor([1.0, 2, 3])),
    "log_softmax": ([-math.inf] * 3, lambda x: gg.log_softmax(x, axis=1) * gg.tensor([1.0, 2, 3])),
    "softmax of inf": ([math.inf, 0, 0], lambda x: gg.softmax(x, axis=1)),
    "log of a mean": ([0, 0, 0], lambda x: gg.log(x.mean(axis=1))),
    "mean over no element": ([0, 0, 0], lambda x: x.sum(axis=1) / (x != 0).sum(axis=1)),
    "normalised": ([0, 0, 0], lambda x: x / gg.norm(x, axis=1, keepdims=True)),
    "cosine": ([0, 0, 0], lambda x: x[:, 0] / gg.sqrt((x * x).sum(axis=1))),
    "atan2": ([0, 0, 0], lambda x: gg.atan2(x[:, 0], x[:, 1])),
}


@pytest.mark.parametrize("name", ROWS)
def test_an_unchosen_row_contributes_nothing(name):
    bad, f = ROWS[name]
    good = [0.5, 1.5, 0.25]

    def chosen(x):
        y = f(x)
        return gg.where(gg.asarray([True, False]).reshape(2, *(1,) * (y.ndim - 1)), y, 0.0).sum()

    def alone(x):
        return f(x).sum()

    both, one = leaf([good, bad]), leaf([good])
    close(gg.grad(chosen)(both).data, [gg.grad(alone)(one).data[0], [0, 0, 0]])
    w = np.array([[0.3, -0.2, 0.7]] * 2)

    def twice(f, x):
        return gg.grad(lambda x: (gg.grad(f)(x) * gg.Tensor(w[: len(x)])).sum())(x).data

    close(twice(chosen, both), [twice(alone, one)[0], [0, 0, 0]])
    close(gg.jvp(chosen, (both,), (gg.Tensor(w),))[1].data, gg.jvp(alone, (one,), (gg.Tensor(w[:1]),))[1].data)


# --- every elementwise op ---------------------------------------------------------------------------------------

POINTS = (0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 1e200, -1e200, math.inf, -math.inf, math.nan)
ELEMENTWISE = [
    pytest.param(n, s, id=f"{n}-{i}")
    for n, samples in sorted(collect().items())
    if n in TABLE and TABLE[n].kind == "elementwise"
    for i, s in enumerate(samples)
]


def masked(name, sample, bad):
    """Gradients to first and second order and the tangent of where(mask, op(...), 0).

    The sample is chosen, and elements made of the bad values lie beside it, unchosen. A list of arrays alike.
    """
    op = TABLE[name]
    given = [a if a is None else np.asarray(a) for a in sample.args]
    shape = np.broadcast_shapes(*(a.shape for a in given if a is not None))
    size = math.prod(shape)
    smooth = [
        i for i, a in enumerate(given) if a is not None and a.dtype == np.float64 and i < len(op.vjps) and op.vjps[i]
    ]
    grid = list(itertools.product(bad, repeat=len(smooth))) if bad else []
    columns = dict(zip(smooth, zip(*grid))) if grid else {}
    args = []
    for i, a in enumerate(given):
        if a is not None:
            flat = np.broadcast_to(a, shape).reshape(-1)
            a = np.concatenate([flat, np.asarray(columns.get(i, [flat[0]] * len(grid)), flat.dtype)])
        args.append(a)
    mask = gg.Tensor(np.arange(size + len(grid)) < size)
    rng = np.random.default_rng(0)
    weights = [np.concatenate([rng.normal(size=size), np.ones(len(grid))]) for _ in range(3)]

    def f(*xs):
        full = [None if a is None else gg.Tensor(a) for a in args]
        for i, x in zip(smooth, xs):
            full[i] = x
        return gg.where(mask, op.call(*full, **sample.attrs), 0.0)

    xs = [gg.Tensor(args[i]).requires_grad_() for i in smooth]
    first = gg.gradients(f(*xs), xs, gg.Tensor(weights[0]), create_graph=sample.second, unconnected="zero")
    found = [g.data for g in first]
    if sample.second:
        inner = sum((gg.where(mask, g * gg.Tensor(weights[1]), 0.0)).sum() for g in first)
        found += [g.data for g in gg.gradients(inner, xs, unconnected="zero")] if inner.node is not None else []
    tangents = tuple(gg.Tensor(weights[2]) for _ in smooth)
    found.append(gg.jvp(f, tuple(gg.Tensor(args[i]) for i in smooth), tangents)[1].data)
    return size, found


@pytest.mark.parametrize("name, sample", ELEMENTWISE)
def test_unchosen_elements_contribute_nothing_wherever_they_are(name, sample):
    """At every pair of special values: gradient, second order and tangent are 0 there and undisturbed elsewhere."""
    with np.errstate(all="ignore"):
        size, want = masked(name, sample, ())
        _, got = masked(name, sample, POINTS)
    assert len(got) == len(want)
    for g, w in zip(got, want):
        np.testing.assert_allclose(g[:size], w, rtol=1e-12, atol=1e-12)
        assert not np.isnan(g[size:]).any()
        assert (g[size:] == 0).all()
