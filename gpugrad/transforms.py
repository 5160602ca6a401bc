"""Differentiation as users call it: backward, gradients, grad, value_and_grad, Tape. Thin, on the walk of `tape`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gpugrad.errors import DTypeError, GraphError, RangeError, ShapeError, describe, fail
from gpugrad.interpret import settle
from gpugrad.layered import levels
from gpugrad.op import RECORDING, raw
from gpugrad.ops.creation import asarray
from gpugrad.state import enable_grad, mode, no_grad, switch
from gpugrad.tape import walk
from gpugrad.tensor import Leaf, Node, Tensor
from gpugrad.tree import refill, tree_leaves, tree_map


def differentiate(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], targets: Iterable[Node] | None,
    retain_graph: bool, create_graph: bool, name: str,
) -> dict[Node, Tensor]:  # fmt: skip
    """Seed the walk from outputs and wrap what it finds. Raises GraphError where there is nothing to differentiate."""
    seeds: dict[Node, Any] = {}
    for out, given in zip(outputs, cotangents):
        F: Any = RECORDING if create_graph else raw(out.data)
        if out.node is None:
            raise fail(GraphError, name, f"{describe(out)} does not depend on any tensor that requires gradients")
        if given is None and out.data.size != 1:
            raise fail(
                GraphError, name,
                f"the output has shape {list(out.shape)}, not one element; reduce it with .sum() or .mean(), "
                "or pass a cotangent of that shape",
            )  # fmt: skip
        if given is not None and not isinstance(given, Tensor):
            raise fail(DTypeError, name, f"the cotangent is a {type(given).__name__}, expected a Tensor")
        if given is not None and given.shape != out.shape:
            raise fail(ShapeError, name, f"the cotangent has shape {list(given.shape)}, expected {list(out.shape)}")
        if given is not None and given.dtype != out.dtype:
            given = settle(RECORDING, given, out.data.dtype)
        value, given = (Tensor(out.data), given) if create_graph else (out.data, None if given is None else given.data)
        if given is None:
            g = F.ones_like(value)
        elif levels(out.data.dtype):
            g = settle(F, given, out.data.dtype)
        else:
            g = given if create_graph or out.node.op else given.copy()
        seeds[out.node] = seeds[out.node] + g if out.node in seeds else g
    with switch(create_graph), np.errstate(invalid="ignore"):  # the 0 * inf of masked branches
        found = walk(F, seeds, targets, retain_graph or create_graph, care=any(map(masks, cotangents)))
    return {n: g if create_graph else Tensor(F.box(g)) for n, g in found.items()}


def masks(cotangent: Tensor | None) -> bool:
    """Whether a given cotangent may hold zeros; a GPU is not asked."""
    data = None if cotangent is None else cotangent.data
    return data is not None and not (isinstance(data, np.ndarray) and np.count_nonzero(data) == data.size)


def backward(
    self: Tensor, grad: Tensor | None = None, *, retain_graph: bool = False, create_graph: bool = False,
    accumulate: bool = True,
) -> None:  # fmt: skip
    """Differentiate this tensor and add the gradients to the `.grad` of the leaves it depends on.

    grad: the cotangent, needed when the tensor has more than one element. retain_graph: keep the graph for a
    second call. create_graph: record the gradient itself. accumulate=False overwrites `.grad`. Raises
    GraphError for a constant, a non-scalar without `grad`, a spent graph or an overwritten saved value.
    """
    for leaf, g in differentiate((self,), (grad,), None, retain_graph, create_graph, "backward").items():
        assert isinstance(leaf, Leaf)
        if leaf.grad is None or not accumulate:
            leaf.grad = g
        elif create_graph:
            leaf.grad = leaf.grad + g
        else:
            leaf.grad.data += g.data


def gradients(
    outputs: Tensor | Sequence[Tensor], inputs: Tensor | Sequence[Tensor], cotangents: Any = None, *,
    retain_graph: bool = False, create_graph: bool = False, unconnected: str = "none",
) -> Any:  # fmt: skip
    """Gradients of outputs with respect to any tensors (leaves or intermediates), leaving `.grad` alone.

    Returns one Tensor for one input, else a tuple. unconnected: what an input without a path gives, 'none',
    'zero' or 'error'. Raises as `backward` does.
    """
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    seeds = [None] * len(outs) if cotangents is None else [cotangents] if isinstance(cotangents, Tensor) else cotangents
    if unconnected not in ("none", "zero", "error"):
        raise ValueError(f"[gradients] unconnected is {unconnected!r}; expected 'none', 'zero' or 'error'")
    for i, t in enumerate(ins):
        if not isinstance(t, Tensor):
            raise fail(DTypeError, "gradients", f"input {i} is a {type(t).__name__}, expected a Tensor")
    if len(seeds) != len(outs):
        raise fail(ShapeError, "gradients", f"{len(seeds)} cotangents for {len(outs)} outputs")
    nodes = [t.node for t in ins]
    if unconnected == "zero":  # constant outputs contribute nothing
        live = [(o, s) for o, s in zip(outs, seeds) if o.node is not None]
        outs, seeds = [o for o, _ in live], [s for _, s in live]
    found = (
        {}
        if not outs
        else differentiate(outs, seeds, [n for n in nodes if n is not None], retain_graph, create_graph, "gradients")
    )
    result: list[Tensor | None] = []
    for i, (t, n) in enumerate(zip(ins, nodes)):
        g = None if n is None else found.get(n)
        if g is None and unconnected == "error":
            raise fail(GraphError, "gradients", f"the outputs do not depend on input {i}, {describe(t)}")
        result.append(RECORDING.zeros_like(Tensor(t.data)) if g is None and unconnected == "zero" else g)
    return result[0] if isinstance(inputs, Tensor) else tuple(result)


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False, unconnected: str = "zero"
) -> Callable[..., Any]:
    """A function that returns (f(*args), gradients with respect to the chosen arguments).

    f: returns a one-element Tensor, or (Tensor, aux) with has_aux. argnums: one position or several; each argument
    may be a Tensor, a Python float, an array, or nested dicts, lists and tuples of those, and its gradient has
    the same structure. Nests to any order. Raises GraphError when f's result is not a one-element Tensor.
    """
    several = not isinstance(argnums, int)

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        positions = places(argnums, len(args), "grad")
        given = [t for i in positions for t in tree_leaves(args[i])]
        # Record the walk itself when someone outside may differentiate it: an enclosing grad, or a tracked argument.
        again = mode.depth > 0 or any(isinstance(t, Tensor) and t.node is not None for t in given)
        mode.depth += 1
        try:
            with enable_grad():
                varied = {i: tree_map(entry, args[i]) for i in positions}
                result = f(*(varied.get(i, a) for i, a in enumerate(args)), **kwargs)
                if has_aux and not (isinstance(result, tuple) and len(result) == 2):
                    raise fail(
                        GraphError, "grad",
                        f"with has_aux the function must return (value, aux), not {describe(result)}",
                    )  # fmt: skip
                out, aux = result if has_aux else (result, None)
                if not isinstance(out, Tensor) or out.size != 1:
                    raise fail(
                        GraphError, "grad", f"the function must return a one-element tensor, not {describe(out)}"
                    )
                leaves = [t for i in positions for t in tree_leaves(varied[i])]
                found = gradients(out, leaves, create_graph=again, unconnected=unconnected)
        finally:
            mode.depth -= 1
        parts = iter(found)
        grads = [refill(varied[i], parts) for i in positions]
        return ((out, aux) if has_aux else out), (tuple(grads) if several else grads[0])

    return run


def places(argnums: int | Sequence[int], count: int, name: str) -> tuple[int, ...]:
    """Which of `count` arguments are meant, from 0; negative numbers count from the end. Raises RangeError."""
    chosen = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    for i in chosen:
        if not -count <= i < count:
            raise fail(RangeError, name, f"argnums {i} is out of range for {count} arguments")
    return tuple([i % count for i in chosen])


def entry(x: Any) -> Tensor:
    """A differentiable stand-in for an argument: tied to the outer graph if there is one, else a new leaf."""
    if isinstance(x, Tensor) and x.node is not None and x.node.spent is None:
        return RECORDING.alias(x)  # type: ignore[no-any-return]
    return asarray(float(x) if type(x) is int else Tensor(x.data) if isinstance(x, Tensor) else x).requires_grad_()


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Callable[..., Any]:
    """A function that returns the gradient of f with respect to the chosen arguments; see `value_and_grad`.

    With has_aux it returns (gradient, aux).
    """
    both = value_and_grad(f, argnums, has_aux=has_aux)

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        value, g = both(*args, **kwargs)
        return (g, value[1]) if has_aux else g

    return run


class Tape:
    """Explicit recording in the manner of GradientTape, on the same engine.

    Inside the block watched tensors are differentiable; afterwards a tensor that the tape alone watched is a
    constant again. `gradient` works once unless `persistent`.
    """

    def __init__(self, persistent: bool = False) -> None:
        self._persistent = persistent
        self._watched: dict[int, tuple[Tensor, Node]] = {}
        self._switch = enable_grad()
        self._open = False

    def __enter__(self) -> Tape:
        self._switch.__enter__()
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._switch.__exit__()
        self._open = False
        for t, _node in self._watched.values():
            t.node = None

    def watch(self, *tensors: Tensor) -> None:
        """Make constants differentiable for the length of the block. Raises DTypeError for integers."""
        for t in tensors:
            if t.node is None:
                self._watched[id(t)] = (t, t.requires_grad_().node)  # type: ignore[assignment]

    def stop_recording(self) -> switch:
        """Context in which nothing is recorded."""
        return no_grad()

    def gradient(
        self, target: Tensor, sources: Any, cotangent: Tensor | None = None, *, unconnected: str = "none"
    ) -> Any:
        """Gradient of target with respect to sources (a tensor, or nested dicts and lists of tensors)."""
        leaves = tree_leaves(sources)
        nodes = [self._watched[id(t)][1] if id(t) in self._watched else t.node for t in leaves]
        stand_ins = [Tensor(t.data, n) for t, n in zip(leaves, nodes)]
        keep = self._persistent
        found = gradients(
            target, stand_ins, [cotangent], retain_graph=keep, create_graph=self._open, unconnected=unconnected
        )
        return refill(sources, found)
