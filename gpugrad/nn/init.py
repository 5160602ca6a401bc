"""Initialisers: each makes a new tensor of a shape from a random generator; the same seed gives the same bits.

A weight has shape (outputs, inputs, *kernel), as `Linear` and `Conv2d` keep it. generator: `gg.random.Generator`,
the default one if None. device: if None that of the given generator, else the default device. Variances follow from
`calculate_fan`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import gpugrad as gg
from gpugrad.errors import DomainError, ShapeError, fail

Shape = tuple[int, ...]


class Fan(NamedTuple):
    """Connections into one output and out of one input."""

    fan_in: int
    fan_out: int


def calculate_fan(shape: Shape) -> Fan:
    """(fan_in, fan_out) of a weight (outputs, inputs, *kernel): inputs resp. outputs times the kernel's size.

    Raises ShapeError for fewer than two axes.
    """
    if len(shape) < 2:
        raise fail(ShapeError, "calculate_fan", f"shape {list(shape)} has no fan, expected (outputs, inputs, *kernel)")
    kernel = math.prod(shape[2:])
    return Fan(shape[1] * kernel, shape[0] * kernel)


def uniform(
    shape: Shape, low: float = 0.0, high: float = 1.0, *,
    generator: Any = None, dtype: Any = None, device: str | None = None,
) -> gg.Tensor:  # fmt: skip
    """Uniform in [low, high)."""
    return placed((generator or gg.random.default).uniform(shape, low, high, dtype), generator, device)


def normal(
    shape: Shape, mean: float = 0.0, std: float = 1.0, *,
    generator: Any = None, dtype: Any = None, device: str | None = None,
) -> gg.Tensor:  # fmt: skip
    """Normal with this mean and standard deviation."""
    return placed((generator or gg.random.default).normal(shape, mean, std, dtype), generator, device)


def placed(values: gg.Tensor, generator: Any, device: str | None) -> gg.Tensor:
    """On the wanted device."""
    if device is None and generator is None:
        device = gg.get_default_device()
    return values if device is None else values.to(device=device)  # type: ignore[no-any-return]


def constant(shape: Shape, value: float, *, dtype: Any = None, device: str | None = None) -> gg.Tensor:
    """One value everywhere."""
    return gg.full(shape, float(value), dtype=dtype or gg.get_default_dtype(), device=device)


def zeros(shape: Shape, *, dtype: Any = None, device: str | None = None) -> gg.Tensor:
    """Zeros."""
    return constant(shape, 0.0, dtype=dtype, device=device)


def ones(shape: Shape, *, dtype: Any = None, device: str | None = None) -> gg.Tensor:
    """Ones."""
    return constant(shape, 1.0, dtype=dtype, device=device)


def truncated_normal(
    shape: Shape, mean: float = 0.0, std: float = 1.0, bound: float = 2.0, *,
    generator: Any = None, dtype: Any = None, device: str | None = None,
) -> gg.Tensor:  # fmt: skip
    """Normal, drawn again until within `bound` standard deviations of the mean; `std` is that of the normal before.

    Raises DomainError for a bound below 0.1, where drawing again would take long.
    """
    if not bound >= 0.1:
        raise fail(DomainError, "truncated_normal", f"bound is {bound!r}, expected at least 0.1")
    values = normal(shape, generator=generator, dtype=dtype)
    while gg.any(outside := gg.abs(values) > bound):
        values = gg.where(outside, normal(shape, generator=generator, dtype=dtype), values)
    return placed(values * std + mean, generator, device)


def orthogonal(
    shape: Shape, gain: float = 1.0, *, generator: Any = None, dtype: Any = None, device: str | None = None
) -> gg.Tensor:
    """Uniformly random orthonormal rows (or columns, if there are fewer) of (outputs, inputs x kernel), times `gain`.

    The QR decomposition of a normal matrix, signs fixed (Mezzadri, 2007), computed in float64 on the host, so that
    every device gets the same bits. Raises ShapeError for fewer than two axes.
    """
    rows, columns = shape[0], calculate_fan(shape).fan_in
    values = normal((max(rows, columns), min(rows, columns)), generator=generator, dtype=dtype)
    q, r = gg.linalg.qr(values.to(device="cpu", dtype=gg.float64))
    q = gain * q * gg.where(gg.linalg.diagonal(r) < 0, -1.0, 1.0)
    q = (q if rows >= columns else q.T).reshape(shape).to(dtype=values.dtype)
    return placed(q, generator, device or values.device)


# --- scaled by the fan: variance gain^2 / fan ----------------------------------------------------------------


def glorot_uniform(
    shape: Shape, gain: float = 1.0, *, generator: Any = None, dtype: Any = None, device: str | None = None
) -> gg.Tensor:
    """Uniform with variance 2 gain^2 / (fan_in + fan_out). Glorot and Bengio, 2010."""
    std = gain * math.sqrt(2.0 / sum(calculate_fan(shape)))
    return symmetric(shape, std, generator, dtype, device)


def glorot_normal(
    shape: Shape, gain: float = 1.0, *, generator: Any = None, dtype: Any = None, device: str | None = None
) -> gg.Tensor:
    """Normal with variance 2 gain^2 / (fan_in + fan_out). Glorot and Bengio, 2010."""
    std = gain * math.sqrt(2.0 / sum(calculate_fan(shape)))
    return normal(shape, std=std, generator=generator, dtype=dtype, device=device)


def he_uniform(
    shape: Shape, negative_slope: float = 0.0, *, generator: Any = None, dtype: Any = None, device: str | None = None
) -> gg.Tensor:
    """Uniform with variance 2 / ((1 + negative_slope^2) fan_in), for relu and leaky relu. He et al., 2015."""
    return symmetric(shape, he_std(shape, negative_slope), generator, dtype, device)


def he_normal(
    shape: Shape, negative_slope: float = 0.0, *, generator: Any = None, dtype: Any = None, device: str | None = None
) -> gg.Tensor:
    """Normal with variance 2 / ((1 + negative_slope^2) fan_in), for relu and leaky relu. He et al., 2015."""
    std = he_std(shape, negative_slope)
    return normal(shape, std=std, generator=generator, dtype=dtype, device=device)


def lecun_uniform(
    shape: Shape, *, generator: Any = None, dtype: Any = None, device: str | None = None
) -> gg.Tensor:  # fmt: skip
    """Uniform with variance 1 / fan_in, for selu and tanh. LeCun et al., 1998."""
    return symmetric(shape, 1.0 / math.sqrt(calculate_fan(shape).fan_in), generator, dtype, device)


def lecun_normal(
    shape: Shape, *, generator: Any = None, dtype: Any = None, device: str | None = None
) -> gg.Tensor:  # fmt: skip
    """Normal with variance 1 / fan_in, for selu and tanh. LeCun et al., 1998."""
    std = 1.0 / math.sqrt(calculate_fan(shape).fan_in)
    return normal(shape, std=std, generator=generator, dtype=dtype, device=device)


def he_std(shape: Shape, negative_slope: float) -> float:
    """Standard deviation of the He initialisers."""
    return math.sqrt(2.0 / ((1.0 + negative_slope**2) * calculate_fan(shape).fan_in))


def symmetric(shape: Shape, std: float, generator: Any, dtype: Any, device: str | None) -> gg.Tensor:
    """Uniform around 0 with this standard deviation."""
    bound = math.sqrt(3.0) * std
    return uniform(shape, -bound, bound, generator=generator, dtype=dtype, device=device)
