"""Which arrays are alive, what holds them and which line made them; and what to say when memory runs out."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpugrad import backends
from gpugrad.errors import OutOfMemoryError, fail, place
from gpugrad.layered import innermost
from gpugrad.state import owner
from gpugrad.tensor import Node, Tensor

LISTED = 10


class Held(NamedTuple):
    """One piece of memory: `what` holds it, and the user's `line` that made that."""

    bytes: int
    shape: tuple[int, ...]
    dtype: str
    what: str
    line: str

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"{megabytes(self.bytes):>12}  {self.dtype} {shape}  {self.what}" + (self.line and f"\n{self.line:>18}")


class MemoryReport:
    """What `memory_report` found: `held`, largest first, their `total`, and what the device's pool says is `used`."""

    def __init__(self, device: str, held: list[Held], used: int | None) -> None:
        self.device, self.held, self.used = device, held, used
        self.total = sum(h.bytes for h in held)

    @property
    def elsewhere(self) -> int | None:
        """Bytes in use that no tensor or graph holds: workspaces, random counters, raw arrays; None on the CPU."""
        return None if self.used is None else self.used - self.total

    def __str__(self) -> str:
        text = [f"{self.device}: {megabytes(self.total)} in {len(self.held)} arrays", *map(str, self.held)]
        if self.elsewhere is not None:
            text.append(f"{megabytes(self.elsewhere):>12}  held by no tensor or graph")
        return "\n".join(text)


def memory_report(device: str = "cpu") -> MemoryReport:
    """What tensors and recorded graphs hold on a device: every piece of memory once, with its holder and line.

    A parameter is named as its model names it. On a GPU the sum and `elsewhere` are the pool's `used` bytes.
    """
    used = None if backends.get(device).name == "cpu" else backends.get(device).memory()["used"]  # type: ignore[attr-defined]
    return MemoryReport(device, sorted(survey(device), key=lambda h: -h.bytes), used)


def survey(device: str) -> Iterator[Held]:
    """Every owner of memory on a device once: as a named parameter, else a tensor's value, else a saved value."""
    backend, seen = backends.get(device), set[int]()
    for array, what, node in holders():
        if not backends.is_raw(array):  # a tensor that is being made, or is part of a trace
            continue
        whole = owner(array)
        if id(whole) in seen or backends.of(whole) is not backend or not whole.nbytes:
            continue
        if device in ("cpu", backend.name) or backend.device_of(whole) == device:
            seen.add(id(whole))
            line = "" if node is None else "    " + place(node.code, node.lasti)
            yield Held(size(whole), whole.shape, whole.dtype.name, what, line)


def holders() -> Iterator[tuple[Any, str, Node | None]]:
    """(array, what it is, the call that made it) of everything alive, the best names first."""
    objects = gc.get_objects()
    nn = sys.modules.get("gpugrad.nn")
    modules = [o for o in objects if nn is not None and isinstance(o, nn.Module)]
    paths: dict[int, tuple[str, Tensor]] = {}
    for module in modules:
        for name, t in (*module.named_parameters(), *module.named_buffers()):
            if len(name) >= len(paths.get(id(t), ("",))[0]):  # the outermost model knows the longest path
                paths[id(t)] = name, t
    for name, t in paths.values():
        yield innermost(t.data), name, None
        grad = getattr(t.node, "grad", None)
        if grad is not None:
            yield innermost(grad.data), f"gradient of {name}", None
    nodes = [o for o in objects if isinstance(o, Node)]
    for node in nodes:
        if getattr(node, "grad", None) is not None:
            yield innermost(node.grad.data), "gradient", node  # type: ignore[union-attr]
    for t in [o for o in objects if type(o) is Tensor]:
        made = t.node
        what = "tensor" if made is None or made.op is None else f"result of {made.op.name}"
        yield innermost(t.data), what, made
    for node in nodes:
        for value in node.saved:
            for a in value if isinstance(value, tuple) else (value,):
                if hasattr(a, "nbytes"):
                    yield innermost(a), f"saved by {node.op.name}", node


def size(array: Any) -> int:
    """Bytes that an array takes of its pool."""
    memory = getattr(getattr(array, "data", None), "mem", None)  # CuPy's pieces are larger than what was asked
    return int(getattr(memory, "size", array.nbytes))


def megabytes(n: int) -> str:
    """Bytes for people."""
    return f"{n / 2**20:,.2f} MB" if n >= 2**14 else f"{n:,} B"


def exhausted(op: str, error: MemoryError, args: Any) -> OutOfMemoryError:
    """The error for an op that got no memory: what the library said, what is held, and what batch might fit."""
    flat = [a for x in args for a in (x if isinstance(x, (tuple, list)) else (x,)) if backends.is_raw(a)]
    device = backends.of(flat[0]).device_of(flat[0]) if flat else "cpu"
    report = memory_report(device)
    lines = "\n".join(map(str, report.held[:LISTED]))
    hint = smaller(report, flat) if device != "cpu" else ""
    text = f"{error}\n  {device} holds {megabytes(report.total)}, most of it in\n{lines}{hint}"
    return fail(OutOfMemoryError, op, text)  # type: ignore[return-value]


def smaller(report: MemoryReport, arrays: list[Any]) -> str:
    """The batch that would just fit, if arrays whose first axis is the operand's grow with it and others do not."""
    rows = next((int(a.shape[0]) for a in arrays if a.ndim), 0)
    growing = sum(h.bytes for h in report.held if h.shape[:1] == (rows,))
    numbers = backends.get(report.device).memory()  # type: ignore[attr-defined]
    room = (numbers["limit"] or numbers["total"]) - (report.used or 0) + growing
    wanted = growing + max((a.nbytes for a in arrays), default=0)
    if rows < 2 or not growing or room <= 0:
        return ""
    fits = min(rows - 1, rows * room // wanted)
    return f"\n  if memory grows with the first axis, now {rows}, about {fits} would fit" if fits else ""
