"""Compiled row kernels, optimisers and chains on the CPU against NumPy and, where it is installed, PyTorch.

    python bench/jit.py [workload ...]

Each way runs in a process of its own; their rounds alternate, so that a busy machine is busy for all. Printed are
medians and ratios. All compute the same from the same numbers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

XENT = {"xent:4096x10": (4096, 10), "xent:2048x1000": (2048, 1000), "xent:256x50257": (256, 50257)}
SIZES = ((784, 512), (512,), (512, 256), (256,), (256, 10), (10,))  # of the multilayer perceptron that Adam moves
WORKLOADS = (*XENT, "chain", "adam", "layer_norm", "bias_gelu", "overhead")
CHAIN = 1 << 22  # elements


def data(workload: str) -> list[Any]:
    """The inputs, the same for every way."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.normal(size=shape).astype("float32")

    if workload in XENT:
        rows, classes = XENT[workload]
        return [normal(rows, classes), rng.integers(0, classes, rows)]
    if workload == "adam":
        return [[normal(*s) for s in SIZES], [normal(*s) for s in SIZES]]
    if workload == "chain":
        return [normal(CHAIN), normal(CHAIN), normal(CHAIN), normal(CHAIN)]
    rows, columns = {"overhead": (1, 4)}.get(workload, (1024, 1024))
    return [normal(rows, columns), normal(columns), normal(columns), normal(rows, columns)]


# --- the ways -------------------------------------------------------------------------------------------------------


def ours(workload: str, compiled: bool) -> Callable[[], Any]:
    """Our raw implementations, as a replay calls them: into arrays made once."""
    import gpugrad.optim  # noqa: F401  its ops are in the table
    from gpugrad import jit
    from gpugrad.chain import Chain, Const, Step
    from gpugrad.op import TABLE

    given = data(workload)

    def op(name: str, args: list[Any], out: Any, **attrs: Any) -> Callable[[], Any]:
        routine = jit.lookup(name, args, attrs) if compiled else None
        if compiled:
            assert routine is not None, name
            return lambda: routine(*args, out=out)
        return lambda: TABLE[name].impls[np.ndarray](*args, **attrs)

    def chained(chain: Chain, outs: list[Any], ins: list[Any]) -> Callable[[], Any]:
        found = chain.compile_cpu([a.dtype for a in ins]) if compiled else None
        if compiled:
            assert found is not None
            return found.bind(outs, ins)
        return lambda: chain.numpy(outs, ins)

    if workload in XENT:
        x, labels = given
        t = np.full(len(x), 1 / len(x), "float32")
        options: dict[str, Any] = {"ignore_index": -100, "smoothing": 0.0}
        loss, lse, grad = np.empty(len(x), "float32"), np.empty(len(x)), np.empty_like(x)
        if compiled:
            return op(jit.BOTH, [t, x, labels, None], (loss, lse, grad), **options)
        forward = op("softmax_xent", [x, labels, None], None, **options)
        return lambda: TABLE["softmax_xent_bwd"].impls[np.ndarray](t, x, labels, None, forward()[1], **options)
    if workload == "adam":
        params, grads = given
        means, squares = ([np.zeros_like(p) for p in params] for _ in range(2))
        args = [params, means, squares, [], np.zeros(len(params)), grads, np.array(1e-3)]
        return op(
            "adam",
            args,
            None if not compiled else (),
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            decoupled=False,
        )
    if workload == "chain":  # y = relu(x w + b) c, and the gradients of x, w, b and c for a cotangent of ones
        steps = (
            Step("multiply", (0, 1)), Step("add", (4, 2)), Step("relu", (5,)), Step("multiply", (6, 3)),
            Step("multiply", (3, Const(1.0))), Step("relu_bwd", (8, 6)),
            Step("multiply", (9, 1)), Step("multiply", (9, 0)),
        )  # fmt: skip
        chain = Chain(4, steps, (7, 6, 9, 10, 11))
        return chained(chain, [np.empty_like(given[0]) for _ in chain.outputs], given)
    x, w, b, t = given
    if workload == "layer_norm":
        at: dict[str, Any] = {"axis": (1,), "eps": 1e-5, "centred": True}
        mean, rstd = np.empty((len(x), 1), "float32"), np.empty((len(x), 1), "float32")
        forward = op("layer_norm", [x, w, b], (np.empty_like(x), (mean, rstd)), **at)
        mean[...], rstd[...] = TABLE["layer_norm"].impls[np.ndarray](x, w, b, **at)[1]
        outs = (np.empty_like(x), np.empty_like(w), np.empty_like(w))
        backward = op("layer_norm_bwd", [t, x, w, mean, rstd], outs, **at)
    else:
        kind = "gelu" if workload == "bias_gelu" else "relu"
        forward = op("bias_act", [x, b], np.empty_like(x), kind=kind)
        backward = op("bias_act_bwd", [t, x, b], (np.empty_like(x), np.empty_like(b)), kind=kind)
    return lambda: (forward(), backward())


def torch(workload: str) -> Callable[[], Any]:
    """PyTorch eager: forward, backward, fresh gradients."""
    import torch
    from torch.nn import functional

    given = data(workload)
    if workload == "adam":
        params = [torch.nn.Parameter(torch.tensor(p)) for p in given[0]]
        for p, g in zip(params, given[1]):
            p.grad = torch.tensor(g)
        return torch.optim.Adam(params, 1e-3, fused=True).step
    leaves = [torch.tensor(a, requires_grad=a.dtype == np.float32) for a in given]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        if workload in XENT:
            functional.cross_entropy(*leaves).backward()
            return
        x, w, b, t = leaves
        if workload == "chain":
            y = torch.relu(x * w + b) * t
            y.backward(torch.ones_like(y))
        elif workload == "layer_norm":
            functional.layer_norm(x, w.shape, w, b).backward(t)
        else:
            f = functional.gelu if workload == "bias_gelu" else torch.relu
            f(x + b).backward(t)

    return step


WAYS: dict[str, Callable[[str], Callable[[], Any]]] = {
    "torch": torch, "numpy": lambda w: ours(w, False), "compiled": lambda w: ours(w, True),
}  # fmt: skip


# --- measuring --------------------------------------------------------------------------------------------------------


def serve(way: str, workload: str) -> None:
    """Answer every line of the input with the seconds of one run, the median of a short burst."""
    try:
        run = WAYS[way](workload)
    except ImportError:
        print("missing", flush=True)
        return
    run(), run()
    start = time.perf_counter()
    run()
    burst = max(3, min(1000, int(0.05 / (time.perf_counter() - start))))
    print("ready", flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(burst):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


def measure(workload: str, rounds: int) -> dict[str, float]:
    """Median seconds of each way."""
    workers: dict[str, subprocess.Popen[str]] = {}
    for way in WAYS:
        command = [sys.executable, os.path.abspath(__file__), "--serve", way, workload]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdout
        if worker.stdout.readline().strip() == "ready":
            workers[way] = worker
        else:
            worker.wait()
    times: dict[str, list[float]] = {way: [] for way in workers}
    for _ in range(rounds):
        for way, worker in workers.items():
            assert worker.stdin
            assert worker.stdout
            print(file=worker.stdin, flush=True)
            times[way].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    return {way: statistics.median(t) for way, t in times.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=[], metavar="workload", help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    print(f"| workload, ms | {' | '.join(WAYS)} | compiled / torch | compiled / numpy |\n|{'---|' * (len(WAYS) + 3)}")
    for workload in options.workloads or WORKLOADS:
        found = measure(workload, options.rounds)
        cells = [f"{found[w] * 1e3:.3f}" if w in found else "missing" for w in WAYS]
        ratios = [f"{found['compiled'] / found[w]:.2f}" if w in found else "" for w in ("torch", "numpy")]
        print(f"| {workload} | {' | '.join(cells)} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
