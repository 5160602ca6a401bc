"""checkpoint: a part of a computation that keeps its inputs alone and is run again when its gradient is wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gpugrad.op import PICK, RECORDING, record
from gpugrad.operands import alive
from gpugrad.state import Draws, enable_grad, mode, next_seq
from gpugrad.tape import walk
from gpugrad.tensor import Leaf, Node, Tensor
from gpugrad.tree import refill, tree_leaves


class Segment:
    """One checkpointed call, which is at once the op of its node: how to run it again, and its gradient.

    The node's parents are the arguments that require gradients, then what f reads of the graph besides them.
    """

    name, aux, vjps, kind, via, reuse, singular, fragile = "checkpoint", False, (), "general", None, None, 0, False

    def __init__(self, f: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.f, self.nout, self.draws, self.depth = f, 1, Draws(), mode.depth
        given = tree_leaves((args, kwargs))
        self.places = [i for i, x in enumerate(given) if type(x) is Tensor and alive(x.node) is not None]
        self.rest = [None if i in self.places else x for i, x in enumerate(given)]
        self.shape = refill((args, kwargs), range(len(given)))
        self.outer: list[Node] = []
        self.smooth: list[int] = []

    def __call__(self, tracked: list[Tensor], draws: Draws) -> tuple[Any, list[Any]]:
        """Run f with these tensors in place of the tracked arguments: its result, and the leaves of that."""
        leaves = list(self.rest)
        for i, x in zip(self.places, tracked):
            leaves[i] = x
        args, kwargs = refill(self.shape, leaves)
        depth, mode.depth = mode.depth, self.depth
        try:
            with enable_grad(), draws:
                result = self.f(*args, **kwargs)
        finally:
            mode.depth = depth
        return result, tree_leaves(result)

    def joint(self, F: Any, t: Any, _out: Any, *saved: Any) -> tuple[Any, ...]:
        """Run f again and pull the cotangents back through that graph alone, up to the parents."""
        graph = F is RECORDING
        tracked = [RECORDING.alias(x) if graph else stand_in(x) for x in saved[: len(self.places)]]
        born = next_seq()
        _, leaves = self(tracked, self.draws.again())
        seeds: dict[Node, Any] = {}
        for i, g in zip(self.smooth, t if self.nout > 1 else [t]):
            node = leaves[i].node
            if g is not None:
                seeds[node] = seeds[node] + g if node in seeds else g
        sources: list[Any] = [*(x.node for x in tracked), *self.outer]
        found = walk(F, seeds, sources, graph, born, care=2)
        return tuple([found.get(n) for n in sources])


def stand_in(x: Any) -> Tensor:
    """A raw value as a new leaf, so that the walk ends there."""
    return Tensor(x, Leaf(x.shape, x.dtype))


def outside(roots: list[Node], born: int) -> list[Node]:
    """The nodes older than `born` that the roots depend on directly."""
    seen, stack, found = set(roots), list(roots), []
    while stack:
        node = stack.pop()
        if node.seq < born:
            found.append(node)
            continue
        for p in node.parents:
            if p is not None and p not in seen:
                seen.add(p)
                stack.append(p)
    return sorted(found, key=lambda n: n.seq)


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, whose calls keep their arguments alone: what f computes on the way is computed again for the gradient.

    Of n layers, checkpointed sqrt(n) at a time, O(sqrt(n)) arrays are held at once, for one more forward pass. Values
    and gradients have the same bits as without it (where a parameter serves several segments, its gradient is summed
    segment by segment); random draws are repeated and in-place updates are not. Arguments and results may be nested
    containers; f may read other tensors that require gradients. Differentiable to any order.
    """

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not mode.enabled:
            return f(*args, **kwargs)
        segment = Segment(f, args, kwargs)
        given = tree_leaves((args, kwargs))
        arguments = [given[i] for i in segment.places]
        born = next_seq()
        inside = [stand_in(x.data) for x in arguments]
        result, leaves = segment(inside, segment.draws)
        nodes = {i: y.node for i, y in enumerate(leaves) if isinstance(y, Tensor) and y.node is not None}
        segment.smooth, segment.nout = list(nodes), max(len(nodes), 1)
        segment.outer = outside([n for n in nodes.values() if n is not None], born)
        plain = [Tensor(y.data) if isinstance(y, Tensor) else y for y in leaves]
        if not nodes:  # nothing that comes out depends on the graph
            return refill(result, plain)
        parents = (*(x.node for x in arguments), *segment.outer)
        saved = (None, *(x.data for x in arguments), *(None for _ in segment.outer))
        whole = record(segment, {}, parents, saved, plain[segment.smooth[0]].data)
        for k, i in enumerate(segment.smooth):
            if segment.nout == 1:
                plain[i] = whole
            else:
                plain[i] = record(PICK, {"index": k}, (whole.node,), (), plain[i].data)
        return refill(result, plain)

    return run
