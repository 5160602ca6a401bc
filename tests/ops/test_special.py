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
