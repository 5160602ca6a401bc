"""Reverse mode: the reachable history, and the walk that pulls cotangents back through it.

Knows nodes and rules only: no op, no backend, no array library. What it computes with comes in as `F`.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

from gpugrad.errors import GpugradError, GraphError, ShapeError, fail, place, user_frame
from gpugrad.interpret import settle
from gpugrad.op import PICK, RAW, RECORDING, record
from gpugrad.operands import explain_failure
from gpugrad.state import LENT, spare, writes
from gpugrad.tensor import Node, Tensor


def history(roots: Iterable[Node], born: int = 0) -> list[Node]:
    """What the roots depend on, oldest first, but nothing behind a node older than `born`. GraphError if spent."""
    ahead = {-node.seq: node for node in roots}
    newest, order = sorted(ahead), []  # parents are older than their child: of what was visited nothing is remembered
    while newest:
        node = ahead.pop(heappop(newest))
        if node.saved is None:
            first = place(*node.attrs["spent"])
            hint = "pass retain_graph=True there to differentiate twice"
            raise fail(GraphError, node.op.name, f"this graph was already differentiated by\n    {first}\n  {hint}")
        order.append(node)
        for p in node.parents if node.seq >= born else ():
            if p is not None and -p.seq not in ahead:
                ahead[-p.seq] = p
                heappush(newest, -p.seq)
    order.reverse()
    return order


def leading_to(targets: Iterable[Node], order: list[Node]) -> set[Node] | None:
    """The nodes of `order` (oldest first) from which a target can be reached; None if the targets are its leaves."""
    needed = set(targets)
    if needed == {n for n in order if n.op is None}:
        return None
    for node in order:
        if any(p in needed for p in node.parents):
            needed.add(node)
    return needed


def walk(
    F: Any, seeds: dict[Node, Any], targets: Iterable[Node] | None, keep: bool, born: int = 0, care: int = 0
) -> dict[Node, Any]:  # fmt: skip
    """Pull the seeds back through the graph, newest call first; returns the cotangents of targets (or all leaves).

    First order (`F` raw): rules see raw arrays, sums made here grow in place. Otherwise (`F` recording) rules see
    Tensors tied to the graph, so the result can be differentiated again. Unless `keep`, what a call saved is released.
    It ends at nodes older than `born`. `care`: what must not become NaN, 1: zeros, 2: infinities too.
    """
    graph, spent_at, order = F is RECORDING, {"spent": user_frame()}, history(seeds, born)
    needed = None if targets is None else leading_to(targets, order)
    wanted = needed and frozenset(targets or ())
    grads, found, ours, kind = dict(seeds), {}, set(), None
    while order:
        node = order.pop()
        g = grads.pop(node, None)
        if g is None:
            continue
        if Node.observed and (hasattr(node, "hooks") or hasattr(node, "grad")):
            g = observe(F, node, g)
        if type(g) is not kind and not graph and type(g) is not list:
            F = RAW[kind := type(g)]  # the graph may come from another device
        op = node.op
        if op is None or (wanted and node in wanted):
            found[node] = g
            if op is None or node.seq < born:
                continue
        if op is PICK:
            whole, i = node.parents[0], node.attrs["index"]
            slots = grads.setdefault(whole, [None] * whole.op.nout)  # type: ignore[union-attr, arg-type]
            slots[i] = g if slots[i] is None else slots[i] + g
            if not keep:
                node.saved, node.parents, node.attrs = None, (), spent_at
            continue
        saved, parents, attrs = node.saved or (), node.parents, node.attrs
        if node.seq < writes.last:
            check_writes(node)
        if graph:
            saved = tied(node)
        try:
            lent = None if keep or graph else op.reuse
            if lent is not None and saved[lent].nbytes >= LENT and spare(parents, saved, lent, g):
                attrs = {**attrs, "reuse": True}
            joint = None if op.joint is None else op.joint(F, g, *saved, **attrs)
            starred = attrs or len(saved) != 3  # such a call takes twice as long, and most ops need none
            for p, d in zip(parents, joint or op.vjps):
                if p is None or d is None or (needed and p not in needed):
                    continue
                pg = d if joint else d(F, g, *saved, **attrs) if starred else d(F, g, saved[0], saved[1], saved[2])
                if care and op.fragile:
                    pg = F.absorbed(pg, g, infinite=care > 1)
                if pg.shape != p.shape or pg.dtype is not p.dtype:
                    pg = fit(F, pg, p, parents.index(p))
                if p not in grads:
                    if p.op is None and not graph and (pg is g or pg.base is not None or any(pg is s for s in saved)):
                        pg = pg.copy()  # a leaf's gradient is its own memory, never a view of something shared
                    grads[p] = pg
                elif p in ours and type(pg) is type(grads[p]):
                    grads[p] += pg
                else:
                    grads[p] = grads[p] + pg
                    if not graph:
                        ours.add(p)
        except Exception as error:
            raise rule_failure(node, error) from error
        care = op.singular if op.singular > care else care
        if not keep:
            node.saved, node.parents, node.attrs = None, (), spent_at
    return found


def fit(F: Any, g: Any, parent: Node, index: int) -> Any:
    """Undo broadcasting and casting: the cotangent in the parent's own shape and dtype."""
    shape, want = tuple(g.shape), parent.shape
    if shape != want:
        lead = len(shape) - len(want)
        axes = tuple(i for i in range(len(shape)) if i < lead or (want[i - lead] == 1 and shape[i] != 1))
        if lead < 0 or any(shape[i] != want[i - lead] for i in range(lead, len(shape)) if i not in axes):
            raise ShapeError(f"the rule for input {index} gave shape {shape}, expected {want}")
        g = F.reshape(F.sum(g, axis=axes, keepdims=True), shape=want)
    return g if g.dtype is parent.dtype else settle(F, g, parent.dtype)


def tied(node: Node) -> tuple[Any, ...]:
    """A node's saved values as Tensors that belong to the graph; an auxiliary value is withheld as None."""
    op, saved, parents = node.op, node.saved or (), node.parents
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
    for value in node.saved or ():
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
        return explain_failure(f"{node.op.name} backward", error, node.saved or (), {})
    kind = type(error) if isinstance(error, GpugradError) else GraphError
    return fail(kind, f"{node.op.name} backward", f"{error}\n  in the gradient of", place(node.code, node.lasti))
