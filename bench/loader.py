"""Seconds an epoch of batches takes from memory: gpugrad's ArrayLoader beside torch's DataLoader, interleaved.

    python bench/loader.py [--samples 60000] [--batch-size 128] [--rounds 5] [--json FILE]

MNIST-shaped float32 images and int64 labels, shuffled; every batch is touched (its first element is read). torch is
listed as missing where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import numpy as np

import gpugrad as gg
from gpugrad.data import ArrayLoader


def main() -> None:
    """Measure and print; write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.random((args.samples, 1, 28, 28), dtype=np.float32)
    y = rng.integers(0, 10, args.samples)
    loaders = {"gpugrad": ArrayLoader(x, y, batch_size=args.batch_size, seed=0)}
    try:
        import torch
        from torch.utils.data import DataLoader, TensorDataset
    except ImportError:
        print("torch: missing, not compared")
    else:
        data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        loaders["torch"] = DataLoader(data, batch_size=args.batch_size, shuffle=True)

    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(args.rounds + 1):  # the first round warms up
        for name, loader in loaders.items():
            start = time.perf_counter()
            seen = 0
            for images, labels in loader:
                images.data[0, 0, 0, 0]
                seen += len(labels)
            seconds[name].append(time.perf_counter() - start)
            assert seen == args.samples
    median = {name: statistics.median(s[1:]) for name, s in seconds.items()}
    for name, s in median.items():
        spread = f"{min(seconds[name][1:]) * 1e3:.0f}-{max(seconds[name][1:]) * 1e3:.0f}"
        print(f"{name:8} {s * 1e3:8.1f} ms an epoch ({spread}), {args.samples / s / 1e6:.2f} million samples/s")
    if "torch" in median:
        print(f"ratio    {median['torch'] / median['gpugrad']:8.1f} times faster than torch's DataLoader")
    if args.json:
        card = {
            "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "python": platform.python_version(),
            "gpugrad": gg.__version__, "numpy": np.__version__, "arguments": vars(args), "median_s": median,
        }  # fmt: skip
        with open(args.json, "w") as out:
            json.dump(card, out, indent=1)


if __name__ == "__main__":
    main()
