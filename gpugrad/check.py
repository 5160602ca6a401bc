"""Numeric derivatives and the checks that hold rules to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpugrad.errors import DTypeError, GpugradError, ShapeError, describe, fail
from gpugrad.forward import jvp
from gpugrad.rules import add_up
from gpugrad.state import enable_grad, no_grad
from gpugrad.tensor import Tensor
from gpugrad.transforms import gradients


class GradientError(GpugradError, AssertionError):
    """A derivative disagrees with its numeric counterpart."""


STEPS = {"central": 6e-6, "richardson": 1e-3, "complex": 1e-20}


def numgrad(
    f: Callable[..., Tensor], *inputs: Tensor, index: int = 0, cotangent: Any = None, eps: float | None = None,
    method: str = "richardson", error: bool = False,
) -> Any:  # fmt: skip
    """Numeric gradient of sum(cotangent * f(*inputs)) with respect to inputs[index], one element at a time.

    method: 'central' is (f(x+h) - f(x-h)) / 2h with error O(h^2); 'richardson' combines steps h and 2h for O(h^4);
    'complex' is the imaginary part of f(x + ih) / h, exact to rounding, for an f that is analytic and takes complex
    tensors. eps: the step h relative to max(1, |x|), by default 6e-6, 1e-3 and 1e-20. Use float64 inputs: the result
    has their dtype. error=True returns (gradient, estimate of its error), by element. f is called 2, 4 or 1 times an
    element, without recording ('central' with error: 4 times). Raises ValueError for an unknown method.
    """
    if method not in STEPS:
        raise ValueError(f"[numgrad] method is {method!r}; expected one of {sorted(STEPS)}")
    h0 = STEPS[method] if eps is None else eps
    if inputs[index].dtype.kind not in "fc":
        message = f"inputs[{index}] is {describe(inputs[index])}, expected floating-point numbers"
        raise fail(DTypeError, "numgrad", message)
    base, device = inputs[index].numpy(copy=True), inputs[index].device
    out, doubt = np.zeros_like(base), np.zeros_like(base)
    weights = cotangent.numpy() if isinstance(cotangent, Tensor) else 1.0 if cotangent is None else cotangent
    tiny = float(np.finfo(base.dtype).eps)

    def value(i: tuple[int, ...], step: complex) -> Any:
        x = base.astype(np.result_type(base.dtype, "complex64") if method == "complex" else base.dtype)
        x[i] += step
        point = Tensor(x) if device == "cpu" else Tensor(x).to(device=device)
        y = f(*inputs[:index], point, *inputs[index + 1 :]).numpy()
        return np.sum(weights * y, dtype="complex128" if method == "complex" else "float64")

    with no_grad():
        for i in np.ndindex(base.shape):
            h = h0 * max(1.0, abs(float(base[i])))
            if method == "complex":
                out[i] = value(i, h * 1j).imag / h
                doubt[i] = 4 * tiny * abs(out[i])
                continue
            ends = [value(i, k * h) for k in ((1, -1, 2, -2) if error or method == "richardson" else (1, -1))]
            out[i] = near = (ends[0] - ends[1]) / (2 * h)
            if len(ends) > 2:
                gap = near - (ends[2] - ends[3]) / (4 * h)  # three times the error of the near one, to order h^4
                out[i] = near + gap / 3 if method == "richardson" else near
                doubt[i] = abs(gap) / 3 + 2 * tiny * max(map(abs, ends)) / h
    return (Tensor(out), Tensor(doubt)) if error else Tensor(out)


def gradcheck(
    f: Callable[..., Tensor], inputs: Sequence[Tensor], *, rtol: float = 1e-6, atol: float = 1e-8, seed: int = 0,
    fast: bool = False, forward: bool = False,
) -> bool:  # fmt: skip
    """Compare reverse-mode gradients of f with numeric ones for every float input; True, or GradientError.

    inputs: at least one float64 tensor; others are held constant. A random cotangent weighs the outputs, so that no
    error in one can hide behind another. Tolerances are relative to the largest element of each gradient. fast: along
    one random direction of each input instead of every element, 4 calls of f an input. forward: `jvp` along that
    direction is compared too, by output element.
    """
    varied = [i for i, t in enumerate(inputs) if t.dtype == np.float64]
    if not varied:
        raise fail(GradientError, "gradcheck", "no float64 input to check: " + ", ".join(map(describe, inputs)))
    leaves = [Tensor(t.data.copy()).requires_grad_() if i in varied else t.detach() for i, t in enumerate(inputs)]
    out = f(*leaves)
    if not isinstance(out, Tensor):
        raise fail(ShapeError, "gradcheck", f"the function must return a tensor, not {type(out).__name__}")
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=out.shape)
    cotangent = Tensor(weights.astype(out.dtype)).to(device=out.device)
    found = gradients(out, [leaves[i] for i in varied], [cotangent], unconnected="zero")
    point = [t.detach() for t in leaves]
    for i, g in zip(varied, found):
        if not fast:
            agree(f"input {i}", g.numpy(), numgrad(f, *point, index=i, cotangent=weights).numpy(), rtol, atol)
        if fast or forward:
            v = rng.normal(size=inputs[i].shape)
            along = Tensor(v).to(device=inputs[i].device)
            push = slope(f, point, i, along)
            parts = g.numpy() * v
            if fast:
                size = float(np.abs(parts).sum())
                got, want = np.asarray(parts.sum()), np.asarray(np.sum(weights * push))
                agree(f"input {i} along a random direction", got, want, rtol, atol + rtol * size)
        if forward:
            _, t = jvp(f, point, [along if k == i else None for k in range(len(point))])
            agree(f"jvp in input {i}", t.numpy(), push, rtol, atol)
    return True


def slope(f: Callable[..., Tensor], point: list[Tensor], i: int, along: Tensor) -> Any:
    """The derivative of f along a direction of input i, by differences of fourth order."""
    h = 1e-3
    with no_grad():
        near, back, far, behind = (
            f(*[x + k * h * along if j == i else x for j, x in enumerate(point)]).numpy() for k in (1, -1, 2, -2)
        )
    return (8 * (near - back) - (far - behind)) / (12 * h)


def agree(what: str, got: Any, want: Any, rtol: float, atol: float) -> None:
    """Raise GradientError at the first element where a derivative and its numeric counterpart differ."""
    bad = ~(np.abs(got - want) <= atol + rtol * np.maximum(np.abs(want), np.abs(want).max(initial=0.0)))
    if bad.any():
        at = tuple(int(k) for k in np.argwhere(bad)[0])
        raise fail(
            GradientError, "gradcheck",
            f"{what} at {list(at)}: rule gives {got[at]!r}, numeric {want[at]!r} "
            f"({int(bad.sum())} of {bad.size} elements differ)",
        )  # fmt: skip


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
