"""Data types, the default floating type and the promotion rule (Array API table, plus integer with float)."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpugrad.errors import DTypeError, fail

bool_ = np.dtype("bool")
int8, int16, int32, int64 = (np.dtype(f"int{n}") for n in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (np.dtype(f"uint{n}") for n in (8, 16, 32, 64))
float16, float32, float64 = (np.dtype(f"float{n}") for n in (16, 32, 64))
complex64, complex128 = np.dtype("complex64"), np.dtype("complex128")

_default = [float32]


def get_default_dtype() -> Any:
    """The floating type of Python floats and of integer inputs to floating functions (float32 unless set)."""
    return _default[0]


def set_default_dtype(dtype: Any) -> None:
    """Set the default floating type to float32 or float64. Raises DTypeError for any other."""
    chosen = np.dtype(dtype)
    if dtype is None or chosen not in (float32, float64):  # NumPy takes None for float64
        message = f"{chosen if dtype is not None else None} cannot be the default; expected float32 or float64"
        raise fail(DTypeError, "set_default_dtype", message)
    _default[0] = chosen


def is_float(dtype: Any) -> bool:
    """Whether a dtype is a real floating type (bfloat16 of ml_dtypes included: NumPy calls its kind 'V')."""
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")


def promote(*dtypes: Any) -> Any:
    """The common type: as the Array API's table; an integer or bool beside a float takes the float's type.

    NumPy would make float64 of int64 with float32; here float32 stays float32.
    """
    floats = [d for d in dtypes if is_float(d) or d.kind == "c"]
    return np.result_type(*(floats or dtypes))
