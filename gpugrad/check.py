"""Numeric derivatives and the checks that hold rules to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpugrad.errors import GpugradError, ShapeError, describe, fail
from gpugrad.rules import add_up
from gpugrad.state import enable_grad, no_grad
from gpugrad.tensor import Tensor
from gpugrad.transforms import gradients


class GradientError(GpugradError, AssertionError):
    """A derivative disagrees with its numeric counterpart."""


STENCILS = {"central": ((1, 0.5),), "richardson": ((1, 2 / 3), (2, -1 / 12))}


def numgrad(
    f: Callable[..., Tensor],
    *inputs: Tensor,
    index: int = 0,
    cotangent: Any = None,
    eps: float | None = None,
    method: str = "richardson",
) -> Tensor:
    """Numeric gradient of sum(cotangent * f(*inputs)) with respect to inputs[index], one element at a time.

    method: 'central' is (f(x+h) - f(x-h)) / 2h with error O(h^2); 'richardson' combines steps h and 2h for O(h^4).
    eps: the step h relative to max(1, |x|), by default 6e-6 and 1e-3. Use float64 inputs: the result has their
    dtype. f is called 2 or 4 times an element, without recording. Raises ValueError for an unknown method.
    """
    if method not in STENCILS:
        raise ValueError(f"[numgrad] method is {method!r}; expected one of {sorted(STENCILS)}")
    h0 = eps if eps is not None else 6e-6 if method == "central" else 1e-3
    base = inputs[index].numpy(copy=True)
    out = np.zeros_like(base)
    weights = (
        None if cotangent is None else np.asarray(cotangent.numpy() if isinstance(cotangent, Tensor) else cotangent)
    )

    def value(x: Any) -> float:
        point = Tensor(inputs[index].data.copy() if x is None else x)
        if inputs[index].device != "cpu":
            point = point.to(device=inputs[index].device)
        y = f(*inputs[:index], point, *inputs[index + 1 :]).numpy()
        return float(np.sum(y if weights is None else weights * y, dtype=np.float64))

    with no_grad():
        for i in np.ndindex(base.shape):
            h = h0 * max(1.0, abs(float(base[i])))
            total = 0.0
            for k, c in STENCILS[method]:
                for sign in (1, -1):
                    x = base.copy()
                    x[i] += sign * k * h
                    total += sign * c * value(x) / h
            out[i] = total
    return Tensor(out)


def gradcheck(
    f: Callable[..., Tensor], inputs: Sequence[Tensor], *, rtol: float = 1e-6, atol: float = 1e-8, seed: int = 0
) -> bool:
    """Compare reverse-mode gradients of f with numeric ones for every float input; True, or GradientError.

    inputs: at least one float64 tensor; others are held constant. A random cotangent weighs the outputs, so that no
    error in one can hide behind another. Tolerances are relative to the largest element of each gradient.
    """
    varied = [i for i, t in enumerate(inputs) if t.dtype == np.float64]
    if not varied:
        raise fail(GradientError, "gradcheck", "no float64 input to check: " + ", ".join(map(describe, inputs)))
    leaves = [Tensor(t.data.copy()).requires_grad_() if i in varied else t.detach() for i, t in enumerate(inputs)]
    out = f(*leaves)
    if not isinstance(out, Tensor):
        raise fail(ShapeError, "gradcheck", f"the function must return a tensor, not {type(out).__name__}")
    weights = np.random.default_rng(seed).normal(size=out.shape)
    cotangent = Tensor(weights.astype(out.dtype)).to(device=out.device)
    found = gradients(out, [leaves[i] for i in varied], [cotangent], unconnected="zero")
    for i, g in zip(varied, found):
        want = numgrad(f, *[t.detach() for t in leaves], index=i, cotangent=weights).numpy()
        got = g.numpy()
        bad = ~(np.abs(got - want) <= atol + rtol * np.maximum(np.abs(want), np.abs(want).max(initial=0.0)))
        if bad.any():
            at = tuple(int(k) for k in np.argwhere(bad)[0])
            raise fail(
                GradientError,
                "gradcheck",
                f"input {i} at {list(at)}: rule gives {got[at]!r}, numeric {want[at]!r} "
                f"({int(bad.sum())} of {bad.size} elements differ)",
            )
    return True


def gradgradcheck(
    f: Callable[..., Tensor], inputs: Sequence[Tensor], *, rtol: float = 1e-6, atol: float = 1e-8, seed: int = 1
) -> bool:
    """Compare second derivatives with numeric derivatives of the gradient; True, or GradientError."""
    varied = [i for i, t in enumerate(inputs) if t.dtype == np.float64]
    rng = np.random.default_rng(seed)
    with no_grad():
        shape = f(*[t.detach() for t in inputs]).shape
    cotangent = Tensor(rng.normal(size=shape))
    mix = [Tensor(rng.normal(size=inputs[i].shape)) for i in varied]

    def first(*leaves: Tensor) -> Tensor:
        """A random mix of the first derivatives, itself differentiable."""
        live = [
            t if t.node is not None or i not in varied else Tensor(t.data).requires_grad_()
            for i, t in enumerate(leaves)
        ]
        recording = any(t.node is not None for t in leaves)
        with enable_grad():
            found = gradients(
                f(*live), [live[i] for i in varied], [cotangent], create_graph=recording, unconnected="zero"
            )
            return add_up([(g * m).sum() for g, m in zip(found, mix)])  # type: ignore[no-any-return]

    return gradcheck(first, inputs, rtol=rtol, atol=atol, seed=seed)
