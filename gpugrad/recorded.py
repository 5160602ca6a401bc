"""Steps that are recorded and replayed: forward, backward and update as one Program, run without Python; see `replay`.

The first call is eager, the second is traced (it runs for real), later ones replay. The first replay proves itself: the
step also runs eagerly from the same state, and results, gradients and state must agree bit for bit. What a replay takes
for granted is checked at every call: shapes, dtypes and layouts of the arguments, their Python values, settings, and
the Python values that the step read (see `frozen`). Where one of them changed, the step is traced anew.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from gpugrad import backends
from gpugrad.dtypes import get_default_dtype
from gpugrad.errors import GpugradError, ReplayError, fail, notice
from gpugrad.execute import Host
from gpugrad.frozen import Frozen, Watch
from gpugrad.graph import Graph
from gpugrad.layered import Layered
from gpugrad.ops.creation import get_default_device
from gpugrad.precision import get_matmul_precision
from gpugrad.program import CONSTANT, VALUE, Call, Program, Ref, Slot, common_subexpressions, constants, dead_code
from gpugrad.state import mode
from gpugrad.tensor import Leaf, Tensor
from gpugrad.tracing import Trace, Traced, running
from gpugrad.tree import children, refill, tree_leaves

LIMIT = 8  # programs of one signature: more means that a Python value changes at every call
MOST = 32  # programs of a step that are kept
RUNNING = object()  # in place of the result of a step that has not ended


# --- arguments ----------------------------------------------------------------------------------------------


class Unfit(Exception):
    """The call cannot be replayed and is made eagerly: its arguments belong to a jvp, vmap or trace."""


def read(x: Any, key: list[Any], leaves: list[Any]) -> None:
    """Append to `key` what a replay takes for granted of an argument, to `leaves` its Tensors and arrays."""
    if type(x) is Tensor:
        a = x.data
        if isinstance(a, Layered):
            raise Unfit
        n = x.node
        key.append((a.shape, a.dtype, a.strides, type(a), n if n is None else "leaf" if n.op is None else "graph"))
        leaves.append(x)
    elif backends.is_raw(x):
        key.append((x.shape, x.dtype, x.strides, type(x)))
        leaves.append(x)
    elif (found := children(x)) is not None and x is not None:
        key.append((type(x), tuple(x) if isinstance(x, dict) else len(found[0])))
        for part in found[0]:
            read(part, key, leaves)
    else:
        key.append((type(x), x))


def settings() -> tuple[Any, ...]:
    """What besides arguments and state decides about a step."""
    return mode.enabled, get_default_dtype(), get_default_device(), get_matmul_precision()


def raw_of(x: Any) -> Any:
    """The array of an argument."""
    return x.data if type(x) is Tensor else x


# --- one traced program -------------------------------------------------------------------------------------


class Recorded:
    """A program with what it is bound to: tensors that it reads, gradients it leaves, how its result is built."""

    def __init__(self, key: Any, program: Program, frozen: list[Frozen], watch: Watch) -> None:
        self.key, self.program, self.frozen, self.watch = key, program, frozen, watch
        self.verified = False
        self.settled = False  # what the traced and the eager steps have left behind is gone
        self.bound: list[tuple[Tensor, Any, Any]] = []  # captured tensors with the array and the node they had
        self.grads: list[tuple[Any, Any]] = []  # (leaf, or the number of an argument; slot, or None for no gradient)
        self.entry: list[tuple[Any, Any]] = []  # (leaf or argument, the .grad that it must have before a run)
        self.tree: Any = None  # the result; its leaves say where they come from
        self.leaves: list[Any] = []

    def finish(self, given: list[Any], compiled: bool) -> None:
        """Compile; gradients may live in the program's own memory."""
        kept = frozenset(self.program.results[: sum(s is not None for _, s in self.grads)])
        kind = self.program.array_type
        if kind is np.ndarray:
            self.runner: Host | Graph = Host(self.program, kept, compiled)
        else:
            backend = backends.of_type(kind) if kind is not None else backends.get("cuda")
            self.runner = Graph(self.program, kept, given, backend, compiled and kind is not None)
        self.single = type(self.tree) is Tensor
        self.written = self.program.written()

    def stale(self) -> str:
        """What changed since the trace; empty if nothing."""
        for t, a, n in self.bound:
            if t.data is not a or t.node is not n:
                return f"the array or the graph of a tensor {a.dtype}{list(a.shape)} that the step reads was replaced"
        return self.watch.changed()

    def ready(self, given: list[Any]) -> bool:
        """Whether gradients are as they were before the traced run, where that matters."""
        return all(leaf_of(leaf, given).grad is g for leaf, g in self.entry)

    def run(self, given: list[Any], runner: Any = None) -> Any:
        """One replay on the leaves of the arguments."""
        values = (runner or self.runner.run)(*[x.data if type(x) is Tensor else x for x in given])
        n = 0
        for leaf, slot in self.grads:
            node = leaf_of(leaf, given)
            if slot is None:
                node.grad = None
            else:
                node.grad, n = Tensor(values[n]), n + 1
        if self.single:
            return Tensor(values[n])
        made = []
        for kind, value in self.leaves:
            if kind == "slot":
                made.append(Tensor(values[n]))
                n += 1
            else:
                made.append(Tensor(value.copy()) if kind == "constant" else value)
        return refill(self.tree, made)

    plain = run  # while a profile is open, `run` is another

    def snapshot(self, given: list[Any]) -> list[Any]:
        """Copies of all that a run changes in place."""
        return [a.copy() for a in self.state(given)]

    def state(self, given: list[Any]) -> list[Any]:
        """The arrays outside that a run changes."""
        places = dict(zip(self.program.inputs, map(raw_of, given)))
        return [places[i] if i in places else self.program.arrays[i] for i in self.written]


def leaf_of(leaf: Any, given: list[Any]) -> Any:
    """A leaf node: itself, or that of an argument."""
    return given[leaf].node if type(leaf) is int else leaf


# --- replay -------------------------------------------------------------------------------------------------


class Replay:
    """A step that is traced at its second call and replayed from the third; see `replay`.

    `program`: the newest program, None before the second call. `frozen`: the Python values it was traced with.
    `refused`: why it goes on eagerly; empty while it does not.
    """

    def __init__(self, f: Callable[..., Any], verify: bool = True, compiled: bool = False, strict: bool = True) -> None:
        self.f, self.verify, self.compiled, self.strict = f, verify, compiled, strict
        self.refused = ""
        self.records: list[Recorded] = []
        self.calls = self.replays = 0
        self._lock = threading.RLock()
        functools.update_wrapper(self, f)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """As a method: every instance replays a step of its own."""
        if instance is None:
            return self
        bound = Replay(self.f.__get__(instance, owner), self.verify, self.compiled, self.strict)
        instance.__dict__[self.f.__name__] = bound
        return bound

    @property
    def program(self) -> Program | None:
        """The program that was traced last."""
        return self.records[-1].program if self.records else None

    @property
    def fused(self) -> Program | None:
        """That program as it runs: with calls that stand for several, which its `chains` tell."""
        return self.records[-1].runner.program if self.records else None

    @property
    def frozen(self) -> list[Frozen]:
        """Python values that the newest program was traced with; it is traced anew when one of them changes."""
        return self.records[-1].frozen if self.records else []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key: list[Any] = [settings()]
        given: list[Any] = []
        try:
            for a in args:
                read(a, key, given)
            if kwargs:
                read(kwargs, key, given)
        except Unfit:
            return self.f(*args, **kwargs)
        if running.trace is not None or mode.draws:
            return self.f(*args, **kwargs)
        with self._lock:
            if self.refused:
                return self.f(*args, **kwargs)
            found = next((r for r in reversed(self.records) if r.key == key and r.ready(given) and not r.stale()), None)
            self.calls += 1
            if found is None:
                return self.f(*args, **kwargs) if self.calls == 1 else self._trace(key, args, kwargs, given)
            if self.verify and not found.verified:
                return self._prove(found, args, kwargs, given)
            self.replays += 1
            result = found.run(given)
            if not found.settled:
                found.settled = True
                backends.get("cpu").release_memory()  # type: ignore[attr-defined]
            return result

    # --- tracing --------------------------------------------------------------------------------------------

    def _trace(self, key: list[Any], args: Any, kwargs: Any, given: list[Any]) -> Any:
        """Run the step with every op logged, and keep the program."""
        if problem := self._problem(key, given):
            self._refuse(fail(ReplayError, "replay", problem))
            return self.f(*args, **kwargs)
        result: Any = RUNNING
        try:
            trace = Trace(self.strict)
            watch = Watch(self.f, trace.arrays.values)
            arrays = list(map(raw_of, given))
            names = argument_names(self.f, args, kwargs)
            with trace:
                inside = iter(
                    [
                        Tensor(t, x.node) if type(x) is Tensor else t
                        for x, t in ((x, trace.input(a, name)) for x, a, name in zip(given, arrays, names))
                    ]
                )
                targs, tkwargs = replaced((args, kwargs), inside)
                with watch:
                    result = self.f(*targs, **tkwargs)
                if trace.refused is not None:
                    raise trace.refused
                leaves = [result_leaf(trace, x) for x in tree_leaves(result)]
                grads = changed_gradients(trace, given)
                del targs, tkwargs, inside
            results = [s for _, s in grads if s is not None] + [s for kind, s in leaves if kind == "slot"]
            entry = [(argument_of(n, given), trace.grads[n]) for n, s in changed_nodes(trace) if s]
            trace.grads = {}
            existing = {id(t) for t, _, _ in trace.used}
            own = {id(t): t for t in tree_leaves(result) if type(t) is Tensor and id(t) not in existing}
            settle_captures(trace, Counter(id(t.data) for t in own.values()))
            program = Program(trace.slots, trace.calls, trace.inputs, results, trace.arrays, trace.peak)
            kinds = trace.types or {np.ndarray}
            program.array_type = next(iter(kinds)) if len(kinds) == 1 else None
            program = common_subexpressions(constants(dead_code(program)))
            recorded = Recorded(key, program, watch.frozen(), watch)
            recorded.bound, recorded.grads, recorded.entry = trace.used, grads, entry
            recorded.tree, recorded.leaves = skeleton(result), leaves
            recorded.finish(arrays, self.compiled)
            self.records.append(recorded)
            del self.records[:-MOST]
        except ReplayError as error:
            if result is RUNNING:
                raise
            self._refuse(error)
        return result

    def _problem(self, key: list[Any], given: list[Any]) -> str:
        """Why a call cannot be traced; empty if it can."""
        if any(type(x) is Tensor and x.node is not None and x.node.op is not None for x in given):
            return "an argument belongs to a graph, which a replay cannot extend; detach it"
        alike = [r for r in self.records if r.key == key]
        if len(alike) < LIMIT:
            return ""
        why = alike[-1].stale() or "the gradients of its leaves are not as they were"
        return f"the step was traced {LIMIT} times, and again {why}"

    def _refuse(self, error: GpugradError) -> None:
        """Raise, or say once that the step goes on eagerly, and why."""
        if self.strict:
            raise error
        self.refused, self.records = str(error), []
        reason = self.refused.removeprefix("[replay] ").replace("\n  ", " ")
        notice("replay", f"the step goes on eagerly: {reason}")

    # --- proving --------------------------------------------------------------------------------------------

    def _prove(self, r: Recorded, args: Any, kwargs: Any, given: list[Any]) -> Any:
        """Replay, go back, run eagerly, and compare all that either left behind. Raises ReplayError if they differ."""
        if r.runner.compiled:
            try:
                r.runner.check(list(map(raw_of, given)))
            except ReplayError as error:
                self._refuse(error)
                return self.f(*args, **kwargs)
        before = r.snapshot(given)
        leaves = [(leaf_of(leaf, given), leaf_of(leaf, given).grad) for leaf, _ in r.grads]
        replayed = host(self._left(r, r.run(given, r.runner.exact), given))
        restore(r, given, before, leaves)
        result = self.f(*args, **kwargs)
        wanted = host(self._left(r, result, given))
        if differ(replayed, wanted):
            reason = "gg.replay says where, unless told strict=False"
            if self.strict:
                after = r.snapshot(given)
                restore(r, given, before, leaves)
                reason = self._blame(r, args, kwargs, given)
                restore(r, given, after, [])
            self._refuse(fail(ReplayError, "replay", f"a replay did not give what the step gives: {reason}"))
        r.verified = True
        return result

    def _left(self, r: Recorded, result: Any, given: list[Any]) -> list[Any]:
        """The arrays that a run leaves: results, gradients, state."""
        made = [x.data for x in tree_leaves(result) if type(x) is Tensor]
        grads = [g.data for leaf, _ in r.grads if (g := leaf_of(leaf, given).grad) is not None]
        return [*made, *grads, *r.state(given)]

    def _blame(self, r: Recorded, args: Any, kwargs: Any, given: list[Any]) -> str:
        """Which call made the difference: one that the step now makes otherwise, or one whose result has other bits."""
        other = Replay(self.f, verify=False)
        other.calls = 1
        other(*args, **kwargs)
        old, new = r.program, other.records[-1].program
        for a, b in zip(old.calls, new.calls):
            if (a.op, repr(a.args), repr(a.attrs)) != (b.op, repr(b.args), repr(b.attrs)):
                return f"it was traced as\n    {old.show(a)}\n  and is now\n    {new.show(b)}"
        if len(old.calls) != len(new.calls):
            return f"it was traced as {len(old.calls)} operations and now has {len(new.calls)}"
        return "the operations are the same, but their results are not"


def argument_names(f: Any, args: Any, kwargs: Any) -> list[str]:
    """A name for every array among the arguments."""
    code = getattr(f, "__code__", None)
    own = list(code.co_varnames[: code.co_argcount]) if code is not None else []
    names: list[str] = []
    for i, a in enumerate(args):
        stem = own[i] if i < len(own) else f"arg{i}"
        names += named_leaves(stem, a)
    for k, v in kwargs.items():
        names += named_leaves(k, v)
    return names


def named_leaves(stem: str, x: Any) -> list[str]:
    """Names of the arrays in one argument."""
    arrays = [v for v in tree_leaves(x) if type(v) is Tensor or backends.is_raw(v)]
    return [stem] if len(arrays) == 1 else [f"{stem}.{i}" for i in range(len(arrays))]


def replaced(tree: Any, arrays: Any) -> Any:
    """The arguments with other arrays in place of theirs, in order."""
    leaves = [next(arrays) if type(x) is Tensor or backends.is_raw(x) else x for x in tree_leaves(tree)]
    return refill(tree, leaves)


def result_leaf(trace: Trace, x: Any) -> tuple[str, Any]:
    """Where a leaf of the result comes from: a slot, a constant array, or a Python value."""
    a = x.data if type(x) is Tensor else x
    if any(t is x for t, _ in trace.bound):
        return "value", x
    if isinstance(x, Tensor) and x.node is not None and x.node.op is not None and x.node.spent is None:
        raise fail(
            ReplayError, "replay",
            "a result still has its graph, which a replay does not make; differentiate inside the step, "
            "or return it detached",
        )  # fmt: skip
    if isinstance(a, Traced):
        return "slot", trace.slot(a)
    return ("constant", a.copy()) if type(x) is Tensor else ("value", x)


def skeleton(result: Any) -> Any:
    """The result's structure, holding none of its arrays."""
    return refill(result, [Tensor(None) if type(x) is Tensor else x for x in tree_leaves(result)])


def changed_nodes(trace: Trace) -> list[tuple[Leaf, bool]]:
    """Leaves whose gradient the step replaced, and whether it must be as it was when the next run begins."""
    return [(n, g is None) for n, g in trace.grads.items() if n.grad is not g] + [
        (n, True)
        for n, g in trace.grads.items()
        if g is not None and n.grad is g and any(g is t for t in trace.rebound)
    ]


def changed_gradients(trace: Trace, given: list[Any]) -> list[tuple[Any, Any]]:
    """(leaf or number of an argument, slot of its new gradient or None)."""
    found = []
    for n, g in trace.grads.items():
        if n.grad is not g:
            found.append((argument_of(n, given), None if n.grad is None else trace.slot(n.grad.data)))
    return sorted(found, key=lambda pair: pair[1] is None)


def argument_of(n: Leaf, given: list[Any]) -> Any:
    """A leaf, or the number of the argument whose leaf it is."""
    return next((i for i, x in enumerate(given) if type(x) is Tensor and x.node is n), n)


def references(arrays: dict[int, Any], i: int) -> int:
    """How many references there are to a value in a dict."""
    return sys.getrefcount(arrays[i])


ALONE = references({0: object()}, 0)


def settle_captures(trace: Trace, returned: Counter[int]) -> None:
    """Captured arrays that nobody else holds were made within the step: constants, copied anew if a run writes to them.

    returned: how often the result holds an array (by its id) in a tensor of its own. Raises ReplayError where such an
    array came from NumPy, for nothing would tell that it changed.
    """
    start: list[Call] = []
    held = trace.arrays
    for i in [i for i in held if references(held, i) <= ALONE + returned[id(held[i])]]:
        slot, a = trace.slots[i], trace.arrays[i]
        if id(a) in trace.entered:
            user = next(c for c in trace.calls if i in c.reads())
            raise fail(
                ReplayError, "replay",
                f"the step makes a NumPy array {a.dtype}{list(a.shape)}, whose values a replay would not make anew; "
                f"pass it as an argument, or make it of gpugrad operations\n  it is used in {user.line}",
            )  # fmt: skip
        slot.kind, slot.name = CONSTANT, ""
        if i in trace.before:
            c = len(trace.slots)
            trace.slots[c] = Slot(slot.shape, slot.dtype, slot.strides, CONSTANT, c)
            trace.arrays[c] = trace.before[i]
            del trace.arrays[i]
            slot.kind = VALUE
            start.append(Call("astype", (Ref(c),), {"dtype": slot.dtype}, i))
    trace.calls[:0] = start


def restore(r: Recorded, given: list[Any], before: list[Any], leaves: list[Any]) -> None:
    """Put state and gradients back."""
    for a, old in zip(r.state(given), before):
        a[...] = old
    for leaf, g in leaves:
        leaf.grad = g


def host(arrays: list[Any]) -> list[Any]:
    """Copies on the host, of what has arrived there too."""
    for kind in backends.array_types():
        backends.of_type(kind).synchronize()
    return [np.array(backends.of(a).to_numpy(a)) for a in arrays]


def differ(xs: list[Any], ys: list[Any]) -> bool:
    """Whether two lists of arrays differ in any bit."""
    return len(xs) != len(ys) or any(
        x.shape != y.shape or x.dtype != y.dtype or bits(x) != bits(y) for x, y in zip(xs, ys)
    )


def bits(x: Any) -> bytes:
    """The bits of an array, one NaN for all: their sign follows from which operand a processor takes it."""
    one = np.where(x == x, x, x.dtype.type(np.nan)) if x.dtype.kind in "fcV" else x
    return bytes(one.tobytes())
