"""The gamma family and erfinv by hand: poles, infinities, identities, refusals; exact values are in test_proof.py."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

import gpugrad as gg

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_values_at_poles_and_infinities(dtype):
    x = gg.Tensor(np.array([0.0, -0.0, -1.0, -2.0, INF, -INF, NAN], dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no 0 / 0 and no logarithm of 0 on the way
        found = gg.lgamma(x), gg.digamma(x), gg.polygamma(1, x), gg.polygamma(2, x)
    wants = (
        [INF, INF, INF, INF, INF, INF, NAN], [-INF, INF, NAN, NAN, INF, NAN, NAN], [INF, INF, INF, INF, 0, NAN, NAN],
        [-INF, INF, NAN, NAN, 0, NAN, NAN],
    )  # fmt: skip
    for y, want in zip(found, wants):
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.data, np.array(want, dtype))


def test_values_beside_the_standard_library():
    x = np.concatenate([np.linspace(0.01, 30, 400), -np.linspace(0.013, 9.5, 300), [170.5, 1e5, 1e300, 5e-324]])
    np.testing.assert_allclose(gg.lgamma(gg.Tensor(x)).data, [math.lgamma(v) for v in x], rtol=1e-13, atol=1e-13)


def test_recurrence_and_reflection():
    x = np.linspace(0.1, 20, 200)
    t = gg.Tensor(x)
    np.testing.assert_allclose((gg.digamma(t + 1.0) - gg.digamma(t)).data, 1 / x, rtol=1e-11)
    np.testing.assert_allclose((gg.polygamma(3, t + 1.0) - gg.polygamma(3, t)).data, -6 / x**4, rtol=1e-8)
    x = np.linspace(-4.9, -0.1, 37)
    pair = gg.digamma(gg.Tensor(1 - x)) - gg.digamma(gg.Tensor(x))
    np.testing.assert_allclose(pair.data, math.pi / np.tan(math.pi * x), rtol=1e-10, atol=1e-10)


def test_derivatives_go_on():
    """Four derivatives of lgamma at 1 are -gamma, zeta(2), -2 zeta(3), 6 zeta(4)."""
    f, found = gg.lgamma, []
    for _ in range(4):
        f = gg.grad(f)
        found.append(f(gg.tensor(1.0, dtype="float64")).item())
    want = [-0.5772156649015329, math.pi**2 / 6, -2 * 1.2020569031595942, math.pi**4 / 15]
    np.testing.assert_allclose(found, want, rtol=1e-14)


def test_erfinv_inverts_erf():
    x = np.concatenate([np.linspace(-3, 3, 301), [1e-300, 5e-9]])
    np.testing.assert_allclose(gg.erfinv(gg.erf(gg.Tensor(x))).data, x, rtol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ends = gg.erfinv(gg.Tensor(np.array([-1.0, 1.0, -0.0, 1.5, NAN])))
    np.testing.assert_array_equal(ends.data, [-INF, INF, 0, NAN, NAN])
    assert np.signbit(ends.data[2])


@pytest.mark.parametrize("n", [-1, 1.0, True, None])
def test_polygamma_refuses_what_is_no_order(n):
    with pytest.raises(gg.errors.DomainError, match=r"(?s)\[polygamma\] n is .*test_special\.py"):
        gg.polygamma(n, gg.tensor([1.0]))


def test_integers_become_floats():
    assert gg.lgamma(gg.tensor([1, 2, 5])).dtype == np.float32
    assert gg.digamma(gg.tensor([1, 2])).dtype == np.float32


# --- gpugrad.special: values are in test_proof.py and, beside SciPy's, in tests/test_protocols.py --------------------

SHAPES = [(0.3, 0.1), (0.3, 2.0), (1.0, 1.0), (4.0, 2.5), (4.0, 9.0), (30.0, 25.0), (30.0, 44.0), (1e4, 1.002e4)]


@pytest.mark.parametrize("a, x", SHAPES)
def test_incomplete_gamma_functions_have_derivatives_of_any_order_in_a(a, x):
    """Against differences of exact values in 40 digits."""
    mp = pytest.importorskip("mpmath", reason="exact values come from mpmath")
    f, found = (lambda v: gg.special.gammaincc(v, x)), []
    for _ in range(3):
        f = gg.grad(f)
        found.append(f(gg.tensor(a, dtype="float64")).item())
    with mp.workdps(60):
        h = mp.mpf(a) * mp.mpf(10) ** -12
        below, here, above, far, near = (
            mp.gammainc(a + k * h, x, mp.inf, regularized=True) for k in (-1, 0, 1, 2, -2)
        )  # fmt: skip
        first, second = (above - below) / (2 * h), (above - 2 * here + below) / h**2
        third = (far - 2 * above + 2 * below - near) / (2 * h**3)
    np.testing.assert_allclose(found, [float(first), float(second), float(third)], rtol=2e-9)


@pytest.mark.parametrize(
    "a, b, x", [(0.2, 0.4, 0.3), (0.05, 7.0, 0.9), (2.0, 3.0, 0.25), (15.0, 40.0, 0.3), (400.0, 2.0, 0.99)]
)
def test_incomplete_beta_function_has_derivatives_in_all_arguments(a, b, x):
    mp = pytest.importorskip("mpmath", reason="exact values come from mpmath")
    found = [g.item() for g in gg.grad(gg.special.betainc, argnums=(0, 1, 2))(*map(t64, (a, b, x)))]
    with mp.workdps(50):
        want = []
        for i in range(3):
            at = [
                [mp.mpf(v) * (1 + s * mp.mpf(10) ** -15 * (i == j)) for j, v in enumerate((a, b, x))] for s in (1, -1)
            ]
            high, low = (mp.betainc(p, q, 0, y, regularized=True) for p, q, y in at)
            want.append(float((high - low) / (2 * mp.mpf((a, b, x)[i]) * mp.mpf(10) ** -15)))
    np.testing.assert_allclose(found, want, rtol=1e-10)
    with pytest.raises(gg.errors.GraphError, match="second derivative in a and b is not available"):
        gg.grad(lambda q: gg.grad(gg.special.betainc)(t64(a), q, t64(x)))(t64(b))
    mixed = gg.grad(lambda y: gg.grad(lambda q: gg.special.betainc(t64(a), q, y))(t64(b)))(t64(x))
    other = gg.grad(lambda q: gg.grad(lambda y: gg.special.betainc(t64(a), q, y))(t64(x)))(t64(b))
    assert mixed.item() == pytest.approx(other.item(), rel=1e-10)


def t64(value):
    return gg.tensor(value, dtype="float64")


def test_ends_of_the_incomplete_functions():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lower = gg.special.gammainc(
            [1.0, 2.0, 0.0, 0.0, -1.0, 1.0, 3.0, INF, NAN], [0.0, INF, 1.0, 0.0, 1.0, -1.0, NAN, 1.0, 1.0]
        )
        upper = gg.special.gammaincc([1.0, 2.0, 0.0], [0.0, INF, 1.0])
        beta = gg.special.betainc([1.0, 2.0, 0.0, 1.0, 1.0, NAN], 2.0, [0.0, 1.0, 0.5, -0.1, 1.1, 0.5])
        tails = gg.special.erfcx(t64([-30.0, 1e300, INF, NAN])), gg.special.log_ndtr(t64([-1e200, -INF, INF, NAN]))
    np.testing.assert_array_equal(lower.data, np.array([0, 1, 1, NAN, NAN, NAN, NAN, 0, NAN], "float32"))
    np.testing.assert_array_equal(upper.data, np.array([1, 0, 0], "float32"))
    np.testing.assert_array_equal(beta.data, np.array([0, 1, NAN, NAN, NAN, NAN], "float32"))
    np.testing.assert_allclose(tails[0].data, [INF, 5.641895835477563e-301, 0, NAN], rtol=1e-14)
    np.testing.assert_array_equal(tails[1].data, [-INF, -INF, 0, NAN])


def test_identities():
    x = t64(np.linspace(0.05, 6, 60))
    sp = gg.special
    np.testing.assert_allclose((sp.gammainc(0.5, x * x) - sp.erf(x)).data, 0, atol=1e-15)
    np.testing.assert_allclose(sp.gammaincc(1.0, x).data, np.exp(-x.data), rtol=1e-14)
    np.testing.assert_allclose((sp.betainc(2.5, 1.5, x / 7) + sp.betainc(1.5, 2.5, 1 - x / 7)).data, 1, rtol=1e-14)
    np.testing.assert_allclose(sp.ndtr(sp.ndtri(x / 7)).data, x.data / 7, rtol=1e-13)
    np.testing.assert_allclose(sp.erfc(sp.erfcinv(x * 1e-20)).data, x.data * 1e-20, rtol=1e-12)
    np.testing.assert_allclose(sp.log_ndtr(-x).data, np.log(sp.ndtr(-x).data), rtol=1e-13)
    np.testing.assert_allclose(
        (sp.i0(x) ** 2 - sp.i1(x) ** 2).data, (sp.i0e(x) ** 2 - sp.i1e(x) ** 2).data * np.exp(2 * x.data)
    )
    np.testing.assert_allclose(sp.kl_div(x, x + 0.1).data, (x * gg.log(x / (x + 0.1)) + 0.1).data, rtol=1e-9)
    np.testing.assert_allclose(sp.xlog1py(x, 1e-20).data, x.data * 1e-20, rtol=1e-15)
    assert sp.i0(t64(713.0)).item() == pytest.approx(6.7e307, rel=0.01)
    assert sp.beta(2, 3).dtype == gg.float32
    assert sp.gammainc(np.float64(2), gg.tensor([1], dtype="float16")).dtype == gg.float16


def test_a_survival_model_with_censoring_differentiates():
    """The likelihood of a gamma distribution: densities of the events seen, upper tails of those still to come."""
    rng = np.random.default_rng(3)
    times, seen = rng.gamma(2.2, 1.7, 200), rng.uniform(size=200) < 0.7

    def loss(shape, scale):
        z = times / scale
        event = (shape - 1) * gg.log(z) - z - gg.lgamma(shape) - gg.log(scale)
        return -gg.where(seen, event, gg.log(gg.special.gammaincc(shape, z))).sum()

    start = [t64(1.5), t64(2.0)]
    assert gg.gradcheck(loss, start)
    assert gg.gradgradcheck(loss, start)
    point = gg.stack(start)
    for _ in range(8):  # Newton's method
        slope = gg.grad(lambda p: loss(p[0], p[1]))(point)
        point = point - gg.linalg.solve(gg.hessian(lambda p: loss(p[0], p[1]))(point), slope)
    assert gg.linalg.norm(slope).item() < 1e-8
