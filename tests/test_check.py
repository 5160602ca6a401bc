"""numgrad, gradcheck: right numbers with honest error estimates, and wrong rules found in every mode."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.check import STEPS, GradientError


def t64(value):
    return gg.tensor(value, dtype=gg.float64)


X = t64([0.3, -1.2, 0.7])
F = lambda x: gg.exp(gg.sin(x)) * x**2
SLOPE = np.exp(np.sin(X.numpy())) * (np.cos(X.numpy()) * X.numpy() ** 2 + 2 * X.numpy())


@pytest.mark.parametrize("method, accuracy", [("central", 1e-9), ("richardson", 1e-10), ("complex", 1e-15)])
def test_methods_and_their_error_estimates(method, accuracy):
    got, doubt = gg.numgrad(F, X, method=method, error=True)
    miss = np.abs(got.numpy() - SLOPE)
    assert miss.max() <= accuracy * np.abs(SLOPE).max()
    assert (miss <= doubt.numpy()).all()
    assert doubt.numpy().max() <= 1e-4
    assert np.array_equal(gg.numgrad(F, X, method=method).numpy(), got.numpy())
    weighted = gg.numgrad(F, X, method=method, cotangent=[1.0, 0.0, 2.0]).numpy()
    np.testing.assert_allclose(weighted, SLOPE * [1, 0, 2], rtol=1e-8, atol=1e-12)


def test_the_error_estimate_grows_with_the_step():
    doubts = [gg.numgrad(F, X, method="central", eps=h, error=True)[1].numpy() for h in (1e-2, 1e-1)]
    assert (doubts[1] > 20 * doubts[0]).all()
    with pytest.raises(ValueError, match="complex"):
        gg.numgrad(F, X, method="sideways")
    assert set(STEPS) == {"central", "richardson", "complex"}


MODES = [{}, {"fast": True}, {"forward": True}, {"fast": True, "forward": True}]


@pytest.mark.parametrize("mode", MODES)
def test_right_rules_pass(mode):
    w = t64(np.random.default_rng(0).normal(size=(3, 3)))
    assert gg.gradcheck(lambda w, x: gg.tanh(w @ x) * x, [w, X], **mode)
    assert gg.gradcheck(lambda x, k: gg.take(x, k), [X, gg.tensor([0, 2, 2])], **mode)


def wrong(vjp=None, jvp=None):
    right = lambda t, x: t * 3 * x**2
    return gg.custom_op(
        lambda x: x**3,
        lambda t, out, x: (vjp or right)(t, x),
        jvp=lambda ts, out, x: (jvp or right)(ts[0], x),
        check=False,
    )


MISTAKES = {
    "sign": lambda t, x: -t * 3 * x**2,
    "factor": lambda t, x: t * 2 * x**2,
    "one element": lambda t, x: t * 3 * x**2 * t64([1.0, 1.0, 1.0001]),
    "zero": lambda t, x: t * 0.0,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_rules_are_found(name):
    for mode in MODES:
        with pytest.raises(GradientError, match="input 0"):
            gg.gradcheck(wrong(vjp=MISTAKES[name]), [X], **mode)
        if "forward" in mode:
            with pytest.raises(GradientError, match="jvp in input 0"):
                gg.gradcheck(wrong(jvp=MISTAKES[name]), [X], **mode)


def test_fast_mode_calls_f_a_handful_of_times():
    calls = []

    def f(x):
        calls.append(1)
        return gg.sin(x)

    gg.gradcheck(f, [t64(np.linspace(0, 1, 500))], fast=True)
    assert len(calls) == 5
