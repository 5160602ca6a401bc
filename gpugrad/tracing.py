"""Tracing: arrays that run every op for real and log it, so that a whole step becomes a flat Program.

A Traced stands where a plain array stands, within a Tensor, so dispatchers, rules and the walk run on it unchanged:
forward, backward and update end up in one list. While a trace is open, all Tensors that exist hold Traced arrays, and
NumPy arrays that enter are wrapped, so nothing is computed behind its back: what a Tensor outside holds is captured by
reference, and read anew at every run. Other threads compute on the same Tensors meanwhile; their ops are not logged.
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from gpugrad import backends, operands
from gpugrad.errors import GpugradError, ReplayError, fail, place, user_frame
from gpugrad.interpret import register
from gpugrad.layered import Layered, Level
from gpugrad.op import TABLE
from gpugrad.ops import creation
from gpugrad.program import CAPTURE, INPUT, VALUE, Call, Ref, Slot, flat
from gpugrad.state import owner
from gpugrad.tensor import Leaf, Tensor

asarray: Any = creation.asarray


COUNTED = {"gather": 1, "positions": 0}  # ops whose shape depends on a mask among the arguments from this one on


class Running(threading.local):
    """The trace that is open in this thread."""

    trace: Trace | None = None


running = Running()


class Traced(Layered):
    """A plain array with its slot in the program; an array from outside gets one when it is first used."""

    __slots__ = ("__weakref__", "array", "slot")

    def __init__(self, level: Trace, array: Any, slot: int | None = None) -> None:
        self.level, self.array, self.slot = level, array, slot

    @property
    def inner(self) -> Any:
        """The plain array."""
        return self.array

    @property
    def base(self) -> Any:  # type: ignore[override]
        """The array that this is a view of; itself, if it is the very array that another value is."""
        shared = self.slot is not None and self.level.slots[self.slot].storage != self.slot
        return self.array if shared and self.array.base is None else self.array.base

    @property
    def constant(self) -> Traced:
        """The array itself: it has no tangents."""
        return self

    @property
    def values(self) -> Any:
        """The plain array, for other threads. Raises ReplayError within the trace: the program would not see it."""
        if self.level.logging:
            self.level.refuse(
                "the step reads a value on the host, which a replay would not do again; return it from the step and "
                "read it there, choose between values with gg.where, or leave this outside"
            )
        return self.array

    def item(self) -> Any:
        """As `values`."""
        return self.values.item()

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.values


class Trace(Level):
    """One open trace: a context in which the ops of this thread are logged.

    strict: raise at the line that cannot be replayed. Otherwise the step runs to its end, and `refused` says why.
    """

    in_place = True

    def __init__(self, strict: bool = True) -> None:
        super().__init__()
        self.strict = strict
        self.refused: GpugradError | None = None
        self.slots: dict[int, Slot] = {}
        self.calls: list[Call] = []
        self.inputs: list[int] = []
        self.types: set[type] = set()
        self.arrays: dict[int, Any] = {}  # of captures, by slot
        self.before: dict[int, Any] = {}  # values of captures before they were first written
        self.rebound: list[Tensor] = []  # existing tensors that the step gave another array
        self.entered: set[int] = set()  # ids of NumPy arrays that user code brought in
        self.known: dict[int, int] = {}  # id of a captured array -> slot
        self.alive: dict[int, int] = {}  # storage -> arrays of it that the step still holds
        self.bytes = self.peak = 0
        self.thread = threading.get_ident()

    @property
    def logging(self) -> bool:
        """Whether this thread's ops go into the program."""
        return self.open and threading.get_ident() == self.thread

    def refuse(self, message: str) -> None:
        """The user's line does what a replay cannot."""
        error = fail(ReplayError, "replay", message, outside_numpy())
        if self.strict:
            raise error
        self.refused = self.refused or error

    # --- slots ----------------------------------------------------------------------------------------------

    def new(self, array: Any, kind: str, name: str = "", storage: int | None = None) -> int:
        """A new slot for an array."""
        i = len(self.slots)
        own = i if storage is None else storage
        strides = tuple(array.strides)
        self.types.add(type(array))
        self.slots[i] = Slot(tuple(array.shape), array.dtype, strides, kind, own, name)
        return i

    def input(self, array: Any, name: str) -> Traced:
        """An argument of the step."""
        i = self.new(array, INPUT, name)
        self.inputs.append(i)
        return Traced(self, array, i)

    def wrap(self, x: Any) -> Traced:
        """A plain array from outside."""
        return Traced(self, x)

    def lift(self, x: Any) -> Any:
        """As `wrap`, for Tensors too."""
        return Tensor(self.wrap(x.data), x.node) if isinstance(x, Tensor) else self.wrap(x)

    def lower(self, g: Any) -> Any:
        """The plain array of a value."""
        return Tensor(lowered(g.data), g.node) if isinstance(g, Tensor) else lowered(g)

    def slot(self, x: Any) -> int:
        """The number of an array's slot; one from outside is captured."""
        if isinstance(x, Traced):
            if x.slot is None:
                x.slot = self.slot(x.array)
            return x.slot
        i = self.known.get(id(x))
        if i is None:
            i = self.known[id(x)] = self.new(x, CAPTURE)
            root = next((j for j, a in self.arrays.items() if shares(x, a)), i) if x.base is not None else i
            self.slots[i].storage = self.slots[root].storage
            self.arrays[i] = x
        return i

    # --- ops ------------------------------------------------------------------------------------------------

    def run(self, op: Any, args: Any, attrs: dict[str, Any]) -> Any:
        """Run an op on the plain arrays and log it."""
        raws = lowered(list(args))
        if any(isinstance(a, Layered) for a in flat(raws)):
            raise fail(
                ReplayError, "replay",
                "the step reads a value of a jvp or vmap around it, which is another one at every call; pass it as an "
                "argument, or call the function itself there",
            )  # fmt: skip
        first = next(a for a in flat(raws) if hasattr(a, "dtype"))
        run = op.impls[type(first)]
        if not self.logging:
            return run(*raws, **attrs)
        if op.name in COUNTED and any(a.dtype.kind == "b" for a in raws[COUNTED[op.name] :]):
            self.refuse(
                "the step selects by a mask as many elements as are true, a number that a replay cannot change; "
                "keep the shape and choose with gg.where"
            )
        operands = tuple(self.operand(a) for a in args)
        written = operands[: op.call.written] if op.kind == "update" else ()
        writes = tuple(dict.fromkeys(s for a in written for s in refs(a)))
        for w in writes:
            if w in self.arrays and w not in self.before:
                self.before[w] = self.arrays[w].copy()
        made = run(*raws, **attrs)
        given = [(a, s) for a, s in zip(flat(raws), flat(operands)) if type(s) is Ref]
        out, outs = self.results(made, given)
        self.calls.append(Call(op.name, operands, attrs, outs, writes, *user_frame(sys._getframe(1))))
        return out

    def operand(self, a: Any) -> Any:
        """An argument as the program has it."""
        if isinstance(a, (list, tuple)):
            return type(a)(self.operand(v) for v in a)
        return Ref(self.slot(a)) if isinstance(a, Traced) or backends.is_raw(a) else a

    def results(self, made: Any, given: list[Any]) -> tuple[Any, Any]:
        """What an op returned with arrays as Traced, and its structure with slot numbers."""
        if isinstance(made, (tuple, list)):
            pairs = [self.results(m, given) for m in made]
            return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
        if isinstance(made, np.generic):
            made = np.asarray(made)
        if not backends.is_raw(made):
            return made, None
        storage = next((self.slots[s.slot].storage for a, s in given if shares(made, a)), None)
        i = self.new(made, VALUE, storage=storage)
        given.append((made, Ref(i)))
        traced = Traced(self, made, i)
        self.hold(traced)
        return traced, i

    def hold(self, traced: Traced) -> None:
        """Count the bytes of a value while the step holds it."""
        root = self.slots[traced.slot].storage  # type: ignore[index]
        if self.slots[root].kind != VALUE:
            return
        if not self.alive.get(root):
            self.alive[root] = 0
            self.bytes += self.slots[root].nbytes
            self.peak = max(self.peak, self.bytes)
        self.alive[root] += 1
        weakref.finalize(traced, self.drop, root).atexit = False

    def drop(self, root: int) -> None:
        """The step let go of a value."""
        self.alive[root] -= 1
        if not self.alive[root]:
            self.bytes -= self.slots[root].nbytes

    # --- opening and closing --------------------------------------------------------------------------------

    def __enter__(self) -> Trace:
        self.outer, running.trace = running.trace, self
        plain = [t for t in tensors() if backends.is_raw(t.data) and not isinstance(t.data, Layered)]
        self.bound = [(t, self.wrap(t.data)) for t in plain]
        self.grads = {n: n.grad for n in gc.get_objects() if type(n) is Leaf}
        install()
        for t, traced in self.bound:
            t.data = traced
        return self

    def __exit__(self, *error: Any) -> None:
        """Tensors get plain arrays again: those that existed their own, with what the step made of them in it."""
        running.trace = self.outer
        try:
            if error[0] is None:
                self.write_back()
        finally:
            uninstall()
            self.open = False
            self.used = [(t, traced.array, t.node) for t, traced in self.bound if traced.slot is not None]
            for t, traced in self.bound:
                if t.data is traced:
                    t.data = traced.array
            for t in tensors():
                if isinstance(t.data, Traced) and t.data.level is self:
                    t.data = t.data.array
            self.bound = []

    def write_back(self) -> None:
        """A Tensor that the step gave another array, as accumulating a gradient does, keeps its memory instead."""
        for t, traced in self.bound:
            now = t.data
            if now is traced or not isinstance(now, Traced) or now.level is not self:
                continue
            if now.shape != traced.shape or now.array.dtype != traced.array.dtype:
                raise fail(
                    ReplayError, "replay",
                    f"the step replaces the values of a tensor {traced.array.dtype}{list(traced.shape)} by "
                    f"{now.array.dtype}{list(now.shape)}, which a replay cannot do; return the new one",
                )  # fmt: skip
            self.run(TABLE["assign"], (traced, now), {"index": (...,)})
            t.data = traced
            self.rebound.append(t)


def outside_numpy() -> str:
    """The user's line, also where NumPy's Python code lies between."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("gpugrad", "numpy"):
        frame = frame.f_back
    return place(frame.f_code, frame.f_lasti)


def lowered(x: Any) -> Any:
    """The plain arrays of nested arguments."""
    if isinstance(x, (list, tuple)):
        return type(x)(lowered(v) for v in x)
    return x.array if isinstance(x, Traced) else x


def refs(a: Any) -> list[int]:
    """The slots of one operand, which may be a list."""
    return [r.slot for r in flat([a]) if type(r) is Ref]


def shares(a: Any, b: Any) -> bool:
    """Whether two arrays share memory."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(a.size and b.size and np.may_share_memory(a, b))
    return type(a) is type(b) and owner(a) is owner(b)


def tensors() -> list[Tensor]:
    """All Tensors that exist."""
    return [t for t in gc.get_objects() if type(t) is Tensor and hasattr(t, "data")]


# --- NumPy arrays that enter while a trace is open ------------------------------------------------------------


def entering(constant: Callable[..., Any]) -> Callable[..., Any]:
    """`operands.constant`, with an array of the user's as one from outside."""

    def run(op: str, x: Any, like: Any = None) -> Any:
        a = constant(op, x, like)
        trace = running.trace
        if trace is None or not backends.is_raw(x) or isinstance(a, Layered):
            return a
        trace.entered.add(id(a))
        return trace.wrap(a)

    return run


def made_of(made: Callable[..., Any]) -> Callable[..., Any]:
    """`creation._made`, with an array of the user's as one from outside, from which values are taken by ops."""

    def run(data: Any, dtype: Any, device: str | None, copy: bool | None, op: str) -> Any:
        trace = running.trace
        if trace is None or not backends.is_raw(data):
            return made(data, dtype, device, copy, op)
        if not isinstance(data, Traced):
            trace.entered.add(id(data))
            data = trace.wrap(data)
        place = device or creation.get_default_device()
        return asarray(Tensor(data), dtype, place if backends.of(data).name == "cpu" else device, copy)

    return run


SEAMS = (
    (operands.constant, entering(operands.constant)),
    (creation._made, made_of(creation._made)),
)
_lock, _count = threading.Lock(), [0]


def exchange(pairs: Any) -> None:
    """Put one function for another in every module of the package that names it."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "gpugrad":
            for attribute, value in list(vars(module).items()):
                for old, new in pairs:
                    if value is old and module is not sys.modules[__name__]:
                        setattr(module, attribute, new)


def install() -> None:
    """Watch what enters, as long as some trace is open."""
    with _lock:
        _count[0] += 1
        if _count[0] == 1:
            register(Traced)
            exchange(SEAMS)


def uninstall() -> None:
    """The inverse of `install`."""
    with _lock:
        _count[0] -= 1
        if _count[0] == 0:
            exchange([(new, old) for old, new in SEAMS])
