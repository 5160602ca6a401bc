"""The dialect of frameworks with torch's `nn.functional`: PyTorch, and gpugrad, whose signatures are the same."""

from __future__ import annotations

from typing import Any

from gpugrad.bench.peers import Peer


class Functional(Peer):
    """`F`: the module of functions on tensors, which have methods as well."""

    F: Any

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
        """One function."""
        return self.F.relu(x)

    def gelu(self, x: Any) -> Any:
        """One function."""
        return self.F.gelu(x, approximate="tanh")

    def matmul(self, x: Any, y: Any) -> Any:
        """The operator."""
        return x @ y

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        """One function."""
        return self.F.linear(x, w, b)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """A view if possible."""
        return x.reshape(shape)

    def transpose(self, x: Any, axes: tuple[int, ...]) -> Any:
        """A view."""
        return x.permute(axes)

    def embedding(self, ids: Any, table: Any) -> Any:
        """One function."""
        return self.F.embedding(ids, table)

    def cross_entropy(self, logits: Any, labels: Any) -> Any:
        """One function."""
        return self.F.cross_entropy(logits, labels)

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        """One function."""
        return self.F.layer_norm(x, w.shape, w, b)

    def batch_norm(self, x: Any, w: Any, b: Any) -> Any:
        """One function."""
        return self.F.batch_norm(x, None, None, w, b, training=True)

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """One function."""
        return self.F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def conv(self, x: Any, w: Any, b: Any, padding: int) -> Any:
        """One function."""
        return self.F.conv2d(x, w, b, padding=padding)

    def max_pool(self, x: Any) -> Any:
        """One function."""
        return self.F.max_pool2d(x, 2)
