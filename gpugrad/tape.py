"""Reverse mode: the reachable history, and the walk that pulls cotangents back through it.

Knows nodes and rules only: no op, no backend, no array library. What it computes with comes in as `F`.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

from gpugrad.errors import GraphError, ShapeError, fail, place, user_frame
from gpugrad.interpret import settle
from gpugrad.op import PICK, RAW, RECORDING
from gpugrad.seldom import check_writes, leading_to, observe, rule_failure, tied
from gpugrad.state import LENT, spare, writes
from gpugrad.tensor import Lean, Node


def history(roots: Iterable[Node], born: int = 0) -> list[Any]:
    """What the roots depend on, oldest first, but nothing behind a node older than `born`. GraphError if spent."""
    ahead = {-node.seq: node for node in roots}
    newest, order = sorted(ahead), []  # parents are older than their child: of what was visited nothing is remembered
    while newest:
        node = ahead.pop(heappop(newest))
        if node.spent is not None:
            first = place(*node.spent)
            hint = "pass retain_graph=True there to differentiate twice"
            raise fail(GraphError, node.op.name, f"this graph was already differentiated by\n    {first}\n  {hint}")
        order.append(node)
        if node.seq < born:
            continue
        for p in (node.left, node.right) if type(node) is Lean else node.parents:
            if p is not None and (key := -p.seq) not in ahead:
                ahead[key] = p
                heappush(newest, key)
    order.reverse()
    return order


def walk(
    F: Any, seeds: dict[Node, Any], targets: Iterable[Node] | None, keep: bool, born: int = 0, care: int = 0
) -> dict[Node, Any]:  # fmt: skip
    """Pull the seeds back through the graph, newest call first; returns the cotangents of targets (or all leaves).

    First order (`F` raw): rules see raw arrays, sums made here grow in place. Otherwise (`F` recording) rules see
    Tensors tied to the graph, so the result can be differentiated again. Unless `keep`, what a call saved is released.
    It ends at nodes older than `born`. `care`: what must not become NaN, 1: zeros, 2: infinities too.
    """
    graph, spent_at, order = F is RECORDING, user_frame(), history(seeds, born)
    needed = None if targets is None else leading_to(targets, order)
    wanted = needed and frozenset(targets or ())
    grads, found, ours, kind = dict(seeds), {}, set(), None
    while order:
        node: Any = order.pop()
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
                node.parents, node.spent = (), spent_at
            continue
        parents = (node.left, node.right) if (lean := type(node) is Lean) else node.parents
        if node.seq < writes.last:
            check_writes(node)
        try:
            if plain := lean and not graph and op.reuse is None:
                rules, joint, saved = op.vjps, None, ()
                two = len(rules) == 2
            else:
                saved = tied(node) if graph else (node.out, node.x, node.y)[: 1 + len(op.vjps)] if lean else node.saved
                attrs = node.attrs
                lent = None if keep else op.reuse
                if lent is not None and saved[lent].nbytes >= LENT and spare(parents, saved, lent, g, lean):
                    attrs = {**attrs, "reuse": True}
                joint = None if op.joint is None else op.joint(F, g, *saved, **attrs)
                rules = joint or op.vjps
            i = -1
            for p in parents:
                i += 1
                if p is None or (d := rules[i]) is None or (needed and p not in needed):
                    continue
                if plain:
                    pg = d(F, g, node.out, node.x, node.y) if two else d(F, g, node.out, node.x)
                else:
                    pg = d if joint else d(F, g, *saved, **attrs) if attrs else d(F, g, *saved)
                if care and op.fragile:
                    pg = F.absorbed(pg, g, infinite=care > 1)
                if pg.shape != p.shape or pg.dtype is not p.dtype:
                    pg = fit(F, pg, p, parents.index(p))
                have = grads.get(p)
                if have is None:
                    if p.op is None and not graph and (pg.base is not None or any(pg is s for s in (g, *node.saved))):
                        pg = pg.copy()  # a leaf's gradient is its own memory, never a view of something shared
                    grads[p] = pg
                elif p in ours and type(pg) is type(have):
                    have += pg
                    grads[p] = have
                else:
                    grads[p] = have = have + pg
                    if not graph:
                        ours.add(p)
        except Exception as error:
            raise rule_failure(node, error) from error
        if op.singular > care:
            care = op.singular
        if not keep:
            node.spent = spent_at
            if lean:
                node.left = node.right = node.out = node.x = node.y = None
            else:
                node.parents = node.saved = ()
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
