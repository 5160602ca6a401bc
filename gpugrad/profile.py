"""Where the time of a program goes: every op, forward, backward or replayed, with its bytes, products and launches."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

from gpugrad import backends
from gpugrad.errors import place, user_frame
from gpugrad.op import TABLE, Op
from gpugrad.precision import get_matmul_precision, matmul_precision
from gpugrad.swap import implementations


@dataclass
class Row:
    """One op, forward (or called by a rule), or its derivative rule; `seconds` without what other rows count.

    In a replayed step `phase` is "replayed" for a call of an op, "compiled" for a compiled piece or a generated kernel,
    "chained" for elementwise calls that NumPy makes piece by piece, "joined" for a product that takes along what
    finishes it, and "copied" for arguments and results that are copied to and from where the program has them; "timing
    prepared" is what it took to have it timed. Pieces that stand for several ops are called after them, such as
    "multiply+add+relu".
    """

    op: str
    phase: str
    line: str
    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0
    flops: int = 0
    kernels: int = 0
    compute: str = ""  # of products on a GPU: cuBLASLt's compute type, such as 32F, or 'composed'

    def computed(self, kind: str) -> None:
        """Note what a product was computed in."""
        self.compute = ", ".join(dict.fromkeys([*filter(None, self.compute.split(", ")), kind]))


class Profile:
    """What `profile` measured: `rows`, slowest first, `seconds` of the whole block, and what was `outside` all ops."""

    def __init__(self, device: str, lines: bool) -> None:
        self.device, self.lines, self.seconds = device, lines, 0.0
        self.copy_rate = self.product_rate = 0.0
        self._rows: dict[tuple[str, str, str], Row] = {}

    @property
    def rows(self) -> list[Row]:
        """What took longest first."""
        return sorted(self._rows.values(), key=lambda r: -r.seconds)

    def row(self, op: str, phase: str, line: str) -> Row:
        """The row of a name, a new one if there is none."""
        key = op, phase, line
        return self._rows.get(key) or self._rows.setdefault(key, Row(*key))

    @property
    def outside(self) -> float:
        """Seconds in none of the rows: Python, dispatch, the walk, waiting for nothing."""
        return self.seconds - sum(r.seconds for r in self._rows.values())

    def roofline(self, row: Row) -> float | None:
        """The shortest possible time of a row's bytes and products over its time, or None before `calibrate`."""
        if not self.copy_rate or not row.seconds:
            return None
        return max(row.bytes / self.copy_rate, row.flops / self.product_rate) / row.seconds

    def calibrate(self) -> Profile:
        """Measure what this device copies and multiplies in a second (bytes of both sides, float32 operations)."""
        backend: Any = backends.get(self.device)
        xp, multiply = backend.xp, TABLE["matmul"].impls[backend.array_type]
        a, m = xp.ones(1 << 24, "float32"), xp.ones((1024, 1024), "float32")
        b = xp.empty_like(a)

        def best(work: Callable[[], Any]) -> float:
            spans = []
            for _ in range(5):
                start = backend.moment()
                work()
                spans.append((start, backend.moment()))
            backend.synchronize()
            return float(min(backend.seconds(*s) for s in spans[1:]))

        self.copy_rate = 2 * a.nbytes / best(lambda: xp.copyto(b, a))
        self.product_rate = 2 * 1024**3 / best(lambda: multiply(m, m))
        return self

    def json(self) -> dict[str, Any]:
        """Everything as plain data."""
        rows = [{**asdict(r), "roofline": self.roofline(r)} for r in self.rows]
        return {"device": self.device, "seconds": self.seconds, "outside": self.outside, "rows": rows}

    def __str__(self) -> str:
        whole = self.seconds or 1.0
        names = [r.op if r.phase == "forward" else f"{r.op} {r.phase}" for r in self.rows]
        long = max(30, *(len(n) + 2 for n in names), 0)
        lines = [f"{'op':<{long}}{'calls':>8}{'ms':>10}{'%':>7}{'GB/s':>8}{'GFLOP/s':>9}{'kernels':>9}{'roofline':>10}"]
        wide = max((len(r.compute) + 2 for r in self.rows if r.compute), default=0)
        for name, r in zip(names, self.rows):
            share = self.roofline(r)
            rates = [v / r.seconds / 1e9 if r.seconds and v else None for v in (r.bytes, r.flops)]
            shown = ["" if v is None else f"{v:.1f}" for v in rates]
            ideal = "" if share is None else f"{100 * share:.0f} %"
            lines.append(
                f"{name:<{long}}{r.calls:>8}{r.seconds * 1e3:>10.3f}{100 * r.seconds / whole:>7.1f}"
                f"{shown[0]:>8}{shown[1]:>9}{r.kernels or '':>9}{ideal:>10}  {r.compute:<{wide}}{r.line}".rstrip()
            )
        lines.append(f"{'outside the ops':<{long + 8}}{self.outside * 1e3:>10.3f}{100 * self.outside / whole:>7.1f}")
        lines.append(f"{'in all':<{long + 8}}{self.seconds * 1e3:>10.3f}  on {self.device}")
        return "\n".join(lines)


@contextlib.contextmanager
def profile(device: str = "cpu", *, lines: bool = False) -> Iterator[Profile]:
    """Measure the ops of this thread while the block runs; print the result, or read its `rows`.

    On a GPU times are those of the device, between events in its stream. A row is an op or, as phase "backward", its
    derivative rules without the ops that they call. `bytes` are those of the arrays read and written once, `flops`
    those of matrix products, convolutions and attention. lines: a row for each of the user's lines; of a piece of a
    replay that stands for several, one of them. What the measuring costs counts as `outside`, a clock that is read
    between the calls of a replay as theirs. A CUDA graph is replayed call by call, as if it had not been captured.
    """
    backend: Any = backends.get(device)
    result, gemm = Profile(device, lines), getattr(backend, "gemm", None)
    watch = Watch(backend)
    spans: list[tuple[Row, Any, Any, list[Any]]] = []
    stack: list[list[Any]] = [[]]  # for each open call, the spans directly inside it

    def run(op: Op, phase: str, work: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        if watch.busy:  # a replay measures its calls itself
            return work(*args, **attrs)
        line = place(*user_frame()).partition(": ")[0] if lines else ""
        row = result.row(op.name, phase, line)
        inner: list[Any] = []
        stack.append(inner)
        before, composed, start = backend.launches, gemm and gemm.composed, backend.moment()
        try:
            out = work(*args, **attrs)
        finally:
            stack.pop()
        span = start, backend.moment(), backend.launches - before
        stack[-1].append(span)
        spans.append((row, start, span[1], inner))
        row.calls += 1
        row.kernels += span[2] - sum(launched for _, _, launched in inner)
        if not inner:  # a rule that calls ops moves what they move
            made = args[: op.call.written] if op.kind == "update" else out  # type: ignore[attr-defined]
            row.bytes += traffic(args, made)
        if phase == "forward" and op.name in FLOPS:
            row.flops += operations(op.name, args, out, attrs)
            if gemm is not None and op.name in PRODUCTS:
                row.computed(gemm.compute_name(args[0].dtype) if gemm.composed == composed else "composed")
        return out

    def forward(op: Op, work: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        return run(op, "forward", work, args, attrs)

    def backward(op: Op, rule: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        return run(op, "backward", functools.partial(rule, args[0]), args[1:], attrs)

    with implementations(forward, backward), watch.replays():
        begin = backend.moment()
        try:
            yield result
        finally:
            end = backend.moment()
            backend.synchronize()
            result.seconds = backend.seconds(begin, end)
            for row, start, stop, inner in spans:
                row.seconds += backend.seconds(start, stop) - sum(backend.seconds(*s[:2]) for s in inner)
            count(result, watch)


def arrays(value: Any) -> Iterator[Any]:
    """The raw arrays in arguments or results."""
    if isinstance(value, (tuple, list)):
        for v in value:
            yield from arrays(v)
    elif hasattr(value, "nbytes") and backends.is_raw(value):
        yield value


def traffic(args: Any, out: Any) -> int:
    """Bytes that a call at least moves: each array once, nothing for a view."""
    read, written = list(arrays(args)), list(arrays(out))
    if written and all(any(shares(w, r) for r in read) for w in written):
        return 0
    return sum(a.nbytes for a in (*read, *written))


def shares(a: Any, b: Any) -> bool:
    """Whether a is a view of b's memory; not when it is b itself, overwritten."""
    return a is not b and (a.base is b or (a.base is not None and a.base is b.base))


# --- replays ------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One replay: moments before and after each of its parts, and beside them on a GPU what was done until then."""

    runner: Any
    precision: str
    moments: list[Any]
    done: list[tuple[int, int]]  # kernels launched, products composed


class Watch:
    """A profile's eye on the replays of its thread."""

    open: ClassVar[list[Watch]] = []

    def __init__(self, backend: Any) -> None:
        self.backend, self.thread, self.busy = backend, threading.get_ident(), False
        self.runs: list[Run] = []

    @contextlib.contextmanager
    def replays(self) -> Iterator[None]:
        """See them for a while. At no other time is anything in their way."""
        from gpugrad.recorded import Recorded

        self.open.append(self)
        Recorded.run = watched  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            self.open.remove(self)
            if not self.open:
                Recorded.run = Recorded.plain  # type: ignore[method-assign]

    def clock(self, done: list[tuple[int, int]]) -> Callable[[], Any]:
        """What is called between two parts: on the host nothing but its clock."""
        backend = self.backend
        if backend.name == "cpu":
            return time.perf_counter

        def now() -> Any:
            done.append((backend.launches, backend.gemm.composed))
            return backend.moment()

        return now


def watched(recorded: Any, given: list[Any], runner: Any = None) -> Any:
    """In place of `Recorded.run`: the newest profile of a thread times its replays, others on that device see them."""
    mine = [w for w in Watch.open if w.thread == threading.get_ident()]
    if not mine or runner is not None:
        return recorded.plain(given, runner)
    newest, run = mine[-1], Run(recorded.runner, get_matmul_precision(), [], [])
    now = newest.clock(run.done)
    run.moments.append(now())
    for w in mine:
        w.busy = True
        if w.backend is newest.backend:
            w.runs.append(run)
    try:
        return recorded.plain(given, functools.partial(run.runner.timed, now, run.moments.append))
    finally:
        for w in mine:
            w.busy = False


class Part(NamedTuple):
    """What a profile knows of a part of a replay before it runs; `product`: the dtype of a matrix product."""

    key: tuple[str, str, str]
    bytes: int
    flops: int
    product: Any


def described(runner: Any, lines: bool) -> list[Part]:
    """The parts of a replay, the first of which is that it is made ready to be timed."""
    from gpugrad.program import mapped

    slots, chains = {**runner.logical.slots, **runner.program.slots}, runner.program.chains
    found = [Part(("timing", "prepared", ""), 0, 0, None)]
    for n, call in runner.parts:
        stands = chains.get(call.op)
        joined = getattr(stands, "calls", ())
        phase = (
            "copied" if n < 0 else "joined" if joined else "compiled" if runner.compiled and runner.standin(n, call)
            else "chained" if stands is not None else "replayed"
        )  # fmt: skip
        ops = [c.op for c in joined or (*stands.steps, *stands.ends)] if stands is not None else [call.op]
        products = [c for c in joined or (call,) if c.op in FLOPS]
        flops = [operations(c.op, mapped(slots.__getitem__, c.args), slots[c.makes()[0]], c.attrs) for c in products]
        line = place(call.code, call.lasti).partition(": ")[0] if lines and call.code is not None else call.place
        product = slots[call.reads()[0]].dtype if any(c.op in PRODUCTS for c in products) else None
        found.append(Part((short(ops), phase, line if lines else ""), moved(call, slots), sum(flops), product))
    return found


def short(ops: Sequence[str]) -> str:
    """A name for ops that are done at once."""
    return "+".join(ops) if len(ops) < 5 else f"{ops[0]}+{ops[1]}+..+{ops[-1]} ({len(ops)})"


def moved(call: Any, slots: Any) -> int:
    """Bytes that a call of a program at least moves, as `traffic` counts them."""
    read, made, written = (dict.fromkeys(i) for i in (call.reads(), call.makes(), call.writes))
    if made and not written and all(slots[m].storage != m and m not in read for m in made):
        return 0
    return sum(slots[i].nbytes for i in (*read, *made, *written))


def count(result: Profile, watch: Watch) -> None:
    """Put the replays that were seen into rows."""
    known: dict[int, list[Part]] = {}
    for run in watch.runs:
        if id(run.runner) not in known:
            known[id(run.runner)] = described(run.runner, result.lines)
        for n, part in enumerate(known[id(run.runner)][: len(run.moments) - 1]):
            row = result.row(*part.key)
            row.calls += 1
            row.seconds += watch.backend.seconds(*run.moments[n : n + 2])
            row.bytes += part.bytes
            row.flops += part.flops
            if run.done:
                (before, composed), (after, later) = run.done[n : n + 2]
                row.kernels += after - before
                if part.product is not None:
                    with matmul_precision(run.precision):
                        kind = watch.backend.gemm.compute_name(part.product)
                    row.computed(kind if later == composed else "composed")


def _product(args: Any, out: Any) -> int:
    return int(2 * math.prod(out.shape) * args[0].shape[-1])


def _convolution(args: Any, out: Any) -> int:
    return int(2 * math.prod(out.shape) * math.prod(args[1].shape[1:]))


def _attention(q: Any, k: Any, v: Any) -> int:
    """Of a product of queries with keys and one with values."""
    return int(2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1]))


def operations(op: str, args: Any, out: Any, attrs: dict[str, Any]) -> int:
    """What is added and multiplied at least: attention that looks at what came before needs half of its products."""
    return FLOPS[op](args, out) // (2 if attrs.get("causal") else 1)


PRODUCTS = ("matmul", "affine")  # each is one call of cuBLASLt on a GPU

FLOPS: dict[str, Callable[[Any, Any], int]] = {
    "matmul": _product, "affine": _product, "conv2d": _convolution,
    "conv2d_input": lambda args, _: 2 * math.prod(args[0].shape) * math.prod(args[1].shape[1:]),
    "conv2d_weight": lambda args, out: 2 * math.prod(args[0].shape) * math.prod(out.shape[1:]),
    "attention": lambda args, _: _attention(*args[:3]),
    "attention_bwd": lambda args, _: 5 * _attention(*args[1:4]) // 2,
}  # fmt: skip
