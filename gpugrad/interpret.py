"""How the op table runs on layered arrays, and the maps between a level's arrays and plain ones.

`apply` stands in every op's table of implementations; it finds the highest level among the arguments, which runs the
op in its own way on what the arrays hold. So the tape, which knows nothing of this, runs on layered arrays too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.backends.cpu import CPU
from gpugrad.errors import DTypeError, fail
from gpugrad.layered import LAYERS, Layered, Level, innermost, levels, plain, top
from gpugrad.op import RAW, TABLE, Raw, record
from gpugrad.operands import alive
from gpugrad.state import mode
from gpugrad.tensor import Tensor


def apply(op: Any, *args: Any, **attrs: Any) -> Any:
    """Run an op on raw arguments of any levels; what comes out are arrays."""
    level = top(args)
    if level is None:
        array = next(a for a in args if hasattr(a, "dtype"))
        return boxed(op.impls[type(array)](*args, **attrs))
    if "dtype" in attrs and attrs["dtype"] is not None:
        attrs = {**attrs, "dtype": plain(np.dtype(attrs["dtype"]))}
    return level.run(op, args, attrs)


def boxed(out: Any) -> Any:
    """Arrays in place of the scalars that NumPy gives for 0-d results."""
    if type(out) is tuple:
        return tuple(map(boxed, out))
    return np.asarray(out) if isinstance(out, np.generic) else out


class Everything(Raw):
    """`F` for layered arrays: every op, including those added to the table later, dispatched on all its arguments."""

    def __getattr__(self, name: str) -> Any:
        run = partial(apply, TABLE[name])
        setattr(self, name, run)
        return run


def namespace(args: Any) -> Raw:
    """The raw namespace that serves all these arguments."""
    if top(args) is not None:
        return RAW[Layered]
    return RAW[type(next(a for a in args if hasattr(a, "dtype")))]


RAW[Layered] = Everything(Layered)


def register(cls: type) -> None:
    """Make a subclass of Layered an array type of the whole table."""
    LAYERS.add(cls)
    RAW[cls] = RAW[Layered]
    backends._by_type[cls] = Layers(cls)


class Layers:
    """The backend of a layered type: ops go to `apply`; what concerns memory goes to the backend of the plain array."""

    def __init__(self, cls: type, plain: backends.Backend = CPU) -> None:
        self.name, self.array_type, self.xp, self._plain = plain.name, cls, plain.xp, plain
        self.scope, self.synchronize = plain.scope, plain.synchronize

    def holding(self, array: Any) -> Layers:
        """The backend of one array, on the device where its values are."""
        return Layers(self.array_type, backends.of(innermost(array)))

    def implement(self, fwd: Any, special: dict[str, Any]) -> Any:
        """The op whose forward this is, run level by level."""
        return partial(apply, special["op"])

    def asarray(self, value: Any, dtype: Any = None, *, device: str | None = None, copy: bool | None = None) -> Any:
        """A layered array as it is, anything else as a plain array."""
        if isinstance(value, Layered):
            return value
        return self._plain.asarray(value, dtype=dtype, device=device, copy=copy)

    def to_numpy(self, array: Any) -> Any:
        """The values, without tangents."""
        return self._plain.to_numpy(array.values)

    def device_of(self, array: Any) -> str:
        """Where the plain array lives."""
        return self._plain.device_of(innermost(array))


# --- maps between levels ------------------------------------------------------------------------------------


class Map:
    """A linear map between number systems, and a node kind of the tape: not in the table, for it is never dispatched.

    Called on raw arrays or on Tensors, which record it. `transpose` is the map that pulls cotangents back.
    """

    nout, aux, via, reuse, joint, kind, vjps, singular, fragile = 1, False, None, None, None, "linear", (), 0, False
    transpose: tuple[Callable[..., Any], ...]

    def __init__(self, name: str, forward: Callable[..., Any]) -> None:
        self.name, self.forward = name, forward

    def pulls_back(self, *transpose: Callable[..., Any]) -> None:
        """Set the maps that pull a cotangent back to each input."""
        self.vjps = tuple([partial(self._rule, f) for f in transpose])  # type: ignore[assignment]

    @staticmethod
    def _rule(f: Callable[..., Any], F: Any, t: Any, *saved: Any, **attrs: Any) -> Any:
        return f(t, **attrs)

    def __call__(self, *xs: Any, **attrs: Any) -> Any:
        tensors = [x for x in xs if isinstance(x, Tensor)]
        if not tensors:
            return self.forward(*xs, **attrs)
        out = self.forward(*[x.data if isinstance(x, Tensor) else x for x in xs], **attrs)
        parents = tuple([alive(x.node) if isinstance(x, Tensor) else None for x in xs])
        if not mode.enabled or not any(parents):
            return Tensor(out)
        return record(self, attrs, parents, (None,) * (1 + len(xs)), out)


def settle(F: Any, g: Any, dtype: Any) -> Any:
    """A cotangent in the number system and dtype of the value it belongs to, which entered a layered call as it was.

    Levels that are still open stay: inside them the gradient of a constant is layered like any other result.
    """
    if (g.dtype.kind == "c") != (dtype.kind == "c"):
        raise fail(DTypeError, "backward", "the graph goes through complex numbers, which have no derivative yet")
    have, want = levels((g.data if isinstance(g, Tensor) else g).dtype), levels(dtype)
    for level in reversed(have):
        if not level.open and level not in want:
            g = level.lower(g)
    if want and not levels((g.data if isinstance(g, Tensor) else g).dtype):
        g = want[-1].lift(g)
    return g if g.dtype == dtype else F.astype(g, dtype=plain(dtype))


def descend(f: Callable[[Any, Level], Any]) -> Callable[..., Any]:
    """A map of one level, also where arrays of higher levels lie around its own."""

    def run(x: Any, level: Level) -> Any:
        if isinstance(x, Layered) and x.level.rank > level.rank:
            return x.mapped(lambda v: run(v, level))
        return f(x, level)

    return run


# --- operators ----------------------------------------------------------------------------------------------

BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "matmul": "matmul", "pow": "pow", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor",
}  # fmt: skip
COMPARE = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal"}
UNARY = {"neg": "negative", "pos": "positive", "abs": "abs", "invert": "bitwise_invert"}


def _attach() -> None:
    """Rules are written with Python operators and `.astype`, `.copy` where the engine needs them."""

    def forwards(name: str) -> Any:
        return lambda *args: apply(TABLE[name], *args)

    def reflected(name: str) -> Any:
        return lambda self, other: apply(TABLE[name], other, self)

    for dunder, name in (BINARY | COMPARE | UNARY).items():
        setattr(Layered, f"__{dunder}__", forwards(name))
        if dunder in BINARY:
            setattr(Layered, f"__r{dunder}__", reflected(name))
    Layered.astype = lambda self, dtype, copy=True: apply(TABLE["astype"], self, dtype=dtype)  # type: ignore[attr-defined]
    Layered.copy = lambda self: apply(TABLE["positive"], self)  # type: ignore[attr-defined]


_attach()
