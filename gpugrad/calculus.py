"""Derivatives beyond the gradient: vjp, linearize, jacobian, hessian, hvp, stop_gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpugrad.batching import vmap
from gpugrad.errors import ShapeError, describe, fail
from gpugrad.forward import jvp, variable
from gpugrad.layered import constant
from gpugrad.op import RECORDING
from gpugrad.ops.creation import asarray, eye, zeros
from gpugrad.ops.shape import concat, moveaxis, reshape
from gpugrad.state import enable_grad, mode
from gpugrad.tensor import Tensor
from gpugrad.transforms import entry, grad, gradients, places
from gpugrad.tree import refill, tree_leaves, tree_map

ROWS = 128  # rows of a Jacobian that are worked on at a time


def tracked(x: Any) -> bool:
    """Whether x is a Tensor that someone may differentiate in."""
    return isinstance(x, Tensor) and x.node is not None


def stop_gradient(x: Any) -> Any:
    """The same values as constants, to reverse and forward mode alike; x may be nested containers of Tensors."""
    return tree_map(lambda t: Tensor(constant(t.data)) if isinstance(t, Tensor) else t, x)


def vjp(f: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """(f(*primals), pullback), where pullback(cotangents) gives a tuple of gradients, one for each primal.

    Primals and results may be nested containers; cotangents have the structure and shapes of the result, None for zero.
    The pullback may be called any number of times, and is linear and differentiable in turn. With has_aux f returns
    (out, aux), and aux comes third. Raises ShapeError where structure or shapes differ.
    """
    outer = mode.depth > 0 or any(map(tracked, tree_leaves(primals)))
    mode.depth += 1
    try:
        with enable_grad():
            varied = tree_map(entry, primals)
            result = f(*varied)
    finally:
        mode.depth -= 1
    out, aux = result if has_aux else (result, None)
    out = tree_map(asarray, out)
    inputs = tree_leaves(varied)

    def pullback(cotangents: Any) -> tuple[Any, ...]:
        """Gradients with respect to the primals. Raises ShapeError for cotangents unlike the result."""
        pairs: list[tuple[Tensor, Tensor]] = []
        tree_map(lambda y, t: pairs.append((y, weight(y, t))) if t is not None else None, out, cotangents)
        live = [(y, t) for y, t in pairs if y.node is not None]
        again = outer or mode.depth > 0 or any(tracked(t) for _, t in pairs)
        with enable_grad():
            found = gradients(
                [y for y, _ in live], inputs, [t for _, t in live],
                retain_graph=True, create_graph=again, unconnected="zero",
            )  # fmt: skip
        return refill(varied, found)  # type: ignore[no-any-return]

    value = out if outer else tree_map(lambda y: Tensor(y.data), out)
    return (value, pullback, aux) if has_aux else (value, pullback)


def weight(y: Tensor, t: Any) -> Tensor:
    """A cotangent for y, in its dtype and on its device."""
    t = variable(t)
    if t.shape != y.shape:
        raise fail(ShapeError, "vjp", f"the cotangent {describe(t)} does not have the shape of {describe(y)}")
    if t.dtype != y.dtype:
        t = RECORDING.astype(t, dtype=y.dtype)
    return t.to(device=y.device)  # type: ignore[no-any-return]


def linearize(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """(f(*primals), push), where push(*tangents) is the derivative of f at the primals along the tangents.

    f is run once: push transposes the pullback, which is linear in its cotangent, and may be called any number of
    times. For a single direction `jvp` costs less. Structures, shapes and errors as in `jvp`.
    """
    out, pullback = vjp(f, *primals)
    with enable_grad():
        free = tree_map(lambda y: RECORDING.zeros_like(Tensor(y.data)).requires_grad_(), out)
        pulled = tree_leaves(pullback(free))
    knobs = tree_leaves(free)

    def push(*tangents: Any) -> Any:
        """The derivative along tangents, one for each primal (None for zero)."""
        if len(tangents) != len(primals):
            raise fail(ShapeError, "linearize", f"{len(tangents)} tangents for {len(primals)} primals")
        moves: list[Any] = []
        tree_map(lambda _, t: moves.append(t), primals, tangents)
        live = [(g, weight(g, t)) for g, t in zip(pulled, moves) if t is not None and g.node is not None]
        again = mode.depth > 0 or any(map(tracked, [*moves, *tree_leaves(primals)]))
        found = gradients(
            [g for g, _ in live], knobs, [t for _, t in live],
            retain_graph=True, create_graph=again, unconnected="zero",
        )  # fmt: skip
        return refill(out, found)

    return out, push


def jacobian(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, mode: str = "auto", *, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns the Jacobian of f in the chosen arguments, of shape (*shape of output, *shape of input).

    For results and arguments that are nested containers it has the structure of the result, each leaf replaced by the
    structure of the argument (a tuple of them for several argnums). mode: 'forward' takes a pass for each input
    element, 'reverse' for each output element, 'auto' the fewer; passes are batched. With has_aux f returns (out,
    aux), and the Jacobian's function (Jacobian, aux). Raises ValueError for another mode.
    """
    if mode not in ("auto", "forward", "reverse"):
        raise ValueError(f"[jacobian] mode is {mode!r}; expected 'auto', 'forward' or 'reverse'")

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        positions = places(argnums, len(args), "jacobian")

        def of(*moved: Any) -> Any:
            at = dict(zip(positions, moved))
            result = f(*[at.get(i, a) for i, a in enumerate(args)], **kwargs)
            out, aux = result if has_aux else (result, None)
            return tree_map(asarray, out), aux

        chosen = tuple(tree_map(variable, args[i]) for i in positions)
        like = chosen[0] if isinstance(argnums, int) else chosen
        if mode == "forward":
            out, aux = of(*chosen)
        else:
            out, pullback, aux = vjp(of, *chosen, has_aux=True)
        n_in, n_out = (sum(x.size for x in tree_leaves(t)) for t in (chosen, out))
        if mode == "reverse" or (mode == "auto" and n_out <= n_in):
            blocks = by_rows(pullback, out, chosen)
        else:
            blocks = by_columns(lambda *moved: of(*moved)[0], out, chosen)
        jac = refill(out, [refill(like, row) for row in blocks])
        return (jac, aux) if has_aux else jac

    return run


def basis(x: Tensor) -> Iterator[Tensor]:
    """The unit arrays of x's shape, stacked along a new first axis, in pieces of at most ROWS."""
    for i in range(0, x.size, ROWS):
        rows = min(ROWS, x.size - i)
        yield reshape(eye(rows, x.size, k=i, dtype=x.dtype, device=x.device), (rows, *x.shape))


def only(tree: Any, k: int, x: Any) -> Any:
    """A structure like `tree` with x at leaf k and None elsewhere."""
    return refill(tree, [x if i == k else None for i in range(len(tree_leaves(tree)))])


def by_rows(pullback: Any, out: Any, given: Any) -> list[list[Tensor]]:
    """The blocks of a Jacobian, [output leaf][input leaf], a row at a time."""
    blocks = []
    for k, y in enumerate(tree_leaves(out)):
        parts = [tree_leaves(vmap(lambda t, k=k: pullback(only(out, k, t)))(b)) for b in basis(y)]
        inputs = tree_leaves(given)
        blocks.append([joined([p[i] for p in parts], y, x) for i, x in enumerate(inputs)])
    return blocks


def by_columns(f: Any, out: Any, given: Any) -> list[list[Tensor]]:
    """The blocks of a Jacobian, [output leaf][input leaf], a column at a time."""
    columns = []
    for i, x in enumerate(tree_leaves(given)):
        parts = [tree_leaves(vmap(lambda t, i=i: jvp(f, given, only(given, i, t))[1])(b)) for b in basis(x)]
        columns.append([joined([p[k] for p in parts], x, y) for k, y in enumerate(tree_leaves(out))])
    return [
        [moveaxis(c[k], tuple(range(x.ndim)), tuple(range(-x.ndim, 0))) for c, x in zip(columns, tree_leaves(given))]
        for k in range(len(tree_leaves(out)))
    ]


def joined(parts: list[Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Pieces (rows, *second.shape) as one block (*first.shape, *second.shape)."""
    if not parts:
        return zeros((*first.shape, *second.shape), dtype=second.dtype, device=second.device)
    return reshape(concat(parts), (*first.shape, *second.shape))  # type: ignore[no-any-return]


def hessian(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False, diagonal: bool = False
) -> Callable[..., Any]:
    """A function that returns the Hessian of f, forward over reverse: shape (*shape of input, *shape of input).

    f returns a one-element Tensor, or (Tensor, aux) with has_aux, and then the result is (Hessian, aux). For nested
    arguments, or several argnums, the structure of the argument stands twice, one within the other: the blocks.
    diagonal: its diagonal alone, in the structure and shapes of the argument; the matrix is never held as a whole.
    """
    slope = grad(f, argnums, has_aux=has_aux)
    if not diagonal:
        return jacobian(slope, argnums, "forward", has_aux=has_aux)

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        positions = places(argnums, len(args), "hessian")
        chosen = tuple([tree_map(variable, args[i]) for i in positions])

        def of(*moved: Any) -> Any:
            at = dict(zip(positions, moved))
            found = slope(*[at.get(i, a) for i, a in enumerate(args)], **kwargs)
            return found[0] if has_aux else found

        found = []
        for i, x in enumerate(tree_leaves(chosen)):

            def second(e: Tensor, i: int = i) -> Any:
                moved = tree_leaves(jvp(of, chosen, only(chosen, i, e))[1])
                return RECORDING.sum(moved[i] * e, axis=tuple(range(e.ndim)), keepdims=False)

            found.append(joined([vmap(second)(rows) for rows in basis(x)], x, zeros(())))
        diag = refill(chosen[0] if isinstance(argnums, int) else chosen, found)
        return (diag, f(*args, **kwargs)[1]) if has_aux else diag

    return run


def hvp(f: Callable[..., Any], primals: Any, tangents: Any, order: str = "forward-over-reverse") -> tuple[Any, ...]:
    """The Hessian of f times a direction, without the Hessian: a tuple, one entry for each primal.

    f returns a one-element Tensor. primals, tangents: as for `jvp`. order: 'forward-over-reverse' pushes the direction
    through the gradient, 'reverse-over-forward' differentiates the derivative along it. Raises ValueError for another.
    """
    every = tuple(range(len(primals)))
    if order == "forward-over-reverse":
        return jvp(grad(f, every), primals, tangents)[1]  # type: ignore[no-any-return]
    if order == "reverse-over-forward":
        return grad(lambda *xs: jvp(f, xs, tangents)[1], every)(*primals)  # type: ignore[no-any-return]
    raise ValueError(f"[hvp] order is {order!r}; expected 'forward-over-reverse' or 'reverse-over-forward'")
