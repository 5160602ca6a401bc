"""The models of the workloads, written once: `d` is the dialect of a framework, `p` its parameters, then the batch.

Every function returns a loss of one element.
"""

from __future__ import annotations

from typing import Any

Arrays = list[Any]


def chain(d: Any, p: Arrays, batch: Arrays, *, links: int) -> Any:
    """x = x w + b, `links` times, on ten elements: what an operation costs before there is any work."""
    x, w, b = p
    for _ in range(links):
        x = x * w + b
    return d.sum(x)


def deep(d: Any, p: Arrays, batch: Arrays, *, links: int) -> Any:
    """x = x w, `links` times. x holds small integers and w is -1, so that nothing rounds."""
    x, w = p
    for _ in range(links):
        x = x * w
    return d.sum(x)


def elementwise(d: Any, p: Arrays, batch: Arrays) -> Any:
    """The mean of relu(x w + b) c, all of full size."""
    x, w, b, c = p
    return d.mean(d.relu(x * w + b) * c)


def cross_entropy(d: Any, p: Arrays, batch: Arrays) -> Any:
    """Softmax cross-entropy of logits (N, C) that are the parameter."""
    return d.cross_entropy(p[0], batch[0])


def two_layer(d: Any, p: Arrays, batch: Arrays) -> Any:
    """The lecture's first network, without biases: the squared error of relu(x W1) W2, summed."""
    x, y = batch
    off = d.matmul(d.relu(d.matmul(x, p[0])), p[1]) - y
    return d.sum(off * off)


def mlp(d: Any, p: Arrays, batch: Arrays) -> Any:
    """Linear layers with relu between them, and softmax cross-entropy. Weights are (out, in)."""
    x, y = batch
    for w, b in zip(p[:-2:2], p[1:-2:2]):
        x = d.relu(d.linear(x, w, b))
    return d.cross_entropy(d.linear(x, p[-2], p[-1]), y)


def lenet(d: Any, p: Arrays, batch: Arrays) -> Any:
    """LeNet-5 with relu and maximum pooling, on 28 x 28 pixels."""
    x, y = batch
    x = d.max_pool(d.relu(d.conv(x, p[0], p[1], 2)))
    x = d.max_pool(d.relu(d.conv(x, p[2], p[3], 0)))
    return mlp(d, p[4:], [d.reshape(x, (x.shape[0], -1)), y])


def resnet(d: Any, p: Arrays, batch: Arrays) -> Any:
    """A convolution, blocks of two convolutions with batch norm and a skip, a mean over the pixels, a linear layer."""
    x, y = batch
    x = d.relu(d.conv(x, p[0], p[1], 1))
    for i in range(2, len(p) - 2, 6):
        inner = d.relu(d.batch_norm(d.conv(x, p[i], None, 1), p[i + 1], p[i + 2]))
        x = d.relu(x + d.batch_norm(d.conv(inner, p[i + 3], None, 1), p[i + 4], p[i + 5]))
    return d.cross_entropy(d.linear(d.spatial_mean(x), p[-2], p[-1]), y)


def gpt(d: Any, p: Arrays, batch: Arrays, *, heads: int) -> Any:
    """A decoder of pre-norm blocks on characters; the next one is predicted. Radford et al., 2019."""
    ids, target = batch
    tokens, positions, *blocks, norm_w, norm_b, head = p
    x = d.embedding(ids, tokens) + positions
    for i in range(0, len(blocks), 12):
        n1w, n1b, qkv_w, qkv_b, out_w, out_b, n2w, n2b, up_w, up_b, down_w, down_b = blocks[i : i + 12]
        x = x + d.linear(attention(d, d.linear(d.layer_norm(x, n1w, n1b), qkv_w, qkv_b), heads), out_w, out_b)
        x = x + d.linear(d.gelu(d.linear(d.layer_norm(x, n2w, n2b), up_w, up_b)), down_w, down_b)
    logits = d.linear(d.layer_norm(x, norm_w, norm_b), head, None)
    return d.cross_entropy(d.reshape(logits, (-1, logits.shape[-1])), d.reshape(target, (-1,)))


def attention(d: Any, qkv: Any, heads: int) -> Any:
    """Causal attention of (N, T, 3 width) queries, keys and values side by side."""
    n, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    split = d.transpose(d.reshape(qkv, (n, length, 3, heads, width // heads)), (2, 0, 3, 1, 4))
    out = d.attention(split[0], split[1], split[2])
    return d.reshape(d.transpose(out, (0, 2, 1, 3)), (n, length, width))
