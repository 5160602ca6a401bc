"""Programs: a traced step as a flat list of calls of table ops, and the passes that shorten it.

A program's values are numbered slots. Some are given at every run (inputs), some are arrays outside that are read and
written where they are (captures: parameters, optimiser state, random counters), some are constants; every other one is
made by a call. A pass is a function from Program to Program.
"""

from __future__ import annotations

import base64
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.errors import ReplayError, fail, locate
from gpugrad.op import TABLE

INPUT, CAPTURE, CONSTANT, VALUE = "input", "capture", "constant", "value"
MUST_RUN = frozenset({"assert_finite"})  # calls that object to values, whether or not their result is used


@dataclass(frozen=True)
class Ref:
    """A slot as an operand."""

    slot: int


@dataclass
class Slot:
    """One value: what it looks like, where it comes from, and the slot whose memory it shares (`storage`)."""

    shape: tuple[int, ...]
    dtype: Any
    strides: tuple[int, ...]
    kind: str
    storage: int
    name: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True)
class Call:
    """One op on slots and Python values.

    `outs` has the structure of what the op returns, with slot numbers for arrays and None for anything else. `writes`:
    the slots whose memory it changes. `code` and `lasti`: the user's line.
    """

    op: str
    args: tuple[Any, ...]
    attrs: dict[str, Any]
    outs: Any
    writes: tuple[int, ...] = ()
    code: CodeType | None = None
    lasti: int = 0
    place: str = ""

    @property
    def line(self) -> str:
        """'file.py:12', as listings show it."""
        if self.code is None:
            return self.place
        file, line, _ = locate(self.code, self.lasti)
        return f"{file.replace(chr(92), '/').rpartition('/')[2]}:{line}"

    def reads(self) -> list[int]:
        """The slots among the operands."""
        return list(slots_of(self.args))

    def makes(self) -> list[int]:
        """The slots among the results."""
        return list(leaves(self.outs))


def slots_of(args: Any) -> Iterator[int]:
    """Slot numbers in nested operands."""
    for a in args:
        if type(a) is Ref:
            yield a.slot
        elif isinstance(a, (list, tuple)):
            yield from slots_of(a)


def leaves(outs: Any) -> Iterator[int]:
    """Slot numbers in the structure of results."""
    if isinstance(outs, tuple):
        for o in outs:
            yield from leaves(o)
    elif outs is not None:
        yield outs


def mapped(f: Callable[[int], Any], args: Any) -> Any:
    """Nested operands with f applied to slot numbers."""
    if type(args) is Ref:
        return f(args.slot)
    return type(args)(mapped(f, a) for a in args) if isinstance(args, (list, tuple)) else args


@dataclass
class Program:
    """Slots and calls: `inputs` and `results` are slot numbers, `arrays` holds captures and constants.

    `results` begin with the gradients that a step leaves in its leaves. `chains`: what a fused call stands for.
    `array_type`: that of all its arrays, None if they are on several devices.
    """

    slots: dict[int, Slot]
    calls: list[Call]
    inputs: list[int]
    results: list[int]
    arrays: dict[int, Any]
    eager_bytes: int = 0
    planned_bytes: int = 0
    chains: dict[str, Any] = field(default_factory=dict)
    array_type: type | None = np.ndarray

    @property
    def peak_bytes(self) -> tuple[int, int]:
        """Most bytes of values alive at once: in the traced run, and with the buffers that replays use."""
        return self.eager_bytes, self.planned_bytes

    def written(self) -> list[int]:
        """The inputs and captures that a run changes, as storage slots in order of appearance."""
        roots = dict.fromkeys(self.slots[w].storage for call in self.calls for w in call.writes)
        return [s for s in roots if self.slots[s].kind in (INPUT, CAPTURE)]

    def run(self, *given: Any, perform: Callable[..., Any] | None = None) -> list[Any]:
        """Execute call by call on raw arrays; the results in order. Captured arrays are read and written in place.

        perform: (call, values by slot) -> what the call returns, where that is not an op of the table.
        """
        values: dict[int, Any] = {**self.arrays, **dict(zip(self.inputs, given))}
        last = {i: n for n, call in enumerate(self.calls) for i in (*call.makes(), *call.reads())}
        last.update(dict.fromkeys(self.results, -1))
        for n, call in enumerate(self.calls):
            bind(call.outs, (perform or execute)(call, values), values)
            for i in {*call.makes(), *call.reads()}:
                if last[i] == n and i not in self.arrays:
                    del values[i]
        return [values[r] for r in self.results]

    # --- text -----------------------------------------------------------------------------------------------

    def label(self, slot: int) -> str:
        """How listings call a slot."""
        s = self.slots[slot]
        return s.name or (f"{'c' if s.kind == CONSTANT else '%'}{slot}")

    def show(self, call: Call) -> str:
        """One line of the listing."""

        def text(a: Any) -> str:
            if type(a) is Ref:
                return self.label(a.slot)
            if isinstance(a, (list, tuple)):
                inner = ", ".join(map(text, a))
                return f"[{inner}]" if isinstance(a, list) else f"({inner})"
            return a.name if isinstance(a, np.dtype) else repr(a)

        def result(o: Any) -> str:
            if isinstance(o, tuple):
                return ", ".join(map(result, o))
            return "_" if o is None else self.label(o)

        attrs = [f"{k}={text(v)}" for k, v in call.attrs.items() if v is not None]
        made = call.makes()
        head = f"{result(call.outs)} = " if made else ""
        kinds = " ".join(f"{self.slots[o].dtype.name}{list(self.slots[o].shape)}" for o in made[:1])
        body = f"{head}{call.op}({', '.join([*map(text, call.args), *attrs])}) {kinds}".rstrip()
        return f"{body:<76} {call.line}".rstrip()

    def __str__(self) -> str:
        def listed(kind: str) -> str:
            found = [s for s in self.slots if self.slots[s].kind == kind]
            return ", ".join(f"{self.label(s)} {self.slots[s].dtype.name}{list(self.slots[s].shape)}" for s in found)

        head = [f"{kind}s: {text}" for kind in (INPUT, CAPTURE, CONSTANT) if (text := listed(kind))]
        body = [self.show(c) for c in self.calls]
        ends = ["return " + ", ".join(map(self.label, self.results))]
        ends += [f"{name}:\n{textwrap.indent(str(chain), '    ')}" for name, chain in self.chains.items()]
        return "\n".join([*head, *body, *ends])

    # --- JSON -----------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The program with the values of its captures and constants; `from_json` makes one that runs alike.

        Raises ReplayError for a call whose attributes have no JSON form.
        """
        return json.dumps(
            {
                "version": 1,
                "slots": {
                    str(i): [list(s.shape), s.dtype.name, list(s.strides), s.kind, s.storage, s.name]
                    for i, s in self.slots.items()
                },
                "calls": [
                    {"op": c.op, "args": [encode(a, c.op) for a in c.args], "outs": encode(c.outs, c.op),
                     "attrs": {k: encode(v, c.op) for k, v in c.attrs.items()}, "writes": list(c.writes),
                     "line": c.line}
                    for c in self.calls
                ],
                "inputs": self.inputs, "results": self.results,
                "arrays": {str(i): pack(a) for i, a in self.arrays.items()},
                "bytes": self.peak_bytes,
            }
        )  # fmt: skip

    @staticmethod
    def from_json(text: str) -> Program:
        """A program as `to_json` wrote it, with captured arrays of its own, on the CPU."""
        data = json.loads(text)
        slots = {
            int(i): Slot(tuple(shape), dtype_named(dtype), tuple(strides), kind, storage, name)
            for i, (shape, dtype, strides, kind, storage, name) in data["slots"].items()
        }
        calls = [
            Call(c["op"], tuple(decode(a) for a in c["args"]), {k: decode(v) for k, v in c["attrs"].items()},
                 decode(c["outs"]), tuple(c["writes"]), place=c["line"])
            for c in data["calls"]
        ]  # fmt: skip
        arrays = {int(i): unpack(a) for i, a in data["arrays"].items()}
        return Program(slots, calls, data["inputs"], data["results"], arrays, *data["bytes"])


def execute(call: Call, values: dict[int, Any]) -> Any:
    """One call on raw values; what the op returns."""
    args = [mapped(values.__getitem__, a) for a in call.args]
    first = next(a for a in flat(args) if hasattr(a, "dtype"))
    return TABLE[call.op].impls[backends.of(first).array_type](*args, **call.attrs)


def flat(args: Iterable[Any]) -> Iterator[Any]:
    """The entries of nested lists and tuples."""
    for a in args:
        if isinstance(a, (list, tuple)):
            yield from flat(a)
        else:
            yield a


def copies(what: str, slots: list[int]) -> Call:
    """What stands for the copying of values where a profile lists it."""
    return Call(what, tuple(map(Ref, slots)), {}, tuple(slots))


def bind(outs: Any, made: Any, values: dict[int, Any]) -> None:
    """Put what an op returned into the slots of its structure."""
    if isinstance(outs, tuple):
        for o, m in zip(outs, made):
            bind(o, m, values)
    elif outs is not None:
        values[outs] = np.asarray(made) if isinstance(made, np.generic) else made


# --- JSON values --------------------------------------------------------------------------------------------


def encode(x: Any, op: str) -> Any:
    """A Python value of a call in JSON."""
    if x is None or type(x) in (bool, int, float, str):
        return x
    if type(x) is Ref:
        return {"slot": x.slot}
    if type(x) is list:
        return [encode(v, op) for v in x]
    if type(x) is tuple:
        return {"tuple": [encode(v, op) for v in x]}
    if type(x) is slice:
        return {"slice": [encode(v, op) for v in (x.start, x.stop, x.step)]}
    if x is Ellipsis:
        return {"ellipsis": True}
    if isinstance(x, np.dtype):
        return {"dtype": x.name}
    if isinstance(x, np.generic):
        return {"scalar": pack(np.asarray(x))}
    raise fail(ReplayError, op, f"{type(x).__name__} {x!r} in a call has no JSON form")


def decode(x: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(x, list):
        return [decode(v) for v in x]
    if not isinstance(x, dict):
        return x
    ((kind, v),) = x.items()
    if kind == "slot":
        return Ref(v)
    if kind == "tuple":
        return tuple(decode(w) for w in v)
    if kind == "slice":
        return slice(*map(decode, v))
    if kind == "dtype":
        return dtype_named(v)
    return unpack(v)[()] if kind == "scalar" else ...


def dtype_named(name: str) -> Any:
    """A dtype by name, bfloat16 included where ml_dtypes is installed."""
    if name == "bfloat16":
        import ml_dtypes  # type: ignore[import-not-found, unused-ignore]

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def pack(array: Any) -> list[Any]:
    """An array as dtype, shape and base64 of its bytes."""
    host = np.asarray(backends.of(array).to_numpy(array))
    return [host.dtype.name, list(host.shape), base64.b64encode(host.tobytes()).decode()]


def unpack(packed: Sequence[Any]) -> Any:
    """The inverse of `pack`: a new array."""
    dtype, shape, text = packed
    return np.frombuffer(base64.b64decode(text), dtype_named(dtype)).reshape(shape).copy()


# --- passes -------------------------------------------------------------------------------------------------


def dead_code(program: Program) -> Program:
    """Without calls of which nothing is used: no result needs them, and they change nothing that outlives a run."""
    slots = program.slots
    live = {slots[r].storage for r in program.results}
    live |= {i for i, s in slots.items() if s.kind in (INPUT, CAPTURE)}
    used, kept = set(program.results), []
    for call in reversed(program.calls):
        changes = any(slots[w].storage in live for w in call.writes)
        if changes or call.op in MUST_RUN or any(m in used for m in call.makes()):
            kept.append(call)
            used.update(call.reads())
            live.update(slots[r].storage for r in call.reads())
    return swept(replace(program, calls=kept[::-1]))


def swept(program: Program) -> Program:
    """Without slots that no call and no result mentions."""
    used = {*program.inputs, *program.results}
    for call in program.calls:
        used.update(call.reads(), call.makes())
    used |= {program.slots[i].storage for i in used}
    return replace(
        program, slots={i: s for i, s in program.slots.items() if i in used},
        arrays={i: a for i, a in program.arrays.items() if i in used},
    )  # fmt: skip


def common_subexpressions(program: Program) -> Program:
    """Every expression computed once: an equal call on values that were not written in between gives equal bits.

    Values that are written in place, or leave the program, keep memory of their own.
    """
    slots, version = program.slots, dict.fromkeys(program.slots, 0)
    own = {slots[w].storage for c in program.calls for w in c.writes} | {slots[r].storage for r in program.results}
    seen: dict[Any, Call] = {}
    same: dict[int, int] = {}
    calls = []
    for call in program.calls:
        call = replace(call, args=tuple(mapped(lambda i: Ref(same.get(i, i)), a) for a in call.args))
        made = call.makes()
        if not call.writes and made and not any(slots[m].storage in own for m in made):
            states = tuple((r, version[slots[r].storage]) for r in call.reads())
            key = call.op, repr(call.args), repr(call.attrs), states
            first = seen.setdefault(key, call)
            if first is not call:
                same.update(zip(made, first.makes()))
                continue
        for w in call.writes:
            version[slots[w].storage] += 1
        calls.append(call)
    return swept(replace(program, calls=calls))


def without_copies(program: Program) -> Program:
    """Copies of values that nothing else keeps are the values themselves, such as a gradient that was a view."""
    slots, same, calls = program.slots, dict[int, int](), list[Call]()
    written = {slots[w].storage for c in program.calls for w in c.writes}
    taken = written | {slots[r].storage for r in program.results}
    for call in program.calls:
        call = replace(call, args=tuple(mapped(lambda i: Ref(same.get(i, i)), a) for a in call.args))
        if call.op == "positive" and call.reads():
            x, out = slots[call.reads()[0]], slots[call.outs]
            alike = (x.strides, x.dtype, x.nbytes) == (out.strides, out.dtype, slots[x.storage].nbytes)
            if alike and slots[x.storage].kind == VALUE and x.storage not in taken and call.outs not in written:
                taken.add(x.storage)
                same[call.outs] = call.reads()[0]
                continue
        calls.append(call)
    return swept(replace(program, calls=calls, results=[same.get(r, r) for r in program.results]))


def constants(program: Program) -> Program:
    """What does not depend on any value is computed now: fills of a shape, and calls on constants that stay small."""
    slots, arrays = dict(program.slots), dict(program.arrays)
    written = {slots[w].storage for c in program.calls for w in c.writes} | {slots[r].storage for r in program.results}
    known = {i for i, s in slots.items() if s.kind == CONSTANT and s.storage not in written}
    calls = []
    for call in program.calls:
        made, reads = call.makes(), call.reads()
        fill = call.op in FILLS and program.array_type is not None
        pure = made and not call.writes and call.op in TABLE and TABLE[call.op].kind != "update"
        small = all(slots[m].nbytes <= FOLDED or slots[m].storage != m for m in made)
        fixed = fill or (bool(reads) and all(r in known for r in reads))
        if not (pure and small and fixed) or any(slots[m].storage in written for m in made):
            calls.append(call)
            continue
        if fill:
            s = slots[call.outs]
            xp = backends.of_type(program.array_type).xp  # type: ignore[arg-type]
            found: dict[int, Any] = {call.outs: xp.full(s.shape, FILLS[call.op], s.dtype)}
        else:
            found = {r: arrays[r] for r in reads}
            bind(call.outs, execute(call, found), found)
        for m in made:
            slots[m] = replace(slots[m], kind=CONSTANT, storage=m)
            arrays[m] = found[m]
            known.add(m)
    return swept(replace(program, calls=calls, slots=slots, arrays=arrays))


FILLS = {"ones_like": 1, "zeros_like": 0}
FOLDED = 1 << 16  # bytes of a constant that is worth keeping
