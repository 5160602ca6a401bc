"""Chains: runs of elementwise ops, computed piece by piece on the CPU, compiled for it, or as one CUDA kernel.

A `Chain` says what is computed, not where: values are numbered, first the input arrays, then one a step. All of them
broadcast to one shape, that of the outputs. `Chain.numpy` runs the ops' own NumPy code on pieces that stay in the
cache, so its bits are those of the ops one after the other. `source` is the same chain as C++ on the functors of
`kernels/functors.cuh`, of which an op finds its own by name: see `functor`.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from gpugrad import compiler
from gpugrad.backends.threads import portion, share
from gpugrad.kernel import find_kernels
from gpugrad.op import TABLE
from gpugrad.ops.random import chances
from gpugrad.swap import bare

TILE = 1 << 18  # elements of a piece on the NumPy path: of smaller ones threads would wait for Python's lock
DROPOUT = "dropout"  # the one step that needs the place of an element: its first operand has the common shape


@dataclass(frozen=True)
class Const:
    """A Python number among the operands of a step. Equal where it reads the same: 0.0 is neither -0.0 nor 0."""

    value: bool | int | float = field(compare=False)
    text: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", repr(self.value))


class Step(NamedTuple):
    """One op of a chain: an operand is the number of a value, a `Const`, or None where the op may go without."""

    op: str
    operands: tuple[int | Const | None, ...]
    attrs: tuple[tuple[str, Any], ...] = ()


class End(NamedTuple):
    """A reduction of value `operand` at the end of a chain, over its last `axes` axes: 'sum', 'mean' or 'max'."""

    op: str
    operand: int
    axes: int


@dataclass(frozen=True)
class Chain:
    """Elementwise steps on arrays that broadcast to one shape; `outputs` are the numbers of the values that leave it.

    Results come in this order: the outputs, each of the common shape, then the `ends`, each of what its axes leave.
    order: the axes as they follow one another in the memory of the outputs, where that is not their own order; `ends`
    are over the last of these. A chain with dropouts has none.
    """

    inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    ends: tuple[End, ...] = ()
    order: tuple[int, ...] = ()

    def __str__(self) -> str:
        names = [f"x{i}" for i in range(self.inputs)] + [f"v{i}" for i in range(len(self.steps))]

        def show(operand: Any) -> str:
            return names[operand] if type(operand) is int else getattr(operand, "text", "None")

        lines = []
        for name, step in zip(names[self.inputs :], self.steps):
            arguments = [*map(show, step.operands), *(f"{k}={v!r}" for k, v in step.attrs)]
            lines.append(f"{name} = {step.op}({', '.join(arguments)})")
        ends = [f"{e.op}({names[e.operand]}, last {e.axes})" for e in self.ends]
        return "\n".join([*lines, "return " + ", ".join([*(names[i] for i in self.outputs), *ends])])

    def dtypes(self, given: Sequence[Any]) -> list[np.dtype[Any]]:
        """The dtype of every value, from those of the inputs: what the ops give for arrays without elements."""
        return list(value_dtypes(self, tuple(map(np.dtype, given))))

    def last_uses(self) -> list[int]:
        """For every value the number of the last step that reads it; len(steps) if it leaves the chain."""
        last = [-1] * (self.inputs + len(self.steps))
        for i, step in enumerate(self.steps):
            for operand in step.operands:
                if type(operand) is int:
                    last[operand] = i
        for i in (*self.outputs, *(e.operand for e in self.ends)):
            last[i] = len(self.steps)
        return last

    def unordered(self, outs: Sequence[Any], ins: Sequence[Any]) -> tuple[Chain, list[Any], list[Any]]:
        """The same chain without an `order`, and its arrays (NumPy's) with their axes as that has them."""
        n, many = len(self.order), len(self.outputs)

        def turned(a: Any) -> Any:
            return a.reshape((1,) * (n - a.ndim) + a.shape).transpose(self.order)

        return replace(self, order=()), [*map(turned, outs[:many]), *outs[many:]], list(map(turned, ins))

    # --- NumPy ------------------------------------------------------------------------------------------------

    def numpy(self, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        """Compute into `outs` from `ins` (NumPy arrays), with the very bits that the ops would give one by one.

        An out may be the memory of an in.
        """
        if self.order:
            chain, outs, ins = self.unordered(outs, ins)
            chain.numpy(outs, ins)
            return
        given = [a.dtype for a in ins]
        shape = common_shape(self, ins)
        ins = [a.copy() if entangled(outs, a) else a for a in ins]
        wholes = [np.empty(shape, self.dtypes(given)[e.operand]) for e in self.ends]
        inner = replace(self, outputs=(*self.outputs, *(e.operand for e in self.ends)), ends=())
        run, drawn = numpy_runner(inner, tuple(given))
        places = [*outs[: len(self.outputs)], *wholes]
        masks = [draw(step, ins, shape) for step in drawn]
        apart = not any(np.may_share_memory(o, a) for o in places for a in ins)
        many, pieces = len(places), tiles(shape, [*places, *ins, *masks])
        share(lambda p: run(p[:many], p[many:], apart), pieces, math.prod(shape))
        for end, whole, out in zip(self.ends, wholes, outs[len(self.outputs) :]):
            axis = tuple(range(whole.ndim - end.axes, whole.ndim))
            out[...] = TABLE[end.op].impls[np.ndarray](whole, axis=axis, keepdims=False).reshape(out.shape)

    # --- compiled ---------------------------------------------------------------------------------------------

    def source(self, target: str, dtypes: Sequence[Any]) -> str | None:
        """The chain as C++ for target 'cpu' or 'cuda', its inputs of these dtypes; None if it cannot be compiled."""
        if target == "cpu":
            return host_source(self, dtypes)
        from gpugrad.chain_cuda import cuda_source

        return cuda_source(self, dtypes)

    def launch_cuda(self, outs: Sequence[Any], ins: Sequence[Any]) -> bool:
        """Compute into `outs` from `ins` by one CUDA kernel, compiled at its first use; False if there can be none.

        outs: contiguous arrays of the common shape, then those of the ends; all of one floating dtype, masks of bool
        apart. An out of the common shape may be the memory of an in of it. Half types are computed in float32. Ends are
        merged in an order that follows from the sizes alone.
        """
        from gpugrad.chain_cuda import launch_cuda

        return launch_cuda(self, outs, ins)

    def compile_cpu(self, dtypes: Sequence[Any]) -> Compiled | None:
        """The chain compiled for the CPU, or None; see `compile_many`."""
        return compile_many([(self, dtypes)])[0]


def order_of(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, ...] | None:
    """The axes of an array without gaps as they follow one another in memory, () if that is their own order.

    None where there are gaps, or no elements. Axes of length 1 come first.
    """

    def dense(axes: Sequence[int]) -> bool:
        expected = itemsize
        for i in reversed(axes):
            if shape[i] != 1 and strides[i] != expected:
                return False
            expected *= shape[i]
        return 0 not in shape

    found = sorted(range(len(shape)), key=lambda i: (shape[i] != 1, -strides[i]))
    return () if dense(range(len(shape))) else tuple(found) if dense(found) else None


def common_shape(chain: Chain, ins: Sequence[Any]) -> tuple[int, ...]:
    """What the inputs broadcast to, the counters of dropouts apart."""
    counters = {s.operands[1] for s in chain.steps if s.op == DROPOUT}
    return np.broadcast_shapes(*(a.shape for i, a in enumerate(ins) if i not in counters))


def entangled(outs: Sequence[Any], a: Any) -> bool:
    """Whether an out overlaps with an array other than element by element."""

    def place(x: Any) -> tuple[Any, ...]:
        return x.ctypes.data, x.shape, x.strides, x.itemsize

    return any(np.may_share_memory(o, a) and place(o) != place(a) for o in outs)


def draw(step: Step, ins: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """The elements of `shape` that a dropout step keeps."""
    attrs = dict(step.attrs)
    counter: Any = step.operands[1]
    return chances(np, ins[counter], attrs["key"], math.prod(shape), 1.0 - attrs["p"]).reshape(shape)


@functools.lru_cache(1024)
def value_dtypes(chain: Chain, given: tuple[np.dtype[Any], ...]) -> tuple[np.dtype[Any], ...]:
    """See `Chain.dtypes`. bfloat16, which NumPy has no rules for, follows those of float16."""
    if any(d.name == "bfloat16" for d in given):
        named = {np.dtype("float16"): next(d for d in given if d.name == "bfloat16")}
        like = value_dtypes(chain, tuple(np.dtype("float16") if d in named.values() else d for d in given))
        return tuple(named.get(d, d) for d in like)
    values: list[Any] = [np.empty((0,), d) for d in given]
    for step in chain.steps:
        if step.op == DROPOUT:  # its NumPy code reads the counter
            values.append(values[step.operands[0]])  # type: ignore[index]
        else:
            values.append(TABLE[step.op].impls[np.ndarray](*picked(values, step), **dict(step.attrs)))
    return tuple(v.dtype for v in values)


def picked(values: Sequence[Any], step: Step) -> list[Any]:
    """The operands of a step."""
    return [values[o] if type(o) is int else getattr(o, "value", None) for o in step.operands]


def tiles(shape: tuple[int, ...], arrays: Sequence[Any], size: int = TILE) -> Iterator[list[Any]]:
    """Pieces of about `size` elements of a shape, as views of arrays that broadcast to it."""
    tile = portion(math.prod(shape), size)
    if math.prod(shape) <= tile:
        yield list(arrays)
        return
    if all((a.shape == shape and a.flags.c_contiguous) or a.size == 1 for a in arrays):
        arrays = [a.reshape(-1) for a in arrays]
        shape = (math.prod(shape),)
    ndim, cut = len(shape), 0
    while cut < ndim - 1 and math.prod(shape[cut + 1 :]) >= tile:
        cut += 1
    step = -(-tile // max(1, math.prod(shape[cut + 1 :])))
    for lead in np.ndindex(*shape[:cut]):
        for start in range(0, shape[cut], step):
            yield [piece(a, ndim, (*lead, slice(start, start + step))) for a in arrays]


def piece(a: Any, ndim: int, index: tuple[Any, ...]) -> Any:
    """a[index] as if a had been broadcast to ndim axes; an axis of length 1 stays."""
    own = index[ndim - a.ndim :]
    return a[tuple([(0 if type(i) is int else slice(None)) if n == 1 else i for i, n in zip(own, a.shape)])]


Run = Callable[[Sequence[Any], Sequence[Any], bool], None]


@functools.lru_cache(1024)
def numpy_runner(chain: Chain, given: tuple[np.dtype[Any], ...]) -> tuple[Run, list[Step]]:
    """(a function of the pieces of outs and of ins, the steps whose masks follow the ins as bool arrays).

    A ufunc writes straight to its place among the outs, or over a value that a ufunc made and nobody reads again. What
    else reads a value may return it as its own.
    """
    dtypes, last = value_dtypes(chain, given), chain.last_uses()
    drawn = [s for s in chain.steps if s.op == DROPOUT]
    places = {v: k for k, v in reversed(list(enumerate(chain.outputs)))}
    plan: list[Any] = []
    made: set[int] = set()
    lent = {o for s in chain.steps if not isinstance(bare(TABLE[s.op].impls[np.ndarray]), np.ufunc) for o in s.operands}
    for i, step in enumerate(chain.steps):
        at, impl = chain.inputs + i, bare(TABLE[step.op].impls[np.ndarray])
        ends = [o for o in step.operands if type(o) is int and o >= chain.inputs and last[o] == i]
        over = next((o for o in ends if o in made - lent and dtypes[o] == dtypes[at]), None)
        if isinstance(impl, np.ufunc):
            made.add(at)
        plan.append((at, impl, isinstance(impl, np.ufunc), step, dict(step.attrs), ends, over))

    def run(outs: Sequence[Any], ins: Sequence[Any], apart: bool) -> None:
        values: list[Any] = [*ins[: chain.inputs], *[None] * len(chain.steps)]
        shape, masks = outs[0].shape, iter(ins[chain.inputs :])
        for at, impl, ufunc, step, attrs, ends, over in plan:
            operands = picked(values, step)
            if step.op == DROPOUT:
                values[at] = operands[0] * (next(masks) * drop_factor(attrs["p"], operands[0].dtype))
            elif not ufunc:
                values[at] = impl(*operands, **attrs)
            elif apart and at in places and np.broadcast_shapes(*map(np.shape, operands)) == shape:
                values[at] = impl(*operands, out=outs[places[at]])
            elif over is not None and type(values[over]) is np.ndarray and values[over].shape == shape:
                values[at] = impl(*operands, out=values[over])
            else:
                values[at] = impl(*operands)
            for o in ends:
                values[o] = None
        for out, v in zip(outs, chain.outputs):
            if values[v] is not out:
                out[...] = values[v]

    return run, drawn


def drop_factor(p: float, dtype: np.dtype[Any]) -> Any:
    """What dropout multiplies the kept elements by, as its NumPy code rounds it."""
    return dtype.type(1.0 / (1.0 - p) if p < 1.0 else 0.0)


# --- functors -------------------------------------------------------------------------------------------------

STRUCT = re.compile(r"^(?:struct (\w+)|using (\w+) = (\w+);)", re.M)
METHOD = re.compile(r"static __device__ __forceinline__ (A|bool) (value|back)\(([^)]*)\)")


class Functor(NamedTuple):
    """A function of `kernels/functors.cuh`: what calls it, how many values it takes, whether its result is a mask."""

    call: str
    operands: int
    options: bool
    mask: bool


@functools.cache
def functors() -> dict[str, Functor]:
    """Every function in `kernels/functors.cuh`, such as 'Gelu::back', read off the text."""
    text = (find_kernels() / "functors.cuh").read_text(encoding="utf-8")
    found: dict[str, Functor] = {}
    heads = list(STRUCT.finditer(text))
    for head, following in zip(heads, [*(h.start() for h in heads[1:]), len(text)]):
        name = head[1] or head[2]
        if head[3]:
            found.update(
                {f"{name}::{m}": found[f"{head[3]}::{m}"] for m in ("value", "back") if f"{head[3]}::{m}" in found}
            )
        for method in METHOD.finditer(text, head.start(), following):
            parameters = method[3].split(",")
            options = parameters[-1].split()[0] == "Options<A>"
            call = f"{name}::{method[2]}"
            found[call] = Functor(f"{call}<A>", len(parameters) - options, options, method[1] == "bool")
    return found


def functor(op: str, attrs: dict[str, Any]) -> tuple[Functor, tuple[float, ...]] | None:
    """The functor of an op with these attributes, and the numbers that it takes as options; None if there is none.

    Its name is the op's: `log_sigmoid` is LogSigmoid::value, `silu_bwd` is Silu::back, and an attribute that is a word
    other than 'none' comes last, so that `gelu` with approximate='tanh' is GeluTanh::value. Options are the
    attributes that are numbers, in the order of the op's parameters.
    """
    base, method = (op[:-4], "back") if op.endswith("_bwd") else (op, "value")
    words = [v for v in attrs.values() if isinstance(v, str) and v != "none"]
    found = functors().get("".join(w.capitalize() for w in "_".join([base, *words]).split("_")) + f"::{method}")
    if found is None or op not in TABLE:
        return None
    numbers = {k: v for k, v in attrs.items() if not isinstance(v, str)}
    if numbers:
        fwd = TABLE[op].fwd
        order = [k for k in inspect.signature(fwd).parameters if k in numbers] if callable(fwd) else []
        if (
            not found.options
            or len(order) != len(numbers)
            or not all(isinstance(v, (int, float)) for v in numbers.values())
        ):
            return None
        return found, tuple(numbers[k] for k in order)
    return found, ()


def fusable(op: str, attrs: dict[str, Any]) -> bool:
    """Whether an op may be a step of a chain that is compiled. On the NumPy path any elementwise op may."""
    return op == DROPOUT or functor(op, attrs) is not None


# --- source ---------------------------------------------------------------------------------------------------

C_TYPES = {np.dtype("float32"): "float", np.dtype("float64"): "double", np.dtype(bool): "bool"}
ENDINGS = ("sum", "mean", "max")


def real_type(chain: Chain, given: Sequence[Any]) -> np.dtype[Any] | None:
    """The one floating dtype that a chain computes in, or None where its values are not of one, masks apart."""
    counters = {s.operands[1] for s in chain.steps if s.op == DROPOUT}
    kinds = {d for i, d in enumerate(chain.dtypes(given)) if i not in counters and d.kind != "b"}
    return kinds.pop() if len(kinds) == 1 else None


def body(chain: Chain, given: Sequence[Any]) -> list[str] | None:
    """The steps as C++ statements on x0.., the inputs, and m0.., the factors of dropouts; None without a functor."""
    dtypes, lines, masks = chain.dtypes(given), [], 0

    def value(operand: Any) -> str:
        if type(operand) is int:
            return f"x{operand}" if operand < chain.inputs else f"v{operand - chain.inputs}"
        number = float(operand.value)
        special = "GG_NAN" if number != number else "GG_INFINITY" if number > 0 else "-GG_INFINITY"
        return f"A({number!r})" if math.isfinite(number) else f"A({special})"

    for i, step in enumerate(chain.steps):
        dtype = dtypes[chain.inputs + i]
        if step.op == DROPOUT:
            lines.append(f"A v{i} = {value(step.operands[0])} * m{masks};")
            masks += 1
            continue
        found = functor(step.op, dict(step.attrs))
        if found is None or found[0].operands != len(step.operands) or None in step.operands:
            return None
        if found[0].mask != (dtype.kind == "b"):
            return None
        operands = [value(o) for o in step.operands]
        if found[0].options:
            operands.append(f"Options<A>{{{', '.join(f'A({float(n)!r})' for n in (*found[1], 0, 0, 0)[:3])}}}")
        lines.append(f"{'bool' if found[0].mask else 'A'} v{i} = {found[0].call}({', '.join(operands)});")
    return lines


def host_source(chain: Chain, given: Sequence[Any]) -> str | None:
    """A chain as a C++ function `NAME(job, masks)` on kernels/host/loops.h, or None if it cannot be compiled.

    Every value is loaded before a result of the same place is stored, so an output may be the memory of an input.
    """
    dtype, lines = real_type(chain, given), body(chain, given)
    dtypes = chain.dtypes(given)
    counters = {s.operands[1] for s in chain.steps if s.op == DROPOUT}
    if dtype is None or dtype.name not in ("float32", "float64") or lines is None:
        return None
    outs, drops = len(chain.outputs), sum(s.op == DROPOUT for s in chain.steps)
    names = [f"x{v}" if v < chain.inputs else f"v{v - chain.inputs}" for v in range(len(dtypes))]
    before, loads, stores = [], [], []

    def pointer(k: int, name: str, kind: str) -> None:
        before.append(f"{kind}* p_{name} = reinterpret_cast<{kind}*>(p[{k}]);")

    for k, v in enumerate(chain.outputs):
        pointer(k, f"out{k}", C_TYPES[dtypes[v]])
        stores.append(f"p_out{k}[i] = {names[v]};")
    for k in range(chain.inputs):
        if k not in counters:
            kind = C_TYPES[dtypes[k]]
            pointer(outs + k, f"x{k}", f"const {kind}")
            loads.append(f"{kind} x{k} = p_x{k}[i];")
    for k in range(drops):
        pointer(outs + chain.inputs + k, f"m{k}", "const A")
        loads.append(f"A m{k} = p_m{k}[i];")
    for k, end in enumerate(chain.ends):
        if dtypes[end.operand] != dtype or end.op not in ENDINGS:
            return None
        pointer(outs + chain.inputs + drops + k, f"end{k}", "A")
        stores.append(f"p_end{k}[i] = {names[end.operand]};")
    operands = outs + chain.inputs + drops + len(chain.ends)
    ends = ", ".join([*(e.op.upper() for e in chain.ends), "SUM"])
    inside = "\n            ".join([*loads, *lines, *stores])
    ahead = "\n        ".join(before)
    return f"""
GG_EXPORT void NAME(const Job* job, const Mask* masks) {{
    using A = {C_TYPES[dtype]};
    static constexpr End ends[] = {{{ends}}};
    run<A, {operands}, {outs}, {len(chain.ends)}>(job, masks, ends, [](long long n, char* const* p) {{
        {ahead}
#pragma omp simd
        for (long long i = 0; i < n; i++) {{
            {inside}
        }}
    }});
}}
"""


# --- compiled for the CPU -------------------------------------------------------------------------------------

DIMS = 8  # of kernels/host/loops.h, as is what follows
DIRECT, SPREAD, GATHERED, DRAWN, ENDED = range(5)


class Compiled:
    """A chain compiled for the CPU: `compiled(outs, ins)`, or `compiled.bind(outs, ins)`, a call without arguments."""

    def __init__(self, chain: Chain, given: Sequence[Any], function: Any) -> None:
        self.chain, self.given, self.function = chain, tuple(map(np.dtype, given)), function
        self.dtypes = chain.dtypes(given)
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p), None

    def __call__(self, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        """As `Chain.numpy`, within 4 units in the last place a step: the same arrays, dtypes those compiled for."""
        self.bind(outs, ins)()

    def bind(self, outs: Sequence[Any], ins: Sequence[Any]) -> Callable[[], None]:
        """The call on these arrays, whose memory it reads and writes whenever it is made; about a microsecond.

        outs: arrays of the common shape, contiguous in the chain's order, then C-contiguous ones of the ends' results.
        An out may be the memory of an in.
        """
        chain, many = self.chain, len(self.chain.outputs)
        if chain.order:
            chain, outs, ins = chain.unordered(outs, ins)
        shape = common_shape(chain, ins)
        wanted = [self.dtypes[v] for v in (*chain.outputs, *(e.operand for e in chain.ends))]
        if [a.dtype for a in ins] != list(self.given) or [o.dtype for o in outs] != wanted:
            got = [a.dtype.name for a in (*ins, *outs)]
            raise TypeError(f"[chain] compiled for {[d.name for d in (*self.given, *wanted)]}, got {got}")
        if not all(o.flags.c_contiguous and o.flags.writeable for o in outs) or any(
            o.shape != shape for o in outs[:many]
        ):
            raise ValueError(f"[chain] expected contiguous outputs of shape {shape}, got {[o.shape for o in outs]}")
        spans = {math.prod(shape[len(shape) - e.axes :]) for e in chain.ends}
        axes = merged(shape, ins)
        n = math.prod(shape)
        if n == 0 or len(axes) > DIMS or len(spans) > 1 or any(entangled(outs, a) for a in ins):
            return functools.partial(chain.numpy, outs, ins)
        drops = [dict(s.attrs) | {"counter": s.operands[1], "x": s.operands[0]} for s in chain.steps if s.op == DROPOUT]
        operands = [operand(o, shape, axes) for o in outs[:many]]
        operands += [operand(a, shape, axes) for a in ins]
        operands += [[0, DRAWN, k, *[0] * DIMS] for k in range(len(drops))]
        operands += [[o.ctypes.data, ENDED, o.itemsize, *[0] * DIMS] for o in outs[many:]]
        lengths = [length for length, _ in axes]
        words = [n, len(axes), spans.pop() if spans else n, *lengths, *[0] * (DIMS - len(axes))]
        job = np.array([*words, *(w for o in operands for w in o)], np.int64)
        masks = np.zeros(max(1, len(drops)), MASK)
        for k, d in enumerate(drops):
            p, real = d["p"], self.dtypes[d["x"]]
            masks[k] = (many + d["counter"], *d["key"], round((1.0 - p) * 2**32), drop_factor(p, real))
        call = functools.partial(self.function, job.ctypes.data, masks.ctypes.data)
        call.kept = (job, masks, *outs, *ins)  # type: ignore[attr-defined]
        return call


MASK = np.dtype([("counter", "i8"), ("key0", "u8"), ("key1", "u8"), ("threshold", "u8"), ("scale", "f8")])


def strides_in(a: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of an array broadcast to a shape; 0 along axes where it is."""
    lead = len(shape) - a.ndim
    return (*[0] * lead, *(0 if n == 1 else s for n, s in zip(a.shape, a.strides)))


def merged(shape: tuple[int, ...], arrays: Sequence[Any]) -> list[tuple[int, int]]:
    """(length, first axis) of the fewest axes that describe all arrays in a shape; one at least."""
    strides = [strides_in(a, shape) for a in arrays]
    axes: list[tuple[int, int]] = []
    for d in [d for d, n in enumerate(shape) if n != 1] or [0][: len(shape)]:
        if axes:
            length, last = axes[-1]
            if all(s[last] == s[d] * shape[d] for s in strides):
                axes[-1] = (length * shape[d], d)
                continue
        axes.append((shape[d], d))
    return axes or [(1, 0)]


def operand(a: Any, shape: tuple[int, ...], axes: list[tuple[int, int]]) -> list[int]:
    """What kernels/host/loops.h knows of an array."""
    at = a.ctypes.data
    if a.shape == shape and a.flags.c_contiguous:
        return [at, DIRECT, a.itemsize, *[0] * DIMS]
    strides = strides_in(a, shape)
    if not any(strides):
        return [at, SPREAD, a.itemsize, *[0] * DIMS]
    return [at, GATHERED, a.itemsize, *(strides[d] for _, d in axes), *[0] * (DIMS - len(axes))]


def compile_many(wanted: Sequence[tuple[Chain, Sequence[Any]]]) -> list[Compiled | None]:
    """Each chain, with the dtypes of its inputs, compiled for the CPU, all in one run of the compiler.

    None for a chain that cannot be: no compiler, GPUGRAD_CPU_JIT=0, an op without functor, a mixture of floating types.
    """
    sources = [host_source(chain, dtypes) for chain, dtypes in wanted] if compiler.enabled() else [None] * len(wanted)
    functions = compiler.host_functions([s for s in sources if s is not None])
    found = iter(functions)
    return [
        None if s is None or (f := next(found)) is None else Compiled(chain, dtypes, f)
        for (chain, dtypes), s in zip(wanted, sources)
    ]
