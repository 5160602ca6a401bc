"""gpugrad: a tensor autograd engine for NumPy on the CPU and CuPy with its own CUDA kernels on NVIDIA GPUs.

The namespace follows the Array API standard, plus the autograd verbs. Importing it touches no device.
"""

from __future__ import annotations

import importlib as _importlib
from math import e, inf, nan, pi
from typing import TYPE_CHECKING
from typing import Any as _Any

# NumPy's scalar types, as in NumPy's namespace: np.dtype("float64") would be equal to None, np.float64 is not.
from numpy import (
    bool_,
    complex64,
    complex128,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)

from gpugrad import errors
from gpugrad import methods as _methods
from gpugrad import protocols as _protocols
from gpugrad.backends import is_available
from gpugrad.batching import vmap
from gpugrad.calculus import hessian, hvp, jacobian, linearize, stop_gradient, vjp
from gpugrad.check import gradcheck, gradgradcheck, numgrad
from gpugrad.checkpoint import checkpoint
from gpugrad.determinism import nondeterministic_ops
from gpugrad.devices import memory, release_memory, set_memory_limit, synchronize
from gpugrad.dtypes import get_default_dtype, set_default_dtype
from gpugrad.forward import jvp
from gpugrad.function import Function, custom_op
from gpugrad.held import memory_report
from gpugrad.kernel_op import cuda_op
from gpugrad.nans import detect_nan
from gpugrad.ops import activation as _activation
from gpugrad.ops import attention as _attention  # noqa: F401 - fills the table
from gpugrad.ops import conv as _conv  # noqa: F401 - fills the table
from gpugrad.ops import creation as _creation
from gpugrad.ops import elementwise as _elementwise
from gpugrad.ops import fft, linalg, random
from gpugrad.ops import guard as _guard
from gpugrad.ops import index as _index
from gpugrad.ops import loss as _loss  # noqa: F401 - fills the table
from gpugrad.ops import normalize as _normalize  # noqa: F401 - fills the table
from gpugrad.ops import reduce as _reduce
from gpugrad.ops import sets as _sets
from gpugrad.ops import shape as _shape
from gpugrad.ops import softmax as _softmax
from gpugrad.ops import special as _special
from gpugrad.ops.activation import *
from gpugrad.ops.creation import *
from gpugrad.ops.elementwise import *
from gpugrad.ops.guard import *
from gpugrad.ops.index import *
from gpugrad.ops.inspection import __array_namespace_info__
from gpugrad.ops.linalg import dot, einsum, matmul, outer, tensordot, vecdot
from gpugrad.ops.reduce import *
from gpugrad.ops.sets import *
from gpugrad.ops.shape import *
from gpugrad.ops.softmax import *
from gpugrad.ops.special import *
from gpugrad.precision import get_matmul_precision, matmul_precision, set_matmul_precision
from gpugrad.profile import profile
from gpugrad.replay import replay
from gpugrad.saved import save_on_cpu, saved_tensors_hooks
from gpugrad.state import enable_grad, is_grad_enabled, no_grad
from gpugrad.streams import Event, Stream, current_stream
from gpugrad.strict import set_strict_shapes, strict_shapes
from gpugrad.tensor import Tensor
from gpugrad.transforms import Tape, grad, gradients, value_and_grad

if TYPE_CHECKING:
    from gpugrad import data, losses, nn, optim, special

newaxis = None
bool = bool_
__array_api_version__ = "2024.12"
__version__ = "0.1.0"

__all__ = [
    "Event", "Function", "Stream", "Tape", "Tensor", "__array_api_version__", "__array_namespace_info__", "bool",
    "bool_", "checkpoint", "complex64", "complex128", "cuda_op", "current_stream", "custom_op", "data", "detect_nan",
    "dot", "e", "einsum", "enable_grad", "errors", "fft", "float16", "float32", "float64", "get_default_dtype",
    "get_matmul_precision", "grad", "gradcheck", "gradgradcheck", "gradients", "hessian", "hvp", "inf", "int8", "int16",
    "int32", "int64", "is_available", "is_grad_enabled", "jacobian", "jvp", "linalg", "linearize", "losses", "matmul",
    "matmul_precision", "memory", "memory_report", "nan", "newaxis", "nn", "no_grad", "nondeterministic_ops", "numgrad",
    "optim", "outer", "pi", "profile", "random", "release_memory", "replay", "save_on_cpu", "saved_tensors_hooks",
    "set_default_dtype", "set_matmul_precision", "set_memory_limit", "set_strict_shapes", "special", "stop_gradient",
    "strict_shapes", "synchronize", "tensordot", "uint8", "uint16", "uint32", "uint64", "value_and_grad", "vecdot",
    "vjp", "vmap",
]  # fmt: skip
__all__ += _activation.__all__
__all__ += _creation.__all__
__all__ += _elementwise.__all__
__all__ += _guard.__all__
__all__ += _index.__all__
__all__ += _reduce.__all__
__all__ += _sets.__all__
__all__ += _shape.__all__
__all__ += _softmax.__all__
__all__ += _special.__all__

_methods.attach([_elementwise, _activation, _reduce, _shape, _index, linalg, _softmax, _sets])

# imported at first use: `import gpugrad` stays cheap
_LAZY = frozenset({"data", "losses", "nn", "optim", "special"})


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return _importlib.import_module(f"{__name__}.{name}")
    return _protocols.namesake(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_protocols.offers("")})


_protocols.offer(linalg, "linalg.")
_protocols.offer(fft, "fft.")
