"""Where the time of a program goes: every op, forward and backward, with its bytes, products and launches."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gpugrad import backends
from gpugrad.errors import place, user_frame
from gpugrad.op import TABLE, Op
from gpugrad.swap import implementations


@dataclass
class Row:
    """One op, forward (or called by a rule), or its derivative rule; `seconds` without what other rows count."""

    op: str
    phase: str
    line: str
    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0
    flops: int = 0
    kernels: int = 0
    compute: str = ""  # of products on a GPU: cuBLASLt's compute type, such as 32F, or 'composed'


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
        lines = [f"{'op':<30}{'calls':>8}{'ms':>10}{'%':>7}{'GB/s':>8}{'GFLOP/s':>9}{'kernels':>9}{'roofline':>10}"]
        wide = max((len(r.compute) + 2 for r in self.rows if r.compute), default=0)
        for r in self.rows:
            share, name = self.roofline(r), r.op if r.phase == "forward" else f"{r.op} {r.phase}"
            rates = [v / r.seconds / 1e9 if r.seconds and v else None for v in (r.bytes, r.flops)]
            shown = ["" if v is None else f"{v:.1f}" for v in rates]
            ideal = "" if share is None else f"{100 * share:.0f} %"
            lines.append(
                f"{name:<30}{r.calls:>8}{r.seconds * 1e3:>10.3f}{100 * r.seconds / whole:>7.1f}"
                f"{shown[0]:>8}{shown[1]:>9}{r.kernels or '':>9}{ideal:>10}  {r.compute:<{wide}}{r.line}".rstrip()
            )
        lines.append(f"{'outside the ops':<38}{self.outside * 1e3:>10.3f}{100 * self.outside / whole:>7.1f}")
        lines.append(f"{'in all':<38}{self.seconds * 1e3:>10.3f}  on {self.device}")
        return "\n".join(lines)


@contextlib.contextmanager
def profile(device: str = "cpu", *, lines: bool = False) -> Iterator[Profile]:
    """Measure the ops of this thread while the block runs; print the result, or read its `rows`.

    On a GPU times are those of the device, between events in its stream. A row is an op or, as phase "backward", its
    derivative rules without the ops that they call. `bytes` are those of the arrays read and written once, `flops`
    those of matrix products and convolutions. lines: a row for each of the user's lines. What the measuring costs
    counts as `outside`.
    """
    backend: Any = backends.get(device)
    result, gemm = Profile(device, lines), getattr(backend, "gemm", None)
    spans: list[tuple[Row, Any, Any, list[Any]]] = []
    stack: list[list[Any]] = [[]]  # for each open call, the spans directly inside it

    def run(op: Op, phase: str, work: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        line = place(*user_frame()).partition(": ")[0] if lines else ""
        key = op.name, phase, line
        row = result._rows.get(key) or result._rows.setdefault(key, Row(*key))
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
        row.bytes += 0 if inner else traffic(args, out)  # a rule that calls ops moves what they move
        if phase == "forward" and op.name in FLOPS:
            row.flops += FLOPS[op.name](args, out)
            if gemm is not None and op.name in PRODUCTS:
                kind = gemm.compute_name(args[0].dtype) if gemm.composed == composed else "composed"
                row.compute = ", ".join(dict.fromkeys([*filter(None, row.compute.split(", ")), kind]))
        return out

    def forward(op: Op, work: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        return run(op, "forward", work, args, attrs)

    def backward(op: Op, rule: Callable[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        return run(op, "backward", functools.partial(rule, args[0]), args[1:], attrs)

    with implementations(forward, backward):
        begin = backend.moment()
        try:
            yield result
        finally:
            end = backend.moment()
            backend.synchronize()
            result.seconds = backend.seconds(begin, end)
            for row, start, stop, inner in spans:
                row.seconds += backend.seconds(start, stop) - sum(backend.seconds(*s[:2]) for s in inner)


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


def _product(args: Any, out: Any) -> int:
    return int(2 * math.prod(out.shape) * args[0].shape[-1])


def _convolution(args: Any, out: Any) -> int:
    return int(2 * math.prod(out.shape) * math.prod(args[1].shape[1:]))


PRODUCTS = ("matmul", "affine")  # each is one call of cuBLASLt on a GPU

FLOPS: dict[str, Callable[[Any, Any], int]] = {
    "matmul": _product, "affine": _product, "conv2d": _convolution,
    "conv2d_input": lambda args, _: 2 * math.prod(args[0].shape) * math.prod(args[1].shape[1:]),
    "conv2d_weight": lambda args, out: 2 * math.prod(args[0].shape) * math.prod(out.shape[1:]),
}  # fmt: skip
