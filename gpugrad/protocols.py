"""NumPy's functions on Tensors: `np.sin(t)`, `np.mean(t, axis=0)`, `np.linalg.svd(t)` give Tensors and differentiate.

NumPy asks an argument's class before it runs a ufunc (`__array_ufunc__`) or another function (`__array_function__`).
Both look the function up by its name, once: in `gpugrad.numpy_functions` where NumPy
means something else than we do, otherwise in the namespace of gpugrad; so do the ufuncs of scipy.special. Arguments are
NumPy's, with its names and defaults; dtypes are ours (a float32 tensor stays float32). A function that has no
counterpart raises DTypeError. Those for which gpugrad has no name of its own are found there by NumPy's name as well:
`gpugrad.kron`, `gpugrad.linalg.norm`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import numpy as np

import gpugrad as gg
from gpugrad import backends
from gpugrad.errors import DTypeError, GpugradError, GraphError, ShapeError, describe, fail
from gpugrad.state import mode
from gpugrad.tensor import Tensor
from gpugrad.tree import tree_leaves, tree_map

NOT_GIVEN: Any = np._NoValue  # type: ignore[attr-defined]
Call = Callable[..., Any]

# --- where NumPy and the Array API differ in name only ------------------------------------------------------

RENAMED = {
    "absolute": "abs", "fabs": "abs", "power": "pow", "conjugate": "conj", "degrees": "rad2deg", "radians": "deg2rad",
    "invert": "bitwise_invert", "left_shift": "bitwise_left_shift", "right_shift": "bitwise_right_shift",
    **{f"arc{n}": f"a{n}" for n in ("sin", "cos", "tan", "tan2", "sinh", "cosh", "tanh")},
}  # fmt: skip
HINTS = {
    "in1d": "use np.isin", "roots": "they may be complex, as eigenvalues are, which have no gradients yet",
    "linalg.eig": "np.linalg.eigh has gradients, for symmetric matrices", "linalg.eigvals": "use np.linalg.eigvalsh",
}  # fmt: skip
OTHERWISE = "use functions of gpugrad, or x.detach().numpy() for NumPy's answer on the values alone"
NO_EFFECT = frozenset({"subok", "kind", "optimize", "overwrite_input", "assume_unique", "order", "sorted", "stable"})
ARRAYS = frozenset(
    {"a", "A", "b", "f", "m", "p", "u", "v", "x", "y", "z", "a1", "a2", "ar", "ar1", "ar2", "x1", "x2", "xp", "fp",
     "arr", "ary", "array", "element", "test_elements", "val", "values", "weights"}
)  # fmt: skip
IN_PLACE = frozenset({"copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask"})
VALUES = frozenset(  # what reads values for people and files, where no derivative is lost
    {"array_repr", "array_str", "array2string", "save", "savetxt", "savez", "savez_compressed", "shares_memory",
     "may_share_memory", "einsum_path"}
)  # fmt: skip


def public(name: str) -> Any:
    """What `gpugrad.<name>` is, or None; the name may have dots."""
    found: Any = gg
    for part in name.split("."):
        found = vars(found).get(part) if isinstance(found, ModuleType) else None
    return found if callable(found) else None


def refusal(name: str, module: str = "numpy") -> GpugradError:
    """The error for a function of NumPy or SciPy that we cannot follow."""
    return fail(DTypeError, f"{module}.{name}", f"gpugrad has no such function; {HINTS.get(name, OTHERWISE)}")


def weak(x: Any, like: Tensor) -> Tensor:
    """Numbers, alone or in nested lists, as a Tensor of the type and on the device of another, where they can be."""
    return gg.asarray(x, dtype=like.dtype if like.dtype.kind in "fcV" else None, device=like.device)


def operand(x: Any, like: Any) -> Any:
    """An argument that may be nested lists."""
    return weak(x, like) if isinstance(x, (list, tuple)) and like is not None else x


def first_tensor(values: Any) -> Any:
    """The first Tensor among arguments, or None."""
    return next((v for v in tree_leaves(list(values)) if isinstance(v, Tensor)), None)


def arrays(values: list[Any]) -> list[Any]:
    """Arrays as Tensors; so are numbers in lists, which go by the first Tensor among them."""
    tensors = [gg.asarray(v) if backends.is_raw(v) else v for v in values]
    like = first_tensor(tensors)
    lists = (list, tuple)
    return [(gg.asarray(v) if like is None else weak(v, like)) if isinstance(v, lists) else v for v in tensors]


def write(out: Any, result: Any, name: str) -> Any:
    """Put a result where out= says, as an assignment would, and return that.

    Raises DTypeError for a cast that NumPy would not make, GraphError for a NumPy array where gradients are recorded.
    """
    if not np.can_cast(result.dtype, out.dtype, "same_kind"):
        raise fail(DTypeError, f"numpy.{name}", f"the result {describe(result)} cannot be written into {describe(out)}")
    if isinstance(out, Tensor):
        out[...] = result
    elif live(result):
        raise fail(GraphError, f"numpy.{name}", "out= is a NumPy array, which would end the gradient; leave it out")
    else:
        out[...] = result.numpy()
    return out


def live(x: Any) -> bool:
    """Whether gradients flow through x."""
    return mode.enabled and isinstance(x, Tensor) and x.node is not None and x.node.spent is None


# --- ufuncs -------------------------------------------------------------------------------------------------


class Ufuncs(dict[Any, Call]):
    """Each ufunc of NumPy and of scipy.special with ours, filled at the first use."""

    def __missing__(self, ufunc: Any) -> Call:
        name, module, found = ufunc.__name__, "numpy", None
        if getattr(np, name, None) is ufunc:
            found = own(f"_np_{name}") or public(RENAMED.get(name, name))
        else:
            module = "scipy.special" if getattr(sys.modules.get("scipy.special"), name, None) is ufunc else "ufunc"
            if module == "scipy.special":
                from gpugrad import special  # has SciPy's names

                found = getattr(special, name, None)
        if found is None:
            raise refusal(name, module)
        self[ufunc] = found
        return found


UFUNCS = Ufuncs()


def call(ufunc: Any, *xs: Any, where: Any = True, dtype: Any = None, out: Any = None, **options: Any) -> Any:
    """`ufunc(*xs)` with its options; where=mask needs out=, whose other elements stay."""
    if dtype is not None:
        xs = tuple(gg.astype(gg.asarray(x), dtype) for x in xs)
    result = UFUNCS[ufunc](*xs, **options)
    if where is True:
        return result
    if out is None:
        raise fail(DTypeError, f"numpy.{ufunc.__name__}", "where= without out= leaves elements undefined; give out=")
    return gg.where(where, result, gg.asarray(out))


REDUCTIONS = {
    "add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min", "logical_and": "all", "logical_or": "any",
}  # fmt: skip
IDENTITY = {"sum": 0, "prod": 1, "all": True, "any": False}
COMBINE = {"sum": "add", "prod": "multiply", "max": "maximum", "min": "minimum"}


def reduce(
    ufunc: Any, x: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False,
    initial: Any = NOT_GIVEN, where: Any = True,
) -> Any:  # fmt: skip
    """`ufunc.reduce`: the reduction of that meaning, or the ufunc from element to element along one axis."""
    name, x = REDUCTIONS.get(ufunc.__name__), gg.asarray(x)
    if name:
        return reduction(name, x, axis, dtype, keepdims, initial, where)
    if ufunc.__name__ == "logaddexp" and where is True and initial is NOT_GIVEN:
        return gg.logsumexp(x, axis=axis, keepdims=keepdims)
    if not isinstance(axis, (int, np.integer)) or where is not True:
        raise fail(DTypeError, f"numpy.{ufunc.__name__}.reduce", f"axis={axis!r}; expected one axis, and no where=")
    parts = gg.unstack(x if dtype is None else gg.astype(x, dtype), axis=int(axis))
    if initial is NOT_GIVEN and not parts:
        raise fail(ShapeError, f"numpy.{ufunc.__name__}.reduce", f"axis {axis} of {describe(x)} is empty")
    folded = functools.reduce(UFUNCS[ufunc], parts, *([] if initial is NOT_GIVEN else [initial]))
    return gg.expand_dims(folded, axis) if keepdims else folded


def reduction(name: str, x: Any, axis: Any, dtype: Any, keepdims: Any, initial: Any, where: Any) -> Any:
    """sum, prod, max, min, all or any, with a mask of the elements that count and a value to start from."""
    x, keepdims = gg.asarray(x), keepdims is not NOT_GIVEN and bool(keepdims)
    started = initial is not NOT_GIVEN and initial is not None
    if where is not True and where is not NOT_GIVEN:
        if name in ("max", "min") and not started:
            raise fail(DTypeError, f"numpy.{name}", "where= needs initial=, for what has no elements")
        x = gg.where(where, gg.astype(x, bool) if name in ("all", "any") else x, IDENTITY.get(name, initial))
    options = {} if dtype is None else {"dtype": dtype}
    if started and name in ("max", "min") and 0 in x.shape:  # over an empty axis just the initial value is left
        return gg.where(False, gg.sum(x, axis=axis, keepdims=keepdims), initial)
    result = public(name)(x, axis=axis, keepdims=keepdims, **options)
    return public(COMBINE[name])(result, initial) if started and name in COMBINE else result


RUNNING = {
    "add": "cumulative_sum", "multiply": "cumulative_prod", "maximum": "cumulative_max", "minimum": "cumulative_min",
}  # fmt: skip


def accumulate(ufunc: Any, x: Any, axis: int = 0, dtype: Any = None, out: Any = None) -> Any:
    """`ufunc.accumulate`: all partial results along an axis."""
    x = gg.asarray(x) if dtype is None else gg.astype(gg.asarray(x), dtype)
    name = RUNNING.get(ufunc.__name__)
    if name or not x.shape[axis]:
        return public(name)(x, axis=axis) if name else x
    return gg.stack(list(itertools.accumulate(gg.unstack(x, axis=axis), UFUNCS[ufunc])), axis=axis)


def outer(ufunc: Any, x: Any, y: Any, **options: Any) -> Any:
    """`ufunc.outer`: the ufunc of every element of x with every element of y."""
    x, y = gg.asarray(x), gg.asarray(y)
    return call(ufunc, gg.reshape(x, (*x.shape, *(1,) * y.ndim)), y, **options)


METHODS: dict[str, Call] = {"__call__": call, "reduce": reduce, "accumulate": accumulate, "outer": outer}


class Ufunc(property):
    """`Tensor.__array_ufunc__`: NumPy looks for it in the class, and calls it.

    CuPy, masked arrays and NumPy's mixins look for it in the object, to learn who answers `array + tensor`: there it is
    None, which leaves the operator to the Tensor.
    """

    def __call__(self, tensor: Tensor, ufunc: Any, method: str, /, *xs: Any, **options: Any) -> Any:
        dtype, arrays = tensor.data.dtype, list(xs)
        for i, x in enumerate(xs):
            if type(x) is np.ndarray:
                if x.dtype is dtype:  # as most are: saves the operation a look at it
                    arrays[i] = Tensor(x)
            elif isinstance(x, np.generic):
                arrays[i] = x.item()  # as weak as Python's numbers
            elif isinstance(x, (list, tuple)):
                arrays[i] = operand(x, tensor)
            elif not isinstance(x, (Tensor, int, float, complex)) and not backends.is_raw(x):
                return NotImplemented
        if method == "__call__" and not options:
            return UFUNCS[ufunc](*arrays)
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        if method not in METHODS:
            hint = "use x.at[index].add(values) and its kind" if method == "at" else OTHERWISE
            raise fail(DTypeError, f"numpy.{name}", f"gpugrad has no such method; {hint}")
        for unused in ("order", "subok", "casting"):
            options.pop(unused, None)
        outs = options.pop("out", ())
        if len(outs) == 1 and "where" in options and method == "__call__":
            options["out"] = outs[0]
        result = METHODS[method](ufunc, *arrays, **options)
        if all(o is None for o in outs):
            return result
        if len(outs) == 1:
            return write(outs[0], result, name)
        return tuple(r if o is None else write(o, r, name) for o, r in zip(outs, result))


# --- other functions ------------------------------------------------------------------------------------------


class Functions(dict[Any, Call]):
    """Each function of NumPy with ours, called with NumPy's arguments; filled at the first use."""

    def __missing__(self, func: Any) -> Call:
        name = f"{func.__module__}.{func.__name__}".removeprefix("numpy.")
        key = name.replace(".", "_") if "." in name else f"np_{name}"
        ours = own(f"_{key}") or public(name)
        if name in VALUES:
            found: Call = functools.partial(read, func)
        elif ours is not None:
            found = translated(name, func, ours)
        else:
            raise refusal(name)
        self[func] = found
        return found


FUNCTIONS = Functions()


def read(func: Any, *args: Any, **given: Any) -> Any:
    """NumPy's own function on the values of Tensors."""
    args, given = tree_map(lambda v: v.numpy() if isinstance(v, Tensor) else v, (args, given))
    return func(*args, **given)


def translated(name: str, func: Any, ours: Call) -> Call:
    """A function of ours behind the arguments of NumPy's.

    Arguments have the same name in both, or else the same place. One that ours lacks may have its default value only;
    out= is written to afterwards.
    """
    mine = inspect.signature(ours).parameters
    try:
        theirs = inspect.signature(func).parameters
    except ValueError:  # functions written in C, in old versions
        theirs = mine
    if any(p.kind is p.VAR_POSITIONAL for p in theirs.values()):

        def variadic(*args: Any, out: Any = None, **given: Any) -> Any:
            result = ours(*args, **{k: v for k, v in given.items() if k not in NO_EFFECT})
            return result if out is None else write(out, result, name)

        return variadic
    positional = [n for n, p in mine.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    wanted = {}
    for i, n in enumerate(theirs):
        if n in mine:
            wanted[n] = n
        elif i < len(positional) and positional[i] not in theirs:
            wanted[n] = positional[i]
    leading = [n for n in positional if mine[n].kind is mine[n].POSITIONAL_ONLY]
    defaults = {n: p.default for n, p in theirs.items()}

    def run(*args: Any, **given: Any) -> Any:
        given.update(zip(theirs, args))
        out, passed = given.pop("out", None), {}
        for n, v in given.items():
            if n in ARRAYS:
                passed[wanted[n]] = operand(v, first_tensor(given.values())) if isinstance(v, (list, tuple)) else v
            elif v is NOT_GIVEN or v is defaults.get(n, NOT_GIVEN):
                continue
            elif n in wanted or n in mine:
                passed[wanted.get(n, n)] = v
            elif n not in NO_EFFECT:
                raise fail(DTypeError, f"numpy.{name}", f"{n}={v!r} is not supported")
        result = ours(*[passed.pop(n) for n in leading if n in passed], **passed)
        return result if out is None else write(out, result, name)

    return run


def array_function(self: Tensor, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """NumPy's functions that are no ufuncs, on Tensors; see `gpugrad.protocols`."""
    for cls in types:
        if cls is not Tensor and cls is not np.ndarray and not raw_type(cls):
            return NotImplemented
    return FUNCTIONS[func](*args, **kwargs)


def raw_type(cls: type) -> bool:
    """Whether arrays of a type can be operands."""
    try:
        return issubclass(cls, Tensor) or backends.of_type(cls) is not None
    except GpugradError:
        return False


def own(name: str) -> Call | None:
    """Our own version of a function of NumPy's."""
    return next((vars(part)[name] for part in parts() if name in vars(part)), None)


@functools.cache
def parts() -> tuple[ModuleType, ...]:
    """The modules with our own versions, imported at the first use: most programs never ask."""
    return tuple(importlib.import_module(f"gpugrad.numpy_{part}") for part in ("functions", "matrices", "sets"))


# --- NumPy's functions by our name ----------------------------------------------------------------------------


@functools.cache
def namesake(name: str) -> Call:
    """`gpugrad.<name>` where that is a function of NumPy: its arguments, of which arrays and lists become Tensors.

    Raises AttributeError where there is none, or none of ours that answers to it.
    """
    space, _, last = name.rpartition(".")
    missing = AttributeError(f"module {'gpugrad' + (space and '.') + space!r} has no attribute {last!r}")
    func = getattr(getattr(np, space) if space else np, last, None)
    if last.startswith("_") or last in IN_PLACE or not (callable(func) or space):
        raise missing  # an array that becomes a Tensor cannot be written to
    ours, run = own(f"_{space or 'np'}_{last}"), cast(Call, None)
    try:
        if isinstance(func, np.ufunc):
            ours, run = UFUNCS[func], functools.partial(call, func)
        elif hasattr(func, "_implementation") and last not in VALUES:
            run = FUNCTIONS[func]
        elif ours is not None:  # NumPy has no such function, or it is no concern of its arguments
            run, func = ours, ours
        else:
            raise missing
    except DTypeError:
        raise missing from None
    try:
        signature = inspect.signature(func)  # type: ignore[arg-type]
    except ValueError:  # functions written in C, in old versions
        signature = inspect.signature(ours or run)
    loose = next((n for n, p in signature.parameters.items() if p.kind is p.VAR_POSITIONAL), None)

    def offered(*args: Any, **given: Any) -> Any:
        if isinstance(func, np.ufunc):
            return run(*arrays(list(args)), **given)
        bound = signature.bind(*args, **given)
        chosen = [n for n in bound.arguments if n in ARRAYS]
        bound.arguments.update(zip(chosen, arrays([bound.arguments[n] for n in chosen])))
        if loose in bound.arguments:
            bound.arguments[loose] = tuple(arrays(list(bound.arguments[loose])))
        return run(*bound.args, **bound.kwargs)

    offered.__name__, offered.__qualname__, offered.__module__ = last, last, "gpugrad" + (space and f".{space}")
    offered.__signature__ = signature  # type: ignore[attr-defined]
    offered.__doc__ = getattr(ours, "__doc__", None) or f"NumPy's {name}: with gradients, if it has them."
    return offered


def offer(module: ModuleType, prefix: str) -> None:
    """Let a module find the functions of NumPy that it has no name of its own for."""
    module.__getattr__ = lambda name: namesake(prefix + name)  # type: ignore[method-assign]
    module.__dir__ = lambda: sorted({*vars(module), *offers(prefix)})  # type: ignore[method-assign]


@functools.cache
def offers(prefix: str) -> tuple[str, ...]:
    """The names that `namesake` knows: of NumPy, or of one of its parts."""
    space, mark = getattr(np, prefix[:-1]) if prefix else np, f"_{prefix[:-1] or 'np'}_"
    mine = {n.removeprefix(mark) for part in parts() for n in vars(part) if n.startswith(mark)}
    return tuple(sorted(n for n in {*dir(space), *mine} if offered_as(prefix + n)))


def offered_as(name: str) -> bool:
    """Whether `namesake` knows a name."""
    try:
        return namesake(name) is not None
    except AttributeError:
        return False


Tensor.__array_ufunc__ = Ufunc(lambda self: None)  # type: ignore[attr-defined]
Tensor.__array_function__ = array_function  # type: ignore[attr-defined]
