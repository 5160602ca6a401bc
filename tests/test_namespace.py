"""What users of NumPy and PyTorch look for in `gg`: every function by NumPy's name, gather, expm and their kin."""

from __future__ import annotations

import inspect
import pkgutil
import re
import subprocess
import sys

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import Tensor, protocols
from gpugrad.errors import DTypeError, RangeError, ShapeError

from .test_protocols import CONSTANT, DIFFERENTIABLE, ROOT, A, B, V, evaluate, needed

rng = np.random.default_rng(5)


# --- NumPy's functions by our name ----------------------------------------------------------------------------------


def ours(text):
    """The expression with its outer function taken from gpugrad, where that has the function by NumPy's name alone."""
    found = re.match(r"np\.((?:linalg\.|fft\.)?)(\w+)\(", text)
    if not found or found[2] in (*protocols.VALUES, *protocols.IN_PLACE):
        return None
    space = getattr(gg, found[1][:-1]) if found[1] else gg
    return None if found[2] in vars(space) else "gg" + text[2:]


NAMED = [(text, mine) for text in DIFFERENTIABLE + CONSTANT if (mine := ours(text))]


@pytest.mark.parametrize("text, mine", [pytest.param(*pair, id=pair[1]) for pair in NAMED])
def test_arrays_become_tensors(text, mine):
    """The expression on arrays of NumPy, with the value, and the gradient machinery behind it."""
    needed(text)
    want = np.asarray(evaluate(text, A, np.array, {}))
    got = evaluate(mine, A, np.array, {"gg": gg})
    assert np.shape(got) == want.shape
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-12, atol=1e-13)
    assert type(got) is Tensor or want.dtype.kind != "f" or mine == "gg.polyval(x[0],2.0)"


def test_what_is_found():
    assert {"kron", "median", "diag", "trapezoid", "cov", "polyval", "vstack", "interp", "convolve", "correlate", "i0",
            "arcsin", "fmod", "histogram", "polyfit", "nanmean", "unwrap"} <= set(dir(gg))  # fmt: skip
    assert {"norm", "cond", "multi_dot", "expm", "tensorinv", "solve"} <= set(dir(gg.linalg))
    assert "fft2" in dir(gg.fft)
    assert all(callable(getattr(gg, name)) for name in protocols.offers(""))
    modules = {m.name for m in pkgutil.iter_modules(gg.__path__)}
    assert not modules & set(protocols.offers("")), "importing such a module would hide the function"
    assert gg.kron is gg.kron
    for name in ("nonsense", "packbits", "put", "fill_diagonal", "save", "_implementation", "testing_"):
        assert not hasattr(gg, name)
    assert not hasattr(gg.linalg, "eigvals")
    with pytest.raises(AttributeError, match=r"module 'gpugrad\.linalg' has no attribute 'nonsense'"):
        gg.linalg.nonsense  # noqa: B018


def test_names_signatures_and_sentences():
    assert (gg.kron.__name__, gg.linalg.norm.__module__) == ("kron", "gpugrad.linalg")
    assert list(inspect.signature(gg.interp).parameters)[:3] == ["x", "xp", "fp"]
    assert list(inspect.signature(gg.linalg.norm).parameters) == ["x", "ord", "axis", "keepdims"]
    assert all(getattr(gg, name).__doc__ for name in protocols.offers(""))
    with pytest.raises(TypeError, match="too many positional arguments"):
        gg.kron(A, B, V)


def test_lists_have_the_type_of_the_array_beside_them():
    assert gg.kron([1.0, 2.0], [3.0, 4.0]).dtype == gg.float32
    assert gg.kron([1, 2], V).dtype == gg.float64
    assert gg.interp([0.5, 1.5], [0.0, 1.0, 2.0], V[:3]).dtype == gg.float64
    assert gg.vstack([V, [1, 2, 3, 4]]).shape == (2, 4)
    assert gg.linalg.norm([3.0, 4.0]).item() == 5.0
    assert gg.polyval([1.0, 2.0], gg.tensor(3.0, dtype="float16")).dtype == gg.float16


def test_nothing_is_imported_before_it_is_asked_for():
    code = (
        "import sys, gpugrad; from gpugrad import testing, tree; hasattr(gpugrad, 'nonsense');"
        "print([m for m in sys.modules if m.startswith('gpugrad.numpy_') or m == 'gpugrad.special'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


# --- functions of ours ----------------------------------------------------------------------------------------------

IDS = np.array([[2, 0, 1], [0, 0, 2]])


def added(x, index, values, axis):
    """scatter_add by NumPy."""
    out, places = x.copy(), list(np.indices(index.shape))
    places[axis] = index
    np.add.at(out, tuple(places), values[tuple(slice(n) for n in index.shape)])
    return out


def put(x, index, values, axis):
    """put_along_axis by NumPy, on a copy."""
    out = x.copy()
    np.put_along_axis(out, index, values, axis)
    return out


X = rng.permutation(20).reshape(4, 5) * 0.3 - 2
W = rng.normal(size=(3, 4))
CASES = {
    "cumulative_max 0": (lambda x: gg.cumulative_max(x, 0), lambda x: np.maximum.accumulate(x, 0), (X,)),
    "cumulative_max -1": (lambda x: gg.cummax(x, -1), lambda x: np.maximum.accumulate(x, 1), (X,)),
    "cumulative_min": (lambda x: gg.cummin(x, axis=1), lambda x: np.minimum.accumulate(x, 1), (X,)),
    "cumulative_min of a vector": (gg.cumulative_min, np.minimum.accumulate, (X[1],)),
    "gather 0": (
        lambda x: gg.gather(x, 0, IDS), lambda x: np.take_along_axis(x[:, :3], IDS, 0), (X,)
    ),
    "gather 1": (lambda x: x.gather(1, IDS), lambda x: np.take_along_axis(x[:2], IDS, 1), (X,)),
    "gather of more": (lambda x: gg.gather(x, 0, IDS.T[[0, 1, 2, 0, 1]]),
                       lambda x: np.take_along_axis(x[:, :2], IDS.T[[0, 1, 2, 0, 1]], 0), (X,)),
    "scatter_add 0": (lambda x, v: gg.scatter_add(x, 0, IDS, v), lambda x, v: added(x, IDS, v, 0), (X, W)),
    "scatter_add 1": (lambda x, v: x.scatter_add(1, IDS, v), lambda x, v: added(x, IDS, v, 1), (X, W)),
    "scatter_add of a number": (
        lambda x: gg.scatter_add(x, 1, IDS, 2.5), lambda x: added(x, IDS, np.full((2, 3), 2.5), 1), (X,)
    ),
    "put_along_axis": (
        lambda x, v: gg.put_along_axis(x, IDS[:, :1], v, 1), lambda x, v: put(x, IDS[:, :1], v, 1), (X[:2], W[:2, :1])
    ),
    "put_along_axis broadcast": (
        lambda x, v: gg.put_along_axis(x, IDS[:1, :1], v, 0), lambda x, v: put(x, IDS[:1, :1], v, 0), (X, W[:1, :1])
    ),
    "at mul": (lambda x, v: x.at[1:3, 0].mul(v), lambda x, v: x * np.r_[1, v, 1][:, None] ** np.eye(5)[0],
               (X, W[0, :2])),
    "expm": (gg.linalg.expm, lambda x: taylor(x), (W[:, :3] * 0.7,)),
    "expm of several": (gg.linalg.expm, lambda x: np.stack([taylor(m) for m in x]), (rng.normal(size=(2, 3, 3)),)),
    "multi_dot": (lambda x, y: gg.linalg.multi_dot([x, y, x.T, x[:, 0]]), lambda x, y: x @ y @ x.T @ x[:, 0],
                  (W, rng.normal(size=(4, 4)))),
    "norm": (lambda x: gg.linalg.norm(x, axis=1), lambda x: np.linalg.norm(x, axis=1), (W,)),
}  # fmt: skip


def taylor(x):
    """The exponential of a matrix by its series, after halving it eight times."""
    x = x / 256
    total = term = np.eye(len(x))
    for k in range(1, 20):
        term = term @ x / k
        total = total + term
    for _ in range(8):
        total = total @ total
    return total


@pytest.mark.parametrize("name", CASES)
def test_value_derivatives_and_batches(name):
    """The value; both orders against differences, forward mode against reverse mode, vmap against a loop."""
    f, reference, arrays = CASES[name]
    xs = [gg.tensor(a) for a in arrays]
    got = f(*xs)
    np.testing.assert_allclose(got.numpy(), reference(*arrays), rtol=1e-12, atol=1e-13)
    for x, a in zip(xs, arrays):
        np.testing.assert_array_equal(x.numpy(), a)
    assert f(*(gg.tensor(a.astype("float32")) for a in arrays)).dtype == gg.float32
    assert gg.gradcheck(f, xs)
    assert gg.gradgradcheck(lambda *ts: f(*ts) ** 2, xs)
    vs = [gg.tensor(np.cos(np.arange(a.size)).reshape(a.shape)) for a in arrays]
    u = gg.tensor(np.sin(1 + np.arange(got.size)).reshape(got.shape))
    _, pushed = gg.jvp(f, tuple(xs), tuple(vs))
    _, pull = gg.vjp(f, *xs)
    pulled = pull(u)
    pulled = pulled if isinstance(pulled, tuple) else (pulled,)
    assert (u * pushed).sum().item() == pytest.approx(sum((g * v).sum().item() for g, v in zip(pulled, vs)), rel=1e-10)
    batch = [gg.stack([x, x * 0.5, -x]) for x in xs]
    loop = gg.stack([f(*(b[k] for b in batch)) for k in range(3)])
    np.testing.assert_allclose(gg.vmap(f)(*batch).numpy(), loop.numpy(), rtol=1e-12, atol=1e-13)
    grads = gg.vmap(gg.grad(lambda *ts: (f(*ts) ** 2).sum()))(*batch)
    each = gg.stack([gg.grad(lambda *ts: (f(*ts) ** 2).sum())(*(b[k] for b in batch)) for k in range(3)])
    np.testing.assert_allclose(grads.numpy(), each.numpy(), rtol=1e-9, atol=1e-10)


def test_torchs_functions_are_torchs():
    """Value and gradients of gather, scatter_add, cummax and cummin, of index arrays in every position."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for axis in range(3):
        shape = (4, 5, 3)
        small = tuple(7 if i == axis else n - 1 for i, n in enumerate(shape))
        x, v = rng.permutation(60).reshape(shape) * 0.1, rng.normal(size=small)
        ids = rng.integers(0, shape[axis], small)
        pairs = [
            (lambda m, t, u, i, d: m.gather(t, d, i)), (lambda m, t, u, i, d: m.scatter_add(t, d, i, u)),
            (lambda m, t, u, i, d: m.cummax(t, d) if m is gg else m.cummax(t, d)[0]),
            (lambda m, t, u, i, d: m.cummin(t, d) if m is gg else m.cummin(t, d)[0]),
        ]  # fmt: skip
        for f in pairs:
            ours = [gg.tensor(a, requires_grad=True) for a in (x, v)]
            theirs = [torch.tensor(a, requires_grad=True) for a in (x, v)]
            got, want = f(gg, *ours, gg.tensor(ids), axis), f(torch, *theirs, torch.tensor(ids), axis)
            np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=1e-12, atol=1e-15)
            (got * got).sum().backward()
            (want * want).sum().backward()
            for a, b in zip(ours, theirs):
                assert (a.grad is None) == (b.grad is None)
                if a.grad is not None:
                    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_running_extremes_in_doubles_and_on_the_generic_path():
    """NumPy's accumulate and the doubling scan name the same places: ties, NaN, empty and single axes, both ends."""
    from gpugrad.ops.reduce import holder, holder_cpu

    for shape in ((0,), (1,), (7,), (4, 0), (3, 8), (2, 3, 5)):
        x = rng.integers(0, 4, shape).astype(float)
        x[rng.uniform(size=shape) < 0.15] = np.nan
        for axis in range(x.ndim):
            for largest, accumulate in ((True, np.maximum.accumulate), (False, np.minimum.accumulate)):
                places = holder(np, x, axis, largest)
                np.testing.assert_array_equal(places, holder_cpu(np, x, axis, largest))
                np.testing.assert_array_equal(np.take_along_axis(x, places, axis), accumulate(x, axis))
    assert gg.cumulative_max(gg.tensor([1, 3, 2])).tolist() == [1, 3, 3]
    assert gg.cumulative_min(gg.tensor([1.0, 3.0], dtype="float16")).dtype == gg.float16


@pytest.mark.parametrize(
    "call, kind, words",
    [
        (lambda x: gg.cumulative_max(x), ShapeError, ["[cumulative_max]", "axis can be left out of a 1-d array only"]),
        (lambda x: gg.cummin(x, 2), RangeError, ["[cumulative_min]", "axis 2"]),
        (lambda x: gg.gather(x, 0, [[9, 0]]), RangeError, ["index 9", "axis 0 of length 4"]),
        (lambda x: gg.gather(x, 0, [0]), ShapeError, ["[gather]", "differ in number of axes"]),
        (lambda x: gg.gather(x, 1, np.zeros((5, 1), int)), ShapeError, ["[gather]", "reach beyond", "outside axis 1"]),
        (lambda x: gg.gather(x, 0, [[True]]), DTypeError, ["[gather]", "not booleans"]),
        (lambda x: gg.scatter_add(x, 0, [[0, 1]], gg.ones((1, 1))), ShapeError, ["[scatter_add]", "do not cover"]),
        (lambda x: gg.put_along_axis(x, [0], 1.0, 0), ShapeError, ["[put_along_axis]", "number of axes"]),
        (lambda x: gg.linalg.expm(x), ShapeError, ["[linalg.expm]", "expected square matrices"]),
        (lambda x: gg.insert(x, 0, 1.0, axis=2), RangeError, ["[numpy.insert]", "axis 2"]),
        (lambda x: gg.trim_zeros(x, axis=5), RangeError, ["[numpy.trim_zeros]", "axis 5"]),
        (lambda x: gg.apply_along_axis(gg.sum, 3, x), RangeError, ["axis 3"]),
        (lambda x: gg.unwrap(x, axis=2), RangeError, ["axis 2"]),
        (lambda x: gg.pad(x, 1, "median"), RangeError, ["[pad]", "'median'", "linear_ramp"]),
        (lambda x: gg.pad(x[:0], 1, "mean"), ShapeError, ["[pad]", "empty"]),
    ],
)
def test_errors(call, kind, words):
    with pytest.raises(kind) as caught:
        call(gg.tensor(X))
    assert all(w in str(caught.value) for w in (*words, "test_namespace.py"))


# --- matrices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.1, 0.7, 2.0, 5.0, 40.0])
def test_the_exponential_of_a_matrix_is_scipys(size):
    """Every degree of the approximant and the squarings; skew matrices, whose exponential stays of size 1."""
    linalg = pytest.importorskip("scipy.linalg", reason="SciPy is not installed")
    skew = rng.normal(size=(6, 6))
    for x in (skew - skew.T, skew + 0 if size < 10 else skew - skew.T):
        x = x * (size / np.abs(x).sum(0).max())
        got = gg.linalg.expm(gg.tensor(x)).numpy()
        np.testing.assert_allclose(got, linalg.expm(x), rtol=1e-12, atol=1e-12 * np.abs(got).max())


def test_the_exponential_of_special_matrices():
    step = gg.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]], dtype="float64")
    np.testing.assert_allclose(gg.linalg.expm(step).numpy(), [[1, 1, 1], [0, 1, 2], [0, 0, 1]], atol=1e-15)
    assert gg.linalg.expm(gg.zeros((0, 3, 3))).shape == (0, 3, 3)
    assert np.isnan(gg.linalg.expm(gg.tensor([[np.inf, 0.0], [0.0, 1.0]])).numpy()).all()
    run = gg.replay(gg.linalg.expm)  # how often it squares depends on the norm
    with pytest.raises(gg.errors.ReplayError, match="reads a value on the host"):
        [run(step) for _ in range(3)]
    diagonal = gg.linalg.diag(gg.tensor([-30.0, 0.5, 3.0], dtype="float64"))
    want = np.exp([-30.0, 0.5, 3.0])
    np.testing.assert_allclose(gg.linalg.expm(diagonal).numpy().diagonal(), want, rtol=1e-12)


def test_products_are_made_in_the_cheapest_order():
    a, b, c = (rng.normal(size=s) for s in ((10, 40), (40, 3), (3, 30)))
    np.testing.assert_array_equal(gg.linalg.multi_dot([a, b, c]).numpy(), (a @ b) @ c)
    np.testing.assert_array_equal(gg.linalg.multi_dot([c.T, b.T, a.T]).numpy(), c.T @ (b.T @ a.T))
    np.testing.assert_allclose(gg.linalg.multi_dot([a[0], b, c, c[1]]).numpy(), np.linalg.multi_dot([a[0], b, c, c[1]]))


# --- NumPy's in-place functions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, args",
    [
        ("put", ([3, 0, 7], [1.0, 2.0])), ("place", (A > 1, [5.0, 6.0])), ("putmask", (A > 1, [7.0, 8.0, 9.0])),
        ("fill_diagonal", (4.0,)), ("fill_diagonal", ([1.0, 2.0],)),
        ("put_along_axis", (np.array([[1], [0], [3]]), 9.0, 1)),
        ("put_along_axis", (np.array([1, 5]), np.array([2.0, 3.0]), None)), ("copyto", (B,)),
    ],
)  # fmt: skip
def test_functions_that_write(name, args):
    want, got, view = A.copy(), gg.tensor(A), None
    view = got[0]
    getattr(np, name)(want, *args)
    assert getattr(np, name)(got, *args) is None
    np.testing.assert_array_equal(got.numpy(), want)
    np.testing.assert_array_equal(view.numpy(), want[0])
    tall, ours = np.zeros((7, 2)), gg.zeros((7, 2), dtype="float64")
    np.fill_diagonal(tall, 1.0)
    np.fill_diagonal(ours, 1.0)
    np.testing.assert_array_equal(ours.numpy(), tall)


def test_what_is_written_carries_gradients():
    x = gg.tensor(A, requires_grad=True)
    out = x * 1
    np.put(out, [1, 2], x[0, 0] * 2)
    out.sum().backward()
    want = np.ones_like(A)
    want[0, :3] = 5, 0, 0
    np.testing.assert_allclose(x.grad.numpy(), want)


def test_slopes_of_interp_at_and_beyond_its_points():
    """At a point that of what comes after it: the next line, or nothing."""
    x = gg.tensor([-1.0, 0.0, 1.0, 3.0, 4.0], requires_grad=True)
    y = gg.interp(x, [0.0, 1.0, 3.0], [0.0, 2.0, 0.0])
    y.sum().backward()
    assert y.tolist() == [0, 0, 2, 0, 0]
    assert x.grad.tolist() == [0, 2, -1, 0, 0]
