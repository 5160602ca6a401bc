"""Activations by hand: formulas, far arguments, the lectures' numbers, NaN, kinks of their own."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.check import gradcheck
from gpugrad.nn.functional import bias_act
from gpugrad.op import TABLE
from gpugrad.ops.activation import FROM_OUTPUT

X = np.array([-5.0, -2.0, -0.7, -0.1, 0.2, 1.1, 2.5, 7.0])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def phi(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def clamp(x, low, high):
    return max(low, min(high, x))


SELU_ALPHA, SELU_SCALE = 1.67326324235437728, 1.05070098735548049
FORMULAS = {
    "relu": (gg.relu, lambda x: max(x, 0)),
    "leaky_relu": (lambda x: gg.leaky_relu(x, 0.2), lambda x: x if x > 0 else 0.2 * x),
    "elu": (lambda x: gg.elu(x, 1.5), lambda x: x if x > 0 else 1.5 * math.expm1(x)),
    "elu_down": (lambda x: gg.elu(x, -0.5), lambda x: x if x > 0 else -0.5 * math.expm1(x)),
    "selu": (gg.selu, lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * math.expm1(x))),
    "celu": (lambda x: gg.celu(x, 2.0), lambda x: x if x > 0 else 2.0 * math.expm1(x / 2.0)),
    "gelu": (gg.gelu, lambda x: x * phi(x)),
    "gelu_tanh": (
        lambda x: gg.gelu(x, "tanh"),
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "silu": (gg.silu, lambda x: x * sigmoid(x)),
    "swish": (gg.swish, lambda x: x * sigmoid(x)),
    "mish": (gg.mish, lambda x: x * math.tanh(math.log1p(math.exp(x)))),
    "sigmoid": (gg.sigmoid, sigmoid),
    "log_sigmoid": (gg.log_sigmoid, lambda x: math.log(sigmoid(x))),
    "softplus": (gg.softplus, lambda x: math.log1p(math.exp(x))),
    "softplus_beta": (lambda x: gg.softplus(x, 3.0), lambda x: math.log1p(math.exp(3 * x)) / 3),
    "softsign": (gg.softsign, lambda x: x / (1 + abs(x))),
    "hardtanh": (gg.hardtanh, lambda x: clamp(x, -1, 1)),
    "hardsigmoid": (gg.hardsigmoid, lambda x: clamp(x / 6 + 0.5, 0, 1)),
    "hardswish": (gg.hardswish, lambda x: x * clamp(x / 6 + 0.5, 0, 1)),
    "relu6": (gg.relu6, lambda x: clamp(x, 0, 6)),
    "tanhshrink": (gg.tanhshrink, lambda x: x - math.tanh(x)),
    "softshrink": (gg.softshrink, lambda x: math.copysign(max(abs(x) - 0.5, 0), x)),
    "hardshrink": (gg.hardshrink, lambda x: x if abs(x) > 0.5 else 0),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_formula_and_gradient(name):
    f, want = FORMULAS[name]
    np.testing.assert_allclose(f(gg.Tensor(X)).data, [want(v) for v in X], rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(f(gg.Tensor(X.astype("float32"))).data, [want(v) for v in X], rtol=2e-6, atol=1e-6)
    assert gradcheck(f, [gg.Tensor(X)])
    assert f(gg.Tensor(np.array([1, 2]))).dtype in (np.float32, np.int64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_finite_without_a_warning_up_to_1e4(name, dtype):
    x = np.concatenate([s * np.array([0, 1e-4, 1, 20, 80, 88.5, 90, 104, 700, 709.5, 746, 1e3, 1e4]) for s in (1, -1)])
    t = gg.Tensor(x.astype(dtype)).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = FORMULAS[name][0](t)
        y.sum().backward()
    assert y.dtype == t.grad.dtype == dtype
    assert np.isfinite(y.data).all()
    assert np.isfinite(t.grad.data).all()
    assert np.abs(t.grad.data).max() < 2


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_nan_passes(name):
    t = gg.Tensor(np.array([math.nan, 1.0])).requires_grad_()
    y = FORMULAS[name][0](t)
    assert np.isnan(y.data[0])
    y.backward(gg.Tensor(np.array([math.nan, 1.0])))
    assert np.isnan(t.grad.data[0])
    assert np.isfinite(t.grad.data[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_of_one_plus_exp_of_the_lectures(dtype):
    x = gg.Tensor(np.array([-1, -2, -5, -10, -20, -50, -100, -200, -500, -1000, -2000], dtype)).requires_grad_()
    y = gg.softplus(-x)
    want = [1.3133, 2.1269, 5.0067, 10, 20, 50, 100, 200, 500, 1000, 2000]
    np.testing.assert_allclose(y.data, want, atol=6e-5)
    np.testing.assert_array_equal(y.data[6:], want[6:])
    y.sum().backward()
    np.testing.assert_allclose(
        x.grad.data, [-1 / (1 + math.exp(v)) for v in (-1, -2, -5, -10, -20)] + [-1] * 6, rtol=1e-6
    )
    same = gg.Tensor(x.data).requires_grad_()
    z = -gg.log_sigmoid(same)
    z.sum().backward()
    np.testing.assert_array_equal(z.data, y.data)
    np.testing.assert_array_equal(same.grad.data, x.grad.data)


def test_small_values_keep_their_digits():
    x = gg.Tensor(np.array([-40.0, -300.0]))
    np.testing.assert_allclose(gg.sigmoid(x).data, np.exp(x.data), rtol=1e-14)
    np.testing.assert_allclose(gg.softplus(x).data, np.exp(x.data), rtol=1e-14)
    np.testing.assert_allclose(gg.log_sigmoid(-x).data, -np.exp(x.data), rtol=1e-14)


def test_an_unselected_unit_stays_zero_whatever_arrives():
    x = gg.Tensor(np.array([-1.0, 2.0])).requires_grad_()
    gg.relu(x).backward(gg.Tensor(np.array([math.inf, 3.0])))
    assert x.grad.tolist() == [0, 3]


def test_one_node_each_and_a_backward_op_of_their_own():
    for name in ("relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "softplus", "mish", "hardswish"):
        y = getattr(gg, name)(gg.Tensor(X).requires_grad_())
        assert (y.node.op.name, y.node.parents[0].op) == (name, None)
        assert TABLE[f"{name}_bwd"].differentiable
        kept = [v is not None for v in y.node.saved]
        assert kept == [name in (*FROM_OUTPUT, "elu"), name not in (*FROM_OUTPUT, "elu")]


def test_logit_inverts_sigmoid():
    x = gg.Tensor(np.linspace(-8, 8, 9))
    np.testing.assert_allclose(gg.logit(gg.sigmoid(x)).data, x.data, rtol=1e-12, atol=1e-15)
    ends = gg.logit(gg.Tensor(np.array([0.0, 1.0])), eps=1e-6).data
    np.testing.assert_allclose(ends, [-math.log(1e6 - 1), math.log(1e6 - 1)], rtol=1e-9)


def test_glu_gates_the_first_half_with_the_second():
    a = np.random.default_rng(0).normal(size=(3, 4, 5))
    got = gg.glu(gg.Tensor(a), axis=1)
    np.testing.assert_allclose(got.data, a[:, :2] / (1 + np.exp(-a[:, 2:])), rtol=1e-14)
    assert gradcheck(lambda v: gg.glu(v, 1), [gg.Tensor(a)])
    with pytest.raises(gg.errors.ShapeError, match=r"\[glu\] \(float64\[3, 4, 5\], axis=-1\): length 5"):
        gg.glu(gg.Tensor(a))


def test_unusable_parameters_are_refused():
    x = gg.Tensor(X)
    for call, message in (
        (lambda: gg.gelu(x, "fast"), r"\[gelu\] approximate is 'fast'"),
        (lambda: gg.celu(x, 0), r"\[celu\] alpha is 0"),
        (lambda: gg.softplus(x, 0), r"\[softplus\] beta is 0"),
        (lambda: gg.softshrink(x, -1), r"\[softshrink\] lambd is -1"),
    ):
        with pytest.raises(gg.errors.DomainError, match=message):
            call()


@pytest.mark.parametrize("kind", ["relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "none"])
def test_bias_act_is_the_activation_of_the_sum(kind):
    rng = np.random.default_rng(4)
    a, c, t = rng.normal(size=(5, 2, 3)), rng.normal(size=3), rng.normal(size=(5, 2, 3))

    def separate(x, b):
        z = x + b
        return z if kind == "none" else gg.gelu(z, "tanh") if kind == "gelu_tanh" else getattr(gg, kind)(z)

    def run(f):
        x, b = gg.tensor(a, requires_grad=True), gg.tensor(c, requires_grad=True)
        y = f(x, b)
        y.backward(gg.tensor(t))
        return y, x.grad, b.grad

    one = run(lambda x, b: bias_act(x, b, kind))
    for got, want in zip(one, run(separate)):
        np.testing.assert_allclose(got.data, want.data, rtol=1e-14, atol=1e-15)
    y = bias_act(gg.tensor(a, requires_grad=True), gg.tensor(c), kind)
    kept = [v is not None for v in y.node.saved[:2]]
    assert kept == {"none": [False, False]}.get(kind, [kind in FROM_OUTPUT, kind not in FROM_OUTPUT])
    assert bias_act(gg.tensor([1, 2]), gg.tensor([1, 1]), "sigmoid").dtype == np.float32


def test_bias_act_refuses_what_does_not_fit():
    x = gg.ones((2, 3))
    for args, kind, message in (
        ((x, gg.ones(2)), gg.errors.ShapeError, r"\[bias_act\] \(float32\[2, 3\], float32\[2\]\): expected a bias"),
        ((x, gg.ones((2, 3))), gg.errors.ShapeError, "expected a bias"),
        ((gg.ones(()), gg.ones(())), gg.errors.ShapeError, "expected a bias"),
        ((x, gg.ones(3), "elu"), gg.errors.DomainError, r"activation is 'elu'; expected one of relu, "),
    ):
        with pytest.raises(kind, match=message):
            bias_act(*args)


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "mish"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_large_arrays_in_any_order_of_memory(name, axes):
    """They are worked on in pieces, which follow each other in memory, and so is the result."""
    x, t = (np.random.default_rng(i).normal(size=(70, 80, 100)).astype("float32") for i in range(2))
    x[0, 0, :4] = np.nan, np.inf, -np.inf, -0.0
    run, back = (TABLE[f"{name}{end}"].impls[np.ndarray] for end in ("", "_bwd"))
    attrs = {"approximate": "tanh"} if name == "gelu" else {}
    out, slope = run(x, **attrs), back(t, x, **attrs)
    a, b = (np.ascontiguousarray(v.transpose(axes)).transpose(np.argsort(axes)) for v in (x, t))
    for got, want in ((run(a, **attrs), out), (back(b, a, **attrs), slope)):
        np.testing.assert_array_equal(got, want)
        assert got.strides == a.strides
