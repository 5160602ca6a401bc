"""Decompositions of matrices with repeated or zero values: gradients of what does not depend on chosen vectors."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import linalg
from gpugrad.errors import GpugradWarning

from . import test_linalg


def rotation(n, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def matrix(values, rows=None, columns=None):
    """A matrix with these singular values."""
    m, n, k = rows or len(values), columns or len(values), len(values)
    return rotation(m, 1)[:, :k] * np.array(values, "float64") @ rotation(n, 2)[:k]


def symmetric(values):
    """A symmetric matrix with these eigenvalues."""
    v = rotation(len(values), 3)
    return v * np.array(values, "float64") @ v.T


def numeric(f, a, h=1e-4):
    """The gradient of a function on NumPy, by central differences of fourth order."""
    g = np.empty_like(a)
    for i in np.ndindex(a.shape):
        e = np.zeros_like(a)
        e[i] = h
        g[i] = (8 * (f(a + e) - f(a - e)) - (f(a + 2 * e) - f(a - 2 * e))) / (12 * h)
    return g


B = np.random.default_rng(7).normal(size=(6, 6))
SIZE = 4
REPEATED = {"two": [3, 2, 2, 1], "three": [3, 2, 2, 2], "all": [2, 2, 2, 2], "pairs": [3, 3, 1, 1]}
VANISHING = {"one zero": [3, 2, 1, 0], "zeros": [3, 2, 0, 0], "zeros and pair": [2, 2, 0, 0]}
SHAPES = [(SIZE, SIZE), (6, SIZE), (SIZE, 6)]


def quiet(f, *args):
    """f, which must not give a notice."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return f(*args)


def product(x):
    u, s, vh = linalg.svd(x, full_matrices=False)
    return gg.norm((u * s) @ vh)


SVD = {
    "norm of the product": (product, lambda a, u, s, vh: a / np.linalg.norm(a)),
    "sum of squares": (lambda x: gg.square(linalg.svdvals(x)).sum(), lambda a, u, s, vh: 2 * a),
    "sum of fourth powers": (lambda x: (linalg.svdvals(x) ** 4).sum(), lambda a, u, s, vh: 4 * a @ a.T @ a),
    "nuclear norm": (lambda x: linalg.svdvals(x).sum(), lambda a, u, s, vh: u[:, s > 1e-9] @ vh[s > 1e-9]),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("values", REPEATED | VANISHING)
@pytest.mark.parametrize("name", SVD)
def test_functions_of_all_singular_values(name, values, shape):
    f, gradient = SVD[name]
    a = matrix((REPEATED | VANISHING)[values], *shape)
    want = gradient(a, *np.linalg.svd(a, full_matrices=False))
    np.testing.assert_allclose(quiet(gg.grad(f), gg.Tensor(a)).data, want, atol=1e-12)
    t = B[: shape[0], : shape[1]]
    _, along = gg.jvp(f, (gg.Tensor(a),), (gg.Tensor(t.copy()),))
    assert along.item() == pytest.approx((want * t).sum(), abs=1e-12)
    near = quiet(gg.grad(f), gg.tensor(a, dtype=gg.float32))
    assert near.dtype == gg.float32
    np.testing.assert_allclose(near.data, want, atol=2e-5)


def polar(m, x):
    u, _, vh = m.linalg.svd(x, full_matrices=False)
    return (B[:SIZE, :SIZE] * (u @ vh)).sum() if m is np else (gg.Tensor(B[:SIZE, :SIZE].copy()) * (u @ vh)).sum()


def span(m, x, k=2, side=0):
    """A weighted sum of the projector on the first k left (or right) singular vectors."""
    u, _, vh = m.linalg.svd(x, full_matrices=False)
    w = u[:, :k] if side == 0 else vh[:k].T
    b = B[: w.shape[0], : w.shape[0]].copy()
    return ((b if m is np else gg.Tensor(b)) * (w @ w.T)).sum()


@pytest.mark.parametrize("values", REPEATED)
def test_polar_factor(values):
    a = matrix(REPEATED[values])
    want = numeric(lambda x: polar(np, x), a)
    np.testing.assert_allclose(quiet(gg.grad(lambda x: polar(gg, x)), gg.Tensor(a)).data, want, atol=1e-8)
    t = B[:SIZE, :SIZE]
    _, along = gg.jvp(lambda x: polar(gg, x), (gg.Tensor(a),), (gg.Tensor(t.copy()),))
    assert along.item() == pytest.approx((want * t).sum(), abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("values, k", [([3, 3, 2, 1], 2), ([2, 2, 1, 1], 2), ([4, 3, 0, 0], 2), ([3, 3, 3, 0], 3)])
@pytest.mark.parametrize("side", [0, 1])
def test_projector_on_a_whole_block_of_singular_vectors(values, k, shape, side):
    a = matrix(values, *shape)
    want = numeric(lambda x: span(np, x, k, side), a)
    np.testing.assert_allclose(quiet(gg.grad(lambda x: span(gg, x, k, side)), gg.Tensor(a)).data, want, atol=1e-8)
    t = B[: shape[0], : shape[1]]
    _, along = gg.jvp(lambda x: span(gg, x, k, side), (gg.Tensor(a),), (gg.Tensor(t.copy()),))
    assert along.item() == pytest.approx((want * t).sum(), abs=1e-7)


def test_projector_on_the_null_space():
    a, t = matrix([4, 3, 0, 0]), B[:SIZE, :SIZE]

    def f(m, x):
        u = m.linalg.svd(x)[0][:, 2:]
        return ((t if m is np else gg.Tensor(t.copy())) * (u @ u.T)).sum()

    want = -numeric(lambda x: span(np, x), a)  # that on the range is 1 minus it
    np.testing.assert_allclose(quiet(gg.grad(lambda x: f(gg, x)), gg.Tensor(a)).data, want, atol=1e-8)
    _, along = gg.jvp(lambda x: f(gg, x), (gg.Tensor(a),), (gg.Tensor(t.copy()),))
    assert along.item() == pytest.approx((want * t).sum(), abs=1e-7)


EIGH = {
    "sum of cubes": (lambda x: (linalg.eigvalsh(x) ** 3).sum(), lambda a: 3 * a @ a),
    "sum of exponentials": (lambda x: gg.exp(linalg.eigvalsh(x)).sum(), lambda a: exponential(a)),
    "norm of the product": (lambda x: gg.norm(rebuilt(x)), lambda a: a / np.linalg.norm(a)),
    "trace of the square": (lambda x: (rebuilt(x) * rebuilt(x)).sum(), lambda a: 2 * a),
}


def exponential(a):
    w, v = np.linalg.eigh(a)
    return v * np.exp(w) @ v.T


def rebuilt(x):
    w, v = linalg.eigh(x)
    return (v * w) @ v.T


@pytest.mark.parametrize("values", [*REPEATED.values(), *VANISHING.values(), [-1, -1, 1, 1], [0, 0, 0, 1]], ids=str)
@pytest.mark.parametrize("name", EIGH)
def test_functions_of_all_eigenvalues(name, values):
    f, gradient = EIGH[name]
    a = symmetric(values)
    np.testing.assert_allclose(quiet(gg.grad(f), gg.Tensor(a)).data, gradient(a), atol=1e-11)
    t = B[:SIZE, :SIZE] + B[:SIZE, :SIZE].T
    _, along = gg.jvp(f, (gg.Tensor(a),), (gg.Tensor(t),))
    assert along.item() == pytest.approx((gradient(a) * t).sum(), rel=1e-11, abs=1e-11)
    stack = gg.Tensor(np.stack([a, symmetric([4, 3, 2, 1])]))
    each = quiet(gg.vmap(gg.grad(f)), stack).data
    np.testing.assert_allclose(each[0], gradient(a), atol=1e-11)


@pytest.mark.parametrize("values", [[3, 3, 1, 1], [2, 2, 2, 0], [5, 4, 1, 1]])
def test_projector_on_an_eigenspace(values):
    """Of the largest eigenvalue and all that coincide with it (the last row: of the smallest)."""
    low = values[0] != values[1]
    k = values.count(values[-1] if low else values[0])
    a = symmetric(values)

    def f(m, x):
        v = m.linalg.eigh(x)[1]
        v = v[:, :k] if low else v[:, -k:]
        b = B[:SIZE, :SIZE].copy()
        return ((b if m is np else gg.Tensor(b)) * (v @ v.T)).sum()

    want = numeric(lambda x: f(np, (x + x.T) / 2), a)
    np.testing.assert_allclose(quiet(gg.grad(lambda x: f(gg, x)), gg.Tensor(a)).data, want, atol=1e-8)


CHOSEN = {
    "a left vector": (lambda x: linalg.svd(x)[0][0, 1], [3, 2, 2, 1]),
    "a right vector": (lambda x: linalg.svd(x)[2][1, 0], [3, 2, 2, 1]),
    "half of a block": (lambda x: span(gg, x, 2), [3, 2, 2, 1]),
    "the largest of equal values": (lambda x: linalg.svdvals(x)[0], [2, 2, 1, 1]),
    "a vector to the value 0": (lambda x: linalg.svd(x)[0][0, 3], [3, 2, 0, 0]),
    "a left vector of a tall matrix": (lambda x: linalg.svd(x, full_matrices=False)[0][0, 3], [3, 2, 1, 0], 6, 4),
    "a right vector of a wide matrix": (lambda x: linalg.svd(x, full_matrices=False)[2][3, 0], [3, 2, 1, 0], 4, 6),
    "the polar factor of a singular matrix": (lambda x: polar(gg, x), [3, 2, 0, 0]),
    "an eigenvector": (lambda x: linalg.eigh(x @ x.T)[1][0, 0], [3, 2, 1, 1]),
    "the smallest of equal eigenvalues": (lambda x: linalg.eigvalsh(x @ x.T)[0], [3, 2, 1, 1]),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_function_of_the_choice_is_told_so_once_with_its_line(name):
    f, values, *shape = CHOSEN[name]
    a = gg.Tensor(matrix(values, *shape))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            g = gg.grad(f)(a)
    assert np.isfinite(g.data).all()
    assert [w.category for w in seen] == [GpugradWarning]
    assert "left out" in str(seen[0].message)
    assert "g = gg.grad(f)(a)" in str(seen[0].message)
    assert seen[0].filename == __file__


@pytest.mark.parametrize("name", CHOSEN)
def test_no_notice_where_values_differ(name):
    f, _, *shape = CHOSEN[name]
    a = matrix([3, 2, 1.5, 1], *shape)
    np.testing.assert_allclose(
        quiet(gg.grad(f), gg.Tensor(a)).data, numeric(lambda x: f(gg.Tensor(x)).item(), a), atol=1e-7
    )


def test_values_that_nearly_coincide_keep_their_digits():
    """Squares of singular values would cancel; here only their difference does, where the function depends on it."""
    a = matrix([2 + 1e-9, 2, 2 - 1e-9, 1])
    want = numeric(lambda x: polar(np, x), a)
    np.testing.assert_allclose(gg.grad(lambda x: polar(gg, x))(gg.Tensor(a)).data, want, atol=1e-6)
    np.testing.assert_allclose(gg.grad(product)(gg.Tensor(a)).data, a / np.linalg.norm(a), atol=1e-6)


def test_the_zero_matrix_and_empty_ones():
    for f, _ in SVD.values():
        assert (quiet(gg.grad(f), gg.Tensor(np.zeros((3, 2)))).data == 0).all()
    assert gg.grad(lambda x: linalg.svdvals(x).sum())(gg.Tensor(np.zeros((0, 3)))).shape == (0, 3)
    assert gg.grad(lambda x: linalg.eigvalsh(x).sum())(gg.Tensor(np.zeros((0, 0)))).shape == (0, 0)


def check_svd():
    """What the mutants of svd's rules have to pass: every statement above about singular values, once."""
    for values in ("two", "zeros and pair"):
        for shape in SHAPES[:2]:
            test_functions_of_all_singular_values("norm of the product", values, shape)
            test_functions_of_all_singular_values("nuclear norm", values, shape)
    test_polar_factor("pairs")
    for shape in SHAPES:
        test_projector_on_a_whole_block_of_singular_vectors([4, 3, 0, 0], 2, shape, 0)
        test_projector_on_a_whole_block_of_singular_vectors([3, 3, 2, 1], 2, shape, 1)
    test_projector_on_the_null_space()
    test_the_zero_matrix_and_empty_ones()
    test_linalg.test_vectors_that_the_matrix_does_not_determine_have_no_gradient()
    for name in CHOSEN:
        if "eigen" not in name:
            test_a_function_of_the_choice_is_told_so_once_with_its_line(name)


def check_eigh():
    """The same for eigh."""
    for name in EIGH:
        test_functions_of_all_eigenvalues(name, [3, 2, 2, 0])
        test_functions_of_all_eigenvalues(name, [-1, -1, 1, 1])
    test_projector_on_an_eigenspace([3, 3, 1, 1])
    for name in CHOSEN:
        if "eigen" in name:
            test_a_function_of_the_choice_is_told_so_once_with_its_line(name)
