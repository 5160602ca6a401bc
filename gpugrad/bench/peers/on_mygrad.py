"""MyGrad: Python loops over NumPy, updates in NumPy."""

from __future__ import annotations

from typing import Any

import mygrad as mg
import numpy as np
from mygrad.nnet.activations import relu
from mygrad.nnet.layers import conv_nd, max_pool
from mygrad.nnet.losses import softmax_crossentropy

from gpugrad.bench.peers import Arrays, Peer, Step
from gpugrad.bench.peers.by_hand import OPTIMIZERS
from gpugrad.bench.workloads import Workload


class MyGrad(Peer):
    """Op by op."""

    xp = mg

    def train(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Gradients by MyGrad, the update by hand on the arrays inside."""
        p = [mg.tensor(a) for a in parameters]
        update = OPTIMIZERS[workload.optimizer]([t.data for t in p], **dict(workload.rates))

        def step() -> Arrays:
            loss = workload.loss(self, p, batch)
            loss.backward()
            update([t.grad for t in p])
            return [loss.data]

        return step

    def gradient(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """backward()."""
        p = [mg.tensor(a) for a in parameters]

        def step() -> Arrays:
            loss = workload.loss(self, p, batch)
            loss.backward()
            return [loss.data, *(t.grad for t in p)]

        return step

    def numpy(self, array: Any) -> Any:
        """Already there."""
        return np.asarray(array)

    def relu(self, x: Any) -> Any:
        """Its own."""
        return relu(x)

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        """Its own."""
        return softmax_crossentropy(logits, labels)

    def conv(self, x: Any, w: Any, b: Any, padding: int) -> Any:
        """Its own."""
        y = conv_nd(x, w, stride=1, padding=padding)
        return y if b is None else y + mg.reshape(b, (1, -1, 1, 1))

    def max_pool(self, x: Any) -> Any:
        """Its own."""
        return max_pool(x, (2, 2), 2)
