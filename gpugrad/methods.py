"""What a Tensor can do beyond its slots: operators and methods from the op table, conversions, repr."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from gpugrad import backends, transforms
from gpugrad.errors import DeviceError, DomainError, DTypeError, GraphError, ShapeError, describe, fail, locate
from gpugrad.layered import LAYERS, Layered, innermost, top
from gpugrad.op import TABLE, binary
from gpugrad.operands import explain_failure
from gpugrad.ops import creation
from gpugrad.ops.index import At, assign, fill, getitem, parse
from gpugrad.ops.shape import astype, matrix_transpose, transpose
from gpugrad.ops.shape import to_device as moved
from gpugrad.state import Handle, mode, next_seq, writes
from gpugrad.tensor import Node, Tensor

OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift", "pow": "pow",
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
    "neg": "negative", "pos": "positive", "abs": "abs", "invert": "bitwise_invert",
}  # fmt: skip
REFLECTED = frozenset({"add", "sub", "mul", "truediv", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift"})
NOT_METHODS = frozenset(
    {"broadcast_arrays", "broadcast_shapes", "can_cast", "concat", "einsum", "finfo", "iinfo", "isdtype", "meshgrid",
     "result_type", "searchsorted", "stack", "where"}
)  # fmt: skip


API_VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12")


def guarded(fn: Any) -> Any:
    """Equality that leaves strangers (None, strings) to Python, which answers by identity."""

    def compare(self: Tensor, other: Any) -> Any:
        known = isinstance(other, (Tensor, bool, int, float, complex, np.generic)) or backends.is_raw(other)
        return fn(self, other) if known else NotImplemented

    return compare


def attach(families: list[ModuleType]) -> None:
    """Give Tensor the operators, and every public function of these op families as a method of the same name."""
    for family in families:
        for name in family.__all__:
            if name not in NOT_METHODS and not hasattr(Tensor, name) and callable(getattr(family, name)):
                setattr(Tensor, name, getattr(family, name))
    public = {name: getattr(family, name) for family in families for name in family.__all__}
    for dunder, name in OPERATORS.items():
        if name not in public:
            continue
        fn = public[name]
        setattr(Tensor, f"__{dunder}__", guarded(fn) if dunder in ("eq", "ne") else fn)
        if dunder in REFLECTED:
            setattr(Tensor, f"__r{dunder}__", binary(TABLE[name], fn.floating, reflected=True))
        elif dunder in ("pow", "matmul"):
            setattr(Tensor, f"__r{dunder}__", lambda self, other, fn=fn: fn(other, self))


def method(fn: Any) -> Any:
    """Put a function on Tensor under its own name."""
    setattr(Tensor, fn.__name__, fn)
    return fn


Tensor.backward = transforms.backward  # type: ignore[attr-defined]


@method
def zero_grad(self: Tensor) -> None:
    """Forget the accumulated gradient."""
    if self.node is not None:
        self.grad = None


@method
def retain_grad(self: Tensor) -> None:
    """Keep the gradient of a computed tensor in `.grad` at the next backward."""
    if self.node is None:
        raise fail(GraphError, "retain_grad", "this tensor does not require gradients")
    if self.node.op is not None:
        self.node.grad, Node.observed = self.grad, True


@method
def register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Handle:
    """Call `hook(gradient)` when this tensor's gradient is complete; a returned tensor replaces it.

    Hooks run in order of registration. Returns a handle with `remove()`. Raises GraphError for a constant.
    """
    if self.node is None:
        raise fail(GraphError, "register_hook", "this tensor does not require gradients")
    if not hasattr(self.node, "hooks"):
        self.node.hooks, Node.observed = {}, True

    def run(g: Tensor) -> Tensor | None:
        new = hook(g)
        if new is not None and not isinstance(new, Tensor):
            kind = type(new).__name__
            raise fail(DTypeError, "hook", f"a gradient hook returned {kind}, expected a Tensor or None")
        return new

    key = next_seq()
    self.node.hooks[key] = run
    return Handle(self.node.hooks, key)


def on_host(self: Tensor) -> Any:
    """The values in host memory. Every read goes this way: the backend also raises what kernels have reported."""
    return backends.of(self.data).to_numpy(self.data)


@method
def numpy(self: Tensor, copy: bool = False) -> Any:
    """The values as a NumPy array; waits for a GPU. Without copy, a CPU tensor gives a read-only view."""
    values = on_host(self)
    if copy:
        return np.array(values)
    view = values.view()
    view.flags.writeable = False
    return view


@method
def item(self: Tensor) -> Any:
    """The single element as a Python number; waits for a GPU. Raises ShapeError for any other size."""
    if self.data.size != 1:
        raise fail(ShapeError, "item", f"{describe(self)} has {self.data.size} elements, expected one")
    return on_host(self).item()


@method
def tolist(self: Tensor) -> Any:
    """Nested Python lists of the values."""
    return on_host(self).tolist()


@method
def to(
    self: Tensor, target: Any = None, *, device: str | None = None, dtype: Any = None, non_blocking: bool = False
) -> Tensor:
    """This tensor on another device or in another dtype; itself when nothing changes. Differentiable.

    target: a device name ('cpu', 'cuda', 'cuda:1') or a dtype. non_blocking: go on while the current stream copies
    between a GPU and `pin_memory()`: do not change the source, or read the values on the host, before the stream got
    there (`synchronize`). Raises DeviceError for an unusable device.
    """
    if isinstance(target, str) and target.partition(":")[0] in ("cpu", "cuda"):
        device = target
    elif isinstance(target, (str, type, np.dtype)):
        dtype = target
    elif target is not None:
        raise fail(DTypeError, "to", f"{target!r} is neither a device nor a data type")
    out = self if dtype is None else astype(self, dtype)
    return out if device is None else moved(out, device, **({"non_blocking": True} if non_blocking else {}))


@method
def to_device(self: Tensor, device: str, /, *, stream: Any = None) -> Tensor:
    """This tensor on another device; itself if it is there. Raises GraphError for a stream: the current one is used."""
    if stream is not None:
        raise fail(DeviceError, "to_device", "copies run on the current stream; make yours current instead")
    return moved(self, device)  # type: ignore[no-any-return]


@method
def cpu(self: Tensor) -> Tensor:
    """This tensor in host memory."""
    return to(self, device="cpu")  # type: ignore[no-any-return]


@method
def cuda(self: Tensor, index: int = 0) -> Tensor:
    """This tensor on GPU `index`."""
    return to(self, device=f"cuda:{index}")  # type: ignore[no-any-return]


@method
def __len__(self: Tensor) -> int:
    if not self.shape:
        raise TypeError("[len] a 0-d tensor has no length")
    return self.shape[0]


@method
def __iter__(self: Tensor) -> Iterator[Tensor]:
    if not self.shape:
        raise TypeError("[iter] a 0-d tensor cannot be iterated")
    return (self[i] for i in range(self.shape[0]))


@method
def __contains__(self: Tensor, value: Any) -> bool:
    return bool(on_host(Tensor((self.data == (value.data if isinstance(value, Tensor) else value)).any())))


def _convert(name: str, kind: Any) -> None:
    def convert(self: Tensor) -> Any:
        if self.data.size != 1:
            hint = "; use .any() or .all()" if kind is bool else ""
            raise fail(ShapeError, name, f"{describe(self)} has more or fewer than one element{hint}")
        return kind(on_host(self).item())

    convert.__name__ = f"__{name}__"
    method(convert)


for _name, _kind in (("bool", bool), ("int", int), ("float", float), ("complex", complex), ("index", operator.index)):
    _convert(_name, _kind)


@method
def __array__(self: Tensor, dtype: Any = None, copy: bool | None = None) -> Any:
    """NumPy's conversion protocol: CPU tensors only, because a hidden copy from a GPU would be slow.

    Refused where it would cut a gradient short, which NumPy's functions would otherwise do in silence.
    """
    if mode.enabled and self.node is not None and self.node.spent is None:
        raise fail(
            GraphError, "numpy.asarray",
            f"{describe(self)} is part of a graph, which NumPy would cut; join with np.stack, or .detach() first",
        )  # fmt: skip
    if self.device != "cpu":
        raise fail(
            DeviceError, "numpy.asarray", f"the tensor is on {self.device}; call .numpy() to copy it to the host"
        )
    return np.array(on_host(self), dtype=dtype, copy=copy)


@method
def __array_namespace__(self: Tensor, *, api_version: str | None = None) -> ModuleType:
    """The Array API namespace, which is this package. Raises DomainError for a version it does not follow."""
    if api_version not in (None, *API_VERSIONS):
        raise fail(DomainError, "__array_namespace__", f"version {api_version!r}; expected {', '.join(API_VERSIONS)}")
    return sys.modules[__package__]


@method
def __dlpack__(
    self: Tensor, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
) -> Any:
    """A DLPack capsule of the values, which the importer shares (`numpy.from_dlpack(t)`); without history.

    Raises GraphError for a tensor with gradients: detach it, so that no write or result is lost from the graph.
    """
    if self.node is not None:
        raise fail(GraphError, "__dlpack__", "a tensor that requires gradients cannot be exported; use x.detach()")
    wishes = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
    return self.data.__dlpack__(**{k: v for k, v in wishes.items() if v is not None})


@method
def __dlpack_device__(self: Tensor) -> tuple[int, int]:
    """DLPack's numbers of the device type (1: CPU, 2: CUDA) and the device."""
    return self.data.__dlpack_device__()  # type: ignore[no-any-return]


def _cuda_array_interface(self: Tensor) -> Any:
    """Where a CUDA tensor's values are, for libraries that share device memory this way.

    Raises AttributeError on the CPU, so that `hasattr` is False there; GraphError for a tensor with gradients.
    """
    if self.device == "cpu":
        raise AttributeError("[__cuda_array_interface__] the tensor is on the cpu")
    if self.node is not None:
        raise fail(GraphError, "__cuda_array_interface__", "a tensor with gradients cannot be exported; use x.detach()")
    return self.data.__cuda_array_interface__


Tensor.__cuda_array_interface__ = property(_cuda_array_interface)  # type: ignore[attr-defined]


@method
def __format__(self: Tensor, spec: str) -> str:
    return format(on_host(self).item(), spec) if spec and self.data.size == 1 else str(self)


@method
def __setitem__(self: Tensor, index: Any, value: Any) -> None:
    """Assign to elements.

    A constant is written in place (views see it; a graph that saved it reports it). Where gradients are recorded,
    `x[i] = v` rebinds x to `x.at[i].set(v)`: earlier values and views keep theirs. Raises GraphError when
    that would hide the write from x's base or overwrite a leaf that requires gradients.
    """
    if value is None:  # which NumPy takes for NaN
        raise fail(DTypeError, "setitem", "None is not a number or an array")
    tensors = [t for t in (self, value) if isinstance(t, Tensor)]
    layered = any(type(t.data) in LAYERS and not t.data.level.in_place for t in tensors)
    if not layered and (not mode.enabled or all(t.node is None for t in tensors)):
        template, arrays, _ = parse(self, index)
        raws = [self.data, value.data if isinstance(value, Tensor) else value, *(a.data for a in arrays)]
        try:
            if (level := top(raws)) is not None:
                self.data = self.data if isinstance(self.data, Layered) else level.wrap(self.data)
                level.run(assign.op, (self.data, *raws[1:]), {"index": template})  # type: ignore[attr-defined]
            else:
                self.data[fill(template, raws[2:])] = raws[1]
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise explain_failure("setitem", error, (self.data, value), {"index": index}) from None
        writes.note(innermost(self.data))
    elif self.node is not None and self.node.op is None:
        raise fail(
            GraphError, "setitem", "a leaf that requires gradients cannot be assigned to; use y = x.at[i].set(v)"
        )
    elif self.data.base is not None:
        raise fail(
            GraphError, "setitem", "this tensor is a view; a recorded write would not reach its base. Use .at[i].set(v)"
        )
    else:
        new = self.at[index].set(value)
        self.data, self.node = new.data, new.node


@method
def __repr__(self: Tensor) -> str:
    """Values (never fetched from a GPU above 1,000 elements), dtype, device, and the line that made it."""
    if self.device == "cpu" or self.size <= 1000:
        body = np.array2string(on_host(self), separator=", ", prefix="tensor(", threshold=1000)
    else:
        body = f"<shape {list(self.shape)}>"
    if not self.size and self.ndim != 1:
        body += f", shape={self.shape}"
    parts = [body, f"dtype={self.dtype}"] + ([] if self.device == "cpu" else [f"device={self.device}"])
    if self.node is not None and self.node.op is None:
        parts.append("requires_grad=True")
    elif self.node is not None:
        file, line, _ = locate(self.node.code, self.node.lasti)
        parts.append(
            f"from={self.node.op.name} at {file.rpartition('/')[2]}:{line}"
            + ("" if self.node.spent is None else ", spent")
        )
    return f"tensor({', '.join(parts)})"


@method
def __deepcopy__(self: Tensor, memo: dict[int, Any]) -> Tensor:
    """An independent leaf or constant with copied values. Raises GraphError for a computed tensor."""
    if not self.is_leaf:
        raise fail(GraphError, "deepcopy", "a computed tensor belongs to its graph; copy x.detach() instead")
    new = memo[id(self)] = Tensor(self.data.copy()).requires_grad_(self.requires_grad)
    if self.grad is not None:
        new.grad = Tensor(self.grad.data.copy())
    return new


@method
def __reduce__(self: Tensor) -> Any:
    """Pickle as values, device and whether it is differentiable; history is not carried."""
    return _restore, (numpy(self, copy=True), self.device, self.requires_grad and self.is_leaf)


def _restore(values: Any, device: str, requires_grad: bool) -> Tensor:
    return Tensor(backends.get(device).asarray(values, device=device)).requires_grad_(requires_grad)


Tensor.__getitem__ = getitem  # type: ignore[method-assign, assignment]
Tensor.at = property(At)  # type: ignore[attr-defined]
Tensor.T = property(lambda self: transpose(self) if self.ndim == 2 else _not_2d(self))  # type: ignore[attr-defined]
for _name, _what in (("nbytes", "Bytes of all elements."), ("itemsize", "Bytes of one element.")):
    setattr(Tensor, _name, property(functools.partial(lambda name, self: getattr(self.data, name), _name), doc=_what))
Tensor.astype = creation.astype  # type: ignore[attr-defined]
Tensor.mT = property(matrix_transpose)  # type: ignore[attr-defined]


def _not_2d(x: Tensor) -> Tensor:
    raise fail(ShapeError, "T", f"{describe(x)} has {x.ndim} axes, expected 2; use .mT or .permute")
