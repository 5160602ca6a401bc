"""What is aimed at, as ratios measured in one run on one machine; being under a limit is a hit.

Written down before the measurement, from what peers reach on two cores; see docs/performance.md for how it went.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

RATIO, BESIDE, ROOFLINE, MEMORY, NODE_US, NODE_KB, COLD, OP_US = (
    "time over that of", "time beside a busy neighbour over quiet time", "share of the roofline",
    "peak memory of a later step over parameters, batch and activations", "microseconds a node", "kilobytes a node",
    "seconds of import and first three steps", "microseconds an operation",
)  # fmt: skip
AT_LEAST = (ROOFLINE,)  # of the others less is better


class Target(NamedTuple):
    """`peer` on `workload`: `quantity` (of `against`, the best of several) at most, for a share at least, `limit`."""

    device: str
    workload: str
    peer: str
    quantity: str
    limit: float
    against: tuple[str, ...] = ()


def ratios(device: str, workload: str, against: tuple[str, ...] = ("torch",), **limits: float) -> Iterable[Target]:
    """Of our columns: eager, replay, compiled."""
    names = {"eager": "gpugrad", "replay": "gpugrad-replay", "compiled": "gpugrad-compiled"}
    return [Target(device, workload, names[k], RATIO, limit, against) for k, limit in limits.items()]


REPLAY, BEST = "gpugrad-replay", ("torch.compile", "jax.jit")
TARGETS: tuple[Target, ...] = (
    *ratios("cpu", "overhead:1000", eager=0.45, replay=0.2, compiled=0.05),
    *ratios("cpu", "twolayer:64", replay=0.85, compiled=0.8),
    *ratios("cpu", "mlp-sgd:128", replay=1.1, compiled=1.0),
    *ratios("cpu", "mlp-adam:128", replay=1.1, compiled=0.8),
    *ratios("cpu", "xent:4096x10", replay=0.82, compiled=0.25),
    *ratios("cpu", "xent:2048x1000", replay=0.9, compiled=0.3),
    *ratios("cpu", "xent:256x50257", replay=0.38, compiled=0.13),
    *ratios("cpu", "elementwise:4M", replay=0.75, compiled=0.3),
    *ratios("cpu", "hvp:64", replay=0.55, compiled=0.5),
    *ratios("cpu", "lenet:64", replay=1.25, compiled=1.1),
    *ratios("cpu", "gpt:4x4x128x64x16", replay=1.6, compiled=1.25),
    *ratios("cpu", "loader:60k", eager=0.2),
    Target("cpu", "memory:4096", "gpugrad", MEMORY, 1.7),
    Target("cpu", "memory:4096", REPLAY, MEMORY, 1.4),
    Target("cpu", "busy:128", "gpugrad", BESIDE, 2.0),
    Target("cpu", "busy:128", REPLAY, BESIDE, 2.0),
    Target("cpu", "busy:128", "gpugrad-compiled", BESIDE, 2.0),
    Target("cpu", "deep:100k", "gpugrad", NODE_US, 4.0),
    Target("cpu", "deep:100k", "gpugrad", NODE_KB, 0.5),
    Target("cpu", "mlp-sgd:128", "gpugrad", COLD, 1.0),
    Target("cpu", "mlp-sgd:128", REPLAY, COLD, 1.0),
    Target("cpu", "mlp-sgd:128", "gpugrad-compiled", COLD, 3.0),
    *ratios("cuda", "overhead:200", eager=1.2),
    Target("cuda", "overhead:200", REPLAY, OP_US, 1.0),
    *ratios("cuda", "twolayer:64", replay=0.3),
    *ratios("cuda", "twolayer:64", ("torch-graph",), replay=1.0),
    *ratios("cuda", "mlp-sgd:128", replay=0.3),
    *ratios("cuda", "mlp-sgd:128", ("torch.compile",), replay=1.0),
    *ratios("cuda", "mlp-adam:128", replay=0.3),
    *ratios("cuda", "mlp-sgd:4096", replay=0.95),
    *ratios("cuda", "xent:8192x50257", BEST, replay=1.0),
    Target("cuda", "xent:8192x50257", REPLAY, ROOFLINE, 0.9),
    Target("cuda", "elementwise:256M", "gpugrad-compiled", ROOFLINE, 0.9),
    *ratios("cuda", "hvp:64", replay=0.5),
    *ratios("cuda", "lenet:64", replay=1.0),
    *ratios("cuda", "gpt-bf16:6x6x384x256x64", ("torch.compile",), replay=1.0),
    *ratios("cuda", "loader:60k", eager=0.2),
    Target("cuda", "memory:4096", "gpugrad", MEMORY, 1.7),
    Target("cuda", "mlp-sgd:128", "gpugrad", COLD, 3.0),
)


def judged(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target of the device whose workload was run, with what was measured (None: it was not) and the verdict."""
    by_name = {w["name"]: w for w in result["workloads"]}
    found = []
    for target in TARGETS:
        if target.device == result["device"].partition(":")[0] and target.workload in by_name:
            value = measured(target, by_name[target.workload], result)
            sign = -1 if target.quantity in AT_LEAST else 1
            hit = value is not None and sign * value <= sign * target.limit
            verdict = "not measured" if value is None else "hit" if hit else "miss"
            found.append({**target._asdict(), "measured": value, "verdict": verdict})
    return found


def measured(target: Target, workload: dict[str, Any], result: dict[str, Any]) -> float | None:
    """The quantity of a target, or None where a row that it needs has no figure."""
    row = workload["rows"].get(target.peer, {"state": "missing"})
    if row["state"] != "ok":
        return None
    if target.quantity == MEMORY:
        used = row["steady_bytes"] if row.get("device_bytes") is None else row["device_bytes"]
        return float(used / workload["floor"])
    if target.quantity == COLD:
        start = result["frameworks"]["gpugrad"]["import_s"]
        return None if start is None else float(start + row["learned_s"])
    if target.quantity == NODE_KB:
        return None if "unfinished" in row else float(row["steady_bytes"] / 1e3 / workload["samples"])
    if "step_s" not in row:
        return None
    if target.quantity in (NODE_US, OP_US):
        return float(row["step_s"] * 1e6 / workload["samples"])
    if target.quantity == BESIDE:
        return row.get("beside")  # type: ignore[no-any-return]
    if target.quantity == ROOFLINE:
        return row.get("roofline")  # type: ignore[no-any-return]
    rows = [workload["rows"].get(name, {"state": "missing"}) for name in target.against]
    others = [r["step_s"] for r in rows if r["state"] == "ok" and "step_s" in r]
    return row["step_s"] / min(others) if others else None
