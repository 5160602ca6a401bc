"""Per-example gradients of the two-layer net: `vmap(grad(loss))` at once, against a loop of gradients and a stack.

    python bench/per_example.py [--rounds 7]

Batch 256, float32, medians of interleaved rounds. The widest result is 100 MB, so NumPy's time to write that array and
nothing else stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.nn import functional as F

BATCH, HIDDEN, CLASSES, WIDTHS = 256, 100, 10, (64, 784, 1000)


def runs(width: int) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    rng = np.random.default_rng(0)

    def make(*shape: int) -> Any:
        return gg.tensor((rng.normal(size=shape) * 0.1).astype("float32"))

    params = [make(HIDDEN, width), make(HIDDEN), make(CLASSES, HIDDEN), make(CLASSES)]
    x, y = make(BATCH, width), gg.tensor(rng.integers(0, CLASSES, BATCH))
    slopes, inputs = np.ones((BATCH, HIDDEN, 1), "float32"), x.numpy()[:, None]

    def loss(p: Any, x: Any, y: Any) -> Any:
        return F.cross_entropy(F.linear(gg.relu(F.linear(x, p[0], p[1])), p[2], p[3])[None], y[None])

    one, many = gg.grad(loss), gg.vmap(gg.grad(loss), (None, 0, 0))

    def loop() -> Any:
        rows = [one(params, x[i], y[i]) for i in range(BATCH)]
        return [gg.stack([r[k] for r in rows]) for k in range(len(params))]

    return {"at once": lambda: many(params, x, y), "one by one": loop, "its array": lambda: slopes * inputs}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    for width in WIDTHS:
        timed = runs(width)
        seen: dict[str, list[float]] = {name: [] for name in timed}
        for round_ in range(rounds + 1):
            for name, run in timed.items():
                start = time.perf_counter()
                run()
                if round_:  # the first warms up
                    seen[name].append((time.perf_counter() - start) * 1e3)
        ms = {name: statistics.median(times) for name, times in seen.items()}
        text = ", ".join(f"{name} {t:.1f} ms" for name, t in ms.items())
        print(f"{width}-{HIDDEN}-{CLASSES}: {text}; {ms['one by one'] / ms['at once']:.1f} times faster")


if __name__ == "__main__":
    main()
