"""Host cost of an operation: Python frames (exact) and microseconds (noisy), on arrays of ten elements.

    python bench/overhead.py [--rounds 7] [--json FILE]

Every engine runs the same chain of operations forward and backward. Rounds are interleaved, so that a slow moment of
the machine falls on all of them; medians are shown, and ratios to NumPy written out by hand. HIPS autograd and MyGrad
are listed as missing where they are not installed. bench/budget.json holds the frames that the tests allow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402

import gpugrad as gg  # noqa: E402

BUDGET = json.loads(Path(__file__).with_name("budget.json").read_text())
N = 200  # operations in a chain

A = np.linspace(0.5, 1.5, 10)
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "multiply by a number": lambda x, y: x * 1.5,
    "number minus": lambda x, y: 2.0 - x,
    "negative": lambda x, y: -x,
    "square": lambda x, y: x**2,
    "exp": lambda x, y: gg.exp(x),
    "log": lambda x, y: gg.log(x),
    "tanh": lambda x, y: gg.tanh(x),
    "sin": lambda x, y: gg.sin(x),
    "sigmoid": lambda x, y: gg.sigmoid(x),
    "relu": lambda x, y: gg.relu(x),
}


ENGINE = {str(Path(gg.__file__).with_name(f"{n}.py")) for n in ("op", "tensor", "tape", "operands", "state", "errors")}


def frames(run: Callable[[], Any], engine_only: bool = False) -> int:
    """Python functions entered by run(), itself not counted; or just the engine's, without the forwards and rules."""
    count = 0

    def tally(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call" and (not engine_only or frame.f_code.co_filename in ENGINE)

    before = sys.getprofile()
    sys.setprofile(tally)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count - (not engine_only)


def forward_frames(operation: Callable[[Any, Any], Any]) -> int:
    """Python frames of one recorded call."""
    x, y = (gg.tensor(A, requires_grad=True) for _ in range(2))
    operation(x, y)  # namespaces and caches are filled once
    return frames(lambda: operation(x, y)) - 1  # the operation's own lambda


def backward_frames(operation: Callable[[Any, Any], Any]) -> float:
    """Python frames of one more recorded call in a backward pass: a long chain against a short one."""

    def cost(length: int) -> int:
        x, y = (gg.tensor(A, requires_grad=True) for _ in range(2))
        for _ in range(length):
            x = (
                operation(x, y) * 1.0
            )  # one plain multiplication between, so that every operation is met as an inner one
        seed = gg.ones_like(x.detach())
        return frames(lambda: x.backward(seed))

    def plain(length: int) -> int:
        x = gg.tensor(A, requires_grad=True)
        for _ in range(length):
            x = x * 1.0
        seed = gg.ones_like(x.detach())
        return frames(lambda: x.backward(seed))

    with np.errstate(all="ignore"):  # a chain of exponentials overflows; only the calls are counted
        cost(2)
        return (cost(22) - cost(2) - (plain(22) - plain(2))) / 20


# --- microseconds: x = x * w + b, N operations, forward and backward ---------------------------------------------


def by_hand() -> Callable[[], tuple[float, float]]:
    """NumPy with the derivative written out."""
    w, b = A / A.max(), A * 0.01

    def run() -> tuple[float, float]:
        start = time.perf_counter()
        x, kept = A, []
        for _ in range(N // 2):
            kept.append(x)
            x = x * w + b
        middle = time.perf_counter()
        g, gw, gb = np.ones(10), np.zeros(10), np.zeros(10)
        for x in reversed(kept):
            gb += g
            gw += g * x
            g = g * w
        return middle - start, time.perf_counter() - middle

    return run


def ours() -> Callable[[], tuple[float, float]]:
    """gpugrad."""
    seed = gg.ones(10, dtype=gg.float64)

    def run() -> tuple[float, float]:
        w, b = (gg.tensor(v, requires_grad=True) for v in (A / A.max(), A * 0.01))
        x = gg.tensor(A, requires_grad=True)
        start = time.perf_counter()
        for _ in range(N // 2):
            x = x * w + b
        middle = time.perf_counter()
        x.backward(seed)
        return middle - start, time.perf_counter() - middle

    return run


def hips() -> Callable[[], tuple[float, float]]:
    """HIPS autograd; its trace starts before the forward and is read back after it."""
    from autograd import make_vjp

    def run() -> tuple[float, float]:
        def f(args: Any) -> Any:
            x, w, b = args
            for _ in range(N // 2):
                x = x * w + b
            return x

        start = time.perf_counter()
        vjp, _ = make_vjp(f)((A, A / A.max(), A * 0.01))
        middle = time.perf_counter()
        vjp(np.ones(10))
        return middle - start, time.perf_counter() - middle

    return run


def mygrad() -> Callable[[], tuple[float, float]]:
    """MyGrad."""
    import mygrad as mg

    def run() -> tuple[float, float]:
        w, b, x = (mg.tensor(v) for v in (A / A.max(), A * 0.01, A))
        start = time.perf_counter()
        for _ in range(N // 2):
            x = x * w + b
        middle = time.perf_counter()
        x.backward(np.ones(10))
        return middle - start, time.perf_counter() - middle

    return run


ENGINES = {"numpy by hand": by_hand, "gpugrad": ours, "autograd": hips, "mygrad": mygrad}


def microseconds(rounds: int) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Median (forward, backward) microseconds an operation of each engine, and the engines that are missing."""
    runs, missing = {}, []
    for name, make in ENGINES.items():
        try:
            runs[name] = make()
        except ImportError:  # noqa: PERF203 - four engines
            missing.append(name)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            times = [run() for _ in range(20)]
            if round_:  # the first warms up
                seen[name].append((min(t[0] for t in times), min(t[1] for t in times)))
    return {
        name: (statistics.median(t[0] for t in ts) / N * 1e6, statistics.median(t[1] for t in ts) / N * 1e6)
        for name, ts in seen.items()
    }, missing


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    args = parser.parse_args()
    counted = {name: (forward_frames(op), backward_frames(op)) for name, op in OPERATIONS.items()}
    print(f"Python frames an operation (budget: {BUDGET['forward']} forward, {BUDGET['backward']} backward)")
    for name, (forward, backward) in counted.items():
        print(f"  {name:22} forward {forward}  backward {backward:g}")
    timed, missing = microseconds(args.rounds)
    hand = sum(timed["numpy by hand"])
    print("microseconds an operation (x = x * w + b, ten float64, medians of interleaved rounds)")
    for name, (forward, backward) in timed.items():
        total = forward + backward
        print(f"  {name:14} forward {forward:6.2f}  backward {backward:6.2f}  {total / hand:5.1f} x NumPy by hand")
    for name in missing:
        print(f"  {name:14} missing: not installed")
    if args.json:
        card = {
            "date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "python": platform.python_version(),
            "numpy": np.__version__, "gpugrad": gg.__version__, "frames": counted, "microseconds": timed,
            "missing": missing,
        }  # fmt: skip
        Path(args.json).write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
