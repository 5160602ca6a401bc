"""How far results on the CUDA backend are from those on the CPU, op by op, in units of the last place of float32.

    python bench/agreement.py [--double] [--out docs/agreement.md]

Every sample of the op table (tests/ops/samples) runs on both, values and gradients, from the same float32 numbers. The
figure of an op is its worst element: the difference in units of the last place of the array's largest value, or of 1
where all are smaller. --double takes the CPU double, where kernels run on the emulator with the host's math library:
that shows the kernels' own arithmetic; a GPU adds its math functions.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

import gpugrad as gg
import gpugrad.ops.optim  # fills the table, which happens at first use otherwise
from gpugrad import backends
from gpugrad.backends import cuda
from gpugrad.kernel import Kernel
from gpugrad.op import TABLE
from gpugrad.tensor import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.ops.samples import collect


def outcome(name: str, sample: Any, device: str) -> list[np.ndarray]:
    """Values and gradients of one sample on a device."""

    def make(a: Any) -> Any:
        if a is None:
            return None
        a = np.asarray(a)
        t = Tensor(backends.get(device).asarray(a.astype("float32") if a.dtype == np.float64 else a.copy()))
        return t.requires_grad_() if t.dtype.kind == "f" else t

    args = [make(a) for a in sample.args]
    out = TABLE[name].call(*args, **sample.attrs)
    outs = out if isinstance(out, tuple) else (out,)
    live = [o for o in sample.chosen(outs) if o.node is not None]
    found = [o.numpy() for o in outs]
    if live:
        rng = np.random.default_rng(0)
        weights = [Tensor(backends.get(device).asarray(rng.normal(size=o.shape).astype(o.dtype))) for o in live]
        leaves = [t for t in args if t is not None and t.node is not None]
        found += [g.numpy() for g in gg.gradients(live, leaves, weights) if g is not None]
    return found


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference in units of the last place at the scale of the array; inf where NaNs or infinities differ."""
    if a.dtype.kind not in "fc":
        return 0.0 if np.array_equal(a, b) else float("inf")
    x, y = a.astype("complex128"), b.astype("complex128")
    finite = np.isfinite(x) & np.isfinite(y)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    unit = np.spacing(np.asarray(max(1.0, float(np.abs(x[finite]).max())), a.real.dtype))
    return float(np.abs(x - y)[finite].max() / unit)


def worst() -> dict[str, float]:
    """The figure of every op that has samples."""
    found = {}
    for name, samples in sorted(collect().items()):
        if name not in TABLE or TABLE[name].kind == "update" or name == "to_device" or not samples:
            continue
        results = [zip(outcome(name, s, "cpu"), outcome(name, s, "cuda")) for s in samples]
        found[name] = max((apart(a, b) for pairs in results for a, b in pairs), default=0.0)
    return found


def report(found: dict[str, float], where: str) -> str:
    """The table as Markdown."""
    head = __doc__.split("\n\n")[2].replace("\n", " ")
    lines = ["# How far CPU and CUDA are apart", "", f"Written by `bench/agreement.py` on {where}.", "", head, ""]
    exact = [n for n, d in found.items() if d == 0]
    lines += [f"Bit for bit equal: {', '.join(exact)}.", "", "| op | of our own kernel | units in the last place |"]
    lines.append("|---|---|---|")
    for name, distance in sorted(found.items(), key=lambda item: -item[1]):
        if distance:
            own = "yes" if isinstance(TABLE[name].impls.special.get("cuda"), Kernel) else ""
            lines.append(f"| {name} | {own} | {distance:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table; 1 if something that should be a number is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    where = f"the emulator ({platform.machine()}, NumPy {np.__version__})"
    if options.double:
        from gpugrad.testing import fake_cupy

        backends.register(cuda.load(fake_cupy))
    else:
        where = backends.get("cuda").card()["name"]  # type: ignore[attr-defined]
    found = worst()
    text = report(found, where)
    if options.out:
        options.out.write_text(text)
    far = {n: d for n, d in found.items() if not d < float("inf")}
    name, distance = max(found.items(), key=lambda item: item[1])
    print(
        text if not options.out else f"{len(found)} ops, furthest apart: {name}, {distance:.1f} units in the last place"
    )
    return int(bool(far))


if __name__ == "__main__":
    sys.exit(main())
