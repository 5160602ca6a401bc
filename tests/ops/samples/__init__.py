"""Sample calls of every table entry: one line an op, in the file of its family. See `Sample`."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

import numpy as np

_rng = np.random.default_rng(20240607)


def normal(*shape: int) -> Any:
    """Standard normal float64."""
    return _rng.normal(size=shape)


def uniform(low: float, high: float, *shape: int) -> Any:
    """Uniform float64 in [low, high)."""
    return _rng.uniform(low, high, size=shape)


def positive(*shape: int) -> Any:
    """Float64 in [0.5, 2)."""
    return uniform(0.5, 2.0, *shape)


def away(*shape: int, points: tuple[float, ...] = (0.0,), gap: float = 0.05) -> Any:
    """Normal float64 with every element at least `gap` from each of `points`: kinks are avoided by sampling."""
    x = normal(*shape)
    for p in points:
        x = np.where(np.abs(x - p) < gap, p + np.copysign(2 * gap, x - p), x)
    return x


def distinct(*shape: int) -> Any:
    """Float64 with no two elements closer than 0.1: for max, sort and their kin."""
    n = int(np.prod(shape))
    return (_rng.permutation(n) * 0.13 - 0.06 * n + 0.017).reshape(shape)


def ints(low: int, high: int, *shape: int) -> Any:
    """Int64 in [low, high)."""
    return _rng.integers(low, high, size=shape)


@dataclasses.dataclass
class Sample:
    """One call of an op: positional arrays (None where an optional input is absent) and canonical attributes.

    Float64 arrays are differentiated. `second=False` leaves out the second-order check (say why beside it).
    `outputs`: of several outputs those that have a derivative, which is then in reverse mode alone.
    """

    args: tuple[Any, ...]
    attrs: dict[str, Any]
    second: bool = True
    outputs: tuple[int, ...] | None = None

    def chosen(self, outs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of a call's outputs those that have a derivative."""
        return outs if self.outputs is None else tuple(outs[k] for k in self.outputs)


def S(*args: Any, second: bool = True, outputs: tuple[int, ...] | None = None, **attrs: Any) -> Sample:
    """Shorthand for a Sample."""
    return Sample(args, attrs, second, outputs)


def collect() -> dict[str, list[Sample]]:
    """All samples by op name, from every file beside this one."""
    found: dict[str, list[Sample]] = {}
    for info in pkgutil.iter_modules(__path__):
        for name, samples in importlib.import_module(f"{__name__}.{info.name}").SAMPLES.items():
            found.setdefault(name, []).extend(samples)
    return found
