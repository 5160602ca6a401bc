"""Shape ops at the level users call them: against NumPy, round trips, numeric gradients, error messages."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DTypeError, RangeError, ShapeError

rng = np.random.default_rng(0)
X = rng.normal(size=(2, 3, 4))
COUNTS = [2, 0, 3]

CASES = [
    ("reshape", lambda m, x: m.reshape(x, (4, -1))),
    ("transpose", lambda m, x: m.transpose(x)),
    ("transpose axes", lambda m, x: m.transpose(x, (1, -1, 0))),
    ("permute_dims", lambda m, x: m.permute_dims(x, (2, 0, 1))),
    ("matrix_transpose", lambda m, x: m.matrix_transpose(x)),
    ("moveaxis", lambda m, x: m.moveaxis(x, 0, -1)),
    ("moveaxis several", lambda m, x: m.moveaxis(x, (0, 2), (2, 0))),
    ("swapaxes", lambda m, x: m.swapaxes(x, 0, -1)),
    ("expand_dims", lambda m, x: m.expand_dims(x, (0, -1))),
    ("squeeze", lambda m, x: m.squeeze(m.expand_dims(x, (1, 3)))),
    ("squeeze axis", lambda m, x: m.squeeze(m.expand_dims(x, (1, 3)), -2)),
    ("broadcast_to", lambda m, x: m.broadcast_to(x, (5, 2, 3, 4))),
    ("concat", lambda m, x: m.concat([x, x[:, :, :1], x], axis=-1)),
    ("concat flat", lambda m, x: m.concat([x, x[0]], axis=None)),
    ("stack", lambda m, x: m.stack([x, x * 2.0], axis=-1)),
    ("split", lambda m, x: m.concat(m.split(x, 2, axis=-1)[::-1], axis=1)),
    ("split at", lambda m, x: m.split(x, [1, 3], axis=2)[1]),
    ("unstack", lambda m, x: m.unstack(x, axis=1)[2]),
    ("flip", lambda m, x: m.flip(x)),
    ("flip axis", lambda m, x: m.flip(x, (0, -1))),
    ("roll", lambda m, x: m.roll(x, (1, -2), (0, 2))),
    ("roll flat", lambda m, x: m.roll(x, 5)),
    ("tile", lambda m, x: m.tile(x, (2, 1, 3))),
    ("tile fewer", lambda m, x: m.tile(x, 2)),
    ("tile more", lambda m, x: m.tile(x, (2, 1, 1, 2))),
    ("repeat", lambda m, x: m.repeat(x, 3, axis=1)),
    ("repeat flat", lambda m, x: m.repeat(x, 2)),
    ("repeat counts", lambda m, x: m.repeat(x, COUNTS, axis=1)),
    ("pad", lambda m, x: m.pad(x, 1)),
    ("pad value", lambda m, x: m.pad(x, ((0, 1), (2, 0), (1, 1)), constant_values=3.5)),
    ("pad edge", lambda m, x: m.pad(x, ((0, 1), (2, 0), (1, 5)), mode="edge")),
    ("pad reflect", lambda m, x: m.pad(x, ((1, 1), (2, 0), (1, 5)), mode="reflect")),
    ("pad symmetric", lambda m, x: m.pad(x, ((1, 1), (2, 0), (1, 5)), mode="symmetric")),
    ("pad wrap", lambda m, x: m.pad(x, ((0, 1), (2, 0), (1, 5)), mode="wrap")),
    ("diff", lambda m, x: m.diff(x)),
    ("diff n", lambda m, x: m.diff(x, axis=1, n=2)),
    ("diff ends", lambda m, x: m.diff(x, axis=1, prepend=x[:, :1] * 2.0, append=x[:, :1])),
    ("tril", lambda m, x: m.tril(x, k=-1)),
    ("triu", lambda m, x: m.triu(x, k=1)),
]


@pytest.mark.parametrize("f", [pytest.param(f, id=name) for name, f in CASES])
def test_like_numpy_and_differentiable(f):
    x = gg.tensor(X)
    want = f(np, X)
    got = f(gg, x)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got.numpy(), want)
    assert gg.gradcheck(lambda t: f(gg, t), [x])
    assert gg.gradgradcheck(lambda t: f(gg, t) ** 3, [gg.tensor(X)])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (1, 1)])
def test_round_trips_of_odd_shapes(shape):
    x = gg.tensor(rng.normal(size=shape), requires_grad=True)
    n = x.ndim
    y = gg.squeeze(gg.expand_dims(gg.transpose(gg.transpose(x)), n), n)
    y = gg.reshape(gg.flatten(gg.flip(gg.flip(y))), shape)
    y = gg.concat(gg.split(gg.stack([y, y]), 2), axis=0)[0]
    np.testing.assert_array_equal(y.numpy(), x.numpy())
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.ones(shape))


def test_methods_take_shapes_as_separate_integers():
    x = gg.tensor(X)
    assert x.reshape(6, -1).shape == x.reshape((6, 4)).shape == (6, 4)
    assert x.transpose(2, 0, 1).shape == x.permute(2, 0, 1).shape == (4, 2, 3)
    assert x.T.shape == (4, 3, 2) if x.ndim == 2 else x.mT.shape == (2, 4, 3)
    assert x.flatten().shape == x.ravel().shape == (24,)
    assert gg.broadcast_shapes((3, 1), (4,)) == (3, 4)
    a, b = gg.broadcast_arrays(gg.ones((3, 1)), gg.ones(4))
    assert a.shape == b.shape == (3, 4)


def test_mixed_dtypes_promote_when_joined():
    f, i, d = gg.ones(2), gg.tensor([1, 2]), gg.ones(2, dtype=gg.float64)
    assert gg.concat([f, i]).dtype == gg.float32
    assert gg.stack([f, d]).dtype == gg.float64
    f.requires_grad_()
    gg.concat([f, d]).sum().backward()
    assert f.grad.dtype == gg.float32


def test_views_share_memory():
    x = gg.tensor(X)
    for y in (x.reshape(6, 4), x.transpose(), x.mT, x[0], x[:, None], x.swapaxes(0, 1), x.split(2)[0], x.squeeze()):
        assert np.shares_memory(y.data, x.data)


def test_integer_result_of_astype_is_a_constant():
    x = gg.tensor(X, requires_grad=True)
    assert not x.astype(gg.int64).requires_grad
    assert x.astype(gg.float64, copy=False) is x
    assert not np.shares_memory(x.astype(gg.float64).data, x.data)
    y = x.astype(gg.float32)
    y.sum().backward()
    assert y.dtype == gg.float32
    assert x.grad.dtype == gg.float64


@pytest.mark.parametrize(
    "call, kind, words",
    [
        (lambda x: x.reshape(5, -1), ShapeError, ["[reshape]", "float64[2, 3, 4]", "[5, -1]"]),
        (lambda x: x.reshape(-1, -1), ShapeError, ["[reshape]"]),
        (lambda x: x.reshape(2.0), DTypeError, ["[reshape]", "2.0"]),
        (lambda x: x.transpose(0, 1), ShapeError, ["[transpose]", "[0, 1]"]),
        (lambda x: x.transpose(0, 1, 3), RangeError, ["[transpose]", "3"]),
        (lambda x: x.squeeze(0), ShapeError, ["[squeeze]", "axis 0"]),
        (lambda x: x.T, ShapeError, ["[T]", "expected 2"]),
        (lambda x: x.broadcast_to(2, 2, 4), ShapeError, ["[broadcast_to]", "float64[2, 3, 4]", "(2, 2, 4)"]),
        (lambda x: gg.concat([x, x[0]]), ShapeError, ["[concat]", "float64[2, 3, 4]", "float64[3, 4]"]),
        (lambda x: gg.concat([]), ShapeError, ["[concat]"]),
        (lambda x: gg.stack([x, x[:1]]), ShapeError, ["[stack]"]),
        (lambda x: x.split(3, axis=2), ShapeError, ["[split]", "axis 2", "3 equal"]),
        (lambda x: x.repeat([1, 2], axis=1), ShapeError, ["[repeat]", "2 counts"]),
        (lambda x: x.repeat(-1), DTypeError, ["[repeat]", "-1"]),
        (lambda x: x.pad(-1), ShapeError, ["[pad]", "negative"]),
        (lambda x: x.pad(1, mode="mirror"), RangeError, ["[pad]", "'mirror'"]),
        (lambda x: x.roll((1, 2), (0,)), ShapeError, ["[roll]"]),
        (lambda x: gg.broadcast_shapes((2,), (3,)), ShapeError, ["[broadcast_shapes]", "[2], [3]"]),
    ],
)
def test_errors_name_op_shapes_and_this_line(call, kind, words):
    with pytest.raises(kind) as caught:
        call(gg.tensor(X))
    text = str(caught.value)
    for word in words:
        assert word in text
    assert "test_shape.py:" in text
