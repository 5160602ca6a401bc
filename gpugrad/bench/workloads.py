"""What is measured: a family of workloads and its sizes, as in `mlp-sgd:128` or `xent:4096x10`.

All arrays come from one generator, are rounded to float32, and then given to every framework in the dtype of the run:
the float64 reference starts from the very numbers that its peers start from.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpugrad.bench import models
from gpugrad.errors import DomainError, fail

Array = np.ndarray[Any, np.dtype[Any]]
SEED = 0


@dataclass(frozen=True)
class Workload:
    """One workload of one size.

    kind: 'train' (a step returns the loss and updates the parameters), 'gradient' (loss and gradients), 'hvp' (a
    Hessian-vector product), 'epoch' (a sum over all labels that a loader gave). make(random): parameters and batch.
    loss: of `models`, with its sizes bound. samples: a step's, or its operations for an overhead. flops and bytes: the
    least that a step has to multiply, add and move, for the roofline. floor: bytes of parameters, batch and
    activations. tolerance: of the gate, relative. dtype: of everybody but the reference. eager: only for frameworks
    that do not unroll a program. busy: measured again beside a busy neighbour. memory: the peak of a step is what is
    asked for, not its time.
    """

    name: str
    title: str
    kind: str
    make: Callable[[np.random.Generator], tuple[list[Array], list[Array]]]
    loss: Callable[..., Any]
    samples: int
    optimizer: str = ""
    rates: tuple[tuple[str, float], ...] = ()
    flops: float = 0.0
    bytes: float = 0.0
    floor: float = 0.0
    tolerance: float = 2e-4
    dtype: str = "float32"
    eager: bool = False
    busy: bool = False
    memory: bool = False

    @property
    def family(self) -> str:
        """The name without the sizes."""
        return self.name.partition(":")[0]

    def arrays(self, dtype: str) -> tuple[list[Array], list[Array]]:
        """Parameters and batch; floating ones in `dtype`, after rounding to float32."""

        wanted: Any = dtype
        if dtype == "bfloat16":
            from ml_dtypes import bfloat16

            wanted = bfloat16

        def cast(a: Array) -> Array:
            return a.astype("float32", copy=False).astype(wanted, copy=False) if a.dtype.kind == "f" else a

        parameters, batch = self.make(np.random.default_rng(SEED))
        return [cast(a) for a in parameters], [cast(a) for a in batch]


Build = Callable[..., Workload]
FAMILIES: dict[str, tuple[Build, str]] = {}


def family(name: str, sizes: str) -> Callable[[Build], Build]:
    """Register a family, with the sizes that its bare name stands for."""

    def add(build: Build) -> Build:
        FAMILIES[name] = (build, sizes)
        return build

    return add


def find(spec: str) -> Workload:
    """The workload of a name such as 'xent', 'xent:4096x10' or 'elementwise:4M'. Raises DomainError for another."""
    name, _, sizes = spec.partition(":")
    if name not in FAMILIES:
        raise fail(DomainError, "bench", f"no workload is called {name!r}; there are {', '.join(FAMILIES)}")
    build, usual = FAMILIES[name]
    try:
        numbers = [number(s) for s in (sizes or usual).split("x")]
        if min(numbers) < 1 or len(numbers) != len(usual.split("x")):
            raise ValueError
    except ValueError:
        raise fail(DomainError, "bench", f"{spec!r} has no sizes such as {name}:{usual}") from None
    return build(f"{name}:{sizes or usual}", *numbers)


def number(text: str) -> int:
    """4096, 4k or 4M."""
    scale = {"k": 1000, "M": 1000_000}.get(text[-1:], 1)
    return int(text.rstrip("kM")) * scale


def dense(random: np.random.Generator, *shape: int) -> Array:
    """Normal weights (out, in, ...) of He's deviation."""
    return random.normal(size=shape) * math.sqrt(2 / math.prod(shape[1:]))


def labels(random: np.random.Generator, classes: int, *shape: int) -> Array:
    """Class numbers."""
    return random.integers(0, classes, shape)


# --- the families -------------------------------------------------------------------------------------------------


@family("overhead", "1000")
def overhead(name: str, operations: int) -> Workload:
    """Forward and backward of a chain of small operations; a sample is one operation."""

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        a = np.linspace(0.5, 1.5, 10)
        return [a, a / a.max(), a * 0.01], []

    loss = functools.partial(models.chain, links=max(1, operations // 2))
    return Workload(name, f"chain of {operations} small operations, forward + backward", "gradient", make, loss,
                    2 * max(1, operations // 2), tolerance=1e-3)  # fmt: skip


@family("deep", "100k")
def deep(name: str, nodes: int) -> Workload:
    """A long graph: recursion and superlinear walks show here; a sample is one node. All sums are small integers."""

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        return [np.arange(1.0, 11.0), -np.ones(10)], []

    loss = functools.partial(models.deep, links=nodes)
    return Workload(name, f"chain of {nodes:,} nodes, forward + backward", "gradient", make, loss, nodes, eager=True)


@family("elementwise", "4M")
def elementwise(name: str, n: int) -> Workload:
    """Four arrays read, four gradients written."""

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        part = random.normal(size=(4, min(n, 1 << 20)))  # repeated: what is timed does not depend on the values
        return [np.resize(row, n) for row in part.astype("float32")], []

    return Workload(name, f"mean(relu(x w + b) c) on {n:,} elements, forward + backward", "gradient", make,
                    models.elementwise, n, bytes=32 * n)  # fmt: skip


@family("xent", "4096x10")
def xent(name: str, rows: int, classes: int) -> Workload:
    """Logits read once, their gradient written once, at best."""

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        part = random.normal(size=min(rows * classes, 1_000_003)).astype("float32")
        return [np.resize(part, (rows, classes)) * np.float32(2)], [labels(random, classes, rows)]

    return Workload(name, f"softmax cross-entropy ({rows}, {classes}), forward + backward", "gradient", make,
                    models.cross_entropy, rows, bytes=8 * rows * classes)  # fmt: skip


@family("twolayer", "64")
def two_layer(name: str, rows: int) -> Workload:
    """The lecture's N=64, 1000-100-10 with plain gradient descent."""

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        w = [random.normal(size=(1000, 100)), random.normal(size=(100, 10))]
        return w, [random.normal(size=(rows, 1000)), random.normal(size=(rows, 10))]

    return Workload(name, f"two-layer network of the lecture, 1000-100-10, batch {rows}", "train", make,
                    models.two_layer, rows, "sgd", (("lr", 1e-6),), flops=rows * (4 * 100_000 + 6 * 1000),
                    bytes=12 * 101_000)  # fmt: skip


WIDTHS = (784, 512, 256, 10)


def perceptron(name: str, rows: int, widths: tuple[int, ...] = WIDTHS, **more: Any) -> Workload:
    """An MLP; the first layer needs no gradient of its input."""
    pairs = list(itertools.pairwise(widths))

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        p = [a for n, m in pairs for a in (dense(random, m, n), np.zeros(m))]
        return p, [random.normal(size=(rows, widths[0])), labels(random, widths[-1], rows)]

    weights = sum((n + 1) * m for n, m in pairs)
    flops = rows * (6 * sum(n * m for n, m in pairs) - 2 * widths[0] * widths[1])
    shape = "-".join(map(str, widths))
    known = {"title": f"MLP {shape}, batch {rows}", "kind": "train", "flops": flops, "bytes": 20 * weights,
             "floor": 4.0 * (weights + rows * sum(widths)), "optimizer": "sgd",
             "rates": (("lr", 0.05), ("momentum", 0.9))}  # fmt: skip
    return Workload(name, make=make, loss=models.mlp, samples=rows, **{**known, **more})


@family("mlp-sgd", "128")
def mlp_sgd(name: str, rows: int) -> Workload:
    """With momentum."""
    return perceptron(name, rows, title=f"MLP {'-'.join(map(str, WIDTHS))}, SGD with momentum, batch {rows}")


@family("mlp-adam", "128")
def mlp_adam(name: str, rows: int) -> Workload:
    """The usual rates."""
    title = f"MLP {'-'.join(map(str, WIDTHS))}, Adam, batch {rows}"
    return perceptron(name, rows, title=title, optimizer="adam", rates=(("lr", 1e-3),))


@family("busy", "128")
def busy(name: str, rows: int) -> Workload:
    """The same step quiet and beside a process that never rests, on as many cores as there are threads."""
    return perceptron(name, rows, title=f"MLP step, batch {rows}, beside a busy neighbour", busy=True)


@family("memory", "4096")
def memory(name: str, rows: int) -> Workload:
    """Peak bytes of a step over those of parameters and activations."""
    return perceptron(name, rows, title=f"peak memory of an MLP step, batch {rows}", memory=True)


@family("hvp", "64")
def hvp(name: str, rows: int) -> Workload:
    """The direction is the parameters' start, halved."""
    return perceptron(name, rows, (196, 128, 64, 10), title=f"Hessian-vector product of an MLP, batch {rows}",
                      kind="hvp", optimizer="", rates=(), tolerance=1e-3)  # fmt: skip


@family("lenet", "64")
def lenet(name: str, rows: int) -> Workload:
    """On random images of 28 x 28 pixels."""

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        p: list[Array] = []
        for shape in ((6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)):
            p += [dense(random, *shape), np.zeros(shape[0])]
        return p, [random.normal(size=(rows, 1, 28, 28)), labels(random, 10, rows)]

    flops = rows * (4 * 150 * 784 + 6 * (2400 * 100 + 400 * 120 + 120 * 84 + 840))
    return Workload(name, f"LeNet, SGD with momentum, batch {rows}", "train", make, models.lenet, rows, "sgd",
                    (("lr", 0.02), ("momentum", 0.9)), flops=flops, bytes=20 * 62_000)  # fmt: skip


@family("resnet", "4x16x16x32")
def resnet(name: str, blocks: int, channels: int, side: int, rows: int) -> Workload:
    """blocks x channels x pixels a side x batch."""

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        p = [dense(random, channels, 3, 3, 3), np.zeros(channels)]
        for _ in range(2 * blocks):
            p += [dense(random, channels, channels, 3, 3), np.ones(channels), np.zeros(channels)]
        p += [dense(random, 10, channels), np.zeros(10)]
        return p, [random.normal(size=(rows, 3, side, side)), labels(random, 10, rows)]

    flops = 6 * rows * side * side * 9 * channels * (2 * blocks * channels + 2)
    return Workload(name, f"{blocks} residual blocks, {channels} channels, {side} x {side}, batch {rows}", "train",
                    make, models.resnet, rows, "sgd", (("lr", 0.02), ("momentum", 0.9)), flops=flops,
                    tolerance=5e-4)  # fmt: skip


@family("gpt", "4x4x128x64x16")
def gpt(name: str, layers: int, heads: int, width: int, context: int, rows: int) -> Workload:
    """layers x heads x width x context x batch, on 65 characters; a sample is a token."""
    letters = 65

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        def w(*shape: int) -> Array:
            return random.normal(size=shape) * 0.02

        p = [w(letters, width), w(context, width)]
        for _ in range(layers):
            p += [np.ones(width), np.zeros(width), w(3 * width, width), np.zeros(3 * width)]
            p += [w(width, width), np.zeros(width), np.ones(width), np.zeros(width)]
            p += [w(4 * width, width), np.zeros(4 * width), w(width, 4 * width), np.zeros(width)]
        p += [np.ones(width), np.zeros(width), w(letters, width)]
        text = labels(random, letters, rows, context + 1)
        return p, [np.ascontiguousarray(text[:, :-1]), np.ascontiguousarray(text[:, 1:])]

    tokens = rows * context
    flops = 6 * tokens * (12 * layers * width * width + letters * width + layers * context * width)
    title = f"character GPT, {layers} layers, {heads} heads, width {width}, context {context}, batch {rows}"
    return Workload(name, title, "train", make, functools.partial(models.gpt, heads=heads), tokens,
                    "adam", (("lr", 1e-3),), flops=flops, tolerance=5e-4)  # fmt: skip


@family("gpt-bf16", "6x6x384x256x64")
def gpt_bf16(name: str, *sizes: int) -> Workload:
    """The same with weights and activations in bfloat16."""
    usual = gpt(name, *sizes)
    return replace(usual, title=f"{usual.title}, bfloat16", dtype="bfloat16", tolerance=1e-2)


@family("loader", "60k")
def loader(name: str, samples: int) -> Workload:
    """Shuffled batches of 128 MNIST-shaped images from memory."""

    def make(random: np.random.Generator) -> tuple[list[Array], list[Array]]:
        part = random.random((min(samples, 512), 1, 28, 28)).astype("float32")
        return [], [np.resize(part, (samples, 1, 28, 28)), labels(random, 10, samples)]

    return Workload(name, f"an epoch of {samples:,} images in batches of 128", "epoch", make, models.mlp, samples,
                    bytes=samples * 2 * 3136)  # fmt: skip


SUITES: dict[tuple[str, str], tuple[str, ...]] = {
    ("quick", "cpu"): ("overhead:200", "mlp-sgd:128", "xent:4096x10", "elementwise:1M"),
    ("full", "cpu"): (
        "overhead", "twolayer", "mlp-sgd", "mlp-adam", "mlp-sgd:4096", "mlp-adam:4096", "xent:4096x10",
        "xent:2048x1000", "xent:256x50257", "elementwise", "lenet", "resnet", "gpt", "hvp", "deep", "loader", "memory",
        "busy",
    ),
    ("quick", "cuda"): ("overhead:200", "mlp-sgd:128", "xent:2048x1000", "elementwise:4M"),
    ("full", "cuda"): (
        "overhead:200", "twolayer", "mlp-sgd", "mlp-adam", "mlp-sgd:4096", "lenet", "hvp", "memory", "loader",
        "resnet:4x64x32x64", "gpt-bf16", "xent:8192x50257", "elementwise:256M",
    ),
}  # fmt: skip
