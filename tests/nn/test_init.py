"""Initialisers: the variance that the fan asks for, the same bits from the same seed."""

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DomainError, ShapeError
from gpugrad.nn import init

SHAPES = [(200, 300), (64, 32, 3, 5)]
VARIANCES = {
    "glorot_uniform": lambda i, o: 2 / (i + o),
    "glorot_normal": lambda i, o: 2 / (i + o),
    "he_uniform": lambda i, o: 2 / i,
    "he_normal": lambda i, o: 2 / i,
    "lecun_uniform": lambda i, o: 1 / i,
    "lecun_normal": lambda i, o: 1 / i,
}
RANDOM = [*VARIANCES, "uniform", "normal", "truncated_normal", "orthogonal"]


def make(name, shape, seed=0, **options):
    return getattr(init, name)(shape, generator=gg.random.Generator(seed), **options)


def test_fan():
    assert init.calculate_fan((5, 3)) == (3, 5)
    fan = init.calculate_fan((8, 4, 3, 2))
    assert (fan.fan_in, fan.fan_out) == (24, 48)
    with pytest.raises(ShapeError, match=r"shape \[3\] has no fan"):
        init.calculate_fan((3,))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", VARIANCES)
def test_mean_and_variance(name, shape):
    values = make(name, shape, dtype=gg.float64).numpy()
    variance = VARIANCES[name](*init.calculate_fan(shape))
    n = values.size
    assert abs(values.mean()) < 5 * math.sqrt(variance / n)
    kurtosis = 1.8 if "uniform" in name else 3.0
    assert abs(values.var() / variance - 1) < 5 * math.sqrt((kurtosis - 1) / n)
    if "uniform" in name:
        assert abs(values).max() <= math.sqrt(3 * variance)


def test_gain_and_slope_scale_the_variance():
    for name, options, factor in (
        ("glorot_uniform", {"gain": 2.0}, 2), ("glorot_normal", {"gain": 2.0}, 2), ("orthogonal", {"gain": 2.0}, 2),
        ("he_uniform", {"negative_slope": 1.0}, 0.5**0.5), ("he_normal", {"negative_slope": 1.0}, 0.5**0.5),
    ):  # fmt: skip
        plain, scaled = (make(name, (20, 30), dtype=gg.float64, **o).numpy() for o in ({}, options))
        np.testing.assert_allclose(scaled, factor * plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", RANDOM)
def test_same_seed_same_bits(name):
    a, b, c = (make(name, (30, 20), seed).numpy() for seed in (1, 1, 2))
    assert a.tobytes() == b.tobytes()
    assert a.tobytes() != c.tobytes()
    assert a.dtype == gg.float32
    g = gg.random.Generator(1)
    first = getattr(init, name)((30, 20), generator=g).numpy()
    assert first.tobytes() == a.tobytes()
    assert getattr(init, name)((30, 20), generator=g).numpy().tobytes() != a.tobytes()  # the generator moved on
    gg.random.seed(5)
    one = getattr(init, name)((30, 20)).numpy()
    gg.random.seed(5)
    assert one.tobytes() == getattr(init, name)((30, 20)).numpy().tobytes()
    assert make(name, (3, 4), dtype=gg.float64).dtype == gg.float64


def test_uniform_and_normal_take_their_parameters():
    values = make("uniform", (10_000,), low=-2.0, high=3.0, dtype=gg.float64).numpy()
    assert values.min() >= -2
    assert values.max() < 3
    assert abs(values.mean() - 0.5) < 5 * 5 / math.sqrt(12 * 10_000)
    values = make("normal", (10_000,), mean=2.0, std=0.5, dtype=gg.float64).numpy()
    assert abs(values.mean() - 2) < 5 * 0.5 / 100
    assert abs(values.std() - 0.5) < 5 * 0.5 / math.sqrt(20_000)


@pytest.mark.parametrize("bound", [0.5, 1.0, 2.0])
def test_truncated_normal(bound):
    values = make("truncated_normal", (20_000,), mean=1.0, std=3.0, bound=bound, dtype=gg.float64).numpy()
    z = (values - 1) / 3
    assert abs(z).max() <= bound
    density, mass = math.exp(-bound * bound / 2) / math.sqrt(2 * math.pi), math.erf(bound / math.sqrt(2))
    assert abs(z.var() / (1 - 2 * bound * density / mass) - 1) < 0.05
    assert abs(z.mean()) < 0.05
    with pytest.raises(DomainError, match=r"bound is 0\.0"):
        init.truncated_normal((2,), bound=0.0)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (6, 2, 2, 2)])
def test_orthogonal(shape):
    q = make("orthogonal", shape, dtype=gg.float64).numpy().reshape(shape[0], -1)
    small = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    np.testing.assert_allclose(small, np.eye(len(small)), atol=1e-14)


def test_orthogonal_has_no_preferred_sign():
    first = [make("orthogonal", (2, 2), seed).numpy()[0, 0] for seed in range(200)]
    assert 70 < sum(v > 0 for v in first) < 130


def test_constants():
    assert init.constant((2,), 0.5).tolist() == [0.5, 0.5]
    assert init.zeros((1, 2)).tolist() == [[0.0, 0.0]]
    assert init.ones((2,), dtype=gg.float64).dtype == gg.float64
    assert init.constant((2,), 3).dtype == gg.float32
