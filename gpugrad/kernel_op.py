"""Ops from CUDA C++ text: `cuda_op`. The text runs on a GPU, and on the CPU by the emulator or a NumPy twin."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.backends.launch import FLOATS, TYPES, Launch
from gpugrad.dtypes import get_default_dtype, is_float
from gpugrad.errors import DeviceError, DTypeError, GraphError, ShapeError, describe, fail
from gpugrad.function import Function
from gpugrad.kernel import ENTRY, Kernel, Parameter, signature, source_text
from gpugrad.layered import constant, top
from gpugrad.op import RECORDING
from gpugrad.ops.creation import asarray
from gpugrad.state import mode
from gpugrad.tensor import Tensor

C_TYPES = {c: np.dtype(name) for name, c in TYPES.items() if name != "bfloat16"}
SIZES = ("n", "rows", "columns")  # parameters that gpugrad fills in
# (filling of the outputs beforehand, order of the threads) of each run that has to give the same bits as the first
TRIALS: tuple[tuple[int, dict[str, Any], str], ...] = (
    (0xFF, {}, ""),
    (0x00, {}, "is not written"),
    (0xFF, {"schedule": "reversed", "reverse_blocks": True}, "depends on the order of the threads"),
    (0xFF, {"schedule": "random", "seed": 1}, "depends on the order of the threads"),
)

Shape = tuple[int, ...]


class Source:
    """What the text says: the kernels `name` and `name_bwd`, their parameters, and what each parameter is."""

    def __init__(self, text: str, name: str | None) -> None:
        found = [entry[1] for entry in ENTRY.finditer(text)]
        if name is None:
            forward = [n for n in found if not n.endswith("_bwd")]
            if len(forward) != 1:
                raise fail(DeviceError, "cuda_op", f"the source has the kernels {found}; say which with name=")
            name = forward[0]
        self.name, self.text = name, text
        code = source_text(text, name)
        self.forward = signature(code, name)
        self.backward = signature(code, f"{name}_bwd") if f"{name}_bwd" in found else []
        self.outputs = [p.name for p in self.forward if p.type.endswith("*") and not p.const]
        self.inputs = [p for p in self.forward if p.type.endswith("*") and p.const]
        self.scalars = [p.name for p in self.forward if not p.type.endswith("*") and p.name not in SIZES]
        if not self.outputs or not self.inputs:
            raise fail(DeviceError, name, "a kernel needs outputs (`T* out`) and inputs (`const T* x`)")
        places = [p.name for p in self.inputs]
        cotangents = ["t"] if len(self.outputs) == 1 else [f"t_{out}" for out in self.outputs]
        self.cotangents = dict(zip(cotangents, self.outputs))
        self.slopes = {p.name[1:]: p.name for p in self.backward if p.type.endswith("*") and not p.const}
        known = {*cotangents, *places, *self.outputs, *self.scalars, *SIZES, *(f"d{x}" for x in places)}
        strange = [p.name for p in self.backward if p.name not in known]
        if strange:
            raise fail(DeviceError, f"{name}_bwd", f"parameters {strange} are unknown; expected among {sorted(known)}")
        self.launches: dict[Any, tuple[Launch, Launch]] = {}
        self.checked: set[Any] = set()

    # --- running it -------------------------------------------------------------------------------------------

    def launch(self, like: Any, backward: bool) -> Launch:
        """The launch of a kernel for arrays of like's device; NumPy arrays go to the emulator."""
        backend = backends.of(like)
        if backend.name == "cpu":
            backend = emulated()
        if backend not in self.launches:
            names = (self.name, f"{self.name}_bwd")
            pair = tuple(Launch(backend, Kernel(self.name, n, None, self.text), None) for n in names)  # type: ignore[arg-type]
            self.launches[backend] = pair  # type: ignore[assignment]
        return self.launches[backend][backward]

    def run(self, backward: bool, lead: Any, values: dict[str, Any], shapes: dict[str, Shape]) -> list[Any]:
        """Launch a kernel and return its outputs, in order.

        lead: an array whose device and, for `T`, dtype all others share. values: arrays and numbers by name. shapes: of
        whatever the kernel writes, and of the forward's outputs, which the sizes are those of.
        """
        parameters, launch = self.backward if backward else self.forward, self.launch(lead, backward)
        host, kernel, xp = isinstance(lead, np.ndarray), launch.kernel.name, launch.xp
        first = shapes[self.outputs[0]]
        sizes = {"n": math.prod(first), "rows": math.prod(first[:-1]), "columns": first[-1] if first else 1}
        outs, args = [], []
        for p in parameters:
            if not p.type.endswith("*"):
                args.append({**values, **sizes}[p.name])
                continue
            dtype = lead.dtype if p.type == "T*" else self.fixed(p)
            if p.const:
                a = values[p.name].astype(dtype, copy=False)
                args.append(xp.ndarray(np.ascontiguousarray(a)) if host else a)
            else:
                outs.append(xp.empty(shapes[p.name], dtype))
                args.append(outs[-1])
        types = (lead.dtype,) if any(p.type in ("T*", "Acc<T>") for p in parameters) else ()
        if types and lead.dtype.name not in FLOATS:
            raise fail(DTypeError, self.name, f"there is no kernel for {lead.dtype}; expected {', '.join(FLOATS)}")
        rows = {p.name for p in parameters} >= {"rows", "columns"}

        def go() -> None:
            if rows:
                launch.rows(kernel, types, tuple(args), sizes["rows"], sizes["columns"])
            else:
                launch.map(kernel, types, tuple(args), sizes["n"])

        if host and (kernel, types) not in self.checked and sizes["n"]:
            self.try_out(kernel, launch, go, outs)
            self.checked.add((kernel, types))
        else:
            go()
        return [o._host for o in outs] if host else outs

    def fixed(self, p: Parameter) -> Any:
        """The dtype of a pointer parameter that is not T*."""
        if p.type[:-1] not in C_TYPES:
            raise fail(DTypeError, self.name, f"{p.name} is a {p.type}; expected T* or one of {', '.join(C_TYPES)}")
        return C_TYPES[p.type[:-1]]

    def try_out(self, kernel: str, launch: Launch, go: Callable[[], None], outs: list[Any]) -> None:
        """Run a kernel on the emulator under several schedules and from two fillings of its outputs.

        Raises DeviceError for an element that it does not write, and for a result that depends on the order of threads.
        """
        names = self.outputs if kernel == self.name else [f"d{x}" for x in self.slopes]
        first: list[Any] = []
        for fill, order, fault in TRIALS:
            for o in outs:
                o._host.reshape(-1).view(np.uint8).fill(fill)
            with launch.xp.scheduled(**order):
                go()
            first = first or [o._host.copy() for o in outs]
            for name, was, o in zip(names, first, outs):
                same = was.reshape(-1).view(np.uint8) == o._host.reshape(-1).view(np.uint8)
                if not same.all():
                    at = np.unravel_index(int((~same).argmax()) // was.itemsize, was.shape)
                    raise fail(DeviceError, kernel, f"element {[int(i) for i in at]} of {name} {fault}")


@functools.cache
def emulated() -> Any:
    """The CUDA backend on the emulator, beside the CPU backend. Raises DeviceError without a C++ compiler."""
    from gpugrad.backends import cuda
    from gpugrad.testing import emulator, fake_cupy

    if emulator.compiler() is None:
        raise fail(DeviceError, "cuda_op", "no C++ compiler to emulate the kernel with; install g++, or give cpu=")
    return cuda.load(fake_cupy)


def cuda_op(
    source: str, *, name: str | None = None, shape: Callable[..., Any] | None = None,
    cpu: Callable[..., Any] | None = None, via: Callable[..., Any] | None = None, check: bool = True,
) -> Callable[..., Any]:  # fmt: skip
    """A differentiable function from CUDA C++ text: the kernel `name` and, for its gradient, the kernel `name_bwd`.

    Parameter names say everything. In `name`, `const` pointers are the inputs, in the order of the call; other pointers
    the outputs; `n` the number of output elements, or `rows` and `columns` for a team of threads a row (see
    `kernels/common.cuh`, which the text may include); every other number is a keyword of the call. In `name_bwd`, `dx`
    is written for the input `x`; `t` is the cotangent (`t_y` for each output `y` of several); inputs, outputs and
    numbers of the forward may be read by their names, and only those are kept. `T` is the inputs' floating type, of a
    template `template <class T>`; other pointers have the dtype that they say.

    shape: of the output (or a tuple of shapes), from the inputs' shapes; by default inputs broadcast and the output has
    their shape. cpu: a NumPy function of the inputs in place of the emulator, which needs a C++ compiler. via: the
    gradients (t, *inputs) composed of gpugrad's functions, for second derivatives. check: compare the gradient with
    numeric ones at the first recorded call. On the CPU the first call of each kernel also runs under several thread
    schedules. Raises DeviceError for a text that does not fit, GraphError for a derivative that it does not have.
    """
    s = Source(source, name)
    read = {p.name for p in (s.backward if via is None else s.inputs)}

    def forward(ctx: Any, *tensors: Tensor, **scalars: Any) -> Any:
        given = {p.name: x for p, x in zip(s.inputs, tensors)}
        made = tensors[0].shape if shape is None else shape(*(x.shape for x in tensors))
        several = bool(made) and isinstance(made[0], (tuple, list))
        ctx.shapes = dict(zip(s.outputs, made if several else [made] * len(s.outputs)))
        ctx.shapes |= {f"d{k}": x.shape for k, x in given.items()}
        ctx.scalars, ctx.names = scalars, [*s.outputs, *given]
        raws = {k: constant(x.data) for k, x in given.items()}  # a tangent is pushed by `follow`
        if top(raws.values()) is not None:
            raise fail(GraphError, s.name, "vmap cannot run a kernel of yours; give it the batch as one more axis")
        if cpu is not None and isinstance(constant(tensors[0].data), np.ndarray):
            found = cpu(*raws.values(), **scalars)
        else:
            found = s.run(False, constant(leading(s, tensors)), {**raws, **scalars}, ctx.shapes)
        outs = tuple(Tensor(np.asarray(o) if isinstance(o, np.generic) else o)
                     for o in (found if isinstance(found, (tuple, list)) else (found,)))  # fmt: skip
        ctx.save_for_backward(*[v if k in read else None for k, v in zip(ctx.names, (*outs, *tensors))])
        return outs if len(outs) > 1 else outs[0]

    def backward(ctx: Any, *given: Tensor) -> Any:
        saved = {k: v for k, v in zip(ctx.names, ctx.saved_tensors) if v is not None}
        whole = (*given, *saved.values())
        if top([v.data for v in whole]) is not None or (mode.enabled and any(v.node is not None for v in whole)):
            if via is None:
                raise fail(GraphError, s.name, "this op has a first derivative only; give via= for higher ones and jvp")
            return via(*given, *(saved[p.name] for p in s.inputs), **ctx.scalars)
        if not s.backward:
            raise fail(GraphError, s.name, f"the source has no kernel {s.name}_bwd, so there is no gradient")
        values = {k: v.data for k, v in (*saved.items(), *zip(s.cotangents, given))}
        found = s.run(True, given[0].data, {**values, **ctx.scalars}, ctx.shapes)
        grads = dict(zip(s.slopes, found))
        return tuple(Tensor(grads[p.name]) if p.name in grads else None for p in s.inputs)

    body = {"check": check, "forward": staticmethod(forward), "backward": staticmethod(backward)}
    op_class: Any = type(s.name, (Function,), body)

    def call(*inputs: Any, **scalars: Any) -> Any:
        if len(inputs) != len(s.inputs) or set(scalars) != set(s.scalars):
            names = ", ".join([*(p.name for p in s.inputs), *(f"{k}=" for k in s.scalars)])
            raise fail(ShapeError, s.name, f"takes ({names}), got {len(inputs)} arrays and {sorted(scalars)}")
        return op_class.apply(*operands(s, inputs, broadcast=shape is None), **scalars)

    call.__name__ = call.__qualname__ = s.name
    call.__doc__ = f"The CUDA kernel {s.name}({', '.join(p.name for p in s.inputs)})."
    return call


def operands(s: Source, inputs: Sequence[Any], broadcast: bool) -> list[Tensor]:
    """The inputs as tensors on one device, those of type T of one floating dtype; of one shape, if they broadcast."""
    like = next((x for x in inputs if isinstance(x, Tensor)), None)
    device = "cpu" if like is None else like.device
    tensors = [x if isinstance(x, Tensor) else asarray(x, device=device) for x in inputs]
    floating = [i for i, p in enumerate(s.inputs) if p.type == "T*"]
    if floating:
        dtypes = [tensors[i].dtype for i in floating if is_float(tensors[i].dtype)]
        common = np.result_type(*dtypes) if dtypes else get_default_dtype()
        for i in floating:
            tensors[i] = tensors[i] if tensors[i].dtype == common else RECORDING.astype(tensors[i], dtype=common)
    if broadcast:
        try:
            to = np.broadcast_shapes(*(x.shape for x in tensors))
        except ValueError:
            shapes = ", ".join(map(describe, tensors))
            raise fail(
                ShapeError, s.name, f"{shapes}: the inputs do not broadcast; give shape= if they need not"
            ) from None
        tensors = [x if x.shape == to else RECORDING.broadcast_to(x, shape=to) for x in tensors]
    return tensors


def leading(s: Source, tensors: Sequence[Tensor]) -> Any:
    """The raw array that gives device and dtype: the first of type T, else the first."""
    return next((x for p, x in zip(s.inputs, tensors) if p.type == "T*"), tensors[0]).data
