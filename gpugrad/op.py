"""Ops: the table from array type to code with derivative rules, and the dispatchers that record calls.

A rule is a pure function `(F, t, out, *inputs, **attrs)`. `F` is the namespace to compute in: raw
implementations at first order, recording dispatchers when the rule must itself be differentiated.
Parameter names are the save list: `_x` is not kept, `x` is kept, `x_shape` keeps the shape alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from sys import _getframe
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.dtypes import get_default_dtype
from gpugrad.errors import INTERNAL
from gpugrad.layered import LAYERS
from gpugrad.operands import constant, explain_failure, join, scalar_array
from gpugrad.rules import DROP, KEEP, PUSH, SHAPE, Rule, expand, reading_shapes, save_list
from gpugrad.state import counter, mode, switched
from gpugrad.tensor import Full, Lean, Node, Tensor

TABLE: dict[str, Op] = {}
NO_ATTRS: dict[str, Any] = {}
new = object.__new__


class Op:
    """One table entry: forward code, derivative rules, and what each rule needs kept.

    `vjps[i]` pulls a cotangent back to input i (None: input i has no derivative); `joint` does all inputs at once and
    returns a tuple. `jvp(F, tangents, out, *inputs, **attrs)` pushes tangents forward (None: not varied). `aux`: the
    forward returns (out, extra) and rules see extra after the inputs. `via`: a composition `(F, *inputs, **attrs)` for
    calls that must be recorded. `nout`: number of outputs, if several. `reuse`: which saved value a rule that is given
    reuse=True may overwrite, if any. `singular`: 1 if rules put zeros in cotangents, 2 if infinities; rules that may
    make NaN of those are `fragile`. `kind`: elementwise, linear, multilinear, general, nondiff, update (in place).
    """

    call: Callable[..., Any]

    def __init__(
        self, name: str, fwd: Any, vjps: tuple[Rule | None, ...] = (), *, kind: str, joint: Rule | None = None,
        jvp: Rule | None = None, via: Rule | None = None, aux: bool = False, nout: int = 1,
        cpu: Any = None, cuda: Any = None, reuse: int | None = None, singular: int = 0,
    ) -> None:  # fmt: skip
        self.name, self.fwd, self.kind, self.vjps, self.joint = name, fwd, kind, vjps, joint
        self.via, self.aux, self.nout, self.reuse, self.singular = via, aux, nout, reuse, singular
        own = (("cpu", cpu), ("cuda", cuda), ("op", self))
        self.impls = backends.Impls(fwd, {k: v for k, v in own if v is not None})
        self.jvp = jvp or (partial(PUSH[kind], self) if kind in PUSH else None)
        self.keeps = [save_list(r) for r in vjps]
        self.fragile = kind == "elementwise" and singular != 1 and any(KEEP in k for k in self.keeps)
        self.vjps = tuple([r and reading_shapes(r, k, self.keeps) for r, k in zip(vjps, self.keeps)])
        self.union: dict[Any, Any] = {}
        if name in TABLE:
            raise ValueError(f"[{name}] is already in the op table")
        TABLE[name] = self

    @property
    def differentiable(self) -> bool:
        """Whether the op has derivative rules."""
        return self.kind not in ("nondiff", "update")

    def keep(self, mask: int) -> tuple[int, ...]:
        """What to save of (out, *inputs, aux); mask: a 1, then for each input whether it needs a gradient."""
        n, on = mask.bit_length() + self.aux, f"{mask:b}"[1:]
        lists = [save_list(self.joint)] if self.joint else [k for k, b in zip(self.keeps, on) if b == "1"]
        codes = self.union[mask] = tuple([max((expand(k, n)[i] for k in lists), default=DROP) for i in range(n)])
        return codes


class Raw:
    """`F` for raw arrays of one type: each attribute is an op's implementation, no dispatch left."""

    def __init__(self, cls: type) -> None:
        self._cls = cls

    def __getattr__(self, name: str) -> Any:
        run = TABLE[name].impls[self._cls]
        setattr(self, name, run)
        return run

    def box(self, value: Any) -> Any:
        """An array again, where a NumPy function returned a scalar for a 0-d result."""
        return np.asarray(value) if isinstance(value, np.generic) else value


class Recording:
    """`F` for Tensors: each attribute is an op's recording dispatcher."""

    def __getattr__(self, name: str) -> Any:
        call = TABLE[name].call
        setattr(self, name, call)
        return call


RECORDING = Recording()


class Raws(dict[type, Raw]):
    """The raw namespace of each array type; NumPy scalars share that of their arrays."""

    def __missing__(self, cls: type) -> Raw:
        array_type = backends.of_type(cls).array_type
        self[cls] = found = Raw(cls) if cls is array_type else self[array_type]
        return found


RAW = Raws()


def raw(array: Any) -> Raw:
    """The raw namespace for the type of `array`."""
    return RAW[type(array)]


# --- recording --------------------------------------------------------------------------------------------


def record(op: Any, attrs: dict[str, Any], parents: tuple[Any, ...], saved: tuple[Any, ...], out: Any) -> Tensor:
    """Record a call that is not one of the dispatchers'."""
    node = Full()
    node.attrs, node.parents, node.saved = attrs, parents, saved
    return carry(node, op, parents[0], out)


latest: Any = None  # the user's function that recorded last


def carry(node: Any, op: Any, first: Node | None, out: Any) -> Tensor:
    """Complete a node and make the tensor that carries it. Called by a dispatcher, whose caller is the user."""
    global latest
    node.op, node.dtype, node.seq = op, out.dtype, next(counter)
    node.spent, shape = None, out.shape
    node.shape = shape if first is None or first.shape != shape else first.shape  # one tuple for a whole chain
    f: Any = _getframe(2)
    code = f.f_code
    if code is not latest:
        while INTERNAL[code.co_filename] and (back := f.f_back) is not None:
            f, code = back, back.f_code
        latest = code
    node.code, node.lasti = code, f.f_lasti
    made = new(Tensor)  # not called: a Python frame less
    made.data, made.node = out, node
    return made


# --- dispatchers: all hot-path speed is here -------------------------------------------------------------


def unary(op: Op, floating: bool) -> Callable[[Any], Tensor]:
    """Dispatcher of one array, no attributes. `floating`: integers are first cast to the default float type."""
    impls, name, recorded = op.impls, op.name, op.differentiable
    keep_out, keep_x = op.keep(0b11)[:2] if recorded else (DROP, DROP)

    def call(x: Any, /) -> Tensor:
        if type(x) is Tensor:
            a, n = x.data, x.node
        else:
            a, n = constant(name, x), None
            if not hasattr(a, "dtype"):
                a = scalar_array(a)
        if n is None and floating and a.dtype.kind in "iub":
            a = a.astype(get_default_dtype())
        cls = type(a)
        try:
            out = impls[cls](a)
        except Exception as error:
            raise explain_failure(name, error, (a,), NO_ATTRS) from None
        if type(out) is not cls:
            out = np.asarray(out)
        if n is None or n.spent is not None or not recorded or (switched and not mode.enabled):
            return Tensor(out)
        if op.via is not None:
            return op.via(RECORDING, x)  # type: ignore[no-any-return]
        node: Any = Lean()
        node.left, node.out, node.x = n, out if keep_out else None, a if keep_x else None
        node.right = node.y = None
        return carry(node, op, n, out)

    return call


def binary(op: Op, floating: bool, reflected: bool = False) -> Callable[[Any, Any], Tensor]:
    """Dispatcher of two broadcast arrays, no attributes; `reflected` swaps them (for __radd__ and its kind)."""
    impls, name, recorded = op.impls, op.name, op.differentiable
    both, left, right = (op.keep(k) if recorded else () for k in (0b111, 0b110, 0b101))

    def call(x: Any, y: Any, /) -> Tensor:
        if reflected:
            x, y = y, x
        kx, ky = type(x), type(y)
        if kx is Tensor and ky is Tensor:
            a, b = x.data, y.data
            n, m = x.node, y.node
            if a.dtype is not b.dtype:
                a, b = join([a, b])
            cls = type(a)
        elif kx is Tensor and (ky is float or ky is int) and x.data.dtype.kind == "f":
            a, b, n, m = x.data, y, x.node, None
            cls = type(a)
        elif ky is Tensor and (kx is float or kx is int) and y.data.dtype.kind == "f":
            a, b, n, m = x, y.data, None, y.node
            cls = type(b)
        else:
            n, m = (x.node, None) if kx is Tensor else (None, y.node if ky is Tensor else None)
            a, b = join([constant(name, x, y), constant(name, y, x)])
            cls = type(a) if hasattr(a, "dtype") else type(b)
        if n is None and m is None and floating and (a if cls is type(a) else b).dtype.kind in "iub":
            a, b = (v.astype(get_default_dtype()) if hasattr(v, "dtype") else v for v in (a, b))
        try:
            out = impls[cls](a, b)
        except Exception as error:
            raise explain_failure(name, error, (a, b), NO_ATTRS) from None
        if type(out) is not cls:
            out = np.asarray(out)
        if n is not None and n.spent is not None:
            n = None
        if m is not None and m.spent is not None:
            m = None
        if (n is None and m is None) or not recorded or (switched and not mode.enabled):
            return Tensor(out)
        if op.via is not None:
            return op.via(RECORDING, x, y)  # type: ignore[no-any-return]
        keep_out, keep_a, keep_b = right if n is None else left if m is None else both
        node: Any = Lean()
        node.left, node.right, node.out = n, m, out if keep_out else None
        node.x = a if keep_a == KEEP else a.shape if keep_a else None
        node.y = b if keep_b == KEEP else b.shape if keep_b else None
        return carry(node, op, n, out)

    return call


def nary(op: Op, floating: bool = False, promotes: bool = False) -> Callable[..., Any]:
    """Dispatcher of any number of arrays (None where absent) with keyword attributes."""
    impls, name, recorded = op.impls, op.name, op.differentiable

    def call(*xs: Any, **attrs: Any) -> Any:
        raws: list[Any] = []
        parents: list[Node | None] = []
        first = strange = None
        mask, mixed = 1, False  # as in `keep`; mixed: operands differ in dtype, or one needs conversion
        for x in xs:
            n = None
            if type(x) is Tensor:
                n, x = x.node, x.data
                if n is not None and n.spent is not None:
                    n = None
                if first is None or type(x) in LAYERS:
                    first = x
                elif x.dtype is not first.dtype:
                    mixed = True
            elif x is not None:
                strange, mixed = x, mixed or (type(x) is not float and type(x) is not int)
            raws.append(x)
            parents.append(n)
            mask = mask + mask + (n is not None)
        live = mask & (mask - 1) and recorded and not (switched and not mode.enabled)
        if strange is not None and mixed:
            raws = [None if x is None else constant(name, x, first) for x in raws]
        if first is None or (promotes and (mixed or (strange is not None and first.dtype.kind != "f"))):
            raws = join(raws)
            first = next(a for a in raws if hasattr(a, "dtype"))
        if floating and first.dtype.kind in "iub":
            raws = [a if not hasattr(a, "dtype") else a.astype(get_default_dtype()) for a in raws]
        if live and op.via is not None:
            return op.via(RECORDING, *xs, **attrs)
        cls, extra = type(first), None
        try:
            out = impls[cls](*raws, **attrs)
        except Exception as error:
            raise explain_failure(name, error, tuple(raws), attrs) from None
        if op.aux:
            out, extra = out
        if op.nout > 1:
            outs = tuple([o if type(o) is cls or backends.is_raw(o) else np.asarray(o) for o in out])
            if not live:
                return tuple([Tensor(o) for o in outs])
            whole = record(op, attrs, tuple(parents), kept(op, mask, outs, raws, extra), outs[0]).node
            return tuple([record(PICK, {"index": i}, (whole,), (), o) for i, o in enumerate(outs)])
        if type(out) is not cls and not backends.is_raw(out):  # raw of another type: moved to another device
            out = np.asarray(out)
        if not live:
            return Tensor(out)
        node = Full()
        node.attrs, node.parents, node.saved = attrs, tuple(parents), kept(op, mask, out, raws, extra)
        return carry(node, op, parents[0], out)

    return call


def kept(op: Op, mask: int, out: Any, raws: list[Any], extra: Any) -> tuple[Any, ...]:
    """The saved tuple (out, *inputs, aux): values, shapes or None, as the rules' parameter names ask."""
    codes, saved = op.union.get(mask) or op.keep(mask), [out, *raws, extra] if op.aux else [out, *raws]
    for i, c in enumerate(codes):
        if c != KEEP:
            saved[i] = getattr(saved[i], "shape", ()) if c == SHAPE and saved[i] is not None else None
    return tuple(saved)


PICK = SimpleNamespace(name="pick")  # what selects one output of a call with several; the walk knows it by identity
