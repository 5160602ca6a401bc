"""Distinct elements and membership. The sizes of the results depend on the values, so a GPU is waited for."""

from __future__ import annotations

from typing import Any, NamedTuple

from gpugrad.define import nondiff
from gpugrad.launch.index import ARRAY
from gpugrad.op import RECORDING
from gpugrad.operands import constant
from gpugrad.ops.shape import flatten, operand
from gpugrad.tensor import Tensor

__all__ = ["isin", "unique_all", "unique_counts", "unique_inverse", "unique_values"]


class UniqueAllResult(NamedTuple):
    """What `unique_all` returns."""

    values: Any
    indices: Any
    inverse_indices: Any
    counts: Any


class UniqueCountsResult(NamedTuple):
    """What `unique_counts` returns."""

    values: Any
    counts: Any


class UniqueInverseResult(NamedTuple):
    """What `unique_inverse` returns."""

    values: Any
    inverse_indices: Any


def _unique(xp: Any, x: Any) -> Any:
    """For the distinct elements in ascending order: where each is first, which one each element is, how many."""
    _, first, which, counts = xp.unique(
        x.reshape(-1), return_index=True, return_inverse=True, return_counts=True, equal_nan=False
    )
    return first, which.reshape(x.shape), counts


_unique_ = nondiff("unique", _unique, attrs=True, nout=3)
_isin = nondiff(
    "isin", lambda xp, x, y, invert: xp.isin(x, y, invert=invert), 2, attrs=True,
    doc="Whether each element of x is one of y's.",
)  # fmt: skip


def unique_all(x: Any) -> UniqueAllResult:
    """(values, indices, inverse_indices, counts): distinct elements ascending, where each comes first, which of them
    every element is (in x's shape), and how many there are of each.

    NaNs are distinct from each other, -0 and 0 are one. Gradients of values go to the elements that come first.
    """
    x = operand(x, "unique_all")
    first, which, counts = _unique_(x)
    values = RECORDING.gather(flatten(x), first, index=(ARRAY,), distinct=True)
    return UniqueAllResult(values, first, which, counts)


def unique_counts(x: Any) -> UniqueCountsResult:
    """(values, counts): distinct elements ascending and how many there are of each; as `unique_all`."""
    found = unique_all(x)
    return UniqueCountsResult(found.values, found.counts)


def unique_inverse(x: Any) -> UniqueInverseResult:
    """(values, inverse_indices): distinct elements ascending, and which of them every element is; as `unique_all`."""
    found = unique_all(x)
    return UniqueInverseResult(found.values, found.inverse_indices)


def unique_values(x: Any) -> Any:
    """Distinct elements in ascending order; as `unique_all`."""
    return unique_all(x).values


def isin(x1: Any, x2: Any, *, invert: bool = False) -> Any:
    """Whether each element of x1 is an element of x2 (invert: is none), in x1's shape; NaN is none."""
    like = next((x for x in (x1, x2) if isinstance(x, Tensor)), None)
    x1, x2 = (Tensor(constant("isin", operand(x, "isin", like))) for x in (x1, x2))
    return _isin(x1, x2, invert=invert)
