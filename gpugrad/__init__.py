"""gpugrad: a tensor autograd engine for NumPy on the CPU and CuPy with its own CUDA kernels on NVIDIA GPUs.

The namespace follows the Array API standard, plus the autograd verbs. Importing it touches no device.
"""

from __future__ import annotations

import importlib as _importlib
from typing import Any as _Any

from gpugrad import methods as _methods
from gpugrad.backends import is_available
from gpugrad.check import gradcheck, gradgradcheck, numgrad
from gpugrad.dtypes import (
    bool_,
    complex64,
    complex128,
    float16,
    float32,
    float64,
    get_default_dtype,
    int8,
    int16,
    int32,
    int64,
    set_default_dtype,
    uint8,
    uint16,
    uint32,
    uint64,
)
from gpugrad.ops import (
    activation,
    conv,
    creation,
    elementwise,
    index,
    linalg,
    loss,
    normalize,
    optim as _optim_ops,
    random,
    reduce,
    shape,
)
from gpugrad.ops.activation import *
from gpugrad.ops.creation import *
from gpugrad.ops.elementwise import *
from gpugrad.ops.index import *
from gpugrad.ops.linalg import dot, einsum, matmul, outer, tensordot, vecdot
from gpugrad.ops.reduce import *
from gpugrad.ops.shape import *
from gpugrad.state import enable_grad, is_grad_enabled, no_grad
from gpugrad.tensor import Tensor
from gpugrad.transforms import Tape, grad, gradients, value_and_grad

_methods.attach([elementwise, activation, reduce, shape, index, linalg])

__version__ = "0.1.0"

_LAZY = frozenset({"data", "optim"})  # subpackages imported at first use, which keeps `import gpugrad` cheap


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
