"""Making tensors, and asking about data types. The names and defaults are the Array API's."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import numpy as np

from gpugrad import backends, dtypes
from gpugrad.dtypes import get_default_dtype, promote
from gpugrad.errors import DomainError, DTypeError, NumberError, RangeError, ShapeError, describe, fail
from gpugrad.layered import constant
from gpugrad.op import RECORDING
from gpugrad.operands import explain_failure, unmasked
from gpugrad.ops._axes import whole
from gpugrad.ops.shape import astype as cast
from gpugrad.ops.shape import broadcast_to, lengths, operand, reshape, stack, to_device
from gpugrad.tensor import Tensor

__all__ = [
    "arange", "asarray", "astype", "can_cast", "empty", "empty_like", "eye", "finfo", "from_dlpack", "full",
    "full_like", "get_default_device", "iinfo", "isdtype", "linspace", "meshgrid", "ones", "ones_like", "result_type",
    "set_default_device", "tensor", "zeros", "zeros_like",
]  # fmt: skip

_device = ["cpu"]
KINDS = {
    "bool": "b", "signed integer": "i", "unsigned integer": "u", "integral": "iu", "real floating": "f",
    "complex floating": "c", "numeric": "iufc",
}  # fmt: skip
CUDA_MEMORY = (2, 13)  # DLPack's device types: CUDA, CUDA managed
KNOWN = frozenset(v for v in vars(dtypes).values() if isinstance(v, np.dtype))


def get_default_device() -> str:
    """The device that creation functions use when none is named ('cpu' unless set)."""
    return _device[0]


def set_default_device(device: str) -> None:
    """Set the device of creation functions. Raises DeviceError, with the reason, if it cannot be used."""
    backends.get(device)
    _device[0] = device


def dtype_of(dtype: Any, op: str) -> Any:
    """A dtype argument as a known data type. Raises DTypeError."""
    try:
        found = np.dtype(dtype if dtype is not None else "None")  # which NumPy would take for float64
    except TypeError:
        raise fail(DTypeError, op, f"{dtype!r} is not a data type") from None
    if found not in KNOWN and found.name != "bfloat16":
        raise fail(DTypeError, op, f"data type {found.str if not found.isnative else found} is not supported")
    return found


def default_complex() -> Any:
    """The complex type whose parts are of the default float type."""
    return promote(dtypes.complex64, get_default_dtype())


# --- from values ------------------------------------------------------------------------------------------


def tensor(data: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a copy of the data.

    data: a number, nested sequences, an array of any layout, or a Tensor (whose history is left behind). Arrays keep
    their dtype; Python floats take the default float type, integers int64, bools bool. Tensors inside a sequence are
    stacked, and stay differentiable. Raises ShapeError for ragged sequences, DTypeError for objects, strings, foreign
    byte order, or requires_grad on integers, DeviceError for a device that cannot be used.
    """
    if isinstance(data, Tensor):
        data = constant(data.data)
    made = _made(data, dtype, device, True, "tensor")
    return made.requires_grad_() if requires_grad and made.node is None else made


def asarray(obj: Any, dtype: Any = None, device: str | None = None, copy: bool | None = None) -> Tensor:
    """obj as a tensor, sharing its memory where dtype and device allow; a Tensor keeps its history.

    copy: True always copies, False raises ShapeError where a copy would be needed. Raises otherwise as `tensor`.
    """
    if not isinstance(obj, Tensor):
        return _made(obj, dtype, device, copy, "asarray")
    out = obj if dtype is None else cast(obj, dtype_of(dtype, "asarray"))
    out = out if device is None else to_device(out, device)
    if copy is False and out is not obj:
        raise fail(ShapeError, "asarray", f"{describe(obj)} on {obj.device} cannot be given without a copy")
    return RECORDING.astype(obj, dtype=obj.dtype) if copy and out is obj else out  # type: ignore[no-any-return]


def _made(data: Any, dtype: Any, device: str | None, copy: bool | None, op: str) -> Tensor:
    want = None if dtype is None else dtype_of(dtype, op)
    if isinstance(data, (list, tuple)) and _holds_tensor(data):
        out = stack([d if isinstance(d, Tensor) else _made(d, None, device, None, op) for d in data])
        out = out if want is None else cast(out, want)
        return out if device is None else to_device(out, device)  # type: ignore[no-any-return]
    values, place = unmasked(op, data), device
    if not backends.is_raw(data):
        try:
            values = np.asarray(data, want if want is not None and want.kind in "iu" and _is_whole(data) else None)
        except OverflowError as error:
            raise fail(NumberError, op, str(error)) from None
        except ValueError as error:
            raise fail(ShapeError, op, f"the sequence is ragged: {error}") from None
        if copy is False and isinstance(data, (bool, int, float, complex, list, tuple)):
            raise fail(ShapeError, op, f"a {type(data).__name__} cannot be given without a copy")
        if want is None and _is_weak(data):
            default = get_default_dtype()
            want = {"f": default, "c": default_complex(), "i": dtypes.int64}.get(values.dtype.kind)
    if values.dtype not in KNOWN and values.dtype.name != "bfloat16":
        hint = "; convert it with .astype(x.dtype.newbyteorder('='))" if not values.dtype.isnative else ""
        raise fail(DTypeError, op, f"data of type {values.dtype.str if hint else values.dtype} is not supported{hint}")
    source = backends.of(values)
    place = place or (
        source.device_of(values) if backends.is_raw(data) and source.name != "cpu" else get_default_device()
    )
    target = backends.get(place)
    if target is not source:
        if copy is False:
            raise fail(ShapeError, op, f"{describe(values)} cannot reach {place} without a copy")
        values = source.to_numpy(values)
    try:
        out = target.asarray(values, dtype=want, device=place, copy=copy)
    except ValueError as error:
        raise fail(ShapeError, op, f"{describe(values)}: {error}") from None
    return Tensor(out)


def _holds_tensor(data: Any) -> bool:
    return isinstance(data, Tensor) or (isinstance(data, (list, tuple)) and any(map(_holds_tensor, data)))


def _is_whole(data: Any) -> bool:
    """Whether data is Python integers and bools only, or sequences of them: they must fit an integer type asked for."""
    if isinstance(data, (list, tuple)):
        return all(map(_is_whole, data))
    return type(data) in (int, bool)


def _is_weak(data: Any) -> bool:
    """Whether data is numbers only, or sequences of them: no array whose dtype would have to be kept."""
    if isinstance(data, (list, tuple)):
        return all(map(_is_weak, data))
    return isinstance(data, (bool, int, float, complex)) and type(data).__module__ == "builtins"


def from_dlpack(x: Any, *, device: str | None = None, copy: bool | None = None) -> Tensor:
    """The array of another library through its `__dlpack__`: memory is shared, unless copied or moved.

    device: 'cpu' or 'cuda:N'. copy: True always copies, False raises BufferError where the exporter must. A Tensor is
    taken without its history. Raises DTypeError for an object without the protocol, or of an unknown data type.
    """
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise fail(DTypeError, "from_dlpack", f"{type(x).__name__} does not export DLPack")
    x = x.data if isinstance(x, Tensor) else x
    source = backends.get("cuda" if x.__dlpack_device__()[0] in CUDA_MEMORY else "cpu")
    values = source.xp.from_dlpack(x)
    elsewhere = device is not None and source.device_of(values) != device
    if copy is False and elsewhere:
        raise BufferError(f"[from_dlpack] {describe(values)} cannot reach {device} without a copy")
    return _made(values, None, device, None if elsewhere else copy, "from_dlpack")


# --- from a shape or a range ------------------------------------------------------------------------------


def _new(name: str, shape: Any, dtype: Any, device: str | None, *args: Any, op: str = "") -> Tensor:
    """The array module's creation function of this name, on a device."""
    place = device or get_default_device()
    backend, want = backends.get(place), get_default_dtype() if dtype is None else dtype_of(dtype, op or name)
    dims = lengths(shape, op or name)
    try:
        with backend.scope(place):
            return Tensor(getattr(backend.xp, name)(dims, *args, dtype=want))
    except (OverflowError, ValueError, MemoryError) as error:
        raise explain_failure(op or name, error, (), {"shape": dims}) from None


def zeros(shape: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """Zeros, of the default float type unless told otherwise."""
    return _new("zeros", shape, dtype, device)


def ones(shape: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """Ones, of the default float type unless told otherwise."""
    return _new("ones", shape, dtype, device)


def empty(shape: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """Memory with arbitrary contents, of the default float type unless told otherwise."""
    return _new("empty", shape, dtype, device)


def full(shape: Any, fill_value: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """One value everywhere: bool gives bool, int int64, float or complex the default; a Tensor stays differentiable."""
    if isinstance(fill_value, Tensor):
        value = fill_value if dtype is None else cast(fill_value, dtype_of(dtype, "full"))
        value = value if device is None else to_device(value, device)
        return value * _new("ones", shape, value.dtype, value.device, op="full")
    if dtype is None:
        dtype = np.asarray(fill_value).dtype
        dtype = {"f": get_default_dtype(), "c": default_complex()}.get(dtype.kind, dtype)
    return _new("full", shape, dtype, device, fill_value)


def _like(x: Any, dtype: Any, device: str | None) -> tuple[Any, Any, str]:
    x = operand(x, "like")
    return x.shape, x.dtype if dtype is None else dtype, device or x.device


def zeros_like(x: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """Zeros of x's shape, dtype and device, unless told otherwise."""
    return zeros(*_like(x, dtype, device))


def ones_like(x: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """Ones of x's shape, dtype and device, unless told otherwise."""
    return ones(*_like(x, dtype, device))


def empty_like(x: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """Memory with arbitrary contents, of x's shape, dtype and device, unless told otherwise."""
    return empty(*_like(x, dtype, device))


def full_like(x: Any, fill_value: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """One value everywhere, in x's shape, dtype and device, unless told otherwise."""
    shape, dtype, device = _like(x, dtype, device)
    return full(shape, fill_value, dtype, device)


def _ranged(values: Any, whole: bool, dtype: Any, device: str | None, op: str) -> Tensor:
    """Host numbers, exact or in double precision, as a tensor of integers or of the default float type."""
    default = {"c": default_complex()}.get(values.dtype.kind, dtypes.int64 if whole else get_default_dtype())
    want = default if dtype is None else dtype_of(dtype, op)
    place = device or get_default_device()
    return Tensor(backends.get(place).asarray(values.astype(want, copy=False), device=place))


def arange(start: Any, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """start, start + step, ... below stop (from 0 with one argument): int64, or the default float if one is a float.

    Integers are exact, others computed in double precision. Raises RangeError for step 0.
    """
    start, stop = (0, start) if stop is None else (start, stop)
    if step == 0:
        raise fail(RangeError, "arange", "step is 0")
    if not all(isinstance(v, (int, np.integer)) for v in (start, stop, step)):
        if not all(map(math.isfinite, (start, stop, step))):
            raise fail(DomainError, "arange", f"start {start}, stop {stop} and step {step} must be finite")
        return _ranged(np.arange(start, stop, step), False, dtype, device, "arange")
    if max(abs(start), abs(stop), abs(step)) < 2**53:  # NumPy computes the length in double precision
        return _ranged(np.arange(start, stop, step), True, dtype, device, "arange")
    counts = np.arange(len(range(start, stop, step)), dtype="uint64")
    values = counts * np.uint64(step % 2**64) + np.uint64(start % 2**64)  # modulo 2^64, in which a sign is no matter
    return _ranged(values if max(start, stop) >= 2**63 else values.view("int64"), True, dtype, device, "arange")


def linspace(
    start: complex, stop: complex, num: int, *, dtype: Any = None, device: str | None = None, endpoint: bool = True
) -> Tensor:
    """num evenly spaced values from start to stop (left out if endpoint=False), in double precision, then cast.

    Of an integer dtype they are rounded down, exactly so from integers.
    """
    if whole(num, "linspace", "num") < 0:
        raise fail(ShapeError, "linspace", f"num is {num}; expected at least 0")
    if dtype is None or (want := dtype_of(dtype, "linspace")).kind not in "iu":
        return _ranged(np.linspace(start, stop, num, endpoint=endpoint), False, dtype, device, "linspace")
    if isinstance(start, int) and isinstance(stop, int):
        parts = max(num - endpoint, 1)
        values = np.asarray([start + (stop - start) * i // parts for i in range(num)], want)
    else:
        values = np.floor(np.linspace(start, stop, num, endpoint=endpoint))
    return _ranged(values, False, want, device, "linspace")


def eye(n_rows: int, n_cols: int | None = None, *, k: int = 0, dtype: Any = None, device: str | None = None) -> Tensor:
    """Ones on diagonal k, zeros elsewhere."""
    place = device or get_default_device()
    backend = backends.get(place)
    with backend.scope(place):
        want = get_default_dtype() if dtype is None else dtype_of(dtype, "eye")
        rows, cols = lengths((n_rows, n_rows if n_cols is None else n_cols), "eye")
        k = max(-rows, min(k, cols))  # a diagonal beyond the corner is empty
        return Tensor(backend.xp.eye(rows, cols, k=k, dtype=want))


def meshgrid(*xs: Any, indexing: str = "xy") -> list[Any]:
    """Coordinate arrays from 1-d axes; 'xy' exchanges the first two axes of the result, 'ij' does not."""
    if indexing not in ("xy", "ij"):
        raise fail(RangeError, "meshgrid", f"indexing is {indexing!r}; expected 'xy' or 'ij'")
    given = [operand(x, "meshgrid") for x in xs]
    if any(x.ndim != 1 for x in given):
        raise fail(ShapeError, "meshgrid", f"expected 1-d arrays, not {', '.join(map(describe, given))}")
    order = list(range(len(given)))
    if indexing == "xy":
        order[:2] = order[:2][::-1]  # its own inverse
    shape = [given[i].size for i in order]
    return [broadcast_to(reshape(x, [-1 if i == n else 1 for i in order]), shape) for n, x in enumerate(given)]


# --- data types -------------------------------------------------------------------------------------------


def _as_dtype(x: Any, op: str) -> Any:
    return (
        x.dtype
        if hasattr(x, "dtype") and hasattr(x, "shape") and not isinstance(x, (np.dtype, type))
        else dtype_of(x, op)
    )


def result_type(*xs: Any) -> Any:
    """The dtype that arrays, dtypes and Python numbers combine to: an integer beside a float32 gives float32."""
    numbers = [x for x in xs if isinstance(x, (bool, int, float, complex)) and not isinstance(x, np.generic)]
    found = [_as_dtype(x, "result_type") for x in xs if not any(x is n for n in numbers)]
    if not found:
        raise fail(DTypeError, "result_type", "at least one array or data type is needed")
    out = promote(*found)
    for n in numbers:
        if isinstance(n, complex):
            out = promote(out, dtypes.complex64)
        elif isinstance(n, float) and out.kind in "biu":
            out = get_default_dtype()
        elif type(n) is int and out.kind == "b":
            out = dtypes.int64
    return out


def can_cast(from_: Any, to: Any) -> bool:
    """Whether promotion takes `from_` (an array or dtype) to `to` without loss: integers do not cast to floats."""
    source, target = _as_dtype(from_, "can_cast"), dtype_of(to, "can_cast")
    return bool(np.can_cast(source, target)) and (source.kind not in "iu" or target.kind in "iu")


@dataclasses.dataclass(frozen=True)
class FloatLimits:
    """What `finfo` tells of a floating type, as Python numbers; of a complex type it tells of the parts."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: Any

    @property
    def tiny(self) -> float:
        """NumPy's name of smallest_normal."""
        return self.smallest_normal


@dataclasses.dataclass(frozen=True)
class IntegerLimits:
    """What `iinfo` tells of an integer type, as Python integers."""

    bits: int
    max: int
    min: int
    dtype: Any


def finfo(type: Any) -> FloatLimits:
    """Floating-point limits (bits, eps, max, min, smallest_normal, dtype) of a dtype or an array's dtype.

    Raises DTypeError for a type that is not floating.
    """
    found = _as_dtype(type, "finfo")
    if not (dtypes.is_float(found) or found.kind == "c"):
        raise fail(DTypeError, "finfo", f"{found} is not a floating-point data type")
    limits: Any = getattr(sys.modules[found.type.__module__], "finfo", np.finfo)(found)  # bfloat16 brings its own
    eps, high, low, smallest = (float(v) for v in (limits.eps, limits.max, limits.min, limits.smallest_normal))
    return FloatLimits(int(limits.bits), eps, high, low, smallest, np.dtype(limits.dtype))


def iinfo(type: Any) -> IntegerLimits:
    """Integer limits (bits, max, min, dtype) of a dtype or an array's dtype. Raises DTypeError for any other type."""
    found = _as_dtype(type, "iinfo")
    if found.kind not in "iu":
        raise fail(DTypeError, "iinfo", f"{found} is not an integer data type")
    limits = np.iinfo(found)
    return IntegerLimits(int(limits.bits), int(limits.max), int(limits.min), found)


def astype(x: Any, dtype: Any, *, copy: bool = True, device: str | None = None) -> Any:
    """x in another dtype, and on another device if one is named. Gradients are cast back; integers are constants.

    copy: False gives x itself where nothing changes. Raises DTypeError for complex numbers to real ones: take `real`.
    """
    x, want = operand(x, "astype"), dtype_of(dtype, "astype")
    if x.dtype.kind == "c" and want.kind in "fiu":
        raise fail(DTypeError, "astype", f"{describe(x)} to {want} would lose the imaginary part; use real or imag")
    out = cast(x, want) if device is None else to_device(cast(x, want), device)
    return RECORDING.astype(x, dtype=want) if copy and out is x else out


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether a dtype is of a kind: a dtype, an Array API kind such as 'real floating', or a tuple of those."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    found = dtype_of(dtype, "isdtype")
    if isinstance(kind, str) and kind in KINDS:
        return found.kind in KINDS[kind] or (found.name == "bfloat16" and kind in ("real floating", "numeric"))
    return bool(found == dtype_of(kind, "isdtype"))
