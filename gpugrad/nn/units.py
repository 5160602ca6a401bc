"""The units of the lectures (affine, relu, logistic, decay, add) and the blocks made of them (model, loss).

A unit is a function of tensors. `forward` runs any unit or block in the manner of the lectures: it returns the output
together with its backward, a function from the gradient of the output to the gradients of the arguments.

    A, backward = forward(affine, X, (W, b))
    dX, (dW, db) = backward(dA)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gpugrad as gg
from gpugrad import losses
from gpugrad.tree import tree_leaves, tree_map


def forward(unit: Callable[..., gg.Tensor], *args: Any) -> tuple[gg.Tensor, Callable[..., Any]]:
    """(output, backward) of a unit: backward(gradient of the output) gives one gradient an argument, of its structure.

    args: floating tensors, nested in lists, tuples and dicts as the unit takes them. backward may be called again;
    without an argument the output must have one element. Raises as `gradients` does.
    """
    inputs = tree_map(lambda x: gg.asarray(x).detach().requires_grad_(), args)
    with gg.enable_grad():
        out = unit(*inputs)

    def backward(gradient: gg.Tensor | None = None) -> Any:
        """Gradients of the unit's arguments: a tuple, or the gradient itself for one argument."""
        leaves = tree_leaves(inputs)
        found = iter(gg.gradients(out, leaves, gradient, retain_graph=True, unconnected="zero"))
        grads = tree_map(lambda _: next(found), inputs)
        return grads if len(grads) > 1 else grads[0]

    return out.detach(), backward


def affine(X: gg.Tensor, params: tuple[gg.Tensor, gg.Tensor]) -> gg.Tensor:
    """X W + b for rows X (m, n), W (n, k), b (k,): dX = dA W', dW = X' dA, db = the sum of the rows of dA."""
    W, b = params
    return X @ W + b  # type: ignore[no-any-return]


def relu(A: gg.Tensor) -> gg.Tensor:
    """max(0, A); slope 0 at 0."""
    return gg.relu(A)  # type: ignore[no-any-return]


def logistic(A: gg.Tensor, T: gg.Tensor) -> gg.Tensor:
    """Mean cross-entropy of Y = softmax(A) with the rows of T, both (m, k): dA = (Y - T) / m. One fused operation."""
    return losses.categorical_cross_entropy_with_logits(A, T)


def decay(weights: gg.Tensor | Sequence[gg.Tensor], rate: float) -> gg.Tensor:
    """rate / 2 times the sum of the squared Frobenius norms: dW = rate W."""
    squares = [gg.sum(gg.square(W)) for W in ([weights] if isinstance(weights, gg.Tensor) else weights)]
    return add(*squares) * (0.5 * rate)  # type: ignore[no-any-return]


def add(*terms: gg.Tensor) -> gg.Tensor:
    """The sum of its arguments: each gets the gradient unchanged."""
    return functools.reduce(gg.add, terms)


def model(*units: Callable[..., gg.Tensor]) -> Callable[..., gg.Tensor]:
    """The block that applies units in turn: a function of (X, params).

    params: one entry, in order, for each unit that takes parameters (two arguments). A block is such a unit itself.
    """
    takes = [len(inspect.signature(unit).parameters) > 1 for unit in units]

    def run(X: gg.Tensor, params: Sequence[Any]) -> gg.Tensor:
        """The output of the last unit."""
        entries = iter(params)
        for unit, with_params in zip(units, takes):
            X = unit(X, next(entries)) if with_params else unit(X)
        return X

    return run


def loss(block: Callable[..., gg.Tensor], rate: float = 0.0) -> Callable[..., gg.Tensor]:
    """The block (X, T, params) -> logistic(block(X, params), T) + decay of every parameter with two or more axes."""

    def run(X: gg.Tensor, T: gg.Tensor, params: Sequence[Any]) -> gg.Tensor:
        """The loss, 0-d."""
        data = logistic(block(X, params), T)
        return add(data, decay([p for p in tree_leaves(params) if p.ndim > 1], rate)) if rate else data

    return run
