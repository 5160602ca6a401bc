"""The equality gate: nobody is timed whose first steps do not give the reference's numbers.

The reference is float64, from the same data and weights (`peers.REFERENCE`). What a step returns is told by a digest:
shape, sum, norm and a thousand of its elements.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpugrad.bench.workloads import Workload

Digest = dict[str, Any]
SAMPLE, CHUNK = 1000, 1 << 20


def steps(workload: Workload) -> list[int]:
    """The steps, from 1, that are compared: beyond the third, by which whatever is traced or compiled has been.

    Where nothing is updated all steps are alike, and the first and the fourth are looked at.
    """
    if workload.kind != "train":
        return [1, 4]
    return [1, 2, 3, 4] if workload.flops > 1e11 else [1, 2, 3, 4, 5]  # the reference takes seconds a step there


def digest(array: Any) -> Digest:
    """What is known of an array."""
    flat = np.asarray(array).reshape(-1)
    total = square = 0.0
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        total += float(part.sum(dtype="float64"))
        square += float(np.dot(part, part.astype("float64", copy=False)))
    places = np.unique(np.linspace(0, max(0, flat.size - 1), min(SAMPLE, flat.size)).astype(int))
    return {
        "shape": list(np.shape(array)), "sum": total, "norm": math.sqrt(square),
        "sample": [float(v) for v in flat[places]],
    }  # fmt: skip


def difference(workload: Workload, expected: list[list[Digest]], found: list[list[Digest]]) -> str:
    """In a few words, where `found` first leaves `expected`; '' where it does not.

    A loss that has almost vanished is compared on the scale of a hundredth of the first.
    """
    if len(found) != len(expected):
        return f"{len(found)} steps, expected {len(expected)}"
    for k, want, got in zip(steps(workload), expected, found):
        if len(got) != len(want):
            return f"step {k} returns {len(got)} arrays, expected {len(want)}"
        for i, (a, b) in enumerate(zip(want, got)):
            floor = abs(expected[0][0]["sum"]) / 100 if workload.kind == "train" else 0.0
            apart = distance(a, b, floor)
            if not apart <= workload.tolerance:
                what = named(workload, i, k)
                values = f"{b['sum']:.6g} for {a['sum']:.6g}" if a["shape"] in ([], [1]) else f"shape {a['shape']}"
                return f"{what} differs by {apart:.1e} ({values}; {workload.tolerance:.0e} is allowed)"
    return ""


def named(workload: Workload, output: int, step: int) -> str:
    """What the outputs of a step are called."""
    if workload.kind == "hvp":
        return f"product {output + 1} of step {step}"
    return f"loss {step}" if output == 0 else f"gradient {output} of step {step}"


def distance(a: Digest, b: Digest, floor: float = 0.0) -> float:
    """The largest relative difference that the digests show; NaN or inf where they cannot be compared."""
    n = max(1, math.prod(a["shape"]))
    if n != max(1, math.prod(b["shape"])):
        return math.inf
    scale = max(floor, a["norm"] / math.sqrt(n))  # root mean square
    if scale == 0:
        return 0.0 if b["norm"] == 0 else math.inf
    sample = np.abs(np.subtract(a["sample"], b["sample"])).max() / max(scale, np.abs(a["sample"]).max())
    apart = [float(sample), abs(a["norm"] - b["norm"]) / math.sqrt(n) / scale, abs(a["sum"] - b["sum"]) / n / scale]
    return math.nan if any(map(math.isnan, apart)) else max(apart)
