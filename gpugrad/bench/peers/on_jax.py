"""JAX: the whole step under jax.jit, parameters donated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpugrad.bench.peers import Arrays, Peer, Step, Unable
from gpugrad.bench.workloads import Workload


class Jax(Peer):
    """Jitted; products in true float32."""

    xp = jnp

    def __init__(self, device: str, dtype: str, threads: int) -> None:
        super().__init__(device, dtype, threads)
        jax.config.update("jax_default_matmul_precision", "highest")
        try:
            self.place = jax.devices("gpu" if device != "cpu" else "cpu")[0]
        except RuntimeError:
            raise Unable("this build of jax, or this machine, has no CUDA") from None
        jax.config.update("jax_default_device", self.place)

    def put(self, arrays: Arrays) -> Arrays:
        """On the device."""
        return [jax.device_put(a, self.place) for a in arrays]

    def rolled(self, workload: Workload) -> None:
        """Refuse what jit would unroll for minutes."""
        if workload.eager:
            raise Unable("a program of that many operations is not unrolled")

    def train(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """One program: loss, gradients, update."""
        self.rolled(workload)
        p, data, rates = self.put(parameters), self.put(batch), dict(workload.rates)
        state: Any = jax.tree.map(jnp.zeros_like, (p, p))
        count = jnp.zeros((), jnp.int32)

        def sgd(p: Any, g: Any, state: Any, count: Any) -> Any:
            v = [rates.get("momentum", 0.0) * v + g for v, g in zip(state[0], g)]
            return [p - rates["lr"] * v for p, v in zip(p, v)], (v, state[1])

        def adam(p: Any, g: Any, state: Any, count: Any) -> Any:
            m = [0.9 * m + 0.1 * g for m, g in zip(state[0], g)]
            s = [0.999 * s + 0.001 * g * g for s, g in zip(state[1], g)]
            size, root = rates["lr"] / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)
            return [p - size * m / (jnp.sqrt(s) / root + 1e-8) for p, m, s in zip(p, m, s)], (m, s)

        update = {"sgd": sgd, "adam": adam}[workload.optimizer]

        def once(p: Any, state: Any, count: Any, batch: Any) -> Any:
            loss, g = jax.value_and_grad(lambda p: workload.loss(self, p, batch))(p)
            p, state = update(p, g, state, count + 1.0)
            return loss, p, state, count + 1

        run = jax.jit(once, donate_argnums=(0, 1))

        def step() -> Arrays:
            nonlocal p, state, count
            loss, p, state, count = run(p, state, count, data)
            return [loss]

        return step

    def gradient(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Loss and gradients."""
        self.rolled(workload)
        p, data = self.put(parameters), self.put(batch)
        run = jax.jit(jax.value_and_grad(lambda p, batch: workload.loss(self, p, batch)))

        def step() -> Arrays:
            loss, grads = run(p, data)
            return [loss, *grads]

        return step

    def hvp(self, workload: Workload, parameters: Arrays, batch: Arrays) -> Step:
        """Forward over reverse."""
        p, v, data = self.put(parameters), self.put([0.5 * a for a in parameters]), self.put(batch)

        @jax.jit  # type: ignore[untyped-decorator]
        def run(p: Any, v: Any, batch: Any) -> Any:
            return jax.jvp(jax.grad(lambda p: workload.loss(self, p, batch)), (p,), (v,))[1]

        return lambda: run(p, v, data)  # type: ignore[no-any-return]

    def synchronize(self, outputs: Arrays) -> None:
        """Of the last outputs."""
        jax.block_until_ready(outputs)

    def peak(self) -> int | None:
        """As its allocator says."""
        stats = None if self.device == "cpu" else self.place.memory_stats()
        return None if stats is None else int(stats["peak_bytes_in_use"])

    def relu(self, x: Any) -> Any:
        """jax.nn's."""
        return jax.nn.relu(x)

    def gelu(self, x: Any) -> Any:
        """jax.nn's."""
        return jax.nn.gelu(x, approximate=True)

    def log_softmax(self, x: Any) -> Any:
        """jax.nn's."""
        return jax.nn.log_softmax(x)

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        """The labelled class by a gather."""
        return -jnp.mean(jnp.take_along_axis(self.log_softmax(logits), labels[:, None], axis=-1))

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """jax.nn's, which has heads behind the positions."""
        turned = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
        return jnp.swapaxes(jax.nn.dot_product_attention(*turned, is_causal=True), 1, 2)

    def conv(self, x: Any, w: Any, b: Any, padding: int) -> Any:
        """XLA's."""
        y = jax.lax.conv_general_dilated(x, w, (1, 1), [(padding, padding)] * 2)
        return y if b is None else y + b[:, None, None]

    def max_pool(self, x: Any) -> Any:
        """XLA's."""
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
