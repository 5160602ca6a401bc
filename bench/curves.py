"""Loss curves of an MLP and of LeNet on the handwritten digits, on the CPU and on another device beside it.

    python bench/curves.py --device cuda|double [--out FILE]

Same seed, same initial weights, same batches. Fails where the losses of the first steps differ by more than 1e-4
relatively (later, rounding grows as training amplifies it), or where the last ones differ in what was learned.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad import backends, data, optim
from gpugrad.backends import cuda
from gpugrad.nn import functional as F
from gpugrad.train.models import lenet, mlp

FIRST, RELATIVE = 10, 1e-4  # steps that have to agree, and how well


def losses(build: Any, device: str, steps: int, batch: int) -> tuple[list[float], float]:
    """The loss of every step, and the seconds of all but the first."""
    gg.random.seed(0)
    x, y, _, _ = data.digits()
    x = data.standardize(x, x)[0].reshape(-1, 1, 8, 8).astype("float32")
    model = build((1, 8, 8), 10).to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = np.random.default_rng(0).permutation(len(x))
    xs, ys = gg.asarray(x).to(device), gg.asarray(y).to(device)
    found = []
    start = time.perf_counter()
    for step in range(steps):
        rows = gg.asarray(np.take(order, np.arange(step * batch, (step + 1) * batch), mode="wrap")).to(device)
        loss = F.cross_entropy(model(xs[rows]), ys[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss)
        if step == 0:
            loss.item()
            start = time.perf_counter()
    values = [v.item() for v in found]
    return values, time.perf_counter() - start


def main() -> int:
    """Compare the curves; 1 if they part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "double"], required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    double = options.device == "double"
    if double:
        from gpugrad.testing import fake_cupy

        backends.register(cuda.load(fake_cupy))
    steps, batch = (3, 16) if double else (300, 64)
    report, good, said = {}, True, []
    for name, build in (
        ("mlp", lambda *a: mlp(*a, hidden=(64,) if double else (512, 256))),
        ("lenet", lambda *a: lenet(*a, dropout=0.0)),
    ):
        cpu, cpu_seconds = losses(build, "cpu", steps, batch)
        other, seconds = losses(build, "cuda", steps, batch)
        apart = max(abs(a - b) / abs(a) for a, b in zip(cpu[:FIRST], other[:FIRST]))
        learned = abs(np.mean(cpu[-20:]) - np.mean(other[-20:])) < 0.05
        good = good and apart < RELATIVE and bool(learned)
        report[name] = {"cpu": cpu, "device": other, "cpu_seconds": cpu_seconds, "seconds": seconds}
        said.append(
            f"{name}: first {min(FIRST, steps)} losses within {apart:.1e}, at the end {cpu[-1]:.4f} and {other[-1]:.4f}"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report))
    print("; ".join(said))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
