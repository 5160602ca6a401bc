"""Operands of a call: what joins as a constant, the common dtype, and the message when the array library refuses."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.dtypes import get_default_dtype, promote
from gpugrad.errors import DeviceError, DTypeError, GpugradError, NumberError, RangeError, ShapeError, describe, fail
from gpugrad.layered import top
from gpugrad.tensor import Node, Tensor


def explain_failure(op: str, error: Exception, args: tuple[Any, ...], attrs: dict[str, Any]) -> Exception:
    """Turn an array library's error into ours: op, operands, attributes, reason, the user's line."""
    if isinstance(error, GpugradError):
        return error
    if isinstance(error, MemoryError):
        from gpugrad.held import exhausted  # only now: it knows tensors, backends and models

        return exhausted(op, error, args)
    flat = [b for a in args for b in (a if isinstance(a, (tuple, list)) else (a,))]
    apart = backends.mixed(tuple(flat))
    if apart:
        return fail(DeviceError, op, apart)
    kind = next((k for base, k in KINDS if isinstance(error, base)), None)
    if kind is None:
        return error
    shown = ", ".join(
        [describe(a) for a in flat if a is not None]
        + [f"{k}={v!r}" for k, v in attrs.items() if v is not None and not hasattr(v, "shape")]
    )
    return fail(kind, op, f"({shown}): {mismatch(op, flat) or error}")


def mismatch(op: str, operands: list[Any]) -> str:
    """Why two shapes do not fit, in plain words where the array library speaks of its internals; else empty."""
    if op == "matmul" and len(operands) == 2 and all(getattr(a, "ndim", 0) for a in operands):
        inner = operands[0].shape[-1], operands[1].shape[max(-2, -operands[1].ndim)]
        return "" if inner[0] == inner[1] else f"the inner dimensions {inner[0]} and {inner[1]} differ"
    return ""


KINDS: tuple[tuple[type[Exception], type[GpugradError]], ...] = (
    (IndexError, RangeError), (ValueError, ShapeError), (TypeError, DTypeError), (OverflowError, NumberError),
)  # fmt: skip


def constant(op: str, x: Any, like: Any = None) -> Any:
    """A non-Tensor operand as the raw array or Python scalar that joins the call.

    NumPy scalars count as Python scalars, so they never widen the tensor beside them.
    """
    if isinstance(x, Tensor):
        return x.data
    if isinstance(x, (bool, int, float, complex)) and not isinstance(x, np.generic):
        return x
    if isinstance(x, np.generic) and like is not None:
        return x.item()
    if backends.is_raw(x) or isinstance(x, np.generic):
        return backends.of(x).asarray(unmasked(op, x))
    raise fail(DTypeError, op, f"{type(x).__name__} is not an array; wrap it with gpugrad.tensor")


def unmasked(op: str, x: Any) -> Any:
    """x, unless it is an array of numpy.ma whose mask would be lost."""
    if hasattr(x, "mask") and np.ma.is_masked(x):
        raise fail(DTypeError, op, "a masked array would lose its mask; use its .filled(value)")
    return x


def scalar_array(x: Any) -> Any:
    """A lone Python scalar as a CPU array of the default type of its kind."""
    return np.asarray(x, get_default_dtype() if isinstance(x, float) else None)


def join(raws: list[Any]) -> list[Any]:
    """Bring the arrays of one call to their common dtype; Python scalars stay weak."""
    arrays = [a for a in raws if hasattr(a, "dtype")]
    if (level := top(arrays)) is not None:
        raws = [level.wrap(a) if hasattr(a, "dtype") and getattr(a, "level", None) is not level else a for a in raws]
    if not arrays:
        return [scalar_array(a) if isinstance(a, (bool, int, float, complex)) else a for a in raws]
    wanted = promote(*(a.dtype for a in arrays))
    if wanted.kind in "biu" and any(type(a) in (float, complex) for a in raws):
        wanted = get_default_dtype()  # a complex number beside it makes its complex type of it
    if wanted.kind == "V" and type(arrays[0]) is np.ndarray:  # NumPy has no weak scalars beside bfloat16
        raws = [np.asarray(a, wanted) if isinstance(a, (int, float)) else a for a in raws]
    return [a.astype(wanted) if hasattr(a, "dtype") and a.dtype != wanted else a for a in raws]


def alive(node: Node | None) -> Node | None:
    """The node if its graph can still be extended; a spent graph's values are plain numbers."""
    return None if node is None or node.spent is not None else node
