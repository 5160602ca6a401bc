"""HIPS autograd: NumPy wrapped, updates in NumPy."""

from __future__ import annotations

from typing import Any

import autograd
import autograd.misc
import autograd.numpy as anp
import numpy as np

from gpugrad.bench.peers import Arrays, Peer, Step
from gpugrad.bench.peers.by_hand import OPTIMIZERS
from gpugrad.bench.workloads import Workload


class Autograd(Peer):
    """Op by op."""

    xp = anp

    def train(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Gradients by autograd, the update by hand."""
        run = autograd.value_and_grad(lambda p: workload.loss(self, p, batch))
        update = OPTIMIZERS[workload.optimizer](parameters, **dict(workload.rates))

        def step() -> Arrays:
            loss, grads = run(parameters)
            update(grads)
            return [loss]

        return step

    def gradient(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """value_and_grad."""
        run = autograd.value_and_grad(lambda p: workload.loss(self, p, batch))

        def step() -> Arrays:
            loss, grads = run(parameters)
            return [loss, *grads]

        return step

    def hvp(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Reverse over reverse."""
        flat, shaped = autograd.misc.flatten(parameters)
        run = autograd.hessian_vector_product(lambda p: workload.loss(self, shaped(p), batch))
        return lambda: shaped(run(flat, 0.5 * flat))  # type: ignore[no-any-return]

    def pad(self, x: Any, width: int) -> Any:
        """autograd's wants pairs."""
        return anp.pad(x, [(0, 0), (0, 0), (width, width), (width, width)], "constant")

    def max_pool(self, x: Any) -> Any:
        """One axis after the other: its maximum takes one."""
        n, c, h, w = x.shape
        return anp.max(anp.max(anp.reshape(x, (n, c, h // 2, 2, w // 2, 2)), axis=5), axis=3)

    def numpy(self, array: Any) -> Any:
        """Already there."""
        return np.asarray(array)
