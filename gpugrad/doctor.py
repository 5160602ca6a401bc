"""`gpugrad doctor`: what of gpugrad works on this machine, and what to do about what does not."""

from __future__ import annotations

import importlib.util
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gpugrad as gg
from gpugrad import backends
from gpugrad.errors import GpugradError

OK, ABSENT, BROKEN = "ok", "absent", "broken"


class Finding(NamedTuple):
    """One line: a part, whether it is ok, absent (optional, not there) or broken, what was seen, and the remedy."""

    part: str
    state: str
    seen: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Try every part, each on its own; nothing is downloaded or changed but CuPy's cache of compiled kernels."""
    checks: list[Callable[[], Finding]] = [versions, cpu, gpu, kernels, products, emulator, trainer]
    found = []
    for check in checks:
        start = time.perf_counter()
        try:
            finding = check()
        except Exception as error:  # whatever a driver or a compiler does, the other parts are still looked at
            first = str(error).partition("\n")[0] or type(error).__name__
            finding = Finding(check.__name__, BROKEN, first, "report it with the output of `gpugrad doctor --json`")
        found.append(finding._replace(seen=f"{finding.seen} ({time.perf_counter() - start:.1f} s)"))
    return found


def versions() -> Finding:
    """The interpreter and the libraries."""
    seen = f"gpugrad {gg.__version__}, Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}"
    return Finding("versions", OK, seen)


def cpu() -> Finding:
    """A gradient on the CPU."""
    return Finding("cpu", *gradient("cpu"))


def gradient(device: str) -> tuple[str, str]:
    """The state and a sentence about softmax cross-entropy of a product, differentiated on a device."""
    rng = np.random.default_rng(0)
    w = gg.tensor(rng.normal(size=(20, 5)).astype("float32"), device=device, requires_grad=True)
    x = gg.asarray(rng.normal(size=(8, 20)).astype("float32")).to(device)
    y = gg.asarray(rng.integers(0, 5, 8)).to(device)
    gg.nn.functional.cross_entropy(gg.relu(x @ w), y).backward()
    a, logits = x.numpy(), x.numpy() @ w.numpy()
    p = np.exp(np.maximum(logits, 0))
    slope = (p / p.sum(1, keepdims=True) - np.eye(5)[y.numpy()]) * (logits > 0) / 8
    assert w.grad is not None
    off = float(np.abs(w.grad.numpy() - a.T @ slope).max())
    return (OK if off < 1e-5 else BROKEN), f"a gradient on {device} is off by {off:.0e}"


def gpu() -> Finding:
    """Whether there is a GPU that CuPy can use."""
    if not backends.is_available("cuda"):
        try:
            backends.get("cuda")
        except GpugradError as error:
            reason, _, remedy = str(error).partition("\n  at ")[0].partition("\n")
            return Finding("gpu", ABSENT, reason.removeprefix("[cuda] "), remedy.strip())
    card = backends.get("cuda").card()  # type: ignore[attr-defined]
    chip = "{name}, compute capability {capability}, {processors} multiprocessors, {gigabytes} GB"
    return Finding("gpu", OK, f"{chip}; driver for CUDA {{driver}}, CuPy {{cupy}} for CUDA {{runtime}}".format(**card))


def kernels() -> Finding:
    """Compile and launch kernels of ours."""
    if not backends.is_available("cuda"):
        return Finding("kernels", ABSENT, "no GPU to run them on")
    return Finding("kernels", *gradient("cuda"))


def products() -> Finding:
    """Which way matrix products take."""
    if not backends.is_available("cuda"):
        return Finding("matrix products", ABSENT, "no GPU; NumPy's BLAS is used")
    a = gg.ones((32, 32), device="cuda")
    (a @ a).numpy()
    paths = backends.get("cuda").gemm.paths()  # type: ignore[attr-defined]
    return Finding("matrix products", OK, f"precision {gg.get_matmul_precision()}; {paths[-1]}")


def emulator() -> Finding:
    """Whether kernels can be tested without a GPU."""
    from gpugrad.testing.emulator import compiler

    found = compiler()
    if found is None:
        return Finding("emulator", ABSENT, "no C++ compiler", "install g++ to test CUDA kernels without a GPU")
    return Finding("emulator", OK, found)


def trainer() -> Finding:
    """What `gpugrad train` needs beside NumPy."""
    needed = {"rich": "rich", "sklearn": "scikit-learn", "safetensors": "safetensors", "matplotlib": "matplotlib",
              "threadpoolctl": "threadpoolctl"}  # fmt: skip
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        return Finding("gpugrad train", ABSENT, f"missing: {', '.join(missing)}", "pip install 'gpugrad[train]'")
    return Finding("gpugrad train", OK, "all it needs is installed")


def lines(findings: list[Finding]) -> list[str]:
    """The findings as text, remedies under what they mend."""
    wide = max(len(f.part) for f in findings)
    text = []
    for f in findings:
        text.append(f"{f.part:<{wide}}  {f.state:<6}  {f.seen}")
        if f.remedy:
            text.append(f"{'':<{wide}}          {f.remedy}")
    return text


def report(findings: list[Finding]) -> dict[str, Any]:
    """The findings as JSON-ready values."""
    return {f.part: {"state": f.state, "seen": f.seen, "remedy": f.remedy} for f in findings}
