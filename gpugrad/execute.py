"""How a Program runs on NumPy: as one straight-line Python function with planned buffers. On a GPU: see graph.py.

A value that a NumPy function can write with `out=` gets a place in one piece of memory, which values that are not
alive at once share. Views of such values, and of captured arrays, are made once. Everything else calls the op's own
implementation, so the bits are those of the eager step.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gpugrad import backends, compiler, jit, proof
from gpugrad.chain import DROPOUT
from gpugrad.errors import ReplayError, fail
from gpugrad.fuse import apart, forward_and_backward, fuse, order
from gpugrad.op import TABLE
from gpugrad.ops.loss import BOTH, both
from gpugrad.program import CAPTURE, INPUT, VALUE, Call, Program, Ref, bind, copies, flat, mapped
from gpugrad.swap import bare

VIEWS = frozenset({"alias", "broadcast_to", "flip", "getitem", "matrix_transpose", "reshape", "transpose"})
ALIGN = 64
COPIED = 1 << 16  # bytes of an argument or result that is copied to or from a fixed place
LARGE = 1 << 17  # elements of a chain that is run in pieces on NumPy
FREED = 1 << 14  # bytes of a value that is let go as soon as it is not needed


def own_memory(call: Call) -> Any:
    """The NumPy function that computes a call into a given array as its last argument, or None.

    Either a ufunc, or a forward with a parameter `into`, where it may put its result.
    """
    op = TABLE.get(call.op)
    if op is None or type(call.outs) is not int or call.writes:
        return None
    run = op.impls.special.get("cpu", op.fwd)
    if isinstance(run, str):
        found = getattr(np, run)
        return found if isinstance(found, np.ufunc) and found.nout == 1 and not call.attrs else None
    code = getattr(run, "__code__", None)
    return run if code is not None and "into" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] else None


def packed(slot: Any) -> bool:
    """Whether an array fills its memory without gaps, in some order of its axes."""
    expected = slot.dtype.itemsize
    for stride, n in sorted(zip(slot.strides, slot.shape)):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True


def new_array(slot: Any) -> Any:
    """Memory for an array without gaps, its axes in the order that a slot has them."""
    axes = sorted(range(len(slot.shape)), key=lambda i: -slot.strides[i])
    made = np.empty([slot.shape[i] for i in axes], slot.dtype)
    return made if axes == sorted(axes) else made.transpose(np.argsort(axes))


class Room:
    """An array, and beside it its memory but no view of it, so that references can be counted."""

    def __init__(self, slot: Any) -> None:
        self.array = np.empty(slot.shape, slot.dtype)
        self.inside = np.asarray(Window(self.array))
        self.alone = sys.getrefcount(self.array)

    def held(self) -> bool:
        """Whether anybody else has the array or a view of it."""
        return sys.getrefcount(self.array) > self.alone


class Lent:
    """A large result: one of two arrays for the caller, written again by a later run once nobody holds it or a view.

    Fresh memory costs more than many a computation, for the system clears it page by page. Two, because a caller
    often holds the last result while the next is made.
    """

    def __init__(self, slot: Any) -> None:
        self.slot = slot
        self.last: Room | None = None
        self.other: Room | None = None

    def take(self) -> Any:
        """What the run writes to: the memory of `last.array`."""
        if self.last is None or self.last.held():
            self.last, self.other = self.other, self.last
        if self.last is None or self.last.held():
            self.last = Room(self.slot)
        return self.last.inside


class Window:
    """The memory of an array, which it keeps alive."""

    def __init__(self, array: Any) -> None:
        self.array, self.__array_interface__ = array, array.__array_interface__


class Lives:
    """When each piece of memory is last used, by call numbers."""

    def __init__(self, program: Program) -> None:
        slots = program.slots
        self.last: dict[int, int] = {}
        for n, call in enumerate(program.calls):
            for i in (*call.makes(), *call.reads()):
                self.last[slots[i].storage] = n
        for i in program.results:
            self.last[slots[i].storage] = len(program.calls)


def plan(program: Program, lives: Lives, placed: dict[int, bool], escaping: set[int]) -> tuple[dict[int, int], int]:
    """Places in one piece of memory for the results of calls: slot -> offset, and its size.

    placed: the numbers of the calls that write where they are told, and whether they may write over an operand of the
    same layout that nobody needs any more. escaping: storages that stay with the caller, which get no place. Large
    values are placed first, each at the lowest place that is free while it lives.
    """
    slots = program.slots
    spans: dict[int, list[int]] = {}  # by the first slot that has a place: when it is made, and last used
    same: dict[int, int] = {}  # slot -> that first slot
    for n, call in enumerate(program.calls):
        reads = call.reads()
        for o in call.makes() if n in placed else ():
            out = slots[o]
            if out.storage != o or o in escaping or not math.prod(out.shape) or not packed(out):
                continue
            over = [r for r in reads if placed[n] and r in same and lives.last[r] == n == spans[same[r]][1]
                    and (slots[r].shape, slots[r].strides, slots[r].dtype) == (out.shape, out.strides, out.dtype)
                    and not any(q != r and slots[q].storage == r for q in reads)]  # fmt: skip
            same[o] = same[over[0]] if over else o
            spans.setdefault(same[o], [n, n])[1] = lives.last[o]
    order = sorted(spans, key=lambda i: (-slots[i].nbytes, spans[i][0]))
    starts, ends = (np.array([spans[i][k] for i in order], np.int64) for k in (0, 1))
    low, high = (np.zeros(len(order), np.int64) for _ in range(2))
    for k, i in enumerate(order):
        beside = np.flatnonzero((starts[:k] <= ends[k]) & (ends[:k] >= starts[k]))
        at, size = 0, padded(slots[i].nbytes)
        for j in beside[np.argsort(low[beside], kind="stable")].tolist():
            if low[j] - at >= size:
                break
            at = max(at, int(high[j]))
        low[k], high[k] = at, at + size
    offsets = dict(zip(order, low.tolist()))
    return {o: offsets[first] for o, first in same.items()}, int(high.max(initial=0))


def padded(size: int) -> int:
    """Bytes of a place."""
    return -(-size // ALIGN) * ALIGN


def compilable(chain: Any, dtypes: list[Any], shape: tuple[int, ...]) -> bool:
    """Whether a compiled chain is better than its calls one by one."""
    return len(chain.steps) + len(chain.ends) > 1 and chain.source("cpu", dtypes) is not None


def worth_pieces(chain: Any, dtypes: list[Any], shape: tuple[int, ...]) -> bool:
    """Whether to run a chain piece by piece on NumPy: where its values would not stay in the cache.

    Not the short ones between convolutions, whose arrays lie in an order of their own: one by one is faster.
    """
    return len(chain.steps) > 1 and math.prod(shape) >= LARGE and not chain.order


def nested(outs: Any, arrays: dict[int, Any]) -> Any:
    """The arrays of a structure of slots."""
    if isinstance(outs, tuple):
        return tuple(nested(o, arrays) for o in outs)
    return None if outs is None else arrays[outs]


class Source:
    """The text of a function under construction, and the names it refers to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"np": np, "asarray": np.asarray, "ndarray": np.ndarray}
        self._known: dict[int, str] = {}

    def name(self, value: Any, stem: str) -> str:
        """A global name for a value."""
        found = self._known.get(id(value))
        if found is None:
            found = self._known[id(value)] = f"{stem}{len(self.names)}"
            self.names[found] = value
        return found

    def hold(self, value: Any) -> str:
        """A global name for a value that nothing else holds."""
        name = f"h{len(self.names)}"
        self.names[name] = value
        return name


class Runner:
    """What runs a program in which compiled pieces stand for calls.

    `parts`: what a run does one after the other, numbered calls and, as number -1, calls that stand for `copies`.
    `logical`: the program as it was traced. `compiled`: whether there may be such pieces.
    """

    program: Program
    logical: Program
    compiled: bool
    parts: list[tuple[int, Call]]

    def timed(self, now: Callable[[], Any], keep: Callable[[Any], None], *given: Any) -> list[Any]:
        """What `run` does, with keep(now()) before its first part and after each."""
        raise NotImplementedError

    def reference(self, n: int, call: Call, args: list[Any], values: dict[int, Any]) -> Any:
        """What the ops that a call stands for give."""
        raise NotImplementedError

    def standin(self, n: int, call: Call) -> Callable[..., Any] | None:
        """What runs a call compiled, on any arrays, giving its results in order; None for a call of an op."""
        raise NotImplementedError

    def check(self, given: list[Any]) -> None:
        """Run every compiled piece on copies, beside what its ops mean. Raises ReplayError where it is further off.

        Further than the ops' bounds allow, that is (`gpugrad.proof`), and of other bits than the ops' own. What it
        gives goes on to the next piece. `unproved`: how many elements of a call, by its text, had no bound.
        """
        program = self.program
        self.unproved: dict[str, int] = {}
        values: dict[int, Any] = {i: a.copy() for i, a in (*program.arrays.items(), *zip(program.inputs, given))}
        last = {i: n for n, call in enumerate(program.calls) for i in (*call.makes(), *self.needs(call))}
        for n, call in enumerate(program.calls):
            args = [mapped(values.__getitem__, a) for a in call.args]
            ready = self.standin(n, call)
            if ready is None:
                bind(call.outs, self.reference(n, call, args, values), values)
            else:
                mine = [mapped(lambda i: values[i].copy("K"), a) for a in call.args]
                made = ready(*mine)
                got = list(flat([made] if call.makes() else mine))
                wrong, unknown = self.verdict(n, call, got, args, values)
                if wrong and not self.same_bits(n, call, got, args, values):
                    raise fail(ReplayError, "replay", f"the compiled code of {program.show(call)} differs from its ops")
                if unknown:
                    self.unproved[program.show(call)] = unknown
                bind(call.outs, made, values)
                for a, b in zip(flat(args), flat(mine)) if not call.makes() else ():
                    if hasattr(a, "dtype"):
                        a[...] = b
            for i in {*call.makes(), *self.needs(call)}:
                if last[i] == n:
                    del values[i]

    def needs(self, call: Call) -> list[int]:
        """The slots that a call or what it stands for reads."""
        return call.reads()

    def verdict(self, n: int, call: Call, got: list[Any], args: list[Any], values: dict[int, Any]) -> tuple[int, int]:
        """How many elements of a compiled call's results are too far off, and of how many nothing can be said."""
        raise NotImplementedError

    def same_bits(self, n: int, call: Call, got: list[Any], args: list[Any], values: dict[int, Any]) -> bool:
        """Whether the ops give the very bits: what declines arrays that it was not made for leaves them to the ops."""
        kept = [mapped(lambda i: values[i].copy("K"), a) for a in call.args]
        made = self.reference(n, call, kept, values)
        pairs = zip(got, flat([made] if call.makes() else kept))
        return all(on_host(a).tobytes() == on_host(b).tobytes() for a, b in pairs if hasattr(a, "dtype"))


class Host(Runner):
    """A program as a Python function of raw arrays; `source` is its text, `memory` what it computes in.

    `kept`: result slots whose memory may be reused by the next run; all others are new arrays every time. compiled:
    with chains, row kernels and optimisers of `jit`, where there is a compiler: within their published error.
    """

    def __init__(self, program: Program, kept: frozenset[int] = frozenset(), compiled: bool = False) -> None:
        self.compiled, self.logical, self.kept = compiled and compiler.enabled(), program, kept
        program = forward_and_backward(apart(program) if self.compiled else program)
        program = fuse(program, compilable if self.compiled else worth_pieces, ("sum", "mean") if self.compiled else ())
        self.program = program
        slots, lives = program.slots, Lives(program)
        leaving = [r for r in program.results if r not in kept]
        escaping = {slots[r].storage for r in leaving if slots[r].nbytes > COPIED}
        outside = {i for i, s in slots.items() if s.kind in (INPUT, CAPTURE)}
        self.copied = {r for r in leaving if slots[r].storage not in escaping | outside}
        self.arrays = dict(program.arrays)
        self.routines = self.find_routines()
        self.small = self.staged()
        placed = {n: over for n, c in enumerate(program.calls) if (over := self.placing(n, c)) is not None}
        self.lent = {m: Lent(slots[m]) for n in placed for m in program.calls[n].makes() if self.lends(n, m, escaping)}
        places, size = plan(program, lives, placed, escaping)
        self.logical.planned_bytes = size
        self.memory = aligned(size)
        known: dict[Any, Any] = {}  # one object for all values that lie alike in one place: fewer cache misses
        for i, at in places.items():
            lies = slots[i].shape, slots[i].dtype, at, slots[i].strides
            if lies not in known:
                known[lies] = np.ndarray(lies[0], lies[1], self.memory, *lies[2:])
            self.arrays[i] = known[lies]
        self.text = Source()
        given = [i for i in program.inputs if i in self.small]
        for i in given:
            self.arrays[i] = np.empty_like(np.ndarray(slots[i].shape, slots[i].dtype, strides=None))
            self.text.lines.append(f"{self.operand(Ref(i))}[...] = t{i}")
        self.text.lines += [f"t{m} = {self.text.name(lent, 'p')}.take()" for m, lent in self.lent.items()]
        self.parts, self.ends = [], [0]  # the number of lines before the first part and after each
        self.close(-1, copies("arguments", given))
        for n, call in enumerate(program.calls):
            if not self.settled(call):
                self.emit(n, call)
            self.release(n, call, lives)
            self.close(n, call)
        head = "def run(" + ", ".join(f"t{i}" for i in program.inputs) + "):"
        results = ", ".join(map(self.result, program.results))
        body = [*self.text.lines, f"return [{results}]"]
        self.source = "\n    ".join([head, *body])
        exec(compile(self.source, "<replay>", "exec"), self.text.names)
        self.run: Callable[..., list[Any]] = self.text.names["run"]

    def timed(self, now: Callable[[], Any], keep: Callable[[Any], None], *given: Any) -> list[Any]:
        """The same lines with the clock read between them."""
        return self.twin(now, keep, *given)

    @functools.cached_property
    def twin(self) -> Callable[..., list[Any]]:
        """The function that `timed` calls."""
        head, *lines, last = self.source.split("\n    ")
        for end in reversed(self.ends):
            lines.insert(end, "keep(now())")
        if self.copied:
            self.parts.append((-1, copies("results", sorted(self.copied))))
            lines, last = [*lines, last.replace("return", "r =", 1), "keep(now())"], "return r"
        text = "\n    ".join([head.replace("run(", "twin(now, keep, ", 1), *lines, last])
        exec(compile(text, "<replay>", "exec"), self.text.names)
        return self.text.names["twin"]  # type: ignore[no-any-return]

    def lends(self, n: int, m: int, escaping: set[int]) -> bool:
        """Whether result m of call n, which writes where it is told, is memory of the caller that may come back."""
        slots, call = self.program.slots, self.program.calls[n]
        told = n in self.routines or call.op in (*self.program.chains, BOTH) or own_memory(call) is not None
        leaves = m in escaping and [slots[r].storage for r in self.program.results].count(m) == 1
        return (
            told and leaves and m in self.program.results and slots[m].dtype.kind in "biufc" and order(slots[m]) == ()
        )

    def result(self, r: int) -> str:
        """A result of the program in the text."""
        if r in self.lent:
            return f"{self.text.name(self.lent[r], 'p')}.last.array"
        return self.operand(Ref(r)) + ".copy('K')" * (r in self.copied)

    @property
    def exact(self) -> Callable[..., list[Any]]:
        """What runs the program with the bits of the eager step."""
        return Host(replace(self.logical), self.kept).run if self.compiled else self.run

    def reference(self, n: int, call: Call, args: list[Any], values: dict[int, Any]) -> Any:
        """On NumPy."""
        if call.op not in self.program.chains:
            return self.implementation(call)(*args, **call.attrs)
        outs = self.new_results(call)
        self.program.chains[call.op].numpy(self.reduced(call, outs), args)
        return tuple(outs)

    def new_results(self, call: Call) -> list[Any]:
        """Arrays for the results of a chain."""
        return [new_array(self.program.slots[m]) for m in call.makes()]

    def reduced(self, call: Call, outs: list[Any]) -> list[Any]:
        """The results of a chain in the shapes that it gives them: sums without the axes that were kept."""
        chain = self.program.chains[call.op]
        many = len(chain.outputs)
        return outs[:many] + [o.reshape(self.left(chain, k, call)) for k, o in enumerate(outs[many:])]

    def standin(self, n: int, call: Call) -> Callable[..., Any] | None:
        """A routine or a compiled chain."""
        slots = self.program.slots
        if n in self.routines:

            def routine(*ins: Any) -> Any:
                return self.routines[n](*ins, out=nested(call.outs, {m: new_array(slots[m]) for m in call.makes()}))

            return routine if call.makes() else self.routines[n]  # type: ignore[no-any-return]
        if call.op not in self.program.chains:
            return None
        ready = self.program.chains[call.op].compile_cpu([slots[r].dtype for r in call.reads()])

        def run(*ins: Any) -> Any:
            outs = self.new_results(call)
            ready(self.reduced(call, outs), ins)
            return outs

        return None if ready is None else run

    def verdict(self, n: int, call: Call, got: list[Any], args: list[Any], values: dict[int, Any]) -> tuple[int, int]:
        """Of a chain or routine."""
        if call.op in self.program.chains:
            return proof.chain(self.program.chains[call.op], self.reduced(call, got), args)
        if isinstance(one := self.routines[n], jit.Elementwise):
            return proof.chain(one.chain, got, [args[i] for i in one.places])
        return proof.routine(call.op, got, args, call.attrs)

    def staged(self) -> set[int]:
        """Small values that a chain or compiled routine reads: copied to a fixed place, to which calls can be bound."""
        program = self.program
        bound = [c for n, c in enumerate(program.calls) if c.op in program.chains or n in self.routines]
        small = {r for c in bound for r in c.reads() if program.slots[r].nbytes <= COPIED}
        return small - set(program.written())

    def find_routines(self) -> dict[int, Any]:
        """The compiled stand-ins of calls, by their numbers; compiled together with the chains."""
        if not self.compiled:
            return {}
        program, found = self.program, {}
        for n, call in enumerate(program.calls):
            if call.op in program.chains:
                continue
            args = [mapped(self.like, a) for a in call.args]
            routine = jit.lookup(call.op, args, call.attrs)
            if routine is not None:
                found[n] = routine
        pairs = [(program.chains[c.op], [program.slots[r].dtype for r in c.reads()])
                 for c in program.calls if c.op in program.chains]  # fmt: skip
        jit.compile_all(found.values(), pairs)
        return found

    def like(self, i: int) -> Any:
        """An array such as that of a slot: itself, if it is there already."""
        slot = self.program.slots[i]
        if i in self.arrays or not packed(slot):
            return self.arrays.get(i, slot)
        return new_array(slot)

    def placing(self, n: int, call: Call) -> bool | None:
        """Whether a call that writes where it is told may write over an operand; None for any other call."""
        if call.op in self.program.chains:
            return True
        elementwise = call.op in TABLE and (TABLE[call.op].kind == "elementwise" or call.op == DROPOUT)
        if n in self.routines:
            return elementwise if call.makes() else None
        if own_memory(call) is not None:
            return elementwise
        if call.op == BOTH:
            return False
        return None if call.writes or self.small.isdisjoint(call.makes()) else False

    def settled(self, call: Call) -> bool:
        """Whether a call's result is known beforehand: a view of memory that stays."""
        reads = call.reads()
        if type(call.outs) is not int or call.writes or any(r not in self.arrays for r in reads):
            return False
        if call.op not in VIEWS or self.program.slots[call.outs].storage == call.outs:
            return False
        made = self.implementation(call)(*self.values(call), **call.attrs)
        if not any(np.may_share_memory(made, self.arrays[r]) for r in reads):
            return False
        self.arrays[call.outs] = made
        return True

    def values(self, call: Call) -> list[Any]:
        """The operands of a call whose arrays are all known."""

        def value(a: Any) -> Any:
            if type(a) is Ref:
                return self.arrays[a.slot]
            return type(a)(map(value, a)) if isinstance(a, (list, tuple)) else a

        return [value(a) for a in call.args]

    def implementation(self, call: Call) -> Any:
        """The op's function of NumPy arrays."""
        return functools.partial(both, np) if call.op == BOTH else bare(TABLE[call.op].impls[np.ndarray])

    def operand(self, a: Any) -> str:
        """An operand in the text."""
        if type(a) is Ref:
            known = self.arrays.get(a.slot)
            return f"t{a.slot}" if known is None else self.text.name(known, "b")
        if isinstance(a, (list, tuple)):
            if all(r in self.arrays for r in flat_slots(a)):
                whole = type(a)(self.arrays[v.slot] if type(v) is Ref else v for v in a)
                name = f"k{len(self.text.names)}"
                self.text.names[name] = whole
                return name
            inner = ", ".join(map(self.operand, a))
            return f"[{inner}]" if isinstance(a, list) else f"({inner},)"
        return repr(a) if a is None or type(a) in (bool, int) else self.text.name(a, "k")

    def close(self, n: int, call: Call) -> None:
        """End a part, if it has a line."""
        if self.ends[-1] < len(self.text.lines):
            self.parts.append((n, call))
            self.ends.append(len(self.text.lines))

    def emit(self, n: int, call: Call) -> None:
        """The line of a call."""
        slots, text, makes = self.program.slots, self.text, call.makes()
        if call.op in self.program.chains:
            self.emit_chain(call)
            return
        if n in self.routines:
            args = [self.operand(a) for a in call.args]
            fresh = [m for m in makes if not self.has_place(m)]
            text.lines += [f"t{m} = {text.name(new_array, 'f')}({text.name(slots[m], 'k')})" for m in fresh]
            if makes:
                fixed = all(m in self.arrays for m in makes)
                out = text.hold(nested(call.outs, self.arrays)) if fixed else self.places(call.outs)
                args.append(f"out={out}")
            text.lines.append(f"{text.name(self.routines[n], 'j')}({', '.join(args)})")
            return
        fn = own_memory(call)
        if fn is not None and self.has_place(call.outs):
            place = self.operand(Ref(call.outs))
            if isinstance(fn, np.ufunc):
                args = [self.scalar(a, call) for a in call.args]
                keyword = "out=" * (fn in (np.maximum, np.minimum))  # which do not like a third array
                text.lines.append(f"{text.name(fn, 'f')}({', '.join([*args, keyword + place])})")
                return
            args = [*map(self.operand, call.args), *(f"{k}={self.attribute(v)}" for k, v in call.attrs.items())]
            text.lines.append(f"r = {text.name(fn, 'f')}(np, {', '.join(args)}, into={place})")
            text.lines.append(f"if r is not {place}: {place}[...] = r")
            return
        run = self.implementation(call)
        args = [self.operand(a) for a in call.args]
        if isinstance(run, functools.partial) and not run.keywords:  # bound to NumPy: one call less
            args, run = [*(text.name(a, "k") for a in run.args), *args], run.func
        args += [f"{k}={self.attribute(v)}" for k, v in call.attrs.items()]
        outs = call.outs
        if call.op == BOTH and self.has_place(outs[2]):  # the gradient is written where it belongs
            args.append(f"into={self.operand(Ref(outs[2]))}")
            outs = (*outs[:2], None)
        made = f"{text.name(run, 'f')}({', '.join(args)})"
        text.lines.append(f"{self.target(outs)} = {made}" if makes else made)
        for i in makes:
            if slots[i].shape == () and i not in self.arrays:
                text.lines.append(f"if type(t{i}) is not ndarray: t{i} = asarray(t{i})")

    def has_place(self, m: int) -> bool:
        """Whether a call may write result m where it belongs."""
        return m in self.arrays or m in self.lent

    def places(self, outs: Any) -> str:
        """Nested outputs in the text."""
        if isinstance(outs, tuple):
            return f"({', '.join(map(self.places, outs))},)"
        return self.operand(Ref(outs))

    def target(self, outs: Any) -> str:
        """The left side of an assignment."""
        if isinstance(outs, tuple):
            return f"({', '.join(map(self.target, outs))},)"
        return "_" if outs is None else self.operand(Ref(outs)) + "[...]" * (outs in self.arrays)

    def emit_chain(self, call: Call) -> None:
        """A chain on arrays that stay is a call without arguments, made ready once."""
        slots, text, chain = self.program.slots, self.text, self.program.chains[call.op]
        ready = chain.compile_cpu([slots[r].dtype for r in call.reads()]) if self.compiled else None
        makes, many = call.makes(), len(chain.outputs)
        for m in makes:
            if not self.has_place(m):
                text.lines.append(f"t{m} = {text.name(new_array, 'f')}({text.name(slots[m], 'k')})")
        if all(i in self.arrays for i in (*makes, *call.reads())):
            outs = self.reduced(call, [self.arrays[m] for m in makes])
            ins = [self.arrays[r] for r in call.reads()]
            bound = functools.partial(chain.numpy, outs, ins) if ready is None else ready.bind(outs, ins)
            text.lines.append(f"{text.hold(bound)}()")
            return
        run = chain.numpy if ready is None else jit.Latest(ready)
        places = [self.operand(Ref(m)) for m in makes]
        places[many:] = [f"{p}.reshape({self.left(chain, k, call)!r})" for k, p in enumerate(places[many:])]
        ins_ = ", ".join(self.operand(Ref(r)) for r in call.reads())
        text.lines.append(f"{text.hold(run)}([{', '.join(places)}], [{ins_}])")

    def left(self, chain: Any, k: int, call: Call) -> tuple[int, ...]:
        """The shape of what a chain's k-th sum leaves."""
        shape = np.broadcast_shapes(*(self.program.slots[r].shape for r in call.reads()))
        axes = chain.order or range(len(shape))
        return tuple([shape[i] for i in axes[: len(shape) - chain.ends[k].axes]])

    def attribute(self, v: Any) -> str:
        """An attribute's value in the text."""
        return repr(v) if v is None or type(v) in (bool, int) else self.text.name(v, "k")

    def scalar(self, a: Any, call: Call) -> str:
        """An operand of a NumPy function; a Python number as the array that NumPy would make of it every time."""
        if type(a) in (int, float):
            like = next(self.program.slots[r].dtype for r in call.reads())
            if like.kind == "f":
                value = np.asarray(a, like)
                self.text.names.setdefault("held", []).append(value)
                return self.text.name(value, "k")
        return self.operand(a)

    def release(self, n: int, call: Call, lives: Lives) -> None:
        """Let go of large values that this call was the last to use."""
        slots = self.program.slots
        done = dict.fromkeys(
            i for i in (*call.reads(), *call.makes())
            if i not in self.arrays and lives.last[slots[i].storage] == n and slots[i].kind == VALUE
        )  # fmt: skip
        if any(slots[i].nbytes >= FREED for i in done):
            self.text.lines.append(" = ".join(f"t{i}" for i in done) + " = None")


def on_host(a: Any) -> Any:
    """Values in host memory."""
    return np.asarray(backends.of(a).to_numpy(a))


def flat_slots(a: Any) -> list[int]:
    """Slots in a nested operand."""
    return [r.slot for r in flat(a) if type(r) is Ref]


def aligned(size: int) -> Any:
    """So many bytes of memory that begin at a cache line."""
    whole = np.empty(size + ALIGN, "u1")
    start = -whole.ctypes.data % ALIGN
    return whole[start : start + size]
