"""Launches of kernels/random.cu."""

from __future__ import annotations

from typing import Any

from gpugrad.kernel import kernel


def _dropout(launch: Any, x: Any, counter: Any, key: tuple[int, int], p: float) -> Any:
    if not launch.takes(x):
        return NotImplemented
    out, threshold = launch.xp.empty(x.shape, x.dtype), round((1.0 - p) * 2**32)
    scale = float(x.dtype.type(1.0 / (1.0 - p) if p < 1.0 else 0.0))  # rounded as the twin's factor is
    launch.map("dropout", (x.dtype,), (out, x, counter, *key, threshold, scale, x.size), -(-x.size // 8))
    return out


dropout = kernel("random", "dropout", _dropout)
