"""What the proof adds to test_table.py: values against exact arithmetic, complex step, third order, shapes, layouts."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DTypeError
from gpugrad.nn.functional import conv2d
from gpugrad.op import TABLE
from gpugrad.tensor import Tensor

from .samples import Sample
from .test_broadcast import pair
from .test_table import CASES, SAMPLES, SMOOTH, arrays, as_function, direction, push, tensors, varied

mp = pytest.importorskip("mpmath", reason="exact values come from mpmath")

from . import accuracy, truth  # noqa: E402

ELEMENTWISE = sorted(n for n in SAMPLES if TABLE[n].kind == "elementwise")
BINARY = [n for n in ELEMENTWISE if {c.arity for c in truth.CASES.get(n, [])} == {2} and not n.endswith("_bwd")]


def forward(name, *args, **attrs):
    """The implementation on arrays, without what rules keep beside it."""
    op = TABLE[name]
    with np.errstate(all="ignore"):
        out = op.impls[np.ndarray](*args, **attrs)
    return out[0] if op.aux else out


# --- values ---------------------------------------------------------------------------------------------------------


def test_every_elementwise_op_has_an_exact_counterpart():
    assert sorted(truth.CASES) == ELEMENTWISE
    assert all(truth.CASES.values())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_values_within_4_ulp(name, dtype):
    """On every magnitude, subnormals and the largest numbers included, and close to branch points and zeros."""
    error, where = truth.worst(name, dtype)
    assert error <= truth.LIMIT, where


def test_the_comparison_can_fail():
    """An error in the last places of one point is found, so is a number where there is none, and a wrong infinity."""
    with truth.mp.workprec(200):
        third = truth.mp.mpf(1) / 3
    unit = truth.last_place(third, np.float64)
    assert unit == np.spacing(1 / 3)
    assert truth.ulp(1 / 3, third, unit, 1e300) < 0.5
    assert 4.5 < truth.ulp(1 / 3 + 5 * unit, third, unit, 1e300) < 5.5
    assert truth.ulp(0.0, None, unit, 1e300) == truth.ulp(math.nan, third, unit, 1e300) == math.inf
    assert truth.ulp(-math.inf, truth.mp.mpf(10) ** 400, 1.0, 1e300) > 1e300
    assert truth.ulp(math.inf, truth.mp.mpf(10) ** 400, 1.0, 1e300) == 0


# what an activation tends to at -inf and inf, value and slope
AT_INFINITY = {
    "relu": (0, math.inf, 0, 1), "sigmoid": (0, 1, 0, 0), "tanh": (-1, 1, 0, 0), "silu": (0, math.inf, 0, 1),
    "mish": (0, math.inf, 0, 1), "gelu": (0, math.inf, 0, 1), "softplus": (0, math.inf, 0, 1), "erf": (-1, 1, 0, 0),
    "log_sigmoid": (-math.inf, 0, 1, 0), "selu": (-1.7580993408473766, math.inf, 0, 1.0507009873554805),
    "elu": (-1, math.inf, 0, 1), "hardsigmoid": (0, 1, 0, 0), "erfc": (2, 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", AT_INFINITY)
def test_activations_have_their_limits_at_infinity(name, dtype):
    x = Tensor(np.array([-math.inf, math.inf, math.nan], dtype)).requires_grad_()
    with np.errstate(invalid="ignore"):  # relu of NaN
        y = getattr(gg, name)(x)
        y.backward(Tensor(np.ones(3, dtype)))
    want = AT_INFINITY[name]
    np.testing.assert_allclose(
        y.data, np.array([*want[:2], math.nan], dtype), rtol=1e-6 if dtype != "float16" else 2e-3
    )
    np.testing.assert_allclose(x.grad.data[:2], np.array(want[2:], dtype), rtol=1e-6 if dtype != "float16" else 2e-3)


@pytest.mark.parametrize("name, dtype", list(itertools.product(sorted(accuracy.CASES), ("float32", "float64"))))
def test_other_values_within_their_published_bound(name, dtype):
    """Reductions, softmax, products, normalisation: in units in the last place of the size each case names."""
    error, where = accuracy.worst(name, dtype)
    assert error <= accuracy.CASES[name][0].bound, where


@pytest.mark.parametrize("far", [1e4, -1e4, math.inf, -math.inf])
def test_softmax_at_far_and_infinite_logits(far):
    x = np.array([[0.0, far, 1.0], [far, far, 0.5]])
    with np.errstate(invalid="ignore"):
        soft, low, lse = gg.softmax(Tensor(x)).data, gg.log_softmax(Tensor(x)).data, gg.logsumexp(Tensor(x), 1).data
    if far == math.inf:
        assert lse.tolist() == [math.inf, math.inf]
    else:
        assert np.isfinite(lse).all()
        assert np.isfinite(soft).all()
        assert (low[0] <= 0).all()
    shifted = gg.softmax(Tensor(x[:, :] + 64.0)).data
    np.testing.assert_allclose(shifted, soft, rtol=1e-12)


def test_sums_of_half_precision_are_made_in_single():
    """Ten million ones: float16 itself stops counting at 2048."""
    ones = Tensor(np.ones(10_000_000, "float16"))
    assert gg.sum(ones, dtype="float32").item() == 1e7
    assert gg.mean(ones).item() == 1.0
    assert gg.sum(Tensor(ones.data[:60_000])).item() == 60_000


# --- derivatives ----------------------------------------------------------------------------------------------------

# analytic functions whose implementation takes complex numbers
ANALYTIC = [
    "add", "subtract", "multiply", "divide", "negative", "reciprocal", "square", "sqrt", "exp", "expm1", "log", "log2",
    "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
    "pow", "exp2", "quotient", "absorb", "tanh_bwd", "sigmoid_bwd", "sum", "mean", "prod", "cumulative_sum",
    "cumulative_prod", "linear_scan", "matmul", "inv", "det", "solve", "reshape", "transpose", "concat", "where",
    "gather", "conv2d", "conv2d_input", "conv2d_weight", "roll", "tril", "triu", "getitem", "flip",
]  # fmt: skip


@pytest.mark.parametrize("name, sample", [p for p in CASES if p.values[0] in ANALYTIC])
def test_jvp_equals_the_complex_step(name, sample):
    """Im f(x + i h v) / h has no cancellation: the rule is compared in nearly all its digits."""
    op, h = TABLE[name], 1e-100
    v, _ = direction(op, sample)
    moved = [a + 1j * h * v[i] if i in v else a for i, a in enumerate(arrays(sample))]
    want = np.imag(forward(name, *moved, **sample.attrs)) / h
    (got,) = push(op, sample, v)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * max(1.0, float(np.abs(want).max(initial=0))))


@pytest.mark.parametrize("name, sample", [p for p in SMOOTH if p.values[1].second])
def test_third_order_matches_numeric(name, sample):
    """The gradient of a second derivative along two directions, against differences of it along a third."""
    f, xs = as_function(TABLE[name], sample)
    rng = np.random.default_rng(5)
    u, v, w = ([rng.normal(size=x.shape) for x in xs] for _ in range(3))

    def dot(a, b):
        total = 0.0
        for p, q in zip(a, b):
            total = total + (p * Tensor(q)).sum()
        return total

    def second(leaves):
        y = f(*leaves)
        first = gg.gradients(dot([y], [np.cos(np.arange(y.size)).reshape(y.shape)]), leaves, create_graph=True,
                             unconnected="zero")  # fmt: skip
        total = dot(first, u)
        if total.node is None:
            return total
        return dot(gg.gradients(total, leaves, create_graph=True, unconnected="zero"), v)

    def along(h):
        return second([Tensor(x.data + h * d).requires_grad_() for x, d in zip(xs, w)]).item()

    leaves = [Tensor(x.data.copy()).requires_grad_() for x in xs]
    h2 = second(leaves)
    third = gg.gradients(h2, leaves, unconnected="zero") if h2.node is not None else [Tensor(0 * x.data) for x in xs]
    got = sum(float(np.sum(g.data * d)) for g, d in zip(third, w))
    h = 5e-4
    s = [along(k * h) - along(-k * h) for k in (1, 2, 3)]
    want = (45 * s[0] - 9 * s[1] + s[2]) / (60 * h)
    size = max(1.0, abs(want), abs(h2.item()), sum(float(np.sum(np.abs(g.data * d))) for g, d in zip(third, w)))
    assert abs(got - want) <= 1e-6 * size


# --- shapes ---------------------------------------------------------------------------------------------------------


def operands(name: str, shapes: list[tuple[int, ...]], rng) -> tuple[list[np.ndarray], dict]:
    """Arguments of those shapes, with elements of the op's first sample, and its attributes."""
    sample = SAMPLES[name][0]
    made = [rng.choice(np.asarray(a).ravel(), s) for a, s in zip(sample.args, shapes)]
    return made, sample.attrs


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_on_small_shapes(name, shape):
    """0-d, empty and size 1: an array of the shape, with the values that a longer array has; so is the gradient."""
    op, rng = TABLE[name], np.random.default_rng(1)
    made, attrs = operands(name, [shape] * len(SAMPLES[name][0].args), rng)
    longer = [np.concatenate([np.ravel(a), np.ravel(a)]) for a in made]
    where = varied(op, SAMPLES[name][0])

    def run(args):
        leaves = [Tensor(a.copy()).requires_grad_() if i in where else Tensor(a) for i, a in enumerate(args)]
        out = op.call(*leaves, **attrs)
        out.backward(Tensor(np.ones(out.shape)))
        return out, [leaves[i].grad for i in where]

    (y, grads), (long, others) = run(made), run(longer)
    assert type(y.data) is np.ndarray
    assert y.shape == shape
    np.testing.assert_array_equal(y.data.ravel(), long.data[: y.size])
    for g, other in zip(grads, others):
        assert (type(g.data), g.shape) == (np.ndarray, shape)
        np.testing.assert_array_equal(g.data.ravel(), other.data[: y.size])


# call, shape of x, what comes out: one number where it is everywhere the same
SMALL = {
    "sum of none": (lambda x: gg.sum(x, 0), (0, 3), [0, 0, 0]),
    "sum of 0-d": (lambda x: gg.sum(x), (), 2),
    "prod of none": (lambda x: gg.prod(x, 0), (0, 3), [1, 1, 1]),
    "mean of none": (lambda x: gg.mean(x, 1), (2, 0), [math.nan, math.nan]),
    "mean of 0-d": (lambda x: gg.mean(x), (), 2),
    "var of one": (lambda x: gg.var(x), (1,), 0),
    "norm of none": (lambda x: gg.norm(x), (0,), 0),
    "logsumexp of one": (lambda x: gg.logsumexp(x), (1,), 2),
    "softmax of rows of none": (lambda x: gg.softmax(x), (0, 3), []),
    "softmax of one": (lambda x: gg.softmax(x), (2, 1), [1, 1]),
    "running sum of none": (lambda x: gg.cumsum(x, 0), (0, 2), []),
    "product over none": (lambda x: x @ gg.Tensor(np.zeros((0, 2))), (3, 0), [0] * 6),
    "product of no rows": (lambda x: x @ gg.Tensor(np.ones((3, 2))), (0, 3), []),
    "maximum of one": (lambda x: gg.max(x), (1, 1), 2),
    "nothing beside something": (lambda x: gg.concat([x, x]), (0, 2), []),
    "no rows of a table": (lambda x: gg.take(x, gg.Tensor(np.zeros(0, int)), axis=0), (4, 2), []),
    "a slice of nothing": (lambda x: x[1:, None], (1, 2), []),
    "sorted nothing": (lambda x: gg.sort(x), (0,), []),
    "inverse of no matrices": (lambda x: gg.linalg.inv(x), (0, 2, 2), []),
    "convolved no images": (lambda x: conv2d(x, gg.ones((1, 2, 1, 1), dtype="float64")), (0, 2, 3, 3), []),
}


@pytest.mark.parametrize("case", SMALL)
def test_other_ops_on_nothing_and_on_one_number(case):
    """The value, and a gradient of x's shape."""
    f, shape, want = SMALL[case]
    x = Tensor(np.full(shape, 2.0)).requires_grad_()
    with np.errstate(invalid="ignore", divide="ignore"):
        y = f(x)
        y.backward(Tensor(np.ones(y.shape)))
    np.testing.assert_array_equal(y.data.ravel(), np.ravel(np.asarray(want, "float64")))
    assert (type(y.data), type(x.grad.data)) == (np.ndarray, np.ndarray)
    assert x.grad.shape == shape


def test_500_random_broadcast_pairs_over_the_binary_ops():
    """The value is that of operands stretched beforehand, bit for bit; a gradient sums over what was stretched."""
    rng, seen = np.random.default_rng(33), set()
    for name in itertools.islice(itertools.cycle(BINARY), 500):
        shapes = pair(rng)
        made, attrs = operands(name, shapes, rng)
        full = np.broadcast_shapes(*shapes)
        op, t = TABLE[name], Tensor(rng.normal(size=full))
        where = varied(op, SAMPLES[name][0])
        results = []
        for args in (made, [np.broadcast_to(a, full).copy() for a in made]):
            leaves = [Tensor(a).requires_grad_() if i in where else Tensor(a) for i, a in enumerate(args)]
            out = op.call(*leaves, **attrs)
            out.backward(t)
            results.append((out, [leaves[i].grad.data for i in where]))
        (short, grads), (wide, others) = results
        assert short.shape == full
        np.testing.assert_array_equal(short.data, wide.data)
        for i, g, other in zip(where, grads, others):
            assert g.shape == shapes[i], name
            lead = tuple(range(len(full) - g.ndim))
            want = other.sum(lead)
            want = want.sum(tuple(k for k in range(g.ndim) if g.shape[k] == 1), keepdims=True)
            np.testing.assert_allclose(g, want, rtol=1e-9, atol=1e-9 * max(1.0, float(np.abs(other).max(initial=0))))
        seen |= {("0-d", () in shapes), ("empty", 0 in full), ("stretched", shapes[0] != shapes[1])}
    assert {(k, True) for k in ("0-d", "empty", "stretched")} <= seen
    assert len(BINARY) > 20


# --- layouts --------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "fortran": lambda a: np.array(a, order="F"),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "reversed": lambda a: a[(slice(None, None, -1),) * a.ndim].copy()[(slice(None, None, -1),) * a.ndim],
    "stretched": lambda a: np.lib.stride_tricks.as_strided(a, a.shape, a.strides),
}


def laid_out(sample: Sample, layout: str) -> Sample:
    """The sample with each array in another memory layout and read-only, so that writing to one would raise."""

    def make(a):
        if not isinstance(a, np.ndarray):
            return a
        b = np.asarray(LAYOUTS[layout](a))
        assert b.shape == a.shape
        b.flags.writeable = False
        return b

    return Sample(tuple(make(a) for a in sample.args), sample.attrs, sample.second, sample.outputs)


@functools.cache
def outcome(name: str, i: int, layout: str | None) -> list[np.ndarray]:
    """All outputs and gradients of a sample of an op, its arrays laid out so and read-only."""
    op, sample = TABLE[name], SAMPLES[name][i]
    sample = sample if layout is None else laid_out(sample, layout)
    where = varied(op, sample) if op.differentiable else []
    args = []
    for k, a in enumerate(sample.args):
        t = Tensor(a) if isinstance(a, np.ndarray) else Tensor(np.asarray(a)) if isinstance(a, np.generic) else a
        args.append(t.requires_grad_() if k in where else t)
    out = op.call(*args, **sample.attrs)
    outs = out if isinstance(out, tuple) else (out,)
    live = [o for o in sample.chosen(outs) if o.node is not None]
    grads = []
    if live:
        cotangents = [Tensor(np.cos(np.arange(o.size)).reshape(o.shape)) for o in live]
        for c in cotangents:
            c.data.flags.writeable = False
        found = gg.gradients(live, [args[k] for k in where], cotangents, unconnected="zero")
        grads = [g.data for g in found]
    return [o.data for o in outs] + grads


# they draw from, or write to, what they are given
STATEFUL = {n for n in SAMPLES if n.startswith("random_") or TABLE[n].kind == "update"} | {"snapshot"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted(set(SAMPLES) & set(TABLE) - STATEFUL))
def test_layout_makes_no_difference(name, layout):
    """Read-only, Fortran-ordered, strided and reversed inputs: the same values and gradients, nothing written."""
    tolerance = 1e-14 if TABLE[name].kind == "elementwise" else 1e-11
    for i in range(len(SAMPLES[name])):
        for got, want in zip(outcome(name, i, layout), outcome(name, i, None)):
            assert got.shape == want.shape
            assert got.dtype == want.dtype
            if got.dtype.kind not in "fc":
                np.testing.assert_array_equal(got, want)
            else:  # NumPy's vector loops, BLAS and the order of sums follow the layout
                atol = tolerance * max(1.0, float(np.abs(want).max(initial=0)))
                np.testing.assert_allclose(got, want, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("make", [gg.tensor, gg.asarray], ids=["tensor", "asarray"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "c16"])
def test_foreign_byte_order_is_refused(make, dtype):
    foreign = np.ones(3, np.dtype(dtype).newbyteorder("S"))
    with pytest.raises(
        DTypeError, match=r"(?s)" + foreign.dtype.str.replace("|", "") + r".*newbyteorder.*test_proof\.py"
    ):
        make(foreign)


# --- dtypes ---------------------------------------------------------------------------------------------------------

NARROW = ["float16", "bfloat16"]
# LAPACK, Cholesky and the like know no half precision; those that say so
NO_HALF = {"cholesky", "det", "eigh", "inv", "pinv", "qr", "slogdet", "solve", "svd", "matrix_rank"}


def narrow(name: str) -> np.dtype:
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", sorted(n for n in SAMPLES if TABLE[n].differentiable and n not in NO_HALF))
def test_half_precision_is_kept(name, dtype):
    """Values and gradients come in the dtype of the input and near those in float64."""
    kind, op = narrow(dtype), TABLE[name]
    sample = SAMPLES[name][0]
    where = varied(op, sample)
    args = [Tensor(a.astype(kind)) if i in where else t for i, (a, t) in enumerate(zip(sample.args, tensors(sample)))]
    args = [Tensor(t.data.astype(kind)) if isinstance(t, Tensor) and t.dtype == np.float64 else t for t in args]
    for i in where:
        args[i].requires_grad_()
    out = op.call(*args, **sample.attrs)
    outs = out if isinstance(out, tuple) else (out,)
    for o in outs:
        assert o.dtype == kind or o.dtype.kind in "iub" or "dtype" in sample.attrs, f"{name} gives {o.dtype}"
    live = [o for o in sample.chosen(outs) if o.node is not None]
    for o, w in zip(outs, outcome(name, 0, None)):
        if o.dtype == kind and np.isfinite(w).all():
            scale = max(1.0, float(np.abs(w).max(initial=0)))
            eps = 2.0**-7 if dtype == "bfloat16" else 2.0**-10
            np.testing.assert_allclose(o.data.astype("float64"), w, rtol=0, atol=64 * eps * scale)
    found = gg.gradients(
        live, [args[i] for i in where], [Tensor(np.ones(o.shape, o.dtype)) for o in live], unconnected="zero"
    )
    for i, g in zip(where, found):
        assert (g.dtype, g.shape) == (kind, args[i].shape)
