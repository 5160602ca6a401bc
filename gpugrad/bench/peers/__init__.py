"""What a framework has to offer: a dialect that the models are written in, and steps of every kind.

A peer that lacks an operation is given a composition of what it has, as a user of it would write it.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpugrad.bench.workloads import Workload
from gpugrad.errors import DomainError, fail

Arrays = list[Any]
Step = Callable[[], Arrays]
BATCH = 128  # of the loaders


class Unable(Exception):
    """This framework cannot do this workload; the message says why."""


class Peer:
    """A framework on one device. `xp` holds functions with NumPy's names, from which the dialect is composed."""

    xp: Any

    def __init__(self, device: str, dtype: str, threads: int) -> None:
        self.device, self.dtype, self.threads = device, dtype, threads

    def step(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """The function that is timed. It returns the framework's arrays: the loss, gradients where they are asked for.

        Raises Unable for what the framework cannot do.
        """
        make = getattr(self, workload.kind, None)
        if make is None:
            raise Unable(f"it has no {KINDS[workload.kind]}")
        return make(workload, parameters, batch)  # type: ignore[no-any-return]

    def numpy(self, array: Any) -> Any:
        """The values on the host."""
        return np.asarray(array)

    def synchronize(self, outputs: Arrays) -> None:
        """Wait until these have been computed."""

    def device_seconds(self, run: Callable[[], None]) -> float | None:
        """Seconds between two events on the device round run(), or None without a device. Waits."""
        run()
        return None

    def peak(self) -> int | None:
        """Bytes that the framework holds or held on the device at most; None for the CPU."""
        return None

    def launches(self, step: Step) -> int | None:
        """Kernels that one step launches, where that can be counted."""
        return None

    def products(self) -> list[str] | None:
        """What matrix products were computed in, by type, where the framework can tell."""
        return None

    def profile(self, step: Step) -> list[dict[str, Any]] | None:
        """Where a step's time goes, slowest first, where the framework can tell."""
        return None

    def rates(self) -> tuple[float, float] | None:
        """Bytes (of both sides) that a copy moves and float32 operations that a product makes, a second."""
        return None

    # --- the dialect ----------------------------------------------------------------------------------------------

    def sum(self, x: Any) -> Any:
        """Of all elements."""
        return self.xp.sum(x)

    def mean(self, x: Any) -> Any:
        """Of all elements."""
        return self.xp.mean(x)

    def spatial_mean(self, x: Any) -> Any:
        """(N, C, H, W) to (N, C)."""
        return self.xp.mean(x, axis=(2, 3))

    def relu(self, x: Any) -> Any:
        """max(x, 0)."""
        return self.xp.maximum(x, 0)

    def gelu(self, x: Any) -> Any:
        """The form with tanh."""
        return 0.5 * x * (1 + self.xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))

    def matmul(self, x: Any, y: Any) -> Any:
        """The product, of stacks too."""
        return self.xp.matmul(x, y)

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        """x W' + b; b may be None."""
        out = self.matmul(x, self.transpose(w, (1, 0)))
        return out if b is None else out + b

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """A length may be -1."""
        return self.xp.reshape(x, shape)

    def transpose(self, x: Any, axes: tuple[int, ...]) -> Any:
        """The axes in that order."""
        return self.xp.transpose(x, axes)

    def embedding(self, ids: Any, table: Any) -> Any:
        """Rows of a table."""
        return table[ids]

    def log_softmax(self, x: Any) -> Any:
        """Along the last axis."""
        x = x - self.xp.max(x, axis=-1, keepdims=True)
        return x - self.xp.log(self.xp.sum(self.xp.exp(x), axis=-1, keepdims=True))

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        """The mean over rows."""
        rows = np.arange(labels.shape[0])
        return -self.xp.mean(self.log_softmax(logits)[rows, labels])

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        """Over the last axis, eps 1e-5."""
        x = x - self.xp.mean(x, axis=-1, keepdims=True)
        return x / self.xp.sqrt(self.xp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * w + b

    def batch_norm(self, x: Any, w: Any, b: Any) -> Any:
        """Over all axes but the channels, by the batch's own statistics, eps 1e-5."""
        x = x - self.xp.mean(x, axis=(0, 2, 3), keepdims=True)
        x = x / self.xp.sqrt(self.xp.mean(x * x, axis=(0, 2, 3), keepdims=True) + 1e-5)
        return x * self.reshape(w, (1, -1, 1, 1)) + self.reshape(b, (1, -1, 1, 1))

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """Causal, (N, heads, T, D)."""
        length, dim = q.shape[2:]
        hidden = np.triu(np.full((length, length), -1e9, self.dtype), 1)
        scores = self.matmul(q, self.transpose(k, (0, 1, 3, 2))) * (1 / math.sqrt(dim)) + hidden
        return self.matmul(self.xp.exp(self.log_softmax(scores)), v)

    def conv(self, x: Any, w: Any, b: Any, padding: int) -> Any:
        """Stride 1: slices of the image side by side, and one product. b may be None."""
        out, channels, kh, kw = w.shape
        if padding:
            x = self.pad(x, padding)
        n, height, width = x.shape[0], x.shape[2] - kh + 1, x.shape[3] - kw + 1
        taps = [x[:, :, i : i + height, j : j + width] for i in range(kh) for j in range(kw)]
        columns = self.reshape(self.xp.stack(taps, axis=2), (n, channels * kh * kw, height * width))
        y = self.reshape(self.matmul(self.reshape(w, (out, -1)), columns), (n, out, height, width))
        return y if b is None else y + self.reshape(b, (1, -1, 1, 1))

    def pad(self, x: Any, width: int) -> Any:
        """Zeros round the image."""
        return self.xp.pad(x, ((0, 0), (0, 0), (width, width), (width, width)))

    def max_pool(self, x: Any) -> Any:
        """2 x 2."""
        n, c, h, w = x.shape
        return self.xp.max(self.reshape(x, (n, c, h // 2, 2, w // 2, 2)), axis=(3, 5))


KINDS = {
    "train": "optimisers", "gradient": "gradients", "hvp": "second derivatives", "epoch": "loader",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One column of the report.

    spec: 'module:class'. package: what is imported, and measured at it. of: the word of `--against`. environment:
    variables of its process. devices: where it runs. slow: seconds or minutes go by before its first step; left out
    of the quick suite.
    """

    spec: str
    package: str
    of: str
    environment: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu", "cuda")
    slow: bool = False

    def load(self) -> type[Peer]:
        """The class; imports the framework."""
        module, _, name = self.spec.partition(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]

    @property
    def missing(self) -> str:
        """Why it cannot be compared, or ''."""
        return "" if importlib.util.find_spec(self.package) else f"{self.package} is not installed"


HERE = "gpugrad.bench.peers"
NUMPY, COMPILER, CPU = {"GPUGRAD_CPU_JIT": "0"}, {"GPUGRAD_CPU_JIT": "1"}, ("cpu",)
PEERS: dict[str, Entry] = {
    "gpugrad": Entry(f"{HERE}.ours:Eager", "gpugrad", "gpugrad", NUMPY),
    "gpugrad-replay": Entry(f"{HERE}.ours:Replay", "gpugrad", "gpugrad", NUMPY),
    "gpugrad-compiled": Entry(f"{HERE}.ours:Compiled", "gpugrad", "gpugrad", COMPILER),
    "numpy": Entry(f"{HERE}.by_hand:ByHand", "numpy", "numpy", devices=CPU),
    "torch": Entry(f"{HERE}.on_torch:Torch", "torch", "torch"),
    "torch-graph": Entry(f"{HERE}.on_torch:Graph", "torch", "torch", devices=("cuda",)),
    "jax.jit": Entry(f"{HERE}.on_jax:Jax", "jax", "jax"),
    "autograd": Entry(f"{HERE}.on_autograd:Autograd", "autograd", "autograd", devices=CPU),
    "mygrad": Entry(f"{HERE}.on_mygrad:MyGrad", "mygrad", "mygrad", devices=CPU),
    "torch.compile": Entry(f"{HERE}.on_torch:Compiled", "torch", "torch", slow=True),
    "tinygrad": Entry(f"{HERE}.on_tinygrad:TinyGrad", "tinygrad", "tinygrad", devices=CPU, slow=True),
}
REFERENCE = ("numpy", "gpugrad")  # the first that can do a workload, in float64, is what the others are held to


def select(against: list[str], suite: str, device: str) -> list[str]:
    """Columns of the device: gpugrad's and those named, by framework or by column; slow ones only by name or in full.

    Raises DomainError for a word that names none.
    """
    words = {w for name, e in PEERS.items() for w in (name, e.of)}
    for word in against:
        if word not in words:
            raise fail(DomainError, "bench", f"nothing to compare with is called {word!r}; there is {', '.join(PEERS)}")
    return [
        name
        for name, e in PEERS.items()
        if device in e.devices
        and (e.of == "gpugrad" or name in against or (e.of in against and (suite == "full" or not e.slow)))
    ]


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
