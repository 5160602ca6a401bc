"""Indexing, indexed updates and sorting: values as NumPy's, gradients that scatter back."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg


def leaf(value):
    return gg.tensor(value, dtype=gg.float64, requires_grad=True)


def random_index(rng, shape):
    """A random NumPy index expression for an array of this shape."""
    entries, axis = [], 0
    arrays = rng.random() < 0.5
    length = int(rng.integers(1, 4))
    while axis < len(shape):
        n, kind = shape[axis], rng.integers(0, 7)
        if kind == 0:
            entries.append(int(rng.integers(-n, n)))
        elif kind in (1, 2):
            start, stop = sorted(int(v) for v in rng.integers(-n, n + 1, 2))
            entries.append(slice(start, stop, int(rng.choice([1, 2, -1]))))
        elif kind == 3:
            entries.append(None)
            continue
        elif kind == 4 and arrays:
            entries.append(rng.integers(-n, n, length))
        elif kind == 5 and arrays and not any(e is Ellipsis for e in entries):
            mask = rng.random(n) < 0.5
            if mask.sum() not in (1, length):
                continue
            entries.append(mask)
        elif kind == 6 and not any(e is Ellipsis for e in entries):
            entries.append(Ellipsis)
            break
        else:
            entries.append(slice(None))
        axis += 1
    return tuple(entries) if len(entries) != 1 or rng.random() < 0.5 else entries[0]


def test_a_hundred_random_expressions_match_numpy_and_scatter_back():
    rng = np.random.default_rng(7)
    done = 0
    while done < 100:
        x = rng.normal(size=tuple(rng.integers(1, 5, rng.integers(1, 5))))
        index = random_index(rng, x.shape)
        try:
            want = x[index]
        except IndexError:
            continue
        t = leaf(x)
        got = t[index]
        assert got.shape == want.shape
        assert np.array_equal(got.numpy(), want)
        weights = rng.normal(size=want.shape)
        (got * gg.tensor(weights)).sum().backward()
        expected = np.zeros_like(x)
        np.add.at(expected, index, weights)
        np.testing.assert_allclose(t.grad.numpy(), expected, rtol=1e-12, atol=1e-12)
        done += 1


def test_repeated_indices_accumulate():
    x = leaf([1.0, 2.0])
    x[[0, 0, 1]].sum().backward()
    assert x.grad.tolist() == [2.0, 1.0]


def test_tensors_and_masks_index():
    x = leaf(np.arange(6.0).reshape(2, 3))
    assert x[gg.tensor([1, 0]), gg.tensor([2, 0])].tolist() == [5.0, 0.0]
    y = x[x > 2]
    y.sum().backward()
    assert y.tolist() == [3.0, 4.0, 5.0]
    assert x.grad.tolist() == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


def test_basic_indexing_is_a_view():
    x = gg.tensor(np.arange(6.0))
    assert np.shares_memory(x[1:3].data, x.data)
    assert not np.shares_memory(x[[1, 2]].data, x.data)


@pytest.mark.parametrize("index", [5, (0, 0), [7], slice(0, 2, 0), "a", 1.5])
def test_bad_indices_raise_ours(index):
    with pytest.raises((gg.errors.GpugradError, ValueError)):
        leaf([1.0, 2.0, 3.0])[index]


def test_filling_element_by_element_inside_a_differentiated_function():
    """The example of HIPS/autograd issue 58: assignment in a loop has an all-ones gradient."""

    def f(x):
        y = gg.zeros(x.shape, dtype=x.dtype)
        for i in range(len(x)):
            y = y.at[i].set(x[i])
        return y.sum()

    def g(x):
        y = gg.zeros(x.shape, dtype=x.dtype)
        for i in range(len(x)):
            y[i] = x[i]
        return y.sum()

    x = gg.tensor([1.0, 2.0, 3.0], dtype=gg.float64)
    assert gg.grad(f)(x).tolist() == [1.0, 1.0, 1.0]
    assert gg.grad(g)(x).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("how", ["set", "add", "multiply", "min", "max"])
@pytest.mark.parametrize("index", [1, slice(0, 3, 2), [0, 2], (slice(None), 1)], ids=str)
def test_indexed_updates_differentiate(how, index):
    rng = np.random.default_rng(0)
    x = gg.tensor(rng.normal(size=(4, 3)))
    v = gg.tensor(rng.normal(size=x[index].shape))
    assert gg.gradcheck(
        lambda x, v: getattr(x.at[index], how)(v) * gg.tensor(rng.normal(size=(4, 3)) * 0 + 1.5), [x, v]
    )
    before = x.numpy(copy=True)
    new = getattr(x.at[index], how)(v)
    want = before.copy()
    combine = {"set": lambda a, b: b, "add": np.add, "multiply": np.multiply, "min": np.minimum, "max": np.maximum}[how]
    want[index] = combine(want[index], v.numpy())
    assert np.array_equal(new.numpy(), want)
    assert np.array_equal(x.numpy(), before)


def test_add_at_repeated_places():
    x = leaf([0.0, 0.0])
    v = leaf([1.0, 2.0, 3.0])
    y = x.at[[0, 0, 1]].add(v)
    assert y.tolist() == [3.0, 3.0]
    (y * gg.tensor([10.0, 1.0], dtype=gg.float64)).sum().backward()
    assert v.grad.tolist() == [10.0, 10.0, 1.0]


def test_sort_argsort_topk():
    x = leaf([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    s = gg.sort(x)
    assert s.tolist() == [[1.0, 2.0, 3.0], [0.0, 4.0, 5.0]]
    (s * gg.tensor([1.0, 10.0, 100.0], dtype=gg.float64)).sum().backward()
    assert x.grad.tolist() == [[100.0, 1.0, 10.0], [1.0, 100.0, 10.0]]
    assert gg.argsort(x, descending=True).tolist() == [[0, 2, 1], [1, 2, 0]]
    x.zero_grad()
    values, places = gg.topk(x, 2)
    assert values.tolist() == [[3.0, 2.0], [5.0, 4.0]]
    assert places.tolist() == [[0, 2], [1, 2]]
    values.sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]


def test_take_and_take_along_axis_as_numpys():
    rng = np.random.default_rng(1)
    a, ids = rng.normal(size=(3, 4)), rng.integers(0, 4, (3, 2))
    assert np.array_equal(
        gg.take_along_axis(gg.tensor(a), gg.tensor(ids), axis=1).numpy(), np.take_along_axis(a, ids, 1)
    )
    assert np.array_equal(gg.take(gg.tensor(a), gg.tensor([2, 0]), axis=0).numpy(), np.take(a, [2, 0], 0))


def test_one_hot():
    assert gg.one_hot(gg.tensor([0, 2]), 3).tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(gg.errors.RangeError):
        gg.one_hot(gg.tensor([3]), 3)
