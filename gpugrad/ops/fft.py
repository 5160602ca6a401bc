"""Discrete Fourier transforms: this file is `gpugrad.fft`.

float32 and complex64 compute and come back in single precision, float64 and complex128 in double. The transforms give
or take complex numbers, which have no derivative yet: a recorded operand is a DTypeError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpugrad.define import nondiff
from gpugrad.dtypes import complex64, get_default_dtype, promote
from gpugrad.errors import DTypeError, RangeError, ShapeError, describe, fail
from gpugrad.op import RECORDING
from gpugrad.ops._axes import normalize_axis, one_axis
from gpugrad.ops.creation import arange
from gpugrad.ops.elementwise import divide, tracked
from gpugrad.ops.shape import operand, roll
from gpugrad.state import mode
from gpugrad.tensor import Tensor

__all__ = [
    "fft", "fftfreq", "fftn", "fftshift", "hfft", "ifft", "ifftn", "ifftshift", "ihfft", "irfft", "irfftn", "rfft",
    "rfftfreq", "rfftn",
]  # fmt: skip

NORMS = ("backward", "ortho", "forward")


def _forward(name: str) -> Callable[..., Any]:
    """The array module's transform of this name."""
    return lambda xp, x, **attrs: getattr(xp.fft, name)(x, **attrs)


for _name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fftn", "ifftn", "rfftn", "irfftn"):
    nondiff(_name, _forward(_name), attrs=True)


def _transformed(op: str, x: Any, norm: str, takes: str) -> Tensor:
    """The operand in a type that the transform takes ('real' or 'complex'), with the checks that all share."""
    x = operand(x, op)
    if norm not in NORMS:
        raise fail(RangeError, op, f"norm is {norm!r}; expected one of {', '.join(NORMS)}")
    if (tracked(x) and mode.enabled) or getattr(x.data, "tangent", None) is not None:
        raise fail(DTypeError, op, f"{describe(x)}: complex numbers have no derivative yet; use x.detach()")
    if takes == "real" and x.dtype.kind == "c":
        raise fail(DTypeError, op, f"{describe(x)} is complex; expected real numbers")
    if x.dtype.kind in "iub":
        x = RECORDING.astype(x, dtype=get_default_dtype())
    if takes == "complex" and x.dtype.kind != "c":
        x = RECORDING.astype(x, dtype=promote(complex64, x.dtype))
    return x  # type: ignore[no-any-return]


def _along(op: str, x: Any, n: int | None, axis: int, norm: str, takes: str) -> Any:
    """A transform along one axis, whose length must not be 0."""
    x = _transformed(op, x, norm, takes)
    axis = one_axis(axis, x.ndim, op)
    if (x.shape[axis] if n is None else n) < 1:
        raise fail(ShapeError, op, f"{describe(x)}, n={n}: axis {axis} has no points to transform")
    return getattr(RECORDING, op)(x, n=n, axis=axis, norm=norm)


def _over(
    op: str, x: Any, s: Sequence[int] | None, axes: Sequence[int] | None, norm: str, takes: str
) -> Any:  # fmt: skip
    """A transform over several axes: all, or with s alone the last len(s)."""
    x = _transformed(op, x, norm, takes)
    if axes is None:
        axes = range(x.ndim) if s is None else range(x.ndim - len(s), x.ndim)
    over = normalize_axis(tuple(axes), x.ndim, op)
    if s is not None and len(s) != len(over):
        raise fail(ShapeError, op, f"s {list(s)} and axes {list(over)} differ in length")
    if any((x.shape[i] if s is None else s[k]) == 0 for k, i in enumerate(over)):
        raise fail(ShapeError, op, f"{describe(x)}, s={s}: an axis has no points to transform")
    lengths = None if s is None else tuple(x.shape[i] if n == -1 else n for n, i in zip(s, over))
    return getattr(RECORDING, op)(x, s=lengths, axes=over, norm=norm)


def fft(x: Any, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The transform of n points of an axis (cut or filled with zeros to n): sum of x[m] exp(-2 pi i m k / n).

    norm: which direction is divided by n: 'backward' the inverse, 'forward' this one, 'ortho' both by its root. Raises
    RangeError for another norm, ShapeError for no points, DTypeError for an operand with gradients.
    """
    return _along("fft", x, n, axis, norm, "complex")


def ifft(x: Any, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The inverse of `fft`."""
    return _along("ifft", x, n, axis, norm, "complex")


def rfft(x: Any, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """`fft` of real numbers: the first n // 2 + 1 values, which determine the others."""
    return _along("rfft", x, n, axis, norm, "real")


def irfft(x: Any, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The inverse of `rfft`: n real numbers, by default 2 (length - 1)."""
    return _along("irfft", x, _even(x, n, axis, "irfft"), axis, norm, "complex")


def hfft(x: Any, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """`fft` of n points of which x is the first half and the others its mirrored conjugates: real numbers."""
    return _along("hfft", x, _even(x, n, axis, "hfft"), axis, norm, "complex")


def ihfft(x: Any, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The inverse of `hfft`, of real numbers."""
    return _along("ihfft", x, n, axis, norm, "real")


def _even(x: Any, n: int | None, axis: int, op: str) -> int:
    x = operand(x, op)
    return 2 * (x.shape[one_axis(axis, x.ndim, op)] - 1) if n is None else n


def fftn(
    x: Any, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:  # fmt: skip
    """`fft` over several axes, by default all; s: the number of points of each, with s alone of the last axes."""
    return _over("fftn", x, s, axes, norm, "complex")


def ifftn(
    x: Any, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:  # fmt: skip
    """The inverse of `fftn`."""
    return _over("ifftn", x, s, axes, norm, "complex")


def rfftn(
    x: Any, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:  # fmt: skip
    """`rfft` over the last of the axes, then `fft` over the others."""
    return _over("rfftn", x, s, axes, norm, "real")


def irfftn(
    x: Any, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:  # fmt: skip
    """The inverse of `rfftn`; the last axis has by default 2 (length - 1) points."""
    return _over("irfftn", x, s, axes, norm, "complex")


def _frequencies(op: str, last: int, shift: int, n: int, d: float, dtype: Any, device: str | None) -> Any:
    """(0, 1, ..., last - 1), moved by `shift` places after those below 0, each divided by n d."""
    want = np.dtype(dtype or get_default_dtype())
    if n < 1:
        raise fail(ShapeError, op, f"n is {n}; expected at least 1")
    if want.kind != "f":
        raise fail(DTypeError, op, f"dtype is {want}; expected a real floating type")
    points = roll(arange(-shift, last, device=device), -shift)
    return RECORDING.astype(divide(RECORDING.astype(points, dtype=np.dtype("float64")), n * d), dtype=want)


def fftfreq(n: int, *, d: float = 1.0, dtype: Any = None, device: str | None = None) -> Any:
    """The frequencies of `fft` for n points at distance d: (0, 1, ..., -2, -1) / (n d), in the default float type."""
    return _frequencies("fftfreq", (n + 1) // 2, n // 2, n, d, dtype, device)


def rfftfreq(n: int, *, d: float = 1.0, dtype: Any = None, device: str | None = None) -> Any:
    """The frequencies of `rfft` for n points at distance d: (0, 1, ..., n // 2) / (n d), in the default float type."""
    return _frequencies("rfftfreq", n // 2 + 1, 0, n, d, dtype, device)


def _rolled(op: str, direction: int, x: Any, axes: Any = None) -> Any:
    x = operand(x, op)
    over = normalize_axis(axes, x.ndim, op)
    shifts = tuple(x.shape[i] // 2 if direction > 0 else -(x.shape[i] // 2) for i in over)
    return roll(x, shifts, over) if over else x


def fftshift(x: Any, *, axes: int | Sequence[int] | None = None) -> Any:
    """Frequency 0 moved from the start to the middle of the axes (by default all). Differentiable."""
    return _rolled("fftshift", 1, x, axes)


def ifftshift(x: Any, *, axes: int | Sequence[int] | None = None) -> Any:
    """The inverse of `fftshift`. Differentiable."""
    return _rolled("ifftshift", -1, x, axes)
