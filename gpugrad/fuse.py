"""Fusion: runs of elementwise calls on one shape become Chains, and a cross-entropy with its gradient one call.

Calls are put in an order in which such runs are long: a list schedule that goes on with an open run as long as a call
that belongs to it is ready, and lets views and small results pass before it. No value changes by this.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gpugrad.chain import DROPOUT, Chain, Const, End, Step, fusable, order_of
from gpugrad.op import TABLE
from gpugrad.ops.loss import BOTH
from gpugrad.program import VALUE, Call, Program, Ref, swept

LONGEST = 128  # steps of a chain: the compiler's time grows with them
CHEAP = 1 << 10  # bytes of a result that may be made before a run which does not need it


def dependencies(program: Program) -> list[set[int]]:
    """For every call the numbers of those it has to follow: what it reads is made, what it writes was read."""
    slots = program.slots
    maker: dict[int, int] = {}
    writer: dict[int, int] = {}
    readers: dict[int, set[int]] = {}
    found = []
    for n, call in enumerate(program.calls):
        reads = call.reads()
        before = {maker[r] for r in reads if r in maker}
        before |= {writer[s] for r in reads if (s := slots[r].storage) in writer}
        for s in {slots[w].storage for w in call.writes}:
            before |= readers.pop(s, set())
            writer[s] = n
        for r in reads:
            readers.setdefault(slots[r].storage, set()).add(n)
        maker.update(dict.fromkeys(call.makes(), n))
        found.append(before - {n})
    return found


def order(slot: Any) -> tuple[int, ...] | None:
    """How an array lies in memory: see `order_of`."""
    return order_of(slot.shape, slot.strides, slot.dtype.itemsize)


def packed_rows(slot: Any) -> bool:
    """Whether an array is C-contiguous and has elements."""
    return order(slot) == ()


def run_key(program: Program, call: Call) -> Any:
    """What calls of one chain have in common, (shape, order, floating dtype); None for a call that fits none."""
    op, slots = TABLE.get(call.op), program.slots
    if op is None or not (op.kind == "elementwise" or fusable(call.op, call.attrs)):
        return None
    if type(call.outs) is not int or op.nout > 1:
        return None
    out = slots[call.outs]
    lies = order(out)
    if out.storage != call.outs or lies is None or (lies and call.op == DROPOUT) or op.aux:
        return None
    if not all(type(a) is Ref or a is None or type(a) in (bool, int, float) for a in call.args):
        return None
    arrays = [slots[r] for i, r in enumerate(call.reads()) if call.op != DROPOUT or i == 0]
    floats = {s.dtype for s in (*arrays, out) if s.dtype.kind == "f"}
    rest = {s.dtype.kind for s in (*arrays, out) if s.dtype.kind != "f"}
    return (out.shape, lies, floats.pop()) if len(floats) == 1 and rest <= {"b"} else None


def schedule(program: Program) -> list[list[Call]]:
    """All calls in an order that keeps runs of elementwise calls together: a list of runs and of single calls."""
    calls, before, slots = program.calls, dependencies(program), program.slots
    after: list[list[int]] = [[] for _ in calls]
    waiting = [len(b) for b in before]
    for n, needs in enumerate(before):
        for m in needs:
            after[m].append(n)
    keys = [run_key(program, c) for c in calls]
    light = [not c.writes and all(slots[m].storage != m or slots[m].nbytes <= CHEAP for m in c.makes()) for c in calls]
    ready: dict[Any, list[int]] = {}  # by key: heaps; None: all others
    cheap: list[int] = []
    done: list[list[Call]] = []

    def made_ready(n: int) -> None:
        heapq.heappush(cheap if keys[n] is None and light[n] else ready.setdefault(keys[n], []), n)

    def finish(n: int) -> list[int]:
        freed = []
        for m in after[n]:
            waiting[m] -= 1
            if not waiting[m]:
                freed.append(m)
        return freed

    for n, count in enumerate(waiting):
        if not count:
            made_ready(n)
    while heaps := [h for h in (cheap, *ready.values()) if h]:
        n = heapq.heappop(min(heaps, key=lambda h: h[0]))
        key = keys[n]
        if key is None:
            done.append([calls[n]])
            for m in finish(n):
                made_ready(m)
            continue
        run, held, found = list[int](), list[int](), True
        while found:
            run.append(n)
            for m in finish(n):
                if keys[m] == key:  # which may depend on the run
                    made_ready(m)
                else:
                    held.append(m)  # not before the run ends
            found = len(run) < LONGEST
            while found and not ready.get(key):
                if not cheap:
                    found = False
                    break
                m = heapq.heappop(cheap)
                done.append([calls[m]])
                for k in finish(m):
                    if keys[k] == key or before[k].isdisjoint(run):
                        made_ready(k)
                    else:
                        held.append(k)
            if found:
                n = heapq.heappop(ready[key])
        done.append([calls[m] for m in run])
        for m in held:
            made_ready(m)
    return done


Accept = Callable[[Chain, list[Any], tuple[int, ...]], bool]  # chain, dtypes of its inputs, their common shape


def fuse(program: Program, accept: Accept, ends: tuple[str, ...] = ()) -> Program:
    """Elementwise runs as single calls of Chains, where `accept` agrees; `ends`: the reductions that may end them.

    A chain's sum may have other bits than the op's, which is why it has to be asked for.
    """
    runs, slots = schedule(program), program.slots
    readers: dict[int, int] = {}
    for call in program.calls:
        for r in set(call.reads()):
            readers[r] = readers.get(r, 0) + 1
    for r in program.results:
        readers[r] = readers.get(r, 0) + 1
    calls: list[Call] = []
    chains = dict(program.chains)
    swallowed: set[int] = set()
    reductions = [c for c in program.calls if c.op in ends]
    for run in runs:
        if len(run) == 1 and id(run[0]) in swallowed:
            continue
        key = run_key(program, run[0])
        if key is None:
            calls += run
            continue
        shape, lies, _ = key
        made = {c.outs for c in run}
        closing = [c for c in reductions if c.reads()[0] in made and trailing(program, c, lies)]
        spans = {trailing(program, c, lies) for c in closing}
        for last in ([closing] if len(spans) == 1 else []) + [[]]:
            chain, inputs, outs = chain_of(program, run, last, readers, lies)
            spread = any(slots[i].shape == shape for i in inputs) or not last
            if spread and accept(chain, [slots[i].dtype for i in inputs], shape):
                name = f"chain{len(chains)}"
                chains[name] = chain
                swallowed |= {id(c) for c in last}
                calls.append(replace(run[-1], op=name, args=tuple(map(Ref, inputs)), attrs={}, outs=outs))
                break
        else:
            calls += run
    return swept(replace(program, calls=calls, chains=chains))


def chain_of(
    program: Program, run: list[Call], closing: list[Call], readers: dict[int, int], lies: tuple[int, ...]
) -> tuple[Chain, list[int], tuple[int, ...]]:
    """(a run and the reductions that close it as a Chain, its inputs, its results); readers: of every value."""
    made, inside = {c.outs for c in run}, dict[int, int]()
    for c in (*run, *closing):
        for r in set(c.reads()):
            inside[r] = inside.get(r, 0) + 1
    outputs = [c.outs for c in run if readers.get(c.outs, 0) > inside.get(c.outs, 0)]
    inputs = list(dict.fromkeys(r for c in run for r in c.reads() if r not in made))
    number = {r: i for i, r in enumerate((*inputs, *(c.outs for c in run)))}
    steps = tuple(
        Step(
            c.op, tuple(number[a.slot] if type(a) is Ref else None if a is None else Const(a) for a in c.args),
            tuple(c.attrs.items()),
        )
        for c in run
    )  # fmt: skip
    last = tuple(End(c.op, number[c.reads()[0]], trailing(program, c, lies)) for c in closing)
    chain = Chain(len(inputs), steps, tuple(number[o] for o in outputs), last, lies)
    return chain, inputs, (*outputs, *(c.outs for c in closing))


def trailing(program: Program, call: Call, lies: tuple[int, ...]) -> int:
    """Over how many of the last axes in memory, of an array that lies so, a call reduces floats; 0 for all others."""
    if call.attrs.get("dtype") is not None:
        return 0
    x, out = program.slots[call.reads()[0]], program.slots[call.outs]
    axis, axes = call.attrs["axis"], lies or tuple(range(len(x.shape)))
    left = axes[: len(axes) - len(axis)]
    whole = x.dtype.kind == "f" and x.dtype == out.dtype and x.dtype.itemsize >= 4 and packed_rows(out)
    kept = [i for i in left if x.shape[i] != 1]
    return len(axis) if whole and axis and set(axis).isdisjoint(left) and kept == sorted(kept) else 0


def forward_and_backward(program: Program) -> Program:
    """softmax_xent and its backward as one call, where the cotangent does not depend on the loss.

    One pass over the logits then makes loss, log-sum-exp and gradient: see `ops.loss.both`.
    """
    before, calls = dependencies(program), program.calls
    upstream: list[set[int]] = []
    for needs in before:
        upstream.append(set(needs).union(*(upstream[m] for m in needs)))
    renamed: dict[int, Call] = {}
    dropped: set[int] = set()
    for n, back in enumerate(calls):
        if back.op != "softmax_xent_bwd" or back.attrs.get("reuse"):
            continue
        t, logits, labels, weight, lse = back.args
        for m in before[n]:
            ahead = calls[m]
            if ahead.op != "softmax_xent" or ahead.args != (logits, labels, weight) or ahead.outs[1] != slot_of(lse):
                continue
            makers = [k for k in before[n] if slot_of(t) in calls[k].makes()]
            if all(m != k and m not in upstream[k] for k in makers):
                loss, log = ahead.outs
                renamed[n] = replace(back, op=BOTH, args=(t, logits, labels, weight), outs=(loss, log, back.outs))
                dropped.add(m)
    if not dropped:
        return program
    moved = [renamed.get(n, c) for n, c in enumerate(calls) if n not in dropped]
    return replace(program, calls=in_order(replace(program, calls=moved)))


def apart(program: Program) -> Program:
    """affine as a product and a sum, which then is part of a chain with what follows."""
    slots, calls = dict(program.slots), list[Call]()
    for call in program.calls:
        out = slots[call.outs] if call.op == "affine" else None
        if out is None or out.dtype.name not in ("float32", "float64"):
            calls.append(call)
            continue
        x, weight, bias = call.args
        w, turned, product = slots[weight.slot], max(slots) + 1, max(slots) + 2
        slots[turned] = replace(w, shape=w.shape[::-1], strides=w.strides[::-1], kind=VALUE, name="")
        slots[product] = replace(out, kind=VALUE, storage=product, name="")
        calls.append(replace(call, op="matrix_transpose", args=(weight,), outs=turned))
        calls.append(replace(call, op="matmul", args=(x, Ref(turned)), outs=product))
        calls.append(replace(call, op="add", args=(Ref(product), bias)))
    return replace(program, slots=slots, calls=calls)


def in_order(program: Program) -> list[Call]:
    """The calls with every one after those that make what it reads; otherwise as they were."""
    made = {m: n for n, c in enumerate(program.calls) for m in c.makes()}
    done: set[int] = set()
    calls: list[Call] = []

    def put(n: int) -> None:
        stack = [n]
        while stack:
            k = stack[-1]
            missing = [made[r] for r in program.calls[k].reads() if r in made and made[r] not in done]
            if k in done:
                stack.pop()
            elif missing:
                stack += missing
            else:
                done.add(k)
                calls.append(program.calls[stack.pop()])

    for n in range(len(program.calls)):
        put(n)
    return calls


def slot_of(a: Any) -> int:
    """The slot of an operand, -1 if it is none."""
    return a.slot if type(a) is Ref else -1
