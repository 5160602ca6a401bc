"""Data without files: scikit-learn's digits, synthetic sets; splitting and standardising. All on the host, by seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpugrad.data.files import DataError, Split
from gpugrad.errors import DomainError, ShapeError, fail


def generator(seed: int) -> np.random.Generator:
    """Random numbers of a seed."""
    return np.random.Generator(np.random.Philox(seed))


def digits(seed: int = 0, test: float = 0.2) -> Split:
    """(train_x, train_y, test_x, test_y) of the 1,797 8x8 digits that come with scikit-learn, split by class.

    Images (N, 8, 8) uint8 in 0..16, labels (N,) uint8. Raises DataError when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise fail(DataError, "digits", "needs scikit-learn: pip install 'gpugrad[train]'") from None
    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    train_i, test_i = stratified_split(y, test, seed)
    return x[train_i], y[train_i], x[test_i], y[test_i]


def stratified_split(labels: Any, test: float = 0.2, seed: int = 0) -> tuple[Any, Any]:
    """Ascending indices (train, test): of each class the fraction `test`, rounded, drawn by seed.

    Raises DomainError unless 0 < test < 1.
    """
    if not 0 < test < 1:
        raise fail(DomainError, "stratified_split", f"test is {test}, expected between 0 and 1")
    labels, rng = np.asarray(labels), generator(seed)
    chosen = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        chosen[rng.permutation(members)[: round(test * len(members))]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def spirals(n: int = 300, classes: int = 3, noise: float = 0.2, seed: int = 0) -> tuple[Any, Any]:
    """(x (n, 2) float32, y (n,) int64): spiral arms, one a class; noise is the angle's deviation in radians."""
    rng, y = generator(seed), np.arange(n) % classes
    radius = (np.arange(n) // classes + 1) / (n // classes + 1)
    angle = 2 * np.pi * y / classes + 4 * radius + noise * rng.standard_normal(n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32), y


def blobs(n: int = 300, classes: int = 3, features: int = 2, spread: float = 1.0, seed: int = 0) -> tuple[Any, Any]:
    """(x (n, features) float32, y (n,) int64): normal clouds of deviation `spread`, centres uniform in [-10, 10)."""
    rng, y = generator(seed), np.arange(n) % classes
    centres = rng.uniform(-10, 10, (classes, features))
    return (centres[y] + spread * rng.standard_normal((n, features))).astype(np.float32), y


def moons(n: int = 200, noise: float = 0.1, seed: int = 0) -> tuple[Any, Any]:
    """(x (n, 2) float32, y (n,) int64): two interleaved half circles of radius 1; noise is the deviation of a point."""
    rng, y = generator(seed), np.arange(n) % 2
    angle = np.pi * (np.arange(n) // 2) / max(1, (n - 1) // 2)
    x = np.stack([np.cos(angle), np.sin(angle)], 1)
    x = np.where(y[:, None] == 0, x, [1.0, 0.5] - x)
    return (x + noise * rng.standard_normal((n, 2))).astype(np.float32), y


def moments(x: Any, axis: int | tuple[int, ...] | None = None) -> tuple[Any, Any]:
    """Mean and standard deviation of an array over `axis` (all axes by default; it must include 0), axes kept.

    float32, summed in float64; a deviation of 0 (a constant feature) is given as 1, so that dividing by it is safe.
    """
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(a % x.ndim for a in axes)
    if 0 not in axes or not x.size:
        raise fail(
            ShapeError, "moments", f"axis {axis} of shape {list(x.shape)}: expected samples on axis 0, not empty"
        )
    mean = x.mean(axes, dtype=np.float64, keepdims=True)
    square = np.zeros_like(mean)
    for start in range(0, len(x), 4096):  # a float64 copy of a large uint8 set would not fit everywhere
        square += ((x[start : start + 4096] - mean) ** 2).sum(axes, keepdims=True)
    std = np.sqrt(square * (mean.size / x.size))
    return mean.astype(np.float32), np.where(std == 0, 1, std).astype(np.float32)


def standardize(train: Any, *others: Any, axis: int | tuple[int, ...] | None = None) -> tuple[Any, ...]:
    """(train, *others) as float32, minus the mean and over the deviation of the training set; see `moments`.

    axis: None for one mean over everything (images), 0 for one a feature, (0, 2, 3) for one a channel.
    """
    mean, std = moments(train, axis)
    results = []
    for x in (train, *others):
        if x.shape[1:] != train.shape[1:]:
            raise fail(
                ShapeError, "standardize", f"samples of shape {list(x.shape[1:])}, expected {list(train.shape[1:])}"
            )
        out = x.astype(np.float32)
        out -= mean
        out /= std
        results.append(out)
    return tuple(results)
