"""What a traced step read of Python: globals, closures, attributes. A replay would not read them again, so it checks.

While the step runs, a profile hook sees every function that is entered. Which names a function mentions is in its code
object; the values that these names had in its globals, its closure and the objects that it was given are noted. That
is a superset of what it read, and includes what it assigned, which is just as well: an attribute that the step itself
changes would stay as it was in a replay, so it is an error.
"""

from __future__ import annotations

import copy
import dis
import enum
import gc
import os
import random
import sys
import types
from collections import Counter, UserDict
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from gpugrad.errors import ReplayError, fail
from gpugrad.op import Raw
from gpugrad.tensor import Node, Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, np.generic, np.dtype, slice, range)
OPAQUE = (*PLAIN, Tensor, Node, Raw, np.ndarray, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
OWN = __name__.partition(".")[0]
STATEFUL = tuple(f"{OWN}.{m}" for m in ("nn", "optim", "train", "data", "losses", "ops.random"))
LIBRARY = os.path.dirname(os.__file__) + os.sep
DEPTH, WIDTH = 4, 256  # how far values are followed, and how many elements of a container
SMALL = 1024  # elements of a NumPy array whose values are compared where it is no operand of the program


ANEW = "which a replay would not do again; use gg.random, or pass the numbers as arguments"


class Frozen(NamedTuple):
    """One Python value that a program was traced with: how the step calls it, its value, and the line."""

    name: str
    value: Any
    line: str

    def __str__(self) -> str:
        shown = repr(self.value) if isinstance(self.value, PLAIN) else type(self.value).__name__
        return f"{self.name} = {shown}  ({self.line})"


class Read:
    """One place that was read: `holder` (an object, dict or cell) and the name there, with the value found."""

    def __init__(
        self, kind: str, holder: Any, name: Any, value: Any, code: types.CodeType, text: str, root: Any
    ) -> None:
        self.kind, self.holder, self.name, self.value = kind, holder, name, value
        self.code, self.text, self.root = code, text, root
        self.content, self.state = contents(value), generator_state(value)

    def at(self, holder: Any) -> Read:
        """The same read of a holder that is found later."""
        found = copy.copy(self)
        found.holder = holder
        return found

    def held(self) -> list[Any]:
        """What this keeps alive."""
        inside = [v[1] if isinstance(v, tuple) else v for v in self.content or ()]
        return [self.root, self.holder, self.value, *(v.value for v in inside if isinstance(v, Identity))]

    def now(self) -> Any:
        """The value at present. Raises AttributeError, KeyError or ValueError if there is none any more."""
        if self.kind == "attribute":
            return getattr(self.holder, self.name)
        return self.holder.cell_contents if self.kind == "cell" else self.holder[self.name]

    def holds(self) -> bool:
        """Whether the place has the value it had."""
        try:
            return same(self.now(), self.value) and (self.content is None or contents(self.value) == self.content)
        except (AttributeError, KeyError, ValueError):
            return False

    def condition(self, names: dict[str, Any]) -> str:
        """The same as the text of an expression."""

        def let(value: Any) -> str:
            names[f"v{len(names)}"] = value
            return f"v{len(names) - 1}"

        held = let(self.holder)
        place = {"attribute": f"{held}.{self.name}", "cell": f"{held}.cell_contents"}.get(self.kind)
        place = place or f"{held}[{self.name!r}]"
        if isinstance(self.value, PLAIN) or type(self.value) is tuple:
            value = let(self.value)
            return f"({place} is {value} or same({place}, {value}))"
        value = let(self.value)
        if self.content is None:
            return f"{place} is {value}"
        if isinstance(self.value, np.ndarray):
            return f"{place} is {value} and contents({value}) == {let(self.content)}"
        if not self.content:
            return f"{place} is {value} and not {value}"
        known = let(list(self.value.values()) if isinstance(self.value, dict) else list(self.value))
        current = f"{value}.values()" if isinstance(self.value, dict) else value
        alike = f"len({value}) == {len(self.content)} and all(map(is_, {current}, {known}))"
        alike = (
            f"{alike} and all(map(is_, {value}, {let(list(self.value))}))" if isinstance(self.value, dict) else alike
        )
        return f"{place} is {value} and ({alike} or contents({value}) == {let(self.content)})"

    def frozen(self) -> Frozen:
        """As users see it."""
        return Frozen(self.text, self.value, self.line())

    def line(self) -> str:
        """'file.py:12' where the code mentions it."""
        line = self.code.co_firstlineno
        for instruction in dis.get_instructions(self.code):
            line = line_of(instruction, line)
            if self.name in (instruction.argval, instruction.argrepr):
                break
        else:
            line = self.code.co_firstlineno
        return f"{self.code.co_filename}:{line}"


def line_of(instruction: Any, before: int) -> int:
    """The line that an instruction belongs to; Python 3.13 gave it a name of its own."""
    started = getattr(instruction, "line_number", instruction.starts_line)
    return started if type(started) is int else before


class Identity:
    """An element of a container, compared by identity unless it is a plain value."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and same(self.value, other.value)


def contents(x: Any) -> list[Any] | None:
    """The elements of a container that can change, to be compared later; None for anything else."""
    if isinstance(x, dict):
        return [(k, Identity(v)) for k, v in x.items()]
    if isinstance(x, (list, set)):
        return [Identity(v) for v in x]
    return [x.tobytes()] if isinstance(x, np.ndarray) and x.size <= SMALL and x.dtype.kind != "O" else None


def same(a: Any, b: Any) -> bool:
    """Identical, or equal plain values of one type."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) is tuple:
        return len(a) == len(b) and all(map(same, a, b))
    return isinstance(a, PLAIN) and (bool(a == b) or (a != a and b != b))


def watched(module: str, filename: str) -> bool:
    """Whether a module's functions are looked at: the user's, and those of this package that have state."""
    if module.partition(".")[0] == OWN:
        return any(module == m or module.startswith(m + ".") for m in STATEFUL)
    if module.partition(".")[0] == "numpy" or filename.startswith("<frozen"):
        return False
    return not filename.startswith(LIBRARY) or "site-packages" in filename


class Watch:
    """A context in which reads of Python values are noted, and afterwards the check that they are as they were."""

    def __init__(self, f: Callable[..., Any], operands: Callable[[], Iterable[Any]] = tuple) -> None:
        self.operands = operands  # the arrays that the program reads anew at every run
        self.f = getattr(f, "__func__", f)
        self.reads: dict[Any, Read] = {}
        self.free: dict[types.CodeType, dict[str, Read]] = {}  # closure variables, whose cells are found afterwards
        self._modules: dict[str, bool] = {}
        self._seen: set[Any] = set()
        self._ran: set[types.CodeType] = set()
        self._check: Callable[[], bool] = lambda: True

    def __enter__(self) -> Watch:
        self._shared = shared_state()
        self._collecting = gc.isenabled()
        gc.disable()  # what others do at a collection is no part of the step
        self._before = sys.getprofile()
        sys.setprofile(self._entered)
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        sys.setprofile(self._before)
        if self._collecting:
            gc.enable()
        if kind is None:
            self._close()

    # --- while the step runs --------------------------------------------------------------------------------

    def _entered(self, frame: Any, event: str, arg: Any) -> None:
        """The profile hook."""
        if event != "call":
            return
        module = frame.f_globals.get("__name__", "")
        known = self._modules.get(module)
        if known is None:
            known = self._modules[module] = watched(module, frame.f_code.co_filename)
        if known:
            self._look(frame.f_code, frame, module.partition(".")[0] != OWN)

    def frozen(self) -> list[Frozen]:
        """The plain values among what was read."""
        return [
            r.frozen() for r in self.reads.values() if isinstance(r.value, (*PLAIN, tuple)) or r.content is not None
        ]

    def changed(self) -> str:
        """What is not as it was, with its line; empty if all is."""
        try:
            if self._check():
                return ""
        except (AttributeError, KeyError, ValueError):
            pass
        r = next((r for r in self.reads.values() if not r.holds()), None)
        return "" if r is None else f"{r.text} changed, which the step read at {r.line()}"

    def _look(self, code: types.CodeType, frame: Any, users: bool) -> None:
        """Note what the names of a function stand for as it begins; globals only in code of the user's."""
        given, names = frame.f_locals, frozenset(code.co_names)
        self._ran.add(code)
        if users:
            space = frame.f_globals
            for name in code.co_names:
                if name in space and (code, name) not in self._seen:
                    self._seen.add((code, name))
                    self._note("item", space, name, space[name], code, name, None)
                    self._follow(space[name], names, code, name, None, 0)
        else:  # constants, but for objects that have state, such as the default generator
            for name in code.co_names:
                if not isinstance(space := frame.f_globals.get(name), (*OPAQUE, types.ModuleType, dict, list, tuple)):
                    self._follow(space, names, code, name, None, 0)
        for name in code.co_freevars:
            if name in given:
                if name not in self.free.setdefault(code, {}):
                    self.free[code][name] = Read("cell", None, name, given[name], code, name, None)
                self._follow(given[name], names, code, name, None, 0)
        count = code.co_argcount + code.co_kwonlyargcount
        for name in code.co_varnames[:count]:
            value = given.get(name)
            if not isinstance(value, OPAQUE) and (code, id(value)) not in self._seen:
                self._seen.add((code, id(value)))
                self._follow(value, names, code, name, value, 0)

    def _note(self, kind: str, holder: Any, name: Any, value: Any, code: Any, text: str, root: Any) -> None:
        """Keep the first value seen at a place."""
        if isinstance(value, types.ModuleType):
            return
        key = kind, id(holder), name
        if key not in self.reads:
            self.reads[key] = Read(kind, holder, name, value, code, text, root)

    def _follow(self, x: Any, names: frozenset[str], code: Any, text: str, root: Any, depth: int) -> None:
        """Note the attributes and items of a value that the code names, and theirs."""
        if depth >= DEPTH or isinstance(x, OPAQUE) or type(x).__name__ == "Traced":
            return
        if isinstance(x, types.ModuleType):
            if x.__name__.partition(".")[0] != OWN and watched(x.__name__, getattr(x, "__file__", None) or LIBRARY):
                for name in names & vars(x).keys():
                    self._note("item", vars(x), name, vars(x)[name], code, f"{text}.{name}", None)
                    self._follow(vars(x)[name], names, code, f"{text}.{name}", None, depth + 1)
            return
        if isinstance(x, (list, tuple)):
            for i, v in enumerate(x[:WIDTH]):
                self._follow(v, names, code, f"{text}[{i}]", root, depth + 1)
            return
        table = x.data if isinstance(x, UserDict) else x
        if isinstance(table, dict):
            for k in code.co_consts:
                if type(k) in (str, int) and k in table:
                    self._note("item", table, k, table[k], code, f"{text}[{k!r}]", root)
                    self._follow(table[k], names, code, f"{text}[{k!r}]", root, depth + 1)
        own = getattr(x, "__dict__", {})
        for name in names:
            if name in own or plain_in_class(type(x), name):
                value = own[name] if name in own else getattr(x, name, None)
                self._note("attribute", x, name, value, code, f"{text}.{name}", root)
                self._follow(value, names, code, f"{text}.{name}", root, depth + 1)

    # --- afterwards -----------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Keep what outlives the step; raise ReplayError for what the step itself changed."""
        self._seen.clear()
        self._drop_temporary()
        self._note_cells()
        live = set(map(id, self.operands()))
        for r in self.reads.values():
            r.content = None if id(r.value) in live else r.content
        if shared_state() != self._shared:
            raise fail(ReplayError, "replay", f"the step draws from Python's or NumPy's own generator, {ANEW}")
        for r in self.reads.values():
            if generator_state(r.value) != r.state:
                raise ReplayError(f"[replay] the step draws from {r.text}, {ANEW}\n  at {r.line()}")
            if not r.holds():
                place = r.line()
                raise ReplayError(
                    f"[replay] the step itself changes {r.text}, which a replay would not do; change it outside the "
                    f"step, or keep it in a tensor that the step updates in place\n  at {place}"
                )
        names: dict[str, Any] = {}
        conditions = [r.condition(names) for r in self.reads.values()]
        text = "\n    and ".join(conditions) or "True"
        space: dict[str, Any] = {**names, "same": same, "contents": contents, "is_": is_}
        exec(f"def check():\n  return ({text})", space)
        self._check = space["check"]

    def _note_cells(self) -> None:
        """Note the cells of the closures that ran; of several functions with one code, those that hold what it saw.

        If none does, the step changed it, or the function was made within the step and is gone.
        """
        within = {c for code in self._ran for c in code.co_consts if isinstance(c, types.CodeType)}
        functions: dict[types.CodeType, list[Any]] = {code: [] for code in self.free}
        for fn in gc.get_referrers(*self.free) if self.free else ():
            if isinstance(fn, types.FunctionType) and fn.__code__ in functions:
                functions[fn.__code__].append(fn)
        functions.update({code: [self.f] for code in functions if code is getattr(self.f, "__code__", None)})
        for code, values in self.free.items():
            for name, r in values.items():
                cells = [fn.__closure__[code.co_freevars.index(name)] for fn in functions[code]]
                for cell in [c for c in cells if same(held(c), r.value)] or cells[: code not in within]:
                    self.reads["cell", id(cell), name] = r.at(cell)
        self.free = {}

    def _drop_temporary(self) -> None:
        """Forget reads of objects that were made within the step: nothing but this holds them."""
        while True:
            ours = Counter(id(x) for r in self.reads.values() for x in r.held())
            roots = {id(r.root): r.root for r in self.reads.values() if r.root is not None}
            dead = {key for key in roots if references(roots, key) <= ALONE + ours[key]}
            if not dead:
                return
            self.reads = {k: r for k, r in self.reads.items() if r.root is None or id(r.root) not in dead}


def references(held: dict[int, Any], key: int) -> int:
    """How many references there are to a value in a dict."""
    return sys.getrefcount(held[key])


ALONE = references({0: object()}, 0)


def held(cell: Any) -> Any:
    """What a closure's cell holds; the cell itself if nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def generator_state(x: Any) -> str | None:
    """The state of a random generator of Python's or NumPy's; None for anything else."""
    if isinstance(x, np.random.Generator):
        return repr(x.bit_generator.state)
    if isinstance(x, np.random.RandomState):
        return repr(x.get_state(legacy=False))
    return repr(x.getstate()) if isinstance(x, random.Random) else None


def shared_state() -> str:
    """The state of the generators behind the functions of `random` and `numpy.random`."""
    return repr((random.getstate(), np.random.get_state(legacy=False)))  # noqa: NPY002


def plain_in_class(cls: type, name: str) -> bool:
    """Whether a class has a plain value, or a slot, of this name."""
    found = next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), is_)
    return isinstance(found, (*PLAIN, tuple, types.MemberDescriptorType))
