"""NumPy with every derivative written out: what is left when no framework is there. Also the float64 reference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpugrad.bench import models
from gpugrad.bench.peers import BATCH, Arrays, Peer, Step, Unable
from gpugrad.bench.workloads import Workload

Slopes = Callable[..., Arrays]  # (parameters, batch, options) -> [loss, *gradients]
RULES: dict[Callable[..., Any], Slopes] = {}
TILE = 1 << 16  # elements that are worked off together, to stay in the cache


def rule(model: Callable[..., Any]) -> Callable[[Slopes], Slopes]:
    """Register the derivative of a model."""

    def add(function: Slopes) -> Slopes:
        RULES[model] = function
        return function

    return add


@rule(models.chain)
def chain(p: Arrays, batch: Arrays, links: int) -> Arrays:
    """x = x w + b."""
    x, w, b = p
    kept = []
    for _ in range(links):
        kept.append(x)
        x = x * w + b
    g, gw, gb = np.ones_like(x), np.zeros_like(w), np.zeros_like(b)
    for before in reversed(kept):
        gb += g
        gw += g * before
        g = g * w
    return [x.sum(), g, gw, gb]


@rule(models.deep)
def deep(p: Arrays, batch: Arrays, links: int) -> Arrays:
    """x = x w."""
    x, w = p
    kept = []
    for _ in range(links):
        kept.append(x)
        x = x * w
    g, gw = np.ones_like(x), np.zeros_like(w)
    for before in reversed(kept):
        gw += g * before
        g = g * w
    return [x.sum(), g, gw]


@rule(models.elementwise)
def elementwise(p: Arrays, batch: Arrays) -> Arrays:
    """Tile by tile, so that what is between stays in the cache."""
    x, w, b, c = p
    gx, gw, gb, gc = (np.empty_like(a) for a in p)
    total, scale = 0.0, x.dtype.type(1 / x.size)
    for start in range(0, x.size, TILE):
        s = slice(start, start + TILE)
        y = x[s] * w[s]
        y += b[s]
        live = y > 0
        y *= live
        total += float(np.dot(y, c[s]))
        np.multiply(y, scale, out=gc[s])
        slope = np.multiply(c[s], scale, out=gb[s])
        slope *= live
        np.multiply(slope, w[s], out=gx[s])
        np.multiply(slope, x[s], out=gw[s])
    return [np.asarray(total / x.size), gx, gw, gb, gc]


def loss_and_slope(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Softmax cross-entropy and its gradient, a few rows at a time."""
    n, classes = logits.shape
    slope, total = np.empty_like(logits), 0.0
    tile = max(1, TILE // classes)
    for start in range(0, n, tile):
        z, label = logits[start : start + tile], labels[start : start + tile]
        rows = np.arange(len(label))
        out = np.subtract(z, z.max(1, keepdims=True), out=slope[start : start + tile])
        picked = out[rows, label]
        np.exp(out, out=out)
        sums = out.sum(1)
        total += float((np.log(sums) - picked).sum())
        out *= (1 / (n * sums))[:, None].astype(out.dtype)
        out[rows, label] -= 1 / n
    return np.asarray(total / n), slope


@rule(models.cross_entropy)
def cross_entropy(p: Arrays, batch: Arrays) -> Arrays:
    """Of the logits."""
    return list(loss_and_slope(p[0], batch[0]))


@rule(models.two_layer)
def two_layer(p: Arrays, batch: Arrays) -> Arrays:
    """Squared error, no biases."""
    (w1, w2), (x, y) = p, batch
    z = x @ w1
    h = np.maximum(z, 0)
    off = h @ w2 - y
    slope = 2 * off
    back = slope @ w2.T
    back *= z > 0
    return [np.sum(off * off), x.T @ back, h.T @ slope]


@rule(models.mlp)
def mlp(p: Arrays, batch: Arrays) -> Arrays:
    """Linear layers and relu."""
    return perceptron(p, batch)[0]


def perceptron(p: Arrays, batch: Arrays, inner: bool = False) -> tuple[Arrays, Any]:
    """Loss and gradients of linear layers with relu between; and, if asked for, the gradient of their input."""
    x, y = batch
    inputs = [x]
    for w, b in zip(p[:-2:2], p[1:-2:2]):
        z = inputs[-1] @ w.T
        z += b
        inputs.append(np.maximum(z, 0, out=z))
    logits = inputs[-1] @ p[-2].T
    logits += p[-1]
    loss, slope = loss_and_slope(logits, y)
    grads: Arrays = []
    for layer in reversed(range(len(inputs))):
        grads[:0] = [slope.T @ inputs[layer], slope.sum(0)]
        if layer:
            slope = slope @ p[2 * layer]
            slope *= inputs[layer] > 0
    return [loss, *grads], slope @ p[0] if inner else None


@rule(models.lenet)
def lenet(p: Arrays, batch: Arrays) -> Arrays:
    """Two convolutions with pooling, then linear layers. relu comes after the pooling, where a quarter is left."""
    x, y = batch
    kept, image = [], x
    for w, b, padding in ((p[0], p[1], 2), (p[2], p[3], 0)):
        columns, z = convolve(image, w, b, padding)
        pooled = z.reshape(*z.shape[:2], z.shape[2] // 2, 2, z.shape[3] // 2, 2).max((3, 5))
        kept.append((image.shape, columns, z, pooled))
        image = np.maximum(pooled, 0)
    grads, slope = perceptron(p[4:], [image.reshape(len(x), -1), y], inner=True)
    for layer in (1, 0):
        shape, columns, z, pooled = kept[layer]
        slope = slope.reshape(pooled.shape) * (pooled > 0)
        spread = np.repeat(np.repeat(slope, 2, 2), 2, 3)
        spread *= z == np.repeat(np.repeat(pooled, 2, 2), 2, 3)
        flat = spread.reshape(*spread.shape[:2], -1)
        w = p[2 * layer]
        grads[1:1] = [np.matmul(flat, columns.transpose(0, 2, 1)).sum(0).reshape(w.shape), flat.sum((0, 2))]
        if layer:
            slope = gathered(np.matmul(w.reshape(len(w), -1).T, flat), shape, w.shape[2:])
    return grads


def convolve(x: Any, w: Any, b: Any, padding: int) -> tuple[Any, Any]:
    """The columns (N, C kh kw, H W) of an image, and its convolution with w."""
    if padding:
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))  # type: ignore[call-overload]
    n, _, height, width = windows.shape[:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(n, -1, height * width)
    z = np.matmul(w.reshape(len(w), -1), columns).reshape(n, len(w), height, width)
    z += b[:, None, None]
    return columns, z


def gathered(columns: Any, shape: tuple[int, ...], window: tuple[int, int]) -> Any:
    """The gradient of an image from that of its columns; no padding."""
    n, channels, height, width = shape
    out = np.zeros(shape, columns.dtype)
    parts = columns.reshape(n, channels, *window, height - window[0] + 1, width - window[1] + 1)
    for i in range(window[0]):
        for j in range(window[1]):
            out[:, :, i : i + parts.shape[4], j : j + parts.shape[5]] += parts[:, :, i, j]
    return out


def mlp_curvature(p: Arrays, v: Arrays, batch: Arrays) -> Arrays:
    """The Hessian of `mlp` times v: every line of the gradient, and its derivative along v beneath it."""
    a, y = batch
    ra = np.zeros_like(a)
    kept = []
    last = len(p) // 2 - 1
    for layer in range(last + 1):
        w, b, vw, vb = p[2 * layer], p[2 * layer + 1], v[2 * layer], v[2 * layer + 1]
        kept.append((a, ra))
        z = a @ w.T + b
        rz = a @ vw.T + vb if layer == 0 else ra @ w.T + a @ vw.T + vb
        live = z > 0
        a, ra = (z * live, rz * live) if layer < last else (z, rz)
    e = np.exp(a - a.max(1, keepdims=True))
    prob = e / e.sum(1, keepdims=True)
    s = prob.copy()
    s[np.arange(len(y)), y] -= 1
    s /= len(y)
    rs = prob * (ra - (prob * ra).sum(1, keepdims=True)) / len(y)
    found: Arrays = []
    for layer in reversed(range(last + 1)):
        a, ra = kept[layer]
        found[:0] = [rs.T @ a + (s.T @ ra if layer else 0), rs.sum(0)]
        if layer:
            live = a > 0
            s, rs = (s @ p[2 * layer]) * live, (rs @ p[2 * layer] + s @ v[2 * layer]) * live
    return found


def sgd(p: Arrays, lr: float, momentum: float = 0.0) -> Callable[[Arrays], None]:
    """p -= lr v with v = momentum v + g."""
    velocity = [np.zeros_like(a) for a in p]

    def update(grads: Arrays) -> None:
        for a, v, g in zip(p, velocity, grads):
            if momentum:
                v *= momentum
                v += g
                g = v
            a -= lr * g

    return update


def adam(p: Arrays, lr: float) -> Callable[[Arrays], None]:
    """Kingma & Ba, 2015, with the usual rates."""
    means, squares, steps = [np.zeros_like(a) for a in p], [np.zeros_like(a) for a in p], 0

    def update(grads: Arrays) -> None:
        nonlocal steps
        steps += 1
        size, root = lr / (1 - 0.9**steps), math.sqrt(1 - 0.999**steps)
        for a, m, s, g in zip(p, means, squares, grads):
            m *= 0.9
            m += 0.1 * g
            s *= 0.999
            s += 0.001 * (g * g)
            below = np.sqrt(s)
            below /= root
            below += 1e-8
            a -= size * m / below

    return update


OPTIMIZERS: dict[str, Callable[..., Callable[[Arrays], None]]] = {"sgd": sgd, "adam": adam}


class ByHand(Peer):
    """No framework."""

    def rule(self, workload: Workload) -> Callable[[Arrays, Arrays], Arrays]:
        """The workload's derivative with its sizes bound."""
        loss = workload.loss
        sizes = getattr(loss, "keywords", {})
        slopes = RULES.get(getattr(loss, "func", loss))
        if slopes is None:
            raise Unable("nobody has written its derivative by hand")
        return lambda p, batch: slopes(p, batch, **sizes)

    def train(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Updates in place."""
        slopes = self.rule(workload)
        update = OPTIMIZERS[workload.optimizer](parameters, **dict(workload.rates))

        def step() -> Arrays:
            loss, *grads = slopes(parameters, batch)
            update(grads)
            return [loss]

        return step

    def gradient(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """The rule alone."""
        slopes = self.rule(workload)
        return lambda: slopes(parameters, batch)

    def hvp(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Pearlmutter's, written out."""
        v = [0.5 * a for a in parameters]
        return lambda: mlp_curvature(parameters, v, batch)

    def epoch(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """A permutation and fancy indexing."""
        images, labels = batch
        random = np.random.default_rng(0)

        def step() -> Arrays:
            order, total = random.permutation(len(labels)), 0
            for start in range(0, len(labels), BATCH):
                rows = order[start : start + BATCH]
                images[rows][0, 0, 0, 0]
                total += labels[rows].sum()
            return [np.asarray(total)]

        return step

    def rates(self) -> tuple[float, float] | None:
        """A copy on all threads, larger than the caches, and a product."""
        a, m = np.ones(1 << 25, np.float32), np.ones((1024, 1024), np.float32)
        b = np.zeros_like(a)
        parts = list(zip(np.array_split(a, self.threads), np.array_split(b, self.threads)))
        with ThreadPoolExecutor(self.threads) as pool:
            copied = fastest(lambda: list(pool.map(lambda ab: np.copyto(ab[1], ab[0]), parts)), 5)
        return 2 * a.nbytes / copied, 2 * 1024**3 / fastest(lambda: m @ m, 10)


def fastest(work: Callable[[], Any], times: int) -> float:
    """Seconds of the best of several."""
    seen = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        seen.append(time.perf_counter() - start)
    return min(seen[1:])
