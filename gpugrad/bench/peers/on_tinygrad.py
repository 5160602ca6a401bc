"""tinygrad: the whole step under TinyJit."""

from __future__ import annotations

import os
import shutil
from typing import Any

from tinygrad import Device, Tensor, TinyJit
from tinygrad.helpers import DEV, TRAINING
from tinygrad.nn.optim import SGD, Adam

from gpugrad.bench.peers import Arrays, Peer, Step, Unable
from gpugrad.bench.workloads import Workload


class TinyGrad(Peer):
    """Two steps as they come, then captured ones."""

    def __init__(self, device: str, dtype: str, threads: int) -> None:
        super().__init__(device, dtype, threads)
        self.place = "CPU" if device == "cpu" else "CUDA"
        if device == "cpu" and shutil.which(os.environ.get("CC", "clang")) is None:
            raise Unable("it needs clang, which is not installed")
        DEV.value = self.place
        TRAINING.value = 1

    def put(self, arrays: Arrays) -> Arrays:
        """On the device, as arrays of their own."""
        return [Tensor(a, device=self.place).contiguous().realize() for a in arrays]

    def train(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Forward, backward, update in one capture."""
        p, data = self.put(parameters), self.put(batch)
        optimizer = {"sgd": SGD, "adam": Adam}[workload.optimizer](p, **dict(workload.rates))

        @TinyJit  # type: ignore[untyped-decorator]
        def run() -> Any:
            loss = workload.loss(self, p, data)
            for t, grad in zip(p, loss.gradient(*p)):
                t.grad = grad
            return loss.realize(*optimizer.schedule_step())

        return lambda: [run()]

    def gradient(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Loss and gradients in one capture."""
        if workload.eager:
            raise Unable("a program of that many operations is not unrolled")
        p, data = self.put(parameters), self.put(batch)

        @TinyJit  # type: ignore[untyped-decorator]
        def run() -> Any:
            loss = workload.loss(self, p, data)
            grads = loss.gradient(*p)
            loss.realize(*grads)
            return loss, *grads

        return lambda: list(run())

    def hvp(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Reverse over reverse, in one capture."""
        p, v, data = self.put(parameters), self.put([0.5 * a for a in parameters]), self.put(batch)

        @TinyJit  # type: ignore[untyped-decorator]
        def run() -> Any:
            grads = workload.loss(self, p, data).gradient(*p)
            along = sum((g * t).sum() for g, t in zip(grads, v))
            found = along.gradient(*p)  # type: ignore[attr-defined]
            found[0].realize(*found[1:])
            return found

        return lambda: list(run())

    def numpy(self, array: Any) -> Any:
        """Waits."""
        return array.numpy()

    def synchronize(self, outputs: Arrays) -> None:
        """Of the device."""
        Device[self.place].synchronize()

    def sum(self, x: Any) -> Any:
        """Of all."""
        return x.sum()

    def mean(self, x: Any) -> Any:
        """Of all."""
        return x.mean()

    def spatial_mean(self, x: Any) -> Any:
        """Of the pixels."""
        return x.mean((2, 3))

    def relu(self, x: Any) -> Any:
        """Its own."""
        return x.relu()

    def gelu(self, x: Any) -> Any:
        """Its own, the form with tanh."""
        return x.gelu()

    def matmul(self, x: Any, y: Any) -> Any:
        """Its own."""
        return x @ y

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """A view."""
        return x.reshape(shape)

    def transpose(self, x: Any, axes: tuple[int, ...]) -> Any:
        """A view."""
        return x.permute(axes)

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        """Its own."""
        return logits.sparse_categorical_crossentropy(labels)

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        """Its own."""
        return x.layernorm(eps=1e-5) * w + b

    def batch_norm(self, x: Any, w: Any, b: Any) -> Any:
        """By the batch's statistics."""
        x = x - x.mean((0, 2, 3), keepdim=True)
        x = x * ((x * x).mean((0, 2, 3), keepdim=True) + 1e-5).rsqrt()
        return x * w.reshape(1, -1, 1, 1) + b.reshape(1, -1, 1, 1)

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """Its own."""
        return q.scaled_dot_product_attention(k, v, is_causal=True)

    def conv(self, x: Any, w: Any, b: Any, padding: int) -> Any:
        """Its own."""
        return x.conv2d(w, b, padding=padding)

    def max_pool(self, x: Any) -> Any:
        """Its own."""
        return x.max_pool2d((2, 2))
