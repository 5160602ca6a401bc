"""Row kernels and optimiser steps compiled for the CPU, for replay: `lookup` finds what takes the place of an op.

The text is in `kernels/host` (`rows.h`, `product.h`, `attention.h`), on the functors that the CUDA kernels use. What
`lookup` returns is called like the op's raw implementation, on NumPy arrays, with `out=` for the results; arrays that
do not lie as the compiled code needs them go to NumPy. Eager calls never come here: NumPy is the specification.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gpugrad import compiler, jit_conv
from gpugrad.chain import DROPOUT, Chain, Compiled, Const, Step, fusable, host_source, order_of
from gpugrad.launch import optim as launches
from gpugrad.launch.activation import AFTER_BIAS
from gpugrad.op import TABLE
from gpugrad.ops.loss import BOTH, both, check_labels

C_TYPES = {"float32": "float", "float64": "double"}
LARGE = 1 << 18  # multiplications of a product: a BLAS uses one thread for fewer, and wakes its others for more
SHORT = 32  # columns: NumPy is as fast at rows of fewer, but for those that are worked on side by side

Packed = tuple[
    Any, ...
]  # the struct, what it points to, the result, and (place, array) of what is copied before a call


class Routine:
    """A compiled stand-in for an op with certain attributes: `routine(*arrays, out=None)` gives what the op gives.

    out: C-contiguous arrays for the results, in the op's nesting. Called again with the very arrays of the last call, a
    routine is one foreign call. Compiled at its first call, unless `compile_all` was there before.
    """

    def __init__(self, op: str, source: str, pack: Callable[..., Packed | None], attrs: dict[str, Any]) -> None:
        self.op, self.source, self.pack, self.attrs = op, source, pack, attrs
        self.function: Any = None
        self.given: Any = ()  # the arrays that the struct leads to
        self.struct: Any = None
        self.kept: tuple[Any, ...] = ()
        self.copies: Sequence[tuple[Any, Any]] = ()
        self.result: Any = None

    def __call__(self, *args: Any, out: Any = None) -> Any:
        settled = out is not None or self.result is None  # an update has no result
        bound = self.struct is not None and settled and same((args, out), self.given)
        if not bound and not self.bind(args, out):
            return self.fall_back(args, out)
        for place, array in self.copies:
            place[...] = array
        bad = self.function(self.struct)
        if bad >= 0:
            logits, labels = args[:2] if self.op == "softmax_xent" else args[1:3]
            check_labels(labels, logits.shape[1], self.attrs["ignore_index"])
        return self.result

    def bind(self, args: tuple[Any, ...], out: Any) -> bool:
        """Prepare the foreign call on these arrays, False if they do not suit it."""
        packed, self.struct = self.pack(args, out, self.attrs), None
        if self.function is None:
            self.function = compiler.host_functions([self.source])[0]
            if self.function is not None:
                self.function.restype = ctypes.c_longlong
        if packed is None or self.function is None:
            return False
        words, self.kept, self.result, *copies = packed
        self.copies = copies[0] if copies else ()
        self.struct, self.given = ctypes.create_string_buffer(words, len(words)), frozen((args, out))
        return True

    def fall_back(self, args: tuple[Any, ...], out: Any) -> Any:
        """The op by NumPy."""
        run = functools.partial(both, np) if self.op == BOTH else TABLE[self.op].impls[np.ndarray]
        found: Any = run(*args, **self.attrs)
        if out is None:
            return found
        for place, value in zip(leaves(out), leaves(found)):
            if place is not value:
                place[...] = value
        return out


def leaves(x: Any) -> list[Any]:
    """The arrays of nested tuples and lists, None among them."""
    if not isinstance(x, (tuple, list)):
        return [x]
    return [leaf for item in x for leaf in leaves(item)]


def frozen(x: Any) -> Any:
    """Nested tuples and lists as tuples, which do not change."""
    return tuple(map(frozen, x)) if isinstance(x, (tuple, list)) else x


def same(x: Any, before: Any) -> bool:
    """Whether nested tuples and lists hold the very arrays that they held when they were frozen."""
    if x is before:
        return True
    return (
        type(before) is tuple and isinstance(x, (tuple, list)) and len(x) == len(before) and all(map(same, x, before))
    )


def fits(dtype: Any, *arrays: Any) -> bool:
    """Whether arrays (None apart) are contiguous and of one dtype."""
    return all(a is None or (a.dtype == dtype and a.flags.c_contiguous) for a in arrays)


def at(a: Any) -> int:
    """The address of an array; null for None."""
    return 0 if a is None else int(a.ctypes.data)


def fresh(out: Any, *like: tuple[tuple[int, ...], Any]) -> Any:
    """`out`, or new arrays of these shapes and dtypes."""
    return tuple(np.empty(s, d) for s, d in like) if out is None else out


# --- what each op is given ------------------------------------------------------------------------------------


def pack_xent(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """Losses and log-sum-exps."""
    logits, labels, _ = args
    loss, lse = fresh(out, (logits.shape[:1], logits.dtype), (logits.shape[:1], "float64"))
    return xent_struct(None, logits, labels, loss, lse, None, attrs, (loss, lse))


def pack_xent_bwd(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """The gradient in the logits."""
    t, logits, labels, _, lse = args
    grad = out
    if out is None:
        grad = logits if attrs.get("reuse") else np.empty_like(logits, order="C")
    return None if lse is None else xent_struct(t, logits, labels, None, lse, grad, attrs, grad)


def pack_both(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """Losses, log-sum-exps and the gradient."""
    t, x, labels, _ = args
    loss, lse, grad = fresh(out, (x.shape[:1], x.dtype), (x.shape[:1], "float64"), (x.shape, x.dtype))
    return xent_struct(t, x, labels, loss, lse, grad, attrs, (loss, lse, grad))


def xent_struct(
    t: Any, x: Any, labels: Any, loss: Any, lse: Any, grad: Any, attrs: dict[str, Any], result: Any
) -> Packed | None:
    """struct Xent."""
    if not fits(x.dtype, x, loss, grad) or not fits(np.dtype("int64"), labels) or not fits(np.dtype("float64"), lse):
        return None
    if t is not None and (t.dtype != x.dtype or (t.size > 1 and t.strides[0] % t.itemsize)):
        return None
    step = 0 if t is None or t.size < 2 else t.strides[0] // t.itemsize
    words = struct.pack(
        "QQQQQQqqqqq", at(loss), at(lse), at(grad), at(x), at(labels), at(t), step, *x.shape, attrs["ignore_index"],
        loss is not None,
    )  # fmt: skip
    return words, (t, x, labels, loss, lse, grad), result


def pack_rows(args: tuple[Any, ...], out: Any, _attrs: dict[str, Any]) -> Packed | None:
    """One result of the shape of the first array, whose last axis is a row."""
    x = args[0]
    result = np.empty_like(x, order="C") if out is None else out
    if not fits(x.dtype, *args, result):
        return None
    cols = x.shape[-1]
    words = struct.pack("QQQqq", at(result), at(x), at(args[1]) if args[1:] else 0, x.size // max(cols, 1), cols)
    return words, (*args, result), result


def pack_columns(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """Sums over the leading axes."""
    (x,) = args
    lead = len(attrs["axis"])
    result = out
    if result is None:
        result = np.empty((1,) * (lead if attrs["keepdims"] else 0) + x.shape[lead:], x.dtype)
    if not fits(x.dtype, x, result):
        return None
    words = struct.pack("QQQqq", at(result), at(x), 0, math.prod(x.shape[:lead]), math.prod(x.shape[lead:]))
    return words, (x, result), result


def pack_bias_act(args: tuple[Any, ...], out: Any, _attrs: dict[str, Any]) -> Packed | None:
    """One result; x and the bias."""
    x, b = args
    result = np.empty_like(x, order="C") if out is None else out
    if not fits(x.dtype, x, b, result):
        return None
    words = struct.pack("QQQQQqq", at(result), 0, at(x), 0, at(b), x.size // max(1, b.size), b.size)
    return words, (x, b, result), result


def pack_bias_act_bwd(args: tuple[Any, ...], out: Any, _attrs: dict[str, Any]) -> Packed | None:
    """(dx, db) of (t, v, bias or None)."""
    t, v, b = args
    cols = v.shape[-1]
    dx, db = fresh(out, (v.shape, v.dtype), ((cols,), v.dtype))
    if t.shape != v.shape or not fits(v.dtype, t, v, b, dx, db):
        return None
    words = struct.pack("QQQQQqq", at(dx), at(db), at(t), at(v), at(b), v.size // max(1, cols), cols)
    return words, (t, v, b, dx, db), (dx, db)


def pack_layer_norm(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """(y, (mean or None, rstd))."""
    x, w, b = args
    lead = x.ndim - len(attrs["axis"])
    rows, kept = math.prod(x.shape[:lead]), (*x.shape[:lead], *[1] * (x.ndim - lead))
    y, (mean, rstd) = (
        (np.empty_like(x, order="C"), (np.empty(kept, x.dtype), np.empty(kept, x.dtype))) if out is None else out
    )
    mean = mean if attrs["centred"] else None
    if not fits(x.dtype, x, w, b, y, mean, rstd) or (b is not None and w is None):
        return None
    words = struct.pack(
        "QQQQQQQQQQqqqd", at(y), at(mean), at(rstd), 0, 0, at(x), at(w), at(b), 0, 0, rows, x.size // max(1, rows),
        attrs["centred"], attrs["eps"],
    )  # fmt: skip
    return words, (x, w, b, y, mean, rstd), (y, (mean, rstd))


def pack_layer_norm_bwd(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """(dx, dw, db), the last two without elements where there is no weight."""
    t, x, w, mean, rstd, more = (*args, None)[:6]
    if rstd is None:
        return None
    lead = x.ndim - len(attrs["axis"])
    rows, shape = math.prod(x.shape[:lead]), (0,) if w is None else w.shape
    dx, dw, db = fresh(out, (x.shape, x.dtype), (shape, x.dtype), (shape, x.dtype))
    if t.shape != x.shape or not fits(x.dtype, t, x, w, mean, rstd, more, dx, dw, db):
        return None
    words = struct.pack(
        "QQQQQQQQQQqqqd", at(dx), at(mean), at(rstd), at(dw), at(db), at(x), at(w), 0, at(t), at(more), rows,
        x.size // max(1, rows), attrs["centred"], attrs["eps"],
    )  # fmt: skip
    return words, (t, x, w, mean, rstd, more, dx, dw, db), (dx, dw, db)


def pack_product(args: tuple[Any, ...], out: Any, _attrs: dict[str, Any]) -> Packed | None:
    """x (..., k) times y (k, n)."""
    x, y = args
    result = np.empty((*x.shape[:-1], y.shape[1]), x.dtype) if out is None else out
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    strides = [s // x.itemsize for s in (*rows.strides, *y.strides)]
    flat = x.flags.c_contiguous or x.ndim == 2
    if not flat or y.dtype != x.dtype or not fits(x.dtype, result) or 1 not in strides[:2] or 1 not in strides[2:]:
        return None
    words = struct.pack("3Q7q", at(result), at(x), at(y), rows.shape[0], y.shape[1], y.shape[0], *strides)
    return words, (x, y, result), result


def view(a: Any, shape: tuple[int, ...] | None = None) -> list[int]:
    """struct View of an array of four axes, broadcast to a shape."""
    whole = a if shape is None else np.broadcast_to(a, shape)
    return [at(a), *(s // a.itemsize for s in whole.strides)]


def attention_struct(
    q: Any, k: Any, v: Any, mask: Any, t: Any, out: Any, lse: Any, grads: Any, attrs: dict[str, Any]
) -> bytes | None:
    """struct Attention."""
    strided = [a for a in (q, k, v, t) if a is not None]
    if any(a.dtype != q.dtype or any(s % a.itemsize for s in a.strides) for a in strided) or not k.size or not v.size:
        return None
    if (mask is not None and mask.dtype not in (q.dtype, bool)) or not fits(q.dtype, out, lse, *grads):
        return None
    (b, h, tq, d), (g, tk, width) = q.shape, v.shape[1:]
    views = [*view(q), *view(k), *view(v), *([0] * 5 if mask is None else view(mask, (b, h, tq, tk)))]
    kind = 0 if mask is None else 1 if mask.dtype == bool else 2
    return struct.pack(
        "20q5q5Q9qd", *views, *([0] * 5 if t is None else view(t)), *map(at, (out, lse, *grads)), b, h, g, tq, tk, d,
        width, kind, attrs["causal"], attrs["scale"],
    )  # fmt: skip


def pack_attention(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """(out, lse) of (q, k, v, mask)."""
    q, k, v, mask = args
    made = fresh(out, ((*q.shape[:3], v.shape[3]), q.dtype), (q.shape[:3], q.dtype))
    words = attention_struct(q, k, v, mask, None, made[0], made[1], (None, None, None), attrs)
    return None if words is None else (words, (*args, *made), made)


def pack_attention_bwd(args: tuple[Any, ...], out: Any, attrs: dict[str, Any]) -> Packed | None:
    """(dq, dk, dv) of (t, q, k, v, mask, out, lse)."""
    t, q, k, v, mask, y, lse = args
    made = fresh(out, *((a.shape, a.dtype) for a in (q, k, v)))
    if y is None or lse is None:
        return None
    words = attention_struct(q, k, v, mask, t, y, lse, made, attrs)
    return None if words is None else (words, (*args, *made), made)


class Recorder:
    """Stands for a launch in gpugrad/launch/optim.py: keeps what an update would be launched with."""

    xp = np

    def update(self, *given: Any) -> None:
        """(functor, entries, settings, step, product, lr, skip)."""
        self.given = given


def update_of(op: str, args: Sequence[Any], attrs: dict[str, Any]) -> tuple[Any, ...] | None:
    """What a CUDA launch of this update would be given, and (copy, gradient) of the gradients that it would copy.

    None where it would decline.
    """
    recorder, launch = Recorder(), getattr(launches, f"_{op}")
    if launch(recorder, *args, **attrs) is NotImplemented or not recorder.given[1]:
        return None
    known = {at(a) for a in leaves(list(args))}
    entries = recorder.given[1]
    dtypes = {arrays[0].dtype.name for _, arrays in entries}
    made = [(number, a) for number, arrays in entries for a in arrays if at(a) not in known]
    names = list(inspect.signature(launch).parameters)
    if (made and "grads" not in names) or len(dtypes) != 1 or not dtypes <= {*C_TYPES}:
        return None
    return *recorder.given, [(a, args[names.index("grads") - 1][number]) for number, a in made]


def pack_update(op: str, args: tuple[Any, ...], attrs: dict[str, Any]) -> Packed | None:
    """The tables of arrays, and the settings."""
    found = update_of(op, args, attrs)
    if found is None:
        return None
    _, entries, settings, step, product, lr, skip, copies = found
    addresses = np.array([[at(a) for a in arrays] for _, arrays in entries], np.uint64).T.copy()
    sizes = np.array([arrays[0].size for _, arrays in entries], np.int64)
    numbers = np.array([number for number, _ in entries], np.int64)
    words = struct.pack(
        "QQQQQQQq6d", at(addresses), at(sizes), at(numbers), at(step), at(product), at(lr), at(skip), len(entries),
        *settings, *[0.0] * (6 - len(settings)),
    )  # fmt: skip
    return words, (addresses, sizes, numbers), None, copies


# --- finding a routine ----------------------------------------------------------------------------------------

ROWS: dict[str, tuple[str, str, Callable[..., Packed | None]]] = {  # op: function of rows.h, its struct, what packs it
    "softmax_xent": ("xent", "Xent", pack_xent), "softmax_xent_bwd": ("xent", "Xent", pack_xent_bwd),
    BOTH: ("xent", "Xent", pack_both), "softmax": ("softmax", "Rows", pack_rows),
    "log_softmax": ("log_softmax", "Rows", pack_rows), "softmax_bwd": ("softmax_bwd", "Rows", pack_rows),
    "log_softmax_bwd": ("log_softmax_bwd", "Rows", pack_rows), "sum": ("column_sums", "Rows", pack_columns),
    "bias_act": ("bias_act", "BiasAct", pack_bias_act), "bias_act_out": ("bias_act", "BiasAct", pack_bias_act),
    "bias_act_bwd": ("bias_act_bwd", "BiasAct", pack_bias_act_bwd),
    "layer_norm": ("layer_norm", "LayerNorm", pack_layer_norm),
    "layer_norm_bwd": ("layer_norm_bwd", "LayerNorm", pack_layer_norm_bwd),
    "matmul": ("matrix_product", "Product", pack_product), "attention": ("attention", "Attention", pack_attention),
    "attention_bwd": ("attention_bwd", "Attention", pack_attention_bwd),
}  # fmt: skip
UPDATES = (
    "sgd", "adagrad", "adadelta", "rmsprop", "adam", "adamax", "nadam", "average_into", "clamp_into",
)  # fmt: skip


def suits(op: str, args: Sequence[Any], attrs: dict[str, Any]) -> bool:
    """Whether a row kernel computes this call: axes at the right end, class numbers, no weights, no smoothing."""
    x = args[1] if op in ("softmax_xent_bwd", "softmax_bwd", "log_softmax_bwd", "layer_norm_bwd", BOTH) else args[0]
    ndim = len(x.shape)
    if op == "matmul":
        y = args[1]
        worth = ndim > 1 and len(y.shape) == 2 and math.prod(x.shape) * y.shape[1] > LARGE and x.shape[-1] == y.shape[0]
        return worth and compiler.wide()
    if "attention" in op:
        return True
    if "xent" in op:
        labels, weight = args[1:3] if op == "softmax_xent" else args[2:4]
        return len(labels.shape) == 1 and labels.dtype == np.int64 and weight is None and not attrs["smoothing"]
    if op != "sum" and "bias_act" not in op and x.shape[-1] < SHORT:
        return False
    if "softmax" in op:
        return bool(attrs["axis"] == ndim - 1)
    if op == "sum":
        axis = attrs["axis"]
        return attrs.get("dtype") is None and 0 < len(axis) < ndim and tuple(axis) == tuple(range(len(axis)))
    if op.startswith("layer_norm"):
        axis = attrs["axis"]
        return tuple(axis) == tuple(range(ndim - len(axis), ndim))
    return True


def lookup(op: str, args: Sequence[Any], attrs: dict[str, Any]) -> Routine | Elementwise | None:
    """A compiled stand-in for an op on such arguments, or None.

    args: the arrays, or whatever has their shape and dtype (an optimiser's step needs the arrays), numbers and None.
    `BOTH` is softmax_xent and its backward in one, (t, logits, labels, weight) -> (loss, lse, gradient), for a t that
    does not depend on the loss. An elementwise op becomes a chain of one step.
    """
    if not compiler.enabled():
        return None
    first = next((a for a in leaves(list(args)) if hasattr(a, "dtype")), None)
    kind = None if first is None else C_TYPES.get(first.dtype.name)
    if kind is None:
        return None
    if op in UPDATES:
        found = update_of(op, args, attrs)
        if found is None:
            return None
        return Routine(op, entry("update", "Update", kind, found[0]), lambda a, _out, at: pack_update(op, a, at), attrs)
    if op in ROWS:
        name, form, pack = ROWS[op]
        functor = [AFTER_BIAS[attrs["kind"]]] if "bias_act" in op else []
        return Routine(op, entry(name, form, kind, *functor), pack, attrs) if suits(op, args, attrs) else None
    if op in jit_conv.IMAGES:
        name, form, options, pack = jit_conv.IMAGES[op]
        source = entry(name, form, kind, *options)
        return Routine(op, source, pack, attrs) if jit_conv.suits(op, args, attrs) else None
    return Elementwise.of(op, args, attrs)


def entry(name: str, form: str, *types: str) -> str:
    """The text of an instance of a function of rows.h."""
    return f"GG_EXPORT long long NAME(const {form}* a) {{ return {name}<{', '.join(types)}>(*a); }}\n"


class Latest:
    """A compiled chain, `latest(outs, ins)`: with the very arrays of the last call it is one foreign call."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self.given: Any = ()
        self.go: Callable[[], None] = lambda: None

    def __call__(self, outs: Sequence[Any], ins: Sequence[Any]) -> None:
        if not same((outs, ins), self.given):
            self.go, self.given = self.compiled.bind(outs, ins), frozen((outs, ins))
        self.go()


class Elementwise:
    """A compiled elementwise op, a chain of one step: `routine(*arrays, out=None)`."""

    def __init__(self, chain: Chain, dtypes: Sequence[Any], places: list[int], source: str) -> None:
        self.chain, self.dtypes, self.places, self.source = chain, dtypes, places, source
        self.compiled: Compiled | None = None
        self.given: Any = ()
        self.go: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, op: str, args: Sequence[Any], attrs: dict[str, Any]) -> Elementwise | None:
        """The op on such arguments, None if it has no functor."""
        if op not in TABLE or not fusable(op, attrs):
            return None
        places = [i for i, a in enumerate(args) if hasattr(a, "dtype")]
        numbers = {place: k for k, place in enumerate(places)}
        operands = tuple(numbers[i] if i in numbers else None if a is None else Const(a) for i, a in enumerate(args))
        if op == DROPOUT and np.broadcast_shapes(*(args[i].shape for i in places)) != args[0].shape:
            return None
        chain = Chain(len(places), (Step(op, operands, tuple(attrs.items())),), (len(places),))
        dtypes = [args[i].dtype for i in places]
        source = host_source(chain, dtypes)
        return None if source is None else cls(chain, dtypes, places, source)

    def __call__(self, *args: Any, out: Any = None) -> Any:
        if out is None or not same((args, out), self.given):
            ins = [args[i] for i in self.places]
            if out is None:
                out = np.empty(np.broadcast_shapes(*(a.shape for a in ins)), self.chain.dtypes(self.dtypes)[-1])
            lies = order_of(out.shape, out.strides, out.itemsize)
            if lies != self.chain.order and (not lies or self.chain.steps[0].op != DROPOUT):
                self.chain, self.compiled = replace(self.chain, order=lies or ()), None
            if self.compiled is None:
                self.compiled = self.chain.compile_cpu(self.dtypes)
            if self.compiled is None or lies != self.chain.order:
                self.chain.numpy([out], ins)
                return out
            self.go, self.given = self.compiled.bind([out], ins), frozen((args, out))
        self.go()
        return out


def compile_all(routines: Iterable[Routine | Elementwise], chains: Iterable[tuple[Chain, Sequence[Any]]] = ()) -> None:
    """Compile what a program needs, routines and (chain, dtypes of its inputs), in one run of the compiler."""
    texts = [r.source for r in routines]
    texts += [text for chain, dtypes in chains if (text := host_source(chain, dtypes)) is not None]
    if texts and compiler.enabled():
        compiler.host_functions(texts)
