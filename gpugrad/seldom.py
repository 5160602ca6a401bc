"""What a walk seldom has to do: find targets, tie values to the graph, run hooks, look at writes, explain a failure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpugrad.errors import GpugradError, GraphError, ShapeError, fail, place
from gpugrad.op import PICK, RECORDING, record
from gpugrad.operands import explain_failure
from gpugrad.state import writes
from gpugrad.tensor import Node, Tensor


def leading_to(targets: Iterable[Node], order: list[Node]) -> set[Node] | None:
    """The nodes of `order` (oldest first) from which a target can be reached; None if the targets are its leaves."""
    needed = set(targets)
    if needed == {n for n in order if n.op is None}:
        return None
    for node in order:
        if any(p in needed for p in node.parents):
            needed.add(node)
    return needed


def tied(node: Node) -> tuple[Any, ...]:
    """A node's saved values as Tensors that belong to the graph; an auxiliary value is withheld as None."""
    op, saved, parents = node.op, node.saved, node.parents
    n = 1 + len(parents)
    if op.nout > 1 and saved[0] is not None:
        out: Any = tuple(record(PICK, {"index": i}, (node,), (), o) for i, o in enumerate(saved[0]))
    else:
        out = None if saved[0] is None else Tensor(saved[0], node)
    inputs = [Tensor(v, p) if hasattr(v, "dtype") else v for v, p in zip(saved[1:n], parents)]
    return (out, *inputs, *(None for _ in saved[n:]))


def observe(F: Any, node: Node, g: Any) -> Any:
    """Run the hooks of a node on its complete gradient and keep a retained one."""
    t = g if F is RECORDING else Tensor(F.box(g))
    for hook in list(getattr(node, "hooks", {}).values()):
        new = hook(t)
        if new is not None:
            if new.shape != node.shape:
                raise fail(ShapeError, "hook", f"a gradient hook returned shape {new.shape}, expected {node.shape}")
            t = new
    if node.op is not None and hasattr(node, "grad"):
        node.grad = t if node.grad is None else node.grad + t
    return t if F is RECORDING else t.data


def check_writes(node: Node) -> None:
    """Raise GraphError if a value this call saved was overwritten since, naming both lines."""
    for value in node.saved:
        hit = None if value is None else writes.since(value, node.seq)
        if hit is not None:
            raise fail(
                GraphError, node.op.name,
                f"a value saved for the gradient was overwritten by\n    {place(*hit)}\n"
                f"  after it was used in\n    {place(node.code, node.lasti)}\n  write to a copy, or after backward()",
            )  # fmt: skip


def rule_failure(node: Node, error: Exception) -> Exception:
    """An error inside a derivative rule, in terms of the forward line."""
    if isinstance(error, (GraphError, MemoryError)):
        return explain_failure(f"{node.op.name} backward", error, node.saved, {})
    kind = type(error) if isinstance(error, GpugradError) else GraphError
    return fail(kind, f"{node.op.name} backward", f"{error}\n  in the gradient of", place(node.code, node.lasti))
