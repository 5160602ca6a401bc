"""Kernels of activations against the NumPy twin in float64: on the emulator under several schedules, and on a GPU."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.launch.activation import columns
from gpugrad.op import TABLE
from gpugrad.testing import fake_cupy

from .kernel_checks import SIZES, Pair, check, wide

rng = np.random.default_rng()

OPTIONS = {
    "relu": {}, "leaky_relu": {"negative_slope": 0.125}, "elu": {"alpha": 1.5, "rate": 0.5, "scale": 1.25},
    "gelu": {"approximate": "none"}, "gelu_tanh": {"approximate": "tanh"}, "silu": {}, "sigmoid": {}, "tanh": {},
    "softplus": {"beta": 2.0}, "log_sigmoid": {}, "mish": {}, "hardswish": {},
}  # fmt: skip
FROM_OUTPUT = ("relu", "elu", "sigmoid", "tanh")
EVERY = sorted(OPTIONS)
SOME = ["elu", "gelu", "leaky_relu", "softplus"]  # in the narrow types: the conversions are those of every functor


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test in whatever order tests run."""
    global rng
    rng = np.random.default_rng(7)


def forward(name):
    """The table's name and the attributes of a case."""
    return name.removesuffix("_tanh"), OPTIONS[name]


def backward(name):
    """The same of the op that its rule calls."""
    return ("softplus_bwd", {"beta": -1.0}) if name == "log_sigmoid" else (f"{forward(name)[0]}_bwd", OPTIONS[name])


def compare(backend, name, dtype, x, t):
    """Both passes beside their twins; where the twin has an infinity or NaN, so has the kernel."""
    op, options = forward(name)
    pair = Pair(backend, op)
    with np.errstate(all="ignore"):
        out = pair.twin(wide(x), **options)
        got = pair.run(x, **options)
        assert got.dtype == dtype
        check(got, out, dtype)
        v = out.astype(dtype) if name in FROM_OUTPUT else x
        op, options = backward(name)
        pair = Pair(backend, op)
        got = pair.run(t, v, **options)
        assert got.dtype == dtype
        check(got, pair.twin(wide(t), wide(v), **options), dtype)


def values(dtype, n):
    return (3 * rng.normal(size=n)).astype(dtype), rng.normal(size=n).astype(dtype)


@pytest.mark.parametrize("name", EVERY)
def test_sizes(backend, name):
    for size in SIZES:
        compare(backend, name, np.dtype("float32"), *values("float32", size))


@pytest.mark.parametrize("name", EVERY)
def test_double(backend, name):
    compare(backend, name, np.dtype("float64"), *values("float64", 1025))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"], indirect=True)
@pytest.mark.parametrize("name", SOME)
def test_narrow_types(backend, name, dtype):
    for size in (1, 8, 33, 1025):
        compare(backend, name, dtype, *values(dtype, size))


@pytest.mark.parametrize("name", EVERY)
def test_schedules(backend, scheduled, name):
    with scheduled:
        compare(backend, name, np.dtype("float32"), *values("float32", 1025))


@pytest.mark.parametrize("name", EVERY)
def test_special_values(backend, name):
    """Kinks, signed zeros, NaN, infinities; and nothing overflows up to 1e4."""
    far = [s * v for s in (1, -1) for v in (0.0, 0.5, 3.0, 1e-30, 20.0, 88.5, 104.0, 746.0, 1e4)]
    for special in ([math.nan, math.inf, -math.inf], far):
        for dtype in ("float32", "float64"):
            x = np.array(special, dtype)
            compare(backend, name, np.dtype(dtype), x, np.linspace(-2, 2, x.size).astype(dtype))
            compare(backend, name, np.dtype(dtype), x, np.full(x.size, math.nan, dtype))
    op, options = forward(name)
    assert np.isfinite(Pair(backend, op).run(x, **options)).all()


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"], indirect=True)
def test_absorbed(backend, dtype, infinite):
    """Every pair of special values, and sizes that do not fill the packets."""
    pair, special = Pair(backend, "absorbed"), [0.0, -0.0, 1.5, -2.0, math.inf, -math.inf, math.nan]
    g, t = (v.reshape(-1).astype(dtype) for v in np.meshgrid(special, special))
    for size in (1, 8, 33, g.size):
        got = pair.run(g[-size:], t[-size:], infinite=infinite)
        assert got.dtype == dtype
        check(got, pair.twin(wide(g[-size:]), wide(t[-size:]), infinite=infinite), dtype)


def test_an_unselected_unit_stays_zero_whatever_arrives(backend):
    x, t = np.array([-4, -3, 0, 3, 5], "float32"), np.full(5, math.inf, "float32")
    assert Pair(backend, "relu_bwd").run(t, x).tolist() == [0, 0, 0, math.inf, math.inf]
    assert Pair(backend, "hardswish_bwd").run(t, x).tolist() == [0, 0, math.inf, math.inf, math.inf]


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


EXACT = {
    "sigmoid": sigmoid, "tanh": math.tanh, "silu": lambda x: x * sigmoid(x),
    "mish": lambda x: x * math.tanh(softplus(x)),
    "softplus": lambda x: softplus(2 * x) / 2, "log_sigmoid": lambda x: -softplus(-x),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x * sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)),
    "elu": lambda x: 1.25 * (x if x > 0 else 1.5 * math.expm1(0.5 * x)),
    "hardswish": lambda x: x * min(max(x / 6 + 0.5, 0), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(EXACT))
def test_digits_of_small_results(backend, name):
    """A few ulp relative to the result, however small, beyond what the rounding of x and its square does to them."""
    x = np.concatenate([np.linspace(-12, 12, 401), np.geomspace(1e-20, 1, 50), -np.geomspace(1e-20, 1, 50)])
    x = x.astype("float32")
    op, options = forward(name)
    got, want = wide(Pair(backend, op).run(x, **options)), np.array([EXACT[name](float(v)) for v in x])
    spread = {"gelu": 2 * x * x, "gelu_tanh": 2 * np.abs(x) ** 3}.get(name, 0)
    error = np.abs(got - want)
    if name == "hardswish":
        error[np.abs(x + 3) < 0.1] = 0  # its steep end is a difference of rounded numbers
    np.testing.assert_array_less(error, 2.0**-24 * (10 + spread) * np.abs(want) + 1e-37)


@pytest.mark.parametrize("name", EVERY)
def test_twins_agree_with_the_derivative_of_the_forward(backend, name):
    """The two kernels are tested against two twins; these against each other."""
    op, options = forward(name)
    x = np.array([-4.1, -2.7, -0.6, 0.3, 1.9, 3.4, 21.0])
    run, (back, its), h = Pair(backend, op).twin, backward(name), 1e-5
    numeric = (run(x + h, **options) - run(x - h, **options)) / (2 * h)
    v = run(x, **options) if name in FROM_OUTPUT else x
    got = Pair(backend, back).twin(np.ones(x.size), v, **its)
    np.testing.assert_allclose(got, numeric, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_relu_bwd(backend, dtype, size):
    pair = Pair(backend, "relu_bwd")
    t, out = rng.normal(size=size).astype(dtype), np.maximum(rng.normal(size=size), 0).astype(dtype)
    out[1:2] = np.nan
    t[3:4] = np.nan
    got = pair.run(t, out)
    assert got.dtype == dtype
    assert np.array_equal(wide(got), pair.twin(wide(t), wide(out)), equal_nan=True)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_misaligned_views(backend, dtype, offset):
    """A view that starts off a 16-byte boundary is read element by element; nothing beside the result is written."""
    pair = Pair(backend, "relu_bwd")
    t, out = pair.device(*(rng.normal(size=100).astype(dtype) for _ in "ab"))
    got = backend.to_numpy(pair.kernel(t[offset:], out[: 100 - offset]))
    want = pair.twin(wide(backend.to_numpy(t))[offset:], wide(backend.to_numpy(out))[: 100 - offset])
    assert np.array_equal(wide(got), want)


def test_more_elements_than_threads(backend):
    """The grid-stride loop: more packets than the largest grid has threads."""
    pair = Pair(backend, "relu_bwd")
    n = 4 * 256 * 32 * backend.processors + 1001
    t, out = rng.normal(size=n).astype("float32"), rng.normal(size=n).astype("float32")
    assert np.array_equal(pair.run(t, out), pair.twin(t, out))


def test_what_has_no_kernel_is_left_to_the_twin(backend):
    for t, x in ((np.ones(3, "int32"),) * 2, (np.ones(3, "float32"), np.ones((2, 3), "float32"))):
        with pytest.raises(TypeError):
            Pair(backend, "silu_bwd").run(t, x)


# --- bias and activation ------------------------------------------------------------------------------------

KINDS = ["relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"]
SHAPES = [(1, 1), (33, 5), (40, 128), (33, 130), (1100, 3), (2, 3, 40), (3, 516)]  # packets or not, slices


def compare_bias(backend, kind, dtype, shape):
    x, t = (2 * rng.normal(size=shape)).astype(dtype), rng.normal(size=shape).astype(dtype)
    b = rng.normal(size=shape[-1]).astype(dtype)
    pair = Pair(backend, "bias_act")
    got, want = pair.run(x, b, kind=kind), pair.twin(wide(x), wide(b), kind=kind)
    assert got.dtype == dtype
    check(got, want, dtype)
    v, b = (want.astype(dtype), None) if kind in FROM_OUTPUT else (x, b)
    pair = Pair(backend, "bias_act_bwd")
    want = pair.twin(wide(t), wide(v), wide(b), kind=kind)
    for part, whole in zip(pair.run(t, v, b, kind=kind), want):
        assert part.dtype == dtype
        assert part.shape == whole.shape
        check(part, whole, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_bias(backend, kind, shape):
    compare_bias(backend, kind, np.dtype("float32"), shape)


@pytest.mark.parametrize("shape", [(33, 130), (40, 128)], ids=str)
@pytest.mark.parametrize("kind", ["relu", "gelu"])
def test_bias_in_every_type(backend, dtype, kind, shape):
    compare_bias(backend, kind, dtype, shape)


def test_bias_under_schedules(backend, scheduled):
    with scheduled:
        for shape in ((40, 128), (1100, 3)):
            compare_bias(backend, "silu", np.dtype("float32"), shape)


def test_bias_of_more_rows_than_blocks(backend, monkeypatch):
    """A slice then has more than its least number of rows."""
    assert columns(300, 130, 4) == ((2, 10), (32, 8), 32)
    monkeypatch.setattr("gpugrad.launch.activation.BLOCKS", 4)
    assert columns(300, 130, 4) == ((2, 2), (32, 8), 150)
    compare_bias(backend, "relu", np.dtype("float32"), (300, 130))


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_bias_of_misaligned_rows(backend, dtype, offset):
    pair = Pair(backend, "bias_act_bwd")
    t, v = (rng.normal(size=40 * 32 + 8).astype(dtype) for _ in "ab")
    views = [a[offset : offset + 40 * 32].reshape(40, 32) for a in pair.device(t, v)]
    want = pair.twin(*(wide(a)[offset : offset + 40 * 32].reshape(40, 32) for a in (t, v)), None, kind="tanh")
    for got, part in zip(pair.kernel(*views, None, kind="tanh"), want):
        check(backend.to_numpy(got), part, dtype)


def test_bias_gradients_have_the_same_bits_in_every_order(backend):
    if backend.xp.__name__ == "cupy":
        pytest.skip("a GPU has no schedule to choose")
    t, v = (rng.normal(size=(70, 130)).astype("float32") for _ in "ab")
    pair = Pair(backend, "bias_act_bwd")
    dx, db = pair.run(t, v, None, kind="sigmoid")
    for how in ({"schedule": "reversed", "reverse_blocks": True}, {"schedule": "random", "seed": 3}):
        with backend.xp.scheduled(**how):
            again = pair.run(t, v, None, kind="sigmoid")
        assert np.array_equal(again[0], dx)
        assert np.array_equal(again[1], db)


def test_bias_and_special_values(backend):
    """NaN stays in its column; a unit that is off takes no part in the sum, whatever arrives."""
    y, t = np.zeros((40, 130), "float32"), np.full((40, 130), math.inf, "float32")
    y[7, 3], t[:, 3], y[9, 129], t[9, 129] = 1, 2, math.nan, math.nan
    dx, db = Pair(backend, "bias_act_bwd").run(t, y, None, kind="relu")
    assert dx[7, 3] == db[3] == 2
    assert np.isnan(dx[9, 129])
    assert np.isnan(db[129])
    assert np.count_nonzero(dx) == np.count_nonzero(db) == 2


def test_bias_leaves_to_the_twin_what_has_no_kernel(backend):
    for x, b in (
        (np.ones((2, 3), "float32"), np.ones(3)),
        (np.ones((0, 3), "float32"), np.ones(3, "float32")),
        (np.ones((2, 0), "float32"), np.ones(0, "float32")),
    ):
        with pytest.raises(TypeError):
            Pair(backend, "bias_act").run(x, b, kind="relu")


@pytest.mark.parametrize("kind, rows, passes", [("gelu", 20, 1), ("relu", 20, 1), ("relu", 200, 2)])
def test_bias_costs_one_launch_forward_and_as_many_back_as_there_are_stages(double, kind, rows, passes):
    x, b = (gg.ones(shape, device="cuda").requires_grad_() for shape in ((rows, 64), 64))
    fake_cupy.launched.clear()
    fake_cupy.called.clear()
    y = nn.functional.bias_act(x, b, kind)
    assert len(fake_cupy.launched) == 1
    y.backward(gg.ones_like(y))
    names = [name.partition("<")[0] for name in fake_cupy.launched]
    assert names == ["bias_act", "bias_act_bwd", "sum_slices"][: 1 + passes]
    assert not [c for c in fake_cupy.called if "ones" not in c and "full" not in c]


@pytest.mark.parametrize("name", EVERY)
def test_an_activation_costs_one_launch_each_way(double, name):
    op, options = forward(name)
    x = gg.ones(7, device="cuda").requires_grad_()
    fake_cupy.launched.clear()
    TABLE[op].call(x, **options).sum().backward()
    assert [n.partition("<")[0] for n in fake_cupy.launched if not n.startswith("reduce")] == [
        "activation", "relu_bwd" if name == "relu" else "activation_bwd",
    ]  # fmt: skip
