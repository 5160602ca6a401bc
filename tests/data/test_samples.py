"""Bundled and synthetic sets, splitting, standardising."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gpugrad import data
from gpugrad.errors import DomainError, ShapeError


def test_digits_are_split_by_class_and_by_seed():
    pytest.importorskip("sklearn", reason="scikit-learn brings the digits")
    train_x, train_y, test_x, test_y = data.digits()
    assert (train_x.shape[1:], train_x.dtype, train_y.dtype) == ((8, 8), np.uint8, np.uint8)
    assert len(train_x) + len(test_x) == 1797
    assert int(train_x.max()) == 16
    whole = np.bincount(np.concatenate([train_y, test_y]))
    assert np.bincount(test_y).tolist() == [round(0.2 * int(n)) for n in whole]
    again, other = data.digits(0), data.digits(1)
    assert np.array_equal(again[2], test_x)
    assert not np.array_equal(other[2], test_x)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(data.DataError, match=r"gpugrad\[train\]"):
        data.digits()


def test_stratified_split():
    labels = np.array([0] * 10 + [1] * 5 + [7] * 20)
    train, test = data.stratified_split(labels, 0.4, seed=3)
    assert np.bincount(labels[test], minlength=8)[[0, 1, 7]].tolist() == [4, 2, 8]
    assert sorted([*train, *test]) == list(range(35))
    with pytest.raises(DomainError):
        data.stratified_split(labels, 1.0)


@pytest.mark.parametrize("make, classes", [(data.spirals, 3), (data.blobs, 3), (data.moons, 2)])
def test_synthetic_sets(make, classes):
    x, y = make(120, seed=4)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((120, 2), np.float32, (120,), np.int64)
    assert np.bincount(y).tolist() == [120 // classes] * classes
    again, other = make(120, seed=4)[0], make(120, seed=5)[0]
    assert np.array_equal(x, again)
    assert not np.array_equal(x, other)


def test_noiseless_shapes():
    x, y = data.moons(100, noise=0.0)
    np.testing.assert_allclose(np.hypot(*x[y == 0].T), 1, rtol=1e-6)
    np.testing.assert_allclose(np.hypot(*(x[y == 1] - [1, 0.5]).T), 1, rtol=1e-6)
    assert x[y == 0][:, 1].min() >= -1e-6
    assert x[y == 1][:, 1].max() <= 0.5 + 1e-6
    x, y = data.spirals(90, noise=0.0)
    radius = np.hypot(*x.T)
    assert radius[y == 1].tolist() == sorted(radius[y == 1])
    assert radius.max() < 1
    x, y = data.blobs(60, spread=0.0)
    assert len(np.unique(x, axis=0)) == 3


@pytest.mark.parametrize("axis, shape", [(None, (1, 1, 1, 1)), (0, (1, 3, 5, 4)), ((0, 2, 3), (1, 3, 1, 1))])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_moments_and_standardize(axis, shape, dtype):
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (5000, 3, 5, 4)).astype(dtype)
    test = rng.integers(0, 256, (7, 3, 5, 4)).astype(dtype)
    mean, std = data.moments(train, axis)
    assert mean.shape == std.shape == shape
    np.testing.assert_allclose(mean, train.mean(axis, dtype="float64", keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(std, train.std(axis, dtype="float64", keepdims=True), rtol=1e-6)
    a, b = data.standardize(train, test, axis=axis)
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_allclose(a.mean(axis, dtype="float64"), 0, atol=1e-5)
    np.testing.assert_allclose(a.std(axis, dtype="float64"), 1, rtol=1e-5)
    np.testing.assert_allclose(b, (test - mean) / std, rtol=1e-5, atol=1e-6)


def test_constant_features_become_zero_not_nan():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    (out,) = data.standardize(x, axis=0)
    assert out.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    with pytest.raises(ShapeError):
        data.moments(x, axis=1)
    with pytest.raises(ShapeError):
        data.standardize(x, np.zeros((2, 3)))
