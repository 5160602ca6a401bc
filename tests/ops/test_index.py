"""Indexing, functional updates, sorting and searching."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DTypeError, RangeError, ShapeError
from gpugrad.nn import functional as nnf
from gpugrad.op import TABLE

rng = np.random.default_rng(2)


def random_index(rng, shape):
    """An index expression that NumPy accepts: integers, slices, Ellipsis, None, integer and boolean arrays."""
    entries, axis, common = [], 0, [(2,), (3, 1), (1, 2), ()][int(rng.integers(0, 4))]
    used = int(rng.integers(0, len(shape) + 1))
    while axis < used:
        n = shape[axis]
        kind = rng.choice(["int", "slice", "array", "list", "mask", "mask2"])
        if kind == "int":
            entries.append(int(rng.integers(-n, n)))
        elif kind == "slice":
            a, b = (None if rng.random() < 0.3 else int(rng.integers(-n - 1, n + 2)) for _ in range(2))
            entries.append(slice(a, b, int(rng.choice([-2, -1, 1, 2]))))
        elif kind == "array":
            entries.append(rng.integers(-n, n, common))
        elif kind == "list" and common == (2,):
            entries.append(rng.integers(-n, n, 2).tolist())
        elif kind == "mask" and common == (2,) and n >= 2:
            mask = np.zeros(n, bool)
            mask[rng.permutation(n)[:2]] = True
            entries.append(mask)
        elif kind == "mask2" and axis == 0 and used == len(shape) and len(shape) > 1:
            entries, axis = [rng.random(shape[:2]) < 0.5], 2
            break
        else:
            entries.append(slice(None))
        axis += 1
    if rng.random() < 0.4:  # in the middle the entries after it would meet other axes, unless all are named
        entries.insert(int(rng.integers(0, len(entries) + 1)) if used == len(shape) else len(entries), Ellipsis)
    if rng.random() < 0.4:
        entries.insert(int(rng.integers(0, len(entries) + 1)), None)
    return tuple(entries)


def test_100_random_indices_match_numpy_and_scatter_back():
    rng, arrays, views = np.random.default_rng(8), 0, 0
    for _ in range(100):
        shape = tuple(int(n) for n in rng.integers(1, 5, int(rng.integers(1, 5))))
        x, index = rng.normal(size=shape), random_index(rng, shape)
        want = x[index]
        t = gg.tensor(x, requires_grad=True)
        got = t[index[0] if len(index) == 1 and not isinstance(index[0], tuple) else index]
        np.testing.assert_array_equal(got.numpy(), want)
        c = rng.normal(size=want.shape)
        got.backward(gg.tensor(c))
        scattered = np.zeros(shape)
        np.add.at(scattered, index, c)
        np.testing.assert_allclose(t.grad.numpy(), scattered, rtol=1e-13, atol=1e-13, err_msg=str(index))
        moved = tuple(gg.tensor(i) if isinstance(i, np.ndarray) else i for i in index)
        np.testing.assert_array_equal(t.detach()[moved].numpy(), want)
        is_array = any(isinstance(i, (np.ndarray, list)) for i in index)
        arrays, views = arrays + is_array, views + (not is_array)
    assert min(arrays, views) >= 20


def test_repeated_indices_accumulate():
    x = gg.tensor([5.0, 7.0], requires_grad=True)
    x[[0, 0, 1]].sum().backward()
    assert x.grad.tolist() == [2.0, 1.0]


def test_basic_indices_are_views_recorded_as_one_zero_fill():
    x = gg.tensor(rng.normal(size=(4, 5)), requires_grad=True)
    y = x[1:3, ::2]
    assert np.shares_memory(x.data, y.data)
    assert y.node.op.name == "getitem"
    assert gg.gradgradcheck(lambda t: t[1:3, ::2] ** 3, [x.detach()])


def test_indices_of_every_kind():
    x = gg.tensor(np.arange(12.0).reshape(3, 4))
    assert x[np.int64(1), np.int8(2)].item() == 6
    assert x[gg.tensor(1)].tolist() == [4, 5, 6, 7]
    assert x[True].shape == (1, 3, 4)
    assert x[[]].shape == (0, 4)
    assert x[gg.tensor([0, 2], dtype=gg.uint8), 1].tolist() == [1, 9]
    assert x[x > 9.0].tolist() == [10, 11]
    assert x[[True, False, True]].shape == (2, 4)
    assert x[(0, 2),].shape == (2, 4)
    assert x[..., None].shape == (3, 4, 1)


@pytest.mark.parametrize("call, kind, words", [
    (lambda x: x[5], RangeError, ["[getitem]", "float64[3, 4]", "5"]),
    (lambda x: x[0, 0, 0], RangeError, ["[getitem]", "float64[3, 4]"]),
    (lambda x: x[0:2:0], ShapeError, ["[getitem]", "step"]),
    (lambda x: x[1.0], DTypeError, ["[getitem]", "float"]),
    (lambda x: x["a"], DTypeError, ["[getitem]", "str"]),
    (lambda x: x[gg.ones(2)], DTypeError, ["[getitem]", "float32[2]"]),
    (lambda x: x[[0, 7]], RangeError, ["[gather]", "index 7 at position [1]", "axis 0 of length 3"]),
    (lambda x: x[:, [[0], [-5]]], RangeError, ["[gather]", "index -5 at position [1, 0]", "axis 1 of length 4"]),
    (lambda x: x[[True, False]], RangeError, ["[gather]"]),
    (lambda x: x[[0, 1], [0, 1, 2]], RangeError, ["[gather]", "int64[2]", "int64[3]"]),
    (lambda x: gg.take(x, [[0, 3]], axis=0), RangeError, ["index 3 at position [0, 1]", "axis 0 of length 3"]),
    (lambda x: gg.take(x, [True]), DTypeError, ["[take]", "booleans"]),
    (lambda x: gg.take_along_axis(x, gg.tensor([[4], [0], [0]]), 1), RangeError, ["index 4", "axis 1 of length 4"]),
    (lambda x: gg.take_along_axis(x, gg.tensor([0])), ShapeError, ["[take_along_axis]"]),
    (lambda x: x.at[7].set(0.0), RangeError, ["[put]"]),
    (lambda x: x.at[:, 0].set(gg.ones(2)), ShapeError, ["[put]", "float64[3, 4]", "[2]"]),
    (lambda x: gg.topk(x, 5), RangeError, ["[topk]", "5"]),
    (lambda x: gg.one_hot(gg.tensor([0, 4]), 4), RangeError, ["[one_hot]", "class 4 at position [1]"]),
    (lambda x: gg.one_hot(x, 4), DTypeError, ["[one_hot]"]),
    (lambda x: gg.searchsorted(x, x), ShapeError, ["[searchsorted]"]),
])  # fmt: skip
def test_errors_name_op_shapes_and_this_line(call, kind, words):
    with pytest.raises(kind) as caught:
        call(gg.tensor(np.zeros((3, 4))))
    for word in [*words, "test_index.py:"]:
        assert word in str(caught.value)


# --- the primitive --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
@pytest.mark.parametrize("n, width", [(0, 3), (1, 1), (37, 5), (200, 1)])
def test_scatter_rows_of_both_devices_agree(n, width, dtype):
    """The generic code (sorted, for GPUs) and the CPU's `add.at`, run on the same NumPy arrays."""
    op = TABLE["scatter_rows"]
    t, ids = (rng.normal(size=(n, width)) * 8).astype(dtype), rng.integers(0, 6, n)
    want = op.impls[np.ndarray](t, ids, rows=7, distinct=False)
    got = op.fwd(np, t, ids, 7, False)
    assert got.dtype == want.dtype == dtype
    tol = {"float16": 2e-3, "float32": 1e-6}.get(dtype, 1e-13)
    np.testing.assert_allclose(got.astype("f8"), want.astype("f8"), rtol=tol, atol=100 * tol)


def test_half_precision_embedding_gradient_sums_in_float32():
    """5000 ones would stop at 2048 if added up in float16."""
    w = gg.ones((2, 3), dtype=gg.float16).requires_grad_()
    w[np.zeros(5000, "int64")].backward(gg.ones((5000, 3), dtype=gg.float16))
    assert w.grad.tolist() == [[5000.0] * 3, [0.0] * 3]


# --- functional updates ---------------------------------------------------------------------------------------

X, IDS = rng.normal(size=(4, 3)), np.array([2, 0, 2])
UPDATES = [
    ("slice", np.s_[1:3, ::2], (2, 2)), ("row", np.s_[1], (3,)), ("number", np.s_[:, 1], ()),
    ("distinct", np.s_[[0, 2]], (2, 3)),
    ("repeated", np.s_[IDS], (3, 3)), ("pair", np.s_[IDS, [0, 1, 0]], (3,)), ("broadcast", np.s_[IDS], (1,)),
    ("mask", np.s_[X > 0.2], (int((X > 0.2).sum()),)),
]  # fmt: skip
METHODS = {"add": np.add, "multiply": np.multiply, "min": np.minimum, "max": np.maximum}


@pytest.mark.parametrize("name, index, shape", UPDATES)
@pytest.mark.parametrize("method", ["set", *METHODS])
def test_updates_like_numpy_and_differentiable(method, name, index, shape):
    v = rng.normal(size=shape)
    want = X.copy()
    if method == "set":
        want[index] = v
    else:
        METHODS[method].at(want, index, v)
    x = gg.tensor(X)
    got = getattr(x.at[index], method)(gg.tensor(v))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-13)
    np.testing.assert_array_equal(x.numpy(), X)

    def f(a, b):
        return getattr(a.at[index], method)(b)

    assert gg.gradcheck(f, [x, gg.tensor(v)])
    assert gg.gradgradcheck(lambda a, b: f(a, b) ** 2, [x, gg.tensor(v)])


def test_at_details():
    x = gg.tensor([1.0, 2.0, 3.0])
    assert x.at[1:].get().tolist() == [2.0, 3.0]
    assert x.at[[0, 2]].get().tolist() == [1.0, 3.0]
    assert x.at[0].set(5).dtype == gg.float32
    assert x.at[0].add(np.float64(1)).dtype == gg.float32
    assert x.at[:2].set(gg.ones((1, 1, 2))).tolist() == [1.0, 1.0, 3.0]
    assert gg.tensor([1, 2]).at[0].set(7).tolist() == [7, 2]
    with pytest.raises(DTypeError, match="truncated"):
        gg.tensor([1, 2]).at[0].set(gg.tensor(0.5, requires_grad=True))


@pytest.mark.parametrize("assign", ["at", "setitem"])
def test_filling_an_array_element_by_element(assign):
    """The program of HIPS/autograd issue 58: every element of the result is one of the input."""

    def fill(x):
        out = gg.zeros(x.shape, dtype=x.dtype)
        for i in range(len(x)):
            if assign == "at":
                out = out.at[i].set(x[i])
            else:
                out[i] = x[i]
        return out.sum()

    x = gg.tensor(rng.normal(size=5))
    assert gg.grad(fill)(x).tolist() == [1.0] * 5
    leaf = x.requires_grad_()
    fill(leaf).backward()
    assert leaf.grad.tolist() == [1.0] * 5


def test_gradient_of_set_follows_the_value_that_stayed():
    v = gg.tensor([10.0, 20.0, 30.0], requires_grad=True)
    y = gg.zeros(3).at[[1, 1, 0]].set(v)
    assert y.tolist() == [30.0, 20.0, 0.0]
    y.sum().backward()
    assert v.grad.tolist() == [0.0, 1.0, 1.0]


# --- taking, sorting, searching -------------------------------------------------------------------------------


def test_take_is_the_embedding_lookup():
    w, ids = gg.tensor(rng.normal(size=(5, 3))), rng.integers(0, 5, (2, 4))
    np.testing.assert_array_equal(gg.take(w, ids, axis=0).numpy(), w.numpy()[ids])
    np.testing.assert_array_equal(gg.take(w, gg.tensor([[1], [2]]), -1).numpy(), np.take(w.numpy(), [[1], [2]], -1))
    assert gg.take(w, 7).item() == w.numpy().reshape(-1)[7]
    for axis in (0, 1, None):
        assert gg.gradcheck(lambda t, axis=axis: gg.take(t, [[0, 2], [2, 1]], axis=axis), [w])


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("descending", [False, True])
def test_sort_argsort_topk(axis, descending):
    x = rng.permutation(24).reshape(4, 6) * 0.5
    t = gg.tensor(x)
    sign = -1 if descending else 1
    np.testing.assert_array_equal(gg.argsort(t, axis, descending=descending).numpy(), np.argsort(sign * x, axis=axis))
    np.testing.assert_array_equal(gg.sort(t, axis, descending=descending).numpy(), sign * np.sort(sign * x, axis=axis))
    values, places = gg.topk(t, 2, axis, largest=descending)
    np.testing.assert_array_equal(places.numpy(), np.take(np.argsort(sign * x, axis=axis), [0, 1], axis=axis))
    np.testing.assert_array_equal(values.numpy(), np.take_along_axis(x, places.numpy(), axis))
    assert gg.gradgradcheck(lambda a: gg.sort(a, axis, descending=descending) ** 3, [t])
    assert gg.gradcheck(lambda a: gg.topk(a, 2, axis, largest=descending)[0] ** 2, [t])


def test_ties_keep_their_order_and_gradient_goes_by_position():
    x = gg.tensor([1.0, 2.0, 1.0, 2.0], requires_grad=True)
    assert gg.argsort(x).tolist() == [0, 2, 1, 3]
    assert gg.argsort(x, descending=True).tolist() == [1, 3, 0, 2]
    gg.sort(x).backward(gg.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.grad.tolist() == [1.0, 3.0, 2.0, 4.0]
    values, places = gg.topk(x, 1)
    assert (values.tolist(), places.tolist()) == ([2.0], [1])
    nan = gg.tensor([np.nan, 1.0, 0.0])
    assert gg.argsort(nan).tolist() == [2, 1, 0]
    assert gg.argsort(nan, descending=True).tolist() == [0, 1, 2]


def test_take_along_axis_broadcasts_and_accumulates():
    x = gg.tensor(rng.normal(size=(3, 4)))
    ids = rng.integers(-4, 4, (3, 2))
    np.testing.assert_array_equal(gg.take_along_axis(x, ids, 1).numpy(), np.take_along_axis(x.numpy(), ids, 1))
    np.testing.assert_array_equal(gg.take_along_axis(x, ids[:1], 1).numpy(), np.take_along_axis(x.numpy(), ids[:1], 1))
    assert gg.gradcheck(lambda t: gg.take_along_axis(t, ids, 1), [x])
    assert gg.gradgradcheck(lambda t: gg.take_along_axis(t, ids[:1], 1) ** 2, [x])


def test_nonzero_searchsorted_one_hot():
    x = gg.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert [i.tolist() for i in gg.nonzero(x)] == [[0, 1], [1, 0]]
    assert gg.searchsorted(gg.tensor([1.0, 2.0, 2.0]), gg.tensor([2.0, 0.0])).tolist() == [1, 0]
    assert gg.searchsorted(gg.tensor([1.0, 2.0, 2.0]), 2.0, side="right").item() == 3
    hot = gg.one_hot(gg.tensor([[2], [0]]), 3)
    assert hot.tolist() == [[[0, 0, 1]], [[1, 0, 0]]]
    assert hot.dtype == gg.float32
    assert gg.one_hot(gg.tensor([1]), 2, dtype=gg.int64).dtype == gg.int64


# --- embedding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, 1, -1])
def test_embedding_rows_and_gradients(padding):
    weight, ids = gg.tensor(rng.normal(size=(4, 3)), requires_grad=True), np.array([[1, 3], [3, 0]])
    out = nnf.embedding(ids, weight, padding)
    np.testing.assert_array_equal(out.numpy(), weight.numpy()[ids])
    (out * out).sum().backward()
    want = 2 * weight.numpy() * np.array([1, 1, 0, 2])[:, None]
    if padding is not None:
        want[padding] = 0
    np.testing.assert_allclose(weight.grad.numpy(), want)


def test_embedding_is_twice_differentiable_and_has_a_tangent():
    weight, ids = gg.tensor(rng.normal(size=(4, 3)), requires_grad=True), np.array([0, 3, 3])
    f = lambda w: (nnf.embedding(ids, w) ** 3).sum()
    assert gg.gradcheck(f, [weight])
    assert gg.gradgradcheck(f, [weight])


def test_embedding_errors():
    weight = gg.tensor(np.ones((4, 3)))
    for bad in (4, -1):
        with pytest.raises(RangeError, match=rf"embedding.*id is {bad} at \[0, 1\], expected a row from 0 to 3"):
            nnf.embedding(np.array([[0, bad]]), weight)
    with pytest.raises(RangeError, match="padding_idx is 4"):
        nnf.embedding(np.array([0]), weight, 4)
    with pytest.raises(ShapeError, match=r"\(rows, dim\)"):
        nnf.embedding(np.array([0]), gg.tensor(np.ones(3)))
    with pytest.raises(DTypeError):
        nnf.embedding(np.array([0.5]), weight)


def test_the_embedding_layer_starts_with_a_padding_row_of_zeros_and_keeps_it():
    layer = gg.nn.Embedding(5, 3, padding_idx=-2)
    assert repr(layer).count("padding_idx=-2") == 1
    layer(gg.tensor([0, 3, 3])).sum().backward()
    assert layer.weight.numpy()[3].tolist() == layer.weight.grad.numpy()[3].tolist() == [0, 0, 0]
    assert layer.weight.grad.numpy()[0].tolist() == [1, 1, 1]
    with pytest.raises(RangeError, match="padding_idx is 5; there are 5 rows"):
        gg.nn.Embedding(5, 3, padding_idx=5)


@pytest.mark.parametrize("number", [0.1, np.float64(0.1), 1])
def test_numbers_have_the_precision_of_what_they_are_put_into(number):
    x = gg.tensor([0.0, 2.0], dtype=gg.float64)
    assert x.at[0].set(number).tolist() == x.at[0].add(number).tolist() == [float(number), 2.0]
    assert x.at[1].multiply(number).tolist() == [0.0, 2.0 * float(number)]
    y = x.requires_grad_() * 1.0
    y[0] = number
    assert y.tolist() == [float(number), 2.0]
    assert gg.searchsorted(gg.tensor([0.0, 0.1], dtype=gg.float64), number).item() == (1 if number != 1 else 2)
    assert gg.tensor([0, 2]).at[0].set(1).dtype == gg.int64
