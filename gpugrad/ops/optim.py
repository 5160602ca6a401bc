"""In-place optimiser steps: one call updates every parameter of a group, as one kernel launch may.

Every stepping op takes `(params, *state lists, step, grads, lr, skip=None, **constants)`. Lists run in parallel; a
gradient that is None skips its parameter. `step` (float64, one count a parameter, advanced here), `lr` (float64, 0-d)
and `skip` (int32, 0-d: nothing happens unless it is 0) live on the device and are never read by the host, so that a
captured step replays with new values. Gradients are not changed. float16 and bfloat16 parameters keep float32 state
and are updated in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpugrad.backends.threads import share
from gpugrad.define import nondiff, update
from gpugrad.launch import optim as launch

__all__ = [
    "adadelta", "adagrad", "adam", "adamax", "average_into", "clamp_into", "global_norm", "nadam", "next_scale",
    "rmsprop", "scale_into", "sgd", "unscale_into",
]  # fmt: skip

BLOCK = 1 << 17  # elements: the few arrays a block touches stay in a CPU cache between its passes
RUN = 2048  # elements that a product sums in their own type


def working(dtype: Any) -> Any:
    """The type an update is computed in: the parameter's own, at least float32."""
    return dtype if dtype.itemsize > 2 else np.dtype("float32")


def by_block(
    xp: Any, move: Callable[..., None], scratch: int, params: list[Any], grads: list[Any], *states: list[Any]
) -> None:
    """move(index, parameter, gradient, *scratch arrays, *states) on arrays of equal shape and dtype.

    On the CPU these are blocks, which threads share; else whole parameters.
    """
    todo = [x for x in zip(range(len(params)), params, grads, *states) if x[2] is not None]
    largest, size = max((x[1].size for x in todo), default=0), sum(x[1].size for x in todo)
    limit = min(largest, BLOCK) if xp is np else largest
    own = threading.local()  # scratch memory of each thread, by dtype

    def run(piece: tuple[int, list[Any]]) -> None:
        i, (param, grad, *state) = piece
        dtype, size, shape = working(param.dtype), param.size, param.shape
        p, g = (a if a.dtype == dtype else a.astype(dtype) for a in (param, grad))
        pool = own.__dict__.get(dtype.char)
        if pool is None:
            pool = own.__dict__[dtype.char] = [xp.empty(limit, dtype) for _ in range(scratch)]
        move(i, p, g, *(t[:size].reshape(shape) if size <= limit else xp.empty(shape, dtype) for t in pool), *state)
        if p is not param:
            param[...] = p

    cut = ((i, piece) for i, *arrays in todo for piece in pieces(arrays, limit))
    share(run, cut, len(states) * size // 2 if xp is np else 0)  # without a state there is too little to do


def pieces(arrays: list[Any], limit: int) -> Iterator[list[Any]]:
    """Parallel arrays cut into runs of at most `limit` elements; whole if small or not contiguous."""
    size = arrays[0].size
    if size <= limit or not all(a.flags.c_contiguous for a in arrays):
        yield arrays
    else:
        flat = [a.reshape(-1) for a in arrays]
        for start in range(0, size, limit):
            yield [a[start : start + limit] for a in flat]


def spread(xp: Any, value: Any, step: Any, params: list[Any]) -> dict[Any, Any]:
    """A device number (one, or one a parameter) as a vector over the parameters in each working type."""
    return {d: xp.broadcast_to(value, step.shape).astype(d) for d in {working(p.dtype) for p in params}}


def present(grads: list[Any], vector: Any) -> Iterator[Any]:
    """Views of a per-parameter vector that together cover the parameters with a gradient."""
    if all(g is not None for g in grads):
        yield vector
    else:
        yield from (vector[i : i + 1] for i, g in enumerate(grads) if g is not None)


def advance(xp: Any, step: Any, grads: list[Any]) -> Any:
    """Count one more step of each parameter that has a gradient; the counts, 1 where there was none yet."""
    for view in present(grads, step):
        view += 1
    return xp.maximum(step, 1)


def decayed(xp: Any, g: Any, p: Any, weight_decay: float, out: Any) -> Any:
    """Gradient of the loss plus weight_decay / 2 times the squared norm of p."""
    return xp.add(xp.multiply(p, weight_decay, out=out), g, out=out) if weight_decay else g


def mix(xp: Any, mean: Any, x: Any, beta: float, t: Any) -> None:
    """mean = beta mean + (1 - beta) x; x may be t."""
    xp.multiply(mean, beta, out=mean)
    xp.add(mean, xp.multiply(x, 1 - beta, out=t), out=mean)


def mix_square(xp: Any, mean: Any, x: Any, beta: float, t: Any) -> None:
    """mean = beta mean + (1 - beta) x^2; x is kept unless it is t."""
    mix(xp, mean, xp.multiply(x, x, out=t), beta, t)


def _sgd(
    xp: Any, params: Any, velocities: Any, step: Any, grads: Any, lr: Any, *,
    momentum: float, dampening: float, weight_decay: float, nesterov: bool,
) -> None:  # fmt: skip
    time = advance(xp, step, grads)
    rate = spread(xp, lr, step, params)
    entering = spread(xp, xp.where(time == 1, 1.0, 1.0 - dampening), step, params) if dampening else None

    def move(i: Any, p: Any, g: Any, t: Any, u: Any, *state: Any) -> None:
        g = decayed(xp, g, p, weight_decay, t)
        if momentum:
            (v,) = state
            xp.multiply(v, momentum, out=v)
            xp.add(v, xp.multiply(g, entering[p.dtype][i], out=u) if entering else g, out=v)
            g = xp.add(g, xp.multiply(v, momentum, out=u), out=u) if nesterov else v
        xp.subtract(p, xp.multiply(g, rate[p.dtype][i], out=u), out=p)

    by_block(xp, move, 2, params, grads, *([velocities] if momentum else []))


def _adagrad(
    xp: Any, params: Any, sums: Any, step: Any, grads: Any, lr: Any, *, lr_decay: float, eps: float, weight_decay: float
) -> None:
    time = advance(xp, step, grads)
    rate = spread(xp, lr / (1 + (time - 1) * lr_decay), step, params)

    def move(i: Any, p: Any, g: Any, t: Any, u: Any, s: Any) -> None:
        g = decayed(xp, g, p, weight_decay, t)
        xp.add(s, xp.multiply(g, g, out=u), out=s)
        xp.add(xp.sqrt(s, out=u), eps, out=u)
        xp.subtract(p, xp.multiply(xp.divide(g, u, out=u), rate[p.dtype][i], out=u), out=p)

    by_block(xp, move, 2, params, grads, sums)


def _adadelta(
    xp: Any, params: Any, squares: Any, deltas: Any, step: Any, grads: Any, lr: Any, *,
    rho: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    advance(xp, step, grads)
    rate = spread(xp, lr, step, params)

    def move(i: Any, p: Any, g: Any, t: Any, u: Any, s: Any, d: Any) -> None:
        g = decayed(xp, g, p, weight_decay, t)
        mix_square(xp, s, g, rho, u)
        xp.divide(g, xp.sqrt(xp.add(s, eps, out=u), out=u), out=t)
        xp.multiply(t, xp.sqrt(xp.add(d, eps, out=u), out=u), out=t)
        mix_square(xp, d, t, rho, u)
        xp.subtract(p, xp.multiply(t, rate[p.dtype][i], out=t), out=p)

    by_block(xp, move, 2, params, grads, squares, deltas)


def _rmsprop(
    xp: Any, params: Any, squares: Any, means: Any, velocities: Any, step: Any, grads: Any, lr: Any, *,
    alpha: float, eps: float, momentum: float, weight_decay: float,
) -> None:  # fmt: skip
    advance(xp, step, grads)
    rate = spread(xp, lr, step, params)
    extra = [s for s in (means, velocities) if s]

    def move(i: Any, p: Any, g: Any, t: Any, u: Any, s: Any, *more: Any) -> None:
        g = decayed(xp, g, p, weight_decay, t)
        mix_square(xp, s, g, alpha, u)
        if means:
            mix(xp, more[0], g, alpha, u)
            xp.subtract(s, xp.multiply(more[0], more[0], out=u), out=u)
            xp.sqrt(xp.maximum(u, 0, out=u), out=u)  # a variance, which rounding can make negative
        else:
            xp.sqrt(s, out=u)
        xp.divide(g, xp.add(u, eps, out=u), out=u)
        if velocities:
            v = more[-1]
            xp.add(xp.multiply(v, momentum, out=v), u, out=v)
            u = xp.multiply(v, rate[p.dtype][i], out=u)
        else:
            xp.multiply(u, rate[p.dtype][i], out=u)
        xp.subtract(p, u, out=p)

    by_block(xp, move, 2, params, grads, squares, *extra)


def _adam(
    xp: Any, params: Any, means: Any, squares: Any, peaks: Any, step: Any, grads: Any, lr: Any, *,
    beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool,
) -> None:  # fmt: skip
    time = advance(xp, step, grads)
    # lr m/c1 / (sqrt(v/c2) + eps) = (lr sqrt(c2)/c1) m / (sqrt(v) + eps sqrt(c2)): the corrections cost no pass
    root = xp.sqrt(1 - beta2**time)
    rate = spread(xp, lr * root / (1 - beta1**time), step, params)
    floor = spread(xp, eps * root, step, params)
    shrink = spread(xp, 1 - lr * weight_decay, step, params) if decoupled and weight_decay else None

    def move(i: Any, p: Any, g: Any, t: Any, u: Any, m: Any, v: Any, *peak: Any) -> None:
        if shrink:
            xp.multiply(p, shrink[p.dtype][i], out=p)
        else:
            g = decayed(xp, g, p, weight_decay, t)
        mix(xp, m, g, beta1, u)
        mix_square(xp, v, g, beta2, u)
        xp.sqrt(xp.maximum(peak[0], v, out=peak[0]) if peak else v, out=u)
        xp.divide(m, xp.add(u, floor[p.dtype][i], out=u), out=u)
        xp.subtract(p, xp.multiply(u, rate[p.dtype][i], out=u), out=p)

    by_block(xp, move, 2, params, grads, means, squares, *([peaks] if peaks else []))


def _adamax(
    xp: Any, params: Any, means: Any, norms: Any, step: Any, grads: Any, lr: Any, *,
    beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    time = advance(xp, step, grads)
    rate = spread(xp, lr / (1 - beta1**time), step, params)

    def move(i: Any, p: Any, g: Any, t: Any, u: Any, m: Any, n: Any) -> None:
        g = decayed(xp, g, p, weight_decay, t)
        mix(xp, m, g, beta1, u)
        xp.multiply(n, beta2, out=n)
        xp.maximum(n, xp.add(xp.abs(g, out=u), eps, out=u), out=n)
        xp.subtract(p, xp.multiply(xp.divide(m, n, out=u), rate[p.dtype][i], out=u), out=p)

    by_block(xp, move, 2, params, grads, means, norms)


def _nadam(
    xp: Any, params: Any, means: Any, squares: Any, step: Any, products: Any, grads: Any, lr: Any, *,
    beta1: float, beta2: float, eps: float, weight_decay: float, momentum_decay: float,
) -> None:  # fmt: skip
    time = advance(xp, step, grads)
    now, after = (beta1 * (1 - 0.5 * 0.96 ** ((time + k) * momentum_decay)) for k in (0, 1))
    for product, mu in zip(present(grads, products), present(grads, now)):
        product *= mu
    left = xp.where(step > 0, 1 - products, 1.0)
    root = xp.sqrt(1 - beta2**time)
    by_grad = spread(xp, lr * (1 - now) / left * root, step, params)
    by_mean = spread(xp, lr * after / (1 - products * after) * root, step, params)
    floor = spread(xp, eps * root, step, params)

    def move(i: Any, p: Any, g: Any, t: Any, u: Any, m: Any, v: Any) -> None:
        g = decayed(xp, g, p, weight_decay, t)
        mix(xp, m, g, beta1, u)
        mix_square(xp, v, g, beta2, u)
        xp.add(xp.multiply(g, by_grad[p.dtype][i], out=t), xp.multiply(m, by_mean[p.dtype][i], out=u), out=t)
        xp.subtract(p, xp.divide(t, xp.add(xp.sqrt(v, out=u), floor[p.dtype][i], out=u), out=t), out=p)

    by_block(xp, move, 2, params, grads, means, squares)


def _average_into(xp: Any, averages: Any, step: Any, params: Any, *, decay: float | None) -> None:
    time = advance(xp, step, params)
    weight = spread(xp, 1 / time if decay is None else xp.full(step.shape, 1 - decay), step, averages)

    def move(i: Any, a: Any, p: Any, t: Any) -> None:
        xp.multiply(xp.subtract(p, a, out=t), weight[a.dtype][i], out=t)
        xp.add(a, t, out=a)

    by_block(xp, move, 1, averages, params)


def _scale_into(xp: Any, arrays: Any, factor: Any, *, limit: float | None = None) -> Any:
    if limit is not None:
        factor = limit / xp.maximum(factor, limit)
    for a in arrays:
        xp.multiply(a, factor.astype(working(a.dtype)), out=a, casting="unsafe")


def _unscale_into(xp: Any, arrays: Any, flag: Any, scale: Any) -> None:
    for a in arrays:
        xp.multiply(a, 1 / scale.astype(working(a.dtype)), out=a, casting="unsafe")
        flag |= ~xp.isfinite(a).all()


def _next_scale(
    xp: Any, scale: Any, good: Any, flags: Any, *, growth: float, backoff: float, interval: int
) -> None:  # fmt: skip
    overflow = xp.stack(flags).any()
    count = xp.where(overflow, 0, good + 1)
    grown = scale * xp.where(overflow, backoff, xp.where(count == interval, growth, 1.0)).astype(scale.dtype)
    scale[...] = xp.where(xp.isfinite(grown), grown, scale)
    good[...] = xp.where(count == interval, 0, count)
    for flag in flags:
        flag[...] = 0


def _clamp_into(xp: Any, arrays: Any, *, limit: float) -> None:
    for a in arrays:
        xp.clip(a, -limit, limit, out=a)


def _global_norm(xp: Any, *arrays: Any, ord: float) -> Any:
    dtype = np.result_type(*(working(a.dtype) for a in arrays))
    parts = [xp.zeros((), "float64")]
    for a in arrays:
        if a.size:
            a = a.astype(working(a.dtype), copy=False).reshape(-1)
            if ord == 2:
                part = sum_squares(a) if xp is np else (a * a).sum()  # a captured stream may not call cuBLAS
            else:
                part = xp.abs(a).max() if ord == float("inf") else (xp.abs(a) ** ord).sum()
            parts.append(xp.asarray(part, "float64"))
    total = xp.stack(parts)
    return (total.max() if ord == float("inf") else total.sum() ** (1 / ord)).astype(dtype)


def sum_squares(x: Any) -> Any:
    """Sum of the squares of a vector: by BLAS in runs, which it adds up one after another, and those in float64."""
    if x.size <= RUN:
        return np.dot(x, x)
    whole = x.size // RUN * RUN
    rows, rest = x[:whole].reshape(-1, RUN), x[whole:]
    return np.vecdot(rows, rows).sum(dtype="float64") + np.dot(rest, rest)


def stepping(name: str, run: Any, written: int, doc: str) -> Callable[..., None]:
    """An update op of `written` lists and vectors, then grads, lr and perhaps skip."""

    def fwd(xp: Any, *arrays: Any, **constants: Any) -> None:
        arrays, skip = arrays[: written + 2], arrays[written + 2] if len(arrays) > written + 2 else None
        if skip is None or xp is np:
            if skip is None or not skip:
                run(xp, *arrays, **constants)
            return
        overwritten = [a for x in arrays[:written] for a in (x if isinstance(x, list) else [x])]
        before = [a.copy() for a in overwritten]
        run(xp, *arrays, **constants)
        for a, old in zip(overwritten, before):  # only the device knows whether to
            a[...] = xp.where(skip, old, a)

    return update(name, fwd, written, doc=doc, cuda=getattr(launch, name))


sgd = stepping(
    "sgd", _sgd, 3, "v = momentum v + (1 - dampening) g;  p -= lr v, or lr (g + momentum v); v starts as the first g."
)
adagrad = stepping("adagrad", _adagrad, 3, "s += g^2;  p -= lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps).")
adadelta = stepping(
    "adadelta", _adadelta, 4, "s = mix(s, g^2);  d = sqrt(e + eps) / sqrt(s + eps) g;  e = mix(e, d^2);  p -= lr d."
)
rmsprop = stepping(
    "rmsprop", _rmsprop, 5, "s = mix(s, g^2);  v = momentum v + g / (sqrt(s - mean(g)^2) + eps);  p -= lr v."
)
adam = stepping(
    "adam", _adam, 5, "m = mix(m, g);  v = mix(v, g^2);  p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)."
)
adamax = stepping("adamax", _adamax, 4, "m = mix(m, g);  n = max(beta2 n, |g| + eps);  p -= lr / (1 - beta1^t) m / n.")
nadam = stepping(
    "nadam", _nadam, 5, "Adam with Nesterov momentum of weight mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)."
)
average_into = update(
    "average_into", _average_into, 2, cuda=launch.average_into,
    doc="a += (1 - decay) (p - a); without a decay the running mean of p.",
)  # fmt: skip
scale_into = update(
    "scale_into", _scale_into, cuda=launch.scale_into,
    doc="Multiply each array by a 0-d factor; with a limit it is a norm, and limit / max(norm, limit) is the factor.",
)  # fmt: skip
unscale_into = update(
    "unscale_into", _unscale_into, 2, cuda=launch.unscale_into,
    doc="Divide each array by a 0-d float32 scale; an int32 flag becomes 1 if an element is then not finite.",
)  # fmt: skip
next_scale = update(
    "next_scale", _next_scale, 3, cuda=launch.next_scale,
    doc="A flag is set: scale *= backoff, good = 0; else good += 1, and at interval scale *= growth. Clears the flags.",
)  # fmt: skip
clamp_into = update("clamp_into", _clamp_into, cuda=launch.clamp_into, doc="Clip each array to [-limit, limit].")
global_norm = nondiff(
    "global_norm", _global_norm, attrs=True, promotes=False, cuda=launch.global_norm,
    doc="The ord-norm (a positive number or inf) of all elements of the arrays together, 0-d on the device.",
)  # fmt: skip
